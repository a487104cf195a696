//! The pods of this node: one task for each, from the moment the API binds it here until nothing of it is
//! left.
//!
//! [`Pods::run`] compares what the API wants with what an earlier agent left behind and keeps a
//! [`worker`] for every pod in either. Workers observe, ask `agent/plan`, and do what it says; they share
//! [`Context`] and know nothing of each other.

mod atomic;
pub(crate) mod claims;
mod container;
mod contents;
mod debug;
pub(crate) mod directory;
mod ended;
pub(crate) mod env;
pub(crate) mod evictions;
mod fit;
mod fs_group;
mod held;
mod hooks;
mod host_paths;
mod ids;
mod kept;
mod last_known;
mod limits;
mod names;
mod observe;
mod of_files;
mod own_files;
mod probes;
mod pull;
mod read;
mod resources;
pub(crate) mod roster;
mod sandbox;
mod sandboxed;
mod signals;
mod status;
mod steps;
mod storage;
mod termination;
pub(crate) mod tokens;
mod users;
mod verdict;
mod volumes;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent_images::ImageStore;
use agent_network::Network;
use agent_runtime::{ContainerState, RecoveredPod, Runtime, RuntimeError, Trash};
use control_pki::verdict::Verifier;
use control_scheduler::Candidate;
use futures::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use self::{
    directory::{Directory, Entry, Latest},
    evictions::Evictions,
    ids::Ids,
    last_known::LastKnown,
    of_files::OfFiles,
    steps::StepError,
    tokens::Tokens,
    worker::Worker,
};
use crate::{
    cluster::Cluster, config::Config, events::Events, policy::Policy, quiet::Quiet, static_pods::StaticPods,
    stats::claims::Claims,
};

pub(crate) use self::{
    resources::NodeAmounts,
    steps::{containers, endpoint, is_attached},
    volumes::VolumeError,
};

/// What all pods share.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) config: Config,
    pub(crate) cluster: Cluster,
    pub(crate) runtime: Runtime,
    pub(crate) images: Arc<ImageStore>,
    /// Knows the image gate's signature.
    pub(crate) verdicts: Verifier,
    pub(crate) network: Arc<Network>,
    pub(crate) policy: Policy,
    pub(crate) events: Events,
    pub(crate) directory: Directory,
    pub(crate) static_pods: StaticPods,
    pub(crate) ids: Ids,
    pub(crate) evictions: Evictions,
    /// Volumes that hold more than they may.
    pub(crate) full: claims::Full,
    /// What those hold that pods may write to.
    pub(crate) claims: Claims,
    pub(crate) tokens: Tokens,
    /// What containers start with while the API is away.
    pub(crate) last_known: LastKnown,
    pub(crate) quiet: Quiet,
    /// The node's resolver configuration, in the form that pods get.
    pub(crate) resolv_conf: String,
}

/// Which pod: what stays the same for its whole life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodId {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// A pod that an earlier agent left behind.
pub(crate) struct Survivor {
    pub(crate) pod: RecoveredPod,
    /// Its interface, when it is still there; the packet programs are attached to it.
    pub(crate) attachment: Option<agent_network::Attachment>,
}

impl Survivor {
    pub(crate) fn id(&self) -> PodId {
        let config = &self.pod.config;
        PodId {
            uid: config.uid.clone(),
            namespace: config.namespace.clone(),
            name: config.name.clone(),
        }
    }

    /// When its first container started; the far future for one that has none yet.
    fn began(&self) -> Timestamp {
        let started = self.pod.status.containers.iter();
        let started = started.filter_map(|container| match &container.state {
            ContainerState::Running { started_at, .. } => Some(*started_at),
            ContainerState::Exited(exit) => exit.started_at,
            ContainerState::Creating | ContainerState::Failed { .. } => None,
        });
        started.min().unwrap_or(Timestamp::MAX)
    }

    /// As others see it before it has a task.
    fn entry(&self) -> Entry {
        let containers = self.pod.status.containers.iter().map(|container| {
            let latest = Latest {
                attempt: container.attempt,
                running: !matches!(
                    container.state,
                    ContainerState::Exited(_) | ContainerState::Failed { .. }
                ),
                waits: false,
            };
            (container.name.clone(), latest)
        });
        Entry {
            id: self.id(),
            containers: containers.collect(),
        }
    }
}

/// Lets others know of pods whose tasks begin once the API is heard.
pub(crate) fn announce(survivors: &[Survivor], directory: &Directory) {
    let mut survivors: Vec<&Survivor> = survivors.iter().collect();
    // Of those with one name the last is the newest.
    survivors.sort_by_key(|survivor| survivor.began());
    for survivor in survivors {
        directory.publish(&survivor.entry());
    }
}

