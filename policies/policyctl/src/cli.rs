//! The command line: one struct per command, with examples.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::check::args::{
    ConnectivityArgs, DiffArgs, ProveArgs, RecommendArgs, ReplayArgs, TestArgs, TopArgs,
};
use crate::flow_filter::FlowFilter;
use crate::learn::LearnArgs;
use crate::profile::args::ProfileArgs;

/// Default of `--state-dir`.
pub(crate) const STATE_DIR: &str = "/var/lib/palisade";
/// Default of `--run-dir`.
pub(crate) const RUN_DIR: &str = "/run/palisade";

/// The whole command line.
#[derive(Parser)]
#[command(
    name = "policyctl",
    version,
    about = "Run, use and explain a Palisade cluster"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the cluster is.
#[derive(Args)]
pub(crate) struct Connection {
    /// Kubeconfig file; without it, STATE_DIR/admin.kubeconfig
    #[arg(long, global = true, env = "KUBECONFIG", value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// Everything policyctl does.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Start a one-node cluster on this machine
    #[command(after_help = "Examples:
  policyctl up
  policyctl up --state-dir /srv/lab --run-dir /run/lab --listen 127.0.0.1:7443")]
    Up(UpArgs),
    /// Stop the cluster on this machine and leave nothing behind
    #[command(after_help = "Examples:
  policyctl down
  policyctl down --purge     also remove state, keys and images")]
    Down(DownArgs),
    /// Create or update objects; all are validated before any is sent
    #[command(after_help = "Examples:
  policyctl apply -f pod.yaml
  policyctl apply -f manifests/ -f extra.yaml
  cat *.yaml | policyctl apply -f -
  policyctl apply -f pod.yaml --dry-run")]
    Apply(ApplyArgs),
    /// Show objects
    #[command(after_help = "Examples:
  policyctl get pods -A
  policyctl get netpol web -n prod -o yaml
  policyctl get imagescans -o json")]
    Get(GetArgs),
    /// Delete objects by name or by file, and wait until they are gone
    #[command(after_help = "Examples:
  policyctl delete pod web
  policyctl delete -f manifests/")]
    Delete(DeleteArgs),
    /// Show the output of a container
    #[command(after_help = "Examples:
  policyctl logs web
  policyctl logs web -c sidecar -f --tail 20")]
    Logs(LogsArgs),
    /// Show what the kernel decided about flows, and which rule decided
    #[command(after_help = "Examples:
  policyctl flows -f
  policyctl flows --since 10m --verdict deny --pod shop/web
  policyctl flows --host uplink --peer 192.0.2.0/24
  policyctl flows --since 2026-01-02T03:04:05Z --policy shop/web --kind start -o json
  policyctl flows --logged -f")]
    Flows(FlowsArgs),
    /// Scan an image by hand, with the same judgement as admission
    #[command(after_help = "Examples:
  policyctl scan 127.0.0.1:5000/lab/web:1
  policyctl scan oci-layout.local/web:1 --layout-root ./layouts -o sarif > web.sarif

Exit codes: 0 pass, 1 error, 2 refused or inconclusive")]
    Scan(ScanArgs),
    /// Say which policy rule decides between two ends, live or from files
    #[command(after_help = "Examples:
  policyctl explain --from shop/web --to shop/db --port 5432
  policyctl explain -f manifests/ --from shop/web --to 192.0.2.7 --port 443
  policyctl explain --from 10.0.0.9 --to shop/web --port 53/UDP
  policyctl explain --from 10.0.0.9 --to host/node-1 --port 22          the node, by its host endpoint
  policyctl explain --from shop/web --to shop/db --port 5432 --source-port 53
  policyctl explain --from pod/host/web --to shop/db --port 5432         a pod of a namespace named host

Exit codes: 0 allowed, 1 error, 2 denied")]
    Explain(ExplainArgs),
    /// Judge many flows: one line of JSON in, one line of JSON out, live or from files
    #[command(after_help = "Examples:
  policyctl decide -f manifests/ --flows flows.jsonl -o jsonl
  echo '{\"id\":1,\"src\":{\"pod\":\"shop/web\"},\"dst\":{\"ip\":\"192.0.2.7\"},\"protocol\":\"TCP\",\"port\":443}' |
    policyctl decide -f manifests/ --flows -

A flow: {\"id\", \"src\", \"dst\", \"protocol\", \"port\", \"srcPort\", \"icmpType\", \"icmpCode\"}; src and dst are
{\"pod\": \"NAMESPACE/NAME\"}, {\"ip\": \"ADDRESS\"} or {\"host\": \"NAME\"}, of a node or host endpoint; protocol is TCP, UDP, SCTP, ICMP, ICMPv6 or a number.

Exit codes: 0 all judged, 1 error, or a flow that could not be judged (its line says why, and denies)")]
    Decide(DecideArgs),
    /// Show everything that may pass between workloads and the outside, exactly
    #[command(after_help = "Examples:
  policyctl connectivity
  policyctl connectivity -f manifests/ -o json
  policyctl connectivity -f manifests/ -o svg > who-reaches-whom.svg
  policyctl connectivity -f manifests/ -o dot | dot -Tpng > graph.png")]
    Connectivity(ConnectivityArgs),
    /// Say what a change of policies or workloads opens and closes
    #[command(after_help = "Examples:
  policyctl diff before/ after/
  policyctl diff after/              the live cluster is what was before
  policyctl diff policy.yaml         the same; without pods, laid over the live cluster's objects
  policyctl diff before/ after/ -o json")]
    Diff(DiffArgs),
    /// Say whether two sets of policies and workloads allow the same
    #[command(after_help = "Examples:
  policyctl equivalent before/ after/

Exit codes: 0 they do, 1 error, 2 they do not (with a packet that shows it)")]
    Equivalent(DiffArgs),
    /// Prove that an assertion about all flows holds, or refute it with a packet
    #[command(after_help = "Examples:
  policyctl prove 'no pod in ns(pci) reaches internet'
  policyctl prove -f manifests/ 'only ns(shop)/labels(app=web) reaches pod(shop/db) on 5432'
  policyctl prove -f manifests/ --assertions rules.txt
  policyctl prove -f manifests/      every PolicyAssertion object among the manifests

docs/checker.md describes the language.
Exit codes: 0 all hold, 1 error, 2 one does not")]
    Prove(ProveArgs),
    /// Watch a container at work, and write the sandbox profile and network policy that allow what it did
    #[command(after_help = "Examples:
  policyctl learn web --for 10m > web.yaml
  policyctl learn web -n shop -c main --for 90s -o json

What was not seen is said on standard error; docs/sandbox.md says what is watched, and how.")]
    Learn(LearnArgs),
    /// Compare, explain and test sandbox profiles, from files
    Profile(ProfileArgs),
    /// Run unit tests of policies
    #[command(after_help = "Examples:
  policyctl test cases.yaml -f manifests/
  policyctl test cases.yaml -f manifests/ -o junit > results.xml

A case: {from: shop/web, to: shop/db, port: 5432, expect: allow}; also name, protocol, sourcePort, rule.
Exit codes: 0 all pass, 1 one fails, or error")]
    Test(TestArgs),
    /// Judge recorded flows against other policies
    #[command(after_help = "Examples:
  policyctl flows -o json > flows.jsonl
  policyctl replay --flows flows.jsonl --with after/
  policyctl replay --with policy.yaml      the live cluster's flow log, the policy laid over its objects

Exit codes: 0 every flow keeps its verdict, 1 error, or there was no flow to judge, 2 some do not")]
    Replay(ReplayArgs),
    /// Write the policies that allow what was recorded and nothing else
    #[command(after_help = "Examples:
  policyctl recommend > policies.yaml
  policyctl flows -o json > flows.jsonl
  policyctl recommend --flows flows.jsonl > policies.yaml
  policyctl recommend --flows flows.jsonl -f manifests/ --calico")]
    Recommend(RecommendArgs),
    /// Show what is used most
    #[command(after_help = "Example:
  policyctl top rules --flows flows.jsonl -f manifests/")]
    Top(TopArgs),
    /// Prove that the kernel's tables of every endpoint say what the policy says
    #[command(after_help = "Example:
  policyctl verify --live

The tables are read back from each node's kernel and compared with what this command compiles from the API's objects:
the same verdict, by the same rule, for every packet at every endpoint.

Exit codes: 0 equal, 1 error, 2 not equal")]
    Verify(VerifyArgs),
    /// Show the version of this command and of the server
    Version(VersionArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Example:
  policyctl completions bash > /etc/bash_completion.d/policyctl")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Where a cluster on this machine keeps its things.
#[derive(Args, Clone)]
pub(crate) struct Place {
    /// Where state, keys and images are kept
    #[arg(long, default_value = STATE_DIR, value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// Where sockets and process ids are kept
    #[arg(long, default_value = RUN_DIR, value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
}

/// Arguments of `up`.
#[derive(Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Address of the API server
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "IP:PORT")]
    pub(crate) listen: std::net::SocketAddr,
    /// Address of the node's own API
    #[arg(long, default_value = "127.0.0.1:10250", value_name = "IP:PORT")]
    pub(crate) node_listen: std::net::SocketAddr,
    /// Name of the node; without it, the host name
    #[arg(long, value_name = "NAME", value_parser = node_name)]
    pub(crate) node_name: Option<String>,
    /// Addresses of the node's pods: one IPv4 CIDR and, for dual-stack pods, one IPv6 CIDR. Without it,
    /// 10.244.0.0/24 and, where the host can, fd00:10:244::/64
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    pub(crate) node_cidr: Vec<ipnet::IpNet>,
    /// Cluster addresses of services; it must hold no address of pods, nodes or anything that pods talk to
    #[arg(long, value_name = "CIDR", default_value = "10.96.0.0/16")]
    pub(crate) service_cidr: ipnet::Ipv4Net,
    /// Resolver that pods' questions are passed on to, up to three; without it, those of /etc/resolv.conf
    #[arg(long, value_delimiter = ',', value_name = "IP:PORT")]
    pub(crate) dns_upstream: Vec<std::net::SocketAddr>,
    /// Directory with mirrors and authorities of registries, HOST/hosts.toml
    #[arg(long, value_name = "DIR")]
    pub(crate) registry_config: Option<PathBuf>,
    /// Trivy binary; without it, the one on the PATH
    #[arg(long, value_name = "FILE")]
    pub(crate) trivy: Option<PathBuf>,
    /// Directory with trivy.db and metadata.json; without it, Trivy's own cache
    #[arg(long, value_name = "DIR")]
    pub(crate) trivy_db: Option<PathBuf>,
    /// Without any database, use the small built-in one, which knows laboratory CVEs only
    #[arg(long)]
    pub(crate) lab_db_if_none: bool,
    /// Share of its disk's space that must be free; with less, the node is under pressure and lets pods go
    #[arg(long, default_value_t = 10, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..100))]
    pub(crate) disk_available_percent: u8,
    /// How long to wait until the node is Ready
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub(crate) timeout: u64,
}

/// Arguments of `down`.
#[derive(Args)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Also remove state, keys and images
    #[arg(long)]
    pub(crate) purge: bool,
}

