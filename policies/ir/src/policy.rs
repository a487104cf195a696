//! The ordered form of network policy: tiers of policies of rules, and what a rule can ask.
//!
//! Every kind of policy object becomes this. The semantics of each field are stated here and carried out in
//! [`crate::decide()`]; nothing else may interpret them.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use api::selector::{LabelSelector, Labels};
use ipnet::IpNet;

use crate::{selector::Expression, tables::Direction};

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

/// Type of the message that asks for an echo, of a protocol that has one: what people mean who name no type.
pub const fn echo_request(protocol: u8) -> Option<u8> {
    match protocol {
        ICMP => Some(8),
        ICMPV6 => Some(128),
        _ => None,
    }
}

/// All policy that exists, in any order. [`PolicySet::for_endpoint`] picks and orders what one endpoint sees.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PolicySet {
    /// The tiers.
    pub tiers: Vec<Tier>,
    /// Profiles by name. A workload names those it has; one that is not here decides nothing.
    pub profiles: BTreeMap<String, Profile>,
    /// Services of a node that no policy for its host endpoints can cut off.
    /// Shared, since every workload that is judged holds the part of the policies that decides about it.
    pub failsafe: Arc<Failsafe>,
    /// What happens to flows from a pod to the node it is on, once its egress policy allows them.
    pub endpoint_to_host: EndpointToHost,
}

/// Policies that are judged beside the enforced ones and never enforced.
#[derive(Debug, Clone, PartialEq)]
pub struct Staged {
    /// Tier of the policy.
    pub tier: String,
    /// Name of the enforced policy that it would replace or delete.
    pub replaces: String,
    /// The policy it would become; nothing if it would delete.
    pub policy: Option<Arc<Policy>>,
}

/// Flows that a node allows, whatever its policies say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failsafe {
    /// Flows to the node.
    pub inbound: Vec<FailsafeMatch>,
    /// Flows from the node.
    pub outbound: Vec<FailsafeMatch>,
}

/// Flows that a node allows; both conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FailsafeMatch {
    /// The other end.
    pub peer: EndMatch,
    /// The service.
    pub service: ServiceMatch,
    answers: ServiceMatch,
}

impl FailsafeMatch {
    /// Flows to or from `peer` of this service.
    pub fn new(peer: EndMatch, service: ServiceMatch) -> Self {
        let answers = ServiceMatch {
            ports: service.source_ports.clone(),
            not_ports: service.not_source_ports.clone(),
            source_ports: service.ports.clone(),
            not_source_ports: service.not_ports.clone(),
            ..service.clone()
        };
        Self {
            peer,
            service,
            answers,
        }
    }

    /// The service that packets in the other direction of such a flow would open: its ports the other way round.
    pub fn answers(&self) -> &ServiceMatch {
        &self.answers
    }
}

/// What happens to flows from a pod to the node it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EndpointToHost {
    /// Dropped.
    #[default]
    Drop,
    /// Judged by the policies of the node's host endpoints.
    Return,
    /// Passed on, whatever those say.
    Accept,
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

/// What decides between policies of equal order: the name, as Calico has it, then what else tells them apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TieBreak {
    /// Name of the object. One that continues another comes after it, whatever the next character is.
    pub name: String,
    /// Its namespace; empty for an object of the cluster.
    pub namespace: String,
    /// Its kind.
    pub kind: String,
}

/// One policy: whom it applies to, in which directions, and its rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// `Kind namespace/name`.
    pub name: String,
    /// Breaks ties of `order`.
    pub tie_break: TieBreak,
    /// Place within the tier.
    pub order: Order,
    /// When it is asked.
    pub phase: Phase,
    /// Endpoints it applies to.
    pub applies_to: WorkloadMatch,
    /// Directions it applies to. A direction without rules still isolates.
    pub directions: Directions,
    /// Rules for flows to the endpoint, in order.
    pub ingress: Vec<Rule>,
    /// Rules for flows from the endpoint, in order.
    pub egress: Vec<Rule>,
}

