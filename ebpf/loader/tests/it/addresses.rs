//! Addresses that change their class among many that do not: only what differs is written, and judged right.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ebpf_loader::{Datapath, Reason, Synced};
use ipnet::IpNet;
use policies_ir::tables::{
    Direction, EndpointTables, IdentityId, InsideClass, NodeTables, Packet, RuleId, Service, SourceClass,
    Verdict, VerdictEntry, VerdictKey, lookup,
};

use crate::{
    frames::{Ends, UDP, frame, udp},
    lab::{ENDPOINT, LOOPBACK, Lab, link, tables},
};

const POD: &str = "10.7.0.2";
/// Addresses that have a class of their own.
const PEERS: u16 = 10_000;
/// Shorter prefixes, which each change writes.
const PREFIXES: usize = 2;
/// May be reached, as may what is of no class but that of its prefix in 10.9.0.0/16.
const OPEN: IdentityId = IdentityId(2);
const SHUT: IdentityId = IdentityId(3);

fn peer(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 9, high, low).into()
}

/// Everybody is shut out, but for who is of the prefix's class.
fn many() -> NodeTables {
    let allowed = [
        (Direction::Egress, 0, Service::Any),
        (Direction::Egress, 1, Service::Any),
    ];
    let mut tables = tables(&["10.9.0.0/16"], &allowed);
    let other: IpNet = "10.10.0.0/16".parse().expect("a prefix");
    tables.identities.insert(other, SHUT);
    for number in 0..PEERS {
        tables.identities.insert(peer(number).into(), SHUT);
    }
    tables
}

/// Moves the endpoint to `tables`, which must then be what the kernel has, and judges first packets to `peers` by them.
fn sync(lab: &mut Lab, tables: &NodeTables, peers: impl IntoIterator<Item = u16>) -> Synced {
    let synced = lab.kernel().sync(tables).expect("sync");
    assert_eq!(lab.kernel().dump().expect("dump"), *tables);
    judge(lab, tables, peers);
    synced
}

#[track_caller]
fn judge(lab: &mut Lab, tables: &NodeTables, peers: impl IntoIterator<Item = u16>) {
    for number in peers {
        let packet = Packet {
            direction: Direction::Egress,
            peer: peer(number),
            inside: None,
            protocol: UDP,
            source_port: 1,
            port: 2,
        };
        let ends = Ends {
            source: POD.parse().expect("an address"),
            destination: packet.peer,
        };
        let frame = frame(ends, UDP, &udp(packet.source_port, packet.port));
        match lookup(tables, ENDPOINT, &packet).verdict {
            Verdict::Allow => lab.assert_allowed(Direction::Egress, &frame),
            Verdict::Deny => lab.assert_denied(Direction::Egress, &frame, Reason::Policy),
        }
        while lab.record().is_some() {}
    }
}

fn identities(lab: &mut Lab) -> u64 {
    let counters = lab.kernel().counters().expect("counters");
    let both = ["HOSTS", "IDENTITIES"];
    let fill = counters.fill.iter().filter(|fill| both.contains(&fill.map));
    fill.map(|fill| fill.entries).sum()
}

#[test]
fn one_address_of_many_changes_its_class_and_little_is_written() {
    let mut lab = Lab::new();
    lab.kernel().attach(&link(LOOPBACK, &[POD])).expect("attach");
    let mut tables = many();
    let all = tables.identities.len();
    let first = sync(&mut lab, &tables, [0, 77, 78]);
    assert!(first.written > all, "{} written", first.written);

    tables.identities.insert(peer(77).into(), OPEN);
    let moved = sync(&mut lab, &tables, [0, 77, 78]);
    assert_eq!((moved.written, moved.rewritten), (PREFIXES + 1, 0));
    // Without a class of its own it has the prefix's, though the first of the group has one for it.
    tables.identities.remove(&peer(78).into());
    let gone = sync(&mut lab, &tables, [0, 77, 78]);
    assert_eq!(
        gone.written,
        PREFIXES + 2,
        "all that is not as in the first of the group"
    );
    // One that is new.
    let new = peer(PEERS);
    judge(&mut lab, &tables, [PEERS]);
    tables.identities.insert(new.into(), SHUT);
    let added = sync(&mut lab, &tables, [0, 77, 78, PEERS]);
    assert_eq!(added.written, PREFIXES + 3);
    // And all back.
    let tables = many();
    let back = sync(&mut lab, &tables, [0, 77, 78, PEERS]);
    assert_eq!(back.written, PREFIXES);

    // What is between the first of the group and the last is deleted, and nothing else.
    lab.kernel().expire(ebpf_loader::monotonic_now()).expect("expire");
    assert_eq!(identities(&mut lab), u64::try_from(all + PREFIXES).expect("few"));
    sync(&mut lab, &tables, [0, 77, 78, PEERS]);
}

