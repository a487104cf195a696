//! What packets tell about the flow they belong to: attempts, established flows, ends.
//!
//! Nothing here drops a packet. Verdicts are policy's; what is tracked decides how long a flow is remembered, and which
//! share of its endpoint it counts against. So the question is what a peer, or who poses as one, can make us believe:
//!
//! - A flow is established only when its opener has answered the other end's answer, with numbers that it can only know
//!   from there.
//! - A RST or FIN counts only if the receiver would accept it: a RST between what the receiver has acknowledged and
//!   what the sender has sent (RFC 5961 makes stacks as strict), a FIN in a segment within the windows. Numbers out of
//!   the window change nothing. The rules are those of Linux's `nf_conntrack_proto_tcp.c`, without its exceptions.
//! - A flow that is adopted from its middle, as a host's may be, is established only when the other end has sent a
//!   segment within the windows that acknowledges what was seen first. Until then it is an attempt like others, which
//!   the receiver's own reset ends, and a SYN opens anew.
//! - A SYN on a live flow is no end of it: it passes, if policy allows it, for the receiver's stack to answer.
//! - Whether the receiver gets to see a RST or FIN, and takes it for one, cannot be known: its checksum may be wrong (the
//!   kernel leaves most to be computed later, so it cannot be told here), its time to live may end on the way. But who
//!   believes in an end does not go on. So a flow that was closed lives on when either end acknowledges what the other has
//!   sent since then. One end alone cannot have that, and what it says of the other, which is gone, is answered by a reset
//!   that closes the flow again.

use ebpf_abi::{
    CLOSED_YET_HEARD, FLOW_ADOPTED, FLOW_CLOSED, FLOW_ESTABLISHED, FLOW_FIN_EGRESS, FLOW_FIN_INGRESS, FLOW_REPLIED, FLOW_RESET, FLOW_SCALED,
    FlowSide, FlowState, SCALE_LARGEST, SCALE_NONE, SCALE_UNHEARD, protocol,
};

use crate::atomic::set_half;
use crate::packet::{
    PIECE_LATER, Packet, SCTP_ABORT, SCTP_COOKIE_ACK, SCTP_COOKIE_ECHO, SCTP_INIT, SCTP_INIT_ACK, SCTP_SHUTDOWN,
    SCTP_SHUTDOWN_ACK, SCTP_SHUTDOWN_COMPLETE, Segment, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN,
};

/// Acknowledgements may lie so far back whatever the window: `MAXACKWINCONST` of Linux.
const OLD_ACK_BYTES: u32 = 66_000;
/// The T bit of ABORT and SHUTDOWN COMPLETE: the tag is the sender's own.
const SCTP_T_BIT: u8 = 1;

/// The sides of a flow that `packet` opens.
#[inline(always)]
pub(crate) fn opened(packet: &Packet) -> [FlowSide; 2] {
    let mut sides = [FlowSide::default(); 2];
    let (mine, other) = indices(packet.direction);
    let segment = &packet.segment;
    if packet.protocol == protocol::TCP {
        sides[mine] = FlowSide {
            end: segment.sequence.wrapping_add(segment.length),
            acked: 0,
            window: segment.window,
            scale: segment.scale,
            ..FlowSide::default()
        };
        // The answer acknowledges the SYN, and perhaps data that came with it.
        sides[other].acked = segment.sequence.wrapping_add(1);
    } else if packet.protocol == protocol::SCTP {
        sides[mine].end = segment.acknowledged;
    }
    sides
}

/// Whether the packet may be from the middle of a connection: one that neither opens it, nor ends it at once.
#[inline(always)]
pub(crate) fn is_middle(packet: &Packet) -> bool {
    let flags = packet.segment.flags;
    packet.fragment.kind != PIECE_LATER
        && match packet.protocol {
            protocol::TCP => flags & (TCP_SYN | TCP_RST | TCP_ACK) == TCP_ACK,
            protocol::SCTP => !matches!(
                flags,
                SCTP_INIT | SCTP_INIT_ACK | SCTP_COOKIE_ECHO | SCTP_COOKIE_ACK | SCTP_ABORT | SCTP_SHUTDOWN_COMPLETE
            ),
            _ => false,
        }
}

