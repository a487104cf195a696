//! The end of a pod by the node's own decision: it uses more than it may, or the node has too little left.
//!
//! Who decides that, and by which numbers, is the caller's matter; what follows is the same for all: containers get
//! the grace, nothing starts again, and the pod is `Failed` with the reason `Evicted`.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::Seen;

/// Why the node ends a pod, or never begins with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// It, or the node, has used up too much.
    Shortage,
    /// All pods go, since the node does.
    NodeEnds,
    /// The node did not begin with it.
    Refused {
        /// Kubernetes' word for the reason, such as `OutOfcpu`.
        reason: String,
    },
}

impl Cause {
    /// Reason of the pod's status.
    pub fn reason(&self) -> &str {
        match self {
            Self::Shortage => "Evicted",
            Self::NodeEnds => "Terminated",
            Self::Refused { reason } => reason,
        }
    }

    /// Reason of the event that tells of it.
    pub fn event(&self) -> &str {
        match self {
            Self::NodeEnds => "NodeShutdown",
            Self::Shortage | Self::Refused { .. } => self.reason(),
        }
    }
}

/// Why and how a pod is evicted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eviction {
    /// What kind of end it is.
    pub cause: Cause,
    /// What was used up, by how much, for people: the message of the pod's status.
    pub message: String,
    /// What containers get between the stop signal and the kill.
    pub grace: SignedDuration,
    /// When it was decided: what ends later has not completed.
    pub at: Timestamp,
}

/// Evicts a pod; the first reason stays. True if it was not evicted before: then it is news.
pub fn evict(seen: &mut Seen, eviction: Eviction) -> bool {
    let first = seen.eviction.is_none();
    seen.eviction.get_or_insert(eviction);
    first
}
