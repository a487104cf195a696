//! What JSON says about protocols and ports, read by somebody who has nothing else.

use std::net::IpAddr;

use policies_checker::{
    Model,
    connectivity::{Grouping, connectivity},
    difference::difference,
    picture,
    space::{ALL_PORTS, Plane, Point, Ports, Space, protocol_name},
};
use policies_compiler::{Book, ClusterView, FlowEnd, Judge, Question, Source, load_objects};
use policies_ir::tables::{Direction, Verdict};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::clusters::{OUTSIDE, Scenario, exists, points, reference, scenario};

/// Protocols beside those of the pools, which no rule names.
const UNNAMED: [u8; 4] = [0, 2, 254, 255];

/// Whether the list `services` says that a flow is in.
fn says(services: &Value, point: Point) -> bool {
    let services = services.as_array().unwrap();
    let name = protocol_name(point.protocol);
    let named = |service: &Value| service["protocol"] == name.as_str();
    if services.iter().any(named) {
        let mut own = services.iter().filter(|service| named(service));
        return own.any(|service| {
            holds(&service["ports"], point.port) && holds(&service["sourcePorts"], point.source_port)
        });
    }
    services.iter().any(|service| {
        let except = service["except"].as_array().map_or(&[][..], Vec::as_slice);
        match service["protocol"].as_str().unwrap() {
            "any" => true,
            "other" => !except.iter().any(|excepted| *excepted == name.as_str()),
            _ => false,
        }
    })
}

/// Whether a port is in a list of intervals; one that is not there has all.
fn holds(intervals: &Value, port: u16) -> bool {
    let Some(intervals) = intervals.as_array() else {
        return true;
    };
    intervals.iter().any(|interval| {
        let (first, last) = read(interval.as_str().unwrap());
        (first..=last).contains(&port)
    })
}

