//! Bytes of a client into events.

use super::{CONTROL, FLAG_FIN, Headers, MAX_CONTROL, SpdyError, VERSION, headers::Inflater, kind};

/// Bytes of a frame's head.
const HEAD: usize = 8;

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// It opens a stream, and closes its side at once with `fin`.
    Open {
        /// Number of the stream.
        stream: u32,
        /// Its headers.
        headers: Headers,
        /// Whether nothing will follow.
        fin: bool,
    },
    /// Bytes of a stream: a whole frame or the part of it that was there.
    Data {
        /// Number of the stream.
        stream: u32,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// It has closed its side of a stream.
    End {
        /// Number of the stream.
        stream: u32,
    },
    /// It gives a stream up.
    Reset {
        /// Number of the stream.
        stream: u32,
    },
    /// To be answered with the same number.
    Ping {
        /// The number.
        id: u32,
    },
    /// It will open no more streams.
    GoAway,
}

/// The decoder of one connection.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Of the frame that is being received: its head, or its whole payload if it is a control frame.
    received: Vec<u8>,
    inflater: Inflater,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Head,
    Control { kind: u16, flags: u8, length: usize },
    Data { stream: u32, left: usize, fin: bool },
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// For a new connection.
    pub fn new() -> Self {
        Self {
            state: State::Head,
            received: Vec::new(),
            inflater: Inflater::new(),
        }
    }

    /// Takes bytes from the front of `input` until there is an event or nothing is left.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, SpdyError> {
        loop {
            match self.state {
                State::Head => {
                    if !self.fill(input, HEAD) {
                        return Ok(None);
                    }
                    self.state = head(&self.received)?;
                    self.received.clear();
                }
                State::Data { stream, left: 0, fin } => {
                    self.state = State::Head;
                    if fin {
                        return Ok(Some(Event::End { stream }));
                    }
                }
                State::Data { .. } if input.is_empty() => return Ok(None),
                State::Data { stream, left, fin } => {
                    let (bytes, rest) = input.split_at(left.min(input.len()));
                    *input = rest;
                    let left = left - bytes.len();
                    self.state = State::Data { stream, left, fin };
                    return Ok(Some(Event::Data { stream, bytes }));
                }
                State::Control { kind, flags, length } => {
                    if !self.fill(input, length) {
                        return Ok(None);
                    }
                    let payload = std::mem::take(&mut self.received);
                    self.state = State::Head;
                    if let Some(event) = self.control(kind, flags, &payload)? {
                        return Ok(Some(event));
                    }
                }
            }
        }
    }

    /// Moves bytes until `wanted` are received. False while there are fewer.
    fn fill(&mut self, input: &mut &[u8], wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.received.len());
        let (bytes, rest) = input.split_at(missing.min(input.len()));
        self.received.extend_from_slice(bytes);
        *input = rest;
        self.received.len() >= wanted
    }

    fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<Option<Event<'static>>, SpdyError> {
        let wrong = || SpdyError::Length(kind);
        let (number, rest) = match kind {
            kind::SYN_STREAM
            | kind::RST_STREAM
            | kind::PING
            | kind::GOAWAY
            | kind::HEADERS
            | kind::WINDOW_UPDATE => {
                let (number, rest) = payload.split_first_chunk::<4>().ok_or_else(wrong)?;
                (u32::from_be_bytes(*number), rest)
            }
            // Hints about the client's limits, none of which a server here comes near.
            kind::SETTINGS => return Ok(None),
            other => return Err(SpdyError::Kind(other)),
        };
        match kind {
            kind::SYN_STREAM => {
                // Clients open odd streams; the highest bit is reserved.
                if number % 2 == 0 || number >> 31 != 0 {
                    return Err(SpdyError::Stream(number));
                }
                let (_associated_and_priority, block) = rest.split_first_chunk::<6>().ok_or_else(wrong)?;
                let headers = self.inflater.headers(block)?;
                Ok(Some(Event::Open {
                    stream: number,
                    headers,
                    fin: flags & FLAG_FIN != 0,
                }))
            }
            // More headers mean nothing to Kubernetes, but the compression goes on over them.
            kind::HEADERS => {
                self.inflater.headers(rest)?;
                Ok((flags & FLAG_FIN != 0).then_some(Event::End { stream: number }))
            }
            kind::RST_STREAM if rest.len() == 4 => Ok(Some(Event::Reset { stream: number })),
            kind::PING if rest.is_empty() => Ok(Some(Event::Ping { id: number })),
            kind::GOAWAY if rest.len() == 4 => Ok(Some(Event::GoAway)),
            kind::WINDOW_UPDATE if rest.len() == 4 => Ok(None),
            _ => Err(wrong()),
        }
    }
}

