//! A session against compiling everything again.

use policies_compiler::{ClusterView, Material, PodView, Session, compile};
use policies_ir::tables::{EndpointId, NodeTables, Packet, lookup};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use testkit::policies::{Scenario, address, kubernetes, objects};

/// A pod that comes, changes or goes.
#[derive(Debug, Clone)]
struct Change {
    name: String,
    namespace: String,
    now: Option<PodView>,
}

/// Pods of other nodes: some have the names of the view's own, some are new; some share addresses.
fn changes() -> impl Strategy<Value = Vec<Change>> {
    let pods = prop_oneof![
        kubernetes().prop_map(|s| s.view.pods),
        objects().prop_map(|s| s.view.pods)
    ];
    let change = (
        pods,
        0..12u8,
        prop::collection::btree_set(address(), 1..3),
        any::<bool>(),
    );
    proptest::collection::vec(change, 1..8).prop_map(|changes| {
        let change = |(mut pods, number, addresses, goes): (Vec<PodView>, u8, _, bool)| {
            let mut pod = pods.swap_remove(0);
            pod.name = format!("pod-{number}");
            pod.endpoint = None;
            pod.addresses = addresses;
            Change {
                name: pod.name.clone(),
                namespace: pod.namespace.clone(),
                now: (!goes).then_some(pod),
            }
        };
        changes.into_iter().map(change).collect()
    })
}

fn apply(view: &mut ClusterView, change: &Change) {
    view.pods
        .retain(|pod| pod.name != change.name || pod.namespace != change.namespace);
    view.pods.extend(change.now.clone());
}

fn judged(tables: &NodeTables, endpoint: EndpointId, packet: &Packet) -> String {
    let entry = lookup(tables, endpoint, packet);
    format!("{:?} {:?}", entry.verdict, tables.decided_by(entry.rule))
}

/// How many changes the session followed by itself.
fn follow(scenario: &Scenario, changes: &[Change]) -> Result<usize, TestCaseError> {
    let mut view = scenario.view.clone();
    let mut material = Material::new(view.clone());
    let mut followed = 0;
    let mut left = changes;
    // A session ends where it asks for a new one.
    while !left.is_empty() {
        let mut session = Session::new(&material);
        while let Some((change, others)) = left.split_first() {
            left = others;
            let before = session.tables().clone();
            let answer = session.change(&change.namespace, &change.name, change.now.as_ref());
            apply(&mut view, change);
            let Ok(changed) = answer else {
                prop_assert_eq!(session.tables(), &before);
                break;
            };
            followed += 1;
            prop_assert_eq!(changed, *session.tables() != before);
            let cold = compile(&view).tables;
            let addresses = view.pods.iter().flat_map(|pod| &pod.addresses).copied();
            for (endpoint, packet) in &scenario.packets {
                for peer in addresses.clone().chain([packet.peer]) {
                    let packet = Packet { peer, ..*packet };
                    prop_assert_eq!(
                        judged(session.tables(), *endpoint, &packet),
                        judged(&cold, *endpoint, &packet),
                        "{:?} {:?}",
                        endpoint,
                        packet
                    );
                }
            }
        }
        material = Material::new(view.clone());
    }
    Ok(followed)
}

proptest! {
    #[test]
    fn a_session_says_what_compiling_again_says(scenario in objects(), changes in changes()) {
        follow(&scenario, &changes)?;
    }

    #[test]
    fn a_session_of_kubernetes_policies_says_it_too(scenario in kubernetes(), changes in changes()) {
        follow(&scenario, &changes)?;
    }
}

/// A session that always asked for a new one would agree with everything.
#[test]
fn sessions_follow_most_changes() {
    let mut runner = TestRunner::deterministic();
    let (mut followed, mut all) = (0, 0);
    for _ in 0..40 {
        let scenario = kubernetes().new_tree(&mut runner).expect("a scenario").current();
        let changes = changes().new_tree(&mut runner).expect("changes").current();
        all += changes.len();
        followed += follow(&scenario, &changes).expect("they agree");
    }
    println!("{followed} of {all} changes");
    assert!(followed * 4 > all, "{followed} of {all} changes were followed");
}
