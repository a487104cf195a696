//! End to end beside nftables, since nft offers no way to time its verdict alone: connections, first datagrams and
//! bulk between two pods, judged by nobody, by us, and by the same rules in nftables.
//!
//! The rules are a whitelist for what the one pod sends and one for what the other receives. In nftables they come
//! as most CNIs write them, a chain for each pod that is walked, and as the fastest form that nft has: one lookup in a
//! verdict map for each pod. Both let packets of tracked connections pass first.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use ebpf_loader::{Datapath, EndpointLink, Kernel, OBJECT, monotonic_now};
use policies_ir::tables::{
    Direction, EndpointId, EndpointTables, IdentityId, InsideClass, NodeTables, RuleId, Service, SourceClass,
    Verdict, VerdictEntry, VerdictKey,
};

use crate::{
    Line,
    pods::{BULK_PORT, CLIENT, Pair, SERVER, TCP_PORT, UDP_PORT, feed},
};

const FEW: u16 = 10;
const MANY: u16 = 10_000;
const CLIENT_ENDPOINT: EndpointId = EndpointId(1);
const SERVER_ENDPOINT: EndpointId = EndpointId(2);
const TCP: u8 = 6;
const UDP: u8 = 17;
const BULK_SECONDS: u32 = 2;

/// Who judges what the pods send, by how many rules for each pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Judge {
    /// Nobody: the same links, no programs, no rules.
    Nobody,
    /// Our programs, and nothing else on the host.
    Ours(u16),
    /// Our programs beside the nftables table that the agent installs. Its masquerade has the kernel track connections,
    /// but for those between pods.
    OursInstalled(u16),
    /// A chain of nftables rules.
    Chain(u16),
    /// A verdict map of nftables.
    Map(u16),
}

impl Judge {
    const ALL: [Self; 8] = [
        Self::Nobody,
        Self::Ours(FEW),
        Self::Ours(MANY),
        Self::OursInstalled(MANY),
        Self::Chain(FEW),
        Self::Chain(MANY),
        Self::Map(FEW),
        Self::Map(MANY),
    ];

    /// A Williams square: in eight rounds each judge comes once at each place and once right after each other one, so
    /// what one leaves behind (two seconds of bulk make the next connections slower) falls on all alike.
    fn order(round: usize) -> [Self; 8] {
        let all = Self::ALL;
        [0, 1, 7, 2, 6, 3, 5, 4].map(|place| all[(place + round) % all.len()])
    }

    /// Bulk is measured where the answer differs: rules do not matter to tracked connections.
    fn has_bulk(self) -> bool {
        matches!(
            self,
            Self::Nobody | Self::Ours(MANY) | Self::OursInstalled(MANY) | Self::Map(MANY)
        )
    }
}

/// Of one judge, a number for each round.
#[derive(Default)]
struct Samples {
    connections_per_second: Vec<f64>,
    first_answer_us: Vec<f64>,
    gigabits: Vec<f64>,
}

/// Each round measures all judges, one after the other. The caller's thread must be in a network namespace made for
/// the purpose.
pub(crate) fn measure(pins: &Path, rounds: usize) -> Result<Vec<Line>> {
    let pair = Pair::plug_in()?;
    let mut kernel = Kernel::open(pins, OBJECT).context("cannot load the programs")?;
    let listener = Listener::start(&mut kernel)?;
    let mut samples = BTreeMap::<Judge, Samples>::new();
    let mut result = Ok(());
    for round in 0..rounds {
        for judge in Judge::order(round) {
            result = result.and_then(|()| {
                let sample = samples.entry(judge).or_default();
                one(judge, &pair, &mut kernel, sample).with_context(|| format!("cannot measure {judge:?}"))
            });
        }
    }
    let heard = listener.stop();
    kernel.unload().context("cannot unload")?;
    pair.unplug()?;
    result.and(heard)?;
    Ok(lines(&samples))
}

fn one(judge: Judge, pair: &Pair, kernel: &mut Kernel, into: &mut Samples) -> Result<()> {
    begin(judge, pair, kernel)?;
    let measured = (|| {
        // The first packets after a change pay for caches, whoever judges.
        pair.first_answer_us()?;
        into.connections_per_second.push(pair.connections_per_second()?);
        into.first_answer_us.push(pair.first_answer_us()?);
        if judge.has_bulk() {
            into.gigabits.push(pair.gigabits(BULK_SECONDS)?);
        }
        Ok(())
    })();
    end(judge, kernel)?;
    measured
}

