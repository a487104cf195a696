//! What is told about flows and denials, and what a flood can hide.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData, RingBuf};
use ebpf_abi::{
    END_CLOSED, END_DENIED, END_REMOVED, END_RESET, END_SILENT, Endpoint, MAX_DENIALS, MAX_ENDPOINTS,
    MAX_FLOWS, MAX_HOST_ADDRESSES, MAX_IDENTITIES, MAX_INSIDES, MAX_POD_ADDRESSES, MAX_SOURCES, MAX_SPLITS,
    MAX_VERDICTS, RECORD_DENIED, RECORD_END, RECORD_START, RECORD_UPDATE, RING_HURRY_BYTES,
};
use ebpf_loader::{
    Datapath, FlowRecord, HostEndpoint, HostLink, Limits, Reason, UPDATE_EVERY, monotonic_now,
};
use policies_ir::tables::{Direction, EndpointId, IdentityId, NodeTables, RuleId, Service, Verdict};
use rustix::event::{Timespec, epoll};

use crate::{
    frames::{ACK, Ends, FIN, ICMP, RST, SYN, TCP, UDP, frame, icmp, segment, tcp, udp},
    host::{self, CLIENT, FORWARD},
    lab::{ENDPOINT, LOOPBACK, Lab, ip, link, tables},
};

const POD: &str = "10.7.0.2";
const PEER: &str = "10.7.0.9";

fn out() -> Ends {
    Ends::new(POD, PEER)
}

fn allow_egress() -> NodeTables {
    tables(&["10.7.0.0/24"], &[(Direction::Egress, 0, Service::Any)])
}

fn lab(limits: Limits) -> Lab {
    let mut lab = Lab::with_limits(limits);
    lab.program(&link(LOOPBACK, &[POD]), &allow_egress());
    lab
}

fn expire(lab: &mut Lab, after: Duration) -> Vec<FlowRecord> {
    lab.kernel()
        .expire(monotonic_now() + after)
        .expect("expire")
        .records
}

/// A connection that is established.
fn connect(lab: &mut Lab) {
    let send = |lab: &mut Lab, direction, bytes: &[u8]| lab.assert_allowed(direction, bytes);
    send(
        lab,
        Direction::Egress,
        &frame(out(), TCP, &segment(1000, 80, SYN, 1, 0, &[])),
    );
    let answer = segment(80, 1000, SYN | ACK, 1, 2, &[]);
    send(lab, Direction::Ingress, &frame(out().reversed(), TCP, &answer));
    send(
        lab,
        Direction::Egress,
        &frame(out(), TCP, &segment(1000, 80, ACK, 2, 2, &[])),
    );
}

#[test]
fn a_flow_ends_with_its_totals_and_the_reason() {
    let back = out().reversed();
    let day = Duration::from_secs(25 * 3600);
    for (end, expected) in [(FIN | ACK, END_CLOSED), (RST | ACK, END_RESET), (ACK, END_SILENT)] {
        let mut lab = lab(Limits::default());
        connect(&mut lab);
        lab.assert_allowed(
            Direction::Egress,
            &frame(out(), TCP, &segment(1000, 80, end, 2, 2, &[])),
        );
        lab.assert_allowed(
            Direction::Ingress,
            &frame(back, TCP, &segment(80, 1000, end, 2, 3, &[])),
        );
        let records = expire(&mut lab, day);
        let [record] = &records[..] else {
            panic!("one end: {records:?}")
        };
        assert_eq!((record.kind, record.end), (RECORD_END, expected));
        // Three packets of 54 bytes out, two in.
        assert_eq!((record.packets, record.bytes), ([2, 3], [108, 162]));
        assert_eq!(
            (record.source.to_ip(), record.destination.to_ip()),
            (out().source, out().destination)
        );
        assert_eq!((record.source_port, record.destination_port), (1000, 80));
        assert_eq!(
            (record.endpoint, record.rule, record.verdict),
            (ENDPOINT.0, 64, 1)
        );
        assert!(record.opened_ns > 0 && record.time_ns > record.opened_ns);
        assert_eq!(expire(&mut lab, day), [], "told once");
    }
}

