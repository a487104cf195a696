//! File systems in memory that pods write to, bounded by the kernel in bytes and in files.

use std::{io, path::Path};

use rustix::mount::MountFlags;

/// A file for so many bytes. Without a bound, empty files would take memory that no size counts: the kernel's default is
/// one for two pages of the whole machine.
const BYTES_PER_FILE: u64 = 2048;
/// However small it is.
const LEAST_FILES: u64 = 1024;

/// Whether what is in one can be written to swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// When memory is short, if the machine has swap.
    Possible,
    /// Never.
    Never,
}

/// Mounts one at `path`, whose root has `mode`. Nothing in it can be executed.
///
/// # Errors
///
/// What the kernel says.
pub fn mount(path: &Path, bytes: u64, mode: u32) -> io::Result<()> {
    mount_with(path, options(bytes, mode))
}

/// The same, but never in swap where the kernel can promise that (Linux 6.4). Returns whether it does.
///
/// # Errors
///
/// What the kernel says.
pub fn mount_off_swap(path: &Path, bytes: u64, mode: u32) -> io::Result<Swap> {
    let options = options(bytes, mode);
    match mount_with(path, format!("{options},noswap")) {
        // An option that it does not know; if it is something else, it says so again.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            mount_with(path, options).map(|()| Swap::Possible)
        }
        mounted => mounted.map(|()| Swap::Never),
    }
}

fn mount_with(path: &Path, options: String) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = std::ffi::CString::new(options)?;
    Ok(rustix::mount::mount(
        "tmpfs",
        path,
        "tmpfs",
        flags,
        Some(options.as_c_str()),
    )?)
}

fn options(bytes: u64, mode: u32) -> String {
    format!("size={bytes},nr_inodes={},mode={mode:04o}", files_of(bytes))
}

/// How many files one of that size can have.
pub(crate) fn files_of(bytes: u64) -> u64 {
    (bytes / BYTES_PER_FILE).max(LEAST_FILES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_bounded_whatever_the_size() {
        assert_eq!(
            options(64 << 20, 0o1777),
            "size=67108864,nr_inodes=32768,mode=1777"
        );
        assert_eq!(options(1, 0o755), "size=1,nr_inodes=1024,mode=0755");
    }
}
