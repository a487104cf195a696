//! How long a failed attempt waits before the next: Kubernetes' numbers.

use jiff::{SignedDuration, Timestamp};

use crate::{Exit, Failure};

/// Delay after the first failure.
const FIRST: SignedDuration = SignedDuration::from_secs(10);
/// Delays double up to this.
const LONGEST: SignedDuration = SignedDuration::from_mins(5);
/// A container that ran this long starts from no delay again.
const WELL: SignedDuration = SignedDuration::from_mins(10);

/// Delay before the next attempt after `failures` in a row: none, 10 s, 20 s, ... 5 min.
pub fn delay(failures: u32) -> SignedDuration {
    let Some(doublings) = failures.checked_sub(1) else {
        return SignedDuration::ZERO;
    };
    // 10 s doubled five times is past 5 min, so the shift is bounded.
    FIRST.saturating_mul(1 << doublings.min(5)).min(LONGEST)
}

/// Starts in a row that count once `exit` has happened, given those before it.
pub fn streak_after(streak: u32, exit: &Exit) -> u32 {
    let ran_well = exit
        .started_at
        .is_some_and(|started| exit.finished_at.duration_since(started) >= WELL);
    if ran_well { 0 } else { streak }
}

/// What keeps a pod or a container from starting is looked at again after this long, however often it was there.
const OBSTACLE: SignedDuration = SignedDuration::from_secs(10);
/// How long a failed pull is told as such, before it is one that waits.
const NEWS: SignedDuration = SignedDuration::from_secs(2);

/// When an image that did not come is asked for again.
pub(crate) fn pull_at(failure: &Failure) -> Timestamp {
    later(failure.at, delay(failure.attempts))
}

/// From when on a failed pull is one that waits for the next.
pub(crate) fn known_at(failure: &Failure) -> Timestamp {
    later(failure.at, NEWS)
}

/// When what kept a pod or a container from starting is tried again: somebody may have made what was missing, so it does not take
/// longer each time.
pub(crate) fn retry_at(failure: &Failure) -> Timestamp {
    later(failure.at, OBSTACLE)
}

/// When an ended container may start again. The first restart is immediate.
pub(crate) fn restart_at(exit: &Exit, streak: u32) -> Timestamp {
    later(exit.finished_at, delay(streak_after(streak, exit)))
}

/// Saturating: a time past the calendar's end never comes, which is the safe reading of an absurd clock.
pub(crate) fn later(time: Timestamp, wait: SignedDuration) -> Timestamp {
    time.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_from_ten_seconds_to_five_minutes() {
        let seconds: Vec<i64> = (0..8).map(|n| delay(n).as_secs()).collect();
        assert_eq!(seconds, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(delay(u32::MAX), LONGEST);
    }

    #[test]
    fn ten_good_minutes_forgive() {
        let start = Timestamp::UNIX_EPOCH;
        let exit = |ran: SignedDuration| Exit {
            id: String::new(),
            code: 1,
            signal: None,
            reason: "Error".to_owned(),
            message: None,
            started_at: Some(start),
            finished_at: start + ran,
        };
        assert_eq!(streak_after(4, &exit(SignedDuration::from_secs(599))), 4);
        assert_eq!(streak_after(4, &exit(SignedDuration::from_secs(600))), 0);
    }
}
