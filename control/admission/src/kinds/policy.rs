//! Calico's kinds and ClusterNetworkPolicy. What is valid says the compiler's own reader, so that nothing is
//! stored that it would have to close.
//!
//! Whether tables of all policies fit into the kernel is not judged here: it depends on the whole cluster, and is the
//! API server's to find out (`control/apiserver/src/policy/capacity.rs`).

use api::{
    calico,
    resources::{self, Resource},
};
use control_wire::Status;
use serde_json::{Value, json};

use super::push_all;
use crate::{AdmissionRequest, Problems, metadata::items};

/// Label that repeats the tier of a policy, for selectors of lists.
const TIER_LABEL: &str = "projectcalico.org/tier";
/// Tier of policies that do not name one.
const DEFAULT_TIER: &str = "default";
/// The one name under which settings count.
const CONFIGURATION: &str = "default";
/// Plural names of Calico's kinds whose objects are in a tier.
pub const TIERED: [&str; 4] = [
    "globalnetworkpolicies",
    "networkpolicies",
    "stagedglobalnetworkpolicies",
    "stagednetworkpolicies",
];

/// Policy objects that always exist: the server makes those that are missing when it starts.
pub fn built_in_objects() -> Vec<(&'static Resource, Value)> {
    let tiers = policies_compiler::built_in_tiers();
    let configuration = calico::FelixConfiguration {
        api_version: calico::API_VERSION.to_owned(),
        kind: "FelixConfiguration".to_owned(),
        metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            name: Some(CONFIGURATION.to_owned()),
            ..Default::default()
        },
        spec: calico::FelixConfigurationSpec {
            // Pods reach the API server on their own node. Calico's bare default is Drop; its operator sets
            // something else, as this does.
            default_endpoint_to_host_action: Some("Return".to_owned()),
            ..Default::default()
        },
    };
    let objects = tiers
        .into_iter()
        .map(serde_json::to_value)
        .chain([serde_json::to_value(configuration)]);
    objects
        .flatten()
        .filter_map(|object| {
            let kind = object["kind"].as_str()?;
            Some((resources::by_kind(calico::API_VERSION, kind)?, object))
        })
        .chain(super::storage::built_in_class())
        .collect()
}

/// Refuses to delete what always exists.
pub fn refuse_deletion(resource: &Resource, name: &str) -> Result<(), Status> {
    let built_in = built_in_objects()
        .iter()
        .any(|(row, object)| *row == resource && object["metadata"]["name"] == name);
    if !built_in {
        return Ok(());
    }
    let message = match resource.kind {
        "Tier" => "this tier always exists",
        _ => "these settings always exist; change them instead",
    };
    Err(Status::forbidden(resource, name, message))
}

/// The tier that must exist for an object to mean what it says.
pub fn tier_of<'a>(resource: &Resource, object: &'a Value) -> Option<&'a str> {
    let tiered = resource.group == "projectcalico.org" && TIERED.contains(&resource.plural);
    let tier = object.pointer("/spec/tier").and_then(Value::as_str);
    tiered.then(|| tier.unwrap_or(DEFAULT_TIER))
}

pub(super) fn default_calico(kind: &str, object: &mut Value) {
    match kind {
        "NetworkPolicy" | "GlobalNetworkPolicy" | "StagedNetworkPolicy" | "StagedGlobalNetworkPolicy" => {
            let tier = match object["spec"]["tier"].as_str() {
                None | Some("") => DEFAULT_TIER.to_owned(),
                Some(tier) => tier.to_owned(),
            };
            object["spec"]["tier"] = json!(tier);
            let labels = &mut object["metadata"]["labels"];
            if !labels.is_object() {
                *labels = json!({});
            }
            labels[TIER_LABEL] = json!(tier);
            default_types(&mut object["spec"]);
        }
        "Tier" => {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let built_in = built_in_objects()
                .into_iter()
                .find(|(row, tier)| row.kind == "Tier" && tier["metadata"]["name"] == name);
            let defaults = match built_in {
                Some((_, tier)) => tier["spec"].clone(),
                None => json!({"defaultAction": "Deny"}),
            };
            for (field, value) in crate::metadata::members(&defaults) {
                if object["spec"][field].is_null() {
                    object["spec"][field] = value.clone();
                }
            }
        }
        _ => {}
    }
}

/// Types of a policy that names none, as Calico stores them: they must not follow its rules, or who takes the last rule
/// out of a direction would open it. A policy that is to be deleted has none, so those that it had before go.
fn default_types(spec: &mut Value) {
    if spec["stagedAction"] == "Delete" {
        if let Some(spec) = spec.as_object_mut() {
            spec.remove("types");
        }
        return;
    }
    let has = |field: &str| items(&spec[field]).next().is_some();
    if !has("types") {
        spec["types"] = json!(policies_compiler::default_types(has("ingress"), has("egress")));
    }
}

/// The condition by which a ClusterNetworkPolicy says that it was understood. Upstream leaves the conditions to
/// implementations; this is the one that the control plane can vouch for.
const ACCEPTED: &str = "Accepted";

/// Says which generation of the policy was understood: what is not understood is refused by [`check`].
pub(super) fn default_cluster_policy(request: &AdmissionRequest<'_>, policy: &mut Value) {
    let generation = policy["metadata"]["generation"].as_i64().unwrap_or(1);
    let conditions = items(&policy["status"]["conditions"]);
    let (mut accepted, mut others): (Vec<Value>, Vec<Value>) = conditions
        .cloned()
        .partition(|condition| condition["type"] == ACCEPTED);
    let since = match accepted.pop() {
        Some(condition) if condition["status"] == "True" => condition["lastTransitionTime"].clone(),
        _ => json!(request.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
    };
    others.push(json!({
        "type": ACCEPTED,
        "status": "True",
        "reason": ACCEPTED,
        "message": "The policy is valid; every node compiles it.",
        "observedGeneration": generation,
        "lastTransitionTime": since,
    }));
    policy["status"]["conditions"] = Value::Array(others);
}

pub(super) fn check(object: &Value, problems: &mut Problems) {
    let errors = policies_compiler::validate_object(object);
    push_all(object, errors.err().unwrap_or_default(), problems);
}
