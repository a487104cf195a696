//! Tracked flows and reported decisions: what the programs write.

use crate::{Address, DIRECTION_EGRESS, DIRECTION_INGRESS, VERDICT_ALLOW, VERDICT_DENY, protocol};

/// Most tracked flows of a node. A full table denies new flows; it never forgets a living one.
pub const MAX_FLOWS: u32 = 1 << 17;
/// Most tracked flows of one endpoint, so that one pod cannot take the table from all others.
pub const MAX_FLOWS_PER_ENDPOINT: u64 = (MAX_FLOWS / 4) as u64;
/// Most flows of one endpoint and direction that are not established: unanswered datagrams, half-open connections.
/// Whoever only sends takes this share and no more.
pub const MAX_UNESTABLISHED: u64 = MAX_FLOWS_PER_ENDPOINT / 4;
/// Most of those that peers of one [`peer_bucket`] may have open to an endpoint.
pub const MAX_UNESTABLISHED_PER_BUCKET: u64 = MAX_UNESTABLISHED / 8;
/// Closed flows that are remembered, the newest of a node: an eighth of the table. They count against nobody's share, and
/// keep at most so much room from flows that live.
pub const MAX_CLOSED: u32 = MAX_FLOWS / 8;
/// Buckets of peers of each endpoint.
pub const PEER_BUCKETS: u32 = 64;
/// Size of the ring that carries [`FlowRecord`]s.
pub const RING_BYTES: u32 = 1 << 20;
/// A ring that holds so much wakes its reader, who otherwise lets records gather.
pub const RING_HURRY_BYTES: u32 = RING_BYTES / 4;

/// From one port of an ICMP message that is no echo to the other, see [`FlowKey`].
pub const ICMP_MESSAGE_DISTANCE: u16 = 0x4000;
// Of echoes it is 1 to 256; no two distances may be the same, nor each other's opposites.
const _: () = assert!(ICMP_MESSAGE_DISTANCE > 256 && ICMP_MESSAGE_DISTANCE < 0x8000);

/// Key of map `FLOWS`: a flow as one endpoint sees it, the same for both directions.
///
/// Echo requests and replies carry their id as the port of the side that asks, and as that of the side that answers the
/// id plus one plus their code; other ICMP messages carry `type << 8 | code` for the side that sends, and
/// [`ICMP_MESSAGE_DISTANCE`] more for the other. Sums wrap around. So the distance from one port to the other, whichever
/// way, tells who asked or sent: a message in one direction never looks like the answer to one in the other, and no echo,
/// whose id its sender chooses, like one of the other side, or of another code, or like another message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// Number of the endpoint.
    pub endpoint: u32,
    /// The endpoint's address; of what a host forwards, the receiver's or sender's behind it.
    pub local: Address,
    /// The other end.
    pub peer: Address,
    /// Port of the endpoint.
    pub local_port: u16,
    /// Port of the other end.
    pub peer_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub padding: [u8; 3],
}
const _: () = assert!(size_of::<FlowKey>() == 44);

/// Which of an endpoint's peers share a bucket of [`PEER_BUCKETS`]. One peer fills one bucket; a peer that shares it
/// suffers with it, the other 63 buckets do not.
#[inline(always)]
pub const fn peer_bucket(peer: &Address) -> u32 {
    let [a, b, c, d] = peer.words_be;
    // The odd constant of Knuth's multiplicative hashing, golden ratio times 2^32.
    let mixed = (a ^ b.rotate_left(11) ^ c.rotate_left(19) ^ d).wrapping_mul(0x9e37_79b1);
    mixed >> 26
}
const _: () = assert!(PEER_BUCKETS == 1 << (32 - 26));

