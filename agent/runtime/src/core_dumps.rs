//! What crashes in a pod leaves no core dump.
//!
//! A dump is the memory of the pod, secrets included, on a disk of the node, and where `core_pattern` names a program, root
//! of the node reads, compresses and stores it: in no group of the pod, at nobody's expense, as often as the pod likes. So
//! the shim takes the limit for itself and for all that it starts. None of those can raise it: no pod has
//! `CAP_SYS_RESOURCE` over the node. To 0 they can lower it.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit in bytes. Not 0: that keeps nothing but files from being written, and the program that `core_pattern` names
/// is started all the same. For 1, and nothing else, the kernel does not start it (`coredump_pipe` in `fs/coredump.c`), and
/// a file would have to be larger.
const LIMIT_BYTES: u64 = 1;

/// Lets this process, and what it starts, leave no core dump.
///
/// # Errors
///
/// What the kernel says; the limit is as before then.
pub(crate) fn forbid() -> Result<(), Errno> {
    let limit = Some(LIMIT_BYTES);
    let forbidden = Rlimit {
        current: limit,
        maximum: limit,
    };
    match setrlimit(Resource::Core, forbidden) {
        // Not privileged to raise it from 0, which is what there is then.
        Err(Errno::PERM) if getrlimit(Resource::Core).maximum == Some(0) => Ok(()),
        set => set,
    }
}
