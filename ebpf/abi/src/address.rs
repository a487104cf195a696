//! Addresses of both families in sixteen bytes.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address in network byte order: IPv6 as it is, IPv4 as `::ffff:a.b.c.d`. The programs refuse IPv6 packets
/// that carry a mapped address, so the two families cannot be confused.
///
/// Four words rather than sixteen bytes: comparing them needs no call to `memcmp`, which BPF does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(C)]
pub struct Address {
    /// The address, each word holding four bytes as they are on the wire.
    pub words_be: [u32; 4],
}

/// Third word of every mapped IPv4 address.
const MAPPED_WORD_BE: u32 = 0x0000_ffff_u32.to_be();

impl Address {
    /// `::`, also the address of "none".
    pub const UNSPECIFIED: Self = Self { words_be: [0; 4] };

    /// 224.0.0.0, which nobody sends to (RFC 5771): in map `HOST_ENDPOINTS` all addresses that [`Address::is_group`].
    pub const GROUP: Self = Self::from_ipv4_be(u32::to_be(0xe000_0000));

    /// Whether packets to it are for whoever listens: multicast of both families, and 255.255.255.255.
    #[inline(always)]
    pub const fn is_group(&self) -> bool {
        let [first, _, _, last] = self.words_be;
        if self.is_ipv4() {
            u32::from_be(last) >> 28 == 0xe || last == u32::MAX
        } else {
            u32::from_be(first) >> 24 == 0xff
        }
    }

    /// An IPv4 address from its four bytes on the wire.
    #[inline(always)]
    pub const fn from_ipv4_be(word_be: u32) -> Self {
        Self {
            words_be: [0, 0, MAPPED_WORD_BE, word_be],
        }
    }

    /// Whether this is an IPv4 address in mapped form.
    #[inline(always)]
    pub const fn is_ipv4(&self) -> bool {
        self.words_be[0] == 0 && self.words_be[1] == 0 && self.words_be[2] == MAPPED_WORD_BE
    }

    /// From an address of the standard library. A mapped IPv6 address becomes the IPv4 address it stands for.
    pub const fn from_ip(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self {
            words_be: [
                u32::from_ne_bytes([a, b, c, d]),
                u32::from_ne_bytes([e, f, g, h]),
                u32::from_ne_bytes([i, j, k, l]),
                u32::from_ne_bytes([m, n, o, p]),
            ],
        }
    }

    /// As an address of the standard library.
    pub const fn to_ip(self) -> IpAddr {
        let [w0, w1, w2, w3] = self.words_be;
        if self.is_ipv4() {
            return IpAddr::V4(Ipv4Addr::from_bits(u32::from_be(w3)));
        }
        let high = (u32::from_be(w0) as u64) << 32 | u32::from_be(w1) as u64;
        let low = (u32::from_be(w2) as u64) << 32 | u32::from_be(w3) as u64;
        IpAddr::V6(Ipv6Addr::from_bits((high as u128) << 64 | low as u128))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_told_from_hosts() {
        let is_group = |text: &str| Address::from_ip(text.parse().unwrap()).is_group();
        for text in [
            "224.0.0.0",
            "224.0.0.251",
            "239.255.255.255",
            "255.255.255.255",
            "ff02::1",
        ] {
            assert!(is_group(text), "{text}");
        }
        for text in [
            "223.255.255.255",
            "240.0.0.1",
            "10.0.0.255",
            "::",
            "fe80::1",
            "fd00::ff",
        ] {
            assert!(!is_group(text), "{text}");
        }
        assert!(Address::GROUP.is_group());
    }

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in [
            "10.1.2.3",
            "0.0.0.0",
            "255.255.255.255",
            "::",
            "::1",
            "fd00:1:2:3:4:5:6:7",
            "::fffe:1.2.3.4",
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Address::from_ip(ip).to_ip(), ip);
            assert_eq!(Address::from_ip(ip).is_ipv4(), ip.is_ipv4());
        }
    }

    #[test]
    fn an_ipv4_address_lies_in_the_last_word() {
        let wire = u32::from_ne_bytes([10, 1, 2, 3]);
        assert_eq!(Address::from_ipv4_be(wire).to_ip(), IpAddr::from([10, 1, 2, 3]));
    }
}
