//! Host endpoints of the node, as its kernel knows them and as the cluster's objects say.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::node_policy::{HostPackets, HostPlaceRow, NodeHost, NodePolicy};
use policies_compiler::{CalicoObject, ClusterView, HostEndpointIds};
use policies_ir::tables::{EndpointId, NodeTables};

use super::Finding;

/// Numbers the node's host endpoints as the node does. Tells of objects and interfaces that do not belong together.
pub(super) fn place_hosts(node: &str, sent: &NodePolicy, view: &mut ClusterView) -> Vec<Finding> {
    let objects = view.calico.iter().filter_map(|object| match object {
        CalicoObject::HostEndpoint(object) if object.spec.node == node => object.metadata.name.as_deref(),
        _ => None,
    });
    let objects: BTreeSet<&str> = objects.collect();
    let mut found = Vec::new();
    let mut say = |name: &str, what: &str| {
        found.push(Finding {
            pod: format!("host endpoint {name}"),
            what: what.to_owned(),
        });
    };
    for host in &sent.hosts {
        let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
        if !objects.contains(host.name.as_str()) {
            say(
                &host.name,
                &format!(
                    "judges {}, and is no HostEndpoint of this node",
                    list(&host.attached)
                ),
            );
        }
        let missing: BTreeSet<String> = host.interfaces.difference(&host.attached).cloned().collect();
        if !missing.is_empty() {
            say(&host.name, &format!("does not judge {}", list(&missing)));
        }
        let others: BTreeSet<String> = host.attached.difference(&host.interfaces).cloned().collect();
        if !others.is_empty() {
            say(
                &host.name,
                &format!("judges {}, and does not speak of it", list(&others)),
            );
        }
    }
    for name in &objects {
        if !sent.hosts.iter().any(|host| host.name == *name) {
            say(name, "is not known to the node");
        }
    }
    // One without an interface there has no tables.
    let attached = sent.hosts.iter().filter(|host| !host.attached.is_empty());
    view.host_endpoints = attached
        .map(|host| {
            let ids = HostEndpointIds {
                local: EndpointId(host.local),
                forwarded: EndpointId(host.forwarded),
                untracked: EndpointId(host.untracked),
            };
            (host.name.clone(), ids)
        })
        .collect();
    found
}

/// Whether packets of the host are judged by the endpoint of their interface: those of each of the node's addresses, those
/// to whoever listens, and those that are forwarded where `compiled` has tables for them; and no pod's as the host's.
pub(super) fn compare_places(sent: &NodePolicy, view: &ClusterView, compiled: &NodeTables) -> Vec<Finding> {
    let node = view.nodes.get(&sent.node).map(|node| node.addresses.clone());
    let of_node: BTreeSet<IpAddr> = node
        .into_iter()
        .flatten()
        .chain(sent.host_addresses.clone())
        .collect();
    let anywhere = || sent.host_places.iter().map(|row| row.of);
    let mut found = Vec::new();
    for host in &sent.hosts {
        for interface in &host.attached {
            let at: BTreeMap<HostPackets, &HostPlaceRow> = sent
                .host_places
                .iter()
                .filter(|row| row.interface == *interface)
                .map(|row| (row.of, row))
                .collect();
            if let Some(what) = closed_to_others(&at, interface, &of_node, sent) {
                found.push(Finding {
                    pod: format!("host endpoint {}", host.name),
                    what,
                });
                continue;
            }
            let own = of_node.iter().map(|address| HostPackets::Address(*address));
            let forwarded = has_tables(compiled, host.forwarded).then_some(HostPackets::Forwarded);
            // An address of the host is the host's at each of its interfaces.
            let wanted: BTreeSet<HostPackets> = own
                .chain(anywhere().filter(|of| *of != HostPackets::Forwarded))
                .chain([HostPackets::Groups])
                .chain(forwarded)
                .collect();
            let missing = wanted.iter().filter(|of| !at.contains_key(of));
            let missing = missing.map(|of| format!("does not judge {} at {interface}", named(*of)));
            let wrong = at.values().filter_map(|row| wrong(host, row, compiled));
            found.extend(missing.chain(wrong).map(|what| Finding {
                pod: format!("host endpoint {}", host.name),
                what,
            }));
        }
    }
    for pod in view.pods.iter().filter(|pod| pod.node == sent.node) {
        let taken = sent.host_places.iter().filter(|row| match row.of {
            // A pod in the node's own network has the node's addresses, and no endpoint.
            HostPackets::Address(address) => pod.endpoint.is_some() && pod.addresses.contains(&address),
            HostPackets::Groups | HostPackets::Forwarded => false,
        });
        found.extend(taken.map(|row| Finding {
            pod: format!("{}/{}", pod.namespace, pod.name),
            what: format!("is taken for the node at {}", row.interface),
        }));
    }
    found
}

/// What is to be said of an interface at which an endpoint that is closed has whatever no entry is about.
fn closed_to_others(
    at: &BTreeMap<HostPackets, &HostPlaceRow>,
    interface: &str,
    of_node: &BTreeSet<IpAddr>,
    sent: &NodePolicy,
) -> Option<String> {
    let rest = at.get(&HostPackets::Forwarded)?;
    let is_part = |host: &NodeHost| host.forwarded == rest.endpoint;
    if !sent.closed.contains(&rest.endpoint) || sent.hosts.iter().any(is_part) {
        return None;
    }
    let own = of_node
        .iter()
        .filter(|address| at.contains_key(&HostPackets::Address(**address)));
    Some(format!(
        "has no room for {interface}, where all is denied but packets of {} of the node's {} addresses",
        own.count(),
        of_node.len()
    ))
}

/// What is wrong with who judges packets at an interface of the host endpoint. Where the policy has no tables, whoever is
/// asked has none either, and says nothing.
fn wrong(host: &NodeHost, row: &HostPlaceRow, compiled: &NodeTables) -> Option<String> {
    let own = match row.of {
        HostPackets::Address(_) | HostPackets::Groups => host.local,
        HostPackets::Forwarded => host.forwarded,
    };
    let whose = format!("{} at {}", named(row.of), row.interface);
    if row.endpoint != own {
        return Some(format!(
            "does not judge {whose}, but endpoint {} does",
            row.endpoint
        ));
    }
    match row.untracked {
        None if has_tables(compiled, host.untracked) => {
            Some(format!("does not judge {whose} before flows are known"))
        }
        Some(other) if other != host.untracked => Some(format!(
            "does not judge {whose} before flows are known, but endpoint {other} does"
        )),
        _ => None,
    }
}

fn has_tables(compiled: &NodeTables, endpoint: u32) -> bool {
    compiled.endpoints.contains_key(&EndpointId(endpoint))
}

fn named(of: HostPackets) -> String {
    match of {
        HostPackets::Address(address) => address.to_string(),
        HostPackets::Groups => "groups and broadcasts".to_owned(),
        HostPackets::Forwarded => "what is forwarded".to_owned(),
    }
}