/// Arguments of `apply`.
#[derive(Args)]
pub(crate) struct ApplyArgs {
    /// File, directory, or `-` for standard input; may be repeated
    #[arg(short, long = "filename", required = true, value_name = "PATH")]
    pub(crate) filename: Vec<PathBuf>,
    /// Namespace of objects that do not name one
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Let the server judge everything and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How to report
    #[arg(short, long)]
    pub(crate) output: Option<ObjectOutput>,
}

/// Arguments of `get`.
#[derive(Args)]
pub(crate) struct GetArgs {
    /// Resource, such as pods, netpol or imagescans
    pub(crate) resource: String,
    /// Name; without it, all
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) scope: ScopeArgs,
    /// Label selector
    #[arg(short = 'l', long)]
    pub(crate) selector: Option<String>,
    /// How to print
    #[arg(short, long)]
    pub(crate) output: Option<GetOutput>,
}

/// Arguments of `delete`.
#[derive(Args)]
pub(crate) struct DeleteArgs {
    /// Resource, such as pods
    #[arg(required_unless_present = "filename")]
    pub(crate) resource: Option<String>,
    /// Names
    pub(crate) names: Vec<String>,
    /// File, directory, or `-`: delete the objects in it
    #[arg(short, long = "filename", conflicts_with = "resource", value_name = "PATH")]
    pub(crate) filename: Vec<PathBuf>,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Seconds that containers get to end by themselves; 0 ends them at once
    #[arg(long, value_name = "SECONDS")]
    pub(crate) grace_period: Option<u32>,
    /// Do not wait until the objects are gone
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long to wait
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub(crate) timeout: u64,
}

