//! From the runtime's words and the API object to what `agent/plan` looks at. Pure.

use agent_plan::{
    Container, Ending, Exit, Member, RestartPolicy, Role, Run, Seen, User, Wanted, as_container, comes_back,
    is_settled,
};
use agent_runtime::{ContainerState, ContainerStatus};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as Spec, ContainerStatus as ApiStatus, Pod, PodStatus};

use super::PodId;

/// Exit code of a container whose program could not be executed: what Docker and Kubernetes use.
const START_ERROR_CODE: i32 = 128;
/// Exit code of a container whose end nobody saw: 128 plus `SIGKILL`.
const UNKNOWN_CODE: i32 = 137;
/// Grace of a pod that does not say: Kubernetes' default.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// What the API wants. Without an object the pod is gone. `reported` is the last status that was rendered:
/// what the API has may be older.
pub(super) fn wanted(pod: Option<&Pod>, reported: Option<&PodStatus>, seen: &Seen) -> Wanted {
    let Some(pod) = pod else {
        return Wanted {
            containers: seen.containers.keys().map(|name| stranger(name)).collect(),
            restart: RestartPolicy::Never,
            grace: SignedDuration::ZERO,
            deadline: None,
            ending: Ending::Gone,
            settled: false,
        };
    };
    let spec = pod.spec.as_ref();
    let own_grace = spec
        .and_then(|spec| spec.termination_grace_period_seconds)
        .unwrap_or(DEFAULT_GRACE_SECONDS);
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(own_grace);
    let deleted = pod.metadata.deletion_timestamp.is_some();
    // What another life of the pod was like says nothing about this one.
    let own = pod.status.as_ref().filter(|status| !comes_back(pod, status));
    let started_at = reported.or(own).and_then(|status| status.start_time.as_ref());
    let deadline = spec.and_then(|spec| spec.active_deadline_seconds);
    let deadline = started_at.zip(deadline).map(|(started_at, seconds)| {
        let wait = SignedDuration::from_secs(seconds);
        started_at.0.saturating_add(wait).unwrap_or(Timestamp::MAX)
    });
    let inits = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let mains = spec.iter().flat_map(|spec| &spec.containers);
    let ephemeral = spec
        .iter()
        .flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    let ephemeral = ephemeral.map(|ephemeral| Member {
        target: ephemeral
            .target_container_name
            .clone()
            .filter(|target| !target.is_empty()),
        ..member(&as_container(ephemeral), Role::Ephemeral)
    });
    Wanted {
        containers: inits
            .map(|spec| member(spec, init_role(spec)))
            .chain(mains.map(|spec| member(spec, Role::Main)))
            .chain(ephemeral)
            .collect(),
        grace: SignedDuration::from_secs(own_grace),
        deadline,
        restart: match spec.and_then(|spec| spec.restart_policy.as_deref()) {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        },
        ending: if deleted {
            Ending::Graceful(SignedDuration::from_secs(grace))
        } else {
            Ending::No
        },
        settled: own.is_some_and(is_settled) || reported.is_some_and(is_settled),
    }
}

/// Whether an init container runs to its end or beside the others.
fn init_role(spec: &Spec) -> Role {
    match spec.restart_policy.as_deref() {
        Some("Always") => Role::Sidecar,
        _ => Role::Init,
    }
}

fn member(spec: &Spec, role: Role) -> Member {
    let hooks = spec.lifecycle.as_ref();
    Member {
        name: spec.name.clone(),
        role,
        image: spec.image.clone().unwrap_or_default(),
        target: None,
        post_start: hooks.is_some_and(|hooks| hooks.post_start.is_some()),
        pre_stop: hooks.is_some_and(|hooks| hooks.pre_stop.is_some()),
        startup_probe: spec.startup_probe.is_some(),
        readiness_probe: spec.readiness_probe.is_some(),
    }
}

