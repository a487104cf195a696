//! Sets of (protocol, source port, destination port), exact: what a rule, an endpoint or a pair of ends lets through.
//!
//! Every set has one form, so two sets are equal when their values are.

use std::{collections::BTreeMap, fmt};

use policies_ir::policy::{ICMP, ICMP_PROTOCOLS, ICMPV6, IpVersion, PORT_PROTOCOLS, SCTP, TCP, UDP};
use serde::Serialize;

/// Ports from first to last, both included.
pub type Interval = (u16, u16);

/// Every port.
pub const ALL_PORTS: Interval = (0, u16::MAX);
/// Ports that a system picks for its clients, by RFC 6335: what a person expects as the source of an example.
const EPHEMERAL: Interval = (49152, u16::MAX);
/// Protocol numbers kept for experiments, by RFC 3692: examples of a protocol that no rule speaks about.
const EXPERIMENTAL: [u8; 2] = [253, 254];

/// One flow between two given ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port; for ICMP `type << 8 | code`; 0 where the protocol has neither.
    pub port: u16,
}

/// A set of ports: sorted intervals that neither overlap nor touch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ports(Vec<Interval>);

/// The part of a set that is of one protocol: destination ports by source ports. Sorted; no two neighbours have the
/// same destination ports, and none has no destination ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Plane(Vec<(Interval, Ports)>);

/// A set of flows between two given ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Space {
    /// Protocols that are not simply in or out as `others` says.
    listed: BTreeMap<u8, Plane>,
    /// Whether every protocol that is not listed is in, as a whole.
    others: bool,
}

/// Flows of one protocol, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceText {
    /// Name of the protocol, its number, or `any`; `other` stands for every protocol that the list does not name, but for
    /// those in `except`.
    pub protocol: String,
    /// Protocols that `other` does not stand for: nothing of them is in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
    /// Destination ports as `80` or `8000-8100`, for ICMP types and codes; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// Source ports; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ports: Vec<String>,
}

