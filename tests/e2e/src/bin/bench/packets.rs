//! What judging a packet costs, and whether rules make it dearer: by the kernel's own clock, the real programs; then end
//! to end beside nftables. And how long a change of policy takes.

use std::path::Path;

use anyhow::{Context, Result};
use ebpf_loader::measure::{Speed, judging, nothing};
use nix::sched::{CloneFlags, unshare};

use crate::{Line, change, median, network};

const FEW: u16 = 10;
const MANY: u16 = 10_000;

/// A round takes some fifteen seconds.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Line>> {
    let mut lines = on_own_network(move |pins| packets(pins, rounds))?;
    lines.extend(on_own_network(move |pins| {
        network::measure(pins, usize::try_from(rounds)?)
    })?);
    Ok(lines)
}

/// From a change of policy to its enforcement.
pub(crate) fn changes() -> Result<Vec<Line>> {
    on_own_network(change::measure)
}

/// Runs on a thread with a network namespace and a pin directory, both gone afterwards.
fn on_own_network(measure: impl FnOnce(&Path) -> Result<Vec<Line>> + Send + 'static) -> Result<Vec<Line>> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace; run as root")?;
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        measure(&directory.path().join("bpf"))
    });
    thread
        .join()
        .map_err(|_panic| anyhow::anyhow!("the measuring thread panicked"))?
}

/// Each round measures a program that does nothing, few and many rules, one after the other.
fn packets(pins: &Path, rounds: u32) -> Result<Vec<Line>> {
    let (mut none, mut few, mut many) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        none.push(nothing().context("cannot measure no policy")?.as_secs_f64() * 1e9);
        few.push(judging(pins, FEW).context("cannot measure few rules")?);
        many.push(judging(pins, MANY).context("cannot measure many rules")?);
    }
    let numbers = |speeds: &[Speed], of: fn(&Speed) -> f64| speeds.iter().map(of).collect::<Vec<f64>>();
    let beside = |metric: &str, of: fn(&Speed) -> f64, most| {
        let name = format!("{FEW} rules");
        Line::at_most(
            metric,
            "ns",
            &numbers(&many, of),
            (&name, &numbers(&few, of)),
            most,
        )
    };
    let alone = |metric: &str, of: fn(&Speed) -> f64, most| {
        Line::alone(metric, "ns", median(numbers(&many, of)), Some(most))
    };
    Ok(vec![
        Line::alone(
            "packet, no policy: a program that passes all",
            "ns",
            median(none),
            None,
        ),
        alone("packet of a tracked flow", |speed| speed.established, 150.0),
        alone("first packet of a flow", |speed| speed.new_flow, 700.0),
        beside(
            "packet of a tracked flow, 10,000 rules",
            |speed| speed.established,
            Some(1.15),
        ),
        beside("first packet, 10,000 rules", |speed| speed.new_flow, Some(1.15)),
        beside(
            "first packets to all 10,000 services",
            |speed| speed.new_flow_anywhere,
            None,
        ),
        beside("denied packet, 10,000 rules", |speed| speed.denied, Some(1.15)),
    ])
}
