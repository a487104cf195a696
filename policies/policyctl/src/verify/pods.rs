//! Pods of the node, as its kernel knows them and as the cluster's objects say.

use std::collections::BTreeMap;

use api::{
    annotations,
    flow::PodRef,
    node_policy::{Mac, NodeEndpoint, NodePolicy},
};
use policies_compiler::ClusterView;
use policies_ir::tables::EndpointId;
use serde_json::Value;

use super::{Finding, finding};

/// What an object says of a pod that no rule asks about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct PodFacts {
    /// Unique identifier: what its MAC address is made of.
    uid: String,
    /// Whether its allowed flows are to outlive a change of policy.
    keeps_established: bool,
}

/// What the pods among `objects` say.
pub(super) fn facts(objects: &[Value]) -> BTreeMap<PodRef, PodFacts> {
    let pods = objects.iter().filter(|object| object["kind"] == "Pod");
    let facts = pods.map(|pod| {
        let metadata = &pod["metadata"];
        let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
        let name = PodRef {
            namespace: text("namespace"),
            name: text("name"),
        };
        let facts = PodFacts {
            uid: text("uid"),
            keeps_established: metadata["annotations"][annotations::ESTABLISHED] == "keep",
        };
        (name, facts)
    });
    facts.collect()
}

/// Sees the cluster from the node, with its endpoints. Tells of pods and endpoints that do not belong together.
pub(super) fn place(node: &str, sent: &NodePolicy, view: &mut ClusterView) -> Vec<Finding> {
    node.clone_into(&mut view.node);
    view.host_addresses.clone_from(&sent.host_addresses);
    view.host_groups.clone_from(&sent.host_groups);
    view.names.clone_from(&sent.names);
    let mut by_pod: BTreeMap<PodRef, &NodeEndpoint> = BTreeMap::new();
    let mut found = Vec::new();
    for endpoint in &sent.endpoints {
        match &endpoint.pod {
            Some(pod) if !by_pod.contains_key(pod) => {
                by_pod.insert(pod.clone(), endpoint);
            }
            Some(_) => found.push(finding(endpoint, "has two interfaces")),
            None => found.push(finding(endpoint, "is judged, and belongs to no pod")),
        }
    }
    for pod in &mut view.pods {
        let name = PodRef {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        };
        let endpoint = by_pod.remove(&name).filter(|_| pod.node == node);
        match endpoint {
            Some(endpoint) if !pod.addresses.is_empty() && pod.addresses != endpoint.addresses => {
                let what = format!(
                    "may send from {:?} in the kernel, and has {:?}",
                    endpoint.addresses, pod.addresses
                );
                found.push(finding(endpoint, &what));
            }
            None if pod.node == node && !pod.addresses.is_empty() => found.push(Finding {
                pod: name.to_string(),
                what: "has an address, and nothing judges its interface".to_owned(),
            }),
            _ => {}
        }
        if let Some(endpoint) = endpoint {
            pod.endpoint = Some(EndpointId(endpoint.id));
            // The node knows the address before the API does.
            pod.addresses.clone_from(&endpoint.addresses);
            for port in &endpoint.host_ports {
                if !pod.host_ports.contains(port) {
                    found.push(finding(
                        endpoint,
                        &format!("is given port {port} of the node, and asks for none such"),
                    ));
                }
            }
            // Which of those that it asks for could be had only the node knows.
            pod.host_ports.clone_from(&endpoint.host_ports);
        }
    }
    let gone = by_pod.into_values();
    found.extend(gone.map(|endpoint| finding(endpoint, "is judged, and is no pod of this node")));
    found
}

/// Holds what the kernel knows of each pod beside tables against what its object says.
pub(super) fn compare_facts(sent: &NodePolicy, facts: &BTreeMap<PodRef, PodFacts>) -> Vec<Finding> {
    let mut found = Vec::new();
    for endpoint in &sent.endpoints {
        // Of others it was told that they are no pods.
        let Some(facts) = endpoint.pod.as_ref().and_then(|pod| facts.get(pod)) else {
            continue;
        };
        let mac = Mac::of_pod(&facts.uid);
        if endpoint.mac != mac {
            let what = format!("may send from {} in the kernel, and has {mac}", endpoint.mac);
            found.push(finding(endpoint, &what));
        }
        let what = match (endpoint.keeps_established, facts.keeps_established) {
            (true, false) => "keeps flows over a change of policy in the kernel, and does not ask for that",
            (false, true) => "has its flows judged anew in the kernel, and asks to keep them",
            _ => continue,
        };
        found.push(finding(endpoint, what));
    }
    found
}

/// Whether what goes straight to a pod is taken to it, for each address that it has, and to nobody else.
pub(super) fn compare_ways(sent: &NodePolicy) -> Vec<Finding> {
    let mut found = Vec::new();
    for endpoint in &sent.endpoints {
        for address in &endpoint.addresses {
            let Some(way) = sent.ways.iter().find(|way| way.address == *address) else {
                let what = format!("is not where the kernel takes what goes straight to {address}");
                found.push(finding(endpoint, &what));
                continue;
            };
            let (is, should) = (
                (way.endpoint, way.interface, way.mac),
                (endpoint.id, endpoint.interface, endpoint.mac),
            );
            if is != should {
                let what = format!(
                    "is not where the kernel takes what goes straight to {address}: {}, and not {}",
                    end_of(is),
                    end_of(should)
                );
                found.push(finding(endpoint, &what));
            }
        }
    }
    let strangers = sent.ways.iter().filter(|way| {
        let is_own = |endpoint: &NodeEndpoint| endpoint.addresses.contains(&way.address);
        !sent.endpoints.iter().any(is_own)
    });
    found.extend(strangers.map(|way| Finding {
        pod: format!("address {}", way.address),
        what: "is no pod's of this node, and the kernel takes what goes straight there somewhere".to_owned(),
    }));
    found
}

fn end_of((endpoint, interface, mac): (u32, u32, Mac)) -> String {
    format!("endpoint {endpoint}, interface {interface}, {mac}")
}
