//! How far a download has come, for whoever wants to tell people.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Bytes that have arrived, of how many. Cheap to clone; clones count together.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    arrived: AtomicU64,
    expected: AtomicU64,
}

impl Progress {
    /// Bytes that have arrived.
    pub fn arrived(&self) -> u64 {
        self.counts.arrived.load(Ordering::Relaxed)
    }

    /// Bytes that will have arrived in the end; 0 until that is known.
    pub fn expected(&self) -> u64 {
        self.counts.expected.load(Ordering::Relaxed)
    }

    /// Raises the number of bytes to come.
    pub fn expect(&self, bytes: u64) {
        self.counts.expected.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.counts.arrived.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that arrived have to come again.
    pub(crate) fn take_back(&self, bytes: u64) {
        self.counts.arrived.fetch_sub(bytes, Ordering::Relaxed);
    }
}
