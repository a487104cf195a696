//! How containers end: order, hooks, grace.

use agent_plan::{Ending, Hook, Plan, Probe, RestartPolicy, Role, Step, Why, plan};
use jiff::{SignedDuration, ToSpan as _};

use crate::world::{GRACE, World, member};

fn begin(name: &str, why: Why, grace: SignedDuration) -> Step {
    Step::BeginStop {
        container: name.to_owned(),
        why,
        grace,
    }
}

fn stop(name: &str) -> Step {
    Step::Stop {
        container: name.to_owned(),
    }
}

fn kill(name: &str) -> Step {
    Step::Kill {
        container: name.to_owned(),
    }
}

/// Takes the steps of the present plan.
fn act(world: &mut World) -> Vec<Step> {
    let steps = plan(&world.wanted, &world.seen, world.now).steps;
    for step in &steps {
        world.take(step);
    }
    steps
}

/// As [`act`], for programs that ignore their stop signal and hooks that never end.
fn act_stubbornly(world: &mut World) -> Vec<Step> {
    world.luck = vec![0; 8].into_iter();
    let steps = act(world);
    world.luck = Vec::new().into_iter();
    steps
}

fn next(world: &World) -> Plan {
    plan(&world.wanted, &world.seen, world.now)
}

#[test]
fn a_stubborn_container_is_killed_when_its_grace_ends() {
    let mut world = World::new(RestartPolicy::Always, vec![]);
    world.settle();
    world.wanted.ending = Ending::Graceful(GRACE);
    assert_eq!(
        act(&mut world),
        ["a", "b"].map(|name| begin(name, Why::Pod, GRACE))
    );
    assert_eq!(act_stubbornly(&mut world), ["a", "b"].map(stop));
    let waiting = next(&world);
    assert_eq!(
        (waiting.steps, waiting.wake_at),
        (vec![], Some(world.now + GRACE))
    );
    world.now += GRACE;
    assert_eq!(act_stubbornly(&mut world), ["a", "b"].map(kill));
    assert_eq!(
        next(&world).wake_at,
        Some(world.now + 5.seconds()),
        "and asked again"
    );
}

#[test]
fn a_grace_is_as_long_on_a_clock_that_is_set() {
    for hours in [-1, 1] {
        let mut world = World::new(RestartPolicy::Always, vec![]);
        world.settle();
        world.wanted.ending = Ending::Graceful(GRACE);
        act(&mut world);
        assert_eq!(act_stubbornly(&mut world), ["a", "b"].map(stop));
        let set_by = SignedDuration::from_hours(hours);
        world.now += set_by;
        for name in ["a", "b"] {
            let stop = world.container(name).stop.as_mut().unwrap();
            stop.clock_was_set(set_by);
        }
        let waiting = next(&world);
        assert_eq!(
            (waiting.steps, waiting.wake_at),
            (vec![], Some(world.now + GRACE))
        );
        world.now += GRACE;
        assert_eq!(act(&mut world), ["a", "b"].map(kill));
    }
}

/// The shim of a busy node cannot be asked for a moment.
#[test]
fn a_stop_signal_that_could_not_be_sent_is_no_notice() {
    let mut hooked = member("a", Role::Main);
    hooked.pre_stop = true;
    let mut world = World::of(RestartPolicy::Always, vec![], vec![hooked]);
    world.settle();
    world.wanted.ending = Ending::Graceful(GRACE);
    act_stubbornly(&mut world);
    world.now += GRACE;
    assert_eq!(next(&world).steps, [stop("a")], "the hook has had its time");
    for _ in 0..3 {
        let now = world.now;
        world.container("a").stop.as_mut().unwrap().signalled(false, now);
        world.now += 1.second();
        assert_eq!(next(&world).steps, [stop("a")]);
    }
    act_stubbornly(&mut world);
    let waiting = next(&world);
    let notice = Some(world.now + 2.seconds());
    assert_eq!((waiting.steps, waiting.wake_at), (vec![], notice));
    world.now += 2.seconds();
    let now = world.now;
    world.container("a").stop.as_mut().unwrap().killed(false, now);
    assert_eq!(
        next(&world).steps,
        [kill("a")],
        "nor is a kill one that was not sent"
    );
}

