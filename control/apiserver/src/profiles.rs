//! Calico's profiles. Nobody writes them: each namespace and each service account has one, with the labels that
//! selectors of policies see, and one more is there for host endpoints.

use std::sync::Arc;

use api::calico;
use axum::response::Response;
use control_store::{ListOptions, ObjectKey, Revision, Store, Stored, Watch, WatchItem};
use control_wire::{Status, query::ListQuery};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::{
    Server,
    call::{Call, Outcome},
    objects::{self, metadata_text},
    read::{matcher, watch_request},
    respond,
    standing::Standing,
    watch::{self, Told},
    write::store_failure,
};

/// What profiles are computed from, for refusals.
pub(crate) const SOURCE: &str = "namespaces and service accounts";

/// Profile that allows everything, for host endpoints that nobody restricts.
const ALLOW: &str = "projectcalico-default-allow";
/// Kinds that profiles are computed from, and how.
const SOURCES: [(&str, Computed); 2] = [("namespaces", of_namespace), ("serviceaccounts", of_account)];
/// Changes of profiles that wait for a slow reader before the store's own buffers fill.
const CHANGES: usize = 64;
/// Label with the name of the namespace or service account itself.
const NAME_LABEL: &str = "projectcalico.org/name";

impl Server {
    /// `GET` on a profile.
    pub(crate) async fn get_profile(&self, call: &Call) -> Result<Outcome, Status> {
        let name = call.target.name();
        let (_, profiles) = self.profiles().await?;
        let found = profiles
            .into_iter()
            .find(|profile| metadata_text(profile, "name") == name);
        found
            .map(Outcome::ok)
            .ok_or_else(|| Status::not_found(call.target.resource, name))
    }

    /// `GET` on all of them. There are as many as their sources, so a limit is not applied.
    pub(crate) async fn list_profiles(&self, call: &Call) -> Result<Outcome, Status> {
        let query = ListQuery::parse(call.target.resource, &call.parameters)?;
        let matches = matcher(&query);
        let (revision, mut profiles) = self.profiles().await?;
        profiles.retain(|profile| matches(profile));
        Ok(Outcome::ok(json!({
            "apiVersion": calico::API_VERSION,
            "kind": "ProfileList",
            "metadata": {"resourceVersion": revision.to_string()},
            "items": profiles,
        })))
    }

    /// `GET` on all of them with `watch=true`: what becomes of namespaces and service accounts, as profiles.
    pub(crate) async fn watch_profiles(&self, call: &Call, standing: Standing) -> Result<Response, Status> {
        let mut request = watch_request(call)?;
        // How far a watch has come is known of one kind's changes, not of two kinds' together.
        request.bookmarks = false;
        let (initial, after) = match request.after {
            Some(after) => (Vec::new(), after),
            None => {
                let (revision, profiles) = self.profiles().await?;
                let stored = profiles.iter().map(|profile| stored(profile, revision));
                (stored.collect(), revision)
            }
        };
        let mut sources = Vec::with_capacity(SOURCES.len());
        for (plural, of) in SOURCES {
            let prefix = objects::prefix(crate::row("", plural), None);
            match self.store.watch(&prefix, after).await {
                Ok(watch) => sources.push((watch, of)),
                Err(error) => {
                    let told = watch::list_again(error).map(respond::stream);
                    return told.map_err(|error| store_failure(&error));
                }
            }
        }
        let (changes, events) = mpsc::channel(CHANGES);
        tokio::spawn(merge(Arc::clone(&self.store), sources, changes));
        let told = Told {
            initial,
            after,
            watch: Watch { events },
        };
        let body = watch::start(&self.store, request, told, standing);
        Ok(respond::stream(body))
    }

    /// All profiles by name, and the revision that they show.
    async fn profiles(&self) -> Result<(u64, Vec<Value>), Status> {
        let mut options = ListOptions::default();
        let mut found = vec![profile(ALLOW, &Value::Null, true, Map::new())];
        let mut revision = 0;
        for (plural, of) in SOURCES {
            let prefix = objects::prefix(crate::row("", plural), None);
            let page = self.store.list(&prefix, &options).await;
            let page = page.map_err(|error| store_failure(&error))?;
            // Both lists show one state.
            revision = page.revision;
            options.at = Some(page.revision);
            for stored in &page.items {
                let source = objects::materialise(stored, stored.revision).map_err(Status::internal)?;
                found.push(of(&source));
            }
        }
        found.sort_by(|a, b| metadata_text(a, "name").cmp(metadata_text(b, "name")));
        Ok((revision, found))
    }
}

