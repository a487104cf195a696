//! Which addresses are a node's, seen from it and from nowhere, and what has no address but its node's.

use policies_compiler::{Book, ClusterView, Judge, LoadError, Question, explain, load_objects};
use policies_ir::tables::{Direction, Verdict};
use serde_json::{Value, json};

use crate::{
    lab::{HOST, Lab, OUTSIDE, TCP, WEB, calico, global},
    sources,
};

/// An address that host endpoint `here-eth0` expects and that node `here` does not have.
const STALE: &str = "10.0.0.253";

fn expecting(addresses: &[&str]) -> Value {
    calico(
        "HostEndpoint",
        "here-eth0",
        &json!({"node": "here", "interfaceName": "eth0", "expectedIPs": addresses}),
    )
}

/// A node knows its addresses: whoever has another one that it is said to have is not the node, to its own pods and to
/// itself.
#[test]
fn an_address_that_the_node_does_not_have_grants_nothing() {
    let closed = global("closed", &json!({"selector": "has(app)", "types": ["Ingress"]}));
    let lab = Lab::new(&[expecting(&[HOST.1, STALE]), closed]);
    let decided = |endpoint, peer| {
        let (verdict, by) = lab.decides(endpoint, Direction::Ingress, peer, TCP, (40_000, 80));
        (verdict == Verdict::Allow, by)
    };
    let denied = (
        false,
        "default-deny (isolated by GlobalNetworkPolicy closed)".to_owned(),
    );
    assert_eq!(decided(WEB.0, HOST.1), (true, "from-host".to_owned()));
    assert_eq!(decided(WEB.0, STALE), denied);
    assert_eq!(decided(WEB.0, OUTSIDE), denied);
    assert_eq!(decided(HOST.0, HOST.1), (true, "self-traffic".to_owned()));
    assert_eq!(decided(HOST.0, STALE), (false, "no-match".to_owned()));
    assert_eq!(decided(HOST.0, OUTSIDE), (false, "no-match".to_owned()));
}

/// What the Node object says of the node counts for it no more than what a host endpoint expects.
#[test]
fn an_address_that_the_nodes_object_claims_grants_nothing() {
    let closed = global("closed", &json!({"selector": "has(app)", "types": ["Ingress"]}));
    let mut lab = Lab::new(&[closed]);
    let node = lab.view.nodes.get_mut("here").unwrap();
    node.addresses.insert(STALE.parse().unwrap());
    lab.cluster = lab.view.cluster();
    assert!(lab.takes(WEB, HOST.1));
    assert!(!lab.takes(WEB, STALE));
}

fn pod(name: &str, node: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": []}, "status": {"podIP": address}})
}

fn on_node(name: &str, node: &str, addresses: &[&str]) -> Value {
    let mut pod = pod(name, node, addresses.first().unwrap_or(&""));
    pod["spec"]["hostNetwork"] = true.into();
    pod["status"]["podIPs"] = addresses.iter().map(|address| json!({"ip": address})).collect();
    pod
}

fn node(name: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
}

fn host(node: &str, addresses: &[&str]) -> Value {
    let spec = json!({"node": node, "interfaceName": "eth0", "expectedIPs": addresses});
    calico("HostEndpoint", &format!("{node}-eth0"), &spec)
}

fn closed() -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "closed"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}})
}

fn view(objects: &[Value]) -> ClusterView {
    load_objects(sources(objects)).unwrap().view
}

/// What decides at each end about TCP 80 between two ends.
fn decides(view: &ClusterView, from: &str, to: &str) -> [Option<String>; 2] {
    let book = Book::new(view);
    let question = Question {
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
        protocol: TCP,
        source_port: 40_000,
        port: 80,
    };
    let answer = Judge::new(&book).judge(&question).unwrap();
    [answer.egress, answer.ingress].map(|part| Some(part?.1.to_string()))
}

fn said(egress: Option<&str>, ingress: Option<&str>) -> [Option<String>; 2] {
    [egress, ingress].map(|by| by.map(str::to_owned))
}

const CLOSED: &str = "default-deny (isolated by NetworkPolicy shop/closed)";

/// Files say more of a node's addresses than its object alone: a node has several interfaces. What another Node object says
/// is another's.
#[test]
fn offline_an_expected_address_is_the_nodes_unless_another_node_has_it() {
    let expected = |others: &[Value]| {
        let own = [
            pod("a", "n1", "10.244.0.1"),
            host("n1", &["192.0.3.1", "192.0.3.77"]),
            closed(),
        ];
        view(&own.into_iter().chain(others.iter().cloned()).collect::<Vec<_>>())
    };
    let own = said(None, Some("from-host"));
    let (bare, known) = (expected(&[]), expected(&[node("n1", "192.0.3.1")]));
    assert_eq!(decides(&bare, "192.0.3.77", "shop/a"), own);
    assert_eq!(decides(&known, "192.0.3.77", "shop/a"), own);
    let moved = expected(&[node("n1", "192.0.3.1"), node("n2", "192.0.3.77")]);
    assert_eq!(decides(&moved, "192.0.3.1", "shop/a"), own);
    assert_eq!(decides(&moved, "192.0.3.77", "shop/a"), said(None, Some(CLOSED)));
    assert_eq!(
        decides(&moved, "192.0.3.77", "host/n1")[1],
        Some("no-match".to_owned())
    );
    assert_eq!(
        decides(&known, "192.0.3.77", "host/n1")[1],
        Some("self-traffic".to_owned())
    );
}

