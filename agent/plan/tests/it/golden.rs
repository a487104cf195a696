//! Kubernetes' documented words for pods with init containers and sidecars.

use agent_plan::{Cause, Ending, Eviction, Hook, Image, Probe, RestartPolicy, Role, evict};
use jiff::{SignedDuration, ToSpan as _};

use crate::world::{GRACE, World, member};

/// Two init containers and one main container.
fn two_inits(restart: RestartPolicy) -> World {
    let members = [("i", Role::Init), ("j", Role::Init), ("a", Role::Main)];
    World::of(
        restart,
        vec![],
        members.map(|(name, role)| member(name, role)).to_vec(),
    )
}

fn with_sidecar(restart: RestartPolicy) -> World {
    let members = [("s", Role::Sidecar), ("i", Role::Init), ("a", Role::Main)];
    World::of(
        restart,
        vec![],
        members.map(|(name, role)| member(name, role)).to_vec(),
    )
}

fn texts<const N: usize>(texts: [&str; N]) -> [String; N] {
    texts.map(str::to_owned)
}

#[test]
fn init_containers_run_one_after_the_other() {
    let mut world = two_inits(RestartPolicy::Always);
    world.settle();
    assert_eq!(world.log, ["start i"]);
    let words = |world: &World| ["i", "j", "a"].map(|name| world.word(name));
    assert_eq!(
        words(&world),
        texts(["running", "PodInitializing", "PodInitializing"])
    );
    assert_eq!(world.phase(), "Pending");
    let incomplete = |names: &str| {
        (
            "False".to_owned(),
            "ContainersNotInitialized".to_owned(),
            format!("containers with incomplete status: [{names}]"),
        )
    };
    assert_eq!(world.condition("Initialized"), incomplete("i j"));
    let (ready, reason, message) = world.condition("Ready");
    assert_eq!(
        [ready, reason, message],
        texts([
            "False",
            "ContainersNotReady",
            "containers with unready status: [a]"
        ])
    );
    world.exit("i", 0, None);
    world.settle();
    assert_eq!(world.condition("Initialized"), incomplete("j"));
    let done = world.container_status("i");
    assert!(done.ready && done.started == Some(false));
    assert_eq!(words(&world), texts(["Completed", "running", "PodInitializing"]));
    world.exit("j", 0, None);
    world.settle();
    assert_eq!(world.log, ["start i", "start j", "start a"]);
    assert_eq!(world.condition("Initialized").0, "True");
    assert_eq!(world.condition("Ready").0, "True");
    assert_eq!(world.phase(), "Running");
    // A main container that fails does not bring the init containers back.
    world.exit("a", 1, None);
    world.settle();
    assert_eq!(world.log.last().map(String::as_str), Some("start a"));
}

#[test]
fn a_failing_init_container_follows_the_restart_policy() {
    for restart in [RestartPolicy::Always, RestartPolicy::OnFailure] {
        let mut world = two_inits(restart);
        world.settle();
        world.exit("i", 1, None);
        world.settle();
        world.exit("i", 1, None);
        assert_eq!(world.word("i"), "CrashLoopBackOff");
        assert_eq!(world.phase(), "Pending");
        world.now += 10.seconds();
        world.settle();
        assert_eq!(world.container_status("i").restart_count, 2);
    }
    let mut world = two_inits(RestartPolicy::Never);
    world.settle();
    world.exit("i", 3, None);
    world.settle();
    assert_eq!(world.log, ["start i"]);
    assert_eq!(world.phase(), "Failed");
    assert_eq!(
        [world.word("i"), world.word("a")],
        texts(["Error", "PodInitializing"])
    );
    assert_eq!(world.condition("Ready").1, "PodFailed");
    assert_eq!(world.condition("Initialized").0, "False");
}