impl Ports {
    /// These intervals, in any order.
    pub fn of(intervals: impl IntoIterator<Item = Interval>) -> Self {
        let mut intervals: Vec<Interval> = intervals.into_iter().filter(|(a, b)| a <= b).collect();
        intervals.sort_unstable();
        let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
        for (first, last) in intervals {
            match merged.last_mut() {
                Some(open) if first <= open.1.saturating_add(1) => open.1 = open.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// The intervals.
    pub fn intervals(&self) -> &[Interval] {
        &self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `port` is in.
    pub fn contains(&self, port: u16) -> bool {
        let next = self.0.partition_point(|(_, last)| *last < port);
        self.0.get(next).is_some_and(|(first, _)| *first <= port)
    }

    fn combine(&self, other: &Self, op: Op) -> Self {
        let pieces = elementary(self.0.iter().chain(&other.0));
        Self::of(pieces.filter(|(first, _)| op(self.contains(*first), other.contains(*first))))
    }
}

/// Says from membership in two sets whether something is in the third; what is in neither is never in it.
type Op = fn(bool, bool) -> bool;

impl Plane {
    /// These destination ports by source ports; later pieces add to earlier ones.
    pub fn of(pieces: impl IntoIterator<Item = (Interval, Ports)>) -> Self {
        let pieces: Vec<(Interval, Ports)> = pieces.into_iter().collect();
        let sources = elementary(pieces.iter().map(|(source, _)| source));
        let at = |source: Interval| {
            let here = pieces.iter().filter(|((a, b), _)| (*a..=*b).contains(&source.0));
            Ports::of(here.flat_map(|(_, ports)| ports.0.iter().copied()))
        };
        Self::merged(sources.map(|source| (source, at(source))))
    }

    /// All flows that `protocol` can have.
    pub fn universe(protocol: u8) -> Self {
        let (source, port) = if PORT_PROTOCOLS.contains(&protocol) {
            (ALL_PORTS, ALL_PORTS)
        } else if ICMP_PROTOCOLS.contains(&protocol) {
            ((0, 0), ALL_PORTS)
        } else {
            ((0, 0), (0, 0))
        };
        Self(vec![(source, Ports(vec![port]))])
    }

    /// Destination ports by source ports.
    pub fn pieces(&self) -> &[(Interval, Ports)] {
        &self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn merged(pieces: impl Iterator<Item = (Interval, Ports)>) -> Self {
        let mut merged: Vec<(Interval, Ports)> = Vec::new();
        for (source, ports) in pieces.filter(|(_, ports)| !ports.is_empty()) {
            match merged.last_mut() {
                Some((open, last)) if *last == ports && open.1.checked_add(1) == Some(source.0) => {
                    open.1 = source.1;
                }
                _ => merged.push((source, ports)),
            }
        }
        Self(merged)
    }

    /// Source ports by destination ports: each set of these once, in the order of their first source port.
    fn by_ports(&self) -> Vec<(Vec<Interval>, &Ports)> {
        let mut sources: Vec<(Vec<Interval>, &Ports)> = Vec::new();
        for (source, ports) in &self.0 {
            match sources.iter_mut().find(|(_, known)| *known == ports) {
                Some((known, _)) => known.push(*source),
                None => sources.push((vec![*source], ports)),
            }
        }
        sources
    }

    fn at(&self, source_port: u16) -> Option<&Ports> {
        let piece = self.0.iter().find(|((a, b), _)| (*a..=*b).contains(&source_port));
        piece.map(|(_, ports)| ports)
    }

    fn combine(&self, other: &Self, op: Op) -> Self {
        let nothing = Ports::default();
        let sources = elementary(self.0.iter().chain(&other.0).map(|(source, _)| source));
        Self::merged(sources.map(|source| {
            let (a, b) = (self.at(source.0), other.at(source.0));
            (source, a.unwrap_or(&nothing).combine(b.unwrap_or(&nothing), op))
        }))
    }
}

impl Space {
    /// Nothing.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Everything.
    pub fn everything() -> Self {
        Self {
            listed: BTreeMap::new(),
            others: true,
        }
    }

    /// These planes, and all other protocols as a whole or not at all.
    pub fn of(listed: impl IntoIterator<Item = (u8, Plane)>, others: bool) -> Self {
        let and: Op = |a, b| a && b;
        let default = |protocol| match others {
            true => Plane::universe(protocol),
            false => Plane::default(),
        };
        let possible = listed
            .into_iter()
            .map(|(protocol, plane)| (protocol, plane.combine(&Plane::universe(protocol), and)));
        Self {
            listed: possible
                .filter(|(protocol, plane)| *plane != default(*protocol))
                .collect(),
            others,
        }
    }

    /// Ports of one protocol, from any source port.
    pub fn of_ports(protocol: u8, ports: impl IntoIterator<Item = Interval>) -> Self {
        let plane = Plane::of([(ALL_PORTS, Ports::of(ports))]);
        Self::of([(protocol, plane)], false)
    }

    /// Everything of one protocol.
    pub fn of_protocol(protocol: u8) -> Self {
        Self::of([(protocol, Plane::universe(protocol))], false)
    }

    /// Flows of one protocol.
    pub fn plane(&self, protocol: u8) -> Plane {
        match self.listed.get(&protocol) {
            Some(plane) => plane.clone(),
            None if self.others => Plane::universe(protocol),
            None => Plane::default(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::nothing()
    }

    /// The same as a set of packets of one family, none of which carries the other family's ICMP: that is said to be in
    /// when the protocols that are not listed are, so that it makes no difference between two sets.
    #[must_use]
    pub fn of_family(mut self, version: IpVersion) -> Self {
        self.listed.remove(&foreign_icmp(version));
        self
    }

    /// Families whose packets alone carry a part of it, where it names that part: IPv4 for ICMP, IPv6 for ICMPv6.
    pub(crate) fn needs(&self) -> impl Iterator<Item = (u8, IpVersion)> + '_ {
        let only = [(ICMP, IpVersion::V4), (ICMPV6, IpVersion::V6)];
        only.into_iter()
            .filter(|(protocol, _)| !self.others && self.listed.contains_key(protocol))
    }

    /// Whether `point` is in.
    pub fn contains(&self, point: Point) -> bool {
        match self.listed.get(&point.protocol) {
            Some(plane) => plane
                .at(point.source_port)
                .is_some_and(|ports| ports.contains(point.port)),
            None => self.others,
        }
    }

    /// What is in both.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && b)
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a || b)
    }

    /// What is in this one alone.
    #[must_use]
    pub fn subtract(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && !b)
    }

    fn combine(&self, other: &Self, op: Op) -> Self {
        let protocols = self.listed.keys().chain(other.listed.keys());
        let listed = protocols.map(|protocol| {
            let plane = self.plane(*protocol).combine(&other.plane(*protocol), op);
            (*protocol, plane)
        });
        Self::of(listed.collect::<BTreeMap<_, _>>(), op(self.others, other.others))
    }

    /// A flow that is in and that packets of this family can carry, the one that says most to a person; the same each time.
    pub fn example(&self, version: IpVersion) -> Option<Point> {
        let known = [TCP, UDP, SCTP, ICMP, ICMPV6];
        let rest = self.listed.keys().copied().filter(|p| !known.contains(p));
        let unlisted = EXPERIMENTAL.into_iter().chain(0..=u8::MAX);
        let unlisted = unlisted.filter(|p| self.others && !self.listed.contains_key(p));
        let protocols = known.into_iter().chain(rest).chain(unlisted);
        let mut protocols = protocols.filter(|protocol| *protocol != foreign_icmp(version));
        protocols.find_map(|protocol| {
            let plane = self.plane(protocol);
            let reaches = |(_, last): &Interval| *last >= EPHEMERAL.0;
            let pieces = plane.pieces();
            let usual = pieces.iter().find(|(source, _)| reaches(source));
            let (source, ports) = usual.or(pieces.first())?;
            let source_port = match PORT_PROTOCOLS.contains(&protocol) && reaches(source) {
                true => source.0.max(EPHEMERAL.0),
                false => source.0,
            };
            // Port 0 is a port, but no person's first thought.
            let port = match *ports.0.first()? {
                (0, last) if last > 0 && PORT_PROTOCOLS.contains(&protocol) => {
                    if last >= 80 {
                        80
                    } else {
                        last
                    }
                }
                (first, _) => first,
            };
            Some(Point {
                protocol,
                source_port,
                port,
            })
        })
    }

    /// The flows, protocol by protocol.
    pub fn services(&self) -> Vec<ServiceText> {
        let plain = |protocol: &str| ServiceText {
            protocol: protocol.to_owned(),
            except: Vec::new(),
            ports: Vec::new(),
            source_ports: Vec::new(),
        };
        if *self == Self::everything() {
            return vec![plain("any")];
        }
        let listed = self.listed.iter().flat_map(|(protocol, plane)| {
            let all = Plane::universe(*protocol);
            plane.by_ports().into_iter().map(move |(sources, ports)| {
                let whole = all.pieces().first();
                let every_port = whole.is_some_and(|(_, all)| all == ports);
                let every_source = whole.is_some_and(|(all, _)| sources == [*all]);
                ServiceText {
                    protocol: protocol_name(*protocol),
                    except: Vec::new(),
                    ports: match every_port {
                        true => Vec::new(),
                        false => ports.0.iter().map(|p| ports_text(*protocol, *p)).collect(),
                    },
                    source_ports: match every_source {
                        true => Vec::new(),
                        false => sources.into_iter().map(interval_text).collect(),
                    },
                }
            })
        });
        let closed = self.listed.iter().filter(|(_, plane)| plane.is_empty());
        let other = self.others.then(|| ServiceText {
            except: closed.map(|(protocol, _)| protocol_name(*protocol)).collect(),
            ..plain("other")
        });
        listed.chain(other).collect()
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        if *self == Self::everything() {
            return f.write_str("any");
        }
        if self.others {
            let except = Self::everything().subtract(self);
            return write!(f, "any except {except}");
        }
        let services: Vec<String> = self.services().iter().map(ToString::to_string).collect();
        f.write_str(&services.join("; "))
    }
}

impl fmt::Display for ServiceText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.protocol)?;
        if !self.except.is_empty() {
            write!(f, " except {}", self.except.join(","))?;
        }
        if !self.ports.is_empty() {
            write!(f, " {}", self.ports.join(","))?;
        }
        if !self.source_ports.is_empty() {
            write!(f, " from source port {}", self.source_ports.join(","))?;
        }
        Ok(())
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&protocol_name(self.protocol))?;
        let has_port = PORT_PROTOCOLS.contains(&self.protocol) || ICMP_PROTOCOLS.contains(&self.protocol);
        if has_port {
            write!(f, " {}", ports_text(self.protocol, (self.port, self.port)))?;
        }
        Ok(())
    }
}

