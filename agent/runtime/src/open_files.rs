//! How many files the agent may have open, and what its pods may is none of its business.
//!
//! Every pod, log and session costs the agent some descriptors, and the soft limit that a shell or systemd gives (1024) is
//! there for programs that use `select`. So the agent takes what the hard limit allows. What it starts gets the limit that
//! the agent was started with: a program in a container may rely on it, or close all descriptors up to it.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit of before; its absence is one too.
static BEFORE: OnceLock<Option<u64>> = OnceLock::new();

/// Lets this process open as many files as it may. Call it once, before it starts others.
///
/// # Errors
///
/// What the kernel says; the limit is as before then.
pub fn raise() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let _first = BEFORE.set(limit.current);
    set(limit.maximum)
}

/// Takes that back, before this process becomes another program.
///
/// # Errors
///
/// What the kernel says.
pub fn restore() -> io::Result<()> {
    match BEFORE.get() {
        Some(before) => set(*before),
        None => Ok(()),
    }
}

/// What a shim and its pod may open, if that differs from what this process may.
pub(crate) fn of_pods() -> Option<u64> {
    BEFORE.get().copied().flatten()
}

/// Lets this process, and what it starts, open so many files.
pub(crate) fn set(soft: Option<u64>) -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = match (soft, maximum) {
        (Some(soft), Some(maximum)) => Some(soft.min(maximum)),
        (soft, maximum) => soft.or(maximum),
    };
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
}
