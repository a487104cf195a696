//! Decides what a node does next for a pod, and what it says about it.
//!
//! Everything here is a function of its arguments: what the API wants ([`Wanted`]), what the node sees
//! ([`Seen`]), and the time. [`plan`] answers with steps that may all be taken now, in any order; the
//! caller takes them, looks again, and plans again. [`render`] turns the same facts into the status that
//! Kubernetes' clients know.
//!
//! Invariants that are absences: no clock, no I/O, no memory between calls, and no step that starts a
//! container before the pod's network is judged by its policy.
//!
//! A pod is a list of [`Member`]s in the order of their start: init containers and sidecars as the spec has
//! them, then the main containers, then ephemeral ones, which start out of turn. `order` says who may run, `stop` how one ends, `steps` puts both together.
//!
//! Non-goals: what a container is made of (`agent/daemon` resolves images, environment and volumes), and
//! what an answer to a probe means (`agent/health`; here only its verdict counts).
//!
//! Entry points: [`plan`] and [`render`].

#![forbid(unsafe_code)]

mod backoff;
mod conditions;
mod ephemeral;
mod eviction;
mod order;
mod pressure;
mod qos;
mod status;
mod steps;
mod stop;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

pub use crate::{
    backoff::{delay, streak_after},
    conditions::{SANDBOX_CURRENT, SANDBOXED, is_by_node, is_own_condition},
    ephemeral::as_container,
    eviction::{Cause, Eviction, begin_anew, comes_back, evict, outlives_its_node},
    order::{is_ready, is_started},
    pressure::{Candidate, Shortage, first_to_go, is_critical},
    qos::oom_score_adj,
    status::{Facts, is_settled, render},
    steps::{Plan, Step, plan},
    stop::{Stop, Why},
};

/// What the API wants of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its containers in the order of their start: those of `initContainers` first, ephemeral ones last, although they
    /// wait for no others.
    pub containers: Vec<Member>,
    /// Whether containers that ended start again.
    pub restart: RestartPolicy,
    /// What a container gets between the beginning of its end and the kill, unless the end says otherwise.
    pub grace: SignedDuration,
    /// From then on the pod has been active for too long.
    pub deadline: Option<Timestamp>,
    /// Whether the pod shall end.
    pub ending: Ending,
    /// The API already says `Succeeded` or `Failed`: such a pod never runs again.
    pub settled: bool,
}

/// A container of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Unique among all containers of the pod.
    pub name: String,
    /// Its part in the pod's life.
    pub role: Role,
    /// Its image, as the pod names it now.
    pub image: String,
    /// The container whose processes an ephemeral one sees: it must run when this one starts.
    pub target: Option<String>,
    /// Whether something runs right after its start, before it counts as running.
    pub post_start: bool,
    /// Whether something runs before its stop signal.
    pub pre_stop: bool,
    /// Whether a probe decides when it has started.
    pub startup_probe: bool,
    /// Whether a probe decides if it is ready.
    pub readiness_probe: bool,
}

/// What a container is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end, successfully, before what follows it starts.
    Init,
    /// Has started before what follows it starts, runs as long as the main containers, and does not keep
    /// the pod alive: an init container with `restartPolicy: Always`.
    Sidecar,
    /// One of `containers`.
    Main,
    /// One that was added to a pod that exists, to look at it. It starts once, whatever the others do, is never
    /// started again, and its state says nothing about the pod's.
    Ephemeral,
}

/// Whether containers that ended start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever their exit code.
    Always,
    /// When they failed.
    OnFailure,
    /// Never.
    Never,
}

/// Whether a pod shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It shall not.
    No,
    /// Its deletion was asked for: containers get this long between the stop signal and the kill.
    Graceful(SignedDuration),
    /// The object is gone: end soon and forget.
    Gone,
}

/// What the node sees of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// How far the ground for containers is prepared.
    pub ground: Ground,
    /// The last attempt to prepare it failed.
    pub ground_failure: Option<Failure>,
    /// What is known of each container, by name. One that is missing was never looked at. Boxed: the map sets aside the
    /// room of eleven, and most pods have one.
    pub containers: BTreeMap<String, Box<Container>>,
    /// The node has decided that the pod ends here. Set by [`evict`].
    pub eviction: Option<Eviction>,
}

