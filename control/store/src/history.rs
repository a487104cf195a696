//! The recent changes, kept in memory: what watches start from and what old lists are rebuilt from.
//!
//! After a restart history is empty and clients list again, as they must anyway after a long break.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tokio::sync::mpsc;

use crate::{KeyPrefix, ObjectKey, Revision, StoreError, Stored, Watch, WatchItem};

/// Changes kept for watches that start in the past.
const MAX_CHANGES: usize = 8192;

/// Bytes of values kept with them.
const MAX_BYTES: usize = 16 << 20;

/// Changes a watcher may lag behind before it is told to list again.
const WATCHER_LAG: usize = 1024;

/// Changes in (`base`, `last`], and who waits for more.
pub(crate) struct History {
    base: Revision,
    last: Revision,
    changes: VecDeque<WatchItem>,
    bytes: usize,
    watchers: HashMap<String, Vec<Watcher>>,
    closed: bool,
}

struct Watcher {
    prefix: KeyPrefix,
    sender: mpsc::Sender<WatchItem>,
}

impl History {
    /// Empty history of a store whose last write is `revision`.
    pub(crate) fn new(revision: Revision) -> Self {
        Self {
            base: revision,
            last: revision,
            changes: VecDeque::new(),
            bytes: 0,
            watchers: HashMap::new(),
            closed: false,
        }
    }

    /// Revision of the last change.
    pub(crate) fn last(&self) -> Revision {
        self.last
    }

    /// Whether [`History::close`] was called.
    pub(crate) fn closed(&self) -> bool {
        self.closed
    }

    /// Adds a change, hands it to the watchers, forgets the oldest beyond the bounds.
    pub(crate) fn push(&mut self, change: WatchItem) {
        let (Some(key), Some(revision)) = (change.key(), change.revision()) else {
            return;
        };
        if let Some(watchers) = self.watchers.get_mut(&key.resource) {
            watchers.retain(|watcher| watcher.offer(&change));
            if watchers.is_empty() {
                self.watchers.remove(&key.resource);
            }
        }
        self.last = revision;
        self.bytes += size(&change);
        self.changes.push_back(change);
        while self.changes.len() > MAX_CHANGES || self.bytes > MAX_BYTES {
            let Some(oldest) = self.changes.pop_front() else {
                break;
            };
            self.bytes -= size(&oldest);
            self.base = oldest.revision().unwrap_or(self.base);
        }
    }

    /// Watches `prefix` from `after` on.
    pub(crate) fn watch(&mut self, prefix: &KeyPrefix, after: Revision) -> Result<Watch, StoreError> {
        if self.closed {
            return Err(StoreError::Closed);
        }
        let backlog: Vec<WatchItem> = self
            .since(after)?
            .filter(|c| c.key().is_some_and(|k| prefix.covers(k)))
            .cloned()
            .collect();
        // One place more than the lag is for `End`.
        let (sender, events) = mpsc::channel(backlog.len() + WATCHER_LAG + 1);
        let watcher = Watcher {
            prefix: prefix.clone(),
            sender,
        };
        for change in &backlog {
            watcher.offer(change);
        }
        self.watchers
            .entry(prefix.resource.clone())
            .or_default()
            .push(watcher);
        Ok(Watch { events })
    }

    /// The objects under `prefix` that changed in (`at`, `until`], as they were at `at`: absent where the
    /// object did not exist then.
    pub(crate) fn undo(
        &self,
        prefix: &KeyPrefix,
        at: Revision,
        until: Revision,
    ) -> Result<BTreeMap<ObjectKey, Option<Stored>>, StoreError> {
        let mut before = BTreeMap::new();
        for change in self
            .since(at)?
            .take_while(|c| c.revision().is_some_and(|r| r <= until))
        {
            if let Some(key) = change.key().filter(|key| prefix.covers(key)) {
                before
                    .entry(key.clone())
                    .or_insert_with(|| change.previous().cloned());
            }
        }
        Ok(before)
    }

    /// Ends all watches and refuses new ones.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.watchers.clear();
    }

    fn since(&self, after: Revision) -> Result<impl Iterator<Item = &WatchItem>, StoreError> {
        if after > self.last {
            return Err(StoreError::Future {
                requested: after,
                current: self.last,
            });
        }
        if after < self.base {
            return Err(StoreError::Compacted {
                requested: after,
                oldest: self.base,
            });
        }
        let start = self
            .changes
            .partition_point(|c| c.revision().is_some_and(|r| r <= after));
        Ok(self.changes.range(start..))
    }
}

impl Watcher {
    /// Hands the change over; `false` when the watch is over.
    fn offer(&self, change: &WatchItem) -> bool {
        if !change.key().is_some_and(|key| self.prefix.covers(key)) {
            return !self.sender.is_closed();
        }
        if self.sender.capacity() > 1 {
            return self.sender.try_send(change.clone()).is_ok();
        }
        // The last place is free by construction; where the receiver is gone nobody misses the message.
        drop(self.sender.try_send(WatchItem::End));
        false
    }
}

fn size(change: &WatchItem) -> usize {
    let value = match change {
        WatchItem::Put { object, .. } => object.value.len(),
        WatchItem::Delete { .. } | WatchItem::End => 0,
    };
    value + change.previous().map_or(0, |p| p.value.len())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn put(revision: Revision, bytes: usize) -> WatchItem {
        let key = ObjectKey::new("core/pods", "ns", format!("p{revision}"));
        let value: Arc<[u8]> = vec![0; bytes].into();
        WatchItem::Put {
            object: Stored {
                key,
                uid: "u".into(),
                revision,
                value,
            },
            previous: None,
        }
    }

    #[test]
    fn forgets_beyond_both_bounds_and_says_so() {
        for (count, bytes) in [(MAX_CHANGES as u64 + 10, 1), (40, MAX_BYTES / 16)] {
            let mut history = History::new(100);
            for revision in 101..=100 + count {
                history.push(put(revision, bytes));
            }
            assert!(history.changes.len() <= MAX_CHANGES && history.bytes <= MAX_BYTES);
            let base = history.base;
            assert!(base > 100);
            let all = KeyPrefix::all("core/pods");
            assert!(
                matches!(history.watch(&all, base - 1), Err(StoreError::Compacted { oldest, .. }) if oldest == base)
            );
            assert!(matches!(
                history.watch(&all, history.last + 1),
                Err(StoreError::Future { .. })
            ));
            let mut watch = history.watch(&all, base).unwrap();
            assert_eq!(watch.events.try_recv().unwrap().revision(), Some(base + 1));
        }
    }

    #[test]
    fn a_slow_watcher_gets_all_up_to_the_end_marker() {
        let mut history = History::new(0);
        let mut watch = history.watch(&KeyPrefix::all("core/pods"), 0).unwrap();
        for revision in 1..=WATCHER_LAG as u64 + 5 {
            history.push(put(revision, 1));
        }
        for revision in 1..=WATCHER_LAG as u64 {
            assert_eq!(watch.events.try_recv().unwrap().revision(), Some(revision));
        }
        assert_eq!(watch.events.try_recv().unwrap(), WatchItem::End);
        assert!(matches!(
            watch.events.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        ));
        assert!(history.watchers.is_empty(), "it is forgotten");
    }

    #[test]
    fn a_watch_nobody_reads_any_more_is_forgotten() {
        let mut history = History::new(0);
        drop(
            history
                .watch(&KeyPrefix::namespaced("core/pods", "other"), 0)
                .unwrap(),
        );
        history.push(put(1, 1));
        assert!(history.watchers.is_empty());
    }
}
