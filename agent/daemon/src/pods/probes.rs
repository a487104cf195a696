//! Runs the probes of a pod's containers: one task for each probe of each run, which reports what changes.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_health::{Check, Outcome, Schedule, Tracker};
use agent_plan::Probe as Kind;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{Context, held::HeldNetwork, worker::News};
use crate::policy::chain;

/// Where a pod's probes go.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) pod_uid: String,
    pub(super) address: Option<IpAddr>,
}

/// A probe that should run.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) container: Container,
    /// The run of the container that it is for.
    pub(super) run: String,
    pub(super) started_at: Timestamp,
    /// What holds until the results say otherwise.
    pub(super) verdict: Option<bool>,
}

/// The probes of one pod that run.
#[derive(Default)]
pub(super) struct Probes {
    tasks: BTreeMap<(String, Kind), Task>,
}

struct Task {
    run: String,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Probes {
    /// Ends what is not wished for any more, and starts what is missing.
    pub(super) fn tend(
        &mut self,
        wishes: BTreeMap<(String, Kind), Wish>,
        context: &Arc<Context>,
        place: &Place,
        news: &mpsc::Sender<Box<News>>,
    ) {
        self.tasks
            .retain(|key, task| wishes.get(key).is_some_and(|wish| wish.run == task.run));
        for (key, wish) in wishes {
            if self.tasks.contains_key(&key) {
                continue;
            }
            let kind = key.1;
            let Some(probe) = probe_of(&wish.container, kind).cloned() else {
                continue;
            };
            let run = wish.run.clone();
            let follow = follow(context.clone(), place.clone(), wish, kind, probe, news.clone());
            let handle = tokio::spawn(follow);
            self.tasks.insert(key, Task { run, handle });
        }
    }
}

/// The container's probe of that kind.
pub(super) fn probe_of(container: &Container, kind: Kind) -> Option<&Probe> {
    match kind {
        Kind::Startup => container.startup_probe.as_ref(),
        Kind::Liveness => container.liveness_probe.as_ref(),
        Kind::Readiness => container.readiness_probe.as_ref(),
    }
}

async fn follow(
    context: Arc<Context>,
    place: Place,
    wish: Wish,
    kind: Kind,
    probe: Probe,
    news: mpsc::Sender<Box<News>>,
) {
    let schedule = Schedule::of(&probe);
    let mut tracker = Tracker::new(schedule, wish.started_at, wish.verdict, Timestamp::now());
    let timeout = Duration::try_from(schedule.timeout).unwrap_or(Duration::from_secs(1));
    loop {
        let wait = tracker.next_at().duration_since(Timestamp::now());
        tokio::time::sleep(Duration::try_from(wait).unwrap_or_default()).await;
        let began_at = Timestamp::now();
        let outcome = ask(&context, &place, &wish.container, &probe, timeout).await;
        let verdict = tracker.take(outcome.counts_as(), began_at, Timestamp::now());
        if outcome == Outcome::Success && verdict.is_none() {
            continue;
        }
        let item = News::Probed {
            container: wish.container.name.clone(),
            run: wish.run.clone(),
            probe: kind,
            outcome,
            verdict,
        };
        if news.send(Box::new(item)).await.is_err() {
            return;
        }
    }
}

async fn ask(
    context: &Context,
    place: &Place,
    container: &Container,
    probe: &Probe,
    timeout: Duration,
) -> Outcome {
    let Some(address) = place.address else {
        return Outcome::Error("the pod has no address yet".to_owned());
    };
    match Check::of(probe, container, address) {
        Ok(Check::Program(argv)) => run(context, &place.pod_uid, &container.name, &argv, timeout).await,
        Ok(check) => match HeldNetwork::of(&context.runtime, &place.pod_uid, timeout).await {
            Ok(network) => agent_health::ask(&check, network.path(), timeout).await,
            Err(error) => Outcome::Error(chain(&error)),
        },
        Err(error) => Outcome::Error(error.to_string()),
    }
}

async fn run(
    context: &Context,
    pod_uid: &str,
    container: &str,
    argv: &[String],
    timeout: Duration,
) -> Outcome {
    let began = Instant::now();
    match context.runtime.exec(pod_uid, container, argv, timeout).await {
        Ok(ended) => {
            // The runtime kills what takes too long, and says so by the code only.
            let killed = ended.code == 128 + nix::sys::signal::Signal::SIGKILL as i32;
            let late = (killed && began.elapsed() >= timeout)
                .then(|| format!("{:?} timed out after {timeout:?}", argv.join(" ")));
            let output = [ended.stdout, ended.stderr].concat();
            agent_health::of_program(ended.code, &output, late.as_deref())
        }
        Err(error) => Outcome::Error(chain(&error)),
    }
}
