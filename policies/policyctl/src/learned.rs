//! Names of addresses as the resolvers of the nodes have learned them, which no object of the cluster tells: what rules
//! for DNS names are judged by. Only rules for what leaves an end ask for names, so those count that the node knows
//! where a flow begins.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use anyhow::{Context, Result};
use api::node_policy::NodePolicy;
use kube::Client;
use policies_compiler::{CalicoObject, ClusterView, FlowEnd};

use crate::cluster;

/// Names by address.
pub(crate) type Names = BTreeMap<IpAddr, BTreeSet<String>>;

/// What the resolver of a node has learned.
pub(crate) async fn of_node(client: &Client, node: &str) -> Result<Names> {
    let path = format!("/api/v1/nodes/{}/proxy/policy", cluster::encode(node));
    let sent = cluster::get(client, &path)
        .await
        .map_err(anyhow::Error::from)
        .with_context(|| {
            format!("some rule asks for names, and node {node} does not tell those it learned")
        })?;
    let sent: NodePolicy =
        serde_json::from_value(sent).with_context(|| format!("node {node} sent something else"))?;
    Ok(sent.names)
}

/// Which nodes flows begin at.
pub(crate) struct Nodes<'a> {
    view: &'a ClusterView,
    pods: HashMap<(&'a str, &'a str), &'a str>,
    hosts: HashMap<&'a str, &'a str>,
    addresses: HashMap<IpAddr, &'a str>,
}

impl<'a> Nodes<'a> {
    pub(crate) fn new(view: &'a ClusterView) -> Self {
        let mut nodes = Self {
            view,
            pods: HashMap::new(),
            hosts: HashMap::new(),
            addresses: HashMap::new(),
        };
        for pod in &view.node_pods {
            nodes
                .pods
                .insert((pod.namespace.as_str(), pod.name.as_str()), &pod.node);
        }
        for pod in &view.pods {
            let name = (pod.namespace.as_str(), pod.name.as_str());
            nodes.pods.insert(name, &pod.node);
            for address in &pod.addresses {
                nodes.addresses.entry(*address).or_insert(&pod.node);
            }
        }
        let hosts = view.calico.iter().filter_map(|object| match object {
            CalicoObject::HostEndpoint(host) => Some(host),
            _ => None,
        });
        for host in hosts {
            let name = host.metadata.name.as_deref().unwrap_or_default();
            nodes.hosts.insert(name, &host.spec.node);
            let expected = host.spec.expected_ips.iter();
            for address in expected.filter_map(|text| text.parse::<IpAddr>().ok()) {
                let known = nodes.addresses.entry(address.to_canonical());
                known.or_insert(&host.spec.node);
            }
        }
        for (name, node) in &view.nodes {
            for address in &node.addresses {
                nodes.addresses.entry(*address).or_insert(name);
            }
        }
        nodes
    }

    /// The node of the cluster that an end is on, if it is on one.
    pub(crate) fn of(&self, end: &FlowEnd) -> Option<&'a str> {
        let node = match end {
            FlowEnd::Pod { namespace, name } => *self.pods.get(&(namespace.as_str(), name.as_str()))?,
            FlowEnd::Host(name) => match self.view.nodes.get_key_value(name) {
                Some((name, _)) => name.as_str(),
                None => *self.hosts.get(name.as_str())?,
            },
            FlowEnd::Address(address) => *self.addresses.get(&address.to_canonical())?,
        };
        // A host endpoint may be for a node that nobody can ask.
        let (node, _) = self.view.nodes.get_key_value(node)?;
        Some(node)
    }

    /// Those on which flows may begin, of the cluster's.
    pub(crate) fn all(&self) -> BTreeSet<&'a str> {
        let named = self.pods.values().chain(self.hosts.values()).copied();
        let known = named.filter_map(|node| self.view.nodes.get_key_value(node));
        known.map(|(node, _)| node.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use policies_compiler::{Source, load_objects};
    use serde_json::json;

    use super::*;

    #[test]
    fn ends_are_found_on_their_nodes_however_they_are_named() {
        let pod = |name: &str, node: &str, address: &str| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
                "spec": {"nodeName": node, "containers": [{"name": "c"}]}, "status": {"podIP": address}})
        };
        let objects = [
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}}),
            json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint", "metadata": {"name": "uplink"},
                "spec": {"node": "n1", "interfaceName": "eth0", "expectedIPs": ["192.0.2.1"]}}),
            pod("web", "n1", "10.244.0.1"),
            pod("lost", "gone", "10.244.0.2"),
        ];
        let origin = "here";
        let loaded = load_objects(objects.iter().map(|object| Source { origin, object })).unwrap();
        let nodes = Nodes::new(&loaded.view);
        let of = |text: &str| nodes.of(&text.parse().unwrap());
        for end in [
            "shop/web",
            "10.244.0.1",
            "host/n1",
            "host/uplink",
            "192.168.0.1",
            "192.0.2.1",
        ] {
            assert_eq!(of(end), Some("n1"), "{end}");
        }
        for end in [
            "shop/lost",
            "10.244.0.2",
            "host/gone",
            "203.0.113.9",
            "shop/nobody",
        ] {
            assert_eq!(of(end), None, "{end}");
        }
        assert_eq!(nodes.all(), BTreeSet::from(["n1"]));
    }
}
