//! Certificates as `init` makes them, and handshakes with them.

#![expect(
    clippy::unwrap_used,
    reason = "clippy sees tests only in functions marked as such, not in their helpers"
)]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use control_pki::{
    API_SERVER_NAME, InitOptions, PkiError, bootstrap, init, node_server_name,
    tls::{ALPN_HTTP, ClientCertificate, Credentials, TlsError, client_config, peer, server_config},
    verdict,
};
use rustls::{ClientConfig, ServerConfig, version::TLS12};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const CONTROL: u32 = 64100;

fn options() -> InitOptions {
    InitOptions {
        control_uid: CONTROL,
        node_name: "node-1".to_owned(),
        api_names: vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
        node_names: vec!["127.0.0.1".to_owned()],
        api_url: "https://127.0.0.1:6443".to_owned(),
    }
}

fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, u32)> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        found.insert(
            path.strip_prefix(root).unwrap().to_owned(),
            (metadata.uid(), metadata.mode() & 0o7777),
        );
        if metadata.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

/// One handshake over memory: the user that the server saw, or the failure of either side.
async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: &str,
) -> Result<Option<String>, String> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let serve = async {
        let mut stream = TlsAcceptor::from(server)
            .accept(far)
            .await
            .map_err(|e| format!("server: {e}"))?;
        // In TLS 1.3 the client is done before the server has looked at its certificate.
        stream.write_all(b"!").await.map_err(|e| format!("server: {e}"))?;
        stream.flush().await.map_err(|e| format!("server: {e}"))?;
        let who = peer(stream.get_ref().1).map_err(|e| format!("server: {e}"))?;
        Ok(who.map(|w| w.identity().user.clone()))
    };
    let connect = async {
        let mut stream = TlsConnector::from(client)
            .connect(name, near)
            .await
            .map_err(|e| format!("client: {e}"))?;
        stream.read_u8().await.map_err(|e| format!("client: {e}"))
    };
    let (served, connected): (Result<_, String>, _) = tokio::join!(serve, connect);
    connected.and(served)
}

#[test]
fn makes_every_file_for_its_owner_and_nobody_else() {
    let tmp = tempfile::tempdir().unwrap();
    let report = init(&tmp.path().join("s"), &options()).unwrap();
    assert_eq!((report.issued.len(), report.kept.len()), (7, 0));

    let root = fs::metadata(tmp.path()).unwrap().uid();
    let text: Vec<_> = tree(&tmp.path().join("s"))
        .into_iter()
        .map(|(path, (uid, mode))| {
            let owner = if uid == CONTROL {
                "control"
            } else if uid == root {
                "root"
            } else {
                "?"
            };
            format!("{owner} {mode:o} /{}", path.display())
        })
        .collect();
    assert_eq!(
        text,
        [
            "root 711 /",
            "root 600 /admin.kubeconfig",
            "root 700 /agent",
            "root 700 /agent/tls",
            "root 644 /agent/tls/ca.crt",
            "root 644 /agent/tls/client.crt",
            "root 600 /agent/tls/client.key",
            "root 644 /agent/tls/server.crt",
            "root 600 /agent/tls/server.key",
            "root 644 /agent/tls/verdict.pub",
            "control 700 /control",
            "control 700 /control/tls",
            "control 644 /control/tls/apiserver-client.crt",
            "control 600 /control/tls/apiserver-client.key",
            "control 644 /control/tls/ca.crt",
            "control 644 /control/tls/controllers.crt",
            "control 600 /control/tls/controllers.key",
            "control 644 /control/tls/server.crt",
            "control 600 /control/tls/server.key",
            "control 600 /control/tls/verdict.key",
            "control 644 /control/tls/verdict.pub",
            "root 700 /pki",
            "root 644 /pki/admin.crt",
            "root 600 /pki/admin.key",
            "root 644 /pki/ca.crt",
            "root 600 /pki/ca.key",
            "root 644 /pki/signer.crt",
            "root 600 /pki/signer.key",
        ]
    );
}

#[test]
fn running_again_keeps_what_is_fine_and_renews_what_is_not() {
    let tmp = tempfile::tempdir().unwrap();
    let first = init(tmp.path(), &options()).unwrap();
    let before = fs::read(&first.kubeconfig).unwrap();
    let again = init(tmp.path(), &options()).unwrap();
    assert_eq!((again.issued.len(), again.kept.len()), (0, 7));
    assert_eq!(fs::read(&again.kubeconfig).unwrap(), before);

    fs::remove_file(tmp.path().join("agent/tls/client.key")).unwrap();
    let mut changed = options();
    changed.api_names.push("lab.example".to_owned());
    let third = init(tmp.path(), &changed).unwrap();
    assert_eq!(
        third.issued,
        [
            tmp.path().join("control/tls/server.crt"),
            tmp.path().join("agent/tls/client.crt")
        ]
    );

    let mut bad = options();
    bad.api_url = "https://x\"\nusers: []".to_owned();
    assert!(init(tmp.path(), &bad).is_err());
}

