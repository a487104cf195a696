//! What a vulnerability database covers: its age, and the operating system releases that it knows.

use jiff::Timestamp;
use serde::Deserialize;

/// Operating system of an image, as the scanner names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Os {
    /// Family, such as `alpine`.
    pub family: String,
    /// Release, such as `3.22.1`.
    pub release: String,
    /// Whether its distributor has stopped publishing fixes.
    pub end_of_life: bool,
}

/// `metadata.json` beside a Trivy database.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DbMetadata {
    /// Schema of the database.
    pub version: u32,
    /// When its content was collected.
    pub updated_at: Timestamp,
}

/// Why a database's metadata cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DbMetadataError {
    /// Not the JSON that Trivy expects.
    #[error("the vulnerability database's metadata is not valid")]
    Json {
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// Another schema.
    #[error("the vulnerability database has schema version {version}, expected 2")]
    Schema {
        /// Its version.
        version: u32,
    },
}

impl DbMetadata {
    /// Reads `metadata.json`.
    pub fn parse(bytes: &[u8]) -> Result<Self, DbMetadataError> {
        let metadata: Self =
            serde_json::from_slice(bytes).map_err(|source| DbMetadataError::Json { source })?;
        match metadata.version {
            2 => Ok(metadata),
            version => Err(DbMetadataError::Schema { version }),
        }
    }
}

impl Os {
    /// Name of the bucket in a Trivy database that holds this release's advisories, as the database's
    /// collectors name it. `None` if the family or the form of its release is not known here: such an
    /// image is treated as not covered.
    pub fn bucket(&self) -> Option<String> {
        let release = self.release.as_str();
        let major = || number(release.split('.').next()?);
        let major_minor = || {
            let mut parts = release.split('.');
            let (major, minor) = (number(parts.next()?)?, number(parts.next()?)?);
            Some(format!("{major}.{minor}"))
        };
        Some(match self.family.as_str() {
            "alpine" if release == "edge" || release.starts_with("edge") => "alpine edge".to_owned(),
            "alpine" => format!("alpine {}", major_minor()?),
            "debian" => format!("debian {}", major()?),
            "ubuntu" => format!("ubuntu {}", major_minor()?),
            "alma" => format!("alma {}", major()?),
            "rocky" => format!("rocky {}", major()?),
            "oracle" => format!("Oracle Linux {}", major()?),
            "photon" => format!("Photon OS {}", major_minor()?),
            "amazon" => format!("amazon linux {}", number(release.split([' ', '.']).next()?)?),
            "azurelinux" => format!("Azure Linux {}", major_minor()?),
            "cbl-mariner" => format!("CBL-Mariner {}", major_minor()?),
            "opensuse.leap" | "opensuse-leap" => format!("openSUSE Leap {}", major_minor()?),
            "wolfi" => "wolfi".to_owned(),
            "chainguard" => "chainguard".to_owned(),
            // Advisories of these are keyed by product, not by release.
            "redhat" | "centos" => "Red Hat".to_owned(),
            _ => return None,
        })
    }
}

impl std::fmt::Display for Os {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.family, self.release)
    }
}

fn number(text: &str) -> Option<&str> {
    (!text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_map_to_the_databases_names() {
        for (family, release, bucket) in [
            ("alpine", "3.22.1", Some("alpine 3.22")),
            ("alpine", "3.22", Some("alpine 3.22")),
            ("alpine", "3", None),
            ("debian", "12.5", Some("debian 12")),
            ("debian", "trixie/sid", None),
            ("ubuntu", "24.04", Some("ubuntu 24.04")),
            ("amazon", "2 (Karoo)", Some("amazon linux 2")),
            ("rocky", "9.4", Some("rocky 9")),
            ("wolfi", "20230201", Some("wolfi")),
            ("foolinux", "1", None),
        ] {
            let os = Os {
                family: family.into(),
                release: release.into(),
                end_of_life: false,
            };
            assert_eq!(os.bucket().as_deref(), bucket, "{family} {release}");
        }
    }

    #[test]
    fn only_schema_2_is_read() {
        let text =
            |version: u32| format!(r#"{{"Version":{version},"UpdatedAt":"2026-01-01T00:00:00Z","X":1}}"#);
        assert!(DbMetadata::parse(text(2).as_bytes()).is_ok());
        assert!(matches!(
            DbMetadata::parse(text(3).as_bytes()),
            Err(DbMetadataError::Schema { version: 3 })
        ));
        assert!(matches!(
            DbMetadata::parse(b"{}"),
            Err(DbMetadataError::Json { .. })
        ));
    }
}
