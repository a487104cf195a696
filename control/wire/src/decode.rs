//! Request bodies to JSON objects that have exactly the fields of their kind: parsed (JSON or protobuf),
//! typed, pruned, and with the unknown and duplicate fields refused or reported as `fieldValidation` asks.

use api::{
    calico,
    cluster_policy::ClusterNetworkPolicy,
    host_paths::HostPathGrant,
    palisade::{ImagePolicy, ImageScan, PolicyAssertion, SandboxProfile},
    resources::{Resource, Subresource},
};
use k8s_openapi::api::{
    authentication::v1::{SelfSubjectReview, TokenRequest, TokenReview},
    authorization::v1::SelfSubjectAccessReview,
    certificates::v1::CertificateSigningRequest,
    coordination::v1::Lease,
    core::v1::{
        Binding, ConfigMap, Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret,
        Service, ServiceAccount,
    },
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    policy::v1::{Eviction, PodDisruptionBudget},
    storage::v1::StorageClass,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{
    Status, json,
    negotiate::BodyForm,
    protobuf,
    query::{FieldValidation, Parameters},
    typed,
};

/// An object as it came, with only the fields of its kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object, with `apiVersion` and `kind`.
    pub object: Value,
    /// One text for each `Warning` header.
    pub warnings: Vec<String>,
}

/// What a delete asks for, from its body and its URL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Seconds that a pod gets to end; absent means the pod's own choice.
    pub grace_period_seconds: Option<i64>,
    /// The object must have this UID.
    pub uid: Option<String>,
    /// The object must be at this revision.
    pub resource_version: Option<String>,
    /// Whether everything but the write happens.
    pub dry_run: bool,
    /// What happens to dependents; absent means what the object's finalizers say, or else [`Propagation::Background`].
    pub propagation: Option<Propagation>,
}

/// `propagationPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Dependents are deleted after the object.
    Background,
    /// The object goes after its dependents.
    Foreground,
    /// Dependents stay.
    Orphan,
}

/// Decodes the body of a create or update. `subresource` decides the kind when it is not the resource's own.
pub fn object(
    resource: &Resource,
    subresource: Option<&Subresource>,
    form: BodyForm,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let kind = subresource.map_or(resource.kind, |sub| sub.kind);
    let api_version = match subresource.and_then(Subresource::group_version) {
        Some((group, version)) => format!("{group}/{version}"),
        None => resource.api_version(),
    };
    let (mut value, duplicates) = parse(form, body)?;
    if kind == "TokenRequest"
        && let Some(members) = value.as_object_mut()
    {
        // Clients send the answer's part empty, with a null where the type has a time.
        members.remove("status");
    }
    typed_object(&api_version, kind, value, duplicates, validation)
}

/// Decodes what a patch made of an object, so that a patch cannot bring in what a body could not.
pub fn patched(
    resource: &Resource,
    subresource: Option<&Subresource>,
    value: Value,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let kind = subresource.map_or(resource.kind, |sub| sub.kind);
    typed_object(&resource.api_version(), kind, value, Vec::new(), validation)
}

/// Decodes the options of a delete; the body may be empty. Where both say something, the body counts.
pub fn delete_options(form: BodyForm, body: &[u8], parameters: &Parameters) -> Result<DeleteOptions, Status> {
    let value = if body.is_empty() {
        Value::Object(Map::new())
    } else {
        parse(form, body)?.0
    };
    let kind = value
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or("DeleteOptions");
    if kind != "DeleteOptions" {
        return Err(Status::bad_request(format!(
            "the body of a delete must be DeleteOptions, not {kind}"
        )));
    }
    let (options, _unknown) =
        typed::read::<k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions>(&without_type(value))
            .map_err(|error| Status::bad_request(format!("DeleteOptions cannot be decoded: {error}")))?;
    let preconditions = options.preconditions.unwrap_or_default();
    let grace = match options.grace_period_seconds {
        Some(seconds) => Some(seconds),
        None => parameters.number("gracePeriodSeconds")?,
    };
    if let Some(seconds) = grace.filter(|seconds| *seconds < 0) {
        return Err(Status::bad_request(format!(
            "gracePeriodSeconds {seconds} must not be negative"
        )));
    }
    let dry_run = match options.dry_run.unwrap_or_default().as_slice() {
        [] => parameters.dry_run()?,
        values if values.iter().all(|value| value == "All") => true,
        _ => return Err(Status::bad_request("dryRun must be All")),
    };
    let policy = options.propagation_policy;
    let policy = policy.as_deref().or_else(|| parameters.text("propagationPolicy"));
    let propagation = match (
        policy.filter(|policy| !policy.is_empty()),
        options.orphan_dependents,
    ) {
        (None, None) => None,
        // The older form.
        (None, Some(true)) | (Some("Orphan"), None) => Some(Propagation::Orphan),
        (None, Some(false)) | (Some("Background"), None) => Some(Propagation::Background),
        (Some("Foreground"), None) => Some(Propagation::Foreground),
        (Some("Background" | "Foreground" | "Orphan"), Some(_)) => {
            let message = "orphanDependents and propagationPolicy may not be set both";
            return Err(Status::bad_request(message));
        }
        (Some(other), _) => {
            let expected = "must be Background, Foreground or Orphan";
            return Err(Status::bad_request(format!(
                "propagationPolicy {other:?} {expected}"
            )));
        }
    };
    Ok(DeleteOptions {
        grace_period_seconds: grace,
        uid: preconditions.uid.filter(|uid| !uid.is_empty()),
        resource_version: preconditions
            .resource_version
            .filter(|version| !version.is_empty()),
        dry_run,
        propagation,
    })
}

