//! Addresses for pods and nodes that have none.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use policies_ir::cluster::primary;

use crate::{
    load::Loaded,
    made_up::{PODS, Supply, place_nodes},
    view::PodView,
};

impl Loaded {
    /// Gives pods without addresses one of each family. None is in one of the networks `stated`.
    pub(super) fn assume_addresses(&mut self, stated: &[IpNet]) {
        let pods = self.view.pods.iter().chain(&self.view.node_pods);
        let of_pods = pods.flat_map(|pod| &pod.addresses);
        let of_nodes = self.view.nodes.values().flat_map(|node| &node.addresses);
        let taken: Vec<IpNet> = of_pods.chain(of_nodes).copied().map(IpNet::from).collect();
        let mut supplies = PODS.map(|range| Supply::new(range, taken.iter().chain(stated)));
        // A node whose pod has none of its addresses will be given some.
        let adrift = self.view.node_pods.iter_mut().filter(|pod| pod.node.is_empty());
        let pods = self.view.pods.iter_mut().chain(adrift);
        let mut without: Vec<&mut PodView> = pods.filter(|pod| pod.addresses.is_empty()).collect();
        without.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        for pod in without {
            let wanted = u64::from(name_hash(&pod.namespace, &pod.name));
            let given = supplies.iter_mut().filter_map(|supply| supply.take(wanted));
            pod.addresses.extend(given);
            let given: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
            self.notes.push(format!(
                "Pod {}/{} is taken to have the addresses {}",
                pod.namespace,
                pod.name,
                given.join(" and ")
            ));
        }
    }
}

impl Loaded {
    /// Gives nodes of which no object tells an address one of each family, which are in none of the networks `stated` either.
    /// The pods on the networks of their nodes, each at an address: what states none is where its node is.
    pub(super) fn assume_node_addresses(&mut self, stated: &[IpNet]) -> Vec<PodView> {
        let mut cluster = self.view.cluster();
        let without = place_nodes(&mut cluster, stated).into_iter();
        let given = without.filter_map(|node| {
            let addresses = cluster.nodes.get(&node)?.clone();
            Some((node, addresses))
        });
        self.view.assumed_nodes = given.collect();
        let mut on_nodes = self.view.node_pods.clone();
        for pod in on_nodes.iter_mut().filter(|pod| pod.addresses.is_empty()) {
            // As the kubelet would state them.
            let of_node = cluster.addresses_of_node(&pod.node);
            pod.addresses.extend(primary(of_node.into_iter().flatten()));
        }
        on_nodes
    }

    /// Says which addresses several have: nobody is known by them, so that policy denies what comes from or goes to them.
    pub(super) fn note_contested_addresses(&mut self) {
        let mut claims: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        let pods = self.view.pods.iter().flat_map(|pod| {
            let claimant = format!("Pod {}/{}", pod.namespace, pod.name);
            pod.addresses
                .iter()
                .map(move |address| (*address, claimant.clone()))
        });
        let nodes = self.view.nodes.iter().flat_map(|(name, node)| {
            let claimant = format!("Node {name}");
            node.addresses
                .iter()
                .map(move |address| (*address, claimant.clone()))
        });
        for (address, claimant) in pods.chain(nodes) {
            claims.entry(address).or_default().insert(claimant);
        }
        for (address, claimants) in claims {
            if claimants.len() > 1 {
                let claimants: Vec<String> = claimants.into_iter().collect();
                self.notes.push(format!(
                    "{} have one address, {address}: nobody is known by it, and all of their flows with it are denied",
                    claimants.join(" and ")
                ));
            }
        }
    }
}

/// FNV-1a, for an address that stays the same from run to run and from machine to machine.
fn name_hash(namespace: &str, name: &str) -> u32 {
    let bytes = namespace.bytes().chain([b'/']).chain(name.bytes());
    bytes.fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
