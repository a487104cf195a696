//! How a pod ends, in the pod's directory, until the API has it: an agent that is started again neither runs it once more nor
//! says that nobody knows how it ended.
//!
//! Only root can read it, as all of the pod's directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use agent_plan::{Cause, Eviction};
use jiff::{SignedDuration, Timestamp};

use serde::{Deserialize, Serialize};

use super::status::Told;
use crate::durable;

/// Its name in the pod's directory.
const FILE: &str = "ended.json";
/// The name under which one that cannot be read stays, for people.
const ASIDE: &str = "ended.json.unreadable";

/// What is known of the end of a pod; nothing while it has none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ended {
    /// The node has decided it. Containers may still run.
    pub(super) evicted: Option<Eviction>,
    /// The last that is to be told of the pod: it is over.
    pub(super) told: Option<Told>,
}

/// The pod has an end, and what it is cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read how the pod ended from {}", path.display())]
pub(super) struct Unreadable {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Ended {
    /// The end of a pod of which only that is known: it is over, as one that the node has evicted, whatever its
    /// `restartPolicy`. What still runs gets `grace`.
    pub(super) fn unknown(grace: SignedDuration, now: Timestamp) -> Self {
        let eviction = Eviction {
            cause: Cause::Shortage,
            message: "The pod had ended or was to end, but what its node has kept of that cannot be read."
                .to_owned(),
            grace,
            at: now,
        };
        Self {
            evicted: Some(eviction),
            told: None,
        }
    }

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

/// What was kept; nothing where nothing was.
///
/// # Errors
///
/// [`Unreadable`] is an end too: the file is only ever there for a pod that has one.
pub(super) fn read(directory: &Path) -> Result<Ended, Unreadable> {
    let path = directory.join(FILE);
    parse(&path).or_else(|source| match fs::symlink_metadata(&path) {
        // Asked of its name: for want of descriptors, files that are not there cannot be read either.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ended::default()),
        _ => Err(Unreadable { path, source }),
    })
}

fn parse(path: &Path) -> io::Result<Ended> {
    let ended: Ended = serde_json::from_slice(&fs::read(path)?)?;
    if ended.is_nothing() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it names no end"));
    }
    Ok(ended)
}

/// Gives a file that cannot be read a second name, under which it stays when the first one is written anew. Until then the
/// first one stays too: it says to the next agent that the pod has an end.
pub(super) fn set_aside(directory: &Path) -> io::Result<()> {
    match fs::hard_link(directory.join(FILE), directory.join(ASIDE)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use k8s_openapi::api::core::v1::PodStatus;

    use super::*;

    #[test]
    fn what_was_kept_is_read_again_until_it_is_taken_back() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("u");
        assert!(read(&directory).unwrap().is_nothing());
        write(&directory, &Ended::default()).unwrap();
        let order = Eviction {
            cause: Cause::NodeEnds,
            message: "no room".to_owned(),
            grace: SignedDuration::from_secs(7),
            at: "2026-01-01T00:00:00.25Z".parse::<Timestamp>().unwrap(),
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
        assert_eq!(read(&directory).unwrap(), ended);
        let mode = fs::metadata(directory.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        write(&directory, &Ended::default()).unwrap();
        assert!(read(&directory).unwrap().is_nothing() && !directory.join(FILE).exists());
    }

    #[test]
    fn what_cannot_be_read_is_an_end_and_stays_aside() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path();
        let (file, aside) = (directory.join(FILE), directory.join(ASIDE));
        // Half of one, none of it, and one that says nothing.
        for text in ["", "{}", "{\"told\":"] {
            fs::write(&file, text).unwrap();
            read(directory).unwrap_err();
            set_aside(directory).unwrap();
            set_aside(directory).unwrap();
            read(directory).expect_err("it is still there for the next agent");
            let unknown = Ended::unknown(SignedDuration::from_secs(7), Timestamp::UNIX_EPOCH);
            write(directory, &unknown).unwrap();
            assert_eq!(read(directory).unwrap(), unknown);
            assert_eq!(fs::read_to_string(&aside).unwrap(), text);
            write(directory, &Ended::default()).unwrap();
            assert!(read(directory).unwrap().is_nothing());
            fs::remove_file(&aside).unwrap();
        }
        std::os::unix::fs::symlink("nowhere", &file).unwrap();
        read(directory).expect_err("what leads nowhere is not nothing");
    }
}
