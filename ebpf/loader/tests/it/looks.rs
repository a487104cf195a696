//! Looking through the tracked flows a slice at a time, while they come and go.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, MapData};
use ebpf_abi::{
    Address, DIRECTION_EGRESS, DIRECTION_INGRESS, Decision, END_REMOVED, END_SILENT, FLOW_ESTABLISHED,
    FLOW_REPLIED, FlowKey, FlowSide, FlowState, MAX_FLOWS, RECORD_END, VERDICT_ALLOW,
};
use ebpf_loader::{Datapath, EndpointLink, Expired, FlowRecord, OpenedFlow, Reason, monotonic_now};
use policies_ir::tables::{Direction, EndpointId, RuleId, Service, Verdict};

use crate::{
    frames::{ACK, Ends, RST, SYN, TCP, UDP, frame, segment, udp},
    lab::{ENDPOINT, LOOPBACK, Lab, POD, ip, link, tables},
};

const OTHER: EndpointId = EndpointId(8);
/// More than one slice of flows.
const MANY: u32 = 5000;
const OUT: Direction = Direction::Egress;
const IN: Direction = Direction::Ingress;

/// A pod that may open connections to all peers.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.program(
        &link(LOOPBACK, &[POD]),
        &tables(&["10.7.0.0/16", "10.8.0.0/16"], &[(OUT, 0, Service::Any)]),
    );
    lab
}

/// The table of flows, to write what no packet has opened.
struct Table(HashMap<MapData, FlowKey, FlowState>);

/// Makes the flows of a lab older than they are, older than the machine perhaps.
pub(crate) fn age(lab: &Lab, by: Duration) {
    let mut table = Table::of(lab).0;
    let by = u64::try_from(by.as_nanos()).expect("a time");
    let all: Vec<_> = table.iter().collect::<Result<_, _>>().expect("the flows");
    for (key, mut flow) in all {
        flow.opened_ns = flow.opened_ns.wrapping_sub(by);
        flow.last_seen_ns = flow.last_seen_ns.wrapping_sub(by);
        table.insert(key, flow, 0).expect("written");
    }
}

impl Table {
    fn of(lab: &Lab) -> Self {
        let data = MapData::from_pin(lab.pins.join("maps/FLOWS")).expect("the table");
        Self(HashMap::try_from(aya::maps::Map::HashMap(data)).expect("a hash"))
    }

    /// Connections of an endpoint that are established, opened at `opened`.
    fn fill(&mut self, endpoint: EndpointId, peer: &str, numbers: Range<u32>, opened: Duration) {
        self.fill_until(endpoint, peer, numbers, [opened; 2]);
    }

    /// Likewise, whose last packet came later.
    fn fill_until(&mut self, endpoint: EndpointId, peer: &str, numbers: Range<u32>, times: [Duration; 2]) {
        let [opened_ns, last_seen_ns] = times.map(|time| u64::try_from(time.as_nanos()).expect("a time"));
        let decision = Decision {
            change: 1,
            rule: 64,
            verdict: VERDICT_ALLOW,
        };
        for number in numbers {
            let [a, b, port @ ..] = number.to_be_bytes();
            let key = FlowKey {
                endpoint: endpoint.0,
                local: Address::from_ip(ip(POD)),
                peer: Address::from_ip(ip(peer)),
                local_port: u16::from_be_bytes(port),
                peer_port: 1 + u16::from_be_bytes([a, b]),
                protocol: TCP,
                padding: [0; 3],
            };
            let state = FlowState {
                decision: decision.pack(),
                opened_ns,
                last_seen_ns,
                service_port: 80,
                origin: DIRECTION_EGRESS,
                state: FLOW_ESTABLISHED | FLOW_REPLIED,
                closed: 0,
                packets: [1, 2],
                bytes: [100, 200],
                sides: [FlowSide::default(); 2],
            };
            self.0.insert(key, state, 0).expect("room for the flow");
        }
    }
}

/// Steps of a look up to its end.
fn look(lab: &mut Lab, now: Duration) -> Vec<Expired> {
    let mut steps = vec![lab.kernel().look(now).expect("look")];
    while steps.last().is_some_and(|step| step.more) {
        steps.push(lab.kernel().look(now).expect("look"));
    }
    steps
}

