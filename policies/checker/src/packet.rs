//! One packet and what becomes of it: what shows a person that a claim holds, or that it does not.

use std::{fmt, net::IpAddr};

use serde::Serialize;

/// A workload at one of its addresses, or an address that no workload has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Position of the workload in the cluster's members.
    pub member: Option<usize>,
    /// The address.
    pub address: IpAddr,
    /// Names that it is taken to have, by position in the model's sets of them.
    pub(crate) names: Option<usize>,
}

impl Place {
    /// A workload at an address, or an address alone.
    pub fn new(member: Option<usize>, address: IpAddr) -> Self {
        Self {
            member,
            address,
            names: None,
        }
    }
}

/// One packet that opens a flow, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Packet {
    /// Where it comes from.
    pub from: Party,
    /// Where it goes.
    pub to: Party,
    /// The service, such as `TCP 80`.
    pub service: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port.
    pub source_port: u16,
    /// Destination port; for ICMP `type << 8 | code`.
    pub port: u16,
    /// Whether it arrives.
    pub allowed: bool,
    /// What the source's policies say; absent if it is not a workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Ruling>,
    /// What the destination's policies say; absent if it is not a workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Ruling>,
}

/// One end of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Party {
    /// The workload, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// The node that has the address, if it is no workload's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The address.
    pub address: IpAddr,
    /// Names that the flow is judged by, as if a resolver had given them for the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named: Option<String>,
}

/// What one endpoint decided.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ruling {
    /// Whether the flow passes here.
    pub allowed: bool,
    /// What decided, in the words of flow events.
    pub by: String,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}, {}", self.from, self.to, self.service)
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.workload, &self.named, &self.node) {
            (Some(workload), ..) => write!(f, "{workload} ({})", self.address),
            (None, Some(names), _) => write!(f, "{names} (if at {})", self.address),
            (None, None, Some(node)) => write!(f, "node {node} ({})", self.address),
            (None, None, None) => write!(f, "{}", self.address),
        }
    }
}

impl Packet {
    /// What became of it and by which rules, in a line.
    pub fn rulings(&self) -> String {
        let side = |name: &str, ruling: &Option<Ruling>| {
            let ruling = ruling.as_ref()?;
            let verdict = if ruling.allowed { "allowed" } else { "denied" };
            Some(format!("{name} {verdict} by {}", ruling.by))
        };
        let sides = [side("egress", &self.egress), side("ingress", &self.ingress)];
        sides.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}
