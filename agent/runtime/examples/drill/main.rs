//! The attempts of the escape drills (`tests/drills.rs`), made by a process that was put somewhere: in a
//! container, in a container's namespaces without its other layers, or on the host for comparison.
//!
//!     drill run [name]...           make all attempts on the baseline, or these, here
//!     drill enter PID KEEP WHETHER [name]...
//!                                   first join the namespaces of a container's process; KEEP is the
//!                                   hexadecimal set of capabilities that are kept there, WHETHER is `gain`
//!                                   or `no-new-privs`
//!
//!     drill listen NAME             wait at an abstract socket, as the victim of others
//!     drill whoami                  print the effective user
//!
//! One line per attempt: `name=done` when it succeeded, `name=errno N`, `name=signal N`, or what it saw
//! instead. Each attempt has a process of its own, which may die of it. The facts about the host that an
//! attacker would have to guess are given in the environment (see [`fact`]).

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a helper that cannot go on has failed its test"
)]

mod calls;
mod code;
mod files;
mod neighbours;
mod ports;
mod profile;
mod resources;

use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;

/// What came of an attempt.
pub(crate) enum Outcome {
    /// It succeeded.
    Done,
    /// What was seen instead.
    Saw(&'static str),
}

pub(crate) type Attempt = fn() -> io::Result<Outcome>;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run", names @ ..] => run(names),
        ["enter", pid, keep, whether, names @ ..] => {
            let may_gain = *whether == "gain";
            enter(pid.parse().expect("a process"));
            let keep = u64::from_str_radix(keep, 16).expect("a set of capabilities");
            // Joining a pid namespace counts for children.
            in_child(|| {
                become_root_of_the_pod(keep, may_gain);
                run(names);
                Ok(Outcome::Done)
            });
        }
        ["listen", name] => listen(name),
        // SAFETY: takes nothing, always succeeds.
        ["whoami"] => println!("{}", unsafe { libc::geteuid() }),
        _ => panic!("run, enter, listen or whoami"),
    }
}

fn listen(name: &str) {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("a name");
    let listener = std::os::unix::net::UnixListener::bind_addr(&address).expect("binds");
    println!("up");
    for stream in listener.incoming() {
        drop(stream);
    }
}

fn run(names: &[&str]) {
    // What changes mounts comes last.
    let others = [files::ATTEMPTS, neighbours::ATTEMPTS].concat();
    let others = others.iter().map(|(name, _)| *name);
    let all: Vec<&str> = others.chain(calls::CALLS.iter().map(|call| call.0)).collect();
    let names = if names.is_empty() { all.as_slice() } else { names };
    for name in names {
        assert!(
            is_contained() || HARMLESS.contains(name),
            "{name} is for containers"
        );
        println!("{name}={}", in_child(|| attempt(name)));
    }
}

fn attempt(name: &str) -> io::Result<Outcome> {
    if let Some(call) = calls::CALLS.iter().find(|call| call.0 == name) {
        return calls::make(call);
    }
    let all = [
        files::ATTEMPTS,
        neighbours::ATTEMPTS,
        resources::ATTEMPTS,
        code::ATTEMPTS,
        ports::ATTEMPTS,
        profile::ATTEMPTS,
    ]
    .concat();
    let (_, attempt) = all
        .into_iter()
        .find(|known| known.0 == name)
        .expect("a known drill");
    attempt()
}

/// Attempts that only look, and are made on the host to show that there is something to see.
const HARMLESS: &[&str] = &[
    "host-file",
    "signal-host",
    "signal-pod",
    "pidfd-host",
    "memory-of-pod",
    "environment-of-host",
    "abstract-socket-host",
    "tcp-host-loopback",
    "shared-memory-host",
    "proc-kcore",
    "proc-modprobe",
    "proc-sysrq",
    "proc-timer-list",
    "sys-uevent-helper",
    "map-writable-code",
    "make-code",
    "make-code-by-memory-file",
    "map-anonymous-file",
];

/// Whether this process is in a user namespace of its own: elsewhere some attempts would do what they say.
fn is_contained() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").expect("reads");
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Runs `body` in a process of its own, and says in words how it went.
fn in_child(body: impl FnOnce() -> io::Result<Outcome>) -> String {
    let mut pipe = [0; 2];
    io::stdout().flush().expect("flushes");
    // SAFETY: two integers are written; this process has one thread, so its child may do anything.
    let pid = unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        libc::fork()
    };
    assert!(pid >= 0, "cannot fork");
    let [ours, theirs] = pipe;
    if pid == 0 {
        let text = match body() {
            Ok(Outcome::Done) => "done".to_owned(),
            Ok(Outcome::Saw(what)) => what.to_owned(),
            Err(error) => error
                .raw_os_error()
                .map_or_else(|| error.to_string(), |number| format!("errno {number}")),
        };
        io::stdout().flush().expect("flushes");
        // SAFETY: the descriptor is this process's own, the buffer is valid for its length; `_exit` ends the child.
        unsafe {
            libc::write(theirs, text.as_ptr().cast(), text.len());
            libc::_exit(0);
        }
    }
    let mut text = String::new();
    let mut status = 0;
    // SAFETY: both descriptors are open and nobody else's; the child is ours and not yet waited for.
    unsafe {
        libc::close(theirs);
        std::fs::File::from_raw_fd(ours)
            .read_to_string(&mut text)
            .expect("reads");
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
    }
    if libc::WIFSIGNALED(status) {
        return format!("signal {}", libc::WTERMSIG(status));
    }
    if text.is_empty() {
        // It became another program.
        return "done".to_owned();
    }
    text
}

/// Joins all namespaces of a process.
fn enter(pid: i32) {
    // SAFETY: numbers only.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        let namespaces = libc::CLONE_NEWUSER
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWCGROUP;
        assert_eq!(libc::syscall(libc::SYS_setns, process, namespaces), 0, "setns");
    }
}

/// The container's user, with `keep` of its user namespace's capabilities.
fn become_root_of_the_pod(keep: u64, may_gain: bool) {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    let keep = CapabilitySet::from_bits_retain(keep) & CapabilitySet::all();
    // SAFETY: numbers, and an empty list.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0, "setgroups");
        assert_eq!(libc::setresgid(0, 0, 0), 0, "setresgid");
        assert_eq!(libc::setresuid(0, 0, 0), 0, "setresuid");
    }
    std::env::set_current_dir("/").expect("chdir");
    for capability in CapabilitySet::all().iter().filter(|one| !keep.contains(*one)) {
        // One that the kernel does not know cannot be held either.
        let _unknown = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let held = rustix::thread::capabilities(None)
        .expect("capabilities")
        .permitted
        & keep;
    let sets = CapabilitySets {
        effective: held,
        permitted: held,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).expect("capabilities");
    if !may_gain {
        rustix::thread::set_no_new_privs(true).expect("no_new_privs");
    }
    // As the first process of a container has it: its entries of /proc are its own.
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
}

/// What the test knows about the host, such as the number of a process.
pub(crate) fn fact(name: &str) -> String {
    std::env::var(name).expect("the test gives all facts")
}

/// `-1` and the error number, or what the call returned.
pub(crate) fn checked(value: i64) -> io::Result<i64> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

pub(crate) fn done<T>(_: T) -> Outcome {
    Outcome::Done
}
