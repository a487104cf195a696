//! A session against compiling everything again: after any sequence of changes, to objects of every kind, its tables
//! mean the same for every packet there can be.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, NodeAddress, NodeStatus, ServiceAccount},
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use policies_compiler::{
    CalicoObject, ClusterView, HostEndpointIds, NodeView, PodView, Session, capacity::demand, compile,
    compile_staged,
};
use policies_ir::{
    difference::differences,
    policy::DomainMatch,
    tables::{EndpointId, NodeTables},
};
use proptest::{prelude::*, sample::Index, strategy::ValueTree, test_runner::TestRunner};
use serde_json::{Value, json};
use testkit::policies::{Scenario, kubernetes, objects};

/// Kinds of change, each as often as it stands here.
const KINDS: [Kind; 20] = [
    Kind::Pod,
    Kind::Pod,
    Kind::LocalPod,
    Kind::LocalPod,
    Kind::PodGone,
    Kind::Labels,
    Kind::Labels,
    Kind::Policy,
    Kind::Policy,
    Kind::PolicyGone,
    Kind::ClusterPolicy,
    Kind::ClusterPolicyGone,
    Kind::Calico,
    Kind::Calico,
    Kind::CalicoGone,
    Kind::Namespace,
    Kind::Account,
    Kind::Names,
    Kind::Services,
    Kind::Rare,
];

#[derive(Debug, Clone, Copy)]
enum Kind {
    Pod,
    LocalPod,
    PodGone,
    Labels,
    Policy,
    PolicyGone,
    ClusterPolicy,
    ClusterPolicyGone,
    Calico,
    CalicoGone,
    Namespace,
    Account,
    Names,
    Services,
    /// A node, addresses of the view's own, or the numbers of host endpoints.
    Rare,
}

/// One change: something of another scenario, put in the place of something of this one.
#[derive(Debug, Clone)]
struct Change {
    kind: Kind,
    from: ClusterView,
    which: Index,
    place: Index,
}

fn changes(scenario: impl Strategy<Value = Scenario>) -> impl Strategy<Value = Vec<Change>> {
    let change = (0..KINDS.len(), scenario, any::<Index>(), any::<Index>());
    proptest::collection::vec(change, 1..10).prop_map(|changes| {
        let change = |(kind, scenario, which, place): (usize, Scenario, Index, Index)| Change {
            kind: KINDS[kind],
            from: scenario.view,
            which,
            place,
        };
        changes.into_iter().map(change).collect()
    })
}

/// Host endpoints of the view's own node, numbered as the agent would.
fn number_hosts(view: &mut ClusterView, first: u32) {
    let of_node = view.calico.iter().filter_map(|object| match object {
        CalicoObject::HostEndpoint(host) if host.spec.node == view.node => host.metadata.name.clone(),
        _ => None,
    });
    let ids = of_node.zip((first..).step_by(3)).map(|(name, id)| {
        let ids = HostEndpointIds {
            local: EndpointId(id),
            forwarded: EndpointId(id + 1),
            untracked: EndpointId(id + 2),
        };
        (name, ids)
    });
    view.host_endpoints = ids.collect();
}

