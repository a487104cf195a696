//! The ordered form of network policy: tiers of policies of rules, and what a rule can ask.
//!
//! Every kind of policy object becomes this. The semantics of each field are stated here and carried out in
//! [`crate::decide()`]; nothing else may interpret them.

use std::{cmp::Ordering, sync::Arc};

use api::selector::{LabelSelector, Labels};
use ipnet::IpNet;

/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// IP protocol number of SCTP.
pub const SCTP: u8 = 132;

/// Protocols whose packets carry ports. A numeric port in a rule matches no other protocol.
pub const PORT_PROTOCOLS: [u8; 3] = [TCP, UDP, SCTP];
/// Protocols whose packets carry a type and a code.
pub const ICMP_PROTOCOLS: [u8; 2] = [ICMP, ICMPV6];

/// All policy that exists, in any order. [`PolicySet::for_endpoint`] picks and orders what one endpoint sees.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PolicySet {
    /// The tiers.
    pub tiers: Vec<Tier>,
    /// Asked in this order when no tier decided. Without any, such flows are denied.
    pub profiles: Vec<Profile>,
}

/// A group of policies that is judged as one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Tier {
    /// Name; breaks ties of `order`.
    pub name: String,
    /// Place among the tiers.
    pub order: Order,
    /// What happens to a flow that a policy of this tier selected and no rule decided.
    pub default_action: DefaultAction,
    /// The policies, in any order.
    pub policies: Vec<Arc<Policy>>,
}

/// Lower comes first, none comes last.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Order(pub Option<f64>);

/// End of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DefaultAction {
    /// The flow is dropped.
    Deny,
    /// The next tier is asked.
    Pass,
}

/// One policy: whom it applies to, in which directions, and its rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// `Kind namespace/name`; breaks ties of `order`.
    pub name: String,
    /// Place within the tier.
    pub order: Order,
    /// Endpoints it applies to.
    pub applies_to: WorkloadMatch,
    /// Directions it applies to. A direction without rules still isolates.
    pub directions: Directions,
    /// Rules for flows to the endpoint, in order.
    pub ingress: Vec<Rule>,
    /// Rules for flows from the endpoint, in order.
    pub egress: Vec<Rule>,
}

/// Set of directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Directions {
    /// Flows to the endpoint.
    pub ingress: bool,
    /// Flows from the endpoint.
    pub egress: bool,
}

/// One rule. All conditions must hold; a condition that is absent or empty holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Number of the rule in the object that it came from, within its direction. Several rules share a
    /// number when one rule of the object needs more than one here.
    pub index: u32,
    /// What happens to a flow that matches.
    pub action: Action,
    /// Who the other end is.
    pub peer: PeerMatch,
    /// Which protocols and destination ports.
    pub service: ServiceMatch,
}

/// What a matching rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Ends the judgement: passed on, whatever later tiers say.
    Allow,
    /// Ends the judgement: dropped.
    Deny,
    /// Goes on with the next tier. In a profile there is none, so it drops.
    Pass,
    /// Notes the flow and goes on with the next rule.
    Log,
}

/// Conditions on the other end of a flow. The endpoint's own end needs none: rules that do not fit it are
/// left out when its policy is put together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PeerMatch {
    /// Family of the addresses.
    pub ip_version: Option<IpVersion>,
    /// Address lies in one of these. Empty: any.
    pub nets: Vec<IpNet>,
    /// Address lies in none of these. When all are of the other family the rule does not match at all, as in
    /// Calico, which renders each family on its own.
    pub not_nets: Vec<IpNet>,
    /// The peer is a known workload, and it matches.
    pub workload: Option<WorkloadMatch>,
    /// The peer is not a known workload that matches. An unknown address satisfies this.
    pub not_workload: Option<WorkloadMatch>,
}

/// Family of IP addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Selects workloads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadMatch {
    /// By namespace.
    pub namespace: NamespaceMatch,
    /// By the workload's own labels.
    pub labels: Selector,
}

/// Selects namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamespaceMatch {
    /// Every namespace, also one whose labels are not known.
    Any,
    /// The namespace with this name.
    Named(String),
    /// Namespaces by their labels. One whose labels are not known does not match.
    Selected(Selector),
}

/// Condition on a set of labels. A missing label satisfies `NotIn` and `DoesNotExist`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Selector {
    /// All requirements hold.
    Labels(LabelSelector),
    /// All hold; true when empty.
    All(Vec<Selector>),
    /// One holds; false when empty.
    Any(Vec<Selector>),
    /// It does not hold.
    Not(Box<Selector>),
}

