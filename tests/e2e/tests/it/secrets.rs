//! What is stored is sealed, and what is secret stays out of files and logs.

use std::path::Path;

use anyhow::{Result, ensure};
use e2e::cluster::Cluster;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("secret_is_in_no_file_and_no_log", is_in_no_file_and_no_log)];

fn is_in_no_file_and_no_log(cluster: &Cluster) -> Result<()> {
    // Two spellings: as it is, and as base64 in the object.
    let secret = "correct-horse-battery-staple-42";
    let argument = format!("--from-literal=password={secret}");
    cluster
        .kubectl(&["create", "secret", "generic", "sealed", &argument])?
        .ok()?;
    let read = cluster.object("default", "secrets", "sealed")?;
    let encoded = read["data"]["password"].as_str().unwrap_or_default().to_owned();
    ensure!(!encoded.is_empty(), "the secret cannot be read back: {read}");
    let mut searched = 0;
    for needle in [secret, &encoded] {
        searched = search(&cluster.state_dir, needle.as_bytes())?;
    }
    ensure!(searched > 5, "only {searched} files were searched");
    cluster.kubectl(&["delete", "secret", "sealed"])?.ok()?;
    Ok(())
}

/// Looks for `needle` in every file below `directory`; returns how many files it read.
fn search(directory: &Path, needle: &[u8]) -> Result<usize> {
    let mut read = 0;
    let Some(entries) = still_there(std::fs::read_dir(directory))? else {
        return Ok(read);
    };
    for entry in entries {
        let path = entry?.path();
        let Some(metadata) = still_there(std::fs::symlink_metadata(&path))? else {
            continue;
        };
        if metadata.is_dir() {
            read += search(&path, needle)?;
        } else if metadata.is_file()
            && metadata.len() < 64 << 20
            && let Some(bytes) = still_there(std::fs::read(&path))?
        {
            let found = bytes.windows(needle.len()).any(|window| window == needle);
            ensure!(!found, "{} holds the secret", path.display());
            read += 1;
        }
    }
    Ok(read)
}

/// The daemons go on meanwhile: what is gone holds nothing.
fn still_there<T>(found: std::io::Result<T>) -> Result<Option<T>> {
    match found {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        found => Ok(Some(found?)),
    }
}
