//! Which interfaces of each node its host endpoints speak of, as far as the API knows: what they need of the kernel's map
//! of the host's addresses.
//!
//! That map has an entry for each address of the host at each such interface. A node says how many it has of both
//! ([`HostCounts`]). Of one that has not said it, each HostEndpoint is taken to speak of one interface, and the addresses
//! are those of the node's object and of its `expectedIPs`: it may need more, which its agent tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::{annotations::HOST_INTERFACES, calico::HostEndpoint, node_policy::HostCounts};
use k8s_openapi::api::core::v1::Node;

/// Host endpoints of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeHosts {
    /// Those for one interface, which they name or which has an address of theirs.
    single: BTreeSet<String>,
    /// The one for all interfaces that none of these speaks of.
    star: Option<String>,
    /// Nothing if the node has not said.
    interfaces: Option<usize>,
    addresses: usize,
}

/// The host endpoints of each node that has any; `known` are addresses of nodes by name.
pub(super) fn of_nodes(
    (hosts, nodes): (Vec<&HostEndpoint>, Vec<&Node>),
    known: &BTreeMap<String, BTreeSet<IpAddr>>,
) -> BTreeMap<String, NodeHosts> {
    let counts: BTreeMap<&str, HostCounts> = nodes.into_iter().filter_map(counts).collect();
    let mut found: BTreeMap<String, NodeHosts> = BTreeMap::new();
    // Of several for one interface, the first by name has it.
    let mut named: BTreeSet<(&str, &str)> = BTreeSet::new();
    for host in hosts {
        let (spec, name) = (&host.spec, host.metadata.name.clone().unwrap_or_default());
        let node = found.entry(spec.node.clone()).or_insert_with(|| {
            let counts = counts.get(spec.node.as_str());
            let known = known.get(&spec.node).map_or(0, BTreeSet::len);
            NodeHosts {
                single: BTreeSet::new(),
                star: None,
                interfaces: counts.map(|counts| counts.interfaces),
                addresses: counts.map_or(known, |counts| counts.addresses),
            }
        });
        match spec.interface_name.as_str() {
            "*" => {
                node.star.get_or_insert(name);
            }
            interface => {
                if interface.is_empty() || named.insert((spec.node.as_str(), interface)) {
                    node.single.insert(name);
                }
            }
        }
    }
    found
}

impl NodeHosts {
    /// Entries that they need. `forwards` tells of which one policies judge what the node forwards.
    pub(super) fn places(&self, forwards: impl Fn(&str) -> bool) -> usize {
        // The groups have one too.
        let at = |name: &String| self.addresses + 1 + usize::from(forwards(name));
        let present = self.interfaces.unwrap_or(usize::MAX);
        let single = self.single.iter().take(present).map(at).sum::<usize>();
        let left = match self.interfaces {
            Some(interfaces) => interfaces.saturating_sub(self.single.len()),
            None => 1,
        };
        single + self.star.as_ref().map_or(0, |star| left * at(star))
    }
}

/// What the node says. What cannot be read is not said.
fn counts(node: &Node) -> Option<(&str, HostCounts)> {
    let annotations = node.metadata.annotations.as_ref()?;
    let counts = serde_json::from_str(annotations.get(HOST_INTERFACES)?).ok()?;
    Some((node.metadata.name.as_deref()?, counts))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn host(name: &str, interface: &str) -> HostEndpoint {
        let object = json!({"metadata": {"name": name}, "spec": {"node": "a", "interfaceName": interface}});
        serde_json::from_value(object).unwrap()
    }

    fn places(hosts: &[HostEndpoint], said: Option<&str>, forwards: &str) -> usize {
        let annotations = said.map_or(json!({}), |said| json!({HOST_INTERFACES: said}));
        let node = json!({"metadata": {"name": "a", "annotations": annotations}});
        let node: Node = serde_json::from_value(node).unwrap();
        let known = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|ip| ip.parse().unwrap());
        let known = BTreeMap::from([("a".to_owned(), known.into())]);
        let found = of_nodes((hosts.iter().collect(), vec![&node]), &known);
        found["a"].places(|name| name == forwards)
    }

    #[test]
    fn each_address_counts_at_each_interface_that_is_known() {
        let (uplink, star) = (host("uplink", "eth0"), host("star", "*"));
        let said = Some(r#"{"interfaces": 10, "addresses": 30}"#);
        let one = std::slice::from_ref(&uplink);
        assert_eq!(places(one, None, ""), 4, "three addresses, and groups");
        assert_eq!(places(one, None, "uplink"), 5);
        assert_eq!(places(one, said, ""), 31);
        assert_eq!(places(std::slice::from_ref(&star), said, "star"), 10 * 32);
        let both = [uplink, star];
        assert_eq!(places(&both, None, ""), 8);
        assert_eq!(places(&both, said, "star"), 31 + 9 * 32);
        assert_eq!(places(&both, Some("many"), ""), 8, "what nobody can read");
        // One interface has one, and there is no more than the node has.
        let twice = [host("a", "eth0"), host("b", "eth0"), host("c", "")];
        assert_eq!(places(&twice, None, "b"), 8);
        let few = Some(r#"{"interfaces": 1, "addresses": 30}"#);
        assert_eq!(places(&twice, few, ""), 31);
    }
}
