//! Serves pods: reads questions, asks upstream, teaches, waits for the packet programs, answers.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
};
use tokio_util::sync::CancellationToken;

use crate::{
    MAX_UPSTREAMS, Names, ResolverConfig, Settle,
    message::{MAX_QUERY_BYTES, Question, Refusal},
    shares::{Room, Shares},
    upstream::Upstreams,
};

/// Questions that are being answered at once; more are dropped, and asked again by whoever means them.
const QUESTIONS: Room = Room {
    per_client: 64,
    all: 1024,
    always: 8,
};
/// Connections, most of which ask nothing most of the time. Each costs a descriptor, as each question does upstream.
const CONNECTIONS: Room = Room {
    per_client: 64,
    all: 512,
    always: 4,
};
/// A connection that says nothing ends after this.
const IDLE: Duration = Duration::from_secs(10);
/// Longest wait for the packet programs.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);

/// Why the name service does not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve DNS at {address}")]
pub struct StartError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

pub(crate) fn start(
    mut config: ResolverConfig,
    names: Arc<Names>,
    settle: Settle,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    let failed = |source| StartError {
        address: config.listen,
        source,
    };
    let udp = udp(config.listen).map_err(failed)?;
    let tcp = tcp(config.listen).map_err(failed)?;
    // Who asks itself never ends.
    config.upstreams.retain(|upstream| *upstream != config.listen);
    config.upstreams.truncate(MAX_UPSTREAMS);
    if config.upstreams.is_empty() {
        tracing::warn!("no upstream resolver: names that pods ask for get SERVFAIL");
    }
    let server = Arc::new(Server {
        upstreams: Upstreams::new(&config.upstreams),
        clients: config.clients,
        names,
        settle,
        questions: Shares::new(QUESTIONS),
        connections: Shares::new(CONNECTIONS),
    });
    tokio::spawn({
        let (server, shutdown) = (server.clone(), shutdown.clone());
        async move {
            tokio::select! {
                () = server.serve_udp(Arc::new(udp)) => {}
                () = shutdown.cancelled() => {}
            }
        }
    });
    tokio::spawn(async move {
        tokio::select! {
            () = server.serve_tcp(tcp, shutdown.clone()) => {}
            () = shutdown.cancelled() => {}
        }
    });
    Ok(())
}

struct Server {
    upstreams: Upstreams,
    clients: Vec<IpNet>,
    names: Arc<Names>,
    settle: Settle,
    questions: Arc<Shares>,
    connections: Arc<Shares>,
}

