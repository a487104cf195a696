//! From bytes to the few facts that policy asks about, refusing whatever is odd.

use aya_ebpf::programs::TcContext;
use ebpf_abi::{Address, DIRECTION_EGRESS, Reason, protocol};

const ETHERNET_BYTES: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
/// Hop-by-hop and destination options, the only IPv6 extension headers that are walked. Routing headers would
/// change the destination after the verdict; fragments have no ports.
const IPV6_HOP_BY_HOP: u8 = 0;
const IPV6_DESTINATION_OPTIONS: u8 = 60;
const IPV6_FRAGMENT: u8 = 44;
const IPV6_ROUTING: u8 = 43;
const IPV6_AUTHENTICATION: u8 = 51;
const IPV6_NO_NEXT_HEADER: u8 = 59;
const IPV6_MOBILITY: u8 = 135;
const IPV6_HIP: u8 = 139;
const IPV6_SHIM6: u8 = 140;
/// A real packet has one or two.
const MAX_EXTENSION_HEADERS: usize = 4;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// What a packet may do to a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Opens a flow and is judged even if one exists: a TCP SYN.
    Opens,
    /// Continues a flow or opens one.
    Either,
    /// Continues a flow; judged on its own it has no meaning.
    Continues,
    /// An ICMP error about another flow.
    Error,
}

/// A packet as policy and flow tracking see it.
pub(crate) struct Packet {
    /// `DIRECTION_*`, seen from the pod.
    pub(crate) direction: u8,
    /// Address of the pod, as the packet claims.
    pub(crate) local: Address,
    /// Address of the other end.
    pub(crate) peer: Address,
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// Source port, 0 where there is none; for reports only.
    pub(crate) source_port: u16,
    /// Destination port, or ICMP `type << 8 | code`: what policy is asked about.
    pub(crate) service_port: u16,
    /// Ports of the flow's key, see [`ebpf_abi::FlowKey`].
    pub(crate) ports: FlowPorts,
    /// What it may do.
    pub(crate) role: Role,
    /// A TCP FIN or RST.
    pub(crate) closes: bool,
    /// Offset of the transport header.
    pub(crate) transport: usize,
    /// Bytes with the link layer, as on the wire before segmentation.
    pub(crate) length: u32,
}

/// The two ports of a flow's key.
#[derive(Clone, Copy)]
pub(crate) struct FlowPorts {
    pub(crate) local: u16,
    pub(crate) peer: u16,
}

impl Packet {
    /// A packet of which only the direction is known.
    #[inline(always)]
    pub(crate) fn unparsed(direction: u8) -> Self {
        Self {
            direction,
            local: Address::UNSPECIFIED,
            peer: Address::UNSPECIFIED,
            protocol: 0,
            source_port: 0,
            service_port: 0,
            ports: FlowPorts { local: 0, peer: 0 },
            role: Role::Continues,
            closes: false,
            transport: 0,
            length: 0,
        }
    }
}

/// Interface the packet is on.
#[inline(always)]
pub(crate) fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is the kernel's for as long as the program runs; the verifier checks the access.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Fills `packet`. On an error what was already understood stays, for the report.
#[inline(always)]
pub(crate) fn parse(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    packet.length = ctx.len();
    // SAFETY: as in `ifindex`.
    if unsafe { (*ctx.skb.skb).vlan_present } != 0 {
        return Err(Reason::Vlan);
    }
    let ethertype = u16::from_be(load(ctx, 12)?);
    if ethertype == ETHERTYPE_IPV4 {
        parse_ipv4(ctx, packet)?;
    } else if ethertype == ETHERTYPE_IPV6 {
        parse_ipv6(ctx, packet)?;
    } else if ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ {
        return Err(Reason::Vlan);
    } else {
        return Err(Reason::NotIp);
    }
    parse_transport(ctx, packet)
}

