//! Watches: changes of the store as a stream of JSON lines, seen through a selector.
//!
//! An object that begins to match a selector is reported as added and one that no longer matches as
//! deleted, so that a watcher's view equals a list at every revision.

use std::{sync::Arc, time::Duration};

use axum::body::{Body, Bytes};
use control_store::{KeyPrefix, ListOptions, Revision, Store, StoreError, Stored, Watch, WatchItem};
use control_wire::Status;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tracing::error;

use crate::{
    objects::{Unreadable, materialise},
    standing::Standing,
    write::store_failure,
};

/// How often a quiet watch tells how far it has come.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Lines that wait for a slow reader before the store's own buffer fills.
const LINE_BUFFER: usize = 64;
/// Marks the bookmark behind the initial events of a streamed list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Whether an object is in the watcher's view.
pub(crate) type Matcher = Box<dyn Fn(&Value) -> bool + Send + Sync>;
/// How an object is shown.
pub(crate) type Shape = Box<dyn Fn(Value) -> Value + Send + Sync>;

/// What a watch covers and how it is told.
pub(crate) struct WatchRequest {
    /// `Some` resumes after a revision; `None` begins with the objects that exist.
    pub(crate) after: Option<Revision>,
    /// Selector.
    pub(crate) matcher: Matcher,
    /// Representation.
    pub(crate) shape: Shape,
    /// Whether bookmarks are wanted.
    pub(crate) bookmarks: bool,
    /// Whether a bookmark marks the end of the initial objects.
    pub(crate) mark_initial_end: bool,
    /// `apiVersion` and `kind` of the watched objects, for bookmarks.
    pub(crate) type_meta: (String, &'static str),
    /// When the watch ends by itself.
    pub(crate) deadline: Instant,
}

/// Opens a watch on `prefix` and returns the response body. Errors of the store before the first event are the
/// caller's to report.
pub(crate) async fn open(
    store: &Arc<dyn Store>,
    prefix: &KeyPrefix,
    request: WatchRequest,
    standing: Standing,
) -> Result<Body, StoreError> {
    let (initial, after) = match request.after {
        Some(after) => (Vec::new(), after),
        None => {
            let page = store.list(prefix, &ListOptions::default()).await?;
            (page.items, page.revision)
        }
    };
    match store.watch(prefix, after).await {
        Ok(watch) => {
            let from = Told {
                initial,
                after,
                watch,
            };
            Ok(start(store, request, from, standing))
        }
        Err(error) => list_again(error),
    }
}

/// Clients list again when the stream tells them so. Told by the response's own code, kube-rs asks for the same
/// revision for ever.
pub(crate) fn list_again(error: StoreError) -> Result<Body, StoreError> {
    match error {
        StoreError::Compacted { .. } | StoreError::Future { .. } => {
            Ok(Body::from(format!("{}\n", error_event(&store_failure(&error)))))
        }
        other => Err(other),
    }
}

/// What a watch tells: the objects that there are, and what becomes of them.
pub(crate) struct Told {
    /// The objects.
    pub(crate) initial: Vec<Stored>,
    /// The revision that they show.
    pub(crate) after: Revision,
    /// Changes after it.
    pub(crate) watch: Watch,
}

/// The response body of a watch.
pub(crate) fn start(store: &Arc<dyn Store>, request: WatchRequest, from: Told, standing: Standing) -> Body {
    let (lines, body) = mpsc::channel(LINE_BUFFER);
    let watcher = Watcher {
        store: Arc::clone(store),
        request,
        lines,
        last: from.after,
    };
    tokio::spawn(async move {
        let deadline = watcher.request.deadline;
        let closed = watcher.lines.clone();
        tokio::select! {
            refused = standing.ended() => if let Some(status) = refused {
                // A reader that takes nothing is not waited for.
                drop(closed.try_send(Ok(line(&error_event(&status)))));
            },
            () = closed.closed() => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = watcher.run(from.initial, from.watch) => {}
        }
        drop(standing);
    });
    Body::from_stream(ReceiverStream::new(body))
}

/// What an observed change means for a watcher with a selector.
pub(crate) fn transition(
    item: &WatchItem,
    matches: impl Fn(&Value) -> bool,
) -> Result<Option<(&'static str, Value)>, Unreadable> {
    Ok(match item {
        WatchItem::Put { object, previous } => {
            let now = materialise(object, object.revision)?;
            let before = match previous {
                Some(old) => matches(&materialise(old, old.revision)?),
                None => false,
            };
            match (before, matches(&now)) {
                (false, true) => Some(("ADDED", now)),
                (true, true) => Some(("MODIFIED", now)),
                (true, false) => Some(("DELETED", now)),
                (false, false) => None,
            }
        }
        WatchItem::Delete { previous, revision } => {
            let last = materialise(previous, *revision)?;
            matches(&last).then_some(("DELETED", last))
        }
        WatchItem::End => None,
    })
}

struct Watcher {
    store: Arc<dyn Store>,
    request: WatchRequest,
    lines: mpsc::Sender<Result<Bytes, std::convert::Infallible>>,
    last: Revision,
}

/// Why a watch ends.
enum End {
    /// The reader went away.
    Gone,
    /// The stream cannot go on without a gap; the reader is told.
    Broken(Status),
}

impl From<Unreadable> for End {
    fn from(error: Unreadable) -> Self {
        error!(error = &error as &dyn std::error::Error, "watch");
        Self::Broken(Status::internal(error))
    }
}

impl Watcher {
    async fn run(mut self, initial: Vec<Stored>, watch: Watch) {
        if let Err(End::Broken(status)) = self.follow(initial, watch).await {
            let _gone = self.line(&error_event(&status)).await;
        }
    }