/// Both the view and the session take the change.
fn apply(change: &Change, view: &mut ClusterView, session: &mut Session) {
    let from = &change.from;
    let pick = |len: usize| (len > 0).then(|| change.which.index(len));
    match change.kind {
        Kind::Pod | Kind::LocalPod => {
            let Some(which) = pick(from.pods.len()) else {
                return;
            };
            let mut pod = from.pods[which].clone();
            pod.name = format!("pod-{}", change.place.index(10));
            pod.endpoint = match change.kind {
                // Two may have the same.
                Kind::LocalPod => Some(EndpointId(1 + u32::try_from(change.place.index(7)).unwrap())),
                _ => None,
            };
            put_pod(pod, view, session);
        }
        Kind::Labels => {
            let (Some(which), Some(place)) = (pick(from.pods.len()), pick(view.pods.len())) else {
                return;
            };
            let mut pod = view.pods[place].clone();
            pod.labels.clone_from(&from.pods[which].labels);
            put_pod(pod, view, session);
        }
        Kind::PodGone => {
            let Some(which) = pick(view.pods.len()) else {
                return;
            };
            let pod = view.pods.remove(which);
            session.set_pod(&pod.namespace, &pod.name, None);
        }
        Kind::Policy => {
            let Some(which) = pick(from.policies.len()) else {
                return;
            };
            let policy = from.policies[which].clone();
            let key = |p: &ObjectMeta| (p.namespace.clone(), p.name.clone());
            view.policies
                .retain(|other| key(&other.metadata) != key(&policy.metadata));
            view.policies.push(policy.clone());
            session.put_policy(policy);
        }
        Kind::PolicyGone => {
            let Some(which) = pick(view.policies.len()) else {
                return;
            };
            let policy = view.policies.remove(which).metadata;
            session.remove_policy(&policy.namespace.unwrap_or_default(), &policy.name.unwrap());
        }
        Kind::ClusterPolicy => {
            let Some(which) = pick(from.cluster_policies.len()) else {
                return;
            };
            let policy = from.cluster_policies[which].clone();
            view.cluster_policies
                .retain(|other| other.metadata.name != policy.metadata.name);
            view.cluster_policies.push(policy.clone());
            session.put_cluster_policy(policy);
        }
        Kind::ClusterPolicyGone => {
            let Some(which) = pick(view.cluster_policies.len()) else {
                return;
            };
            let policy = view.cluster_policies.remove(which);
            session.remove_cluster_policy(&policy.metadata.name.unwrap());
        }
        Kind::Calico => {
            let Some(which) = pick(from.calico.len()) else {
                return;
            };
            let object = from.calico[which].clone();
            view.calico.retain(|other| !is_same(other, &object));
            view.calico.push(object.clone());
            session.put_calico(object);
            renumber(view, session, 1000);
        }
        Kind::CalicoGone => {
            let Some(which) = pick(view.calico.len()) else {
                return;
            };
            let object = view.calico.remove(which);
            session.remove_calico(&object);
            renumber(view, session, 1000);
        }
        Kind::Namespace => {
            let names = ["default", "pci", "in"];
            let name = names[change.place.index(names.len())];
            let labels = from.namespaces.get(name).cloned();
            let object = labels.map(|labels| Namespace {
                metadata: metadata("", name, labels),
                ..Namespace::default()
            });
            view.namespaces.remove(name);
            object.iter().for_each(|object| view.add_namespace(object));
            session.set_namespace(name, object.as_ref());
        }
        Kind::Account => {
            let all: Vec<_> = view
                .service_accounts
                .keys()
                .chain(from.service_accounts.keys())
                .collect();
            let Some(which) = pick(all.len()) else { return };
            let (namespace, name) = all[which].clone();
            let labels = from
                .service_accounts
                .get(&(namespace.clone(), name.clone()))
                .cloned();
            let object = labels.map(|labels| ServiceAccount {
                metadata: metadata(&namespace, &name, labels),
                ..ServiceAccount::default()
            });
            view.service_accounts.remove(&(namespace.clone(), name.clone()));
            object.iter().for_each(|object| view.add_service_account(object));
            session.set_service_account(&namespace, &name, object.as_ref());
        }
        Kind::Names => {
            view.names.clone_from(&from.names);
            session.set_names(from.names.clone());
        }
        Kind::Services => {
            view.services.clone_from(&from.services);
            session.set_services(from.services.clone());
        }
        Kind::Rare => match change.place.index(3) {
            0 => renumber(view, session, 2000),
            1 => {
                let address =
                    std::net::IpAddr::from([10, 0, 0, u8::try_from(change.which.index(16)).unwrap_or(0)]);
                if !view.host_addresses.remove(&address) {
                    view.host_addresses.insert(address);
                }
                session.set_host_addresses(view.host_addresses.clone(), view.host_groups.clone());
            }
            _ => {
                let name = "node-2";
                let node = from
                    .nodes
                    .get(name)
                    .filter(|_| change.which.index(2) == 0)
                    .map(|n| node(name, n));
                view.nodes.remove(name);
                node.iter().for_each(|node| view.add_node(node));
                session.set_node(name, node.as_ref());
            }
        },
    }
}

fn put_pod(pod: PodView, view: &mut ClusterView, session: &mut Session) {
    view.pods
        .retain(|other| other.name != pod.name || other.namespace != pod.namespace);
    view.pods.push(pod.clone());
    session.set_pod(&pod.namespace.clone(), &pod.name.clone(), Some(pod));
}

fn renumber(view: &mut ClusterView, session: &mut Session, first: u32) {
    number_hosts(view, first);
    session.set_host_endpoint_ids(&view.host_endpoints);
}

fn is_same(a: &CalicoObject, b: &CalicoObject) -> bool {
    let (x, y) = (a.metadata(), b.metadata());
    a.kind() == b.kind() && x.name == y.name && x.namespace == y.namespace
}

