//! Objects of every kind that policy reads, all of them valid.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::{calico, cluster_policy as cnp};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::{apis::meta::v1 as meta, util::intstr::IntOrString};
use policies_compiler::{CalicoObject, ServiceEndpoint};
use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
    sample::select,
};

use super::{
    Scenario, aim,
    kubernetes::network_policy,
    numbered,
    ordered::expression,
    pools::{
        ACCOUNTS, NAMESPACES, NODES, PATTERNS, PORT_NAMES, PORTS, address, label_selector, labels, net,
        node_v4, node_v6, packet, view,
    },
    with_host_endpoints,
};

const TIERS: [&str; 2] = ["security", "platform"];
const SERVICES: [&str; 2] = ["web", "gone"];
const PROFILES: [&str; 3] = ["projectcalico-default-allow", "own", "missing"];

/// Valid objects of every kind, and packets to judge at endpoints as [`with_host_endpoints`] numbers them.
pub fn objects() -> impl Strategy<Value = Scenario> {
    let calico = (
        vec(namespaced_policy(), 0..3),
        vec(global_policy(), 0..4),
        vec(staged(), 0..2),
        vec(host_endpoint(), 0..3),
        vec(network_set(), 0..4),
        (option::of(profile()), option::of(configuration())),
        vec(tier(), TIERS.len()),
    );
    let others = (
        view(),
        vec(network_policy(0), 0..3),
        vec(cluster_policy(), 0..3),
        services(),
    );
    (others, calico, vec(packet(), 1..40)).prop_map(
        |((mut view, policies, cluster_policies, services), calico, packets)| {
            let (namespaced, global, staged, hosts, sets, (profile, configuration), tiers) = calico;
            view.policies = numbered(policies);
            view.cluster_policies = cluster_policies;
            for (policy, i) in view.cluster_policies.iter_mut().zip(0..) {
                policy.metadata.name = Some(format!("cluster-{i}"));
            }
            view.services = services;
            let named = tiers.into_iter().zip(TIERS).map(|(mut tier, name)| {
                tier.metadata.name = Some(name.to_owned());
                CalicoObject::Tier(tier)
            });
            view.calico = named.collect();
            view.calico
                .extend(namespaced.into_iter().map(CalicoObject::NetworkPolicy));
            view.calico
                .extend(global.into_iter().map(CalicoObject::GlobalNetworkPolicy));
            view.calico.extend(staged);
            view.calico
                .extend(hosts.into_iter().map(CalicoObject::HostEndpoint));
            view.calico.extend(sets);
            view.calico.extend(profile.map(CalicoObject::Profile));
            view.calico
                .extend(configuration.map(CalicoObject::FelixConfiguration));
            for (object, i) in view.calico.iter_mut().zip(0..) {
                let metadata = metadata_of(object);
                metadata.name.get_or_insert_with(|| format!("object-{i}"));
            }
            let packets = aim(&with_host_endpoints(&view).0, packets);
            Scenario { view, packets }
        },
    )
}