/// `80`, `80-90`, `type 8`, `types 3-5`, `type 8 code 0`, `type 8 code 1 to type 9 code 255`.
fn read(text: &str) -> (u16, u16) {
    let byte = |text: &str| text.parse::<u8>().unwrap();
    let message = |text: &str| {
        let (kind, code) = text.strip_prefix("type ")?.split_once(" code ")?;
        Some(u16::from_be_bytes([byte(kind), byte(code)]))
    };
    if let Some((first, last)) = text.split_once(" to ") {
        return (message(first).unwrap(), message(last).unwrap());
    }
    if let Some(one) = message(text) {
        return (one, one);
    }
    let (of_kinds, range) = match text.strip_prefix("types ").or(text.strip_prefix("type ")) {
        Some(range) => (true, range),
        None => (false, text),
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    match of_kinds {
        true => (
            u16::from_be_bytes([byte(first), 0]),
            u16::from_be_bytes([byte(last), u8::MAX]),
        ),
        false => (first.parse().unwrap(), last.parse().unwrap()),
    }
}

/// Flows at and beside every edge of the pools, and of protocols that no rule names.
fn all_points() -> impl Iterator<Item = Point> {
    let unnamed = UNNAMED.map(|protocol| Point {
        protocol,
        source_port: 0,
        port: 0,
    });
    points().into_iter().chain(unnamed)
}

fn space() -> impl Strategy<Value = Space> {
    let edge = || proptest::sample::select(vec![0u16, 53, 80, 443, 2048, 2303, 49152, 65535]);
    let interval = move || (edge(), edge()).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let ports = move || proptest::collection::vec(interval(), 0..3).prop_map(Ports::of);
    let source = prop_oneof![Just(ALL_PORTS), interval()];
    let plane = proptest::collection::vec((source, ports()), 0..3).prop_map(Plane::of);
    let protocol = proptest::sample::select(vec![1u8, 6, 17, 47, 58, 132, 253]);
    let listed = proptest::collection::btree_map(protocol, plane, 0..5);
    (listed, any::<bool>()).prop_map(|(listed, others)| Space::of(listed, others))
}

/// The one address of an end that only it has: what JSON says is said about it.
fn only_address(scenario: &Scenario, member: usize, is_v4: bool) -> Option<IpAddr> {
    let members = &scenario.cluster.members;
    let mut own = members[member].addresses.iter().filter(|a| a.is_ipv4() == is_v4);
    let address = *own.next()?;
    let holders = members.iter().filter(|other| other.addresses.contains(&address));
    (own.next().is_none() && holders.count() == 1).then_some(address)
}

proptest! {
    #[test]
    fn a_list_of_services_says_the_whole_set(space in space()) {
        let services = json!(space.services());
        for point in all_points() {
            prop_assert_eq!(says(&services, point), space.contains(point), "{:?} {}", point, services);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.div_ceil(8), ..ProptestConfig::default() })]

    #[test]
    fn json_alone_says_what_passes(mut scenario in scenario()) {
        scenario.cluster.names.clear();
        let model = Model::of(scenario.cluster.clone(), scenario.policies.clone());
        let all = json!(connectivity(&model, Grouping::Equal));
        let group = |list: &str, is_in: &dyn Fn(&Value) -> bool| {
            let groups = all[list].as_array().unwrap();
            groups.iter().find(|group| is_in(group)).unwrap()["name"].clone()
        };
        let ends = [true, false].map(|is_v4| {
            let members = 0..scenario.cluster.members.len();
            let members = members.filter_map(|member| {
                let name = model.name(member);
                let group = group("workloads", &|group| group["members"].as_array().unwrap().contains(&json!(name)));
                Some((Some(member), only_address(&scenario, member, is_v4)?, group))
            });
            let outside = OUTSIDE.iter().map(|address| address.parse::<IpAddr>().unwrap());
            let outside = outside.filter(|address| address.is_ipv4() == is_v4).map(|address| {
                let within = |nets: &Value| nets.as_array().is_some_and(|nets| nets.iter().any(|net| {
                    net.as_str().unwrap().parse::<ipnet::IpNet>().unwrap().contains(&address)
                }));
                let group = group("outside", &|group| {
                    group["named"].is_null() && within(&group["cidrs"]) && !within(&group["except"])
                });
                (None, address, group)
            });
            members.chain(outside).collect::<Vec<_>>()
        });
        for (ends, family) in ends.iter().zip(["IPv4", "IPv6"]) {
            for (from, source, from_group) in ends {
                for (to, destination, to_group) in ends {
                    if from == to {
                        continue;
                    }
                    let connections = all["connections"].as_array().unwrap().iter();
                    let listed: Vec<&Value> = connections.filter(|connection| {
                        connection["from"] == *from_group && connection["to"] == *to_group
                            && (connection["family"].is_null() || connection["family"] == family)
                    }).map(|connection| &connection["services"]).collect();
                    for point in all_points().filter(|point| exists(*source, *point)) {
                        let allows = |own: &Option<usize>, direction, peer: IpAddr| own.is_none_or(|own| {
                            reference(&scenario, own, direction, peer, point).0 == Verdict::Allow
                        });
                        let passes = allows(from, Direction::Egress, *destination) && allows(to, Direction::Ingress, *source);
                        let said = listed.iter().any(|services| says(services, point));
                        prop_assert_eq!(said, passes, "{} -> {} {:?} {:?}", from_group, to_group, point, listed);
                    }
                }
            }
        }
    }
}

fn view(ingress: Option<&Value>) -> ClusterView {
    let pod = |name: &str, address: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
            "spec": {"containers": [{"name": "c"}]}, "status": {"podIP": address}})
    };
    let policy = ingress.map(|ingress| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": "p"},
            "spec": {"selector": "app == 'b'", "types": ["Ingress"], "ingress": ingress}})
    });
    let pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")];
    let objects: Vec<Value> = pods.into_iter().chain(policy).collect();
    let origin = "here";
    load_objects(objects.iter().map(|object| Source { origin, object }))
        .unwrap()
        .view
}

