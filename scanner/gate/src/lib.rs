//! Decides whether an image may run: resolve, verify, scan, judge.
//!
//! [`Gate::judge`] pins the reference to a digest, fetches every byte and verifies it (`images/fetch`),
//! runs the pinned Trivy binary over it in a jail without network (`agent/sandbox`), reads the report and
//! judges it under the image policies (`scanner/report`). Scans are cached by image digest, database and
//! scanner; policies are judged anew each time, so an exemption that expires counts from that moment.
//! Everything that goes wrong is a [`GateError`], and none of these admits anything.
//!
//! Non-goals: keeping the database fresh (the operator's job, its age is judged), signatures, storing
//! results (the caller records the [`ImageScan`]).

#![forbid(unsafe_code)]

mod bolt;
mod db;
mod error;
mod scanner;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use api::{
    Digest, ImageRef,
    palisade::{
        API_VERSION, Finding, ImagePolicy, ImageScan, ImageScanSpec, ImageScanStatus, MAX_FINDINGS,
        image_scan_name,
    },
};
use images_fetch::{Cache, DigestLocks, FetchConfig, Fetcher, VerifiedImage};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use scanner_report::{DbMetadata, Judgement, Report, ScanContext, Subject};
use tokio::sync::Semaphore;

pub use bolt::BoltError;
pub use error::GateError;
pub use images_fetch::{Keyring, KeyringError, Limits};

use db::Db;
use scanner::Scanner;

/// A scan takes about 110 MB; more at once than this wait.
const PARALLEL_SCANS: usize = 2;
/// Scan results kept in memory; the oldest go first.
const MAX_CACHED_SCANS: usize = 512;
/// Scans thrown away because the database was replaced meanwhile, before giving up.
const MAX_DB_CHANGES: u32 = 3;

/// What the gate works with.
#[derive(Debug, Clone)]
pub struct GateConfig {
    /// The Trivy binary.
    pub trivy_path: PathBuf,
    /// Its SHA-256; another binary is not run.
    pub trivy_sha256: Digest,
    /// Directory with `trivy.db` and `metadata.json`.
    pub db_dir: PathBuf,
    /// Directory for images and scans; made if absent, used by this gate only.
    pub cache_dir: PathBuf,
    /// Bytes of image blobs to keep for the next scan.
    pub cache_max_bytes: u64,
    /// Root of the layouts that `oci-layout.local/NAME:TAG` names.
    pub layout_root: PathBuf,
    /// PEM files with authorities to trust for registries besides those of the machine.
    pub ca_files: Vec<PathBuf>,
    /// Directory with the configuration of registries and mirrors, see `images_fetch::Hosts`.
    pub hosts_dir: Option<PathBuf>,
    /// Sizes beyond which an image is refused.
    pub limits: Limits,
    /// Longest time to fetch an image.
    pub fetch_timeout: Duration,
    /// Longest time for Trivy to scan it.
    pub scan_timeout: Duration,
    /// A program whose `jail` subcommand is `agent_sandbox::jail::main`; usually the running one.
    pub jail_exe: PathBuf,
}

/// The gate. Shared by reference; all methods may run concurrently.
#[derive(Debug)]
pub struct Gate {
    fetcher: Fetcher,
    scans: Arc<Scans>,
    cache_max_bytes: u64,
    /// Held, by image digest, by whoever scans.
    busy: DigestLocks,
    slots: Arc<Semaphore>,
}

/// The scanner and what it found so far.
#[derive(Debug)]
struct Scans {
    scanner: Scanner,
    by_digest: Mutex<HashMap<Digest, Arc<Scanned>>>,
}

/// The gate's answer about an image.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The image, pinned to the manifest that was verified and scanned.
    pub pinned: ImageRef,
    /// Whether it may run.
    pub admitted: bool,
    /// One paragraph that says what happened and why.
    pub message: String,
    /// The record to store.
    pub scan: ImageScan,
    /// All findings; the record holds only the worst.
    pub findings: Vec<Finding>,
}

