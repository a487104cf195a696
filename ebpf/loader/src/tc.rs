//! Filters of the clsact queueing discipline: where programs run on kernels that have no tcx. Just enough of
//! rtnetlink(7) for that, since the library attaches by the name of an interface, which may change under it, and
//! cannot tell which filters are there.
//!
//! A filter is ours if it has our priority, its hook's handle and its program's name. It belongs to the interface, not
//! to a process, and is replaced in one step. The discipline is added where it is missing and never deleted: others
//! may have come to use it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink};

/// Where on an interface a filter is: `tcm_parent` of the discipline's two classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Side {
    /// Packets that arrive on the interface: `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`.
    Ingress = 0xffff_fff2,
    /// Packets that leave through it: `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS)`.
    Egress = 0xffff_fff3,
}

/// A filter of ours on one interface.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filter<'a> {
    /// The interface, of the caller's network namespace.
    pub(crate) ifindex: u32,
    /// Which packets.
    pub(crate) side: Side,
    /// Unique among ours on this side.
    pub(crate) handle: u32,
    /// Tells it from the filters of others.
    pub(crate) name: &'a str,
}

/// Before everyone else: a filter that comes earlier could let packets pass unseen.
const PRIORITY: u32 = 1;
/// `ETH_P_ALL`, as on the wire.
const ALL_PROTOCOLS: u16 = 3_u16.to_be();
/// `TCA_BPF_FLAG_ACT_DIRECT`: what the program returns is what happens.
const DIRECT_ACTION: u32 = 1;

// include/uapi/linux/rtnetlink.h and pkt_cls.h.
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLA_TYPE_MASK: u16 = 0x3fff;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const CLSACT: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;

const HEADER_BYTES: usize = 16;
const TCMSG_BYTES: usize = 20;

impl Filter<'_> {
    /// Whether the filter is there.
    pub(crate) fn is_there(self) -> io::Result<bool> {
        Ok(self.found()?.as_deref() == Some(self.name))
    }

    /// Makes `program` run here, instead of the one that does already, if any.
    pub(crate) fn set(self, program: BorrowedFd<'_>) -> io::Result<()> {
        if self.found()?.is_some_and(|name| name != self.name) {
            let problem = "a filter of someone else has our priority and handle there; delete it";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
        }
        add_clsact(self.ifindex)?;
        let mut options = Vec::new();
        attribute(&mut options, TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes())?;
        attribute(
            &mut options,
            TCA_BPF_NAME,
            &[self.name.as_bytes(), b"\0"].concat(),
        )?;
        attribute(&mut options, TCA_BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes())?;
        let mut attributes = Vec::new();
        attribute(&mut attributes, TCA_KIND, b"bpf\0")?;
        attribute(&mut attributes, TCA_OPTIONS, &options)?;
        // Without NLM_F_EXCL, an existing filter gets the program: packets meet the old one or the new one.
        request(
            RTM_NEWTFILTER,
            NLM_F_ACK | NLM_F_CREATE,
            self.tcmsg(),
            &attributes,
        )
        .map(drop)
    }

    /// Removes the filter, if it is there.
    pub(crate) fn remove(self) -> io::Result<()> {
        if !self.is_there()? {
            return Ok(());
        }
        match request(RTM_DELTFILTER, NLM_F_ACK, self.tcmsg(), &[]) {
            Err(error) if !is_nothing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Name of the filter that is at this place.
    fn found(self) -> io::Result<Option<String>> {
        let reply = match request(RTM_GETTFILTER, 0, self.tcmsg(), &[]) {
            Ok(reply) => reply,
            Err(error) if is_nothing(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let attributes = reply.get(TCMSG_BYTES..).unwrap_or_default();
        let name = find(attributes, TCA_OPTIONS).and_then(|options| find(options, TCA_BPF_NAME));
        // One of another kind has no such name.
        let text = String::from_utf8_lossy(name.unwrap_or_default());
        Ok(Some(text.trim_end_matches('\0').to_owned()))
    }

    fn tcmsg(self) -> Tcmsg {
        Tcmsg {
            ifindex: self.ifindex,
            handle: self.handle,
            parent: self.side as u32,
            info: PRIORITY << 16 | u32::from(ALL_PROTOCOLS),
        }
    }
}

/// Whether the kernel has the discipline and BPF filters, tried out on an interface, which gets the discipline.
pub(crate) fn is_supported(ifindex: u32) -> io::Result<bool> {
    let is_unknown =
        |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP));
    match add_clsact(ifindex) {
        Err(error) if is_unknown(&error) => return Ok(false),
        result => result?,
    }
    let filter = Filter {
        ifindex,
        side: Side::Ingress,
        handle: 1,
        name: "",
    };
    let mut attributes = Vec::new();
    attribute(&mut attributes, TCA_KIND, b"bpf\0")?;
    // Refused in any case, since it names no program: as invalid by a kernel that knows the kind.
    match request(
        RTM_NEWTFILTER,
        NLM_F_ACK | NLM_F_CREATE,
        filter.tcmsg(),
        &attributes,
    ) {
        Err(error) if is_unknown(&error) => Ok(false),
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
        _ => Ok(true),
    }
}

/// Adds the discipline, unless it is there.
fn add_clsact(ifindex: u32) -> io::Result<()> {
    let qdisc = Tcmsg {
        ifindex,
        handle: CLSACT,
        parent: CLSACT_PARENT,
        info: 0,
    };
    let mut attributes = Vec::new();
    attribute(&mut attributes, TCA_KIND, b"clsact\0")?;
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    match request(RTM_NEWQDISC, flags, qdisc, &attributes) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// `struct tcmsg` without its family, which is none.
#[derive(Debug, Clone, Copy)]
struct Tcmsg {
    ifindex: u32,
    handle: u32,
    parent: u32,
    info: u32,
}

/// There is no such interface, discipline, chain, or filter. A request that the kernel cannot read is also invalid;
/// that ours can be read, the tests show.
fn is_nothing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)
    )
}

