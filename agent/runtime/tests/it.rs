//! Pods on the running kernel, with a root file system of static busybox. Needs root, as the agent does.

#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_runtime::{
    ContainerConfig, ContainerState, Exit, Mount, PodConfig, PodResources, PodStatus, Resources, Runtime,
    RuntimeConfig, RuntimeError, Streams,
};
use agent_sandbox::Profile;

#[path = "it/crashes.rs"]
mod crashes;
#[path = "it/devices.rs"]
mod devices;
#[path = "it/groups.rs"]
mod groups;
#[path = "it/processes.rs"]
mod processes;
#[path = "it/sandbox.rs"]
mod sandbox;
#[path = "it/sessions.rs"]
mod sessions;

const SIGKILL: i32 = 9;

/// How long what should happen may take. Nothing is concluded from how long it took, so a slow machine (an emulated one,
/// say) may multiply it.
fn patience() -> Duration {
    let times =
        std::env::var("PALISADE_TEST_PATIENCE").map_or(1, |text| text.parse().expect("a whole number"));
    Duration::from_secs(20) * times
}

/// A runtime of its own in a temporary directory, and one pod.
struct Stage {
    runtime: Runtime,
    directory: tempfile::TempDir,
    cgroup_root: String,
    pod: PodConfig,
}

impl Stage {
    async fn new(name: &str) -> Self {
        let stage = Self::without_pod(name);
        stage.runtime.start_pod(&stage.pod).await.expect("the pod starts");
        stage
    }

    fn without_pod(name: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        make_image(&directory.path().join("image"));
        fs::create_dir(directory.path().join("logs")).expect("mkdir");
        let cgroup_root = format!("palisade-test-{}-{name}", std::process::id());
        let runtime = Runtime::new(RuntimeConfig {
            shim: helper(),
            state_dir: directory.path().join("state"),
            run_dir: directory.path().join("run"),
            cgroup_root: cgroup_root.clone(),
        })
        .expect("valid");
        let pod = PodConfig {
            uid: format!("{name}-{}", std::process::id()),
            namespace: "default".into(),
            name: name.into(),
            hostname: "web-0".into(),
            id_base: 3_000_000,
            id_count: 65_536,
            shares_processes: false,
            pids: None,
            resources: PodResources::default(),
        };
        Self {
            runtime,
            directory,
            cgroup_root,
            pod,
        }
    }

