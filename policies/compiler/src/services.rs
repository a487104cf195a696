//! Sets of (protocol, destination port), the space in which rules are laid over each other.

use std::collections::BTreeMap;

use policies_ir::policy::{ICMP_PROTOCOLS, IcmpMatch, NamedPort, PORT_PROTOCOLS, PortMatch, ServiceMatch};

/// Ports from first to last, both included.
pub(crate) type Interval = (u16, u16);

/// Every port.
pub(crate) const ALL_PORTS: Interval = (0, u16::MAX);

/// A set of services. Protocols that a rule speaks about are listed; the others are in or out as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceSet {
    /// Sorted, disjoint intervals of each listed protocol.
    listed: BTreeMap<u8, Vec<Interval>>,
    /// Whether every protocol that is not listed is in, with all its ports.
    others: bool,
}

impl ServiceSet {
    /// Destination ports that `service` matches when the destination declares these ports.
    pub(crate) fn of_destination(service: &ServiceMatch, destination: &[NamedPort]) -> Self {
        let icmp = (service.icmp, service.not_icmp);
        Self::of(service, icmp, (&service.ports, &service.not_ports), destination)
    }

    /// Source ports that `service` matches when the source declares these ports.
    pub(crate) fn of_source(service: &ServiceMatch, source: &[NamedPort]) -> Self {
        let ports = (&service.source_ports[..], &service.not_source_ports[..]);
        Self::of(service, (None, None), ports, source)
    }

    fn of(
        service: &ServiceMatch,
        icmp: IcmpPair,
        (wanted, unwanted): PortPair<'_>,
        end: &[NamedPort],
    ) -> Self {
        let named = |ports: &[PortMatch]| -> Vec<NamedPort> {
            let asked = |port: &&NamedPort| ports.contains(&PortMatch::Named(port.name.clone()));
            end.iter().filter(asked).cloned().collect()
        };
        let (named_in, named_out) = (named(wanted), named(unwanted));
        let mut protocols: Vec<u8> = service
            .protocol
            .iter()
            .chain(&service.not_protocol)
            .copied()
            .collect();
        protocols.extend(PORT_PROTOCOLS);
        protocols.extend(ICMP_PROTOCOLS);
        protocols.extend(named_in.iter().chain(&named_out).map(|port| port.protocol));
        let listed = protocols.into_iter().map(|protocol| {
            let ports = |ports: &[PortMatch], named: &[NamedPort]| ports_of(protocol, ports, named);
            let excluded = service.protocol.is_some_and(|p| p != protocol);
            let intervals = if excluded || service.not_protocol == Some(protocol) {
                Vec::new()
            } else {
                let mut set = icmp_intervals(protocol, icmp);
                if !wanted.is_empty() {
                    set = intersection(&set, &ports(wanted, &named_in));
                }
                intersection(&set, &complement(&ports(unwanted, &named_out)))
            };
            (protocol, intervals)
        });
        let others = service.protocol.is_none() && icmp.0.is_none() && wanted.is_empty();
        Self {
            listed: listed.collect(),
            others,
        }
    }

    /// The listed protocols.
    pub(crate) fn protocols(&self) -> impl Iterator<Item = u8> + '_ {
        self.listed.keys().copied()
    }

    /// The ports of `protocol` that are in.
    pub(crate) fn intervals(&self, protocol: u8) -> &[Interval] {
        match self.listed.get(&protocol) {
            Some(intervals) => intervals,
            None if self.others => &[ALL_PORTS],
            None => &[],
        }
    }

    /// Whether the protocols that are not listed are in.
    pub(crate) fn others(&self) -> bool {
        self.others
    }

    /// Whether `port` of `protocol` is in.
    pub(crate) fn contains(&self, protocol: u8, port: u16) -> bool {
        let intervals = self.intervals(protocol);
        let next = intervals.partition_point(|(_, last)| *last < port);
        intervals.get(next).is_some_and(|(first, _)| *first <= port)
    }
}

/// Kinds of ICMP message that a rule wants and does not want.
type IcmpPair = (Option<IcmpMatch>, Option<IcmpMatch>);
/// Ports that a rule wants and does not want.
type PortPair<'a> = (&'a [PortMatch], &'a [PortMatch]);

