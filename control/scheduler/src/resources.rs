//! Room on a node and what pods ask for.

use std::{collections::BTreeMap, iter::Sum, ops::Add};

use api::quantity;
use k8s_openapi::{
    api::core::v1::{Container, Node, Pod},
    apimachinery::pkg::api::resource::Quantity,
};

/// An amount of each resource that is accounted for. Sums saturate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes on the node's disk.
    pub storage_bytes: u64,
    /// Pods.
    pub pods: u64,
}

impl Resources {
    /// What the pod asks for at any one time: its containers with their sidecars, or an init container with
    /// the sidecars that started before it. A quantity that does not parse asks for everything: admission
    /// lets none through, and a mistake there must not overcommit a node.
    pub fn requested(pod: &Pod) -> Self {
        let of = |container: &Container| {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            requests
                .map(|requests| Self::read(requests, u64::MAX))
                .unwrap_or_default()
        };
        let inits = pod
            .spec
            .iter()
            .flat_map(|spec| spec.init_containers.iter().flatten());
        let (mut sidecars, mut initializing) = (Self::default(), Self::default());
        for init in inits {
            if init.restart_policy.as_deref() == Some("Always") {
                sidecars = sidecars + of(init);
            } else {
                initializing = initializing.largest(sidecars + of(init));
            }
        }
        let mains: Self = pod.spec.iter().flat_map(|spec| &spec.containers).map(of).sum();
        Self {
            pods: 1,
            ..initializing.largest(mains + sidecars)
        }
    }

    fn largest(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.max(other.cpu_millis),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            storage_bytes: self.storage_bytes.max(other.storage_bytes),
            pods: self.pods.max(other.pods),
        }
    }

    /// What the node offers. What it does not state, or states wrongly, it does not offer.
    pub fn allocatable(node: &Node) -> Self {
        let offered = node
            .status
            .as_ref()
            .and_then(|status| status.allocatable.as_ref());
        offered.map(|offered| Self::read(offered, 0)).unwrap_or_default()
    }

    /// Thousandths of `allocatable` that stay free, averaged over CPU and memory.
    pub(crate) fn free_permille(self, allocatable: Self) -> u64 {
        let free = |used: u64, all: u64| {
            let permille = u128::from(all.saturating_sub(used)) * 1000 / u128::from(all.max(1));
            u64::try_from(permille).unwrap_or(1000)
        };
        u64::midpoint(
            free(self.cpu_millis, allocatable.cpu_millis),
            free(self.memory_bytes, allocatable.memory_bytes),
        )
    }

    fn read(list: &BTreeMap<String, Quantity>, unreadable: u64) -> Self {
        let amount = |name: &str, read: fn(&str) -> Result<u64, quantity::QuantityError>| {
            list.get(name)
                .map_or(0, |quantity| read(&quantity.0).unwrap_or(unreadable))
        };
        Self {
            cpu_millis: amount("cpu", quantity::thousandths),
            memory_bytes: amount("memory", quantity::units),
            storage_bytes: amount("ephemeral-storage", quantity::units),
            pods: amount("pods", quantity::units),
        }
    }
}

impl Add for Resources {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            storage_bytes: self.storage_bytes.saturating_add(other.storage_bytes),
            pods: self.pods.saturating_add(other.pods),
        }
    }
}

impl Sum for Resources {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::default(), Add::add)
    }
}
