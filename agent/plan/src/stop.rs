//! How one container ends: its hook, its stop signal, its kill, within one grace.

use jiff::{SignedDuration, Timestamp};

use crate::{Hook, Probe, Seen, Step, Wanted, backoff::later, order::may_stop, steps::Plan};

/// A killed process is gone in microseconds; one that is not hangs in the kernel, and is asked again.
const KILL_AGAIN: SignedDuration = SignedDuration::from_secs(5);

/// What every container gets between its stop signal and its kill, however long its hook took and however little
/// its grace is: Kubernetes' number.
const LEAST_NOTICE: SignedDuration = SignedDuration::from_secs(2);

/// How far the end of a run has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Why it ends.
    pub why: Why,
    /// When it began.
    pub since: Timestamp,
    /// Time until the kill, counted from there; the hook and the wait for others are part of it.
    pub grace: SignedDuration,
    /// The hook before the stop signal.
    pub hook: Hook,
    /// When the stop signal was sent.
    pub signalled_at: Option<Timestamp>,
    /// When it was last killed.
    pub killed_at: Option<Timestamp>,
}

impl Stop {
    /// Notes that the stop signal was tried. Its hook is given up in any case; one that was not `sent`, since the shim could
    /// not be asked for example, is no notice, and is tried again.
    pub fn signalled(&mut self, sent: bool, now: Timestamp) {
        self.hook = Hook::Done;
        if sent {
            self.signalled_at = Some(now);
        }
    }

    /// Moves what has begun along with a clock that was set by so much: a grace is a length of time.
    pub fn clock_was_set(&mut self, by: SignedDuration) {
        let then = [self.signalled_at.as_mut(), self.killed_at.as_mut()];
        for time in then.into_iter().flatten().chain([&mut self.since]) {
            *time = later(*time, by);
        }
    }

    /// Notes that the kill was tried.
    pub fn killed(&mut self, sent: bool, now: Timestamp) {
        if sent {
            self.killed_at = Some(now);
        }
    }
}

/// Why a container is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its pod ends or is over.
    Pod,
    /// A probe of it has failed.
    Probe(Probe),
    /// Its hook after the start has failed.
    PostStart,
    /// Its pod names another image now: it starts again with that one, whatever the pod's policy.
    Image,
}

/// The next step of an end that has begun. `at_most` shortens the grace: the pod is deleted meanwhile.
pub(crate) fn advance(
    wanted: &Wanted,
    seen: &Seen,
    (name, stop): (&str, &Stop),
    at_most: SignedDuration,
    (plan, now): (&mut Plan, Timestamp),
) {
    let container = name.to_owned();
    let grace = stop.grace.min(at_most);
    let end = later(stop.since, grace);
    if let Some(killed_at) = stop.killed_at {
        return plan.when(later(killed_at, KILL_AGAIN), now, Step::Kill { container });
    }
    match stop.signalled_at {
        Some(signalled_at) => {
            let due = end.max(later(signalled_at, LEAST_NOTICE));
            plan.when(due, now, Step::Kill { container });
        }
        // Only the end of a pod has an order.
        None if stop.hook != Hook::Running && (stop.why != Why::Pod || may_stop(wanted, seen, name)) => {
            plan.steps.push(Step::Stop { container });
        }
        // The end of the grace is the end of the hook and of all patience with others.
        None => plan.when(end, now, Step::Stop { container }),
    }
}
