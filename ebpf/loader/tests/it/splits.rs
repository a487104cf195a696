//! Classes that are split off from others: written where an endpoint tells them apart, and judged right everywhere.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ebpf_abi::MAX_SPLITS;
use ebpf_loader::{Datapath, EndpointLink, HostEndpoint, HostLink, monotonic_now};
use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use policies_ir::{
    tables::{
        Direction, EndpointId, EndpointTables, IdentityId, InsideClass, NodeTables, Packet, RuleId, Service,
        SourceClass, Verdict, VerdictEntry, lookup,
    },
    verdicts::{ClassKey, ClassVerdicts},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    frames::{Ends, UDP, frame, udp},
    lab::{ENDPOINT, LOOPBACK, Lab, POD_MAC, ip},
};

/// The one whose packets are judged by the programs, and others, which are only read back.
const ENDPOINTS: [EndpointId; 4] = [ENDPOINT, EndpointId(1), EndpointId(2), EndpointId(3)];
const PEERS: u8 = 8;
const POD: &str = "10.7.0.2";

/// What an endpoint may say about a class.
#[derive(Debug, Clone, Copy)]
enum Said {
    Nothing,
    All,
    Dns,
    /// As [`Said::Dns`], by another rule.
    DnsToo,
}

/// One change, most of which are one of policy; numbers count round.
#[derive(Debug, Clone)]
enum Change {
    /// A peer gets a new class, about which all say what they said of its old one, but for one endpoint.
    Split {
        peer: u8,
        at: usize,
        said: Said,
    },
    /// A peer gets the class of another one.
    Join {
        peer: u8,
        other: u8,
    },
    /// A peer gets a class that there was before.
    Return {
        peer: u8,
        class: u32,
    },
    /// An endpoint says something else about the class of a peer.
    Say {
        at: usize,
        peer: u8,
        said: Said,
    },
    /// Nobody says anything any more about classes that no peer is of.
    Forget,
    /// An endpoint has no tables any more, or has some again.
    Vanish {
        at: usize,
    },
    /// An endpoint is taken off and attached again.
    Attach {
        at: usize,
    },
    Expire,
    Renew,
    Restart,
}

fn change() -> impl Strategy<Value = Change> {
    let said = prop_oneof![
        Just(Said::Nothing),
        Just(Said::All),
        Just(Said::Dns),
        Just(Said::DnsToo)
    ];
    let (peer, at) = (0..PEERS, 0..ENDPOINTS.len());
    prop_oneof![
        6 => (peer.clone(), at.clone(), said.clone()).prop_map(|(peer, at, said)| Change::Split { peer, at, said }),
        3 => (peer.clone(), peer.clone()).prop_map(|(peer, other)| Change::Join { peer, other }),
        3 => (peer.clone(), any::<u32>()).prop_map(|(peer, class)| Change::Return { peer, class }),
        3 => (at.clone(), peer, said).prop_map(|(at, peer, said)| Change::Say { at, peer, said }),
        1 => Just(Change::Forget),
        1 => at.clone().prop_map(|at| Change::Vanish { at }),
        1 => at.prop_map(|at| Change::Attach { at }),
        3 => Just(Change::Expire),
        1 => Just(Change::Renew),
        1 => Just(Change::Restart),
    ]
}

/// The tables that are wanted.
struct Model {
    tables: NodeTables,
    vanished: Vec<(EndpointId, Arc<EndpointTables>)>,
    classes: u32,
}

impl Model {
    /// Two peers of each class.
    fn new() -> Self {
        let mut tables = NodeTables::default();
        for number in 0..PEERS {
            tables
                .identities
                .insert(peer(number), IdentityId(u32::from(number / 2 + 1)));
        }
        let mut endpoint = EndpointTables::default();
        endpoint.verdicts.set_class(IdentityId(1), said(Said::All));
        endpoint.verdicts.set_class(IdentityId(2), said(Said::Dns));
        let endpoint = Arc::new(endpoint);
        tables.endpoints = ENDPOINTS.map(|id| (id, Arc::clone(&endpoint))).into();
        Self {
            tables,
            vanished: Vec::new(),
            classes: u32::from(PEERS / 2),
        }
    }

    fn class_of(&self, number: u8) -> IdentityId {
        *self
            .tables
            .identities
            .get(&peer(number))
            .expect("every peer has a class")
    }

    fn say(&mut self, at: usize, class: IdentityId, entries: Arc<ClassVerdicts>) {
        let endpoint = ENDPOINTS.get(at).and_then(|id| self.tables.endpoints.get_mut(id));
        if let Some(endpoint) = endpoint {
            Arc::make_mut(endpoint).verdicts.set_class(class, entries);
        }
    }

