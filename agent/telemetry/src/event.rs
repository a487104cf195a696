//! One record, named.

use std::{sync::Arc, time::Duration};

use api::flow::{
    DecidedBy, EndpointRef, FlowDirection, FlowEnd, FlowEvent, FlowKind, FlowVerdict, PodRef, StagedVerdict,
    Traffic,
};
use ebpf_abi::{
    DIRECTION_EGRESS, DIRECTION_INGRESS, END_CLOSED, END_DENIED, END_REMOVED, END_RESET, END_SILENT,
    FlowRecord, RECORD_DENIED, RECORD_END, RECORD_START, RECORD_UPDATE, Reason, VERDICT_ALLOW,
};
use jiff::{SignedDuration, Timestamp};
use policies_ir::tables::{self, Direction, EndpointId, Packet, RuleId};

use crate::{
    names::{Known, NamedEndpoint, Names},
    opened::Opened,
};

/// How to tell the time of day from the kernel's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Time of day.
    pub now: Timestamp,
    /// The monotonic clock at that moment.
    pub monotonic: Duration,
}

impl Clock {
    fn time_of(&self, record_ns: u64) -> Timestamp {
        let ago = SignedDuration::try_from(self.monotonic.saturating_sub(Duration::from_nanos(record_ns)));
        // A record lies at most the machine's uptime back, which both clocks can express.
        ago.ok()
            .and_then(|ago| self.now.checked_sub(ago).ok())
            .unwrap_or(self.now)
    }
}

/// The event that a record stands for. What the start of a flow says is remembered for its totals.
pub fn flow_event(record: &FlowRecord, names: &Names, node: &str, clock: &Clock) -> FlowEvent {
    let known = names.of(EndpointId(record.endpoint), record.epoch);
    let opened = names.said_of(record);
    let snapshot = &*known.snapshot;
    let (source, destination) = (record.source.to_ip(), record.destination.to_ip());
    let direction = if record.direction == DIRECTION_INGRESS {
        FlowDirection::Ingress
    } else {
        FlowDirection::Egress
    };
    let peer = if direction == FlowDirection::Ingress {
        source
    } else {
        destination
    };
    let peer = peer_of(snapshot.addresses.get(&peer), opened.as_ref());
    let staged = match known.is_exact {
        true => staged(record, &known).map(Arc::new),
        // The start of the flow, if it was not judged again since, was told when they were known.
        false => opened
            .as_ref()
            .filter(|opened| opened.change == record.epoch)
            .and_then(|opened| opened.staged.clone()),
    };
    if kind(record) == FlowKind::Start {
        let said = Opened {
            change: record.epoch,
            peer: peer.cloned(),
            staged: staged.clone(),
        };
        names.remember(record, said);
    }
    let own = snapshot.endpoints.get(&EndpointId(record.endpoint));
    let labels = |end: Option<&Arc<NamedEndpoint>>| end.map(|end| end.labels.clone()).unwrap_or_default();
    let omitted = [own, peer].into_iter().flatten().map(|end| end.omitted);
    FlowEvent {
        sequence: 0,
        kind: kind(record),
        time: clock.time_of(record.time_ns),
        node: node.to_owned(),
        pod: judging(record, own),
        forwarded: snapshot.forwarding.contains(&EndpointId(record.endpoint)),
        direction,
        verdict: verdict_of(record),
        decided_by: decided_by(record, &known),
        staged: staged.map(Arc::unwrap_or_clone),
        source,
        destination,
        peer: peer.map(|peer| peer.endpoint.clone()),
        protocol: record.protocol,
        source_port: record.source_port,
        destination_port: record.destination_port,
        epoch: record.epoch,
        opened: (record.opened_ns > 0).then(|| clock.time_of(record.opened_ns)),
        end: end(record),
        packets: traffic(&record.packets),
        bytes: traffic(&record.bytes),
        pod_labels: labels(own),
        peer_labels: labels(peer),
        labels_omitted: omitted.sum(),
        logged_by: logged_by(record, &known),
    }
}

