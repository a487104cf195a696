//! A runtime in a temporary directory, pods in it, and the helper's answers from several places.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use agent_runtime::{
    ContainerConfig, ContainerState, Exit, Mount, PodConfig, PodResources, PodStatus, Resources, Runtime,
    RuntimeConfig, Streams,
};
use agent_sandbox::Profile;

/// What the agent gives a container that asks for nothing (`agent/daemon/src/pods/container.rs`).
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

pub(crate) fn patience() -> Duration {
    let times =
        std::env::var("PALISADE_TEST_PATIENCE").map_or(1, |text| text.parse().expect("a whole number"));
    Duration::from_secs(60) * times
}

pub(crate) struct Stage {
    /// Which of this program's it is.
    pub(crate) number: i32,
    pub(crate) runtime: Runtime,
    pub(crate) directory: tempfile::TempDir,
    pods: Vec<PodConfig>,
}

impl Stage {
    pub(crate) async fn new(names: &[&str]) -> Self {
        static NEXT: AtomicI32 = AtomicI32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir().expect("a directory");
        make_image(&directory.path().join("image"));
        for path in ["logs", "data", "config", "linked"] {
            fs::create_dir(directory.path().join(path)).expect("mkdir");
        }
        let runtime = Runtime::new(RuntimeConfig {
            shim: example("shim"),
            state_dir: directory.path().join("state"),
            run_dir: directory.path().join("run"),
            // Of its own: pods of several stages may have one name, and whoever removes one ends what is in its group.
            cgroup_root: format!("palisade-drill-{}-{number}", std::process::id()),
        })
        .expect("valid");
        let pod = |(index, name): (u32, &&str)| PodConfig {
            uid: format!("{name}-{}-{number}", std::process::id()),
            namespace: "default".into(),
            name: (*name).into(),
            hostname: (*name).into(),
            id_base: 4_000_000 + index * 65_536,
            id_count: 65_536,
            shares_processes: false,
            pids: None,
            resources: PodResources::default(),
        };
        let pods: Vec<PodConfig> = (0..).zip(names).map(pod).collect();
        for pod in &pods {
            runtime.start_pod(pod).await.expect("the pod starts");
        }
        Self {
            number,
            runtime,
            directory,
            pods,
        }
    }

    pub(crate) fn pod(&self, index: usize) -> &str {
        &self.pods[index].uid
    }

