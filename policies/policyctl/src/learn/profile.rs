//! What was seen as a SandboxProfile. Pure.

use std::collections::{BTreeMap, BTreeSet};

use api::{annotations, learned::Learned};
use serde_json::{Value, json};

use super::Written;

/// Files of one directory that are named one by one; more become the directory.
const NAMED: usize = 8;
/// Entries of one list, as the server takes them.
const MAX_ENTRIES: usize = 1024;

/// What every program needs to begin, also one that was running already when it was watched: the C library, the dynamic
/// loader, and the end.
const BEGINNING: &[&str] = &[
    "access",
    "arch_prctl",
    "brk",
    "close",
    "execve",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fcntl",
    "fstat",
    "futex",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "getppid",
    "getrandom",
    "gettid",
    "getuid",
    "ioctl",
    "lseek",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "newfstatat",
    "open",
    "openat",
    "pread64",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "set_robust_list",
    "set_tid_address",
    "sigaltstack",
    "stat",
    "statx",
    "sysinfo",
    "uname",
    "write",
    "writev",
];

/// What the runtime mounts: the preset judges it, and programs read it to size themselves.
const SURROUNDINGS: [&str; 3] = ["/dev", "/proc", "/sys"];

/// What the dynamic loader reads of any image.
const LOADER: [&str; 2] = ["/etc/ld.so.cache", "/etc/ld.so.preload"];

/// Calls that change directories without opening a file, so that where is not seen.
const CHANGES: &[&str] = &[
    "link",
    "linkat",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "symlink",
    "symlinkat",
    "truncate",
    "unlink",
    "unlinkat",
];

/// Writes the profile of a pod's container.
pub(super) fn profile(name: &str, pod: &Value, container: &str, learned: &Learned) -> Written {
    let mut notes = losses(learned);
    let calls: BTreeSet<&str> = learned
        .calls
        .iter()
        .map(String::as_str)
        .chain(BEGINNING.iter().copied())
        .collect();
    let (numbers, names): (Vec<&str>, Vec<&str>) = calls
        .into_iter()
        .partition(|call| call.starts_with(|first: char| first.is_ascii_digit()));
    if !numbers.is_empty() {
        notes.push(format!(
            "calls without a name are not in the profile: {}",
            numbers.join(", ")
        ));
    }
    let read = learned.files.read.iter().map(String::as_str);
    let read = shortened(read.chain(SURROUNDINGS).chain(LOADER));
    let execute = shortened(learned.files.execute.iter().map(String::as_str));
    // New files have new names: what was written to may be written beside.
    let written: BTreeSet<&str> = learned.files.write.iter().map(|file| parent(file)).collect();
    let write = shortened(written.into_iter().chain(["/dev", "/proc"]));
    let mut paths = json!({"read": read, "execute": execute});
    let changed: Vec<&str> = CHANGES
        .iter()
        .copied()
        .filter(|call| learned.calls.contains(*call))
        .collect();
    let overlap = execute
        .iter()
        .any(|program| write.iter().any(|directory| is_beneath(program, directory)));
    if !changed.is_empty() {
        notes.push(format!(
            "it changed directories ({}), and where is not seen: writing stays as the preset has it",
            changed.join(", ")
        ));
    } else if overlap {
        notes.push(
            "it writes beside programs that it executes: writing stays as the preset has it".to_owned(),
        );
    } else {
        paths["write"] = json!(write);
    }
    let mut spec = json!({
        "preset": preset(pod, container),
        "tcp": {"bind": learned.ports.bind, "connect": learned.ports.connect},
        "landlock": {"paths": paths},
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
        },
    });
    match &learned.capabilities {
        Some(used) => spec["capabilities"] = json!(used),
        None => notes.push(
            "the node's kernel (before Linux 6.14) does not tell which capabilities are used".to_owned(),
        ),
    }
    let namespace = pod
        .pointer("/metadata/namespace")
        .cloned()
        .unwrap_or_else(|| json!("default"));
    Written {
        object: json!({
            "apiVersion": api::palisade::API_VERSION,
            "kind": "SandboxProfile",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }),
        notes,
    }
}

/// The preset that the container has; one with a profile of its own is learned from the baseline.
fn preset<'a>(pod: &'a Value, container: &str) -> &'a str {
    let annotations = &pod["metadata"]["annotations"];
    let own = format!("{}{container}", annotations::CONTAINER_SANDBOX_PROFILE_PREFIX);
    let named = annotations[own.as_str()].as_str();
    let named = named.or_else(|| annotations[annotations::SANDBOX_PROFILE].as_str());
    named.filter(|name| *name == "strict").unwrap_or("baseline")
}

/// What was not seen, one sentence each.
fn losses(learned: &Learned) -> Vec<String> {
    let lost = &learned.lost;
    let mut notes = Vec::new();
    if lost.file_overflows > 0 {
        notes.push(format!(
            "LOST: the kernel's queue of file events was full {} times; files are missing in the profile",
            lost.file_overflows
        ));
    }
    if lost.file_events > 0 {
        notes.push(format!(
            "LOST: {} file events; files are missing in the profile",
            lost.file_events
        ));
    }
    if !lost.mounts.is_empty() {
        let mounts: Vec<&str> = lost.mounts.iter().map(String::as_str).collect();
        notes.push(format!(
            "LOST: files below {} could not be watched",
            mounts.join(", ")
        ));
    }
    if lost.calls {
        notes.push("LOST: calls or capabilities with numbers that are not known".to_owned());
    }
    if lost.sockets > 0 {
        notes.push(format!(
            "LOST: sockets could not be read {} times; ports may be missing",
            lost.sockets
        ));
    }
    notes
}

