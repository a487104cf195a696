//! Packets that a policy engine may get wrong, one by one.

use ebpf_loader::{Datapath, Limits, Reason};
use policies_ir::tables::{Direction, Service, Verdict};

use crate::{
    frames::{
        ACK, Ends, FIN, ICMP, ICMPV6, RST, SCTP, SYN, TCP, UDP, ethernet, frame, icmp, icmp_error, ipv6,
        packet_of, sctp, tcp, udp,
    },
    lab::{
        EACH_REPORTED, ENDPOINT, LOOPBACK, Lab, PEER, PEER6, POD, POD_MAC, POD6, Place, Way, both_ways,
        dual_tables, everywhere, ip, tables,
    },
};

const ROUTER: &str = "10.99.0.1";
const ROUTER6: &str = "fd99::1";

const ANY_EGRESS: (Direction, usize, Service) = (Direction::Egress, 0, Service::Any);
const ANY_INGRESS: (Direction, usize, Service) = (Direction::Ingress, 0, Service::Any);

fn port(protocol: u8, port: u16) -> Service {
    Service::Ports {
        protocol,
        port,
        prefix_bits: 16,
    }
}

/// What the kernel has merged on its way to a pod, to more than the length field can say.
#[test]
fn packets_larger_than_their_length_field_reach_pods() {
    let mut lab = Lab::new();
    lab.allow(&[ANY_INGRESS]);
    for (ends, length) in [(Ends::new(PEER, POD), 16), (Ends::new(PEER6, POD6), 18)] {
        let mut frame = frame(ends, TCP, &tcp(1000, 80, SYN));
        frame[length..length + 2].fill(0);
        for (bytes, expected) in [(0, Verdict::Deny), (1448, Verdict::Allow)] {
            let run = lab
                .kernel()
                .run_merged_frame(Direction::Ingress, LOOPBACK, bytes, &frame);
            assert_eq!(run.expect("run the program"), expected, "{ends:?}");
        }
    }
}

everywhere! {
    nothing_passes_before_the_first_tables,
    a_tcp_packet_without_a_connection_is_denied_whatever_policy_says,
    a_syn_on_the_tuple_of_an_open_flow_is_judged_anew,
    a_closed_connection_does_not_admit_a_new_one,
    policy_changes_reach_established_flows,
    flows_may_be_kept_when_policy_changes,
    icmp_is_judged_by_type_and_code,
    icmp_errors_pass_when_they_quote_an_allowed_flow,
    icmp_errors_about_echo_find_the_request,
    protocols_without_ports_are_tracked_as_one_flow,
    what_a_removed_pod_was_allowed_is_gone_at_once,
    the_longest_block_of_ports_decides,
    a_full_table_denies_new_flows_and_keeps_the_old,
}

both_ways! {
    neighbour_discovery_is_denied,
    allowed_flows_pass_both_ways_and_others_do_not,
    spoofed_and_misdirected_packets_are_denied,
    an_endpoint_without_an_address_of_a_family_has_none,
    prefixes_of_one_family_do_not_cover_the_other,
    frames_that_are_not_plain_ip_are_denied,
    every_truncation_is_denied,
    a_transport_header_must_lie_within_the_ip_packet,
    headers_that_contradict_themselves_are_denied,
    ipv4_options_are_denied,
    ipv6_extension_headers_are_walked_within_bounds,
    an_echo_is_asked_by_one_side,
    echo_is_tracked_by_its_id,
    a_pod_may_report_errors_to_the_end_they_are_about_only,
    icmp_errors_may_quote_extension_headers,
}

/// A lab whose endpoint has both addresses and may do `allowed` with its peers, both families being peer 0.
fn lab(way: Way, allowed: &[(Direction, usize, Service)]) -> Lab {
    let mut lab = Lab::judging(way, EACH_REPORTED);
    lab.allow(allowed);
    lab
}

fn out() -> Ends {
    Ends::new(POD, PEER)
}

fn out6() -> Ends {
    Ends::new(POD6, PEER6)
}

fn nothing_passes_before_the_first_tables(place: Place) {
    let mut lab = Lab::judging(place.way, EACH_REPORTED);
    let syn = frame(place.out(), TCP, &tcp(1000, 80, SYN));
    if !lab.is_wired() {
        // A link without programs is not the datapath's.
        lab.assert_denied(Direction::Egress, &syn, Reason::NotProgrammed);
    }
    let link = lab.link(&[POD, POD6]);
    lab.kernel().attach(&link).expect("attach");
    lab.assert_denied(Direction::Egress, &syn, Reason::NotProgrammed);
    // An endpoint that is absent from the tables is denied as well.
    lab.kernel()
        .sync(&policies_ir::tables::NodeTables::default())
        .expect("sync");
    lab.assert_denied(Direction::Egress, &syn, Reason::NotProgrammed);
    lab.assert_denied(
        Direction::Ingress,
        &frame(place.out().reversed(), UDP, &udp(1, 2)),
        Reason::NotProgrammed,
    );
}