fn metadata(namespace: &str, name: &str, labels: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()),
        name: Some(name.to_owned()),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}

fn node(name: &str, view: &NodeView) -> Node {
    let others = view
        .addresses
        .iter()
        .filter(|address| !view.primary.contains(address));
    let addresses = view.primary.iter().chain(others).map(|address| NodeAddress {
        address: address.to_string(),
        type_: "InternalIP".to_owned(),
    });
    Node {
        metadata: metadata("", name, view.labels.clone()),
        status: Some(NodeStatus {
            addresses: Some(addresses.collect()),
            ..NodeStatus::default()
        }),
        ..Node::default()
    }
}

/// How many changes the session followed by itself.
fn follow(scenario: &Scenario, changes: &[Change]) -> Result<usize, TestCaseError> {
    let mut view = scenario.view.clone();
    number_hosts(&mut view, 1000);
    let mut session = Session::new(view.clone(), NodeTables::default());
    session.settle();
    let mut followed = 0;
    same(&mut session, &view)?;
    for change in changes {
        let before = session.tables().clone();
        apply(change, &mut view, &mut session);
        let settled = session.settle();
        followed += usize::from(settled.anew.is_none());
        prop_assert_eq!(settled.changed, *session.tables() != before, "{:?}", settled);
        same(&mut session, &view)?;
    }
    Ok(followed)
}

fn same(session: &mut Session, view: &ClusterView) -> Result<(), TestCaseError> {
    let found = differences(session.tables(), &compile(view).tables, 3);
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    prop_assert!(found.is_empty(), "{found:#?}");
    let identities = &session.tables().identities;
    for (prefix, identity) in identities {
        let around = identities
            .iter()
            .rfind(|(around, _)| around.prefix_len() < prefix.prefix_len() && around.contains(prefix));
        prop_assert!(
            around.is_none_or(|(_, other)| other != identity),
            "{prefix} is redundant"
        );
    }
    let endpoints = |tables: &NodeTables| tables.endpoints.keys().copied().collect::<Vec<_>>();
    prop_assert_eq!(endpoints(session.tables()), endpoints(&compile(view).tables));
    let staged = compile_staged(view);
    let of_session = session.staged_tables();
    prop_assert_eq!(of_session.is_some(), staged.is_some());
    if let (Some(a), Some(b)) = (of_session, staged) {
        let found: Vec<String> = differences(a, &b, 3).iter().map(ToString::to_string).collect();
        prop_assert!(found.is_empty(), "staged: {found:#?}");
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_session_says_what_compiling_again_says(scenario in objects(), changes in changes(objects())) {
        follow(&scenario, &changes)?;
    }

    #[test]
    fn a_session_of_kubernetes_policies_says_it_too(scenario in kubernetes(), changes in changes(kubernetes())) {
        follow(&scenario, &changes)?;
    }
}

/// A session that always started anew would agree with everything.
#[test]
fn sessions_follow_most_changes() {
    let followed = |scenarios: BoxedStrategy<Scenario>, at_least: usize| {
        let mut runner = TestRunner::deterministic();
        let changes = changes(scenarios.clone());
        let (mut followed, mut all) = (0, 0);
        for _ in 0..30 {
            let scenario = scenarios.new_tree(&mut runner).expect("a scenario").current();
            let changes = changes.new_tree(&mut runner).expect("changes").current();
            all += changes.len();
            followed += follow(&scenario, &changes).expect("they agree");
        }
        println!("{followed} of {all} changes");
        assert!(
            followed * 100 > all * at_least,
            "{followed} of {all} changes were followed"
        );
    };
    followed(kubernetes().boxed(), 80);
    followed(objects().boxed(), 40);
}

/// From nothing: the first pod comes to a session that has settled already.
#[test]
fn a_session_may_begin_empty() {
    let mut view = ClusterView {
        node: "n1".to_owned(),
        ..ClusterView::default()
    };
    let mut session = Session::new(view.clone(), NodeTables::default());
    assert!(session.settle().anew.is_some());
    let pod = |name: &str, number: u8| PodView {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        addresses: [std::net::Ipv4Addr::new(10, 0, 0, number).into()].into(),
        endpoint: Some(EndpointId(number.into())),
        ..PodView::default()
    };
    for (name, number) in [("web", 7), ("db", 8)] {
        put_pod(pod(name, number), &mut view, &mut session);
        let settled = session.settle();
        assert_eq!((settled.changed, settled.anew), (true, None));
        same(&mut session, &view).expect("they agree");
    }
}

/// A pod of this node, or of another.
fn pod(name: &str, number: u32, is_local: bool) -> PodView {
    PodView {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        addresses: [std::net::Ipv4Addr::from(0x0a00_0000 + number).into()].into(),
        endpoint: is_local.then_some(EndpointId(number)),
        ..PodView::default()
    }
}

/// One change both changes the tables and is the one too many: the fresh start finds the tables as they are by then,
/// which are not those that were told last.
#[test]
fn a_change_that_brings_a_fresh_start_is_told() {
    let mut view = ClusterView {
        node: "n1".to_owned(),
        ..ClusterView::default()
    };
    let mut session = Session::new(view.clone(), NodeTables::default());
    put_pod(pod("web", 7, true), &mut view, &mut session);
    session.settle();
    let told = session.tables().clone();

    for part in 0..5 {
        let peer = |n: u32| serde_json::json!({"podSelector": {"matchLabels": {"n": n.to_string()}}});
        let peers: Vec<_> = (part * 1000..(part + 1) * 1000).map(peer).collect();
        let policy: NetworkPolicy = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "default", "name": format!("many-{part}")},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"],
                "ingress": [{"from": peers}, {"ports": [{"port": 80}]}]},
        }))
        .expect("a policy");
        view.policies.push(policy.clone());
        session.put_policy(policy);
    }
    let settled = session.settle();
    assert_eq!(settled.anew, Some("too much has piled up"));
    assert_ne!(*session.tables(), told);
    assert!(settled.changed, "and nobody would write it");
    same(&mut session, &view).expect("they agree");
}

