//! The reference: judges one flow by reading the policy from top to bottom. Slow and plain on purpose; the
//! compiler, the tables and the kernel are tested against it.
//!
//! The order of judgement, for one direction at one endpoint:
//!
//! 1. An address that more than one workload claims is denied.
//! 2. Each tier with a policy that covers the direction is asked in order. Within it, the first matching
//!    rule that is not Log decides; if none matches, the tier's default action does.
//! 3. If every tier passed, or none applied, profiles are asked; if none of them matches, the flow is denied.
//! 4. A denial does not hold against the endpoint itself, nor against flows from the endpoint's own node.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    policy::{
        Action, DefaultAction, EndpointPolicy, EndpointTier, ICMP_PROTOCOLS, IcmpMatch, IpVersion,
        PORT_PROTOCOLS, PeerMatch, Policy, PortMatch, Profile, Rule, ServiceMatch, Workload,
    },
    tables::{BuiltinRule, DecidedBy, Direction, RuleName, Verdict},
};

/// First packet of a flow, with the other end known as far as it can be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flow<'a> {
    /// Seen from the endpoint that judges.
    pub direction: Direction,
    /// Address of the other end.
    pub address: IpAddr,
    /// Who has that address.
    pub peer: Peer<'a>,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port; for ICMP `type << 8 | code`; 0 where the protocol has neither.
    pub port: u16,
}

