//! Attempts to use up what is shared, and one to race with the start of another container. They are made by their names, in
//! containers that are made for them.

use std::fs;
use std::io::{self, Write};

use crate::{Attempt, Outcome, checked, fact};

pub(crate) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("fork-bomb", || {
        for _ in 0..1000 {
            // SAFETY: the process has one thread; the child only waits.
            match checked(i64::from(unsafe { libc::fork() }))? {
                0 => loop {
                    // SAFETY: closes what is the parent's and waits for a signal; nothing else follows.
                    unsafe {
                        libc::close_range(0, libc::c_uint::MAX, 0);
                        libc::pause();
                    }
                },
                _ => continue,
            }
        }
        Ok(Outcome::Done)
    }),
    ("memory-bomb", || {
        let mut all = Vec::new();
        for _ in 0..256 {
            all.push(vec![1_u8; 1 << 20]);
        }
        std::hint::black_box(&all);
        Ok(Outcome::Done)
    }),
    ("fill-shared-memory", || fill("/dev/shm/fill", 80)),
    ("fill-dev", || fill("/dev/fill", 80)),
    ("fill-memory-volume", || fill("/memory/fill", 80)),
    ("inode-bomb", || empty_files("/dev/shm")),
    ("inode-bomb-dev", || empty_files("/dev")),
    ("inode-bomb-memory-volume", || empty_files("/memory")),
    ("subpath-race", || {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        fs::create_dir("/data/part")?;
        fs::write("/data/part/note", "of the volume")?;
        std::os::unix::fs::symlink(fact("OUTSIDE"), "/data/link")?;
        while fs::symlink_metadata("/data/stop").is_err() {
            renameat_with(CWD, "/data/part", CWD, "/data/link", RenameFlags::EXCHANGE)?;
        }
        Ok(Outcome::Saw("swapped"))
    }),
    ("log-flood", || {
        let line = [b'x'; 1024];
        let mut output = io::stdout().lock();
        for _ in 0..8 << 10 {
            output.write_all(&line[1..])?;
            output.write_all(b"\n")?;
        }
        Ok(Outcome::Done)
    }),
];

fn empty_files(directory: &str) -> io::Result<Outcome> {
    for number in 0..1_000_000 {
        fs::File::create(format!("{directory}/{number}"))?;
    }
    Ok(Outcome::Done)
}

fn fill(path: &str, megabytes: usize) -> io::Result<Outcome> {
    let mut file = fs::File::create(path)?;
    for _ in 0..megabytes {
        file.write_all(&vec![1; 1 << 20])?;
    }
    Ok(Outcome::Done)
}
