//! The life of a pod as kubectl users know it: init containers, sidecars, probes, hooks, deadlines, last words.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    cluster::{Cluster, POD_PATIENCE},
    shell::{Ran, eventually},
};
use serde_json::{Value, json};
use testkit::lab;

use crate::{Test, sessions::Follower};

pub(crate) const TESTS: &[Test] = &[
    ("life_init_containers_and_sidecars", init_containers_and_sidecars),
    ("life_failing_init_containers", failing_init_containers),
    ("life_probes_in_spite_of_deny_all", probes_in_spite_of_deny_all),
    (
        "life_liveness_restarts_and_startup_waits",
        liveness_restarts_and_startup_waits,
    ),
    ("life_hooks_run_within_the_grace", hooks_run_within_the_grace),
    ("life_last_words_and_deadlines", last_words_and_deadlines),
    ("life_volumes_follow_their_objects", volumes_follow_their_objects),
    (
        "life_files_over_etc_are_a_containers_own",
        files_over_etc_are_a_containers_own,
    ),
    (
        "life_goes_on_while_the_agent_is_away",
        goes_on_while_the_agent_is_away,
    ),
];

pub(crate) fn image(cluster: &Cluster) -> Result<String> {
    cluster.push(&lab::clean()?, "pods/clean", "1")
}

pub(crate) fn create(cluster: &Cluster, name: &str, spec: &Value) -> Result<()> {
    let mut spec = spec.clone();
    if spec["terminationGracePeriodSeconds"].is_null() {
        spec["terminationGracePeriodSeconds"] = json!(2);
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"name": name, "labels": {"app": name}},
    });
    cluster.apply(&pod.to_string())?.ok()?;
    Ok(())
}

pub(crate) fn sh(name: &str, image: &str, script: &str) -> Value {
    json!({"name": name, "image": image, "command": ["sh", "-c", script]})
}

/// The container with more fields.
pub(crate) fn with(mut container: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

/// Waits until the pod's status satisfies `good`.
pub(crate) fn status_with(cluster: &Cluster, pod: &str, good: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(POD_PATIENCE, || {
        let status = cluster.object("default", "pods", pod)?["status"].clone();
        if good(&status) {
            Ok(status)
        } else {
            bail!("{status}")
        }
    })
    .with_context(|| cluster.daemon_logs())
}

/// Waits until the row of `kubectl get pod` says `text`.
fn row_says(cluster: &Cluster, pod: &str, text: &str) -> Result<()> {
    eventually(POD_PATIENCE, || {
        cluster
            .kubectl(&["get", "pod", pod, "--no-headers"])?
            .ok()?
            .says(text)
    })
    .with_context(|| cluster.daemon_logs())?;
    Ok(())
}

pub(crate) fn event_says(cluster: &Cluster, pod: &str, text: &str) -> Result<()> {
    let about = format!("involvedObject.name={pod}");
    eventually(POD_PATIENCE, || {
        cluster
            .kubectl(&["get", "events", "--field-selector", &about])?
            .ok()?
            .says(text)
    })?;
    Ok(())
}

pub(crate) fn is(status: &Value, condition: &str) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions
        .into_iter()
        .any(|c| c["type"] == condition && c["status"] == "True")
}

/// Lets the pod's main container go on, which waits for the file.
fn touch(cluster: &Cluster, pod: &str, file: &str) -> Result<()> {
    cluster
        .kubectl(&["exec", pod, "-c", "main", "--", "touch", file])?
        .ok()?;
    Ok(())
}

pub(crate) fn delete(cluster: &Cluster, pods: &[&str]) -> Result<()> {
    cluster
        .kubectl(&[&["delete", "pod", "--wait=true"], pods].concat())?
        .ok()?;
    Ok(())
}

