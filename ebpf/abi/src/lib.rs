//! The bytes that the kernel programs and user space share: map keys, map values, event records.
//!
//! Only layout and the words for codes live here; what the numbers mean is `policies_ir::tables`, how they are
//! filled is `ebpf/loader`, how they are read is `ebpf/programs`. Every type is `repr(C)` with fixed-width
//! fields, explicit padding and a size assertion; whatever is in network byte order says so in its name,
//! everything else is in the byte order of the machine. Enums never cross the boundary: codes are integers with
//! named constants, and a reader treats an unknown code as a denial.
//!
//! Entry points: [`Endpoint`] and [`Slot`] (who is behind an interface, and which tables judge it), [`VerdictKey`] (what policy says), [`FlowKey`] and
//! [`FlowState`] (tracked flows), [`FlowRecord`] (what is reported).

#![no_std]

mod address;
mod flow;
mod keys;
mod learn;
mod reason;

pub use address::Address;
pub use flow::{
    CARRIED, CLOSED, CLOSED_YET_HEARD, ClosedFlow, Decision, Denial, DenialKey, END_CLOSED, END_DENIED,
    END_NONE, END_REMOVED, END_RESET, END_SILENT, FLOW_ADOPTED, FLOW_CLOSED, FLOW_ESTABLISHED,
    FLOW_FIN_EGRESS, FLOW_FIN_INGRESS, FLOW_REPLIED, FLOW_RESET, FLOW_SCALED, FRAGMENT_TIMEOUT_NS,
    FRAGMENTS_PER_ENDPOINT, FlowKey, FlowRecord, FlowSide, FlowState, Fragment, ICMP_MESSAGE_DISTANCE,
    MAX_CLOSED, MAX_DENIALS, MAX_FLOWS, MAX_FLOWS_PER_ENDPOINT, MAX_UNESTABLISHED,
    MAX_UNESTABLISHED_PER_BUCKET, PEER_BUCKETS, RECORD_DENIED, RECORD_END, RECORD_START, RECORD_UPDATE,
    RING_BYTES, RING_HURRY_BYTES, SCALE_LARGEST, SCALE_NONE, SCALE_UNHEARD, WAY_DIRECT, WAY_HOST,
    WAY_UNKNOWN, peer_bucket,
};
pub use keys::{
    AddressClass, ENDPOINT_HAS_IPV4, ENDPOINT_HAS_IPV6, ENDPOINT_HAS_UNTRACKED, EPOCH_NONE, Endpoint,
    EndpointState, FAMILY_IPV4, FAMILY_IPV6, GENERATION_GROUP, HostKey, IDENTITY_PREFIX_BASE, IdentityKey,
    InsideClasses, InsideKey, MAX_ENDPOINTS, MAX_EPOCH, MAX_HOST_ADDRESSES, MAX_IDENTITIES, MAX_INSIDES,
    MAX_POD_ADDRESSES, MAX_SOURCES, MAX_SPLITS, MAX_VERDICTS, NO_CLASS, PodLink, RANK_ANY, RANK_PORT,
    RANK_PROTOCOL, SOURCE_PREFIX_BASE, STATE_HAS_INSIDES, STATE_HAS_SOURCES, STATE_KEEP_ESTABLISHED, Slot,
    SourceKey, SplitKey, VerdictKey, VerdictValue, base_generation,
};
pub use learn::{LEARN_CALLS, LEARN_CAPABILITIES, LearnNamespace};
pub use reason::{COUNTER_ALLOWED, COUNTER_DENIED, COUNTER_LOST_EVENTS, COUNTERS, Reason};

/// Direction of a packet or of a flow's first packet: to the endpoint.
pub const DIRECTION_INGRESS: u8 = 0;
/// Direction of a packet or of a flow's first packet: from the endpoint.
pub const DIRECTION_EGRESS: u8 = 1;

/// Verdict code: dropped. Zero, so that forgotten or zeroed memory denies.
pub const VERDICT_DENY: u32 = 0;
/// Verdict code: passed on. Any other number but this one is a denial.
pub const VERDICT_ALLOW: u32 = 1;

/// Rule id of "nothing matched", the meaning of a failed lookup.
pub const RULE_NO_MATCH: u32 = 0;
/// Rule id of "no policy speaks of it, so it is open".
pub const RULE_NO_POLICY: u32 = 1;

/// IP protocol numbers that the programs treat specially.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
}

/// User space may hand these types to the kernel as bytes.
#[cfg(feature = "user")]
mod user {
    use super::{
        Address, AddressClass, ClosedFlow, Denial, DenialKey, Endpoint, FlowKey, FlowState, HostKey,
        IdentityKey, InsideClasses, InsideKey, LearnNamespace, PodLink, Slot, SourceKey, SplitKey,
        VerdictKey, VerdictValue,
    };

    // SAFETY: `repr(C)` of integers only, no padding (each size is asserted to equal the sum of the fields), so
    // every byte is initialised and every bit pattern is a valid value.
    unsafe impl aya::Pod for Endpoint {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for Address {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for PodLink {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for HostKey {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for AddressClass {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for SplitKey {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for IdentityKey {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for InsideKey {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for InsideClasses {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for Slot {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for SourceKey {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for VerdictKey {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for VerdictValue {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for Denial {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for DenialKey {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for FlowState {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for ClosedFlow {}
    // SAFETY: as for `Endpoint`.
    unsafe impl aya::Pod for LearnNamespace {}
}
