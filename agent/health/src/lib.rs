//! Probes of containers: what is asked, how the answer is judged, when a series of answers is a verdict.
//!
//! [`Tracker`] decides, purely: results and times in, the time of the next try and verdicts out. [`Check`]
//! says what is asked, read from the pod's object. [`ask`] asks over the network, from *inside* the pod's
//! network namespace: a socket belongs to the namespace that it is made in, so a thread that lives for one
//! system call joins the namespace, makes it and hands it back. Three things follow. Policy that denies
//! everything does not stop probes, and needs no exception for them. `host: 127.0.0.1` means the pod's
//! loopback, never the node's, so a probe cannot be used to reach what listens on the node. And a probe says
//! nothing about the pod's link: it does not cross it.
//!
//! Non-goals: running programs in containers (the agent's daemon does, and hands the end to [`of_program`]);
//! what a verdict leads to (`agent/plan`).

#![forbid(unsafe_code)]

mod check;
mod grpc;
mod http1;
mod outcome;
mod schedule;
mod socket;

use std::{path::Path, time::Duration};

pub use crate::{
    check::{Check, CheckError, HttpGet},
    outcome::{MAX_OUTPUT_BYTES, Outcome, of_program},
    schedule::{Schedule, Tracker},
};

/// What probes call themselves. Servers look for the first part to keep probes out of their logs.
const USER_AGENT: &str = "kube-probe/1.33";

/// Asks over the network from within the namespace at `netns`. A check that runs a program is an error
/// here.
pub async fn ask(check: &Check, netns: &Path, timeout: Duration) -> Outcome {
    match check {
        Check::Http(get) => http1::probe(get, netns, timeout).await,
        Check::Tcp(address) => socket::probe(*address, netns, timeout).await,
        Check::Grpc { address, service } => grpc::probe(*address, service, netns, timeout).await,
        Check::Program(_) => Outcome::Error("programs are run elsewhere".to_owned()),
    }
}

/// Sends a request for a lifecycle hook: any answer at all is success.
pub async fn call(get: &HttpGet, netns: &Path, timeout: Duration) -> Result<(), String> {
    http1::answered(get, netns, timeout).await
}
