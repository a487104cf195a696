//! How much is told of one object: what a pod says or does must not crowd out events of others, nor fill the store.
//!
//! The rules and numbers are those of client-go's `EventCorrelator`, by which the kubelet's events go: unlike messages of one
//! reason become one event from the tenth on, and of one object there are 25 at once and one more each five minutes. Pure
//! but for its own memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::Kind;

/// Events of one object at once, and how long it takes until there may be one more.
const BURST: u32 = 25;
const ONE_MORE: Duration = Duration::from_secs(300);
/// Messages of one reason that are told apart.
const UNLIKE: usize = 10;
/// How long a message is remembered after the last of its reason.
const SIMILAR_WITHIN: Duration = Duration::from_secs(600);
/// Objects that are kept account of: more than a node has pods.
const OBJECTS: usize = 1024;
/// Reasons of one object that are kept account of. Most are the node's own words, of which there are fewer.
const REASONS: usize = 64;
const COMBINED: &str = "(combined from similar events): ";

/// Keeps account of what was told of each object.
#[derive(Debug, Default)]
pub(super) struct Correlator {
    /// By UID.
    objects: BTreeMap<String, Object>,
}

/// What an event is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) uid: &'a str,
    /// The part of the object.
    pub(super) field: &'a str,
    pub(super) kind: Kind,
    pub(super) reason: &'a str,
}

/// How an event is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Telling {
    /// Events with one key are one that counts.
    pub(super) key: String,
    pub(super) message: String,
    /// How often it happened since it was last told.
    pub(super) times: i32,
}

#[derive(Debug)]
struct Object {
    left: u32,
    /// From when on the time until the next one more runs.
    since: Instant,
    reasons: BTreeMap<(String, Kind), Similar>,
}

/// What was said for one reason.
#[derive(Debug)]
struct Similar {
    last: Instant,
    /// Part of the object and message of each that is told apart.
    unlike: BTreeSet<String>,
    /// How often what was not told happened, by key. There are no more keys than are told apart, and the combined one.
    held: BTreeMap<String, i32>,
}

impl Correlator {
    /// How an event with that message is told; nothing if it is not.
    pub(super) fn take(&mut self, subject: Subject<'_>, message: String, now: Instant) -> Option<Telling> {
        if !self.objects.contains_key(subject.uid) {
            self.make_room();
        }
        let object = self.objects.entry(subject.uid.to_owned());
        object
            .or_insert_with(|| Object::new(now))
            .take(subject, message, now)
    }

    /// Forgets whom nothing was told of for the longest time.
    fn make_room(&mut self) {
        if self.objects.len() < OBJECTS {
            return;
        }
        let quiet = self.objects.iter().min_by_key(|(_uid, object)| object.last());
        if let Some(uid) = quiet.map(|(uid, _)| uid.clone()) {
            self.objects.remove(&uid);
        }
    }
}

