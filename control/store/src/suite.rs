//! What every implementation of [`Store`] must do, whatever lies beneath it.

use crate::{
    Change, Expected, KeyPrefix, ListOptions, ListPage, ObjectKey, Revision, Store, StoreError, WatchItem,
};

const PODS: &str = "core/pods";

/// Runs all checks on an empty store.
pub(crate) async fn run(store: &dyn Store) {
    compare_and_set(store).await;
    refuses_keys_that_collide(store).await;
    prefixes_end_at_boundaries(store).await;
    pages_show_one_revision(store).await;
    watch_has_no_gaps(store).await;
    old_and_future_revisions(store).await;
}

fn pod(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new(PODS, namespace, name)
}

async fn put(
    store: &dyn Store,
    key: &ObjectKey,
    expected: Expected,
    value: &str,
) -> Result<Revision, StoreError> {
    store
        .write(
            key,
            expected,
            Change::Put {
                uid: "u".to_owned(),
                value: value.into(),
            },
        )
        .await
}

fn names(page: &ListPage) -> Vec<&str> {
    page.items.iter().map(|o| o.key.name.as_str()).collect()
}

async fn compare_and_set(store: &dyn Store) {
    let key = pod("cas", "a");
    assert_eq!(store.revision().await.unwrap(), 0);
    assert!(store.get(&key).await.unwrap().is_none());
    assert!(matches!(
        store.write(&key, Expected::At(1), Change::Delete).await,
        Err(StoreError::Conflict { actual: None, .. })
    ));

    let first = put(store, &key, Expected::Absent, "1").await.unwrap();
    assert!(matches!(
        put(store, &key, Expected::Absent, "x").await,
        Err(StoreError::Conflict { actual: Some(r), .. }) if r == first
    ));
    let second = put(store, &key, Expected::At(first), "2").await.unwrap();
    assert_eq!(second, first + 1, "a refused write takes no revision");
    assert!(matches!(
        put(store, &key, Expected::At(first), "x").await,
        Err(StoreError::Conflict { .. })
    ));

    let found = store.get(&key).await.unwrap().unwrap();
    assert_eq!(
        (found.revision, &*found.value, found.uid.as_str()),
        (second, b"2".as_slice(), "u")
    );
    let deleted = store
        .write(&key, Expected::At(second), Change::Delete)
        .await
        .unwrap();
    assert_eq!(store.revision().await.unwrap(), deleted);
    assert!(store.get(&key).await.unwrap().is_none());
}

async fn refuses_keys_that_collide(store: &dyn Store) {
    for key in [
        pod("a\0b", "c"),
        pod("a", "b\0c"),
        pod("a", ""),
        pod("a", &"n".repeat(600)),
    ] {
        assert!(
            matches!(
                put(store, &key, Expected::Absent, "x").await,
                Err(StoreError::Key { .. })
            ),
            "{key:?}"
        );
    }
    let huge = Change::Put {
        uid: "u".into(),
        value: vec![0; crate::MAX_VALUE_BYTES + 1],
    };
    assert!(matches!(
        store.write(&pod("a", "b"), Expected::Absent, huge).await,
        Err(StoreError::TooLarge { .. })
    ));
}

