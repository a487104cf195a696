//! Denials that the programs have counted rather than reported, and what became of each endpoint's count.
//!
//! The map forgets the kinds that were longest unused when others come, with what they had counted. So each endpoint has two
//! sums beside it, of what was counted and of what was settled: the difference must be in the map, and what is not was lost.

use std::{
    collections::BTreeMap,
    mem::offset_of,
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use aya::maps::{HashMap, MapData};
use ebpf_abi::{Denial, DenialKey, Slot};

use crate::{
    DatapathError,
    kernel::maps::{DENIALS, failed_call, failed_map},
    sys,
};

/// The map of counts.
pub(crate) struct Denials {
    pub(crate) map: HashMap<MapData, DenialKey, Denial>,
    /// The same map, for what the library does not offer.
    fd: OwnedFd,
}

/// What was found in the map.
pub(crate) struct Found {
    /// Taken out.
    pub(crate) taken: Vec<(DenialKey, Denial)>,
    /// Packets that the rest has counted, by endpoint.
    pub(crate) held: BTreeMap<u32, u64>,
}

impl Denials {
    pub(crate) fn new(map: HashMap<MapData, DenialKey, Denial>, fd: OwnedFd) -> Self {
        Self { map, fd }
    }

    /// Takes out what was reported longer than `age` before `now`.
    pub(crate) fn take(&mut self, now: Duration, age: Duration) -> Result<Found, DatapathError> {
        let all: Vec<(DenialKey, Denial)> = self
            .map
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed_map(DENIALS, "read"))?;
        let mut found = Found {
            taken: Vec::new(),
            held: BTreeMap::new(),
        };
        for (key, denial) in all {
            if now.saturating_sub(Duration::from_nanos(denial.reported_ns)) <= age {
                *found.held.entry(key.endpoint).or_default() += denial.packets;
                continue;
            }
            let taken = sys::take(self.fd.as_fd(), &key).map_err(|error| {
                failed_call(DENIALS, "delete from", "bpf_map_lookup_and_delete_elem", error)
            })?;
            found.taken.extend(taken.map(|denial| (key, denial)));
        }
        Ok(found)
    }
}

/// Offset of both sums of a slot, which are read at once.
pub(crate) const SUMS: usize = offset_of!(Slot, counted);
const _: () = assert!(SUMS.is_multiple_of(size_of::<u64>()) && offset_of!(Slot, settled) == SUMS + 4);

/// Sums of an endpoint, at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sums {
    counted: u32,
    settled: u32,
}

impl Sums {
    pub(crate) fn read(word: &AtomicU64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.load(Ordering::Relaxed).to_ne_bytes();
        Self {
            counted: u32::from_ne_bytes([a, b, c, d]),
            settled: u32::from_ne_bytes([e, f, g, h]),
        }
    }

    /// Packets that had been counted by `self` and are neither settled by `later` nor in the map, which had `held` of the
    /// endpoint at some moment between.
    pub(crate) fn lost(self, later: Self, held: u64) -> u64 {
        // Below zero where more was counted since, or a count went to another endpoint's kind.
        let open = self.counted.wrapping_sub(later.settled).cast_signed();
        u64::try_from(open).unwrap_or(0).saturating_sub(held)
    }
}

/// Adds to the sum of what is settled, which wraps around by itself.
pub(crate) fn settle(word: &AtomicU64, packets: u64) {
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
