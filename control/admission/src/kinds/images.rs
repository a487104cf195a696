//! Image policies and scans.

use api::{
    ImageRef,
    annotations::USER_APISERVER,
    palisade::{Exemption, ImagePolicy},
};
use control_wire::{Cause, Status};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::{AdmissionRequest, Problems, syntax};

/// Longest life of an exemption. One that never ends is a policy nobody wrote down.
const MAX_EXEMPTION: SignedDuration = SignedDuration::from_hours(366 * 24);

/// Longest reason, in bytes.
const MAX_REASON: usize = 1024;

pub(super) fn check_policy(request: &AdmissionRequest<'_>, object: &Value, problems: &mut Problems) {
    let policy: ImagePolicy = match serde_json::from_value(object.clone()) {
        Ok(policy) => policy,
        Err(error) => return problems.push(Cause::invalid("spec", "", error)),
    };
    // Exemptions that were there before may have expired since; only new ones must look ahead.
    let before: Vec<Exemption> = request
        .old
        .and_then(|old| serde_json::from_value::<ImagePolicy>(old.clone()).ok())
        .map_or_else(Vec::new, |old| old.spec.exemptions);
    let spec = policy.spec;
    for (index, namespace) in spec.namespaces.iter().enumerate() {
        problems.require(
            syntax::is_label(namespace),
            &format!("spec.namespaces[{index}]"),
            namespace,
            syntax::LABEL,
        );
    }
    for (index, registry) in spec.allowed_registries.iter().enumerate() {
        let why = "must be host[:port] or host[:port]/repository-prefix, without a scheme, such as registry.example:5000/team";
        problems.require(
            is_registry(registry),
            &format!("spec.allowedRegistries[{index}]"),
            registry,
            why,
        );
    }
    problems.require(
        spec.max_db_age_hours > 0,
        "spec.maxDbAgeHours",
        spec.max_db_age_hours,
        "must be greater than zero",
    );
    for (index, exemption) in spec.exemptions.iter().enumerate() {
        let field = format!("spec.exemptions[{index}]");
        check_exemption(exemption, &field, problems);
        if !before.contains(exemption) {
            check_expiry(
                exemption.expires,
                request.now,
                &format!("{field}.expires"),
                problems,
            );
        }
    }
}

/// Scans are evidence: only the gate writes them, whatever else a user may do.
pub(super) fn check_scan(request: &AdmissionRequest<'_>) -> Result<(), Status> {
    if request.user == USER_APISERVER {
        return Ok(());
    }
    let why = "image scans are written by the image gate only; create a pod, or run policyctl scan";
    Err(Status::forbidden(request.resource, request.name, why))
}

fn check_exemption(exemption: &Exemption, field: &str, problems: &mut Problems) {
    let id = &exemption.vulnerability;
    let is_id =
        !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    problems.require(
        is_id,
        &format!("{field}.vulnerability"),
        id,
        "must be one vulnerability id, such as CVE-2026-0001",
    );
    if exemption.reason.trim().is_empty() {
        problems.push(Cause::required(
            format!("{field}.reason"),
            "say why the finding is let through",
        ));
    }
    if exemption.reason.len() > MAX_REASON {
        problems.push(Cause::too_long(format!("{field}.reason"), MAX_REASON));
    }
    if let Some(package) = &exemption.package {
        let is_package = !package.is_empty() && !package.contains(char::is_whitespace);
        problems.require(
            is_package,
            &format!("{field}.package"),
            package,
            "must be a package name",
        );
    }
    if let Some(image) = &exemption.image {
        let is_name = image
            .parse::<ImageRef>()
            .is_ok_and(|parsed| parsed.name() == *image);
        problems.require(
            is_name,
            &format!("{field}.image"),
            image,
            "must be registry/repository, without tag and digest",
        );
    }
}

fn check_expiry(expires: Timestamp, now: Timestamp, field: &str, problems: &mut Problems) {
    let left = expires.duration_since(now);
    let text = expires.to_string();
    problems.require(left > SignedDuration::ZERO, field, &text, "must be in the future");
    problems.require(
        left <= MAX_EXEMPTION,
        field,
        &text,
        "must be at most 366 days ahead",
    );
}

fn is_registry(text: &str) -> bool {
    let host = text.split('/').next().unwrap_or_default();
    // Parsed as part of an image, so that the host must be one that an image can name.
    let image = if text.contains('/') {
        text.to_owned()
    } else {
        format!("{text}/x")
    };
    image.parse::<ImageRef>().is_ok_and(|image| {
        image.registry == host
            && image.tag.as_deref().is_none_or(|tag| tag == "latest")
            && image.digest.is_none()
    })
}