/// The ranges of user ids that are free beside those of pods that live. Their tasks begin one by one, some of them once the API
/// is heard, and pods that are new begin in between.
pub(crate) fn ids(survivors: &[Survivor]) -> Ids {
    let configs = survivors.iter().map(|survivor| &survivor.pod.config);
    Ids::beside(configs.map(|config| (config.uid.clone(), config.id_base)))
}

/// What of a pod runs when its task begins.
struct Found {
    status: agent_runtime::PodStatus,
    alive: bool,
    attachment: Option<agent_network::Attachment>,
}

impl From<Survivor> for Found {
    fn from(survivor: Survivor) -> Self {
        let Survivor { pod, attachment } = survivor;
        Self {
            status: pod.status,
            alive: pod.alive,
            attachment,
        }
    }
}

/// Keeps a task for each pod of this node.
pub(crate) struct Pods {
    context: Arc<Context>,
    workers: JoinSet<String>,
    /// Pods with a task, by UID.
    tasks: BTreeMap<String, Task>,
    of_files: OfFiles,
}

/// The task of a pod.
struct Task {
    id: PodId,
    /// The latest object; `None` once the API has it no more.
    object: watch::Sender<Option<Arc<Pod>>>,
}

impl PodId {
    fn of(pod: &Pod) -> Option<Self> {
        Some(Self {
            uid: pod.metadata.uid.clone()?,
            namespace: pod.metadata.namespace.clone()?,
            name: pod.metadata.name.clone()?,
        })
    }

    /// Directory of the pod's volumes and files.
    pub(crate) fn directory(&self, config: &Config) -> PathBuf {
        config.pods_dir().join(&self.uid)
    }

    /// Directory of the pod's logs.
    pub(crate) fn logs(&self, config: &Config) -> PathBuf {
        config
            .logs_dir()
            .join(format!("{}_{}_{}", self.namespace, self.name, self.uid))
    }
}

