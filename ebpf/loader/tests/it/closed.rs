//! What becomes of connections that are over: they take no share from those that come, and no live one goes for them.

use std::time::Duration;

use ebpf_abi::{END_CLOSED, END_RESET, END_SILENT, MAX_CLOSED, RECORD_END, RECORD_START};
use ebpf_loader::{Datapath, Limits, Reason, monotonic_now};
use policies_ir::tables::{Direction, Service, Verdict};

use crate::{
    frames::{ACK, Ends, FIN, RST, SCTP, SYN, TCP, chunk, frame, segment},
    lab::{LOOPBACK, Lab, link, tables},
};

const POD: &str = "10.7.0.2";
/// Fifteen peers take turns, each with ports enough.
const PEERS: [&str; 15] = [
    "10.7.1.1",
    "10.7.1.2",
    "10.7.1.3",
    "10.7.1.4",
    "10.7.1.5",
    "10.7.1.6",
    "10.7.1.7",
    "10.7.1.8",
    "10.7.1.9",
    "10.7.1.10",
    "10.7.1.11",
    "10.7.1.12",
    "10.7.1.13",
    "10.7.1.14",
    "10.7.1.15",
];
const OUT: Direction = Direction::Egress;
const IN: Direction = Direction::Ingress;

/// A pod that may open connections to all peers.
fn lab(limits: Limits) -> Lab {
    let mut lab = Lab::with_limits(limits);
    lab.program(
        &link(LOOPBACK, &[POD]),
        &tables(&["10.7.0.0/16"], &[(OUT, 0, Service::Any)]),
    );
    lab
}

/// One connection of the pod, from a port of its own.
#[derive(Clone, Copy)]
struct Connection {
    peer: &'static str,
    port: u16,
}

impl Connection {
    fn new(number: u32) -> Self {
        let peer = usize::try_from(number).expect("a number") % PEERS.len();
        Self {
            peer: PEERS.get(peer).expect("a peer"),
            port: 1024 + u16::try_from(number / 15).expect("a port"),
        }
    }

    /// Sends a segment, whose numbers are relative to the start of either end.
    fn send(
        self,
        lab: &mut Lab,
        direction: Direction,
        flags: u8,
        sequence: u32,
        acknowledged: u32,
    ) -> Verdict {
        let out = Ends::new(POD, self.peer);
        let bytes = match direction {
            Direction::Egress => frame(
                out,
                TCP,
                &segment(self.port, 80, flags, sequence, acknowledged, &[]),
            ),
            Direction::Ingress => frame(
                out.reversed(),
                TCP,
                &segment(80, self.port, flags, sequence, acknowledged, &[]),
            ),
        };
        lab.run(direction, &bytes)
    }

    #[track_caller]
    fn pass(self, lab: &mut Lab, packets: &[(Direction, u8, u32, u32)]) {
        for (direction, flags, sequence, acknowledged) in packets {
            assert_eq!(
                self.send(lab, *direction, *flags, *sequence, *acknowledged),
                Verdict::Allow,
                "port {}: {direction:?} {flags:#x}",
                self.port
            );
        }
    }

    #[track_caller]
    fn open(self, lab: &mut Lab) {
        self.pass(
            lab,
            &[
                (OUT, SYN, 100, 0),
                (IN, SYN | ACK, 500, 101),
                (OUT, ACK, 101, 501),
            ],
        );
    }

    #[track_caller]
    fn close(self, lab: &mut Lab) {
        self.pass(
            lab,
            &[
                (OUT, FIN | ACK, 101, 501),
                (IN, FIN | ACK, 501, 102),
                (OUT, ACK, 102, 502),
            ],
        );
    }
}

/// Counts what the ring holds: starts, and ends of this kind.
fn drain(lab: &mut Lab, told: &mut [u32; 2], end: u8) {
    while let Some(record) = lab.record() {
        match record.kind {
            RECORD_START => told[0] += 1,
            RECORD_END => {
                assert_eq!(
                    (record.end, record.packets, record.bytes),
                    (end, [2, 4], [108, 216])
                );
                assert_eq!(record.ifindex, LOOPBACK);
                assert_eq!(
                    record.source.to_ip(),
                    POD.parse::<std::net::IpAddr>().expect("an address")
                );
                told[1] += 1;
            }
            kind => panic!("{kind}: {record:?}"),
        }
    }
}

