//! The pod's namespaces, and the one process that holds them open: two, if the pod has a pid namespace, which lives as
//! long as its process number 1.
//!
//! A child of the shim enters new user, network, IPC and UTS namespaces, becomes root inside, gives up
//! everything and pauses until the shim dies. Containers join its namespaces by its process id; the agent
//! configures the network through `/proc/<pid>/ns/net`.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, Gid, Pid, Uid};

use crate::config::PodConfig;
use crate::shim::{ShimError, system};

/// Written to the child when its id maps are in place.
const MAPPED: &[u8] = b"m";

/// Written by the child after each of its two steps.
const DONE: &[u8] = b"d";

/// What the processes that are not of a container are called.
const NAME: &std::ffi::CStr = c"palisade-pod";

/// Starts the holder and returns its process id once the namespaces are complete. The kernel takes its time to make them:
/// the caller does something else `meanwhile`, which the holder has nothing of.
pub(super) fn start<T>(
    pod: &PodConfig,
    meanwhile: impl FnOnce() -> Result<T, ShimError>,
) -> Result<(Pid, T), ShimError> {
    let (from_child, to_parent) = pipe()?;
    let (from_parent, to_child) = pipe()?;
    let shim = nix::unistd::getpid();
    // SAFETY: the process has one thread, so the child may allocate and lock as it likes.
    match unsafe { nix::unistd::fork() }.map_err(system("fork the namespace holder"))? {
        ForkResult::Child => {
            drop((from_child, to_child));
            hold(pod, shim, &from_parent, &to_parent)
        }
        ForkResult::Parent { child } => {
            drop((from_parent, to_parent));
            let (mut from_child, mut to_child) = (fs::File::from(from_child), fs::File::from(to_child));
            let done = meanwhile()?;
            expect_done(&mut from_child)?;
            for map in ["uid_map", "gid_map"] {
                let path = std::path::PathBuf::from(format!("/proc/{child}/{map}"));
                fs::write(&path, format!("0 {} {}\n", pod.id_base, pod.id_count))
                    .map_err(super::file_error("write", &path))?;
            }
            to_child
                .write_all(MAPPED)
                .map_err(|error| failed(error.to_string()))?;
            expect_done(&mut from_child)?;
            Ok((child, done))
        }
    }
}

fn hold(pod: &PodConfig, shim: Pid, from_parent: &OwnedFd, to_parent: &OwnedFd) -> ! {
    let reason = match enter(pod, shim, from_parent, to_parent) {
        Ok(None) => {
            // The shim waits for no more; from here on only its death matters.
            loop {
                nix::unistd::pause();
            }
        }
        Ok(Some(first)) => {
            // A pid namespace without its number 1 takes no more processes: the pod cannot go on, and the shim is told.
            let _ended = nix::sys::wait::waitpid(first, None);
            super::exit_now(1)
        }
        Err((step, errno)) => format!("{step}: {errno}"),
    };
    let _shim_may_be_gone = rustix::io::write(to_parent, reason.as_bytes());
    super::exit_now(1)
}

/// Enters the namespaces, and returns the process number 1 of the pid namespace, if there is one.
fn enter(
    pod: &PodConfig,
    shim: Pid,
    from_parent: &OwnedFd,
    to_parent: &OwnedFd,
) -> Result<Option<Pid>, (&'static str, Errno)> {
    let step = |name| move |errno| (name, errno);
    let from_rustix = |errno: rustix::io::Errno| Errno::from_raw(errno.raw_os_error());
    let namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    // Standard output still is the agent's pipe, whose end tells it that the shim is ready.
    let null = fs::OpenOptions::new().write(true).open("/dev/null");
    let null = null.map_err(|_missing| ("open /dev/null", Errno::ENODEV))?;
    nix::unistd::dup2(null.as_raw_fd(), libc::STDOUT_FILENO).map_err(step("leave standard output"))?;
    become_owner(pod.id_base).map_err(step("become the owner of the user namespace"))?;
    nix::sched::unshare(namespaces).map_err(step("unshare user, net, ipc and uts namespaces"))?;
    rustix::io::write(to_parent, DONE)
        .map_err(from_rustix)
        .map_err(step("report"))?;
    let mut answer = [0];
    match rustix::io::read(from_parent, &mut answer)
        .map_err(from_rustix)
        .map_err(step("wait for id maps"))?
    {
        1 => {}
        _ => return Err(("wait for id maps", Errno::EPIPE)),
    }
    nix::unistd::setgroups(&[]).map_err(step("drop groups"))?;
    nix::unistd::setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))
        .map_err(step("change group"))?;
    nix::unistd::setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))
        .map_err(step("change user"))?;
    nix::unistd::sethostname(&pod.hostname).map_err(step("set the host name"))?;
    // As other runtimes do for user-namespaced pods: an image's unprivileged server may bind port 80.
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").map_err(|error| {
        (
            "free low ports",
            Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        )
    })?;

    let mut first = None;
    if pod.shares_processes {
        nix::sched::unshare(CloneFlags::CLONE_NEWPID).map_err(step("unshare the pid namespace"))?;
        first = Some(start_first()?);
    }
    nix::sys::prctl::set_name(NAME).map_err(step("name the process"))?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("tie to the shim"))?;
    nix::sys::prctl::set_no_new_privs().map_err(step("set no_new_privs"))?;
    drop_capabilities()?;
    SigSet::all().thread_set_mask().map_err(step("block signals"))?;
    // The shim may have died before it was tied to it; whoever took it in then need not be process 1.
    if nix::unistd::getppid() != shim {
        return Err(("find the shim alive", Errno::ESRCH));
    }
    rustix::io::write(to_parent, DONE)
        .map_err(from_rustix)
        .map_err(step("report"))?;
    Ok(first)
}

