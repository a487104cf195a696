//! ClusterNetworkPolicy as rules of the ordered form: `tier: Admin` stands before what users write, `Baseline`
//! behind it.
//!
//! It fails closed as its authors ask: a rule that cannot be understood is left out if it accepts, and denies
//! everything if it denies or passes. In a policy whose tier, priority or subject cannot be understood, that is
//! every rule.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::{
    cluster_policy::{ClusterNetworkPolicy, NamespacedPods, Peer, Port, Protocol},
    selector::Labels,
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use policies_ir::policy::{
    Action, Directions, EndMatch, Kinds, NamespaceMatch, Order, Phase, Policy, PortMatch, Rule, SCTP,
    Selector, ServiceMatch, TCP, TieBreak, UDP, WorkloadMatch,
};

use crate::{
    calico::{KUBE_ADMIN_TIER, KUBE_BASELINE_TIER},
    field::{Errors, Path, read_cidr, read_port_number, read_port_range, read_selector, within_limit, wrong},
};

/// Rules of one direction, peers of one rule, entries of each list in a rule.
const MAX_ITEMS: usize = 25;
const MAX_NAME: usize = 100;

/// Labels and addresses of each node.
pub(crate) type Nodes = BTreeMap<String, NodeView>;

/// What policy sees of a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeView {
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The first of each family, internal ones before others.
    pub primary: Vec<IpAddr>,
}

/// Tier and policy.
pub(crate) fn read(object: &ClusterNetworkPolicy, nodes: &Nodes, errors: &mut Errors) -> (String, Policy) {
    let spec = &object.spec;
    let found_before = errors.len();
    let name = object.metadata.name.clone().unwrap_or_default();
    let tier = match spec.tier.as_str() {
        "Baseline" => KUBE_BASELINE_TIER,
        "Admin" => KUBE_ADMIN_TIER,
        other => {
            let problem = format!("unknown tier {other:?}");
            wrong(
                errors,
                &Path::SPEC.field("tier"),
                problem,
                "use Admin or Baseline",
            );
            KUBE_ADMIN_TIER
        }
    };
    let in_range = (0..=1000).contains(&spec.priority);
    // What it denies must not come too late.
    let priority = if in_range {
        f64::from(spec.priority)
    } else {
        f64::NEG_INFINITY
    };
    if !in_range {
        let problem = format!("priority {} is out of range", spec.priority);
        wrong(
            errors,
            &Path::SPEC.field("priority"),
            problem,
            "use a number from 0 to 1000",
        );
    }
    let subject_path = Path::SPEC.field("subject");
    let subject = match (&spec.subject.namespaces, &spec.subject.pods) {
        (Some(namespaces), None) => read_namespaces(namespaces, &subject_path.field("namespaces"), errors),
        (None, Some(pods)) => read_pods(pods, &subject_path.field("pods"), errors),
        _ => {
            let fix = "give exactly one of namespaces and pods; `namespaces: {}` is every pod";
            wrong(errors, &subject_path, "is not clear", fix);
            None
        }
    };
    // Without its subject nobody knows whom it protects: it protects everyone.
    let applies_to = subject.unwrap_or(WorkloadMatch {
        kinds: Kinds::Pods,
        namespace: NamespaceMatch::Any,
        labels: Selector::everything(),
    });
    let whole = errors.len() == found_before;
    let ingress = spec.ingress.iter().map(|rule| Parts {
        name: &rule.name,
        action: &rule.action,
        peers: &rule.from,
        protocols: rule.protocols.as_deref(),
        is_egress: false,
    });
    let ingress = read_rules(ingress, nodes, whole, "ingress", errors);
    let egress = spec.egress.iter().map(|rule| Parts {
        name: &rule.name,
        action: &rule.action,
        peers: &rule.to,
        protocols: rule.protocols.as_deref(),
        is_egress: true,
    });
    let egress = read_rules(egress, nodes, whole, "egress", errors);
    let policy = Policy {
        name: format!("ClusterNetworkPolicy {name}"),
        tie_break: TieBreak::new(&name, "", "ClusterNetworkPolicy"),
        order: Order(Some(priority)),
        phase: Phase::Local,
        applies_to,
        directions: Directions {
            ingress: !ingress.is_empty(),
            egress: !egress.is_empty(),
        },
        ingress,
        egress,
    };
    (tier.to_owned(), policy)
}

/// A rule of either direction.
struct Parts<'a> {
    name: &'a str,
    action: &'a str,
    peers: &'a [Peer],
    protocols: Option<&'a [Protocol]>,
    is_egress: bool,
}