fn allowed_flows_pass_both_ways_and_others_do_not(way: Way) {
    let mut lab = lab(
        way,
        &[
            (Direction::Egress, 0, port(TCP, 80)),
            (Direction::Ingress, 0, port(UDP, 53)),
        ],
    );
    for (ends, name) in [(out(), "IPv4"), (out6(), "IPv6")] {
        let back = ends.reversed();
        lab.assert_denied(
            Direction::Egress,
            &frame(ends, TCP, &tcp(1000, 81, SYN)),
            Reason::Policy,
        );
        lab.assert_denied(
            Direction::Egress,
            &frame(ends, UDP, &udp(1000, 80)),
            Reason::Policy,
        );
        lab.assert_denied(
            Direction::Ingress,
            &frame(back, TCP, &tcp(1000, 80, SYN)),
            Reason::Policy,
        );

        let (verdict, record) = lab.judge(Direction::Egress, &frame(ends, TCP, &tcp(1000, 80, SYN)));
        let record = record.expect("an opened flow is reported");
        assert_eq!(
            (verdict, record.rule, record.source_port, record.destination_port),
            (Verdict::Allow, 64, 1000, 80)
        );
        assert_eq!(
            (record.source.to_ip(), record.destination.to_ip()),
            (ends.source, ends.destination),
            "{name}"
        );

        let answer = lab.judge(Direction::Ingress, &frame(back, TCP, &tcp(80, 1000, SYN | ACK)));
        assert_eq!(
            answer,
            (Verdict::Allow, None),
            "packets of an open flow are not reported"
        );
        lab.assert_allowed(Direction::Egress, &frame(ends, TCP, &tcp(1000, 80, ACK)));
        lab.assert_denied(
            Direction::Ingress,
            &frame(back, TCP, &tcp(80, 1001, ACK)),
            Reason::NoConnection,
        );

        lab.assert_allowed(Direction::Ingress, &frame(back, UDP, &udp(2000, 53)));
        lab.assert_allowed(Direction::Egress, &frame(ends, UDP, &udp(53, 2000)));
        lab.assert_denied(
            Direction::Egress,
            &frame(ends, UDP, &udp(53, 2001)),
            Reason::Policy,
        );
    }
    let flows = lab.kernel().tracked_flows().expect("read the flows");
    assert_eq!(flows.len(), 4);
    let web = flows
        .iter()
        .find(|flow| flow.protocol == TCP && flow.peer.is_ipv4())
        .expect("the TCP flow");
    assert_eq!(
        (web.local_port, web.peer_port, web.packets, web.origin),
        (1000, 80, [1, 2], Direction::Egress)
    );
}

fn a_tcp_packet_without_a_connection_is_denied_whatever_policy_says(place: Place) {
    let mut lab = lab(place.way, &[ANY_EGRESS, ANY_INGRESS]);
    for flags in [ACK, SYN | ACK, FIN | ACK, RST] {
        lab.assert_denied(
            Direction::Egress,
            &frame(place.out(), TCP, &tcp(1000, 80, flags)),
            Reason::NoConnection,
        );
        lab.assert_denied(
            Direction::Ingress,
            &frame(place.out().reversed(), TCP, &tcp(1, 2, flags)),
            Reason::NoConnection,
        );
    }
    for flags in [0, SYN | FIN, SYN | RST, SYN | FIN | ACK] {
        lab.assert_denied(
            Direction::Egress,
            &frame(place.out(), TCP, &tcp(1000, 80, flags)),
            Reason::BadTcpFlags,
        );
    }
}

fn a_syn_on_the_tuple_of_an_open_flow_is_judged_anew(place: Place) {
    let mut lab = lab(place.way, &[(Direction::Egress, 0, port(TCP, 80))]);
    lab.assert_allowed(Direction::Egress, &frame(place.out(), TCP, &tcp(1000, 80, SYN)));
    let back = place.out().reversed();
    lab.assert_allowed(Direction::Ingress, &frame(back, TCP, &tcp(80, 1000, SYN | ACK)));
    // The peer opens a connection of its own, from the port it serves on.
    lab.assert_denied(
        Direction::Ingress,
        &frame(back, TCP, &tcp(80, 1000, SYN)),
        Reason::Policy,
    );
    // The first flow lives on.
    lab.assert_allowed(Direction::Ingress, &frame(back, TCP, &tcp(80, 1000, ACK)));
    // Where policy allows both directions, a simultaneous open works.
    lab.allow(&[ANY_EGRESS, ANY_INGRESS]);
    lab.assert_allowed(Direction::Egress, &frame(place.out(), TCP, &tcp(5, 6, SYN)));
    lab.assert_allowed(Direction::Ingress, &frame(back, TCP, &tcp(6, 5, SYN)));
    lab.assert_allowed(Direction::Egress, &frame(place.out(), TCP, &tcp(5, 6, SYN | ACK)));
    lab.assert_allowed(Direction::Ingress, &frame(back, TCP, &tcp(6, 5, SYN | ACK)));
}

fn a_closed_connection_does_not_admit_a_new_one(place: Place) {
    let mut lab = lab(place.way, &[(Direction::Ingress, 0, port(TCP, 80))]);
    let back = place.out().reversed();
    lab.assert_allowed(Direction::Ingress, &frame(back, TCP, &tcp(1000, 80, SYN)));
    lab.assert_allowed(
        Direction::Egress,
        &frame(place.out(), TCP, &tcp(80, 1000, RST | ACK)),
    );
    lab.assert_denied(
        Direction::Egress,
        &frame(place.out(), TCP, &tcp(80, 1000, SYN)),
        Reason::Policy,
    );
}

fn policy_changes_reach_established_flows(place: Place) {
    let mut lab = lab(place.way, &[ANY_EGRESS, ANY_INGRESS]);
    let back = place.out().reversed();
    let request = frame(back, UDP, &udp(2000, 53));
    let answer = frame(place.out(), UDP, &udp(53, 2000));
    lab.assert_allowed(Direction::Egress, &frame(place.out(), TCP, &tcp(1000, 80, SYN)));
    lab.assert_allowed(Direction::Ingress, &request);
    lab.assert_allowed(Direction::Egress, &answer);

    lab.allow(&[ANY_EGRESS]);
    lab.assert_allowed(Direction::Ingress, &frame(back, TCP, &tcp(80, 1000, SYN | ACK)));
    // The server's answer must not turn the denied flow into one of its own.
    lab.assert_denied(Direction::Egress, &answer, Reason::Policy);
    lab.assert_denied(Direction::Ingress, &request, Reason::Policy);
    lab.assert_denied(Direction::Egress, &answer, Reason::Policy);

    lab.allow(&[ANY_INGRESS]);
    lab.assert_allowed(Direction::Ingress, &request);
    lab.assert_denied(
        Direction::Ingress,
        &frame(back, TCP, &tcp(80, 1000, ACK)),
        Reason::Policy,
    );
    lab.assert_denied(
        Direction::Egress,
        &frame(place.out(), TCP, &tcp(1000, 80, ACK)),
        Reason::Policy,
    );
}

