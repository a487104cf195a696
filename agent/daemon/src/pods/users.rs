//! Which user a container runs as: the pod's wish, or else the image's, and in either case with the groups that the image's
//! accounts give it. Pure.

use agent_images::UserIds;
use k8s_openapi::api::core::v1::{Container, Pod};

/// Ids of a pod: its user namespace maps this many, from 0.
pub(crate) const ID_COUNT: u32 = 65_536;

/// Why there is no user to run as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    #[error("container has runAsNonRoot and image will run as root")]
    Root,
    #[error(
        "{field} {id}: a container for debugging runs as the container that it looks at, or as one of the pod's"
    )]
    Looser { field: &'static str, id: u32 },
    #[error("it is not known as whom the container runs that it looks at")]
    Unknown,
    #[error("{field} {id} is outside of the pod's user namespace, which has 0 to 65535")]
    Range { field: &'static str, id: i64 },
}

/// The number of the user that the pod asks for; absent if the image's decides.
pub(crate) fn asked_for(pod: &Pod, container: &Container) -> Result<Option<u32>, UserError> {
    let uid = wanted(pod, container).uid;
    uid.map(|uid| number(uid, "runAsUser")).transpose()
}

/// The user of `container`, given what the image's accounts say about it: whom the pod [asks for](asked_for), or else the
/// one that the image names. Its memberships in the image's groups stay (`supplementalGroupsPolicy: Merge`).
pub(crate) fn user(pod: &Pod, container: &Container, account: UserIds) -> Result<UserIds, UserError> {
    let wanted = wanted(pod, container);
    let gid = wanted
        .gid
        .map_or(Ok(account.gid), |gid| number(gid, "runAsGroup"))?;
    if wanted.non_root && account.uid == 0 {
        return Err(UserError::Root);
    }
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let groups = of_pod
        .and_then(|context| context.supplemental_groups.clone())
        .unwrap_or_default();
    let groups = groups
        .into_iter()
        .chain(of_pod.and_then(|context| context.fs_group));
    let mut supplementary = groups
        .map(|gid| number(gid, "supplementalGroups"))
        .collect::<Result<Vec<u32>, _>>()?;
    for gid in account.supplementary {
        supplementary.push(inside(gid, "the image's /etc/group")?);
    }
    supplementary.sort_unstable();
    supplementary.dedup();
    Ok(UserIds {
        uid: inside(account.uid, "USER")?,
        gid: inside(gid, "USER")?,
        supplementary,
    })
}

/// The user that all containers of `pod` run as by its own wish, those for debugging aside; none if one of them leaves it to
/// its image, or they differ.
pub(crate) fn shared_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let mut users = containers.map(|container| wanted(pod, container).uid);
    let first = users.next()??;
    if users.any(|user| user != Some(first)) {
        return None;
    }
    number(first, "runAsUser").ok()
}

struct Wanted {
    uid: Option<i64>,
    gid: Option<i64>,
    non_root: bool,
}

fn wanted(pod: &Pod, container: &Container) -> Wanted {
    let pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    Wanted {
        uid: own
            .and_then(|c| c.run_as_user)
            .or(pod.and_then(|p| p.run_as_user)),
        gid: own
            .and_then(|c| c.run_as_group)
            .or(pod.and_then(|p| p.run_as_group)),
        non_root: own
            .and_then(|c| c.run_as_non_root)
            .or(pod.and_then(|p| p.run_as_non_root))
            == Some(true),
    }
}

pub(super) fn number(id: i64, field: &'static str) -> Result<u32, UserError> {
    u32::try_from(id)
        .ok()
        .filter(|id| *id < ID_COUNT)
        .ok_or(UserError::Range { field, id })
}

fn inside(id: u32, field: &'static str) -> Result<u32, UserError> {
    number(i64::from(id), field)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(
        clippy::needless_pass_by_value,
        reason = "the callers build the value in place"
    )]
    fn decide(security: serde_json::Value, image: (u32, u32)) -> Result<UserIds, UserError> {
        let pod: Pod = serde_json::from_value(json!({
            "spec": {"containers": [], "securityContext": {"supplementalGroups": [7, 5, 7], "fsGroup": 9}},
        }))
        .unwrap();
        let container: Container =
            serde_json::from_value(json!({"name": "c", "securityContext": security})).unwrap();
        // The image has no account of a number that the pod asks for, but for 8.
        let (uid, gid, supplementary) = match asked_for(&pod, &container)? {
            Some(8) => (8, 88, vec![5, 3]),
            Some(asked) => (asked, 0, vec![]),
            None => (image.0, image.1, vec![3]),
        };
        let account = UserIds {
            uid,
            gid,
            supplementary,
        };
        user(&pod, &container, account)
    }

    #[test]
    fn the_pod_overrides_the_image_and_non_root_is_kept() {
        let ids = |uid, gid, supplementary: &[u32]| {
            Ok(UserIds {
                uid,
                gid,
                supplementary: supplementary.to_vec(),
            })
        };
        assert_eq!(decide(json!({}), (101, 102)), ids(101, 102, &[3, 5, 7, 9]));
        assert_eq!(decide(json!({"runAsUser": 5}), (101, 102)), ids(5, 0, &[5, 7, 9]));
        assert_eq!(
            decide(json!({"runAsUser": 8}), (101, 102)),
            ids(8, 88, &[3, 5, 7, 9])
        );
        assert_eq!(
            decide(json!({"runAsUser": 8, "runAsGroup": 6}), (101, 102)),
            ids(8, 6, &[3, 5, 7, 9])
        );
        assert_eq!(
            decide(json!({"runAsGroup": 6}), (101, 102)),
            ids(101, 6, &[3, 5, 7, 9])
        );
        assert_eq!(
            decide(json!({"runAsNonRoot": true}), (0, 0)),
            Err(UserError::Root)
        );
        let outside = decide(json!({"runAsUser": 70_000}), (0, 0));
        assert_eq!(
            outside,
            Err(UserError::Range {
                field: "runAsUser",
                id: 70_000
            })
        );
        assert!(
            decide(json!({}), (100_000, 0)).is_err(),
            "an image cannot leave the namespace either"
        );
    }
}
