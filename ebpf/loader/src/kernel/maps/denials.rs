//! Denials that were told as one, and those that nobody was told of.
//!
//! The programs count what they do not report at once in a map, which forgets the kinds that were longest unused when
//! others come, with what they had counted. So each endpoint has two sums beside it, of what was counted and of what was
//! settled: the difference must be in the map, and what is not was lost.

use std::{
    collections::BTreeMap,
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use ebpf_abi::{Denial, DenialKey, Endpoint, FlowRecord, Slot};

use super::Maps;
use crate::{DatapathError, flows, sys};

impl Maps {
    /// Tells how many packets were denied since the last report of their like, and forgets what is older than `age`. What the
    /// programs have counted and the map has forgotten becomes unreported.
    pub(crate) fn take_denials(
        &mut self,
        now: Duration,
        age: Duration,
    ) -> Result<Vec<FlowRecord>, DatapathError> {
        let endpoints = self.endpoints()?;
        let slots: BTreeMap<u32, u32> = endpoints
            .iter()
            .map(|(_, endpoint)| (endpoint.id, endpoint.slot))
            .collect();
        let before: BTreeMap<u32, Sums> = slots
            .iter()
            .filter_map(|(id, slot)| Some((*id, Sums::read(self.sums(*slot)?))))
            .collect();
        let Found { taken, held } = self.take_old_denials(now, age)?;
        for (key, denial) in &taken {
            if let Some(word) = slots.get(&key.endpoint).and_then(|slot| self.sums(*slot)) {
                settle(word, denial.packets);
            }
        }
        let lost = |id: &u32, slot: &u32| -> Option<u64> {
            let later = Sums::read(self.sums(*slot)?);
            let lost = before.get(id)?.lost(later, held.get(id).copied().unwrap_or(0));
            Some(lost).filter(|lost| *lost > 0)
        };
        if slots.iter().any(|(id, slot)| lost(id, slot).is_some()) {
            // A program that is about to report has taken out what it settles next.
            sys::wait_for_programs();
        }
        for (id, slot) in &slots {
            if let Some(lost) = lost(id, slot)
                && let Some(word) = self.sums(*slot)
                && let Some(unreported) = self.slots.field(*slot, offset_of!(Slot, unreported))
            {
                unreported.fetch_add(lost, Ordering::Relaxed);
                settle(word, lost);
            }
        }
        Ok(told(&taken, now))
    }

    /// Takes what is left of the denials of an endpoint that no program knows any more.
    pub(crate) fn settle_denials(
        &mut self,
        endpoint: &Endpoint,
        now: Duration,
    ) -> Result<Left, DatapathError> {
        let mut left = Left {
            records: Vec::new(),
            unreported: self.unreported_of(endpoint),
        };
        let Some(sums) = self.sums(endpoint.slot).map(Sums::read) else {
            return Ok(left);
        };
        if sums.counted == sums.settled {
            // Reading the map through takes a millisecond when it is full.
            return Ok(left);
        }
        let mut taken = Vec::new();
        for (key, _) in self.denials.all()? {
            if key.endpoint == endpoint.id {
                taken.extend(self.denials.extract(&key)?.map(|denial| (key, denial)));
            }
        }
        let held = taken.iter().map(|(_, denial)| denial.packets).sum();
        left.unreported += sums.lost(sums, held);
        left.records = told(&taken, now);
        Ok(left)
    }

    /// Takes out of the map what was reported longer than `age` before `now`.
    fn take_old_denials(&mut self, now: Duration, age: Duration) -> Result<Found, DatapathError> {
        let mut found = Found::default();
        for (key, denial) in self.denials.all()? {
            if now.saturating_sub(Duration::from_nanos(denial.reported_ns)) <= age {
                *found.held.entry(key.endpoint).or_default() += denial.packets;
                continue;
            }
            let taken = self.denials.extract(&key)?;
            found.taken.extend(taken.map(|denial| (key, denial)));
        }
        Ok(found)
    }

    /// What the programs count of an endpoint's denials, to be read at once.
    fn sums(&self, slot: u32) -> Option<&AtomicU64> {
        self.slots.field(slot, SUMS)
    }

    /// Denied packets of each of the endpoints that nobody was told of, since it was attached.
    pub(crate) fn unreported(&self, endpoints: &[(u32, Endpoint)]) -> BTreeMap<u32, u64> {
        let counts = endpoints
            .iter()
            .map(|(_, endpoint)| (endpoint.id, self.unreported_of(endpoint)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    fn unreported_of(&self, endpoint: &Endpoint) -> u64 {
        let word = self.slots.field(endpoint.slot, offset_of!(Slot, unreported));
        word.map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

/// What an endpoint that is gone leaves of its denials.
pub(crate) struct Left {
    /// What was counted since the last reports.
    pub(crate) records: Vec<FlowRecord>,
    /// Packets that nobody was told of, since it was attached.
    pub(crate) unreported: u64,
}

/// What was counted in entries that were taken out.
fn told(taken: &[(DenialKey, Denial)], now: Duration) -> Vec<FlowRecord> {
    let time_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let counted = taken.iter().filter(|(_, denial)| denial.packets > 0);
    counted
        .map(|(key, denial)| flows::denials(key, denial, time_ns))
        .collect()
}

/// What was found in the map.
#[derive(Default)]
struct Found {
    /// Taken out.
    taken: Vec<(DenialKey, Denial)>,
    /// Packets that the rest has counted, by endpoint.
    held: BTreeMap<u32, u64>,
}

/// Offset of both sums of a slot, which are read at once.
const SUMS: usize = offset_of!(Slot, counted);
const _: () = assert!(SUMS.is_multiple_of(size_of::<u64>()) && offset_of!(Slot, settled) == SUMS + 4);

/// Sums of an endpoint, at one moment.
#[derive(Debug, Clone, Copy)]
struct Sums {
    counted: u32,
    settled: u32,
}

impl Sums {
    fn read(word: &AtomicU64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.load(Ordering::Relaxed).to_ne_bytes();
        Self {
            counted: u32::from_ne_bytes([a, b, c, d]),
            settled: u32::from_ne_bytes([e, f, g, h]),
        }
    }

    /// Packets that had been counted by `self` and are neither settled by `later` nor in the map, which had `held` of the
    /// endpoint at some moment between.
    fn lost(self, later: Self, held: u64) -> u64 {
        // Below zero where more was counted since, or a count went to another endpoint's kind.
        let open = self.counted.wrapping_sub(later.settled).cast_signed();
        u64::try_from(open).unwrap_or(0).saturating_sub(held)
    }
}

/// Adds to the sum of what is settled, which wraps around by itself.
fn settle(word: &AtomicU64, packets: u64) {
    let [a, b, c, d, ..] = packets.to_le_bytes();
    let packets = u32::from_le_bytes([a, b, c, d]).to_ne_bytes();
    let [a, b, c, d] = packets;
    word.fetch_add(u64::from_ne_bytes([0, 0, 0, 0, a, b, c, d]), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_settled_nor_held_is_lost() {
        let sums = |counted, settled| Sums { counted, settled };
        for (first, later, held, lost) in [
            (sums(10, 3), sums(10, 3), 7, 0),
            (sums(10, 3), sums(10, 3), 5, 2),
            (sums(10, 3), sums(12, 5), 4, 1),
            (sums(10, 3), sums(20, 15), 0, 0),
            (sums(2, u32::MAX), sums(2, u32::MAX), 1, 2),
        ] {
            assert_eq!(first.lost(later, held), lost, "{first:?} {later:?} {held}");
        }
        let word = AtomicU64::new(0);
        settle(&word, u64::from(u32::MAX));
        settle(&word, 3);
        let read = Sums::read(&word);
        assert_eq!((read.counted, read.settled), (0, 2));
    }
}
