//! Endpoints, address classes and verdicts: what user space writes and the programs only read.

use crate::Address;

/// Most endpoints of one node.
pub const MAX_ENDPOINTS: u32 = 4096;
/// Most addresses and most prefixes, each of the old and the new generation together.
pub const MAX_IDENTITIES: u32 = 1 << 18;
/// Most verdicts, of the old and the new epoch together.
pub const MAX_VERDICTS: u32 = 1 << 20;
/// Most pairs of an endpoint and a class that it tells from the class's parent, of the old and the new epoch together.
pub const MAX_SPLITS: u32 = 1 << 18;

/// Most classes of addresses at own ends, over all endpoints whose rules ask for those, of the old and the new epoch
/// together.
pub const MAX_INSIDES: u32 = 1 << 17;

/// Epoch of an endpoint that has not been programmed: everything is denied.
pub const EPOCH_NONE: u32 = 0;
/// Highest epoch and highest generation: both share a word with the flags.
pub const MAX_EPOCH: u32 = (1 << EPOCH_BITS) - 1;
const EPOCH_BITS: u32 = 30;
const FLAG_BITS: u32 = 4;

/// [`Endpoint::ipv4`] is set.
pub const ENDPOINT_HAS_IPV4: u32 = 1 << 0;
/// [`Endpoint::ipv6`] is set.
pub const ENDPOINT_HAS_IPV6: u32 = 1 << 1;
/// [`Endpoint::untracked`] is set.
pub const ENDPOINT_HAS_UNTRACKED: u32 = 1 << 2;

/// Value of map `ENDPOINTS`, keyed by the index of the interface on the host: what does not change while the endpoint
/// is attached. What does is the endpoint's [`Slot`].
///
/// The kernel may reuse the memory of a replaced value while a program on another CPU still reads it, so the loader
/// lets every program finish between taking one endpoint away and adding the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Endpoint {
    /// Number of the endpoint, first part of every key below.
    pub id: u32,
    /// Index of its [`Slot`].
    pub slot: u32,
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
    /// Endpoint that is asked first, about every packet and without tracking, if the flag says so. Hosts only.
    pub untracked: u32,
    /// Index of its [`Slot`].
    pub untracked_slot: u32,
}
const _: () = assert!(size_of::<Endpoint>() == 60);

/// Most addresses of pods: one of each family.
pub const MAX_POD_ADDRESSES: u32 = 2 * MAX_ENDPOINTS;

/// Value of map `PODS`, whose keys are [`Address`]es: where a pod of this node is. As with
/// [`Endpoint`], the loader lets every program finish between taking one away and adding the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct PodLink {
    /// Number of the endpoint.
    pub endpoint: u32,
    /// Host side of the pod's link.
    pub ifindex: u32,
    /// MAC address of the pod's side.
    pub mac: [u8; 6],
    /// Zero.
    pub padding: [u8; 2],
}
const _: () = assert!(size_of::<PodLink>() == 16);

/// Most addresses of the host's interfaces that have an endpoint.
pub const MAX_HOST_ADDRESSES: u32 = 4096;

/// Key of map `HOST_ENDPOINTS`, whose values are [`Endpoint`]s without addresses of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct HostKey {
    /// Interface of the host.
    pub ifindex: u32,
    /// An address of the host; [`Address::UNSPECIFIED`] for what is forwarded.
    pub address: Address,
}
const _: () = assert!(size_of::<HostKey>() == 20);

/// Value of map `SLOTS`, an array that user space has mapped: what changes while an endpoint is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Slot {
    /// A packed [`EndpointState`], written with one store and read with one load, so that a packet meets the tables
    /// of one change and never a mixture.
    pub state: u64,
    /// Ranks that the endpoint's verdicts have, as bits; those of the old tables too until no program reads them any
    /// more. A rank too many costs a lookup, one that is missing would hide entries.
    pub ranks: u64,
    /// Tracked flows of the endpoint, the budget of [`MAX_FLOWS_PER_ENDPOINT`](crate::MAX_FLOWS_PER_ENDPOINT). Added
    /// to by the programs, corrected whenever user space has looked through all flows.
    pub flows: u64,
    /// Those that are not established, by the direction of their first packet, likewise. Two CPUs may take the same
    /// flow off, so read it as a signed number.
    pub unestablished: [u64; 2],
    /// Second in which `reports` were sent to the ring.
    pub report_second: u64,
    /// Denials reported in that second.
    pub reports: u64,
    /// Denied packets that were not reported since too many others were.
    pub unreported: u64,
}
const _: () = assert!(size_of::<Slot>() == 64);