fn filled(lab: &mut Lab) -> u64 {
    let counters = lab.kernel().counters().expect("counters");
    let flows = counters.fill.iter().find(|fill| fill.map == "FLOWS");
    flows.expect("the table of flows").entries
}

fn of(lab: &mut Lab, endpoint: EndpointId) -> usize {
    let flows = lab.kernel().tracked_flows().expect("flows");
    flows.iter().filter(|flow| flow.endpoint == endpoint).count()
}

/// What opens in this tick of the programs' clock may have been there when a look began in it.
fn next_tick() {
    let now = || rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    let before = now();
    while now() == before {
        std::hint::spin_loop();
    }
}

fn connect(lab: &mut Lab, port: u16) {
    let out = Ends::new(POD, "10.7.9.9");
    for (direction, ends, bytes) in [
        (OUT, out, segment(port, 80, SYN, 100, 0, &[])),
        (IN, out.reversed(), segment(80, port, SYN | ACK, 500, 101, &[])),
        (OUT, out, segment(port, 80, ACK, 101, 501, &[])),
    ] {
        lab.assert_allowed(direction, &frame(ends, TCP, &bytes));
    }
}

fn reset(lab: &mut Lab, port: u16) {
    let back = Ends::new(POD, "10.7.9.9").reversed();
    lab.assert_allowed(
        IN,
        &frame(back, TCP, &segment(80, port, RST | ACK, 501, 101, &[])),
    );
}

fn other(ifindex: u32) -> EndpointLink {
    EndpointLink {
        id: OTHER,
        ..link(ifindex, &["10.7.0.3"])
    }
}

fn second_link() -> u32 {
    let made = std::process::Command::new("ip")
        .args(["link", "add", "other", "type", "veth"])
        .status();
    assert!(made.expect("ip runs").success());
    nix::net::if_::if_nametoindex("other").expect("a link")
}

#[test]
fn a_look_goes_in_slices_and_sees_every_flow_once() {
    let mut lab = lab();
    let mut table = Table::of(&lab);
    let now = monotonic_now();
    table.fill(ENDPOINT, "10.7.1.1", 0..MANY, now);
    let two_days = Duration::from_secs(2 * 24 * 3600);
    table.fill_until(ENDPOINT, "10.7.1.2", 0..MANY, [now, now + two_days]);
    let steps = look(&mut lab, now + Duration::from_secs(25 * 3600));
    assert!(steps.len() >= 4, "{} slices", steps.len());
    let removed: usize = steps.iter().map(|step| step.removed).sum();
    assert_eq!(removed, usize::try_from(MANY).expect("a number"));
    let (last, before) = steps.split_last().expect("a slice");
    assert_eq!(last.tracked, removed);
    assert!(before.iter().all(|step| step.tracked == 0));
    let records = steps.iter().flat_map(|step| &step.records);
    let (ended, updates): (Vec<&FlowRecord>, Vec<_>) = records.partition(|record| record.kind == RECORD_END);
    assert_eq!([ended.len(), updates.len()], [removed; 2], "each is told of");
    for record in ended {
        let total = (record.end, record.packets, record.bytes, record.destination);
        let expected = (END_SILENT, [1, 2], [100, 200], Address::from_ip(ip("10.7.1.1")));
        assert_eq!(total, expected);
    }
    let left = lab.kernel().tracked_flows().expect("flows");
    assert!(left.iter().all(|flow| flow.peer == ip("10.7.1.2")), "{left:?}");
    assert_eq!(filled(&mut lab), u64::from(MANY));
}

/// What nobody has counted is counted by the first look; what opens and closes while one is under way, by the programs.
#[test]
fn budgets_are_right_after_a_look_during_which_flows_came_and_went() {
    let mut lab = lab();
    Table::of(&lab).fill(ENDPOINT, "10.7.1.1", 0..MANY, monotonic_now());
    for port in 1000..1100 {
        connect(&mut lab, port);
    }
    assert_eq!(filled(&mut lab), 100);
    next_tick();
    assert!(lab.kernel().look(monotonic_now()).expect("look").more);
    next_tick();
    for port in 2000..2300 {
        connect(&mut lab, port);
    }
    for port in 1000..1050 {
        reset(&mut lab, port);
    }
    for port in 2000..2100 {
        reset(&mut lab, port);
    }
    look(&mut lab, monotonic_now());
    let live = u64::from(MANY) + 100 + 300 - 50 - 100;
    let closed = filled(&mut lab) - live;
    assert!(closed <= 150, "{closed} closed ones were seen");
    look(&mut lab, monotonic_now());
    assert_eq!(filled(&mut lab), live + 150);
}

