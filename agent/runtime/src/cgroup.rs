//! Control groups that were made: who is in them, was memory short, and their removal.
//!
//! A container's group is in every hierarchy of version 1 that limits or counts something, where `placement` makes it, or in the
//! one of version 2, where libcontainer does; this module treats both as "the same path below each root". It touches
//! only paths it is given, which are below the runtime's own root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::config::{PodConfig, PodResources};
use crate::hierarchies::Hierarchies;

/// How often a parent that another pod's end takes away is made again.
const ATTEMPTS: u32 = 16;

/// Why a control group could not be handled.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct CgroupError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Whether this host has only the version 2 hierarchy.
pub(crate) fn is_unified() -> Result<bool, CgroupError> {
    Ok(Hierarchies::known()?.unified)
}

/// The directory of the group in the one hierarchy of a host that has only version 2.
pub(crate) fn unified_directory(group: &str) -> Result<PathBuf, CgroupError> {
    let root = Hierarchies::known()?.roots.get("");
    let found = root.map(|root| root.join(relative(group)));
    found.ok_or_else(|| error("find", Path::new(group))(io::ErrorKind::NotFound.into()))
}

/// Makes a group's directory, and those above it, if they are not there.
pub(crate) fn make(directory: &Path) -> Result<(), CgroupError> {
    let mut made = fs::create_dir_all(directory);
    for _ in 1..ATTEMPTS {
        match &made {
            Err(error) if error.kind() == io::ErrorKind::NotFound => made = fs::create_dir_all(directory),
            _ => break,
        }
    }
    made.map_err(error("create", directory))
}

/// Sends `SIGKILL` to every process in the group and below it, and to what they fork meanwhile: on version 2 by the one file
/// for that, elsewhere while they stand still. Those that do not come to a standstill in time have to be killed again, until
/// [`members`] are none.
pub(crate) fn kill_tree(group: &str) -> Result<(), CgroupError> {
    let directories = directories(group)?;
    let mut members = Vec::new();
    for directory in &directories {
        members.extend(tree(directory)?);
    }
    // First of all, for who has no time to run has none to stand still or to die in.
    if let Some(top) = directory_of(group, "cpu")? {
        let mut limited = members.iter().filter(|member| member.starts_with(&top));
        limited.try_for_each(|member| lift_cpu_quota_of(member))?;
    }
    if is_unified()? {
        return directories
            .iter()
            .try_for_each(|directory| write_existing(&directory.join("cgroup.kill"), "1"));
    }
    let kill = || -> Result<BTreeSet<i32>, CgroupError> {
        let killed = members.iter().map(|member| kill_members(member));
        Ok(killed
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .flatten()
            .collect())
    };
    // Who dies already does not come to a standstill, and is not waited for: only who forks is worth it.
    let (first, second) = (kill()?, kill()?);
    if second.is_subset(&first) {
        return Ok(());
    }
    let _still = directories
        .iter()
        .map(|directory| Still::new(directory))
        .collect::<Result<Vec<_>, _>>()?;
    kill().map(drop)
}

/// A group of version 1 whose processes stand still until this is dropped; nothing in a hierarchy without the freezer.
struct Still {
    state: PathBuf,
}

impl Still {
    /// How long processes may take; those that wait for a disk take longer, and cannot fork meanwhile.
    const PATIENCE: Duration = Duration::from_millis(10);

    fn new(directory: &Path) -> Result<Self, CgroupError> {
        let still = Self {
            state: directory.join("freezer.state"),
        };
        write_existing(&still.state, "FROZEN")?;
        let ends = Instant::now() + Self::PATIENCE;
        // Reading is what makes the kernel look whether all stand still by now.
        while fs::read(&still.state).is_ok_and(|state| state == b"FREEZING\n") && Instant::now() < ends {
            std::thread::yield_now();
        }
        Ok(still)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        let _group_may_be_gone = write_existing(&self.state, "THAWED");
    }
}

