//! What the API admitted of static pods, on this node's disk: it lets them start while the API cannot be asked.
//!
//! Only root can write there, who could start anything anyway. A pod is found only under the hash of the file that it was
//! made from, so a changed file needs a new admission.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use k8s_openapi::api::core::v1::Pod;

use super::{Key, mirror_hash};
use crate::durable;

/// A pod could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub(crate) struct KeepError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The directory.
pub(super) struct Admitted {
    directory: PathBuf,
}

impl Admitted {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The pod of that name, if it was admitted for the file with this hash.
    pub(super) fn find(&self, key: &Key, hash: &str) -> Option<Pod> {
        let text = fs::read(self.path(key)).ok()?;
        let pod: Pod = serde_json::from_slice(&text).ok()?;
        (mirror_hash(&pod).map(String::as_str) == Some(hash)).then_some(pod)
    }

    /// Keeps a pod as the API has it. Of its status only counts that it is over.
    pub(super) fn keep(&self, key: &Key, pod: &Pod) -> Result<(), KeepError> {
        let mut pod = pod.clone();
        pod.metadata.managed_fields = None;
        pod.metadata.resource_version = None;
        pod.status = pod.status.filter(agent_plan::is_settled);
        let text = serde_json::to_vec(&pod).unwrap_or_default();
        let path = self.path(key);
        if fs::read(&path).is_ok_and(|known| known == text) {
            return Ok(());
        }
        // It matters most after a power loss.
        durable::replace(&self.directory, &name(key), &text).map_err(|source| KeepError {
            operation: "write",
            path,
            source,
        })
    }

    /// Removes all but `wanted`.
    pub(super) fn forget_others(&self, wanted: &BTreeSet<Key>) -> Result<(), KeepError> {
        let keep: BTreeSet<PathBuf> = wanted.iter().map(|key| self.path(key)).collect();
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return Ok(());
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if !keep.contains(&path) {
                fs::remove_file(&path).map_err(|source| KeepError {
                    operation: "remove",
                    path: path.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.directory.join(name(key))
    }
}

/// A pod's file. Names of pods and namespaces have no underscore and no slash.
fn name((namespace, name): &Key) -> String {
    format!("{namespace}_{name}.json")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_admitted_is_found_for_its_own_file_only() {
        let base = tempfile::tempdir().unwrap();
        let admitted = Admitted::new(base.path().join("admitted"));
        let key = ("kube-system".to_owned(), "web-n".to_owned());
        assert!(admitted.find(&key, "h").is_none());
        admitted.forget_others(&BTreeSet::new()).unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web-n", "uid": "u", "resourceVersion": "5",
                         "annotations": {"kubernetes.io/config.mirror": "h"}},
            "spec": {"containers": []}, "status": {"phase": "Running"},
        }))
        .unwrap();
        admitted.keep(&key, &pod).unwrap();
        let found = admitted.find(&key, "h").unwrap();
        assert_eq!(found.metadata.uid.as_deref(), Some("u"));
        assert_eq!(found.status, None);
        assert!(admitted.find(&key, "other").is_none(), "another file");
        let mut ended = pod.clone();
        ended.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
        admitted.keep(&key, &ended).unwrap();
        assert!(
            admitted.find(&key, "h").unwrap().status.is_some(),
            "it is over, also after a restart"
        );
        let mode = fs::metadata(admitted.path(&key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        admitted.forget_others(&[key.clone()].into()).unwrap();
        assert!(admitted.find(&key, "h").is_some());
        admitted.forget_others(&BTreeSet::new()).unwrap();
        assert!(admitted.find(&key, "h").is_none());
    }
}
