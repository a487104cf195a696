//! `policyctl`: the one command people use. It starts and stops a one-node cluster, talks to it, scans
//! images by hand and explains policy, also offline.
//!
//! Thin by intention: files and arguments in, text out. What it decides is decided by the same pure crates
//! that the server and the node use.

#![forbid(unsafe_code)]

mod apply;
mod check;
mod cli;
mod cluster;
mod daemons;
mod decide;
mod delete;
mod down;
mod explain;
mod flow_filter;
mod flows;
mod get;
mod learn;
mod learned;
mod lines;
mod load;
mod logs;
mod objects;
mod output;
mod profile;
mod scan;
mod standard_input;
mod up;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command};

fn main() -> ExitCode {
    // The jail must be entered while this process has one thread: before any runtime exists.
    let mut words = std::env::args_os().skip(1);
    if words
        .next()
        .is_some_and(|word| word == agent_sandbox::jail::SUBCOMMAND)
    {
        agent_sandbox::jail::main(words);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    run(cli).unwrap_or_else(|error| failed(&error))
}

/// Says why there is no answer, if it is to be said.
fn failed(error: &anyhow::Error) -> ExitCode {
    if error.is::<output::Closed>() {
        return ExitCode::from(output::Closed::EXIT_CODE);
    }
    output::complain(&format!("{error:#}"));
    ExitCode::FAILURE
}

/// Says what is wrong with the command line, or gives the help that it asks for. Clap's own exit code for the first is 2,
/// which is an answer of some commands here: denied, not equivalent, does not hold.
fn refuse(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    match (error.use_stderr(), output::written(printed)) {
        (true, _) => ExitCode::FAILURE,
        (false, Ok(())) => ExitCode::SUCCESS,
        (false, Err(error)) => failed(&error),
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let done = ExitCode::SUCCESS;
        match cli.command {
            Command::Up(args) => up::run(&args).await.map(|()| done),
            Command::Down(args) => down::run(&args).await.map(|()| done),
            Command::Apply(args) => apply::run(&cli.connection, &args).await,
            Command::Get(args) => get::run(&cli.connection, &args).await.map(|()| done),
            Command::Delete(args) => delete::run(&cli.connection, &args).await,
            Command::Logs(args) => logs::run(&cli.connection, &args).await.map(|()| done),
            Command::Flows(args) => flows::run(&cli.connection, &args).await,
            Command::Scan(args) => scan::run(&args).await,
            Command::Decide(args) => decide::run(&cli.connection, &args).await,
            Command::Explain(args) => explain::run(&cli.connection, &args).await,
            Command::Connectivity(args) => check::connectivity(&cli.connection, &args).await.map(|()| done),
            Command::Diff(args) => check::diff(&cli.connection, &args).await.map(|()| done),
            Command::Equivalent(args) => check::equivalent(&cli.connection, &args).await,
            Command::Prove(args) => check::prove(&cli.connection, &args).await,
            Command::Test(args) => check::test(&cli.connection, &args).await,
            Command::Replay(args) => check::replay(&cli.connection, &args).await,
            Command::Recommend(args) => check::recommend(&cli.connection, &args).await.map(|()| done),
            Command::Top(args) => check::top(&cli.connection, &args).await.map(|()| done),
            Command::Learn(args) => learn::run(&cli.connection, &args).await.map(|()| done),
            Command::Profile(args) => profile::run(&args),
            Command::Verify(args) => verify::run(&cli.connection, &args).await,
            Command::Version(args) => output::version(&cli.connection, &args).await.map(|()| done),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "policyctl", &mut script);
                output::bytes(&script).map(|()| done)
            }
        }
    })
}
