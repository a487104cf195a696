//! Who may run, and when a pod is over: init containers, sidecars and main containers.

use jiff::Timestamp;

use crate::{Container, Exit, Hook, Member, RestartPolicy, Role, Run, Seen, Wanted, Why};

/// Why a pod runs no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// Every main container has ended for good. Sidecars may still run.
    Completed,
    /// An init container failed and is not started again.
    InitFailed,
    /// The pod was active for longer than it may.
    Deadline,
    /// The node has decided so.
    Evicted,
}

/// Why the pod is over, if it is.
pub(crate) fn over(wanted: &Wanted, seen: &Seen, now: Timestamp) -> Option<Over> {
    let deadline = wanted.deadline.filter(|deadline| *deadline <= now);
    let evicted = seen.eviction.as_ref().map(|eviction| eviction.at);
    let cut_off = deadline.into_iter().chain(evicted).min();
    let ended_for_good = |member: &Member| match seen.container(&member.name) {
        Some(
            container @ Container {
                run: Run::Exited(exit),
                ..
            },
        ) => {
            // What ended because of the deadline or the eviction has not completed.
            let in_time = cut_off.is_none_or(|cut_off| exit.finished_at < cut_off);
            in_time && !starts_again(wanted, member, container, exit)
        }
        _ => false,
    };
    let failed = |member: &Member| match seen.container(&member.name).map(|c| &c.run) {
        Some(Run::Exited(exit)) => exit.code != 0 && ended_for_good(member),
        _ => false,
    };
    let mut mains = wanted.of_role(Role::Main).peekable();
    if mains.peek().is_some() && mains.all(ended_for_good) {
        Some(Over::Completed)
    } else if wanted.of_role(Role::Init).any(failed) {
        Some(Over::InitFailed)
    } else {
        let by_deadline = deadline.filter(|deadline| evicted.is_none_or(|evicted| *deadline <= evicted));
        match (by_deadline, evicted) {
            (Some(_), _) => Some(Over::Deadline),
            (None, Some(_)) => Some(Over::Evicted),
            (None, None) => None,
        }
    }
}

/// Whether the pod names another image than its present run, or its last one, was made of.
pub(crate) fn is_outdated(member: &Member, container: &Container) -> bool {
    let made_of = container.made_of.as_ref();
    container.run != Run::Never && made_of.is_some_and(|made_of| *made_of != member.image)
}

/// Whether a container that ended starts again, as far as its role and the pod's policy say.
pub(crate) fn starts_again(wanted: &Wanted, member: &Member, container: &Container, exit: &Exit) -> bool {
    let gave_way = container.stop.as_ref().is_some_and(|stop| stop.why == Why::Image);
    match (member.role, wanted.restart) {
        (Role::Main, _) if gave_way => true,
        (Role::Ephemeral, _) => false,
        (Role::Sidecar, _) | (Role::Main, RestartPolicy::Always) => true,
        (Role::Init, _) if exit.code == 0 => container.stale,
        (_, RestartPolicy::Never) => false,
        (Role::Init, _) => true,
        (Role::Main, RestartPolicy::OnFailure) => exit.code != 0,
    }
}

/// How many members, counted in their order, may run now. Main containers may all run together.
pub(crate) fn open(wanted: &Wanted, seen: &Seen) -> usize {
    let all = wanted.containers.len();
    for (index, member) in wanted.containers.iter().enumerate() {
        let container = seen.container(&member.name);
        let passed = match member.role {
            Role::Main | Role::Ephemeral => return all,
            Role::Init => container.is_some_and(has_completed),
            // One that dies later does not take back what it has let start.
            Role::Sidecar => {
                container.is_some_and(|container| is_started(member, container))
                    || wanted
                        .containers
                        .iter()
                        .skip(index + 1)
                        .any(|later| has_begun(seen, later))
            }
        };
        if !passed {
            return index + 1;
        }
    }
    all
}

/// Whether what an ephemeral container looks at is there.
pub(crate) fn has_target(seen: &Seen, member: &Member) -> bool {
    member.target.as_ref().is_none_or(|target| {
        let container = seen.container(target);
        container.is_some_and(|container| matches!(container.run, Run::Running { .. }))
    })
}

/// Whether an init container has done its work in the present sandbox.
pub(crate) fn has_completed(container: &Container) -> bool {
    matches!(&container.run, Run::Exited(exit) if exit.code == 0) && !container.stale
}

fn has_begun(seen: &Seen, member: &Member) -> bool {
    seen.container(&member.name)
        .is_some_and(|container| container.run != Run::Never && !container.stale)
}

/// Whether the container has started as far as its hook and its startup probe are concerned.
pub fn is_started(member: &Member, container: &Container) -> bool {
    matches!(container.run, Run::Running { .. })
        && container.life.post_start == Hook::Done
        && (!member.startup_probe || container.life.started)
}

/// Whether the container may be sent work.
pub fn is_ready(member: &Member, container: &Container) -> bool {
    is_started(member, container) && (!member.readiness_probe || container.life.ready)
}

/// Whether the container's turn to be told to stop has come: sidecars go last, in the reverse order.
pub(crate) fn may_stop(wanted: &Wanted, seen: &Seen, name: &str) -> bool {
    let runs = |member: &&Member| {
        let container = seen.container(&member.name);
        container.is_some_and(|container| matches!(container.run, Run::Running { .. }))
    };
    let mut behind = wanted.containers.iter().skip_while(|member| member.name != name);
    match behind.next() {
        Some(member) if member.role == Role::Sidecar => !behind
            .filter(|later| later.role != Role::Init)
            .any(|later| runs(&later)),
        _ => true,
    }
}

impl Wanted {
    pub(crate) fn of_role(&self, role: Role) -> impl Iterator<Item = &Member> {
        self.containers.iter().filter(move |member| member.role == role)
    }
}
