//! Ports of a node that lead to a pod: what a pod asks for, and when two wishes exclude each other.

use std::{fmt, net::IpAddr};

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};

/// A port of the node that leads to a port of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPort {
    /// Protocol above IP.
    pub protocol: Transport,
    /// The one address of the node that has it; absent means all of them.
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub port: u16,
    /// The pod's port.
    pub container_port: u16,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl HostPort {
    /// Whether a node cannot have both. All addresses exclude each of them, of either family, as in Kubernetes' scheduler.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let same_address = match (self.host_ip, other.host_ip) {
            (Some(own), Some(other)) => own == other,
            _ => true,
        };
        self.protocol == other.protocol && self.port == other.port && same_address
    }
}

impl Transport {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)?;
        match self.host_ip {
            Some(address) => write!(f, " of {address}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// The ports of the node that `pod` asks for: those of its main containers and sidecars. What admission would not let
/// through is left out.
pub fn of(pod: &Pod) -> Vec<HostPort> {
    let spec = pod.spec.iter();
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let containers = spec.flat_map(|spec| {
        let inits = spec.init_containers.iter().flatten();
        spec.containers.iter().chain(inits.filter(sidecar))
    });
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let wish = |port: &k8s_openapi::api::core::v1::ContainerPort| {
        let number = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
        let address = port.host_ip.as_deref().filter(|address| !address.is_empty());
        let address = address.map(str::parse::<IpAddr>).transpose().ok()?;
        Some(HostPort {
            protocol: match port.protocol.as_deref() {
                None | Some("" | "TCP") => Transport::Tcp,
                Some("UDP") => Transport::Udp,
                Some("SCTP") => Transport::Sctp,
                Some(_) => return None,
            },
            host_ip: address.filter(|address| !address.is_unspecified()),
            port: number(port.host_port?)?,
            container_port: number(port.container_port)?,
        })
    };
    ports.filter_map(wish).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wishes_come_from_what_runs_as_long_as_the_pod() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [
                {"name": "i", "ports": [{"containerPort": 1, "hostPort": 1}]},
                {"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 53, "hostPort": 5353, "protocol": "UDP"}]}],
            "containers": [{"name": "c", "ports": [
                {"containerPort": 80},
                {"containerPort": 80, "hostPort": 0},
                {"containerPort": 80, "hostPort": 8080, "hostIP": "0.0.0.0"},
                {"containerPort": 443, "hostPort": 443, "hostIP": "2001:db8::1", "protocol": "TCP"}]}],
        }}))
        .unwrap();
        let shown: Vec<String> = of(&pod).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["8080/TCP", "443/TCP of 2001:db8::1", "5353/UDP"]);
    }

    #[test]
    fn an_address_and_all_addresses_exclude_each_other() {
        let port = |protocol, host_ip: Option<&str>, port| HostPort {
            protocol,
            host_ip: host_ip.map(|address| address.parse().unwrap()),
            port,
            container_port: 80,
        };
        let any = port(Transport::Tcp, None, 80);
        let one = port(Transport::Tcp, Some("192.0.2.1"), 80);
        let other = port(Transport::Tcp, Some("192.0.2.2"), 80);
        for (a, b, conflict) in [
            (&any, &any, true),
            (&any, &one, true),
            (&one, &one, true),
            (&one, &other, false),
            (&any, &port(Transport::Udp, None, 80), false),
            (&any, &port(Transport::Tcp, None, 81), false),
        ] {
            assert_eq!(
                (a.conflicts_with(b), b.conflicts_with(a)),
                (conflict, conflict),
                "{a}, {b}"
            );
        }
    }
}
