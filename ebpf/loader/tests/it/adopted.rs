//! Connections that a host had before it got an endpoint: whoever may have them keeps them, and nobody gets one by posing.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use ebpf_abi::MAX_UNESTABLISHED_PER_BUCKET;
use ebpf_loader::{Attachment, Datapath, HostLink, Reason};
use nix::sched::{CloneFlags, setns, unshare};
use policies_ir::tables::{Direction, Verdict};

use crate::{
    frames::{ACK, Ends, FIN, ICMP, RST, SYN, TCP, UDP, chunk, frame, icmp, segment, tcp, udp},
    host::{ALLOW, CLIENT, DENY, EGRESS, Entry, HOST, INGRESS, LOCAL, endpoint, host_link, port, tables},
    lab::{LOOPBACK, Lab, attached_both_ways, ip},
    link::{Job, run},
};

const SCTP: u8 = 132;
/// SSH of the host is for everyone, and the host may ask servers of HTTPS.
const ENTRIES: [Entry; 4] = [
    (INGRESS, port(TCP, 22), ALLOW),
    (EGRESS, port(TCP, 443), ALLOW),
    (INGRESS, port(SCTP, 22), ALLOW),
    (EGRESS, port(SCTP, 443), ALLOW),
];

/// A host whose endpoint has these tables from now on.
struct Host(Lab);

impl Host {
    fn new() -> Self {
        let mut lab = Lab::new();
        let link = host_link(Some(endpoint(LOCAL)), None);
        lab.kernel().attach_host(&link).expect("attach");
        lab.kernel().sync(&tables(&[(LOCAL, &ENTRIES)])).expect("sync");
        Self(lab)
    }

    fn run(&mut self, direction: Direction, protocol: u8, payload: &[u8]) -> Verdict {
        let ends = match direction {
            Direction::Ingress => Ends::new(CLIENT, HOST),
            Direction::Egress => Ends::new(HOST, CLIENT),
        };
        let frame = frame(ends, protocol, payload);
        self.0
            .kernel()
            .run_host_frame(direction, LOOPBACK, 0, &frame)
            .expect("run the program")
    }

    fn comes(&mut self, payload: &[u8]) -> Verdict {
        self.run(INGRESS, TCP, payload)
    }

    fn leaves(&mut self, payload: &[u8]) -> Verdict {
        self.run(EGRESS, TCP, payload)
    }

    /// Of each flow its port at the host, that at the other end, who opened it, and whether it is established.
    fn flows(&mut self) -> Vec<(u16, u16, Direction, bool)> {
        let flows = self.0.kernel().tracked_flows().expect("flows");
        let told = flows.iter().map(|flow| {
            assert_eq!(flow.verdict, ALLOW);
            (flow.local_port, flow.peer_port, flow.origin, flow.established)
        });
        let mut told: Vec<_> = told.collect();
        told.sort_by_key(|flow| (flow.0, flow.1));
        told
    }
}

