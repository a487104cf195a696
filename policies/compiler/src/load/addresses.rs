//! Addresses for pods that have none.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use crate::{load::Loaded, view::PodView};

/// Made-up addresses come from 198.18.0.0/15, which RFC 2544 keeps for tests.
const GENERATED_BASE: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const GENERATED_COUNT: u32 = 1 << 17;

impl Loaded {
    pub(super) fn assume_addresses(&mut self) {
        let mut taken: BTreeSet<IpAddr> = self
            .view
            .pods
            .iter()
            .chain(&self.view.node_pods)
            .flat_map(|pod| pod.addresses.iter().copied())
            .collect();
        // A node whose pod has none of its addresses will be given one.
        let adrift = self.view.node_pods.iter_mut().filter(|pod| pod.node.is_empty());
        let pods = self.view.pods.iter_mut().chain(adrift);
        let mut without: Vec<&mut PodView> = pods.filter(|pod| pod.addresses.is_empty()).collect();
        without.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        for pod in without {
            let wanted = name_hash(&pod.namespace, &pod.name);
            let offsets = (0..GENERATED_COUNT).map(|i| wanted.wrapping_add(i) % GENERATED_COUNT);
            let mut addresses = offsets.map(|offset| IpAddr::V4(Ipv4Addr::from(GENERATED_BASE + offset)));
            let Some(address) = addresses.find(|address| !taken.contains(address)) else {
                continue;
            };
            taken.insert(address);
            pod.addresses.insert(address);
            self.notes.push(format!(
                "Pod {}/{} is taken to have address {address}",
                pod.namespace, pod.name
            ));
        }
    }
}

impl Loaded {
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
