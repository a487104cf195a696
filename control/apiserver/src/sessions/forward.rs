//! `port-forward`: the client opens two SPDY streams for each connection, one for data and one for an error; each
//! connection has its own to the agent, and its failure ends no other.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use api::session::{self, Action, Channel, Outcome};
use api_frames::{FrameReader, FrameWriter};
use control_streams::spdy::Headers;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf},
    sync::{Mutex, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    CLIENT_WITHIN, ClientError, End, IDLE, Wire,
    audit::Record,
    negotiate::Protocol,
    request::PodName,
    spdy::{Events, Frames, Heard},
    tunnel,
};
use crate::{
    node_proxy::{self, NodeEndpoint},
    standing::Standing,
};

/// Connections of one session at a time.
const MAX_CONNECTIONS: usize = 128;

/// Pieces of a connection's data that wait for the pod; after that the whole session waits, as SPDY without windows does.
const QUEUE: usize = 32;

/// How to reach the pod.
pub(super) struct Agent {
    pub(super) endpoint: NodeEndpoint,
    pub(super) pod: PodName,
    pub(super) tls: Arc<rustls::ClientConfig>,
}

/// Where frames to the client go, whatever carries them.
type ToClient = Arc<Mutex<Frames<Box<dyn AsyncWrite + Send + Unpin>>>>;

/// The client's side of a connection that is being opened or is open.
#[derive(Debug, Default)]
struct Pair {
    error: Option<u32>,
    data: Option<u32>,
    /// None before the connection is opened and after the client has closed its side.
    to_pod: Option<mpsc::Sender<Vec<u8>>>,
    /// Gives the connection up.
    cancel: CancellationToken,
}

/// What is known of a session.
struct Session<'a> {
    agent: Arc<Agent>,
    frames: ToClient,
    record: &'a Record,
    /// By what the client calls them.
    pairs: HashMap<String, Pair>,
    /// Which pair a stream belongs to.
    streams: HashMap<u32, String>,
    /// Ends with the name of the pair.
    connections: JoinSet<String>,
}

/// Runs a session to its end.
pub(super) async fn run(
    client: Upgraded,
    protocol: &Protocol,
    agent: Agent,
    record: &Record,
    standing: &Standing,
) -> End {
    let client = TokioIo::new(client);
    let (reading, writing): (
        Box<dyn AsyncRead + Send + Unpin>,
        Box<dyn AsyncWrite + Send + Unpin>,
    ) = match protocol {
        Protocol::Tunnel { .. } => {
            let (reading, writing) = tokio::io::split(tunnel::open(client).await);
            (Box::new(reading), Box::new(writing))
        }
        _ => {
            let (reading, writing) = tokio::io::split(client);
            (Box::new(reading), Box::new(writing))
        }
    };
    let mut session = Session {
        agent: Arc::new(agent),
        frames: Arc::new(Mutex::new(Frames::new(writing))),
        record,
        pairs: HashMap::new(),
        streams: HashMap::new(),
        connections: JoinSet::new(),
    };
    let mut events = Events::new(reading);
    let frames = Arc::clone(&session.frames);
    let end = tokio::select! {
        end = serve(&mut session, &mut events) => match end {
            Ok(()) => End::ClientLeft,
            Err(error) => error.end(),
        },
        end = watch_over(&frames) => end,
        refused = standing.ended() => End::of(refused),
    };
    session.connections.shutdown().await;
    if end != End::ClientLeft {
        let finished = tokio::time::timeout(CLIENT_WITHIN, async { frames.lock().await.finish().await });
        if let Ok(Ok(())) = finished.await {
            events.drain().await;
        }
    }
    end
}

async fn serve<R: AsyncRead + Unpin>(
    session: &mut Session<'_>,
    events: &mut Events<R>,
) -> Result<(), ClientError> {
    loop {
        tokio::select! {
            heard = events.next() => match heard? {
                Some(Heard::Open { stream, headers }) => session.open(stream, &headers).await?,
                Some(Heard::Data { stream, bytes }) => session.data(stream, bytes).await?,
                Some(Heard::End { stream }) => session.end(stream),
                Some(Heard::Reset { stream }) => session.reset(stream),
                Some(Heard::Ping { id }) => session.frames.lock().await.pong(id).await?,
                Some(Heard::GoAway) | None => return Ok(()),
            },
            Some(ended) = session.connections.join_next() => {
                if let Ok(name) = ended {
                    session.forget(&name);
                }
            }
        }
    }
}

