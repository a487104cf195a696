//! The one command people use, as they use it.

use anyhow::{Context, Result, ensure};
use e2e::{
    cluster::{Cluster, pod},
    shell::{binaries, run},
};
use testkit::{lab, scanner};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "policyctl_applies_directories_and_standard_input",
        applies_directories_and_standard_input,
    ),
    (
        "policyctl_sends_nothing_when_one_object_is_invalid",
        sends_nothing_when_one_is_invalid,
    ),
    ("policyctl_gets_logs_and_deletes", gets_logs_and_deletes),
    ("policyctl_scans_by_hand", scans_by_hand),
    ("policyctl_up_is_idempotent", up_is_idempotent),
    ("policyctl_speaks_of_itself", speaks_of_itself),
];

fn config_map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{key: {value}}}\n")
}

fn applies_directories_and_standard_input(cluster: &Cluster) -> Result<()> {
    let directory = tempfile::tempdir()?;
    std::fs::write(
        directory.path().join("a.yaml"),
        format!("{}---\n{}", config_map("a", "x"), config_map("b", "x")),
    )?;
    std::fs::write(
        directory.path().join("c.json"),
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"}}"#,
    )?;
    std::fs::write(directory.path().join("notes.txt"), "not a manifest")?;
    let path = directory.path().to_string_lossy().into_owned();
    let first = cluster.policyctl(&["apply", "-f", &path])?.ok()?;
    ensure!(
        first.stdout == "configmap/a created\nconfigmap/b created\nconfigmap/c created\n",
        "{first}"
    );
    let second = cluster
        .policyctl_with_input(&["apply", "-f", "-"], &config_map("a", "other"))?
        .ok()?;
    ensure!(second.stdout == "configmap/a configured\n", "{second}");
    let third = cluster
        .policyctl_with_input(&["apply", "-f", "-"], &config_map("a", "other"))?
        .ok()?;
    ensure!(third.stdout == "configmap/a unchanged\n", "{third}");
    cluster
        .policyctl(&["delete", "-f", &path])?
        .ok()?
        .says("configmap/b deleted")?;
    Ok(())
}

fn sends_nothing_when_one_is_invalid(cluster: &Cluster) -> Result<()> {
    let good = config_map("good", "x");
    let bad = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad}\nspec:\n  podSelector: {}\n  \
               ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]\n";
    let refused = cluster
        .policyctl_with_input(&["apply", "-f", "-"], &format!("{good}---\n{bad}"))?
        .refused()?;
    refused
        .says("document 2")?
        .says("spec.ingress[0].from[0].ipBlock.cidr")?;
    cluster
        .policyctl(&["get", "cm", "good"])?
        .refused()?
        .says("not found")?;
    Ok(())
}

fn gets_logs_and_deletes(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "policyctl/clean", "1")?;
    let yaml = pod(
        "default",
        "talks",
        "app: talks",
        &image,
        &["sh", "-c", "echo one; echo two; sleep 1000"],
        "restartPolicy: Always",
    );
    cluster
        .policyctl_with_input(&["apply", "-f", "-"], &yaml)?
        .ok()?
        .says("pod/talks created")?;
    // The pod is pinned to a digest; applying its tag again must not see a difference.
    cluster.policyctl_with_input(&["apply", "-f", "-"], &yaml)?.ok()?;
    cluster.wait_for_phase("default", "talks", "Running")?;
    cluster
        .policyctl(&["get", "pods", "-o", "wide"])?
        .ok()?
        .says("NODE")?;
    cluster
        .policyctl(&["get", "pods", "-A", "-o", "yaml"])?
        .ok()?
        .says("name: talks")?;
    cluster
        .policyctl(&["get", "pods", "-l", "app=talks", "-o", "name"])?
        .ok()?
        .says("pod/talks")?;
    e2e::shell::eventually(std::time::Duration::from_secs(10), || {
        let log = cluster.policyctl(&["logs", "talks", "--tail", "1"])?.ok()?;
        ensure!(log.stdout == "two\n", "{log}");
        Ok(())
    })?;
    let stamped = cluster.policyctl(&["logs", "talks", "--timestamps"])?.ok()?;
    ensure!(
        stamped.stdout.starts_with("20") && stamped.stdout.contains("Z one"),
        "{stamped}"
    );
    cluster
        .policyctl(&["delete", "pod/talks"])?
        .ok()?
        .says("pod/talks deleted")?;
    cluster
        .policyctl(&["delete", "pod", "talks"])?
        .refused()?
        .says("not found")?;
    Ok(())
}

fn scans_by_hand(cluster: &Cluster) -> Result<()> {
    let (trivy, _) = scanner::trivy()?;
    let database = tempfile::tempdir()?;
    scanner::write_lab_db(database.path(), 1)?;
    let (trivy, database) = (trivy.to_string_lossy(), database.path().to_string_lossy());
    let scan = |image: &str, output: &str| {
        run(
            &binaries()?.join("policyctl"),
            &[
                "scan",
                image,
                "--trivy",
                &trivy,
                "--trivy-db",
                &database,
                "-o",
                output,
            ],
        )
    };
    let vulnerable = cluster.push(&lab::vulnerable()?, "policyctl/vulnerable", "1")?;
    let clean = cluster.push(&lab::clean()?, "policyctl/clean", "1")?;
    let table = scan(&vulnerable, "table")?;
    ensure!(table.code == 2, "{table}");
    table
        .says(scanner_labdb::CRITICAL_ID)?
        .says("CRITICAL")?
        .says(scanner_labdb::FIXED_VERSION)?;
    let sarif = scan(&vulnerable, "sarif")?;
    let parsed: serde_json::Value = serde_json::from_str(&sarif.stdout).context("SARIF is not JSON")?;
    ensure!(parsed["version"] == "2.1.0", "{sarif}");
    ensure!(
        parsed["runs"][0]["results"][0]["ruleId"] == scanner_labdb::CRITICAL_ID,
        "{sarif}"
    );
    ensure!(
        scan(&clean, "json")?.ok()?.says("\"Pass\"")?.code == 0,
        "a clean image passes"
    );
    Ok(())
}

fn up_is_idempotent(cluster: &Cluster) -> Result<()> {
    let before = (cluster.daemon_pid("control")?, cluster.daemon_pid("agent")?);
    cluster.up_again()?.says("is Ready")?;
    let after = (cluster.daemon_pid("control")?, cluster.daemon_pid("agent")?);
    ensure!(
        before == after,
        "up restarted a daemon that was running: {before:?}, then {after:?}"
    );
    Ok(())
}

fn speaks_of_itself(cluster: &Cluster) -> Result<()> {
    cluster
        .policyctl(&["version"])?
        .ok()?
        .says("client: ")?
        .says("server: v1.")?;
    for shell in ["bash", "zsh", "fish"] {
        cluster
            .policyctl(&["completions", shell])?
            .ok()?
            .says("policyctl")?;
    }
    cluster
        .policyctl(&["explain", "--help"])?
        .ok()?
        .says("Examples:")?;
    Ok(())
}
