//! Recorded flows judged against other policies: what a change would have done to real traffic.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use api::flow::{EndpointRef, FlowDirection, FlowEvent, FlowVerdict};
use policies_ir::tables::{BuiltinRule, DecidedBy, Direction, Verdict};
use serde::Serialize;

use crate::{
    difference::addresses_of, model::Model, packet::Place, region::version, rules::RuleDirection,
    space::Point,
};

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
    /// How many of these only for a reason that the end that judged does not know, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub same_because: BTreeMap<&'static str, u64>,
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
    /// The other end would decide: it denies what the end that judged still lets pass.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub by_other_end: bool,
}

/// Judges every recorded flow again, each once. Ends are found by name, since their addresses may be others.
pub fn replay(model: &Model, flows: &[FlowEvent]) -> Replay {
    let mut replay = Replay::default();
    let mut changes: BTreeMap<FlowChange, u64> = BTreeMap::new();
    let mut judged: Vec<(&FlowEvent, Again<'_>)> = Vec::new();
    for flow in flows {
        let again = match without_policy(flow) {
            Some(reason) => Err(reason),
            None => Again::of(model, flow),
        };
        match again {
            Ok(again) => judged.push((flow, again)),
            Err(reason) => *replay.left_out.entry(reason).or_default() += 1,
        }
    }
    let recorded: HashSet<AtEnd> = judged
        .iter()
        .filter_map(|(flow, again)| Some(AtEnd::of(flow, again.own.member?, again.direction)))
        .collect();
    for (flow, again) in &judged {
        let (was_allowed, direction, point) =
            (flow.verdict == FlowVerdict::Allow, again.direction, point(flow));
        replay.judged += 1;
        let (by, by_other_end) = match again.outcome(was_allowed, point, &recorded, flow) {
            Outcome::Same(because) => {
                replay.same += 1;
                if let Some(reason) = because {
                    *replay.same_because.entry(reason).or_default() += 1;
                }
                continue;
            }
            Outcome::Changed(by) => (by, false),
            Outcome::ClosedByOtherEnd(by) => (by, true),
        };
        let change = FlowChange {
            pod: flow.pod.to_string(),
            direction: direction.into(),
            peer: flow
                .peer
                .as_ref()
                .map_or_else(|| peer_address(flow).to_string(), ToString::to_string),
            service: point.to_string(),
            count: 0,
            was_allowed,
            was_by: flow.decided_by.rule.clone(),
            allowed: !was_allowed,
            by: by.to_string(),
            by_other_end,
        };
        *changes.entry(change).or_default() += 1;
    }
    replay.changes = changes
        .into_iter()
        .map(|(change, count)| FlowChange { count, ..change })
        .collect();
    replay
}

/// What is one flow at one end, with the ports that both ends see.
#[derive(PartialEq, Eq, Hash)]
struct AtEnd {
    member: usize,
    is_egress: bool,
    source: IpAddr,
    destination: IpAddr,
    point: Point,
}

impl AtEnd {
    fn of(flow: &FlowEvent, member: usize, direction: Direction) -> Self {
        Self {
            member,
            is_egress: direction == Direction::Egress,
            source: flow.source,
            destination: flow.destination,
            point: point(flow),
        }
    }
}

/// A recorded flow among other policies.
struct Again<'a> {
    model: &'a Model,
    direction: Direction,
    /// The other end as it is now.
    peer: Place,
    /// The end that judged.
    own: Place,
}