/// The profile of a namespace or a service account.
type Computed = fn(&Value) -> Value;

/// Passes changes of several kinds on as those of profiles, in the order of their revisions: a client that goes on
/// from one of them must have missed none.
async fn merge(store: Arc<dyn Store>, mut sources: Vec<(Watch, Computed)>, changes: mpsc::Sender<WatchItem>) {
    let mut waiting: Vec<WatchItem> = Vec::new();
    loop {
        if waiting.is_empty() {
            let next = sources.iter_mut().map(|(watch, of)| {
                Box::pin(async move { watch.events.recv().await.map(|item| profile_change(&item, *of)) })
            });
            let next: Vec<_> = next.collect();
            let next = tokio::select! {
                (next, ..) = futures::future::select_all(next) => next,
                () = changes.closed() => return,
            };
            match next {
                Some(item) => waiting.push(item),
                None => return,
            }
        }
        // Whatever the store has published up to `reached` is in the channels by now.
        let Ok(reached) = store.revision().await else {
            return;
        };
        for (watch, of) in &mut sources {
            while let Ok(item) = watch.events.try_recv() {
                waiting.push(profile_change(&item, *of));
            }
        }
        let missed = waiting.iter().any(|item| item.revision().is_none());
        waiting.sort_by_key(|item| item.revision().unwrap_or(Revision::MAX));
        let later =
            waiting.partition_point(|item| item.revision().is_some_and(|revision| revision <= reached));
        let later = waiting.split_off(later);
        for item in std::mem::replace(&mut waiting, later) {
            if changes.send(item).await.is_err() {
                return;
            }
        }
        if missed {
            // The reader lists again.
            drop(changes.send(WatchItem::End).await);
            return;
        }
    }
}

/// A change of a source as that of its profile. One that cannot be read ends the watch, as a gap does.
fn profile_change(item: &WatchItem, of: Computed) -> WatchItem {
    let profile = |source: &Stored| {
        let object = objects::materialise(source, source.revision).ok()?;
        Some(stored(&of(&object), source.revision))
    };
    let change = match item {
        WatchItem::Put { object, previous } => profile(object).map(|object| WatchItem::Put {
            object,
            previous: previous.as_ref().and_then(profile),
        }),
        WatchItem::Delete { previous, revision } => profile(previous).map(|previous| WatchItem::Delete {
            previous,
            revision: *revision,
        }),
        WatchItem::End => None,
    };
    change.unwrap_or(WatchItem::End)
}

/// A profile in the form in which the store would give it.
fn stored(profile: &Value, revision: Revision) -> Stored {
    let text = |field| metadata_text(profile, field);
    Stored {
        key: ObjectKey::new("projectcalico.org/profiles", "", text("name")),
        uid: text("uid").to_owned(),
        revision: text("resourceVersion").parse().unwrap_or(revision),
        value: objects::serialise(profile).into(),
    }
}

fn of_namespace(namespace: &Value) -> Value {
    let name = metadata_text(namespace, "name");
    profile(&format!("kns.{name}"), namespace, true, labels(namespace, "pcns"))
}

/// A service account's has labels only: what is allowed by default says its namespace's.
fn of_account(account: &Value) -> Value {
    let (namespace, name) = (
        metadata_text(account, "namespace"),
        metadata_text(account, "name"),
    );
    let name = format!("ksa.{namespace}.{name}");
    profile(&name, account, false, labels(account, "pcsa"))
}

/// Labels of the source under a prefix, and its name.
fn labels(source: &Value, prefix: &str) -> Map<String, Value> {
    let own = source.pointer("/metadata/labels").and_then(Value::as_object);
    let own = own.into_iter().flatten();
    let own = own.map(|(key, value)| (format!("{prefix}.{key}"), value.clone()));
    let name = json!(metadata_text(source, "name"));
    own.chain([(format!("{prefix}.{NAME_LABEL}"), name)]).collect()
}

fn profile(name: &str, source: &Value, allows: bool, labels: Map<String, Value>) -> Value {
    let mut metadata = json!({"name": name});
    for field in ["uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = source.pointer(&format!("/metadata/{field}")) {
            metadata[field] = value.clone();
        }
    }
    let mut spec = json!({});
    if allows {
        spec["ingress"] = json!([{"action": "Allow"}]);
        spec["egress"] = json!([{"action": "Allow"}]);
    }
    if !labels.is_empty() {
        spec["labelsToApply"] = Value::Object(labels);
    }
    json!({"apiVersion": calico::API_VERSION, "kind": "Profile", "metadata": metadata, "spec": spec})
}
