//! `exec`, `attach` and `port-forward` on the node: one upgraded connection of the API server for each, in the frames of
//! [`api::session`].
//!
//! The API server has decided who may do this and speaks the clients' protocols; here a session is joined with the
//! streams that the pod's shim hands out. What a client can hold up is its own session: of outputs nothing is read ahead, of input
//! so much that a program that does not read it holds up nothing else.

mod forward;
mod input;
mod streams;

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use agent_runtime::{Runtime, SessionEnd};
use api::session::{self, Action, Channel, Outcome, Request};
use api_frames::FrameWriter;
use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadHalf, WriteHalf},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::Instant,
};

use self::{forward::Forwards, streams::Terminal};
use crate::{pods::directory::Directory, policy::chain, server::NodeApi};

/// Sessions of this node at a time.
const MAX_SESSIONS: usize = 128;

/// A session in which nothing is said for so long ends, as in Kubernetes; so does one whose other side takes nothing of what
/// it is sent, which may be somebody who has paused a terminal.
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);

/// How long the other side may take for the outcome.
const OUTCOME_WITHIN: Duration = Duration::from_secs(30);

/// What is read of an output at a time.
const CHUNK: usize = session::MAX_PAYLOAD;

/// What sessions need.
#[derive(Clone)]
pub(crate) struct Sessions {
    runtime: Runtime,
    slots: Arc<Semaphore>,
    forwards: Forwards,
}

/// Input of a pod, in whatever form.
type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// Output of a pod, in whatever form.
struct Output {
    stream: Box<dyn AsyncRead + Send + Unpin>,
    /// The same, to read what is there at the end of the program: whether there is something, asynchronous reading may
    /// not know yet.
    rest: Option<OwnedFd>,
}

/// The pod's side of a session.
struct Streams {
    input: Option<Input>,
    outputs: Vec<(Channel, Output)>,
    /// For its size.
    terminal: Option<Terminal>,
    end: Ending,
}

/// What ends a session from the pod's side.
enum Ending {
    /// A program.
    Program(SessionEnd),
    /// The end of its output.
    Output,
}

/// Where frames go. One is written at a time.
type Frames<W = WriteHalf<TokioIo<Upgraded>>> = Arc<Mutex<FrameWriter<W>>>;

/// When something was last said, in milliseconds since the beginning.
#[derive(Clone)]
struct Activity {
    since: Instant,
    last: Arc<AtomicU64>,
}

impl Sessions {
    pub(crate) fn new(runtime: Runtime) -> Self {
        Self {
            runtime,
            slots: Arc::new(Semaphore::new(MAX_SESSIONS)),
            forwards: Forwards::default(),
        }
    }

    async fn streams(&self, request: &Request) -> Result<Streams, String> {
        let uid = &request.uid;
        let opened = match &request.action {
            Action::Forward { port } => return forward::connect(&self.runtime, uid, *port).await,
            Action::Exec {
                container,
                command,
                stdin,
                tty,
            } => {
                self.runtime
                    .open_session(uid, container, command, *stdin, *tty)
                    .await
            }
            Action::Attach { container, stdin } => self.runtime.attach(uid, container, *stdin).await,
        };
        let session = opened.map_err(|error| chain(&error))?;
        let wants_input = match &request.action {
            Action::Exec { stdin, .. } | Action::Attach { stdin, .. } => *stdin,
            Action::Forward { .. } => true,
        };
        streams::of(session, wants_input)
            .map_err(|error| format!("cannot use the session's streams: {error}"))
    }

