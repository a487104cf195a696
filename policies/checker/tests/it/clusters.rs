//! Small random clusters with everything that policies can say, drawn from small pools so that selectors select,
//! prefixes overlap and ports collide.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use api::selector::{LabelSelector, Operator, Requirement};
use ipnet::IpNet;
use policies_checker::space::Point;
use policies_ir::{
    cluster::{Cluster, Member, NetworkSet},
    decide::decide,
    policy::{
        Action, DefaultAction, Directions, DomainMatch, EndMatch, IcmpMatch, IpVersion, Kinds, NamedPort,
        NamespaceMatch, Order, Policy, PolicySet, PortMatch, Profile, ProfileRules, Rule, Selector,
        ServiceMatch, TieBreak, Tier, Workload, WorkloadKind, WorkloadMatch,
    },
    tables::{DecidedBy, Direction, Packet, Verdict},
};
use proptest::{collection::vec, option, prelude::*, sample::select};

/// A cluster and its policies.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) cluster: Cluster,
    pub(crate) policies: PolicySet,
}

const NAMESPACES: [&str; 2] = ["shop", "pay"];
const APPS: [&str; 3] = ["web", "db", "job"];
const PORTS: [u16; 7] = [0, 53, 80, 81, 443, 2048, 65535];
const PROTOCOLS: [u8; 6] = [6, 17, 132, 1, 58, 47];
const NETS: [&str; 9] = [
    "0.0.0.0/0",
    "10.0.0.0/24",
    "10.0.0.2/31",
    "10.0.0.3/32",
    "192.0.2.0/24",
    "192.0.2.7/32",
    "::/0",
    "fd00::/64",
    "2001:db8::/32",
];

/// Addresses that tell the pools' prefixes apart, none of which is a pod's.
pub(crate) const OUTSIDE: [&str; 6] = [
    "192.0.2.7",
    "192.0.2.8",
    "10.0.0.200",
    "203.0.113.1",
    "2001:db8::7",
    "fd00::ffff",
];

pub(crate) fn scenario() -> impl Strategy<Value = Scenario> {
    (
        vec(member(), 1..4),
        vec(tier(), 0..3),
        option::of((rules(), rules())),
        vec(set(), 0..3),
    )
        .prop_map(|(members, tiers, profile, sets)| {
            // Replicas, so that workloads stand together.
            let replicas: Vec<Member> = members.iter().take(2).cloned().collect();
            let mut members: Vec<Member> = members
                .into_iter()
                .chain(replicas.clone())
                .chain(replicas)
                .zip(1u8..)
                .map(|(mut member, number)| {
                    member.workload.name = format!("pod-{number}");
                    let v6 = format!("fd00::{number}");
                    // Replicas have the same labels, and so the same families.
                    let labels = &member.workload.labels;
                    if member.addresses.is_empty() {
                        if labels.is_empty() || labels.contains_key("app") {
                            member.addresses.insert([10, 0, 0, number].into());
                        }
                        if !labels.is_empty() {
                            member.addresses.insert(v6.parse().unwrap());
                        }
                    }
                    member
                })
                .collect();
            // Now and then two pods claim one address.
            if let [first, .., last] = &mut members[..]
                && first.workload.labels.len() == 2
            {
                last.addresses.extend(first.addresses.iter().take(1));
            }
            let own = profile.map(|(ingress, egress)| Profile {
                name: "own".to_owned(),
                rules: ProfileRules::Own { ingress, egress },
            });
            let all = Profile {
                name: "all".to_owned(),
                rules: ProfileRules::AllowAll,
            };
            let name = "192.0.2.7".parse().unwrap();
            Scenario {
                cluster: Cluster {
                    members,
                    sets,
                    host_addresses: BTreeSet::new(),
                    host_groups: BTreeSet::new(),
                    translations: Vec::new(),
                    nodes: BTreeMap::new(),
                    primary: BTreeMap::new(),
                    node_pods: BTreeMap::new(),
                    names: BTreeMap::from([(name, BTreeSet::from(["www.example.org".to_owned()]))]),
                },
                policies: PolicySet {
                    tiers: tiers.into_iter().enumerate().map(named).collect(),
                    profiles: own
                        .into_iter()
                        .chain([all])
                        .map(|p| (p.name.clone(), p))
                        .collect(),
                    ..PolicySet::default()
                },
            }
        })
}

