//! Random clusters, policies and packets, for tests that compare what judges packets: the reference, the
//! compiled tables and the kernel.
//!
//! Everything is drawn from small pools, so that selectors select, CIDRs overlap and ports collide; the pools
//! hold the awkward: prefixes of every length, label names that are words of other grammars, ports at the
//! ends, two pods with one address, fields that no validation would let through.
//!
//! [`kubernetes`] makes clusters with NetworkPolicy objects, [`tiered`] makes the ordered form with all that
//! it can say.

#![expect(clippy::expect_used, reason = "a pool that does not parse is a broken test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use api::selector::{LabelSelector, Labels, Operator, Requirement, is_label_key};
use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1 as meta, util::intstr::IntOrString},
};
use policies_compiler::{ClusterView, PodView};
use policies_ir::{
    cluster::Cluster,
    policy::{
        Action, DefaultAction, Directions, EndMatch, EndpointToHost, Failsafe, IcmpMatch, IpVersion, Kinds,
        NamedPort, NamespaceMatch, Order, PORT_PROTOCOLS, Phase, Policy, PolicySet, PortMatch, Profile,
        ProfileRules, Rule, Selector, ServiceMatch, Tier, WorkloadMatch,
    },
    tables::{Direction, EndpointId, Packet},
};
use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
    sample::select,
};

/// Kubernetes objects, and packets to judge. Some packets name an endpoint that does not exist.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The cluster.
    pub view: ClusterView,
    /// Packets, each at one endpoint.
    pub packets: Vec<(EndpointId, Packet)>,
}

/// The ordered form, and packets to judge.
#[derive(Debug, Clone)]
pub struct TieredScenario {
    /// Who has which address.
    pub cluster: Cluster,
    /// The policies.
    pub policies: PolicySet,
    /// Packets, each at one endpoint.
    pub packets: Vec<(EndpointId, Packet)>,
}

const NAMESPACES: [&str; 3] = ["default", "pci", "in"];
const LABEL_KEYS: [&str; 6] = [
    "app",
    "in",
    "!has",
    "kubernetes.io/metadata.name",
    "x.y-z/App_1",
    "0",
];
const LABEL_VALUES: [&str; 5] = [
    "",
    "web",
    "in",
    "pci",
    "z23456789012345678901234567890123456789012345678901234567890123",
];
const PORT_NAMES: [&str; 2] = ["http", "a-1"];
/// Few, so that packets meet them. GRE has no ports, but nothing keeps a named port from claiming it.
const NAMED_PORTS: [u16; 3] = [0, 80, 8080];
/// Some are also an ICMP type and code: 256, 2048, 2049, 32768, 65280.
const PORTS: [u16; 18] = [
    0, 1, 2, 53, 79, 80, 81, 256, 443, 2048, 2049, 8079, 8080, 32767, 32768, 65280, 65534, 65535,
];
const PROTOCOLS: [u8; 9] = [6, 6, 17, 132, 1, 58, 47, 0, 255];
const ENDPOINTS: u32 = 8;

/// Kubernetes policies in a small cluster, and some packets. About one policy in ten has a field that is not
/// valid.
pub fn kubernetes() -> impl Strategy<Value = Scenario> {
    (view(), vec(packet(), 1..40)).prop_map(|(view, packets)| {
        let packets = aim(&view, packets);
        Scenario { view, packets }
    })
}

