//! All wiring of the running daemon, from root to a served API and back.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use control_pki::{
    tls::{ALPN_HTTP, ClientCertificate, Credentials, client_config, server_config},
    token_key,
};
use control_store::{Embedded, Keyring};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{config::Config, confine, gate::ScanGate, privileges};

/// Threads that serve. What blocks (disk, scans) has threads of its own.
const WORKER_THREADS: usize = 2;
/// The file with the keys that sign tokens, in the control directory.
const TOKEN_KEY: &str = "token-signing.key";
/// How long everything may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Gives root up, confines this process, then serves until SIGTERM or SIGINT.
pub(crate) fn run(config: &Config) -> Result<()> {
    let own_program = std::env::current_exe().context("find my own program")?;
    privileges::drop_to(config.uid)?;
    confine::confine(config, &own_program)?;
    info!(uid = config.uid, "confined by seccomp and Landlock");
    // Threads inherit the sandbox, so there are none before this line.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(serve(config, &own_program))
}

async fn serve(config: &Config, own_program: &Path) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let tls = config.file("tls");
    let keyring = Keyring::load_or_create(&config.file("kek"))?;
    let store = Embedded::open(&config.file("store.redb"), keyring)?;
    let gate = ScanGate::open(config, own_program).context("open the image gate")?;
    let server = Credentials::load(&tls, "server")?;
    let to_nodes = Credentials::load(&tls, "apiserver-client")?;
    let addresses = server.addresses();
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listen on {}", config.listen))?;
    let api = control_apiserver::Config {
        store: Arc::new(store),
        gate: Arc::new(gate),
        tls: server_config(&server, ClientCertificate::Optional, ALPN_HTTP)?,
        node_tls: client_config(&to_nodes, &[b"http/1.1"])?,
        token_keys: Arc::new(token_key::load_or_create(&config.control_dir, TOKEN_KEY)?),
        service_range: config.service_range()?,
        capacities: Default::default(),
    };
    let shutdown = CancellationToken::new();
    // Controllers end before the API that they use.
    let controllers_shutdown = shutdown.child_token();
    let mut api = tokio::spawn(control_apiserver::serve(listener, api, shutdown.clone()));
    let client = control_controllers::connect(&format!("https://{}", config.listen), &tls).await?;
    let root_ca = tls.join("ca.crt");
    let root_ca = std::fs::read_to_string(&root_ca).with_context(|| format!("read {}", root_ca.display()))?;
    let mut controllers = tokio::spawn(control_controllers::run(
        client,
        control_controllers::ApiServer { root_ca, addresses },
        controllers_shutdown.clone(),
    ));
    info!(listen = %config.listen, "serving");

    let ended = tokio::select! {
        _signal = terminate.recv() => Ok(()),
        _signal = interrupt.recv() => Ok(()),
        ended = &mut api => ended.context("the API server panicked")?.context("API server"),
        ended = &mut controllers => ended.context("the controllers panicked")?.context("controllers"),
    };
    info!("ending");
    controllers_shutdown.cancel();
    drain(controllers).await;
    shutdown.cancel();
    drain(api).await;
    ended
}

/// Waits for a task that was told to end; one that was awaited already has.
async fn drain<T>(task: JoinHandle<T>) {
    if !task.is_finished() && tokio::time::timeout(DRAIN_TIMEOUT, task).await.is_err() {
        tracing::warn!("a part of the control plane did not end in time");
    }
}
