//! A real OCI registry (Debian's `docker-registry`) on a loopback port of its own.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use api::ImageRef;
use oci_client::{
    Client, Reference,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    secrets::RegistryAuth,
};
use serde_json::Value;

use crate::image::{Blob, DOCKER_LIST, Image, OCI_INDEX, index};

const PROGRAM: &str = "docker-registry";
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// User of a private registry.
pub const USER: &str = "puller";
/// The user's password.
pub const PASSWORD: &str = "correct horse";
/// The same as bcrypt wants it, the only form that the registry takes.
const PASSWORD_HASH: &str = "$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2";

/// A running registry with an empty store. Stops, and its store goes, when it is dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    address: String,
    private: bool,
    authority: Option<String>,
    dir: tempfile::TempDir,
}

/// Who may pull from a registry, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open,
    Private,
    Tls,
}

impl Registry {
    /// Starts a registry on a free port and waits until it listens.
    pub fn start() -> Result<Self> {
        Self::start_as(Kind::Open)
    }

    /// One that only [`USER`] with [`PASSWORD`] may use.
    pub fn start_private() -> Result<Self> {
        Self::start_as(Kind::Private)
    }

    /// One that only [`USER`] with [`PASSWORD`] may use, and that speaks TLS by [`Self::authority`].
    pub fn start_tls() -> Result<Self> {
        Self::start_as(Kind::Tls)
    }