/// The ICMP of the other family: the kernel drops such packets unasked.
fn foreign_icmp(version: IpVersion) -> u8 {
    match version {
        IpVersion::V4 => ICMPV6,
        IpVersion::V6 => ICMP,
    }
}

/// Whether packets of a family can carry a protocol.
pub(crate) fn carries(version: IpVersion, protocol: u8) -> bool {
    protocol != foreign_icmp(version)
}

/// Name of a protocol, or its number.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        ICMP => "ICMP".to_owned(),
        TCP => "TCP".to_owned(),
        UDP => "UDP".to_owned(),
        ICMPV6 => "ICMPv6".to_owned(),
        SCTP => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    }
}

/// Splits all ports where one of `intervals` begins or ends.
pub(crate) fn elementary<'a>(intervals: impl Iterator<Item = &'a Interval>) -> std::vec::IntoIter<Interval> {
    let mut starts: Vec<u16> = vec![0];
    for (first, last) in intervals {
        starts.push(*first);
        starts.extend(last.checked_add(1));
    }
    starts.sort_unstable();
    starts.dedup();
    let ends: Vec<u16> = starts
        .iter()
        .skip(1)
        .map(|next| next - 1)
        .chain([u16::MAX])
        .collect();
    let pieces: Vec<Interval> = starts.into_iter().zip(ends).collect();
    pieces.into_iter()
}

