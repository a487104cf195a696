//! The reference: judges one flow by reading the policy from top to bottom. Slow and plain on purpose; the
//! compiler, the tables and the kernel are tested against it.
//!
//! The order of judgement, for one direction at one endpoint:
//!
//! 1. An address that more than one workload claims is denied at the other end.
//! 2. Failsafe ports of a node are allowed.
//! 3. At a host endpoint, an address of the own end of which nobody knows whose it is is denied if a rule asks, or if ports lead to
//!    pods by it.
//! 4. Each tier with a policy that covers the direction is asked in order. Within it, the first matching
//!    rule that is not Log decides; if none matches, the tier's default action does.
//! 5. If every tier passed, or none applied, profiles are asked; if none of them matches, the flow is denied.
//! 6. What a pod sends to its own node, also as one of those who listen to a group or a broadcast, is dropped if the
//!    cluster says so, though its policies allow it.
//! 7. A denial does not hold against the endpoint itself, nor against flows from a pod's own node.
//!
//! Where a port of the node leads to a pod, 2, 4 and 5 are others: policies for untracked packets and those before translation are
//! asked about the destination on the wire, then those for forwarded flows about the one that comes of it; what none of
//! them decides is allowed.
//!
//! Policy for untracked packets leaves failsafe flows, and what no tier decided, to others: that is a denial by
//! [`BuiltinRule::NoMatch`], which nothing overrides.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use crate::{
    policy::{
        Action, DefaultAction, EndMatch, EndpointPolicy, EndpointTier, EndpointToHost, Failsafe,
        FailsafeMatch, ICMP_PROTOCOLS, IcmpMatch, IpVersion, Last, PORT_PROTOCOLS, Passing, Policy,
        PortMatch, Rule, ServiceMatch, Workload, WorkloadKind, WorkloadMatch,
    },
    tables::{BuiltinRule, DecidedBy, Direction, RuleName, Verdict},
};

/// First packet of a flow, with both ends known as far as they can be.
#[derive(Debug, Clone, PartialEq)]
pub struct Flow<'a> {
    /// Seen from the endpoint that judges.
    pub direction: Direction,
    /// The endpoint.
    pub own: Side<'a>,
    /// The other end.
    pub peer: Side<'a>,
    /// Names that the resolver gave for the other end's address.
    pub names: Option<&'a BTreeSet<String>>,
    /// What the other end is, apart from labels.
    pub standing: Standing,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port; for ICMP `type << 8 | code`; 0 where the protocol has neither.
    pub port: u16,
    /// What becomes of the destination, if the endpoint is a node's and the node gives it another.
    pub translated: Option<Translated<'a>>,
    /// Whether that may depend on the address at the node's end.
    pub leads_by_address: bool,
}

/// A destination after translation.
#[derive(Debug, Clone, PartialEq)]
pub struct Translated<'a> {
    /// Who it is before: the endpoint itself.
    pub node: Side<'a>,
    /// Who it is.
    pub own: Side<'a>,
    /// Its port.
    pub port: u16,
}

/// One end of a flow.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Side<'a> {
    /// Its address; absent for an endpoint that has none of the flow's family.
    pub address: Option<IpAddr>,
    /// Everything that selectors find there.
    pub known: Vec<&'a Workload>,
    /// Nobody knows whose the address is: more than one workload claims it, or it is not told. Said of the endpoint's own
    /// end, where that may be anyone; of the other end, [`Flow::standing`] tells.
    pub is_unknown: bool,
}

/// What the other end is to the endpoint that judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Someone else.
    Other,
    /// The endpoint itself.
    Itself,
    /// The node that the endpoint is on.
    OwnNode,
    /// Whoever listens there, the node that the endpoint is on among them.
    Group,
    /// More than one workload claims the address, so it can be trusted to be none of them.
    Contested,
}

/// What was decided, what decided it, and what was asked on the way.
#[must_use]
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The verdict.
    pub verdict: Verdict,
    /// What decided.
    pub decided_by: DecidedBy,
    /// Everything that was asked, in order.
    pub steps: Vec<Step>,
}

/// One thing that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A rule.
    Rule {
        /// The rule.
        name: RuleName,
        /// Its action.
        action: Action,
        /// Why it did not match; absent if it did.
        mismatch: Option<Mismatch>,
    },
    /// No rule of a tier decided.
    EndOfTier {
        /// The tier.
        tier: String,
        /// Its default action.
        action: DefaultAction,
    },
    /// The profile that allows everything.
    AllowAllProfile,
    /// A built-in rule had the last word.
    Builtin(BuiltinRule),
}

