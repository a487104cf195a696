//! Certificates: one authority per cluster, a leaf per purpose, and TLS settings that use them.
//!
//! [`init`] runs as root and makes everything; of what runs later only the signer ([`requests::Signer`]), a process of its
//! own that serves nothing, holds the authority's key. Server and
//! client certificates are separate (extended key usage), so no server can pose as a client. [`tls`] turns
//! the files into rustls settings: TLS 1.3 only, client certificates demanded. Both daemons use this crate.
//! [`token_key`] keeps the key that signs tokens of service accounts, which the running control plane does hold.
//!
//! The image gate's key is made here too, see [`verdict`].
//!
//! Non-goals: revocation (the API server refuses nodes that were deleted), and signing for anybody but nodes.
//!
//! Start at [`init`] and [`tls::Credentials`].

#![forbid(unsafe_code)]

mod authority;
mod files;
mod kubeconfig;
pub mod requests;
pub mod shares;
pub mod tls;
pub mod token_key;
pub mod verdict;

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use api::annotations::{
    GROUP_BOOTSTRAPPERS, GROUP_MASTERS, GROUP_NODES, USER_APISERVER, USER_BOOTSTRAP_PREFIX, USER_CONTROLLERS,
    USER_NODE_PREFIX, USER_SIGNER,
};

use authority::{Authority, Leaf, Purpose};
use files::Dir;

pub use kubeconfig::kubeconfig;

/// Name in the API server's certificate that clients verify. An address would prove less: on one machine
/// the node has the same.
pub const API_SERVER_NAME: &str = "apiserver.palisade.internal";

/// How long a node may take from being invited to asking.
const BOOTSTRAP_LIFETIME: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// What [`init`] needs to know.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Owner, user and group, of `control/`: the account that palisade-control runs as.
    pub control_uid: u32,
    /// Name of this machine's node.
    pub node_name: String,
    /// Addresses and DNS names under which people reach the API server.
    pub api_names: Vec<String>,
    /// Addresses and DNS names of the node beside [`node_server_name`].
    pub node_names: Vec<String>,
    /// URL of the API server in the kubeconfig, such as `https://127.0.0.1:6443`.
    pub api_url: String,
}

