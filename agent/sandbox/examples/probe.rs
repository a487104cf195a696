//! Helper of the integration tests: confines itself as told, then reports what it can still do, one
//! `name=outcome` per line. It is a program of its own because a sandbox is for good and wants one thread.

#![expect(
    clippy::expect_used,
    reason = "a helper that cannot go on has failed its test"
)]

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent_sandbox::{
    ApplyError, DaemonPaths, Enforcement, ExecutableIndex, ImageRuleset, Moment, PathAccess, PathRule,
    Profile, SyscallSet, Tcp, jail, oci,
};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let mode = args.next().unwrap_or_default();
    let arguments: Vec<OsString> = args.collect();
    let path = |index: usize| PathBuf::from(arguments.get(index).cloned().unwrap_or_default());
    match mode.to_str() {
        Some(jail::SUBCOMMAND) => jail::main(arguments),
        Some("try") => try_everything(&path(0), &path(1)),
        Some("daemon") => {
            let paths = DaemonPaths {
                writable: vec![path(0)],
                ..DaemonPaths::default()
            };
            Profile::daemon(&paths)
                .compile()
                .expect("compiles")
                .apply()
                .expect("applies");
            try_everything(&path(0), &path(1));
        }
        Some("oci") => {
            let text = fs::read_to_string(path(0)).expect("a seccomp profile");
            let context = oci::Context {
                capabilities: &[],
                kernel: oci::kernel_version(),
            };
            let imported = oci::import(&text, &context).expect("valid");
            let baseline = SyscallSet::Baseline.policy();
            let paths = DaemonPaths {
                writable: vec![path(1)],
                ..DaemonPaths::default()
            };
            let profile = Profile {
                syscalls: SyscallSet::Policy(baseline.and(&imported.policy)),
                ..Profile::daemon(&paths)
            };
            profile.compile().expect("compiles").apply().expect("applies");
            report("mkdir", fs::create_dir(path(1).join("new")));
            report("write", fs::write(path(1).join("note"), "x"));
            // SAFETY: lengths that the profile tells apart; the buffer holds the longer one.
            let random = |length: usize| unsafe {
                let mut room = [0_u8; 16];
                answer(libc::syscall(libc::SYS_getrandom, room.as_mut_ptr(), length, 0))
            };
            report("getrandom-8", random(8));
            report("getrandom-9", random(9));
            calls();
        }
        Some("image") => {
            enter_image(&path(0));
            try_image();
        }
        Some("misplaced") => {
            let outcome = enter_misplaced(&path(0), &path(1));
            report(
                "restrict",
                outcome.map_err(|error| io::Error::other(format!("{error:?}"))),
            );
        }
        Some("older") => {
            let interface = path(1).to_string_lossy().parse().expect("a number");
            enter_older(&path(0), interface);
            report("tcp", std::net::TcpListener::bind("127.0.0.1:0").map(drop));
            try_image();
        }
        Some("threads") => {
            let (_keep, wait) = std::sync::mpsc::channel::<()>();
            let _thread = std::thread::spawn(move || wait.recv());
            let error = Profile::jail(vec![])
                .compile()
                .expect("compiles")
                .apply()
                .expect_err("refused");
            report("apply", Err(io::Error::other(error.to_string())));
        }
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

/// Builds the ruleset from outside, changes the root, then applies: the order the runtime uses.
fn enter_image(root: &Path) {
    let index = ExecutableIndex::of_layer(root).expect("readable");
    let directory = fs::File::open(root).expect("opens");
    let ruleset = ImageRuleset::build(directory.as_fd(), &index.paths, &Profile::baseline()).expect("builds");
    mount(root, Path::new("vol"));
    std::os::unix::fs::chroot(root).expect("chroot");
    std::env::set_current_dir("/").expect("chdir");
    let mounts = [
        PathRule::new("/vol", PathAccess::ReadWrite),
        // What somebody made of a path that led to a volume: it leads to no mount.
        PathRule::new("/tmp/usr/bin", PathAccess::ReadWrite),
    ];
    let compiled = Profile::baseline().compile().expect("compiles");
    let started = compiled.restrict_in_container(&ruleset, &mounts, Moment::Start);
    report(
        "start",
        started
            .map(drop)
            .map_err(|error| io::Error::other(format!("{error:?}"))),
    );
    compiled
        .restrict_in_container(&ruleset, &mounts, Moment::Later)
        .expect("restricts")
        .install_filter()
        .expect("applies");
}

/// A volume that is reached through a link.
fn enter_misplaced(root: &Path, volume: &Path) -> Result<(), ApplyError> {
    let directory = fs::File::open(root).expect("opens");
    let ruleset = ImageRuleset::build(directory.as_fd(), &[], &Profile::baseline()).expect("builds");
    mount(root, volume);
    std::os::unix::fs::chroot(root).expect("chroot");
    let mounts = [PathRule::new(Path::new("/tmp").join(volume), PathAccess::Read)];
    let compiled = Profile::baseline().compile().expect("compiles");
    compiled
        .restrict_in_container(&ruleset, &mounts, Moment::Start)
        .map(drop)
}

/// In a mount namespace of its own: `/proc` and a volume.
fn mount(root: &Path, volume: &Path) {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
    assert_eq!(
        // SAFETY: only a flag is passed.
        unsafe { libc::unshare(libc::CLONE_NEWNS) },
        0,
        "a mount namespace"
    );
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).expect("private");
    mount("proc", root.join("proc"), "proc", MountFlags::empty(), None).expect("/proc");
    let volume = root.join(volume);
    mount_bind(&volume, &volume).expect("a volume");
}

