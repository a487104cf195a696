//! Ports of the node that lead to pods: kept free by sockets, translated by the nftables table.
//!
//! A port leads to the pod for as long as the pod has its link. Before that, a socket is bound to it: a port on which
//! the node itself serves something is refused rather than taken away from it. Nobody gets it before the pod's lease is
//! released: policy takes what comes there for the pod's until it has been told otherwise.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{Mutex, PoisonError},
};

use api::host_ports::{HostPort, Transport};
use nix::{
    errno::Errno,
    sys::socket::{
        self, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, setsockopt,
        sockopt::Ipv6V6Only,
    },
};

use crate::{LINK_PREFIX, leases::Lease};

/// A port of the node cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "port {port} of the node cannot lead to the pod: choose another hostPort or hostIP, or end what uses it"
)]
pub struct HostPortError {
    /// Which.
    port: HostPort,
    /// What the kernel said to the socket that was to keep it.
    #[source]
    source: io::Error,
}

/// The sockets that keep ports free, by pod.
#[derive(Debug, Default)]
pub(crate) struct Reserved {
    kept: Mutex<BTreeMap<String, Kept>>,
}

#[derive(Debug)]
struct Kept {
    ports: Vec<HostPort>,
    _sockets: Vec<OwnedFd>,
}

impl Reserved {
    /// Keeps `ports` for the pod, in place of those that it had.
    pub(crate) fn keep(&self, pod_uid: &str, ports: &[HostPort]) -> Result<(), HostPortError> {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(pod_uid).is_some_and(|kept| kept.ports == ports) {
            return Ok(());
        }
        all.remove(pod_uid);
        let sockets = ports.iter().map(|port| {
            reserve(port).map_err(|errno| HostPortError {
                port: port.clone(),
                source: errno.into(),
            })
        });
        let sockets = sockets.collect::<Result<Vec<_>, _>>()?;
        let kept = Kept {
            ports: ports.to_vec(),
            _sockets: sockets,
        };
        all.insert(pod_uid.to_owned(), kept);
        Ok(())
    }

    pub(crate) fn release(&self, pod_uid: &str) {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(pod_uid);
    }
}

/// Binds a socket to the port. It does not listen, so whoever gets past the translation is refused.
fn reserve(port: &HostPort) -> Result<OwnedFd, Errno> {
    match port.host_ip {
        Some(address) => bind(port, address),
        // One socket for both families, where there are both.
        None => match bind(port, Ipv6Addr::UNSPECIFIED.into()) {
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => bind(port, Ipv4Addr::UNSPECIFIED.into()),
            bound => bound,
        },
    }
}

fn bind(port: &HostPort, address: IpAddr) -> Result<OwnedFd, Errno> {
    let (kind, protocol) = match port.protocol {
        Transport::Tcp => (SockType::Stream, Some(SockProtocol::Tcp)),
        Transport::Udp => (SockType::Datagram, Some(SockProtocol::Udp)),
        // A kernel without SCTP has nobody who could use the port either, so a socket of it is not demanded.
        Transport::Sctp => (SockType::Stream, None),
    };
    let family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
    if port.protocol == Transport::Sctp {
        return Ok(socket);
    }
    if address.is_ipv6() {
        setsockopt(&socket, Ipv6V6Only, &!address.is_unspecified())?;
    }
    let address = SockaddrStorage::from(SocketAddr::new(address, port.port));
    socket::bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

/// The rules of two chains: `published` translates, `tracked` lets the kernel track what it must translate back, which it
/// does not do between pods otherwise.
pub(crate) fn rules<'a>(leases: impl IntoIterator<Item = &'a Lease>) -> (Vec<String>, Vec<String>) {
    let (mut published, mut tracked) = (Vec::new(), Vec::new());
    for lease in leases {
        for port in &lease.host_ports {
            let HostPort {
                protocol,
                host_ip,
                port,
                container_port,
            } = port;
            let protocol = protocol.to_string().to_ascii_lowercase();
            let of = |family: &str| match host_ip {
                Some(address) => format!("{family} daddr {address} "),
                None => String::new(),
            };
            let mut ends = Vec::new();
            if host_ip.is_none_or(|address| address.is_ipv4()) {
                ends.push(("ip", IpAddr::V4(lease.address), lease.address.to_string()));
            }
            if let Some(address6) = lease.address6
                && host_ip.is_none_or(|address| address.is_ipv6())
            {
                ends.push(("ip6", IpAddr::V6(address6), format!("[{address6}]")));
            }
            for (family, pod, shown) in ends {
                published.push(format!(
                    "{}{protocol} dport {port} counter dnat {family} to {shown}:{container_port}",
                    of(family)
                ));
                for (end, side) in [("saddr", "sport"), ("daddr", "dport")] {
                    tracked.push(format!(
                        "iifname \"{LINK_PREFIX}*\" {family} {end} {pod} {protocol} {side} {container_port} accept"
                    ));
                }
            }
        }
    }
    (published, tracked)
}

