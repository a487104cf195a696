//! The same question to the reference, to the compiled tables and to the kernel.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
};

use ebpf_loader::{Datapath, EndpointLink, Reason};
use policies_compiler::{compile, compile_policies, reference};
use policies_ir::{
    cluster::Cluster,
    decide::decide,
    policy::PolicySet,
    tables::{DecidedBy, Direction, EndpointId, NodeTables, Packet, Verdict, lookup},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use testkit::policies::{kubernetes, tiered};

use crate::{
    frames::{self, Ends, ICMP, ICMPV6, SCTP, SYN, TCP, UDP, frame},
    lab::{LOOPBACK, Lab, POD_MAC},
};

/// What the kernel reported: verdict, and the rule's name through the tables.
type Judged = (Verdict, Option<DecidedBy>);

#[test]
fn kubernetes_policies_judge_alike_in_reference_tables_and_kernel() {
    let lab = RefCell::new(Lab::new());
    let judged = Cell::new(0);
    runner(256)
        .run(&kubernetes(), |scenario| {
            let view = &scenario.view;
            let tables = compile(view).tables;
            let expected = |endpoint, packet: &Packet| {
                reference(view, endpoint, packet)
                    .map(|decision| (decision.verdict, Some(decision.decided_by)))
            };
            let more = compare(
                &mut lab.borrow_mut(),
                &view.cluster(),
                &tables,
                &scenario.packets,
                expected,
            )?;
            judged.set(judged.get() + more);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let judged = judged.get();
    println!("{judged} packets judged alike");
    assert!(
        judged > 1000,
        "the generator makes packets that can be sent: {judged}"
    );
}

#[test]
fn tiers_judge_alike_in_reference_tables_and_kernel() {
    let lab = RefCell::new(Lab::new());
    let judged = Cell::new(0);
    runner(256)
        .run(&tiered(), |scenario| {
            let (cluster, policies) = (&scenario.cluster, &scenario.policies);
            let tables = compile_policies(cluster, policies);
            let expected = |endpoint, packet: &Packet| by_reference(cluster, policies, endpoint, packet);
            let more = compare(
                &mut lab.borrow_mut(),
                cluster,
                &tables,
                &scenario.packets,
                expected,
            )?;
            judged.set(judged.get() + more);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let judged = judged.get();
    println!("{judged} packets judged alike");
    assert!(
        judged > 1000,
        "the generator makes packets that can be sent: {judged}"
    );
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    })
}

fn by_reference(
    cluster: &Cluster,
    policies: &PolicySet,
    endpoint: EndpointId,
    packet: &Packet,
) -> Option<Judged> {
    let member = cluster
        .members
        .iter()
        .find(|member| member.endpoint == Some(endpoint))?;
    let decision = decide(
        &policies.for_endpoint(&member.workload),
        &cluster.flow(member, packet),
    );
    Some((decision.verdict, Some(decision.decided_by)))
}

/// Sends each packet that can be sent as the first of a flow, and returns how many those were.
fn compare(
    lab: &mut Lab,
    cluster: &Cluster,
    tables: &NodeTables,
    packets: &[(EndpointId, Packet)],
    expected: impl Fn(EndpointId, &Packet) -> Option<Judged>,
) -> Result<usize, TestCaseError> {
    let mut judged = 0;
    for member in &cluster.members {
        let Some(endpoint) = member.endpoint else { continue };
        // One interface serves all endpoints in turn; each takes over from the one before.
        let addresses = [true, false].into_iter().filter_map(|v4| {
            member
                .addresses
                .iter()
                .copied()
                .find(|ip| ip.is_ipv4() == v4 && usable(*ip))
        });
        let link = EndpointLink {
            id: endpoint,
            ifindex: LOOPBACK,
            addresses: addresses.collect(),
            mac: POD_MAC,
        };
        lab.program(&link, tables);
        let only = NodeTables {
            endpoints: tables
                .endpoints
                .get(&endpoint)
                .map(|own| (endpoint, own.clone()))
                .into_iter()
                .collect(),
            rules: Vec::new(),
            ..tables.clone()
        };
        prop_assert_eq!(
            lab.kernel()
                .dump()
                .map_err(|e| TestCaseError::fail(e.to_string()))?,
            only
        );

        for (_, packet) in packets.iter().filter(|(at, _)| *at == endpoint) {
            let Some(frame) = opening_frame(&link.addresses, packet) else {
                continue;
            };
            let by_tables = lookup(tables, endpoint, packet);
            let by_tables = (by_tables.verdict, tables.decided_by(by_tables.rule));
            let by_kernel = by_kernel(lab, tables, packet, &frame);
            prop_assert_eq!(&by_kernel, &by_tables, "the kernel and the tables: {:?}", packet);
            if let Some(by_reference) = expected(endpoint, packet) {
                prop_assert_eq!(
                    &by_kernel,
                    &by_reference,
                    "the kernel and the reference: {:?}",
                    packet
                );
            }
            judged += 1;
        }
    }
    Ok(judged)
}

fn by_kernel(lab: &mut Lab, tables: &NodeTables, packet: &Packet, frame: &[u8]) -> Judged {
    // A flow that an earlier packet of the scenario opened would answer for this one.
    lab.kernel()
        .expire(ebpf_loader::monotonic_now() + std::time::Duration::from_secs(1 << 20))
        .expect("expire");
    let (verdict, record) = lab.judge(packet.direction, frame);
    let record = record.expect("first packets are reported");
    assert_eq!(
        record.reason,
        Reason::Policy as u8,
        "{packet:?} is odd: {record:?}"
    );
    assert_eq!(record.verdict == 1, verdict == Verdict::Allow);
    (
        verdict,
        tables.decided_by(policies_ir::tables::RuleId(record.rule)),
    )
}

/// The packet as a frame that opens a flow; `None` for what no stack sends, or what cannot open one: those have
/// tests of their own.
fn opening_frame(addresses: &[IpAddr], packet: &Packet) -> Option<Vec<u8>> {
    let v4 = packet.peer.is_ipv4();
    let own = addresses.iter().copied().find(|ip| ip.is_ipv4() == v4)?;
    let [kind, code] = packet.port.to_be_bytes();
    let payload = match packet.protocol {
        TCP => frames::tcp(40_000, packet.port, SYN),
        UDP => frames::udp(40_000, packet.port),
        SCTP => frames::sctp(40_000, packet.port),
        ICMP if v4 && !matches!(kind, 0 | 3 | 11 | 12) => frames::icmp(kind, code, 7),
        ICMPV6 if !v4 && !matches!(kind, 1..=4 | 129) => frames::icmp(kind, code, 7),
        ICMP | ICMPV6 => return None,
        // Hop-by-hop options, not a protocol.
        0 if !v4 => return None,
        _ if packet.port == 0 => vec![0; 8],
        _ => return None,
    };
    let out = Ends {
        source: own,
        destination: packet.peer,
    };
    let ends = if packet.direction == Direction::Egress {
        out
    } else {
        out.reversed()
    };
    Some(frame(ends, packet.protocol, &payload))
}

fn usable(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast()
}