    fn make(&mut self, change: &Change) {
        match change {
            Change::Split {
                peer: number,
                at,
                said: other,
            } => {
                let before = self.class_of(*number);
                self.classes += 1;
                let new = IdentityId(self.classes);
                self.tables.identities.insert(peer(*number), new);
                for endpoint in self.tables.endpoints.values_mut() {
                    let same = endpoint.verdicts.class(before).cloned().unwrap_or_default();
                    Arc::make_mut(endpoint).verdicts.set_class(new, same);
                }
                self.say(*at, new, said(*other));
            }
            Change::Join { peer: number, other } => {
                let class = self.class_of(*other);
                self.tables.identities.insert(peer(*number), class);
            }
            Change::Return { peer: number, class } => {
                let class = IdentityId(class % self.classes + 1);
                self.tables.identities.insert(peer(*number), class);
            }
            Change::Say {
                at,
                peer: number,
                said: other,
            } => self.say(*at, self.class_of(*number), said(*other)),
            Change::Forget => {
                let used: Vec<IdentityId> = self.tables.identities.values().copied().collect();
                for endpoint in self.tables.endpoints.values_mut() {
                    for class in (1..=self.classes)
                        .map(IdentityId)
                        .filter(|class| !used.contains(class))
                    {
                        Arc::make_mut(endpoint).verdicts.set_class(class, Arc::default());
                    }
                }
            }
            Change::Vanish { at } => {
                let id = ENDPOINTS.get(*at).copied().expect("an endpoint");
                match self.tables.endpoints.remove(&id) {
                    Some(tables) => self.vanished.push((id, tables)),
                    None => self.tables.endpoints.extend(self.vanished.drain(..)),
                }
            }
            Change::Attach { .. } | Change::Expire | Change::Renew | Change::Restart => {}
        }
    }
}

fn peer(number: u8) -> IpNet {
    IpAddr::from([10, 9, 0, number]).into()
}

fn said(said: Said) -> Arc<ClassVerdicts> {
    let (service, rule) = match said {
        Said::Nothing => return Arc::default(),
        Said::All => (Service::Any, 64),
        Said::Dns => (
            Service::Ports {
                protocol: UDP,
                port: 53,
                prefix_bits: 16,
            },
            65,
        ),
        Said::DnsToo => (
            Service::Ports {
                protocol: UDP,
                port: 53,
                prefix_bits: 16,
            },
            66,
        ),
    };
    let key = ClassKey {
        direction: Direction::Egress,
        inside: InsideClass::default(),
        source: SourceClass::default(),
        service,
    };
    let entry = VerdictEntry {
        verdict: Verdict::Allow,
        rule: RuleId(rule),
    };
    Arc::new([(key, entry)].into())
}

fn links() -> Vec<EndpointLink> {
    let add = |name: &str, other: &str| {
        let added = std::process::Command::new("ip")
            .args(["link", "add", name, "type", "veth", "peer", "name", other])
            .status();
        assert!(added.expect("ip runs").success());
    };
    add("a1", "a2");
    add("a3", "a4");
    let link = |id, ifindex, address| EndpointLink {
        id,
        ifindex,
        addresses: vec![ip(address)],
        mac: POD_MAC,
    };
    let index = |name: &str| if_nametoindex(name).expect("a link");
    let [first, second, third, fourth] = ENDPOINTS;
    vec![
        link(first, LOOPBACK, POD),
        link(second, index("a1"), "10.7.0.3"),
        link(third, index("a2"), "10.7.0.4"),
        link(fourth, index("a3"), "10.7.0.5"),
    ]
}

/// Makes a change, and compares what is wanted with what is read back and with what the programs say.
fn step(lab: &mut Lab, links: &[EndpointLink], model: &mut Model, change: &Change, next_port: &mut u16) {
    model.make(change);
    match change {
        Change::Attach { at } => {
            let link = links.get(*at).expect("a link");
            lab.kernel().detach(link.id).expect("detach");
            lab.kernel().attach(link).expect("attach");
        }
        Change::Expire => drop(lab.kernel().expire(monotonic_now()).expect("expire")),
        Change::Restart => lab.restart(),
        _ => {}
    }
    match change {
        Change::Renew => drop(lab.kernel().renew(&model.tables).expect("renew")),
        _ => drop(lab.kernel().sync(&model.tables).expect("sync")),
    }
    let read = lab.kernel().dump().expect("dump");
    for number in 0..PEERS {
        for port in [53, 80] {
            *next_port = next_port.checked_add(1).unwrap_or(1);
            let packet = Packet {
                direction: Direction::Egress,
                peer: peer(number).addr(),
                inside: None,
                protocol: UDP,
                source_port: *next_port,
                port,
            };
            for id in ENDPOINTS {
                let wanted = lookup(&model.tables, id, &packet);
                assert_eq!(lookup(&read, id, &packet), wanted, "{id:?} {packet:?}");
            }
            let ends = Ends {
                source: ip(POD),
                destination: packet.peer,
            };
            let frame = frame(ends, UDP, &udp(packet.source_port, port));
            let wanted = lookup(&model.tables, ENDPOINT, &packet);
            let (verdict, record) = lab.judge(Direction::Egress, &frame);
            assert_eq!(verdict, wanted.verdict, "{packet:?} {record:?}");
        }
    }
}

