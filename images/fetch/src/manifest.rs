//! The OCI documents: index, manifest and image configuration. Pure parsing of untrusted bytes.
//!
//! Accepted are OCI v1 and Docker schema 2. A document that is both an index and a manifest is refused:
//! two readers could see two different images in it.

use std::collections::BTreeMap;

use api::Digest;
use serde::Deserialize;

use crate::{FetchError, layer::Compression};

/// Media types asked for when a manifest or index is requested.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// Annotation that names a tag in the index of an OCI layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

const CONFIG_TYPES: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// Architecture of this machine in the words of OCI (`GOARCH`).
pub(crate) const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "unsupported"
};

/// A parsed manifest or index.
#[derive(Debug)]
pub(crate) enum Document {
    /// Points to manifests, usually one per platform.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Manifest),
}

/// Pointer to content.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// Tag under which an OCI layout lists this entry.
    pub(crate) fn ref_name(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(REF_NAME).map(String::as_str)
    }

    fn platform_text(&self) -> String {
        match &self.platform {
            Some(platform) => platform.to_string(),
            None => "an image without platform".to_owned(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

/// The content of one image: configuration and layers, lowest layer first.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<(Descriptor, Compression)>,
}

/// What the image asks of a container that runs it. Absent values are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Program and leading arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the whole command if there is no entry point.
    pub cmd: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers.
    pub user: String,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// Signal that asks the program to end, such as `SIGQUIT`.
    pub stop_signal: Option<String>,
    /// Directories that it means to write to (`VOLUME`), in order.
    pub volumes: Vec<String>,
}

/// A parsed image configuration.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) image: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
}

impl Document {
    /// Parses a manifest or an index; `what` names it in errors.
    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self, FetchError> {
        let raw: RawDocument = json(what, bytes)?;
        if raw.schema_version != 2 {
            return Err(document(
                what,
                format!("schemaVersion is {}, not 2", raw.schema_version),
            ));
        }
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) => Ok(Self::Index(manifests)),
            (None, Some(config), Some(layers)) => Manifest::new(what, config, layers).map(Self::Manifest),
            (Some(_), _, _) => Err(document(what, "it is an index and a manifest at once")),
            _ => Err(document(
                what,
                "it has neither \"manifests\" nor \"config\" with \"layers\"",
            )),
        }
    }
}

impl Manifest {
    /// Bytes of the image as it is transferred; its manifest has `own`.
    pub(crate) fn size(&self, own: usize) -> u64 {
        let layers = self.layers.iter().map(|(layer, _)| layer.size);
        let parts = layers.chain([self.config.size, own as u64]);
        parts.fold(0, u64::saturating_add)
    }