/// When a policy is asked. All but the first kind are for host endpoints alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Phase {
    /// For flows that begin or end at the endpoint.
    #[default]
    Local,
    /// For those, and for flows that a node forwards.
    LocalAndForwarded,
    /// Before destinations are translated, for all flows into the node.
    BeforeTranslation,
    /// Before connections are tracked, for all packets; each direction of a flow is judged on its own.
    Untracked,
    /// Nobody knows: first of all, for everything, pods included.
    Unknown,
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
    /// Who the endpoint itself is: the destination of flows to it, the source of flows from it.
    pub own: EndMatch,
    /// Who the other end is.
    pub peer: EndMatch,
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

/// Conditions on one end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct EndMatch {
    /// Family of the addresses.
    pub ip_version: Option<IpVersion>,
    /// Address lies in one of these. Empty: any.
    pub nets: Vec<IpNet>,
    /// Address lies in none of these. When all are of the other family the rule does not match at all, as in
    /// Calico, which renders each family on its own.
    pub not_nets: Vec<IpNet>,
    /// A known workload or network set with this address matches.
    pub workload: Option<WorkloadMatch>,
    /// No known workload or network set with this address matches. An unknown address satisfies this.
    pub not_workload: Option<WorkloadMatch>,
    /// The resolver gave the address a name that one of these matches. Empty: any. Holds of no source, and of no
    /// endpoint that judges.
    pub domains: Vec<DomainMatch>,
}

/// Names of hosts: one, or all that fit a pattern in which `*` stands for one or more labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainMatch {
    /// Labels of the pattern, in lower case; `*` is the wildcard.
    pub labels: Vec<String>,
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
    /// By kind.
    pub kinds: Kinds,
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

/// Which kinds of workload a condition can find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kinds {
    /// Pods alone: what Kubernetes' selectors mean.
    Pods,
    /// Also host endpoints and network sets: what Calico's selectors mean.
    All,
}

/// Condition on a set of labels. A missing label satisfies `NotIn` and `DoesNotExist`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Selector {
    /// All requirements hold.
    Labels(LabelSelector),
    /// An expression over what Calico calls the labels of an endpoint: see [`Workload::label`].
    Expression(Expression),
    /// All hold; true when empty.
    All(Vec<Selector>),
    /// One holds; false when empty.
    Any(Vec<Selector>),
    /// It does not hold.
    Not(Box<Selector>),
}

/// Conditions on protocol and destination port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
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
    /// Source port is one of these. Empty: any.
    pub source_ports: Vec<PortMatch>,
    /// Source port is none of these.
    pub not_source_ports: Vec<PortMatch>,
}

/// A kind of ICMP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IcmpMatch {
    /// Type.
    pub kind: u8,
    /// Code; any if absent.
    pub code: Option<u8>,
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortMatch {
    /// First to last, both included, of a protocol that has ports.
    Range(u16, u16),
    /// Any port for which the workload at this end, among those that the rule's positive selector for it finds,
    /// declares this name with the flow's protocol.
    Named(String),
}

/// Decides where no tier did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Its name, by which workloads have it.
    pub name: String,
    /// What it says.
    pub rules: ProfileRules,
}

/// What a profile says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProfileRules {
    /// Allows everything, as every Kubernetes namespace does for its pods.
    AllowAll,
    /// Rules of its own.
    Own {
        /// Rules for flows to the endpoint, in order.
        ingress: Vec<Rule>,
        /// Rules for flows from the endpoint, in order.
        egress: Vec<Rule>,
    },
}

