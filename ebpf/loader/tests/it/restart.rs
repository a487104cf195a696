//! What outlives the agent, and what does not outlive `unload`.

use std::{path::Path, process::Command};

use ebpf_loader::{Datapath, DatapathError, EndpointLink, Kernel, Limits, OBJECT, Reason};
use nix::net::if_::if_nametoindex;
use policies_ir::tables::{Direction, EndpointId, NodeTables, Service};

use crate::{
    frames::{ACK, Ends, SYN, TCP, frame, tcp, udp},
    lab::{ENDPOINT, LOOPBACK, Lab, ip, link, tables},
};

const UDP: u8 = 17;

fn out() -> Ends {
    Ends::new("10.7.0.2", "10.7.0.9")
}

fn reopen(lab: &mut Lab) {
    lab.source = None;
    drop(lab.kernel.take());
    let mut kernel = Kernel::open(&lab.pins, OBJECT).expect("open again");
    lab.source = Some(kernel.flow_source().expect("open the ring"));
    lab.kernel = Some(kernel);
}

#[test]
fn endpoints_tables_and_flows_outlive_the_agent() {
    let mut lab = Lab::new();
    let link = link(LOOPBACK, &["10.7.0.2", "fd07::2"]);
    let tables = tables(
        &["10.7.0.0/24"],
        &[(Direction::Egress, 0, Service::Protocol(TCP))],
    );
    let epoch = lab.program(&link, &tables);
    lab.assert_allowed(Direction::Egress, &frame(out(), TCP, &tcp(1000, 80, SYN)));
    let flows = lab.kernel().tracked_flows().expect("flows");

    reopen(&mut lab);
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
    let next = lab.kernel().sync(&tables).expect("sync");
    assert!(next > epoch, "{next} after {epoch}");
    lab.assert_allowed(Direction::Egress, &frame(out(), TCP, &tcp(1000, 80, ACK)));
    lab.kernel().expire(ebpf_loader::monotonic_now()).expect("expire");
    assert_eq!(
        lab.kernel().dump().expect("dump"),
        tables,
        "the old tables are gone, the new ones are whole"
    );
}

#[test]
fn the_same_tables_keep_the_epoch() {
    let mut lab = Lab::new();
    let tables = tables(&["10.7.0.0/24"], &[(Direction::Egress, 0, Service::Any)]);
    let epoch = lab.program(&link(LOOPBACK, &["10.7.0.2"]), &tables);
    assert_eq!(lab.kernel().sync(&tables).expect("sync"), epoch);
    let other = NodeTables {
        rules: Vec::new(),
        endpoints: [(ENDPOINT, Default::default())].into(),
        ..tables.clone()
    };
    assert_eq!(lab.kernel().sync(&other).expect("sync"), epoch + 1);
    assert_eq!(lab.kernel().dump().expect("dump"), other);
}

#[test]
fn an_endpoint_that_took_over_an_interface_starts_with_nothing() {
    let mut lab = Lab::new();
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

#[test]
fn detaching_forgets_everything() {
    let mut lab = Lab::new();
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
    lab.source = None;
    drop(lab.kernel.take());
    let opened = Kernel::open_with_limits(&lab.pins, OBJECT, Limits { max_flows: 8 });
    assert!(matches!(opened, Err(DatapathError::Layout { path }) if path.ends_with("FLOWS")));
    lab.kernel = Some(Kernel::open(&lab.pins, OBJECT).expect("open again"));
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

#[test]
fn interfaces_that_do_not_exist_are_refused_and_leave_nothing() {
    let mut lab = Lab::new();
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
