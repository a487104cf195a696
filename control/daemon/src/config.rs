//! The daemon's configuration file: TOML, unknown keys are errors, defaults in one place.

use std::{
    fs::File,
    io::{self, Read as _},
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use api::Digest;
use control_apiserver::{ServiceRange, ServiceRangeError};
use scanner_gate::Limits;
use serde::{Deserialize, Serialize};

/// Address that the API is served on when nothing else is asked for.
pub(crate) const DEFAULT_LISTEN: &str = "127.0.0.1:6443";
/// User and group of the running daemon.
pub(crate) const DEFAULT_UID: u32 = 64100;

/// More than any configuration takes.
const MAX_BYTES: u64 = 64 * 1024;

/// Contents of `config.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Where the API is served.
    pub(crate) listen: SocketAddr,
    /// Directory of the control plane, `STATE/control`: the only one it may write to.
    pub(crate) control_dir: PathBuf,
    /// Directory of OCI layouts for `oci-layout.local/NAME:TAG`.
    pub(crate) layout_dir: PathBuf,
    /// User and group that the daemon becomes when it is started as root.
    pub(crate) uid: u32,
    /// Where cluster addresses of services come from, an IPv4 CIDR. It must hold no address that pods, nodes or
    /// anything that pods talk to have.
    #[serde(default = "default_service_cidr")]
    pub(crate) service_cidr: String,
    /// The image gate.
    pub(crate) gate: GateConfig,
}

/// The image gate's part of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GateConfig {
    /// Trivy's binary.
    pub(crate) trivy: PathBuf,
    /// What the binary must hash to; it is checked before it runs.
    pub(crate) trivy_sha256: Digest,
    /// Directory with `db/trivy.db` and `db/metadata.json`.
    pub(crate) trivy_cache: PathBuf,
    /// Longest time for one scan.
    pub(crate) timeout_seconds: u64,
    /// How long after its admission a container may first start: one that starts later would have been judged by a
    /// database that is old by then.
    #[serde(default = "default_verdict_lifetime")]
    pub(crate) verdict_lifetime_seconds: u32,
    /// Additional authorities of registries, PEM files.
    #[serde(default)]
    pub(crate) registry_ca_files: Vec<PathBuf>,
    /// Directory with mirrors and authorities of registries, `HOST/hosts.toml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) registry_config_dir: Option<PathBuf>,
    /// How large an image may be.
    #[serde(default)]
    pub(crate) image_limits: Limits,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Reason.
        #[source]
        source: io::Error,
    },
    /// Somebody else than root could have written what root is about to follow.
    #[error("{} must belong to root and be writable by nobody else", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
    },
    /// The daemon would run as root.
    #[error("{}: uid must not be 0", path.display())]
    Root {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a configuration.
    #[error("{} is not a valid configuration", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Reason, with line and key.
        #[source]
        source: Box<toml::de::Error>,
    },
}

impl Config {
    /// Reads the file at `path`. Root follows only what root wrote: the file lies in a directory of the
    /// control user, who must not choose what the daemon becomes at its next start.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let read_error = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        if nix::unistd::geteuid().is_root() && (metadata.uid() != 0 || metadata.mode() & 0o022 != 0) {
            return Err(ConfigError::Untrusted {
                path: path.to_owned(),
            });
        }
        let mut text = String::new();
        file.by_ref()
            .take(MAX_BYTES)
            .read_to_string(&mut text)
            .map_err(read_error)?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        match config.uid {
            0 => Err(ConfigError::Root {
                path: path.to_owned(),
            }),
            _ => Ok(config),
        }
    }

    /// Where cluster addresses of services come from.
    pub(crate) fn service_range(&self) -> Result<ServiceRange, ServiceRangeError> {
        self.service_cidr.parse()
    }

    /// File of the control directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.control_dir.join(name)
    }
}

/// A day: databases appear several times a day, and `maxDbAgeHours` of policies is of that order.
fn default_verdict_lifetime() -> u32 {
    24 * 60 * 60
}

fn default_service_cidr() -> String {
    ServiceRange::default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Config {
        Config {
            listen: DEFAULT_LISTEN.parse().unwrap(),
            control_dir: "/s/control".into(),
            layout_dir: "/s/layouts".into(),
            uid: DEFAULT_UID,
            service_cidr: default_service_cidr(),
            gate: GateConfig {
                trivy: "/usr/bin/trivy".into(),
                trivy_sha256: Digest::of(b"trivy"),
                trivy_cache: "/s/trivy".into(),
                timeout_seconds: 60,
                verdict_lifetime_seconds: default_verdict_lifetime(),
                registry_ca_files: Vec::new(),
                registry_config_dir: Some("/etc/palisade/registries".into()),
                image_limits: Limits {
                    compressed_bytes: 8 << 30,
                    ..Limits::default()
                },
            },
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_typos_are_errors() {
        let text = toml::to_string(&sample()).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), sample());
        let typo = text.replace("timeout_seconds", "timeout_second");
        assert!(toml::from_str::<Config>(&typo).is_err());
        let no_lifetime = text.replace("verdict_lifetime_seconds", "#");
        assert_eq!(toml::from_str::<Config>(&no_lifetime).unwrap(), sample());
        let unlimited = text.replace("[gate.image_limits]", "[gate.image_limits]\nlayers = 9");
        assert!(toml::from_str::<Config>(&unlimited).is_err());
        let (older, range) = (text.replace("service_cidr", "#"), ServiceRange::default());
        assert_eq!(
            toml::from_str::<Config>(&older).unwrap().service_range().unwrap(),
            range
        );
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, text.replace("uid = 64100", "uid = 0")).unwrap();
        assert!(matches!(Config::read(&file), Err(ConfigError::Root { .. })));
        std::fs::write(&file, &text).unwrap();
        assert_eq!(Config::read(&file).unwrap(), sample());
        std::os::unix::fs::chown(&file, Some(DEFAULT_UID), None).unwrap();
        assert!(matches!(Config::read(&file), Err(ConfigError::Untrusted { .. })));
        let short = text.replace("uid = 64100\n", "");
        assert!(toml::from_str::<Config>(&short).is_err());
    }
}