/// The paths, where many files of one directory become the directory, and nothing that lies beneath another one.
fn shortened<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut all: BTreeSet<String> = paths.into_iter().map(str::to_owned).collect();
    let mut named = NAMED;
    loop {
        let mut by_parent: BTreeMap<String, usize> = BTreeMap::new();
        for path in &all {
            *by_parent.entry(parent(path).to_owned()).or_default() += 1;
        }
        let many = |path: &String| {
            let directory = parent(path);
            // The root is everything: never for the sake of brevity.
            directory != "/" && by_parent.get(directory).is_some_and(|count| *count > named)
        };
        all = all
            .iter()
            .map(|path| {
                if many(path) {
                    parent(path).to_owned()
                } else {
                    path.clone()
                }
            })
            .collect();
        let directories = all.clone();
        all.retain(|path| {
            !directories
                .iter()
                .any(|other| other != path && is_beneath(path, other))
        });
        if all.len() <= MAX_ENTRIES || named == 0 {
            return all.into_iter().collect();
        }
        named /= 2;
    }
}

fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((directory, _)) => directory,
    }
}

fn is_beneath(path: &str, directory: &str) -> bool {
    let rest = path.strip_prefix(directory.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use api::{
        learned::{LearnedFiles, LearnedPorts, Lost},
        palisade::SandboxProfile,
    };

    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn learned() -> Learned {
        Learned {
            calls: set(&["read", "socket", "500"]),
            capabilities: Some(set(&["CAP_NET_BIND_SERVICE"])),
            files: LearnedFiles {
                read: set(&["/etc/app.conf", "/srv/page"]),
                write: set(&["/data/log"]),
                execute: set(&["/usr/bin/app"]),
            },
            ports: LearnedPorts {
                bind: [8080].into(),
                connect: [5432].into(),
            },
            ..Learned::default()
        }
    }

    fn pod() -> Value {
        json!({"metadata": {"name": "web", "namespace": "shop",
        "annotations": {
            "palisade.dev/sandbox-profile": "strict",
            "palisade.dev/sandbox-profile.side": "baseline",
            "palisade.dev/sandbox-profile.own": "web",
        }}})
    }

    #[test]
    fn a_profile_starts_from_the_preset_of_its_container() {
        let preset =
            |container| profile("web", &pod(), container, &learned()).object["spec"]["preset"].clone();
        assert_eq!(preset("main"), "strict");
        assert_eq!(preset("side"), "baseline");
        assert_eq!(preset("own"), "baseline", "it is a profile's name");
    }

    #[test]
    fn a_profile_says_what_was_seen() {
        let written = profile("web", &pod(), "main", &learned());
        let object: SandboxProfile = serde_json::from_value(written.object.clone()).unwrap();
        let spec = &written.object["spec"];
        assert_eq!(spec["preset"], "strict");
        assert_eq!(spec["tcp"], json!({"bind": [8080], "connect": [5432]}));
        assert_eq!(spec["capabilities"], json!(["CAP_NET_BIND_SERVICE"]));
        let paths = object.spec.landlock.unwrap().paths.unwrap();
        assert!(paths.read.unwrap().contains(&"/srv/page".to_owned()));
        assert_eq!(paths.write.unwrap(), ["/data", "/dev", "/proc"]);
        assert_eq!(paths.execute.unwrap(), ["/usr/bin/app"]);
        let rules = object.spec.seccomp.unwrap().syscalls.unwrap();
        let names = rules[0].names.clone().unwrap();
        assert!(names.contains(&"socket".to_owned()) && names.contains(&"execve".to_owned()));
        assert!(!names.contains(&"bpf".to_owned()));
        assert!(
            written.notes.iter().any(|note| note.contains("500")),
            "{:?}",
            written.notes
        );
    }

    #[test]
    fn what_is_not_seen_is_left_to_the_preset_and_said() {
        let mut seen = learned();
        seen.calls.insert("mkdir".to_owned());
        seen.lost = Lost {
            file_overflows: 2,
            ..Lost::default()
        };
        seen.capabilities = None;
        let written = profile("web", &pod(), "main", &seen);
        assert!(written.object["spec"]["landlock"]["paths"].get("write").is_none());
        assert!(written.object["spec"].get("capabilities").is_none());
        for words in ["mkdir", "LOST: the kernel's queue", "6.14"] {
            assert!(
                written.notes.iter().any(|note| note.contains(words)),
                "{words}: {:?}",
                written.notes
            );
        }
    }

    #[test]
    fn many_files_of_a_directory_become_the_directory() {
        let files: Vec<String> = (0..20).map(|number| format!("/usr/lib/{number}")).collect();
        let paths = files
            .iter()
            .map(String::as_str)
            .chain(["/etc/a", "/usr/lib/sub/b"]);
        assert_eq!(shortened(paths), ["/etc/a", "/usr/lib"]);
        let top: Vec<String> = (0..20).map(|number| format!("/{number}")).collect();
        assert_eq!(
            shortened(top.iter().map(String::as_str)).len(),
            20,
            "never the root"
        );
    }
}