/// Who is at the other end: who has its address, but of a flow that has opened whoever had it then.
fn peer_of<'a>(
    now: Option<&'a Arc<NamedEndpoint>>,
    opened: Option<&'a Opened>,
) -> Option<&'a Arc<NamedEndpoint>> {
    let then = opened.and_then(|opened| opened.peer.as_ref());
    match then {
        Some(then) if now.is_none_or(|now| now.endpoint != then.endpoint) => Some(then),
        _ => now,
    }
}

/// What is told about the flow. A kind that is not known comes from newer programs, and is taken by its verdict.
fn kind(record: &FlowRecord) -> FlowKind {
    match record.kind {
        RECORD_START => FlowKind::Start,
        RECORD_DENIED => FlowKind::Denied,
        RECORD_UPDATE => FlowKind::Update,
        RECORD_END => FlowKind::End,
        _ if verdict_of(record) == FlowVerdict::Allow => FlowKind::Start,
        _ => FlowKind::Denied,
    }
}

fn end(record: &FlowRecord) -> Option<FlowEnd> {
    match record.end {
        END_CLOSED => Some(FlowEnd::Closed),
        END_RESET => Some(FlowEnd::Reset),
        END_SILENT => Some(FlowEnd::Silent),
        END_DENIED => Some(FlowEnd::Denied),
        END_REMOVED => Some(FlowEnd::Removed),
        _ => None,
    }
}

fn traffic(amounts: &[u64; 2]) -> Traffic {
    let of = |direction: u8| amounts.get(usize::from(direction)).copied().unwrap_or(0);
    Traffic {
        to_pod: of(DIRECTION_INGRESS),
        from_pod: of(DIRECTION_EGRESS),
    }
}

/// The pod or host endpoint whose interface judged. An interface that neither is known for is named by its number, without
/// a namespace, so that it cannot be taken for a pod.
fn judging(record: &FlowRecord, own: Option<&Arc<NamedEndpoint>>) -> EndpointRef {
    let unknown = || PodRef {
        namespace: String::new(),
        name: format!("interface {}", record.ifindex),
    };
    own.map_or_else(|| unknown().into(), |own| own.endpoint.clone())
}

/// `Log` rules that matched. They are asked about the packet that a decision is about: totals say nothing new, and
/// policies of another epoch nothing about this one.
fn logged_by(record: &FlowRecord, known: &Known) -> Vec<DecidedBy> {
    let asked = known.is_exact && matches!(kind(record), FlowKind::Start | FlowKind::Denied);
    let rules = known.snapshot.logging.as_ref().filter(|_| asked);
    let Some(rules) = rules.filter(|_| Reason::from_code(record.reason) == Some(Reason::Policy)) else {
        return Vec::new();
    };
    let names = rules.matched(EndpointId(record.endpoint), &packet(record));
    names
        .into_iter()
        .map(|name| named(Some(tables::DecidedBy::Rule(name))))
        .collect()
}

fn decided_by(record: &FlowRecord, known: &Known) -> DecidedBy {
    match Reason::from_code(record.reason) {
        Some(Reason::Policy) => {}
        Some(reason) => return word(reason.word()),
        None => return word("unknown-reason"),
    }
    named(known.decided_by(RuleId(record.rule)))
}

/// What the staged tables say, where that is another verdict or the same by another rule: whoever tries a policy wants
/// to see also that it would have decided. What was not judged by policy would not have been with other policies
/// either, and tables of another epoch say nothing about this one. Nor do tables that the kernel would refuse.
fn staged(record: &FlowRecord, known: &Known) -> Option<StagedVerdict> {
    let tables = known.snapshot.staged.as_ref().filter(|_| known.is_exact)?;
    let own = tables.endpoints.get(&EndpointId(record.endpoint));
    if own.is_some_and(|own| own.source_classes() > tables::MAX_SOURCE_CLASSES) {
        return None;
    }
    Reason::from_code(record.reason).filter(|reason| *reason == Reason::Policy)?;
    let would_be = tables::lookup(tables, EndpointId(record.endpoint), &packet(record));
    let verdict = match would_be.verdict {
        tables::Verdict::Allow => FlowVerdict::Allow,
        tables::Verdict::Deny => FlowVerdict::Deny,
    };
    // Both number their rules, each in its own way.
    let rule = tables.decided_by(would_be.rule);
    let differs = verdict != verdict_of(record) || rule != known.decided_by(RuleId(record.rule));
    differs.then(|| StagedVerdict {
        verdict,
        decided_by: named(rule),
    })
}

