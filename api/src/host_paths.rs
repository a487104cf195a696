//! Which paths of a node pods may mount: grants, and the decision that the API server and the node make alike.
//!
//! Without a grant there is no path. A grant is about a path and all that is below it, for pods of some namespaces,
//! perhaps of some service accounts only, and it is for reading unless it says otherwise.

use k8s_openapi::{
    api::core::v1::{Pod, Volume},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize};

/// A path of the nodes that some pods may mount. Cluster-scoped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostPathGrant {
    /// Always [`crate::palisade::API_VERSION`].
    pub api_version: String,
    /// Always `HostPathGrant`.
    pub kind: String,
    /// Object metadata.
    pub metadata: ObjectMeta,
    /// What is granted to whom.
    #[serde(default)]
    pub spec: HostPathGrantSpec,
}

/// What a [`HostPathGrant`] grants to whom. What is missing grants nothing, and admission refuses it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HostPathGrantSpec {
    /// Absolute, without `.` and `..`; it and all that is below it is granted.
    pub path: String,
    /// What pods may do there.
    pub access: Access,
    /// Namespaces whose pods may; at least one, there is no word for all.
    pub namespaces: Vec<String>,
    /// Service accounts of these namespaces whose pods may; empty means all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
}

/// What may be done with a path. In this order: more includes less.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Access {
    /// Every mount of it is read-only.
    #[default]
    ReadOnly,
    /// Containers may write. What they write belongs to the node's root: see `docs/storage.md`.
    ReadWrite,
}

/// A path that a pod asks for and no grant gives.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "volume {volume:?}: no HostPathGrant gives {path:?} as {access:?} to pods of namespace {namespace:?} \
     with service account {account:?}; ask an administrator for one"
)]
pub struct NotGranted {
    /// The volume.
    pub volume: String,
    /// The path.
    pub path: String,
    /// What for.
    pub access: Access,
    /// Where the pod is.
    pub namespace: String,
    /// Whom it runs as.
    pub account: String,
}

/// A path of the node that a pod mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPath {
    /// The volume.
    pub volume: String,
    /// The path, as it was written.
    pub path: String,
    /// What must be there.
    pub kind: HostPathKind,
    /// What its containers ask for.
    pub access: Access,
}

/// What must be at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPathKind {
    /// Anything that is a directory or a regular file.
    Any,
    /// A directory.
    Directory,
    /// A directory, made where there is nothing.
    DirectoryOrCreate,
    /// A regular file.
    File,
    /// A regular file, made where there is nothing.
    FileOrCreate,
}

impl HostPathKind {
    /// The kinds by their names; the empty one means [`Self::Any`].
    pub const NAMES: &[(&str, Self)] = &[
        ("", Self::Any),
        ("Directory", Self::Directory),
        ("DirectoryOrCreate", Self::DirectoryOrCreate),
        ("File", Self::File),
        ("FileOrCreate", Self::FileOrCreate),
    ];

    /// The kind of that name. Sockets and devices have none: what is behind them is not a file's content.
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, kind)| *kind)
    }
}

/// Whether a path is absolute and written in the one way that leads to it: no empty part, no `.`, no `..`.
pub fn is_plain(path: &str) -> bool {
    path == "/"
        || path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0')
        })
}

/// The paths that a pod mounts. A volume that no container mounts is asked for reading.
pub fn asked(pod: &Pod) -> Vec<HostPath> {
    let spec = pod.spec.as_ref();
    let volumes = spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| asked_by(pod, volume)).collect()
}

fn asked_by(pod: &Pod, volume: &Volume) -> Option<HostPath> {
    let source = volume.host_path.as_ref()?;
    let spec = pod.spec.as_ref()?;
    let inits = spec.init_containers.iter().flatten();
    let mut mounts = spec
        .containers
        .iter()
        .chain(inits)
        .flat_map(|container| container.volume_mounts.iter().flatten())
        .filter(|mount| mount.name == volume.name);
    let writes = mounts.any(|mount| mount.read_only != Some(true));
    Some(HostPath {
        volume: volume.name.clone(),
        path: source.path.clone(),
        // An unknown kind is refused by admission, and no grant of it is ever looked for.
        kind: HostPathKind::parse(source.type_.as_deref().unwrap_or_default())?,
        access: if writes {
            Access::ReadWrite
        } else {
            Access::ReadOnly
        },
    })
}

