//! A real one-node cluster for tests, in directories and on ports of its own, with a real registry beside it.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use testkit::{image::Image, registry::Registry, scanner};

use crate::{
    names::Upstream,
    shell::{Ran, binaries, eventually, on_path, run, run_with_input},
};

/// How long a pod gets to reach a phase.
pub const POD_PATIENCE: Duration = Duration::from_secs(60);

/// A shell script that asks `$0` port `$1` for `/` and prints the answer. A refused connection is tried again,
/// for the server may still be starting, and so is one that is made and says nothing in time; a connection that gets no
/// answer at all is dropped packets: `blocked`. Netcat says what it was, for on a busy machine a refusal takes long, too.
/// (The distribution's static busybox has a wget that crashes, also outside of any sandbox; so it is netcat.)
pub const HTTP_GET: &str = "for i in 1 2 3 4 5 6 7 8 9 10; do start=$(date +%s); \
    if got=$( (printf 'GET / HTTP/1.0\r\n\r\n'; sleep 1) | nc -w 3 $0 $1 2>&1 ); then \
    [ -n \"$got\" ] && echo \"$got\" && exit 0; else \
    case $got in *refused*) ;; *) [ $(( $(date +%s) - start )) -ge 3 ] && echo blocked && exit 0;; esac; fi; \
    sleep 0.3; done; echo unreachable";

/// Stands before what a test added to the agent's configuration.
const ADDED: &str = "# added by a test\n";

/// Addresses of the test node's pods.
const NODE_CIDR: &str = "10.213.0.0/24,fd00:10:213::/64";

/// A cluster that was started for tests.
pub struct Cluster {
    /// Everything the cluster keeps on disk.
    pub state_dir: PathBuf,
    /// Sockets and process ids.
    pub run_dir: PathBuf,
    /// Where the API server listens.
    pub listen: String,
    /// Whom the node asks for names.
    pub upstream: Upstream,
    registry: Registry,
    runtime: tokio::runtime::Runtime,
    binaries: PathBuf,
    // Removed last.
    _directory: tempfile::TempDir,
}

