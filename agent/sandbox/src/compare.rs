//! What two filters answer differently, with arguments that show it.
//!
//! Rules of a call are compared by asking both for arguments at the edges of their conditions. For comparisons of whole
//! values that is exact: between two edges nothing changes. Of masks all single bits and all pairs of conditions are
//! tried; a rule of which that leaves something open is said to be compared in part.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::names;
use crate::seccomp::{Action, CallRule, Compare, SyscallPolicy, Width};

/// Combinations of arguments that are tried for one call.
const MAX_COMBINATIONS: usize = 1 << 16;

/// Values that are tried for one argument.
const MAX_VALUES: usize = 512;

/// What two filters answer differently about one call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CallDifference {
    /// Its name; absent for calls that have none yet.
    pub call: Option<&'static str>,
    /// Each pair of answers once.
    pub cases: Vec<Case>,
    /// Whether there may be other cases.
    pub in_part: bool,
}

/// Two answers to the same call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Case {
    /// Arguments by their position, those that matter.
    pub arguments: BTreeMap<u8, u64>,
    /// The first filter's answer.
    pub before: Action,
    /// The second one's.
    pub after: Action,
}

/// All differences, by the number of the call; calls that nobody knows yet come last.
pub fn differences(before: &SyscallPolicy, after: &SyscallPolicy) -> Vec<CallDifference> {
    let newest = before.newest_known.max(after.newest_known);
    let newest = names::all()
        .map(|(_, number)| number)
        .max()
        .unwrap_or(0)
        .max(newest);
    let named = names::all().map(|(name, number)| (Some(name), number));
    let mut calls: Vec<(Option<&'static str>, u32)> =
        named.chain([(None, newest.saturating_add(1))]).collect();
    calls.sort_by_key(|(_, number)| *number);
    let compared = calls.into_iter().filter_map(|(call, number)| {
        let rule = |policy: &SyscallPolicy| {
            let listed = policy.calls.get(&number).cloned();
            listed.unwrap_or_else(|| CallRule::always(policy.unlisted(number)))
        };
        let (rule_before, rule_after) = (rule(before), rule(after));
        if rule_before == rule_after {
            return None;
        }
        let (tried, in_part) = combinations([&rule_before, &rule_after]);
        let mut cases: Vec<Case> = Vec::new();
        for arguments in tried {
            let mut all = [0; 6];
            for (index, value) in &arguments {
                if let Some(slot) = all.get_mut(usize::from(*index)) {
                    *slot = *value;
                }
            }
            let (a, b) = (before.decide(number, &all), after.decide(number, &all));
            if a != b && !cases.iter().any(|case| (case.before, case.after) == (a, b)) {
                cases.push(Case {
                    arguments,
                    before: a,
                    after: b,
                });
            }
        }
        (!cases.is_empty() || in_part).then_some(CallDifference { call, cases, in_part })
    });
    compared.collect()
}

/// Arguments at the edges of the rules' conditions, and whether some were left out.
fn combinations(rules: [&CallRule; 2]) -> (Vec<BTreeMap<u8, u64>>, bool) {
    let conditions: Vec<_> = rules
        .iter()
        .flat_map(|rule| &rule.alternatives)
        .flat_map(|alternative| &alternative.all_of)
        .collect();
    let indices: BTreeSet<u8> = conditions.iter().map(|condition| condition.index).collect();
    let mut all = vec![BTreeMap::new()];
    let mut in_part = false;
    for index in indices {
        let mut values = BTreeSet::from([0, u64::MAX]);
        let own: Vec<_> = conditions
            .iter()
            .filter(|condition| condition.index == index)
            .collect();
        let mut wanted = BTreeSet::new();
        for condition in &own {
            let value = condition.value;
            match condition.compare {
                Compare::MaskedEq(mask) => {
                    wanted.insert((mask, value & mask));
                    values.extend([value & mask, (value & mask) | !mask]);
                    let bits = (0..64).map(|bit| 1_u64 << bit).filter(|bit| mask & bit != 0);
                    values.extend(bits.map(|bit| (value & mask) ^ bit));
                }
                _ => values.extend([value.wrapping_sub(1), value, value.wrapping_add(1)]),
            }
            if condition.width == Width::Word {
                values.extend([value | (1 << 32), value & u64::from(u32::MAX)]);
            }
        }
        for (mask, value) in &wanted {
            for (other_mask, other) in &wanted {
                values.insert(value | (other & !mask));
                // The first holds and the other does not, in each of its bits.
                let free = other_mask & !mask;
                let bits = (0..64).map(|bit| 1_u64 << bit).filter(|bit| free & bit != 0);
                values.extend(bits.map(|bit| (value | (other & !mask)) ^ bit));
            }
        }
        // Three masks of one argument can interact in ways that no pair shows.
        in_part |= wanted.len() > 2 || values.len() > MAX_VALUES;
        let values: Vec<u64> = values.into_iter().take(MAX_VALUES).collect();
        if all.len().saturating_mul(values.len()) > MAX_COMBINATIONS {
            in_part = true;
            continue;
        }
        all = all
            .iter()
            .flat_map(|known: &BTreeMap<u8, u64>| {
                values.iter().map(move |value| {
                    let mut more = known.clone();
                    more.insert(index, *value);
                    more
                })
            })
            .collect();
    }
    (all, in_part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SyscallSet;
    use crate::seccomp::{Alternative, Condition};

    fn found<'a>(differences: &'a [CallDifference], call: &str) -> &'a CallDifference {
        let mut all = differences.iter();
        all.find(|difference| difference.call == Some(call))
            .unwrap_or_else(|| panic!("{call} is the same"))
    }

    #[test]
    fn a_policy_is_the_same_as_itself() {
        for set in [SyscallSet::Baseline, SyscallSet::Strict, SyscallSet::Jail] {
            assert_eq!(differences(&set.policy(), &set.policy()), []);
            // Said in other words it stays the same.
            let again = set.policy().and(&set.policy());
            let differ: Vec<_> = differences(&set.policy(), &again);
            assert!(
                differ.iter().all(|difference| difference.cases.is_empty()),
                "{differ:?}"
            );
        }
    }

    #[test]
    fn strict_takes_from_the_baseline_and_a_witness_shows_it() {
        let (baseline, strict) = (SyscallSet::Baseline.policy(), SyscallSet::Strict.policy());
        let all = differences(&baseline, &strict);
        for difference in &all {
            for case in &difference.cases {
                assert!(case.after.severity() > case.before.severity(), "{difference:?}");
            }
        }
        let mprotect = found(&all, "mprotect");
        let [case] = mprotect.cases.as_slice() else {
            panic!("{mprotect:?}")
        };
        assert_eq!((case.before, case.after), (Action::Allow, Action::Errno(1)));
        assert_eq!(case.arguments[&2] & 4, 4, "PROT_EXEC: {case:?}");
        assert!(all.iter().all(|difference| difference.call != Some("read")));
    }

    #[test]
    fn comparisons_are_told_apart_at_their_edges() {
        let policy = |compare, value| {
            let condition = Condition {
                index: 1,
                width: Width::Double,
                compare,
                value,
            };
            let rule = CallRule {
                alternatives: vec![Alternative {
                    all_of: vec![condition],
                    action: Action::Errno(5),
                }],
                otherwise: Action::Allow,
            };
            SyscallPolicy {
                calls: [(0, rule)].into(),
                default: Action::Errno(1),
                newest_known: 400,
                newer: Action::Errno(38),
            }
        };
        let all = differences(&policy(Compare::Gt, 7), &policy(Compare::Ge, 7));
        assert_eq!(found(&all, "read").cases[0].arguments, [(1, 7)].into());
        let same = differences(&policy(Compare::Gt, 7), &policy(Compare::Ge, 8));
        assert_eq!(same, [], "said in other words");
        let unknown = SyscallPolicy {
            newer: Action::Allow,
            ..policy(Compare::Gt, 7)
        };
        let all = differences(&policy(Compare::Gt, 7), &unknown);
        assert_eq!(all.last().expect("a difference").call, None);
    }
}
