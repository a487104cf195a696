//! From a service and the pods of its namespace to slices, and from the slices that exist to those. Pure.

use std::collections::{BTreeMap, BTreeSet};

use api::Digest;
use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod, PodSpec, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use kube::ResourceExt;

use super::{MANAGED_BY, MANAGER};

/// Label by which a slice names its service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of slices of services without an address.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Endpoints of one slice.
const MAX_ENDPOINTS: usize = 100;
/// Digits of the name of a slice that tell it from its siblings.
const SUFFIX: usize = 10;
/// Slices of one service and one set of ports among which one is looked for by its name.
const MAX_SIBLINGS: usize = 64;

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// It is not there yet.
    Create(Box<EndpointSlice>),
    /// It says something else.
    Replace(Box<EndpointSlice>),
    /// Nothing is left in it, or its service is gone.
    Delete(Box<EndpointSlice>),
}

impl Action {
    /// What it is done to.
    pub(super) fn slice(&self) -> &EndpointSlice {
        match self {
            Self::Create(slice) | Self::Replace(slice) | Self::Delete(slice) => slice,
        }
    }
}

/// What all endpoints of a slice have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::V4, Self::V6]
            .into_iter()
            .find(|family| family.name() == name)
    }
}

/// Ports as pods have them: name, protocol, number, application protocol.
type Ports = Vec<(String, String, i32, Option<String>)>;

/// What is to do so that the slices of `service` say what they should. `existing` are its own, `taken` the names of all
/// slices of the namespace, to which those of new ones are added.
pub(super) fn reconcile(
    service: &Service,
    pods: &[&Pod],
    existing: &[&EndpointSlice],
    taken: &mut BTreeSet<String>,
) -> Vec<Action> {
    let mut wanted = endpoints(service, pods);
    let mut actions = Vec::new();
    let mut existing = existing.to_vec();
    existing.sort_by_key(|slice| slice.name_any());
    // Endpoints stay in the slice that they are in; its room is for new ones.
    let mut kept: Vec<(&EndpointSlice, (Family, Ports), Vec<Endpoint>)> = Vec::new();
    for slice in existing {
        let group = Family::of(&slice.address_type).map(|family| (family, ports_of(slice)));
        let staying = group.and_then(|group| {
            let wanted = wanted.get_mut(&group)?;
            let here = slice
                .endpoints
                .iter()
                .filter_map(|endpoint| wanted.remove(&pod_of(endpoint)));
            let here: Vec<Endpoint> = here.take(MAX_ENDPOINTS).collect();
            Some((slice, group, here))
        });
        match staying {
            Some(staying) => kept.push(staying),
            None => actions.push(Action::Delete(Box::new(slice.clone()))),
        }
    }
    for (slice, group, mut here) in kept {
        if let Some(waiting) = wanted.get_mut(&group) {
            while here.len() < MAX_ENDPOINTS
                && let Some((_, endpoint)) = waiting.pop_first()
            {
                here.push(endpoint);
            }
        }
        if here.is_empty() {
            actions.push(Action::Delete(Box::new(slice.clone())));
            continue;
        }
        let mut new = make(service, slice.name_any(), group, here);
        if says_the_same(&new, slice) {
            continue;
        }
        new.metadata.resource_version = slice.resource_version();
        actions.push(Action::Replace(Box::new(new)));
    }
    for (group, waiting) in wanted {
        let mut waiting: Vec<Endpoint> = waiting.into_values().collect();
        while !waiting.is_empty() {
            let rest = waiting.split_off(waiting.len().min(MAX_ENDPOINTS));
            let name = free_name(service, &group, taken);
            taken.insert(name.clone());
            actions.push(Action::Create(Box::new(make(
                service,
                name,
                group.clone(),
                waiting,
            ))));
            waiting = rest;
        }
    }
    // No pod is out of all slices for a moment on its way from one to another.
    actions.sort_by_key(|action| match action {
        Action::Create(_) => 0,
        Action::Replace(_) => 1,
        Action::Delete(_) => 2,
    });
    actions
}