/// Both chains anew, as one transaction.
pub(crate) fn replacement(published: &[String], tracked: &[String]) -> String {
    let mut text = String::new();
    for (chain, rules) in [("published", published), ("tracked", tracked)] {
        let _infallible = writeln!(text, "flush chain inet palisade {chain}");
        for rule in rules {
            let _infallible = writeln!(text, "add rule inet palisade {chain} {rule}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: Option<&str>, port: u16) -> HostPort {
        HostPort {
            protocol: Transport::Tcp,
            host_ip: host_ip.map(|address| address.parse().unwrap()),
            port,
            container_port: 80,
        }
    }

    #[test]
    fn each_family_gets_its_own_rules() {
        let lease = |host_ports| Lease {
            pod_uid: "u".to_owned(),
            address: Ipv4Addr::new(10, 88, 0, 2),
            address6: Some("fd00::2".parse().unwrap()),
            endpoint: 1,
            link: "pal0".to_owned(),
            mac: [0; 6],
            host_ports,
        };
        let (published, tracked) = rules([&lease(vec![port(None, 8080)]), &lease(vec![])]);
        assert_eq!(
            published,
            [
                "tcp dport 8080 counter dnat ip to 10.88.0.2:80",
                "tcp dport 8080 counter dnat ip6 to [fd00::2]:80"
            ]
        );
        assert_eq!(tracked.len(), 4);
        let (published, tracked) = rules([&lease(vec![
            port(Some("192.0.2.1"), 1),
            port(Some("2001:db8::1"), 2),
        ])]);
        assert_eq!(
            published,
            [
                "ip daddr 192.0.2.1 tcp dport 1 counter dnat ip to 10.88.0.2:80",
                "ip6 daddr 2001:db8::1 tcp dport 2 counter dnat ip6 to [fd00::2]:80"
            ]
        );
        assert_eq!(
            replacement(&published[..1], &tracked[..1]),
            "flush chain inet palisade published\n\
             add rule inet palisade published ip daddr 192.0.2.1 tcp dport 1 counter dnat ip to 10.88.0.2:80\n\
             flush chain inet palisade tracked\n\
             add rule inet palisade tracked iifname \"pal*\" ip saddr 10.88.0.2 tcp sport 80 accept\n"
        );
    }

    #[test]
    fn a_port_that_somebody_uses_is_refused_and_a_kept_one_is_nobodys() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = listener.local_addr().unwrap().port();
        let reserved = Reserved::default();
        for taken in [port(None, number), port(Some("127.0.0.1"), number)] {
            let refused = reserved.keep("u", &[taken]).unwrap_err();
            assert!(
                refused.to_string().contains(&format!("port {number}/TCP")),
                "{refused}"
            );
            assert_eq!(refused.source.kind(), io::ErrorKind::AddrInUse);
        }
        let elsewhere = reserved.keep("u", &[port(Some("192.0.2.77"), number)]);
        assert_eq!(
            elsewhere.unwrap_err().source.kind(),
            io::ErrorKind::AddrNotAvailable
        );
        drop(listener);
        let wanted = port(Some("127.0.0.1"), number);
        reserved.keep("u", std::slice::from_ref(&wanted)).unwrap();
        // The same pod may ask again, another one may not, and nobody answers.
        reserved.keep("u", std::slice::from_ref(&wanted)).unwrap();
        assert!(reserved.keep("v", std::slice::from_ref(&wanted)).is_err());
        assert!(std::net::TcpStream::connect(("127.0.0.1", number)).is_err());
        reserved.release("u");
        reserved.keep("v", &[wanted]).unwrap();
    }
}
