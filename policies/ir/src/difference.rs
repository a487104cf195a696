//! Whether two sets of tables mean the same, though their numbers differ: for every endpoint and every packet the same
//! verdict, by the rule of the same name.
//!
//! Neither side changes its mind within a range of addresses that no prefix of either cuts, nor within a range of
//! source ports or of destination ports that no block of either cuts. So one packet of each such cell stands for all of
//! them, and comparing these decides it exactly. Where the entries of both sides are the same, cells need not be made.
//! Of an endpoint that tells apart addresses at its own end, one address of each pair of classes there stands for those.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::{
    tables::{
        BUILTIN_RULES, DecidedBy, Direction, EndpointId, EndpointTables, IdentityId, Insides, NodeTables,
        Packet, RuleId, Service, SourceBlock, SourceClass, Verdict, VerdictEntry, lookup,
    },
    verdicts::ClassKey,
};

/// A packet that two sets of tables do not agree about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The packet; many others may fare like it.
    pub packet: Packet,
    /// What the left tables say, and by which rule if its number has a name.
    pub left: (Verdict, Option<DecidedBy>),
    /// What the right tables say.
    pub right: (Verdict, Option<DecidedBy>),
}

/// At most `limit` packets about which the tables do not agree, of as many endpoints as possible; none only if there is
/// no such packet at any endpoint of either.
pub fn differences(left: &NodeTables, right: &NodeTables, limit: usize) -> Vec<Difference> {
    let pairs = pairs(left, right);
    let endpoints: BTreeSet<EndpointId> = left
        .endpoints
        .keys()
        .chain(right.endpoints.keys())
        .copied()
        .collect();
    let mut found: Vec<Vec<Difference>> = Vec::new();
    for endpoint in endpoints {
        let (left, right) = (Side::new(left, endpoint), Side::new(right, endpoint));
        let comparison = Comparison {
            insides: insides(&left, &right, &pairs),
            left,
            right,
            endpoint,
        };
        let mut of_endpoint = Vec::new();
        for ((left, right), witness) in &pairs {
            for direction in [Direction::Ingress, Direction::Egress] {
                comparison.compare((*left, *right), *witness, direction, limit, &mut of_endpoint);
            }
        }
        found.push(of_endpoint);
    }
    // One of each endpoint first, then the second of each, and so on.
    let longest = found.iter().map(Vec::len).max().unwrap_or(0);
    let by_turns = (0..longest).flat_map(|turn| found.iter().filter_map(move |of| of.get(turn)));
    by_turns.take(limit).cloned().collect()
}

/// Classes on both sides, and one address that has them.
type Pairs = BTreeMap<(Option<IdentityId>, Option<IdentityId>), IpAddr>;

/// Which classes an address has on both sides, with one such address.
fn pairs(left: &NodeTables, right: &NodeTables) -> Pairs {
    let mut starts = BTreeSet::from([
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ]);
    for net in left.identities.keys().chain(right.identities.keys()) {
        starts.insert(net.network());
        starts.extend(after(net.broadcast()));
    }
    let (left, right) = (Classes::new(left), Classes::new(right));
    let mut pairs = BTreeMap::new();
    for start in starts {
        pairs.entry((left.of(start), right.of(start))).or_insert(start);
    }
    pairs
}

/// Which classes at an endpoint's own end an address has on both sides, with one such address of each family; nothing if
/// neither side tells any apart.
fn insides(left: &Side<'_>, right: &Side<'_>, pairs: &Pairs) -> BTreeMap<(bool, [Insides; 2]), IpAddr> {
    let mut found = BTreeMap::new();
    if left.has_insides() || right.has_insides() {
        for ((of_left, of_right), witness) in pairs {
            let classes = [left.insides(*of_left), right.insides(*of_right)];
            found.entry((witness.is_ipv4(), classes)).or_insert(*witness);
        }
    }
    found
}

/// The next address of the same family, if there is one.
fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address)
            .checked_add(1)
            .map(|next| Ipv4Addr::from(next).into()),
        IpAddr::V6(address) => u128::from(address)
            .checked_add(1)
            .map(|next| Ipv6Addr::from(next).into()),
    }
}