#[test]
fn what_follows_a_sidecar_waits_for_its_startup_probe_and_hook() {
    let mut world = with_sidecar(RestartPolicy::Always);
    world.wanted.containers[0].startup_probe = true;
    world.wanted.containers[0].post_start = true;
    world.settle();
    assert_eq!(world.log, ["start s"]);
    assert_eq!(world.word("s"), "PodInitializing", "the hook runs");
    world.container("s").life.post_start = Hook::Done;
    world.settle();
    assert_eq!(world.log, ["start s"]);
    let status = world.container_status("s");
    assert_eq!((status.started, status.ready), (Some(false), false));
    world.container("s").life.started = true;
    world.settle();
    assert_eq!(world.log, ["start s", "start i"]);
    assert_eq!(world.container_status("s").started, Some(true));
    world.exit("i", 0, None);
    world.settle();
    assert_eq!(world.condition("Ready").0, "True");
}

#[test]
fn sidecars_are_restarted_for_ever_and_do_not_keep_a_pod_alive() {
    let mut world = with_sidecar(RestartPolicy::Never);
    world.settle();
    world.exit("s", 1, None);
    world.settle();
    assert_eq!(
        world.log,
        ["start s", "start i", "start s"],
        "also while pods initialize"
    );
    world.exit("i", 0, None);
    world.settle();
    world.exit("s", 0, None);
    assert_eq!(world.condition("Ready").2, "containers with unready status: [s]");
    assert_eq!(world.phase(), "Running");
    world.now += 10.seconds();
    world.settle();
    assert_eq!(world.container_status("s").restart_count, 2);
    world.exit("a", 0, None);
    assert_eq!(world.phase(), "Running", "the sidecar still runs");
    world.log.clear();
    world.settle();
    assert_eq!(world.log, ["stop s"]);
    assert_eq!(world.phase(), "Succeeded", "whatever the code of the sidecar");
}

#[test]
fn a_sidecar_is_ready_with_its_probe_and_part_of_the_pods_readiness() {
    let mut world = with_sidecar(RestartPolicy::Always);
    world.wanted.containers[0].readiness_probe = true;
    world.settle();
    world.exit("i", 0, None);
    world.settle();
    assert_eq!(
        world.condition("ContainersReady").2,
        "containers with unready status: [s]"
    );
    world.container("s").life.ready = true;
    assert_eq!(world.condition("ContainersReady").0, "True");
}

#[test]
fn a_lost_sandbox_runs_the_init_containers_again() {
    let mut world = two_inits(RestartPolicy::Always);
    world.settle();
    for name in ["i", "j"] {
        world.exit(name, 0, None);
        world.settle();
    }
    world.exit("a", 137, Some(9));
    for container in world.seen.containers.values_mut() {
        container.stale = true;
    }
    world.seen.ground = agent_plan::Ground::Nothing;
    assert_eq!(world.phase(), "Pending");
    assert_eq!(world.word("a"), "PodInitializing");
    let step = |world: &World| agent_plan::plan(&world.wanted, &world.seen, world.now).steps;
    for _stage in 0..3 {
        let steps = step(&world);
        steps.iter().for_each(|step| world.take(step));
    }
    let expected = agent_plan::Step::StartContainer {
        container: "i".to_owned(),
        restarts: 1,
    };
    assert_eq!(step(&world), [expected]);
}

#[test]
fn a_pod_that_is_active_for_too_long_fails() {
    let mut world = World::new(RestartPolicy::Always, vec![]);
    world.wanted.deadline = Some(world.now + 60.seconds());
    world.settle_until_started();
    world.now += 60.seconds();
    world.log.clear();
    world.settle();
    assert_eq!(world.log, ["stop a", "stop b"]);
    let status = world.status();
    assert_eq!(world.phase(), "Failed");
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(
        status.message.as_deref(),
        Some("Pod was active on the node longer than the specified deadline")
    );
    // What ended well before the deadline stays completed behind it.
    let mut world = World::new(RestartPolicy::Never, vec![]);
    world.wanted.deadline = Some(world.now + 60.seconds());
    world.settle_until_started();
    world.exit("a", 0, None);
    world.exit("b", 0, None);
    world.now += 90.seconds();
    assert_eq!(world.phase(), "Succeeded");
}