/// `decide`'s verdict for each protocol number, and for some ports, from `a` to `b`.
fn decided(view: &ClusterView) -> Vec<(Point, bool)> {
    let book = Book::new(view);
    let mut judge = Judge::new(&book);
    let end = |name: &str| FlowEnd::Pod {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    };
    let numbers = (0..=u8::MAX).flat_map(|protocol| {
        let ports: &[u16] = match protocol {
            6 | 17 | 132 => &[0, 21, 22, 23, 65535],
            1 => &[0, 0x0800, 0x0801],
            _ => &[0],
        };
        let point = move |port: &u16| Point {
            protocol,
            source_port: if matches!(protocol, 6 | 17 | 132) {
                49152
            } else {
                0
            },
            port: *port,
        };
        ports.iter().map(point)
    });
    // Packets of IPv4 carry no ICMPv6.
    let numbers = numbers.filter(|point| point.protocol != 58);
    let verdict = |point: Point| {
        let question = Question {
            source: end("a"),
            destination: end("b"),
            protocol: point.protocol,
            source_port: point.source_port,
            port: point.port,
        };
        (point, judge.judge(&question).unwrap().verdict == Verdict::Allow)
    };
    numbers.map(verdict).collect()
}

#[test]
fn a_protocol_that_is_closed_is_not_among_the_others() {
    let rules = [
        json!([{"action": "Deny", "protocol": "TCP"}, {"action": "Allow"}]),
        json!([{"action": "Deny", "protocol": "UDP", "destination": {"ports": [22]}},
            {"action": "Deny", "protocol": "SCTP"}, {"action": "Deny", "protocol": 47}, {"action": "Allow"}]),
    ];
    let open = decided(&view(None));
    let before = Model::new(&view(None));
    for (rules, except) in rules.iter().zip([json!(["TCP"]), json!(["protocol 47", "SCTP"])]) {
        let closed = view(Some(rules));
        let model = Model::new(&closed);
        let all = connectivity(&model, Grouping::Equal);
        let connection = |connection: &&Value| connection["from"] == "shop/a" && connection["to"] == "shop/b";
        let listed = json!(all.connections);
        let services = &listed.as_array().unwrap().iter().find(connection).unwrap()["services"];
        let other = services
            .as_array()
            .unwrap()
            .iter()
            .find(|s| s["protocol"] == "other");
        assert_eq!(other.unwrap()["except"], except);
        let decided = decided(&closed);
        for (point, passes) in &decided {
            assert_eq!(says(services, *point), *passes, "{point:?} {services}");
        }
        // What people read says it as well.
        let text = except.as_array().unwrap()[0].as_str().unwrap();
        let pictures = [
            picture::dot(&all),
            picture::svg(&all),
            all.lines().concat().concat(),
        ];
        for picture in pictures {
            assert!(
                picture.contains("any except") && picture.contains(text),
                "{picture}"
            );
        }
        for (old, new, closes) in [(&before, &model, true), (&model, &before, false)] {
            let changes = json!(difference(old, new));
            let change = changes.as_array().unwrap().iter().find(connection).unwrap();
            for ((point, passed), (_, passes)) in open.iter().zip(&decided) {
                let said = says(&change["services"], *point);
                assert_eq!(said, passed != passes, "{closes} {point:?} {change}");
            }
        }
    }
    // Both closed at first: what opens is all but what stays closed.
    let nothing = Model::new(&view(Some(&json!([]))));
    for rules in &rules {
        let after = view(Some(rules));
        let changes = json!(difference(&nothing, &Model::new(&after)));
        let connection = |change: &&Value| change["from"] == "shop/a" && change["to"] == "shop/b";
        let change = changes.as_array().unwrap().iter().find(connection).unwrap();
        for (point, passes) in decided(&after) {
            assert_eq!(says(&change["services"], point), passes, "{point:?} {change}");
        }
    }
}
