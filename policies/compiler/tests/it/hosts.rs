//! Host endpoints, what their policies and settings say about a node's own traffic, and profiles.

use policies_compiler::compile;
use policies_ir::tables::{
    Direction::{self, Egress, Ingress},
    EndpointId, NodeTables, Packet, Verdict, lookup,
};
use serde_json::{Value, json};

use crate::lab::{
    DB, FORWARDED, Forwarding, HOST, ICMP, Lab, OUTSIDE, OUTSIDE_V6, PAY, TCP, UDP, WEB, WEB_V6, calico,
    global, host, set,
};

#[test]
fn a_named_host_endpoint_is_closed_but_for_its_failsafes() {
    let lab = Lab::new(&[host(&json!({}), &[])]);
    assert!(!lab.takes(HOST, OUTSIDE) && !lab.opens(HOST, OUTSIDE));
    for (protocol, port, inbound, outbound) in [
        (TCP, 22, true, false),
        (UDP, 22, false, false),
        (UDP, 68, true, false),
        (UDP, 53, false, true),
        (UDP, 67, false, true),
        (TCP, 179, true, true),
        (TCP, 2379, true, true),
        (TCP, 2380, true, true),
        (TCP, 5473, true, true),
        (TCP, 6443, true, true),
        (TCP, 6666, true, true),
        (TCP, 6667, true, true),
        (TCP, 80, false, false),
    ] {
        let found = (
            lab.allows(HOST.0, Ingress, OUTSIDE, protocol, port),
            lab.allows(HOST.0, Egress, OUTSIDE, protocol, port),
        );
        assert_eq!(found, (inbound, outbound), "protocol {protocol} port {port}");
    }
    let open = Lab::new(&[host(&json!({}), &["projectcalico-default-allow"])]);
    assert!(open.takes(HOST, OUTSIDE) && open.opens(HOST, OUTSIDE));
    let lost = Lab::new(&[host(&json!({}), &["kns.nowhere"])]);
    assert!(!lost.takes(HOST, OUTSIDE));
    let configured = json!({"failsafeInboundHostPorts": [{"port": 80, "protocol": "tcp", "net": "203.0.113.0/24"}],
        "failsafeOutboundHostPorts": []});
    let mut configuration = calico("FelixConfiguration", "default", &configured);
    configuration["metadata"]["namespace"] = Value::Null;
    let deny_all = global(
        "p",
        &json!({"ingress": [{"action": "Deny"}], "egress": [{"action": "Deny"}]}),
    );
    let lab = Lab::new(&[host(&json!({}), &[]), configuration, deny_all]);
    assert!(lab.takes(HOST, OUTSIDE), "no policy closes a failsafe");
    assert!(!lab.takes(HOST, "192.0.2.1") && !lab.allows(HOST.0, Ingress, OUTSIDE, TCP, 22));
    assert!(!lab.allows(HOST.0, Egress, OUTSIDE, TCP, 179));
    assert!(!lab.takes(WEB, OUTSIDE), "a pod has no failsafes");
}