/// Half a minute of more than 5,000 connections in each second, more than the table holds, and nobody looks after it.
#[test]
fn connections_that_close_make_room_for_the_next() {
    const CONNECTIONS: u32 = 30 * 5_001;
    let mut lab = lab(Limits::default());
    let live = Connection {
        peer: "10.7.2.1",
        port: 1,
    };
    live.open(&mut lab);
    let mut told = [0; 2];
    for number in 0..CONNECTIONS {
        let connection = Connection::new(number);
        connection.open(&mut lab);
        connection.close(&mut lab);
        if number % 1000 == 0 {
            drain(&mut lab, &mut told, END_CLOSED);
        }
    }
    drain(&mut lab, &mut told, END_CLOSED);
    assert_eq!(told, [1 + CONNECTIONS, CONNECTIONS - MAX_CLOSED]);
    // What is sent again by one of the last finds its connection, and the one that lives has lost nothing.
    Connection::new(CONNECTIONS - MAX_CLOSED)
        .pass(&mut lab, &[(IN, FIN | ACK, 501, 102), (OUT, ACK, 102, 502)]);
    live.pass(&mut lab, &[(IN, ACK, 501, 101), (OUT, ACK, 101, 501)]);
    let gone = Connection::new(CONNECTIONS - MAX_CLOSED - 1);
    assert_eq!(gone.send(&mut lab, IN, FIN | ACK, 501, 102), Verdict::Deny);

    let counters = lab.kernel().counters().expect("counters");
    assert_eq!(
        (counters.lost_events, counters.denied.get(&Reason::TooManyFlows)),
        (0, None)
    );
    let later = monotonic_now() + Duration::from_secs(62);
    let expired = lab.kernel().expire(later).expect("expire");
    assert_eq!(expired.tracked, 1, "the one that lives");
    let ends = expired.records.iter().filter(|record| record.kind == RECORD_END);
    assert_eq!(
        ends.count(),
        usize::try_from(MAX_CLOSED).expect("a number"),
        "each end is told once"
    );
}

/// A flow that counts against nobody's share may not be had for the asking: only where the receiver is sure of the end.
#[test]
fn only_what_is_closed_for_sure_makes_room() {
    // Room for eight closed flows among 64.
    let limits = Limits {
        max_flows: 64,
        ..Limits::default()
    };
    let others = |lab: &mut Lab| {
        for number in 0..100 {
            let connection = Connection::new(number);
            connection.open(lab);
            connection.close(lab);
        }
    };
    let victim = Connection {
        peer: "10.7.2.1",
        port: 1,
    };
    let is_tracked = |lab: &mut Lab| {
        let flows = lab.kernel().tracked_flows().expect("flows");
        flows.iter().any(|flow| flow.local_port == 1)
    };
    // What a third party can send in the peer's name, and one end without the other's agreement.
    for packets in [
        &[][..],
        // Out of the windows, or acknowledging what was not sent.
        &[
            (IN, RST, 499, 0),
            (IN, RST, 70_000, 0),
            (IN, FIN | ACK, 70_501, 101),
            (IN, FIN | ACK, 501, 200),
        ],
        // In sequence, but the pod has not closed.
        &[(IN, FIN | ACK, 501, 101), (OUT, ACK, 101, 502), (IN, RST, 7, 0)],
        // Both have closed, and the pod has not heard that its end was heard.
        &[
            (OUT, FIN | ACK, 101, 501),
            (IN, FIN | ACK, 501, 101),
            (OUT, ACK, 102, 502),
        ],
        // A SYN on a live connection.
        &[(OUT, SYN, 9_000, 0)],
    ] {
        let mut lab = lab(limits);
        victim.open(&mut lab);
        victim.pass(&mut lab, packets);
        others(&mut lab);
        assert!(is_tracked(&mut lab), "{packets:?}");
    }
    // A RST between what was acknowledged and what was sent: the receiver asks back, and may go on.
    let mut lab = lab(limits);
    victim.open(&mut lab);
    let out = Ends::new(POD, victim.peer).reversed();
    let data = frame(out, TCP, &segment(80, victim.port, ACK, 501, 101, &[7; 100]));
    assert_eq!(lab.run(IN, &data), Verdict::Allow);
    victim.pass(&mut lab, &[(IN, RST, 550, 0)]);
    others(&mut lab);
    assert!(is_tracked(&mut lab));
    victim.pass(&mut lab, &[(OUT, ACK, 101, 601)]);
    // One that is exactly what comes next ends it, and others may have its room.
    victim.pass(&mut lab, &[(IN, RST, 601, 0)]);
    others(&mut lab);
    assert!(!is_tracked(&mut lab));
    let ends: Vec<_> = std::iter::from_fn(|| lab.record())
        .filter(|record| record.kind == RECORD_END && record.source_port == 1)
        .map(|record| record.end)
        .collect();
    assert_eq!(ends, [END_RESET]);
}

