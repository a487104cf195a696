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
//! Non-goals: what a container is made of (`agent/daemon` resolves images, environment and volumes), init
//! containers and probes (admission refuses them so far).
//!
//! Entry points: [`plan`] and [`render`].

#![forbid(unsafe_code)]

mod backoff;
mod qos;
mod status;
mod steps;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

pub use crate::{
    backoff::{delay, streak_after},
    qos::qos_class,
    status::{Facts, is_settled, render},
    steps::{Plan, Step, plan},
};

/// What the API wants of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Names of its containers, in the order of the spec.
    pub containers: Vec<String>,
    /// Whether containers that ended start again.
    pub restart: RestartPolicy,
    /// Whether the pod shall end.
    pub ending: Ending,
    /// The API already says `Succeeded` or `Failed`: such a pod never runs again.
    pub settled: bool,
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
    /// The object is gone: kill at once and forget.
    Gone,
}

/// What the node sees of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// How far the ground for containers is prepared.
    pub ground: Ground,
    /// The last attempt to prepare it failed.
    pub ground_failure: Option<Failure>,
    /// When the containers were sent their stop signal.
    pub stop_sent_at: Option<Timestamp>,
    /// When they were last killed.
    pub killed_at: Option<Timestamp>,
    /// What is known of each container, by name. One that is missing was never looked at.
    pub containers: BTreeMap<String, Container>,
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
    /// How the process before the present one ended.
    pub last_exit: Option<Exit>,
    /// How often it was started again.
    pub restarts: u32,
    /// Starts since it last ran well: what the delay before the next grows with.
    pub streak: u32,
    /// The last attempt to start it failed before its process ran.
    pub start_failure: Option<Failure>,
}

/// State of a container's image on the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Image {
    /// Nobody asked for it yet.
    #[default]
    Unknown,
    /// Being fetched.
    Fetching,
    /// On the node and verified.
    Ready {
        /// Reference that names it by digest.
        id: String,
    },
    /// The last attempt failed.
    Failed(Failure),
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