#[test]
fn probes_decide_what_is_started_and_ready() {
    let mut world = World::new(RestartPolicy::Always, vec![]);
    world.wanted.containers[0].startup_probe = true;
    world.wanted.containers[0].readiness_probe = true;
    world.settle();
    let flags = |world: &World| {
        let status = world.container_status("a");
        (status.started, status.ready)
    };
    assert_eq!(flags(&world), (Some(false), false));
    world.container("a").life.ready = true;
    assert_eq!(flags(&world), (Some(false), false), "not before it has started");
    world.container("a").life.started = true;
    assert_eq!(flags(&world), (Some(true), true));
    assert_eq!(world.phase(), "Running");
    world.container("a").life.ready = false;
    assert_eq!(world.condition("Ready").1, "ContainersNotReady");
    world.doom("a", Probe::Liveness, Some(SignedDuration::from_secs(1)));
    world.settle();
    assert_eq!(flags(&world), (Some(false), false), "a new run starts anew");
}

#[test]
fn readiness_gates_are_conditions_of_others() {
    use agent_plan::{Facts, render};
    use k8s_openapi::api::core::v1::{Pod, PodCondition, PodReadinessGate, PodStatus};

    let mut world = World::new(RestartPolicy::Always, vec![]);
    world.settle();
    let ready = |condition: Option<&str>| {
        let mut pod = Pod {
            spec: Some(world.pod_spec()),
            ..Pod::default()
        };
        let gate = PodReadinessGate {
            condition_type: "lab/gate".to_owned(),
        };
        if let Some(spec) = &mut pod.spec {
            spec.readiness_gates = Some(vec![gate]);
        }
        let of_other = |status: &str| PodCondition {
            type_: "lab/gate".to_owned(),
            status: status.to_owned(),
            ..PodCondition::default()
        };
        pod.status = Some(PodStatus {
            conditions: condition.map(|status| vec![of_other(status)]),
            ..PodStatus::default()
        });
        let facts = Facts {
            host_addresses: vec![],
            pod_addresses: vec![],
            now: world.now,
        };
        let conditions = render(&pod, &world.wanted, &world.seen, &facts)
            .conditions
            .unwrap_or_default();
        let find = |kind: &str| {
            conditions
                .iter()
                .find(|c| c.type_ == kind)
                .cloned()
                .unwrap_or_default()
        };
        assert_eq!(find("ContainersReady").status, "True");
        assert_eq!(
            find("lab/gate").status,
            condition.unwrap_or_default(),
            "it is kept"
        );
        let ready = find("Ready");
        (ready.status, ready.message.unwrap_or_default())
    };
    assert_eq!(
        ready(None),
        (
            "False".to_owned(),
            "corresponding condition of pod readiness gate \"lab/gate\" does not exist.".to_owned()
        )
    );
    assert_eq!(
        ready(Some("Unknown")),
        (
            "False".to_owned(),
            "the status of pod readiness gate \"lab/gate\" is not \"True\", but Unknown".to_owned()
        )
    );
    assert_eq!(ready(Some("True")), ("True".to_owned(), String::new()));
}

#[test]
fn an_ephemeral_container_starts_once_and_says_nothing_about_its_pod() {
    let mut world = two_inits(RestartPolicy::Always);
    world.settle();
    let mut debug = member("d", Role::Ephemeral);
    world.wanted.containers.push(debug.clone());
    debug.name = "t".to_owned();
    debug.target = Some("a".to_owned());
    world.wanted.containers.push(debug);
    world.settle();
    assert_eq!(
        world.log,
        ["start i", "start d"],
        "one that initializes can be looked at"
    );
    assert_eq!(
        world.word("t"),
        "ContainerCreating",
        "its target does not run yet"
    );
    assert_eq!(world.phase(), "Pending");
    world.exit("d", 3, None);
    world.exit("i", 0, None);
    world.settle();
    world.exit("j", 0, None);
    world.settle();
    world.now += 1.hour();
    world.settle();
    assert_eq!(
        world.log,
        ["start i", "start d", "start j", "start a", "start t"],
        "never again"
    );
    assert_eq!(world.word("d"), "Error");
    let status = world.container_status("t");
    assert_eq!(
        (status.ready, status.started, status.restart_count),
        (false, None, 0)
    );
    assert_eq!(
        (world.condition("Ready").0, world.phase()),
        ("True".to_owned(), "Running".to_owned())
    );

    let mut world = World::new(RestartPolicy::Never, vec![]);
    world.wanted.containers.push(member("d", Role::Ephemeral));
    world.settle();
    world.exit("a", 0, None);
    world.exit("b", 0, None);
    world.settle();
    assert_eq!(world.word("d"), "Error", "ended with the pod that is over");
    assert_eq!(world.phase(), "Succeeded");
}