/// The paths of `pod`, if `grants` give all of them; else the first that they do not.
pub fn granted(pod: &Pod, grants: &[HostPathGrantSpec]) -> Result<Vec<HostPath>, NotGranted> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref());
    let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
    let paths = asked(pod);
    for asked in &paths {
        let gives = |grant: &HostPathGrantSpec| {
            asked.access <= grant.access
                && grant.namespaces.iter().any(|own| own == namespace)
                && (grant.service_accounts.is_empty()
                    || grant.service_accounts.iter().any(|own| own == account))
                && covers(&grant.path, &asked.path)
        };
        if !grants.iter().any(gives) {
            return Err(NotGranted {
                volume: asked.volume.clone(),
                path: asked.path.clone(),
                access: asked.access,
                namespace: namespace.to_owned(),
                account: account.to_owned(),
            });
        }
    }
    Ok(paths)
}

/// Whether `path` is `prefix` or below it. Compared by whole names: `/a` does not cover `/ab`.
pub fn covers(prefix: &str, path: &str) -> bool {
    if !is_plain(prefix) || !is_plain(path) {
        return false;
    }
    prefix == "/"
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(path: &str, read_only: bool) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "p"},
            "spec": {
                "serviceAccountName": "web",
                "volumes": [{"name": "v", "hostPath": {"path": path}}, {"name": "e", "emptyDir": {}}],
                "containers": [
                    {"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/x", "readOnly": read_only}]},
                    {"name": "b", "volumeMounts": [{"name": "v", "mountPath": "/x", "readOnly": true}]}],
            },
        }))
        .unwrap()
    }

    fn grant(path: &str, access: Access) -> HostPathGrantSpec {
        HostPathGrantSpec {
            path: path.to_owned(),
            access,
            namespaces: vec!["other".to_owned(), "shop".to_owned()],
            service_accounts: Vec::new(),
        }
    }

    #[test]
    fn a_path_needs_a_grant_of_it_or_of_what_is_above() {
        let read = grant("/srv/data", Access::ReadOnly);
        let gives = |path: &str| granted(&pod(path, true), std::slice::from_ref(&read)).is_ok();
        assert!(gives("/srv/data") && gives("/srv/data/a/b"));
        for path in [
            "/srv",
            "/",
            "/srv/data2",
            "/srv/data/../x",
            "/srv/data/",
            "/srv//data",
            "srv/data",
            "",
        ] {
            assert!(!gives(path), "{path}");
        }
        assert!(granted(&pod("/srv/data", true), &[]).is_err());
        assert_eq!(
            granted(&pod("/anything", true), &[grant("/", Access::ReadOnly)])
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn writing_needs_a_grant_for_it_and_one_writer_is_enough() {
        let read = [grant("/srv", Access::ReadOnly)];
        let write = [grant("/srv", Access::ReadWrite)];
        assert!(granted(&pod("/srv", true), &read).is_ok());
        let refused = granted(&pod("/srv", false), &read).unwrap_err();
        assert_eq!(refused.access, Access::ReadWrite);
        assert!(refused.to_string().contains("HostPathGrant"), "{refused}");
        let given = granted(&pod("/srv", false), &write).unwrap();
        assert_eq!(
            (given[0].access, given[0].kind),
            (Access::ReadWrite, HostPathKind::Any)
        );
        assert_eq!(
            granted(&pod("/srv", true), &write).unwrap()[0].access,
            Access::ReadOnly
        );
    }

    #[test]
    fn grants_are_for_namespaces_and_accounts() {
        let mut other = grant("/srv", Access::ReadWrite);
        other.namespaces = vec!["elsewhere".to_owned(), "*".to_owned(), String::new()];
        assert!(granted(&pod("/srv", true), &[other]).is_err());
        let mut of_account = grant("/srv", Access::ReadWrite);
        of_account.service_accounts = vec!["web".to_owned()];
        assert!(granted(&pod("/srv", true), std::slice::from_ref(&of_account)).is_ok());
        of_account.service_accounts = vec!["default".to_owned()];
        assert!(granted(&pod("/srv", true), &[of_account]).is_err());
    }

    #[test]
    fn sockets_and_devices_have_no_kind() {
        for kind in ["Socket", "CharDevice", "BlockDevice", "directory"] {
            assert_eq!(HostPathKind::parse(kind), None);
        }
    }
}