/// Whoever names events finds by it what the start of a flow said.
#[test]
fn a_start_and_an_end_tell_alike_which_flow_they_are_about() {
    let mut lab = Lab::new();
    let both = [Direction::Egress, Direction::Ingress].map(|direction| (direction, 0, Service::Any));
    lab.program(&link(LOOPBACK, &[POD]), &tables(&["10.7.0.0/24"], &both));
    let (out, back) = (out(), out().reversed());
    let mut starts = Vec::new();
    for (direction, bytes) in [
        (Direction::Egress, frame(out, TCP, &tcp(1000, 80, SYN))),
        (Direction::Ingress, frame(back, TCP, &tcp(1001, 81, SYN))),
        (Direction::Egress, frame(out, UDP, &udp(1002, 53))),
        (Direction::Ingress, frame(back, UDP, &udp(1003, 54))),
        (Direction::Egress, frame(out, ICMP, &icmp(8, 0, 7))),
        (Direction::Ingress, frame(back, ICMP, &icmp(8, 0, 8))),
        (Direction::Egress, frame(out, 47, &[0; 8])),
    ] {
        let (verdict, record) = lab.judge(direction, &bytes);
        assert_eq!(verdict, Verdict::Allow);
        starts.extend(record);
    }
    let ends = expire(&mut lab, Duration::from_secs(3600));
    let told = |records: &[FlowRecord], kind: u8| {
        assert!(records.iter().all(|record| record.kind == kind), "{records:?}");
        let flows = records.iter().map(|record| {
            let ends = (record.source, record.destination);
            let ports = (record.source_port, record.destination_port);
            (record.opened_ns, record.endpoint, ends, ports, record.protocol)
        });
        flows.collect::<BTreeSet<_>>()
    };
    let opened = told(&starts, RECORD_START);
    assert_eq!(opened.len(), 7);
    assert_eq!(told(&ends, RECORD_END), opened);
}

#[test]
fn flows_end_with_their_endpoint_or_by_policy() {
    let mut lab = lab(Limits::default());
    connect(&mut lab);
    lab.kernel().detach(ENDPOINT).expect("detach");
    let records = expire(&mut lab, Duration::ZERO);
    assert_eq!(
        records.iter().map(|record| record.end).collect::<Vec<_>>(),
        [END_REMOVED]
    );

    let mut lab = Lab::new();
    lab.program(&link(LOOPBACK, &[POD]), &allow_egress());
    connect(&mut lab);
    lab.program(&link(LOOPBACK, &[POD]), &tables(&["10.7.0.0/24"], &[]));
    lab.assert_denied(
        Direction::Egress,
        &frame(out(), TCP, &segment(1000, 80, ACK, 2, 2, &[])),
        Reason::Policy,
    );
    let records = expire(&mut lab, Duration::from_secs(61));
    let ends: Vec<_> = records
        .iter()
        .map(|record| (record.end, record.verdict))
        .collect();
    assert_eq!(ends, [(END_DENIED, 0)]);
}

#[test]
fn flows_that_live_are_told_of_now_and_then() {
    let mut lab = lab(Limits::default());
    connect(&mut lab);
    let second = Duration::from_secs(1);
    assert_eq!(expire(&mut lab, second), []);
    let records = expire(&mut lab, UPDATE_EVERY + second);
    let [record] = &records[..] else {
        panic!("one update: {records:?}")
    };
    assert_eq!(
        (record.kind, record.end, record.packets),
        (RECORD_UPDATE, 0, [1, 2])
    );
    assert_eq!(expire(&mut lab, UPDATE_EVERY + second * 5), [], "told of already");
    assert_eq!(
        expire(&mut lab, UPDATE_EVERY * 2 + second),
        [],
        "nothing new to tell"
    );
    assert_eq!(lab.kernel().tracked_flows().expect("flows").len(), 1);
}

