//! What was seen as a SandboxProfile. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use anyhow::Result;
use api::{
    annotations,
    learned::Learned,
    palisade::{SandboxPreset, SandboxProfile},
};
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

/// Calls by which a server came to its port.
const SERVES: &[&str] = &[
    "accept",
    "accept4",
    "bind",
    "getsockname",
    "getsockopt",
    "listen",
    "setsockopt",
    "socket",
];

/// Calls by which a program became another user, and what it needed for them.
const CHANGES_USER: &[&str] = &["setgid", "setgroups", "setresgid", "setresuid", "setuid"];
const CHANGES_USER_WITH: [&str; 2] = ["CAP_SETGID", "CAP_SETUID"];

/// Where the kernel chooses when a program binds port 0, in every pod: pods set no kernel parameters.
const CHOSEN_PORTS: RangeInclusive<u16> = 32_768..=60_999;

/// Writes the profile of a pod's container, which takes away from a preset.
pub(super) fn profile(
    name: &str,
    pod: &Value,
    container: &str,
    preset: SandboxPreset,
    learned: &Learned,
) -> Written {
    let mut notes = losses(learned);
    let beginning = Beginning::of(learned);
    notes.extend(beginning.notes);
    let calls: BTreeSet<&str> = learned
        .calls
        .iter()
        .map(String::as_str)
        .chain(BEGINNING.iter().copied())
        .chain(beginning.calls)
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
    let (paths, of_paths) = paths(learned);
    notes.extend(of_paths);
    let (bind, of_ports) = bound(learned, pod, container);
    notes.extend(of_ports);
    let mut spec = json!({
        "preset": preset,
        "tcp": {"bind": bind, "connect": learned.ports.connect},
        "landlock": {"paths": paths},
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
        },
    });
    match &learned.capabilities {
        Some(used) => {
            let used = used.iter().map(String::as_str).chain(beginning.capabilities);
            spec["capabilities"] = json!(used.collect::<BTreeSet<_>>());
        }
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

/// What a program that was running already must have done before, as far as that can be told from what it has become.
#[derive(Default)]
struct Beginning {
    calls: Vec<&'static str>,
    capabilities: Vec<&'static str>,
    notes: Vec<String>,
}

impl Beginning {
    fn of(learned: &Learned) -> Self {
        let mut beginning = Self::default();
        if learned.starts > 0 {
            return beginning;
        }
        beginning.notes.push(
            "the program was running already, and what only its beginning does is not in the profile: files that it reads \
             once, calls, capabilities. Learn it while it begins: have the container end and start again during the watch"
                .to_owned(),
        );
        // No capability: in a pod whoever likes may bind a low port.
        if !learned.ports.bind.is_empty() {
            beginning.take(SERVES, learned, "it listens");
        }
        if learned.changes_user {
            beginning.take(CHANGES_USER, learned, "it has become another user");
            beginning.capabilities.extend(CHANGES_USER_WITH);
        }
        beginning
    }

    fn take(&mut self, calls: &[&'static str], learned: &Learned, why: &str) {
        let unseen = calls
            .iter()
            .copied()
            .filter(|call| !learned.calls.contains(*call));
        let unseen: Vec<&str> = unseen.collect();
        if !unseen.is_empty() {
            let unseen = unseen.join(", ");
            self.notes
                .push(format!("not seen, and allowed because {why}: {unseen}"));
        }
        self.calls.extend(calls);
    }
}

/// The lists of paths, and what to know about them.
fn paths(learned: &Learned) -> (Value, Vec<String>) {
    let files = &learned.files;
    let execute = shortened(files.execute.iter().map(String::as_str));
    // New files have new names: what was written to may be written beside.
    let written: BTreeSet<&str> = files.write.iter().map(|file| parent(lasting(file))).collect();
    let write = shortened(written.iter().copied().chain(["/dev", "/proc"]));
    let changed: Vec<&str> = CHANGES
        .iter()
        .copied()
        .filter(|call| learned.calls.contains(*call))
        .collect();
    let overlap = execute
        .iter()
        .any(|program| write.iter().any(|directory| is_beneath(program, directory)));
    let unlimited = match (changed.is_empty(), overlap) {
        (false, _) => Some(format!(
            "it changed directories ({}), and where is not seen: writing stays as the preset has it",
            changed.join(", ")
        )),
        (true, true) => {
            Some("it writes beside programs that it executes: writing stays as the preset has it".to_owned())
        }
        (true, false) => None,
    };
    let read = files.read.iter().map(|file| lasting(file));
    let read = read.chain(SURROUNDINGS).chain(LOADER);
    let mut paths = json!({"execute": execute});
    if unlimited.is_some() {
        // What it will make may be read back, as where the list of what is written says so.
        paths["read"] = json!(shortened(read.chain(written)));
    } else {
        paths["read"] = json!(shortened(read));
        paths["write"] = json!(write);
    }
    (paths, unlimited.into_iter().collect())
}

/// A path up to where it has a name for one time only: what is in ConfigMaps, Secrets and tokens lies in a directory
/// `..TIME`, which is another one after each change and in each pod.
fn lasting(path: &str) -> &str {
    // Never the root: that is everything.
    let end = path.find("/..").filter(|end| *end > 0);
    end.and_then(|end| path.get(..end)).unwrap_or(path)
}

/// The ports to bind, and what to know about them.
fn bound(learned: &Learned, pod: &Value, container: &str) -> (BTreeSet<u16>, Option<String>) {
    let mut bind = learned.ports.bind.clone();
    let declared = declared(pod, container);
    let chosen = bind
        .iter()
        .filter(|port| CHOSEN_PORTS.contains(*port) && !declared.contains(*port));
    let chosen: Vec<String> = chosen.map(u16::to_string).collect();
    if chosen.is_empty() {
        return (bind, None);
    }
    // Landlock's rule for port 0 is that for whatever the kernel chooses.
    bind.insert(0);
    let note = format!(
        "it listens on {}, which may have been the kernel's choice (port 0): both may be bound; take out what does not apply",
        chosen.join(", ")
    );
    (bind, Some(note))
}

fn declared(pod: &Value, container: &str) -> BTreeSet<u16> {
    let spec = &pod["spec"];
    let containers = ["containers", "initContainers"].map(|list| spec[list].as_array());
    let own = containers.into_iter().flatten().flatten();
    let own = own.filter(|found| found["name"] == container);
    own.flat_map(|found| found["ports"].as_array().into_iter().flatten())
        .filter_map(|port| u16::try_from(port["containerPort"].as_u64()?).ok())
        .collect()
}

/// The name of the profile that a container has.
pub(super) fn named<'a>(pod: &'a Value, container: &str) -> Option<&'a str> {
    let annotations = &pod["metadata"]["annotations"];
    let own = format!("{}{container}", annotations::CONTAINER_SANDBOX_PROFILE_PREFIX);
    let named = annotations[own.as_str()].as_str();
    named.or_else(|| annotations[annotations::SANDBOX_PROFILE].as_str())
}