/// Which condition of a rule did not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// The protocol.
    Protocol,
    /// The kind of ICMP message.
    Icmp,
    /// The destination port.
    Port,
    /// The source port.
    SourcePort,
    /// The family of the other end's address.
    Family,
    /// The other end's address.
    Address,
    /// The other end is not a workload that the rule selects.
    Workload,
    /// The other end's address has no name that the rule wants.
    Domain,
    /// The endpoint itself is not what the rule wants at this end.
    Own,
}

/// Judges `flow` at the endpoint that `policy` belongs to.
pub fn decide(policy: &EndpointPolicy<'_>, flow: &Flow<'_>) -> Decision {
    let mut steps = Vec::new();
    if flow.standing == Standing::Contested {
        return builtin(Verdict::Deny, BuiltinRule::NoMatch, steps);
    }
    let may_leave_open = policy.last == Last::Undecided;
    let by_address = flow.leads_by_address && policy.passing.is_some();
    let is_unsure = flow.own.is_unknown && (by_address || policy.asks_own(flow.direction));
    let passing = policy.passing.as_ref().zip(flow.translated.as_ref());
    let passing = passing.filter(|_| !is_unsure);
    if let Some(failsafe) = policy.failsafe.filter(|_| passing.is_none()) {
        if may_leave_open && (failsafe.holds(flow) || failsafe.answered_by(flow)) {
            return builtin(Verdict::Deny, BuiltinRule::NoMatch, steps);
        }
        if failsafe.holds(flow) {
            return builtin(Verdict::Allow, BuiltinRule::Failsafe, steps);
        }
    }
    if is_unsure {
        return builtin(Verdict::Deny, BuiltinRule::NoMatch, steps);
    }
    let decision = match passing {
        Some((passing, to)) => Some(ask_passing(passing, flow, to, &mut steps)),
        None => ask_tiers(&policy.tiers, flow, &mut steps).or_else(|| ask_last(policy, flow, &mut steps)),
    };
    if may_leave_open && decision.is_none() {
        return builtin(Verdict::Deny, BuiltinRule::NoMatch, steps);
    }
    let (verdict, decided_by) = decision.unwrap_or((Verdict::Deny, DecidedBy::Builtin(BuiltinRule::NoMatch)));
    let pod = policy.workload.kind == WorkloadKind::Pod;
    match (verdict, flow.standing, flow.direction) {
        (Verdict::Deny, Standing::Itself, _) => builtin(Verdict::Allow, BuiltinRule::SelfTraffic, steps),
        (Verdict::Deny, Standing::OwnNode, Direction::Ingress) if pod => {
            builtin(Verdict::Allow, BuiltinRule::FromHost, steps)
        }
        (Verdict::Allow, Standing::OwnNode | Standing::Group, Direction::Egress)
            if policy.to_host == EndpointToHost::Drop =>
        {
            builtin(Verdict::Deny, BuiltinRule::ToHost, steps)
        }
        _ => Decision {
            verdict,
            decided_by,
            steps,
        },
    }
}

/// Why `rule` does not match `flow`, or nothing if it does.
pub fn mismatch(rule: &Rule, flow: &Flow<'_>) -> Option<Mismatch> {
    let (source, destination) = match flow.direction {
        Direction::Ingress => ((&flow.peer, &rule.peer), (&flow.own, &rule.own)),
        Direction::Egress => ((&flow.own, &rule.own), (&flow.peer, &rule.peer)),
    };
    service_mismatch(&rule.service, flow, source, destination)
        .or_else(|| own_mismatch(&rule.own, &flow.own))
        .or_else(|| end_mismatch(&rule.peer, &flow.peer))
        .or_else(|| domain_mismatch(&rule.peer, flow))
}

impl Failsafe {
    /// Flows of one direction.
    pub fn matches(&self, direction: Direction) -> &[FailsafeMatch] {
        match direction {
            Direction::Ingress => &self.inbound,
            Direction::Egress => &self.outbound,
        }
    }

    fn holds(&self, flow: &Flow<'_>) -> bool {
        let mut open = self.matches(flow.direction).iter();
        open.any(|open| is_between(&open.service, &open.peer, flow))
    }

    /// Whether the packet may belong to a flow that [`Failsafe::holds`] and that began at its other end.
    fn answered_by(&self, flow: &Flow<'_>) -> bool {
        let mut open = self.matches(flow.direction.opposite()).iter();
        open.any(|open| is_between(open.answers(), &open.peer, flow))
    }
}

impl Policy {
    /// Rules of one direction, or nothing if the policy does not cover it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.directions.ingress.then_some(&self.ingress),
            Direction::Egress => self.directions.egress.then_some(&self.egress),
        }
    }
}