/// The checksum of a reset is wrong, or a router drops it: the receiver has never heard of it, and both go on. That must
/// not be a way to have flows that count for nobody.
#[test]
fn an_end_in_which_the_receiver_does_not_believe_is_none() {
    // Room for eight closed flows among 64.
    let limits = Limits {
        max_flows: 64,
        ..Limits::default()
    };
    let mut lab = lab(limits);
    let connection = Connection {
        peer: "10.7.2.1",
        port: 1,
    };
    let ends = Ends::new(POD, connection.peer);
    let data = |direction, sequence, acknowledged| match direction {
        Direction::Egress => frame(ends, TCP, &segment(1, 80, ACK, sequence, acknowledged, &[7; 100])),
        Direction::Ingress => frame(
            ends.reversed(),
            TCP,
            &segment(80, 1, ACK, sequence, acknowledged, &[7; 100]),
        ),
    };
    let pass = |lab: &mut Lab, direction, sequence, acknowledged| {
        let bytes = data(direction, sequence, acknowledged);
        assert_eq!(lab.run(direction, &bytes), Verdict::Allow);
    };

    connection.open(&mut lab);
    connection.pass(&mut lab, &[(IN, RST, 501, 0)]);
    assert_eq!(living(&mut lab), 0, "closed");
    // What one end says alone, and what was on its way, or is sent again, is no sign of life of the other.
    pass(&mut lab, IN, 501, 101);
    pass(&mut lab, IN, 601, 5_000);
    pass(&mut lab, OUT, 1, 501);
    connection.pass(
        &mut lab,
        &[(OUT, RST, 101, 0), (IN, RST, 701, 0), (OUT, ACK, 101, 501)],
    );
    assert_eq!(living(&mut lab), 0, "still closed");
    // The pod has got what came after the reset.
    connection.pass(&mut lab, &[(OUT, ACK, 101, 701)]);
    assert_eq!(living(&mut lab), 1, "it lives");
    for number in 0..100 {
        let other = Connection::new(number);
        other.open(&mut lab);
        other.close(&mut lab);
    }
    pass(&mut lab, IN, 701, 101);
    pass(&mut lab, OUT, 101, 801);
    assert_eq!(living(&mut lab), 1);

    // The other way around; where that was a lie, the end that is gone answers with a reset.
    connection.pass(&mut lab, &[(IN, RST, 801, 0)]);
    assert_eq!(living(&mut lab), 0);
    pass(&mut lab, OUT, 201, 801);
    connection.pass(&mut lab, &[(IN, ACK, 801, 301)]);
    assert_eq!(living(&mut lab), 1);
    connection.pass(&mut lab, &[(OUT, RST, 301, 0)]);
    assert_eq!(living(&mut lab), 0);

    // Nor does an attempt that was refused for show.
    let attempt = Connection {
        port: 2,
        ..connection
    };
    attempt.pass(
        &mut lab,
        &[
            (OUT, SYN, 100, 0),
            (IN, RST | ACK, 0, 101),
            (IN, SYN | ACK, 500, 101),
            (OUT, ACK, 101, 501),
        ],
    );
    assert_eq!(living(&mut lab), 0);
    for (direction, bytes) in [
        (OUT, frame(ends, TCP, &segment(2, 80, ACK, 101, 501, &[7; 100]))),
        (
            IN,
            frame(ends.reversed(), TCP, &segment(80, 2, ACK, 501, 201, &[])),
        ),
    ] {
        assert_eq!(lab.run(direction, &bytes), Verdict::Allow);
    }
    assert_eq!(living(&mut lab), 1);

    let expired = lab
        .kernel()
        .expire(monotonic_now() + Duration::from_secs(62))
        .expect("expire");
    let ends: Vec<_> = expired
        .records
        .iter()
        .filter(|record| record.source_port < 1024)
        .collect();
    let mut ends: Vec<_> = ends
        .iter()
        .map(|record| (record.source_port, record.end))
        .collect();
    ends.sort_unstable();
    assert_eq!(
        ends,
        [(1, END_RESET), (2, END_SILENT)],
        "each once, and as it was"
    );
}

