//! Checks that documents do not rot: paths that ARCHITECTURE.md names exist, and so do the tests that
//! THREATS.md names.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::process::root;

/// Fails with every dead reference listed.
pub(crate) fn run() -> Result<()> {
    let mut problems = dead_paths(&read("ARCHITECTURE.md")?);
    problems.extend(dead_tests(&read("THREATS.md")?)?);
    if !problems.is_empty() {
        bail!("documents name what does not exist:\n  {}", problems.join("\n  "));
    }
    println!("documents name existing paths and tests");
    Ok(())
}

/// Paths in backquotes in the second column of the "where is" table.
fn dead_paths(text: &str) -> Vec<String> {
    let table = text
        .split("## ")
        .find(|section| section.starts_with("Where is"))
        .unwrap_or_default();
    quoted(table)
        .into_iter()
        .filter(|word| word.contains('/') && !root().join(word).exists())
        .map(|word| format!("ARCHITECTURE.md: {word}"))
        .collect()
}

/// `crate: test_name` in backquotes.
fn dead_tests(text: &str) -> Result<Vec<String>> {
    let mut sources = String::new();
    for directory in [
        "api",
        "policies",
        "ebpf/loader",
        "agent",
        "control",
        "images",
        "scanner",
        "tests",
    ] {
        collect_sources(&root().join(directory), &mut sources)?;
    }
    let exists =
        |name: &str| sources.contains(&format!("fn {name}(")) || sources.contains(&format!("\"{name}\""));
    let named = quoted(text);
    let tests = named.iter().filter_map(|word| word.split_once(": "));
    Ok(tests
        .filter(|(_, name)| !exists(name))
        .map(|(owner, name)| format!("THREATS.md: {owner}: {name}"))
        .collect())
}

fn collect_sources(directory: &Path, into: &mut String) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            collect_sources(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(
                &fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?,
            );
        }
    }
    Ok(())
}

fn quoted(text: &str) -> BTreeSet<&str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

fn read(name: &str) -> Result<String> {
    fs::read_to_string(root().join(name)).with_context(|| format!("cannot read {name}"))
}