/// Classes of addresses, with the lengths of prefixes that there are, longest first.
struct Classes<'a> {
    identities: &'a BTreeMap<IpNet, IdentityId>,
    lengths: [BTreeSet<u8>; 2],
}

impl<'a> Classes<'a> {
    fn new(tables: &'a NodeTables) -> Self {
        let lengths = |v4: bool| {
            let of_family = tables.identities.keys().filter(|net| net.addr().is_ipv4() == v4);
            of_family.map(IpNet::prefix_len).collect()
        };
        Self {
            identities: &tables.identities,
            lengths: [lengths(true), lengths(false)],
        }
    }

    fn of(&self, address: IpAddr) -> Option<IdentityId> {
        let [v4, v6] = &self.lengths;
        let lengths = if address.is_ipv4() { v4 } else { v6 };
        lengths.iter().rev().find_map(|length| {
            let net = IpNet::new(address, *length).ok()?.trunc();
            self.identities.get(&net).copied()
        })
    }
}

/// One endpoint in one set of tables.
struct Side<'a> {
    tables: &'a NodeTables,
    endpoint: Option<&'a EndpointTables>,
}

impl<'a> Side<'a> {
    fn new(tables: &'a NodeTables, endpoint: EndpointId) -> Self {
        Self {
            tables,
            endpoint: tables.endpoints.get(&endpoint).map(AsRef::as_ref),
        }
    }

    fn has_insides(&self) -> bool {
        self.endpoint.is_some_and(|endpoint| !endpoint.insides.is_empty())
    }

    /// Classes of an address at the endpoint's own end.
    fn insides(&self, address: Option<IdentityId>) -> Insides {
        let classes = address.and_then(|address| self.endpoint?.insides.get(&address));
        classes.copied().unwrap_or_default()
    }

    fn sources(&self) -> impl Iterator<Item = (&'a SourceBlock, &'a SourceClass)> + use<'a> {
        self.endpoint.into_iter().flat_map(|endpoint| &endpoint.sources)
    }

    /// Entries about one class of addresses.
    fn entries(
        &self,
        peer: Option<IdentityId>,
        direction: Direction,
    ) -> impl Iterator<Item = (&'a ClassKey, &'a VerdictEntry)> + use<'a> {
        let class = peer.and_then(|peer| self.endpoint?.verdicts.class(peer));
        let entries = class.into_iter().flat_map(|entries| entries.iter());
        entries.filter(move |(key, _)| key.direction == direction)
    }
}

struct Comparison<'a> {
    left: Side<'a>,
    right: Side<'a>,
    endpoint: EndpointId,
    /// As [`insides`] finds them.
    insides: BTreeMap<(bool, [Insides; 2]), IpAddr>,
}

