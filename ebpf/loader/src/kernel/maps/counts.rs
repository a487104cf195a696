//! How many flows each endpoint tracks: its budget, which programs and this process count together.
//!
//! A program adds a flow when it opens and takes it off when it is closed; this process takes off what it removes. Both
//! may do so of one flow at the same moment, and a process that dies does less than it began, so each look through all
//! flows takes a [`Census`] and adds what is missing. It is added, not set: programs count on meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::offset_of,
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering},
};

use ebpf_abi::{
    DIRECTION_INGRESS, Endpoint, FLOW_ESTABLISHED, FlowKey, FlowState, MAX_ENDPOINTS, PEER_BUCKETS, Slot,
    peer_bucket,
};

use super::{Maps, PEERS, mapped};
use crate::{DatapathError, sys};

/// Slots whose counts by peer are mapped at least: those of a node's usual number of pods.
pub(super) const FIRST_PEERS: u32 = 128;

/// Words of a slot's budget: all flows, those that are not established in each direction, and of those to the endpoint
/// each bucket of peers.
const WORDS: usize = 3 + PEER_BUCKETS as usize;

/// Flows of one endpoint, as its budgets count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts([u64; WORDS]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; WORDS])
    }
}

impl Counts {
    /// One flow. A closed one takes from no budget.
    pub(crate) fn of(key: &FlowKey, state: &FlowState) -> Self {
        let mut counts = Self::default();
        if !state.is_closed() {
            counts.add(key, state);
        }
        counts
    }

    fn add(&mut self, key: &FlowKey, state: &FlowState) {
        let [all, ingress, egress, buckets @ ..] = &mut self.0;
        *all += 1;
        if state.state & FLOW_ESTABLISHED != 0 {
            return;
        }
        if state.begun() != DIRECTION_INGRESS {
            *egress += 1;
            return;
        }
        *ingress += 1;
        let bucket = usize::try_from(peer_bucket(&key.peer)).unwrap_or(usize::MAX);
        if let Some(bucket) = buckets.get_mut(bucket) {
            *bucket += 1;
        }
    }
}

/// What there was when a look began: what was counted, and what the look finds.
pub(crate) struct Census {
    began_ns: u64,
    /// Slot and counts, by endpoint.
    counted: BTreeMap<u32, (u32, Counts)>,
    found: BTreeMap<u32, Counts>,
}

impl Census {
    /// Counts a flow that was there when the look began, as it was then as far as can be told: what a program has counted
    /// since is in the slot. The last packet of a flow that is closed closed it, unless it was sent again.
    pub(crate) fn count(&mut self, key: &FlowKey, state: &FlowState) {
        let was_closed = state.is_closed() && state.last_seen_ns <= self.began_ns;
        if state.opened_ns <= self.began_ns && !was_closed {
            self.found.entry(key.endpoint).or_default().add(key, state);
        }
    }
}

impl Maps {
    /// Begins to count the flows of all endpoints.
    pub(crate) fn begin_census(&mut self) -> Result<Census, DatapathError> {
        let endpoints = self.endpoints()?;
        for (_, endpoint) in &endpoints {
            self.map_peers(endpoint.slot)?;
        }
        self.cleared.clear();
        let began_ns = sys::programs_now_ns();
        let counts = |endpoint: &Endpoint| (endpoint.slot, self.counts(endpoint));
        let counted = endpoints
            .iter()
            .map(|(_, endpoint)| (endpoint.id, counts(endpoint)));
        Ok(Census {
            began_ns,
            counted: counted.collect(),
            found: BTreeMap::new(),
        })
    }

