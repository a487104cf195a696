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
pub(crate) struct Names {
    sets: Vec<BTreeSet<String>>,
    /// Which of `lists` the names of each of `sets` fit, by position.
    fitting: Vec<BTreeSet<usize>>,
    /// What is asked for, each list of patterns once.
    lists: Vec<Vec<DomainMatch>>,
}

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
        let mut names = Self {
            lists: lists.iter().map(|list| list.to_vec()).collect(),
            ..Self::default()
        };
        let mut alike: BTreeMap<BTreeSet<usize>, BTreeSet<String>> = BTreeMap::new();
        for domain in lists.iter().copied().flatten() {
            let name = domain.labels.join(".");
            alike.entry(names.fitted_by(&name)).or_default().insert(name);
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
        (names.fitting, names.sets) = sets.into_iter().unzip();
        names
    }

    /// With a set for each of these names that policy can tell from all that are there.
    pub(crate) fn with<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut more = self.clone();
        for name in names {
            let fitting = more.fitted_by(name);
            if !fitting.is_empty() && !more.fitting.contains(&fitting) {
                more.fitting.push(fitting);
                more.sets.push(BTreeSet::from([name.to_owned()]));
            }
        }
        more
    }

    pub(crate) fn sets(&self) -> &[BTreeSet<String>] {
        &self.sets
    }

    /// Position of the set that policy cannot tell from this name; nothing for a name that nobody asks for.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        let fitting = self.fitted_by(name);
        self.fitting.iter().position(|known| *known == fitting)
    }

    /// The lists that a name fits, by position.
    fn fitted_by(&self, name: &str) -> BTreeSet<usize> {
        let fits = |list: &[DomainMatch]| list.iter().any(|domain| domain.matches(name));
        let fitting = self.lists.iter().enumerate().filter(|(_, list)| fits(list));
        fitting.map(|(position, _)| position).collect()
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
        names
            .sets
            .into_iter()
            .map(|set| set.into_iter().collect())
            .collect()
    }

    #[test]
    fn a_name_is_of_the_set_that_fits_the_same() {
        let set = |domains: &[&str]| NetworkSet {
            domains: domains
                .iter()
                .map(|text| DomainMatch::parse(text).unwrap())
                .collect(),
            ..NetworkSet::default()
        };
        let cluster = Cluster {
            sets: vec![set(&["*.test"]), set(&["a.*"])],
            ..Cluster::default()
        };
        let names = Names::of(&[(&cluster, &PolicySet::default())]);
        assert_eq!(names.sets.len(), 2);
        assert_eq!(names.position("nobody.example"), None);
        assert_eq!(names.position("b.test"), names.position("*.test"));
        // One that fits both is neither.
        assert_eq!(names.position("a.test"), None);
        let more = names.with(["a.test", "b.test", "nobody.example"]);
        assert_eq!(more.sets.len(), 3);
        assert_eq!(more.position("a.test"), Some(2));
    }

    #[test]
    fn names_that_nobody_tells_apart_are_one() {
        assert!(names(&[&[]]).is_empty());
        assert_eq!(names(&[&["a.test", "*.b.test"]]), [["*.b.test", "a.test"]]);
        // One that fits the wider pattern alone, and one that fits both.
        assert_eq!(names(&[&["*.test"], &["a.test"]]), [["*.test"], ["a.test"]]);
    }
}
