//! Interfaces of the host: what is judged there, and what a host cannot do without.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use aya::maps::{Array, Map, MapData};
use ebpf_abi::PEER_BUCKETS;
use ebpf_loader::{Datapath, HostEndpoint, HostLink};
use nix::sched::{CloneFlags, setns, unshare};
use policies_compiler::{HostEndpointIds, Source, compile, load_objects};
use policies_ir::tables::{
    BuiltinRule, Direction, EndpointId, EndpointTables, IdentityId, InsideClass, Insides, NodeTables, Packet,
    RuleId, Service, SourceClass, Verdict, VerdictEntry, VerdictKey, lookup,
};
use serde_json::json;

use crate::{
    fragments::fragment,
    frames::{ACK, Ends, ICMPV6, RST, SYN, TCP, UDP, ethernet, frame, icmp, sctp, segment, tcp, udp},
    lab::{LOOPBACK, Lab, attached_both_ways, ip},
    link::run,
    wire::Wire,
};

const SCTP: u8 = 132;
pub(crate) const HOST: &str = "192.0.2.1";
const OTHER: &str = "192.0.2.2";
pub(crate) const CLIENT: &str = "198.51.100.7";
const BEHIND: &str = "10.7.0.2";

pub(crate) const LOCAL: EndpointId = EndpointId(100);
pub(crate) const FORWARD: EndpointId = EndpointId(101);
const UNTRACKED: EndpointId = EndpointId(102);

pub(crate) const INGRESS: Direction = Direction::Ingress;
pub(crate) const EGRESS: Direction = Direction::Egress;

pub(crate) fn endpoint(id: EndpointId) -> HostEndpoint {
    HostEndpoint { id, untracked: None }
}

pub(crate) const fn port(protocol: u8, port: u16) -> Service {
    Service::Ports {
        protocol,
        port,
        prefix_bits: 16,
    }
}

pub(crate) type Entry = (Direction, Service, Verdict);

/// Tables in which everyone is one peer, and each endpoint has these entries.
pub(crate) fn tables(endpoints: &[(EndpointId, &[Entry])]) -> NodeTables {
    let mut tables = NodeTables::default();
    for net in ["0.0.0.0/0", "::/0"] {
        tables
            .identities
            .insert(net.parse().expect("a prefix"), IdentityId(1));
    }
    for (id, entries) in endpoints {
        let mut own = EndpointTables::default();
        for (rule, (direction, service, verdict)) in (64..).zip(*entries) {
            let key = VerdictKey {
                peer: IdentityId(1),
                direction: *direction,
                inside: InsideClass::default(),
                source: SourceClass(0),
                service: *service,
            };
            let entry = VerdictEntry {
                verdict: *verdict,
                rule: RuleId(rule),
            };
            own.verdicts.insert(key, entry);
        }
        tables.endpoints.insert(*id, own.into());
    }
    tables
}

/// A host with one address and one interface, the loopback of the test's network namespace.
pub(crate) fn host_link(local: Option<HostEndpoint>, forward: Option<HostEndpoint>) -> HostLink {
    HostLink {
        ifindex: LOOPBACK,
        addresses: local.into_iter().map(|endpoint| (ip(HOST), endpoint)).collect(),
        forward,
    }
}

fn judge(lab: &mut Lab, direction: Direction, frame: &[u8]) -> Verdict {
    lab.kernel()
        .run_host_frame(direction, LOOPBACK, 0, frame)
        .expect("run the program")
}

fn to_host(protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame(Ends::new(CLIENT, HOST), protocol, payload)
}

fn from_host(protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame(Ends::new(HOST, CLIENT), protocol, payload)
}

pub(crate) const ALLOW: Verdict = Verdict::Allow;
pub(crate) const DENY: Verdict = Verdict::Deny;

attached_both_ways! {
    fn packets_of_the_hosts_addresses_are_judged_and_tracked(attachment) {
        let mut lab = Lab::attached(attachment);
        lab.kernel()
            .attach_host(&host_link(Some(endpoint(LOCAL)), None))
            .expect("attach");
        let syn = to_host(TCP, &tcp(1000, 22, SYN));
        assert_eq!(
            judge(&mut lab, INGRESS, &syn),
            ALLOW,
            "no tables yet: the host is reachable"
        );
        let entries = [(INGRESS, port(TCP, 22), ALLOW), (EGRESS, port(UDP, 53), ALLOW)];
        lab.kernel().sync(&tables(&[(LOCAL, &entries)])).expect("sync");
        for (direction, frame, verdict) in [
            (INGRESS, to_host(TCP, &tcp(1000, 22, RST | ACK)), DENY),
            (INGRESS, syn.clone(), ALLOW),
            (EGRESS, from_host(TCP, &tcp(22, 1000, SYN | ACK)), ALLOW),
            (INGRESS, to_host(TCP, &tcp(1000, 22, ACK)), ALLOW),
            (INGRESS, to_host(TCP, &tcp(1000, 23, SYN)), DENY),
            (EGRESS, from_host(UDP, &udp(1000, 53)), ALLOW),
            (INGRESS, to_host(UDP, &udp(53, 1000)), ALLOW),
            (EGRESS, from_host(UDP, &udp(1000, 54)), DENY),
            // Another address, without an endpoint.
            (
                INGRESS,
                frame(Ends::new(CLIENT, OTHER), TCP, &tcp(1000, 23, SYN)),
                ALLOW,
            ),
        ] {
            assert_eq!(
                judge(&mut lab, direction, &frame),
                verdict,
                "{direction:?} {frame:?}"
            );
        }
        // Flows belong to the endpoint and go with it, and the interface is open again.
        assert_eq!(lab.kernel().tracked_flows().expect("flows").len(), 2);
        lab.kernel()
            .attach_host(&HostLink::none(LOOPBACK))
            .expect("detach");
        assert_eq!(lab.kernel().tracked_flows().expect("flows"), []);
        assert_eq!(lab.kernel().attached_hosts().expect("attached"), []);
        assert_eq!(
            judge(&mut lab, INGRESS, &to_host(TCP, &tcp(1000, 23, SYN))),
            ALLOW
        );
    }
}

