//! End to end: one cluster, started once; every test states facts about it. The last step stops the cluster
//! and compares the host with how it was before.
//!
//! Runs as root with the set-up of `cargo xtask setup --dev`. `cargo test -p e2e -- NAME` runs a part, and
//! `PALISADE_TEST_ONLY=NAME,NAME` several on one cluster.

mod accounts;
mod claims;
mod clean_host;
mod crashes;
mod debug;
mod evidence;
mod gate;
mod health;
mod host_paths;
mod host_ports;
mod hosts;
mod images;
mod kept;
mod kubectl;
mod learn;
mod leftovers;
mod lifecycle;
mod live;
mod network;
mod node;
mod pods;
mod policyctl;
mod profiles;
mod recovery;
mod reported;
mod sandbox;
mod secrets;
mod services;
mod sessions;
mod static_pods;
mod storage;
mod wire;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use e2e::{
    cluster::{Cluster, kubectls},
    host::Snapshot,
};
use libtest_mimic::{Arguments, Failed, Trial};

/// One test over the shared cluster.
type Test = (&'static str, fn(&Cluster) -> Result<()>);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One cluster, and several tests stop its daemons: one test at a time.
    arguments.test_threads = Some(1);
    let mut tests: Vec<Test> = [
        gate::TESTS,
        pods::TESTS,
        lifecycle::TESTS,
        reported::TESTS,
        health::TESTS,
        kubectl::TESTS,
        sessions::TESTS,
        debug::TESTS,
        host_ports::TESTS,
        static_pods::TESTS,
        policyctl::TESTS,
        sandbox::TESTS,
        profiles::TESTS,
        learn::TESTS,
        network::TESTS,
        kept::TESTS,
        hosts::TESTS,
        services::TESTS,
        images::TESTS,
        accounts::TESTS,
        storage::TESTS,
        host_paths::TESTS,
        claims::TESTS,
        evidence::TESTS,
        live::TESTS,
        secrets::TESTS,
        recovery::TESTS,
        crashes::TESTS,
        node::TESTS,
    ]
    .concat();
    if let Ok(only) = std::env::var("PALISADE_TEST_ONLY") {
        let only: Vec<&str> = only.split(',').collect();
        if let Some(unknown) = only
            .iter()
            .find(|name| tests.iter().all(|(known, _)| known != *name))
        {
            return fail(
                "PALISADE_TEST_ONLY",
                &anyhow::anyhow!("there is no test {unknown}"),
            );
        }
        tests.retain(|(name, _)| only.contains(name));
    }
    if arguments.list {
        let trials = tests
            .iter()
            .map(|(name, _)| Trial::test(*name, || Ok(())))
            .collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    match kubectls() {
        Ok(found) if found.is_empty() => return without_kubectl(&arguments, &tests),
        Ok(_) => {}
        Err(error) => return fail("kubectl cannot be looked for", &error),
    }
    let before = match Snapshot::take() {
        Ok(before) => before,
        Err(error) => return fail("cannot look at the host", &error),
    };
    let cluster = match Cluster::start() {
        Ok(cluster) => Arc::new(cluster),
        Err(error) => return fail("the cluster does not start", &error),
    };
    let empty = match leftovers::objects(&cluster) {
        Ok(objects) => Arc::new(objects),
        Err(error) => {
            // The error that matters is this one.
            drop(cluster.stop());
            return fail("the cluster's objects cannot be listed", &error);
        }
    };
    let took = Arc::new(Mutex::new(Vec::new()));
    let mut trials: Vec<Trial> = tests
        .into_iter()
        .map(|(name, test)| {
            let (cluster, took, empty) = (Arc::clone(&cluster), Arc::clone(&took), Arc::clone(&empty));
            Trial::test(name, move || {
                let begun = Instant::now();
                let result = test(&cluster).map_err(|error| {
                    let error = leftovers::removed_after(&cluster, &empty, error);
                    Failed::from(format!("{error:#}"))
                });
                let mut took = took.lock().unwrap_or_else(PoisonError::into_inner);
                took.push((begun.elapsed(), name));
                result
            })
        })
        .collect();
    // Last in the list, and the list runs in order: it ends the cluster.
    let ended = Arc::clone(&cluster);
    trials.push(Trial::test("zz_down_leaves_nothing_behind", move || {
        clean_host::down_leaves_nothing_behind(&ended, &before)
            .map_err(|error| Failed::from(format!("{error:#}")))
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    tell_slowest(&mut took.lock().unwrap_or_else(PoisonError::into_inner));
    // A filtered run did not get to the last test.
    if cluster.run_dir.exists()
        && let Err(error) = cluster.stop()
    {
        return fail("the cluster does not stop", &error);
    }
    conclusion.exit_code()
}

/// Where a run's time goes; nothing that passes says so by itself.
#[expect(clippy::print_stderr, reason = "there is no test to report through")]
fn tell_slowest(took: &mut [(Duration, &str)]) {
    took.sort_unstable_by(|one, other| other.cmp(one));
    for (time, name) in took.iter().take(12) {
        eprintln!("{:>6.1} s  {name}", time.as_secs_f64());
    }
}

/// Every test drives the cluster with kubectl somewhere. Where it is missing they are skipped, visibly; in CI
/// that is a failure, for there it is known to be installed.
#[expect(clippy::print_stderr, reason = "a skip must be seen")]
fn without_kubectl(arguments: &Arguments, tests: &[Test]) -> ExitCode {
    if std::env::var_os("CI").is_some() {
        return fail("kubectl is missing", &anyhow::anyhow!("it is not on the PATH"));
    }
    eprintln!(
        "SKIPPED: {} end-to-end tests, there is no kubectl on the PATH",
        tests.len()
    );
    let trials = tests
        .iter()
        .map(|(name, _)| Trial::test(*name, || Ok(())).with_ignored_flag(true));
    libtest_mimic::run(arguments, trials.collect()).exit_code()
}

#[expect(clippy::print_stderr, reason = "there is no test to report through")]
fn fail(what: &str, error: &anyhow::Error) -> ExitCode {
    eprintln!("{what}: {error:?}");
    ExitCode::FAILURE
}
