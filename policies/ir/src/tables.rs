//! Compiled policy: flat tables, ready for the kernel, and the numbers they are written in.
//!
//! The compiler produces these, `ebpf/loader` writes them, [`lookup`] reads them the way the kernel does.
//! The kernel's bytes are `ebpf/abi`; this module is their meaning.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::verdicts::Verdicts;

/// A class of addresses that no rule of this node's endpoints can tell apart. Numbers start at 1; 0 is
/// "unknown", which nothing allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityId(pub u32);

/// Index into [`NodeTables::rules`]. The first [`BUILTIN_RULES`] numbers have a fixed meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);

/// Rule ids below this number are [`BuiltinRule`]s.
pub const BUILTIN_RULES: u32 = 64;

/// An endpoint: one pod's interface on this node, or one of the parts that a host endpoint is judged by. The number is
/// the agent's, never reused while a table, a flow or an event may still name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u32);

/// Everything the kernel of one node needs to judge its endpoints. Replaced as a whole; each endpoint
/// moves from the old to the new with one write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeTables {
    /// Longest prefix wins. Both families; an address without a match is unknown and denied.
    pub identities: BTreeMap<IpNet, IdentityId>,
    /// Verdicts of each endpoint. Shared: who kept earlier tables sees which are the same without reading them.
    pub endpoints: BTreeMap<EndpointId, Arc<EndpointTables>>,
    /// What each rule id means, for people. `rules[i]` has the id `BUILTIN_RULES + i`.
    pub rules: Vec<RuleName>,
}

/// Verdicts of one endpoint. Longest prefix wins among the entries of one identity, direction and source class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointTables {
    /// Source ports that rules of this endpoint tell apart; longest prefix wins. Mostly empty.
    pub sources: BTreeMap<SourceBlock, SourceClass>,
    /// Classes of the addresses that may be the endpoint's own end, where rules tell those apart: at a host endpoint the end
    /// is whoever has the address. Empty for pods.
    pub insides: BTreeMap<IdentityId, Insides>,
    /// The entries. A key without a match is denied.
    pub verdicts: Verdicts,
}

/// Source ports of one protocol that share their first `prefix_bits` (0 to 16) bits with `port`, the rest of
/// which is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceBlock {
    /// IP protocol number.
    pub protocol: u8,
    /// First port of the block.
    pub port: u16,
    /// Length of the shared prefix.
    pub prefix_bits: u8,
}

/// A class of source ports that no rule of an endpoint tells apart. The default is the class of every port, and
/// every protocol, that no [`SourceBlock`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SourceClass(pub u16);

/// Most source classes of an endpoint, the default included: they share a byte of the kernel's key with the
/// direction. Tables in which an endpoint has more, and then no verdicts, fit into no kernel.
pub const MAX_SOURCE_CLASSES: usize = 128;

/// A class of addresses at an endpoint's own end that no rule of one direction tells apart. The default is the class of
/// every address where no rule asks. Where one does, it is that of addresses which nobody can be sure of, and has
/// entries for failsafe ports alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct InsideClass(pub u16);

/// Most inside classes of an endpoint and direction, the default included. Addresses that would need one more are of the
/// default class.
pub const MAX_INSIDE_CLASSES: usize = 1024;

/// The classes of an address at an endpoint's own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Insides {
    /// Of flows to it.
    pub ingress: InsideClass,
    /// Of flows from it.
    pub egress: InsideClass,
}

/// Which packets an entry answers for: a prefix of (identity, direction, classes of the own end, protocol, port).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerdictKey {
    /// The other end.
    pub peer: IdentityId,
    /// Seen from the endpoint.
    pub direction: Direction,
    /// Class of the address at the endpoint's own end.
    pub inside: InsideClass,
    /// Class of the source port.
    pub source: SourceClass,
    /// Protocols and ports.
    pub service: Service,
}

