//! What the node says about a pod, in Kubernetes' words.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    Container, Ending, Exit, Failure, Ground, Image, Run, Seen, Wanted, backoff,
    qos::qos_class,
    steps::{is_over, obstacle, starts_again},
};

/// What a status needs beyond what [`crate::plan`] does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Addresses of the node, the first of them first.
    pub host_addresses: Vec<IpAddr>,
    /// Addresses of the pod, once it has any.
    pub pod_addresses: Vec<IpAddr>,
    /// The present.
    pub now: Timestamp,
}

/// The status of `pod`. What did not change keeps its time from the status that the pod already has.
pub fn render(pod: &Pod, wanted: &Wanted, seen: &Seen, facts: &Facts) -> PodStatus {
    let before = pod.status.clone().unwrap_or_default();
    let statuses = container_statuses(pod, wanted, seen, facts);
    let phase = phase(wanted, seen);
    let mut pod_ips: Vec<PodIP> = facts
        .pod_addresses
        .iter()
        .map(|ip| PodIP { ip: ip.to_string() })
        .collect();
    if pod_ips.is_empty() {
        // A pod that is over keeps the addresses that it had.
        pod_ips = before.pod_ips.clone().unwrap_or_default();
    }
    let host_ips: Vec<HostIP> = facts
        .host_addresses
        .iter()
        .map(|ip| HostIP { ip: ip.to_string() })
        .collect();
    PodStatus {
        conditions: Some(conditions(pod, &before, phase, seen, &statuses, facts)),
        container_statuses: Some(statuses),
        host_ip: host_ips.first().map(|host| host.ip.clone()),
        host_ips: Some(host_ips),
        observed_generation: pod.metadata.generation,
        phase: Some(phase.to_owned()),
        pod_ip: pod_ips.first().map(|pod| pod.ip.clone()),
        pod_ips: (!pod_ips.is_empty()).then_some(pod_ips),
        qos_class: before
            .qos_class
            .or_else(|| pod.spec.as_ref().map(|spec| qos_class(spec).to_owned())),
        start_time: before.start_time.or(Some(Time(facts.now))),
        message: seen
            .ground_failure
            .as_ref()
            .map(|failure| failure.message.clone()),
        reason: seen
            .ground_failure
            .as_ref()
            .map(|failure| failure.reason.to_owned()),
        ..PodStatus::default()
    }
}

/// Whether a status says that its pod never runs again.
pub fn is_settled(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// Kubernetes' rule: pending while a container has never run; over when all have ended for good.
fn phase(wanted: &Wanted, seen: &Seen) -> &'static str {
    let runs = || {
        wanted
            .containers
            .iter()
            .map(|name| seen.containers.get(name).map(|c| (&c.run, c)))
    };
    let exits = || {
        runs().flatten().filter_map(|(run, _)| match run {
            Run::Exited(exit) => Some(exit),
            _ => None,
        })
    };
    let ended = exits().count() == wanted.containers.len();
    let ending = wanted.ending != Ending::No;
    if ended && (ending || is_over(wanted, seen)) {
        return if exits().all(|exit| exit.code == 0) {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    let never_ran = |run: Option<(&Run, &Container)>| match run {
        Some((Run::Running { .. } | Run::Exited(_), _)) => false,
        Some((Run::Never, container)) => container.last_exit.is_none(),
        None => true,
    };
    if runs().any(never_ran) {
        "Pending"
    } else {
        "Running"
    }
}

fn container_statuses(pod: &Pod, wanted: &Wanted, seen: &Seen, facts: &Facts) -> Vec<ContainerStatus> {
    let specs = pod.spec.iter().flat_map(|spec| &spec.containers);
    let unknown = Container::default();
    specs
        .map(|spec| {
            let container = seen.containers.get(&spec.name).unwrap_or(&unknown);
            let running = matches!(container.run, Run::Running { .. });
            let (state, last_exit) = state(pod, wanted, &spec.name, &spec.image, container, facts.now);
            let image_id = match &container.image {
                Image::Ready { id } => id.clone(),
                _ => String::new(),
            };
            ContainerStatus {
                name: spec.name.clone(),
                image: spec.image.clone().unwrap_or_default(),
                image_id,
                container_id: run_id(&container.run).map(|id| format!("palisade://{id}")),
                last_state: last_exit.map(|exit| ContainerState {
                    terminated: Some(terminated(exit)),
                    ..Default::default()
                }),
                ready: running,
                started: Some(running),
                restart_count: i32::try_from(container.restarts).unwrap_or(i32::MAX),
                state: Some(state),
                ..ContainerStatus::default()
            }
        })
        .collect()
}

/// The present state, and the exit that is the last state.
fn state<'a>(
    pod: &Pod,
    wanted: &Wanted,
    name: &str,
    image: &Option<String>,
    container: &'a Container,
    now: Timestamp,
) -> (ContainerState, Option<&'a Exit>) {
    let last = container.last_exit.as_ref();
    match &container.run {
        Run::Running { started_at, .. } => {
            let running = ContainerStateRunning {
                started_at: Some(Time(*started_at)),
            };
            (
                ContainerState {
                    running: Some(running),
                    ..Default::default()
                },
                last,
            )
        }
        Run::Exited(exit) => {
            let again =
                starts_again(wanted.restart, exit.code) && wanted.ending == Ending::No && !wanted.settled;
            let streak = backoff::streak_after(container.streak, exit);
            let due = backoff::restart_at(exit, container.streak);
            if again && let Some(failure) = obstacle(container) {
                return (waiting(failure.reason, Some(failure.message.clone())), Some(exit));
            }
            if again && due > now {
                let message = format!(
                    "back-off {} restarting failed container={name} pod={}",
                    go_duration(backoff::delay(streak).as_secs()),
                    full_name(pod)
                );
                return (waiting("CrashLoopBackOff", Some(message)), Some(exit));
            }
            (
                ContainerState {
                    terminated: Some(terminated(exit)),
                    ..Default::default()
                },
                last,
            )
        }
        Run::Never => match obstacle(container) {
            Some(failure) => (waiting_for(failure, image, &container.image, now), last),
            None => (waiting("ContainerCreating", None), last),
        },
    }
}

/// An image that failed is `ErrImagePull` at first and `ImagePullBackOff` once the retry waits for more
/// than the moment of its failure, as `kubectl get` users know it.
fn waiting_for(failure: &Failure, image: &Option<String>, state: &Image, now: Timestamp) -> ContainerState {
    let backing_off = failure.attempts > 1 || failure.at < now;
    if matches!(state, Image::Failed(_)) && failure.reason == "ErrImagePull" && backing_off {
        let image = image.as_deref().unwrap_or_default();
        let message = format!("Back-off pulling image {image:?}: {}", failure.message);
        return waiting("ImagePullBackOff", Some(message));
    }
    waiting(failure.reason, Some(failure.message.clone()))
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting {
        reason: Some(reason.to_owned()),
        message,
    };
    ContainerState {
        waiting: Some(waiting),
        ..Default::default()
    }
}

fn terminated(exit: &Exit) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(format!("palisade://{}", exit.id)),
        exit_code: exit.code,
        finished_at: Some(Time(exit.finished_at)),
        message: exit.message.clone(),
        reason: Some(exit.reason.clone()),
        signal: exit.signal,
        started_at: exit.started_at.map(Time),
    }
}

