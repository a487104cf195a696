//! What the API said of a pod when its sandbox was made, in the pod's directory: an agent that was started while the API
//! cannot be asked needs it to end the pod in order. Nothing is started by it.
//!
//! Only root can read it, as all of the pod's directory: there may be secrets in its environment.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};

/// Its name in the pod's directory.
const FILE: &str = "pod.json";

/// Keeps a pod; what was last `reported` of it is newer than its own status. Replaced in one step and not synced: after a
/// power loss there is no sandbox either.
pub(super) fn write(directory: &Path, pod: &Pod, reported: Option<&PodStatus>) -> io::Result<()> {
    let mut pod = pod.clone();
    pod.metadata.managed_fields = None;
    pod.status = reported.cloned().or(pod.status);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let draft = directory.join(format!("{FILE}.new"));
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    options.open(&draft)?.write_all(&serde_json::to_vec(&pod)?)?;
    fs::rename(&draft, directory.join(FILE))
}

/// The pod that was kept, if it was.
pub(super) fn read(directory: &Path) -> Option<Pod> {
    serde_json::from_slice(&fs::read(directory.join(FILE)).ok()?).ok()
}