/// Takes the CPU quota from the group, not from those below it. A process dies only while it runs: hundreds that share a
/// small quota would take minutes.
pub(crate) fn lift_cpu_quota(group: &str) -> Result<(), CgroupError> {
    directory_of(group, "cpu")?.map_or(Ok(()), |directory| lift_cpu_quota_of(&directory))
}

fn lift_cpu_quota_of(directory: &Path) -> Result<(), CgroupError> {
    for (file, unlimited) in [("cpu.max", "max"), ("cpu.cfs_quota_us", "-1")] {
        write_existing(&directory.join(file), unlimited)?;
    }
    Ok(())
}

/// Keeps the group out of swap, as the kubelet does. Otherwise a memory limit would only move memory to the disk, where
/// secrets would lie too. Version 1 counts memory and swap together, and only below a limit.
///
/// Not left to libcontainer 0.7: on version 2 it takes "no swap" for "not set". A kernel that does not account for swap
/// has no such file.
pub(crate) fn forbid_swap(group: &str, memory_bytes: Option<i64>) -> Result<(), CgroupError> {
    if let Some(directory) = directory_of(group, "memory")? {
        write_existing(&directory.join("memory.swap.max"), "0")?;
        if let Some(limit) = memory_bytes {
            write_existing(&directory.join("memory.memsw.limit_in_bytes"), &limit.to_string())?;
        }
    }
    Ok(())
}

/// Has the kernel kill the whole container when its memory is used up, as the kubelet does since 1.28: one that goes on without
/// some of its processes is broken and does not say so. Version 1 cannot, and has no such file.
pub(crate) fn kill_as_one(group: &str) -> Result<(), CgroupError> {
    match directory_of(group, "memory")? {
        Some(directory) => write_existing(&directory.join("memory.oom.group"), "1"),
        None => Ok(()),
    }
}

/// Bounds a pod's group: what its containers may have together, and its part of the processors beside other pods, which
/// the weights of its containers say nothing about. A limit that no hierarchy takes is an error.
///
/// A quota that is as small as that of a container is taken only once the container has its own: on version 1 no group may
/// have more than the one above it.
pub(crate) fn limit_pod(group: &str, pod: &PodConfig) -> Result<(), CgroupError> {
    let PodResources {
        cpu_quota_us,
        cpu_period_us,
        cpu_shares,
        memory_bytes,
    } = &pod.resources;
    if let Some(pids) = pod.pids {
        set(group, "pids", &[("pids.max", pids.to_string())])?;
    }
    if let Some(shares) = *cpu_shares {
        let weight = weight_of(shares).to_string();
        set(
            group,
            "cpu",
            &[("cpu.shares", shares.to_string()), ("cpu.weight", weight)],
        )?;
    }
    if let Some(bytes) = memory_bytes {
        let files = ["memory.limit_in_bytes", "memory.max"];
        set(group, "memory", &files.map(|file| (file, bytes.to_string())))?;
    }
    if let Some((quota, period)) = cpu_quota_us.zip(*cpu_period_us) {
        let both = format!("{quota} {period}");
        set(
            group,
            "cpu",
            &[("cpu.cfs_period_us", period.to_string()), ("cpu.max", both)],
        )?;
        // Version 2 has taken it with the period.
        if let Some(directory) = directory_of(group, "cpu")? {
            write_existing(&directory.join("cpu.cfs_quota_us"), &quota.to_string())?;
        }
    }
    Ok(())
}

