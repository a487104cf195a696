//! Between the meaning of tables (`policies_ir::tables`) and their bytes (`ebpf_abi`), both ways. Pure.

use std::net::IpAddr;

use aya::maps::lpm_trie::Key;
use ebpf_abi::{
    Address, DIRECTION_EGRESS, DIRECTION_INGRESS, ENDPOINT_HAS_IPV4, ENDPOINT_HAS_IPV6,
    ENDPOINT_HAS_UNTRACKED, Endpoint, FAMILY_IPV4, FAMILY_IPV6, HostKey, IDENTITY_PREFIX_BASE, IdentityKey,
    InsideClasses, InsideKey, RANK_ANY, RANK_PORT, RANK_PROTOCOL, SOURCE_PREFIX_BASE, SourceKey,
    VERDICT_ALLOW, VERDICT_DENY, VerdictKey as RawVerdictKey, VerdictValue,
};
use ipnet::IpNet;
use policies_ir::tables::{
    Direction, EndpointId, IdentityId, InsideClass, Insides, RuleId, Service, SourceBlock, SourceClass,
    Verdict, VerdictEntry, VerdictKey,
};

use crate::{DatapathError, EndpointLink, HostEndpoint, HostLink, HostPackets};

/// Bits that the mapping puts before an IPv4 address.
const MAPPED_BITS: u8 = 96;

/// An endpoint as the programs see it, in slot 0.
pub(crate) fn endpoint(link: &EndpointLink) -> Result<Endpoint, DatapathError> {
    let mut endpoint = Endpoint {
        id: link.id.0,
        mac: link.mac,
        ..Endpoint::default()
    };
    for ip in &link.addresses {
        let (slot, flag) = match ip {
            IpAddr::V4(_) => (&mut endpoint.ipv4, ENDPOINT_HAS_IPV4),
            IpAddr::V6(_) => (&mut endpoint.ipv6, ENDPOINT_HAS_IPV6),
        };
        if endpoint.flags & flag != 0 {
            return Err(DatapathError::Address {
                endpoint: link.id,
                problem: "has two addresses of one family",
            });
        }
        if ip.is_unspecified() || ip.is_multicast() {
            return Err(DatapathError::Address {
                endpoint: link.id,
                problem: "has an address no host can have",
            });
        }
        *slot = Address::from_ip(*ip);
        endpoint.flags |= flag;
    }
    Ok(endpoint)
}

/// Inverse of [`endpoint`].
pub(crate) fn endpoint_link(ifindex: u32, endpoint: &Endpoint) -> EndpointLink {
    let address = |flag, address: Address| (endpoint.flags & flag != 0).then(|| address.to_ip());
    EndpointLink {
        id: EndpointId(endpoint.id),
        ifindex,
        addresses: [
            address(ENDPOINT_HAS_IPV4, endpoint.ipv4),
            address(ENDPOINT_HAS_IPV6, endpoint.ipv6),
        ]
        .into_iter()
        .flatten()
        .collect(),
        mac: endpoint.mac,
    }
}

/// Key of an address of the host, or of what it forwards.
pub(crate) fn host_key(ifindex: u32, address: Option<IpAddr>) -> HostKey {
    HostKey {
        ifindex,
        address: address.map_or(Address::UNSPECIFIED, Address::from_ip),
    }
}

/// Key of what is sent to whoever listens: the host is among them.
pub(crate) fn group_key(ifindex: u32) -> HostKey {
    HostKey {
        ifindex,
        address: Address::GROUP,
    }
}

/// Whose packets an entry of `HOST_ENDPOINTS` is about, at which interface, and who judges them.
pub(crate) fn host_place(key: &HostKey, endpoint: &Endpoint) -> ((u32, HostPackets), HostEndpoint) {
    let packets = match key.address {
        Address::UNSPECIFIED => HostPackets::Forwarded,
        Address::GROUP => HostPackets::Groups,
        address => HostPackets::Address(address.to_ip()),
    };
    let untracked = endpoint.flags & ENDPOINT_HAS_UNTRACKED != 0;
    let judge = HostEndpoint {
        id: EndpointId(endpoint.id),
        untracked: untracked.then_some(EndpointId(endpoint.untracked)),
    };
    ((key.ifindex, packets), judge)
}