/// The endpoints of a service, by family and ports, and by the name of the pod.
fn endpoints(service: &Service, pods: &[&Pod]) -> BTreeMap<(Family, Ports), BTreeMap<String, Endpoint>> {
    let mut wanted: BTreeMap<(Family, Ports), BTreeMap<String, Endpoint>> = BTreeMap::new();
    let Some(spec) = &service.spec else { return wanted };
    // Without a selector somebody else says what stands behind it.
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty());
    let Some(selector) = selector.filter(|_| spec.type_.as_deref() != Some("ExternalName")) else {
        return wanted;
    };
    let families: Vec<Family> = match spec.ip_families.as_deref() {
        Some(families) if !families.is_empty() => {
            families.iter().filter_map(|name| Family::of(name)).collect()
        }
        _ => vec![Family::V4],
    };
    let selects = |pod: &&&Pod| {
        let labels = pod.labels();
        selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    for pod in pods.iter().filter(selects).filter(|pod| !ended(pod)) {
        let ports = spec.ports.iter().flatten();
        let ports: Ports = ports.filter_map(|port| port_of(pod, port)).collect();
        for family in &families {
            if let Some(endpoint) = endpoint(service, pod, *family) {
                wanted
                    .entry((*family, ports.clone()))
                    .or_default()
                    .insert(pod.name_any(), endpoint);
            }
        }
    }
    wanted
}

