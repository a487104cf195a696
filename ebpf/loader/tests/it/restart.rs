//! What outlives the agent, and what does not outlive `unload`.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use ebpf_loader::{Attachment, Datapath, DatapathError, EndpointLink, Kernel, Limits, OBJECT, Reason};
use nix::net::if_::if_nametoindex;
use policies_ir::tables::{Direction, EndpointId, NodeTables, Service};

use crate::{
    frames::{ACK, Ends, SYN, TCP, frame, tcp, udp},
    lab::{EACH_REPORTED, ENDPOINT, LOOPBACK, Lab, attached_both_ways, ip, link, tables},
    link::run,
};

const UDP: u8 = 17;

fn out() -> Ends {
    Ends::new("10.7.0.2", "10.7.0.9")
}

attached_both_ways! {
    fn endpoints_tables_and_flows_outlive_the_agent(attachment) {
        let mut lab = Lab::attached(attachment);
        let link = link(LOOPBACK, &["10.7.0.2", "fd07::2"]);
        let tables = tables(
            &["10.7.0.0/24"],
            &[(Direction::Egress, 0, Service::Protocol(TCP))],
        );
        let epoch = lab.program(&link, &tables);
        lab.assert_allowed(Direction::Egress, &frame(out(), TCP, &tcp(1000, 80, SYN)));
        let flows = lab.kernel().tracked_flows().expect("flows");

        lab.restart();
        assert_eq!(
            lab.kernel().attached().expect("attached"),
            std::slice::from_ref(&link)
        );
        assert_eq!(lab.kernel().dump().expect("dump"), tables);
        assert_eq!(lab.kernel().tracked_flows().expect("flows"), flows);
        lab.assert_allowed(Direction::Egress, &frame(out(), TCP, &tcp(1000, 80, ACK)));
        lab.assert_allowed(Direction::Egress, &frame(out(), TCP, &tcp(1001, 80, SYN)));

        // The new agent attaches what it finds, which changes nothing, and continues with the next epoch.
        lab.kernel().attach(&link).expect("attach");
        lab.assert_allowed(Direction::Egress, &frame(out(), TCP, &tcp(1000, 80, ACK)));
        let next = lab.program(&link, &tables);
        assert!(next > epoch, "{next} after {epoch}");
        lab.assert_allowed(Direction::Egress, &frame(out(), TCP, &tcp(1000, 80, ACK)));
        lab.kernel().expire(ebpf_loader::monotonic_now()).expect("expire");
        assert_eq!(
            lab.kernel().dump().expect("dump"),
            tables,
            "the old tables are gone, the new ones are whole"
        );
    }
}

#[test]
fn the_same_tables_keep_the_epoch() {
    let mut lab = Lab::new();
    let tables = tables(&["10.7.0.0/24"], &[(Direction::Egress, 0, Service::Any)]);
    let link = link(LOOPBACK, &["10.7.0.2"]);
    let epoch = lab.program(&link, &tables);
    assert_eq!(lab.program(&link, &tables), epoch);
    let other = NodeTables {
        rules: Vec::new(),
        endpoints: [(ENDPOINT, Default::default())].into(),
        ..tables.clone()
    };
    assert_eq!(lab.program(&link, &other), epoch + 1);
    assert_eq!(lab.kernel().dump().expect("dump"), other);
}

