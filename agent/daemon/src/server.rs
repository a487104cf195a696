//! The node's own API: container logs, sessions, flows, the kernel's tables, metrics and what is used, over TLS 1.3 with client
//! certificates.
//!
//! Only the API server and full administrators may ask. The API server has already checked what the user
//! may see; this is the second door, not the first.

mod listener;

use std::{convert::Infallible, io, sync::Arc};

use agent_telemetry::{Hub, METRICS_MEDIA_TYPE, Query as FlowQuery};
use axum::{
    Router,
    body::Body,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use control_pki::tls::{ALPN_HTTP, ClientCertificate, Credentials, TlsError};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    learn::{self, Learner},
    logs::{self, Options, Target},
    pods::directory::Directory,
    policy::{self, Policy},
    sessions::{self, Sessions},
    stats::{self, Stats},
};

/// Lines of the flow log for somebody who does not say how many.
const RECENT_FLOWS: usize = 1000;
/// Lines that are read ahead of a reader.
const READ_AHEAD: usize = 256;

/// What the handlers need.
#[derive(Clone)]
pub(crate) struct NodeApi {
    config: Arc<Config>,
    pub(crate) directory: Directory,
    pub(crate) learner: Learner,
    flows: Arc<Hub>,
    policy: Policy,
    pub(crate) sessions: Sessions,
    stats: Stats,
}

/// Why the node's API cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("cannot set up TLS for the node's API")]
    Tls(#[from] TlsError),
    #[error("cannot listen on {address}")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: io::Error,
    },
}

impl NodeApi {
    pub(crate) fn new(
        config: Arc<Config>,
        directory: Directory,
        flows: Arc<Hub>,
        policy: Policy,
        sessions: Sessions,
        learner: Learner,
        stats: Stats,
    ) -> Self {
        Self {
            config,
            directory,
            learner,
            flows,
            policy,
            sessions,
            stats,
        }
    }

    /// Listens, then serves from a task until `shutdown`.
    pub(crate) async fn start(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let tls = self.config.agent_dir.join("tls");
        let credentials = Credentials::load(&tls, "server")?;
        let tls = control_pki::tls::server_config(&credentials, ClientCertificate::Required, ALPN_HTTP)?;
        let address = self.config.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ServeError::Listen { address, source })?;
        tracing::info!(%address, "serving the node's API");
        let acceptor = TlsAcceptor::from(tls);
        tokio::spawn(listener::accept(listener, acceptor, self.routes(), shutdown));
        Ok(())
    }

    fn routes(self) -> Router {
        Router::new()
            .route("/healthz", get(async || "ok"))
            .route(
                "/containerLogs/{namespace}/{pod}/{container}",
                get(container_logs),
            )
            .route("/learn/{namespace}/{pod}/{container}", get(learn::learn))
            .route("/session", post(sessions::open))
            .route("/flows", get(flows))
            .route("/policy", get(policy))
            .route("/metrics", get(metrics))
            .route("/metrics/cadvisor", get(container_metrics))
            .route("/metrics/resource", get(resource_metrics))
            .route("/stats/summary", get(summary))
            .with_state(self)
    }
}

async fn container_logs(
    State(api): State<NodeApi>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(options): Query<Options>,
) -> Response {
    let refuse = |status, message: String| (status, message).into_response();
    let Some(entry) = api.directory.find(&namespace, &pod) else {
        return refuse(
            StatusCode::NOT_FOUND,
            format!("pod \"{namespace}/{pod}\" is not on this node"),
        );
    };
    let Some(latest) = entry.containers.get(&container).copied() else {
        let message = format!("container \"{container}\" in pod \"{pod}\" is waiting to start");
        return refuse(StatusCode::BAD_REQUEST, message);
    };
    let attempt = latest.run(options.previous);
    let logs = entry.id.logs(&api.config).join(&container);
    let attempt = attempt.filter(|attempt| logs.join(format!("{attempt}.log")).exists());
    let Some(attempt) = attempt else {
        let which = if options.previous {
            "previous terminated container"
        } else {
            "log of container"
        };
        let message = format!("{which} \"{container}\" in pod \"{pod}\" not found");
        return refuse(StatusCode::BAD_REQUEST, message);
    };
    let target = Target {
        entry,
        container,
        attempt,
        logs,
    };
    let chunks = logs::stream(target, options, api.directory.clone());
    streamed(
        "text/plain; charset=utf-8",
        Body::from_stream(ReceiverStream::new(chunks)),
    )
}

/// What a reader of flows asks for. Without any bound, the newest lines.
#[derive(Debug, Deserialize)]
struct FlowOptions {
    #[serde(default)]
    follow: bool,
    since: Option<Timestamp>,
    after: Option<u64>,
    limit: Option<usize>,
}

/// Lines of the flow log, as they are written: one JSON object each, losses where they happened.
async fn flows(State(api): State<NodeApi>, Query(options): Query<FlowOptions>) -> Response {
    let unbounded = options.since.is_none() && options.after.is_none();
    let query = FlowQuery {
        since: options.since,
        after: options.after,
        limit: options.limit.or(unbounded.then_some(RECENT_FLOWS)),
    };
    let (history, follower) = api.flows.follow(query);
    let (lines, written) = tokio::sync::mpsc::channel(READ_AHEAD);
    // Ends by itself when the reader is gone.
    tokio::task::spawn_blocking(move || history.read(|line| lines.blocking_send(line).is_ok()));
    let written = ReceiverStream::new(written).map(Ok::<_, Infallible>);
    let body = if options.follow {
        let coming = stream::unfold(follower, async |mut follower| {
            let line = follower.next().await?;
            Some((Ok(line.to_string()), follower))
        });
        Body::from_stream(written.chain(coming))
    } else {
        Body::from_stream(written)
    };
    streamed("application/x-ndjson", body)
}

/// What the kernel holds, for `policyctl verify --live`.
async fn policy(State(api): State<NodeApi>) -> Response {
    match api.policy.dump().await {
        Ok(policy) => axum::Json(policy).into_response(),
        Err(error) => {
            let message = policy::chain(&error);
            tracing::error!(error = message, "cannot read the tables back");
            (StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
        }
    }
}

/// What the datapath has counted and what claims hold, for Prometheus.
async fn metrics(State(api): State<NodeApi>) -> Response {
    let failed = |message: String| {
        tracing::error!(error = message, "cannot show metrics");
        (StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
    };
    let counters = match api.policy.counters().await {
        Ok(counters) => counters,
        Err(error) => return failed(policy::chain(&error)),
    };
    let text = || {
        let mut text = api.stats.kubelet_exposition()?;
        text.push_str(&api.stats.claims().exposition()?);
        // This one ends the text.
        text.push_str(&agent_telemetry::exposition(&counters)?);
        Ok::<_, std::fmt::Error>(text)
    };
    match text() {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_MEDIA_TYPE)], text).into_response(),
        Err(error) => failed(error.to_string()),
    }
}

/// What node and pods use, for Prometheus.
async fn resource_metrics(State(api): State<NodeApi>) -> Response {
    exposed(stats::resource_exposition(&api.stats.summary()))
}

/// What containers use, as dashboards ask for it.
async fn container_metrics(State(api): State<NodeApi>) -> Response {
    exposed(api.stats.cadvisor_exposition())
}

fn exposed(text: Result<String, std::fmt::Error>) -> Response {
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_MEDIA_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The same in the kubelet's form.
async fn summary(State(api): State<NodeApi>) -> Response {
    axum::Json(api.stats.summary()).into_response()
}

fn streamed(content_type: &'static str, body: Body) -> Response {
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}