fn flows_may_be_kept_when_policy_changes(place: Place) {
    let mut lab = lab(place.way, &[ANY_EGRESS]);
    lab.assert_allowed(Direction::Egress, &frame(place.out(), TCP, &tcp(1000, 80, SYN)));
    lab.kernel().keep_established(ENDPOINT, true).expect("keep");
    lab.allow(&[]);
    lab.assert_allowed(Direction::Egress, &frame(place.out(), TCP, &tcp(1000, 80, ACK)));
    lab.assert_denied(
        Direction::Egress,
        &frame(place.out(), TCP, &tcp(1000, 80, SYN)),
        Reason::Policy,
    );
    lab.kernel()
        .keep_established(ENDPOINT, false)
        .expect("do not keep");
    lab.assert_denied(
        Direction::Egress,
        &frame(place.out(), TCP, &tcp(1000, 80, ACK)),
        Reason::Policy,
    );
}

fn spoofed_and_misdirected_packets_are_denied(way: Way) {
    let mut lab = lab(way, &[ANY_EGRESS, ANY_INGRESS]);
    for source in ["10.7.0.3", "0.0.0.0", "127.0.0.1", "10.7.0.9"] {
        let ends = Ends::new(source, PEER);
        lab.assert_denied(
            Direction::Egress,
            &frame(ends, UDP, &udp(1, 2)),
            Reason::SpoofedSource,
        );
    }
    for source in ["fd07::3", "::", "fe80::1"] {
        let ends = Ends::new(source, PEER6);
        lab.assert_denied(
            Direction::Egress,
            &frame(ends, UDP, &udp(1, 2)),
            Reason::SpoofedSource,
        );
    }
    for ends in [out(), out6()] {
        let mut other_mac = frame(ends, UDP, &udp(1, 2));
        other_mac[11] ^= 1;
        lab.assert_denied(Direction::Egress, &other_mac, Reason::SpoofedSource);
    }
    for destination in ["10.7.0.3", "10.7.0.255", "255.255.255.255", "224.0.0.1"] {
        let ends = Ends::new(PEER, destination);
        lab.assert_denied(
            Direction::Ingress,
            &frame(ends, UDP, &udp(1, 2)),
            Reason::WrongDestination,
        );
    }
    for destination in ["fd07::3", "ff02::1", "ff02::1:ff00:2", "::"] {
        let ends = Ends::new(PEER6, destination);
        lab.assert_denied(
            Direction::Ingress,
            &frame(ends, UDP, &udp(1, 2)),
            Reason::WrongDestination,
        );
    }
}

fn an_endpoint_without_an_address_of_a_family_has_none(way: Way) {
    let mut lab = Lab::judging(way, EACH_REPORTED);
    let link = lab.link(&[POD]);
    lab.program(
        &link,
        &tables(
            &["::/0", "0.0.0.0/0"],
            &[ANY_EGRESS, (Direction::Egress, 1, Service::Any)],
        ),
    );
    lab.assert_allowed(Direction::Egress, &frame(out(), UDP, &udp(1, 2)));
    let unset = Ends::new("::", PEER6);
    lab.assert_denied(
        Direction::Egress,
        &frame(unset, UDP, &udp(1, 2)),
        Reason::SpoofedSource,
    );
}

fn prefixes_of_one_family_do_not_cover_the_other(way: Way) {
    let mut lab = Lab::judging(way, EACH_REPORTED);
    let link = lab.link(&[POD, POD6]);
    lab.program(&link, &tables(&["::/0"], &[ANY_EGRESS]));
    lab.assert_allowed(Direction::Egress, &frame(out6(), UDP, &udp(1, 2)));
    lab.assert_denied(Direction::Egress, &frame(out(), UDP, &udp(1, 2)), Reason::Policy);
    lab.program(&link, &tables(&["0.0.0.0/0"], &[ANY_EGRESS]));
    lab.assert_allowed(Direction::Egress, &frame(out(), UDP, &udp(1, 2)));
    lab.assert_denied(Direction::Egress, &frame(out6(), UDP, &udp(1, 2)), Reason::Policy);
}

fn frames_that_are_not_plain_ip_are_denied(way: Way) {
    let mut lab = lab(way, &[ANY_EGRESS, ANY_INGRESS]);
    let packet = packet_of(&frame(out(), UDP, &udp(1, 2))).to_vec();
    for direction in [Direction::Egress, Direction::Ingress] {
        // Neighbours are permanent, so neither a question about the pod's own address nor one about another's is needed.
        for asked in [[10, 7, 0, 2], [10, 7, 0, 9]] {
            let who = [
                &[0, 1, 8, 0, 6, 4, 0, 1][..],
                &POD_MAC,
                &[10, 7, 0, 2],
                &[0; 6],
                &asked,
            ]
            .concat();
            lab.assert_denied(direction, &ethernet(0x0806, &who), Reason::NotIp);
        }
    }
    for (ends, ethertype) in [(out(), [8, 0]), (out6(), [0x86, 0xdd])] {
        let packet = packet_of(&frame(ends, UDP, &udp(1, 2))).to_vec();
        for tag in [0x8100, 0x88a8] {
            let tagged = ethernet(tag, &[&[0, 5][..], &ethertype, &packet].concat());
            // An outer tag before the inner one, and a tag of priority alone.
            let twice = ethernet(tag, &[&[0, 6, 0x81, 0, 0, 5][..], &ethertype, &packet].concat());
            let priority = ethernet(tag, &[&[0x20, 0][..], &ethertype, &packet].concat());
            for frame in [tagged, twice, priority] {
                for direction in [Direction::Egress, Direction::Ingress] {
                    lab.assert_denied(direction, &frame, Reason::Vlan);
                }
            }
        }
        lab.assert_denied(Direction::Egress, &ethernet(0x88cc, &packet), Reason::NotIp);
    }
    // The type says IPv4, the header says IPv6, and the other way round.
    let padded = [&packet[..], &[0; 20]].concat();
    lab.assert_denied(Direction::Egress, &ethernet(0x86dd, &padded), Reason::BadHeader);
    let packet6 = packet_of(&frame(out6(), UDP, &udp(1, 2))).to_vec();
    lab.assert_denied(Direction::Egress, &ethernet(0x0800, &packet6), Reason::BadHeader);
}

