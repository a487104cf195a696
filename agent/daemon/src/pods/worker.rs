//! The task of one pod: observe, plan, act, and tell the API, until nothing of the pod is left.
//!
//! One task is the only writer of everything about its pod, so steps of one pod never race. Fetching an
//! image may take minutes and runs beside it; all else is short and awaited.

mod acts;
mod clock;
mod end;
mod health;
mod quota;
mod sandboxes;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use agent_health::Outcome;
use agent_images::RootfsLayers;
use agent_network::Attachment;
use agent_plan::{
    Container, Ending, Facts, Ground, Image, Plan, Probe, Run, Seen, Step, Wanted, begin_anew, comes_back,
    evict, plan, render,
};
use agent_runtime::{PodStatus, RuntimeError};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod, PodStatus as ApiStatus};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::Instant,
};

use self::clock::Clock;
use super::{
    Context, Found, PodId,
    directory::{Entry, Latest, waits},
    ended::Ended,
    evictions::Ordered,
    hooks::HookError,
    observe,
    probes::Probes,
    pull,
    sandboxed::{Ports, Sandboxes},
    status::{Reporter, Told},
    steps::{self, StepError},
    volumes,
};
use crate::{events::Kind, policy::chain};

/// Results of background work that wait for the task.
const INBOX: usize = 16;
/// Delay before what the plan does not repeat is repeated: ends of pods.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long after the API was told that a pod is over it is told again, if a finalizer keeps the object.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// While something keeps a container from starting, its status is rendered again this often: some of its
/// words depend on the time.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The task of one pod.
pub(super) struct Worker {
    context: Arc<Context>,
    id: PodId,
    objects: watch::Receiver<Option<Arc<Pod>>>,
    /// The latest object; kept when the API has it no more.
    pod: Option<Arc<Pod>>,
    /// Its ephemeral containers, in the words of ordinary ones.
    ephemeral: Vec<Spec>,
    seen: Seen,
    attachment: Option<Attachment>,
    images: BTreeMap<String, Box<RootfsLayers>>,
    /// The run of each container for which its image came.
    asked: BTreeMap<String, u32>,
    /// What brings images. A pull has one of the node's few turns, which a pod that ends gives back.
    fetches: JoinSet<()>,
    /// Boxed: a channel sets aside the room of 32 messages at once.
    news: mpsc::Sender<Box<News>>,
    inbox: mpsc::Receiver<Box<News>>,
    follower: Option<JoinHandle<()>>,
    probes: Probes,
    /// Hooks that run, by container. A container has one at a time.
    hooks: BTreeMap<String, JoinHandle<()>>,
    /// What was seen of the sandboxes of its containers.
    sandboxes: Sandboxes,
    /// Asks what policy leaves of connections, while it does.
    asking: Option<JoinHandle<()>>,
    /// Tells that policy may leave something else of them.
    policy: watch::Receiver<u64>,
    reporter: Reporter,
    reported: Option<ApiStatus>,
    reported_sandbox: String,
    /// How the pod ends, as it is on disk.
    kept: Ended,
    /// The API was told that the pod is over.
    confirmed: bool,
    /// The shim is gone; what is left of it must go too.
    lost: bool,
    retry_at: Option<Instant>,
    /// Pods that have to go since the node says so.
    evictions: Ordered,
    /// When volumes that mirror objects are looked at next; nothing for a pod that has none.
    refresh_at: Option<Instant>,
    refreshing: Option<JoinHandle<()>>,
    /// When the pod's use of the disk is looked at next; nothing for a pod without limits.
    measure_at: Option<Instant>,
    claims: quota::Claims,
    clock: Clock,
    born: Instant,
}

/// What background work found out.
pub(super) enum News {
    /// A probe said something else than before, or that it fails.
    Probed {
        container: String,
        run: String,
        probe: Probe,
        outcome: Outcome,
        verdict: Option<bool>,
    },
    /// A hook has ended.
    Hooked {
        container: String,
        run: String,
        hook: health::Hooked,
        result: Result<(), HookError>,
    },
    /// What policy leaves of the connections of each container.
    Ports(Result<BTreeMap<String, Ports>, StepError>),
    /// The pod's volumes were looked at; why some are not up to date.
    Refreshed(Vec<StepError>),
    /// The pod's use of the disk was looked at.
    Measured(quota::Measured),
    Runtime(PodStatus),
    ShimGone(RuntimeError),
    Image {
        container: String,
        /// As the pod named it when it was asked for.
        image: String,
        attempt: u32,
        result: Result<Box<RootfsLayers>, StepError>,
    },
}

