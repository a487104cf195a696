//! The gate with real parts: Trivy in the jail, a registry, and images built here.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use api::{
    Digest, ImageRef,
    palisade::{ImagePolicy, ImagePolicySpec, OnInconclusive, ScanVerdict},
};
use images_fetch::Limits;
use jiff::Timestamp;
use scanner_gate::{Gate, GateConfig, GateError, Keyring};
use testkit::{
    image::{Image, ImageBuilder, Layer, Packing},
    lab::{self, LabOs},
    registry::Registry,
    scanner,
};

/// A gate with its directories, over layouts.
struct Lab {
    dir: tempfile::TempDir,
    config: GateConfig,
}

impl Lab {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        scanner::write_lab_db(&dir.path().join("db"), 0)?;
        let (trivy_path, trivy_sha256) = scanner::trivy()?;
        let config = GateConfig {
            trivy_path,
            trivy_sha256,
            db_dir: dir.path().join("db"),
            cache_dir: dir.path().join("cache"),
            cache_max_bytes: 1 << 30,
            layout_root: dir.path().join("layouts"),
            ca_files: Vec::new(),
            hosts_dir: None,
            limits: Limits::default(),
            fetch_timeout: Duration::from_secs(30),
            scan_timeout: Duration::from_secs(60),
            jail_exe: env!("CARGO_BIN_EXE_scanner-gate-test-jail").into(),
        };
        Ok(Self { dir, config })
    }

    fn gate(&self) -> Result<Gate> {
        Ok(Gate::new(self.config.clone())?)
    }

    fn layout(&self, name: &str, image: &Image) -> Result<ImageRef> {
        image.write_layout(&self.dir.path().join("layouts").join(name), "1")?;
        Ok(format!("oci-layout.local/{name}:1").parse()?)
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

#[tokio::test]
async fn a_vulnerable_image_is_refused_with_ids_packages_and_fixes() -> Result<()> {
    let (lab, registry) = (Lab::new()?, Registry::start()?);
    let gate = lab.gate()?;
    let image = lab::vulnerable()?;
    let reference = registry.push(&image, "lab/vulnerable", "1").await?;
    let judged = gate
        .judge(
            &reference,
            "default",
            (&[], &Keyring::anonymous()),
            Timestamp::now(),
        )
        .await?;
    assert!(!judged.admitted, "{}", judged.message);
    assert_eq!(judged.scan.status.verdict, ScanVerdict::Refused);
    assert_eq!(judged.pinned.digest, Some(image.digest()));
    for part in [
        scanner_labdb::CRITICAL_ID,
        "CRITICAL",
        "busybox 1.37.0-r1",
        "fixed in",
        scanner_labdb::FIXED_VERSION,
        &reference.to_string(),
        &image.digest().to_string(),
    ] {
        assert!(
            judged.message.contains(part),
            "{part:?} is missing in {:?}",
            judged.message
        );
    }
    assert_eq!(
        judged.scan.metadata.name,
        Some(api::palisade::image_scan_name(&image.digest()))
    );
    assert!(
        judged.scan.status.scanner.starts_with("trivy "),
        "{}",
        judged.scan.status.scanner
    );
    Ok(())
}

#[tokio::test]
async fn images_in_dockers_format_and_with_zstd_layers_are_scanned_alike() -> Result<()> {
    let (lab, registry) = (Lab::new()?, Registry::start()?);
    let gate = lab.gate()?;
    let docker = lab::busybox(LabOs::Wolfi, "1.37.0-r1")?.build_docker();
    let zstd = lab::busybox(LabOs::Wolfi, "1.37.0-r1")?
        .layer(Layer::new(Packing::Zstd).file("etc/more", 0o644, b"more"))
        .build();
    for (name, image) in [("docker", docker), ("zstd", zstd)] {
        let reference = registry.push(&image, &format!("lab/{name}"), "1").await?;
        let judged = gate
            .judge(
                &reference,
                "default",
                (&[], &Keyring::anonymous()),
                Timestamp::now(),
            )
            .await?;
        assert_eq!(
            judged.scan.status.verdict,
            ScanVerdict::Refused,
            "{name}: {}",
            judged.message
        );
        assert_eq!(judged.scan.status.packages, 2, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn a_clean_image_passes_and_is_answered_from_the_cache_afterwards() -> Result<()> {
    let (lab, registry) = (Lab::new()?, Registry::start()?);
    let gate = lab.gate()?;
    let reference = registry.push(&lab::clean()?, "lab/clean", "1").await?;
    let start = Instant::now();
    let judged = gate
        .judge(
            &reference,
            "default",
            (&[], &Keyring::anonymous()),
            Timestamp::now(),
        )
        .await?;
    let cold = start.elapsed();
    assert!(judged.admitted, "{}", judged.message);
    assert_eq!(judged.scan.status.verdict, ScanVerdict::Pass);
    assert_eq!(judged.scan.status.packages, 2);
    assert_eq!(judged.scan.status.os.as_deref(), Some("wolfi 20230201"));
    assert_eq!(judged.findings, []);

    // The registry is gone, so this answer can only come from the cache; by digest it needs no network.
    drop(registry);
    let start = Instant::now();
    let again = gate
        .judge(
            &judged.pinned,
            "default",
            (&[], &Keyring::anonymous()),
            Timestamp::now(),
        )
        .await?;
    println!("verdict: cold {cold:?}, cached {:?}", start.elapsed());
    assert!(again.admitted);
    assert_eq!(again.scan.status.scanned_at, judged.scan.status.scanned_at);
    Ok(())
}

#[tokio::test]
async fn a_scan_that_checked_nothing_is_inconclusive() -> Result<()> {
    let lab = Lab::new()?;
    let gate = lab.gate()?;
    for (os, reason) in [
        (LabOs::None, "recognised no operating system"),
        (LabOs::Unknown, "recognised no operating system"),
        (LabOs::OldAlpine, "end of life"),
        (LabOs::Uncovered, "no advisories for debian 11"),
    ] {
        let reference = lab.layout(
            &format!("{os:?}").to_lowercase(),
            &lab::busybox(os, "1.37.0-r99")?.build(),
        )?;
        let judged = gate
            .judge(
                &reference,
                "default",
                (&[], &Keyring::anonymous()),
                Timestamp::now(),
            )
            .await?;
        assert_eq!(
            judged.scan.status.verdict,
            ScanVerdict::Inconclusive,
            "{os:?}: {}",
            judged.message
        );
        assert!(!judged.admitted, "{os:?}");
        assert!(
            judged.message.contains(reason),
            "{os:?}: {:?} is missing in {}",
            reason,
            judged.message
        );

        let spec = ImagePolicySpec {
            inconclusive: OnInconclusive::Admit,
            ..ImagePolicySpec::default()
        };
        let judged = gate
            .judge(
                &reference,
                "default",
                (&[policy(spec)], &Keyring::anonymous()),
                Timestamp::now(),
            )
            .await?;
        assert!(judged.admitted, "{os:?} under a policy that admits it");
    }
    Ok(())
}

#[tokio::test]
async fn an_image_without_packages_is_inconclusive() -> Result<()> {
    let lab = Lab::new()?;
    let layer = Layer::new(Packing::Gzip).dir("etc/", 0o755).file(
        "etc/os-release",
        0o644,
        b"ID=wolfi\nVERSION_ID=20230201\n",
    );
    let reference = lab.layout("bare", &ImageBuilder::new().layer(layer).build())?;
    let judged = lab
        .gate()?
        .judge(
            &reference,
            "default",
            (&[], &Keyring::anonymous()),
            Timestamp::now(),
        )
        .await?;
    assert_eq!(
        judged.scan.status.verdict,
        ScanVerdict::Inconclusive,
        "{}",
        judged.message
    );
    Ok(())
}

#[tokio::test]
async fn a_stale_database_is_inconclusive_and_a_new_one_is_used_at_once() -> Result<()> {
    let lab = Lab::new()?;
    scanner::write_lab_db(&lab.config.db_dir, 400 * 24)?;
    let gate = lab.gate()?;
    let reference = lab.layout("clean", &lab::clean()?)?;
    let stale = gate
        .judge(
            &reference,
            "default",
            (&[], &Keyring::anonymous()),
            Timestamp::now(),
        )
        .await?;
    assert_eq!(
        stale.scan.status.verdict,
        ScanVerdict::Inconclusive,
        "{}",
        stale.message
    );
    assert!(stale.message.contains("hours old"), "{}", stale.message);

    scanner::write_lab_db(&lab.config.db_dir, 0)?;
    let fresh = gate
        .judge(
            &reference,
            "default",
            (&[], &Keyring::anonymous()),
            Timestamp::now(),
        )
        .await?;
    assert!(fresh.admitted, "{}", fresh.message);
    assert_ne!(fresh.scan.status.db_hash, stale.scan.status.db_hash);
    Ok(())
}

#[tokio::test]
async fn a_forged_image_is_not_scanned() -> Result<()> {
    let lab = Lab::new()?;
    let gate = lab.gate()?;
    let forged = lab::busybox(LabOs::Wolfi, "1.37.0-r99")?
        .forge_diff_id(1, Digest::of(b"another layer"))
        .build();
    let error = gate
        .judge(
            &lab.layout("forged", &forged)?,
            "default",
            (&[], &Keyring::anonymous()),
            Timestamp::now(),
        )
        .await
        .unwrap_err();
    assert!(
        error.chain().contains("does not match its digest"),
        "{}",
        error.chain()
    );

    let mut swapped = lab::vulnerable()?;
    swapped.layers[1].bytes = lab::clean()?.layers[1].bytes.clone();
    let error = gate
        .judge(
            &lab.layout("swapped", &swapped)?,
            "default",
            (&[], &Keyring::anonymous()),
            Timestamp::now(),
        )
        .await
        .unwrap_err();
    assert!(matches!(error, GateError::Fetch { .. }), "{}", error.chain());
    Ok(())
}

#[tokio::test]
async fn registries_that_are_not_allowed_are_not_asked() -> Result<()> {
    let lab = Lab::new()?;
    let spec = ImagePolicySpec {
        allowed_registries: vec!["registry.example/team".into()],
        ..Default::default()
    };
    // Nothing listens there: an attempt to fetch would be another error.
    let image = "127.0.0.1:1/x:1".parse()?;
    let error = lab
        .gate()?
        .judge(
            &image,
            "default",
            (&[policy(spec)], &Keyring::anonymous()),
            Timestamp::now(),
        )
        .await
        .unwrap_err();
    assert!(
        matches!(&error, GateError::NotAllowed { reason } if reason.contains("registry.example/team")),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn another_scanner_binary_is_not_run() -> Result<()> {
    let mut lab = Lab::new()?;
    let copy = lab.path().join("trivy");
    std::fs::copy(&lab.config.trivy_path, &copy)?;
    lab.config.trivy_path = copy.clone();
    let gate = lab.gate()?;
    let reference = lab.layout("clean", &lab::clean()?)?;
    // The binary is replaced while the gate runs.
    std::fs::remove_file(&copy)?;
    std::fs::copy("/bin/busybox", &copy)?;
    let error = gate
        .judge(
            &reference,
            "default",
            (&[], &Keyring::anonymous()),
            Timestamp::now(),
        )
        .await
        .unwrap_err();
    assert!(
        matches!(error, GateError::ScannerHash { .. }),
        "{}",
        error.chain()
    );
    assert!(matches!(
        lab.gate().unwrap_err().downcast()?,
        GateError::ScannerHash { .. }
    ));
    Ok(())
}

#[tokio::test]
async fn a_damaged_database_is_an_error_not_a_pass() -> Result<()> {
    let lab = Lab::new()?;
    let gate = lab.gate()?;
    let reference = lab.layout("clean", &lab::clean()?)?;
    for damage in [&b"not a database"[..], &[]] {
        std::fs::write(lab.config.db_dir.join("trivy.db"), damage)?;
        let error = gate
            .judge(
                &reference,
                "default",
                (&[], &Keyring::anonymous()),
                Timestamp::now(),
            )
            .await
            .unwrap_err();
        assert!(
            matches!(error, GateError::ScannerFailed { .. }),
            "{}",
            error.chain()
        );
    }
    std::fs::remove_file(lab.config.db_dir.join("metadata.json"))?;
    assert!(
        gate.judge(
            &reference,
            "default",
            (&[], &Keyring::anonymous()),
            Timestamp::now()
        )
        .await
        .is_err()
    );
    Ok(())
}

#[tokio::test]
async fn a_scanner_that_hangs_is_killed_and_leaves_nothing() -> Result<()> {
    let mut lab = Lab::new()?;
    let slow = lab.path().join("busybox");
    std::fs::copy("/bin/busybox", &slow)?;
    // busybox does not know the applet "image" and would fail at once; as `yes` it writes forever.
    let hanging = lab.path().join("yes");
    std::fs::rename(slow, &hanging)?;
    lab.config.trivy_path = hanging.clone();
    lab.config.trivy_sha256 = Digest::of(&std::fs::read(&hanging)?);
    lab.config.scan_timeout = Duration::from_millis(300);
    let reference = lab.layout("clean", &lab::clean()?)?;
    let error = lab
        .gate()?
        .judge(
            &reference,
            "default",
            (&[], &Keyring::anonymous()),
            Timestamp::now(),
        )
        .await
        .unwrap_err();
    assert!(
        matches!(error, GateError::ScannerTimeout { .. }),
        "{}",
        error.chain()
    );
    assert_eq!(
        std::fs::read_dir(lab.config.cache_dir.join("scans"))?.count(),
        0,
        "the scan's directory is gone"
    );
    for process in std::fs::read_dir("/proc")?.flatten() {
        let executable = std::fs::read_link(process.path().join("exe")).unwrap_or_default();
        assert_ne!(executable, hanging, "{:?} still runs", process.path());
    }
    Ok(())
}

#[tokio::test]
async fn files_and_variables_cannot_steer_the_scanner() -> Result<()> {
    let lab = Lab::new()?;
    // What would hide the finding if the scanner looked at it: in the image, beside the layout.
    let steer = Layer::new(Packing::Gzip)
        .file(".trivyignore", 0o644, scanner_labdb::CRITICAL_ID.as_bytes())
        .file("trivy.yaml", 0o644, b"severity: [LOW]\n");
    let image = lab::busybox(LabOs::Wolfi, "1.37.0-r1")?.layer(steer).build();
    let reference = lab.layout("steering", &image)?;
    let judged = lab
        .gate()?
        .judge(
            &reference,
            "default",
            (&[], &Keyring::anonymous()),
            Timestamp::now(),
        )
        .await?;
    assert_eq!(
        judged.scan.status.verdict,
        ScanVerdict::Refused,
        "{}",
        judged.message
    );
    Ok(())
}

#[tokio::test]
async fn one_image_asked_for_many_times_is_scanned_once() -> Result<()> {
    let lab = Lab::new()?;
    let gate = Arc::new(lab.gate()?);
    let reference = lab.layout("clean", &lab::clean()?)?;
    let asks = (0..8u8).map(|n| {
        let (gate, reference) = (Arc::clone(&gate), reference.clone());
        async move {
            // Different times: equal results prove that they come from one scan.
            let now = Timestamp::now() + jiff::SignedDuration::from_secs(i64::from(n));
            gate.judge(&reference, "default", (&[], &Keyring::anonymous()), now)
                .await
                .map(|judged| judged.scan.status.scanned_at)
        }
    });
    let mut results = Vec::new();
    for ask in asks.map(tokio::spawn).collect::<Vec<_>>() {
        results.push(ask.await??);
    }
    results.dedup();
    assert_eq!(results.len(), 1, "{results:?}");
    Ok(())
}

fn policy(spec: ImagePolicySpec) -> ImagePolicy {
    ImagePolicy {
        api_version: api::palisade::API_VERSION.into(),
        kind: "ImagePolicy".into(),
        metadata: Default::default(),
        spec,
    }
}