impl Cluster {
    /// Starts the registry and the cluster; the node is Ready when this returns.
    pub fn start() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("palisade-e2e-")
            .tempdir()
            .context("cannot make a directory")?;
        make_passable(directory.path())?;
        let (trivy, _) = scanner::trivy()?;
        let database = directory.path().join("lab-db");
        scanner::write_lab_db(&database, 1)?;
        let cluster = Self {
            state_dir: directory.path().join("state"),
            run_dir: directory.path().join("run"),
            listen: format!("127.0.0.1:{}", free_port()?),
            upstream: Upstream::start()?,
            registry: Registry::start()?,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
            binaries: binaries()?,
            _directory: directory,
        };
        let node_listen = format!("127.0.0.1:{}", free_port()?);
        let place = cluster.place();
        let mut arguments = vec!["up", "--node-name", "lab", "--node-cidr", NODE_CIDR];
        // How full the disk of the machine is that the tests run on is not what they are about.
        arguments.extend(["--disk-available-percent", "1"]);
        arguments.extend(place.iter().map(String::as_str));
        arguments.extend(["--listen", &cluster.listen, "--node-listen", &node_listen]);
        let upstream = cluster.upstream.address().to_string();
        arguments.extend(["--dns-upstream", &upstream]);
        let (trivy, database) = (trivy.to_string_lossy(), database.to_string_lossy());
        arguments.extend(["--trivy", &trivy, "--trivy-db", &database]);
        let up = run(&cluster.binaries.join("policyctl"), &arguments)?;
        if up.code != 0 {
            let logs = cluster.daemon_logs();
            // Half a cluster must not stay behind; the error that matters is the one above.
            drop(cluster.stop());
            bail!("{up}\n{logs}");
        }
        Ok(cluster)
    }

    /// Stops the cluster and removes its state.
    pub fn stop(&self) -> Result<Ran> {
        let place = self.place();
        let mut arguments = vec!["down", "--purge"];
        arguments.extend(place.iter().map(String::as_str));
        run(&self.binaries.join("policyctl"), &arguments)?.ok()
    }

    /// Stops the cluster and keeps its state.
    pub fn pause(&self) -> Result<Ran> {
        let place = self.place();
        let mut arguments = vec!["down"];
        arguments.extend(place.iter().map(String::as_str));
        run(&self.binaries.join("policyctl"), &arguments)?.ok()
    }

    /// Pushes an image and returns its reference.
    pub fn push(&self, image: &Image, repository: &str, tag: &str) -> Result<String> {
        Ok(self
            .runtime
            .block_on(self.registry.push(image, repository, tag))?
            .to_string())
    }

    /// Runs policyctl against this cluster.
    pub fn policyctl(&self, arguments: &[&str]) -> Result<Ran> {
        self.policyctl_with_input(arguments, "")
    }

    /// Runs policyctl against this cluster with something on its standard input.
    pub fn policyctl_with_input(&self, arguments: &[&str], input: &str) -> Result<Ran> {
        let kubeconfig = self.kubeconfig();
        let mut all = vec!["--kubeconfig", &kubeconfig];
        all.extend(arguments);
        run_with_input(&self.binaries.join("policyctl"), &all, input)
    }

    /// Starts policyctl against this cluster; its output is for the caller, who ends it.
    pub fn spawn_policyctl(&self, arguments: &[&str]) -> Result<std::process::Child> {
        std::process::Command::new(self.binaries.join("policyctl"))
            .args(["--kubeconfig", &self.kubeconfig()])
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .context("cannot start policyctl")
    }

    /// Runs kubectl against this cluster.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Ran> {
        self.kubectl_with_input(arguments, "")
    }

    /// Runs kubectl against this cluster with something on its standard input.
    pub fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<Ran> {
        let newest = kubectls()?.pop().context("there is no kubectl on the PATH")?;
        self.kubectl_of(&newest.1, arguments, input)
    }

    /// Runs one kubectl against this cluster.
    pub fn kubectl_of(&self, program: &Path, arguments: &[&str], input: &str) -> Result<Ran> {
        let kubeconfig = self.kubeconfig();
        let cache = self
            .state_dir
            .with_file_name("kubectl-cache")
            .to_string_lossy()
            .into_owned();
        let mut all = vec!["--kubeconfig", &kubeconfig, "--cache-dir", &cache];
        all.extend(arguments);
        run_with_input(program, &all, input)
    }

    /// Applies YAML with kubectl.
    pub fn apply(&self, yaml: &str) -> Result<Ran> {
        self.kubectl_with_input(&["apply", "-f", "-"], yaml)
    }

    /// An object as JSON.
    pub fn object(&self, namespace: &str, resource: &str, name: &str) -> Result<Value> {
        let ran = self
            .policyctl(&["get", resource, name, "-n", namespace, "-o", "json"])?
            .ok()?;
        serde_json::from_str(&ran.stdout).with_context(|| format!("not JSON: {ran}"))
    }

    /// Waits until a pod is in `phase`; the error holds the pod's status and the agent's log.
    pub fn wait_for_phase(&self, namespace: &str, pod: &str, phase: &str) -> Result<Value> {
        eventually(POD_PATIENCE, || {
            let object = self.object(namespace, "pods", pod)?;
            if object["status"]["phase"] == phase {
                return Ok(object);
            }
            bail!("pod {namespace}/{pod} is not {phase}: {}", object["status"])
        })
        .with_context(|| self.daemon_logs())
    }

    /// Runs a pod to its end and returns its log.
    pub fn run_pod(&self, namespace: &str, name: &str, image: &str, command: &[&str]) -> Result<String> {
        self.apply(&pod(
            namespace,
            name,
            "app: job",
            image,
            command,
            "restartPolicy: Never",
        ))?
        .ok()?;
        let object = eventually(POD_PATIENCE, || {
            let object = self.object(namespace, "pods", name)?;
            match object["status"]["phase"].as_str() {
                Some("Succeeded" | "Failed") => Ok(object),
                _ => bail!("pod {namespace}/{name} does not end: {}", object["status"]),
            }
        })
        .with_context(|| self.daemon_logs())?;
        let log = self.policyctl(&["logs", name, "-n", namespace])?.ok()?;
        if object["status"]["phase"] != "Succeeded" {
            bail!(
                "pod {name} failed: {}\nits log:\n{}",
                object["status"],
                log.stdout
            );
        }
        Ok(log.stdout)
    }

    /// Process id of a daemon, `control` or `agent`.
    pub fn daemon_pid(&self, name: &str) -> Result<i32> {
        let path = self.run_dir.join(format!("{name}.pid"));
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text.split(' ')
            .next()
            .unwrap_or_default()
            .parse()
            .with_context(|| format!("{text:?} is not a process id"))
    }

    /// Starts again whichever daemon does not run.
    pub fn up_again(&self) -> Result<Ran> {
        self.up_on(&self.listen)
    }

    /// Starts the cluster with the API server at another address, until [`Cluster::up_again`].
    pub fn up_on(&self, listen: &str) -> Result<Ran> {
        let place = self.place();
        let config = std::fs::read_to_string(self.state_dir.join("agent/config.toml"))?;
        let node_listen = config
            .lines()
            .find_map(|line| line.strip_prefix("listen = "))
            .map(|address| address.trim_matches('"').to_owned())
            .context("the agent's configuration has no listen address")?;
        let mut arguments = vec!["up", "--node-name", "lab", "--node-cidr", NODE_CIDR];
        // How full the disk of the machine is that the tests run on is not what they are about.
        arguments.extend(["--disk-available-percent", "1"]);
        arguments.extend(place.iter().map(String::as_str));
        arguments.extend(["--listen", listen, "--node-listen", &node_listen]);
        let upstream = self.upstream.address().to_string();
        arguments.extend(["--dns-upstream", &upstream]);
        let (trivy, _) = scanner::trivy()?;
        let (trivy, database) = (trivy.to_string_lossy(), self.state_dir.with_file_name("lab-db"));
        let database = database.to_string_lossy();
        arguments.extend(["--trivy", &trivy, "--trivy-db", &database]);
        run(&self.binaries.join("policyctl"), &arguments)?.ok()
    }

    /// Ends the agent, adds `extra` to its configuration, and starts it again. `policyctl up` takes the addition back.
    pub fn restart_agent(&self, extra: &str) -> Result<()> {
        self.end_agent()?;
        self.start_agent(extra)
    }

    /// Ends the agent; pods stay.
    pub fn end_agent(&self) -> Result<()> {
        let old = nix::unistd::Pid::from_raw(self.daemon_pid("agent")?);
        match nix::sys::signal::kill(old, nix::sys::signal::Signal::SIGTERM) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(errno) => bail!("cannot end the agent: {errno}"),
        }
        eventually(Duration::from_secs(20), || match alive(old.as_raw()) {
            true => bail!("the agent does not end"),
            false => Ok(()),
        })
        .with_context(|| self.daemon_logs())
    }

    /// Starts an agent that does not run, as `policyctl up` would, with `extra` added to its configuration, whose last
    /// table is `eviction`.
    pub fn start_agent(&self, extra: &str) -> Result<()> {
        let config = self.state_dir.join("agent/config.toml");
        let text = std::fs::read_to_string(&config)?;
        let own = text.split(ADDED).next().unwrap_or_default();
        std::fs::write(&config, format!("{own}{ADDED}{extra}"))?;
        let log = std::fs::OpenOptions::new()
            .append(true)
            .open(self.state_dir.join("logs/agent.log"))?;
        let child = std::process::Command::new(self.state_dir.join("tools/palisade-agent"))
            .args(["run", "--config"])
            .arg(&config)
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir("/")
            .spawn()
            .context("cannot start the agent")?;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let since = fields.split(' ').nth(19).context("no start time")?;
        std::fs::write(
            self.run_dir.join("agent.pid"),
            format!("{} {since}\n", child.id()),
        )?;
        // Its end is heard of by whoever looks; nobody waits for it.
        std::thread::spawn(move || {
            let mut child = child;
            child.wait()
        });
        Ok(())
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> String {
        self.state_dir
            .join("admin.kubeconfig")
            .to_string_lossy()
            .into_owned()
    }

    /// The end of both daemons' logs, for messages.
    pub fn daemon_logs(&self) -> String {
        let tail = |name: &str| {
            let path = self.state_dir.join("logs").join(name);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|error| error.to_string());
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(25)..].join("\n")
        };
        format!(
            "--- control.log\n{}\n--- agent.log\n{}",
            tail("control.log"),
            tail("agent.log")
        )
    }

    fn place(&self) -> [String; 4] {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        [
            "--state-dir".to_owned(),
            text(&self.state_dir),
            "--run-dir".to_owned(),
            text(&self.run_dir),
        ]
    }
}

