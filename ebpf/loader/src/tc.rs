//! Filters of the clsact queueing discipline: where programs run on kernels that have no tcx. By hand, since the library
//! attaches by the name of an interface, which may change under it, and cannot tell which filters are there.
//!
//! A filter is ours if it has our priority, its hook's handle and its program's name. It belongs to the interface, not
//! to a process, and is replaced in one step. The discipline is added where it is missing and never deleted: others
//! may have come to use it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::netlink::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, attribute, find, request};

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
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const CLSACT: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;

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
            &self.tcmsg(),
            &attributes,
        )
        .map(drop)
    }

    /// Removes the filter, if it is there.
    pub(crate) fn remove(self) -> io::Result<()> {
        if !self.is_there()? {
            return Ok(());
        }
        match request(RTM_DELTFILTER, NLM_F_ACK, &self.tcmsg(), &[]) {
            Err(error) if !is_nothing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Name of the filter that is at this place.
    fn found(self) -> io::Result<Option<String>> {
        let reply = match request(RTM_GETTFILTER, 0, &self.tcmsg(), &[]) {
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

    fn tcmsg(self) -> [u8; TCMSG_BYTES] {
        tcmsg(Tcmsg {
            ifindex: self.ifindex,
            handle: self.handle,
            parent: self.side as u32,
            info: PRIORITY << 16 | u32::from(ALL_PROTOCOLS),
        })
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
        &filter.tcmsg(),
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
    match request(RTM_NEWQDISC, flags, &tcmsg(qdisc), &attributes) {
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

fn tcmsg(fields: Tcmsg) -> [u8; TCMSG_BYTES] {
    let mut bytes = [0; TCMSG_BYTES];
    let fields = [fields.ifindex, fields.handle, fields.parent, fields.info];
    // After family and padding.
    for (place, field) in bytes.chunks_exact_mut(4).skip(1).zip(fields) {
        place.copy_from_slice(&field.to_ne_bytes());
    }
    bytes
}

/// There is no such interface, discipline, chain, or filter. A request that the kernel cannot read is also invalid;
/// that ours can be read, the tests show.
fn is_nothing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)
    )
}
