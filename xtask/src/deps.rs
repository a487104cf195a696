//! Checks that the crates keep to the design: who may import whom, which crates are pure, where unsafe
//! code may live, and that every crate inherits the workspace's lints. The table is `xtask/deps.toml`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process::{cargo, output, root};

/// The committed table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// External crates that no pure crate may depend on, with the reason.
    banned_in_pure: BTreeMap<String, String>,
    /// External crates that must not be in the tree at all, with the reason.
    banned_everywhere: BTreeMap<String, String>,
    /// Every crate of the workspace.
    crates: BTreeMap<String, Entry>,
}

/// What one crate may do.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Workspace crates it may depend on.
    may_import: BTreeSet<String>,
    /// No I/O, no clock, no async runtime.
    #[serde(default)]
    pure: bool,
    /// May contain unsafe code.
    #[serde(default)]
    unsafe_allowed: bool,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    optional: bool,
}

/// Fails with every violation listed.
pub(crate) fn run() -> Result<()> {
    let path = root().join("xtask/deps.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let table: Table = toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    let metadata: Metadata = serde_json::from_str(&output(cargo().args([
        "metadata",
        "--format-version=1",
        "--no-deps",
        "--locked",
    ]))?)
    .context("cannot parse the output of cargo metadata")?;
    let mut problems = violations(&table, &metadata)?;
    problems.extend(locked_violations(&table)?);
    if problems.is_empty() {
        println!("{} crates keep to xtask/deps.toml", metadata.packages.len());
        return Ok(());
    }
    bail!(
        "{} violations of xtask/deps.toml:\n  {}",
        problems.len(),
        problems.join("\n  ")
    );
}

fn violations(table: &Table, metadata: &Metadata) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let own: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    for unknown in table.crates.keys().filter(|name| !own.contains(name.as_str())) {
        problems.push(format!("{unknown} is in the table but not in the workspace"));
    }
    for package in &metadata.packages {
        let Some(entry) = table.crates.get(&package.name) else {
            problems.push(format!("{} is not in the table", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            // What only tests import cannot reach a user; what is optional is asked for by an impure crate, and
            // gives it trait implementations that nobody else may write (aya's Pod for the ABI types).
            if dependency.kind.as_deref() == Some("dev") || dependency.optional {
                continue;
            }
            let name = &dependency.name;
            if own.contains(name.as_str()) {
                if !entry.may_import.contains(name) {
                    problems.push(format!(
                        "{} imports {name}, which the table does not allow",
                        package.name
                    ));
                }
                let target_pure = table.crates.get(name).is_some_and(|target| target.pure);
                if entry.pure && !target_pure {
                    problems.push(format!(
                        "{} is pure but imports {name}, which is not",
                        package.name
                    ));
                }
            }
            if let Some(reason) = table.banned_in_pure.get(name).filter(|_| entry.pure) {
                problems.push(format!("{} is pure but imports {name}: {reason}", package.name));
            }
        }
        problems.extend(source_violations(package, entry)?);
    }
    Ok(problems)
}

fn locked_violations(table: &Table) -> Result<Vec<String>> {
    let path = root().join("Cargo.lock");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lock: toml::Table = text
        .parse()
        .with_context(|| format!("cannot parse {}", path.display()))?;
    let packages = lock
        .get("package")
        .and_then(toml::Value::as_array)
        .context("Cargo.lock has no packages")?;
    let names = packages
        .iter()
        .filter_map(|package| package.get("name")?.as_str());
    Ok(names
        .filter_map(|name| {
            Some(format!(
                "{name} is in Cargo.lock: {}",
                table.banned_everywhere.get(name)?
            ))
        })
        .collect())
}

fn source_violations(package: &Package, entry: &Entry) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let manifest = fs::read_to_string(&package.manifest_path)
        .with_context(|| format!("cannot read {}", package.manifest_path))?;
    let manifest: toml::Table = manifest
        .parse()
        .with_context(|| format!("cannot parse {}", package.manifest_path))?;
    let inherits = manifest
        .get("lints")
        .and_then(|lints| lints.get("workspace"))
        .and_then(toml::Value::as_bool)
        == Some(true);
    if !inherits {
        problems.push(format!("{} does not inherit the workspace's lints", package.name));
    }
    if entry.unsafe_allowed {
        return Ok(problems);
    }
    let source = Path::new(&package.manifest_path).with_file_name("src");
    for root_file in ["lib.rs", "main.rs"]
        .map(|name| source.join(name))
        .iter()
        .filter(|path| path.exists())
    {
        let text =
            fs::read_to_string(root_file).with_context(|| format!("cannot read {}", root_file.display()))?;
        if !text.contains("#![forbid(unsafe_code)]") {
            problems.push(format!("{} lacks #![forbid(unsafe_code)]", root_file.display()));
        }
    }
    Ok(problems)
}