/// A pod on its node's network has no policy; it is the node wherever it is asked about.
#[test]
fn a_pod_on_its_nodes_network_is_the_node() {
    let others = [
        pod("near", "n1", "10.244.0.1"),
        pod("far", "n2", "10.244.1.1"),
        closed(),
    ];
    let with = |more: &[Value]| view(&others.iter().chain(more).cloned().collect::<Vec<_>>());
    let bare = with(&[on_node("agent", "n1", &["192.0.3.1"])]);
    assert_eq!(
        decides(&bare, "shop/agent", "shop/near"),
        said(None, Some("from-host"))
    );
    assert_eq!(
        decides(&bare, "192.0.3.1", "shop/near"),
        said(None, Some("from-host"))
    );
    assert_eq!(decides(&bare, "shop/agent", "shop/far"), said(None, Some(CLOSED)));
    assert_eq!(
        decides(&bare, "shop/far", "shop/agent"),
        said(Some("no-policy"), None)
    );
    assert_eq!(
        decides(&bare, "shop/near", "shop/agent"),
        said(Some("to-host"), None)
    );
    // Without an address of its own it is wherever its node is.
    for told in [vec![], vec![node("n1", "192.0.3.9")]] {
        let adrift: Vec<Value> = told.into_iter().chain([on_node("agent", "n1", &[])]).collect();
        let adrift = with(&adrift);
        assert_eq!(
            decides(&adrift, "shop/agent", "shop/near"),
            said(None, Some("from-host"))
        );
    }
    assert_eq!(
        decides(&with(&[on_node("agent", "", &[])]), "shop/agent", "shop/far"),
        said(None, Some(CLOSED))
    );
    // The host endpoint at its address judges.
    let shut = with(&[host("n1", &["192.0.3.1"]), on_node("agent", "n1", &["192.0.3.1"])]);
    assert_eq!(
        decides(&shut, "shop/agent", "shop/far"),
        said(Some("no-match"), Some(CLOSED))
    );
    assert_eq!(
        decides(&shut, "shop/far", "shop/agent"),
        said(Some("no-policy"), Some("no-match"))
    );
    let unnamed = with(&[host("n1", &[]), on_node("agent", "n1", &["192.0.3.1"])]);
    assert_eq!(
        decides(&unnamed, "shop/agent", "shop/far"),
        said(Some("no-match"), Some(CLOSED))
    );
}

/// A service that selects it leads to the node.
#[test]
fn a_pod_on_its_nodes_network_is_behind_services() {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "agent"},
        "spec": {"selector": {"app": "agent"}, "ports": [{"port": 80}]}});
    let objects = [on_node("agent", "n1", &["192.0.3.1"]), service];
    let services = view(&objects).services;
    let behind = &services[&("shop".to_owned(), "agent".to_owned())];
    assert_eq!(behind.len(), 1);
    assert_eq!(
        behind.first().unwrap().address,
        "192.0.3.1".parse::<std::net::IpAddr>().unwrap()
    );
}

/// What a service leads to, and so what rules by service mean, is the same whether or not the pod states what its node says.
#[test]
fn a_pod_that_states_no_address_is_behind_services_where_its_node_is() {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "agent"},
        "spec": {"selector": {"app": "agent"}, "ports": [{"port": 80}]}});
    let deny = json!([{"action": "Deny", "protocol": "TCP", "destination": {"services": {"name": "agent"}}},
        {"action": "Allow"}]);
    let policy = json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "no-agents"}, "spec": {"types": ["Egress"], "egress": deny}});
    let denied = said(
        Some("NetworkPolicy.projectcalico.org shop/no-agents rule 0"),
        None,
    );
    let two = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": {"addresses": [
        {"type": "InternalIP", "address": "192.0.3.9"}, {"type": "ExternalIP", "address": "34.1.2.3"}]}});
    for (nodes, behind) in [
        (vec![node("n1", "192.0.3.9")], vec!["192.0.3.9"]),
        (vec![two], vec!["192.0.3.9"]),
        (vec![host("n1", &["192.0.3.9"])], vec!["192.0.3.9"]),
        (vec![], vec!["198.51.100.1"]),
    ] {
        let objects = [
            vec![
                pod("x", "n2", "10.244.1.1"),
                on_node("agent", "n1", &[]),
                node("n2", "192.0.3.2"),
                service.clone(),
                policy.clone(),
            ],
            nodes,
        ];
        let view = view(&objects.concat());
        let endpoints = &view.services[&("shop".to_owned(), "agent".to_owned())];
        let endpoints: Vec<String> = endpoints.iter().map(|end| end.address.to_string()).collect();
        assert_eq!(endpoints, behind);
        let [egress, _] = decides(&view, "shop/x", "shop/agent");
        assert_eq!(egress, denied[0], "{behind:?}");
    }
}

