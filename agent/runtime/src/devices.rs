//! Devices are denied by default: the kernel lets a container open the few that hold nothing of the machine's.
//!
//! This holds beside the user and the mount namespace, and for whoever is in the container's control group without them.
//! On version 1 each container has a list of the controller's, which [`list`] writes before anything is in its group. On
//! version 2 the agent attaches a program to the pod's group before anything runs in it ([`Denial`]); the groups of the
//! containers inherit it. Which devices: [`LIST`], and `ebpf/programs/src/devices.rs`.
//! [`Devices`] is what the kernel says of it, whichever version it has.

use std::fs;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use ebpf_loader::devices::{DeviceError, DeviceProgram, attached};

use crate::cgroup::{self, CgroupError};

/// Version 1's list as the kernel writes it: making nodes of any kind, null, zero, full, random, urandom, tty, ptmx and
/// the terminals of a pod.
const LIST: [&str; 10] = [
    "b *:* m",
    "c *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// The file of that list.
const LIST_FILE: &str = "devices.list";

/// Why devices cannot be denied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DevicesError {
    #[error("devices cannot be denied")]
    Program(#[source] DeviceError),
    #[error("devices cannot be denied")]
    Cgroup(#[source] CgroupError),
    #[error(
        "devices cannot be denied: no control group hierarchy has the devices controller, CONFIG_CGROUP_DEVICE is needed"
    )]
    NoController,
}

/// Denies devices to pods: the agent's part.
#[derive(Debug, Default)]
pub(crate) struct Denial {
    /// Loaded for the first pod.
    program: Mutex<Option<DeviceProgram>>,
}

impl Denial {
    /// Makes a pod's group in which devices are denied, and returns the number of the program that does it. There is none
    /// on version 1, where each container gets a list.
    pub(crate) fn impose(&self, group: &str) -> Result<Option<u32>, DevicesError> {
        if !cgroup::is_unified().map_err(DevicesError::Cgroup)? {
            let roots = cgroup::directories("/").map_err(DevicesError::Cgroup)?;
            return match roots.iter().any(|root| root.join(LIST_FILE).exists()) {
                true => Ok(None),
                false => Err(DevicesError::NoController),
            };
        }
        let directory = cgroup::unified_directory(group).map_err(DevicesError::Cgroup)?;
        cgroup::make(&directory).map_err(DevicesError::Cgroup)?;
        let mut loaded = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        let program = match loaded.take() {
            Some(program) => program,
            None => DeviceProgram::load().map_err(DevicesError::Program)?,
        };
        let program = loaded.insert(program);
        program.attach(&directory).map_err(DevicesError::Program)?;
        Ok(Some(program.number()))
    }
}

/// Which devices the kernel says the processes of a group may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Devices {
    /// Nothing decides about them.
    Any,
    /// Version 1: the lines of the list.
    Listed(Vec<String>),
    /// Version 2: the programs that are asked.
    Asked(Vec<u32>),
}

impl Devices {
    /// Reads it back for a container's group.
    pub(crate) fn of(group: &str) -> Result<Self, DevicesError> {
        if cgroup::is_unified().map_err(DevicesError::Cgroup)? {
            let directory = cgroup::unified_directory(group).map_err(DevicesError::Cgroup)?;
            let programs = attached(&directory).map_err(DevicesError::Program)?;
            return Ok(Self::Asked(programs));
        }
        let Some(directory) = cgroup::directory_of(group, "devices").map_err(DevicesError::Cgroup)? else {
            return Ok(Self::Any);
        };
        let path = directory.join(LIST_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Self::Listed(text.lines().map(str::to_owned).collect())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Any),
            Err(source) => Err(DevicesError::Cgroup(cgroup::error("read", &path)(source))),
        }
    }

    /// What is wrong, if something is; `program` is the one that the agent attached to the pod.
    pub(crate) fn fault(&self, program: Option<u32>) -> Option<String> {
        match self {
            Self::Any => Some("any device may be used".into()),
            Self::Listed(lines) => {
                let more = lines.iter().find(|line| !LIST.contains(&line.trim()))?;
                Some(format!("devices that may be used: {more}"))
            }
            Self::Asked(programs) => match program {
                Some(program) if programs.contains(&program) => None,
                _ => Some("the program that denies devices is not attached".into()),
            },
        }
    }
}

/// Has a container's group on version 1 allow [`LIST`] and nothing else. Where there is no such controller, [`Devices::fault`]
/// says so.
pub(crate) fn list(group: &str) -> Result<(), CgroupError> {
    let Some(directory) = cgroup::directory_of(group, "devices")? else {
        return Ok(());
    };
    let (deny, allow) = (directory.join("devices.deny"), directory.join("devices.allow"));
    fs::write(&deny, "a").map_err(cgroup::error("write", &deny))?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(&allow)
        .map_err(cgroup::error("open", &allow))?;
    // The kernel takes one of them with each call.
    for devices in LIST {
        let written = file.write_all(devices.as_bytes());
        written.map_err(cgroup::error("write", &allow))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_list_or_the_program_will_do() {
        let listed = |lines: &[&str]| Devices::Listed(lines.iter().map(|line| (*line).to_owned()).collect());
        let all = listed(&LIST);
        assert_eq!(all.fault(None), None);
        assert_eq!(listed(&[]).fault(None), None, "less is fine");
        for more in ["a *:* rwm", "c 10:200 rwm", "c *:* rwm", "b 8:0 r", "c 1:11 r"] {
            let lines = [LIST.as_slice(), &[more]].concat();
            assert!(
                listed(&lines)
                    .fault(None)
                    .is_some_and(|fault| fault.contains(more)),
                "{more}"
            );
        }
        assert!(Devices::Any.fault(None).is_some());
        assert!(Devices::Any.fault(Some(7)).is_some());
        assert_eq!(Devices::Asked(vec![3, 7]).fault(Some(7)), None);
        for (asked, program) in [
            (vec![], Some(7)),
            (vec![3], Some(7)),
            (vec![3], None),
            (vec![], None),
        ] {
            assert!(
                Devices::Asked(asked.clone()).fault(program).is_some(),
                "{asked:?} {program:?}"
            );
        }
    }
}
