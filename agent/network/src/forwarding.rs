//! Which interfaces forward. Never the whole machine: `net.ipv4.ip_forward` stays as it is.

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

/// Settings of the host side of a pod's link: it forwards, checks that a source address is routed back to
/// it (a second look after the packet programs'), and has no IPv6 that would speak on its own.
pub(crate) fn prepare_pod_link(name: &str) -> Result<(), ForwardingError> {
    write(setting(4, name, "forwarding"), "1")?;
    write(setting(4, name, "rp_filter"), "1")?;
    match write(setting(6, name, "disable_ipv6"), "1") {
        // A kernel without IPv6 has nothing to switch off.
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

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
