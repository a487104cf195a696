//! Where programs find pods and hosts, read back: what was written, also by somebody else.

use aya::maps::{HashMap, Map, MapData};
use ebpf_abi::{Address, PodLink};
use ebpf_loader::{Datapath, HostEndpoint, HostLink, HostPackets, Places, Way};
use policies_ir::tables::EndpointId;

use crate::lab::{ENDPOINT, LOOPBACK, Lab, POD, POD_MAC, POD6, dual_tables, ip, link};

const HOST: HostEndpoint = HostEndpoint {
    id: EndpointId(100),
    untracked: Some(EndpointId(101)),
};

fn places(lab: &mut Lab) -> Places {
    lab.kernel().places().expect("places")
}

#[test]
fn pods_are_where_their_links_are_and_keep_what_they_wish() {
    let mut lab = Lab::new();
    assert_eq!(places(&mut lab), Places::default());
    lab.program(&link(LOOPBACK, &[POD, POD6]), &dual_tables(&[]));
    let way = Way {
        id: ENDPOINT,
        ifindex: LOOPBACK,
        mac: POD_MAC,
    };
    let mut expected = Places {
        ways: [(ip(POD), way), (ip(POD6), way)].into(),
        ..Places::default()
    };
    assert_eq!(places(&mut lab), expected);
    lab.kernel().keep_established(ENDPOINT, true).expect("keep");
    expected.keeping.insert(ENDPOINT);
    assert_eq!(places(&mut lab), expected);
    lab.kernel().sync(&dual_tables(&[])).expect("sync");
    assert_eq!(places(&mut lab), expected, "a change leaves it");

    // Somebody else sends what is for the pod elsewhere.
    let data = MapData::from_pin(lab.pins.join("maps/PODS")).expect("the map");
    let mut pods: HashMap<_, Address, PodLink> = HashMap::try_from(Map::HashMap(data)).expect("a hash");
    let other = PodLink {
        endpoint: 9,
        ifindex: 5,
        mac: [2, 0, 0, 0, 0, 9],
        padding: [0; 2],
    };
    pods.insert(Address::from_ip(ip(POD)), other, 0).expect("write");
    let found = places(&mut lab);
    let other = Way {
        id: EndpointId(9),
        ifindex: 5,
        mac: [2, 0, 0, 0, 0, 9],
    };
    assert_eq!(found.ways, [(ip(POD), other), (ip(POD6), way)].into());
    lab.kernel().keep_established(ENDPOINT, false).expect("keep");
    assert_eq!(places(&mut lab).keeping, [].into());
}

#[test]
fn packets_of_the_host_are_judged_by_interface_and_address() {
    let mut lab = Lab::new();
    let forward = HostEndpoint {
        id: EndpointId(102),
        untracked: None,
    };
    let host = HostLink {
        ifindex: LOOPBACK,
        addresses: [(ip("192.0.2.1"), HOST)].into(),
        forward: Some(forward),
    };
    lab.kernel().attach_host(&host).expect("attach");
    let expected = [
        (HostPackets::Address(ip("192.0.2.1")), HOST),
        (HostPackets::Groups, HOST),
        (HostPackets::Forwarded, forward),
    ];
    let expected = expected.map(|(of, judge)| ((LOOPBACK, of), judge));
    assert_eq!(places(&mut lab).hosts, expected.into());
    lab.kernel()
        .attach_host(&HostLink::none(LOOPBACK))
        .expect("attach");
    assert_eq!(places(&mut lab), Places::default());
}
