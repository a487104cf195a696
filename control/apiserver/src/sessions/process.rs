//! Joins a client of `exec` or `attach` with the agent.

use std::time::Duration;

use api::session::{self, Channel, Outcome};
use api_frames::{FrameReader, FrameWriter};
use control_streams::{channels::Stream, outcome};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{ReadHalf, WriteHalf},
    sync::Mutex,
};

use super::{CLIENT_WITHIN, ClientError, End, IDLE, Said, Shown, Wire, negotiate::Protocol, spdy, websocket};
use crate::standing::Standing;

/// Where frames to the agent go. One is written at a time.
type ToAgent = Mutex<FrameWriter<WriteHalf<Wire>>>;

/// What the client says, in its protocol.
enum Reader {
    WebSocket(websocket::Reader),
    Spdy(Box<spdy::Reader<ReadHalf<Wire>, WriteHalf<Wire>>>),
}

/// What the client is told, in its protocol.
enum Writer {
    WebSocket(websocket::Writer),
    Spdy(spdy::Writer<WriteHalf<Wire>>),
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Said>, ClientError> {
        match self {
            Self::WebSocket(reader) => reader.next().await,
            Self::Spdy(reader) => reader.next().await,
        }
    }

    async fn drain(&mut self) {
        match self {
            Self::WebSocket(reader) => reader.drain().await,
            Self::Spdy(reader) => reader.drain().await,
        }
    }
}

impl Writer {
    async fn data(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), ClientError> {
        match self {
            Self::WebSocket(writer) => writer.data(stream, bytes).await,
            Self::Spdy(writer) => writer.data(stream, bytes).await,
        }
    }

    async fn ping(&mut self) -> Result<(), ClientError> {
        match self {
            Self::WebSocket(writer) => writer.ping().await,
            Self::Spdy(writer) => writer.ping().await,
        }
    }

    async fn finish(&mut self, status: &Value) -> Result<(), ClientError> {
        match self {
            Self::WebSocket(writer) => writer.finish(status).await,
            Self::Spdy(writer) => writer.finish(status).await,
        }
    }
}

/// Runs a session to its end.
pub(super) async fn run(
    client: Upgraded,
    protocol: &Protocol,
    shown: Shown,
    agent: Upgraded,
    standing: &Standing,
) -> End {
    let client = TokioIo::new(client);
    let (mut reader, writer) = match protocol {
        Protocol::WebSocket { version, .. } => {
            let (reader, writer) = websocket::split(websocket::accept(client).await, version);
            (Reader::WebSocket(reader), Writer::WebSocket(writer))
        }
        Protocol::Spdy { .. } => {
            let (reading, writing) = tokio::io::split(client);
            let (mut reader, writer) = spdy::accept(reading, writing, shown);
            if let Err(error) = reader.establish().await {
                return error.end();
            }
            (Reader::Spdy(Box::new(reader)), Writer::Spdy(writer))
        }
        // Negotiated for port-forward only.
        Protocol::Tunnel { .. } => return End::ClientWrong("a tunnel carries no program".to_owned()),
    };
    let (from_agent, to_agent) = tokio::io::split(TokioIo::new(agent));
    let (writer, to_agent) = (Mutex::new(writer), Mutex::new(FrameWriter::new(to_agent)));
    let end = tokio::select! {
        end = tell(&writer, FrameReader::new(from_agent), shown) => end,
        end = listen(&mut reader, &to_agent, shown) => end,
        end = watch_over(&writer, &to_agent) => end,
        refused = standing.ended() => End::of(refused),
    };
    let status = match &end {
        End::Exited(code) if shown.exit_code => outcome::exited(*code),
        End::Exited(_) => outcome::exited(0),
        End::Failed(message) | End::ClientWrong(message) => outcome::failed(message),
        End::ClientLeft => return end,
    };
    // The agent's connection ends here, and with it what the client has left.
    drop(to_agent);
    let mut writer = writer.into_inner();
    let finished = tokio::time::timeout(CLIENT_WITHIN, writer.finish(&status));
    if let Ok(Ok(())) = finished.await {
        reader.drain().await;
    }
    end
}

/// From the agent to the client, until the outcome.
async fn tell(writer: &Mutex<Writer>, mut agent: FrameReader<ReadHalf<Wire>>, shown: Shown) -> End {
    let lost = || End::Failed("the connection to the node's agent broke".to_owned());
    // Clients of the first versions wait for a message that says that they are connected.
    let first = if shown.stdout {
        Stream::Stdout
    } else {
        Stream::Error
    };
    if let Err(error) = writer.lock().await.data(first, &[]).await {
        return error.end();
    }
    loop {
        let (stream, bytes) = match agent.next().await {
            Ok(Some((Channel::Stdout, bytes))) => (Stream::Stdout, bytes),
            Ok(Some((Channel::Stderr, bytes))) => (Stream::Stderr, bytes),
            Ok(Some((Channel::Close | Channel::Alive, _))) => continue,
            Ok(Some((Channel::Outcome, text))) => {
                return match serde_json::from_slice(text) {
                    Ok(Outcome::Exited { code }) => End::Exited(code),
                    Ok(Outcome::Failed { message }) => {
                        End::Failed(format!("error executing command in container: {message}"))
                    }
                    Err(_not_an_outcome) => lost(),
                };
            }
            Ok(Some((Channel::Stdin | Channel::Resize, _)) | None) | Err(_) => return lost(),
        };
        if !shown.has(stream) {
            continue;
        }
        if let Err(error) = writer.lock().await.data(stream, bytes).await {
            return error.end();
        }
    }
}

/// From the client to the agent, until the client is gone.
async fn listen(reader: &mut Reader, agent: &ToAgent, shown: Shown) -> End {
    loop {
        let said = match reader.next().await {
            Ok(Some(said)) => said,
            Ok(None) => return End::ClientLeft,
            Err(error) => return error.end(),
        };
        let mut agent = agent.lock().await;
        let sent = match said {
            Said::Stdin(bytes) if shown.stdin => agent.write_all(Channel::Stdin, &bytes).await,
            Said::StdinClosed if shown.stdin => agent.write(Channel::Close, &[Channel::Stdin.number()]).await,
            Said::Resize(columns, rows) if shown.resize => {
                agent
                    .write(Channel::Resize, &session::resize(columns, rows))
                    .await
            }
            // Clients name streams of which the session has none; what is said there goes nowhere.
            Said::Stdin(_) | Said::StdinClosed | Said::Resize(..) => Ok(()),
        };
        if sent.is_err() {
            // Why is for the other direction to say, which hears the outcome.
            return std::future::pending().await;
        }
    }
}

/// Says to both sides now and then that this one is there, which shows whether they are, and whether the client reads. A
/// program may leave its input unread for as long as it likes, and that keeps nothing from the client's side.
async fn watch_over(writer: &Mutex<Writer>, agent: &ToAgent) -> End {
    let period = Duration::from_secs(session::ALIVE_EVERY_SECONDS);
    let ticks = || tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    let client = async {
        let mut ticks = ticks();
        loop {
            ticks.tick().await;
            let said = tokio::time::timeout(IDLE, async { writer.lock().await.ping().await });
            match said.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.end(),
                Err(_elapsed) => return End::ClientLeft,
            }
        }
    };
    let node = async {
        let mut ticks = ticks();
        loop {
            ticks.tick().await;
            let told = agent.lock().await.write(Channel::Alive, &[]).await;
            if told.is_err() {
                return End::Failed("the connection to the node's agent broke".to_owned());
            }
        }
    };
    tokio::select! {
        end = client => end,
        end = node => end,
    }
}
