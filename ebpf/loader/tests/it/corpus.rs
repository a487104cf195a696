//! Packets that a policy engine may get wrong, one by one.

use ebpf_loader::{Datapath, Limits, Reason};
use policies_ir::tables::{Direction, Service, Verdict};

use crate::{
    frames::{
        ACK, Ends, FIN, ICMP, ICMPV6, RST, SCTP, SYN, TCP, UDP, ethernet, frame, icmp, icmp_error, ipv4,
        ipv6, packet_of, sctp, tcp, udp,
    },
    lab::{LOOPBACK, Lab, link, tables},
};

const POD: &str = "10.7.0.2";
const PEER: &str = "10.7.0.9";
const ROUTER: &str = "10.99.0.1";
const POD6: &str = "fd07::2";
const PEER6: &str = "fd07::9";

const ANY_EGRESS: (Direction, usize, Service) = (Direction::Egress, 0, Service::Any);
const ANY_INGRESS: (Direction, usize, Service) = (Direction::Ingress, 0, Service::Any);

fn port(protocol: u8, port: u16) -> Service {
    Service::Ports {
        protocol,
        port,
        prefix_bits: 16,
    }
}

/// A lab whose endpoint has both addresses and may do `allowed` with its peers, both families being peer 0.
fn lab(allowed: &[(Direction, usize, Service)]) -> Lab {
    let mut lab = Lab::new();
    program(&mut lab, allowed);
    lab
}

fn program(lab: &mut Lab, allowed: &[(Direction, usize, Service)]) {
    let mut tables = tables(&["10.7.0.0/24"], allowed);
    tables.identities.insert(
        "fd07::/64".parse().expect("a prefix"),
        policies_ir::tables::IdentityId(1),
    );
    lab.program(&link(LOOPBACK, &[POD, POD6]), &tables);
}

fn out() -> Ends {
    Ends::new(POD, PEER)
}

fn out6() -> Ends {
    Ends::new(POD6, PEER6)
}

#[test]
fn nothing_passes_before_the_first_tables() {
    let mut lab = Lab::new();
    let syn = frame(out(), TCP, &tcp(1000, 80, SYN));
    lab.assert_denied(Direction::Egress, &syn, Reason::NotProgrammed);
    lab.kernel().attach(&link(LOOPBACK, &[POD])).expect("attach");
    lab.assert_denied(Direction::Egress, &syn, Reason::NotProgrammed);
    // An endpoint that is absent from the tables is denied as well.
    lab.kernel()
        .sync(&policies_ir::tables::NodeTables::default())
        .expect("sync");
    lab.assert_denied(Direction::Egress, &syn, Reason::NotProgrammed);
    lab.assert_denied(
        Direction::Ingress,
        &frame(out().reversed(), UDP, &udp(1, 2)),
        Reason::NotProgrammed,
    );
}
