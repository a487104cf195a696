//! Tracked flows and reported decisions: what the programs write.

use crate::{Address, VERDICT_ALLOW, VERDICT_DENY};

/// Most tracked flows of a node. A full table denies new flows; it never forgets a living one.
pub const MAX_FLOWS: u32 = 1 << 17;
/// Most tracked flows of one endpoint, so that one pod cannot take the table from all others.
pub const MAX_FLOWS_PER_ENDPOINT: u64 = (MAX_FLOWS / 4) as u64;
/// Size of the ring that carries [`FlowRecord`]s.
pub const RING_BYTES: u32 = 1 << 20;

/// Key of map `FLOWS`: a flow as one endpoint sees it, the same for both directions.
///
/// Echo requests and replies carry their id as the port of the side that asks and zero for the side that answers;
/// other ICMP messages carry `type << 8 | code` for the side that sends. So a message in one direction never
/// looks like the answer to one in the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// Number of the endpoint.
    pub endpoint: u32,
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
const _: () = assert!(size_of::<FlowKey>() == 28);

/// The other end has answered.
pub const FLOW_REPLIED: u8 = 1 << 0;
/// TCP: a FIN or RST was seen. Packets still pass, but the entry expires soon.
pub const FLOW_CLOSED: u8 = 1 << 1;

/// Value of map `FLOWS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct FlowState {
    /// A packed [`Decision`]: one word, so that a reader never sees half of a new one.
    pub decision: u64,
    /// When the last packet passed, in nanoseconds of the monotonic clock.
    pub last_seen_ns: u64,
    /// Packets of both directions.
    pub packets: u64,
    /// Bytes of both directions, with link-layer headers.
    pub bytes: u64,
    /// Destination port (or ICMP type and code) of the first packet: what policy is asked about.
    pub service_port: u16,
    /// `DIRECTION_*` of the first packet.
    pub origin: u8,
    /// `FLOW_*` bits.
    pub state: u8,
    /// Zero.
    pub padding: [u8; 4],
}
const _: () = assert!(size_of::<FlowState>() == 40);

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

/// One decision, as reported through map `EVENTS`: each new flow that was allowed, and each packet that was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct FlowRecord {
    /// When, in nanoseconds of the monotonic clock.
    pub time_ns: u64,
    /// Source; [`Address::UNSPECIFIED`] when the packet did not get that far.
    pub source: Address,
    /// Destination, likewise.
    pub destination: Address,
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
    /// `DIRECTION_*` of the packet.
    pub direction: u8,
    /// Verdict, the low byte of `VERDICT_*`.
    pub verdict: u8,
    /// [`Reason`](crate::Reason) as a number.
    pub reason: u8,
}
const _: () = assert!(size_of::<FlowRecord>() == 64);

impl FlowRecord {
    /// Size on the ring.
    pub const BYTES: usize = size_of::<Self>();

    /// Reads a record from the ring; `None` when the length is not that of a record.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        // SAFETY: the source is valid for 64 bytes and need not be aligned; every bit pattern is a valid record,
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
