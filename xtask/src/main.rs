//! `cargo xtask`: the commands of a checkout. Nothing here is part of the product; it prepares a machine,
//! builds, and calls the product's own binaries.
//!
//! Entry points for people: `cargo xtask up` (set up and start a cluster) and `cargo xtask test` (set up
//! and run every test). CI calls the second and nothing less.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command for developers talks on its terminal"
)]

mod bench;
mod deps;
mod docs;
mod ebpf;
mod lab;
mod process;
mod setup;
mod test;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, build, run and test Palisade from a checkout", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  cargo xtask up      set up this machine, build, start a one-node cluster
  cargo xtask demo    show, on the running cluster, what is enforced
  cargo xtask test    set up this machine and run every test
  cargo xtask bench   measure beside runc, nftables and others, and print ratios
  cargo xtask bench policy --rounds 3
                      only what policy costs: packets, connections, the compiler, changes
  cargo xtask lab     run the kernel's part of the tests in a virtual machine";

#[derive(Subcommand)]
enum Command {
    /// Install what is missing: system packages, Trivy
    Setup {
        /// Also what the tests and the benchmarks need
        #[arg(long)]
        dev: bool,
    },
    /// Set up, build and start a one-node cluster; does nothing that is done already
    Up(up::Args),
    /// Run the demonstration on the running cluster; fails if any line does not hold
    Demo(up::DemoArgs),
    /// Set up, then formatting, lints, dependency rules, eBPF objects and every test
    Test(test::Args),
    /// Build the eBPF programs into ebpf/loader/objects
    Ebpf {
        /// Only check that the committed objects match their sources
        #[arg(long)]
        check: bool,
    },
    /// Check dependency directions, lints and unsafe code against xtask/deps.toml, and that documents name
    /// what exists
    Deps,
    /// Measure beside what users would pick instead; writes target/bench/NAME.json
    Bench(bench::Args),
    /// Run the tests of runtime, sandbox and datapath, or a whole cluster (`lab cluster`), in a virtual machine: Linux 6.12,
    /// control groups of version 2
    Lab(lab::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup { dev } => setup::run(if dev {
            setup::For::Development
        } else {
            setup::For::Use
        }),
        Command::Up(args) => up::run(&args),
        Command::Demo(args) => up::demo(&args),
        Command::Test(args) => test::run(&args),
        Command::Ebpf { check } => {
            ebpf::install_toolchain()?;
            ebpf::run(check)
        }
        Command::Deps => deps::run().and_then(|()| docs::run()),
        Command::Bench(args) => bench::run(&args),
        Command::Lab(args) => lab::run(&args),
    }
}
