//! What judging a packet costs, and whether rules make it dearer: by the kernel's own clock, the real programs.
//!
//! Each kind of packet has a line with its targets, the dearest as well as the cheapest. Lookups of rules cost most where
//! these speak of ranges of ports and the last of all decides; packets of tracked flows never ask for them.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use ebpf_loader::measure::{Case, Costs, Family, Rules, judging, nothing};
use policies_ir::tables::Direction;

use crate::{Line, Report, median, pods::ip};

const FEW: u16 = 10;
const MANY: u16 = 10_000;
/// Most that a packet of a tracked flow may cost at one endpoint, and the first of a flow, in nanoseconds.
const TRACKED: f64 = 150.0;
const FIRST: f64 = 700.0;
/// Most that a packet may cost with many rules, in parts of what it costs with few.
const GROWTH: f64 = 1.15;

/// Each round measures a program that does nothing, and few and many rules of either kind, one after the other. The
/// caller's thread must be in a network namespace made for the purpose.
pub(crate) fn measure(pins: &Path, rounds: u32) -> Result<Report> {
    // Nothing goes over them: each frame is given to the programs by hand, and says where it is.
    ip("link add first type veth peer name second")?;
    let index = |name: &str| nix::net::if_::if_nametoindex(name).with_context(|| format!("no link {name}"));
    let links = [index("first")?, index("second")?];
    let mut none = Vec::new();
    let mut rounds_of = BTreeMap::<Rules, Vec<Costs>>::new();
    for _ in 0..rounds {
        none.push(nothing().context("cannot measure no policy")?.as_secs_f64() * 1e9);
        for rules in [
            Rules::Ports(FEW),
            Rules::Ports(MANY),
            Rules::Ranges(FEW),
            Rules::Ranges(MANY),
        ] {
            let costs = judging(pins, links, rules).with_context(|| format!("cannot measure {rules:?}"))?;
            rounds_of.entry(rules).or_default().push(costs);
        }
    }
    let mut lines = vec![Line::alone(
        "packet, no policy: a program that passes all",
        "ns",
        median(none),
        None,
    )];
    for kind in [Rules::Ports, Rules::Ranges] {
        let [few, many] = [FEW, MANY].map(|count| rounds_of.get(&kind(count)).map_or(&[][..], Vec::as_slice));
        lines.extend(beside(few, many, matches!(kind(MANY), Rules::Ranges(_))));
    }
    Ok(Report {
        name: "packets",
        how: format!("medians of {rounds} rounds, by 10,000 rules beside {FEW}"),
        lines,
    })
}

/// A line for each kind of packet; those that ask no rule only once.
fn beside(few: &[Costs], many: &[Costs], ranges: bool) -> Vec<Line> {
    let mut lines = Vec::new();
    for case in many.first().into_iter().flat_map(Costs::keys).copied() {
        if ranges && !asks_rules(case) {
            continue;
        }
        let of = |costs: &[Costs]| -> Vec<f64> {
            let one = |costs: &Costs| costs.get(&case).copied().unwrap_or(f64::NAN);
            costs.iter().map(one).collect()
        };
        let last = if ranges { ", by the last of ranges" } else { "" };
        let metric = format!("{}{last}", text(case));
        let peer = format!("{FEW} rules");
        let line = Line::at_most(&metric, "ns", &of(many), (&peer, &of(few)), growth(case));
        lines.push(match most(case) {
            Some(most) => line.within(most),
            None => line,
        });
    }
    lines
}

fn asks_rules(case: Case) -> bool {
    matches!(case, Case::First(..) | Case::FirstAnywhere(..) | Case::Denied(_))
}

/// With many rules there are many services, with few there are few: what goes to all of them is other traffic, so there
/// growth is shown and not judged.
fn growth(case: Case) -> Option<f64> {
    (!matches!(case, Case::FirstAnywhere(..))).then_some(GROWTH)
}

fn most(case: Case) -> Option<f64> {
    match case {
        Case::Datagram | Case::Segment(..) => Some(TRACKED),
        // Judged at two endpoints.
        Case::Straight(_) => Some(2.0 * TRACKED),
        Case::First(..) | Case::FirstAnywhere(..) => Some(FIRST),
        Case::Denied(_) => None,
    }
}

fn text(case: Case) -> String {
    let at = |direction| match direction {
        Direction::Egress => "from a pod",
        Direction::Ingress => "to a pod",
    };
    let of = |family| match family {
        Family::V4 => "",
        Family::V6 => ", IPv6",
    };
    match case {
        Case::Datagram => "datagram from a pod".to_owned(),
        Case::Segment(family, direction) => {
            format!("segment of a connection {}{}", at(direction), of(family))
        }
        Case::Straight(family) => format!("segment straight to another pod, both ends{}", of(family)),
        Case::First(family, direction) => format!("first packet {}{}", at(direction), of(family)),
        Case::FirstAnywhere(family, direction) => {
            format!(
                "first packet {}, all services in turn{}",
                at(direction),
                of(family)
            )
        }
        Case::Denied(family) => format!("denied packet from a pod{}", of(family)),
    }
}