#[tokio::test]
async fn each_certificate_works_on_its_own_side_only() {
    let tmp = tempfile::tempdir().unwrap();
    init(tmp.path(), &options()).unwrap();
    let other = tempfile::tempdir().unwrap();
    init(other.path(), &options()).unwrap();
    let load = |state: &Path, dir: &str, name: &str| Credentials::load(&state.join(dir), name).unwrap();
    let api =
        |clients| server_config(&load(tmp.path(), "control/tls", "server"), clients, ALPN_HTTP).unwrap();
    let client =
        |state: &Path, dir: &str, name: &str| client_config(&load(state, dir, name), ALPN_HTTP).unwrap();
    let required = ClientCertificate::Required;

    for (dir, name, user) in [
        ("agent/tls", "client", "system:node:node-1"),
        ("control/tls", "controllers", "system:palisade-controllers"),
        ("control/tls", "apiserver-client", "system:palisade-apiserver"),
    ] {
        let seen = handshake(client(tmp.path(), dir, name), api(required), API_SERVER_NAME).await;
        assert_eq!(seen, Ok(Some(user.to_owned())));
    }

    let seen = handshake(
        client(tmp.path(), "agent/tls", "server"),
        api(required),
        API_SERVER_NAME,
    )
    .await;
    assert!(seen.is_err(), "a server's certificate is no client's: {seen:?}");

    let node = server_config(&load(tmp.path(), "agent/tls", "server"), required, ALPN_HTTP).unwrap();
    let seen = handshake(
        client(tmp.path(), "control/tls", "apiserver-client"),
        node.clone(),
        &node_server_name("node-1"),
    )
    .await;
    assert_eq!(seen, Ok(Some("system:palisade-apiserver".to_owned())));
    for name in [API_SERVER_NAME.to_owned(), node_server_name("node-2")] {
        let seen = handshake(
            client(tmp.path(), "control/tls", "controllers"),
            node.clone(),
            &name,
        )
        .await;
        assert!(
            seen.is_err(),
            "a node is neither the API server nor another node: {seen:?}"
        );
    }

    let seen = handshake(
        client(other.path(), "agent/tls", "client"),
        api(required),
        API_SERVER_NAME,
    )
    .await;
    assert!(
        seen.is_err(),
        "another cluster's server is not believed: {seen:?}"
    );

    // Trusts the right authority, shows the wrong one's certificate.
    fs::copy(
        tmp.path().join("pki/ca.crt"),
        other.path().join("agent/tls/ca.crt"),
    )
    .unwrap();
    for clients in [required, ClientCertificate::Optional] {
        let seen = handshake(
            client(other.path(), "agent/tls", "client"),
            api(clients),
            API_SERVER_NAME,
        )
        .await;
        assert!(seen.is_err(), "another cluster's client is refused: {seen:?}");
    }
}

#[tokio::test]
async fn no_certificate_and_old_tls() {
    let tmp = tempfile::tempdir().unwrap();
    init(tmp.path(), &options()).unwrap();
    let tls = tmp.path().join("control/tls");
    let server = Credentials::load(&tls, "server").unwrap();
    let api = |clients| server_config(&server, clients, &[]).unwrap();

    let client = |versions: &[&'static rustls::SupportedProtocolVersion]| {
        use rustls_pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(rustls_pki_types::CertificateDer::from_pem_file(tls.join("ca.crt")).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap();
        Arc::new(config.with_root_certificates(roots).with_no_client_auth())
    };
    let tls13: &[&_] = &[&rustls::version::TLS13];
    assert_eq!(
        handshake(client(tls13), api(ClientCertificate::Optional), API_SERVER_NAME).await,
        Ok(None)
    );
    let refused = handshake(client(tls13), api(ClientCertificate::Required), API_SERVER_NAME)
        .await
        .unwrap_err();
    assert!(refused.to_lowercase().contains("certificate"), "{refused}");
    let refused = handshake(
        client(&[&TLS12]),
        api(ClientCertificate::Optional),
        API_SERVER_NAME,
    )
    .await
    .unwrap_err();
    assert!(refused.to_lowercase().contains("version"), "{refused}");
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    let tmp = tempfile::tempdir().unwrap();
    init(tmp.path(), &options()).unwrap();
    let key = tmp.path().join("agent/tls/client.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let loaded = Credentials::load(&tmp.path().join("agent/tls"), "client");
    assert!(matches!(loaded, Err(TlsError::KeyMode { mode: 0o644, .. })));
}

#[test]
fn an_invitation_has_all_that_a_node_believes_by() {
    let tmp = tempfile::tempdir().unwrap();
    let (state, out) = (tmp.path().join("state"), tmp.path().join("invitation"));
    init(&state, &options()).unwrap();
    // The control plane can write its own copy, and is not asked.
    fs::write(state.join("control/tls/verdict.pub"), "another key").unwrap();
    bootstrap(&state, "node-2", &out).unwrap();
    for file in ["ca.crt", "verdict.pub"] {
        let (given, own) = (
            fs::read(out.join(file)),
            fs::read(state.join("agent/tls").join(file)),
        );
        assert_eq!(given.unwrap(), own.unwrap(), "{file}");
    }
    assert!(verdict::Verifier::load(&out).is_ok());
    assert!(Credentials::load(&out, "bootstrap").is_ok());
    fs::remove_file(state.join("agent/tls/verdict.pub")).unwrap();
    let refused = bootstrap(&state, "node-2", &out);
    assert!(
        matches!(refused, Err(PkiError::NoGateKey { .. })),
        "a node could start nothing"
    );
}
