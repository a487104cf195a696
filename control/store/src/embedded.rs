//! The store for one machine: a redb file, one writer thread, readers on snapshots.
//!
//! Writes that arrive while a commit is under way wait for it together and share the next one, so the price
//! of `fsync` is paid per batch and not per write. A change becomes visible to watchers, and to readers, in
//! revision order and only when it is on the disk.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use async_trait::async_trait;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction,
    backends::FileBackend,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Change, Expected, KeyPrefix, Keyring, ListOptions, ListPage, MAX_VALUE_BYTES, ObjectKey, Revision, Store,
    StoreError, Stored, Watch, WatchItem,
    history::History,
    rows::{object_key, row_key, row_range},
    seal::{open, seal},
};

/// Sealed values under `resource NUL namespace NUL name`.
const OBJECTS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("objects");

/// `revision`: last revision, 8 bytes big endian. `check`: a sealed value that only the right keys open.
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const CHECK: &str = "check";

/// Pages of the file kept in memory. redb would take a gigabyte.
const CACHE_BYTES: usize = 16 << 20;

/// Most writes in one commit: bounds how long the first of them waits.
const MAX_BATCH: usize = 256;

/// Writes that may wait for the writer before callers are held back.
const QUEUE: usize = 1024;

/// Store in one file of this machine. Dropping it ends all watches and waits for the commit under way.
pub struct Embedded {
    shared: Arc<Shared>,
    writes: Option<mpsc::Sender<WriteRequest>>,
    writer: Option<thread::JoinHandle<()>>,
}

struct Shared {
    database: Database,
    keyring: Keyring,
    history: Mutex<History>,
    /// Signalled whenever history grows or closes.
    published: Condvar,
}

struct WriteRequest {
    key: ObjectKey,
    expected: Expected,
    change: Change,
    reply: oneshot::Sender<Result<Revision, StoreError>>,
}

impl Embedded {
    /// Opens the file at `path`, or creates it (mode 0600). Fails when another process has it open, and when
    /// it was sealed with other keys. Blocks on the disk.
    pub fn open(path: &Path, keyring: Keyring) -> Result<Self, StoreError> {
        let file = open_file(path).map_err(backend("open the file"))?;
        let file = FileBackend::new(file).map_err(backend("lock the file"))?;
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(file)
            .map_err(backend("open the database"))?;
        let revision = prepare(&database, &keyring, path)?;

        let shared = Arc::new(Shared {
            database,
            keyring,
            history: Mutex::new(History::new(revision)),
            published: Condvar::new(),
        });
        let (writes, requests) = mpsc::channel(QUEUE);
        let writer = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.write_until_closed(requests)
            })
            .map_err(backend("start the writer thread"))?;
        Ok(Self {
            shared,
            writes: Some(writes),
            writer: Some(writer),
        })
    }

    /// Runs a read where blocking on the disk is allowed.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || read(&shared))
            .await
            .map_err(backend("read"))?
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &ObjectKey) -> Result<Option<Stored>, StoreError> {
        key.check()?;
        let key = key.clone();
        self.read(move |shared| shared.get(key)).await
    }

    async fn list(&self, prefix: &KeyPrefix, options: &ListOptions) -> Result<ListPage, StoreError> {
        prefix.check()?;
        if let Some(after) = &options.after {
            after.check()?;
        }
        let (prefix, options) = (prefix.clone(), options.clone());
        self.read(move |shared| shared.list(&prefix, &options)).await
    }

    async fn write(
        &self,
        key: &ObjectKey,
        expected: Expected,
        change: Change,
    ) -> Result<Revision, StoreError> {
        key.check()?;
        if let Change::Put { value, .. } = &change
            && value.len() > MAX_VALUE_BYTES
        {
            return Err(StoreError::TooLarge {
                key: key.clone(),
                bytes: value.len(),
            });
        }
        let (reply, answer) = oneshot::channel();
        let request = WriteRequest {
            key: key.clone(),
            expected,
            change,
            reply,
        };
        // Both channels close for one reason only: the writer is gone.
        let writes = self.writes.as_ref().ok_or(StoreError::Closed)?;
        writes.send(request).await.map_err(|_e| StoreError::Closed)?;
        answer.await.map_err(|_e| StoreError::Closed)?
    }

    async fn watch(&self, prefix: &KeyPrefix, after: Revision) -> Result<Watch, StoreError> {
        prefix.check()?;
        self.shared.history().watch(prefix, after)
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.shared.history().last())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        drop(self.writes.take());
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the store's writer thread panicked");
        }
    }
}

