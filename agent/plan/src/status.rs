//! What the node says about a pod, in Kubernetes' words.

use std::net::IpAddr;

use api::qos::qos_class;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container as Spec, ContainerState, ContainerStateRunning, ContainerStateTerminated,
        ContainerStateWaiting, ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodIP,
        PodStatus, VolumeMount, VolumeMountStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    Container, Ending, Exit, Failure, Hook, Image, Member, Role, Run, Seen, User, Wanted, as_container,
    backoff, conditions,
    order::{Over, has_completed, is_outdated, is_ready, is_started, open, over, starts_again},
    steps::obstacle,
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
    let view = View {
        pod,
        wanted,
        seen,
        now: facts.now,
    };
    let spec = pod.spec.clone().unwrap_or_default();
    let init_statuses = view.statuses(spec.init_containers.as_deref().unwrap_or_default());
    let statuses = view.statuses(&spec.containers);
    let ephemeral: Vec<Spec> = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(as_container)
        .collect();
    let ephemeral_statuses = view.statuses(&ephemeral);
    let phase = view.phase();
    let conditions = conditions::of(&view, &before, phase, &init_statuses, &statuses);
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
    let (reason, message) = view.reason(phase);
    // Of one that the node did not begin with there are no containers to speak of, as with the kubelet (`rejectPod`): what
    // a container waits for would be shown in place of the reason.
    let shown = |statuses: Vec<ContainerStatus>| Some(statuses).filter(|_all| !seen.is_refused());
    let shown_if_any = |statuses: Vec<ContainerStatus>| shown(statuses).filter(|all| !all.is_empty());
    PodStatus {
        conditions: Some(conditions),
        container_statuses: shown(statuses),
        ephemeral_container_statuses: shown_if_any(ephemeral_statuses),
        host_ip: host_ips.first().map(|host| host.ip.clone()),
        host_ips: Some(host_ips),
        init_container_statuses: shown_if_any(init_statuses),
        observed_generation: pod.metadata.generation,
        phase: Some(phase.to_owned()),
        pod_ip: pod_ips.first().map(|pod| pod.ip.clone()),
        pod_ips: (!pod_ips.is_empty()).then_some(pod_ips),
        qos_class: before
            .qos_class
            .or_else(|| pod.spec.as_ref().map(|spec| qos_class(spec).to_owned())),
        start_time: before.start_time.or(Some(Time(facts.now))),
        message,
        reason,
        ..PodStatus::default()
    }
}

/// Whether a status says that its pod never runs again.
pub fn is_settled(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// Everything that a part of a status is a function of.
pub(crate) struct View<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) wanted: &'a Wanted,
    pub(crate) seen: &'a Seen,
    pub(crate) now: Timestamp,
}

