//! Frames that a server sends.

use super::{CONTROL, FLAG_FIN, Headers, VERSION, headers::Deflater, kind};

/// Most bytes that one data frame of ours carries.
pub const MAX_DATA: usize = 32 * 1024;

/// Makes the frames that depend on those before them: headers are compressed over the whole connection.
#[derive(Debug)]
pub struct Encoder {
    deflater: Deflater,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// For a new connection.
    pub fn new() -> Self {
        Self {
            deflater: Deflater::new(),
        }
    }

    /// Accepts a stream; with `fin` only to close it.
    pub fn reply(&mut self, stream: u32, headers: &Headers, fin: bool) -> Vec<u8> {
        let mut payload = stream.to_be_bytes().to_vec();
        payload.extend_from_slice(&self.deflater.block(headers));
        control(kind::SYN_REPLY, if fin { FLAG_FIN } else { 0 }, &payload)
    }

    /// Opens a stream, as a client does. For tests of this side.
    pub fn open(&mut self, stream: u32, headers: &Headers) -> Vec<u8> {
        let mut payload = stream.to_be_bytes().to_vec();
        // Associated stream, priority and slot.
        payload.extend_from_slice(&[0; 6]);
        payload.extend_from_slice(&self.deflater.block(headers));
        control(kind::SYN_STREAM, 0, &payload)
    }
}

/// The head of a data frame with `length` bytes, at most [`MAX_DATA`].
pub fn data_head(stream: u32, length: usize, fin: bool) -> [u8; 8] {
    let length = u32::try_from(length.min(MAX_DATA)).unwrap_or_default();
    let ([a, b, c, d], [_, e, f, g]) = (stream.to_be_bytes(), length.to_be_bytes());
    [a, b, c, d, if fin { FLAG_FIN } else { 0 }, e, f, g]
}

/// Answers a ping.
pub fn ping(id: u32) -> Vec<u8> {
    control(kind::PING, 0, &id.to_be_bytes())
}

/// Ends a stream at once. The code is refused (3), cancelled (5) or another one of the draft.
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    let mut payload = stream.to_be_bytes().to_vec();
    payload.extend_from_slice(&code.to_be_bytes());
    control(kind::RST_STREAM, 0, &payload)
}

/// Ends the connection. `last` is the last stream that was accepted.
pub fn go_away(last: u32) -> Vec<u8> {
    let mut payload = last.to_be_bytes().to_vec();
    payload.extend_from_slice(&[0; 4]);
    control(kind::GOAWAY, 0, &payload)
}

fn control(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [_, version] = VERSION.to_be_bytes();
    let [high, low] = kind.to_be_bytes();
    // Payloads here are small by construction: a number or two, or headers of ours.
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    let mut frame = vec![CONTROL, version, high, low, flags, a, b, c];
    frame.extend_from_slice(payload);
    frame
}
