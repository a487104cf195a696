//! Containers that see processes of others: one that looks at another, and pods that share them all.

use agent_runtime::{ContainerConfig, ContainerState, PidNamespace};

use crate::{Stage, sessions::CONFINEMENT, wait_for};

/// Numbers and names of the processes that the shell which reads this sees, itself included.
const PROCESSES: &str = "for p in /proc/[0-9]*; do echo ${p#/proc/} $(cat $p/comm 2>/dev/null); done";

/// What the kernel gives of process 1 only to those who may trace it.
const PRY: &str = "cat /proc/1/environ; cat /proc/1/maps; cat /proc/1/mem; ls /proc/1/root/; cat /proc/1/fd/1; readlink /proc/1/exe";

fn debug(stage: &Stage, argv: &[&str]) -> ContainerConfig {
    ContainerConfig {
        pid_namespace: PidNamespace::Of("main".into()),
        ..stage.container("debug", argv)
    }
}

async fn start(stage: &Stage, config: &ContainerConfig) {
    let started = stage.runtime.start_container(&stage.pod.uid, config).await;
    started.expect("starts");
}

async fn runs(stage: &Stage, name: &str) -> bool {
    let status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
    matches!(
        status.container(name).map(|container| &container.state),
        Some(ContainerState::Running { .. })
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn init_exec_and_debug_containers_are_confined_alike() {
    let stage = Stage::new("debugged").await;
    let as_web = |config: ContainerConfig| ContainerConfig {
        uid: 1000,
        gid: 1000,
        supplemental_gids: vec![2000],
        ..config
    };
    let script = format!("{CONFINEMENT}; exec sleep 1000");
    start(&stage, &as_web(stage.container("main", &["sh", "-c", &script]))).await;
    wait_for(|| stage.output("main").contains("the end\n"));
    start(&stage, &as_web(debug(&stage, &["sh", "-c", &script]))).await;
    wait_for(|| stage.output("debug").contains("the end\n"));
    let init = stage.output("main");
    assert!(
        init.contains("Seccomp:\t2\n") && init.contains("NoNewPrivs:\t1\n"),
        "{init}"
    );
    assert!(init.contains("/tmp/dropped: Permission denied"), "{init}");
    assert_eq!(init.matches("3000000      65536").count(), 2, "{init}");
    let (code, exec) = stage.exec("main", CONFINEMENT).await;
    assert_eq!((code, &exec), (0, &init), "exec and init differ");
    assert_eq!(stage.output("debug"), init, "debug and init differ");
    let (_, exec) = stage.exec("debug", CONFINEMENT).await;
    assert_eq!(
        exec, init,
        "an exec session of the debug container and init differ"
    );

    // It sees the other's processes, and no more of them than their names, although it is the same user.
    let (_, processes) = stage.exec("debug", PROCESSES).await;
    assert!(processes.contains("1 sleep\n"), "{processes}");
    let (_, own) = stage.exec("main", PROCESSES).await;
    assert_eq!(own.matches(" sleep\n").count(), 2, "they see each other: {own}");
    let (_, pried) = stage.exec("debug", &format!("({PRY}) 2>&1")).await;
    let refused = |line: &str| line.contains("Permission denied") || line.contains("can't open");
    assert!(!pried.is_empty() && pried.lines().all(refused), "{pried}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debug_container_leaves_its_target_and_ends_with_it() {
    let stage = Stage::new("target").await;
    start(
        &stage,
        &stage.container("main", &["sh", "-c", "while true; do sleep 1; done"]),
    )
    .await;
    // What it leaves running does not stay in the namespace of the other.
    let leaving = "mkfifo /tmp/f; (read x < /tmp/f) & (sleep 1000) & exit 3";
    start(&stage, &debug(&stage, &["sh", "-c", leaving])).await;
    assert_eq!(stage.exit("debug").await.code, 3);
    let mut left = String::new();
    for _ in 0..200 {
        left = stage.exec("main", PROCESSES).await.1;
        // The shell of the container, its sleep, the shell of the session and the one in `$()`.
        if left.lines().count() <= 4 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    assert!(left.lines().count() <= 4, "{left}");
    assert!(
        runs(&stage, "main").await,
        "the end of the one is not the end of the other"
    );

    let removed = stage.runtime.remove_container(&stage.pod.uid, "debug").await;
    removed.expect("removed");
    start(&stage, &debug(&stage, &["sleep", "1000"])).await;
    let killed = stage.runtime.signal(&stage.pod.uid, "main", libc_sigkill()).await;
    killed.expect("killed");
    // Whose end the shim hears of first is the kernel's choice.
    for name in ["debug", "main"] {
        let exit = stage.exit(name).await;
        assert_eq!(exit.signal, Some(libc_sigkill()), "{exit:?}");
    }
    let missing = ContainerConfig {
        name: "late".into(),
        log_path: stage.log("late"),
        ..debug(&stage, &["true"])
    };
    let refused = stage.runtime.start_container(&stage.pod.uid, &missing).await;
    let refused = refused.expect_err("there is nothing to look at").to_string();
    assert!(refused.contains("container main does not run"), "{refused}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_may_share_its_processes() {
    let mut stage = Stage::without_pod("shared");
    stage.pod.shares_processes = true;
    stage.runtime.start_pod(&stage.pod).await.expect("the pod starts");
    let of_pod = |name: &str, argv: &[&str]| ContainerConfig {
        pid_namespace: PidNamespace::Pod,
        ..stage.container(name, argv)
    };
    let serve = "trap 'echo reloaded' HUP; echo $$; while true; do sleep 0.1; done";
    start(&stage, &of_pod("server", &["sh", "-c", serve])).await;
    wait_for(|| stage.output("server").ends_with('\n'));
    let server = stage.output("server").trim().to_owned();
    start(&stage, &of_pod("other", &["sleep", "1000"])).await;

    let (_, seen) = stage.exec("other", PROCESSES).await;
    assert!(
        seen.contains("1 palisade-pod\n") && seen.contains(&format!("{server} sh\n")),
        "{seen}"
    );
    // What people share processes for.
    let (code, said) = stage.exec("other", &format!("kill -HUP {server}")).await;
    assert_eq!(code, 0, "{said}");
    wait_for(|| stage.output("server").ends_with("reloaded\n"));
    // Number 1 is the runtime's: it cannot be looked into, nor killed, and it reaps what is left behind.
    let (_, pried) = stage.exec("other", &format!("({PRY}) 2>&1")).await;
    let refused = |line: &str| line.contains("Permission denied") || line.contains("can't open");
    assert!(!pried.is_empty() && pried.lines().all(refused), "{pried}");
    let (_, status) = stage
        .exec("other", "grep -E '^(NoNewPrivs|Cap...):' /proc/1/status")
        .await;
    assert!(
        status.contains("NoNewPrivs:\t1") && status.contains("CapEff:\t0000000000000000"),
        "{status}"
    );
    // Nor does it tell what is mounted on the node.
    let (_, mounts) = stage.exec("other", "cat /proc/1/mountinfo").await;
    let (only, others) = (
        mounts.lines().next().unwrap_or_default(),
        mounts.lines().skip(1).count(),
    );
    assert!(
        only.contains(" / / ro,") && only.contains("tmpfs") && others == 0,
        "{mounts}"
    );
    let script = "kill -9 1; kill -TERM 1; (sleep 0.1 & exec true); true";
    assert_eq!(stage.exec("other", script).await.0, 0);
    let look = "for p in /proc/[0-9]*; do grep -s State $p/status; done";
    let mut states = String::new();
    for _ in 0..200 {
        states = stage.exec("other", look).await.1;
        // The server's own children are zombies too, for as long as its shell takes.
        if !states.contains("zombie") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    assert!(!states.contains("zombie"), "{states}");

    // The end of a container is the end of its processes, and of no others.
    start(&stage, &of_pod("brief", &["sh", "-c", "sleep 3333 & exit 4"])).await;
    assert_eq!(stage.exit("brief").await.code, 4);
    for _ in 0..200 {
        let (_, lines) = stage.exec("other", "cat /proc/*/cmdline").await;
        if !lines.contains("3333") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    let (_, lines) = stage.exec("other", "cat /proc/*/cmdline").await;
    // The shell that asks for it does not have the number in its own words.
    assert!(!lines.contains("3333"), "{lines:?}");
    assert!(runs(&stage, "server").await && runs(&stage, "other").await);
    // And it starts again in the same namespace.
    let removed = stage.runtime.remove_container(&stage.pod.uid, "brief").await;
    removed.expect("removed");
    let again = ContainerConfig {
        attempt: 1,
        ..of_pod("brief", &["sh", "-c", PROCESSES])
    };
    start(&stage, &again).await;
    assert_eq!(stage.exit("brief").await.code, 0);
    assert!(stage.output("brief").contains("1 palisade-pod\n"));
    stage.end().await;
}

/// Each process of a chain is there for a moment only, and leaves the next: whoever reads the list and kills what is on it is
/// late, the later the more stands before it on the list.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_container_outlives_it_where_processes_are_shared() {
    let mut stage = Stage::without_pod("chain");
    stage.pod.shares_processes = true;
    stage.runtime.start_pod(&stage.pod).await.expect("the pod starts");
    let chain = "for i in $(busybox seq 300); do sleep 1000 & done; c() { c & }; c; c; c; exit 4";
    let config = ContainerConfig {
        pid_namespace: PidNamespace::Pod,
        ..stage.container("brief", &["sh", "-c", chain])
    };
    start(&stage, &config).await;
    assert_eq!(stage.exit("brief").await.code, 4);
    let left = || {
        let group = stage.group_file(
            &format!("{}/brief-0", stage.pod.uid),
            ("pids", "cgroup.procs"),
            "cgroup.procs",
        );
        group.lines().count()
    };
    wait_for(|| left() == 0);
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(left(), 0);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_a_pod_that_shares_none_are_not_to_be_had() {
    let stage = Stage::new("unshared").await;
    let config = ContainerConfig {
        pid_namespace: PidNamespace::Pod,
        ..stage.container("main", &["true"])
    };
    let refused = stage.runtime.start_container(&stage.pod.uid, &config).await;
    let refused = refused.expect_err("refused").to_string();
    assert!(refused.contains("the pod has no pid namespace"), "{refused}");
    stage.end().await;
}

fn libc_sigkill() -> i32 {
    nix::sys::signal::Signal::SIGKILL as i32
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_begins_when_who_watches_has_looked() {
    let stage = Stage::new("watched").await;
    let watch = stage.runtime.watch_starts(&stage.pod.uid, "main");
    let watch = watch.expect("nobody else watches");
    let config = stage.container("main", &["sh", "-c", "echo begun; exec sleep 1000"]);
    let (runtime, uid) = (stage.runtime.clone(), stage.pod.uid.clone());
    let starting = tokio::spawn(async move { runtime.start_container(&uid, &config).await });
    let waiting = std::cell::RefCell::new(None);
    wait_for(|| {
        *waiting.borrow_mut() = watch.waiting();
        waiting.borrow().is_some()
    });
    let waiting = waiting.into_inner().expect("it came");
    // In its own root already, and not yet the program.
    let root = format!("/proc/{}/root/etc/note", waiting.pid());
    assert!(std::fs::exists(root).expect("root sees it"));
    let command = std::fs::read_to_string(format!("/proc/{}/cmdline", waiting.pid())).expect("it lives");
    assert!(!command.contains("begun"), "{command}");
    assert!(!runs(&stage, "main").await && !starting.is_finished());
    let pid = waiting.pid();
    drop(waiting);
    starting.await.expect("no panic").expect("starts");
    wait_for(|| stage.output("main").contains("begun\n"));
    let status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
    let found = status.container("main").expect("it is there");
    assert!(
        matches!(found.state, ContainerState::Running { pid: running, .. } if running == pid),
        "{found:?}"
    );
    stage.end().await;
}