#[test]
fn a_flood_of_one_kind_is_told_once_and_counted() {
    let mut lab = lab(Limits {
        report_every: Duration::from_secs(3600),
        ..Limits::default()
    });
    let denied = frame(out().reversed(), UDP, &udp(1, 2));
    let flood = 20_000_u64;
    for _ in 0..flood {
        assert_eq!(lab.run(Direction::Ingress, &denied), Verdict::Deny);
    }
    // What else happens meanwhile is heard: another port, another reason.
    let other = frame(out().reversed(), UDP, &udp(1, 3));
    assert_eq!(lab.run(Direction::Ingress, &other), Verdict::Deny);
    let spoofed = frame(Ends::new("10.7.0.3", PEER), UDP, &udp(1, 2));
    assert_eq!(lab.run(Direction::Egress, &spoofed), Verdict::Deny);
    let heard: Vec<_> = std::iter::from_fn(|| lab.record())
        .map(|record| {
            (
                record.kind,
                record.reason,
                record.destination_port,
                record.packets,
            )
        })
        .collect();
    assert_eq!(
        heard,
        [
            (RECORD_DENIED, Reason::Policy as u8, 2, [1, 0]),
            (RECORD_DENIED, Reason::Policy as u8, 3, [1, 0]),
            (RECORD_DENIED, Reason::SpoofedSource as u8, 2, [0, 1]),
        ]
    );
    let records = expire(&mut lab, Duration::from_secs(3601));
    let [rest] = &records[..] else {
        panic!("one kind has more to tell: {records:?}")
    };
    assert_eq!(
        (rest.kind, rest.packets, rest.destination_port),
        (RECORD_DENIED, [flood - 1, 0], 2)
    );
    assert_eq!(
        (rest.source.to_ip(), rest.destination.to_ip()),
        (out().destination, out().source)
    );
    let counters = lab.kernel().counters().expect("counters");
    assert_eq!((counters.lost_events, counters.unreported.len()), (0, 0));
    assert_eq!(counters.denied.get(&Reason::Policy), Some(&(flood + 1)));
}

/// Each denial that is told, and what was counted after it: source, destination, packets.
fn told_of(records: impl IntoIterator<Item = FlowRecord>) -> Vec<(String, String, [u64; 2])> {
    let mut all: Vec<_> = records
        .into_iter()
        .map(|record| {
            assert_eq!(record.kind, RECORD_DENIED);
            let ends = [record.source, record.destination].map(|end| end.to_ip().to_string());
            let [source, destination] = ends;
            (source, destination, record.packets)
        })
        .collect();
    all.sort();
    all
}

/// One address does not speak for another: of what a host forwards, or of a pod that makes its own up.
#[test]
fn denials_at_different_own_addresses_are_told_apart() {
    let limits = Limits {
        report_every: Duration::from_secs(3600),
        ..Limits::default()
    };
    let later = Duration::from_secs(3601);
    let mut lab = lab(limits);
    let made_up = ["10.7.0.3", "10.7.0.4"];
    for source in made_up {
        for _ in 0..3 {
            let spoofed = frame(Ends::new(source, PEER), UDP, &udp(1, 2));
            assert_eq!(lab.run(Direction::Egress, &spoofed), Verdict::Deny);
        }
    }
    let from = |packets| made_up.map(|source| (source.to_owned(), PEER.to_owned(), [0, packets]));
    assert_eq!(told_of(std::iter::from_fn(|| lab.record())), from(1));
    assert_eq!(told_of(expire(&mut lab, later)), from(2));

    let mut lab = Lab::with_limits(limits);
    let link = host::host_link(None, Some(host::endpoint(FORWARD)));
    lab.kernel().attach_host(&link).expect("attach");
    lab.kernel().sync(&host::tables(&[(FORWARD, &[])])).expect("sync");
    let behind = ["10.7.0.2", "10.7.0.3"];
    for destination in behind {
        for _ in 0..3 {
            let scan = frame(Ends::new(CLIENT, destination), UDP, &udp(40000, 161));
            let judged = lab
                .kernel()
                .run_host_frame(Direction::Ingress, LOOPBACK, 0, &scan);
            assert_eq!(judged.expect("run the program"), Verdict::Deny);
        }
    }
    let to = |packets| behind.map(|destination| (CLIENT.to_owned(), destination.to_owned(), [packets, 0]));
    assert_eq!(told_of(std::iter::from_fn(|| lab.record())), to(1));
    assert_eq!(told_of(expire(&mut lab, later)), to(2));
}

