//! Plans driven through a simulated node, with random outcomes, and the statuses that go with them.
#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test may panic like the test itself"
)]

use std::net::{IpAddr, Ipv4Addr};

use agent_plan::{
    Container, Ending, Exit, Facts, Failure, Ground, Image, Plan, RestartPolicy, Run, Seen, Step, Wanted,
    plan, render, streak_after,
};
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use k8s_openapi::api::core::v1::{Container as SpecContainer, Pod, PodSpec, PodStatus};
use proptest::prelude::*;

const GRACE: SignedDuration = SignedDuration::from_secs(30);

/// A node with one pod on it. `luck` decides what succeeds; when it runs out everything succeeds.
struct World {
    wanted: Wanted,
    seen: Seen,
    now: Timestamp,
    luck: std::vec::IntoIter<u8>,
    forgotten: bool,
    starts: u32,
}

impl World {
    fn new(restart: RestartPolicy, luck: Vec<u8>) -> Self {
        Self {
            wanted: Wanted {
                containers: vec!["a".to_owned(), "b".to_owned()],
                restart,
                ending: Ending::No,
                settled: false,
            },
            seen: Seen::default(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            luck: luck.into_iter(),
            forgotten: false,
            starts: 0,
        }
    }

    fn fails(&mut self) -> bool {
        self.luck.next().is_some_and(|roll| roll < 40)
    }

    fn container(&mut self, name: &str) -> &mut Container {
        self.seen.containers.entry(name.to_owned()).or_default()
    }

    fn failure(&self, reason: &'static str, before: Option<&Failure>) -> Failure {
        let attempts = before.map_or(0, |failure| failure.attempts) + 1;
        Failure {
            reason,
            message: "the test said so".to_owned(),
            at: self.now,
            attempts,
        }
    }

    fn exit(&mut self, name: &str, code: i32, signal: Option<i32>) {
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

    fn take(&mut self, step: &Step) {
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
                let before = match &self.container(container).image {
                    Image::Failed(failure) => Some(failure.clone()),
                    Image::Unknown => None,
                    other => panic!("fetched again: {other:?}"),
                };
                self.container(container).image = match failed {
                    true => Image::Failed(self.failure("ErrImagePull", before.as_ref())),
                    false => Image::Ready {
                        id: "registry/x@sha256:0".to_owned(),
                    },
                };
            }
            Step::StartContainer { container, restarts } => self.start(container, *restarts, failed),
            Step::Stop { container } | Step::Kill { container } => {
                let kill = matches!(step, Step::Kill { .. });
                if kill {
                    self.seen.killed_at = Some(self.now);
                } else {
                    self.seen.stop_sent_at = Some(self.now);
                }
                // An unlucky process ignores its stop signal, or hangs when it is killed.
                if !failed {
                    let signal = if kill { 9 } else { 15 };
                    self.exit(container, 128 + signal, Some(signal));
                }
            }
            Step::ConfirmDeletion => self.wanted.ending = Ending::Gone,
            Step::Forget => self.forgotten = true,
        }
    }

    fn stage(&mut self, from: Ground, to: Ground) {
        assert_eq!(self.seen.ground, from, "stages follow one another");
        self.seen.ground = to;
        self.seen.ground_failure = None;
    }

