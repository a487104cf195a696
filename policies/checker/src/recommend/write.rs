//! Connections as objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use policies_ir::policy::{ICMP_PROTOCOLS, PORT_PROTOCOLS};
use serde_json::{Map, Value, json};

use crate::{
    recommend::{
        Dialect, cover,
        observe::{Connection, Observed, PodSelector, Service, Side, Workload},
    },
    region::Region,
    space::{Ports, protocol_name},
};

/// Other ends and services, each of which was seen with each.
type Rule = cover::Product<Side, Service>;

pub(super) fn objects(observed: &Observed, dialect: Dialect) -> Vec<Value> {
    let namespaces: BTreeSet<&str> = observed.workloads.iter().map(|w| w.namespace.as_str()).collect();
    let mut objects = Vec::new();
    for namespace in namespaces {
        objects.push(default_deny(namespace, dialect));
        for (number, workload) in observed.workloads.iter().enumerate() {
            if workload.namespace != namespace {
                continue;
            }
            let own = Side::Workload(number);
            let received = rules(observed, dialect, |c| (c.to == own).then_some(c.from));
            let sent = rules(observed, dialect, |c| (c.from == own).then_some(c.to));
            if !received.is_empty() || !sent.is_empty() {
                objects.push(match dialect {
                    Dialect::Kubernetes => kubernetes(observed, workload, &received, &sent),
                    Dialect::Calico => calico(observed, workload, &received, &sent),
                });
            }
        }
    }
    objects
}

/// As few rules as say what was seen.
fn rules(observed: &Observed, dialect: Dialect, other: impl Fn(&Connection) -> Option<Side>) -> Vec<Rule> {
    let mut parts: BTreeMap<Option<Part>, BTreeSet<(Side, Service)>> = BTreeMap::new();
    for connection in &observed.connections {
        if let Some(side) = other(connection) {
            let part = match dialect {
                Dialect::Kubernetes => None,
                Dialect::Calico => Some(part(side, connection.service)),
            };
            parts.entry(part).or_default().insert((side, connection.service));
        }
    }
    let mut rules: Vec<Rule> = parts.values().flat_map(cover::cover).collect();
    rules.sort();
    rules
}

/// What one rule of Calico's can be about: one workload or addresses of one family, and one protocol, of ICMP one kind of
/// message.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    workload: Option<usize>,
    is_v6: bool,
    protocol: u8,
    message: Option<u16>,
}

fn part(side: Side, service: Service) -> Part {
    let (workload, is_v6) = match side {
        Side::Workload(number) => (Some(number), false),
        Side::Address(address) => (None, address.is_ipv6()),
    };
    Part {
        workload,
        is_v6,
        protocol: service.protocol,
        message: ICMP_PROTOCOLS.contains(&service.protocol).then_some(service.port),
    }
}

fn default_deny(namespace: &str, dialect: Dialect) -> Value {
    let spec = match dialect {
        Dialect::Kubernetes => json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        Dialect::Calico => json!({"selector": "all()", "types": ["Ingress", "Egress"]}),
    };
    object(dialect, namespace, "default-deny", &spec)
}

