//! What the API said of a pod when its sandbox was made, in the pod's directory: an agent that was started while the API
//! cannot be asked needs it to end the pod in order. Nothing is started by it.
//!
//! Only root can read it, as all of the pod's directory: there may be secrets in its environment.

use std::{fs, io, path::Path};

use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::durable;

/// Its name in the pod's directory.
const FILE: &str = "pod.json";

/// Keeps a pod; what was last `reported` of it is newer than its own status. Not waited for on
/// disk: after a power loss there is no sandbox either.
pub(super) fn write(directory: &Path, pod: &Pod, reported: Option<&PodStatus>) -> io::Result<()> {
    let mut pod = pod.clone();
    pod.metadata.managed_fields = None;
    pod.status = reported.cloned().or(pod.status);
    durable::replace_until_reboot(directory, FILE, &serde_json::to_vec(&pod)?)
}

/// The pod that was kept, if it was.
pub(super) fn read(directory: &Path) -> Option<Pod> {
    serde_json::from_slice(&fs::read(directory.join(FILE)).ok()?).ok()
}
