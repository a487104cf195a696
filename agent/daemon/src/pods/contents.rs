//! What is in a volume that mirrors objects of the API: config maps, secrets, fields of the pod. Pure.

use std::{collections::BTreeMap, path::Component, path::Path};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, Volume, VolumeProjection},
};

use super::{
    env::{self, Objects},
    fs_group::FsGroup,
    resources::{self, NodeAmounts},
    tokens, users,
    volumes::VolumeError,
};

/// Mode of files whose source names none: Kubernetes' default.
const DEFAULT_MODE: i32 = 0o644;

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    /// Below the volume, without `..`.
    pub(crate) path: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
    /// The pod's user who owns it; none is root.
    pub(crate) owner: Option<u32>,
}

/// Where contents come from.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) objects: &'a Objects,
    pub(crate) node: NodeAmounts,
}

/// The files of `volume`; `None` for a volume that is the pod's own to fill.
pub(crate) fn of(volume: &Volume, sources: Sources<'_>) -> Result<Option<Vec<File>>, VolumeError> {
    let name = volume.name.as_str();
    let files = if let Some(source) = &volume.config_map {
        let wish = Wish::new(source.items.as_deref(), source.default_mode, source.optional);
        config_map(name, &source.name, wish, sources.objects)?
    } else if let Some(source) = &volume.secret {
        let wish = Wish::new(source.items.as_deref(), source.default_mode, source.optional);
        let secret_name = source.secret_name.as_deref().unwrap_or_default();
        secret(name, secret_name, wish, sources.objects)?
    } else if let Some(source) = &volume.downward_api {
        downward(name, source.items.as_deref(), source.default_mode, sources)?
    } else if let Some(source) = &volume.projected {
        let mut all = Vec::new();
        for projection in source.sources.iter().flatten() {
            all.extend(projected(name, projection, source.default_mode, sources)?);
        }
        all
    } else if is_the_pods(volume) {
        return Ok(None);
    } else {
        return Err(VolumeError::Kind(name.to_owned()));
    };
    for file in &files {
        demand_inside(name, &file.path)?;
    }
    // A later source wins over an earlier one, as files that are written one after the other would.
    let by_path: BTreeMap<String, File> = files.into_iter().map(|file| (file.path.clone(), file)).collect();
    Ok(Some(by_path.into_values().collect()))
}

/// Whether what is in the volume is the pod's own matter, and not a mirror of objects.
pub(crate) fn is_the_pods(volume: &Volume) -> bool {
    volume.empty_dir.is_some() || is_outside(volume)
}

/// Whether what is in the volume is older than the pod, and outlives it.
pub(crate) fn is_outside(volume: &Volume) -> bool {
    volume.host_path.is_some() || volume.persistent_volume_claim.is_some()
}

/// Whether the volume's files belong on a tmpfs.
pub(crate) fn is_secret(volume: &Volume) -> bool {
    let projects = volume.projected.as_ref();
    let mut projects = projects
        .into_iter()
        .flat_map(|projected| projected.sources.iter().flatten());
    volume.secret.is_some()
        || projects.any(|source| source.secret.is_some() || source.service_account_token.is_some())
}

/// Which keys, under which names, with which modes.
#[derive(Clone, Copy)]
struct Wish<'a> {
    items: Option<&'a [KeyToPath]>,
    default_mode: Option<i32>,
    optional: bool,
}

impl<'a> Wish<'a> {
    fn new(items: Option<&'a [KeyToPath]>, default_mode: Option<i32>, optional: Option<bool>) -> Self {
        Self {
            items: items.filter(|items| !items.is_empty()),
            default_mode,
            optional: optional == Some(true),
        }
    }