impl Pods {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            workers: JoinSet::new(),
            tasks: BTreeMap::new(),
            of_files: OfFiles::default(),
        }
    }

    /// Runs until `shutdown`. Pods go on without us: that is what makes an agent restart harmless.
    pub(crate) async fn run(mut self, survivors: Vec<Survivor>, shutdown: CancellationToken) {
        let mut changes = self.context.cluster.changes();
        let mut of_files = self.context.static_pods.changes();
        let mut orders = self.context.evictions.follow();
        let mut swept = false;
        let mut survivors: BTreeMap<String, Survivor> = survivors
            .into_iter()
            .map(|survivor| (survivor.pod.config.uid.clone(), survivor))
            .collect();
        loop {
            // Marked as seen before the look, so that a change during it is not missed.
            changes.borrow_and_update();
            of_files.borrow_and_update();
            orders.take_note();
            if let Some(wanted) = self.wanted() {
                if !std::mem::replace(&mut swept, true) {
                    // Static pods may have begun before the API was heard.
                    let live = survivors.keys().chain(self.tasks.keys()).cloned().collect();
                    self.sweep(Known::of(&wanted, live)).await;
                }
                self.compare(wanted, &mut survivors);
            } else {
                self.start_static(&mut survivors);
                self.start_ordered(&mut survivors);
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                changed = of_files.changed() => if changed.is_err() { return },
                () = orders.changed() => {}
                Some(ended) = self.workers.join_next() => match ended {
                    Ok(uid) => drop(self.tasks.remove(&uid)),
                    Err(error) => tracing::error!(%error, "a pod's task died"),
                },
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Frees the paths of what others left. Waited for: a pod that begins meanwhile would be taken for an old one. The files go
    /// in the background.
    async fn sweep(&self, known: Known) {
        let config = self.context.config.clone();
        let trash = self.context.runtime.trash().clone();
        let swept = tokio::task::spawn_blocking(move || {
            sweep(&config, &known, &trash).and(sweep_logs(&config, &known, &trash))
        });
        match swept.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = crate::policy::chain(&error), "leftovers of old pods stay");
            }
            Err(error) => tracing::error!(%error, "the removal of old pods' leftovers died"),
        }
    }

    /// Pods that the API binds to this node, by UID, and static ones that it has not had yet; `None` before the API's are known.
    fn wanted(&mut self) -> Option<BTreeMap<String, Arc<Pod>>> {
        let node = &self.context.config.node_name;
        let own = |pod: &Arc<Pod>| pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(node);
        let pods = self.context.cluster.pods()?;
        let admitted = self.context.static_pods.all();
        let of_files = self.of_files.beside(&pods, admitted, node);
        let pods = pods.into_iter().filter(own).chain(of_files);
        Some(
            pods.filter_map(|pod| Some((pod.metadata.uid.clone()?, pod)))
                .collect(),
        )
    }

    fn compare(&mut self, wanted: BTreeMap<String, Arc<Pod>>, survivors: &mut BTreeMap<String, Survivor>) {
        for (uid, task) in &self.tasks {
            if !wanted.contains_key(uid) {
                task.object.send_if_modified(|object| object.take().is_some());
            }
        }
        self.refuse_what_does_not_fit(&wanted, survivors);
        // Only the first comparison finds any: pods that were deleted while no agent ran.
        let (known, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(survivors)
            .into_iter()
            .partition(|(uid, _)| wanted.contains_key(uid));
        *survivors = known;
        for survivor in gone.into_values() {
            self.start(survivor.id(), None, Some(survivor));
        }
        for (uid, pod) in wanted {
            if let Some(task) = self.tasks.get(&uid) {
                let differs = |known: &Arc<Pod>| !Arc::ptr_eq(known, &pod);
                task.object.send_if_modified(|object| {
                    let changed = object.as_ref().is_none_or(differs);
                    if changed {
                        *object = Some(pod.clone());
                    }
                    changed
                });
                continue;
            }
            let Some(id) = PodId::of(&pod) else { continue };
            // The end of the other one is heard. What runs already is looked after.
            if !survivors.contains_key(&uid) && of_files::waits(&pod, &id, self.present(survivors)) {
                continue;
            }
            self.start(id, Some(pod), survivors.remove(&uid));
        }
    }

    /// Pods with a task, and those that wait for one.
    fn present(&self, survivors: &BTreeMap<String, Survivor>) -> impl Iterator<Item = PodId> {
        let tasks = self.tasks.values().map(|task| task.id.clone());
        tasks.chain(survivors.values().map(Survivor::id))
    }

    /// Looks at pods that are new to the node, the oldest first: one that there is no room for fails, whoever bound it.
    fn refuse_what_does_not_fit(
        &self,
        wanted: &BTreeMap<String, Arc<Pod>>,
        survivors: &BTreeMap<String, Survivor>,
    ) {
        let evictions = &self.context.evictions;
        let is_new = |(uid, pod): &(&String, &Arc<Pod>)| {
            !self.tasks.contains_key(*uid) && !survivors.contains_key(*uid) && fit::never_began(pod)
        };
        let (mut new, others): (Vec<_>, Vec<_>) = wanted.iter().partition(is_new);
        let node = self.context.cluster.node(&self.context.config.node_name);
        let Some(node) = node.filter(|_node| !new.is_empty()) else {
            return;
        };
        let stay = others.iter().filter(|(uid, _)| !evictions.is_ordered(uid));
        let mut candidate = Candidate::new(&node, stay.map(|(_, pod)| &***pod));
        new.sort_by_key(|(uid, pod)| (pod.metadata.creation_timestamp.clone(), *uid));
        for (uid, pod) in new {
            match fit::refused(pod, &candidate, Timestamp::now()) {
                Some(refused) => evictions.order(uid, refused),
                None => candidate.add(pod),
            }
        }
    }

    /// While the API has said nothing yet, pods that need it for nothing start, and nothing ends but by the node's order.
    fn start_static(&mut self, survivors: &mut BTreeMap<String, Survivor>) {
        for pod in self.context.static_pods.all() {
            let Some(id) = PodId::of(&pod) else { continue };
            if self.tasks.contains_key(&id.uid) {
                continue;
            }
            if survivors.contains_key(&id.uid) || !of_files::waits(&pod, &id, self.present(survivors)) {
                let survivor = survivors.remove(&id.uid);
                self.start(id, Some(pod), survivor);
            }
        }
    }

    /// Pods that the node orders to go, or has by an earlier agent, need a task for that, and the API's word is not waited
    /// for.
    fn start_ordered(&mut self, survivors: &mut BTreeMap<String, Survivor>) {
        let directory = |survivor: &Survivor| survivor.id().directory(&self.context.config);
        let ends = |(uid, survivor): &(&String, &Survivor)| {
            let ended = || ended::read(&directory(survivor)).map_or(true, |ended| !ended.is_nothing());
            self.context.evictions.is_ordered(uid) || ended()
        };
        let uids: Vec<String> = survivors
            .iter()
            .filter(ends)
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in uids {
            let Some(id) = survivors.get(&uid).map(Survivor::id) else {
                continue;
            };
            // Whoever gave the order had it; else the pod waits for the API as the others do.
            if let Some(pod) = kept::read(&id.directory(&self.context.config)) {
                self.start(id, Some(Arc::new(pod)), survivors.remove(&uid));
            }
        }
    }

    fn start(&mut self, id: PodId, pod: Option<Arc<Pod>>, survivor: Option<Survivor>) {
        let (object, objects) = watch::channel(pod);
        let task = Task {
            id: id.clone(),
            object,
        };
        self.tasks.insert(id.uid.clone(), task);
        let context = self.context.clone();
        let found = survivor.map(Found::from);
        let worker = Worker::new(context.clone(), id.clone(), objects.clone(), found);
        let mut first = Some(worker.run().boxed());
        self.workers.spawn(outlive_panics(move || {
            let (context, id, objects) = (context.clone(), id.clone(), objects.clone());
            let again = async move {
                tracing::error!(
                    pod = id.name,
                    namespace = id.namespace,
                    "the pod's task panicked and begins again"
                );
                let found = find_again(&context, &id).await;
                Worker::new(context, id, objects, found).run().await
            };
            first.take().unwrap_or_else(|| again.boxed())
        }));
    }
}

