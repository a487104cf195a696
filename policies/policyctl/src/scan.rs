//! `policyctl scan`: the judgement that admission makes, by hand and without a cluster.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use api::{Digest, ImageRef, palisade::ImagePolicy};
use indicatif::ProgressBar;
use scanner_gate::{Gate, GateConfig, GateError, Keyring};
use scanner_report::render::{Outcome, json, sarif, table};

use crate::{
    cli::{ObjectOutput, ScanArgs, ScanOutput},
    objects, output,
    up::on_path,
};

/// Exit code of an image that may not run: an answer, not an error.
const REFUSED: u8 = 2;
const FETCH_TIMEOUT: Duration = Duration::from_secs(300);
const SCAN_TIMEOUT: Duration = Duration::from_secs(300);

/// Scans, judges and prints; exit code 0 for an image that may run, 2 for one that may not.
pub(crate) async fn run(args: &ScanArgs) -> Result<ExitCode> {
    let image: ImageRef = args.image.parse()?;
    let policies = policies(&args.policy)?;
    // Nothing of a scan by hand outlives it.
    let cache = tempfile::tempdir().context("cannot make a temporary directory for the scan")?;
    let gate = Gate::new(gate_config(args, cache.path())?)?;
    let progress = ProgressBar::new_spinner().with_message(format!("scanning {image}"));
    progress.enable_steady_tick(Duration::from_millis(100));
    let judged = gate
        .judge(
            &image,
            &args.namespace,
            (&policies, &Keyring::anonymous()),
            jiff::Timestamp::now(),
        )
        .await;
    progress.finish_and_clear();
    let judged = match judged {
        Err(GateError::NotAllowed { reason }) => {
            output::complain(&reason);
            return Ok(ExitCode::from(REFUSED));
        }
        other => other?,
    };
    let outcome = Outcome {
        scan: &judged.scan,
        findings: &judged.findings,
        admitted: judged.admitted,
    };
    match args.output {
        ScanOutput::Table => output::line(table(outcome).trim_end())?,
        ScanOutput::Json => output::object(&json(outcome), ObjectOutput::Json)?,
        ScanOutput::Sarif => output::object(&sarif(outcome), ObjectOutput::Json)?,
    }
    Ok(if judged.admitted {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(REFUSED)
    })
}

fn policies(paths: &[PathBuf]) -> Result<Vec<ImagePolicy>> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    objects::load(paths, "default")?
        .into_iter()
        .filter(|manifest| manifest.resource.kind == "ImagePolicy")
        .map(|manifest| {
            objects::check(&manifest).map_err(|problem| anyhow::anyhow!("{}: {problem}", manifest.origin))?;
            serde_json::from_value(manifest.object)
                .with_context(|| format!("{} is not an ImagePolicy", manifest.origin))
        })
        .collect()
}

fn gate_config(args: &ScanArgs, cache: &Path) -> Result<GateConfig> {
    let state = &args.place.state_dir;
    let cluster_trivy = state.join("tools/trivy");
    let trivy_path = match &args.trivy {
        Some(path) => path.clone(),
        None if cluster_trivy.is_file() => cluster_trivy,
        None => {
            on_path("trivy").context("no trivy on the PATH: install it, or name one with --trivy FILE")?
        }
    };
    let trivy_path = std::fs::canonicalize(&trivy_path)
        .with_context(|| format!("cannot find {}", trivy_path.display()))?;
    let trivy_sha256 = match &args.trivy_sha256 {
        Some(hex) => format!("sha256:{hex}").parse()?,
        // Whoever names no hash trusts the binary that is there now.
        None => Digest::of(
            &std::fs::read(&trivy_path).with_context(|| format!("cannot read {}", trivy_path.display()))?,
        ),
    };
    Ok(GateConfig {
        trivy_path,
        trivy_sha256,
        db_dir: database(args)?,
        cache_dir: cache.to_path_buf(),
        cache_max_bytes: 0,
        layout_root: args.layout_root.clone().unwrap_or_else(|| state.join("layouts")),
        ca_files: Vec::new(),
        hosts_dir: args.registry_config.clone(),
        limits: images_fetch::Limits::default(),
        fetch_timeout: FETCH_TIMEOUT,
        scan_timeout: SCAN_TIMEOUT,
        jail_exe: std::env::current_exe().context("cannot find my own path")?,
    })
}

fn database(args: &ScanArgs) -> Result<PathBuf> {
    let own_cache = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/trivy/db"));
    let candidates = [Some(args.place.state_dir.join("trivy/db")), own_cache];
    match &args.trivy_db {
        Some(directory) => Ok(directory.clone()),
        None => candidates.into_iter().flatten().find(|d| d.join("trivy.db").is_file()).context(
            "no vulnerability database: run `trivy image --download-db-only`, or name a directory with --trivy-db DIR",
        ),
    }
}
