//! The checker through its public functions, held to the reference by brute force, and to a committed example.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod answers;
mod cases;
mod clusters;
mod example;
mod families;
mod hosts;
mod model;
mod names;
mod nodes;
mod offline;
mod recommending;
mod replays;
mod scale;
mod services;
