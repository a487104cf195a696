//! Get, list and watch.

use std::time::Duration;

use api::{resources::Resource, selector::Labels};
use axum::response::Response;
use control_store::{ListOptions, Stored};
use control_wire::{
    Status, negotiate,
    query::{Continue, ListQuery, Revision, RevisionMatch},
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::error;

use crate::{
    Server,
    call::{Call, Outcome},
    objects, respond, shape,
    standing::Standing,
    watch::{self, Matcher, Shape, WatchRequest},
    write::store_failure,
};

/// A watch ends after this time when its client does not say.
const DEFAULT_WATCH: Duration = Duration::from_secs(30 * 60);
/// Objects read from the store at once while a selector is applied.
const CHUNK: usize = 500;

impl Server {
    /// `GET` on an object.
    pub(crate) async fn get(&self, call: &Call) -> Result<Outcome, Status> {
        self.load(call).await.map(Outcome::ok)
    }

    /// `GET` on a collection.
    pub(crate) async fn list(&self, call: &Call) -> Result<Outcome, Status> {
        let query = ListQuery::parse(call.target.resource, &call.parameters)?;
        let (mut list, items) = self.list_objects(call, &query).await?;
        list["items"] = Value::Array(items);
        Ok(Outcome::ok(list))
    }

    /// `GET` on a collection with `watch=true`.
    pub(crate) async fn watch(&self, call: &Call, standing: Standing) -> Result<Response, Status> {
        let prefix = objects::prefix(call.target.resource, call.target.namespace.as_deref());
        let request = watch_request(call)?;
        match watch::open(&self.store, &prefix, request, standing).await {
            Ok(body) => Ok(respond::stream(body)),
            Err(error) => Err(store_failure(&error)),
        }
    }

    /// The objects that a list request selects, and the list around them without its items.
    pub(crate) async fn list_objects(
        &self,
        call: &Call,
        query: &ListQuery,
    ) -> Result<(Value, Vec<Value>), Status> {
        let row = call.target.resource;
        let prefix = objects::prefix(row, call.target.namespace.as_deref());
        let mut options = ListOptions {
            limit: 0,
            after: None,
            at: None,
        };
        match (&query.resume, query.revision, query.revision_match) {
            (Some(resume), _, _) => {
                let key = objects::key(row, &resume.namespace, &resume.name);
                (options.at, options.after) = (Some(resume.revision), Some(key));
            }
            (None, Revision::At(revision), RevisionMatch::Exact) => options.at = Some(revision),
            (None, Revision::At(revision), RevisionMatch::NotOlderThan) => {
                let current = self
                    .store
                    .revision()
                    .await
                    .map_err(|error| store_failure(&error))?;
                if revision > current {
                    let message = format!("Too large resource version: {revision}, current: {current}");
                    return Err(Status::timeout(message));
                }
            }
            (None, Revision::Any | Revision::Latest, _) => {}
        }
        let matches = matcher(query);
        options.limit = if query.limit == 0 {
            0
        } else {
            query.limit.max(CHUNK)
        };
        let mut items = Vec::new();
        let mut resume = None;
        let revision = 'pages: loop {
            let page = self
                .store
                .list(&prefix, &options)
                .await
                .map_err(|error| store_failure(&error))?;
            let mut stored = page.items.into_iter().peekable();
            while let Some(next) = stored.next() {
                let object = materialise(&next)?;
                options.after = Some(next.key);
                if matches(&object) {
                    items.push(object);
                }
                if query.limit != 0 && items.len() == query.limit {
                    if page.more || stored.peek().is_some() {
                        resume = options.after.take();
                    }
                    break 'pages page.revision;
                }
            }
            if !page.more {
                break page.revision;
            }
            // All pages of one list show one state.
            options.at = Some(page.revision);
        };
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if let Some(key) = resume {
            let token = Continue {
                revision,
                namespace: key.namespace,
                name: key.name,
            };
            metadata["continue"] = json!(token.encode());
        }
        let list = json!({
            "apiVersion": row.api_version(),
            "kind": format!("{}List", row.kind),
            "metadata": metadata,
        });
        Ok((list, items))
    }

    /// One object.
    pub(crate) async fn fetch(
        &self,
        row: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Value, Status> {
        let key = objects::key(row, namespace, name);
        match self.store.get(&key).await {
            Ok(Some(stored)) => materialise(&stored),
            Ok(None) => Err(Status::not_found(row, name)),
            Err(error) => Err(store_failure(&error)),
        }
    }
}

/// What the caller of a watch wants to see.
pub(crate) fn watch_request(call: &Call) -> Result<WatchRequest, Status> {
    let row = call.target.resource;
    let query = ListQuery::parse(row, &call.parameters)?;
    let form = negotiate::object_form(call.accept.as_deref())?;
    let after = match query.revision {
        Revision::At(revision) if !query.send_initial_events => Some(revision),
        Revision::At(_) | Revision::Any | Revision::Latest => None,
    };
    let timeout = query
        .timeout_seconds
        .map_or(DEFAULT_WATCH, |seconds| Duration::from_secs(seconds.into()));
    let (include, now) = (query.include, call.now);
    let shape: Shape = Box::new(move |object| shape::one(form, row, object, include, now));
    Ok(WatchRequest {
        after,
        matcher: matcher(&query),
        shape,
        bookmarks: query.bookmarks,
        mark_initial_end: query.send_initial_events && query.bookmarks,
        type_meta: (row.api_version(), row.kind),
        deadline: Instant::now() + timeout,
    })
}

/// Whether an object is selected by labels and fields.
pub(crate) fn matcher(query: &ListQuery) -> Matcher {
    let (labels, fields) = (query.labels.clone(), query.fields.clone());
    Box::new(move |object| fields.matches(object) && labels.matches(&labels_of(object)))
}

fn labels_of(object: &Value) -> Labels {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

fn materialise(stored: &Stored) -> Result<Value, Status> {
    objects::materialise(stored, stored.revision).map_err(|error| {
        error!(error = &error as &dyn std::error::Error, "read");
        Status::internal(error)
    })
}
