//! Sealed, versioned, watchable storage of API objects.
//!
//! [`Store`] is what the API server sees: one counter of revisions, compare-and-set writes, consistent
//! lists, watches without gaps. [`Embedded`] is the implementation for one machine, on redb. Every value is
//! sealed (AES-256-GCM, bound to the object's identity) before it reaches the backend, and opened
//! only in memory.
//!
//! Non-goals: hiding *which* objects exist (names and sizes are readable in the file), and noticing that the
//! whole file was replaced by an older copy of itself.
//!
//! Start at [`Embedded::open`].

#![forbid(unsafe_code)]

mod embedded;
mod history;
mod keyring;
mod rows;
mod seal;
#[cfg(test)]
mod suite;

use std::{error::Error, sync::Arc};

use async_trait::async_trait;

pub use embedded::Embedded;
pub use keyring::{Keyring, KeyringError};
pub use seal::{KeyId, SealError};

/// Sealed, versioned, watchable storage of objects. Every method is one atomic step.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The object under `key`, or `None`.
    async fn get(&self, key: &ObjectKey) -> Result<Option<Stored>, StoreError>;

    /// Objects under `prefix`, in key order, all as they were at one revision.
    async fn list(&self, prefix: &KeyPrefix, options: &ListOptions) -> Result<ListPage, StoreError>;

    /// Writes or deletes one object if it is still as `expected`. Returns the new revision; the write is on
    /// the disk by then.
    async fn write(
        &self,
        key: &ObjectKey,
        expected: Expected,
        change: Change,
    ) -> Result<Revision, StoreError>;

    /// Changes under `prefix` after revision `after`, in order, without gaps. [`StoreError::Compacted`] when
    /// history does not reach back that far.
    async fn watch(&self, prefix: &KeyPrefix, after: Revision) -> Result<Watch, StoreError>;

    /// Revision of the last write; 0 in a store that was never written.
    async fn revision(&self) -> Result<Revision, StoreError>;
}

/// Number of a write; grows by one with each. The API's `resourceVersion`.
pub type Revision = u64;

/// Longest object value. The API server takes bodies of 3 MiB; what it adds to them is small.
pub const MAX_VALUE_BYTES: usize = 4 << 20;

/// Longest resource, namespace or name.
pub const MAX_KEY_PART_BYTES: usize = 512;

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
    /// List as of this revision, so that all pages show one state; absent means now.
    /// [`StoreError::Compacted`] when history does not reach back that far.
    pub at: Option<Revision>,
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Stores a value. The revision never stands inside it: the caller adds it when it reads.
    Put {
        /// UID of the object.
        uid: String,
        /// JSON.
        value: Vec<u8>,
    },
    /// Deletes the object.
    Delete,
}

/// Stream of changes. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    /// Receives changes in order. Closed without [`WatchItem::End`] only when the store shuts down.
    pub events: tokio::sync::mpsc::Receiver<WatchItem>,
}

/// One item of a [`Watch`].
#[derive(Debug, Clone, PartialEq, Eq)]
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
    #[error("{key} {}", match actual { Some(r) => format!("is at revision {r}"), None => "does not exist".to_owned() })]
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
    /// The revision was never written: the client speaks of another store, or of an older copy of this one.
    #[error("revision {requested} does not exist yet; the last write is {current}")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// The last write.
        current: Revision,
    },
    /// A part of the key is empty, too long or holds a NUL byte.
    #[error("{part} {value:?} must have 1 to {MAX_KEY_PART_BYTES} bytes and no NUL")]
    Key {
        /// `resource`, `namespace` or `name`.
        part: &'static str,
        /// The offending text, shortened.
        value: String,
    },
    /// The value is longer than [`MAX_VALUE_BYTES`].
    #[error("{key} has {bytes} bytes, more than the {MAX_VALUE_BYTES} that are stored")]
    TooLarge {
        /// The key.
        key: ObjectKey,
        /// Size of the value.
        bytes: usize,
    },
    /// A value could not be sealed, or is not what was sealed under this identity.
    #[error("{key}")]
    Seal {
        /// The key.
        key: ObjectKey,
        /// What is wrong with it.
        #[source]
        source: SealError,
    },
    /// The file was not sealed with this keyring.
    #[error("{file} was not sealed with this key file; put the key file back that it was made with")]
    ForeignKeyring {
        /// The store's file.
        file: String,
        /// What is wrong with it.
        #[source]
        source: SealError,
    },
    /// The backend failed.
    #[error("store: {operation}")]
    Backend {
        /// What was attempted.
        operation: &'static str,
        /// Why it failed. Shared, because one commit carries the writes of many callers.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The store's file holds a revision counter that is no counter.
    #[error("store: the revision counter is damaged")]
    Counter,
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

impl ObjectKey {
    /// A key; cluster-scoped objects have an empty namespace.
    pub fn new(resource: impl Into<String>, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// Checks that the parts can be told apart in the file.
    pub fn check(&self) -> Result<(), StoreError> {
        check_part("resource", &self.resource, 1)?;
        check_part("namespace", &self.namespace, 0)?;
        check_part("name", &self.name, 1)
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {:?}", self.resource, self.name),
            namespace => write!(f, "{} {:?} in namespace {namespace:?}", self.resource, self.name),
        }
    }
}

impl KeyPrefix {
    /// All objects of a resource.
    pub fn all(resource: impl Into<String>) -> Self {
        Self {
            resource: resource.into(),
            namespace: None,
        }
    }

    /// The objects of a resource in one namespace.
    pub fn namespaced(resource: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self {
            resource: resource.into(),
            namespace: Some(namespace.into()),
        }
    }

    /// Whether `key` is covered.
    pub fn covers(&self, key: &ObjectKey) -> bool {
        self.resource == key.resource && self.namespace.as_ref().is_none_or(|ns| *ns == key.namespace)
    }

    /// Checks that the parts can be told apart in the file.
    pub fn check(&self) -> Result<(), StoreError> {
        check_part("resource", &self.resource, 1)?;
        check_part("namespace", self.namespace.as_deref().unwrap_or_default(), 0)
    }
}

impl WatchItem {
    /// The key that changed.
    pub fn key(&self) -> Option<&ObjectKey> {
        match self {
            Self::Put { object, .. } => Some(&object.key),
            Self::Delete { previous, .. } => Some(&previous.key),
            Self::End => None,
        }
    }

    /// Revision of the change.
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Self::Put { object, .. } => Some(object.revision),
            Self::Delete { revision, .. } => Some(*revision),
            Self::End => None,
        }
    }

    /// The object before the change.
    pub fn previous(&self) -> Option<&Stored> {
        match self {
            Self::Put { previous, .. } => previous.as_ref(),
            Self::Delete { previous, .. } => Some(previous),
            Self::End => None,
        }
    }
}

fn check_part(part: &'static str, value: &str, min: usize) -> Result<(), StoreError> {
    if (min..=MAX_KEY_PART_BYTES).contains(&value.len()) && !value.contains('\0') {
        return Ok(());
    }
    Err(StoreError::Key {
        part,
        value: value.chars().take(64).collect(),
    })
}
