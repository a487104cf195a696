//! Why a packet met its verdict.

/// Why a packet met its verdict. The numbers are the kernel's, the words (see [`Reason::word`]) are the user's;
/// neither changes meaning once released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Reason {
    /// The tables decided; the rule id says what.
    Policy = 0,
    /// The interface has no endpoint, or the endpoint has no policy yet.
    NotProgrammed = 1,
    /// The packet ends before its headers do.
    Truncated = 2,
    /// Neither IPv4 nor IPv6, ARP included: neighbours are permanent entries.
    NotIp = 3,
    /// A VLAN tag, in the frame or beside it.
    Vlan = 4,
    /// A header that contradicts itself: version, header length, total length, mapped address.
    BadHeader = 5,
    /// A fragment whose packet's first fragment has not passed, is forgotten or would be overwritten, or a first one
    /// without the whole transport header.
    Fragment = 6,
    /// IPv4 options: source routes would change the destination after the verdict.
    IpOptions = 7,
    /// An IPv6 extension header that is not walked, or too many that are.
    ExtensionHeader = 8,
    /// Sent from an address, or a MAC address, that is not the pod's.
    SpoofedSource = 9,
    /// Sent to an address that is not the pod's.
    WrongDestination = 10,
    /// Belongs to no tracked flow and cannot open one.
    NoConnection = 11,
    /// An ICMP error about a flow that is not tracked or not allowed.
    IcmpUnrelated = 12,
    /// An ICMP error about an allowed flow.
    IcmpRelated = 13,
    /// TCP flags that no sane stack sends.
    BadTcpFlags = 14,
    /// No room to track another flow, for this endpoint or for the node.
    TooManyFlows = 15,
}

/// Number of reasons.
const REASONS: u32 = 16;

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; REASONS as usize] = [
        Self::Policy,
        Self::NotProgrammed,
        Self::Truncated,
        Self::NotIp,
        Self::Vlan,
        Self::BadHeader,
        Self::Fragment,
        Self::IpOptions,
        Self::ExtensionHeader,
        Self::SpoofedSource,
        Self::WrongDestination,
        Self::NoConnection,
        Self::IcmpUnrelated,
        Self::IcmpRelated,
        Self::BadTcpFlags,
        Self::TooManyFlows,
    ];

    /// The reason with this number, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The stable word of `docs/flows.md`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::NotProgrammed => "not-programmed",
            Self::Truncated => "truncated",
            Self::NotIp => "not-ip",
            Self::Vlan => "vlan",
            Self::BadHeader => "bad-header",
            Self::Fragment => "fragment",
            Self::IpOptions => "ip-options",
            Self::ExtensionHeader => "extension-header",
            Self::SpoofedSource => "spoofed-source",
            Self::WrongDestination => "wrong-destination",
            Self::NoConnection => "no-connection",
            Self::IcmpUnrelated => "icmp-unrelated",
            Self::IcmpRelated => "icmp-related",
            Self::BadTcpFlags => "bad-tcp-flags",
            Self::TooManyFlows => "too-many-flows",
        }
    }
}

/// Indices of map `COUNTERS`, an array per CPU of `u64`: packets allowed.
pub const COUNTER_ALLOWED: u32 = 0;
/// Records that found the ring full.
pub const COUNTER_LOST_EVENTS: u32 = 1;
/// Packets denied, by reason: this plus the number of the reason.
pub const COUNTER_DENIED: u32 = 2;
/// Number of counters.
pub const COUNTERS: u32 = COUNTER_DENIED + REASONS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_words_are_unambiguous() {
        for (i, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(reason as u8), i);
            assert_eq!(Reason::from_code(reason as u8), Some(reason));
            assert_eq!(
                Reason::ALL
                    .iter()
                    .filter(|other| other.word() == reason.word())
                    .count(),
                1
            );
        }
        assert_eq!(Reason::from_code(16), None);
    }
}