    async fn run(self, request: Request, connection: Upgraded, slot: OwnedSemaphorePermit) {
        let (reader, writer) = tokio::io::split(TokioIo::new(connection));
        let frames: Frames = Arc::new(Mutex::new(FrameWriter::new(writer)));
        let outcome = match self.streams(&request).await {
            Ok(streams) => join(streams, reader, &frames).await,
            Err(message) => Some(Outcome::Failed { message }),
        };
        match &outcome {
            Some(Outcome::Exited { code }) => {
                tracing::info!(namespace = request.namespace, pod = request.pod, action = %request.action, code, "session ended");
            }
            Some(Outcome::Failed { message }) => {
                tracing::info!(namespace = request.namespace, pod = request.pod, action = %request.action, message, "session failed");
            }
            None => {
                tracing::info!(namespace = request.namespace, pod = request.pod, action = %request.action, "session left");
            }
        }
        if let Some(outcome) = outcome {
            // Two strings and a number always serialise; the other side may be gone.
            let text = serde_json::to_vec(&outcome).unwrap_or_default();
            let told = tokio::time::timeout(OUTCOME_WITHIN, async {
                let mut frames = frames.lock().await;
                frames.write(Channel::Outcome, &text).await?;
                frames.shutdown().await
            });
            let _other_side_may_be_gone = told.await;
        }
        drop(slot);
    }
}

/// `POST /session`: upgrades to the frames of a session.
pub(crate) async fn open(State(api): State<NodeApi>, mut request: axum::extract::Request) -> Response {
    let refuse = |status: StatusCode, message: String| (status, message).into_response();
    let wanted = match parse(request.headers()) {
        Ok(wanted) => wanted,
        Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
    };
    if let Err((status, message)) = find(&api.directory, &wanted) {
        return refuse(status, message);
    }
    let Ok(slot) = Arc::clone(&api.sessions.slots).try_acquire_owned() else {
        let message = format!("the node has {MAX_SESSIONS} sessions already");
        return refuse(StatusCode::SERVICE_UNAVAILABLE, message);
    };
    let forward = match wanted.action {
        Action::Forward { .. } => match api.sessions.forwards.take(&wanted.uid) {
            Some(place) => Some(place),
            None => {
                let message = format!(
                    "the pod has {} forwarded connections already",
                    forward::MAX_OF_A_POD
                );
                return refuse(StatusCode::SERVICE_UNAVAILABLE, message);
            }
        },
        Action::Exec { .. } | Action::Attach { .. } => None,
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let sessions = api.sessions.clone();
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => sessions.run(wanted, connection, slot).await,
            Err(error) => tracing::debug!(%error, "session not upgraded"),
        }
        drop(forward);
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(session::PROTOCOL));
    response
}

fn parse(headers: &HeaderMap) -> Result<Request, String> {
    if headers.get(header::UPGRADE).map(HeaderValue::as_bytes) != Some(session::PROTOCOL.as_bytes()) {
        return Err(format!("the only upgrade here is {}", session::PROTOCOL));
    }
    let value = headers
        .get(session::REQUEST_HEADER)
        .ok_or_else(|| format!("header {} is missing", session::REQUEST_HEADER))?;
    let text = URL_SAFE_NO_PAD
        .decode(value.as_bytes())
        .map_err(|error| format!("header {}: {error}", session::REQUEST_HEADER))?;
    serde_json::from_slice(&text).map_err(|error| format!("header {}: {error}", session::REQUEST_HEADER))
}

/// Whether the pod is here, is the one that was meant, and runs the container.
fn find(directory: &Directory, wanted: &Request) -> Result<(), (StatusCode, String)> {
    let Request {
        namespace,
        pod,
        uid,
        action,
    } = wanted;
    let entry = directory
        .entry(uid)
        .filter(|entry| (&entry.id.namespace, &entry.id.name) == (namespace, pod))
        .ok_or_else(|| {
            let message = format!("pod \"{namespace}/{pod}\" is not on this node");
            (StatusCode::NOT_FOUND, message)
        })?;
    let container = match action {
        Action::Exec { container, .. } | Action::Attach { container, .. } => container,
        Action::Forward { .. } if entry.containers.values().any(|latest| latest.running) => return Ok(()),
        Action::Forward { .. } => {
            let message = format!("pod \"{pod}\" is not running");
            return Err((StatusCode::BAD_REQUEST, message));
        }
    };
    match entry.containers.get(container) {
        Some(latest) if latest.running => Ok(()),
        Some(_) => Err((
            StatusCode::BAD_REQUEST,
            format!("container \"{container}\" in pod \"{pod}\" is not running"),
        )),
        None => Err((
            StatusCode::BAD_REQUEST,
            format!("container \"{container}\" in pod \"{pod}\" is waiting to start"),
        )),
    }
}