/// Who the other end is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Peer<'a> {
    /// Another workload.
    Workload(&'a Workload),
    /// The endpoint itself.
    Itself(&'a Workload),
    /// The node that the endpoint is on.
    OwnNode,
    /// Nobody that is known.
    Unknown,
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
    /// The family of the other end's address.
    Family,
    /// The other end's address.
    Address,
    /// The other end is not a workload that the rule selects.
    Workload,
}

/// Judges `flow` at the endpoint that `policy` belongs to.
pub fn decide(policy: &EndpointPolicy<'_>, flow: &Flow<'_>) -> Decision {
    let mut steps = Vec::new();
    if flow.peer == Peer::Contested {
        return builtin(Verdict::Deny, BuiltinRule::NoMatch, steps);
    }
    let (verdict, decided_by) = ask_tiers(policy, flow, &mut steps)
        .or_else(|| ask_profiles(policy, flow, &mut steps))
        .unwrap_or((Verdict::Deny, DecidedBy::Builtin(BuiltinRule::NoMatch)));
    match (verdict, flow.peer, flow.direction) {
        (Verdict::Deny, Peer::Itself(_), _) => builtin(Verdict::Allow, BuiltinRule::SelfTraffic, steps),
        (Verdict::Deny, Peer::OwnNode, Direction::Ingress) => {
            builtin(Verdict::Allow, BuiltinRule::FromHost, steps)
        }
        _ => Decision {
            verdict,
            decided_by,
            steps,
        },
    }
}

/// Why `rule` does not match `flow`, or nothing if it does. `own` is the endpoint that judges.
pub fn mismatch(rule: &Rule, own: &Workload, flow: &Flow<'_>) -> Option<Mismatch> {
    let destination = match flow.direction {
        Direction::Ingress => Some(own),
        Direction::Egress => flow.peer.workload(),
    };
    service_mismatch(&rule.service, flow, destination).or_else(|| peer_mismatch(&rule.peer, flow))
}

impl<'a> Peer<'a> {
    /// The workload, if the other end is one.
    pub fn workload(self) -> Option<&'a Workload> {
        match self {
            Self::Workload(workload) | Self::Itself(workload) => Some(workload),
            Self::OwnNode | Self::Unknown | Self::Contested => None,
        }
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

fn ask_tiers(
    policy: &EndpointPolicy<'_>,
    flow: &Flow<'_>,
    steps: &mut Vec<Step>,
) -> Option<(Verdict, DecidedBy)> {
    for tier in &policy.tiers {
        let Some(end) = tier.end(flow.direction) else {
            continue;
        };
        match first_match(tier, policy.workload, flow, steps) {
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
    own: &Workload,
    flow: &Flow<'_>,
    steps: &mut Vec<Step>,
) -> Option<(Action, RuleName)> {
    for policy in &tier.policies {
        let rules = policy.rules(flow.direction).unwrap_or_default();
        if let Some(hit) = first_rule(rules, tier.name, &policy.name, own, flow, steps) {
            return Some(hit);
        }
    }
    None
}

fn first_rule(
    rules: &[Rule],
    tier: &str,
    policy: &str,
    own: &Workload,
    flow: &Flow<'_>,
    steps: &mut Vec<Step>,
) -> Option<(Action, RuleName)> {
    for rule in rules {
        let name = RuleName {
            tier: tier.to_owned(),
            policy: policy.to_owned(),
            rule: Some(rule.index),
        };
        let mismatch = mismatch(rule, own, flow);
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

fn ask_profiles(
    policy: &EndpointPolicy<'_>,
    flow: &Flow<'_>,
    steps: &mut Vec<Step>,
) -> Option<(Verdict, DecidedBy)> {
    for profile in policy.profiles {
        match profile {
            Profile::AllowAll => {
                steps.push(Step::AllowAllProfile);
                return Some((Verdict::Allow, DecidedBy::Builtin(BuiltinRule::NoPolicy)));
            }
            Profile::Rules {
                name,
                ingress,
                egress,
            } => {
                let rules = match flow.direction {
                    Direction::Ingress => ingress,
                    Direction::Egress => egress,
                };
                let hit = first_rule(rules, RuleName::PROFILE_TIER, name, policy.workload, flow, steps);
                if let Some((action, rule)) = hit {
                    let verdict = if action == Action::Allow {
                        Verdict::Allow
                    } else {
                        Verdict::Deny
                    };
                    return Some((verdict, DecidedBy::Rule(rule)));
                }
            }
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

fn service_mismatch(
    service: &ServiceMatch,
    flow: &Flow<'_>,
    destination: Option<&Workload>,
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
    let is_port = |port: &PortMatch| match port {
        PortMatch::Range(first, last) => {
            PORT_PROTOCOLS.contains(&flow.protocol) && (*first..=*last).contains(&flow.port)
        }
        PortMatch::Named(name) => destination.is_some_and(|d| d.names_port(name, flow.protocol, flow.port)),
    };
    let wanted = service.ports.is_empty() || service.ports.iter().any(is_port);
    let unwanted = service.not_ports.iter().any(is_port);
    (!wanted || unwanted).then_some(Mismatch::Port)
}

fn is_icmp(icmp: IcmpMatch, flow: &Flow<'_>) -> bool {
    let [kind, code] = flow.port.to_be_bytes();
    ICMP_PROTOCOLS.contains(&flow.protocol) && icmp.kind == kind && icmp.code.is_none_or(|c| c == code)
}

fn peer_mismatch(peer: &PeerMatch, flow: &Flow<'_>) -> Option<Mismatch> {
    let version = if flow.address.is_ipv4() {
        IpVersion::V4
    } else {
        IpVersion::V6
    };
    if peer.ip_version.is_some_and(|v| v != version) {
        return Some(Mismatch::Family);
    }
    let holds = |net: &IpNet| net.contains(&flow.address);
    let of_family = |net: &IpNet| net.addr().is_ipv4() == flow.address.is_ipv4();
    let in_nets = peer.nets.is_empty() || peer.nets.iter().any(holds);
    let not_nets_apply = peer.not_nets.is_empty() || peer.not_nets.iter().any(of_family);
    if !in_nets || !not_nets_apply || peer.not_nets.iter().any(holds) {
        return Some(Mismatch::Address);
    }
    let workload = flow.peer.workload();
    let selected = peer
        .workload
        .as_ref()
        .is_none_or(|m| workload.is_some_and(|w| m.matches(w)));
    let excluded = peer
        .not_workload
        .as_ref()
        .is_some_and(|m| workload.is_some_and(|w| m.matches(w)));
    (!selected || excluded).then_some(Mismatch::Workload)
}
