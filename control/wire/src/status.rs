//! `metav1.Status`: the body of every refusal, and of some successes. kubectl prints `message` and decides
//! by `reason`, so both follow Kubernetes word for word where a client can see the difference.

use std::fmt;

use api::resources::Resource;
use serde_json::{Value, json};

/// A refusal: HTTP code, machine-readable reason, message for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    code: u16,
    reason: &'static str,
    message: String,
    details: Option<Box<Details>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Details {
    name: String,
    group: String,
    kind: String,
    uid: String,
    causes: Vec<Cause>,
    retry_after_seconds: Option<u32>,
}

/// One problem with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable kind of problem.
    pub reason: CauseReason,
    /// Path of the field, such as `spec.containers[0].image`.
    pub field: String,
    /// What is wrong and what to do, without the path.
    pub message: String,
}

/// Kind of a [`Cause`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CauseReason {
    /// A field that must be there is not.
    Required,
    /// The value is malformed.
    Invalid,
    /// The value is not among the supported ones.
    NotSupported,
    /// The value is well-formed but must not stand there.
    Forbidden,
    /// The value occurs twice.
    Duplicate,
    /// The value is too long.
    TooLong,
    /// A disruption budget is used up.
    DisruptionBudget,
}

impl Status {
    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message.into())
    }

    /// 401: no valid client certificate.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized".to_owned())
    }

    /// 401: the client certificate is one of ours, and counts no more.
    pub fn revoked(why: impl fmt::Display) -> Self {
        Self::new(401, "Unauthorized", format!("Unauthorized: {why}"))
    }

    /// 403 about an object or collection; `message` is what the authorizer or the gate says after
    /// `pods "x" is forbidden: `.
    pub fn forbidden(resource: &Resource, name: &str, message: impl fmt::Display) -> Self {
        let qualified = qualified_plural(resource);
        let message = match name {
            "" => format!("{qualified} is forbidden: {message}"),
            name => format!("{qualified} {name:?} is forbidden: {message}"),
        };
        Self::new(403, "Forbidden", message).about(resource.group, resource.plural, name)
    }

    /// 403 about a path that is no resource.
    pub fn forbidden_path(message: impl fmt::Display) -> Self {
        Self::new(403, "Forbidden", format!("forbidden: {message}"))
    }

    /// 404: no such object.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::new(
            404,
            "NotFound",
            format!("{} {name:?} not found", qualified_plural(resource)),
        )
        .about(resource.group, resource.plural, name)
    }

    /// 404: no such route.
    pub fn no_route() -> Self {
        let message = "the server could not find the requested resource".to_owned();
        let mut status = Self::new(404, "NotFound", message);
        // kubectl looks into the details of every 404 and crashes where there are none.
        status.details_mut();
        status
    }

    /// 404: Kubernetes has such a route, this server does not.
    pub fn not_served(what: &str) -> Self {
        let mut status = Self::no_route();
        status.message = format!("{what} is not supported by this version");
        status
    }

    /// 405: the resource does not do that.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource".to_owned();
        Self::new(405, "MethodNotAllowed", message)
    }

    /// 405: the resource only shows what other objects say.
    pub fn read_only(resource: &Resource, source: &str) -> Self {
        let message = format!(
            "{} are computed from {source} and cannot be written: change those",
            resource.plural
        );
        Self::new(405, "MethodNotAllowed", message)
    }

    /// 406: none of the accepted media types can be served.
    pub fn not_acceptable(served: &[&str]) -> Self {
        let message = format!(
            "only the following media types are accepted: {}",
            served.join(", ")
        );
        Self::new(406, "NotAcceptable", message)
    }

    /// 409: an object of that name exists.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::new(
            409,
            "AlreadyExists",
            format!("{} {name:?} already exists", qualified_plural(resource)),
        )
        .about(resource.group, resource.plural, name)
    }

    /// 409: the object changed since it was read, or a precondition does not hold.
    pub fn conflict(resource: &Resource, name: &str, problem: impl fmt::Display) -> Self {
        let qualified = qualified_plural(resource);
        let message = format!("Operation cannot be fulfilled on {qualified} {name:?}: {problem}");
        Self::new(409, "Conflict", message).about(resource.group, resource.plural, name)
    }

    /// 409 of the optimistic lock, in the words that client libraries show.
    pub fn modified(resource: &Resource, name: &str) -> Self {
        let problem =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, problem)
    }

    /// 410: the revision is older than the history that is kept; list again.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message.into())
    }

    /// 413: the body is larger than [`crate::MAX_BODY_BYTES`].
    pub fn too_large() -> Self {
        let message = format!(
            "Request entity too large: limit is {} bytes",
            crate::MAX_BODY_BYTES
        );
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415: the body's media type is not understood.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message.into())
    }

    /// 422: the object is well-formed but not valid; one cause for each field.
    pub fn invalid(resource: &Resource, name: &str, causes: Vec<Cause>) -> Self {
        let list = match causes.as_slice() {
            [one] => one.to_string(),
            many => format!(
                "[{}]",
                many.iter().map(Cause::to_string).collect::<Vec<_>>().join(", ")
            ),
        };
        let kind = qualified(resource.kind, resource.group);
        let mut status = Self::new(422, "Invalid", format!("{kind} {name:?} is invalid: {list}")).about(
            resource.group,
            resource.kind,
            name,
        );
        status.details_mut().causes = causes;
        status
    }

    /// 422: the request is understood but cannot be carried out on this object.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message.into())
    }

    /// 429: too many requests in flight.
    pub fn too_many_requests(retry_after_seconds: u32) -> Self {
        let message = "too many requests in flight, please try again later".to_owned();
        let mut status = Self::new(429, "TooManyRequests", message);
        status.details_mut().retry_after_seconds = Some(retry_after_seconds);
        status
    }

    /// 429: as many of the kind as there may be. No time is named after which to ask again: clients would wait
    /// silently instead of showing the message.
    pub fn too_many(resource: &Resource, message: impl fmt::Display) -> Self {
        let message = format!("{} cannot be created: {message}", qualified_plural(resource));
        Self::new(429, "TooManyRequests", message).about(resource.group, resource.plural, "")
    }

    /// 429: a disruption budget does not let the pod go. Clients read it by its cause, and ask again.
    pub fn disruption_refused(cause: impl Into<String>, retry_after_seconds: Option<u32>) -> Self {
        let message = "Cannot evict pod as it would violate the pod's disruption budget.".to_owned();
        let mut status = Self::new(429, "TooManyRequests", message);
        let details = status.details_mut();
        details.retry_after_seconds = retry_after_seconds;
        details.causes = vec![Cause {
            reason: CauseReason::DisruptionBudget,
            field: String::new(),
            message: cause.into(),
        }];
        status
    }

    /// 500: something failed on our side. The message must not carry secrets.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(
            500,
            "InternalError",
            format!("Internal error occurred: {message}"),
        )
    }

    /// 503: a part that is needed is not there at the moment.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message.into())
    }

    /// 504: the request took longer than it may.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", message.into())
    }

    /// HTTP status code.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// Machine-readable reason, such as `NotFound`.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// Message for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The fields that an [`Status::invalid`] names.
    pub fn causes(&self) -> &[Cause] {
        self.details.as_ref().map_or(&[], |d| d.causes.as_slice())
    }

    /// Value of the `Retry-After` header, if one belongs to the answer.
    pub fn retry_after_seconds(&self) -> Option<u32> {
        self.details.as_ref().and_then(|d| d.retry_after_seconds)
    }

    /// The body.
    pub fn to_json(&self) -> Value {
        let mut body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(details) = &self.details {
            body["details"] = details.to_json();
        }
        body
    }

    fn new(code: u16, reason: &'static str, message: String) -> Self {
        Self {
            code,
            reason,
            message,
            details: None,
        }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        let details = self.details_mut();
        (details.group, details.kind, details.name) = (group.to_owned(), kind.to_owned(), name.to_owned());
        self
    }

    fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_default()
    }
}