/// A slot that changes hands in the midst of a look has the budget of its new endpoint.
#[test]
fn a_slot_that_changes_hands_during_a_look_begins_with_nothing() {
    let mut lab = lab();
    let mut table = Table::of(&lab);
    table.fill(ENDPOINT, "10.7.1.1", 0..MANY, monotonic_now());
    look(&mut lab, monotonic_now());
    assert_eq!(filled(&mut lab), u64::from(MANY));
    assert!(lab.kernel().look(monotonic_now()).expect("look").more);
    lab.kernel().take_off(ENDPOINT).expect("take off");
    let ifindex = second_link();
    lab.kernel().attach(&other(ifindex)).expect("attach");
    assert_eq!(filled(&mut lab), 0, "the slot is another's");
    while lab.kernel().is_forgetting() {
        look(&mut lab, monotonic_now());
    }
    assert_eq!(filled(&mut lab), 0);
    assert_eq!(of(&mut lab, ENDPOINT), 0);
}

#[test]
fn what_was_taken_off_leaves_no_flow_behind() {
    let mut lab = lab();
    let ifindex = second_link();
    lab.kernel().attach(&other(ifindex)).expect("attach");
    let mut table = Table::of(&lab);
    let now = monotonic_now();
    table.fill(ENDPOINT, "10.7.1.1", 0..MANY, now);
    table.fill(OTHER, POD, 0..MANY, now);
    table.fill(OTHER, "10.7.1.1", MANY..2 * MANY, now);
    look(&mut lab, now);
    assert_eq!(filled(&mut lab), 3 * u64::from(MANY));
    // One that is under way has passed by some of them.
    assert!(lab.kernel().look(now).expect("look").more);
    assert!(!lab.kernel().is_forgetting());
    next_tick();
    lab.kernel().take_off(ENDPOINT).expect("take off");
    assert_eq!(lab.kernel().attached().expect("attached"), [other(ifindex)]);
    next_tick();
    // Whoever gets its address is not its heir.
    let later = monotonic_now();
    table.fill(OTHER, POD, 10 * MANY..10 * MANY + 1, later);
    let mut records = Vec::new();
    let mut looks = 0;
    while lab.kernel().is_forgetting() {
        records.extend(look(&mut lab, now).into_iter().flat_map(|step| step.records));
        looks += 1;
    }
    assert_eq!(looks, 2, "the one under way, and one that sees all");
    let many = usize::try_from(MANY).expect("a number");
    assert_eq!(of(&mut lab, ENDPOINT), 0);
    assert_eq!(of(&mut lab, OTHER), many + 1);
    assert_eq!(records.len(), 2 * many);
    assert!(records.iter().all(|record| record.end == END_REMOVED));
    look(&mut lab, now);
    assert_eq!(
        filled(&mut lab),
        u64::from(MANY) + 1,
        "others' budgets have them back"
    );
}

/// An endpoint that comes back, or another one on the same link, meets no flow of before.
#[test]
fn whoever_comes_back_before_its_flows_were_forgotten_has_none() {
    for id in [ENDPOINT, OTHER] {
        let mut lab = lab();
        connect(&mut lab, 1000);
        Table::of(&lab).fill(ENDPOINT, "10.7.1.1", 0..MANY, monotonic_now());
        lab.kernel().take_off(ENDPOINT).expect("take off");
        assert!(lab.kernel().is_forgetting());
        let again = EndpointLink {
            id,
            ..link(LOOPBACK, &[POD])
        };
        let mut tables = tables(&["10.7.0.0/16"], &[(OUT, 0, Service::Any)]);
        let entries = tables.endpoints.remove(&ENDPOINT).expect("tables");
        tables.endpoints.insert(id, entries);
        lab.program(&again, &tables);
        assert!(!lab.kernel().is_forgetting());
        assert_eq!(lab.kernel().tracked_flows().expect("flows"), []);
        assert_eq!(filled(&mut lab), 0);
        let old = frame(
            Ends::new(POD, "10.7.9.9"),
            TCP,
            &segment(1000, 80, ACK, 101, 501, &[]),
        );
        while lab.record().is_some() {}
        lab.assert_denied(OUT, &old, Reason::NoConnection);
        let records = lab.kernel().expire(monotonic_now()).expect("expire").records;
        assert_eq!(records.len(), 1 + usize::try_from(MANY).expect("a number"));
    }
}

