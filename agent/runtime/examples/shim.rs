//! Helper of the integration tests: a program with the `shim` subcommand, as the agent's is, and an `agent`
//! that starts one pod from files and then does nothing, to be killed; and the tracer that kills in the middle of things.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a helper that cannot go on has failed its test"
)]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent_runtime::{Runtime, RuntimeConfig};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(mode) if mode == agent_runtime::shim::SUBCOMMAND => agent_runtime::shim::main(args),
        Some(mode) if mode == "agent" => agent(&args.collect::<Vec<_>>()),
        Some(mode) if mode == "walk" => {
            let words: Vec<String> = args.map(|word| word.to_string_lossy().into_owned()).collect();
            testkit::walk::main(&words).expect("follows");
            ExitCode::SUCCESS
        }
        _ => ExitCode::FAILURE,
    }
}

/// Arguments: a directory with `pod.json` and `container.json`, and the name of the cgroup root.
fn agent(args: &[OsString]) -> ExitCode {
    let [directory, cgroup_root] = args else {
        return ExitCode::FAILURE;
    };
    let directory = Path::new(directory);
    let read = |name: &str| fs::read(directory.join(name)).expect("reads");
    let pod = serde_json::from_slice(&read("pod.json")).expect("a pod");
    let container = serde_json::from_slice(&read("container.json")).expect("a container");
    let runtime = Runtime::new(RuntimeConfig {
        exe: std::env::current_exe().unwrap_or_else(|_| PathBuf::new()),
        state_dir: directory.join("state"),
        run_dir: directory.join("run"),
        cgroup_root: cgroup_root.to_string_lossy().into_owned(),
    })
    .expect("valid");
    let executor = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("tokio starts");
    executor.block_on(async {
        let pod: agent_runtime::PodConfig = pod;
        runtime.start_pod(&pod).await.expect("the pod starts");
        runtime
            .start_container(&pod.uid, &container)
            .await
            .expect("the container starts");
        println!("up");
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}