fn object(dialect: Dialect, namespace: &str, name: &str, spec: &Value) -> Value {
    let api_version = match dialect {
        Dialect::Kubernetes => "networking.k8s.io/v1",
        Dialect::Calico => "projectcalico.org/v3",
    };
    json!({
        "apiVersion": api_version,
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

/// Addresses among the sides, as the fewest networks.
fn nets(sides: &BTreeSet<Side>) -> Vec<String> {
    let addresses = sides.iter().filter_map(|side| match side {
        Side::Address(address) => Some(ipnet::IpNet::from(*address)),
        Side::Workload(_) => None,
    });
    let region = Region::of(addresses);
    region.nets().iter().map(ToString::to_string).collect()
}

/// Workloads among the sides.
fn peers<'a>(observed: &'a Observed, sides: &'a BTreeSet<Side>) -> impl Iterator<Item = &'a Workload> {
    sides.iter().filter_map(|side| match side {
        Side::Workload(number) => observed.workloads.get(*number),
        Side::Address(_) => None,
    })
}

/// Ports of each protocol.
fn ports(services: &BTreeSet<Service>) -> BTreeMap<u8, Ports> {
    let mut by_protocol: BTreeMap<u8, Vec<(u16, u16)>> = BTreeMap::new();
    for service in services {
        let ports = by_protocol.entry(service.protocol).or_default();
        ports.push((service.port, service.port));
    }
    by_protocol
        .into_iter()
        .map(|(protocol, ports)| (protocol, Ports::of(ports)))
        .collect()
}

fn kubernetes(observed: &Observed, workload: &Workload, received: &[Rule], sent: &[Rule]) -> Value {
    let rule = |direction: &str, (sides, services): &Rule| {
        let selected = peers(observed, sides).map(|peer| {
            let pods = label_selector(&peer.selector);
            match peer.namespace == workload.namespace {
                true => json!({"podSelector": pods}),
                false => json!({
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": peer.namespace}},
                    "podSelector": pods,
                }),
            }
        });
        let blocks = nets(sides)
            .into_iter()
            .map(|cidr| json!({"ipBlock": {"cidr": cidr}}));
        let peers: Vec<Value> = selected.chain(blocks).collect();
        let ports: Vec<Value> = ports(services)
            .into_iter()
            .flat_map(|(protocol, ports)| {
                let port = |(first, last): &(u16, u16)| {
                    let mut port = json!({"protocol": protocol_name(protocol), "port": first});
                    if last > first {
                        port["endPort"] = json!(last);
                    }
                    port
                };
                ports.intervals().iter().map(port).collect::<Vec<_>>()
            })
            .collect();
        json!({direction: peers, "ports": ports})
    };
    let mut spec = Map::new();
    let (mut types, mut of) = (
        Vec::new(),
        |direction: &str, kind: &'static str, word: &str, rules: &[Rule]| {
            if !rules.is_empty() {
                let rules: Vec<Value> = rules.iter().map(|found| rule(word, found)).collect();
                spec.insert(direction.to_owned(), json!(rules));
                return Some(kind);
            }
            None
        },
    );
    types.extend(of("ingress", "Ingress", "from", received));
    types.extend(of("egress", "Egress", "to", sent));
    spec.insert("podSelector".to_owned(), label_selector(&workload.selector));
    spec.insert("policyTypes".to_owned(), json!(types));
    object(
        Dialect::Kubernetes,
        &workload.namespace,
        &workload.name,
        &Value::Object(spec),
    )
}

fn label_selector(selector: &PodSelector) -> Value {
    let mut written = Map::new();
    if !selector.labels.is_empty() {
        written.insert("matchLabels".to_owned(), json!(selector.labels));
    }
    if !selector.absent.is_empty() {
        let absent = selector.absent.iter();
        let expressions: Vec<Value> = absent
            .map(|key| json!({"key": key, "operator": "DoesNotExist"}))
            .collect();
        written.insert("matchExpressions".to_owned(), json!(expressions));
    }
    Value::Object(written)
}

fn calico(observed: &Observed, workload: &Workload, received: &[Rule], sent: &[Rule]) -> Value {
    let mut spec = Map::new();
    let mut types: Vec<&str> = Vec::new();
    for (direction, kind, rules) in [("ingress", "Ingress", received), ("egress", "Egress", sent)] {
        if rules.is_empty() {
            continue;
        }
        let written = rules.iter().map(|(sides, services)| {
            let end = match peers(observed, sides).next() {
                None => json!({"nets": nets(sides)}),
                Some(peer) => {
                    let mut end = json!({"selector": expression(&peer.selector)});
                    if peer.namespace != workload.namespace {
                        let namespace = format!("projectcalico.org/name == '{}'", peer.namespace);
                        end["namespaceSelector"] = json!(namespace);
                    }
                    end
                }
            };
            calico_rule(direction, &end, services)
        });
        let written: Vec<Value> = written.collect();
        spec.insert(direction.to_owned(), json!(written));
        types.push(kind);
    }
    spec.insert("selector".to_owned(), json!(expression(&workload.selector)));
    spec.insert("types".to_owned(), json!(types));
    object(
        Dialect::Calico,
        &workload.namespace,
        &workload.name,
        &Value::Object(spec),
    )
}

/// A rule for services of one protocol, of ICMP for one kind of message: a [`Part`] has no others.
fn calico_rule(direction: &str, end: &Value, services: &BTreeSet<Service>) -> Value {
    let other = if direction == "ingress" {
        "source"
    } else {
        "destination"
    };
    let mut rule = json!({"action": "Allow", other: end});
    let Some(Service { protocol, port }) = services.first().copied() else {
        return rule;
    };
    rule["protocol"] = json!(protocol);
    if PORT_PROTOCOLS.contains(&protocol) {
        rule["protocol"] = json!(protocol_name(protocol));
        let ports = Ports::of(services.iter().map(|service| (service.port, service.port)));
        let ports: Vec<Value> = ports
            .intervals()
            .iter()
            .map(|(first, last)| match first == last {
                true => json!(first),
                false => json!(format!("{first}:{last}")),
            })
            .collect();
        rule["destination"]["ports"] = json!(ports);
    }
    if ICMP_PROTOCOLS.contains(&protocol) {
        let [kind, code] = port.to_be_bytes();
        rule["protocol"] = json!(protocol_name(protocol));
        rule["icmp"] = json!({"type": kind, "code": code});
    }
    rule
}

fn expression(selector: &PodSelector) -> String {
    let mut text = String::new();
    for (key, value) in &selector.labels {
        let and = if text.is_empty() { "" } else { " && " };
        // Writing to a string does not fail.
        write!(text, "{and}{key} == '{value}'").unwrap_or_default();
    }
    for key in &selector.absent {
        let and = if text.is_empty() { "" } else { " && " };
        write!(text, "{and}!has({key})").unwrap_or_default();
    }
    if text.is_empty() { "all()".to_owned() } else { text }
}