/// What policy was asked about.
fn packet(record: &FlowRecord) -> Packet {
    let (direction, peer, own) = match record.direction {
        DIRECTION_INGRESS => (Direction::Ingress, record.source, record.destination),
        _ => (Direction::Egress, record.destination, record.source),
    };
    Packet {
        direction,
        peer: peer.to_ip(),
        inside: Some(own.to_ip()),
        protocol: record.protocol,
        source_port: record.source_port,
        port: record.destination_port,
    }
}

fn verdict_of(record: &FlowRecord) -> FlowVerdict {
    match u32::from(record.verdict) == VERDICT_ALLOW {
        true => FlowVerdict::Allow,
        false => FlowVerdict::Deny,
    }
}

fn word(word: &str) -> DecidedBy {
    DecidedBy {
        rule: word.to_owned(),
        policy: None,
        tier: None,
        index: None,
    }
}

fn named(rule: Option<tables::DecidedBy>) -> DecidedBy {
    match rule {
        Some(tables::DecidedBy::Builtin(builtin)) => word(builtin.word()),
        Some(tables::DecidedBy::Rule(name)) => DecidedBy {
            rule: name.to_string(),
            policy: Some(name.policy).filter(|policy| !policy.is_empty()),
            tier: Some(name.tier),
            index: name.rule,
        },
        None => word("unnamed-rule"),
    }
}

#[cfg(test)]
mod tests {
    use api::flow::HostRef;
    use ebpf_abi::{Address, DIRECTION_EGRESS};
    use policies_ir::{
        cluster::{Cluster, Member, Translation},
        policy::{
            Action, DefaultAction, Directions, EndMatch, Kinds, NamespaceMatch, Order, Phase, Policy,
            PolicySet, PortMatch, Rule, Selector, ServiceMatch, TieBreak, Tier, Workload, WorkloadKind,
            WorkloadMatch,
        },
        tables::{
            BUILTIN_RULES, BuiltinRule, EndpointTables, IdentityId, InsideClass, NodeTables, RuleName,
            Service, SourceBlock, SourceClass, Verdict, VerdictEntry, VerdictKey,
        },
    };

    use super::*;
    use crate::names::Snapshot;

    const CLIENT: &str = "10.7.0.2";
    const CLOCK: Clock = Clock {
        now: Timestamp::UNIX_EPOCH,
        monotonic: Duration::from_secs(100),
    };

    fn address(text: &str) -> Address {
        Address::from_ip(text.parse().unwrap())
    }

    fn record() -> FlowRecord {
        FlowRecord {
            time_ns: 99_000_000_000,
            source: address("10.7.0.2"),
            destination: address("10.7.0.9"),
            ifindex: 42,
            endpoint: 7,
            epoch: 3,
            rule: BUILTIN_RULES,
            source_port: 40_000,
            destination_port: 80,
            protocol: 6,
            direction: DIRECTION_EGRESS,
            verdict: 0,
            reason: Reason::Policy as u8,
            kind: RECORD_DENIED,
            packets: [0, 1],
            bytes: [0, 74],
            ..FlowRecord::default()
        }
    }

    fn pod(name: &str) -> PodRef {
        PodRef {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        }
    }

    fn named_pod(name: &str) -> Arc<NamedEndpoint> {
        let labels = [("app".to_owned(), name.to_owned())].into();
        Arc::new(NamedEndpoint::new(pod(name).into(), &labels))
    }