impl Shared {
    fn history(&self) -> MutexGuard<'_, History> {
        // Nothing between lock and unlock leaves history half changed, not even by a panic.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_until_closed(&self, mut requests: mpsc::Receiver<WriteRequest>) {
        let _close = CloseOnDrop(self);
        let mut batch = Vec::new();
        while let Some(first) = requests.blocking_recv() {
            batch.push(first);
            while batch.len() < MAX_BATCH
                && let Ok(next) = requests.try_recv()
            {
                batch.push(next);
            }
            self.commit(batch.drain(..));
        }
    }

    /// Commits a batch and only then tells callers and watchers.
    fn commit(&self, batch: impl Iterator<Item = WriteRequest>) {
        let (replies, writes): (Vec<_>, Vec<_>) =
            batch.map(|w| (w.reply, (w.key, w.expected, w.change))).unzip();
        let results = self.apply(writes);
        let mut outcomes = Vec::with_capacity(replies.len());
        match results {
            Ok(results) => {
                let mut history = self.history();
                for result in results {
                    outcomes.push(result.map(|change| {
                        let revision = change.revision().unwrap_or_default();
                        history.push(change);
                        revision
                    }));
                }
            }
            Err(failure) => outcomes.extend(replies.iter().map(|_| Err(failure.to_error()))),
        }
        self.published.notify_all();
        for (reply, outcome) in replies.into_iter().zip(outcomes) {
            // A caller that stopped waiting has nobody to tell.
            drop(reply.send(outcome));
        }
    }

    /// The outer error means that nothing was written, an inner one that this write was not.
    fn apply(
        &self,
        writes: Vec<(ObjectKey, Expected, Change)>,
    ) -> Result<Vec<Result<WatchItem, StoreError>>, CommitFailure> {
        let transaction = self.database.begin_write().map_err(CommitFailure::new("begin"))?;
        let mut results = Vec::with_capacity(writes.len());
        let changed;
        {
            let mut meta = transaction
                .open_table(META)
                .map_err(CommitFailure::new("open the table"))?;
            let mut objects = transaction
                .open_table(OBJECTS)
                .map_err(CommitFailure::new("open the table"))?;
            let first = stored_revision(&meta).map_err(|_e| CommitFailure::Counter)?;
            let mut last = first;
            for (key, expected, change) in writes {
                let result = self.apply_one(&mut objects, last + 1, key, expected, change)?;
                last += u64::from(result.is_ok());
                results.push(result);
            }
            changed = last != first;
            meta.insert(REVISION, last.to_be_bytes().as_slice())
                .map_err(CommitFailure::new("write"))?;
        }
        if changed {
            transaction.commit().map_err(CommitFailure::new("commit"))?;
        } else {
            transaction.abort().map_err(CommitFailure::new("abort"))?;
        }
        Ok(results)
    }

    fn apply_one(
        &self,
        objects: &mut Table<'_, &'static [u8], &'static [u8]>,
        revision: Revision,
        key: ObjectKey,
        expected: Expected,
        change: Change,
    ) -> Result<Result<WatchItem, StoreError>, CommitFailure> {
        let row = row_key(&key);
        let previous = {
            let found = objects.get(row.as_slice()).map_err(CommitFailure::new("read"))?;
            match found
                .map(|sealed| self.unseal(key.clone(), sealed.value()))
                .transpose()
            {
                Ok(previous) => previous,
                Err(error) => return Ok(Err(error)),
            }
        };
        let actual = previous.as_ref().map(|p| p.revision);
        let matches = match expected {
            Expected::Absent => actual.is_none(),
            Expected::At(revision) => actual == Some(revision),
        };
        if !matches {
            return Ok(Err(StoreError::Conflict { key, actual }));
        }
        match (change, previous) {
            (Change::Put { uid, value }, previous) => {
                let sealed = match seal(&self.keyring, &key, &uid, revision, &value) {
                    Ok(sealed) => sealed,
                    Err(source) => return Ok(Err(StoreError::Seal { key, source })),
                };
                objects
                    .insert(row.as_slice(), sealed.as_slice())
                    .map_err(CommitFailure::new("write"))?;
                Ok(Ok(WatchItem::Put {
                    object: Stored {
                        key,
                        uid,
                        revision,
                        value: value.into(),
                    },
                    previous,
                }))
            }
            (Change::Delete, Some(previous)) => {
                objects
                    .remove(row.as_slice())
                    .map_err(CommitFailure::new("delete"))?;
                Ok(Ok(WatchItem::Delete { previous, revision }))
            }
            (Change::Delete, None) => Ok(Err(StoreError::Conflict { key, actual: None })),
        }
    }

    fn get(&self, key: ObjectKey) -> Result<Option<Stored>, StoreError> {
        let (transaction, _) = self.snapshot()?;
        let objects = transaction
            .open_table(OBJECTS)
            .map_err(backend("open the table"))?;
        let found = objects.get(row_key(&key).as_slice()).map_err(backend("read"))?;
        found.map(|sealed| self.unseal(key, sealed.value())).transpose()
    }

    fn list(&self, prefix: &KeyPrefix, options: &ListOptions) -> Result<ListPage, StoreError> {
        let (transaction, current) = self.snapshot()?;
        let revision = options.at.unwrap_or(current);
        let mut then = match revision == current {
            true => Default::default(),
            false => self.history().undo(prefix, revision, current)?,
        };
        if let Some(after) = &options.after {
            then = then.split_off(after);
            then.remove(after);
        }
        let mut then = then.into_iter().map(|(key, was)| (row_key(&key), was)).peekable();

        let objects = transaction
            .open_table(OBJECTS)
            .map_err(backend("open the table"))?;
        let (mut start, end) = row_range(prefix);
        if let Some(after) = &options.after {
            // Rows end in a name without NUL, so NUL behind one is the smallest key after it.
            start = start.max([row_key(after), vec![0]].concat());
        }
        if start >= end {
            return Ok(ListPage {
                items: Vec::new(),
                revision,
                more: false,
            });
        }
        let mut rows = objects
            .range(start.as_slice()..end.as_slice())
            .map_err(backend("read"))?;
        let mut row = rows.next().transpose().map_err(backend("read"))?;

        let mut items = Vec::new();
        loop {
            let full = options.limit != 0 && items.len() == options.limit;
            let next_row = row.as_ref().map(|(key, _)| key.value());
            // What history remembers comes before, or instead of, what the file says now.
            let remembered = then.next_if(|(key, _)| next_row.is_none_or(|row| key.as_slice() <= row));
            if let Some((key, was)) = remembered {
                if next_row == Some(key.as_slice()) {
                    row = rows.next().transpose().map_err(backend("read"))?;
                }
                match was {
                    Some(_) if full => {
                        return Ok(ListPage {
                            items,
                            revision,
                            more: true,
                        });
                    }
                    Some(object) => items.push(object),
                    None => {}
                }
                continue;
            }
            let Some((key, sealed)) = &row else {
                return Ok(ListPage {
                    items,
                    revision,
                    more: false,
                });
            };
            if full {
                return Ok(ListPage {
                    items,
                    revision,
                    more: true,
                });
            }
            items.push(self.unseal(object_key(key.value())?, sealed.value())?);
            row = rows.next().transpose().map_err(backend("read"))?;
        }
    }

    /// The newest state and its revision. Waits out the moment between a commit and its publication, so
    /// that a reader never sees a revision from which it could not watch.
    fn snapshot(&self) -> Result<(ReadTransaction, Revision), StoreError> {
        let transaction = self.database.begin_read().map_err(backend("begin"))?;
        let meta = transaction.open_table(META).map_err(backend("open the table"))?;
        let revision = stored_revision(&meta)?;
        let history = self
            .published
            .wait_while(self.history(), |history| {
                history.last() < revision && !history.closed()
            })
            .unwrap_or_else(PoisonError::into_inner);
        if history.last() < revision {
            return Err(StoreError::Closed);
        }
        Ok((transaction, revision))
    }

    fn unseal(&self, key: ObjectKey, sealed: &[u8]) -> Result<Stored, StoreError> {
        match open(&self.keyring, &key, sealed) {
            Ok((header, value)) => Ok(Stored {
                uid: header.uid.to_owned(),
                revision: header.revision,
                value: value.into(),
                key,
            }),
            Err(source) => Err(StoreError::Seal { key, source }),
        }
    }
}

