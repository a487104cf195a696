//! A server on a free port with its own state directory, and clients for it.

use std::{
    convert::Infallible,
    net::Ipv4Addr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use api::{
    Digest, ImageRef,
    palisade::{
        API_VERSION, ImagePolicy, ImageScan, ImageScanSpec, ImageScanStatus, ScanVerdict, image_scan_name,
    },
};
use async_trait::async_trait;
use control_apiserver::{Capacities, Config, ImageGate, Judgement, Refusal};
use control_pki::tls::{ALPN_HTTP, ClientCertificate, Credentials, client_config, server_config};
use control_store::{Embedded, Keyring};
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::{
    body::{Body, Bytes, Frame, Incoming},
    client::conn::http1::SendRequest,
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Secret;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Name of the node that the cluster is made with.
pub(crate) const NODE: &str = "node-a";

/// A running server; ends with the test.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    port: u16,
    shutdown: CancellationToken,
    server: Option<JoinHandle<()>>,
}

/// Refuses images whose repository contains `vulnerable`, pins the others.
struct FakeGate;

impl Cluster {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let options = control_pki::InitOptions {
            control_uid: 0,
            node_name: NODE.to_owned(),
            api_names: vec!["127.0.0.1".to_owned()],
            node_names: vec!["127.0.0.1".to_owned()],
            api_url: format!("https://127.0.0.1:{port}"),
        };
        control_pki::init(dir.path(), &options).unwrap();
        let mut cluster = Self {
            dir,
            port,
            shutdown: CancellationToken::new(),
            server: None,
        };
        cluster.serve(listener);
        cluster
    }

    /// Ends the server and starts it again on the same state.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.shutdown = CancellationToken::new();
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.serve(listener);
    }

    pub(crate) async fn stop(&mut self) {
        self.shutdown.cancel();
        if let Some(server) = self.server.take() {
            server.await.unwrap();
        }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    /// A path below the state directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A client with the administrator's certificate.
    pub(crate) fn admin(&self) -> Client {
        let pki = self.dir.path().join("pki");
        self.client(Some(&Credentials::load(&pki, "admin").unwrap()))
    }

    /// A client with the certificate of [`NODE`].
    pub(crate) fn node(&self) -> Client {
        self.client(Some(
            &Credentials::load(&self.dir.path().join("agent/tls"), "client").unwrap(),
        ))
    }

    /// A client with a certificate of the cluster's authority for `user` in `group`.
    pub(crate) fn user(&self, user: &str, group: Option<&str>) -> Client {
        self.user_for(user, group, Duration::from_secs(3600))
    }

    /// The same; the certificate lasts for `validity`.
    pub(crate) fn user_for(&self, user: &str, group: Option<&str>, validity: Duration) -> Client {
        let pki = self.dir.path().join("pki");
        let read = |name: &str| std::fs::read_to_string(pki.join(name)).unwrap();
        let issuer =
            Issuer::from_ca_cert_pem(&read("ca.crt"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = SystemTime::now().into();
        params.not_after = (SystemTime::now() + validity).into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let own = tempfile::tempdir().unwrap();
        std::fs::write(own.path().join("ca.crt"), read("ca.crt")).unwrap();
        std::fs::write(own.path().join("c.crt"), certificate.pem()).unwrap();
        std::fs::write(own.path().join("c.key"), key.serialize_pem()).unwrap();
        std::fs::set_permissions(
            own.path().join("c.key"),
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        self.client(Some(&Credentials::load(own.path(), "c").unwrap()))
    }

    /// A client with `NAME.crt` and `NAME.key` of a directory.
    pub(crate) fn holder(&self, dir: &std::path::Path, name: &str) -> Client {
        self.client(Some(&Credentials::load(dir, name).unwrap()))
    }

    /// The directory of an invitation for a node.
    pub(crate) fn invite(&self, node: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        control_pki::bootstrap(self.dir.path(), node, dir.path()).unwrap();
        dir
    }

    /// A client without a certificate.
    pub(crate) fn nobody(&self) -> Client {
        self.client(None)
    }

    fn client(&self, credentials: Option<&Credentials>) -> Client {
        let tls = match credentials {
            Some(credentials) => client_config(credentials, &[b"http/1.1"]).unwrap(),
            None => {
                let ca = std::fs::read(self.dir.path().join("pki/ca.crt")).unwrap();
                let mut roots = rustls::RootCertStore::empty();
                let ca: Result<Vec<_>, _> = rustls::pki_types::pem::PemObject::pem_slice_iter(&ca).collect();
                for certificate in ca.unwrap() {
                    roots.add(certificate).unwrap();
                }
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                Arc::new(
                    rustls::ClientConfig::builder_with_provider(provider)
                        .with_protocol_versions(&[&rustls::version::TLS13])
                        .unwrap()
                        .with_root_certificates(roots)
                        .with_no_client_auth(),
                )
            }
        };
        Client {
            tls,
            source: Ipv4Addr::LOCALHOST,
            port: self.port,
            token: None,
            accept: None,
        }
    }

    fn serve(&mut self, listener: TcpListener) {
        let control = self.dir.path().join("control");
        let tls = control.join("tls");
        let keyring = Keyring::load_or_create(&control.join("kek")).unwrap();
        let config = Config {
            store: Arc::new(Embedded::open(&control.join("store.redb"), keyring).unwrap()),
            gate: Arc::new(FakeGate),
            tls: server_config(
                &Credentials::load(&tls, "server").unwrap(),
                ClientCertificate::Optional,
                ALPN_HTTP,
            )
            .unwrap(),
            node_tls: client_config(
                &Credentials::load(&tls, "apiserver-client").unwrap(),
                &[b"http/1.1"],
            )
            .unwrap(),
            token_keys: Arc::new(control_pki::token_key::load_or_create(&control, "token.key").unwrap()),
            service_range: "10.99.0.0/28".parse().unwrap(),
            // Few, so that little is too much.
            capacities: Capacities {
                sources: 300,
                ..Capacities::KERNEL
            },
        };
        let shutdown = self.shutdown.clone();
        self.server = Some(tokio::spawn(async move {
            control_apiserver::serve(listener, config, shutdown)
                .await
                .unwrap();
        }));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// One identity; each request is a connection of its own.
pub(crate) struct Client {
    tls: Arc<rustls::ClientConfig>,
    source: Ipv4Addr,
    port: u16,
    token: Option<String>,
    accept: Option<&'static str>,
}

impl Client {
    /// The same with a token in each request of [`Client::raw`] and what is made of it.
    pub(crate) fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// The same with a header `Accept` in each request of [`Client::raw`] and what is made of it.
    pub(crate) fn accepting(mut self, form: &'static str) -> Self {
        self.accept = Some(form);
        self
    }

    /// The same from another address of loopback.
    pub(crate) fn from(mut self, source: Ipv4Addr) -> Self {
        self.source = source;
        self
    }

    /// Sends a request and returns status code and JSON body (or the text as a JSON string).
    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        let body = body.map(|body| ("application/json", body.to_string()));
        let response = self.raw(method, path, body).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        (code, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.send(Method::DELETE, path, body).await
    }

    pub(crate) async fn patch(&self, path: &str, kind: &'static str, body: &Value) -> (u16, Value) {
        let response = self
            .raw(Method::PATCH, path, Some((kind, body.to_string())))
            .await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap())
    }

    /// Sends a request and returns the head with the body still to come.
    pub(crate) async fn raw(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, String)>,
    ) -> Response<Incoming> {
        let mut sender = self.connect::<Full<Bytes>>().await;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "test");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(accept) = self.accept {
            request = request.header(header::ACCEPT, accept);
        }
        let (content_type, body) = body.unzip();
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .unwrap();
        sender.send_request(request).await.unwrap()
    }

    /// Sends the head of a `POST` with one more header and never its body.
    pub(crate) async fn announce(&self, path: &str, name: &str, value: &str) -> Response<Incoming> {
        let request = Request::post(path)
            .header(header::HOST, "test")
            .header(header::CONTENT_TYPE, "application/json")
            .header(name, value)
            .body(StreamBody::new(futures::stream::pending::<
                Result<Frame<Bytes>, Infallible>,
            >()))
            .unwrap();
        let mut sender = self.connect().await;
        let answer = tokio::time::timeout(Duration::from_secs(10), sender.send_request(request));
        answer.await.expect("an answer within 10 s").unwrap()
    }

    /// Asks for an upgrade: the head of the answer and, if it was granted, the connection.
    pub(crate) async fn upgrade(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (Response<()>, Option<TokioIo<Upgraded>>) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "test")
            .header(header::CONNECTION, "Upgrade");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut sender = self.connect::<Full<Bytes>>().await;
        let answer = sender.send_request(request.body(Full::default()).unwrap());
        let mut answer = answer.await.unwrap();
        let upgraded = match answer.status() {
            http::StatusCode::SWITCHING_PROTOCOLS => Some(hyper::upgrade::on(&mut answer).await.unwrap()),
            _ => None,
        };
        (answer.map(drop), upgraded.map(TokioIo::new))
    }

    /// A connection on which nothing was said.
    pub(crate) async fn dial(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((self.source, 0).into()).unwrap();
        socket
            .connect((Ipv4Addr::LOCALHOST, self.port).into())
            .await
            .unwrap()
    }

    /// A connection of its own.
    pub(crate) async fn connect<B>(&self) -> SendRequest<B>
    where
        B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        let stream = self.dial().await;
        let name = ServerName::try_from(control_pki::API_SERVER_NAME).unwrap();
        let stream = TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await
            .unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }
}