fn every_truncation_is_denied(way: Way) {
    let mut lab = lab(way, &[ANY_EGRESS, ANY_INGRESS]);
    let whole = [
        frame(out(), TCP, &tcp(1000, 80, SYN)),
        frame(out(), UDP, &udp(1, 2)),
        frame(out(), SCTP, &sctp(1, 2)),
        frame(out(), ICMP, &icmp(8, 0, 9)),
        frame(out6(), TCP, &tcp(1000, 80, SYN)),
        frame(out6(), UDP, &udp(1, 2)),
        frame(out6(), SCTP, &sctp(1, 2)),
        frame(out6(), ICMPV6, &icmp(128, 0, 9)),
    ];
    for frame in whole {
        lab.assert_allowed(Direction::Egress, &frame);
        // The kernel does not run a program by hand on less than a whole IP header.
        let shortest = match (lab.is_wired(), frame[12]) {
            (true, _) => 15,
            (false, 8) => 34,
            (false, _) => 54,
        };
        for length in shortest..frame.len() {
            let (verdict, _) = lab.judge(Direction::Egress, &frame[..length]);
            assert_eq!(verdict, Verdict::Deny, "{length} of {} bytes", frame.len());
        }
    }
}

fn a_transport_header_must_lie_within_the_ip_packet(way: Way) {
    let mut lab = lab(way, &[ANY_EGRESS]);
    // The bytes are there, as padding of the frame, but the IP packet ends before them.
    let mut short = frame(out(), TCP, &tcp(1000, 80, SYN));
    short[17] = 20 + 19;
    lab.assert_denied(Direction::Egress, &short, Reason::Truncated);
    let mut short = frame(out6(), UDP, &udp(1, 2));
    short[19] = 7;
    lab.assert_denied(Direction::Egress, &short, Reason::Truncated);
    let mut padded = frame(out(), UDP, &udp(1, 2));
    padded.extend([0xff; 18]);
    lab.assert_allowed(Direction::Egress, &padded);
}

fn headers_that_contradict_themselves_are_denied(way: Way) {
    let mut lab = lab(way, &[ANY_EGRESS]);
    let good = frame(out(), TCP, &tcp(1000, 80, SYN));
    let broken = |offset: usize, value: u8| {
        let mut frame = good.clone();
        frame[offset] = value;
        frame
    };
    for (offset, value) in [
        (14, 0x44),
        (14, 0x40),
        (14, 0x55),
        (14, 0x05),
        (17, 19),
        (17, 0),
        (20, 0x80),
        (46, 0x40),
    ] {
        lab.assert_denied(Direction::Egress, &broken(offset, value), Reason::BadHeader);
    }
    lab.assert_denied(Direction::Egress, &broken(17, 0xff), Reason::Truncated);
    let good6 = frame(out6(), TCP, &tcp(1000, 80, SYN));
    for (offset, value, reason) in [
        (14, 0x40, Reason::BadHeader),
        (14, 0x50, Reason::BadHeader),
        (18, 0xff, Reason::Truncated),
        (19, 19, Reason::Truncated),
        (19, 21, Reason::Truncated),
        (66, 0x40, Reason::BadHeader),
    ] {
        let mut broken = good6.clone();
        broken[offset] = value;
        lab.assert_denied(Direction::Egress, &broken, reason);
    }
    lab.assert_denied(Direction::Egress, &broken(46, 0x60), Reason::Truncated);
    for mapped in [
        Ends::new("::ffff:10.7.0.2", PEER6),
        Ends::new(POD6, "::ffff:10.7.0.9"),
    ] {
        let (Ok(source), Ok(destination)) = (v6(mapped.source), v6(mapped.destination)) else {
            panic!("IPv6")
        };
        let frame = ethernet(0x86dd, &ipv6(source, destination, UDP, &udp(1, 2)));
        lab.assert_denied(Direction::Egress, &frame, Reason::BadHeader);
    }
    lab.assert_denied(
        Direction::Egress,
        &frame(out(), ICMPV6, &icmp(128, 0, 1)),
        Reason::BadHeader,
    );
    lab.assert_denied(
        Direction::Egress,
        &frame(out6(), ICMP, &icmp(8, 0, 1)),
        Reason::BadHeader,
    );
}

fn v6(ip: std::net::IpAddr) -> Result<std::net::Ipv6Addr, std::net::IpAddr> {
    match ip {
        std::net::IpAddr::V6(v6) => Ok(v6),
        v4 @ std::net::IpAddr::V4(_) => Err(v4),
    }
}

fn ipv4_options_are_denied(way: Way) {
    let mut lab = lab(way, &[ANY_EGRESS, ANY_INGRESS]);
    // A loose source route, and no-operations that would shift the ports for who ignores the header length.
    for options in [[131, 7, 4, 192, 0, 2, 1, 0], [1, 1, 1, 1, 1, 1, 1, 0]] {
        let mut with_options = frame(out(), UDP, &[&options[..], &udp(1, 2)].concat());
        with_options[14] = 0x47;
        lab.assert_denied(Direction::Egress, &with_options, Reason::IpOptions);
    }
}

fn ipv6_extension_headers_are_walked_within_bounds(way: Way) {
    let mut lab = lab(way, &[(Direction::Egress, 0, port(UDP, 53))]);
    /// Chains `headers` of the given types and lengths (in units of eight bytes beyond the first) before UDP.
    fn chain(headers: &[(u8, u8)], port: u16) -> Vec<u8> {
        let mut payload = Vec::new();
        for (i, (_, units)) in headers.iter().enumerate() {
            let next = headers.get(i + 1).map_or(UDP, |(next, _)| *next);
            payload.extend([next, *units, 1, 4, 0, 0, 0, 0]);
            payload.extend(vec![0; usize::from(*units) * 8]);
        }
        payload.extend(udp(1000, port));
        frame(out6(), headers.first().map_or(UDP, |(first, _)| *first), &payload)
    }
    for headers in [
        &[(0, 0)][..],
        &[(60, 3)],
        &[(0, 0), (60, 1)],
        &[(0, 1), (60, 0), (60, 0), (60, 2)],
    ] {
        lab.assert_allowed(Direction::Egress, &chain(headers, 53));
        lab.assert_denied(Direction::Egress, &chain(headers, 54), Reason::Policy);
    }
    for headers in [
        &[(60, 0); 5][..],
        &[(43, 0)],
        &[(0, 0), (43, 2)],
        &[(51, 1)],
        &[(135, 0)],
        &[(139, 0)],
        &[(140, 0)],
    ] {
        lab.assert_denied(Direction::Egress, &chain(headers, 53), Reason::ExtensionHeader);
    }
    // A fragment header that says that this is the whole packet (RFC 6946), and a second one.
    let whole = [&[UDP, 0, 0, 0, 0, 0, 0, 9][..], &udp(1000, 53)].concat();
    lab.assert_allowed(Direction::Egress, &frame(out6(), 44, &whole));
    let twice = [&[44, 0, 0, 0, 0, 0, 0, 9][..], &whole].concat();
    lab.assert_denied(
        Direction::Egress,
        &frame(out6(), 44, &twice),
        Reason::ExtensionHeader,
    );
    lab.assert_denied(
        Direction::Egress,
        &frame(out6(), 59, &[]),
        Reason::ExtensionHeader,
    );
    // A length that leads out of the packet.
    let mut beyond = chain(&[(60, 0)], 53);
    beyond[55] = 0xff;
    let (verdict, _) = lab.judge(Direction::Egress, &beyond);
    assert_eq!(verdict, Verdict::Deny);
}