/// A flood that goes on when policy changes is told by the rule that denied the last of it.
#[test]
fn a_flood_that_outlives_a_rule_is_told_by_the_next() {
    let denied_by = |rule| {
        let mut tables = tables(&["10.7.0.0/24"], &[(Direction::Ingress, 0, Service::Any)]);
        let endpoint = tables.endpoints.get_mut(&ENDPOINT).expect("the endpoint");
        let endpoint = Arc::make_mut(endpoint);
        let entries: Vec<_> = endpoint.verdicts.iter().collect();
        for (key, mut entry) in entries {
            (entry.verdict, entry.rule) = (Verdict::Deny, RuleId(rule));
            endpoint.verdicts.insert(key, entry);
        }
        tables
    };
    let mut lab = Lab::with_limits(Limits {
        report_every: Duration::from_secs(3600),
        ..Limits::default()
    });
    let denied = frame(out().reversed(), UDP, &udp(1, 2));
    let flood = |lab: &mut Lab, rule| {
        let change = lab.program(&link(LOOPBACK, &[POD]), &denied_by(rule));
        for _ in 0..3 {
            assert_eq!(lab.run(Direction::Ingress, &denied), Verdict::Deny);
        }
        change
    };
    let changes = [70, 71].map(|rule| flood(&mut lab, rule));
    let [before, after] = changes;
    assert!(after > before, "{before}, then {after}");
    let by = |record: &FlowRecord| (record.rule, record.epoch, record.packets);
    let told: Vec<_> = std::iter::from_fn(|| lab.record())
        .map(|record| by(&record))
        .collect();
    assert_eq!(told, [(70, before, [1, 0])]);
    let rest: Vec<_> = expire(&mut lab, Duration::from_secs(3601))
        .iter()
        .map(by)
        .collect();
    assert_eq!(rest, [(71, after, [5, 0])]);
}

#[test]
fn a_flood_of_ever_new_kinds_leaves_the_ring_to_others() {
    let limits = Limits {
        reports_per_second: 100,
        ..Limits::default()
    };
    let mut lab = lab(limits);
    let sent = 30_000_u64;
    let started = monotonic_now();
    for number in 0..30_000 {
        let denied = frame(out().reversed(), UDP, &udp(number, 2));
        assert_eq!(lab.run(Direction::Ingress, &denied), Verdict::Deny);
    }
    let seconds = (monotonic_now() - started).as_secs() + 2;
    let opened = frame(out(), UDP, &udp(1, 2));
    assert_eq!(lab.run(Direction::Egress, &opened), Verdict::Allow);
    let records: Vec<_> = std::iter::from_fn(|| lab.record()).collect();
    assert!(
        records.iter().any(|record| record.verdict == 1),
        "the flow that opened is told of"
    );
    let denied = records
        .iter()
        .filter(|record| record.kind == RECORD_DENIED)
        .count() as u64;
    assert!((100..=100 * seconds).contains(&denied), "{denied} in {seconds} s");
    let counters = lab.kernel().counters().expect("counters");
    assert_eq!(counters.lost_events, 0);
    assert_eq!(counters.unreported.get(&ENDPOINT), Some(&(sent - denied)));
}

/// Sends so many packets of each of so many kinds that are denied. How many of them the ring tells of.
fn flood(lab: &mut Lab, kinds: u16, each: u64) -> u64 {
    let mut told = 0;
    for kind in 0..kinds {
        let denied = frame(out().reversed(), UDP, &udp(kind, 2));
        for _ in 0..each {
            assert_eq!(lab.run(Direction::Ingress, &denied), Verdict::Deny);
        }
        if kind % 1000 == 0 || kind + 1 == kinds {
            let records: Vec<_> = std::iter::from_fn(|| lab.record()).collect();
            told += total(&records);
        }
    }
    told
}

/// Packets to the pod.
fn total(records: &[FlowRecord]) -> u64 {
    records.iter().map(|record| record.packets[0]).sum()
}

/// Whether too many were denied to tell of each, or in more ways than are remembered: what a pod's denials came to is known
/// when it is gone, and told once.
#[test]
fn no_denied_packet_is_lost_with_its_pod() {
    const KINDS: u16 = 20_000;
    const EACH: u64 = 3;
    for reports_per_second in [0, 100] {
        let mut lab = lab(Limits {
            report_every: Duration::from_secs(3600),
            reports_per_second,
            ..Limits::default()
        });
        let mut told = flood(&mut lab, KINDS, EACH);
        lab.kernel().detach(ENDPOINT).expect("detach");
        let left = total(&expire(&mut lab, Duration::ZERO));
        assert!(left > 0, "what was counted is told at once");
        told += left;
        let counters = lab.kernel().counters().expect("counters");
        assert_eq!(counters.lost_events, 0);
        let lost = counters.unreported.get(&ENDPOINT).copied().unwrap_or(0);
        assert!(lost > 0, "{told} told");
        assert_eq!(told + lost, u64::from(KINDS) * EACH);
        assert_eq!(expire(&mut lab, Duration::from_secs(3601)), [], "once");
        let counters = lab.kernel().counters().expect("counters");
        assert_eq!(counters.unreported, [].into(), "once");
    }
}