fn endpoint(service: &Service, pod: &Pod, family: Family) -> Option<Endpoint> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|address| address.ip.as_str());
    let address = all
        .chain(status.pod_ip.as_deref())
        .find(|address| !address.is_empty() && (family == Family::V6) == address.contains(':'))?;
    let serving = is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let spec = service.spec.as_ref()?;
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    let pod_spec = pod.spec.as_ref();
    let in_domain = |spec: &&PodSpec| spec.subdomain.as_deref() == Some(&*service.name_any());
    Some(Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(unready_too || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: pod_spec.filter(in_domain).and_then(|spec| spec.hostname.clone()),
        node_name: pod_spec.and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.namespace(),
            name: Some(pod.name_any()),
            uid: pod.uid(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}

/// The port of a pod that a service's port means; nothing if the pod has none of that name.
fn port_of(pod: &Pod, port: &ServicePort) -> Option<(String, String, i32, Option<String>)> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            let named = ports.find(|port| {
                port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            named?.container_port
        }
    };
    let name = port.name.clone().unwrap_or_default();
    Some((name, protocol, number, port.app_protocol.clone()))
}

fn make(
    service: &Service,
    name: String,
    (family, ports): (Family, Ports),
    mut endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    endpoints.sort_by_key(pod_of);
    let mut labels = service.labels().clone();
    labels.insert(SERVICE_NAME.to_owned(), service.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels.remove(HEADLESS);
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    if address == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    let ports = ports
        .into_iter()
        .map(|(name, protocol, port, app_protocol)| EndpointPort {
            name: Some(name),
            protocol: Some(protocol),
            port: Some(port),
            app_protocol,
        });
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: service.namespace(),
            labels: Some(labels),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Service".to_owned(),
                name: service.name_any(),
                uid: service.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        address_type: family.name().to_owned(),
        ports: Some(ports.collect()),
        endpoints,
    }
}

/// The same name for the same slice, so that one which the cache does not show yet is not made twice.
fn free_name(service: &Service, group: &(Family, Ports), taken: &BTreeSet<String>) -> String {
    let mut number = 0usize;
    loop {
        let name = derived_name(service, group, number);
        if !taken.contains(&name) {
            return name;
        }
        number += 1;
    }
}

fn derived_name(service: &Service, (family, ports): &(Family, Ports), number: usize) -> String {
    let uid = service.uid().unwrap_or_default();
    let digest = Digest::of(format!("{uid} {} {ports:?} {number}", family.name()).as_bytes()).hex();
    let suffix: String = digest.chars().take(SUFFIX).collect();
    format!("{}-{suffix}", service.name_any())
}

/// Whether `slice` is called as one that is made for `service`.
pub(super) fn has_derived_name(slice: &EndpointSlice, service: &Service) -> bool {
    let name = slice.name_any();
    let group = Family::of(&slice.address_type).map(|family| (family, ports_of(slice)));
    group.is_some_and(|group| (0..MAX_SIBLINGS).any(|number| derived_name(service, &group, number) == name))
}

fn says_the_same(new: &EndpointSlice, old: &EndpointSlice) -> bool {
    new.labels() == old.labels()
        && new.ports.as_deref().unwrap_or_default() == old.ports.as_deref().unwrap_or_default()
        && new.endpoints == old.endpoints
        && new.owner_references() == old.owner_references()
}

fn ports_of(slice: &EndpointSlice) -> Ports {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let ports = slice.ports.iter().flatten();
    ports
        .map(|port| {
            let number = port.port.unwrap_or_default();
            (
                text(&port.name),
                text(&port.protocol),
                number,
                port.app_protocol.clone(),
            )
        })
        .collect()
}

/// Name of the pod that an endpoint is.
fn pod_of(endpoint: &Endpoint) -> String {
    let target = endpoint.target_ref.as_ref();
    target.and_then(|target| target.name.clone()).unwrap_or_default()
}

fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    ready.any(|condition| condition.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "specs are written as literals")]
    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "labels": {"team": "a"}}, "spec": spec,
        }))
        .unwrap()
    }

    fn web() -> Service {
        service(
            json!({"selector": {"app": "web"}, "clusterIP": "10.96.0.7", "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "targetPort": "http"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        )
    }

    fn pod(name: &str, app: &str, http: u16, ready: bool) -> Pod {
        let address = format!("10.0.0.{}", name.len());
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": app}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": http}]}]},
            "status": {
                "podIP": address, "podIPs": [{"ip": address}, {"ip": "fd00::7"}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        }))
        .unwrap()
    }

    fn created(service: &Service, pods: &[&Pod]) -> Vec<EndpointSlice> {
        let actions = reconcile(service, pods, &[], &mut BTreeSet::new());
        let created = actions.into_iter().map(|action| match action {
            Action::Create(slice) => *slice,
            other => panic!("{other:?}"),
        });
        created.collect()
    }

    /// Name, ready, serving, terminating of each endpoint.
    fn shown(slice: &EndpointSlice) -> Vec<(String, [bool; 3])> {
        let endpoints = slice.endpoints.iter().map(|endpoint| {
            let conditions = endpoint.conditions.clone().unwrap();
            let told = [conditions.ready, conditions.serving, conditions.terminating];
            (pod_of(endpoint), told.map(Option::unwrap))
        });
        endpoints.collect()
    }

    #[test]
    fn slices_say_which_pods_and_how_they_are() {
        let (a, bb, other) = (
            pod("a", "web", 8080, true),
            pod("bb", "web", 8080, false),
            pod("ccc", "db", 1, true),
        );
        let mut going = pod("dddd", "web", 8080, true);
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let mut done = pod("eeeee", "web", 8080, false);
        done.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
        let slices = created(&web(), &[&a, &bb, &other, &going, &done]);
        assert_eq!(slices.len(), 1);
        let expected = [
            ("a".to_owned(), [true, true, false]),
            ("bb".to_owned(), [false, false, false]),
            ("dddd".to_owned(), [false, true, true]),
        ];
        assert_eq!(shown(&slices[0]), expected);
        let slice = serde_json::to_value(&slices[0]).unwrap();
        assert_eq!(
            slice["metadata"]["labels"],
            json!({"team": "a", SERVICE_NAME: "web", MANAGED_BY: MANAGER})
        );
        assert_eq!(
            slice["ports"],
            json!([{"name": "", "protocol": "TCP", "port": 8080}, {"name": "dns", "protocol": "UDP", "port": 53}])
        );
        assert_eq!(
            (&slice["addressType"], &slice["endpoints"][0]["addresses"]),
            (&json!("IPv4"), &json!(["10.0.0.1"]))
        );
        assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], "u");

        let mut early = web();
        early.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
        let ready: Vec<bool> = shown(&created(&early, &[&bb, &going])[0])
            .iter()
            .map(|(_, told)| told[0])
            .collect();
        assert_eq!(ready, [true, true]);
    }

    #[test]
    fn named_ports_that_differ_are_slices_of_their_own_and_families_too() {
        let (a, bb) = (pod("a", "web", 8080, true), pod("bb", "web", 9090, true));
        let slices = created(&web(), &[&a, &bb]);
        let ports = |slice: &EndpointSlice| slice.ports.as_ref().unwrap()[0].port;
        assert_eq!(
            slices.iter().map(ports).collect::<Vec<_>>(),
            [Some(8080), Some(9090)]
        );
        assert_ne!(slices[0].name_any(), slices[1].name_any());
        // A pod without a port of that name is there without it.
        let nameless =
            service(json!({"selector": {"app": "web"}, "ports": [{"port": 1, "targetPort": "nosuch"}]}));
        assert_eq!(created(&nameless, &[&a])[0].ports.as_ref().unwrap().len(), 0);
        let headless =
            service(json!({"selector": {"app": "web"}, "clusterIP": "None", "ipFamilies": ["IPv4", "IPv6"]}));
        let slices = created(&headless, &[&a]);
        let families: Vec<&str> = slices.iter().map(|slice| slice.address_type.as_str()).collect();
        assert_eq!(families, ["IPv4", "IPv6"]);
        assert!(slices[0].labels().contains_key(HEADLESS));
        assert_eq!(slices[1].endpoints[0].addresses, ["fd00::7"]);
    }

    #[test]
    fn services_without_a_selector_have_no_slices_of_ours() {
        let a = pod("a", "web", 8080, true);
        let of_web = created(&web(), &[&a]);
        for spec in [
            json!({"ports": [{"port": 80}]}),
            json!({"selector": {}, "ports": [{"port": 80}]}),
            json!({"type": "ExternalName", "externalName": "x", "selector": {"app": "web"}}),
        ] {
            let service = service(spec);
            assert_eq!(reconcile(&service, &[&a], &[], &mut BTreeSet::new()), []);
            // And lose those that they had.
            let actions = reconcile(&service, &[&a], &[&of_web[0]], &mut BTreeSet::new());
            assert_eq!(actions, [Action::Delete(Box::new(of_web[0].clone()))]);
        }
    }

    #[test]
    fn changes_touch_only_the_slices_that_they_are_in() {
        let names: Vec<String> = (0..250).map(|i| format!("p{i:03}")).collect();
        let mut pods: Vec<Pod> = names.iter().map(|name| pod(name, "web", 8080, true)).collect();
        let service = web();
        let all = |pods: &[Pod], slices: &[EndpointSlice]| {
            let slices: Vec<&EndpointSlice> = slices.iter().collect();
            reconcile(
                &service,
                &pods.iter().collect::<Vec<_>>(),
                &slices,
                &mut BTreeSet::new(),
            )
        };
        let slices = created(&service, &pods.iter().collect::<Vec<_>>());
        let sizes: Vec<usize> = slices.iter().map(|slice| slice.endpoints.len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
        assert_eq!(
            all(&pods, &slices),
            [],
            "what is said already is not written again"
        );

        // One pod of the first slice goes, another comes: one slice changes.
        pods.remove(3);
        pods.push(pod("p999", "web", 8080, true));
        let actions = all(&pods, &slices);
        assert_eq!(actions.len(), 1, "{actions:?}");
        let Action::Replace(first) = &actions[0] else {
            panic!("{actions:?}")
        };
        assert_eq!(
            (first.endpoints.len(), first.name_any()),
            (100, slices[0].name_any())
        );

        assert!(
            all(&[], &slices)
                .iter()
                .all(|action| matches!(action, Action::Delete(_)))
        );
        assert_eq!(all(&[], &slices).len(), 3);
    }
}