/// Pods of this node come and go, each judged by its own address for as long as it is here: what the others' tables say
/// of those that are gone does not pile up without bound.
#[test]
fn pods_that_are_gone_leave_the_tables() {
    let mut view = ClusterView {
        node: "n1".to_owned(),
        ..ClusterView::default()
    };
    for number in 1..=20 {
        view.pods.push(pod(&format!("stays-{number}"), number, true));
    }
    // A pod that hardly anything may reach reaches itself: that tells it apart.
    let closed = serde_json::json!({"metadata": {"namespace": "default", "name": "closed"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"ports": [{"port": 80}]}], "egress": [{"ports": [{"port": 80}]}]}});
    view.policies
        .push(serde_json::from_value(closed).expect("a policy"));
    view.pods.push(pod("goes", 99, true));
    let mut session = Session::new(view.clone(), NodeTables::default());
    session.settle();
    let verdicts = |tables: &NodeTables| demand(tables).verdicts;
    let at_start = verdicts(session.tables());
    let mut tidied = 0;
    for (times, numbers) in [(4, 100..400), (2, 400..700)] {
        for number in numbers {
            put_pod(pod("goes", number, true), &mut view, &mut session);
            session.settle();
            // Whoever has time for it keeps less.
            if times == 2 && session.tidy().is_some() {
                tidied += 1;
            }
            let most = times * at_start + 4096;
            let now = verdicts(session.tables());
            assert!(
                now <= most,
                "{now} verdicts after {number}, {at_start} at the start"
            );
        }
        same(&mut session, &view).expect("they agree");
    }
    assert!(tidied > 0, "nothing piled up");
    assert_eq!(session.tidy(), None, "nothing has piled up");

    // Before it is worn: on demand, once.
    put_pod(pod("goes", 99, true), &mut view, &mut session);
    session.settle();
    let piled_up = verdicts(session.tables());
    assert!(session.shed());
    let settled = session.settle();
    assert_eq!(
        (settled.changed, settled.anew),
        (true, Some("its tables do not fit"))
    );
    assert!(verdicts(session.tables()) < piled_up, "{piled_up}");
    assert!(!session.shed(), "there is nothing to gain");
    assert_eq!(session.settle().anew, None);
    same(&mut session, &view).expect("they agree");
}