/// Something with addresses that policy knows by name and labels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workload {
    /// What it is.
    pub kind: WorkloadKind,
    /// Namespace; empty for what has none.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Labels of its namespace; absent while the namespace is not known, and for what has none.
    pub namespace_labels: Option<Labels>,
    /// The service account it runs as.
    pub service_account: Option<ServiceAccount>,
    /// Names of the profiles it has, in the order in which they are asked.
    pub profiles: Vec<String>,
    /// Ports that it gives a name.
    pub named_ports: Vec<NamedPort>,
}

/// What a workload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum WorkloadKind {
    /// A pod.
    #[default]
    Pod,
    /// An interface of a node.
    HostEndpoint,
    /// A labelled list of addresses.
    NetworkSet,
}

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ServiceAccount {
    /// Its name; its namespace is the workload's.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
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
    /// Asked before everything else; absent for pods.
    pub failsafe: Option<&'a Failsafe>,
    /// Tiers with at least one policy that applies to the endpoint. A host endpoint may have a tier several
    /// times, once for each phase.
    pub tiers: Vec<EndpointTier<'a>>,
    /// Asked after the tiers.
    pub last: Last<'a>,
    /// What happens to flows to the endpoint's own node that all of this allows.
    pub to_host: EndpointToHost,
    /// What judges flows that the node gives another destination, in place of all this; absent where there are none.
    pub passing: Option<Passing<'a>>,
}

/// What a host endpoint's policies say about flows to the node that it forwards to a pod, since the port leads there. Neither
/// failsafe ports nor profiles have a say, and what no policy speaks of is allowed.
#[derive(Debug, Clone, PartialEq)]
pub struct Passing<'a> {
    /// Asked about the destination that is on the wire.
    pub before: Vec<EndpointTier<'a>>,
    /// Asked next, about the one that comes of it.
    pub after: Vec<EndpointTier<'a>>,
}

