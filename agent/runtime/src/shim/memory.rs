//! Gives back memory that only the start of a container needed. There is one shim per pod, and it mostly waits.

use std::fs;

/// Returns free heap to the kernel and unmaps this program's code pages; those that are needed again come back
/// from the page cache, one fault each. Nothing depends on its success.
pub(crate) fn give_back() {
    // SAFETY: takes no pointers; trims free memory of the allocator of this single-threaded process.
    unsafe { libc::malloc_trim(0) };
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, length) in maps.lines().filter_map(code_range) {
        // SAFETY: the range is one whole mapping of this process, private, backed by a file, executable and not
        // writable: its pages are the file's, so dropping them loses nothing; the next access reads them again.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Start and length of a line of `/proc/self/maps` that is executable, not writable and backed by a file.
fn code_range(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    if words.next()? != "r-xp" || !words.nth(3)?.starts_with('/') {
        return None;
    }
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_dropped() {
        let code = "7f10-7f30 r-xp 00001000 08:01 42 /usr/lib/libc.so.6";
        assert_eq!(code_range(code), Some((0x7f10, 0x20)));
        for other in [
            "7f10-7f30 r--p 00001000 08:01 42 /usr/lib/libc.so.6",
            "7f10-7f30 rwxp 00001000 08:01 42 /usr/lib/libc.so.6",
            "7f10-7f30 r-xp 00000000 00:00 0 [vdso]",
            "7f10-7f30 r-xp 00000000 00:00 0",
        ] {
            assert_eq!(code_range(other), None, "{other}");
        }
    }

    #[test]
    fn the_process_goes_on_afterwards() {
        give_back();
        assert!(fs::read_to_string("/proc/self/maps").is_ok_and(|maps| maps.contains("r-xp")));
    }
}
