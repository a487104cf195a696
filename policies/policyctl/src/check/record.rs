//! Lines of flow logs as what they tell of each flow: the decision about it, once.
//!
//! A flow is told of when it opens, once a minute while it lives, and when it ends. A record need not reach back to its
//! beginning: what `--since` or the size of the log cut off is told by the first line that is there.

use std::collections::{BTreeMap, HashMap};

use api::flow::{EndpointRef, FlowDirection, FlowEnd, FlowEvent, FlowKind, FlowLine, FlowVerdict, LossPlace};
use jiff::{SignedDuration, Timestamp};

/// How far two lines of one flow may be apart about when it opened: a node reads its clocks anew for each line.
const CLOCKS: SignedDuration = SignedDuration::from_secs(1);

/// What lines tell.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Decisions: each flow that was allowed once, denials as they are told.
    pub(super) flows: Vec<FlowEvent>,
    /// What the lines do not tell, in lines for people.
    pub(super) notes: Vec<String>,
}

/// What tells flows apart that live at one time.
#[derive(PartialEq, Eq, Hash)]
struct Tuple {
    pod: EndpointRef,
    forwarded: bool,
    direction: FlowDirection,
    source: std::net::IpAddr,
    destination: std::net::IpAddr,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
}

impl Record {
    /// Reads lines, of several nodes and in any order.
    pub(super) fn of(mut lines: Vec<FlowLine>) -> Self {
        lines.sort_by(|a, b| (a.time(), node(a), a.sequence()).cmp(&(b.time(), node(b), b.sequence())));
        // Records may overlap: what is numbered is one line.
        lines.dedup_by(|a, b| a.sequence().is_some() && a == b);
        let mut record = Self::default();
        let mut lost: BTreeMap<LossPlace, u64> = BTreeMap::new();
        let mut closed = 0;
        // When flows that live were last heard of.
        let mut live: HashMap<Tuple, Timestamp> = HashMap::new();
        for line in lines {
            let event = match line {
                FlowLine::Event(event) => *event,
                FlowLine::Lost(loss) => {
                    *lost.entry(loss.at).or_default() += loss.lost;
                    continue;
                }
            };
            let is_known = match event.kind {
                FlowKind::Denied => false,
                FlowKind::Start => {
                    live.insert(Tuple::of(&event), event.time);
                    false
                }
                FlowKind::Update => live
                    .insert(Tuple::of(&event), event.time)
                    .is_some_and(|heard| is_of_then(&event, heard)),
                FlowKind::End => live
                    .remove(&Tuple::of(&event))
                    .is_some_and(|heard| is_of_then(&event, heard)),
            };
            if is_known {
                continue;
            }
            let is_total = matches!(event.kind, FlowKind::Update | FlowKind::End);
            // Its verdict is the last one, and not the one that it lived by.
            if is_total && (event.end == Some(FlowEnd::Denied) || event.verdict == FlowVerdict::Deny) {
                closed += 1;
            } else {
                record.flows.push(event);
            }
        }
        let lost = lost
            .into_iter()
            .map(|(place, count)| format!("{count} flows are missing in the record ({})", place.word()));
        record.notes.extend(lost);
        if closed > 0 {
            record.notes.push(format!(
                "{closed} flows are left out: all that the record tells of them is that a change of policy closed them"
            ));
        }
        record
    }
}

/// Whether a flow that lived then, and of whose end nothing is told, is the one that an event tells of.
fn is_of_then(event: &FlowEvent, heard: Timestamp) -> bool {
    event
        .opened
        .is_none_or(|opened| opened.duration_since(heard) <= CLOCKS)
}

fn node(line: &FlowLine) -> &str {
    match line {
        FlowLine::Event(event) => &event.node,
        FlowLine::Lost(loss) => &loss.node,
    }
}