/// The object as it stands on the wire.
pub fn object_value(object: &CalicoObject) -> serde_json::Value {
    let value = match object {
        CalicoObject::Tier(object) => serde_json::to_value(object),
        CalicoObject::NetworkPolicy(object)
        | CalicoObject::GlobalNetworkPolicy(object)
        | CalicoObject::StagedNetworkPolicy(object)
        | CalicoObject::StagedGlobalNetworkPolicy(object) => serde_json::to_value(object),
        CalicoObject::StagedKubernetesNetworkPolicy(object) => serde_json::to_value(object),
        CalicoObject::NetworkSet(object) | CalicoObject::GlobalNetworkSet(object) => {
            serde_json::to_value(object)
        }
        CalicoObject::HostEndpoint(object) => serde_json::to_value(object),
        CalicoObject::Profile(object) => serde_json::to_value(object),
        CalicoObject::FelixConfiguration(object) => serde_json::to_value(object),
    };
    let kind = match object {
        CalicoObject::Tier(_) => "Tier",
        CalicoObject::NetworkPolicy(_) => "NetworkPolicy",
        CalicoObject::GlobalNetworkPolicy(_) => "GlobalNetworkPolicy",
        CalicoObject::StagedNetworkPolicy(_) => "StagedNetworkPolicy",
        CalicoObject::StagedGlobalNetworkPolicy(_) => "StagedGlobalNetworkPolicy",
        CalicoObject::StagedKubernetesNetworkPolicy(_) => "StagedKubernetesNetworkPolicy",
        CalicoObject::NetworkSet(_) => "NetworkSet",
        CalicoObject::GlobalNetworkSet(_) => "GlobalNetworkSet",
        CalicoObject::HostEndpoint(_) => "HostEndpoint",
        CalicoObject::Profile(_) => "Profile",
        CalicoObject::FelixConfiguration(_) => "FelixConfiguration",
    };
    typed(value, calico::API_VERSION, kind)
}

/// The object as it stands on the wire.
pub fn cluster_policy_value(object: &cnp::ClusterNetworkPolicy) -> serde_json::Value {
    typed(
        serde_json::to_value(object),
        cnp::API_VERSION,
        "ClusterNetworkPolicy",
    )
}

fn typed(value: serde_json::Result<serde_json::Value>, api_version: &str, kind: &str) -> serde_json::Value {
    let mut value = value.expect("objects are JSON");
    value["apiVersion"] = api_version.into();
    value["kind"] = kind.into();
    value
}

fn metadata_of(object: &mut CalicoObject) -> &mut meta::ObjectMeta {
    match object {
        CalicoObject::Tier(object) => &mut object.metadata,
        CalicoObject::NetworkPolicy(object)
        | CalicoObject::GlobalNetworkPolicy(object)
        | CalicoObject::StagedNetworkPolicy(object)
        | CalicoObject::StagedGlobalNetworkPolicy(object) => &mut object.metadata,
        CalicoObject::StagedKubernetesNetworkPolicy(object) => &mut object.metadata,
        CalicoObject::NetworkSet(object) | CalicoObject::GlobalNetworkSet(object) => &mut object.metadata,
        CalicoObject::HostEndpoint(object) => &mut object.metadata,
        CalicoObject::Profile(object) => &mut object.metadata,
        CalicoObject::FelixConfiguration(object) => &mut object.metadata,
    }
}

fn object<S>(spec: S) -> calico::Object<S> {
    calico::Object {
        api_version: String::new(),
        kind: String::new(),
        metadata: meta::ObjectMeta::default(),
        spec,
    }
}

fn tier() -> impl Strategy<Value = calico::Tier> {
    let action = select(vec![None, Some("Deny"), Some("Pass")]);
    (order(), action).prop_map(|(order, action)| {
        object(calico::TierSpec {
            order,
            default_action: action.map(str::to_owned),
        })
    })
}

fn order() -> impl Strategy<Value = Option<f64>> {
    option::of(select(vec![-1.0, -0.0, 0.0, 10.5, 999.0, 1000.0, 2_000_000.0]))
}

fn namespaced_policy() -> impl Strategy<Value = calico::NetworkPolicy> {
    let namespace = select(NAMESPACES.to_vec());
    (namespace, policy_spec()).prop_map(|(namespace, spec)| {
        let mut policy = object(spec);
        policy.metadata.namespace = Some(namespace.to_owned());
        policy
    })
}

