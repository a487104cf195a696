//! Files that a container opens, from fanotify on its mounts. They are its own: whatever goes through them is the
//! container's, also in sessions.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    time::{Duration, Instant},
};

use api::learned::{LearnedFiles, Lost};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout},
    sys::fanotify::{EventFFlags, Fanotify, FanotifyEvent, InitFlags, MarkFlags, MaskFlags},
};
use rustix::fs::FileType;

use super::root::Root;

/// Names that are kept, in each of the three lists.
const MAX_NAMES: usize = 4096;
/// Processes of a run whose maps are looked at when it is found running.
const MAX_PROCESSES: usize = 256;
/// What the runtime mounts and the preset judges: not files of the container.
const PSEUDO: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The watch of one container.
pub(super) struct Files {
    group: Fanotify,
    seen: LearnedFiles,
}

impl Files {
    pub(super) fn new() -> Result<Self, Errno> {
        let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
        let open = EventFFlags::O_RDONLY
            | EventFFlags::O_CLOEXEC
            | EventFFlags::O_LARGEFILE
            | EventFFlags::O_NONBLOCK;
        Ok(Self {
            group: Fanotify::init(flags, open)?,
            seen: LearnedFiles::default(),
        })
    }

    /// Watches the mounts of a run, and takes what its processes have mapped and opened before.
    pub(super) fn follow(&mut self, pid: i32, lost: &mut Lost) {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        let root = Root::of(pid).ok();
        for mount in mounts.lines().filter_map(mount_point) {
            if is_pseudo(&mount) {
                continue;
            }
            let marked = root.as_ref().is_some_and(|root| self.mark(root, &mount).is_ok());
            if !marked {
                lost.mounts.insert(mount);
            }
        }
        if mounts.is_empty() {
            lost.mounts.insert("/".to_owned());
        }
        for process in processes_of(pid) {
            self.take_process(process, lost);
        }
        if let Some(root) = root {
            self.take_script(pid, &root, lost);
        }
    }

    /// Watches the mount of that name in the container.
    fn mark(&self, root: &Root, mount: &str) -> io::Result<()> {
        let found = root.find(mount)?;
        // The kernel takes no descriptor of this kind, which reads nothing of what is mounted there, but a path to it.
        let path = format!("/proc/self/fd/{}", found.as_raw_fd());
        let mark = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_MOUNT;
        let mask = MaskFlags::FAN_OPEN
            | MaskFlags::FAN_OPEN_EXEC
            | MaskFlags::FAN_CLOSE_WRITE
            | MaskFlags::FAN_ONDIR;
        Ok(self.group.mark(mark, mask, None, Some(Path::new(&path)))?)
    }

