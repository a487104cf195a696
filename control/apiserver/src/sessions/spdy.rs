//! A client that speaks SPDY: the connection, and the streams of `exec` and `attach` on it.

use std::{collections::HashMap, io, sync::Arc};

use control_streams::{
    channels::{self, ChannelError, Stream},
    spdy::{
        Decoder, Event, Headers,
        encode::{self, Encoder},
    },
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{Mutex, watch},
};

use super::{CLIENT_WITHIN, ClientError, Said, Shown};

/// What is read at a time.
const CHUNK: usize = 32 * 1024;

/// Longest text of one size of a terminal.
const MAX_RESIZE: usize = 256;

/// An event that owns its bytes.
#[derive(Debug)]
pub(super) enum Heard {
    Open { stream: u32, headers: Headers },
    Data { stream: u32, bytes: Vec<u8> },
    End { stream: u32 },
    Reset { stream: u32 },
    Ping { id: u32 },
    GoAway,
}

/// Events of a connection.
pub(super) struct Events<R> {
    from: R,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// What of the buffer is not decoded yet.
    start: usize,
    end: usize,
    /// A stream that was closed as it was opened.
    ended: Option<u32>,
}

/// Frames to a client. Whoever sends one may be cancelled at any time: what is left of a frame that was begun goes out
/// before the next, so that the client never sees half of one.
pub(super) struct Frames<W> {
    to: W,
    /// The frame that was begun, and how much of it is written.
    begun: Vec<u8>,
    written: usize,
    encoder: Encoder,
    /// Number of the last ping of ours; servers use even ones.
    ping: u32,
    last: u32,
}

impl<R: AsyncRead + Unpin> Events<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            decoder: Decoder::new(),
            buffer: vec![0; CHUNK],
            start: 0,
            end: 0,
            ended: None,
        }
    }

    /// None when the client has closed the connection. Safe to cancel.
    pub(super) async fn next(&mut self) -> Result<Option<Heard>, ClientError> {
        loop {
            if let Some(stream) = self.ended.take() {
                return Ok(Some(Heard::End { stream }));
            }
            let mut input = self.buffer.get(self.start..self.end).unwrap_or_default();
            let event = self.decoder.next(&mut input)?;
            let heard = event.map(|event| match event {
                Event::Open { stream, headers, fin } => {
                    self.ended = fin.then_some(stream);
                    Heard::Open { stream, headers }
                }
                Event::Data { stream, bytes } => Heard::Data {
                    stream,
                    bytes: bytes.to_vec(),
                },
                Event::End { stream } => Heard::End { stream },
                Event::Reset { stream } => Heard::Reset { stream },
                Event::Ping { id } => Heard::Ping { id },
                Event::GoAway => Heard::GoAway,
            });
            self.start = self.end - input.len();
            if heard.is_some() {
                return Ok(heard);
            }
            let length = self.from.read(&mut self.buffer).await?;
            if length == 0 {
                return Ok(None);
            }
            (self.start, self.end) = (0, length);
        }
    }

    /// Reads on until the client has closed the connection, so that what was sent last is not lost with it.
    pub(super) async fn drain(&mut self) {
        let closed = async { while let Ok(1..) = self.from.read(&mut self.buffer).await {} };
        let _slow_client = tokio::time::timeout(CLIENT_WITHIN, closed).await;
    }
}

impl<W: AsyncWrite + Unpin> Frames<W> {
    pub(super) fn new(to: W) -> Self {
        Self {
            to,
            begun: Vec::new(),
            written: 0,
            encoder: Encoder::new(),
            ping: 0,
            last: 0,
        }
    }

    async fn send(&mut self, frame: Vec<u8>) -> io::Result<()> {
        self.complete().await?;
        (self.begun, self.written) = (frame, 0);
        self.complete().await?;
        self.to.flush().await
    }

