//! What to do next.

use jiff::{SignedDuration, Timestamp};

use crate::{
    Container, Ending, Failure, Ground, Hook, Image, Member, Role, Run, Seen, Wanted, Why,
    backoff::{known_at, pull_at, restart_at, retry_at},
    order::{has_completed, has_target, is_outdated, open, over, starts_again},
    stop::advance,
};

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
    /// Start a container's process, and its hook after the start.
    StartContainer {
        /// The container.
        container: String,
        /// 0 for the first start.
        restarts: u32,
    },
    /// Begin the end of a container: start its hook before the stop signal, if it has one.
    BeginStop {
        /// The container.
        container: String,
        /// Why it ends.
        why: Why,
        /// Time until it is killed.
        grace: SignedDuration,
    },
    /// Send a container its stop signal, and give up on its hook.
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
        Ending::No if wanted.settled || over(wanted, seen, now).is_some() => {
            let eviction = seen.eviction.as_ref().map(|eviction| eviction.grace);
            end(wanted, seen, eviction.unwrap_or(wanted.grace), None, now)
        }
        Ending::No => keep_running(wanted, seen, now),
        Ending::Graceful(grace) => end(wanted, seen, grace, Some(Step::ConfirmDeletion), now),
        Ending::Gone => end(wanted, seen, LEAST_GRACE, Some(Step::Forget), now),
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
    pub(crate) fn when(&mut self, at: Timestamp, now: Timestamp, step: Step) {
        if at <= now {
            self.steps.push(step);
        } else {
            self.wake(at);
        }
    }
}

fn keep_running(wanted: &Wanted, seen: &Seen, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if let Some(deadline) = wanted.deadline {
        plan.wake(deadline);
    }
    let unknown = Container::default();
    let known = |member: &Member| seen.container(&member.name).unwrap_or(&unknown);
    for member in &wanted.containers {
        fetch(wanted, (member, known(member)), now, &mut plan);
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
    for member in wanted.of_role(Role::Ephemeral) {
        if has_target(seen, member) {
            start(wanted, (member, known(member)), now, &mut plan);
        }
    }
    let mut may_start = true;
    let in_turn = wanted.containers.iter().take(open(wanted, seen));
    for member in in_turn.filter(|member| member.role != Role::Ephemeral) {
        let container = known(member);
        if matches!(container.run, Run::Running { .. }) {
            correct(wanted, seen, (member, container), now, &mut plan);
            // As the kubelet does: what follows starts once the hook has run.
            may_start &= container.life.post_start != Hook::Running || container.stop.is_some();
        } else if may_start {
            let before = plan.steps.len();
            start(wanted, (member, container), now, &mut plan);
            // One that has a hook keeps the others waiting from its start on.
            may_start &= !member.post_start || plan.steps.len() == before;
        }
    }
    plan
}

/// All images come at the same time: what is there early does not delay the start that needs it.
fn fetch(wanted: &Wanted, (member, container): (&Member, &Container), now: Timestamp, plan: &mut Plan) {
    let starts = || match &container.run {
        Run::Never => true,
        Run::Running { .. } => false,
        Run::Exited(exit) => starts_again(wanted, member, container, exit),
    };
    let step = Step::FetchImage {
        container: member.name.clone(),
    };
    match &container.image {
        // Whose work is done needs no image any more.
        _ if member.role == Role::Init && has_completed(container) => {}
        _ if member.role == Role::Ephemeral && container.run != Run::Never => {}
        // What runs keeps its image until it has ended, and what has ended for good needs no other.
        _ if is_outdated(member, container) && !starts() => {}
        Image::Unknown => plan.steps.push(step),
        Image::Ready { id } if *id != member.image => plan.steps.push(step),
        Image::Failed(failure) => {
            plan.when(pull_at(failure), now, step);
            let known = known_at(failure);
            if known > now {
                plan.wake(known);
            }
        }
        Image::Fetching | Image::Checking { .. } | Image::Retrying(_) | Image::Ready { .. } => {}
    }
}

/// Ends a run that its hook or a probe condemned, or whose image is no longer the pod's. An init container ends by itself.
fn correct(
    wanted: &Wanted,
    seen: &Seen,
    (member, container): (&Member, &Container),
    now: Timestamp,
    plan: &mut Plan,
) {
    if let Some(stop) = &container.stop {
        return advance(wanted, seen, (&member.name, stop), stop.grace, (plan, now));
    }
    let sentence = match (container.life.post_start, container.life.doomed) {
        (Hook::Failed, _) => Some((Why::PostStart, None)),
        (_, Some(doom)) => Some((Why::Probe(doom.probe), doom.grace)),
        _ if member.role != Role::Init && is_outdated(member, container) => Some((Why::Image, None)),
        _ => None,
    };
    if let Some((why, grace)) = sentence {
        plan.steps.push(Step::BeginStop {
            container: member.name.clone(),
            why,
            grace: grace.unwrap_or(wanted.grace),
        });
    }
}

fn start(wanted: &Wanted, (member, container): (&Member, &Container), now: Timestamp, plan: &mut Plan) {
    if !matches!(&container.image, Image::Ready { id } if *id == member.image) {
        return;
    }
    let failed = container.start_failure.as_ref().map(retry_at);
    let (due, restarts) = match &container.run {
        Run::Running { .. } => return,
        Run::Never => (failed.unwrap_or(now), container.restarts),
        Run::Exited(exit) if starts_again(wanted, member, container, exit) => {
            // The failures of one image are not those of another.
            let due = match is_outdated(member, container) {
                true => now,
                false => restart_at(exit, container.streak),
            };
            (
                failed.map_or(due, |failed| failed.max(due)),
                container.restarts.saturating_add(1),
            )
        }
        Run::Exited(_) => return,
    };
    plan.when(
        due,
        now,
        Step::StartContainer {
            container: member.name.clone(),
            restarts,
        },
    );
}

/// What a pod that ends gets, hooks included, whoever asked for less: Kubernetes' number. After it there is still
/// the notice that every container gets.
const LEAST_GRACE: SignedDuration = SignedDuration::from_secs(1);

/// Every container ends within `grace`; then the ground goes, and `last` is what remains to do.
fn end(wanted: &Wanted, seen: &Seen, grace: SignedDuration, last: Option<Step>, now: Timestamp) -> Plan {
    let grace = grace.max(LEAST_GRACE);
    let running = seen
        .containers
        .iter()
        .filter(|(_, container)| matches!(container.run, Run::Running { .. }));
    let mut plan = Plan::default();
    let mut runs = false;
    for (name, container) in running {
        runs = true;
        match &container.stop {
            Some(stop) => advance(wanted, seen, (name, stop), grace, (&mut plan, now)),
            None => plan.steps.push(Step::BeginStop {
                container: name.clone(),
                why: Why::Pod,
                grace,
            }),
        }
    }
    if runs {
        return plan;
    }
    let steps = teardown(seen);
    if steps.is_empty() {
        Plan::of(last)
    } else {
        Plan::of(steps)
    }
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
        Image::Failed(failure) | Image::Retrying(failure) => Some(failure),
        _ => container.start_failure.as_ref(),
    }
}
