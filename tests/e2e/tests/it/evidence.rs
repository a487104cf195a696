//! Evidence: the flow log outlives the agent, and the kernel's tables are held against the policy.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, LpmTrie, Map, MapData};
use e2e::{
    cluster::{Cluster, pod},
    shell::eventually,
};
use ebpf_abi::{AddressClass, IdentityKey, VERDICT_ALLOW, VERDICT_DENY, VerdictKey, VerdictValue};
use serde_json::{Value, json};
use testkit::lab;

use crate::{
    Test,
    network::{fetch, welcomed},
    recovery::kill,
};

pub(crate) const TESTS: &[Test] = &[
    ("flow_log_outlives_the_agent", flow_log_outlives_the_agent),
    ("verify_finds_one_wrong_entry", verify_finds_one_wrong_entry),
    (
        "metrics_count_what_the_kernel_denies",
        metrics_count_what_the_kernel_denies,
    ),
];

/// Takes note of everyone, lets friends in and nobody else.
const WATCH: &str = "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: watch, namespace: court}\n\
    spec:\n  selector: app == 'web'\n  types: [Ingress]\n  ingress:\n  - {action: Log, protocol: TCP}\n  \
    - {action: Allow, source: {selector: app == 'friend'}}\n  - {action: Deny}\n";

const RULES: &str = "NetworkPolicy.projectcalico.org court/watch";

fn flow_log_outlives_the_agent(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "evidence/clean", "1")?;
    let address = court(cluster, &image)?;
    let fetch = |who: &str| fetch(cluster, "court", &image, who, &address, 8080);
    welcomed("a friend is let in", || fetch("friend"))?;
    ensure!(fetch("stranger")? == "blocked\n", "a stranger is not");

    let of_web = ["--pod", "court/web", "--direction", "ingress"];
    let start = one(cluster, &[&of_web[..], &["--kind", "start"]].concat())?;
    let allowed = json!({"rule": format!("{RULES} rule 1"), "policy": RULES, "tier": "default", "index": 1});
    ensure!(start["decidedBy"] == allowed, "{start}");
    let logged = json!([{"rule": format!("{RULES} rule 0"), "policy": RULES, "tier": "default", "index": 0}]);
    ensure!(start["loggedBy"] == logged, "{start}");
    ensure!(
        start["podLabels"]["app"] == "web" && start["peerLabels"]["app"] == "friend",
        "{start}"
    );
    let denied = [
        "--kind",
        "denied",
        "--port",
        "8080",
        "--protocol",
        "tcp",
        "--rule",
        "2",
    ];
    let denied = one(
        cluster,
        &[&of_web[..], &denied, &["--policy", "court/watch", "--logged"]].concat(),
    )?;
    ensure!(
        denied["verdict"] == "deny" && denied["packets"]["toPod"] != 0,
        "{denied}"
    );

    let top = cluster.policyctl(&["top", "rules", "-o", "json"])?.ok()?;
    let top: Value = serde_json::from_str(&top.stdout)?;
    let hits = |number: u32| {
        let name = format!("{RULES} rule {number}");
        let rules = top["rules"].as_array().into_iter().flatten();
        let hits = rules.filter(|rule| rule["rule"] == name);
        hits.filter_map(|rule| rule["hits"].as_u64()).sum::<u64>()
    };
    // Rule 0 takes note of what the others decide.
    ensure!(hits(0) > 0 && hits(1) > 0 && hits(2) > 0, "{top}");

    // Everything that was written is there after the agent was killed, and the numbers go on.
    let before: BTreeSet<String> = lines(cluster, &["--since", "24h"])?.into_iter().collect();
    kill(cluster.daemon_pid("agent")?)?;
    cluster.up_again()?;
    welcomed("a friend is let in again", || fetch("friend"))?;
    // The pod that asked is gone, and with it the flow: its totals are told.
    let ended = ["--kind", "end", "--since", "10m"];
    let ended = eventually(Duration::from_secs(20), || {
        one(cluster, &[&of_web[..], &ended].concat())
    })?;
    ensure!(
        ended["end"].is_string() && ended["bytes"]["toPod"].as_u64() > Some(200),
        "{ended}"
    );
    let after = lines(cluster, &["--since", "24h"])?;
    let written: BTreeSet<&String> = after.iter().collect();
    let missing = before.iter().find(|line| !written.contains(line));
    ensure!(missing.is_none(), "a line is gone: {missing:?}");
    let numbers: BTreeSet<u64> = after
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["sequence"].as_u64())
        .collect();
    let (first, last) = (numbers.first().copied(), numbers.last().copied());
    let (first, last) = first.zip(last).context("no numbers")?;
    ensure!(first == 1, "the first line is {first}");
    ensure!(
        usize::try_from(last)? == numbers.len() && after.len() == numbers.len(),
        "{} lines and {} numbers up to {last}",
        after.len(),
        numbers.len()
    );
    ensure!(lines(cluster, &["--limit", "3"])?.len() == 3, "three lines");

    follows(cluster, || fetch("stranger").map(drop))?;
    cluster.kubectl(&["delete", "namespace", "court"])?.ok()?;
    Ok(())
}

