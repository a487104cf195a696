//! `palisade-agent`: runs the pods that the API binds to this node.
//!
//! `run` is the daemon. `cleanup` removes what it made. The small supervisor that the daemon starts for each pod is a
//! program of its own, `palisade-shim`, which lies beside this one.

#![forbid(unsafe_code)]

mod agent;
mod certificates;
mod client;
mod cluster;
mod config;
mod durable;
mod events;
mod guards;
mod hosts;
mod images;
mod learn;
mod local_volumes;
mod logs;
mod node;
mod node_shutdown;
mod operator_files;
mod pods;
mod policy;
mod policy_objects;
mod pressure;
mod quiet;
mod server;
mod sessions;
mod static_pods;
mod stats;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{agent::Ended, config::Config};

/// Runs the pods that the API binds to this node.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent until SIGTERM; pods stay. SIGPWR says that the node goes down: pods end first, in order.
    Run {
        /// Configuration file (TOML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Remove all pods of this node and everything the agent made for them.
    Cleanup {
        /// Configuration file (TOML).
        #[arg(long)]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("PALISADE_LOG").unwrap_or_else(|_unset| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match serve(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(command: &Command) -> Result<()> {
    agent_runtime::memory::share_heap();
    // Two workers serve a node: the work is in the kernel and in the shims.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match command {
        Command::Run { config } => {
            let config = Config::read(config)?;
            if let Err(error) = agent_runtime::memory::spare() {
                let missing = "give it CAP_SYS_RESOURCE";
                tracing::warn!(%error, missing, "when memory is used up, the agent and its shims are ended like any other process");
            }
            if let Err(error) = agent_runtime::open_files::raise() {
                tracing::warn!(%error, "the agent may open no more files than it was started with");
            }
            runtime
                .block_on(async {
                    let (told, node_ends) = (CancellationToken::new(), CancellationToken::new());
                    cancel_on_signal(told.clone(), node_ends.clone())?;
                    let ended = agent::run(config, told.child_token(), node_ends).await?;
                    // Whoever ends the agent while it is about to begin anew means it all the same.
                    anyhow::Ok(match told.is_cancelled() {
                        true => Ended::ForGood,
                        false => ended,
                    })
                })?
                .begin_anew()
        }
        Command::Cleanup { config } => {
            let config = Config::read(config)?;
            runtime.block_on(agent::cleanup(&config))
        }
    }
}

fn cancel_on_signal(shutdown: CancellationToken, node_ends: CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let power = SignalKind::from_raw(nix::sys::signal::Signal::SIGPWR as i32);
    let mut power = signal(power).context("cannot wait for SIGPWR")?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = power.recv() => {
                    tracing::info!("the node shuts down; pods end");
                    node_ends.cancel();
                }
            }
        }
        tracing::info!("stopping; pods stay");
        shutdown.cancel();
    });
    Ok(())
}
