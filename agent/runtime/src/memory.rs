//! Keeps the memory of programs small that mostly wait: the shim, of which there is one per pod, and the agent.

use std::{fs, io};

/// Has the kernel end all others first: while those live, what they use can be freed in order. What the caller starts
/// inherits it unless told otherwise, as containers are. The kubelet and containerd's shims say the same.
///
/// # Errors
///
/// Without `CAP_SYS_RESOURCE` the kernel lets no process be spared more than it is.
pub fn spare() -> io::Result<()> {
    score(-999)
}

/// Says how readily the kernel ends the caller, and what it starts from now on.
///
/// # Errors
///
/// As of [`spare`], if the caller is to be spared more than it is.
pub(crate) fn score(score: i32) -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", score.to_string())
}

/// Has all threads share one heap. By default each takes a new one when it finds the others busy, up to eight per
/// processor, and what a burst of work leaves in one is of no use to the rest. Call it before there are threads.
pub fn share_heap() {
    // SAFETY: takes no pointers; a setting of the allocator, which refuses what it does not know.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Returns free heap to the kernel and unmaps this program's code and constants; pages that are needed again come back
/// from the page cache, one fault for a few. Nothing depends on its success.
pub fn give_back() {
    // SAFETY: takes no pointers; trims free memory of the allocator, which locks what other threads may use.
    unsafe { libc::malloc_trim(0) };
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, length) in maps.lines().filter_map(file_range) {
        // SAFETY: the range is one whole mapping of this process, private, backed by a file, not writable and never
        // written to: its pages are the file's, so dropping them loses nothing; the next access, of whichever thread,
        // reads them again.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Start and length of a line of `/proc/self/maps` whose pages are those of a file. That is code, and a file's first
/// part: what of a program is written at its start and read only afterwards (relocations) lies behind its code.
fn file_range(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (access, offset) = (words.next()?, words.next()?);
    let is_first = usize::from_str_radix(offset, 16) == Ok(0);
    if !(access == "r-xp" || access == "r--p" && is_first) || !words.nth(2)?.starts_with('/') {
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
    fn only_what_a_file_has_is_dropped() {
        for file in [
            "7f10-7f30 r-xp 00001000 08:01 42 /usr/lib/libc.so.6",
            "7f10-7f30 r--p 00000000 08:01 42 /usr/lib/libc.so.6",
        ] {
            assert_eq!(file_range(file), Some((0x7f10, 0x20)), "{file}");
        }
        for other in [
            "7f10-7f30 r--p 00001000 08:01 42 /usr/lib/libc.so.6",
            "7f10-7f30 rwxp 00001000 08:01 42 /usr/lib/libc.so.6",
            "7f10-7f30 rw-p 00000000 08:01 42 /usr/lib/libc.so.6",
            "7f10-7f30 r--s 00000000 08:01 42 /usr/lib/libc.so.6",
            "7f10-7f30 rw-s 00000000 00:0e 42 anon_inode:bpf-map",
            "7f10-7f30 r-xp 00000000 00:00 0 [vdso]",
            "7f10-7f30 r--p 00000000 00:00 0",
        ] {
            assert_eq!(file_range(other), None, "{other}");
        }
    }

    #[test]
    fn nothing_that_is_dropped_was_written_to() {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut dropped, mut mapping) = (0, "");
        for line in smaps.lines() {
            if line
                .split_ascii_whitespace()
                .next()
                .is_some_and(|word| word.contains('-'))
            {
                mapping = line;
            } else if file_range(mapping).is_some() && line.starts_with("Anonymous:") {
                assert!(line.ends_with(" 0 kB"), "{mapping}: {line}");
                dropped += 1;
            }
        }
        assert!(dropped > 0, "{smaps}");
    }

    #[test]
    fn the_process_goes_on_afterwards_and_so_do_its_other_threads() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            let mut rounds = 0_u64;
            while stopped.try_recv().is_err() {
                rounds += u64::from(!format!("{rounds}").is_empty());
            }
            rounds
        });
        for _ in 0..20 {
            give_back();
        }
        assert!(stop.send(()).is_ok());
        assert!(other.join().is_ok_and(|rounds| rounds > 0));
        assert!(fs::read_to_string("/proc/self/maps").is_ok_and(|maps| maps.contains("r-xp")));
    }
}
