//! What libcontainer does for a container on version 2, this does on version 1: its control groups are made, limited and
//! entered. Why: `hierarchies`.
//!
//! Who enters is a process with one thread that forks what is to begin there, and leaves again.

use std::fs;
use std::io;
use std::path::Path;

use crate::cgroup::{self, CgroupError, error, relative};
use crate::config::Resources;
use crate::devices;
use crate::hierarchies::Hierarchies;

/// What limits or counts. Hierarchies without any of them, such as systemd's own, are left alone, as libcontainer does.
const CONTROLLERS: [&str; 12] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

/// What a group must have of the one above it before anybody may enter.
const INHERITED: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Makes the group in all hierarchies of version 1 where it is not there. Nothing happens on version 2.
pub(crate) fn make(group: &str) -> Result<(), CgroupError> {
    let known = Hierarchies::known()?;
    if known.unified {
        return Ok(());
    }
    for (name, root) in &known.roots {
        let mut controllers = name.split(',').filter(|name| CONTROLLERS.contains(name));
        if controllers.next().is_none() {
            continue;
        }
        let directory = root.join(relative(group));
        cgroup::make(&directory)?;
        for file in INHERITED {
            inherit(root, &directory, file)?;
        }
    }
    Ok(())
}

/// The caller, in a container's groups of version 1.
#[derive(Debug)]
pub(crate) struct Entered {
    /// Where it was, as `/proc/self/cgroup` has it.
    before: String,
}

impl Entered {
    /// Makes the container's groups, bounds them and enters; none on version 2.
    pub(crate) fn begin(group: &str, resources: &Resources) -> Result<Option<Self>, CgroupError> {
        if cgroup::is_unified()? {
            return Ok(None);
        }
        make(group)?;
        devices::list(group)?;
        limit(group, resources)?;
        let own = Path::new("/proc/self/cgroup");
        let before = fs::read_to_string(own).map_err(error("read", own))?;
        cgroup::join(group)?;
        Ok(Some(Self { before }))
    }

    /// Goes back. Who cannot ends in the container's groups, and soon.
    pub(crate) fn end(self) -> Result<(), CgroupError> {
        let roots = &Hierarchies::known()?.roots;
        let mut before = cgroup::own_directories(roots, &self.before);
        before.try_for_each(|directory| cgroup::write_existing(&directory.join("tasks"), "0"))
    }
}

/// A limit that no hierarchy takes is an error.
fn limit(group: &str, resources: &Resources) -> Result<(), CgroupError> {
    let Resources {
        memory_bytes,
        cpu_quota_us,
        cpu_period_us,
        cpu_shares,
        pids,
    } = resources;
    let text = |number: Option<i64>| number.map(|number| number.to_string());
    // A quota counts for the period that is there already.
    let period = cpu_period_us.map(|period| period.to_string());
    let limits = [
        ("memory", "memory.limit_in_bytes", text(*memory_bytes)),
        ("cpu", "cpu.shares", cpu_shares.map(|shares| shares.to_string())),
        ("cpu", "cpu.cfs_period_us", period),
        ("cpu", "cpu.cfs_quota_us", text(*cpu_quota_us)),
        ("pids", "pids.max", text(*pids)),
    ];
    for (controller, file, value) in limits {
        if let Some(value) = value {
            cgroup::set(group, controller, &[(file, value)])?;
        }
    }
    Ok(())
}

/// Gives a new group what the one above it has. Other hierarchies have no such file.
fn inherit(root: &Path, directory: &Path, file: &str) -> Result<(), CgroupError> {
    let path = directory.join(file);
    let is_set = match fs::read_to_string(&path) {
        Ok(text) => !text.trim().is_empty(),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => true,
        Err(source) => return Err(error("read", &path)(source)),
    };
    let Some(parent) = directory.parent().filter(|_| !is_set && directory != root) else {
        return Ok(());
    };
    inherit(root, parent, file)?;
    let above = parent.join(file);
    let value = fs::read_to_string(&above).map_err(error("read", &above))?;
    fs::write(&path, value.trim()).map_err(error("write", &path))
}