/// Another host endpoint that takes the interface over.
const NEXT: EndpointId = EndpointId(200);
const NEXT_FORWARD: EndpointId = EndpointId(201);

attached_both_ways! {
    /// The endpoint of before judges until the tables of the next one are there, also if its own are wanted no more and
    /// if nothing can be written.
    fn an_interface_is_taken_over_with_its_next_tables(attachment) {
        let mut lab = Lab::attached(attachment);
        let before = host_link(Some(endpoint(LOCAL)), Some(endpoint(FORWARD)));
        lab.kernel().attach_host(&before).expect("attach");
        let old = [(INGRESS, port(TCP, 80), ALLOW)];
        lab.kernel().sync(&tables(&[(LOCAL, &old), (FORWARD, &old)])).expect("sync");
        let next = host_link(Some(endpoint(NEXT)), Some(endpoint(NEXT_FORWARD)));
        let prepared = next.endpoints().collect();
        let new = [(INGRESS, port(TCP, 81), ALLOW)];
        let new = tables(&[(NEXT, &new), (NEXT_FORWARD, &new)]);

        fn judged(lab: &mut Lab, open: u16, client: u16) {
            for to in [HOST, BEHIND] {
                for number in [80, 81, 82] {
                    let syn = frame(Ends::new(CLIENT, to), TCP, &tcp(client, number, SYN));
                    let expected = if number == open { ALLOW } else { DENY };
                    assert_eq!(judge(lab, INGRESS, &syn), expected, "{to} port {number}");
                }
            }
        }
        judged(&mut lab, 80, 1000);
        lab.kernel().prepare_hosts(&prepared).expect("prepare");
        judged(&mut lab, 80, 1001);
        let mut too_many = new.clone();
        for number in 0..ebpf_abi::MAX_IDENTITIES {
            let address = std::net::Ipv4Addr::from_bits(0x0b00_0000 + number);
            let address = std::net::IpAddr::from(address).into();
            too_many.identities.insert(address, IdentityId(1));
        }
        lab.kernel().sync(&too_many).expect_err("there is no room");
        judged(&mut lab, 80, 1002);
        lab.kernel().sync(&new).expect("sync");
        judged(&mut lab, 80, 1003);
        lab.kernel().attach_host(&next).expect("attach");
        judged(&mut lab, 81, 1004);
        assert_eq!(lab.kernel().attached_hosts().expect("attached"), [next]);
        let dumped = lab.kernel().dump().expect("dump");
        let judging: Vec<EndpointId> = dumped.endpoints.into_keys().collect();
        assert_eq!(judging, [NEXT, NEXT_FORWARD]);

        // What was prepared in vain leaves nothing, and takes nothing along.
        let flows = lab.kernel().tracked_flows().expect("flows").len();
        assert!(flows > 0);
        lab.kernel().prepare_hosts(&[LOCAL].into()).expect("prepare");
        lab.kernel().prepare_hosts(&[].into()).expect("forget");
        assert_eq!(lab.kernel().tracked_flows().expect("flows").len(), flows);
        let fill = lab.kernel().counters().expect("count").fill;
        let slots = fill.iter().find(|fill| fill.map == "SLOTS").map(|fill| fill.entries);
        assert_eq!(slots, Some(2));
    }
}

attached_both_ways! {
    /// Tables do not fit, and the endpoint has none of before: a few entries judge, for which there is room, over a restart
    /// too, until there is room for all.
    fn a_new_endpoint_whose_tables_do_not_fit_is_closed(attachment) {
        let mut lab = Lab::attached(attachment);
        let link = host_link(Some(endpoint(LOCAL)), Some(endpoint(FORWARD)));
        let failsafe = [(INGRESS, port(TCP, 22), ALLOW), (EGRESS, port(UDP, 53), ALLOW)];
        let closed = tables(&[(LOCAL, &failsafe), (FORWARD, &[])]);
        let open = [(INGRESS, Service::Any, ALLOW)];
        let wanted = tables(&[(LOCAL, &open), (FORWARD, &open)]);
        let prepared: BTreeSet<EndpointId> = link.endpoints().collect();
        lab.kernel().prepare_hosts(&prepared).expect("prepare");
        lab.kernel().close_hosts(&closed).expect("close");
        lab.kernel().attach_host(&link).expect("attach");
        fn is_closed(lab: &mut Lab, open: u16, client: u16) {
            for number in [22, 23, 80] {
                let expected = if number == open { ALLOW } else { DENY };
                let syn = to_host(TCP, &tcp(client, number, SYN));
                assert_eq!(judge(lab, INGRESS, &syn), expected, "port {number}");
                let through = frame(Ends::new(CLIENT, BEHIND), TCP, &tcp(client, number, SYN));
                assert_eq!(judge(lab, INGRESS, &through), DENY, "port {number}, forwarded");
            }
        }
        is_closed(&mut lab, 22, 1000);
        assert_eq!(judge(&mut lab, EGRESS, &from_host(TCP, &tcp(22, 1000, SYN | ACK))), ALLOW);
        assert_eq!(judge(&mut lab, EGRESS, &from_host(UDP, &udp(1000, 53))), ALLOW);
        assert_eq!(judge(&mut lab, EGRESS, &from_host(UDP, &udp(1000, 54))), DENY);
        lab.restart();
        is_closed(&mut lab, 22, 1001);
        assert_eq!(lab.kernel().attached_hosts().expect("attached"), [link]);
        assert_eq!(lab.kernel().places().expect("places").closed, prepared);
        assert_eq!(lab.kernel().dump().expect("dump"), NodeTables::default());
        // Other failsafe ports take the place of those of before, also in a flow that these have allowed.
        let other = [(INGRESS, port(TCP, 23), ALLOW)];
        lab.kernel()
            .close_hosts(&tables(&[(LOCAL, &other), (FORWARD, &[])]))
            .expect("close again");
        is_closed(&mut lab, 23, 1002);
        assert_eq!(judge(&mut lab, INGRESS, &to_host(TCP, &tcp(1000, 22, ACK))), DENY);
        lab.kernel().sync(&wanted).expect("sync");
        let syn = to_host(TCP, &tcp(1003, 80, SYN));
        assert_eq!(judge(&mut lab, INGRESS, &syn), ALLOW);
        // Nothing is left of it, and whoever has tables is not closed.
        lab.kernel().close_hosts(&closed).expect("nothing to close");
        lab.kernel().expire(ebpf_loader::monotonic_now()).expect("expire");
        assert_eq!(lab.kernel().dump().expect("dump"), wanted);
        let fill = lab.kernel().counters().expect("count").fill;
        let of = |map| fill.iter().find(|fill| fill.map == map).map(|fill| fill.entries);
        assert_eq!((of("VERDICTS"), of("IDENTITIES")), (Some(2), Some(2)));
    }
}