/// A finished scan, before any policy.
#[derive(Debug)]
struct Scanned {
    digest: Digest,
    report: Report,
    db: DbMetadata,
    db_hash: Digest,
    release_in_db: bool,
    at: Timestamp,
}

impl Gate {
    /// Opens the cache, and checks the scanner's hash and that there is a database.
    pub fn new(config: GateConfig) -> Result<Self, GateError> {
        let fetch = FetchConfig {
            cache_dir: config.cache_dir.join("images"),
            layout_root: config.layout_root,
            ca_files: config.ca_files,
            hosts_dir: config.hosts_dir,
            limits: config.limits,
            timeout: config.fetch_timeout,
            cache: Cache::Lasting,
        };
        let work_dir = config.cache_dir.join("scans");
        clear_dir(&work_dir)?;
        // The database may be a symbolic link; the jail grants what it leads to.
        let db_dir = std::fs::canonicalize(&config.db_dir)
            .map_err(error::io_error("find the vulnerability database", &config.db_dir))?;
        Db::open(&db_dir)?;
        let scanner = Scanner {
            program: config.trivy_path,
            pinned: config.trivy_sha256,
            jail_exe: config.jail_exe,
            db_dir,
            work_dir,
            timeout: config.scan_timeout,
            verified: Mutex::default(),
        };
        scanner.verify_binary()?;
        Ok(Self {
            fetcher: Fetcher::new(fetch).map_err(|source| GateError::Fetch { source })?,
            scans: Arc::new(Scans {
                scanner,
                by_digest: Mutex::default(),
            }),
            cache_max_bytes: config.cache_max_bytes,
            busy: DigestLocks::default(),
            slots: Arc::new(Semaphore::new(PARALLEL_SCANS)),
        })
    }

    /// Judges an image for a pod in `namespace`, which has `keys` for registries. What a scan found is told only to
    /// those to whom the registry gives the image.
    pub async fn judge(
        &self,
        image: &ImageRef,
        namespace: &str,
        (policies, keys): (&[ImagePolicy], &Keyring),
        now: Timestamp,
    ) -> Result<Judged, GateError> {
        let subject = Subject { image, namespace };
        // Asked first: what is not allowed is not even fetched.
        if let Some(reason) = scanner_report::registry_refusal(subject, policies) {
            return Err(GateError::NotAllowed { reason });
        }
        let pinned = self
            .fetcher
            .resolve(image, keys)
            .await
            .map_err(|source| GateError::Fetch { source })?;
        let scanned = self.scan(&pinned, keys, now).await?;
        let context = ScanContext {
            now,
            db: &scanned.db,
            release_in_db: scanned.release_in_db,
        };
        let judgement = scanner_report::judge(&scanned.report, subject, policies, context);
        Ok(self.judged(image, pinned, &scanned, judgement))
    }

    /// The scan of a pinned image with the present database and scanner, from the cache if possible.
    async fn scan(
        &self,
        pinned: &ImageRef,
        keys: &Keyring,
        now: Timestamp,
    ) -> Result<Arc<Scanned>, GateError> {
        let Some(digest) = pinned.digest else {
            let source = images_fetch::FetchError::Unpinned {
                image: pinned.to_string(),
            };
            return Err(GateError::Fetch { source });
        };
        let scanning = self.busy.lock(digest).await;
        if let Some(known) = self.scans.cached(&digest)? {
            return Ok(known);
        }
        let image = self
            .fetcher
            .fetch(pinned, keys)
            .await
            .map_err(|source| GateError::Fetch { source })?;
        let slot = Arc::clone(&self.slots)
            .acquire_owned()
            .await
            .map_err(|_closed| GateError::Interrupted)?;
        let scans = Arc::clone(&self.scans);
        // Goes on if the request is cancelled: whoever asks next waits for the lock and finds the result.
        let scan = move || {
            let _held = (scanning, slot);
            scans.scan(&image, now)
        };
        let scanned = tokio::task::spawn_blocking(scan)
            .await
            .map_err(|_panicked| GateError::Interrupted)??;
        self.fetcher
            .trim(self.cache_max_bytes)
            .map_err(|source| GateError::Fetch { source })?;
        Ok(scanned)
    }

