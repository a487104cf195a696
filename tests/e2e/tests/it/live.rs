//! Every question that policyctl answers from files it answers from the live cluster too: here of one cluster both ways,
//! with real traffic in the flow log.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    cluster::{Cluster, HTTP_GET, pod},
    shell::{Ran, eventually},
};
use serde_json::{Value, json};
use testkit::lab;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("live_and_exported_give_the_same_answers", live_and_exported)];

const NAMESPACES: [&str; 3] = ["live-shop", "live-pci", "live-lab"];
/// Every kind that network policy depends on, and the assertions.
const KINDS: &str = "namespaces,nodes,pods,serviceaccounts,services,endpointslices.discovery.k8s.io,\
    networkpolicies.networking.k8s.io,clusternetworkpolicies.policy.networking.k8s.io,\
    tiers.projectcalico.org,networkpolicies.projectcalico.org,globalnetworkpolicies.projectcalico.org,\
    stagednetworkpolicies.projectcalico.org,stagedglobalnetworkpolicies.projectcalico.org,\
    stagedkubernetesnetworkpolicies.projectcalico.org,networksets.projectcalico.org,\
    globalnetworksets.projectcalico.org,hostendpoints.projectcalico.org,\
    felixconfigurations.projectcalico.org,policyassertions.palisade.dev";

/// Policies of every kind: of Kubernetes, of the whole cluster, in a tier of their own with network sets, by a service,
/// staged, for a host endpoint of a node that is not there; and an assertion that holds.
const POLICIES: &str = r#"
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: live-fence}
spec: {order: 50, defaultAction: Pass}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: live-office, labels: {live-place: office}}
spec: {nets: [192.0.2.0/25, "2001:db8:1::/64"]}
---
apiVersion: projectcalico.org/v3
kind: NetworkSet
metadata: {name: partners, namespace: live-shop, labels: {live-place: partner}}
spec: {nets: [198.51.100.0/28]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: live-fence.edge}
spec:
  tier: live-fence
  selector: has(live-app)
  types: [Ingress]
  ingress:
  - {action: Pass, source: {selector: has(live-app)}}
  - {action: Pass, source: {selector: live-place == 'office'}}
  - {action: Allow, protocol: TCP, source: {nets: [203.0.113.0/24], ports: [5353]}, destination: {ports: [443]}}
  - {action: Deny}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: live-shop}
spec:
  podSelector: {matchLabels: {live-app: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {live-app: web}}}]
    ports: [{port: http}]
  - from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.8/29]}}]
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: live-shop}
spec:
  selector: live-app == 'web'
  types: [Egress]
  egress:
  - {action: Log, protocol: TCP}
  - {action: Allow, protocol: TCP, destination: {services: {name: db, namespace: live-shop}}}
  - {action: Allow, protocol: TCP, destination: {selector: live-place == 'partner', ports: ["8000:8100"]}}
  - {action: Allow, protocol: ICMP, icmp: {type: 8}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: live-pci}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {live-secret: "yes"}}}
  ingress:
  - {name: web, action: Accept, from: [{pods: {namespaceSelector: {matchLabels: {live-team: lab}}, podSelector: {matchLabels: {live-app: probe}}}}]}
  - {name: rest, action: Deny, from: [{namespaces: {}}]}
---
apiVersion: projectcalico.org/v3
kind: StagedNetworkPolicy
metadata: {name: web, namespace: live-shop}
spec: {selector: live-app == 'web', types: [Egress], egress: [{action: Deny}]}
---
apiVersion: projectcalico.org/v3
kind: StagedGlobalNetworkPolicy
metadata: {name: live-fence.shut}
spec: {tier: live-fence, selector: has(live-app), types: [Egress], egress: [{action: Deny}]}
---
apiVersion: projectcalico.org/v3
kind: StagedKubernetesNetworkPolicy
metadata: {name: shut, namespace: live-lab}
spec: {podSelector: {}, policyTypes: [Ingress]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: live-far}
spec:
  selector: has(live-far)
  types: [Ingress]
  ingress: [{action: Allow, protocol: TCP, destination: {ports: [443]}, source: {notPorts: [53]}}]
---
# What is asked of that host does not leave the machine.
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: live-quiet}
spec:
  selector: projectcalico.org/namespace == 'live-lab'
  types: [Egress]
  egress:
  - {action: Deny, protocol: TCP, destination: {nets: [198.51.100.77/32], ports: [8080]}}
  - {action: Allow}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: live-far, labels: {live-far: "yes"}}
