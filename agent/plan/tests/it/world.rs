//! A node with one pod on it, which takes the steps of plans.

use std::net::{IpAddr, Ipv4Addr};

use agent_plan::{
    Container, Ending, Exit, Facts, Failure, Ground, Hook, Image, Life, Member, Plan, Probe, RestartPolicy,
    Role, Run, Seen, Step, Stop, Wanted, Why, is_ready, plan, render, streak_after,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container as SpecContainer, ContainerStatus, EphemeralContainer, Pod, PodSpec, PodStatus,
};

pub(crate) const GRACE: SignedDuration = SignedDuration::from_secs(30);
/// The image of all members.
const IMAGE: &str = "registry/x@sha256:0";

/// A member without hooks and probes.
pub(crate) fn member(name: &str, role: Role) -> Member {
    Member {
        name: name.to_owned(),
        role,
        image: IMAGE.to_owned(),
        target: None,
        post_start: false,
        pre_stop: false,
        startup_probe: false,
        readiness_probe: false,
    }
}

/// A node with one pod on it. `luck` decides what succeeds; when it runs out everything succeeds.
pub(crate) struct World {
    pub(crate) wanted: Wanted,
    pub(crate) seen: Seen,
    pub(crate) now: Timestamp,
    pub(crate) luck: std::vec::IntoIter<u8>,
    pub(crate) forgotten: bool,
    pub(crate) starts: u32,
    /// Every start, stop signal and kill in order, such as `start a`.
    pub(crate) log: Vec<String>,
}

impl World {
    pub(crate) fn new(restart: RestartPolicy, luck: Vec<u8>) -> Self {
        Self::of(
            restart,
            luck,
            vec![member("a", Role::Main), member("b", Role::Main)],
        )
    }

