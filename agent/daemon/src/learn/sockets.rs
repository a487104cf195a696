//! Unix sockets that a container has bound by names: each is a file that was made and that nobody opened. From the table of
//! its network namespace, where containers of a pod have theirs together.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead as _, BufReader},
};

use super::files::processes_of;

/// Lines of the table that are read, and sockets that are remembered.
const MAX_SOCKETS: usize = 1 << 16;
/// The kernel's mark of one that listens, `__SO_ACCEPTCON` of `linux/net.h`.
const LISTENS: u32 = 1 << 16;
/// `SOCK_DGRAM`: one that receives without listening.
const DATAGRAM: u32 = 2;

/// The watch of one container's sockets.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    looked_at: BTreeSet<u64>,
}

impl Sockets {
    /// Names of those that were bound since the last look, of any process in the pid namespace of this one.
    pub(super) fn look(&mut self, pid: i32) -> Vec<String> {
        let new = self.new_ones(pid);
        match new.is_empty() {
            true => Vec::new(),
            false => owned(&processes_of(pid), &new),
        }
    }

    /// Inodes and names of sockets of the network namespace that were not looked at yet.
    fn new_ones(&mut self, pid: i32) -> Vec<(u64, String)> {
        let Ok(table) = File::open(format!("/proc/{pid}/net/unix")) else {
            // The run is over; another one may follow.
            return Vec::new();
        };
        if self.looked_at.len() >= MAX_SOCKETS {
            self.looked_at.clear();
        }
        let lines = BufReader::new(table).lines().skip(1).take(MAX_SOCKETS);
        let found = lines.map_while(Result::ok).filter_map(|line| {
            let (inode, name) = socket(&line)?;
            Some((inode, name.to_owned()))
        });
        found.filter(|(inode, _)| self.looked_at.insert(*inode)).collect()
    }
}

/// Names of the sockets that these processes have, as the container would say them.
fn owned(processes: &[i32], sockets: &[(u64, String)]) -> Vec<String> {
    let mut names = Vec::new();
    for process in processes {
        let open = fs::read_dir(format!("/proc/{process}/fd"));
        for entry in open.into_iter().flatten().flatten() {
            let link = fs::read_link(entry.path()).unwrap_or_default();
            let inode = link
                .to_str()
                .and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
            let found = inode.and_then(|inode| inode.parse::<u64>().ok());
            let own = sockets.iter().filter(|(inode, _)| found == Some(*inode));
            names.extend(own.filter_map(|(_, name)| absolute(*process, name)));
        }
    }
    names
}

/// A name from where the process is now.
fn absolute(pid: i32, name: &str) -> Option<String> {
    if name.starts_with('/') {
        return Some(name.to_owned());
    }
    let directory = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    directory.join(name).to_str().map(str::to_owned)
}

/// `Num RefCount Protocol Flags Type St Inode Path`, the numbers but for the inode in hexadecimal digits: inode and name of one
/// that others reach by its name, which is none of the abstract ones.
fn socket(line: &str) -> Option<(u64, &str)> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let flags = u32::from_str_radix(fields.next()?, 16).ok()?;
    let kind = u32::from_str_radix(fields.next()?, 16).ok()?;
    let inode = fields.nth(1)?;
    let (_, name) = line.split_once(&format!(" {inode} "))?;
    let is_reached = flags & LISTENS != 0 || kind == DATAGRAM;
    let is_file = !name.is_empty() && !name.starts_with('@');
    (is_reached && is_file).then_some((inode.parse().ok()?, name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn sockets_with_names_of_this_container_are_found_once() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name).to_str().unwrap().to_owned();
        let listener = UnixListener::bind(path("a listener")).unwrap();
        let _datagram = UnixDatagram::bind(path("datagram")).unwrap();
        let _nameless = UnixDatagram::unbound().unwrap();
        let own = std::process::id().cast_signed();
        let mut sockets = Sockets::default();
        let mut found = owned(&[own], &sockets.new_ones(own));
        // Other tests of this process may have some, too.
        found.retain(|name| name.starts_with(&path("")));
        found.sort();
        assert_eq!(found, [path("a listener"), path("datagram")]);
        drop(listener);
        let later = sockets.new_ones(own);
        assert!(
            later.iter().all(|(_, name)| *name != path("datagram")),
            "{later:?}"
        );
    }

    #[test]
    fn lines_of_the_table_are_read() {
        let line = |flags: &str, kind: &str, name: &str| {
            format!("0000000000000000: 00000002 00000000 {flags} {kind} 01 4711{name}")
        };
        let listens = line("00010000", "0001", " run/a b");
        assert_eq!(socket(&listens), Some((4711, "run/a b")));
        for other in [
            line("00010000", "0001", " @abstract"),
            line("00000000", "0001", " /run/accepted"),
            line("00010000", "0001", ""),
            String::new(),
        ] {
            assert_eq!(socket(&other), None, "{other}");
        }
        let own = std::process::id().cast_signed();
        assert!(absolute(own, "a").unwrap().ends_with("/a"));
        assert_eq!(absolute(own, "/run/a").as_deref(), Some("/run/a"));
    }
}
