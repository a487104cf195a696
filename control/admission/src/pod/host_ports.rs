//! Ports of the node that a pod asks for.

use std::net::IpAddr;

use api::host_ports::{self, HostPort};
use control_wire::Cause;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::Problems;

/// Checks the ports of one container; `taken` are those of the containers before it.
pub(super) fn check(
    container: &Container,
    is_main: bool,
    field: &str,
    taken: &mut Vec<HostPort>,
    problems: &mut Problems,
) {
    let lasts = is_main || container.restart_policy.is_some();
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let field = format!("{field}.ports[{index}]");
        let address = port.host_ip.as_deref().unwrap_or_default();
        problems.require(
            address.is_empty() || address.parse::<IpAddr>().is_ok(),
            &format!("{field}.hostIP"),
            address,
            "must be an IPv4 or IPv6 address",
        );
        let Some(number) = port.host_port.filter(|number| *number != 0) else {
            continue;
        };
        let field = format!("{field}.hostPort");
        let why = "must be between 1 and 65535, inclusive";
        problems.require((1..=65_535).contains(&number), &field, number, why);
        problems.require(
            lasts,
            &field,
            number,
            "an init container that runs to its end has no ports of the node; they are the pod's",
        );
        let alone = Container {
            ports: Some(vec![port.clone()]),
            ..Container::default()
        };
        let pod = Pod {
            spec: Some(PodSpec {
                containers: vec![alone],
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        for wish in host_ports::of(&pod) {
            if taken.iter().any(|other| other.conflicts_with(&wish)) {
                problems.push(Cause::duplicate(&field, wish.to_string()));
            }
            taken.push(wish);
        }
    }
}