async fn prefixes_end_at_boundaries(store: &dyn Store) {
    let keys = [
        ObjectKey::new("edge/a", "", "cluster"),
        ObjectKey::new("edge/a", "n", "1"),
        ObjectKey::new("edge/a", "n-2", "2"),
        ObjectKey::new("edge/ab", "n", "3"),
    ];
    for key in &keys {
        put(store, key, Expected::Absent, "x").await.unwrap();
    }
    for (prefix, expected) in [
        (KeyPrefix::all("edge/a"), vec!["cluster", "1", "2"]),
        (KeyPrefix::namespaced("edge/a", "n"), vec!["1"]),
        (KeyPrefix::namespaced("edge/a", ""), vec!["cluster"]),
        (KeyPrefix::all("edge"), vec![]),
    ] {
        let page = store.list(&prefix, &ListOptions::default()).await.unwrap();
        assert_eq!(names(&page), expected, "{prefix:?}");
    }
    // A continue key of another resource neither widens the list nor fails it.
    let options = ListOptions {
        after: Some(ObjectKey::new("a", "", "x")),
        ..Default::default()
    };
    assert_eq!(
        names(&store.list(&KeyPrefix::all("edge/ab"), &options).await.unwrap()),
        ["3"]
    );
    let options = ListOptions {
        after: Some(ObjectKey::new("z", "", "x")),
        ..Default::default()
    };
    assert!(
        store
            .list(&KeyPrefix::all("edge/ab"), &options)
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

async fn pages_show_one_revision(store: &dyn Store) {
    let prefix = KeyPrefix::namespaced(PODS, "pages");
    let key = |n: u32| pod("pages", &format!("p{n:02}"));
    let mut revisions = Vec::new();
    for n in [0, 2, 4, 6, 8] {
        revisions.push(put(store, &key(n), Expected::Absent, "old").await.unwrap());
    }
    let first = store
        .list(
            &prefix,
            &ListOptions {
                limit: 2,
                ..Default::default()
            },
        )
        .await
        .unwrap();
    assert_eq!((names(&first), first.more), (vec!["p00", "p02"], true));

    // Between the pages one object changes, two appear (one of them goes again), one goes, one is replaced.
    put(store, &key(4), Expected::At(revisions[2]), "new")
        .await
        .unwrap();
    put(store, &key(5), Expected::Absent, "new").await.unwrap();
    let passing = put(store, &key(7), Expected::Absent, "new").await.unwrap();
    store
        .write(&key(7), Expected::At(passing), Change::Delete)
        .await
        .unwrap();
    store
        .write(&key(6), Expected::At(revisions[3]), Change::Delete)
        .await
        .unwrap();
    let gone = store
        .write(&key(8), Expected::At(revisions[4]), Change::Delete)
        .await
        .unwrap();
    put(store, &key(8), Expected::Absent, "new").await.unwrap();

    let mut after = Some(key(2));
    let mut rest = Vec::new();
    loop {
        let options = ListOptions {
            limit: 1,
            after,
            at: Some(first.revision),
        };
        let page = store.list(&prefix, &options).await.unwrap();
        assert_eq!(page.revision, first.revision);
        after = page.items.last().map(|o| o.key.clone());
        rest.extend(page.items);
        if !page.more {
            break;
        }
    }
    let seen: Vec<_> = rest
        .iter()
        .map(|o| (o.key.name.as_str(), &*o.value, o.revision))
        .collect();
    assert_eq!(
        seen,
        [
            ("p04", b"old".as_slice(), revisions[2]),
            ("p06", b"old".as_slice(), revisions[3]),
            ("p08", b"old".as_slice(), revisions[4]),
        ]
    );
    let then = ListOptions {
        at: Some(gone),
        ..Default::default()
    };
    assert_eq!(
        names(&store.list(&prefix, &then).await.unwrap()),
        ["p00", "p02", "p04", "p05"]
    );
    let now = store.list(&prefix, &ListOptions::default()).await.unwrap();
    assert_eq!(
        (names(&now), now.more),
        (vec!["p00", "p02", "p04", "p05", "p08"], false)
    );
}

async fn watch_has_no_gaps(store: &dyn Store) {
    let prefix = KeyPrefix::namespaced(PODS, "watch");
    let key = pod("watch", "a");
    let start = store.revision().await.unwrap();
    let created = put(store, &key, Expected::Absent, "1").await.unwrap();
    put(store, &pod("elsewhere", "a"), Expected::Absent, "x")
        .await
        .unwrap();

    let mut from_start = store.watch(&prefix, start).await.unwrap();
    let mut from_created = store.watch(&prefix, created).await.unwrap();
    let updated = put(store, &key, Expected::At(created), "2").await.unwrap();
    let deleted = store
        .write(&key, Expected::At(updated), Change::Delete)
        .await
        .unwrap();

    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(from_start.events.recv().await.unwrap());
    }
    let revisions: Vec<_> = seen.iter().map(|i| i.revision().unwrap()).collect();
    assert_eq!(revisions, [created, updated, deleted]);
    assert!(matches!(&seen[0], WatchItem::Put { object, previous: None } if &*object.value == b"1"));
    assert!(matches!(&seen[1], WatchItem::Put { previous: Some(p), .. } if &*p.value == b"1"));
    assert!(matches!(&seen[2], WatchItem::Delete { previous, .. } if &*previous.value == b"2"));
    for expected in &seen[1..] {
        assert_eq!(from_created.events.recv().await.unwrap(), *expected);
    }

    // A list and a watch from its revision together see every write, also under concurrency.
    let mut versions = Vec::new();
    for n in 0..20 {
        let key = pod("watch", &format!("c{n}"));
        versions.push(put(store, &key, Expected::Absent, "x").await.unwrap());
        let page = store.list(&prefix, &ListOptions::default()).await.unwrap();
        store.watch(&prefix, page.revision).await.unwrap();
    }
    for version in versions {
        assert_eq!(from_start.events.recv().await.unwrap().revision(), Some(version));
    }
    assert!(
        from_start.events.try_recv().is_err(),
        "nothing of other namespaces"
    );
}

async fn old_and_future_revisions(store: &dyn Store) {
    let current = store.revision().await.unwrap();
    let prefix = KeyPrefix::all(PODS);
    assert!(matches!(
        store.watch(&prefix, current + 1).await,
        Err(StoreError::Future { .. })
    ));
    let options = ListOptions {
        at: Some(current + 1),
        ..Default::default()
    };
    assert!(matches!(
        store.list(&prefix, &options).await,
        Err(StoreError::Future { .. })
    ));
}