/// What is written for a container under the preset of that name, if it is one. `audit` refuses what the baseline does.
pub(super) fn preset(name: &str) -> Option<SandboxPreset> {
    match name {
        "strict" => Some(SandboxPreset::Strict),
        "baseline" | "audit" => Some(SandboxPreset::Baseline),
        _ => None,
    }
}

/// The same under a profile of its own; and what to know about it if that cannot be read.
pub(super) fn preset_of(name: &str, object: Result<Value>) -> (SandboxPreset, Option<String>) {
    let object = object.and_then(|object| Ok(serde_json::from_value::<SandboxProfile>(object)?));
    match object.map(|object| object.spec.preset) {
        Ok(SandboxPreset::Audit) => (SandboxPreset::Baseline, None),
        Ok(preset) => (preset, None),
        Err(error) => {
            let note = format!(
                "SandboxProfile {name}, which the container has, cannot be read ({error:#}): the preset is the baseline; if \
                 that one's was strict, write it"
            );
            (SandboxPreset::Baseline, Some(note))
        }
    }
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
    use api::learned::{LearnedFiles, LearnedPorts, Lost};

    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn learned() -> Learned {
        Learned {
            starts: 1,
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

    fn written(learned: &Learned) -> Written {
        profile("web", &pod(), "main", SandboxPreset::Strict, learned)
    }

    fn list<'a>(written: &'a Written, name: &str) -> Vec<&'a str> {
        let list = written.object["spec"]["landlock"]["paths"][name].as_array();
        list.unwrap().iter().filter_map(Value::as_str).collect()
    }

    fn has_note(written: &Written, words: &str) -> bool {
        written.notes.iter().any(|note| note.contains(words))
    }

    #[test]
    fn a_profile_starts_from_the_preset_of_its_container() {
        let pod = pod();
        assert_eq!(named(&pod, "main").and_then(preset), Some(SandboxPreset::Strict));
        assert_eq!(
            named(&pod, "side").and_then(preset),
            Some(SandboxPreset::Baseline)
        );
        assert_eq!(
            named(&pod, "own").and_then(preset),
            None,
            "it is a profile's name"
        );
        assert_eq!(named(&json!({}), "main"), None);
        let object = |spec: Value| {
            Ok(
                json!({"apiVersion": "palisade.dev/v1alpha1", "kind": "SandboxProfile", "metadata": {"name": "web"},
                "spec": spec}),
            )
        };
        let strict = preset_of("web", object(json!({"preset": "strict", "capabilities": []})));
        assert_eq!(strict, (SandboxPreset::Strict, None));
        assert_eq!(preset_of("web", object(json!({}))).0, SandboxPreset::Baseline);
        let (unknown, note) = preset_of("web", Err(anyhow::anyhow!("not found")));
        assert_eq!(unknown, SandboxPreset::Baseline);
        assert!(note.unwrap().contains("SandboxProfile web"));
    }

    #[test]
    fn what_is_made_anew_each_time_is_read_back() {
        let mut seen = learned();
        seen.files.write.insert("/tmp/tmp.Ab12".to_owned());
        seen.files.read.insert("/tmp/tmp.Ab12".to_owned());
        assert!(list(&written(&seen), "write").contains(&"/tmp"));
        // Where the list of what is written is left out, that of what is read must do.
        seen.calls.insert("unlink".to_owned());
        let changed = written(&seen);
        assert!(list(&changed, "read").contains(&"/tmp"), "{}", changed.object);
        seen.calls.remove("unlink");
        seen.files.execute.insert("/tmp/program".to_owned());
        let overlapping = written(&seen);
        assert!(has_note(&overlapping, "beside programs"));
        assert!(
            list(&overlapping, "read").contains(&"/tmp"),
            "{}",
            overlapping.object
        );
    }

    #[test]
    fn what_a_volume_holds_for_one_time_is_learned_as_the_volume() {
        let mut seen = learned();
        seen.files.read = set(&[
            "/etc/app/..1764388800123456789/key",
            "/var/run/x/..9/a/b",
            "/srv/.hidden/a..b",
        ]);
        let written = written(&seen);
        let read = list(&written, "read");
        for path in ["/etc/app", "/var/run/x", "/srv/.hidden/a..b"] {
            assert!(read.contains(&path), "{path}: {read:?}");
        }
        assert!(!written.object.to_string().contains("/.."), "{}", written.object);
    }

    #[test]
    fn a_port_that_the_kernel_may_have_chosen_is_one_of_its_choice() {
        let mut seen = learned();
        seen.ports.bind = [8080, 41_234, 50_051].into();
        let mut pod = pod();
        pod["spec"] = json!({"containers": [{"name": "main", "ports": [{"containerPort": 50051}]}]});
        let (bind, note) = bound(&seen, &pod, "main");
        assert_eq!(bind, BTreeSet::from([0, 8080, 41_234, 50_051]));
        let note = note.unwrap();
        assert!(note.contains("41234") && !note.contains("50051"), "{note}");
        seen.ports.bind = [8080, 50_051].into();
        assert_eq!(bound(&seen, &pod, "main"), ([8080, 50_051].into(), None));
    }

    #[test]
    fn the_beginning_that_was_not_seen_is_told_and_what_follows_from_it_allowed() {
        let names = |written: &Written| written.object["spec"]["seccomp"]["syscalls"][0]["names"].to_string();
        let mut seen = learned();
        let from_its_start = written(&seen);
        assert!(!has_note(&from_its_start, "running already"));
        assert!(!names(&from_its_start).contains("listen"));
        seen.starts = 0;
        let running = written(&seen);
        assert!(has_note(&running, "have the container end and start again"));
        assert!(
            has_note(&running, "because it listens: accept, accept4, bind"),
            "{:?}",
            running.notes
        );
        assert!(names(&running).contains("\"listen\"") && !names(&running).contains("setuid"));
        seen.ports.bind.clear();
        assert!(!names(&written(&seen)).contains("\"listen\""));
        seen.changes_user = true;
        let other = written(&seen);
        assert!(names(&other).contains("\"setgroups\""));
        let capabilities = json!(["CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID"]);
        assert_eq!(other.object["spec"]["capabilities"], capabilities);
    }

    #[test]
    fn a_profile_says_what_was_seen() {
        let written = written(&learned());
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
        let written = written(&seen);
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
