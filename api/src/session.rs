//! The hop from the API server to an agent, for `exec`, `attach` and `port-forward`: what is asked for, and the frames
//! that both sides exchange once the connection was upgraded.
//!
//! Clients never speak this language. The API server translates theirs, so that an agent, which is root, parses
//! nothing that came from outside but these frames. A frame is a channel (one byte), a length (three bytes, most
//! significant first) and so many bytes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Value of the `Upgrade` header.
pub const PROTOCOL: &str = "palisade-session/1";

/// Header of the request that says what is asked for: a [`Request`] as JSON, in URL-safe base64 without padding.
pub const REQUEST_HEADER: &str = "palisade-session";

/// Most bytes of one frame, without its head.
pub const MAX_PAYLOAD: usize = 32 * 1024;

/// Bytes before the payload.
pub const HEAD: usize = 4;

/// Most bytes of all words of a command together.
pub const MAX_COMMAND_BYTES: usize = 32 * 1024;

/// Most words of a command.
pub const MAX_COMMAND_WORDS: usize = 1024;

/// How often either side says that it is there when it has nothing else to say.
pub const ALIVE_EVERY_SECONDS: u64 = 20;

/// What is asked of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Its uid: a new pod of the same name is another pod, and nobody was asked whether that may be entered.
    pub uid: String,
    /// What to do.
    pub action: Action,
}

/// What to do with a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Run a program in a container.
    Exec {
        /// Name of the container.
        container: String,
        /// Program and arguments.
        command: Vec<String>,
        /// Whether it gets input.
        stdin: bool,
        /// Whether it gets a terminal.
        tty: bool,
    },
    /// Follow a container's own program.
    Attach {
        /// Name of the container.
        container: String,
        /// Whether it gets input.
        stdin: bool,
    },
    /// Connect to a port of the pod's loopback.
    Forward {
        /// The port.
        port: u16,
    },
}

/// What a frame is about. Of [`Action::Forward`], the client's bytes are [`Channel::Stdin`] and the pod's
/// [`Channel::Stdout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Towards the pod.
    Stdin,
    /// From the pod.
    Stdout,
    /// From the pod.
    Stderr,
    /// From the agent, once and last: an [`Outcome`] as JSON.
    Outcome,
    /// To the agent: columns and rows, two bytes each, most significant first.
    Resize,
    /// To either: the channel named by the one byte of the payload has ended.
    Close,
    /// To either, with an empty payload: nothing, but that the other side is there.
    Alive,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// The program ended; of an attachment or a connection, it is over.
    Exited {
        /// Exit code, 128 + signal if a signal ended it.
        code: i32,
    },
    /// It could not begin or go on.
    Failed {
        /// Why, for people.
        message: String,
    },
}

/// A frame that breaks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No channel has this number.
    #[error("there is no channel {0}")]
    Channel(u8),
    /// Longer than [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
}

const CHANNELS: [Channel; 7] = [
    Channel::Stdin,
    Channel::Stdout,
    Channel::Stderr,
    Channel::Outcome,
    Channel::Resize,
    Channel::Close,
    Channel::Alive,
];

impl Channel {
    /// Its number in a frame.
    pub fn number(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Outcome => 3,
            Self::Resize => 4,
            Self::Close => 5,
            Self::Alive => 6,
        }
    }

    /// The channel of that number.
    pub fn of(number: u8) -> Result<Self, FrameError> {
        CHANNELS
            .get(usize::from(number))
            .copied()
            .ok_or(FrameError::Channel(number))
    }
}

impl fmt::Display for Action {
    /// For logs: which part of the pod, never the arguments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exec { container, .. } => write!(f, "exec in container {container}"),
            Self::Attach { container, .. } => write!(f, "attach to container {container}"),
            Self::Forward { port } => write!(f, "forward to port {port}"),
        }
    }
}

/// The head of a frame whose payload has `length` bytes.
pub fn head(channel: Channel, length: usize) -> Result<[u8; HEAD], FrameError> {
    let number = u32::try_from(length)
        .ok()
        .filter(|_| length <= MAX_PAYLOAD)
        .ok_or(FrameError::TooLong(length))?;
    let [_, high, middle, low] = number.to_be_bytes();
    Ok([channel.number(), high, middle, low])
}

/// Channel and length of the payload that a head announces.
pub fn parse_head(head: [u8; HEAD]) -> Result<(Channel, usize), FrameError> {
    let [channel, high, middle, low] = head;
    let channel = Channel::of(channel)?;
    let length = usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap_or(usize::MAX);
    if length <= MAX_PAYLOAD {
        Ok((channel, length))
    } else {
        Err(FrameError::TooLong(length))
    }
}

/// Payload of [`Channel::Resize`].
pub fn resize(columns: u16, rows: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (columns.to_be_bytes(), rows.to_be_bytes());
    [a, b, c, d]
}

/// Columns and rows, if it is a payload of [`Channel::Resize`].
pub fn parse_resize(payload: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = <[u8; 4]>::try_from(payload).ok()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_what_follows_and_nothing_long_or_unknown_follows() {
        for (number, channel) in (0_u8..).zip(CHANNELS) {
            assert_eq!(channel.number(), number);
            for length in [0, 1, 255, 256, MAX_PAYLOAD] {
                assert_eq!(parse_head(head(channel, length).unwrap()), Ok((channel, length)));
            }
        }
        assert_eq!(
            head(Channel::Stdin, MAX_PAYLOAD + 1),
            Err(FrameError::TooLong(MAX_PAYLOAD + 1))
        );
        assert!(parse_head([0, 255, 255, 255]).is_err());
        for number in 7..=255 {
            assert_eq!(parse_head([number, 0, 0, 0]), Err(FrameError::Channel(number)));
        }
    }

    #[test]
    fn sizes_of_terminals_survive() {
        assert_eq!(parse_resize(&resize(300, 50)), Some((300, 50)));
        for wrong in [&[][..], &[0; 3], &[0; 5]] {
            assert_eq!(parse_resize(wrong), None);
        }
    }

    #[test]
    fn requests_are_strict() {
        let text = r#"{"namespace":"a","pod":"p","uid":"u","action":{"forward":{"port":80}}}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert_eq!(request.action, Action::Forward { port: 80 });
        assert!(serde_json::from_str::<Request>(&text.replace("80", "80,\"host\":\"x\"")).is_err());
        assert!(serde_json::from_str::<Request>(&text.replace("80", "80000")).is_err());
    }
}
