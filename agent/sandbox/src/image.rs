//! The rule for container images: code is executable and not writable, the rest writable and not executable.
//!
//! Landlock rights only add up going down the tree, so `/` itself cannot be writable without making `/bin`
//! writable. The rule therefore names the children of `/`, `/usr` and `/usr/local` one by one:
//!
//! - the *code directories* ([`is_code_path`]: `bin`, `sbin`, `lib*`, `libexec` of the three): read and
//!   execute, no write;
//! - every other directory there (`/etc`, `/home`, `/app`, `/usr/share`, ...): read and write, no execute,
//!   but each file beneath that was executable in the image keeps its right to be executed, by inode;
//! - plain files directly there (`/entrypoint.sh`): read, and execute if the image says so.
//!
//! Under a read-only profile the other directories are only read as well.
//!
//! So an image's own programs run wherever they lie, and a program that was written after the start runs
//! nowhere. The gaps, stated: an executable outside the code directories can be overwritten in place by a
//! user who owns it, and then executed; interpreters and loaders read code as data; nothing new can be
//! created directly in `/`, `/usr` or `/usr/local`; installing packages at run time fails.
//!
//! The ruleset is built before the container's first process exists and is kept for exec sessions, so
//! nothing that happens in the container can change what a later session may execute.

use std::collections::BinaryHeap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use crate::features::{self, Plan};
use crate::landlock::{self as rules, LandlockError, Rules};
use crate::{FileLimits, Moment, PathAccess, PathRule, Profile};

/// Executable files outside the code directories that one image may have; more are not executable.
pub const MAX_EXECUTABLES: usize = 8192;

/// Directory entries that are looked at to find them.
const MAX_VISITED: usize = 250_000;

/// The directories whose children are judged one by one, relative to the root.
pub(crate) const SPLIT: [&str; 3] = ["", "usr", "usr/local"];

const CODE: [&str; 7] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "libexec"];

/// Whether a path of the image, relative to its root or absolute, lies in a code directory.
pub fn is_code_path(path: &Path) -> bool {
    let path = path.strip_prefix("/").unwrap_or(path);
    let below = ["usr/local", "usr"]
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix).ok())
        .unwrap_or(path);
    let mut components = below.components();
    components
        .next()
        .is_some_and(|first| CODE.iter().any(|code| first.as_os_str() == *code))
}

/// Where the executable files of one image layer lie that are outside the code directories.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecutableIndex {
    /// Relative to the layer's root, sorted; the first by name if there are more than [`MAX_EXECUTABLES`].
    pub paths: Vec<PathBuf>,
    /// Whether a bound was reached; files beyond it will not be executable.
    pub truncated: bool,
}

impl ExecutableIndex {
    /// Looks through an unpacked layer. Layers do not change, so the answer can be kept.
    pub fn of_layer(layer: &Path) -> Result<Self, ImageError> {
        let mut found = BinaryHeap::new();
        let (mut visited, mut truncated) = (0, false);
        let mut pending = vec![PathBuf::new()];
        'layer: while let Some(directory) = pending.pop() {
            let read_error = |source| ImageError::Read {
                path: layer.join(&directory),
                source,
            };
            for entry in fs::read_dir(layer.join(&directory)).map_err(read_error)? {
                let entry = entry.map_err(read_error)?;
                let kind = entry.file_type().map_err(read_error)?;
                let path = directory.join(entry.file_name());
                visited += 1;
                if visited > MAX_VISITED {
                    truncated = true;
                    break 'layer;
                }
                if is_code_path(&path) {
                    continue;
                }
                if kind.is_dir() {
                    pending.push(path);
                } else if kind.is_file() {
                    // `DirEntry::metadata` does not follow links.
                    let mode = entry.metadata().map_err(read_error)?.permissions().mode();
                    if mode & 0o111 != 0 {
                        found.push(path);
                    }
                    if found.len() > MAX_EXECUTABLES {
                        truncated = true;
                        found.pop();
                    }
                }
            }
        }
        Ok(Self {
            paths: found.into_sorted_vec(),
            truncated,
        })
    }
}

/// Why an image's ruleset could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A directory of the image cannot be read.
    #[error("cannot read {} of the image", path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The rules cannot be made.
    #[error("cannot build the Landlock ruleset of the image")]
    Landlock {
        /// Which part failed.
        #[source]
        source: LandlockError,
    },
}

