//! Which interfaces forward. Never the whole machine: `net.ipv4.ip_forward` and `net.ipv6.conf.all.forwarding`
//! stay as they are.
//!
//! The two families differ. IPv4 forwards what came in by an interface whose `forwarding` is set. IPv6 looks at
//! `all/forwarding`, which also turns every interface of the machine from a host's into a router's and so may
//! cost it the routes that it learns from advertisements; since Linux 6.17 an interface may forward all the
//! same (`force_forwarding`), and that is what we use.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A forwarding setting could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot access {path}")]
pub struct ForwardingError {
    /// The setting's file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Those of `names` that do not forward yet.
pub(crate) fn closed(names: &[String]) -> Result<Vec<String>, ForwardingError> {
    let mut closed = Vec::new();
    for name in names {
        let path = setting(4, name, "forwarding");
        let value = std::fs::read_to_string(&path).map_err(|source| ForwardingError { path, source })?;
        if value.trim() == "0" {
            closed.push(name.clone());
        }
    }
    Ok(closed)
}

/// Lets each of `names` forward.
pub(crate) fn open(names: &[String]) -> Result<(), ForwardingError> {
    names
        .iter()
        .try_for_each(|name| write(setting(4, name, "forwarding"), "1"))
}

/// Undoes [`open`]. An interface that is gone needs nothing.
pub(crate) fn close(names: &[String]) -> Result<(), ForwardingError> {
    names
        .iter()
        .try_for_each(|name| match write(setting(4, name, "forwarding"), "0") {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written,
        })
}

/// Settings of the host side of a pod's link: it forwards and checks that a source address is routed back to
/// it (a second look after the packet programs'). IPv6 never speaks on its own there: no link-local address,
/// no router advertisements; and with pods that have none, it is off.
pub(crate) fn prepare_pod_link(name: &str, ipv6: bool) -> Result<(), ForwardingError> {
    write(setting(4, name, "forwarding"), "1")?;
    write(setting(4, name, "rp_filter"), "1")?;
    if !ipv6 {
        return match write(setting(6, name, "disable_ipv6"), "1") {
            // A kernel without IPv6 has nothing to switch off.
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written,
        };
    }
    for (key, value) in QUIET_IPV6 {
        write(setting(6, name, key), value)?;
    }
    if !everything_forwards6() {
        write(setting(6, name, "force_forwarding"), "1")?;
    }
    Ok(())
}

/// Lets connections of the node to its own IPv4 loopback be translated to the pod behind this link. What comes from the link
/// and names the loopback is dropped by the nftables table. IPv6 has no such setting.
pub(crate) fn admit_loopback(link: &str) -> Result<(), ForwardingError> {
    write(setting(4, link, "route_localnet"), "1")
}

/// Why the pods of this node cannot have IPv6. A state with a name, not an error: who asked for it decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ipv6Unavailable {
    /// The kernel was built or booted without it.
    #[error("the kernel has no IPv6")]
    NoKernelSupport,
    /// The administrator switched it off.
    #[error("net.ipv6.conf.all.disable_ipv6 is 1")]
    SwitchedOff,
    /// Only the whole machine could forward, and does not.
    #[error(
        "this kernel forwards IPv6 for the whole machine or not at all (Linux 6.17 is the first that can do it for \
         single interfaces); set net.ipv6.conf.all.forwarding=1, and accept_ra=2 on uplinks that learn their routes \
         from advertisements"
    )]
    ForwardsAllOrNothing,
    /// An uplink's packets are too small for IPv6.
    #[error("an uplink has an MTU of {mtu}, IPv6 needs {MIN_MTU6}")]
    SmallMtu {
        /// The uplink's MTU.
        mtu: u32,
    },
}

/// Smallest MTU that IPv6 works with (RFC 8200, section 5).
const MIN_MTU6: u32 = 1280;

/// Whether this node could give its pods IPv6.
pub(crate) fn check_ipv6(mtu: u32) -> Result<(), Ipv6Unavailable> {
    let Ok(off) = std::fs::read_to_string(setting(6, "all", "disable_ipv6")) else {
        return Err(Ipv6Unavailable::NoKernelSupport);
    };
    if off.trim() != "0" {
        return Err(Ipv6Unavailable::SwitchedOff);
    }
    if !everything_forwards6() && !setting(6, "default", "force_forwarding").exists() {
        return Err(Ipv6Unavailable::ForwardsAllOrNothing);
    }
    if mtu < MIN_MTU6 {
        return Err(Ipv6Unavailable::SmallMtu { mtu });
    }
    Ok(())
}

/// Those of `names` that do not forward IPv6 yet.
pub(crate) fn closed6(names: &[String]) -> Result<Vec<String>, ForwardingError> {
    if everything_forwards6() {
        return Ok(Vec::new());
    }
    let mut closed = Vec::new();
    for name in names {
        let path = setting(6, name, "force_forwarding");
        let value = std::fs::read_to_string(&path).map_err(|source| ForwardingError { path, source })?;
        if value.trim() == "0" {
            closed.push(name.clone());
        }
    }
    Ok(closed)
}

/// Lets each of `names` forward IPv6.
pub(crate) fn open6(names: &[String]) -> Result<(), ForwardingError> {
    names
        .iter()
        .try_for_each(|name| write(setting(6, name, "force_forwarding"), "1"))
}

/// Undoes [`open6`].
pub(crate) fn close6(names: &[String]) -> Result<(), ForwardingError> {
    names
        .iter()
        .try_for_each(|name| match write(setting(6, name, "force_forwarding"), "0") {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written,
        })
}

/// Whether somebody let the whole machine forward IPv6.
fn everything_forwards6() -> bool {
    std::fs::read_to_string(setting(6, "all", "forwarding")).is_ok_and(|value| value.trim() == "1")
}

/// What an interface needs to have IPv6 and stay silent: addresses are given, never made up or asked for.
pub(crate) const QUIET_IPV6: [(&str, &str); 5] = [
    ("addr_gen_mode", "1"),
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("accept_dad", "0"),
    ("disable_ipv6", "0"),
];

fn setting(family: u8, link: &str, key: &str) -> PathBuf {
    Path::new("/proc/sys/net")
        .join(format!("ipv{family}"))
        .join("conf")
        .join(link)
        .join(key)
}

fn write(path: PathBuf, value: &str) -> Result<(), ForwardingError> {
    std::fs::write(&path, value).map_err(|source| ForwardingError { path, source })
}