attached_both_ways! {
    /// Two hundred pods, one of which gets another policy, and then all of which get other classes of addresses.
    fn one_endpoint_changes_and_the_others_stay(attachment) {
        const PODS: u32 = 200;
        let mut lab = Lab::attached(attachment);
        // Not by way of a shell: that of busybox takes its own `ip`, which knows no batches, for any other.
        let mut ip = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ip runs");
        let mut lines = ip.stdin.take().expect("its input");
        for number in 1..=PODS {
            writeln!(lines, "link add p{number} type veth peer name q{number}").expect("ip reads");
        }
        drop(lines);
        assert!(ip.wait().expect("ip ends").success());
        let one = tables(&["10.7.0.0/24"], &[(Direction::Egress, 0, Service::Any)]);
        let entries = one.endpoints.get(&ENDPOINT).expect("the endpoint").clone();
        let mut all = NodeTables {
            endpoints: (1..=PODS).map(|id| (EndpointId(id), entries.clone())).collect(),
            ..one
        };
        for id in 1..=PODS {
            let link = EndpointLink {
                id: EndpointId(id),
                ifindex: if_nametoindex(format!("p{id}").as_str()).expect("a link"),
                addresses: vec![std::net::Ipv4Addr::from(0x0a08_0000 + id).into()],
                mac: [2, 0, 0, 0, 0, 1],
            };
            lab.kernel().attach(&link).expect("attach");
        }
        let first = lab.kernel().sync(&all).expect("sync");
        assert_eq!((first.rewritten, first.endpoints.len()), (200, 200));

        let changed = EndpointId(77);
        let other = tables(&["10.7.0.0/24"], &[(Direction::Ingress, 0, Service::Any)]);
        all.endpoints.insert(
            changed,
            other.endpoints.get(&ENDPOINT).expect("the endpoint").clone(),
        );
        let second = lab.kernel().sync(&all).expect("sync");
        assert_eq!(second.rewritten, 1);
        for (id, change) in &second.endpoints {
            let before = first.endpoints.get(id).copied().unwrap_or_default();
            assert_eq!(
                *change,
                if *id == changed { before + 1 } else { before },
                "{id:?}"
            );
        }
        assert_eq!(lab.kernel().dump().expect("dump"), all);

        // The same entries under the name of another rule are other entries.
        all.rules.push(policies_ir::tables::RuleName {
            tier: "default".to_owned(),
            policy: "NetworkPolicy default/web".to_owned(),
            rule: Some(0),
        });
        assert_eq!(lab.kernel().sync(&all).expect("sync").rewritten, 200);
        assert_eq!(lab.kernel().sync(&all).expect("sync").rewritten, 0);

        // Other classes of addresses reach everyone, without a single entry of theirs.
        all.identities.insert(
            "10.9.0.0/16".parse().expect("a prefix"),
            policies_ir::tables::IdentityId(9),
        );
        let third = lab.kernel().sync(&all).expect("sync");
        assert_eq!(third.rewritten, 0);
        assert!(
            third
                .endpoints
                .iter()
                .all(|(id, change)| Some(change) > second.endpoints.get(id))
        );
        lab.kernel().expire(ebpf_loader::monotonic_now()).expect("expire");
        assert_eq!(lab.kernel().dump().expect("dump").endpoints, all.endpoints);
    }
}

/// Some addresses get a class of their own: what endpoints say about it comes beside what they say already. A number
/// that programs may still meet under another meaning does not come so.
#[test]
fn a_new_class_is_written_beside_the_others() {
    let mut lab = Lab::new();
    let link = link(LOOPBACK, &["10.7.0.2"]);
    let one = [(Direction::Egress, 0, Service::Protocol(UDP))];
    let packet = frame(out(), UDP, &udp(1, 2));
    let epoch = lab.program(&link, &tables(&["10.7.0.0/24"], &one));
    lab.assert_allowed(Direction::Egress, &packet);
    // The peer is of the second class now, about which nothing is said; then it is.
    let moved = tables(&["10.7.0.0/24", "10.7.0.9/32"], &one);
    assert_eq!(lab.kernel().sync(&moved).expect("sync").rewritten, 0);
    lab.assert_denied(Direction::Egress, &packet, Reason::Policy);
    let said = [one[0], (Direction::Egress, 1, Service::Protocol(UDP))];
    let both = tables(&["10.7.0.0/24", "10.7.0.9/32"], &said);
    let synced = lab.kernel().sync(&both).expect("sync");
    assert_eq!(
        synced.rewritten, 1,
        "the class was in use: one write must bring all of it"
    );
    lab.assert_allowed(Direction::Egress, &packet);
    // A third class, with what is said about it.
    let said = [said[0], said[1], (Direction::Egress, 2, Service::Any)];
    let three = tables(&["10.7.0.0/24", "10.7.0.9/32", "10.7.0.8/32"], &said);
    let synced = lab.kernel().sync(&three).expect("sync");
    assert_eq!(synced.rewritten, 0);
    assert!(
        synced.endpoints.get(&ENDPOINT) > Some(&epoch),
        "flows are judged again"
    );
    assert_eq!(lab.kernel().dump().expect("dump").endpoints, three.endpoints);
    lab.kernel().expire(ebpf_loader::monotonic_now()).expect("expire");
    assert_eq!(lab.kernel().dump().expect("dump").endpoints, three.endpoints);
    // Without the third nobody can ask for its entries: they go later, and nothing is written.
    let entries = verdicts(&mut lab);
    assert_eq!(lab.kernel().sync(&both).expect("sync").rewritten, 0);
    assert_eq!(lab.kernel().dump().expect("dump").endpoints, both.endpoints);
    assert_eq!(verdicts(&mut lab), entries);
    lab.kernel().expire(ebpf_loader::monotonic_now()).expect("expire");
    assert_eq!(verdicts(&mut lab), entries - 1);
    lab.assert_allowed(Direction::Egress, &packet);
    // With it again, under a number that is free by then, they come.
    assert_eq!(lab.kernel().sync(&three).expect("sync").rewritten, 0);
    assert_eq!(lab.kernel().dump().expect("dump").endpoints, three.endpoints);
    lab.assert_allowed(Direction::Egress, &packet);
}