/// The sides and the state of a flow that `packet` is from the middle of. Its sender has shown its numbers, and how far it
/// has heard the other end; scales nobody has heard, so windows are the largest that they may be.
#[inline(always)]
pub(crate) fn adopted(packet: &Packet) -> ([FlowSide; 2], u8) {
    let mut sides = [FlowSide::default(); 2];
    let (mine, other) = indices(packet.direction);
    let segment = &packet.segment;
    if packet.protocol == protocol::TCP {
        let window = segment.window << SCALE_LARGEST;
        sides[mine] = FlowSide {
            end: segment.sequence.wrapping_add(segment.length),
            acked: segment.acknowledged,
            window,
            ..FlowSide::default()
        };
        sides[other] = FlowSide {
            end: segment.acknowledged,
            acked: segment.sequence,
            window,
            ..FlowSide::default()
        };
    } else {
        sides[other].end = segment.sequence;
    }
    sides[mine].scale = SCALE_LARGEST;
    sides[other].scale = SCALE_UNHEARD;
    // The last words of a connection that is over are sent again, and answered. That makes no connection which may be silent
    // for a day.
    let is_last = packet.protocol == protocol::TCP && segment.flags & TCP_FIN != 0;
    (sides, if is_last { FLOW_ADOPTED | fin(packet.direction) } else { FLOW_ADOPTED })
}

/// Bits of [`FlowState::state`] that `packet`, which has passed, adds to the flow, and [`FLOW_CLOSED`] if nothing more is
/// to come.
#[inline(always)]
pub(crate) fn follow<const HOST: bool>(flow: &mut FlowState, packet: &Packet) -> u8 {
    if packet.fragment.kind == PIECE_LATER {
        return 0;
    }
    match packet.protocol {
        protocol::TCP => follow_tcp::<HOST>(flow, packet),
        protocol::SCTP => follow_sctp::<HOST>(flow, packet),
        _ if packet.direction != flow.origin => FLOW_REPLIED | FLOW_ESTABLISHED,
        _ => 0,
    }
}

/// Whether `packet`, of a flow that is closed, shows that it is not: it acknowledges what the other end has sent since. What
/// either end had sent until then is what its side shows; if nothing was seen of an end, all is new.
#[inline(always)]
pub(crate) fn lives_on(flow: &mut FlowState, packet: &Packet) -> bool {
    let (mine, other) = indices(packet.direction);
    let segment = &packet.segment;
    let end = segment.sequence.wrapping_add(segment.length);
    let unseen = flow.state & (FLOW_REPLIED | FLOW_ADOPTED) == 0;
    let (sends, acknowledges) = match packet.protocol {
        _ if packet.fragment.kind == PIECE_LATER => return false,
        protocol::TCP if segment.flags & (TCP_RST | TCP_SYN | TCP_ACK) == TCP_ACK => (
            segment.length != 0 && (unseen || before(flow.sides[mine].end, end)),
            unseen || before(flow.sides[other].end, segment.acknowledged),
        ),
        // Either end goes on with the tag that the other knows.
        protocol::SCTP if !matches!(segment.flags, SCTP_ABORT | SCTP_SHUTDOWN_COMPLETE) => {
            let right_tag = unseen || segment.sequence == flow.sides[other].end;
            (right_tag, right_tag)
        }
        _ => return false,
    };
    if acknowledges && flow.closed & CLOSED_YET_HEARD << other != 0 {
        if packet.protocol == protocol::TCP {
            flow.sides[mine].end = end;
            flow.sides[mine].acked = segment.acknowledged;
            flow.sides[other].end = segment.acknowledged;
        }
        return true;
    }
    if sends {
        set_half(&raw mut flow.closed, CLOSED_YET_HEARD << mine);
    }
    false
}