/// What comes after, without what was before.
fn follows(cluster: &Cluster, cause: impl Fn() -> Result<()>) -> Result<()> {
    let arguments = [
        "flows",
        "-f",
        "--limit",
        "0",
        "--rule",
        "2",
        "--kind",
        "denied",
        "--namespace",
        "court",
        "-o",
        "json",
    ];
    let mut child = cluster.spawn_policyctl(&arguments)?;
    let output = child.stdout.take().context("no output")?;
    let (lines, seen) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let told = eventually(Duration::from_secs(30), || {
        cause()?;
        seen.recv_timeout(Duration::from_secs(2))
            .context("nothing is told")
    });
    child.kill().context("cannot end policyctl")?;
    child.wait()?;
    drop(seen);
    reader.join().ok().context("the reader panicked")?;
    let told: Value = serde_json::from_str(&told?)?;
    ensure!(told["decidedBy"]["index"] == 2, "{told}");
    Ok(())
}

fn verify_finds_one_wrong_entry(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "evidence/clean", "1")?;
    court(cluster, &image)?;
    let verify = || cluster.policyctl(&["verify", "--live", "--settle", "3"]);
    let equal = eventually(Duration::from_secs(20), || verify()?.ok())?;
    equal.says("the kernel says what the policy says")?;

    let mut map: HashMap<_, VerdictKey, VerdictValue> =
        Map::HashMap(pinned(cluster, "VERDICTS")?).try_into()?;
    let entries: Vec<_> = map.iter().collect::<Result<_, _>>()?;
    // One of the newest, for old ones judge nothing, about somebody, for a class that no address has is no error.
    let somebody = classes(cluster)?;
    let denials = entries
        .iter()
        .filter(|(key, value)| value.verdict == VERDICT_DENY && somebody.contains(&key.peer));
    let (key, value) = denials
        .max_by_key(|(key, _)| key.epoch)
        .context("nothing is denied")?;
    let open = VerdictValue {
        verdict: VERDICT_ALLOW,
        ..*value
    };
    map.insert(key, open, 0)?;
    let found = verify();
    map.insert(key, value, 0)?;
    let found = found?;
    ensure!(found.code == 2, "an open entry is exit code 2: {found}");
    found
        .says("allowed by")?
        .says("should be denied by")?
        .says("court/web")?;
    verify()?.ok()?;
    cluster.kubectl(&["delete", "namespace", "court"])?.ok()?;
    Ok(())
}

