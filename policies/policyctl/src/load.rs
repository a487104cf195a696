//! The cluster that a question is about: from files, without a running cluster, or from the live one.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use api::{
    palisade::PolicyAssertion,
    resources::{RESOURCES, Resource, Stored},
};
use policies_compiler::{Loaded, Source, load_objects};
use serde_json::Value;

use crate::{cli::Connection, cluster, objects, output};

/// Resources that network policy depends on. Profiles are computed from namespaces and service accounts.
fn resources() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    const GROUPS: [&str; 3] = [
        "networking.k8s.io",
        "policy.networking.k8s.io",
        "projectcalico.org",
    ];
    const OTHERS: [(&str, &str); 5] = [
        ("", "namespaces"),
        ("", "nodes"),
        ("", "pods"),
        ("", "serviceaccounts"),
        ("discovery.k8s.io", "endpointslices"),
    ];
    let needed = |row: &&Resource| {
        let policy = GROUPS.contains(&row.group) && row.stored == Stored::Yes;
        policy || OTHERS.contains(&(row.group, row.plural))
    };
    RESOURCES
        .iter()
        .filter(needed)
        .map(|row| (row.group, row.version, row.plural))
}

/// From files, telling on standard error what had to be assumed.
pub(crate) fn offline(paths: &[PathBuf]) -> Result<Loaded> {
    let documents = objects::documents(paths)?;
    let sources = documents.iter().map(|(origin, object)| Source { origin, object });
    let loaded = load_objects(sources)?;
    for note in &loaded.notes {
        output::note(&format!("note: {note}"));
    }
    Ok(loaded)
}

/// From the live cluster.
pub(crate) async fn live(connection: &Connection) -> Result<Loaded> {
    of_live(&live_objects(connection).await?)
}

/// The live objects that network policy depends on.
pub(crate) async fn live_objects(connection: &Connection) -> Result<Vec<Value>> {
    let client = cluster::connect(connection).await?;
    let mut objects = Vec::new();
    for resource in resources() {
        objects.extend(cluster::list_all(&client, resource).await?);
    }
    // A pod that has ended has given its address back.
    objects.retain(|object| !matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")));
    Ok(objects)
}

/// What live objects say.
pub(crate) fn of_live(objects: &[Value]) -> Result<Loaded> {
    let sources = objects.iter().map(|object| Source {
        origin: "the cluster",
        object,
    });
    Ok(load_objects(sources)?)
}

/// The assertions that the live cluster holds policies to.
pub(crate) async fn assertions(connection: &Connection) -> Result<Vec<PolicyAssertion>> {
    let client = cluster::connect(connection).await?;
    let resource = ("palisade.dev", "v1alpha1", "policyassertions");
    let objects = cluster::list_all(&client, resource).await?;
    let read = |object| serde_json::from_value(object).context("an assertion of the cluster cannot be read");
    objects.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_policy_depends_on_is_fetched() {
        let found: Vec<_> = resources().map(|(_, _, plural)| plural).collect();
        for plural in [
            "nodes",
            "endpointslices",
            "tiers",
            "clusternetworkpolicies",
            "globalnetworksets",
        ] {
            assert!(found.contains(&plural), "{plural} not in {found:?}");
        }
        assert_eq!(
            found
                .iter()
                .filter(|plural| **plural == "networkpolicies")
                .count(),
            2
        );
        assert!(!found.contains(&"profiles") && !found.contains(&"secrets"));
    }
}