fn echo_is_tracked_by_its_id(way: Way) {
    let mut lab = lab(way, &[(Direction::Egress, 0, Service::Any)]);
    for (ends, protocol, request, reply) in [(out(), ICMP, 8, 0), (out6(), ICMPV6, 128, 129)] {
        let back = ends.reversed();
        lab.assert_denied(
            Direction::Ingress,
            &frame(back, protocol, &icmp(reply, 0, 7)),
            Reason::NoConnection,
        );
        lab.assert_allowed(Direction::Egress, &frame(ends, protocol, &icmp(request, 0, 7)));
        lab.assert_allowed(Direction::Ingress, &frame(back, protocol, &icmp(reply, 0, 7)));
        lab.assert_denied(
            Direction::Ingress,
            &frame(back, protocol, &icmp(reply, 0, 8)),
            Reason::NoConnection,
        );
        // The peer's own request with the same id is no answer.
        lab.assert_denied(
            Direction::Ingress,
            &frame(back, protocol, &icmp(request, 0, 7)),
            Reason::Policy,
        );
    }
}

/// Whatever its id is: a flow of which the asker's side and the answerer's look alike would let both ask.
fn an_echo_is_asked_by_one_side(way: Way) {
    for (ends, protocol, request, reply) in [(out(), ICMP, 8, 0), (out6(), ICMPV6, 128, 129)] {
        let mut lab = lab(way, &[(Direction::Egress, 0, Service::Any)]);
        let back = ends.reversed();
        let numbers = [
            0, 1, 2, 7, 8, 9, 0x0100, 0x0107, 0x0108, 0x4000, 0x8000, 0xbfff, 0xfffe, 0xffff,
        ];
        let codes = [0, 1, 7, 0xff];
        for (id, code) in numbers.iter().flat_map(|id| codes.map(|code| (*id, code))) {
            lab.assert_allowed(
                Direction::Egress,
                &frame(ends, protocol, &icmp(request, code, id)),
            );
            lab.assert_allowed(Direction::Ingress, &frame(back, protocol, &icmp(reply, code, id)));
        }
        for (id, code) in numbers.iter().flat_map(|id| codes.map(|code| (*id, code))) {
            let asked = frame(back, protocol, &icmp(request, code, id));
            lab.assert_denied(Direction::Ingress, &asked, Reason::Policy);
            let answered = frame(ends, protocol, &icmp(reply, code, id));
            lab.assert_denied(Direction::Egress, &answered, Reason::NoConnection);
        }
    }
}

fn icmp_is_judged_by_type_and_code(place: Place) {
    // A question, a message of two codes, and a message that no rule names.
    let (protocol, question, message, other) = match place.v6 {
        false => (ICMP, 8, 5, 13),
        true => (ICMPV6, 128, 138, 139),
    };
    let of = |kind: u8, code: u8| u16::from_be_bytes([kind, code]);
    let mut lab = lab(
        place.way,
        &[
            (Direction::Egress, 0, port(protocol, of(question, 0))),
            (Direction::Egress, 0, port(protocol, of(message, 1))),
        ],
    );
    let sent = |kind, code, id| frame(place.out(), protocol, &icmp(kind, code, id));
    lab.assert_allowed(Direction::Egress, &sent(question, 0, 1));
    lab.assert_denied(Direction::Egress, &sent(question, 1, 2), Reason::Policy);
    lab.assert_denied(Direction::Egress, &sent(other, 0, 1), Reason::Policy);
    // The id of an echo is its sender's to choose: it opens no other type or code, nor the same from the other side.
    for id in [of(other, 0), of(message, 0), 0xffff, 0xfffe, 5] {
        lab.assert_allowed(Direction::Egress, &sent(question, 0, id));
    }
    for (kind, code, id) in [
        (other, 0, 1),
        (message, 0, 1),
        (question, 5, 1),
        (question, 5, of(other, 0)),
        (255, 255, 1),
    ] {
        let back = frame(place.out().reversed(), protocol, &icmp(kind, code, id));
        lab.assert_denied(Direction::Egress, &sent(kind, code, id), Reason::Policy);
        lab.assert_denied(Direction::Ingress, &back, Reason::Policy);
    }
    // An ordinary message, such as a redirect; one from the other side does not pass as its answer.
    lab.assert_allowed(Direction::Egress, &sent(message, 1, 1));
    lab.assert_denied(
        Direction::Ingress,
        &frame(place.out().reversed(), protocol, &icmp(message, 1, 1)),
        Reason::Policy,
    );
}

/// What an ICMP error of the family is: protocol, type and code of "too big", of "unreachable" and of "time exceeded".
type Errors = (u8, [(u8, u8); 3]);

const ERRORS: Errors = (ICMP, [(3, 4), (3, 3), (11, 0)]);
const ERRORS6: Errors = (ICMPV6, [(2, 0), (1, 4), (3, 0)]);

fn errors(place: Place) -> (Errors, &'static str) {
    match place.v6 {
        false => (ERRORS, ROUTER),
        true => (ERRORS6, ROUTER6),
    }
}

