//! The real kubectl, in every version that is here, does what people do with it.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::{Cluster, kubectls, pod};
use testkit::lab;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("kubectl_of_every_version_works", every_version_works),
    ("kubectl_watches", watches),
    (
        "api_without_a_certificate_is_refused",
        without_a_certificate_is_refused,
    ),
];

fn every_version_works(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "kubectl/clean", "1")?;
    let versions = kubectls()?;
    ensure!(!versions.is_empty(), "there is no kubectl on the PATH");
    // Each in a namespace of its own, all at once.
    let image = image.as_str();
    std::thread::scope(|scope| {
        let all: Vec<_> = versions
            .iter()
            .map(|(minor, program)| {
                scope.spawn(move || {
                    one_version(cluster, program, *minor, image).with_context(|| format!("kubectl 1.{minor}"))
                })
            })
            .collect();
        all.into_iter().try_for_each(|one| {
            one.join()
                .unwrap_or_else(|_panic| bail!("the thread of a kubectl panicked"))
        })
    })
}

fn one_version(cluster: &Cluster, program: &Path, minor: u32, image: &str) -> Result<()> {
    let namespace = format!("v{minor}");
    let with_input = |arguments: &[&str], input: &str| {
        let mut all = vec!["-n", &namespace];
        all.extend(arguments);
        cluster.kubectl_of(program, &all, input)
    };
    let kubectl = |arguments: &[&str]| with_input(arguments, "");
    kubectl(&["create", "namespace", &namespace])?
        .ok()?
        .says("created")?;
    kubectl(&["auth", "whoami"])?.ok()?.says("system:masters")?;
    kubectl(&["create", "configmap", "made", "--from-literal=a=b"])?.ok()?;
    kubectl(&["create", "secret", "generic", "made", "--from-literal=a=b"])?.ok()?;
    kubectl(&["create", "serviceaccount", "made"])?.ok()?;
    let yaml = pod(
        &namespace,
        "web",
        "app: web",
        image,
        &["sh", "-c", "echo started; sleep 1000"],
        "restartPolicy: Always",
    );
    with_input(&["apply", "-f", "-"], &yaml)?.ok()?.says("created")?;
    // kubectl sees a tag where the server holds the digest, sends a patch, and that changes nothing.
    with_input(&["apply", "-f", "-"], &yaml)?.ok()?;
    with_input(&["apply", "-f", "-"], &config_map("twice"))?
        .ok()?
        .says("created")?;
    with_input(&["apply", "-f", "-"], &config_map("twice"))?
        .ok()?
        .says("unchanged")?;
    let typo = yaml.replace("restartPolicy", "restartPolice");
    with_input(&["apply", "-f", "-"], &typo)?
        .refused()?
        .says("restartPolice")?;
    with_input(&["create", "-f", "-"], &yaml)?
        .refused()?
        .says("AlreadyExists")?;
    cluster.wait_for_phase(&namespace, "web", "Running")?;
    kubectl(&["get", "pods"])?.ok()?.says("1/1")?.says("Running")?;
    kubectl(&["get", "pods", "-o", "wide"])?
        .ok()?
        .says("NODE")?
        .says("10.213.0.")?;
    kubectl(&["get", "pod", "web", "-o", "yaml"])?
        .ok()?
        .says("sha256:")?;
    kubectl(&["get", "pods", "-A", "-l", "app=web"])?
        .ok()?
        .says("web")?;
    ensure!(
        kubectl(&["get", "pods", "-l", "app=other", "-o", "name"])?
            .ok()?
            .stdout
            .is_empty(),
        "the selector does not select"
    );
    kubectl(&["get", "all,netpol,nodes,events"])?.ok()?;
    kubectl(&["describe", "pod", "web"])?
        .ok()?
        .says("Events:")?
        .says("Started")?;
    kubectl(&["describe", "node", "lab"])?.ok()?.says("Capacity")?;
    kubectl(&["label", "pod", "web", "tier=front"])?
        .ok()?
        .says("labeled")?;
    kubectl(&["annotate", "pod", "web", "note=x"])?.ok()?;
    kubectl(&[
        "patch",
        "pod",
        "web",
        "-p",
        "{\"metadata\":{\"labels\":{\"a\":\"strategic\"}}}",
    ])?
    .ok()?;
    kubectl(&[
        "patch",
        "pod",
        "web",
        "--type=merge",
        "-p",
        "{\"metadata\":{\"labels\":{\"b\":\"merge\"}}}",
    ])?
    .ok()?;
    let json = "[{\"op\":\"add\",\"path\":\"/metadata/labels/c\",\"value\":\"json\"}]";
    kubectl(&["patch", "pod", "web", "--type=json", "-p", json])?.ok()?;
    let labels = kubectl(&["get", "pod", "web", "-o", "jsonpath={.metadata.labels}"])?.ok()?;
    labels
        .says("strategic")?
        .says("merge")?
        .says("json")?
        .says("front")?;
    kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=20s"])?.ok()?;
    kubectl(&["logs", "web"])?.ok()?.says("started")?;
    kubectl(&["get", "pod", "nosuch"])?.refused()?.says("NotFound")?;
    with_input(&["apply", "--dry-run=server", "-f", "-"], &config_map("dry"))?
        .ok()?
        .says("dry run")?;
    kubectl(&["get", "configmap", "dry"])?.refused()?;
    kubectl(&["delete", "pod", "web"])?.ok()?.says("deleted")?;
    kubectl(&["get", "pod", "web"])?.refused()?;
    kubectl(&["delete", "namespace", &namespace])?.ok()?;
    kubectl(&["get", "configmap", "made"])?.refused()?;
    Ok(())
}