#[test]
fn phases_of_host_policies_come_in_turn() {
    let policy = |name: &str, flags: Value, action: &str| {
        let mut spec = json!({"selector": "has(edge)", "applyOnForward": true, "ingress": [
            {"action": action, "protocol": "TCP", "destination": {"ports": [80]}}]});
        spec.as_object_mut()
            .unwrap()
            .extend(flags.as_object().unwrap().clone());
        global(name, &spec)
    };
    let untracked = |action| policy("u", json!({"doNotTrack": true}), action);
    let early = |action| policy("e", json!({"preDNAT": true}), action);
    let local = |action| policy("l", json!({}), action);
    for (objects, expected) in [
        (
            vec![untracked("Deny"), early("Allow"), local("Allow")],
            "Deny by GlobalNetworkPolicy u rule 0",
        ),
        (
            vec![untracked("Pass"), early("Deny"), local("Allow")],
            "Deny by GlobalNetworkPolicy e rule 0",
        ),
        (
            vec![early("Allow"), local("Deny")],
            "Allow by GlobalNetworkPolicy e rule 0",
        ),
        (vec![local("Allow")], "Allow by GlobalNetworkPolicy l rule 0"),
    ] {
        let mut objects = objects;
        objects.push(host(&json!({"edge": ""}), &[]));
        let lab = Lab::new(&objects);
        let (verdict, by) = lab.decides(HOST.0, Ingress, OUTSIDE, TCP, (40_000, 80));
        assert_eq!(format!("{verdict:?} by {by}"), expected);
        // What the first two say nothing about goes on.
        let (_, by) = lab.decides(HOST.0, Ingress, OUTSIDE, TCP, (40_000, 81));
        assert!(!by.contains(" u") && !by.contains(" e"), "{by}");
    }
    // Of a policy for all, pods see only what is of their phase.
    let everyone = |flags: Value| {
        let mut spec = json!({"ingress": [{"action": "Deny"}], "applyOnForward": true});
        spec.as_object_mut()
            .unwrap()
            .extend(flags.as_object().unwrap().clone());
        Lab::new(&[global("p", &spec)]).takes(WEB, OUTSIDE)
    };
    assert!(
        everyone(json!({"doNotTrack": true})) && everyone(json!({"preDNAT": true})) && !everyone(json!({}))
    );
}

#[test]
fn what_a_pod_sends_to_its_node_is_the_settings_to_decide() {
    let with = |action: Option<&str>, objects: &[Value]| {
        let mut configuration = calico(
            "FelixConfiguration",
            "default",
            &json!({"defaultEndpointToHostAction": action}),
        );
        configuration["metadata"]["namespace"] = Value::Null;
        let objects: Vec<Value> = objects.iter().cloned().chain([configuration]).collect();
        let lab = Lab::new(&objects);
        let (verdict, by) = lab.decides(WEB.0, Egress, HOST.1, TCP, (40_000, 80));
        format!("{verdict:?} by {by}")
    };
    assert_eq!(with(None, &[]), "Deny by to-host");
    assert_eq!(with(Some("Drop"), &[]), "Deny by to-host");
    assert_eq!(with(Some("Return"), &[]), "Allow by no-policy");
    assert_eq!(with(Some("Accept"), &[]), "Allow by no-policy");
    let deny = global(
        "p",
        &json!({"selector": "app == 'web'", "egress": [{"action": "Deny"}]}),
    );
    for action in [None, Some("Return"), Some("Accept")] {
        assert_eq!(
            with(action, std::slice::from_ref(&deny)),
            "Deny by GlobalNetworkPolicy p rule 0"
        );
    }
    // So is what it sends to a group, or to a broadcast of one of the node's networks: the node listens there with others.
    // Nobody sends from there.
    let to_group = |action: &str, peer: &str, direction: Direction| {
        let mut configuration = calico(
            "FelixConfiguration",
            "default",
            &json!({"defaultEndpointToHostAction": action}),
        );
        configuration["metadata"]["namespace"] = Value::Null;
        let closed =
            json!({"selector": "app == 'web'", "types": ["Ingress"], "ingress": [{"action": "Deny"}]});
        let near = json!({"selector": "app == 'web'", "types": ["Egress"], "egress": [
            {"action": "Allow", "destination": {"nets": ["224.0.0.0/24"]}}, {"action": "Allow"}]});
        let mut lab = Lab::new(&[configuration, global("p", &closed), global("q", &near)]);
        lab.cluster.host_groups = ["10.0.0.255/32", "224.0.0.0/4", "ff00::/8"]
            .map(|net| net.parse().unwrap())
            .into();
        let (verdict, by) = lab.decides(WEB.0, direction, peer, UDP, (5353, 5353));
        format!("{verdict:?} by {by}")
    };
    for group in ["10.0.0.255", "224.0.0.251", "239.1.2.3", "ff02::fb"] {
        assert_eq!(to_group("Drop", group, Egress), "Deny by to-host", "{group}");
        let returned = to_group("Return", group, Egress);
        assert!(
            returned.starts_with("Allow by GlobalNetworkPolicy q"),
            "{group}: {returned}"
        );
        assert_eq!(
            to_group("Drop", group, Ingress),
            "Deny by GlobalNetworkPolicy p rule 0",
            "{group}"
        );
    }
    assert!(to_group("Drop", "10.0.0.253", Egress).starts_with("Allow"));
    // The other way is always open: the node's own probes.
    assert!(Lab::new(&[global("p", &json!({"ingress": [{"action": "Deny"}]}))]).takes(WEB, HOST.1));
}

