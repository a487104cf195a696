//! Control groups of whole pods: their part of the processors beside other pods, and what their containers may have together.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_runtime::{ContainerConfig, ContainerState, PodConfig, PodResources, Resources};

use crate::{SIGKILL, Stage, wait_for};

impl Stage {
    /// A file of the group of a pod, or of one below it: version 1's in a hierarchy, or version 2's.
    pub(crate) fn group_file(&self, group: &str, (hierarchy, old): (&str, &str), new: &str) -> String {
        let own = |mount: PathBuf| mount.join(&self.cgroup_root).join(group);
        let mount = Path::new("/sys/fs/cgroup");
        let old = fs::read_to_string(own(mount.join(hierarchy)).join(old));
        let text = old.or_else(|_absent| fs::read_to_string(own(mount.to_owned()).join(new)));
        text.expect("one of the files").trim().to_owned()
    }

    fn quota(&self, group: &str) -> String {
        let text = self.group_file(group, ("cpu", "cpu.cfs_quota_us"), "cpu.max");
        text.split(' ').next().expect("a word").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_group_has_its_weight_and_its_limits() {
    let mut stage = Stage::without_pod("podgroup");
    stage.pod.resources = PodResources {
        cpu_quota_us: Some(30_000),
        cpu_period_us: Some(100_000),
        cpu_shares: Some(512),
        memory_bytes: Some(96 << 20),
    };
    stage.runtime.start_pod(&stage.pod).await.expect("the pod starts");
    let uid = stage.pod.uid.clone();
    let start = async |name: &str| {
        let config = ContainerConfig {
            resources: Resources {
                cpu_quota_us: Some(30_000),
                cpu_period_us: Some(100_000),
                ..Resources::default()
            },
            ..stage.container(name, &["sleep", "1000"])
        };
        let started = stage.runtime.start_container(&uid, &config).await;
        started.expect("starts");
    };
    start("first").await;
    let weight = stage.group_file(&uid, ("cpu", "cpu.shares"), "cpu.weight");
    // Version 2's weight for it is 20.
    assert!(["512", "20"].contains(&weight.as_str()), "{weight}");
    let memory = stage.group_file(&uid, ("memory", "memory.limit_in_bytes"), "memory.max");
    assert_eq!(memory, (96 << 20).to_string());
    assert_eq!(stage.quota(&uid), "30000");
    let unified = Path::new("/sys/fs/cgroup").join(&stage.cgroup_root).join(&uid);
    if unified.exists() {
        let as_one = fs::read_to_string(unified.join("first-0/memory.oom.group"));
        assert_eq!(as_one.expect("version 2 has it"), "1\n");
    }

    // Who is killed has no quota to wait for, not his pod's either; the next start brings it back.
    let killed = stage.runtime.signal(&uid, "first", SIGKILL).await;
    killed.expect("killed");
    stage.exit("first").await;
    assert!(["-1", "max"].contains(&stage.quota(&uid).as_str()));
    start("second").await;
    assert_eq!(stage.quota(&uid), "30000");
    stage.end().await;
}

/// On version 1 the shim's helper enters a container's groups and leaves them; libcontainer finds none.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_alone_in_its_groups_and_has_none_of_the_host_open() {
    let stage = Stage::new("alone").await;
    let config = ContainerConfig {
        resources: Resources {
            cpu_shares: Some(512),
            memory_bytes: Some(64 << 20),
            pids: Some(64),
            ..Resources::default()
        },
        ..stage.container("main", &["sleep", "1000"])
    };
    let uid = &stage.pod.uid;
    let started = stage.runtime.start_container(uid, &config).await;
    started.expect("starts");
    let status = stage.runtime.status(uid).await.expect("a status");
    let Some(ContainerState::Running { pid, .. }) = status.container("main").map(|main| &main.state) else {
        panic!("{status:?}")
    };
    let own = format!("{}/{uid}/main-0", stage.cgroup_root);
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its groups");
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let limiting = [
        "blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids",
    ];
    let mut counted = 0;
    for line in groups.lines() {
        let (hierarchy, path) = line
            .split_once(':')
            .and_then(|(_, rest)| rest.split_once(':'))
            .expect(line);
        if !unified && !hierarchy.split(',').any(|name| limiting.contains(&name)) {
            continue;
        }
        assert!(path.ends_with(&own), "{groups}");
        let members = Path::new("/sys/fs/cgroup")
            .join(hierarchy)
            .join(&own)
            .join("cgroup.procs");
        let members = fs::read_to_string(&members).expect("its members");
        assert_eq!(members.trim(), pid.to_string(), "{line}");
        counted += 1;
    }
    assert!(counted > 0, "{groups}");
    let group = format!("{uid}/main-0");
    for (old, new, value) in [
        (
            ("memory", "memory.limit_in_bytes"),
            "memory.max",
            &["67108864"][..],
        ),
        (("pids", "pids.max"), "pids.max", &["64"]),
        (("cpu", "cpu.shares"), "cpu.weight", &["512", "20"]),
    ] {
        let found = stage.group_file(&group, old, new);
        assert!(value.contains(&found.as_str()), "{new}: {found}");
    }
    // From the kernel's `magic.h`: control groups of version 1 and 2, and `/proc`.
    let of_the_host = |process: i32| {
        let open = fs::read_dir(format!("/proc/{process}/fd")).expect("descriptors");
        let kinds = open
            .flatten()
            .filter_map(|entry| rustix::fs::statfs(entry.path()).ok());
        let mut kinds: Vec<_> = kinds.map(|stat| stat.f_type).collect();
        kinds.retain(|kind| [0x0027_e0eb, 0x6367_7270, 0x9fa0].contains(kind));
        kinds
    };
    assert!(
        of_the_host(status.shim_pid).contains(&0x9fa0),
        "libcontainer's `/proc`"
    );
    for process in [*pid, status.holder_pid] {
        assert!(of_the_host(process).is_empty(), "{process}");
    }
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", status.shim_pid)).expect("its mounts");
    assert!(!mounts.contains(" - cgroup "), "{mounts}");
    stage.end().await;
}

/// Both keep every processor busy; what each gets is the kernel's choice between their pods' groups.
#[tokio::test(flavor = "multi_thread")]
async fn pods_share_the_processors_as_they_request() {
    let mut stage = Stage::without_pod("podshares");
    let weighing = |cpu_shares| PodResources {
        cpu_shares: Some(cpu_shares),
        ..PodResources::default()
    };
    stage.pod.resources = weighing(2048);
    let light = PodConfig {
        uid: format!("light-{}", std::process::id()),
        resources: weighing(2),
        ..stage.pod.clone()
    };
    let processors = std::thread::available_parallelism().expect("a number");
    let spin =
        format!("for i in $(busybox seq {processors}); do (while :; do :; done) & done; echo up; wait");
    for (pod, name) in [(&light, "light"), (&stage.pod, "heavy")] {
        stage.runtime.start_pod(pod).await.expect("the pod starts");
        let config = ContainerConfig {
            // Within the pod it is alone, so that this says nothing.
            resources: Resources {
                cpu_shares: Some(1024),
                ..Resources::default()
            },
            ..stage.container(name, &["busybox", "sh", "-c", &spin])
        };
        let started = stage.runtime.start_container(&pod.uid, &config).await;
        started.expect("starts");
    }
    wait_for(|| stage.output("heavy") == "up\n" && stage.output("light") == "up\n");
    let spent = |pod: &PodConfig, name: &str| {
        let usage = stage.runtime.usage(&pod.uid, &[(name.to_owned(), 0)]);
        usage.expect("a measurement").cpu_nanos
    };
    let both = || [spent(&stage.pod, "heavy"), spent(&light, "light")];
    // What else runs on the machine leaves gaps that the light one fills: not in each of many moments.
    let mut windows = Vec::new();
    for _ in 0..15 {
        let before = both();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = both();
        windows.push([after[0] - before[0], after[1] - before[1]]);
        if windows.last().is_some_and(|[heavy, light]| *heavy > 8 * light) {
            break;
        }
    }
    stage.runtime.remove_pod(&light.uid).await.expect("removed");
    println!("nanoseconds of 2048 shares and of 2: {windows:?}");
    let [heavy, light_one] = windows.pop().expect("a window");
    assert!(heavy > 8 * light_one, "{windows:?}, last {heavy} to {light_one}");
    stage.end().await;
}
