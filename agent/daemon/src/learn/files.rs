//! Files that a container opens, from fanotify on its mounts. They are its own: whatever goes through them is the
//! container's, also in sessions.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
    time::{Duration, Instant},
};

use api::learned::{LearnedFiles, Lost};
use jiff::Timestamp;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout},
    sys::fanotify::{EventFFlags, Fanotify, FanotifyEvent, InitFlags, MarkFlags, MaskFlags},
};
use rustix::fs::{AtFlags, FileType, FsWord, StatxAttributes, StatxFlags};

use super::root::Root;

/// What the kernel adds to the name of a file that has none any more.
const DELETED: &str = " (deleted)";
/// Kind of the images' file systems, from `linux/magic.h`.
const OVERLAYFS: FsWord = 0x794c_7630;
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
    /// Of the last run.
    root: Option<Root>,
    since: Timestamp,
}

impl Files {
    /// Watches nothing yet. What was made after that moment may have another name next time.
    pub(super) fn new(since: Timestamp) -> Result<Self, Errno> {
        let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
        let open = EventFFlags::O_RDONLY
            | EventFFlags::O_CLOEXEC
            | EventFFlags::O_LARGEFILE
            | EventFFlags::O_NONBLOCK;
        Ok(Self {
            group: Fanotify::init(flags, open)?,
            seen: LearnedFiles::default(),
            root: None,
            since,
        })
    }

