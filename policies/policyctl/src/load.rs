//! The cluster that a question is about: from files, without a running cluster, or from the live one.

use std::path::PathBuf;

use anyhow::Result;
use policies_compiler::{Loaded, Source, load_objects};

use crate::{cli::Connection, cluster, objects, output};

/// Resources that network policy depends on, where the server has them.
const RESOURCES: [(&str, &str, &str); 4] = [
    ("", "v1", "namespaces"),
    ("", "v1", "pods"),
    ("", "v1", "serviceaccounts"),
    ("networking.k8s.io", "v1", "networkpolicies"),
];

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
    let client = cluster::connect(connection).await?;
    let mut objects = Vec::new();
    for resource in RESOURCES {
        objects.extend(cluster::list_all(&client, resource).await?);
    }
    // A pod that has ended has given its address back.
    objects.retain(|object| !matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")));
    let sources = objects.iter().map(|object| Source {
        origin: "the cluster",
        object,
    });
    Ok(load_objects(sources)?)
}