/// Flow events speak of pods and staged policies that change no table.
#[test]
fn what_changes_no_table_is_told() {
    let mut view = ClusterView {
        node: "n1".to_owned(),
        ..ClusterView::default()
    };
    let mut session = Session::new(view.clone(), NodeTables::default());
    put_pod(pod("web", 7, true), &mut view, &mut session);
    put_pod(pod("far", 8, false), &mut view, &mut session);
    session.settle();
    let settled = session.settle();
    assert!(!settled.changed && !settled.told_anew, "{settled:?}");
    let mut relabelled = pod("far", 8, false);
    relabelled.labels.insert("app".to_owned(), "db".to_owned());
    put_pod(relabelled, &mut view, &mut session);
    let settled = session.settle();
    assert!(!settled.changed && settled.told_anew, "{settled:?}");
    let staged = serde_json::from_value(serde_json::json!({
        "metadata": {"namespace": "default", "name": "later"},
        "spec": {"selector": "all()", "types": ["Ingress"]},
    }));
    session.put_calico(CalicoObject::StagedNetworkPolicy(staged.expect("a policy")));
    let settled = session.settle();
    assert!(!settled.changed && settled.told_anew, "{settled:?}");
    assert!(session.staged_tables().is_some());
}

/// Pods that come have kinds for which there is no number: how many there are is told, and that there are numbers again as
/// soon as others are gone and somebody tidies.
#[test]
#[ignore = "takes minutes without optimization: each of a thousand kinds is answered about each other one"]
fn kinds_of_addresses_without_a_number_are_told_until_there_is_one() {
    const LABELS: u32 = 11;
    let host = serde_json::json!({"metadata": {"name": "eth", "labels": {"edge": ""}},
        "spec": {"node": "n1", "interfaceName": "eth0"}});
    let rule = |label: u32| serde_json::json!({"action": "Allow", "destination": {"selector": format!("has(l{label})")}});
    let rules: Vec<_> = (0..LABELS).map(rule).collect();
    let policy = serde_json::json!({"metadata": {"name": "p"}, "spec": {"selector": "has(edge)", "applyOnForward": true,
        "types": ["Ingress"], "ingress": rules}});
    // Each pod has labels that no other has.
    let kind = |number: u32| {
        let mut pod = pod(&format!("p{number}"), number, false);
        let labels = (0..LABELS).filter(|label| number & (1 << label) != 0);
        pod.labels = labels.map(|label| (format!("l{label}"), String::new())).collect();
        pod
    };
    // Beside them there is nobody that is asked for, of each family.
    let most = 1023 - 2;
    let mut view = ClusterView {
        node: "n1".to_owned(),
        calico: vec![
            CalicoObject::HostEndpoint(serde_json::from_value(host).unwrap()),
            CalicoObject::GlobalNetworkPolicy(serde_json::from_value(policy).unwrap()),
        ],
        pods: (1..=most).map(kind).collect(),
        ..ClusterView::default()
    };
    number_hosts(&mut view, 1000);
    let mut session = Session::new(view.clone(), NodeTables::default());
    session.settle();
    assert_eq!(session.exceeds(), None);
    assert_eq!(session.tidy(), None);
    for number in most + 1..=most + 3 {
        put_pod(kind(number), &mut view, &mut session);
    }
    session.settle();
    let told = "needs 1026 kinds of addresses that one host endpoint tells apart in forwarded packets, and a node holds 1023";
    assert_eq!(session.exceeds().unwrap().to_string(), told);
    let asked = |session: &Session, number: u32| {
        let tables = session.tables();
        let address = std::net::IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + number));
        let nets = tables.identities.iter().filter(|(net, _)| net.contains(&address));
        let (_, class) = nets.max_by_key(|(net, _)| net.prefix_len()).unwrap();
        let forwarded = &tables.endpoints[&EndpointId(1001)];
        forwarded
            .insides
            .get(class)
            .copied()
            .unwrap_or_default()
            .ingress
            .0
    };
    let unnumbered = |session: &Session| {
        (1..=most + 3)
            .filter(|number| asked(session, *number) == 0)
            .count()
    };
    assert_eq!(unnumbered(&session), 3);
    for number in 1..=3 {
        session.set_pod("default", &format!("p{number}"), None);
    }
    session.settle();
    // Those that are gone have theirs still.
    assert_eq!(unnumbered(&session), 3);
    assert!(session.exceeds().is_some());
    assert!(session.tidy().is_some());
    assert_eq!(session.exceeds(), None);
    assert_eq!(session.tidy(), None);
    assert!((4..=most + 3).all(|number| asked(&session, number) != 0));
}

