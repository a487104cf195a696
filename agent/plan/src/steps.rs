//! What to do next.

use jiff::{SignedDuration, Timestamp};

use crate::{
    Container, Ending, Failure, Ground, Image, RestartPolicy, Run, Seen, Wanted,
    backoff::{later, restart_at, retry_at},
};

/// A killed process is gone in microseconds; one that is not hangs in the kernel, and is asked again.
const KILL_AGAIN: SignedDuration = SignedDuration::from_secs(5);

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Start the pod's shim and its namespaces.
    StartSandbox,
    /// Make the pod's interface, with every packet denied, and bring it up.
    AttachNetwork,
    /// Put the pod's policy into the kernel.
    ProgramPolicy,
    /// Bring a container's image to the node.
    FetchImage {
        /// The container.
        container: String,
    },
    /// Start a container's process.
    StartContainer {
        /// The container.
        container: String,
        /// 0 for the first start.
        restarts: u32,
    },
    /// Send a container its stop signal.
    Stop {
        /// The container.
        container: String,
    },
    /// Kill a container.
    Kill {
        /// The container.
        container: String,
    },
    /// Take the pod's interface, verdicts and address away.
    ReleaseNetwork,
    /// End the pod's shim and its namespaces.
    RemoveSandbox,
    /// Tell the API that nothing of the pod runs any more, so that it deletes the object.
    ConfirmDeletion,
    /// Remove volumes, logs and whatever else is left.
    Forget,
}

/// What to do next. Steps do not depend on one another; what depends on them follows in the next plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps; none when there is nothing to do before `wake_at` or a change.
    pub steps: Vec<Step>,
    /// When to plan again even if nothing changed.
    pub wake_at: Option<Timestamp>,
}

/// Decides what to do next for one pod.
pub fn plan(wanted: &Wanted, seen: &Seen, now: Timestamp) -> Plan {
    match wanted.ending {
        Ending::No if wanted.settled || is_over(wanted, seen) => Plan::of(teardown(seen)),
        Ending::No => keep_running(wanted, seen, now),
        Ending::Graceful(grace) => end(seen, grace, Step::ConfirmDeletion, now),
        Ending::Gone => end(seen, SignedDuration::ZERO, Step::Forget, now),
    }
}

/// Whether every container has ended and none starts again: the pod has succeeded or failed.
pub(crate) fn is_over(wanted: &Wanted, seen: &Seen) -> bool {
    wanted
        .containers
        .iter()
        .all(|name| match seen.containers.get(name).map(|c| &c.run) {
            Some(Run::Exited(exit)) => !starts_again(wanted.restart, exit.code),
            _ => false,
        })
}

pub(crate) fn starts_again(policy: RestartPolicy, code: i32) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => code != 0,
        RestartPolicy::Never => false,
    }
}

impl Plan {
    fn of(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            wake_at: None,
        }
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Adds `step` if its time has come, and wakes up for it otherwise.
    fn when(&mut self, at: Timestamp, now: Timestamp, step: Step) {
        if at <= now {
            self.steps.push(step);
        } else {
            self.wake(at);
        }
    }
}

fn keep_running(wanted: &Wanted, seen: &Seen, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let unknown = Container::default();
    for name in &wanted.containers {
        let container = seen.containers.get(name).unwrap_or(&unknown);
        match &container.image {
            Image::Unknown => plan.steps.push(Step::FetchImage {
                container: name.clone(),
            }),
            Image::Failed(failure) => {
                plan.when(
                    retry_at(failure),
                    now,
                    Step::FetchImage {
                        container: name.clone(),
                    },
                );
            }
            Image::Fetching | Image::Ready { .. } => {}
        }
    }
    let next_stage = match seen.ground {
        Ground::Nothing => Some(Step::StartSandbox),
        Ground::Sandbox => Some(Step::AttachNetwork),
        Ground::Network => Some(Step::ProgramPolicy),
        Ground::Judged => None,
    };
    if let Some(step) = next_stage {
        plan.when(seen.ground_failure.as_ref().map_or(now, retry_at), now, step);
        return plan;
    }
    for name in &wanted.containers {
        let container = seen.containers.get(name).unwrap_or(&unknown);
        if !matches!(container.image, Image::Ready { .. }) {
            continue;
        }
        let failed = container.start_failure.as_ref().map(retry_at);
        let (due, restarts) = match &container.run {
            Run::Running { .. } => continue,
            Run::Never => (failed.unwrap_or(now), container.restarts),
            Run::Exited(exit) if starts_again(wanted.restart, exit.code) => {
                let due = restart_at(exit, container.streak);
                (
                    failed.map_or(due, |failed| failed.max(due)),
                    container.restarts.saturating_add(1),
                )
            }
            Run::Exited(_) => continue,
        };
        plan.when(
            due,
            now,
            Step::StartContainer {
                container: name.clone(),
                restarts,
            },
        );
    }
    plan
}

/// Stop signal, grace, kill; then the ground goes, and `last` is what remains to do.
fn end(seen: &Seen, grace: SignedDuration, last: Step, now: Timestamp) -> Plan {
    let running = || {
        seen.containers
            .iter()
            .filter(|(_, container)| matches!(container.run, Run::Running { .. }))
            .map(|(name, _)| name.clone())
    };
    if running().next().is_none() {
        let steps = teardown(seen);
        return Plan::of(if steps.is_empty() { vec![last] } else { steps });
    }
    let kill_at = match (seen.stop_sent_at, seen.killed_at) {
        (_, Some(killed_at)) => later(killed_at, KILL_AGAIN),
        (Some(stop_sent_at), None) => later(stop_sent_at, grace),
        (None, None) if grace <= SignedDuration::ZERO => now,
        (None, None) => return Plan::of(running().map(|container| Step::Stop { container })),
    };
    let mut plan = Plan::default();
    for container in running() {
        plan.when(kill_at, now, Step::Kill { container });
    }
    plan
}

/// Takes the ground away in the reverse order of its making, one stage at a time.
fn teardown(seen: &Seen) -> Vec<Step> {
    match seen.ground {
        Ground::Nothing => vec![],
        Ground::Sandbox => vec![Step::RemoveSandbox],
        Ground::Network | Ground::Judged => vec![Step::ReleaseNetwork],
    }
}

/// The failure that keeps a container from being started, in the order in which a reader wants to know.
pub(crate) fn obstacle(container: &Container) -> Option<&Failure> {
    match &container.image {
        Image::Failed(failure) => Some(failure),
        _ => container.start_failure.as_ref(),
    }
}