/// The same of SCTP, whose packets show by their tags whose they are.
#[test]
fn an_abort_in_which_the_receiver_does_not_believe_is_none() {
    let mut lab = lab(Limits::default());
    let ends = Ends::new(POD, "10.7.2.1");
    let send = |lab: &mut Lab, direction, verification, kind, tag| {
        let bytes = match direction {
            Direction::Egress => frame(ends, SCTP, &chunk(1, 80, verification, kind, 0, tag)),
            Direction::Ingress => frame(ends.reversed(), SCTP, &chunk(80, 1, verification, kind, 0, tag)),
        };
        assert_eq!(lab.run(direction, &bytes), Verdict::Allow);
    };
    const DATA: u8 = 0;
    const SACK: u8 = 3;
    const ABORT: u8 = 6;
    // INIT, INIT ACK, COOKIE ECHO, COOKIE ACK.
    for (direction, verification, kind, tag) in
        [(OUT, 0, 1, 7), (IN, 7, 2, 9), (OUT, 9, 10, 0), (IN, 7, 11, 0)]
    {
        send(&mut lab, direction, verification, kind, tag);
    }
    assert_eq!(living(&mut lab), 1);
    send(&mut lab, IN, 7, ABORT, 0);
    assert_eq!(living(&mut lab), 0);
    send(&mut lab, IN, 7, DATA, 0);
    send(&mut lab, OUT, 9, ABORT, 0);
    send(&mut lab, OUT, 8, SACK, 0);
    assert_eq!(living(&mut lab), 0, "the other end says nothing");
    send(&mut lab, OUT, 9, SACK, 0);
    assert_eq!(living(&mut lab), 1);
    send(&mut lab, OUT, 9, ABORT, 0);
    assert_eq!(living(&mut lab), 0);
}

/// Flows that count, and those that were closed at the last look.
fn living(lab: &mut Lab) -> u64 {
    let fill = lab.kernel().counters().expect("counters").fill;
    let flows = fill.into_iter().find(|fill| fill.map == "FLOWS");
    flows.expect("the table of flows").entries
}

/// The share of an endpoint counts what lives, however often its flows close and open on the same ports.
#[test]
fn a_share_is_what_lives() {
    let mut lab = lab(Limits::default());
    let connection = Connection::new(0);
    for round in 0..100 {
        connection.open(&mut lab);
        assert_eq!(living(&mut lab), 1, "round {round}");
        connection.close(&mut lab);
        assert_eq!(living(&mut lab), 0, "round {round}");
        // A reset before anything is established.
        let refused = Connection::new(15);
        refused.pass(&mut lab, &[(OUT, SYN, 100, 0)]);
        assert_eq!(living(&mut lab), 1, "round {round}");
        refused.pass(&mut lab, &[(IN, RST | ACK, 0, 101)]);
        assert_eq!(living(&mut lab), 0, "round {round}");
    }
    let expired = lab.kernel().expire(monotonic_now()).expect("expire");
    assert_eq!((expired.removed, expired.tracked), (0, 2), "both are remembered");
    assert_eq!(living(&mut lab), 2, "closed ones fill the table too");
    connection.open(&mut lab);
    connection.close(&mut lab);
    let expired = lab
        .kernel()
        .expire(monotonic_now() + Duration::from_secs(62))
        .expect("expire");
    assert_eq!((expired.removed, expired.tracked), (2, 0));
}

/// What is closed gives way when the table is full of what lives.
#[test]
fn a_full_table_takes_from_what_is_closed() {
    let limits = Limits {
        max_flows: 64,
        ..Limits::default()
    };
    let mut lab = lab(limits);
    for number in 0..8 {
        let connection = Connection::new(number);
        connection.open(&mut lab);
        connection.close(&mut lab);
    }
    for number in 8..64 {
        Connection::new(number).open(&mut lab);
    }
    assert_eq!(
        Connection::new(64).send(&mut lab, OUT, SYN, 100, 0),
        Verdict::Deny,
        "56 that live and eight that are closed fill the table"
    );
    let expired = lab
        .kernel()
        .expire(monotonic_now() + Duration::from_secs(2))
        .expect("expire");
    assert_eq!((expired.removed, expired.tracked), (8, 56));
    let ends: Vec<_> = expired.records.iter().map(|record| record.end).collect();
    assert_eq!(ends, [END_CLOSED; 8]);
    for number in 64..72 {
        Connection::new(number).open(&mut lab);
    }
    for number in 8..72 {
        Connection::new(number).pass(&mut lab, &[(IN, ACK, 501, 101)]);
    }
}