/// The other end has answered: for TCP a SYN-ACK of the SYN, for SCTP an INIT-ACK, otherwise any packet.
pub const FLOW_REPLIED: u8 = 1 << 0;
/// The flow is more than an attempt: TCP and SCTP after the whole handshake, otherwise as [`FLOW_REPLIED`].
pub const FLOW_ESTABLISHED: u8 = 1 << 1;
/// A FIN (SCTP: SHUTDOWN) in sequence was sent to the endpoint.
pub const FLOW_FIN_INGRESS: u8 = 1 << 2;
/// A FIN in sequence was sent by the endpoint.
pub const FLOW_FIN_EGRESS: u8 = 1 << 3;
/// A RST in sequence, or an SCTP ABORT or SHUTDOWN COMPLETE with the right tag: the flow is over.
pub const FLOW_RESET: u8 = 1 << 4;
/// TCP: both ends offered window scaling.
pub const FLOW_SCALED: u8 = 1 << 5;

/// The flow was there before anybody tracked it: only a packet from its middle was seen, and which end opened it is a guess
/// that policy allows. Hosts only.
pub const FLOW_ADOPTED: u8 = 1 << 6;

/// [`FlowSide::scale`] of an end that did not offer window scaling.
pub const SCALE_NONE: u8 = 255;
/// The largest window scale (RFC 7323): that of an adopted flow's ends, whose offers nobody has heard.
pub const SCALE_LARGEST: u8 = 14;
/// As [`SCALE_LARGEST`], of the end that had sent nothing yet when the flow was adopted. Its low four bits are the scale.
pub const SCALE_UNHEARD: u8 = 0xf0 | SCALE_LARGEST;

/// [`FlowSide::way`]: not known yet; packets go by the host's stack.
pub const WAY_UNKNOWN: u8 = 0;
/// [`FlowSide::way`]: packets go by the host's stack, which knows the other end.
pub const WAY_HOST: u8 = 1;
/// [`FlowSide::way`]: packets go straight to the pod at the other end, which judges the same flow.
pub const WAY_DIRECT: u8 = 2;

/// [`FlowState::carrier`]: an interface that is no pod's. No interface has this index.
pub const CARRIED: u32 = u32::MAX;

/// Not in [`FlowState::state`]: the packet closes the flow, see [`FlowState::closed`].
pub const FLOW_CLOSED: u8 = 1 << 7;

/// [`FlowState::closed`]: nothing more is to come.
pub const CLOSED: u32 = 1 << 0;
/// [`FlowState::closed`]: something came all the same, to the endpoint. The bit above it: from the endpoint.
pub const CLOSED_YET_HEARD: u32 = 1 << 1;

/// What one end of a TCP connection has shown of itself, and how its packets go on. For SCTP `end` is the verification
/// tag that packets to this end carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct FlowSide {
    /// Highest sequence number sent, plus one.
    pub end: u32,
    /// Highest acknowledgement sent. Before there is one: the lowest that would be right.
    pub acked: u32,
    /// Largest window offered, in bytes.
    pub window: u32,
    /// Window scale, or [`SCALE_NONE`].
    pub scale: u8,
    /// `WAY_*` of what this end sends, if it is the endpoint. Any protocol.
    pub way: u8,
    /// One half of [`FlowState::carrier`], which has no room elsewhere. Any protocol.
    pub carrier: u16,
}
const _: () = assert!(size_of::<FlowSide>() == 16);