    fn start_as(kind: Kind) -> Result<Self> {
        let dir = tempfile::tempdir().context("cannot create the registry's directory")?;
        let config = dir.path().join("config.yml");
        let store = dir.path().join("store");
        // Port 0: the kernel chooses, and the log says which.
        let text = format!(
            "version: 0.1\nlog: {{level: info, formatter: text, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '127.0.0.1:0'{}}}\n{}",
            store.display(),
            match kind {
                Kind::Tls => {
                    let dir = dir.path().display();
                    format!(", tls: {{certificate: {dir}/tls.crt, key: {dir}/tls.key}}")
                }
                Kind::Open | Kind::Private => String::new(),
            },
            match kind {
                Kind::Open => String::new(),
                Kind::Private | Kind::Tls => {
                    let users = dir.path().join("users");
                    std::fs::write(&users, format!("{USER}:{PASSWORD_HASH}\n"))?;
                    format!("auth: {{htpasswd: {{realm: lab, path: {}}}}}\n", users.display())
                }
            }
        );
        let authority = match kind {
            Kind::Tls => Some(certificate(dir.path())?),
            Kind::Open | Kind::Private => None,
        };
        std::fs::write(&config, text).context("cannot write the registry's configuration")?;
        let mut process = Command::new(PROGRAM)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {PROGRAM}; install the package docker-registry"))?;
        let stderr = process
            .stderr
            .take()
            .context("the registry has no standard error")?;
        let mut registry = Self {
            process,
            address: String::new(),
            private: kind != Kind::Open,
            authority,
            dir,
        };

        let (sender, receiver) = mpsc::channel();
        // Reads to the end, so that the registry never blocks on a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("listening on ") {
                    let port: String = rest
                        .chars()
                        .take_while(|c| !matches!(c, '"' | ' ' | ','))
                        .collect();
                    // The receiver is gone after the first line, which is fine.
                    let _first_only = sender.send(port);
                }
            }
        });
        registry.address = receiver
            .recv_timeout(START_TIMEOUT)
            .map_err(|_timeout| anyhow!("{PROGRAM} did not listen within {} s", START_TIMEOUT.as_secs()))?;
        Ok(registry)
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// PEM certificate that the registry shows, of its own authority.
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// Contents of `.dockerconfigjson` for this registry under the given name of a host.
    pub fn docker_config(host: &str) -> String {
        serde_json::json!({"auths": {host: {"username": USER, "password": PASSWORD}}}).to_string()
    }

    /// Directory of the store, for tests that damage it.
    pub fn store(&self) -> std::path::PathBuf {
        self.dir.path().join("store")
    }

    /// Reference of `repository:tag` in this registry.
    pub fn reference(&self, repository: &str, tag: &str) -> Result<ImageRef> {
        Ok(format!("{}/{repository}:{tag}", self.address).parse()?)
    }

    /// Pushes an image under a tag.
    pub async fn push(&self, image: &Image, repository: &str, tag: &str) -> Result<ImageRef> {
        self.push_blobs(image, repository).await?;
        self.push_manifest(&image.manifest, repository, tag).await?;
        self.reference(repository, tag)
    }

    /// Pushes an index with the given images, each with its `platform`, under a tag.
    pub async fn push_index(
        &self,
        images: &[(&Image, Value)],
        repository: &str,
        tag: &str,
    ) -> Result<ImageRef> {
        self.push_list(OCI_INDEX, images, (repository, tag)).await
    }

    /// As [`Self::push_index`], in Docker's older format.
    pub async fn push_docker_list(
        &self,
        images: &[(&Image, Value)],
        repository: &str,
        tag: &str,
    ) -> Result<ImageRef> {
        self.push_list(DOCKER_LIST, images, (repository, tag)).await
    }

    async fn push_list(
        &self,
        media_type: &str,
        images: &[(&Image, Value)],
        (repository, tag): (&str, &str),
    ) -> Result<ImageRef> {
        let mut entries = Vec::new();
        for (image, platform) in images {
            self.push_blobs(image, repository).await?;
            self.push_manifest(&image.manifest, repository, &image.digest().to_string())
                .await?;
            let mut entry = image.manifest.descriptor();
            entry["platform"] = platform.clone();
            entries.push(entry);
        }
        let list = index(media_type, &entries).to_string();
        let index = Blob::new(media_type, list.into_bytes());
        self.push_manifest(&index, repository, tag).await?;
        self.reference(repository, tag)
    }

    async fn push_blobs(&self, image: &Image, repository: &str) -> Result<()> {
        let (client, target) = self.client(repository, "blobs").await?;
        for blob in image.blobs() {
            client
                .push_blob(&target, blob.bytes.clone(), &blob.digest.to_string())
                .await?;
        }
        Ok(())
    }

    async fn push_manifest(&self, manifest: &Blob, repository: &str, reference: &str) -> Result<()> {
        let (client, mut target) = self.client(repository, reference).await?;
        if reference.starts_with("sha256:") {
            target =
                Reference::with_digest(self.address.clone(), repository.to_owned(), reference.to_owned());
        }
        let media_type = manifest.media_type.parse().context("media type")?;
        client
            .push_manifest_raw(&target, manifest.bytes.clone(), media_type)
            .await?;
        Ok(())
    }

    async fn client(&self, repository: &str, tag: &str) -> Result<(Client, Reference)> {
        // The HTTP client wants a TLS provider, although it speaks plain HTTP here; an earlier one is fine.
        let _already = rustls::crypto::ring::default_provider().install_default();
        let mut config = ClientConfig {
            protocol: ClientProtocol::Http,
            ..ClientConfig::default()
        };
        if let Some(authority) = &self.authority {
            config.protocol = ClientProtocol::Https;
            config.extra_root_certificates = vec![Certificate {
                encoding: CertificateEncoding::Pem,
                data: authority.clone().into_bytes(),
            }];
        }
        let client = Client::try_from(config)?;
        let auth = match self.private {
            true => RegistryAuth::Basic(USER.to_owned(), PASSWORD.to_owned()),
            false => RegistryAuth::Anonymous,
        };
        client.store_auth_if_needed(&self.address, &auth).await;
        let tag = if tag.starts_with("sha256:") { "unused" } else { tag };
        Ok((
            client,
            Reference::with_tag(self.address.clone(), repository.to_owned(), tag.to_owned()),
        ))
    }
}

/// Makes `tls.crt` and `tls.key` for loopback and returns the certificate.
fn certificate(dir: &std::path::Path) -> Result<String> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    std::fs::write(dir.join("tls.key"), made.signing_key.serialize_pem())?;
    std::fs::write(dir.join("tls.crt"), made.cert.pem())?;
    Ok(made.cert.pem())
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Both fail only when the process is gone already.
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}