fn head(received: &[u8]) -> Result<State, SpdyError> {
    let head = received
        .first_chunk::<HEAD>()
        .ok_or(SpdyError::TooLong(received.len()))?;
    let [a, b, c, d, flags, e, f, g] = *head;
    let length = usize::try_from(u32::from_be_bytes([0, e, f, g])).unwrap_or(usize::MAX);
    if a & CONTROL == 0 {
        let stream = u32::from_be_bytes([a, b, c, d]);
        if stream == 0 {
            return Err(SpdyError::Stream(stream));
        }
        return Ok(State::Data {
            stream,
            left: length,
            fin: flags & FLAG_FIN != 0,
        });
    }
    let version = u16::from_be_bytes([a & !CONTROL, b]);
    if version != VERSION {
        return Err(SpdyError::Version(version));
    }
    if length > MAX_CONTROL {
        return Err(SpdyError::TooLong(length));
    }
    Ok(State::Control {
        kind: u16::from_be_bytes([c, d]),
        flags,
        length,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::encode::{self, Encoder},
        *,
    };

    /// What the events say, with data joined, so that it does not depend on how the bytes were cut.
    fn told(pieces: &[&[u8]]) -> Result<Vec<String>, SpdyError> {
        let mut decoder = Decoder::new();
        let mut told: Vec<String> = Vec::new();
        for piece in pieces {
            let mut input = *piece;
            while let Some(event) = decoder.next(&mut input)? {
                match event {
                    Event::Data { stream, bytes } => {
                        let text = String::from_utf8_lossy(bytes);
                        let start = format!("data {stream}: ");
                        match told.last_mut().filter(|last| last.starts_with(&start)) {
                            Some(last) => last.push_str(&text),
                            None => told.push(start + &text),
                        }
                    }
                    other => told.push(format!("{other:?}")),
                }
            }
            assert!(input.is_empty());
        }
        Ok(told)
    }

    fn conversation() -> Vec<u8> {
        let mut encoder = Encoder::new();
        let mut bytes = encoder.open(1, &Headers::of([("streamType", "error")]));
        bytes.extend(encoder.open(3, &Headers::of([("streamType", "stdin")])));
        bytes.extend(encode::data_head(3, 5, true));
        bytes.extend_from_slice(b"hello");
        bytes.extend(encode::ping(7));
        bytes.extend(encode::reset(1, 5));
        bytes.extend(encode::go_away(0));
        bytes
    }

    #[test]
    fn a_conversation_is_understood_however_it_is_cut() {
        let bytes = conversation();
        let whole = told(&[&bytes]).unwrap();
        assert_eq!(whole.len(), 7, "{whole:?}");
        assert!(whole[0].contains("stream: 1") && whole[0].contains("(\"streamtype\", \"error\")"));
        assert_eq!(whole[2], "data 3: hello");
        assert_eq!(
            whole[3..],
            [
                "End { stream: 3 }",
                "Ping { id: 7 }",
                "Reset { stream: 1 }",
                "GoAway"
            ]
        );
        for cut in 0..bytes.len() {
            let (front, back) = bytes.split_at(cut);
            assert_eq!(told(&[front, back]).unwrap(), whole, "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(told(&single).unwrap(), whole);
    }

    #[test]
    fn what_breaks_the_rules_ends_the_connection() {
        let mut even = Encoder::new().open(1, &Headers::default());
        even[11] = 2;
        let mut old = conversation();
        old[1] = 2;
        let cases: [(&[u8], &str); 7] = [
            (&even, "no stream 2"),
            (&old, "version 2"),
            (&[0x80, 3, 0, 1, 0, 255, 255, 255], "too long"),
            (&[0, 0, 0, 0, 0, 0, 0, 1], "no stream 0"),
            (&[0x80, 3, 0, 6, 0, 0, 0, 5, 0, 0, 0, 0, 0], "wrong length"),
            (&[0x80, 3, 0, 2, 0, 0, 0, 0], "type 2"),
            (b"GET / HTTP/1.1\r\n", ""),
        ];
        for (bytes, expected) in cases {
            match told(&[bytes]) {
                Err(error) => assert!(error.to_string().contains(expected), "{error} for {bytes:?}"),
                // Text that happens to look like the head of data: nothing follows from it.
                Ok(told) => assert!(expected.is_empty() && told.len() <= 1, "{told:?} for {bytes:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_and_little_is_kept(bytes: Vec<u8>, flips in proptest::collection::vec((0_usize..200, any::<u8>()), 0..4)) {
            let _random = told(&[&bytes]);
            let mut damaged = conversation();
            for (position, value) in flips {
                let position = position % damaged.len();
                damaged[position] = value;
            }
            let mut decoder = Decoder::new();
            let mut input = damaged.as_slice();
            while let Ok(Some(_)) = decoder.next(&mut input) {}
            prop_assert!(decoder.received.len() <= MAX_CONTROL);
        }
    }
}
