//! The API server over real sockets, with a real store, real certificates and the real kubectl; only the
//! image gate is a fake, because it has tests of its own.

mod harness;
mod http_api;
mod kubectl;
mod unauthorized;