/// Tiers with everything that the ordered form can say, in a small cluster, and some packets.
pub fn tiered() -> impl Strategy<Value = TieredScenario> {
    let tiers = vec(
        (
            select(vec!["alpha", "beta", "gamma"]),
            order(),
            default_action(),
            policies(),
        ),
        0..4,
    );
    let profiles = vec(profile(), 0..3);
    (view(), tiers, profiles, vec(packet(), 1..40)).prop_map(|(view, tiers, profiles, packets)| {
        // Names are unique, as in a store; the position makes them so.
        let tiers = tiers
            .into_iter()
            .enumerate()
            .map(|(i, (name, order, default_action, policies))| {
                let named = policies.into_iter().enumerate().map(|(j, mut policy)| {
                    policy.name = format!("{}-{i}-{j}", policy.name);
                    policy.tie_break.clone_from(&policy.name);
                    Arc::new(policy)
                });
                let name = format!("{name}-{i}");
                Tier {
                    name,
                    order,
                    default_action,
                    policies: named.collect(),
                }
            });
        let mut cluster = view.cluster();
        for member in &mut cluster.members {
            member.workload.profiles = profiles.iter().map(|profile| profile.name.clone()).collect();
        }
        let policies = PolicySet {
            tiers: tiers.collect(),
            profiles: profiles
                .into_iter()
                .map(|profile| (profile.name.clone(), profile))
                .collect(),
            failsafe: Failsafe::default(),
            endpoint_to_host: EndpointToHost::Return,
        };
        TieredScenario {
            cluster,
            policies,
            packets: aim(&view, packets),
        }
    })
}

/// A policy of which every field is valid.
pub fn valid_network_policy() -> impl Strategy<Value = NetworkPolicy> {
    network_policy(0)
}

/// A first packet of a flow, at one endpoint, which may not exist.
pub fn packet() -> impl Strategy<Value = (EndpointId, Packet)> {
    let direction = select(vec![Direction::Ingress, Direction::Egress]);
    let port = prop_oneof![8 => select(PORTS.to_vec()), 2 => any::<u16>()];
    (
        1..=ENDPOINTS,
        direction,
        address(),
        select(PROTOCOLS.to_vec()),
        port.clone(),
        port,
    )
        .prop_map(|(endpoint, direction, peer, protocol, source_port, port)| {
            let has_ports = PORT_PROTOCOLS.contains(&protocol);
            (
                EndpointId(endpoint),
                Packet {
                    direction,
                    peer,
                    protocol,
                    source_port: if has_ports { source_port } else { 0 },
                    port,
                },
            )
        })
}

/// An address: mostly a pod's, the node's, or near one.
pub fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        8 => (0..12u8).prop_map(pod_v4),
        4 => (0..12u8).prop_map(pod_v6),
        1 => Just(node_v4()),
        1 => Just(node_v6()),
        2 => select(vec!["0.0.0.0", "10.0.1.1", "11.0.0.1", "192.0.2.7", "223.255.255.255"])
            .prop_map(|text| text.parse().expect("an address")),
        1 => select(vec!["::1", "fd00::1:1", "fd01::1", "2001:db8::7"])
            .prop_map(|text| text.parse().expect("an address")),
        1 => any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into()),
        // IPv4 in IPv6 form never reaches a judge: it is no address of a packet.
        1 => any::<u128>().prop_map(|bits| Ipv6Addr::from(bits | 1 << 127).into()),
    ]
}

/// Moves packets to endpoints that exist, but for those at the last number.
fn aim(view: &ClusterView, mut packets: Vec<(EndpointId, Packet)>) -> Vec<(EndpointId, Packet)> {
    let endpoints: Vec<EndpointId> = view.pods.iter().filter_map(|pod| pod.endpoint).collect();
    for ((endpoint, _), turn) in packets.iter_mut().zip(0..) {
        let chosen = endpoints
            .iter()
            .cycle()
            .nth(turn)
            .filter(|_| endpoint.0 != ENDPOINTS);
        *endpoint = chosen.copied().unwrap_or(*endpoint);
    }
    packets
}

fn pod_v4(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number).into()
}

fn pod_v6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into()
}

fn node_v4() -> IpAddr {
    Ipv4Addr::new(10, 0, 0, 254).into()
}

fn node_v6() -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, 0xfe).into()
}