fn config_map(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n")
}

fn watches(cluster: &Cluster) -> Result<()> {
    let (_, program) = kubectls()?.pop().context("there is no kubectl on the PATH")?;
    let kubeconfig = cluster.kubeconfig();
    let mut watcher = Command::new(program)
        .args([
            "--kubeconfig",
            &kubeconfig,
            "get",
            "configmaps",
            "-w",
            "-o",
            "name",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start kubectl")?;
    let output = watcher.stdout.take().context("kubectl has no output")?;
    let reader = std::thread::spawn(move || {
        BufReader::new(output)
            .lines()
            .map_while(Result::ok)
            .find(|line| line == "configmap/watched")
    });
    cluster
        .kubectl(&["create", "configmap", "watched", "--from-literal=a=b"])?
        .ok()?;
    let patience = std::time::Duration::from_secs(15);
    let seen = e2e::shell::eventually(patience, || {
        if reader.is_finished() {
            Ok(())
        } else {
            bail!("the watch does not show the new object")
        }
    });
    watcher.kill().context("cannot end kubectl")?;
    watcher.wait().context("cannot wait for kubectl")?;
    seen?;
    cluster.kubectl(&["delete", "configmap", "watched"])?.ok()?;
    Ok(())
}

fn without_a_certificate_is_refused(cluster: &Cluster) -> Result<()> {
    let (_, program) = kubectls()?.pop().context("there is no kubectl on the PATH")?;
    let server = format!("https://{}", cluster.listen);
    let authority = cluster
        .state_dir
        .join("pki/ca.crt")
        .to_string_lossy()
        .into_owned();
    let anonymous = [
        "--kubeconfig=/dev/null",
        "--server",
        &server,
        "--certificate-authority",
        &authority,
        "--tls-server-name=apiserver.palisade.internal",
        // Without any credential kubectl asks for a password; the server takes no tokens.
        "--token=none",
        "get",
        "--raw",
    ];
    for path in ["/api/v1/pods", "/apis", "/version", "/healthz", "/openapi/v3"] {
        let mut arguments = anonymous.to_vec();
        arguments.push(path);
        e2e::shell::run(&program, &arguments)?
            .refused()?
            .says("Unauthorized")?;
    }
    let mut arguments = anonymous.to_vec();
    arguments.push("/livez");
    ensure!(
        e2e::shell::run(&program, &arguments)?.ok()?.stdout == "ok",
        "/livez says something else than ok"
    );
    Ok(())
}
