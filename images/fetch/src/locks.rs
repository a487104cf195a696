//! One task at a time per digest.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use api::Digest;

/// Locks by digest, so that several tasks that need the same content do the work once. Each task locks,
/// looks whether the work is done by now, and only then does it.
#[derive(Debug, Default)]
pub struct DigestLocks {
    locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl DigestLocks {
    /// Waits for whoever works on `digest`, and holds others off until the guard is dropped.
    pub async fn lock(&self, digest: Digest) -> tokio::sync::OwnedMutexGuard<()> {
        self.entry(digest).lock_owned().await
    }

    fn entry(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(&digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(digest, Arc::downgrade(&lock));
        lock
    }
}
