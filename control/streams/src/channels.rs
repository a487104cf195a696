//! Kubernetes' channels in WebSocket messages: the first byte of a message says which stream it belongs to.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

/// Largest message of a client. kubectl sends 32 KiB and a byte; base64 makes a third more of that.
pub const MAX_MESSAGE: usize = 256 * 1024;

/// Number of the channel that closes others, since version 5.
const CLOSE: u8 = 255;

/// A subprotocol that a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Name as it stands in `Sec-WebSocket-Protocol`; empty for clients that name none.
    pub name: &'static str,
    /// Whether messages are text with base64 behind the channel, instead of binary.
    pub base64: bool,
    /// Whether a stream can be closed alone.
    pub closes: bool,
    /// Whether the error channel carries a Status object; otherwise only the text of an error.
    pub status: bool,
}

/// All that are served, the best first.
pub const VERSIONS: &[Version] = &[
    version("v5.channel.k8s.io", false, true, true),
    version("v4.channel.k8s.io", false, false, true),
    version("v4.base64.channel.k8s.io", true, false, true),
    version("channel.k8s.io", false, false, false),
    version("base64.channel.k8s.io", true, false, false),
    // What the oldest clients do: no name at all.
    version("", false, false, false),
];

const fn version(name: &'static str, base64: bool, closes: bool, status: bool) -> Version {
    Version {
        name,
        base64,
        closes,
        status,
    }
}

/// A stream of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// To the pod.
    Stdin,
    /// From the pod.
    Stdout,
    /// From the pod.
    Stderr,
    /// From the server: how it ended.
    Error,
    /// To the pod: sizes of the terminal.
    Resize,
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Bytes for standard input.
    Stdin(Vec<u8>),
    /// The terminal's size: columns and rows.
    Resize(u16, u16),
    /// No more input will come.
    StdinClosed,
    /// Nothing that means anything: an empty message, or a stream closed that the client only reads.
    Nothing,
}

/// A message that breaks the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The client wrote to a channel that it may only read, or that does not exist.
    #[error("clients do not write to channel {0}")]
    Channel(u8),
    /// A text message where binary ones were agreed on, or the other way round.
    #[error("the message is of the wrong kind for the subprotocol")]
    Kind,
    /// Not base64.
    #[error("the message is not base64")]
    Base64,
    /// Not a size of a terminal.
    #[error("the size of the terminal is not understood")]
    Resize,
    /// More than one channel in a message that closes one, or closing before version 5.
    #[error("the message that closes a channel is not understood")]
    Close,
}

impl Version {
    /// The best version that a client offers. A client that offers names of which none is served gets none.
    pub fn choose(offered: &[&str]) -> Option<&'static Self> {
        if offered.is_empty() {
            return VERSIONS.last();
        }
        let mut named = VERSIONS.iter().filter(|version| !version.name.is_empty());
        named.find(|version| offered.contains(&version.name))
    }

    /// What a client's message says. `text` is whether it came as a text message.
    pub fn parse(&self, message: &[u8], text: bool) -> Result<Said, ChannelError> {
        if text != self.base64 {
            return Err(ChannelError::Kind);
        }
        let Some((channel, payload)) = message.split_first() else {
            return Ok(Said::Nothing);
        };
        // In text the channel is a digit.
        let channel = match self.base64 {
            true => channel
                .checked_sub(b'0')
                .filter(|digit| *digit < 10)
                .ok_or(ChannelError::Channel(*channel))?,
            false => *channel,
        };
        let payload = match self.base64 {
            true => STANDARD.decode(payload).map_err(|_base64| ChannelError::Base64)?,
            false => payload.to_vec(),
        };
        match channel {
            0 if payload.is_empty() => Ok(Said::Nothing),
            0 => Ok(Said::Stdin(payload)),
            4 => resize(&payload).map(|(columns, rows)| Said::Resize(columns, rows)),
            CLOSE if self.closes => match payload.as_slice() {
                [0] => Ok(Said::StdinClosed),
                [1..=4] => Ok(Said::Nothing),
                _ => Err(ChannelError::Close),
            },
            other => Err(ChannelError::Channel(other)),
        }
    }

    /// A message that carries `bytes` of `stream`; text if the version is one of base64.
    pub fn message(&self, stream: Stream, bytes: &[u8]) -> Vec<u8> {
        let number = stream.number();
        if self.base64 {
            let mut message = vec![b'0' + number];
            message.extend_from_slice(STANDARD.encode(bytes).as_bytes());
            return message;
        }
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(number);
        message.extend_from_slice(bytes);
        message
    }
}

