//! The agent's configuration file: TOML, unknown keys are errors.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use agent_runtime::{MAX_POD_PIDS, MIN_POD_PIDS};
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
    /// Directory of manifests of static pods; `AGENT_DIR/manifests` when absent. Only root may write to it and to the
    /// files in it.
    #[serde(default)]
    pub(crate) static_pod_path: Option<PathBuf>,
    /// Directory of seccomp profiles that pods name by `localhostProfile`; `AGENT_DIR/seccomp` when absent. Only root may
    /// write to it and to what is in it.
    #[serde(default)]
    pub(crate) seccomp_profile_path: Option<PathBuf>,
    /// Address of the node as its pods see it; found from the routing table when absent.
    #[serde(default)]
    pub(crate) node_address: Option<Ipv4Addr>,
    /// Whether packets between two pods of the node go straight from one to the other after a flow's first; otherwise all go
    /// by the host's stack, and what others let it do: rules of nftables, queueing disciplines.
    #[serde(default = "default_direct_pod_traffic")]
    pub(crate) direct_pod_traffic: bool,
    /// Resolvers that pods' questions are passed on to; without any, those of the node's `/etc/resolv.conf`.
    #[serde(default)]
    pub(crate) dns_upstreams: Vec<SocketAddr>,
    /// Additional authorities of registries, PEM files.
    #[serde(default)]
    pub(crate) registry_ca_files: Vec<PathBuf>,
    /// Directory with mirrors and authorities of registries, `HOST/hosts.toml`.
    #[serde(default)]
    pub(crate) registry_config_dir: Option<PathBuf>,
    /// Above this share of the disk of images, those that nobody uses are removed ...
    #[serde(default = "default_image_gc_high_percent")]
    pub(crate) image_gc_high_percent: u8,
    /// ... down to this one.
    #[serde(default = "default_image_gc_low_percent")]
    pub(crate) image_gc_low_percent: u8,
    /// An image that was used within this time stays.
    #[serde(default = "default_image_gc_min_age_seconds")]
    pub(crate) image_gc_min_age_seconds: u64,
    /// Processes and threads of a pod: of all its containers together, and so of each. For pods that start from then on.
    #[serde(default = "default_pod_pids_limit")]
    pub(crate) pod_pids_limit: u32,
    /// A container's log is rotated at this size.
    #[serde(default = "default_log_max_bytes")]
    pub(crate) log_max_bytes: u64,
    /// Log files kept for each run of a container, the present one included.
    #[serde(default = "default_log_max_files")]
    pub(crate) log_max_files: u32,
    /// Most bytes of the flow log; the oldest lines are dropped first, in files of 4 MiB.
    #[serde(default = "default_flow_log_max_bytes")]
    pub(crate) flow_log_max_bytes: u64,
    /// The oldest Landlock interface that a SandboxProfile with `enforcement: BestEffort` makes do with; 0 for none at
    /// all. Whoever may write such objects in a namespace can go down to this, and not below.
    #[serde(default = "default_landlock_floor")]
    pub(crate) landlock_floor: u32,
    /// From how little on the node is under pressure.
    #[serde(default)]
    pub(crate) eviction: Thresholds,
    /// What people are told of images that come.
    #[serde(default)]
    pub(crate) pulls: Pulls,
    /// How large an image may be.
    #[serde(default)]
    pub(crate) image_limits: agent_images::Limits,
    /// How the node's certificates are renewed.
    #[serde(default)]
    pub(crate) certificates: Certificates,
    /// How long pods get to end when the node shuts down, and those of the system after them.
    #[serde(default)]
    pub(crate) node_shutdown: ShutdownGrace,
}

