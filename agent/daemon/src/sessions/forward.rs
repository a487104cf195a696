//! Connections to the loopback of a pod.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use agent_runtime::Runtime;
use api::session::Channel;
use tokio::net::{TcpSocket, TcpStream};

use super::{Ending, Output, Streams};
use crate::policy::chain;

/// A server that does not accept by then is not there.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Forwarded connections of one pod at a time: each has a socket in the pod and one here.
pub(super) const MAX_OF_A_POD: usize = 32;

/// How many connections each pod has, by its UID.
#[derive(Clone, Debug, Default)]
pub(super) struct Forwards {
    counts: Arc<Mutex<HashMap<String, usize>>>,
}

/// One connection's place.
#[derive(Debug)]
pub(super) struct Place {
    forwards: Forwards,
    uid: String,
}

impl Forwards {
    /// None if the pod has all that it may have.
    pub(super) fn take(&self, uid: &str) -> Option<Place> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid.to_owned()).or_default();
        if *count >= MAX_OF_A_POD {
            return None;
        }
        *count += 1;
        Some(Place {
            forwards: self.clone(),
            uid: uid.to_owned(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self
            .forwards
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

/// Connects to `port`, at the IPv4 loopback first and then at that of IPv6. The sockets are made by the pod's shim in the
/// pod's network namespace and stay there; this process never enters it.
pub(super) async fn connect(runtime: &Runtime, uid: &str, port: u16) -> Result<Streams, String> {
    let mut refused = String::new();
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let socket = runtime
            .pod_socket(uid, address.is_ipv6())
            .await
            .map_err(|error| chain(&error))?;
        let socket = TcpSocket::from_std_stream(StdStream::from(socket));
        match connect_to(socket, SocketAddr::new(address, port)).await {
            Ok(stream) => return Ok(streams(stream)),
            Err(error) if refused.is_empty() => {
                refused = format!("cannot connect to port {port} inside the pod: {error}");
            }
            // What the usual address said is the better message.
            Err(_) => {}
        }
    }
    Err(refused)
}

async fn connect_to(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_WITHIN, socket.connect(address))
        .await
        .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn streams(stream: TcpStream) -> Streams {
    let (read, write) = stream.into_split();
    Streams {
        input: Some(Box::new(write)),
        outputs: vec![(
            Channel::Stdout,
            Output {
                stream: Box::new(read),
                rest: None,
            },
        )],
        terminal: None,
        end: Ending::Output,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_a_bounded_number_of_forwarded_connections() {
        let forwards = Forwards::default();
        let mut places: Vec<_> = (0..MAX_OF_A_POD).filter_map(|_| forwards.take("u")).collect();
        assert_eq!(places.len(), MAX_OF_A_POD);
        assert!(forwards.take("u").is_none());
        assert!(forwards.take("other").is_some(), "pods do not share");
        places.pop();
        assert!(forwards.take("u").is_some(), "what ends makes room");
        places.clear();
        assert!(forwards.counts.lock().unwrap().is_empty());
    }
}