/// Protocols and ports of an entry, from the least to the most specific. A more specific entry wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Every protocol.
    Any,
    /// Every port of one protocol (IP protocol number).
    Protocol(u8),
    /// Ports of one protocol that share their first `prefix_bits` (1 to 16) bits with `port`, the rest of
    /// which is zero. For ICMP the port is `type << 8 | code`.
    Ports {
        /// IP protocol number.
        protocol: u8,
        /// First port of the block.
        port: u16,
        /// Length of the shared prefix.
        prefix_bits: u8,
    },
}

/// Direction of a flow's first packet, seen from the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

/// Answer of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerdictEntry {
    /// The verdict.
    pub verdict: Verdict,
    /// What decided it.
    pub rule: RuleId,
}

/// What happens to a flow.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Passed on.
    Allow,
    /// Dropped.
    Deny,
}

/// Decisions that no policy rule made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum BuiltinRule {
    /// No entry matched: unknown peer, or tables incomplete.
    NoMatch = 0,
    /// No policy decided, mostly because none selects the endpoint in this direction: the namespace profile
    /// allows.
    NoPolicy = 1,
    /// The endpoint itself: no policy keeps an endpoint from reaching itself.
    SelfTraffic = 2,
    /// From the endpoint's own node: no policy keeps it, its probes and the like from its endpoints.
    FromHost = 3,
    /// A port of a node that no policy for the node can close.
    Failsafe = 4,
    /// To the endpoint's own node, which takes nothing from its endpoints.
    ToHost = 5,
}

/// What a rule id means, for people.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleName {
    /// Tier, such as `default`.
    pub tier: String,
    /// `Kind namespace/name` of the policy; empty for the end of a tier in which several select the endpoint.
    pub policy: String,
    /// Index of the rule within its direction; absent for the end-of-tier default.
    pub rule: Option<u32>,
}

/// What a [`RuleId`] stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DecidedBy {
    /// No policy rule.
    Builtin(BuiltinRule),
    /// A rule, or the end of a tier.
    Rule(RuleName),
}

/// A packet as the tables see it: address classes and ports are found by lookup, nothing else counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Direction, seen from the endpoint.
    pub direction: Direction,
    /// Address of the other end.
    pub peer: IpAddr,
    /// Address of the endpoint's own end. Counts at host endpoints, where that may be any; nobody needs to tell it of
    /// pods.
    pub inside: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port; for ICMP `type << 8 | code`; 0 where the protocol has neither.
    pub port: u16,
}

impl Verdict {
    /// The other one.
    pub const fn opposite(self) -> Self {
        match self {
            Self::Allow => Self::Deny,
            Self::Deny => Self::Allow,
        }
    }
}

impl Direction {
    /// The other one.
    pub const fn opposite(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }
}

impl NodeTables {
    /// What `id` stands for; nothing if these tables do not use it.
    pub fn decided_by(&self, id: RuleId) -> Option<DecidedBy> {
        match id.0.checked_sub(BUILTIN_RULES) {
            None => BuiltinRule::from_id(id).map(DecidedBy::Builtin),
            Some(index) => self
                .rules
                .get(usize::try_from(index).ok()?)
                .cloned()
                .map(DecidedBy::Rule),
        }
    }
}

impl Insides {
    /// The class for flows of one direction.
    pub const fn of(self, direction: Direction) -> InsideClass {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// Whether no rule asks who is there, or nobody knows.
    pub const fn is_default(self) -> bool {
        self.ingress.0 == 0 && self.egress.0 == 0
    }
}

impl EndpointTables {
    /// Class of an address at the endpoint's own end.
    pub fn inside_class(&self, address: Option<IdentityId>, direction: Direction) -> InsideClass {
        let insides = address.and_then(|address| self.insides.get(&address));
        insides.copied().unwrap_or_default().of(direction)
    }