impl EndpointTier<'_> {
    /// Name of the end of this tier in one direction: of the only policy that covers it, or of the tier.
    /// Nothing if no policy covers the direction, in which case the tier is not asked.
    pub fn end(&self, direction: Direction) -> Option<RuleName> {
        let mut covering = self
            .policies
            .iter()
            .filter(|policy| policy.rules(direction).is_some());
        let policy = match (covering.next(), covering.next()) {
            (None, _) => return None,
            (Some(only), None) => only.name.clone(),
            (Some(_), Some(_)) => String::new(),
        };
        Some(RuleName {
            tier: self.name.to_owned(),
            policy,
            rule: None,
        })
    }
}

/// Whether `flow` is of `service`, and its other end is `peer`.
fn is_between(service: &ServiceMatch, peer: &EndMatch, flow: &Flow<'_>) -> bool {
    let any = EndMatch::default();
    let (source, destination) = match flow.direction {
        Direction::Ingress => ((&flow.peer, peer), (&flow.own, &any)),
        Direction::Egress => ((&flow.own, &any), (&flow.peer, peer)),
    };
    service_mismatch(service, flow, source, destination).is_none() && end_mismatch(peer, &flow.peer).is_none()
}

/// What is said about a flow that the node forwards to another destination.
fn ask_passing(
    passing: &Passing<'_>,
    flow: &Flow<'_>,
    to: &Translated<'_>,
    steps: &mut Vec<Step>,
) -> (Verdict, DecidedBy) {
    let local = Flow {
        own: to.node.clone(),
        ..flow.clone()
    };
    let forwarded = Flow {
        own: to.own.clone(),
        port: to.port,
        ..flow.clone()
    };
    ask_tiers(&passing.before, &local, steps)
        .or_else(|| ask_tiers(&passing.after, &forwarded, steps))
        .unwrap_or((Verdict::Allow, DecidedBy::Builtin(BuiltinRule::NoPolicy)))
}

fn ask_tiers(
    tiers: &[EndpointTier<'_>],
    flow: &Flow<'_>,
    steps: &mut Vec<Step>,
) -> Option<(Verdict, DecidedBy)> {
    for tier in tiers {
        let Some(end) = tier.end(flow.direction) else {
            continue;
        };
        match first_match(tier, flow, steps) {
            Some((Action::Allow, name)) => return Some((Verdict::Allow, DecidedBy::Rule(name))),
            Some((Action::Deny, name)) => return Some((Verdict::Deny, DecidedBy::Rule(name))),
            Some((Action::Pass | Action::Log, _)) => {}
            None => {
                let action = tier.default_action;
                steps.push(Step::EndOfTier {
                    tier: tier.name.to_owned(),
                    action,
                });
                if action == DefaultAction::Deny {
                    return Some((Verdict::Deny, DecidedBy::Rule(end)));
                }
            }
        }
    }
    None
}

/// The first rule of the tier that matches and is not Log.
fn first_match(
    tier: &EndpointTier<'_>,
    flow: &Flow<'_>,
    steps: &mut Vec<Step>,
) -> Option<(Action, RuleName)> {
    for policy in &tier.policies {
        let rules = policy.rules(flow.direction).unwrap_or_default();
        if let Some(hit) = first_rule(rules, tier.name, &policy.name, flow, steps) {
            return Some(hit);
        }
    }
    None
}

fn first_rule(
    rules: &[Rule],
    tier: &str,
    policy: &str,
    flow: &Flow<'_>,
    steps: &mut Vec<Step>,
) -> Option<(Action, RuleName)> {
    for rule in rules {
        let name = RuleName {
            tier: tier.to_owned(),
            policy: policy.to_owned(),
            rule: Some(rule.index),
        };
        let mismatch = mismatch(rule, flow);
        steps.push(Step::Rule {
            name: name.clone(),
            action: rule.action,
            mismatch,
        });
        if mismatch.is_none() && rule.action != Action::Log {
            return Some((rule.action, name));
        }
    }
    None
}

fn ask_last(
    policy: &EndpointPolicy<'_>,
    flow: &Flow<'_>,
    steps: &mut Vec<Step>,
) -> Option<(Verdict, DecidedBy)> {
    let profiles = match &policy.last {
        Last::Profiles(profiles) => profiles,
        Last::Allow => return Some((Verdict::Allow, DecidedBy::Builtin(BuiltinRule::NoPolicy))),
        Last::Undecided => return None,
    };
    for profile in profiles {
        let Some(rules) = profile.rules(flow.direction) else {
            steps.push(Step::AllowAllProfile);
            return Some((Verdict::Allow, DecidedBy::Builtin(BuiltinRule::NoPolicy)));
        };
        if let Some((action, rule)) = first_rule(rules, RuleName::PROFILE_TIER, &profile.name, flow, steps) {
            // There is no next tier to pass to.
            let verdict = match action {
                Action::Allow => Verdict::Allow,
                Action::Deny | Action::Pass | Action::Log => Verdict::Deny,
            };
            return Some((verdict, DecidedBy::Rule(rule)));
        }
    }
    None
}

fn builtin(verdict: Verdict, rule: BuiltinRule, mut steps: Vec<Step>) -> Decision {
    steps.push(Step::Builtin(rule));
    Decision {
        verdict,
        decided_by: DecidedBy::Builtin(rule),
        steps,
    }
}

type End<'a> = (&'a Side<'a>, &'a EndMatch);

