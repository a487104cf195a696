//! Which devices a control group of version 2 may use: the program that denies all but a few, where version 1 has a list.
//!
//! It is attached without a link and so lives as long as its group: no process has to hold it, and nothing of it is left.

use std::{
    fs::File,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    EbpfError, EbpfLoader,
    maps::MapError,
    programs::{CgroupDevice, ProgramError, ProgramFd},
};

use crate::sys;

/// The program; see [`OBJECT`](crate::OBJECT).
static OBJECT: &[u8] = aya::include_bytes_aligned!("../objects/devices.bpf.o");

/// Its name in the object.
const NAME: &str = "devices";

/// Why devices are not denied, or why that cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The object does not load.
    #[error("cannot load the device program")]
    Object(#[source] Box<EbpfError>),
    /// The kernel refuses the program.
    #[error("the kernel takes no device program: CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL are needed")]
    Program(#[source] Box<ProgramError>),
    /// The group cannot be opened.
    #[error("cannot open the control group {}", path.display())]
    Group {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel does not attach the program.
    #[error("cannot attach the device program to {}: CONFIG_CGROUP_BPF is needed", path.display())]
    Attach {
        /// The group's path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel does not tell what is attached.
    #[error("cannot ask which device programs {} has: CONFIG_CGROUP_BPF is needed", path.display())]
    Query {
        /// The group's path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The program, loaded. Groups that it is attached to keep it after this is dropped.
#[derive(Debug)]
pub struct DeviceProgram {
    program: ProgramFd,
    number: u32,
}

impl DeviceProgram {
    /// Loads it.
    pub fn load() -> Result<Self, DeviceError> {
        let refused = |source: ProgramError| DeviceError::Program(Box::new(source));
        let mut object = EbpfLoader::new()
            .load(OBJECT)
            .map_err(|source| DeviceError::Object(Box::new(source)))?;
        let program = object.program_mut(NAME).ok_or_else(|| {
            let name = NAME.to_owned();
            refused(ProgramError::MapError(MapError::InvalidName { name }))
        })?;
        let program: &mut CgroupDevice = program.try_into().map_err(refused)?;
        program.load().map_err(refused)?;
        let number = program.info().map_err(refused)?.id();
        let program = program.fd().map_err(refused)?.try_clone();
        let program = program.map_err(|source| refused(ProgramError::IOError(source)))?;
        Ok(Self { program, number })
    }

    /// The kernel's number of it, which is no other program's while one group has it.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Denies the group at `path`, and those below it, what the program does not allow. Programs of others that are
    /// attached there stay: what one of them denies is denied.
    pub fn attach(&self, path: &Path) -> Result<(), DeviceError> {
        let group = open(path)?;
        sys::attach_to_devices(self.program.as_fd(), group.as_fd()).map_err(|source| DeviceError::Attach {
            path: path.to_owned(),
            source,
        })
    }
}

/// The numbers of the programs that are asked when a process of the group at `path` uses a device: those of this group
/// and of those above it.
pub fn attached(path: &Path) -> Result<Vec<u32>, DeviceError> {
    let group = open(path)?;
    sys::programs_for_devices(group.as_fd()).map_err(|source| DeviceError::Query {
        path: path.to_owned(),
        source,
    })
}

fn open(path: &Path) -> Result<File, DeviceError> {
    File::open(path).map_err(|source| DeviceError::Group {
        path: path.to_owned(),
        source,
    })
}
