//! The rules of one endpoint and direction as a list over numbered peer conditions and numbered names.

use std::collections::{BTreeMap, BTreeSet};

use policies_ir::{
    policy::{
        Action, DefaultAction, EndpointPolicy, NamedPort, PeerMatch, PortMatch, Profile, Rule, ServiceMatch,
    },
    tables::{BUILTIN_RULES, BuiltinRule, Direction, EndpointId, RuleId, RuleName},
};

use crate::{
    cells::{MatcherId, Matchers, Owner, Signature},
    flatten::{Entries, Stage, StageRule, flatten},
    services::ServiceSet,
};

/// Numbers of all rule names in use.
pub(crate) type RuleIds = BTreeMap<RuleName, RuleId>;

/// What an endpoint is judged by in one direction, in order.
pub(crate) struct Program<'a> {
    pub(crate) endpoint: EndpointId,
    pub(crate) direction: Direction,
    /// Named ports of the endpoint itself.
    own_ports: &'a [NamedPort],
    stages: Vec<ProgramStage<'a>>,
}

struct ProgramStage<'a> {
    rules: Vec<ProgramRule<'a>>,
    default_action: DefaultAction,
    default_rule: RuleId,
}

struct ProgramRule<'a> {
    peer: MatcherId,
    service: &'a ServiceMatch,
    action: Action,
    rule: RuleId,
}

/// All of a signature that one program can see: programs answer alike where this is equal.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Visible {
    /// Rules whose peer matches, counted over all stages.
    rules: Vec<usize>,
    /// Named ports of the destination, where the peer is the destination.
    peer_ports: Vec<NamedPort>,
    spares: Option<BuiltinRule>,
}

static ANY_PEER: PeerMatch = PeerMatch {
    ip_version: None,
    nets: Vec::new(),
    not_nets: Vec::new(),
    workload: None,
    not_workload: None,
};

static ANY_SERVICE: ServiceMatch = ServiceMatch {
    protocol: None,
    not_protocol: None,
    icmp: None,
    not_icmp: None,
    ports: Vec::new(),
    not_ports: Vec::new(),
};

