//! Frames of [`api::session`] on a connection.

use std::io;

use api::session::{self, Channel};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Reads frames, one at a time, into one buffer.
pub(super) struct FrameReader<R> {
    from: R,
    payload: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            payload: Vec::new(),
        }
    }

    /// The next frame; none at the end of the connection between two frames.
    pub(super) async fn next(&mut self) -> io::Result<Option<(Channel, &[u8])>> {
        let mut head = [0; session::HEAD];
        match self.from.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let (channel, length) = session::parse_head(head).map_err(io::Error::other)?;
        self.payload.resize(length, 0);
        self.from.read_exact(&mut self.payload).await?;
        Ok(Some((channel, &self.payload)))
    }
}

/// Writes one frame.
pub(super) async fn write(
    mut to: impl AsyncWrite + Unpin,
    channel: Channel,
    payload: &[u8],
) -> io::Result<()> {
    let head = session::head(channel, payload.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(head.len() + payload.len());
    frame.extend_from_slice(&head);
    frame.extend_from_slice(payload);
    to.write_all(&frame).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_follow_each_other_and_a_cut_one_is_an_error() {
        let mut bytes = Vec::new();
        write(&mut bytes, Channel::Stdout, b"text").await.unwrap();
        write(&mut bytes, Channel::Alive, b"").await.unwrap();
        let mut reader = FrameReader::new(bytes.as_slice());
        assert_eq!(
            reader.next().await.unwrap(),
            Some((Channel::Stdout, &b"text"[..]))
        );
        assert_eq!(reader.next().await.unwrap(), Some((Channel::Alive, &b""[..])));
        assert_eq!(reader.next().await.unwrap(), None);
        assert!(FrameReader::new(&bytes[..6]).next().await.is_err());
        assert!(FrameReader::new(&[9, 0, 0, 0][..]).next().await.is_err());
        let long = vec![0; session::MAX_PAYLOAD + 1];
        assert!(write(&mut bytes, Channel::Stdout, &long).await.is_err());
    }
}