impl Comparison<'_> {
    fn compare(
        &self,
        (left, right): (Option<IdentityId>, Option<IdentityId>),
        peer: IpAddr,
        direction: Direction,
        limit: usize,
        found: &mut Vec<Difference>,
    ) {
        let entries = || {
            (
                self.left.entries(left, direction),
                self.right.entries(right, direction),
            )
        };
        let (of_left, of_right) = entries();
        let same_presence = self.left.endpoint.is_some() == self.right.endpoint.is_some();
        let same_own = self.same_sources() && self.same_insides();
        if same_presence && same_own && self.same_entries(of_left, of_right) {
            return;
        }
        let (of_left, of_right) = entries();
        let services: Vec<Service> = of_left.chain(of_right).map(|(key, _)| key.service).collect();
        let blocks: Vec<&SourceBlock> = self
            .left
            .sources()
            .chain(self.right.sources())
            .map(|(block, _)| block)
            .collect();
        for protocol in protocols(&services, &blocks) {
            let of_protocol = blocks.iter().filter(|block| block.protocol == protocol);
            let source_ports = starts(of_protocol.map(|block| (block.port, block.prefix_bits)));
            let ports = starts(services.iter().filter_map(|service| match service {
                Service::Ports {
                    protocol: named,
                    port,
                    prefix_bits,
                } if *named == protocol => Some((*port, *prefix_bits)),
                _ => None,
            }));
            for source_port in &source_ports {
                for port in &ports {
                    for inside in self.insides_of(peer.is_ipv4()) {
                        if found.len() >= limit {
                            return;
                        }
                        let packet = Packet {
                            direction,
                            peer,
                            inside,
                            protocol,
                            source_port: *source_port,
                            port: *port,
                        };
                        found.extend(self.judge(packet));
                    }
                }
            }
        }
    }

    fn judge(&self, packet: Packet) -> Option<Difference> {
        let (left, right) = (self.left.tables, self.right.tables);
        let of_left = lookup(left, self.endpoint, &packet);
        let of_right = lookup(right, self.endpoint, &packet);
        if self.same(&of_left, &of_right) {
            return None;
        }
        Some(Difference {
            endpoint: self.endpoint,
            packet,
            left: (of_left.verdict, left.decided_by(of_left.rule)),
            right: (of_right.verdict, right.decided_by(of_right.rule)),
        })
    }

    /// Addresses of one family that stand for all that may be at the endpoint's own end.
    fn insides_of(&self, is_ipv4: bool) -> impl Iterator<Item = Option<IpAddr>> {
        let of_family = self.insides.iter().filter(move |((v4, _), _)| *v4 == is_ipv4);
        let none = self.insides.is_empty().then_some(None);
        of_family.map(|(_, witness)| Some(*witness)).chain(none)
    }

    /// Whether both number the addresses at the endpoint's own end alike.
    fn same_insides(&self) -> bool {
        self.insides.keys().all(|(_, [left, right])| left == right)
    }

    fn same_sources(&self) -> bool {
        self.left.sources().eq(self.right.sources())
    }

    fn same_entries<'b>(
        &self,
        mut left: impl Iterator<Item = (&'b ClassKey, &'b VerdictEntry)>,
        mut right: impl Iterator<Item = (&'b ClassKey, &'b VerdictEntry)>,
    ) -> bool {
        loop {
            match (left.next(), right.next()) {
                (None, None) => return true,
                (Some((key, entry)), Some((other_key, other)))
                    if key.inside == other_key.inside
                        && key.source == other_key.source
                        && key.service == other_key.service
                        && self.same(entry, other) => {}
                _ => return false,
            }
        }
    }

    fn same(&self, left: &VerdictEntry, right: &VerdictEntry) -> bool {
        left.verdict == right.verdict && self.same_rule(left.rule, right.rule)
    }

    /// Numbers of rules that are not in the tables are like nothing.
    fn same_rule(&self, left: RuleId, right: RuleId) -> bool {
        if left.0 < BUILTIN_RULES || right.0 < BUILTIN_RULES {
            return left == right;
        }
        let name = |tables: &NodeTables, rule: RuleId| match tables.decided_by(rule) {
            Some(DecidedBy::Rule(name)) => Some(name),
            _ => None,
        };
        let name = (name(self.left.tables, left), name(self.right.tables, right));
        matches!(name, (Some(left), Some(right)) if left == right)
    }
}

/// Protocols that anything is about, and one that nothing is about.
fn protocols(services: &[Service], blocks: &[&SourceBlock]) -> BTreeSet<u8> {
    let of_services = services.iter().filter_map(|service| match service {
        Service::Any => None,
        Service::Protocol(protocol) | Service::Ports { protocol, .. } => Some(*protocol),
    });
    let mut named: BTreeSet<u8> = of_services
        .chain(blocks.iter().map(|block| block.protocol))
        .collect();
    let other = (0..=u8::MAX).rev().find(|protocol| !named.contains(protocol));
    named.extend(other);
    named
}

