//! The agent's configuration file: TOML, unknown keys are errors.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// Contents of `config.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of this node; its client certificate is `system:node:NAME`.
    pub(crate) node_name: String,
    /// URL of the API server.
    pub(crate) api_server: String,
    /// Where the node's own API is served.
    #[serde(default = "default_listen")]
    pub(crate) listen: SocketAddr,
    /// Directory of the agent, `STATE/agent`.
    pub(crate) agent_dir: PathBuf,
    /// Directory for what does not outlive a boot, `/run/palisade`.
    pub(crate) run_dir: PathBuf,
    /// Directory of OCI layouts for `oci-layout.local/NAME`.
    pub(crate) layout_dir: PathBuf,
    /// Addresses of this node's pods.
    #[serde(default = "default_pod_cidr")]
    pub(crate) pod_cidr: Ipv4Net,
    /// Their IPv6 addresses; without it, pods have IPv4 only.
    #[serde(default)]
    pub(crate) pod_cidr6: Option<Ipv6Net>,
    /// Whether a host that cannot give pods IPv6 keeps the agent from starting. Otherwise pods have IPv4 only
    /// there, and the node's condition `PodIPv6` says why.
    #[serde(default = "default_ipv6_required")]
    pub(crate) ipv6_required: bool,
    /// Address of the node as its pods see it; found from the routing table when absent.
    #[serde(default)]
    pub(crate) node_address: Option<Ipv4Addr>,
    /// Resolvers that pods' questions are passed on to; without any, those of the node's `/etc/resolv.conf`.
    #[serde(default)]
    pub(crate) dns_upstreams: Vec<SocketAddr>,
    /// Additional authorities of registries, PEM files.
    #[serde(default)]
    pub(crate) registry_ca_files: Vec<PathBuf>,
    /// A container's log is rotated at this size.
    #[serde(default = "default_log_max_bytes")]
    pub(crate) log_max_bytes: u64,
    /// Log files kept for each run of a container, the present one included.
    #[serde(default = "default_log_max_files")]
    pub(crate) log_max_files: u32,
    /// Most bytes of the flow log; the oldest lines are dropped first, in files of 4 MiB.
    #[serde(default = "default_flow_log_max_bytes")]
    pub(crate) flow_log_max_bytes: u64,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not a configuration.
    #[error("{path} is not a valid configuration")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why, with line and key.
        #[source]
        source: Box<toml::de::Error>,
    },
}

impl Config {
    /// Reads the file at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// A file of `tls/`.
    pub(crate) fn tls_file(&self, name: &str) -> PathBuf {
        self.agent_dir.join("tls").join(name)
    }

    /// What the network remembers across restarts.
    pub(crate) fn network_state(&self) -> PathBuf {
        self.agent_dir.join("network.json")
    }

    /// Names of addresses that pods were told.
    pub(crate) fn names_file(&self) -> PathBuf {
        self.run_dir.join("names.json")
    }

    /// Volumes and records of pods.
    pub(crate) fn own_directories(&self) -> Vec<PathBuf> {
        // Beside the agent's directory are the control plane's, and the authority's.
        let state = self.agent_dir.parent().unwrap_or(&self.agent_dir);
        // As they are without links, for paths of pods have none.
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        vec![real(state), real(&self.run_dir)]
    }

    /// Directories of pods.
    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.agent_dir.join("pods")
    }

    /// Logs of containers.
    pub(crate) fn logs_dir(&self) -> PathBuf {
        self.agent_dir.join("logs")
    }

    /// The flow log.
    pub(crate) fn flows_dir(&self) -> PathBuf {
        self.agent_dir.join("flows")
    }

    /// Images, unpacked.
    pub(crate) fn images_dir(&self) -> PathBuf {
        self.agent_dir.join("images")
    }

    /// Our own bpffs, where programs and maps are pinned.
    pub(crate) fn bpf_dir(&self) -> PathBuf {
        self.run_dir.join("bpf")
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 10250))
}

fn default_pod_cidr() -> Ipv4Net {
    // A /24 by construction: the prefix is in range.
    Ipv4Net::new(Ipv4Addr::new(10, 88, 0, 0), 24).unwrap_or_default()
}

fn default_ipv6_required() -> bool {
    true
}

fn default_log_max_bytes() -> u64 {
    10 * 1024 * 1024
}

fn default_flow_log_max_bytes() -> u64 {
    64 * 1024 * 1024
}

fn default_log_max_files() -> u32 {
    5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_file_is_enough_and_a_misspelt_key_is_an_error() {
        let text = "node_name = \"n\"\napi_server = \"https://127.0.0.1:6443\"\nagent_dir = \"/s/agent\"\nrun_dir = \"/r\"\nlayout_dir = \"/s/layouts\"\n";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.listen.port(), 10250);
        assert_eq!(config.pod_cidr.to_string(), "10.88.0.0/24");
        assert!(toml::from_str::<Config>(&format!("{text}pod_cdir = \"10.0.0.0/24\"\n")).is_err());
    }
}
