//! What one endpoint says about one peer in one direction, read back from compiled verdicts: a map from flows to
//! what decides them.

use std::collections::{BTreeMap, BTreeSet};

use policies_ir::{
    policy::{EndpointToHost, IpVersion},
    tables::{BuiltinRule, Direction, RuleId, Service, SourceBlock, SourceClass, Verdict, VerdictEntry},
};

use crate::space::{ALL_PORTS, Interval, Plane, Point, Ports, Space, elementary};

/// Verdicts of an answer as the compiler writes them.
pub(crate) type Answer = [(SourceClass, Service, VerdictEntry)];
/// Classes of source ports of an endpoint.
pub(crate) type SourceTable = BTreeMap<SourceBlock, SourceClass>;

/// What decides, by destination port.
type ByPort = Vec<(Interval, VerdictEntry)>;

/// The map. Ports of one protocol that have no entry are not part of any flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judge {
    listed: BTreeMap<u8, Vec<(Interval, ByPort)>>,
    others: VerdictEntry,
    allowed: Space,
}

const NO_MATCH: VerdictEntry = VerdictEntry {
    verdict: Verdict::Deny,
    rule: BuiltinRule::NoMatch.id(),
};

impl Judge {
    pub(crate) fn new(answer: &Answer, sources: &SourceTable) -> Self {
        let entries: BTreeMap<(SourceClass, Service), VerdictEntry> = answer
            .iter()
            .map(|(source, service, entry)| ((*source, *service), *entry))
            .collect();
        let of_answer = answer.iter().filter_map(|(_, service, _)| match service {
            Service::Any => None,
            Service::Protocol(protocol) | Service::Ports { protocol, .. } => Some(*protocol),
        });
        let protocols: BTreeSet<u8> = of_answer
            .chain(sources.keys().map(|block| block.protocol))
            .collect();
        let listed = protocols.into_iter().map(|protocol| {
            let pieces = source_pieces(protocol, sources);
            let verdicts = pieces.map(|(source, class)| (source, port_pieces(&entries, class, protocol)));
            (protocol, verdicts.collect())
        });
        let mut judge = Self {
            listed: listed.collect(),
            others: entries
                .get(&(SourceClass::default(), Service::Any))
                .copied()
                .unwrap_or(NO_MATCH),
            allowed: Space::nothing(),
        };
        judge.allowed = judge.space(|entry| entry.verdict == Verdict::Allow);
        judge
    }

    /// What a pod says about its own node where it says this about the same address elsewhere: the last step of
    /// [`policies_ir::decide::decide`].
    pub(crate) fn of_own_node(&self, direction: Direction, to_host: EndpointToHost) -> Self {
        let last_word = |entry: VerdictEntry| {
            let (verdict, rule) = match (direction, entry.verdict) {
                (Direction::Ingress, Verdict::Deny) => (Verdict::Allow, BuiltinRule::FromHost),
                (Direction::Egress, Verdict::Allow) if to_host == EndpointToHost::Drop => {
                    (Verdict::Deny, BuiltinRule::ToHost)
                }
                _ => return entry,
            };
            let rule = rule.id();
            VerdictEntry { verdict, rule }
        };
        let of_ports = |ports: &ByPort| {
            ports
                .iter()
                .map(|(port, entry)| (*port, last_word(*entry)))
                .collect()
        };
        let listed = self.listed.iter().map(|(protocol, pieces)| {
            let pieces = pieces.iter().map(|(source, ports)| (*source, of_ports(ports)));
            (*protocol, pieces.collect())
        });
        let mut judge = Self {
            listed: listed.collect(),
            others: last_word(self.others),
            allowed: Space::nothing(),
        };
        judge.allowed = judge.space(|entry| entry.verdict == Verdict::Allow);
        judge
    }

    /// What is allowed.
    pub(crate) fn allowed(&self) -> &Space {
        &self.allowed
    }

    /// What decides about one flow.
    pub(crate) fn decide(&self, point: Point) -> VerdictEntry {
        let Some(pieces) = self.listed.get(&point.protocol) else {
            return self.others;
        };
        let find = |port: u16| move |interval: &Interval| (interval.0..=interval.1).contains(&port);
        let (by_source, by_port) = (find(point.source_port), find(point.port));
        let ports = pieces.iter().find(|(source, _)| by_source(source));
        let entry = ports.and_then(|(_, ports)| ports.iter().find(|(port, _)| by_port(port)));
        entry.map_or(NO_MATCH, |(_, entry)| *entry)
    }