/// `kubectl delete --grace-period=0 --force`, an eviction, `terminationGracePeriodSeconds: 0`.
#[test]
fn whoever_has_no_grace_gets_a_second_for_the_hook_and_two_for_the_signal() {
    let least = SignedDuration::from_secs(1);
    let mut only = member("a", Role::Main);
    only.pre_stop = true;
    for ending in [Ending::Gone, Ending::Graceful(SignedDuration::ZERO)] {
        let mut world = World::of(RestartPolicy::Always, vec![], vec![only.clone()]);
        world.settle();
        world.wanted.ending = ending;
        assert_eq!(act_stubbornly(&mut world), [begin("a", Why::Pod, least)]);
        assert_eq!(
            next(&world).wake_at,
            Some(world.now + 1.second()),
            "the hook runs"
        );
        world.now += 1.second();
        assert_eq!(act_stubbornly(&mut world), [stop("a")]);
        assert_eq!(next(&world).wake_at, Some(world.now + 2.seconds()));
        world.now += 2.seconds();
        assert_eq!(act(&mut world), [kill("a")]);
    }
    let mut world = World::new(RestartPolicy::Always, vec![]);
    world.settle();
    world.log.clear();
    world.wanted.ending = Ending::Gone;
    world.settle();
    let stops = world.log.iter().filter(|line| line.starts_with("stop"));
    assert_eq!(stops.count(), 2, "and none is killed: {:?}", world.log);
    assert!(
        !world.log.iter().any(|line| line.starts_with("kill")),
        "{:?}",
        world.log
    );
}

/// The probe of a pod whose `terminationGracePeriodSeconds` is 0 ends a container by its signal, too.
#[test]
fn a_container_without_grace_is_told_before_it_is_killed() {
    let mut world = World::new(RestartPolicy::Always, vec![]);
    world.wanted.grace = SignedDuration::ZERO;
    world.settle();
    world.doom("a", Probe::Liveness, None);
    let none = SignedDuration::ZERO;
    assert_eq!(act(&mut world), [begin("a", Why::Probe(Probe::Liveness), none)]);
    assert_eq!(act_stubbornly(&mut world), [stop("a")]);
    assert_eq!(next(&world).wake_at, Some(world.now + 2.seconds()));
    world.now += 2.seconds();
    assert_eq!(act(&mut world), [kill("a")]);
}

#[test]
fn a_later_deletion_shortens_the_grace() {
    let mut world = World::new(RestartPolicy::Always, vec![]);
    world.settle();
    world.wanted.ending = Ending::Graceful(GRACE);
    act(&mut world);
    act_stubbornly(&mut world);
    world.now += 6.seconds();
    world.wanted.ending = Ending::Graceful(SignedDuration::from_secs(5));
    assert_eq!(act(&mut world), ["a", "b"].map(kill));
}

#[test]
fn the_hook_is_part_of_the_grace_and_the_signal_gets_two_seconds() {
    let mut only = member("a", Role::Main);
    only.pre_stop = true;
    let mut world = World::of(RestartPolicy::Always, vec![], vec![only]);
    world.settle();
    world.wanted.ending = Ending::Graceful(GRACE);
    assert_eq!(act_stubbornly(&mut world), [begin("a", Why::Pod, GRACE)]);
    assert_eq!(next(&world).wake_at, Some(world.now + GRACE), "the hook runs");
    world.now += GRACE;
    assert_eq!(
        act_stubbornly(&mut world),
        [stop("a")],
        "a hook that takes too long"
    );
    assert_eq!(next(&world).wake_at, Some(world.now + 2.seconds()));

    let mut world = World::of(RestartPolicy::Always, vec![], world.wanted.containers);
    world.settle();
    world.wanted.ending = Ending::Graceful(GRACE);
    act_stubbornly(&mut world);
    world.now += 10.seconds();
    world.container("a").stop.as_mut().expect("it began").hook = Hook::Done;
    assert_eq!(act_stubbornly(&mut world), [stop("a")]);
    assert_eq!(
        next(&world).wake_at,
        Some(world.now + 20.seconds()),
        "what the hook left"
    );
}

