//! Volumes that outlive pods: the words that control plane and nodes share, and what fits what.

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim,
};
use std::collections::BTreeMap;

use crate::quantity;

/// Provisioner of volumes that are directories on a node.
pub const LOCAL_PATH_PROVISIONER: &str = "palisade.dev/local-path";
/// The class that always exists, and the default one until another claims to be.
pub const LOCAL_PATH_CLASS: &str = "local-path";
/// Keeps a volume until its node has removed the data.
pub const LOCAL_PATH_FINALIZER: &str = "palisade.dev/local-path";
/// Keeps a claim while a pod uses it.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Keeps a volume while it is bound.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// On a claim: the node that the scheduler has chosen for its first pod.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a class: `true` makes it the one of claims that name none.
pub const IS_DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// The label by which volumes name their node.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";
/// `status.reason` of a volume on its way out, whose node has removed the data.
pub const DATA_REMOVED: &str = "DataRemoved";

/// Name of the volume that is made for a claim.
pub fn volume_name(claim_uid: &str) -> String {
    format!("pvc-{claim_uid}")
}

/// Whether the volume was made by us.
pub fn is_local_path(volume: &PersistentVolume) -> bool {
    let annotations = volume.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(PROVISIONED_BY))
        .is_some_and(|by| by == LOCAL_PATH_PROVISIONER)
}

/// Whether a directory of one node is enough for a claim: pods of several nodes do not share one.
pub fn is_for_one_node(claim: &PersistentVolumeClaim) -> bool {
    let modes = claim
        .spec
        .iter()
        .flat_map(|spec| spec.access_modes.iter().flatten());
    modes.into_iter().all(|mode| mode == "ReadWriteOnce")
}

/// Whether a claim can be satisfied by a volume, as far as their specifications say: class, mode, ways of access,
/// size. Who has the volume is another question.
pub fn fits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(offered), Some(asked)) = (&volume.spec, &claim.spec) else {
        return false;
    };
    let class = |name: &Option<String>| name.clone().unwrap_or_default();
    let mode = |name: &Option<String>| name.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let modes = offered.access_modes.as_deref().unwrap_or_default();
    let has_modes = asked
        .access_modes
        .iter()
        .flatten()
        .all(|asked| modes.contains(asked));
    class(&offered.storage_class_name) == class(&asked.storage_class_name)
        && mode(&offered.volume_mode) == mode(&asked.volume_mode)
        && has_modes
        && size_asked(claim)
            .zip(size(volume))
            .is_some_and(|(asked, size)| asked <= size)
}

/// Bytes of a volume; `None` if it does not say, or wrongly.
pub fn size(volume: &PersistentVolume) -> Option<u64> {
    let capacity = volume.spec.as_ref()?.capacity.as_ref()?.get("storage")?;
    quantity::units(&capacity.0).ok()
}

/// Bytes that a claim asks for; `None` if it does not say, or wrongly.
pub fn size_asked(claim: &PersistentVolumeClaim) -> Option<u64> {
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    quantity::units(&requests.get("storage")?.0).ok()
}

/// Whether a node may use the volume: its node affinity, or any node for a volume without one.
pub fn allows_node(volume: &PersistentVolume, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) else {
        return true;
    };
    required
        .node_selector_terms
        .iter()
        .any(|term| term_allows(term, name, labels))
}

/// Names of hosts that the volume's affinity lists.
pub fn hostnames(volume: &PersistentVolume) -> impl Iterator<Item = &str> {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let terms = affinity.and_then(|affinity| affinity.required.as_ref());
    terms
        .into_iter()
        .flat_map(|required| &required.node_selector_terms)
        .flat_map(|term| term.match_expressions.iter().flatten())
        .filter(|wanted| wanted.key == HOSTNAME_LABEL && wanted.operator == "In")
        .flat_map(|wanted| wanted.values.iter().flatten())
        .map(String::as_str)
}

/// A term without requirements selects nothing, as in Kubernetes.
fn term_allows(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let by_label =
        |wanted: &NodeSelectorRequirement| holds(wanted, labels.get(&wanted.key).map(String::as_str));
    let by_field =
        |wanted: &NodeSelectorRequirement| wanted.key == "metadata.name" && holds(wanted, Some(name));
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(by_label)
        && fields.iter().all(by_field)
}

/// An operator that is not known holds for nothing.
fn holds(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|known| known == value));
    let compared = |compare: fn(&i64, &i64) -> bool| {
        let number = value.and_then(|value| value.parse::<i64>().ok());
        let bound = values.first().and_then(|bound| bound.parse::<i64>().ok());
        number
            .zip(bound)
            .is_some_and(|(number, bound)| compare(&number, &bound))
    };
    match wanted.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(i64::gt),
        "Lt" => compared(i64::lt),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(spec: &Value) -> PersistentVolume {
        serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec})).unwrap()
    }

    fn claim(spec: &Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_volume_fits_by_class_mode_access_and_size() {
        let offered = volume(
            &json!({"storageClassName": "fast", "capacity": {"storage": "2Gi"},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"]}),
        );
        let asks = |class: &str, size: &str, access: &str| {
            let spec = json!({"storageClassName": class, "accessModes": [access],
                "resources": {"requests": {"storage": size}}});
            fits(&offered, &claim(&spec))
        };
        assert!(asks("fast", "2Gi", "ReadWriteOnce") && asks("fast", "1", "ReadOnlyMany"));
        assert!(!asks("slow", "1Gi", "ReadWriteOnce"));
        assert!(!asks("fast", "3Gi", "ReadWriteOnce"));
        assert!(!asks("fast", "1Gi", "ReadWriteMany"));
        assert!(
            !fits(&offered, &claim(&json!({"storageClassName": "fast"}))),
            "without a size"
        );
        let block = json!({"storageClassName": "fast", "volumeMode": "Block", "resources": {"requests": {"storage": "1"}}});
        assert!(!fits(&offered, &claim(&block)));
    }

    #[test]
    fn node_affinity_means_what_it_means_in_kubernetes() {
        let labels: BTreeMap<String, String> = [("disk", "ssd"), ("rank", "5")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        let allows = |terms: Value| {
            let spec = json!({"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}});
            allows_node(&volume(&spec), "n1", &labels)
        };
        let one = |key: &str, operator: &str, values: &[&str]| {
            allows(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
        };
        assert!(allows_node(&volume(&json!({})), "n1", &labels));
        assert!(one("disk", "In", &["hdd", "ssd"]) && !one("disk", "In", &["hdd"]));
        assert!(one("disk", "NotIn", &["hdd"]) && one("other", "NotIn", &["x"]));
        assert!(one("disk", "Exists", &[]) && one("other", "DoesNotExist", &[]));
        assert!(one("rank", "Gt", &["4"]) && !one("rank", "Lt", &["4"]) && !one("disk", "Gt", &["4"]));
        assert!(!one("disk", "Odd", &["ssd"]));
        assert!(
            !allows(json!([])) && !allows(json!([{}])),
            "nothing selects nothing"
        );
        let field = |name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        assert!(allows(json!([field("n2"), field("n1")])) && !allows(json!([field("n2")])));
    }
}
