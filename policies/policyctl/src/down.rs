//! `policyctl down`: stops the cluster and removes everything it made in the kernel; with `--purge` also its
//! state. Safe to repeat, also after a crash.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{cli::DownArgs, daemons::sibling_binary, output, up};

/// How long a daemon gets to end by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// Stops, cleans and reports.
pub(crate) async fn run(args: &DownArgs) -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("stopping a cluster needs root, as starting it did");
    }
    let place = &args.place;
    let up::Daemons {
        control,
        signer,
        agent,
    } = up::daemons(place);
    let agent_ran = agent.stop(PATIENCE).await?;
    // Pods outlive the agent by design, so ending them is a step of its own.
    let config = place.state_dir.join("agent/config.toml");
    if config.is_file() {
        clean(&config)?;
    }
    signer.stop(PATIENCE).await?;
    let control_ran = control.stop(PATIENCE).await?;
    remove(&place.run_dir)?;
    if args.purge {
        remove(&place.state_dir)?;
    }
    let what = if agent_ran || control_ran {
        "stopped"
    } else {
        "nothing was running"
    };
    let state = if args.purge { "state removed" } else { "state kept" };
    output::line(&format!("{what}; {state}"))
}

fn clean(config: &Path) -> Result<()> {
    let agent = sibling_binary("palisade-agent")?;
    let status = Command::new(&agent)
        .arg("cleanup")
        .arg("--config")
        .arg(config)
        .status()
        .with_context(|| format!("cannot start {}", agent.display()))?;
    if !status.success() {
        bail!("palisade-agent cleanup failed ({status}); run `policyctl down` again");
    }
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
