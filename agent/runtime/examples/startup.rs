//! Measures container starts: `startup <shim program> <rounds> [unlimited]` prints medians in milliseconds, of
//! pods the first decile too: on a busy machine it says more.
//!
//! One pod, one container of `/bin/true` per round, image present: from the request until the program was
//! executed, and until its end was told. Then a pod per round with such a container, step by step.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a measuring tool for developers"
)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use agent_runtime::{
    ContainerConfig, ContainerState, PodConfig, PodResources, Resources, Runtime, RuntimeConfig, Streams,
};
use agent_sandbox::Profile;

fn main() {
    let mut args = std::env::args_os().skip(1);
    let exe = args.next().map(Into::into).expect("the shim program");
    let rounds = args
        .next()
        .and_then(|text| text.to_str()?.parse().ok())
        .unwrap_or(30);
    let resources = match args.next() {
        // For hosts whose control groups have no controllers.
        Some(word) if word == "unlimited" => Resources::default(),
        _ => Resources {
            memory_bytes: Some(64 << 20),
            pids: Some(64),
            ..Resources::default()
        },
    };
    let executor = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("tokio starts");
    executor.block_on(measure(exe, rounds, &resources));
}

async fn measure(exe: std::path::PathBuf, rounds: u32, resources: &Resources) {
    let directory = tempfile::tempdir().expect("a directory");
    make_image(&directory.path().join("image"));
    let runtime = Runtime::new(RuntimeConfig {
        shim: exe,
        state_dir: directory.path().join("state"),
        run_dir: directory.path().join("run"),
        cgroup_root: format!("palisade-bench-{}", std::process::id()),
    })
    .expect("valid");
    let pod = pod(0);
    let begun = Instant::now();
    runtime.start_pod(&pod).await.expect("the pod starts");
    println!("pod start            {:6.1}", milliseconds(begun.elapsed()));

    let (mut started, mut ended, mut executed) = (Vec::new(), Vec::new(), Vec::new());
    for attempt in 0..rounds {
        let config = container(directory.path(), resources, attempt, &["/bin/true"]);
        let begun = Instant::now();
        runtime.start_container(&pod.uid, &config).await.expect("starts");
        started.push(begun.elapsed());
        wait_for_end(&runtime, &pod).await;
        ended.push(begun.elapsed());
        runtime.remove_container(&pod.uid, "main").await.expect("removed");
    }
    let config = container(directory.path(), resources, rounds, &["/bin/sleep", "1000"]);
    runtime.start_container(&pod.uid, &config).await.expect("starts");
    for _ in 0..rounds {
        let begun = Instant::now();
        let argv = ["/bin/true".to_owned()];
        runtime
            .exec(&pod.uid, "main", &argv, Duration::from_secs(10))
            .await
            .expect("runs");
        executed.push(begun.elapsed());
    }
    println!("container start p50  {:6.1}", median(started));
    println!("start to end p50     {:6.1}", median(ended));
    println!("exec p50             {:6.1}", median(executed));
    let status = runtime.status(&pod.uid).await.expect("a status");
    for (name, pid) in [("shim", status.shim_pid), ("holder", status.holder_pid)] {
        let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("reads");
        let wanted = |line: &&str| {
            ["Rss:", "Pss:", "Private_Dirty:"]
                .iter()
                .any(|key| line.starts_with(key))
        };
        println!(
            "{name}: {}",
            memory.lines().filter(wanted).collect::<Vec<_>>().join(", ")
        );
    }
    runtime.remove_pod(&pod.uid).await.expect("removed");
    measure_pods(&runtime, directory.path(), rounds, resources).await;
}

/// A pod per round, from nothing to nothing.
async fn measure_pods(runtime: &Runtime, directory: &Path, rounds: u32, resources: &Resources) {
    let steps = [
        "pod made",
        "container started",
        "ended",
        "container removed",
        "pod removed",
    ];
    let mut took: [Vec<Duration>; 6] = Default::default();
    for round in 0..rounds {
        let pod = pod(round + 1);
        let config = container(directory, resources, 0, &["/bin/true"]);
        let mut times = vec![Instant::now()];
        runtime.start_pod(&pod).await.expect("the pod starts");
        times.push(Instant::now());
        runtime.start_container(&pod.uid, &config).await.expect("starts");
        times.push(Instant::now());
        wait_for_end(runtime, &pod).await;
        times.push(Instant::now());
        runtime.remove_container(&pod.uid, "main").await.expect("removed");
        times.push(Instant::now());
        runtime.remove_pod(&pod.uid).await.expect("removed");
        times.push(Instant::now());
        for (step, between) in took.iter_mut().zip(times.windows(2)) {
            step.push(between[1] - between[0]);
        }
        took[5].push(times[5] - times[0]);
    }
    let [made, started, ended, removed, gone, whole] = took;
    for (step, took) in steps.iter().zip([made, started, ended, removed, gone]) {
        print_both(&format!("  {step}"), took);
    }
    print_both("whole pod", whole);
}

async fn wait_for_end(runtime: &Runtime, pod: &PodConfig) {
    let mut status = runtime.status(&pod.uid).await.expect("a status");
    while !matches!(status.containers[0].state, ContainerState::Exited(_)) {
        status = runtime
            .wait_change(&pod.uid, status.version)
            .await
            .expect("a status");
    }
}

fn pod(number: u32) -> PodConfig {
    PodConfig {
        uid: format!("bench-{}-{number}", std::process::id()),
        namespace: "default".into(),
        name: "bench".into(),
        hostname: "bench".into(),
        id_base: 3_000_000,
        id_count: 65_536,
        shares_processes: false,
        pids: None,
        resources: PodResources::default(),
    }
}

fn container(directory: &Path, resources: &Resources, attempt: u32, argv: &[&str]) -> ContainerConfig {
    ContainerConfig {
        name: "main".into(),
        attempt,
        layers: vec![directory.join("image")],
        argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec![("PATH".into(), "/bin".into())],
        cwd: "/".into(),
        uid: 0,
        gid: 0,
        supplemental_gids: vec![],
        mounts: vec![],
        read_only_root: false,
        image_volumes: Vec::new(),
        capabilities: vec![],
        streams: Streams::default(),
        resources: resources.clone(),
        oom_score_adj: 0,
        stop_signal: 15,
        profile: Profile::baseline(),
        log_path: directory.join("log"),
        log_max_bytes: 1 << 20,
        log_max_files: 2,
        pid_namespace: agent_runtime::PidNamespace::Own,
    }
}

fn make_image(root: &Path) {
    for path in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(path)).expect("mkdir");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for applet in ["true", "sleep"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("symlink");
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).copied().map_or(0.0, milliseconds)
}

/// Median and first decile.
fn print_both(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |index| times.get(index).copied().map_or(0.0, milliseconds);
    println!(
        "{what:20} {:6.2} {:6.2}",
        at(times.len() / 2),
        at(times.len() / 10)
    );
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