/// Value of map `FLOWS`. Pairs are indexed by `DIRECTION_*` of the packets they are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct FlowState {
    /// A packed [`Decision`]: one word, so that a reader never sees half of a new one.
    pub decision: u64,
    /// When the first packet passed, in nanoseconds of the monotonic clock.
    pub opened_ns: u64,
    /// When the last packet passed, likewise.
    pub last_seen_ns: u64,
    /// Destination port (or ICMP type and code) of the first packet: what policy is asked about.
    pub service_port: u16,
    /// `DIRECTION_*` of the first packet, or of whoever is taken to have sent it, see [`FLOW_ADOPTED`].
    pub origin: u8,
    /// `FLOW_*` bits.
    pub state: u8,
    /// Bits: [`CLOSED`] once nothing more is to come: both ends have acknowledged the other's FIN, or a RST or ABORT came
    /// exactly where it is believed. Such a flow counts against no share, and makes room when there are [`MAX_CLOSED`] newer
    /// ones. Whether its receiver has believed it, only what follows shows ([`CLOSED_YET_HEARD`]).
    pub closed: u32,
    /// Packets.
    pub packets: [u64; 2],
    /// Bytes, with link-layer headers.
    pub bytes: [u64; 2],
    /// What the senders have shown of themselves.
    pub sides: [FlowSide; 2],
}
const _: () = assert!(size_of::<FlowState>() == 96);
const _: () = assert!(core::mem::offset_of!(FlowState, closed) == 28);
// What each packet writes has a cache line of its own: elements of the table are aligned, and begin with 48 bytes of the
// kernel's and 48 of the key. Other CPUs read what is before it, and keep their copies.
const _: () = assert!(core::mem::offset_of!(FlowState, packets) == 32);

impl FlowState {
    /// What a host translates carries its address, but is not its own: where it came from. 0 for all other flows; else the
    /// host side of the link of the pod that opened it, or [`CARRIED`] where that was no pod.
    #[inline(always)]
    pub const fn carrier(&self) -> u32 {
        let [low, high] = &self.sides;
        low.carrier as u32 | (high.carrier as u32) << 16
    }

    /// These sides of a flow that `carrier` opened.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "takes the halves apart")]
    pub const fn carried(sides: [FlowSide; 2], carrier: u32) -> [FlowSide; 2] {
        let [mut low, mut high] = sides;
        low.carrier = carrier as u16;
        high.carrier = (carrier >> 16) as u16;
        [low, high]
    }

    /// Whether nothing more is to come.
    #[inline(always)]
    pub const fn is_closed(&self) -> bool {
        self.closed & CLOSED != 0
    }

    /// Whether it was adopted by what one end sent, and the other has not shown that there is such a connection.
    #[inline(always)]
    pub const fn is_guess(&self) -> bool {
        self.state & (FLOW_ADOPTED | FLOW_REPLIED) == FLOW_ADOPTED
    }

    /// `DIRECTION_*` of the packet with which tracking began, in whose share the flow is until it is established. That of
    /// the first packet, unless an answer was seen first.
    #[inline(always)]
    pub const fn begun(&self) -> u8 {
        let [_, from_endpoint] = &self.sides;
        if self.state & FLOW_ADOPTED == 0 {
            self.origin
        } else if from_endpoint.scale == SCALE_UNHEARD {
            DIRECTION_INGRESS
        } else {
            DIRECTION_EGRESS
        }
    }

    /// Whether both ends have said that they are done, or one that it gives up.
    #[inline(always)]
    pub const fn is_over(state: u8) -> bool {
        const BOTH: u8 = FLOW_FIN_INGRESS | FLOW_FIN_EGRESS;
        state & FLOW_RESET != 0 || state & BOTH == BOTH
    }

