//! Large policies that take turns while packets open connections: nothing is judged by anything but one of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use ebpf_abi::Address;
use ebpf_loader::{Datapath, FlowRecord, Reason};
use nix::sys::socket::{MsgFlags, sendto};
use policies_ir::tables::{
    Direction, EndpointTables, IdentityId, InsideClass, Insides, NodeTables, Packet, RuleId, Service,
    SourceClass, Verdict, VerdictEntry, VerdictKey, lookup,
};

use crate::{
    frames::{Ends, TCP, UDP, frame, tcp, udp},
    lab::{ENDPOINT, ip},
    link::{Pod, raw_socket},
};

const POD: [&str; 2] = ["10.7.0.2", "fd07::2"];
const PEERS: u16 = 100;
const PORTS: u16 = 100;
/// The first peer of each family, about which neighbouring policies differ.
const FIRST: u16 = 2;
/// The port in which they differ: one allows the first at those peers, the other the second.
const DIFFERENT: [u16; 2] = [20_000, 20_001];
/// Flips of an ordinary run, of which most take 4 ms and those that write everything 50; `PALISADE_TEST_FLIPS` asks for
/// more.
const FLIPS: usize = 4000;
/// After so many flips that write little comes one that writes everything.
const LIGHT: usize = 25;

/// Every other peer has an IPv6 address.
fn peer(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    match number % 2 {
        0 => Ipv4Addr::new(10, 9, high, low).into(),
        _ => Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, number).into(),
    }
}

/// The pod's address of the family of a peer.
fn pod_for(peer: IpAddr) -> IpAddr {
    let [v4, v6] = POD;
    let own = if peer.is_ipv4() { v4 } else { v6 };
    own.parse().expect("an address")
}

/// Ten thousand rules, each allowing one port of one peer, in two orders of two policies each. Those of one order have the
/// same entries, and differ in the class of the first peers: a flip is a write for each of those. The two orders number
/// peers and rules in opposite ways, so that whoever mixes addresses, entries or directions of both is caught at any port,
/// not only at the one in which they differ: a flip between them writes everything.
fn policies(order: usize) -> [NodeTables; 2] {
    let first = if order == 0 { 0 } else { 20_000 };
    // The last ones are the first peers' of the second policy.
    let classes = PEERS + FIRST;
    let class = |number: u16| IdentityId(u32::from(if order == 0 { number + 1 } else { classes - number }));
    // And what the pod's own addresses are to the rules is another number in each.
    let (own, inside) = (
        IdentityId(u32::from(classes) + 1),
        InsideClass(if order == 0 { 1 } else { 2 }),
    );
    let insides = Insides {
        ingress: inside,
        egress: inside,
    };
    let mut entries = EndpointTables {
        insides: [(own, insides)].into(),
        ..EndpointTables::default()
    };
    let mut rule = 64 + first;
    for number in 0..classes {
        for port in 0..PORTS {
            let port = match (number, port) {
                (0..FIRST, 0) => DIFFERENT[0],
                (PEERS.., 0) => DIFFERENT[1],
                _ => 10_000 + port,
            };
            for protocol in [TCP, UDP] {
                let key = VerdictKey {
                    peer: class(number),
                    direction: if protocol == TCP {
                        Direction::Ingress
                    } else {
                        Direction::Egress
                    },
                    inside,
                    source: SourceClass(0),
                    service: Service::Ports {
                        protocol,
                        port,
                        prefix_bits: 16,
                    },
                };
                let entry = VerdictEntry {
                    verdict: Verdict::Allow,
                    rule: RuleId(rule),
                };
                entries.verdicts.insert(key, entry);
            }
            rule += 1;
        }
    }
    let entries = Arc::new(entries);
    [0, PEERS].map(|of_first| {
        let class_of = |number| class(if number < FIRST { of_first + number } else { number });
        NodeTables {
            identities: (0..PEERS)
                .map(|number| (peer(number).into(), class_of(number)))
                .chain(POD.map(|address| (ip(address).into(), own)))
                .collect(),
            endpoints: [(ENDPOINT, Arc::clone(&entries))].into(),
            ..NodeTables::default()
        }
    })
}

/// What the policy says about the packet that the record is of.
fn expected(policy: &NodeTables, record: &FlowRecord) -> (u8, u32) {
    let egress = record.direction == 1;
    let packet = Packet {
        direction: if egress {
            Direction::Egress
        } else {
            Direction::Ingress
        },
        peer: if egress { record.destination } else { record.source }.to_ip(),
        inside: Some(if egress { record.source } else { record.destination }.to_ip()),
        protocol: record.protocol,
        source_port: record.source_port,
        port: record.destination_port,
    };
    let entry = lookup(policy, ENDPOINT, &packet);
    (u8::from(entry.verdict == Verdict::Allow), entry.rule.0)
}

/// What is the same about records that are told apart by their source port only, and by when they came.
type Kind = (u32, u8, u8, u32, Address, Address, u16);

fn kind(record: &FlowRecord) -> Kind {
    (
        record.epoch,
        record.direction,
        record.verdict,
        record.rule,
        record.source,
        record.destination,
        record.destination_port,
    )
}