/// Version 2's weight for version 1's shares, as libcontainer and the kubelet convert them.
fn weight_of(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// Writes to those files of the group that the controller's hierarchy has; one of them must be there.
pub(crate) fn set(group: &str, controller: &str, files: &[(&str, String)]) -> Result<(), CgroupError> {
    let mut found = false;
    if let Some(directory) = directory_of(group, controller)? {
        for (file, value) in files {
            let path = directory.join(file);
            if path.exists() {
                fs::write(&path, value).map_err(error("write", &path))?;
                found = true;
            }
        }
    }
    if found {
        return Ok(());
    }
    let names: Vec<_> = files.iter().map(|(file, _)| *file).collect();
    let missing = io::Error::new(
        io::ErrorKind::NotFound,
        format!("it has no {}", names.join(" or ")),
    );
    Err(error("limit", Path::new(group))(missing))
}

/// The limits of a group; absent where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Whether the host has only the version 2 hierarchy.
    pub(crate) unified: bool,
    pub(crate) memory_bytes: Option<i64>,
    pub(crate) pids: Option<i64>,
    pub(crate) cpu_quota_us: Option<i64>,
}

/// Reads the limits of the group back.
pub(crate) fn limits(group: &str) -> Result<Limits, CgroupError> {
    let limits = Limits {
        unified: is_unified()?,
        ..Limits::default()
    };
    let read = |controller: &str, version_1: &str, version_2: &str| -> Result<Option<i64>, CgroupError> {
        let Some(directory) = directory_of(group, controller)? else {
            return Ok(None);
        };
        let path = directory.join(if limits.unified { version_2 } else { version_1 });
        match fs::read_to_string(&path) {
            // `max` and -1 are no limits.
            Ok(text) => {
                let number = text.split_whitespace().next().and_then(|word| word.parse().ok());
                Ok(number.filter(|number| *number >= 0))
            }
            Err(error) if is_gone(&error) => Ok(None),
            Err(source) => Err(error("read", &path)(source)),
        }
    };
    let memory_bytes = read("memory", "memory.limit_in_bytes", "memory.max")?;
    let pids = read("pids", "pids.max", "pids.max")?;
    let cpu_quota_us = read("cpu", "cpu.cfs_quota_us", "cpu.max")?;
    Ok(Limits {
        memory_bytes,
        pids,
        cpu_quota_us,
        ..limits
    })
}

/// Moves this process, which must have one thread, into the group.
///
/// Version 1 takes a thread that moves itself at once, by `tasks`; for a move by `cgroup.procs`, all that fork or exit
/// anywhere have to be known to have finished, and that takes the kernel milliseconds.
pub(crate) fn join(group: &str) -> Result<(), CgroupError> {
    for directory in directories(group)? {
        let thread = directory.join("tasks");
        let path = match thread.exists() {
            true => thread,
            false => directory.join("cgroup.procs"),
        };
        fs::write(&path, "0").map_err(error("enter", &path))?;
    }
    Ok(())
}

/// Makes the kernel ready to move processes between groups, by moving this one to where it is.
///
/// The first move after a while waits for a grace period of the kernel's, 8 ms on a machine with a timer of 250 Hz; those that
/// follow soon do not. Whoever is about to move something can have that wait begin, on another thread, before what else
/// there is to do (`cgroup_threadgroup_rwsem` in the kernel's `kernel/cgroup/cgroup.c`, `kernel/rcu/sync.c`). Meanwhile nobody
/// makes or enters a group; on version 1, where threads move themselves ([`join`]), that would be all there is to it.
pub(crate) fn expect_moves() -> Result<(), CgroupError> {
    let list = Path::new("/proc/self/cgroup");
    let own = fs::read_to_string(list).map_err(error("read", list))?;
    let roots = &Hierarchies::known()?.roots;
    let mut members = own_directories(roots, &own).map(|directory| directory.join("cgroup.procs"));
    match members.find(|members| members.exists()) {
        Some(members) => write_existing(&members, &std::process::id().to_string()),
        None => Ok(()),
    }
}

/// Where the groups of a `/proc/PID/cgroup` are, of the hierarchies with these roots.
pub(crate) fn own_directories<'a>(
    roots: &'a BTreeMap<String, PathBuf>,
    groups: &'a str,
) -> impl Iterator<Item = PathBuf> + 'a {
    groups.lines().filter_map(move |line| {
        let mut fields = line.splitn(3, ':');
        let (_number, hierarchy, path) = (fields.next()?, fields.next()?, fields.next()?);
        // `name=systemd` is mounted as `systemd`; version 2 has no name.
        let root = roots.get(hierarchy.trim_start_matches("name="))?;
        Some(root.join(relative(path)))
    })
}

