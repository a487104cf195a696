//! That what is read back can be held against what was meant: one wrong entry in a map is found.

use aya::maps::{HashMap, Map, MapData};
use ebpf_abi::{AddressClass, IdentityKey, VERDICT_ALLOW, VERDICT_DENY, VerdictKey, VerdictValue};
use ebpf_loader::Datapath;
use policies_ir::{
    difference::differences,
    dump,
    tables::{Direction, NodeTables, Service, Verdict},
};

use crate::{
    frames::{Ends, SYN, TCP, frame, tcp},
    lab::{ENDPOINT, LOOPBACK, Lab, ip, link, tables},
};

fn hash<K: aya::Pod, V: aya::Pod>(lab: &Lab, name: &str) -> HashMap<MapData, K, V> {
    let data = MapData::from_pin(lab.pins.join("maps").join(name)).expect("the pinned map");
    Map::HashMap(data).try_into().expect("a hash")
}

/// What the node would send, read by somebody else, with the names of the rules.
fn sent(lab: &mut Lab, meant: &NodeTables) -> NodeTables {
    let mut kernel = lab.kernel().dump().expect("dump");
    kernel.rules.clone_from(&meant.rules);
    let mut policy = api::node_policy::NodePolicy::default();
    let programmed = kernel.endpoints.keys().map(|id| api::node_policy::NodeEndpoint {
        id: id.0,
        programmed: true,
        ..Default::default()
    });
    policy.endpoints = programmed.collect();
    dump::write(&kernel, &mut policy);
    dump::read(&policy).expect("tables")
}

fn lab() -> (Lab, NodeTables) {
    let mut lab = Lab::new();
    let mut meant = tables(
        &["10.7.0.9/32", "10.7.0.0/24"],
        &[(Direction::Egress, 0, Service::Protocol(TCP))],
    );
    meant.rules.push(policies_ir::tables::RuleName {
        tier: "default".to_owned(),
        policy: "NetworkPolicy default/web".to_owned(),
        rule: Some(0),
    });
    lab.program(&link(LOOPBACK, &["10.7.0.2"]), &meant);
    (lab, meant)
}

#[test]
fn one_wrong_verdict_in_the_kernel_is_found() {
    let (mut lab, meant) = lab();
    assert_eq!(differences(&sent(&mut lab, &meant), &meant, 9), []);
    let syn = frame(Ends::new("10.7.0.2", "10.7.0.9"), TCP, &tcp(1000, 80, SYN));
    lab.assert_allowed(Direction::Egress, &syn);

    let mut map: HashMap<_, VerdictKey, VerdictValue> = hash(&lab, "VERDICTS");
    let entries: Vec<_> = map.iter().collect::<Result<_, _>>().expect("entries");
    let [(key, value)] = entries.as_slice() else {
        panic!("one entry, not {}", entries.len())
    };
    let wrong = VerdictValue {
        verdict: VERDICT_DENY,
        ..*value
    };
    assert_eq!(value.verdict, VERDICT_ALLOW);
    map.insert(key, wrong, 0).expect("corrupt");
    let other = frame(Ends::new("10.7.0.2", "10.7.0.9"), TCP, &tcp(1001, 80, SYN));
    assert_eq!(
        lab.run(Direction::Egress, &other),
        Verdict::Deny,
        "the programs follow it"
    );

    let found = differences(&sent(&mut lab, &meant), &meant, 9);
    let first = found.first().expect("a difference");
    assert_eq!(first.endpoint, ENDPOINT);
    assert_eq!((first.packet.peer, first.packet.protocol), (ip("10.7.0.9"), TCP));
    assert_eq!((first.left.0, first.right.0), (Verdict::Deny, Verdict::Allow));

    map.insert(key, value, 0).expect("mend");
    assert_eq!(differences(&sent(&mut lab, &meant), &meant, 9), []);
    let renamed = VerdictValue { rule: 65, ..*value };
    map.insert(key, renamed, 0).expect("corrupt");
    let found = differences(&sent(&mut lab, &meant), &meant, 9);
    let first = found.first().expect("a difference");
    assert_eq!((first.left.0, &first.left.1), (Verdict::Allow, &None));
}

#[test]
fn one_wrong_address_in_the_kernel_is_found() {
    let (mut lab, meant) = lab();
    let mut map: HashMap<_, IdentityKey, AddressClass> = hash(&lab, "HOSTS");
    let entries: Vec<_> = map.iter().collect::<Result<_, _>>().expect("entries");
    let (key, _) = entries
        .iter()
        .find(|(_, identity)| identity.class == 1)
        .expect("the address that may be reached");
    map.remove(key).expect("corrupt");
    let found = differences(&sent(&mut lab, &meant), &meant, 9);
    let first = found.first().expect("a difference");
    assert_eq!(first.packet.peer, ip("10.7.0.9"));
    assert_eq!((first.left.0, first.right.0), (Verdict::Deny, Verdict::Allow));
}