/// Addresses inside what the node forwards change their kind with the labels of pods, and new kinds come, while the session
/// follows; pods whose own policies say nothing of it are not written again.
#[test]
fn a_session_follows_who_is_inside_what_the_node_forwards() {
    let host = serde_json::json!({"metadata": {"name": "eth", "labels": {"edge": ""}},
        "spec": {"node": "n1", "interfaceName": "eth0"}});
    let rule = |app: &str, port: u16| {
        serde_json::json!({"action": "Allow", "protocol": "TCP",
        "destination": {"selector": format!("app == '{app}'"), "ports": [port, "api"]}})
    };
    let policy = serde_json::json!({"metadata": {"name": "p"}, "spec": {"selector": "has(edge)", "applyOnForward": true,
        "types": ["Ingress"], "ingress": [rule("web", 80), rule("db", 81)]}});
    let mut view = ClusterView {
        node: "n1".to_owned(),
        calico: vec![
            CalicoObject::HostEndpoint(serde_json::from_value(host).unwrap()),
            CalicoObject::GlobalNetworkPolicy(serde_json::from_value(policy).unwrap()),
        ],
        pods: vec![pod("a", 7, true), pod("b", 8, true), pod("c", 9, false)],
        ..ClusterView::default()
    };
    number_hosts(&mut view, 1000);
    let forwarded = EndpointId(1001);
    let mut session = Session::new(view.clone(), NodeTables::default());
    session.settle();
    same(&mut session, &view).expect("they agree");
    let kinds = |session: &Session| {
        let own = &session.tables().endpoints[&forwarded];
        own.insides
            .values()
            .map(|kind| kind.ingress)
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(
        kinds(&session).len(),
        2,
        "of each family, nobody that is asked for"
    );
    for (name, number, app, port) in [
        ("a", 7, "web", None),
        ("c", 9, "web", None),
        ("b", 8, "db", Some(8080)),
        ("a", 7, "db", None),
        ("a", 7, "other", Some(8080)),
        ("c", 9, "other", None),
        ("d", 10, "web", Some(8081)),
    ] {
        let mut changed = pod(name, number, number < 9);
        changed.labels.insert("app".to_owned(), app.to_owned());
        let named = port.map(|port| policies_ir::policy::NamedPort {
            name: "api".to_owned(),
            protocol: 6,
            port,
        });
        changed.named_ports.extend(named);
        put_pod(changed, &mut view, &mut session);
        assert_eq!(session.settle().anew, None);
        same(&mut session, &view).expect("they agree");
    }
    assert!(kinds(&session).len() >= 5, "{:?}", kinds(&session));
}

/// By themselves or by sets that they select; those of other rules, of flows to endpoints and of what is denied are none.
#[test]
fn rules_say_which_names_their_verdicts_rest_on() {
    let object = |kind: &str, name: &str, spec: Value| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": kind,
            "metadata": {"name": name, "namespace": "default", "labels": {"role": name}}, "spec": spec})
    };
    let to = |action: &str, destination: Value| json!({"action": action, "destination": destination});
    let egress = [
        to("Deny", json!({"selector": "role == 'cdn'"})),
        to("Allow", json!({"domains": ["a.test"]})),
        to("Allow", json!({"selector": "role == 'cdn'"})),
        to("Allow", json!({"selector": "role == 'other'"})),
        to("Allow", json!({"nets": ["203.0.113.0/24"]})),
    ];
    let by_name =
        json!({"egress": egress, "ingress": [{"action": "Allow", "source": {"selector": "role == 'cdn'"}}]});
    let passing = json!({"egress": [to("Pass", json!({"selector": "role == 'slow'"}))], "order": 1});
    let mut session = Session::new(ClusterView::default(), NodeTables::default());
    for (name, spec) in [("by-name", by_name), ("passing", passing)] {
        let policy = serde_json::from_value(object("NetworkPolicy", name, spec)).unwrap();
        session.put_calico(CalicoObject::NetworkPolicy(policy));
    }
    for (name, domains) in [
        ("cdn", vec!["*.cdn.test"]),
        ("slow", vec!["b.test"]),
        ("other", vec![]),
    ] {
        let set = object(
            "NetworkSet",
            name,
            json!({"nets": [], "allowedEgressDomains": domains}),
        );
        session.put_calico(CalicoObject::NetworkSet(serde_json::from_value(set).unwrap()));
    }
    session.settle();
    let named = session.named_rules();
    let text = |names: &BTreeSet<DomainMatch>| -> Vec<String> {
        names.iter().map(|name| name.labels.join(".")).collect()
    };
    let allowing = named
        .allowing
        .iter()
        .map(|(rule, names)| (rule.rule, text(names)));
    assert_eq!(
        allowing.collect::<Vec<_>>(),
        [
            (Some(1), vec!["a.test".to_owned()]),
            (Some(2), vec!["*.cdn.test".to_owned()])
        ]
    );
    assert_eq!(text(&named.passing), ["b.test"]);
}