fn global_policy() -> impl Strategy<Value = calico::GlobalNetworkPolicy> {
    let phase = prop_oneof![
        6 => Just((None, None, None)),
        2 => Just((None, Some(false), Some(true))),
        1 => Just((None, Some(true), Some(true))),
        1 => Just((Some(true), None, Some(true))),
    ];
    let namespaces = option::weighted(0.3, plain_text());
    (policy_spec(), phase, namespaces).prop_map(|(mut spec, (untracked, early, forward), namespaces)| {
        (spec.do_not_track, spec.pre_dnat, spec.apply_on_forward) = (untracked, early, forward);
        spec.namespace_selector = namespaces.unwrap_or_default();
        let rules = spec.ingress.iter_mut().chain(&mut spec.egress);
        for entity in rules
            .flat_map(|rule| [&mut rule.source, &mut rule.destination])
            .flatten()
        {
            if let Some(service) = entity
                .services
                .as_mut()
                .filter(|service| service.namespace.is_empty())
            {
                NAMESPACES[0].clone_into(&mut service.namespace);
            }
            if untracked == Some(true) {
                entity.domains.clear();
            }
        }
        if early == Some(true) {
            spec.egress.clear();
            spec.types.clear();
        }
        object(spec)
    })
}

fn policy_spec() -> impl Strategy<Value = calico::PolicySpec> {
    let tier = select(vec![
        None,
        Some("default"),
        Some("security"),
        Some("platform"),
        Some("nowhere"),
    ]);
    let types = select(vec![
        vec![],
        vec!["Ingress"],
        vec!["Egress"],
        vec!["Egress", "Ingress"],
    ]);
    let selector = option::weighted(0.4, plain_text());
    let accounts = option::weighted(0.1, plain_text());
    (
        tier,
        order(),
        types,
        selector,
        accounts,
        rules(true),
        rules(false),
    )
        .prop_map(
            |(tier, order, types, selector, accounts, ingress, egress)| calico::PolicySpec {
                tier: tier.map(str::to_owned),
                order,
                types: types.into_iter().map(str::to_owned).collect(),
                selector: selector.unwrap_or_default(),
                service_account_selector: accounts.unwrap_or_default(),
                ingress,
                egress,
                ..calico::PolicySpec::default()
            },
        )
}

fn staged() -> impl Strategy<Value = CalicoObject> {
    let set = select(vec![None, Some("Set"), Some("Learn"), Some("Ignore")]);
    (namespaced_policy(), set, any::<bool>()).prop_map(|(mut policy, action, global)| {
        policy.spec.staged_action = action.map(str::to_owned);
        if !global {
            return CalicoObject::StagedNetworkPolicy(policy);
        }
        policy.metadata.namespace = None;
        // Services would need a namespace.
        (policy.spec.ingress, policy.spec.egress) = (Vec::new(), Vec::new());
        CalicoObject::StagedGlobalNetworkPolicy(policy)
    })
}

/// A selector in which `global()` does not occur, as text.
fn plain_text() -> impl Strategy<Value = String> {
    let simple = select(vec![
        "all()",
        "has(app)",
        "!has(app)",
        "app != 'web'",
        "projectcalico.org/orchestrator == 'k8s'",
        "!has(projectcalico.org/namespace)",
        "projectcalico.org/namespace in {'default', 'pci'}",
    ]);
    let any = expression().prop_map(|expression| match expression.mentions_global() {
        true => "has(in) || app contains 'w'".to_owned(),
        false => expression.to_string(),
    });
    prop_oneof![1 => simple.prop_map(str::to_owned), 1 => any]
}

fn rules(ingress: bool) -> impl Strategy<Value = Vec<calico::Rule>> {
    vec(rule(ingress), 0..4)
}