fn read_rules<'a>(
    rules: impl ExactSizeIterator<Item = Parts<'a>>,
    nodes: &Nodes,
    whole: bool,
    direction: &'static str,
    errors: &mut Errors,
) -> Vec<Rule> {
    let path = Path::SPEC.field(direction);
    if !within_limit(rules.len(), MAX_ITEMS, "rules", &path, errors) {
        return vec![rule(
            0,
            Action::Deny,
            EndMatch::default(),
            ServiceMatch::default(),
        )];
    }
    let mut read = Vec::new();
    for ((index, i), parts) in (0u32..).zip(0usize..).zip(rules) {
        let path = path.index(i);
        let found_before = errors.len();
        let understood = read_rule(index, &parts, nodes, &path, errors);
        if whole && errors.len() == found_before {
            read.extend(understood);
        } else if parts.action != "Accept" {
            read.push(rule(
                index,
                Action::Deny,
                EndMatch::default(),
                ServiceMatch::default(),
            ));
        }
    }
    read
}

/// One rule for each peer and protocol.
fn read_rule(
    index: u32,
    parts: &Parts<'_>,
    nodes: &Nodes,
    path: &Path<'_>,
    errors: &mut Errors,
) -> Vec<Rule> {
    if parts.name.chars().count() > MAX_NAME {
        let fix = "shorten it to 100 characters";
        wrong(errors, &path.field("name"), "is too long", fix);
    }
    let action = match parts.action {
        "Accept" => Action::Allow,
        "Deny" => Action::Deny,
        "Pass" => Action::Pass,
        other => {
            let problem = format!("unknown action {other:?}");
            wrong(errors, &path.field("action"), problem, "use Accept, Deny or Pass");
            return Vec::new();
        }
    };
    let peers_path = path.field(if parts.is_egress { "to" } else { "from" });
    if parts.peers.is_empty() {
        let fix = "name at least one; `namespaces: {}` is every pod";
        wrong(errors, &peers_path, "is empty", fix);
    }
    within_limit(parts.peers.len(), MAX_ITEMS, "peers", &peers_path, errors);
    let services = read_protocols(parts.protocols, &path.field("protocols"), errors);
    let asks_name = services
        .iter()
        .any(|service| matches!(service.ports.first(), Some(PortMatch::Named(_))));
    let mut rules = Vec::new();
    for (i, peer) in parts.peers.iter().enumerate().take(MAX_ITEMS) {
        let peer_path = peers_path.index(i);
        let outside = peer.nodes.is_some() || !peer.networks.is_empty() || !peer.domain_names.is_empty();
        if outside && asks_name {
            let fix = "use numbers in a rule for networks, nodes or domainNames";
            wrong(errors, &peer_path, "has no named ports", fix);
        }
        if outside && !parts.is_egress {
            let fix = "use namespaces or pods as sources";
            wrong(
                errors,
                &peer_path,
                "networks, nodes and domainNames are for egress only",
                fix,
            );
        }
        let ends = read_peer(peer, action, nodes, &peer_path, errors);
        for end in &ends {
            let rule_for = |service: &ServiceMatch| rule(index, action, end.clone(), service.clone());
            rules.extend(services.iter().map(rule_for));
        }
    }
    rules
}

fn rule(index: u32, action: Action, peer: EndMatch, service: ServiceMatch) -> Rule {
    Rule {
        index,
        action,
        own: EndMatch::default(),
        peer,
        service,
    }
}

/// The end that a peer stands for; none if no node has the labels that it wants.
fn read_peer(
    peer: &Peer,
    action: Action,
    nodes: &Nodes,
    path: &Path<'_>,
    errors: &mut Errors,
) -> Vec<EndMatch> {
    let given = [
        peer.namespaces.is_some(),
        peer.pods.is_some(),
        peer.nodes.is_some(),
        !peer.networks.is_empty(),
        !peer.domain_names.is_empty(),
    ];
    if given.iter().filter(|given| **given).count() != 1 {
        let fix = "give exactly one of namespaces, pods, nodes, networks and domainNames";
        wrong(errors, path, "is not clear", fix);
        return Vec::new();
    }
    let selected = |workload: Option<WorkloadMatch>| {
        workload.map(|workload| EndMatch {
            workload: Some(workload),
            ..EndMatch::default()
        })
    };
    if let Some(namespaces) = &peer.namespaces {
        let read = read_namespaces(namespaces, &path.field("namespaces"), errors);
        return selected(read).into_iter().collect();
    }
    if let Some(pods) = &peer.pods {
        let read = read_pods(pods, &path.field("pods"), errors);
        return selected(read).into_iter().collect();
    }
    if let Some(selector) = &peer.nodes {
        let Some(selector) = read_selector(selector, &path.field("nodes"), errors) else {
            return Vec::new();
        };
        let nodes = nodes
            .values()
            .filter(|node| selector.matches_labels(&node.labels));
        let nets: Vec<IpNet> = nodes
            .flat_map(|node| &node.addresses)
            .map(|a| (*a).into())
            .collect();
        return if nets.is_empty() {
            Vec::new()
        } else {
            vec![nets_end(nets)]
        };
    }
    if !peer.domain_names.is_empty() {
        let path = path.field("domainNames");
        within_limit(peer.domain_names.len(), MAX_ITEMS, "names", &path, errors);
        if action != Action::Allow {
            let problem = "names are learned while they are used, so they cannot deny or pass";
            wrong(errors, &path, problem, "use them in rules that accept");
        }
        let names = peer.domain_names.iter().enumerate().take(MAX_ITEMS);
        let domains: Vec<_> = names
            .filter_map(|(i, text)| crate::calico::read_domain(text, &path.index(i), errors))
            .collect();
        return vec![EndMatch {
            domains,
            ..EndMatch::default()
        }];
    }
    let path = path.field("networks");
    within_limit(peer.networks.len(), MAX_ITEMS, "networks", &path, errors);
    let networks = peer.networks.iter().enumerate().take(MAX_ITEMS);
    let nets: Vec<IpNet> = networks
        .filter_map(|(i, text)| read_cidr(text, &path.index(i), errors))
        .collect();
    vec![nets_end(nets)]
}

