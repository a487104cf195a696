//! How long compiling takes, and how large the tables become.

use std::time::{Duration, Instant};

use policies_compiler::{ClusterView, compile, load_objects};
use policies_ir::tables::EndpointId;
use serde_json::{Value, json};

use crate::sources;

/// `pods` pods on one node in ten namespaces, and `policies` policies of the usual kinds.
fn cluster(pods: u32, policies: usize) -> ClusterView {
    let pod_objects = (0..pods).map(|i| {
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"namespace": format!("ns-{}", i % 10), "name": format!("pod-{i}"),
            "labels": {"app": format!("app-{}", i / 10 % 20), "tier": if i % 3 == 0 { "front" } else { "back" }}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"podIP": format!("10.0.{}.{}", i / 250, i % 250 + 1)}})
    });
    let policy_objects = (0..policies).map(|i| {
        let app = json!({"matchLabels": {"app": format!("app-{}", i / 10 % 20)}});
        let spec = match i % 4 {
            0 => json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
            1 => json!({"podSelector": app, "ingress": [{"from": [{"podSelector": {"matchLabels": {"tier": "front"}}}],
                "ports": [{"port": "web"}, {"port": 9000, "endPort": 9100}]}]}),
            2 => json!({"podSelector": app, "egress": [{"to": [{"namespaceSelector": {"matchLabels":
                {"kubernetes.io/metadata.name": format!("ns-{}", (i + 1) % 10)}}, "podSelector": app}]},
                {"ports": [{"protocol": "UDP", "port": 53}]}]}),
            _ => json!({"podSelector": app, "ingress": [{"from": [{"ipBlock":
                {"cidr": format!("10.{}.0.0/16", i % 200), "except": [format!("10.{}.7.0/24", i % 200)]}}]}]}),
        };
        json!({"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": {"namespace": format!("ns-{}", i % 10), "name": format!("p-{i}")},
            "spec": spec})
    });
    let objects: Vec<Value> = pod_objects.chain(policy_objects).collect();
    let mut view = load_objects(sources(&objects)).expect("the cluster loads").view;
    for (pod, number) in view.pods.iter_mut().zip(1..) {
        pod.endpoint = Some(EndpointId(number));
    }
    view
}

#[test]
fn a_full_node_compiles_quickly() {
    for (pods, policies) in [(10, 20), (100, 200)] {
        let view = cluster(pods, policies);
        let times: Vec<Duration> = (0..5)
            .map(|_| {
                let start = Instant::now();
                std::hint::black_box(compile(&view));
                start.elapsed()
            })
            .collect();
        let fastest = times.into_iter().min().unwrap();
        let tables = compile(&view).tables;
        let entries: usize = tables
            .endpoints
            .values()
            .map(|endpoint| endpoint.verdicts.len())
            .sum();
        let identities: std::collections::BTreeSet<_> = tables.identities.values().collect();
        println!(
            "{pods} pods, {policies} policies: {fastest:?}, {} prefixes, {} identities, {entries} entries",
            tables.identities.len(),
            identities.len(),
        );
        // Unoptimised and beside other tests; milliseconds when optimised.
        assert!(fastest < Duration::from_secs(2), "{fastest:?}");
    }
}
