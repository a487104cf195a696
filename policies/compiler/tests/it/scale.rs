//! How large the tables become.

use std::collections::BTreeSet;

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

/// How long it takes is the benchmark's to say; here, that what is written stays within what rules can tell apart.
#[test]
fn a_full_node_has_small_tables() {
    for (pods, policies) in [(10, 20), (100, 200)] {
        let tables = compile(&cluster(pods, policies)).tables;
        let prefixes = tables.identities.len();
        let identities: BTreeSet<_> = tables.identities.values().copied().collect();
        let entries = tables.endpoints.values().map(|endpoint| endpoint.verdicts.len());
        let largest = entries.max().unwrap_or(0);
        println!(
            "{pods} pods, {policies} policies: {prefixes} prefixes, {} identities, at most {largest} entries an endpoint",
            identities.len(),
        );
        assert_eq!(tables.endpoints.len(), usize::try_from(pods).unwrap());
        assert!(identities.len() <= prefixes, "an identity without a prefix");
        // Both directions, and for each a verdict for the rest, for a port by name, for a range and for UDP 53.
        assert!(largest <= identities.len() * 2 * 16, "{largest} entries");
    }
}
