//! `cargo xtask test`: all set-up, then every test. This is what CI runs; a check that is not here does
//! not exist.

use std::time::Instant;

use anyhow::Result;

use crate::{
    deps, docs, ebpf,
    process::{self, cargo, demand_root},
    setup,
};

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the checks that need no root: formatting, lints, dependency rules
    #[arg(long)]
    quick: bool,
}

/// Runs every check and every test; the first failure ends it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let begun = Instant::now();
    let step = |name: &str| println!("\n==> {name} (after {} s)", begun.elapsed().as_secs());
    step("formatting");
    process::run(cargo().args(["fmt", "--all", "--check"]))?;
    step("dependency rules");
    deps::run()?;
    docs::run()?;
    step("lints");
    process::run(cargo().args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    if args.quick {
        return Ok(());
    }
    demand_root("the tests that start containers and load eBPF programs")?;
    step("set-up");
    setup::run(setup::For::Development)?;
    step("eBPF objects match their sources");
    ebpf::install_toolchain()?;
    ebpf::run(true)?;
    step("binaries");
    process::run(cargo().args(["build", "--locked", "--workspace", "--bins"]))?;
    step("tests");
    process::run(cargo().args(["test", "--locked", "--workspace", "--no-fail-fast"]))?;
    step("all passed");
    Ok(())
}
