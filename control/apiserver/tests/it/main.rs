//! The API server over real sockets, with a real store, real certificates and the real kubectl; only the
//! image gate and the node's agent are fakes, because they have tests of their own.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod agent_hop;
mod assertions;
mod certificates;
mod harness;
mod http_api;
mod kubectl;
mod policy;
mod services;
mod sessions;
mod tokens;
mod unauthorized;
