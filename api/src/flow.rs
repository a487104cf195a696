//! Flow events: what the kernel decided about a flow, joined with who the ends are. One JSON object per
//! line on the wire and on disk: a [`FlowLine`].

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::selector::Labels;

/// One line of the flow log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FlowLine {
    /// An event.
    Event(Box<FlowEvent>),
    /// Events are missing here.
    Lost(FlowLoss),
}

impl FlowLine {
    /// Number of the line in the node's flow log; absent for what is not in it.
    pub fn sequence(&self) -> Option<u64> {
        match self {
            Self::Event(event) => Some(event.sequence).filter(|sequence| *sequence > 0),
            Self::Lost(loss) => loss.sequence,
        }
    }

    /// When it happened.
    pub fn time(&self) -> Timestamp {
        match self {
            Self::Event(event) => event.time,
            Self::Lost(loss) => loss.time,
        }
    }
}

/// One decision about one flow at the interface of a pod or of the host, or what became of the flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowEvent {
    /// Number of the line in the node's flow log, without gaps; 0 before it is written.
    #[serde(default)]
    pub sequence: u64,
    /// What is told about the flow.
    #[serde(default)]
    pub kind: FlowKind,
    /// When the kernel decided.
    pub time: Timestamp,
    /// Node it happened on.
    pub node: String,
    /// Pod, or host endpoint, whose policies judged.
    pub pod: EndpointRef,
    /// The host endpoint judged it as what its node forwards, not as the node's own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forwarded: bool,
    /// Seen from that end.
    pub direction: FlowDirection,
    /// What was decided.
    pub verdict: FlowVerdict,
    /// What decided: a policy rule, or why none was asked.
    pub decided_by: DecidedBy,
    /// What would have been decided if the staged policies were enforced, where that is another verdict, or the same by
    /// another rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<StagedVerdict>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Pod, or host endpoint, at the other end, if it is one we know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<EndpointRef>,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port; for ICMP `type << 8 | code`.
    pub destination_port: u16,
    /// Policy epoch that judged.
    pub epoch: u32,
    /// When the flow opened; absent for denials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<Timestamp>,
    /// Why the flow ended; absent unless it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<FlowEnd>,
    /// Packets so far; for denials those that this event stands for.
    #[serde(default)]
    pub packets: Traffic,
    /// Their bytes, with link-layer headers.
    #[serde(default)]
    pub bytes: Traffic,
    /// Labels of the end that judged, when its flows were judged like this.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub pod_labels: Labels,
    /// Labels of the peer.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub peer_labels: Labels,
    /// Labels of either that were left out to keep the line short.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub labels_omitted: u32,
    /// `Log` rules that matched before the decision, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logged_by: Vec<DecidedBy>,
}

/// Events that are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowLoss {
    /// Number of the line in the node's flow log; absent where the loss is this reader's alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// When it was noticed.
    pub time: Timestamp,
    /// Node it happened on.
    pub node: String,
    /// How many.
    pub lost: u64,
    /// Where.
    pub at: LossPlace,
    /// Whose events, if they are all of one pod or host endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<EndpointRef>,
}

/// Where events were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossPlace {
    /// The kernel's buffer was full.
    Kernel,
    /// Not told one by one: denied packets of a pod that had too many others denied.
    Unreported,
    /// The log could not be written, because the disk was full or failed.
    Disk,
    /// The log dropped its oldest lines to stay within its size.
    Retention,
    /// A line was not complete, or not readable.
    Damaged,
    /// This reader was too slow.
    Reader,
}

impl LossPlace {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Unreported => "unreported",
            Self::Disk => "disk",
            Self::Retention => "retention",
            Self::Damaged => "damaged",
            Self::Reader => "reader",
        }
    }
}

/// What an event tells about a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowKind {
    /// It was allowed and opened.
    #[default]
    Start,
    /// Packets were denied.
    Denied,
    /// It lives; totals so far.
    Update,
    /// It ended; totals.
    End,
}

