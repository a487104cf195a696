//! Sets of addresses, exact, of both families.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use policies_ir::policy::IpVersion;

/// Addresses from first to last, both included, as numbers.
type Range = (u128, u128);

/// Addresses that nobody on the Internet has: RFC 6890 and what it grew into. The documentation prefixes are not here:
/// an assertion about the Internet is better a little too strict.
const NOT_INTERNET_V4: [([u8; 4], u8); 10] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];
/// IPv6 addresses of the Internet are those of 2000::/3.
const INTERNET_V6: (u16, u8) = (0x2000, 3);
/// What stands before an IPv4 address of the Internet where IPv6 reaches it through NAT64 (RFC 6052): routed too, and to the
/// same hosts.
const NAT64: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// Addresses that make good examples, since they are nobody's (RFC 5737, RFC 3849).
const EXAMPLES: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
];

/// A set of addresses: for each family sorted ranges that neither overlap nor touch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Region {
    v4: Vec<Range>,
    v6: Vec<Range>,
}

impl Region {
    /// Every address.
    pub fn everything() -> Self {
        Self {
            v4: vec![(0, u128::from(u32::MAX))],
            v6: vec![(0, u128::MAX)],
        }
    }

    /// Addresses that are routed on the Internet.
    pub fn internet() -> Self {
        let private = NOT_INTERNET_V4.into_iter().filter_map(|(base, length)| {
            let net = Ipv4Net::new(Ipv4Addr::from(base), length).ok()?;
            Some(IpNet::from(net))
        });
        let (base, length) = INTERNET_V6;
        let global = Ipv6Net::new(Ipv6Addr::new(base, 0, 0, 0, 0, 0, 0, 0), length);
        let v4 = Self::everything().subtract(&Self::of(private)).v4;
        let before = u128::from(NAT64);
        let translated = v4.iter().map(|(first, last)| (before | first, before | last));
        let translated = Self::of_ranges(translated.map(|range| (IpVersion::V6, range)));
        let v6 = Self::of(global.ok().map(IpNet::from)).union(&translated).v6;
        Self { v4, v6 }
    }

    /// The addresses of these networks.
    pub fn of(nets: impl IntoIterator<Item = IpNet>) -> Self {
        Self::of_ranges(nets.into_iter().map(|net| (version(net.addr()), range(net))))
    }

