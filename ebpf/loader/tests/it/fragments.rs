//! Packets in pieces, in the wrong order, with the wrong borders: by hand and through a real link.

use ebpf_loader::{Datapath, Reason};
use policies_ir::tables::{Direction, Service, Verdict};

use crate::{
    frames::{ACK, Ends, ICMP, ICMPV6, SYN, TCP, UDP, frame, icmp_error, packet_of, tcp, udp},
    lab::{EACH_REPORTED, ENDPOINT, Lab, PEER, PEER6, POD, POD6, Way, both_ways},
};

fn out() -> Ends {
    Ends::new(POD, PEER)
}

fn out6() -> Ends {
    Ends::new(POD6, PEER6)
}

both_ways! {
    fragments_follow_their_first_one,
    fragments_that_would_overwrite_the_first_are_denied,
    first_fragments_without_the_whole_header_are_denied,
    borders_that_cannot_be_are_denied,
    a_first_fragment_speaks_for_five_seconds_of_its_own_policy,
    an_endpoint_remembers_a_bounded_number_of_packets,
    errors_in_fragments_are_denied,
    options_behind_a_fragment_header_are_a_part_of_the_first,
}

/// UDP to port 53, and any TCP, out; nothing in.
fn lab(way: Way) -> Lab {
    let mut lab = Lab::judging(way, EACH_REPORTED);
    program(&mut lab, 53);
    lab
}

fn program(lab: &mut Lab, port: u16) {
    let service = Service::Ports {
        protocol: UDP,
        port,
        prefix_bits: 16,
    };
    lab.allow(&[
        (Direction::Egress, 0, service),
        (Direction::Egress, 0, Service::Protocol(TCP)),
    ]);
}

/// A fragment that begins at `offset` (in units of eight bytes).
pub(crate) fn fragment(
    ends: Ends,
    protocol: u8,
    id: u16,
    offset: u16,
    more: bool,
    payload: &[u8],
) -> Vec<u8> {
    let [id_high, id_low] = id.to_be_bytes();
    if ends.source.is_ipv4() {
        let mut bytes = frame(ends, protocol, payload);
        let [high, low] = (offset | u16::from(more) << 13).to_be_bytes();
        bytes.splice(18..22, [id_high, id_low, high, low]);
        return bytes;
    }
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    let header = [protocol, 0, high, low, 0, 0, id_high, id_low];
    frame(ends, 44, &[&header[..], payload].concat())
}

/// The first sixteen bytes of a datagram to `port`.
fn first(ends: Ends, id: u16, port: u16) -> Vec<u8> {
    fragment(ends, UDP, id, 0, true, &[&udp(1000, port)[..], &[7; 8]].concat())
}

fn later(ends: Ends, id: u16, offset: u16, more: bool) -> Vec<u8> {
    fragment(ends, UDP, id, offset, more, &[7; 8])
}

fn fragments_follow_their_first_one(way: Way) {
    let mut lab = lab(way);
    for ends in [out(), out6()] {
        lab.assert_denied(Direction::Egress, &later(ends, 1, 2, true), Reason::Fragment);
        lab.assert_allowed(Direction::Egress, &first(ends, 1, 53));
        for (offset, more) in [(3, false), (2, true), (2, true)] {
            lab.assert_allowed(Direction::Egress, &later(ends, 1, offset, more));
        }
        // Of another packet, another protocol, another direction.
        lab.assert_denied(Direction::Egress, &later(ends, 2, 2, true), Reason::Fragment);
        lab.assert_denied(
            Direction::Egress,
            &fragment(ends, TCP, 1, 2, true, &[7; 8]),
            Reason::Fragment,
        );
        lab.assert_denied(
            Direction::Ingress,
            &later(ends.reversed(), 1, 2, true),
            Reason::Fragment,
        );
        // A denied first fragment speaks for nobody.
        lab.assert_denied(Direction::Egress, &first(ends, 3, 54), Reason::Policy);
        lab.assert_denied(Direction::Egress, &later(ends, 3, 2, false), Reason::Fragment);
    }
    let flows = lab.kernel().tracked_flows().expect("flows");
    assert_eq!(
        flows.iter().map(|flow| flow.packets).collect::<Vec<_>>(),
        [[0, 4]; 2]
    );
}

fn fragments_that_would_overwrite_the_first_are_denied(way: Way) {
    let mut lab = lab(way);
    for ends in [out(), out6()] {
        lab.assert_allowed(Direction::Egress, &first(ends, 1, 53));
        lab.assert_denied(Direction::Egress, &later(ends, 1, 1, true), Reason::Fragment);
        // Beginning anew with another port is judged, and what was remembered stays.
        lab.assert_denied(Direction::Egress, &first(ends, 1, 54), Reason::Policy);
        lab.assert_allowed(Direction::Egress, &later(ends, 1, 2, false));
    }
}

fn first_fragments_without_the_whole_header_are_denied(way: Way) {
    let mut lab = lab(way);
    let syn = tcp(1000, 80, SYN);
    for ends in [out(), out6()] {
        for bytes in [8, 16] {
            let tiny = fragment(ends, TCP, 1, 0, true, &syn[..bytes]);
            lab.assert_denied(Direction::Egress, &tiny, Reason::Fragment);
        }
        let whole = [&syn[..], &[7; 4]].concat();
        lab.assert_allowed(Direction::Egress, &fragment(ends, TCP, 1, 0, true, &whole));
        lab.assert_allowed(Direction::Egress, &fragment(ends, TCP, 1, 3, false, &[7; 5]));
        lab.assert_denied(
            Direction::Egress,
            &fragment(
                ends,
                TCP,
                2,
                0,
                true,
                &[&tcp(1001, 80, ACK)[..], &[7; 4]].concat(),
            ),
            Reason::NoConnection,
        );
    }
}

