//! The time of day, and by how much somebody has set it.

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::Worker;

/// The last time that was told, by the clock that may be set and by the one that only goes on.
pub(super) struct Clock {
    told: Timestamp,
    at: Instant,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            told: Timestamp::now(),
            at: Instant::now(),
        }
    }

    /// Takes note of the present time, and says by how much it differs from what has passed since the last one.
    fn tell(&mut self, now: Timestamp, at: Instant) -> SignedDuration {
        let passed = at.saturating_duration_since(self.at);
        let passed = SignedDuration::try_from(passed).unwrap_or(SignedDuration::MAX);
        let set_by = now.duration_since(self.told).saturating_sub(passed);
        (self.told, self.at) = (now, at);
        set_by
    }
}

impl Worker {
    /// The time of day. The graces of containers that end are lengths of time, as for the kubelet: whoever sets the clock
    /// neither lengthens nor shortens them.
    pub(super) fn now(&mut self) -> Timestamp {
        let now = Timestamp::now();
        let set_by = self.clock.tell(now, Instant::now());
        for container in self.seen.containers.values_mut() {
            if let Some(stop) = &mut container.stop {
                stop.clock_was_set(set_by);
            }
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_passes_by_itself_is_not_set() {
        let mut clock = Clock::new();
        let (told, at) = (clock.told, clock.at);
        let hour = SignedDuration::from_hours(1);
        for (wall, steady, expected) in [
            (SignedDuration::from_secs(10), 10, SignedDuration::ZERO),
            (SignedDuration::from_secs(20) - hour, 20, -hour),
            (SignedDuration::from_secs(30) - hour, 30, SignedDuration::ZERO),
            (SignedDuration::from_secs(40), 40, hour),
        ] {
            let set_by = clock.tell(told + wall, at + Duration::from_secs(steady));
            assert_eq!(set_by, expected, "after {steady} s");
        }
    }
}