/// What fits together on the wire: a protocol, and what only some protocols have.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    Any,
    Ports(&'static str),
    Icmp(bool),
    Other(&'static str),
}

fn rule(ingress: bool) -> impl Strategy<Value = calico::Rule> {
    let action = select(vec!["Allow", "Allow", "Deny", "Deny", "Pass", "Log"]);
    let shape = prop_oneof![
        3 => Just(Shape::Any),
        4 => select(vec!["TCP", "tcp", "UDP", "17", "SCTP"]).prop_map(Shape::Ports),
        1 => any::<bool>().prop_map(Shape::Icmp),
        1 => select(vec!["47", "UDPLite"]).prop_map(Shape::Other),
    ];
    (action, shape, any::<bool>(), any::<bool>()).prop_flat_map(move |(action, shape, v4, has_version)| {
        let v4 = if let Shape::Icmp(v6) = shape { !v6 } else { v4 };
        let icmp = option::weighted(
            0.5,
            (select(vec![0, 8, 128]), option::of(select(vec![0, 255]))).prop_map(|(kind, code)| {
                calico::Icmp {
                    kind: Some(kind),
                    code,
                }
            }),
        );
        let not_protocol = option::weighted(0.1, select(vec!["TCP", "47", "SCTP"]));
        let (near, far) = (entity(v4, shape, None), entity(v4, shape, Some(ingress)));
        let ends = (option::weighted(0.2, near), option::weighted(0.7, far));
        (not_protocol, icmp.clone(), icmp, ends).prop_map(
            move |(not_protocol, icmp, not_icmp, (near, far))| {
                let (mut source, mut destination) = if ingress { (far, near) } else { (near, far) };
                if let Some(destination) = &mut destination {
                    if action != "Allow" {
                        destination.domains.clear();
                    }
                    if destination.services.is_some() {
                        (destination.ports, destination.not_ports) = (Vec::new(), Vec::new());
                    }
                }
                if let Some(source) = &mut source {
                    source.domains.clear();
                }
                let is_icmp = matches!(shape, Shape::Icmp(_));
                calico::Rule {
                    action: action.to_owned(),
                    ip_version: has_version.then_some(if v4 { 4 } else { 6 }),
                    protocol: match shape {
                        Shape::Any => None,
                        Shape::Ports("17") => Some(IntOrString::Int(17)),
                        Shape::Ports(name) | Shape::Other(name) => Some(IntOrString::String(name.to_owned())),
                        Shape::Icmp(false) => Some(IntOrString::String("ICMP".to_owned())),
                        Shape::Icmp(true) => Some(IntOrString::Int(58)),
                    },
                    not_protocol: not_protocol.map(|name| IntOrString::String(name.to_owned())),
                    icmp: icmp.filter(|_| is_icmp),
                    not_icmp: not_icmp.filter(|_| is_icmp),
                    source,
                    destination,
                    ..calico::Rule::default()
                }
            },
        )
    })
}

/// One end of a rule whose addresses are of one family. `far` says, of the end that is not the policy's own, whether
/// the rule is for ingress.
fn entity(v4: bool, shape: Shape, far: Option<bool>) -> impl Strategy<Value = calico::EntityRule> {
    let nets = move || vec(family_net(v4), 0..3);
    let text = |weight| option::weighted(weight, plain_text()).prop_map(Option::unwrap_or_default);
    let namespaces = prop_oneof![
        6 => Just(String::new()),
        1 => Just("all()".to_owned()),
        1 => Just("global()".to_owned()),
        2 => plain_text(),
    ];
    let names = vec(select(ACCOUNTS.to_vec()).prop_map(str::to_owned), 0..2);
    let accounts =
        (names, text(0.5)).prop_map(|(names, selector)| calico::ServiceAccounts { names, selector });
    let labels = (
        text(0.4),
        text(0.15),
        namespaces,
        option::weighted(0.15, accounts),
    );
    let namespace = prop_oneof![Just(""), select(NAMESPACES.to_vec())];
    let service = (select(SERVICES.to_vec()), namespace).prop_map(|(name, namespace)| calico::ServiceName {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
    });
    let domains = vec(select(PATTERNS.to_vec()).prop_map(str::to_owned), 1..3);
    let ports = move || prop_oneof![2 => Just(Vec::new()), 1 => vec(port(shape), 1..3)];
    (
        0..10u8,
        labels,
        (nets(), nets()),
        service,
        domains,
        (ports(), ports()),
    )
        .prop_map(
            move |(
                kind,
                (selector, not_selector, namespace_selector, accounts),
                nets,
                service,
                domains,
                ports,
            )| {
                let mut entity = calico::EntityRule::default();
                if matches!(shape, Shape::Ports(_)) || (shape == Shape::Any && kind % 3 == 0) {
                    (entity.ports, entity.not_ports) = ports;
                }
                match (kind, far) {
                    (0, Some(_)) => {
                        entity.services = Some(service);
                        return entity;
                    }
                    (1 | 2, Some(false)) => {
                        entity.domains = domains;
                        return entity;
                    }
                    (1..=5, _) => {
                        (entity.selector, entity.not_selector) = (selector, not_selector);
                        (entity.namespace_selector, entity.service_accounts) = (namespace_selector, accounts);
                    }
                    _ => {}
                }
                if (5..8).contains(&kind) {
                    let texts = |nets: Vec<IpNet>| nets.into_iter().map(|net| net.to_string()).collect();
                    entity.nets = texts(nets.0);
                    entity.not_nets = texts(nets.1.into_iter().filter(|net| net.prefix_len() > 0).collect());
                }
                entity
            },
        )
}

/// One of the family, near the pods where the pools gave one of the other. (A filter would reject too many.)
fn family_net(v4: bool) -> impl Strategy<Value = IpNet> {
    net().prop_map(move |net| {
        let near = match (net.addr(), v4) {
            (IpAddr::V4(address), false) => {
                let last = u128::from(address.octets()[3]);
                IpNet::new(Ipv6Addr::from(0xfd00 << 112 | last).into(), net.prefix_len() * 4)
            }
            (IpAddr::V6(address), true) => {
                let last = address.octets()[15];
                IpNet::new(Ipv4Addr::new(10, 0, 0, last).into(), net.prefix_len() / 4)
            }
            _ => return net,
        };
        near.expect("a length of the family")
    })
}

fn port(shape: Shape) -> impl Strategy<Value = IntOrString> {
    let named = select(PORT_NAMES.to_vec()).prop_map(|name| IntOrString::String(name.to_owned()));
    let one = || select(PORTS.to_vec()).prop_map(|port| port.max(1));
    let number = one().prop_map(|port| IntOrString::Int(port.into()));
    let range = (one(), one()).prop_map(|(a, b)| IntOrString::String(format!("{}:{}", a.min(b), a.max(b))));
    match shape {
        Shape::Ports(_) => prop_oneof![2 => named, 3 => number, 3 => range].boxed(),
        _ => named.boxed(),
    }
}

fn host_endpoint() -> impl Strategy<Value = calico::HostEndpoint> {
    let profiles = vec(select(PROFILES.to_vec()).prop_map(str::to_owned), 0..3);
    let port = (
        select(PORT_NAMES.to_vec()),
        select(vec!["TCP", "udp"]),
        select(vec![80, 8080]),
    )
        .prop_map(|(name, protocol, port)| calico::EndpointPort {
            name: name.to_owned(),
            protocol: IntOrString::String(protocol.to_owned()),
            port,
        });
    let addresses = select(vec![(true, true), (true, false), (false, true), (false, false)]);
    // What the node need not have.
    let elsewhere = option::weighted(0.1, address());
    let expected = (addresses, elsewhere);
    (0..NODES.len(), expected, labels(), profiles, vec(port, 0..3)).prop_map(
        |(node, ((v4, v6), elsewhere), labels, profiles, ports)| {
            let of_node = [(v4, node_v4(node)), (v6, node_v6(node))].into_iter();
            let mut host = object(calico::HostEndpointSpec {
                node: NODES[node].to_owned(),
                interface_name: "eth0".to_owned(),
                expected_ips: of_node
                    .filter(|(has, _)| *has)
                    .map(|(_, address)| address)
                    .chain(elsewhere)
                    .map(|address| address.to_string())
                    .collect(),
                profiles,
                ports,
            });
            host.metadata.labels = Some(labels);
            host
        },
    )
}

fn network_set() -> impl Strategy<Value = CalicoObject> {
    let namespace = option::of(select(NAMESPACES.to_vec()));
    let domains = vec(select(PATTERNS.to_vec()).prop_map(str::to_owned), 0..2);
    (namespace, labels(), vec(net(), 0..4), domains).prop_map(|(namespace, mut labels, nets, domains)| {
        labels.remove("projectcalico.org/namespace");
        let mut set = object(calico::NetworkSetSpec {
            nets: nets.iter().map(ToString::to_string).collect(),
            allowed_egress_domains: domains,
        });
        set.metadata.labels = Some(labels);
        match namespace {
            None => CalicoObject::GlobalNetworkSet(set),
            Some(namespace) => {
                set.metadata.namespace = Some(namespace.to_owned());
                CalicoObject::NetworkSet(set)
            }
        }
    })
}

fn profile() -> impl Strategy<Value = calico::Profile> {
    (rules(true), rules(false), labels()).prop_map(|(ingress, egress, labels_to_apply)| {
        let mut profile = object(calico::ProfileSpec {
            ingress,
            egress,
            labels_to_apply,
        });
        profile.metadata.name = Some(PROFILES[1].to_owned());
        let rules = profile.spec.ingress.iter_mut().chain(&mut profile.spec.egress);
        for entity in rules
            .flat_map(|rule| [&mut rule.source, &mut rule.destination])
            .flatten()
        {
            if let Some(service) = &mut entity.services {
                NAMESPACES[1].clone_into(&mut service.namespace);
            }
        }
        profile
    })
}

fn configuration() -> impl Strategy<Value = calico::FelixConfiguration> {
    let action = select(vec![None, Some("Drop"), Some("Return"), Some("Accept")]);
    let port = || {
        (
            select(vec![None, Some("udp")]),
            select(vec![53, 80, 8080]),
            option::weighted(0.3, net()),
        )
            .prop_map(|(protocol, port, net)| calico::ProtoPort {
                protocol: protocol.map(str::to_owned),
                port,
                net: net.map(|net| net.to_string()),
            })
    };
    let ports = || option::of(vec(port(), 0..3));
    (action, ports(), ports()).prop_map(|(action, inbound, outbound)| {
        let mut configuration = object(calico::FelixConfigurationSpec {
            default_endpoint_to_host_action: action.map(str::to_owned),
            failsafe_inbound_host_ports: inbound,
            failsafe_outbound_host_ports: outbound,
        });
        configuration.metadata.name = Some("default".to_owned());
        configuration
    })
}

type Services = std::collections::BTreeMap<(String, String), std::collections::BTreeSet<ServiceEndpoint>>;

fn services() -> impl Strategy<Value = Services> {
    let port = option::weighted(0.9, (select(vec![6u8, 17, 132]), select(vec![53u16, 80, 8080])));
    let endpoint = (address(), port).prop_map(|(address, port)| ServiceEndpoint { address, port });
    let key =
        select(NAMESPACES.to_vec()).prop_map(|namespace| (namespace.to_owned(), SERVICES[0].to_owned()));
    btree_map(key, btree_set(endpoint, 0..4), 0..3)
}

fn cluster_policy() -> impl Strategy<Value = cnp::ClusterNetworkPolicy> {
    let ingress = vec(
        (cluster_action(), vec(cluster_peer(true), 1..3), protocols()),
        0..3,
    );
    let egress = vec(
        (cluster_action(), vec(cluster_peer(false), 1..3), protocols()),
        0..3,
    );
    let subject = prop_oneof![
        label_selector().prop_map(|namespaces| cnp::Subject {
            namespaces: Some(namespaces),
            pods: None
        }),
        pods().prop_map(|pods| cnp::Subject {
            namespaces: None,
            pods: Some(pods)
        }),
    ];
    let tier = select(vec!["Admin", "Baseline"]);
    (tier, select(vec![0, 10, 1000]), subject, ingress, egress).prop_map(
        |(tier, priority, subject, ingress, egress)| cnp::ClusterNetworkPolicy {
            spec: cnp::Spec {
                tier: tier.to_owned(),
                priority,
                subject,
                ingress: ingress
                    .into_iter()
                    .map(|(action, from, protocols)| cnp::IngressRule {
                        name: String::new(),
                        action: action.to_owned(),
                        from,
                        protocols,
                    })
                    .collect(),
                egress: egress
                    .into_iter()
                    .map(|(action, mut to, protocols)| {
                        let named = |p: &cnp::Protocol| !p.destination_named_port.is_empty();
                        let asks_name = protocols.iter().flatten().any(named);
                        for peer in &mut to {
                            let outside = peer.namespaces.is_none() && peer.pods.is_none();
                            if (outside && asks_name) || (!peer.domain_names.is_empty() && action != "Accept")
                            {
                                *peer = cnp::Peer {
                                    namespaces: Some(meta::LabelSelector::default()),
                                    ..cnp::Peer::default()
                                };
                            }
                        }
                        cnp::EgressRule {
                            name: String::new(),
                            action: action.to_owned(),
                            to,
                            protocols,
                        }
                    })
                    .collect(),
            },
            ..cnp::ClusterNetworkPolicy::default()
        },
    )
}

fn cluster_action() -> impl Strategy<Value = &'static str> {
    select(vec!["Accept", "Accept", "Deny", "Deny", "Pass"])
}

