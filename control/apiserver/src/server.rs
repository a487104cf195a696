//! The accept loop: TCP, TLS 1.3, HTTP/1.1 and HTTP/2, with a bound on everything a peer can hold open.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body};
use control_auth::Authenticated;
use control_pki::shares::{Share, Shares};
use http::Request;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tower::{ServiceExt, service_fn};
use tracing::{debug, warn};

/// Connections served at once; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 2048;
/// Of these, connections of peers without a certificate that have not shown a good token either. There are two
/// constant answers for them, so they may neither be many nor stay.
const MAX_ANONYMOUS: usize = 128;
/// Of these, connections from one source. Clients with tokens begin among them and leave them with their first request.
const ANONYMOUS_OF_ONE: usize = 16;
/// Connections from one source that have not finished their TLS handshake: those of people with certificates, too.
const HANDSHAKES_OF_ONE: usize = 256;
/// How long a connection without a certificate may last.
const ANONYMOUS_TIMEOUT: Duration = Duration::from_secs(15);
/// A peer that has not finished its TLS handshake by then is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that has not sent its request head by then is dropped.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// Dead HTTP/2 peers are noticed by pings.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Requests multiplexed on one HTTP/2 connection.
const MAX_STREAMS: u32 = 250;
/// Bytes of request head, all headers together.
const MAX_HEADER_BYTES: u32 = 64 * 1024;
/// How long requests may take to end after shutdown began.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after `accept` failed, usually for want of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The other end of a connection. A request extension.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// Who the client certificate says it is; `None` without a certificate, or with one that names nobody.
    pub(crate) who: Option<Authenticated>,
    /// Where the connection came from, for the audit line.
    pub(crate) address: SocketAddr,
    /// Cancelled once a request of this connection had a good token: then the peer is no stranger any more.
    pub(crate) vouched: CancellationToken,
}

/// Why a server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The namespaces that always exist could not be made.
    #[error("make the first namespaces")]
    Namespaces(#[source] control_wire::Status),
    /// The policy objects that always exist could not be made.
    #[error("make the first tiers and settings")]
    Policy(#[source] control_wire::Status),
    /// The address of the listener is not available.
    #[error("address of the API server's listener")]
    Listener(#[source] io::Error),
}

/// Serves `router` on `listener` until `shutdown`, then lets requests end for a few seconds.
pub(crate) async fn accept_loop(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let strangers = Strangers {
        all: Arc::new(Semaphore::new(MAX_ANONYMOUS)),
        of_one: Shares::new(ANONYMOUS_OF_ONE),
    };
    let handshakes = Shares::new(HANDSHAKES_OF_ONE);
    let mut connections = JoinSet::new();
    loop {
        let slot = tokio::select! {
            () = shutdown.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => slot,
        };
        // The semaphore is never closed; a closed one means shutdown.
        let Ok(slot) = slot else { break };
        let (stream, address) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "accept");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            },
        };
        let Some(handshaking) = handshakes.take(address.ip()) else {
            debug!(%address, "too many handshakes from there");
            continue;
        };
        let connection = serve_connection(
            (stream, handshaking),
            address,
            acceptor.clone(),
            router.clone(),
            strangers.clone(),
            shutdown.clone(),
        );
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
        // Reap what ended, so that the set does not grow with the number of connections ever made.
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
        while connections.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        warn!(open = connections.len(), "requests cut off at shutdown");
        connections.shutdown().await;
    }
}

/// Room for peers without a certificate.
#[derive(Clone)]
struct Strangers {
    all: Arc<Semaphore>,
    of_one: Shares,
}

impl Strangers {
    fn take(&self, address: IpAddr) -> Option<(Share, OwnedSemaphorePermit)> {
        let share = self.of_one.take(address)?;
        let slot = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some((share, slot))
    }
}

async fn serve_connection(
    (stream, handshaking): (TcpStream, Share),
    address: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    strangers: Strangers,
    shutdown: CancellationToken,
) {
    let stream = match handshake(stream, acceptor).await {
        Ok(stream) => stream,
        Err(error) => return debug!(%address, %error, "TLS handshake"),
    };
    drop(handshaking);
    let who = control_pki::tls::peer(stream.get_ref().1).unwrap_or_else(|error| {
        warn!(%address, error = &error as &dyn std::error::Error, "client certificate");
        None
    });
    let mut anonymous_slot = match who {
        Some(_) => None,
        None => match strangers.take(address.ip()) {
            Some(slot) => Some(slot),
            None => return debug!(%address, "too many connections without a certificate"),
        },
    };
    let vouched = CancellationToken::new();
    let peer = Peer {
        who,
        address,
        vouched: vouched.clone(),
    };
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (router, peer) = (router.clone(), peer.clone());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            router.oneshot(request).await.map_err(|never: Infallible| never)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES);
    let connection =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = std::pin::pin!(connection);
    let patience = tokio::time::Instant::now() + ANONYMOUS_TIMEOUT;
    let served = loop {
        tokio::select! {
            served = connection.as_mut() => break served,
            () = vouched.cancelled(), if anonymous_slot.is_some() => anonymous_slot = None,
            () = tokio::time::sleep_until(patience), if anonymous_slot.is_some() => return,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                break connection.await;
            }
        }
    };
    if let Err(error) = served {
        debug!(%address, %error, "connection");
    }
}

async fn handshake(stream: TcpStream, acceptor: TlsAcceptor) -> io::Result<TlsStream<TcpStream>> {
    // Watch events are small and must not wait for a full segment.
    stream.set_nodelay(true)?;
    tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?
}
