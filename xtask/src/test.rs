//! `cargo xtask test`: all set-up, then every test. This is what CI runs; a check that is not here does
//! not exist.

use std::{process::Command, time::Instant};

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
    if args.quick {
        step("lints");
        process::run(
            cargo()
                .args(["clippy", "--locked", "--workspace", "--all-targets"])
                .args(["--", "-D", "warnings"]),
        )?;
        return Ok(());
    }
    demand_root("the tests that start containers and load eBPF programs")?;
    step("set-up");
    setup::run(setup::For::Development)?;
    step("eBPF objects match their sources");
    ebpf::install_toolchain()?;
    ebpf::run(true)?;
    step("lints, programs and tests");
    // All at once: by themselves programs have libraries with fewer features, and those would be compiled twice.
    process::run(linted(cargo()).args([
        "build",
        "--locked",
        "--workspace",
        "--bins",
        "--tests",
        "--examples",
    ]))?;
    step("tests");
    process::run(linted(cargo()).args(["test", "--locked", "--workspace", "--no-fail-fast"]))?;
    step("all passed");
    Ok(())
}

/// Has our crates compiled by Clippy's driver, which lints what it compiles: `cargo clippy` would have every crate
/// checked a second time, and libraries alone take minutes. The variables are those that `cargo clippy` sets.
fn linted(mut build: Command) -> Command {
    build
        .env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver")
        .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
    build
}
