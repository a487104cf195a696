//! `cargo xtask up`: from a checkout to a Ready node. Builds, then hands over to `policyctl up`, which is
//! what people without a checkout use.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    process::{self, cargo, command, demand_root, root},
    setup,
};

/// Which build to run, and where.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Cargo profile of the binaries: `release` for use, `dev` for tests
    #[arg(long, default_value = "release")]
    profile: String,
    /// Arguments for `policyctl up`, such as --state-dir DIR
    #[arg(last = true)]
    policyctl: Vec<String>,
}

/// Where the running cluster is.
#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Cargo profile of the demonstration's own binary
    #[arg(long, default_value = "release")]
    profile: String,
    /// Arguments for the demonstration, such as --state-dir DIR
    #[arg(last = true)]
    demo: Vec<String>,
}

/// Sets up, builds, starts.
pub(crate) fn run(args: &Args) -> Result<()> {
    demand_root("starting a cluster")?;
    setup::run(setup::For::Use)?;
    let trivy = setup::trivy()?;
    println!("building (profile {})", args.profile);
    process::run(
        cargo()
            .args(["build", "--locked", "--profile", &args.profile])
            .args([
                "-p",
                "palisade-control",
                "-p",
                "palisade-agent",
                "-p",
                "palisade-shim",
                "-p",
                "policyctl",
            ]),
    )?;
    let policyctl = binary_dir(&args.profile).join("policyctl");
    process::run(
        command(policyctl)
            .arg("up")
            .arg("--trivy")
            .arg(trivy)
            .arg("--lab-db-if-none")
            .args(&args.policyctl),
    )
}

/// Builds and runs the demonstration.
pub(crate) fn demo(args: &DemoArgs) -> Result<()> {
    demand_root("the demonstration")?;
    setup::run(setup::For::Demo)?;
    process::run(cargo().args([
        "build",
        "--locked",
        "--profile",
        &args.profile,
        "-p",
        "e2e",
        "--bin",
        "demo",
    ]))?;
    process::run(command(binary_dir(&args.profile).join("demo")).args(&args.demo))
}

/// Where cargo puts the binaries of a profile.
pub(crate) fn binary_dir(profile: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join(if profile == "dev" { "debug" } else { profile })
}