    pub(crate) fn of_ranges(ranges: impl IntoIterator<Item = (IpVersion, Range)>) -> Self {
        let mut region = Self::default();
        for (version, range) in ranges {
            region.ranges_mut(version).push(range);
        }
        for ranges in [&mut region.v4, &mut region.v6] {
            *ranges = union(std::mem::take(ranges));
        }
        region
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether there are any of this family.
    pub fn has(&self, version: IpVersion) -> bool {
        !self.ranges(version).is_empty()
    }

    /// Whether `address` is in.
    pub fn contains(&self, address: IpAddr) -> bool {
        let number = number(address);
        let ranges = self.ranges(version(address));
        let next = ranges.partition_point(|(_, last)| *last < number);
        ranges.get(next).is_some_and(|(first, _)| *first <= number)
    }

    /// What is in both.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        Self {
            v4: intersection(&self.v4, &other.v4),
            v6: intersection(&self.v6, &other.v6),
        }
    }

    /// What is in this one alone.
    #[must_use]
    pub fn subtract(&self, other: &Self) -> Self {
        Self {
            v4: intersection(&self.v4, &complement(&other.v4, u128::from(u32::MAX))),
            v6: intersection(&self.v6, &complement(&other.v6, u128::MAX)),
        }
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let both = |a: &[Range], b: &[Range]| union(a.iter().chain(b).copied().collect());
        Self {
            v4: both(&self.v4, &other.v4),
            v6: both(&self.v6, &other.v6),
        }
    }

    /// An address of this family that is in; the same each time.
    pub fn example(&self, version: IpVersion) -> Option<IpAddr> {
        let good = EXAMPLES
            .into_iter()
            .find(|address| self::version(*address) == version && self.contains(*address));
        good.or_else(|| {
            let (first, last) = *self.ranges(version).first()?;
            // The first address of a network is often the network's own.
            let number = if last - first >= 2 { first + 1 } else { first };
            address(version, number)
        })
    }

    /// The fewest networks that make up the set.
    pub fn nets(&self) -> Vec<IpNet> {
        let v4 = self.v4.iter().flat_map(|range| blocks(*range, 32));
        let v6 = self.v6.iter().flat_map(|range| blocks(*range, 128));
        let net =
            |version| move |(number, length): (u128, u8)| IpNet::new(address(version, number)?, length).ok();
        let v4: Vec<IpNet> = v4.filter_map(net(IpVersion::V4)).collect();
        v4.into_iter().chain(v6.filter_map(net(IpVersion::V6))).collect()
    }

    /// The set as networks and exceptions from them, whichever way is shorter.
    pub fn nets_and_exceptions(&self) -> (Vec<IpNet>, Vec<IpNet>) {
        let mut written = (Vec::new(), Vec::new());
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut part = Self::default();
            *part.ranges_mut(version) = self.ranges(version).to_vec();
            let nets = part.nets();
            let around = around(version, self.ranges(version));
            let holes = around.map(|net| (net, Self::of([net]).subtract(&part).nets()));
            match holes {
                Some((net, holes)) if holes.len() + 1 < nets.len() => {
                    written.0.push(net);
                    written.1.extend(holes);
                }
                _ => written.0.extend(nets),
            }
        }
        written
    }

    /// The set for people, with at most so many networks of a list.
    pub(crate) fn text(&self, listed: usize) -> String {
        let list = |nets: &[IpNet]| {
            let mut texts: Vec<String> = nets.iter().take(listed).map(net_text).collect();
            if nets.len() > texts.len() {
                texts.push(format!("{} more", nets.len() - texts.len()));
            }
            match texts.split_last() {
                Some((last, before)) if !before.is_empty() => format!("{} and {last}", before.join(", ")),
                _ => texts.concat(),
            }
        };
        let (nets, except) = self.nets_and_exceptions();
        match except.is_empty() {
            true => list(&nets),
            false => format!("{} except {}", list(&nets), list(&except)),
        }
    }

    fn ranges(&self, version: IpVersion) -> &[Range] {
        match version {
            IpVersion::V4 => &self.v4,
            IpVersion::V6 => &self.v6,
        }
    }

    fn ranges_mut(&mut self, version: IpVersion) -> &mut Vec<Range> {
        match version {
            IpVersion::V4 => &mut self.v4,
            IpVersion::V6 => &mut self.v6,
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(usize::MAX))
    }
}

/// Family of an address.
pub fn version(address: IpAddr) -> IpVersion {
    match address {
        IpAddr::V4(_) => IpVersion::V4,
        IpAddr::V6(_) => IpVersion::V6,
    }
}

/// A network, or the one address that is in it.
pub fn net_text(net: &IpNet) -> String {
    match net.prefix_len() == net.max_prefix_len() {
        true => net.addr().to_string(),
        false => net.trunc().to_string(),
    }
}