/// Flows that an earlier epoch allowed live on instead of being judged again.
pub const STATE_KEEP_ESTABLISHED: u8 = 1 << 0;
/// Map `SOURCES` has entries of this endpoint and epoch.
pub const STATE_HAS_SOURCES: u8 = 1 << 1;
/// Map `INSIDES` has entries of this endpoint and epoch.
pub const STATE_HAS_INSIDES: u8 = 1 << 2;

/// Which tables judge an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EndpointState {
    /// Which verdicts and source classes count; [`EPOCH_NONE`] denies everything. At most [`MAX_EPOCH`].
    pub epoch: u32,
    /// Which address classes count. At most [`MAX_EPOCH`].
    pub generation: u32,
    /// `STATE_*` bits.
    pub flags: u8,
}

impl EndpointState {
    /// `epoch << 34 | generation << 4 | flags`.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        ((self.epoch & MAX_EPOCH) as u64) << (EPOCH_BITS + FLAG_BITS)
            | ((self.generation & MAX_EPOCH) as u64) << FLAG_BITS
            | (self.flags & ((1 << FLAG_BITS) - 1)) as u64
    }

    /// Inverse of [`EndpointState::pack`].
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "takes the packed fields apart")]
    pub const fn unpack(packed: u64) -> Self {
        Self {
            epoch: (packed >> (EPOCH_BITS + FLAG_BITS)) as u32,
            generation: (packed >> FLAG_BITS) as u32 & MAX_EPOCH,
            flags: packed as u8 & ((1 << FLAG_BITS) - 1),
        }
    }

    /// Number of the last change that reached the endpoint, by which tracked flows know whether their decision still
    /// holds. Epochs and generations count together, so the higher of the two grows whenever either changes.
    #[inline(always)]
    pub const fn change(self) -> u32 {
        if self.epoch > self.generation {
            self.epoch
        } else {
            self.generation
        }
    }
}

/// Family of [`IdentityKey`]: IPv4.
pub const FAMILY_IPV4: u32 = 4;
/// Family of [`IdentityKey`]: IPv6.
pub const FAMILY_IPV6: u32 = 6;

/// Bits of [`IdentityKey`] before the address. IPv4 addresses add the 96 bits of the mapping.
pub const IDENTITY_PREFIX_BASE: u32 = 64;

/// Data of an entry of map `IDENTITIES`, a longest-prefix match from address to [`AddressClass`], and key of map `HOSTS`,
/// which holds the whole addresses: the longest prefix there is, found without a walk through the others. Of most
/// generations it holds only some of them: see [`GENERATION_GROUP`].
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

/// Value of maps `HOSTS` and `IDENTITIES`: the class of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct AddressClass {
    /// The class.
    pub class: u32,
    /// The class that this one was split off from, or the class itself. At an endpoint that does not tell the two apart
    /// (it has no [`SplitKey`]) the parent's verdicts answer, so that a class which differs at one endpoint is written
    /// for that one alone. Parents have no parents of their own.
    pub parent: u32,
}
const _: () = assert!(size_of::<AddressClass>() == 8);

impl AddressClass {
    /// A class that was not split off from another one.
    pub const fn root(class: u32) -> Self {
        Self { class, parent: class }
    }
}

/// Key of map `SPLITS`: the endpoint tells the class from its parent. Values mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct SplitKey {
    /// Number of the endpoint.
    pub endpoint: u32,
    /// Epoch of the endpoint.
    pub epoch: u32,
    /// A class with a parent.
    pub class: u32,
}
const _: () = assert!(size_of::<SplitKey>() == 12);

/// Key of map `INSIDES`: a class of addresses at an endpoint's own end. Only endpoints that judge what is between any two
/// addresses, as in what a node forwards, have such entries, and only if their rules tell own ends apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct InsideKey {
    /// Number of the endpoint.
    pub endpoint: u32,
    /// Epoch of the endpoint.
    pub epoch: u32,
    /// The class.
    pub class: u32,
}
const _: () = assert!(size_of::<InsideKey>() == 12);

/// Value of map `INSIDES`: what the address is to the rules, [`VerdictKey::inside`] of both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct InsideClasses {
    /// Of flows to it.
    pub ingress: u16,
    /// Of flows from it.
    pub egress: u16,
}
const _: () = assert!(size_of::<InsideClasses>() == 4);

