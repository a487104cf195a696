//! The name service that pods ask, and what it teaches policy: which address has which name.
//!
//! Rules may name the far end (`domains`). The node believes one source for that: the answers of its own
//! upstream resolvers, seen as it passes them on. An answer reaches the pod only after the packet programs know
//! its addresses, so the first connection is judged by the name; [`Settle`] is how the resolver waits for that.
//!
//! It forwards and never recurses. It keeps no cache of answers, so a pod cannot place one in another's way; what
//! it keeps is bounded, and only for names that some policy asks for ([`Names::want`]).
//!
//! Non-goals: names of services and pods, DNSSEC validation (passed through), DNS over TLS.
//!
//! Entry point: [`Resolver::start`].

#![forbid(unsafe_code)]

mod learned;
mod message;
mod server;
mod shares;
mod upstream;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use futures::future::BoxFuture;
use ipnet::IpNet;
use policies_ir::policy::DomainMatch;
use tokio_util::sync::CancellationToken;

pub use crate::{
    learned::{InUse, Limits},
    server::StartError,
};
use crate::{
    learned::{Learned, Saved, Taught},
    message::Answer,
};

/// Upstream resolvers that are asked; more are ignored, as by every resolver library.
pub const MAX_UPSTREAMS: usize = 3;

/// Waits until the packet programs know the names as they are now.
pub type Settle = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Where to serve and whom to ask.
#[derive(Debug, Clone)]
pub struct ResolverConfig {
    /// Where pods ask, by UDP and by TCP. Need not be an address of the node yet.
    pub listen: SocketAddr,
    /// Who is asked in turn; at most [`MAX_UPSTREAMS`]. None is a resolver that answers every question with
    /// SERVFAIL.
    pub upstreams: Vec<SocketAddr>,
    /// Whose questions are answered; others' are dropped.
    pub clients: Vec<IpNet>,
}

/// The running name service. It ends with the token it was started with.
pub struct Resolver;

impl Resolver {
    /// Binds both sockets and serves from tasks until `shutdown`. Must be called inside a tokio runtime.
    pub fn start(
        config: ResolverConfig,
        names: Arc<Names>,
        settle: Settle,
        shutdown: CancellationToken,
    ) -> Result<(), StartError> {
        server::start(config, names, settle, shutdown)
    }
}

/// Names of addresses, shared by who learns them and who compiles policy.
pub struct Names {
    learned: Mutex<Learned>,
    file: Option<PathBuf>,
}

/// Learned names could not be kept for the next agent.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the learned names to {path}")]
pub struct SaveError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

/// Longest file of learned names that is read: 512 pairs of each of some hundred pods.
const MAX_FILE_BYTES: u64 = 32 * 1024 * 1024;

impl Names {
    /// Nothing learned and nothing wanted.
    pub fn new(limits: Limits) -> Self {
        Self {
            learned: Mutex::new(Learned::new(limits)),
            file: None,
        }
    }

    /// Goes on with the names that an earlier agent left in `file`, so that its end cuts no flow, and keeps them
    /// there with [`Names::save`]. What cannot be read is nothing: pods ask again.
    pub fn open(limits: Limits, file: PathBuf) -> Self {
        let mut learned = Learned::new(limits);
        match read(&file) {
            Ok(saved) => learned.restore(saved, now()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %file.display(), %error, "learned names are lost"),
        }
        Self {
            learned: Mutex::new(learned),
            file: Some(file),
        }
    }

    /// Writes what changed since the last time, to the file that the names were opened with.
    pub fn save(&self) -> Result<(), SaveError> {
        let Some(path) = &self.file else { return Ok(()) };
        let Some(saved) = self.lock().take_unsaved(now()) else {
            return Ok(());
        };
        write(path, &saved).map_err(|source| {
            self.lock().keep_unsaved();
            SaveError {
                path: path.clone(),
                source,
            }
        })
    }

    /// Names of each address, in lower case without the final dot.
    pub fn current(&self) -> BTreeMap<IpAddr, BTreeSet<String>> {
        self.lock().names()
    }

    /// Names that fit one of `patterns` are learned from now on, and no others are kept.
    pub fn want(&self, patterns: BTreeSet<DomainMatch>) {
        self.lock().want(patterns);
    }

    /// Addresses in `nets`, those of pods and nodes, have no names from now on: nobody opens a way inside by an answer.
    pub fn keep_out(&self, nets: BTreeSet<IpNet>) {
        self.lock().keep_out(nets);
    }

    /// Forgets names that are too old, save those `in_use`: flows that were allowed by a name outlive the answer that taught it.
    /// Whether anything changed.
    pub fn expire(&self, now: Instant, in_use: &InUse) -> bool {
        self.lock().expire(now, in_use)
    }

    /// Addresses with names that are old enough to be forgotten unless they are in use.
    pub fn overdue(&self, now: Instant) -> BTreeSet<IpAddr> {
        self.lock().overdue(now)
    }

    fn learn(&self, now: Instant, client: IpAddr, answer: &Answer) -> Taught {
        self.lock().learn(now, client, answer)
    }

    /// What is to be settled before an answer of `generation` may go out: none if the packet programs know it already.
    fn unsettled(&self, generation: u64) -> Option<u64> {
        let learned = self.lock();
        (!learned.is_settled(generation)).then(|| learned.generation())
    }

    /// Notes that the packet programs know everything of `generation` and before.
    fn settled(&self, generation: u64) {
        self.lock().settled(generation);
    }

    /// Each change leaves the table whole, so a panic elsewhere while it was locked does no harm.
    fn lock(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// This moment by the clock that never jumps, and by that which a later process can read.
fn now() -> (Instant, Duration) {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    (Instant::now(), since_1970.unwrap_or_default())
}

fn read(path: &Path) -> std::io::Result<Vec<Saved>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_FILE_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Replaced as a whole, and not synced: it matters only while the machine stays up.
fn write(path: &Path, saved: &[Saved]) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(&serde_json::to_vec(saved)?)?;
    file.persist(path)?;
    Ok(())
}