impl Seen {
    /// What is known of the container of that name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.get(name).map(Box::as_ref)
    }

    /// Whether the node has not begun with the pod, and does not.
    pub(crate) fn is_refused(&self) -> bool {
        let cause = self.eviction.as_ref().map(|eviction| &eviction.cause);
        matches!(cause, Some(Cause::Refused { .. }))
    }
}

/// How far the ground for containers is prepared; each stage contains the ones before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Ground {
    /// Nothing.
    #[default]
    Nothing,
    /// The shim and its namespaces exist.
    Sandbox,
    /// The pod has its interface; every packet is denied.
    Network,
    /// The pod's first policy is in the kernel.
    Judged,
}

/// What is known of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Container {
    /// Its image.
    pub image: Image,
    /// Its process.
    pub run: Run,
    /// The image of that process, as the pod named it; nothing if that is not known.
    pub made_of: Option<String>,
    /// Who its present process was when it began; nothing if that is not known.
    pub user: Option<User>,
    /// How the process before the present one ended.
    pub last_exit: Option<Exit>,
    /// How often it was started again.
    pub restarts: u32,
    /// Starts since it last ran well: what the delay before the next grows with.
    pub streak: u32,
    /// The last attempt to start it failed before its process ran.
    pub start_failure: Option<Failure>,
    /// What hooks and probes found out about the present run.
    pub life: Life,
    /// How far the end of the present run has come.
    pub stop: Option<Stop>,
    /// The run belongs to a sandbox that is gone: what an init container did there is lost.
    pub stale: bool,
}

/// Ids inside the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// Its other groups.
    pub supplementary: Vec<u32>,
}

/// What hooks and probes found out about a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Life {
    /// The hook after the start.
    pub post_start: Hook,
    /// The startup probe has succeeded.
    pub started: bool,
    /// The readiness probe succeeds.
    pub ready: bool,
    /// The verdict that ends this run.
    pub doomed: Option<Doom>,
}

/// A hook of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hook {
    /// There is none, or it has succeeded.
    #[default]
    Done,
    /// It runs.
    Running,
    /// It failed.
    Failed,
}

/// A probe has failed often enough that the container shall start anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doom {
    /// Which.
    pub probe: Probe,
    /// The probe's own grace, in place of the pod's.
    pub grace: Option<SignedDuration>,
}

/// The kinds of probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Probe {
    /// Has it started? The others wait for this one.
    Startup,
    /// Does it still work?
    Liveness,
    /// May it be sent work?
    Readiness,
}

/// State of a container's image on the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Image {
    /// Nobody asked for it yet.
    #[default]
    Unknown,
    /// Being fetched.
    Fetching,
    /// On the node, and the registry is being asked whether the container may still have it.
    Checking {
        /// Reference that names it by digest.
        id: String,
    },
    /// On the node and verified.
    Ready {
        /// Reference that names it by digest.
        id: String,
    },
    /// The last attempt failed.
    Failed(Failure),
    /// Being fetched again after an attempt that failed, which is still what people want to know.
    Retrying(Failure),
}

/// State of a container's process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Run {
    /// Not started.
    #[default]
    Never,
    /// Runs.
    Running {
        /// Identity of this run.
        id: String,
        /// Since when.
        started_at: Timestamp,
    },
    /// Ended.
    Exited(Exit),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Identity of the run.
    pub id: String,
    /// Exit code; 128 plus the signal when one ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `ContainerStatusUnknown`.
    pub reason: String,
    /// More, for people.
    pub message: Option<String>,
    /// Start of the run; absent when that is not known any more.
    pub started_at: Option<Timestamp>,
    /// End of the run.
    pub finished_at: Timestamp,
}

/// An attempt that failed and will be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Kubernetes' word for it, such as `ErrImagePull` or `CreateContainerConfigError`.
    pub reason: &'static str,
    /// What failed and why, for people.
    pub message: String,
    /// When.
    pub at: Timestamp,
    /// Attempts that failed in a row, this one included.
    pub attempts: u32,
}