/// Why a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowEnd {
    /// Both ends closed it.
    Closed,
    /// One end reset it.
    Reset,
    /// It fell silent.
    Silent,
    /// Policy had come to deny it.
    Denied,
    /// One of its ends is gone.
    Removed,
}

/// An amount in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// To the pod.
    pub to_pod: u64,
    /// From the pod.
    pub from_pod: u64,
}

/// Where policy judges.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EndpointRef {
    /// A pod. Without a namespace it is none: an interface that nothing is known of, named `interface N`.
    Pod(PodRef),
    /// A host endpoint.
    Host(HostRef),
}

impl EndpointRef {
    /// The pod, if it is one.
    pub fn pod(&self) -> Option<&PodRef> {
        match self {
            Self::Pod(pod) => Some(pod),
            Self::Host(_) => None,
        }
    }

    /// The host endpoint, if it is one.
    pub fn host(&self) -> Option<&HostRef> {
        match self {
            Self::Host(host) => Some(host),
            Self::Pod(_) => None,
        }
    }
}

impl From<HostRef> for EndpointRef {
    fn from(host: HostRef) -> Self {
        Self::Host(host)
    }
}

impl From<PodRef> for EndpointRef {
    fn from(pod: PodRef) -> Self {
        Self::Pod(pod)
    }
}

impl std::fmt::Display for EndpointRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(pod) => pod.fmt(f),
            Self::Host(host) => write!(f, "host {}", host.name),
        }
    }
}

/// A host endpoint, and the node that it is on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostRef {
    /// Name of the HostEndpoint.
    #[serde(rename = "hostEndpoint")]
    pub name: String,
    /// Its node.
    pub node: String,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowVerdict {
    /// Passed on.
    Allow,
    /// Dropped.
    Deny,
}

/// What decided a flow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
    /// Number of the rule in its policy, from 0 within its direction; absent where no rule decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
}

/// What would have been decided with other policies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StagedVerdict {
    /// The verdict.
    pub verdict: FlowVerdict,
    /// What would have decided.
    pub decided_by: DecidedBy,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_event_or_a_loss() {
        let lost = r#"{"time":"1970-01-01T00:00:00Z","node":"n","lost":3,"at":"kernel"}"#;
        let line: FlowLine = serde_json::from_str(lost).unwrap();
        let FlowLine::Lost(loss) = &line else {
            panic!("{line:?}")
        };
        assert_eq!((loss.lost, loss.at), (3, LossPlace::Kernel));
        assert_eq!(serde_json::to_string(&line).unwrap(), lost);
        assert!(serde_json::from_str::<FlowLine>("{}").is_err());
    }

    #[test]
    fn an_end_is_a_pod_or_a_host_endpoint() {
        for (json, shown) in [
            (r#"{"namespace":"shop","name":"web"}"#, "shop/web"),
            (r#"{"hostEndpoint":"wire","node":"n1"}"#, "host wire"),
        ] {
            let end: EndpointRef = serde_json::from_str(json).unwrap();
            assert_eq!(end.to_string(), shown);
            assert_eq!(serde_json::to_string(&end).unwrap(), json);
        }
        assert!(serde_json::from_str::<EndpointRef>(r#"{"name":"web"}"#).is_err());
    }

    /// What an earlier version wrote.
    #[test]
    fn an_event_without_the_newer_fields_is_the_start_of_a_flow() {
        let old = r#"{"time":"1970-01-01T00:00:00Z","node":"n","pod":{"namespace":"a","name":"p"},
            "direction":"egress","verdict":"allow","decidedBy":{"rule":"no-policy"},"source":"10.0.0.1",
            "destination":"10.0.0.2","protocol":6,"sourcePort":1,"destinationPort":2,"epoch":3}"#;
        let line: FlowLine = serde_json::from_str(old).unwrap();
        assert!(
            matches!(&line, FlowLine::Event(event) if event.kind == FlowKind::Start && event.sequence == 0),
            "{line:?}"
        );
    }
}