impl Server {
    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        // One more than is read, so that what is too long is seen to be.
        let mut buffer = [0; MAX_QUERY_BYTES + 1];
        loop {
            let (length, peer) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // Such as an ICMP error for an earlier answer: about one pod, not about the socket.
                    tracing::debug!(%error, "a DNS packet could not be received");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let Some(question) = self.client(peer).and_then(|client| self.questions.take(client)) else {
                continue;
            };
            let packet = buffer.get(..length).unwrap_or_default().to_vec();
            let (server, socket) = (self.clone(), socket.clone());
            tokio::spawn(async move {
                if let Some(reply) = server.answer(&packet, peer.ip(), true).await
                    && let Err(error) = socket.send_to(&reply, peer).await
                {
                    tracing::debug!(%peer, %error, "a DNS answer could not be sent");
                }
                drop(question);
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a DNS connection could not be accepted");
                    // Out of descriptors, most likely: give others time to end.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(client) = self.client(peer) else { continue };
            let Some(connection) = self.connections.take(client) else {
                continue;
            };
            let (server, shutdown) = (self.clone(), shutdown.clone());
            tokio::spawn(async move {
                tokio::select! {
                    ended = server.converse(stream, client) => if let Err(error) = ended {
                        tracing::debug!(%peer, %error, "a DNS connection broke off");
                    },
                    () = shutdown.cancelled() => {}
                }
                drop(connection);
            });
        }
    }

    /// One question after the other until the pod is done.
    async fn converse(&self, mut stream: TcpStream, client: IpAddr) -> io::Result<()> {
        loop {
            let Ok(packet) = tokio::time::timeout(IDLE, read_framed(&mut stream)).await else {
                return Ok(());
            };
            let Some(packet) = packet? else { return Ok(()) };
            let Some(question) = self.questions.take(client) else {
                return Ok(());
            };
            let Some(reply) = self.answer(&packet, client, false).await else {
                return Ok(());
            };
            drop(question);
            let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
            let write = async {
                stream.write_all(&length.to_be_bytes()).await?;
                stream.write_all(&reply).await
            };
            match tokio::time::timeout(IDLE, write).await {
                Ok(written) => written?,
                Err(_elapsed) => return Ok(()),
            }
        }
    }

    /// The answer for the pod; none where silence is the answer.
    async fn answer(&self, packet: &[u8], client: IpAddr, by_udp: bool) -> Option<Vec<u8>> {
        let question = match Question::parse(packet) {
            Ok(question) => question,
            Err(Refusal::Reply(reply)) => return (!reply.is_empty()).then_some(reply),
            Err(Refusal::Drop) => return None,
        };
        let reply = match self.upstreams.ask(&question).await {
            Ok(reply) => reply,
            Err(error) => {
                let cause = std::error::Error::source(&*error).map(ToString::to_string);
                tracing::warn!(name = %question.name(), %client, %error, cause, "no upstream resolver answers");
                return Some(question.failure());
            }
        };
        let taught = self.names.learn(Instant::now(), client, &reply.answer);
        if taught.refused > 0 {
            tracing::warn!(
                name = %question.name(), %client, refused = taught.refused,
                "the table of learned names is full: rules with domains do not match these addresses"
            );
        }
        if taught.inside > 0 {
            tracing::warn!(
                name = %question.name(), %client, addresses = taught.inside,
                "a name that policy speaks of leads to pods, to nodes or to a loopback: rules with domains do not match these \
                 addresses"
            );
        }
        // Also what another's question has taught, or what failed to settle, may not be known yet.
        if let Some(generation) = self.names.unsettled(taught.generation) {
            let settled = tokio::time::timeout(SETTLE_WITHIN, (self.settle)()).await;
            let problem = match settled {
                Ok(Ok(())) => None,
                Ok(Err(problem)) => Some(problem),
                Err(_elapsed) => Some(format!("not within {SETTLE_WITHIN:?}")),
            };
            if let Some(problem) = problem {
                // A pod that connected now would be denied what its policy allows.
                tracing::warn!(name = %question.name(), %client, problem, "policy does not know a learned name yet");
                return Some(question.failure());
            }
            self.names.settled(generation);
        }
        Some(question.to_client(&reply.packet, by_udp))
    }

    /// The pod that asks; none if it is no pod of this node.
    fn client(&self, peer: SocketAddr) -> Option<IpAddr> {
        let client = peer.ip().to_canonical();
        let is_served = self.clients.iter().any(|net| net.contains(&client));
        is_served.then_some(client)
    }
}

/// The next question of a connection; none at its end.
async fn read_framed(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MAX_QUERY_BYTES {
        return Ok(None);
    }
    let mut packet = vec![0; length];
    stream.read_exact(&mut packet).await?;
    Ok(Some(packet))
}

fn udp(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = raw(listen, nix::sys::socket::SockType::Datagram)?;
    let socket = std::net::UdpSocket::from(socket);
    UdpSocket::from_std(socket)
}

fn tcp(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(raw(
        listen,
        nix::sys::socket::SockType::Stream,
    )?));
    socket.listen(128)
}

/// A bound socket. The address appears with the first pod and goes with the last, so it need not be there.
fn raw(listen: SocketAddr, kind: nix::sys::socket::SockType) -> io::Result<std::os::fd::OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockaddrStorage, bind, socket};
    let family = match listen {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, kind, flags, None)?;
    setsockopt(
        &socket,
        sockopt::ReuseAddr,
        &(kind == nix::sys::socket::SockType::Stream),
    )?;
    if listen.is_ipv4() {
        setsockopt(&socket.as_fd(), sockopt::IpFreebind, &true)?;
    }
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&socket),
        &SockaddrStorage::from(listen),
    )?;
    Ok(socket)
}