fn parse(form: BodyForm, body: &[u8]) -> Result<(Value, Vec<String>), Status> {
    if body.len() > crate::MAX_BODY_BYTES {
        return Err(Status::too_large());
    }
    match form {
        BodyForm::Json => json::parse(body).map_err(|error| {
            Status::bad_request(format!("the body of the request is not valid JSON: {error}"))
        }),
        BodyForm::Protobuf => match protobuf::decode(body) {
            Ok(value) => Ok((value, Vec::new())),
            Err(error @ protobuf::ProtobufError::Kind { .. }) => {
                Err(Status::unsupported_media_type(error.to_string()))
            }
            Err(error) => Err(Status::bad_request(error.to_string())),
        },
    }
}

fn typed_object(
    api_version: &str,
    kind: &str,
    mut value: Value,
    duplicates: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    claim_type(&mut value, api_version, kind)?;
    let version = api_version.rsplit('/').next().unwrap_or_default();
    let refuse = |problem: String| {
        Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {problem}"
        ))
    };
    let (object, unknown) = retype(api_version, kind, &value).map_err(|error| refuse(error.to_string()))?;
    let unknown = unknown.into_iter().map(|path| format!("unknown field {path:?}"));
    let duplicate = duplicates
        .into_iter()
        .map(|path| format!("duplicate field {path:?}"));
    let warnings: Vec<String> = unknown.chain(duplicate).collect();
    match validation {
        FieldValidation::Strict if !warnings.is_empty() => {
            Err(refuse(format!("strict decoding error: {}", warnings.join(", "))))
        }
        FieldValidation::Strict | FieldValidation::Warn => Ok(Decoded { object, warnings }),
        FieldValidation::Ignore => Ok(Decoded {
            object,
            warnings: Vec::new(),
        }),
    }
}

/// Fills in a missing `apiVersion` and `kind`; other ones than those of the route are refused.
fn claim_type(value: &mut Value, api_version: &str, kind: &str) -> Result<(), Status> {
    let Value::Object(map) = value else {
        return Err(Status::bad_request(
            "the body of the request must be a JSON object",
        ));
    };
    for (key, expected, what) in [("apiVersion", api_version, "API version"), ("kind", kind, "kind")] {
        match map.get(key).map(|value| value.as_str().unwrap_or_default()) {
            None | Some("") => {
                map.insert(key.to_owned(), Value::from(expected));
            }
            Some(found) if found == expected => {}
            Some(found) => {
                return Err(Status::bad_request(format!(
                    "the {what} in the data ({found}) does not match the expected {what} ({expected})"
                )));
            }
        }
    }
    Ok(())
}