/// Whether the frame comes from this MAC address.
#[inline(always)]
pub(crate) fn sent_from_mac(ctx: &TcContext, mac: &[u8; 6]) -> bool {
    let Ok(source) = load::<[u8; 6]>(ctx, 6) else {
        return false;
    };
    let mut difference = 0;
    for i in 0..6 {
        difference |= source[i] ^ mac[i];
    }
    difference == 0
}

#[inline(always)]
fn parse_ipv4(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    // Words of the header, in the byte order of the wire.
    let header: [u32; IPV4_BYTES / 4] = load(ctx, ETHERNET_BYTES)?;
    let [first, second, third, source, destination] = header.map(u32::from_be);
    packet.set_addresses(
        Address::from_ipv4_be(source.to_be()),
        Address::from_ipv4_be(destination.to_be()),
    );
    packet.protocol = (third >> 16) as u8;

    let header_words = first >> 24 & 0xf;
    let total_length = first & 0xffff;
    if first >> 28 != 4 || header_words < 5 {
        return Err(Reason::BadHeader);
    }
    if total_length < header_words * 4 {
        return Err(Reason::BadHeader);
    }
    if total_length + ETHERNET_BYTES as u32 > packet.length {
        return Err(Reason::Truncated);
    }
    // Three flag bits and the fragment offset: "don't fragment" is fine, "reserved" is not.
    let fragment = second & 0xffff;
    if fragment & 0x8000 != 0 {
        return Err(Reason::BadHeader);
    }
    if fragment & 0x3fff != 0 {
        return Err(Reason::Fragment);
    }
    if header_words > 5 {
        return Err(Reason::IpOptions);
    }
    packet.transport = ETHERNET_BYTES + IPV4_BYTES;
    packet.set_end(total_length + ETHERNET_BYTES as u32)
}

#[inline(always)]
fn parse_ipv6(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    let header: [u32; IPV6_BYTES / 4] = load(ctx, ETHERNET_BYTES)?;
    let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    let (first, second) = (u32::from_be(first), u32::from_be(second));
    let source = Address {
        words_be: [s0, s1, s2, s3],
    };
    let destination = Address {
        words_be: [d0, d1, d2, d3],
    };
    if first >> 28 != 6 || source.is_ipv4() || destination.is_ipv4() {
        return Err(Reason::BadHeader);
    }
    packet.set_addresses(source, destination);
    let end = (second >> 16) + (ETHERNET_BYTES + IPV6_BYTES) as u32;
    if end > packet.length {
        return Err(Reason::Truncated);
    }

    let mut next = (second >> 8) as u8;
    let mut offset = ETHERNET_BYTES + IPV6_BYTES;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if next != IPV6_HOP_BY_HOP && next != IPV6_DESTINATION_OPTIONS {
            break;
        }
        let [following, units]: [u8; 2] = load(ctx, offset)?;
        next = following;
        offset += (units as usize + 1) * 8;
    }
    packet.protocol = next;
    match next {
        IPV6_FRAGMENT => Err(Reason::Fragment),
        IPV6_HOP_BY_HOP
        | IPV6_DESTINATION_OPTIONS
        | IPV6_ROUTING
        | IPV6_AUTHENTICATION
        | IPV6_NO_NEXT_HEADER
        | IPV6_MOBILITY
        | IPV6_HIP
        | IPV6_SHIM6 => Err(Reason::ExtensionHeader),
        _ => {
            packet.transport = offset;
            packet.set_end(end)
        }
    }
}

#[inline(always)]
fn parse_transport(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    match packet.protocol {
        protocol::TCP => parse_tcp(ctx, packet),
        protocol::UDP | protocol::UDPLITE => parse_ports(ctx, packet, 8),
        protocol::SCTP => parse_ports(ctx, packet, 12),
        // The other family's ICMP is nonsense, and would be judged by the wrong type numbers.
        protocol::ICMP if packet.peer.is_ipv4() => parse_icmp(ctx, packet, &ICMP_TYPES),
        protocol::ICMPV6 if !packet.peer.is_ipv4() => parse_icmp(ctx, packet, &ICMPV6_TYPES),
        protocol::ICMP | protocol::ICMPV6 => Err(Reason::BadHeader),
        _ => {
            packet.role = Role::Either;
            Ok(())
        }
    }
}