/// Packets that open flows, from and to the pod, to ports that both policies allow, one allows, or neither does.
fn send_until(stop: &AtomicBool) -> usize {
    let (socket, interface) = raw_socket();
    let mut sent = 0;
    let mut source_port = 1024_u16;
    while !stop.load(Ordering::Relaxed) {
        for port in [10_001, DIFFERENT[0], DIFFERENT[1], 30_000] {
            source_port = source_port.checked_add(1).unwrap_or(1024);
            let number = source_port % if port == 10_001 { PEERS } else { FIRST };
            let out = Ends {
                source: pod_for(peer(number)),
                destination: peer(number),
            };
            let mut packet = frame(out, UDP, &udp(source_port, port));
            packet.splice(..12, [2, 0, 0, 0, 0, 0xfe, 2, 0, 0, 0, 0, 1]);
            sendto(socket.as_raw_fd(), &packet, &interface, MsgFlags::empty()).expect("send the frame");
            sent += 1;
        }
    }
    sent
}

#[test]
fn packets_meet_one_of_several_large_policies_and_nothing_else() {
    let policies = [policies(0), policies(1)].concat();
    for policy in &policies {
        let entries = policy.endpoints.get(&ENDPOINT).map(|own| own.verdicts.len());
        assert_eq!(
            entries,
            Some(20_400),
            "ten thousand rules each way, and those of the other's first peers"
        );
    }
    let flips = std::env::var("PALISADE_TEST_FLIPS").map_or(FLIPS, |text| text.parse().expect("a number"));
    let mut pod = Pod::new();
    pod.attach();
    // Packets to the peers end here: the test reads verdicts, nobody answers.
    crate::link::run("ip route add blackhole 10.9.0.0/16");
    crate::link::run("ip -6 route add blackhole fd09::/64");
    let mut changes = BTreeMap::new();
    let mut flip = |pod: &mut Pod, which: usize| {
        let policy = policies.get(which).expect("a policy");
        let synced = pod.lab.kernel().sync(policy).expect("sync");
        let change = *synced
            .endpoints
            .get(&ENDPOINT)
            .expect("the endpoint is programmed");
        assert_eq!(changes.insert(change, which), None, "every flip is a change");
    };
    flip(&mut pod, 0);

    let stop = Arc::new(AtomicBool::new(false));
    let mut source = pod.lab.source.take().expect("the ring");
    let until = Arc::clone(&stop);
    let reader = std::thread::spawn(move || {
        let mut records = BTreeMap::<Kind, (FlowRecord, usize)>::new();
        loop {
            match source.next(Duration::from_millis(20)).expect("read the ring") {
                Some(record) if record.reason == Reason::Policy as u8 => {
                    records.entry(kind(&record)).or_insert((record, 0)).1 += 1;
                }
                Some(_) => {}
                None if until.load(Ordering::Relaxed) => return records,
                None => {}
            }
        }
    });
    let until = Arc::clone(&stop);
    let (done, sent) = mpsc::channel();
    pod.jobs
        .send(Box::new(move || {
            done.send(send_until(&until)).expect("the test waits");
        }))
        .expect("the pod's thread lives");
    // The other direction, through the same program from this thread, after each flip.
    let (mut port, mut denied) = (0, 0);
    let back = |port: u16, to: u16| {
        let number = port % if to == DIFFERENT[0] { FIRST } else { PEERS };
        let ends = Ends {
            source: peer(number),
            destination: pod_for(peer(number)),
        };
        frame(ends, TCP, &tcp(port, to, crate::frames::SYN))
    };
    let mut took = [Duration::ZERO; 2];
    for number in 1..=flips {
        let started = Instant::now();
        flip(&mut pod, number % 2 + number / LIGHT % 2 * 2);
        took[usize::from(number % LIGHT == 0)] += started.elapsed();
        for to in [10_001, DIFFERENT[0], 30_000] {
            port = port % 60_000 + 1;
            let ifindex = pod.ifindex;
            let verdict = pod
                .lab
                .kernel()
                .run_frame(Direction::Ingress, ifindex, &back(port, to))
                .expect("run the program");
            denied += usize::from(verdict == Verdict::Deny);
        }
        if number % 25 == 0 {
            // Room for new flows and new entries.
            pod.lab.kernel().expire(Duration::MAX).expect("expire");
        }
    }
    stop.store(true, Ordering::Relaxed);
    let sent = sent.recv().expect("the sender ends");
    let records = reader.join().expect("the reader ends");

    let mut judged = BTreeMap::<_, usize>::new();
    let mut reported = 0;
    for (record, count) in records.values() {
        let which = changes.get(&record.epoch).expect("a change that was made");
        let policy = policies.get(*which).expect("a policy");
        assert_eq!(
            (record.verdict, record.rule),
            expected(policy, record),
            "{record:?}"
        );
        reported += count;
        *judged
            .entry((*which, record.verdict, record.direction))
            .or_default() += count;
    }
    println!("{sent} packets sent, {reported} reported, {flips} flips, light and heavy {took:?}: {judged:?}");
    assert!(denied >= flips, "port 30,000 is always denied");
    for which in 0..policies.len() {
        for verdict in [0, 1] {
            for direction in [0, 1] {
                let count = judged.get(&(which, verdict, direction)).copied().unwrap_or(0);
                assert!(count > 10, "policy {which} gave verdict {verdict} {count} times");
            }
        }
    }
}