/// Evicted by the node: ended soon, `Failed` for good, whatever the restart policy.
#[test]
fn an_evicted_pod_fails_with_the_reason_and_never_starts_again() {
    for restart in [
        RestartPolicy::Always,
        RestartPolicy::OnFailure,
        RestartPolicy::Never,
    ] {
        let mut world = World::new(restart, vec![]);
        world.settle();
        let eviction = |message: &str| Eviction {
            cause: Cause::Shortage,
            message: message.to_owned(),
            grace: SignedDuration::ZERO,
            at: world.now,
        };
        let (first, second) = (eviction("Usage of EmptyDir volume \"v\""), eviction("other"));
        assert!(evict(&mut world.seen, first));
        assert!(!evict(&mut world.seen, second), "the first reason stays");
        assert_eq!(world.phase(), "Running", "until its containers have ended");
        world.settle();
        let starts = world.starts;
        world.now += 1.hours();
        world.settle();
        let status = world.status();
        assert_eq!((world.starts, world.phase().as_str()), (starts, "Failed"));
        assert_eq!(status.reason.as_deref(), Some("Evicted"));
        assert_eq!(status.message.as_deref(), Some("Usage of EmptyDir volume \"v\""));
        let (holds, reason, _) = world.condition("DisruptionTarget");
        assert_eq!([holds, reason], texts(["True", "TerminationByKubelet"]));
        assert!(world.log.iter().any(|line| line == "stop a"), "{:?}", world.log);
    }
}

/// As the kubelet since 1.27: `TerminatePod` in `pkg/kubelet/status/status_manager.go`.
#[test]
fn a_pod_that_is_deleted_before_all_of_it_ran_has_failed() {
    // Images that never come.
    let mut world = World::new(RestartPolicy::Always, vec![]);
    for name in ["a", "b"] {
        let failure = world.failure("ErrImagePull", None);
        world.container(name).image = Image::Failed(failure);
    }
    world.settle_until_started();
    assert_eq!(world.phase(), "Pending");
    world.wanted.ending = Ending::Graceful(GRACE);
    assert_eq!(world.phase(), "Failed");
    let lost = |world: &World, name: &str| {
        let status = world.container_status(name);
        let terminated = status.state.unwrap().terminated.unwrap();
        assert_eq!((terminated.exit_code, terminated.started_at), (137, None));
        let message = "The container could not be located when the pod was terminated";
        assert_eq!(terminated.message.as_deref(), Some(message));
        assert_eq!(terminated.reason.as_deref(), Some("ContainerStatusUnknown"));
        assert!(!status.ready && status.container_id.is_none());
    };
    lost(&world, "a");
    lost(&world, "b");
    assert_eq!(world.condition("Ready").1, "PodFailed");

    // One of two has run, and is still running when the deletion comes.
    for (code, policy) in [
        (0, RestartPolicy::Always),
        (0, RestartPolicy::Never),
        (1, RestartPolicy::Never),
    ] {
        let mut world = World::new(policy, vec![]);
        let failure = world.failure("ErrImagePull", None);
        world.container("b").image = Image::Failed(failure);
        world.settle_until_started();
        world.wanted.ending = Ending::Graceful(GRACE);
        assert_eq!(
            (world.phase().as_str(), world.word("b").as_str()),
            ("Pending", "ErrImagePull")
        );
        world.exit("a", code, None);
        assert_eq!(world.phase(), "Failed");
        lost(&world, "b");
        assert_ne!(world.word("a"), "ContainerStatusUnknown", "how it ended is known");
    }
    let mut world = World::new(RestartPolicy::Always, vec![]);
    world.settle();
    world.wanted.ending = Ending::Graceful(GRACE);
    world.exit("a", 0, None);
    world.exit("b", 0, None);
    assert_eq!(world.phase(), "Succeeded");
}