impl Session<'_> {
    async fn open(&mut self, stream: u32, headers: &Headers) -> Result<(), ClientError> {
        let text = |name: &str| headers.get(name).unwrap_or_default().to_owned();
        let (kind, port) = (text("streamtype"), text("port"));
        let port = port.parse::<u16>().ok().filter(|port| *port > 0);
        // Clients older than the header number pairs by their port alone.
        let name = match headers.get("requestid") {
            Some(id) => id.to_owned(),
            None => text("port"),
        };
        let known = self.streams.contains_key(&stream);
        let room = self.pairs.len() < MAX_CONNECTIONS || self.pairs.contains_key(&name);
        let Some(port) = port.filter(|_| room && !known) else {
            return Ok(self.frames.lock().await.refuse(stream).await?);
        };
        let pair = self.pairs.entry(name.clone()).or_default();
        let place = match kind.as_str() {
            "error" => &mut pair.error,
            "data" => &mut pair.data,
            _ => return Ok(self.frames.lock().await.refuse(stream).await?),
        };
        if place.is_some() {
            return Ok(self.frames.lock().await.refuse(stream).await?);
        }
        *place = Some(stream);
        self.streams.insert(stream, name.clone());
        self.frames.lock().await.reply(stream).await?;
        if let (Some(error), Some(data), None) = (pair.error, pair.data, &pair.to_pod) {
            let (to_pod, from_client) = mpsc::channel(QUEUE);
            pair.to_pod = Some(to_pod);
            self.record.connects(port);
            let connection = Connection {
                agent: Arc::clone(&self.agent),
                frames: Arc::clone(&self.frames),
                port,
                error,
                data,
            };
            let cancel = pair.cancel.clone();
            self.connections.spawn(async move {
                tokio::select! {
                    () = connection.run(from_client) => {}
                    () = cancel.cancelled() => {}
                }
                name
            });
        }
        Ok(())
    }

    async fn data(&mut self, stream: u32, bytes: Vec<u8>) -> Result<(), ClientError> {
        let Some(pair) = self
            .streams
            .get(&stream)
            .and_then(|name| self.pairs.get_mut(name))
        else {
            // The tail of a connection that has ended here.
            return Ok(());
        };
        if pair.data != Some(stream) {
            return Err(ClientError::Stream(format!("{stream} (error)")));
        }
        if let Some(to_pod) = &pair.to_pod
            && to_pod.send(bytes).await.is_err()
        {
            pair.to_pod = None;
        }
        Ok(())
    }

    fn end(&mut self, stream: u32) {
        if let Some(pair) = self
            .streams
            .get(&stream)
            .and_then(|name| self.pairs.get_mut(name))
            && pair.data == Some(stream)
        {
            pair.to_pod = None;
        }
    }

    fn reset(&mut self, stream: u32) {
        if let Some(pair) = self.streams.get(&stream).and_then(|name| self.pairs.get(name))
            && pair.data == Some(stream)
        {
            pair.cancel.cancel();
        }
    }

    fn forget(&mut self, name: &str) {
        self.pairs.remove(name);
        self.streams.retain(|_, of| of != name);
    }
}

/// One connection to a port of the pod.
struct Connection {
    agent: Arc<Agent>,
    frames: ToClient,
    port: u16,
    error: u32,
    data: u32,
}

impl Connection {
    async fn run(self, from_client: mpsc::Receiver<Vec<u8>>) {
        let failed = match self.join(from_client).await {
            Ok(()) => None,
            Err(message) => Some(format!(
                "an error occurred forwarding {port} -> {port}: error forwarding port {port} to the pod: {message}",
                port = self.port
            )),
        };
        // If the client is gone nobody needs to hear it.
        let _client_may_be_gone = self.say_end(failed).await;
    }

    async fn say_end(&self, failed: Option<String>) -> io::Result<()> {
        let mut frames = self.frames.lock().await;
        if let Some(message) = failed {
            frames.data(self.error, message.as_bytes()).await?;
        }
        frames.end(self.error).await?;
        frames.end(self.data).await
    }

    async fn join(&self, from_client: mpsc::Receiver<Vec<u8>>) -> Result<(), String> {
        let Agent { endpoint, pod, tls } = &*self.agent;
        let wanted = pod.request(Action::Forward { port: self.port });
        let agent = node_proxy::open_session(endpoint, &wanted, tls)
            .await
            .map_err(|error| error.to_string())?;
        let (from_agent, to_agent) = tokio::io::split(TokioIo::new(agent));
        tokio::select! {
            end = self.follow_pod(FrameReader::new(from_agent)) => end,
            never = to_pod(from_client, FrameWriter::new(to_agent)) => match never {},
        }
    }

    async fn follow_pod(&self, mut agent: FrameReader<ReadHalf<Wire>>) -> Result<(), String> {
        loop {
            match agent.next().await.map_err(|error| error.to_string())? {
                Some((Channel::Stdout, bytes)) => {
                    let sent = self.frames.lock().await.data(self.data, bytes).await;
                    sent.map_err(|error| error.to_string())?;
                }
                Some((Channel::Outcome, text)) => {
                    return match serde_json::from_slice(text) {
                        Ok(Outcome::Exited { .. }) => Ok(()),
                        Ok(Outcome::Failed { message }) => Err(message),
                        Err(error) => Err(error.to_string()),
                    };
                }
                Some((Channel::Close | Channel::Alive, _)) => {}
                Some((Channel::Stdin | Channel::Stderr | Channel::Resize, _)) | None => {
                    return Err("the connection to the node's agent broke".to_owned());
                }
            }
        }
    }
}

/// From the client to the pod. How the connection ends is for the other direction to say.
async fn to_pod(
    mut from_client: mpsc::Receiver<Vec<u8>>,
    mut agent: FrameWriter<WriteHalf<Wire>>,
) -> std::convert::Infallible {
    let period = Duration::from_secs(session::ALIVE_EVERY_SECONDS);
    let mut open = true;
    loop {
        let sent = tokio::select! {
            bytes = from_client.recv(), if open => match bytes {
                Some(bytes) => agent.write_all(Channel::Stdin, &bytes).await,
                None => {
                    open = false;
                    agent.write(Channel::Close, &[Channel::Stdin.number()]).await
                }
            },
            () = tokio::time::sleep(period) => agent.write(Channel::Alive, &[]).await,
        };
        if sent.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Says now and then that this side is there, which shows whether the client is, and whether it reads.
async fn watch_over(frames: &ToClient) -> End {
    let period = Duration::from_secs(session::ALIVE_EVERY_SECONDS);
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    loop {
        ticks.tick().await;
        let said = tokio::time::timeout(IDLE, async { frames.lock().await.ping().await });
        if !matches!(said.await, Ok(Ok(()))) {
            return End::ClientLeft;
        }
    }
}