/// The rulesets of one container, shared by its first process and all exec sessions.
#[derive(Debug)]
pub struct ImageRuleset {
    /// Nothing on a kernel without Landlock, if the profile takes that.
    image: Option<Rules>,
    /// What the profile's lists leave of it.
    less: Option<Rules>,
    limits: FileLimits,
    plan: Plan,
}

impl ImageRuleset {
    /// Builds the rulesets from the root the container will see, before any of its processes runs.
    ///
    /// `executables` are paths relative to `root`; those that are gone or are no executable files any more
    /// (a higher layer removed or replaced them) are passed over. Of `profile` counts what it says about
    /// files, TCP, scopes and kernels.
    pub fn build(
        root: BorrowedFd<'_>,
        executables: &[PathBuf],
        profile: &Profile,
    ) -> Result<Self, ImageError> {
        Self::build_on(rules::landlock_abi(), root, executables, profile)
    }

    /// The same as if the kernel's Landlock had this interface, which must not be newer than it is.
    pub fn build_on(
        interface: u32,
        root: BorrowedFd<'_>,
        executables: &[PathBuf],
        profile: &Profile,
    ) -> Result<Self, ImageError> {
        let landlock_error = |source| ImageError::Landlock { source };
        let plan = features::plan(profile, interface).map_err(landlock_error)?;
        let mut image = rules::create(profile, &plan).map_err(landlock_error)?;
        if let Some(ruleset) = image.take() {
            let ruleset = add_split_directories(ruleset, root, profile.is_read_only())?;
            image = Some(add_executables(ruleset, root, executables)?);
        }
        let mut less = rules::create_less(&profile.limits, &plan).map_err(landlock_error)?;
        if let Some(ruleset) = less.take() {
            less = Some(add_grants(ruleset, root, &profile.limits)?);
        }
        Ok(Self {
            image,
            less,
            limits: profile.limits.clone(),
            plan,
        })
    }

    /// The rulesets with rules for what is mounted over the image, and what they are of the profile.
    pub(crate) fn rulesets(
        &self,
        mounts: &[PathRule],
        moment: Moment,
    ) -> Result<(Vec<Rules>, &Plan), LandlockError> {
        let mut all = Vec::new();
        if let Some(image) = &self.image {
            all.push(rules::add_mounts(image.try_clone()?, mounts, moment)?);
        }
        if let Some(less) = &self.less {
            all.push(rules::add_mounted_grants(
                less.try_clone()?,
                &self.limits,
                mounts,
            )?);
        }
        Ok((all, &self.plan))
    }
}

/// Adds the grants of the profile's lists on files of the image. Links are the image's own: nothing has run yet.
fn add_grants(mut ruleset: Rules, root: BorrowedFd<'_>, limits: &FileLimits) -> Result<Rules, ImageError> {
    for (path, rights) in rules::grants(limits) {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Ok(fd) => fd,
            Err(errno) if rules::grants_nothing(errno) => continue,
            Err(errno) => {
                return Err(ImageError::Read {
                    path: path.into(),
                    source: errno.into(),
                });
            }
        };
        ruleset = rules::add(ruleset, fd, rights, path).map_err(|source| ImageError::Landlock { source })?;
    }
    Ok(ruleset)
}

/// What is granted on a directory that is judged by itself, and beneath it.
pub(crate) fn directory_access(path: &Path, is_read_only: bool) -> PathAccess {
    match (is_code_path(path), is_read_only) {
        (true, _) => PathAccess::ReadExecute,
        (false, true) => PathAccess::Read,
        (false, false) => PathAccess::ReadWrite,
    }
}