/// 200 for a finished deletion: the `Status` that names what is gone.
pub fn deleted(resource: &Resource, name: &str, uid: &str) -> Value {
    let details = Details {
        name: name.to_owned(),
        group: resource.group.to_owned(),
        kind: resource.plural.to_owned(),
        uid: uid.to_owned(),
        ..Details::default()
    };
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details.to_json(),
    })
}

impl Cause {
    /// A field that must be there is not.
    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let message = if why.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {why}")
        };
        Self {
            reason: CauseReason::Required,
            field: field.into(),
            message,
        }
    }

    /// The value is malformed.
    pub fn invalid(field: impl Into<String>, value: impl fmt::Debug, why: impl fmt::Display) -> Self {
        let message = format!("Invalid value: {value:?}: {why}");
        Self {
            reason: CauseReason::Invalid,
            field: field.into(),
            message,
        }
    }

    /// The value is not one of `supported`.
    pub fn not_supported(field: impl Into<String>, value: impl fmt::Debug, supported: &[&str]) -> Self {
        let supported = supported
            .iter()
            .map(|s| format!("{s:?}"))
            .collect::<Vec<_>>()
            .join(", ");
        let message = format!("Unsupported value: {value:?}: supported values: {supported}");
        Self {
            reason: CauseReason::NotSupported,
            field: field.into(),
            message,
        }
    }

    /// The value must not stand there.
    pub fn forbidden(field: impl Into<String>, why: impl fmt::Display) -> Self {
        Self {
            reason: CauseReason::Forbidden,
            field: field.into(),
            message: format!("Forbidden: {why}"),
        }
    }

    /// The value occurs twice.
    pub fn duplicate(field: impl Into<String>, value: impl fmt::Debug) -> Self {
        let message = format!("Duplicate value: {value:?}");
        Self {
            reason: CauseReason::Duplicate,
            field: field.into(),
            message,
        }
    }

    /// The value is longer than `limit` bytes.
    pub fn too_long(field: impl Into<String>, limit: usize) -> Self {
        let message = format!("Too long: may not be more than {limit} bytes");
        Self {
            reason: CauseReason::TooLong,
            field: field.into(),
            message,
        }
    }
}