#[inline(always)]
fn parse_tcp(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    parse_ports(ctx, packet, 20)?;
    let [offset, flags]: [u8; 2] = load(ctx, packet.transport + 12)?;
    let header_bytes = (offset >> 4) as u32 * 4;
    if header_bytes < 20 {
        return Err(Reason::BadHeader);
    }
    packet.need(header_bytes)?;
    let syn = flags & TCP_SYN != 0;
    if flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK) == 0 || (syn && flags & (TCP_FIN | TCP_RST) != 0) {
        return Err(Reason::BadTcpFlags);
    }
    packet.role = if syn && flags & TCP_ACK == 0 {
        Role::Opens
    } else {
        Role::Continues
    };
    packet.closes = flags & (TCP_FIN | TCP_RST) != 0;
    Ok(())
}

#[inline(always)]
fn parse_ports(ctx: &TcContext, packet: &mut Packet, header_bytes: u32) -> Result<(), Reason> {
    packet.need(header_bytes)?;
    let [source, destination] = load::<[u16; 2]>(ctx, packet.transport)?.map(u16::from_be);
    packet.source_port = source;
    packet.service_port = destination;
    packet.ports = FlowPorts::of(packet.direction, source, destination);
    packet.role = Role::Either;
    Ok(())
}

/// Type numbers of one family's ICMP.
pub(crate) struct IcmpTypes {
    echo_request: u8,
    echo_reply: u8,
    /// Unreachable, packet too big, time exceeded, parameter problem. Redirects are not among them: they are
    /// judged like any other message.
    errors: [u8; 4],
}

const ICMP_TYPES: IcmpTypes = IcmpTypes {
    echo_request: 8,
    echo_reply: 0,
    errors: [3, 3, 11, 12],
};
const ICMPV6_TYPES: IcmpTypes = IcmpTypes {
    echo_request: 128,
    echo_reply: 129,
    errors: [1, 2, 3, 4],
};

#[inline(always)]
fn parse_icmp(ctx: &TcContext, packet: &mut Packet, types: &IcmpTypes) -> Result<(), Reason> {
    packet.need(8)?;
    let [kind, code, _, _, id_high, id_low, _, _]: [u8; 8] = load(ctx, packet.transport)?;
    let id = (id_high as u16) << 8 | id_low as u16;
    packet.service_port = (kind as u16) << 8 | code as u16;
    let [e0, e1, e2, e3] = types.errors;
    if kind == e0 || kind == e1 || kind == e2 || kind == e3 {
        packet.role = Role::Error;
    } else if kind == types.echo_request {
        packet.role = Role::Either;
        packet.ports = FlowPorts::of(packet.direction, id, 0);
    } else if kind == types.echo_reply {
        packet.role = Role::Continues;
        packet.ports = FlowPorts::of(packet.direction, 0, id);
    } else {
        packet.role = Role::Either;
        packet.ports = FlowPorts::of(packet.direction, packet.service_port, 0);
    }
    Ok(())
}

/// The packet that an ICMP error is about, as far as it is there: enough to find its flow.
pub(crate) struct Quoted {
    /// Address of the pod.
    pub(crate) local: Address,
    /// Address of the other end.
    pub(crate) peer: Address,
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// Ports of the flow's key.
    pub(crate) ports: FlowPorts,
}