/// Conditions on protocol and destination port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceMatch {
    /// IP protocol number is this.
    pub protocol: Option<u8>,
    /// IP protocol number is not this.
    pub not_protocol: Option<u8>,
    /// An ICMP or ICMPv6 message of this kind.
    pub icmp: Option<IcmpMatch>,
    /// Not an ICMP or ICMPv6 message of this kind.
    pub not_icmp: Option<IcmpMatch>,
    /// Destination port is one of these. Empty: any, also for protocols without ports.
    pub ports: Vec<PortMatch>,
    /// Destination port is none of these.
    pub not_ports: Vec<PortMatch>,
}

/// A kind of ICMP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IcmpMatch {
    /// Type.
    pub kind: u8,
    /// Code; any if absent.
    pub code: Option<u8>,
}

/// A destination port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PortMatch {
    /// First to last, both included, of a protocol that has ports.
    Range(u16, u16),
    /// Any port for which the destination workload declares this name with the flow's protocol.
    Named(String),
}

/// Decides where no tier did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// Allows everything, as every Kubernetes namespace does for its pods.
    AllowAll,
    /// Rules of its own.
    Rules {
        /// `Kind name` for people.
        name: String,
        /// Rules for flows to the endpoint, in order.
        ingress: Vec<Rule>,
        /// Rules for flows from the endpoint, in order.
        egress: Vec<Rule>,
    },
}

/// Something with addresses that policy knows by name and labels: a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workload {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Labels of its namespace; absent while the namespace is not known.
    pub namespace_labels: Option<Labels>,
    /// Ports that it gives a name.
    pub named_ports: Vec<NamedPort>,
}

/// A named port of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    /// Name.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Port number.
    pub port: u16,
}

/// What one endpoint is judged by: only what applies to it, in the order in which it is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointPolicy<'a> {
    /// The endpoint.
    pub workload: &'a Workload,
    /// Tiers with at least one policy that applies to the endpoint.
    pub tiers: Vec<EndpointTier<'a>>,
    /// Asked after the tiers.
    pub profiles: &'a [Profile],
}

/// The part of a tier that applies to an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointTier<'a> {
    /// Name.
    pub name: &'a str,
    /// End of the tier.
    pub default_action: DefaultAction,
    /// Policies in order.
    pub policies: Vec<&'a Policy>,
}

impl PolicySet {
    /// The tiers and policies that apply to `workload`, by order and then by name.
    pub fn for_endpoint<'a>(&'a self, workload: &'a Workload) -> EndpointPolicy<'a> {
        let mut tiers: Vec<&Tier> = self.tiers.iter().collect();
        tiers.sort_by(|a, b| a.order.cmp(&b.order).then_with(|| a.name.cmp(&b.name)));
        let tiers = tiers.into_iter().filter_map(|tier| {
            let mut policies: Vec<&Policy> = tier.policies.iter().map(AsRef::as_ref).collect();
            policies.retain(|policy| policy.applies_to.matches(workload));
            policies.sort_by(|a, b| a.order.cmp(&b.order).then_with(|| a.name.cmp(&b.name)));
            let default_action = tier.default_action;
            (!policies.is_empty()).then_some(EndpointTier {
                name: &tier.name,
                default_action,
                policies,
            })
        });
        EndpointPolicy {
            workload,
            tiers: tiers.collect(),
            profiles: &self.profiles,
        }
    }
}

impl WorkloadMatch {
    /// Whether `workload` is selected.
    pub fn matches(&self, workload: &Workload) -> bool {
        let namespace = match &self.namespace {
            NamespaceMatch::Any => true,
            NamespaceMatch::Named(name) => *name == workload.namespace,
            NamespaceMatch::Selected(selector) => workload
                .namespace_labels
                .as_ref()
                .is_some_and(|labels| selector.matches(labels)),
        };
        namespace && self.labels.matches(&workload.labels)
    }
}

impl Selector {
    /// Matches every set of labels.
    pub fn everything() -> Self {
        Self::All(Vec::new())
    }

    /// Whether `labels` satisfy the selector.
    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::Labels(selector) => selector.matches(labels),
            Self::All(selectors) => selectors.iter().all(|selector| selector.matches(labels)),
            Self::Any(selectors) => selectors.iter().any(|selector| selector.matches(labels)),
            Self::Not(selector) => !selector.matches(labels),
        }
    }
}

impl Workload {
    /// Whether the workload gives `port` of `protocol` the name `name`.
    pub fn names_port(&self, name: &str, protocol: u8, port: u16) -> bool {
        self.named_ports
            .iter()
            .any(|p| p.name == name && p.protocol == protocol && p.port == port)
    }
}

impl Eq for Order {}

impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Order {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.0, other.0) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        }
    }
}
