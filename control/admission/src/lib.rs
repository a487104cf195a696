//! Admission: what may be stored. Fills in defaults, checks the object, and hands out [`Admitted`], the only
//! thing that the API server stores. Pure: objects in, object or refusal out.
//!
//! The rule for pods is that a field is honoured or refused, never ignored: [`pod`] has a list of all fields
//! that the agent honours, and everything else is refused with its path. Fields that the types of a later
//! Kubernetes will bring are refused until they are put on the list. (Fields that the types do not have at
//! all never get here: decoding refuses them, or drops them with a warning, as `fieldValidation` asks.)
//!
//! Non-goals: who may ask (`control/auth`), the form of a body (`control/wire`), identity, deletion marks and
//! generation (`control/apiserver`), judging images (`scanner/gate`; [`pin_images`] only writes down what it
//! found, and [`admit`] refuses pods without that).
//!
//! Start at [`admit`].

#![forbid(unsafe_code)]

mod kinds;
mod metadata;
mod pins;
mod pod;
mod shape;
mod syntax;

use api::resources::Resource;
use control_wire::{Cause, Status, decode, query::FieldValidation};
use jiff::Timestamp;
use serde_json::Value;

pub use kinds::{TIERED, built_in_objects, refuse_deletion, tier_of};
pub use pins::{CONTAINER_LISTS, Pin, pin_images};
pub use pod::{TOKEN_VOLUME_PREFIX, account_of, mount_token};

/// Largest object that is stored, in bytes of JSON.
pub const MAX_OBJECT_BYTES: usize = 1536 * 1024;

/// What is about to be stored, and for whom.
#[derive(Debug, Clone)]
pub struct AdmissionRequest<'a> {
    /// What happens to the object.
    pub operation: Operation,
    /// Its row in the table of resources.
    pub resource: &'static Resource,
    /// Subresource that was addressed, such as `status`; empty for the object itself.
    pub subresource: &'a str,
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// The stored object, for an update.
    pub old: Option<&'a Value>,
    /// The object as it shall be, decoded and with the server's own metadata.
    pub new: Value,
    /// User who asks.
    pub user: &'a str,
    /// Time of the request.
    pub now: Timestamp,
}

/// What happens to an object. Deletions need no admission: they add nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It comes into being.
    Create,
    /// It, or a part of it, changes.
    Update,
}

/// An object that may be stored. Made by [`admit`] alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Admitted {
    object: Value,
}

impl Admitted {
    /// The object, with defaults.
    pub fn object(&self) -> &Value {
        &self.object
    }

    /// The object, with defaults.
    pub fn into_object(self) -> Value {
        self.object
    }
}

/// Defaults and checks everything. A pod must have been through the image gate: see [`pin_images`].
pub fn admit(request: &AdmissionRequest<'_>) -> Result<Admitted, Status> {
    let object = complete(request)?;
    if request.resource.kind == "Pod" && matches!(request.subresource, "" | "ephemeralcontainers") {
        pins::require(&object)?;
    }
    Ok(Admitted { object })
}

/// The same without the demand that images are pinned, and without the right to store anything: for refusing
/// a pod before its images are fetched and scanned.
pub fn review(request: &AdmissionRequest<'_>) -> Result<(), Status> {
    complete(request).map(|_object| ())
}

fn complete(request: &AdmissionRequest<'_>) -> Result<Value, Status> {
    // Typed once more: what follows may rely on the types, and what is stored has the fields of its kind only,
    // wherever the object came from.
    let mut object = decode::patched(
        request.resource,
        None,
        request.new.clone(),
        FieldValidation::Strict,
    )?
    .object;
    kinds::default(request, &mut object);
    let mut problems = Problems::default();
    metadata::check(request, &object, &mut problems);
    kinds::check(request, &object, &mut problems)?;
    let size = object.to_string().len();
    if size > MAX_OBJECT_BYTES {
        problems.push(Cause::too_long("", MAX_OBJECT_BYTES));
    }
    if problems.causes.is_empty() {
        return Ok(object);
    }
    let name = match request.name {
        "" => object
            .pointer("/metadata/generateName")
            .and_then(Value::as_str)
            .unwrap_or_default(),
        name => name,
    };
    Err(Status::invalid(request.resource, name, problems.causes))
}

/// Problems found so far, bounded: a hostile object must not make a huge answer.
#[derive(Debug, Default)]
struct Problems {
    causes: Vec<Cause>,
}

impl Problems {
    const MAX: usize = 50;

    fn push(&mut self, cause: Cause) {
        if self.causes.len() < Self::MAX {
            self.causes.push(cause);
        }
    }

    /// Notes a problem with `field` unless `ok`.
    fn require(&mut self, ok: bool, field: &str, value: impl std::fmt::Debug, why: &str) {
        if !ok {
            self.push(Cause::invalid(field, value, why));
        }
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "bodies are written as literals")]
mod tests;
