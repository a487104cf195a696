//! `cargo xtask bench`: measures beside what users would pick instead, in one run.

use anyhow::Result;

use crate::{
    process::{self, cargo, command, demand_root},
    setup, up,
};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments for the benchmark, such as `runtime`
    #[arg(last = true)]
    bench: Vec<String>,
}

/// Builds optimised binaries and runs the benchmark.
pub(crate) fn run(args: &Args) -> Result<()> {
    demand_root("the benchmark")?;
    setup::run(setup::For::Development)?;
    process::run(
        cargo()
            .args([
                "build",
                "--locked",
                "--release",
                "-p",
                "palisade-control",
                "-p",
                "palisade-agent",
                "-p",
                "palisade-shim",
            ])
            .args(["-p", "policyctl", "-p", "e2e", "--bins"]),
    )?;
    process::run(command(up::binary_dir("release").join("bench")).args(&args.bench))
}