/// Read as Prometheus would, through the API server.
fn metrics_count_what_the_kernel_denies(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "evidence/clean", "1")?;
    let address = court(cluster, &image)?;
    let node = cluster
        .kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?
        .ok()?;
    let path = format!("/api/v1/nodes/{}/proxy/metrics", node.stdout.trim());
    let metric = |name: &str| -> Result<u64> {
        let text = cluster.kubectl(&["get", "--raw", &path])?.ok()?.stdout;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.with_context(|| format!("no {name} in {text}"))?;
        Ok(number.trim().parse()?)
    };
    let denied = "palisade_datapath_packets_denied_total{reason=\"policy\"}";
    let before = metric(denied)?;
    ensure!(
        fetch(cluster, "court", &image, "stranger", &address, 8080)? == "blocked\n",
        "a stranger is not let in"
    );
    let after = metric(denied)?;
    ensure!(after > before, "{after} packets denied after {before}");
    for map in ["FLOWS", "VERDICTS", "ENDPOINTS", "PODS", "HOSTS", "SLOTS"] {
        let entries = metric(&format!("palisade_datapath_map_entries{{map=\"{map}\"}}"))?;
        let capacity = metric(&format!(
            "palisade_datapath_map_capacity_entries{{map=\"{map}\"}}"
        ))?;
        // Flows end with their pods.
        let least = u64::from(map != "FLOWS");
        ensure!(
            least <= entries && entries < capacity,
            "{map}: {entries} of {capacity}"
        );
    }
    ensure!(
        metric("palisade_datapath_packets_allowed_total")? > 0,
        "nothing was let through"
    );
    metric("palisade_datapath_flow_events_lost_total")?;
    cluster.kubectl(&["delete", "namespace", "court"])?.ok()?;
    Ok(())
}

/// Classes that addresses have.
fn classes(cluster: &Cluster) -> Result<BTreeSet<u32>> {
    let hosts: HashMap<_, IdentityKey, AddressClass> = Map::HashMap(pinned(cluster, "HOSTS")?).try_into()?;
    let prefixes: LpmTrie<_, IdentityKey, AddressClass> =
        Map::LpmTrie(pinned(cluster, "IDENTITIES")?).try_into()?;
    let mut all: Vec<(u32, u32)> = Vec::new();
    for entry in hosts.iter() {
        let (key, class) = entry?;
        if class.class == class.parent {
            all.push((key.generation, class.class));
        }
    }
    for entry in prefixes.iter() {
        let (key, class) = entry?;
        if class.class == class.parent {
            all.push((key.data().generation, class.class));
        }
    }
    let newest = all.iter().map(|(generation, _)| *generation).max();
    let of_newest = all
        .into_iter()
        .filter(|(generation, _)| Some(*generation) == newest);
    Ok(of_newest.map(|(_, class)| class).collect())
}

fn pinned(cluster: &Cluster, map: &str) -> Result<MapData> {
    let pin = cluster.run_dir.join("bpf/maps").join(map);
    MapData::from_pin(&pin).with_context(|| format!("{}", pin.display()))
}

/// A server with a policy in force; returns its address.
fn court(cluster: &Cluster, image: &str) -> Result<String> {
    let fresh = ["delete", "namespace", "court", "--ignore-not-found"];
    cluster.kubectl(&fresh)?.ok()?;
    cluster.kubectl(&["create", "namespace", "court"])?.ok()?;
    let server = "mkdir -p /tmp/www && echo welcome > /tmp/www/index.html && httpd -f -p 8080 -h /tmp/www";
    let command = ["sh", "-c", server];
    let web = pod(
        "court",
        "web",
        "app: web",
        image,
        &command,
        "restartPolicy: Always",
    );
    cluster.apply(&web)?.ok()?;
    let object = cluster.wait_for_phase("court", "web", "Running")?;
    cluster.policyctl_with_input(&["apply", "-f", "-"], WATCH)?.ok()?;
    let address = object["status"]["podIP"]
        .as_str()
        .context("no address")?
        .to_owned();
    eventually(Duration::from_secs(10), || {
        match fetch(cluster, "court", image, "early", &address, 8080)?.as_str() {
            "blocked\n" => Ok(()),
            other => bail!("the policy is not in force, somebody gets {other:?}"),
        }
    })?;
    Ok(address)
}

/// The newest event that is wanted.
fn one(cluster: &Cluster, filter: &[&str]) -> Result<Value> {
    let lines = lines(cluster, filter)?;
    let last = lines.last().with_context(|| format!("no flow for {filter:?}"))?;
    Ok(serde_json::from_str(last)?)
}

fn lines(cluster: &Cluster, arguments: &[&str]) -> Result<Vec<String>> {
    let all = [&["flows", "-o", "json"], arguments].concat();
    let told = cluster.policyctl(&all)?.ok()?;
    Ok(told.stdout.lines().map(str::to_owned).collect())
}
