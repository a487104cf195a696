//! The embedded store and its files, as an attacker with the disk sees them.

#![expect(
    clippy::unwrap_used,
    reason = "clippy sees tests only in functions marked as such, not in their helpers"
)]

use std::{error::Error, fs, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use control_store::{
    Change, Embedded, Expected, KeyPrefix, Keyring, ListOptions, ObjectKey, SealError, Store, StoreError,
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

const OBJECTS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("objects");

fn open(dir: &Path) -> Result<Embedded, StoreError> {
    Embedded::open(
        &dir.join("store.redb"),
        Keyring::load_or_create(&dir.join("kek")).unwrap(),
    )
}

fn secret(name: &str) -> ObjectKey {
    ObjectKey::new("core/secrets", "ns", name)
}

async fn create(store: &Embedded, name: &str, value: &str) -> u64 {
    let change = Change::Put {
        uid: format!("uid-{name}"),
        value: value.into(),
    };
    store
        .write(&secret(name), Expected::Absent, change)
        .await
        .unwrap()
}

/// Rewrites rows behind the store's back.
fn tamper(dir: &Path, change: impl FnOnce(&mut Vec<(Vec<u8>, Vec<u8>)>)) {
    let database = Database::open(dir.join("store.redb")).unwrap();
    let mut rows: Vec<_> = {
        let read = database.begin_read().unwrap();
        let table = read.open_table(OBJECTS).unwrap();
        table
            .iter()
            .unwrap()
            .map(|row| row.unwrap())
            .map(|(k, v)| (k.value().to_vec(), v.value().to_vec()))
            .collect()
    };
    change(&mut rows);
    let write = database.begin_write().unwrap();
    {
        let mut table = write.open_table(OBJECTS).unwrap();
        table.retain(|_, _| false).unwrap();
        for (key, value) in rows {
            table.insert(key.as_slice(), value.as_slice()).unwrap();
        }
    }
    write.commit().unwrap();
}

fn seal_error(result: Result<impl std::fmt::Debug, StoreError>) -> SealError {
    match result.unwrap_err() {
        StoreError::Seal { source, .. } | StoreError::ForeignKeyring { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn two_values_swapped_in_the_file_are_an_error() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).unwrap();
    create(&store, "a", "for a").await;
    create(&store, "b", "for b").await;
    drop(store);

    tamper(tmp.path(), |rows| {
        let (left, right) = rows.split_at_mut(1);
        std::mem::swap(&mut left[0].1, &mut right[0].1);
    });
    let store = open(tmp.path()).unwrap();
    for name in ["a", "b"] {
        let error = store.get(&secret(name)).await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("core/secrets {name:?} in namespace \"ns\"")),
            "{error}"
        );
        assert!(error.source().unwrap().to_string().contains("another object"));
    }
    let all = store
        .list(&KeyPrefix::all("core/secrets"), &ListOptions::default())
        .await;
    assert_eq!(seal_error(all), SealError::Authentication);
    let overwrite = Change::Put {
        uid: "u".into(),
        value: b"x".to_vec(),
    };
    let written = store.write(&secret("a"), Expected::At(1), overwrite).await;
    assert_eq!(seal_error(written), SealError::Authentication);
}

#[tokio::test]
async fn flipped_and_truncated_rows_are_an_error() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).unwrap();
    create(&store, "a", "value").await;
    drop(store);
    let mut original = Vec::new();
    tamper(tmp.path(), |rows| original = rows.clone());
    let last = original[0].1.len() - 1;
    // Format, key id, revision, uid, nonce, data key, value, tag.
    for position in [0, 1, 9, 20, 26, 40, last - 18, last] {
        tamper(tmp.path(), |rows| {
            *rows = original.clone();
            rows[0].1[position] ^= 1;
        });
        let store = open(tmp.path()).unwrap();
        assert!(store.get(&secret("a")).await.is_err(), "byte {position}");
        drop(store);
        tamper(tmp.path(), |rows| {
            *rows = original.clone();
            rows[0].1.truncate(position);
        });
        let store = open(tmp.path()).unwrap();
        assert!(store.get(&secret("a")).await.is_err(), "length {position}");
    }
    tamper(tmp.path(), |rows| *rows = original.clone());
    assert!(
        open(tmp.path()).unwrap().get(&secret("a")).await.is_ok(),
        "the original still opens"
    );
}