fn init_containers_and_sidecars(cluster: &Cluster) -> Result<()> {
    let image = image(cluster)?;
    let shared = json!({"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]});
    let container = |name: &str, script: &str| with(sh(name, &image, script), &shared);
    let sidecar = "trap 'echo stopped > /shared/sidecar; echo sidecar stopped; exit 0' TERM; echo up > /shared/sidecar; \
                   while true; do sleep 0.1; done";
    create(
        cluster,
        "ordered",
        &json!({
            "restartPolicy": "Never",
            "volumes": [{"name": "shared", "emptyDir": {}}],
            "initContainers": [
                container("first", "sleep 15; echo first > /shared/first"),
                with(container("beside", sidecar), &json!({
                    "restartPolicy": "Always",
                    "startupProbe": {"exec": {"command": ["test", "-f", "/shared/sidecar"]}, "periodSeconds": 1, "timeoutSeconds": 10},
                })),
                container("second", "cat /shared/first /shared/sidecar > /shared/second"),
            ],
            "containers": [container("main", "cat /shared/second; echo main; until [ -e /shared/go ]; do sleep 0.1; done")],
        }),
    )?;
    row_says(cluster, "ordered", "Init:0/3")?;
    let early = status_with(cluster, "ordered", |status| {
        status["initContainerStatuses"][0]["state"]["running"].is_object()
    })?;
    ensure!(
        early["phase"] == "Pending" && !is(&early, "Initialized"),
        "{early}"
    );
    let waiting = &early["containerStatuses"][0]["state"]["waiting"]["reason"];
    ensure!(waiting == "PodInitializing", "{early}");
    row_says(cluster, "ordered", "2/2")?;
    touch(cluster, "ordered", "/shared/go")?;
    let ended = cluster.wait_for_phase("default", "ordered", "Succeeded")?;
    let log = cluster.kubectl(&["logs", "ordered"])?.ok()?.stdout;
    ensure!(log == "first\nup\nmain\n", "{log}");
    cluster
        .kubectl(&["logs", "ordered", "-c", "beside"])?
        .ok()?
        .says("sidecar stopped")?;
    let beside = &ended["status"]["initContainerStatuses"][1];
    ensure!(beside["state"]["terminated"]["exitCode"] == 0, "{ended}");
    row_says(cluster, "ordered", "Completed")?;
    event_says(cluster, "ordered", "Stopping container beside")?;
    delete(cluster, &["ordered"])
}

fn failing_init_containers(cluster: &Cluster) -> Result<()> {
    let image = image(cluster)?;
    let spec = |restart: &str| {
        json!({
            "restartPolicy": restart,
            "initContainers": [sh("broken", &image, "exit 7"), sh("never", &image, "true")],
            "containers": [sh("main", &image, "sleep 60")],
        })
    };
    create(cluster, "loops", &spec("Always"))?;
    create(cluster, "fails", &spec("Never"))?;
    row_says(cluster, "loops", "Init:CrashLoopBackOff")?;
    let failed = cluster.wait_for_phase("default", "fails", "Failed")?;
    let status = &failed["status"];
    ensure!(
        status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 7,
        "{status}"
    );
    ensure!(
        status["initContainerStatuses"][1]["state"]["waiting"]["reason"] == "PodInitializing",
        "{status}"
    );
    row_says(cluster, "fails", "Init:Error")?;
    event_says(cluster, "loops", "BackOff")?;
    delete(cluster, &["loops", "fails"])
}

fn probes_in_spite_of_deny_all(cluster: &Cluster) -> Result<()> {
    let image = image(cluster)?;
    let deny = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny}\n\
                spec: {podSelector: {matchLabels: {app: probed}}, policyTypes: [Ingress, Egress]}\n";
    cluster.apply(deny)?.ok()?;
    let script = "mkdir /tmp/www; echo x > /tmp/www/live; httpd -p 8080 -h /tmp/www; \
                  until [ -e /tmp/a ]; do sleep 0.1; done; echo x > /tmp/www/ready; \
                  until [ -e /tmp/b ]; do sleep 0.1; done; rm /tmp/www/ready; sleep 600";
    create(
        cluster,
        "probed",
        &json!({"containers": [with(sh("main", &image, script), &json!({
            "ports": [{"containerPort": 8080, "name": "web"}],
            "startupProbe": {"tcpSocket": {"port": "web"}, "periodSeconds": 1, "timeoutSeconds": 10},
            "livenessProbe": {"httpGet": {"path": "/live", "port": 8080, "httpHeaders": [{"name": "X", "value": "y"}]},
                "periodSeconds": 1, "timeoutSeconds": 10},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "web"},
                "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 1},
        }))]}),
    )?;
    let started = status_with(cluster, "probed", |status| {
        status["containerStatuses"][0]["started"] == true
    })?;
    ensure!(!is(&started, "Ready"), "{started}");
    row_says(cluster, "probed", "0/1")?;
    touch(cluster, "probed", "/tmp/a")?;
    status_with(cluster, "probed", |status| {
        is(status, "Ready") && is(status, "ContainersReady")
    })?;
    row_says(cluster, "probed", "1/1")?;
    touch(cluster, "probed", "/tmp/b")?;
    let unready = status_with(cluster, "probed", |status| !is(status, "Ready"))?;
    ensure!(unready["containerStatuses"][0]["restartCount"] == 0, "{unready}");
    event_says(
        cluster,
        "probed",
        "Readiness probe failed: HTTP probe failed with statuscode: 404",
    )?;
    cluster.kubectl(&["delete", "networkpolicy", "deny"])?.ok()?;
    delete(cluster, &["probed"])
}

