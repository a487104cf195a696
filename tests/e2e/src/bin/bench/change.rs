//! From a change to its enforcement: the compiler, and the kernel's tables of 200 local endpoints. And what those
//! endpoints take of the kernel's memory.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ebpf_loader::{Datapath, EndpointLink, Kernel, OBJECT, monotonic_now};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use policies_compiler::{ClusterView, Material, PodView, Session, compile};

use crate::{
    Line,
    compile::{LOCAL, cluster},
    median_ms,
    pods::feed,
};

const PODS: usize = 10_000;
const POLICIES: usize = 1_000;
/// Compilations of everything take long.
const POLICY_CHANGES: usize = 100;
const LABEL_CHANGES: usize = 200;
/// The agent forgets old entries every few seconds; here, every so many changes.
const SWEEP_EVERY: usize = 10;

/// The caller's thread must be in a network namespace made for the purpose.
pub(crate) fn measure(pins: &Path) -> Result<Vec<Line>> {
    let mut kernel = Kernel::open(pins, OBJECT).context("cannot load the programs")?;
    let measured = measure_with(&mut kernel);
    kernel.unload().context("cannot unload")?;
    measured
}

fn measure_with(kernel: &mut Kernel) -> Result<Vec<Line>> {
    let mut view = cluster(PODS, POLICIES);
    let compiled = compile(&view);
    let verdicts: usize = compiled
        .tables
        .endpoints
        .values()
        .map(|tables| tables.verdicts.len())
        .sum();
    attach(kernel, &view)?;
    let empty = map_bytes()?;
    let start = Instant::now();
    kernel.sync(&compiled.tables)?;
    let first = start.elapsed();
    let mut lines = memory(empty, map_bytes()?, verdicts);
    lines.push(Line::alone(
        "tables of 200 endpoints written, all new",
        "ms",
        median_ms(vec![first]),
        None,
    ));
    drop(compiled);

    lines.extend(policy_changes(kernel, &mut view)?);
    lines.extend(label_changes(kernel, view)?);
    Ok(lines)
}

/// A rule of a policy that selects a local pod changes. Everything is compiled anew, as the agent does.
fn policy_changes(kernel: &mut Kernel, view: &mut ClusterView) -> Result<Vec<Line>> {
    let mut times = Times::default();
    for round in 0..POLICY_CHANGES {
        // Policies in this order select the pods in this order, local ones first.
        let policy = view
            .policies
            .get_mut(round * 7 % (LOCAL / 2))
            .context("too few policies")?;
        let port = policy
            .spec
            .as_mut()
            .and_then(|spec| spec.ingress.as_mut()?.first_mut()?.ports.as_mut()?.get_mut(1))
            .context("the policy has no such port")?;
        port.port = Some(IntOrString::Int(i32::try_from(8900 + round)?));
        let start = Instant::now();
        let compiled = compile(view);
        let compiled_in = start.elapsed();
        let synced = kernel.sync(&compiled.tables)?;
        times.push(compiled_in, start.elapsed());
        ensure!(synced.rewritten > 0, "the change reached no endpoint");
        sweep(kernel, round)?;
    }
    Ok(times.lines("policy changed to enforced"))
}

/// A pod of another node changes its labels. The session follows.
fn label_changes(kernel: &mut Kernel, view: ClusterView) -> Result<Vec<Line>> {
    let mut pods: Vec<PodView> = view
        .pods
        .iter()
        .filter(|pod| pod.endpoint.is_none())
        .cloned()
        .collect();
    let material = Material::new(view);
    let mut session = Session::new(&material);
    kernel.sync(session.tables())?;
    let mut times = Times::default();
    for round in 0..LABEL_CHANGES {
        let turn = round * 37 % pods.len();
        let pod = pods.get_mut(turn).context("no pod")?;
        pod.labels.insert("app".to_owned(), format!("app-{}", round % 7));
        pod.labels
            .insert("tier".to_owned(), format!("tier-{}", round % 5));
        let start = Instant::now();
        let changed = session.change(&pod.namespace, &pod.name, Some(pod));
        let compiled_in = start.elapsed();
        ensure!(changed.is_ok(), "the change was not followed");
        kernel.sync(session.tables())?;
        times.push(compiled_in, start.elapsed());
        sweep(kernel, round)?;
    }
    Ok(times.lines("labels of a remote pod to enforced, by a session"))
}

fn sweep(kernel: &mut Kernel, round: usize) -> Result<()> {
    if round % SWEEP_EVERY == SWEEP_EVERY - 1 {
        kernel.expire(monotonic_now())?;
    }
    Ok(())
}

#[derive(Default)]
struct Times {
    compiled: Vec<Duration>,
    whole: Vec<Duration>,
}

impl Times {
    fn push(&mut self, compiled: Duration, whole: Duration) {
        self.compiled.push(compiled);
        self.whole.push(whole);
    }

    fn lines(&self, metric: &str) -> Vec<Line> {
        let compile = slowest(&self.compiled, 50);
        let sync: Vec<_> = self
            .whole
            .iter()
            .zip(&self.compiled)
            .map(|(whole, part)| *whole - *part)
            .collect();
        let line = |name: &str, value, most| Line::alone(name, "ms", value, most);
        vec![
            line(&format!("{metric}, p50"), slowest(&self.whole, 50), None),
            line(&format!("{metric}, p99"), slowest(&self.whole, 99), Some(20.0)),
            line("  of it to compile, p50", compile, None),
            line("  of it to write, p50", slowest(&sync, 50), None),
            line("  of it to write, p99", slowest(&sync, 99), None),
        ]
    }
}

/// Milliseconds that so many in a hundred do not exceed.
fn slowest(times: &[Duration], percent: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    let rank = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times
        .get(rank)
        .map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

/// An interface for each local pod: both ends of links that lead nowhere.
fn attach(kernel: &mut Kernel, view: &ClusterView) -> Result<()> {
    let mut text = String::new();
    for number in 0..LOCAL / 2 {
        // Writing to a string does not fail.
        let _infallible = writeln!(text, "link add a{number} type veth peer name b{number}");
    }
    feed("ip", &["-batch", "-"], &text)?;
    let local = view.pods.iter().filter_map(|pod| Some((pod.endpoint?, pod)));
    for (number, (id, pod)) in local.enumerate() {
        let name = format!("{}{}", if number % 2 == 0 { 'a' } else { 'b' }, number / 2);
        let ifindex =
            nix::net::if_::if_nametoindex(name.as_str()).with_context(|| format!("no link {name}"))?;
        kernel.attach(&EndpointLink {
            id,
            ifindex,
            addresses: pod.addresses.iter().copied().collect(),
            mac: [2, 0, 0, 0, 0, 1],
        })?;
    }
    Ok(())
}

/// What the maps that this process holds take in the kernel, in bytes.
fn map_bytes() -> Result<f64> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo").context("cannot list descriptors")? {
        // The descriptor of the listing itself is gone by then.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<u32>().ok()
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    ensure!(!maps.is_empty(), "no map is open");
    Ok(maps.values().copied().map(f64::from).sum())
}

fn memory(empty: f64, full: f64, verdicts: usize) -> Vec<Line> {
    let endpoints = f64::from(u16::try_from(LOCAL).unwrap_or(u16::MAX));
    let entries = verdicts / LOCAL;
    let each = format!("kernel memory per endpoint, {entries} verdicts each");
    vec![
        Line::alone("kernel memory of all maps, no tables", "MB", empty / 1e6, None),
        Line::alone(&each, "kB", (full - empty) / endpoints / 1e3, None),
    ]
}
