//! The process with the authority's key. It serves nothing: it reads approved requests from the API server and writes
//! certificates of nodes back, as its own user, confined.

use std::path::{Path, PathBuf};

use agent_sandbox::{DaemonPaths, Profile};
use anyhow::{Context as _, Result};
use control_controllers::ClientFiles;
use control_pki::requests::Signer;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::privileges;

/// Contents of the signer's configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignerConfig {
    /// URL of the API server.
    api_server: String,
    /// State directory, whose `pki` is read before root is given up.
    state_dir: PathBuf,
    /// User and group that the signer becomes: nobody else's.
    uid: u32,
}

/// Reads the key, gives root up, confines this process, then signs until SIGTERM or SIGINT.
pub(crate) fn run(config: &Path) -> Result<()> {
    let text = std::fs::read_to_string(config).with_context(|| format!("read {}", config.display()))?;
    let config: SignerConfig = toml::from_str(&text).context("the signer's configuration")?;
    anyhow::ensure!(config.uid != 0, "uid must not be 0");
    let signer = Signer::load(&config.state_dir)?;
    let files = ClientFiles::read(&config.state_dir.join("pki"), "signer")?;
    privileges::drop_to(config.uid)?;
    let nothing = DaemonPaths {
        writable: Vec::new(),
        readable: Vec::new(),
        executable: Vec::new(),
    };
    Profile::daemon(&nothing)
        .compile()
        .context("compile the signer's profile")?
        .apply()
        .context("apply the signer's profile")?;
    info!(uid = config.uid, "confined by seccomp and Landlock");
    // Threads inherit the sandbox, so there are none before this line.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(async {
            let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
            let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
            let client = files.connect(&config.api_server).await?;
            let shutdown = CancellationToken::new();
            let signing = control_controllers::sign(client, signer, shutdown.clone());
            tokio::select! {
                () = signing => {}
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            Ok(())
        })
}
