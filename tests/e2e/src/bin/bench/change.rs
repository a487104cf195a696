//! From a change to its enforcement: the compiler, and the kernel's tables of 200 local endpoints, whose programs a pod
//! that comes gets and one that goes loses. And what those endpoints take of the kernel's memory.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ebpf_loader::{Datapath, EndpointLink, Kernel, OBJECT, monotonic_now};
use k8s_openapi::{api::networking::v1::NetworkPolicy, apimachinery::pkg::util::intstr::IntOrString};
use policies_compiler::{ClusterView, PodView, Session, compile};
use policies_ir::tables::{EndpointId, NodeTables};

use crate::{
    Line, Report,
    compile::{LOCAL, SIZES, USUAL, cluster, label, pods_of, successor},
    median_ms,
    pods::feed,
};

const CHANGES: usize = 200;
/// Changes of clusters of other sizes.
const GROWTH: usize = 50;
/// The agent tidies up every few seconds; here, every so many changes.
const TIDY_EVERY: usize = 10;

/// The caller's thread must be in a network namespace made for the purpose.
pub(crate) fn measure(pins: &Path) -> Result<Report> {
    let mut kernel = Kernel::open(pins, OBJECT).context("cannot load the programs")?;
    let measured = measure_with(&mut kernel);
    kernel.unload().context("cannot unload")?;
    Ok(Report {
        name: "change",
        how: format!("{CHANGES} changes of each kind, {GROWTH} where growth is measured"),
        lines: measured?,
    })
}

fn measure_with(kernel: &mut Kernel) -> Result<Vec<Line>> {
    let view = cluster(USUAL);
    let tables = compile(&view).tables;
    let verdicts: usize = tables
        .endpoints
        .values()
        .map(|tables| tables.verdicts.len())
        .sum();
    let interfaces = interfaces()?;
    let mut links = attach(kernel, &view, &interfaces)?;
    let empty = map_bytes()?;
    let start = Instant::now();
    kernel.sync(&tables)?;
    let first = start.elapsed();
    let mut lines = memory(empty, map_bytes()?, verdicts);
    lines.push(Line::alone(
        "tables of 200 endpoints written, all new",
        "ms",
        median_ms(vec![first]),
        None,
    ));
    let mut session = Session::new(view.clone(), tables);
    session.settle();
    kernel.sync(session.tables())?;
    let mut whole = Times::default();
    for kind in [Kind::Ports, Kind::Peers, Kind::Subject, Kind::Comes, Kind::Order] {
        let times = policy_changes(kernel, &mut session, &view, kind)?;
        lines.push(Line::alone(
            &format!("{} to enforced, p99", kind.text()),
            "ms",
            slowest(&times.whole, 99),
            None,
        ));
        whole.compiled.extend(times.compiled);
        whole.whole.extend(times.whole);
        whole.between.extend(times.between);
        whole.written.extend(times.written);
    }
    lines.extend(whole.lines("policy changed in any of these ways to enforced"));
    for (local, of) in [(false, "another node"), (true, "this node")] {
        let times = label_changes(kernel, &mut session, &view, local, CHANGES)?;
        lines.extend(times.lines(&format!("labels of a pod of {of} to enforced")));
    }
    for (local, of) in [(false, "another node"), (true, "this node")] {
        let [goes, comes] = pod_changes(kernel, &mut session, &view, &mut links, local)?;
        lines.extend(goes.lines(&format!("a pod of {of} goes, to enforced")));
        lines.extend(comes.lines(&format!("a pod of {of} comes, to enforced")));
    }
    for (pods, policies) in SIZES {
        let name = format!("growth: {policies} policies, {pods} pods, labels to enforced");
        let times = grown(kernel, &interfaces, (pods, policies)).with_context(|| name.clone())?;
        for percent in [50, 99] {
            let name = format!("{name}, p{percent}");
            lines.push(Line::alone(&name, "ms", slowest(&times.whole, percent), None));
        }
    }
    Ok(lines)
}

/// Labels of local pods change in a cluster of another size.
fn grown(kernel: &mut Kernel, interfaces: &[u32], size: (usize, usize)) -> Result<Times> {
    let view = cluster(size);
    attach(kernel, &view, interfaces)?;
    let mut session = Session::new(view.clone(), NodeTables::default());
    session.settle();
    kernel.sync(session.tables())?;
    kernel.expire(monotonic_now())?;
    label_changes(kernel, &mut session, &view, true, GROWTH)
}

/// What changes of a policy that selects a local pod.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A port of a rule.
    Ports,
    /// Whom a rule lets in.
    Peers,
    /// Whom it selects.
    Subject,
    /// It goes, or comes back.
    Comes,
    /// Its place among the others.
    Order,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Ports => "rule's ports changed",
            Self::Peers => "rule's peer selector changed",
            Self::Subject => "policy's selector changed",
            Self::Comes => "policy deleted or created",
            Self::Order => "policy's order changed",
        }
    }
}

