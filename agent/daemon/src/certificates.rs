//! The node's certificates: asked for when there are none yet, and again before they end.
//!
//! The first one is asked for by an identity that may do nothing but bring this node in (`palisade-control bootstrap`);
//! after that the node asks for itself. A new certificate is used from the agent's next start on, and so the agent starts
//! itself again: pods do not notice that.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use control_pki::{
    PkiError,
    requests::{self, Kind},
};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequest};
use kube::{Api, Client, api::PostParams};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    client::{self, ClientError},
    config::Config,
    policy::chain,
};

/// How often it is looked at how long certificates still last.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often it is asked whether a request was answered.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Delay before what failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// A request that was not answered by then is made anew: people have to approve it by then.
const ANSWER_WITHIN: Duration = Duration::from_secs(900);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("{} is missing, and there is no bootstrap.crt beside it to ask for one with: see palisade-control bootstrap", path.display())]
    Nobody { path: PathBuf },
    #[error("cannot make a key and a request")]
    Make(#[from] PkiError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot ask for a certificate")]
    Ask(#[from] kube::Error),
    #[error("the request {name} was {outcome}: {message}")]
    Refused {
        name: String,
        outcome: String,
        message: String,
    },
    #[error("the request {name} was not answered within {} s", ANSWER_WITHIN.as_secs())]
    Unanswered { name: String },
    #[error("{}: cannot be written", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Asks for what is missing, until it is there.
pub(crate) async fn ensure(config: &Config, shutdown: &CancellationToken) -> Result<(), CertificateError> {
    for (kind, name) in [(Kind::Client, "client"), (Kind::Serving, "server")] {
        let path = config.tls_file(&format!("{name}.crt"));
        if path.exists() && config.tls_file(&format!("{name}.key")).exists() {
            continue;
        }
        let identity = match kind {
            Kind::Client => "bootstrap",
            Kind::Serving => "client",
        };
        if !config.tls_file(&format!("{identity}.crt")).exists() {
            return Err(CertificateError::Nobody { path });
        }
        tracing::info!(name, "asking for the node's certificate");
        let client = client::connect_as(config, identity)?;
        loop {
            // The node has no addresses yet by which it could be known: those come with the next one.
            let names = [requests::own_name(&config.node_name)];
            // People may take their time to approve it; who ends the agent does not wait for them.
            let obtained = obtain(config, &client, kind, &names);
            match shutdown.run_until_cancelled(obtained).await {
                Some(Ok(())) => break,
                Some(Err(error)) => tracing::warn!(error = chain(&error), "no certificate yet, will retry"),
                None => return Ok(()),
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY_AFTER) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }
    Ok(())
}

/// Renews in time, and returns when there is something new to start with.
pub(crate) async fn renew(config: &Config, client: &Client) {
    loop {
        tokio::time::sleep(look_again(config)).await;
        let mut renewed = false;
        for (kind, name) in [(Kind::Client, "client"), (Kind::Serving, "server")] {
            if !is_due(
                &config.tls_file(&format!("{name}.crt")),
                config.certificates.renew_at_percent,
            ) {
                continue;
            }
            let mut names = vec![requests::own_name(&config.node_name)];
            let listen = config.listen.ip();
            if !listen.is_unspecified() {
                names.push(listen.to_string());
            }
            match obtain(config, client, kind, &names).await {
                Ok(()) => {
                    tracing::info!(name, "certificate renewed");
                    renewed = true;
                }
                Err(error) => {
                    tracing::warn!(name, error = chain(&error), "certificate not renewed, will retry");
                }
            }
        }
        if renewed {
            return;
        }
    }
}

/// More often where certificates are short-lived.
fn look_again(config: &Config) -> Duration {
    let lifetime = config.certificates.lifetime_seconds.unwrap_or(u32::MAX);
    LOOK_EVERY.min(Duration::from_secs(u64::from(lifetime / 100).max(2)))
}

async fn obtain(
    config: &Config,
    client: &Client,
    kind: Kind,
    names: &[String],
) -> Result<(), CertificateError> {
    let (names, file) = match kind {
        Kind::Client => (&[] as &[String], "client"),
        Kind::Serving => (names, "server"),
    };
    let kept = config.tls_file(&format!("{file}.asked.key"));
    let (key, pem) = key_and_request(&kept, &config.node_name, kind, names)?;
    let mut request = CertificateSigningRequest::default();
    request.metadata.generate_name = Some("csr-".to_owned());
    request.spec.request = ByteString(pem.into_bytes());
    request.spec.signer_name = kind.signer().to_owned();
    request.spec.usages = Some(kind.usages().map(str::to_owned).to_vec());
    let lifetime = config.certificates.lifetime_seconds;
    request.spec.expiration_seconds = lifetime.and_then(|seconds| i32::try_from(seconds).ok());
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let made = api.create(&PostParams::default(), &request).await?;
    let name = made.metadata.name.unwrap_or_default();
    let answered = tokio::time::timeout(ANSWER_WITHIN, answer(&api, &name)).await;
    let certificate = answered.map_err(|_elapsed| CertificateError::Unanswered { name })??;
    // A crash between the two leaves a pair that does not match: the agent then does not start, and says so.
    write(&config.tls_file(&format!("{file}.key")), key.as_bytes(), 0o600)?;
    write(&config.tls_file(&format!("{file}.crt")), &certificate, 0o644)?;
    fs::remove_file(&kept).map_err(|source| CertificateError::Write { path: kept, source })
}

/// A key that is on disk before anybody signs for it, and a request. An invitation works for one key: an agent that ended
/// before the answer came, or got none in time, asks for the same one again.
fn key_and_request(
    kept: &Path,
    node: &str,
    kind: Kind,
    names: &[String],
) -> Result<(Zeroizing<String>, String), CertificateError> {
    let known = fs::read_to_string(kept).map(Zeroizing::new).ok();
    // One that cannot be read is as good as none.
    let again = known.and_then(|key| Some((requests::make_for(&key, node, kind, names).ok()?, key)));
    if let Some((request, key)) = again {
        return Ok((key, request));
    }
    let (key, request) = requests::make(node, kind, names)?;
    write(kept, key.as_bytes(), 0o600)?;
    Ok((key, request))
}

async fn answer(api: &Api<CertificateSigningRequest>, name: &str) -> Result<Vec<u8>, CertificateError> {
    loop {
        let status = api.get(name).await?.status.unwrap_or_default();
        let mut conditions = status.conditions.into_iter().flatten();
        let refusal = conditions.find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"));
        if let Some(refusal) = refusal {
            return Err(CertificateError::Refused {
                name: name.to_owned(),
                outcome: refusal.type_.to_lowercase(),
                message: refusal.message.unwrap_or_default(),
            });
        }
        if let Some(ByteString(certificate)) = status.certificate {
            return Ok(certificate);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Whether so much of its time has passed that it is renewed. One that cannot be read is.
fn is_due(path: &Path, percent: u8) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    let Some((begins, ends)) = requests::validity(&text) else {
        return true;
    };
    let passed = Timestamp::now().as_second().saturating_sub(begins);
    let lasts = ends.saturating_sub(begins).max(1);
    i128::from(passed) * 100 >= i128::from(lasts) * i128::from(percent)
}

/// Replaces a file in one step.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), CertificateError> {
    let failed = |source| CertificateError::Write {
        path: path.to_owned(),
        source,
    };
    let draft = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(mode);
    let mut file = options.open(&draft).map_err(failed)?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    fs::rename(&draft, path).map_err(failed)
}
