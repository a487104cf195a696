//! Local copies of all objects of a kind, kept current by a watch.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use futures::StreamExt;
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt, reflector, watcher},
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// All objects of a kind, and a signal that some changed.
pub(crate) struct Cache<K: Resource<DynamicType = ()> + 'static> {
    objects: reflector::Store<K>,
    /// `true` once the first list is complete.
    changed: watch::Receiver<bool>,
}

impl<K: Resource<DynamicType = ()> + 'static> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self {
            objects: self.objects.clone(),
            changed: self.changed.clone(),
        }
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + serde::de::DeserializeOwned + 'static,
    K::DynamicType: Hash + Eq,
{
    /// Starts to fill it.
    pub(crate) fn spawn(tasks: &mut JoinSet<Option<()>>, shutdown: &CancellationToken, api: Api<K>) -> Self {
        Self::spawn_some(tasks, shutdown, api, watcher::Config::default())
    }

    /// Starts to fill it with the objects that `config` selects.
    pub(crate) fn spawn_some(
        tasks: &mut JoinSet<Option<()>>,
        shutdown: &CancellationToken,
        api: Api<K>,
        config: watcher::Config,
    ) -> Self {
        let (objects, writer) = reflector::store();
        let (signal, changed) = watch::channel(false);
        tasks.spawn(
            shutdown
                .clone()
                .run_until_cancelled_owned(fill(api, config, writer, signal)),
        );
        Self { objects, changed }
    }

    /// Every object, or `None` until the first list is complete: an empty cluster and one that was not read
    /// yet must not look the same.
    pub(crate) fn objects(&self) -> Option<Vec<Arc<K>>> {
        self.changed.borrow().then(|| self.objects.state())
    }

    /// Waits for the next change. Changes since the last call count.
    pub(crate) async fn changed(&mut self) {
        // The sender goes only when everything is shut down, and this task with it.
        if self.changed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn fill<K>(
    api: Api<K>,
    config: watcher::Config,
    mut writer: reflector::store::Writer<K>,
    signal: watch::Sender<bool>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + serde::de::DeserializeOwned + 'static,
{
    let kind = K::kind(&());
    let mut events = watcher(api, config).backoff(api_client::watch_again()).boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                writer.apply_watcher_event(&event);
                if matches!(
                    event,
                    watcher::Event::Apply(_) | watcher::Event::Delete(_) | watcher::Event::InitDone
                ) {
                    signal.send_replace(true);
                }
            }
            Err(error) => {
                tracing::warn!(%kind, error = &error as &dyn std::error::Error, "watch failed, will be retried");
            }
        }
    }
}