#[test]
fn many_addresses_that_change_are_all_written() {
    let mut lab = Lab::new();
    lab.kernel().attach(&link(LOOPBACK, &[POD])).expect("attach");
    let mut tables = many();
    sync(&mut lab, &tables, [0]);
    for number in 0..PEERS / 2 {
        tables.identities.insert(peer(number).into(), OPEN);
    }
    let half = sync(&mut lab, &tables, [0, PEERS / 2]);
    assert_eq!(half.written, tables.identities.len());
    tables.identities.insert(peer(0).into(), SHUT);
    let one = sync(&mut lab, &tables, [0, 1, PEERS / 2]);
    assert_eq!(one.written, PREFIXES + 1, "to what was written last");
}

/// An endpoint of one entry.
fn said(rule: u32) -> Arc<EndpointTables> {
    let key = VerdictKey {
        peer: OPEN,
        direction: Direction::Egress,
        inside: InsideClass::default(),
        source: SourceClass(0),
        service: Service::Any,
    };
    let entry = VerdictEntry {
        verdict: Verdict::Allow,
        rule: RuleId(64 + rule),
    };
    let verdicts = [(key, entry)].into_iter().collect();
    let sources = Default::default();
    Arc::new(EndpointTables {
        sources,
        verdicts,
        ..EndpointTables::default()
    })
}

/// Forty changes of addresses, over more than two groups, with and without what is left of earlier ones. Changes of
/// policy between them use up numbers, and so most of a group.
#[test]
fn many_changes_in_a_row_stay_right() {
    let mut lab = Lab::new();
    let link = link(LOOPBACK, &[POD]);
    lab.kernel().attach(&link).expect("attach");
    let mut tables = many();
    let all = tables.identities.len();
    sync(&mut lab, &tables, [0]);
    let mut whole = 0;
    for change in 1..=40_u16 {
        for rule in 0..ebpf_abi::GENERATION_GROUP / 16 - 1 {
            let other = NodeTables {
                endpoints: [(ENDPOINT, said(rule % 2))].into(),
                ..tables.clone()
            };
            let synced = lab.kernel().sync(&other).expect("sync");
            assert_eq!(
                (synced.written, synced.rewritten),
                (1, 1),
                "one entry and no address"
            );
        }
        let net = peer(change).into();
        match change % 3 {
            0 => drop(tables.identities.remove(&net)),
            _ => drop(tables.identities.insert(net, OPEN)),
        }
        let returns = peer(change / 2).into();
        tables.identities.insert(returns, SHUT);
        let synced = sync(&mut lab, &tables, 0..=change);
        if synced.written >= all / 2 {
            whole += 1;
        } else {
            // Two addresses of each of the sixteen changes in a group, and the endpoint's two entries.
            assert!(
                synced.written <= PREFIXES + 2 * 16 + 2,
                "change {change}: {synced:?}"
            );
        }
        if change % 7 == 0 {
            lab.kernel().expire(ebpf_loader::monotonic_now()).expect("expire");
            judge(&mut lab, &tables, 0..=change);
        }
    }
    assert!((2..=3).contains(&whole), "{whole} groups began");
}

#[test]
fn an_agent_that_begins_in_the_middle_of_a_group_knows_what_it_means() {
    let mut lab = Lab::new();
    let link = link(LOOPBACK, &[POD]);
    lab.kernel().attach(&link).expect("attach");
    let mut tables = many();
    sync(&mut lab, &tables, [0]);
    tables.identities.insert(peer(1).into(), OPEN);
    tables.identities.remove(&peer(2).into());
    sync(&mut lab, &tables, 0..4);

    lab.restart();
    assert_eq!(lab.kernel().dump().expect("dump"), tables);
    // Nothing that counts is deleted, though the new agent wrote none of it.
    lab.kernel().expire(ebpf_loader::monotonic_now()).expect("expire");
    assert_eq!(lab.kernel().dump().expect("dump"), tables);
    judge(&mut lab, &tables, 0..4);

    tables.identities.insert(peer(3).into(), OPEN);
    let first = sync(&mut lab, &tables, 0..5);
    assert!(
        first.written >= tables.identities.len(),
        "its first change is whole"
    );
    tables.identities.insert(peer(4).into(), OPEN);
    let second = sync(&mut lab, &tables, 0..6);
    assert_eq!(second.written, PREFIXES + 1);
    lab.kernel().expire(ebpf_loader::monotonic_now()).expect("expire");
    assert_eq!(
        identities(&mut lab),
        u64::try_from(tables.identities.len() + PREFIXES + 1).expect("few")
    );
    judge(&mut lab, &tables, 0..6);
}
