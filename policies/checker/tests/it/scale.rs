//! How long the model of a large cluster takes. Nothing is asserted about time; `--nocapture` shows it.

use std::time::Instant;

use policies_checker::{
    Model, assertion,
    connectivity::{Grouping, connectivity},
    difference::difference,
};
use policies_compiler::{ClusterView, Source, load_objects};
use serde_json::{Value, json};

/// `pods` pods of workloads with ten replicas in twenty namespaces, on so many nodes, and `policies` policies of the usual kinds.
fn cluster(pods: usize, nodes: usize, policies: usize) -> ClusterView {
    let node_name = |i: usize| format!("node-{i}");
    let on = (nodes > 0).then_some(nodes);
    let node = |i: usize| {
        json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": node_name(i), "labels": {"zone": if i.is_multiple_of(3) { "a" } else { "b" }}},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("172.16.{}.{}", i / 250, i % 250 + 1)},
                {"type": "ExternalIP", "address": format!("198.51.{}.{}", i / 250, i % 250 + 1)},
                {"type": "InternalIP", "address": format!("fd00::{i:x}")}]}})
    };
    let pod = |i: usize| {
        let (namespace, workload) = (i % 20, i / 200);
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": format!("ns-{namespace}"), "name": format!("app-{workload}-{i}"),
                "labels": {"app": format!("app-{workload}"), "tier": if workload % 2 == 0 { "front" } else { "back" },
                    "statefulset.kubernetes.io/pod-name": format!("app-{workload}-{i}")}},
            "spec": {"nodeName": on.map(|nodes| node_name(i % nodes)), "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"podIP": format!("10.0.{}.{}", i / 250, i % 250 + 1)}})
    };
    let policy = |i: usize| {
        let app = json!({"matchLabels": {"app": format!("app-{}", i / 20 % 5)}});
        let spec = match i % 4 {
            0 => json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
            1 => {
                json!({"podSelector": app, "ingress": [{"from": [{"podSelector": {"matchLabels": {"tier": "front"}}}],
                "ports": [{"port": "web"}, {"port": 9000, "endPort": 9100}]}]})
            }
            2 => {
                json!({"podSelector": app, "policyTypes": ["Egress"], "egress": [{"to": [{"namespaceSelector": {"matchLabels":
                {"kubernetes.io/metadata.name": format!("ns-{}", (i + 1) % 20)}}, "podSelector": app}]},
                {"ports": [{"protocol": "UDP", "port": 53}]}]})
            }
            _ => json!({"podSelector": app, "ingress": [{"from": [{"ipBlock":
                {"cidr": format!("172.{}.0.0/16", 16 + i % 16), "except": [format!("172.{}.7.0/24", 16 + i % 16)]}}]}]}),
        };
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": format!("ns-{}", i % 20), "name": format!("p-{i}")}, "spec": spec})
    };
    let objects = (0..pods).map(pod).chain((0..policies).map(policy));
    let objects: Vec<Value> = objects.chain((0..nodes).map(node)).collect();
    let origin = "here";
    load_objects(objects.iter().map(|object| Source { origin, object }))
        .unwrap()
        .view
}

#[test]
fn a_large_cluster_is_modelled_as_few_classes() {
    let (view, changed) = (cluster(1000, 0, 200), cluster(1000, 0, 199));
    let start = Instant::now();
    let model = Model::new(&view);
    let modelled = start.elapsed();
    assert_eq!(
        model
            .classes()
            .iter()
            .map(|class| class.members.len())
            .sum::<usize>(),
        1000
    );
    // Labels that no policy asks for keep no two pods apart: five workloads in each of twenty namespaces.
    assert!(model.classes().len() <= 100, "{} classes", model.classes().len());
    let start = Instant::now();
    let all = connectivity(&model, Grouping::Equal);
    let connected = start.elapsed();
    let start = Instant::now();
    let isolated = assertion::parse("no ns(ns-0) reaches internet on 443").unwrap();
    let proof = assertion::prove(&model, &isolated);
    let proved = start.elapsed();
    let start = Instant::now();
    let changes = difference(&model, &Model::new(&changed));
    let compared = start.elapsed();
    // The policy that is left out is the last: an allowance from a network.
    assert!(!changes.is_empty());
    println!(
        "1000 pods, 200 policies: {} classes, {} regions; model {modelled:?}, connectivity {connected:?} ({} connections), \
         assertion {proved:?} (holds: {}), difference {compared:?} ({} changes)",
        model.classes().len(),
        model.outside().len(),
        all.connections.len(),
        proof.holds,
        changes.len()
    );
}

/// Pods of one workload stand together on whichever node they are, as long as policy cannot tell what the addresses of their nodes are
/// like.
#[test]
fn nodes_do_not_tell_pods_apart() {
    let view = |nodes: usize, policies: usize| {
        let mut view = cluster(1000, nodes, policies);
        // Asks for the address of each node of a zone.
        let by_node = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "zone"}, "spec": {"tier": "Admin", "priority": 7, "subject": {"namespaces": {}},
                "egress": [{"name": "zone", "action": "Deny", "to": [{"nodes": {"matchLabels": {"zone": "a"}}}],
                    "protocols": [{"tcp": {"destinationPort": {"number": 10250}}}]}]}});
        let origin = "here";
        let object = &by_node;
        let mut more = load_objects([Source { origin, object }]).unwrap().view;
        view.cluster_policies.append(&mut more.cluster_policies);
        view
    };
    let mut classes = Vec::new();
    for nodes in [10, 1000] {
        let (of, changed) = (view(nodes, 200), view(nodes, 199));
        let start = Instant::now();
        let model = Model::new(&of);
        let modelled = start.elapsed();
        let start = Instant::now();
        let all = connectivity(&model, Grouping::Equal);
        let connected = start.elapsed();
        let start = Instant::now();
        let proof = assertion::prove(&model, &assertion::parse("no own-node reaches any pod").unwrap());
        let proved = start.elapsed();
        assert!(!proof.holds);
        let start = Instant::now();
        let changes = difference(&model, &Model::new(&changed));
        let compared = start.elapsed();
        println!(
            "1000 pods, {nodes} nodes, 200 policies: {} classes, {} regions; model {modelled:?}, connectivity {connected:?} \
             ({} connections), assertion {proved:?}, difference {compared:?} ({} changes)",
            model.classes().len(),
            model.outside().len(),
            all.connections.len(),
            changes.len()
        );
        classes.push(model.classes().len());
    }
    // Each workload on nodes of either zone: those that policy selects by, and the others.
    assert!(classes.iter().all(|classes| *classes <= 200), "{classes:?}");
}
