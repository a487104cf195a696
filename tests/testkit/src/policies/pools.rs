//! What everything is drawn from.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use api::{
    host_ports::{HostPort, Transport},
    selector::{Labels, Operator, Requirement},
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use policies_compiler::{ClusterView, NodeView, PodView};
use policies_ir::{
    cluster::primary,
    policy::{NamedPort, Order, PORT_PROTOCOLS},
    tables::{Direction, EndpointId, Packet},
};
use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
    sample::select,
};

pub(super) const NAMESPACES: [&str; 3] = ["default", "pci", "in"];
pub(super) const NODES: [&str; 2] = ["node-1", "node-2"];
pub(super) const ACCOUNTS: [&str; 2] = ["default", "has"];
pub(super) const LABEL_KEYS: [&str; 8] = [
    "app",
    "in",
    "has",
    "kubernetes.io/metadata.name",
    "x.y-z/App_1",
    "0",
    // Nobody sets these two by hand; who does must not be believed.
    "projectcalico.org/namespace",
    "pcns.app",
];
pub(super) const LABEL_VALUES: [&str; 5] = [
    "",
    "web",
    "in",
    "pci",
    "z23456789012345678901234567890123456789012345678901234567890123",
];
pub(super) const PORT_NAMES: [&str; 2] = ["http", "a-1"];
/// Few, so that packets meet them. GRE has no ports, but nothing keeps a named port from claiming it.
const NAMED_PORTS: [u16; 3] = [0, 80, 8080];
/// Some are also an ICMP type and code: 256, 2048, 2049, 32768, 65280.
pub(super) const PORTS: [u16; 20] = [
    0, 1, 2, 22, 53, 79, 80, 81, 179, 256, 443, 2048, 2049, 8079, 8080, 32767, 32768, 65280, 65534, 65535,
];
pub(super) const PROTOCOLS: [u8; 9] = [6, 6, 17, 132, 1, 58, 47, 0, 255];
pub(super) const NAMES: [&str; 4] = ["example.com", "a.example.com", "b.a.example.com", "in"];
pub(super) const PATTERNS: [&str; 6] = [
    "example.com",
    "*.example.com",
    "*.*.com",
    "a.*",
    "in",
    "*.a.*.com",
];
/// The last number of an endpoint, which none has; those from the first on are host endpoints'.
pub(super) const ENDPOINTS: u32 = 10;
pub(super) const FIRST_HOST_ENDPOINT: u32 = 8;

/// A first packet of a flow, at one endpoint, which may not exist.
pub fn packet() -> impl Strategy<Value = (EndpointId, Packet)> {
    let direction = select(vec![Direction::Ingress, Direction::Egress]);
    let port = prop_oneof![4 => select(NAMED_PORTS.to_vec()), 6 => select(PORTS.to_vec()), 1 => any::<u16>()];
    (
        1..=ENDPOINTS,
        direction,
        (address(), inside()),
        select(PROTOCOLS.to_vec()),
        port.clone(),
        port,
    )
        .prop_map(
            |(endpoint, direction, (peer, inside), protocol, source_port, port)| {
                let has_ports = PORT_PROTOCOLS.contains(&protocol);
                (
                    EndpointId(endpoint),
                    Packet {
                        direction,
                        peer,
                        inside: inside.map(|of| of[usize::from(peer.is_ipv6())]),
                        protocol,
                        source_port: if has_ports { source_port } else { 0 },
                        port,
                    },
                )
            },
        )
}

/// An address: mostly a pod's, a node's, or near one.
pub fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        8 => (0..16u8).prop_map(pod_v4),
        4 => (0..16u8).prop_map(pod_v6),
        2 => (0..2usize).prop_map(node_v4),
        2 => (0..2usize).prop_map(node_v6),
        1 => (0..2usize, 0..2usize).prop_map(|(node, family)| second(node)[family]),
        2 => select(vec!["0.0.0.0", "10.0.1.1", "11.0.0.1", "192.0.2.7", "223.255.255.255"])
            .prop_map(|text| text.parse().expect("an address")),
        1 => select(vec!["::1", "fd00::1:1", "fd01::1", "2001:db8::7"])
            .prop_map(|text| text.parse().expect("an address")),
        1 => any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into()),
        // IPv4 in IPv6 form never reaches a judge: it is no address of a packet.
        1 => any::<u128>().prop_map(|bits| Ipv6Addr::from(bits | 1 << 127).into()),
    ]
}

