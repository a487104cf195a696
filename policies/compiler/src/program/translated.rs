//! What comes to a port of the node that leads to a pod: forwarded, though it carries the node's address.
//!
//! The rules are those of the host endpoint, narrowed to that port on the wire. Whether they hold of the destination, be it the
//! one on the wire or the one that comes of it, is known before any packet: so a packet costs no lookup more, and a
//! flow is judged again when the port leads elsewhere as when policy changes.

use policies_ir::{
    cluster::{Cluster, Translation},
    policy::{Action, DefaultAction, EndMatch, EndpointTier, Passing, PortMatch, Rule, ServiceMatch},
    tables::{BuiltinRule, Direction, RuleId},
};

use super::{ANY_END, Families, Numbers, OwnEnd, OwnSides, ProgramRule, ProgramStage, rule_name, version_of};

/// One end that a packet goes to: the node's, or the pod's.
struct Destination<'a> {
    own: &'a OwnSides<'a>,
    port: u16,
}

/// What is asked before all else at the node: about each port that leads to a pod, first about the one end, then about
/// the other, and then nothing more.
pub(super) fn stages<N: Numbers>(
    passing: &Passing<'_>,
    node: &OwnSides<'_>,
    cluster: &Cluster,
    numbers: &mut N,
) -> Vec<ProgramStage> {
    let mut stages = Vec::new();
    for translation in &cluster.translations {
        stages.extend(of_port(translation, passing, node, cluster, numbers));
    }
    stages
}

fn of_port<N: Numbers>(
    translation: &Translation,
    passing: &Passing<'_>,
    node: &OwnSides<'_>,
    cluster: &Cluster,
    numbers: &mut N,
) -> Vec<ProgramStage> {
    let pod = OwnSides::behind(translation, cluster);
    let on_wire = Destination {
        own: node,
        port: translation.port,
    };
    let behind = Destination {
        own: &pod,
        port: translation.workload_port,
    };
    let before = passing.before.iter().map(|tier| (tier, &on_wire));
    let after = passing.after.iter().map(|tier| (tier, &behind));
    let mut stages = Vec::new();
    for (tier, to) in before.chain(after) {
        stages.extend(of_tier(tier, to, translation, numbers));
    }
    let open = whole(translation, (Action::Allow, BuiltinRule::NoPolicy.id()), numbers);
    stages.push(ProgramStage::of_some(vec![open]));
    stages
}

fn of_tier<N: Numbers>(
    tier: &EndpointTier<'_>,
    to: &Destination<'_>,
    translation: &Translation,
    numbers: &mut N,
) -> Option<ProgramStage> {
    let end = tier.end(Direction::Ingress)?;
    let mut rules = Vec::new();
    for policy in &tier.policies {
        let own = policy.rules(Direction::Ingress).unwrap_or_default();
        // Log changes no verdict, and names are learned for destinations of what leaves.
        let counts = |rule: &&Rule| rule.action != Action::Log && rule.peer.domains.is_empty();
        for rule in own.iter().filter(counts) {
            if let Some(service) = narrowed(rule, to, translation) {
                let said = (
                    rule.action,
                    numbers.rule(rule_name(tier.name, &policy.name, rule)),
                );
                rules.push(at_port(translation, &rule.peer, &service, said, numbers));
            }
        }
    }
    if tier.default_action == DefaultAction::Deny {
        let end = numbers.rule(end);
        rules.push(whole(translation, (Action::Deny, end), numbers));
    }
    Some(ProgramStage::of_some(rules))
}

/// What the rule holds of packets to the port, in terms of what is on the wire; nothing if that is none of them.
fn narrowed(rule: &Rule, to: &Destination<'_>, translation: &Translation) -> Option<ServiceMatch> {
    let OwnEnd::Itself { families, declares } = to.own.end(&rule.own) else {
        return None;
    };
    let service = &rule.service;
    let protocol = translation.protocol;
    let is_port = |port: &PortMatch| match port {
        PortMatch::Range(first, last) => (*first..=*last).contains(&to.port),
        PortMatch::Named(name) => declares && to.own.workload.names_port(name, protocol, to.port),
    };
    let fits = families.has(version_of(translation.address))
        && service.protocol.is_none_or(|wanted| wanted == protocol)
        && service.not_protocol != Some(protocol)
        && service.icmp.is_none()
        && (service.ports.is_empty() || service.ports.iter().any(is_port))
        && !service.not_ports.iter().any(is_port);
    fits.then(|| ServiceMatch {
        source_ports: service.source_ports.clone(),
        not_source_ports: service.not_source_ports.clone(),
        ..on_wire(translation)
    })
}

/// A rule for all packets to the port.
fn whole<N: Numbers>(translation: &Translation, said: (Action, RuleId), numbers: &mut N) -> ProgramRule {
    at_port(translation, &ANY_END, &on_wire(translation), said, numbers)
}

fn at_port<N: Numbers>(
    translation: &Translation,
    peer: &EndMatch,
    service: &ServiceMatch,
    (action, rule): (Action, RuleId),
    numbers: &mut N,
) -> ProgramRule {
    let (service, sets) = numbers.service(service);
    ProgramRule {
        peer: numbers.matcher(peer, Direction::Ingress),
        own: match translation.at {
            // The other addresses of the node have the port for themselves.
            Some(at) => {
                let there = EndMatch {
                    nets: vec![at.into()],
                    ..EndMatch::default()
                };
                OwnEnd::Anyone(numbers.matcher(&there, Direction::Ingress))
            }
            None => OwnEnd::Itself {
                families: Families::only(version_of(translation.address)),
                declares: false,
            },
        },
        service,
        sets,
        action,
        rule,
    }
}

fn on_wire(translation: &Translation) -> ServiceMatch {
    ServiceMatch {
        protocol: Some(translation.protocol),
        ports: vec![PortMatch::Range(translation.port, translation.port)],
        ..ServiceMatch::default()
    }
}