fn nets_end(nets: Vec<IpNet>) -> EndMatch {
    EndMatch {
        nets,
        ..EndMatch::default()
    }
}

fn read_namespaces(selector: &LabelSelector, path: &Path<'_>, errors: &mut Errors) -> Option<WorkloadMatch> {
    Some(WorkloadMatch {
        kinds: Kinds::Pods,
        namespace: NamespaceMatch::Selected(read_selector(selector, path, errors)?),
        labels: Selector::everything(),
    })
}

fn read_pods(pods: &NamespacedPods, path: &Path<'_>, errors: &mut Errors) -> Option<WorkloadMatch> {
    let namespace = read_selector(&pods.namespace_selector, &path.field("namespaceSelector"), errors);
    let labels = read_selector(&pods.pod_selector, &path.field("podSelector"), errors);
    Some(WorkloadMatch {
        kinds: Kinds::Pods,
        namespace: NamespaceMatch::Selected(namespace?),
        labels: labels?,
    })
}

/// One condition for each entry; one that holds of everything if none is given.
fn read_protocols(protocols: Option<&[Protocol]>, path: &Path<'_>, errors: &mut Errors) -> Vec<ServiceMatch> {
    let Some(protocols) = protocols else {
        return vec![ServiceMatch::default()];
    };
    if protocols.is_empty() {
        wrong(
            errors,
            path,
            "is empty",
            "name a protocol, or leave the field out",
        );
    }
    within_limit(protocols.len(), MAX_ITEMS, "protocols", path, errors);
    let mut services = Vec::new();
    for (i, protocol) in protocols.iter().enumerate().take(MAX_ITEMS) {
        services.extend(read_protocol(protocol, &path.index(i), errors));
    }
    services
}

fn read_protocol(protocol: &Protocol, path: &Path<'_>, errors: &mut Errors) -> Option<ServiceMatch> {
    let numbered = [
        (TCP, "tcp", &protocol.tcp),
        (UDP, "udp", &protocol.udp),
        (SCTP, "sctp", &protocol.sctp),
    ];
    let mut given = numbered
        .into_iter()
        .filter_map(|(number, name, ports)| Some((number, name, ports.as_ref()?)));
    let name = &protocol.destination_named_port;
    match (given.next(), given.next(), name.as_str()) {
        (Some((number, field, ports)), None, "") => {
            let path = path.field(field);
            let ports = match &ports.destination_port {
                None => Vec::new(),
                Some(port) => vec![read_port(port, &path.field("destinationPort"), errors)?],
            };
            Some(ServiceMatch {
                protocol: Some(number),
                ports,
                ..ServiceMatch::default()
            })
        }
        (None, None, name) if !name.is_empty() => Some(ServiceMatch {
            ports: vec![PortMatch::Named(name.to_owned())],
            ..ServiceMatch::default()
        }),
        _ => {
            let fix = "give exactly one of tcp, udp, sctp and destinationNamedPort";
            wrong(errors, path, "is not clear", fix);
            None
        }
    }
}

fn read_port(port: &Port, path: &Path<'_>, errors: &mut Errors) -> Option<PortMatch> {
    match (port.number, port.range) {
        (Some(number), None) => {
            let port = read_port_number(number, &path.field("number"), errors)?;
            Some(PortMatch::Range(port, port))
        }
        (None, Some(range)) => {
            let range_path = path.field("range");
            let (first, last) = (range_path.field("start"), range_path.field("end"));
            read_port_range((range.start, &first), (range.end, &last), errors)
        }
        _ => {
            wrong(
                errors,
                path,
                "is not clear",
                "give exactly one of number and range",
            );
            None
        }
    }
}