/// An address at the own end, of either family; now and then none is told.
fn inside() -> impl Strategy<Value = Option<[IpAddr; 2]>> {
    let known = prop_oneof![
        3 => (0..2usize).prop_map(|node| [node_v4(node), node_v6(node)]),
        2 => (0..16u8).prop_map(|number| [pod_v4(number), pod_v6(number)]),
        1 => Just(["192.0.2.7", "2001:db8::7"].map(|text| text.parse().expect("an address"))),
    ];
    option::weighted(0.95, known)
}

fn pod_v4(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number).into()
}

fn pod_v6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into()
}

/// Where the first node listens with others; pods claim some of it.
fn groups() -> BTreeSet<IpNet> {
    let nets = [
        "10.0.0.15/32",
        "192.0.2.0/24",
        "224.0.0.0/4",
        "fd00::f/128",
        "ff00::/8",
    ];
    nets.map(|net| net.parse().expect("a prefix")).into()
}

pub(super) fn node_v4(node: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, if node == 0 { 254 } else { 253 }).into()
}

pub(super) fn node_v6(node: usize) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, if node == 0 { 0xfe } else { 0xfd }).into()
}

/// Other addresses of the same nodes, of IPv4 and IPv6. Their numbers are lower.
fn second(node: usize) -> [IpAddr; 2] {
    let number: u8 = if node == 0 { 252 } else { 251 };
    let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, number.into());
    [Ipv4Addr::new(10, 0, 0, number).into(), v6.into()]
}

/// What a Node object says: mostly one address of each family, or two, or none.
fn node(number: usize) -> impl Strategy<Value = NodeView> {
    let first = [node_v4(number), node_v6(number)];
    let both = [first, second(number)].concat();
    let turned = [second(number), first].concat();
    let stated =
        prop_oneof![5 => Just(first.to_vec()), 1 => Just(both), 1 => Just(turned), 2 => Just(Vec::new())];
    (labels(), stated).prop_map(|(labels, stated)| NodeView {
        labels,
        primary: primary(stated.iter().copied()),
        addresses: stated.into_iter().collect(),
    })
}

/// A pod on the network of a node, which mostly states no address.
fn node_pod() -> impl Strategy<Value = PodView> {
    let node = (option::weighted(0.9, 0..NODES.len()), prop::bool::weighted(0.3));
    (select(NAMESPACES.to_vec()), labels(), node).prop_map(|(namespace, labels, (node, states))| PodView {
        namespace: namespace.to_owned(),
        labels,
        node: node.map(|node| NODES[node]).unwrap_or_default().to_owned(),
        addresses: match node.filter(|_| states) {
            Some(node) => BTreeSet::from([node_v4(node), node_v6(node)]),
            None => BTreeSet::new(),
        },
        ..PodView::default()
    })
}

/// A cluster without policies, seen from the first node.
pub(super) fn view() -> impl Strategy<Value = ClusterView> {
    // A namespace may be missing.
    let namespaces = btree_map(select(NAMESPACES.to_vec()), labels(), 2..=NAMESPACES.len());
    let account = (select(NAMESPACES.to_vec()), select(ACCOUNTS.to_vec()));
    let accounts = btree_map(account, labels(), 0..5);
    // On the heap: the tests of more than one crate would overflow their stacks.
    let pods = (vec(pod().boxed(), 1..8), vec(node_pod().boxed(), 0..3));
    let nodes = (node(0).boxed(), node(1).boxed());
    (namespaces, accounts, pods, nodes, names()).prop_map(
        |(namespaces, accounts, (pods, node_pods), nodes, names)| {
            let pods = pods.into_iter().zip(0u8..).map(|(mut pod, i)| {
                pod.name = format!("pod-{i}");
                // Most pods have addresses of their own; those with one already may share it.
                if pod.addresses.is_empty() {
                    pod.addresses = match i % 4 {
                        0 => BTreeSet::from([pod_v4(2 * i + 1)]),
                        1 => BTreeSet::from([pod_v6(2 * i + 1)]),
                        _ => BTreeSet::from([pod_v4(2 * i + 1), pod_v6(2 * i + 1)]),
                    };
                }
                pod.endpoint = pod.endpoint.map(|_| EndpointId(u32::from(i) + 1));
                if pod.endpoint.is_some() {
                    NODES[0].clone_into(&mut pod.node);
                }
                pod
            });
            let namespaces = namespaces.into_iter().map(|(name, mut labels)| {
                labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
                (name.to_owned(), labels)
            });
            let accounts = accounts
                .into_iter()
                .map(|((namespace, name), labels)| ((namespace.to_owned(), name.to_owned()), labels));
            let node_pods = node_pods.into_iter().enumerate().map(|(i, mut pod)| {
                pod.name = format!("agent-{i}");
                pod
            });
            ClusterView {
                pods: pods.collect(),
                node_pods: node_pods.collect(),
                namespaces: namespaces.collect(),
                service_accounts: accounts.collect(),
                nodes: NODES
                    .map(str::to_owned)
                    .into_iter()
                    .zip([nodes.0, nodes.1])
                    .collect(),
                node: NODES[0].to_owned(),
                host_addresses: BTreeSet::from([node_v4(0), node_v6(0)]),
                host_groups: groups(),
                names,
                ..ClusterView::default()
            }
        },
    )
}

