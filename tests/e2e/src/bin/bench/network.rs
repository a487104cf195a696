//! End to end beside nftables, since nft offers no way to time its verdict alone: connections, first datagrams and
//! bulk between two pods, judged by nobody, by us, and by the same rules in nftables.
//!
//! The rules are a whitelist for what the one pod sends and one for what the other receives. In nftables they come
//! as most CNIs write them, a chain for each pod that is walked, and as the fastest form that nft has: one lookup in a
//! verdict map for each pod. Both let packets of tracked connections pass first.
//!
//! A node needs a table of masquerade and guards whoever judges, so all stand beside the one that the agent installs
//! ([`agent_network::firewall`]). nftables judges by the kernel's tracking, so there the table does not switch that off
//! between pods; ours does.

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

use agent_network::firewall;
use anyhow::{Context, Result, anyhow};
use ebpf_loader::{Datapath, EndpointLink, Kernel, OBJECT, monotonic_now};
use policies_ir::tables::{
    Direction, EndpointId, EndpointTables, IdentityId, InsideClass, NodeTables, RuleId, Service, SourceClass,
    Verdict, VerdictEntry, VerdictKey,
};

use crate::{
    Line, Report,
    pods::{BULK_PORT, CLIENT, CLIENT_LINK, Pair, SERVER, TCP_PORT, UDP_PORT, feed},
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
    /// Nobody: the same links, no programs, and nothing in nftables.
    Nobody,
    /// Our programs, and nothing else on the host. No node is like that; it shows what the programs alone cost.
    Alone(u16),
    /// Our programs beside the agent's table, as on every node.
    Ours(u16),
    /// A chain of nftables rules beside the table.
    Chain(u16),
    /// A verdict map of nftables beside the table.
    Map(u16),
}

impl Judge {
    const ALL: [Self; 8] = [
        Self::Nobody,
        Self::Alone(MANY),
        Self::Ours(FEW),
        Self::Ours(MANY),
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
            Self::Nobody | Self::Alone(MANY) | Self::Ours(MANY) | Self::Map(MANY)
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
pub(crate) fn measure(pins: &Path, rounds: u32) -> Result<Report> {
    let pair = Pair::plug_in()?;
    let mut kernel = Kernel::open(pins, OBJECT).context("cannot load the programs")?;
    let listener = Listener::start(&mut kernel)?;
    let mut samples = BTreeMap::<Judge, Samples>::new();
    let mut result = Ok(());
    for round in 0..usize::try_from(rounds)? {
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
    Ok(Report {
        name: "network",
        how: format!("medians of {rounds} rounds; beside the agent's nft table unless it says otherwise"),
        lines: lines(&samples),
    })
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
    let nft = |text: &str| feed("nft", &["-f", "-"], text);
    match judge {
        Judge::Nobody => Ok(()),
        Judge::Alone(count) | Judge::Ours(count) => {
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
            if matches!(judge, Judge::Ours(_)) {
                nft(&installed()?)?;
            }
            Ok(())
        }
        Judge::Chain(count) => nft(&(tracking(&installed()?) + &chain(count))),
        Judge::Map(count) => nft(&(tracking(&installed()?) + &verdict_map(count))),
    }
}

fn end(judge: Judge, kernel: &mut Kernel) -> Result<()> {
    if matches!(judge, Judge::Alone(_) | Judge::Ours(_)) {
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

/// What the agent installs on a node of these pods, which has IPv6 and an uplink that did not forward before it came.
fn installed() -> Result<String> {
    let uplinks = ["eth0".to_owned()];
    Ok(firewall::ruleset(firewall::Scope {
        pods: "10.7.0.0/24".parse().context("no range of pods")?,
        pods6: Some("fd07::/64".parse().context("no range of pods")?),
        opened: &uplinks,
        opened6: &uplinks,
        node: Ipv4Addr::new(192, 0, 2, 1),
        host_ports: (&[], &[]),
    }))
}

/// The table without the rules that keep the kernel from tracking what goes from pod to pod.
fn tracking(table: &str) -> String {
    let lines = table.lines().filter(|line| !line.ends_with(" notrack"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Where packets of no tracked connection go on to the pods' chains.
fn forward() -> String {
    format!(
        "  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ct state invalid drop
    iifname \"{CLIENT_LINK}\" goto from_client
  }}
}}
"
    )
}

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
    text + &forward()
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
    text + &forward()
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
    let (map, chain, nobody) = ("nftables, verdict map", "nftables, chain", "no policy, no table");
    let mut lines = Vec::new();
    for (what, ours, peer, name, least) in [
        ("10 rules", Judge::Ours(FEW), Judge::Map(FEW), map, Some(1.0)),
        (
            "10,000 rules",
            Judge::Ours(MANY),
            Judge::Map(MANY),
            map,
            Some(1.0),
        ),
        ("10 rules", Judge::Ours(FEW), Judge::Chain(FEW), chain, None),
        ("10,000 rules", Judge::Ours(MANY), Judge::Chain(MANY), chain, None),
        ("10,000 rules", Judge::Ours(MANY), Judge::Nobody, nobody, None),
        ("programs alone", Judge::Alone(MANY), Judge::Nobody, nobody, None),
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
        ("10 rules", Judge::Ours(FEW), Judge::Map(FEW), map),
        ("10,000 rules", Judge::Ours(MANY), Judge::Map(MANY), map),
        ("10 rules", Judge::Ours(FEW), Judge::Chain(FEW), chain),
        ("10,000 rules", Judge::Ours(MANY), Judge::Chain(MANY), chain),
        ("10,000 rules", Judge::Ours(MANY), Judge::Nobody, nobody),
        ("programs alone", Judge::Alone(MANY), Judge::Nobody, nobody),
    ] {
        lines.push(Line::paired(
            &format!("first datagram and answer, {what}"),
            "us",
            &of(ours).first_answer_us,
            (name, &of(peer).first_answer_us),
        ));
    }
    for (what, ours, peer, name, least) in [
        ("", Judge::Ours(MANY), Judge::Nobody, nobody, Some(0.95)),
        (
            ", programs alone",
            Judge::Alone(MANY),
            Judge::Nobody,
            nobody,
            None,
        ),
        ("", Judge::Ours(MANY), Judge::Map(MANY), map, None),
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

#[cfg(test)]
mod tests {
    use agent_network::LINK_PREFIX;

    use super::*;
    use crate::pods::SERVER_LINK;

    #[test]
    fn the_agents_table_speaks_of_the_pods_here_and_the_peers_have_all_of_it_but_what_hides_pods_from_tracking()
     {
        for link in [CLIENT_LINK, SERVER_LINK] {
            assert!(link.starts_with(LINK_PREFIX), "{link}");
        }
        let table = installed().unwrap();
        assert!(table.contains(&format!("iifname \"{LINK_PREFIX}*\"")));
        assert!(table.contains("masquerade"));
        let tracking = tracking(&table);
        let kept: Vec<&str> = tracking.lines().collect();
        let (kept, left_out): (Vec<&str>, Vec<&str>) = table.lines().partition(|line| kept.contains(line));
        assert_eq!(kept.len(), tracking.lines().count());
        assert_eq!(left_out.len(), 2, "{left_out:?}");
        for rule in left_out {
            assert!(
                rule.contains("saddr") && rule.contains("daddr") && rule.ends_with("notrack"),
                "{rule}"
            );
        }
    }
}
