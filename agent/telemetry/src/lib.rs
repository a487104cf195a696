//! From the kernel's decisions to flow events that name pods and policies.
//!
//! A thread ([`Reader::start`]) takes records off the datapath's stream, names what is in them by [`Names`], and
//! gives the events to a [`Hub`]: some recent ones are kept, and whoever follows gets the rest as they come. Every
//! place where an event can be lost counts what it loses, and says so in the stream.
//!
//! The words that events use are listed in `docs/flows.md`. Non-goals: storing events, aggregating them, deciding.

#![forbid(unsafe_code)]

mod event;
mod hub;
mod names;
mod reader;

pub use event::{Clock, flow_event};
pub use hub::{Follower, Hub, HubLimits, Item};
pub use names::{Names, Snapshot};
pub use reader::{Reader, StartError};