fn pods() -> impl Strategy<Value = cnp::NamespacedPods> {
    (label_selector(), label_selector()).prop_map(|(namespace_selector, pod_selector)| cnp::NamespacedPods {
        namespace_selector,
        pod_selector,
    })
}

fn cluster_peer(ingress: bool) -> impl Strategy<Value = cnp::Peer> {
    let domains = vec(select(PATTERNS.to_vec()).prop_map(str::to_owned), 1..3);
    let kinds = if ingress { 2u8 } else { 5 };
    (0..kinds, label_selector(), pods(), vec(net(), 1..3), domains).prop_map(
        |(kind, selector, pods, nets, domain_names)| {
            let mut peer = cnp::Peer::default();
            match kind {
                0 => peer.namespaces = Some(selector),
                1 => peer.pods = Some(pods),
                2 => peer.nodes = Some(selector),
                3 => peer.networks = nets.iter().map(ToString::to_string).collect(),
                _ => peer.domain_names = domain_names,
            }
            peer
        },
    )
}

fn protocols() -> impl Strategy<Value = Option<Vec<cnp::Protocol>>> {
    let port = (select(PORTS.to_vec()), option::of(select(PORTS.to_vec()))).prop_map(|(a, b)| {
        let a = i32::from(a.max(1));
        match b.map(|b| i32::from(b.max(1))) {
            None => cnp::Port {
                number: Some(a),
                range: None,
            },
            Some(b) => cnp::Port {
                number: None,
                range: Some(cnp::PortRange {
                    start: a.min(b),
                    end: a.max(b),
                }),
            },
        }
    });
    let protocol = (0..4u8, option::of(port), select(PORT_NAMES.to_vec())).prop_map(|(kind, port, name)| {
        let mut protocol = cnp::Protocol::default();
        let ports = Some(cnp::Ports {
            destination_port: port,
        });
        match kind {
            0 => protocol.tcp = ports,
            1 => protocol.udp = ports,
            2 => protocol.sctp = ports,
            _ => name.clone_into(&mut protocol.destination_named_port),
        }
        protocol
    });
    option::weighted(0.6, vec(protocol, 1..3))
}
