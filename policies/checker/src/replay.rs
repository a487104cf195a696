//! Recorded flows judged against other policies: what a change would have done to real traffic.

use std::{collections::BTreeMap, net::IpAddr};

use api::flow::{EndpointRef, FlowDirection, FlowEvent, FlowVerdict};
use policies_ir::tables::{BuiltinRule, Direction, Verdict};
use serde::Serialize;

use crate::{difference::addresses_of, model::Model, region::version, rules::RuleDirection, space::Point};

/// Words for decisions in which no policy had a say: `docs/flows.md` describes them.
const WITHOUT_POLICY: [&str; 16] = [
    "not-programmed",
    "truncated",
    "not-ip",
    "vlan",
    "bad-header",
    "fragment",
    "ip-options",
    "extension-header",
    "spoofed-source",
    "wrong-destination",
    "no-connection",
    "icmp-unrelated",
    "icmp-related",
    "bad-tcp-flags",
    "too-many-flows",
    "unknown-reason",
];

/// What other policies would have done to recorded flows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replay {
    /// Flows that were judged again.
    pub judged: u64,
    /// Those that would have had the same verdict.
    pub same: u64,
    /// Those that would not, each kind once.
    pub changes: Vec<FlowChange>,
    /// Flows that were not judged again, by reason.
    pub left_out: BTreeMap<&'static str, u64>,
}

/// Flows of one kind whose verdict changes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowChange {
    /// Pod or host endpoint whose policies judge.
    pub pod: String,
    /// Seen from that end.
    pub direction: RuleDirection,
    /// The other end: a pod or an address.
    pub peer: String,
    /// The service.
    pub service: String,
    /// How many such flows were recorded.
    pub count: u64,
    /// Whether they passed.
    pub was_allowed: bool,
    /// What decided.
    pub was_by: String,
    /// Whether they would pass.
    pub allowed: bool,
    /// What would decide.
    pub by: String,
}

/// Judges every recorded flow again. Ends are found by name, since their addresses may be others.
pub fn replay(model: &Model, flows: &[FlowEvent]) -> Replay {
    let mut replay = Replay::default();
    let mut changes: BTreeMap<FlowChange, u64> = BTreeMap::new();
    for flow in flows {
        if let Some(reason) = without_policy(flow) {
            *replay.left_out.entry(reason).or_default() += 1;
            continue;
        }
        let Some(member) = find(model, &flow.pod) else {
            *replay
                .left_out
                .entry("the end that judged is not among the objects")
                .or_default() += 1;
            continue;
        };
        let direction = match flow.direction {
            FlowDirection::Ingress => Direction::Ingress,
            FlowDirection::Egress => Direction::Egress,
        };
        let recorded = peer_address(flow);
        let address = peer_now(model, flow, recorded);
        let point = point(flow);
        let (verdict, by) = model.decide(member, direction, address, point);
        replay.judged += 1;
        let (was_allowed, allowed) = (flow.verdict == FlowVerdict::Allow, verdict == Verdict::Allow);
        if was_allowed == allowed {
            replay.same += 1;
            continue;
        }
        let change = FlowChange {
            pod: flow.pod.to_string(),
            direction: direction.into(),
            peer: flow
                .peer
                .as_ref()
                .map_or_else(|| recorded.to_string(), ToString::to_string),
            service: point.to_string(),
            count: 0,
            was_allowed,
            was_by: flow.decided_by.rule.clone(),
            allowed,
            by: by.to_string(),
        };
        *changes.entry(change).or_default() += 1;
    }
    replay.changes = changes
        .into_iter()
        .map(|(change, count)| FlowChange { count, ..change })
        .collect();
    replay
}

/// Why policy had no say about a flow, if it had none that could be another's.
pub(crate) fn without_policy(flow: &FlowEvent) -> Option<&'static str> {
    let rule = flow.decided_by.rule.as_str();
    if WITHOUT_POLICY.contains(&rule) {
        return Some("no policy was asked");
    }
    let of_node = [BuiltinRule::FromHost, BuiltinRule::ToHost];
    if of_node.iter().any(|builtin| builtin.word() == rule) {
        return Some("the other end is the pod's own node");
    }
    if rule == BuiltinRule::SelfTraffic.word() {
        return Some("the other end is the pod itself");
    }
    // The model has what begins or ends at a node.
    flow.forwarded.then_some("a node only forwarded them")
}

/// Position of a pod or host endpoint.
pub(crate) fn find(model: &Model, end: &EndpointRef) -> Option<usize> {
    model.find(&end.to_string())
}

/// The other end's address as it was recorded.
pub(crate) fn peer_address(flow: &FlowEvent) -> IpAddr {
    match flow.direction {
        FlowDirection::Ingress => flow.source,
        FlowDirection::Egress => flow.destination,
    }
}

pub(crate) fn point(flow: &FlowEvent) -> Point {
    Point {
        protocol: flow.protocol,
        source_port: flow.source_port,
        port: flow.destination_port,
    }
}

/// The other end's address among the objects.
fn peer_now(model: &Model, flow: &FlowEvent, recorded: IpAddr) -> IpAddr {
    let Some(member) = flow.peer.as_ref().and_then(|peer| find(model, peer)) else {
        return recorded;
    };
    let addresses = addresses_of(model, member, version(recorded));
    match addresses.first() {
        Some(first) if !addresses.contains(&recorded) => *first,
        _ => recorded,
    }
}