/// Moves bytes both ways until the pod's side ends. None when the other side left first.
async fn join(streams: Streams, reader: ReadHalf<TokioIo<Upgraded>>, frames: &Frames) -> Option<Outcome> {
    let Streams {
        input,
        outputs,
        terminal,
        end,
    } = streams;
    let activity = Activity::new();
    let (over, ended) = watch::channel(false);
    let mut copies = JoinSet::new();
    for (channel, output) in outputs {
        copies.spawn(copy_out(
            channel,
            output,
            Arc::clone(frames),
            ended.clone(),
            activity.clone(),
        ));
    }
    let program = async {
        match end {
            Ending::Program(mut end) => {
                let code = end.wait().await;
                // What was written before the end is still to be read.
                over.send_replace(true);
                while copies.join_next().await.is_some() {}
                match code {
                    Ok(code) => Outcome::Exited { code },
                    Err(error) => Outcome::Failed {
                        message: chain(&error),
                    },
                }
            }
            Ending::Output => {
                while copies.join_next().await.is_some() {}
                Outcome::Exited { code: 0 }
            }
        }
    };
    tokio::select! {
        outcome = program => Some(outcome),
        () = input::take_in(reader, input, terminal, activity.clone()) => None,
        outcome = watch_over(frames, &activity, IDLE) => outcome,
    }
}

/// From the pod to the other side, until the output ends or the program has ended and there is no more for now.
async fn copy_out(
    channel: Channel,
    mut output: Output,
    frames: Frames,
    mut ended: watch::Receiver<bool>,
    activity: Activity,
) {
    let mut chunk = vec![0; CHUNK];
    let mut over = false;
    loop {
        let read = match &output.rest {
            // Does not block: without more, or with a process left that may write more, this is the end.
            Some(rest) if over => rustix::io::read(rest, &mut chunk).map_err(Into::into),
            _ => tokio::select! {
                read = output.stream.read(&mut chunk) => read,
                _ = ended.wait_for(|ended| *ended), if output.rest.is_some() => {
                    over = true;
                    continue;
                }
            },
        };
        let bytes = match read {
            Ok(0) | Err(_) => break,
            Ok(length) => chunk.get(..length).unwrap_or_default(),
        };
        activity.note();
        if frames.lock().await.write(channel, bytes).await.is_err() {
            return;
        }
    }
    let close = [channel.number()];
    let _other_side_may_be_gone = frames.lock().await.write(Channel::Close, &close).await;
}

