//! The conditions of a pod.

use k8s_openapi::{
    api::core::v1::{ContainerStatus, PodCondition, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{Ground, Role, Run, status::View};

/// Whether a condition holds, its reason and its message.
type Truth = (bool, Option<&'static str>, Option<String>);

/// The conditions that the node decides; all others belong to whoever wrote them.
const OWN: &[&str] = &[
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    SANDBOXED,
    SANDBOX_CURRENT,
];

/// Whether all layers of the sandboxes of the pod's containers were seen to be in force. Added by the agent, which sees.
pub const SANDBOXED: &str = "palisade.dev/Sandboxed";
/// Whether what limits connections beside the datapath is of the policy in force. As [`SANDBOXED`].
pub const SANDBOX_CURRENT: &str = "palisade.dev/SandboxCurrent";
/// The condition that an eviction sets, in Kubernetes' words. Others may set it too.
const DISRUPTION: &str = "DisruptionTarget";
/// Its reason when the node has decided it.
const BY_NODE: &str = "TerminationByKubelet";

/// Whether the node decides the condition of that type.
pub fn is_own_condition(kind: &str) -> bool {
    OWN.contains(&kind)
}

/// Whether the node has written the condition: its own, and the one that says that it evicted the pod.
pub fn is_by_node(condition: &PodCondition) -> bool {
    let evicted = condition.type_ == DISRUPTION && condition.reason.as_deref() == Some(BY_NODE);
    is_own_condition(&condition.type_) || evicted
}

/// The node's conditions, and those of others as they were. What did not change keeps its time.
pub(crate) fn of(
    view: &View<'_>,
    before: &PodStatus,
    phase: &str,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Vec<PodCondition> {
    let existing = before.conditions.iter().flatten();
    let containers_ready = containers_ready(view, phase, inits, mains);
    let rows: [(&str, Truth); 5] = [
        (
            "PodReadyToStartContainers",
            (view.seen.ground == Ground::Judged, None, None),
        ),
        ("Initialized", initialized(view, phase, inits)),
        ("Ready", ready(view, before, containers_ready.clone())),
        ("ContainersReady", containers_ready),
        ("PodScheduled", (true, None, None)),
    ];
    // Nothing of one that never began is disrupted.
    let eviction = view
        .seen
        .eviction
        .as_ref()
        .filter(|_eviction| !view.seen.is_refused());
    let of_others = existing
        .clone()
        .filter(|condition| !is_own_condition(&condition.type_))
        .filter(|condition| eviction.is_none() || condition.type_ != DISRUPTION)
        .cloned();
    let disruption = eviction.map(|eviction| PodCondition {
        last_transition_time: Some(Time(eviction.at)),
        message: Some(eviction.message.clone()),
        reason: Some(BY_NODE.to_owned()),
        status: "True".to_owned(),
        type_: DISRUPTION.to_owned(),
        ..PodCondition::default()
    });
    let mut conditions: Vec<PodCondition> = rows
        .iter()
        .map(|(kind, (holds, reason, message))| {
            let status = if *holds { "True" } else { "False" };
            let unchanged = existing.clone().find(|c| c.type_ == *kind && c.status == status);
            PodCondition {
                last_transition_time: unchanged
                    .and_then(|c| c.last_transition_time.clone())
                    .or(Some(Time(view.now))),
                message: message.clone(),
                observed_generation: view.pod.metadata.generation,
                reason: reason.map(str::to_owned),
                status: status.to_owned(),
                type_: (*kind).to_owned(),
                ..PodCondition::default()
            }
        })
        .collect();
    conditions.extend(of_others);
    conditions.extend(disruption);
    conditions
}

/// Main containers and sidecars; init containers are not meant to be ready.
fn containers_ready(
    view: &View<'_>,
    phase: &str,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Truth {
    let role = |name: &str| {
        let mut members = view.wanted.containers.iter();
        members
            .find(|member| member.name == name)
            .map(|member| member.role)
    };
    let unready: Vec<&str> = inits
        .iter()
        .filter(|status| role(&status.name) == Some(Role::Sidecar))
        .chain(mains)
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    match phase {
        "Succeeded" => (false, Some("PodCompleted"), None),
        "Failed" => (false, Some("PodFailed"), None),
        _ if unready.is_empty() => (true, None, None),
        _ => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            (false, Some("ContainersNotReady"), Some(message))
        }
    }
}

/// Ready containers, and the conditions that others set and the pod waits for.
fn ready(view: &View<'_>, before: &PodStatus, containers: Truth) -> Truth {
    if !containers.0 {
        return containers;
    }
    let gates = view
        .pod
        .spec
        .iter()
        .flat_map(|spec| spec.readiness_gates.iter().flatten());
    let unmet: Vec<String> = gates
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            let mut conditions = before.conditions.iter().flatten();
            match conditions.find(|condition| condition.type_ == *kind) {
                None => Some(format!(
                    "corresponding condition of pod readiness gate {kind:?} does not exist."
                )),
                Some(condition) if condition.status != "True" => Some(format!(
                    "the status of pod readiness gate {kind:?} is not \"True\", but {}",
                    condition.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if unmet.is_empty() {
        (true, None, None)
    } else {
        (false, Some("ReadinessGatesNotReady"), Some(unmet.join(", ")))
    }
}

fn initialized(view: &View<'_>, phase: &str, inits: &[ContainerStatus]) -> Truth {
    if phase == "Succeeded" {
        return (true, Some("PodCompleted"), None);
    }
    let began = view.wanted.of_role(Role::Main).any(|member| {
        let container = view.seen.container(&member.name);
        container.is_some_and(|container| container.run != Run::Never && !container.stale)
    });
    let incomplete: Vec<&str> = inits
        .iter()
        .filter(|status| !is_initialized(view, status))
        .map(|status| status.name.as_str())
        .collect();
    if began || incomplete.is_empty() {
        return (true, None, None);
    }
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    (false, Some("ContainersNotInitialized"), Some(message))
}

fn is_initialized(view: &View<'_>, status: &ContainerStatus) -> bool {
    let mut sidecars = view.wanted.of_role(Role::Sidecar);
    if sidecars.any(|member| member.name == status.name) {
        status.started == Some(true)
    } else {
        status.ready
    }
}