    /// Writes the rest of what was begun.
    async fn complete(&mut self) -> io::Result<()> {
        while let Some(rest @ [_, ..]) = self.begun.get(self.written..) {
            // One write either counts as a whole or did not happen, also when it is cancelled.
            match self.to.write(rest).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                length => self.written += length,
            }
        }
        Ok(())
    }

    /// Accepts a stream.
    pub(super) async fn reply(&mut self, stream: u32) -> io::Result<()> {
        // What the encoder has made must be sent: the client's decoder goes along with it.
        self.complete().await?;
        self.last = self.last.max(stream);
        let frame = self.encoder.reply(stream, &Headers::default(), false);
        self.send(frame).await
    }

    /// Refuses a stream.
    pub(super) async fn refuse(&mut self, stream: u32) -> io::Result<()> {
        const REFUSED: u32 = 3;
        self.send(encode::reset(stream, REFUSED)).await
    }

    /// Sends bytes of a stream.
    pub(super) async fn data(&mut self, stream: u32, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(encode::MAX_DATA) {
            let head = encode::data_head(stream, piece.len(), false);
            self.send([head.as_slice(), piece].concat()).await?;
        }
        Ok(())
    }

    /// Ends a stream.
    pub(super) async fn end(&mut self, stream: u32) -> io::Result<()> {
        self.send(encode::data_head(stream, 0, true).to_vec()).await
    }

    /// Answers a client's ping, and takes the answer to one of ours for what it is.
    pub(super) async fn pong(&mut self, id: u32) -> io::Result<()> {
        if id.is_multiple_of(2) {
            return Ok(());
        }
        self.send(encode::ping(id)).await
    }

    /// Shows whether the client is there.
    pub(super) async fn ping(&mut self) -> io::Result<()> {
        self.ping = self.ping.wrapping_add(2);
        self.send(encode::ping(self.ping)).await
    }

    /// Ends the connection in this direction.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        self.send(encode::go_away(self.last)).await?;
        self.to.shutdown().await
    }
}

/// What a client of `exec` or `attach` says.
pub(super) struct Reader<R, W> {
    events: Events<R>,
    frames: Arc<Mutex<Frames<W>>>,
    shown: Shown,
    streams: HashMap<u32, Stream>,
    opened: watch::Sender<Opened>,
    resize: Vec<u8>,
}

/// What it is told.
pub(super) struct Writer<W> {
    frames: Arc<Mutex<Frames<W>>>,
    opened: watch::Receiver<Opened>,
}

/// Numbers of the streams that the client has opened.
#[derive(Debug, Clone, Copy, Default)]
struct Opened {
    stdin: Option<u32>,
    stdout: Option<u32>,
    stderr: Option<u32>,
    error: Option<u32>,
    resize: Option<u32>,
}

impl Opened {
    fn place(&mut self, stream: Stream) -> &mut Option<u32> {
        match stream {
            Stream::Stdin => &mut self.stdin,
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
            Stream::Error => &mut self.error,
            Stream::Resize => &mut self.resize,
        }
    }

    fn number(mut self, stream: Stream) -> Option<u32> {
        *self.place(stream)
    }

    /// Whether everything that the session writes to is there.
    fn complete(self, shown: Shown) -> bool {
        self.error.is_some()
            && (self.stdout.is_some() || !shown.stdout)
            && (self.stderr.is_some() || !shown.stderr)
    }
}