    /// Takes in what has happened, for at most so long.
    pub(super) fn read(&mut self, patience: Duration, lost: &mut Lost) -> Result<(), Errno> {
        let until = Instant::now() + patience;
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        {
            let mut fds = [PollFd::new(self.group.as_fd(), PollFlags::POLLIN)];
            match nix::poll::poll(&mut fds, timeout) {
                Ok(0) | Err(Errno::EINTR) => return Ok(()),
                Ok(_) => {}
                Err(errno) => return Err(errno),
            }
        }
        // A container that opens files faster than they are read here must not keep the caller.
        while Instant::now() < until {
            match self.group.read_events() {
                Ok(events) if events.is_empty() => return Ok(()),
                Ok(events) => {
                    for event in events {
                        self.take(&event, lost);
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
                // The file of an event could not be opened; that event is gone.
                Err(
                    Errno::EMFILE
                    | Errno::ENFILE
                    | Errno::ENXIO
                    | Errno::EACCES
                    | Errno::EPERM
                    | Errno::ETXTBSY,
                ) => {
                    lost.file_events += 1;
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    pub(super) fn learned(self) -> LearnedFiles {
        self.seen
    }

    fn take(&mut self, event: &FanotifyEvent, lost: &mut Lost) {
        let mask = event.mask();
        if mask.contains(MaskFlags::FAN_Q_OVERFLOW) {
            lost.file_overflows += 1;
            return;
        }
        let name = event
            .fd()
            .and_then(|fd| fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok());
        let Some(name) = name.as_deref().and_then(Path::to_str) else {
            lost.file_events += 1;
            return;
        };
        let name = name.strip_suffix(" (deleted)").unwrap_or(name);
        if mask.contains(MaskFlags::FAN_OPEN_EXEC) {
            keep(&mut self.seen.execute, name, lost);
        }
        if mask.contains(MaskFlags::FAN_CLOSE_WRITE) {
            keep(&mut self.seen.write, name, lost);
        }
        if mask.contains(MaskFlags::FAN_OPEN) {
            keep(&mut self.seen.read, name, lost);
        }
    }

    /// What a process runs, has mapped, and has open.
    fn take_process(&mut self, pid: i32, lost: &mut Lost) {
        let program = link(&format!("/proc/{pid}/exe"));
        if let Some(program) = program.filter(|name| is_file_name(name)) {
            keep(&mut self.seen.execute, &program, lost);
        }
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        for (name, code) in maps.lines().filter_map(mapped) {
            // The kernel executes the dynamic loader itself; other libraries are only read.
            if code && is_loader(name) {
                keep(&mut self.seen.execute, name, lost);
            }
            keep(&mut self.seen.read, name, lost);
        }
        let open = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        for entry in open {
            let name = link(&entry.path().to_string_lossy());
            if let Some(name) = name.filter(|name| is_file_name(name)) {
                keep(&mut self.seen.read, &name, lost);
            }
        }
    }

    /// A script is executed by its interpreter, which is what `/proc` shows.
    fn take_script(&mut self, pid: i32, root: &Root, lost: &mut Lost) {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = words
            .split(|byte| *byte == 0)
            .filter_map(|word| std::str::from_utf8(word).ok());
        for word in words.filter(|word| is_file_name(word)) {
            let found = root.find(word).and_then(|found| Ok(rustix::fs::fstat(found)?));
            let is_program = found.is_ok_and(|found| {
                let kind = FileType::from_raw_mode(found.st_mode);
                kind == FileType::RegularFile && found.st_mode & 0o111 != 0
            });
            if is_program {
                keep(&mut self.seen.execute, word, lost);
            }
        }
    }
}

fn keep(names: &mut BTreeSet<String>, name: &str, lost: &mut Lost) {
    if is_pseudo(name) || names.contains(name) {
        return;
    }
    if names.len() >= MAX_NAMES {
        lost.file_events += 1;
    } else {
        names.insert(name.to_owned());
    }
}

/// Processes in the pid namespace of a container's first one.
fn processes_of(pid: i32) -> Vec<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(own) = namespace(pid) else {
        return Vec::new();
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|other| namespace(*other).as_ref() == Some(&own))
        .take(MAX_PROCESSES)
        .collect()
}

fn link(path: &str) -> Option<String> {
    fs::read_link(path).ok()?.into_os_string().into_string().ok()
}

/// Whether it is the name of a file of the container, and not that of a pipe or a socket.
fn is_file_name(name: &str) -> bool {
    name.starts_with('/') && name.len() > 1 && !name.ends_with(" (deleted)")
}

fn is_pseudo(name: &str) -> bool {
    PSEUDO.iter().any(|root| Path::new(name).starts_with(root))
}

fn is_loader(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or_default();
    base.starts_with("ld-") || base.starts_with("ld.so") || base.starts_with("ld64")
}

/// The fifth field of a line, with its escapes undone: blanks and the like are octal.
fn mount_point(line: &str) -> Option<String> {
    let field = line.split(' ').nth(4)?;
    let mut name = Vec::new();
    let mut bytes = field.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            name.push(byte);
            continue;
        }
        let digits: Vec<u8> = bytes.by_ref().take(3).collect();
        let text = std::str::from_utf8(&digits).ok()?;
        name.push(u8::from_str_radix(text, 8).ok()?);
    }
    String::from_utf8(name).ok()
}

/// The file of a line of `maps`, and whether it is mapped as code.
fn mapped(line: &str) -> Option<(&str, bool)> {
    let mut fields = line.split_ascii_whitespace();
    let rights = fields.nth(1)?;
    let name = line.find('/').map(|at| &line[at..])?;
    is_file_name(name).then_some((name, rights.contains('x')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_proc_are_read() {
        let line = "36 35 98:0 /a /volume\\040one rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line).as_deref(), Some("/volume one"));
        let maps = "7f01-7f02 r-xp 00000000 fe:00 12 /lib64/ld-linux-x86-64.so.2";
        assert_eq!(mapped(maps), Some(("/lib64/ld-linux-x86-64.so.2", true)));
        assert_eq!(mapped("7f01-7f02 rw-p 00000000 00:00 0 [heap]"), None);
        assert!(is_loader("/lib/ld-musl-x86_64.so.1") && !is_loader("/lib/libold-1.so"));
    }

    #[test]
    fn a_mount_is_watched_by_what_was_found_in_the_root() {
        // In a namespace of mounts that goes with its thread: no mount of the machine is watched.
        let watched = std::thread::spawn(|| {
            use nix::{
                mount::{MsFlags, mount},
                sched::{CloneFlags, unshare},
            };
            let base = tempfile::tempdir().unwrap();
            let inside = base.path().join("inside");
            fs::create_dir(&inside).unwrap();
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("t"), &inside, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            let (mut files, mut lost) = (Files::new().unwrap(), Lost::default());
            let root = Root::of(nix::unistd::gettid().as_raw()).unwrap();
            files.mark(&root, inside.to_str().unwrap()).unwrap();
            let own = inside.join("own");
            fs::write(&own, "x").unwrap();
            fs::write(base.path().join("other"), "x").unwrap();
            files.read(Duration::from_secs(1), &mut lost).unwrap();
            let name = own.to_str().unwrap().to_owned();
            (files.learned().write, BTreeSet::from([name]))
        });
        let (learned, expected) = watched.join().unwrap();
        assert_eq!(learned, expected);
    }

    #[test]
    fn names_are_bounded_and_what_does_not_fit_is_counted() {
        let (mut names, mut lost) = (BTreeSet::new(), Lost::default());
        for number in 0..MAX_NAMES + 3 {
            keep(&mut names, &format!("/data/{number}"), &mut lost);
        }
        keep(&mut names, "/data/0", &mut lost);
        keep(&mut names, "/proc/self/status", &mut lost);
        assert_eq!((names.len(), lost.file_events), (MAX_NAMES, 3));
    }
}