fn begin(judge: Judge, pair: &Pair, kernel: &mut Kernel) -> Result<()> {
    match judge {
        Judge::Nobody => Ok(()),
        Judge::Ours(count) | Judge::OursInstalled(count) => {
            for (id, address, pod) in [
                (CLIENT_ENDPOINT, CLIENT, &pair.client),
                (SERVER_ENDPOINT, SERVER, &pair.server),
            ] {
                kernel.attach(&EndpointLink {
                    id,
                    ifindex: pod.ifindex,
                    addresses: vec![address.into()],
                    mac: pod.mac,
                })?;
            }
            kernel.sync(&tables(count))?;
            if matches!(judge, Judge::OursInstalled(_)) {
                feed("nft", &["-f", "-"], INSTALLED)?;
            }
            Ok(())
        }
        Judge::Chain(count) => feed("nft", &["-f", "-"], &chain(count)),
        Judge::Map(count) => feed("nft", &["-f", "-"], &verdict_map(count)),
    }
}

fn end(judge: Judge, kernel: &mut Kernel) -> Result<()> {
    if matches!(judge, Judge::Ours(_) | Judge::OursInstalled(_)) {
        kernel.detach(CLIENT_ENDPOINT)?;
        kernel.detach(SERVER_ENDPOINT)?;
        kernel.expire(monotonic_now())?;
    }
    feed("nft", &["flush", "ruleset"], "")
}

/// Reads what the programs report, as the agent does, so that its cost counts.
struct Listener {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Listener {
    fn start(kernel: &mut Kernel) -> Result<Self> {
        let mut source = kernel.flow_source()?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                source.next(Duration::from_millis(200))?;
            }
            Ok(())
        });
        Ok(Self { stop, thread })
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_panic| anyhow!("the reader of reports panicked"))?
    }
}

/// What one pod may exchange with another end, by protocol and port of the receiver.
type Rule = (Ipv4Addr, u8, u16);

/// So many rules, those that the traffic needs in the middle: half of a chain is walked.
fn rules(other: Ipv4Addr, count: u16) -> Vec<Rule> {
    let used = [
        (other, TCP, TCP_PORT),
        (other, UDP, UDP_PORT),
        (other, TCP, BULK_PORT),
    ];
    let spare = usize::from(count).saturating_sub(used.len());
    let mut rules: Vec<Rule> = (0..count)
        .take(spare)
        .map(|number| {
            let [high, low] = (number / 100).to_be_bytes();
            let protocol = if number % 2 == 0 { TCP } else { UDP };
            (Ipv4Addr::new(10, 9, high, low), protocol, 10_000 + number % 100)
        })
        .collect();
    rules.splice(spare / 2..spare / 2, used);
    rules
}

fn tables(count: u16) -> NodeTables {
    let mut tables = NodeTables::default();
    for (id, other, direction) in [
        (CLIENT_ENDPOINT, SERVER, Direction::Egress),
        (SERVER_ENDPOINT, CLIENT, Direction::Ingress),
    ] {
        let mut endpoint = EndpointTables::default();
        for (rule, (peer, protocol, port)) in (64..).zip(rules(other, count)) {
            let next = u32::try_from(tables.identities.len()).unwrap_or(u32::MAX);
            let peer = *tables
                .identities
                .entry(IpAddr::from(peer).into())
                .or_insert(IdentityId(next.saturating_add(1)));
            let service = Service::Ports {
                protocol,
                port,
                prefix_bits: 16,
            };
            let key = VerdictKey {
                peer,
                direction,
                inside: InsideClass::default(),
                source: SourceClass(0),
                service,
            };
            let entry = VerdictEntry {
                verdict: Verdict::Allow,
                rule: RuleId(rule),
            };
            endpoint.verdicts.insert(key, entry);
        }
        tables.endpoints.insert(id, endpoint.into());
    }
    tables
}

/// What `agent/network` installs, for this pod range.
const INSTALLED: &str = r#"
table inet palisade {
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 10.7.0.0/24 ip daddr != 10.7.0.0/24 oifname != { "client", "server" } counter masquerade
  }
  chain prerouting {
    type filter hook prerouting priority raw; policy accept;
    iifname != { "client", "server", "lo" } ip saddr 10.7.0.0/24 counter drop
    iifname { "client", "server" } ip saddr 10.7.0.0/24 ip daddr 10.7.0.0/24 notrack
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname { "client", "server" } oifname != { "client", "server" } ip daddr 10.7.0.0/24 counter drop
    iifname { "client", "server" } ip daddr 169.254.0.0/16 th dport != 53 counter drop
  }
}
"#;

/// Where packets of no tracked connection go on to the pods' chains.
const FORWARD: &str = r#"
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ct state invalid drop
    iifname "client" goto from_client
  }
}
"#;