    /// How long a flow of this protocol may be silent before it is forgotten, in nanoseconds: by user space, which looks
    /// through all flows, and where a packet could also open a flow, by the program that finds one so old.
    ///
    /// An established TCP connection gets a day: a packet in the middle of an unknown connection is denied, so forgetting
    /// one early breaks it. What is no more than an attempt gets little, and so does a question with its answer, such as
    /// those of name service; the rest follows what Linux's own connection tracking uses.
    #[inline(always)]
    pub const fn silence_ns(&self, protocol: u8) -> u64 {
        /// Datagrams that still flow both ways after this long are a stream, not a question and its answer.
        const STREAM_AFTER_NS: u64 = 2 * SECOND_NS;
        let established = self.state & FLOW_ESTABLISHED != 0;
        let stream = self.last_seen_ns.saturating_sub(self.opened_ns) > STREAM_AFTER_NS;
        let seconds = match protocol {
            _ if Decision::unpack(self.decision).verdict != VERDICT_ALLOW => 60,
            protocol::TCP | protocol::SCTP if self.state & FLOW_RESET != 0 => 10,
            protocol::TCP | protocol::SCTP if Self::is_over(self.state) => 60,
            protocol::TCP | protocol::SCTP if !established => 30,
            protocol::TCP if self.state & (FLOW_FIN_INGRESS | FLOW_FIN_EGRESS) != 0 => 600,
            protocol::TCP => 24 * 3600,
            protocol::ICMP | protocol::ICMPV6 => 30,
            protocol::UDP | protocol::UDPLITE if established && stream => 180,
            protocol::UDP | protocol::UDPLITE => 30,
            protocol::SCTP => 600,
            _ if self.state & FLOW_REPLIED != 0 => 600,
            _ => 60,
        };
        seconds * SECOND_NS
    }

    /// Whether a flow of another protocol than TCP and SCTP has been silent for longer than that. Another CPU may have seen
    /// a later moment than `now_ns`.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_wrap,
        reason = "differences of two moments, either of which may be the later one"
    )]
    pub const fn is_silent(&self, protocol: u8, now_ns: u64) -> bool {
        /// None may be silent for less, so that most packets are compared once.
        const SHORTEST_NS: u64 = 30 * SECOND_NS;
        let silent = now_ns.wrapping_sub(self.last_seen_ns);
        silent as i64 > SHORTEST_NS as i64 && silent > self.silence_ns(protocol)
    }
}

const SECOND_NS: u64 = 1_000_000_000;

/// Value of map `CLOSED`, an array that is written around and around: a flow that was closed. It may have gone since, or
/// been opened anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ClosedFlow {
    /// The flow; all zero in a place that was never written.
    pub key: FlowKey,
    /// Interface on the host, for the report of its end.
    pub ifindex: u32,
}
const _: () = assert!(size_of::<ClosedFlow>() == 48);

/// Fragmented packets that are remembered for each endpoint.
pub const FRAGMENTS_PER_ENDPOINT: u32 = 16;
/// How long the first fragment of a packet speaks for the others.
pub const FRAGMENT_TIMEOUT_NS: u64 = 5_000_000_000;

/// Value of map `FRAGMENTS`, an array: [`FRAGMENTS_PER_ENDPOINT`] for each slot. What the first fragment of a packet
/// showed, for those that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Fragment {
    /// When the first fragment passed.
    pub time_ns: u64,
    /// The other end.
    pub peer: Address,
    /// Identification of the packet.
    pub id: u32,
    /// Port of the endpoint, as in the flow's key.
    pub local_port: u16,
    /// Port of the other end.
    pub peer_port: u16,
    /// Where the first fragment ends, in units of eight bytes: nothing that follows may begin before.
    pub end: u16,
    /// What policy is asked about, for reports.
    pub service_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// `DIRECTION_*`.
    pub direction: u8,
    /// What the fragment header names, which those that follow repeat; the protocol, unless options are between.
    pub next: u8,
    /// Zero.
    pub padding: u8,
}
const _: () = assert!(size_of::<Fragment>() == 40);

/// Most kinds of denials that are remembered. The longest unused is forgotten first, with what it had counted: see
/// [`Slot::counted`](crate::Slot::counted).
pub const MAX_DENIALS: u32 = 8192;

/// Key of map `DENIALS`: denials that are told as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct DenialKey {
    /// Interface on the host.
    pub ifindex: u32,
    /// Number of the endpoint; 0 when the interface has none.
    pub endpoint: u32,
    /// The endpoint's own address, or the one that it claims to have; of what a host forwards, the one behind it.
    pub local: Address,
    /// The other end.
    pub peer: Address,
    /// Ports as in [`FlowKey`].
    pub local_port: u16,
    /// Port of the other end.
    pub peer_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// `DIRECTION_*`.
    pub direction: u8,
    /// [`Reason`](crate::Reason) as a number.
    pub reason: u8,
    /// Zero.
    pub padding: u8,
}
const _: () = assert!(size_of::<DenialKey>() == 48);

