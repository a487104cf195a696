//! Sealed, versioned, watchable storage.

use std::{collections::VecDeque, sync::Arc};

use async_trait::async_trait;

/// Sealed, versioned, watchable storage of objects. Every method is one atomic step.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The object under `key`, or `None`.
    async fn get(&self, key: &ObjectKey) -> Result<Option<Stored>, StoreError>;

    /// Objects whose keys start with `prefix`, in key order, all at one revision.
    async fn list(&self, prefix: &KeyPrefix, options: &ListOptions) -> Result<ListPage, StoreError>;

    /// Writes or deletes one object if it is still as `expected`. Returns the new revision.
    async fn write(&self, key: &ObjectKey, expected: Expected, change: Change) -> Result<Revision, StoreError>;

    /// Changes under `prefix` after revision `after`, in order, without gaps. `StoreError::Compacted` when
    /// history does not reach back that far.
    async fn watch(&self, prefix: &KeyPrefix, after: Revision) -> Result<Watch, StoreError>;

    /// Revision of the last write; 0 in a store that was never written.
    async fn revision(&self) -> Result<Revision, StoreError>;
}

/// Number of a write; grows by one with each. The API's `resourceVersion`.
pub type Revision = u64;

/// Identity of a stored object: part of what its ciphertext is bound to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// `group/plural`, such as `core/pods`; the core group is `core`.
    pub resource: String,
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// What a list or a watch covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPrefix {
    /// `group/plural`.
    pub resource: String,
    /// One namespace, or all.
    pub namespace: Option<String>,
}

/// Paging of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Most objects to return; 0 means all.
    pub limit: usize,
    /// Continue after this key: the last one of the page before.
    pub after: Option<ObjectKey>,
}

/// One page of a list.
#[derive(Debug, Clone)]
pub struct ListPage {
    /// The objects, in key order.
    pub items: Vec<Stored>,
    /// Revision at which all of them are current.
    pub revision: Revision,
    /// Whether more objects follow.
    pub more: bool,
}

/// A stored object.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its identity.
    pub key: ObjectKey,
    /// UID of the object, part of what the ciphertext is bound to.
    pub uid: String,
    /// Revision of its last write.
    pub revision: Revision,
    /// The opened value (JSON).
    pub value: Arc<[u8]>,
}

/// What a write expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// No object under the key.
    Absent,
    /// The object, unchanged since this revision.
    At(Revision),
}

/// What a write does.
#[derive(Debug, Clone)]
pub enum Change {
    /// Stores a value. `{revision}` never stands inside it: the caller adds the revision when it reads.
    Put {
        /// UID of the object.
        uid: String,
        /// JSON.
        value: Vec<u8>,
    },
    /// Deletes the object.
    Delete,
}

/// Stream of changes.
pub struct Watch {
    /// Receives changes in order. Closed without [`WatchItem::End`] only when the store shuts down.
    pub events: tokio::sync::mpsc::Receiver<WatchItem>,
}

/// One item of a [`Watch`].
#[derive(Debug, Clone)]
pub enum WatchItem {
    /// An object was written.
    Put {
        /// The object as it is now.
        object: Stored,
        /// The object before, absent for a creation: label-selector watches need both.
        previous: Option<Stored>,
    },
    /// An object was deleted; `revision` is that of the deletion.
    Delete {
        /// The object as it was.
        previous: Stored,
        /// Revision of the deletion.
        revision: Revision,
    },
    /// The watcher was too slow and missed changes: list again.
    End,
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A write found something other than it expected.
    #[error("{key:?} is at revision {actual:?}")]
    Conflict {
        /// The key.
        key: ObjectKey,
        /// Revision found, or `None` where no object exists.
        actual: Option<Revision>,
    },
    /// History does not reach back to the revision asked for.
    #[error("revision {requested} is older than the oldest kept, {oldest}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// Oldest that can be served.
        oldest: Revision,
    },
}

#[expect(dead_code, reason = "replaced by the store's history buffer")]
type History = VecDeque<WatchItem>;
