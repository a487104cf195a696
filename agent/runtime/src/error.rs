//! What can go wrong on the agent's side.

use std::io;
use std::path::PathBuf;

use agent_sandbox::{ImageError, Layer};

use crate::cgroup::CgroupError;
use crate::protocol::FrameError;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A name or path that could mean something else in a path or a cgroup.
    #[error("{field} {value:?} is not acceptable: {rule}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// A file operation of the agent's side failed.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The shim ended or hung before it was ready.
    #[error("the shim of pod {pod} did not start: {reason}")]
    ShimStart {
        /// The pod's uid.
        pod: String,
        /// What it said.
        reason: String,
    },
    /// There is no shim of this pod: nobody listens where it would.
    #[error("the shim of pod {pod} is gone")]
    ShimGone {
        /// The pod's uid.
        pod: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There may be a shim, but this process cannot get to it, for want of descriptors for example.
    #[error("cannot reach the shim of pod {pod}")]
    Unreachable {
        /// The pod's uid.
        pod: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The conversation with the shim broke.
    #[error("cannot talk to the shim of pod {pod}")]
    Talk {
        /// The pod's uid.
        pod: String,
        /// What went wrong.
        #[source]
        source: FrameError,
    },
    /// The shim did not answer in time.
    #[error("the shim of pod {pod} did not answer within {seconds} s")]
    Timeout {
        /// The pod's uid.
        pod: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The shim answered something else than was asked for.
    #[error("the shim of pod {pod} gave an answer to another question")]
    WrongAnswer {
        /// The pod's uid.
        pod: String,
    },
    /// The shim refused or failed.
    #[error("{reason}")]
    Refused {
        /// Its reason, complete.
        reason: String,
        /// The layer of the sandbox for want of which a container was not started, if that is why.
        layer: Option<Layer>,
    },
    /// The kernel does not execute the program. Everything else of a start went well.
    #[error("{reason}")]
    NotExecutable {
        /// Which program, and what the kernel says; complete.
        reason: String,
    },
    /// An image layer could not be looked through.
    #[error("cannot index the executables of a layer")]
    Layer {
        /// What went wrong.
        #[source]
        source: ImageError,
    },
    /// A cgroup could not be cleared or read.
    #[error("cannot handle the cgroup of a pod")]
    Cgroup {
        /// What went wrong.
        #[source]
        source: CgroupError,
    },
    /// The runtime is being shut down.
    #[error("a background task was cancelled")]
    Cancelled,
}

impl RuntimeError {
    /// Whether asking the shim again can be of no use.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::ShimGone { .. } | Self::Invalid { .. })
    }
}
