//! Sockets inside a pod's network namespace.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sched::CloneFlags;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::oneshot,
};

use crate::Outcome;

/// Whether a connection is accepted.
pub(crate) async fn probe(address: SocketAddr, netns: &Path, timeout: Duration) -> Outcome {
    match tokio::time::timeout(timeout, connect(netns, address)).await {
        Ok(Ok(_accepted)) => Outcome::Success,
        Ok(Err(error)) => Outcome::Failure(format!("dial tcp {address}: {}", reason(&error))),
        Err(_elapsed) => Outcome::Failure(format!("dial tcp {address}: i/o timeout")),
    }
}

/// Connects from within the namespace at `netns`.
pub(crate) async fn connect(netns: &Path, address: SocketAddr) -> io::Result<TcpStream> {
    let (sender, receiver) = oneshot::channel();
    let netns = netns.to_owned();
    // A thread of its own, which ends at once: one of the runtime's would stay in the namespace.
    std::thread::Builder::new()
        .name("probe-socket".to_owned())
        .spawn(move || drop(sender.send(make(&netns, address))))?;
    let socket = receiver
        .await
        .map_err(|_gone| io::Error::other("the thread died"))??;
    socket.connect(address).await
}

/// A socket keeps the namespace that it was made in, whoever uses it.
fn make(netns: &PathBuf, address: SocketAddr) -> io::Result<TcpSocket> {
    nix::sched::setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
    match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
}

/// A failed connection in the words of Kubernetes' events, which people search for.
pub(crate) fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "read: connection reset by peer".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        _ => error.to_string(),
    }
}
