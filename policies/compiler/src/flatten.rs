//! From an ordered list of rules to entries of which the most specific one is right.

use std::{collections::BTreeMap, sync::Arc};

use policies_ir::{
    policy::{Action, DefaultAction},
    tables::{BuiltinRule, RuleId, Service, SourceClass, Verdict, VerdictEntry},
};

use crate::{
    program::Sets,
    services::{ALL_PORTS, Interval},
    sources::Sources,
};

/// What one peer meets in one tier: the rules that match the peer, in order, and the end of the tier.
pub(crate) struct Stage {
    /// Rules; none is Log, which changes no verdict.
    pub(crate) rules: Vec<StageRule>,
    /// Asked when no rule decides.
    pub(crate) default_action: DefaultAction,
    /// Named when the default denies.
    pub(crate) default_rule: RuleId,
}

/// A rule both of whose ends are known to match.
pub(crate) struct StageRule {
    /// Which ports.
    pub(crate) sets: Arc<Sets>,
    pub(crate) action: Action,
    pub(crate) rule: RuleId,
}

/// Overrides a verdict of the policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LastWord {
    /// The verdict that does not stand.
    pub(crate) instead_of: Verdict,
    /// What says so.
    pub(crate) rule: BuiltinRule,
    /// Whether it stands also where nothing decided.
    pub(crate) closes: bool,
}

impl LastWord {
    /// What becomes of an entry.
    pub(crate) fn about(self, entry: VerdictEntry) -> VerdictEntry {
        let stands = self.closes || entry != NO_MATCH;
        match stands && entry.verdict == self.instead_of {
            true => VerdictEntry {
                verdict: self.instead_of.opposite(),
                rule: self.rule.id(),
            },
            false => entry,
        }
    }
}

/// Entries of one endpoint, direction and peer; sorted.
pub(crate) type Entries = Vec<(SourceClass, Service, VerdictEntry)>;

const NO_MATCH: VerdictEntry = VerdictEntry {
    verdict: Verdict::Deny,
    rule: BuiltinRule::NoMatch.id(),
};

/// Lays `stages` over each other.
pub(crate) fn flatten(stages: &[Stage], sources: &Sources, last_word: Option<LastWord>) -> Entries {
    let judge = |matches: &dyn Fn(&StageRule) -> bool| {
        let entry = judge(stages, matches);
        match last_word {
            Some(word) => word.about(entry),
            None => entry,
        }
    };
    let others = judge(&|rule| rule.sets.services().others() && rule.sets.sources().others());
    let mut entries = Entries::new();
    if others != NO_MATCH {
        entries.push((SourceClass::default(), Service::Any, others));
    }
    let rules = || stages.iter().flat_map(|stage| &stage.rules);
    let mut protocols: Vec<u8> = rules()
        .flat_map(|rule| {
            rule.sets
                .services()
                .protocols()
                .chain(rule.sets.sources().protocols())
        })
        .chain(sources.protocols())
        .collect();
    protocols.sort_unstable();
    protocols.dedup();
    for protocol in protocols {
        for (class, source_port) in sources.representatives(protocol) {
            let mut spans: Vec<(Interval, VerdictEntry)> = Vec::new();
            for interval in elementary(rules().flat_map(|rule| rule.sets.services().intervals(protocol))) {
                // All ports of an elementary interval are in the same sets, so its first speaks for all.
                let entry = judge(&|rule| rule.sets.contain(protocol, source_port, interval.0));
                match spans.last_mut() {
                    Some((open, last)) if *last == entry => open.1 = interval.1,
                    _ => spans.push((interval, entry)),
                }
            }
            // The entry for all protocols is of the default class alone.
            let of_all = if class == SourceClass::default() {
                others
            } else {
                NO_MATCH
            };
            let encoded = encode(protocol, &spans, of_all);
            entries.extend(
                encoded
                    .into_iter()
                    .map(|(service, entry)| (class, service, entry)),
            );
        }
    }
    entries.sort_unstable();
    entries
}

