//! Connections to the loopback of a pod.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream},
    time::Duration,
};

use agent_runtime::Runtime;
use api::session::Channel;
use tokio::net::{TcpSocket, TcpStream};

use super::{Ending, Output, Streams};
use crate::policy::chain;

/// A server that does not accept by then is not there.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

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