    pub(crate) fn of(restart: RestartPolicy, luck: Vec<u8>, containers: Vec<Member>) -> Self {
        Self {
            wanted: Wanted {
                containers,
                restart,
                grace: GRACE,
                deadline: None,
                ending: Ending::No,
                settled: false,
            },
            seen: Seen::default(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            luck: luck.into_iter(),
            forgotten: false,
            starts: 0,
            log: Vec::new(),
        }
    }

    pub(crate) fn fails(&mut self) -> bool {
        self.luck.next().is_some_and(|roll| roll < 40)
    }

    pub(crate) fn container(&mut self, name: &str) -> &mut Container {
        self.seen.containers.entry(name.to_owned()).or_default()
    }

    pub(crate) fn failure(&self, reason: &'static str, before: Option<&Failure>) -> Failure {
        let attempts = before.map_or(0, |failure| failure.attempts) + 1;
        Failure {
            reason,
            message: "the test said so".to_owned(),
            at: self.now,
            attempts,
        }
    }

    pub(crate) fn exit(&mut self, name: &str, code: i32, signal: Option<i32>) {
        let now = self.now;
        let container = self.container(name);
        let Run::Running { id, started_at } = container.run.clone() else {
            panic!("{name} does not run")
        };
        let exit = Exit {
            id,
            code,
            signal,
            reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
            message: None,
            started_at: Some(started_at),
            finished_at: now,
        };
        container.run = Run::Exited(exit);
    }

    fn begin_stop(&mut self, name: &str, why: Why, grace: SignedDuration, failed: bool) {
        let now = self.now;
        let member = self.member(name).clone();
        let container = self.container(name);
        assert!(container.stop.is_none(), "an end begins once");
        match why {
            Why::Pod => {}
            Why::Probe(probe) => assert_eq!(container.life.doomed.map(|doom| doom.probe), Some(probe)),
            Why::PostStart => assert_eq!(container.life.post_start, Hook::Failed),
            Why::Image => assert_ne!(container.made_of, Some(member.image)),
        }
        // An unlucky hook never ends.
        let hook = if member.pre_stop && failed {
            Hook::Running
        } else {
            Hook::Done
        };
        container.stop = Some(Stop {
            why,
            since: now,
            grace,
            hook,
            signalled_at: None,
            killed_at: None,
        });
    }

    pub(crate) fn member(&self, name: &str) -> &Member {
        let mut members = self.wanted.containers.iter();
        members.find(|member| member.name == name).expect("a member")
    }

    /// What the members before this one must have done when it starts.
    fn assert_turn(&self, name: &str) {
        let begun = |member: &Member| {
            let container = self.seen.containers.get(&member.name);
            container.is_some_and(|container| container.run != Run::Never)
        };
        let anyone_later_began = self
            .wanted
            .containers
            .iter()
            .skip_while(|member| member.name != name)
            .any(begun);
        for before in self
            .wanted
            .containers
            .iter()
            .take_while(|member| member.name != name)
        {
            let container = self.seen.containers.get(&before.name).expect("began before");
            match before.role {
                Role::Init => assert!(matches!(&container.run, Run::Exited(exit) if exit.code == 0)),
                Role::Sidecar if anyone_later_began => {}
                Role::Sidecar => assert!(agent_plan::is_started(before, container)),
                Role::Main => {}
                Role::Ephemeral => panic!("ephemeral containers are last"),
            }
        }
    }

    pub(crate) fn take(&mut self, step: &Step) {
        let failed = self.fails();
        match step {
            Step::StartSandbox | Step::AttachNetwork | Step::ProgramPolicy if failed => {
                let failure = self.failure("FailedCreatePodSandBox", self.seen.ground_failure.as_ref());
                self.seen.ground_failure = Some(failure);
            }
            Step::StartSandbox => self.stage(Ground::Nothing, Ground::Sandbox),
            Step::AttachNetwork => self.stage(Ground::Sandbox, Ground::Network),
            Step::ProgramPolicy => self.stage(Ground::Network, Ground::Judged),
            Step::ReleaseNetwork => {
                assert!(self.seen.ground >= Ground::Network);
                self.seen.ground = Ground::Sandbox;
            }
            Step::RemoveSandbox => self.stage(Ground::Sandbox, Ground::Nothing),
            Step::FetchImage { container } => {
                let wanted = self.member(container).image.clone();
                let before = match &self.container(container).image {
                    Image::Failed(failure) => Some(failure.clone()),
                    Image::Unknown => None,
                    Image::Ready { id } if *id != wanted => None,
                    other => panic!("fetched again: {other:?}"),
                };
                self.container(container).image = match failed {
                    true => Image::Failed(self.failure("ErrImagePull", before.as_ref())),
                    false => Image::Ready { id: wanted },
                };
            }
            Step::StartContainer { container, restarts } => self.start(container, *restarts, failed),
            Step::BeginStop {
                container,
                why,
                grace,
            } => self.begin_stop(container, *why, *grace, failed),
            Step::Stop { container } => {
                self.log.push(format!("stop {container}"));
                let now = self.now;
                let stop = self
                    .container(container)
                    .stop
                    .as_mut()
                    .expect("an end begins first");
                stop.signalled(true, now);
                // An unlucky process ignores its stop signal.
                if !failed {
                    self.exit(container, 143, Some(15));
                }
            }
            Step::Kill { container } => {
                self.log.push(format!("kill {container}"));
                let now = self.now;
                let stop = self.container(container).stop.as_mut();
                let stop = stop.expect("an end begins first");
                assert!(stop.signalled_at.is_some(), "nobody is killed without a notice");
                stop.killed(true, now);
                // An unlucky one hangs in the kernel.
                if !failed {
                    self.exit(container, 137, Some(9));
                }
            }
            Step::ConfirmDeletion => self.wanted.ending = Ending::Gone,
            Step::Forget => self.forgotten = true,
        }
    }

    pub(crate) fn stage(&mut self, from: Ground, to: Ground) {
        assert_eq!(self.seen.ground, from, "stages follow one another");
        self.seen.ground = to;
        self.seen.ground_failure = None;
    }

    pub(crate) fn start(&mut self, name: &str, restarts: u32, failed: bool) {
        assert_eq!(
            self.seen.ground,
            Ground::Judged,
            "no process before its network is judged"
        );
        assert_eq!(
            self.wanted.ending,
            Ending::No,
            "nothing starts in a pod that ends"
        );
        if self.member(name).role != Role::Ephemeral {
            self.assert_turn(name);
        }
        let policy = self.wanted.restart;
        let member = self.member(name).clone();
        let (now, starts) = (self.now, self.starts);
        let before = self.container(name).start_failure.clone();
        let failure = self.failure("RunContainerError", before.as_ref());
        let container = self.container(name);
        assert!(
            matches!(&container.image, Image::Ready { id } if *id == member.image),
            "no process without its image"
        );
        let gave_way = container.stop.as_ref().is_some_and(|stop| stop.why == Why::Image);
        let another_image = container
            .made_of
            .as_ref()
            .is_some_and(|made_of| *made_of != member.image);
        if failed {
            container.start_failure = Some(failure);
            return;
        }
        container.made_of = Some(member.image.clone());
        match container.run.clone() {
            Run::Running { .. } => panic!("{name} was started twice"),
            Run::Never => assert_eq!(restarts, container.restarts),
            Run::Exited(exit) => {
                match member.role {
                    Role::Sidecar => {}
                    Role::Ephemeral => panic!("{name} is never started again"),
                    Role::Init => assert!(exit.code != 0 && policy != RestartPolicy::Never),
                    Role::Main if gave_way => {}
                    Role::Main => {
                        assert_ne!(policy, RestartPolicy::Never);
                        assert!(policy == RestartPolicy::Always || exit.code != 0);
                    }
                }
                assert_eq!(restarts, container.restarts + 1);
                let waited = now.duration_since(exit.finished_at);
                let streak = streak_after(container.streak, &exit);
                assert!(
                    another_image || waited >= agent_plan::delay(streak),
                    "restarted after {waited}, streak {streak}"
                );
                container.streak = if another_image { 0 } else { streak + 1 };
                container.last_exit = Some(exit);
            }
        }
        container.restarts = restarts;
        container.start_failure = None;
        container.run = Run::Running {
            id: format!("run-{starts}"),
            started_at: now,
        };
        container.life = Life::default();
        container.stop = None;
        if member.post_start {
            container.life.post_start = Hook::Running;
        }
        self.starts += 1;
        self.log.push(format!("start {name}"));
    }

    /// Takes steps, and lets time pass to the next wake-up, until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.forgotten {
                return;
            }
            let Plan { steps, wake_at } = plan(&self.wanted, &self.seen, self.now);
            self.check_status();
            for step in &steps {
                self.take(step);
            }
            if !steps.is_empty() {
                continue;
            }
            match wake_at {
                Some(at) => {
                    assert!(at > self.now, "a wake-up in the past is a busy loop");
                    self.now = at;
                }
                None => return,
            }
        }
        panic!("the pod never settles: {:?}", self.seen);
    }

    pub(crate) fn pod_spec(&self) -> PodSpec {
        let container = |member: &Member| SpecContainer {
            name: member.name.clone(),
            image: Some(member.image.clone()),
            ..SpecContainer::default()
        };
        let of = |roles: &[Role]| {
            let members = self.wanted.containers.iter();
            members
                .filter(|member| roles.contains(&member.role))
                .map(container)
                .collect::<Vec<_>>()
        };
        let ephemeral = self.wanted.containers.iter();
        let ephemeral = ephemeral.filter(|member| member.role == Role::Ephemeral);
        PodSpec {
            containers: of(&[Role::Main]),
            init_containers: Some(of(&[Role::Init, Role::Sidecar])),
            ephemeral_containers: Some(
                ephemeral
                    .map(|member| EphemeralContainer {
                        name: member.name.clone(),
                        image: Some(member.image.clone()),
                        ..EphemeralContainer::default()
                    })
                    .collect(),
            ),
            ..PodSpec::default()
        }
    }

    pub(crate) fn status(&self) -> PodStatus {
        let mut pod = Pod {
            spec: Some(self.pod_spec()),
            ..Pod::default()
        };
        pod.metadata.name = Some("web".to_owned());
        pod.metadata.namespace = Some("default".to_owned());
        pod.metadata.uid = Some("1-2-3".to_owned());
        let facts = Facts {
            host_addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            pod_addresses: Vec::new(),
            now: self.now,
        };
        render(&pod, &self.wanted, &self.seen, &facts)
    }

    /// The status of one container.
    pub(crate) fn container_status(&self, name: &str) -> ContainerStatus {
        let status = self.status();
        let inits = status.init_container_statuses.into_iter().flatten();
        let ephemeral = status.ephemeral_container_statuses.into_iter().flatten();
        let mut all = inits
            .chain(status.container_statuses.into_iter().flatten())
            .chain(ephemeral);
        all.find(|status| status.name == name)
            .expect("a status for every container")
    }

    /// One word for the state of a container: its reason, or `running`.
    pub(crate) fn word(&self, name: &str) -> String {
        let state = self.container_status(name).state.expect("a state");
        match (state.waiting, state.terminated) {
            (Some(waiting), _) => waiting.reason.unwrap_or_default(),
            (_, Some(terminated)) => terminated.reason.unwrap_or_default(),
            _ => "running".to_owned(),
        }
    }

    /// Status, reason and message of a condition.
    pub(crate) fn condition(&self, kind: &str) -> (String, String, String) {
        let conditions = self.status().conditions.expect("conditions");
        let condition = conditions.into_iter().find(|condition| condition.type_ == kind);
        let condition = condition.expect("every condition is there");
        (
            condition.status,
            condition.reason.unwrap_or_default(),
            condition.message.unwrap_or_default(),
        )
    }

    /// As [`World::settle`], but lets no time pass.
    pub(crate) fn settle_until_started(&mut self) {
        loop {
            let steps = plan(&self.wanted, &self.seen, self.now).steps;
            if steps.is_empty() {
                return;
            }
            steps.iter().for_each(|step| self.take(step));
        }
    }

    pub(crate) fn phase(&self) -> String {
        self.status().phase.expect("a phase")
    }

    /// A verdict of a probe that ends the present run.
    pub(crate) fn doom(&mut self, name: &str, probe: Probe, grace: Option<SignedDuration>) {
        self.container(name).life.doomed = Some(agent_plan::Doom { probe, grace });
    }

    /// Every status says exactly one thing per container, and a ready pod has only ready containers.
    pub(crate) fn check_status(&self) {
        let status = self.status();
        let statuses = status.container_statuses.iter().flatten();
        let ephemeral = status.ephemeral_container_statuses.iter().flatten();
        for status in statuses
            .chain(status.init_container_statuses.iter().flatten())
            .chain(ephemeral)
        {
            let state = status.state.as_ref().expect("a state");
            let said = [
                state.waiting.is_some(),
                state.running.is_some(),
                state.terminated.is_some(),
            ];
            assert_eq!(said.iter().filter(|said| **said).count(), 1, "{state:?}");
        }
        let members = self
            .wanted
            .containers
            .iter()
            .filter(|member| !matches!(member.role, Role::Init | Role::Ephemeral));
        let all_ready = members.clone().all(|member| {
            let container = self.seen.containers.get(&member.name);
            container.is_some_and(|container| is_ready(member, container))
        });
        let is_over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        assert_eq!(self.condition("Ready").0 == "True", all_ready && !is_over);
    }
}
