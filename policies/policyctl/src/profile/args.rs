//! Arguments of `policyctl profile`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Arguments of `profile`.
#[derive(Args)]
pub(crate) struct ProfileArgs {
    #[command(subcommand)]
    pub(crate) what: ProfileCommand,
}

/// What is asked of sandbox profiles.
#[derive(Subcommand)]
pub(crate) enum ProfileCommand {
    /// Say what a second profile takes away from a first one, and what it adds
    #[command(after_help = "Examples:
  policyctl profile diff baseline strict
  policyctl profile diff before.yaml after.yaml -o json

Exit codes: 0 they mean the same, 1 error, 2 they do not")]
    Diff(DiffArgs),
    /// Say which rule decides about a system call with these arguments
    #[command(after_help = "Examples:
  policyctl profile explain mprotect 0 4096 4 -p strict
  policyctl profile explain openat -p learned.yaml -o yaml

Exit codes: 0 allowed, 1 error, 2 refused")]
    Explain(ExplainArgs),
    /// Run unit tests of profiles
    #[command(after_help = "Examples:
  policyctl profile test cases.yaml
  policyctl profile test cases.yaml -p learned.yaml -o json

cases.yaml is a list of cases, each about one of these:
  - {name: reads,    syscall: read, args: [0, 0, 16], expect: allow}
  - {name: no code,  syscall: mprotect, args: [0, 4096, 4], profile: strict, expect: EPERM}
  - {name: own data, write: /data/x, expect: allow}        also read and execute, of a file or something new
  - {name: database, connect: 5432, expect: allow}         also bind
expect is allow, deny, log, trap, kill, or an error such as EPERM or 38.
Paths are judged by the preset and by the profile's lists, as in a container without volumes (else --volume) whose image has
executables only in bin, sbin, lib and libexec (else --executable). Owners and modes of files are not judged.

Exit codes: 0 all pass, 1 error or a case fails")]
    Test(TestArgs),
}

/// Arguments of `profile diff`.
#[derive(Args)]
pub(crate) struct DiffArgs {
    /// What was before: a preset, or a file with a SandboxProfile or a seccomp profile
    pub(crate) before: String,
    /// What is after
    pub(crate) after: String,
    #[command(flatten)]
    pub(crate) around: AroundArgs,
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub(crate) output: ProfileOutput,
}

/// Arguments of `profile explain`.
#[derive(Args)]
pub(crate) struct ExplainArgs {
    /// Name of the call, such as openat, or its number
    pub(crate) call: String,
    /// Its arguments, decimal or as 0x...; those that are left out are 0
    #[arg(num_args = 0..=6, value_name = "ARGUMENT", allow_negative_numbers = true)]
    pub(crate) arguments: Vec<String>,
    /// A preset, or a file with a SandboxProfile or a seccomp profile
    #[arg(short, long, default_value = "baseline")]
    pub(crate) profile: String,
    #[command(flatten)]
    pub(crate) around: AroundArgs,
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub(crate) output: ProfileOutput,
}

/// Arguments of `profile test`.
#[derive(Args)]
pub(crate) struct TestArgs {
    /// File with the cases
    pub(crate) cases: PathBuf,
    /// The profile of cases that name none: a preset, or a file with a SandboxProfile or a seccomp profile
    #[arg(short, long, default_value = "baseline")]
    pub(crate) profile: String,
    /// Path where a volume is mounted that can be written to
    #[arg(long = "volume", value_name = "PATH")]
    pub(crate) volumes: Vec<PathBuf>,
    /// Executable file of the image outside of bin, sbin, lib and libexec
    #[arg(long = "executable", value_name = "PATH")]
    pub(crate) executables: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) around: AroundArgs,
    /// How to print
    #[arg(short, long, default_value = "table")]
    pub(crate) output: ProfileOutput,
}

/// What profiles depend on beside themselves.
#[derive(Args)]
pub(crate) struct AroundArgs {
    /// Capability that the container would hold, such as CAP_CHOWN; without any, what it has by default. What a profile takes
    /// away of them it takes
    #[arg(long = "capability", value_name = "NAME")]
    pub(crate) capabilities: Vec<String>,
    /// TCP port that the container declares, which strict lets it bind
    #[arg(long = "port", value_name = "PORT")]
    pub(crate) ports: Vec<u16>,
    /// TCP port that egress policy allows; without any, all
    #[arg(long = "egress", value_name = "PORT")]
    pub(crate) egress: Vec<u16>,
    /// Version of the node's kernel, for rules that ask for one; without it, this machine's
    #[arg(long, value_name = "MAJOR.MINOR")]
    pub(crate) kernel: Option<String>,
}

/// Output formats.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProfileOutput {
    /// For people
    Table,
    /// For programs
    Json,
    /// For both
    Yaml,
}
