//! The node's images as a whole: what the API is told of them, and which go when the disk gets full.

use std::{path::PathBuf, sync::Arc, time::Duration};

use agent_images::{Collected, GcPolicy, ImageError, ImageStore, KnownImage};
use api::{Digest, ImageRef};
use k8s_openapi::api::core::v1::{ContainerImage, Node, Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::Cluster,
    events::{Events, Kind},
    policy::chain,
};

/// How often the node's list of images is compared with what was told.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often the disk is looked at: often enough to be ahead of evictions.
const COLLECT_EVERY: Duration = Duration::from_secs(30);
/// No collection before: by then, what runs is known.
const FIRST_COLLECTION: Duration = Duration::from_secs(120);
/// How long who is short of disk waits for the removal of images.
const REMOVED_WITHIN: Duration = Duration::from_secs(120);
/// Images that are told, the largest: Kubernetes' default.
const MAX_TOLD: usize = 50;
/// Names of one image that are told, as in Kubernetes.
const MAX_NAMES: usize = 5;

/// Keeps the images of the node in order.
pub(crate) struct Keeper {
    pub(crate) client: Client,
    pub(crate) node: String,
    pub(crate) dir: PathBuf,
    pub(crate) policy: GcPolicy,
    pub(crate) collector: Collector,
    pub(crate) events: Events,
}

/// Removes images that no pod of the node needs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Collector {
    node: String,
    cluster: Cluster,
    images: Arc<ImageStore>,
    not_before: Instant,
    /// One collection at a time.
    turn: Arc<Mutex<()>>,
}

/// Why images were not removed as they should.
#[derive(Debug, thiserror::Error)]
enum GcError {
    #[error("cannot tell how full the disk of {} is", path.display())]
    Measure {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Store(#[from] ImageError),
    // Kubernetes' words.
    #[error(
        "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {found} bytes eligible to free."
    )]
    NotEnough { wanted: u64, found: u64 },
}

