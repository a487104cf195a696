//! Helper of the integration tests: a shim, as `palisade-shim` is, and an `agent`
//! that starts one pod from files and then does nothing, to be killed, or runs `short` of descriptors; and the tracer that
//! kills in the middle of things.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a helper that cannot go on has failed its test"
)]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use agent_runtime::{PodConfig, Runtime, RuntimeConfig, RuntimeError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(mode) if mode == "agent" => agent(&args.collect::<Vec<_>>(), |_runtime, _pod| async {
            println!("up");
            std::future::pending::<()>().await;
        }),
        Some(mode) if mode == "short" => agent(&args.collect::<Vec<_>>(), short),
        Some(mode) if mode == "walk" => {
            let words: Vec<String> = args.map(|word| word.to_string_lossy().into_owned()).collect();
            testkit::walk::main(&words).expect("follows");
            ExitCode::SUCCESS
        }
        Some(run_directory) => agent_runtime::shim::main(std::iter::once(run_directory).chain(args)),
        None => ExitCode::FAILURE,
    }
}

/// Starts a pod, and goes on with it. Arguments: a directory with `pod.json` and `container.json`, and the name of the cgroup
/// root.
fn agent<F: Future<Output = ()>>(args: &[OsString], then: fn(Runtime, PodConfig) -> F) -> ExitCode {
    let [directory, cgroup_root] = args else {
        return ExitCode::FAILURE;
    };
    let directory = Path::new(directory);
    let read = |name: &str| fs::read(directory.join(name)).expect("reads");
    let pod = serde_json::from_slice(&read("pod.json")).expect("a pod");
    let container = serde_json::from_slice(&read("container.json")).expect("a container");
    let runtime = Runtime::new(RuntimeConfig {
        shim: std::env::current_exe().unwrap_or_else(|_| PathBuf::new()),
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
        let pod: PodConfig = pod;
        runtime.start_pod(&pod).await.expect("the pod starts");
        runtime
            .start_container(&pod.uid, &container)
            .await
            .expect("the container starts");
        then(runtime, pod).await;
    });
    ExitCode::SUCCESS
}

/// Does without descriptors for a while. The pod, whose container is `main`, has to live, and its change to be told later.
async fn short(runtime: Runtime, pod: PodConfig) {
    let uid = &pod.uid;
    let before = runtime.status(uid).await.expect("a status");
    let limit = getrlimit(Resource::Nofile);
    let few = Rlimit {
        current: Some(64),
        ..limit
    };
    setrlimit(Resource::Nofile, few).expect("lowered");
    let mut all = Vec::new();
    while let Ok(file) = fs::File::open("/dev/null") {
        all.push(file);
    }
    let errors = [
        runtime.status(uid).await.err(),
        runtime.start_pod(&pod).await.err(),
        runtime.signal(uid, "main", 0).await.err(),
        runtime.remove_pod(uid).await.err(),
        runtime.pod_network(uid).await.err(),
    ];
    let changed = tokio::spawn({
        let (runtime, uid) = (runtime.clone(), uid.clone());
        async move { runtime.next_change(&uid, before.version).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let waits = !changed.is_finished();
    drop(all);
    setrlimit(Resource::Nofile, limit).expect("raised");
    for error in errors {
        assert!(
            matches!(error, Some(RuntimeError::Unreachable { .. })),
            "{error:?}"
        );
    }
    assert!(waits, "the change is waited for");
    let after = runtime.status(uid).await.expect("it lives");
    assert_eq!(after, before, "nothing was done to the pod");
    runtime.signal(uid, "main", 9).await.expect("signalled");
    let after = changed.await.expect("no panic").expect("told");
    assert_ne!(after, before);
    println!("lives");
}
