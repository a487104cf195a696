//! What packets of an interface begin with, which the programs cannot see.

use std::io;

use crate::{
    DatapathError,
    netlink::{find, request},
};

/// What packets begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkLayer {
    /// The fourteen bytes of Ethernet.
    Ethernet,
    /// Their IP header.
    Bare,
}

// include/uapi/linux/if_arp.h.
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
/// tun, WireGuard, xfrm.
const ARPHRD_NONE: u16 = 0xfffe;
const ARPHRD_PPP: u16 = 512;
/// Modems.
const ARPHRD_RAWIP: u16 = 519;
/// IPv4 in IPv4, and vti.
const ARPHRD_TUNNEL: u16 = 768;
const ARPHRD_TUNNEL6: u16 = 769;
/// IPv6 in IPv4.
const ARPHRD_SIT: u16 = 776;

// include/uapi/linux/rtnetlink.h and if_link.h.
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFINFOMSG_BYTES: usize = 16;

impl LinkLayer {
    /// That of an interface, by its device type. Types of which the programs could not tell where the IP header is are
    /// refused, GRE's among them: packets of some of its devices begin with the tunnel's own headers.
    pub(crate) fn of(ifindex: u32) -> Result<Self, DatapathError> {
        let (name, device_type) =
            device(ifindex).map_err(|source| DatapathError::DeviceType { ifindex, source })?;
        match device_type {
            ARPHRD_ETHER | ARPHRD_LOOPBACK => Ok(Self::Ethernet),
            ARPHRD_NONE | ARPHRD_PPP | ARPHRD_RAWIP | ARPHRD_TUNNEL | ARPHRD_TUNNEL6 | ARPHRD_SIT => {
                Ok(Self::Bare)
            }
            _ => Err(DatapathError::LinkLayer { name, device_type }),
        }
    }
}

/// Whether there is such an interface.
pub(crate) fn is_there(ifindex: u32) -> Result<bool, DatapathError> {
    match device(ifindex) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(source) => Err(DatapathError::DeviceType { ifindex, source }),
    }
}

/// Name and `ARPHRD_*` type of an interface of the caller's network namespace.
fn device(ifindex: u32) -> io::Result<(String, u16)> {
    let mut wanted = [0; IFINFOMSG_BYTES];
    wanted[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let answer = request(RTM_GETLINK, 0, &wanted, &[])?;
    let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut off");
    let device_type = answer
        .get(2..)
        .and_then(<[u8]>::first_chunk)
        .ok_or_else(unreadable)?;
    let attributes = answer.get(IFINFOMSG_BYTES..).ok_or_else(unreadable)?;
    let name = String::from_utf8_lossy(find(attributes, IFLA_IFNAME).unwrap_or_default());
    Ok((
        name.trim_end_matches('\0').to_owned(),
        u16::from_ne_bytes(*device_type),
    ))
}
