//! Builds the kernel programs and keeps the committed object honest.
//!
//! The object in `ebpf/loader/objects` is committed so that users need neither nightly Rust nor LLVM. Beside it lies
//! a manifest with the hash of the sources and the versions of the compilers; the build is reproducible, so
//! `cargo xtask ebpf --check` builds again and compares bytes.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::process::{on_path, output, root, run as run_command};

/// The compiler, exactly: another one makes another object.
const RUSTC: &str = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)";
/// The same compiler by its name in rustup's archive.
const TOOLCHAIN: &str = "nightly-2026-05-20";
/// The linker, exactly.
const LINKER: &str = "bpf-linker 0.13.0";
/// Debian's name of the LLVM that the linker is built against, the one of the compiler.
const LLVM_PACKAGES: [&str; 4] = ["llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"];
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// What the object is made of, below the root of the checkout.
const SOURCES: [&str; 5] = [
    "ebpf/abi/Cargo.toml",
    "ebpf/abi/src",
    "ebpf/programs/Cargo.toml",
    "ebpf/programs/Cargo.lock",
    "ebpf/programs/src",
];
const OBJECT: &str = "ebpf/loader/objects/palisade.bpf.o";
/// The programs of `policyctl learn`, which are loaded by themselves.
const LEARN_OBJECT: &str = "ebpf/loader/objects/learn.bpf.o";
/// The program that denies devices to control groups, which outlives all others.
const DEVICES_OBJECT: &str = "ebpf/loader/objects/devices.bpf.o";
const MANIFEST: &str = "ebpf/loader/objects/manifest.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    /// SHA-256 over the names and contents of all sources.
    source_sha256: String,
    /// SHA-256 of the object.
    object_sha256: String,
    /// SHA-256 of the learning programs' object.
    learn_sha256: String,
    /// SHA-256 of the object of the program for devices.
    devices_sha256: String,
    /// Version of the compiler.
    rustc: String,
    /// Version of the linker.
    bpf_linker: String,
}

/// Builds the programs and writes object and manifest; or, with `check`, fails if what is committed differs.
pub(crate) fn run(check: bool) -> Result<()> {
    let source_sha256 = source_hash()?;
    if check {
        // Without a compiler first: the usual mistake is to forget the rebuild.
        let committed = committed_manifest()?;
        ensure!(
            committed.source_sha256 == source_sha256,
            "the eBPF sources changed after {OBJECT} was built: run `cargo xtask ebpf` and commit the result"
        );
    }
    let [object, learn, devices] = build()?;
    let manifest = Manifest {
        source_sha256,
        object_sha256: hex::encode(Sha256::digest(&object)),
        learn_sha256: hex::encode(Sha256::digest(&learn)),
        devices_sha256: hex::encode(Sha256::digest(&devices)),
        rustc: RUSTC.to_owned(),
        bpf_linker: LINKER.to_owned(),
    };
    if check {
        let objects = [
            (OBJECT, object.as_slice()),
            (LEARN_OBJECT, &learn),
            (DEVICES_OBJECT, &devices),
        ];
        compare(objects, &manifest)?;
        println!("ebpf: {OBJECT} matches its sources ({})", manifest.object_sha256);
        return Ok(());
    }
    let text = serde_json::to_string_pretty(&manifest).context("cannot write the manifest as JSON")?;
    write(OBJECT, &object)?;
    write(LEARN_OBJECT, &learn)?;
    write(DEVICES_OBJECT, &devices)?;
    write(MANIFEST, format!("{text}\n").as_bytes())?;
    println!(
        "ebpf: wrote {OBJECT} ({} bytes, {})",
        object.len(),
        manifest.object_sha256
    );
    Ok(())
}

