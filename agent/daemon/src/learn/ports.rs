//! Ports of a container's TCP sockets, from the tables of its network namespace. Those are looked at now and then, which
//! is enough for whoever listens; a connection that was made stays there for a minute after its end, unless it was broken
//! off.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufRead as _, BufReader},
};

use api::learned::{LearnedPorts, Lost};

/// Lines of one table that are read.
const MAX_SOCKETS: usize = 1 << 16;
/// The kernel's numbers of states, from `net/tcp_states.h`.
const LISTEN: u8 = 10;
const CLOSED: u8 = 7;

/// The watch of one pod's sockets: containers of a pod share its network.
#[derive(Debug, Default)]
pub(super) struct Ports {
    pid: Option<i32>,
    seen: LearnedPorts,
}

impl Ports {
    pub(super) fn follow(&mut self, pid: i32) {
        self.pid = Some(pid);
    }

    pub(super) fn look(&mut self, lost: &mut Lost) {
        let Some(pid) = self.pid else { return };
        for table in ["tcp", "tcp6"] {
            match read(&format!("/proc/{pid}/net/{table}")) {
                Ok(sockets) => self.take(&sockets),
                // The run is over; another one may follow.
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.pid = None,
                Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => self.pid = None,
                Err(_) => lost.sockets += 1,
            }
        }
    }

    pub(super) fn learned(self) -> LearnedPorts {
        self.seen
    }

    fn take(&mut self, sockets: &[Socket]) {
        let listening = sockets.iter().filter(|socket| socket.state == LISTEN);
        self.seen.bind.extend(listening.map(|socket| socket.own));
        let bound: BTreeSet<u16> = self.seen.bind.clone();
        let connected = sockets
            .iter()
            .filter(|socket| socket.state != LISTEN && socket.state != CLOSED && socket.other != 0)
            // The other half, if somebody here was connected to.
            .filter(|socket| !bound.contains(&socket.own));
        self.seen.connect.extend(connected.map(|socket| socket.other));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    own: u16,
    other: u16,
    state: u8,
}

fn read(path: &str) -> io::Result<Vec<Socket>> {
    let lines = BufReader::new(File::open(path)?).lines();
    let mut sockets = Vec::new();
    for line in lines.skip(1).take(MAX_SOCKETS) {
        sockets.extend(socket(&line?));
    }
    Ok(sockets)
}

/// `sl local_address rem_address st ...`, in hexadecimal digits.
fn socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let mut port = || {
        let (_, port) = fields.next()?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    let (own, other) = (port()?, port()?);
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    Some(Socket { own, other, state })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_bound_and_who_connected_to_them_did_not_connect() {
        let line = |own: u16, other: u16, state: u8| {
            format!(
                "   0: 0100007F:{own:04X} 0100007F:{other:04X} {state:02X} 00000000:00000000 00:0 0 0 0 1"
            )
        };
        let sockets = [
            line(8080, 0, LISTEN),
            line(8080, 40_000, 1),
            line(40_000, 8080, 6),
            line(40_001, 5432, 1),
            line(40_002, 0, CLOSED),
        ];
        let sockets: Vec<Socket> = sockets.iter().map(|line| socket(line).unwrap()).collect();
        let mut ports = Ports::default();
        ports.take(&sockets);
        let learned = ports.learned();
        assert_eq!(learned.bind, BTreeSet::from([8080]));
        assert_eq!(learned.connect, BTreeSet::from([8080, 5432]));
        assert_eq!(socket("nonsense"), None);
    }
}