/// Through the type of the kind and back. A kind without a type cannot be written.
fn retype(api_version: &str, kind: &str, value: &Value) -> Result<(Value, Vec<String>), typed::TypeError> {
    match (api_version, kind) {
        ("v1", "Binding") => round_trip::<Binding>(value),
        ("v1", "ConfigMap") => round_trip::<ConfigMap>(value),
        ("v1", "Event") => round_trip::<Event>(value),
        ("v1", "Namespace") => round_trip::<Namespace>(value),
        ("v1", "Node") => round_trip::<Node>(value),
        ("v1", "PersistentVolume") => round_trip::<PersistentVolume>(value),
        ("v1", "PersistentVolumeClaim") => round_trip::<PersistentVolumeClaim>(value),
        ("v1", "Pod") => round_trip::<Pod>(value),
        ("v1", "Secret") => round_trip::<Secret>(value),
        ("v1", "Service") => round_trip::<Service>(value),
        ("v1", "ServiceAccount") => round_trip::<ServiceAccount>(value),
        ("authentication.k8s.io/v1", "SelfSubjectReview") => round_trip::<SelfSubjectReview>(value),
        ("authentication.k8s.io/v1", "TokenRequest") => round_trip::<TokenRequest>(value),
        ("authentication.k8s.io/v1", "TokenReview") => round_trip::<TokenReview>(value),
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview") => {
            round_trip::<SelfSubjectAccessReview>(value)
        }
        ("certificates.k8s.io/v1", "CertificateSigningRequest") => {
            round_trip::<CertificateSigningRequest>(value)
        }
        ("coordination.k8s.io/v1", "Lease") => round_trip::<Lease>(value),
        ("discovery.k8s.io/v1", "EndpointSlice") => round_trip::<EndpointSlice>(value),
        ("networking.k8s.io/v1", "NetworkPolicy") => round_trip::<NetworkPolicy>(value),
        ("policy/v1", "Eviction") => round_trip::<Eviction>(value),
        ("policy/v1", "PodDisruptionBudget") => round_trip::<PodDisruptionBudget>(value),
        ("storage.k8s.io/v1", "StorageClass") => round_trip::<StorageClass>(value),
        ("palisade.dev/v1alpha1", "HostPathGrant") => round_trip::<HostPathGrant>(value),
        ("palisade.dev/v1alpha1", "ImagePolicy") => round_trip::<ImagePolicy>(value),
        ("palisade.dev/v1alpha1", "ImageScan") => round_trip::<ImageScan>(value),
        ("palisade.dev/v1alpha1", "PolicyAssertion") => round_trip::<PolicyAssertion>(value),
        ("palisade.dev/v1alpha1", "SandboxProfile") => round_trip::<SandboxProfile>(value),
        (api::cluster_policy::API_VERSION, "ClusterNetworkPolicy") => {
            round_trip::<ClusterNetworkPolicy>(value)
        }
        (calico::API_VERSION, kind) => retype_calico(kind, value),
        _ => Err(serde::de::Error::custom("no such kind")),
    }
}

fn retype_calico(kind: &str, value: &Value) -> Result<(Value, Vec<String>), typed::TypeError> {
    match kind {
        "FelixConfiguration" => round_trip::<calico::FelixConfiguration>(value),
        "GlobalNetworkPolicy" => round_trip::<calico::GlobalNetworkPolicy>(value),
        "GlobalNetworkSet" => round_trip::<calico::GlobalNetworkSet>(value),
        "HostEndpoint" => round_trip::<calico::HostEndpoint>(value),
        "NetworkPolicy" => round_trip::<calico::NetworkPolicy>(value),
        "NetworkSet" => round_trip::<calico::NetworkSet>(value),
        "Profile" => round_trip::<calico::Profile>(value),
        "StagedGlobalNetworkPolicy" => round_trip::<calico::StagedGlobalNetworkPolicy>(value),
        "StagedKubernetesNetworkPolicy" => round_trip::<calico::StagedKubernetesNetworkPolicy>(value),
        "StagedNetworkPolicy" => round_trip::<calico::StagedNetworkPolicy>(value),
        "Tier" => round_trip::<calico::Tier>(value),
        _ => Err(serde::de::Error::custom("no such kind")),
    }
}

fn round_trip<T: DeserializeOwned + Serialize>(
    value: &Value,
) -> Result<(Value, Vec<String>), typed::TypeError> {
    let (object, unknown) = typed::read::<T>(value)?;
    let object = serde_json::to_value(object).map_err(serde::de::Error::custom)?;
    Ok((object, unknown))
}

/// `DeleteOptions` stands under whatever version the client deletes in.
fn without_type(mut value: Value) -> Value {
    if let Value::Object(map) = &mut value {
        map.remove("apiVersion");
        map.remove("kind");
    }
    value
}

#[cfg(test)]
mod tests {
    use api::resources::{RESOURCES, Stored, by_any_name};
    use serde_json::json;

    use super::*;

    fn decode(resource: &str, body: &Value, validation: FieldValidation) -> Result<Decoded, Status> {
        let resource = by_any_name(resource).unwrap();
        object(
            resource,
            None,
            BodyForm::Json,
            body.to_string().as_bytes(),
            validation,
        )
    }

