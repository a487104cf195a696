//! A request that its caller may make, and what it led to.

use axum::body::Bytes;
use control_auth::{Authenticated, Authorized};
use control_wire::query::Parameters;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;

use crate::target::ResourceTarget;

/// A request for a resource that its caller may make.
pub(crate) struct Call {
    /// Who asks.
    pub(crate) who: Authenticated,
    /// Proof that the caller may do this.
    pub(crate) authorized: Authorized,
    /// What it is about.
    pub(crate) target: ResourceTarget,
    /// Query string.
    pub(crate) parameters: Parameters,
    /// `Content-Type`.
    pub(crate) content_type: Option<String>,
    /// `Accept`.
    pub(crate) accept: Option<String>,
    /// Body, read within its bound.
    pub(crate) body: Bytes,
    /// When it came.
    pub(crate) now: Timestamp,
}

/// What a request led to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// HTTP status code.
    pub(crate) code: StatusCode,
    /// Object, list or Status.
    pub(crate) object: Value,
    /// For `Warning` headers.
    pub(crate) warnings: Vec<String>,
}

impl Outcome {
    /// 200 with an object.
    pub(crate) fn ok(object: Value) -> Self {
        Self {
            code: StatusCode::OK,
            object,
            warnings: Vec::new(),
        }
    }
}
