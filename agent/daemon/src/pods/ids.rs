//! Ranges of host user ids: each pod has its own, so that no two pods share an owner.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use super::users::ID_COUNT;

/// First id given out. Far above the ranges of login users and of `subuid` files, and below the last range
/// that systemd's documentation leaves unused.
const FIRST: u32 = 0x7000_0000;
/// Number of ranges.
const RANGES: u32 = 0x0ffd;

/// Every range is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {RANGES} ranges of user ids are taken")]
pub(crate) struct NoIds;

/// Who has which range. Not kept on disk: a pod's range is part of what its shim remembers.
#[derive(Debug)]
pub(crate) struct Ids {
    /// First ids by the pod's UID: should two pods have one range, it is free only once both are gone.
    taken: Mutex<BTreeMap<String, u32>>,
}

impl Ids {
    /// Begins with what pods have already, all of them: a range that is given out before one of them is known may be its own.
    pub(crate) fn beside(survivors: impl IntoIterator<Item = (String, u32)>) -> Self {
        Self {
            taken: Mutex::new(survivors.into_iter().collect()),
        }
    }

    /// The first id of the pod's range: the one it has, or a free one.
    pub(crate) fn acquire(&self, pod_uid: &str) -> Result<u32, NoIds> {
        let mut taken = self.taken();
        if let Some(base) = taken.get(pod_uid) {
            return Ok(*base);
        }
        let used: BTreeSet<u32> = taken.values().copied().collect();
        let mut bases = (0..RANGES).map(|index| FIRST + index * ID_COUNT);
        let base = bases.find(|base| !used.contains(base)).ok_or(NoIds)?;
        taken.insert(pod_uid.to_owned(), base);
        Ok(base)
    }

    /// Gives the pod's range back.
    pub(crate) fn release(&self, pod_uid: &str) {
        self.taken().remove(pod_uid);
    }

    /// A panic cannot leave the map half-changed: every change is one insertion or one removal.
    fn taken(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_overlap_and_come_back() {
        let ids = Ids::beside([("old".to_owned(), FIRST + ID_COUNT)]);
        assert_eq!(ids.acquire("a"), Ok(FIRST));
        assert_eq!(ids.acquire("b"), Ok(FIRST + 2 * ID_COUNT));
        assert_eq!(ids.acquire("a"), Ok(FIRST), "a pod keeps its range");
        ids.release("a");
        assert_eq!(ids.acquire("c"), Ok(FIRST));
        let shared = ["x", "y"].map(|uid| (uid.to_owned(), FIRST));
        let ids = Ids::beside(shared);
        ids.release("x");
        assert_eq!(ids.acquire("z"), Ok(FIRST + ID_COUNT), "the other has it still");
        assert!(
            (RANGES - 1)
                .checked_mul(ID_COUNT)
                .and_then(|offset| FIRST.checked_add(offset))
                .is_some()
        );
        let last = FIRST + (RANGES - 1) * ID_COUNT + (ID_COUNT - 1);
        assert!(last < 0x7ffe_0000);
    }
}