/// What its verdict rests on, names for one, goes on for as long as it does; a stranger's connection holds nothing.
#[test]
fn only_what_an_endpoint_opened_goes_on_for_it() {
    let mut lab = lab();
    let mut table = Table::of(&lab);
    table.fill(ENDPOINT, "10.7.1.1", 0..2, monotonic_now());
    let key = table.0.keys().next().expect("a flow").expect("a flow");
    let state = table.0.get(&key, 0).expect("a flow");
    let others = [
        ("10.8.1.1", DIRECTION_INGRESS, state.state),
        ("10.8.1.2", DIRECTION_EGRESS, 0),
    ];
    for (peer, origin, flags) in others {
        let peer = Address::from_ip(ip(peer));
        let state = FlowState {
            origin,
            state: flags,
            ..state
        };
        table
            .0
            .insert(FlowKey { peer, ..key }, state, 0)
            .expect("room for the flow");
    }
    let opened = lab.kernel().opened_flows().expect("flows");
    let one = OpenedFlow {
        endpoint: ENDPOINT,
        peer: ip("10.7.1.1"),
        rule: RuleId(64),
        epoch: 1,
    };
    assert_eq!(opened, [one].into());
}

/// How long and how much of a processor something takes.
#[expect(clippy::print_stdout, reason = "a part of the test that prints")]
fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let spent = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(
            time.tv_sec.unsigned_abs(),
            u32::try_from(time.tv_nsec).expect("a time"),
        )
    };
    let (began, before) = (Instant::now(), spent());
    let result = act();
    println!(
        "{what}: {:?}, {:?} of a processor",
        began.elapsed(),
        spent() - before
    );
    result
}

/// A change between two slices is in force at once. What looking through a full table takes is printed.
#[test]
fn a_change_does_not_wait_for_a_full_table() {
    let mut lab = lab();
    let mut table = Table::of(&lab);
    let now = monotonic_now();
    let quarter = MAX_FLOWS / 4;
    timed("filling the table", || {
        for number in 0..4 {
            table.fill(
                ENDPOINT,
                "10.7.1.1",
                number * quarter..(number + 1) * quarter,
                now,
            );
        }
    });
    let (mut slices, mut longest) = (0, Duration::ZERO);
    timed("two looks through a full table", || {
        loop {
            let began = Instant::now();
            let more = lab.kernel().look(monotonic_now()).expect("look").more;
            longest = longest.max(began.elapsed());
            slices += 1;
            if !more {
                break;
            }
            if slices == 3 {
                let to = frame(Ends::new(POD, "10.8.0.1"), UDP, &udp(1000, 53));
                assert_eq!(lab.run(OUT, &to), Verdict::Deny);
                let both = [(OUT, 0, Service::Any), (OUT, 1, Service::Any)];
                let open = tables(&["10.7.0.0/16", "10.8.0.0/16"], &both);
                timed("a change between two slices", || {
                    lab.kernel().sync(&open).expect("sync")
                });
                assert_eq!(lab.run(OUT, &to), Verdict::Deny, "the table has no room");
                let one = table.0.keys().next().expect("a flow").expect("a flow");
                table.0.remove(&one).expect("remove");
                assert_eq!(lab.run(OUT, &to), Verdict::Allow);
            }
        }
    });
    println!("{slices} slices, the longest {longest:?}");
    assert!(slices >= 64, "{slices} slices");
    timed("what is counted", || lab.kernel().counters().expect("counters"));
    timed("what endpoints have opened", || {
        lab.kernel().opened_flows().expect("flows")
    });
    let ifindex = second_link();
    lab.kernel().attach(&other(ifindex)).expect("attach");
    timed("the end of a pod without flows", || {
        lab.kernel().detach(OTHER).expect("detach");
    });
    timed("the end of a pod with all of them", || {
        lab.kernel().detach(ENDPOINT).expect("detach");
    });
}