spec: {node: far-node, interfaceName: eth0, expectedIPs: [198.51.100.77]}
---
apiVersion: palisade.dev/v1alpha1
kind: PolicyAssertion
metadata: {name: live-pci}
spec: {assertion: no ns(live-shop) reaches ns(live-pci)}
"#;

/// A change: a policy anew in the place of one that there is, and one more.
const CHANGE: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: live-shop}
spec:
  podSelector: {matchLabels: {live-app: db}}
  policyTypes: [Ingress]
  ingress: [{from: [{namespaceSelector: {matchLabels: {live-team: lab}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: lab, namespace: live-lab}
spec: {podSelector: {}, policyTypes: [Ingress]}
"#;

const CASES: &str = "cases:\n\
    - {name: web asks the database, from: live-shop/web, to: live-shop/db, port: 8080, expect: allow, \
       rule: NetworkPolicy live-shop/db rule 0}\n\
    - {name: others do not, from: live-lab/probe, to: live-shop/db, port: 8080, expect: deny}\n\
    - {name: partners, from: live-shop/web, to: 198.51.100.5, port: 8080, expect: deny}\n";

fn live_and_exported(cluster: &Cluster) -> Result<()> {
    set_up(cluster)?;
    traffic(cluster)?;
    let folder = tempfile::tempdir()?;
    let both = Both::new(cluster, folder.path())?;
    same_verdicts(&both)?;
    same_connections(&both)?;
    same_proofs(&both)?;
    same_changes(&both)?;
    same_replays(&both)?;
    same_recommendations(&both)?;
    drop(both);
    tear_down(cluster)
}

/// One cluster, live and as files.
struct Both<'a> {
    cluster: &'a Cluster,
    /// What was exported.
    files: String,
    /// The same after [`CHANGE`], and what was left out of it.
    changed: String,
    /// The change alone.
    change: String,
    folder: &'a Path,
}

impl<'a> Both<'a> {
    fn new(cluster: &'a Cluster, folder: &'a Path) -> Result<Self> {
        let place = |name: &str| -> Result<String> {
            let path = folder.join(name);
            fs::create_dir_all(&path)?;
            Ok(path.to_string_lossy().into_owned())
        };
        let (files, changed, change) = (place("files")?, place("changed")?, place("change")?);
        let export = cluster.kubectl(&["get", KINDS, "-A", "-o", "yaml"])?.ok()?;
        fs::write(format!("{files}/all.yaml"), &export.stdout)?;
        fs::write(format!("{change}/change.yaml"), CHANGE)?;
        fs::write(format!("{changed}/change.yaml"), CHANGE)?;
        let export = cluster.kubectl(&["get", KINDS, "-A", "-o", "json"])?.ok()?;
        let mut all: Value = serde_json::from_str(&export.stdout)?;
        let items = all["items"].as_array_mut().context("no items")?;
        items.retain(|item| {
            item["apiVersion"] != "networking.k8s.io/v1"
                || item["metadata"]["name"] != "db"
                || item["metadata"]["namespace"] != "live-shop"
        });
        fs::write(format!("{changed}/others.json"), all.to_string())?;
        Ok(Self {
            cluster,
            files,
            changed,
            change,
            folder,
        })
    }

    /// Writes a file.
    fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Asks the cluster, then the files; the answers and exit codes are the same, and what is expected.
    fn ask(&self, code: i32, question: &[&str]) -> Result<Ran> {
        let files = [question, &["-f", &self.files]].concat();
        self.compare(&[code], question, &files)
    }

    /// The same of a question about the flow log, which goes on: what is still written down is waited for.
    fn ask_log(&self, codes: &[i32], live: &[&str], files: &[&str]) -> Result<Ran> {
        eventually(Duration::from_secs(15), || {
            let flows = self
                .cluster
                .policyctl(&["flows", "--since", "24h", "-o", "json"])?;
            let flows = self.file("flows.jsonl", &flows.ok()?.stdout)?;
            self.compare(codes, live, &[files, &["--flows", &flows]].concat())
        })
    }

    fn compare(&self, codes: &[i32], live: &[&str], files: &[&str]) -> Result<Ran> {
        let live = self.cluster.policyctl(live)?;
        let files = self.cluster.policyctl(files)?;
        ensure!(codes.contains(&live.code), "expected exit code {codes:?}: {live}");
        ensure!(
            live.code == files.code && live.stdout == files.stdout,
            "the cluster and its files differ: {live}\nand {files}"
        );
        Ok(live)
    }
}

/// Each end with each other one, by what decides.
fn same_verdicts(both: &Both<'_>) -> Result<()> {
    let ends = [
        json!({"pod": "live-shop/web"}),
        json!({"pod": "live-shop/db"}),
        json!({"pod": "live-pci/vault"}),
        json!({"pod": "live-lab/probe"}),
        json!({"host": "far-node"}),
        json!({"host": "live-far"}),
        json!({"ip": "192.0.2.9"}),
        json!({"ip": "192.0.2.130"}),
        json!({"ip": "198.51.100.5"}),
        json!({"ip": "203.0.113.7"}),
    ];
    let mut flows = String::new();
    for (from, to) in ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to))) {
        for (protocol, port) in [("TCP", 8080), ("TCP", 443), ("UDP", 53), ("ICMP", 0)] {
            let flow = json!({"src": from, "dst": to, "protocol": protocol, "port": port, "srcPort": 5353});
            writeln!(flows, "{flow}")?;
        }
    }
    let all = both.file("ask.jsonl", &flows)?;
    let decided = both.ask(0, &["decide", "--flows", &all])?;
    for word in [
        "live-fence.edge",
        "live-shop/db",
        "live-shop/web",
        "live-pci",
        "live-far",
    ] {
        ensure!(decided.stdout.contains(word), "{word} decides nothing: {decided}");
    }
    let unknown = json!({"src": {"pod": "live-shop/nobody"}, "dst": {"ip": "192.0.2.9"}, "port": 1});
    let unknown = both.file("unknown.jsonl", &unknown.to_string())?;
    both.ask(1, &["decide", "--flows", &unknown])?;
    for (from, to, port, code) in [
        ("live-shop/web", "live-shop/db", "8080", 0),
        ("live-lab/probe", "live-shop/db", "8080", 2),
        ("live-lab/probe", "live-pci/vault", "8080", 0),
        ("live-shop/web", "198.51.100.5", "8080/TCP", 0),
        ("live-lab/probe", "host/live-far", "443", 0),
        ("live-lab/probe", "host/far-node", "80", 2),
        ("live-shop/nobody", "live-shop/db", "80", 1),
    ] {
        let end = ["--from", from, "--to", to, "--port", port];
        both.ask(code, &[&["explain"], &end[..]].concat())?;
    }
    let from_53 = [
        "--from",
        "live-lab/probe",
        "--to",
        "host/live-far",
        "--port",
        "443",
        "--source-port",
        "53",
    ];
    both.ask(2, &[&["explain", "-o", "json"], &from_53[..]].concat())?;
    Ok(())
}

