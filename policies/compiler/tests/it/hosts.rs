//! Host endpoints, what their policies and settings say about a node's own traffic, and profiles.

use policies_compiler::compile;
use policies_ir::tables::{
    Direction::{Egress, Ingress},
    EndpointId, NodeTables, Packet, Verdict, lookup,
};
use serde_json::{Value, json};

use crate::lab::{HOST, Lab, OUTSIDE, TCP, UDP, WEB, calico, global, host};

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
