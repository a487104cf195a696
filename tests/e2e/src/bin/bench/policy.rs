//! What judging a packet costs, and whether rules make it dearer. The kernel's own clock, the real programs.

use anyhow::{Context, Result};
use ebpf_loader::measure::{Speed, judging};
use nix::sched::{CloneFlags, unshare};

use crate::Line;

const FEW: u16 = 10;
const MANY: u16 = 10_000;

/// Each round measures few and many rules, one after the other. A round takes a few seconds, so there are few of them.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Line>> {
    let rounds = rounds.min(5);
    let on_own_network = std::thread::spawn(move || -> Result<(Vec<Speed>, Vec<Speed>)> {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace; run as root")?;
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        let pins = directory.path().join("bpf");
        let (mut few, mut many) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            few.push(judging(&pins, FEW).context("cannot measure few rules")?);
            many.push(judging(&pins, MANY).context("cannot measure many rules")?);
        }
        Ok((few, many))
    });
    let (few, many) = on_own_network
        .join()
        .map_err(|_panic| anyhow::anyhow!("the measuring thread panicked"))??;
    let beside = |metric: &str, of: fn(&Speed) -> f64, most| {
        let name = format!("{FEW} rules");
        Line::beside(metric, "ns", median(&many, of), (&name, median(&few, of)), most)
    };
    Ok(vec![
        Line::alone(
            "packet of a tracked flow",
            "ns",
            median(&many, |speed| speed.established),
            Some(150.0),
        ),
        Line::alone(
            "first packet of a flow",
            "ns",
            median(&many, |speed| speed.new_flow),
            Some(700.0),
        ),
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

fn median(speeds: &[Speed], of: fn(&Speed) -> f64) -> f64 {
    let mut values: Vec<f64> = speeds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
