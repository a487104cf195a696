//! `exec`, `attach` and `port-forward`: the client's protocol ends here and the agent is spoken to in the frames of
//! [`api::session`]. So whatever a client sends is parsed in this process, which is confined and nobody's root.
//!
//! A session is authorized, its pod and node are found and its agent has agreed before the client hears
//! `101 Switching Protocols`: until then a refusal is an ordinary answer, which kubectl prints.

mod audit;
mod forward;
mod negotiate;
mod process;
mod request;
mod spdy;
mod tunnel;
mod websocket;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use control_streams::{
    channels::{ChannelError, Stream},
    spdy::SpdyError,
};
use control_wire::Status;
use http::{HeaderMap, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tracing::debug;

use self::{
    audit::Record,
    request::{Kind, Wanted},
};
use crate::{
    Server, call::Call, node_proxy, node_proxy::NodeEndpoint, standing::Standing, streams::node_failure,
};

/// How long a client may take to open the streams of its session, and to close the connection at its end.
const CLIENT_WITHIN: Duration = Duration::from_secs(30);

/// A client that takes nothing of what it is sent for so long has left; before, it may have paused its terminal.
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);

/// What a request for a session brings beside the call.
pub(crate) struct Knock<'a> {
    /// All headers.
    pub(crate) headers: &'a HeaderMap,
    /// The connection, once it was answered; HTTP/2 has none to give.
    pub(crate) upgrade: Option<OnUpgrade>,
    /// Where it came from.
    pub(crate) address: SocketAddr,
}

/// A connection after its upgrade.
type Wire = TokioIo<Upgraded>;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// The program ended with this code; of an attachment, it is over.
    Exited(i32),
    /// It could not begin or go on.
    Failed(String),
    /// The client closed the connection.
    ClientLeft,
    /// The client broke the rules of its protocol.
    ClientWrong(String),
}

/// What a client says in whichever protocol.
#[derive(Debug)]
enum Said {
    Stdin(Vec<u8>),
    StdinClosed,
    Resize(u16, u16),
}

/// Why a client is not listened to any more.
#[derive(Debug, thiserror::Error)]
enum ClientError {
    /// The connection broke.
    #[error("the connection broke")]
    Connection(#[from] std::io::Error),
    /// Wrong WebSocket frames or messages.
    #[error("WebSocket: {0}")]
    WebSocket(#[from] tokio_tungstenite::tungstenite::Error),
    /// Wrong channels.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Wrong SPDY frames.
    #[error("SPDY: {0}")]
    Spdy(#[from] SpdyError),
    /// A stream that this session does not have.
    #[error("the session has no place for the client's stream {0:?}")]
    Stream(String),
    /// The client did not open its streams in time.
    #[error("the client did not open its streams within {} s", CLIENT_WITHIN.as_secs())]
    Slow,
}

impl ClientError {
    /// The end of a session with this client.
    fn end(&self) -> End {
        match self {
            Self::Connection(_) | Self::WebSocket(tokio_tungstenite::tungstenite::Error::Io(_)) => {
                End::ClientLeft
            }
            other => End::ClientWrong(other.to_string()),
        }
    }
}

impl End {
    /// The server ends the session.
    fn of(refused: Option<Status>) -> Self {
        Self::Failed(match refused {
            Some(status) => status.message().to_owned(),
            None => "the API server is stopping".to_owned(),
        })
    }
}

/// What of a session a client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shown {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    /// Whether it may set the size of a terminal.
    resize: bool,
    /// Whether it is told what the program ended with. An attachment that lasts to the program's end has succeeded, whatever
    /// that is: kubectl takes anything else for a failure to attach, and prints the log instead.
    exit_code: bool,
}

impl Shown {
    fn has(self, stream: Stream) -> bool {
        match stream {
            Stream::Stdin => self.stdin,
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
            Stream::Error => true,
            Stream::Resize => self.resize,
        }
    }
}

impl Server {
    /// `exec`, `attach` and `portforward` of a pod.
    pub(crate) async fn open_session(
        self: &Arc<Self>,
        call: &Call,
        knock: Knock<'_>,
        standing: Standing,
    ) -> Result<Response, Status> {
        let pod = self.load(call).await?;
        let Wanted { node, pod, kind } = request::wanted(call.target.subresource(), &call.parameters, &pod)?;
        let protocol = negotiate::choose(knock.headers, matches!(kind, Kind::Forward))?;
        let upgrade = knock.upgrade.ok_or_else(|| {
            Status::bad_request("sessions need HTTP/1.1, whose connections can be upgraded")
        })?;
        let node = self.fetch(crate::row("", "nodes"), "", &node).await?;
        let endpoint = NodeEndpoint::of(&node).map_err(|error| node_failure(&error))?;
        let record = Record::begin(call, knock.address, &kind, &protocol);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, http::HeaderValue::from_static("Upgrade"));
        protocol.add_headers(headers);
        match kind {
            Kind::Process { action, shown } => {
                let wanted = pod.request(action);
                let opened = node_proxy::open_session(&endpoint, &wanted, &self.node_tls).await;
                let agent = match opened {
                    Ok(agent) => agent,
                    Err(error) => {
                        record.end(&End::Failed(error.to_string()));
                        return Err(node_failure(&error));
                    }
                };
                tokio::spawn(async move {
                    let end = match upgrade.await {
                        Ok(client) => process::run(client, &protocol, shown, agent, &standing).await,
                        Err(error) => not_upgraded(&error),
                    };
                    record.end(&end);
                    drop(standing);
                });
            }
            Kind::Forward => {
                let tls = Arc::clone(&self.node_tls);
                let agent = forward::Agent { endpoint, pod, tls };
                tokio::spawn(async move {
                    let end = match upgrade.await {
                        Ok(client) => forward::run(client, &protocol, agent, &record, &standing).await,
                        Err(error) => not_upgraded(&error),
                    };
                    record.end(&end);
                    drop(standing);
                });
            }
        }
        Ok(response)
    }
}

fn not_upgraded(error: &hyper::Error) -> End {
    debug!(%error, "session not upgraded");
    End::ClientLeft
}
