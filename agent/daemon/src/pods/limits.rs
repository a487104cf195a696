//! What a container and its pod ask for and may use, in the numbers of control groups. Pure.

use std::collections::BTreeMap;

use agent_runtime::{PodResources, Resources};
use api::quantity::{self, QuantityError};
use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};

/// Period of processor limits: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// Those of one container. `pids` are the pod's, which one container may have all.
pub(super) fn of_container(container: &Container, pids: u32) -> Result<Resources, QuantityError> {
    let amounts = Amounts::of(container)?;
    Ok(Resources {
        cpu_quota_us: amounts.cpu_limit.map(quota),
        cpu_period_us: amounts.cpu_limit.map(|_| CPU_PERIOD_US),
        cpu_shares: Some(shares(amounts.cpu_request)),
        memory_bytes: amounts.memory_limit.map(bytes),
        pids: Some(pids.into()),
    })
}

/// Those of a whole pod, as the kubelet's `ResourceConfigForPod` has them: weighed by all its requests, and limited where
/// every container is.
pub(super) fn of_pod(spec: &PodSpec) -> Result<PodResources, QuantityError> {
    let read = |containers: &[Container]| containers.iter().map(Amounts::of).collect::<Result<Vec<_>, _>>();
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let (mains, inits) = (
        read(&spec.containers)?,
        std::iter::zip(inits.iter().map(is_sidecar), read(inits)?).collect::<Vec<_>>(),
    );
    let most = |amount: &dyn Fn(&Amounts) -> u64| {
        let inits = inits.iter().map(|(is_sidecar, init)| (*is_sidecar, amount(init)));
        at_once(mains.iter().map(amount), inits)
    };
    let limit = |amount: fn(&Amounts) -> Option<u64>| {
        let mut all = mains.iter().chain(inits.iter().map(|(_, init)| init));
        all.all(|container| amount(container).is_some())
            .then(|| most(&|container| amount(container).unwrap_or(0)))
    };
    let cpu_limit = limit(|container| container.cpu_limit);
    Ok(PodResources {
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| CPU_PERIOD_US),
        cpu_shares: Some(shares(most(&|container| container.cpu_request))),
        memory_bytes: limit(|container| container.memory_limit).map(bytes),
    })
}

/// The most that is had at any one time: by the containers with all sidecars, or by an init container with the sidecars that
/// started before it. Of those in the spec's `initContainers` it is said whether they are sidecars.
pub(super) fn at_once(mains: impl Iterator<Item = u64>, inits: impl Iterator<Item = (bool, u64)>) -> u64 {
    let (mut sidecars, mut most) = (0u64, 0);
    for (is_sidecar, init) in inits {
        let with_it = sidecars.saturating_add(init);
        most = with_it.max(most);
        if is_sidecar {
            sidecars = with_it;
        }
    }
    mains.fold(sidecars, u64::saturating_add).max(most)
}

/// Whether an init container is one that stays.
pub(super) fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

/// What one container names; a limit of nothing is none.
struct Amounts {
    /// Thousandths of a processor.
    cpu_request: u64,
    cpu_limit: Option<u64>,
    /// In bytes.
    memory_limit: Option<u64>,
}

impl Amounts {
    fn of(container: &Container) -> Result<Self, QuantityError> {
        let resources = container.resources.as_ref();
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        let cpu = |list: Option<&BTreeMap<String, Quantity>>| {
            let amount = list.and_then(|list| list.get("cpu"));
            amount.map(|cpu| quantity::thousandths(&cpu.0)).transpose()
        };
        let cpu_limit = cpu(limits)?.filter(|milli| *milli > 0);
        let memory = limits.and_then(|limits| limits.get("memory"));
        let memory = memory.map(|memory| quantity::units(&memory.0)).transpose()?;
        Ok(Self {
            // A request that is left out is the limit, as admission defaults it.
            cpu_request: cpu(requests)?.or(cpu_limit).unwrap_or(0),
            cpu_limit,
            memory_limit: memory.filter(|bytes| *bytes > 0),
        })
    }
}

/// The kernel's least is 2, which is what gets who requests nothing.
fn shares(milli: u64) -> u64 {
    (milli.saturating_mul(1024) / 1000).clamp(2, 262_144)
}

/// Thousandths of a processor are microseconds per millisecond; the kernel takes no quota below 1 ms.
fn quota(milli: u64) -> i64 {
    bytes(milli.saturating_mul(CPU_PERIOD_US / 1000)).max(1000)
}

fn bytes(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> PodResources {
        of_pod(&serde_json::from_value(spec).unwrap()).unwrap()
    }

    fn with(requests: &Value, limits: &Value) -> Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn a_pod_weighs_what_its_containers_request_together() {
        let requests = |cpu: &str| with(&json!({"cpu": cpu}), &json!({}));
        let weight = |spec: Value| pod(spec).cpu_shares;
        assert_eq!(
            weight(json!({"containers": [{"name": "c"}]})),
            Some(2),
            "best effort"
        );
        assert_eq!(
            weight(json!({"containers": [requests("500m"), requests("1500m")]})),
            Some(2048)
        );
        assert_eq!(
            weight(json!({"containers": [with(&json!({}), &json!({"cpu": "1"}))]})),
            Some(1024)
        );
        let sidecar = |cpu: &str| {
            let mut sidecar = requests(cpu);
            sidecar["restartPolicy"] = json!("Always");
            sidecar
        };
        let inits = json!([requests("1"), sidecar("500m"), requests("3"), sidecar("500m")]);
        let weight = |mains: Value| weight(json!({"initContainers": inits, "containers": mains}));
        assert_eq!(
            weight(json!([requests("1")])),
            Some(3584),
            "the second init container and the sidecar before it"
        );
        assert_eq!(
            weight(json!([requests("4")])),
            Some(5120),
            "the container and both sidecars"
        );
    }

    #[test]
    fn a_pod_is_limited_where_all_its_containers_are() {
        let both = json!({"cpu": "250m", "memory": "64Mi"});
        let limits = pod(json!({"containers": [with(&json!({}), &both), with(&json!({}), &both)]}));
        assert_eq!(
            (limits.cpu_quota_us, limits.cpu_period_us),
            (Some(50_000), Some(100_000))
        );
        assert_eq!(limits.memory_bytes, Some(128 << 20));
        let only =
            pod(json!({"containers": [with(&json!({}), &both), with(&json!({}), &json!({"cpu": "1m"}))]}));
        assert_eq!((only.cpu_quota_us, only.memory_bytes), (Some(25_100), None));
        let init = pod(json!({"containers": [with(&json!({}), &both)], "initContainers": [{"name": "i"}]}));
        assert_eq!(
            (init.cpu_quota_us, init.cpu_period_us, init.memory_bytes),
            (None, None, None)
        );
        let odd = serde_json::from_value(json!({"containers": [with(&json!({"cpu": "much"}), &json!({}))]}))
            .unwrap();
        assert!(of_pod(&odd).is_err());
    }
}
