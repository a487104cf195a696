//! Ready images: a static busybox on a small system, once with a package version that the lab database
//! knows as vulnerable and once with a fixed one.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::image::{Image, ImageBuilder, Layer, Packing};

const BUSYBOX: &str = "/bin/busybox";
/// A version that has no entry in any database.
const MUSL_VERSION: &str = "1.2.9-r99";

/// An image with a critical finding, `scanner_labdb::CRITICAL_ID`.
pub fn vulnerable() -> Result<Image> {
    Ok(busybox(LabOs::Wolfi, "1.37.0-r1")?.build())
}

/// An image without findings.
pub fn clean() -> Result<Image> {
    Ok(busybox(LabOs::Wolfi, scanner_labdb::FIXED_VERSION)?.build())
}

/// What the image says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabOs {
    /// A rolling release that the lab database covers.
    Wolfi,
    /// A release past its end of life.
    OldAlpine,
    /// A release that no database covers.
    Uncovered,
    /// A distribution that the scanner does not know.
    Unknown,
    /// No distribution at all.
    None,
}

/// A busybox image that says it is `os` and has busybox of `version` installed. Add layers or a container
/// configuration, then build.
pub fn busybox(os: LabOs, version: &str) -> Result<ImageBuilder> {
    let mut system = Layer::new(Packing::Gzip);
    for (path, mode) in [
        ("bin/", 0o755),
        ("dev/", 0o755),
        ("etc/", 0o755),
        ("home/", 0o755),
        ("proc/", 0o755),
        ("root/", 0o700),
        ("run/", 0o755),
        ("sys/", 0o755),
        ("tmp/", 0o1777),
        ("usr/", 0o755),
        ("usr/bin/", 0o755),
        ("var/", 0o755),
        ("var/log/", 0o755),
    ] {
        system = system.dir(path, mode);
    }
    system = system
        .file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        )
        .file("etc/group", 0o644, b"root:x:0:\nnobody:x:65534:\n")
        .file("bin/busybox", 0o755, &busybox_binary()?);
    for applet in applets()? {
        system = system.symlink(&format!("bin/{applet}"), "busybox");
    }
    let builder = ImageBuilder::new().layer(system).container(json!({
        "Env": ["PATH=/bin:/usr/bin"],
        "Cmd": ["/bin/sh"],
        "WorkingDir": "/",
    }));
    Ok(match packages(os, version) {
        Some(layer) => builder.layer(layer),
        None => builder,
    })
}

fn packages(os: LabOs, busybox: &str) -> Option<Layer> {
    let (id, release) = match os {
        LabOs::Wolfi => ("wolfi", "20230201"),
        LabOs::OldAlpine => ("alpine", "3.10.2"),
        LabOs::Uncovered => ("debian", "11"),
        LabOs::Unknown => ("foolinux", "1"),
        LabOs::None => return None,
    };
    let os_release =
        format!("ID={id}\nNAME=\"Lab {id}\"\nVERSION_ID={release}\nPRETTY_NAME=\"Lab {id} {release}\"\n");
    let layer = Layer::new(Packing::Gzip)
        .file("etc/os-release", 0o644, os_release.as_bytes())
        .dir("lib/", 0o755)
        .dir("lib/apk/", 0o755)
        .dir("lib/apk/db/", 0o755)
        .file(
            "lib/apk/db/installed",
            0o644,
            [apk_package("busybox", busybox), apk_package("musl", MUSL_VERSION)]
                .concat()
                .as_bytes(),
        );
    Some(match os {
        LabOs::OldAlpine => layer.file("etc/alpine-release", 0o644, format!("{release}\n").as_bytes()),
        LabOs::Uncovered => layer
            .file("etc/debian_version", 0o644, b"11.0\n")
            .dir("var/lib/", 0o755)
            .dir("var/lib/dpkg/", 0o755)
            .file("var/lib/dpkg/status", 0o644, DPKG_STATUS.as_bytes()),
        _ => layer,
    })
}

const DPKG_STATUS: &str = "Package: tar\nStatus: install ok installed\nPriority: required\nSection: utils\n\
    Architecture: amd64\nVersion: 1.34+dfsg-1\nMaintainer: Lab <lab@example.invalid>\nDescription: lab\n\n";

fn apk_package(name: &str, version: &str) -> String {
    format!(
        "C:Q1qAXhOHPzF5tUiH3v5PVqxPlL1eo=\nP:{name}\nV:{version}\nA:x86_64\nS:1000\nI:2000\nT:lab package\n\
         U:https://palisade.dev/lab\nL:GPL-2.0-only\no:{name}\nm:Lab <lab@example.invalid>\nt:1700000000\n\n"
    )
}

fn busybox_binary() -> Result<Vec<u8>> {
    let binary =
        fs::read(BUSYBOX).with_context(|| format!("cannot read {BUSYBOX}; install busybox-static"))?;
    // A dynamic binary names its loader, which the image does not have.
    if binary.windows(8).any(|window| window == b"/ld-linu") {
        bail!("{BUSYBOX} is not static; install busybox-static");
    }
    Ok(binary)
}

fn applets() -> Result<Vec<String>> {
    let output = Command::new(BUSYBOX)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot run {BUSYBOX}"))?;
    let list = String::from_utf8(output.stdout).context("busybox lists applets that are not text")?;
    Ok(list
        .lines()
        .filter(|applet| *applet != "busybox")
        .map(str::to_owned)
        .collect())
}
