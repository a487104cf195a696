//! Kubernetes NetworkPolicy as rules of the ordered form.
//!
//! One reader serves both [`validate`] and the compiler, so what admission lets through and what the compiler
//! understands cannot differ. The reader fails closed: a peer or port that it cannot understand matches
//! nothing (a rule whose peers are all bad does not become a rule without peers, which would match everyone),
//! a policy whose types are bad isolates in both directions and allows nothing, and one whose pod selector is
//! bad does so to its whole namespace.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use policies_ir::policy::{
    Action, Directions, EndMatch, Kinds, NamespaceMatch, Order, Phase, Policy, PortMatch, Rule, SCTP,
    Selector, ServiceMatch, TCP, TieBreak, UDP, WorkloadMatch,
};

use crate::field::{
    Errors, FieldError, Path, read_cidr, read_port_number, read_port_range, read_selector, within_limit,
    wrong,
};

/// Rules that one policy may have in one direction, peers and ports that one rule may have, and exceptions of one `ipBlock`.
/// Kubernetes bounds the object alone, and an object that the API takes has room for no more, unless it says next to
/// nothing. Whether the kernel can hold the tables is for admission to find out.
const MAX_ITEMS: usize = 65_536;

/// Place of every Kubernetes policy within the tier `default`, as in Calico.
const POLICY_ORDER: f64 = 1000.0;

/// Checks everything that the compiler would have to ignore or to close.
pub fn validate(policy: &NetworkPolicy) -> Result<(), Vec<FieldError>> {
    let mut errors = Errors::new();
    read(policy, &mut errors);
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Number of a protocol that NetworkPolicy and container ports know.
pub(crate) fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "TCP" => Some(TCP),
        "UDP" => Some(UDP),
        "SCTP" => Some(SCTP),
        _ => None,
    }
}

/// The policy, closed where it cannot be understood.
pub(crate) fn read(object: &NetworkPolicy, errors: &mut Errors) -> Policy {
    let namespace = object.metadata.namespace.clone().unwrap_or_default();
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let spec = object.spec.clone().unwrap_or_default();
    let root = Path::Root("spec");
    let directions = read_directions(&spec, &root, errors);
    let ingress = spec.ingress.unwrap_or_default();
    let ingress = ingress
        .iter()
        .map(|rule| (rule.from.as_deref(), rule.ports.as_deref()));
    let ingress = read_rules(
        ingress,
        &namespace,
        &Path::Field(&root, "ingress"),
        "from",
        errors,
    );
    let egress = spec.egress.unwrap_or_default();
    let egress = egress
        .iter()
        .map(|rule| (rule.to.as_deref(), rule.ports.as_deref()));
    let egress = read_rules(egress, &namespace, &Path::Field(&root, "egress"), "to", errors);
    let selector = spec.pod_selector.unwrap_or_default();
    let selector = read_selector(&selector, &Path::Field(&root, "podSelector"), errors);
    // Without its selector nobody knows whom the policy protects, nor whom its rules were meant for; without
    // its types, which of its rules were meant to count.
    let labels = selector.clone().unwrap_or_else(Selector::everything);
    let (ingress, egress) = match (&selector, directions) {
        (Some(_), Some(_)) => (ingress, egress),
        _ => (Vec::new(), Vec::new()),
    };
    let directions = directions.unwrap_or(Directions {
        ingress: true,
        egress: true,
    });
    Policy {
        name: format!("NetworkPolicy {namespace}/{name}"),
        tie_break: TieBreak::new(name, &namespace, "NetworkPolicy"),
        order: Order(Some(POLICY_ORDER)),
        phase: Phase::Local,
        applies_to: WorkloadMatch {
            kinds: Kinds::Pods,
            namespace: NamespaceMatch::Named(namespace),
            labels,
        },
        directions,
        ingress,
        egress,
    }
}