/// A pod whose link becomes another one goes on under its number.
#[test]
fn what_a_pod_was_denied_without_a_word_stays_counted_when_its_link_changes() {
    let mut lab = lab(Limits {
        reports_per_second: 1,
        ..Limits::default()
    });
    let unreported = |lab: &mut Lab| {
        flood(lab, 1000, 1);
        let counters = lab.kernel().counters().expect("counters");
        counters.unreported.get(&ENDPOINT).copied().unwrap_or(0)
    };
    let before = unreported(&mut lab);
    lab.program(&link(LOOPBACK, &[POD, "fd07::2"]), &allow_egress());
    let after = unreported(&mut lab);
    assert!(before > 0 && after > before, "{before}, then {after}");
    assert!(unreported(&mut lab) > after);
}

/// An agent was killed when it had taken an endpoint away and its flows were still there.
#[test]
fn flows_of_an_endpoint_that_was_half_taken_away_end_with_the_next_agent() {
    let mut lab = lab(Limits::default());
    connect(&mut lab);
    lab.stop();
    let data = MapData::from_pin(lab.pins.join("maps/ENDPOINTS")).expect("the pinned map");
    let mut endpoints: HashMap<_, u32, Endpoint> = HashMap::try_from(Map::HashMap(data)).expect("a hash");
    endpoints.remove(&LOOPBACK).expect("it was attached");
    drop(endpoints);
    lab.start();
    assert_eq!(lab.kernel().tracked_flows().expect("flows"), []);
    let records = expire(&mut lab, Duration::ZERO);
    let [record] = &records[..] else {
        panic!("one end: {records:?}")
    };
    assert_eq!(
        (record.kind, record.end, record.endpoint),
        (RECORD_END, END_REMOVED, ENDPOINT.0)
    );
    assert_eq!((record.packets, record.bytes), ([1, 2], [54, 108]));
    assert_eq!(expire(&mut lab, Duration::ZERO), [], "told once");
}

/// More kinds than are remembered: whatever was counted of those that were forgotten is missing, and told as such.
#[test]
fn no_denied_packet_is_lost_in_silence() {
    const KINDS: u16 = 20_000;
    const EACH: u64 = 3;
    let limits = Limits {
        report_every: Duration::from_secs(3600),
        reports_per_second: 0,
        ..Limits::default()
    };
    let mut lab = lab(limits);
    let mut told = flood(&mut lab, KINDS, EACH);
    assert_eq!(told, u64::from(KINDS), "each kind was told of once");
    let sent = u64::from(KINDS) * EACH;
    // Those that are remembered stay until they are old; those that are forgotten are known to be missing by now.
    told += total(&expire(&mut lab, Duration::ZERO));
    let missing = |lab: &mut Lab| {
        let counters = lab.kernel().counters().expect("counters");
        assert_eq!(counters.lost_events, 0);
        counters.unreported.get(&ENDPOINT).copied().unwrap_or(0)
    };
    let lost = missing(&mut lab);
    assert!(
        lost > 0 && told + lost < sent,
        "{lost} were lost, {told} of {sent} told"
    );
    told += total(&expire(&mut lab, Duration::from_secs(3601)));
    assert_eq!(told + missing(&mut lab), sent);
    assert_eq!(missing(&mut lab), lost, "once");
    assert_eq!(expire(&mut lab, Duration::from_secs(3601)), []);
    assert_eq!(missing(&mut lab), lost, "once");
}

