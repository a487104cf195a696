//! What a node has seen a container do, as it answers `pods/learn`.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Longest time of learning, in seconds.
pub const MAX_SECONDS: u64 = 24 * 60 * 60;

/// What was seen of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Learned {
    /// When looking began, by the node's clock, as the times of its flows are.
    pub started: Timestamp,
    /// How long was looked, in milliseconds.
    pub millis: u64,
    /// Runs of the container that were looked at.
    pub runs: u32,
    /// Those of them that were looked at from the first instruction of the program on.
    pub starts: u32,
    /// Whether processes were seen to be another user than the one that the container is started as.
    pub changes_user: bool,
    /// Names of the system calls that were made and let through; of those without a name the number.
    pub calls: BTreeSet<String>,
    /// Capabilities that were used, such as `CAP_CHOWN`; absent if the node's kernel does not tell.
    pub capabilities: Option<BTreeSet<String>>,
    /// Files that were opened, as the container names them.
    pub files: LearnedFiles,
    /// TCP ports.
    pub ports: LearnedPorts,
    /// What was not seen.
    pub lost: Lost,
}

/// Files by how they were opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LearnedFiles {
    /// For reading; directories to be listed.
    pub read: BTreeSet<String>,
    /// For writing; also sockets that were bound by these names, and directories that were made with what was written in them.
    pub write: BTreeSet<String>,
    /// To be executed.
    pub execute: BTreeSet<String>,
}

/// Ports of the container's sockets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LearnedPorts {
    /// Those that somebody listened on.
    pub bind: BTreeSet<u16>,
    /// Those of the other end of connections that were made.
    pub connect: BTreeSet<u16>,
}

/// What was not seen. A profile that is made of the rest may refuse what the container does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Lost {
    /// Times the kernel's queue of file events was full, with an unknown number of events each.
    pub file_overflows: u64,
    /// Events about files whose names could not be found out, or beyond what is kept.
    pub file_events: u64,
    /// Mounts of the container that could not be watched.
    pub mounts: BTreeSet<String>,
    /// Whether calls or capabilities were made for which there is no place.
    pub calls: bool,
    /// Whether sockets could not be read at some time.
    pub sockets: u64,
}

impl Lost {
    /// Whether nothing was lost.
    pub fn is_nothing(&self) -> bool {
        self == &Self::default()
    }
}
