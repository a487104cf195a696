//! End-to-end tests: the real daemons, registry, scanner and kubectl on this machine's kernel.

#![forbid(unsafe_code)]

pub mod host;