#[test]
fn a_connection_from_before_is_judged_as_either_end_may_have_opened_it() {
    let mut host = Host::new();
    for (direction, from, to, expected) in [
        (INGRESS, 1000, 22, ALLOW),
        (EGRESS, 22, 1001, ALLOW),
        (INGRESS, 443, 2000, ALLOW),
        (EGRESS, 2001, 443, ALLOW),
        // Neither end may have opened these.
        (INGRESS, 1000, 23, DENY),
        (EGRESS, 23, 1000, DENY),
        (INGRESS, 22, 1000, DENY),
        (EGRESS, 1000, 22, DENY),
        (EGRESS, 443, 1000, DENY),
        (INGRESS, 1000, 443, DENY),
    ] {
        let found = host.run(direction, TCP, &tcp(from, to, ACK));
        assert_eq!(found, expected, "{direction:?} from {from} to {to}");
        let record = host.0.record().expect("told of");
        if expected == DENY {
            assert_eq!(Reason::from_code(record.reason), Some(Reason::NoConnection));
            continue;
        }
        // It is told of as it was opened, whichever packet was seen first.
        let (server, client) = if from == 22 || from == 443 {
            (from, to)
        } else {
            (to, from)
        };
        assert_eq!((record.source_port, record.destination_port), (client, server));
        let by_host = server == 443;
        assert_eq!(record.direction, u8::from(by_host));
        assert_eq!(record.source.to_ip(), ip(if by_host { HOST } else { CLIENT }));
    }
    let expected = [
        (22, 1000, INGRESS, false),
        (22, 1001, INGRESS, false),
        (2000, 443, EGRESS, false),
        (2001, 443, EGRESS, false),
    ];
    assert_eq!(host.flows(), expected);

    // Where policy allows both, the lower port is the server's.
    let both = [
        (INGRESS, port(TCP, 22), ALLOW),
        (EGRESS, port(TCP, 22), ALLOW),
        (EGRESS, port(TCP, 1000), ALLOW),
        (INGRESS, port(TCP, 1000), ALLOW),
    ];
    let mut host = Host::new();
    host.0.kernel().sync(&tables(&[(LOCAL, &both)])).expect("sync");
    assert_eq!(host.leaves(&tcp(22, 1000, ACK)), ALLOW);
    assert_eq!(host.comes(&tcp(22, 1000, ACK)), ALLOW);
    assert_eq!(
        host.flows(),
        [(22, 1000, INGRESS, false), (1000, 22, EGRESS, false)]
    );
    // What policy denies from now on ends as it does for all others.
    host.0
        .kernel()
        .sync(&tables(&[(LOCAL, &both[1..])]))
        .expect("sync");
    assert_eq!(host.leaves(&tcp(22, 1000, ACK)), DENY);
    assert_eq!(host.comes(&tcp(22, 1000, ACK)), ALLOW);
}

#[test]
fn what_opens_or_ends_a_connection_is_not_from_its_middle() {
    let mut host = Host::new();
    for flags in [RST, RST | ACK, SYN | ACK, FIN] {
        assert_eq!(host.comes(&tcp(1000, 22, flags)), DENY, "{flags:#x}");
        assert_eq!(host.comes(&tcp(443, 1000, flags)), DENY, "{flags:#x}");
        assert_eq!(host.leaves(&tcp(22, 1000, flags)), DENY, "{flags:#x}");
        assert_eq!(host.leaves(&tcp(1000, 443, flags)), DENY, "{flags:#x}");
    }
    // INIT ACK, ABORT, COOKIE ECHO, COOKIE ACK, SHUTDOWN COMPLETE.
    for kind in [2, 6, 10, 11, 14] {
        assert_eq!(
            host.run(INGRESS, SCTP, &chunk(1000, 22, 7, kind, 0, 9)),
            DENY,
            "{kind}"
        );
        assert_eq!(
            host.run(EGRESS, SCTP, &chunk(1000, 443, 7, kind, 0, 9)),
            DENY,
            "{kind}"
        );
    }
    assert_eq!(host.run(INGRESS, ICMP, &icmp(0, 0, 7)), DENY);
    assert_eq!(host.run(INGRESS, UDP, &udp(22, 1000)), DENY);
    assert_eq!(host.flows(), []);

    // Posing as the middle of a connection of the other direction opens none in this one.
    assert_eq!(host.comes(&tcp(443, 1000, ACK)), ALLOW);
    assert_eq!(host.comes(&tcp(443, 1000, SYN)), DENY);
    assert_eq!(host.flows(), [(1000, 443, EGRESS, false)]);
    // The host's stack knows of no such connection, and says so: that ends it.
    assert_eq!(host.leaves(&segment(1000, 443, RST, 0, 0, &[])), ALLOW);
    let fill = |host: &mut Host| {
        let fill = host.0.kernel().counters().expect("counters").fill;
        fill.iter()
            .find(|fill| fill.map == "FLOWS")
            .expect("the map")
            .entries
    };
    assert_eq!(fill(&mut host), 0, "it takes nobody's share");
    // One that may be opened is, in place of what somebody has made up.
    assert_eq!(host.comes(&segment(1000, 22, ACK, 1, 1, &[])), ALLOW);
    assert_eq!(host.comes(&segment(1000, 22, SYN, 500, 0, &[])), ALLOW);
    assert_eq!(host.leaves(&segment(22, 1000, SYN | ACK, 900, 501, &[])), ALLOW);
    assert_eq!(host.comes(&segment(1000, 22, ACK, 501, 901, &[])), ALLOW);
    assert!(host.flows().contains(&(22, 1000, INGRESS, true)));
}

