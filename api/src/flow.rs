//! Flow events: what the kernel decided about a flow, joined with who the ends are. One JSON object per
//! line on the wire and on disk.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One decision about one flow at one pod's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowEvent {
    /// When the kernel decided.
    pub time: Timestamp,
    /// Node it happened on.
    pub node: String,
    /// Pod whose interface judged.
    pub pod: PodRef,
    /// Seen from that pod.
    pub direction: FlowDirection,
    /// What was decided.
    pub verdict: FlowVerdict,
    /// What decided: a policy rule, or why none was asked.
    pub decided_by: DecidedBy,
    /// What would have been decided if the staged policies were enforced, where that is another verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<StagedVerdict>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Pod behind the other end, if it is one we know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<PodRef>,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port; for ICMP `type << 8 | code`.
    pub destination_port: u16,
    /// Policy epoch that judged.
    pub epoch: u32,
}

/// Namespace and name of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for PodRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Direction of a flow, seen from the pod whose interface judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowDirection {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowVerdict {
    /// Passed on.
    Allow,
    /// Dropped.
    Deny,
}

/// What decided a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecidedBy {
    /// `NetworkPolicy default/web rule 0`, `default-deny (isolated by ...)`, `no-policy`, `spoofed-source`,
    /// `fragment`, `truncated`, `not-programmed`, and so on: stable words, listed in `docs/flows.md`.
    pub rule: String,
    /// Policy that holds the rule, as `Kind namespace/name`; absent for built-in decisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Tier of that policy; absent for built-in decisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
}

/// What would have been decided with other policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StagedVerdict {
    /// The verdict.
    pub verdict: FlowVerdict,
    /// What would have decided.
    pub decided_by: DecidedBy,
}
