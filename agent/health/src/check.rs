//! What a probe or a hook asks, read from the pod's object. Pure.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// A program in the container.
    Program(Vec<String>),
    /// A request.
    Http(HttpGet),
    /// Whether a connection is accepted.
    Tcp(SocketAddr),
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// Where.
        address: SocketAddr,
        /// The service that is asked about; empty for the server as a whole.
        service: String,
    },
}

/// A GET request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpGet {
    /// Where.
    pub address: SocketAddr,
    /// Whether over TLS; the certificate is not checked.
    pub tls: bool,
    /// Path and query, with the leading slash.
    pub path: String,
    /// Headers to send, `Host` among them.
    pub headers: Vec<(String, String)>,
}

/// Why there is nothing to ask.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// None of the known kinds.
    #[error("the probe has none of exec, httpGet, tcpSocket and grpc")]
    Nothing,
    /// A name that no port of the container has, or a number that is none.
    #[error("couldn't find port: {0:?}")]
    Port(String),
    /// Not an address.
    #[error("host {0:?} is not an IP address")]
    Host(String),
}

impl Check {
    /// What `probe` of `container` asks of the pod at `pod`.
    pub fn of(probe: &Probe, container: &Container, pod: IpAddr) -> Result<Self, CheckError> {
        if let Some(exec) = &probe.exec {
            return Ok(Self::Program(exec.command.clone().unwrap_or_default()));
        }
        if let Some(get) = &probe.http_get {
            return HttpGet::of(get, container, pod).map(Self::Http);
        }
        if let Some(socket) = &probe.tcp_socket {
            return address(socket.host.as_deref(), &socket.port, container, pod).map(Self::Tcp);
        }
        if let Some(grpc) = &probe.grpc {
            return Ok(Self::Grpc {
                address: address(None, &IntOrString::Int(grpc.port), container, pod)?,
                service: grpc.service.clone().unwrap_or_default(),
            });
        }
        Err(CheckError::Nothing)
    }
}

impl HttpGet {
    /// The request that `get` describes.
    pub fn of(get: &HTTPGetAction, container: &Container, pod: IpAddr) -> Result<Self, CheckError> {
        let path = get.path.as_deref().unwrap_or_default();
        let slash = if path.starts_with('/') { "" } else { "/" };
        let headers = get.http_headers.iter().flatten();
        Ok(Self {
            address: address(get.host.as_deref(), &get.port, container, pod)?,
            tls: get.scheme.as_deref() == Some("HTTPS"),
            path: format!("{slash}{path}"),
            headers: headers
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        })
    }

    /// As people write it.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.address, self.path)
    }
}

fn address(
    host: Option<&str>,
    port: &IntOrString,
    container: &Container,
    pod: IpAddr,
) -> Result<SocketAddr, CheckError> {
    let host = match host.filter(|host| !host.is_empty()) {
        Some(host) => host.parse().map_err(|_name| CheckError::Host(host.to_owned()))?,
        None => pod,
    };
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_ref() == Some(name));
            named
                .map(|port| port.container_port)
                .or_else(|| name.parse().ok())
        }
    };
    let number = number.and_then(|number| u16::try_from(number).ok());
    let number = number.filter(|number| *number > 0).ok_or_else(|| match port {
        IntOrString::Int(number) => CheckError::Port(number.to_string()),
        IntOrString::String(name) => CheckError::Port(name.clone()),
    })?;
    Ok(SocketAddr::new(host, number))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ContainerPort, GRPCAction, HTTPHeader, TCPSocketAction};

    use super::*;

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 2));

    fn container() -> Container {
        Container {
            ports: Some(vec![ContainerPort {
                name: Some("web".to_owned()),
                container_port: 8080,
                ..ContainerPort::default()
            }]),
            ..Container::default()
        }
    }

    fn get(port: IntOrString, host: Option<&str>) -> Result<String, CheckError> {
        let get = HTTPGetAction {
            host: host.map(str::to_owned),
            http_headers: Some(vec![HTTPHeader {
                name: "A".to_owned(),
                value: "b".to_owned(),
            }]),
            path: Some("health?x=1".to_owned()),
            port,
            scheme: Some("HTTPS".to_owned()),
        };
        HttpGet::of(&get, &container(), POD).map(|get| get.url())
    }

    #[test]
    fn ports_have_names_or_numbers_and_hosts_are_addresses() {
        let named = |name: &str| IntOrString::String(name.to_owned());
        let url = |text: &str| Ok(text.to_owned());
        assert_eq!(get(named("web"), None), url("https://10.1.0.2:8080/health?x=1"));
        assert_eq!(get(named("81"), None), url("https://10.1.0.2:81/health?x=1"));
        assert_eq!(
            get(IntOrString::Int(82), Some("::1")),
            url("https://[::1]:82/health?x=1")
        );
        assert_eq!(get(named("x"), None), Err(CheckError::Port("x".to_owned())));
        assert_eq!(
            get(IntOrString::Int(0), None),
            Err(CheckError::Port("0".to_owned()))
        );
        assert_eq!(
            get(IntOrString::Int(1), Some("example.org")),
            Err(CheckError::Host("example.org".to_owned()))
        );
    }

    #[test]
    fn every_kind_is_read() {
        let of = |probe: &Probe| Check::of(probe, &container(), POD);
        let tcp = Probe {
            tcp_socket: Some(TCPSocketAction {
                host: None,
                port: IntOrString::Int(5),
            }),
            ..Probe::default()
        };
        assert_eq!(of(&tcp), Ok(Check::Tcp(SocketAddr::new(POD, 5))));
        let grpc = Probe {
            grpc: Some(GRPCAction {
                port: 6,
                service: None,
            }),
            ..Probe::default()
        };
        let expected = Check::Grpc {
            address: SocketAddr::new(POD, 6),
            service: String::new(),
        };
        assert_eq!(of(&grpc), Ok(expected));
        assert_eq!(of(&Probe::default()), Err(CheckError::Nothing));
    }
}
