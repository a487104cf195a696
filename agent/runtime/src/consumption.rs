//! What pods and their containers use, read from their control groups.
//!
//! Works for version 1, hybrid and version 2 hosts: every file is looked for in every hierarchy, and the two versions have
//! no file name in common that is read here but for `memory.stat`, whose fields tell them apart.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cgroup::{self, CgroupError};
use crate::client::{Runtime, demand_name};
use crate::error::RuntimeError;

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodUsage {
    /// Processor time of all containers there ever were, in nanoseconds.
    pub cpu_nanos: u64,
    /// The containers that were asked for and are there.
    pub containers: Vec<ContainerUsage>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerUsage {
    /// As asked for.
    pub name: String,
    /// As asked for.
    pub attempt: u32,
    /// Processor time, in nanoseconds.
    pub cpu_nanos: u64,
    /// Memory.
    pub memory: MemoryUsage,
    /// Threads of all its processes.
    pub threads: u64,
}

/// Memory of a container, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryUsage {
    /// All that is charged to it.
    pub usage: u64,
    /// Without cached files that were not used lately, as Kubernetes defines it.
    pub working_set: u64,
    /// Anonymous memory.
    pub anonymous: u64,
    /// Since its beginning.
    pub page_faults: u64,
    /// Those that read from a disk.
    pub major_page_faults: u64,
}

impl Runtime {
    /// What a pod and those of its containers use, each given by name and attempt. Whatever has gone is left out.
    pub fn usage(&self, pod: &str, containers: &[(String, u32)]) -> Result<PodUsage, RuntimeError> {
        demand_name("pod uid", pod)?;
        let group = self.cgroup(pod);
        let failed = |source| RuntimeError::Cgroup { source };
        let mut usage = PodUsage {
            cpu_nanos: Group::open(&group)
                .and_then(|group| group.cpu())
                .map_err(failed)?,
            containers: Vec::with_capacity(containers.len()),
        };
        for (name, attempt) in containers {
            demand_name("container name", name)?;
            let group = Group::open(&format!("{group}/{name}-{attempt}")).map_err(failed)?;
            if group.directories.is_empty() {
                continue;
            }
            usage.containers.push(ContainerUsage {
                name: name.clone(),
                attempt: *attempt,
                cpu_nanos: group.cpu().map_err(failed)?,
                memory: group.memory().map_err(failed)?,
                threads: group.number("pids.current").map_err(failed)?.unwrap_or(0),
            });
        }
        Ok(usage)
    }
}

/// A control group in all hierarchies that have it.
struct Group {
    directories: Vec<PathBuf>,
}

impl Group {
    fn open(path: &str) -> Result<Self, CgroupError> {
        Ok(Self {
            directories: cgroup::directories(path)?,
        })
    }

    fn cpu(&self) -> Result<u64, CgroupError> {
        if let Some(nanos) = self.number("cpuacct.usage")? {
            return Ok(nanos);
        }
        let text = self.text("cpu.stat")?.unwrap_or_default();
        Ok(field(&text, "usage_usec").unwrap_or(0).saturating_mul(1000))
    }

    fn memory(&self) -> Result<MemoryUsage, CgroupError> {
        let usage = match self.number("memory.usage_in_bytes")? {
            Some(usage) => Some(usage),
            None => self.number("memory.current")?,
        };
        let stat = self.text("memory.stat")?.unwrap_or_default();
        Ok(memory(usage.unwrap_or(0), &stat))
    }

    fn number(&self, file: &str) -> Result<Option<u64>, CgroupError> {
        Ok(self.text(file)?.and_then(|text| text.trim().parse().ok()))
    }

    /// The first hierarchy's file of that name. A group may go at any moment.
    fn text(&self, file: &str) -> Result<Option<String>, CgroupError> {
        for directory in &self.directories {
            if let Some(text) = read(&directory.join(file))? {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }
}

fn read(path: &Path) -> Result<Option<String>, CgroupError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) if cgroup::is_gone(&source) || source.kind() == io::ErrorKind::NotADirectory => Ok(None),
        Err(source) => Err(cgroup::error("read", path)(source)),
    }
}

/// Version 1 counts those below a group in fields that begin with `total_`; version 2 always counts them.
fn memory(usage: u64, stat: &str) -> MemoryUsage {
    let value = |first: &str, second: &str| {
        let found = field(stat, first).or_else(|| field(stat, second));
        found.unwrap_or(0)
    };
    MemoryUsage {
        usage,
        working_set: usage.saturating_sub(value("total_inactive_file", "inactive_file")),
        anonymous: value("total_rss", "anon"),
        page_faults: value("total_pgfault", "pgfault"),
        major_page_faults: value("total_pgmajfault", "pgmajfault"),
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, value) = lines.find(|(key, _)| *key == name)?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_the_kernels_files_are_understood() {
        let first = "cache 900\nrss 100\ninactive_file 7\ntotal_rss 4096\ntotal_inactive_file 300\n\
                     total_pgfault 5\ntotal_pgmajfault 2\n";
        let second = "anon 4096\nfile 900\ninactive_file 300\npgfault 5\npgmajfault 2\n";
        let expected = MemoryUsage {
            usage: 1000,
            working_set: 700,
            anonymous: 4096,
            page_faults: 5,
            major_page_faults: 2,
        };
        assert_eq!(memory(1000, first), expected);
        assert_eq!(memory(1000, second), expected);
        assert_eq!(memory(100, second).working_set, 0, "never below nothing");
        assert_eq!(field("usage_usec 12\nuser_usec 3\n", "usage_usec"), Some(12));
        assert_eq!(field("usage_usecx 12\n", "usage_usec"), None);
    }
}
