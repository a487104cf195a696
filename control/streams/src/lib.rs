//! The protocols in which clients of the Kubernetes API run `exec`, `attach` and `port-forward`: Kubernetes' channels in
//! WebSocket messages, and SPDY/3.1.
//!
//! Pure: bytes in, events out, and the other way round; no sockets, no clock. Everything here is fed by clients, so every
//! buffer has a bound and what is not understood is an error that ends the session. WebSocket frames themselves are
//! `tungstenite`'s; for SPDY/3.1, which the world has given up and kubectl has not, there is no library that is kept.
//!
//! Start at [`channels::Version`] for WebSocket and [`spdy::Decoder`] for SPDY.

#![forbid(unsafe_code)]

pub mod channels;
pub mod outcome;
pub mod spdy;
