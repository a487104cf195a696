//! Where the kernel itself notes the number of a process that a creator forks, before that process runs.
//!
//! A creator may be killed between its fork and its word of it, for lack of memory say: it is in the container's control
//! group by then. The note is in memory that it shares with the shim, so the shim knows the process all the same.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::unistd::Pid;

/// What is mapped; the kernel rounds up to a page.
const SIZE: usize = size_of::<AtomicI32>();

/// One note, shared by the shim and one creator.
#[derive(Debug)]
pub(crate) struct Announcement(NonNull<AtomicI32>);

impl Announcement {
    /// An empty note that a fork from now on shares.
    pub(crate) fn new() -> Result<Self, Errno> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new anonymous mapping at an address that the kernel chooses touches no other memory.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        // The kernel maps nothing at zero unless asked to.
        NonNull::new(mapped.cast()).map(Self).ok_or(Errno::ENOMEM)
    }

    /// For `CLONE_PARENT_SETTID`.
    pub(crate) fn address(&self) -> *mut i32 {
        self.0.as_ptr().cast()
    }

    /// The process that was forked, if one was.
    pub(crate) fn forked(&self) -> Option<Pid> {
        // SAFETY: mapped, aligned (it begins a page) and zeroed by `new`, and unmapped by `drop` only; another process
        // writes it through the kernel, which is what an atomic load is for.
        let pid = unsafe { self.0.as_ref() }.load(Ordering::Acquire);
        (pid > 0).then(|| Pid::from_raw(pid))
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; `self` was the only way to it.
        let _cannot_fail = unsafe { libc::munmap(self.0.as_ptr().cast(), SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_empty_until_something_was_forked() {
        let note = Announcement::new().unwrap();
        assert_eq!(note.forked(), None);
        // SAFETY: mapped, and nobody else has it.
        unsafe { note.address().write(7) };
        assert_eq!(note.forked(), Some(Pid::from_raw(7)));
    }
}
