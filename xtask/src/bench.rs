//! `cargo xtask bench`: measures beside what users would pick instead, in one run.

use anyhow::Result;

use crate::{
    process::{self, cargo, command, demand_root},
    setup, up,
};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments for the benchmark, such as `policy --rounds 3`; `policy --help` lists them, none measures everything
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::{Cli, Command};

    fn handed_on(words: &[&str]) -> Vec<String> {
        let all = ["cargo xtask", "bench"].iter().chain(words);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Bench(args) => args.bench,
            _ => panic!("another command"),
        }
    }

    #[test]
    fn the_benchmark_gets_its_arguments_as_they_are_written() {
        assert_eq!(handed_on(&["policy"]), ["policy"]);
        assert_eq!(
            handed_on(&["policy", "--rounds", "3"]),
            ["policy", "--rounds", "3"]
        );
        assert_eq!(handed_on(&["--rounds=3", "change"]), ["--rounds=3", "change"]);
        assert_eq!(handed_on(&["policy", "--help"]), ["policy", "--help"]);
        // As it had to be written before.
        assert_eq!(handed_on(&["--", "policy"]), ["policy"]);
        assert!(handed_on(&[]).is_empty());
    }
}