/// The processes of the group itself.
pub(crate) fn members(group: &str) -> Result<Vec<nix::unistd::Pid>, CgroupError> {
    let mut members = Vec::new();
    // A process is in one group of every hierarchy, so any one of them lists all.
    if let Some(directory) = directories(group)?.first() {
        let path = directory.join("cgroup.procs");
        let text = fs::read_to_string(&path).map_err(error("read", &path))?;
        let numbers = text.lines().filter_map(|line| line.parse().ok());
        members.extend(numbers.map(nix::unistd::Pid::from_raw));
    }
    Ok(members)
}

/// Removes the group and all below it; fails while a process is left.
pub(crate) fn remove_tree(group: &str) -> Result<(), CgroupError> {
    for root in Hierarchies::known()?.roots.values() {
        let directory = root.join(relative(group));
        // Most have none below them.
        if remove(&directory).is_ok() {
            continue;
        }
        // Deepest first: `tree` lists parents before children.
        for member in tree(&directory)?.iter().rev() {
            remove(member)?;
        }
    }
    Ok(())
}

fn remove(directory: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error("remove", directory)(source)),
        _ => Ok(()),
    }
}

/// Removes a shared parent once the last pod is gone; others still using it is the ordinary case.
pub(crate) fn remove_if_empty(group: &str) {
    if let Ok(directories) = directories(group) {
        for directory in directories {
            let _still_used = fs::remove_dir(directory);
        }
    }
}

