//! Standard input. It is there once, so `-` can stand for one thing only.

use std::{
    io::{self, StdinLock},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Result, bail};

/// What messages call it.
pub(crate) const NAME: &str = "standard input";

static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// Whether a path of the command line means it.
pub(crate) fn is_meant(path: &Path) -> bool {
    path == Path::new("-")
}

/// It, for the first who asks. A second one would find nothing, and take that for an answer.
pub(crate) fn take() -> Result<StdinLock<'static>> {
    if IS_TAKEN.swap(true, Ordering::Relaxed) {
        bail!("`-` is {NAME}, which can be named once");
    }
    Ok(io::stdin().lock())
}