impl View<'_> {
    fn container(&self, name: &str) -> Option<&Container> {
        self.seen.container(name)
    }

    fn runs(&self) -> bool {
        let mut all = self.seen.containers.values();
        all.any(|container| matches!(container.run, Run::Running { .. }))
    }

    /// Whether the pod has ended before its time, by deletion, failure or the node: what never ran never will.
    fn has_ended(&self) -> bool {
        let cut_off = || {
            let over = over(self.wanted, self.seen, self.now);
            matches!(over, Some(Over::InitFailed | Over::Deadline | Over::Evicted))
        };
        !self.runs() && (self.wanted.ending != Ending::No || cut_off())
    }

    /// Kubernetes' rule: pending while a container has never run; over when all have ended for good and
    /// nothing runs any more. Who is deleted before all have run has failed.
    fn phase(&self) -> &'static str {
        let mains = || {
            self.wanted
                .of_role(Role::Main)
                .map(|member| self.container(&member.name))
        };
        let exits = || {
            mains().flatten().filter_map(|container| match &container.run {
                Run::Exited(exit) => Some(exit),
                _ => None,
            })
        };
        if !self.runs() {
            let all_ran = exits().count() == mains().count();
            match over(self.wanted, self.seen, self.now) {
                Some(Over::InitFailed | Over::Deadline | Over::Evicted) => return "Failed",
                None if !self.has_ended() => {}
                Some(Over::Completed) | None if all_ran && exits().all(|exit| exit.code == 0) => {
                    return "Succeeded";
                }
                Some(Over::Completed) | None => return "Failed",
            }
        }
        let mut inits = self.wanted.of_role(Role::Init);
        let initializing = inits.any(|member| !self.container(&member.name).is_some_and(has_completed));
        let never_ran = |container: Option<&Container>| {
            container.is_none_or(|c| (c.run == Run::Never || is_in_hook(c)) && c.last_exit.is_none())
        };
        if initializing || mains().any(never_ran) {
            "Pending"
        } else {
            "Running"
        }
    }

    /// Reason and message of the pod as a whole.
    fn reason(&self, phase: &str) -> (Option<String>, Option<String>) {
        if phase != "Failed" {
            // What a pod waits for is no news of one that does not wait any more.
            let waits = phase == "Pending" && over(self.wanted, self.seen, self.now).is_none();
            let failure = self.seen.ground_failure.as_ref().filter(|_failure| waits);
            let told = failure.map(|failure| (failure.reason.to_owned(), failure.message.clone()));
            return told.unzip();
        }
        match (over(self.wanted, self.seen, self.now), &self.seen.eviction) {
            (Some(Over::Deadline), _) => {
                let message = "Pod was active on the node longer than the specified deadline";
                (Some("DeadlineExceeded".to_owned()), Some(message.to_owned()))
            }
            (Some(Over::Evicted), Some(eviction)) => {
                let reason = eviction.cause.reason();
                (Some(reason.to_owned()), Some(eviction.message.clone()))
            }
            _ => (None, None),
        }
    }

    fn statuses(&self, specs: &[Spec]) -> Vec<ContainerStatus> {
        let unknown = Container::default();
        let status = |spec: &Spec| {
            let member = self
                .wanted
                .containers
                .iter()
                .find(|member| member.name == spec.name)?;
            Some(self.status(spec, member, self.container(&spec.name).unwrap_or(&unknown)))
        };
        specs.iter().filter_map(status).collect()
    }

    fn status(&self, spec: &Spec, member: &Member, container: &Container) -> ContainerStatus {
        let (state, last_exit) = self.state(spec, member, container);
        let image_id = match &container.image {
            Image::Ready { id } | Image::Checking { id } => id.clone(),
            // What was said before: an agent that was restarted does not fetch what it needs no more.
            _ => self.image_before(&spec.name).unwrap_or_default(),
        };
        // What runs, and not yet what the pod names meanwhile.
        let runs = matches!(container.run, Run::Running { .. });
        let image = container.made_of.clone().filter(|_made_of| runs);
        ContainerStatus {
            name: spec.name.clone(),
            image: image.or_else(|| spec.image.clone()).unwrap_or_default(),
            image_id,
            container_id: run_id(&container.run).map(|id| format!("palisade://{id}")),
            last_state: last_exit.map(|exit| ContainerState {
                terminated: Some(terminated(exit)),
                ..Default::default()
            }),
            ready: match member.role {
                Role::Init => has_completed(container),
                Role::Sidecar | Role::Main => is_ready(member, container),
                Role::Ephemeral => false,
            },
            started: (member.role != Role::Ephemeral).then(|| is_started(member, container)),
            restart_count: i32::try_from(container.restarts).unwrap_or(i32::MAX),
            state: Some(state),
            ..match container.run {
                Run::Never => ContainerStatus::default(),
                Run::Running { .. } | Run::Exited(_) => as_made(spec, container),
            }
        }
    }

    fn image_before(&self, name: &str) -> Option<String> {
        let status = self.pod.status.as_ref()?;
        let lists = [
            &status.init_container_statuses,
            &status.container_statuses,
            &status.ephemeral_container_statuses,
        ];
        let mut known = lists.into_iter().flatten().flatten();
        let known = known.find(|status| status.name == name)?;
        Some(known.image_id.clone())
    }

    /// The present state, and the exit that is the last state.
    fn state<'a>(
        &self,
        spec: &Spec,
        member: &Member,
        container: &'a Container,
    ) -> (ContainerState, Option<&'a Exit>) {
        let last = container.last_exit.as_ref();
        match &container.run {
            // The hook after the start is part of it.
            Run::Running { .. } if is_in_hook(container) => (waiting(self.creating(member), None), last),
            Run::Running { started_at, .. } => (running(*started_at), last),
            Run::Exited(exit) => {
                let goes_on = self.wanted.ending == Ending::No
                    && !self.wanted.settled
                    && over(self.wanted, self.seen, self.now).is_none();
                if goes_on
                    && starts_again(self.wanted, member, container, exit)
                    && let Some(state) = self.waiting_again(spec, member, container, exit)
                {
                    return (state, Some(exit));
                }
                let ended = ContainerState {
                    terminated: Some(terminated(exit)),
                    ..Default::default()
                };
                (ended, last)
            }
            Run::Never if self.has_ended() && self.was_due(member) => (unknown(), last),
            Run::Never => match obstacle(container).filter(|_failure| self.is_due(member)) {
                Some(failure) => (self.waiting_for(failure, spec, &container.image), last),
                None => (waiting(self.creating(member), None), last),
            },
        }
    }

    /// What keeps a container that ended from starting again now; nothing if it is about to.
    fn waiting_again(
        &self,
        spec: &Spec,
        member: &Member,
        container: &Container,
        exit: &Exit,
    ) -> Option<ContainerState> {
        // Its sandbox is gone, and what comes before it has to run again.
        if !self.is_due(member) {
            return Some(waiting(self.creating(member), None));
        }
        if let Some(failure) = obstacle(container) {
            return Some(self.waiting_for(failure, spec, &container.image));
        }
        if is_outdated(member, container) {
            return None;
        }
        let streak = backoff::streak_after(container.streak, exit);
        if backoff::restart_at(exit, container.streak) <= self.now {
            return None;
        }
        let message = format!(
            "back-off {} restarting failed container={} pod={}",
            go_duration(backoff::delay(streak).as_secs()),
            spec.name,
            full_name(self.pod)
        );
        Some(waiting("CrashLoopBackOff", Some(message)))
    }

    /// Whether the container's turn has come: only then its obstacles are news.
    fn is_due(&self, member: &Member) -> bool {
        let mut due = self.wanted.containers.iter().take(open(self.wanted, self.seen));
        member.role == Role::Ephemeral || due.any(|other| other.name == member.name)
    }

    /// Which containers a pod that has ended says to have lost, although they never ran: the kubelet's rule (`TerminatePod`).
    /// Main containers once the pod was initialized; init containers up to the last that has begun, and the first in any case.
    fn was_due(&self, member: &Member) -> bool {
        let began = |member: &Member| {
            let container = self.container(&member.name);
            container.is_some_and(|container| container.run != Run::Never || container.last_exit.is_some())
        };
        let inits = || {
            let all = self.wanted.containers.iter();
            all.filter(|member| matches!(member.role, Role::Init | Role::Sidecar))
        };
        match member.role {
            Role::Ephemeral => false,
            Role::Main => {
                let succeeded = |member: &Member| {
                    self.container(&member.name).is_some_and(|container| {
                        let exit = match &container.run {
                            Run::Exited(exit) => Some(exit),
                            _ => None,
                        };
                        let mut exits = exit.into_iter().chain(&container.last_exit);
                        exits.any(|exit| exit.code == 0)
                    })
                };
                inits().next_back().is_none_or(succeeded) || self.wanted.of_role(Role::Main).any(began)
            }
            Role::Init | Role::Sidecar => {
                let first = inits().next().is_some_and(|first| first.name == member.name);
                let mut from_it_on = inits().skip_while(|other| other.name != member.name);
                first || from_it_on.any(began)
            }
        }
    }

    /// Kubernetes' word for a container that has not started yet.
    fn creating(&self, member: &Member) -> &'static str {
        let spec = self.pod.spec.as_ref();
        let inits = spec.and_then(|spec| spec.init_containers.as_ref());
        let inits = inits.filter(|_| member.role != Role::Ephemeral);
        match inits.is_some_and(|inits| !inits.is_empty()) {
            true => "PodInitializing",
            false => "ContainerCreating",
        }
    }

    /// An image that failed is `ErrImagePull` for a moment after its failure and `ImagePullBackOff` while the next
    /// attempt waits, as the kubelet has it after each attempt.
    fn waiting_for(&self, failure: &Failure, spec: &Spec, state: &Image) -> ContainerState {
        let of_image = matches!(state, Image::Failed(_) | Image::Retrying(_));
        let backing_off = backoff::known_at(failure) <= self.now;
        if of_image && failure.reason == "ErrImagePull" && backing_off {
            let image = spec.image.as_deref().unwrap_or_default();
            let message = format!(
                "Back-off pulling image {image:?}: {}: {}",
                failure.reason, failure.message
            );
            return waiting("ImagePullBackOff", Some(message));
        }
        waiting(failure.reason, Some(failure.message.clone()))
    }
}

