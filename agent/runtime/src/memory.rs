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
    // All before the first is dropped, or the code that finds them would come back for each.
    let smaps = fs::read_to_string("/proc/self/smaps");
    let ranges = smaps.map_or_else(|_unreadable| Vec::new(), |smaps| file_ranges(&smaps));
    // SAFETY: takes no pointers; trims free memory of the allocator, which locks what other threads may use.
    unsafe { libc::malloc_trim(0) };
    for (start, length) in ranges {
        // SAFETY: the range is one whole mapping of this process, private, backed by a file, not writable, and none of its
        // pages was ever written to: they are the file's, so dropping them loses nothing; the next access, of whichever
        // thread, reads them again.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Start and length of the mappings in `/proc/self/smaps` whose pages are all those of a file: code and constants. What
/// was written when the program was loaded (relocations) is read only afterwards and has a file too, but pages of its own,
/// in memory or in swap.
fn file_ranges(smaps: &str) -> Vec<(usize, usize)> {
    let (mut found, mut mapping, mut own) = (Vec::new(), None, None);
    for line in smaps.lines() {
        match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
            ["Anonymous:", pages, "kB"] => own = Some(pages != "0"),
            // The kernel tells it after the other.
            ["Swap:", "0", "kB"] if own == Some(false) => found.extend(mapping.take()),
            [range, access, _offset, _device, _inode, ref path @ ..] if range.contains('-') => {
                let is_read_only_file = matches!(access, "r-xp" | "r--p")
                    && path.first().is_some_and(|path| path.starts_with('/'));
                mapping = bounds(range).filter(|_| is_read_only_file);
                own = None;
            }
            _ => {}
        }
    }
    found
}

/// Start and length of `START-END` in hexadecimal digits.
fn bounds(range: &str) -> Option<(usize, usize)> {
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(mapping: &str, anonymous: u32, swap: u32) -> String {
        format!("{mapping}\nRss: 4 kB\nAnonymous: {anonymous} kB\nSwap: {swap} kB\nVmFlags: rd mr\n")
    }

    #[test]
    fn only_what_a_file_has_is_dropped() {
        for file in [
            "7f10-7f30 r-xp 00001000 08:01 42 /usr/lib/libc.so.6",
            "7f10-7f30 r--p 00000000 08:01 42 /usr/lib/libc.so.6",
            "7f10-7f30 r--p 00001000 08:01 42 /usr/lib/libc.so.6",
            "7f10-7f30 r--p 00001000 08:01 42 /usr/lib/with space",
        ] {
            assert_eq!(file_ranges(&told(file, 0, 0)), [(0x7f10, 0x20)], "{file}");
            // Written to, be it in memory or in swap.
            assert!(file_ranges(&told(file, 4, 0)).is_empty(), "{file}");
            assert!(file_ranges(&told(file, 0, 4)).is_empty(), "{file}");
            // What a kernel does not tell is not taken for nothing.
            for missing in ["Anonymous:", "Swap:"] {
                let kept = told(file, 0, 0).replace(missing, "Other:");
                assert!(file_ranges(&kept).is_empty(), "{file} without {missing}");
            }
        }
        for other in [
            "7f10-7f30 rwxp 00001000 08:01 42 /usr/lib/libc.so.6",
            "7f10-7f30 rw-p 00000000 08:01 42 /usr/lib/libc.so.6",
            "7f10-7f30 r--s 00000000 08:01 42 /usr/lib/libc.so.6",
            "7f10-7f30 rw-s 00000000 00:0e 42 anon_inode:bpf-map",
            "7f10-7f30 r-xp 00000000 00:00 0 [vdso]",
            "7f10-7f30 r--p 00000000 00:00 0",
        ] {
            assert!(file_ranges(&told(other, 0, 0)).is_empty(), "{other}");
        }
    }

    #[test]
    fn what_one_mapping_has_is_not_said_of_another() {
        let file = "7f10-7f30 r--p 00000000 08:01 42 /usr/lib/libc.so.6";
        let own = "7f30-7f40 r--p 00001000 08:01 42 /usr/lib/libc.so.6";
        let smaps = [told(file, 0, 0), told(own, 4, 0), told(own, 0, 4)].concat();
        assert_eq!(file_ranges(&smaps), [(0x7f10, 0x20)]);
        // A mapping of which nothing is told.
        assert!(file_ranges(&format!("{file}\n{}", told(own, 4, 0))).is_empty());
    }

    #[test]
    fn this_program_has_code_to_drop_and_relocations_to_keep() {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let read_only = smaps
            .lines()
            .filter(|line| line.contains(" r--p ") && line.contains(" /"));
        let ranges = file_ranges(&smaps);
        let code = smaps
            .lines()
            .find(|line| line.contains(" r-xp "))
            .and_then(|line| bounds(line.split(' ').next()?))
            .unwrap();
        assert!(ranges.contains(&code), "{ranges:x?}");
        let kept = read_only.filter(|line| {
            let range = line.split(' ').next().and_then(bounds).unwrap();
            !ranges.contains(&range)
        });
        assert!(kept.count() > 0, "{smaps}");
    }

    #[test]
    fn the_process_goes_on_afterwards_and_so_do_its_other_threads() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (ready, begins) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            let mut rounds = 0_u64;
            let _awaited = ready.send(());
            while rounds == 0 || stopped.try_recv().is_err() {
                rounds += u64::from(!format!("{rounds}").is_empty());
            }
            rounds
        });
        assert!(begins.recv().is_ok());
        for _ in 0..20 {
            give_back();
        }
        assert!(stop.send(()).is_ok());
        assert!(other.join().is_ok_and(|rounds| rounds > 0));
        assert!(fs::read_to_string("/proc/self/maps").is_ok_and(|maps| maps.contains("r-xp")));
    }
}
