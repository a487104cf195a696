//! Frames of [`api::session`] on a connection, for both of its ends: the API server and the agent.
//!
//! Apart from `api` since that is pure and this waits for sockets. Non-goals: what frames mean, time-outs.
//!
//! Start at [`FrameReader`] and [`FrameWriter`].

#![forbid(unsafe_code)]

use std::io;

use api::session::{self, Channel};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Reads frames, one at a time, into one buffer. Whoever waits for one may be cancelled at any time: what has been read of it
/// is not lost.
#[derive(Debug)]
pub struct FrameReader<R> {
    from: R,
    head: [u8; session::HEAD],
    payload: Vec<u8>,
    /// How much of the present frame has been read, its head included.
    filled: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader at the beginning of a frame.
    pub fn new(from: R) -> Self {
        Self {
            from,
            head: [0; session::HEAD],
            payload: Vec::new(),
            filled: 0,
        }
    }

    /// The next frame; none at the end of the connection between two frames.
    pub async fn next(&mut self) -> io::Result<Option<(Channel, &[u8])>> {
        while let Some(rest @ [_, ..]) = self.head.get_mut(self.filled..) {
            // One read either counts as a whole or did not happen, also when it is cancelled.
            match self.from.read(rest).await? {
                0 if self.filled == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => self.filled += length,
            }
        }
        let (channel, length) = session::parse_head(self.head).map_err(io::Error::other)?;
        self.payload.resize(length, 0);
        while let Some(rest @ [_, ..]) = self.payload.get_mut(self.filled - session::HEAD..) {
            match self.from.read(rest).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => self.filled += length,
            }
        }
        self.filled = 0;
        Ok(Some((channel, &self.payload)))
    }
}

/// Writes frames. Whoever writes one may be cancelled at any time: what is left of a frame that was begun goes out before
/// the next, so that the other side never sees half of one.
#[derive(Debug)]
pub struct FrameWriter<W> {
    to: W,
    /// The frame that was begun, and how much of it is written.
    begun: Vec<u8>,
    written: usize,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// A writer at the beginning of a frame.
    pub fn new(to: W) -> Self {
        Self {
            to,
            begun: Vec::new(),
            written: 0,
        }
    }

    /// Writes one frame: at most [`session::MAX_PAYLOAD`] bytes.
    pub async fn write(&mut self, channel: Channel, payload: &[u8]) -> io::Result<()> {
        let head = session::head(channel, payload.len()).map_err(io::Error::other)?;
        self.complete().await?;
        self.begun.clear();
        self.begun.extend_from_slice(&head);
        self.begun.extend_from_slice(payload);
        self.written = 0;
        self.complete().await?;
        self.to.flush().await
    }

    /// Writes bytes in as many frames as they need, at least one. When it is cancelled some of them are not sent.
    pub async fn write_all(&mut self, channel: Channel, bytes: &[u8]) -> io::Result<()> {
        let (mut piece, mut rest) = bytes.split_at(bytes.len().min(session::MAX_PAYLOAD));
        loop {
            self.write(channel, piece).await?;
            if rest.is_empty() {
                return Ok(());
            }
            (piece, rest) = rest.split_at(rest.len().min(session::MAX_PAYLOAD));
        }
    }

    /// Ends the connection in this direction.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.complete().await?;
        self.to.shutdown().await
    }

    /// Writes the rest of what was begun.
    async fn complete(&mut self) -> io::Result<()> {
        while let Some(rest @ [_, ..]) = self.begun.get(self.written..) {
            // As with reads, above.
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
    use std::time::Duration;

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
        for cut in [1, 3, 6] {
            assert!(FrameReader::new(&bytes[..cut]).next().await.is_err(), "{cut}");
        }
        assert!(FrameReader::new(&[9, 0, 0, 0][..]).next().await.is_err());
    }

    #[tokio::test]
    async fn long_input_is_cut_and_nothing_is_lost() {
        let long: Vec<u8> = (0..session::MAX_PAYLOAD * 2 + 5)
            .map(|n| n.to_le_bytes()[0])
            .collect();
        let mut bytes = Vec::new();
        let mut writer = FrameWriter::new(&mut bytes);
        writer.write_all(Channel::Stdin, &long).await.unwrap();
        writer.write_all(Channel::Alive, &[]).await.unwrap();
        let mut reader = FrameReader::new(bytes.as_slice());
        let (mut seen, mut frames) = (Vec::new(), 0);
        while let Some((channel, payload)) = reader.next().await.unwrap() {
            frames += 1;
            match channel {
                Channel::Stdin => seen.extend_from_slice(payload),
                other => assert_eq!((other, payload.len()), (Channel::Alive, 0)),
            }
        }
        assert!(seen == long);
        assert_eq!(frames, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_cancelled_leaves_whole_frames_on_both_sides() {
        // Less than a frame fits into the connection, so that both sides are cut off in the middle of one, again and again.
        let (near, far) = tokio::io::duplex(7);
        let sending = async {
            let mut writer = FrameWriter::new(near);
            let mut cancelled = 0;
            for number in 0..200_u8 {
                let payload = vec![number; usize::from(number)];
                let written = writer.write(Channel::Stdout, &payload);
                let patience = Duration::from_millis(u64::from(number) % 5);
                cancelled += usize::from(tokio::time::timeout(patience, written).await.is_err());
            }
            writer.shutdown().await.unwrap();
            cancelled
        };
        let receiving = async {
            let mut reader = FrameReader::new(far);
            let mut cancelled = 0;
            let mut seen = Vec::new();
            loop {
                match tokio::time::timeout(Duration::ZERO, reader.next()).await {
                    Ok(Ok(Some((channel, payload)))) => {
                        assert_eq!(channel, Channel::Stdout);
                        assert!(payload.iter().all(|byte| usize::from(*byte) == payload.len()));
                        seen.push(payload.len());
                    }
                    Ok(Ok(None)) => return (cancelled, seen),
                    Ok(Err(error)) => panic!("{error}"),
                    Err(_elapsed) => cancelled += 1,
                }
                // The writer gets stuck while nobody reads.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let (written, (read, seen)) = tokio::join!(sending, receiving);
        assert!(written > 10 && read > 10, "{written} and {read} were cancelled");
        assert!(seen.is_sorted() && seen.len() > 10, "{seen:?}");
    }
}