fn view() -> impl Strategy<Value = ClusterView> {
    // A namespace may be missing.
    let namespaces = btree_map(select(NAMESPACES.to_vec()), labels(), 2..=NAMESPACES.len());
    let policies = vec(network_policy(1), 0..6);
    let pods = vec(pod(), 1..8);
    (namespaces, pods, policies).prop_map(|(namespaces, pods, policies)| {
        let pods = pods.into_iter().zip(0u8..).map(|(mut pod, i)| {
            pod.name = format!("pod-{i}");
            // Most pods have addresses of their own; those with one already may share it.
            if pod.addresses.is_empty() {
                pod.addresses = BTreeSet::from([pod_v4(2 * i + 1), pod_v6(2 * i + 1)]);
            }
            pod.endpoint = pod.endpoint.map(|_| EndpointId(u32::from(i) + 1));
            pod
        });
        let policies = policies.into_iter().enumerate().map(|(i, mut policy)| {
            policy.metadata.name = Some(format!("policy-{i}"));
            policy
        });
        let namespaces = namespaces.into_iter().map(|(name, mut labels)| {
            labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
            (name.to_owned(), labels)
        });
        ClusterView {
            pods: pods.collect(),
            namespaces: namespaces.collect(),
            policies: policies.collect(),
            host_addresses: BTreeSet::from([node_v4(), node_v6()]),
            ..ClusterView::default()
        }
    })
}

fn pod() -> impl Strategy<Value = PodView> {
    let shared = btree_set(address(), 1..3);
    let addresses = prop_oneof![9 => Just(BTreeSet::new()), 1 => shared];
    let endpoint = option::weighted(0.7, Just(EndpointId(0)));
    (
        select(NAMESPACES.to_vec()),
        labels(),
        addresses,
        vec(named_port(), 0..5),
        endpoint,
    )
        .prop_map(|(namespace, labels, addresses, named_ports, endpoint)| PodView {
            namespace: namespace.to_owned(),
            name: String::new(),
            labels,
            addresses,
            named_ports,
            endpoint,
            ..PodView::default()
        })
}

fn labels() -> impl Strategy<Value = Labels> {
    let label = (select(LABEL_KEYS.to_vec()), select(LABEL_VALUES.to_vec()));
    vec(label, 0..4).prop_map(|labels| {
        let owned = labels
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        owned.collect::<BTreeMap<_, _>>()
    })
}

fn named_port() -> impl Strategy<Value = NamedPort> {
    let protocol = select(vec![6u8, 6, 6, 17, 132, 47]);
    (
        select(PORT_NAMES.to_vec()),
        protocol,
        select(NAMED_PORTS.to_vec()),
    )
        .prop_map(|(name, protocol, port)| NamedPort {
            name: name.to_owned(),
            protocol,
            port,
        })
}

/// A valid CIDR around something in the pools, or anywhere.
fn net() -> impl Strategy<Value = IpNet> {
    let length = prop_oneof![
        6 => select(vec![0u8, 1, 7, 8, 9, 23, 24, 25, 28, 29, 30, 31, 32]),
        2 => 0..=32u8,
    ];
    (address(), length, select(vec![0u8, 8, 32, 64, 95, 96])).prop_map(|(address, length, more)| {
        let length = if address.is_ipv4() { length } else { length + more };
        IpNet::new(address, length).expect("a length of the family")
    })
}

/// `bad` in ten policies, on average, have a field that is not valid.
fn network_policy(bad: u32) -> impl Strategy<Value = NetworkPolicy> {
    let types = prop_oneof![
        3 => Just(None),
        2 => Just(Some(vec!["Ingress"])),
        2 => Just(Some(vec!["Egress"])),
        4 => Just(Some(vec!["Ingress", "Egress"])),
    ];
    let rules = || {
        option::weighted(
            0.8,
            vec(
                (option::of(vec(peer(), 0..3)), option::of(vec(port(), 0..4))),
                0..3,
            ),
        )
    };
    let damage =
        prop_oneof![(10 - bad) => Just(None), bad => any::<(u8, prop::sample::Index)>().prop_map(Some)];
    (
        select(NAMESPACES.to_vec()),
        label_selector(),
        types,
        rules(),
        rules(),
        damage,
    )
        .prop_map(|(namespace, pod_selector, types, ingress, egress, damage)| {
            let ingress = ingress.map(|rules| {
                rules
                    .into_iter()
                    .map(|(from, ports)| NetworkPolicyIngressRule { from, ports })
                    .collect()
            });
            let egress = egress.map(|rules| {
                rules
                    .into_iter()
                    .map(|(to, ports)| NetworkPolicyEgressRule { to, ports })
                    .collect()
            });
            let mut policy = NetworkPolicy {
                metadata: meta::ObjectMeta {
                    namespace: Some(namespace.to_owned()),
                    ..Default::default()
                },
                spec: Some(NetworkPolicySpec {
                    pod_selector: Some(pod_selector),
                    policy_types: types.map(|types| types.into_iter().map(str::to_owned).collect()),
                    ingress,
                    egress,
                }),
            };
            if let Some((kind, place)) = damage {
                break_field(&mut policy, kind, place);
            }
            policy
        })
}

