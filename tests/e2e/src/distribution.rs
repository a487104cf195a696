//! Ordinary images, made from the distribution's own packages as others make theirs: a Python, an nginx, a
//! Perl. What runs in them must not need to know about Palisade.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use testkit::{
    image::{ImageBuilder, Layer, Packing},
    lab::{self, LabOs},
};

use crate::shell::{binaries, run};

/// Packages that a package needs only to be installed, not to run.
const NOT_NEEDED: &[&str] = &[
    "dpkg",
    "tar",
    "debconf",
    "cdebconf",
    "perl-base",
    "iproute2",
    "debianutils",
    "sysvinit-utils",
    "install-info",
];

/// Python from the distribution's packages, on the lab system, which the lab database covers.
pub fn python() -> Result<ImageBuilder> {
    Ok(lab_system()?.layer(packages_layer("python3")?))
}

/// nginx from the distribution's packages, with a site that answers `it works`.
pub fn nginx() -> Result<ImageBuilder> {
    let site = "server { listen 80 default_server; root /srv/www; access_log /dev/stdout; }\n";
    let site = Layer::new(Packing::Gzip)
        .dir("etc/nginx/sites-enabled/", 0o755)
        .file("etc/nginx/sites-enabled/default", 0o644, site.as_bytes())
        .file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\n",
        )
        .file("etc/group", 0o644, b"root:x:0:\nadm:x:4:\nwww-data:x:33:\n")
        .dir("srv/", 0o755)
        .dir("srv/www/", 0o755)
        .file("srv/www/index.html", 0o644, b"it works\n")
        .dir("var/log/nginx/", 0o755);
    let container = serde_json::json!({
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "Cmd": ["nginx", "-g", "daemon off;"],
    });
    Ok(lab_system()?
        .layer(packages_layer("nginx")?)
        .layer(site)
        .container(container))
}

/// This machine's Perl, which can make any system call, for asking the kernel what a pod may do.
pub fn perl() -> Result<ImageBuilder> {
    with_program(Path::new("/usr/bin/perl"))
}

/// The lab system with `/usr/bin/health`, which answers gRPC's health probes.
pub fn health() -> Result<ImageBuilder> {
    with_program(&binaries()?.join("health"))
}

/// The lab system with a program of this machine in `/usr/bin`, and the libraries that it needs.
fn with_program(program: &Path) -> Result<ImageBuilder> {
    let name = program
        .file_name()
        .context("a program has a name")?
        .to_string_lossy();
    let mut layer = Layer::new(Packing::Gzip).file(&format!("usr/bin/{name}"), 0o755, &read(program)?);
    let libraries = run(Path::new("/usr/bin/ldd"), &[program])?.ok()?.stdout;
    let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    let mut made = std::collections::BTreeSet::new();
    for path in paths {
        let relative = path.trim_start_matches('/');
        for parent in Path::new(relative)
            .ancestors()
            .skip(1)
            .filter(|p| !p.as_os_str().is_empty())
        {
            made.insert(parent.to_path_buf());
        }
    }
    for parent in made {
        layer = layer.dir(&format!("{}/", parent.display()), 0o755);
    }
    for path in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        layer = layer.file(path.trim_start_matches('/'), 0o755, &read(Path::new(path))?);
    }
    Ok(lab_system()?.layer(layer))
}

fn lab_system() -> Result<ImageBuilder> {
    lab::busybox(LabOs::Wolfi, scanner_labdb::FIXED_VERSION)
}

/// A layer with the files of a package and of everything it needs to run.
fn packages_layer(package: &str) -> Result<Layer> {
    let scratch = tempfile::tempdir().context("cannot make a directory for packages")?;
    let packages = needed_packages(package)?;
    let mut arguments = vec!["-q", "download"];
    arguments.extend(packages.iter().map(String::as_str));
    in_directory(scratch.path(), "apt-get", &arguments)?;
    let root = scratch.path().join("root");
    for directory in ["usr/bin", "usr/lib", "usr/sbin", "usr/lib64"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for link in ["lib", "lib64", "sbin"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link))?;
    }
    for entry in fs::read_dir(scratch.path())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let (path, root) = (path.to_string_lossy(), root.to_string_lossy());
            in_directory(scratch.path(), "dpkg-deb", &["-x", &path, &root])?;
        }
    }
    let mut layer = Layer::new(Packing::Gzip);
    add_tree(&mut layer, &root, &root)?;
    Ok(layer)
}

fn needed_packages(package: &str) -> Result<Vec<String>> {
    let arguments = ["depends", "--recurse", "-i", package];
    let text = run(Path::new("/usr/bin/apt-cache"), &arguments)?.ok()?.stdout;
    let names: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with([' ', '|', '<']) && !line.is_empty())
        .filter(|name| !NOT_NEEDED.contains(name))
        // Of this architecture.
        .filter(|name| !name.contains(':'))
        .collect();
    if names.is_empty() {
        bail!("the package {package} is unknown here; run `apt-get update`");
    }
    real(&names)
}

/// Purely virtual packages have no file. All are asked for at once: reading its cache takes apt a second.
fn real(packages: &[&str]) -> Result<Vec<String>> {
    let mut arguments = vec!["show", "--no-all-versions"];
    arguments.extend(packages);
    // It fails when one of them is virtual, and shows the others.
    let shown = run(Path::new("/usr/bin/apt-cache"), &arguments)?.stdout;
    Ok(shown
        .lines()
        .filter_map(|line| line.strip_prefix("Package: "))
        .map(str::to_owned)
        .collect())
}

fn add_tree(layer: &mut Layer, root: &Path, directory: &Path) -> Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(directory)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        let relative = path.strip_prefix(root).context("outside of the root")?;
        // Documentation only makes the layer larger.
        if ["usr/share/doc", "usr/share/man", "usr/share/locale"]
            .iter()
            .any(|skip| relative.starts_with(skip))
        {
            continue;
        }
        let metadata = fs::symlink_metadata(&path)?;
        let mut header = tar::Header::new_gnu();
        header.set_metadata_in_mode(&metadata, tar::HeaderMode::Deterministic);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(metadata.mode() & 0o7777);
        let kind = metadata.file_type();
        if kind.is_symlink() {
            layer.link(&mut header, relative, &fs::read_link(&path)?)?;
        } else if kind.is_file() {
            layer.append(&mut header, relative, &read(&path)?)?;
        } else if kind.is_dir() {
            layer.append(&mut header, relative, b"")?;
            add_tree(layer, root, &path)?;
        } else if !(kind.is_socket() || kind.is_fifo()) {
            bail!("{} is neither file, directory nor link", path.display());
        }
    }
    Ok(())
}

fn in_directory(directory: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let output = std::process::Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