attached_both_ways! {
    /// There is no room for all addresses at an interface: whatever it has no entry for is an endpoint's that denies all,
    /// before anything is taken away, until it has them.
    fn an_interface_that_has_some_addresses_alone_is_closed_to_others(attachment) {
        const CLOSED: EndpointId = EndpointId(7);
        let mut lab = Lab::attached(attachment);
        let mut whole = host_link(Some(endpoint(LOCAL)), None);
        whole.addresses.insert(ip(OTHER), endpoint(LOCAL));
        let open = tables(&[(LOCAL, &[(INGRESS, Service::Any, ALLOW), (EGRESS, Service::Any, ALLOW)])]);
        let narrow = host_link(Some(endpoint(LOCAL)), Some(endpoint(CLOSED)));
        lab.kernel().prepare_hosts(&whole.endpoints().collect()).expect("prepare");
        lab.kernel().sync(&open).expect("sync");
        lab.kernel().attach_host(&whole).expect("attach");
        let to = |host: &str, port| frame(Ends::new(CLIENT, host), TCP, &tcp(port, 22, SYN));
        assert_eq!(judge(&mut lab, INGRESS, &to(OTHER, 1000)), ALLOW);
        lab.kernel().prepare_hosts(&[CLOSED].into()).expect("prepare");
        lab.kernel().sync(&open).expect("sync");
        lab.kernel().close_hosts(&tables(&[(CLOSED, &[])])).expect("close");
        lab.kernel().attach_host(&narrow).expect("narrow");
        let is_narrow = |lab: &mut Lab, port: u16| {
            assert_eq!(judge(lab, INGRESS, &to(HOST, port)), ALLOW);
            assert_eq!(judge(lab, EGRESS, &from_host(TCP, &tcp(22, port, SYN | ACK))), ALLOW);
            for host in [OTHER, BEHIND] {
                assert_eq!(judge(lab, INGRESS, &to(host, port)), DENY, "{host}");
                let sent = frame(Ends::new(host, CLIENT), TCP, &tcp(port, 22, SYN));
                assert_eq!(judge(lab, EGRESS, &sent), DENY, "{host}");
            }
            // Part of a flow that was allowed.
            let later = frame(Ends::new(CLIENT, OTHER), TCP, &tcp(1000, 22, ACK));
            assert_eq!(judge(lab, INGRESS, &later), DENY);
        };
        is_narrow(&mut lab, 1001);
        lab.restart();
        assert_eq!(lab.kernel().attached_hosts().expect("attached"), [narrow]);
        lab.kernel().sync(&open).expect("sync");
        is_narrow(&mut lab, 1002);
        // It is no part of the tables, and is told.
        assert_eq!(lab.kernel().dump().expect("dump"), open);
        assert_eq!(lab.kernel().places().expect("places").closed, [CLOSED].into());
        lab.kernel().attach_host(&whole).expect("attach");
        for host in [OTHER, BEHIND] {
            assert_eq!(judge(&mut lab, INGRESS, &to(host, 1003)), ALLOW, "{host}");
        }
        assert!(lab.kernel().places().expect("places").closed.is_empty());
    }
}

attached_both_ways! {
    fn forwarded_packets_have_an_endpoint_of_their_own(attachment) {
        let mut lab = Lab::attached(attachment);
        let link = host_link(Some(endpoint(LOCAL)), Some(endpoint(FORWARD)));
        lab.kernel().attach_host(&link).expect("attach");
        let web = [(INGRESS, port(TCP, 80), ALLOW)];
        lab.kernel()
            .sync(&tables(&[(LOCAL, &[]), (FORWARD, &web)]))
            .expect("sync");
        let through = |port| frame(Ends::new(CLIENT, BEHIND), TCP, &tcp(1000, port, SYN));
        assert_eq!(judge(&mut lab, INGRESS, &through(80)), ALLOW);
        assert_eq!(judge(&mut lab, INGRESS, &through(81)), DENY);
        assert_eq!(judge(&mut lab, INGRESS, &to_host(TCP, &tcp(1000, 80, SYN))), DENY);
        // Two receivers behind the host, the same ports: two flows. An answer belongs to the one that was asked.
        let answer = |from: &str| frame(Ends::new(from, CLIENT), TCP, &tcp(80, 1000, SYN | ACK));
        assert_eq!(judge(&mut lab, EGRESS, &answer(BEHIND)), ALLOW);
        assert_eq!(judge(&mut lab, EGRESS, &answer("10.7.0.3")), DENY);
        assert_eq!(lab.kernel().attached_hosts().expect("attached"), [link]);
    }
}

/// Tables by which these may be reached at port 80, and all others at port 81, by what the host forwards; each kind of
/// address is a class of its own at both ends.
fn inside_tables(web: &[&str], endpoint: EndpointId) -> NodeTables {
    let mut tables = tables(&[(endpoint, &[])]);
    let addresses = web.iter().map(|address| (ip(address).into(), IdentityId(2)));
    tables.identities.extend(addresses);
    let mut own = EndpointTables::default();
    for (class, allowed) in [(1, 81), (2, 80)] {
        let insides = Insides {
            ingress: InsideClass(class),
            egress: InsideClass(0),
        };
        own.insides.insert(IdentityId(class.into()), insides);
        for peer in [1, 2].map(IdentityId) {
            let key = VerdictKey {
                peer,
                direction: INGRESS,
                inside: InsideClass(class),
                source: SourceClass(0),
                service: port(TCP, allowed),
            };
            let entry = VerdictEntry {
                verdict: ALLOW,
                rule: RuleId(64 + u32::from(class)),
            };
            own.verdicts.insert(key, entry);
        }
    }
    tables.endpoints.insert(endpoint, own.into());
    tables
}