/// Makes one field of a policy invalid. `kind` says which sort of field, or the next sort that the policy has;
/// `place` says which of those there are.
pub fn break_field(policy: &mut NetworkPolicy, kind: u8, place: prop::sample::Index) {
    let spec = policy.spec.get_or_insert_default();
    let kinds = (0..BREAKABLE).map(|next| (kind % BREAKABLE + next) % BREAKABLE);
    for kind in kinds {
        if break_kind(spec, kind, place) {
            return;
        }
    }
}

/// Sorts of fields that [`break_kind`] can break; the first two are in every policy.
const BREAKABLE: u8 = 12;

/// Returns whether there was such a field.
fn break_kind(spec: &mut NetworkPolicySpec, kind: u8, place: prop::sample::Index) -> bool {
    let bad_selector = || meta::LabelSelector {
        match_expressions: Some(vec![meta::LabelSelectorRequirement {
            key: "app".to_owned(),
            operator: "Near".to_owned(),
            values: None,
        }]),
        match_labels: None,
    };
    let ingress = spec
        .ingress
        .iter_mut()
        .flatten()
        .map(|rule| (&mut rule.from, &mut rule.ports));
    let egress = spec
        .egress
        .iter_mut()
        .flatten()
        .map(|rule| (&mut rule.to, &mut rule.ports));
    let (peers, ports): (Vec<_>, Vec<_>) = ingress.chain(egress).unzip();
    let mut peers: Vec<_> = peers.into_iter().flatten().flatten().collect();
    let mut ports: Vec<_> = ports.into_iter().flatten().flatten().collect();
    let port = (!ports.is_empty())
        .then(|| place.index(ports.len()))
        .map(|i| &mut *ports[i]);
    let peer = (!peers.is_empty())
        .then(|| place.index(peers.len()))
        .map(|i| &mut *peers[i]);
    match (kind, peer, port) {
        (0, _, _) => spec.pod_selector = Some(bad_selector()),
        (1, _, _) => spec.policy_types = Some(vec!["Both".to_owned()]),
        (2, Some(peer), _) => *peer = NetworkPolicyPeer::default(),
        (3, Some(peer), _) => {
            peer.ip_block = Some(IPBlock {
                cidr: "10.0.0.0/8".to_owned(),
                except: None,
            });
            peer.pod_selector = Some(meta::LabelSelector::default());
        }
        (4, Some(peer), _) => {
            *peer = NetworkPolicyPeer {
                namespace_selector: Some(bad_selector()),
                ..Default::default()
            };
        }
        (5, Some(peer), _) => {
            let block = IPBlock {
                cidr: "010.0.0.0/8".to_owned(),
                except: None,
            };
            *peer = NetworkPolicyPeer {
                ip_block: Some(block),
                ..Default::default()
            };
        }
        (6, Some(peer), _) => {
            let Some(block) = &mut peer.ip_block else {
                return false;
            };
            block.except.get_or_insert_default().push("10.0.0.1".to_owned());
        }
        (7, Some(peer), _) => {
            let block = IPBlock {
                cidr: "::ffff:10.0.0.0/104".to_owned(),
                except: None,
            };
            *peer = NetworkPolicyPeer {
                ip_block: Some(block),
                ..Default::default()
            };
        }
        (8, _, Some(port)) => port.protocol = Some("tcp".to_owned()),
        (9, _, Some(port)) => port.port = Some(IntOrString::Int(65536 + 80)),
        (10, _, Some(port)) => port.port = Some(IntOrString::String("80".to_owned())),
        (11, _, Some(port)) => {
            port.port = Some(IntOrString::Int(80));
            port.end_port = Some(79);
        }
        _ => return false,
    }
    true
}

