//! Connections as objects.

use std::collections::{BTreeMap, BTreeSet};

use policies_ir::policy::{ICMP_PROTOCOLS, PORT_PROTOCOLS};
use serde_json::{Map, Value, json};

use crate::{
    recommend::{
        Dialect, cover,
        observe::{Connection, Observed, PodSelector, Service, Side, Workload},
        select,
    },
    region::Region,
    space::{Ports, protocol_name},
};

/// Name of the policy by which a namespace denies.
pub(super) const DEFAULT_DENY: &str = "default-deny";

/// Other ends and services, each of which was seen with each.
type Rule = cover::Product<Side, Service>;

/// What objects of a dialect may hold at most.
struct Limits {
    /// Rules of a direction of a policy.
    rules: usize,
    /// Ends of a rule: peers of Kubernetes', networks of Calico's.
    ends: usize,
    /// Ports and ranges of ports of a rule.
    ports: usize,
}

impl Limits {
    fn of(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Kubernetes => Self {
                rules: 1024,
                ends: 1024,
                ports: 256,
            },
            Dialect::Calico => Self {
                rules: 1024,
                ends: 256,
                ports: 50,
            },
        }
    }
}

pub(super) fn objects(observed: &Observed, dialect: Dialect) -> Vec<Value> {
    let namespaces: BTreeSet<&str> = observed.workloads.iter().map(|w| w.namespace.as_str()).collect();
    let mut names = Names::of(&observed.workloads);
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
            let write = |direction: &str, rules: &[Rule]| match dialect {
                Dialect::Kubernetes => kubernetes(observed, workload, direction, rules),
                Dialect::Calico => calico(observed, workload, direction, rules),
            };
            let written = [write("ingress", &received), write("egress", &sent)];
            let selected = selected(observed, workload, dialect);
            objects.extend(policies(workload, dialect, &selected, &written, &mut names));
        }
    }
    objects
}

/// Names of objects that are taken, with their namespaces.
struct Names<'a>(BTreeSet<(&'a str, String)>);

impl<'a> Names<'a> {
    fn of(workloads: &'a [Workload]) -> Self {
        let names = workloads.iter().map(|workload| {
            let namespace = workload.namespace.as_str();
            (namespace, workload.name.clone())
        });
        Self(names.collect())
    }

    /// One for a further policy of a workload.
    fn another(&mut self, workload: &'a Workload) -> String {
        let numbered = |number: usize| format!("{}-{number}", workload.name);
        let mut names = (2..).map(numbered);
        let free = names.find(|name| self.0.insert((workload.namespace.as_str(), name.clone())));
        free.unwrap_or_default()
    }
}

/// What selects a workload's pods, with the field for it.
fn selected(observed: &Observed, workload: &Workload, dialect: Dialect) -> (&'static str, Value) {
    match dialect {
        Dialect::Kubernetes => ("podSelector", label_selector(&workload.selector)),
        Dialect::Calico => {
            let sets = observed.sets(&workload.namespace);
            ("selector", json!(select::subject(&workload.selector, sets).0))
        }
    }
}