#[test]
fn of_a_pod_that_is_deleted_while_it_initializes_what_had_its_turn_is_lost() {
    let words = |world: &World| ["i", "j", "a"].map(|name| world.word(name));
    let mut world = two_inits(RestartPolicy::Always);
    world.wanted.ending = Ending::Graceful(GRACE);
    let not_begun = texts(["ContainerStatusUnknown", "PodInitializing", "PodInitializing"]);
    assert_eq!((world.phase().as_str(), words(&world)), ("Failed", not_begun));

    let mut world = two_inits(RestartPolicy::Always);
    world.settle();
    world.wanted.ending = Ending::Graceful(GRACE);
    assert_eq!(world.phase(), "Pending", "the first one runs");
    world.settle();
    let first = texts(["Error", "PodInitializing", "PodInitializing"]);
    assert_eq!((world.phase().as_str(), words(&world)), ("Failed", first));

    let mut world = two_inits(RestartPolicy::Always);
    world.settle();
    world.exit("i", 0, None);
    world.settle();
    world.exit("j", 0, None);
    world.wanted.ending = Ending::Graceful(GRACE);
    let all = texts(["Completed", "Completed", "ContainerStatusUnknown"]);
    assert_eq!((world.phase().as_str(), words(&world)), ("Failed", all));

    // A sidecar that never began, behind which another container has.
    let mut world = with_sidecar(RestartPolicy::Always);
    world.settle();
    world.exit("i", 0, None);
    world.seen.containers.remove("s");
    world.wanted.ending = Ending::Graceful(GRACE);
    assert_eq!(world.word("s"), "ContainerStatusUnknown");
}

/// As the kubelet, which calls `TerminatePod` for every pod that has ended, not only for those that are deleted.
#[test]
fn what_never_ran_of_a_pod_that_failed_waits_for_nothing() {
    let by_deadline = |world: &mut World| {
        world.wanted.deadline = Some(world.now + 60.seconds());
        world.now += 60.seconds();
    };
    let by_node = |world: &mut World| {
        let order = Eviction {
            cause: Cause::NodeEnds,
            message: "the node goes down".to_owned(),
            grace: SignedDuration::ZERO,
            at: world.now,
        };
        evict(&mut world.seen, order);
    };
    type Way = (&'static str, fn(&mut World));
    let ways: [Way; 2] = [("DeadlineExceeded", by_deadline), ("Terminated", by_node)];
    for (reason, end) in ways {
        // Images that never come, for the one that never runs.
        let mut world = World::new(RestartPolicy::Always, vec![]);
        let failure = world.failure("ErrImagePull", None);
        world.container("b").image = Image::Failed(failure);
        world.settle_until_started();
        end(&mut world);
        assert!(
            world.word("b").contains("ImagePull"),
            "{reason}: while the other one runs"
        );
        world.settle();
        assert_eq!(world.status().reason.as_deref(), Some(reason));
        assert_eq!(
            [world.word("a"), world.word("b")],
            texts(["Error", "ContainerStatusUnknown"])
        );

        let mut world = two_inits(RestartPolicy::Always);
        end(&mut world);
        let words = ["i", "j", "a"].map(|name| world.word(name));
        let not_begun = texts(["ContainerStatusUnknown", "PodInitializing", "PodInitializing"]);
        assert_eq!((world.phase().as_str(), words), ("Failed", not_begun), "{reason}");
    }
}

/// The kubelet's `rejectPod` writes phase, reason and message, so that people are shown the reason.
#[test]
fn a_pod_that_the_node_refuses_has_no_containers_to_speak_of() {
    let mut world = two_inits(RestartPolicy::Always);
    let refusal = Eviction {
        cause: Cause::Refused {
            reason: "OutOfcpu".to_owned(),
        },
        message: "Pod was rejected: Node didn't have enough resource: cpu".to_owned(),
        grace: SignedDuration::ZERO,
        at: world.now,
    };
    evict(&mut world.seen, refusal);
    let status = world.status();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("OutOfcpu"))
    );
    assert_eq!(
        (status.init_container_statuses, status.container_statuses),
        (None, None)
    );
    assert_eq!(world.condition("Initialized").0, "False");
    assert_eq!(world.condition("Ready").1, "PodFailed");
}