    /// Rules that decide about a flow of `space` between addresses of a family.
    pub(crate) fn deciders(&self, space: &Space, version: IpVersion) -> BTreeSet<RuleId> {
        let mut entries: BTreeSet<VerdictEntry> = self
            .listed
            .values()
            .flatten()
            .flat_map(|(_, ports)| ports.iter().map(|(_, entry)| *entry))
            .collect();
        entries.insert(self.others);
        let decides = |entry: &VerdictEntry| {
            let area = self.space(|candidate| candidate == *entry);
            !area.intersect(space).of_family(version).is_empty()
        };
        entries
            .into_iter()
            .filter(decides)
            .map(|entry| entry.rule)
            .collect()
    }

    /// Flows that entries of this kind decide.
    pub(crate) fn space(&self, wanted: impl Fn(VerdictEntry) -> bool) -> Space {
        let listed = self.listed.iter().map(|(protocol, pieces)| {
            let plane = pieces.iter().map(|(source, ports)| {
                let ports = ports.iter().filter(|(_, entry)| wanted(*entry));
                (*source, Ports::of(ports.map(|(interval, _)| *interval)))
            });
            (*protocol, Plane::of(plane))
        });
        Space::of(listed.collect::<Vec<_>>(), wanted(self.others))
    }
}

fn source_pieces(protocol: u8, sources: &SourceTable) -> impl Iterator<Item = (Interval, SourceClass)> {
    let blocks: Vec<(Interval, u8, SourceClass)> = sources
        .iter()
        .filter(|(block, _)| block.protocol == protocol)
        .map(|(block, class)| {
            (
                block_interval(block.port, block.prefix_bits),
                block.prefix_bits,
                *class,
            )
        })
        .collect();
    let pieces = elementary(blocks.iter().map(|(interval, ..)| interval));
    let class_at = move |piece: Interval| {
        let inside = blocks
            .iter()
            .filter(|((first, last), ..)| (*first..=*last).contains(&piece.0));
        let longest = inside.max_by_key(|(_, bits, _)| *bits);
        (
            piece,
            longest.map_or_else(SourceClass::default, |(.., class)| *class),
        )
    };
    pieces.map(class_at)
}

fn port_pieces(
    entries: &BTreeMap<(SourceClass, Service), VerdictEntry>,
    class: SourceClass,
    protocol: u8,
) -> ByPort {
    let of_class = entries.iter().filter(|((source, _), _)| *source == class);
    let mut blocks: Vec<(Interval, u8, VerdictEntry)> = Vec::new();
    for ((_, service), entry) in of_class {
        match service {
            Service::Any => blocks.push((ALL_PORTS, 0, *entry)),
            Service::Protocol(of) if *of == protocol => blocks.push((ALL_PORTS, 1, *entry)),
            Service::Ports {
                protocol: of,
                port,
                prefix_bits,
            } if *of == protocol => {
                blocks.push((
                    block_interval(*port, *prefix_bits),
                    prefix_bits.saturating_add(1),
                    *entry,
                ));
            }
            Service::Protocol(_) | Service::Ports { .. } => {}
        }
    }
    let mut pieces: Vec<(Interval, VerdictEntry)> = Vec::new();
    for piece in elementary(blocks.iter().map(|(interval, ..)| interval)) {
        let inside = blocks
            .iter()
            .filter(|((first, last), ..)| (*first..=*last).contains(&piece.0));
        let entry = inside
            .max_by_key(|(_, specificity, _)| *specificity)
            .map_or(NO_MATCH, |(.., entry)| *entry);
        match pieces.last_mut() {
            Some((open, last)) if *last == entry => open.1 = piece.1,
            _ => pieces.push((piece, entry)),
        }
    }
    pieces
}

fn block_interval(first: u16, prefix_bits: u8) -> Interval {
    let rest = u16::MAX.checked_shr(prefix_bits.into()).unwrap_or(0);
    (first, first | rest)
}