/// The server's side of a connection.
pub(super) fn accept<R, W>(reading: R, writing: W, shown: Shown) -> (Reader<R, W>, Writer<W>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let frames = Arc::new(Mutex::new(Frames::new(writing)));
    let (opened, receiver) = watch::channel(Opened::default());
    let reader = Reader {
        events: Events::new(reading),
        frames: Arc::clone(&frames),
        shown,
        streams: HashMap::new(),
        opened,
        resize: Vec::new(),
    };
    let writer = Writer {
        frames,
        opened: receiver,
    };
    (reader, writer)
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Reader<R, W> {
    /// Waits until the client has opened every stream that the session writes to.
    pub(super) async fn establish(&mut self) -> Result<(), ClientError> {
        let opening = async {
            while !self.opened.borrow().complete(self.shown) {
                match self.events.next().await? {
                    Some(Heard::Open { stream, headers }) => self.open(stream, &headers).await?,
                    Some(Heard::Ping { id }) => self.frames.lock().await.pong(id).await?,
                    Some(Heard::End { .. }) => {}
                    Some(Heard::Data { .. } | Heard::Reset { .. } | Heard::GoAway) | None => {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                }
            }
            Ok(())
        };
        tokio::time::timeout(CLIENT_WITHIN, opening)
            .await
            .unwrap_or(Err(ClientError::Slow))
    }

    /// None when the client has gone.
    pub(super) async fn next(&mut self) -> Result<Option<Said>, ClientError> {
        loop {
            if let Some(said) = self.take_resize()? {
                return Ok(Some(said));
            }
            match self.events.next().await? {
                None | Some(Heard::GoAway) => return Ok(None),
                Some(Heard::Open { stream, headers }) => self.open(stream, &headers).await?,
                Some(Heard::Ping { id }) => self.frames.lock().await.pong(id).await?,
                Some(Heard::Data { stream, bytes }) => match self.streams.get(&stream) {
                    Some(Stream::Stdin) => return Ok(Some(Said::Stdin(bytes))),
                    Some(Stream::Resize) if self.resize.len() + bytes.len() <= MAX_RESIZE => {
                        self.resize.extend_from_slice(&bytes);
                    }
                    Some(Stream::Resize) => return Err(ChannelError::Resize.into()),
                    _ => return Err(ClientError::Stream(stream.to_string())),
                },
                Some(Heard::End { stream } | Heard::Reset { stream }) => {
                    if self.streams.get(&stream) == Some(&Stream::Stdin) {
                        return Ok(Some(Said::StdinClosed));
                    }
                }
            }
        }
    }

    /// Sizes come as JSON, each with a line end.
    fn take_resize(&mut self) -> Result<Option<Said>, ClientError> {
        let Some(end) = self.resize.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let line: Vec<u8> = self.resize.drain(..=end).collect();
        let (columns, rows) = channels::resize(&line)?;
        Ok(Some(Said::Resize(columns, rows)))
    }

    async fn open(&mut self, number: u32, headers: &Headers) -> Result<(), ClientError> {
        let name = headers.get("streamtype").unwrap_or_default();
        let stream = match name {
            "stdin" => Some(Stream::Stdin),
            "stdout" => Some(Stream::Stdout),
            "stderr" => Some(Stream::Stderr),
            "error" => Some(Stream::Error),
            "resize" => Some(Stream::Resize),
            _ => None,
        };
        let free = stream.filter(|stream| {
            self.shown.has(*stream)
                && self.opened.borrow().number(*stream).is_none()
                && !self.streams.contains_key(&number)
        });
        let Some(stream) = free else {
            self.frames.lock().await.refuse(number).await?;
            return Err(ClientError::Stream(name.to_owned()));
        };
        self.streams.insert(number, stream);
        self.frames.lock().await.reply(number).await?;
        self.opened
            .send_modify(|opened| *opened.place(stream) = Some(number));
        Ok(())
    }

    /// Reads on until the client has closed the connection.
    pub(super) async fn drain(&mut self) {
        self.events.drain().await;
    }
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Sends bytes of a stream.
    pub(super) async fn data(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), ClientError> {
        let number = self.opened.borrow().number(stream);
        match number {
            Some(number) => Ok(self.frames.lock().await.data(number, bytes).await?),
            None => Ok(()),
        }
    }

    /// Shows whether the client is there.
    pub(super) async fn ping(&mut self) -> Result<(), ClientError> {
        Ok(self.frames.lock().await.ping().await?)
    }

    /// Sends the outcome and closes.
    pub(super) async fn finish(&mut self, status: &Value) -> Result<(), ClientError> {
        self.data(Stream::Error, status.to_string().as_bytes()).await?;
        let opened = *self.opened.borrow();
        let mut frames = self.frames.lock().await;
        for number in [opened.stdout, opened.stderr, opened.error].into_iter().flatten() {
            frames.end(number).await?;
        }
        Ok(frames.finish().await?)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;

    /// Reads everything that is sent and gives each stream's bytes.
    async fn client(reading: impl AsyncRead + Unpin) -> HashMap<u32, Vec<u8>> {
        let mut events = Events::new(reading);
        let mut seen: HashMap<u32, Vec<u8>> = HashMap::new();
        while let Some(heard) = events.next().await.unwrap() {
            match heard {
                Heard::Data { stream, bytes } => seen.entry(stream).or_default().extend(bytes),
                Heard::Ping { .. } | Heard::GoAway => {}
                other => panic!("{other:?}"),
            }
        }
        seen
    }

    #[tokio::test]
    async fn a_cancelled_sender_leaves_no_half_frame() {
        // The client reads nothing until the first stream's large frame is stuck in the middle and given up.
        let (near, far) = tokio::io::duplex(1000);
        let frames = Arc::new(Mutex::new(Frames::new(near)));
        let reset = Arc::new(Notify::new());
        let large: Vec<u8> = vec![b'a'; encode::MAX_DATA * 2];
        let (other, cancelled) = (Arc::clone(&frames), Arc::clone(&reset));
        let sender = tokio::spawn(async move {
            tokio::select! {
                sent = async { other.lock().await.data(1, &large).await } => panic!("sent: {sent:?}"),
                () = cancelled.notified() => {}
            }
        });
        // The frame has begun when its sender holds the lock and this thread runs again.
        while frames.try_lock().is_ok() {
            tokio::task::yield_now().await;
        }
        reset.notify_one();
        sender.await.unwrap();
        assert!(frames.lock().await.written > 0, "the frame was begun");

        let text: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let sending = async {
            let mut frames = frames.lock().await;
            frames.ping().await.unwrap();
            frames.data(3, &text).await.unwrap();
            frames.finish().await.unwrap();
        };
        let ((), seen) = tokio::join!(sending, client(far));
        assert!(seen[&3] == text, "the other stream's bytes are its own");
        assert!(seen[&1].iter().all(|byte| *byte == b'a'));
    }
}
