//! What an agent finds of pods that an earlier one started.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use crate::client::{KILL_TIMEOUT, Runtime, file_error, read_json};
use crate::config::{ContainerState, Exit, Launch, PodStatus, RecoveredPod, is_safe_name};
use crate::error::RuntimeError;
use crate::shim::chain;
use crate::talk::REQUEST_TIMEOUT;

/// How long the processes of a pod may take to go, once those of another pod did not go in [`KILL_TIMEOUT`]: together they
/// must not keep the agent from starting either.
const SHORT_KILL_TIMEOUT: Duration = Duration::from_secs(1);

impl Runtime {
    /// Finds the pods of earlier agents, those with a living shim and those without. One whose processes cannot be killed
    /// is found without a shim, as any other that has lost it: it can only be removed, once they go. What an earlier agent
    /// had not yet removed of pods that are gone goes in the background.
    ///
    /// # Errors
    ///
    /// Only for what this process lacks, never for what is wrong with one pod: a file cannot be read, or a shim that may
    /// live cannot be reached. Nothing was done to that pod then.
    pub async fn recover(&self) -> Result<Vec<RecoveredPod>, RuntimeError> {
        if let Err(error) = self.trash().look() {
            tracing::warn!(%error, "what an earlier agent was removing stays for now");
        }
        let mut pods = Vec::new();
        let directory = self.run_dir();
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pods),
            Err(error) => return Err(file_error("list", directory)(error)),
        };
        let mut patience = KILL_TIMEOUT;
        for entry in entries {
            let entry = entry.map_err(file_error("list", directory))?;
            let name = entry.file_name();
            let Some(uid) = name.to_str().filter(|name| is_safe_name(name)) else {
                continue;
            };
            pods.extend(self.recover_pod(uid, &mut patience).await?);
        }
        Ok(pods)
    }

    async fn recover_pod(
        &self,
        uid: &str,
        patience: &mut Duration,
    ) -> Result<Option<RecoveredPod>, RuntimeError> {
        let paths = self.paths(uid);
        let Some(launch) = read_json::<Launch>(&paths.launch())? else {
            // The agent died before it started this shim.
            note(uid, patience, self.remove_dead(uid, *patience).await);
            return Ok(None);
        };
        match self.settled(uid).await {
            Ok(status) => {
                return Ok(Some(RecoveredPod {
                    config: launch.pod,
                    status,
                    alive: true,
                }));
            }
            Err(error @ RuntimeError::Unreachable { .. }) => return Err(error),
            Err(RuntimeError::Timeout { .. }) => note(uid, patience, self.kill_shim(uid)),
            Err(error) => tracing::info!(pod = uid, error = chain(&error), "the pod has lost its shim"),
        }
        note(uid, patience, self.kill_cgroup(uid, *patience).await);
        let status = read_json::<PodStatus>(&paths.status())?;
        Ok(Some(RecoveredPod {
            config: launch.pod,
            status: without_shim(status),
            alive: false,
        }))
    }

    /// The pod once no start is under way that an earlier agent asked for: whoever did not wait for that would start the
    /// container a second time. The shim ends each start within its own time.
    async fn settled(&self, uid: &str) -> Result<PodStatus, RuntimeError> {
        let mut status = self.status(uid).await?;
        let starts = |status: &PodStatus| {
            let mut containers = status.containers.iter();
            containers.any(|container| container.state == ContainerState::Creating)
        };
        let ends = tokio::time::Instant::now() + REQUEST_TIMEOUT;
        while starts(&status) {
            let change = tokio::time::timeout_at(ends, self.wait_change(uid, status.version));
            status = change.await.map_err(|_elapsed| RuntimeError::Timeout {
                pod: uid.into(),
                seconds: REQUEST_TIMEOUT.as_secs(),
            })??;
        }
        Ok(status)
    }
}

/// What is left of a pod is removed again later; the others are not kept waiting for it.
fn note(uid: &str, patience: &mut Duration, removed: Result<(), RuntimeError>) {
    if let Err(error) = removed {
        tracing::error!(
            pod = uid,
            error = chain(&error),
            "cannot end what is left of the pod"
        );
        *patience = SHORT_KILL_TIMEOUT;
    }
}

/// What the shim said last, with the end of what ran then.
fn without_shim(last: Option<PodStatus>) -> PodStatus {
    let mut status = last.unwrap_or_else(|| PodStatus {
        version: 0,
        netns: PathBuf::new(),
        holder_pid: 0,
        shim_pid: 0,
        containers: Vec::new(),
    });
    for container in &mut status.containers {
        let started_at = match &container.state {
            ContainerState::Exited(_) | ContainerState::Failed { .. } => continue,
            ContainerState::Creating => {
                let message = "the pod's shim died while it started the container".into();
                container.state = ContainerState::Failed { message };
                continue;
            }
            ContainerState::Running { started_at, .. } => *started_at,
        };
        container.state = ContainerState::Exited(Exit {
            started_at: Some(started_at),
            finished_at: Timestamp::now(),
            code: 128 + libc::SIGKILL,
            signal: Some(libc::SIGKILL),
            oom_killed: false,
            message: "the pod's shim died, and its containers with it".into(),
        });
    }
    status
}