#[test]
fn profiles_decide_where_no_tier_did() {
    let profile = |rules: Value| {
        let mut profile = calico("Profile", "own", &json!({"ingress": rules}));
        profile["metadata"]["namespace"] = Value::Null;
        let lab = Lab::new(&[profile, host(&json!({}), &["own", "projectcalico-default-allow"])]);
        let (verdict, by) = lab.decides(HOST.0, Ingress, OUTSIDE, TCP, (40_000, 80));
        format!("{verdict:?} by {by}")
    };
    assert_eq!(profile(json!([{"action": "Allow"}])), "Allow by own rule 0");
    assert_eq!(profile(json!([{"action": "Deny"}])), "Deny by own rule 0");
    assert_eq!(profile(json!([{"action": "Pass"}])), "Deny by own rule 0");
    assert_eq!(profile(json!([{"action": "Log"}])), "Allow by no-policy");
    assert_eq!(profile(json!([])), "Allow by no-policy");
}

/// Its own labels come first, then those of the first profile that has one.
#[test]
fn host_endpoints_inherit_the_labels_of_their_profiles() {
    let profile = |name: &str, labels: Value| {
        let mut profile = calico("Profile", name, &json!({"labelsToApply": labels}));
        profile["metadata"]["namespace"] = Value::Null;
        profile
    };
    let takes = |selector: &str| {
        let profiles = [
            profile("first", json!({"zone": "dmz", "edge": "no"})),
            profile("second", json!({"zone": "core", "rack": "7"})),
            profile("third", json!({"floor": "2"})),
        ];
        let allow = global(
            "p",
            &json!({"selector": selector, "ingress": [{"action": "Allow"}]}),
        );
        let objects: Vec<Value> = profiles
            .into_iter()
            .chain([allow, host(&json!({"edge": "yes"}), &["first", "second"])])
            .collect();
        Lab::new(&objects).takes(HOST, OUTSIDE)
    };
    for selector in ["zone == 'dmz'", "rack == '7'", "edge == 'yes'"] {
        assert!(takes(selector), "{selector}");
    }
    for selector in ["zone == 'core'", "edge == 'no'", "has(floor)"] {
        assert!(!takes(selector), "{selector}");
    }
}

#[test]
fn profiles_that_are_computed_cannot_be_written() {
    for name in ["kns.default", "ksa.default.robot", "projectcalico-default-allow"] {
        let profile = json!({"apiVersion": "projectcalico.org/v3", "kind": "Profile", "metadata": {"name": name},
            "spec": {"ingress": [{"action": "Deny"}]}});
        let refused = policies_compiler::load_objects(crate::sources(&[profile]))
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("metadata.name") && refused.contains("is computed from namespaces"),
            "{refused}"
        );
    }
}

