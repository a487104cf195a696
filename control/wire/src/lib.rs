//! The Kubernetes API on the wire, as pure functions over JSON values: what a request body, header or query
//! string means, and what an answer looks like. Checked against kubectl 1.27 to 1.33 and kube-rs.
//!
//! Non-goals: sockets and routing (`control/apiserver`), who may do what (`control/auth`), what an object
//! must contain beyond its schema (`control/admission`), server-side apply (answered with 415).
//!
//! A request goes through [`negotiate`] (headers), [`query`] (URL parameters), then [`decode`] (JSON or
//! protobuf body to a pruned JSON value) or [`patch`]. Answers are plain JSON, a [`table`], [`discovery`]
//! and [`openapi`] documents, or a [`Status`].

#![forbid(unsafe_code)]

pub mod age;
pub mod decode;
pub mod discovery;
mod json;
pub mod negotiate;
pub mod openapi;
pub mod patch;
#[cfg(test)]
mod properties;
pub mod protobuf;
pub mod query;
pub mod selector;
pub mod status;
pub mod table;
mod typed;
pub mod version;

pub use status::{Cause, CauseReason, Status};

/// Largest request body that is read, in bytes. Kubernetes' own limit.
pub const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;