/// What [`init`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InitReport {
    /// Certificates that were made, or made anew.
    pub issued: Vec<PathBuf>,
    /// Certificates that were fine as they were.
    pub kept: Vec<PathBuf>,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
}

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or directory could not be read, written or handed to its owner.
    #[error("{}: {operation}", path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// What was attempted.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file is far larger than what belongs there.
    #[error("{} is no file of at most {} bytes", path.display(), files::MAX_BYTES)]
    NotAFile {
        /// Where.
        path: PathBuf,
    },
    /// Others can read a private file.
    #[error("{} has mode {mode:o}; run chmod 600 on it", path.display())]
    Mode {
        /// Where.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The authority's certificate and key are not both there, do not match, or are not readable.
    #[error("{}: {problem}; restore ca.crt and ca.key, or remove both to start a new cluster", path.display())]
    Authority {
        /// Directory of the authority.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// There is no public key of the image gate.
    #[error("{} is missing; palisade-control init makes it", path.display())]
    NoGateKey {
        /// Where it should be.
        path: PathBuf,
    },
    /// A name cannot stand in a certificate.
    #[error("{name:?} cannot stand in a certificate")]
    Name {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A key or certificate could not be made.
    #[error("certificate for {subject:?}")]
    Issue {
        /// Common name.
        subject: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The kubeconfig would be garbled.
    #[error(
        "API server URL {url:?} must start with https:// and have no spaces, quotes or control characters"
    )]
    Url {
        /// The URL.
        url: String,
    },
}

/// Name in a node's server certificate that the API server verifies.
pub fn node_server_name(node: &str) -> String {
    format!("{node}.node.palisade.internal")
}

/// Makes the authority and all certificates below `state_dir`, and renews those that are missing, damaged,
/// about to expire or no longer match `options`. Running it again changes nothing else. Must run as the user
/// that owns `state_dir` (root, as it hands files to `control_uid`).
pub fn init(state_dir: &Path, options: &InitOptions) -> Result<InitReport, PkiError> {
    if !kubeconfig::url_is_plain(&options.api_url) {
        return Err(PkiError::Url {
            url: options.api_url.clone(),
        });
    }
    let state = Dir::create_all(state_dir)?;
    let pki = state.subdir("pki", 0o700, None)?;
    let now = SystemTime::now();
    let authority = Authority::load_or_create(&pki, now)?;
    let mut report = InitReport::default();

    let control_owner = Some(options.control_uid);
    let control = state
        .subdir("control", 0o700, control_owner)?
        .subdir("tls", 0o700, control_owner)?;
    let agent = state.subdir("agent", 0o700, None)?.subdir("tls", 0o700, None)?;
    for (dir, owner) in [(&control, control_owner), (&agent, None)] {
        dir.replace("ca.crt", authority.certificate_pem().as_bytes(), 0o644, owner)?;
    }
    let public = verdict::ensure(&control, control_owner)?;
    for (dir, owner) in [(&control, control_owner), (&agent, None)] {
        dir.replace(verdict::PUBLIC_FILE, public.as_bytes(), 0o644, owner)?;
    }

    let node_user = format!("{USER_NODE_PREFIX}{}", options.node_name);
    let api_names = [&[API_SERVER_NAME.to_owned()], options.api_names.as_slice()].concat();
    let node_names = [
        &[node_server_name(&options.node_name)],
        options.node_names.as_slice(),
    ]
    .concat();
    let server = |user: &str, names| Leaf {
        user: user.to_owned(),
        group: None,
        purpose: Purpose::Server { names },
    };
    let client = |user: &str, group: Option<&'static str>| Leaf {
        user: user.to_owned(),
        group,
        purpose: Purpose::Client,
    };
    let leaves = [
        (
            &control,
            control_owner,
            "server",
            server("palisade-apiserver", api_names),
        ),
        (
            &control,
            control_owner,
            "apiserver-client",
            client(USER_APISERVER, None),
        ),
        (
            &control,
            control_owner,
            "controllers",
            client(USER_CONTROLLERS, None),
        ),
        (&agent, None, "server", server(&node_user, node_names)),
        (&agent, None, "client", client(&node_user, Some(GROUP_NODES))),
        (&pki, None, "admin", client("palisade-admin", Some(GROUP_MASTERS))),
        (&pki, None, "signer", client(USER_SIGNER, None)),
    ];
    for (dir, owner, name, leaf) in &leaves {
        let path = dir.path().join(format!("{name}.crt"));
        match authority.ensure(dir, *owner, name, leaf, now)? {
            true => report.issued.push(path),
            false => report.kept.push(path),
        }
    }

    let text = kubeconfig(
        &options.api_url,
        authority.certificate_pem(),
        &pki.read_text("admin.crt")?.unwrap_or_default(),
        &pki.read_text("admin.key")?.unwrap_or_default(),
    );
    state.replace("admin.kubeconfig", text.as_bytes(), 0o600, None)?;
    report.kubeconfig = state.path().join("admin.kubeconfig");
    Ok(report)
}

/// Makes `ca.crt`, `verdict.pub`, `bootstrap.crt` and `bootstrap.key` in `directory`: an identity that may ask for the
/// first certificate of the node called `node_name`, and do nothing else, for a day; and what the node believes the API
/// server and the image gate by, which is trusted for having come the same way. Must run as the user that owns
/// `state_dir`.
pub fn bootstrap(state_dir: &Path, node_name: &str, directory: &Path) -> Result<(), PkiError> {
    let now = SystemTime::now();
    let state = Dir::create_all(state_dir)?;
    let authority = Authority::load(&state.subdir("pki", 0o700, None)?, now)?;
    // What this machine's node believes, and not what the control plane says: the file there is not root's.
    let agent = state.subdir("agent", 0o700, None)?.subdir("tls", 0o700, None)?;
    let gate = agent
        .read_text(verdict::PUBLIC_FILE)?
        .ok_or_else(|| PkiError::NoGateKey {
            path: agent.path().join(verdict::PUBLIC_FILE),
        })?;
    let target = Dir::create_all(directory)?;
    target.replace("ca.crt", authority.certificate_pem().as_bytes(), 0o644, None)?;
    target.replace(verdict::PUBLIC_FILE, gate.as_bytes(), 0o644, None)?;
    let leaf = Leaf {
        user: format!("{USER_BOOTSTRAP_PREFIX}{node_name}"),
        group: Some(GROUP_BOOTSTRAPPERS),
        purpose: Purpose::Client,
    };
    authority.hand_out(&target, "bootstrap", &leaf, BOOTSTRAP_LIFETIME, now)
}
