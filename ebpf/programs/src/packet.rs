//! From bytes to the few facts that policy asks about, refusing whatever is odd.

use core::arch::asm;

use aya_ebpf::programs::TcContext;
use ebpf_abi::{Address, DIRECTION_EGRESS, ICMP_MESSAGE_DISTANCE, Reason, SCALE_LARGEST, SCALE_NONE, protocol};

pub(crate) const ETHERNET_BYTES: usize = 14;
/// Link header of a device of layer 3 (tun, WireGuard, PPP, tunnels): packets begin with IP, and what they are the kernel
/// says beside them.
pub(crate) const NO_LINK_BYTES: usize = 0;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
/// Hop-by-hop and destination options and the fragment header are the only IPv6 extension headers that are walked.
/// Routing headers would change the destination after the verdict.
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

pub(crate) const TCP_FIN: u8 = 0x01;
pub(crate) const TCP_SYN: u8 = 0x02;
pub(crate) const TCP_RST: u8 = 0x04;
pub(crate) const TCP_ACK: u8 = 0x10;
/// Options of a SYN that are looked at in search of the window scale. Stacks send five or six.
const MAX_TCP_OPTIONS: usize = 10;
const TCP_OPTION_END: u8 = 0;
const TCP_OPTION_NOP: u8 = 1;
const TCP_OPTION_WINDOW_SCALE: u8 = 3;

pub(crate) const SCTP_INIT: u8 = 1;
pub(crate) const SCTP_INIT_ACK: u8 = 2;
pub(crate) const SCTP_ABORT: u8 = 6;
pub(crate) const SCTP_SHUTDOWN: u8 = 7;
pub(crate) const SCTP_SHUTDOWN_ACK: u8 = 8;
pub(crate) const SCTP_COOKIE_ECHO: u8 = 10;
pub(crate) const SCTP_COOKIE_ACK: u8 = 11;
pub(crate) const SCTP_SHUTDOWN_COMPLETE: u8 = 14;

/// What a packet may do to a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Opens a flow, and asks to open one even if it exists: a TCP SYN, an SCTP INIT.
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
    /// MAC address of the sender, in words of the wire's byte order.
    pub(crate) source_mac: [u16; 3],
    /// Address of the pod, as the packet claims.
    pub(crate) local: Address,
    /// Address of the other end.
    pub(crate) peer: Address,
    /// As `local`, before the host translates it or after it was translated back.
    pub(crate) inside: Address,
    /// Who brought it to the host that sends it, as [`ebpf_abi::FlowState::carrier`]; of what comes back, who brought what
    /// it answers.
    pub(crate) carrier: u32,
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// Routers that the packet may still pass: time to live, hop limit.
    pub(crate) hops: u8,
    /// Source port, 0 where there is none; for reports only.
    pub(crate) source_port: u16,
    /// Destination port, or ICMP `type << 8 | code`: what policy is asked about.
    pub(crate) service_port: u16,
    /// Ports of the flow's key, see [`ebpf_abi::FlowKey`].
    pub(crate) ports: FlowPorts,
    /// What it may do.
    pub(crate) role: Role,
    /// What flow tracking must know of TCP and SCTP.
    pub(crate) segment: Segment,
    /// Whether, and which, fragment it is.
    pub(crate) fragment: Piece,
    /// Offset of the transport header.
    pub(crate) transport: usize,
    /// Bytes with the link layer, as on the wire before segmentation.
    pub(crate) length: u32,
    /// Interface of the host.
    pub(crate) ifindex: u32,
}

/// Of a TCP segment, or the first chunk of an SCTP packet.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    /// TCP flags, or the type of the chunk.
    pub(crate) flags: u8,
    /// SCTP: flags of the chunk.
    pub(crate) chunk_flags: u8,
    /// Sequence number, or the verification tag.
    pub(crate) sequence: u32,
    /// Acknowledgement, or the tag that an INIT or INIT ACK announces.
    pub(crate) acknowledged: u32,
    /// Window as in the header, before scaling.
    pub(crate) window: u32,
    /// Bytes of sequence space: payload, SYN and FIN.
    pub(crate) length: u32,
    /// Window scale of a SYN, or [`SCALE_NONE`].
    pub(crate) scale: u8,
}