/// A container of a pod whose object is gone.
fn stranger(name: &str) -> Member {
    let spec = Spec {
        name: name.to_owned(),
        ..Spec::default()
    };
    member(&spec, Role::Main)
}

/// Takes what the shim says about one container.
pub(super) fn take(id: &PodId, container: &mut Container, status: &ContainerStatus) {
    // An answer that was on its way while a new run began speaks of the run before.
    if status.attempt < container.restarts {
        return;
    }
    // A start that the node failed at is none: the next one has the same number.
    if matches!(status.state, ContainerState::Failed { .. }) {
        return;
    }
    container.restarts = status.attempt;
    let run = run_id(id, &status.name, status.attempt);
    if matches!(&container.run, Run::Exited(known) if known.id == run) {
        // What is known of its end is more than the shim knows.
        return;
    }
    container.run = match &status.state {
        ContainerState::Creating | ContainerState::Failed { .. } => return,
        ContainerState::Running { started_at, .. } => Run::Running {
            id: run,
            started_at: *started_at,
        },
        ContainerState::Exited(exit) => Run::Exited(ended(run, exit)),
    };
}

/// The shim died, and with it every container it had.
pub(super) fn lost(container: &mut Container, now: Timestamp) {
    container.stale = true;
    if let Run::Running { id, started_at } = &container.run {
        container.run = Run::Exited(Exit {
            id: id.clone(),
            code: UNKNOWN_CODE,
            signal: None,
            reason: "ContainerStatusUnknown".to_owned(),
            message: Some("the container's supervisor died; how the container ended is not known".to_owned()),
            started_at: Some(*started_at),
            finished_at: now,
        });
    }
}

/// A run whose program could not be executed.
pub(super) fn start_error(id: String, message: String, now: Timestamp) -> Run {
    Run::Exited(Exit {
        id,
        code: START_ERROR_CODE,
        signal: None,
        reason: "StartError".to_owned(),
        message: Some(message),
        started_at: None,
        finished_at: now,
    })
}

/// What the API remembers of containers from before this agent was started, or this node has `told` last. How many of their
/// restarts were failures in a row nobody remembers: as with the kubelet their delays begin anew.
pub(super) fn remember(seen: &mut Seen, pod: &Pod, told: Option<&PodStatus>) {
    let statuses = told.or(pod.status.as_ref()).into_iter().flat_map(|status| {
        let inits = status.init_container_statuses.iter().flatten();
        let ephemeral = status.ephemeral_container_statuses.iter().flatten();
        inits
            .chain(status.container_statuses.iter().flatten())
            .chain(ephemeral)
    });
    for status in statuses {
        let container = seen.containers.entry(status.name.clone()).or_default();
        let restarts = u32::try_from(status.restart_count).unwrap_or(0);
        if container.restarts <= restarts {
            container.restarts = restarts;
            container.last_exit = last_exit(status);
        }
        // What hooks and probes of a run that goes on had found out. A hook that ran is not run again.
        if matches!(&container.run, Run::Running { id, .. } if Some(id.as_str()) == run_of(status)) {
            container.life.started = status.started == Some(true);
            container.life.ready = status.ready;
        }
        // A run that nobody knows any more, of a pod that was running when the machine went down.
        let terminated = status.state.as_ref().and_then(|state| state.terminated.as_ref());
        // One that was lost before it began (`ContainerStatusUnknown` without an id) has not run.
        let terminated = terminated.filter(|terminated| terminated.container_id.is_some());
        let running = status.state.as_ref().and_then(|state| state.running.as_ref());
        if container.run == Run::Never {
            if let Some(terminated) = terminated {
                container.run = Run::Exited(exit_of(terminated));
                container.stale = true;
            } else if let Some(running) = running {
                let id = run_of(status).unwrap_or_default().to_owned();
                let now = Timestamp::now();
                let started_at = running.started_at.as_ref().map_or(now, |time| time.0);
                container.run = Run::Running { id, started_at };
                lost(container, now);
            } else if let Some(exit) = container.last_exit.take() {
                // It waits to be started again: the next run has the next number.
                container.run = Run::Exited(exit);
                container.stale = true;
            }
        }
        let run = match &container.run {
            Run::Never => None,
            Run::Running { id, .. } => Some(id.as_str()),
            Run::Exited(exit) => Some(exit.id.as_str()),
        };
        if run.is_some() && run == run_of(status) {
            container.user = user_of(status);
            container.made_of = Some(status.image_id.clone()).filter(|image| !image.is_empty());
        }
    }
}

