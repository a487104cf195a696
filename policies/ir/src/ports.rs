//! Which ports a policy lets flows have at all, whoever the other end is: a bound for whoever knows ports and no peers.
//!
//! The bound is never too small for flows to others: a port of a flow that [`crate::decide()`] allows is in it, unless the
//! flow is one of the endpoint to itself, which no policy refuses ([`BuiltinRule::SelfTraffic`]). Those are not counted,
//! or the bound would be all ports: whoever limits a pod by it adds the ports that the pod itself declares. It may be too
//! large, where rules of several peers together refuse a port that no single one refuses to everybody.
//!
//! [`BuiltinRule::SelfTraffic`]: crate::tables::BuiltinRule::SelfTraffic

use crate::{
    policy::{
        Action, DefaultAction, EndMatch, EndpointPolicy, Last, PortMatch, ProfileRules, Rule, ServiceMatch,
        TCP,
    },
    tables::Direction,
};

/// A set of port numbers.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet(Box<[u64; 1024]>);

impl PortSet {
    /// None.
    pub fn none() -> Self {
        Self(Box::new([0; 1024]))
    }

    /// All, 0 included.
    pub fn all() -> Self {
        Self(Box::new([u64::MAX; 1024]))
    }

    /// Adds the ports from `first` to `last`.
    pub fn insert(&mut self, first: u16, last: u16) {
        for port in first..=last {
            self.0[usize::from(port / 64)] |= 1 << (port % 64);
        }
    }

    /// Whether it has this port.
    pub fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port / 64)] & (1 << (port % 64)) != 0
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ports in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        (0..=u16::MAX).filter(|port| self.contains(*port))
    }

    fn with(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(a, b)| *a |= b);
        self
    }

    fn within(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(a, b)| *a &= b);
        self
    }

    fn without(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(a, b)| *a &= !b);
        self
    }
}

impl std::fmt::Debug for PortSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PortSet({} ports)", self.len())
    }
}

/// TCP ports that the endpoint may connect to at all. `named` tells which ports a name in a rule can mean.
pub fn egress_tcp(policy: &EndpointPolicy<'_>, named: impl Fn(&str) -> PortSet) -> PortSet {
    let mut walk = Walk {
        open: PortSet::all(),
        allowed: PortSet::none(),
        named: &named,
    };
    for tier in &policy.tiers {
        let covering: Vec<&[Rule]> = tier
            .policies
            .iter()
            .filter_map(|policy| policy.rules(Direction::Egress))
            .collect();
        if covering.is_empty() {
            continue;
        }
        let passed = walk.ask(covering.into_iter().flatten());
        walk.open = match tier.default_action {
            DefaultAction::Deny => passed,
            DefaultAction::Pass => walk.open.with(&passed),
        };
    }
    match &policy.last {
        Last::Allow => walk.allow_rest(),
        Last::Undecided => {}
        Last::Profiles(profiles) => {
            for profile in profiles {
                match &profile.rules {
                    ProfileRules::AllowAll => walk.allow_rest(),
                    // What passes in a profile is dropped.
                    ProfileRules::Own { egress, .. } => drop(walk.ask(egress)),
                }
            }
        }
    }
    walk.allowed
}

struct Walk<'a> {
    /// Ports for which no rule so far has decided the flows to everybody.
    open: PortSet,
    allowed: PortSet,
    named: &'a dyn Fn(&str) -> PortSet,
}

impl Walk<'_> {
    /// Asks rules in their order; the answer is what they pass on.
    fn ask<'r>(&mut self, rules: impl IntoIterator<Item = &'r Rule>) -> PortSet {
        let mut passed = PortSet::none();
        for rule in rules {
            let Some(ports) = self.ports(&rule.service) else {
                continue;
            };
            let ports = ports.within(&self.open);
            match rule.action {
                Action::Allow => self.allowed = self.allowed.clone().with(&ports),
                Action::Pass => passed = passed.with(&ports),
                Action::Deny => {}
                Action::Log => continue,
            }
            if is_about_everybody(rule) {
                self.open = self.open.clone().without(&ports);
            }
        }
        passed
    }

    fn allow_rest(&mut self) {
        let open = std::mem::replace(&mut self.open, PortSet::none());
        self.allowed = self.allowed.clone().with(&open);
    }

    /// Ports of TCP flows that a rule for this service can match; none if it is about other protocols.
    fn ports(&self, service: &ServiceMatch) -> Option<PortSet> {
        let is_tcp = service.protocol.is_none_or(|protocol| protocol == TCP)
            && service.not_protocol != Some(TCP)
            && service.icmp.is_none();
        if !is_tcp {
            return None;
        }
        let set = |matches: &[PortMatch], named: &dyn Fn(&str) -> PortSet| {
            let mut ports = PortSet::none();
            for found in matches {
                match found {
                    PortMatch::Range(first, last) => ports.insert(*first, *last),
                    PortMatch::Named(name) => {
                        ports = std::mem::replace(&mut ports, PortSet::none()).with(&named(name));
                    }
                }
            }
            ports
        };
        let ports = match service.ports.is_empty() {
            true => PortSet::all(),
            false => set(&service.ports, self.named),
        };
        // A name excludes its port for some peers only.
        let excluded = set(&service.not_ports, &|_name| PortSet::none());
        Some(ports.without(&excluded))
    }
}