/// How long after a panic a pod's task begins again, and after what could not be found out then.
const BEGIN_AGAIN: Duration = Duration::from_secs(10);

/// Lives until one life ends in another way than by a panic: a pod without a task would be looked after by nobody.
async fn outlive_panics<T>(mut next: impl FnMut() -> BoxFuture<'static, T>) -> T {
    loop {
        match AssertUnwindSafe(next()).catch_unwind().await {
            Ok(ended) => return ended,
            // What was said is in the log.
            Err(_panic) => tokio::time::sleep(BEGIN_AGAIN).await,
        }
    }
}

/// What a task that panicked has left of its pod.
async fn find_again(context: &Context, id: &PodId) -> Option<Found> {
    loop {
        let starts = |status: &agent_runtime::PodStatus| {
            let mut containers = status.containers.iter();
            containers.any(|container| matches!(container.state, ContainerState::Creating))
        };
        let found = match context.runtime.status(&id.uid).await {
            // One that starts would be started a second time.
            Ok(status) if starts(&status) => Err(StepError::Interrupted),
            Ok(status) => attachment_of(context, id).await.map(|attachment| {
                Some(Found {
                    status,
                    alive: true,
                    attachment,
                })
            }),
            Err(RuntimeError::ShimGone { .. }) => steps::remove_sandbox(context, id).await.map(|()| None),
            Err(error) => Err(error.into()),
        };
        match found {
            Ok(found) => return found,
            Err(error) => tracing::warn!(
                pod = id.name,
                error = crate::policy::chain(&error),
                "not found again"
            ),
        }
        tokio::time::sleep(BEGIN_AGAIN).await;
    }
}

/// The pod's interface, if it was finished.
async fn attachment_of(
    context: &Context,
    id: &PodId,
) -> Result<Option<agent_network::Attachment>, StepError> {
    let attachment = context.network.find(&id.uid).await?;
    Ok(attachment.filter(|_| is_attached(id, &context.config)))
}

/// Whose directories stay, by UID.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Volumes, files and logs: those of pods that live or are wanted.
    pods: BTreeSet<String>,
    /// What containers wrote over their images.
    writable: BTreeSet<String>,
}

impl Known {
    /// `live` are pods that have a sandbox or a task. What only the API knows has none, such as after a reboot: if it is
    /// over, nobody will ever see again what its containers wrote; its logs stay for as long as its object does.
    fn of(wanted: &BTreeMap<String, Arc<Pod>>, live: BTreeSet<String>) -> Self {
        let is_over = |pod: &Pod| pod.status.as_ref().is_some_and(agent_plan::is_settled);
        let to_run = wanted.iter().filter(|(_, pod)| !is_over(pod)).map(|(uid, _)| uid);
        Self {
            writable: live.iter().chain(to_run).cloned().collect(),
            pods: wanted.keys().cloned().chain(live).collect(),
        }
    }
}

/// Removes what pods that nobody knows any more left in the agent's directories. Writable layers too: after a reboot there
/// is no runtime state that would tell of them. What cannot be removed does not keep the rest.
pub(crate) fn sweep(config: &Config, known: &Known, trash: &Trash) -> Result<(), VolumeError> {
    let pods = sweep_directory(&config.pods_dir(), &known.pods, trash);
    pods.and(sweep_directory(&config.writable_dir(), &known.writable, trash))
}