    fn start(&mut self, name: &str, restarts: u32, failed: bool) {
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
        let policy = self.wanted.restart;
        let (now, starts) = (self.now, self.starts);
        let before = self.container(name).start_failure.clone();
        let failure = self.failure("RunContainerError", before.as_ref());
        let container = self.container(name);
        assert!(
            matches!(container.image, Image::Ready { .. }),
            "no process without its image"
        );
        if failed {
            container.start_failure = Some(failure);
            return;
        }
        match container.run.clone() {
            Run::Running { .. } => panic!("{name} was started twice"),
            Run::Never => assert_eq!(restarts, container.restarts),
            Run::Exited(exit) => {
                assert_ne!(policy, RestartPolicy::Never);
                assert!(policy == RestartPolicy::Always || exit.code != 0);
                assert_eq!(restarts, container.restarts + 1);
                let waited = now.duration_since(exit.finished_at);
                let streak = streak_after(container.streak, &exit);
                assert!(
                    waited >= agent_plan::delay(streak),
                    "restarted after {waited}, streak {streak}"
                );
                container.streak = streak + 1;
                container.last_exit = Some(exit);
            }
        }
        container.restarts = restarts;
        container.start_failure = None;
        container.run = Run::Running {
            id: format!("run-{starts}"),
            started_at: now,
        };
        self.starts += 1;
    }