fn pod() -> impl Strategy<Value = PodView> {
    let shared = btree_set(address(), 1..3);
    let addresses = prop_oneof![9 => Just(BTreeSet::new()), 1 => shared];
    let endpoint = option::weighted(0.7, Just(EndpointId(0)));
    let place = (
        select(vec!["", "node-1", "node-2"]),
        select(vec!["", "default", "has"]),
    );
    (
        select(NAMESPACES.to_vec()),
        labels(),
        addresses,
        vec(named_port(), 0..5),
        vec(host_port(), 0..3),
        endpoint,
        place,
    )
        .prop_map(
            |(namespace, labels, addresses, named_ports, host_ports, endpoint, (node, account))| PodView {
                namespace: namespace.to_owned(),
                name: String::new(),
                labels,
                service_account: account.to_owned(),
                node: node.to_owned(),
                addresses,
                named_ports,
                host_ports,
                endpoint,
                ..PodView::default()
            },
        )
}

/// A port of all addresses of the node.
fn host_port() -> impl Strategy<Value = HostPort> {
    let protocol = select(vec![Transport::Tcp, Transport::Udp, Transport::Sctp]);
    let ports = (select(PORTS.to_vec()), select(PORTS.to_vec()));
    (protocol, ports).prop_map(|(protocol, (port, container_port))| HostPort {
        protocol,
        host_ip: None,
        port,
        container_port,
    })
}

/// Names that the resolver gave.
fn names() -> impl Strategy<Value = BTreeMap<IpAddr, BTreeSet<String>>> {
    let given = btree_set(select(NAMES.to_vec()).prop_map(str::to_owned), 1..3);
    btree_map(address(), given, 0..16)
}

pub(super) fn labels() -> impl Strategy<Value = Labels> {
    let label = (select(LABEL_KEYS.to_vec()), select(LABEL_VALUES.to_vec()));
    vec(label, 0..4).prop_map(|labels| {
        let owned = labels
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        owned.collect::<BTreeMap<_, _>>()
    })
}

pub(super) fn named_port() -> impl Strategy<Value = NamedPort> {
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
pub(super) fn net() -> impl Strategy<Value = IpNet> {
    let length = prop_oneof![
        6 => select(vec![0u8, 1, 7, 8, 9, 23, 24, 25, 28, 29, 30, 31, 32]),
        2 => 0..=32u8,
    ];
    (address(), length, select(vec![0u8, 8, 32, 64, 95, 96])).prop_map(|(address, length, more)| {
        let length = if address.is_ipv4() { length } else { length + more };
        IpNet::new(address, length).expect("a length of the family")
    })
}

pub(super) fn order() -> impl Strategy<Value = Order> {
    option::of(select(vec![-1.0, 0.0, 10.0, 10.5, 1000.0])).prop_map(Order)
}

/// One that no reader takes.
pub(super) fn bad_selector() -> meta::LabelSelector {
    meta::LabelSelector {
        match_expressions: Some(vec![meta::LabelSelectorRequirement {
            key: "app".to_owned(),
            operator: "Near".to_owned(),
            values: None,
        }]),
        match_labels: None,
    }
}

pub(super) fn requirement() -> impl Strategy<Value = Requirement> {
    let values = vec(select(LABEL_VALUES.to_vec()).prop_map(str::to_owned), 1..3);
    let operator = (0..4u8, values).prop_map(|(kind, values)| match kind {
        0 => Operator::In(values),
        1 => Operator::NotIn(values),
        2 => Operator::Exists,
        _ => Operator::DoesNotExist,
    });
    let key = select(LABEL_KEYS.to_vec());
    (key, operator).prop_map(|(key, operator)| Requirement {
        key: key.to_owned(),
        operator,
    })
}

pub(super) fn label_selector() -> impl Strategy<Value = meta::LabelSelector> {
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
                Operator::GreaterThan(_) | Operator::LessThan(_) => {
                    unreachable!("not in the form of objects")
                }
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