fn icmp_intervals(protocol: u8, (wanted, unwanted): IcmpPair) -> Vec<Interval> {
    let has_types = ICMP_PROTOCOLS.contains(&protocol);
    let intervals = |icmp: IcmpMatch| {
        if has_types {
            vec![icmp_interval(icmp)]
        } else {
            Vec::new()
        }
    };
    let set = wanted.map_or_else(|| vec![ALL_PORTS], intervals);
    match unwanted {
        Some(unwanted) => intersection(&set, &complement(&intervals(unwanted))),
        None => set,
    }
}

/// Ports of `protocol` that a list holds; `named` are those its names stand for.
pub(crate) fn ports_of(protocol: u8, ports: &[PortMatch], named: &[NamedPort]) -> Vec<Interval> {
    let has_ports = PORT_PROTOCOLS.contains(&protocol);
    let ranges = ports.iter().filter_map(|port| match port {
        PortMatch::Range(first, last) => (has_ports && first <= last).then_some((*first, *last)),
        PortMatch::Named(_) => None,
    });
    let named = named
        .iter()
        .filter(|p| p.protocol == protocol)
        .map(|p| (p.port, p.port));
    union(ranges.chain(named).collect())
}

fn icmp_interval(icmp: IcmpMatch) -> Interval {
    let (low, high) = icmp.code.map_or((0, u8::MAX), |code| (code, code));
    (
        u16::from_be_bytes([icmp.kind, low]),
        u16::from_be_bytes([icmp.kind, high]),
    )
}

/// Sorted and disjoint; intervals that touch become one.
fn union(mut intervals: Vec<Interval>) -> Vec<Interval> {
    intervals.sort_unstable();
    let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
    for (first, last) in intervals {
        match merged.last_mut() {
            Some(open) if first <= open.1.saturating_add(1) => open.1 = open.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn complement(intervals: &[Interval]) -> Vec<Interval> {
    let mut gaps = Vec::with_capacity(intervals.len() + 1);
    let mut next = Some(0u16);
    for &(first, last) in intervals {
        if let Some(start) = next
            && start < first
        {
            gaps.push((start, first - 1));
        }
        next = last.checked_add(1);
    }
    gaps.extend(next.map(|start| (start, u16::MAX)));
    gaps
}

fn intersection(a: &[Interval], b: &[Interval]) -> Vec<Interval> {
    let (mut i, mut j, mut both) = (0, 0, Vec::new());
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let (first, last) = (x.0.max(y.0), x.1.min(y.1));
        if first <= last {
            both.push((first, last));
        }
        if x.1 < y.1 { i += 1 } else { j += 1 }
    }
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_sets_keep_to_their_edges() {
        assert_eq!(
            union(vec![(5, 9), (1, 4), (20, 30), (25, 26)]),
            [(1, 9), (20, 30)]
        );
        assert_eq!(union(vec![(65535, 65535), (0, 65534)]), [ALL_PORTS]);
        assert_eq!(complement(&[]), [ALL_PORTS]);
        assert_eq!(complement(&[ALL_PORTS]), []);
        assert_eq!(
            complement(&[(0, 0), (80, 80), (65535, 65535)]),
            [(1, 79), (81, 65534)]
        );
        assert_eq!(
            intersection(&[(0, 10), (20, 30)], &[(5, 25)]),
            [(5, 10), (20, 25)]
        );
    }

    #[test]
    fn numeric_ports_match_only_protocols_with_ports() {
        let service = ServiceMatch {
            ports: vec![PortMatch::Range(80, 80)],
            ..ServiceMatch::default()
        };
        let set = ServiceSet::of_destination(&service, &[]);
        assert!(set.contains(6, 80) && set.contains(17, 80) && set.contains(132, 80));
        assert!(!set.contains(6, 81) && !set.contains(1, 80) && !set.contains(47, 80));
    }

    #[test]
    fn icmp_type_covers_its_codes() {
        let icmp = Some(IcmpMatch { kind: 3, code: None });
        let set = ServiceSet::of_destination(
            &ServiceMatch {
                icmp,
                ..ServiceMatch::default()
            },
            &[],
        );
        assert!(set.contains(1, 0x0300) && set.contains(58, 0x03ff) && !set.contains(1, 0x0400));
        assert!(!set.contains(6, 0x0300) && !set.others());
    }
}