/// Adds to a link what a value of `HOST_ENDPOINTS` says.
pub(crate) fn add_to_host_link(link: &mut HostLink, key: &HostKey, endpoint: &Endpoint) {
    match host_place(key, endpoint) {
        ((_, HostPackets::Forwarded), judge) => link.forward = Some(judge),
        ((_, HostPackets::Address(address)), judge) => drop(link.addresses.insert(address, judge)),
        ((_, HostPackets::Groups), _) => {}
    }
}

/// Key of an address prefix.
pub(crate) fn identity_key(generation: u32, net: &IpNet) -> Key<IdentityKey> {
    let (family, mapped_bits) = match net {
        IpNet::V4(_) => (FAMILY_IPV4, MAPPED_BITS),
        IpNet::V6(_) => (FAMILY_IPV6, 0),
    };
    let prefix = IDENTITY_PREFIX_BASE + u32::from(mapped_bits) + u32::from(net.prefix_len());
    Key::new(
        prefix,
        IdentityKey {
            generation,
            family,
            address: Address::from_ip(net.network()),
        },
    )
}

/// Inverse of [`identity_key`], without the generation; `None` for what it never makes.
pub(crate) fn identity_net(key: &Key<IdentityKey>) -> Option<IpNet> {
    let (prefix, data) = (key.prefix_len(), key.data());
    let bits = u8::try_from(prefix.checked_sub(IDENTITY_PREFIX_BASE)?).ok()?;
    match data.family {
        FAMILY_IPV4 => {
            let ip = data.address.to_ip();
            if !ip.is_ipv4() {
                return None;
            }
            IpNet::new(ip, bits.checked_sub(MAPPED_BITS)?).ok()
        }
        FAMILY_IPV6 => {
            let ip = data.address.to_ip();
            let v6 = match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            IpNet::new(v6.into(), bits).ok()
        }
        _ => None,
    }
}

/// Key of a block of source ports.
pub(crate) fn source_key(endpoint: EndpointId, epoch: u32, block: &SourceBlock) -> Key<SourceKey> {
    Key::new(
        SOURCE_PREFIX_BASE + u32::from(block.prefix_bits),
        SourceKey {
            endpoint: endpoint.0,
            epoch,
            protocol: block.protocol,
            padding: 0,
            port_be: block.port.to_be(),
        },
    )
}

/// Inverse of [`source_key`], without endpoint and epoch; `None` for what it never makes.
pub(crate) fn source_block(key: &Key<SourceKey>) -> Option<SourceBlock> {
    let bits = key.prefix_len().checked_sub(SOURCE_PREFIX_BASE)?;
    let data = key.data();
    Some(SourceBlock {
        protocol: data.protocol,
        port: u16::from_be(data.port_be),
        prefix_bits: u8::try_from(bits).ok().filter(|bits| *bits <= 16)?,
    })
}

/// Entry of a class of addresses at an endpoint's own end.
pub(crate) fn inside(
    endpoint: EndpointId,
    epoch: u32,
    address: IdentityId,
    classes: Insides,
) -> (InsideKey, InsideClasses) {
    let key = InsideKey {
        endpoint: endpoint.0,
        epoch,
        class: address.0,
    };
    let value = InsideClasses {
        ingress: classes.ingress.0,
        egress: classes.egress.0,
    };
    (key, value)
}

/// Inverse of [`inside`], without endpoint and epoch.
pub(crate) fn inside_meaning(key: &InsideKey, value: InsideClasses) -> (IdentityId, Insides) {
    let classes = Insides {
        ingress: InsideClass(value.ingress),
        egress: InsideClass(value.egress),
    };
    (IdentityId(key.class), classes)
}

/// Key of a verdict.
pub(crate) fn verdict_key(endpoint: EndpointId, epoch: u32, key: &VerdictKey) -> RawVerdictKey {
    let (rank, protocol, port) = match key.service {
        Service::Any => (RANK_ANY, 0, 0),
        Service::Protocol(protocol) => (RANK_PROTOCOL, protocol, 0),
        Service::Ports {
            protocol,
            port,
            prefix_bits,
        } => (RANK_PROTOCOL.saturating_add(prefix_bits), protocol, port),
    };
    // Tables with more than fit into the key's seven bits are refused before.
    let class = u8::try_from(key.source.0).unwrap_or(u8::MAX);
    RawVerdictKey {
        endpoint: endpoint.0,
        epoch,
        peer: key.peer.0,
        side: RawVerdictKey::side(direction_code(key.direction), class),
        protocol,
        port,
        rank,
        padding: 0,
        inside: key.inside.0,
    }
}

