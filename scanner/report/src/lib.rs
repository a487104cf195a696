//! What a scan found, and whether an image may run because of it.
//!
//! [`Report::parse`] reads Trivy's JSON within bounds; [`judge`] holds it against the image policies and
//! says what follows; [`render`] shows the outcome to people and tools. A scanner that exits with 0 may
//! have checked nothing: an unknown distribution, a release that the database does not cover, a stale
//! database, a distribution past its end of life, no packages at all. Each of these makes a scan
//! *inconclusive*, which is refused unless the policy says otherwise.
//!
//! Pure: no files, no clock, no processes (`scanner/gate` has those). Non-goals: other scanners' formats,
//! secrets and misconfigurations.

#![forbid(unsafe_code)]

pub mod coverage;
mod judge;
pub mod render;
mod trivy;

pub use coverage::{DbMetadata, DbMetadataError, Os};
pub use judge::{Judgement, ScanContext, Subject, applicable, judge, policy_hash, registry_refusal};
pub use trivy::{MAX_REPORT_BYTES, MAX_REPORT_FINDINGS, ParseError, Report};
