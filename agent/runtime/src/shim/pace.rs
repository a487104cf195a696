//! How much of a processor the shim spends on the output of its pod. It runs outside of the pod's control group, so what it
//! does for a pod that floods its log would be the node's expense.
//!
//! Whoever writes more waits, as for any reader that is slow.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{UsageWho, getrusage};

/// One part of so many of one processor.
const SHARE: u32 = 10;

/// What was not used for this long may be used at once.
const SAVED: Duration = Duration::from_secs(1);

/// What was spent, and until when that has to be saved.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Processor time of this thread at the end of the last turn.
    seen: Duration,
    free_at: Instant,
}

impl Pace {
    pub(crate) fn begin(now: Instant) -> Result<Self, Errno> {
        Ok(Self {
            seen: processor_time()?,
            free_at: now,
        })
    }

    /// When output may be read again; nothing if it may be now.
    pub(crate) fn waits_until(&self, now: Instant) -> Option<Instant> {
        (self.free_at > now).then_some(self.free_at)
    }

    /// Ends a turn of the loop, in which output was `moved` or not. All of it counts then: the kernel tells the time of the
    /// moves by themselves no more exactly than by ticks.
    pub(crate) fn turn(&mut self, now: Instant, moved: bool) -> Result<(), Errno> {
        let total = processor_time()?;
        if moved {
            self.spend(now, total.saturating_sub(self.seen));
        }
        self.seen = total;
        Ok(())
    }

    fn spend(&mut self, now: Instant, spent: Duration) {
        let saved = now.checked_sub(SAVED).unwrap_or(now);
        self.free_at = self.free_at.max(saved) + spent.saturating_mul(SHARE);
    }
}

fn processor_time() -> Result<Duration, Errno> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let of = |time: nix::sys::time::TimeVal| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let micros = u64::try_from(time.tv_usec()).unwrap_or(0);
        Duration::from_secs(seconds) + Duration::from_micros(micros)
    };
    Ok(of(usage.user_time()) + of(usage.system_time()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_spent_is_waited_for_tenfold_and_saved_for_a_second() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pace = Pace::begin(start).expect("the kernel tells it");
        // A second was saved by then: a tenth of it may be used at once.
        pace.spend(at(5000), Duration::from_millis(100));
        assert_eq!(pace.waits_until(at(5000)), None);
        pace.spend(at(5000), Duration::from_millis(7));
        assert_eq!(pace.waits_until(at(5000)), Some(at(5070)));
        assert_eq!(pace.waits_until(at(5070)), None);
        pace.spend(at(5070), Duration::from_millis(1));
        assert_eq!(pace.waits_until(at(5070)), Some(at(5080)));
    }
}