/// As the agent does: the session follows, and the kernel gets what changed.
fn policy_changes(
    kernel: &mut Kernel,
    session: &mut Session,
    view: &ClusterView,
    kind: Kind,
) -> Result<Times> {
    let mut times = Times::default();
    for round in 0..CHANGES {
        // Policies in this order select the pods in this order, local ones first.
        let turn = round / 2 * 7 % (LOCAL / 2);
        let changes = round % 2 == 0;
        let start = Instant::now();
        if matches!(kind, Kind::Order) {
            let mut object = view.calico.get(turn).context("too few policies")?.clone();
            if let policies_compiler::CalicoObject::NetworkPolicy(policy) = &mut object
                && changes
            {
                policy.spec.order = Some(f64::from(u32::try_from(1000 + round)?));
            }
            session.put_calico(object);
        } else {
            let mut policy = view.policies.get(turn).context("too few policies")?.clone();
            if changes {
                change(&mut policy, kind, turn, round)?;
            }
            let metadata = policy.metadata.clone();
            match (kind, changes) {
                (Kind::Comes, true) => session.remove_policy(
                    &metadata.namespace.unwrap_or_default(),
                    &metadata.name.unwrap_or_default(),
                ),
                _ => session.put_policy(policy),
            }
        }
        let settled = session.settle();
        let compiled_in = start.elapsed();
        let synced = kernel.sync(session.tables())?;
        times.push(compiled_in, start.elapsed(), synced.written);
        // No pod here has policies of both kinds, so their order decides nothing: what is measured is finding that out.
        let changed = settled.changed || matches!(kind, Kind::Order);
        ensure!(changed, "{kind:?} {round} changed nothing");
        tidy(kernel, session, round, &mut times)?;
    }
    Ok(times)
}

fn change(policy: &mut NetworkPolicy, kind: Kind, turn: usize, round: usize) -> Result<()> {
    let spec = policy.spec.as_mut().context("an empty policy")?;
    let rule = spec.ingress.as_mut().and_then(|rules| rules.first_mut());
    let rule = rule.context("the policy has no rule")?;
    let labels = |selector: &mut Option<_>, value: String| {
        let selector: &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector =
            selector.get_or_insert_default();
        selector.match_labels = Some([("tier".to_owned(), value)].into());
    };
    // Every second policy is Kubernetes', and the pod that it selects has the number of the policy: its own tier would
    // select the same local pod again, and change nothing.
    let tier = ["front", "back", "data"]
        .get((turn * 2 + 1) % 3)
        .copied()
        .unwrap_or_default();
    match kind {
        Kind::Ports => {
            let port = rule.ports.as_mut().and_then(|ports| ports.get_mut(1));
            port.context("the rule has no such port")?.port =
                Some(IntOrString::Int(i32::try_from(8700 + round)?));
        }
        Kind::Peers => {
            let peer = rule.from.as_mut().and_then(|from| from.first_mut());
            let peer = peer.context("the rule has no peer")?;
            // A condition that no other policy has: it tells pods apart that were alike.
            peer.namespace_selector = Some(Default::default());
            labels(&mut peer.pod_selector, tier.to_owned());
            let selector = peer.pod_selector.get_or_insert_default();
            let labels = selector.match_labels.get_or_insert_default();
            labels.insert("app".to_owned(), format!("app-{}", round / 2 % 40));
        }
        Kind::Subject => labels(&mut spec.pod_selector, tier.to_owned()),
        Kind::Comes | Kind::Order => {}
    }
    Ok(())
}

/// A pod changes its labels.
fn label_changes(
    kernel: &mut Kernel,
    session: &mut Session,
    view: &ClusterView,
    local: bool,
    changes: usize,
) -> Result<Times> {
    let mut pods = pods_of(view, local);
    let count = pods.len();
    let mut times = Times::default();
    for round in 0..changes {
        let pod = pods.get_mut(round * 37 % count).context("no pod")?;
        label(pod, round);
        let start = Instant::now();
        session.set_pod(&pod.namespace, &pod.name, Some(pod.clone()));
        session.settle();
        let compiled_in = start.elapsed();
        let synced = kernel.sync(session.tables())?;
        times.push(compiled_in, start.elapsed(), synced.written);
        tidy(kernel, session, round, &mut times)?;
    }
    Ok(times)
}

