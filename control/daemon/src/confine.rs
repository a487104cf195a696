//! The sandbox that the daemon puts itself into before it listens: it may change its own directory, run
//! Trivy and itself, and read what it needs.

use std::{
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use agent_sandbox::{ApplyError, CompileError, DaemonPaths, Profile};
use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};

use crate::config::Config;

/// Where distributions keep the authorities that registries' certificates are verified against.
const SYSTEM_AUTHORITIES: &[&str] = &[
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
];

/// Why the daemon could not confine itself. It does not run unconfined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    /// A program that the daemon starts cannot be executed by its user.
    #[error("user {uid} cannot execute {}: put it where all users may enter every directory above it", path.display())]
    NotExecutable {
        /// The program.
        path: PathBuf,
        /// The daemon's user.
        uid: u32,
        /// Reason.
        #[source]
        source: Errno,
    },
    /// The directory for state cannot be made private.
    #[error("make {} private", path.display())]
    Private {
        /// The directory.
        path: PathBuf,
        /// Reason.
        #[source]
        source: io::Error,
    },
    /// The profile could not be compiled.
    #[error("compile the daemon's own profile")]
    Compile(#[source] CompileError),
    /// The kernel did not enforce the profile.
    #[error("apply the daemon's own profile")]
    Apply(#[source] ApplyError),
}

/// Confines this process, which must have one thread. `own_program` is started again as Trivy's jail.
pub(crate) fn confine(config: &Config, own_program: &Path) -> Result<(), ConfineError> {
    for path in [own_program, &config.gate.trivy] {
        access(path, AccessFlags::X_OK).map_err(|source| ConfineError::NotExecutable {
            path: path.to_owned(),
            uid: config.uid,
            source,
        })?;
    }
    std::fs::set_permissions(&config.control_dir, Permissions::from_mode(0o700)).map_err(|source| {
        ConfineError::Private {
            path: config.control_dir.clone(),
            source,
        }
    })?;
    let mut readable = vec![config.layout_dir.clone(), config.gate.trivy_cache.clone()];
    readable.extend(config.gate.registry_ca_files.iter().cloned());
    readable.extend(config.gate.registry_config_dir.iter().cloned());
    readable.extend(SYSTEM_AUTHORITIES.iter().map(PathBuf::from));
    let profile = Profile::daemon(&DaemonPaths {
        writable: vec![config.control_dir.clone()],
        readable,
        executable: vec![own_program.to_owned(), config.gate.trivy.clone()],
    });
    profile
        .compile()
        .map_err(ConfineError::Compile)?
        .apply()
        .map_err(ConfineError::Apply)
}
