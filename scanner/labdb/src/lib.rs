//! A small vulnerability database for laboratories and tests, in the format that Trivy reads.
//!
//! It holds invented vulnerabilities (`CVE-2099-...`, titles that start with `Lab:`) in real package
//! names, so that the whole gate works on a machine without network. It knows nothing about real
//! vulnerabilities and must never stand in for a real database where those matter.
//!
//! Pure: [`lab`] gives the content, [`LabDb::database`] and [`LabDb::metadata`] the bytes of `trivy.db`
//! (a bbolt file) and `metadata.json`. Non-goals: reading or changing databases.

#![forbid(unsafe_code)]

mod bolt;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use bolt::Bucket;

/// Operating system of the lab's own images: a rolling release, so it never passes its end of life.
pub const LAB_OS: &str = "wolfi";
/// A bucket that the lab database has, with advisories for [`VULNERABLE_PACKAGE`].
pub const ALPINE_BUCKET: &str = "alpine 3.22";
/// Package with the critical lab vulnerability [`CRITICAL_ID`].
pub const VULNERABLE_PACKAGE: &str = "busybox";
/// Vulnerability of [`VULNERABLE_PACKAGE`] below [`FIXED_VERSION`].
pub const CRITICAL_ID: &str = "CVE-2099-0001";
/// First version of [`VULNERABLE_PACKAGE`] without it.
pub const FIXED_VERSION: &str = "1.37.0-r90";
/// Package with the medium lab vulnerability [`MEDIUM_ID`], in every version below `1.2.9-r90`.
pub const MEDIUM_PACKAGE: &str = "musl";
/// Vulnerability of [`MEDIUM_PACKAGE`].
pub const MEDIUM_ID: &str = "CVE-2099-0002";
/// Vulnerability of Debian's `tar` that has no fixed version, and of Python's `requests` below 2.99.0.
pub const HIGH_ID: &str = "CVE-2099-0003";

/// Releases whose package names and advisories follow Alpine's form.
const APK_BUCKETS: [(&str, &str); 4] = [
    ("wolfi", "wolfi"),
    ("chainguard", "chainguard"),
    ("alpine", "alpine 3.22"),
    ("alpine", "alpine 3.23"),
];
const DEB_BUCKETS: [(&str, &str); 5] = [
    ("debian", "debian 12"),
    ("debian", "debian 13"),
    ("ubuntu", "ubuntu 22.04"),
    ("ubuntu", "ubuntu 24.04"),
    ("ubuntu", "ubuntu 26.04"),
];
const PIP_BUCKET: &str = "pip::GitHub Security Advisory Pip";
/// Trivy's number for "no fix planned yet".
const STATUS_AFFECTED: u8 = 2;

/// Content of the lab database.
#[derive(Debug, Clone)]
pub struct LabDb {
    root: Bucket,
}

/// The lab database.
pub fn lab() -> LabDb {
    let mut root = Bucket::default();
    let vulnerabilities = root.bucket("vulnerability");
    vulnerabilities.put(
        CRITICAL_ID,
        &vulnerability("Lab: invented critical flaw in busybox", "CRITICAL"),
    );
    vulnerabilities.put(
        MEDIUM_ID,
        &vulnerability("Lab: invented medium flaw in musl", "MEDIUM"),
    );
    vulnerabilities.put(HIGH_ID, &vulnerability("Lab: invented high flaw", "HIGH"));

    for (source, bucket) in APK_BUCKETS {
        root.bucket("data-source").put(bucket, &data_source(source));
        let advisories = root.bucket(bucket);
        advisories
            .bucket(VULNERABLE_PACKAGE)
            .put(CRITICAL_ID, &json!({ "FixedVersion": FIXED_VERSION }));
        advisories
            .bucket(MEDIUM_PACKAGE)
            .put(MEDIUM_ID, &json!({ "FixedVersion": "1.2.9-r90" }));
    }
    for (source, bucket) in DEB_BUCKETS {
        root.bucket("data-source").put(bucket, &data_source(source));
        let advisories = root.bucket(bucket);
        advisories
            .bucket("lab-vulnerable")
            .put(CRITICAL_ID, &json!({ "FixedVersion": "2.0-1" }));
        advisories
            .bucket("lab-unfixed")
            .put(HIGH_ID, &json!({ "Status": STATUS_AFFECTED }));
    }
    root.bucket("data-source").put(PIP_BUCKET, &data_source("ghsa"));
    root.bucket(PIP_BUCKET).bucket("requests").put(
        HIGH_ID,
        &json!({ "PatchedVersions": ["2.99.0"], "VulnerableVersions": ["<2.99.0"] }),
    );
    LabDb { root }
}

impl LabDb {
    /// Bytes of `trivy.db`.
    pub fn database(&self) -> Vec<u8> {
        bolt::write(&self.root)
    }

    /// Bytes of `metadata.json`: collected at `updated_at`, due again a day later.
    pub fn metadata(&self, updated_at: Timestamp) -> Vec<u8> {
        let next = updated_at
            .saturating_add(SignedDuration::from_hours(24))
            .unwrap_or(updated_at);
        let metadata = json!({
            "Version": 2,
            "NextUpdate": next.to_string(),
            "UpdatedAt": updated_at.to_string(),
            "DownloadedAt": updated_at.to_string(),
        });
        metadata.to_string().into_bytes()
    }
}

fn vulnerability(title: &str, severity: &str) -> Value {
    json!({
        "Title": title,
        "Description": "Invented for laboratories. It describes no real flaw.",
        "Severity": severity,
        "VendorSeverity": { "nvd": match severity { "CRITICAL" => 4, "HIGH" => 3, "MEDIUM" => 2, _ => 1 } },
        "PublishedDate": "2099-01-01T00:00:00Z",
        "LastModifiedDate": "2099-01-01T00:00:00Z",
    })
}

fn data_source(id: &str) -> Value {
    json!({ "ID": id, "Name": "Palisade lab data", "URL": "https://palisade.dev/lab" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        assert_eq!(lab().database(), lab().database());
        assert!(lab().root.has(LAB_OS) && lab().root.has(ALPINE_BUCKET));
    }
}