/// Numbers the names of all rules and ends of tiers that `policies` can decide by.
pub(crate) fn rule_ids(policies: &[EndpointPolicy<'_>]) -> RuleIds {
    let mut names = BTreeSet::new();
    for policy in policies {
        for direction in [Direction::Ingress, Direction::Egress] {
            for tier in &policy.tiers {
                names.extend(tier.end(direction));
                for policy in &tier.policies {
                    let rules = policy.rules(direction).unwrap_or_default();
                    names.extend(rules.iter().map(|rule| rule_name(tier.name, &policy.name, rule)));
                }
            }
            for profile in policy.profiles {
                let Some((name, rules)) = profile_rules(profile, direction) else {
                    continue;
                };
                names.extend(
                    rules
                        .iter()
                        .map(|rule| rule_name(RuleName::PROFILE_TIER, name, rule)),
                );
            }
        }
    }
    names.into_iter().zip((BUILTIN_RULES..).map(RuleId)).collect()
}

impl<'a> Program<'a> {
    pub(crate) fn new(
        endpoint: EndpointId,
        direction: Direction,
        policy: &EndpointPolicy<'a>,
        ids: &RuleIds,
        matchers: &mut Matchers<'a>,
    ) -> Self {
        // The names were numbered from these same policies. Should one be missing, it decides as no match.
        let id = |name: RuleName| ids.get(&name).copied().unwrap_or(BuiltinRule::NoMatch.id());
        let any_peer = matchers.id(&ANY_PEER);
        let mut rules_of = |rules: &'a [Rule], tier: &str, policy: &str| {
            let rules = rules.iter().filter(|rule| rule.action != Action::Log);
            let rules = rules.map(|rule| ProgramRule {
                peer: matchers.id(&rule.peer),
                service: &rule.service,
                action: rule.action,
                rule: id(rule_name(tier, policy, rule)),
            });
            rules.collect::<Vec<_>>()
        };
        let mut stages = Vec::new();
        for tier in &policy.tiers {
            let Some(end) = tier.end(direction) else { continue };
            let mut rules = Vec::new();
            for policy in &tier.policies {
                let own = policy.rules(direction).unwrap_or_default();
                rules.extend(rules_of(own, tier.name, &policy.name));
            }
            stages.push(ProgramStage {
                rules,
                default_action: tier.default_action,
                default_rule: id(end),
            });
        }
        let mut rules = Vec::new();
        for profile in policy.profiles {
            if let Some((name, own)) = profile_rules(profile, direction) {
                rules.extend(rules_of(own, RuleName::PROFILE_TIER, name));
            }
            if *profile == Profile::AllowAll {
                let rule = BuiltinRule::NoPolicy.id();
                rules.push(ProgramRule {
                    peer: any_peer,
                    service: &ANY_SERVICE,
                    action: Action::Allow,
                    rule,
                });
            }
        }
        for rule in rules.iter_mut().filter(|rule| rule.action == Action::Pass) {
            rule.action = Action::Deny;
        }
        let default_rule = BuiltinRule::NoMatch.id();
        stages.push(ProgramStage {
            rules,
            default_action: DefaultAction::Deny,
            default_rule,
        });
        Self {
            endpoint,
            direction,
            own_ports: &policy.workload.named_ports,
            stages,
        }
    }

    /// Names of ports that the program asks its peers for.
    pub(crate) fn peer_port_names(&self) -> impl Iterator<Item = &'a str> + '_ {
        let rules = self.stages.iter().flat_map(|stage| &stage.rules);
        let rules = rules.filter(|_| self.direction == Direction::Egress);
        let ports = rules.flat_map(|rule| rule.service.ports.iter().chain(&rule.service.not_ports));
        ports.filter_map(|port| match port {
            PortMatch::Named(name) => Some(name.as_str()),
            PortMatch::Range(..) => None,
        })
    }

    /// What the program sees of a peer.
    pub(crate) fn visible(&self, peer: &Signature) -> Visible {
        let rules = self.stages.iter().flat_map(|stage| &stage.rules).enumerate();
        let matching = rules.filter(|(_, rule)| peer.matchers.binary_search(&rule.peer).is_ok());
        let peer_ports = match self.direction {
            Direction::Ingress => Vec::new(),
            Direction::Egress => peer.named_ports.clone(),
        };
        let spares = match (peer.owner, self.direction) {
            (Owner::Endpoint(id), _) if id == self.endpoint => Some(BuiltinRule::SelfTraffic),
            (Owner::Node, Direction::Ingress) => Some(BuiltinRule::FromHost),
            _ => None,
        };
        Visible {
            rules: matching.map(|(i, _)| i).collect(),
            peer_ports,
            spares,
        }
    }

    /// Entries for a peer.
    pub(crate) fn entries(&self, peer: &Visible) -> Entries {
        let destination = match self.direction {
            Direction::Ingress => self.own_ports,
            Direction::Egress => &peer.peer_ports,
        };
        let mut number = 0;
        let stages = self.stages.iter().map(|stage| {
            let mut rules = Vec::new();
            for rule in &stage.rules {
                if peer.rules.binary_search(&number).is_ok() {
                    let services = ServiceSet::of(rule.service, destination);
                    rules.push(StageRule {
                        services,
                        action: rule.action,
                        rule: rule.rule,
                    });
                }
                number += 1;
            }
            Stage {
                rules,
                default_action: stage.default_action,
                default_rule: stage.default_rule,
            }
        });
        flatten(&stages.collect::<Vec<_>>(), peer.spares)
    }
}

fn rule_name(tier: &str, policy: &str, rule: &Rule) -> RuleName {
    RuleName {
        tier: tier.to_owned(),
        policy: policy.to_owned(),
        rule: Some(rule.index),
    }
}

fn profile_rules(profile: &Profile, direction: Direction) -> Option<(&str, &[Rule])> {
    match (profile, direction) {
        (Profile::AllowAll, _) => None,
        (Profile::Rules { name, ingress, .. }, Direction::Ingress) => Some((name, ingress)),
        (Profile::Rules { name, egress, .. }, Direction::Egress) => Some((name, egress)),
    }
}