/// Which namespaces.
#[derive(Args)]
pub(crate) struct ScopeArgs {
    /// Namespace
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
}

/// Arguments of `logs`.
#[derive(Args)]
pub(crate) struct LogsArgs {
    /// Pod
    pub(crate) pod: String,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Container; needed where the pod has several
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Keep following
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The container's instance before this one
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<u64>,
    /// Show the time of each line
    #[arg(long)]
    pub(crate) timestamps: bool,
}

/// Arguments of `flows`.
#[derive(Args)]
pub(crate) struct FlowsArgs {
    /// Keep following
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// From then on: a time, or how long ago, such as 10m or 2h30m
    #[arg(long, value_name = "TIME|DURATION", value_parser = crate::flow_filter::since)]
    pub(crate) since: Option<jiff::Timestamp>,
    /// Only so many, the newest, before following; without it and --since, 1000
    #[arg(long, value_name = "LINES")]
    pub(crate) limit: Option<usize>,
    #[command(flatten)]
    pub(crate) filter: FlowFilter,
    /// Node; without it, every node
    #[arg(long)]
    pub(crate) node: Option<String>,
    /// How to print
    #[arg(short, long)]
    pub(crate) output: Option<FlowOutput>,
}

/// Arguments of `scan`.
#[derive(Args)]
pub(crate) struct ScanArgs {
    /// Image reference
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Judge by the ImagePolicy objects in this file or directory; without it, by the defaults
    #[arg(short = 'f', long = "policy", value_name = "PATH")]
    pub(crate) policy: Vec<PathBuf>,
    /// Namespace whose policies judge
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Trivy binary; without it, the cluster's or the one on the PATH
    #[arg(long, value_name = "FILE")]
    pub(crate) trivy: Option<PathBuf>,
    /// SHA-256 that the Trivy binary must have
    #[arg(long, value_name = "HEX")]
    pub(crate) trivy_sha256: Option<String>,
    /// Directory with trivy.db and metadata.json; without it, the cluster's or Trivy's own cache
    #[arg(long, value_name = "DIR")]
    pub(crate) trivy_db: Option<PathBuf>,
    /// Directory of OCI layouts behind oci-layout.local/
    #[arg(long, value_name = "DIR")]
    pub(crate) layout_root: Option<PathBuf>,
    /// Directory with mirrors and authorities of registries, HOST/hosts.toml
    #[arg(long, value_name = "DIR")]
    pub(crate) registry_config: Option<PathBuf>,
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub(crate) output: ScanOutput,
}

