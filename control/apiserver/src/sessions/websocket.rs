//! A client that speaks channels in WebSocket messages.

use control_streams::channels::{self, MAX_MESSAGE, Stream, Version};
use control_streams::outcome;
use futures::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use serde_json::Value;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{CLIENT_WITHIN, ClientError, Said, Wire};

/// What the client says.
pub(super) struct Reader {
    messages: SplitStream<WebSocketStream<Wire>>,
    version: &'static Version,
}

/// What the client is told.
pub(super) struct Writer {
    messages: SplitSink<WebSocketStream<Wire>, Message>,
    version: &'static Version,
}

/// The server's side of an upgraded connection.
pub(super) async fn accept(connection: Wire) -> WebSocketStream<Wire> {
    let config = WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MAX_MESSAGE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await
}

/// Splits a connection.
pub(super) fn split(stream: WebSocketStream<Wire>, version: &'static Version) -> (Reader, Writer) {
    let (sink, stream) = stream.split();
    let reader = Reader {
        messages: stream,
        version,
    };
    let writer = Writer {
        messages: sink,
        version,
    };
    (reader, writer)
}

impl Reader {
    /// None when the client has closed the connection.
    pub(super) async fn next(&mut self) -> Result<Option<Said>, ClientError> {
        loop {
            let said = match self.messages.next().await {
                Some(Ok(Message::Binary(bytes))) => self.version.parse(&bytes, false)?,
                Some(Ok(Message::Text(text))) => self.version.parse(text.as_bytes(), true)?,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed)) | None => {
                    return Ok(None);
                }
                Some(Err(error)) => return Err(error.into()),
            };
            match said {
                channels::Said::Stdin(bytes) => return Ok(Some(Said::Stdin(bytes))),
                channels::Said::StdinClosed => return Ok(Some(Said::StdinClosed)),
                channels::Said::Resize(columns, rows) => return Ok(Some(Said::Resize(columns, rows))),
                channels::Said::Nothing => {}
            }
        }
    }

    /// Reads on until the client has closed the connection, so that what was sent last is not lost with it.
    pub(super) async fn drain(&mut self) {
        let closed = async { while let Some(Ok(_)) = self.messages.next().await {} };
        let _slow_client = tokio::time::timeout(CLIENT_WITHIN, closed).await;
    }
}

impl Writer {
    /// Sends bytes of a stream.
    pub(super) async fn data(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), ClientError> {
        let message = self.version.message(stream, bytes);
        let message = match self.version.base64 {
            // Digits and base64.
            true => Message::text(String::from_utf8_lossy(&message).into_owned()),
            false => Message::binary(message),
        };
        Ok(self.messages.send(message).await?)
    }

    /// Shows whether the client is there.
    pub(super) async fn ping(&mut self) -> Result<(), ClientError> {
        Ok(self.messages.send(Message::Ping(Vec::new().into())).await?)
    }

    /// Sends the outcome and closes.
    pub(super) async fn finish(&mut self, status: &Value) -> Result<(), ClientError> {
        match self.version.status {
            true => self.data(Stream::Error, status.to_string().as_bytes()).await?,
            false => {
                if let Some(text) = outcome::as_text(status) {
                    self.data(Stream::Error, text.as_bytes()).await?;
                }
            }
        }
        let close = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        Ok(self.messages.send(Message::Close(Some(close))).await?)
    }
}
