//! What a test leaves that has failed. It is removed, so that the tests after it are not judged by it: a policy of the one
//! before it is how most of a run's failures came about.

use std::collections::BTreeSet;

use anyhow::{Context as _, Error, Result};
use e2e::cluster::Cluster;
use serde_json::{Value, json};

/// Kinds of objects that tests make, in an order in which they may be deleted: assertions keep policies, and these their tier.
/// What is in a namespace of a test's own goes with it.
const KINDS: &[&str] = &[
    "policyassertions.palisade.dev",
    "namespaces",
    "pods",
    "services",
    "configmaps",
    "secrets",
    "persistentvolumeclaims",
    "networkpolicies.networking.k8s.io",
    "networkpolicies.projectcalico.org",
    "stagednetworkpolicies.projectcalico.org",
    "stagedkubernetesnetworkpolicies.projectcalico.org",
    "stagedglobalnetworkpolicies.projectcalico.org",
    "globalnetworkpolicies.projectcalico.org",
    "clusternetworkpolicies.policy.networking.k8s.io",
    "networksets.projectcalico.org",
    "globalnetworksets.projectcalico.org",
    "hostendpoints.projectcalico.org",
    "tiers.projectcalico.org",
    "imagepolicies.palisade.dev",
    "sandboxprofiles.palisade.dev",
    "hostpathgrants.palisade.dev",
];

/// An object's kind with its version, and its name; there is one namespace.
type Named = (String, String, String);

/// The objects of the cluster and of its default namespace, in the order of [`KINDS`].
pub(crate) fn objects(cluster: &Cluster) -> Result<Vec<Named>> {
    let listed = cluster
        .kubectl(&["get", &KINDS.join(","), "-n", "default", "-o", "json"])?
        .ok()?;
    let listed: Value = serde_json::from_str(&listed.stdout).context("not a list")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = listed["items"].as_array().into_iter().flatten();
    let items = items.map(|item| {
        (
            text(&item["apiVersion"]),
            text(&item["kind"]),
            text(&item["metadata"]["name"]),
        )
    });
    Ok(items.collect())
}

/// Makes the cluster what it was `before` all tests, with both daemons. Returns why the test failed, and why this did.
pub(crate) fn removed_after(cluster: &Cluster, before: &[Named], failed: Error) -> Error {
    match remove(cluster, before) {
        Ok(()) => failed,
        Err(error) => failed.context(format!("what the test left is not removed: {error:#}")),
    }
}

fn remove(cluster: &Cluster, before: &[Named]) -> Result<()> {
    cluster.up_again()?;
    let before: BTreeSet<&Named> = before.iter().collect();
    let left = objects(cluster)?;
    let left: Vec<Value> = left
        .iter()
        .filter(|object| !before.contains(object))
        .map(|(version, kind, name)| json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}}))
        .collect();
    if left.is_empty() {
        return Ok(());
    }
    let left = json!({"apiVersion": "v1", "kind": "List", "items": left}).to_string();
    let arguments = [
        "delete",
        "--ignore-not-found",
        "--timeout=60s",
        "-n",
        "default",
        "-f",
        "-",
    ];
    cluster.kubectl_with_input(&arguments, &left)?.ok()?;
    Ok(())
}