fn interval_text((first, last): Interval) -> String {
    match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    }
}

fn ports_text(protocol: u8, interval: Interval) -> String {
    if !ICMP_PROTOCOLS.contains(&protocol) {
        return interval_text(interval);
    }
    let ([first, low], [last, high]) = (interval.0.to_be_bytes(), interval.1.to_be_bytes());
    match (low, high) {
        (0, u8::MAX) if first == last => format!("type {first}"),
        (0, u8::MAX) => format!("types {first}-{last}"),
        _ if interval.0 == interval.1 => format!("type {first} code {low}"),
        _ => format!("type {first} code {low} to type {last} code {high}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> impl Strategy<Value = Space> {
        let interval = (0..12u16, 0..12u16).prop_map(|(a, b)| (a.min(b), a.max(b)));
        let ports = proptest::collection::vec(interval.clone(), 0..3).prop_map(Ports::of);
        let plane = proptest::collection::vec((interval, ports), 0..3).prop_map(Plane::of);
        let protocol = proptest::sample::select(vec![1u8, 6, 17, 47, 58]);
        (
            proptest::collection::btree_map(protocol, plane, 0..4),
            any::<bool>(),
        )
            .prop_map(|(listed, others)| Space::of(listed, others))
    }

    fn points() -> Vec<Point> {
        let mut points = Vec::new();
        for protocol in [6u8, 17, 132] {
            for source_port in 0..14 {
                points.extend((0..14).map(|port| Point {
                    protocol,
                    source_port,
                    port,
                }));
            }
        }
        points.extend((0..14).map(|port| Point {
            protocol: 1,
            source_port: 0,
            port,
        }));
        points.extend([47, 253].map(|protocol| Point {
            protocol,
            source_port: 0,
            port: 0,
        }));
        points
    }

    proptest! {
        #[test]
        fn operations_are_those_of_sets(a in space(), b in space()) {
            let (both, either, only) = (a.intersect(&b), a.union(&b), a.subtract(&b));
            for point in points() {
                let (in_a, in_b) = (a.contains(point), b.contains(point));
                prop_assert_eq!(both.contains(point), in_a && in_b, "{:?}", point);
                prop_assert_eq!(either.contains(point), in_a || in_b, "{:?}", point);
                prop_assert_eq!(only.contains(point), in_a && !in_b, "{:?}", point);
            }
            // One form for each set: what is put together again is what it was.
            prop_assert_eq!(both.union(&only), a);
        }

        #[test]
        fn an_example_is_in_the_set_and_of_the_family(a in space()) {
            for version in [IpVersion::V4, IpVersion::V6] {
                let of_family = a.clone().of_family(version);
                match a.example(version) {
                    Some(point) => {
                        prop_assert!(a.contains(point) && carries(version, point.protocol), "{:?}", point);
                        prop_assert!(of_family.contains(point));
                    }
                    None => prop_assert!(of_family.is_empty()),
                }
                prop_assert_eq!(of_family.clone().of_family(version), of_family);
            }
        }
    }

    #[test]
    fn sets_read_as_people_write_them() {
        let web = Space::of_ports(TCP, [(443, 443), (80, 80), (8000, 8100)]);
        assert_eq!(web.to_string(), "TCP 80,443,8000-8100");
        assert_eq!(
            Space::everything().subtract(&web).to_string(),
            "any except TCP 80,443,8000-8100"
        );
        let ping = Space::of_ports(ICMP, [(0x0800, 0x08ff)]);
        assert_eq!(web.union(&ping).to_string(), "ICMP type 8; TCP 80,443,8000-8100");
        assert_eq!(Space::of_protocol(UDP).to_string(), "UDP");
        assert_eq!(Space::of_protocol(47).to_string(), "protocol 47");
        // Source ports that have the same ports stand together.
        let all = [ALL_PORTS].map(|ports| (ALL_PORTS, Ports::of([ports])));
        let holes = [53, 55].map(|port| ((port, port), Ports::of([(80, 80)])));
        let holed = Space::of_ports(TCP, [(80, 80)]).subtract(&Space::of([(TCP, Plane::of(holes))], false));
        assert_eq!(holed.to_string(), "TCP 80 from source port 0-52,54,56-65535");
        assert_eq!(holed.services().len(), 1);
        let open = Space::of([(TCP, Plane::of(all))], false).subtract(&holed);
        assert_eq!(
            open.to_string(),
            "TCP 0-79,81-65535 from source port 0-52,54,56-65535; TCP from source port 53,55"
        );
    }
}
