//! The ordered form.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use api::selector::LabelSelector;
use policies_ir::{
    cluster::{Cluster, Member, NetworkSet},
    policy::{
        Action, DefaultAction, Directions, DomainMatch, EndMatch, EndpointToHost, Failsafe, FailsafeMatch,
        IcmpMatch, IpVersion, Kinds, NamespaceMatch, Phase, Policy, PolicySet, PortMatch, Profile,
        ProfileRules, Rule, Selector, ServiceMatch, TieBreak, Tier, Workload, WorkloadKind, WorkloadMatch,
    },
    selector::{Expression, Relation},
    tables::EndpointId,
};
use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::*,
    sample::select,
};

use super::{
    TieredScenario, aim,
    pools::{
        ENDPOINTS, FIRST_HOST_ENDPOINT, LABEL_KEYS, LABEL_VALUES, NAMESPACES, NODES, PATTERNS, PORT_NAMES,
        PORTS, PROTOCOLS, address, labels, named_port, net, node_v4, node_v6, order, packet, requirement,
        view,
    },
};

/// The last is nobody's.
const PROFILES: [&str; 4] = ["kns.default", "first", "second", "missing"];

/// Tiers with everything that the ordered form can say, in a small cluster, and some packets.
pub fn tiered() -> impl Strategy<Value = TieredScenario> {
    (cluster(), policy_set(), vec(packet(), 1..40)).prop_map(|(cluster, policies, packets)| TieredScenario {
        packets: aim(&cluster, packets),
        cluster,
        policies,
    })
}

/// An expression of Calico's grammar, as no parser would nest it.
pub fn expression() -> impl Strategy<Value = Expression> {
    let keys = LABEL_KEYS.into_iter().filter(|key| !key.starts_with('!'));
    let own = [
        "has",
        "all",
        "projectcalico.org/orchestrator",
        "projectcalico.org/serviceaccount",
        "pcns.in",
        "pcns.projectcalico.org/name",
        "pcsa.app",
        "pcsa.projectcalico.org/name",
    ];
    let keys: Vec<&str> = keys.chain(own).collect();
    let key = move || select(keys.clone()).prop_map(str::to_owned);
    let values: Vec<&str> = LABEL_VALUES
        .into_iter()
        .chain(["eb", "k8s", "default", "has", "\"", "it's", "{a, b}"])
        .collect();
    let value = move || select(values.clone()).prop_map(str::to_owned);
    let relation = select(vec![
        Relation::Equals,
        Relation::Contains,
        Relation::StartsWith,
        Relation::EndsWith,
    ]);
    let leaf = prop_oneof![
        1 => Just(Expression::All),
        1 => Just(Expression::Global),
        3 => key().prop_map(Expression::Has),
        5 => (key(), relation, value()).prop_map(|(key, relation, value)| Expression::Value(key, relation, value)),
        3 => (key(), btree_set(value(), 0..3)).prop_map(|(key, values)| Expression::In(key, values)),
    ];
    leaf.prop_recursive(3, 10, 3, |inner| {
        prop_oneof![
            2 => inner.clone().prop_map(|inner| Expression::Not(Box::new(inner))),
            1 => vec(inner.clone(), 2..4).prop_map(Expression::And),
            1 => vec(inner, 2..4).prop_map(Expression::Or),
        ]
    })
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let profiles = || vec(select(PROFILES.to_vec()).prop_map(str::to_owned), 0..4);
    let hosts = vec((host_endpoint(), profiles()), 0..3);
    let of_pods = vec(profiles(), 8);
    (view(), hosts, vec(network_set(), 0..4), of_pods).prop_map(|(view, hosts, sets, of_pods)| {
        let mut cluster = view.cluster();
        for (member, profiles) in cluster.members.iter_mut().zip(of_pods) {
            member.workload.profiles = profiles;
        }
        let mut number = FIRST_HOST_ENDPOINT;
        for (mut host, profiles) in hosts {
            host.workload.profiles = profiles;
            if host.node == NODES[0] && number < ENDPOINTS {
                host.endpoint = Some(EndpointId(number));
                number += 1;
            }
            host.workload.name = format!("host-{number}");
            // As a view has it: what a host endpoint of another node expects is its node's, unless it is somebody else's.
            let given = cluster
                .nodes
                .values()
                .flatten()
                .copied()
                .collect::<BTreeSet<IpAddr>>();
            if host.node != NODES[0] {
                let of_node = cluster.nodes.entry(host.node.clone()).or_default();
                of_node.extend(host.addresses.difference(&given));
            }
            cluster.members.push(host);
        }
        cluster.sets = sets;
        cluster
    })
}