/// Tables of the node with these addresses and a host endpoint for all interfaces, which expects none of them: what it takes
/// and sends depends on which one it is.
fn tables_by_address(web: &[&str]) -> NodeTables {
    let every = json!({"kind": "HostEndpoint", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "every",
        "labels": {"edge": ""}}, "spec": {"node": "here", "interfaceName": "*"}});
    let nets = |family: char| -> Vec<String> {
        let of_family = web.iter().filter(|net| net.contains(':') == (family == ':'));
        of_family.map(|net| (*net).to_owned()).collect()
    };
    let rules = |end: &str| {
        let rules = ['.', ':']
            .map(|family| json!({"action": "Allow", "protocol": "TCP", end: {"nets": nets(family)}}));
        let rules = rules.into_iter().filter(|rule| rule[end]["nets"] != json!([]));
        rules.collect::<Vec<_>>()
    };
    let policy = json!({"kind": "GlobalNetworkPolicy", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "p"},
        "spec": {"selector": "has(edge)", "types": ["Ingress", "Egress"],
            "ingress": rules("destination"), "egress": rules("source")}});
    let sources = [every, policy];
    let sources = sources.iter().map(|object| Source {
        origin: "here",
        object,
    });
    let mut view = load_objects(sources).expect("objects").view;
    "here".clone_into(&mut view.node);
    view.host_addresses = NODE.map(ip).into();
    let ids = HostEndpointIds {
        local: LOCAL,
        forwarded: FORWARD,
        untracked: UNTRACKED,
    };
    view.host_endpoints.insert("every".to_owned(), ids);
    compile(&view).tables
}

const NODE: [&str; 4] = [HOST, OTHER, "2001:db8:1::1", "2001:db8:1::2"];

attached_both_ways! {
    /// Flows of before are judged again by what their address is then.
    fn the_hosts_own_packets_are_told_apart_by_their_address(attachment) {
        let mut lab = Lab::attached(attachment);
        let addresses = NODE.into_iter().chain(["fe80::1"]);
        let link = HostLink {
            addresses: addresses.map(|address| (ip(address), endpoint(LOCAL))).collect(),
            ..host_link(None, None)
        };
        lab.kernel().attach_host(&link).expect("attach");
        let judged = |lab: &mut Lab, direction: Direction, own: &str, port: u16, flags: u8| {
            let client = if own.contains(':') { "2001:db8::7" } else { CLIENT };
            let (ends, ports) = match direction {
                INGRESS => (Ends::new(client, own), (1000, port)),
                EGRESS => (Ends::new(own, client), (1000, port)),
            };
            judge(lab, direction, &frame(ends, TCP, &tcp(ports.0, ports.1, flags)))
        };
        for web in [[HOST, "2001:db8:1::1"], [OTHER, "fe80::1"]] {
            let tables = tables_by_address(&web);
            lab.kernel().sync(&tables).expect("sync");
            assert_eq!(lab.kernel().dump().expect("dump").endpoints, tables.endpoints);
            for own in link.addresses.keys().map(ToString::to_string) {
                let expected = if web.contains(&own.as_str()) { ALLOW } else { DENY };
                for direction in [INGRESS, EGRESS] {
                    let packet = Packet {
                        direction,
                        peer: if own.contains(':') { ip("2001:db8::7") } else { ip(CLIENT) },
                        inside: Some(ip(&own)),
                        protocol: TCP,
                        source_port: 1000,
                        port: 80,
                    };
                    assert_eq!(lookup(&tables, LOCAL, &packet).verdict, expected, "{direction:?} {own}");
                    // Of the flow of before, if there is one; and a new one.
                    assert_eq!(judged(&mut lab, direction, &own, 80, ACK), expected, "{direction:?} {own}, tracked");
                    assert_eq!(judged(&mut lab, direction, &own, 80, SYN), expected, "{direction:?} {own}");
                }
                // Failsafe ports are asked for before any address is.
                assert_eq!(judged(&mut lab, INGRESS, &own, 22, SYN), ALLOW, "{own}");
            }
        }
    }
}

/// What comes in from outside for an address behind the host, of either family.
fn through(inside: &str, port: u16, flags: u8) -> Vec<u8> {
    let client = if inside.contains(':') {
        "2001:db8::7"
    } else {
        CLIENT
    };
    frame(Ends::new(client, inside), TCP, &tcp(1000, port, flags))
}

attached_both_ways! {
    fn forwarded_packets_are_told_apart_by_the_address_inside(attachment) {
        const WEB: [&str; 2] = ["10.7.0.2", "fd07::2"];
        const OTHERS: [&str; 2] = ["10.7.0.3", "fd07::3"];
        let mut lab = Lab::attached(attachment);
        let link = host_link(None, Some(endpoint(FORWARD)));
        lab.kernel().attach_host(&link).expect("attach");
        let tables = inside_tables(&WEB, FORWARD);
        lab.kernel().sync(&tables).expect("sync");
        assert_eq!(lab.kernel().dump().expect("dump"), tables);
        for (addresses, open, shut) in [(WEB, 80, 81), (OTHERS, 81, 80)] {
            for inside in addresses {
                for (port, expected) in [(open, ALLOW), (shut, DENY)] {
                    let packet = Packet {
                        direction: INGRESS,
                        peer: if inside.contains(':') { ip("2001:db8::7") } else { ip(CLIENT) },
                        inside: Some(ip(inside)),
                        protocol: TCP,
                        source_port: 1000,
                        port,
                    };
                    assert_eq!(lookup(&tables, FORWARD, &packet).verdict, expected);
                    let found = judge(&mut lab, INGRESS, &through(inside, port, SYN));
                    assert_eq!(found, expected, "{inside} {port}");
                }
            }
        }
        let flows = lab.kernel().tracked_flows().expect("flows");
        assert_eq!(flows.len(), 4);
        assert!(flows.iter().all(|flow| flow.endpoint == FORWARD));
        let answer = frame(Ends::new(WEB[0], CLIENT), TCP, &tcp(80, 1000, SYN | ACK));
        assert_eq!(judge(&mut lab, EGRESS, &answer), ALLOW);

        // Addresses that become another kind are judged again at their next packet, those that stay are not cut off.
        lab.kernel()
            .sync(&inside_tables(&[OTHERS[0], WEB[1]], FORWARD))
            .expect("sync");
        for (inside, port, expected) in [
            (WEB[0], 80, DENY),
            (OTHERS[0], 81, DENY),
            (WEB[1], 80, ALLOW),
            (OTHERS[1], 81, ALLOW),
        ] {
            let found = judge(&mut lab, INGRESS, &through(inside, port, ACK));
            assert_eq!(found, expected, "{inside} {port}, tracked");
        }
        assert_eq!(judge(&mut lab, INGRESS, &through(WEB[0], 81, SYN)), ALLOW);
        assert_eq!(judge(&mut lab, INGRESS, &through(OTHERS[0], 80, SYN)), ALLOW);
    }
}