fn icmp_errors_pass_when_they_quote_an_allowed_flow(place: Place) {
    let mut lab = lab(place.way, &[ANY_EGRESS]);
    let sent = frame(place.out(), UDP, &udp(1000, 53));
    let ((protocol, [too_big, unreachable, _]), router) = errors(place);
    let router = Ends {
        source: ip(router),
        destination: place.out().source,
    };
    let error = |(kind, code), quoted: &[u8]| frame(router, protocol, &icmp_error(kind, code, quoted));
    let from_router = |quoted: &[u8]| error(too_big, quoted);
    // What of the quoted packet is IP: eight bytes of transport header is all that a router must quote behind it.
    let header = if place.v6 { 40 } else { 20 };
    lab.assert_denied(
        Direction::Ingress,
        &from_router(packet_of(&sent)),
        Reason::IcmpUnrelated,
    );
    lab.assert_allowed(Direction::Egress, &sent);
    lab.assert_allowed(Direction::Ingress, &from_router(packet_of(&sent)));
    lab.assert_allowed(Direction::Ingress, &error(unreachable, packet_of(&sent)));
    lab.assert_allowed(Direction::Ingress, &from_router(&packet_of(&sent)[..header + 8]));
    lab.assert_denied(
        Direction::Ingress,
        &from_router(&packet_of(&sent)[..header + 2]),
        Reason::IcmpUnrelated,
    );

    let other_port = frame(place.out(), UDP, &udp(1001, 53));
    lab.assert_denied(
        Direction::Ingress,
        &from_router(packet_of(&other_port)),
        Reason::IcmpUnrelated,
    );
    // Quoting a packet that the pod received, not sent.
    let received = frame(place.out().reversed(), UDP, &udp(53, 1000));
    lab.assert_denied(
        Direction::Ingress,
        &from_router(packet_of(&received)),
        Reason::IcmpUnrelated,
    );
    // Quoting another pod's packet on the same ports.
    let foreign = frame(
        Ends {
            source: ip(if place.v6 { "fd07::3" } else { "10.7.0.3" }),
            ..place.out()
        },
        UDP,
        &udp(1000, 53),
    );
    lab.assert_denied(
        Direction::Ingress,
        &from_router(packet_of(&foreign)),
        Reason::IcmpUnrelated,
    );
    // An error about a flow does not outlive the permission for it.
    lab.allow(&[]);
    lab.assert_denied(
        Direction::Ingress,
        &from_router(packet_of(&sent)),
        Reason::IcmpUnrelated,
    );
}

/// A router quotes what it got: the first fragment of a large datagram (too big is what its sender must hear), or a packet
/// with options.
fn icmp_errors_may_quote_extension_headers(way: Way) {
    let mut lab = lab(way, &[ANY_EGRESS]);
    let router = Ends::new(ROUTER6, POD6);
    let error = |first: u8, quoted: &[u8]| {
        let sent = frame(out6(), first, quoted);
        frame(router, ICMPV6, &icmp_error(2, 0, packet_of(&sent)))
    };
    let options = |next: u8, units: u8, rest: &[u8]| {
        let filled = vec![0; usize::from(units) * 8];
        [&[next, units, 1, 4, 0, 0, 0, 0][..], &filled, rest].concat()
    };
    let fragment = |next: u8, position: u16, more: bool, rest: &[u8]| {
        let [high, low] = (position << 3 | u16::from(more)).to_be_bytes();
        [&[next, 0, high, low, 0, 0, 0, 9][..], rest].concat()
    };
    let datagram = udp(1000, 53);
    let first = fragment(UDP, 0, true, &datagram);
    let quotes = [
        (44, first.clone()),
        (44, fragment(UDP, 0, false, &datagram)),
        (0, options(UDP, 0, &datagram)),
        (60, options(UDP, 3, &datagram)),
        (0, options(60, 1, &options(44, 0, &first))),
        (44, fragment(60, 0, true, &options(UDP, 0, &datagram))),
    ];
    for (header, quoted) in &quotes {
        lab.assert_denied(Direction::Ingress, &error(*header, quoted), Reason::IcmpUnrelated);
    }
    lab.assert_allowed(Direction::Egress, &frame(out6(), UDP, &datagram));
    for (header, quoted) in &quotes {
        lab.assert_allowed(Direction::Ingress, &error(*header, quoted));
    }
    let other = udp(1001, 53);
    let five = (0..4).fold(options(UDP, 0, &datagram), |rest, _| options(60, 0, &rest));
    for (header, quoted) in [
        // Another flow.
        (44, fragment(UDP, 0, true, &other)),
        (60, options(UDP, 0, &other)),
        // A later fragment: what looks like ports is the middle of something.
        (44, fragment(UDP, 1, true, &datagram)),
        (44, fragment(UDP, 185, false, &datagram)),
        (0, options(44, 0, &fragment(UDP, 1, true, &datagram))),
        // What is not let through, and so cannot have been sent: a second fragment header, routing, too many.
        (44, fragment(44, 0, true, &first)),
        (43, options(UDP, 0, &datagram)),
        (0, options(43, 0, &options(UDP, 0, &datagram))),
        (60, five),
        // The end of what is quoted comes before the ports, or before the headers do.
        (44, fragment(UDP, 0, true, &datagram[..2])),
        (60, options(UDP, 0, &[])[..6].to_vec()),
        (60, options(UDP, 200, &[])[..8].to_vec()),
    ] {
        lab.assert_denied(Direction::Ingress, &error(header, &quoted), Reason::IcmpUnrelated);
    }
}

fn a_pod_may_report_errors_to_the_end_they_are_about_only(way: Way) {
    let mut lab = lab(way, &[ANY_INGRESS]);
    for (ends, protocol, kind) in [(out(), ICMP, 3), (out6(), ICMPV6, 1)] {
        let received = frame(ends.reversed(), UDP, &udp(1000, 53));
        lab.assert_allowed(Direction::Ingress, &received);
        let error = icmp_error(kind, 3, packet_of(&received));
        lab.assert_allowed(Direction::Egress, &frame(ends, protocol, &error));
        let elsewhere = if ends.source.is_ipv4() {
            "10.7.0.8"
        } else {
            "fd07::8"
        };
        let elsewhere = Ends {
            destination: elsewhere.parse().expect("an address"),
            ..ends
        };
        lab.assert_denied(
            Direction::Egress,
            &frame(elsewhere, protocol, &error),
            Reason::IcmpUnrelated,
        );
    }
}