fn host_endpoint() -> impl Strategy<Value = Member> {
    let addresses = prop_oneof![
        3 => Just(vec![true, true]),
        1 => Just(vec![true, false]),
        1 => Just(vec![false, true]),
        1 => Just(vec![false, false]),
    ];
    let elsewhere = option::weighted(0.1, address());
    (0..2usize, addresses, elsewhere, labels(), vec(named_port(), 0..3)).prop_map(
        |(node, families, elsewhere, labels, named_ports)| {
            let of_node = [node_v4(node), node_v6(node)].into_iter().zip(families);
            let of_node = of_node.filter(|(_, has)| *has).map(|(address, _)| address);
            Member {
                workload: Workload {
                    kind: WorkloadKind::HostEndpoint,
                    labels,
                    named_ports,
                    ..Workload::default()
                },
                addresses: of_node.chain(elsewhere).collect(),
                node: NODES[node].to_owned(),
                ..Member::default()
            }
        },
    )
}

fn network_set() -> impl Strategy<Value = NetworkSet> {
    let namespace = option::of((select(NAMESPACES.to_vec()), option::weighted(0.8, labels())));
    (namespace, labels(), vec(net(), 0..4), domains(0.3)).prop_map(|(namespace, labels, nets, domains)| {
        let (namespace, namespace_labels) = match namespace {
            Some((name, labels)) => (name.to_owned(), labels),
            None => (String::new(), None),
        };
        NetworkSet {
            workload: Workload {
                kind: WorkloadKind::NetworkSet,
                namespace,
                labels,
                namespace_labels,
                ..Workload::default()
            },
            nets,
            domains,
        }
    })
}

fn domains(weight: f64) -> impl Strategy<Value = Vec<DomainMatch>> {
    let pattern = select(PATTERNS.to_vec()).prop_map(|text| DomainMatch::parse(text).expect("a pattern"));
    option::weighted(weight, vec(pattern, 1..3)).prop_map(Option::unwrap_or_default)
}

fn policy_set() -> impl Strategy<Value = PolicySet> {
    let default_action = select(vec![DefaultAction::Deny, DefaultAction::Pass]);
    let name = select(vec!["alpha", "beta", "gamma"]);
    let tiers = vec((name, order(), default_action, vec(policy(), 0..4)), 0..4);
    let profiles = [
        profile(PROFILES[0]).boxed(),
        profile(PROFILES[1]).boxed(),
        profile(PROFILES[2]).boxed(),
    ];
    let to_host = select(vec![
        EndpointToHost::Drop,
        EndpointToHost::Return,
        EndpointToHost::Accept,
    ]);
    (tiers, profiles, failsafe(), to_host).prop_map(|(tiers, profiles, failsafe, endpoint_to_host)| {
        // Names are unique, as in a store; the position makes them so.
        let tiers = tiers
            .into_iter()
            .enumerate()
            .map(|(i, (name, order, default_action, policies))| {
                let named = policies.into_iter().enumerate().map(|(j, mut policy)| {
                    policy.name = format!("Policy-{i}-{j}");
                    policy.tie_break = TieBreak::new(&policy.name, "", "");
                    Arc::new(policy)
                });
                Tier {
                    name: format!("{name}-{i}"),
                    order,
                    default_action,
                    policies: named.collect(),
                }
            });
        PolicySet {
            tiers: tiers.collect(),
            profiles: profiles
                .into_iter()
                .map(|profile| (profile.name.clone(), profile))
                .collect(),
            failsafe: failsafe.into(),
            endpoint_to_host,
        }
    })
}

fn failsafe() -> impl Strategy<Value = Failsafe> {
    let nets = || prop_oneof![2 => Just(Vec::new()), 1 => vec(net(), 1..3)];
    let open = move || {
        (nets(), service_match()).prop_map(|(nets, service)| {
            let peer = EndMatch {
                nets,
                ..EndMatch::default()
            };
            FailsafeMatch::new(peer, service)
        })
    };
    (vec(open(), 0..2), vec(open(), 0..2)).prop_map(|(inbound, outbound)| Failsafe { inbound, outbound })
}

fn policy() -> impl Strategy<Value = Policy> {
    let directions = select(vec![(true, true), (true, false), (false, true)]);
    let phase = prop_oneof![
        5 => Just(Phase::Local),
        2 => Just(Phase::LocalAndForwarded),
        1 => Just(Phase::BeforeTranslation),
        1 => Just(Phase::Untracked),
    ];
    (order(), phase, workload_match(), directions, rules(), rules()).prop_map(
        |(order, phase, applies_to, (covers_ingress, covers_egress), ingress, egress)| Policy {
            name: String::new(),
            tie_break: TieBreak::default(),
            order,
            phase,
            applies_to,
            directions: Directions {
                ingress: covers_ingress,
                egress: covers_egress,
            },
            ingress,
            egress,
        },
    )
}