/// As the kubelet, for which another image makes another container (`containerChanged`).
#[test]
fn a_container_whose_image_changed_starts_anew_with_it() {
    for restart in [RestartPolicy::Always, RestartPolicy::Never] {
        let mut world = World::new(restart, vec![]);
        world.settle();
        world.log.clear();
        world.wanted.containers[0].image = "registry/y@sha256:1".to_owned();
        assert_eq!(
            world.container_status("a").image,
            "registry/x@sha256:0",
            "what runs"
        );
        let steps = agent_plan::plan(&world.wanted, &world.seen, world.now).steps;
        let begin = agent_plan::Step::BeginStop {
            container: "a".to_owned(),
            why: agent_plan::Why::Image,
            grace: GRACE,
        };
        assert_eq!(steps, [begin], "its image comes once it has ended");
        let before = world.now;
        world.settle();
        assert_eq!(world.log, ["stop a", "start a"], "{restart:?}");
        assert_eq!(world.now, before, "nothing has failed");
        let status = world.container_status("a");
        assert_eq!(
            [status.image.as_str(), status.image_id.as_str()],
            ["registry/y@sha256:1"; 2]
        );
        assert_eq!((status.restart_count, world.phase().as_str()), (1, "Running"));
        assert_eq!(
            world.container_status("b").restart_count,
            0,
            "the other one stays"
        );
    }
}

#[test]
fn another_image_ends_a_back_off_and_starts_nothing_that_is_over() {
    let mut world = World::new(RestartPolicy::Always, vec![]);
    world.settle();
    for _failure in 0..2 {
        world.exit("a", 1, None);
        world.settle_until_started();
    }
    assert_eq!(world.word("a"), "CrashLoopBackOff");
    world.wanted.containers[0].image = "registry/y@sha256:1".to_owned();
    assert_eq!(world.word("a"), "Error");
    let before = world.now;
    world.settle_until_started();
    assert_eq!((world.word("a").as_str(), world.now), ("running", before));
    world.exit("a", 1, None);
    world.settle_until_started();
    assert_eq!(world.word("a"), "running", "its first failure");

    // Of a pod that may not restart one has ended by itself.
    let mut world = World::new(RestartPolicy::Never, vec![]);
    world.settle();
    world.exit("a", 0, None);
    world.wanted.containers[0].image = "registry/y@sha256:1".to_owned();
    world.log.clear();
    world.settle();
    assert_eq!(world.log, Vec::<String>::new());
    assert_eq!(world.word("a"), "Completed");
    // What initializes does it to the end; what has done so is not asked again.
    let mut world = two_inits(RestartPolicy::Always);
    world.settle();
    for init in 0..2 {
        world.wanted.containers[init].image = "registry/y@sha256:1".to_owned();
    }
    world.settle();
    assert_eq!(world.log, ["start i"]);
    world.exit("i", 0, None);
    world.settle();
    assert_eq!(world.log, ["start i", "start j"]);
    assert_eq!(world.container_status("j").image_id, "registry/y@sha256:1");
    // A sidecar is one that runs.
    let mut world = with_sidecar(RestartPolicy::Never);
    world.settle();
    world.wanted.containers[0].image = "registry/y@sha256:1".to_owned();
    world.settle();
    assert_eq!(world.log, ["start s", "start i", "stop s", "start s"]);
    // It does not wait for those that it is there for.
    world.exit("i", 0, None);
    world.settle();
    world.log.clear();
    let before = world.now;
    world.wanted.containers[0].image = "registry/z@sha256:2".to_owned();
    world.settle();
    assert_eq!(world.log, ["stop s", "start s"]);
    assert_eq!(world.now, before);
}

/// What had completed before has completed.
#[test]
fn a_pod_that_was_over_is_not_evicted() {
    let mut world = World::new(RestartPolicy::Never, vec![]);
    world.settle();
    world.exit("a", 0, None);
    world.exit("b", 0, None);
    world.now += 1.second();
    let late = Eviction {
        cause: Cause::Shortage,
        message: "too late".to_owned(),
        grace: SignedDuration::ZERO,
        at: world.now,
    };
    evict(&mut world.seen, late);
    assert_eq!(
        (world.phase().as_str(), world.status().reason),
        ("Succeeded", None)
    );
}
