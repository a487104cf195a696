//! `policyctl verify --live`: whether the kernel's tables say what the policy says.
//!
//! The node reads its kernel's maps back and sends them. This process, which has no part in writing them, fetches
//! the API's objects, compiles them, and compares meaning: for every endpoint and every packet the same verdict, by the
//! rule of the same name. From the node come only the maps, which pod has which endpoint, the node's own addresses, what
//! its resolver learned, and the names of rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use api::{
    flow::PodRef,
    node_policy::{NodeEndpoint, NodePolicy},
};
use policies_compiler::{CalicoObject, ClusterView, HostEndpointIds, compile};
use policies_ir::{
    difference::differences,
    dump,
    tables::{EndpointId, NodeTables},
};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    cli::{Connection, VerifyArgs},
    cluster, flows, load, output,
};

/// Exit code when the kernel says something else: an answer, not an error.
const NOT_EQUAL: u8 = 2;
/// How long to wait before asking again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What was found on one node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    node: String,
    equal: bool,
    /// Pods that are judged there.
    endpoints: usize,
    host_endpoints: usize,
    /// Entries that were read back.
    addresses: usize,
    verdicts: usize,
    differences: Vec<Finding>,
}

/// One difference.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    /// Where.
    pod: String,
    /// What.
    what: String,
}

/// Compares every node, or one. Exit code 0 when all are equal, 2 when one is not.
pub(crate) async fn run(connection: &Connection, args: &VerifyArgs) -> Result<ExitCode> {
    let client = cluster::connect(connection).await?;
    let mut reports = Vec::new();
    for node in flows::nodes(&client, args.node.as_deref()).await? {
        reports.push(settled(connection, &client, &node, args).await?);
    }
    match args.output {
        Some(format) => output::object(
            &serde_json::to_value(&reports).context("cannot write the answer")?,
            format,
        )?,
        None => reports.iter().try_for_each(show)?,
    }
    Ok(match reports.iter().all(|report| report.equal) {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(NOT_EQUAL),
    })
}