/// Value of map `DENIALS`: the last report, and what came after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Denial {
    /// When it was last reported.
    pub reported_ns: u64,
    /// Packets since then.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The packed [`Decision`] about the last packet: one word, so that no rule is taken for one of another change.
    pub decision: u64,
    /// As [`FlowRecord::source_port`].
    pub source_port: u16,
    /// As [`FlowRecord::destination_port`].
    pub destination_port: u16,
    /// Zero.
    pub padding: [u8; 4],
}
const _: () = assert!(size_of::<Denial>() == 40);

/// What was decided about a flow, under which tables, by which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Number of the change of the endpoint's tables that judged, see
    /// [`EndpointState::change`](crate::EndpointState::change).
    pub change: u32,
    /// Rule that decided. The top bit is lost when packed; ids never come near it.
    pub rule: u32,
    /// `VERDICT_*`.
    pub verdict: u32,
}

impl Decision {
    /// `change << 32 | rule << 1 | allow`.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.change as u64) << 32
            | ((self.rule & 0x7fff_ffff) as u64) << 1
            | (self.verdict == VERDICT_ALLOW) as u64
    }

    /// Inverse of [`Decision::pack`].
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "takes the packed fields apart")]
    pub const fn unpack(packed: u64) -> Self {
        Self {
            change: (packed >> 32) as u32,
            rule: (packed >> 1) as u32 & 0x7fff_ffff,
            verdict: if packed & 1 == 1 {
                VERDICT_ALLOW
            } else {
                VERDICT_DENY
            },
        }
    }
}

/// [`FlowRecord::kind`]: a flow was allowed and opened.
pub const RECORD_START: u8 = 0;
/// [`FlowRecord::kind`]: packets were denied; how many, `packets` says.
pub const RECORD_DENIED: u8 = 1;
/// [`FlowRecord::kind`]: a flow lives; totals so far. Made by user space.
pub const RECORD_UPDATE: u8 = 2;
/// [`FlowRecord::kind`]: a flow ended; totals. Made by user space.
pub const RECORD_END: u8 = 3;

/// [`FlowRecord::end`]: the flow has not ended.
pub const END_NONE: u8 = 0;
/// [`FlowRecord::end`]: both ends closed it.
pub const END_CLOSED: u8 = 1;
/// [`FlowRecord::end`]: one end reset it.
pub const END_RESET: u8 = 2;
/// [`FlowRecord::end`]: it fell silent.
pub const END_SILENT: u8 = 3;
/// [`FlowRecord::end`]: policy had come to deny it.
pub const END_DENIED: u8 = 4;
/// [`FlowRecord::end`]: the endpoint, or the one at the other end, is gone.
pub const END_REMOVED: u8 = 5;