fn judge(stages: &[Stage], matches: &dyn Fn(&StageRule) -> bool) -> VerdictEntry {
    for stage in stages {
        let hit = stage.rules.iter().find(|rule| matches(rule));
        let (action, rule) = match (hit, stage.default_action) {
            (Some(hit), _) => (hit.action, hit.rule),
            (None, DefaultAction::Deny) => (Action::Deny, stage.default_rule),
            (None, DefaultAction::Pass) => (Action::Pass, stage.default_rule),
        };
        match action {
            Action::Allow => {
                return VerdictEntry {
                    verdict: Verdict::Allow,
                    rule,
                };
            }
            Action::Deny => {
                return VerdictEntry {
                    verdict: Verdict::Deny,
                    rule,
                };
            }
            Action::Pass | Action::Log => {}
        }
    }
    NO_MATCH
}

/// Splits all ports where one of `intervals` begins or ends.
pub(crate) fn elementary<'a>(
    intervals: impl Iterator<Item = &'a Interval>,
) -> impl Iterator<Item = Interval> {
    let mut starts: Vec<u16> = vec![0];
    for (first, last) in intervals {
        starts.push(*first);
        starts.extend(last.checked_add(1));
    }
    starts.sort_unstable();
    starts.dedup();
    let ends = starts
        .clone()
        .into_iter()
        .skip(1)
        .map(|next| next - 1)
        .chain([ALL_PORTS.1]);
    starts.into_iter().zip(ends)
}

/// Writes the verdicts of one protocol: the one that would need most blocks becomes the whole protocol's (or
/// stays that of all protocols), the others get blocks of their own.
fn encode(
    protocol: u8,
    spans: &[(Interval, VerdictEntry)],
    others: VerdictEntry,
) -> Vec<(Service, VerdictEntry)> {
    let mut entries = Vec::new();
    let mut block_counts: BTreeMap<VerdictEntry, usize> = BTreeMap::new();
    for (interval, entry) in spans {
        *block_counts.entry(*entry).or_default() += blocks(*interval).count();
    }
    let Some(base) = block_counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .map(|(entry, _)| entry)
    else {
        return entries;
    };
    if base != others {
        entries.push((Service::Protocol(protocol), base));
    }
    for (interval, entry) in spans.iter().filter(|(_, entry)| *entry != base) {
        let block = |(port, prefix_bits)| {
            (
                Service::Ports {
                    protocol,
                    port,
                    prefix_bits,
                },
                *entry,
            )
        };
        entries.extend(blocks(*interval).map(block));
    }
    entries
}

/// The fewest prefix blocks that make up an interval, as (first port, prefix length).
pub(crate) fn blocks((first, last): Interval) -> impl Iterator<Item = (u16, u8)> {
    let mut next = Some(first).filter(|first| *first <= last);
    std::iter::from_fn(move || {
        let port = next?;
        let left = u32::from(last - port) + 1;
        // As large as its alignment and what is left allow; at most 2^16, which has prefix length 0.
        let bits = if port == 0 { 16 } else { port.trailing_zeros() }.min(left.ilog2());
        next = u16::try_from(u32::from(port) + (1 << bits))
            .ok()
            .filter(|port| *port <= last);
        Some((port, u8::try_from(16 - bits).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covered(interval: Interval) -> Vec<Interval> {
        let span = |(port, bits): (u16, u8)| (port, port + (u16::MAX.checked_shr(bits.into()).unwrap_or(0)));
        blocks(interval).map(span).collect()
    }

    #[test]
    fn blocks_make_up_exactly_the_interval() {
        assert_eq!(covered(ALL_PORTS), [ALL_PORTS]);
        assert_eq!(covered((80, 80)), [(80, 80)]);
        assert_eq!(covered((65535, 65535)), [(65535, 65535)]);
        assert_eq!(covered((8, 16)), [(8, 15), (16, 16)]);
        for interval in [(0, 65534), (1, 65535), (1, 65534), (1000, 2000), (32767, 32769)] {
            let spans = covered(interval);
            assert_eq!((spans[0].0, spans[spans.len() - 1].1), interval);
            assert!(
                spans.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0),
                "{interval:?}: {spans:?}"
            );
            assert!(spans.len() <= 30, "{interval:?} needs {} blocks", spans.len());
        }
    }
}