/// Through the objects of a view: the agent numbers the parts, and only parts that a policy speaks about get tables.
#[test]
fn parts_of_a_host_endpoint_get_tables_when_policies_speak_about_them() {
    use policies_compiler::HostEndpointIds;
    let ids = HostEndpointIds {
        local: EndpointId(901),
        forwarded: EndpointId(902),
        untracked: EndpointId(903),
    };
    let compiled = |objects: &[Value]| {
        let mut view = Lab::new(objects).view;
        view.host_endpoints.insert("here-eth0".to_owned(), ids);
        view.host_endpoints.insert("elsewhere".to_owned(), ids);
        compile(&view).tables
    };
    let packet = |direction, source_port, port| Packet {
        direction,
        peer: OUTSIDE.parse().unwrap(),
        inside: None,
        protocol: TCP,
        source_port,
        port,
    };
    let say = |tables: &NodeTables, endpoint, packet| {
        let entry = lookup(tables, endpoint, &packet);
        (entry.verdict, tables.decided_by(entry.rule).unwrap().to_string())
    };
    let undecided = (Verdict::Deny, "no-match".to_owned());
    let has = |tables: &NodeTables| {
        [ids.local, ids.forwarded, ids.untracked].map(|id| tables.endpoints.contains_key(&id))
    };
    assert_eq!(has(&compiled(&[host(&json!({}), &[])])), [true, false, false]);
    let policy = |flags: Value| {
        let mut spec = json!({"ingress": [{"action": "Deny"}], "egress": [{"action": "Deny"}],
            "types": ["Ingress", "Egress"], "applyOnForward": true});
        spec.as_object_mut()
            .unwrap()
            .extend(flags.as_object().unwrap().clone());
        global("p", &spec)
    };
    let tables = compiled(&[host(&json!({}), &[]), policy(json!({}))]);
    assert_eq!(has(&tables), [true, true, false]);
    // Failsafe ports are the node's: through it they are ports as any other.
    for port in [80, 22] {
        let said = [ids.local, ids.forwarded].map(|id| say(&tables, id, packet(Ingress, 40_000, port)).0);
        let own = if port == 22 { Verdict::Allow } else { Verdict::Deny };
        assert_eq!(said, [own, Verdict::Deny], "port {port}");
    }

    // Failsafes, and what answers them, are left to those who know flows.
    let tables = compiled(&[host(&json!({}), &[]), policy(json!({"doNotTrack": true}))]);
    assert_eq!(has(&tables), [true, true, true]);
    for (packet, by) in [
        (packet(Ingress, 40_000, 80), "GlobalNetworkPolicy p rule 0"),
        (packet(Ingress, 40_000, 22), "no-match"),
        (packet(Egress, 22, 40_000), "no-match"),
        (packet(Egress, 40_000, 22), "GlobalNetworkPolicy p rule 0"),
        (packet(Egress, 40_000, 6443), "no-match"),
        (packet(Ingress, 6443, 40_000), "no-match"),
    ] {
        assert_eq!(
            say(&tables, ids.untracked, packet),
            (Verdict::Deny, by.to_owned()),
            "{packet:?}"
        );
    }

    // A port that no rule speaks about, inside what a rule allows.
    let but_80 = global(
        "p",
        &json!({"doNotTrack": true, "applyOnForward": true,
        "ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"notPorts": [80]}}]}),
    );
    let tables = compiled(&[host(&json!({}), &[]), but_80]);
    assert_eq!(
        say(&tables, ids.untracked, packet(Ingress, 40_000, 81)).0,
        Verdict::Allow
    );
    assert_eq!(
        say(&tables, ids.untracked, packet(Ingress, 40_000, 80)),
        undecided
    );
    assert_eq!(say(&tables, ids.untracked, packet(Egress, 40_000, 81)), undecided);
}

const NOBODY: &str = "10.0.9.9";

/// A policy for what the node forwards in one direction, with these rules.
fn on_forward(direction: Direction, rules: &Value) -> Value {
    let (kind, field) = match direction {
        Ingress => ("Ingress", "ingress"),
        Egress => ("Egress", "egress"),
    };
    let mut spec = json!({"selector": "has(edge)", "applyOnForward": true, "types": [kind]});
    spec[field] = rules.clone();
    global("p", &spec)
}

fn edge() -> Value {
    host(&json!({"edge": ""}), &[])
}

/// The addresses inside for which the rules of one direction hold, of those that the lab knows and one that it does not.
#[track_caller]
fn holds_for(direction: Direction, end: &Value, ports: (u16, u16)) -> Vec<&'static str> {
    let field = match direction {
        Ingress => "destination",
        Egress => "source",
    };
    let [allows, denies] = ["Allow", "Deny"].map(|action| {
        let mut rule = json!({"action": action, "protocol": "TCP"});
        rule[field] = end.clone();
        let rules = match action {
            "Allow" => json!([rule]),
            _ => json!([rule, {"action": "Allow"}]),
        };
        let nets = set(
            "GlobalNetworkSet",
            "s",
            &json!({"place": "rack"}),
            &json!({"nets": ["10.0.9.0/24"]}),
        );
        let lab = Lab::new(&[edge(), nets, on_forward(direction, &rules)]);
        assert_eq!(lab.reported, Vec::<String>::new());
        lab.forwarding()
    });
    let inside = [WEB.1, DB.1, PAY.1, NOBODY, HOST.1, WEB_V6];
    let holds = inside.into_iter().filter(|inside| {
        let peer = if inside.contains(':') { OUTSIDE_V6 } else { OUTSIDE };
        let [allowed, denied] =
            [&allows, &denies].map(|host| host.decides(direction, (inside, peer), TCP, ports).0);
        assert_ne!(allowed, denied, "{end} {inside}");
        allowed == Verdict::Allow
    });
    holds.collect()
}

/// Each condition on the own end of a packet that a node forwards is one on the address inside, not on the host
/// endpoint: for what comes in, the destination, and for what goes out, the source.
#[test]
fn conditions_on_the_own_end_of_forwarded_packets_are_on_the_address_inside() {
    let everybody = || vec![WEB.1, DB.1, PAY.1, NOBODY, HOST.1, WEB_V6];
    let but = |without: &[&str]| {
        let mut all = everybody();
        all.retain(|address| !without.contains(address));
        all
    };
    for (end, expected) in [
        (
            json!({"nets": ["10.0.0.2/32", "10.0.9.0/24"]}),
            vec![DB.1, NOBODY],
        ),
        (json!({"nets": ["fd00::/64"]}), vec![WEB_V6]),
        // Of the other family it does not hold, as anywhere else.
        (json!({"notNets": ["10.0.0.2/32"]}), but(&[DB.1, WEB_V6])),
        (json!({"selector": "app == 'web'"}), vec![WEB.1, PAY.1, WEB_V6]),
        (
            json!({"notSelector": "app == 'web'"}),
            but(&[WEB.1, PAY.1, WEB_V6]),
        ),
        (json!({"selector": "place == 'rack'"}), vec![NOBODY]),
        (json!({"selector": "has(edge)"}), vec![HOST.1]),
        (json!({"namespaceSelector": "team == 'b'"}), vec![PAY.1]),
        (
            json!({"namespaceSelector": "team == 'a'", "selector": "app == 'web'"}),
            vec![WEB.1, WEB_V6],
        ),
        (json!({"serviceAccounts": {"names": ["db"]}}), vec![DB.1]),
        (
            json!({"serviceAccounts": {"selector": "role == 'store'"}}),
            vec![DB.1],
        ),
        (
            json!({"selector": "app == 'web'", "notNets": ["10.0.0.3/32"]}),
            vec![WEB.1],
        ),
        (json!({}), everybody()),
    ] {
        for direction in [Ingress, Egress] {
            let found = holds_for(direction, &end, (40_000, 80));
            assert_eq!(found, expected, "{direction:?} {end}");
        }
    }
    // Ports by name are those of whoever has the address.
    for (end, port, expected) in [
        (json!({"ports": ["api"]}), 8002, vec![DB.1]),
        (json!({"ports": ["api"]}), 8001, vec![WEB.1, WEB_V6]),
        (json!({"notPorts": ["api"]}), 8002, but(&[DB.1])),
        (
            json!({"ports": ["api"], "selector": "app == 'web'"}),
            8002,
            vec![],
        ),
        (json!({"ports": ["api", 23]}), 23, everybody()),
    ] {
        assert_eq!(holds_for(Ingress, &end, (40_000, port)), expected, "{end} {port}");
        assert_eq!(holds_for(Egress, &end, (port, 40_000)), expected, "{end} {port}");
    }
}

#[test]
fn forwarded_packets_of_both_families_are_told_apart_by_version_and_protocol() {
    let rules = json!([{"action": "Allow", "ipVersion": 6, "destination": {"selector": "app == 'web'"}},
        {"action": "Allow", "protocol": "ICMP", "destination": {"selector": "app == 'db'"}}]);
    let host = Lab::new(&[edge(), on_forward(Ingress, &rules)]).forwarding();
    for (ends, protocol, expected) in [
        ((WEB_V6, OUTSIDE_V6), TCP, "GlobalNetworkPolicy p rule 0"),
        (
            (WEB.1, OUTSIDE),
            TCP,
            "default-deny (isolated by GlobalNetworkPolicy p)",
        ),
        ((DB.1, OUTSIDE), ICMP, "GlobalNetworkPolicy p rule 1"),
        (
            (DB.1, OUTSIDE),
            UDP,
            "default-deny (isolated by GlobalNetworkPolicy p)",
        ),
        (
            (WEB.1, OUTSIDE),
            ICMP,
            "default-deny (isolated by GlobalNetworkPolicy p)",
        ),
    ] {
        let (_, by) = host.decides(Ingress, ends, protocol, (0, 0x0800));
        assert_eq!(by, expected, "{ends:?} {protocol}");
    }
    // Nothing is asked of the other direction.
    assert_eq!(
        host.decides(Egress, (WEB.1, OUTSIDE), TCP, (40_000, 80)).1,
        "no-policy"
    );
}

/// An address that two claim is nobody's to a rule that asks whose it is, and does not matter to one that does not.
#[test]
fn nobody_is_sure_who_is_inside_when_two_claim_the_address() {
    let [asks, does_not] = [json!({"notSelector": "app == 'db'"}), json!({})].map(|destination| {
        let rules = json!([{"action": "Allow", "destination": destination}]);
        let mut lab = Lab::new(&[edge(), on_forward(Ingress, &rules)]);
        let mut pods = lab.cluster.members.iter_mut();
        let pay = pods.find(|pod| pod.workload.namespace == "pay").unwrap();
        pay.addresses.insert(WEB.1.parse().unwrap());
        lab.forwarding()
    });
    let by = |host: &Forwarding, inside| host.decides(Ingress, (inside, OUTSIDE), TCP, (40_000, 80)).1;
    assert_eq!(by(&asks, WEB.1), "no-match");
    assert_eq!(by(&asks, PAY.1), "GlobalNetworkPolicy p rule 0");
    assert_eq!(by(&does_not, WEB.1), "GlobalNetworkPolicy p rule 0");
}

/// Also at a host endpoint for all interfaces, which expects no address, and before flows are known.
#[test]
fn the_address_inside_counts_at_every_interface_and_before_flows_are_known() {
    use policies_compiler::HostEndpointIds;
    let ids = HostEndpointIds {
        local: EndpointId(901),
        forwarded: EndpointId(902),
        untracked: EndpointId(903),
    };
    let mut every = calico(
        "HostEndpoint",
        "every",
        &json!({"node": "here", "interfaceName": "*"}),
    );
    every["metadata"]["labels"] = json!({"edge": ""});
    let rules = json!([{"action": "Deny", "protocol": "TCP", "destination": {"selector": "app == 'db'", "ports": [80]}}]);
    let mut untracked = on_forward(Ingress, &rules);
    untracked["spec"]["doNotTrack"] = json!(true);
    let tracked = json!([{"action": "Deny", "protocol": "TCP", "destination": {"nets": ["10.0.0.1/32"], "ports": [81]}},
        {"action": "Allow"}]);
    let mut tracked = on_forward(Ingress, &tracked);
    tracked["metadata"]["name"] = json!("t");
    let mut view = Lab::new(&[every, untracked, tracked]).view;
    view.host_endpoints.insert("every".to_owned(), ids);
    let tables = compile(&view).tables;
    let by = |endpoint, inside: &str, port| {
        let packet = Packet {
            direction: Ingress,
            peer: OUTSIDE.parse().unwrap(),
            inside: Some(inside.parse().unwrap()),
            protocol: TCP,
            source_port: 40_000,
            port,
        };
        let entry = lookup(&tables, endpoint, &packet);
        tables.decided_by(entry.rule).unwrap().to_string()
    };
    for (inside, port, untracked, tracked) in [
        (
            DB.1,
            80,
            "GlobalNetworkPolicy p rule 0",
            "GlobalNetworkPolicy p rule 0",
        ),
        (DB.1, 81, "no-match", "GlobalNetworkPolicy t rule 1"),
        (WEB.1, 80, "no-match", "GlobalNetworkPolicy t rule 1"),
        (WEB.1, 81, "no-match", "GlobalNetworkPolicy t rule 0"),
        (NOBODY, 80, "no-match", "GlobalNetworkPolicy t rule 1"),
    ] {
        assert_eq!(by(ids.untracked, inside, port), untracked, "{inside} {port}");
        assert_eq!(by(ids.forwarded, inside, port), tracked, "{inside} {port}");
    }
}

/// Addresses of the node: the one that a host endpoint expects, others, and a group that the node listens to.
const ELSEWHERE: &str = "10.0.0.253";
const ON_LINK: &str = "fe80::253";
const ALL_HOSTS: &str = "224.0.0.1";

/// A host endpoint that expects these addresses at its interface, and gives a port a name.
fn expecting(interface: &str, addresses: &[&str]) -> Value {
    let mut host = calico(
        "HostEndpoint",
        "h",
        &json!({"node": "here", "interfaceName": interface, "expectedIPs": addresses,
            "ports": [{"name": "web", "protocol": "TCP", "port": 80}]}),
    );
    host["metadata"]["labels"] = json!({"edge": ""});
    host
}

/// The node's own packets are told apart by the address that they have, at every host endpoint. Its labels and the names of
/// its ports are found at the addresses that it expects, and at no others.
#[test]
fn conditions_on_the_own_end_of_the_nodes_packets_are_on_their_address() {
    let everywhere = [HOST.1, ELSEWHERE, ON_LINK, ALL_HOSTS];
    let holds_for = |host: &Value, direction: Direction, end: &Value, port: u16| {
        let (kind, field, ports) = match direction {
            Ingress => ("Ingress", "destination", (40_000, port)),
            Egress => ("Egress", "source", (port, 40_000)),
        };
        let labs = ["Allow", "Deny"].map(|action| {
            let mut rule = json!({"action": action, "protocol": "TCP"});
            rule[field] = end.clone();
            let mut spec = json!({"selector": "has(edge)", "types": [kind]});
            spec[kind.to_lowercase()] = match action {
                "Allow" => json!([rule]),
                _ => json!([rule, {"action": "Allow"}]),
            };
            let nets = json!({"nets": [format!("{ELSEWHERE}/32")]});
            let rack = set("GlobalNetworkSet", "s", &json!({"place": "rack"}), &nets);
            let lab = Lab::new(&[host.clone(), rack, global("p", &spec)]);
            assert_eq!(lab.reported, Vec::<String>::new());
            lab
        });
        let holds = everywhere.into_iter().filter(|own| {
            let peer = if own.contains(':') { OUTSIDE_V6 } else { OUTSIDE };
            let said = labs.each_ref();
            let [allowed, denied] =
                said.map(|lab| lab.decides_between(HOST.0, direction, (own, peer), TCP, ports).0);
            assert_ne!(allowed, denied, "{end} {own}");
            allowed == Verdict::Allow
        });
        holds.collect::<Vec<_>>()
    };
    let (any, here) = (&everywhere[..], &[HOST.1][..]);
    let not_here = &[ELSEWHERE, ON_LINK, ALL_HOSTS][..];
    for (end, without, with) in [
        (json!({"nets": ["10.0.0.254/32"]}), here, here),
        (
            json!({"nets": ["10.0.0.252/30"]}),
            &[HOST.1, ELSEWHERE][..],
            &[HOST.1, ELSEWHERE][..],
        ),
        (json!({"nets": ["fe80::/10"]}), &[ON_LINK][..], &[ON_LINK][..]),
        (
            json!({"nets": ["224.0.0.0/4"]}),
            &[ALL_HOSTS][..],
            &[ALL_HOSTS][..],
        ),
        (json!({"nets": ["10.0.0.1/32"]}), &[][..], &[][..]),
        (
            json!({"notNets": ["10.0.0.254/32"]}),
            &[ELSEWHERE, ALL_HOSTS][..],
            &[ELSEWHERE, ALL_HOSTS][..],
        ),
        (
            json!({"selector": "place == 'rack'"}),
            &[ELSEWHERE][..],
            &[ELSEWHERE][..],
        ),
        (json!({"selector": "has(edge)"}), &[][..], here),
        (json!({"notSelector": "has(edge)"}), any, not_here),
        (
            json!({"namespaceSelector": "global()"}),
            &[ELSEWHERE][..],
            &[HOST.1, ELSEWHERE][..],
        ),
        (json!({"ports": ["web"]}), &[][..], here),
        (json!({"notPorts": ["web"]}), any, not_here),
        (json!({"ports": [80]}), any, any),
    ] {
        for direction in [Ingress, Egress] {
            for interface in ["*", "eth0"] {
                let found = holds_for(&expecting(interface, &[]), direction, &end, 80);
                assert_eq!(found, without, "{interface} expects nothing: {direction:?} {end}");
            }
            let found = holds_for(&expecting("eth0", &[HOST.1]), direction, &end, 80);
            assert_eq!(found, with, "eth0: {direction:?} {end}");
        }
    }
}

/// So do those of its profiles.
#[test]
fn profiles_of_a_host_endpoint_judge_the_address_of_the_packet() {
    let mut profile = calico(
        "Profile",
        "own",
        &json!({"ingress": [{"action": "Allow", "destination": {"nets": ["10.0.0.253/32"]}}]}),
    );
    profile["metadata"]["namespace"] = Value::Null;
    let mut every = expecting("*", &[]);
    every["spec"]["profiles"] = json!(["own"]);
    let lab = Lab::new(&[profile, every]);
    let by = |own| {
        lab.decides_between(HOST.0, Ingress, (own, OUTSIDE), TCP, (40_000, 80))
            .1
    };
    assert_eq!([by(ELSEWHERE), by(HOST.1)], ["own rule 0", "no-match"]);
}

/// Whose the address is that a node goes by may be in doubt while pods claim it: failsafe ports are never.
#[test]
fn failsafe_ports_are_open_at_an_address_of_which_nobody_is_sure() {
    let spec = json!({"selector": "has(edge)", "ingress": [{"action": "Allow", "destination": {"notSelector": "app == 'db'"}}]});
    let mut lab = Lab::new(&[expecting("*", &[]), global("p", &spec)]);
    let mut pods = lab.cluster.members.iter_mut();
    let pay = pods.find(|pod| pod.workload.namespace == "pay").unwrap();
    pay.addresses.insert(WEB.1.parse().unwrap());
    let by = |own, port| {
        lab.decides_between(HOST.0, Ingress, (own, OUTSIDE), TCP, (40_000, port))
            .1
    };
    for (own, port, expected) in [
        (WEB.1, 80, "no-match"),
        (WEB.1, 22, "failsafe"),
        (HOST.1, 80, "GlobalNetworkPolicy p rule 0"),
        (HOST.1, 22, "failsafe"),
    ] {
        assert_eq!(by(own, port), expected, "{own} {port}");
    }
}

/// What tells nobody apart at the own end costs nothing: neither classes nor entries.
#[test]
fn only_who_asks_for_the_address_inside_pays_for_it() {
    let entries = |destination: &Value| {
        let rules = json!([{"action": "Allow", "protocol": "TCP", "destination": destination}]);
        let tables = Lab::new(&[edge(), on_forward(Ingress, &rules)])
            .forwarding()
            .tables;
        let own = &tables.endpoints[&FORWARDED];
        (own.insides.len(), own.verdicts.len(), tables.identities.len())
    };
    let (insides, verdicts, identities) = entries(&json!({"ports": [80]}));
    assert_eq!(insides, 0);
    let (insides, more, more_identities) = entries(&json!({"ports": [80], "selector": "app == 'web'"}));
    assert!(insides > 0 && more > verdicts && more_identities >= identities);
}
