//! The programs of `policyctl learn` on the running kernel: whose calls are noted, and whose are not.

use std::{
    fs,
    process::{Child, Command},
    time::{Duration, Instant},
};

use ebpf_loader::learn::Recorder;

/// `sched_yield`, which nothing else here makes.
fn yield_now() -> u32 {
    // SAFETY: takes nothing and changes nothing.
    let answer = unsafe { libc::sched_yield() };
    assert_eq!(answer, 0);
    u32::try_from(libc::SYS_sched_yield).expect("a small number")
}

/// A process that is the first of a pid namespace, and the one that made it.
struct Stranger {
    maker: Child,
    pid: i32,
}

impl Stranger {
    fn new(program: &[&str]) -> Self {
        let maker = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child"])
            .args(program)
            .spawn()
            .expect("util-linux is installed");
        let children = format!("/proc/{0}/task/{0}/children", maker.id());
        // Ended by its drop, also where the wait below gives up.
        let mut stranger = Self { maker, pid: 0 };
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let text = fs::read_to_string(&children).unwrap_or_default();
            if let Some(pid) = text.split_whitespace().next() {
                stranger.pid = pid.parse().expect("a process");
                return stranger;
            }
            assert!(Instant::now() < deadline, "no namespace in time");
            std::thread::yield_now();
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _may_have_ended = self.maker.kill();
        let _reaped = self.maker.wait();
    }
}

#[test]
fn calls_of_one_pid_namespace_are_noted_and_of_no_other() {
    let mut recorder = Recorder::start().expect("the programs load");
    let call = yield_now();
    assert!(
        recorder.noted().expect("readable").calls.is_empty(),
        "nobody is watched yet"
    );

    let stranger = Stranger::new(&["sh", "-c", "while :; do sleep 0.05; done"]);
    recorder.follow(stranger.pid).expect("it runs");
    yield_now();
    let deadline = Instant::now() + Duration::from_secs(20);
    let noted = loop {
        let noted = recorder.noted().expect("readable");
        let execve = u32::try_from(libc::SYS_execve).expect("a small number");
        if noted.calls.contains(&execve) {
            break noted;
        }
        assert!(
            Instant::now() < deadline,
            "nothing of the namespace is noted: {noted:?}"
        );
        std::thread::park_timeout(Duration::from_millis(20));
    };
    assert!(
        !noted.calls.contains(&call),
        "a call of another namespace is noted: {noted:?}"
    );
    assert!(!noted.beyond, "{noted:?}");

    let own = i32::try_from(std::process::id()).expect("a process");
    recorder.follow(own).expect("this one runs");
    yield_now();
    assert!(recorder.noted().expect("readable").calls.contains(&call));
}