/// A pod of one container, as YAML. `extra` is one more line of its spec.
pub fn pod(namespace: &str, name: &str, label: &str, image: &str, command: &[&str], extra: &str) -> String {
    let command = serde_json::to_string(command).unwrap_or_default();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{{label}}}\n\
         spec:\n  terminationGracePeriodSeconds: 2\n  {extra}\n  containers:\n  - name: main\n    image: {image}\n    \
         command: {command}\n"
    )
}

/// Every kubectl on this machine with its minor version, oldest first.
pub fn kubectls() -> Result<Vec<(u32, PathBuf)>> {
    let Some(main) = on_path("kubectl") else {
        return Ok(Vec::new());
    };
    let real = std::fs::canonicalize(&main).context("cannot follow kubectl")?;
    let directory = real.parent().context("kubectl is nowhere")?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).context("cannot list the directory of kubectl")? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if let Some(minor) = name
            .strip_prefix("kubectl.1.")
            .and_then(|minor| minor.parse().ok())
        {
            found.push((minor, path));
        }
    }
    found.sort();
    if found.is_empty() {
        found.push((0, main));
    }
    Ok(found)
}

fn free_port() -> Result<u16> {
    free_port_of("127.0.0.1")
}

/// A port of an address that nobody has.
pub fn free_port_of(address: &str) -> Result<u16> {
    let listener = TcpListener::bind((address, 0)).context("cannot find a free port")?;
    Ok(listener.local_addr()?.port())
}

/// The control plane runs as a user of its own and must get through to its state.
fn make_passable(directory: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot set the mode of {}", directory.display()))
}

/// Whether a process runs.
pub fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
