//! What of names the verdicts on flows rest on.

use std::collections::{BTreeMap, BTreeSet};

use policies_ir::{
    cluster::NetworkSet,
    policy::{Action, DomainMatch, PolicySet, Rule},
    tables::RuleName,
};

/// Names that rules for what leaves an endpoint ask for, by themselves or by network sets that they select.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedRules {
    /// Those of each rule that allows.
    pub allowing: BTreeMap<RuleName, BTreeSet<DomainMatch>>,
    /// Those of rules that pass flows on: another rule, of a later tier, decides then.
    pub passing: BTreeSet<DomainMatch>,
}

impl NamedRules {
    pub(super) fn of(policies: &PolicySet, sets: &[NetworkSet]) -> Self {
        let mut named = Self::default();
        for tier in &policies.tiers {
            for policy in &tier.policies {
                for rule in &policy.egress {
                    let names = names_of(rule, sets);
                    if names.is_empty() {
                        continue;
                    }
                    match rule.action {
                        Action::Allow => {
                            let name = RuleName {
                                tier: tier.name.clone(),
                                policy: policy.name.clone(),
                                rule: Some(rule.index),
                            };
                            named.allowing.entry(name).or_default().extend(names);
                        }
                        Action::Pass => named.passing.extend(names),
                        Action::Deny | Action::Log => {}
                    }
                }
            }
        }
        named
    }

    /// Those that a flow may rest on which this rule allowed.
    pub fn behind(&self, rule: &RuleName) -> impl Iterator<Item = &DomainMatch> {
        self.allowing.get(rule).into_iter().flatten().chain(&self.passing)
    }
}

fn names_of(rule: &Rule, sets: &[NetworkSet]) -> BTreeSet<DomainMatch> {
    let selected = rule.peer.workload.as_ref();
    let sets = sets
        .iter()
        .filter(|set| selected.is_some_and(|selected| selected.matches(&set.workload)));
    let of_sets = sets.flat_map(|set| &set.domains);
    rule.peer.domains.iter().chain(of_sets).cloned().collect()
}
