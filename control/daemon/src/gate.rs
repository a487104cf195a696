//! Joins the API server's [`ImageGate`] with the gate that fetches and scans.

use std::time::Duration;

use api::{ImageRef, palisade::ImagePolicy};
use async_trait::async_trait;
use control_apiserver::{ImageGate, Judgement, Refusal};
use jiff::Timestamp;
use scanner_gate::{Gate, GateConfig, GateError};

use crate::config::Config;

/// Bytes of image blobs kept for the next scan.
const CACHE_BYTES: u64 = 4 << 30;

/// The real gate.
pub(crate) struct ScanGate(Gate);

impl ScanGate {
    /// Opens the gate: checks the scanner's hash, which takes a moment, and the database.
    pub(crate) fn open(config: &Config, own_program: &std::path::Path) -> Result<Self, GateError> {
        let timeout = Duration::from_secs(config.gate.timeout_seconds);
        let gate = Gate::new(GateConfig {
            trivy_path: config.gate.trivy.clone(),
            trivy_sha256: config.gate.trivy_sha256,
            db_dir: config.gate.trivy_cache.join("db"),
            cache_dir: config.file("scan"),
            cache_max_bytes: CACHE_BYTES,
            layout_root: config.layout_dir.clone(),
            ca_files: config.gate.registry_ca_files.clone(),
            limits: Default::default(),
            fetch_timeout: timeout,
            scan_timeout: timeout,
            jail_exe: own_program.to_owned(),
        })?;
        Ok(Self(gate))
    }
}

#[async_trait]
impl ImageGate for ScanGate {
    async fn judge(
        &self,
        namespace: &str,
        image: &ImageRef,
        policies: &[ImagePolicy],
    ) -> Result<Judgement, Refusal> {
        let judged = match self.0.judge(image, namespace, policies, Timestamp::now()).await {
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
                scan: judged.scan,
            }),
            _ => Err(Refusal {
                message: judged.message,
                scan: Some(judged.scan),
            }),
        }
    }
}