/// As whom a container was said to run.
fn user_of(status: &ApiStatus) -> Option<User> {
    let linux = status.user.as_ref()?.linux.as_ref()?;
    let id = |id: &i64| u32::try_from(*id).ok();
    let groups = linux.supplemental_groups.iter().flatten();
    Some(User {
        uid: id(&linux.uid)?,
        gid: id(&linux.gid)?,
        supplementary: groups.map(id).collect::<Option<_>>()?,
    })
}

fn run_of(status: &ApiStatus) -> Option<&str> {
    status.container_id.as_deref()?.strip_prefix("palisade://")
}

/// Identity of a run, unique on the node: it is also the container id that the API shows.
pub(super) fn run_id(id: &PodId, container: &str, attempt: u32) -> String {
    format!("{}/{container}/{attempt}", id.uid)
}

fn ended(id: String, exit: &agent_runtime::Exit) -> Exit {
    let reason = match exit {
        exit if exit.started_at.is_none() => "StartError",
        exit if exit.oom_killed => "OOMKilled",
        exit if exit.code == 0 => "Completed",
        _ => "Error",
    };
    Exit {
        id,
        code: exit.code,
        signal: exit.signal,
        reason: reason.to_owned(),
        message: Some(exit.message.clone()).filter(|message| !message.is_empty()),
        started_at: exit.started_at,
        finished_at: exit.finished_at,
    }
}

fn last_exit(status: &ApiStatus) -> Option<Exit> {
    status.last_state.as_ref()?.terminated.as_ref().map(exit_of)
}