#[test]
fn only_the_other_end_can_show_that_there_is_a_connection() {
    let mut host = Host::new();
    // Data on its way in both directions: the answer to what is seen first comes late.
    assert_eq!(
        host.comes(&segment(1000, 22, ACK, 5000, 90_000, &[7; 100])),
        ALLOW
    );
    assert_eq!(
        host.comes(&segment(1000, 22, ACK, 5100, 90_000, &[7; 100])),
        ALLOW
    );
    let established = [(22, 1000, INGRESS, true)];
    assert_eq!(host.flows(), [(22, 1000, INGRESS, false)]);
    for (sequence, acknowledged) in [
        (90_000, 4_900),
        (90_000, 5_201),
        (90_000, 4_000_000_000),
        (3_000_000_000, 5_100),
    ] {
        let answer = segment(22, 1000, ACK, sequence, acknowledged, &[7; 10]);
        assert_eq!(host.leaves(&answer), ALLOW);
        assert_eq!(
            host.flows(),
            [(22, 1000, INGRESS, false)],
            "{sequence} {acknowledged}"
        );
    }
    assert_eq!(
        host.leaves(&segment(22, 1000, ACK, 90_100, 5_200, &[7; 10])),
        ALLOW
    );
    assert_eq!(host.flows(), established);
    // From here on it is a flow like others: a reset out of place ends nothing, one that is believed does.
    assert_eq!(host.comes(&segment(1000, 22, RST, 4000, 0, &[])), ALLOW);
    assert_eq!(host.comes(&segment(1000, 22, ACK, 5200, 90_110, &[])), ALLOW);
    assert_eq!(host.flows(), established);
    assert_eq!(
        host.comes(&segment(1000, 22, FIN | ACK, 5200, 90_110, &[])),
        ALLOW
    );
    assert_eq!(
        host.leaves(&segment(22, 1000, FIN | ACK, 90_110, 5201, &[])),
        ALLOW
    );
    assert_eq!(host.comes(&segment(1000, 22, ACK, 5201, 90_111, &[])), ALLOW);
    let day = ebpf_loader::monotonic_now() + Duration::from_secs(61);
    assert_eq!(host.0.kernel().expire(day).expect("expire").removed, 1);

    // The same from the other side.
    assert_eq!(host.leaves(&segment(22, 1001, ACK, 1, 1, &[])), ALLOW);
    assert_eq!(host.leaves(&segment(22, 1001, ACK, 1, 1, &[])), ALLOW);
    assert_eq!(host.flows(), [(22, 1001, INGRESS, false)]);
    assert_eq!(host.comes(&segment(1001, 22, ACK, 1, 1, &[])), ALLOW);
    assert_eq!(host.flows(), [(22, 1001, INGRESS, true)]);
}

/// The last words of a connection that nobody remembers are sent again, and the other end acknowledges them.
#[test]
fn what_is_over_is_not_remembered_for_a_day() {
    let mut host = Host::new();
    assert_eq!(host.comes(&segment(1000, 22, FIN | ACK, 500, 900, &[])), ALLOW);
    assert_eq!(host.leaves(&segment(22, 1000, ACK, 900, 501, &[])), ALLOW);
    assert_eq!(host.flows(), [(22, 1000, INGRESS, true)]);
    let later = ebpf_loader::monotonic_now() + Duration::from_secs(601);
    assert_eq!(host.0.kernel().expire(later).expect("expire").removed, 1);
}