/// Whether the kernel killed a process of the group for lack of memory.
pub(crate) fn was_oom_killed(group: &str) -> Result<bool, CgroupError> {
    if let Some(directory) = directory_of(group, "memory")? {
        for file in ["memory.events", "memory.oom_control"] {
            let path = directory.join(file);
            match fs::read_to_string(&path) {
                Ok(text) => {
                    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
                    if count.is_some_and(|count| count.trim() != "0") {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(error("read", &path)(source)),
            }
        }
    }
    Ok(false)
}

/// The group in each hierarchy where it exists.
pub(crate) fn directories(group: &str) -> Result<Vec<PathBuf>, CgroupError> {
    let roots = Hierarchies::known()?.roots.values();
    let directories = roots.map(|root| root.join(relative(group)));
    Ok(directories.filter(|path| path.is_dir()).collect())
}

/// The group in the hierarchy that has the controller, whether or not it exists.
pub(crate) fn directory_of(group: &str, controller: &str) -> Result<Option<PathBuf>, CgroupError> {
    let root = Hierarchies::known()?.root_of(controller);
    Ok(root.map(|root| root.join(relative(group))))
}

/// A group's path below each root.
pub(crate) fn relative(group: &str) -> &str {
    group.trim_start_matches('/')
}

/// A group's directory and those below it, parents first.
fn tree(directory: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(current) = found.get(next).cloned() {
        next += 1;
        let entries = match fs::read_dir(&current) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(error("list", &current)(source)),
        };
        found.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    Ok(found)
}

/// Writes to a file of a group, unless the group has gone or its hierarchy has no such file.
pub(crate) fn write_existing(path: &Path, value: &str) -> Result<(), CgroupError> {
    let written = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    match written {
        Err(source) if !is_gone(&source) => Err(error("write", path)(source)),
        _ => Ok(()),
    }
}

/// A group can be removed between any two calls; a file of it that is open then says `ENODEV`.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Kills who is in the group, and says who that was.
fn kill_members(directory: &Path) -> Result<BTreeSet<i32>, CgroupError> {
    let path = directory.join("cgroup.procs");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(source) => return Err(error("read", &path)(source)),
    };
    let members: BTreeSet<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for pid in members.iter().copied().filter_map(Pid::from_raw) {
        match rustix::process::kill_process(pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(error("kill the processes of", directory)(errno.into())),
        }
    }
    Ok(members)
}

pub(crate) fn error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    const ROUNDS: usize = 4;

    #[test]
    fn who_expects_moves_stays_where_it_is() {
        let before = fs::read_to_string("/proc/self/cgroup").expect("own groups");
        expect_moves().expect("a move");
        assert_eq!(
            fs::read_to_string("/proc/self/cgroup").expect("own groups"),
            before
        );
    }

    #[test]
    fn own_groups_are_found_by_hierarchy() {
        let groups = "12:cpu,cpuacct:/a/b\n1:name=systemd:/\n0::/a: b/c\n";
        let root = |name: &str| (name.to_owned(), Path::new("/groups").join(name));
        let version_1 = ["cpu,cpuacct", "systemd", "unified"].map(root).into();
        let found: Vec<_> = own_directories(&version_1, groups).collect();
        assert_eq!(
            found,
            ["cpu,cpuacct/a/b", "systemd/"].map(|path| Path::new("/groups").join(path))
        );
        let version_2 = [root("")].into();
        let found: Vec<_> = own_directories(&version_2, groups).collect();
        assert_eq!(found, [Path::new("/groups/a: b/c")]);
    }

    /// A group in one hierarchy only, so that there is one look at its list, with processes that sleep and, behind them on
    /// the list, such as fork and exit. They end with the namespace of a process outside of the group.
    struct Chains {
        group: String,
        directory: PathBuf,
        outside: Child,
    }

    impl Chains {
        fn begin(round: usize) -> Self {
            let group = format!("/palisade-test-chains-{}-{round}", std::process::id());
            let known = Hierarchies::known().expect("mounted");
            let root = known.roots.get("").or(known.roots.get("freezer"));
            let directory = root.expect("a hierarchy").join(&group[1..]);
            fs::create_dir(&directory).expect("a group");
            let inside = format!(
                "echo 0 > {}/cgroup.procs; for i in $(busybox seq 200); do busybox sleep 100 & done; \
                 c() {{ c & }}; c; c; c; c; echo up",
                directory.display()
            );
            let mut outside = Command::new("unshare")
                .args(["--pid", "--fork", "--kill-child", "busybox", "sh", "-c"])
                .arg("busybox sh -c \"$1\"; exec busybox sleep 100")
                .args(["sh", &inside])
                .stdout(Stdio::piped())
                .spawn()
                .expect("unshare of util-linux");
            let mut up = [0; 3];
            let output = outside.stdout.as_mut().expect("piped");
            io::Read::read_exact(output, &mut up).expect("up");
            Self {
                group,
                directory,
                outside,
            }
        }

        /// Whether nobody is left soon.
        fn are_gone(&self) -> bool {
            let ends = Instant::now() + Duration::from_secs(10);
            while Instant::now() < ends {
                if members(&self.group).expect("a list").is_empty() {
                    return true;
                }
                std::thread::yield_now();
            }
            false
        }
    }

    impl Drop for Chains {
        fn drop(&mut self) {
            let _killed = self.outside.kill();
            let _reaped = self.outside.wait();
            let ends = Instant::now() + Duration::from_secs(5);
            while fs::remove_dir(&self.directory).is_err() && Instant::now() < ends {
                std::thread::yield_now();
            }
        }
    }

    /// Whoever reads the list and kills what is on it is late. A process may be slow to stand still on a busy machine, and then
    /// the next try gets it; that is not the rule.
    #[test]
    fn who_forks_and_exits_is_killed_at_the_first_try() {
        let first_tries = (0..ROUNDS).filter(|round| {
            let chains = Chains::begin(*round);
            kill_tree(&chains.group).expect("kills");
            chains.are_gone()
        });
        let first_tries = first_tries.count();
        // By one look at the list it is none.
        assert!(first_tries > ROUNDS / 2, "{first_tries} of {ROUNDS}");
    }
}