    /// Watches the mounts of a run.
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
        self.root = root;
    }

    /// Takes what the processes of the run that is followed are, and have mapped and opened: what is open all the time is
    /// opened and closed at no time.
    pub(super) fn take_running(&mut self, pid: i32, lost: &mut Lost) {
        for process in processes_of(pid) {
            self.take_process(process, lost);
        }
        if let Some(root) = self.root.take() {
            self.take_script(pid, &root, lost);
            self.root = Some(root);
        }
    }

    /// The run is over: what it had mounted is not held any longer.
    pub(super) fn leave(&mut self) {
        self.root = None;
    }

    /// Takes a socket that was bound by a name: that made a file, and opened none.
    pub(super) fn bound(&mut self, name: &str, lost: &mut Lost) {
        self.wrote(name, lost);
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

    /// Takes in what has happened, for at most so long, and not if there is only something for `other`.
    pub(super) fn read(
        &mut self,
        patience: Duration,
        other: Option<BorrowedFd<'_>>,
        lost: &mut Lost,
    ) -> Result<(), Errno> {
        let until = Instant::now() + patience;
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        {
            let fds = [Some(self.group.as_fd()), other].into_iter().flatten();
            let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
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
        let name = name.strip_suffix(DELETED).unwrap_or(name);
        if mask.contains(MaskFlags::FAN_OPEN_EXEC) {
            keep(&mut self.seen.execute, name, lost);
        }
        if mask.contains(MaskFlags::FAN_CLOSE_WRITE) {
            self.wrote(name, lost);
        }
        if mask.contains(MaskFlags::FAN_OPEN) {
            keep(&mut self.seen.read, name, lost);
        }
    }

    /// A file that was written; or the directory that holds it and was made first, since that may have another name next time.
    fn wrote(&mut self, name: &str, lost: &mut Lost) {
        if self.seen.write.contains(name) || is_pseudo(name) {
            return;
        }
        let mut made = name;
        while let Some((directory, _)) = made.rsplit_once('/')
            && !directory.is_empty()
            && self.is_new(directory)
        {
            made = directory;
        }
        keep(&mut self.seen.write, made, lost);
    }

    /// Whether a directory of a volume was made during the watch. One that is gone is no lasting place, either. Of the image's
    /// directories nothing tells: each is made anew in the container's layer when something in it is first written.
    fn is_new(&self, directory: &str) -> bool {
        let Some(root) = &self.root else { return false };
        let found = match root.find(directory) {
            Ok(found) => found,
            Err(error) => return error.kind() == io::ErrorKind::NotFound,
        };
        let is_of_image = rustix::fs::fstatfs(&found).is_ok_and(|found| found.f_type == OVERLAYFS);
        let told = rustix::fs::statx(&found, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME);
        let Ok(told) = told else { return false };
        let is_told = StatxFlags::from_bits_retain(told.stx_mask).contains(StatxFlags::BTIME);
        let is_volume = told.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        !is_of_image && !is_volume && is_told && told.stx_btime.tv_sec >= self.since.as_second()
    }

    /// What a process runs, has mapped, and has open.
    fn take_process(&mut self, pid: i32, lost: &mut Lost) {
        let program = link(&format!("/proc/{pid}/exe"));
        if let Some(program) = program.filter(|name| is_file_name(name)) {
            keep(&mut self.seen.execute, &program, lost);
        }
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        for mapping in maps.lines().filter_map(mapped) {
            // The kernel executes the dynamic loader itself; other libraries are only read.
            if mapping.is_code && is_loader(mapping.name) {
                keep(&mut self.seen.execute, mapping.name, lost);
            }
            if mapping.is_written {
                self.wrote(mapping.name, lost);
            }
            keep(&mut self.seen.read, mapping.name, lost);
        }
        let open = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        for entry in open {
            let Some(name) = link(&entry.path().to_string_lossy()).filter(|name| name.starts_with('/'))
            else {
                continue;
            };
            let number = entry.file_name();
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", number.to_string_lossy()));
            if info.is_ok_and(|info| is_for_writing(&info)) {
                self.wrote(name.strip_suffix(DELETED).unwrap_or(&name), lost);
            }
            if is_file_name(&name) {
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
pub(super) fn processes_of(pid: i32) -> Vec<i32> {
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
    name.starts_with('/') && name.len() > 1 && !name.ends_with(DELETED)
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

/// A file that a process has mapped.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    name: &'a str,
    is_code: bool,
    /// What is written to the memory is written to the file.
    is_written: bool,
}

/// The file of a line of `maps`.
fn mapped(line: &str) -> Option<Mapping<'_>> {
    let mut fields = line.split_ascii_whitespace();
    let rights = fields.nth(1)?;
    let name = line.find('/').map(|at| &line[at..])?;
    is_file_name(name).then_some(Mapping {
        name,
        is_code: rights.contains('x'),
        is_written: rights.contains('w') && rights.ends_with('s'),
    })
}

/// Whether a descriptor was opened for writing, of what `fdinfo` says of it: its flags are octal.
fn is_for_writing(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    // The two lowest bits: O_RDONLY, O_WRONLY or O_RDWR.
    flags.is_some_and(|flags| matches!(flags & 0o3, 1 | 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_proc_are_read() {
        let line = "36 35 98:0 /a /volume\\040one rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line).as_deref(), Some("/volume one"));
        let maps = "7f01-7f02 r-xp 00000000 fe:00 12 /lib64/ld-linux-x86-64.so.2";
        let loader = Mapping {
            name: "/lib64/ld-linux-x86-64.so.2",
            is_code: true,
            is_written: false,
        };
        assert_eq!(mapped(maps), Some(loader));
        assert_eq!(mapped("7f01-7f02 rw-p 00000000 00:00 0 [heap]"), None);
        let written = |rights: &str| {
            let line = format!("7f01-7f02 {rights} 00000000 fe:00 12 /data/file");
            mapped(&line).is_some_and(|mapping| mapping.is_written)
        };
        assert!(written("rw-s") && !written("rw-p") && !written("r--s"));
        let info = |flags: &str| is_for_writing(&format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t29\n"));
        assert!(info("0102001") && info("0100002") && !info("0100000") && !info(""));
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
            let (mut files, mut lost) = (Files::new(Timestamp::UNIX_EPOCH).unwrap(), Lost::default());
            let root = Root::of(nix::unistd::gettid().as_raw()).unwrap();
            files.mark(&root, inside.to_str().unwrap()).unwrap();
            files.root = Some(root);
            let [own, made, gone] = ["own", "made/too/file", "gone/file"].map(|name| inside.join(name));
            for file in [&own, &made, &gone] {
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, "x").unwrap();
            }
            fs::remove_dir_all(gone.parent().unwrap()).unwrap();
            fs::write(base.path().join("other"), "x").unwrap();
            files.read(Duration::from_secs(1), None, &mut lost).unwrap();
            let made = made.parent().and_then(Path::to_str).unwrap();
            assert!(files.is_new(made));
            files.since = Timestamp::MAX;
            assert!(!files.is_new(made), "it was there before");
            let expected = ["own", "made", "gone"].map(|name| inside.join(name));
            let expected = expected.map(|name| name.to_str().unwrap().to_owned());
            (files.learned().write, BTreeSet::from(expected))
        });
        let (learned, expected) = watched.join().unwrap();
        assert_eq!(learned, expected);
    }

    /// Nothing tells of what was opened before, and is not closed while somebody looks.
    #[test]
    fn what_stays_open_for_writing_is_taken() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("read"), "x").unwrap();
        let open = ["log", "removed"].map(|name| fs::File::create(path(name)).unwrap());
        let reader = fs::File::open(path("read")).unwrap();
        fs::remove_file(path("removed")).unwrap();
        let (mut files, mut lost) = (Files::new(Timestamp::now()).unwrap(), Lost::default());
        files.take_process(std::process::id().cast_signed(), &mut lost);
        let learned = files.learned();
        drop((open, reader));
        assert!(learned.write.contains(&path("log")) && learned.write.contains(&path("removed")));
        assert!(learned.read.contains(&path("read")) && !learned.write.contains(&path("read")));
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
