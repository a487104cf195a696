//! Attempts to use up what is shared, and one to race with the start of another container. They are made by their names, in
//! containers that are made for them.

use std::fs;
use std::io::{self, Write};

use rustix::fs::inotify::CreateFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Attempt, Outcome, checked, done, fact};

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
    ("inotify-instances", || {
        let _held = inotify_instances()?;
        // The number is of the pod, not of each of its users.
        as_user(1000)?;
        let others = inotify_instances();
        as_user(0)?;
        if others.is_ok_and(|others| !others.is_empty()) {
            return Ok(Outcome::Saw("another user of the pod has more"));
        }
        hold()?;
        Err(io::Error::from_raw_os_error(libc::EMFILE))
    }),
    ("inotify-instance", || {
        rustix::fs::inotify::init(CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        Ok(Outcome::Done)
    }),
    ("queued-signals", || {
        let error = loop {
            if let Err(error) = queue_signal() {
                break error;
            }
        };
        hold()?;
        Err(error)
    }),
    ("queued-signal", || queue_signal().map(done)),
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

/// Keeps what it has until the test has looked.
fn hold() -> io::Result<()> {
    fs::write("/data/all", "")?;
    while fs::symlink_metadata("/data/stop").is_err() {
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    }
    Ok(())
}

/// One more that this process does not take.
fn queue_signal() -> io::Result<()> {
    let value = libc::sigval {
        sival_ptr: std::ptr::null_mut(),
    };
    // SAFETY: the set is initialized before it is read; a blocked signal that is sent to this process runs nothing.
    unsafe {
        let mut blocked = std::mem::zeroed();
        libc::sigemptyset(&raw mut blocked);
        libc::sigaddset(&raw mut blocked, libc::SIGRTMAX());
        libc::sigprocmask(libc::SIG_BLOCK, &raw const blocked, std::ptr::null_mut());
        checked(i64::from(libc::sigqueue(libc::getpid(), libc::SIGRTMAX(), value))).map(drop)
    }
}

/// All that there are.
fn inotify_instances() -> io::Result<Vec<std::os::fd::OwnedFd>> {
    let descriptors = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: descriptors.maximum,
        ..descriptors
    };
    setrlimit(Resource::Nofile, most)?;
    let mut all = Vec::new();
    loop {
        match rustix::fs::inotify::init(CreateFlags::CLOEXEC) {
            Ok(instance) => all.push(instance),
            // Want of descriptors has the same number.
            Err(rustix::io::Errno::MFILE) => return fs::File::open("/dev/null").map(|_file| all),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn as_user(user: u32) -> io::Result<()> {
    // SAFETY: takes a number only.
    checked(i64::from(unsafe { libc::seteuid(user) })).map(drop)
}

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
