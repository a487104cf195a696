//! What a node says its kernel holds: the tables as they were read back, and what their numbers stand for. Compared
//! with the policy by `policyctl verify --live`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    flow::{FlowDirection, FlowVerdict, PodRef},
    host_ports::HostPort,
};

/// Tables of one node's kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePolicy {
    /// The node.
    pub node: String,
    /// Why its kernel does not judge by the newest policy everywhere; absent if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<String>,
    /// Its own addresses.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Where it listens with others: groups, and broadcasts of its networks.
    #[serde(default)]
    pub host_groups: BTreeSet<IpNet>,
    /// Names of addresses, as the node's resolver learned them, that the tables were made with.
    #[serde(default)]
    pub names: BTreeMap<IpAddr, BTreeSet<String>>,
    /// Interfaces that the programs are attached to.
    pub endpoints: Vec<NodeEndpoint>,
    /// Host endpoints of the node, and what is attached to the host's own interfaces.
    #[serde(default)]
    pub hosts: Vec<NodeHost>,
    /// Where what goes straight to a pod of the node is taken to.
    #[serde(default)]
    pub ways: Vec<WayRow>,
    /// Who judges packets of the host, by interface and address.
    #[serde(default)]
    pub host_places: Vec<HostPlaceRow>,
    /// Numbers of endpoints that are closed, for their tables cannot be written or there is no room for an interface. They
    /// have no part in the tables below.
    #[serde(default)]
    pub closed: BTreeSet<u32>,
    /// Classes of addresses; longest prefix wins.
    pub identities: Vec<(IpNet, u32)>,
    /// Classes of source ports.
    pub sources: Vec<SourceRow>,
    /// Classes of addresses at the own end of what the node forwards.
    #[serde(default)]
    pub insides: Vec<InsideRow>,
    /// Verdicts.
    pub verdicts: Vec<VerdictRow>,
    /// Names of rules, from the agent: the kernel has numbers only. The first has the number of the first rule that is
    /// not built in.
    pub rules: Vec<RuleRow>,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEndpoint {
    /// Number of the endpoint.
    pub id: u32,
    /// Its pod; absent if the agent knows none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// Number of the interface.
    #[serde(default)]
    pub interface: u32,
    /// Addresses that the kernel lets it send from.
    pub addresses: BTreeSet<IpAddr>,
    /// MAC address that the kernel lets it send from.
    #[serde(default)]
    pub mac: Mac,
    /// Ports of the node that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
    /// Whether flows that were allowed outlive a change of policy.
    #[serde(default)]
    pub keeps_established: bool,
    /// Whether it has tables. Without, everything is denied.
    pub programmed: bool,
}

/// A host endpoint. It is judged in up to three parts, each with a number.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeHost {
    /// Name of the HostEndpoint; empty for what is attached and belongs to none.
    pub name: String,
    /// Number for flows that begin or end at the node.
    pub local: u32,
    /// Number for flows that the node forwards.
    pub forwarded: u32,
    /// Number for packets before flows are known.
    pub untracked: u32,
    /// Interfaces that it speaks of.
    pub interfaces: BTreeSet<String>,
    /// Interfaces that the programs are attached to with its numbers.
    pub attached: BTreeSet<String>,
    /// Those of its numbers that have tables.
    pub programmed: BTreeSet<u32>,
}

/// Where what goes straight to a pod is taken to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WayRow {
    /// Address of the pod.
    pub address: IpAddr,
    /// Number of the endpoint that judges what is delivered.
    pub endpoint: u32,
    /// Number of the interface.
    pub interface: u32,
    /// MAC address that it is sent to.
    pub mac: Mac,
}

/// Who judges packets of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPlaceRow {
    /// Name of the interface.
    pub interface: String,
    /// Whose packets.
    pub of: HostPackets,
    /// Number of the endpoint.
    pub endpoint: u32,
    /// Number of the one that is asked before flows are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untracked: Option<u32>,
}

/// Packets at an interface of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HostPackets {
    /// From and to this address of the host.
    Address(IpAddr),
    /// To whoever listens: groups and broadcasts.
    Groups,
    /// All others.
    Forwarded,
}

/// How many interfaces and addresses of its own a node has: what host endpoints of it can take places for. The node says it
/// in the annotation [`HOST_INTERFACES`](crate::annotations::HOST_INTERFACES).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostCounts {
    /// Interfaces that a HostEndpoint for `*` speaks of: neither loopback nor the pods' links.
    pub interfaces: usize,
    /// Addresses that are the host's own, broadcasts of its networks among them.
    pub addresses: usize,
}

/// A MAC address; all zero if it was not said.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// That of a pod: locally administered, the same for the same pod.
    pub fn of_pod(uid: &str) -> Self {
        Self::of_side(uid, "pod")
    }

    /// That of the other end of its link.
    pub fn of_host_side(uid: &str) -> Self {
        Self::of_side(uid, "host")
    }

    fn of_side(pod_uid: &str, side: &str) -> Self {
        let hash = Sha256::new()
            .chain_update(side)
            .chain_update([0])
            .chain_update(pod_uid)
            .finalize();
        let mut mac = [0; 6];
        mac.iter_mut().zip(hash.iter()).for_each(|(to, from)| *to = *from);
        let [first, ..] = &mut mac;
        *first = (*first & 0xfc) | 0x02;
        Self(mac)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A block of source ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceRow {
    /// Number of the endpoint.
    pub endpoint: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// First port of the block.
    pub port: u16,
    /// Bits of the port that count.
    pub port_bits: u8,
    /// Class of these ports.
    pub class: u16,
}

/// What an address is at the own end of an endpoint that judges what the node forwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InsideRow {
    /// Number of the endpoint.
    pub endpoint: u32,
    /// Class of the address.
    pub address: u32,
    /// What that is for flows to it.
    pub ingress: u16,
    /// What it is for flows from it.
    pub egress: u16,
}

/// A verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerdictRow {
    /// Number of the endpoint.
    pub endpoint: u32,
    /// Class of the other end's address.
    pub peer: u32,
    /// Seen from the endpoint.
    pub direction: FlowDirection,
    /// Class of the address at the own end.
    #[serde(default)]
    pub inside: u16,
    /// Class of the source port.
    pub source: u16,
    /// IP protocol number; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// First destination port of the block.
    #[serde(default)]
    pub port: u16,
    /// Bits of the port that count; 0 for all ports.
    #[serde(default)]
    pub port_bits: u8,
    /// The verdict.
    pub verdict: FlowVerdict,
    /// Number of the rule.
    pub rule: u32,
}

/// Name of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleRow {
    /// Its tier.
    pub tier: String,
    /// `Kind namespace/name` of its policy; empty for the end of a tier with several.
    pub policy: String,
    /// Its number in the policy; absent for the end of the tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_local_unicast_and_differ_by_side() {
        for uid in ["", "a", "5c7f0a1e-2a52-4f36-9f2d-6a6f3d8a9c11"] {
            let [first, ..] = Mac::of_pod(uid).0;
            assert_eq!(first & 0x03, 0x02);
            assert_ne!(Mac::of_pod(uid), Mac::of_host_side(uid));
        }
        // Leases on disk have them: they stay what they are.
        assert_eq!(Mac::of_pod("a").to_string(), "fa:ca:3d:81:29:43");
    }
}
