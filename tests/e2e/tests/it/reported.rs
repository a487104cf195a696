//! What `kubectl get pod -o yaml` or `-o json` says of containers that exist, and what they are told of their resources.

use anyhow::{Context, Result, ensure};
use e2e::{cluster::Cluster, shell::eventually};
use serde_json::{Value, json};
use testkit::lab;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "reported_containers_say_what_they_were_made_with",
        say_what_they_were_made_with,
    ),
    ("reported_storage_is_shown_to_containers", storage_is_shown),
];

fn apply(cluster: &Cluster, name: &str, spec: &Value) -> Result<()> {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
    cluster.apply(&pod.to_string())?.ok()?;
    Ok(())
}

/// Statuses of all containers, as kubectl prints the pod.
fn printed(cluster: &Cluster, name: &str) -> Result<Value> {
    let text = cluster.kubectl(&["get", "pod", name, "-o", "json"])?.ok()?.stdout;
    let pod: Value = serde_json::from_str(&text).with_context(|| format!("not JSON:\n{text}"))?;
    Ok(pod["status"]["containerStatuses"].clone())
}

fn say_what_they_were_made_with(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "reported/clean", "1")?;
    let idle = json!(["sh", "-c", "id; touch /whole/x; touch /plain/x; sleep 1000"]);
    let spec = json!({
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "supplementalGroups": [4000], "fsGroup": 5000},
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [
            {"name": "a", "image": image, "command": idle,
             "resources": {"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "100m"}},
             "volumeMounts": [
                {"name": "v", "mountPath": "/plain", "readOnly": true},
                {"name": "v", "mountPath": "/whole", "readOnly": true, "recursiveReadOnly": "Enabled"},
                {"name": "v", "mountPath": "/open"}]},
            {"name": "b", "image": image, "command": ["sleep", "1000"], "securityContext": {"runAsUser": 0}},
        ],
    });
    apply(cluster, "reported", &spec)?;
    cluster.wait_for_phase("default", "reported", "Running")?;
    let check = || {
        let statuses = printed(cluster, "reported")?;
        let (a, b) = (&statuses[0], &statuses[1]);
        let resources =
            json!({"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}});
        ensure!(a["resources"] == resources, "{a}");
        ensure!(a["allocatedResources"] == resources["requests"], "{a}");
        let mounts = a["volumeMounts"].as_array().context("no volume mounts")?;
        let expected = json!([
            {"name": "v", "mountPath": "/plain", "readOnly": true, "recursiveReadOnly": "Disabled"},
            {"name": "v", "mountPath": "/whole", "readOnly": true, "recursiveReadOnly": "Enabled"},
            {"name": "v", "mountPath": "/open"},
        ]);
        ensure!(mounts.get(..3) == expected.as_array().map(Vec::as_slice), "{a}");
        // The token's volume, which admission adds.
        let token = mounts.get(3).context("no mount of the token")?;
        ensure!(token["recursiveReadOnly"] == "Disabled", "{token}");
        let user = json!({"linux": {"uid": 1000, "gid": 3000, "supplementalGroups": [4000, 5000]}});
        ensure!(a["user"] == user, "{a}");
        ensure!(b["user"]["linux"]["uid"] == 0, "{b}");
        ensure!(b["resources"] == json!({}), "{b}");
        Ok::<_, anyhow::Error>(())
    };
    check()?;
    eventually(std::time::Duration::from_secs(20), || {
        let log = cluster.kubectl(&["logs", "reported", "-c", "a"])?.ok()?.stdout;
        ensure!(
            log.contains("uid=1000 gid=3000 groups=4000,5000") || log.contains("groups=3000,4000,5000"),
            "{log}"
        );
        for path in ["/plain/x", "/whole/x"] {
            ensure!(
                log.contains(&format!("touch: {path}: Read-only file system")),
                "{log}"
            );
        }
        Ok(())
    })?;
    // Another agent knows as much of containers that it did not start.
    cluster.restart_agent("")?;
    eventually(std::time::Duration::from_secs(20), || {
        cluster
            .kubectl(&["exec", "reported", "-c", "b", "--", "true"])?
            .ok()
    })?;
    check()?;
    cluster.kubectl(&["delete", "pod", "reported"])?.ok()?;
    Ok(())
}

fn storage_is_shown(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "reported/clean", "1")?;
    let reference = |resource: &str, divisor: &str, container: &str| json!({"resource": resource, "divisor": divisor, "containerName": container});
    let variable =
        |name: &str, reference: Value| json!({"name": name, "valueFrom": {"resourceFieldRef": reference}});
    let spec = json!({
        "restartPolicy": "Never",
        "volumes": [{"name": "v", "downwardAPI": {"items": [
            {"path": "limit", "resourceFieldRef": reference("limits.ephemeral-storage", "1Mi", "main")},
            {"path": "node", "resourceFieldRef": reference("limits.ephemeral-storage", "1Ki", "free")}]}}],
        "containers": [
            {"name": "main", "image": image,
             "command": ["sh", "-c", "echo $LIMIT $REQUEST $(cat /v/limit)"],
             "env": [
                variable("LIMIT", reference("limits.ephemeral-storage", "0", "")),
                variable("REQUEST", reference("requests.ephemeral-storage", "1M", ""))],
             "resources": {"limits": {"ephemeral-storage": "1G"}, "requests": {"ephemeral-storage": "500M"}},
             "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
            {"name": "free", "image": image,
             "command": ["sh", "-c", "echo $LIMIT $(cat /v/node)"],
             "env": [variable("LIMIT", reference("limits.ephemeral-storage", "1Ki", ""))],
             "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
        ],
    });
    apply(cluster, "shown", &spec)?;
    cluster.wait_for_phase("default", "shown", "Succeeded")?;
    let log = |container: &str| {
        Ok::<_, anyhow::Error>(cluster.kubectl(&["logs", "shown", "-c", container])?.ok()?.stdout)
    };
    let main = log("main")?;
    ensure!(main == "1000000000 500 954\n", "{main:?}");
    let path = "jsonpath={.items[0].status.allocatable.ephemeral-storage}";
    let node = cluster.kubectl(&["get", "nodes", "-o", path])?.ok()?.stdout;
    let node = node.strip_suffix("Ki").context("not in KiB")?;
    let free = log("free")?;
    // The object has whole KiB, the container the next one.
    let next = node.parse::<u64>()? + 1;
    let shown = [node.to_owned(), next.to_string()].map(|amount| format!("{amount} {amount}\n"));
    ensure!(shown.contains(&free), "{free:?} is none of {shown:?}");
    cluster.kubectl(&["delete", "pod", "shown"])?.ok()?;
    Ok(())
}
