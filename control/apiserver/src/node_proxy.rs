//! The hop from the API server to a node's agent: one TLS 1.3 connection per request, both ends
//! authenticated, the answer streamed through.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use api::session;
use axum::{BoxError, body::Body};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::{StreamExt as _, TryStreamExt as _, future, stream};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Bytes, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::debug;

use crate::standing::Standing;

/// Until the head of the answer has arrived.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// An agent's error message is shown up to this length.
const MAX_ERROR_BYTES: usize = 4096;

/// Where a node's agent listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeEndpoint {
    /// Node name: the name that the agent's certificate must carry, whatever its address.
    pub(crate) node: String,
    /// Address to connect to.
    pub(crate) address: String,
    /// Port.
    pub(crate) port: u16,
}

/// Why a node did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// The Node object does not say where the agent listens.
    #[error("node {node:?} reports no {missing}: its agent has not registered yet")]
    NoEndpoint {
        /// Node name.
        node: String,
        /// The missing field.
        missing: &'static str,
    },
    /// The node's name cannot stand in a certificate.
    #[error("node name {node:?} is not a DNS name")]
    Name {
        /// Node name.
        node: String,
        /// Reason.
        #[source]
        source: InvalidDnsNameError,
    },
    /// No TCP connection or no TLS session with the right certificate.
    #[error("connect to the agent of node {node:?} at {address}")]
    Connect {
        /// Node name.
        node: String,
        /// Address and port.
        address: String,
        /// Reason.
        #[source]
        source: io::Error,
    },
    /// The request could not be written or the answer's head not be read.
    #[error("ask the agent of node {node:?}")]
    Http {
        /// Node name.
        node: String,
        /// Reason.
        #[source]
        source: hyper::Error,
    },
    /// The answer ended early, or is longer than it may be.
    #[error("read the answer of node {node:?}: {reason}")]
    Body {
        /// Node name.
        node: String,
        /// What happened.
        reason: String,
    },
    /// The path and query do not make a request.
    #[error("request to the agent of node {node:?}")]
    Request {
        /// Node name.
        node: String,
        /// Reason.
        #[source]
        source: http::Error,
    },
    /// No answer in time.
    #[error("the agent of node {node:?} did not answer within {} s", HEAD_TIMEOUT.as_secs())]
    Timeout {
        /// Node name.
        node: String,
    },
    /// The agent refused.
    #[error("{message}")]
    Refused {
        /// Its status code.
        status: StatusCode,
        /// Its message.
        message: String,
    },
}

impl NodeEndpoint {
    /// Reads the endpoint from a Node object.
    pub(crate) fn of(node: &Value) -> Result<Self, ProxyError> {
        let name = node
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let missing = |missing| ProxyError::NoEndpoint {
            node: name.clone(),
            missing,
        };
        let address = node
            .pointer("/status/addresses")
            .and_then(Value::as_array)
            .and_then(|list| list.iter().find(|entry| entry["type"] == "InternalIP"))
            .and_then(|entry| entry["address"].as_str())
            .ok_or_else(|| missing("InternalIP address"))?
            .to_owned();
        let port = node
            .pointer("/status/daemonEndpoints/kubeletEndpoint/Port")
            .and_then(Value::as_u64)
            .and_then(|port| u16::try_from(port).ok())
            .ok_or_else(|| missing("agent port"))?;
        Ok(Self {
            node: name,
            address,
            port,
        })
    }
}

/// Sends `GET path_and_query` to the agent and streams what it answers until either side ends.
pub(crate) async fn get(
    endpoint: &NodeEndpoint,
    path_and_query: &str,
    tls: &Arc<rustls::ClientConfig>,
    standing: Standing,
) -> Result<Response<Body>, ProxyError> {
    let node = endpoint.node.clone();
    let head = tokio::time::timeout(HEAD_TIMEOUT, send(endpoint, path_and_query, tls));
    let answer = head.await.map_err(|_elapsed| ProxyError::Timeout { node })??;
    let (head, body) = answer.into_parts();
    if head.status != StatusCode::OK {
        return Err(ProxyError::Refused {
            status: head.status,
            message: error_text(body).await,
        });
    }
    // Broken off when it is refused: what has come is not all of it.
    let refused = Arc::new(OnceLock::new());
    let why = Arc::clone(&refused);
    let ended = async move {
        if let Some(status) = standing.ended().await {
            drop(refused.set(status));
        }
    };
    let broken = stream::once(async move { why.get().map(|status| Err(status.message().into())) });
    let chunks = body
        .into_data_stream()
        .map_err(BoxError::from)
        .take_until(ended)
        .chain(broken.filter_map(future::ready));
    let mut response = Response::new(Body::from_stream(chunks));
    if let Some(content_type) = head.headers.get(header::CONTENT_TYPE) {
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type.clone());
    }
    Ok(response)
}

