//! End-to-end tests and the demonstration: the real daemons, registry, scanner and kubectl on this machine's
//! kernel. Start at [`cluster::Cluster`].

#![forbid(unsafe_code)]

pub mod cluster;
pub mod distribution;
pub mod host;
pub mod names;
pub mod shell;