/// Provides the compiler and the linker that [`run`] needs. Does nothing that is done already.
pub(crate) fn install_toolchain() -> Result<()> {
    let toolchain = match toolchain()? {
        Some(found) => found,
        None => {
            println!("ebpf: installing {TOOLCHAIN} for the kernel programs (about a minute)");
            run_command(rustup().args([
                "toolchain",
                "install",
                TOOLCHAIN,
                "--profile",
                "minimal",
                "--component",
                "rust-src",
            ]))
            .context("cannot install the compiler of the kernel programs; is the network reachable?")?;
            TOOLCHAIN
        }
    };
    let sysroot = output(rustup().args(["run", toolchain, "rustc", "--print", "sysroot"]))?;
    if !Path::new(sysroot.trim())
        .join("lib/rustlib/src/rust/library/core")
        .is_dir()
    {
        println!("ebpf: adding rust-src to {toolchain}");
        run_command(rustup().args(["component", "add", "rust-src", "--toolchain", toolchain])).context(
            "cannot add rust-src, which `core` is built from for the kernel; is the network reachable?",
        )?;
    }
    if linker()?.is_some() {
        return Ok(());
    }
    if !Path::new(LLVM_PREFIX).is_dir() {
        println!("ebpf: installing {}", LLVM_PACKAGES.join(", "));
        run_command(
            Command::new("apt-get")
                .args(["install", "--yes", "--quiet", "--no-install-recommends"])
                .args(LLVM_PACKAGES)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
        .context("cannot install LLVM 22; where the distribution lacks it, add apt.llvm.org")?;
    }
    println!("ebpf: building {LINKER} (about a minute)");
    let version = LINKER.rsplit(' ').next().unwrap_or_default();
    run_command(
        cargo_free(Command::new("cargo"))
            .args(["install", "bpf-linker", "--locked", "--version", version])
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", LLVM_PREFIX),
    )
    .context("cannot build bpf-linker")
}

/// Builds the programs and returns their three objects.
fn build() -> Result<[Vec<u8>; 3]> {
    let toolchain = toolchain()?.with_context(|| {
        format!("the kernel programs are built with {RUSTC}, which is not installed: `cargo xtask setup --dev` does it")
    })?;
    let linker = linker()?.with_context(|| {
        format!("the kernel programs are linked by {LINKER}, which is not on the PATH: `cargo xtask setup --dev` does it")
    })?;
    let target = root().join("target/ebpf");
    let mut flags = vec![
        // Version 3 of the instruction set has atomic additions and 32-bit jumps; every kernel with tcx knows it.
        "-Ctarget-cpu=v3".to_owned(),
        format!("-Clinker={}", linker.display()),
        // By default the linker has LLVM turn even three bytes to be zeroed into a call of a loop over bytes, for the sake
        // of packets that are copied in order. Nothing here copies packets, and each packet would pay some thirty
        // nanoseconds.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ];
    // The object must not depend on where it is built.
    let sysroot = output(rustup().args(["run", toolchain, "rustc", "--print", "sysroot"]))?;
    for (from, to) in [
        (root(), "/palisade"),
        (cargo_home()?, "/cargo"),
        (PathBuf::from(sysroot.trim()), "/rust"),
    ] {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    println!("ebpf: building ebpf/programs with {RUSTC}");
    run_command(
        rustup()
            .args([
                "run",
                toolchain,
                "cargo",
                "build",
                "--quiet",
                "--release",
                "--locked",
            ])
            .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core"])
            .current_dir(root().join("ebpf/programs"))
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")),
    )?;
    let read = |name| {
        let built = target.join("bpfel-unknown-none/release").join(name);
        fs::read(&built).with_context(|| format!("cannot read {}", built.display()))
    };
    Ok([read("palisade")?, read("learn")?, read("devices")?])
}

fn compare(objects: [(&str, &[u8]); 3], manifest: &Manifest) -> Result<()> {
    let committed = committed_manifest()?;
    ensure!(
        committed.rustc == manifest.rustc && committed.bpf_linker == manifest.bpf_linker,
        "{OBJECT} was built by {} and {}, this checkout builds with {RUSTC} and {LINKER}: run `cargo xtask ebpf`",
        committed.rustc,
        committed.bpf_linker
    );
    for (name, object) in objects {
        let path = root().join(name);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            committed == *manifest && bytes == object,
            "{name} is not what its sources give: run `cargo xtask ebpf` and commit the result"
        );
    }
    Ok(())
}

fn committed_manifest() -> Result<Manifest> {
    let path = root().join(MANIFEST);
    let text =
        fs::read(&path).with_context(|| format!("cannot read {}: run `cargo xtask ebpf`", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("cannot understand {}", path.display()))
}

/// The installed toolchain that is [`RUSTC`], under whichever name; `None` if there is none.
fn toolchain() -> Result<Option<&'static str>> {
    if on_path("rustup").is_none() {
        bail!("the kernel programs need a nightly compiler, and rustup to get it: see https://rustup.rs");
    }
    for name in [TOOLCHAIN, "nightly"] {
        if version_of(rustup().args(["run", name, "rustc", "--version"])).as_deref() == Some(RUSTC) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The linker, if the right one is there.
fn linker() -> Result<Option<PathBuf>> {
    let installed = cargo_home()?.join("bin/bpf-linker");
    let candidates = [
        Some(installed).filter(|path| path.is_file()),
        on_path("bpf-linker"),
    ];
    let right = |path: &PathBuf| version_of(Command::new(path).arg("--version")).as_deref() == Some(LINKER);
    Ok(candidates.into_iter().flatten().find(right))
}

/// The first line that the program prints; `None` if it cannot be run or fails, which is the same as not there.
fn version_of(command: &mut Command) -> Option<String> {
    let output = command
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}

fn rustup() -> Command {
    let mut command = cargo_free(Command::new("rustup"));
    command.current_dir(root());
    command
}

/// Without what the cargo that runs us has set: it would choose the wrong compiler and the wrong flags.
fn cargo_free(mut command: Command) -> Command {
    for (name, _) in env::vars_os() {
        let inherited = name.to_str().is_some_and(|name| {
            name == "RUSTFLAGS"
                || name == "RUSTUP_TOOLCHAIN"
                || name == "RUSTC"
                || name == "RUSTC_WRAPPER"
                || name == "CARGO"
                || name == "CARGO_ENCODED_RUSTFLAGS"
                || name == "CARGO_TARGET_DIR"
                || name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_PROFILE_")
                || name.starts_with("CARGO_BUILD_")
        });
        if inherited {
            command.env_remove(name);
        }
    }
    command
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?;
    Ok(Path::new(&home).join(".cargo"))
}

/// SHA-256 over all sources, each as `path NUL length NUL content`, in the order of their paths.
fn source_hash() -> Result<String> {
    let mut files = BTreeMap::new();
    for source in SOURCES {
        collect(Path::new(source), &mut files)?;
    }
    let mut hash = Sha256::new();
    for (path, content) in files {
        hash.update(format!("{path}\0{}\0", content.len()));
        hash.update(content);
    }
    Ok(hex::encode(hash.finalize()))
}

fn collect(relative: &Path, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let path = root().join(relative);
    if !path.is_dir() {
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.insert(relative.display().to_string(), content);
        return Ok(());
    }
    for entry in fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))? {
        collect(&relative.join(entry?.file_name()), files)?;
    }
    Ok(())
}

fn write(relative: &str, content: &[u8]) -> Result<()> {
    let path = root().join(relative);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
}