fn exit_of(terminated: &k8s_openapi::api::core::v1::ContainerStateTerminated) -> Exit {
    let id = terminated.container_id.clone().unwrap_or_default();
    Exit {
        id: id.trim_start_matches("palisade://").to_owned(),
        code: terminated.exit_code,
        signal: terminated.signal,
        reason: terminated.reason.clone().unwrap_or_default(),
        message: terminated.message.clone(),
        started_at: terminated.started_at.as_ref().map(|time| time.0),
        finished_at: terminated
            .finished_at
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id() -> PodId {
        PodId {
            uid: "u".to_owned(),
            namespace: "n".to_owned(),
            name: "p".to_owned(),
        }
    }

    fn status(attempt: u32, state: ContainerState) -> ContainerStatus {
        ContainerStatus {
            name: "c".to_owned(),
            attempt,
            state,
            sandbox: agent_sandbox::Report::default(),
            connect: None,
            stop_signal: 15,
            uid: None,
        }
    }

    #[test]
    fn an_old_answer_does_not_undo_a_new_run() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut container = Container {
            restarts: 2,
            ..Container::default()
        };
        take(
            &id(),
            &mut container,
            &status(
                1,
                ContainerState::Running {
                    pid: 1,
                    started_at: now,
                },
            ),
        );
        assert_eq!(container.run, Run::Never);
        take(
            &id(),
            &mut container,
            &status(
                2,
                ContainerState::Running {
                    pid: 1,
                    started_at: now,
                },
            ),
        );
        assert_eq!(
            container.run,
            Run::Running {
                id: "u/c/2".to_owned(),
                started_at: now
            }
        );
        lost(&mut container, now);
        assert!(matches!(&container.run, Run::Exited(exit) if exit.code == 137));
    }

    #[test]
    fn a_start_that_the_node_failed_at_is_no_run() {
        let failed = ContainerState::Failed {
            message: "no space".to_owned(),
        };
        let mut never = Container::default();
        take(&id(), &mut never, &status(0, failed.clone()));
        assert_eq!(never, Container::default());
        let mut ended = Container::default();
        let now = Timestamp::UNIX_EPOCH;
        ended.run = start_error("u/c/0".to_owned(), "not found".to_owned(), now);
        let before = ended.clone();
        take(&id(), &mut ended, &status(1, failed));
        assert_eq!(ended, before, "the next run is still the first after it");
    }

    #[test]
    fn deletion_and_policy_come_from_the_object() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 5},
            "spec": {"containers": [{"name": "c"}], "restartPolicy": "OnFailure"},
            "status": {"phase": "Succeeded"},
        }))
        .unwrap();
        let wanted = wanted(Some(&pod), None, &Seen::default());
        assert_eq!(wanted.ending, Ending::Graceful(SignedDuration::from_secs(5)));
        assert_eq!(wanted.restart, RestartPolicy::OnFailure);
        assert!(wanted.settled);
        assert_eq!(super::wanted(None, None, &Seen::default()).ending, Ending::Gone);
    }

    #[test]
    fn a_static_pod_runs_again_after_its_node_was_down_and_no_other_does() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let begins = |annotations: serde_json::Value, reported: Option<&PodStatus>| {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"annotations": annotations},
                "spec": {"containers": [{"name": "c"}], "restartPolicy": "Always", "activeDeadlineSeconds": 60},
                "status": {"phase": "Failed", "reason": "Terminated", "startTime": "2026-01-01T00:00:00Z",
                    "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false,
                        "restartCount": 1, "containerID": "palisade://u/c/1",
                        "state": {"terminated": {"exitCode": 0, "containerID": "palisade://u/c/1",
                            "finishedAt": "2026-01-01T00:05:00Z"}}}]},
            }))
            .unwrap();
            let mut seen = Seen::default();
            remember(&mut seen, &pod, None);
            assert_eq!(
                seen.containers["c"].restarts, 1,
                "the next run has the next number"
            );
            let wanted = wanted(Some(&pod), reported, &seen);
            agent_plan::plan(&wanted, &seen, now)
                .steps
                .contains(&agent_plan::Step::StartSandbox)
        };
        let of_file = json!({"kubernetes.io/config.mirror": "h"});
        assert!(begins(of_file.clone(), None));
        assert!(!begins(json!({}), None));
        let by_this_agent = PodStatus {
            phase: Some("Failed".to_owned()),
            ..PodStatus::default()
        };
        assert!(!begins(of_file, Some(&by_this_agent)), "the node goes down now");
    }

    #[test]
    fn an_ephemeral_container_of_before_stays_ended() {
        let pod: Pod = serde_json::from_value(json!({
            "spec": {"containers": [{"name": "c"}],
                     "ephemeralContainers": [{"name": "d", "targetContainerName": "c"}, {"name": "e"}]},
            "status": {"ephemeralContainerStatuses": [{
                "name": "d", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "containerID": "palisade://u/d/0",
                "state": {"terminated": {"exitCode": 3, "containerID": "palisade://u/d/0"}}}]},
        }))
        .unwrap();
        let mut seen = Seen::default();
        remember(&mut seen, &pod, None);
        assert!(matches!(&seen.containers["d"].run, Run::Exited(exit) if exit.code == 3));
        let members = wanted(Some(&pod), None, &seen).containers;
        let shown: Vec<_> = members
            .iter()
            .map(|member| (member.name.as_str(), member.role, member.target.as_deref()))
            .collect();
        let expected = [
            ("c", Role::Main, None),
            ("d", Role::Ephemeral, Some("c")),
            ("e", Role::Ephemeral, None),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_an_earlier_agent_started_often_is_started_again_at_once() {
        let pod: Pod = serde_json::from_value(json!({
            "spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Always"},
            "status": {"containerStatuses": [{
                "name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 40,
                "containerID": "palisade://u/c/40", "state": {"running": {}}}]},
        }))
        .unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut seen = Seen {
            ground: agent_plan::Ground::Judged,
            ..Seen::default()
        };
        let container = seen.containers.entry("c".to_owned()).or_default();
        container.image = agent_plan::Image::Ready { id: "i".to_owned() };
        let running = ContainerState::Running {
            pid: 1,
            started_at: now,
        };
        take(&id(), container, &status(40, running));
        remember(&mut seen, &pod, None);
        assert_eq!(seen.containers["c"].made_of.as_deref(), Some("i"));
        lost(seen.containers.get_mut("c").unwrap(), now);
        let wanted = wanted(Some(&pod), None, &seen);
        let start = agent_plan::Step::StartContainer {
            container: "c".to_owned(),
            restarts: 41,
        };
        assert_eq!(agent_plan::plan(&wanted, &seen, now).steps, [start]);
    }

    #[test]
    fn what_was_lost_before_it_began_has_not_run() {
        let pod: Pod = serde_json::from_value(json!({
            "status": {"phase": "Failed", "reason": "Terminated", "containerStatuses": [{
                "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}}}]},
        }))
        .unwrap();
        let mut seen = Seen::default();
        remember(&mut seen, &pod, None);
        assert_eq!(seen.containers["c"].run, Run::Never, "the next run is the first");
    }

    #[test]
    fn a_pod_that_ran_before_a_reboot_has_ended() {
        let pod: Pod = serde_json::from_value(json!({"status": {"containerStatuses": [{
            "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 3,
            "containerID": "palisade://u/c/3",
            "user": {"linux": {"uid": 7, "gid": 8, "supplementalGroups": [9]}},
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}}))
        .unwrap();
        let mut seen = Seen::default();
        remember(&mut seen, &pod, None);
        let container = &seen.containers["c"];
        assert_eq!((container.restarts, container.streak), (3, 0), "it never failed");
        assert!(matches!(&container.run, Run::Exited(exit) if exit.reason == "ContainerStatusUnknown"));
        let user = User {
            uid: 7,
            gid: 8,
            supplementary: vec![9],
        };
        assert_eq!(container.user, Some(user), "of the same run");

        // One that was between two runs starts with the next one's number, not with that of the last again.
        let crashing: Pod = serde_json::from_value(json!({"status": {"containerStatuses": [{
            "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 3,
            "containerID": "palisade://u/c/3",
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 2, "reason": "Error", "containerID": "palisade://u/c/3"}}}]}}))
        .unwrap();
        let mut seen = Seen::default();
        remember(&mut seen, &crashing, None);
        let container = &seen.containers["c"];
        assert!(container.stale && container.restarts == 3 && container.streak == 0);
        assert!(matches!(&container.run, Run::Exited(exit) if exit.id == "u/c/3" && exit.code == 2));
        assert_eq!(container.last_exit, None, "it is the present state");

        // But for what this node knows better.
        let told: PodStatus = serde_json::from_value(json!({"phase": "Succeeded", "containerStatuses": [{
            "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 4,
            "containerID": "palisade://u/c/4",
            "state": {"terminated": {"exitCode": 0, "reason": "Completed", "containerID": "palisade://u/c/4"}}}]}))
        .unwrap();
        let mut seen = Seen::default();
        remember(&mut seen, &pod, Some(&told));
        let container = &seen.containers["c"];
        assert_eq!(container.restarts, 4);
        assert!(matches!(&container.run, Run::Exited(exit) if exit.reason == "Completed"));
        assert!(wanted(Some(&pod), Some(&told), &seen).settled);
        assert!(!wanted(Some(&pod), None, &seen).settled);
    }
}