/// Part of a packet.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    /// Which part, `PIECE_*`.
    pub(crate) kind: u8,
    /// What the fragment header says comes behind it, or the header of IPv4: with options there, not the protocol.
    pub(crate) next: u8,
    /// Identification of the packet.
    pub(crate) id: u32,
    /// Where a first fragment ends or a later one begins, in units of eight bytes.
    pub(crate) boundary: u16,
}

/// The whole packet.
pub(crate) const PIECE_WHOLE: u8 = 0;
/// The first fragment of several.
pub(crate) const PIECE_FIRST: u8 = 1;
/// A fragment without ports.
pub(crate) const PIECE_LATER: u8 = 2;

/// The two ports of a flow's key.
#[derive(Clone, Copy)]
pub(crate) struct FlowPorts {
    pub(crate) local: u16,
    pub(crate) peer: u16,
}

impl Packet {
    /// A packet of which only the direction and the interface are known.
    #[inline(always)]
    pub(crate) fn unparsed(direction: u8, ifindex: u32) -> Self {
        Self {
            direction,
            source_mac: [0; 3],
            local: Address::UNSPECIFIED,
            peer: Address::UNSPECIFIED,
            inside: Address::UNSPECIFIED,
            carrier: 0,
            protocol: 0,
            hops: 0,
            source_port: 0,
            service_port: 0,
            ports: FlowPorts { local: 0, peer: 0 },
            role: Role::Continues,
            segment: Segment {
                flags: 0,
                chunk_flags: 0,
                sequence: 0,
                acknowledged: 0,
                window: 0,
                length: 0,
                scale: SCALE_NONE,
            },
            fragment: Piece {
                kind: PIECE_WHOLE,
                next: 0,
                id: 0,
                boundary: 0,
            },
            transport: 0,
            length: 0,
            ifindex,
        }
    }
}

/// Interface the packet is on.
#[inline(always)]
pub(crate) fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is the kernel's for as long as the program runs; the verifier checks the access.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Interface by which the packet came to this machine; 0 if the machine has made it.
#[inline(always)]
pub(crate) fn came_by(ctx: &TcContext) -> u32 {
    // SAFETY: as in `ifindex`.
    unsafe { (*ctx.skb.skb).ingress_ifindex }
}

/// Whether the packet stands for several, which the kernel, or a device, has merged or takes apart later.
#[inline(always)]
fn is_merged(ctx: &TcContext) -> bool {
    // SAFETY: as in `ifindex`.
    unsafe { (*ctx.skb.skb).gso_size != 0 }
}

/// Whether a socket of this machine sends the packet.
#[inline(always)]
pub(crate) fn has_socket(ctx: &TcContext) -> bool {
    // SAFETY: as in `ifindex`; the pointer is not followed.
    !unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk }.is_null()
}

