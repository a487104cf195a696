//! Brings an exec session into a running container.
//!
//! Our own, not libcontainer's: its 0.7 joins every namespace of the container but the user namespace, so a
//! session's root would be the host's. Here one `setns` on the container's pidfd joins all of them.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Pid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::cgroup;
use crate::config::ContainerConfig;
use crate::shim::announcement::Announcement;
use crate::shim::creator::Streams;
use crate::shim::executor::Confinement;
use crate::shim::{chain, exit_now};

/// A container to join.
#[derive(Debug)]
pub(crate) struct Target {
    /// Its first process, held so that the number cannot come to mean another.
    pub(crate) process: OwnedFd,
    /// Its control group.
    pub(crate) cgroup: String,
}

/// Starts `argv` in the container as a child of this process's parent. The caller is a child of the shim
/// with one thread; it cannot be used for anything else afterwards.
pub(crate) fn start(
    target: &Target,
    confinement: &Confinement,
    argv: &[String],
    streams: &Streams,
    announcement: &Announcement,
) -> Result<Pid, String> {
    cgroup::join(&target.cgroup).map_err(|error| chain(&error))?;
    // From the moment they share namespaces, the container's processes could look into this one.
    nix::sys::prctl::set_dumpable(false).map_err(|errno| format!("cannot hide the helper: {errno}"))?;
    let namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    nix::sched::setns(&target.process, namespaces)
        .map_err(|errno| format!("cannot join the container's namespaces: {errno}"))?;
    match fork_sibling(announcement).map_err(|errno| format!("cannot fork into the container: {errno}"))? {
        Some(pid) => Ok(pid),
        None => {
            let failure = match become_user(&confinement.config, streams) {
                Ok(()) => confinement.execute(argv),
                Err((step, errno)) => format!("cannot {step}: {errno}").into(),
            };
            confinement.report(failure);
            exit_now(127)
        }
    }
}

/// Forks a child into the joined pid namespace. Its parent is the shim, which watches it and knows it by `announcement`
/// from before it runs.
fn fork_sibling(announcement: &Announcement) -> Result<Option<Pid>, Errno> {
    let flags = libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with no stack this is fork; the process has one thread, so the child may
    // allocate and lock as it likes. The kernel writes one int at the announcement's address, which is mapped for it.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, announcement.address(), 0, 0) };
    match Errno::result(result)? {
        0 => Ok(None),
        pid => i32::try_from(pid)
            .map(|pid| Some(Pid::from_raw(pid)))
            .map_err(|_range| Errno::ERANGE),
    }
}

/// Takes the container's user, groups and capabilities, in the order in which each is still allowed.
fn become_user(config: &ContainerConfig, streams: &Streams) -> Result<(), (&'static str, Errno)> {
    let step = |name| move |errno| (name, errno);
    let rustix_step = |name| move |errno: rustix::io::Errno| (name, Errno::from_raw(errno.raw_os_error()));
    nix::unistd::setsid().map_err(step("start a session"))?;
    let connect = |stream: Option<&OwnedFd>, number| {
        let connected = stream.map(|stream| nix::unistd::dup2(stream.as_raw_fd(), number));
        connected
            .transpose()
            .map(drop)
            .map_err(step("connect a standard stream"))
    };
    connect(streams.stdin.as_ref(), libc::STDIN_FILENO)?;
    connect(streams.stdout.as_ref(), libc::STDOUT_FILENO)?;
    connect(streams.stderr.as_ref(), libc::STDERR_FILENO)?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    nix::unistd::chdir(&config.cwd).map_err(step("enter the working directory"))?;
    demand_inside().map_err(step("enter the working directory"))?;

    let groups: Vec<_> = config
        .supplemental_gids
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    nix::unistd::setgroups(&groups).map_err(step("set groups"))?;
    let wanted = capabilities(&config.capabilities)?;
    for capability in CapabilitySet::all()
        .iter()
        .filter(|capability| !wanted.contains(*capability))
    {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A capability this kernel does not know cannot be held either.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(rustix_step("bound capabilities")(errno)),
        }
    }
    rustix::thread::set_keep_capabilities(true).map_err(rustix_step("keep capabilities"))?;
    let gid = Gid::from_raw(config.gid);
    nix::unistd::setresgid(gid, gid, gid).map_err(step("change group"))?;
    let uid = Uid::from_raw(config.uid);
    nix::unistd::setresuid(uid, uid, uid).map_err(step("change user"))?;
    rustix::thread::clear_ambient_capability_set().map_err(rustix_step("clear ambient capabilities"))?;
    let sets = CapabilitySets {
        effective: wanted,
        permitted: wanted,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(rustix_step("set capabilities"))?;
    close_inherited()
}

/// The container may have made a link of its working directory, to what this process has open (`/proc/self/fd`): the kernel
/// has no name below the root for a directory that is not there.
fn demand_inside() -> Result<(), Errno> {
    let here = rustix::process::getcwd(Vec::new()).map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    match here.as_bytes().starts_with(b"/") {
        true => Ok(()),
        false => Err(Errno::ENOENT),
    }
}

fn capabilities(names: &[String]) -> Result<CapabilitySet, (&'static str, Errno)> {
    names.iter().try_fold(CapabilitySet::empty(), |set, name| {
        let known = name.strip_prefix("CAP_").and_then(CapabilitySet::from_name);
        known
            .map(|capability| set | capability)
            .ok_or(("understand the names of capabilities", Errno::EINVAL))
    })
}

/// Nothing of the shim's may be open in the container's program.
fn close_inherited() -> Result<(), (&'static str, Errno)> {
    // SAFETY: marks descriptors close-on-exec; takes numbers only and closes none that is still used.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| ("close inherited descriptors", errno))
}

/// The first process of a container, from its number, while the shim has not reaped it.
pub(crate) fn hold(pid: Pid) -> Result<OwnedFd, Errno> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(Errno::ESRCH)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}
