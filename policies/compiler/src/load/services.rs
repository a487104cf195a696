//! What is behind services: their EndpointSlices, or, where there are none, what the controller that writes them
//! would find: the pods that the service selects, with the ports it aims at.

use std::{collections::BTreeMap, net::IpAddr};

use api::selector::Labels;
use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{
    calico::{ServiceEndpoint, Services},
    kubernetes::protocol_number,
    view::PodView,
};

/// Label by which a slice names its service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Services and slices as they were read.
#[derive(Default)]
pub(super) struct Backends {
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
}

impl Backends {
    pub(super) fn add_service(&mut self, service: Service) {
        self.services.push(service);
    }

    pub(super) fn add_slice(&mut self, slice: EndpointSlice) {
        self.slices.push(slice);
    }

    /// The addresses that slices name.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let endpoints = self.slices.iter().flat_map(|slice| &slice.endpoints);
        let addresses = endpoints.flat_map(|endpoint| &endpoint.addresses);
        addresses.filter_map(|address| address.parse::<IpAddr>().ok())
    }

    pub(super) fn resolve(&self, pods: [&[PodView]; 2]) -> Services {
        let mut resolved = Services::new();
        for slice in &self.slices {
            add_slice(&mut resolved, slice);
        }
        for service in self.services.iter().filter(|service| !is_external(service)) {
            let namespace = service.metadata.namespace.clone().unwrap_or_default();
            let name = service.metadata.name.clone().unwrap_or_default();
            resolved.entry((namespace.clone(), name)).or_insert_with(|| {
                let pods = pods.into_iter();
                pods.flat_map(|pods| selected(service, &namespace, pods))
                    .collect()
            });
        }
        resolved
    }
}

/// Adds what a slice says to what is behind its service; a slice of no service says nothing.
pub(crate) fn add_slice(services: &mut Services, slice: &EndpointSlice) {
    let labels = slice.metadata.labels.as_ref();
    let Some(name) = labels.and_then(|labels| labels.get(SERVICE_LABEL)) else {
        return;
    };
    let namespace = slice.metadata.namespace.clone().unwrap_or_default();
    let endpoints = services.entry((namespace, name.clone())).or_default();
    endpoints.extend(slice_endpoints(slice));
}

/// Adds what the slices of `service` will say once its controller has seen it and `pods`.
pub(crate) fn add_service<'p>(
    services: &mut Services,
    service: &Service,
    pods: impl IntoIterator<Item = &'p [PodView]>,
) {
    if is_external(service) {
        return;
    }
    let namespace = service.metadata.namespace.clone().unwrap_or_default();
    let name = service.metadata.name.clone().unwrap_or_default();
    let endpoints = services.entry((namespace.clone(), name)).or_default();
    for pods in pods {
        endpoints.extend(selected(service, &namespace, pods));
    }
}

/// Whether it is another name for a host, with nothing behind it.
fn is_external(service: &Service) -> bool {
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    kind == Some("ExternalName")
}

/// Whether an address is of a family that the service has: as it says, or as the API server would say for it.
fn has_family(service: &Service, address: IpAddr) -> bool {
    let spec = service.spec.as_ref();
    let families = spec
        .and_then(|spec| spec.ip_families.as_deref())
        .unwrap_or_default();
    if !families.is_empty() {
        let family = if address.is_ipv6() { "IPv6" } else { "IPv4" };
        return families.iter().any(|known| known == family);
    }
    // Addresses of services are of IPv4; without one, both families of the pods can be wanted.
    let is_headless = spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
    let policy = spec.and_then(|spec| spec.ip_family_policy.as_deref());
    let both = is_headless && policy.is_some_and(|policy| policy != "SingleStack");
    both || address.is_ipv4()
}

fn slice_endpoints(slice: &EndpointSlice) -> Vec<ServiceEndpoint> {
    let ports = slice.ports.iter().flatten().filter_map(|port| {
        let protocol = protocol_number(port.protocol.as_deref().unwrap_or("TCP"))?;
        Some((protocol, u16::try_from(port.port?).ok()?))
    });
    let ports: Vec<(u8, u16)> = ports.collect();
    let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    let addresses = addresses.filter_map(|address| address.parse::<IpAddr>().ok());
    addresses
        .flat_map(|address| at(address.to_canonical(), &ports))
        .collect()
}

fn selected<'a>(
    service: &'a Service,
    namespace: &'a str,
    pods: &'a [PodView],
) -> impl Iterator<Item = ServiceEndpoint> + 'a {
    let spec = service.spec.as_ref();
    let selector: Option<&BTreeMap<String, String>> = spec.and_then(|spec| spec.selector.as_ref());
    // A service without a selector has what somebody writes into slices, which is nothing here.
    let selects = move |labels: &Labels| {
        selector.is_some_and(|wanted| {
            !wanted.is_empty() && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
        })
    };
    let pods = pods
        .iter()
        .filter(move |pod| pod.namespace == namespace && selects(&pod.labels));
    pods.flat_map(move |pod| {
        let ports = spec
            .iter()
            .flat_map(|spec| spec.ports.iter().flatten())
            .filter_map(|port| {
                let protocol = protocol_number(port.protocol.as_deref().unwrap_or("TCP"))?;
                let number = match &port.target_port {
                    None => u16::try_from(port.port).ok(),
                    Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
                    Some(IntOrString::String(name)) => pod
                        .named_ports
                        .iter()
                        .find(|named| named.name == *name && named.protocol == protocol)
                        .map(|named| named.port),
                };
                Some((protocol, number?))
            });
        let ports: Vec<(u8, u16)> = ports.collect();
        let addresses: Vec<IpAddr> = pod
            .addresses
            .iter()
            .copied()
            .filter(|address| has_family(service, *address))
            .collect();
        addresses.into_iter().flat_map(move |address| at(address, &ports))
    })
}

/// The address with each port, or alone if there is none: as a source, a service needs no ports.
fn at(address: IpAddr, ports: &[(u8, u16)]) -> Vec<ServiceEndpoint> {
    if ports.is_empty() {
        return vec![ServiceEndpoint { address, port: None }];
    }
    let port = |port: &(u8, u16)| ServiceEndpoint {
        address,
        port: Some(*port),
    };
    ports.iter().map(port).collect()
}