fn add_split_directories(
    mut ruleset: Rules,
    root: BorrowedFd<'_>,
    is_read_only: bool,
) -> Result<Rules, ImageError> {
    let landlock_error = |source| ImageError::Landlock { source };
    for split in SPLIT {
        let shown = Path::new("/").join(split);
        let read_error = |errno: Errno| ImageError::Read {
            path: shown.clone(),
            source: errno.into(),
        };
        let name = if split.is_empty() { "." } else { split };
        let directory = match open_beneath(root, Path::new(name), OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => fd,
            // The image has no such directory, or a link in its place, whose target is judged itself.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => continue,
            Err(errno) => return Err(read_error(errno)),
        };
        if split.is_empty() {
            let fd = directory.try_clone().map_err(|source| ImageError::Read {
                path: shown.clone(),
                source,
            })?;
            ruleset =
                rules::add(ruleset, fd, rules::rights(PathAccess::List), &shown).map_err(landlock_error)?;
        }
        for entry in Dir::read_from(&directory).map_err(read_error)? {
            let entry = entry.map_err(read_error)?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let child = Path::new(split).join(os_str(name));
            if SPLIT.iter().any(|split| child == Path::new(split)) {
                continue;
            }
            let fd = match open_beneath(root, &child, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::LOOP) => continue,
                Err(errno) => return Err(read_error(errno)),
            };
            let access = match rules::file_type(&fd).map_err(read_error)? {
                FileType::Symlink => continue,
                FileType::Directory => directory_access(&child, is_read_only),
                _ => PathAccess::Read,
            };
            ruleset = rules::add(ruleset, fd, rules::rights(access), &child).map_err(landlock_error)?;
        }
    }
    Ok(ruleset)
}

fn add_executables(
    mut ruleset: Rules,
    root: BorrowedFd<'_>,
    executables: &[PathBuf],
) -> Result<Rules, ImageError> {
    for path in executables.iter().take(MAX_EXECUTABLES) {
        let fd = match open_beneath(root, path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(fd) => fd,
            // Some are only where a program may be.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NAMETOOLONG) => continue,
            Err(errno) => {
                return Err(ImageError::Read {
                    path: path.clone(),
                    source: errno.into(),
                });
            }
        };
        let is_program = is_executable_file(fd.as_fd()).map_err(|errno| ImageError::Read {
            path: path.clone(),
            source: errno.into(),
        })?;
        if is_program {
            let rights = rules::rights(PathAccess::ReadExecute);
            ruleset =
                rules::add(ruleset, fd, rights, path).map_err(|source| ImageError::Landlock { source })?;
        }
    }
    Ok(ruleset)
}

fn is_executable_file(fd: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE | StatxFlags::MODE)?;
    let mode = u32::from(stat.stx_mode);
    Ok(FileType::from_raw_mode(mode) == FileType::RegularFile && mode & 0o111 != 0)
}

fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // With `PATH | NOFOLLOW` a link in last place is opened itself, and callers pass over it.
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn os_str(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_paths_are_recognised() {
        for code in [
            "/bin",
            "bin/sh",
            "/usr/bin/x",
            "/usr/lib64/ld.so",
            "usr/local/bin/python3",
            "/lib",
        ] {
            assert!(is_code_path(Path::new(code)), "{code}");
        }
        for other in [
            "/",
            "",
            "/usr",
            "/usr/local",
            "/usr/share/x",
            "/app/bin/x",
            "/etc",
            "/usr/local/tomcat",
        ] {
            assert!(!is_code_path(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn a_layers_executables_outside_the_code_directories_are_found() {
        let layer = tempfile::tempdir().expect("a directory");
        let write = |path: &str, mode| {
            let path = layer.path().join(path);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("mkdir");
            fs::write(&path, "x").expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        };
        write("usr/bin/tool", 0o755);
        write("app/run", 0o755);
        write("app/data", 0o644);
        write("entry.sh", 0o700);
        std::os::unix::fs::symlink("/etc", layer.path().join("link")).expect("symlink");
        let index = ExecutableIndex::of_layer(layer.path()).expect("readable");
        assert_eq!(index.paths, [PathBuf::from("app/run"), PathBuf::from("entry.sh")]);
        assert!(!index.truncated);
        for number in 0..MAX_EXECUTABLES {
            write(&format!("many/{number:05}"), 0o755);
        }
        let index = ExecutableIndex::of_layer(layer.path()).expect("readable");
        assert!(index.truncated);
        assert_eq!(index.paths.len(), MAX_EXECUTABLES);
        assert_eq!(index.paths.first(), Some(&PathBuf::from("app/run")));
        assert_eq!(
            index.paths.last(),
            Some(&PathBuf::from(format!("many/{:05}", MAX_EXECUTABLES - 3))),
            "the first by name"
        );
    }
}
