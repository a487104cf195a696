//! `policyctl verify --live`: whether the kernel's tables say what the policy says.
//!
//! The node reads its kernel's maps back and sends them. This process, which has no part in writing them, fetches
//! the API's objects, compiles them, and compares meaning: for every endpoint and every packet the same verdict, by the
//! rule of the same name; and for every pod the addresses, the MAC and the wish to keep flows that its object has, for
//! every interface of a host endpoint that packets of the node are judged there. From the node come only the maps, which
//! pod has which endpoint, the node's own addresses, what its resolver learned, and the names of rules.

mod hosts;
mod pods;

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use api::{
    flow::PodRef,
    node_policy::{NodeEndpoint, NodePolicy},
};
use policies_compiler::{ClusterView, compile};
use policies_ir::{
    difference::differences,
    dump,
    tables::{EndpointId, NodeTables},
};
use serde::Serialize;
use tokio::time::Instant;

use self::{
    hosts::{compare_places, place_hosts},
    pods::{PodFacts, compare_facts, compare_ways, facts, place},
};
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
    /// Of either, those that are closed because their tables could not be written.
    closed: usize,
    /// Entries that were read back.
    addresses: usize,
    verdicts: usize,
    differences: Vec<Finding>,
    /// How many more there are at least.
    more: usize,
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

