//! `policyctl logs`: the output of a container, as the server streams it.

use anyhow::{Context, Result};
use futures::{AsyncReadExt, pin_mut};
use http::Request;

use crate::{
    cli::{Connection, LogsArgs},
    cluster, output,
};

/// Streams to standard output until the log ends, or for ever with `--follow`.
pub(crate) async fn run(connection: &Connection, args: &LogsArgs) -> Result<()> {
    let mut query = vec![
        format!("follow={}", args.follow),
        format!("previous={}", args.previous),
    ];
    query.push(format!("timestamps={}", args.timestamps));
    query.extend(args.tail.map(|lines| format!("tailLines={lines}")));
    query.extend(
        args.container
            .as_ref()
            .map(|name| format!("container={}", cluster::encode(name))),
    );
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}/log?{}",
        args.namespace,
        args.pod,
        query.join("&")
    );
    let client = cluster::connect(connection).await?;
    copy(&client, &path).await
}

/// Copies a streamed answer to standard output.
async fn copy(client: &kube::Client, path: &str) -> Result<()> {
    let stream = open(client, path).await?;
    pin_mut!(stream);
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        let read = stream
            .read(&mut buffer)
            .await
            .context("the connection to the server broke")?;
        let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else {
            return Ok(());
        };
        output::bytes(chunk)?;
    }
}

/// Opens a streamed answer.
pub(crate) async fn open(client: &kube::Client, path: &str) -> Result<impl futures::AsyncBufRead + use<>> {
    let request = Request::get(path)
        .body(Vec::new())
        .with_context(|| format!("bad path {path:?}"))?;
    client.request_stream(request).await.map_err(|error| match error {
        kube::Error::Api(status) => {
            anyhow::anyhow!("the server refused ({}): {}", status.reason, status.message)
        }
        other => anyhow::Error::new(other).context("cannot reach the cluster; is it up?"),
    })
}