/// A pod goes, and another one comes for it, on the same link if it is one of this node. As in the agent, a pod's programs
/// are taken off before its rules, and attached, denying everything, before it has any. Its flows are forgotten when nobody
/// waits.
fn pod_changes(
    kernel: &mut Kernel,
    session: &mut Session,
    view: &ClusterView,
    links: &mut BTreeMap<EndpointId, EndpointLink>,
    local: bool,
) -> Result<[Times; 2]> {
    let mut pods = pods_of(view, local);
    let count = pods.len();
    let (mut goes, mut comes) = (Times::default(), Times::default());
    for round in 0..CHANGES {
        let pod = pods.get_mut(round * 37 % count).context("no pod")?;
        let link = pod.endpoint.and_then(|endpoint| links.remove(&endpoint));
        let start = Instant::now();
        if let Some(link) = &link {
            kernel.take_off(link.id)?;
        }
        let taken_off_in = start.elapsed();
        session.set_pod(&pod.namespace, &pod.name, None);
        session.settle();
        let compiled_in = start.elapsed() - taken_off_in;
        let synced = kernel.sync(session.tables())?;
        goes.push(compiled_in, start.elapsed(), synced.written);
        if let Some(link) = &link {
            kernel.detach(link.id)?;
        }

        let next = successor(pod, round);
        let link = link
            .zip(next.endpoint)
            .map(|(link, id)| link_of(&next, id, link.ifindex));
        let start = Instant::now();
        if let Some(link) = &link {
            kernel.attach(link)?;
        }
        let attached_in = start.elapsed();
        session.set_pod(&next.namespace, &next.name, Some(next.clone()));
        session.settle();
        let compiled_in = start.elapsed() - attached_in;
        let synced = kernel.sync(session.tables())?;
        comes.push(compiled_in, start.elapsed(), synced.written);
        links.extend(link.map(|link| (link.id, link)));
        *pod = next;
        tidy(kernel, session, round, &mut comes)?;
    }
    Ok([goes, comes])
}

/// What the agent does between changes: it forgets old entries, and compiles anew when much has piled up.
fn tidy(kernel: &mut Kernel, session: &mut Session, round: usize, times: &mut Times) -> Result<()> {
    if round % TIDY_EVERY != TIDY_EVERY - 1 {
        return Ok(());
    }
    let start = Instant::now();
    kernel.expire(monotonic_now())?;
    let settled = session.tidy();
    if kernel.is_worn() {
        kernel.renew(session.tables())?;
    } else if settled.is_some_and(|settled| settled.changed) {
        kernel.sync(session.tables())?;
    }
    times.between.push(start.elapsed());
    Ok(())
}

#[derive(Default)]
struct Times {
    compiled: Vec<Duration>,
    whole: Vec<Duration>,
    /// Entries that the kernel was given.
    written: Vec<usize>,
    /// What tidying up took, while nobody waited.
    between: Vec<Duration>,
}

impl Times {
    fn push(&mut self, compiled: Duration, whole: Duration, written: usize) {
        self.written.push(written);
        self.compiled.push(compiled);
        self.whole.push(whole);
    }

    /// Entries that so many in a hundred did not exceed.
    fn entries(&self, percent: usize) -> f64 {
        let mut written = self.written.clone();
        written.sort_unstable();
        let rank = (written.len() * percent).div_ceil(100).saturating_sub(1);
        let entries = written.get(rank).and_then(|entries| u32::try_from(*entries).ok());
        entries.map_or(f64::NAN, f64::from)
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
            line("  of it to compile, p99", slowest(&self.compiled, 99), None),
            line("  of it in the kernel, p50", slowest(&sync, 50), None),
            line("  of it in the kernel, p99", slowest(&sync, 99), None),
            Line::alone("  written, p50", "entries", self.entries(50), None),
            Line::alone("  written, p99", "entries", self.entries(99), None),
            line(
                "  tidying up in between, slowest",
                slowest(&self.between, 100),
                None,
            ),
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
fn interfaces() -> Result<Vec<u32>> {
    let mut text = String::new();
    for number in 0..LOCAL / 2 {
        // Writing to a string does not fail.
        let _infallible = writeln!(text, "link add a{number} type veth peer name b{number}");
    }
    feed("ip", &["-batch", "-"], &text)?;
    let names = (0..LOCAL).map(|number| format!("{}{}", if number % 2 == 0 { 'a' } else { 'b' }, number / 2));
    let index = |name: String| {
        nix::net::if_::if_nametoindex(name.as_str()).with_context(|| format!("no link {name}"))
    };
    names.map(index).collect()
}

/// Gives each local pod one of them, in place of whoever had it.
fn attach(
    kernel: &mut Kernel,
    view: &ClusterView,
    interfaces: &[u32],
) -> Result<BTreeMap<EndpointId, EndpointLink>> {
    let before = kernel.attached()?;
    for link in before {
        kernel.detach(link.id)?;
    }
    let local = view.pods.iter().filter_map(|pod| Some((pod.endpoint?, pod)));
    let mut links = BTreeMap::new();
    for ((id, pod), ifindex) in local.zip(interfaces) {
        let link = link_of(pod, id, *ifindex);
        kernel.attach(&link)?;
        links.insert(id, link);
    }
    Ok(links)
}

fn link_of(pod: &PodView, id: EndpointId, ifindex: u32) -> EndpointLink {
    EndpointLink {
        id,
        ifindex,
        addresses: pod.addresses.iter().copied().collect(),
        mac: [2, 0, 0, 0, 0, 1],
    }
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