fn same_connections(both: &Both<'_>) -> Result<()> {
    let shown = both.ask(0, &["connectivity"])?;
    ensure!(shown.stdout.contains("live-shop/web"), "{shown}");
    ensure!(
        !shown.stdout.contains("live-lab/done"),
        "a pod that ended: {shown}"
    );
    both.ask(0, &["connectivity", "-o", "json", "--expand"])?;
    both.ask(0, &["connectivity", "-o", "svg"])?;
    let top = ["top", "rules", "-o", "json"];
    let top = both.ask_log(&[0], &top, &[&top[..], &["-f", &both.files]].concat())?;
    let top: Value = serde_json::from_str(&top.stdout)?;
    let hits = |rule: &str| {
        let rules = top["rules"].as_array().into_iter().flatten();
        let rules = rules.filter(|found| found["rule"] == rule);
        rules.filter_map(|found| found["hits"].as_u64()).sum::<u64>()
    };
    for rule in [
        "NetworkPolicy live-shop/db rule 0",
        "NetworkPolicy.projectcalico.org live-shop/web rule 1",
    ] {
        ensure!(hits(rule) > 0, "{rule} decided nothing: {top}");
    }
    Ok(())
}

fn same_proofs(both: &Both<'_>) -> Result<()> {
    let stored = both.ask(0, &["prove"])?;
    stored.says("live-pci: no ns(live-shop)")?;
    both.ask(
        2,
        &[
            "prove",
            "no ns(live-lab) reaches ns(live-pci)",
            "ns(live-shop) reaches internet on 443",
        ],
    )?;
    both.ask(1, &["prove", "no ns(live-lab) reaches"])?;
    let cases = both.file("cases.yaml", CASES)?;
    both.ask(1, &["test", &cases])?.says("2 of 3 cases pass")?;
    both.ask(1, &["test", &cases, "-o", "junit"])?;
    Ok(())
}