impl Tuple {
    fn of(event: &FlowEvent) -> Self {
        Self {
            pod: event.pod.clone(),
            forwarded: event.forwarded,
            direction: event.direction,
            source: event.source,
            destination: event.destination,
            protocol: event.protocol,
            source_port: event.source_port,
            destination_port: event.destination_port,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A line about a flow of one source port, at a second.
    fn line(kind: &str, second: u8, port: u16, more: &Value) -> FlowLine {
        let mut line = json!({"sequence": 0, "kind": kind, "time": format!("2026-11-28T10:00:{second:02}Z"), "node": "n",
            "pod": {"namespace": "shop", "name": "a"}, "direction": "egress", "verdict": "allow",
            "decidedBy": {"rule": "no-policy"}, "source": "10.0.0.1", "destination": "10.0.0.2", "protocol": 6,
            "sourcePort": port, "destinationPort": 80, "epoch": 1});
        for (key, value) in more.as_object().unwrap() {
            line[key] = value.clone();
        }
        serde_json::from_value(line).unwrap()
    }

    fn opened(second: u8) -> Value {
        json!({"opened": format!("2026-11-28T10:00:{second:02}.000012Z")})
    }

    fn told(lines: &[FlowLine]) -> Vec<(FlowKind, u16)> {
        let record = Record::of(lines.to_vec());
        let flows = record.flows.iter();
        let mut told: Vec<_> = flows.map(|flow| (flow.kind, flow.source_port)).collect();
        told.sort_unstable();
        told
    }

    #[test]
    fn a_flow_is_told_of_once_by_its_first_line() {
        use FlowKind::{Denied, End, Start, Update};
        let early = json!({"opened": "2026-11-01T00:00:00Z"});
        let nothing = json!({});
        let lines = [
            // All of it is there.
            line("start", 1, 1, &nothing),
            line("update", 2, 1, &opened(1)),
            line("end", 3, 1, &opened(1)),
            // The same ends and ports again, whose beginning is lost, and again with all that is told.
            line("end", 9, 1, &opened(5)),
            line("start", 10, 1, &nothing),
            // Older than the record.
            line("update", 2, 2, &early),
            line("update", 3, 2, &early),
            line("end", 4, 2, &early),
            line("end", 5, 3, &early),
            // The end of the first and the beginning of the second are lost.
            line("start", 1, 4, &nothing),
            line("update", 50, 4, &opened(40)),
            // Denials are told as often as they are.
            line("denied", 6, 5, &json!({"verdict": "deny"})),
            line("denied", 7, 5, &json!({"verdict": "deny"})),
        ];
        let wanted = [
            (Start, 1),
            (Start, 1),
            (Start, 4),
            (Denied, 5),
            (Denied, 5),
            (Update, 2),
            (Update, 4),
            (End, 1),
            (End, 3),
        ];
        assert_eq!(told(&lines), wanted);
        // Whatever the order of the files is.
        let turned: Vec<FlowLine> = lines.iter().rev().cloned().collect();
        assert_eq!(told(&turned), wanted);
        assert!(Record::of(lines.to_vec()).notes.is_empty());
    }

    #[test]
    fn a_flow_that_policy_closed_has_no_verdict_by_its_end() {
        let closed = json!({"opened": "2026-11-01T00:00:00Z", "end": "denied", "verdict": "deny"});
        let lived = json!({"opened": "2026-11-01T00:00:00Z"});
        let record = Record::of(vec![line("end", 2, 1, &closed)]);
        assert!(record.flows.is_empty());
        assert_eq!(record.notes.len(), 1, "{:?}", record.notes);
        // That it lived before is told.
        let lines = [line("update", 1, 1, &lived), line("end", 2, 1, &closed)];
        assert_eq!(told(&lines), [(FlowKind::Update, 1)]);
        assert!(Record::of(lines.to_vec()).notes.is_empty());
    }

    #[test]
    fn a_line_that_two_files_have_is_one() {
        let number = |number: u64| json!({"sequence": number});
        let lines = [line("start", 1, 1, &number(7)), line("start", 2, 1, &number(8))];
        let twice = [lines.clone(), lines].concat();
        assert_eq!(told(&twice).len(), 2);
        // Lines without numbers may be alike.
        let unnumbered = line("start", 1, 1, &json!({}));
        assert_eq!(told(&[unnumbered.clone(), unnumbered]).len(), 2);
        let lost =
            json!({"sequence": 9, "time": "2026-11-28T10:00:00Z", "node": "n", "lost": 3, "at": "kernel"});
        let lost: FlowLine = serde_json::from_value(lost).unwrap();
        let notes = Record::of(vec![lost.clone(), lost]).notes;
        assert_eq!(notes, ["3 flows are missing in the record (kernel)"]);
    }
}