    #[test]
    fn strict_refuses_warn_reports_ignore_drops() {
        let body = json!({"metadata": {"name": "x"}, "dataa": {"a": "b"}});
        let error = decode("configmaps", &body, FieldValidation::Strict).unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (
                400,
                "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: \
                 unknown field \"dataa\""
            )
        );
        let warned = decode("configmaps", &body, FieldValidation::Warn).unwrap();
        assert_eq!(warned.warnings, ["unknown field \"dataa\""]);
        assert_eq!(
            warned.object,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}})
        );
        assert!(
            decode("configmaps", &body, FieldValidation::Ignore)
                .unwrap()
                .warnings
                .is_empty()
        );
    }

    #[test]
    fn duplicates_are_found_in_the_text() {
        let resource = by_any_name("configmaps").unwrap();
        let body = br#"{"metadata":{"name":"x"},"data":{"a":"1","a":"2"}}"#;
        let error = object(resource, None, BodyForm::Json, body, FieldValidation::Strict).unwrap_err();
        assert!(
            error
                .message()
                .ends_with("strict decoding error: duplicate field \"data.a\""),
            "{error}"
        );
    }

    #[test]
    fn every_stored_and_virtual_kind_can_be_decoded() {
        for resource in RESOURCES {
            // Nobody writes what is measured.
            if resource.stored == Stored::Measured {
                continue;
            }
            let minimal = match resource.kind {
                "ImagePolicy" => json!({"metadata": {"name": "x"}, "spec": {}}),
                "PolicyAssertion" => {
                    json!({"metadata": {"name": "x"}, "spec": {"assertion": "isolated ns(a)"}})
                }
                "ClusterNetworkPolicy" => json!({
                    "metadata": {"name": "x"},
                    "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
                }),
                // Written by the gate only; its fields have no defaults.
                "ImageScan" => continue,
                _ => json!({"metadata": {"name": "x"}}),
            };
            let name = format!("{}.{}", resource.plural, resource.group);
            let decoded = decode(&name, &minimal, FieldValidation::Strict);
            assert_eq!(
                decoded.map(|d| d.object["kind"].clone()),
                Ok(json!(resource.kind)),
                "{resource:?}"
            );
            // The options of sessions stand in the query.
            let has_body = |sub: &&Subresource| sub.verbs != ["get"] && !sub.kind.ends_with("Options");
            for sub in resource.subresources.iter().filter(has_body) {
                let body = minimal.to_string();
                let own = sub.kind == resource.kind;
                let body: &[u8] = if own {
                    body.as_bytes()
                } else {
                    br#"{"metadata":{"name":"x"}}"#
                };
                assert!(
                    object(resource, Some(sub), BodyForm::Json, body, FieldValidation::Strict).is_ok(),
                    "{}/{}",
                    resource.plural,
                    sub.name
                );
            }
        }
    }

    #[test]
    fn the_route_decides_the_kind() {
        let wrong = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}});
        assert_eq!(
            decode("configmaps", &wrong, FieldValidation::Warn)
                .unwrap_err()
                .code(),
            400
        );
        let wrong = json!({"apiVersion": "v2", "kind": "ConfigMap"});
        assert_eq!(
            decode("configmaps", &wrong, FieldValidation::Warn)
                .unwrap_err()
                .code(),
            400
        );
        assert_eq!(
            decode("configmaps", &json!([]), FieldValidation::Warn)
                .unwrap_err()
                .code(),
            400
        );
    }

    #[test]
    fn delete_options_from_body_and_url() {
        let options = |body: &str, query: &str| {
            delete_options(
                BodyForm::Json,
                body.as_bytes(),
                &Parameters::parse(query).unwrap(),
            )
        };
        assert_eq!(options("", ""), Ok(DeleteOptions::default()));
        let both = options(
            r#"{"gracePeriodSeconds":0,"propagationPolicy":"Foreground"}"#,
            "gracePeriodSeconds=9",
        );
        assert_eq!(
            both.map(|o| (o.grace_period_seconds, o.propagation)),
            Ok((Some(0), Some(Propagation::Foreground)))
        );
        let propagation = |body: &str| options(body, "").unwrap().propagation;
        assert_eq!(
            propagation(r#"{"orphanDependents":true}"#),
            Some(Propagation::Orphan)
        );
        assert_eq!(
            propagation(r#"{"orphanDependents":false}"#),
            Some(Propagation::Background)
        );
        assert_eq!(propagation(r#"{"propagationPolicy":""}"#), None);
        let guarded = options(
            r#"{"kind":"DeleteOptions","apiVersion":"apps/v1","preconditions":{"uid":"u","resourceVersion":"7"}}"#,
            "dryRun=All",
        )
        .unwrap();
        assert_eq!(
            (guarded.uid.as_deref(), guarded.resource_version.as_deref()),
            (Some("u"), Some("7"))
        );
        assert!(guarded.dry_run);
        for bad in [
            r#"{"kind":"Pod"}"#,
            r#"{"gracePeriodSeconds":-1}"#,
            r#"{"propagationPolicy":"X"}"#,
            r#"{"propagationPolicy":"Orphan","orphanDependents":true}"#,
            "[]",
        ] {
            assert!(options(bad, "").is_err(), "{bad}");
        }
    }
}