/// What a container was made with. Nothing of that changes while it exists, so it is what its spec says.
fn as_made(spec: &Spec, container: &Container) -> ContainerStatus {
    let resources = spec.resources.clone().unwrap_or_default();
    let mounts = spec.volume_mounts.as_ref();
    ContainerStatus {
        allocated_resources: resources.requests.clone(),
        resources: Some(resources),
        volume_mounts: mounts.map(|mounts| mounts.iter().map(mounted).collect()),
        user: container.user.as_ref().map(user),
        ..ContainerStatus::default()
    }
}

/// `recursiveReadOnly` is said of mounts that are read-only. The runtime mounts a volume without what is mounted in it, so
/// whatever is asked for holds; Kubernetes says what was asked for.
fn mounted(mount: &VolumeMount) -> VolumeMountStatus {
    let asked = matches!(
        mount.recursive_read_only.as_deref(),
        Some("Enabled" | "IfPossible")
    );
    let recursive = if asked { "Enabled" } else { "Disabled" };
    VolumeMountStatus {
        mount_path: mount.mount_path.clone(),
        name: mount.name.clone(),
        read_only: mount.read_only,
        recursive_read_only: (mount.read_only == Some(true)).then(|| recursive.to_owned()),
    }
}

fn user(user: &User) -> ContainerUser {
    let groups = user.supplementary.iter().map(|gid| i64::from(*gid)).collect();
    ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: Some(groups),
        }),
    }
}

