//! What a pod may show of itself: fields and resources.

use api::{quantity, selector::is_label_key};
use control_wire::Cause;
use k8s_openapi::api::core::v1::{PodSpec, ResourceFieldSelector};

use crate::Problems;

/// Fields that a volume may show; they do not depend on where the pod runs.
pub(super) const VOLUME_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.annotations['<KEY>']",
    "metadata.labels",
    "metadata.labels['<KEY>']",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// Resources that are accounted for, with the divisors that make sense.
const RESOURCES: &[(&str, &[&str])] = &[
    ("limits.cpu", CPU_DIVISORS),
    ("requests.cpu", CPU_DIVISORS),
    ("limits.memory", BYTE_DIVISORS),
    ("requests.memory", BYTE_DIVISORS),
    ("limits.ephemeral-storage", BYTE_DIVISORS),
    ("requests.ephemeral-storage", BYTE_DIVISORS),
];

const CPU_DIVISORS: &[&str] = &["0", "1m", "1"];
const BYTE_DIVISORS: &[&str] = &[
    "0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
];

pub(super) fn is_volume_field(path: &str) -> bool {
    match key_of(path) {
        Some(key) => is_label_key(&key.to_ascii_lowercase()),
        None => VOLUME_FIELDS.contains(&path) && !path.contains('['),
    }
}

/// The key of one label or annotation.
pub(super) fn key_of(path: &str) -> Option<&str> {
    let keyed = |prefix: &str| path.strip_prefix(prefix).and_then(|rest| rest.strip_suffix("']"));
    keyed("metadata.labels['").or_else(|| keyed("metadata.annotations['"))
}

pub(super) fn check_resource(
    spec: &PodSpec,
    reference: &ResourceFieldSelector,
    field: &str,
    problems: &mut Problems,
) {
    let known = RESOURCES
        .iter()
        .find(|(resource, _)| *resource == reference.resource);
    let Some((_, divisors)) = known else {
        let names: Vec<&str> = RESOURCES.iter().map(|(resource, _)| *resource).collect();
        problems.push(Cause::not_supported(
            format!("{field}.resource"),
            &reference.resource,
            &names,
        ));
        return;
    };
    if let Some(name) = reference
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        let inits = spec.init_containers.iter().flatten();
        let exists = spec
            .containers
            .iter()
            .chain(inits)
            .any(|container| container.name == name);
        let why = "no container of the pod has this name";
        problems.require(exists, &format!("{field}.containerName"), name, why);
    }
    if let Some(divisor) = &reference.divisor {
        // Compared as amounts: `1000m` is `1`.
        let amount = |text: &str| quantity::exact_thousandths(text).ok();
        let asked = amount(&divisor.0);
        let valid = asked.is_some() && divisors.iter().any(|known| amount(known) == asked);
        let field = format!("{field}.divisor");
        problems.require(
            valid,
            &field,
            &divisor.0,
            &format!("must be one of {}", divisors.join(", ")),
        );
    }
}
