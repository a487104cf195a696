//! From the kernel's decisions to flow events that name pods and policies.
//!
//! A thread ([`Reader::start`]) takes records off the datapath's stream, names what is in them by [`Names`], and
//! gives the events to a [`Hub`], which writes them to a [`FlowLog`] and passes them on to whoever follows. What the
//! datapath finds out about flows later comes in by [`report`]. Every place where an event can be lost counts what it
//! loses, and says so in the stream.
//!
//! What the datapath counts becomes metrics by [`exposition`].
//!
//! The words that events use are listed in `docs/flows.md`. Non-goals: aggregating events, deciding.

#![forbid(unsafe_code)]

mod event;
mod history;
mod hub;
mod log;
mod logging;
mod metrics;
mod names;
mod opened;
mod reader;
mod rule_names;

pub use event::{Clock, flow_event};
pub use history::{History, Query};
pub use hub::{FOLLOWER_LAG, Follower, Hub};
pub use log::{FlowLog, LogConfig, LogError};
pub use logging::LogRules;
pub use metrics::{METRICS_MEDIA_TYPE, exposition};
pub use names::{Known, NamedEndpoint, Names, Snapshot};
pub use reader::{Reader, StartError, report};