/// A class goes, and before its entries are deleted its number comes to mean other addresses: what was said about the
/// class is not said about these.
#[test]
fn entries_that_nobody_can_ask_for_do_not_answer_for_others() {
    let mut lab = Lab::new();
    let link = link(LOOPBACK, &["10.7.0.2"]);
    let packet = frame(out(), UDP, &udp(1, 2));
    let about = |class| (Direction::Egress, class, Service::Any);
    lab.program(
        &link,
        &tables(&["10.8.0.0/24", "10.7.0.8/32"], &[about(0), about(1)]),
    );
    lab.assert_denied(Direction::Egress, &packet, Reason::Policy);
    let gone = tables(&["10.8.0.0/24"], &[about(0)]);
    assert_eq!(lab.kernel().sync(&gone).expect("sync").rewritten, 0);
    let reused = tables(&["10.8.0.0/24", "10.7.0.9/32"], &[about(0)]);
    assert_eq!(lab.kernel().sync(&reused).expect("sync").rewritten, 1);
    lab.assert_denied(Direction::Egress, &packet, Reason::Policy);
    assert_eq!(lab.kernel().dump().expect("dump").endpoints, reused.endpoints);
}

/// How many entries there are in the kernel's map, as the loader counts them.
fn verdicts(lab: &mut Lab) -> u64 {
    let counters = lab.kernel().counters().expect("counters");
    let fill = counters.fill.iter().find(|fill| fill.map == "VERDICTS");
    fill.expect("the map").entries
}

/// The entries of an endpoint stay, but the number they name becomes another address: an open flow must notice.
#[test]
fn flows_notice_that_addresses_changed_their_class() {
    let mut lab = Lab::new();
    let allowed = [(Direction::Egress, 0, Service::Any)];
    let link = link(LOOPBACK, &["10.7.0.2"]);
    lab.program(&link, &tables(&["10.7.0.9/32", "10.7.0.8/32"], &allowed));
    let packet = frame(out(), UDP, &udp(1, 2));
    lab.assert_allowed(Direction::Egress, &packet);
    let renumbered = tables(&["10.7.0.8/32", "10.7.0.9/32"], &allowed);
    let synced = lab.kernel().sync(&renumbered).expect("sync");
    assert_eq!(synced.rewritten, 0);
    lab.assert_denied(Direction::Egress, &packet, Reason::Policy);
}

#[test]
fn classes_that_the_key_cannot_hold_are_refused() {
    let mut lab = Lab::new();
    let mut tables = tables(&["10.7.0.0/24"], &[(Direction::Egress, 0, Service::Any)]);
    let endpoint = tables.endpoints.get_mut(&ENDPOINT).expect("the endpoint");
    let block = policies_ir::tables::SourceBlock {
        protocol: TCP,
        port: 0,
        prefix_bits: 0,
    };
    std::sync::Arc::make_mut(endpoint)
        .sources
        .insert(block, policies_ir::tables::SourceClass(128));
    let refused = lab.kernel().sync(&tables);
    assert!(
        matches!(refused, Err(DatapathError::SourceClasses { needed: 129, .. })),
        "{refused:?}"
    );
}

attached_both_ways! {
    fn an_endpoint_that_took_over_an_interface_starts_with_nothing(attachment) {
        let mut lab = Lab::attached(attachment);
        let allowed = [(Direction::Egress, 0, Service::Any)];
        lab.program(
            &link(LOOPBACK, &["10.7.0.2"]),
            &tables(&["10.7.0.0/24"], &allowed),
        );
        lab.assert_allowed(Direction::Egress, &frame(out(), UDP, &udp(1, 2)));
        let successor = EndpointLink {
            id: EndpointId(8),
            ..link(LOOPBACK, &["10.7.0.2"])
        };
        lab.kernel().attach(&successor).expect("attach");
        lab.assert_denied(
            Direction::Egress,
            &frame(out(), UDP, &udp(1, 2)),
            Reason::NotProgrammed,
        );
        assert_eq!(lab.kernel().tracked_flows().expect("flows"), []);
        assert_eq!(lab.kernel().attached().expect("attached"), [successor]);
    }
}

