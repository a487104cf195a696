//! What the learning programs share with user space.

/// Numbers of system calls that have a place.
pub const LEARN_CALLS: u32 = 512;
/// Numbers of capabilities that have one.
pub const LEARN_CAPABILITIES: u32 = 64;

/// A pid namespace, by its file in `/proc/<pid>/ns`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LearnNamespace {
    /// Device number of the file, as the kernel has it: `major << 20 | minor`.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

const _: () = assert!(size_of::<LearnNamespace>() == 16);
