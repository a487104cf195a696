//! The same question to the reference, to the compiled tables and to the kernel.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::IpAddr,
};

use ebpf_loader::{Datapath, EndpointLink, HostEndpoint, HostLink, Reason};
use policies_compiler::{ClusterView, PodView, Source, compile, compile_policies, load_objects, reference};
use policies_ir::{
    cluster::{Cluster, Member},
    decide::decide,
    policy::{PolicySet, WorkloadKind},
    tables::{DecidedBy, Direction, EndpointId, NodeTables, Packet, SourceClass, Verdict, lookup},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use testkit::policies::{
    as_written, define_what_is_mentioned, kubernetes, objects, tiered, with_host_endpoints,
};

use crate::{
    frames::{self, Ends, ICMP, ICMPV6, SCTP, SYN, TCP, UDP, frame},
    lab::{ENDPOINT, LOOPBACK, Lab, POD_MAC, ip, link},
};

/// What the kernel reported: verdict, and the rule's name through the tables.
type Judged = (Verdict, Option<DecidedBy>);
/// How many packets were judged at pods, and how many at host endpoints.
type Counts = [usize; 2];

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
            judged.set(judged.get() + more[0]);
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
    let judged = Cell::new([0; 2]);
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
            judged.set(sum(judged.get(), more));
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let [at_pods, at_hosts] = judged.get();
    println!("{at_pods} packets judged alike at pods and {at_hosts} at host endpoints");
    // Some 360 at host endpoints, with a deviation of 45.
    assert!(
        at_pods > 1000 && at_hosts > 150,
        "the generator makes packets that can be sent: {at_pods}, {at_hosts}"
    );
}

