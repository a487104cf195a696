//! Kill -9 in the middle of each step of a pod's start, run and end: of the shim, and of what it forks. Whatever died where,
//! afterwards nothing is doubled, nothing is lost that is not told, and nothing is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_runtime::{ContainerState, PodConfig, PodStatus, Runtime, RuntimeConfig};
use testkit::walk::{Fatal, Outcome, Steps, Victim, Walk, chosen, follow};

use crate::{Stage, alive, helper, patience, wait_for};

/// Points of a walk that an ordinary run visits; `PALISADE_TEST_WALK=all` visits all of them.
const SOME: usize = 14;

/// A failed start is told at once, not when the patience with slow starts is over.
const AT_ONCE: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn what_starts_a_container_may_die_at_any_step() {
    let stage = Stage::new("walk-start").await;
    let calm = calm(&stage).await;
    let mut attempt = 0;
    let mut all = None;
    let mut points = vec![usize::MAX];
    while let Some(point) = points.pop() {
        attempt += 1;
        let mut config = stage.container("main", &["sleep", "1000"]);
        config.attempt = attempt;
        let walk = walk_shim(&stage, Victim::Offspring, point).await;
        let began = Instant::now();
        let started = stage.runtime.start_container(&stage.pod.uid, &config).await;
        let outcome = end_walk(walk);
        assert!(began.elapsed() < AT_ONCE, "{outcome:?}: {started:?}");
        if all.is_none() {
            started.as_ref().expect("nobody was killed");
            all = Some(outcome.steps);
            points = chosen(outcome.steps, SOME);
        }
        let state = state_of(&stage).await;
        match (&started, &state) {
            (Ok(_), Some(ContainerState::Running { .. })) => end_main(&stage).await,
            // Whoever dies on the way is not the program.
            (Err(_), Some(ContainerState::Failed { .. })) => {}
            // Killed at the very moment of its execution: it began, and this is how it ended.
            (Ok(_), Some(ContainerState::Exited(exit))) => assert_eq!(exit.code, 137, "{outcome:?}"),
            other => panic!("{outcome:?}: {other:?}"),
        }
        stage
            .runtime
            .remove_container(&stage.pod.uid, "main")
            .await
            .unwrap_or_else(|error| panic!("{outcome:?}: {error}"));
        is_calm(&stage, &calm, &outcome).await;
    }
    println!("walked {} of {all:?} steps", chosen(all.unwrap_or(0), SOME).len());
    assert!(all > Some(40), "{all:?} steps");
    let (exit, output) = stage.shell("last", "echo still works").await;
    assert_eq!((exit.code, output.as_str()), (0, "still works\n"));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_starts_a_program_beside_it_may_die_at_any_step() {
    let stage = Stage::new("walk-exec").await;
    let config = stage.container("main", &["sleep", "1000"]);
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    let calm = calm(&stage).await;
    let mut all = None;
    let mut points = vec![usize::MAX];
    while let Some(point) = points.pop() {
        let walk = walk_shim(&stage, Victim::Offspring, point).await;
        let began = Instant::now();
        let argv = ["sh", "-c", "echo hello"].map(str::to_owned);
        let ran = stage
            .runtime
            .exec(&stage.pod.uid, "main", &argv, patience())
            .await;
        let outcome = end_walk(walk);
        assert!(began.elapsed() < AT_ONCE, "{outcome:?}: {ran:?}");
        if all.is_none() {
            assert_eq!(ran.expect("nobody was killed").stdout, b"hello\n");
            all = Some(outcome.steps);
            points = chosen(outcome.steps, SOME);
        }
        assert!(matches!(
            state_of(&stage).await,
            Some(ContainerState::Running { .. })
        ));
        is_calm(&stage, &calm, &outcome).await;
    }
    println!("walked {} of {all:?} steps", chosen(all.unwrap_or(0), SOME).len());
    assert!(all > Some(5), "{all:?} steps");
    stage.end().await;
}

/// As when memory runs out between the helper's fork and its word of it, and a neighbour stops the program meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_its_creator_never_told_of_is_known() {
    let stage = Stage::new("untold").await;
    let config = stage.container("main", &["sleep", "1000"]);
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    let calm = calm(&stage).await;
    let shim = shim_of(&stage).await;
    let walk = follow(&helper(), shim, Victim::Offspring, Steps::All, Fatal::BeforeWord).expect("follows");
    let argv = ["sleep", "1000"].map(str::to_owned);
    let began = Instant::now();
    let ran = stage
        .runtime
        .exec(&stage.pod.uid, "main", &argv, patience())
        .await;
    let outcome = end_walk(walk);
    assert!(outcome.killed.is_some(), "{outcome:?}");
    assert!(ran.is_err() && began.elapsed() < AT_ONCE, "{ran:?}");
    let program = outcome.stopped.expect("it was stopped");
    wait_for(|| !alive(program));
    is_calm(&stage, &calm, &outcome).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_may_die_at_any_step_of_its_own_start() {
    for victim in [Victim::Itself, Victim::Offspring] {
        let mut all = None;
        let mut points = vec![usize::MAX];
        while let Some(point) = points.pop() {
            let stage = Stage::without_pod("walk-pod");
            let directory = stage.directory.path();
            let started = start_followed(&stage, victim, point).await;
            if all.is_none() {
                all = Some(started.steps);
                points = chosen(started.steps, SOME);
            }
            // What died halfway is no obstacle, whoever looks at it first.
            let found = stage.runtime.recover().await.expect("recovers");
            assert!(
                found.iter().all(|pod| pod.config == stage.pod),
                "{started:?}: {found:?}"
            );
            stage
                .runtime
                .start_pod(&stage.pod)
                .await
                .unwrap_or_else(|error| panic!("{victim:?} {started:?}: {error}"));
            let status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
            let expected = [status.shim_pid, status.holder_pid];
            wait_for(|| {
                let mut found = processes_of(directory);
                found.retain(|pid| !expected.contains(pid));
                found.is_empty()
            });
            stage.end().await;
        }
        println!("walked {} of {all:?} steps", chosen(all.unwrap_or(0), SOME).len());
        assert!(all > Some(5), "{victim:?}: {all:?} steps");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_may_die_at_any_step_of_a_containers_start_and_of_the_end() {
    for ending in [false, true] {
        let mut all = None;
        let mut points = vec![usize::MAX];
        while let Some(point) = points.pop() {
            let stage = Stage::new("walk-shim").await;
            let config = stage.container("main", &["sleep", "1000"]);
            let start = stage.runtime.start_container(&stage.pod.uid, &config);
            let (walk, status);
            if ending {
                start.await.expect("starts");
                status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
                walk = walk_shim(&stage, Victim::Itself, point).await;
            } else {
                status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
                walk = walk_shim(&stage, Victim::Itself, point).await;
                let _told_or_lost = start.await;
            }
            if ending {
                let removed = stage.runtime.remove_pod(&stage.pod.uid).await;
                removed.unwrap_or_else(|error| panic!("step {point}: {error}"));
            }
            let outcome = end_walk(walk);
            if all.is_none() {
                all = Some(outcome.steps);
                points = chosen(outcome.steps, SOME);
            } else if !ending {
                wait_for(|| !alive(status.shim_pid));
                let found = stage.runtime.recover().await.expect("recovers");
                let [pod] = found.as_slice() else {
                    panic!("{outcome:?}: {found:?}")
                };
                assert!(!pod.alive, "{outcome:?}");
                let running = pod.status.containers.iter();
                let mut running = running.filter(|c| {
                    !matches!(c.state, ContainerState::Exited(_) | ContainerState::Failed { .. })
                });
                assert!(running.next().is_none(), "{outcome:?}: {found:?}");
                // The same pod again, and only once.
                stage.runtime.start_pod(&stage.pod).await.expect("starts again");
                let started = stage.runtime.start_container(&stage.pod.uid, &config).await;
                started.unwrap_or_else(|error| panic!("{outcome:?}: {error}"));
            }
            let directory = stage.directory.path().to_owned();
            let status = stage.runtime.status(&stage.pod.uid).await.ok().or(Some(status));
            stage.runtime.remove_pod(&stage.pod.uid).await.expect("removed");
            stage.nothing_is_left(status).await;
            wait_for(|| processes_of(&directory).is_empty());
        }
        println!("walked {} of {all:?} steps", chosen(all.unwrap_or(0), SOME).len());
        assert!(all > Some(5), "ending {ending}: {all:?} steps");
    }
}

/// A runtime whose shims stop before they are executed, so that they can be followed from their first step.
async fn start_followed(stage: &Stage, victim: Victim, point: usize) -> Outcome {
    let directory = stage.directory.path();
    let (script, told) = (directory.join("stopped"), directory.join("pid"));
    let text = format!(
        "#!/bin/sh\necho $$ > {}\nkill -STOP $$\nexec {} \"$@\"\n",
        told.display(),
        helper().display()
    );
    fs::write(&script, text).expect("write");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
    let runtime = Runtime::new(RuntimeConfig {
        shim: script,
        state_dir: directory.join("state"),
        run_dir: directory.join("run"),
        cgroup_root: stage.cgroup_root.clone(),
    })
    .expect("valid");
    let pod = stage.pod.clone();
    let start = tokio::spawn(async move { runtime.start_pod(&pod).await });
    let stopped = || {
        let pid: i32 = fs::read_to_string(&told).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.contains(") T ").then_some(pid)
    };
    wait_for(|| stopped().is_some());
    let shim = stopped().expect("just seen");
    let walk = follow(&helper(), shim, victim, Steps::All, fatal_at(point)).expect("follows");
    let pid = rustix::process::Pid::from_raw(shim).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("goes on");
    let started = start.await.expect("no panic");
    assert!(started.is_ok() || point != usize::MAX, "{started:?}");
    let outcome = end_walk(walk);
    assert!(
        started.is_ok() || outcome.killed.is_some(),
        "{outcome:?}: {started:?}"
    );
    outcome
}

async fn walk_shim(stage: &Stage, victim: Victim, point: usize) -> Walk {
    follow(
        &helper(),
        shim_of(stage).await,
        victim,
        Steps::All,
        fatal_at(point),
    )
    .expect("follows")
}

/// Points that nobody reaches only count.
fn fatal_at(point: usize) -> Fatal {
    match point {
        usize::MAX => Fatal::Nowhere,
        point => Fatal::Step(point),
    }
}

fn end_walk(mut walk: Walk) -> Outcome {
    walk.stop();
    walk.outcome().expect("the tracer lives")
}

async fn shim_of(stage: &Stage) -> i32 {
    let status: PodStatus = stage.runtime.status(&stage.pod.uid).await.expect("a status");
    status.shim_pid
}

async fn state_of(stage: &Stage) -> Option<ContainerState> {
    let status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
    status.container("main").map(|main| main.state.clone())
}

async fn end_main(stage: &Stage) {
    stage
        .runtime
        .signal(&stage.pod.uid, "main", crate::SIGKILL)
        .await
        .expect("signalled");
    stage.exit("main").await;
}

/// What a shim has when nothing is under way: children, mounts, descriptors.
#[derive(Debug, PartialEq, Eq)]
struct Calm {
    children: Vec<i32>,
    mounts: usize,
    descriptors: usize,
}

impl Calm {
    fn of(stage: &Stage, shim: i32) -> Self {
        let mounts = fs::read_to_string(format!("/proc/{shim}/mountinfo")).unwrap_or_default();
        // What others mount and unmount on the host reaches the shim too.
        let directory = stage.directory.path().to_str().expect("text");
        Self {
            children: children_of(shim),
            mounts: mounts.lines().filter(|line| line.contains(directory)).count(),
            descriptors: fs::read_dir(format!("/proc/{shim}/fd")).map_or(0, Iterator::count),
        }
    }
}

async fn calm(stage: &Stage) -> Calm {
    let shim = shim_of(stage).await;
    // The connection that was just answered on is closed by now, or soon.
    let (mut last, mut same) = (Calm::of(stage, shim), 0);
    while same < 10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let next = Calm::of(stage, shim);
        same = if next == last { same + 1 } else { 0 };
        last = next;
    }
    last
}

async fn is_calm(stage: &Stage, calm: &Calm, outcome: &Outcome) {
    let shim = shim_of(stage).await;
    let deadline = Instant::now() + patience();
    loop {
        let now = Calm::of(stage, shim);
        if now == *calm {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{outcome:?} left {now:?}, was {calm:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn children_of(parent: i32) -> Vec<i32> {
    let mut children: Vec<i32> = processes()
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let after_name = stat.rsplit(") ").next().unwrap_or_default();
            after_name.split(' ').nth(1) == Some(parent.to_string().as_str())
        })
        .collect();
    children.sort_unstable();
    children
}

/// Shims of a stage and what they forked, while it has not executed a program.
fn processes_of(directory: &Path) -> Vec<i32> {
    let directory = directory.to_str().expect("text");
    let of_stage = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(directory) && alive(*pid)
    };
    processes().filter(of_stage).collect()
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").expect("lists");
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_network_outlives_the_number_of_its_holder() {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    let stage = Stage::new("network").await;
    let status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
    let by_path = fs::metadata(&status.netns).expect("a namespace").ino();
    let held = stage
        .runtime
        .pod_network(&stage.pod.uid)
        .await
        .expect("handed over");
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    let by_descriptor = || fs::metadata(&path).expect("a namespace").ino();
    assert_eq!(by_path, by_descriptor());
    crate::kill(status.holder_pid);
    wait_for(|| !alive(status.holder_pid));
    assert_eq!(
        by_path,
        by_descriptor(),
        "it means the same namespace for as long as it is held"
    );
    // The shim ends with its holder; afterwards nobody is given a namespace of somebody else's.
    wait_for(|| !alive(status.shim_pid));
    assert!(stage.runtime.pod_network(&stage.pod.uid).await.is_err());
    drop(held);
    stage.runtime.remove_pod(&stage.pod.uid).await.expect("removed");
    stage.nothing_is_left(Some(status)).await;
}

/// An agent that died while a container was being started: the next one must not start it a second time.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_under_way_is_waited_for() {
    let stage = Stage::new("under-way").await;
    let config = stage.container("main", &["sleep", "1000"]);
    let (runtime, uid) = (stage.runtime.clone(), stage.pod.uid.clone());
    let start = tokio::spawn(async move { runtime.start_container(&uid, &config).await });
    stage.until(|status| status.container("main").is_some()).await;
    start.abort();
    let found = stage.runtime.recover().await.expect("recovers");
    let [pod] = found.as_slice() else {
        panic!("{found:?}")
    };
    let state = &pod.status.container("main").expect("it was begun").state;
    assert!(matches!(state, ContainerState::Running { .. }), "{state:?}");
    stage.end().await;
}

/// What keeps a control group from being removed, as a process does that waits for a disk and cannot be killed.
struct Stuck(PathBuf);

impl Stuck {
    fn below(group: &str) -> Self {
        let mount = Path::new("/sys/fs/cgroup");
        let freezer = mount.join("freezer");
        let hierarchy = if freezer.is_dir() { &freezer } else { mount };
        let directory = hierarchy.join(group).join("stuck");
        fs::create_dir_all(&directory).expect("a group");
        agent_runtime::tmpfs::mount(&directory, 4096, 0o700).expect("mounted");
        Self(directory)
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        let _best_effort = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        let _best_effort = fs::remove_dir(&self.0);
    }
}

/// Those of a stage, which go when a test has failed.
struct Shims(PathBuf);

impl Drop for Shims {
    fn drop(&mut self) {
        for pid in processes_of(&self.0) {
            crate::kill(pid);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_cannot_be_ended_keep_no_other_from_being_found() {
    let stage = Stage::new("stuck").await;
    let other = PodConfig {
        uid: format!("other-{}", std::process::id()),
        ..stage.pod.clone()
    };
    let _shims = Shims(stage.directory.path().to_owned());
    stage.runtime.start_pod(&other).await.expect("starts");
    let ghost = format!("ghost-{}", std::process::id());
    fs::create_dir(stage.directory.path().join("run").join(&ghost)).expect("mkdir");
    let status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
    crate::kill(status.shim_pid);
    wait_for(|| !alive(status.shim_pid) && !alive(status.holder_pid));
    let stuck = [&stage.pod.uid, &ghost].map(|uid| Stuck::below(&format!("{}/{uid}", stage.cgroup_root)));

    let began = Instant::now();
    let mut found = stage.runtime.recover().await.expect("recovers");
    // The one waits its time out, the next one does not: ten seconds and one.
    assert!(began.elapsed() < patience(), "{:?}", began.elapsed());
    found.sort_by_key(|pod| pod.alive);
    let found: Vec<_> = found.iter().map(|pod| (&pod.config, pod.alive)).collect();
    assert_eq!(found, [(&stage.pod, false), (&other, true)]);
    assert!(stage.runtime.remove_pod(&stage.pod.uid).await.is_err(), "later");
    assert!(stage.runtime.status(&other.uid).await.is_ok());

    drop(stuck);
    for uid in [&ghost, &other.uid, &stage.pod.uid] {
        stage.runtime.remove_pod(uid).await.expect("removed");
    }
    stage.nothing_is_left(Some(status)).await;
}