    /// Takes steps, and lets time pass to the next wake-up, until nothing is left to do.
    fn settle(&mut self) {
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

    fn status(&self) -> PodStatus {
        let container = |name: &String| SpecContainer {
            name: name.clone(),
            image: Some("registry/x".to_owned()),
            ..SpecContainer::default()
        };
        let spec = PodSpec {
            containers: self.wanted.containers.iter().map(container).collect(),
            ..PodSpec::default()
        };
        let mut pod = Pod {
            spec: Some(spec),
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

    /// Every status says exactly one thing per container, and a ready pod has only running containers.
    fn check_status(&self) {
        let status = self.status();
        let statuses = status.container_statuses.unwrap();
        for status in &statuses {
            let state = status.state.as_ref().unwrap();
            let said = [
                state.waiting.is_some(),
                state.running.is_some(),
                state.terminated.is_some(),
            ];
            assert_eq!(said.iter().filter(|said| **said).count(), 1, "{state:?}");
        }
        let ready = status
            .conditions
            .unwrap()
            .into_iter()
            .find(|c| c.type_ == "Ready")
            .unwrap();
        let running = statuses
            .iter()
            .all(|status| status.state.as_ref().unwrap().running.is_some());
        assert_eq!(ready.status == "True", running);
    }
}

fn policy() -> impl Strategy<Value = RestartPolicy> {
    prop_oneof![
        Just(RestartPolicy::Always),
        Just(RestartPolicy::OnFailure),
        Just(RestartPolicy::Never)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_pod_comes_up_lives_and_goes(
        restart in policy(),
        luck in proptest::collection::vec(any::<u8>(), 0..60),
        exits in proptest::collection::vec((0usize..2, 0i32..2, 0i64..1200), 0..12),
        end_after in 0usize..12,
        graceful in any::<bool>(),
    ) {
        let mut world = World::new(restart, luck);
        for (index, (container, code, seconds)) in exits.iter().enumerate() {
            if index == end_after {
                break;
            }
            world.settle();
            world.now += seconds.seconds();
            let name = ["a", "b"][*container];
            if matches!(world.container(name).run, Run::Running { .. }) {
                world.exit(name, *code, None);
            }
        }
        world.settle();
        let phase = world.status().phase.unwrap();
        match restart {
            RestartPolicy::Always => prop_assert_eq!(phase.as_str(), "Running"),
            _ => prop_assert_ne!(phase.as_str(), "Pending"),
        }
        let (starts, asked_at) = (world.starts, world.now);
        world.wanted.ending = if graceful { Ending::Graceful(GRACE) } else { Ending::Gone };
        world.settle();
        prop_assert!(world.forgotten, "a pod that ends is forgotten");
        prop_assert_eq!(world.seen.ground, Ground::Nothing);
        prop_assert_eq!(world.starts, starts);
        if world.luck.len() > 0 || graceful {
            prop_assert!(world.now.duration_since(asked_at) <= GRACE + SignedDuration::from_mins(6));
        }
    }

    #[test]
    fn a_settled_pod_never_starts_again(restart in policy(), steps in 0usize..3) {
        let mut world = World::new(restart, vec![]);
        world.wanted.settled = true;
        world.seen.ground = [Ground::Nothing, Ground::Sandbox, Ground::Judged][steps];
        world.settle();
        prop_assert_eq!(world.starts, 0);
        prop_assert_eq!(world.seen.ground, Ground::Nothing);
    }
}

#[test]
fn ground_and_images_are_prepared_at_the_same_time() {
    let world = World::new(RestartPolicy::Always, vec![]);
    let steps = plan(&world.wanted, &world.seen, world.now).steps;
    let fetch = |name: &str| Step::FetchImage {
        container: name.to_owned(),
    };
    assert_eq!(steps, [fetch("a"), fetch("b"), Step::StartSandbox]);
}

#[test]
fn a_container_that_keeps_failing_is_in_crash_loop_back_off() {
    let mut world = World::new(RestartPolicy::Always, vec![]);
    world.settle();
    world.exit("a", 1, None);
    world.settle();
    assert_eq!(
        world.seen.containers["a"].restarts, 1,
        "the first restart is immediate"
    );
    world.exit("a", 1, None);
    let status = world.status().container_statuses.unwrap().remove(0);
    let waiting = status.state.unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(
        waiting.message.as_deref(),
        Some("back-off 10s restarting failed container=a pod=web_default(1-2-3)")
    );
    assert_eq!(status.last_state.unwrap().terminated.unwrap().exit_code, 1);
    let next = plan(&world.wanted, &world.seen, world.now);
    assert_eq!(next.steps, []);
    assert_eq!(next.wake_at, Some(world.now + 10.seconds()));
}

#[test]
fn an_image_that_cannot_be_fetched_reads_like_kubernetes() {
    let mut world = World::new(RestartPolicy::Always, vec![0]);
    let first = plan(&world.wanted, &world.seen, world.now).steps.remove(0);
    world.take(&first);
    let reason = |world: &World| {
        let status = world.status().container_statuses.unwrap().remove(0);
        status.state.unwrap().waiting.unwrap().reason.unwrap()
    };
    assert_eq!(reason(&world), "ErrImagePull");
    world.now += 1.second();
    assert_eq!(reason(&world), "ImagePullBackOff");
    assert_eq!(world.status().phase.as_deref(), Some("Pending"));
}

#[test]
fn a_stubborn_container_is_killed_when_its_grace_ends() {
    let mut world = World::new(RestartPolicy::Always, vec![]);
    world.settle();
    world.wanted.ending = Ending::Graceful(GRACE);
    let stop = plan(&world.wanted, &world.seen, world.now);
    assert!(stop.steps.iter().all(|step| matches!(step, Step::Stop { .. })));
    world.seen.stop_sent_at = Some(world.now);
    let waiting = plan(&world.wanted, &world.seen, world.now);
    assert_eq!(
        (waiting.steps, waiting.wake_at),
        (vec![], Some(world.now + GRACE))
    );
    world.now += GRACE;
    let kill = plan(&world.wanted, &world.seen, world.now).steps;
    assert!(kill.iter().all(|step| matches!(step, Step::Kill { .. })) && kill.len() == 2);
}

#[test]
fn phases_follow_the_restart_policy() {
    let ended = |restart, codes: [i32; 2]| {
        let mut world = World::new(restart, vec![]);
        world.settle();
        world.exit("a", codes[0], None);
        world.exit("b", codes[1], None);
        world.status().phase.unwrap()
    };
    assert_eq!(ended(RestartPolicy::Never, [0, 0]), "Succeeded");
    assert_eq!(ended(RestartPolicy::Never, [0, 1]), "Failed");
    assert_eq!(ended(RestartPolicy::OnFailure, [0, 0]), "Succeeded");
    assert_eq!(ended(RestartPolicy::OnFailure, [0, 1]), "Running");
    assert_eq!(ended(RestartPolicy::Always, [0, 0]), "Running");
}