/// Inverse of [`verdict_key`], without endpoint and epoch; `None` for what it never makes.
pub(crate) fn verdict_meaning(data: &RawVerdictKey) -> Option<VerdictKey> {
    let service = match data.rank {
        RANK_ANY => Service::Any,
        RANK_PROTOCOL => Service::Protocol(data.protocol),
        rank if rank <= RANK_PORT => Service::Ports {
            protocol: data.protocol,
            port: data.port,
            prefix_bits: rank - RANK_PROTOCOL,
        },
        _ => return None,
    };
    Some(VerdictKey {
        peer: IdentityId(data.peer),
        direction: direction(data.side & 1)?,
        inside: InsideClass(data.inside),
        source: SourceClass((data.side >> 1).into()),
        service,
    })
}

/// Value of a verdict.
pub(crate) fn verdict_value(entry: &VerdictEntry) -> VerdictValue {
    let verdict = match entry.verdict {
        Verdict::Allow => VERDICT_ALLOW,
        Verdict::Deny => VERDICT_DENY,
    };
    VerdictValue {
        verdict,
        rule: entry.rule.0,
    }
}

/// Inverse of [`verdict_value`]: what the kernel makes of the value.
pub(crate) fn verdict_entry(value: VerdictValue) -> VerdictEntry {
    VerdictEntry {
        verdict: verdict(value.verdict),
        rule: RuleId(value.rule),
    }
}

/// Meaning of a verdict code.
pub(crate) fn verdict(code: u32) -> Verdict {
    if code == VERDICT_ALLOW {
        Verdict::Allow
    } else {
        Verdict::Deny
    }
}

/// Code of a direction.
pub(crate) fn direction_code(direction: Direction) -> u8 {
    match direction {
        Direction::Ingress => DIRECTION_INGRESS,
        Direction::Egress => DIRECTION_EGRESS,
    }
}

/// Meaning of a direction code.
pub(crate) fn direction(code: u8) -> Option<Direction> {
    match code {
        DIRECTION_INGRESS => Some(Direction::Ingress),
        DIRECTION_EGRESS => Some(Direction::Egress),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_prefixes_survive_the_round_trip() {
        for text in [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.2.3/32",
            "::/0",
            "::/96",
            "fd00::/8",
            "::ffff:0:0/96",
            "::1/128",
        ] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(identity_net(&identity_key(7, &net)), Some(net), "{text}");
        }
    }

    #[test]
    fn verdict_keys_survive_the_round_trip() {
        let services = [
            Service::Any,
            Service::Protocol(6),
            Service::Ports {
                protocol: 17,
                port: 0x8000,
                prefix_bits: 1,
            },
            Service::Ports {
                protocol: 6,
                port: 443,
                prefix_bits: 16,
            },
        ];
        for service in services {
            for direction in [Direction::Ingress, Direction::Egress] {
                for source in [SourceClass(0), SourceClass(1), SourceClass(127)] {
                    let key = VerdictKey {
                        inside: InsideClass(0x1234),
                        source,
                        peer: IdentityId(9),
                        direction,
                        service,
                    };
                    assert_eq!(verdict_meaning(&verdict_key(EndpointId(3), 5, &key)), Some(key));
                }
            }
        }
    }

    #[test]
    fn source_blocks_survive_the_round_trip() {
        for (port, prefix_bits) in [(0, 0), (0x8000, 1), (443, 16)] {
            let block = SourceBlock {
                protocol: 6,
                port,
                prefix_bits,
            };
            assert_eq!(source_block(&source_key(EndpointId(3), 5, &block)), Some(block));
        }
    }

    #[test]
    fn two_addresses_of_one_family_are_refused() {
        let link = |addresses: &[&str]| EndpointLink {
            id: EndpointId(1),
            ifindex: 2,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            mac: [2, 0, 0, 0, 0, 1],
        };
        let both = link(&["10.0.0.1", "fd00::1"]);
        assert_eq!(endpoint_link(2, &endpoint(&both).unwrap()), both);
        for bad in [
            link(&["10.0.0.1", "10.0.0.2"]),
            link(&["0.0.0.0"]),
            link(&["ff02::1"]),
        ] {
            assert!(matches!(endpoint(&bad), Err(DatapathError::Address { .. })));
        }
    }
}