/// The reference's answer at the interface of a member.
pub(crate) fn reference(
    scenario: &Scenario,
    member: usize,
    direction: Direction,
    peer: IpAddr,
    point: Point,
) -> (Verdict, DecidedBy) {
    let member = &scenario.cluster.members[member];
    let packet = Packet {
        direction,
        peer,
        inside: None,
        protocol: point.protocol,
        source_port: point.source_port,
        port: point.port,
    };
    let policy = scenario.policies.for_endpoint(&member.workload);
    let decision = decide(&policy, &scenario.cluster.flow(member, &packet));
    (decision.verdict, decision.decided_by)
}

/// Whether there are such packets from and to addresses like this one: each family has its own ICMP.
pub(crate) fn exists(address: IpAddr, point: Point) -> bool {
    match point.protocol {
        1 => address.is_ipv4(),
        58 => address.is_ipv6(),
        _ => true,
    }
}

/// Flows at and beside every edge that the pools can make.
pub(crate) fn points() -> Vec<Point> {
    let mut points = Vec::new();
    for protocol in [6, 17, 132] {
        for port in [0, 52, 53, 54, 80, 81, 82, 443, 2048, 65534, 65535] {
            for source_port in [0, 53, 80, 49152, 65535] {
                points.push(Point {
                    protocol,
                    source_port,
                    port,
                });
            }
        }
    }
    for protocol in [1, 58] {
        let echo: u16 = if protocol == 1 { 0x0800 } else { 0x8000 };
        let icmp = [0, echo - 1, echo, echo + 1, echo + 255, echo + 256];
        points.extend(icmp.map(|port| Point {
            protocol,
            source_port: 0,
            port,
        }));
    }
    points.extend([47, 253].map(|protocol| Point {
        protocol,
        source_port: 0,
        port: 0,
    }));
    points
}

fn named((position, mut tier): (usize, Tier)) -> Tier {
    tier.name = format!("tier-{position}");
    for (number, policy) in tier.policies.iter_mut().enumerate() {
        let policy = Arc::make_mut(policy);
        policy.name = format!("Policy {position}-{number}");
        policy.tie_break = TieBreak::new(&policy.name, "", "");
    }
    tier
}

fn member() -> impl Strategy<Value = Member> {
    let labels = vec((select(vec!["app", "tier"]), select(APPS.to_vec())), 0..3);
    let ports = vec(
        (
            select(vec!["http", "dns"]),
            select(PROTOCOLS.to_vec()),
            select(PORTS.to_vec()),
        ),
        0..3,
    );
    let profiles = vec(select(vec!["own", "all"]), 0..3);
    (select(NAMESPACES.to_vec()), labels, ports, profiles).prop_map(|(namespace, labels, ports, profiles)| {
        Member {
            workload: Workload {
                kind: WorkloadKind::Pod,
                namespace: namespace.to_owned(),
                labels: labels
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
                    .collect(),
                namespace_labels: Some([("team".to_owned(), namespace.to_owned())].into()),
                profiles: profiles.into_iter().map(str::to_owned).collect(),
                named_ports: ports
                    .into_iter()
                    .map(|(name, protocol, port)| NamedPort {
                        name: name.to_owned(),
                        protocol,
                        port,
                    })
                    .collect(),
                ..Workload::default()
            },
            ..Member::default()
        }
    })
}

