//! Requests for certificates.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use control_wire::Cause;
use serde_json::Value;

use crate::{AdmissionRequest, Problems, metadata::items};

/// Kubernetes' usages; the signers of nodes take few of them.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// Shortest lifetime that can be asked for, in seconds.
const SHORTEST: i64 = 600;
/// Longest request in base64: 16 KiB, which no key and no list of names comes near.
const MAX_REQUEST: usize = 22_000;
/// Longest object, so that nobody stores something else beside the request.
const MAX_OBJECT: usize = 32_000;
/// Conditions that are decided once.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];

pub(super) fn check(request: &AdmissionRequest<'_>, object: &Value, problems: &mut Problems) {
    match request.old {
        None => {
            check_spec(&object["spec"], problems);
            if object.to_string().len() > MAX_OBJECT {
                problems.push(Cause::too_long("metadata", MAX_OBJECT));
            }
        }
        Some(old) => {
            let why = "a request cannot be changed";
            problems.require(old["spec"] == object["spec"], "spec", "", why);
            check_decision(request.subresource, old, object, problems);
        }
    }
}

fn check_spec(spec: &Value, problems: &mut Problems) {
    let request = spec["request"].as_str().unwrap_or_default();
    let pem = STANDARD
        .decode(request)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let is_pem = pem.is_some_and(|pem| {
        pem.trim_start()
            .starts_with("-----BEGIN CERTIFICATE REQUEST-----")
    });
    problems.require(
        request.len() <= MAX_REQUEST,
        "spec.request",
        "",
        "must be no longer than 22000 characters",
    );
    problems.require(
        is_pem,
        "spec.request",
        "",
        "must be a PEM certificate signing request, in base64",
    );
    let signer = spec["signerName"].as_str().unwrap_or_default();
    let is_name = signer
        .split_once('/')
        .is_some_and(|(domain, path)| domain.contains('.') && !path.is_empty());
    problems.require(
        is_name,
        "spec.signerName",
        signer,
        "must be a fully qualified domain and path",
    );
    if items(&spec["usages"]).next().is_none() {
        problems.push(Cause::required("spec.usages", ""));
    }
    for (index, usage) in items(&spec["usages"]).enumerate() {
        let usage = usage.as_str().unwrap_or_default();
        if !USAGES.contains(&usage) {
            problems.push(Cause::not_supported(
                format!("spec.usages[{index}]"),
                usage,
                USAGES,
            ));
        }
    }
    if let Some(seconds) = spec["expirationSeconds"].as_i64() {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        problems.require(seconds >= SHORTEST, "spec.expirationSeconds", seconds, why);
    }
}

/// Who may approve need not be who signs: each has a subresource, and neither changes what the other said.
fn check_decision(subresource: &str, old: &Value, new: &Value, problems: &mut Problems) {
    let (before, after) = (decisions(old), decisions(new));
    if subresource == "approval" {
        let kept = before.keys().all(|kind| after.contains_key(kind));
        let why = "what was decided stays decided";
        problems.require(kept, "status.conditions", "", why);
    } else {
        let why = "only the approval subresource approves or denies";
        problems.require(before == after, "status.conditions", "", why);
    }
    let why = "Approved and Denied conditions are mutually exclusive";
    problems.require(after.len() < 2, "status.conditions", "", why);
}

fn decisions(request: &Value) -> BTreeMap<String, Value> {
    let decided = items(&request["status"]["conditions"]).filter_map(|condition| {
        let kind = condition["type"]
            .as_str()
            .filter(|kind| DECISIONS.contains(kind))?;
        Some((kind.to_owned(), condition.clone()))
    });
    decided.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(found: impl FnOnce(&mut Problems)) -> Vec<String> {
        let mut problems = Problems::default();
        found(&mut problems);
        problems.causes.into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn a_request_says_what_it_wants() {
        let pem = STANDARD.encode("-----BEGIN CERTIFICATE REQUEST-----\n...");
        let fine = json!({"request": pem, "signerName": "kubernetes.io/kubelet-serving", "usages": ["server auth"],
            "expirationSeconds": 600});
        assert_eq!(fields(|problems| check_spec(&fine, problems)), [] as [&str; 0]);
        for (field, value) in [
            ("request", json!("garbage")),
            ("signerName", json!("signer")),
            ("usages", json!([])),
            ("expirationSeconds", json!(599)),
        ] {
            let mut spec = fine.clone();
            spec[field] = value;
            assert_eq!(
                fields(|problems| check_spec(&spec, problems)),
                [format!("spec.{field}")]
            );
        }
    }

    #[test]
    fn signers_do_not_approve_and_decisions_stay() {
        let with = |kinds: &[&str]| {
            let conditions: Vec<Value> = kinds
                .iter()
                .map(|kind| json!({"type": kind, "status": "True"}))
                .collect();
            json!({"status": {"conditions": conditions}})
        };
        let found = |subresource: &str, old: &[&str], new: &[&str]| {
            fields(|problems| check_decision(subresource, &with(old), &with(new), problems)).len()
        };
        assert_eq!(found("approval", &[], &["Approved"]), 0);
        assert_eq!(found("status", &["Approved"], &["Approved", "Failed"]), 0);
        assert_eq!(found("status", &[], &["Approved"]), 1);
        assert_eq!(found("approval", &["Approved"], &[]), 1);
        assert_eq!(found("approval", &["Approved"], &["Approved", "Denied"]), 1);
    }
}
