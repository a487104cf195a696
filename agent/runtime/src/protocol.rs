//! The language between agent and shim: one request and one response per connection (two for sessions),
//! each a JSON text after its length in four bytes, most significant first. Which unknown fields are an error: `config`.

use std::io::{self, Write};
use std::path::PathBuf;

use agent_sandbox::Layer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{ContainerConfig, ExecOutput, PodStatus};

/// Longest frame either side accepts. Two full streams of an exec session in base64 fit.
pub(crate) const MAX_FRAME: usize = 4 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    Status,
    /// Answered when the version is no longer `seen`.
    WaitChange {
        seen: u64,
    },
    /// `executables` come from the layers; see `agent_sandbox::ImageRuleset`.
    Start {
        config: Box<ContainerConfig>,
        executables: Vec<PathBuf>,
    },
    Signal {
        container: String,
        signal: i32,
    },
    Exec {
        container: String,
        argv: Vec<String>,
        timeout_ms: u64,
    },
    /// Starts a program whose streams the agent holds. Answered by `Opened`, and by `Ended` when it has ended; the agent
    /// ends it by closing the connection.
    Open {
        container: String,
        argv: Vec<String>,
        stdin: bool,
        tty: bool,
    },
    /// The same for the streams of the container's own program, which goes on when the connection is closed.
    Attach {
        container: String,
        stdin: bool,
    },
    /// A TCP socket in the pod's network namespace, not connected.
    Socket {
        ipv6: bool,
    },
    /// The pod's network namespace itself.
    Network,
    Remove {
        container: String,
    },
    /// Ends everything; answered last.
    Shutdown,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Response {
    Done,
    Status(PodStatus),
    Exec(ExecOutput),
    /// Descriptors come with the first byte of this frame, those that are here in this order.
    Opened(Streamed),
    Ended {
        code: i32,
    },
    Failed(Failure),
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    /// The layer of the sandbox for want of which it was not done.
    #[serde(default)]
    pub(crate) layer: Option<Layer>,
    #[serde(default)]
    pub(crate) phase: Phase,
}

/// What failed of a start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// What the node does before there is a program. The next try may do better.
    #[default]
    Preparation,
    /// The program cannot be executed.
    Execution,
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self {
            reason,
            layer: None,
            phase: Phase::Preparation,
        }
    }
}

impl From<&str> for Failure {
    fn from(reason: &str) -> Self {
        Self::from(reason.to_owned())
    }
}

/// Which descriptors come with a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Streamed {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) terminal: bool,
    pub(crate) socket: bool,
    pub(crate) network: bool,
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection broke.
    #[error("the connection broke")]
    Connection {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The announced or own length is beyond the bound.
    #[error("a frame of {length} bytes is too long")]
    TooLong {
        /// In bytes.
        length: usize,
    },
    /// Not the JSON that was expected.
    #[error("the frame's text is not valid")]
    Text {
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, value).map_err(|source| FrameError::Text { source })?;
    let length = frame.len() - 4;
    let header = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME);
    let header = header.ok_or(FrameError::TooLong { length })?;
    frame[..4].copy_from_slice(&header.to_be_bytes());
    Ok(frame)
}

/// The value of a whole frame at the start of `bytes`; none while more bytes are needed.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<T>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = frame_length(*header)?;
    match rest.get(..length) {
        Some(text) => serde_json::from_slice(text)
            .map(Some)
            .map_err(|source| FrameError::Text { source }),
        None => Ok(None),
    }
}

pub(crate) fn frame_length(header: [u8; 4]) -> Result<usize, FrameError> {
    let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if length <= MAX_FRAME {
        Ok(length)
    } else {
        Err(FrameError::TooLong { length })
    }
}

pub(crate) fn write_all(mut to: impl Write, bytes: &[u8]) -> Result<(), FrameError> {
    to.write_all(bytes)
        .map_err(|source| FrameError::Connection { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_split() {
        let request = Request::Exec {
            container: "a".into(),
            argv: vec!["x".into()],
            timeout_ms: 7,
        };
        let frame = encode(&request).expect("fits");
        for cut in 0..frame.len() {
            assert!(matches!(decode::<Request>(&frame[..cut]), Ok(None)), "at {cut}");
        }
        assert!(matches!(
            decode::<Request>(&frame),
            Ok(Some(Request::Exec { timeout_ms: 7, .. }))
        ));
    }

    fn framed(text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len()).expect("short");
        [&length.to_be_bytes(), text.as_bytes()].concat()
    }

    /// A shim of another version is understood as far as this one goes.
    #[test]
    fn what_a_shim_tells_may_have_more_fields() {
        use crate::config::ContainerState;
        let text = r#"{"status": {"version": 7, "netns": "/n", "holder_pid": 1, "shim_pid": 2, "later": 1, "containers": [
            {"name": "a", "attempt": 0, "later": {}, "stop_signal": 10,
             "state": {"running": {"pid": 3, "started_at": "2026-01-01T00:00:00Z", "later": []}},
             "sandbox": {"seccomp": {"verdict": "Enforced", "detail": "x", "later": 1},
                         "a-later-layer": {"verdict": "Enforced", "detail": "y"}}},
            {"name": "b", "attempt": 1,
             "state": {"exited": {"started_at": null, "finished_at": "2026-01-01T00:00:00Z", "code": 1, "signal": null,
                                  "oom_killed": false, "message": "", "later": null}}}]}}"#;
        let Ok(Some(Response::Status(status))) = decode(&framed(text)) else {
            panic!("{:?}", decode::<Response>(&framed(text)));
        };
        let [a, b] = status.containers.as_slice() else {
            panic!("{status:?}")
        };
        assert!(matches!(a.state, ContainerState::Running { pid: 3, .. }), "{a:?}");
        assert!(
            matches!(&b.state, ContainerState::Exited(exit) if exit.code == 1),
            "{b:?}"
        );
        let layers: Vec<_> = a.sandbox.0.keys().copied().collect();
        assert_eq!((a.stop_signal, layers), (10, vec![Layer::Seccomp]));
        for text in [
            r#"{"exec": {"code": 0, "stdout": "", "stderr": "", "truncated": false, "later": 1}}"#,
            r#"{"ended": {"code": 0, "later": 1}}"#,
            r#"{"failed": {"reason": "x", "later": 1}}"#,
            r#"{"opened": {"stdin": true, "stdout": true, "stderr": false, "terminal": false, "socket": false,
                "network": false, "later": false}}"#,
        ] {
            assert!(matches!(decode::<Response>(&framed(text)), Ok(Some(_))), "{text}");
        }
    }

    #[test]
    fn long_and_odd_frames_are_refused() {
        assert!(matches!(
            decode::<Request>(&u32::MAX.to_be_bytes()),
            Err(FrameError::TooLong { .. })
        ));
        assert!(matches!(
            decode::<Request>(b"\0\0\0\x02{}"),
            Err(FrameError::Text { .. })
        ));
        // What is asked for and not understood may be a restriction.
        let unknown = framed(r#"{"wait-change": {"seen": 1, "later": 2}}"#);
        assert!(matches!(
            decode::<Request>(&unknown),
            Err(FrameError::Text { .. })
        ));
    }
}