fn set() -> impl Strategy<Value = NetworkSet> {
    (select(APPS.to_vec()), vec(net(), 0..3), any::<bool>()).prop_map(|(app, nets, domains)| NetworkSet {
        workload: Workload {
            kind: WorkloadKind::NetworkSet,
            name: app.to_owned(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            ..Workload::default()
        },
        nets,
        domains: domains
            .then(|| DomainMatch::parse("*.example.org").unwrap())
            .into_iter()
            .collect(),
    })
}

fn net() -> impl Strategy<Value = IpNet> {
    select(NETS.to_vec()).prop_map(|net| net.parse().unwrap())
}

fn tier() -> impl Strategy<Value = Tier> {
    let default_action = select(vec![
        DefaultAction::Deny,
        DefaultAction::Deny,
        DefaultAction::Pass,
    ]);
    (option::of(0..3u8), default_action, vec(policy(), 0..4)).prop_map(|(order, default_action, policies)| {
        Tier {
            name: String::new(),
            order: Order(order.map(f64::from)),
            default_action,
            policies: policies.into_iter().map(Arc::new).collect(),
        }
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    (
        workload_match(),
        rules(),
        rules(),
        option::of(0..3u8),
        any::<(bool, bool)>(),
    )
        .prop_map(|(applies_to, ingress, egress, order, (a, b))| Policy {
            name: String::new(),
            tie_break: TieBreak::default(),
            order: Order(order.map(f64::from)),
            phase: policies_ir::policy::Phase::Local,
            applies_to,
            directions: Directions {
                ingress: a,
                egress: b,
            },
            ingress,
            egress,
        })
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let action = select(vec![
        Action::Allow,
        Action::Allow,
        Action::Allow,
        Action::Deny,
        Action::Pass,
        Action::Log,
    ]);
    vec((action, own(), end(), service()), 0..4).prop_map(|rules| {
        let numbered = rules.into_iter().zip(0u32..);
        numbered
            .map(|((action, own, peer, service), index)| Rule {
                index,
                action,
                own,
                peer,
                service,
            })
            .collect()
    })
}

fn own() -> impl Strategy<Value = EndMatch> {
    prop_oneof![4 => Just(EndMatch::default()), 1 => end()]
}

fn end() -> impl Strategy<Value = EndMatch> {
    let nets = || prop_oneof![4 => Just(Vec::new()), 1 => vec(net(), 1..3)];
    let version = option::weighted(0.1, select(vec![IpVersion::V4, IpVersion::V6]));
    let workload = option::weighted(0.5, workload_match());
    let not_workload = option::weighted(0.1, workload_match());
    (
        version,
        nets(),
        nets(),
        workload,
        not_workload,
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(ip_version, nets, not_nets, workload, not_workload, domains)| EndMatch {
                ip_version,
                nets,
                not_nets,
                workload,
                not_workload,
                domains: domains
                    .then(|| DomainMatch::parse("www.example.org").unwrap())
                    .into_iter()
                    .collect(),
            },
        )
}

fn workload_match() -> impl Strategy<Value = WorkloadMatch> {
    let namespace = prop_oneof![
        3 => Just(NamespaceMatch::Any),
        2 => select(NAMESPACES.to_vec()).prop_map(|name| NamespaceMatch::Named(name.to_owned())),
        1 => select(NAMESPACES.to_vec()).prop_map(|team| NamespaceMatch::Selected(requires("team", team))),
    ];
    let labels = prop_oneof![
        1 => Just(Selector::everything()),
        3 => (select(vec!["app", "tier"]), select(APPS.to_vec())).prop_map(|(key, value)| requires(key, value)),
        1 => select(APPS.to_vec()).prop_map(|app| Selector::Not(Box::new(requires("app", app)))),
    ];
    (namespace, labels, select(vec![Kinds::Pods, Kinds::All])).prop_map(|(namespace, labels, kinds)| {
        WorkloadMatch {
            kinds,
            namespace,
            labels,
        }
    })
}

fn requires(key: &str, value: &str) -> Selector {
    Selector::Labels(LabelSelector {
        requirements: vec![Requirement {
            key: key.to_owned(),
            operator: Operator::In(vec![value.to_owned()]),
        }],
    })
}

fn service() -> impl Strategy<Value = ServiceMatch> {
    let protocol = option::weighted(0.4, select(PROTOCOLS.to_vec()));
    let not_protocol = option::weighted(0.1, select(PROTOCOLS.to_vec()));
    let icmp = || {
        option::weighted(
            0.1,
            (select(vec![8u8, 128]), option::of(Just(0u8))).prop_map(|(kind, code)| IcmpMatch { kind, code }),
        )
    };
    let port = || {
        prop_oneof![
            3 => (select(PORTS.to_vec()), select(PORTS.to_vec()))
                .prop_map(|(a, b)| PortMatch::Range(a.min(b), a.max(b))),
            1 => select(vec!["http", "dns"]).prop_map(|name| PortMatch::Named(name.to_owned())),
        ]
    };
    let ports = move |weight: u32| prop_oneof![10 - weight => Just(Vec::new()), weight => vec(port(), 1..3)];
    (
        protocol,
        not_protocol,
        icmp(),
        icmp(),
        ports(4),
        ports(1),
        ports(1),
        ports(1),
    )
        .prop_map(
            |(protocol, not_protocol, icmp, not_icmp, ports, not_ports, source_ports, not_source_ports)| {
                ServiceMatch {
                    protocol,
                    not_protocol,
                    icmp,
                    not_icmp,
                    ports,
                    not_ports,
                    source_ports,
                    not_source_ports,
                }
            },
        )
}
