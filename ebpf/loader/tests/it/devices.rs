//! The program for devices on the running kernel: what it allows and denies, to whom, and how long.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ebpf_loader::devices::{DeviceProgram, attached};
use testkit::devices::{DENIED, denied};

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

#[test]
fn a_group_and_those_below_it_get_no_devices_but_those_of_the_list() {
    let group = Group::new("devices");
    let none: [&str; 0] = [];
    assert_eq!(
        denied(Some(&group.below())).expect("tries"),
        none,
        "without the program"
    );

    let program = DeviceProgram::load().expect("loads");
    assert_eq!(attached(&group.below()).expect("tells"), [0_u32; 0]);
    program.attach(&group.0).expect("attaches");
    let number = program.number();
    // Whoever loaded it may go: the group keeps it.
    drop(program);
    for path in [group.0.clone(), group.below()] {
        assert_eq!(attached(&path).expect("tells"), [number]);
        assert_eq!(denied(Some(&path)).expect("tries"), DENIED);
    }
    assert_eq!(denied(None).expect("tries"), none, "nobody else is asked");
}
