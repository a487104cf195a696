//! When a probe is tried, and when its results are a verdict. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Probe;

/// The timing fields of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// From the container's start to the first try.
    pub initial_delay: SignedDuration,
    /// From one try to the next.
    pub period: SignedDuration,
    /// Longest time that an answer may take.
    pub timeout: SignedDuration,
    /// Successes in a row that are a verdict.
    pub success_threshold: u32,
    /// Failures in a row that are a verdict.
    pub failure_threshold: u32,
}

/// Follows the results of one probe of one run of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracker {
    schedule: Schedule,
    next_at: Timestamp,
    verdict: Option<bool>,
    last: Option<bool>,
    in_a_row: u32,
}

impl Schedule {
    /// The fields of `probe`, with Kubernetes' defaults.
    pub fn of(probe: &Probe) -> Self {
        let seconds = |value: Option<i32>, default: i32| {
            let value = value.filter(|value| *value > 0).unwrap_or(default);
            SignedDuration::from_secs(i64::from(value))
        };
        let times = |value: Option<i32>, default: u32| {
            let value = value.and_then(|value| u32::try_from(value).ok());
            value.filter(|value| *value > 0).unwrap_or(default)
        };
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: times(probe.success_threshold, 1),
            failure_threshold: times(probe.failure_threshold, 3),
        }
    }
}

impl Tracker {
    /// For a run that started at `started_at`. `verdict` is what holds until the results say otherwise.
    pub fn new(schedule: Schedule, started_at: Timestamp, verdict: Option<bool>, now: Timestamp) -> Self {
        Self {
            schedule,
            next_at: later(started_at, schedule.initial_delay).max(now),
            verdict,
            last: None,
            in_a_row: 0,
        }
    }

    /// When to try next.
    pub fn next_at(&self) -> Timestamp {
        self.next_at
    }

    /// Takes the result of a try, if it has one; the verdict if it is a new one.
    pub fn take(&mut self, success: Option<bool>, began_at: Timestamp, ended_at: Timestamp) -> Option<bool> {
        // A slow answer does not shift the beat, but tries never overlap.
        self.next_at = later(began_at, self.schedule.period).max(ended_at);
        let success = success?;
        self.in_a_row = if self.last == Some(success) {
            self.in_a_row.saturating_add(1)
        } else {
            1
        };
        self.last = Some(success);
        let threshold = match success {
            true => self.schedule.success_threshold,
            false => self.schedule.failure_threshold,
        };
        if self.in_a_row < threshold || self.verdict == Some(success) {
            return None;
        }
        self.verdict = Some(success);
        Some(success)
    }
}

fn later(time: Timestamp, wait: SignedDuration) -> Timestamp {
    time.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(second)
    }

    /// Verdicts after each of the results, one per period.
    fn verdicts(probe: &Probe, initial: Option<bool>, results: &str) -> String {
        let mut tracker = Tracker::new(Schedule::of(probe), second(0), initial, second(0));
        let results_in = |result: char| match result {
            '+' => Some(true),
            '-' => Some(false),
            _ => None,
        };
        let mut word = |result: char| {
            let at = tracker.next_at();
            match tracker.take(results_in(result), at, at) {
                Some(true) => 'T',
                Some(false) => 'F',
                None => '.',
            }
        };
        results.chars().map(&mut word).collect()
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        let ready = Probe {
            success_threshold: Some(2),
            failure_threshold: Some(3),
            ..Probe::default()
        };
        for (initial, results, expected) in [
            (Some(false), "++", ".T"),
            (Some(false), "+-++", "...T"),
            (Some(false), "++--+---", ".T.....F"),
            (Some(false), "-----", "....."),
            (Some(true), "---+---", "..F...."),
            (None, "---", "..F"),
            (None, "--?-", "...F"),
        ] {
            assert_eq!(verdicts(&ready, initial, results), expected, "{results}");
        }
        let defaults = Probe::default();
        assert_eq!(verdicts(&defaults, Some(true), "--+---"), ".....F");
        assert_eq!(verdicts(&defaults, None, "+"), "T");
    }

    #[test]
    fn tries_follow_the_delay_and_the_beat() {
        let probe = Probe {
            initial_delay_seconds: Some(5),
            period_seconds: Some(2),
            ..Probe::default()
        };
        let schedule = Schedule::of(&probe);
        let mut tracker = Tracker::new(schedule, second(0), None, second(1));
        assert_eq!(tracker.next_at(), second(5));
        tracker.take(Some(true), second(5), second(6));
        assert_eq!(tracker.next_at(), second(7));
        tracker.take(Some(true), second(7), second(12));
        assert_eq!(tracker.next_at(), second(12), "late, but not twice");
        let late = Tracker::new(schedule, second(0), None, second(60));
        assert_eq!(
            late.next_at(),
            second(60),
            "an agent that comes back probes at once"
        );
    }

    #[test]
    fn absent_fields_are_kubernetes_defaults() {
        let seconds = SignedDuration::from_secs;
        let expected = Schedule {
            initial_delay: seconds(0),
            period: seconds(10),
            timeout: seconds(1),
            success_threshold: 1,
            failure_threshold: 3,
        };
        assert_eq!(Schedule::of(&Probe::default()), expected);
    }
}
