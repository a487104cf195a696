//! Arguments of the commands that ask about all flows.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Where the cluster is read from.
#[derive(Args)]
pub(crate) struct FilesArgs {
    /// Answer from these files or directories instead of the live cluster
    #[arg(short, long = "filename", value_name = "PATH")]
    pub(crate) filename: Vec<PathBuf>,
}

/// Arguments of `connectivity`.
#[derive(Args)]
pub(crate) struct ConnectivityArgs {
    #[command(flatten)]
    pub(crate) files: FilesArgs,
    /// Show each workload alone, also those that may exchange the same with everyone
    #[arg(long)]
    pub(crate) expand: bool,
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub(crate) output: ConnectivityOutput,
}

/// Output formats of `connectivity`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConnectivityOutput {
    /// For people
    Table,
    /// Also the rules, and the members of each group
    Json,
    /// For Graphviz
    Dot,
    /// A picture
    Svg,
}

/// Arguments of `diff` and `equivalent`.
#[derive(Args)]
pub(crate) struct DiffArgs {
    /// File or directory with what was before, then what is after; only one: what is after, and the live cluster is
    /// what was before. Without pods, that one is laid over the live cluster's objects
    #[arg(required = true, num_args = 1..=2, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub(crate) output: ReportOutput,
}

/// Arguments of `prove`.
#[derive(Args)]
pub(crate) struct ProveArgs {
    /// Assertions
    #[arg(value_name = "ASSERTION")]
    pub(crate) assertions: Vec<String>,
    /// File with an assertion on each line; `-` for standard input. Empty lines and those that begin with # are skipped
    #[arg(long = "assertions", value_name = "FILE")]
    pub(crate) assertion_files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) files: FilesArgs,
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub(crate) output: ReportOutput,
}

/// Arguments of `test`.
#[derive(Args)]
pub(crate) struct TestArgs {
    /// Files with cases; `-` for standard input
    #[arg(required = true, value_name = "CASES")]
    pub(crate) cases: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) files: FilesArgs,
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub(crate) output: TestOutput,
}

/// Output formats of `test`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TestOutput {
    /// For people
    Table,
    /// Also what decided each case
    Json,
    /// XML for continuous integration
    Junit,
}

/// Arguments of `replay`.
#[derive(Args)]
pub(crate) struct ReplayArgs {
    /// File with flow events, as `policyctl flows -o json` prints them; `-` for standard input. Without it, what the
    /// nodes of the live cluster have written down
    #[arg(long, value_name = "FILE")]
    pub(crate) flows: Vec<PathBuf>,
    /// Files or directories with the other policies, and with the pods; without pods, they are laid over the objects of
    /// the live cluster
    #[arg(long, required = true, value_name = "PATH")]
    pub(crate) with: Vec<PathBuf>,
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub(crate) output: ReportOutput,
}

/// Arguments of `recommend`.
#[derive(Args)]
pub(crate) struct RecommendArgs {
    /// File with flow events, as `policyctl flows -o json` prints them; `-` for standard input. Without it, what the
    /// nodes of the live cluster have written down
    #[arg(long, value_name = "FILE")]
    pub(crate) flows: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) files: FilesArgs,
    /// Write Calico's NetworkPolicy, which also knows protocols such as ICMP
    #[arg(long)]
    pub(crate) calico: bool,
    /// How to print
    #[arg(short, long, default_value = "yaml")]
    pub(crate) output: ObjectsOutput,
}

/// Output formats of objects that are written.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectsOutput {
    /// A document for each object
    Yaml,
    /// A List
    Json,
}

/// Arguments of `top`.
#[derive(Args)]
pub(crate) struct TopArgs {
    #[command(subcommand)]
    pub(crate) what: TopWhat,
}

/// What `top` counts.
#[derive(Subcommand)]
pub(crate) enum TopWhat {
    /// Policy rules: how many recorded flows each decided, and which can never decide any
    #[command(after_help = "Examples:
  policyctl top rules
  policyctl top rules --flows flows.jsonl -f manifests/

Status: `live` can decide; `shadowed` never is the first rule that matches, whatever the flow; `matches nothing`
matches no flow between ends that exist; `applies to nothing` selects no workload.")]
    Rules(TopRulesArgs),
}

/// Arguments of `top rules`.
#[derive(Args)]
pub(crate) struct TopRulesArgs {
    /// File with flow events, as `policyctl flows -o json` prints them; `-` for standard input. Without it and without
    /// files of policies, what the nodes have written down
    #[arg(long, value_name = "FILE")]
    pub(crate) flows: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) files: FilesArgs,
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub(crate) output: ReportOutput,
}

/// Output formats of reports.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportOutput {
    /// For people
    Table,
    /// JSON
    Json,
}