fn run_id(run: &Run) -> Option<&str> {
    match run {
        Run::Never => None,
        Run::Running { id, .. } => Some(id),
        Run::Exited(exit) => Some(&exit.id),
    }
}

fn conditions(
    pod: &Pod,
    before: &PodStatus,
    phase: &str,
    seen: &Seen,
    statuses: &[ContainerStatus],
    facts: &Facts,
) -> Vec<PodCondition> {
    let unready: Vec<&str> = statuses
        .iter()
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();
    let ready: Truth = match phase {
        "Succeeded" => (false, Some("PodCompleted"), None),
        "Failed" => (false, Some("PodFailed"), None),
        _ if unready.is_empty() => (true, None, None),
        _ => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            (false, Some("ContainersNotReady"), Some(message))
        }
    };
    let initialized = (true, (phase == "Succeeded").then_some("PodCompleted"), None);
    let rows: [(&str, Truth); 5] = [
        (
            "PodReadyToStartContainers",
            (seen.ground == Ground::Judged, None, None),
        ),
        ("Initialized", initialized),
        ("Ready", ready.clone()),
        ("ContainersReady", ready),
        ("PodScheduled", (true, None, None)),
    ];
    let ours = |kind: &str| rows.iter().any(|(row, _)| *row == kind);
    let existing = before.conditions.iter().flatten();
    let of_others = existing
        .clone()
        .filter(|condition| !ours(&condition.type_))
        .cloned();
    let mut conditions: Vec<PodCondition> = rows
        .iter()
        .map(|(kind, (holds, reason, message))| {
            let status = if *holds { "True" } else { "False" };
            let unchanged = existing.clone().find(|c| c.type_ == *kind && c.status == status);
            PodCondition {
                last_transition_time: unchanged
                    .and_then(|c| c.last_transition_time.clone())
                    .or(Some(Time(facts.now))),
                message: message.clone(),
                observed_generation: pod.metadata.generation,
                reason: reason.map(str::to_owned),
                status: status.to_owned(),
                type_: (*kind).to_owned(),
                ..PodCondition::default()
            }
        })
        .collect();
    conditions.extend(of_others);
    conditions
}

/// Whether a condition holds, its reason and its message.
type Truth = (bool, Option<&'static str>, Option<String>);

/// `name_namespace(uid)`, as Kubernetes names a pod in its messages.
fn full_name(pod: &Pod) -> String {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let meta = &pod.metadata;
    format!(
        "{}_{}({})",
        text(&meta.name),
        text(&meta.namespace),
        text(&meta.uid)
    )
}

/// Whole seconds the way Go prints them: `10s`, `1m20s`, `5m0s`.
fn go_duration(seconds: i64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_gos() {
        assert_eq!([10, 80, 300].map(go_duration), ["10s", "1m20s", "5m0s"]);
    }
}
