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

/// Writes frames. Whoever writes one may be cancelled at any time: what is left of a frame that was begun goes out before
/// the next, so that the other side never sees half of one.
pub(super) struct FrameWriter<W> {
    to: W,
    /// The frame that was begun, and how much of it is written.
    begun: Vec<u8>,
    written: usize,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub(super) fn new(to: W) -> Self {
        Self {
            to,
            begun: Vec::new(),
            written: 0,
        }
    }

    /// Writes one frame.
    pub(super) async fn write(&mut self, channel: Channel, payload: &[u8]) -> io::Result<()> {
        let head = session::head(channel, payload.len()).map_err(io::Error::other)?;
        self.complete().await?;
        self.begun.clear();
        self.begun.extend_from_slice(&head);
        self.begun.extend_from_slice(payload);
        self.written = 0;
        self.complete().await?;
        self.to.flush().await
    }

    /// Ends the connection in this direction.
    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        self.complete().await?;
        self.to.shutdown().await
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_follow_each_other_and_a_cut_one_is_an_error() {
        let mut bytes = Vec::new();
        let mut writer = FrameWriter::new(&mut bytes);
        writer.write(Channel::Stdout, b"text").await.unwrap();
        writer.write(Channel::Alive, b"").await.unwrap();
        let long = vec![0; session::MAX_PAYLOAD + 1];
        assert!(writer.write(Channel::Stdout, &long).await.is_err());
        let mut reader = FrameReader::new(bytes.as_slice());
        assert_eq!(
            reader.next().await.unwrap(),
            Some((Channel::Stdout, &b"text"[..]))
        );
        assert_eq!(reader.next().await.unwrap(), Some((Channel::Alive, &b""[..])));
        assert_eq!(reader.next().await.unwrap(), None);
        assert!(FrameReader::new(&bytes[..6]).next().await.is_err());
        assert!(FrameReader::new(&[9, 0, 0, 0][..]).next().await.is_err());
    }
}
