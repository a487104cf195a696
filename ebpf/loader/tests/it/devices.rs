//! The program for devices on the running kernel: what it allows and denies, to whom, and how long.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use ebpf_loader::devices::{DeviceProgram, attached};

/// Everything that is allowed to be opened, and by the side of it what is not.
const ALLOWED: [&str; 8] = [
    "c 1 3", "c 1 5", "c 1 7", "c 1 8", "c 1 9", "c 5 0", "c 5 2", "c 136 0",
];
const DENIED: [&str; 11] = [
    "c 1 1", "c 1 4", "c 1 11", "c 5 1", "c 5 3", "c 10 200", "c 10 229", "c 10 237", "c 135 0", "c 137 0",
    "b 7 0",
];

/// A group of version 2, and one below it.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("reads");
        let hierarchy = mounts.lines().find_map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            (words.get(2) == Some(&"cgroup2")).then(|| words[1].to_owned())
        });
        let path = Path::new(&hierarchy.expect("control groups of version 2"))
            .join(format!("palisade-test-{}-{name}", std::process::id()));
        fs::create_dir_all(path.join("below")).expect("a group");
        Self(path)
    }

    fn below(&self) -> PathBuf {
        self.0.join("below")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for path in [self.below(), self.0.clone()] {
            let _may_be_gone = fs::remove_dir(path);
        }
    }
}

/// Makes a node for each device and opens it, as root of the machine; enters the group first, if there is one. What the
/// driver of a device says, or that there is none, does not count: `EPERM` is the group's word.
fn denied(group: Option<&Path>) -> Vec<&'static str> {
    let directory = tempfile::tempdir().expect("a directory");
    let mut script = String::new();
    if let Some(group) = group {
        script += &format!("echo $$ > {}/cgroup.procs || exit 9\n", group.display());
    }
    for device in ALLOWED.iter().chain(&DENIED) {
        script +=
            &format!("mknod node {device} || exit 8; echo \"{device}: $( (: < node) 2>&1)\"; rm node\n");
    }
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(directory.path())
        .output()
        .expect("runs");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).expect("text");
    let mut denied = Vec::new();
    for device in ALLOWED.iter().chain(&DENIED) {
        let line = said.lines().find(|line| line.starts_with(&format!("{device}:")));
        let line = line.unwrap_or_else(|| panic!("{device} was not tried: {said}"));
        assert!(
            !line.contains("Permission denied"),
            "nodes cannot be opened here: {line}"
        );
        if line.contains("Operation not permitted") {
            denied.push(*device);
        }
    }
    denied
}

#[test]
fn a_group_and_those_below_it_get_no_devices_but_those_of_the_list() {
    let group = Group::new("devices");
    for device in denied(Some(&group.below())) {
        // A kernel that is locked down keeps its memory from everybody.
        assert!(
            ["c 1 1", "c 1 4"].contains(&device),
            "{device} without the program"
        );
    }
    let outside = denied(None);

    let program = DeviceProgram::load().expect("loads");
    assert_eq!(attached(&group.below()).expect("tells"), [0_u32; 0]);
    program.attach(&group.0).expect("attaches");
    let number = program.number();
    // Whoever loaded it may go: the group keeps it.
    drop(program);
    for path in [group.0.clone(), group.below()] {
        assert_eq!(attached(&path).expect("tells"), [number]);
        assert_eq!(denied(Some(&path)), DENIED);
    }
    assert_eq!(denied(None), outside, "nobody else is asked");
}