/// Whether every TCP flow to one of the rule's ports matches it, whatever its other end and its source port.
fn is_about_everybody(rule: &Rule) -> bool {
    let anybody = EndMatch::default();
    let service = &rule.service;
    let names = |ports: &[PortMatch]| ports.iter().any(|port| matches!(port, PortMatch::Named(_)));
    rule.own == anybody
        && rule.peer == anybody
        && service.source_ports.is_empty()
        && service.not_source_ports.is_empty()
        && service.not_icmp.is_none()
        && !names(&service.ports)
        && !names(&service.not_ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Directions, Kinds, NamespaceMatch, Order, Phase, Selector, TieBreak, WorkloadMatch};
    use crate::policy::{EndpointTier, EndpointToHost, Policy, Profile, Workload};

    fn rule(action: Action, ports: &[(u16, u16)], peer: Option<&str>) -> Rule {
        Rule {
            index: 0,
            action,
            own: EndMatch::default(),
            peer: EndMatch {
                nets: peer.iter().map(|net| net.parse().expect("a network")).collect(),
                ..EndMatch::default()
            },
            service: ServiceMatch {
                protocol: Some(TCP),
                ports: ports.iter().map(|(a, b)| PortMatch::Range(*a, *b)).collect(),
                ..ServiceMatch::default()
            },
        }
    }

    fn policy(egress: Vec<Rule>) -> Policy {
        Policy {
            name: "p".into(),
            tie_break: TieBreak::default(),
            order: Order(None),
            phase: Phase::Local,
            applies_to: WorkloadMatch {
                kinds: Kinds::Pods,
                namespace: NamespaceMatch::Any,
                labels: Selector::everything(),
            },
            directions: Directions {
                ingress: false,
                egress: true,
            },
            ingress: Vec::new(),
            egress,
        }
    }

    fn allowed(tiers: &[(DefaultAction, Policy)]) -> PortSet {
        let workload = Workload::default();
        let open = Profile {
            name: "ns".into(),
            rules: ProfileRules::AllowAll,
        };
        let tiers = tiers.iter().map(|(default_action, policy)| EndpointTier {
            name: "t",
            default_action: *default_action,
            policies: vec![policy],
        });
        let policy = EndpointPolicy {
            workload: &workload,
            failsafe: None,
            tiers: tiers.collect(),
            last: Last::Profiles(vec![&open]),
            to_host: EndpointToHost::Drop,
            passing: None,
        };
        egress_tcp(&policy, |name| {
            let mut ports = PortSet::none();
            if name == "web" {
                ports.insert(8080, 8080);
            }
            ports
        })
    }

    #[test]
    fn a_pod_without_egress_policy_connects_anywhere() {
        assert_eq!(allowed(&[]), PortSet::all());
        let ingress = Policy {
            directions: Directions {
                ingress: true,
                egress: false,
            },
            ..policy(vec![])
        };
        assert_eq!(allowed(&[(DefaultAction::Deny, ingress)]), PortSet::all());
    }

    #[test]
    fn allowed_ports_of_any_peer_count_and_no_others() {
        let one = policy(vec![rule(
            Action::Allow,
            &[(443, 443), (5432, 5433)],
            Some("10.0.0.0/8"),
        )]);
        let ports = allowed(&[(DefaultAction::Deny, one)]);
        assert_eq!(ports.iter().collect::<Vec<_>>(), [443, 5432, 5433]);
        assert!(allowed(&[(DefaultAction::Deny, policy(vec![]))]).is_empty());
        let mut udp = rule(Action::Allow, &[(53, 53)], None);
        udp.service.protocol = Some(crate::policy::UDP);
        assert!(allowed(&[(DefaultAction::Deny, policy(vec![udp]))]).is_empty());
        let mut named = rule(Action::Allow, &[], None);
        named.service.ports = vec![PortMatch::Named("web".into())];
        let ports = allowed(&[(DefaultAction::Deny, policy(vec![named]))]);
        assert_eq!(ports.iter().collect::<Vec<_>>(), [8080]);
    }

    #[test]
    fn an_earlier_refusal_counts_only_if_it_is_for_everybody() {
        let tiers = |peer| {
            [
                (
                    DefaultAction::Pass,
                    policy(vec![rule(Action::Deny, &[(25, 25)], peer)]),
                ),
                (
                    DefaultAction::Deny,
                    policy(vec![rule(Action::Allow, &[(1, 100)], None)]),
                ),
            ]
        };
        let all = allowed(&tiers(None));
        assert_eq!((all.len(), all.contains(25)), (99, false));
        assert!(allowed(&tiers(Some("10.0.0.0/8"))).contains(25));
        let passing = [
            (
                DefaultAction::Deny,
                policy(vec![
                    rule(Action::Pass, &[(80, 80)], None),
                    rule(Action::Allow, &[(81, 81)], None),
                ]),
            ),
            (
                DefaultAction::Deny,
                policy(vec![rule(Action::Allow, &[(1, 90)], None)]),
            ),
        ];
        assert_eq!(allowed(&passing).iter().collect::<Vec<_>>(), [80, 81]);
    }
}