impl Worker {
    pub(super) fn new(
        context: Arc<Context>,
        id: PodId,
        objects: watch::Receiver<Option<Arc<Pod>>>,
        found: Option<Found>,
    ) -> Self {
        let (news, inbox) = mpsc::channel(INBOX);
        let reporter = Reporter::start(context.client.clone(), id.clone());
        let pod = objects.borrow().clone();
        context.last_known.begin(&id.uid);
        let mut worker = Self {
            evictions: context.evictions.follow(),
            id,
            refresh_at: pod.as_deref().and_then(refresh_time),
            refreshing: None,
            ephemeral: pod.as_deref().map(ephemeral).unwrap_or_default(),
            measure_at: quota::first_look(pod.as_deref()),
            claims: None,
            pod,
            objects,
            seen: Seen::default(),
            attachment: None,
            images: BTreeMap::new(),
            asked: BTreeMap::new(),
            fetches: JoinSet::new(),
            news,
            inbox,
            follower: None,
            probes: Probes::default(),
            hooks: BTreeMap::new(),
            sandboxes: Sandboxes::new(context.policy.enforcement()),
            asking: None,
            policy: context.policy.changes(),
            reporter,
            reported: None,
            reported_sandbox: String::new(),
            kept: Ended::default(),
            confirmed: false,
            lost: false,
            retry_at: None,
            clock: Clock::new(),
            born: Instant::now(),
            context,
        };
        if let Some(found) = found {
            worker.adopt(found);
            worker.ask_again();
        }
        let told = worker.recall_end();
        if let Some(pod) = worker.pod.clone() {
            observe::remember(&mut worker.seen, &pod, told.as_ref());
        }
        worker
    }

