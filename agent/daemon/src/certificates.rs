//! The node's certificates: asked for when there are none yet, and again before they end.
//!
//! The first one is asked for by an identity that may do nothing but bring this node in (`palisade-control bootstrap`);
//! after that the node asks for itself. A new certificate is used from the agent's next start on, and so the agent starts
//! itself again: pods do not notice that.

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
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

/// First line of a certificate.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

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
    #[error("what was issued for the request {name} is no certificate")]
    Unreadable { name: String },
    #[error("cannot {operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} has no certificate after its key: remove it", path.display())]
    NoPair { path: PathBuf },
}

/// Asks for what is missing, until it is there. What an earlier agent was given and did not put in place counts.
pub(crate) async fn ensure(config: &Config, shutdown: &CancellationToken) -> Result<(), CertificateError> {
    for (kind, name) in [(Kind::Client, "client"), (Kind::Serving, "server")] {
        settle(config, name)?;
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
    let mut address = own_address(config);
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
            names.extend(address.map(|address| address.to_string()));
            match obtain(config, client, kind, &names).await {
                Ok(()) => {
                    tracing::info!(name, "certificate renewed");
                    renewed = true;
                }
                Err(error) => {
                    if matches!(error, CertificateError::Unanswered { .. }) {
                        // Somebody else has it, or says so. The API server knows a node by its name.
                        address = None;
                    }
                    tracing::warn!(name, error = chain(&error), "certificate not renewed, will retry");
                }
            }
        }
        if renewed {
            return;
        }
    }
}