fn profile(name: &'static str) -> impl Strategy<Value = Profile> {
    let own = (rules(), rules()).prop_map(|(ingress, egress)| ProfileRules::Own { ingress, egress });
    prop_oneof![Just(ProfileRules::AllowAll), own].prop_map(move |rules| Profile {
        name: name.to_owned(),
        rules,
    })
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let action = select(vec![
        Action::Allow,
        Action::Allow,
        Action::Deny,
        Action::Deny,
        Action::Pass,
        Action::Log,
    ]);
    let own = prop_oneof![
        6 => Just(EndMatch::default()),
        3 => one_condition(0),
        1 => end_match(0.05),
    ];
    let peer = prop_oneof![2 => Just(EndMatch::default()), 5 => one_condition(2), 2 => end_match(0.15)];
    vec((action, own, peer, service_match()), 0..5).prop_map(|rules| {
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

/// One condition alone: several at once hold of little.
fn one_condition(named: u32) -> impl Strategy<Value = EndMatch> {
    let any = EndMatch::default;
    let version = select(vec![IpVersion::V4, IpVersion::V6]);
    let pattern = domains(0.999);
    prop_oneof![
        1 => version.prop_map(move |version| EndMatch { ip_version: Some(version), ..any() }),
        2 => vec(net(), 1..4).prop_map(move |nets| EndMatch { nets, ..any() }),
        1 => vec(net(), 1..4).prop_map(move |not_nets| EndMatch { not_nets, ..any() }),
        3 => workload_match().prop_map(move |workload| EndMatch { workload: Some(workload), ..any() }),
        2 => workload_match().prop_map(move |workload| EndMatch { not_workload: Some(workload), ..any() }),
        named => pattern.prop_map(move |domains| EndMatch { domains, ..any() }),
    ]
}

fn end_match(named: f64) -> impl Strategy<Value = EndMatch> {
    let version = option::weighted(0.2, select(vec![IpVersion::V4, IpVersion::V6]));
    let nets = || prop_oneof![3 => Just(Vec::new()), 2 => vec(net(), 1..4)];
    let workload = || option::weighted(0.4, workload_match());
    (version, nets(), nets(), workload(), workload(), domains(named)).prop_map(
        |(ip_version, nets, not_nets, workload, not_workload, domains)| EndMatch {
            ip_version,
            nets,
            not_nets,
            workload,
            not_workload,
            domains,
        },
    )
}

fn service_match() -> impl Strategy<Value = ServiceMatch> {
    let protocol = || option::weighted(0.3, select(PROTOCOLS.to_vec()));
    let icmp = || {
        let icmp = (
            select(vec![0u8, 1, 8, 128, 255]),
            option::of(select(vec![0u8, 1, 255])),
        );
        option::weighted(0.1, icmp.prop_map(|(kind, code)| IcmpMatch { kind, code }))
    };
    let port = || {
        let range = (select(PORTS.to_vec()), select(PORTS.to_vec()))
            .prop_map(|(a, b)| PortMatch::Range(a.min(b), a.max(b)));
        let named = select(PORT_NAMES.to_vec()).prop_map(|name| PortMatch::Named(name.to_owned()));
        prop_oneof![3 => range, 1 => named]
    };
    let ports = move |some| prop_oneof![3 => Just(Vec::new()), some => vec(port(), 1..4)];
    let any = ServiceMatch::default;
    let some_ports = move || vec(port(), 1..4);
    let one = prop_oneof![
        1 => select(PROTOCOLS.to_vec()).prop_map(move |p| ServiceMatch { protocol: Some(p), ..any() }),
        1 => select(PROTOCOLS.to_vec()).prop_map(move |p| ServiceMatch { not_protocol: Some(p), ..any() }),
        2 => some_ports().prop_map(move |ports| ServiceMatch { ports, ..any() }),
        1 => some_ports().prop_map(move |not_ports| ServiceMatch { not_ports, ..any() }),
        2 => some_ports().prop_map(move |source_ports| ServiceMatch { source_ports, ..any() }),
        1 => some_ports().prop_map(move |not_source_ports| ServiceMatch { not_source_ports, ..any() }),
    ];
    let kinds = (protocol(), protocol(), icmp(), icmp());
    let mixed = (kinds, ports(2), ports(2), ports(1), ports(1)).prop_map(
        |((protocol, not_protocol, icmp, not_icmp), ports, not_ports, source_ports, not_source_ports)| {
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
    );
    prop_oneof![3 => Just(ServiceMatch::default()), 4 => one, 2 => mixed]
}

fn workload_match() -> impl Strategy<Value = WorkloadMatch> {
    let namespace = prop_oneof![
        5 => Just(NamespaceMatch::Any),
        2 => select(NAMESPACES.to_vec()).prop_map(|name| NamespaceMatch::Named(name.to_owned())),
        1 => selector().prop_map(NamespaceMatch::Selected),
    ];
    let kinds = select(vec![Kinds::All, Kinds::All, Kinds::Pods]);
    let labels = prop_oneof![1 => Just(Selector::everything()), 3 => selector()];
    (kinds, namespace, labels).prop_map(|(kinds, namespace, labels)| WorkloadMatch {
        kinds,
        namespace,
        labels,
    })
}

fn selector() -> impl Strategy<Value = Selector> {
    let by_labels =
        vec(requirement(), 0..3).prop_map(|requirements| Selector::Labels(LabelSelector { requirements }));
    let leaf = prop_oneof![by_labels, expression().prop_map(Selector::Expression)];
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Selector::All),
            vec(inner.clone(), 0..3).prop_map(Selector::Any),
            inner.prop_map(|selector| Selector::Not(Box::new(selector))),
        ]
    })
}
