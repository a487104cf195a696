//! SPDY/3.1 (draft 3), as much of it as Kubernetes' clients speak: they open streams, the server never does; nobody sends
//! flow-control windows, though they are understood.
//!
//! [`Decoder`] turns bytes into [`Event`]s; the functions of [`encode`] make frames. What a peer can make us keep is one
//! control frame, the window of its header compression and nothing of data, which is handed on as it comes.

mod decode;
pub mod encode;
mod headers;

pub use decode::{Decoder, Event};
pub use headers::{HeaderError, Headers};

/// Protocol version in control frames. SPDY/3.1 calls itself 3.
const VERSION: u16 = 3;

/// Largest payload of a control frame. The largest that kubectl sends has some 100 bytes.
pub const MAX_CONTROL: usize = 16 * 1024;

/// Set in the first byte of control frames.
const CONTROL: u8 = 0x80;

/// The last frame of a stream in this direction.
const FLAG_FIN: u8 = 1;

/// Types of control frames.
mod kind {
    pub(super) const SYN_STREAM: u16 = 1;
    pub(super) const SYN_REPLY: u16 = 2;
    pub(super) const RST_STREAM: u16 = 3;
    pub(super) const SETTINGS: u16 = 4;
    pub(super) const PING: u16 = 6;
    pub(super) const GOAWAY: u16 = 7;
    pub(super) const HEADERS: u16 = 8;
    pub(super) const WINDOW_UPDATE: u16 = 9;
}

/// What breaks a connection.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    /// Another version of the protocol, or not the protocol.
    #[error("the client speaks SPDY version {0}, not 3")]
    Version(u16),
    /// A control frame beyond [`MAX_CONTROL`].
    #[error("a control frame of {0} bytes is too long")]
    TooLong(usize),
    /// A frame whose length does not fit its type.
    #[error("a control frame of type {0} has the wrong length")]
    Length(u16),
    /// A frame for stream 0, or a client's stream with an even number.
    #[error("there can be no stream {0}")]
    Stream(u32),
    /// A frame that only servers send, or one that draft 3 does not have.
    #[error("clients do not send control frames of type {0}")]
    Kind(u16),
    /// Headers that do not decode.
    #[error("the headers of a stream")]
    Headers(#[from] HeaderError),
}