attached_both_ways! {
    fn detaching_forgets_everything(attachment) {
        let mut lab = Lab::attached(attachment);
        let allowed = [(Direction::Egress, 0, Service::Any)];
        lab.program(
            &link(LOOPBACK, &["10.7.0.2"]),
            &tables(&["10.7.0.0/24"], &allowed),
        );
        lab.assert_allowed(Direction::Egress, &frame(out(), UDP, &udp(1, 2)));
        lab.kernel().detach(ENDPOINT).expect("detach");
        lab.kernel().detach(ENDPOINT).expect("detach again");
        assert_eq!(lab.kernel().attached().expect("attached"), []);
        assert_eq!(lab.kernel().tracked_flows().expect("flows"), []);
        assert_eq!(lab.kernel().dump().expect("dump"), NodeTables::default());
        assert_eq!(names(&lab.pins.join("links")), [""; 0]);
        lab.assert_denied(
            Direction::Egress,
            &frame(out(), UDP, &udp(1, 2)),
            Reason::NotProgrammed,
        );
    }
}

#[test]
fn others_forget_their_flows_with_a_detached_endpoint() {
    let mut lab = Lab::new();
    let allowed = [(Direction::Egress, 0, Service::Any)];
    lab.program(
        &link(LOOPBACK, &["10.7.0.2"]),
        &tables(&["10.7.0.0/24"], &allowed),
    );
    let made = Command::new("ip")
        .args(["link", "add", "other", "type", "veth"])
        .status();
    assert!(made.expect("ip runs").success());
    let other = EndpointLink {
        id: EndpointId(8),
        ..link(if_nametoindex("other").expect("a link"), &["10.7.0.9"])
    };
    lab.kernel().attach(&other).expect("attach");
    let elsewhere = Ends::new("10.7.0.2", "10.7.0.8");
    lab.assert_allowed(Direction::Egress, &frame(out(), TCP, &tcp(1000, 80, SYN)));
    lab.assert_allowed(Direction::Egress, &frame(elsewhere, TCP, &tcp(1000, 80, SYN)));
    lab.kernel().detach(other.id).expect("detach");
    let left = lab.kernel().tracked_flows().expect("flows");
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left.first().map(|flow| flow.peer), Some(ip("10.7.0.8")));
}

#[test]
fn a_second_agent_is_refused() {
    let lab = Lab::new();
    assert!(matches!(
        Kernel::open(&lab.pins, OBJECT),
        Err(DatapathError::InUse { .. })
    ));
}

#[test]
fn maps_of_another_shape_are_refused() {
    let mut lab = Lab::new();
    lab.stop();
    let opened = Kernel::open_with_limits(
        &lab.pins,
        OBJECT,
        Limits {
            max_flows: 8,
            ..EACH_REPORTED
        },
    );
    assert!(matches!(opened, Err(DatapathError::Layout { path }) if path.ends_with("FLOWS")));
    lab.start();

    // As an agent left it that knew of no closed flows: the same size, another order.
    lab.stop();
    std::fs::remove_file(lab.pins.join("maps/CLOSED")).expect("remove a pin");
    let opened = Kernel::open_with_limits(&lab.pins, OBJECT, EACH_REPORTED);
    assert!(matches!(opened, Err(DatapathError::Layout { path }) if path.ends_with("FLOWS")));
    std::fs::remove_file(lab.pins.join("maps/FLOWS")).expect("remove a pin");
    lab.start();
}

#[test]
fn tables_that_do_not_fit_leave_the_old_ones_in_force() {
    let mut lab = Lab::new();
    let allowed = [(Direction::Egress, 0, Service::Any)];
    let small = tables(&["10.7.0.0/24"], &allowed);
    lab.program(&link(LOOPBACK, &["10.7.0.2"]), &small);
    let mut large = small.clone();
    for number in 0..ebpf_abi::MAX_IDENTITIES {
        let ip = std::net::Ipv4Addr::from(0x0b00_0000 + number);
        large.identities.insert(
            std::net::IpAddr::from(ip).into(),
            policies_ir::tables::IdentityId(1),
        );
    }
    let refused = lab.kernel().sync(&large);
    assert!(
        matches!(
            refused,
            Err(DatapathError::Full {
                map: "IDENTITIES",
                ..
            })
        ),
        "{refused:?}"
    );
    lab.assert_allowed(Direction::Egress, &frame(out(), UDP, &udp(1, 2)));
    assert_eq!(lab.kernel().dump().expect("dump"), small);
}