    async fn follow(&mut self, initial: Vec<Stored>, mut watch: Watch) -> Result<(), End> {
        for stored in initial {
            let object = materialise(&stored, stored.revision)?;
            if (self.request.matcher)(&object) {
                self.send("ADDED", object).await?;
            }
        }
        if self.request.mark_initial_end {
            self.bookmark(true).await?;
        }
        let mut tick = tokio::time::interval_at(Instant::now() + BOOKMARK_INTERVAL, BOOKMARK_INTERVAL);
        loop {
            let item = tokio::select! {
                item = watch.events.recv() => item,
                _now = tick.tick(), if self.request.bookmarks => {
                    // Whatever the store has published up to `reached` is in the channel by now, so after
                    // draining it this watch has seen everything up to there.
                    let reached = self.store.revision().await.map_err(|error| broken(&error))?;
                    while let Ok(item) = watch.events.try_recv() {
                        self.tell(&item).await?;
                    }
                    self.last = self.last.max(reached);
                    self.bookmark(false).await?;
                    continue;
                }
            };
            match item {
                None => return Ok(()),
                Some(item) => self.tell(&item).await?,
            }
        }
    }

    async fn tell(&mut self, item: &WatchItem) -> Result<(), End> {
        let Some(revision) = item.revision() else {
            let message = format!("too slow: changes after revision {} were dropped", self.last);
            return Err(End::Broken(Status::expired(message)));
        };
        let event = transition(item, &self.request.matcher)?;
        self.last = revision;
        match event {
            Some((kind, object)) => self.send(kind, object).await,
            None => Ok(()),
        }
    }

    async fn send(&mut self, kind: &'static str, object: Value) -> Result<(), End> {
        let object = (self.request.shape)(object);
        self.line(&json!({"type": kind, "object": object})).await
    }

    async fn bookmark(&mut self, initial_end: bool) -> Result<(), End> {
        let mut metadata = json!({"resourceVersion": self.last.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let (api_version, kind) = &self.request.type_meta;
        // In the form that was asked for, too: who reads metadata alone knows no other kind.
        let object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
        self.send("BOOKMARK", object).await
    }

    async fn line(&self, event: &Value) -> Result<(), End> {
        self.lines
            .send(Ok(line(event)))
            .await
            .map_err(|_closed| End::Gone)
    }
}

fn line(event: &Value) -> Bytes {
    let mut line = event.to_string();
    line.push('\n');
    Bytes::from(line)
}

/// The event that ends a stream which cannot go on.
fn error_event(status: &Status) -> Value {
    json!({"type": "ERROR", "object": status.to_json()})
}

fn broken(error: &StoreError) -> End {
    error!(error = error as &dyn std::error::Error, "watch");
    End::Broken(Status::internal(error))
}

#[cfg(test)]
mod tests {
    use control_store::ObjectKey;

    use super::*;

    fn stored(labels: &Value, revision: Revision) -> Stored {
        let key = ObjectKey {
            resource: "core/pods".into(),
            namespace: "a".into(),
            name: "p".into(),
        };
        let value = json!({"metadata": {"name": "p", "labels": labels}})
            .to_string()
            .into_bytes();
        Stored {
            key,
            uid: "u".into(),
            revision,
            value: value.into(),
        }
    }

    #[test]
    fn a_selector_turns_changes_into_comings_and_goings() {
        let matches = |object: &Value| object.pointer("/metadata/labels/app") == Some(&json!("web"));
        let (web, db) = (json!({"app": "web"}), json!({"app": "db"}));
        let put = |new: &Value, old: Option<&Value>| WatchItem::Put {
            object: stored(new, 7),
            previous: old.map(|old| stored(old, 6)),
        };
        let kind = |item| {
            transition(&item, matches).unwrap().map(|(kind, object)| {
                assert_eq!(object["metadata"]["resourceVersion"], "7");
                kind
            })
        };
        assert_eq!(kind(put(&web, None)), Some("ADDED"));
        assert_eq!(kind(put(&web, Some(&db))), Some("ADDED"));
        assert_eq!(kind(put(&web, Some(&web))), Some("MODIFIED"));
        assert_eq!(kind(put(&db, Some(&web))), Some("DELETED"));
        assert_eq!(kind(put(&db, Some(&db))), None);
        assert_eq!(
            kind(WatchItem::Delete {
                previous: stored(&web, 6),
                revision: 7
            }),
            Some("DELETED")
        );
        assert_eq!(
            kind(WatchItem::Delete {
                previous: stored(&db, 6),
                revision: 7
            }),
            None
        );
    }
}
