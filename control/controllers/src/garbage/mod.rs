//! The garbage collector: dependents go with their owners, as `metadata.ownerReferences` says.
//!
//! It watches the metadata of every kind, and of that keeps who is whose. What seems to be without an owner is looked at
//! again: an object is deleted only once the API server has said of each of its owners that there is none of that UID. An
//! owner that cannot be read, or is of a kind that this server does not have, keeps its dependents.
//!
//! Non-goals: events, which nobody owns, as for Kubernetes.
//!
//! Start at [`run`].

mod act;
mod known;

use std::{sync::Arc, time::Duration};

use api::resources::{RESOURCES, Resource, Stored};
use futures::StreamExt;
use kube::{
    Api, Client, Resource as _,
    api::{DynamicObject, PartialObjectMeta},
    runtime::{WatchStreamExt, watcher},
};
use tokio::{
    sync::{Mutex, Notify},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{backoff::Backoff, namespaces::api_resource};
use known::{Known, Object};

/// Everything is looked at again this often, change or not.
const RESYNC: Duration = Duration::from_secs(30);
/// What changes together is looked at together: a crowd of dependents goes in a few passes.
const GATHER: Duration = Duration::from_millis(50);
/// The same while there is something that could not be done.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Starts to watch all kinds.
pub(crate) fn spawn(
    tasks: &mut JoinSet<Option<()>>,
    shutdown: &CancellationToken,
    client: &Client,
) -> Objects {
    let rows: Vec<&'static Resource> = collected().collect();
    let objects = Objects {
        known: Arc::new(Mutex::new(Known::of_kinds(&rows))),
        changed: Arc::new(Notify::new()),
    };
    for row in rows {
        let api = Api::all_with(client.clone(), &api_resource(row));
        let follow = follow(api, row, objects.clone());
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(follow));
    }
    objects
}

/// Runs for ever.
pub(crate) async fn run(client: Client, objects: Objects) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        let tasks = objects.known.lock().await.tasks();
        let mut failed = false;
        for task in &tasks {
            if let Err(error) = act::take(&client, &objects.known, task).await {
                // Somebody else has written it meanwhile, which is not worth a word.
                if !matches!(&error, kube::Error::Api(status) if status.code == 409) {
                    let Object {
                        row, namespace, name, ..
                    } = task.object();
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        kind = row.kind,
                        namespace,
                        name,
                        error,
                        "not collected, will be tried again"
                    );
                }
                failed = true;
            }
        }
        let wait = if failed {
            backoff.fail()
        } else {
            backoff.reset();
            RESYNC
        };
        // What fails keeps nobody else waiting, and is not tried again for each change.
        let gather = if failed { AFTER_FAILURE } else { GATHER };
        tokio::select! {
            () = objects.changed.notified() => tokio::time::sleep(gather).await,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// What the watches know.
#[derive(Clone)]
pub(crate) struct Objects {
    known: Arc<Mutex<Known>>,
    changed: Arc<Notify>,
}

/// Kinds whose objects have owners and dependents.
fn collected() -> impl Iterator<Item = &'static Resource> {
    let stored = RESOURCES.iter().filter(|row| row.stored == Stored::Yes);
    stored.filter(|row| row.kind != "Event")
}

/// Keeps what is known of one kind current.
async fn follow(api: Api<PartialObjectMeta<DynamicObject>>, row: &'static Resource, objects: Objects) {
    let config = watcher::Config::default();
    let mut events = watcher(api, config).backoff(api_client::watch_again()).boxed();
    let mut listed = Vec::new();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(kind = row.kind, error, "watch failed, will be retried");
                continue;
            }
        };
        let of = |object: &PartialObjectMeta<DynamicObject>| Object::of(row, object.meta());
        let news = match event {
            watcher::Event::Init => {
                listed.clear();
                false
            }
            watcher::Event::InitApply(object) => {
                listed.extend(of(&object));
                false
            }
            watcher::Event::InitDone => {
                objects
                    .known
                    .lock()
                    .await
                    .replace(row, std::mem::take(&mut listed));
                true
            }
            watcher::Event::Apply(object) => match of(&object) {
                Some(object) => objects.known.lock().await.put(object),
                None => false,
            },
            watcher::Event::Delete(object) => {
                let uid = object.meta().uid.as_deref().unwrap_or_default();
                objects.known.lock().await.remove(uid);
                true
            }
        };
        if news {
            objects.changed.notify_one();
        }
    }
}