/// Whether the container's process runs, but not yet as far as people are concerned.
fn is_in_hook(container: &Container) -> bool {
    matches!(container.run, Run::Running { .. })
        && container.life.post_start == Hook::Running
        && container.stop.is_none()
}

fn running(started_at: Timestamp) -> ContainerState {
    ContainerState {
        running: Some(ContainerStateRunning {
            started_at: Some(Time(started_at)),
        }),
        ..Default::default()
    }
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

/// In the kubelet's words, which are the same for one that it has lost.
fn unknown() -> ContainerState {
    let terminated = ContainerStateTerminated {
        exit_code: 137,
        message: Some("The container could not be located when the pod was terminated".to_owned()),
        reason: Some("ContainerStatusUnknown".to_owned()),
        ..Default::default()
    };
    ContainerState {
        terminated: Some(terminated),
        ..Default::default()
    }
}

fn terminated(exit: &Exit) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(format!("palisade://{}", exit.id)),
        exit_code: exit.code,
        finished_at: Some(Time(exit.finished_at)),
        message: exit.message.clone().filter(|message| !message.is_empty()),
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
    fn a_container_that_exists_says_what_it_was_made_with() {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "name": "c",
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}},
            "volumeMounts": [
                {"name": "v", "mountPath": "/a"},
                {"name": "v", "mountPath": "/b", "readOnly": true},
                {"name": "v", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "IfPossible"},
            ],
        }))
        .unwrap();
        let container = Container {
            user: Some(User {
                uid: 7,
                gid: 8,
                supplementary: vec![9],
            }),
            ..Container::default()
        };
        let made = serde_json::to_value(as_made(&spec, &container)).unwrap();
        assert_eq!(made["resources"], serde_json::to_value(&spec.resources).unwrap());
        assert_eq!(made["allocatedResources"], serde_json::json!({"cpu": "500m"}));
        let mounts = serde_json::json!([
            {"name": "v", "mountPath": "/a"},
            {"name": "v", "mountPath": "/b", "readOnly": true, "recursiveReadOnly": "Disabled"},
            {"name": "v", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "Enabled"},
        ]);
        assert_eq!(made["volumeMounts"], mounts);
        let linux = serde_json::json!({"uid": 7, "gid": 8, "supplementalGroups": [9]});
        assert_eq!(made["user"]["linux"], linux);
        let plain = serde_json::to_value(as_made(&Spec::default(), &Container::default())).unwrap();
        assert_eq!(
            plain["resources"],
            serde_json::json!({}),
            "as Kubernetes says it of none"
        );
        for absent in ["allocatedResources", "volumeMounts", "user"] {
            assert!(plain.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn durations_read_like_gos() {
        assert_eq!([10, 80, 300].map(go_duration), ["10s", "1m20s", "5m0s"]);
    }
}