    /// Runs to the end of the pod and returns its UID.
    pub(super) async fn run(mut self) -> String {
        loop {
            let object = self.objects.borrow_and_update().clone();
            if let Some(object) = object {
                // Fields of the pod may be in its volumes. Its status, which changes more often, is not.
                let metadata = |pod: &Pod| (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
                if self
                    .pod
                    .as_ref()
                    .is_none_or(|known| metadata(known) != metadata(&object))
                {
                    self.refresh_at = self.refresh_at.map(|_later| Instant::now());
                }
                self.ephemeral = ephemeral(&object);
                let before = self.pod.replace(object);
                self.forget_other_images(before.as_deref());
            }
            self.obey_node();
            let gone = self.objects.borrow().is_none() || self.confirmed;
            let mut wanted = observe::wanted(self.pod.as_deref(), self.reported.as_ref(), &self.seen);
            if gone {
                wanted.ending = Ending::Gone;
            }
            let now = self.now();
            let Plan { steps, wake_at } = plan(&wanted, &self.seen, now);
            // At once: from here on the clock may be set.
            let wake_at = wake_at.and_then(|at| {
                let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                Instant::now().checked_add(wait)
            });
            self.report(&wanted);
            self.keep_end(&wanted).await;
            if wanted.ending != Ending::No || wanted.settled || self.seen.eviction.is_some() {
                self.fetches.abort_all();
            }
            let mut idle = steps.is_empty();
            if self.lost {
                Box::pin(self.clear_lost()).await;
                idle = self.lost;
            } else if self.retry_at.is_some_and(|at| at > Instant::now()) {
                idle = true;
            } else {
                for step in steps {
                    if step == Step::Forget {
                        self.finish_refreshing().await;
                        match Box::pin(steps::forget(&self.context, &self.id)).await {
                            Ok(()) => {
                                tracing::info!(pod = %self.id.name, namespace = %self.id.namespace, "pod is gone");
                                return self.id.uid.clone();
                            }
                            Err(error) => self.retry_later("forget the pod", &error),
                        }
                    } else {
                        // Apart from the task, which mostly waits: it would hold the room of the largest step for
                        // as long as the pod lives.
                        Box::pin(self.take(step, &wanted)).await;
                    }
                }
            }
            self.publish();
            self.tend_probes(&wanted);
            self.tend_volumes(&wanted);
            self.tend_sandboxes();
            self.tend_quota(&wanted);
            // Between steps only what is already there is taken in; an idle task waits.
            if idle || self.retry_at.is_some() {
                self.wait(wake_at).await;
            } else {
                while let Ok(news) = self.inbox.try_recv() {
                    self.learn(*news);
                }
            }
        }
    }

    /// Takes over what an earlier agent left.
    fn adopt(&mut self, found: Found) {
        let Found {
            status: pod,
            alive,
            attachment,
        } = found;
        for status in &pod.containers {
            let container = self.seen.containers.entry(status.name.clone()).or_default();
            observe::take(&self.id, container, status);
            self.sandboxes.observe(status);
            self.hear_last_words(&status.name);
        }
        // The kernel kept judging, but its tables may be old: they are written again before anything starts.
        self.seen.ground = if attachment.is_some() {
            Ground::Network
        } else {
            Ground::Sandbox
        };
        self.attachment = attachment;
        if alive {
            self.follow(pod.version);
        } else {
            self.lost = true;
        }
        tracing::info!(pod = %self.id.name, namespace = %self.id.namespace, alive, "found again");
    }

    /// What an earlier agent was told is asked for once more, beside the task, before a container needs it.
    fn ask_again(&self) {
        let Some(pod) = self.pod.clone() else { return };
        let context = self.context.clone();
        tokio::spawn(async move {
            if let Err(error) = steps::learn(&context, &pod).await {
                tracing::debug!(
                    pod = pod.metadata.name,
                    error = chain(&error),
                    "asked again in vain"
                );
            }
        });
    }

    async fn wait(&mut self, wake_at: Option<Instant>) {
        let until_plan = wake_at.map(|at| at.saturating_duration_since(Instant::now()));
        let hindered = self
            .seen
            .containers
            .values()
            .any(|c| matches!(c.image, Image::Failed(_)));
        let until_look = hindered.then_some(LOOK_AGAIN);
        let until_retry = self
            .retry_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        let until_refresh = self.refresh_at.filter(|_due| self.refreshing.is_none());
        let until_refresh = until_refresh.map(|at| at.saturating_duration_since(Instant::now()));
        let until_measure = self
            .measure_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        let all = [until_plan, until_look, until_retry, until_refresh, until_measure];
        let patience = all.into_iter().flatten().min();
        let timer = async {
            match patience {
                Some(patience) => tokio::time::sleep(patience).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.objects.changed() => if changed.is_err() {
                // The agent shuts down: the task is dropped any moment, and must not spin until then.
                std::future::pending::<()>().await;
            },
            Some(news) = self.inbox.recv() => self.learn(*news),
            Ok(()) = self.policy.changed(), if self.sandboxes.limit_connections() => {
                self.sandboxes.policy_changed();
            }
            () = self.sandboxes.judged_otherwise() => {}
            () = self.evictions.changed() => {}
            // Somebody may have contradicted it already.
            () = self.reporter.written() => {}
            () = timer => {}
        }
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.retry_at = None;
        }
    }

    /// Ends the pod if the node has to do without it.
    fn obey_node(&mut self) {
        let Some(order) = self.evictions.order_for(&self.id.uid) else {
            return;
        };
        let (cause, message) = (order.cause.clone(), order.message.clone());
        if evict(&mut self.seen, order) {
            tracing::warn!(pod = %self.id.name, namespace = %self.id.namespace, message, "evicted by the node");
            self.event(None, Kind::Warning, cause.event().to_owned(), message);
        }
    }

    fn learn(&mut self, news: News) {
        match news {
            News::Probed {
                container,
                run,
                probe,
                outcome,
                verdict,
            } => self.probed((&container, &run), probe, outcome, verdict),
            News::Hooked {
                container,
                run,
                hook,
                result,
            } => self.hooked((&container, &run), hook, &result),
            News::Ports(result) => self.ports_arrived(result),
            News::Refreshed(failed) => self.refreshed(&failed),
            News::Measured(measured) => self.measured(measured),
            News::Runtime(status) => self.observe(&status),
            News::ShimGone(error) => {
                tracing::error!(pod = %self.id.name, error = chain(&error), "the pod's shim is gone");
                self.lost = true;
                let now = Timestamp::now();
                self.seen
                    .containers
                    .values_mut()
                    .for_each(|container| observe::lost(container, now));
            }
            News::Image {
                container,
                image,
                attempt,
                result,
            } => self.image_arrived((&container, image), attempt, result),
        }
    }

    fn observe(&mut self, status: &PodStatus) {
        for status in &status.containers {
            if let Some(container) = self.seen.containers.get_mut(&status.name) {
                observe::take(&self.id, container, status);
                self.sandboxes.observe(status);
                self.hear_last_words(&status.name);
            }
        }
    }

    /// Looks at the objects behind the pod's volumes now and then, beside the task.
    fn tend_volumes(&mut self, wanted: &Wanted) {
        let due = self.refresh_at.is_some_and(|at| at <= Instant::now());
        let lives = wanted.ending == Ending::No && !wanted.settled && self.seen.ground > Ground::Nothing;
        if self.refreshing.is_some() || !due {
            return;
        }
        self.refresh_at = self.pod.as_deref().and_then(refresh_time);
        let Some(pod) = self.pod.clone().filter(|_pod| lives) else {
            return;
        };
        let (context, id, news) = (self.context.clone(), self.id.clone(), self.news.clone());
        self.refreshing = Some(tokio::spawn(async move {
            let failed = steps::refresh_volumes(&context, &id, &pod).await;
            // A task that has ended has no volumes.
            drop(news.send(Box::new(News::Refreshed(failed))).await);
        }));
    }

    /// Whoever still writes to a volume must not bring it back.
    async fn finish_refreshing(&mut self) {
        if let Some(refreshing) = self.refreshing.take() {
            for news in taking_in(refreshing, &mut self.inbox).await {
                self.learn(*news);
            }
        }
    }

    fn refreshed(&mut self, failed: &[StepError]) {
        self.refreshing = None;
        self.refresh_at = self.pod.as_deref().and_then(refresh_time);
        // The old contents stay; what is wrong is said once per text: without the API it is the same of all.
        let messages: BTreeSet<String> = failed.iter().map(|error| chain(error)).collect();
        for message in messages {
            self.event(None, Kind::Warning, "FailedMount", message);
        }
    }

    /// What could not be brought or started of an image is no news of another one.
    fn forget_other_images(&mut self, before: Option<&Pod>) {
        let (Some(before), Some(now)) = (before, self.pod.as_deref()) else {
            return;
        };
        if before.spec == now.spec {
            return;
        }
        let before = steps::containers(before);
        for spec in steps::containers(now) {
            let mut before = before.iter();
            let changed = before.any(|before| before.name == spec.name && before.image != spec.image);
            if let Some(container) = self.seen.containers.get_mut(&spec.name).filter(|_known| changed) {
                container.start_failure = None;
                if matches!(container.image, Image::Failed(_)) {
                    container.image = Image::Unknown;
                }
            }
        }
    }

    /// Completes the exit of a container by what it left, once.
    fn hear_last_words(&mut self, name: &str) {
        let (Some(pod), Some(container)) = (&self.pod, self.seen.containers.get_mut(name)) else {
            return;
        };
        let attempt = container.restarts;
        let Run::Exited(exit) = &mut container.run else {
            return;
        };
        if exit.message.is_some() {
            return;
        }
        let words = steps::last_words(&self.context, &self.id, pod, name, (attempt, exit.code != 0));
        // An empty one is an answer too: it is not asked for again.
        exit.message = Some(words.unwrap_or_else(|error| {
            tracing::warn!(pod = %self.id.name, error = chain(&error), "no termination message");
            String::new()
        }));
    }

    fn image_arrived(
        &mut self,
        (name, image): (&str, String),
        attempt: u32,
        result: Result<Box<RootfsLayers>, StepError>,
    ) {
        let wanted = self.spec(name).and_then(|spec| spec.image.as_deref());
        if wanted.is_some_and(|wanted| wanted != image) {
            // The pod names another one meanwhile.
            self.container(name).image = Image::Unknown;
            return;
        }
        let state = match result {
            Ok(layers) => {
                self.images.insert(name.to_owned(), layers);
                self.asked.insert(name.to_owned(), attempt);
                Image::Ready { id: image }
            }
            Err(error) => {
                let before = match self.seen.container(name).map(|container| &container.image) {
                    Some(Image::Retrying(failure)) => Some(failure),
                    _ => None,
                };
                let mut failure = error.failure(before, Timestamp::now());
                failure.reason = error.image_reason();
                for message in pull::failure_events(&image, &error) {
                    self.event(Some(name), Kind::Warning, "Failed", message);
                }
                Image::Failed(failure)
            }
        };
        self.container(name).image = state;
    }

    /// Brings every change of the shim's state into the inbox.
    fn follow(&mut self, mut version: u64) {
        let (runtime, uid, news) = (
            self.context.runtime.clone(),
            self.id.uid.clone(),
            self.news.clone(),
        );
        let task = tokio::spawn(async move {
            loop {
                let item = match runtime.next_change(&uid, version).await {
                    Ok(status) => {
                        version = status.version;
                        News::Runtime(status)
                    }
                    Err(error) => News::ShimGone(error),
                };
                let ended = matches!(item, News::ShimGone(_));
                if news.send(Box::new(item)).await.is_err() || ended {
                    return;
                }
            }
        });
        if let Some(before) = self.follower.replace(task) {
            before.abort();
        }
    }

    /// Sends the status if it says something new, or if somebody has written over what it said.
    fn report(&mut self, wanted: &Wanted) {
        if wanted.settled || wanted.ending == Ending::Gone {
            return;
        }
        let Some(status) = self.status(wanted) else { return };
        let sandbox = self.sandboxes.summary();
        let stands = self
            .pod
            .as_ref()
            .is_none_or(|pod| !self.reporter.is_overruled(pod));
        if self.reported.as_ref() != Some(&status) || self.reported_sandbox != sandbox || !stands {
            self.tell_back_off(&status);
            self.tell_deadline(&status);
            self.tell_outdated(&status);
            tracing::debug!(pod = %self.id.name, phase = status.phase, age = ?self.born.elapsed(), "status");
            self.reporter.send(Told {
                status: status.clone(),
                sandbox: sandbox.clone(),
            });
            self.reported_sandbox = sandbox;
            self.reported = Some(status);
        }
    }

    fn status(&self, wanted: &Wanted) -> Option<ApiStatus> {
        let mut pod = Pod::clone(self.pod.as_deref()?);
        let comes_back = pod.status.as_ref().is_some_and(|status| comes_back(&pod, status));
        if let Some(status) = pod.status.as_mut().filter(|_status| comes_back) {
            begin_anew(status);
        }
        // What we said last counts, not what has come back of it so far.
        if let Some(reported) = &self.reported {
            let of_others = pod.status.take().and_then(|status| status.conditions);
            let mut status = reported.clone();
            // But for the conditions of others, who write theirs to the object.
            let conditions = status.conditions.get_or_insert_default();
            conditions.retain(|condition| agent_plan::is_own_condition(&condition.type_));
            let of_others = of_others.into_iter().flatten();
            conditions.extend(of_others.filter(|condition| !agent_plan::is_own_condition(&condition.type_)));
            pod.status = Some(status);
        }
        let facts = Facts {
            host_addresses: self.context.network.node_addresses().all().collect(),
            pod_addresses: self
                .attachment
                .as_ref()
                .map(Attachment::addresses)
                .unwrap_or_default(),
            now: Timestamp::now(),
        };
        let before = pod.status.as_ref().and_then(|status| status.conditions.clone());
        let mut status = render(&pod, wanted, &self.seen, &facts);
        let own = self.sandboxes.conditions(&before.unwrap_or_default(), facts.now);
        status.conditions.get_or_insert_default().extend(own);
        Some(status)
    }

    /// An event for each container that has just entered a back-off.
    fn tell_back_off(&self, status: &ApiStatus) {
        let waiting = |status: &ApiStatus| -> BTreeMap<String, (String, String)> {
            let entry = |status: &k8s_openapi::api::core::v1::ContainerStatus| {
                let waiting = status.state.as_ref()?.waiting.as_ref()?;
                let reason = waiting
                    .reason
                    .clone()
                    .filter(|reason| reason.ends_with("BackOff"))?;
                Some((
                    status.name.clone(),
                    (reason, waiting.message.clone().unwrap_or_default()),
                ))
            };
            let inits = status.init_container_statuses.iter().flatten();
            let mains = status.container_statuses.iter().flatten();
            let ephemeral = status.ephemeral_container_statuses.iter().flatten();
            inits.chain(mains).chain(ephemeral).filter_map(entry).collect()
        };
        let before = self.reported.as_ref().map(waiting).unwrap_or_default();
        for (name, (reason, message)) in waiting(status) {
            if before.get(&name).map(|(reason, _)| reason) == Some(&reason) {
                continue;
            }
            if reason == "ImagePullBackOff" {
                let image = self
                    .spec(&name)
                    .and_then(|spec| spec.image.as_deref())
                    .unwrap_or_default();
                let message = format!("Back-off pulling image {image:?}");
                self.event(Some(&name), Kind::Normal, "BackOff", message);
                self.event(Some(&name), Kind::Warning, "Failed", format!("Error: {reason}"));
            } else {
                self.event(Some(&name), Kind::Warning, "BackOff", message);
            }
        }
    }

    /// An event when the pod has failed by its deadline.
    fn tell_deadline(&self, status: &ApiStatus) {
        let exceeded = |status: &ApiStatus| status.reason.as_deref() == Some("DeadlineExceeded");
        if exceeded(status) && !self.reported.as_ref().is_some_and(exceeded) {
            let message = status.message.clone().unwrap_or_default();
            self.event(None, Kind::Normal, "DeadlineExceeded", message);
        }
    }

    fn publish(&self) {
        let latest = |(name, container): (&String, &Container)| match &container.run {
            Run::Never => None,
            run => {
                let running = matches!(run, Run::Running { .. });
                Some((
                    name.clone(),
                    Latest {
                        attempt: container.restarts,
                        running,
                        waits: !running && waits(self.reported.as_ref(), name),
                    },
                ))
            }
        };
        let seen = self.seen.containers.iter();
        let containers = seen.map(|(name, container)| (name, container.as_ref()));
        let containers = containers.filter_map(latest).collect();
        self.context.directory.publish(&Entry {
            id: self.id.clone(),
            containers,
        });
    }

    fn event(
        &self,
        container: Option<&str>,
        kind: Kind,
        reason: impl Into<Cow<'static, str>>,
        message: String,
    ) {
        if let Some(pod) = &self.pod {
            self.context.events.pod(pod, container, kind, reason, message);
        }
    }

    fn spec(&self, name: &str) -> Option<&Spec> {
        let spec = self.pod.as_ref()?.spec.as_ref()?;
        let inits = spec.init_containers.iter().flatten();
        let mut all = spec.containers.iter().chain(inits).chain(&self.ephemeral);
        all.find(|spec| spec.name == name)
    }

    fn container(&mut self, name: &str) -> &mut Container {
        self.seen.containers.entry(name.to_owned()).or_default()
    }
}

/// Waits for the end of a task whose last act is to send news, for which there may be no room; returns what came meanwhile.
async fn taking_in<T>(mut task: JoinHandle<()>, inbox: &mut mpsc::Receiver<T>) -> Vec<T> {
    let mut taken = Vec::new();
    loop {
        tokio::select! {
            ended = &mut task => {
                drop(ended);
                return taken;
            }
            Some(news) = inbox.recv() => taken.push(news),
        }
    }
}

fn ephemeral(pod: &Pod) -> Vec<Spec> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.ephemeral_containers.iter().flatten())
        .map(agent_plan::as_container)
        .collect()
}

/// When the pod's volumes are looked at again.
fn refresh_time(pod: &Pod) -> Option<Instant> {
    volumes::refresh_interval(pod).map(|interval| Instant::now() + interval)
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.context.claims.forget(&self.id.uid);
        self.context.last_known.forget(&self.id.uid);
        let tasks = self
            .follower
            .iter()
            .chain(self.hooks.values())
            .chain(&self.asking);
        tasks.for_each(JoinHandle::abort);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_tells_of_its_end_is_waited_for_with_a_full_inbox() {
        let (news, mut inbox) = mpsc::channel(INBOX);
        for number in 0..INBOX {
            news.try_send(number).unwrap();
        }
        let others = news.clone();
        let task = tokio::spawn(async move { news.send(INBOX).await.unwrap() });
        let waiting = tokio::time::timeout(Duration::from_secs(60), taking_in(task, &mut inbox));
        let taken = waiting.await.expect("it ends");
        let left = std::iter::from_fn(|| inbox.try_recv().ok());
        let all: Vec<usize> = taken.into_iter().chain(left).collect();
        assert_eq!(all, Vec::from_iter(0..=INBOX), "nothing is lost");
        drop(others);
    }
}