/// A rule for nodes is for them where flows to them are judged: at what any object tells, or what is made up.
#[test]
fn rules_for_nodes_mean_nodes_whose_objects_state_no_address() {
    let admin = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "guard"}, "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": [
            {"action": "Deny", "to": [{"nodes": {"matchLabels": {"role": "cp"}}}]}]}});
    let silent =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"role": "cp"}}});
    let denied = said(Some("ClusterNetworkPolicy guard rule 0"), None);
    for telling in [
        vec![],
        vec![host("n1", &["192.0.3.7"])],
        vec![on_node("agent", "n1", &["192.0.3.7"])],
        vec![host("n1", &[])],
    ] {
        for on in ["n1", "n2"] {
            let objects = [
                vec![admin.clone(), silent.clone(), pod("x", on, "10.244.0.1")],
                telling.clone(),
            ];
            let view = view(&objects.concat());
            assert_eq!(decides(&view, "shop/x", "host/n1")[0], denied[0], "{telling:?}");
            // Another node is not meant, nor is anybody else.
            assert_ne!(decides(&view, "shop/x", OUTSIDE)[0], denied[0]);
        }
    }
    // A node that is only mentioned has no labels.
    let view = view(&[admin.clone(), pod("x", "n2", "10.244.0.1")]);
    assert_ne!(decides(&view, "shop/x", "host/n2")[0], denied[0]);
    let mut every = admin;
    every["spec"]["egress"][0]["to"][0]["nodes"] = json!({});
    let view = self::view(&[every, pod("x", "n2", "10.244.0.1")]);
    assert_eq!(decides(&view, "shop/x", "host/n2")[0], denied[0]);
    // Tables are made of what objects state alone.
    assert!(view.nodes.is_empty() && view.cluster().nodes.is_empty());
}

/// By an address that two pods claim nobody is known, whichever is read first.
#[test]
fn an_address_of_two_pods_as_the_end_of_a_flow_is_denied() {
    let mute = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "mute"},
        "spec": {"podSelector": {"matchLabels": {"app": "x"}}, "policyTypes": ["Egress"]}});
    let nobody = said(Some("no-match"), None);
    let (x, y) = (pod("x", "n1", "10.0.0.1"), pod("y", "n2", "10.0.0.1"));
    for objects in [[x.clone(), y.clone(), mute.clone()], [y, x.clone(), mute.clone()]] {
        let view = view(&objects);
        assert_eq!(decides(&view, "10.0.0.1", OUTSIDE), nobody);
        assert_eq!(decides(&view, OUTSIDE, "10.0.0.1"), [None, nobody[0].clone()]);
        // A pod that is named is itself.
        assert_eq!(decides(&view, "shop/y", OUTSIDE), said(Some("no-policy"), None));
        let question = Question {
            source: "10.0.0.1".parse().unwrap(),
            destination: OUTSIDE.parse().unwrap(),
            protocol: TCP,
            source_port: 40_000,
            port: 80,
        };
        let explained = explain(&view, &question).unwrap().to_string();
        assert_eq!(
            explained,
            "denied: 10.0.0.1 to 203.0.113.9, TCP port 80 from port 40000\n  egress of shop/x: denied by no-match\n    \
             + no-match: has the last word\n"
        );
    }
    // What a pod and a node claim is nobody's either.
    for objects in [[x.clone(), node("n2", "10.0.0.1")], [node("n2", "10.0.0.1"), x]] {
        assert_eq!(decides(&view(&objects), "10.0.0.1", OUTSIDE), nobody);
    }
}