/// Readers and watchers must not wait for a writer that is gone, however it went.
struct CloseOnDrop<'a>(&'a Shared);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.history().close();
        self.0.published.notify_all();
    }
}

/// Failure of a whole commit; every caller in the batch gets it.
enum CommitFailure {
    Backend {
        operation: &'static str,
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    Counter,
}

impl CommitFailure {
    fn new<E: std::error::Error + Send + Sync + 'static>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Backend {
            operation,
            source: Arc::new(source),
        }
    }

    fn to_error(&self) -> StoreError {
        match self {
            Self::Backend { operation, source } => StoreError::Backend {
                operation,
                source: Arc::clone(source),
            },
            Self::Counter => StoreError::Counter,
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    // A file whose name is not on the disk is gone after a power failure, however durable its content.
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()?;
    Ok(file)
}

/// Creates what a new file lacks, proves that the keys fit, returns the last revision.
fn prepare(database: &Database, keyring: &Keyring, path: &Path) -> Result<Revision, StoreError> {
    let transaction = database.begin_write().map_err(backend("begin"))?;
    let revision = prepare_tables(&transaction, keyring, path)?;
    transaction.commit().map_err(backend("commit"))?;
    Ok(revision)
}

fn prepare_tables(
    transaction: &WriteTransaction,
    keyring: &Keyring,
    path: &Path,
) -> Result<Revision, StoreError> {
    transaction
        .open_table(OBJECTS)
        .map_err(backend("create the table"))?;
    let mut meta = transaction
        .open_table(META)
        .map_err(backend("create the table"))?;
    let key = ObjectKey::new("palisade/check", "", "check");
    let fresh = {
        let check = meta.get(CHECK).map_err(backend("read"))?;
        if let Some(sealed) = &check {
            open(keyring, &key, sealed.value()).map_err(|source| StoreError::ForeignKeyring {
                file: path.display().to_string(),
                source,
            })?;
        }
        check.is_none()
    };
    if fresh {
        let sealed = seal(keyring, &key, "", 0, b"").map_err(|source| StoreError::Seal { key, source })?;
        meta.insert(CHECK, sealed.as_slice()).map_err(backend("write"))?;
        meta.insert(REVISION, 0u64.to_be_bytes().as_slice())
            .map_err(backend("write"))?;
    }
    stored_revision(&meta)
}

fn stored_revision(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Revision, StoreError> {
    let value = meta
        .get(REVISION)
        .map_err(backend("read"))?
        .ok_or(StoreError::Counter)?;
    value
        .value()
        .try_into()
        .map(u64::from_be_bytes)
        .map_err(|_e| StoreError::Counter)
}

fn backend<E: std::error::Error + Send + Sync + 'static>(
    operation: &'static str,
) -> impl Fn(E) -> StoreError {
    move |source| StoreError::Backend {
        operation,
        source: Arc::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store.redb"), Keyring::ephemeral().unwrap()).unwrap();
        crate::suite::run(&store).await;
    }
}