    fn container(&self, name: &str, argv: &[&str]) -> ContainerConfig {
        ContainerConfig {
            name: name.into(),
            attempt: 0,
            layers: vec![self.directory.path().join("image")],
            argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec![
                ("PATH".into(), "/bin:/app".into()),
                ("COLOUR".into(), "blue".into()),
            ],
            cwd: "/work/here".into(),
            uid: 0,
            gid: 0,
            supplemental_gids: vec![],
            mounts: vec![],
            read_only_root: false,
            image_volumes: vec![],
            capabilities: vec!["CAP_CHOWN".into(), "CAP_KILL".into()],
            streams: Streams::default(),
            resources: Resources::default(),
            oom_score_adj: 0,
            stop_signal: 15,
            profile: Profile::baseline(),
            log_path: self.log(name),
            log_max_bytes: 1 << 20,
            log_max_files: 3,
            pid_namespace: agent_runtime::PidNamespace::Own,
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.path().join("logs").join(name)
    }

    /// Starts a container, waits for its end, and returns that and its output.
    async fn run(&self, config: &ContainerConfig) -> (Exit, String) {
        self.runtime
            .start_container(&self.pod.uid, config)
            .await
            .expect("the container starts");
        let exit = self.exit(&config.name).await;
        (exit, self.output(&config.name))
    }

    async fn shell(&self, name: &str, script: &str) -> (Exit, String) {
        self.run(&self.container(name, &["sh", "-c", script])).await
    }

    async fn exit(&self, name: &str) -> Exit {
        let status = self.until(|status| {
            matches!(
                status.container(name).map(|found| &found.state),
                Some(ContainerState::Exited(_))
            )
        });
        match &status.await.container(name).expect("found above").state {
            ContainerState::Exited(exit) => exit.clone(),
            other => panic!("{other:?}"),
        }
    }

    async fn until(&self, wanted: impl Fn(&PodStatus) -> bool) -> PodStatus {
        let wait = async {
            let mut status = self.runtime.status(&self.pod.uid).await.expect("a status");
            while !wanted(&status) {
                let change = self.runtime.wait_change(&self.pod.uid, status.version);
                status = change.await.expect("a status");
            }
            status
        };
        tokio::time::timeout(patience(), wait).await.expect("in time")
    }

    async fn exec(&self, name: &str, script: &str) -> (i32, String) {
        let argv = ["sh", "-c", script].map(String::from);
        let output = self
            .runtime
            .exec(&self.pod.uid, name, &argv, patience())
            .await
            .expect("runs");
        (
            output.code,
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    }

    /// The log without its prefixes.
    fn output(&self, name: &str) -> String {
        let log = fs::read_to_string(self.log(name)).expect("a log");
        log.lines()
            .map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n")
            .collect()
    }

    /// Removes the pod and shows that nothing stays behind.
    async fn end(self) {
        let status = self.runtime.status(&self.pod.uid).await.ok();
        self.runtime.remove_pod(&self.pod.uid).await.expect("removed");
        self.nothing_is_left(status).await;
    }

    async fn nothing_is_left(&self, status: Option<PodStatus>) {
        self.runtime.trash().emptied().await.expect("emptied");
        for directory in ["run", "state"] {
            let left: Vec<_> = fs::read_dir(self.directory.path().join(directory))
                .expect("lists")
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
        // The one hierarchy of version 2, or one directory for each of several.
        let mount = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(mount)
            .expect("lists")
            .flatten()
            .map(|entry| entry.path());
        for hierarchy in hierarchies.chain([mount.to_owned()]) {
            let group = hierarchy.join(&self.cgroup_root);
            assert!(!group.exists(), "{} is left", group.display());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("reads");
        assert!(
            !mounts.contains(self.directory.path().to_str().expect("text")),
            "{mounts}"
        );
        if let Some(status) = status {
            wait_for(|| !alive(status.holder_pid) && !alive(status.shim_pid));
        }
    }
}

/// A failed test leaves nothing behind either.
impl Drop for Stage {
    fn drop(&mut self) {
        let status = self
            .directory
            .path()
            .join("run")
            .join(&self.pod.uid)
            .join("status.json");
        let Some(status) = fs::read(status)
            .ok()
            .and_then(|text| serde_json::from_slice::<PodStatus>(&text).ok())
        else {
            return;
        };
        if let Some(pid) = rustix::process::Pid::from_raw(status.shim_pid) {
            // Its containers and its mounts go with it.
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let (runtime, uid) = (self.runtime.clone(), self.pod.uid.clone());
        let removal = std::thread::spawn(move || {
            let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
            executor.map(|executor| executor.block_on(runtime.remove_pod(&uid)))
        });
        let _best_effort = removal.join();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_and_its_end_is_told() {
    let stage = Stage::new("basic").await;
    let (exit, output) = stage
        .shell("main", "echo hello; echo oops >&2; pwd; hostname; exit 7")
        .await;
    assert_eq!(
        (exit.code, exit.signal, exit.oom_killed),
        (7, None, false),
        "{exit:?}"
    );
    assert!(exit.started_at.expect("it started") <= exit.finished_at);
    let mut lines: Vec<_> = output.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["/work/here", "hello", "oops", "web-0"]);
    let log = fs::read_to_string(stage.log("main")).expect("a log");
    assert!(
        log.contains(" stdout F hello\n") && log.contains(" stderr F oops\n"),
        "{log}"
    );

    let again = stage
        .runtime
        .start_container(&stage.pod.uid, &stage.container("main", &["true"]))
        .await;
    assert!(
        again.expect_err("refused").to_string().contains("remove it"),
        "the name is taken"
    );
    stage
        .runtime
        .remove_container(&stage.pod.uid, "main")
        .await
        .expect("removed");
    let (exit, _) = stage
        .run(&ContainerConfig {
            attempt: 1,
            ..stage.container("main", &["true"])
        })
        .await;
    assert_eq!(exit.code, 0);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_and_exec_are_confined_alike() {
    let stage = Stage::new("alike").await;
    let script = "grep -E '^(Seccomp|Seccomp_filters|NoNewPrivs|Cap...|Uid|Gid|Groups):' /proc/self/status; \
                  cat /proc/self/uid_map /proc/self/gid_map; echo $COLOUR $HOME; pwd; env | wc -l; \
                  (echo x > /app/new) 2>&1; mkdir /tmp/$$; cd /tmp/$$; cp /bin/busybox copy; ./copy true 2>&1; cd /";
    let sleeper = ContainerConfig {
        uid: 1000,
        gid: 1000,
        supplemental_gids: vec![2000],
        ..stage.container("main", &["sh", "-c", &format!("{script}; exec sleep 1000")])
    };
    stage
        .runtime
        .start_container(&stage.pod.uid, &sleeper)
        .await
        .expect("starts");
    let (code, from_exec) = stage.exec("main", script).await;
    assert_eq!(code, 0, "{from_exec}");
    wait_for(|| stage.output("main").lines().count() == from_exec.lines().count());
    let from_init = stage.output("main");
    assert_eq!(from_init, from_exec, "init and exec differ");
    let fields: BTreeMap<_, _> = from_init
        .lines()
        .filter_map(|line| line.split_once(":\t"))
        .collect();
    assert_eq!(fields["Seccomp"], "2");
    assert_eq!(fields["Seccomp_filters"], "1");
    assert_eq!(fields["NoNewPrivs"], "1");
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(
            fields[set], "0000000000000000",
            "an unprivileged user has no capability: {set}"
        );
    }
    assert_eq!(fields["CapBnd"], "0000000000000021", "CAP_CHOWN and CAP_KILL");
    assert_eq!(fields["Uid"], "1000\t1000\t1000\t1000");
    assert_eq!(fields["Groups"].trim(), "2000");
    assert_eq!(fields["Gid"], "1000\t1000\t1000\t1000");
    assert_eq!(
        from_init.matches("3000000      65536").count(),
        2,
        "users and groups: {from_init}"
    );
    assert!(
        from_init.ends_with("./copy: Permission denied\n"),
        "Landlock: {from_init}"
    );
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_baseline_refuses_is_refused_in_init_and_exec() {
    let stage = Stage::new("refuse").await;
    let script = "unshare -n true 2>&1; mount -t tmpfs x /tmp 2>&1; \
        echo x 2>&1 > /bin/evil; echo x > /sys/kernel/mm/x; cat /sys/kernel/notes; \
        cp /bin/busybox /tmp/dropped && /tmp/dropped true; /app/tool; cp /app/tool /app/new; /app/new; \
        cat /proc/kcore | wc -c; echo x > /proc/sys/kernel/hostname; \
        mkdir /top; echo fine > /etc/note && cat /etc/note; id -u";
    let config = stage.container(
        "main",
        &["sh", "-c", &format!("({script}) 2>&1; exec sleep 1000")],
    );
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    // One after the other: they write to the same files.
    wait_for(|| stage.output("main").ends_with("fine\n0\n"));
    let (_, from_exec) = stage.exec("main", &format!("({script}) 2>&1")).await;
    for text in [stage.output("main"), from_exec] {
        for expected in [
            "unshare(0x40000000): Operation not permitted",
            "mount: permission denied",
            "can't create /bin/evil: Permission denied",
            "can't open '/sys/kernel/notes': Permission denied",
            "/tmp/dropped: Permission denied",
            "/app/new: Permission denied",
            "app-runs",
            "hostname: Read-only file system",
            "can't create directory '/top': Permission denied",
            "fine",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
        }
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_go_before_what_watches_them_when_memory_is_used_up() {
    let stage = Stage::new("oom-score").await;
    let script = "cat /proc/self/oom_score_adj; echo 320 > /proc/self/oom_score_adj 2> /dev/null; cat /proc/self/oom_score_adj; \
        trap 'exit 0' TERM; echo up; while :; do sleep 1; done";
    let config = ContainerConfig {
        oom_score_adj: 321,
        ..stage.container("main", &["sh", "-c", script])
    };
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    wait_for(|| stage.output("main").contains("up\n"));
    let capabilities = rustix::thread::capabilities(None).expect("capabilities");
    let may_spare = capabilities
        .effective
        .contains(rustix::thread::CapabilitySet::SYS_RESOURCE);
    // The kernel lets a process take back what one with the capability has not said.
    let lower = if may_spare { "321" } else { "320" };
    assert_eq!(stage.output("main"), format!("321\n{lower}\nup\n"));
    let (_, from_exec) = stage.exec("main", "cat /proc/self/oom_score_adj").await;
    assert_eq!(from_exec, "321\n");
    let status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
    let shim = status.shim_pid;
    let of_shim = fs::read_to_string(format!("/proc/{shim}/oom_score_adj")).expect("the shim lives");
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("a number");
    assert_eq!(of_shim, if may_spare { "-999\n" } else { &own });
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_habits_of_images_work() {
    let stage = Stage::new("habits").await;
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; mkfifo /tmp/pipe; ln -s a /tmp/link; \
        mkdir -p /tmp/a/b && mv /tmp/a/b /tmp/c; echo 500 > /proc/self/oom_score_adj; ls / > /dev/null; \
        head -c 10 /dev/urandom > /dev/null; ls /sys/fs/cgroup /sys/devices/system/cpu > /dev/null; \
        (sleep 0; echo child) & wait; nc -l -p 80 -w 1 127.0.0.1; trap 'echo term; exit 5' TERM; echo up; \
        while :; do sleep 1; done";
    let config = ContainerConfig {
        uid: 1000,
        gid: 1000,
        ..stage.container("main", &["sh", "-c", script])
    };
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    wait_for(|| stage.output("main").contains("up\n"));
    stage
        .runtime
        .signal(&stage.pod.uid, "main", 15)
        .await
        .expect("signals");
    assert_eq!(
        stage.exit("main").await.code,
        5,
        "the trap ran: {}",
        stage.output("main")
    );
    let mut lines: Vec<_> = stage.output("main").lines().map(String::from).collect();
    lines.sort_unstable();
    // `nc` times out after one second; that it may listen on port 80 is the point.
    lines.retain(|line| !line.contains("timed out"));
    assert_eq!(lines, ["child", "err", "out", "term", "up"]);
    stage.end().await;
}

/// As with `WORKDIR /data/app` in an image whose pod has a volume at `/data`.
#[tokio::test(flavor = "multi_thread")]
async fn a_working_directory_is_made_in_what_is_mounted_over_it() {
    let stage = Stage::new("workdir").await;
    let base = stage.directory.path();
    for made in ["volume/there", "volume/part", "outside", "image/srv"] {
        fs::create_dir_all(base.join(made)).expect("mkdir");
    }
    for (target, link) in [
        ("/data/linked", "image/srv/to-volume"),
        ("../outside", "volume/up"),
        ("/etc", "volume/to-image"),
    ] {
        symlink(target, base.join(link)).expect("link");
    }
    let config = |name: &str, cwd: &str, sub_path: Option<&str>, read_only| {
        let mut config = stage.container(name, &["sh", "-c", "pwd; stat -c '%u:%g %a' ."]);
        config.cwd = cwd.into();
        config.mounts.push(Mount {
            source: base.join("volume"),
            sub_path: sub_path.map(Into::into),
            target: "/data".into(),
            read_only,
            executable: false,
        });
        config
    };
    for (name, cwd, sub_path, made) in [
        ("deep", "/data/app/deep", None, "volume/app/deep"),
        ("link", "/srv/to-volume/x", None, "volume/linked/x"),
        ("part", "/data/app", Some("part"), "volume/part/app"),
        ("again", "/data/app/deep", None, "volume/app/deep"),
    ] {
        let (exit, output) = stage.run(&config(name, cwd, sub_path, false)).await;
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(
            (exit.code, lines.last()),
            (0, Some(&"0:0 755")),
            "{name}: {output}"
        );
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(base.join(made)).expect(name));
        assert_eq!(owner, 0, "{name}: root of the pod, on the disk");
    }
    for (name, cwd, read_only, at) in [
        ("exists", "/data/there", true, "/data/there"),
        ("mount", "/data", true, "/data"),
        ("beside", "/database", true, "/database"),
        ("image", "/data/to-image", false, "/etc"),
    ] {
        let (exit, output) = stage.run(&config(name, cwd, None, read_only)).await;
        assert_eq!(
            (exit.code, output.lines().next()),
            (0, Some(at)),
            "{name}: {output}"
        );
    }
    let missing = config("missing", "/data/none", None, true);
    let refused = stage.runtime.start_container(&stage.pod.uid, &missing).await;
    let error = refused.expect_err("there is nothing and cannot be").to_string();
    assert!(
        error.contains("workingDir") && error.contains("/data/none") && error.contains("at /data,"),
        "{error}"
    );
    // Whoever writes to the volume has put a link there. What it leads to in the container is not there either.
    let out = config("out", "/data/up/made", None, false);
    let refused = stage.runtime.start_container(&stage.pod.uid, &out).await;
    assert!(refused.is_err(), "{refused:?}");
    assert!(!base.join("outside/made").exists() && !base.join("volume/none").exists());
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_the_image_can_be_written_under_a_read_only_root() {
    let stage = Stage::new("imagevolumes").await;
    let image = stage.directory.path().join("image");
    for path in ["srv/data", "var"] {
        fs::create_dir_all(image.join(path)).expect("mkdir");
    }
    fs::write(image.join("srv/data/seed"), "of the image\n").expect("write");
    std::os::unix::fs::chown(image.join("srv/data"), Some(1000), Some(1000)).expect("chown");
    fs::set_permissions(image.join("srv/data"), fs::Permissions::from_mode(0o700)).expect("chmod");
    symlink("/srv", image.join("var/lib")).expect("symlink");
    let mount = |name: &str, target: &str| {
        let source = stage.directory.path().join(name);
        fs::create_dir(&source).expect("mkdir");
        Mount {
            source,
            sub_path: None,
            target: target.into(),
            read_only: false,
            executable: false,
        }
    };
    let script = "exec 2>&1; cd /srv/data; cat seed; echo x >>seed; echo x >sub/note; echo made >/new/deep/note; \
        cat /new/deep/note; stat -c '%u %g %a' . /new/deep; cp /bin/busybox sh && ./sh true; \
        ls /mounted; echo x >/srv/x; echo x >/new/x; echo end; exec sleep 1000";
    let config = ContainerConfig {
        read_only_root: true,
        // The first leads to /srv/data; what is mounted takes the place of the last two.
        image_volumes: [
            "/var/lib/data",
            "/new/deep",
            "/srv/data",
            "/mounted/in",
            "/mounted",
        ]
        .map(Into::into)
        .to_vec(),
        mounts: vec![mount("sub", "/srv/data/sub"), mount("whole", "/mounted")],
        ..stage.container("main", &["sh", "-c", script])
    };
    let config = ContainerConfig {
        capabilities: vec!["CAP_CHOWN".into(), "CAP_DAC_OVERRIDE".into()],
        ..config
    };
    let started = stage.runtime.start_container(&stage.pod.uid, &config).await;
    started.expect("the container starts");
    wait_for(|| stage.output("main").ends_with("end\n"));
    assert_eq!(
        stage.output("main"),
        "of the image\nmade\n1000 1000 700\n0 0 755\nsh: ./sh: Permission denied\n\
         sh: can't create /srv/x: Read-only file system\nsh: can't create /new/x: Read-only file system\nend\n"
    );
    let (exit, output) = stage
        .exec("main", "echo y >>/srv/data/seed && cat /srv/data/seed")
        .await;
    assert_eq!((exit, output.as_str()), (0, "of the image\nx\ny\n"));
    let seed = fs::read_to_string(image.join("srv/data/seed")).expect("of the image");
    assert_eq!(seed, "of the image\n", "what is written is the container's own");
    assert!(stage.directory.path().join("sub/note").exists());
    assert!(!stage.directory.path().join("whole/in").exists());
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_root_leaves_volumes_writable() {
    let stage = Stage::new("readonly").await;
    let volume = stage.directory.path().join("volume");
    fs::create_dir(&volume).expect("mkdir");
    fs::write(stage.directory.path().join("hosts"), "127.0.0.1 localhost\n").expect("write");
    let config = ContainerConfig {
        read_only_root: true,
        mounts: vec![
            Mount {
                source: volume.clone(),
                sub_path: None,
                target: "/data".into(),
                read_only: false,
                executable: false,
            },
            Mount {
                source: stage.directory.path().join("hosts"),
                sub_path: None,
                target: "/etc/hosts".into(),
                read_only: true,
                executable: false,
            },
        ],
        ..stage.container(
            "main",
            &[
                "sh",
                "-c",
                "exec 2>&1; echo x > /etc/note; echo x > /data/note && echo kept; \
                echo x > /dev/shm/note && echo shared; cat /etc/hosts; echo x > /etc/hosts",
            ],
        )
    };
    let (_, output) = stage.run(&config).await;
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(
        lines,
        [
            "sh: can't create /etc/note: Read-only file system",
            "kept",
            "shared",
            "127.0.0.1 localhost",
            "sh: can't create /etc/hosts: Read-only file system",
        ]
    );
    stage.end().await;
}

/// `/var/run` and `/etc/resolv.conf` are links in many images. What is mounted there is where they lead, also where the image
/// has nothing there, and the order in which mounts are named does not matter.
#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_where_the_images_links_lead_and_parts_lie_in_them() {
    let stage = Stage::new("links").await;
    let image = stage.directory.path().join("image");
    fs::create_dir(image.join("var")).expect("mkdir");
    symlink("/run", image.join("var/run")).expect("symlink");
    symlink("../run/resolve/stub.conf", image.join("etc/resolv.conf")).expect("symlink");
    let mount = |name: &str, target: &str, read_only| {
        let source = stage.directory.path().join(name);
        if read_only {
            fs::write(&source, format!("{name}\n")).expect("write");
        } else {
            fs::create_dir(&source).expect("mkdir");
        }
        Mount {
            source,
            sub_path: None,
            target: target.into(),
            read_only,
            executable: false,
        }
    };
    let script = "exec 2>&1; cat /etc/resolv.conf /data/in/note; \
        echo kept >/var/run/note && cat /run/note; echo kept >/data/note && cat /data/note; \
        cp /bin/busybox /run/sh && /run/sh true";
    let argv = ["sh", "-c", &format!("{script}; echo end; exec sleep 1000")];
    let config = ContainerConfig {
        mounts: vec![
            mount("resolv", "/etc/resolv.conf", true),
            mount("note", "/data/in/note", true),
            mount("data", "/data", false),
            mount("socket", "/var/run", false),
        ],
        ..stage.container("main", &argv)
    };
    let started = stage.runtime.start_container(&stage.pod.uid, &config).await;
    started.expect("the container starts");
    wait_for(|| stage.output("main").ends_with("end\n"));
    let expected = "resolv\nnote\nkept\nkept\nsh: /run/sh: Permission denied\n";
    assert_eq!(stage.output("main"), format!("{expected}end\n"));
    assert_eq!(stage.exec("main", script).await.1, expected);
    let written = |path: &str| fs::read_to_string(stage.directory.path().join(path)).expect("written");
    assert_eq!(written("socket/note"), "kept\n");
    assert_eq!(written("data/note"), "kept\n");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_stack_and_whiteouts_hide() {
    let stage = Stage::new("layers").await;
    let upper = stage.directory.path().join("upper-layer");
    for path in ["etc", "app", "opt/x"] {
        fs::create_dir_all(upper.join(path)).expect("mkdir");
    }
    fs::write(upper.join("etc/note"), "newer\n").expect("write");
    let device = rustix::fs::makedev(0, 0);
    let mode = rustix::fs::Mode::from_raw_mode(0);
    let whiteout = upper.join("app/tool");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &whiteout,
        rustix::fs::FileType::CharacterDevice,
        mode,
        device,
    )
    .expect("mknod");
    let config = stage.container(
        "main",
        &["sh", "-c", "exec 2>&1; cat /etc/note; ls /app; /app/tool"],
    );
    let layers = vec![config.layers[0].clone(), upper];
    let (exit, output) = stage.run(&ContainerConfig { layers, ..config }).await;
    assert_eq!(
        (exit.code, output.as_str()),
        (127, "newer\nsh: /app/tool: not found\n")
    );
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_run_says_why() {
    let stage = Stage::new("cannot").await;
    let config = stage.container("main", &["no-such-program"]);
    let error = stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect_err("fails");
    assert!(
        error.to_string().contains("\"no-such-program\": No such file"),
        "{error}"
    );
    assert!(matches!(error, RuntimeError::NotExecutable { .. }), "{error:?}");
    let exit = stage.exit("main").await;
    assert_eq!((exit.code, exit.started_at), (128, None));

    // Whatever fails before is not the program's end, and the same start may be tried again.
    let mut config = stage.container("mounted", &["true"]);
    config.mounts = vec![Mount {
        source: stage.directory.path().join("logs"),
        sub_path: None,
        target: "/etc/note/below".into(),
        read_only: true,
        executable: false,
    }];
    let started = stage.runtime.start_container(&stage.pod.uid, &config).await;
    let error = started.expect_err("there is a file in the way");
    assert!(matches!(error, RuntimeError::Refused { .. }), "{error:?}");
    let status = stage.runtime.status(&stage.pod.uid).await.expect("a status");
    let state = &status.container("mounted").expect("to be removed").state;
    assert!(matches!(state, ContainerState::Failed { .. }), "{state:?}");
    let removed = stage.runtime.remove_container(&stage.pod.uid, "mounted").await;
    removed.expect("removed");
    config.mounts.clear();
    assert_eq!(stage.run(&config).await.0.code, 0);
    let missing = ContainerConfig {
        layers: vec!["/nonexistent/layer".into()],
        ..stage.container("two", &["true"])
    };
    let error = stage
        .runtime
        .start_container(&stage.pod.uid, &missing)
        .await
        .expect_err("fails");
    assert!(error.to_string().contains("layer"), "{error}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_belong_to_the_pods_ids() {
    let stage = Stage::new("owners").await;
    let volume = stage.directory.path().join("volume");
    fs::create_dir(&volume).expect("mkdir");
    fs::write(volume.join("config"), "from the host").expect("write");
    let mount = |target: &str, read_only, executable| Mount {
        source: volume.clone(),
        sub_path: None,
        target: target.into(),
        read_only,
        executable,
    };
    let scripts = stage.directory.path().join("scripts");
    fs::create_dir(&scripts).expect("mkdir");
    for directory in [&volume, &scripts] {
        let script = directory.join("run.sh");
        fs::write(&script, "#!/bin/sh\necho ran\n").expect("write");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    let config = ContainerConfig {
        mounts: vec![
            mount("/data", false, false),
            mount("/ro", true, false),
            Mount {
                source: scripts.clone(),
                ..mount("/exec", true, true)
            },
        ],
        ..stage.container(
            "main",
            &[
                "sh",
                "-c",
                "stat -c %u:%g /bin/busybox /data/config; cat /data/config; echo; \
                echo new > /data/new; echo x > /ro/new; echo over > /etc/note; /data/run.sh; /exec/run.sh",
            ],
        )
    };
    let (_, output) = stage.run(&config).await;
    assert!(output.starts_with("0:0\n0:0\nfrom the host\n"), "{output}");
    assert!(output.contains("/ro/new: Read-only file system"), "{output}");
    assert!(output.contains("/data/run.sh: Permission denied"), "{output}");
    assert_eq!(
        output.matches("ran\n").count(),
        1,
        "only from the executable mount: {output}"
    );
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        fs::metadata(volume.join("new")).expect("written").uid(),
        0,
        "shifted back on a volume"
    );
    let upper = stage
        .directory
        .path()
        .join("state")
        .join(&stage.pod.uid)
        .join("main-0/upper/etc/note");
    assert_eq!(
        fs::metadata(upper).expect("written").uid(),
        3_000_000,
        "nothing of root's on the host"
    );
    assert_eq!(
        fs::read_to_string(stage.directory.path().join("image/etc/note")).expect("kept"),
        "image\n"
    );
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_bite_and_memory_shortage_is_named() {
    let stage = Stage::new("limits").await;
    let config = ContainerConfig {
        resources: Resources {
            memory_bytes: Some(32 << 20),
            pids: Some(8),
            ..Resources::default()
        },
        ..stage.container(
            "main",
            &[
                "sh",
                "-c",
                "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done; wait",
            ],
        )
    };
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    assert_ne!(stage.exit("main").await.code, 0);
    assert!(
        stage.output("main").contains("can't fork"),
        "{}",
        stage.output("main")
    );

    let config = ContainerConfig {
        resources: Resources {
            memory_bytes: Some(32 << 20),
            ..Resources::default()
        },
        ..stage.container(
            "eater",
            &["sh", "-c", "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done"],
        )
    };
    let (exit, _) = stage.run(&config).await;
    assert!(exit.oom_killed, "{exit:?}");
    assert_eq!(exit.code, 137);
    stage.end().await;
}

/// Each of the two may have as many as the pod; only the pod's own group keeps them to that together.
#[tokio::test(flavor = "multi_thread")]
async fn containers_together_stay_within_the_pods_limit_of_processes() {
    let mut stage = Stage::without_pod("podpids");
    let most = agent_runtime::MIN_POD_PIDS;
    stage.pod.pids = Some(most);
    stage.runtime.start_pod(&stage.pod).await.expect("the pod starts");
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; echo up; wait";
    let container = |name: &str| ContainerConfig {
        resources: Resources {
            pids: Some(most.into()),
            ..Resources::default()
        },
        ..stage.container(name, &["sh", "-c", script])
    };
    let start = async |name: &str| {
        let config = container(name);
        let started = stage.runtime.start_container(&stage.pod.uid, &config).await;
        started.expect("starts");
    };
    start("first").await;
    wait_for(|| stage.output("first") == "up\n");
    // A third of what it forks is too much beside the other.
    start("second").await;
    assert_ne!(stage.exit("second").await.code, 0);
    assert!(
        stage.output("second").contains("can't fork"),
        "{}",
        stage.output("second")
    );
    assert_eq!(stage.exec("first", "echo a probe").await.0, 0);

    stage
        .runtime
        .signal(&stage.pod.uid, "first", libc::SIGKILL)
        .await
        .expect("killed");
    stage.exit("first").await;
    start("alone").await;
    wait_for(|| stage.output("alone") == "up\n");
    stage.end().await;
}

/// The lab's virtual machine has swap; elsewhere this shows that shared memory counts.
#[tokio::test(flavor = "multi_thread")]
async fn swap_does_not_stretch_a_memory_limit() {
    let stage = Stage::new("swap").await;
    let config = ContainerConfig {
        resources: Resources {
            memory_bytes: Some(32 << 20),
            ..Resources::default()
        },
        ..stage.container(
            "main",
            &[
                "sh",
                "-c",
                "head -c 50331648 /dev/zero > /dev/shm/large; echo done",
            ],
        )
    };
    let (exit, output) = stage.run(&config).await;
    assert!(exit.oom_killed, "{exit:?} {output}");
    stage.end().await;
}

/// Processes die only while they run: a fork bomb on a small CPU quota would outlive its deletion by minutes.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_container_has_no_cpu_quota_to_wait_for() {
    let stage = Stage::new("quota").await;
    let config = ContainerConfig {
        resources: Resources {
            cpu_quota_us: Some(5_000),
            cpu_period_us: Some(100_000),
            ..Resources::default()
        },
        ..stage.container("main", &["sleep", "1000"])
    };
    let uid = &stage.pod.uid;
    let started = stage.runtime.start_container(uid, &config).await;
    started.expect("starts");
    let quota = || {
        let group = Path::new(&stage.cgroup_root).join(uid).join("main-0");
        let files = [("cpu", "cpu.cfs_quota_us"), ("", "cpu.max")].map(|(hierarchy, file)| {
            let hierarchy = Path::new("/sys/fs/cgroup").join(hierarchy);
            fs::read_to_string(hierarchy.join(&group).join(file)).ok()
        });
        let text = files.into_iter().flatten().next().expect("a CPU quota");
        text.split_whitespace().next().map(str::to_owned)
    };
    assert_eq!(quota().as_deref(), Some("5000"));
    stage
        .runtime
        .signal(uid, "main", libc::SIGKILL)
        .await
        .expect("signalled");
    assert_eq!(stage.exit("main").await.code, 137);
    let lifted = quota();
    assert!(matches!(lifted.as_deref(), Some("-1" | "max")), "{lifted:?}");
    stage.end().await;
}

/// Version 1 takes the number as it is; version 2 converts it to a weight, which is 100 by default.
#[tokio::test(flavor = "multi_thread")]
async fn cpu_shares_reach_the_kernel() {
    let stage = Stage::new("shares").await;
    let config = ContainerConfig {
        resources: Resources {
            cpu_shares: Some(512),
            ..Resources::default()
        },
        ..stage.container("main", &["sleep", "1000"])
    };
    let started = stage.runtime.start_container(&stage.pod.uid, &config).await;
    started.expect("starts");
    let group = Path::new(&stage.cgroup_root).join(&stage.pod.uid).join("main-0");
    let read = |hierarchy: &str, file: &str| {
        let path = Path::new("/sys/fs/cgroup")
            .join(hierarchy)
            .join(&group)
            .join(file);
        fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    };
    match (read("cpu", "cpu.shares"), read("", "cpu.weight")) {
        (Some(shares), None) => assert_eq!(shares, "512"),
        (None, Some(weight)) => assert!(
            (1..100).contains(&weight.parse::<u32>().expect("a number")),
            "{weight}"
        ),
        other => panic!("{other:?}"),
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_the_root_of_the_control_groups_it_sees() {
    let stage = Stage::new("cgroupns").await;
    let script = "cut -d: -f3 /proc/self/cgroup | sort -u";
    let config = stage.container("main", &["sh", "-c", &format!("{script}; exec sleep 1000")]);
    let started = stage.runtime.start_container(&stage.pod.uid, &config).await;
    started.expect("starts");
    let from_exec = stage.exec("main", script).await;
    wait_for(|| !stage.output("main").is_empty());
    assert_eq!(
        (from_exec, stage.output("main").as_str()),
        ((0, "/\n".to_owned()), "/\n")
    );
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_share_its_network_and_memory() {
    let stage = Stage::new("share").await;
    let first = stage.container(
        "first",
        &[
            "sh",
            "-c",
            "echo note > /dev/shm/note; readlink /proc/self/ns/net; readlink /proc/self/ns/pid; exec sleep 1000",
        ],
    );
    stage
        .runtime
        .start_container(&stage.pod.uid, &first)
        .await
        .expect("starts");
    wait_for(|| stage.output("first").lines().count() == 2);
    let (_, second) = stage
        .shell(
            "second",
            "readlink /proc/self/ns/net; readlink /proc/self/ns/pid; cat /dev/shm/note",
        )
        .await;
    let (first, second): (Vec<_>, Vec<_>) = (
        stage.output("first").lines().map(String::from).collect(),
        second.lines().map(String::from).collect(),
    );
    assert_eq!(first[0], second[0], "one network namespace");
    assert_ne!(first[1], second[1], "a pid namespace each");
    assert_eq!(second[2], "note");
    let netns = stage.runtime.status(&stage.pod.uid).await.expect("status").netns;
    assert_eq!(
        fs::read_link(netns).expect("reads").to_str(),
        Some(first[0].as_str())
    );
    stage.end().await;
}

/// Lines of two bytes are the most expensive ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_costs_the_shim_a_tenth_of_a_processor() {
    let stage = Stage::new("flood").await;
    let script = "trap 'echo last; exit 0' TERM; yes & wait";
    let config = stage.container("main", &["sh", "-c", script]);
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    let shim = stage
        .runtime
        .status(&stage.pod.uid)
        .await
        .expect("a status")
        .shim_pid;
    // What was saved before is spent by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (begun, before) = (Instant::now(), processor_time(shim));
    let share = loop {
        tokio::time::sleep(Duration::from_secs(4)).await;
        let spent = processor_time(shim).saturating_sub(before);
        let share = spent.as_secs_f64() / begun.elapsed().as_secs_f64();
        // On a slow machine a single turn may take all of these seconds, or be waited for longer.
        if (0.01..0.2).contains(&share) || begun.elapsed() > patience() * 3 {
            break share;
        }
    };
    println!("the shim takes {:.1} % of a processor", share * 100.0);
    assert!(share < 0.2, "{share}");
    assert!(share > 0.01, "{share}: nothing was read");
    stage
        .runtime
        .signal(&stage.pod.uid, "main", libc::SIGTERM)
        .await
        .expect("signals");
    assert_eq!(stage.exit("main").await.code, 0);
    let newest = fs::read_to_string(stage.log("main")).expect("reads");
    let before = fs::read_to_string(stage.log("main.1")).unwrap_or_default();
    assert!((before + &newest).contains(" last\n"), "what comes last is kept");
    stage.end().await;
}

fn processor_time(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("reads");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("fields").1.split(' ').collect();
    let ticks: u64 = fields[11..13]
        .iter()
        .map(|ticks| ticks.parse::<u64>().expect("ticks"))
        .sum();
    // Of a hundredth of a second, on every machine that Linux runs on today.
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_output_is_bounded_and_sessions_end() {
    let stage = Stage::new("exec").await;
    let config = stage.container("main", &["sleep", "1000"]);
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    let argv = |script: &str| ["sh", "-c", script].map(String::from);
    let flood = argv("head -c 3000000 /dev/zero; exit 3");
    let output = stage
        .runtime
        .exec(&stage.pod.uid, "main", &flood, patience())
        .await
        .expect("runs");
    assert_eq!(
        (output.code, output.stdout.len(), output.truncated),
        (3, 1 << 20, true)
    );
    let begun = Instant::now();
    let argv = argv("sleep 1000");
    let output = stage
        .runtime
        .exec(&stage.pod.uid, "main", &argv, Duration::from_millis(300))
        .await;
    assert_eq!(output.expect("runs").code, 137);
    assert!(begun.elapsed() < patience());
    stage
        .runtime
        .signal(&stage.pod.uid, "main", SIGKILL)
        .await
        .expect("signals");
    assert_eq!(stage.exit("main").await.signal, Some(SIGKILL));
    let late = stage
        .runtime
        .exec(&stage.pod.uid, "main", &argv, patience())
        .await
        .expect_err("fails");
    assert!(late.to_string().contains("does not run"), "{late}");
    stage.end().await;
}

/// Signals beyond the named ones, which the C library's wrappers and many libraries do not know.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_ignores_programs_do_not() {
    // SAFETY: no handler is installed. As `nohup` has it.
    unsafe {
        nix::sys::signal::signal(
            nix::sys::signal::Signal::SIGHUP,
            nix::sys::signal::SigHandler::SigIgn,
        )
    }
    .expect("ignored");
    let stage = Stage::new("heeds").await;
    let (_, output) = stage.shell("heeds", "grep SigIgn /proc/self/status").await;
    // SIGHUP is the lowest bit of the mask.
    let last = output
        .trim_end()
        .chars()
        .next_back()
        .and_then(|digit| digit.to_digit(16));
    assert_eq!(last.map(|digit| digit % 2), Some(0), "{output}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn realtime_signals_are_sent_and_told() {
    let stage = Stage::new("realtime").await;
    let script = "trap 'exit 6' 37; echo up; while :; do sleep 0.1; done";
    let config = ContainerConfig {
        stop_signal: 37,
        ..stage.container("main", &["sh", "-c", script])
    };
    let uid = &stage.pod.uid;
    let started = stage.runtime.start_container(uid, &config).await;
    started.expect("starts");
    wait_for(|| stage.output("main") == "up\n");
    // Whoever ends by one takes nobody along.
    let (code, _) = stage.exec("main", "kill -40 $$").await;
    assert_eq!(code, 168);
    // By an agent that knows no more than the shim does.
    stage.runtime.stop(uid, "main").await.expect("sent");
    assert_eq!(stage.exit("main").await.code, 6);
    for none in [-1, 65] {
        let refused = stage.runtime.signal(uid, "main", none).await;
        assert!(refused.expect_err("no signal").to_string().contains("no signal"));
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_of_a_missing_program_says_so() {
    let stage = Stage::new("missing").await;
    let config = stage.container("main", &["sleep", "1000"]);
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    let missing = ["/no/such".to_owned()];
    let error = stage
        .runtime
        .exec(&stage.pod.uid, "main", &missing, patience())
        .await
        .expect_err("fails");
    assert!(error.to_string().contains("/no/such"), "{error}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_outlive_the_agent_and_are_found_again() {
    let stage = Stage::new("recover").await;
    let config = stage.container("main", &["sleep", "1000"]);
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    // A second handle shares nothing with the first but the directories, as a restarted agent does.
    let restarted = Runtime::new(RuntimeConfig {
        shim: helper(),
        state_dir: stage.directory.path().join("state"),
        run_dir: stage.directory.path().join("run"),
        cgroup_root: stage.cgroup_root.clone(),
    })
    .expect("valid");
    let pods = restarted.recover().await.expect("recovers");
    assert_eq!(pods.len(), 1);
    assert!(pods[0].alive);
    assert_eq!(pods[0].config, stage.pod);
    let container = pods[0].status.container("main").expect("listed").state.clone();
    let ContainerState::Running { pid, .. } = container else {
        panic!("{container:?}")
    };

    // A dead shim takes its containers along; what is left is a record of that.
    kill(pods[0].status.shim_pid);
    wait_for(|| !alive(pid) && !alive(pods[0].status.holder_pid));
    let pods = restarted.recover().await.expect("recovers");
    assert!(!pods[0].alive);
    let state = &pods[0].status.container("main").expect("listed").state;
    assert!(
        matches!(state, ContainerState::Exited(exit) if exit.code == 137),
        "{state:?}"
    );
    restarted.remove_pod(&stage.pod.uid).await.expect("removed");
    assert!(restarted.recover().await.expect("recovers").is_empty());
    restarted.trash().emptied().await.expect("emptied");
    stage.nothing_is_left(Some(pods[0].status.clone())).await;
}

/// Others have millions of files, which are being removed.
#[tokio::test(flavor = "multi_thread")]
async fn removals_that_do_not_end_hold_up_no_start() {
    let stage = Stage::new("removals").await;
    let held = stage.runtime.trash().hold();
    let work = async {
        for round in 0..2 {
            for attempt in 0..2 {
                let script = "test ! -e /work/old && echo new > /work/old && cat /work/old";
                let mut config = stage.container("main", &["sh", "-c", script]);
                config.attempt = attempt;
                let (exit, output) = stage.run(&config).await;
                assert_eq!((exit.code, output.as_str()), (0, "new\n"), "{round} {attempt}");
                let removed = stage.runtime.remove_container(&stage.pod.uid, "main");
                removed.await.expect("removed");
                fs::remove_file(stage.log("main")).expect("a log");
            }
            stage.runtime.remove_pod(&stage.pod.uid).await.expect("removed");
            stage.runtime.start_pod(&stage.pod).await.expect("starts again");
        }
    };
    tokio::time::timeout(patience(), work).await.expect("in time");
    let trash = stage.directory.path().join("state/.trash");
    let places = || fs::read_dir(&trash).map_or(0, Iterator::count);
    assert_eq!(places(), 6, "two layers and the rest of the pod, twice");
    drop(held);
    // What this agent does not get done, the next one does.
    let next = Runtime::new(RuntimeConfig {
        shim: helper(),
        state_dir: stage.directory.path().join("state"),
        run_dir: stage.directory.path().join("run"),
        cgroup_root: stage.cgroup_root.clone(),
    })
    .expect("valid");
    wait_for(|| places() == 0);
    fs::create_dir_all(trash.join("7/of-a-pod/main-0/upper")).expect("mkdir");
    assert_eq!(next.recover().await.expect("recovers").len(), 1);
    wait_for(|| places() == 0);
    stage.end().await;
}

/// What was written down of it has fields that this version does not know.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_another_version_is_found_again() {
    let stage = Stage::new("version").await;
    let path = stage
        .directory
        .path()
        .join("run")
        .join(&stage.pod.uid)
        .join("launch.json");
    let mut launch: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("reads")).expect("valid");
    launch["later"] = 1.into();
    launch["pod"]["later"] = "x".into();
    launch["pod"]["resources"] = serde_json::json!({"cpu_shares": 2, "later": []});
    fs::write(&path, launch.to_string()).expect("writes");
    let found = stage.runtime.recover().await.expect("recovers");
    let [pod] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert!(pod.alive);
    let resources = PodResources {
        cpu_shares: Some(2),
        ..PodResources::default()
    };
    let expected = PodConfig {
        resources,
        ..stage.pod.clone()
    };
    assert_eq!(pod.config, expected);
    let (_, output) = stage.shell("main", "echo lives").await;
    assert_eq!(output, "lives\n");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_loses_no_pod() {
    use std::io::BufRead;
    let stage = Stage::without_pod("killed");
    let script = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.05; done";
    let config = stage.container("main", &["sh", "-c", script]);
    let write = |name: &str, text: serde_json::Result<Vec<u8>>| {
        fs::write(stage.directory.path().join(name), text.expect("serialises")).expect("write");
    };
    write("pod.json", serde_json::to_vec(&stage.pod));
    write("container.json", serde_json::to_vec(&config));
    let mut agent = std::process::Command::new(helper())
        .arg("agent")
        .arg(stage.directory.path())
        .arg(&stage.cgroup_root)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    let output = agent.stdout.take().expect("piped");
    std::io::BufReader::new(output)
        .read_line(&mut line)
        .expect("reads");
    assert_eq!(line, "up\n");
    agent.kill().expect("SIGKILL");
    agent.wait().expect("reaped");

    let ticks = || stage.output("main").lines().count();
    let before = ticks();
    wait_for(|| ticks() > before + 3);
    let pods = stage.runtime.recover().await.expect("recovers");
    assert!(pods.len() == 1 && pods[0].alive, "{pods:?}");
    // Starting it again finds it running and changes nothing.
    let handle = stage.runtime.start_pod(&stage.pod).await.expect("is there");
    assert_eq!(handle.netns, pods[0].status.netns);
    let (code, output) = stage.exec("main", "echo still here").await;
    assert_eq!((code, output.as_str()), (0, "still here\n"));
    stage.end().await;
}

/// Whatever the agent itself lacks says nothing of a pod. It is a process of its own: all tests share the limit of theirs.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_descriptors_takes_no_pod_for_dead() {
    let stage = Stage::without_pod("short");
    let config = stage.container("main", &["sleep", "1000"]);
    let write = |name: &str, text: serde_json::Result<Vec<u8>>| {
        fs::write(stage.directory.path().join(name), text.expect("serialises")).expect("write");
    };
    write("pod.json", serde_json::to_vec(&stage.pod));
    write("container.json", serde_json::to_vec(&config));
    let agent = std::process::Command::new(helper())
        .arg("short")
        .arg(stage.directory.path())
        .arg(&stage.cgroup_root)
        .output()
        .expect("runs");
    let told = String::from_utf8_lossy(&agent.stdout);
    assert_eq!(told, "lives\n", "{}", String::from_utf8_lossy(&agent.stderr));
    assert_eq!(stage.exit("main").await.code, 137);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_may_open_what_the_agent_was_started_with() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let lower = Rlimit {
        current: Some(1000),
        ..limit
    };
    setrlimit(Resource::Nofile, lower).expect("lowered");
    agent_runtime::open_files::raise().expect("raised");
    assert_eq!(
        getrlimit(Resource::Nofile),
        Rlimit {
            current: limit.maximum,
            ..limit
        }
    );
    let stage = Stage::new("open-files").await;
    let (_, output) = stage.shell("main", "ulimit -n; ulimit -Hn").await;
    let hard = limit.maximum.expect("bounded by the kernel");
    assert_eq!(output, format!("1000\n{hard}\n"));
    stage.end().await;
}

/// 1 is the one limit for which the kernel starts no program of the node's: see `core_dumps.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn what_crashes_in_a_pod_leaves_no_dump() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    setrlimit(Resource::Core, unlimited).expect("raised");
    let stage = Stage::new("dumps").await;
    let limits = "grep 'core file' /proc/self/limits";
    let words = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
    let forbidden = words("Max core file size 1 1 bytes");
    // In a directory where a file could be left.
    // What the shell says of the signal comes by another pipe, some time.
    let crash = format!("{limits}; exec 2>/dev/null; cd /tmp; sh -c 'kill -11 $$'; echo $?; ls /tmp");
    let (_, output) = stage.shell("crashes", &crash).await;
    let lines: Vec<_> = output.lines().map(words).collect();
    assert_eq!(lines.first(), Some(&forbidden));
    assert_eq!(lines.last(), Some(&words("139")), "{output}");
    let config = stage.container("lives", &["sleep", "1000"]);
    stage
        .runtime
        .start_container(&stage.pod.uid, &config)
        .await
        .expect("starts");
    let (_, session) = stage.exec("lives", limits).await;
    assert_eq!(words(&session), forbidden);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_names_and_paths_are_refused() {
    let stage = Stage::without_pod("names");
    for uid in ["", "../x", "a/b", "-a", "a b"] {
        let pod = PodConfig {
            uid: uid.into(),
            ..stage.pod.clone()
        };
        assert!(stage.runtime.start_pod(&pod).await.is_err(), "{uid:?}");
    }
    assert!(!stage.directory.path().join("run").exists());
}

fn make_image(root: &Path) {
    for path in ["bin", "etc", "tmp", "app", "proc", "dev", "sys"] {
        fs::create_dir_all(root.join(path)).expect("mkdir");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    fs::write(root.join("app/tool"), "#!/bin/sh\necho app-runs\n").expect("write");
    fs::set_permissions(root.join("app/tool"), fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n",
    )
    .expect("write");
    for applet in [
        "sh", "cat", "cp", "cut", "echo", "grep", "head", "hostname", "id", "ls", "ln", "mkfifo", "mv", "nc",
        "mkdir", "mount", "pwd", "readlink", "rm", "sleep", "sort", "stat", "stty", "true", "tty", "unshare",
        "wc",
    ] {
        symlink("busybox", root.join("bin").join(applet)).expect("symlink");
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("chmod");
    fs::write(root.join("etc/note"), "image\n").expect("write");
}

fn helper() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let profile = test
        .parent()
        .and_then(Path::parent)
        .expect("target/<profile>/deps/<test>");
    profile.join("examples/shim")
}

fn wait_for(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + patience();
    while !condition() {
        assert!(Instant::now() < deadline, "not in time");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn alive(pid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.contains(") Z "),
        Err(_) => false,
    }
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("signals");
}