attached_both_ways! {
    /// Where rules ask who is inside, an address that nothing is known of is denied: nothing falls back to another kind.
    fn nothing_holds_of_an_address_inside_that_has_no_kind(attachment) {
        let mut lab = Lab::attached(attachment);
        let both = HostEndpoint {
            id: FORWARD,
            untracked: Some(UNTRACKED),
        };
        lab.kernel()
            .attach_host(&host_link(None, Some(both)))
            .expect("attach");
        let mut tables = inside_tables(&[BEHIND], FORWARD);
        let forward = tables.endpoints.get_mut(&FORWARD).expect("the endpoint");
        std::sync::Arc::make_mut(forward).insides.remove(&IdentityId(1));
        // Before flows are known, the same rules, for the other kind alone.
        let mut untracked = inside_tables(&[BEHIND], UNTRACKED);
        let untracked = untracked.endpoints.remove(&UNTRACKED).expect("the endpoint");
        lab.kernel().sync(&tables).expect("sync");
        for (inside, port, expected) in [
            (BEHIND, 80, ALLOW),
            (BEHIND, 81, DENY),
            ("10.7.0.3", 80, DENY),
            ("10.7.0.3", 81, DENY),
        ] {
            let found = judge(&mut lab, INGRESS, &through(inside, port, SYN));
            assert_eq!(found, expected, "{inside} {port}");
        }
        tables.endpoints.insert(UNTRACKED, untracked);
        lab.kernel().sync(&tables).expect("sync");
        assert_eq!(lab.kernel().dump().expect("dump"), tables);
        let tracked = lab.kernel().tracked_flows().expect("flows").len();
        assert_eq!(judge(&mut lab, INGRESS, &through("10.7.0.3", 81, SYN)), ALLOW);
        assert_eq!(judge(&mut lab, INGRESS, &through("10.7.0.3", 80, SYN)), DENY);
        assert_eq!(lab.kernel().tracked_flows().expect("flows").len(), tracked);
    }
}

/// One agent after another finds what the one before wrote, adds the kinds of new addresses to it, and removes what
/// nobody asks for any more.
#[test]
fn kinds_of_addresses_inside_come_and_go_with_the_tables() {
    let mut lab = Lab::new();
    let link = host_link(None, Some(endpoint(FORWARD)));
    lab.kernel().attach_host(&link).expect("attach");
    let fill = |lab: &mut Lab| {
        lab.kernel().expire(ebpf_loader::monotonic_now()).expect("expire");
        let fill = lab.kernel().counters().expect("counters").fill;
        let of = |name| {
            fill.iter()
                .find(|fill| fill.map == name)
                .expect("the map")
                .entries
        };
        (of("INSIDES"), of("VERDICTS"))
    };
    let tables = inside_tables(&[BEHIND], FORWARD);
    lab.kernel().sync(&tables).expect("sync");
    assert_eq!(fill(&mut lab), (2, 4));
    // A class that nobody had is added to the entries that there are.
    let mut more = tables.clone();
    more.identities.insert(ip("10.7.0.9").into(), IdentityId(7));
    let own = std::sync::Arc::make_mut(more.endpoints.get_mut(&FORWARD).expect("the endpoint"));
    let kind = own.insides[&IdentityId(2)];
    own.insides.insert(IdentityId(7), kind);
    let synced = lab.kernel().sync(&more).expect("sync");
    assert_eq!(synced.rewritten, 0);
    assert_eq!(lab.kernel().dump().expect("dump"), more);
    assert_eq!(fill(&mut lab), (3, 4));
    assert_eq!(judge(&mut lab, INGRESS, &through("10.7.0.9", 81, SYN)), DENY);
    lab.restart();
    assert_eq!(lab.kernel().dump().expect("dump"), more);
    assert_eq!(judge(&mut lab, INGRESS, &through(BEHIND, 80, SYN)), ALLOW);
    assert_eq!(judge(&mut lab, INGRESS, &through(BEHIND, 81, SYN)), DENY);
    // A kind that is another one is not written over what a program may ask for.
    let swapped = inside_tables(&["10.7.0.3"], FORWARD);
    assert_eq!(lab.kernel().sync(&swapped).expect("sync").rewritten, 1);
    assert_eq!(fill(&mut lab), (2, 4));
    assert_eq!(judge(&mut lab, INGRESS, &through(BEHIND, 81, SYN)), ALLOW);
    // An endpoint that is in no tables any more keeps what it has until its interface has another, or none.
    lab.kernel().sync(&NodeTables::default()).expect("sync");
    assert_eq!(fill(&mut lab), (2, 4));
    lab.kernel()
        .attach_host(&HostLink::none(LOOPBACK))
        .expect("detach");
    assert_eq!(fill(&mut lab), (0, 0));
}