/// The policy of a workload with these rules for each direction, or as many as their number takes; none without rules.
fn policies<'a>(
    workload: &'a Workload,
    dialect: Dialect,
    (selector_field, selector): &(&str, Value),
    [received, sent]: &[Vec<Value>; 2],
    names: &mut Names<'a>,
) -> Vec<Value> {
    let limit = Limits::of(dialect).rules;
    let (mut received, mut sent) = (received.chunks(limit), sent.chunks(limit));
    let mut policies = Vec::new();
    loop {
        let part = [
            ("ingress", "Ingress", received.next()),
            ("egress", "Egress", sent.next()),
        ];
        let part: Vec<_> = part
            .into_iter()
            .filter_map(|(direction, kind, rules)| Some((direction, kind, rules?)))
            .collect();
        if part.is_empty() {
            return policies;
        }
        let mut spec = Map::new();
        let types: Vec<&str> = part.iter().map(|(_, kind, _)| *kind).collect();
        for (direction, _, rules) in part {
            spec.insert(direction.to_owned(), json!(rules));
        }
        let types_field = match dialect {
            Dialect::Kubernetes => "policyTypes",
            Dialect::Calico => "types",
        };
        spec.insert((*selector_field).to_owned(), selector.clone());
        spec.insert(types_field.to_owned(), json!(types));
        let name = match policies.is_empty() {
            true => workload.name.clone(),
            false => names.another(workload),
        };
        policies.push(object(dialect, &workload.namespace, &name, &Value::Object(spec)));
    }
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
    object(dialect, namespace, DEFAULT_DENY, &spec)
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
fn ports_of(services: &BTreeSet<Service>) -> BTreeMap<u8, Ports> {
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

/// Rules of Kubernetes' for one direction, each within what one may hold.
fn kubernetes(observed: &Observed, workload: &Workload, direction: &str, rules: &[Rule]) -> Vec<Value> {
    let limits = Limits::of(Dialect::Kubernetes);
    let ends = if direction == "ingress" { "from" } else { "to" };
    let mut written = Vec::new();
    for (sides, services) in rules {
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
        let mut ports = Vec::new();
        for (protocol, of_protocol) in ports_of(services) {
            for (first, last) in of_protocol.intervals() {
                let mut port = json!({"protocol": protocol_name(protocol), "port": first});
                if last > first {
                    port["endPort"] = json!(last);
                }
                ports.push(port);
            }
        }
        for peers in peers.chunks(limits.ends) {
            let parts = ports.chunks(limits.ports);
            written.extend(parts.map(|ports| json!({ends: peers, "ports": ports})));
        }
    }
    written
}

pub(super) fn label_selector(selector: &PodSelector) -> Value {
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

/// The same of Calico's.
fn calico(observed: &Observed, workload: &Workload, direction: &str, rules: &[Rule]) -> Vec<Value> {
    let limits = Limits::of(Dialect::Calico);
    let (own, other) = match direction {
        "ingress" => ("destination", "source"),
        _ => ("source", "destination"),
    };
    let (_, own_end) = select::subject(&workload.selector, observed.sets(&workload.namespace));
    let mut written = Vec::new();
    for (sides, services) in rules {
        let ends: Vec<Value> = match peers(observed, sides).next() {
            None => {
                let nets = nets(sides);
                let parts = nets.chunks(limits.ends);
                parts.map(|nets| json!({"nets": nets})).collect()
            }
            Some(peer) => {
                let mut end = select::peer(&peer.selector, observed.sets(&peer.namespace));
                if peer.namespace != workload.namespace {
                    let namespace = format!("projectcalico.org/name == '{}'", peer.namespace);
                    end["namespaceSelector"] = json!(namespace);
                }
                vec![end]
            }
        };
        for end in &ends {
            let mut rule = json!({"action": "Allow", other: end});
            if let Some(own_end) = &own_end {
                rule[own] = own_end.clone();
            }
            written.extend(with_services(&rule, services, limits.ports));
        }
    }
    written
}

/// A rule with services of one protocol, of ICMP of one kind of message: a [`Part`] has no others. As often as it takes.
fn with_services(rule: &Value, services: &BTreeSet<Service>, limit: usize) -> Vec<Value> {
    let mut rule = rule.clone();
    let Some(Service { protocol, port }) = services.first().copied() else {
        return Vec::new();
    };
    rule["protocol"] = json!(protocol);
    if ICMP_PROTOCOLS.contains(&protocol) {
        let [kind, code] = port.to_be_bytes();
        rule["protocol"] = json!(protocol_name(protocol));
        rule["icmp"] = json!({"type": kind, "code": code});
    }
    if !PORT_PROTOCOLS.contains(&protocol) {
        return vec![rule];
    }
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
    let parts = ports.chunks(limit).map(|ports| {
        let mut part = rule.clone();
        part["destination"]["ports"] = json!(ports);
        part
    });
    parts.collect()
}