/// Fills `packet`, of which direction and interface are known, and that its IP header follows `LINK` bytes. On an error
/// what was already understood stays, for the report.
#[inline(always)]
pub(crate) fn parse<const HOST: bool, const LINK: usize>(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    packet.length = ctx.len();
    // SAFETY: as in `ifindex`.
    let is_tagged = unsafe { (*ctx.skb.skb).vlan_present } != 0;
    // SAFETY: as above.
    let vlan = unsafe { (*ctx.skb.skb).vlan_tci } & 0xfff;
    // A host takes what is tagged with VLAN 0 for its own, as it takes what is not tagged.
    if is_tagged && (!HOST || vlan != 0) {
        return Err(Reason::Vlan);
    }
    let (ethertype, ipv4) = if LINK == NO_LINK_BYTES {
        let first: [u32; IPV4_BYTES / 4] = load(ctx, 0)?;
        (bare_ethertype(ctx, packet.direction, first[0] as u8), first)
    } else {
        // The link layer and as much as an IPv4 header, in words of the wire's byte order.
        let start: [u16; (ETHERNET_BYTES + IPV4_BYTES) / 2] = load(ctx, 0)?;
        packet.source_mac = [start[3], start[4], start[5]];
        let word = |index: usize| start[7 + 2 * index] as u32 | (start[8 + 2 * index] as u32) << 16;
        (u16::from_be(start[6]), [word(0), word(1), word(2), word(3), word(4)])
    };
    if ethertype == ETHERTYPE_IPV4 {
        parse_ipv4::<LINK>(ctx, packet, ipv4)?;
    } else if ethertype == ETHERTYPE_IPV6 {
        parse_ipv6::<LINK>(ctx, packet)?;
    } else if ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ {
        // Below a tag that names none it would untag the next one too, and deliver what is in there.
        return Err(if is_tagged { Reason::BadHeader } else { Reason::Vlan });
    } else {
        return Err(Reason::NotIp);
    }
    if packet.fragment.kind == PIECE_LATER {
        packet.role = Role::Continues;
        return Ok(());
    }
    let parsed = parse_transport(ctx, packet);
    if packet.fragment.kind == PIECE_FIRST {
        // A first fragment too small for the transport header leaves ports, or flags, to a later one. Errors quote
        // packets whole, as far as they do.
        return match parsed {
            Err(Reason::Truncated) => Err(Reason::Fragment),
            Ok(()) if packet.role == Role::Error => Err(Reason::Fragment),
            parsed => parsed,
        };
    }
    parsed
}

/// What a packet is that has no link header: what the kernel says, by which it hands over what arrives. Of what leaves,
/// only the bytes go out, and a socket for packets may call them anything: whatever begins like IP is IP there.
#[inline(always)]
fn bare_ethertype(ctx: &TcContext, direction: u8, first: u8) -> u16 {
    // SAFETY: as in `ifindex`.
    let said = u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16);
    match first >> 4 {
        _ if direction != DIRECTION_EGRESS => said,
        4 => ETHERTYPE_IPV4,
        6 => ETHERTYPE_IPV6,
        _ => said,
    }
}

#[inline(always)]
fn parse_ipv4<const LINK: usize>(ctx: &TcContext, packet: &mut Packet, header: [u32; IPV4_BYTES / 4]) -> Result<(), Reason> {
    let [first, second, third, _, _] = header.map(u32::from_be);
    packet.set_addresses(Address::from_ipv4_be(header[3]), Address::from_ipv4_be(header[4]));
    packet.protocol = (third >> 16) as u8;
    packet.hops = (third >> 24) as u8;

    let header_words = first >> 24 & 0xf;
    let mut total_length = first & 0xffff;
    if first >> 28 != 4 || header_words < 5 {
        return Err(Reason::BadHeader);
    }
    if total_length < header_words * 4 {
        // Merged to more than the field can say ("BIG TCP"): 0 stands for all that is there, as for the kernel.
        if total_length != 0 || packet.protocol != protocol::TCP || !is_merged(ctx) {
            return Err(Reason::BadHeader);
        }
        total_length = packet.length - LINK as u32;
    }
    if total_length + LINK as u32 > packet.length {
        return Err(Reason::Truncated);
    }
    // Three flag bits and the fragment offset: "don't fragment" is fine, "reserved" is not.
    let fragment = second & 0xffff;
    if fragment & 0x8000 != 0 {
        return Err(Reason::BadHeader);
    }
    // All of them: a source route changes the destination after the verdict, and nothing that pods need has others.
    if header_words > 5 {
        return Err(Reason::IpOptions);
    }
    packet.transport = LINK + IPV4_BYTES;
    packet.set_end(total_length + LINK as u32)?;
    packet.fragment.next = packet.protocol;
    let begin = packet.transport as u32;
    packet.set_fragment(begin, second >> 16, fragment & 0x1fff, fragment & 0x2000 != 0)
}