impl Stream {
    fn number(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Error => 3,
            Self::Resize => 4,
        }
    }
}

/// Columns and rows of `{"Width":80,"Height":24}`, as every version and SPDY write it.
pub fn resize(text: &[u8]) -> Result<(u16, u16), ChannelError> {
    let size: Value = serde_json::from_slice(text).map_err(|_json| ChannelError::Resize)?;
    let side = |name: &str| {
        let number = size.get(name).and_then(Value::as_u64);
        number
            .and_then(|number| u16::try_from(number).ok())
            .ok_or(ChannelError::Resize)
    };
    Ok((side("Width")?, side("Height")?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(name: &str) -> &'static Version {
        VERSIONS.iter().find(|version| version.name == name).unwrap()
    }

    #[test]
    fn the_best_offer_is_taken_and_an_unknown_one_is_not() {
        let choose = |offered: &[&str]| Version::choose(offered).map(|version| version.name);
        assert_eq!(
            choose(&["channel.k8s.io", "v5.channel.k8s.io"]),
            Some("v5.channel.k8s.io")
        );
        assert_eq!(choose(&["base64.channel.k8s.io"]), Some("base64.channel.k8s.io"));
        assert_eq!(choose(&[]), Some(""));
        assert_eq!(choose(&["v9.channel.k8s.io"]), None);
        assert_eq!(choose(&[""]), None);
    }

    #[test]
    fn messages_are_read_as_kubectl_writes_them() {
        let v5 = named("v5.channel.k8s.io");
        assert_eq!(v5.parse(b"\0ls\n", false), Ok(Said::Stdin(b"ls\n".to_vec())));
        assert_eq!(v5.parse(b"\xff\0", false), Ok(Said::StdinClosed));
        assert_eq!(
            v5.parse(b"\x04{\"Width\":100,\"Height\":30}\n", false),
            Ok(Said::Resize(100, 30))
        );
        assert_eq!(v5.parse(b"", false), Ok(Said::Nothing));
        assert_eq!(v5.parse(b"\0", true), Err(ChannelError::Kind));
        for channel in [1, 2, 3, 5, 254] {
            assert_eq!(
                v5.parse(&[channel, 0], false),
                Err(ChannelError::Channel(channel))
            );
        }
        let v4 = named("v4.channel.k8s.io");
        assert_eq!(v4.parse(b"\xff\0", false), Err(ChannelError::Channel(255)));
        let text = named("v4.base64.channel.k8s.io");
        assert_eq!(text.parse(b"0bHM=", true), Ok(Said::Stdin(b"ls".to_vec())));
        assert_eq!(text.parse(b"0b!", true), Err(ChannelError::Base64));
        assert_eq!(text.message(Stream::Stderr, b"ls"), b"2bHM=");
    }

    #[test]
    fn odd_sizes_are_refused() {
        for text in [
            "",
            "{}",
            "{\"Width\":-1,\"Height\":1}",
            "{\"Width\":70000,\"Height\":1}",
            "[1,2]",
        ] {
            assert_eq!(resize(text.as_bytes()), Err(ChannelError::Resize), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_message_is_answered(version in 0..VERSIONS.len(), text: bool, message: Vec<u8>) {
            drop(VERSIONS[version].parse(&message, text));
        }

        #[test]
        fn input_survives(base64: bool, bytes in proptest::collection::vec(any::<u8>(), 1..100)) {
            let version = named(if base64 { "base64.channel.k8s.io" } else { "channel.k8s.io" });
            let message = version.message(Stream::Stdin, &bytes);
            prop_assert_eq!(version.parse(&message, base64), Ok(Said::Stdin(bytes)));
        }
    }
}