fn liveness_restarts_and_startup_waits(cluster: &Cluster) -> Result<()> {
    let image = image(cluster)?;
    let alive = json!({
        "exec": {"command": ["cat", "/tmp/alive"]}, "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 2,
    });
    create(
        cluster,
        "dies",
        &json!({"containers": [with(
        sh("main", &image, "touch /tmp/alive; sleep 3; rm /tmp/alive; sleep 600"),
        &json!({"livenessProbe": with(alive.clone(), &json!({"terminationGracePeriodSeconds": 1}))}),
    )], "terminationGracePeriodSeconds": 120}),
    )?;
    // Without any grace it still hears its signal.
    create(
        cluster,
        "told",
        &json!({"containers": [with(
        sh("main", &image, "trap 'exit 7' TERM; touch /tmp/alive; sleep 3; rm /tmp/alive; while :; do sleep 0.1; done"),
        &json!({"livenessProbe": alive.clone()}),
    )], "terminationGracePeriodSeconds": 0}),
    )?;
    // The startup probe gives a slow start the time that the liveness probe alone would not.
    create(
        cluster,
        "slow",
        &json!({"containers": [with(
            sh("main", &image, "sleep 5; touch /tmp/alive; sleep 600"),
            &json!({
                "livenessProbe": alive.clone(),
                "startupProbe": with(alive, &json!({"failureThreshold": 30})),
            }),
        )]}),
    )?;
    let restarted = status_with(cluster, "dies", |status| {
        status["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
    })?;
    let last = &restarted["containerStatuses"][0]["lastState"]["terminated"];
    ensure!(
        last["exitCode"] == 137,
        "killed after its own grace, not after 120 s: {last}"
    );
    event_says(
        cluster,
        "dies",
        "Liveness probe failed: cat: can't open '/tmp/alive'",
    )?;
    event_says(
        cluster,
        "dies",
        "Container main failed liveness probe, will be restarted",
    )?;
    // A busy machine may kill it before it has come to its trap, but not each time.
    status_with(cluster, "told", |status| {
        status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 7
    })
    .context("killed without a word")?;
    let slow = status_with(cluster, "slow", |status| is(status, "Ready"))?;
    ensure!(slow["containerStatuses"][0]["restartCount"] == 0, "{slow}");
    event_says(cluster, "slow", "Startup probe failed")?;
    cluster
        .kubectl(&["delete", "pod", "dies", "--grace-period=1"])?
        .ok()?;
    delete(cluster, &["slow", "told"])
}

fn hooks_run_within_the_grace(cluster: &Cluster) -> Result<()> {
    let image = image(cluster)?;
    let script = "trap 'echo signal after $(cat /tmp/hook); exit 0' TERM; echo main sees $(cat /tmp/started 2>/dev/null); \
                  while true; do sleep 0.1; done";
    create(
        cluster,
        "hooked",
        &json!({"terminationGracePeriodSeconds": 20, "containers": [with(sh("main", &image, script), &json!({
            "lifecycle": {
                "postStart": {"exec": {"command": ["sh", "-c", "sleep 5; echo started > /tmp/started"]}},
                "preStop": {"exec": {"command": ["sh", "-c", "echo hook $(cat /tmp/started) > /tmp/hook; sleep 1"]}},
            },
        }))]}),
    )?;
    let early = status_with(cluster, "hooked", |status| status["containerStatuses"].is_array())?;
    ensure!(early["phase"] == "Pending", "{early}");
    cluster.wait_for_phase("default", "hooked", "Running")?;
    let (deleted, followed) = delete_followed(cluster, "hooked", &[])?;
    ensure!(deleted.took < Duration::from_secs(15), "{deleted}");
    ensure!(
        followed.iter().any(|line| line == "signal after hook started"),
        "{followed:?}"
    );

    // Whoever is deleted by force has a second for the hook, and hears the signal. A busy machine may need that second for
    // less than the hook, but not each time.
    let spec = json!({"terminationGracePeriodSeconds": 20, "containers": [with(sh("main", &image, script), &json!({
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /tmp/hook; sleep 600"]}}},
    }))]});
    let forced = |pod: &str| -> Result<bool> {
        create(cluster, pod, &spec)?;
        cluster.wait_for_phase("default", pod, "Running")?;
        let (_, followed) = delete_followed(cluster, pod, &["--grace-period=0", "--force"])?;
        let mut heard = followed.iter().filter(|line| line.starts_with("signal after"));
        let heard = heard.next().with_context(|| format!("no signal: {followed:?}"))?;
        Ok(heard == "signal after hook")
    };
    ensure!(
        forced("forced-1")? || forced("forced-2")? || forced("forced-3")?,
        "the signal comes before the hook"
    );

    // A hook that does not end takes the grace with it, and no more.
    create(
        cluster,
        "stuck",
        &json!({"terminationGracePeriodSeconds": 3, "containers": [with(
            sh("main", &image, "sleep 600"),
            &json!({"lifecycle": {"preStop": {"sleep": {"seconds": 3}}, "postStart": {"httpGet": {"port": 9}}}}),
        )]}),
    )?;
    event_says(cluster, "stuck", "FailedPostStartHook")?;
    let deleted = cluster.kubectl(&["delete", "pod", "stuck"])?.ok()?;
    ensure!(deleted.took < Duration::from_secs(12), "{deleted}");
    Ok(())
}

/// Deletes a pod whose program has said what it sees; the lines that are printed from then until its end.
fn delete_followed(cluster: &Cluster, pod: &str, how: &[&str]) -> Result<(Ran, Vec<String>)> {
    let follower = Follower::start(cluster, &[pod], "main sees")?;
    let arguments = [&["delete", "pod", pod], how].concat();
    let deleted = cluster.kubectl(&arguments)?.ok()?;
    Ok((deleted, follower.rest()?))
}

fn last_words_and_deadlines(cluster: &Cluster) -> Result<()> {
    let image = image(cluster)?;
    let fall_back = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let own_path = json!({"terminationMessagePath": "/tmp/last", "securityContext": {"runAsUser": 1000}});
    create(
        cluster,
        "words",
        &json!({"restartPolicy": "Never", "containers": [
            sh("file", &image, "echo written > /dev/termination-log; exit 3"),
            with(sh("path", &image, "echo elsewhere > /tmp/last"), &own_path),
            with(sh("log", &image, "echo one; echo two >&2; exit 1"), &fall_back),
            with(sh("fine", &image, "echo nothing to see"), &fall_back),
            sh("flood", &image, "yes > /dev/termination-log & sleep 0.5; exit 1"),
        ]}),
    )?;
    create(
        cluster,
        "deadline",
        &json!({
            "activeDeadlineSeconds": 3, "containers": [sh("main", &image, "sleep 600")],
        }),
    )?;
    let ended = cluster.wait_for_phase("default", "words", "Failed")?;
    let message = |index: usize| {
        ended["status"]["containerStatuses"][index]["state"]["terminated"]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let found = [0, 1, 2, 3].map(message);
    ensure!(
        found == ["written\n", "elsewhere\n", "one\ntwo\n", ""],
        "{found:?}: {ended}"
    );
    let flood = message(4);
    ensure!(
        flood.len() == 12 * 1024 / 5 && flood.starts_with("y\ny\n"),
        "{}",
        flood.len()
    );
    let late = cluster.wait_for_phase("default", "deadline", "Failed")?;
    ensure!(late["status"]["reason"] == "DeadlineExceeded", "{late}");
    event_says(cluster, "deadline", "DeadlineExceeded")?;
    delete(cluster, &["words", "deadline"])
}

fn volumes_follow_their_objects(cluster: &Cluster) -> Result<()> {
    let image = image(cluster)?;
    let objects = |value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: live}}\ndata: {{a: {value}, b: {value}}}\n---\n\
             apiVersion: v1\nkind: Secret\nmetadata: {{name: live}}\nstringData: {{s: {value}}}\n"
        )
    };
    cluster.apply(&objects("old"))?.ok()?;
    let script = "mkdir -p /own/deep; while true; do \
                  echo $(cat /map/a) $(cat /map/b) $(cat /all/s) $(cat /all/app) $(cat /part) $(ls /sub); sleep 0.2; done";
    create(
        cluster,
        "live",
        &json!({
            "hostname": "h", "subdomain": "db", "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["alias.test"]}],
            "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]},
            "readinessGates": [{"conditionType": "lab.example/ready"}],
            "volumes": [
                {"name": "map", "configMap": {"name": "live"}},
                {"name": "all", "projected": {"defaultMode": 256, "sources": [
                    {"secret": {"name": "live"}},
                    {"downwardAPI": {"items": [{"path": "app", "fieldRef": {"fieldPath": "metadata.labels['app']"}}]}}]}},
                {"name": "own", "emptyDir": {}}],
            "initContainers": [with(sh("fill", &image, "mkdir -p /own/x/y; echo > /own/x/y/found; ln -s /etc /own/out"), &json!({
                "volumeMounts": [{"name": "own", "mountPath": "/own"}]}))],
            "containers": [with(sh("main", &image, script), &json!({
                "env": [{"name": "WHERE", "value": "y"},
                        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}}],
                "resources": {"limits": {"cpu": "1500m"}},
                "volumeMounts": [
                    {"name": "map", "mountPath": "/map"}, {"name": "all", "mountPath": "/all"},
                    {"name": "own", "mountPath": "/own"}, {"name": "map", "mountPath": "/part", "subPath": "a"},
                    {"name": "own", "mountPath": "/sub", "subPathExpr": "x/$(WHERE)"}]})),
                sh("shows", &image, "grep -h . /etc/hosts /etc/resolv.conf; sleep 600")],
        }),
    )?;
    cluster.wait_for_phase("default", "live", "Running")?;
    let says = |container: &str, text: &str| {
        let arguments = ["logs", "live", "-c", container, "--tail=20"];
        eventually(POD_PATIENCE, || cluster.kubectl(&arguments)?.ok()?.says(text))
    };
    says("main", "old old old live old found")?;
    says("shows", "h.db.default.svc.cluster.local\th")?;
    says("shows", "192.0.2.9\talias.test")?;
    says("shows", "ndots:2")?;
    cluster.apply(&objects("new"))?.ok()?;
    cluster
        .kubectl(&["label", "pod", "live", "app=other", "--overwrite"])?
        .ok()?;
    // What is mounted by sub-path stays as it was, as in Kubernetes.
    says("main", "new new new other old found")?;
    let log = cluster.kubectl(&["logs", "live", "-c", "main"])?.ok()?.stdout;
    let torn = log
        .lines()
        .find(|line| line.starts_with("old new") || line.starts_with("new old"));
    // The loop reads one file after the other, so one torn line is possible, and no more.
    ensure!(
        log.lines().filter(|line| Some(*line) == torn).count() <= 1,
        "{torn:?}"
    );

    // Ready once somebody else says so; the agent's own statuses leave that alone.
    let waits = status_with(cluster, "live", |status| is(status, "ContainersReady"))?;
    ensure!(!is(&waits, "Ready"), "{waits}");
    let gate =
        json!({"status": {"conditions": [{"type": "lab.example/ready", "status": "True"}]}}).to_string();
    cluster
        .kubectl(&["patch", "pod", "live", "--subresource=status", "-p", &gate])?
        .ok()?;
    let ready = status_with(cluster, "live", |status| is(status, "Ready"))?;
    ensure!(is(&ready, "lab.example/ready"), "{ready}");

    // A link that the pod put there does not lead to the node's files.
    create(
        cluster,
        "leaves",
        &json!({
            "volumes": [{"name": "own", "emptyDir": {}}],
            "initContainers": [with(sh("link", &image, "ln -s /etc /own/out"), &json!({
                "volumeMounts": [{"name": "own", "mountPath": "/own"}]}))],
            "containers": [with(sh("main", &image, "sleep 600"), &json!({
                "volumeMounts": [{"name": "own", "mountPath": "/x", "subPath": "out"}]}))],
        }),
    )?;
    let refused = status_with(cluster, "leaves", |status| {
        let state = &status["containerStatuses"][0]["state"];
        state["waiting"]["reason"]
            .as_str()
            .is_some_and(|reason| reason != "PodInitializing")
            || state["terminated"].is_object()
    })?;
    ensure!(
        refused["phase"] != "Running" || refused["containerStatuses"][0]["started"] == false,
        "{refused}"
    );
    delete(cluster, &["live", "leaves"])?;
    cluster.kubectl(&["delete", "cm/live", "secret/live"])?.ok()?;
    Ok(())
}

