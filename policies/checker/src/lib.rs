//! Questions about all flows at once: what may reach what, what a change opens and closes, whether an assertion
//! holds, which rules never decide, and which policies would allow what was seen and nothing else.
//!
//! [`Model`] is the foundation: exact sets of flows for every pair of ends, from the verdicts of the compiler.
//! Everything else is a reading of it. A claim that does not hold comes with a packet that shows it, and the rules
//! that let the packet through.
//!
//! The crate is pure. Non-goals: judging single flows for a person (`policies_compiler::explain`), the kernel's
//! tables, files and the command line (`policies/policyctl`).

#![forbid(unsafe_code)]

pub mod assertion;
mod build;
pub mod cases;
mod classes;
pub mod connectivity;
pub mod difference;
mod judge;
mod model;
mod names;
mod naming;
mod nodes;
mod packet;
pub mod picture;
pub mod recommend;
pub mod region;
pub mod replay;
pub mod rules;
pub mod space;

pub use model::{Class, End, Model, SpaceId, Spot};
pub use packet::{Packet, Party, Place, Ruling};
