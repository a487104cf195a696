//! Names that addresses may have, in as few sets as policy can tell apart.
//!
//! Which name leads to which address is nobody's to say before the resolver does, so a rule by name may match any address
//! outside. The model therefore has each address once as it is, and once for each of these sets, as if it had these names.
//!
//! Where a name only ever helps to allow, what may pass to an address of several names may pass to one of a single name
//! too, and sets of one kind of name say everything. A network set that holds addresses by name can also be denied,
//! passed on or excluded; names of such sets are also tried together with each other name. What takes three kinds of
//! names on one address is not seen.

use std::collections::{BTreeMap, BTreeSet};

use policies_ir::{
    cluster::Cluster,
    policy::{Action, DomainMatch, PolicySet, ProfileRules, Rule, WorkloadMatch},
};

/// The sets, each written as the patterns that it fits: `*` is a label that no pattern names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names(Vec<BTreeSet<String>>);

impl Names {
    /// All that rules and network sets of any of these ask for in different places.
    pub(crate) fn of(asking: &[(&Cluster, &PolicySet)]) -> Self {
        let mut lists: BTreeSet<&[DomainMatch]> = BTreeSet::new();
        let mut closing: BTreeSet<&[DomainMatch]> = BTreeSet::new();
        for (cluster, policies) in asking {
            let rules: Vec<&Rule> = egress_rules(policies).collect();
            lists.extend(rules.iter().map(|rule| rule.peer.domains.as_slice()));
            for set in &cluster.sets {
                lists.insert(&set.domains);
                let holds = |condition: &Option<WorkloadMatch>| {
                    condition
                        .as_ref()
                        .is_some_and(|condition| condition.matches(&set.workload))
                };
                let closes = |rule: &&Rule| {
                    holds(&rule.peer.not_workload)
                        || (rule.action != Action::Allow && holds(&rule.peer.workload))
                };
                if rules.iter().any(closes) {
                    closing.insert(&set.domains);
                }
            }
        }
        lists.remove(&[][..]);
        // Names that fit the same lists are alike to all policies.
        let mut alike: BTreeMap<BTreeSet<usize>, BTreeSet<String>> = BTreeMap::new();
        for domain in lists.iter().copied().flatten() {
            let name = domain.labels.join(".");
            let fits = |list: &&[DomainMatch]| list.iter().any(|domain| domain.matches(&name));
            let fitting = lists.iter().enumerate().filter(|(_, list)| fits(list));
            let fitting = fitting.map(|(position, _)| position).collect();
            alike.entry(fitting).or_default().insert(name);
        }
        let closing: BTreeSet<usize> = lists
            .iter()
            .enumerate()
            .filter(|(_, list)| closing.contains(*list))
            .map(|(position, _)| position)
            .collect();
        let mut sets = alike.clone();
        for (fitting, names) in alike.iter().filter(|(fitting, _)| !fitting.is_disjoint(&closing)) {
            for (also_fitting, more) in &alike {
                sets.entry(fitting | also_fitting).or_insert_with(|| names | more);
            }
        }
        Self(sets.into_values().collect())
    }

    pub(crate) fn sets(&self) -> &[BTreeSet<String>] {
        &self.0
    }
}

fn egress_rules(policies: &PolicySet) -> impl Iterator<Item = &Rule> {
    let of_policies = policies.tiers.iter().flat_map(|tier| &tier.policies);
    let of_policies = of_policies.flat_map(|policy| &policy.egress);
    let of_profiles = policies
        .profiles
        .values()
        .filter_map(|profile| match &profile.rules {
            ProfileRules::AllowAll => None,
            ProfileRules::Own { egress, .. } => Some(egress),
        });
    of_policies.chain(of_profiles.flatten())
}

#[cfg(test)]
mod tests {
    use policies_ir::cluster::NetworkSet;

    use super::*;

    fn names(sets: &[&[&str]]) -> Vec<Vec<String>> {
        let set = |domains: &&[&str]| NetworkSet {
            domains: domains
                .iter()
                .map(|text| DomainMatch::parse(text).unwrap())
                .collect(),
            ..NetworkSet::default()
        };
        let cluster = Cluster {
            sets: sets.iter().map(set).collect(),
            ..Cluster::default()
        };
        let names = Names::of(&[(&cluster, &PolicySet::default())]);
        names.0.into_iter().map(|set| set.into_iter().collect()).collect()
    }

    #[test]
    fn names_that_nobody_tells_apart_are_one() {
        assert!(names(&[&[]]).is_empty());
        assert_eq!(names(&[&["a.test", "*.b.test"]]), [["*.b.test", "a.test"]]);
        // One that fits the wider pattern alone, and one that fits both.
        assert_eq!(names(&[&["*.test"], &["a.test"]]), [["*.test"], ["a.test"]]);
    }
}