pub(crate) fn range(net: IpNet) -> Range {
    (number(net.network()), number(net.broadcast()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(version: IpVersion, number: u128) -> Option<IpAddr> {
    match version {
        IpVersion::V4 => Some(Ipv4Addr::from(u32::try_from(number).ok()?).into()),
        IpVersion::V6 => Some(Ipv6Addr::from(number).into()),
    }
}

/// The smallest network that holds all of the ranges.
fn around(version: IpVersion, ranges: &[Range]) -> Option<IpNet> {
    let (first, last) = (ranges.first()?.0, ranges.last()?.1);
    let bits = match version {
        IpVersion::V4 => 32,
        IpVersion::V6 => 128,
    };
    let length = (first ^ last).leading_zeros().checked_sub(128 - bits)?;
    let net = IpNet::new(address(version, first)?, u8::try_from(length).ok()?).ok()?;
    Some(net.trunc())
}

fn union(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(open) if first <= open.1.saturating_add(1) => open.1 = open.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn complement(ranges: &[Range], max: u128) -> Vec<Range> {
    let mut gaps = Vec::with_capacity(ranges.len() + 1);
    let mut next = Some(0);
    for &(first, last) in ranges {
        if let Some(start) = next
            && start < first
        {
            gaps.push((start, first - 1));
        }
        next = last.checked_add(1);
    }
    gaps.extend(next.filter(|start| *start <= max).map(|start| (start, max)));
    gaps
}

fn intersection(a: &[Range], b: &[Range]) -> Vec<Range> {
    let (mut i, mut j, mut both) = (0, 0, Vec::new());
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let (first, last) = (x.0.max(y.0), x.1.min(y.1));
        if first <= last {
            both.push((first, last));
        }
        if x.1 < y.1 { i += 1 } else { j += 1 }
    }
    both
}

/// The fewest prefixes that make up a range of addresses with `bits` bits, as (first address, prefix length).
fn blocks((first, last): Range, bits: u8) -> impl Iterator<Item = (u128, u8)> {
    let mut next = Some(first).filter(|first| *first <= last);
    std::iter::from_fn(move || {
        let start = next?;
        let aligned = if start == 0 { 128 } else { start.trailing_zeros() };
        // One more than the length of what is left, whose logarithm bounds the block; of everything it is 2^128.
        let fits = (last - start).checked_add(1).map_or(128, u128::ilog2);
        let size = aligned.min(fits).min(u32::from(bits));
        let end = match 1u128.checked_shl(size) {
            Some(count) => start + (count - 1),
            None => u128::MAX,
        };
        next = end.checked_add(1).filter(|start| *start <= last);
        Some((start, bits - u8::try_from(size).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(nets: &[&str]) -> Region {
        Region::of(nets.iter().map(|net| net.parse().unwrap()))
    }

    #[test]
    fn regions_read_as_people_write_them() {
        let outside = Region::everything().subtract(&region(&["10.0.0.0/8"]));
        assert_eq!(outside.to_string(), "0.0.0.0/0 and ::/0 except 10.0.0.0/8");
        assert_eq!(region(&["10.0.0.0/9", "10.128.0.0/9"]).to_string(), "10.0.0.0/8");
        assert_eq!(
            region(&["10.0.0.1/32", "2001:db8::/32"]).to_string(),
            "10.0.0.1 and 2001:db8::/32"
        );
        assert_eq!(Region::everything().nets().len(), 2);
    }

    #[test]
    fn nets_make_up_exactly_the_region() {
        for nets in [
            &["0.0.0.0/0"][..],
            &["10.0.0.1/32", "10.0.0.2/31", "255.255.255.255/32"],
            &["::/0"],
            &["ffff::/16", "::1/128"],
        ] {
            let region = region(nets);
            assert_eq!(Region::of(region.nets()), region, "{nets:?}");
            let rest = Region::everything().subtract(&region);
            assert_eq!(rest.union(&region), Region::everything());
            assert!(rest.intersect(&region).is_empty());
        }
    }

    #[test]
    fn the_internet_is_what_is_routed() {
        let internet = Region::internet();
        for inside in [
            "8.8.8.8",
            "172.32.0.1",
            "2606:4700::1",
            "203.0.113.10",
            "64:ff9b::8.8.8.8",
            "64:ff9b::203.0.113.10",
        ] {
            assert!(internet.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in [
            "10.1.2.3",
            "172.31.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "fd00::1",
            "::1",
            "64:ff9b::10.1.2.3",
            "64:ff9b::1:0:0",
            "64:ff9b:1::8.8.8.8",
        ] {
            assert!(!internet.contains(outside.parse().unwrap()), "{outside}");
        }
    }
}