/// First ports of the ranges that no block cuts.
fn starts(blocks: impl Iterator<Item = (u16, u8)>) -> BTreeSet<u16> {
    let mut starts = BTreeSet::from([0]);
    for (port, bits) in blocks {
        let size = 1u32.checked_shl(16u32.saturating_sub(bits.into())).unwrap_or(0);
        starts.insert(port);
        starts.extend(u16::try_from(u32::from(port) + size).ok());
    }
    starts
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.packet.direction {
            Direction::Ingress => "ingress from",
            Direction::Egress => "egress to",
        };
        let Packet {
            peer,
            inside,
            protocol,
            source_port,
            port,
            ..
        } = self.packet;
        let own = match (inside, self.packet.direction) {
            (Some(inside), Direction::Ingress) => format!(" to {inside}"),
            (Some(inside), Direction::Egress) => format!(" from {inside}"),
            (None, _) => String::new(),
        };
        write!(
            f,
            "{direction} {peer}{own}, protocol {protocol}, source port {source_port}, port {port}: "
        )?;
        let side = |f: &mut fmt::Formatter<'_>, (verdict, rule): &(Verdict, Option<DecidedBy>)| {
            let verdict = match verdict {
                Verdict::Allow => "allowed",
                Verdict::Deny => "denied",
            };
            match rule {
                Some(rule) => write!(f, "{verdict} by {rule}"),
                None => write!(f, "{verdict} by a rule without a name"),
            }
        };
        side(f, &self.left)?;
        write!(f, ", should be ")?;
        side(f, &self.right)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tables::{InsideClass, RuleName, VerdictKey};

    const ENDPOINT: EndpointId = EndpointId(7);

    fn rule(policy: &str) -> RuleName {
        RuleName {
            tier: "default".to_owned(),
            policy: policy.to_owned(),
            rule: Some(0),
        }
    }

    fn ports(port: u16, prefix_bits: u8) -> Service {
        Service::Ports {
            protocol: 6,
            port,
            prefix_bits,
        }
    }

    /// What is allowed, by rule 64, to each prefix.
    fn tables(allowed: &[(&str, u32, &[Service])]) -> NodeTables {
        let mut tables = NodeTables {
            rules: vec![rule("a"), rule("b")],
            ..NodeTables::default()
        };
        let mut endpoint = EndpointTables::default();
        for (net, id, services) in allowed {
            tables.identities.insert(net.parse().unwrap(), IdentityId(*id));
            for service in *services {
                let key = VerdictKey {
                    peer: IdentityId(*id),
                    direction: Direction::Egress,
                    inside: InsideClass(0),
                    source: SourceClass(0),
                    service: *service,
                };
                let entry = VerdictEntry {
                    verdict: Verdict::Allow,
                    rule: RuleId(64),
                };
                endpoint.verdicts.insert(key, entry);
            }
        }
        tables.endpoints.insert(ENDPOINT, Arc::new(endpoint));
        tables
    }

    #[test]
    fn other_numbers_and_another_cut_mean_the_same() {
        let left = tables(&[
            ("10.0.0.0/8", 1, &[ports(0, 1), ports(0x8000, 1)]),
            ("::/0", 2, &[]),
        ]);
        let mut right = tables(&[
            ("10.0.0.0/9", 5, &[Service::Protocol(6)]),
            ("10.128.0.0/9", 6, &[Service::Protocol(6)]),
        ]);
        right.rules.reverse();
        for endpoint in right.endpoints.values_mut() {
            let verdicts = &mut Arc::make_mut(endpoint).verdicts;
            let renamed = verdicts.iter().map(|(key, entry)| {
                let rule = RuleId(65);
                (key, VerdictEntry { rule, ..entry })
            });
            *verdicts = renamed.collect();
        }
        assert_eq!(differences(&left, &right, 9), []);
        assert_eq!(differences(&right, &left, 9), []);
    }

    #[test]
    fn one_address_one_port_or_one_name_is_found() {
        let left = tables(&[("10.0.0.0/8", 1, &[Service::Protocol(6)])]);
        let one = |right: &NodeTables| {
            let found = differences(&left, right, 1);
            found.first().expect("a difference").clone()
        };
        let address = one(&tables(&[
            ("10.0.0.0/8", 1, &[Service::Protocol(6)]),
            ("10.9.9.9/32", 2, &[]),
        ]));
        assert_eq!(address.packet.peer, "10.9.9.9".parse::<IpAddr>().unwrap());
        assert_eq!((address.left.0, address.right.0), (Verdict::Allow, Verdict::Deny));

        let mut port = tables(&[("10.0.0.0/8", 1, &[Service::Protocol(6), ports(443, 16)])]);
        let verdicts = &mut Arc::make_mut(port.endpoints.get_mut(&ENDPOINT).unwrap()).verdicts;
        let (key, entry) = verdicts.iter().last().unwrap();
        let verdict = Verdict::Deny;
        verdicts.insert(key, VerdictEntry { verdict, ..entry });
        assert_eq!(one(&port).packet.port, 443);

        let mut name = left.clone();
        name.rules.reverse();
        let found = one(&name);
        assert_eq!(found.left.0, found.right.0);
        assert_eq!(found.left.1, Some(DecidedBy::Rule(rule("a"))));
        assert_eq!(found.right.1, Some(DecidedBy::Rule(rule("b"))));
        name.rules.clear();
        assert_eq!(
            one(&name).right.1,
            None,
            "a number without a name is like nothing"
        );
        assert_eq!(
            differences(&name, &name, 1).len(),
            1,
            "not even like another without a name"
        );
    }

    #[test]
    fn addresses_at_the_own_end_count_and_their_numbers_do_not() {
        // One address of those that are judged, and what it may reach.
        let of = |inside: &str, number: u16, other: u16| {
            let mut tables = tables(&[("10.0.0.0/8", 1, &[]), ("192.0.2.0/24", 2, &[])]);
            tables.identities.insert(inside.parse().unwrap(), IdentityId(3));
            let endpoint = Arc::make_mut(tables.endpoints.get_mut(&ENDPOINT).unwrap());
            for (class, inside) in [(1, other), (2, other), (3, number)] {
                let classes = Insides {
                    ingress: InsideClass(0),
                    egress: InsideClass(inside),
                };
                endpoint.insides.insert(IdentityId(class), classes);
            }
            let key = VerdictKey {
                peer: IdentityId(2),
                direction: Direction::Egress,
                inside: InsideClass(number),
                source: SourceClass(0),
                service: Service::Any,
            };
            let entry = VerdictEntry {
                verdict: Verdict::Allow,
                rule: RuleId(64),
            };
            endpoint.verdicts.insert(key, entry);
            tables
        };
        let left = of("10.0.0.9/32", 1, 2);
        assert_eq!(differences(&left, &of("10.0.0.9/32", 7, 4), 9), []);
        let found = differences(&left, &of("10.0.0.8/32", 1, 2), 9);
        let inside = |d: &Difference| (d.packet.inside.unwrap().to_string(), d.left.0, d.right.0);
        let found: BTreeSet<_> = found.iter().map(inside).collect();
        let expected = [
            ("10.0.0.8".to_owned(), Verdict::Deny, Verdict::Allow),
            ("10.0.0.9".to_owned(), Verdict::Allow, Verdict::Deny),
        ];
        assert_eq!(found, expected.into());
        // A class that nothing is said of denies.
        let mut without = left.clone();
        let endpoint = Arc::make_mut(without.endpoints.get_mut(&ENDPOINT).unwrap());
        endpoint.insides.remove(&IdentityId(3));
        let [one] = &differences(&left, &without, 9)[..] else {
            panic!("one address")
        };
        assert_eq!((one.left.0, one.right.0), (Verdict::Allow, Verdict::Deny));
        assert!(
            one.to_string()
                .starts_with("egress to 192.0.2.0 from 10.0.0.9, protocol")
        );
    }

    #[test]
    fn source_ports_and_missing_endpoints_count() {
        let left = tables(&[("10.0.0.0/8", 1, &[Service::Protocol(6)])]);
        let mut right = left.clone();
        let block = SourceBlock {
            protocol: 6,
            port: 0x8000,
            prefix_bits: 1,
        };
        let endpoint = Arc::make_mut(right.endpoints.get_mut(&ENDPOINT).unwrap());
        endpoint.sources.insert(block, SourceClass(1));
        let found = differences(&left, &right, 9);
        assert_eq!(found.len(), 1);
        assert_eq!(found.first().unwrap().packet.source_port, 0x8000);
        // A class that says the same makes no difference.
        let endpoint = Arc::make_mut(right.endpoints.get_mut(&ENDPOINT).unwrap());
        let (key, entry) = endpoint.verdicts.iter().next().unwrap();
        let source = SourceClass(1);
        endpoint.verdicts.insert(VerdictKey { source, ..key }, entry);
        assert_eq!(differences(&left, &right, 9), []);

        right.endpoints.clear();
        assert_eq!(differences(&left, &right, 1).len(), 1);
        assert_eq!(differences(&right, &left, 1).len(), 1);
    }
}