    /// A container of root, which is the strongest attacker there is inside.
    pub(crate) fn container(
        &self,
        name: &str,
        argv: &[&str],
        facts: &BTreeMap<String, String>,
    ) -> ContainerConfig {
        let mount = |name: &str, read_only| Mount {
            source: self.directory.path().join(name),
            target: Path::new("/").join(name),
            read_only,
            executable: false,
            sub_path: None,
        };
        let linked = Mount {
            target: "/srv/linked".into(),
            ..mount("linked", false)
        };
        let path = [("PATH".to_owned(), "/bin".to_owned())];
        ContainerConfig {
            name: name.into(),
            attempt: 0,
            layers: vec![self.directory.path().join("image")],
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: path.into_iter().chain(facts.clone()).collect(),
            cwd: "/".into(),
            uid: 0,
            gid: 0,
            supplemental_gids: vec![],
            mounts: vec![mount("data", false), mount("config", true), linked],
            read_only_root: false,
            image_volumes: vec![],
            capabilities: CAPABILITIES.map(String::from).to_vec(),
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

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.directory.path().join("logs").join(name)
    }

    pub(crate) async fn start(&self, pod: usize, config: &ContainerConfig) {
        let started = self.runtime.start_container(self.pod(pod), config).await;
        started.expect("the container starts");
    }

    /// Runs a container to its end, and returns that and what it wrote.
    pub(crate) async fn run(&self, config: &ContainerConfig) -> (Exit, String) {
        self.start(0, config).await;
        (self.exit(&config.name).await, self.output(&config.name))
    }

    /// The end of a container, once it is there.
    pub(crate) async fn exit(&self, name: &str) -> Exit {
        let ended = |status: &PodStatus| match status.container(name).map(|found| &found.state) {
            Some(ContainerState::Exited(exit)) => Some(exit.clone()),
            _ => None,
        };
        self.until(0, ended).await
    }

    pub(crate) async fn until<T>(&self, pod: usize, wanted: impl Fn(&PodStatus) -> Option<T>) -> T {
        let wait = async {
            let mut status = self.runtime.status(self.pod(pod)).await.expect("a status");
            loop {
                if let Some(found) = wanted(&status) {
                    return found;
                }
                let change = self.runtime.wait_change(self.pod(pod), status.version);
                status = change.await.expect("a status");
            }
        };
        tokio::time::timeout(patience(), wait).await.expect("in time")
    }

    /// The first process of a container, as the host numbers it.
    pub(crate) async fn pid(&self, pod: usize, name: &str) -> i32 {
        let running = |status: &PodStatus| match &status.container(name)?.state {
            ContainerState::Running { pid, .. } => Some(*pid),
            ContainerState::Exited(_) | ContainerState::Failed { .. } => {
                panic!("{status:?}: {}", self.output(name))
            }
            ContainerState::Creating => None,
        };
        self.until(pod, running).await
    }

    pub(crate) async fn exec(&self, name: &str, argv: &[&str]) -> String {
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        let output = self
            .runtime
            .exec(self.pod(0), name, &argv, patience())
            .await
            .expect("runs");
        assert_eq!(output.code, 0, "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a script in a container that is gone afterwards.
    pub(crate) async fn exec_in_new(&self, name: &str, script: &str) {
        let config = self.container(name, &["sh", "-c", script], &BTreeMap::new());
        let (exit, output) = self.run(&config).await;
        assert_eq!(exit.code, 0, "{output}");
        let removed = self.runtime.remove_container(self.pod(0), name).await;
        removed.expect("removed");
    }

    /// The log without its prefixes.
    pub(crate) fn output(&self, name: &str) -> String {
        let log = fs::read_to_string(self.log(name)).expect("a log");
        log.lines()
            .map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n")
            .collect()
    }

    pub(crate) async fn end(self) {
        for pod in &self.pods {
            self.runtime.remove_pod(&pod.uid).await.expect("removed");
        }
    }
}

/// A failed test leaves nothing behind either.
impl Drop for Stage {
    fn drop(&mut self) {
        let (runtime, pods) = (self.runtime.clone(), std::mem::take(&mut self.pods));
        let run = self.directory.path().join("run");
        let left: Vec<_> = pods
            .into_iter()
            .filter(|pod| run.join(&pod.uid).exists())
            .collect();
        let removal = std::thread::spawn(move || {
            let executor = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("tokio");
            for pod in left {
                let _best_effort = executor.block_on(runtime.remove_pod(&pod.uid));
            }
        });
        let _best_effort = removal.join();
    }
}

/// Runs the helper on the host or, with `enter`, in the namespaces of a container's process.
pub(crate) fn helper(arguments: &[&str], facts: &BTreeMap<String, String>) -> String {
    let output = Command::new(example("drill"))
        .args(arguments)
        .envs(facts)
        .output()
        .expect("runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && errors.is_empty(),
        "{arguments:?}: {errors}"
    );
    String::from_utf8(output.stdout).expect("text")
}

/// An image of static busybox and the helper with its libraries, some files of which are there to be attacked.
fn make_image(root: &Path) {
    for path in [
        "bin",
        "etc",
        "tmp",
        "app",
        "proc",
        "dev",
        "sys",
        "lib",
        "lib64",
        "data",
        "config",
        "usr/libexec",
    ] {
        fs::create_dir_all(root.join(path)).expect("mkdir");
    }
    symlink("usr/libexec", root.join("srv")).expect("symlink");
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for applet in ["sh", "sleep", "cat", "rm", "id", "true"] {
        symlink("busybox", root.join("bin").join(applet)).expect("symlink");
    }
    let drill = example("drill");
    fs::copy(&drill, root.join("bin/drill")).expect("the helper is built as an example");
    // What `ldd` does, which is a script that not every system has.
    let loaders = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let loader = loaders
        .into_iter()
        .find(|loader| Path::new(loader).exists())
        .expect("a GNU system");
    let loaded = Command::new(loader)
        .arg("--list")
        .arg(&drill)
        .output()
        .expect("the loader runs");
    let loaded = String::from_utf8(loaded.stdout).expect("text");
    for library in loaded.split_whitespace().filter(|word| word.starts_with('/')) {
        let target = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(target.parent().expect("has a parent")).expect("mkdir");
        fs::copy(library, &target).expect("copy");
    }
    for victim in [
        "bin/victim-overwrite",
        "bin/victim-truncate",
        "bin/victim-remove",
        "lib/victim.so",
        "app/tool",
    ] {
        fs::copy("/bin/busybox", root.join(victim)).expect("copy");
    }
    fs::copy(&drill, root.join("app/setuid")).expect("copy");
    fs::set_permissions(root.join("app/setuid"), fs::Permissions::from_mode(0o4755)).expect("chmod");
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("chmod");
}

fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let profile = test
        .parent()
        .and_then(Path::parent)
        .expect("target/<profile>/deps/<test>");
    profile.join("examples").join(name)
}
