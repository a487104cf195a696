//! What the rule for images grants on single paths, for whoever asks without an image: what is mounted in every container, and
//! what is told of the rest.

use std::path::{Path, PathBuf};

use crate::image::{SPLIT, directory_access, is_code_path};
use crate::{PathAccess, PathRule};

/// What of `/sys` runtimes read to size themselves; the rest describes the host.
const READABLE: [&str; 6] = [
    "/sys/class/net",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/devices/virtual/net",
    "/sys/fs/cgroup",
    "/sys/kernel/mm/transparent_hugepage",
];

/// What is granted on the file systems of the kernel that every container has. All else of them is refused.
pub fn system_mounts(is_read_only: bool) -> Vec<PathRule> {
    let own_entries = if is_read_only {
        // Through `/proc/self/mem` a process writes to its own code, whatever its memory's protection says.
        PathAccess::Read
    } else {
        PathAccess::WriteExisting
    };
    let mut rules = vec![
        // Masks and read-only mounts guard the dangerous parts; a process writes to its own entries.
        PathRule::new("/proc", own_entries),
        PathRule::new("/dev", PathAccess::Devices),
    ];
    rules.extend(READABLE.map(|path| PathRule::optional(path, PathAccess::Read)));
    rules
}

/// What is known of a container whose paths are asked for. The lists of its profile are not.
#[derive(Debug, Clone, Copy)]
pub struct Paths<'a> {
    /// Whether its profile keeps its image from being written to.
    pub is_read_only: bool,
    /// Where volumes are mounted that can be written to.
    pub volumes: &'a [PathBuf],
    /// Executable files that the image keeps outside of the code directories.
    pub executables: &'a [PathBuf],
}

impl Paths<'_> {
    /// Whether what is there can be read.
    pub fn are_readable(&self, path: &Path) -> bool {
        self.mounted(path) != Some(PathAccess::List)
    }

    /// Whether what is there can be written, or something be made there; nothing if the image decides: directly in `/`, `/usr`
    /// and `/usr/local` what is no directory cannot be.
    pub fn are_writable(&self, path: &Path) -> Option<bool> {
        let access = match self.mounted(path) {
            Some(access) => access,
            None => match directory_access(path, self.is_read_only) {
                PathAccess::ReadWrite if is_child_of_split(path) => return None,
                access => access,
            },
        };
        Some(matches!(
            access,
            PathAccess::WriteExisting | PathAccess::ReadWrite | PathAccess::Devices
        ))
    }

    /// Whether a program there can be executed.
    pub fn are_executable(&self, path: &Path) -> bool {
        let is_known = is_code_path(path) || self.executables.iter().any(|known| known == path);
        is_known && self.mounted(path).is_none()
    }

    /// What is granted on the innermost mount that has the path; nothing if it is of the image.
    fn mounted(&self, path: &Path) -> Option<PathAccess> {
        let volumes = self.volumes.iter();
        let volumes = volumes.map(|volume| PathRule::new(volume, PathAccess::ReadWrite));
        let others = PathRule::new("/sys", PathAccess::List);
        let all = [others]
            .into_iter()
            .chain(system_mounts(self.is_read_only))
            .chain(volumes);
        let around = all.filter(|mount| path.starts_with(&mount.path));
        let innermost = around.max_by_key(|mount| mount.path.components().count());
        innermost.map(|mount| mount.access)
    }
}

fn is_child_of_split(path: &Path) -> bool {
    let parent = path.parent().unwrap_or(path);
    SPLIT.iter().any(|split| parent == Path::new("/").join(split))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_judged_as_the_image_and_what_is_mounted_over_it() {
        let volumes = ["/data".into(), "/usr/lib/plugins".into()];
        let executables = ["/app/run".into(), "/data/run".into()];
        let paths = |is_read_only| Paths {
            is_read_only,
            volumes: &volumes,
            executables: &executables,
        };
        // Written under a baseline, under strict, executed, read.
        for (path, loose, strict, runs, reads) in [
            ("/etc/x", Some(true), Some(false), false, true),
            ("/usr/share/x", Some(true), Some(false), false, true),
            ("/usr/bin/x", Some(false), Some(false), true, true),
            ("/lib64/x", Some(false), Some(false), true, true),
            ("/bin", Some(false), Some(false), true, true),
            ("/app/run", Some(true), Some(false), true, true),
            ("/app/other", Some(true), Some(false), false, true),
            ("/data/x", Some(true), Some(true), false, true),
            ("/data/run", Some(true), Some(true), false, true),
            ("/usr/lib/plugins/x", Some(true), Some(true), false, true),
            ("/usr/lib/x", Some(false), Some(false), true, true),
            ("/dev/null", Some(true), Some(true), false, true),
            ("/proc/self/comm", Some(true), Some(false), false, true),
            ("/sys/fs/cgroup/cpu.max", Some(false), Some(false), false, true),
            ("/sys/kernel/debug", Some(false), Some(false), false, false),
            ("/new", None, Some(false), false, true),
            ("/", None, Some(false), false, true),
            ("/usr/local/new", None, Some(false), false, true),
        ] {
            let path = Path::new(path);
            assert_eq!(paths(false).are_writable(path), loose, "{path:?}");
            assert_eq!(paths(true).are_writable(path), strict, "{path:?}");
            for is_read_only in [false, true] {
                assert_eq!(paths(is_read_only).are_executable(path), runs, "{path:?}");
                assert_eq!(paths(is_read_only).are_readable(path), reads, "{path:?}");
            }
        }
    }
}