attached_both_ways! {
    fn untracked_rules_come_first_and_track_nothing(attachment) {
        let mut lab = Lab::attached(attachment);
        let both = HostEndpoint {
            id: LOCAL,
            untracked: Some(UNTRACKED),
        };
        lab.kernel()
            .attach_host(&host_link(Some(both), None))
            .expect("attach");
        let untracked = [
            (INGRESS, port(UDP, 53), ALLOW),
            (INGRESS, port(TCP, 80), DENY),
            (INGRESS, Service::Protocol(SCTP), ALLOW),
            (INGRESS, port(SCTP, 80), DENY),
        ];
        let tracked = [
            (INGRESS, Service::Protocol(TCP), ALLOW),
            (INGRESS, port(UDP, 53), DENY),
        ];
        let mut tables = tables(&[(LOCAL, &tracked), (UNTRACKED, &untracked)]);
        // Nobody's decision: it takes a port out of what the protocol has.
        let untracked = tables.endpoints.get_mut(&UNTRACKED).expect("the endpoint");
        let verdicts = &mut std::sync::Arc::make_mut(untracked).verdicts;
        for (key, entry) in verdicts.clone().iter() {
            if key.service == port(SCTP, 80) {
                let rule = BuiltinRule::NoMatch.id();
                verdicts.insert(key, VerdictEntry { rule, ..entry });
            }
        }
        let tracked = tables.endpoints.get_mut(&LOCAL).expect("the endpoint");
        let (any_peer, _) = tracked.verdicts.iter().next().expect("an entry");
        let of_sctp = VerdictKey {
            service: Service::Protocol(SCTP),
            ..any_peer
        };
        let allow = VerdictEntry {
            verdict: ALLOW,
            rule: RuleId(64),
        };
        std::sync::Arc::make_mut(tracked).verdicts.insert(of_sctp, allow);
        lab.kernel().sync(&tables).expect("sync");
        assert_eq!(lab.kernel().dump().expect("dump"), tables);
        assert_eq!(judge(&mut lab, INGRESS, &to_host(UDP, &udp(1000, 53))), ALLOW);
        let init = |port| to_host(SCTP, &sctp(1000, port));
        assert_eq!(judge(&mut lab, INGRESS, &init(81)), ALLOW);
        assert_eq!(lab.kernel().tracked_flows().expect("flows"), []);
        assert_eq!(judge(&mut lab, INGRESS, &init(80)), ALLOW);
        assert_eq!(lab.kernel().tracked_flows().expect("flows").len(), 1);
        // The answer is nobody's: the tracked endpoint knows no flow and no rule for it.
        assert_eq!(judge(&mut lab, EGRESS, &from_host(UDP, &udp(53, 1000))), DENY);
        assert_eq!(judge(&mut lab, INGRESS, &to_host(TCP, &tcp(1000, 80, SYN))), DENY);
        assert_eq!(
            judge(&mut lab, INGRESS, &to_host(TCP, &tcp(1000, 81, SYN))),
            ALLOW
        );
        assert_eq!(lab.kernel().tracked_flows().expect("flows").len(), 2);
        // Without the untracked endpoint its denial is gone, and so is its permission.
        lab.kernel()
            .attach_host(&host_link(Some(endpoint(LOCAL)), None))
            .expect("attach");
        assert_eq!(
            judge(&mut lab, INGRESS, &to_host(TCP, &tcp(1000, 80, SYN))),
            ALLOW
        );
        assert_eq!(judge(&mut lab, INGRESS, &to_host(UDP, &udp(1000, 53))), DENY);
    }
}

