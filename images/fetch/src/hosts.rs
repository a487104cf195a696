//! Which endpoints an image is asked for at: its registry, and before that the mirrors that the operator named.
//!
//! The configuration is a directory in containerd's convention, `HOST/hosts.toml`, read once:
//!
//! ```toml
//! server = "https://registry.example"       # asked last; the registry itself when absent
//!
//! [host."https://mirror.lab:5000"]          # asked in the order of the file
//! capabilities = ["pull", "resolve"]        # "resolve": may say what a tag means
//! ca = "mirror-ca.pem"                      # trusted for this host and no other; relative to the file
//! override_path = false                     # true: the path of the URL is the whole of the API's
//! ```
//!
//! `_default/hosts.toml` is for all registries without a directory of their own. Plain HTTP is spoken where a URL
//! says `http://`, and to registries on loopback that nobody configured. What a mirror sends is verified by digest like
//! anything else. What is not understood is an error: a setting that is ignored could be one that protects.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use api::ImageRef;
use reqwest::Url;
use serde::Deserialize;
use toml::Spanned;

/// More than any file takes.
const MAX_BYTES: u64 = 64 << 10;
/// Directory for registries without one of their own.
const DEFAULT: &str = "_default";
/// Docker's registry answers under another name than images have.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// Where images are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts {
    by_registry: BTreeMap<String, Registry>,
    default: Option<Registry>,
}

/// One place to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Address up to the API's version, `https://HOST/v2`, without a slash at its end.
    pub(crate) base: String,
    /// Host and port.
    pub(crate) host: String,
    /// What credentials are chosen by, before the repository: the host, and the path behind the API's version; the image's
    /// registry for its own server, wherever that is.
    pub(crate) account: String,
    /// Whether it may say what a tag means.
    pub(crate) resolves: bool,
    /// The registry for which it stands in.
    pub(crate) mirrors: Option<String>,
    /// Authorities of its own; none means those of the machine.
    pub(crate) ca: Vec<PathBuf>,
}

/// Why a file of the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no TOML, or has a key that is not known.
    #[error("{} cannot be used as the configuration of a registry", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why, with line and key.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value cannot be used.
    #[error("{}: {key}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong, and what to write instead.
        problem: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Registry {
    mirrors: Vec<Place>,
    /// What is asked last; the registry itself if nothing else is said.
    server: Option<Place>,
}

impl Hosts {
    /// Reads a directory of `HOST/hosts.toml`. The files with authorities are named by the result and read later.
    pub fn read(dir: &Path) -> Result<Self, HostsError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| HostsError::Read { path, source }
        };
        let mut hosts = Self::default();
        for entry in fs::read_dir(dir).map_err(failed(dir))? {
            let entry = entry.map_err(failed(dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path().join("hosts.toml");
            let text = match bounded(&path) {
                Ok(text) => text,
                // Something else lies here, such as an authority that all share.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(failed(&path)(error)),
            };
            let registry = Registry::parse(&path, &text, (name != DEFAULT).then_some(&name))?;
            match name.as_str() {
                DEFAULT => hosts.default = Some(registry),
                _ => drop(hosts.by_registry.insert(name, registry)),
            }
        }
        Ok(hosts)
    }

    /// Where `image` is asked for, in turn.
    pub(crate) fn places(&self, image: &ImageRef) -> Vec<Place> {
        let registry = self.by_registry.get(&image.registry).or(self.default.as_ref());
        let mut places = Vec::new();
        for mirror in registry.iter().flat_map(|registry| &registry.mirrors) {
            places.push(Place {
                mirrors: Some(image.registry.clone()).filter(|of| *of != mirror.host),
                ..mirror.clone()
            });
        }
        let server = registry.and_then(|registry| registry.server.clone());
        places.push(server.unwrap_or_else(|| Place::of_registry(image)));
        places
    }

    /// Every file with authorities, each list once.
    pub(crate) fn authorities(&self) -> impl Iterator<Item = &[PathBuf]> {
        let registries = self.by_registry.values().chain(&self.default);
        let places = registries.flat_map(|registry| registry.mirrors.iter().chain(&registry.server));
        places
            .map(|place| place.ca.as_slice())
            .filter(|ca| !ca.is_empty())
    }
}

impl Place {
    /// A registry that nobody configured: TLS, but for the machine's own loopback.
    fn of_registry(image: &ImageRef) -> Self {
        let scheme = if image.is_loopback() { "http" } else { "https" };
        let host = match image.registry.as_str() {
            name if name == DOCKER_HUB.0 => DOCKER_HUB.1,
            name => name,
        };
        Self {
            base: format!("{scheme}://{host}/v2"),
            host: image.registry.clone(),
            account: image.registry.clone(),
            resolves: true,
            mirrors: None,
            ca: Vec::new(),
        }
    }