#[test]
fn whatever_changes_everybody_is_judged_by_what_is_wanted() {
    let cases = Config {
        cases: 12,
        failure_persistence: None,
        ..Config::default()
    };
    let changes = prop::collection::vec(change(), 1..40);
    TestRunner::new(cases)
        .run(&changes, |changes| {
            let mut lab = Lab::new();
            let links = links();
            for link in &links {
                lab.kernel().attach(link).expect("attach");
            }
            let mut model = Model::new();
            let mut port = 0;
            for change in std::iter::once(&Change::Expire).chain(&changes) {
                step(&mut lab, &links, &mut model, change, &mut port);
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// What the classes of before have is not written again, and what nobody needs any more is not kept.
#[test]
fn only_those_who_tell_the_classes_apart_are_written() {
    let mut lab = Lab::new();
    let links = links();
    for link in &links {
        lab.kernel().attach(link).expect("attach");
    }
    let mut model = Model::new();
    let sync = |lab: &mut Lab, model: &mut Model, change: Change| {
        model.make(&change);
        lab.kernel().sync(&model.tables).expect("sync").written
    };
    let entries = usize::from(PEERS) + 2 * ENDPOINTS.len();
    assert_eq!(sync(&mut lab, &mut model, Change::Expire), entries);
    let split = |said| Change::Split { peer: 0, at: 1, said };
    assert_eq!(
        sync(&mut lab, &mut model, split(Said::All)),
        1,
        "the address alone"
    );
    let told_apart = sync(&mut lab, &mut model, split(Said::Dns));
    assert_eq!(
        told_apart,
        1 + 2,
        "the address, that it is another class, and its entry"
    );
    assert_eq!(sync(&mut lab, &mut model, split(Said::Nothing)), 1 + 1);
    // Those of the class that is left answer for the others.
    assert_eq!(sync(&mut lab, &mut model, Change::Join { peer: 1, other: 2 }), 2);
    assert_eq!(sync(&mut lab, &mut model, Change::Forget), 0);
    lab.kernel().expire(monotonic_now()).expect("expire");
    assert_eq!(lab.kernel().dump().expect("dump"), model.tables);
    let renewed = lab.kernel().renew(&model.tables).expect("renew");
    assert_eq!(renewed.rewritten, ENDPOINTS.len());
    lab.kernel().expire(monotonic_now()).expect("expire");
    let counters = lab.kernel().counters().expect("counters");
    let fill = |map| {
        counters
            .fill
            .iter()
            .find(|fill| fill.map == map)
            .map(|fill| fill.entries)
    };
    let verdicts: usize = model
        .tables
        .endpoints
        .values()
        .map(|endpoint| endpoint.verdicts.len())
        .sum();
    assert_eq!(
        (fill("SPLITS"), fill("VERDICTS")),
        (Some(0), u64::try_from(verdicts).ok())
    );
    assert_eq!(lab.kernel().dump().expect("dump"), model.tables);
}

/// More endpoints tell more classes from their parents than `SPLITS` has room for: then none has a parent.
#[test]
fn a_change_that_splits_too_much_is_made_without_parents() {
    const JUDGED: u32 = 300;
    const SPLIT: u32 = 1000;
    let mut lab = Lab::new();
    let address = |high: u8, number: u32| {
        let [_, _, third, last] = number.to_be_bytes();
        IpAddr::from([10, high, third, last])
    };
    let endpoints = (1..=JUDGED).map(EndpointId);
    let own = endpoints
        .clone()
        .map(|id| (address(8, id.0), HostEndpoint { id, untracked: None }));
    let host = HostLink {
        ifindex: LOOPBACK,
        addresses: own.collect(),
        forward: None,
    };
    lab.kernel().attach_host(&host).expect("attach the host");
    let tables = |class: fn(u32) -> u32| {
        let mut own = EndpointTables::default();
        own.verdicts.set_class(IdentityId(1), said(Said::All));
        let entries = said(Said::Dns);
        let classes: BTreeSet<u32> = (0..=SPLIT).map(class).collect();
        for class in classes.into_iter().filter(|class| *class > 1) {
            own.verdicts.set_class(IdentityId(class), Arc::clone(&entries));
        }
        let own = Arc::new(own);
        let peers = (0..=SPLIT).map(|number| (address(9, number).into(), IdentityId(class(number))));
        NodeTables {
            identities: peers.collect(),
            endpoints: endpoints.clone().map(|id| (id, Arc::clone(&own))).collect(),
            ..NodeTables::default()
        }
    };
    const { assert!(JUDGED * SPLIT > MAX_SPLITS) };
    lab.kernel().sync(&tables(|_| 1)).expect("sync");
    let wanted = tables(|number| number + 1);
    lab.kernel()
        .sync(&wanted)
        .expect("what does not fit is written another way");
    let fill = lab.kernel().counters().expect("counters").fill;
    let splits = fill.iter().find(|fill| fill.map == "SPLITS").expect("the map");
    assert_eq!(splits.entries, 0);
    lab.kernel().expire(monotonic_now()).expect("expire");
    assert_eq!(lab.kernel().dump().expect("dump"), wanted);
}
