//! What who approves requests for certificates and who signs them have in common.

use jiff::Timestamp;
use k8s_openapi::{
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

/// The requests.
pub(crate) type Requests = Api<CertificateSigningRequest>;

/// Whether the request has the condition, whatever its status: what was refused in odd words is refused.
pub(crate) fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    conditions(request).any(|condition| condition.type_ == kind)
}

/// Whether it was approved, in so many words.
pub(crate) fn is_approved(request: &CertificateSigningRequest) -> bool {
    conditions(request).any(|condition| condition.type_ == "Approved" && condition.status == "True")
}

/// Whether somebody or something has said its last word about it.
pub(crate) fn is_answered(request: &CertificateSigningRequest) -> bool {
    let status = request.status.as_ref();
    let is_issued = status.is_some_and(|status| status.certificate.is_some());
    is_issued || ["Denied", "Failed"].iter().any(|kind| has(request, kind))
}

/// A status with one more condition.
pub(crate) fn with_condition(
    request: &CertificateSigningRequest,
    kind: &str,
    reason: &str,
    message: &str,
) -> Value {
    let now = Time(Timestamp::now());
    let mut conditions: Vec<_> = conditions(request).map(|condition| json!(condition)).collect();
    conditions.push(json!({
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastUpdateTime": now,
        "lastTransitionTime": now,
    }));
    json!({"conditions": conditions})
}

/// A patch of the status of the request as it was read, and of no other.
pub(crate) fn patch(request: &CertificateSigningRequest, status: &Value) -> Value {
    json!({
        "metadata": {"resourceVersion": request.resource_version(), "uid": request.uid()},
        "status": status,
    })
}

/// What came of a change of a request; false when it has to be tried again.
pub(crate) fn is_settled(name: &str, done: &Result<(), kube::Error>) -> bool {
    match done {
        Ok(()) => true,
        Err(kube::Error::Api(status)) if status.code == 404 => true,
        // The server knows better, as of a node that was deleted: asking again at once changes nothing.
        Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => {
            tracing::warn!(request = name, why = status.message, "request was not changed");
            true
        }
        Err(error) => {
            tracing::warn!(
                request = name,
                error = error as &dyn std::error::Error,
                "request was not changed"
            );
            false
        }
    }
}

fn conditions(
    request: &CertificateSigningRequest,
) -> impl Iterator<Item = &CertificateSigningRequestCondition> {
    let status = request.status.iter();
    status.flat_map(|status| status.conditions.iter().flatten())
}