/// The server's default, applied here as well because objects from a file have not seen it: without types a
/// policy covers ingress, and egress if it has egress rules. Nothing if a type is unknown.
fn read_directions(
    spec: &k8s_openapi::api::networking::v1::NetworkPolicySpec,
    root: &Path<'_>,
    errors: &mut Errors,
) -> Option<Directions> {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        return Some(Directions {
            ingress: true,
            egress,
        });
    }
    let mut directions = Some(Directions::default());
    let path = Path::Field(root, "policyTypes");
    for (i, name) in types.iter().enumerate() {
        match name.as_str() {
            "Ingress" => directions = directions.map(|d| Directions { ingress: true, ..d }),
            "Egress" => directions = directions.map(|d| Directions { egress: true, ..d }),
            other => {
                directions = None;
                let problem = format!("unknown policy type {other:?}");
                wrong(errors, &Path::Index(&path, i), problem, "use Ingress or Egress");
            }
        }
    }
    directions
}

type RuleParts<'a> = (Option<&'a [NetworkPolicyPeer]>, Option<&'a [NetworkPolicyPort]>);

/// One rule for each peer and protocol.
fn read_rules<'a>(
    rules: impl ExactSizeIterator<Item = RuleParts<'a>>,
    namespace: &str,
    path: &Path<'_>,
    peers_field: &'static str,
    errors: &mut Errors,
) -> Vec<Rule> {
    within_limit(rules.len(), MAX_ITEMS, "rules", path, errors);
    let mut read = Vec::new();
    for ((index, i), (peers, ports)) in (0u32..).zip(0usize..).zip(rules).take(MAX_ITEMS) {
        let path = Path::Index(path, i);
        let services = read_ports(ports.unwrap_or_default(), &Path::Field(&path, "ports"), errors);
        let peers = read_peers(
            peers.unwrap_or_default(),
            namespace,
            &Path::Field(&path, peers_field),
            errors,
        );
        for peer in &peers {
            for service in &services {
                let (peer, service) = (peer.clone(), service.clone());
                read.push(Rule {
                    index,
                    action: Action::Allow,
                    own: EndMatch::default(),
                    peer,
                    service,
                });
            }
        }
    }
    read
}

fn read_peers(
    peers: &[NetworkPolicyPeer],
    namespace: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) -> Vec<EndMatch> {
    if peers.is_empty() {
        return vec![EndMatch::default()];
    }
    within_limit(peers.len(), MAX_ITEMS, "peers", path, errors);
    let peers = peers.iter().enumerate().take(MAX_ITEMS);
    peers
        .filter_map(|(i, peer)| read_peer(peer, namespace, &Path::Index(path, i), errors))
        .collect()
}

fn read_peer(
    peer: &NetworkPolicyPeer,
    namespace: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) -> Option<EndMatch> {
    match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
        (Some(block), None, None) => read_ip_block(block, &Path::Field(path, "ipBlock"), errors),
        (Some(_), _, _) => {
            let fix = "put ipBlock into a peer of its own";
            wrong(errors, path, "ipBlock cannot be combined with selectors", fix);
            None
        }
        (None, None, None) => {
            let fix = "name a podSelector, a namespaceSelector or an ipBlock; `podSelector: {}` is every pod";
            wrong(errors, path, "the peer selects nothing", fix);
            None
        }
        (None, namespaces, pods) => {
            let namespaces = namespaces
                .as_ref()
                .map(|selector| read_selector(selector, &Path::Field(path, "namespaceSelector"), errors));
            let pods = pods
                .as_ref()
                .map(|selector| read_selector(selector, &Path::Field(path, "podSelector"), errors));
            let namespace = match namespaces {
                None => NamespaceMatch::Named(namespace.to_owned()),
                Some(selector) => NamespaceMatch::Selected(selector?),
            };
            let labels = pods.unwrap_or_else(|| Some(Selector::everything()))?;
            Some(EndMatch {
                workload: Some(WorkloadMatch {
                    kinds: Kinds::Pods,
                    namespace,
                    labels,
                }),
                ..EndMatch::default()
            })
        }
    }
}