/// With one folder, the live cluster is what was before.
fn same_changes(both: &Both<'_>) -> Result<()> {
    let Both {
        files,
        changed,
        change,
        ..
    } = both;
    let same = both.cluster.policyctl(&["equivalent", files])?.ok()?;
    same.says("equivalent")?;
    both.compare(&[2], &["equivalent", changed], &["equivalent", files, changed])?;
    for form in ["table", "json"] {
        let whole = both.compare(
            &[0],
            &["diff", changed, "-o", form],
            &["diff", files, changed, "-o", form],
        )?;
        let laid_over = both.compare(
            &[0],
            &["diff", change, "-o", form],
            &["diff", files, changed, "-o", form],
        )?;
        ensure!(whole.stdout == laid_over.stdout, "{whole}\nand {laid_over}");
        ensure!(whole.stdout.contains("live-shop/db"), "{whole}");
    }
    let none = both.cluster.policyctl(&["diff", files])?.ok()?;
    none.says("nothing opens and nothing closes")?;
    Ok(())
}

fn same_replays(both: &Both<'_>) -> Result<()> {
    let Both {
        files,
        changed,
        change,
        ..
    } = both;
    // Ours were judged by the policies that there are; others may have had other ones.
    let same = ["replay", "--with", files, "-o", "json"];
    let told = both.ask_log(&[0, 2], &same, &same)?;
    let told: Value = serde_json::from_str(&told.stdout)?;
    let of_ours = |change: &&Value| change["pod"].as_str().is_some_and(|pod| pod.starts_with("live-"));
    let changes = told["changes"].as_array().context("no changes")?;
    ensure!(!changes.iter().any(|change| of_ours(&change)), "{told}");
    for form in ["table", "json"] {
        let whole = ["replay", "--with", changed, "-o", form];
        let laid_over = ["replay", "--with", change, "-o", form];
        let told = both.ask_log(&[2], &whole, &whole)?;
        ensure!(told.stdout.contains("live-shop/db"), "{told}");
        both.ask_log(&[2], &laid_over, &whole)?;
    }
    Ok(())
}

/// What is recommended lets through what was seen, and nothing else to the same ends.
fn same_recommendations(both: &Both<'_>) -> Result<()> {
    for dialect in [&[][..], &["--calico"]] {
        let live = [&["recommend"], dialect].concat();
        let files = [&live[..], &["-f", &both.files]].concat();
        let recommended = both.ask_log(&[0], &live, &files)?;
        let folder = both.folder.join(format!("recommended{}", dialect.len()));
        fs::create_dir(&folder)?;
        fs::write(folder.join("policies.yaml"), &recommended.stdout)?;
        let mut all: Value = serde_json::from_str(
            &both
                .cluster
                .kubectl(&["get", "pods,namespaces", "-A", "-o", "json"])?
                .ok()?
                .stdout,
        )?;
        all["kind"] = json!("List");
        fs::write(folder.join("pods.json"), all.to_string())?;
        let folder = folder.to_string_lossy().into_owned();
        let mut prove = vec!["prove", "-f", &folder];
        prove.extend([
            "pod(live-shop/web) reaches pod(live-shop/db) on 8080",
            "only pod(live-shop/web) reaches pod(live-shop/db)",
            "pod(live-lab/probe) reaches pod(live-pci/vault) on 8080",
            "only pod(live-lab/probe) reaches pod(live-pci/vault)",
        ]);
        both.cluster.policyctl(&prove)?.ok()?;
    }
    Ok(())
}