impl InsideClasses {
    /// The class for flows of one direction.
    #[inline(always)]
    pub const fn of(self, direction: u8) -> u16 {
        if direction & 1 == 0 {
            self.ingress
        } else {
            self.egress
        }
    }
}

/// Generations of address classes come in groups of so many. Map `HOSTS` has the first of a group, a multiple of this,
/// complete. Of any other it has the addresses that are not as in the first: of another class, or of [`NO_CLASS`].
///
/// So many that changes which write every address are fewer than one in a hundred; so few that groups which are given up
/// early, as at the start of an agent, do not use up the numbers: there are four million groups.
pub const GENERATION_GROUP: u32 = 256;
const _: () = assert!(GENERATION_GROUP.is_power_of_two());

/// Class in map `HOSTS` of an address that the first generation of the group has and this one has not: the prefixes
/// decide. No class has this number, so whoever took it for one would find no verdict.
pub const NO_CLASS: u32 = u32::MAX;

/// First generation of the group, which is complete.
#[inline(always)]
pub const fn base_generation(generation: u32) -> u32 {
    generation & !(GENERATION_GROUP - 1)
}

/// Most blocks of source ports, of the old and the new epoch together.
pub const MAX_SOURCES: u32 = 1 << 16;
/// Bits of [`SourceKey`] before the port.
pub const SOURCE_PREFIX_BASE: u32 = 80;

/// Data of an entry of map `SOURCES`, a longest-prefix match from source port to source class (`u32`). Ports without
/// a match are of class 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct SourceKey {
    /// Number of the endpoint.
    pub endpoint: u32,
    /// Epoch of the endpoint.
    pub epoch: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub padding: u8,
    /// Source port. Big endian, since prefixes start at the high bit.
    pub port_be: u16,
}
const _: () = assert!(size_of::<SourceKey>() == 12);

/// [`VerdictKey::rank`] of a verdict for every protocol.
pub const RANK_ANY: u8 = 0;
/// [`VerdictKey::rank`] of a verdict for every port of one protocol. Blocks of ports follow: this plus the number of
/// leading bits of the port that count.
pub const RANK_PROTOCOL: u8 = 1;
/// [`VerdictKey::rank`] of a verdict for one port, the highest.
pub const RANK_PORT: u8 = RANK_PROTOCOL + 16;

/// Key of map `VERDICTS`, a hash: a packet is looked up once for each rank that its endpoint's entries have, the highest
/// first. There are 18 ranks; most endpoints use two or three, and a lookup costs the same whatever the number of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct VerdictKey {
    /// Number of the endpoint.
    pub endpoint: u32,
    /// Epoch of the endpoint.
    pub epoch: u32,
    /// Address class of the other end, or the parent of that.
    pub peer: u32,
    /// `DIRECTION_*`, and above that bit the class of the source port.
    pub side: u8,
    /// IP protocol number; 0 for [`RANK_ANY`].
    pub protocol: u8,
    /// Destination port, for ICMP `type << 8 | code`, without the bits that do not count.
    pub port: u16,
    /// `RANK_*`.
    pub rank: u8,
    /// Zero.
    pub padding: u8,
    /// Class of the address at the own end; 0 at an endpoint whose rules do not ask, and for an address that it has none
    /// for.
    pub inside: u16,
}
const _: () = assert!(size_of::<VerdictKey>() == 20);

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

impl VerdictKey {
    /// Value of [`VerdictKey::side`]. A class of 128 or more, which user space never writes, wraps to another one's
    /// key of the same direction.
    #[inline(always)]
    pub const fn side(direction: u8, source_class: u8) -> u8 {
        (direction & 1) | (source_class << 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_group_is_its_own_base() {
        for (generation, base) in [
            (0, 0),
            (255, 0),
            (256, 256),
            (511, 256),
            (MAX_EPOCH, MAX_EPOCH - 255),
        ] {
            assert_eq!(base_generation(generation), base);
        }
    }

    #[test]
    fn a_packed_state_keeps_its_parts() {
        for state in [
            EndpointState::default(),
            EndpointState {
                epoch: MAX_EPOCH,
                generation: 0,
                flags: 0,
            },
            EndpointState {
                epoch: 0,
                generation: MAX_EPOCH,
                flags: 0,
            },
            EndpointState {
                epoch: 7,
                generation: 5,
                flags: STATE_KEEP_ESTABLISHED | STATE_HAS_SOURCES | STATE_HAS_INSIDES,
            },
        ] {
            assert_eq!(EndpointState::unpack(state.pack()), state);
        }
        assert_eq!(EndpointState::default().pack(), 0, "zeroed memory denies");
    }
}