fn read_ip_block(block: &IPBlock, path: &Path<'_>, errors: &mut Errors) -> Option<EndMatch> {
    let cidr = read_cidr(&block.cidr, &Path::Field(path, "cidr"), errors);
    let except_path = Path::Field(path, "except");
    let except = block.except.as_deref().unwrap_or_default();
    let bounded = within_limit(except.len(), MAX_ITEMS, "exceptions", &except_path, errors);
    let except = except.iter().enumerate().take(MAX_ITEMS).map(|(i, text)| {
        let path = Path::Index(&except_path, i);
        let net = read_cidr(text, &path, errors)?;
        let inside = cidr.is_none_or(|cidr| cidr != net && cidr.contains(&net));
        if !inside {
            let fix = "an exception must be a smaller part of cidr; leave it out or widen cidr";
            wrong(errors, &path, format!("{net} is not inside {}", block.cidr), fix);
        }
        inside.then_some(net)
    });
    // Collected in full first, so that every bad exception is reported, not only the first.
    let except: Vec<Option<IpNet>> = except.collect();
    let not_nets: Option<Vec<IpNet>> = except.into_iter().collect();
    let peer = EndMatch {
        nets: vec![cidr?],
        not_nets: not_nets?,
        ..EndMatch::default()
    };
    bounded.then_some(peer)
}

/// One condition for each protocol, which is none if every port is bad.
fn read_ports(ports: &[NetworkPolicyPort], path: &Path<'_>, errors: &mut Errors) -> Vec<ServiceMatch> {
    if ports.is_empty() {
        return vec![ServiceMatch::default()];
    }
    within_limit(ports.len(), MAX_ITEMS, "ports", path, errors);
    let mut whole_protocols = Vec::new();
    let mut by_protocol: BTreeMap<u8, Vec<PortMatch>> = BTreeMap::new();
    for (i, port) in ports.iter().enumerate().take(MAX_ITEMS) {
        match read_port(port, &Path::Index(path, i), errors) {
            Some((protocol, Some(port))) => by_protocol.entry(protocol).or_default().push(port),
            Some((protocol, None)) => whole_protocols.push(protocol),
            None => {}
        }
    }
    for protocol in whole_protocols {
        by_protocol.insert(protocol, Vec::new());
    }
    let by_protocol = by_protocol.into_iter();
    let service = |(protocol, ports)| ServiceMatch {
        protocol: Some(protocol),
        ports,
        ..Default::default()
    };
    by_protocol.map(service).collect()
}

fn read_port(
    port: &NetworkPolicyPort,
    path: &Path<'_>,
    errors: &mut Errors,
) -> Option<(u8, Option<PortMatch>)> {
    let name = port.protocol.as_deref().unwrap_or("TCP");
    let protocol = protocol_number(name);
    if protocol.is_none() {
        let problem = format!("unknown protocol {name:?}");
        wrong(
            errors,
            &Path::Field(path, "protocol"),
            problem,
            "use TCP, UDP or SCTP",
        );
    }
    let (port_path, end_path) = (Path::Field(path, "port"), Path::Field(path, "endPort"));
    let matched = match (&port.port, port.end_port) {
        (None, None) => None,
        (None, Some(_)) => {
            wrong(
                errors,
                &end_path,
                "endPort without port",
                "give the first port of the range as port",
            );
            return None;
        }
        (Some(IntOrString::String(_)), Some(_)) => {
            let fix = "leave out endPort, or give both as numbers";
            wrong(errors, &end_path, "a named port cannot begin a range", fix);
            return None;
        }
        (Some(IntOrString::String(name)), None) => {
            if !is_port_name(name) {
                let fix = "use at most 15 lower-case letters, digits and single inner '-', with a letter";
                wrong(errors, &port_path, format!("{name:?} is not a port name"), fix);
                return None;
            }
            Some(PortMatch::Named(name.clone()))
        }
        (Some(IntOrString::Int(first)), end) => {
            let first = (*first, &port_path);
            Some(match end {
                None => {
                    let port = read_port_number(first.0, first.1, errors)?;
                    PortMatch::Range(port, port)
                }
                Some(end) => read_port_range(first, (end, &end_path), errors)?,
            })
        }
    };
    Some((protocol?, matched))
}

/// An IANA service name (RFC 6335 section 5.1), lower case as Kubernetes wants it.
fn is_port_name(name: &str) -> bool {
    name.len() <= 15
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}