#[async_trait]
impl ImageGate for FakeGate {
    async fn judge(
        &self,
        _namespace: &str,
        image: &ImageRef,
        _policies: &[ImagePolicy],
        secrets: &[Secret],
    ) -> Result<Judgement, Refusal> {
        if image.repository.contains("private") && !secrets.iter().any(|s| api::pull_secret::of(s).is_some())
        {
            return Err(Refusal {
                message: format!("registry {} refuses access without credentials", image.registry),
                scan: None,
            });
        }
        let digest = image
            .digest
            .unwrap_or_else(|| Digest::of(image.to_string().as_bytes()));
        let verdict = match image.repository.contains("vulnerable") {
            true => ScanVerdict::Refused,
            false => ScanVerdict::Pass,
        };
        let scan = scan(image, digest, verdict);
        match verdict {
            ScanVerdict::Pass => Ok(Judgement {
                pinned: digest,
                scan,
                verdict: "signed".to_owned(),
            }),
            _ => Err(Refusal {
                message: "CVE-2026-0001 in openssl 3.0.1 is CRITICAL (fixed in 3.0.2)".to_owned(),
                scan: Some(scan),
            }),
        }
    }
}

fn scan(image: &ImageRef, digest: Digest, verdict: ScanVerdict) -> ImageScan {
    let metadata = serde_json::from_value(serde_json::json!({"name": image_scan_name(&digest)})).unwrap();
    ImageScan {
        api_version: API_VERSION.to_owned(),
        kind: "ImageScan".to_owned(),
        metadata,
        spec: ImageScanSpec {
            image: image.to_string(),
            digest,
        },
        status: ImageScanStatus {
            verdict,
            reasons: Vec::new(),
            counts: Default::default(),
            findings: Vec::new(),
            findings_omitted: 0,
            os: Some("alpine 3.20.1".to_owned()),
            packages: 1,
            db_updated_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            db_hash: Digest::of(b"db"),
            policy_hash: Digest::of(b"policy"),
            scanner: "fake 1".to_owned(),
            scanner_hash: Digest::of(b"fake"),
            scanned_at: "2026-01-02T00:00:00Z".parse().unwrap(),
        },
    }
}