fn icmp_errors_about_echo_find_the_request(place: Place) {
    let mut lab = lab(place.way, &[ANY_EGRESS]);
    let ((protocol, [.., exceeded]), router) = errors(place);
    let router = Ends {
        source: ip(router),
        destination: place.out().source,
    };
    let echo = if place.v6 { 128 } else { 8 };
    let ping = frame(place.out(), protocol, &icmp(echo, 0, 7));
    lab.assert_allowed(Direction::Egress, &ping);
    let unreachable = |quoted: &[u8]| frame(router, protocol, &icmp_error(exceeded.0, exceeded.1, quoted));
    lab.assert_allowed(Direction::Ingress, &unreachable(packet_of(&ping)));
    let other = frame(place.out(), protocol, &icmp(echo, 0, 8));
    lab.assert_denied(
        Direction::Ingress,
        &unreachable(packet_of(&other)),
        Reason::IcmpUnrelated,
    );
    // An error about an error is nonsense.
    let nested = frame(
        place.out(),
        protocol,
        &icmp_error(exceeded.0, 0, packet_of(&ping)),
    );
    lab.assert_denied(
        Direction::Ingress,
        &unreachable(packet_of(&nested)),
        Reason::IcmpUnrelated,
    );
}

fn protocols_without_ports_are_tracked_as_one_flow(place: Place) {
    let mut lab = lab(place.way, &[(Direction::Egress, 0, Service::Protocol(47))]);
    lab.assert_denied(
        Direction::Ingress,
        &frame(place.out().reversed(), 47, &[0; 8]),
        Reason::Policy,
    );
    lab.assert_allowed(Direction::Egress, &frame(place.out(), 47, &[0; 8]));
    lab.assert_allowed(Direction::Ingress, &frame(place.out().reversed(), 47, &[0; 8]));
    lab.assert_denied(
        Direction::Egress,
        &frame(place.out(), 50, &[0; 8]),
        Reason::Policy,
    );
}

/// The flows of a pod that is gone answer for nobody who gets its link and its addresses.
fn what_a_removed_pod_was_allowed_is_gone_at_once(place: Place) {
    let mut lab = lab(place.way, &[ANY_EGRESS, ANY_INGRESS]);
    let (out, back) = (place.out(), place.out().reversed());
    lab.assert_allowed(Direction::Egress, &frame(out, TCP, &tcp(1000, 80, SYN)));
    lab.assert_allowed(Direction::Egress, &frame(out, UDP, &udp(1000, 53)));
    lab.assert_allowed(Direction::Ingress, &frame(back, UDP, &udp(53, 1000)));
    lab.kernel().detach(ENDPOINT).expect("detach");
    assert_eq!(lab.kernel().tracked_flows().expect("flows"), []);
    lab.allow(&[]);
    lab.assert_denied(
        Direction::Ingress,
        &frame(back, TCP, &tcp(80, 1000, SYN | ACK)),
        Reason::NoConnection,
    );
    lab.assert_denied(
        Direction::Egress,
        &frame(out, UDP, &udp(1000, 53)),
        Reason::Policy,
    );
    lab.assert_denied(
        Direction::Ingress,
        &frame(back, UDP, &udp(53, 1000)),
        Reason::Policy,
    );
}

/// A pod's neighbours are permanent: it can neither pass for another one nor ask who is there.
fn neighbour_discovery_is_denied(way: Way) {
    let mut lab = Lab::judging(way, EACH_REPORTED);
    let link = lab.link(&[POD, POD6]);
    // Policy allows everything, to everybody.
    lab.program(&link, &tables(&["::/0"], &[ANY_EGRESS, ANY_INGRESS]));
    // Router solicitation and advertisement, neighbour solicitation and advertisement, redirect.
    for kind in 133..=137 {
        for target in [POD6, PEER6, "fe80::1"] {
            let std::net::IpAddr::V6(target) = ip(target) else {
                panic!("IPv6")
            };
            let message = [&icmp(kind, 0, 0)[..], &target.octets(), &[2, 1], &POD_MAC].concat();
            for (direction, source, destination) in [
                (Direction::Egress, POD6, "ff02::1"),
                (Direction::Egress, POD6, "fe80::1"),
                (Direction::Egress, POD6, PEER6),
                (Direction::Ingress, "fe80::1", POD6),
                (Direction::Ingress, PEER6, POD6),
            ] {
                let frame = frame(Ends::new(source, destination), ICMPV6, &message);
                lab.assert_denied(direction, &frame, Reason::NotIp);
            }
            for source in ["fe80::2", "::", PEER6] {
                let frame = frame(Ends::new(source, "ff02::1"), ICMPV6, &message);
                lab.assert_denied(Direction::Egress, &frame, Reason::SpoofedSource);
            }
        }
    }
}

fn the_longest_block_of_ports_decides(place: Place) {
    let mut lab = Lab::judging(place.way, EACH_REPORTED);
    let mut tables = dual_tables(&[
        (Direction::Egress, 0, Service::Protocol(TCP)),
        (
            Direction::Egress,
            0,
            Service::Ports {
                protocol: TCP,
                port: 8080,
                prefix_bits: 12,
            },
        ),
    ]);
    let endpoint = tables.endpoints.get_mut(&ENDPOINT).expect("the endpoint");
    let verdicts = &mut std::sync::Arc::make_mut(endpoint).verdicts;
    let (key, entry) = verdicts.iter().nth(1).expect("two entries");
    let verdict = Verdict::Deny;
    verdicts.insert(key, policies_ir::tables::VerdictEntry { verdict, ..entry });
    let link = lab.link(&[POD, POD6]);
    lab.program(&link, &tables);
    for (port, verdict) in [
        (8079, Verdict::Allow),
        (8080, Verdict::Deny),
        (8095, Verdict::Deny),
        (8096, Verdict::Allow),
    ] {
        assert_eq!(
            lab.judge(Direction::Egress, &frame(place.out(), TCP, &tcp(1, port, SYN)))
                .0,
            verdict,
            "{port}"
        );
    }
    assert_eq!(lab.kernel().dump().expect("dump"), tables);
}