fn service_mismatch(
    service: &ServiceMatch,
    flow: &Flow<'_>,
    source: End<'_>,
    destination: End<'_>,
) -> Option<Mismatch> {
    if service.protocol.is_some_and(|protocol| protocol != flow.protocol)
        || service
            .not_protocol
            .is_some_and(|protocol| protocol == flow.protocol)
    {
        return Some(Mismatch::Protocol);
    }
    if service.icmp.is_some_and(|icmp| !is_icmp(icmp, flow))
        || service.not_icmp.is_some_and(|icmp| is_icmp(icmp, flow))
    {
        return Some(Mismatch::Icmp);
    }
    if !port_fits(
        &service.ports,
        &service.not_ports,
        flow.protocol,
        flow.port,
        destination,
    ) {
        return Some(Mismatch::Port);
    }
    let (ports, not_ports) = (&service.source_ports, &service.not_source_ports);
    (!port_fits(ports, not_ports, flow.protocol, flow.source_port, source)).then_some(Mismatch::SourcePort)
}

fn port_fits(wanted: &[PortMatch], unwanted: &[PortMatch], protocol: u8, port: u16, end: End<'_>) -> bool {
    let (side, condition) = end;
    let selected = |workload: &Workload| condition.workload.as_ref().is_none_or(|m| m.matches(workload));
    let is_port = |candidate: &PortMatch| match candidate {
        PortMatch::Range(first, last) => {
            PORT_PROTOCOLS.contains(&protocol) && (*first..=*last).contains(&port)
        }
        PortMatch::Named(name) => side
            .known
            .iter()
            .any(|workload| selected(workload) && workload.names_port(name, protocol, port)),
    };
    (wanted.is_empty() || wanted.iter().any(is_port)) && !unwanted.iter().any(is_port)
}

fn is_icmp(icmp: IcmpMatch, flow: &Flow<'_>) -> bool {
    let [kind, code] = flow.port.to_be_bytes();
    ICMP_PROTOCOLS.contains(&flow.protocol) && icmp.kind == kind && icmp.code.is_none_or(|c| c == code)
}

fn end_mismatch(wanted: &EndMatch, side: &Side<'_>) -> Option<Mismatch> {
    if wanted.ip_version.is_some() || !wanted.nets.is_empty() || !wanted.not_nets.is_empty() {
        let Some(address) = side.address else {
            return Some(Mismatch::Address);
        };
        let version = if address.is_ipv4() {
            IpVersion::V4
        } else {
            IpVersion::V6
        };
        if wanted.ip_version.is_some_and(|v| v != version) {
            return Some(Mismatch::Family);
        }
        let holds = |net: &IpNet| net.contains(&address);
        let of_family = |net: &IpNet| net.addr().is_ipv4() == address.is_ipv4();
        let in_nets = wanted.nets.is_empty() || wanted.nets.iter().any(holds);
        let not_nets_apply = wanted.not_nets.is_empty() || wanted.not_nets.iter().any(of_family);
        if !in_nets || !not_nets_apply || wanted.not_nets.iter().any(holds) {
            return Some(Mismatch::Address);
        }
    }
    let any = |condition: &WorkloadMatch| side.known.iter().any(|workload| condition.matches(workload));
    let selected = wanted.workload.as_ref().is_none_or(any);
    let excluded = wanted.not_workload.as_ref().is_some_and(any);
    (!selected || excluded).then_some(Mismatch::Workload)
}

/// Nobody learns the names of the endpoint's own end, so a condition on them does not hold.
fn own_mismatch(wanted: &EndMatch, side: &Side<'_>) -> Option<Mismatch> {
    (!wanted.domains.is_empty() || end_mismatch(wanted, side).is_some()).then_some(Mismatch::Own)
}

fn domain_mismatch(wanted: &EndMatch, flow: &Flow<'_>) -> Option<Mismatch> {
    let fits = |name: &String| wanted.domains.iter().any(|domain| domain.matches(name));
    let named = flow.direction == Direction::Egress && flow.names.is_some_and(|names| names.iter().any(fits));
    (!wanted.domains.is_empty() && !named).then_some(Mismatch::Domain)
}
