//! `policyctl get`: the server's own table, or the objects themselves.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    cli::{Connection, GetArgs, GetOutput, ObjectOutput},
    cluster, objects, output,
};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// Fetches and prints.
pub(crate) async fn run(connection: &Connection, args: &GetArgs) -> Result<()> {
    let resource = api::resources::by_any_name(&args.resource).with_context(|| {
        format!(
            "{:?} is not a resource; try pods, netpol, imagescans",
            args.resource
        )
    })?;
    let namespace = (!args.scope.all_namespaces).then_some(args.scope.namespace.as_str());
    let mut path = resource.collection_path(namespace);
    if let Some(name) = &args.name {
        path = format!("{path}/{name}");
    } else if let Some(selector) = &args.selector {
        path = format!("{path}?labelSelector={}", cluster::encode(selector));
    }
    let client = cluster::connect(connection).await?;
    let accept = matches!(args.output, None | Some(GetOutput::Wide)).then_some(TABLE);
    let answer = cluster::send(&client, cluster::request("GET", &path, None, accept)?)
        .await
        .map_err(|failure| match failure {
            cluster::Failure::NotFound => anyhow::anyhow!(
                "{} {:?} not found",
                resource.plural,
                args.name.as_deref().unwrap_or_default()
            ),
            other => other.into(),
        })?;
    match args.output {
        Some(GetOutput::Json) => output::object(&answer, ObjectOutput::Json),
        Some(GetOutput::Yaml) => output::object(&answer, ObjectOutput::Yaml),
        Some(GetOutput::Name) => names(resource, &answer),
        None | Some(GetOutput::Wide) => {
            if answer["rows"].as_array().is_none_or(Vec::is_empty) {
                output::note("No resources found");
                return Ok(());
            }
            let everywhere = args.scope.all_namespaces && resource.namespaced();
            output::table(&answer, args.output == Some(GetOutput::Wide), everywhere)
        }
    }
}

fn names(resource: &api::resources::Resource, answer: &Value) -> Result<()> {
    let one = std::slice::from_ref(answer);
    let items = answer["items"].as_array().map_or(one, Vec::as_slice);
    for item in items {
        let name = item["metadata"]["name"]
            .as_str()
            .context("the server sent an object without a name")?;
        output::line(&objects::shown(resource, name))?;
    }
    Ok(())
}