/// Says now and then that this side is there, which shows whether the other is; ends a session in which nothing happens or
/// whose other side does not read. Neither needs what a writer that is stuck may hold.
async fn watch_over<W: AsyncWrite + Unpin>(
    frames: &Frames<W>,
    activity: &Activity,
    limit: Duration,
) -> Option<Outcome> {
    let hours = limit.as_secs() / 3600;
    let over = |message| Some(Outcome::Failed { message });
    let idle = async {
        loop {
            let left = limit.saturating_sub(activity.idle());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    };
    let alive = async {
        let mut ticks = tokio::time::interval(Duration::from_secs(session::ALIVE_EVERY_SECONDS));
        loop {
            ticks.tick().await;
            let said = async { frames.lock().await.write(Channel::Alive, &[]).await };
            match tokio::time::timeout(limit, said).await {
                Ok(Ok(())) => {}
                Ok(Err(_gone)) => return None,
                Err(_elapsed) => return over(format!("nothing was read for {hours} hours")),
            }
        }
    };
    tokio::select! {
        () = idle => over(format!("nothing was said for {hours} hours")),
        outcome = alive => outcome,
    }
}

impl Activity {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            last: Arc::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn note(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    fn idle(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.last.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use api_frames::FrameReader;

    use super::*;
    use crate::pods::{
        PodId,
        directory::{Entry, Latest},
    };

    fn headers(upgrade: &'static str, request: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
        let encoded = URL_SAFE_NO_PAD.encode(request);
        headers.insert(session::REQUEST_HEADER, HeaderValue::from_str(&encoded).unwrap());
        headers
    }

    #[tokio::test]
    async fn who_does_not_read_keeps_no_session_beyond_the_limit() {
        let (near, far) = tokio::io::duplex(64);
        let frames: Frames<_> = Arc::new(Mutex::new(FrameWriter::new(near)));
        let stuck = Arc::clone(&frames);
        // Its writer has the lock and never gets rid of its frame.
        let writer =
            tokio::spawn(async move { stuck.lock().await.write(Channel::Stdout, &[b'x'; 1000]).await });
        while frames.try_lock().is_ok() {
            tokio::task::yield_now().await;
        }
        let limit = Duration::from_millis(50);
        let outcome = watch_over(&frames, &Activity::new(), limit).await;
        assert!(matches!(outcome, Some(Outcome::Failed { .. })), "{outcome:?}");
        // Nor when there is always something that it says itself.
        let activity = Activity::new();
        activity.last.store(u64::MAX, Ordering::Relaxed);
        match watch_over(&frames, &activity, limit).await {
            Some(Outcome::Failed { message }) => {
                assert!(message.starts_with("nothing was read"), "{message}");
            }
            other => panic!("{other:?}"),
        }

        // What its writer had begun is complete before anything else.
        writer.abort();
        let end = async {
            let mut frames = frames.lock().await;
            frames.write(Channel::Outcome, b"{}").await.unwrap();
            frames.shutdown().await.unwrap();
        };
        let mut reader = FrameReader::new(far);
        let heard = async {
            let output = reader
                .next()
                .await
                .unwrap()
                .map(|(channel, bytes)| (channel, bytes.len()));
            assert_eq!(output, Some((Channel::Stdout, 1000)));
            assert_eq!(reader.next().await.unwrap(), Some((Channel::Outcome, &b"{}"[..])));
        };
        tokio::join!(end, heard);
    }

    #[test]
    fn requests_come_in_one_form() {
        let text =
            r#"{"namespace":"a","pod":"p","uid":"u","action":{"attach":{"container":"c","stdin":true}}}"#;
        assert_eq!(parse(&headers(session::PROTOCOL, text)).unwrap().uid, "u");
        for (upgrade, text) in [("websocket", text), (session::PROTOCOL, "{}")] {
            assert!(parse(&headers(upgrade, text)).is_err(), "{upgrade} {text}");
        }
        assert!(parse(&HeaderMap::new()).is_err());
    }

    #[test]
    fn only_the_pod_that_was_meant_is_entered() {
        let directory = Directory::default();
        let id = PodId {
            uid: "u".to_owned(),
            namespace: "a".to_owned(),
            name: "p".to_owned(),
        };
        let latest = Latest::for_tests;
        let containers = [
            ("up".to_owned(), latest(true)),
            ("down".to_owned(), latest(false)),
        ];
        directory.publish_for_tests(&Entry {
            id,
            containers: containers.into(),
        });
        let wanted = |uid: &str, container: &str| Request {
            namespace: "a".to_owned(),
            pod: "p".to_owned(),
            uid: uid.to_owned(),
            action: Action::Attach {
                container: container.to_owned(),
                stdin: false,
            },
        };
        assert_eq!(find(&directory, &wanted("u", "up")), Ok(()));
        let refused = |uid, container| find(&directory, &wanted(uid, container)).unwrap_err().0;
        assert_eq!(refused("earlier", "up"), StatusCode::NOT_FOUND);
        assert_eq!(refused("u", "down"), StatusCode::BAD_REQUEST);
        assert_eq!(refused("u", "absent"), StatusCode::BAD_REQUEST);
    }
}