fn peer() -> impl Strategy<Value = NetworkPolicyPeer> {
    let selectors =
        (option::of(label_selector()), option::of(label_selector())).prop_map(|(pods, namespaces)| {
            NetworkPolicyPeer {
                // At least one is needed.
                pod_selector: pods.or_else(|| namespaces.is_none().then(meta::LabelSelector::default)),
                namespace_selector: namespaces,
                ip_block: None,
            }
        });
    let block = (net(), vec((any::<u8>(), any::<u128>()), 0..3)).prop_map(|(cidr, except)| {
        let except: Vec<String> = except
            .into_iter()
            .filter_map(|(length, bits)| part_of(cidr, length, bits))
            .map(|net| net.to_string())
            .collect();
        let except = (!except.is_empty()).then_some(except);
        let ip_block = Some(IPBlock {
            cidr: cidr.to_string(),
            except,
        });
        NetworkPolicyPeer {
            ip_block,
            ..Default::default()
        }
    });
    prop_oneof![3 => selectors, 2 => block]
}

/// A smaller part of `net`, near its beginning where the pods are. Nothing if `net` is a single address.
fn part_of(net: IpNet, length: u8, bits: u128) -> Option<IpNet> {
    let room = net.max_prefix_len() - net.prefix_len();
    let length = net.prefix_len() + 1 + length.checked_rem(room)?;
    let bits = bits % 32;
    let address: IpAddr = match net.network() {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address) | (u32::try_from(bits).ok()?)).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) | bits).into(),
    };
    let part = IpNet::new(address, length).ok()?.trunc();
    net.contains(&part).then_some(part)
}

fn port() -> impl Strategy<Value = NetworkPolicyPort> {
    let protocol = || option::of(select(vec!["TCP", "UDP", "SCTP"]).prop_map(str::to_owned));
    let number = || select(PORTS.to_vec()).prop_map(|port| i32::from(port.max(1)));
    let range = (number(), option::of(number()), protocol()).prop_map(|(a, b, protocol)| {
        let first = b.map_or(a, |b| a.min(b));
        NetworkPolicyPort {
            port: Some(IntOrString::Int(first)),
            end_port: b.map(|b| a.max(b)),
            protocol,
        }
    });
    let named = (select(PORT_NAMES.to_vec()), protocol()).prop_map(|(name, protocol)| NetworkPolicyPort {
        port: Some(IntOrString::String(name.to_owned())),
        end_port: None,
        protocol,
    });
    let whole = protocol().prop_map(|protocol| NetworkPolicyPort {
        protocol,
        ..Default::default()
    });
    prop_oneof![5 => range, 3 => named, 1 => whole]
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let values = vec(select(LABEL_VALUES.to_vec()).prop_map(str::to_owned), 1..3);
    let operator = (0..4u8, values).prop_map(|(kind, values)| match kind {
        0 => Operator::In(values),
        1 => Operator::NotIn(values),
        2 => Operator::Exists,
        _ => Operator::DoesNotExist,
    });
    // `!has` is a label that objects can hold here, but no selector can name.
    let keys: Vec<&str> = LABEL_KEYS.into_iter().filter(|key| is_label_key(key)).collect();
    let key = select(keys);
    (key, operator).prop_map(|(key, operator)| Requirement {
        key: key.to_owned(),
        operator,
    })
}