/// The address for which the node's own API has a certificate; nothing where clients know somebody else by it, too.
fn own_address(config: &Config) -> Option<IpAddr> {
    let address = config.listen.ip();
    let server: Option<hyper::Uri> = config.api_server.parse().ok();
    let host = server.as_ref().and_then(|server| server.host());
    let host = host.and_then(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().ok());
    (!address.is_unspecified() && !address.is_loopback() && host != Some(address)).then_some(address)
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
    let kept = asked(config, file);
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
    let certificate = match answered {
        Ok(answer) => answer?,
        Err(_elapsed) => return Err(CertificateError::Unanswered { name }),
    };
    match String::from_utf8(certificate) {
        Ok(certificate) if requests::validity(&certificate).is_some() => {
            replace(config, file, &key, &certificate)
        }
        _ => Err(CertificateError::Unreadable { name }),
    }
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
    write(kept, &key, 0o600)?;
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

/// Where a key and its certificate are together until each is in its place.
fn issued(config: &Config, name: &str) -> PathBuf {
    config.tls_file(&format!("{name}.issued"))
}

/// Puts a key and its certificate in the place of those before. An agent that is killed in between finishes when it starts
/// again, so that it never has a pair that does not match.
fn replace(config: &Config, name: &str, key: &str, certificate: &str) -> Result<(), CertificateError> {
    write(&issued(config, name), &format!("{key}{certificate}"), 0o600)?;
    settle(config, name)
}

/// Where a key waits for its certificate.
fn asked(config: &Config, name: &str) -> PathBuf {
    config.tls_file(&format!("{name}.asked.key"))
}

/// Finishes a replacement, if one was begun.
fn settle(config: &Config, name: &str) -> Result<(), CertificateError> {
    let issued = issued(config, name);
    let both = match fs::read_to_string(&issued) {
        Ok(both) => both,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed("read", &issued)(source)),
    };
    let Some(end_of_key) = both.find(CERTIFICATE) else {
        return Err(CertificateError::NoPair { path: issued });
    };
    let (key, certificate) = both.split_at(end_of_key);
    write(&config.tls_file(&format!("{name}.key")), key, 0o600)?;
    write(&config.tls_file(&format!("{name}.crt")), certificate, 0o644)?;
    // The next certificate is for a key of its own.
    for done in [asked(config, name), issued] {
        match fs::remove_file(&done) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &done)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Replaces a file in one step, which no later step overtakes when the power fails.
fn write(path: &Path, content: &str, mode: u32) -> Result<(), CertificateError> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    // One that a killed agent left may have another mode.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove the draft of", path)(error));
        }
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create_new(true).mode(mode);
    let mut file = options.open(&draft).map_err(failed("write", path))?;
    file.write_all(content.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&draft, path))
        .map_err(failed("write", path))?;
    let Some(directory) = path.parent() else {
        return Ok(());
    };
    let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed("sync", directory))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CertificateError {
    let path = path.to_owned();
    move |source| CertificateError::File {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Key, certificate, and whether a replacement is under way.
    fn state(config: &Config) -> (String, String, bool) {
        let read = |file: &str| fs::read_to_string(config.tls_file(file)).unwrap_or_default();
        let value = |text: String| text.lines().nth(1).unwrap_or_default().to_owned();
        let (key, certificate) = (value(read("client.key")), value(read("client.crt")));
        (key, certificate, issued(config, "client").exists())
    }

    fn key(value: &str) -> String {
        format!("-----BEGIN PRIVATE KEY-----\n{value}\n-----END PRIVATE KEY-----\n")
    }

    fn certificate(value: &str) -> String {
        format!("{CERTIFICATE}\n{value}\n-----END CERTIFICATE-----\n")
    }

    fn is(value: &str) -> (String, String, bool) {
        (value.to_owned(), value.to_owned(), false)
    }

    #[test]
    fn a_node_asks_for_no_address_that_is_also_the_api_servers() {
        let mut config = Config::below(Path::new("/base"));
        config.api_server = "https://192.0.2.7:6443".to_owned();
        let mut own = |listen: &str| {
            config.listen = listen.parse().unwrap();
            own_address(&config).map(|address| address.to_string())
        };
        assert_eq!(own("192.0.2.8:10250").as_deref(), Some("192.0.2.8"));
        for listen in [
            "192.0.2.7:10250",
            "127.0.0.1:10250",
            "0.0.0.0:10250",
            "[::1]:10250",
        ] {
            assert_eq!(own(listen), None, "{listen}");
        }
    }

    #[test]
    fn a_replacement_that_stops_half_way_is_finished_at_the_next_start() {
        let base = tempfile::tempdir().unwrap();
        let config = Config::below(base.path());
        fs::create_dir(base.path().join("tls")).unwrap();
        settle(&config, "client").unwrap();
        replace(&config, "client", &key("old"), &certificate("old")).unwrap();
        assert_eq!(state(&config), is("old"));

        // Each step of it fails in turn, as the death of the agent would have it.
        for (step, file) in ["client.issued", "client.key", "client.crt"].iter().enumerate() {
            let (path, aside) = (config.tls_file(file), config.tls_file("aside"));
            let was_there = fs::rename(&path, &aside).is_ok();
            fs::create_dir_all(path.join("in the way")).unwrap();
            let value = format!("new {step}");
            replace(&config, "client", &key(&value), &certificate(&value)).unwrap_err();
            fs::remove_dir_all(&path).unwrap();
            if was_there {
                fs::rename(&aside, &path).unwrap();
            }
            let before = state(&config);
            settle(&config, "client").unwrap();
            match *file {
                "client.issued" => assert_eq!(state(&config), is("old")),
                "client.crt" => {
                    assert_eq!(
                        (before.0.as_str(), before.1.as_str(), before.2),
                        ("new 2", "new 1", true)
                    );
                    assert_eq!(state(&config), is("new 2"));
                }
                _ => assert_eq!(state(&config), is(&value)),
            }
        }
    }

    #[test]
    fn what_a_killed_agent_left_does_not_open_the_key_to_others() {
        let base = tempfile::tempdir().unwrap();
        let config = Config::below(base.path());
        fs::create_dir(base.path().join("tls")).unwrap();
        for file in ["client.issued", "client.key", "client.crt"] {
            let draft = config.tls_file(&format!("{file}.new"));
            fs::write(&draft, "half").unwrap();
            fs::set_permissions(&draft, fs::Permissions::from_mode(0o666)).unwrap();
        }
        replace(&config, "client", &key("k"), &certificate("k")).unwrap();
        let mode = |file: &str| fs::metadata(config.tls_file(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("client.key"), mode("client.crt")), (0o600, 0o644));
        assert_eq!(fs::read_dir(base.path().join("tls")).unwrap().count(), 2);
    }

    #[test]
    fn a_pair_without_a_certificate_changes_nothing() {
        let base = tempfile::tempdir().unwrap();
        let config = Config::below(base.path());
        fs::create_dir(base.path().join("tls")).unwrap();
        replace(&config, "client", &key("old"), &certificate("old")).unwrap();
        fs::write(issued(&config, "client"), key("new")).unwrap();
        let refused = settle(&config, "client").unwrap_err();
        assert!(matches!(refused, CertificateError::NoPair { .. }), "{refused}");
        let (key, certificate, _) = state(&config);
        assert_eq!((key.as_str(), certificate.as_str()), ("old", "old"));
    }
}