    fn names() -> Names {
        names_with(None)
    }

    fn names_with(staged: Option<NodeTables>) -> Names {
        let rule = RuleName {
            tier: "default".to_owned(),
            policy: "NetworkPolicy default/web".to_owned(),
            rule: Some(0),
        };
        let names = Names::new();
        names.publish(Snapshot {
            tables: Arc::new(NodeTables {
                rules: vec![rule],
                ..NodeTables::default()
            }),
            staged: staged.map(Arc::new),
            changes: [(EndpointId(7), 3)].into(),
            endpoints: [(EndpointId(7), named_pod("client"))].into(),
            addresses: Arc::new([("10.7.0.9".parse().unwrap(), named_pod("web"))].into()),
            ..Snapshot::default()
        });
        names
    }

    #[test]
    fn a_record_is_named_in_full() {
        let event = flow_event(&record(), &names(), "node-1", &CLOCK);
        let json = serde_json::to_value(&event).unwrap();
        let expected = serde_json::json!({
            "time": "1969-12-31T23:59:59Z",
            "node": "node-1",
            "pod": {"namespace": "default", "name": "client"},
            "direction": "egress",
            "verdict": "deny",
            "decidedBy": {
                "rule": "NetworkPolicy default/web rule 0", "policy": "NetworkPolicy default/web", "tier": "default",
                "index": 0,
            },
            "sequence": 0,
            "kind": "denied",
            "packets": {"toPod": 0, "fromPod": 1},
            "bytes": {"toPod": 0, "fromPod": 74},
            "podLabels": {"app": "client"},
            "peerLabels": {"app": "web"},
            "source": "10.7.0.2",
            "destination": "10.7.0.9",
            "peer": {"namespace": "default", "name": "web"},
            "protocol": 6,
            "sourcePort": 40_000,
            "destinationPort": 80,
            "epoch": 3,
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn an_endpoint_that_a_change_did_not_reach_keeps_its_names() {
        let names = names();
        for other in 4..10 {
            names.publish(Snapshot {
                changes: [(EndpointId(7), 3), (EndpointId(8), other)].into(),
                ..(*names.of(EndpointId(7), 3).snapshot).clone()
            });
        }
        let event = flow_event(&record(), &names, "node-1", &CLOCK);
        assert_eq!(event.decided_by.rule, "NetworkPolicy default/web rule 0");
    }

    #[test]
    fn a_rule_of_an_unknown_epoch_is_not_given_the_name_of_another() {
        let event = flow_event(&FlowRecord { epoch: 2, ..record() }, &names(), "node-1", &CLOCK);
        assert_eq!(event.decided_by.rule, "unnamed-rule");
        assert_eq!(event.pod, pod("client").into());
    }

    #[test]
    fn what_staged_policies_say_is_told_where_the_verdict_or_the_rule_differs() {
        let rule = RuleName {
            tier: "ops".to_owned(),
            policy: "StagedGlobalNetworkPolicy open".to_owned(),
            rule: Some(1),
        };
        let peer = IdentityId(256);
        let key = VerdictKey {
            peer,
            direction: Direction::Egress,
            inside: InsideClass::default(),
            source: SourceClass::default(),
            service: Service::Protocol(6),
        };
        let entry = VerdictEntry {
            verdict: Verdict::Allow,
            rule: RuleId(BUILTIN_RULES),
        };
        let endpoint = EndpointTables {
            verdicts: [(key, entry)].into(),
            ..EndpointTables::default()
        };
        let tables = NodeTables {
            identities: [("10.7.0.9/32".parse().unwrap(), peer)].into(),
            endpoints: [(EndpointId(7), Arc::new(endpoint))].into(),
            rules: vec![rule],
        };
        let names = names_with(Some(tables.clone()));
        let staged = |record: FlowRecord| flow_event(&record, &names, "node-1", &CLOCK).staged;
        let told = staged(record()).unwrap();
        assert_eq!(told.verdict, FlowVerdict::Allow);
        assert_eq!(told.decided_by.rule, "StagedGlobalNetworkPolicy open rule 1");
        assert_eq!(told.decided_by.tier.as_deref(), Some("ops"));
        let same = FlowRecord {
            verdict: 1,
            ..record()
        };
        let told = staged(same).unwrap();
        assert_eq!(
            told.verdict,
            FlowVerdict::Allow,
            "the same verdict, by another rule"
        );
        assert_eq!(told.decided_by.rule, "StagedGlobalNetworkPolicy open rule 1");
        let enforced = names_with(Some(NodeTables {
            rules: names_with(None)
                .of(EndpointId(7), 3)
                .snapshot
                .tables
                .rules
                .clone(),
            ..tables.clone()
        }));
        let event = flow_event(&same, &enforced, "node-1", &CLOCK);
        assert_eq!(event.staged, None, "the same verdict by the same rule");
        let other = FlowRecord {
            protocol: 17,
            ..record()
        };
        let told = staged(other).unwrap();
        assert_eq!(
            told.verdict,
            FlowVerdict::Deny,
            "denied by both, but not by the same"
        );
        let nobody = FlowRecord {
            protocol: 17,
            rule: BuiltinRule::NoMatch as u32,
            ..record()
        };
        assert_eq!(staged(nobody), None, "denied by both, for want of a rule");
        let spoofed = FlowRecord {
            reason: Reason::SpoofedSource as u8,
            ..record()
        };
        assert_eq!(staged(spoofed), None, "no policy was asked");
        assert_eq!(
            staged(FlowRecord { epoch: 2, ..record() }),
            None,
            "tables of another epoch"
        );
        let mut full = tables;
        let endpoint = full.endpoints.get_mut(&EndpointId(7)).unwrap();
        let block = SourceBlock {
            protocol: 6,
            port: 80,
            prefix_bits: 16,
        };
        let sources = &mut Arc::make_mut(endpoint).sources;
        sources.insert(block, SourceClass(128));
        let names = names_with(Some(full));
        let told = flow_event(&other, &names, "node-1", &CLOCK).staged;
        assert_eq!(told, None, "the kernel would refuse them");
    }

    #[test]
    fn totals_of_a_flow_that_ended_say_since_when_and_why() {
        let record = FlowRecord {
            kind: RECORD_END,
            end: END_RESET,
            verdict: 1,
            opened_ns: 98_000_000_000,
            packets: [3, 4],
            ..record()
        };
        let event = flow_event(&record, &names(), "node-1", &CLOCK);
        assert_eq!((event.kind, event.end), (FlowKind::End, Some(FlowEnd::Reset)));
        assert_eq!((event.packets.to_pod, event.packets.from_pod), (3, 4));
        assert_eq!(event.opened.unwrap().to_string(), "1969-12-31T23:59:58Z");
    }

    /// Names after changes 4 to 23, under which rule numbers mean something else and `holder` has the peer's address.
    fn changed_often(names: &Names, holder: Option<&str>) {
        let first = (*names.newest()).clone();
        for change in 4..24 {
            let rule = RuleName {
                tier: "default".to_owned(),
                policy: format!("NetworkPolicy default/other-{change}"),
                rule: Some(0),
            };
            let holder = holder.map(|name| ("10.7.0.9".parse().unwrap(), named_pod(name)));
            names.publish(Snapshot {
                tables: Arc::new(NodeTables {
                    rules: vec![rule],
                    ..NodeTables::default()
                }),
                staged: None,
                changes: [(EndpointId(7), change)].into(),
                addresses: Arc::new(holder.into_iter().collect()),
                ..first.clone()
            });
        }
    }

    fn start() -> FlowRecord {
        FlowRecord {
            kind: RECORD_START,
            verdict: 1,
            opened_ns: 99_000_000_000,
            ..record()
        }
    }

    fn total(kind: u8, epoch: u32) -> FlowRecord {
        FlowRecord {
            kind,
            epoch,
            time_ns: 99_900_000_000,
            packets: [3, 4],
            ..start()
        }
    }

    #[test]
    fn totals_say_what_the_start_said_however_much_has_changed_since() {
        let staged = || {
            Some(NodeTables {
                rules: Vec::new(),
                ..NodeTables::default()
            })
        };
        for holder in [None, Some("successor")] {
            let names = names_with(staged());
            let told = |record: &FlowRecord| flow_event(record, &names, "node-1", &CLOCK);
            let first = told(&start());
            assert_eq!(first.peer, Some(pod("web").into()));
            assert!(first.staged.is_some());
            changed_often(&names, holder);
            for kind in [RECORD_UPDATE, RECORD_UPDATE, RECORD_END] {
                let total = told(&total(kind, 3));
                assert_eq!(total.decided_by, first.decided_by, "kept as it was decided");
                assert_eq!(total.staged, first.staged);
                assert_eq!(
                    (&total.peer, &total.peer_labels),
                    (&first.peer, &first.peer_labels)
                );
            }
            let again = told(&total(RECORD_END, 3));
            assert_eq!(
                again.peer.map(|peer| peer.to_string()),
                holder.map(|name| pod(name).to_string())
            );
        }
    }

    #[test]
    fn totals_of_a_flow_that_was_judged_again_name_the_rule_of_that_time() {
        let names = names();
        let told = |record: &FlowRecord| flow_event(record, &names, "node-1", &CLOCK);
        told(&start());
        changed_often(&names, None);
        let update = told(&total(RECORD_UPDATE, 5));
        assert_eq!(update.decided_by.rule, "NetworkPolicy default/other-5 rule 0");
        assert_eq!(update.decided_by.tier.as_deref(), Some("default"));
        assert_eq!(update.peer, Some(pod("web").into()));
        assert_eq!(told(&total(RECORD_END, 24)).decided_by.rule, "unnamed-rule");
    }

    #[test]
    fn a_peer_that_is_still_there_is_told_with_the_labels_that_it_has() {
        let names = names();
        let told = |record: &FlowRecord| flow_event(record, &names, "node-1", &CLOCK);
        told(&start());
        let labels = [("app".to_owned(), "web-2".to_owned())].into();
        let web = Arc::new(NamedEndpoint::new(pod("web").into(), &labels));
        names.publish(Snapshot {
            addresses: Arc::new([("10.7.0.9".parse().unwrap(), web)].into()),
            ..(*names.newest()).clone()
        });
        let end = told(&total(RECORD_END, 3));
        assert_eq!((end.peer, end.peer_labels), (Some(pod("web").into()), labels));
    }

    fn rule(index: u32, action: Action, protocol: Option<u8>) -> Rule {
        Rule {
            index,
            action,
            own: EndMatch::default(),
            peer: EndMatch::default(),
            service: ServiceMatch {
                protocol,
                ..ServiceMatch::default()
            },
        }
    }

    /// One policy, for whatever is judged in this phase, of these rules for what leaves.
    fn egress_policy(phase: Phase, egress: Vec<Rule>) -> PolicySet {
        let policy = Policy {
            name: "NetworkPolicy a/log".to_owned(),
            directions: Directions {
                ingress: false,
                egress: true,
            },
            egress,
            ingress: Vec::new(),
            tie_break: TieBreak::default(),
            order: Order(None),
            phase,
            applies_to: WorkloadMatch {
                kinds: Kinds::All,
                namespace: NamespaceMatch::Any,
                labels: Selector::everything(),
            },
        };
        PolicySet {
            tiers: vec![Tier {
                name: "default".to_owned(),
                order: Order(None),
                default_action: DefaultAction::Deny,
                policies: vec![Arc::new(policy)],
            }],
            ..PolicySet::default()
        }
    }

    /// Indices of the `Log` rules that the event of a record names.
    fn logged(rules: Option<crate::logging::LogRules>, record: &FlowRecord) -> Vec<Option<u32>> {
        let names = names();
        let snapshot = (*names.of(EndpointId(7), 3).snapshot).clone();
        names.publish(Snapshot {
            logging: rules.map(Arc::new),
            changes: [(EndpointId(7), 3), (EndpointId(8), 3), (EndpointId(9), 3)].into(),
            ..snapshot
        });
        let event = flow_event(record, &names, "node-1", &CLOCK);
        event.logged_by.iter().map(|rule| rule.index).collect()
    }

    /// What a host forwards is judged by other policies, what it doesn't track by others again; all ask about the address in
    /// the packet.
    #[test]
    fn rules_that_log_are_asked_about_every_part_of_a_host_endpoint() {
        let cluster = || Cluster {
            members: vec![Member {
                workload: Workload {
                    kind: WorkloadKind::HostEndpoint,
                    ..Workload::default()
                },
                endpoint: Some(EndpointId(7)),
                forwarded: Some(EndpointId(8)),
                untracked: Some(EndpointId(9)),
                addresses: ["192.0.2.1".parse().unwrap()].into(),
                ..Member::default()
            }],
            ..Cluster::default()
        };
        let from_client = Rule {
            own: EndMatch {
                nets: vec![format!("{CLIENT}/32").parse().unwrap()],
                ..EndMatch::default()
            },
            ..rule(1, Action::Log, Some(6))
        };
        let rules = vec![
            rule(0, Action::Log, Some(6)),
            from_client,
            rule(2, Action::Deny, None),
        ];
        let both = vec![Some(0), Some(1)];
        for (phase, own, forwarded, untracked) in [
            (Phase::Local, &both, &Vec::new(), &Vec::new()),
            (Phase::LocalAndForwarded, &both, &both, &Vec::new()),
            (Phase::Untracked, &both, &both, &both),
        ] {
            for (endpoint, expected) in [(7, own), (8, forwarded), (9, untracked)] {
                let log = crate::logging::LogRules::new(egress_policy(phase, rules.clone()), cluster);
                let record = FlowRecord { endpoint, ..record() };
                assert_eq!(&logged(log, &record), expected, "{phase:?}, endpoint {endpoint}");
            }
        }
    }

    /// Of what a port of the node leads to a pod, they are asked about the pod and its port.
    #[test]
    fn rules_that_log_see_where_a_port_of_the_node_leads() {
        let cluster = || Cluster {
            members: vec![Member {
                workload: Workload {
                    kind: WorkloadKind::HostEndpoint,
                    ..Workload::default()
                },
                endpoint: Some(EndpointId(7)),
                ..Member::default()
            }],
            translations: vec![Translation {
                protocol: 6,
                at: Some("192.0.2.1".parse().unwrap()),
                port: 8080,
                workload: Arc::default(),
                address: CLIENT.parse().unwrap(),
                workload_port: 80,
            }],
            ..Cluster::default()
        };
        let to_port = |port| {
            let mut rule = rule(u32::from(port), Action::Log, Some(6));
            rule.service.ports = vec![PortMatch::Range(port, port)];
            rule
        };
        let mut policies = egress_policy(Phase::LocalAndForwarded, Vec::new());
        let policy = Arc::make_mut(&mut policies.tiers[0].policies[0]);
        policy.directions.ingress = true;
        policy.ingress = vec![to_port(80), to_port(8080)];
        for (node, expected) in [("192.0.2.1", 80), ("192.0.2.2", 8080)] {
            let record = FlowRecord {
                source: address("203.0.113.9"),
                destination: address(node),
                destination_port: 8080,
                direction: DIRECTION_INGRESS,
                ..record()
            };
            let log = crate::logging::LogRules::new(policies.clone(), cluster);
            assert_eq!(logged(log, &record), [Some(expected)], "{node}");
        }
    }

    #[test]
    fn rules_that_log_are_named_beside_the_decision() {
        let set = |log| {
            let rules = vec![
                rule(0, log, Some(6)),
                rule(1, log, Some(17)),
                rule(2, Action::Deny, None),
                rule(3, log, None),
            ];
            egress_policy(Phase::Local, rules)
        };
        let cluster = || Cluster {
            members: vec![Member {
                endpoint: Some(EndpointId(7)),
                addresses: [CLIENT.parse().unwrap()].into(),
                ..Member::default()
            }],
            ..Cluster::default()
        };
        assert!(crate::logging::LogRules::new(set(Action::Pass), cluster).is_none());
        let logged = |record: FlowRecord| {
            let rules = crate::logging::LogRules::new(set(Action::Log), cluster);
            logged(rules, &record)
        };
        assert_eq!(
            logged(record()),
            [Some(0)],
            "what comes after the decision is not asked"
        );
        let udp = FlowRecord {
            protocol: 17,
            ..record()
        };
        assert_eq!(logged(udp), [Some(1)]);
        let total = FlowRecord {
            kind: RECORD_UPDATE,
            ..record()
        };
        assert_eq!(logged(total), [] as [Option<u32>; 0], "totals are not packets");
        let other = FlowRecord { epoch: 2, ..record() };
        assert_eq!(
            logged(other),
            [] as [Option<u32>; 0],
            "other policies were in force"
        );
    }

    #[test]
    fn built_in_decisions_have_words() {
        let rule = |record: FlowRecord| flow_event(&record, &names(), "node-1", &CLOCK).decided_by.rule;
        assert_eq!(
            rule(FlowRecord {
                rule: BuiltinRule::NoPolicy as u32,
                verdict: 1,
                ..record()
            }),
            "no-policy"
        );
        assert_eq!(
            rule(FlowRecord {
                reason: Reason::SpoofedSource as u8,
                ..record()
            }),
            "spoofed-source"
        );
        assert_eq!(
            rule(FlowRecord {
                reason: 255,
                ..record()
            }),
            "unknown-reason"
        );
    }

    #[test]
    fn host_endpoints_are_named_at_both_ends() {
        let labels = [("wire".to_owned(), "test".to_owned())].into();
        let host = |name: &str| {
            let (name, node) = (name.to_owned(), "node-1".to_owned());
            Arc::new(NamedEndpoint::new(
                EndpointRef::Host(HostRef { name, node }),
                &labels,
            ))
        };
        let names = Names::new();
        names.publish(Snapshot {
            changes: [(EndpointId(7), 3), (EndpointId(8), 3)].into(),
            endpoints: [(EndpointId(7), host("wire")), (EndpointId(8), host("wire"))].into(),
            forwarding: [EndpointId(8)].into(),
            addresses: Arc::new([("10.7.0.9".parse().unwrap(), host("other"))].into()),
            ..Snapshot::default()
        });
        let told = |endpoint: u32| {
            let event = flow_event(&FlowRecord { endpoint, ..record() }, &names, "node-1", &CLOCK);
            serde_json::to_value(&event).unwrap()
        };
        let (own, forwarded) = (told(7), told(8));
        let wire = serde_json::json!({"hostEndpoint": "wire", "node": "node-1"});
        let other = serde_json::json!({"hostEndpoint": "other", "node": "node-1"});
        for event in [&own, &forwarded] {
            assert_eq!((&event["pod"], &event["peer"]), (&wire, &other));
            assert_eq!(event["podLabels"], serde_json::json!({"wire": "test"}));
            assert_eq!(event["peerLabels"], event["podLabels"]);
        }
        assert_eq!(
            (&own["forwarded"], &forwarded["forwarded"]),
            (&serde_json::Value::Null, &true.into())
        );
    }

    #[test]
    fn an_interface_without_a_pod_is_named_by_its_number() {
        let event = flow_event(
            &FlowRecord {
                endpoint: 8,
                ..record()
            },
            &names(),
            "node-1",
            &CLOCK,
        );
        assert_eq!(event.pod.to_string(), "/interface 42");
    }
}