    /// What the place itself calls the repository `name` of its registry: a mirror may keep it below a path of its own.
    pub(crate) fn repository(&self, name: &str) -> String {
        let base = Url::parse(&self.base).ok();
        let parts = base.iter().flat_map(|url| url.path().split('/'));
        let behind = parts.skip_while(|part| *part != "v2").skip(1);
        let prefix: String = behind.map(|part| format!("{part}/")).collect();
        format!("{prefix}{name}")
    }

    /// Whether what is sent there is not encrypted.
    pub(crate) fn is_plain(&self) -> bool {
        self.base.starts_with("http://")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Host>,
    // containerd reads these beside `server`, for it.
    ca: Option<OneOrMore>,
    capabilities: Option<Vec<String>>,
    override_path: Option<bool>,
    skip_verify: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    ca: Option<OneOrMore>,
    capabilities: Option<Vec<String>>,
    override_path: Option<bool>,
    skip_verify: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(PathBuf),
    More(Vec<PathBuf>),
}

impl Registry {
    fn parse(path: &Path, text: &str, name: Option<&String>) -> Result<Self, HostsError> {
        let file: File = toml::from_str(text).map_err(|source| HostsError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let mut hosts: Vec<_> = file.host.into_iter().collect();
        // The order of the file is the order of asking.
        hosts.sort_by_key(|(url, _)| url.span().start);
        let mirrors = hosts.into_iter().map(|(url, host)| {
            let url = url.into_inner();
            place(path, &format!("host.{url:?}"), &url, host)
        });
        let of_server = Host {
            ca: file.ca,
            capabilities: file.capabilities,
            override_path: file.override_path,
            skip_verify: file.skip_verify,
        };
        let server = match (file.server, of_server) {
            (Some(url), host) => Some(place(path, "server", &url, host)?),
            (
                None,
                Host {
                    ca: None,
                    capabilities: None,
                    override_path: None,
                    skip_verify: None,
                },
            ) => None,
            (None, _) => {
                return Err(HostsError::Value {
                    path: path.to_owned(),
                    key: "server".to_owned(),
                    problem:
                        "ca, capabilities, override_path and skip_verify at the top are for the server; \
                              name it, or move them below a [host.\"URL\"]"
                            .to_owned(),
                });
            }
        };
        let mirrors = mirrors.collect::<Result<_, _>>()?;
        // Credentials follow the name of the image, also where its server has another address.
        let server = server.map(|server| match name {
            Some(name) => Place {
                host: name.clone(),
                account: name.clone(),
                ..server
            },
            None => server,
        });
        Ok(Self { mirrors, server })
    }
}

fn place(path: &Path, key: &str, url: &str, host: Host) -> Result<Place, HostsError> {
    let refused = |key: &str, problem: String| HostsError::Value {
        path: path.to_owned(),
        key: key.to_owned(),
        problem,
    };
    let form = || format!("{url:?} must be https://HOST[:PORT][/PATH], or http:// to speak it unencrypted");
    let parsed = Url::parse(url).map_err(|_no_url| refused(key, form()))?;
    let plain_parts = parsed.username().is_empty() && parsed.password().is_none();
    let (Some(name), "http" | "https", true, None, None) = (
        parsed.host_str(),
        parsed.scheme(),
        plain_parts,
        parsed.query(),
        parsed.fragment(),
    ) else {
        return Err(refused(key, form()));
    };
    if host.skip_verify == Some(true) {
        let key = format!("{key}.skip_verify");
        let problem = "certificates are always verified; name the host's authority with `ca`".to_owned();
        return Err(refused(&key, problem));
    }
    let mut resolves = host.capabilities.is_none();
    let mut pulls = host.capabilities.is_none();
    for capability in host.capabilities.iter().flatten() {
        match capability.as_str() {
            "resolve" => resolves = true,
            "pull" => pulls = true,
            "push" => {}
            other => {
                let problem = format!("{other:?} is none of \"pull\", \"resolve\" and \"push\"");
                return Err(refused(&format!("{key}.capabilities"), problem));
            }
        }
    }
    if !pulls {
        let problem = "without \"pull\" the host is of no use here; add it, or remove the host".to_owned();
        return Err(refused(&format!("{key}.capabilities"), problem));
    }
    let ca: Vec<PathBuf> = match host.ca {
        None => Vec::new(),
        Some(OneOrMore::One(file)) => vec![file],
        Some(OneOrMore::More(files)) => files,
    };
    if !ca.is_empty() && parsed.scheme() == "http" {
        let problem = "an http:// host has no certificate; write https://, or leave it out".to_owned();
        return Err(refused(&format!("{key}.ca"), problem));
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let port = parsed.port().map_or(String::new(), |port| format!(":{port}"));
    let given = parsed.path().trim_end_matches('/');
    let api = match host.override_path == Some(true) || given.ends_with("/v2") {
        true => given.to_owned(),
        false => format!("{given}/v2"),
    };
    let host = format!("{name}{port}");
    let mut place = Place {
        base: format!("{}://{host}{api}", parsed.scheme()),
        account: String::new(),
        host,
        resolves,
        mirrors: None,
        ca: ca.into_iter().map(|file| dir.join(file)).collect(),
    };
    let path = place.repository("");
    place.account = format!("{}/{path}", place.host).trim_end_matches('/').to_owned();
    Ok(place)
}

fn bounded(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    let file = fs::File::open(path)?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_BYTES {
        true => Err(io::Error::other("it is larger than 64 KiB")),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<Hosts, HostsError> {
        let dir = tempfile::tempdir().unwrap();
        for (registry, text) in files {
            fs::create_dir(dir.path().join(registry)).unwrap();
            fs::write(dir.path().join(registry).join("hosts.toml"), text).unwrap();
        }
        fs::write(dir.path().join("shared-ca.pem"), "").unwrap();
        Hosts::read(dir.path())
    }

    fn bases(hosts: &Hosts, image: &str) -> Vec<String> {
        let places = hosts.places(&image.parse().unwrap()).into_iter();
        places.map(|place| place.base).collect()
    }

    #[test]
    fn places_are_asked_in_the_order_of_the_file() {
        let text = r#"
            server = "https://registry.example:8443"
            [host."https://z.lab:5000"]
            [host."http://a.lab/prefix"]
            capabilities = ["pull"]
            [host."https://m.lab/v2/proxy"]
            override_path = true
        "#;
        let hosts = read(&[("r.example", text), ("_default", "[host.\"https://any.lab\"]\n")]).unwrap();
        let image = "r.example/app:1";
        assert_eq!(
            bases(&hosts, image),
            [
                "https://z.lab:5000/v2",
                "http://a.lab/prefix/v2",
                "https://m.lab/v2/proxy",
                "https://registry.example:8443/v2"
            ]
        );
        let places = hosts.places(&image.parse().unwrap());
        assert_eq!((places[0].resolves, places[1].resolves), (true, false));
        assert!(places[1].is_plain() && !places[0].is_plain());
        assert_eq!(places[0].mirrors.as_deref(), Some("r.example"));
        assert_eq!(
            places[3].host, "r.example",
            "its credentials are those of the image"
        );
        assert_eq!(
            bases(&hosts, "x.example/app"),
            ["https://any.lab/v2", "https://x.example/v2"]
        );
        let accounts: Vec<_> = places.iter().map(|place| place.account.as_str()).collect();
        assert_eq!(accounts, ["z.lab:5000", "a.lab", "m.lab/proxy", "r.example"]);
        let repositories = places.iter().map(|place| place.repository("app"));
        assert_eq!(
            repositories.collect::<Vec<_>>(),
            ["app", "app", "proxy/app", "app"]
        );
        let none = Hosts::default();
        assert_eq!(bases(&none, "busybox"), ["https://registry-1.docker.io/v2"]);
        assert_eq!(bases(&none, "127.0.0.1:5000/x"), ["http://127.0.0.1:5000/v2"]);
    }

    #[test]
    fn mistakes_name_file_key_and_remedy() {
        for (text, says) in [
            (
                "[host.\"https://m.lab\"]\nskip_verify = true\n",
                "name the host's authority with `ca`",
            ),
            ("[host.\"m.lab\"]\n", "must be https://HOST"),
            ("[host.\"https://u:p@m.lab\"]\n", "must be https://HOST"),
            ("server = \"ftp://m.lab\"\n", "server: "),
            (
                "[host.\"https://m.lab\"]\ncapabilities = [\"pul\"]\n",
                "\"pul\" is none of",
            ),
            (
                "[host.\"https://m.lab\"]\ncapabilities = [\"resolve\"]\n",
                "without \"pull\"",
            ),
            ("[host.\"http://m.lab\"]\nca = \"x.pem\"\n", "has no certificate"),
            ("[host.\"https://m.lab\"]\nclient = \"x.pem\"\n", "client"),
            ("ca = \"x.pem\"\n", "name it"),
            ("server = 1\n", "line 1"),
        ] {
            let error = read(&[("r.example", text)]).unwrap_err();
            let source = std::error::Error::source(&error);
            let shown = format!("{error} {}", source.map(ToString::to_string).unwrap_or_default());
            assert!(
                shown.contains(says) && shown.contains("r.example/hosts.toml"),
                "{text}: {shown}"
            );
        }
    }

    #[test]
    fn authorities_lie_beside_the_file() {
        let text = "[host.\"https://m.lab\"]\nca = [\"a.pem\", \"/etc/b.pem\"]\n";
        let hosts = read(&[("r.example", text)]).unwrap();
        let files = hosts.authorities().next().unwrap();
        assert!(files[0].ends_with("r.example/a.pem"), "{files:?}");
        assert_eq!(files[1], Path::new("/etc/b.pem"));
    }
}