/// What becomes of a recorded verdict.
enum Outcome {
    /// It stays, for this reason if it is none of the end that judged.
    Same(Option<&'static str>),
    /// It becomes the other one, by this.
    Changed(DecidedBy),
    /// The end that judged would let it pass, the other one denies it by this.
    ClosedByOtherEnd(DecidedBy),
}

const NAMES_DECIDE: &str = "with some of the names that rules ask for the address would keep them, with others not, and no record tells its names";
const OTHER_END_DENIES: &str = "the end that denied them would let them pass, and the other end denies them";

impl<'a> Again<'a> {
    /// Or why it cannot be judged.
    fn of(model: &'a Model, flow: &FlowEvent) -> Result<Self, &'static str> {
        let member = find(model, &flow.pod).ok_or("the end that judged is not among the objects")?;
        let (direction, own) = match flow.direction {
            FlowDirection::Ingress => (Direction::Ingress, flow.destination),
            FlowDirection::Egress => (Direction::Egress, flow.source),
        };
        let (known, recorded) = (peer(model, flow)?, peer_address(flow));
        let address = known.map_or(recorded, |known| address_now(model, known, recorded));
        Ok(Self {
            model,
            direction,
            peer: Place::new(known, address),
            own: Place::new(Some(member), address_now(model, member, own)),
        })
    }

    /// `recorded` are the ends that tell of their flows themselves.
    fn outcome(
        &self,
        was_allowed: bool,
        point: Point,
        recorded: &HashSet<AtEnd>,
        flow: &FlowEvent,
    ) -> Outcome {
        let judged = |names| {
            let peer = Place {
                names,
                ..Place::new(None, self.peer.address)
            };
            self.model.decide(self.own, self.direction, peer, point)
        };
        let is_same = |verdict: Verdict| (verdict == Verdict::Allow) == was_allowed;
        let (verdict, by) = judged(None);
        // Which names a resolver had given is not recorded, and names are those of destinations outside.
        let asks = self.direction == Direction::Egress && self.peer.member.is_none();
        let sets = if asks { self.model.names().sets().len() } else { 0 };
        let mut named = (0..sets).map(|names| judged(Some(names)).0);
        if named.any(|named| named != verdict) {
            return Outcome::Same(Some(NAMES_DECIDE));
        }
        let other = || self.other_end_denies(point);
        match (is_same(verdict), was_allowed) {
            (true, true) if !self.is_told_by_other_end(flow, recorded) => {
                other().map_or(Outcome::Same(None), Outcome::ClosedByOtherEnd)
            }
            (true, _) => Outcome::Same(None),
            (false, false) if other().is_some() => Outcome::Same(Some(OTHER_END_DENIES)),
            (false, _) => Outcome::Changed(by),
        }
    }

    fn is_told_by_other_end(&self, flow: &FlowEvent, recorded: &HashSet<AtEnd>) -> bool {
        let peer = self.peer.member;
        peer.is_some_and(|peer| recorded.contains(&AtEnd::of(flow, peer, opposite(self.direction))))
    }

    fn other_end_denies(&self, point: Point) -> Option<DecidedBy> {
        let judge = self
            .model
            .judge_at(self.peer, opposite(self.direction), self.own)?;
        let entry = judge.decide(point);
        (entry.verdict == Verdict::Deny).then(|| self.model.decided_by(entry.rule))
    }
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    }
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

/// Position of who is at the other end, nothing if that is an address alone. A pod is found by the name that the record
/// has of it: once it is gone, its address may be another's, of which the record says nothing.
pub(crate) fn peer(model: &Model, flow: &FlowEvent) -> Result<Option<usize>, &'static str> {
    let owner = model.owner(peer_address(flow));
    let Some(named) = &flow.peer else {
        return Ok(owner);
    };
    match (find(model, named), named, owner) {
        (Some(member), ..) => Ok(Some(member)),
        // A node stays where it is without the object that judges for it.
        (None, EndpointRef::Host(_), None) => Ok(None),
        (None, ..) => Err("the other end is not among the objects"),
    }
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

/// Address of a workload among the objects: the one that was recorded, if it still has it.
fn address_now(model: &Model, member: usize, recorded: IpAddr) -> IpAddr {
    let addresses = addresses_of(model, member, version(recorded));
    match addresses.first() {
        Some(first) if !addresses.contains(&recorded) => *first,
        _ => recorded,
    }
}