    fn judged(&self, image: &ImageRef, pinned: ImageRef, scanned: &Scanned, judgement: Judgement) -> Judged {
        let digest = scanned.digest;
        let kept = judgement.findings.len().min(MAX_FINDINGS);
        let version = scanned
            .report
            .scanner_version
            .as_deref()
            .unwrap_or("of unknown version");
        let status = ImageScanStatus {
            verdict: judgement.verdict,
            reasons: judgement.reasons,
            counts: judgement.counts,
            findings: judgement.findings[..kept].to_vec(),
            findings_omitted: u32::try_from(judgement.findings.len() - kept).unwrap_or(u32::MAX),
            os: scanned.report.os.as_ref().map(ToString::to_string),
            packages: scanned.report.packages(),
            db_updated_at: scanned.db.updated_at,
            db_hash: scanned.db_hash,
            policy_hash: judgement.policy_hash,
            scanner: format!("trivy {version}"),
            scanner_hash: self.scans.scanner.pinned,
            scanned_at: scanned.at,
        };
        let scan = ImageScan {
            api_version: API_VERSION.to_owned(),
            kind: "ImageScan".to_owned(),
            metadata: ObjectMeta {
                name: Some(image_scan_name(&digest)),
                ..ObjectMeta::default()
            },
            spec: ImageScanSpec {
                image: image.to_string(),
                digest,
            },
            status,
        };
        Judged {
            pinned,
            admitted: judgement.admitted,
            message: scanner_report::render::message(&scan, judgement.admitted),
            scan,
            findings: judgement.findings,
        }
    }
}

impl Scans {
    /// The known scan of an image, if it was made with the present database.
    fn cached(&self, digest: &Digest) -> Result<Option<Arc<Scanned>>, GateError> {
        let by_digest = self.by_digest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = by_digest.get(digest) else {
            return Ok(None);
        };
        let db_hash = Db::open(&self.scanner.db_dir)?.hash;
        Ok(Some(known).filter(|known| known.db_hash == db_hash).cloned())
    }

    /// Scans an image and remembers the result. Blocks.
    fn scan(&self, image: &VerifiedImage, at: Timestamp) -> Result<Arc<Scanned>, GateError> {
        for _ in 0..MAX_DB_CHANGES {
            let db = Db::open(&self.scanner.db_dir)?;
            let report = self.scanner.scan(image)?;
            let release_in_db = report.os.as_ref().map_or(Ok(false), |os| db.covers(os))?;
            // Replaced meanwhile: which of the two was used is unknown.
            if Db::open(&self.scanner.db_dir)?.hash != db.hash {
                continue;
            }
            let digest = image.image().digest;
            let scanned = Arc::new(Scanned {
                digest,
                report,
                db: db.metadata,
                db_hash: db.hash,
                release_in_db,
                at,
            });
            self.remember(&scanned);
            return Ok(scanned);
        }
        Err(GateError::DbUnstable {
            attempts: MAX_DB_CHANGES,
        })
    }

    fn remember(&self, scanned: &Arc<Scanned>) {
        let mut by_digest = self.by_digest.lock().unwrap_or_else(PoisonError::into_inner);
        if by_digest.len() >= MAX_CACHED_SCANS {
            let oldest = by_digest
                .values()
                .min_by_key(|known| known.at)
                .map(|known| known.digest);
            if let Some(oldest) = oldest {
                by_digest.remove(&oldest);
            }
        }
        by_digest.insert(scanned.digest, Arc::clone(scanned));
    }
}

/// Makes an empty private directory; what an earlier run left is removed.
fn clear_dir(path: &std::path::Path) -> Result<(), GateError> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error::io_error("clear", path)(error));
        }
        _ => {}
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(error::io_error("create", path))
}
