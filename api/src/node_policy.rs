//! What a node says its kernel holds: the tables as they were read back, and what their numbers stand for. Compared
//! with the policy by `policyctl verify --live`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::flow::{FlowDirection, FlowVerdict, PodRef};

/// Tables of one node's kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePolicy {
    /// The node.
    pub node: String,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEndpoint {
    /// Number of the endpoint.
    pub id: u32,
    /// Its pod; absent if the agent knows none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// Addresses that the kernel lets it send from.
    pub addresses: BTreeSet<IpAddr>,
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