fn label_selector() -> impl Strategy<Value = meta::LabelSelector> {
    let requirements = prop_oneof![1 => Just(Vec::new()), 3 => vec(requirement(), 1..3)];
    requirements.prop_map(|requirements| {
        let mut selector = meta::LabelSelector::default();
        for Requirement { key, operator } in requirements {
            let (operator, values) = match operator {
                Operator::In(mut values) if values.len() == 1 => {
                    let value = values.swap_remove(0);
                    selector.match_labels.get_or_insert_default().insert(key, value);
                    continue;
                }
                Operator::In(values) => ("In", Some(values)),
                Operator::NotIn(values) => ("NotIn", Some(values)),
                Operator::Exists => ("Exists", None),
                Operator::DoesNotExist => ("DoesNotExist", None),
            };
            let expression = meta::LabelSelectorRequirement {
                key,
                operator: operator.to_owned(),
                values,
            };
            selector
                .match_expressions
                .get_or_insert_default()
                .push(expression);
        }
        selector
    })
}

fn order() -> impl Strategy<Value = Order> {
    option::of(select(vec![-1.0, 0.0, 10.0, 10.5, 1000.0])).prop_map(Order)
}

fn default_action() -> impl Strategy<Value = DefaultAction> {
    select(vec![DefaultAction::Deny, DefaultAction::Pass])
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let directions = select(vec![(true, true), (true, false), (false, true)]);
    let policy = (order(), workload_match(), directions, rules(), rules()).prop_map(
        |(order, applies_to, (ingress_covered, egress_covered), ingress, egress)| Policy {
            name: "Policy".to_owned(),
            tie_break: String::new(),
            order,
            phase: Phase::Local,
            applies_to,
            directions: Directions {
                ingress: ingress_covered,
                egress: egress_covered,
            },
            ingress,
            egress,
        },
    );
    vec(policy, 0..4)
}

fn profile() -> impl Strategy<Value = Profile> {
    let own = (rules(), rules()).prop_map(|(ingress, egress)| ProfileRules::Own { ingress, egress });
    (0..2u8, prop_oneof![Just(ProfileRules::AllowAll), own]).prop_map(|(number, rules)| Profile {
        name: format!("profile-{number}"),
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
    vec((action, peer_match(), service_match()), 0..5).prop_map(|rules| {
        let numbered = rules.into_iter().zip(0u32..);
        numbered
            .map(|((action, peer, service), index)| Rule {
                index,
                action,
                own: EndMatch::default(),
                peer,
                service,
            })
            .collect()
    })
}

fn peer_match() -> impl Strategy<Value = EndMatch> {
    let version = option::weighted(0.2, select(vec![IpVersion::V4, IpVersion::V6]));
    let nets = || prop_oneof![3 => Just(Vec::new()), 2 => vec(net(), 1..4)];
    let workload = || option::weighted(0.4, workload_match());
    (version, nets(), nets(), workload(), workload()).prop_map(
        |(ip_version, nets, not_nets, workload, not_workload)| EndMatch {
            ip_version,
            nets,
            not_nets,
            workload,
            not_workload,
            domains: Vec::new(),
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
    let ports = move || prop_oneof![3 => Just(Vec::new()), 2 => vec(port(), 1..4)];
    (protocol(), protocol(), icmp(), icmp(), ports(), ports()).prop_map(
        |(protocol, not_protocol, icmp, not_icmp, ports, not_ports)| ServiceMatch {
            protocol,
            not_protocol,
            icmp,
            not_icmp,
            ports,
            not_ports,
            ..ServiceMatch::default()
        },
    )
}

fn workload_match() -> impl Strategy<Value = WorkloadMatch> {
    let namespace = prop_oneof![
        2 => Just(NamespaceMatch::Any),
        2 => select(NAMESPACES.to_vec()).prop_map(|name| NamespaceMatch::Named(name.to_owned())),
        1 => selector().prop_map(NamespaceMatch::Selected),
    ];
    (namespace, selector()).prop_map(|(namespace, labels)| WorkloadMatch {
        kinds: Kinds::Pods,
        namespace,
        labels,
    })
}

fn selector() -> impl Strategy<Value = Selector> {
    let leaf =
        vec(requirement(), 0..3).prop_map(|requirements| Selector::Labels(LabelSelector { requirements }));
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Selector::All),
            vec(inner.clone(), 0..3).prop_map(Selector::Any),
            inner.prop_map(|selector| Selector::Not(Box::new(selector))),
        ]
    })
}
