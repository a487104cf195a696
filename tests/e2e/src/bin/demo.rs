//! The demonstration: on the running cluster, with images built here and a real registry on loopback, shows
//! what is enforced. Every line is a check with its evidence; any that does not hold makes it fail.

#![forbid(unsafe_code)]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use e2e::{
    cluster::{HTTP_GET, pod},
    distribution, host,
    shell::{Ran, binaries, eventually, on_path, patience, run, run_with_input},
};
use scanner_labdb::{CRITICAL_ID, FIXED_VERSION};
use serde_json::Value;
use testkit::{image::Image, lab, registry::Registry};

/// Shows on the running cluster what is enforced
#[derive(Parser)]
struct Args {
    /// Where the cluster keeps its state
    #[arg(long, default_value = "/var/lib/palisade")]
    state_dir: PathBuf,
}

const NAMESPACE: &str = "demo";
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match demonstrate(&Args::parse()) {
        Ok(0) => {
            say("\nevery line holds");
            ExitCode::SUCCESS
        }
        Ok(failed) => {
            say(&format!("\n{failed} lines do not hold"));
            ExitCode::FAILURE
        }
        Err(error) => {
            say(&format!("the demonstration could not run: {error:?}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "printing is what a demonstration is for")]
fn say(text: &str) {
    println!("{text}");
}

/// What policyctl can show.
const LINES: &[Line] = &[
    ("an image with a known vulnerability is refused", vulnerable_image),
    ("a clean image is admitted and pinned to its digest", clean_image),
    ("from apply to Running", time_to_running),
    ("system calls that lead out of a pod are refused", system_calls),
    (
        "system files cannot be written, a dropped binary cannot be executed",
        paths,
    ),
    ("an allowed client gets its answer", allowed_client),
    (
        "another is blocked, and the flow names the policy",
        blocked_client,
    ),
    ("the secret is not in the store's file", sealed_store),
    ("the API without a certificate is refused", no_certificate),
];

/// What kubectl can show.
const LINES_OF_KUBECTL: &[Line] = &[
    (
        "kubectl starts a pod, reads its log, executes in it",
        kubectl_works,
    ),
    ("who takes more memory than the limit is OOMKilled", out_of_memory),
    ("nothing is left of a pod that kubectl deletes", deleted_pod),
];

/// Shows one line after the other; returns how many do not hold.
fn demonstrate(args: &Args) -> Result<usize> {
    let stage = Stage::new(args)?;
    let mut failed = 0;
    for (number, (what, line)) in (1..).zip(LINES.iter().chain(LINES_OF_KUBECTL)) {
        if number > LINES.len() && stage.kubectl.is_none() {
            say(&format!(
                "\n{number}. [skipped] {what}\n     there is no kubectl on the PATH"
            ));
            continue;
        }
        match line(&stage) {
            Ok(evidence) => {
                say(&format!("\n{number}. [ok] {what}"));
                evidence.iter().for_each(|line| say(&format!("     {line}")));
            }
            Err(error) => {
                failed += 1;
                say(&format!("\n{number}. [FAILED] {what}\n     {error:?}"));
            }
        }
    }
    stage.clear()?;
    Ok(failed)
}

/// What a line shows, and how.
type Line = (&'static str, fn(&Stage) -> Result<Vec<String>>);

/// The running cluster and a registry beside it.
struct Stage {
    policyctl: PathBuf,
    kubectl: Option<PathBuf>,
    /// Of kubectl, which keeps what it learns of the server.
    cache: tempfile::TempDir,
    kubeconfig: String,
    state_dir: PathBuf,
    registry: Registry,
    runtime: tokio::runtime::Runtime,
}

impl Stage {
    fn new(args: &Args) -> Result<Self> {
        let kubeconfig = args.state_dir.join("admin.kubeconfig");
        ensure!(
            kubeconfig.is_file(),
            "no cluster in {}; run `cargo xtask up` first",
            args.state_dir.display()
        );
        let stage = Self {
            policyctl: binaries()?.join("policyctl"),
            kubectl: on_path("kubectl"),
            cache: tempfile::tempdir().context("cannot make a directory for kubectl")?,
            kubeconfig: kubeconfig.to_string_lossy().into_owned(),
            state_dir: args.state_dir.clone(),
            registry: Registry::start()?,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        };
        stage.clear()?;
        let namespace = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
        stage.apply(&namespace)?.ok()?;
        // The controllers give a new namespace its service account.
        eventually(PATIENCE, || {
            stage.policyctl(&["get", "sa", "default", "-n", NAMESPACE])?.ok()
        })?;
        Ok(stage)
    }

    fn clear(&self) -> Result<()> {
        let seconds = patience(Duration::from_secs(60)).as_secs().to_string();
        let gone = self.policyctl(&["delete", "namespace", NAMESPACE, "--timeout", &seconds])?;
        ensure!(gone.code == 0 || gone.stderr.contains("not found"), "{gone}");
        Ok(())
    }

    fn push(&self, image: &Image, name: &str) -> Result<String> {
        Ok(self
            .runtime
            .block_on(self.registry.push(image, name, "1"))?
            .to_string())
    }

    fn policyctl(&self, arguments: &[&str]) -> Result<Ran> {
        let mut all = vec!["--kubeconfig", &self.kubeconfig];
        all.extend(arguments);
        run(&self.policyctl, &all)
    }

    fn apply(&self, yaml: &str) -> Result<Ran> {
        run_with_input(
            &self.policyctl,
            &["--kubeconfig", &self.kubeconfig, "apply", "-f", "-"],
            yaml,
        )
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<Ran> {
        self.kubectl_with_input(arguments, "")
    }

    fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<Ran> {
        let program = self
            .kubectl
            .as_deref()
            .context("there is no kubectl on the PATH")?;
        let cache = self.cache.path().to_string_lossy();
        let mut all = vec!["--kubeconfig", &self.kubeconfig, "--cache-dir", &cache];
        all.extend(["-n", NAMESPACE]);
        all.extend(arguments);
        run_with_input(program, &all, input)
    }

    fn object(&self, resource: &str, name: &str) -> Result<Value> {
        let ran = self
            .policyctl(&["get", resource, name, "-n", NAMESPACE, "-o", "json"])?
            .ok()?;
        serde_json::from_str(&ran.stdout).with_context(|| format!("not JSON: {ran}"))
    }

    fn wait(&self, name: &str, phase: &str) -> Result<Value> {
        eventually(PATIENCE, || {
            let object = self.object("pods", name)?;
            if object["status"]["phase"] == phase {
                Ok(object)
            } else {
                bail!("{name}: {}", object["status"])
            }
        })
    }

    /// Runs a pod to its end and returns what it printed.
    fn run_pod(&self, name: &str, label: &str, image: &str, command: &[&str]) -> Result<String> {
        self.apply(&pod(
            NAMESPACE,
            name,
            label,
            image,
            command,
            "restartPolicy: Never",
        ))?
        .ok()?;
        self.wait(name, "Succeeded")?;
        Ok(self.policyctl(&["logs", name, "-n", NAMESPACE])?.ok()?.stdout)
    }
}

fn vulnerable_image(stage: &Stage) -> Result<Vec<String>> {
    let image = stage.push(&lab::vulnerable()?, "demo/vulnerable")?;
    let yaml = pod(
        NAMESPACE,
        "vulnerable",
        "app: x",
        &image,
        &["true"],
        "restartPolicy: Never",
    );
    let refused = stage
        .apply(&yaml)?
        .refused()?
        .says(CRITICAL_ID)?
        .says(FIXED_VERSION)?;
    Ok(vec![
        format!(
            "$ policyctl apply -f vulnerable.yaml    # exit code {}",
            refused.code
        ),
        refused.stderr.trim().to_owned(),
    ])
}

fn clean_image(stage: &Stage) -> Result<Vec<String>> {
    let image = lab::clean()?;
    let reference = stage.push(&image, "demo/clean")?;
    stage
        .apply(&pod(
            NAMESPACE,
            "clean",
            "app: x",
            &reference,
            &["sleep", "1000"],
            "restartPolicy: Always",
        ))?
        .ok()?;
    let object = stage.wait("clean", "Running")?;
    let pinned = object["spec"]["containers"][0]["image"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure!(
        pinned.ends_with(&image.digest().to_string()),
        "{pinned} is not pinned to {}",
        image.digest()
    );
    Ok(vec![
        format!("asked for {reference}"),
        format!("runs      {pinned}"),
    ])
}

fn time_to_running(stage: &Stage) -> Result<Vec<String>> {
    let image = stage.push(&lab::clean()?, "demo/clean")?;
    let mut times = Vec::new();
    for number in 0..7 {
        let name = format!("timed-{number}");
        let start = Instant::now();
        stage
            .apply(&pod(
                NAMESPACE,
                &name,
                "app: x",
                &image,
                &["sleep", "1000"],
                "restartPolicy: Always",
            ))?
            .ok()?;
        stage.wait(&name, "Running")?;
        times.push(start.elapsed());
    }
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    Ok(vec![format!(
        "median of {}: {} ms, from the start of the command until the API says Running",
        times.len(),
        median.as_millis()
    )])
}

const SYSTEM_CALLS: &str = r#"
sub try { my ($name, $number, @rest) = @_; my $r = syscall($number, @rest); print "$name: ", $r == -1 ? "$!" : "DONE", "\n"; }
my $b = "\0" x 128;
try("unshare", 272, 0x10000000); try("keyctl", 250, 0, -3, 0); try("bpf", 321, 0, $b, 128);
try("mount", 165, "none", "/tmp", "tmpfs", 0, 0);
"#;

fn system_calls(stage: &Stage) -> Result<Vec<String>> {
    let image = stage.push(&distribution::perl()?.build(), "demo/perl")?;
    let log = stage.run_pod("calls", "app: x", &image, &["/usr/bin/perl", "-e", SYSTEM_CALLS])?;
    ensure!(log.lines().count() == 4, "{log}");
    for line in log.lines() {
        ensure!(line.ends_with(": Operation not permitted"), "{line}");
    }
    Ok(log.lines().map(str::to_owned).collect())
}

const PATHS: &str = r#"
sub say { print "$_[0]: ", $_[1] ? "DONE" : "$!", "\n"; }
say("write /bin/busybox", open(F, '+<', '/bin/busybox'));
say("create /usr/bin/new", open(F, '>', '/usr/bin/new'));
open(I, '<', '/bin/busybox'); open(O, '>', '/tmp/dropped'); print O $_ while sysread(I, $_, 65536); close O;
chmod 0755, '/tmp/dropped'; say("run /tmp/dropped", system('/tmp/dropped', 'true') == 0);
"#;

fn paths(stage: &Stage) -> Result<Vec<String>> {
    let image = stage.push(&distribution::perl()?.build(), "demo/perl")?;
    let log = stage.run_pod("paths", "app: x", &image, &["/usr/bin/perl", "-e", PATHS])?;
    ensure!(log.lines().count() == 3, "{log}");
    for line in log.lines() {
        ensure!(line.ends_with(": Permission denied"), "{line}");
    }
    Ok(log.lines().map(str::to_owned).collect())
}

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: only-friends, namespace: demo}\nspec:\n  \
    podSelector: {matchLabels: {app: web}}\n  policyTypes: [Ingress]\n  ingress:\n  - from: [{podSelector: {matchLabels: {app: friend}}}]\n    \
    ports: [{port: 8080}]\n";

fn allowed_client(stage: &Stage) -> Result<Vec<String>> {
    let image = stage.push(&lab::clean()?, "demo/clean")?;
    let server = "mkdir -p /tmp/www && echo welcome > /tmp/www/index.html && httpd -f -p 8080 -h /tmp/www";
    stage
        .apply(&pod(
            NAMESPACE,
            "web",
            "app: web",
            &image,
            &["sh", "-c", server],
            "restartPolicy: Always",
        ))?
        .ok()?;
    stage.wait("web", "Running")?;
    stage.apply(POLICY)?.ok()?;
    let address = web_address(stage)?;
    let log = stage.run_pod(
        "friend",
        "app: friend",
        &image,
        &["sh", "-c", HTTP_GET, &address, "8080"],
    )?;
    ensure!(log.ends_with("welcome\n"), "{log}");
    Ok(vec![format!(
        "app=friend got: {}",
        log.lines().last().unwrap_or_default()
    )])
}

fn blocked_client(stage: &Stage) -> Result<Vec<String>> {
    let image = stage.push(&lab::clean()?, "demo/clean")?;
    let address = web_address(stage)?;
    let log = stage.run_pod(
        "stranger",
        "app: stranger",
        &image,
        &["sh", "-c", HTTP_GET, &address, "8080"],
    )?;
    ensure!(log.ends_with("blocked\n"), "{log}");
    let flow = eventually(PATIENCE, || {
        let flows = stage
            .policyctl(&["flows", "--verdict", "deny", "--pod", "demo/web"])?
            .ok()?
            .stdout;
        let line = flows
            .lines()
            .find(|line| line.contains("demo/stranger") && line.contains("only-friends"));
        line.map(str::to_owned)
            .with_context(|| format!("no flow names the policy:\n{flows}"))
    })?;
    Ok(vec![
        "app=stranger got no answer: its packets are dropped".to_owned(),
        flow,
    ])
}

fn web_address(stage: &Stage) -> Result<String> {
    let object = stage.object("pods", "web")?;
    object["status"]["podIP"]
        .as_str()
        .map(str::to_owned)
        .context("the server pod has no address")
}

fn sealed_store(stage: &Stage) -> Result<Vec<String>> {
    let secret = "correct-horse-battery-staple";
    stage
        .apply(&format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: sealed, namespace: {NAMESPACE}}}\nstringData: {{password: {secret}}}\n"
        ))?
        .ok()?;
    let encoded = stage.object("secrets", "sealed")?["data"]["password"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure!(!encoded.is_empty(), "the secret cannot be read back");
    let path = stage.state_dir.join("control/store.redb");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    for needle in [secret, &encoded] {
        ensure!(
            !bytes
                .windows(needle.len())
                .any(|window| window == needle.as_bytes()),
            "{needle} is in the file"
        );
    }
    Ok(vec![format!(
        "{} bytes of {} searched, for the text and its base64: not found",
        bytes.len(),
        file_name(&path)
    )])
}

fn no_certificate(stage: &Stage) -> Result<Vec<String>> {
    // The same kubeconfig without the client's certificate and key.
    let text = std::fs::read_to_string(&stage.kubeconfig).context("cannot read the kubeconfig")?;
    let anonymous: String = text
        .lines()
        .filter(|line| !line.contains("client-certificate-data") && !line.contains("client-key-data"))
        .map(|line| format!("{line}\n"))
        .collect();
    let anonymous = anonymous.replace("user:\n", "user: {}\n");
    let file = tempfile::NamedTempFile::new().context("cannot make a file")?;
    std::fs::write(file.path(), anonymous).context("cannot write a kubeconfig")?;
    let path = file.path().to_string_lossy();
    let refused = run(&stage.policyctl, &["--kubeconfig", &path, "get", "pods"])?
        .refused()?
        .says("Unauthorized")?;
    Ok(vec![refused.stderr.trim().to_owned()])
}

fn kubectl_works(stage: &Stage) -> Result<Vec<String>> {
    let image = stage.push(&lab::clean()?, "demo/clean")?;
    let script = "echo hello from $(hostname); exec sleep 1000";
    let yaml = pod(
        NAMESPACE,
        "worker",
        "app: x",
        &image,
        &["sh", "-c", script],
        "restartPolicy: Always",
    );
    stage
        .kubectl_with_input(&["apply", "-f", "-"], &yaml)?
        .ok()?
        .says("created")?;
    let timeout = format!("--timeout={}s", patience(PATIENCE).as_secs());
    stage
        .kubectl(&["wait", "--for=condition=Ready", "pod/worker", &timeout])?
        .ok()?;
    let pods = stage.kubectl(&["get", "pods"])?.ok()?.stdout;
    let listed = pods.lines().find(|line| line.starts_with("worker "));
    let listed = listed.with_context(|| format!("not listed:\n{pods}"))?;
    ensure!(listed.contains("1/1") && listed.contains("Running"), "{listed}");
    let log = eventually(PATIENCE, || {
        stage
            .kubectl(&["logs", "worker"])?
            .ok()?
            .says("hello from worker\n")
    })?;
    let exec = ["exec", "worker", "--", "sh", "-c", "echo $((6 * 7)); exit 3"];
    let exec = stage.kubectl(&exec)?;
    ensure!(exec.code == 3 && exec.stdout == "42\n", "{exec}");
    Ok(vec![
        "$ kubectl get pods".to_owned(),
        listed.to_owned(),
        "$ kubectl logs worker".to_owned(),
        log.stdout.trim().to_owned(),
        "$ kubectl exec worker -- sh -c 'echo $((6 * 7)); exit 3'    # exit code 3".to_owned(),
        exec.stdout.trim().to_owned(),
    ])
}

fn out_of_memory(stage: &Stage) -> Result<Vec<String>> {
    let image = stage.push(&lab::clean()?, "demo/clean")?;
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: greedy, namespace: {NAMESPACE}, labels: {{app: x}}}}\nspec:\n  \
         restartPolicy: Never\n  containers:\n  - name: main\n    image: {image}\n    \
         command: [sh, -c, 'x=a; while true; do x=$x$x; done']\n    resources: {{limits: {{memory: 32Mi}}}}\n"
    );
    stage.kubectl_with_input(&["apply", "-f", "-"], &yaml)?.ok()?;
    stage.wait("greedy", "Failed")?;
    let path = "jsonpath={.status.containerStatuses[0].state.terminated['reason','exitCode']}";
    let told = stage.kubectl(&["get", "pod", "greedy", "-o", path])?.ok()?;
    ensure!(told.stdout == "OOMKilled 137", "{told}");
    let listed = stage.kubectl(&["get", "pod", "greedy", "--no-headers"])?.ok()?;
    Ok(vec![
        "$ kubectl get pod greedy".to_owned(),
        listed.says("OOMKilled")?.stdout.trim().to_owned(),
    ])
}

fn deleted_pod(stage: &Stage) -> Result<Vec<String>> {
    let object = stage.object("pods", "worker")?;
    let uid = object["metadata"]["uid"].as_str().context("the pod has no uid")?;
    let there = host::traces(uid)?;
    for kind in ["mount", "cgroup", "process"] {
        let begins = format!("{kind} ");
        ensure!(
            there.iter().any(|trace| trace.starts_with(&begins)),
            "no {kind} of the running pod is seen, so none that stays would be: {there:#?}"
        );
    }
    let deleted = stage.kubectl(&["delete", "pod", "worker"])?.ok()?;
    stage
        .kubectl(&["get", "pod", "worker"])?
        .refused()?
        .says("NotFound")?;
    eventually(PATIENCE, || {
        let left = host::traces(uid)?;
        ensure!(left.is_empty(), "{left:#?}");
        Ok(())
    })?;
    Ok(vec![
        deleted.stdout.trim().to_owned(),
        format!(
            "{} processes, mounts and control groups of it were there; now there is none",
            there.len()
        ),
    ])
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