#[test]
fn a_sidecar_that_a_probe_condemns_waits_for_nobody() {
    let members = [("s", Role::Sidecar), ("a", Role::Main)];
    let members = members.map(|(name, role)| member(name, role)).to_vec();
    let mut world = World::of(RestartPolicy::Always, vec![], members);
    world.settle();
    world.doom("s", Probe::Liveness, None);
    assert_eq!(act(&mut world), [begin("s", Why::Probe(Probe::Liveness), GRACE)]);
    assert_eq!(act(&mut world), [stop("s")]);
}

#[test]
fn sidecars_stop_last_and_in_reverse() {
    let members = [("s", Role::Sidecar), ("t", Role::Sidecar), ("a", Role::Main)];
    let members = members.map(|(name, role)| member(name, role)).to_vec();
    let mut world = World::of(RestartPolicy::Always, vec![], members.clone());
    world.settle();
    assert_eq!(world.log, ["start s", "start t", "start a"]);
    world.log.clear();
    world.wanted.ending = Ending::Graceful(GRACE);
    world.settle();
    assert_eq!(world.log, ["stop a", "stop t", "stop s"]);

    // A main container that uses up the grace leaves the others their two seconds.
    let mut world = World::of(RestartPolicy::Always, vec![], members);
    world.settle();
    world.wanted.ending = Ending::Graceful(GRACE);
    act(&mut world);
    assert_eq!(act_stubbornly(&mut world), [stop("a")]);
    world.now += GRACE;
    assert_eq!(act_stubbornly(&mut world), [kill("a"), stop("s"), stop("t")]);
    world.now += 2.seconds();
    assert_eq!(act(&mut world), [kill("s"), kill("t")]);
}

#[test]
fn a_failed_probe_ends_one_container_and_it_starts_again() {
    let mut world = World::new(RestartPolicy::Always, vec![]);
    world.settle();
    let own = SignedDuration::from_secs(7);
    world.doom("a", Probe::Liveness, Some(own));
    assert_eq!(act(&mut world), [begin("a", Why::Probe(Probe::Liveness), own)]);
    world.log.clear();
    world.settle();
    assert_eq!(world.log, ["stop a", "start a"]);
    assert_eq!(world.container("a").restarts, 1);
    world.doom("b", Probe::Startup, None);
    assert_eq!(act(&mut world), [begin("b", Why::Probe(Probe::Startup), GRACE)]);
}

#[test]
fn a_failed_hook_after_the_start_ends_the_container() {
    let mut first = member("a", Role::Main);
    first.post_start = true;
    let mut world = World::of(RestartPolicy::Never, vec![], vec![first, member("b", Role::Main)]);
    world.settle();
    assert_eq!(world.log, ["start a"], "what follows waits for the hook");
    assert_eq!(world.word("a"), "ContainerCreating");
    assert_eq!(world.phase(), "Pending");
    let alone = vec![world.member("a").clone()];
    let mut single = World::of(RestartPolicy::Never, vec![], alone);
    single.settle();
    assert_eq!(single.phase(), "Pending");
    single.container("a").life.post_start = Hook::Done;
    assert_eq!(single.phase(), "Running");
    world.container("a").life.post_start = Hook::Failed;
    assert_eq!(act(&mut world)[0], begin("a", Why::PostStart, GRACE));
    world.settle();
    assert_eq!(world.log, ["start a", "start b", "stop a"]);
}
