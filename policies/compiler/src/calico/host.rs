//! HostEndpoint, and the settings that decide about host traffic.

use std::net::IpAddr;

use api::calico;
use policies_ir::{
    cluster::{HostInterface, Member, primary},
    policy::{
        EndMatch, EndpointToHost, Failsafe, FailsafeMatch, NamedPort, PortMatch, SCTP, ServiceMatch, TCP,
        UDP, Workload, WorkloadKind,
    },
};

use crate::{
    calico::rules::{is_port_name, protocol_of},
    field::{Errors, Path, read_net, read_port_number, wrong},
};

/// Ports that stay open to a node when the cluster does not say which: Calico's list.
const INBOUND: [(u8, u16); 8] = [
    (TCP, 22),
    (UDP, 68),
    (TCP, 179),
    (TCP, 2379),
    (TCP, 2380),
    (TCP, 5473),
    (TCP, 6443),
    (TCP, 6666),
];
/// Also open, to and from a node.
const KUBE: (u8, u16) = (TCP, 6667);
/// Ports that stay open from a node when the cluster does not say which: Calico's list.
const OUTBOUND: [(u8, u16); 8] = [
    (UDP, 53),
    (UDP, 67),
    (TCP, 179),
    (TCP, 2379),
    (TCP, 2380),
    (TCP, 5473),
    (TCP, 6443),
    (TCP, 6666),
];

/// A host endpoint; selectors find it at its expected addresses.
pub(crate) fn read_host_endpoint(object: &calico::HostEndpoint, errors: &mut Errors) -> Member {
    let spec = &object.spec;
    if spec.node.is_empty() {
        let fix = "name the node that the interface is on";
        wrong(errors, &Path::SPEC.field("node"), "is empty", fix);
    }
    let interface = &spec.interface_name;
    let interface_path = Path::SPEC.field("interfaceName");
    if interface.is_empty() && spec.expected_ips.is_empty() {
        let fix = "give the name of the interface, or addresses in expectedIPs";
        wrong(
            errors,
            &interface_path,
            "neither interfaceName nor expectedIPs is given",
            fix,
        );
    }
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if !interface.is_empty() && interface != "*" && !(interface.len() <= 15 && interface.bytes().all(is_name))
    {
        let fix = "use the interface's name, at most 15 letters, digits, '_', '.' and '-', or * for all";
        let problem = format!("{interface:?} is not the name of an interface");
        wrong(errors, &interface_path, problem, fix);
    }
    let addresses_path = Path::SPEC.field("expectedIPs");
    let mut expected: Vec<IpAddr> = Vec::new();
    for (i, text) in spec.expected_ips.iter().enumerate() {
        match text.parse::<IpAddr>() {
            Ok(address) => expected.push(address.to_canonical()),
            Err(_) => {
                let problem = format!("{text:?} is not an IP address");
                wrong(
                    errors,
                    &addresses_path.index(i),
                    problem,
                    "write it as 192.0.2.7 or 2001:db8::7",
                );
            }
        }
    }
    let ports_path = Path::SPEC.field("ports");
    let mut named_ports = Vec::new();
    for (i, port) in spec.ports.iter().enumerate() {
        let path = ports_path.index(i);
        let protocol = protocol_of(&port.protocol).filter(|protocol| [TCP, UDP, SCTP].contains(protocol));
        if protocol.is_none() {
            let problem = "the protocol has no ports";
            wrong(errors, &path.field("protocol"), problem, "use TCP, UDP or SCTP");
        }
        if !is_port_name(&port.name) {
            let problem = format!("{:?} is not the name of a port", port.name);
            let fix = "use at most 128 letters, digits, '_', '.' and '-'";
            wrong(errors, &path.field("name"), problem, fix);
        }
        let number = read_port_number(port.port, &path.field("port"), errors);
        if let (Some(protocol), Some(port_number)) = (protocol, number) {
            named_ports.push(NamedPort {
                name: port.name.clone(),
                protocol,
                port: port_number,
            });
        }
    }
    Member {
        workload: Workload {
            kind: WorkloadKind::HostEndpoint,
            name: object.metadata.name.clone().unwrap_or_default(),
            labels: object.metadata.labels.clone().unwrap_or_default(),
            profiles: spec.profiles.clone(),
            named_ports,
            ..Workload::default()
        },
        primary: primary(expected.iter().copied()),
        addresses: expected.into_iter().collect(),
        node: spec.node.clone(),
        interface: match interface.as_str() {
            "*" => HostInterface::Every,
            "" => HostInterface::ByAddress,
            _ => HostInterface::Named,
        },
        ..Member::default()
    }
}

/// What the settings say about host traffic; what they do not say, or not clearly, is Calico's default.
pub(crate) fn read_configuration(
    spec: &calico::FelixConfigurationSpec,
    errors: &mut Errors,
) -> (EndpointToHost, Failsafe) {
    let to_host = match spec.default_endpoint_to_host_action.as_deref() {
        None | Some("Drop") => EndpointToHost::Drop,
        Some("Return") => EndpointToHost::Return,
        Some("Accept") => EndpointToHost::Accept,
        Some(other) => {
            let path = Path::SPEC.field("defaultEndpointToHostAction");
            let problem = format!("unknown action {other:?}");
            wrong(errors, &path, problem, "use Drop, Return or Accept");
            EndpointToHost::Drop
        }
    };
    let mut ports = |given: &Option<Vec<calico::ProtoPort>>, field, default: &[(u8, u16)]| match given {
        None => default
            .iter()
            .chain([&KUBE])
            .map(|(protocol, port)| open(*protocol, *port, EndMatch::default()))
            .collect(),
        Some(ports) => {
            let path = Path::SPEC.field(field);
            let ports = ports.iter().enumerate();
            ports
                .filter_map(|(i, port)| read_proto_port(port, &path.index(i), errors))
                .collect()
        }
    };
    let failsafe = Failsafe {
        inbound: ports(
            &spec.failsafe_inbound_host_ports,
            "failsafeInboundHostPorts",
            &INBOUND,
        ),
        outbound: ports(
            &spec.failsafe_outbound_host_ports,
            "failsafeOutboundHostPorts",
            &OUTBOUND,
        ),
    };
    (to_host, failsafe)
}

fn read_proto_port(port: &calico::ProtoPort, path: &Path<'_>, errors: &mut Errors) -> Option<FailsafeMatch> {
    let name = port.protocol.as_deref().unwrap_or("TCP");
    let protocol = match name.to_ascii_uppercase().as_str() {
        "TCP" => Some(TCP),
        "UDP" => Some(UDP),
        "SCTP" => Some(SCTP),
        _ => {
            let problem = format!("unknown protocol {name:?}");
            wrong(errors, &path.field("protocol"), problem, "use TCP, UDP or SCTP");
            None
        }
    };
    let number = read_port_number(port.port, &path.field("port"), errors);
    let nets = match &port.net {
        None => Some(Vec::new()),
        Some(text) => read_net(text, &path.field("net"), errors).map(|net| vec![net]),
    };
    let peer = EndMatch {
        nets: nets?,
        ..EndMatch::default()
    };
    Some(open(protocol?, number?, peer))
}

fn open(protocol: u8, port: u16, peer: EndMatch) -> FailsafeMatch {
    let service = ServiceMatch {
        protocol: Some(protocol),
        ports: vec![PortMatch::Range(port, port)],
        ..ServiceMatch::default()
    };
    FailsafeMatch::new(peer, service)
}