/// A SYN from the other end of a flow that is not answered yet: both open at once.
#[inline(always)]
pub(crate) fn open_both(flow: &mut FlowState, packet: &Packet) -> u8 {
    if packet.protocol != protocol::TCP || flow.state & FLOW_REPLIED != 0 {
        return 0;
    }
    let (mine, other) = indices(packet.direction);
    let segment = &packet.segment;
    let first_acked = flow.sides[mine].acked;
    flow.sides[mine] = FlowSide {
        end: segment.sequence.wrapping_add(segment.length),
        acked: first_acked,
        window: segment.window,
        scale: segment.scale,
        ..flow.sides[mine]
    };
    flow.sides[other].acked = segment.sequence.wrapping_add(1);
    FLOW_REPLIED | scaled(&flow.sides)
}

#[inline(always)]
fn follow_tcp<const HOST: bool>(flow: &mut FlowState, packet: &Packet) -> u8 {
    let (mine, other) = indices(packet.direction);
    let segment = packet.segment;
    let end = segment.sequence.wrapping_add(segment.length);
    let acks = segment.flags & TCP_ACK != 0;
    let from_origin = packet.direction == flow.origin;
    let theirs = flow.sides[other];
    let ours = flow.sides[mine];
    let adopted = HOST && flow.state & FLOW_ADOPTED != 0;

    if flow.state & FLOW_REPLIED == 0 && !adopted {
        if from_origin {
            return 0;
        }
        // Both answers to a SYN acknowledge it.
        if !acks || !within(ours.acked, segment.acknowledged, theirs.end) {
            return 0;
        }
        if segment.flags & TCP_RST != 0 {
            return reset(flow);
        }
        if segment.flags & TCP_SYN == 0 {
            return 0;
        }
        flow.sides[mine] = FlowSide {
            end,
            acked: segment.acknowledged,
            window: segment.window,
            scale: segment.scale,
            ..ours
        };
        flow.sides[other].acked = segment.sequence.wrapping_add(1);
        return FLOW_REPLIED | scaled(&flow.sides);
    }

    if segment.flags & TCP_RST != 0 {
        // Stacks believe one that is exactly what they expect next: what they have acknowledged, or what they will have.
        // In between they ask back (RFC 5961), and the connection may live on.
        return if segment.sequence == theirs.acked || segment.sequence == ours.end {
            reset(flow)
        } else if within(theirs.acked, segment.sequence, ours.end) {
            reset(flow) & !FLOW_CLOSED
        } else {
            0
        };
    }
    let scales = (flow.state & FLOW_SCALED != 0 || adopted) && segment.flags & TCP_SYN == 0;
    let window = if scales {
        segment.window << (ours.scale & 15)
    } else {
        segment.window
    };
    if !acks || !in_windows(&segment, end, window, &ours, &theirs) {
        return 0;
    }
    let mut bits = 0;
    let proves = if adopted { ours.scale == SCALE_UNHEARD } else { from_origin };
    if proves && flow.state & FLOW_ESTABLISHED == 0 {
        // The opener proves that it has seen the answer: it acknowledges that, not less. In the middle of a connection that
        // may take a while, for what is on its way.
        if within(ours.acked, segment.acknowledged, theirs.end) {
            bits |= FLOW_ESTABLISHED | FLOW_REPLIED;
        } else if !adopted {
            return 0;
        }
    }
    let side = &mut flow.sides[mine];
    if before(side.end, end) {
        side.end = end;
    }
    if before(side.acked, segment.acknowledged) {
        side.acked = segment.acknowledged;
    }
    if side.window < window {
        side.window = window;
    }
    if segment.flags & TCP_FIN != 0 {
        bits |= fin(packet.direction);
    }
    // The last of the two acknowledgements; what comes later repeats something.
    let [a, b] = &flow.sides;
    if FlowState::is_over(flow.state | bits) && a.acked == b.end && b.acked == a.end {
        bits |= FLOW_CLOSED;
    }
    bits
}

/// What a reset, of which the receiver is sure, says about the flow: if both ends have closed, it ends nothing that was
/// not over.
#[inline(always)]
fn reset(flow: &FlowState) -> u8 {
    if FlowState::is_over(flow.state) {
        FLOW_CLOSED
    } else {
        FLOW_RESET | FLOW_CLOSED
    }
}

