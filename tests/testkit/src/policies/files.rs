//! Objects as they stand in files.

use api::annotations::NAMESPACE_NAME_LABEL;
use policies_compiler::{CalicoObject, ClusterView};
use policies_ir::policy::{SCTP, TCP, UDP};
use serde_json::{Value, json};

use super::{cluster_policy_value, object_value};

/// Makes of the view one that files can say: those whose policies name a tier that nobody defined are refused, and a
/// namespace that is only mentioned exists.
pub fn define_what_is_mentioned(view: &mut ClusterView) {
    let of_calico = view
        .calico
        .iter()
        .map(|object| object.metadata().namespace.clone());
    let of_policies = view
        .policies
        .iter()
        .map(|policy| policy.metadata.namespace.clone());
    let pods = view.pods.iter().chain(&view.node_pods);
    let mentioned = pods.map(|pod| Some(pod.namespace.clone()));
    let mentioned: Vec<String> = mentioned.chain(of_calico).chain(of_policies).flatten().collect();
    for namespace in mentioned {
        let name = (NAMESPACE_NAME_LABEL.to_owned(), namespace.clone());
        view.namespaces.entry(namespace).or_insert_with(|| [name].into());
    }
    for object in &mut view.calico {
        if let CalicoObject::NetworkPolicy(policy)
        | CalicoObject::GlobalNetworkPolicy(policy)
        | CalicoObject::StagedNetworkPolicy(policy)
        | CalicoObject::StagedGlobalNetworkPolicy(policy) = object
            && policy.spec.tier.as_deref() == Some("nowhere")
        {
            policy.spec.tier = Some("security".to_owned());
        }
    }
    for pod in &mut view.pods {
        // Containers have no ports of other protocols, and none has number 0.
        pod.named_ports
            .retain(|port| port.port != 0 && [TCP, UDP, SCTP].contains(&port.protocol));
        pod.host_ports
            .retain(|port| port.port != 0 && port.container_port != 0);
    }
}

/// The objects that make this view.
pub fn as_written(view: &ClusterView) -> Vec<Value> {
    let mut files = Vec::new();
    for (name, labels) in &view.namespaces {
        files.push(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        );
    }
    for ((namespace, name), labels) in &view.service_accounts {
        let metadata = json!({"namespace": namespace, "name": name, "labels": labels});
        files.push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}));
    }
    for (name, node) in &view.nodes {
        let others = node
            .addresses
            .iter()
            .filter(|address| !node.primary.contains(address));
        let addresses = node.primary.iter().chain(others);
        let addresses =
            addresses.map(|address| json!({"type": "InternalIP", "address": address.to_string()}));
        files.push(json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": node.labels},
            "status": {"addresses": addresses.collect::<Vec<_>>()}}));
    }
    let on_node = view.node_pods.iter().map(|pod| (pod, true));
    for (pod, on_node) in view.pods.iter().map(|pod| (pod, false)).chain(on_node) {
        let protocol = |number| match number {
            UDP => "UDP",
            SCTP => "SCTP",
            _ => "TCP",
        };
        let ports = pod.named_ports.iter().map(|port| {
            json!({"name": port.name, "protocol": protocol(port.protocol), "containerPort": port.port})
        });
        let of_the_host = pod.host_ports.iter().map(|port| {
            json!({"protocol": port.protocol.to_string(), "hostPort": port.port,
                "containerPort": port.container_port})
        });
        let addresses = pod.addresses.iter();
        let addresses = addresses.map(|address| json!({"ip": address.to_string()}));
        files.push(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": pod.namespace, "name": pod.name, "labels": pod.labels},
            "spec": {"nodeName": pod.node, "serviceAccountName": pod.service_account, "hostNetwork": on_node,
                "containers": [{"name": "main", "ports": ports.chain(of_the_host).collect::<Vec<_>>()}]},
            "status": {"podIPs": addresses.collect::<Vec<_>>()}}));
    }
    for policy in &view.policies {
        let mut policy = serde_json::to_value(policy).expect("a policy is JSON");
        policy["apiVersion"] = "networking.k8s.io/v1".into();
        policy["kind"] = "NetworkPolicy".into();
        files.push(policy);
    }
    files.extend(view.cluster_policies.iter().map(cluster_policy_value));
    files.extend(view.calico.iter().map(object_value));
    files
}