fn a_full_table_denies_new_flows_and_keeps_the_old(place: Place) {
    let mut lab = Lab::judging(
        place.way,
        Limits {
            max_flows: 4,
            ..EACH_REPORTED
        },
    );
    lab.allow(&[ANY_EGRESS]);
    let packet = |port| frame(place.out(), UDP, &udp(1000, port));
    (1..=4).for_each(|port| lab.assert_allowed(Direction::Egress, &packet(port)));
    lab.assert_denied(Direction::Egress, &packet(5), Reason::TooManyFlows);
    (1..=4).for_each(|port| lab.assert_allowed(Direction::Egress, &packet(port)));

    let now = ebpf_loader::monotonic_now();
    let expire = |lab: &mut Lab, after: u64| {
        lab.kernel()
            .expire(now + std::time::Duration::from_secs(after))
            .expect("expire")
    };
    let counts = |expired: ebpf_loader::Expired| (expired.removed, expired.tracked);
    assert_eq!(counts(expire(&mut lab, 10)), (0, 4));
    let fill = |lab: &mut Lab| {
        let fill = lab.kernel().counters().expect("counters").fill;
        let flows = fill.iter().find(|fill| fill.map == "FLOWS").expect("the flows");
        (flows.entries, flows.capacity)
    };
    assert_eq!(fill(&mut lab), (4, 4));
    assert_eq!(counts(expire(&mut lab, 31)), (4, 0));
    assert_eq!(fill(&mut lab), (0, 4));
    lab.assert_allowed(Direction::Egress, &packet(5));
    let counters = lab.kernel().counters().expect("counters");
    assert_eq!(
        (counters.allowed, counters.denied.get(&Reason::TooManyFlows)),
        (9, Some(&1))
    );
}

#[test]
fn one_endpoint_cannot_take_the_table_from_the_others() {
    let mut lab = lab(Way::ByHand, &[ANY_EGRESS]);
    let budget = u32::try_from(ebpf_abi::MAX_FLOWS_PER_ENDPOINT).expect("a small number");
    let packet = |number: u32, back: bool| {
        let [_, _, high, low] = number.to_be_bytes();
        let port = u16::from_be_bytes([high, low]);
        if back {
            frame(out().reversed(), UDP, &udp(1000, port))
        } else {
            frame(out(), UDP, &udp(port, 1000))
        }
    };
    for number in 0..budget {
        for (direction, back) in [(Direction::Egress, false), (Direction::Ingress, true)] {
            let (verdict, _) = lab.judge(direction, &packet(number, back));
            assert_eq!(verdict, Verdict::Allow, "flow {number}");
        }
    }
    lab.assert_denied(Direction::Egress, &packet(budget, false), Reason::TooManyFlows);
    lab.assert_allowed(Direction::Egress, &packet(0, false));
    let expired = lab
        .kernel()
        .expire(ebpf_loader::monotonic_now() + std::time::Duration::from_secs(200))
        .expect("expire");
    assert_eq!(expired.removed, budget as usize);
    lab.assert_allowed(Direction::Egress, &packet(budget, false));
}

/// Whoever only sends gets a share, in which each peer has one of its own.
#[test]
fn unanswered_flows_leave_room_for_others() {
    let mut lab = lab(Way::ByHand, &[ANY_EGRESS, ANY_INGRESS]);
    let from = |peer: &str, port: u16| frame(Ends::new(peer, POD), UDP, &udp(port, 53));
    let fill = |lab: &mut Lab, direction: Direction, frame_of: &dyn Fn(u16) -> Vec<u8>| {
        let mut allowed = 0;
        while lab.judge(direction, &frame_of(allowed)).0 == Verdict::Allow {
            allowed += 1;
        }
        u64::from(allowed)
    };
    let flood = |port| from(PEER, port);
    assert_eq!(
        fill(&mut lab, Direction::Ingress, &flood),
        ebpf_abi::MAX_UNESTABLISHED_PER_BUCKET
    );
    lab.assert_denied(Direction::Ingress, &from(PEER, 60_000), Reason::TooManyFlows);
    // Another peer, and the pod's own flows, even to the one that floods.
    lab.assert_allowed(Direction::Ingress, &from("10.7.0.10", 1));
    lab.assert_allowed(Direction::Egress, &frame(out(), UDP, &udp(1, 60_000)));
    // What the pod answers no longer counts.
    lab.assert_allowed(Direction::Egress, &frame(out(), UDP, &udp(53, 0)));
    lab.assert_allowed(Direction::Ingress, &from(PEER, 60_000));
    lab.assert_denied(Direction::Ingress, &from(PEER, 60_001), Reason::TooManyFlows);
    // Nor do half-open connections have a share beside it.
    lab.assert_denied(
        Direction::Ingress,
        &frame(out().reversed(), TCP, &tcp(1, 80, SYN)),
        Reason::TooManyFlows,
    );
    // The pod itself gets no more either, where nobody answers.
    let scan = |port| frame(out(), UDP, &udp(2, port));
    assert_eq!(
        fill(&mut lab, Direction::Egress, &scan),
        ebpf_abi::MAX_UNESTABLISHED - 1
    );
    // Little later all of that is forgotten.
    let later = ebpf_loader::monotonic_now() + std::time::Duration::from_secs(40);
    assert_eq!(lab.kernel().expire(later).expect("expire").tracked, 0);
    lab.assert_allowed(Direction::Ingress, &from(PEER, 60_001));
    lab.assert_allowed(Direction::Egress, &scan(60_000));
}

#[test]
fn lost_events_are_counted() {
    let mut lab = lab(Way::ByHand, &[]);
    let denied = frame(out(), UDP, &udp(1, 2));
    let frames = 20_000;
    for _ in 0..frames {
        let verdict = lab
            .kernel()
            .run_frame(Direction::Egress, LOOPBACK, &denied)
            .expect("run");
        assert_eq!(verdict, Verdict::Deny);
    }
    let mut read = 0;
    while lab.record().is_some() {
        read += 1;
    }
    let lost = lab.kernel().counters().expect("counters").lost_events;
    assert!(lost > 0, "the ring holds fewer than {frames} records");
    assert_eq!(read + lost, frames);
}
