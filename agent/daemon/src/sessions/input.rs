//! What comes from the other side of a session: input for the program, and words about the session, which do not wait for a
//! program that does not read.

use std::collections::VecDeque;

use api::session::{self, Channel};
use api_frames::FrameReader;
use tokio::io::{AsyncRead, AsyncWriteExt as _};

use super::{Activity, Input, streams::Terminal};

/// Input that is kept for a program that does not read. From then on nothing more is read of the connection, and its
/// other side waits.
const MAX_UNREAD: usize = 64 * 1024;

/// From the other side to the pod, until the other side is gone or breaks the rules.
pub(super) async fn take_in<R: AsyncRead + Unpin>(
    reader: R,
    input: Option<Input>,
    terminal: Option<Terminal>,
    activity: Activity,
) {
    let mut reader = FrameReader::new(reader);
    let mut unread = Unread {
        input,
        bytes: VecDeque::new(),
        ends: false,
    };
    loop {
        let frame = tokio::select! {
            frame = reader.next(), if unread.bytes.len() < MAX_UNREAD => frame,
            () = unread.give(), if unread.is_some() => continue,
        };
        let Ok(Some((channel, payload))) = frame else {
            return;
        };
        match channel {
            Channel::Stdin => {
                activity.note();
                unread.add(payload);
            }
            Channel::Close => unread.ends |= payload == [Channel::Stdin.number()],
            Channel::Resize => {
                if let (Some(terminal), Some((columns, rows))) = (&terminal, session::parse_resize(payload)) {
                    terminal.resize(columns, rows);
                }
            }
            Channel::Alive => {}
            Channel::Stdout | Channel::Stderr | Channel::Outcome => return,
        }
    }
}

/// Input that the program has not read yet.
struct Unread {
    /// Nothing for a program that takes none (any more): it goes on without.
    input: Option<Input>,
    bytes: VecDeque<u8>,
    /// There is no more behind.
    ends: bool,
}

impl Unread {
    fn add(&mut self, bytes: &[u8]) {
        if self.input.is_some() && !self.ends {
            self.bytes.extend(bytes);
        }
    }

    /// Whether there is something to give.
    fn is_some(&self) -> bool {
        self.input.is_some() && (self.ends || !self.bytes.is_empty())
    }

    /// Gives what the program takes now, or the end. Nothing is lost when that is cut short.
    async fn give(&mut self) {
        let Some(input) = &mut self.input else { return };
        let (bytes, _behind) = self.bytes.as_slices();
        let given = match bytes.is_empty() {
            true => input.shutdown().await.map(|()| 0),
            false => input.write(bytes).await,
        };
        match given {
            Ok(length) if length > 0 => drop(self.bytes.drain(..length)),
            // Its end, or the program's.
            Ok(_) | Err(_) => {
                self.input = None;
                self.bytes.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::OwnedFd, time::Duration};

    use api_frames::FrameWriter;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_program_that_does_not_read_keeps_no_terminal_from_being_resized() {
        let terminal = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/ptmx");
        let terminal = OwnedFd::from(terminal.unwrap());
        let seen = terminal.try_clone().unwrap();
        let terminal = Terminal::new(terminal).unwrap();
        let (input, mut program) = tokio::io::duplex(16);
        let (near, far) = tokio::io::duplex(1024);
        let taking = take_in(far, Some(Box::new(input)), Some(terminal), Activity::new());
        let taking = tokio::spawn(taking);
        let mut frames = FrameWriter::new(near);
        let text: Vec<u8> = (0..10_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        frames.write_all(Channel::Stdin, &text).await.unwrap();
        frames
            .write(Channel::Close, &[Channel::Stdin.number()])
            .await
            .unwrap();
        frames
            .write(Channel::Resize, &session::resize(101, 37))
            .await
            .unwrap();
        let resized = async {
            while rustix::termios::tcgetwinsize(&seen).unwrap().ws_col != 101 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, resized).await.expect("resized");
        // All of it comes, in order, and its end, once the program reads.
        let mut read = Vec::new();
        let reading = tokio::time::timeout(PATIENCE, program.read_to_end(&mut read));
        reading.await.expect("an end").unwrap();
        assert_eq!(read, text);
        drop(frames);
        tokio::time::timeout(PATIENCE, taking)
            .await
            .expect("an end")
            .unwrap();
    }

    #[tokio::test]
    async fn what_nobody_reads_is_bounded() {
        let (input, _program) = tokio::io::duplex(16);
        let (near, far) = tokio::io::duplex(1024);
        let taking = tokio::spawn(take_in(far, Some(Box::new(input)), None, Activity::new()));
        let mut frames = FrameWriter::new(near);
        let all = frames.write_all(Channel::Stdin, &[b'x'; 4 * MAX_UNREAD]);
        tokio::time::timeout(Duration::from_millis(300), all)
            .await
            .expect_err("the other side waits");
        taking.abort();
    }
}