#[tokio::test]
async fn a_secret_stands_in_no_file() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).unwrap();
    let value = "correct-horse-battery-staple";
    let revision = create(&store, "visible-name", value).await;
    for n in 0..50 {
        create(&store, &format!("s{n}"), &value.repeat(100)).await;
    }
    store
        .write(&secret("visible-name"), Expected::At(revision), Change::Delete)
        .await
        .unwrap();

    let mut seen_name = false;
    // While it runs, and after it closed.
    for store in [Some(store), None] {
        for file in fs::read_dir(tmp.path()).unwrap() {
            let file = file.unwrap();
            assert_eq!(
                file.metadata().unwrap().mode() & 0o777,
                0o600,
                "{:?}",
                file.path()
            );
            let bytes = fs::read(file.path()).unwrap();
            let contains = |text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
            assert!(
                !contains(value) && !contains("horse-battery"),
                "{:?}",
                file.path()
            );
            seen_name |= contains("visible-name");
        }
        drop(store);
    }
    assert!(seen_name, "the search finds what is there");
}

#[tokio::test]
async fn another_key_file_is_refused_at_once() {
    let tmp = tempfile::tempdir().unwrap();
    drop(open(tmp.path()).unwrap());
    fs::remove_file(tmp.path().join("kek")).unwrap();
    let error = open(tmp.path()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("put the key file back"), "{error}");
    assert!(matches!(
        seal_error(Err::<(), _>(error)),
        SealError::UnknownKey { .. }
    ));
}

#[tokio::test]
async fn one_process_at_a_time() {
    let tmp = tempfile::tempdir().unwrap();
    let _first = open(tmp.path()).unwrap();
    let error = open(tmp.path()).map(|_| ()).unwrap_err();
    assert!(
        error
            .source()
            .is_some_and(|s| s.to_string().contains("already open")),
        "{:?}",
        error.source()
    );
}

#[tokio::test]
async fn survives_a_restart_and_never_reuses_a_revision() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).unwrap();
    let kept = create(&store, "kept", "1").await;
    let gone = create(&store, "gone", "1").await;
    let deleted = store
        .write(&secret("gone"), Expected::At(gone), Change::Delete)
        .await
        .unwrap();
    let prefix = KeyPrefix::namespaced("core/secrets", "ns");
    let mut watch = store.watch(&prefix, deleted).await.unwrap();
    drop(store);
    assert!(watch.events.recv().await.is_none(), "a watch ends with the store");

    let store = open(tmp.path()).unwrap();
    assert_eq!(store.revision().await.unwrap(), deleted);
    let found = store.get(&secret("kept")).await.unwrap().unwrap();
    assert_eq!(
        (found.revision, &*found.value, found.uid.as_str()),
        (kept, b"1".as_slice(), "uid-kept")
    );
    assert!(store.get(&secret("gone")).await.unwrap().is_none());
    // What happened before is no longer known; from now on nothing is missed.
    assert!(matches!(
        store.watch(&prefix, kept).await,
        Err(StoreError::Compacted { requested, oldest }) if (requested, oldest) == (kept, deleted)
    ));
    let past = ListOptions {
        at: Some(kept),
        ..Default::default()
    };
    assert!(matches!(
        store.list(&prefix, &past).await,
        Err(StoreError::Compacted { .. })
    ));
    let mut watch = store.watch(&prefix, deleted).await.unwrap();
    let next = create(&store, "next", "1").await;
    assert_eq!(next, deleted + 1);
    assert_eq!(watch.events.recv().await.unwrap().revision(), Some(next));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_writers_one_wins_each_round_and_watchers_see_the_order() {
    let tmp = tempfile::tempdir().unwrap();
    let store = Arc::new(open(tmp.path()).unwrap());
    let mut watch = store.watch(&KeyPrefix::all("core/secrets"), 0).await.unwrap();
    let writers: Vec<_> = (0..16)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut won = 0;
                for _ in 0..10 {
                    let current = store.get(&secret("contended")).await.unwrap();
                    let expected = current.map_or(Expected::Absent, |c| Expected::At(c.revision));
                    let change = Change::Put {
                        uid: "u".into(),
                        value: format!("{n}").into(),
                    };
                    match store.write(&secret("contended"), expected, change).await {
                        Ok(_) => won += 1,
                        Err(StoreError::Conflict { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
                won
            })
        })
        .collect();
    let mut won = 0;
    for writer in writers {
        won += writer.await.unwrap();
    }
    assert_eq!(store.revision().await.unwrap(), won);
    for revision in 1..=won {
        let item = watch.events.recv().await.unwrap();
        assert_eq!(item.revision(), Some(revision));
        assert_eq!(
            item.previous().map(|p| p.revision),
            (revision > 1).then(|| revision - 1)
        );
    }
}
