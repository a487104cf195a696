//! Which system calls and capabilities the processes of a pid namespace use, noted in the kernel.
//!
//! Programs, maps and links belong to a [`Recorder`] and go with it. While one lives each system call of the node takes
//! some hundred nanoseconds longer, so callers bound their number and their time.

use std::{collections::BTreeSet, fs, io, os::unix::fs::MetadataExt as _};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, MapError},
    programs::{ProgramError, RawTracePoint},
};
use ebpf_abi::{LEARN_CALLS, LEARN_CAPABILITIES, LearnNamespace};

/// The programs; see [`OBJECT`](crate::OBJECT).
static OBJECT: &[u8] = aya::include_bytes_aligned!("../objects/learn.bpf.o");

/// Program and tracepoint for system calls; every kernel has it.
const CALLS: (&str, &str) = ("learn_call", "sys_enter");
/// For capabilities; Linux 6.14 and newer.
const CAPABILITIES: (&str, &str) = ("learn_capability", "cap_capable");

/// Why nothing is noted.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// The object does not load.
    #[error("cannot load the learning programs")]
    Object(#[source] Box<EbpfError>),
    /// The kernel refuses a program, or has no such tracepoint.
    #[error(
        "cannot attach to the tracepoint {tracepoint}: CONFIG_TRACEPOINTS and CONFIG_BPF_EVENTS are needed"
    )]
    Program {
        /// Its name.
        tracepoint: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A table cannot be read or written.
    #[error("cannot use the table {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// Why.
        #[source]
        source: MapError,
    },
    /// The namespace of a process cannot be found.
    #[error("cannot look at the pid namespace of process {pid}")]
    Namespace {
        /// The process.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What was noted so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Noted {
    /// Numbers of system calls.
    pub calls: BTreeSet<u32>,
    /// Numbers of capabilities that were used; nothing if the kernel does not tell.
    pub capabilities: Option<BTreeSet<u32>>,
    /// Whether there were calls or capabilities with greater numbers than there are places.
    pub beyond: bool,
}

/// Notes until it is dropped.
pub struct Recorder {
    programs: Ebpf,
    tells_capabilities: bool,
}

impl Recorder {
    /// Loads and attaches the programs. They note nothing before [`Recorder::follow`].
    pub fn start() -> Result<Self, LearnError> {
        let mut programs = EbpfLoader::new()
            .load(OBJECT)
            .map_err(|source| LearnError::Object(Box::new(source)))?;
        attach(&mut programs, CALLS)?;
        // An older kernel has no such tracepoint, and says so by an error that others have too; what is not told is not
        // claimed.
        let tells_capabilities = attach(&mut programs, CAPABILITIES).is_ok();
        Ok(Self {
            programs,
            tells_capabilities,
        })
    }

    /// Notes for the pid namespace of this process from now on, and for no other.
    pub fn follow(&mut self, pid: i32) -> Result<(), LearnError> {
        let file = fs::metadata(format!("/proc/{pid}/ns/pid"))
            .map_err(|source| LearnError::Namespace { pid, source })?;
        // The helper wants the kernel's own encoding, not the one of `stat`.
        let device = (u64::from(libc::major(file.dev())) << 20) | u64::from(libc::minor(file.dev()));
        let watched = LearnNamespace {
            device,
            inode: file.ino(),
        };
        let map = "NAMESPACE";
        let failed = |source| LearnError::Map { map, source };
        let mut namespace: Array<_, LearnNamespace> = self
            .programs
            .map_mut(map)
            .ok_or(MapError::InvalidName { name: map.to_owned() })
            .and_then(Array::try_from)
            .map_err(failed)?;
        namespace.set(0, watched, 0).map_err(failed)
    }

    /// What was noted so far, for all namespaces that were followed.
    pub fn noted(&self) -> Result<Noted, LearnError> {
        Ok(Noted {
            calls: self.set("CALLS", LEARN_CALLS)?,
            capabilities: match self.tells_capabilities {
                true => Some(self.set("CAPABILITIES", LEARN_CAPABILITIES)?),
                false => None,
            },
            beyond: !self.set("BEYOND", 1)?.is_empty(),
        })
    }

    fn set(&self, map: &'static str, places: u32) -> Result<BTreeSet<u32>, LearnError> {
        let failed = |source| LearnError::Map { map, source };
        let table: Array<_, u64> = self
            .programs
            .map(map)
            .ok_or(MapError::InvalidName { name: map.to_owned() })
            .and_then(Array::try_from)
            .map_err(failed)?;
        let mut set = BTreeSet::new();
        for index in 0..places {
            if table.get(&index, 0).map_err(failed)? != 0 {
                set.insert(index);
            }
        }
        Ok(set)
    }
}

fn attach(programs: &mut Ebpf, (name, tracepoint): (&str, &'static str)) -> Result<(), LearnError> {
    let failed = |source: ProgramError| LearnError::Program {
        tracepoint,
        source: Box::new(source),
    };
    let program = programs.program_mut(name).ok_or(LearnError::Map {
        map: tracepoint,
        source: MapError::InvalidName {
            name: name.to_owned(),
        },
    })?;
    let program: &mut RawTracePoint = program.try_into().map_err(failed)?;
    program.load().map_err(failed)?;
    program.attach(tracepoint).map_err(failed)?;
    Ok(())
}
