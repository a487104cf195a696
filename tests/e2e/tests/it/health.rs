//! What the agent asks of containers over the network: gRPC's health service, and hooks that are requests.

use std::{
    io::{BufRead as _, BufReader},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use e2e::{cluster::Cluster, distribution};
use serde_json::{Value, json};

use crate::{
    Test,
    lifecycle::{create, delete, event_says, image, is, sh, status_with, with},
};

pub(crate) const TESTS: &[Test] = &[
    ("life_grpc_probes", grpc_probes),
    ("life_hooks_are_requests", hooks_are_requests),
    ("life_requests_that_nobody_answers", requests_that_nobody_answers),
];

fn grpc_probes(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&distribution::health()?.build(), "pods/health", "1")?;
    let script = "mkdir /tmp/is; echo 1 > /tmp/is/server; echo 1 > /tmp/is/lives; exec health 5000 /tmp/is";
    let asks = |service: &str| json!({"grpc": {"port": 5000, "service": service}, "periodSeconds": 1, "timeoutSeconds": 10});
    create(
        cluster,
        "served",
        &json!({"containers": [with(sh("main", &image, script), &json!({
            "startupProbe": {"grpc": {"port": 5000}, "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 30},
            "livenessProbe": with(asks("lives"), &json!({"failureThreshold": 1, "terminationGracePeriodSeconds": 1})),
            "readinessProbe": with(asks("web"), &json!({"failureThreshold": 1})),
        }))]}),
    )?;
    // The server as a whole serves; of one service it does not know.
    let started = status_with(cluster, "served", |status| {
        status["containerStatuses"][0]["started"] == true
    })?;
    ensure!(!is(&started, "Ready"), "{started}");
    event_says(
        cluster,
        "served",
        "Readiness probe failed: error: health rpc probe failed: code 5",
    )?;
    let say = |service: &str, number: u8| {
        let script = format!("echo {number} > /tmp/is/{service}");
        cluster
            .kubectl(&["exec", "served", "--", "sh", "-c", &script])?
            .ok()
    };
    say("web", 2)?;
    event_says(
        cluster,
        "served",
        "Readiness probe failed: service unhealthy (responded with \"NOT_SERVING\")",
    )?;
    say("web", 1)?;
    let ready = status_with(cluster, "served", |status| is(status, "Ready"))?;
    ensure!(ready["containerStatuses"][0]["restartCount"] == 0, "{ready}");
    say("lives", 2)?;
    status_with(cluster, "served", |status| {
        status["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
    })?;
    event_says(
        cluster,
        "served",
        "Liveness probe failed: service unhealthy (responded with \"NOT_SERVING\")",
    )?;
    delete(cluster, &["served"])
}

fn hooks_are_requests(cluster: &Cluster) -> Result<()> {
    let image = image(cluster)?;
    // Says of each request what was asked for.
    let server = with(
        sh(
            "server",
            &image,
            "trap 'exit 0' TERM; cd /tmp; httpd -f -vv -p 8080 & wait",
        ),
        &json!({
            "restartPolicy": "Always",
            "ports": [{"containerPort": 8080, "name": "told"}],
            "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "timeoutSeconds": 10},
        }),
    );
    let main = "trap 'exit 0' TERM; while true; do sleep 0.1; done";
    create(
        cluster,
        "tells",
        &json!({
            "terminationGracePeriodSeconds": 20,
            "initContainers": [server],
            "containers": [with(sh("main", &image, main), &json!({"lifecycle": {
                "postStart": {"httpGet": {"path": "/started?by=hook", "port": 8080}},
                "preStop": {"httpGet": {"path": "/stops", "port": 8080}},
            }}))],
        }),
    )?;
    cluster.wait_for_phase("default", "tells", "Running")?;
    let log = cluster.kubectl(&["logs", "tells", "-c", "server"])?.ok()?.stdout;
    ensure!(
        log.contains("url:/started") && !log.contains("url:/stops"),
        "{log}"
    );
    let mut following = cluster.spawn_policyctl(&["logs", "-f", "tells", "-c", "server"])?;
    let output = following.stdout.take().context("policyctl has no output")?;
    let mut lines = BufReader::new(output).lines();
    // Deleted only once somebody reads.
    lines.next().context("nothing is told")??;
    let deleted = cluster.kubectl(&["delete", "pod", "tells"])?.ok()?;
    // Nobody answers with success, and any answer is one.
    let told = lines.collect::<std::io::Result<Vec<_>>>()?.join("\n");
    following.wait()?;
    ensure!(
        told.contains("url:/stops") && told.contains("response:404"),
        "{told}"
    );
    ensure!(deleted.took < Duration::from_secs(12), "{deleted}");
    let events = cluster
        .kubectl(&["get", "events", "--field-selector", "involvedObject.name=tells"])?
        .ok()?;
    ensure!(!events.stdout.contains("Hook"), "{events}");
    Ok(())
}

fn requests_that_nobody_answers(cluster: &Cluster) -> Result<()> {
    let image = image(cluster)?;
    let nobody = json!({"httpGet": {"path": "/", "port": 9}});
    create(
        cluster,
        "unheard",
        &json!({"restartPolicy": "Never", "containers": [with(sh("main", &image, "sleep 600"), &json!({
            "lifecycle": {"postStart": nobody},
        }))]}),
    )?;
    // A failed hook after the start ends the container, one before the stop does not hold it up.
    create(
        cluster,
        "unheeded",
        &json!({"terminationGracePeriodSeconds": 30, "containers": [with(
            sh("main", &image, "trap 'exit 0' TERM; while true; do sleep 0.1; done"),
            &json!({"lifecycle": {"preStop": nobody}}),
        )]}),
    )?;
    let failed = cluster.wait_for_phase("default", "unheard", "Failed")?;
    let ended: &Value = &failed["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(
        ended["exitCode"] == 137 || ended["exitCode"] == 143,
        "{}",
        failed["status"]
    );
    event_says(cluster, "unheard", "FailedPostStartHook")?;
    event_says(cluster, "unheard", "PostStartHook failed")?;
    cluster.wait_for_phase("default", "unheeded", "Running")?;
    let deleted = cluster.kubectl(&["delete", "pod", "unheeded"])?.ok()?;
    ensure!(deleted.took < Duration::from_secs(10), "{deleted}");
    event_says(cluster, "unheeded", "FailedPreStopHook")?;
    delete(cluster, &["unheard"])
}