/// As if the kernel had an older Landlock.
fn enter_older(root: &Path, interface: u32) {
    let directory = fs::File::open(root).expect("opens");
    let profile = Profile {
        tcp: Tcp::Denied,
        enforcement: Enforcement::BestEffort { floor: 0 },
        ..Profile::baseline()
    };
    let ruleset = ImageRuleset::build_on(interface, directory.as_fd(), &[], &profile).expect("builds");
    std::os::unix::fs::chroot(root).expect("chroot");
    std::env::set_current_dir("/").expect("chdir");
    let compiled = profile.compile().expect("compiles");
    let restricted = compiled
        .restrict_in_container(&ruleset, &[], Moment::Start)
        .expect("restricts");
    let finding = restricted.landlock().finding();
    restricted.install_filter().expect("applies");
    report("verdict", Err(io::Error::other(finding.verdict.to_string())));
    report("detail", Err(io::Error::other(finding.detail)));
}

fn try_image() {
    report("read-code", fs::read("/bin/busybox").map(drop));
    report("exec-code", execute("/bin/busybox", &["true"]));
    report("write-code", fs::write("/bin/evil", "x"));
    report("overwrite-code", fs::write("/bin/busybox", "x"));
    report("usr-bin-create", fs::write("/usr/bin/evil", "x"));
    report("etc-write", fs::write("/etc/note", "x"));
    report("etc-rename", fs::rename("/etc/note", "/tmp/note"));
    report("top-create", fs::write("/note", "x"));
    report("entry-exec", execute("/entry.sh", &[]));
    report("app-exec", execute("/app/tool", &["true"]));
    report("app-drop", fs::copy("/bin/busybox", "/app/dropped").map(drop));
    report("app-drop-exec", execute("/app/dropped", &["true"]));
    report("app-replace", fs::rename("/app/dropped", "/app/tool"));
    report("app-replaced-exec", execute("/app/tool", &["true"]));
    report("tmp-drop", fs::copy("/bin/busybox", "/tmp/dropped").map(drop));
    report("tmp-drop-exec", execute("/tmp/dropped", &["true"]));
    report("vol-drop", fs::copy("/bin/busybox", "/vol/dropped").map(drop));
    report("vol-drop-exec", execute("/vol/dropped", &["true"]));
    report("smuggle", fs::rename("/tmp/dropped", "/bin/dropped"));
    report("list", fs::read_dir("/").map(drop));
    calls();
}

fn try_everything(inside: &Path, outside: &Path) {
    report("write-inside", fs::write(inside.join("note"), "x"));
    report("read-inside", fs::read(inside.join("note")).map(drop));
    report(
        "exec-inside",
        fs::copy("/bin/busybox", inside.join("tool")).map(drop),
    );
    report("write-outside", fs::write(outside.join("note"), "x"));
    report("read-outside", fs::read(outside.join("secret")).map(drop));
    report("exec-outside", execute("/bin/busybox", &["true"]));
    report("tcp", std::net::TcpListener::bind("127.0.0.1:0").map(drop));
    report("udp", std::net::UdpSocket::bind("127.0.0.1:0").map(drop));
    report("unix", std::os::unix::net::UnixStream::pair().map(drop));
    report("thread", std::thread::Builder::new().spawn(|| {}).map(drop));
    // SAFETY: signal 0 only asks whether the parent could be signalled.
    report(
        "signal-parent",
        answer(i64::from(unsafe { libc::kill(libc::getppid(), 0) })),
    );
    calls();
}

fn calls() {
    let call = |name, number: i64, a: u64, b: u64| {
        // SAFETY: each call gets numbers or a valid string and is expected to be refused or harmless.
        report(name, answer(unsafe { libc::syscall(number, a, b, 0, 0, 0) }));
    };
    let text = CString::new("probe").expect("no NUL");
    call("unshare", libc::SYS_unshare, 0x1000_0000, 0);
    call("keyctl", libc::SYS_keyctl, 0, 0);
    call("bpf", libc::SYS_bpf, 0, 0);
    call("mount", libc::SYS_mount, 0, 0);
    call("ptrace", libc::SYS_ptrace, 0, 0);
    call("io_uring", libc::SYS_io_uring_setup, 1, 0);
    call("userfaultfd", libc::SYS_userfaultfd, 1, 0);
    call("clone3", libc::SYS_clone3, 0, 0);
    call("clone-newuser", libc::SYS_clone, 0x1000_0000, 0);
    call("clone-parent", libc::SYS_clone, 0x8000, 0);
    call("future", 471, 0, 0);
    call("x32", 0x4000_0000 | 39, 0, 0);
    call("memfd", libc::SYS_memfd_create, text.as_ptr() as u64, 0);
    call("memfd-sealed", libc::SYS_memfd_create, text.as_ptr() as u64, 8);
    call("packet", libc::SYS_socket, 17, 3);
    call("af-alg", libc::SYS_socket, 38, 5);
}

fn execute(program: &str, args: &[&str]) -> io::Result<()> {
    // `posix_spawn` reports the child's error, so this is the outcome of `execve`.
    std::process::Command::new(program).args(args).status().map(drop)
}

fn answer(value: i64) -> io::Result<()> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "the test reads it")]
fn report(name: &str, outcome: io::Result<()>) {
    match outcome {
        Ok(()) => println!("{name}=ok"),
        Err(error) => match error.raw_os_error() {
            Some(number) => println!("{name}={number}"),
            None => println!("{name}={error}"),
        },
    }
}
