//! `palisade-control`: the control plane of one cluster as one process.
//!
//! `init` makes certificates as root; `run` gives root up, confines itself, and then serves the API, runs the
//! controllers and judges images; `jail` is the same program started again around Trivy. `signer` is a process of its own
//! that signs what nodes ask for.

#![forbid(unsafe_code)]

mod config;
mod confine;
mod gate;
mod privileges;
mod run;
mod signer;

use std::{net::SocketAddr, os::unix::fs::DirBuilderExt as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::config::{Config, DEFAULT_LISTEN, DEFAULT_UID};

/// Control plane of Palisade: API server, controllers and image gate
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make certificates, keys and directories; run as root. Running it again renews what is about to expire
    Init(InitArgs),
    /// Invite a node: an identity that may ask once for the certificate of the node of that name, within a day; run as root
    Bootstrap {
        /// State directory
        #[arg(long, default_value = "/var/lib/palisade")]
        state_dir: PathBuf,
        /// Name of the node
        #[arg(long)]
        node_name: String,
        /// Directory for ca.crt, verdict.pub, bootstrap.crt and bootstrap.key, which belong into `agent/tls` of the node
        #[arg(long)]
        out: PathBuf,
    },
    /// Sign approved requests of nodes until SIGTERM: the only process with the authority's key
    Signer {
        /// Configuration file
        #[arg(long)]
        config: PathBuf,
    },
    /// Serve until SIGTERM
    Run {
        /// Configuration file
        #[arg(long)]
        config: PathBuf,
    },
}

#[derive(clap::Args)]
struct InitArgs {
    /// State directory
    #[arg(long, default_value = "/var/lib/palisade")]
    state_dir: PathBuf,
    /// Name of this machine's node
    #[arg(long)]
    node_name: String,
    /// User and group that the control plane will run as
    #[arg(long, default_value_t = DEFAULT_UID)]
    control_uid: u32,
    /// Address that the API will be served on
    #[arg(long, default_value = DEFAULT_LISTEN)]
    listen: SocketAddr,
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args
        .next()
        .is_some_and(|first| first == agent_sandbox::jail::SUBCOMMAND)
    {
        agent_sandbox::jail::main(args);
    }
    let cli = Cli::parse();
    start_log();
    let result = match cli.command {
        Command::Init(args) => init(&args),
        Command::Bootstrap {
            state_dir,
            node_name,
            out,
        } => control_pki::bootstrap(&state_dir, &node_name, &out).context("invite a node"),
        Command::Signer { config } => signer::run(&config),
        Command::Run { config } => Config::read(&config)
            .map_err(Into::into)
            .and_then(|config| run::run(&config)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn init(args: &InitArgs) -> Result<()> {
    let names = vec![args.listen.ip().to_string(), "localhost".to_owned()];
    let options = control_pki::InitOptions {
        control_uid: args.control_uid,
        node_name: args.node_name.clone(),
        api_names: names.clone(),
        node_names: names,
        api_url: format!("https://{}", args.listen),
    };
    let report = control_pki::init(&args.state_dir, &options).context("make certificates")?;
    let layouts = args.state_dir.join("layouts");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&layouts)
        .with_context(|| format!("create {}", layouts.display()))?;
    tracing::info!(
        issued = report.issued.len(),
        kept = report.kept.len(),
        kubeconfig = %report.kubeconfig.display(),
        "certificates are in place"
    );
    Ok(())
}

/// Levels come from `PALISADE_LOG`, such as `debug` or `control_apiserver=debug,info`.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PALISADE_LOG")
        .unwrap_or_else(|_unset| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}