#[inline(always)]
fn parse_ipv6<const LINK: usize>(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    let header: [u32; IPV6_BYTES / 4] = load(ctx, LINK)?;
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
    packet.hops = second as u8;
    let mut end = (second >> 16) + (LINK + IPV6_BYTES) as u32;
    if second >> 16 == 0 && is_merged(ctx) {
        // As with IPv4. The kernel may put an option in front that says the length; it is passed over like others.
        end = packet.length;
    }
    if end > packet.length {
        return Err(Reason::Truncated);
    }

    let mut next = (second >> 8) as u8;
    let mut offset = LINK + IPV6_BYTES;
    // Of the fragment header: whether there is one, what it names, where it ends, identification, offset in units of
    // eight bytes, whether more follow. Not an `Option`: the verifier refuses to copy what is in one that is `None`.
    let (mut fragmented, mut named, mut begin, mut id, mut position, mut more) = (false, 0, 0, 0, 0, false);
    for _ in 0..MAX_EXTENSION_HEADERS {
        if next == IPV6_FRAGMENT && !fragmented {
            let [first, second] = load::<[u32; 2]>(ctx, offset)?.map(u32::from_be);
            next = (first >> 24) as u8;
            offset += 8;
            (fragmented, named, begin) = (true, next, offset as u32);
            (id, position, more) = (second, (first & 0xffff) >> 3, first & 1 != 0);
            if position != 0 {
                // What follows is the middle of something.
                break;
            }
        } else if next == IPV6_HOP_BY_HOP || next == IPV6_DESTINATION_OPTIONS {
            let [following, units]: [u8; 2] = load(ctx, offset)?;
            next = following;
            offset += (units as usize + 1) * 8;
        } else {
            break;
        }
    }
    packet.protocol = next;
    match next {
        _ if position != 0 => {}
        IPV6_HOP_BY_HOP
        | IPV6_FRAGMENT
        | IPV6_DESTINATION_OPTIONS
        | IPV6_ROUTING
        | IPV6_AUTHENTICATION
        | IPV6_NO_NEXT_HEADER
        | IPV6_MOBILITY
        | IPV6_HIP
        | IPV6_SHIM6 => return Err(Reason::ExtensionHeader),
        _ => {}
    }
    packet.transport = offset;
    packet.set_end(end)?;
    packet.fragment.next = named;
    packet.set_fragment(begin, id, position, more)
}

#[inline(always)]
fn parse_transport(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    match packet.protocol {
        protocol::TCP => parse_tcp(ctx, packet),
        protocol::UDP | protocol::UDPLITE => parse_udp(ctx, packet),
        protocol::SCTP => parse_sctp(ctx, packet),
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
    packet.need(20)?;
    let [ports, sequence, acknowledged, rest] = load::<[u32; 4]>(ctx, packet.transport)?.map(u32::from_be);
    packet.set_ports(ports);
    let header_bytes = (rest >> 28) * 4;
    if header_bytes < 20 {
        return Err(Reason::BadHeader);
    }
    packet.need(header_bytes)?;
    let flags = (rest >> 16) as u8;
    let syn = flags & TCP_SYN != 0;
    if flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK) == 0 || (syn && flags & (TCP_FIN | TCP_RST) != 0) {
        return Err(Reason::BadTcpFlags);
    }
    packet.role = if syn && flags & TCP_ACK == 0 {
        Role::Opens
    } else {
        Role::Continues
    };
    let payload = if packet.fragment.kind == PIECE_FIRST {
        // How much follows is not known yet; at most this.
        0xffff
    } else {
        packet.length - packet.transport as u32 - header_bytes
    };
    packet.segment = Segment {
        flags,
        chunk_flags: 0,
        sequence,
        acknowledged,
        window: rest & 0xffff,
        length: payload + syn as u32 + (flags & TCP_FIN != 0) as u32,
        scale: if syn {
            window_scale(ctx, packet.transport, header_bytes)
        } else {
            SCALE_NONE
        },
    };
    Ok(())
}

