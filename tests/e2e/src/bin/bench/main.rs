//! Measures Palisade beside what users would pick instead, in one run, and prints ratios.
//!
//! Writes `target/bench/NAME.json`: a list of `{metric, unit, ours, peer, peer_name, ratio, target, met}`.
//! Numbers depend on the machine; ratios of one run are what to compare. Rounds of the two sides alternate,
//! so that a slow moment of the machine hits both.

#![forbid(unsafe_code)]

mod calls;
mod change;
mod cluster;
mod cold;
mod compile;
mod network;
mod pods;
mod policy;
mod runtime;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde::Serialize;

/// Measures Palisade beside what users would pick instead
#[derive(Parser)]
struct Args {
    /// What to measure; without it, everything
    what: Vec<What>,
    /// Rounds of each measurement
    #[arg(long, default_value_t = 30)]
    rounds: u32,
    /// Where the results go
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
}

/// A benchmark.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Containers beside runc, cold start beside containerd
    Runtime,
    /// The policy compiler, and how its cost grows
    Compile,
    /// A whole cluster: apply to Running, idle memory
    Cluster,
    /// Packets and connections judged by few and by many rules, beside nftables; needs root
    Policy,
    /// From a change of policy or labels to its enforcement in the kernel; needs root
    Change,
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
    let wanted = |what| args.what.is_empty() || args.what.contains(&what);
    if wanted(What::Runtime) {
        let mut lines = runtime::measure(args.rounds)?;
        lines.extend(calls::measure()?);
        report(args, "runtime", &lines)?;
    }
    if wanted(What::Compile) {
        report(args, "compile", &compile::measure(args.rounds)?)?;
    }
    if wanted(What::Cluster) {
        report(args, "cluster", &cluster::measure(args.rounds)?)?;
    }
    if wanted(What::Policy) {
        report(args, "policy", &policy::measure(args.rounds)?)?;
    }
    if wanted(What::Change) {
        report(args, "change", &policy::changes()?)?;
    }
    Ok(())
}

fn report(args: &Args, name: &str, lines: &[Line]) -> Result<()> {
    show(&format!("\n{name}, medians of {} rounds", args.rounds));
    show(&format!(
        "{:<52} {:>9} {:>9}  {:<24} {:>6}  {}",
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
            "{:<52} {:>9} {:>9}  {:<24} {:>6}  {} {met}",
            format!("{} ({})", line.metric, line.unit),
            number(Some(line.ours)),
            number(line.peer),
            line.peer_name.as_deref().unwrap_or_default(),
            line.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            line.target.as_deref().unwrap_or_default(),
        ));
    }
    let path = args.output.join(format!("{name}.json"));
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