/// Where programs in pods find the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiAddress {
    /// An address, or a name.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Kubernetes' defaults, but for process numbers, for which it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Thresholds {
    /// Memory that is not in use, or only by files that nobody used lately.
    pub(crate) memory_available_bytes: u64,
    /// Free space of the agent's file system.
    pub(crate) disk_available_percent: u64,
    /// Free file numbers there.
    pub(crate) inodes_free_percent: u64,
    /// Free process numbers.
    pub(crate) processes_free_percent: u64,
    /// A condition stays for this long after the pressure was last seen.
    pub(crate) transition_seconds: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            memory_available_bytes: 100 << 20,
            disk_available_percent: 10,
            inodes_free_percent: 5,
            processes_free_percent: 5,
            transition_seconds: 300,
        }
    }
}

/// What is told of a pull while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Pulls {
    /// How often an event says how far it has come.
    pub(crate) progress_seconds: NonZeroU32,
}

impl Default for Pulls {
    fn default() -> Self {
        const THIRTY: NonZeroU32 = NonZeroU32::new(30).unwrap();
        Self {
            progress_seconds: THIRTY,
        }
    }
}

/// For how long certificates are asked for, and when for the next ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Certificates {
    /// As long as the signer gives, a year, when absent; ten minutes at least.
    pub(crate) lifetime_seconds: Option<u32>,
    /// Share of their time that has passed when they are renewed.
    pub(crate) renew_at_percent: u8,
}

impl Default for Certificates {
    fn default() -> Self {
        Self {
            lifetime_seconds: None,
            renew_at_percent: 80,
        }
    }
}

/// Both in seconds; a pod's own grace is shortened to it, never lengthened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ShutdownGrace {
    pub(crate) pods_seconds: u32,
    pub(crate) critical_pods_seconds: u32,
}

impl Default for ShutdownGrace {
    fn default() -> Self {
        Self {
            pods_seconds: 20,
            critical_pods_seconds: 10,
        }
    }
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
    /// The thresholds of image removal contradict each other.
    #[error("{path}: image_gc_low_percent must be less than image_gc_high_percent, and that at most 100")]
    GcPercent {
        /// The file.
        path: PathBuf,
    },
    /// No pod could start, or the kernel takes no such limit.
    #[error("{path}: pod_pids_limit is {limit}, but must be from {MIN_POD_PIDS} to {MAX_POD_PIDS}")]
    PodPids {
        /// The file.
        path: PathBuf,
        /// What it says.
        limit: u32,
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
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let path = || path.to_owned();
        if config.image_gc_low_percent >= config.image_gc_high_percent || config.image_gc_high_percent > 100 {
            return Err(ConfigError::GcPercent { path: path() });
        }
        let limit = config.pod_pids_limit;
        if !(MIN_POD_PIDS..=MAX_POD_PIDS).contains(&limit) {
            return Err(ConfigError::PodPids { path: path(), limit });
        }
        Ok(config)
    }

    /// What a short file says, with everything below `base`.
    #[cfg(test)]
    pub(crate) fn below(base: &Path) -> Self {
        let base = base.display();
        let text = format!(
            "node_name = \"n\"\napi_server = \"https://127.0.0.1:6443\"\nagent_dir = \"{base}\"\n\
             run_dir = \"{base}/run\"\nlayout_dir = \"{base}/layouts\"\n"
        );
        toml::from_str(&text).unwrap()
    }

    /// Where pods find the API server, if they can: what listens on the node's loopback is in another network than theirs.
    /// Its certificate holds the address, for the agent verifies it by the same.
    pub(crate) fn api_for_pods(&self) -> Option<ApiAddress> {
        let url: hyper::Uri = self.api_server.parse().ok()?;
        let host = url.host()?.trim_matches(['[', ']']);
        let out_of_reach = match host.parse::<IpAddr>() {
            Ok(address) => {
                let address = address.to_canonical();
                address.is_loopback() || address.is_unspecified()
            }
            Err(_name) => host == "localhost" || host.ends_with(".localhost"),
        };
        let port = url.port_u16().unwrap_or(443);
        (!out_of_reach).then(|| ApiAddress {
            host: host.to_owned(),
            port,
        })
    }

    /// A file of `tls/`.
    pub(crate) fn tls_file(&self, name: &str) -> PathBuf {
        self.agent_dir.join("tls").join(name)
    }

