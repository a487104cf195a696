//! Joins the API server's [`ImageGate`] with the gate that fetches and scans.

use std::time::Duration;

use api::{ImageRef, palisade::ImagePolicy, pull_secret, verdict::Verdict};
use async_trait::async_trait;
use control_apiserver::{ImageGate, Judgement, Refusal};
use control_pki::verdict::{KeyError, Signer};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use scanner_gate::{Gate, GateConfig, GateError, Keyring};

use crate::config::Config;

/// Bytes of image blobs kept for the next scan.
const CACHE_BYTES: u64 = 4 << 30;

/// The real gate, and the key that makes its word one that nodes believe.
pub(crate) struct ScanGate {
    gate: Gate,
    signer: Signer,
    verdict_lifetime: SignedDuration,
}

/// Why there is no gate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The gate cannot be opened.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// It could not sign.
    #[error("the image gate's key")]
    Key(#[from] KeyError),
}

impl ScanGate {
    /// Opens the gate: checks the scanner's hash, which takes a moment, and the database.
    pub(crate) fn open(config: &Config, own_program: &std::path::Path) -> Result<Self, OpenError> {
        let timeout = Duration::from_secs(config.gate.timeout_seconds);
        let gate = Gate::new(GateConfig {
            trivy_path: config.gate.trivy.clone(),
            trivy_sha256: config.gate.trivy_sha256,
            db_dir: config.gate.trivy_cache.join("db"),
            cache_dir: config.file("scan"),
            cache_max_bytes: CACHE_BYTES,
            layout_root: config.layout_dir.clone(),
            ca_files: config.gate.registry_ca_files.clone(),
            hosts_dir: config.gate.registry_config_dir.clone(),
            limits: config.gate.image_limits,
            fetch_timeout: timeout,
            scan_timeout: timeout,
            jail_exe: own_program.to_owned(),
        })?;
        let signer = Signer::load(&config.file("tls"))?;
        Ok(Self {
            gate,
            signer,
            verdict_lifetime: SignedDuration::from_secs(config.gate.verdict_lifetime_seconds.into()),
        })
    }
}

#[async_trait]
impl ImageGate for ScanGate {
    async fn judge(
        &self,
        namespace: &str,
        image: &ImageRef,
        policies: &[ImagePolicy],
        secrets: &[Secret],
    ) -> Result<Judgement, Refusal> {
        let keys = keyring(secrets).map_err(|message| Refusal {
            message: format!("image {image}: {message}"),
            scan: None,
        })?;
        let under = (policies, &keys);
        let judged_at = Timestamp::now();
        let judged = match self.gate.judge(image, namespace, under, judged_at).await {
            Ok(judged) => judged,
            Err(error) => {
                return Err(Refusal {
                    message: format!("image {image}: {}", error.chain()),
                    scan: None,
                });
            }
        };
        match (judged.admitted, judged.pinned.digest) {
            (true, Some(pinned)) => Ok(Judgement {
                pinned,
                verdict: self.signer.sign(&Verdict {
                    namespace: namespace.to_owned(),
                    digest: pinned,
                    db_hash: judged.scan.status.db_hash,
                    policy_hash: judged.scan.status.policy_hash,
                    judged_at,
                    not_after: judged_at.checked_add(self.verdict_lifetime).unwrap_or(judged_at),
                }),
                scan: judged.scan,
            }),
            _ => Err(Refusal {
                message: judged.message,
                scan: Some(judged.scan),
            }),
        }
    }
}

/// The credentials of `secrets`; secrets of other kinds hold none.
fn keyring(secrets: &[Secret]) -> Result<Keyring, String> {
    let mut keys = Keyring::anonymous();
    for secret in secrets {
        let Some(found) = pull_secret::of(secret) else {
            continue;
        };
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        keys.add(&found)
            .map_err(|problem| format!("secret {name:?} cannot be used for registries: {problem}"))?;
    }
    Ok(keys)
}
