//! The agent's client of the API server: its node certificate, and nothing from the environment.

use std::{path::PathBuf, time::Duration};

use kube::{Client, config::AuthInfo};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use crate::config::Config;

/// Longest time to connect.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Longest time for any answer. Who has less time than that says so.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("api_server {0:?} is not a URL")]
    Url(String),
    #[error("cannot read the authority {path}")]
    Authority {
        path: PathBuf,
        #[source]
        source: Box<rustls_pki_types::pem::Error>,
    },
    #[error("cannot set up the client of the API server")]
    Client(#[from] kube::Error),
}

/// A client that shows the node's certificate and takes no server but the API server's.
pub(crate) fn connect(config: &Config) -> Result<Client, ClientError> {
    connect_as(config, "client")
}

/// The same with the certificate `NAME.crt`.
pub(crate) fn connect_as(config: &Config, name: &str) -> Result<Client, ClientError> {
    let url = config
        .api_server
        .parse()
        .map_err(|_invalid| ClientError::Url(config.api_server.clone()))?;
    let path = config.tls_file("ca.crt");
    let authority = CertificateDer::from_pem_file(&path).map_err(|source| ClientError::Authority {
        path,
        source: Box::new(source),
    })?;
    let mut settings = kube::Config::new(url);
    settings.root_cert = Some(vec![authority.to_vec()]);
    settings.tls_server_name = Some(control_pki::API_SERVER_NAME.to_owned());
    settings.connect_timeout = Some(CONNECT_WITHIN);
    let text = |name: &str| Some(config.tls_file(name).display().to_string());
    settings.auth_info = AuthInfo {
        client_certificate: text(&format!("{name}.crt")),
        client_key: text(&format!("{name}.key")),
        ..AuthInfo::default()
    };
    Ok(api_client::connect_within(settings, ANSWER_WITHIN)?)
}
