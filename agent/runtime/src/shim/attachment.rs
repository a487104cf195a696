//! Clients that follow a container's output live. The log comes first: a client that does not read slows the
//! container down for a while, as a terminal would, and is then let go.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::protocol::Response;
use crate::shim::conversation::Conversation;

/// How long a client may take to make room for what waits.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// One client of one container.
#[derive(Debug)]
pub(crate) struct Attachment {
    conversation: Conversation,
    /// Copies of standard output and standard error.
    copies: [Copy; 2],
}

/// A pipe to a client, and what did not fit into it. Bounded by what one read of the container's output takes, or, at the
/// container's end, by what its pipe still held.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    pipe: Option<File>,
    pending: Vec<u8>,
    stalled: Option<Instant>,
}

impl Copy {
    /// A copy, and the reading end for the client.
    pub(crate) fn new() -> Result<(Self, OwnedFd), Errno> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let copy = Self {
            pipe: Some(write.into()),
            ..Self::default()
        };
        Ok((copy, read))
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.pipe.is_some() {
            self.pending.extend_from_slice(bytes);
            self.flush();
        }
    }

    fn flush(&mut self) {
        while let Some(pipe) = self.pipe.as_mut().filter(|_| !self.pending.is_empty()) {
            match pipe.write(&self.pending) {
                Ok(written) => {
                    self.pending.drain(..written);
                    // A byte now and then is no progress: the container waits until all has gone.
                    if self.pending.is_empty() {
                        self.stalled = None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stalled.get_or_insert_with(Instant::now);
                    return;
                }
                // Nobody reads it any more.
                Err(_) => self.close(),
            }
        }
    }

    fn close(&mut self) {
        *self = Self::default();
    }
}

impl Attachment {
    pub(crate) fn new(conversation: Conversation, copies: [Copy; 2]) -> Self {
        Self { conversation, copies }
    }

    /// Passes on what the container wrote to its `stream`th output.
    pub(crate) fn write(&mut self, stream: usize, bytes: &[u8]) {
        if let Some(copy) = self.copies.get_mut(stream) {
            copy.write(bytes);
        }
    }

    /// Whether the container has to wait before it may write more to its `stream`th output.
    pub(crate) fn is_full(&self, stream: usize) -> bool {
        self.copies
            .get(stream)
            .is_some_and(|copy| !copy.pending.is_empty())
    }

    /// When it will have stalled for too long.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let stalled = self.copies.iter().filter_map(|copy| copy.stalled);
        stalled.min().map(|since| since + PATIENCE)
    }

    /// For `poll`: readable when the client is gone.
    pub(crate) fn client(&self) -> BorrowedFd<'_> {
        self.conversation.fd()
    }

    /// For `poll`: writable when something that waits fits.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let waiting = self.copies.iter().filter(|copy| !copy.pending.is_empty());
        waiting.filter_map(|copy| copy.pipe.as_ref().map(AsFd::as_fd))
    }

    /// Goes on with what waits. `ended` is the container's exit code once it has ended. False when it is over.
    pub(crate) fn advance(&mut self, ended: Option<i32>) -> bool {
        if self.conversation.is_over() {
            return false;
        }
        for copy in &mut self.copies {
            copy.flush();
            if ended.is_some() && copy.pending.is_empty() {
                copy.close();
            }
        }
        if self.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            let reason = format!("output was not read for {} s", PATIENCE.as_secs());
            let _client_may_be_gone = self.conversation.say(&Response::Failed(reason.into()));
            return false;
        }
        match ended {
            Some(code) if self.copies.iter().all(|copy| copy.pipe.is_none()) => {
                let _client_may_be_gone = self.conversation.say(&Response::Ended { code });
                false
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn what_does_not_fit_waits_and_nothing_is_lost() {
        let (mut copy, read) = Copy::new().expect("a pipe");
        let text: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        copy.write(&text);
        assert!(copy.stalled.is_some() && !copy.pending.is_empty());
        let mut read = File::from(read);
        let mut seen = Vec::new();
        let since = copy.stalled;
        while seen.len() < text.len() {
            assert!(
                copy.pending.is_empty() || copy.stalled == since,
                "dripping is no progress"
            );
            let mut chunk = [0; 50_000];
            let length = read.read(&mut chunk).expect("there is more");
            seen.extend_from_slice(&chunk[..length]);
            copy.flush();
        }
        assert!(seen == text && copy.stalled.is_none());
        drop(read);
        copy.write(b"x");
        assert!(copy.pipe.is_none() && copy.pending.is_empty(), "nobody reads");
    }
}