/// Searches the options of a SYN. Whatever is odd counts as none: then the window is taken for smaller than it is.
#[inline(always)]
fn window_scale(ctx: &TcContext, transport: usize, header_bytes: u32) -> u8 {
    let end = transport + header_bytes as usize;
    let mut at = transport + 20;
    for _ in 0..MAX_TCP_OPTIONS {
        if at + 2 > end {
            break;
        }
        let Ok([kind, length, value]) = load::<[u8; 3]>(ctx, at) else {
            break;
        };
        match kind {
            TCP_OPTION_END => break,
            TCP_OPTION_NOP => at += 1,
            TCP_OPTION_WINDOW_SCALE if length == 3 && at + 3 <= end => {
                return if value > SCALE_LARGEST {
                    SCALE_LARGEST
                } else {
                    value
                };
            }
            _ if length < 2 => break,
            _ => at += length as usize,
        }
    }
    SCALE_NONE
}

#[inline(always)]
fn parse_udp(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    packet.need(8)?;
    let ports: u32 = load(ctx, packet.transport)?;
    packet.set_ports(u32::from_be(ports));
    packet.role = Role::Either;
    Ok(())
}

#[inline(always)]
fn parse_sctp(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    packet.need(16)?;
    let [ports, tag, _, chunk] = load::<[u32; 4]>(ctx, packet.transport)?.map(u32::from_be);
    packet.set_ports(ports);
    let kind = (chunk >> 24) as u8;
    packet.segment.flags = kind;
    packet.segment.chunk_flags = (chunk >> 16) as u8;
    packet.segment.sequence = tag;
    if kind == SCTP_INIT || kind == SCTP_INIT_ACK {
        packet.need(20)?;
        packet.segment.acknowledged = u32::from_be(load(ctx, packet.transport + 16)?);
    }
    // RFC 9260, section 8.5.1: the tag of a packet with an INIT is zero.
    if kind == SCTP_INIT && tag != 0 {
        return Err(Reason::BadHeader);
    }
    packet.role = if kind == SCTP_INIT {
        Role::Opens
    } else {
        Role::Continues
    };
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
        packet.ports = FlowPorts::of(packet.direction, id, answerer(id, code));
    } else if kind == types.echo_reply {
        packet.role = Role::Continues;
        packet.ports = FlowPorts::of(packet.direction, answerer(id, code), id);
    } else {
        packet.role = Role::Either;
        packet.ports = FlowPorts::of_message(packet.direction, packet.service_port);
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
            let [kind, code, _, _, id_high, id_low, _, _]: [u8; 8] = load(ctx, transport)?;
            let id = (id_high as u16) << 8 | id_low as u16;
            if kind == types.echo_request {
                FlowPorts::of(direction, id, answerer(id, code))
            } else if kind == types.echo_reply {
                FlowPorts::of(direction, answerer(id, code), id)
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
    // Options are never let through, so no flow of ours can have been quoted with them; of fragments only the first
    // shows its ports.
    if first >> 24 != 0x45 || second & 0x1fff != 0 {
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
    if u32::from_be(first) >> 28 != 6 {
        return Err(Reason::IcmpUnrelated);
    }
    let source = Address {
        words_be: [s0, s1, s2, s3],
    };
    let destination = Address {
        words_be: [d0, d1, d2, d3],
    };
    let mut next = (u32::from_be(second) >> 8) as u8;
    let mut offset = start + IPV6_BYTES;
    let mut fragmented = false;
    // The headers that are let through; a header of another kind is the protocol of no flow.
    for _ in 0..MAX_EXTENSION_HEADERS {
        let is_fragment = next == IPV6_FRAGMENT;
        if !is_fragment && next != IPV6_HOP_BY_HOP && next != IPV6_DESTINATION_OPTIONS {
            break;
        }
        // By the helper alone: errors are rare, and each way to read doubles what the verifier walks through.
        let [following, units, high, low]: [u8; 4] = ctx.load(offset).map_err(|_| Reason::IcmpUnrelated)?;
        // As with IPv4, a later fragment. Its offset has thirteen bits.
        if is_fragment && (fragmented || high != 0 || low >> 3 != 0) {
            return Err(Reason::IcmpUnrelated);
        }
        fragmented |= is_fragment;
        offset += if is_fragment { 8 } else { (units as usize + 1) * 8 };
        next = following;
    }
    Ok((source, destination, next, offset))
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

    /// What stands for ports in an ICMP message that is neither echo nor error: farther apart than an echo's.
    #[inline(always)]
    fn of_message(direction: u8, kind_and_code: u16) -> Self {
        Self::of(direction, kind_and_code, kind_and_code.wrapping_add(ICMP_MESSAGE_DISTANCE))
    }
}

/// What stands for the port of the side that answers an echo, as [`ebpf_abi::FlowKey`] has it: how far it is from the id
/// tells which side asks, whatever the id.
#[inline(always)]
fn answerer(id: u16, code: u8) -> u16 {
    id.wrapping_add(1 + code as u16)
}

impl Packet {
    #[inline(always)]
    fn set_addresses(&mut self, source: Address, destination: Address) {
        (self.local, self.peer) = if self.direction == DIRECTION_EGRESS {
            (source, destination)
        } else {
            (destination, source)
        };
        self.inside = self.local;
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

    /// Takes source and destination port from the first word of a transport header.
    #[inline(always)]
    fn set_ports(&mut self, word: u32) {
        self.source_port = (word >> 16) as u16;
        self.service_port = word as u16;
        self.ports = FlowPorts::of(self.direction, self.source_port, self.service_port);
    }

    /// Whether it has a fragment header of IPv6, of the kernel's making: that never takes 0 for the identification.
    #[inline(always)]
    pub(crate) fn is_taken_apart(&self) -> bool {
        !self.local.is_ipv4() && self.fragment.id != 0
    }

    /// Notes which part of which packet this is: `position` is in units of eight bytes, and what it counts begins at
    /// `begin`. Options behind a fragment header are counted (RFC 8200, 4.5), so that is not always the transport header.
    #[inline(always)]
    fn set_fragment(&mut self, begin: u32, id: u32, position: u32, more: bool) -> Result<(), Reason> {
        if position == 0 && !more {
            // One piece that is the whole packet, if there is a fragment header at all.
            self.fragment.id = id;
            return Ok(());
        }
        let bytes = self.length - begin;
        if (more && !bytes.is_multiple_of(8)) || bytes == 0 || position * 8 + bytes > 0xffff {
            return Err(Reason::BadHeader);
        }
        self.fragment.id = id;
        (self.fragment.kind, self.fragment.boundary) = match position {
            0 => (PIECE_FIRST, (bytes / 8) as u16),
            _ => (PIECE_LATER, position as u16),
        };
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

/// Where reading in place ends. The verifier wants a bound; no header that is let through begins later. All ones, so
/// that [`bounded`] can be a mask.
const FARTHEST: usize = 0x1fff;

/// `offset`, which is at most [`FARTHEST`], as a number of which the verifier knows that.
///
/// Comparing is not enough for Linux 6.12: it takes over bounds from sums of the same number (`at + 2 > end`) without
/// completing them, enters branches that cannot be taken, and forgets all bounds there. A mask right before the addition
/// to the packet's pointer gives a number with bounds of its own. In assembly, since the compiler would drop it.
#[inline(always)]
fn bounded(mut offset: usize) -> usize {
    // SAFETY: changes one register, nothing else.
    unsafe { asm!("{0} &= {1}", inout(reg) offset, const FARTHEST, options(pure, nomem, nostack)) };
    offset
}

/// Reads at `offset`: in place where the kernel has the bytes in one piece, as it does with headers, else by a helper.
#[inline(always)]
pub(crate) fn load<T: Copy>(ctx: &TcContext, offset: usize) -> Result<T, Reason> {
    if offset <= FARTHEST {
        let start = ctx.data() + bounded(offset);
        if start + size_of::<T>() <= ctx.data_end() {
            // SAFETY: the bytes lie within the packet (checked above, and by the verifier); `T` is made of integers. The
            // kernel loads programs that read unaligned words only where the processor can.
            return Ok(unsafe { *(start as *const T) });
        }
    }
    ctx.load(offset).map_err(|_| Reason::Truncated)
}
