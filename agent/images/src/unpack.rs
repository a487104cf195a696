//! Unpacks one layer into a directory, in the form that overlayfs wants for a lower layer.
//!
//! The archive is hostile. Nothing outside the directory is touched: names are split into components,
//! parents are opened by the kernel with `RESOLVE_IN_ROOT` (links inside the layer resolve inside the
//! layer, whatever they say), and the last component is never followed. Devices are left out, because
//! pods get their own `/dev`. Set-user-ID bits are dropped: under `no_new_privs` they do nothing in a
//! pod, and outside of one they could only do harm.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::File,
    io::{Read, Write},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags},
    io::Errno,
};

use crate::archive::{self, Kind, Member, MemberPath};

/// What the names of all directories of a layer may take together: they are held until it is unpacked.
const MAX_NAMES_BYTES: usize = 64 << 20;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Mark a directory that hides the one of the same name below it: for overlays that root mounts, and for others.
pub(crate) const OPAQUE_ATTRIBUTES: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];
/// Mode of a directory that nothing else is known of, as every reader gives it.
const IMPLIED_MODE: u32 = 0o755;
/// Names that aufs kept for itself; OCI readers skip them.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// How much one layer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Bytes of the uncompressed stream.
    pub bytes: u64,
    /// Number of members, directories that are not listed among them.
    pub entries: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self {
            bytes: 16 << 30,
            entries: 1_000_000,
        }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Members, whiteouts among them.
    pub entries: u64,
    /// Device nodes that were left out.
    pub devices_skipped: u64,
    /// Directories that no member is, and that others are in: root's, with mode 0755, until a lower layer says otherwise.
    pub implied: BTreeSet<PathBuf>,
}

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream broke off, is not compressed as it says, or is no tar archive.
    #[error("the layer cannot be read")]
    Read {
        /// What the decoder says.
        #[source]
        source: std::io::Error,
    },
    /// The archive breaks a rule, or is ambiguous.
    #[error("the layer is not acceptable: {problem}")]
    Archive {
        /// Which rule.
        problem: String,
    },
    /// A path or link target is not acceptable.
    #[error("path {path:?} in the layer is not acceptable: {problem}")]
    Path {
        /// The path, cut at 200 bytes.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More bytes or members than allowed.
    #[error("the layer has more than {limit} {what}")]
    TooMuch {
        /// `bytes` or `members`.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A file operation failed.
    #[error("cannot {operation} {} from the layer", path.display())]
    System {
        /// What was attempted, such as `create`.
        operation: &'static str,
        /// Path inside the layer.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
}

/// Unpacks an uncompressed tar stream into the directory `root`, which should be empty. Reads the stream
/// to its very end, so that a hash over it covers everything.
pub fn unpack(
    mut tar_stream: impl Read,
    root: BorrowedFd<'_>,
    limits: &UnpackLimits,
) -> Result<Unpacked, UnpackError> {
    let mut bounded = (&mut tar_stream).take(limits.bytes.saturating_add(1));
    let mut target = Target {
        root,
        limits,
        unpacked: Unpacked::default(),
        directory_times: BTreeMap::new(),
        made: 0,
        names_bytes: 0,
    };
    let outcome =
        archive::for_each(&mut bounded, |member, content| target.put(&member, content)).and_then(|()| {
            // Behind the end mark there is padding, which counts like everything else.
            std::io::copy(&mut bounded, &mut std::io::sink()).map_err(|source| UnpackError::Read { source })
        });
    // Reaching the limit looks like the end of the stream to the reader, so this comes first.
    if bounded.limit() == 0 {
        return Err(UnpackError::TooMuch {
            what: "bytes",
            limit: limits.bytes,
        });
    }
    outcome?;
    target.finish()
}

struct Target<'a> {
    root: BorrowedFd<'a>,
    limits: &'a UnpackLimits,
    unpacked: Unpacked,
    /// Times of directories, set last because each new child changes them.
    directory_times: BTreeMap<MemberPath, i64>,
    /// Directories that were made without being listed.
    made: u64,
    /// What the names of directories take.
    names_bytes: usize,
}

impl Target<'_> {
    fn put(&mut self, member: &Member, content: &mut dyn Read) -> Result<(), UnpackError> {
        self.unpacked.entries += 1;
        self.demand_few_members()?;
        let Some((dir, name)) = member.path.split() else {
            return self.put_root(member);
        };
        let at = At {
            path: member.path.as_path(),
            name,
            dir: self.open_dir(dir)?,
        };
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT_PREFIX) {
            return put_whiteout(&at, dir, hidden);
        }
        match &member.kind {
            Kind::Directory => {
                put_directory(&at, member)?;
                self.unpacked.implied.remove(at.path);
                self.hold_name(at.path)?;
                self.directory_times.insert(member.path.clone(), member.modified);
                Ok(())
            }
            Kind::File => self.put_file(&at, member, content),
            Kind::Symlink { target } => {
                at.make_room()?;
                rustix::fs::symlinkat(target, &at.dir, at.name).map_err(at.failed("create the link"))?;
                at.set_owner(member)?;
                at.set_modified(member.modified)
            }
            Kind::HardLink { target } => self.put_hard_link(&at, target),
            Kind::Fifo => {
                at.make_room()?;
                rustix::fs::mknodat(&at.dir, at.name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                    .map_err(at.failed("create the pipe"))?;
                at.set_owner(member)?;
                at.set_mode(member)
            }
            Kind::Device => {
                self.unpacked.devices_skipped += 1;
                Ok(())
            }
        }
    }

    /// The root of the layer lists itself as `./`: its owner and mode count, nothing else can.
    fn put_root(&mut self, member: &Member) -> Result<(), UnpackError> {
        if member.kind != Kind::Directory {
            return Err(UnpackError::Path {
                path: String::new(),
                problem: "the layer's root must be a directory",
            });
        }
        let failed = |errno: Errno| system("set the owner of", Path::new("/"), errno);
        rustix::fs::fchown(self.root, uid(member), gid(member)).map_err(failed)?;
        rustix::fs::fchmod(self.root, directory_mode(member)).map_err(failed)
    }

    fn put_file(&mut self, at: &At<'_>, member: &Member, content: &mut dyn Read) -> Result<(), UnpackError> {
        at.make_room()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = rustix::fs::openat(&at.dir, at.name, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(at.failed("create"))?;
        let mut buffer = [0; 64 << 10];
        loop {
            let read = content
                .read(&mut buffer)
                .map_err(|source| UnpackError::Read { source })?;
            if read == 0 {
                break;
            }
            self.unpacked.bytes += read as u64;
            file.write_all(&buffer[..read])
                .map_err(|source| UnpackError::System {
                    operation: "write",
                    path: at.path.to_owned(),
                    source,
                })?;
        }
        rustix::fs::fchown(&file, uid(member), gid(member)).map_err(at.failed("set the owner of"))?;
        rustix::fs::fchmod(&file, file_mode(member)).map_err(at.failed("set the mode of"))?;
        rustix::fs::futimens(&file, &times(member.modified)).map_err(at.failed("set the time of"))
    }

    /// Only to something that this layer has already: a target in a lower layer would be another file.
    fn put_hard_link(&mut self, at: &At<'_>, target: &MemberPath) -> Result<(), UnpackError> {
        let refused = |problem| UnpackError::Path {
            path: target.as_path().display().to_string(),
            problem,
        };
        let Some((target_dir, target_name)) = target.split() else {
            return Err(refused("a hard link cannot lead to the root"));
        };
        if target.as_path() == at.path {
            return Err(refused("a hard link cannot lead to itself"));
        }
        let target_dir = self
            .resolve_dir(target_dir)
            .map_err(at.failed("find the target of"))?;
        let kind = file_type(&target_dir, target_name).map_err(at.failed("find the target of"))?;
        match kind {
            Some(FileType::RegularFile | FileType::Symlink | FileType::Fifo) => {}
            Some(_) => return Err(refused("a hard link can only lead to a file")),
            None => {
                return Err(refused(
                    "the target of a hard link is not in this layer before it",
                ));
            }
        }
        at.make_room()?;
        rustix::fs::linkat(&target_dir, target_name, &at.dir, at.name, AtFlags::empty())
            .map_err(at.failed("create the hard link"))
    }

    /// Opens the directory `path`, making what is missing.
    fn open_dir(&mut self, path: &Path) -> Result<OwnedFd, UnpackError> {
        match self.resolve_dir(path) {
            Err(Errno::NOENT) => {}
            other => return other.map_err(|errno| system("open the directory of", path, errno)),
        }
        let mut so_far = PathBuf::new();
        let mut dir = self
            .resolve_dir(&so_far)
            .map_err(|errno| system("open", path, errno))?;
        for component in path.components() {
            so_far.push(component);
            let failed = |errno| system("create the directory", &so_far, errno);
            let (name, mode) = (component.as_os_str(), Mode::from_raw_mode(IMPLIED_MODE));
            match rustix::fs::mkdirat(&dir, name, mode) {
                Ok(()) => {
                    rustix::fs::chmodat(&dir, name, mode, AtFlags::empty()).map_err(failed)?;
                    self.made += 1;
                    self.demand_few_members()?;
                    self.hold_name(&so_far)?;
                    self.unpacked.implied.insert(so_far.clone());
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
            dir = self
                .resolve_dir(&so_far)
                .map_err(|errno| system("open the directory", &so_far, errno))?;
        }
        Ok(dir)
    }

    fn demand_few_members(&self) -> Result<(), UnpackError> {
        match self.unpacked.entries.saturating_add(self.made) > self.limits.entries {
            true => Err(UnpackError::TooMuch {
                what: "members",
                limit: self.limits.entries,
            }),
            false => Ok(()),
        }
    }

    fn hold_name(&mut self, path: &Path) -> Result<(), UnpackError> {
        self.names_bytes = self.names_bytes.saturating_add(path.as_os_str().len());
        match self.names_bytes > MAX_NAMES_BYTES {
            true => Err(UnpackError::TooMuch {
                what: "bytes of names of directories",
                limit: MAX_NAMES_BYTES as u64,
            }),
            false => Ok(()),
        }
    }

    fn resolve_dir(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(self.root, path, flags, Mode::empty(), resolve)
    }

    fn finish(mut self) -> Result<Unpacked, UnpackError> {
        let mut implied = std::mem::take(&mut self.unpacked.implied);
        implied.retain(|path| self.is_as_made(path));
        for (path, modified) in self.directory_times.iter().rev() {
            // A later member may have replaced the directory; then it is no longer ours to set.
            let Some((dir, name)) = path.split() else { continue };
            let Ok(dir) = self.resolve_dir(dir) else { continue };
            if file_type(&dir, name).map_err(|errno| system("inspect", path.as_path(), errno))?
                == Some(FileType::Directory)
            {
                At {
                    path: path.as_path(),
                    name,
                    dir,
                }
                .set_modified(*modified)?;
            }
        }
        self.unpacked.implied = implied;
        Ok(self.unpacked)
    }

    /// Whether an implied directory is still what it was: a later member may have replaced it, or listed it by another way. One
    /// below a link of the layer is not looked for where that leads.
    fn is_as_made(&self, path: &Path) -> bool {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let found = rustix::fs::openat2(self.root, path, flags, Mode::empty(), resolve);
        let stat = found.and_then(rustix::fs::fstat);
        stat.is_ok_and(|stat| (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) == (IMPLIED_MODE, 0, 0))
    }
}

/// A name in an open directory.
struct At<'a> {
    /// Path inside the layer, for messages.
    path: &'a Path,
    name: &'a OsStr,
    dir: OwnedFd,
}

impl At<'_> {
    /// Removes what an earlier member of the same layer put here. A directory with content stays: no
    /// tool that makes layers replaces one by something else.
    fn make_room(&self) -> Result<(), UnpackError> {
        let removed = match rustix::fs::unlinkat(&self.dir, self.name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(&self.dir, self.name, AtFlags::REMOVEDIR),
            other => other,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.failed("replace")(errno)),
        }
    }

    fn set_owner(&self, member: &Member) -> Result<(), UnpackError> {
        rustix::fs::chownat(
            &self.dir,
            self.name,
            uid(member),
            gid(member),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(self.failed("set the owner of"))
    }

    /// Not for symbolic links, which have no mode and would be followed.
    fn set_mode(&self, member: &Member) -> Result<(), UnpackError> {
        rustix::fs::chmodat(&self.dir, self.name, file_mode(member), AtFlags::empty())
            .map_err(self.failed("set the mode of"))
    }

    fn set_modified(&self, modified: i64) -> Result<(), UnpackError> {
        rustix::fs::utimensat(&self.dir, self.name, &times(modified), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.failed("set the time of"))
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(Errno) -> UnpackError + use<> {
        let path = self.path.to_owned();
        move |errno| UnpackError::System {
            operation,
            path,
            source: errno.into(),
        }
    }
}

fn put_directory(at: &At<'_>, member: &Member) -> Result<(), UnpackError> {
    let existing = file_type(&at.dir, at.name).map_err(at.failed("inspect"))?;
    if existing != Some(FileType::Directory) {
        at.make_room()?;
        rustix::fs::mkdirat(&at.dir, at.name, Mode::from_raw_mode(0o700)).map_err(at.failed("create"))?;
    }
    let dir = open_child_dir(at)?;
    // A whiteout of the same name in the same layer hides what is below, but not this directory.
    if existing == Some(FileType::CharacterDevice) {
        set_opaque(&dir, at)?;
    }
    rustix::fs::fchown(&dir, uid(member), gid(member)).map_err(at.failed("set the owner of"))?;
    rustix::fs::fchmod(&dir, directory_mode(member)).map_err(at.failed("set the mode of"))
}

/// `hidden` is the name behind `.wh.`: the marks of the layer format become those of overlayfs.
fn put_whiteout(at: &At<'_>, dir: &Path, hidden: &[u8]) -> Result<(), UnpackError> {
    let refused = |problem| UnpackError::Path {
        path: at.path.display().to_string(),
        problem,
    };
    if at.name.as_bytes() == OPAQUE {
        if dir.as_os_str().is_empty() {
            return Err(refused("hiding everything below the layer is not supported"));
        }
        let readable =
            rustix::fs::openat(&at.dir, ".", dir_flags(), Mode::empty()).map_err(at.failed("open"))?;
        return set_opaque(&readable, at);
    }
    if at.name.as_bytes().starts_with(AUFS_PREFIX) {
        return Ok(());
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(refused("the mark for a removed file names no file"));
    }
    let hidden = At {
        path: at.path,
        name: OsStr::from_bytes(hidden),
        dir: duplicate(at)?,
    };
    match file_type(&hidden.dir, hidden.name).map_err(at.failed("inspect"))? {
        // This layer has something of that name: it stays, and what is below it is hidden.
        Some(FileType::Directory) => set_opaque(&open_child_dir(&hidden)?, at),
        Some(_) => Ok(()),
        None => rustix::fs::mknodat(
            &hidden.dir,
            hidden.name,
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )
        .map_err(at.failed("create the whiteout")),
    }
}

/// Marks a directory so that overlayfs hides what lower layers have in it. Both names are set, because a
/// union mounted inside a user namespace reads `user.` and any other `trusted.`.
fn set_opaque(dir: &OwnedFd, at: &At<'_>) -> Result<(), UnpackError> {
    for name in OPAQUE_ATTRIBUTES {
        rustix::fs::fsetxattr(dir, name, b"y", XattrFlags::empty()).map_err(at.failed("mark as opaque"))?;
    }
    Ok(())
}

fn open_child_dir(at: &At<'_>) -> Result<OwnedFd, UnpackError> {
    rustix::fs::openat(&at.dir, at.name, dir_flags(), Mode::empty()).map_err(at.failed("open"))
}

fn duplicate(at: &At<'_>) -> Result<OwnedFd, UnpackError> {
    rustix::io::fcntl_dupfd_cloexec(&at.dir, 0).map_err(at.failed("open"))
}

/// Type of a name without following it; `None` if it is not there.
fn file_type(dir: &OwnedFd, name: &OsStr) -> Result<Option<FileType>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn dir_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Without set-user-ID and set-group-ID.
fn file_mode(member: &Member) -> Mode {
    Mode::from_raw_mode(member.mode & 0o1777)
}

/// Set-group-ID stays on directories, where it means inheritance.
fn directory_mode(member: &Member) -> Mode {
    Mode::from_raw_mode(member.mode & 0o3777)
}

fn uid(member: &Member) -> Option<rustix::fs::Uid> {
    Some(rustix::fs::Uid::from_raw(member.uid))
}

fn gid(member: &Member) -> Option<rustix::fs::Gid> {
    Some(rustix::fs::Gid::from_raw(member.gid))
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn system(operation: &'static str, path: &Path, errno: Errno) -> UnpackError {
    UnpackError::System {
        operation,
        path: path.to_owned(),
        source: errno.into(),
    }
}

/// Opens a directory for [`unpack`].
pub(crate) fn open_root(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, dir_flags(), Mode::empty())?)
}