/// Entry points of images append to `/etc/hosts`.
fn files_over_etc_are_a_containers_own(cluster: &Cluster) -> Result<()> {
    let image = image(cluster)?;
    let append = "echo 192.0.2.7 mine.test >> /etc/hosts && echo nameserver 192.0.2.8 > /etc/resolv.conf && \
                  echo mine > /etc/hostname && grep -h . /etc/hosts /etc/resolv.conf /etc/hostname; ";
    let bounded = "head -c 10000000 /dev/zero >> /etc/hosts || echo bounded; \
                   cp /bin/busybox /etc/hosts; chmod +x /etc/hosts && /etc/hosts true || echo no code; sleep 600";
    let refused = "echo x >> /etc/hosts || echo refused; sleep 600";
    let waits = "while ! [ -e /shared/done ]; do sleep 0.1; done; grep -c mine.test /etc/hosts; sleep 600";
    let shared = json!({"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "etc", "annotations": {"palisade.dev/sandbox-profile.strict": "strict"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "shared", "emptyDir": {}}],
            "containers": [
                with(sh("writes", &image, &format!("{append} touch /shared/done; {bounded}")), &shared),
                with(sh("other", &image, waits), &shared),
                with(sh("root", &image, refused), &json!({"securityContext": {"readOnlyRootFilesystem": true}})),
                sh("strict", &image, refused),
            ],
        },
    });
    cluster.apply(&pod.to_string())?.ok()?;
    cluster.wait_for_phase("default", "etc", "Running")?;
    let says = |container: &str, text: &str| {
        let arguments = ["logs", "etc", "-c", container];
        eventually(POD_PATIENCE, || cluster.kubectl(&arguments)?.ok()?.says(text))
    };
    says("writes", "192.0.2.7 mine.test\nnameserver 192.0.2.8\nmine\n")?;
    says("writes", "bounded")?;
    says("writes", "no code")?;
    says("other", "0\n")?;
    says("root", "refused")?;
    says("strict", "refused")?;
    delete(cluster, &["etc"])
}

