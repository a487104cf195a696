//! How a pod ends, in the pod's directory, until the API has it: an agent that is started again neither runs it once more nor
//! says that nobody knows how it ended.
//!
//! Only root can read it, as all of the pod's directory.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::{evictions::Order, status::Told};
use crate::durable;

/// Its name in the pod's directory.
const FILE: &str = "ended.json";

/// What is known of the end of a pod; nothing while it has none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ended {
    /// The node has decided it. Containers may still run.
    pub(super) evicted: Option<Order>,
    /// The last that is to be told of the pod: it is over.
    pub(super) told: Option<Told>,
}

impl Ended {
    pub(super) fn is_nothing(&self) -> bool {
        self.evicted.is_none() && self.told.is_none()
    }
}

/// Keeps how a pod ends, or nothing any more. In one step, and on disk when this returns: a node that shuts down does so
/// next.
pub(super) fn write(directory: &Path, ended: &Ended) -> io::Result<()> {
    let path = directory.join(FILE);
    if ended.is_nothing() {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    durable::replace(directory, FILE, &serde_json::to_vec(ended)?)
}

/// What was kept; nothing where nothing was, or where it cannot be read.
pub(super) fn read(directory: &Path) -> Ended {
    let text = match fs::read(directory.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ended::default(),
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "how a pod ended cannot be read");
            return Ended::default();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(directory = %directory.display(), %error, "how a pod ended cannot be read");
        Ended::default()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use agent_plan::Eviction;
    use jiff::{SignedDuration, Timestamp};
    use k8s_openapi::api::core::v1::PodStatus;

    use super::*;

    #[test]
    fn what_was_kept_is_read_again_until_it_is_taken_back() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("u");
        assert!(read(&directory).is_nothing());
        write(&directory, &Ended::default()).unwrap();
        let order = Order {
            eviction: Eviction {
                message: "no room".to_owned(),
                grace: SignedDuration::from_secs(7),
                at: "2026-01-01T00:00:00.25Z".parse::<Timestamp>().unwrap(),
            },
            node_ends: true,
        };
        let ended = Ended {
            evicted: Some(order),
            told: Some(Told {
                status: PodStatus {
                    phase: Some("Failed".to_owned()),
                    ..PodStatus::default()
                },
                sandbox: "Enforced".to_owned(),
            }),
        };
        write(&directory, &ended).unwrap();
        assert_eq!(read(&directory), ended);
        let mode = fs::metadata(directory.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        write(&directory, &Ended::default()).unwrap();
        assert!(read(&directory).is_nothing() && !directory.join(FILE).exists());
        fs::write(directory.join(FILE), "{\"told\":").unwrap();
        assert!(read(&directory).is_nothing());
    }
}