/// Sends `GET path_and_query` to the agent and gives its whole answer, at most `limit` bytes.
pub(crate) async fn fetch(
    endpoint: &NodeEndpoint,
    path_and_query: &str,
    tls: &Arc<rustls::ClientConfig>,
    limit: usize,
) -> Result<Bytes, ProxyError> {
    let answer = async {
        let (head, body) = send(endpoint, path_and_query, tls).await?.into_parts();
        if head.status != StatusCode::OK {
            return Err(ProxyError::Refused {
                status: head.status,
                message: error_text(body).await,
            });
        }
        let collected = http_body_util::Limited::new(body, limit).collect().await;
        collected
            .map(http_body_util::Collected::to_bytes)
            .map_err(|error| ProxyError::Body {
                node: endpoint.node.clone(),
                reason: error.to_string(),
            })
    };
    tokio::time::timeout(HEAD_TIMEOUT, answer)
        .await
        .map_err(|_elapsed| ProxyError::Timeout {
            node: endpoint.node.clone(),
        })?
}

/// Asks the agent for a session and gives the connection on which it is held.
pub(crate) async fn open_session(
    endpoint: &NodeEndpoint,
    wanted: &session::Request,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<Upgraded, ProxyError> {
    let node = || endpoint.node.clone();
    // Names, words and numbers always serialise.
    let wanted = URL_SAFE_NO_PAD.encode(serde_json::to_vec(wanted).unwrap_or_default());
    let request = Request::post("/session")
        .header(header::HOST, &endpoint.node)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, session::PROTOCOL)
        .header(session::REQUEST_HEADER, wanted)
        .body(Empty::<Bytes>::new())
        .map_err(|source| ProxyError::Request { node: node(), source })?;
    let answer = async {
        let answer = exchange(endpoint, request, tls).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ProxyError::Refused {
                status: answer.status(),
                message: error_text(answer.into_body()).await,
            });
        }
        hyper::upgrade::on(answer)
            .await
            .map_err(|source| ProxyError::Http { node: node(), source })
    };
    tokio::time::timeout(HEAD_TIMEOUT, answer)
        .await
        .map_err(|_elapsed| ProxyError::Timeout { node: node() })?
}

async fn send(
    endpoint: &NodeEndpoint,
    path_and_query: &str,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<Response<hyper::body::Incoming>, ProxyError> {
    let request = Request::get(path_and_query)
        .header(header::HOST, &endpoint.node)
        .body(Empty::<Bytes>::new())
        .map_err(|source| ProxyError::Request {
            node: endpoint.node.clone(),
            source,
        })?;
    exchange(endpoint, request, tls).await
}

/// Connects and sends one request.
async fn exchange(
    endpoint: &NodeEndpoint,
    request: Request<Empty<Bytes>>,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<Response<hyper::body::Incoming>, ProxyError> {
    let node = || endpoint.node.clone();
    let connect = |source| ProxyError::Connect {
        node: node(),
        address: format!("{}:{}", endpoint.address, endpoint.port),
        source,
    };
    let name = ServerName::try_from(control_pki::node_server_name(&endpoint.node))
        .map_err(|source| ProxyError::Name { node: node(), source })?;
    let stream = TcpStream::connect((endpoint.address.as_str(), endpoint.port))
        .await
        .map_err(connect)?;
    stream.set_nodelay(true).map_err(connect)?;
    let stream = TlsConnector::from(Arc::clone(tls))
        .connect(name, stream)
        .await
        .map_err(connect)?;
    let http = |source| ProxyError::Http { node: node(), source };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(http)?;
    // Ends when the body is read or dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "connection to an agent");
        }
    });
    sender.send_request(request).await.map_err(http)
}

async fn error_text(body: hyper::body::Incoming) -> String {
    let limited = http_body_util::Limited::new(body, MAX_ERROR_BYTES);
    match tokio::time::timeout(HEAD_TIMEOUT, limited.collect()).await {
        Ok(Ok(collected)) => {
            let text = String::from_utf8_lossy(&collected.to_bytes()).trim().to_owned();
            // Agents answer errors with a Status object; its message is what a person wants.
            serde_json::from_str::<Value>(&text)
                .ok()
                .and_then(|status| Some(status.get("message")?.as_str()?.to_owned()))
                .unwrap_or(text)
        }
        Ok(Err(_)) | Err(_) => "the agent's error message could not be read".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_endpoint_comes_from_the_node_and_nothing_is_guessed() {
        let node = json!({
            "metadata": {"name": "n1"},
            "status": {
                "addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.0.0.7"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            },
        });
        let expected = NodeEndpoint {
            node: "n1".into(),
            address: "10.0.0.7".into(),
            port: 10250,
        };
        assert_eq!(NodeEndpoint::of(&node).unwrap(), expected);
        for path in ["/status/addresses", "/status/daemonEndpoints"] {
            let mut broken = node.clone();
            *broken.pointer_mut(path).unwrap() = json!(null);
            assert!(
                matches!(NodeEndpoint::of(&broken), Err(ProxyError::NoEndpoint { .. })),
                "{path}"
            );
        }
    }
}