fn goes_on_while_the_agent_is_away(cluster: &Cluster) -> Result<()> {
    let image = image(cluster)?;
    let test = |file: &str| json!({"exec": {"command": ["test", "-f", file]}, "periodSeconds": 1, "timeoutSeconds": 10});
    let shared = json!({"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]});
    let container = |name: &str, script: &str| with(sh(name, &image, script), &shared);
    create(
        cluster,
        "lasting",
        &json!({
            "terminationGracePeriodSeconds": 10,
            "volumes": [{"name": "shared", "emptyDir": {}}],
            "initContainers": [
                container("once", "echo once >> /shared/once"),
                with(container("beside", "touch /shared/up; sleep 600"), &json!({
                    "restartPolicy": "Always", "startupProbe": test("/shared/up")}))],
            "containers": [with(container("main", "touch /shared/ready; sleep 12; rm /shared/ready; sleep 600"), &json!({
                "startupProbe": test("/shared/up"), "readinessProbe": test("/shared/ready"), "livenessProbe": test("/shared/up"),
                "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo hook >> /shared/once"]}}}}))],
        }),
    )?;
    let before = status_with(cluster, "lasting", |status| is(status, "Ready"))?;
    crate::recovery::kill(cluster.daemon_pid("agent")?)?;
    cluster.up_again()?;
    // A probe of the new agent finds what happened meanwhile or later; nothing was started twice.
    let after = status_with(cluster, "lasting", |status| !is(status, "Ready"))?;
    for (list, index) in [
        ("initContainerStatuses", 0),
        ("initContainerStatuses", 1),
        ("containerStatuses", 0),
    ] {
        for field in ["containerID", "restartCount", "state", "started"] {
            let (before, after) = (&before[list][index], &after[list][index]);
            ensure!(
                before[field] == after[field],
                "{field} changed: {before} to {after}"
            );
        }
    }
    ensure!(
        after["phase"] == "Running" && is(&after, "Initialized"),
        "{after}"
    );
    delete(cluster, &["lasting"])
}
