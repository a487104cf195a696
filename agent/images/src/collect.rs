//! Which images go when the disk gets full: Kubernetes' rules. Pure.
//!
//! Above the high threshold as much is freed as brings the disk down to the low one. What was not used for longest
//! goes first; what is in use, or came or was used a moment ago, stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use api::Digest;

use crate::records::Record;

/// When images are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcPolicy {
    /// Above it images are removed.
    pub high_percent: u8,
    /// Down to it.
    pub low_percent: u8,
    /// What was used more recently stays.
    pub min_age: Duration,
}

impl Default for GcPolicy {
    fn default() -> Self {
        Self {
            high_percent: 85,
            low_percent: 80,
            min_age: Duration::from_secs(120),
        }
    }
}

impl GcPolicy {
    /// Bytes to free on a disk of `capacity` bytes of which `available` are free; nothing if there is room enough.
    pub fn to_free(&self, capacity: u64, available: u64) -> Option<u64> {
        let free_percent = available.saturating_mul(100).checked_div(capacity)?;
        if 100u64.saturating_sub(free_percent) < u64::from(self.high_percent) {
            return None;
        }
        let wanted = u128::from(capacity) * u128::from(100 - self.low_percent.min(100)) / 100;
        let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
        Some(wanted.saturating_sub(available)).filter(|bytes| *bytes > 0)
    }
}

/// What is to be removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Doomed {
    /// Manifests of the images.
    pub(crate) images: Vec<Digest>,
    /// Layers that no image that stays needs.
    pub(crate) layers: BTreeSet<Digest>,
    /// Bytes of these layers.
    pub(crate) bytes: u64,
}

/// Chooses images until `to_free` bytes of layers are not needed any more, or nothing more may go.
pub(crate) fn choose(
    records: &[Record],
    in_use: &BTreeSet<Digest>,
    to_free: u64,
    min_age: Duration,
    now: SystemTime,
) -> Doomed {
    let mut needed: BTreeMap<Digest, u32> = BTreeMap::new();
    for layer in records.iter().flat_map(distinct) {
        *needed.entry(layer.0).or_default() += 1;
    }
    let old_enough = |record: &&Record| {
        let age = |at: SystemTime| now.duration_since(at).unwrap_or_default();
        age(record.used_at) >= min_age && age(record.came_at) >= min_age
    };
    let mut candidates: Vec<&Record> = records
        .iter()
        .filter(|record| !in_use.contains(&record.digest))
        .filter(old_enough)
        .collect();
    candidates.sort_by_key(|record| (record.used_at, record.came_at, record.digest));
    let mut doomed = Doomed::default();
    for record in candidates {
        if doomed.bytes >= to_free {
            break;
        }
        doomed.images.push(record.digest);
        for (diff_id, bytes) in distinct(record) {
            let left = needed.entry(diff_id).or_default();
            *left = left.saturating_sub(1);
            if *left == 0 {
                doomed.layers.insert(diff_id);
                doomed.bytes = doomed.bytes.saturating_add(bytes);
            }
        }
    }
    doomed
}

/// The layers of an image, each once.
fn distinct(record: &Record) -> BTreeMap<Digest, u64> {
    let layers = record.layers.iter();
    layers.map(|layer| (layer.diff_id, layer.bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::KnownLayer;

    const NOW: u64 = 10_000;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn id(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn record(name: &str, used: u64, layers: &[&str]) -> Record {
        let layer = |name: &&str| KnownLayer {
            diff_id: id(name),
            bytes: 100,
        };
        Record {
            digest: id(name),
            size: 1,
            layers: layers.iter().map(layer).collect(),
            repositories: BTreeMap::new(),
            came_at: at(0),
            used_at: at(used),
        }
    }

    #[test]
    fn thresholds_are_kubernetes() {
        let policy = GcPolicy::default();
        assert_eq!(policy.to_free(1000, 160), None);
        assert_eq!(
            policy.to_free(1000, 159),
            Some(41),
            "whole percents, as a kubelet counts them"
        );
        assert_eq!(
            policy.to_free(1000, 150),
            Some(50),
            "85 percent are used: down to 80"
        );
        assert_eq!(policy.to_free(1000, 0), Some(200));
        assert_eq!(policy.to_free(0, 0), None, "no disk, no percent");
        assert_eq!(policy.to_free(u64::MAX, 0), Some(u64::MAX / 5));
    }

    #[test]
    fn the_least_recently_used_goes_first_and_shared_layers_stay() {
        let records = [
            record("new", 300, &["base", "n"]),
            record("old", 100, &["base", "o"]),
            record("used", 50, &["u", "u"]),
            record("fresh", NOW - 10, &["f"]),
        ];
        let in_use = BTreeSet::from([id("used")]);
        let choose = |bytes| choose(&records, &in_use, bytes, Duration::from_secs(120), at(NOW));
        assert_eq!(choose(0), Doomed::default());
        let one = choose(100);
        assert_eq!(
            (one.images, one.layers),
            (vec![id("old")], BTreeSet::from([id("o")]))
        );
        let all = choose(u64::MAX);
        assert_eq!(
            all.images,
            [id("old"), id("new")],
            "in use or fresh stays, whatever is asked"
        );
        assert_eq!((all.layers.len(), all.bytes), (3, 300));
        let fresh = super::choose(&records, &in_use, u64::MAX, Duration::ZERO, at(NOW));
        assert_eq!(
            fresh.images,
            [id("old"), id("new"), id("fresh")],
            "whatever its age, where that is asked"
        );
    }
}