impl Keeper {
    /// Runs until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut collect = tokio::time::interval_at(self.collector.not_before, COLLECT_EVERY);
        let mut told: Option<Vec<KnownImage>> = None;
        let mut failed_before = false;
        loop {
            tokio::select! {
                _ = look.tick() => {
                    let now = self.collector.images.images();
                    let node = self.collector.cluster.node(&self.node);
                    if told.as_ref() == Some(&now) && stands(node.as_deref(), now.len()) {
                        continue;
                    }
                    match self.tell(&now).await {
                        Ok(()) => told = Some(now),
                        // The node may not be registered yet.
                        Err(error) => tracing::debug!(%error, "cannot tell which images the node has"),
                    }
                }
                _ = collect.tick() => {
                    let result = self.collect().await;
                    let failed = result.is_err();
                    if let Err(error) = result {
                        self.complain(&error, failed_before);
                    }
                    failed_before = failed;
                }
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn tell(&self, images: &[KnownImage]) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let images: Vec<ContainerImage> = images.iter().take(MAX_TOLD).map(told).collect();
        let patch = json!({"status": {"images": images}});
        nodes
            .patch_status(&self.node, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map(drop)
    }

    /// Removes images if the disk is too full. What an earlier agent left half-done goes in any case.
    async fn collect(&self) -> Result<(), GcError> {
        let stat = rustix::fs::statvfs(&self.dir).map_err(|errno| GcError::Measure {
            path: self.dir.clone(),
            source: errno.into(),
        })?;
        let capacity = stat.f_blocks.saturating_mul(stat.f_frsize);
        let available = stat.f_bavail.saturating_mul(stat.f_frsize);
        let wanted = self.policy.to_free(capacity, available).unwrap_or(0);
        let Some(collected) = self.collector.collect(wanted, self.policy.min_age).await? else {
            return Ok(());
        };
        match collected.bytes < wanted {
            true => Err(GcError::NotEnough {
                wanted,
                found: collected.bytes,
            }),
            false => Ok(()),
        }
    }

    /// As the kubelet: a first failure may be due to the moment.
    fn complain(&self, error: &GcError, again: bool) {
        let message = chain(error);
        tracing::warn!(error = message, again, "image garbage collection failed");
        if matches!(error, GcError::NotEnough { .. }) {
            self.events
                .node(&self.node, Kind::Warning, "FreeDiskSpaceFailed", message.clone());
        }
        if again {
            self.events
                .node(&self.node, Kind::Warning, "ImageGCFailed", message);
        }
    }
}

impl Collector {
    pub(crate) fn new(node: String, cluster: Cluster, images: Arc<ImageStore>) -> Self {
        Self {
            node,
            cluster,
            images,
            not_before: Instant::now() + FIRST_COLLECTION,
            turn: Arc::default(),
        }
    }

    /// Removes every image that no pod of the node needs, however new: before any pod has to go for want of disk.
    pub(crate) async fn remove_unused(&self) -> Result<(), ImageError> {
        // An agent that cannot ask which pods there are removes nothing, and need not wait for that.
        if self.cluster.pods().is_some() {
            tokio::time::sleep_until(self.not_before).await;
            let collection = self.collect(u64::MAX, Duration::ZERO);
            match tokio::time::timeout(REMOVED_WITHIN, collection).await {
                Ok(collected) => drop(collected?),
                Err(_elapsed) => {
                    tracing::warn!("unused images are not removed within {REMOVED_WITHIN:?}");
                }
            }
        }
        Ok(())
    }

    /// Removes images until layers of `to_free` bytes are gone; none without the pods, by which is known what is in use.
    async fn collect(&self, to_free: u64, min_age: Duration) -> Result<Option<Collected>, ImageError> {
        let _turn = self.turn.lock().await;
        let Some(pods) = self.cluster.pods() else {
            return Ok(None);
        };
        let needed = pods.iter().flat_map(|pod| needed(pod, &self.node)).collect();
        let collected = self.images.collect(&needed, to_free, min_age).await?;
        if collected.images > 0 {
            tracing::info!(?collected, to_free, "removed images");
        }
        Ok(Some(collected))
    }
}

fn told(image: &KnownImage) -> ContainerImage {
    ContainerImage {
        names: Some(image.names.iter().take(MAX_NAMES).cloned().collect()),
        size_bytes: i64::try_from(image.size).ok(),
    }
}

/// Images that a pod of this node runs, or will.
fn needed(pod: &Pod, node: &str) -> Vec<Digest> {
    let Some(spec) = pod.spec.as_ref() else {
        return Vec::new();
    };
    let status = pod.status.as_ref();
    let over =
        status.is_some_and(|status| agent_plan::is_settled(status) && !agent_plan::comes_back(pod, status));
    if over || spec.node_name.as_deref() != Some(node) {
        return Vec::new();
    }
    let inits = spec.init_containers.iter().flatten();
    let debuggers = spec.ephemeral_containers.iter().flatten();
    let images = spec
        .containers
        .iter()
        .chain(inits)
        .filter_map(|c| c.image.as_ref())
        .chain(debuggers.filter_map(|c| c.image.as_ref()));
    let digest = |image: &String| image.parse::<ImageRef>().ok()?.digest;
    images.filter_map(digest).collect()
}

/// Whether the node's object may have what it was told of so many images; one that was registered anew has not.
fn stands(node: Option<&Node>, images: usize) -> bool {
    let of_node = node.map(|node| node.status.as_ref().and_then(|status| status.images.as_ref()));
    images == 0 || of_node.is_none_or(|told| told.is_some_and(|told| !told.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pods_of_the_node_run_is_needed() {
        let image = format!("r.example/app@{}", Digest::of(b"image"));
        let pod = |node: &str, phase: &str| -> Pod {
            serde_json::from_value(json!({
                "spec": {"nodeName": node, "containers": [{"name": "c", "image": image}],
                    "initContainers": [{"name": "i", "image": "not pinned"}]},
                "status": {"phase": phase},
            }))
            .unwrap()
        };
        assert_eq!(needed(&pod("n", "Pending"), "n"), [Digest::of(b"image")]);
        assert_eq!(needed(&pod("n", "Succeeded"), "n"), []);
        assert_eq!(needed(&pod("m", "Running"), "n"), []);
    }

    #[test]
    fn a_node_that_was_registered_anew_is_told_of_its_images() {
        let node = |images: serde_json::Value| -> Node {
            serde_json::from_value(json!({"status": {"images": images}})).unwrap()
        };
        let told = node(json!([{"names": ["r.example/app"], "sizeBytes": 1}]));
        let anew = Node::default();
        assert!(stands(Some(&told), 1) && stands(None, 1) && stands(Some(&anew), 0));
        assert!(!stands(Some(&anew), 1) && !stands(Some(&node(json!([]))), 1));
    }
}