/// The same for logs, whose directories have the UID last, as Kubernetes names them; no UID has such a stroke.
fn sweep_logs(config: &Config, known: &Known, trash: &Trash) -> Result<(), VolumeError> {
    sweep_directory(&config.logs_dir(), &known.pods, trash)
}

fn sweep_directory(directory: &Path, known: &BTreeSet<String>, trash: &Trash) -> Result<(), VolumeError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(volumes::failed("list", directory, source)),
    };
    let mut swept = Ok(());
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // The trash itself is among them; no UID begins so.
        let is_hidden = name.starts_with('.');
        if !is_hidden && !known.contains(name.rsplit('_').next().unwrap_or_default()) {
            swept = swept.and(steps::remove_directory(&entry.path(), trash));
        }
    }
    swept
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn leftovers_of_pods_that_nobody_knows_go_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let config = Config::below(base.path());
        let (pods, writable, logs) = (config.pods_dir(), config.writable_dir(), config.logs_dir());
        for uid in ["running", "static", "waiting", "over", "gone"] {
            for directory in [
                pods.join(uid),
                writable.join(uid),
                logs.join(format!("ns_name_{uid}")),
            ] {
                fs::create_dir_all(directory.join("main-0")).unwrap();
            }
        }
        let wanted = [("running", "Running"), ("waiting", "Pending"), ("over", "Failed")];
        let wanted = wanted.map(|(uid, phase)| {
            let pod = serde_json::from_value(json!({"status": {"phase": phase}})).unwrap();
            (uid.to_owned(), Arc::new(pod))
        });
        let live = ["running", "static"].map(str::to_owned);
        let known = Known::of(&wanted.into(), live.into());
        let trash = Trash::new(writable.join(".trash"));
        let held = trash.hold();
        for _once_more in 0..2 {
            sweep(&config, &known, &trash).unwrap();
            sweep_logs(&config, &known, &trash).unwrap();
        }
        assert_eq!(names(&pods), ["over", "running", "static", "waiting"]);
        assert_eq!(names(&writable), [".trash", "running", "static", "waiting"]);
        assert_eq!(
            names(&writable.join(".trash")).len(),
            4,
            "what is removed is not removed again"
        );
        drop(held);
        let of_logs = ["over", "running", "static", "waiting"].map(|uid| format!("ns_name_{uid}"));
        assert_eq!(names(&logs), of_logs);
    }

    /// A static pod that is new begins before the tasks of those that the API binds; so does any that the API names first.
    #[test]
    fn a_pod_that_begins_before_a_survivor_has_a_task_does_not_get_its_ids() {
        let survivor = |uid: &str, id_base| Survivor {
            pod: RecoveredPod {
                config: serde_json::from_value(json!({
                    "uid": uid, "namespace": "ns", "name": uid, "hostname": uid,
                    "id_base": id_base, "id_count": 65536,
                }))
                .unwrap(),
                status: serde_json::from_value(json!({
                    "version": 1, "netns": "/none", "holder_pid": 1, "shim_pid": 1, "containers": [],
                }))
                .unwrap(),
                alive: uid != "dead",
            },
            attachment: None,
        };
        let fresh = ids(&[]);
        let bases = ["one", "dead"].map(|uid| fresh.acquire(uid).unwrap());
        let survivors = [survivor("one", bases[0]), survivor("dead", bases[1])];
        let after_restart = ids(&survivors);
        for new in ["static", "of-the-api"] {
            assert!(!bases.contains(&after_restart.acquire(new).unwrap()), "{new}");
        }
        assert_eq!(after_restart.acquire("dead").unwrap(), bases[1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_begins_again() {
        let mut lives = 0;
        let ended = outlive_panics(|| {
            lives += 1;
            let life = lives;
            let live = async move {
                assert!(life > 2, "this one panics");
                life
            };
            live.boxed()
        });
        assert_eq!(ended.await, 3);
    }

    #[test]
    fn what_cannot_be_removed_does_not_keep_the_rest() {
        let base = tempfile::tempdir().unwrap();
        let config = Config::below(base.path());
        // No directory at all, which is more than a sweep can do anything about.
        fs::write(config.pods_dir(), "").unwrap();
        fs::create_dir_all(config.writable_dir().join("gone")).unwrap();
        let trash = Trash::new(base.path().join("trash"));
        assert!(sweep(&config, &Known::default(), &trash).is_err());
        assert!(!config.writable_dir().join("gone").exists());
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}