    /// Manifests of static pods.
    pub(crate) fn static_pod_dir(&self) -> PathBuf {
        let default = || self.agent_dir.join("manifests");
        self.static_pod_path.clone().unwrap_or_else(default)
    }

    /// Seccomp profiles that pods name.
    pub(crate) fn seccomp_dir(&self) -> PathBuf {
        let default = || self.agent_dir.join("seccomp");
        self.seccomp_profile_path.clone().unwrap_or_else(default)
    }

    /// What was admitted of static pods.
    pub(crate) fn admitted_dir(&self) -> PathBuf {
        self.agent_dir.join("admitted")
    }

    /// What containers write over their images.
    pub(crate) fn writable_dir(&self) -> PathBuf {
        self.agent_dir.join("writable")
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

fn default_direct_pod_traffic() -> bool {
    true
}

fn default_image_gc_high_percent() -> u8 {
    agent_images::GcPolicy::default().high_percent
}

fn default_image_gc_low_percent() -> u8 {
    agent_images::GcPolicy::default().low_percent
}

fn default_image_gc_min_age_seconds() -> u64 {
    agent_images::GcPolicy::default().min_age.as_secs()
}

fn default_pod_pids_limit() -> u32 {
    4096
}

fn default_log_max_bytes() -> u64 {
    10 * 1024 * 1024
}

fn default_flow_log_max_bytes() -> u64 {
    64 * 1024 * 1024
}

/// What the presets need: below it only the node's operator goes.
fn default_landlock_floor() -> u32 {
    5
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
        let large: Config =
            toml::from_str(&format!("{text}[image_limits]\ncompressed_bytes = 8589934592\n")).unwrap();
        assert_eq!(large.image_limits.compressed_bytes, 8 << 30);
        assert_eq!(large.image_limits.layers, config.image_limits.layers);
    }

    #[test]
    fn pods_are_told_of_an_api_server_that_they_can_reach() {
        let of = |url: &str| {
            let mut config = Config::below(Path::new("/s"));
            config.api_server = url.to_owned();
            config.api_for_pods().map(|api| (api.host, api.port))
        };
        let found = |host: &str, port: u16| Some((host.to_owned(), port));
        assert_eq!(of("https://192.0.2.7:6443"), found("192.0.2.7", 6443));
        assert_eq!(of("https://[2001:db8::7]:6443"), found("2001:db8::7", 6443));
        assert_eq!(of("https://api.example.net"), found("api.example.net", 443));
        for inside in [
            "https://127.0.0.1:6443",
            "https://127.8.0.1:6443",
            "https://[::1]:6443",
            "https://[::ffff:127.0.0.1]:6443",
            "https://0.0.0.0:6443",
            "https://localhost:6443",
            "nonsense of no host",
        ] {
            assert_eq!(of(inside), None, "{inside}");
        }
    }

    #[test]
    fn a_limit_of_processes_that_no_pod_could_start_with_is_refused_by_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        let read = |limit: &str| {
            let text = "node_name = \"n\"\napi_server = \"https://127.0.0.1:6443\"\nagent_dir = \"/s/agent\"\n\
                        run_dir = \"/r\"\nlayout_dir = \"/s/layouts\"\n";
            std::fs::write(&file, format!("{text}{limit}")).unwrap();
            Config::read(&file)
        };
        assert_eq!(read("").unwrap().pod_pids_limit, 4096);
        for possible in [16, 4_194_304] {
            let config = read(&format!("pod_pids_limit = {possible}\n")).unwrap();
            assert_eq!(config.pod_pids_limit, possible);
        }
        for impossible in [0, 15, 4_194_305] {
            let error = read(&format!("pod_pids_limit = {impossible}\n")).unwrap_err();
            let words = format!("pod_pids_limit is {impossible}, but must be from 16 to 4194304");
            assert!(error.to_string().ends_with(&words), "{error}");
        }
        for nonsense in ["-1", "\"many\""] {
            assert!(read(&format!("pod_pids_limit = {nonsense}\n")).is_err());
        }
    }
}