#[test]
fn associations_from_before_live_on() {
    const DATA: u8 = 0;
    const ABORT: u8 = 6;
    let mut host = Host::new();
    assert_eq!(host.run(INGRESS, SCTP, &chunk(1000, 23, 7, DATA, 0, 0)), DENY);
    assert_eq!(host.run(INGRESS, SCTP, &chunk(1000, 22, 7, DATA, 0, 0)), ALLOW);
    assert_eq!(host.flows(), [(22, 1000, INGRESS, false)]);
    assert_eq!(host.run(EGRESS, SCTP, &chunk(22, 1000, 8, DATA, 0, 0)), ALLOW);
    assert_eq!(host.flows(), [(22, 1000, INGRESS, true)]);
    // A host that knows of none says so, with the tag that it was sent.
    assert_eq!(host.run(INGRESS, SCTP, &chunk(443, 1000, 5, DATA, 0, 0)), ALLOW);
    let counted = |host: &mut Host| {
        let fill = host.0.kernel().counters().expect("counters").fill;
        fill.iter()
            .find(|fill| fill.map == "FLOWS")
            .expect("the map")
            .entries
    };
    assert_eq!(counted(&mut host), 2);
    assert_eq!(host.run(EGRESS, SCTP, &chunk(1000, 443, 6, ABORT, 1, 0)), ALLOW);
    assert_eq!(counted(&mut host), 2, "another tag");
    assert_eq!(host.run(EGRESS, SCTP, &chunk(1000, 443, 5, ABORT, 1, 0)), ALLOW);
    assert_eq!(counted(&mut host), 1);
}

/// Whoever poses as the answer to flows that the host opens takes from what is left for its own peers.
#[test]
fn made_up_answers_take_nothing_from_what_the_host_opens() {
    let bucket = u16::try_from(MAX_UNESTABLISHED_PER_BUCKET).expect("a small share");
    let mut host = Host::new();
    for port in 0..bucket {
        assert_eq!(host.comes(&tcp(443, 2000 + port, ACK)), ALLOW, "{port}");
    }
    assert_eq!(host.comes(&tcp(443, 2000 + bucket, ACK)), DENY);
    // Counted anew the same.
    host.0
        .kernel()
        .expire(ebpf_loader::monotonic_now())
        .expect("expire");
    assert_eq!(host.comes(&tcp(443, 2000 + bucket, ACK)), DENY);
    assert_eq!(host.leaves(&tcp(1000, 443, SYN)), ALLOW);
    // Once the host has shown that there is one, it takes no such share.
    assert_eq!(host.leaves(&segment(2000, 443, ACK, 0, 0, &[])), ALLOW);
    assert_eq!(host.comes(&tcp(443, 2000 + bucket, ACK)), ALLOW);
    assert_eq!(host.comes(&tcp(443, 2001 + bucket, ACK)), DENY);
    // What is dropped for want of room in this direction is told as that.
    let records: Vec<_> = std::iter::from_fn(|| host.0.record()).collect();
    let last = records.last().expect("told of");
    assert_eq!(Reason::from_code(last.reason), Some(Reason::TooManyFlows));
}

