//! Two large policies that take turns while packets open connections: nothing is judged by anything but one of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use ebpf_loader::{Datapath, FlowRecord, Reason};
use nix::sys::socket::{MsgFlags, sendto};
use policies_ir::tables::{
    Direction, EndpointTables, IdentityId, NodeTables, Packet, RuleId, Service, SourceClass, Verdict,
    VerdictEntry, VerdictKey, lookup,
};

use crate::{
    frames::{Ends, TCP, UDP, frame, tcp, udp},
    lab::ENDPOINT,
    link::{Pod, raw_socket},
};

const POD: &str = "10.7.0.2";
const PEERS: u16 = 100;
const PORTS: u16 = 100;
/// The port in which the policies differ: one allows the first at peer 0, the other the second.
const DIFFERENT: [u16; 2] = [20_000, 20_001];
/// Flips of an ordinary run; `PALISADE_TEST_FLIPS` asks for more. Two thousand take ten minutes.
const FLIPS: usize = 40;

fn peer(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 9, high, low).into()
}

/// Ten thousand rules, each allowing one port of one peer. The two policies number peers and rules in opposite orders,
/// so that whoever mixes addresses, entries or directions of both is caught at any port, not only at the one in which
/// they differ.
fn policy(which: usize) -> NodeTables {
    let first = if which == 0 { 0 } else { 20_000 };
    let mut tables = NodeTables::default();
    let mut entries = EndpointTables::default();
    let mut rule = 64 + first;
    for number in 0..PEERS {
        let id = if which == 0 { number + 1 } else { PEERS - number };
        let id = IdentityId(id.into());
        tables.identities.insert(peer(number).into(), id);
        for port in 0..PORTS {
            let special = number == 0 && port == 0;
            let port = if special {
                DIFFERENT.get(which).copied().expect("two policies")
            } else {
                10_000 + port
            };
            for protocol in [TCP, UDP] {
                let key = VerdictKey {
                    peer: id,
                    direction: if protocol == TCP {
                        Direction::Ingress
                    } else {
                        Direction::Egress
                    },
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
    tables.endpoints.insert(ENDPOINT, entries.into());
    tables
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
        protocol: record.protocol,
        source_port: record.source_port,
        port: record.destination_port,
    };
    let entry = lookup(policy, ENDPOINT, &packet);
    (u8::from(entry.verdict == Verdict::Allow), entry.rule.0)
}

/// Packets that open flows, from and to the pod, to ports that both policies allow, one allows, or neither does.
fn send_until(stop: &AtomicBool) -> usize {
    let (socket, interface) = raw_socket();
    let mut sent = 0;
    let mut source_port = 1024_u16;
    while !stop.load(Ordering::Relaxed) {
        for port in [10_001, DIFFERENT[0], DIFFERENT[1], 30_000] {
            source_port = source_port.checked_add(1).unwrap_or(1024);
            let number = if port == 10_001 { source_port % PEERS } else { 0 };
            let out = Ends {
                source: POD.parse().expect("an address"),
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
fn packets_meet_one_of_two_large_policies_and_nothing_else() {
    let policies = [policy(0), policy(1)];
    let size = |policy: &NodeTables| policy.endpoints.get(&ENDPOINT).map(|own| own.verdicts.len());
    assert_eq!(
        policies.each_ref().map(size),
        [Some(20_000); 2],
        "ten thousand rules each way"
    );
    let flips = std::env::var("PALISADE_TEST_FLIPS").map_or(FLIPS, |text| text.parse().expect("a number"));
    let mut pod = Pod::new();
    pod.attach();
    // Packets to the peers end here: the test reads verdicts, nobody answers.
    crate::link::run("ip route add blackhole 10.9.0.0/16");
    let mut changes = BTreeMap::new();
    let mut flip = |pod: &mut Pod, which: usize| {
        let policy = policies.get(which).expect("two policies");
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
        let mut records = Vec::new();
        loop {
            match source.next(Duration::from_millis(20)).expect("read the ring") {
                Some(record) => records.push(record),
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
    // The other direction, through the same program from this thread, between the halves of each pair of flips.
    let (mut port, mut denied) = (0, 0);
    let back = |port: u16, to: u16| {
        let ends = Ends {
            source: peer(port % PEERS),
            destination: POD.parse().expect("an address"),
        };
        frame(ends, TCP, &tcp(port, to, crate::frames::SYN))
    };
    for number in 1..=flips {
        flip(&mut pod, number % 2);
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
        if number % 4 == 0 {
            // Room for new flows and new entries.
            pod.lab.kernel().expire(Duration::MAX).expect("expire");
        }
    }
    stop.store(true, Ordering::Relaxed);
    let sent = sent.recv().expect("the sender ends");
    let records = reader.join().expect("the reader ends");

    let mut judged = BTreeMap::<_, usize>::new();
    for record in records
        .iter()
        .filter(|record| record.reason == Reason::Policy as u8)
    {
        let which = changes.get(&record.epoch).expect("a change that was made");
        let policy = policies.get(*which).expect("two policies");
        assert_eq!(
            (record.verdict, record.rule),
            expected(policy, record),
            "{record:?}"
        );
        *judged
            .entry((*which, record.verdict, record.direction))
            .or_default() += 1;
    }
    println!(
        "{sent} packets sent, {} reported, {flips} flips: {judged:?}",
        records.len()
    );
    assert!(denied >= flips, "port 30,000 is always denied");
    for which in [0, 1] {
        for verdict in [0, 1] {
            for direction in [0, 1] {
                let count = judged.get(&(which, verdict, direction)).copied().unwrap_or(0);
                assert!(count > 10, "policy {which} gave verdict {verdict} {count} times");
            }
        }
    }
}
