//! Measures Palisade beside what users would pick instead, in one run, and prints ratios.
//!
//! Writes `target/bench/NAME.json`: a list of `{metric, unit, ours, peer, peer_name, ratio, target, met}`. A target in a
//! unit is about `ours`, one in parts of a peer about `ratio`; where there are both, both must hold.
//! Numbers depend on the machine; ratios of one run are what to compare. Rounds of the two sides alternate,
//! so that a slow moment of the machine hits both.

#![forbid(unsafe_code)]

mod calls;
mod change;
mod cluster;
mod cold;
mod compile;
mod network;
mod packets;
mod pods;
mod runtime;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use nix::sched::{CloneFlags, unshare};
use serde::Serialize;

/// Measures Palisade beside what users would pick instead
#[derive(Parser)]
struct Args {
    /// What to measure; without it, everything
    what: Vec<What>,
    /// Rounds of each measurement; a result's heading says where there were fewer or more
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Where the results go
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
}

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Containers beside runc, cold start beside containerd
    Runtime,
    /// A whole cluster: apply to Running, idle memory
    Cluster,
    /// All that policy costs: packets, network, compile and change; needs root
    Policy,
    /// Packets judged by few and by many rules, by the kernel's clock; needs root
    Packets,
    /// Connections, datagrams and bulk between two pods beside nftables; needs root
    Network,
    /// The policy compiler: from nothing, one change, and how both grow
    Compile,
    /// From a change of policies, labels or pods to its enforcement in the kernel, and the kernel's memory; needs root
    Change,
}

impl What {
    /// In the order in which they are run.
    const ALL: [Self; 6] = [
        Self::Runtime,
        Self::Cluster,
        Self::Packets,
        Self::Network,
        Self::Compile,
        Self::Change,
    ];
    /// What [`What::Policy`] is short for.
    const POLICY: [Self; 4] = [Self::Packets, Self::Network, Self::Compile, Self::Change];
}

impl Args {
    fn wants(&self, what: What) -> bool {
        let by_policy = What::POLICY.contains(&what) && self.what.contains(&What::Policy);
        self.what.is_empty() || self.what.contains(&what) || by_policy
    }
}

/// What a benchmark found.
struct Report {
    name: &'static str,
    /// How often what was measured.
    how: String,
    lines: Vec<Line>,
}

/// One line of a result.
#[derive(Serialize)]
struct Line {
    metric: String,
    unit: &'static str,
    ours: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
}

impl Line {
    /// A number without a peer; `most` is the target.
    fn alone(metric: &str, unit: &'static str, ours: f64, most: Option<f64>) -> Self {
        Self {
            metric: metric.to_owned(),
            unit,
            ours,
            peer: None,
            peer_name: None,
            ratio: None,
            target: most.map(|most| format!("at most {most} {unit}")),
            met: most.map(|most| ours <= most),
        }
    }

    /// A number without a peer of which more is better; `least` is the target.
    fn alone_at_least(metric: &str, unit: &'static str, ours: f64, least: f64) -> Self {
        Self {
            target: Some(format!("at least {least} {unit}")),
            met: Some(ours >= least),
            ..Self::alone(metric, unit, ours, None)
        }
    }

    /// A number beside a peer's; `most` is the highest acceptable ratio.
    fn beside(metric: &str, unit: &'static str, ours: f64, peer: (&str, f64), most: Option<f64>) -> Self {
        let ratio = ours / peer.1;
        Self {
            peer: Some(peer.1),
            peer_name: Some(peer.0.to_owned()),
            ratio: Some(ratio),
            target: most.map(|most| format!("at most {most} of {}", peer.0)),
            met: most.map(|most| ratio <= most),
            ..Self::alone(metric, unit, ours, None)
        }
    }

    /// The same with a target for the number itself, beside that of the ratio if there is one.
    fn within(self, most: f64) -> Self {
        let own = format!("at most {most} {}", self.unit);
        Self {
            met: Some(self.ours <= most && self.met.unwrap_or(true)),
            target: Some(match &self.target {
                Some(of_ratio) => format!("{own}, {of_ratio}"),
                None => own,
            }),
            ..self
        }
    }

    /// Numbers of alternating rounds beside a peer's of the same rounds: the ratio is the median of the rounds' ratios,
    /// so that a slow moment, which hits both, does not count.
    fn paired(metric: &str, unit: &'static str, ours: &[f64], peer: (&str, &[f64])) -> Self {
        let ratios = ours.iter().zip(peer.1).map(|(ours, peer)| ours / peer).collect();
        let middle = |values: &[f64]| median(values.to_vec());
        Self {
            ratio: Some(median(ratios)),
            ..Self::beside(metric, unit, middle(ours), (peer.0, middle(peer.1)), None)
        }
    }

    /// As [`Line::paired`], where more is better; `least` is the lowest acceptable ratio.
    fn at_least(
        metric: &str,
        unit: &'static str,
        ours: &[f64],
        peer: (&str, &[f64]),
        least: Option<f64>,
    ) -> Self {
        let line = Self::paired(metric, unit, ours, peer);
        Self {
            target: least.map(|least| format!("at least {least} of {}", peer.0)),
            met: least.map(|least| line.ratio.is_some_and(|ratio| ratio >= least)),
            ..line
        }
    }

