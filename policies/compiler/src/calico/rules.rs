//! Rules of Calico's policies and profiles.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::calico::{EntityRule, Icmp, Rule as ObjectRule, ServiceAccounts};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use policies_ir::{
    policy::{
        Action, EndMatch, ICMP, ICMPV6, IcmpMatch, IpVersion, Kinds, NamespaceMatch, PORT_PROTOCOLS,
        PortMatch, Rule, SCTP, Selector, ServiceMatch, TCP, UDP, Workload, WorkloadMatch,
    },
    selector::Expression,
    tables::Direction,
};

use crate::{
    calico::{read_expression, read_plain_expression, sets::read_domain},
    field::{Errors, Path, read_net, read_port_number, read_port_range, within_limit, wrong},
};

/// Rules of one direction.
const MAX_RULES: usize = 1024;
/// Entries of each list of addresses.
const MAX_NETS: usize = 256;
/// Entries of each list of ports.
const MAX_PORTS: usize = 50;
/// Entries of each list of names.
const MAX_DOMAINS: usize = 256;
/// IP protocol number of UDP-Lite.
const UDPLITE: u8 = 136;

/// Addresses and ports behind each service, by namespace and name.
pub(crate) type Services = BTreeMap<(String, String), BTreeSet<ServiceEndpoint>>;

/// One address and port behind a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceEndpoint {
    /// The address.
    pub address: IpAddr,
    /// IP protocol number and port; absent for a service without ports.
    pub port: Option<(u8, u16)>,
}

/// What rules need to know of the policy they are in.
#[derive(Clone, Copy)]
pub(crate) struct RuleScope<'a> {
    /// Namespace of the policy; empty for global ones.
    pub(crate) namespace: &'a str,
    pub(crate) services: &'a Services,
    /// Judged packet by packet: what needs a connection is refused.
    pub(crate) stateless: bool,
}

/// The rules of one direction, closed where they cannot be understood.
pub(crate) fn read_rules(
    rules: &[ObjectRule],
    direction: Direction,
    scope: RuleScope<'_>,
    errors: &mut Errors,
) -> Vec<Rule> {
    let path = Path::SPEC.field(match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    });
    if !within_limit(rules.len(), MAX_RULES, "rules", &path, errors) {
        // Any of the rules left out may have denied what a later tier allows.
        return vec![deny_all(0)];
    }
    let mut read = Vec::new();
    for ((index, i), rule) in (0u32..).zip(0usize..).zip(rules) {
        let found_before = errors.len();
        let understood = read_rule(index, rule, direction, scope, &path.index(i), errors);
        if errors.len() == found_before {
            read.extend(understood);
        } else if !matches!(rule.action.as_str(), "Allow" | "Log") {
            read.push(deny_all(index));
        }
    }
    read
}

/// Several rules where services are named: one for each of their ports.
fn read_rule(
    index: u32,
    rule: &ObjectRule,
    direction: Direction,
    scope: RuleScope<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) -> Vec<Rule> {
    let action = read_action(&rule.action, &path.field("action"), errors);
    let service = read_service(rule, path, errors);
    let empty = EntityRule::default();
    let (source, destination) = (
        rule.source.as_ref().unwrap_or(&empty),
        rule.destination.as_ref().unwrap_or(&empty),
    );
    let (source_path, destination_path) = (path.field("source"), path.field("destination"));
    check_sides(direction, rule, source, destination, scope, path, errors);
    let has_ports = service
        .protocol
        .is_some_and(|protocol| PORT_PROTOCOLS.contains(&protocol));
    let ports = |ports: &[IntOrString], path: &Path<'_>, errors: &mut Errors| {
        read_ports(ports, has_ports, service.protocol.is_none(), path, errors)
    };
    let service = ServiceMatch {
        source_ports: ports(&source.ports, &source_path.field("ports"), errors),
        not_source_ports: ports(&source.not_ports, &source_path.field("notPorts"), errors),
        ports: ports(&destination.ports, &destination_path.field("ports"), errors),
        not_ports: ports(
            &destination.not_ports,
            &destination_path.field("notPorts"),
            errors,
        ),
        ..service
    };
    let source_match = read_entity(source, scope, &source_path, errors);
    let destination_match = read_entity(destination, scope, &destination_path, errors);
    let ip_version = read_ip_version(rule, &service, path, errors);
    check_families(
        ip_version,
        [(source, &source_path), (destination, &destination_path)],
        errors,
    );
    let Some(action) = action else { return Vec::new() };
    let (own, mut peer) = match direction {
        Direction::Ingress => (destination_match, source_match),
        Direction::Egress => (source_match, destination_match),
    };
    peer.ip_version = ip_version;
    let rule = Rule {
        index,
        action,
        own,
        peer,
        service,
    };
    let named = match direction {
        Direction::Ingress => &source.services,
        Direction::Egress => &destination.services,
    };
    match named {
        None => vec![rule],
        Some(named) => {
            let namespace = match named.namespace.as_str() {
                "" => scope.namespace,
                given => given,
            };
            let key = (namespace.to_owned(), named.name.clone());
            let endpoints = scope.services.get(&key).cloned().unwrap_or_default();
            behind_service(&rule, direction, &endpoints)
        }
    }
}

