//! A pod's network namespace, held open.
//!
//! Its path leads through the number of the process that made it, and that number may come to mean another process once
//! the first is dead. A descriptor cannot; so whoever enters a pod's network asks the pod's shim for one.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use agent_runtime::{Runtime, RuntimeError};

/// How long a shim may take to hand the namespace over.
pub(super) const LONGEST: Duration = Duration::from_secs(10);

/// The namespace lives, and its path means it, as long as this does.
#[derive(Debug)]
pub(super) struct HeldNetwork {
    path: PathBuf,
    _descriptor: OwnedFd,
}

impl HeldNetwork {
    /// Asks the pod's shim, which answers within `limit` or not at all.
    pub(super) async fn of(runtime: &Runtime, pod: &str, limit: Duration) -> Result<Self, RuntimeError> {
        let limit = limit.min(LONGEST);
        let descriptor = tokio::time::timeout(limit, runtime.pod_network(pod))
            .await
            .map_err(|_elapsed| RuntimeError::Timeout {
                pod: pod.to_owned(),
                seconds: limit.as_secs(),
            })??;
        Ok(Self {
            path: format!("/proc/self/fd/{}", descriptor.as_raw_fd()).into(),
            _descriptor: descriptor,
        })
    }

    /// For this process and its threads only.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