/// Records gather before the reader looks, and none waits for the next one to come.
#[test]
fn a_reader_that_waits_hears_of_each_record() {
    const RECORDS: u16 = 200;
    let mut lab = lab(Limits::default());
    let mut source = lab.source.take().expect("the ring is open");
    let (heard, hears) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut longest = Duration::ZERO;
        for _ in 0..RECORDS {
            let record = source.next(Duration::from_secs(60)).expect("read the ring");
            let record = record.expect("a record within a minute");
            longest = longest.max(monotonic_now() - Duration::from_nanos(record.time_ns));
            heard.send(record.source_port).expect("the test waits");
        }
        longest
    });
    for number in 0..RECORDS {
        // Nothing more is sent before this one is heard of: a lost wake-up would be a minute's silence.
        assert_eq!(
            lab.run(Direction::Egress, &frame(out(), UDP, &udp(number, 53))),
            Verdict::Allow
        );
        assert_eq!(hears.recv().expect("the reader lives"), number);
    }
    let longest = reader.join().expect("the reader ends");
    assert!(longest < Duration::from_secs(10), "{longest:?} for one record");
}

#[test]
fn a_ring_that_fills_wakes_its_reader() {
    let record_on_ring = 8 + u32::try_from(FlowRecord::BYTES).expect("a small record");
    let mut lab = Lab::new();
    lab.program(&link(LOOPBACK, &[POD]), &allow_egress());
    let data = MapData::from_pin(lab.pins.join("maps/EVENTS")).expect("the pinned ring");
    let ring = RingBuf::try_from(Map::from_map_data(data).expect("a map")).expect("a ring");
    let wake_ups = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&wake_ups, &ring, epoll::EventData::new_u64(0), flags).expect("watch the ring");
    let woken_within = |seconds| {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 1];
        let timeout = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let (events, _) = epoll::wait(&wake_ups, &mut events, Some(&timeout)).expect("wait");
        !events.is_empty()
    };
    let denied = frame(out().reversed(), UDP, &udp(1, 2));
    let deny = |lab: &mut Lab| assert_eq!(lab.run(Direction::Ingress, &denied), Verdict::Deny);
    deny(&mut lab);
    assert!(woken_within(60), "the first record wakes");
    for _ in 2..RING_HURRY_BYTES / record_on_ring {
        deny(&mut lab);
    }
    assert!(!woken_within(0), "records gather");
    deny(&mut lab);
    deny(&mut lab);
    assert!(woken_within(60), "many records wake");
}

#[test]
fn every_bounded_map_says_how_full_it_is() {
    let mut lab = Lab::with_limits(Limits::default());
    let mut wanted = allow_egress();
    wanted
        .identities
        .insert("10.7.0.9/32".parse().expect("a prefix"), IdentityId(1));
    lab.program(&link(LOOPBACK, &[POD, "fd07::2"]), &wanted);
    let own = HostEndpoint {
        id: EndpointId(100),
        untracked: Some(EndpointId(101)),
    };
    let host = HostLink {
        ifindex: LOOPBACK,
        addresses: ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
            .map(|address| (ip(address), own))
            .into(),
        forward: None,
    };
    lab.kernel().attach_host(&host).expect("attach the host");
    lab.assert_allowed(Direction::Egress, &frame(out(), UDP, &udp(1, 2)));
    lab.assert_denied(
        Direction::Ingress,
        &frame(out().reversed(), UDP, &udp(1, 3)),
        Reason::Policy,
    );
    let fill = lab.kernel().counters().expect("counters").fill;
    let told: BTreeMap<_, _> = fill
        .iter()
        .map(|fill| (fill.map, (fill.entries, fill.capacity)))
        .collect();
    let expected = [
        ("VERDICTS", 1, MAX_VERDICTS),
        ("SPLITS", 0, MAX_SPLITS),
        ("INSIDES", 0, MAX_INSIDES),
        ("SOURCES", 0, MAX_SOURCES),
        ("HOSTS", 1, MAX_IDENTITIES),
        ("IDENTITIES", 1, MAX_IDENTITIES),
        ("FLOWS", 1, MAX_FLOWS),
        ("SLOTS", 3, MAX_ENDPOINTS),
        ("ENDPOINTS", 1, MAX_ENDPOINTS),
        ("PODS", 2, MAX_POD_ADDRESSES),
        ("HOST_ENDPOINTS", 4, MAX_HOST_ADDRESSES),
        ("DENIALS", 1, MAX_DENIALS),
    ];
    let expected = expected.map(|(map, entries, capacity)| (map, (entries, u64::from(capacity))));
    assert_eq!(told, expected.into());
}
