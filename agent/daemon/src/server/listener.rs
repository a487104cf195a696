//! Who gets a connection to the node's API: no place is given away before the peer has shown whose certificate it has, and
//! nobody who never speaks takes the place of others.

use std::{net::IpAddr, sync::Arc, time::Duration};

use api::annotations::{GROUP_MASTERS, USER_APISERVER};
use axum::{Router, http::StatusCode};
use control_pki::shares::{Share, Shares};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

/// Connections at once of peers that may ask: each log or flow stream is one.
const MAX_CONNECTIONS: usize = 256;
/// Connections that have not finished their TLS handshake, or belong to peers that may not ask.
const MAX_STRANGERS: usize = 256;
/// Of these, connections from one source. The API server is one: it opens a connection for each request.
const STRANGERS_OF_ONE: usize = 32;
/// Longest time for a TLS handshake, for a place, for the head of a request, and for a peer that may not ask.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Delay after an `accept` that failed for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves `routes` to those who may ask, until `shutdown`.
pub(super) async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    routes: Router,
    shutdown: CancellationToken,
) {
    let places = Places::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Some(stranger) = places.stranger(address.ip()) else {
            tracing::debug!(%address, "too many handshakes");
            continue;
        };
        let (acceptor, routes) = (acceptor.clone(), routes.clone());
        let known = places.known.clone();
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
            let Some(stream) = handshake(stream, acceptor).await else {
                return;
            };
            if !is_known(&stream) {
                // Its place stays a stranger's.
                let refused = Router::new()
                    .fallback(async || (StatusCode::FORBIDDEN, "only the API server may ask a node\n"));
                drop(tokio::time::timeout(HANDSHAKE_WITHIN, serve(stream, refused)).await);
                return;
            }
            // Whoever waited in vain is told so by the end of the connection, and has given its place to the next one.
            let place = tokio::time::timeout(HANDSHAKE_WITHIN, known.acquire_owned()).await;
            let Ok(Ok(place)) = place else {
                return tracing::warn!(%address, "too many connections");
            };
            drop(stranger);
            serve(stream, routes).await;
            drop(place);
        }));
    }
}

/// Room for connections.
struct Places {
    known: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    of_one: Shares,
}

impl Places {
    fn new() -> Self {
        Self {
            known: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
            of_one: Shares::new(STRANGERS_OF_ONE),
        }
    }

    /// Room for a connection from there until it is known who it is.
    fn stranger(&self, address: IpAddr) -> Option<(Share, OwnedSemaphorePermit)> {
        let share = self.of_one.take(address)?;
        let place = self.strangers.clone().try_acquire_owned().ok()?;
        Some((share, place))
    }
}

async fn handshake(stream: TcpStream, acceptor: TlsAcceptor) -> Option<TlsStream<TcpStream>> {
    // Log lines are small and must not wait for a full segment.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection");
        return None;
    }
    match tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake"),
        Err(_elapsed) => tracing::debug!("TLS handshake took too long"),
    }
    None
}

/// Whether the peer may ask.
fn is_known(stream: &TlsStream<TcpStream>) -> bool {
    match control_pki::tls::peer(stream.get_ref().1) {
        Ok(Some(peer)) if may_ask(peer.identity()) => true,
        Ok(peer) => {
            tracing::warn!(
                user = peer.map(|peer| peer.identity().user.clone()),
                "refused at the node's API"
            );
            false
        }
        Err(error) => {
            tracing::warn!(%error, "client certificate");
            false
        }
    }
}

fn may_ask(identity: &control_auth::Identity) -> bool {
    identity.user == USER_APISERVER || identity.in_group(GROUP_MASTERS)
}

async fn serve(stream: TlsStream<TcpStream>, routes: Router) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_WITHIN);
    builder.http2().timer(TokioTimer::new());
    let service = TowerToHyperService::new(routes);
    if let Err(error) = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(%error, "connection");
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use control_pki::tls::{ALPN_HTTP, ClientCertificate, Credentials};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpSocket,
    };
    use tokio_rustls::TlsConnector;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// The node's API with the certificates of a new cluster.
    struct Node {
        base: tempfile::TempDir,
        address: SocketAddr,
        shutdown: CancellationToken,
    }

    impl Node {
        async fn start() -> Self {
            let base = tempfile::tempdir().unwrap();
            let options = control_pki::InitOptions {
                control_uid: 0,
                node_name: "n".to_owned(),
                api_names: Vec::new(),
                node_names: Vec::new(),
                api_url: "https://127.0.0.1:6443".to_owned(),
            };
            control_pki::init(base.path(), &options).unwrap();
            let own = Credentials::load(&base.path().join("agent/tls"), "server").unwrap();
            let tls = control_pki::tls::server_config(&own, ClientCertificate::Required, ALPN_HTTP).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let shutdown = CancellationToken::new();
            let routes = Router::new().route("/healthz", get(async || "ok"));
            let serving = accept(listener, TlsAcceptor::from(tls), routes, shutdown.clone());
            tokio::spawn(serving);
            Self {
                base,
                address,
                shutdown,
            }
        }

        /// A connection from an address of the loopback.
        async fn connect(&self, from: &str) -> TcpStream {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
            socket.connect(self.address).await.unwrap()
        }

        /// Asks with a certificate of the cluster; nothing if the connection comes to nothing.
        async fn ask(&self, from: &str, directory: &str, name: &str) -> Option<String> {
            let credentials = Credentials::load(&self.base.path().join(directory), name).unwrap();
            let tls = control_pki::tls::client_config(&credentials, &[b"http/1.1"]).unwrap();
            let server = control_pki::node_server_name("n").try_into().unwrap();
            let asked = async {
                let stream = self.connect(from).await;
                let mut stream = TlsConnector::from(tls).connect(server, stream).await.ok()?;
                let request = "GET /healthz HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n";
                stream.write_all(request.as_bytes()).await.ok()?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.ok()?;
                Some(answer)
            };
            tokio::time::timeout(PATIENCE, asked).await.ok()?
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            self.shutdown.cancel();
        }
    }

    #[tokio::test]
    async fn who_never_speaks_does_not_keep_the_api_server_from_asking() {
        let node = Node::start().await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS + STRANGERS_OF_ONE {
            silent.push(node.connect("127.0.0.1").await);
        }
        let answer = node.ask("127.0.0.2", "control/tls", "apiserver-client").await;
        assert!(
            answer.as_deref().is_some_and(|answer| answer.ends_with("ok")),
            "{answer:?}"
        );
        // Those that are too many are told so at once.
        let mut last = silent.pop().unwrap();
        let end = tokio::time::timeout(PATIENCE, last.read(&mut [0; 1])).await;
        assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
    }

    #[tokio::test]
    async fn only_the_api_server_may_ask() {
        let node = Node::start().await;
        let refused = node.ask("127.0.0.1", "agent/tls", "client").await.unwrap();
        assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
        let answer = node.ask("127.0.0.1", "control/tls", "apiserver-client").await;
        assert!(answer.unwrap().starts_with("HTTP/1.1 200"));
    }
}
