//! The Kubernetes API as a server: TLS, routes, the request path, watches, and the hop to nodes.
//!
//! A request runs through types: a verified certificate or token gives [`control_auth::Authenticated`], that gives
//! [`control_auth::Authorized`], admission gives [`control_admission::Admitted`], and only that is stored. A
//! stage that is left out does not compile.
//!
//! Non-goals: server-side apply, aggregation. What the wire looks like
//! is `control/wire`'s, what may be stored `control/admission`'s, who may ask `control/auth`'s.
//!
//! Start at [`serve`]; a request starts in `dispatch`.

#![forbid(unsafe_code)]

mod accounts;
mod call;
mod certificates;
mod delete;
mod dispatch;
mod documents;
mod eviction;
mod gate;
mod host_paths;
mod images;
mod lifecycle;
mod measured;
mod node_proxy;
mod objects;
mod own;
mod pods;
mod policy;
mod profiles;
mod read;
mod respond;
mod reviews;
mod revocation;
mod server;
mod services;
mod sessions;
mod shape;
mod standing;
mod storage;
mod streams;
mod target;
mod tiers;
mod tokens;
mod watch;
mod write;

use std::sync::Arc;

use api::resources::{self, Resource};
use axum::Router;
use control_auth::token::TokenKeys;
use control_store::Store;
use control_wire::Status;
use tokio::{
    net::TcpListener,
    sync::{Mutex, RwLock, Semaphore},
};
use tokio_util::sync::CancellationToken;

pub use gate::{ImageGate, Judgement, Refusal};
pub use policies_compiler::capacity::Capacities;
pub use server::ServeError;
pub use services::{ServiceRange, ServiceRangeError};

/// Requests under way at once, streams not counted.
const MAX_REQUESTS: usize = 400;
/// Watches, logs, flow streams and sessions open at once.
const MAX_STREAMS: usize = 4000;
/// Namespaces that always exist.
const NAMESPACES: &[&str] = &["default", "kube-node-lease", "kube-public", "kube-system"];

/// What a server is made of.
pub struct Config {
    /// Where objects are kept.
    pub store: Arc<dyn Store>,
    /// Judges images.
    pub gate: Arc<dyn ImageGate>,
    /// How clients are received: TLS 1.3, client certificates verified against the cluster's authority but
    /// not demanded, because `/livez` and `/readyz` answer without one.
    pub tls: Arc<rustls::ServerConfig>,
    /// How agents are called.
    pub node_tls: Arc<rustls::ClientConfig>,
    /// What signs and verifies tokens of service accounts.
    pub token_keys: Arc<TokenKeys>,
    /// Where cluster addresses of services come from.
    pub service_range: ServiceRange,
    /// What the kernel's tables of a node hold.
    pub capacities: Capacities,
}

/// Serves the API on `listener` until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Listener)?.to_string();
    let server = Arc::new(Server {
        address,
        store: config.store,
        gate: config.gate,
        node_tls: config.node_tls,
        token_keys: config.token_keys,
        requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
        streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        service_range: config.service_range,
        services: Mutex::default(),
        certificate_requests: Mutex::default(),
        revocations: RwLock::default(),
        revoked: tokio::sync::watch::Sender::default(),
        tiers: RwLock::default(),
        policy: policy::Guard::new(config.capacities),
        shutdown: shutdown.clone(),
    });
    server.make_namespaces().await.map_err(ServeError::Namespaces)?;
    server.make_policy_objects().await.map_err(ServeError::Policy)?;
    let router = Router::new().fallback(dispatch::handle).with_state(server);
    server::accept_loop(listener, config.tls, router, shutdown).await;
    Ok(())
}

/// What every request handler works with.
pub(crate) struct Server {
    address: String,
    store: Arc<dyn Store>,
    gate: Arc<dyn ImageGate>,
    node_tls: Arc<rustls::ClientConfig>,
    token_keys: Arc<TokenKeys>,
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    service_range: ServiceRange,
    /// Held from the choice of a service's address until the service is stored. Asked for before `tiers`.
    services: Mutex<()>,
    /// Held from the count of requests for certificates until one more is stored.
    certificate_requests: Mutex<()>,
    /// Held for writing while a node is noted as deleted, and for reading while something about a request for a
    /// certificate is stored: the one is wholly before or after the other.
    revocations: RwLock<()>,
    /// Raised with each of them.
    revoked: tokio::sync::watch::Sender<u64>,
    /// Held for reading while a policy is stored, and for writing while a tier is deleted: a policy never
    /// outlives its tier.
    tiers: RwLock<()>,
    /// Turns of writes that policy depends on. Asked for after `tiers`.
    policy: policy::Guard,
    shutdown: CancellationToken,
}

impl Server {
    async fn is_ready(&self) -> bool {
        !self.shutdown.is_cancelled() && self.store.revision().await.is_ok()
    }

    async fn make_namespaces(&self) -> Result<(), Status> {
        let row = row("", "namespaces");
        for name in NAMESPACES {
            let namespace =
                serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            self.put_own(row, name, jiff::Timestamp::now(), |old| {
                old.is_none().then(|| namespace.clone())
            })
            .await?;
        }
        Ok(())
    }

    async fn make_policy_objects(&self) -> Result<(), Status> {
        for (row, object) in control_admission::built_in_objects() {
            let name = objects::metadata_text(&object, "name");
            self.put_own(row, name, jiff::Timestamp::now(), |old| {
                old.is_none().then(|| object.clone())
            })
            .await?;
        }
        Ok(())
    }
}

/// Row of the resource table that this crate itself relies on.
fn row(group: &str, plural: &str) -> &'static Resource {
    match resources::RESOURCES
        .iter()
        .find(|row| row.group == group && row.plural == plural)
    {
        Some(row) => row,
        // Named by constants of this crate, and every one of them is covered by a test.
        None => unreachable!("{plural} is in the resource table"),
    }
}
