//! Endpoints, address classes and verdicts: what user space writes and the programs only read.

use crate::Address;

/// Most endpoints of one node.
pub const MAX_ENDPOINTS: u32 = 4096;
/// Most address prefixes, of the old and the new generation together.
pub const MAX_IDENTITIES: u32 = 1 << 18;
/// Most verdicts, of the old and the new epoch together.
pub const MAX_VERDICTS: u32 = 1 << 20;

/// Epoch of an endpoint that has not been programmed: everything is denied.
pub const EPOCH_NONE: u32 = 0;

/// [`Endpoint::ipv4`] is set.
pub const ENDPOINT_HAS_IPV4: u32 = 1 << 0;
/// [`Endpoint::ipv6`] is set.
pub const ENDPOINT_HAS_IPV6: u32 = 1 << 1;
/// Flows that an earlier epoch allowed live on instead of being judged again.
pub const ENDPOINT_KEEP_ESTABLISHED: u32 = 1 << 2;

/// Value of map `ENDPOINTS`, keyed by the index of the interface on the host.
///
/// One write of this value moves an endpoint to new tables. The kernel may reuse the memory of a replaced value
/// while a program on another CPU still reads it; a program that sees a mixture of two endpoints then compares a
/// packet with foreign addresses and drops it, so the race costs a packet and never grants one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Endpoint {
    /// Number of the endpoint, first part of every key below.
    pub id: u32,
    /// Which verdicts count; [`EPOCH_NONE`] denies everything.
    pub epoch: u32,
    /// Which address classes count.
    pub generation: u32,
    /// `ENDPOINT_*` bits.
    pub flags: u32,
    /// IPv4 address of the pod, if the flag says so.
    pub ipv4: Address,
    /// IPv6 address of the pod, if the flag says so.
    pub ipv6: Address,
    /// MAC address of the pod's side of the link.
    pub mac: [u8; 6],
    /// Zero.
    pub padding: [u8; 2],
}
const _: () = assert!(size_of::<Endpoint>() == 56);

/// Family of [`IdentityKey`]: IPv4.
pub const FAMILY_IPV4: u32 = 4;
/// Family of [`IdentityKey`]: IPv6.
pub const FAMILY_IPV6: u32 = 6;

/// Bits of [`IdentityKey`] before the address. IPv4 addresses add the 96 bits of the mapping.
pub const IDENTITY_PREFIX_BASE: u32 = 64;

/// Data of an entry of map `IDENTITIES`, a longest-prefix match from address to class (`u32`).
///
/// The family is part of the key because `::/0` would otherwise match every mapped IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct IdentityKey {
    /// Generation of the address classes.
    pub generation: u32,
    /// [`FAMILY_IPV4`] or [`FAMILY_IPV6`].
    pub family: u32,
    /// First address of the prefix.
    pub address: Address,
}
const _: () = assert!(size_of::<IdentityKey>() == 24);

/// Prefix length of a verdict for every protocol.
pub const VERDICT_PREFIX_ANY: u32 = 104;
/// Prefix length of a verdict for every port of one protocol.
pub const VERDICT_PREFIX_PROTOCOL: u32 = 112;
/// Prefix length of a verdict for one port; shorter ones stand for aligned blocks of ports.
pub const VERDICT_PREFIX_PORT: u32 = 128;

/// Data of an entry of map `VERDICTS`, a longest-prefix match. The first 104 bits are always part of the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct VerdictKey {
    /// Number of the endpoint.
    pub endpoint: u32,
    /// Epoch of the endpoint.
    pub epoch: u32,
    /// Address class of the other end.
    pub peer: u32,
    /// `DIRECTION_*`.
    pub direction: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; for ICMP `type << 8 | code`. Big endian, since prefixes start at the high bit.
    pub port_be: u16,
}
const _: () = assert!(size_of::<VerdictKey>() == 16);

/// Value of map `VERDICTS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct VerdictValue {
    /// `VERDICT_*`.
    pub verdict: u32,
    /// Rule that decided.
    pub rule: u32,
}
const _: () = assert!(size_of::<VerdictValue>() == 8);
