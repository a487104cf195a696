//! Amounts of resources as `resourceFieldRef` shows them. Pure.

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceFieldSelector},
    apimachinery::pkg::api::resource::Quantity,
};

use super::env::EnvError;

/// What the node has, and what of that its pods may have, as its object says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeAmounts {
    /// Thousandths of a processor, all of them for pods.
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) allocatable_memory_bytes: u64,
    /// Of the file system with pods and images.
    pub(crate) storage_bytes: u64,
    pub(crate) allocatable_storage_bytes: u64,
}

/// The value of `reference`; without a container's name it is about `own`.
pub(crate) fn value_of(
    pod: &Pod,
    own: &str,
    reference: &ResourceFieldSelector,
    node: NodeAmounts,
) -> Result<String, EnvError> {
    let refused = || EnvError::FieldPath(reference.resource.clone());
    let name = reference
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty())
        .unwrap_or(own);
    let mut all = super::steps::containers(pod).into_iter();
    let container = all.find(|container| container.name == name).ok_or_else(refused)?;
    let (list, resource) = reference.resource.split_once('.').ok_or_else(refused)?;
    let amount = amount_of(&container, list, resource);
    let divisor = reference.divisor.as_ref().filter(|divisor| divisor.0 != "0");
    let (amount, divisor) = match resource {
        "cpu" => {
            let read = |quantity: &Quantity| api::quantity::thousandths(&quantity.0);
            (amount.map(read), divisor.map_or(Ok(1000), read))
        }
        "memory" | "ephemeral-storage" => {
            let read = |quantity: &Quantity| api::quantity::units(&quantity.0);
            (amount.map(read), divisor.map_or(Ok(1), read))
        }
        _ => return Err(refused()),
    };
    let amount = match (amount.transpose().map_err(|_odd| refused())?, list, resource) {
        (Some(amount), _, _) => amount,
        // A container without a limit may use as much.
        (None, "limits", "cpu") => node.cpu_millis,
        (None, "limits", "memory") => node.allocatable_memory_bytes,
        (None, "limits", _) => node.allocatable_storage_bytes,
        (None, _, _) => 0,
    };
    let divisor = divisor.map_err(|_odd| refused())?.max(1);
    Ok(amount.div_ceil(divisor).to_string())
}

fn amount_of<'a>(container: &'a Container, list: &str, resource: &str) -> Option<&'a Quantity> {
    let resources = container.resources.as_ref()?;
    let list = match list {
        "limits" => resources.limits.as_ref(),
        _ => resources.requests.as_ref(),
    };
    list?.get(resource)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn amounts_are_rounded_up_and_limits_fall_back_to_the_node() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "a", "resources": {
                "limits": {"cpu": "1500m", "memory": "100Mi", "ephemeral-storage": "3G"},
                "requests": {"cpu": "250m", "ephemeral-storage": "1G"}}}],
            "initContainers": [{"name": "i"}],
        }}))
        .unwrap();
        let node = NodeAmounts {
            cpu_millis: 4000,
            memory_bytes: 2 << 30,
            allocatable_memory_bytes: 1 << 30,
            storage_bytes: 9 << 30,
            allocatable_storage_bytes: 8 << 30,
        };
        let value = |container: &str, resource: &str, divisor: &str| {
            let reference = ResourceFieldSelector {
                container_name: None,
                divisor: Some(Quantity(divisor.to_owned())),
                resource: resource.to_owned(),
            };
            value_of(&pod, container, &reference, node).map_err(|error| error.to_string())
        };
        let text = |text: &str| Ok(text.to_owned());
        assert_eq!(value("a", "limits.cpu", "0"), text("2"));
        assert_eq!(value("a", "limits.cpu", "1m"), text("1500"));
        assert_eq!(value("a", "requests.cpu", "1"), text("1"));
        assert_eq!(value("a", "limits.memory", "1Mi"), text("100"));
        assert_eq!(value("a", "limits.memory", "0"), text("104857600"));
        assert_eq!(value("a", "requests.memory", "0"), text("0"));
        assert_eq!(value("i", "limits.cpu", "0"), text("4"));
        assert_eq!(value("i", "limits.memory", "1Gi"), text("1"));
        assert_eq!(value("a", "limits.ephemeral-storage", "0"), text("3000000000"));
        assert_eq!(value("a", "limits.ephemeral-storage", "1Gi"), text("3"));
        assert_eq!(value("a", "requests.ephemeral-storage", "1M"), text("1000"));
        assert_eq!(value("i", "limits.ephemeral-storage", "1Mi"), text("8192"));
        assert_eq!(value("i", "requests.ephemeral-storage", "0"), text("0"));
        assert!(value("x", "limits.cpu", "0").is_err());
        assert!(value("a", "limits.hugepages-2Mi", "0").is_err());
    }
}