/// Init containers have their ports while they run, and rules mean these by name, as Calico's do. No service leads there.
#[test]
fn named_ports_of_init_containers_count() {
    let setup = |restarts: Value| {
        let mut pod = pod("x", "n1", "10.244.0.1");
        pod["spec"]["initContainers"] = json!([{"name": "setup", "restartPolicy": restarts,
            "ports": [{"name": "setup", "containerPort": 80}]}]);
        pod
    };
    let rules = json!([{"action": "Deny", "protocol": "TCP", "destination": {"ports": ["setup"]}}, {"action": "Allow"}]);
    let policy = json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "p"}, "spec": {"ingress": rules}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "x"},
        "spec": {"selector": {"app": "x"}, "ports": [{"port": 9, "targetPort": "setup"}]}});
    for (restarts, leads) in [(Value::Null, false), (json!("Always"), true)] {
        let view = view(&[setup(restarts), policy.clone(), service.clone()]);
        assert_eq!(
            decides(&view, OUTSIDE, "shop/x"),
            said(None, Some("NetworkPolicy.projectcalico.org shop/p rule 0"))
        );
        let behind = &view.services[&("shop".to_owned(), "x".to_owned())];
        assert_eq!(behind.iter().any(|end| end.port == Some((TCP, 80))), leads);
    }
}

/// A node that is named is at its first internal address, and a host endpoint at the first that it expects.
#[test]
fn who_is_named_is_at_the_first_address_that_is_stated() {
    let two = |first: (&str, &str), second: (&str, &str)| {
        let addresses = [first, second].map(|(kind, address)| json!({"type": kind, "address": address}));
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": {"addresses": addresses}})
    };
    let from = |cidr: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "inside"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]}})
    };
    let (internal, external) = (("InternalIP", "192.168.1.10"), ("ExternalIP", "34.1.2.3"));
    let other = ("InternalIP", "192.168.1.9");
    let expected = host("n1", &["192.168.1.10", "34.1.2.3"]);
    for nodes in [
        vec![two(internal, external)],
        vec![two(external, internal)],
        vec![two(internal, other)],
        vec![expected.clone()],
        vec![two(external, other), expected],
    ] {
        for agent in [vec![], vec![on_node("agent", "n1", &[])]] {
            let objects = [
                nodes.clone(),
                vec![from("192.168.1.10/32"), pod("x", "n2", "10.244.0.1")],
                agent,
            ];
            let view = view(&objects.concat());
            let ends = ["host/n1", "host/n1-eth0", "shop/agent"];
            let has_host = nodes.iter().any(|object| object["kind"] == "HostEndpoint");
            let known = ends.iter().filter(|end| match **end {
                "host/n1-eth0" => has_host,
                "shop/agent" => objects[2].len() == 1 && !has_host,
                _ => true,
            });
            for end in known {
                let ingress = decides(&view, end, "shop/x")[1].clone();
                assert_eq!(
                    ingress.as_deref(),
                    Some("NetworkPolicy shop/inside rule 0"),
                    "{end} of {nodes:?}"
                );
            }
        }
    }
}

#[test]
fn a_pod_without_a_spec_is_refused_by_the_field() {
    let mut pod = pod("a", "n1", "10.244.0.1");
    pod.as_object_mut().unwrap().remove("spec");
    match load_objects(sources(&[pod])) {
        Err(LoadError::Invalid { object, errors, .. }) => {
            assert_eq!(object, "Pod shop/a");
            assert_eq!(errors.len(), 1);
            assert_eq!(
                (errors[0].field.as_str(), errors[0].problem.as_str()),
                ("spec", "is missing")
            );
        }
        other => panic!("{other:?}"),
    }
}

/// `serviceAccount` is what `serviceAccountName` was called once, and means the same where that is not given.
#[test]
fn a_service_account_goes_by_both_names() {
    let runs_as = |spec: Value| {
        let mut pod = pod("a", "n1", "10.244.0.1");
        pod["spec"] = spec;
        view(&[pod]).pods[0].service_account.clone()
    };
    assert_eq!(
        runs_as(json!({"containers": [], "serviceAccount": "robot"})),
        "robot"
    );
    assert_eq!(
        runs_as(json!({"containers": [], "serviceAccountName": "", "serviceAccount": "robot"})),
        "robot"
    );
    assert_eq!(
        runs_as(json!({"containers": [], "serviceAccountName": "clerk", "serviceAccount": "robot"})),
        "clerk"
    );
    assert_eq!(runs_as(json!({"containers": []})), "");
}

/// A namespace that only a host endpoint's profile mentions exists, and its profile allows.
#[test]
fn the_profile_of_a_namespace_that_nothing_else_mentions_allows() {
    let with = |profile: &str| {
        let mut host = host("n1", &["192.0.3.1"]);
        host["spec"]["profiles"] = json!([profile]);
        let loaded = load_objects(sources(&[host])).unwrap();
        (
            decides(&loaded.view, OUTSIDE, "host/n1")[1].clone().unwrap(),
            loaded.notes,
        )
    };
    let (by, notes) = with("kns.shop");
    assert_eq!(by, "no-policy");
    assert_eq!(notes, ["namespace shop is taken to have no labels of its own"]);
    for profile in ["kns.", "shop", "ksa.shop"] {
        assert_eq!(with(profile), ("no-match".to_owned(), Vec::new()), "{profile}");
    }
}