impl Object {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
            reasons: BTreeMap::new(),
        }
    }

    /// When something happened that would have been told.
    fn last(&self) -> Option<Instant> {
        self.reasons.values().map(|similar| similar.last).max()
    }

    fn take(&mut self, subject: Subject<'_>, message: String, now: Instant) -> Option<Telling> {
        let may = self.may_tell(now);
        let key = (subject.reason.to_owned(), subject.kind);
        if !self.reasons.contains_key(&key) && self.reasons.len() >= REASONS {
            let quiet = self.reasons.iter().min_by_key(|(_key, similar)| similar.last);
            if let Some(quiet) = quiet.map(|(key, _)| key.clone()) {
                self.reasons.remove(&quiet);
            }
        }
        let similar = self.reasons.entry(key).or_insert_with(|| Similar::new(now));
        similar.take(subject, message, may, now)
    }

    /// Takes one of those that may be told now, if there are any left.
    fn may_tell(&mut self, now: Instant) -> bool {
        let intervals = now.saturating_duration_since(self.since).as_secs() / ONE_MORE.as_secs();
        let more = u32::try_from(intervals).unwrap_or(u32::MAX);
        if self.left.saturating_add(more) >= BURST {
            self.left = BURST;
            self.since = now;
        } else {
            self.left += more;
            self.since += ONE_MORE * more;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

impl Similar {
    fn new(now: Instant) -> Self {
        Self {
            last: now,
            unlike: BTreeSet::new(),
            held: BTreeMap::new(),
        }
    }

    fn take(&mut self, subject: Subject<'_>, message: String, may: bool, now: Instant) -> Option<Telling> {
        if now.saturating_duration_since(self.last) > SIMILAR_WITHIN {
            *self = Self::new(now);
        }
        self.last = now;
        let Subject {
            uid, field, reason, ..
        } = subject;
        let own = format!("{field}/{message}");
        let is_known = self.unlike.contains(&own);
        let (key, message) = if is_known || self.unlike.len() < UNLIKE - 1 {
            let key = format!("{uid}/{reason}/{own}");
            self.unlike.insert(own);
            (key, message)
        } else {
            (format!("{uid}/{reason}"), format!("{COMBINED}{message}"))
        };
        let times = self.held.remove(&key).unwrap_or(0).saturating_add(1);
        if may {
            return Some(Telling { key, message, times });
        }
        self.held.insert(key, times);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about<'a>(uid: &'a str, reason: &'a str) -> Subject<'a> {
        Subject {
            uid,
            field: "spec.containers{main}",
            kind: Kind::Warning,
            reason,
        }
    }

    #[test]
    fn a_probe_that_says_something_else_each_time_is_soon_one_event() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let mut told = Vec::new();
        for second in 0..1000 {
            let at = now + Duration::from_secs(second);
            let message = format!("Readiness probe failed: {second}");
            told.extend(correlator.take(about("noisy", "Unhealthy"), message, at));
            // In between others are heard.
            if second == 500 {
                let other = correlator.take(about("other", "Killing"), "Stopping".to_owned(), at);
                assert_eq!(other.map(|telling| telling.times), Some(1));
            }
        }
        assert_eq!(told.len(), 25 + 3, "and one more each five minutes");
        let events: BTreeSet<&str> = told.iter().map(|telling| telling.key.as_str()).collect();
        assert_eq!(events.len(), 10, "{events:?}");
        let last = told.last().unwrap();
        assert!(
            last.message
                .starts_with("(combined from similar events): Readiness probe failed: 9"),
            "{last:?}"
        );
        let all: i32 = told.iter().map(|telling| telling.times).sum();
        assert_eq!(all, 901, "what was not told is counted with what is");
    }

    #[test]
    fn like_messages_count_and_unlike_ones_are_forgotten_in_time() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let mut tell = |message: &str, seconds| {
            let at = now + Duration::from_secs(seconds);
            correlator.take(about("u", "BackOff"), message.to_owned(), at)
        };
        let first = tell("the same", 0).unwrap();
        assert_eq!(tell("the same", 1).unwrap().key, first.key);
        for number in 0..8 {
            assert!(
                !tell(&number.to_string(), 2)
                    .unwrap()
                    .message
                    .starts_with(COMBINED)
            );
        }
        assert!(tell("the tenth", 3).unwrap().message.starts_with(COMBINED));
        assert_eq!(tell("the same", 4).unwrap(), Telling { times: 1, ..first });
        assert_eq!(tell("the tenth", 700).unwrap().message, "the tenth");
    }

    #[test]
    fn what_is_kept_account_of_is_bounded() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        for number in 0..2 * OBJECTS {
            let at = now + Duration::from_millis(u64::try_from(number).unwrap());
            let (uid, reason) = (number.to_string(), number.to_string());
            assert!(
                correlator
                    .take(about(&uid, "Started"), String::new(), at)
                    .is_some()
            );
            correlator.take(about("one", &reason), reason.clone(), at);
        }
        assert_eq!(correlator.objects.len(), OBJECTS);
        assert_eq!(correlator.objects["one"].reasons.len(), REASONS);
        assert!(correlator.objects.contains_key(&(2 * OBJECTS - 1).to_string()));
    }
}