/// Whether the segment is one that the receiver may accept, and acknowledges what may be acknowledged.
#[inline(always)]
fn in_windows(segment: &Segment, end: u32, window: u32, ours: &FlowSide, theirs: &FlowSide) -> bool {
    let offered = if theirs.window == 0 { 1 } else { theirs.window };
    let old_ack = if window > OLD_ACK_BYTES {
        window
    } else {
        OLD_ACK_BYTES
    };
    // Does not begin beyond what the receiver offered, does not end before what it may still want repeated.
    !before(theirs.acked.wrapping_add(offered), segment.sequence)
        && !before(end, ours.end.wrapping_sub(offered).wrapping_sub(1))
        // Acknowledges nothing that was not sent, and nothing of long ago.
        && !before(theirs.end, segment.acknowledged)
        && !before(segment.acknowledged, theirs.end.wrapping_sub(old_ack))
}

#[inline(always)]
fn follow_sctp<const HOST: bool>(flow: &mut FlowState, packet: &Packet) -> u8 {
    let (mine, other) = indices(packet.direction);
    let segment = packet.segment;
    let chunk = segment.flags;
    let from_origin = packet.direction == flow.origin;
    let right_tag = segment.sequence == flow.sides[other].end;
    if HOST && flow.is_guess() {
        return follow_adopted_sctp(flow, packet);
    }
    if flow.state & FLOW_REPLIED == 0 {
        if from_origin || !right_tag {
            return 0;
        }
        return match chunk {
            SCTP_ABORT => reset(flow),
            SCTP_INIT_ACK => {
                flow.sides[mine].end = segment.acknowledged;
                FLOW_REPLIED
            }
            _ => 0,
        };
    }
    let own_tag = segment.chunk_flags & SCTP_T_BIT != 0 && segment.sequence == flow.sides[mine].end;
    match chunk {
        SCTP_ABORT | SCTP_SHUTDOWN_COMPLETE if right_tag || own_tag => reset(flow),
        _ if !right_tag => 0,
        SCTP_SHUTDOWN | SCTP_SHUTDOWN_ACK => fin(packet.direction),
        _ if from_origin => FLOW_ESTABLISHED,
        _ => 0,
    }
}

/// The tag that packets to the first sender carry, only the other end can show. Nobody can tell whether it is right: until
/// then, what would end the flow must carry the one that was seen.
#[inline(always)]
fn follow_adopted_sctp(flow: &mut FlowState, packet: &Packet) -> u8 {
    let (mine, other) = indices(packet.direction);
    let segment = packet.segment;
    let ends = matches!(segment.flags, SCTP_ABORT | SCTP_SHUTDOWN_COMPLETE);
    let is_other_end = flow.sides[mine].scale == SCALE_UNHEARD;
    if ends {
        let known = if is_other_end && segment.chunk_flags & SCTP_T_BIT != 0 {
            mine
        } else if is_other_end {
            return 0;
        } else {
            other
        };
        return if segment.sequence == flow.sides[known].end { reset(flow) } else { 0 };
    }
    if !is_other_end {
        return 0;
    }
    flow.sides[other].end = segment.sequence;
    FLOW_REPLIED | FLOW_ESTABLISHED
}

#[inline(always)]
fn scaled(sides: &[FlowSide; 2]) -> u8 {
    if sides[0].scale != SCALE_NONE && sides[1].scale != SCALE_NONE {
        FLOW_SCALED
    } else {
        0
    }
}

#[inline(always)]
fn fin(direction: u8) -> u8 {
    if direction == ebpf_abi::DIRECTION_EGRESS {
        FLOW_FIN_EGRESS
    } else {
        FLOW_FIN_INGRESS
    }
}

/// Indices of the sender's and the receiver's side.
#[inline(always)]
fn indices(direction: u8) -> (usize, usize) {
    ((direction & 1) as usize, (direction & 1 ^ 1) as usize)
}

/// Whether `a` comes before `b` in sequence space.
#[inline(always)]
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// `low <= value <= high` in sequence space.
#[inline(always)]
fn within(low: u32, value: u32, high: u32) -> bool {
    value.wrapping_sub(low) <= high.wrapping_sub(low)
}