fn chain(count: u16) -> String {
    let mut text = "table inet bench {\n".to_owned();
    for (name, end, other, verdict) in [
        ("to_server", "saddr", CLIENT, "accept"),
        ("from_client", "daddr", SERVER, "goto to_server"),
    ] {
        writes(&mut text, format_args!("  chain {name} {{\n"));
        for (address, protocol, port) in rules(other, count) {
            let protocol = word(protocol);
            let rule = format_args!("    ip {end} {address} {protocol} dport {port} {verdict}\n");
            writes(&mut text, rule);
        }
        writes(&mut text, format_args!("    drop\n  }}\n"));
    }
    text + FORWARD
}

fn verdict_map(count: u16) -> String {
    let mut text = "table inet bench {\n".to_owned();
    for (name, end, other, verdict) in [
        ("to_server", "saddr", CLIENT, "accept"),
        ("from_client", "daddr", SERVER, "goto to_server"),
    ] {
        let head = "type ipv4_addr . inet_proto . inet_service : verdict";
        writes(
            &mut text,
            format_args!("  map {name}_rules {{\n    {head}\n    elements = {{\n"),
        );
        for (address, protocol, port) in rules(other, count) {
            let protocol = word(protocol);
            writes(
                &mut text,
                format_args!("      {address} . {protocol} . {port} : {verdict},\n"),
            );
        }
        let lookup = format_args!(
            "    }}\n  }}\n  chain {name} {{\n    ip {end} . meta l4proto . th dport vmap @{name}_rules\n    drop\n  }}\n"
        );
        writes(&mut text, lookup);
    }
    text + FORWARD
}

fn word(protocol: u8) -> &'static str {
    if protocol == UDP { "udp" } else { "tcp" }
}

fn writes(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _infallible = text.write_fmt(what);
}

fn lines(samples: &BTreeMap<Judge, Samples>) -> Vec<Line> {
    let none = Samples::default();
    let of = |judge: Judge| samples.get(&judge).unwrap_or(&none);
    let (map_few, map_many) = ("nftables, verdict map", "nftables, verdict map");
    let mut lines = Vec::new();
    for (what, ours, peer, name, least) in [
        ("10 rules", Judge::Ours(FEW), Judge::Map(FEW), map_few, Some(1.0)),
        (
            "10,000 rules",
            Judge::Ours(MANY),
            Judge::Map(MANY),
            map_many,
            Some(1.0),
        ),
        (
            "10 rules",
            Judge::Ours(FEW),
            Judge::Chain(FEW),
            "nftables, chain",
            None,
        ),
        (
            "10,000 rules",
            Judge::Ours(MANY),
            Judge::Chain(MANY),
            "nftables, chain",
            None,
        ),
        (
            "10,000 rules",
            Judge::Ours(MANY),
            Judge::Nobody,
            "no policy",
            None,
        ),
        (
            "10,000, beside agent's nft table",
            Judge::OursInstalled(MANY),
            Judge::Map(MANY),
            map_many,
            None,
        ),
    ] {
        lines.push(Line::at_least(
            &format!("connections per second, {what}"),
            "1/s",
            &of(ours).connections_per_second,
            (name, &of(peer).connections_per_second),
            least,
        ));
    }
    for (what, ours, peer, name) in [
        ("10 rules", Judge::Ours(FEW), Judge::Map(FEW), map_few),
        ("10,000 rules", Judge::Ours(MANY), Judge::Map(MANY), map_many),
        ("10 rules", Judge::Ours(FEW), Judge::Chain(FEW), "nftables, chain"),
        (
            "10,000 rules",
            Judge::Ours(MANY),
            Judge::Chain(MANY),
            "nftables, chain",
        ),
        ("10,000 rules", Judge::Ours(MANY), Judge::Nobody, "no policy"),
    ] {
        lines.push(Line::paired(
            &format!("first datagram and answer, {what}"),
            "us",
            &of(ours).first_answer_us,
            (name, &of(peer).first_answer_us),
        ));
    }
    for (what, ours, peer, name, least) in [
        ("", Judge::Ours(MANY), Judge::Nobody, "no programs", Some(0.95)),
        (
            ", beside agent's nft table",
            Judge::OursInstalled(MANY),
            Judge::Nobody,
            "no programs",
            None,
        ),
        ("", Judge::Ours(MANY), Judge::Map(MANY), map_many, None),
    ] {
        lines.push(Line::at_least(
            &format!("iperf3 from pod to pod{what}"),
            "Gbit/s",
            &of(ours).gigabits,
            (name, &of(peer).gigabits),
            least,
        ));
    }
    lines
}