attached_both_ways! {
    fn whoever_listens_is_the_host(attachment) {
        let mut lab = Lab::attached(attachment);
        let link = host_link(Some(endpoint(LOCAL)), None);
        lab.kernel().attach_host(&link).expect("attach");
        assert_eq!(lab.kernel().attached_hosts().expect("attached"), [link]);
        lab.kernel()
            .sync(&tables(&[(LOCAL, &[(INGRESS, port(UDP, 5353), ALLOW)])]))
            .expect("sync");
        for (from, to) in [
            (CLIENT, "224.0.0.251"),
            (CLIENT, "255.255.255.255"),
            ("fe80::7", "ff02::fb"),
        ] {
            for (port, expected) in [(5353, ALLOW), (514, DENY)] {
                let sent = frame(Ends::new(from, to), UDP, &udp(1000, port));
                assert_eq!(judge(&mut lab, INGRESS, &sent), expected, "{to} {port}");
            }
        }
        let elsewhere = frame(Ends::new(CLIENT, BEHIND), UDP, &udp(1000, 514));
        assert_eq!(judge(&mut lab, INGRESS, &elsewhere), ALLOW, "what is forwarded nobody judges");
    }

    /// What the stack takes off without asking it takes for its own interface's.
    fn a_tag_that_names_no_vlan_is_none(attachment) {
        const MOMENT: Duration = Duration::from_millis(100);
        const PATIENCE: Duration = Duration::from_secs(10);
        let mut lab = Lab::attached(attachment);
        let wire = Wire::new();
        let link = HostLink {
            ifindex: wire.ifindex,
            ..host_link(Some(endpoint(LOCAL)), None)
        };
        lab.kernel().attach_host(&link).expect("attach");
        lab.kernel()
            .sync(&tables(&[(LOCAL, &[(INGRESS, port(TCP, 22), ALLOW)])]))
            .expect("sync");
        for (tags, port, passes) in [(0, 22, true), (0, 23, false), (1, 22, true), (1, 23, false), (2, 22, false)] {
            let mut sent = to_host(TCP, &tcp(1000, port, SYN));
            for _ in 0..tags {
                sent.splice(12..12, [0x81, 0, 0, 0]);
            }
            // From the far end of the link, and so towards the host.
            wire.send(EGRESS, &sent);
            let arrived = wire.receive(EGRESS, if passes { PATIENCE } else { MOMENT }).is_some();
            assert_eq!(arrived, passes, "{tags} tags, port {port}");
        }
    }

    fn untracked_fragments_follow_their_first_one(attachment) {
        let mut lab = Lab::attached(attachment);
        let both = HostEndpoint {
            id: LOCAL,
            untracked: Some(UNTRACKED),
        };
        lab.kernel()
            .attach_host(&host_link(Some(both), None))
            .expect("attach");
        let untracked = [(INGRESS, port(UDP, 53), ALLOW), (INGRESS, port(UDP, 54), DENY)];
        lab.kernel()
            .sync(&tables(&[(LOCAL, &[]), (UNTRACKED, &untracked)]))
            .expect("sync");
        let ends = Ends::new(CLIENT, HOST);
        let first = |id, port| fragment(ends, UDP, id, 0, true, &[&udp(1000, port)[..], &[7; 8]].concat());
        let rest = |id| fragment(ends, UDP, id, 2, false, &[7; 8]);
        for (id, port, expected) in [(1, 53, ALLOW), (2, 54, DENY), (3, 55, DENY)] {
            assert_eq!(judge(&mut lab, INGRESS, &rest(id)), DENY, "before the first, {port}");
            assert_eq!(judge(&mut lab, INGRESS, &first(id, port)), expected, "{port}");
            assert_eq!(judge(&mut lab, INGRESS, &rest(id)), expected, "after the first, {port}");
        }
        assert_eq!(lab.kernel().tracked_flows().expect("flows"), []);
    }

    fn a_host_that_may_nothing_keeps_its_address_and_its_neighbours(attachment) {
        let mut lab = Lab::attached(attachment);
        let link = host_link(Some(endpoint(LOCAL)), Some(endpoint(FORWARD)));
        lab.kernel().attach_host(&link).expect("attach");
        lab.kernel()
            .sync(&tables(&[(LOCAL, &[]), (FORWARD, &[])]))
            .expect("sync");
        // IGMP, as it is sent: with a router alert, and no farther than the link.
        let igmp = |to: &str, hops, alert: bool| {
            let to: std::net::Ipv4Addr = to.parse().expect("an address");
            let (words, option) = if alert { (0x46, &[0x94, 4, 0, 0][..]) } else { (0x45, &[][..]) };
            let length = 28 + u8::try_from(option.len()).expect("few bytes");
            let header = [words, 0xc0, 0, length, 0, 1, 0x40, 0, hops, 2, 0, 0, 192, 0, 2, 1];
            ethernet(0x0800, &[&header[..], &to.octets(), option, &[0x22, 0, 0, 0, 0, 0, 0, 0]].concat())
        };
        let mut alert = igmp("224.0.0.22", 1, true);
        alert[14 + 9] = UDP;
        let six = |kind, hops| {
            let mut frame = frame(Ends::new("fe80::1", "ff02::1:ff00:1"), ICMPV6, &icmp(kind, 0, 0));
            frame[14 + 7] = hops;
            frame
        };
        let allowed = [
            ethernet(0x0806, &[0; 28]),
            ethernet(0x8100, &[0; 60]),
            six(135, 255),
            six(136, 255),
            six(134, 255),
            six(143, 1),
            frame(Ends::new("0.0.0.0", "255.255.255.255"), UDP, &udp(68, 67)),
            frame(Ends::new("fe80::1", "ff02::1:2"), UDP, &udp(546, 547)),
            // As it comes to an address that is just being given.
            frame(Ends::new(CLIENT, OTHER), UDP, &udp(67, 68)),
            to_host(UDP, &udp(67, 68)),
            frame(Ends::new("fe80::2", "fe80::1"), UDP, &udp(547, 546)),
            igmp("224.0.0.22", 1, true),
            igmp("239.1.2.3", 1, true),
            igmp("224.0.0.1", 1, false),
        ];
        let denied = [
            six(128, 255),
            // No neighbour: a router has passed it on, or will.
            six(135, 254),
            six(136, 1),
            six(143, 2),
            to_host(UDP, &udp(67, 69)),
            to_host(UDP, &udp(546, 547)),
            frame(Ends::new("fe80::2", "fe80::1"), UDP, &udp(67, 68)),
            to_host(TCP, &tcp(67, 68, SYN)),
            to_host(TCP, &tcp(1, 22, RST)),
            ethernet(0x0800, &[0x45; 20]),
            igmp("224.0.0.22", 2, true),
            igmp(OTHER, 1, true),
            igmp(OTHER, 1, false),
            alert,
        ];
        for direction in [INGRESS, EGRESS] {
            for frame in &allowed {
                assert_eq!(
                    judge(&mut lab, direction, frame),
                    ALLOW,
                    "{direction:?} {frame:?}"
                );
            }
            for frame in &denied {
                assert_eq!(judge(&mut lab, direction, frame), DENY, "{direction:?} {frame:?}");
            }
        }
    }
}

attached_both_ways! {
    /// A machine outside, on a wire to the host, that resolves addresses as machines do.
    fn a_real_interface_is_judged_also_when_the_agent_is_gone(attachment) {
        const PATIENCE: Duration = Duration::from_secs(10);
        const SILENCE: Duration = Duration::from_millis(300);
        let mut lab = Lab::attached(attachment);
        let host = File::open("/proc/thread-self/ns/net").expect("the host's namespace");
        let (jobs, queue) = mpsc::channel::<(u16, mpsc::Sender<bool>)>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            ready
                .send(fs::read_link("/proc/thread-self").expect("a thread"))
                .expect("the test waits");
            for (port, done) in queue {
                let patience = if port == 22 { PATIENCE } else { SILENCE };
                let address = format!("{HOST}:{port}").parse().expect("an address");
                let reached = match TcpStream::connect_timeout(&address, patience).map_err(|e| e.kind()) {
                    Ok(_) => true,
                    Err(ErrorKind::TimedOut | ErrorKind::WouldBlock) => false,
                    Err(kind) => panic!("port {port}: {kind:?}"),
                };
                done.send(reached).expect("the test waits");
            }
        });
        let outside = is_ready.recv().expect("the thread lives");
        let id = outside
            .file_name()
            .expect("a thread id")
            .to_string_lossy()
            .into_owned();
        run("ip link set lo up");
        run(&format!("ip link add uplink type veth peer name eth0 netns {id}"));
        run("ip addr add 192.0.2.1/24 dev uplink");
        run("ip link set uplink up");
        let namespace = File::open(format!("/proc/{}/ns/net", outside.display())).expect("the namespace");
        setns(&namespace, CloneFlags::CLONE_NEWNET).expect("go outside");
        run("ip addr add 192.0.2.9/24 dev eth0");
        run("ip link set eth0 up");
        setns(&host, CloneFlags::CLONE_NEWNET).expect("come back");
        let listeners = [22, 23].map(|port| TcpListener::bind((HOST, port)).expect("listen"));
        let reaches = |port| {
            let (done, result) = mpsc::channel();
            jobs.send((port, done)).expect("the thread lives");
            result.recv().expect("the thread answers")
        };

        let link = HostLink {
            ifindex: nix::net::if_::if_nametoindex("uplink").expect("the interface"),
            ..host_link(Some(endpoint(LOCAL)), None)
        };
        lab.kernel().attach_host(&link).expect("attach");
        let entries = [(INGRESS, port(TCP, 22), ALLOW)];
        lab.kernel().sync(&tables(&[(LOCAL, &entries)])).expect("sync");
        assert!(reaches(22) && !reaches(23));

        lab.stop();
        assert!(reaches(22) && !reaches(23), "the agent is gone");
        lab.start();
        assert_eq!(
            lab.kernel().attached_hosts().expect("attached"),
            std::slice::from_ref(&link)
        );
        assert!(reaches(22) && !reaches(23), "another agent");

        run("ip link del uplink");
        assert_eq!(lab.kernel().attached_hosts().expect("attached"), []);
        drop(listeners);
    }
}

