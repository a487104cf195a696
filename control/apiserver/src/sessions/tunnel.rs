//! SPDY inside of WebSocket messages: the same bytes, cut anyhow.

use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::tungstenite::Message;

use super::{CLIENT_WITHIN, Wire, websocket};

/// What waits in each direction, and the largest message of ours.
const CHUNK: usize = 32 * 1024;

/// The bytes of a tunnel. The task behind it ends when either side does.
pub(super) async fn open(connection: Wire) -> DuplexStream {
    let (near, far) = tokio::io::duplex(CHUNK);
    let (mut sink, mut messages) = websocket::accept(connection).await.split();
    let (mut reading, mut writing) = tokio::io::split(far);
    let inwards = async move {
        loop {
            match messages.next().await {
                Some(Ok(Message::Binary(bytes))) if writing.write_all(&bytes).await.is_ok() => {}
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                // Text is not what was agreed on.
                _ => break,
            }
        }
        let _may_be_gone = writing.shutdown().await;
    };
    let outwards = async move {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = reading.read(&mut chunk).await {
            let bytes = chunk.get(..length).unwrap_or_default().to_vec();
            if sink.send(Message::binary(bytes)).await.is_err() {
                return;
            }
        }
        let _may_be_gone = sink.send(Message::Close(None)).await;
        // What the client still says is read, so that the connection ends in order.
        tokio::time::sleep(CLIENT_WITHIN).await;
    };
    tokio::spawn(async move {
        tokio::select! {
            () = inwards => {}
            () = outwards => {}
        }
    });
    near
}
