//! End to end: one cluster, started once; every test states facts about it. The last step stops the cluster
//! and compares the host with how it was before.
//!
//! Runs as root with the set-up of `cargo xtask setup --dev`. `cargo test -p e2e -- NAME` runs a part.

mod clean_host;
mod gate;
mod kubectl;
mod network;
mod pods;
mod policyctl;
mod recovery;
mod sandbox;
mod secrets;

use std::{process::ExitCode, sync::Arc};

use anyhow::Result;
use e2e::{cluster::Cluster, host::Snapshot};
use libtest_mimic::{Arguments, Failed, Trial};

/// One test over the shared cluster.
type Test = (&'static str, fn(&Cluster) -> Result<()>);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One cluster, and several tests stop its daemons: one test at a time.
    arguments.test_threads = Some(1);
    let tests: Vec<Test> = [
        gate::TESTS,
        pods::TESTS,
        kubectl::TESTS,
        policyctl::TESTS,
        sandbox::TESTS,
        network::TESTS,
        secrets::TESTS,
        recovery::TESTS,
    ]
    .concat();
    if arguments.list {
        let trials = tests
            .iter()
            .map(|(name, _)| Trial::test(*name, || Ok(())))
            .collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let before = match Snapshot::take() {
        Ok(before) => before,
        Err(error) => return fail("cannot look at the host", &error),
    };
    let cluster = match Cluster::start() {
        Ok(cluster) => Arc::new(cluster),
        Err(error) => return fail("the cluster does not start", &error),
    };
    let mut trials: Vec<Trial> = tests
        .into_iter()
        .map(|(name, test)| {
            let cluster = Arc::clone(&cluster);
            Trial::test(name, move || {
                test(&cluster).map_err(|error| Failed::from(format!("{error:#}")))
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
    // A filtered run did not get to the last test.
    if cluster.run_dir.exists()
        && let Err(error) = cluster.stop()
    {
        return fail("the cluster does not stop", &error);
    }
    conclusion.exit_code()
}

#[expect(clippy::print_stderr, reason = "there is no test to report through")]
fn fail(what: &str, error: &anyhow::Error) -> ExitCode {
    eprintln!("{what}: {error:?}");
    ExitCode::FAILURE
}