    /// Adds what a census has found that was not counted, or less. A slot that was given away meanwhile was counted from
    /// nothing since, and is left alone.
    pub(crate) fn correct_counts(&mut self, census: &Census) -> Result<(), DatapathError> {
        for (_, endpoint) in self.endpoints()? {
            let Some((slot, counted)) = census.counted.get(&endpoint.id) else {
                continue;
            };
            if *slot != endpoint.slot || self.cleared.contains(slot) {
                continue;
            }
            let found = census.found.get(&endpoint.id).copied().unwrap_or_default();
            let pairs = found.0.iter().zip(&counted.0);
            for (word, (found, counted)) in self.budget(endpoint.slot).zip(pairs) {
                if found != counted {
                    word.fetch_add(found.wrapping_sub(*counted), Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Takes flows off an endpoint's budget.
    pub(crate) fn take_off(&mut self, endpoint: &Endpoint, counts: &Counts) {
        let words = self.budget(endpoint.slot).zip(counts.0);
        for (word, count) in words.filter(|(_, count)| *count != 0) {
            word.fetch_sub(count, Ordering::Relaxed);
        }
    }

    /// Empties the budget of a slot that is given to another endpoint.
    pub(super) fn clear_counts(&mut self, slot: u32) -> Result<(), DatapathError> {
        self.map_peers(slot)?;
        self.cleared.insert(slot);
        self.budget(slot)
            .for_each(|word| word.store(0, Ordering::Relaxed));
        Ok(())
    }

    /// Tracked flows: those that live, as far as they were counted, and those that were closed at the last look.
    pub(crate) fn flow_count(&self) -> Result<u64, DatapathError> {
        let count = |endpoint: &Endpoint| {
            let word = self.slots.field(endpoint.slot, offset_of!(Slot, flows));
            word.map_or(0, |word| word.load(Ordering::Relaxed))
        };
        let endpoints = self.endpoints()?;
        let live = all_flows(endpoints.iter().map(|(_, endpoint)| count(endpoint)));
        Ok(live.saturating_add(self.closed))
    }

    fn counts(&self, endpoint: &Endpoint) -> Counts {
        let mut counts = Counts::default();
        for (count, word) in counts.0.iter_mut().zip(self.budget(endpoint.slot)) {
            *count = word.load(Ordering::Relaxed);
        }
        counts
    }

    /// The words of a slot's budget, in the order of [`Counts`]. Its counts by peer must be mapped.
    fn budget(&self, slot: u32) -> impl Iterator<Item = &AtomicU64> {
        let unestablished = offset_of!(Slot, unestablished);
        let own = [
            offset_of!(Slot, flows),
            unestablished,
            unestablished + size_of::<u64>(),
        ];
        let own = own
            .into_iter()
            .filter_map(move |offset| self.slots.field(slot, offset));
        let peers =
            (0..PEER_BUCKETS).filter_map(move |bucket| self.peers.field(slot * PEER_BUCKETS + bucket, 0));
        own.chain(peers)
    }

    /// Maps counts by peer up to those of `slot`, and of as many slots more as make it a power of two, so that it is seldom
    /// done. What is mapped of a map is resident at once, whether it is used or not; all of this one is 2 MiB.
    fn map_peers(&mut self, slot: u32) -> Result<(), DatapathError> {
        let last = slot * PEER_BUCKETS + (PEER_BUCKETS - 1);
        if self.peers.field(last, 0).is_none() {
            let slots = (slot + 1).next_power_of_two().min(MAX_ENDPOINTS);
            self.peers = mapped(self.peers_fd.as_fd(), PEERS, slots * PEER_BUCKETS)?;
        }
        Ok(())
    }
}

/// Slots that were given to another endpoint since a census began.
pub(super) type Cleared = BTreeSet<u32>;

/// The sum of what the programs have counted of each endpoint. A flow that ended between a look at it and the count's
/// correction leaves a count below zero for a while, which is none.
fn all_flows(counts: impl Iterator<Item = u64>) -> u64 {
    counts
        .map(|count| u64::try_from(count.cast_signed()).unwrap_or(0))
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_below_zero_is_no_flow() {
        assert_eq!(all_flows([3, u64::MAX, 4].into_iter()), 7);
        assert_eq!(all_flows([i64::MAX.cast_unsigned(); 3].into_iter()), u64::MAX);
    }
}