/// Compares every node, or one. Exit code 0 when all are equal, 2 when one is not, 1 when one does not answer.
pub(crate) async fn run(connection: &Connection, args: &VerifyArgs) -> Result<ExitCode> {
    let client = cluster::connect(connection).await?;
    let mut reports = Vec::new();
    let mut is_missing = false;
    for node in flows::nodes(&client, args.node.as_deref()).await? {
        match settled(connection, &client, &node, args).await {
            Ok(report) => reports.push(report),
            // What the others say is no less true.
            Err(error) => {
                is_missing = true;
                output::complain(&format!("{error:#}"));
            }
        }
    }
    match args.output {
        Some(format) => output::object(
            &serde_json::to_value(&reports).context("cannot write the answer")?,
            format,
        )?,
        None => reports.iter().try_for_each(show)?,
    }
    Ok(match reports.iter().all(|report| report.equal) {
        _ if is_missing => ExitCode::FAILURE,
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
        let objects = load::live_objects(connection).await?;
        let view = load::of_live(&objects)?.view;
        let report = compare(node, &sent, view, &facts(&objects), args.limit)?;
        if report.equal || Instant::now() >= until {
            return Ok(report);
        }
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
}

/// Holds what the node sent against the policy in `view`, and what pods say beside it.
fn compare(
    node: &str,
    sent: &NodePolicy,
    mut view: ClusterView,
    facts: &BTreeMap<PodRef, PodFacts>,
    limit: usize,
) -> Result<Report> {
    let kernel =
        dump::read(sent).with_context(|| format!("node {node} sent tables that contradict themselves"))?;
    let mut found = place(node, sent, &mut view);
    found.extend(place_hosts(node, sent, &mut view));
    found.extend(sent.behind.iter().map(|why| Finding {
        pod: "node".to_owned(),
        what: why.clone(),
    }));
    found.extend(compare_facts(sent, facts));
    found.extend(compare_ways(sent));
    let mut compiled = compile(&view).tables;
    found.extend(compare_places(sent, &view, &compiled));
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
    // What they should say is not what they say, and why was told. They hide nothing that nobody has told.
    let mut closed = Vec::new();
    for id in &sent.closed {
        if let Some(of) = named.get(&EndpointId(*id)) {
            closed.push(Finding {
                pod: of.clone(),
                what:
                    "is closed, but for what failsafe ports let to the node: its tables could not be written"
                        .to_owned(),
            });
        }
        compiled.endpoints.remove(&EndpointId(*id));
    }
    let packets = differences(&kernel, &compiled, limit);
    found.extend(packets.into_iter().map(|difference| Finding {
        pod: named.get(&difference.endpoint).cloned().unwrap_or_default(),
        what: difference.to_string(),
    }));
    found.append(&mut closed);
    let more = found.len().saturating_sub(limit.max(1));
    found.truncate(limit.max(1));
    Ok(Report {
        node: node.to_owned(),
        equal: found.is_empty(),
        endpoints: sent.endpoints.len(),
        host_endpoints: sent.hosts.iter().filter(|host| !host.attached.is_empty()).count(),
        closed: sent.closed.len(),
        addresses: kernel.identities.len(),
        verdicts: count(&kernel),
        differences: found,
        more,
    })
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
        closed,
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
    let hosts = match closed {
        0 => hosts,
        count => format!("{hosts}closed: {count}, "),
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
    if report.more > 0 {
        output::line(&format!(
            "  and {} more at least, which a larger --limit shows",
            report.more
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use api::node_policy::{HostPackets, HostPlaceRow, Mac, NodeHost, WayRow};
    use policies_compiler::{CalicoObject, PodView};
    use serde_json::json;

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

    /// What the pods' objects say beside what policy asks about: one keeps its flows.
    fn objects() -> BTreeMap<PodRef, PodFacts> {
        let pod = |name: &str, annotations: serde_json::Value| {
            let metadata = json!({"namespace": "shop", "name": name, "uid": format!("uid-{name}"), "annotations": annotations});
            json!({"kind": "Pod", "metadata": metadata})
        };
        let keeps = json!({"palisade.dev/established": "keep"});
        let policy = json!({"kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "closed"}});
        facts(&[pod("a", json!(null)), policy, pod("b", keeps)])
    }

    /// What a node sends that has done it right.
    fn sent() -> NodePolicy {
        let endpoint = |id, name: &str, address: &str| NodeEndpoint {
            id,
            pod: Some(PodRef {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
            }),
            interface: 10 + id,
            addresses: [address.parse().unwrap()].into(),
            mac: Mac::of_pod(&format!("uid-{name}")),
            host_ports: Vec::new(),
            keeps_established: name == "b",
            programmed: true,
        };
        let endpoints = vec![endpoint(7, "a", "10.0.0.2"), endpoint(8, "b", "10.0.0.3")];
        let way = |endpoint: &NodeEndpoint| WayRow {
            address: *endpoint.addresses.first().unwrap(),
            endpoint: endpoint.id,
            interface: endpoint.interface,
            mac: endpoint.mac,
        };
        let mut sent = NodePolicy {
            node: "n1".to_owned(),
            host_addresses: ["10.0.0.1".parse().unwrap()].into(),
            ways: endpoints.iter().map(way).collect(),
            endpoints,
            ..NodePolicy::default()
        };
        let mut view = view();
        assert_eq!(place("n1", &sent, &mut view), []);
        dump::write(&compile(&view).tables, &mut sent);
        sent
    }

    fn said(sent: &NodePolicy, view: ClusterView) -> Vec<String> {
        let report = compare("n1", sent, view, &objects(), 5).unwrap();
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
                sent.ways.retain(|way| way.endpoint == 7);
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

    /// Exactly one difference, of these words.
    #[track_caller]
    fn one_difference(sent: &NodePolicy, view: ClusterView, expected: &str) {
        assert_eq!(said(sent, view), [expected]);
    }

    #[test]
    fn what_pods_send_from_and_keep_is_compared() {
        let (a, b) = (Mac::of_pod("uid-a"), Mac::of_pod("uid-b"));
        let mut other = sent();
        other.endpoints[0].mac = b;
        other.ways[0].mac = b;
        let expected = format!("shop/a may send from {b} in the kernel, and has {a}");
        one_difference(&other, view(), &expected);
        let mut keeps = sent();
        keeps.endpoints[0].keeps_established = true;
        let expected = "shop/a keeps flows over a change of policy in the kernel, and does not ask for that";
        one_difference(&keeps, view(), expected);
        let mut forgets = sent();
        forgets.endpoints[1].keeps_established = false;
        let expected = "shop/b has its flows judged anew in the kernel, and asks to keep them";
        one_difference(&forgets, view(), expected);
    }

    #[test]
    fn where_packets_go_straight_to_is_compared() {
        let (a, b) = (Mac::of_pod("uid-a"), Mac::of_pod("uid-b"));
        let begin = "shop/a is not where the kernel takes what goes straight to 10.0.0.2";
        let should = format!("endpoint 7, interface 17, {a}");
        let one = |change: &dyn Fn(&mut WayRow), is: &str| {
            let mut other = sent();
            change(&mut other.ways[0]);
            one_difference(&other, view(), &format!("{begin}: {is}, and not {should}"));
        };
        one(&|way| way.endpoint = 8, &format!("endpoint 8, interface 17, {a}"));
        one(
            &|way| way.interface = 18,
            &format!("endpoint 7, interface 18, {a}"),
        );
        one(&|way| way.mac = b, &format!("endpoint 7, interface 17, {b}"));
        let mut missing = sent();
        missing.ways.remove(0);
        one_difference(&missing, view(), begin);
        let mut more = sent();
        more.ways.push(WayRow {
            address: "10.0.0.9".parse().unwrap(),
            ..more.ways[0].clone()
        });
        let expected = "address 10.0.0.9 is no pod's of this node, and the kernel takes what goes straight there somewhere";
        one_difference(&more, view(), expected);
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
        let row = |of, endpoint| HostPlaceRow {
            interface: "eth0".to_owned(),
            of,
            endpoint,
            untracked: None,
        };
        sent.host_places = vec![
            row(HostPackets::Address("10.0.0.1".parse().unwrap()), 100),
            row(HostPackets::Groups, 100),
        ];
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
        loose.host_places.clear();
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
        unknown.host_places.clear();
        unknown.verdicts.retain(|row| row.endpoint != 100);
        assert_eq!(
            said(&unknown, view),
            ["host endpoint eth is not known to the node"]
        );
    }

    /// The kernel has no room: what is closed is told as that, with the reason, and nothing else about it.
    #[test]
    fn what_is_closed_is_told_with_the_reason() {
        let (right, view) = with_host();
        let full = "the kernel judges by an older policy: map VERDICTS holds 10 entries, needs 12";
        let mut closed = right.clone();
        closed.behind = Some(full.to_owned());
        closed.closed = [100].into();
        closed.hosts[0].programmed.clear();
        closed.verdicts.retain(|row| row.endpoint != 100);
        let is_closed = "host endpoint eth is closed, but for what failsafe ports let to the node: its tables could not be \
                         written";
        assert_eq!(
            said(&closed, view.clone()),
            [format!("node {full}"), is_closed.to_owned()]
        );
        let report = compare("n1", &closed, view.clone(), &objects(), 5).unwrap();
        assert_eq!((report.closed, report.equal, report.more), (1, false, 0));
        // What is cut off is counted, and it hides nothing that is told nowhere else.
        let report = compare("n1", &closed, view.clone(), &objects(), 1).unwrap();
        assert_eq!((report.differences.len(), report.more), (1, 1));
        let mut open = closed.clone();
        open.verdicts.clear();
        let report = compare("n1", &open, view.clone(), &objects(), 2).unwrap();
        assert!(!report.differences[1].what.contains("is closed"), "{report:?}");
        assert!(report.more > 0, "{report:?}");

        // No room for all addresses at one of the interfaces.
        let mut narrow = right;
        narrow.hosts[0].interfaces.insert("eth1".to_owned());
        narrow.hosts[0].attached.insert("eth1".to_owned());
        narrow.closed = [99].into();
        narrow.host_places.push(HostPlaceRow {
            interface: "eth1".to_owned(),
            of: HostPackets::Forwarded,
            endpoint: 99,
            untracked: None,
        });
        one_difference(
            &narrow,
            view,
            "host endpoint eth has no room for eth1, where all is denied but packets of 0 of the node's 1 addresses",
        );
    }

    #[test]
    fn whose_packets_of_the_host_are_judged_where_is_compared() {
        let (right, view) = with_host();
        let address = HostPackets::Address("10.0.0.1".parse().unwrap());
        let one = |change: &dyn Fn(&mut Vec<HostPlaceRow>), expected: &str| {
            let mut other = right.clone();
            change(&mut other.host_places);
            one_difference(
                &other,
                view.clone(),
                &format!("host endpoint eth does not judge {expected}"),
            );
        };
        one(&|rows| rows.retain(|row| row.of != address), "10.0.0.1 at eth0");
        one(
            &|rows| rows.retain(|row| row.of == address),
            "groups and broadcasts at eth0",
        );
        one(
            &|rows| rows[0].endpoint = 101,
            "10.0.0.1 at eth0, but endpoint 101 does",
        );
        one(
            &|rows| rows[1].untracked = Some(7),
            "groups and broadcasts at eth0 before flows are known, but endpoint 7 does",
        );
        // Of another part of it that has no tables nobody hears anything.
        let mut silent = right.clone();
        silent.host_places[0].untracked = Some(102);
        assert_eq!(said(&silent, view.clone()), [] as [&str; 0]);
        // Nor is a pod the host.
        let mut taken = right.clone();
        taken.host_places.push(HostPlaceRow {
            of: HostPackets::Address("10.0.0.3".parse().unwrap()),
            ..taken.host_places[0].clone()
        });
        one_difference(&taken, view.clone(), "shop/b is taken for the node at eth0");
        // An address that is the host's at one interface is at each.
        let mut two = right.clone();
        two.hosts[0].interfaces.insert("eth1".to_owned());
        two.hosts[0].attached.insert("eth1".to_owned());
        let others = two.host_places.iter().map(|row| HostPlaceRow {
            interface: "eth1".to_owned(),
            ..row.clone()
        });
        two.host_places.extend(others.collect::<Vec<_>>());
        assert_eq!(said(&two, view.clone()), [] as [&str; 0]);
        two.host_places.push(HostPlaceRow {
            of: HostPackets::Address("192.0.2.1".parse().unwrap()),
            ..two.host_places[0].clone()
        });
        one_difference(
            &two,
            view.clone(),
            "host endpoint eth does not judge 192.0.2.1 at eth1",
        );
    }

    /// The pod behind a port of the node is judged for what it is; which ports it was given the node says.
    #[test]
    fn ports_of_the_node_that_lead_to_pods_are_compared_too() {
        let (mut right, mut view) = with_host();
        let port = |number| api::host_ports::HostPort {
            protocol: api::host_ports::Transport::Tcp,
            host_ip: None,
            port: number,
            container_port: 80,
        };
        view.pods[0].host_ports = vec![port(8080), port(8090)];
        let before = right.clone();
        right.endpoints[0].host_ports = vec![port(8080)];
        let opens =
            |line: &String| line.starts_with("host endpoint eth ingress from ") && line.contains("8080");
        let found = said(&right, view.clone());
        assert!(found.iter().any(opens), "written before the port was: {found:?}");
        right.identities.clear();
        right.verdicts.clear();
        right.rules.clear();
        let mut placed = view.clone();
        assert_eq!(place("n1", &right, &mut placed), []);
        assert_eq!(place_hosts("n1", &right, &mut placed), []);
        dump::write(&compile(&placed).tables, &mut right);
        assert_eq!(said(&right, view.clone()), [] as [&str; 0]);
        let mut forgotten = right.clone();
        forgotten.endpoints.clone_from(&before.endpoints);
        let found = said(&forgotten, view.clone());
        assert!(found.iter().any(opens), "{found:?}");
        view.pods[0].host_ports = vec![port(8090)];
        let expected = "shop/a is given port 8080/TCP of the node, and asks for none such";
        one_difference(&right, view, expected);
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
        let missing = "host endpoint eth does not judge what is forwarded at eth0";
        one_difference(&sent, view.clone(), missing);
        sent.host_places.push(HostPlaceRow {
            interface: "eth0".to_owned(),
            of: HostPackets::Forwarded,
            endpoint: 101,
            untracked: None,
        });
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
                .all(|line| line.starts_with("host endpoint eth") && line.contains(" ingress from ")),
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