/// Reads the packet that the ICMP error `packet` quotes. It travelled the other way.
#[inline(always)]
pub(crate) fn parse_quoted(ctx: &TcContext, packet: &Packet) -> Result<Quoted, Reason> {
    let direction = packet.direction ^ DIRECTION_EGRESS;
    let start = packet.transport + 8;
    let is_ipv4 = packet.peer.is_ipv4();
    let (source, destination, protocol, transport) = if is_ipv4 {
        quoted_ipv4(ctx, start)?
    } else {
        quoted_ipv6(ctx, start)?
    };
    let ports = match protocol {
        protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::SCTP => {
            let [source, destination] = load::<[u16; 2]>(ctx, transport)?.map(u16::from_be);
            FlowPorts::of(direction, source, destination)
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let types = if is_ipv4 { ICMP_TYPES } else { ICMPV6_TYPES };
            let [kind, _, _, _, id_high, id_low, _, _]: [u8; 8] = load(ctx, transport)?;
            let id = (id_high as u16) << 8 | id_low as u16;
            if kind == types.echo_request {
                FlowPorts::of(direction, id, 0)
            } else if kind == types.echo_reply {
                FlowPorts::of(direction, 0, id)
            } else {
                return Err(Reason::IcmpUnrelated);
            }
        }
        _ => FlowPorts { local: 0, peer: 0 },
    };
    let (local, peer) = if direction == DIRECTION_EGRESS {
        (source, destination)
    } else {
        (destination, source)
    };
    Ok(Quoted {
        local,
        peer,
        protocol,
        ports,
    })
}

#[inline(always)]
fn quoted_ipv4(ctx: &TcContext, start: usize) -> Result<(Address, Address, u8, usize), Reason> {
    let header: [u32; IPV4_BYTES / 4] = load(ctx, start)?;
    let [first, second, third, _, _] = header.map(u32::from_be);
    // Options and fragments are never let through, so no flow of ours can have been quoted with them.
    if first >> 24 != 0x45 || second & 0x3fff != 0 {
        return Err(Reason::IcmpUnrelated);
    }
    let protocol = (third >> 16) as u8;
    Ok((
        Address::from_ipv4_be(header[3]),
        Address::from_ipv4_be(header[4]),
        protocol,
        start + IPV4_BYTES,
    ))
}

#[inline(always)]
fn quoted_ipv6(ctx: &TcContext, start: usize) -> Result<(Address, Address, u8, usize), Reason> {
    let header: [u32; IPV6_BYTES / 4] = load(ctx, start)?;
    let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    let protocol = (u32::from_be(second) >> 8) as u8;
    if u32::from_be(first) >> 28 != 6 {
        return Err(Reason::IcmpUnrelated);
    }
    let source = Address {
        words_be: [s0, s1, s2, s3],
    };
    let destination = Address {
        words_be: [d0, d1, d2, d3],
    };
    Ok((source, destination, protocol, start + IPV6_BYTES))
}

impl FlowPorts {
    /// The ports of a packet that goes in `direction`.
    #[inline(always)]
    fn of(direction: u8, source: u16, destination: u16) -> Self {
        if direction == DIRECTION_EGRESS {
            Self {
                local: source,
                peer: destination,
            }
        } else {
            Self {
                local: destination,
                peer: source,
            }
        }
    }
}

impl Packet {
    #[inline(always)]
    fn set_addresses(&mut self, source: Address, destination: Address) {
        (self.local, self.peer) = if self.direction == DIRECTION_EGRESS {
            (source, destination)
        } else {
            (destination, source)
        };
    }

    /// Cuts off what follows the IP packet: padding of the link layer is no part of it.
    #[inline(always)]
    fn set_end(&mut self, end: u32) -> Result<(), Reason> {
        if (self.transport as u32) > end {
            return Err(Reason::BadHeader);
        }
        self.length = end;
        Ok(())
    }

    /// Demands so many bytes of transport header.
    #[inline(always)]
    fn need(&self, bytes: u32) -> Result<(), Reason> {
        if self.transport as u32 + bytes > self.length {
            Err(Reason::Truncated)
        } else {
            Ok(())
        }
    }
}

/// Reads at `offset`, also beyond the linear part of the packet.
#[inline(always)]
fn load<T>(ctx: &TcContext, offset: usize) -> Result<T, Reason> {
    ctx.load(offset).map_err(|_| Reason::Truncated)
}