fn borders_that_cannot_be_are_denied(way: Way) {
    let mut lab = lab(way);
    for ends in [out(), out6()] {
        lab.assert_allowed(Direction::Egress, &first(ends, 1, 53));
        // Not a multiple of eight although more follow; beyond the largest packet; nothing at all.
        for bad in [
            fragment(ends, UDP, 1, 2, true, &[7; 9]),
            fragment(ends, UDP, 1, 0x1fff, false, &[7; 16]),
            fragment(ends, UDP, 1, 2, false, &[]),
            fragment(ends, UDP, 9, 0, true, &[&udp(1000, 53)[..], &[7; 3]].concat()),
        ] {
            lab.assert_denied(Direction::Egress, &bad, Reason::BadHeader);
        }
    }
}

fn a_first_fragment_speaks_for_five_seconds_of_its_own_policy(way: Way) {
    let mut lab = lab(way);
    for ends in [out(), out6()] {
        program(&mut lab, 53);
        lab.assert_allowed(Direction::Egress, &first(ends, 1, 53));
        program(&mut lab, 54);
        lab.assert_denied(Direction::Egress, &later(ends, 1, 2, false), Reason::Policy);
        program(&mut lab, 53);
        lab.assert_allowed(Direction::Egress, &later(ends, 1, 2, false));
        // The flow is forgotten, and with it what the fragments belong to.
        let later_on = ebpf_loader::monotonic_now() + std::time::Duration::from_secs(100);
        lab.kernel().expire(later_on).expect("expire");
        lab.assert_denied(Direction::Egress, &later(ends, 1, 2, false), Reason::NoConnection);
    }
}

fn an_endpoint_remembers_a_bounded_number_of_packets(way: Way) {
    let mut lab = lab(way);
    let many = 2 * u16::try_from(ebpf_abi::FRAGMENTS_PER_ENDPOINT).expect("a small number");
    for ends in [out(), out6()] {
        for id in 0..many {
            lab.assert_allowed(Direction::Egress, &first(ends, id, 53));
        }
        let remembered = (0..many)
            .filter(|id| lab.judge(Direction::Egress, &later(ends, *id, 2, false)).0 == Verdict::Allow)
            .count();
        assert_eq!(remembered, usize::from(many / 2));
    }
    lab.kernel().detach(ENDPOINT).expect("detach");
}

/// Offsets count from behind the fragment header, so the transport header ends as many bytes later as there are options,
/// and the header that all fragments name is that of the options.
fn options_behind_a_fragment_header_are_a_part_of_the_first(way: Way) {
    const OPTIONS: u8 = 60;
    let mut lab = lab(way);
    let ends = out6();
    // Twenty-four bytes of padding, then a SYN, whose last eight bytes begin at five times eight.
    let options = [&[TCP, 2, 1, 20][..], &[0; 20]].concat();
    let syn = [&options[..], &tcp(1000, 80, SYN), &[7; 4]].concat();
    let other = [&tcp(1001, 22, SYN)[..], &[7; 4]].concat();
    lab.assert_allowed(Direction::Egress, &fragment(ends, OPTIONS, 1, 0, true, &syn));
    for next in [OPTIONS, TCP] {
        for (offset, from) in [(3, 0), (4, 8), (5, 16)] {
            let over = fragment(ends, next, 1, offset, true, &other[from..]);
            lab.assert_denied(Direction::Egress, &over, Reason::Fragment);
        }
    }
    lab.assert_denied(
        Direction::Egress,
        &fragment(ends, TCP, 1, 6, false, &[7; 8]),
        Reason::Fragment,
    );
    lab.assert_allowed(Direction::Egress, &fragment(ends, OPTIONS, 1, 6, false, &[7; 8]));
    // What the options hide is judged all the same, and a first fragment has to show all of it.
    let question = [&[UDP, 0, 1, 4, 0, 0, 0, 0][..], &udp(1000, 54)].concat();
    lab.assert_denied(
        Direction::Egress,
        &fragment(ends, OPTIONS, 2, 0, true, &question),
        Reason::Policy,
    );
    lab.assert_denied(
        Direction::Egress,
        &fragment(ends, OPTIONS, 3, 0, true, &syn[..40]),
        Reason::Fragment,
    );
}

fn errors_in_fragments_are_denied(way: Way) {
    let mut lab = lab(way);
    for (ends, protocol, kind, code) in [(out(), ICMP, 3, 4), (out6(), ICMPV6, 1, 4)] {
        let sent = frame(ends, UDP, &udp(1000, 53));
        lab.assert_allowed(Direction::Egress, &sent);
        let error = icmp_error(kind, code, packet_of(&sent));
        let back = ends.reversed();
        lab.assert_allowed(Direction::Ingress, &frame(back, protocol, &error));
        let padded = [&error[..], &[0; 8][..8 - error.len() % 8]].concat();
        lab.assert_denied(
            Direction::Ingress,
            &fragment(back, protocol, 1, 0, true, &padded),
            Reason::Fragment,
        );
    }
}