/// Arguments of `decide`.
#[derive(Args)]
pub(crate) struct DecideArgs {
    /// Files or folders with all objects, or `-`; without any, the live cluster is asked
    #[arg(short, long = "filename", value_name = "PATH")]
    pub(crate) filename: Vec<PathBuf>,
    /// File with one flow a line, or `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) flows: PathBuf,
    /// How to print
    #[arg(short, long, default_value = "jsonl")]
    pub(crate) output: DecideOutput,
}

/// Forms of verdicts.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum DecideOutput {
    /// One JSON object a line.
    Jsonl,
}

/// Arguments of `explain`.
#[derive(Args)]
pub(crate) struct ExplainArgs {
    /// Where the flow starts: namespace/pod, host/ and the name of a node or host endpoint, or an address
    #[arg(long, value_name = "NS/POD|host/NAME|IP")]
    pub(crate) from: String,
    /// Where the flow goes: namespace/pod, host/ and the name of a node or host endpoint, or an address
    #[arg(long, value_name = "NS/POD|host/NAME|IP")]
    pub(crate) to: String,
    /// Port and protocol, such as 80, 53/UDP
    #[arg(long, value_name = "PORT[/PROTOCOL]")]
    pub(crate) port: String,
    /// Source port; without it, one that no rule means
    #[arg(long, value_name = "PORT")]
    pub(crate) source_port: Option<u16>,
    /// Explain from these files or directories instead of the live cluster
    #[arg(short, long = "filename", value_name = "PATH")]
    pub(crate) filename: Vec<PathBuf>,
    /// How to print
    #[arg(short, long)]
    pub(crate) output: Option<ObjectOutput>,
}

/// Arguments of `verify`.
#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// Ask the nodes of the live cluster
    #[arg(long, required = true)]
    pub(crate) live: bool,
    /// Node; without it, every node
    #[arg(long)]
    pub(crate) node: Option<String>,
    /// Most differences to show of each node
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub(crate) limit: usize,
    /// How long a difference may last: a change of policy takes a moment to reach the kernel
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    pub(crate) settle: u64,
    /// How to print
    #[arg(short, long)]
    pub(crate) output: Option<ObjectOutput>,
}

/// Arguments of `version`.
#[derive(Args)]
pub(crate) struct VersionArgs {
    /// Only this command's own version
    #[arg(long)]
    pub(crate) client: bool,
    /// How to print
    #[arg(short, long)]
    pub(crate) output: Option<ObjectOutput>,
}

/// Output formats of objects.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectOutput {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Output formats of `get`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GetOutput {
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// More columns
    Wide,
    /// resource/name
    Name,
}

/// Output formats of `flows`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FlowOutput {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

/// Output formats of `scan`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScanOutput {
    /// For people
    Table,
    /// The ImageScan object
    Json,
    /// SARIF 2.1.0
    Sarif,
}

/// Accepts what can be a node's name, a label and a part of a host name.
pub(crate) fn node_name(text: &str) -> Result<String, String> {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let part = |part: &str| {
        part.bytes().all(|c| plain(c) || c == b'-')
            && part.bytes().next().is_some_and(plain)
            && part.bytes().last().is_some_and(plain)
    };
    match text.len() <= 63 && text.split('.').all(part) {
        true => Ok(text.to_owned()),
        false => Err(
            "a node name has at most 63 lower case letters, digits, '-' and '.', \
                      with a letter or digit at both ends of each part"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_those_that_the_server_accepts() {
        for good in ["a", "node-1", "n1.example"] {
            assert_eq!(node_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "Bad Name", "UPPER", "under_score", "-a", "a.", "a..b"] {
            assert!(node_name(bad).is_err(), "{bad:?}");
        }
        assert!(node_name(&"a".repeat(64)).is_err());
    }
}