    /// As [`Line::paired`], where less is better; `most` is the highest acceptable ratio.
    fn at_most(
        metric: &str,
        unit: &'static str,
        ours: &[f64],
        peer: (&str, &[f64]),
        most: Option<f64>,
    ) -> Self {
        let line = Self::paired(metric, unit, ours, peer);
        Self {
            target: most.map(|most| format!("at most {most} of {}", peer.0)),
            met: most.map(|most| line.ratio.is_some_and(|ratio| ratio <= most)),
            ..line
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let done = match arguments.as_slice() {
        [_, word, root] if word == calls::CHILD => calls::as_child(root.as_ref()).map(|told| show(&told)),
        [_, word] if word == calls::LEAST => calls::under_the_least().map(|told| show(&told)),
        _ => measure(&Args::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            show(&format!("the benchmark could not run: {error:?}"));
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<()> {
    fs::create_dir_all(&args.output).with_context(|| format!("cannot create {}", args.output.display()))?;
    let rounds = args.rounds;
    for what in What::ALL.into_iter().filter(|what| args.wants(*what)) {
        let report = match what {
            What::Runtime => runtime::measure(rounds)?,
            What::Cluster => cluster::measure(rounds)?,
            What::Packets => on_own_network(move |pins| packets::measure(pins, rounds))?,
            What::Network => on_own_network(move |pins| network::measure(pins, rounds))?,
            What::Compile => compile::measure(rounds)?,
            What::Change => on_own_network(change::measure)?,
            // Its parts are.
            What::Policy => continue,
        };
        print(&args.output, &report)?;
    }
    Ok(())
}

/// Runs on a thread with a network namespace and a pin directory, both gone afterwards.
fn on_own_network(measure: impl FnOnce(&Path) -> Result<Report> + Send + 'static) -> Result<Report> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace; run as root")?;
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        measure(&directory.path().join("bpf"))
    });
    thread
        .join()
        .map_err(|_panic| anyhow::anyhow!("the measuring thread panicked"))?
}

fn print(output: &Path, report: &Report) -> Result<()> {
    let Report { name, how, lines } = report;
    show(&format!("\n{name}, {how}"));
    show(&format!(
        "{:<68} {:>9} {:>9}  {:<24} {:>6}  {}",
        "", "ours", "peer", "", "ratio", "target"
    ));
    for line in lines {
        let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.1}"));
        let met = match line.met {
            Some(true) => "met",
            Some(false) => "NOT met",
            None => "",
        };
        show(&format!(
            "{:<68} {:>9} {:>9}  {:<24} {:>6}  {} {met}",
            format!("{} ({})", line.metric, line.unit),
            number(Some(line.ours)),
            number(line.peer),
            line.peer_name.as_deref().unwrap_or_default(),
            line.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            line.target.as_deref().unwrap_or_default(),
        ));
    }
    let path = output.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(lines).context("cannot write JSON")?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[expect(clippy::print_stdout, reason = "printing is what a benchmark is for")]
fn show(text: &str) {
    println!("{text}");
}

/// Middle of the numbers; none is not a number, and so meets no target.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Middle of the times, in milliseconds.
fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times
        .get(times.len() / 2)
        .map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

/// The number that so many of a hundred do not exceed.
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Resident memory of a process in MB (10^6 bytes).
fn resident_mb(pid: i32) -> Result<f64> {
    memory_mb(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// The same with pages that several processes share counted in parts.
fn proportional_mb(pid: i32) -> Result<f64> {
    memory_mb(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

fn memory_mb(path: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .with_context(|| format!("no {name} in {path}"))?;
    let kib: f64 = line
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .with_context(|| format!("{line:?}"))?;
    Ok(kib * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(words: &[&str]) -> Vec<What> {
        let args = Args::try_parse_from(["bench"].iter().chain(words)).unwrap();
        What::ALL.into_iter().filter(|what| args.wants(*what)).collect()
    }

    #[test]
    fn policy_is_all_that_policy_costs() {
        assert_eq!(wanted(&["policy", "--rounds", "3"]), What::POLICY);
        assert_eq!(wanted(&["compile"]), [What::Compile]);
        assert_eq!(wanted(&[]), What::ALL);
        assert!(Args::try_parse_from(["bench", "--rounds", "0"]).is_err());
    }

    #[test]
    fn a_line_with_two_targets_meets_both_or_none() {
        let line =
            |ours| Line::at_most("a packet", "ns", &[ours], ("10 rules", &[100.0]), Some(1.15)).within(150.0);
        assert_eq!(line(110.0).met, Some(true));
        assert_eq!(line(140.0).met, Some(false));
        assert_eq!(
            line(110.0).target.unwrap(),
            "at most 150 ns, at most 1.15 of 10 rules"
        );
        let alone = |ours| Line::alone("a packet", "ns", ours, None).within(150.0).met;
        assert_eq!([alone(150.0), alone(151.0)], [Some(true), Some(false)]);
        assert_eq!(alone(f64::NAN), Some(false));
    }
}
