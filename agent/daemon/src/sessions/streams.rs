//! The descriptors of a session as asynchronous streams.

use std::{
    io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use agent_runtime::Session;
use api::session::Channel;
use rustix::termios::Winsize;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd},
    net::unix::pipe,
};

use super::{Ending, Input, Output, Streams};

/// The outer end of a terminal. Clones are the same terminal.
#[derive(Clone)]
pub(super) struct Terminal(Arc<AsyncFd<OwnedFd>>);

/// Makes streams of what the runtime hands out.
pub(super) fn of(session: Session, wants_input: bool) -> io::Result<Streams> {
    let Session {
        stdin,
        stdout,
        stderr,
        terminal,
        end,
    } = session;
    let terminal = terminal.map(Terminal::new).transpose()?;
    let output = |descriptor: OwnedFd| -> io::Result<Output> {
        Ok(Output {
            rest: Some(descriptor.try_clone()?),
            stream: Box::new(pipe::Receiver::from_owned_fd(descriptor)?),
        })
    };
    let mut outputs = Vec::new();
    match (stdout, &terminal) {
        (Some(stdout), _) => outputs.push((Channel::Stdout, output(stdout)?)),
        (None, Some(terminal)) => {
            let output = Output {
                rest: Some(terminal.0.get_ref().try_clone()?),
                stream: Box::new(terminal.clone()),
            };
            outputs.push((Channel::Stdout, output));
        }
        (None, None) => {}
    }
    if let Some(stderr) = stderr {
        outputs.push((Channel::Stderr, output(stderr)?));
    }
    let input = match (stdin, &terminal) {
        (Some(stdin), _) => Some(Box::new(pipe::Sender::from_owned_fd(stdin)?) as Input),
        (None, Some(terminal)) => Some(Box::new(terminal.clone()) as Input),
        (None, None) => None,
    };
    Ok(Streams {
        input: input.filter(|_| wants_input),
        outputs,
        terminal,
        end: Ending::Program(end),
    })
}

impl Terminal {
    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "unsound only for types that lie about their descriptor; OwnedFd does not"
        )]
        let descriptor = AsyncFd::new(descriptor)?;
        Ok(Self(Arc::new(descriptor)))
    }

    /// Tells the programs on the terminal how large it is.
    pub(super) fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        if let Err(error) = rustix::termios::tcsetwinsize(self.0.get_ref(), size) {
            tracing::debug!(%error, "terminal not resized");
        }
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let read = ready.try_io(|terminal| {
                rustix::io::read(terminal.get_ref(), buffer.initialize_unfilled()).map_err(io::Error::from)
            });
            match read {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // No program holds the terminal any more.
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_not_ready) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            let written = ready
                .try_io(|terminal| rustix::io::write(terminal.get_ref(), bytes).map_err(io::Error::from));
            if let Ok(written) = written {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A terminal has no end of input; programs on it are told by a key.
    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
