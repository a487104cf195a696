//! `policyctl delete`: by name or by file, waiting until the objects are gone.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use api::resources::Resource;
use serde_json::json;

use crate::{
    cli::{Connection, DeleteArgs},
    cluster::{self, Failure},
    objects, output,
};

/// Deletes and reports each object; exit code 1 when any failed.
pub(crate) async fn run(connection: &Connection, args: &DeleteArgs) -> Result<ExitCode> {
    let targets = targets(args)?;
    let client = cluster::connect(connection).await?;
    let mut body = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background" });
    if let Some(seconds) = args.grace_period {
        body["gracePeriodSeconds"] = seconds.into();
    }
    let mut failed = false;
    let mut pending = Vec::new();
    for (resource, namespace, name) in targets {
        let path = cluster::object_path(resource, &namespace, &name);
        let shown = objects::shown(resource, &name);
        let request = cluster::request("DELETE", &path, Some(("application/json", &body)), None)?;
        match cluster::send(&client, request).await {
            Ok(_) => pending.push((shown, path)),
            Err(failure) => {
                failed = true;
                let reason = match failure {
                    Failure::NotFound => "not found".to_owned(),
                    other => format!("{:#}", anyhow::Error::from(other)),
                };
                output::complain(&format!("{shown}: {reason}"));
            }
        }
    }
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    for (shown, path) in pending {
        if !args.no_wait && !gone(&client, &path, deadline).await? {
            failed = true;
            output::complain(&format!(
                "{shown}: still there after {} s; it may be terminating",
                args.timeout
            ));
            continue;
        }
        output::line(&format!("{shown} deleted"))?;
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn targets(args: &DeleteArgs) -> Result<Vec<(&'static Resource, String, String)>> {
    if !args.filename.is_empty() {
        let manifests = objects::load(&args.filename, &args.namespace)?;
        // Backwards, so that a namespace goes after what stands in it.
        return Ok(manifests
            .into_iter()
            .rev()
            .map(|m| (m.resource, m.namespace, m.name))
            .collect());
    }
    let word = args.resource.as_deref().unwrap_or_default();
    // `pod/web` as well as `pod web`.
    let (word, slashed) = match word.split_once('/') {
        Some((resource, name)) => (resource, Some(name.to_owned())),
        None => (word, None),
    };
    let resource = api::resources::by_any_name(word)
        .with_context(|| format!("{word:?} is not a resource; try pod, netpol"))?;
    let names: Vec<String> = slashed.into_iter().chain(args.names.iter().cloned()).collect();
    if names.is_empty() {
        bail!("name at least one {}", resource.singular);
    }
    Ok(names
        .into_iter()
        .map(|name| (resource, args.namespace.clone(), name))
        .collect())
}

async fn gone(client: &kube::Client, path: &str, deadline: Instant) -> Result<bool> {
    let mut pause = Duration::from_millis(20);
    loop {
        match cluster::get(client, path).await {
            Err(Failure::NotFound) => return Ok(true),
            Err(other) => return Err(other.into()),
            Ok(_) if Instant::now() >= deadline => return Ok(false),
            Ok(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}
