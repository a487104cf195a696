//! The real scanner, and the lab database on disk.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};
use api::Digest;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

/// Path and hash of the Trivy binary that `cargo xtask setup` provides below `target/tools`, or else of
/// the one on the PATH.
pub fn trivy() -> Result<(PathBuf, Digest)> {
    static FOUND: OnceLock<(PathBuf, Digest)> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found.clone());
    }
    let provided = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/trivy");
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|dir| dir.join("trivy"))
            .find(|candidate| candidate.is_file())
    };
    let Some(path) = Some(provided).filter(|path| path.is_file()).or_else(on_path) else {
        bail!("there is no Trivy; run `cargo xtask setup`");
    };
    let path = fs::canonicalize(&path).with_context(|| format!("cannot find {}", path.display()))?;
    let found = (path.clone(), sha256(&path)?);
    Ok(FOUND.get_or_init(|| found).clone())
}

/// Writes the lab database into `dir` as if it were collected `age_hours` ago.
pub fn write_lab_db(dir: &Path, age_hours: i64) -> Result<()> {
    let collected = Timestamp::now().checked_sub(SignedDuration::from_hours(age_hours))?;
    let lab = scanner_labdb::lab();
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for (name, bytes) in [
        ("trivy.db", lab.database()),
        ("metadata.json", lab.metadata(collected)),
    ] {
        let path = dir.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn sha256(path: &Path) -> Result<Digest> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_sha256(hasher.finalize().into())),
            read => hasher.update(&buffer[..read]),
        }
    }
}