    /// Class of a source port.
    pub fn source_class(&self, protocol: u8, source_port: u16) -> SourceClass {
        let class = (0..=16u8).rev().find_map(|prefix_bits| {
            let port = prefix(source_port, prefix_bits);
            self.sources.get(&SourceBlock {
                protocol,
                port,
                prefix_bits,
            })
        });
        class.copied().unwrap_or_default()
    }

    /// How many classes of source ports there are, the default included. The kernel holds [`MAX_SOURCE_CLASSES`].
    pub fn source_classes(&self) -> usize {
        let last = self.sources.values().map(|class| usize::from(class.0)).max();
        last.map_or(0, |last| last + 1)
    }
}

impl BuiltinRule {
    /// All built-in rules.
    pub const ALL: [Self; 6] = [
        Self::NoMatch,
        Self::NoPolicy,
        Self::SelfTraffic,
        Self::FromHost,
        Self::Failsafe,
        Self::ToHost,
    ];

    /// The rule's number.
    pub const fn id(self) -> RuleId {
        RuleId(self as u32)
    }

    /// The rule with this number.
    pub fn from_id(id: RuleId) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.id() == id)
    }

    /// Stable word for flow events and output.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NoMatch => "no-match",
            Self::NoPolicy => "no-policy",
            Self::SelfTraffic => "self-traffic",
            Self::FromHost => "from-host",
            Self::Failsafe => "failsafe",
            Self::ToHost => "to-host",
        }
    }
}

impl RuleName {
    /// Stands in for the tier of rules that belong to a profile.
    pub const PROFILE_TIER: &'static str = "profile";
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(rule) => write!(f, "{} rule {rule}", self.policy),
            None if self.policy.is_empty() => {
                write!(
                    f,
                    "default-deny (isolated by several policies of tier {})",
                    self.tier
                )
            }
            None => write!(f, "default-deny (isolated by {})", self.policy),
        }
    }
}

impl fmt::Display for DecidedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Builtin(rule) => f.write_str(rule.word()),
            Self::Rule(name) => name.fmt(f),
        }
    }
}

/// Judges `packet` from the tables alone, as the kernel does: address to identity, then identity, protocol
/// and port to verdict. Whatever is not found is denied by [`BuiltinRule::NoMatch`].
pub fn lookup(tables: &NodeTables, endpoint: EndpointId, packet: &Packet) -> VerdictEntry {
    let unknown = VerdictEntry {
        verdict: Verdict::Deny,
        rule: BuiltinRule::NoMatch.id(),
    };
    let Some(peer) = identity_of(&tables.identities, packet.peer) else {
        return unknown;
    };
    let Some(endpoint) = tables.endpoints.get(&endpoint) else {
        return unknown;
    };
    let inside = packet
        .inside
        .and_then(|address| identity_of(&tables.identities, address));
    let inside = endpoint.inside_class(inside, packet.direction);
    let source = endpoint.source_class(packet.protocol, packet.source_port);
    let entry = |service| {
        endpoint.verdicts.get(&VerdictKey {
            peer,
            direction: packet.direction,
            inside,
            source,
            service,
        })
    };
    (1..=16u8)
        .rev()
        .find_map(|prefix_bits| {
            let port = prefix(packet.port, prefix_bits);
            entry(Service::Ports {
                protocol: packet.protocol,
                port,
                prefix_bits,
            })
        })
        .or_else(|| entry(Service::Protocol(packet.protocol)))
        .or_else(|| entry(Service::Any))
        .copied()
        .unwrap_or(unknown)
}

/// The first `bits` (0 to 16) bits of `port`, the rest zero.
fn prefix(port: u16, bits: u8) -> u16 {
    let mask = u16::MAX.checked_shl(16 - u32::from(bits)).unwrap_or(0);
    port & mask
}

fn identity_of(identities: &BTreeMap<IpNet, IdentityId>, address: IpAddr) -> Option<IdentityId> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    (0..=bits).rev().find_map(|length| {
        let net = IpNet::new(address, length).ok()?.trunc();
        identities.get(&net).copied()
    })
}
