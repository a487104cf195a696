//! A container's deepest tree against the agent's fewest descriptors. Alone in its process, which it limits.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::fs::{Mode, OFlags};

/// Far past what a path, a thread's stack or a process's descriptors could hold.
const LEVELS: usize = 20_000;

#[test]
fn a_tree_deeper_than_the_descriptors_is_removed() {
    let base = tempfile::tempdir().unwrap();
    let tree = base.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let mut here = rustix::fs::open(&tree, flags, Mode::empty()).unwrap();
    for _ in 0..LEVELS {
        rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
        here = rustix::fs::openat(&here, "d", flags, Mode::empty()).unwrap();
    }
    let create = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(&here, "file", create, Mode::RUSR).unwrap();
    drop(here);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 48, hard).unwrap();
    agent_runtime::remove_tree(&tree).unwrap();
    assert!(tree.symlink_metadata().is_err());
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
}
