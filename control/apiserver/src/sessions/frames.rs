//! Frames of [`api::session`] on the connection to an agent.

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

/// Writes `bytes` in as many frames as they need, at least one.
pub(super) async fn write(mut to: impl AsyncWrite + Unpin, channel: Channel, bytes: &[u8]) -> io::Result<()> {
    let (first, mut rest) = bytes.split_at(bytes.len().min(session::MAX_PAYLOAD));
    let mut piece = first;
    loop {
        let head = session::head(channel, piece.len()).map_err(io::Error::other)?;
        to.write_all(&[head.as_slice(), piece].concat()).await?;
        if rest.is_empty() {
            return to.flush().await;
        }
        (piece, rest) = rest.split_at(rest.len().min(session::MAX_PAYLOAD));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_input_is_cut_and_nothing_is_lost() {
        let long: Vec<u8> = (0..session::MAX_PAYLOAD * 2 + 5)
            .map(|n| n.to_le_bytes()[0])
            .collect();
        let mut bytes = Vec::new();
        write(&mut bytes, Channel::Stdin, &long).await.unwrap();
        write(&mut bytes, Channel::Alive, &[]).await.unwrap();
        let mut reader = FrameReader::new(bytes.as_slice());
        let mut seen = Vec::new();
        while let Some((channel, payload)) = reader.next().await.unwrap() {
            match channel {
                Channel::Stdin => seen.extend_from_slice(payload),
                other => assert_eq!((other, payload.len()), (Channel::Alive, 0)),
            }
        }
        assert!(seen == long);
    }
}
