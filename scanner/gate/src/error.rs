//! Why the gate could not judge an image. None of these admits it.

use std::{io, path::PathBuf};

use api::Digest;

/// Why there is no judgement.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// A policy does not allow the registry or repository, so nothing was fetched.
    #[error("{reason}")]
    NotAllowed {
        /// Which policy and what it allows.
        reason: String,
    },
    /// The image could not be resolved, fetched or verified.
    #[error("cannot fetch the image to scan it")]
    Fetch {
        /// What failed.
        #[source]
        source: images_fetch::FetchError,
    },
    /// The scanner binary is not the one that the operator pinned.
    #[error("scanner {} has SHA-256 {actual}, but {expected} is pinned; it was not run", path.display())]
    ScannerHash {
        /// The binary.
        path: PathBuf,
        /// The pinned hash.
        expected: Digest,
        /// What is there.
        actual: Digest,
    },
    /// The vulnerability database's metadata cannot be used.
    #[error("vulnerability database in {} cannot be used", path.display())]
    DbMetadata {
        /// Directory of the database.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: scanner_report::coverage::DbMetadataError,
    },
    /// The vulnerability database is not a database.
    #[error("vulnerability database {} cannot be read", path.display())]
    Db {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: crate::bolt::BoltError,
    },
    /// The vulnerability database was replaced again and again while scans ran.
    #[error("the vulnerability database changed during {attempts} scans in a row")]
    DbUnstable {
        /// Scans that were thrown away.
        attempts: u32,
    },
    /// The jail around the scanner cannot be described.
    #[error("cannot prepare the scanner's jail")]
    Jail {
        /// What failed.
        #[source]
        source: agent_sandbox::jail::JailError,
    },
    /// The scanner did not finish in time and was killed.
    #[error("the scanner did not finish within {seconds} s and was killed")]
    ScannerTimeout {
        /// The limit in seconds.
        seconds: u64,
    },
    /// The scanner failed.
    #[error("the scanner failed ({status}): {message}")]
    ScannerFailed {
        /// Exit status in words.
        status: String,
        /// End of what it wrote to standard error, one line, cut.
        message: String,
    },
    /// The scanner's report cannot be read.
    #[error("the scanner's report cannot be used")]
    Report {
        /// What is wrong.
        #[source]
        source: scanner_report::ParseError,
    },
    /// A local file operation failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The scan was cancelled, which happens when the process shuts down.
    #[error("the scan was interrupted")]
    Interrupted,
}

impl GateError {
    /// The error and all its causes, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// Closure that wraps an I/O error with operation and path.
pub(crate) fn io_error(
    operation: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(io::Error) -> GateError {
    let path = path.to_owned();
    move |source| GateError::Io {
        operation,
        path,
        source,
    }
}