/// The same rule for the addresses behind a service, which are none if it has no endpoints. As a destination
/// the ports count as well, so what has none matches nothing; as a source they do not.
fn behind_service(rule: &Rule, direction: Direction, endpoints: &BTreeSet<ServiceEndpoint>) -> Vec<Rule> {
    let mut by_port: BTreeMap<Option<(u8, u16)>, Vec<IpNet>> = BTreeMap::new();
    for endpoint in endpoints {
        let port = match (direction, endpoint.port) {
            (Direction::Ingress, _) => None,
            (Direction::Egress, None) => continue,
            (Direction::Egress, port) => port,
        };
        by_port.entry(port).or_default().push(endpoint.address.into());
    }
    let rules = by_port.into_iter().filter_map(|(port, nets)| {
        let mut rule = rule.clone();
        rule.peer.nets = nets;
        if let Some((protocol, port)) = port {
            if rule.service.protocol.is_some_and(|wanted| wanted != protocol) {
                return None;
            }
            rule.service.protocol = Some(protocol);
            rule.service.ports = vec![PortMatch::Range(port, port)];
        }
        Some(rule)
    });
    rules.collect()
}

pub(super) fn deny_all(index: u32) -> Rule {
    Rule {
        index,
        action: Action::Deny,
        own: EndMatch::default(),
        peer: EndMatch::default(),
        service: ServiceMatch::default(),
    }
}

fn read_action(action: &str, path: &Path<'_>, errors: &mut Errors) -> Option<Action> {
    match action {
        "Allow" => Some(Action::Allow),
        "Deny" => Some(Action::Deny),
        "Pass" => Some(Action::Pass),
        "Log" => Some(Action::Log),
        other => {
            let problem = format!("unknown action {other:?}");
            wrong(errors, path, problem, "use Allow, Deny, Log or Pass");
            None
        }
    }
}

/// Protocol and kind of ICMP message.
fn read_service(rule: &ObjectRule, path: &Path<'_>, errors: &mut Errors) -> ServiceMatch {
    let mut protocol = |given: &Option<IntOrString>, field| {
        let given = given.as_ref()?;
        let read = protocol_of(given);
        if read.is_none() {
            let shown = match given {
                IntOrString::Int(number) => number.to_string(),
                IntOrString::String(name) => format!("{name:?}"),
            };
            let fix = "use TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255";
            wrong(
                errors,
                &path.field(field),
                format!("unknown protocol {shown}"),
                fix,
            );
        }
        read
    };
    let (wanted, unwanted) = (
        protocol(&rule.protocol, "protocol"),
        protocol(&rule.not_protocol, "notProtocol"),
    );
    let is_icmp = wanted.is_some_and(|protocol| [ICMP, ICMPV6].contains(&protocol));
    let mut icmp = |given: Option<Icmp>, field| {
        let given = given?;
        let path = path.field(field);
        if !is_icmp {
            let fix = "set protocol to ICMP or ICMPv6";
            wrong(errors, &path, "the rule's protocol has no ICMP messages", fix);
        }
        read_icmp(given, &path, errors)
    };
    ServiceMatch {
        protocol: wanted,
        not_protocol: unwanted,
        icmp: icmp(rule.icmp, "icmp"),
        not_icmp: icmp(rule.not_icmp, "notICMP"),
        ..ServiceMatch::default()
    }
}

/// Nothing where neither is given: it then asks for nothing.
fn read_icmp(icmp: Icmp, path: &Path<'_>, errors: &mut Errors) -> Option<IcmpMatch> {
    let mut number = |given: Option<i32>, field, max: u8| {
        let given = given?;
        let read = u8::try_from(given).ok().filter(|number| *number <= max);
        if read.is_none() {
            let problem = format!("{given} is out of range");
            wrong(
                errors,
                &path.field(field),
                problem,
                format!("use a number from 0 to {max}"),
            );
        }
        read
    };
    let (kind, code) = (number(icmp.kind, "type", 254), number(icmp.code, "code", 255));
    if icmp.code.is_some() && icmp.kind.is_none() {
        wrong(
            errors,
            &path.field("code"),
            "a code without a type",
            "give the type as well",
        );
    }
    Some(IcmpMatch { kind: kind?, code })
}