/// What the kernel counts by user and bounds, such as inotify instances and queued signals, it counts once more for the owner
/// of the user namespace, who made it: for a pod as a whole. Root of the host would be that for all pods together and for
/// itself, so it is the pod's own first user, with root's capabilities; without these some kernels make none.
fn become_owner(id_base: u32) -> Result<(), Errno> {
    let as_it_is = Uid::from_raw(u32::MAX);
    nix::unistd::setresuid(as_it_is, Uid::from_raw(id_base), as_it_is)?;
    let sets = || -> rustix::io::Result<()> {
        let held = rustix::thread::capabilities(None)?;
        let sets = rustix::thread::CapabilitySets {
            effective: held.permitted,
            ..held
        };
        rustix::thread::set_capabilities(None, sets)
    };
    sets().map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// Forks the process number 1 of the pod's pid namespace and waits until it is harmless.
fn start_first() -> Result<Pid, (&'static str, Errno)> {
    let step = |name| move |errno| (name, errno);
    let (from_first, to_holder) = nix::unistd::pipe().map_err(step("create a pipe"))?;
    // SAFETY: the process has one thread, so the child may allocate and lock as it likes.
    match unsafe { nix::unistd::fork() }.map_err(step("fork the pod's first process"))? {
        ForkResult::Child => {
            drop(from_first);
            be_first(to_holder)
        }
        ForkResult::Parent { child } => {
            drop(to_holder);
            let mut answer = [0];
            match rustix::io::read(&from_first, &mut answer) {
                Ok(1) => Ok(child),
                _ => Err(("start the pod's first process", Errno::EPIPE)),
            }
        }
    }
}

/// Reaps what the containers leave behind, until the holder dies. The containers see this process: it has no privileges,
/// cannot be traced, and takes no signals from them.
fn be_first(to_holder: OwnedFd) -> ! {
    let harmless = || {
        nix::unistd::setsid()?;
        nix::sys::prctl::set_name(NAME)?;
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        nix::sys::prctl::set_no_new_privs()?;
        nix::sys::prctl::set_dumpable(false)?;
        leave_mounts()?;
        drop_capabilities().map_err(|(_step, errno)| errno)?;
        SigSet::all().thread_set_mask()
    };
    let answered = harmless().is_ok() && rustix::io::write(&to_holder, DONE).is_ok();
    // Nothing of the shim's is open in a process that containers see.
    // SAFETY: takes numbers only; no descriptor is used afterwards, and the one that is owned here is never dropped.
    let closed = unsafe { libc::close_range(0, libc::c_uint::MAX, 0) } == 0;
    std::mem::forget(to_holder);
    if !answered || !closed {
        super::exit_now(1);
    }
    let mut deaths = SigSet::empty();
    deaths.add(Signal::SIGCHLD);
    loop {
        if nix::sys::wait::waitpid(None, None) == Err(Errno::ECHILD) {
            // None left for now: the signal, which is blocked, tells of the next.
            let _told = deaths.wait();
        }
    }
}

/// Into a mount namespace with nothing in it: what is mounted where a process is, its `/proc` says to everybody who sees it.
fn leave_mounts() -> Result<(), Errno> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    let empty = Some("tmpfs");
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Any directory will do that every host has.
    nix::mount::mount(empty, "/proc", empty, flags, Some("size=4k,mode=555"))?;
    nix::unistd::chdir("/proc")?;
    // The old root comes to lie upon the new one, and goes with all that is mounted below it.
    nix::unistd::pivot_root(".", ".")?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")
}

fn drop_capabilities() -> Result<(), (&'static str, Errno)> {
    let no_capabilities = rustix::thread::CapabilitySets {
        effective: rustix::thread::CapabilitySet::empty(),
        permitted: rustix::thread::CapabilitySet::empty(),
        inheritable: rustix::thread::CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, no_capabilities)
        .map_err(|errno| ("drop capabilities", Errno::from_raw(errno.raw_os_error())))
}

fn expect_done(from_child: &mut fs::File) -> Result<(), ShimError> {
    let mut text = [0; 256];
    let length = from_child
        .read(&mut text)
        .map_err(|error| failed(error.to_string()))?;
    match &text[..length] {
        done if done == DONE => Ok(()),
        [] => Err(failed("the holder died".into())),
        other => Err(failed(String::from_utf8_lossy(other).into_owned())),
    }
}

fn failed(reason: String) -> ShimError {
    ShimError::Holder { reason }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), ShimError> {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(system("create a pipe"))
}