    fn new(what: &str, config: Descriptor, layers: Vec<Descriptor>) -> Result<Self, FetchError> {
        if !CONFIG_TYPES.contains(&config.media_type.as_str()) {
            let problem = format!(
                "configuration has media type {:?}, which is no container image",
                config.media_type
            );
            return Err(document(what, problem));
        }
        let layers = layers
            .into_iter()
            .map(|layer| match Compression::of_media_type(&layer.media_type) {
                Some(compression) => Ok((layer, compression)),
                None => Err(document(
                    what,
                    format!("layer media type {:?} is not supported", layer.media_type),
                )),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { config, layers })
    }
}

impl Config {
    /// Parses an image configuration and checks that it is for this machine.
    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self, FetchError> {
        let raw: RawConfig = json(what, bytes)?;
        if raw.os != "linux" || raw.architecture != ARCHITECTURE {
            return Err(FetchError::Platform {
                image: what.to_owned(),
                wanted: format!("linux/{ARCHITECTURE}"),
                offered: format!("{}/{}", raw.os, raw.architecture),
            });
        }
        if raw.rootfs.kind != "layers" {
            return Err(document(
                what,
                format!("rootfs type is {:?}, not \"layers\"", raw.rootfs.kind),
            ));
        }
        let container = raw.config.unwrap_or_default();
        Ok(Self {
            image: ImageConfig {
                entrypoint: container.entrypoint.unwrap_or_default(),
                cmd: container.cmd.unwrap_or_default(),
                env: container.env.unwrap_or_default(),
                user: container.user.unwrap_or_default(),
                working_dir: container.working_dir.unwrap_or_default(),
                stop_signal: container.stop_signal.filter(|signal| !signal.is_empty()),
                volumes: container.volumes.unwrap_or_default().into_keys().collect(),
            },
            diff_ids: raw.rootfs.diff_ids.unwrap_or_default(),
        })
    }
}

impl Platform {
    /// How much an image asks of a processor of this architecture; `None` if it is for another one. The digest that
    /// is chosen here runs on every node, so the entry that asks least is the one to take.
    fn rank(&self) -> Option<u32> {
        if self.os != "linux" || self.architecture != ARCHITECTURE {
            return None;
        }
        let level = |text: &str, lowest: u32| {
            let (level, minor) = text
                .strip_prefix('v')?
                .split_once('.')
                .unwrap_or((text.get(1..)?, "0"));
            let (level, minor): (u32, u32) = (level.parse().ok()?, minor.parse().ok()?);
            (level >= lowest && level < 100 && minor < 100).then(|| (level - lowest) * 100 + minor)
        };
        match (self.architecture.as_str(), self.variant.as_deref()) {
            (_, None | Some("")) => Some(0),
            // x86-64-v1 to -v4; ARMv8.0 and later.
            ("amd64", Some(variant)) => level(variant, 1),
            ("arm64", Some(variant)) => level(variant, 8),
            _ => None,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{variant}"),
        }
    }
}

/// The entry of an index that is for this machine. An entry without platform counts only when it is the
/// only one; whether it fits is then known from its configuration.
pub(crate) fn for_this_machine<'a>(
    image: &str,
    entries: &'a [Descriptor],
) -> Result<&'a Descriptor, FetchError> {
    let rank = |entry: &&Descriptor| entry.platform.as_ref().and_then(Platform::rank);
    let ranked = entries.iter().filter_map(|entry| Some((rank(&entry)?, entry)));
    // Of equals the first, as everybody reads indexes.
    if let Some((_, entry)) = ranked.min_by_key(|(rank, _)| *rank) {
        return Ok(entry);
    }
    if let [only] = entries
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let offered: Vec<_> = entries.iter().take(16).map(Descriptor::platform_text).collect();
    Err(FetchError::Platform {
        image: image.to_owned(),
        wanted: format!("linux/{ARCHITECTURE}"),
        offered: if offered.is_empty() {
            "nothing".to_owned()
        } else {
            offered.join(", ")
        },
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u32,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct RawConfig {
    architecture: String,
    os: String,
    config: Option<RawContainer>,
    rootfs: RawRootfs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawContainer {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    /// The values are empty objects.
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Option<Vec<Digest>>,
}

fn json<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, FetchError> {
    serde_json::from_slice(bytes).map_err(|source| FetchError::Json {
        what: what.to_owned(),
        source,
    })
}

fn document(what: &str, problem: impl Into<String>) -> FetchError {
    FetchError::Document {
        what: what.to_owned(),
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn config_descriptor() -> String {
        format!(
            r#"{{"mediaType":"{}","digest":"{EMPTY}","size":1}}"#,
            CONFIG_TYPES[0]
        )
    }

    #[test]
    fn a_document_that_is_index_and_manifest_is_refused() {
        let both = format!(
            r#"{{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}}"#,
            config_descriptor()
        );
        let error = Document::parse("m", both.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("at once"), "{error}");
        let half = format!(
            r#"{{"schemaVersion":2,"manifests":[],"layers":[],"config":null,"x":{}}}"#,
            1
        );
        assert!(Document::parse("m", half.as_bytes()).is_err());
    }

    #[test]
    fn repeated_fields_are_refused() {
        let twice = r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#;
        assert!(matches!(
            Document::parse("m", twice.as_bytes()),
            Err(FetchError::Json { .. })
        ));
    }

    #[test]
    fn foreign_layers_and_artifacts_are_refused() {
        for (config_type, layer_type) in [
            (
                CONFIG_TYPES[0],
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            ),
            (
                "application/vnd.oci.empty.v1+json",
                "application/vnd.oci.image.layer.v1.tar",
            ),
        ] {
            let text = format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"{EMPTY}","size":1}},
                    "layers":[{{"mediaType":"{layer_type}","digest":"{EMPTY}","size":1}}]}}"#
            );
            assert!(
                matches!(
                    Document::parse("m", text.as_bytes()),
                    Err(FetchError::Document { .. })
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn the_platform_decides_not_the_order() {
        let entry = |os: &str, arch: &str| {
            format!(
                r#"{{"mediaType":"x","digest":"{}","size":1,"platform":{{"os":"{os}","architecture":"{arch}"}}}}"#,
                Digest::of(format!("{os}{arch}").as_bytes())
            )
        };
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{},{},{}]}}"#,
            entry("linux", "s390x"),
            entry("unknown", "unknown"),
            entry("linux", ARCHITECTURE)
        );
        let Document::Index(entries) = Document::parse("i", text.as_bytes()).unwrap() else {
            panic!("an index")
        };
        let chosen = for_this_machine("i", &entries).unwrap();
        assert_eq!(
            chosen.digest,
            Digest::of(format!("linux{ARCHITECTURE}").as_bytes())
        );
        assert!(matches!(
            for_this_machine("i", &entries[..2]),
            Err(FetchError::Platform { .. })
        ));
    }

    #[test]
    fn volumes_are_the_names_of_an_object() {
        let volumes = |text: &str| {
            let text = format!(
                r#"{{"architecture":"{ARCHITECTURE}","os":"linux","config":{{"Volumes":{text}}},
                    "rootfs":{{"type":"layers","diff_ids":[]}}}}"#
            );
            Config::parse("c", text.as_bytes()).map(|config| config.image.volumes)
        };
        assert_eq!(
            volumes(r#"{"/data":{},"/cache":null}"#).unwrap(),
            ["/cache", "/data"]
        );
        assert!(volumes("null").unwrap().is_empty() && volumes("{}").unwrap().is_empty());
        assert!(volumes("[1]").is_err());
    }

    #[test]
    fn a_configuration_for_another_machine_is_refused() {
        let text = r#"{"architecture":"s390x","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert!(matches!(
            Config::parse("c", text.as_bytes()),
            Err(FetchError::Platform { .. })
        ));
    }
}