/// One decision, or what became of a flow. Through map `EVENTS` come each new flow that was allowed, and packets that
/// were denied; the rest user space makes of what it finds in the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct FlowRecord {
    /// When, in nanoseconds of the monotonic clock; for denials of the last packet that is counted.
    pub time_ns: u64,
    /// When the flow opened; for denials 0.
    pub opened_ns: u64,
    /// Source; [`Address::UNSPECIFIED`] when the packet did not get that far.
    pub source: Address,
    /// Destination, likewise.
    pub destination: Address,
    /// Packets, by `DIRECTION_*`.
    pub packets: [u64; 2],
    /// Bytes, likewise.
    pub bytes: [u64; 2],
    /// Interface on the host.
    pub ifindex: u32,
    /// Number of the endpoint; 0 when the interface has none.
    pub endpoint: u32,
    /// Change of the endpoint's tables that was in force.
    pub epoch: u32,
    /// Rule that decided, if `reason` is [`Reason::Policy`](crate::Reason::Policy).
    pub rule: u32,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port; for ICMP `type << 8 | code`.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// `DIRECTION_*` of the packet, or of the flow's first one.
    pub direction: u8,
    /// Verdict, the low byte of `VERDICT_*`.
    pub verdict: u8,
    /// [`Reason`](crate::Reason) as a number.
    pub reason: u8,
    /// `RECORD_*`.
    pub kind: u8,
    /// `END_*`.
    pub end: u8,
    /// Zero.
    pub padding: [u8; 6],
}
const _: () = assert!(size_of::<FlowRecord>() == 112);

impl FlowRecord {
    /// Size on the ring.
    pub const BYTES: usize = size_of::<Self>();

    /// Reads a record from the ring; `None` when the length is not that of a record.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        // SAFETY: the source is valid for as many bytes and need not be aligned; every bit pattern is a valid record,
        // since it consists of integers without padding (the size assertion above).
        Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast::<Self>()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_decision_keeps_its_parts() {
        for decision in [
            Decision {
                change: 0,
                rule: 0,
                verdict: VERDICT_DENY,
            },
            Decision {
                change: u32::MAX,
                rule: 0x7fff_ffff,
                verdict: VERDICT_ALLOW,
            },
            Decision {
                change: 7,
                rule: 64,
                verdict: VERDICT_DENY,
            },
        ] {
            assert_eq!(Decision::unpack(decision.pack()), decision);
        }
    }

    #[test]
    fn both_sides_together_tell_the_carrier() {
        for carrier in [0, 7, 0x0001_0000, 0x7fff_ffff, CARRIED] {
            let flow = FlowState {
                decision: 0,
                opened_ns: 0,
                last_seen_ns: 0,
                service_port: 0,
                origin: 0,
                state: 0,
                closed: 0,
                packets: [0; 2],
                bytes: [0; 2],
                sides: FlowState::carried([FlowSide::default(); 2], carrier),
            };
            assert_eq!(flow.carrier(), carrier);
        }
    }

    #[test]
    fn silence_is_told_from_a_later_moment() {
        let mut flow = FlowState {
            decision: Decision {
                change: 1,
                rule: 0,
                verdict: VERDICT_ALLOW,
            }
            .pack(),
            opened_ns: 0,
            last_seen_ns: 5 * SECOND_NS,
            service_port: 0,
            origin: 0,
            state: FLOW_ESTABLISHED,
            closed: 0,
            packets: [0; 2],
            bytes: [0; 2],
            sides: [FlowSide::default(); 2],
        };
        let silent = |flow: &FlowState, seconds| flow.is_silent(protocol::UDP, seconds * SECOND_NS);
        assert!(!silent(&flow, 4) && !silent(&flow, 185) && silent(&flow, 186));
        flow.state = 0;
        assert!(!silent(&flow, 4) && !silent(&flow, 35) && silent(&flow, 36));
        flow.decision &= !1;
        assert!(!silent(&flow, 65) && silent(&flow, 66));
    }

    #[test]
    fn an_unknown_verdict_packs_as_a_denial() {
        let packed = Decision {
            change: 1,
            rule: 1,
            verdict: 7,
        }
        .pack();
        assert_eq!(Decision::unpack(packed).verdict, VERDICT_DENY);
    }

    #[test]
    fn records_of_a_wrong_length_are_refused() {
        assert!(FlowRecord::from_bytes(&[0; FlowRecord::BYTES]).is_some());
        assert!(FlowRecord::from_bytes(&[0; FlowRecord::BYTES - 1]).is_none());
        assert!(FlowRecord::from_bytes(&[0; FlowRecord::BYTES + 1]).is_none());
    }
}