/// What the kernel merges to more than a length field can say ("BIG TCP") has 0 there, and with IPv6 perhaps an option that
/// says it. Nothing else may say 0.
#[test]
fn packets_larger_than_their_length_field_are_judged() {
    const SEGMENT_BYTES: u32 = 1448;
    let mut lab = Lab::new();
    lab.kernel()
        .attach_host(&host_link(Some(endpoint(LOCAL)), Some(endpoint(FORWARD))))
        .expect("attach");
    let entries = [(INGRESS, port(TCP, 80), ALLOW), (INGRESS, port(UDP, 80), ALLOW)];
    lab.kernel()
        .sync(&tables(&[(LOCAL, &entries), (FORWARD, &entries)]))
        .expect("sync");
    let four = |protocol, payload: &[u8]| {
        let mut frame = to_host(protocol, payload);
        frame[14 + 2..14 + 4].fill(0);
        frame
    };
    let six = |next, payload: &[u8]| {
        let mut frame = frame(Ends::new("fd99::7", "fd07::2"), next, payload);
        frame[14 + 4..14 + 6].fill(0);
        frame
    };
    let jumbo = |payload: &[u8]| six(0, &[&[TCP, 0, 0xc2, 4, 0, 1, 0, 0], payload].concat());
    let syn = |port| segment(1000, port, SYN, 7, 0, &[7; 100]);
    for (frame, expected) in [
        (four(TCP, &syn(80)), ALLOW),
        (four(TCP, &syn(81)), DENY),
        (six(TCP, &syn(80)), ALLOW),
        (six(TCP, &syn(81)), DENY),
        (jumbo(&syn(80)), ALLOW),
        (jumbo(&syn(81)), DENY),
        (four(UDP, &udp(1000, 80)), DENY),
        // Not as much as a header.
        (four(TCP, &syn(80)[..12]), DENY),
        (six(TCP, &syn(80)[..12]), DENY),
    ] {
        let run = |lab: &mut Lab, bytes| {
            lab.kernel()
                .run_merged_host_frame(INGRESS, LOOPBACK, bytes, &frame)
                .expect("run the program")
        };
        assert_eq!(run(&mut lab, SEGMENT_BYTES), expected, "{frame:02x?}");
        assert_eq!(run(&mut lab, 0), DENY, "not merged: {frame:02x?}");
    }
    // The numbers that it shows are those of all its bytes.
    let answer = frame(
        Ends::new(HOST, CLIENT),
        TCP,
        &segment(80, 1000, SYN | ACK, 50, 108, &[]),
    );
    assert_eq!(judge(&mut lab, EGRESS, &answer), ALLOW);
    let last = frame(
        Ends::new(CLIENT, HOST),
        TCP,
        &segment(1000, 80, ACK, 108, 51, &[]),
    );
    assert_eq!(judge(&mut lab, INGRESS, &last), ALLOW);
    let flows = lab.kernel().tracked_flows().expect("flows");
    assert_eq!(
        flows.iter().filter(|flow| flow.established).count(),
        1,
        "{flows:?}"
    );
}

/// Counts of peers are mapped as far as slots are taken. What an endpoint before left in a far slot is cleared all the
/// same, and a new agent reaches what it finds there.
#[test]
fn counts_of_far_slots_are_reached() {
    const ENDPOINTS: u32 = 300;
    let mut lab = Lab::new();
    let left = ENDPOINTS - 1;
    let mut counts = counts_of_peers(&lab);
    let first = |slot: u32| slot * PEER_BUCKETS;
    for slot in [0, 127, 128, left] {
        counts.set(first(slot), 7, 0).expect("write");
    }
    let number = |number: u32| {
        let address = std::net::Ipv4Addr::from_bits(0x0a08_0000 + number);
        (address.into(), endpoint(EndpointId(1000 + number)))
    };
    let hosts = HostLink {
        ifindex: LOOPBACK,
        addresses: (0..ENDPOINTS).map(number).collect(),
        forward: None,
    };
    lab.kernel().attach_host(&hosts).expect("attach");
    for slot in [0, 127, 128, left] {
        assert_eq!(counts.get(&first(slot), 0).expect("read"), 0, "slot {slot}");
    }
    // A new agent has mapped the first ones only.
    lab.restart();
    let mut counts = counts_of_peers(&lab);
    counts.set(first(left), 7, 0).expect("write");
    lab.kernel().expire(ebpf_loader::monotonic_now()).expect("expire");
    assert_eq!(counts.get(&first(left), 0).expect("read"), 0);
}

fn counts_of_peers(lab: &Lab) -> Array<MapData, u64> {
    let data = MapData::from_pin(lab.pins.join("maps/PEERS")).expect("the pinned map");
    Array::try_from(Map::from_map_data(data).expect("a map")).expect("an array")
}
