//! What the benchmark of packets times is what it says: the measurement itself counts what passes, and refuses otherwise.

use std::collections::BTreeSet;

use ebpf_loader::measure::{Case, Family, Rules, judging};
use policies_ir::tables::Direction;

use crate::link::run;

#[test]
fn every_kind_of_packet_has_its_number_by_rules_of_either_kind() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
    run("ip link add first type veth peer name second");
    let links = ["first", "second"].map(|name| nix::net::if_::if_nametoindex(name).expect("a link"));
    let pins = std::env::temp_dir().join(format!("palisade-timed-{}", std::process::id()));
    for rules in [Rules::Ports(10), Rules::Ranges(1000)] {
        let costs = judging(&pins, links, rules).expect("measure");
        assert!(costs.values().all(|cost| *cost > 0.0), "{rules:?}: {costs:?}");
        let cases: BTreeSet<Case> = costs.keys().copied().collect();
        let mut wanted = BTreeSet::from([Case::Datagram]);
        for family in [Family::V4, Family::V6] {
            wanted.extend([Case::Straight(family), Case::Denied(family)]);
            for direction in [Direction::Ingress, Direction::Egress] {
                wanted.extend([
                    Case::Segment(family, direction),
                    Case::First(family, direction),
                    Case::FirstAnywhere(family, direction),
                ]);
            }
        }
        assert_eq!(cases, wanted);
    }
}