attached_both_ways! {
    fn interfaces_that_do_not_exist_are_refused_and_leave_nothing(attachment) {
        let mut lab = Lab::attached(attachment);
        let refused = lab.kernel().attach(&link(4_000_000, &["10.7.0.2"]));
        assert!(
            matches!(
                refused,
                Err(DatapathError::Link {
                    operation: "attach",
                    ..
                })
            ),
            "{refused:?}"
        );
        assert_eq!(lab.kernel().attached().expect("attached"), []);
        assert_eq!(names(&lab.pins.join("links")), [""; 0]);
    }
}

/// Others had the discipline and a filter there before us, and have them after us.
#[test]
fn filters_of_others_stay() {
    let shown = || {
        let mut all = String::new();
        for side in ["ingress", "egress"] {
            let output = Command::new("tc")
                .args(["filter", "show", "dev", "lo", side])
                .output();
            all += &String::from_utf8_lossy(&output.expect("tc runs").stdout);
        }
        all
    };
    let add = |priority: &str, handle: &str| {
        let line =
            format!("filter add dev lo ingress prio {priority} handle {handle} bpf flowid 1:1 bytecode");
        let mut command = Command::new("tc");
        command.args(line.split(' ')).arg("1,6 0 0 0");
        assert!(command.status().expect("tc runs").success());
    };
    let mut lab = Lab::attached(Attachment::Clsact);
    run("ip link set lo up");
    run("tc qdisc add dev lo clsact");
    add("7", "0x1");
    let before = shown();
    let link = link(LOOPBACK, &["10.7.0.2"]);
    lab.kernel().attach(&link).expect("attach");
    lab.kernel().attach(&link).expect("attach again");
    lab.restart();
    let ours = shown();
    for name in ["palisade_from_pod", "palisade_to_pod"] {
        assert_eq!(ours.matches(name).count(), 1, "{ours}");
    }
    assert_eq!(ours.matches("direct-action").count(), 2, "{ours}");
    assert!(ours.contains("bytecode"), "{ours}");
    lab.kernel().detach(link.id).expect("detach");
    assert_eq!(shown(), before);

    // Whoever has our place is not pushed away.
    add("1", "0x70616c01");
    let taken = shown();
    assert!(taken != before, "{taken}");
    let refused = lab.kernel().attach(&link);
    assert!(
        matches!(
            refused,
            Err(DatapathError::Link {
                operation: "attach",
                ..
            })
        ),
        "{refused:?}"
    );
    assert_eq!(shown(), taken);
    assert_eq!(lab.kernel().attached().expect("attached"), []);
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("list the pins");
    entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

/// An agent that cannot begin leaves no file system behind, and takes nothing from the one before it.
#[test]
fn a_start_that_fails_changes_nothing() {
    let is_mounted = |pins: &Path| {
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("the mounts");
        mounts.contains(&format!(" {} ", pins.display()))
    };
    let pins = std::env::temp_dir().join(format!("palisade-bpf-fails-{}", std::process::id()));
    let opened = Kernel::open(&pins, b"no object");
    assert!(matches!(opened, Err(DatapathError::Object(_))));
    assert!(!is_mounted(&pins), "a mount is left behind");
    std::fs::remove_dir(&pins).expect("an empty directory");

    let mut lab = Lab::new();
    let link = link(LOOPBACK, &["10.7.0.2"]);
    lab.program(&link, &tables(&["10.7.0.0/24"], &[]));
    lab.stop();
    let opened = Kernel::open(&lab.pins, b"no object");
    assert!(matches!(opened, Err(DatapathError::Object(_))));
    assert!(is_mounted(&lab.pins), "the pins of the agent before");
    lab.start();
    assert_eq!(lab.kernel().attached().expect("attached"), [link]);
}

attached_both_ways! {
    /// Pins say nothing about the other way to attach, so an agent that goes another way would find nothing attached.
    fn another_way_to_attach_is_refused(attachment) {
        let other = match attachment {
            Attachment::Tcx => Attachment::Clsact,
            Attachment::Clsact => Attachment::Tcx,
        };
        let mut lab = Lab::attached(attachment);
        let link = link(LOOPBACK, &["10.7.0.2"]);
        lab.program(&link, &tables(&["10.7.0.0/24"], &[]));
        lab.stop();
        let opened = Kernel::open_attached(&lab.pins, OBJECT, EACH_REPORTED, other);
        let error = opened.err().expect("refused");
        assert!(matches!(&error, DatapathError::Attached { wanted, .. } if *wanted == other));
        assert!(error.to_string().contains("policyctl down"), "{error}");
        lab.start();
        assert_eq!(lab.kernel().attached().expect("attached"), [link]);

        // Without anything attached there is nothing to lose.
        lab.kernel().detach(ENDPOINT).expect("detach");
        lab.stop();
        lab.attachment = other;
        lab.start();
    }
}