/// Sends one request and returns the payload of its answer: empty if that is an acknowledgement.
fn request(kind: u16, flags: u16, tcmsg: Tcmsg, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let socket = open()?;
    rustix::net::send(
        &socket,
        &message(kind, flags, tcmsg, attributes)?,
        SendFlags::empty(),
    )?;
    // A filter and its options are a few hundred bytes; the kernel answers in messages of at most two pages.
    let mut answer = vec![0; 8192];
    let (received, _) = rustix::net::recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
    answer.truncate(received);
    let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut off");
    let kind = answer.get(4..6).and_then(u16_of).ok_or_else(unreadable)?;
    let payload = answer.get(HEADER_BYTES..).ok_or_else(unreadable)?;
    if kind != NLMSG_ERROR {
        return Ok(payload.to_vec());
    }
    let code = payload.first_chunk().copied().map(i32::from_ne_bytes);
    match code.ok_or_else(unreadable)? {
        0 => Ok(Vec::new()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

fn open() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // Of netlink, this is NETLINK_ROUTE.
        None,
    )?;
    // To the kernel.
    rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

fn message(kind: u16, flags: u16, tcmsg: Tcmsg, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let length = HEADER_BYTES + TCMSG_BYTES + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).map_err(io::Error::other)?.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    // Sequence number and sender.
    bytes.extend([0; 8]);
    // Family and padding.
    bytes.extend([0; 4]);
    for field in [tcmsg.ifindex, tcmsg.handle, tcmsg.parent, tcmsg.info] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(attributes);
    Ok(bytes)
}

/// Appends an attribute, padded to four bytes.
fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) -> io::Result<()> {
    let length = u16::try_from(value.len() + 4).map_err(io::Error::other)?;
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(())
}

/// The value of the first attribute of this kind.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(attributes.get(..2).and_then(u16_of)?);
        let kind = attributes.get(2..4).and_then(u16_of)?;
        let value = attributes.get(4..length)?;
        if kind & NLA_TYPE_MASK == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_of(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().copied().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others_and_never_outside() {
        let mut inner = Vec::new();
        attribute(&mut inner, TCA_BPF_NAME, b"name\0").unwrap();
        let mut bytes = Vec::new();
        attribute(&mut bytes, TCA_KIND, b"bpf\0").unwrap();
        attribute(&mut bytes, TCA_OPTIONS | 0x8000, &inner).unwrap();
        let options = find(&bytes, TCA_OPTIONS).unwrap();
        assert_eq!(find(options, TCA_BPF_NAME), Some(&b"name\0"[..]));
        assert_eq!(find(options, TCA_BPF_FD), None);
        for end in 0..bytes.len() {
            let found = find(&bytes[..end], TCA_OPTIONS);
            assert!(found.is_none_or(|value| value.len() <= inner.len()), "{end}");
        }
        assert_eq!(find(&[0, 0, 2, 0, 0, 0], TCA_OPTIONS), None);
    }
}