/// What is asked when no tier decided.
#[derive(Debug, Clone, PartialEq)]
pub enum Last<'a> {
    /// Profiles in turn; the flow is denied if none decides.
    Profiles(Vec<&'a Profile>),
    /// Nothing: a node forwards what no policy forbids.
    Allow,
    /// Whoever else judges the packet: this is [`BuiltinRule::NoMatch`](crate::tables::BuiltinRule::NoMatch), which is
    /// no verdict here.
    Undecided,
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
    /// What applies to flows that begin or end at `workload`, by order and then by name.
    pub fn for_endpoint<'a>(&'a self, workload: &'a Workload) -> EndpointPolicy<'a> {
        use Phase::{BeforeTranslation, Local, LocalAndForwarded, Unknown, Untracked};
        let profiles = workload
            .profiles
            .iter()
            .filter_map(|name| self.profiles.get(name));
        let last = Last::Profiles(profiles.collect());
        match workload.kind {
            WorkloadKind::Pod | WorkloadKind::NetworkSet => {
                self.in_phases(workload, &[&[Local, LocalAndForwarded, Unknown]], last)
            }
            WorkloadKind::HostEndpoint => {
                let (first, second) = (&[Untracked, Unknown][..], &[BeforeTranslation][..]);
                let passing = Passing {
                    before: self.tiers_in(workload, &[first, second]),
                    after: self.tiers_in(workload, &[&[LocalAndForwarded]]),
                };
                EndpointPolicy {
                    passing: Some(passing),
                    ..self.in_phases(workload, &[first, second, &[Local, LocalAndForwarded]], last)
                }
            }
        }
    }

    /// What applies to flows that a node forwards through the interface of the host endpoint `workload`. Its failsafe ports
    /// are the node's, and spare nothing that only passes through.
    pub fn for_forwarded<'a>(&'a self, workload: &'a Workload) -> EndpointPolicy<'a> {
        use Phase::{BeforeTranslation, LocalAndForwarded, Unknown, Untracked};
        let phases = [
            &[Untracked, Unknown][..],
            &[BeforeTranslation],
            &[LocalAndForwarded],
        ];
        EndpointPolicy {
            failsafe: None,
            ..self.in_phases(workload, &phases, Last::Allow)
        }
    }

    /// What applies to each packet at the interface of the host endpoint `workload` before flows are known. It decides
    /// nothing about failsafe flows, in either direction: allowed here, a flow would have no answers, and denied here,
    /// it would not be safe.
    pub fn for_untracked<'a>(&'a self, workload: &'a Workload) -> EndpointPolicy<'a> {
        let phases = [&[Phase::Untracked, Phase::Unknown][..]];
        self.in_phases(workload, &phases, Last::Undecided)
    }

    /// These policies with `staged` in force: what a change that is only staged would make of them.
    #[must_use]
    pub fn with_staged(&self, staged: &[Staged]) -> Self {
        let mut set = self.clone();
        for change in staged {
            for tier in &mut set.tiers {
                tier.policies.retain(|policy| policy.name != change.replaces);
                if tier.name == change.tier {
                    tier.policies.extend(change.policy.clone());
                }
            }
        }
        set
    }

    fn in_phases<'a>(
        &'a self,
        workload: &'a Workload,
        phases: &[&[Phase]],
        last: Last<'a>,
    ) -> EndpointPolicy<'a> {
        EndpointPolicy {
            workload,
            failsafe: (workload.kind == WorkloadKind::HostEndpoint).then_some(&self.failsafe),
            tiers: self.tiers_in(workload, phases),
            last,
            to_host: match workload.kind {
                WorkloadKind::Pod => self.endpoint_to_host,
                WorkloadKind::HostEndpoint | WorkloadKind::NetworkSet => EndpointToHost::Return,
            },
            passing: None,
        }
    }

    /// The tiers of each phase in turn.
    fn tiers_in<'a>(&'a self, workload: &Workload, phases: &[&[Phase]]) -> Vec<EndpointTier<'a>> {
        let mut sorted: Vec<&Tier> = self.tiers.iter().collect();
        sorted.sort_by(|a, b| a.order.cmp(&b.order).then_with(|| a.name.cmp(&b.name)));
        let mut tiers = Vec::new();
        for phase in phases {
            // These two phases only pick out some flows; what they do not speak about goes on.
            let open = phase.contains(&Phase::Untracked) || phase.contains(&Phase::BeforeTranslation);
            tiers.extend(sorted.iter().filter_map(|tier| {
                let mut tier = tier.for_endpoint(workload, phase)?;
                if open {
                    tier.default_action = DefaultAction::Pass;
                }
                Some(tier)
            }));
        }
        tiers
    }
}

impl Profile {
    /// Rules of one direction; nothing if it allows everything.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match (&self.rules, direction) {
            (ProfileRules::AllowAll, _) => None,
            (ProfileRules::Own { ingress, .. }, Direction::Ingress) => Some(ingress),
            (ProfileRules::Own { egress, .. }, Direction::Egress) => Some(egress),
        }
    }
}

impl Policy {
    /// What policies of a tier are sorted by: the lower is asked first.
    pub fn precedence(&self) -> (Order, &TieBreak) {
        (self.order, &self.tie_break)
    }
}

impl TieBreak {
    /// Of the object with this name, and the namespace and kind that tell it from others of that name.
    pub fn new(name: &str, namespace: &str, kind: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            kind: kind.to_owned(),
        }
    }
}

impl<'a> Passing<'a> {
    /// All tiers, in the order in which they are asked.
    pub fn tiers(&self) -> impl Iterator<Item = &EndpointTier<'a>> {
        self.before.iter().chain(&self.after)
    }
}

