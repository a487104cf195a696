//! A client of our own API server with the controllers' certificate.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A certificate or key could not be read.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// They do not make up a client's configuration.
    #[error("configuration of the API client")]
    Config(#[source] KubeconfigError),
    /// The client could not be built.
    #[error("API client")]
    Client(#[source] kube::Error),
}

/// Who a client is and whom it trusts, read before anything is given up that it takes to read it.
pub struct ClientFiles {
    authority: String,
    certificate: String,
    key: String,
}

impl ClientFiles {
    /// Reads `ca.crt`, `NAME.crt` and `NAME.key` from `directory`.
    pub fn read(directory: &Path, name: &str) -> Result<Self, ConnectError> {
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).map_err(|source| ConnectError::File { path, source })
        };
        Ok(Self {
            authority: read("ca.crt")?,
            certificate: read(&format!("{name}.crt"))?,
            key: read(&format!("{name}.key"))?,
        })
    }

    /// A client of the API server at `url`. Nothing is sent yet.
    pub async fn connect(&self, url: &str) -> Result<Client, ConnectError> {
        let text = control_pki::kubeconfig(url, &self.authority, &self.certificate, &self.key);
        let kubeconfig = Kubeconfig::from_yaml(&text).map_err(ConnectError::Config)?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(ConnectError::Config)?;
        // A proxy from the environment has no business between the control plane and itself.
        config.proxy_url = None;
        api_client::connect(config).map_err(ConnectError::Client)
    }
}

/// Reads `ca.crt`, `controllers.crt` and `controllers.key` from `tls_dir` and makes a client of the API
/// server at `url`. Nothing is sent yet.
pub async fn connect(url: &str, tls_dir: &Path) -> Result<Client, ConnectError> {
    ClientFiles::read(tls_dir, "controllers")?.connect(url).await
}