/// The whole way: objects of every kind as they stand in files, through the loader, the compiler and the kernel's maps.
/// The reference is asked about the objects that were written, not about those that were read.
#[test]
fn objects_of_every_kind_judge_alike_from_the_file_to_the_kernel() {
    let lab = RefCell::new(Lab::new());
    let judged = Cell::new([0; 2]);
    runner(128)
        .run(&objects(), |mut scenario| {
            let view = &mut scenario.view;
            define_what_is_mentioned(view);
            let (written, policies) = with_host_endpoints(view);
            let files = as_written(view);
            let sources = files.iter().map(|object| Source {
                origin: "a file",
                object,
            });
            let mut read = load_objects(sources)
                .map_err(|error| TestCaseError::fail(error.to_string()))?
                .view;
            as_the_agent_knows(&mut read, view);
            let (cluster, read) = with_host_endpoints(&read);
            let tables = compile_policies(&cluster, &read.enforced);
            let expected =
                |endpoint, packet: &Packet| by_reference(&written, &policies.enforced, endpoint, packet);
            for v6 in [false, true] {
                let mut packets = scenario.packets.clone();
                packets.retain(|(_, packet)| packet.peer.is_ipv6() == v6);
                let more = compare(&mut lab.borrow_mut(), &cluster, &tables, &packets, expected)?;
                let mut count = judged.get();
                count[usize::from(v6)] += more.iter().sum::<usize>();
                judged.set(count);
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let [v4, v6] = judged.get();
    println!("{v4} packets of IPv4 and {v6} of IPv6 judged alike");
    assert!(
        v4 > 200 && v6 > 100,
        "the generator makes packets that can be sent: {v4}, {v6}"
    );
}

/// What no file says: which pods are here, what is behind services, and what the resolver answered.
fn as_the_agent_knows(read: &mut ClusterView, written: &ClusterView) {
    for pod in &mut read.pods {
        let same = |other: &&PodView| (&other.namespace, &other.name) == (&pod.namespace, &pod.name);
        let other = written.pods.iter().find(same).expect("a pod that was written");
        pod.endpoint = other.endpoint;
    }
    read.node.clone_from(&written.node);
    read.host_addresses.clone_from(&written.host_addresses);
    read.host_groups.clone_from(&written.host_groups);
    read.services.clone_from(&written.services);
    read.names.clone_from(&written.names);
}

/// Tables that no compiler made: every prefix length of ports, identities that overlap, and rules that ask for the
/// source port and for the address at the own end.
#[test]
fn random_tables_judge_alike_in_lookup_and_kernel() {
    let lab = RefCell::new(Lab::new());
    let judged = Cell::new(0);
    let (own4, own6) = (ip("10.7.0.2"), ip("fd07::2"));
    let (with_class, with_inside) = (Cell::new(0), Cell::new(0));
    runner(400)
        .run(&random::scenario(), |(tables, next, packets)| {
            let mut lab = lab.borrow_mut();
            let link = link(LOOPBACK, &["10.7.0.2", "fd07::2"]);
            for packet in &packets {
                let own = if packet.peer.is_ipv4() { own4 } else { own6 };
                let Some(frame) = opening_frame(own, packet) else {
                    continue;
                };
                lab.program(&link, &tables);
                forget_flows(&mut lab);
                let expected = |tables| {
                    let entry = lookup(tables, ENDPOINT, packet);
                    (entry.verdict, entry.rule.0)
                };
                let (verdict, record) = lab.judge(packet.direction, &frame);
                let record = record.expect("first packets are reported");
                prop_assert_eq!((verdict, record.rule), expected(&tables), "{:?}", packet);
                judged.set(judged.get() + 1);
                let own = tables.endpoints.get(&ENDPOINT).expect("the endpoint");
                if own.source_class(packet.protocol, packet.source_port) != SourceClass(0) {
                    with_class.set(with_class.get() + 1);
                }
                with_inside.set(with_inside.get() + usize::from(!own.insides.is_empty()));
                if verdict == Verdict::Deny {
                    continue;
                }
                // The next tables judge the flow that is open now, by what is known of its first packet.
                lab.program(&link, &next);
                let again = lab.judge(packet.direction, &frame).0;
                prop_assert_eq!(again, expected(&next).0, "judged again: {:?}", packet);
                let flows = lab.kernel().tracked_flows().expect("flows");
                let flow = flows.first().expect("the flow");
                prop_assert_eq!(
                    (flow.verdict, flow.rule.0),
                    expected(&next),
                    "the flow of {:?}",
                    packet
                );
            }
            lab.program(&link, &next);
            let dumped = lab
                .kernel()
                .dump()
                .map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(dumped, next);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    println!(
        "{} packets judged alike, {} of them in a source class, {} where own ends are told apart",
        judged.get(),
        with_class.get(),
        with_inside.get()
    );
    assert!(judged.get() > 1000 && with_class.get() > 100 && with_inside.get() > 100);
}

/// Small worlds, so that packets meet entries.
mod random {
    use std::collections::BTreeMap;

    use ipnet::IpNet;
    use policies_ir::tables::{
        EndpointTables, IdentityId, InsideClass, Insides, RuleId, Service, SourceBlock, SourceClass,
        VerdictEntry, VerdictKey,
    };

    use super::*;
    use crate::lab::ENDPOINT;

    fn protocol() -> impl Strategy<Value = u8> {
        prop::sample::select(&[TCP, TCP, UDP, SCTP, ICMP, 47][..])
    }

    /// Ports around a few boundaries.
    fn port() -> impl Strategy<Value = u16> {
        prop_oneof![0..4u16, 1022..1026u16, 32_766..32_770u16, 65_534..=u16::MAX]
    }

    fn masked(port: u16, bits: u8) -> u16 {
        port & u16::MAX.checked_shl(16 - u32::from(bits)).unwrap_or(0)
    }

    fn direction() -> impl Strategy<Value = Direction> {
        prop::sample::select(&[Direction::Ingress, Direction::Egress][..])
    }

    fn peer() -> impl Strategy<Value = IpAddr> {
        let known = ["10.7.0.9", "10.7.1.9", "192.0.2.1", "fd07::9", "fd08::9"];
        prop::sample::select(known.map(ip).to_vec())
    }

    fn service() -> impl Strategy<Value = Service> {
        prop_oneof![
            Just(Service::Any),
            protocol().prop_map(Service::Protocol),
            (protocol(), port(), 1..=16u8).prop_map(|(protocol, port, prefix_bits)| Service::Ports {
                protocol,
                port: masked(port, prefix_bits),
                prefix_bits,
            }),
        ]
    }

    fn tables() -> impl Strategy<Value = NodeTables> {
        let nets = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.7.0.9/32",
            "::/0",
            "fd07::/16",
            "fd07::9/128",
        ];
        let nets = nets.map(|net| net.parse::<IpNet>().expect("a prefix")).to_vec();
        let identity = || (1..3u32).prop_map(IdentityId);
        let identities = prop::collection::btree_map(prop::sample::select(nets), identity(), 1..6);
        let source = || prop_oneof![Just(0u16), Just(1u16), Just(127u16)].prop_map(SourceClass);
        let block = (protocol(), port(), 0..=16u8).prop_map(|(protocol, port, prefix_bits)| SourceBlock {
            protocol,
            port: masked(port, prefix_bits),
            prefix_bits,
        });
        let sources = prop::collection::btree_map(block, source(), 0..12);
        let inside = || prop_oneof![Just(0), Just(0), Just(1), Just(256)].prop_map(InsideClass);
        let classes = (inside(), inside()).prop_map(|(ingress, egress)| Insides { ingress, egress });
        let insides = prop_oneof![
            Just(BTreeMap::new()),
            prop::collection::btree_map(identity(), classes, 1..3)
        ];
        let key = (identity(), direction(), inside(), source(), service());
        let key = key.prop_map(|(peer, direction, inside, source, service)| VerdictKey {
            peer,
            direction,
            inside,
            source,
            service,
        });
        let verdict = prop::sample::select(&[Verdict::Allow, Verdict::Allow, Verdict::Deny][..]);
        let entry = (verdict, 64..90u32).prop_map(|(verdict, rule)| VerdictEntry {
            verdict,
            rule: RuleId(rule),
        });
        let verdicts = prop::collection::btree_map(key, entry, 0..40);
        let all = (identities, sources, insides, verdicts);
        all.prop_map(|(identities, sources, insides, verdicts)| {
            let own = EndpointTables {
                sources,
                insides,
                verdicts: verdicts.into_iter().collect(),
            };
            NodeTables {
                identities,
                endpoints: [(ENDPOINT, own.into())].into(),
                rules: Vec::new(),
            }
        })
    }

    fn packet() -> impl Strategy<Value = Packet> {
        (direction(), peer(), protocol(), port(), port()).prop_map(
            |(direction, peer, protocol, source_port, port)| {
                let has_ports = matches!(protocol, TCP | UDP | SCTP);
                Packet {
                    direction,
                    peer,
                    inside: Some(if peer.is_ipv4() {
                        ip("10.7.0.2")
                    } else {
                        ip("fd07::2")
                    }),
                    protocol: if protocol == ICMP && peer.is_ipv6() {
                        ICMPV6
                    } else {
                        protocol
                    },
                    source_port: if has_ports { source_port } else { 0 },
                    port: if has_ports || protocol == ICMP { port } else { 0 },
                }
            },
        )
    }

    pub(super) fn scenario() -> impl Strategy<Value = (NodeTables, NodeTables, Vec<Packet>)> {
        (tables(), tables(), prop::collection::vec(packet(), 1..8))
    }
}

fn forget_flows(lab: &mut Lab) {
    lab.kernel()
        .expire(ebpf_loader::monotonic_now() + std::time::Duration::from_secs(1 << 20))
        .expect("expire");
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
) -> Result<Counts, TestCaseError> {
    let mut judged = [0; 2];
    for member in &cluster.members {
        let Some(endpoint) = member.endpoint else { continue };
        let packets = packets.iter().filter(|(at, _)| *at == endpoint);
        let packets: Vec<&Packet> = packets.map(|(_, packet)| packet).collect();
        let is_host = member.workload.kind == WorkloadKind::HostEndpoint;
        if is_host && packets.iter().all(|packet| packet.inside.is_none()) {
            continue;
        }
        let more = compare_at(lab, member, endpoint, tables, &packets, &expected);
        if is_host {
            // Whatever was found: a smaller case starts from nothing, too.
            let none = HostLink::none(LOOPBACK);
            lab.kernel()
                .attach_host(&none)
                .map_err(|e| TestCaseError::fail(e.to_string()))?;
        }
        judged[usize::from(is_host)] += more?;
    }
    Ok(judged)
}

/// What [`compare`] does at one endpoint; returns how many packets were judged.
fn compare_at(
    lab: &mut Lab,
    member: &Member,
    endpoint: EndpointId,
    tables: &NodeTables,
    packets: &[&Packet],
    expected: impl Fn(EndpointId, &Packet) -> Option<Judged>,
) -> Result<usize, TestCaseError> {
    let is_host = member.workload.kind == WorkloadKind::HostEndpoint;
    let addresses = match is_host {
        true => attach_host(lab, endpoint, packets, tables),
        false => attach_pod(lab, endpoint, member, tables),
    };
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
    let mut judged = 0;
    for packet in packets {
        // A pod has one address of each family, a host the one that the packet tells.
        let own = addresses.iter().copied().find(|ip| match is_host {
            true => Some(*ip) == packet.inside,
            false => ip.is_ipv4() == packet.peer.is_ipv4(),
        });
        let Some(frame) = own.and_then(|own| opening_frame(own, packet)) else {
            continue;
        };
        let by_tables = lookup(tables, endpoint, packet);
        let by_tables = (by_tables.verdict, tables.decided_by(by_tables.rule));
        let by_kernel = by_kernel(lab, tables, packet, is_host, &frame)?;
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
    Ok(judged)
}

/// One interface serves all pods in turn; each takes over from the one before. Returns the pod's addresses there.
fn attach_pod(lab: &mut Lab, id: EndpointId, member: &Member, tables: &NodeTables) -> Vec<IpAddr> {
    let addresses = [true, false].into_iter().filter_map(|v4| {
        member
            .addresses
            .iter()
            .copied()
            .find(|ip| ip.is_ipv4() == v4 && usable(*ip))
    });
    let link = EndpointLink {
        id,
        ifindex: LOOPBACK,
        addresses: addresses.collect(),
        mac: POD_MAC,
    };
    lab.program(&link, tables);
    link.addresses
}

/// The same interface, as one of the host, which has each address that a packet has at its own end.
fn attach_host(lab: &mut Lab, id: EndpointId, packets: &[&Packet], tables: &NodeTables) -> Vec<IpAddr> {
    for pod in lab.kernel().attached().expect("attached") {
        lab.kernel().detach(pod.id).expect("detach");
    }
    let told = packets.iter().filter_map(|packet| packet.inside);
    let endpoint = HostEndpoint { id, untracked: None };
    let addresses: BTreeMap<IpAddr, HostEndpoint> = told.map(|address| (address, endpoint)).collect();
    let link = HostLink {
        ifindex: LOOPBACK,
        addresses,
        forward: None,
    };
    lab.kernel().attach_host(&link).expect("attach");
    lab.kernel().sync(tables).expect("sync");
    link.addresses.into_keys().collect()
}

fn sum([a, b]: Counts, [c, d]: Counts) -> Counts {
    [a + c, b + d]
}

fn by_kernel(
    lab: &mut Lab,
    tables: &NodeTables,
    packet: &Packet,
    is_host: bool,
    frame: &[u8],
) -> Result<Judged, TestCaseError> {
    // A flow that an earlier packet of the scenario opened would answer for this one.
    forget_flows(lab);
    let verdict = match is_host {
        true => lab
            .kernel()
            .run_host_frame(packet.direction, LOOPBACK, 0, frame)
            .expect("run the program"),
        false => lab.run(packet.direction, frame),
    };
    let record = lab.record().expect("first packets are reported");
    prop_assert_eq!(
        record.reason,
        Reason::Policy as u8,
        "{:?} is odd: {:?}",
        packet,
        record
    );
    prop_assert_eq!(record.verdict == 1, verdict == Verdict::Allow);
    let rule = policies_ir::tables::RuleId(record.rule);
    Ok((verdict, tables.decided_by(rule)))
}

/// The packet as a frame that opens a flow; `None` for what no stack sends, or what cannot open one: those have
/// tests of their own.
fn opening_frame(own: IpAddr, packet: &Packet) -> Option<Vec<u8>> {
    let v4 = packet.peer.is_ipv4();
    let [kind, code] = packet.port.to_be_bytes();
    let payload = match packet.protocol {
        TCP => frames::tcp(packet.source_port, packet.port, SYN),
        UDP => frames::udp(packet.source_port, packet.port),
        SCTP => frames::sctp(packet.source_port, packet.port),
        ICMP if v4 && !matches!(kind, 0 | 3 | 11 | 12) => frames::icmp(kind, code, 7),
        ICMPV6 if !v4 && !matches!(kind, 1..=4 | 129..=137 | 143) => frames::icmp(kind, code, 7),
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