fn read_ip_version(
    rule: &ObjectRule,
    service: &ServiceMatch,
    path: &Path<'_>,
    errors: &mut Errors,
) -> Option<IpVersion> {
    let path = path.field("ipVersion");
    let version = match rule.ip_version? {
        4 => IpVersion::V4,
        6 => IpVersion::V6,
        other => {
            wrong(
                errors,
                &path,
                format!("{other} is not a version of IP"),
                "use 4 or 6",
            );
            return None;
        }
    };
    let speaks_of = |protocol| service.protocol == Some(protocol) || service.not_protocol == Some(protocol);
    if speaks_of(ICMP) && version == IpVersion::V6 {
        wrong(
            errors,
            &path,
            "ICMP is of IP version 4",
            "use ICMPv6, or ipVersion 4",
        );
    }
    if speaks_of(ICMPV6) && version == IpVersion::V4 {
        wrong(
            errors,
            &path,
            "ICMPv6 is of IP version 6",
            "use ICMP, or ipVersion 6",
        );
    }
    Some(version)
}

/// CIDRs of both families, or of the other than the rule's, would be judged otherwise than they read: a rule
/// is asked about each family with that family's CIDRs alone.
fn check_families(version: Option<IpVersion>, sides: [(&EntityRule, &Path<'_>); 2], errors: &mut Errors) {
    let mut seen = version.map(|version| version == IpVersion::V4);
    for (entity, path) in sides {
        for (nets, field) in [(&entity.nets, "nets"), (&entity.not_nets, "notNets")] {
            let path = path.field(field);
            for (i, text) in nets.iter().enumerate().take(MAX_NETS) {
                let Some(net) = read_net(text, &path, &mut Errors::new()) else {
                    continue;
                };
                let is_ipv4 = net.addr().is_ipv4();
                if *seen.get_or_insert(is_ipv4) != is_ipv4 {
                    let fix = "write one rule for each family";
                    let problem = "the rule has addresses of both families, or of another than its ipVersion";
                    wrong(errors, &path.index(i), problem, fix);
                    return;
                }
            }
        }
    }
}

/// What may stand on which side of a rule.
fn check_sides(
    direction: Direction,
    rule: &ObjectRule,
    source: &EntityRule,
    destination: &EntityRule,
    scope: RuleScope<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if rule.http.is_some() {
        let problem = "HTTP is not read on this datapath, so the rule could not be enforced";
        wrong(
            errors,
            &path.field("http"),
            problem,
            "leave it out and match by port",
        );
    }
    let (source_path, destination_path) = (path.field("source"), path.field("destination"));
    let (near, near_path) = match direction {
        Direction::Ingress => (destination, &destination_path),
        Direction::Egress => (source, &source_path),
    };
    if near.services.is_some() {
        let fix = "name services as the source of ingress or the destination of egress";
        wrong(
            errors,
            &near_path.field("services"),
            "the policy's own end cannot be a service",
            fix,
        );
    }
    for (entity, path) in [(source, &source_path), (destination, &destination_path)] {
        let Some(service) = &entity.services else { continue };
        let path = path.field("services");
        if service.name.is_empty() {
            wrong(errors, &path.field("name"), "is empty", "name the service");
        }
        if service.namespace.is_empty() && scope.namespace.is_empty() {
            let fix = "name the service's namespace";
            wrong(
                errors,
                &path.field("namespace"),
                "is empty in a global policy",
                fix,
            );
        }
        let others = [
            (!entity.selector.is_empty(), "selector"),
            (!entity.not_selector.is_empty(), "notSelector"),
            (!entity.namespace_selector.is_empty(), "namespaceSelector"),
            (entity.service_accounts.is_some(), "serviceAccounts"),
            (!entity.nets.is_empty(), "nets"),
            (!entity.not_nets.is_empty(), "notNets"),
        ];
        for (_, name) in others.iter().filter(|(given, _)| *given) {
            let fix = "leave one of them out, or write two rules";
            wrong(errors, &path, format!("cannot be combined with {name}"), fix);
        }
    }
    if destination.services.is_some() && !(destination.ports.is_empty() && destination.not_ports.is_empty()) {
        let fix = "leave out ports: a service brings its own";
        wrong(
            errors,
            &destination_path.field("services"),
            "cannot be combined with ports",
            fix,
        );
    }
    if !source.domains.is_empty() {
        let fix = "names are learned for destinations: put it there, in an egress rule";
        wrong(errors, &source_path.field("domains"), "a source has no name", fix);
    }
    let domains_path = destination_path.field("domains");
    if !destination.domains.is_empty() {
        if direction == Direction::Ingress || rule.action != "Allow" {
            let fix = "use it in egress rules that allow";
            let problem = "names are learned while they are used, so they cannot deny or pass";
            wrong(errors, &domains_path, problem, fix);
        }
        if scope.stateless {
            let fix = "leave out doNotTrack";
            wrong(errors, &domains_path, "cannot be combined with doNotTrack", fix);
        }
        let others = [
            (!destination.selector.is_empty(), "selector"),
            (!destination.not_selector.is_empty(), "notSelector"),
            (!destination.namespace_selector.is_empty(), "namespaceSelector"),
            (destination.service_accounts.is_some(), "serviceAccounts"),
            (destination.services.is_some(), "services"),
        ];
        for (_, name) in others.iter().filter(|(given, _)| *given) {
            let fix = "leave one of them out, or write two rules";
            wrong(
                errors,
                &domains_path,
                format!("cannot be combined with {name}"),
                fix,
            );
        }
    }
}

/// Conditions on addresses, labels and names.
fn read_entity(entity: &EntityRule, scope: RuleScope<'_>, path: &Path<'_>, errors: &mut Errors) -> EndMatch {
    let nets = |nets: &[String], path: Path<'_>, errors: &mut Errors| -> Vec<IpNet> {
        within_limit(nets.len(), MAX_NETS, "addresses", &path, errors);
        let nets = nets.iter().enumerate().take(MAX_NETS);
        nets.filter_map(|(i, text)| read_net(text, &path.index(i), errors))
            .collect()
    };
    let not_nets_path = path.field("notNets");
    let not_nets = nets(&entity.not_nets, not_nets_path, errors);
    if not_nets.iter().any(|net| net.prefix_len() == 0) {
        let fix = "leave the rule out, or name smaller networks";
        wrong(
            errors,
            &not_nets_path,
            "excludes every address, so the rule would match nothing",
            fix,
        );
    }
    let domains_path = path.field("domains");
    within_limit(entity.domains.len(), MAX_DOMAINS, "names", &domains_path, errors);
    let mut domains = Vec::new();
    for (i, text) in entity.domains.iter().enumerate().take(MAX_DOMAINS) {
        domains.extend(read_domain(text, &domains_path.index(i), errors));
    }
    let not_selector = match entity.not_selector.as_str() {
        "" => None,
        text => read_plain_expression(text, &path.field("notSelector"), errors),
    };
    let (workload, not_workload) = match (read_workload(entity, scope, path, errors), not_selector) {
        // Both are asked of one and the same thing at the address.
        (Some(mut workload), Some(unwanted)) => {
            let unwanted = Selector::Expression(Expression::Not(Box::new(unwanted)));
            workload.labels = Selector::All(vec![workload.labels, unwanted]);
            (Some(workload), None)
        }
        // Nothing at the address may have the labels, and nothing need be there.
        (workload, unwanted) => {
            let unwanted = unwanted.map(|expression| WorkloadMatch {
                kinds: Kinds::All,
                namespace: NamespaceMatch::Any,
                labels: Selector::Expression(expression),
            });
            (workload, unwanted)
        }
    };
    EndMatch {
        ip_version: None,
        nets: nets(&entity.nets, path.field("nets"), errors),
        not_nets,
        workload,
        not_workload,
        domains,
    }
}

/// The positive condition on labels. Within a namespaced policy any condition on labels, also a negative one,
/// confines the end to the policy's namespace, unless namespaces are selected.
fn read_workload(
    entity: &EntityRule,
    scope: RuleScope<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) -> Option<WorkloadMatch> {
    let mut parts = Vec::new();
    if !entity.selector.is_empty() {
        parts.extend(read_plain_expression(
            &entity.selector,
            &path.field("selector"),
            errors,
        ));
    }
    if let Some(accounts) = &entity.service_accounts {
        parts.extend(read_accounts(accounts, &path.field("serviceAccounts"), errors));
    }
    let mut namespace = NamespaceMatch::Any;
    if !entity.namespace_selector.is_empty() {
        let path = path.field("namespaceSelector");
        let read = read_expression(&entity.namespace_selector, &path, errors);
        if read
            .as_ref()
            .is_some_and(|e| e.mentions_global() && *e != Expression::Global)
        {
            let fix = "use global() alone, or write two rules";
            wrong(errors, &path, "global() cannot be combined with anything", fix);
        }
        parts.extend(read.map(namespaces_expression));
    } else if !scope.namespace.is_empty() && (!parts.is_empty() || !entity.not_selector.is_empty()) {
        namespace = NamespaceMatch::Named(scope.namespace.to_owned());
    } else if parts.is_empty() {
        return None;
    }
    Some(WorkloadMatch {
        kinds: Kinds::All,
        namespace,
        labels: Selector::All(parts.into_iter().map(Selector::Expression).collect()),
    })
}

/// An expression about namespaces, as one about what is in them. `all()` is whatever is in a namespace,
/// `global()` what is in none.
pub(super) fn namespaces_expression(expression: Expression) -> Expression {
    let in_namespace = Expression::Has(Workload::NAMESPACE_LABEL.to_owned());
    expression.prefixed(Workload::NAMESPACE_PREFIX, &in_namespace)
}

fn read_accounts(accounts: &ServiceAccounts, path: &Path<'_>, errors: &mut Errors) -> Option<Expression> {
    let mut parts = Vec::new();
    if !accounts.selector.is_empty() {
        let read = read_plain_expression(&accounts.selector, &path.field("selector"), errors)?;
        parts.push(read.prefixed(Workload::SERVICE_ACCOUNT_PREFIX, &Expression::All));
    }
    if !accounts.names.is_empty() {
        let names = accounts.names.iter().cloned().collect();
        parts.push(Expression::In(Workload::SERVICE_ACCOUNT_LABEL.to_owned(), names));
    }
    // Neither given asks for nothing.
    (!parts.is_empty()).then_some(Expression::And(parts))
}

/// Numbers need a protocol with ports. Names bring their own, so they also go without any.
fn read_ports(
    ports: &[IntOrString],
    has_ports: bool,
    no_protocol: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) -> Vec<PortMatch> {
    within_limit(ports.len(), MAX_PORTS, "ports", path, errors);
    let mut read = Vec::new();
    for (i, port) in ports.iter().enumerate().take(MAX_PORTS) {
        let path = path.index(i);
        let port = read_port(port, &path, errors);
        let named = matches!(port, Some(PortMatch::Named(_)));
        if port.is_some() && !has_ports && !(named && no_protocol) {
            let fix = "set protocol to TCP, UDP or SCTP";
            wrong(errors, &path, "the rule's protocol has no ports", fix);
        }
        read.extend(port);
    }
    read
}

fn read_port(port: &IntOrString, path: &Path<'_>, errors: &mut Errors) -> Option<PortMatch> {
    let text = match port {
        IntOrString::Int(number) => {
            let port = read_port_number(*number, path, errors)?;
            return Some(PortMatch::Range(port, port));
        }
        IntOrString::String(text) => text,
    };
    // What is too long for a number is no port all the same.
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = |text: &str| digits(text).then(|| text.parse().unwrap_or(i32::MAX));
    if let Some((first, last)) = text.split_once(':') {
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            let fix = "write it as first:last, such as 8000:8099";
            wrong(errors, path, format!("{text:?} is not a range of ports"), fix);
            return None;
        };
        return read_port_range((first, path), (last, path), errors);
    }
    // Digits alone are a number, in range or not, and never a name.
    if let Some(number) = number(text) {
        return read_port(&IntOrString::Int(number), path, errors);
    }
    if !is_port_name(text) {
        let fix = "use a number, a range such as 8000:8099, or a name of letters, digits, '_', '.' and '-'";
        wrong(errors, path, format!("{text:?} is not a port"), fix);
        return None;
    }
    Some(PortMatch::Named(text.clone()))
}

pub(super) fn is_port_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    (1..=128).contains(&name.len()) && name.bytes().all(allowed)
}

/// Number of a protocol by its name, in any case, or by its number.
pub(super) fn protocol_of(protocol: &IntOrString) -> Option<u8> {
    let number = |number: i64| u8::try_from(number).ok().filter(|number| *number != 0);
    match protocol {
        IntOrString::Int(value) => number((*value).into()),
        IntOrString::String(name) => match name.to_ascii_lowercase().as_str() {
            "tcp" => Some(TCP),
            "udp" => Some(UDP),
            "icmp" => Some(ICMP),
            "icmpv6" => Some(ICMPV6),
            "sctp" => Some(SCTP),
            "udplite" => Some(UDPLITE),
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok().and_then(number),
            _ => None,
        },
    }
}