/// The first report without a difference, or the last one when time is up: objects may change between the moment the
/// node is asked and the moment the API is.
async fn settled(
    connection: &Connection,
    client: &kube::Client,
    node: &str,
    args: &VerifyArgs,
) -> Result<Report> {
    let until = Instant::now() + Duration::from_secs(args.settle);
    loop {
        let path = format!("/api/v1/nodes/{}/proxy/policy", cluster::encode(node));
        let sent = cluster::get(client, &path)
            .await
            .map_err(anyhow::Error::from)
            .with_context(|| format!("node {node}"))?;
        let sent: NodePolicy =
            serde_json::from_value(sent).with_context(|| format!("node {node} sent something else"))?;
        let view = load::live(connection).await?.view;
        let report = compare(node, &sent, view, args.limit)?;
        if report.equal || Instant::now() >= until {
            return Ok(report);
        }
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
}

/// Holds what the node sent against the policy in `view`.
fn compare(node: &str, sent: &NodePolicy, mut view: ClusterView, limit: usize) -> Result<Report> {
    let kernel =
        dump::read(sent).with_context(|| format!("node {node} sent tables that contradict themselves"))?;
    let mut found = place(node, sent, &mut view);
    found.extend(place_hosts(node, sent, &mut view));
    let compiled = compile(&view).tables;
    let mut named: BTreeMap<EndpointId, String> = sent
        .endpoints
        .iter()
        .map(|e| (EndpointId(e.id), name(e)))
        .collect();
    for host in &sent.hosts {
        for (id, part) in [
            (host.local, ""),
            (host.forwarded, ", forwarded"),
            (host.untracked, ", before flows are known"),
        ] {
            named.insert(EndpointId(id), format!("host endpoint {}{part}", host.name));
        }
    }
    let packets = differences(&kernel, &compiled, limit);
    found.extend(packets.into_iter().map(|difference| Finding {
        pod: named.get(&difference.endpoint).cloned().unwrap_or_default(),
        what: difference.to_string(),
    }));
    found.truncate(limit.max(1));
    Ok(Report {
        node: node.to_owned(),
        equal: found.is_empty(),
        endpoints: sent.endpoints.len(),
        host_endpoints: sent.hosts.iter().filter(|host| !host.attached.is_empty()).count(),
        addresses: kernel.identities.len(),
        verdicts: count(&kernel),
        differences: found,
    })
}

/// Sees the cluster from the node, with its endpoints. Tells of pods and endpoints that do not belong together.
fn place(node: &str, sent: &NodePolicy, view: &mut ClusterView) -> Vec<Finding> {
    node.clone_into(&mut view.node);
    view.host_addresses.clone_from(&sent.host_addresses);
    view.host_groups.clone_from(&sent.host_groups);
    view.names.clone_from(&sent.names);
    let mut by_pod: BTreeMap<PodRef, &NodeEndpoint> = BTreeMap::new();
    let mut found = Vec::new();
    for endpoint in &sent.endpoints {
        match &endpoint.pod {
            Some(pod) if !by_pod.contains_key(pod) => {
                by_pod.insert(pod.clone(), endpoint);
            }
            Some(_) => found.push(finding(endpoint, "has two interfaces")),
            None => found.push(finding(endpoint, "is judged, and belongs to no pod")),
        }
    }
    for pod in &mut view.pods {
        let name = PodRef {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        };
        let endpoint = by_pod.remove(&name).filter(|_| pod.node == node);
        match endpoint {
            Some(endpoint) if !pod.addresses.is_empty() && pod.addresses != endpoint.addresses => {
                let what = format!(
                    "may send from {:?} in the kernel, and has {:?}",
                    endpoint.addresses, pod.addresses
                );
                found.push(finding(endpoint, &what));
            }
            None if pod.node == node && !pod.addresses.is_empty() => found.push(Finding {
                pod: name.to_string(),
                what: "has an address, and nothing judges its interface".to_owned(),
            }),
            _ => {}
        }
        if let Some(endpoint) = endpoint {
            pod.endpoint = Some(EndpointId(endpoint.id));
            // The node knows the address before the API does.
            pod.addresses.clone_from(&endpoint.addresses);
        }
    }
    let gone = by_pod.into_values();
    found.extend(gone.map(|endpoint| finding(endpoint, "is judged, and is no pod of this node")));
    found
}

/// Numbers the node's host endpoints as the node does. Tells of objects and interfaces that do not belong together.
fn place_hosts(node: &str, sent: &NodePolicy, view: &mut ClusterView) -> Vec<Finding> {
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

fn finding(endpoint: &NodeEndpoint, what: &str) -> Finding {
    Finding {
        pod: name(endpoint),
        what: what.to_owned(),
    }
}

fn name(endpoint: &NodeEndpoint) -> String {
    match &endpoint.pod {
        Some(pod) => pod.to_string(),
        None => format!("endpoint {}", endpoint.id),
    }
}

fn count(tables: &NodeTables) -> usize {
    tables
        .endpoints
        .values()
        .map(|endpoint| endpoint.verdicts.len())
        .sum()
}

fn show(report: &Report) -> Result<()> {
    let Report {
        node,
        endpoints,
        host_endpoints,
        addresses,
        verdicts,
        ..
    } = report;
    if report.equal && endpoints + host_endpoints == 0 {
        return output::line(&format!(
            "{node}: nothing to compare, no pod and no host endpoint is judged there"
        ));
    }
    let hosts = match host_endpoints {
        0 => String::new(),
        count => format!("{count} host endpoints, "),
    };
    let sizes = format!("{endpoints} endpoints, {hosts}{addresses} address prefixes, {verdicts} verdicts");
    if report.equal {
        return output::line(&format!("{node}: the kernel says what the policy says ({sizes})"));
    }
    output::line(&format!(
        "{node}: the kernel does not say what the policy says ({sizes})"
    ))?;
    for finding in &report.differences {
        output::line(&format!("  {}: {}", finding.pod, finding.what))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use api::node_policy::NodeHost;
    use policies_compiler::PodView;

    use super::*;

    fn pod(name: &str, address: &str) -> PodView {
        PodView {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            node: "n1".to_owned(),
            addresses: [address.parse().unwrap()].into(),
            ..PodView::default()
        }
    }

    fn view() -> ClusterView {
        let policy = serde_json::json!({
            "metadata": {"namespace": "shop", "name": "closed"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
        });
        ClusterView {
            pods: vec![pod("a", "10.0.0.2"), pod("b", "10.0.0.3")],
            namespaces: [("shop".to_owned(), Default::default())].into(),
            policies: vec![serde_json::from_value(policy).unwrap()],
            ..ClusterView::default()
        }
    }

    /// What a node sends that has done it right.
    fn sent() -> NodePolicy {
        let endpoint = |id, name: &str, address: &str| NodeEndpoint {
            id,
            pod: Some(PodRef {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
            }),
            addresses: [address.parse().unwrap()].into(),
            programmed: true,
        };
        let mut sent = NodePolicy {
            node: "n1".to_owned(),
            host_addresses: ["10.0.0.1".parse().unwrap()].into(),
            endpoints: vec![endpoint(7, "a", "10.0.0.2"), endpoint(8, "b", "10.0.0.3")],
            ..NodePolicy::default()
        };
        let mut view = view();
        assert_eq!(place("n1", &sent, &mut view), []);
        dump::write(&compile(&view).tables, &mut sent);
        sent
    }

    fn said(sent: &NodePolicy, view: ClusterView) -> Vec<String> {
        let report = compare("n1", sent, view, 5).unwrap();
        assert_eq!(report.equal, report.differences.is_empty());
        let found = report.differences.into_iter();
        found
            .map(|finding| format!("{} {}", finding.pod, finding.what))
            .collect()
    }

    #[test]
    fn a_node_that_has_done_it_right_is_equal() {
        assert_eq!(said(&sent(), view()), [] as [&str; 0]);
    }

    #[test]
    fn an_open_entry_is_found_with_a_packet() {
        let mut sent = sent();
        for row in &mut sent.verdicts {
            if row.endpoint == 8 {
                row.verdict = api::flow::FlowVerdict::Allow;
            }
        }
        let said = said(&sent, view());
        let first = said.first().unwrap();
        assert!(
            first.starts_with("shop/b ingress from ")
                && first.contains(
                    "allowed by default-deny (isolated by NetworkPolicy shop/closed), should be denied"
                ),
            "{said:?}"
        );
        assert!(said.iter().all(|line| line.starts_with("shop/b ")), "{said:?}");
    }

    #[test]
    fn endpoints_and_pods_belong_together() {
        let one = |change: &dyn Fn(&mut NodePolicy, &mut ClusterView), expected: &str| {
            let (mut sent, mut view) = (sent(), view());
            change(&mut sent, &mut view);
            let said = said(&sent, view);
            assert!(said.iter().any(|line| line == expected), "{said:?}");
        };
        one(
            &|sent, _| {
                sent.endpoints.retain(|endpoint| endpoint.id == 7);
                sent.verdicts.retain(|row| row.endpoint == 7);
            },
            "shop/b has an address, and nothing judges its interface",
        );
        one(
            &|_, view| view.pods.retain(|pod| pod.name == "a"),
            "shop/b is judged, and is no pod of this node",
        );
        one(
            &|_, view| {
                *view = ClusterView {
                    pods: vec![pod("a", "10.0.0.2"), pod("b", "10.0.0.4")],
                    ..view.clone()
                }
            },
            "shop/b may send from {10.0.0.3} in the kernel, and has {10.0.0.4}",
        );
        one(
            &|sent, _| {
                if let Some(endpoint) = sent.endpoints.first_mut() {
                    endpoint.pod = None;
                }
            },
            "endpoint 7 is judged, and belongs to no pod",
        );
    }

    /// The same cluster with a host endpoint that closes a port, and a node that has done that right too.
    fn with_host() -> (NodePolicy, ClusterView) {
        let mut view = view();
        let host = serde_json::json!({"metadata": {"name": "eth", "labels": {"host": "yes"}},
            "spec": {"node": "n1", "interfaceName": "eth0", "expectedIPs": ["10.0.0.1"]}});
        let closed = serde_json::json!({"metadata": {"name": "closed"}, "spec": {"selector": "host == 'yes'",
            "types": ["Ingress"], "ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [8081]}}]}});
        view.calico = vec![
            CalicoObject::HostEndpoint(serde_json::from_value(host).unwrap()),
            CalicoObject::GlobalNetworkPolicy(serde_json::from_value(closed).unwrap()),
        ];
        let mut sent = sent();
        sent.identities.clear();
        sent.verdicts.clear();
        sent.rules.clear();
        sent.hosts = vec![NodeHost {
            name: "eth".to_owned(),
            local: 100,
            forwarded: 101,
            untracked: 102,
            interfaces: ["eth0".to_owned()].into(),
            attached: ["eth0".to_owned()].into(),
            programmed: [100].into(),
        }];
        let mut placed = view.clone();
        assert_eq!(place("n1", &sent, &mut placed), []);
        assert_eq!(place_hosts("n1", &sent, &mut placed), []);
        dump::write(&compile(&placed).tables, &mut sent);
        (sent, view)
    }

    #[test]
    fn host_endpoints_are_compared_too() {
        let (right, view) = with_host();
        assert_eq!(said(&right, view.clone()), [] as [&str; 0]);
        let mut open = right.clone();
        for row in open.verdicts.iter_mut().filter(|row| row.endpoint == 100) {
            row.verdict = api::flow::FlowVerdict::Allow;
        }
        let found = said(&open, view.clone());
        assert!(
            found
                .iter()
                .any(|line| line.starts_with("host endpoint eth ingress from ")),
            "{found:?}"
        );
        let mut loose = right.clone();
        loose.hosts[0].attached.clear();
        loose.hosts[0].programmed.clear();
        loose.verdicts.retain(|row| row.endpoint != 100);
        assert_eq!(
            said(&loose, view.clone()),
            ["host endpoint eth does not judge eth0"]
        );
        let mut without = view.clone();
        without.calico.remove(0);
        let found = said(&right, without);
        let expected = "host endpoint eth judges eth0, and is no HostEndpoint of this node";
        assert!(found.iter().any(|line| line == expected), "{found:?}");
        let mut unknown = right;
        unknown.hosts.clear();
        unknown.verdicts.retain(|row| row.endpoint != 100);
        assert_eq!(
            said(&unknown, view),
            ["host endpoint eth is not known to the node"]
        );
    }

    /// What the kernel takes an address to be inside of what the node forwards is compared as well.
    #[test]
    fn who_is_inside_what_the_node_forwards_is_compared_too() {
        let (mut sent, mut view) = with_host();
        let forwarded = serde_json::json!({"metadata": {"name": "inside"}, "spec": {"selector": "host == 'yes'",
            "applyOnForward": true, "types": ["Ingress"],
            "ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"nets": ["10.0.0.3/32"], "ports": [80]}}]}});
        view.calico.push(CalicoObject::GlobalNetworkPolicy(
            serde_json::from_value(forwarded).unwrap(),
        ));
        let mut placed = view.clone();
        sent.hosts[0].programmed = [100, 101].into();
        assert_eq!(place("n1", &sent, &mut placed), []);
        assert_eq!(place_hosts("n1", &sent, &mut placed), []);
        sent.identities.clear();
        sent.verdicts.clear();
        sent.rules.clear();
        dump::write(&compile(&placed).tables, &mut sent);
        assert!(!sent.insides.is_empty());
        let text = serde_json::to_string(&sent).unwrap();
        let sent: NodePolicy = serde_json::from_str(&text).unwrap();
        assert_eq!(said(&sent, view.clone()), [] as [&str; 0]);
        // One address passes for another.
        let mut other = sent.clone();
        let kinds: Vec<u16> = sent.insides.iter().map(|row| row.ingress).collect();
        for (row, kind) in other.insides.iter_mut().zip(kinds.iter().rev()) {
            row.ingress = *kind;
        }
        let found = said(&other, view);
        assert!(
            found
                .iter()
                .all(|line| line.starts_with("host endpoint eth, forwarded ingress from ")),
            "{found:?}"
        );
        assert!(
            found.iter().any(|line| line.contains(" to 10.0.0.3, protocol 6")),
            "{found:?}"
        );
    }

    #[test]
    fn an_endpoint_without_tables_is_found() {
        let mut sent = sent();
        for endpoint in &mut sent.endpoints {
            endpoint.programmed = endpoint.id == 7;
        }
        sent.verdicts.retain(|row| row.endpoint == 7);
        let said = said(&sent, view());
        let expected = "denied by no-match, should be allowed by no-policy";
        assert!(said.iter().any(|line| line.contains(expected)), "{said:?}");
    }
}
