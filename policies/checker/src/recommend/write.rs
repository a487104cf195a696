//! Connections as objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use policies_ir::policy::{ICMP_PROTOCOLS, PORT_PROTOCOLS};
use serde_json::{Map, Value, json};

use crate::{
    recommend::{
        Dialect,
        observe::{Connection, Observed, PodSelector, Service, Side, Workload},
    },
    region::Region,
    space::{Ports, protocol_name},
};

/// The other ends that have the same services.
type Rule = (BTreeSet<Side>, BTreeSet<Service>);

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
            let received = rules(observed, |c| (c.to == own).then_some(c.from));
            let sent = rules(observed, |c| (c.from == own).then_some(c.to));
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

/// One rule for each set of services, with all ends that have it.
fn rules(observed: &Observed, other: impl Fn(&Connection) -> Option<Side>) -> Vec<Rule> {
    let mut by_side: BTreeMap<Side, BTreeSet<Service>> = BTreeMap::new();
    for connection in &observed.connections {
        if let Some(side) = other(connection) {
            by_side.entry(side).or_default().insert(connection.service);
        }
    }
    let mut by_services: BTreeMap<BTreeSet<Service>, BTreeSet<Side>> = BTreeMap::new();
    for (side, services) in by_side {
        by_services.entry(services).or_default().insert(side);
    }
    let mut rules: Vec<Rule> = by_services
        .into_iter()
        .map(|(services, sides)| (sides, services))
        .collect();
    rules.sort();
    rules
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
        let mut written = Vec::new();
        for (sides, services) in rules {
            let selected = peers(observed, sides).map(|peer| {
                let mut end = json!({"selector": expression(&peer.selector)});
                if peer.namespace != workload.namespace {
                    end["namespaceSelector"] =
                        json!(format!("projectcalico.org/name == '{}'", peer.namespace));
                }
                end
            });
            let nets = nets(sides);
            // A rule of Calico's has addresses of one family.
            let (v6, v4): (Vec<String>, Vec<String>) = nets.into_iter().partition(|net| net.contains(':'));
            let blocks = [v4, v6].into_iter().filter(|nets| !nets.is_empty());
            let blocks = blocks.map(|nets| json!({"nets": nets}));
            for end in selected.chain(blocks) {
                written.extend(
                    ports(services)
                        .into_iter()
                        .flat_map(|(protocol, ports)| calico_rules(direction, &end, protocol, &ports)),
                );
            }
        }
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

/// Rules for one end and protocol: one, but for ICMP one for each kind of message.
fn calico_rules(direction: &str, end: &Value, protocol: u8, ports: &Ports) -> Vec<Value> {
    let other = if direction == "ingress" {
        "source"
    } else {
        "destination"
    };
    let number = json!(protocol);
    let mut rule = json!({"action": "Allow", "protocol": number, other: end});
    if PORT_PROTOCOLS.contains(&protocol) {
        rule["protocol"] = json!(protocol_name(protocol));
        let ports: Vec<Value> = ports
            .intervals()
            .iter()
            .map(|(first, last)| match first == last {
                true => json!(first),
                false => json!(format!("{first}:{last}")),
            })
            .collect();
        rule["destination"]["ports"] = json!(ports);
        return vec![rule];
    }
    if ICMP_PROTOCOLS.contains(&protocol) {
        rule["protocol"] = json!(protocol_name(protocol));
        let messages = ports.intervals().iter().flat_map(|(first, last)| *first..=*last);
        return messages
            .map(|message| {
                let [kind, code] = message.to_be_bytes();
                let mut rule = rule.clone();
                rule["icmp"] = json!({"type": kind, "code": code});
                rule
            })
            .collect();
    }
    vec![rule]
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
