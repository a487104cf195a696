//! Who a container's processes are, which says whether they became somebody else before anybody looked.

use std::fs;

use super::files::processes_of;

/// Whether a process in the pid namespace of this one is another user than this one of the pod.
pub(super) fn changed(pid: i32, user: u32) -> bool {
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap_or_default();
    let Some(user) = on_host(&map, user) else {
        return false;
    };
    processes_of(pid).into_iter().any(|process| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        others(&status, user)
    })
}

/// `inside outside count` in each line, of users in a user namespace as the reader's has them.
fn on_host(map: &str, user: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (inside, outside, count) = (
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
        );
        let at = user.checked_sub(inside).filter(|at| *at < count)?;
        outside.checked_add(at)
    })
}

/// Whether the real, effective, saved or file system user of a process is another one.
fn others(status: &str, user: u32) -> bool {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let mut users = users.unwrap_or_default().split_ascii_whitespace();
    users.any(|found| found.parse() != Ok(user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_became_another_user_is_told_from_who_was_started_as_one() {
        let map = "         0     300000      65536\n";
        assert_eq!(
            (on_host(map, 0), on_host(map, 101)),
            (Some(300_000), Some(300_101))
        );
        assert_eq!((on_host(map, 65_536), on_host("", 0)), (None, None));
        let status = |users: &str| format!("Name:\tx\nUid:\t{users}\nGid:\t0\t0\t0\t0\n");
        assert!(others(&status("300101\t300101\t300101\t300101"), 300_000));
        assert!(others(&status("300000\t300101\t300000\t300000"), 300_000));
        assert!(!others(&status("300101\t300101\t300101\t300101"), 300_101));
        let own = fs::read_to_string("/proc/self/status").unwrap();
        let user = nix::unistd::geteuid().as_raw();
        assert!(!others(&own, user) && others(&own, user + 7));
    }
}
