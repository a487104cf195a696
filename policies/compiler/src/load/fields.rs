//! What pods, nodes, services and slices say that nobody could use. In a running cluster the API server has seen to it;
//! in a file, an address or port that was passed over would make a rule match less than it says, and a rule that denies
//! would be gone.

use std::net::IpAddr;

use api::calico;
use k8s_openapi::{
    api::{
        core::v1::{Container, Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{field::FieldError, kubernetes::protocol_number, load::metadata::labels};

pub(super) fn of_pod(pod: &Pod) -> Vec<FieldError> {
    let Some(spec) = &pod.spec else {
        return vec![FieldError {
            field: "spec".to_owned(),
            problem: "is missing".to_owned(),
            fix: "give the pod's containers".to_owned(),
        }];
    };
    let mut errors = Vec::new();
    let lists = [
        ("containers", Some(&spec.containers)),
        ("initContainers", spec.init_containers.as_ref()),
    ];
    for (list, containers) in lists {
        for (i, container) in containers.into_iter().flatten().enumerate() {
            container_ports(&format!("spec.{list}[{i}]"), container, &mut errors);
        }
    }
    if let Some(status) = &pod.status {
        // One without an address says so by none.
        let own = status.pod_ip.as_deref().filter(|address| !address.is_empty());
        if let Some(text) = own {
            address("status.podIP", text, &mut errors);
        }
        for (i, own) in status.pod_ips.iter().flatten().enumerate() {
            address(&format!("status.podIPs[{i}].ip"), &own.ip, &mut errors);
        }
    }
    errors
}

pub(super) fn of_node(node: &Node) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    for (i, own) in addresses.enumerate() {
        // The other types are names.
        if matches!(own.type_.as_str(), "InternalIP" | "ExternalIP") {
            address(
                &format!("status.addresses[{i}].address"),
                &own.address,
                &mut errors,
            );
        }
    }
    errors
}

pub(super) fn of_service(service: &Service) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    labels("spec.selector", selector, &mut errors);
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    for (i, own) in ports.enumerate() {
        let field = format!("spec.ports[{i}]");
        protocol(&field, own.protocol.as_deref(), &mut errors);
        port(&format!("{field}.port"), own.port, &mut errors);
        if let Some(IntOrString::Int(target)) = own.target_port {
            port(&format!("{field}.targetPort"), target, &mut errors);
        }
    }
    errors
}

pub(super) fn of_profile(profile: &calico::Profile) -> Vec<FieldError> {
    let mut errors = Vec::new();
    labels(
        "spec.labelsToApply",
        Some(&profile.spec.labels_to_apply),
        &mut errors,
    );
    errors
}

/// Of a slice of addresses, not of names.
pub(super) fn of_slice(slice: &EndpointSlice) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, own) in slice.ports.iter().flatten().enumerate() {
        let field = format!("ports[{i}]");
        protocol(&field, own.protocol.as_deref(), &mut errors);
        if let Some(number) = own.port {
            port(&format!("{field}.port"), number, &mut errors);
        }
    }
    for (i, endpoint) in slice.endpoints.iter().enumerate() {
        for (j, text) in endpoint.addresses.iter().enumerate() {
            address(&format!("endpoints[{i}].addresses[{j}]"), text, &mut errors);
        }
    }
    errors
}

fn container_ports(field: &str, container: &Container, errors: &mut Vec<FieldError>) {
    for (i, own) in container.ports.iter().flatten().enumerate() {
        let field = format!("{field}.ports[{i}]");
        protocol(&field, own.protocol.as_deref(), errors);
        port(&format!("{field}.containerPort"), own.container_port, errors);
    }
}

fn address(field: &str, text: &str, errors: &mut Vec<FieldError>) {
    if text.parse::<IpAddr>().is_err() {
        errors.push(FieldError {
            field: field.to_owned(),
            problem: format!("{text:?} is no IP address"),
            fix: "write one, without a prefix length or leading zeros".to_owned(),
        });
    }
}

fn port(field: &str, number: i32, errors: &mut Vec<FieldError>) {
    if !(1..=i32::from(u16::MAX)).contains(&number) {
        errors.push(FieldError {
            field: field.to_owned(),
            problem: format!("{number} is no port"),
            fix: "write a number from 1 to 65535".to_owned(),
        });
    }
}

fn protocol(port: &str, name: Option<&str>, errors: &mut Vec<FieldError>) {
    if let Some(name) = name.filter(|name| protocol_number(name).is_none()) {
        errors.push(FieldError {
            field: format!("{port}.protocol"),
            problem: format!("{name:?} is no protocol"),
            fix: "write TCP, UDP or SCTP".to_owned(),
        });
    }
}