impl CauseReason {
    fn wire_name(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::Duplicate => "FieldValueDuplicate",
            Self::TooLong => "FieldValueTooLong",
            Self::DisruptionBudget => "DisruptionBudget",
        }
    }
}

impl Details {
    fn to_json(&self) -> Value {
        let mut details = serde_json::Map::new();
        for (key, value) in [
            ("name", &self.name),
            ("group", &self.group),
            ("kind", &self.kind),
            ("uid", &self.uid),
        ] {
            if !value.is_empty() {
                details.insert(key.to_owned(), json!(value));
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|cause| {
                json!({
                    "reason": cause.reason.wire_name(),
                    "message": cause.message,
                    "field": cause.field,
                })
            });
            details.insert("causes".to_owned(), causes.collect());
        }
        if let Some(seconds) = self.retry_after_seconds {
            details.insert("retryAfterSeconds".to_owned(), json!(seconds));
        }
        Value::Object(details)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {})", self.message, self.code, self.reason)
    }
}

impl std::error::Error for Status {}

/// `plural`, or `plural.group` outside the core group.
fn qualified_plural(resource: &Resource) -> String {
    qualified(resource.plural, resource.group)
}

fn qualified(word: &str, group: &str) -> String {
    if group.is_empty() {
        word.to_owned()
    } else {
        format!("{word}.{group}")
    }
}

#[cfg(test)]
mod tests {
    use api::resources::by_any_name;

    use super::*;

    #[test]
    fn messages_are_those_of_kubernetes() {
        let pods = by_any_name("pods").unwrap();
        let policies = by_any_name("netpol").unwrap();
        assert_eq!(Status::not_found(pods, "x").message(), r#"pods "x" not found"#);
        assert_eq!(
            Status::already_exists(policies, "x").message(),
            r#"networkpolicies.networking.k8s.io "x" already exists"#
        );
        assert_eq!(
            Status::forbidden(pods, "", "User \"u\" cannot list").message(),
            r#"pods is forbidden: User "u" cannot list"#
        );
        let one = Status::invalid(policies, "x", vec![Cause::required("spec", "")]);
        assert_eq!(
            one.message(),
            r#"NetworkPolicy.networking.k8s.io "x" is invalid: spec: Required value"#
        );
        let two = Status::invalid(
            pods,
            "x",
            vec![
                Cause::required("a", ""),
                Cause::invalid("b[0]", "v", "must be a number"),
            ],
        );
        assert_eq!(
            two.message(),
            r#"Pod "x" is invalid: [a: Required value, b[0]: Invalid value: "v": must be a number]"#
        );
    }

    #[test]
    fn bodies_carry_what_clients_read() {
        let pods = by_any_name("pods").unwrap();
        let body = Status::invalid(pods, "x", vec![Cause::forbidden("spec.hostPID", "no")]).to_json();
        assert_eq!(
            body,
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "Pod \"x\" is invalid: spec.hostPID: Forbidden: no",
                "reason": "Invalid", "code": 422,
                "details": {
                    "name": "x", "kind": "Pod",
                    "causes": [{
                        "reason": "FieldValueForbidden", "message": "Forbidden: no", "field": "spec.hostPID",
                    }],
                },
            })
        );
        assert_eq!(
            Status::too_many_requests(1).to_json()["details"],
            json!({"retryAfterSeconds": 1})
        );
        assert_eq!(
            deleted(pods, "x", "u")["details"],
            json!({"name": "x", "kind": "pods", "uid": "u"})
        );
    }
}