impl EndpointPolicy<'_> {
    /// Whether anything asks who is at the endpoint's own end of flows of one direction, where that may be anyone.
    pub fn asks_own(&self, direction: Direction) -> bool {
        let policies = self.tiers.iter().flat_map(|tier| &tier.policies);
        let of_policies = policies.flat_map(|policy| policy.rules(direction).unwrap_or_default());
        let profiles = match &self.last {
            Last::Profiles(profiles) => profiles.as_slice(),
            Last::Allow | Last::Undecided => &[],
        };
        let of_profiles = profiles
            .iter()
            .flat_map(|profile| profile.rules(direction).unwrap_or_default());
        let mut rules = of_policies
            .chain(of_profiles)
            .filter(|rule| rule.action != Action::Log);
        let mut failsafe = self.failsafe.into_iter().flat_map(|failsafe| {
            let open = failsafe.matches(direction).iter().map(|open| &open.service);
            let back = failsafe.matches(direction.opposite()).iter();
            open.chain(back.map(FailsafeMatch::answers))
        });
        let asks = |rule: &Rule| rule.own != EndMatch::default() || rule.service.names_own_port(direction);
        self.workload.owns_any()
            && (rules.any(asks) || failsafe.any(|service| service.names_own_port(direction)))
    }
}

impl ServiceMatch {
    /// Whether it holds of ports by the names that they have at the endpoint's own end of flows of one direction.
    fn names_own_port(&self, direction: Direction) -> bool {
        let (ports, not_ports) = match direction {
            Direction::Ingress => (&self.ports, &self.not_ports),
            Direction::Egress => (&self.source_ports, &self.not_source_ports),
        };
        let mut ports = ports.iter().chain(not_ports);
        ports.any(|port| matches!(port, PortMatch::Named(_)))
    }
}

impl Tier {
    fn for_endpoint(&self, workload: &Workload, phases: &[Phase]) -> Option<EndpointTier<'_>> {
        let mut policies: Vec<&Policy> = self.policies.iter().map(AsRef::as_ref).collect();
        policies.retain(|policy| phases.contains(&policy.phase) && policy.applies_to.matches(workload));
        policies.sort_by(|a, b| a.precedence().cmp(&b.precedence()));
        (!policies.is_empty()).then_some(EndpointTier {
            name: &self.name,
            default_action: self.default_action,
            policies,
        })
    }
}

impl DomainMatch {
    /// Longest name, without its final dot (RFC 1035, section 2.3.4).
    pub const MAX_BYTES: usize = 253;
    /// Longest label of a name.
    pub const MAX_LABEL_BYTES: usize = 63;

    /// The pattern, or nothing if it is not one: a host name of lower or upper case, without its final dot, in
    /// which whole labels may be `*`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let label = |label: &str| {
            label == "*"
                || ((1..=Self::MAX_LABEL_BYTES).contains(&label.len())
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                    && !label.starts_with('-')
                    && !label.ends_with('-'))
        };
        let valid = text.len() <= Self::MAX_BYTES && text.split('.').all(label) && text != "*";
        valid.then(|| Self {
            labels: text.split('.').map(str::to_owned).collect(),
        })
    }

    /// Whether `name`, in lower case and without its final dot, fits.
    pub fn matches(&self, name: &str) -> bool {
        // fits[i]: the labels read so far are what the first i labels of the pattern can stand for.
        let mut fits: Vec<bool> = std::iter::once(true)
            .chain(self.labels.iter().map(|_| false))
            .collect();
        for label in name.split('.') {
            let mut before = std::mem::replace(&mut fits[0], false);
            for (i, wanted) in self.labels.iter().enumerate() {
                let here = fits[i + 1];
                let again = wanted == "*" && here;
                fits[i + 1] = again || (before && (wanted == "*" || wanted == label));
                before = here;
            }
        }
        fits.last().is_some_and(|fits| *fits)
    }
}

impl WorkloadMatch {
    /// Whether `workload` is selected.
    pub fn matches(&self, workload: &Workload) -> bool {
        let kind = self.kinds == Kinds::All || workload.kind == WorkloadKind::Pod;
        let namespace = match &self.namespace {
            NamespaceMatch::Any => true,
            NamespaceMatch::Named(name) => *name == workload.namespace,
            NamespaceMatch::Selected(selector) => workload
                .namespace_labels
                .as_ref()
                .is_some_and(|labels| selector.matches_labels(labels)),
        };
        kind && namespace && self.labels.matches(workload)
    }
}

