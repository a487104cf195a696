//! Where a container's process waits, confined and with nothing of the image executed, while it is looked at.
//!
//! Its profile may refuse every call but the one that executes the program, so it waits without any: both sides share
//! two words of memory, which an execution of a program takes from it.

use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

/// How often the process looks before it gives up: minutes, where tens of microseconds are the rule.
const PATIENCE: u64 = 1 << 34;

/// Both words, in memory that stays shared with processes that are forked later. Never unmapped: whoever makes one is a
/// short-lived process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gate(&'static [AtomicU32; 2]);

impl Gate {
    pub(crate) fn new() -> Result<Self, Errno> {
        let length = size_of::<[AtomicU32; 2]>();
        // SAFETY: asks for new memory at an address of the kernel's choice.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        // SAFETY: the memory is as long as the words, aligned to a page, zero, which is a value of theirs, and stays
        // mapped as long as this process and those forked from it have this program.
        Ok(Self(unsafe { &*memory.cast() }))
    }

    /// The process has arrived, and waits to be let go. False if nobody came.
    pub(crate) fn wait(self) -> bool {
        let [reached, opened] = self.0;
        reached.store(1, Ordering::Release);
        for _ in 0..PATIENCE {
            if opened.load(Ordering::Acquire) == 1 {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    pub(crate) fn is_reached(self) -> bool {
        self.0[0].load(Ordering::Acquire) == 1
    }

    pub(crate) fn open(self) {
        self.0[1].store(1, Ordering::Release);
    }
}