    fn pick(
        &self,
        volume: &str,
        (kind, name): (&'static str, &str),
        values: &BTreeMap<&str, &[u8]>,
    ) -> Result<Vec<File>, VolumeError> {
        let Some(items) = self.items else {
            let file = |(key, bytes): (&&str, &&[u8])| File {
                path: (*key).to_owned(),
                bytes: bytes.to_vec(),
                mode: bits(self.default_mode),
                owner: None,
            };
            return Ok(values.iter().map(file).collect());
        };
        let mut files = Vec::new();
        for item in items {
            match values.get(item.key.as_str()) {
                Some(bytes) => files.push(File {
                    path: item.path.clone(),
                    bytes: bytes.to_vec(),
                    mode: bits(item.mode.or(self.default_mode)),
                    owner: None,
                }),
                None if self.optional => {}
                None => {
                    return Err(VolumeError::MissingKey {
                        kind,
                        name: name.to_owned(),
                        key: item.key.clone(),
                        volume: volume.to_owned(),
                    });
                }
            }
        }
        Ok(files)
    }
}

fn config_map(volume: &str, name: &str, wish: Wish<'_>, objects: &Objects) -> Result<Vec<File>, VolumeError> {
    let found = objects.config_maps.get(name);
    let values = values_of(found, wish.optional, ("configmap", name), |found: &ConfigMap| {
        let text = found.data.iter().flatten();
        let text = text.map(|(key, value)| (key.as_str(), value.as_bytes()));
        text.chain(bytes_of(found.binary_data.as_ref())).collect()
    })?;
    wish.pick(volume, ("configmap", name), &values)
}

fn secret(volume: &str, name: &str, wish: Wish<'_>, objects: &Objects) -> Result<Vec<File>, VolumeError> {
    let found = objects.secrets.get(name);
    let values = values_of(found, wish.optional, ("secret", name), |found: &Secret| {
        bytes_of(found.data.as_ref()).collect()
    })?;
    wish.pick(volume, ("secret", name), &values)
}

/// `found` is nothing where the API has not said whether there is one: that is not the same as none.
fn values_of<'a, T>(
    found: Option<&'a Option<T>>,
    optional: bool,
    (kind, name): (&'static str, &str),
    read: impl FnOnce(&'a T) -> BTreeMap<&'a str, &'a [u8]>,
) -> Result<BTreeMap<&'a str, &'a [u8]>, VolumeError> {
    let name = || name.to_owned();
    match found {
        Some(Some(found)) => Ok(read(found)),
        Some(None) if optional => Ok(BTreeMap::new()),
        Some(None) => Err(VolumeError::Missing { kind, name: name() }),
        None => Err(VolumeError::Unread { kind, name: name() }),
    }
}

fn bytes_of(data: Option<&BTreeMap<String, ByteString>>) -> impl Iterator<Item = (&str, &[u8])> {
    let data = data.into_iter().flatten();
    data.map(|(key, value)| (key.as_str(), value.0.as_slice()))
}

fn projected(
    volume: &str,
    source: &VolumeProjection,
    default_mode: Option<i32>,
    sources: Sources<'_>,
) -> Result<Vec<File>, VolumeError> {
    if let Some(source) = &source.config_map {
        let wish = Wish::new(source.items.as_deref(), default_mode, source.optional);
        config_map(volume, &source.name, wish, sources.objects)
    } else if let Some(source) = &source.secret {
        let wish = Wish::new(source.items.as_deref(), default_mode, source.optional);
        secret(volume, &source.name, wish, sources.objects)
    } else if let Some(source) = &source.downward_api {
        downward(volume, source.items.as_deref(), default_mode, sources)
    } else if let Some(source) = &source.service_account_token {
        let token = sources.objects.tokens.get(&tokens::Wish::of(source));
        let token = token.ok_or_else(|| VolumeError::Unread {
            kind: "token",
            name: source.path.clone(),
        })?;
        Ok(vec![File {
            path: source.path.clone(),
            bytes: token.clone().into_bytes(),
            mode: token_mode(sources.pod, default_mode),
            owner: users::shared_user(sources.pod),
        }])
    } else {
        Err(VolumeError::Kind(volume.to_owned()))
    }
}

fn downward(
    volume: &str,
    items: Option<&[DownwardAPIVolumeFile]>,
    default_mode: Option<i32>,
    sources: Sources<'_>,
) -> Result<Vec<File>, VolumeError> {
    let file = |item: &DownwardAPIVolumeFile| {
        let refused = |source| VolumeError::Field {
            volume: volume.to_owned(),
            source,
        };
        let text = if let Some(reference) = &item.field_ref {
            env::object_field(sources.pod, &reference.field_path).map_err(refused)?
        } else if let Some(reference) = &item.resource_field_ref {
            let container = reference.container_name.as_deref().unwrap_or_default();
            resources::value_of(sources.pod, container, reference, sources.node).map_err(refused)?
        } else {
            return Err(VolumeError::Kind(volume.to_owned()));
        };
        Ok(File {
            path: item.path.clone(),
            bytes: text.into_bytes(),
            mode: bits(item.mode.or(default_mode)),
            owner: None,
        })
    };
    items.unwrap_or_default().iter().map(file).collect()
}

/// As the kubelet: where it is known who reads the token, by a user that all containers share or by the group that volumes
/// are given to, nobody else does.
fn token_mode(pod: &Pod, default_mode: Option<i32>) -> u32 {
    let known = users::shared_user(pod).is_some() || FsGroup::of(pod).is_some();
    if known { 0o600 } else { bits(default_mode) }
}

fn bits(mode: Option<i32>) -> u32 {
    u32::try_from(mode.unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) & 0o777
}

/// Keys of objects cannot leave the volume by their syntax; paths of items are a user's, and checked again.
fn demand_inside(volume: &str, path: &str) -> Result<(), VolumeError> {
    let mut components = Path::new(path).components();
    let plain = components.all(|part| matches!(part, Component::Normal(_)));
    // Names that begin so are the writer's own.
    if plain && !path.is_empty() && !path.starts_with("..") {
        return Ok(());
    }
    Err(VolumeError::Path {
        volume: volume.to_owned(),
        path: path.to_owned(),
    })
}
