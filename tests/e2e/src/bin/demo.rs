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
    distribution,
    shell::{Ran, binaries, eventually, run, run_with_input},
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

/// Shows one line after the other; returns how many do not hold.
fn demonstrate(args: &Args) -> Result<usize> {
    let stage = Stage::new(args)?;
    let lines: &[Line] = &[
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
    let mut failed = 0;
    for (number, (what, line)) in lines.iter().enumerate() {
        match line(&stage) {
            Ok(evidence) => {
                say(&format!("\n{}. [ok] {what}", number + 1));
                evidence.iter().for_each(|line| say(&format!("     {line}")));
            }
            Err(error) => {
                failed += 1;
                say(&format!("\n{}. [FAILED] {what}\n     {error:?}", number + 1));
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
        let gone = self.policyctl(&["delete", "namespace", NAMESPACE, "--timeout", "60"])?;
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

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