impl Selector {
    /// Matches every set of labels.
    pub fn everything() -> Self {
        Self::All(Vec::new())
    }

    /// Whether the labels of `workload` satisfy the selector.
    pub fn matches(&self, workload: &Workload) -> bool {
        self.holds(&workload.labels, &|key| workload.label(key))
    }

    /// Whether `labels`, and nothing else, satisfy the selector.
    pub fn matches_labels(&self, labels: &Labels) -> bool {
        self.holds(labels, &|key| labels.get(key).map(String::as_str))
    }

    fn holds<'a>(&self, labels: &Labels, label: &dyn Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::Labels(selector) => selector.matches(labels),
            Self::Expression(expression) => expression.matches(label),
            Self::All(selectors) => selectors.iter().all(|selector| selector.holds(labels, label)),
            Self::Any(selectors) => selectors.iter().any(|selector| selector.holds(labels, label)),
            Self::Not(selector) => !selector.holds(labels, label),
        }
    }
}

impl Workload {
    /// Label for the namespace of a workload, which cannot be set by hand.
    pub const NAMESPACE_LABEL: &'static str = "projectcalico.org/namespace";
    /// Label for the orchestrator of a pod.
    pub const ORCHESTRATOR_LABEL: &'static str = "projectcalico.org/orchestrator";
    /// Label for the name of a pod's service account.
    pub const SERVICE_ACCOUNT_LABEL: &'static str = "projectcalico.org/serviceaccount";
    /// Stands before the labels of a workload's namespace.
    pub const NAMESPACE_PREFIX: &'static str = "pcns.";
    /// Stands before the labels of a workload's service account.
    pub const SERVICE_ACCOUNT_PREFIX: &'static str = "pcsa.";
    /// Label that a namespace and a service account have beside their own, with their name.
    pub const NAME_LABEL: &'static str = "projectcalico.org/name";

    /// A label as Calico's selectors see it: those it sets itself, those of the workload's namespace and service
    /// account under their prefixes, then the workload's own. Calico itself looks at the workload's own labels
    /// before the inherited ones, so whoever labels a pod `pcns.team` could pass it off as another namespace's.
    pub fn label(&self, key: &str) -> Option<&str> {
        let pod = self.kind == WorkloadKind::Pod;
        let service_account = self.service_account.as_ref();
        match key {
            Self::NAMESPACE_LABEL => return (!self.namespace.is_empty()).then_some(&self.namespace),
            Self::ORCHESTRATOR_LABEL if pod => return Some("k8s"),
            Self::SERVICE_ACCOUNT_LABEL if pod => {
                return service_account.map(|account| account.name.as_str());
            }
            _ => {}
        }
        // Network sets inherit nothing but their namespace's labels.
        if let Some(key) = key.strip_prefix(Self::NAMESPACE_PREFIX) {
            let labels = self.namespace_labels.as_ref()?;
            return match key {
                Self::NAME_LABEL => Some(&self.namespace),
                key => labels.get(key).map(String::as_str),
            };
        }
        match key.strip_prefix(Self::SERVICE_ACCOUNT_PREFIX) {
            Some(Self::NAME_LABEL) => service_account.map(|account| account.name.as_str()),
            Some(key) => service_account?.labels.get(key).map(String::as_str),
            None => self.labels.get(key).map(String::as_str),
        }
    }

    /// Whether its own end of a flow is whoever has the address there, and not itself: a host endpoint has the node's own
    /// packets and those that pass through it, and selectors find it at the addresses that it expects, no others.
    pub fn owns_any(&self) -> bool {
        self.kind == WorkloadKind::HostEndpoint
    }

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