fn set_up(cluster: &Cluster) -> Result<()> {
    let image = cluster.push(&lab::clean()?, "live/clean", "1")?;
    let [shop, pci, lab] = NAMESPACES;
    let mut yaml = String::new();
    for (namespace, labels) in [
        (shop, "live-team: shop"),
        (pci, "live-team: pci, live-secret: \"yes\""),
        (lab, "live-team: lab"),
    ] {
        write!(
            yaml,
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{{labels}}}}}\n---\n"
        )?;
    }
    write!(
        yaml,
        "apiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: {shop}}}\n\
         spec: {{selector: {{live-app: db}}, ports: [{{port: 80, targetPort: http}}]}}\n"
    )?;
    cluster.apply(&yaml)?.ok()?;
    let server = "mkdir -p /tmp/www && echo welcome > /tmp/www/index.html && httpd -f -p 8080 -h /tmp/www";
    let of = |namespace: &str, name: &str, command: &str, restart: &str| {
        let label = format!("live-app: {name}");
        let mut yaml = pod(namespace, name, &label, &image, &["sh", "-c", command], restart);
        yaml.push_str("    ports: [{name: http, containerPort: 8080}]\n---\n");
        yaml
    };
    let always = "restartPolicy: Always";
    let pods = [
        of(shop, "web", "sleep 1000", always),
        of(shop, "db", server, always),
        of(pci, "vault", server, always),
        of(lab, "probe", "sleep 1000", always),
        of(lab, "done", "true", "restartPolicy: Never"),
    ];
    cluster.apply(&pods.concat())?.ok()?;
    for (namespace, name) in [(shop, "web"), (shop, "db"), (pci, "vault"), (lab, "probe")] {
        cluster.wait_for_phase(namespace, name, "Running")?;
    }
    cluster.wait_for_phase(lab, "done", "Succeeded")?;
    cluster.apply(POLICIES)?.ok()?;
    // From here on everything is judged by them.
    cluster.policyctl(&["verify", "--live", "--settle", "20"])?.ok()?;
    Ok(())
}

/// Real flows, allowed and denied, all of them judged by the policies that are there.
fn traffic(cluster: &Cluster) -> Result<()> {
    let [shop, pci, lab] = NAMESPACES;
    let get = |namespace: &str, from: &str, address: &str| -> Result<String> {
        let command = [
            "exec", "-n", namespace, from, "--", "sh", "-c", HTTP_GET, address, "8080",
        ];
        let answer = cluster.kubectl(&command)?.ok()?.stdout;
        Ok(answer.lines().last().unwrap_or_default().to_owned())
    };
    let address = |namespace: &str, name: &str| -> Result<String> {
        let pod = cluster.object(namespace, "pods", name)?;
        Ok(pod["status"]["podIP"].as_str().context("no address")?.to_owned())
    };
    let (db, vault) = (address(shop, "db")?, address(pci, "vault")?);
    ensure!(get(lab, "probe", &db)? == "blocked", "probe reaches db");
    for (namespace, from, address) in [(shop, "web", &db), (lab, "probe", &vault)] {
        eventually(Duration::from_secs(30), || {
            let answer = get(namespace, from, address)?;
            ensure!(answer == "welcome", "{from} asks {address} and gets {answer:?}");
            Ok(())
        })?;
    }
    ensure!(get(shop, "web", &vault)? == "blocked", "web reaches the vault");
    ensure!(
        get(lab, "probe", "198.51.100.77")? == "blocked",
        "what is denied is answered"
    );
    // The other end of that is the host endpoint, with its labels.
    let told = eventually(Duration::from_secs(10), || {
        let told = cluster
            .policyctl(&["flows", "--peer", "host/live-far", "-o", "json"])?
            .ok()?;
        let line = told
            .stdout
            .lines()
            .last()
            .context("no flow to the host endpoint")?;
        Ok(serde_json::from_str::<Value>(line)?)
    })?;
    ensure!(told["pod"]["name"] == "probe", "{told}");
    ensure!(
        told["peer"] == json!({"hostEndpoint": "live-far", "node": "far-node"}),
        "{told}"
    );
    ensure!(told["peerLabels"] == json!({"live-far": "yes"}), "{told}");
    Ok(())
}

fn tear_down(cluster: &Cluster) -> Result<()> {
    for objects in [
        &["policyassertion", "live-pci"][..],
        &["hostendpoint", "live-far"],
        &["globalnetworkpolicy", "live-far", "live-quiet", "live-fence.edge"],
        &["stagedglobalnetworkpolicy", "live-fence.shut"],
        &["clusternetworkpolicy", "live-pci"],
        &["globalnetworkset", "live-office"],
        &["tier", "live-fence"],
        &[&["namespace"], &NAMESPACES[..]].concat(),
    ] {
        cluster.kubectl(&[&["delete"], objects].concat())?.ok()?;
    }
    Ok(())
}