/// A machine on a wire to the host, with connections that both ends opened before the host got its endpoint.
fn check_real_connections(attachment: Attachment) {
    const PATIENCE: Duration = Duration::from_secs(10);
    const SILENCE: Duration = Duration::from_millis(300);
    const OUTSIDE: &str = "192.0.2.9";
    let mut lab = Lab::attached(attachment);
    let host = File::open("/proc/thread-self/ns/net").expect("the host's namespace");
    let (jobs, queue) = mpsc::channel::<Job>();
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let thread = fs::read_link("/proc/thread-self").expect("a thread");
        ready.send(thread).expect("the test waits");
        queue.into_iter().for_each(|job| job());
    });
    let outside = is_ready.recv().expect("the thread lives");
    let id = outside
        .file_name()
        .expect("a thread id")
        .to_string_lossy()
        .into_owned();
    run("ip link set lo up");
    run(&format!("ip link add uplink type veth peer name eth0 netns {id}"));
    run(&format!("ip addr add {HOST}/24 dev uplink"));
    run("ip link set uplink up");
    let namespace = File::open(format!("/proc/{}/ns/net", outside.display())).expect("the namespace");
    setns(&namespace, CloneFlags::CLONE_NEWNET).expect("go outside");
    run(&format!("ip addr add {OUTSIDE}/24 dev eth0"));
    run("ip link set eth0 up");
    setns(&host, CloneFlags::CLONE_NEWNET).expect("come back");

    let (ends, far) = mpsc::channel();
    let job = move || {
        let ear = TcpListener::bind((OUTSIDE, 443)).expect("listen");
        ends.send(None).expect("the test waits");
        for port in [22, 22, 23] {
            let address: SocketAddr = format!("{HOST}:{port}").parse().expect("an address");
            let made = TcpStream::connect_timeout(&address, PATIENCE).expect("connect");
            ends.send(Some(made)).expect("the test waits");
        }
        for _ in 0..2 {
            ends.send(Some(ear.accept().expect("accept").0))
                .expect("the test waits");
        }
    };
    let [ssh, other] = [22, 23].map(|port| TcpListener::bind((HOST, port)).expect("listen"));
    jobs.send(Box::new(job)).expect("the thread lives");
    let listening = far.recv_timeout(PATIENCE).expect("it listens");
    assert!(listening.is_none());
    let mut near: Vec<TcpStream> = [&ssh, &ssh, &other]
        .map(|ear| ear.accept().expect("accept").0)
        .into();
    for _ in 0..2 {
        near.push(TcpStream::connect((OUTSIDE, 443)).expect("connect"));
    }
    let far: Vec<TcpStream> = (0..5)
        .map(|_| far.recv_timeout(PATIENCE).expect("an end").expect("a connection"))
        .collect();
    let passes = |mut from: &TcpStream, mut to: &TcpStream, patience| {
        to.set_read_timeout(Some(patience)).expect("a time limit");
        from.write_all(b"x").expect("send");
        match to.read(&mut [0; 8]) {
            Ok(1) => true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            other => panic!("{other:?}"),
        }
    };

    let link = HostLink {
        ifindex: nix::net::if_::if_nametoindex("uplink").expect("the interface"),
        ..host_link(Some(endpoint(LOCAL)), None)
    };
    lab.kernel().attach_host(&link).expect("attach");
    lab.kernel().sync(&tables(&[(LOCAL, &ENTRIES)])).expect("sync");
    // Either end goes on first.
    for (number, from_host) in [(0, false), (1, true), (3, true), (4, false)] {
        let (first, second) = match from_host {
            true => (&near[number], &far[number]),
            false => (&far[number], &near[number]),
        };
        for _ in 0..2 {
            assert!(passes(first, second, PATIENCE), "connection {number}");
            assert!(passes(second, first, PATIENCE), "connection {number}, back");
        }
    }
    assert!(!passes(&far[2], &near[2], SILENCE), "port 23");
    assert!(!passes(&near[2], &far[2], SILENCE), "port 23");
    let flows = lab.kernel().tracked_flows().expect("flows");
    let known: Vec<_> = flows.iter().filter(|flow| flow.protocol == TCP).collect();
    assert_eq!(known.len(), 4);
    assert!(known.iter().all(|flow| flow.established), "{known:?}");
    let opened = |direction| known.iter().filter(|flow| flow.origin == direction).count();
    assert_eq!((opened(INGRESS), opened(EGRESS)), (2, 2));
}

attached_both_ways! {
    fn connections_from_before_a_host_endpoint_live_on(attachment) {
        check_real_connections(attachment);
    }
}
