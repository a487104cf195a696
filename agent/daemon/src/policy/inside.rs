//! Addresses that no name leads to, for policy: those of nodes, and those that pods have or may have.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

/// What is known of them.
#[derive(Debug)]
pub(super) struct Inside {
    /// This node's pods.
    pods: Vec<IpNet>,
    /// Of each node of the cluster, itself and its pods.
    nodes: BTreeMap<String, BTreeSet<IpNet>>,
    /// This node itself, and where it listens with others.
    host: (BTreeSet<IpAddr>, BTreeSet<IpNet>),
    is_news: bool,
}

impl Inside {
    pub(super) fn new(pods: Vec<IpNet>) -> Self {
        Self {
            pods,
            nodes: BTreeMap::new(),
            host: Default::default(),
            is_news: true,
        }
    }

    /// A node that came, changed or went.
    pub(super) fn set_node(&mut self, name: &str, now: Option<&Node>) {
        let now = now.map(addresses_of);
        if self.nodes.get(name) != now.as_ref() {
            self.is_news = true;
            match now {
                Some(now) => drop(self.nodes.insert(name.to_owned(), now)),
                None => drop(self.nodes.remove(name)),
            }
        }
    }

    /// This node has these addresses, and listens with others at these.
    pub(super) fn set_host(&mut self, own: &BTreeSet<IpAddr>, groups: &BTreeSet<IpNet>) {
        if self.host.0 != *own || self.host.1 != *groups {
            self.is_news = true;
            self.host = (own.clone(), groups.clone());
        }
    }

    /// All of them, if they are others than at the last call.
    pub(super) fn news(&mut self) -> Option<BTreeSet<IpNet>> {
        let (own, groups) = &self.host;
        let own = own.iter().copied().map(IpNet::from);
        let nodes = self.nodes.values().flatten();
        let nets = self.pods.iter().chain(groups).chain(nodes).copied();
        std::mem::take(&mut self.is_news).then(|| nets.chain(own).collect())
    }
}

/// A node's addresses and the ranges of its pods.
fn addresses_of(node: &Node) -> BTreeSet<IpNet> {
    let spec = node.spec.as_ref();
    let ranges = spec
        .and_then(|spec| spec.pod_cidrs.as_ref())
        .into_iter()
        .flatten();
    let ranges = ranges.chain(spec.and_then(|spec| spec.pod_cidr.as_ref()));
    let status = node.status.as_ref();
    let addresses = status
        .and_then(|status| status.addresses.as_ref())
        .into_iter()
        .flatten();
    let addresses = addresses.filter_map(|known| known.address.parse::<IpAddr>().ok());
    let addresses = addresses.map(|address| IpNet::from(address.to_canonical()));
    ranges
        .filter_map(|range| range.parse::<IpNet>().ok())
        // A range that holds all there is would leave no name anything.
        .filter(|range| range.prefix_len() > 0)
        .chain(addresses)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_their_pods_and_this_host_are_inside() {
        let nets =
            |texts: &[&str]| -> BTreeSet<IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let mut inside = Inside::new(vec!["10.244.0.0/24".parse().unwrap()]);
        assert_eq!(inside.news(), Some(nets(&["10.244.0.0/24"])));
        assert_eq!(inside.news(), None);
        let node = json!({"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64", "0.0.0.0/0"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}, {"type": "Hostname", "address": "n2"}]}});
        let node: Node = serde_json::from_value(node).unwrap();
        inside.set_node("n2", Some(&node));
        inside.set_host(&["192.0.2.1".parse().unwrap()].into(), &nets(&["192.0.2.255/32"]));
        let all = [
            "10.244.0.0/24",
            "10.244.1.0/24",
            "fd00:1::/64",
            "192.0.2.2/32",
            "192.0.2.1/32",
            "192.0.2.255/32",
        ];
        assert_eq!(inside.news(), Some(nets(&all)));
        inside.set_node("n2", Some(&node));
        inside.set_host(&["192.0.2.1".parse().unwrap()].into(), &nets(&["192.0.2.255/32"]));
        assert_eq!(inside.news(), None);
        inside.set_node("n2", None);
        assert!(
            inside
                .news()
                .is_some_and(|now| !now.contains(&"10.244.1.0/24".parse().unwrap()))
        );
    }
}
