//! The connection to a cluster: raw requests with the paths of [`api::resources`], so that every kind is
//! handled alike.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use api::resources::Resource;
use http::Request;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;

use crate::cli::{Connection, STATE_DIR};

/// A client for the cluster of the connection.
pub(crate) async fn connect(connection: &Connection) -> Result<Client> {
    let path = connection
        .kubeconfig
        .clone()
        .unwrap_or_else(|| admin_kubeconfig(Path::new(STATE_DIR)));
    connect_with(&path).await
}

/// A client for the cluster of a kubeconfig file.
pub(crate) async fn connect_with(path: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| {
        format!(
            "cannot read {}; start a cluster with `policyctl up`, or name a file with --kubeconfig",
            path.display()
        )
    })?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("{} is not a usable kubeconfig", path.display()))?;
    api_client::connect(config).context("cannot prepare the connection")
}

/// Where `up` writes the administrator's kubeconfig.
pub(crate) fn admin_kubeconfig(state_dir: &Path) -> PathBuf {
    state_dir.join("admin.kubeconfig")
}

/// A failed request, with what the server said.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No such object.
    NotFound,
    /// Somebody else changed the object in between, or it exists already.
    Conflict(String),
    /// The server refused, or could not be reached.
    Other(anyhow::Error),
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound => anyhow::anyhow!("not found"),
            Failure::Conflict(message) => anyhow::anyhow!(message),
            Failure::Other(error) => error,
        }
    }
}

/// Sends a request and parses the JSON answer.
pub(crate) async fn send(client: &Client, request: Request<Vec<u8>>) -> Result<Value, Failure> {
    client
        .request::<Value>(request)
        .await
        .map_err(|error| match error {
            kube::Error::Api(status) if status.code == 404 => Failure::NotFound,
            kube::Error::Api(status) if status.code == 409 => Failure::Conflict(status.message.clone()),
            kube::Error::Api(status) => Failure::Other(anyhow::anyhow!(
                "the server refused ({}): {}",
                status.reason,
                status.message
            )),
            other => Failure::Other(anyhow::Error::new(other).context("cannot reach the cluster; is it up?")),
        })
}

/// GET.
pub(crate) async fn get(client: &Client, path: &str) -> Result<Value, Failure> {
    send(client, request("GET", path, None, None)?).await
}

/// A request with an optional JSON body of the given content type.
pub(crate) fn request(
    method: &str,
    path: &str,
    body: Option<(&str, &Value)>,
    accept: Option<&str>,
) -> Result<Request<Vec<u8>>, Failure> {
    let mut builder = Request::builder().method(method).uri(path);
    builder = builder.header("Accept", accept.unwrap_or("application/json"));
    let bytes = match body {
        Some((content_type, value)) => {
            builder = builder.header("Content-Type", content_type);
            value.to_string().into_bytes()
        }
        None => Vec::new(),
    };
    builder
        .body(bytes)
        .map_err(|error| Failure::Other(anyhow::Error::new(error).context(format!("bad path {path:?}"))))
}

/// URL path of one object.
pub(crate) fn object_path(resource: &Resource, namespace: &str, name: &str) -> String {
    format!("{}/{name}", resource.collection_path(Some(namespace)))
}

/// All objects of a resource in all namespaces.
pub(crate) async fn list_all(
    client: &Client,
    group_version_plural: (&str, &str, &str),
) -> Result<Vec<Value>> {
    let (group, version, plural) = group_version_plural;
    let resource = api::resources::by_path(group, version, plural)
        .with_context(|| format!("{plural} is not a resource of this version"))?;
    let mut list = get(client, &resource.collection_path(None)).await?;
    let items = match list.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => anyhow::bail!("the server's list of {plural} has no items"),
    };
    Ok(items
        .into_iter()
        .map(|mut item| {
            // Items of a typed list leave out what the list says once.
            item["apiVersion"] = resource.api_version().into();
            item["kind"] = resource.kind.into();
            item
        })
        .collect())
}

/// Percent-encodes one query value.
pub(crate) fn encode(value: &str) -> String {
    use std::fmt::Write as _;
    value.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            write!(out, "%{byte:02X}").unwrap_or_default();
        }
        out
    })
}
