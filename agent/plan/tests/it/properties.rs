//! Whatever happens to a pod, it comes up, lives, and goes.

use agent_plan::{Ending, Ground, RestartPolicy, Role, Run, Step, plan};
use jiff::{SignedDuration, ToSpan as _};
use proptest::prelude::*;

use crate::world::{GRACE, World, member};

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
        exits in proptest::collection::vec((0usize..5, 0i32..2, 0i64..1200), 0..12),
        shape in 0usize..3,
        end_after in 0usize..12,
        graceful in any::<bool>(),
    ) {
        let names = ["i", "s", "a", "b", "e"];
        let roles = [Role::Init, Role::Sidecar, Role::Main, Role::Main, Role::Ephemeral];
        let members = names.iter().zip(roles);
        let members = members.skip(shape).map(|(name, role)| member(name, role)).collect();
        let mut world = World::of(restart, luck, members);
        for (index, (container, code, seconds)) in exits.iter().enumerate() {
            if index == end_after {
                break;
            }
            world.settle();
            world.now += seconds.seconds();
            let name = names[*container];
            if matches!(world.container(name).run, Run::Running { .. }) {
                world.exit(name, *code, None);
            }
        }
        world.settle();
        while matches!(world.container("i").run, Run::Running { .. }) {
            world.exit("i", 0, None);
            world.settle();
        }
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
    assert_eq!(reason(&world), "ErrImagePull", "long enough for a watcher to see");
    // The change of words is an appointment of its own.
    let next = plan(&world.wanted, &world.seen, world.now);
    assert_eq!(next.wake_at, Some(world.now + 1.second()));
    world.now += 1.second();
    assert_eq!(reason(&world), "ImagePullBackOff");
    assert_eq!(world.status().phase.as_deref(), Some("Pending"));
}

#[test]
fn what_is_missing_is_looked_for_every_ten_seconds() {
    let mut world = World::new(RestartPolicy::Always, vec![]);
    let mut failure = world.failure("FailedMount", None);
    failure.attempts = 7;
    world.seen.ground_failure = Some(failure);
    let next = plan(&world.wanted, &world.seen, world.now);
    assert_eq!(next.wake_at, Some(world.now + 10.seconds()));
    assert_eq!(world.status().reason.as_deref(), Some("FailedMount"));
    world.wanted.deadline = Some(world.now);
    let status = world.status();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded")),
        "what it waited for does not hide how it ended"
    );
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
