//! What an ephemeral container may have: no more than the container that it looks at, or without a target than those that the pod
//! was created with. Pure.
//!
//! Of sandbox profiles the same is true by `sandbox`, which chooses them by the target, or without one by the loosest container.

use std::collections::BTreeMap;

use agent_images::UserIds;
use agent_plan::User;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::users::{UserError, number};

/// The containers by which an ephemeral one is measured; nothing for a container that the pod was created with.
fn measures<'a>(pod: &'a Pod, name: &str) -> Option<Vec<&'a Container>> {
    let spec = pod.spec.as_ref()?;
    let mut ephemeral = spec.ephemeral_containers.iter().flatten();
    let ephemeral = ephemeral.find(|ephemeral| ephemeral.name == name)?;
    let target = ephemeral.target_container_name.as_deref();
    let target = target.filter(|target| !target.is_empty());
    let lasting = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    Some(
        lasting
            .filter(|lasting| target.is_none_or(|target| lasting.name == target))
            .collect(),
    )
}

/// What is left of the capabilities that a container asks for; `of` says which ones another container holds.
pub(super) fn capabilities<E>(
    pod: &Pod,
    container: &Container,
    mut asked: Vec<String>,
    of: impl Fn(&Container) -> Result<Vec<String>, E>,
) -> Result<Vec<String>, E> {
    let Some(measures) = measures(pod, &container.name) else {
        return Ok(asked);
    };
    let mut most = Vec::new();
    for measure in measures {
        most.extend(of(measure)?);
    }
    asked.retain(|capability| most.contains(capability));
    Ok(asked)
}

/// Whether the container cannot write to its root for the sake of those by which it is measured.
pub(super) fn has_read_only_root(pod: &Pod, container: &Container) -> bool {
    let is_read_only = |container: &&Container| {
        let security = container.security_context.as_ref();
        security.and_then(|security| security.read_only_root_filesystem) == Some(true)
    };
    measures(pod, &container.name).is_some_and(|measures| measures.iter().all(is_read_only))
}

/// As whom an ephemeral container runs; nothing if that is its own matter: where it is measured by one that runs as root, or
/// by none that has run. `known` has the users of the pod's containers.
///
/// # Errors
///
/// [`UserError::Looser`] where it asks for another user or group, [`UserError::Unknown`] where its target's is not known.
pub(super) fn user(
    pod: &Pod,
    container: &Container,
    known: &BTreeMap<String, User>,
) -> Result<Option<UserIds>, UserError> {
    let Some(measures) = measures(pod, &container.name) else {
        return Ok(None);
    };
    let users: Vec<&User> = measures
        .iter()
        .filter_map(|measure| known.get(&measure.name))
        .collect();
    let first = match users.first() {
        Some(first) if users.iter().all(|user| user.uid != 0) => *first,
        None if has_target(pod, &container.name) => return Err(UserError::Unknown),
        Some(_) | None => return Ok(None),
    };
    let security = container.security_context.as_ref();
    let uid = security.and_then(|security| security.run_as_user);
    let uid = uid.map(|uid| number(uid, "runAsUser")).transpose()?;
    let gid = security.and_then(|security| security.run_as_group);
    let gid = gid.map(|gid| number(gid, "runAsGroup")).transpose()?;
    let looser = |field, id: Option<u32>| UserError::Looser {
        field,
        id: id.unwrap_or_default(),
    };
    let found = users
        .into_iter()
        .find(|user| uid.map_or(*user == first, |uid| user.uid == uid));
    let user = found.ok_or_else(|| looser("runAsUser", uid))?;
    let is_in = |gid: &u32| *gid == user.gid || user.supplementary.contains(gid);
    if gid.is_some_and(|gid| !is_in(&gid)) {
        return Err(looser("runAsGroup", gid));
    }
    Ok(Some(UserIds {
        uid: user.uid,
        gid: gid.unwrap_or(user.gid),
        supplementary: user.supplementary.clone(),
    }))
}

fn has_target(pod: &Pod, name: &str) -> bool {
    let spec = pod.spec.iter();
    let mut ephemeral = spec.flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    ephemeral.any(|ephemeral| {
        let target = ephemeral.target_container_name.as_deref();
        ephemeral.name == name && target.is_some_and(|target| !target.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pods::{container::capabilities_of, steps::containers};

    /// A pod with a hardened container and one that is not, and `ephemeral` beside them.
    fn pod(ephemeral: &Value) -> Pod {
        let pod = json!({"spec": {
            "containers": [
                {"name": "hard", "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["KILL"]},
                    "runAsUser": 1000, "readOnlyRootFilesystem": true}},
                {"name": "soft", "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["CHOWN", "NET_RAW"]}}},
            ],
            "ephemeralContainers": [ephemeral],
        }});
        serde_json::from_value(pod).unwrap()
    }

    fn debugger(target: &str, security: &Value) -> Value {
        json!({"name": "d", "targetContainerName": target, "securityContext": security})
    }

    fn of<R>(pod: &Pod, name: &str, ask: impl Fn(&Container) -> R) -> R {
        let all = containers(pod);
        ask(all.iter().find(|container| container.name == name).unwrap())
    }

    #[test]
    fn a_debug_container_holds_no_capability_that_its_target_has_not() {
        let held = |target: &str, security: Value| {
            let pod = pod(&debugger(target, &security));
            of(&pod, "d", |debugger| capabilities_of(&pod, debugger).unwrap())
        };
        assert_eq!(held("hard", json!(null)), ["CAP_KILL"]);
        let wishes = json!({"capabilities": {"add": ["NET_RAW", "MKNOD"], "drop": ["KILL"]}});
        assert_eq!(held("hard", wishes.clone()), [] as [&str; 0]);
        assert_eq!(held("soft", wishes.clone()), ["CAP_CHOWN", "CAP_NET_RAW"]);
        assert_eq!(
            held("", wishes),
            ["CAP_CHOWN", "CAP_NET_RAW"],
            "of any of the pod's"
        );
        assert_eq!(held("", json!(null)), ["CAP_CHOWN", "CAP_KILL"]);
        assert_eq!(held("nobody", json!(null)), [] as [&str; 0]);
        let pod = pod(&debugger("hard", &json!(null)));
        let own = of(&pod, "soft", |soft| capabilities_of(&pod, soft).unwrap());
        assert_eq!(own, ["CAP_CHOWN", "CAP_NET_RAW"], "others have what they had");
    }

    #[test]
    fn a_debug_container_writes_to_its_root_where_its_target_does() {
        for (target, expected) in [("hard", true), ("soft", false), ("", false)] {
            let pod = pod(&debugger(target, &json!(null)));
            assert_eq!(
                of(&pod, "d", |d| has_read_only_root(&pod, d)),
                expected,
                "{target}"
            );
            assert!(
                !of(&pod, "hard", |hard| has_read_only_root(&pod, hard)),
                "its own matter"
            );
        }
    }

    #[test]
    fn a_debug_container_runs_as_its_target_does_unless_that_is_root() {
        let ids = |uid, gid, supplementary: &[u32]| User {
            uid,
            gid,
            supplementary: supplementary.to_vec(),
        };
        let decide = |target: &str, security: Value, soft: Option<u32>| {
            let mut known = BTreeMap::from([("hard".to_owned(), ids(1000, 100, &[7]))]);
            known.extend(soft.map(|uid| ("soft".to_owned(), ids(uid, 0, &[]))));
            let pod = pod(&debugger(target, &security));
            let user = of(&pod, "d", |debugger| user(&pod, debugger, &known))?;
            Ok::<_, UserError>(user.map(|user| (user.uid, user.gid, user.supplementary)))
        };
        let as_hard = Ok(Some((1000, 100, vec![7])));
        assert_eq!(decide("hard", json!(null), Some(0)), as_hard);
        assert_eq!(decide("hard", json!({"runAsUser": 1000}), Some(0)), as_hard);
        assert_eq!(
            decide("hard", json!({"runAsGroup": 7}), Some(0)),
            Ok(Some((1000, 7, vec![7])))
        );
        let looser = |field, id| Err(UserError::Looser { field, id });
        assert_eq!(
            decide("hard", json!({"runAsUser": 0}), Some(0)),
            looser("runAsUser", 0)
        );
        assert_eq!(
            decide("hard", json!({"runAsGroup": 0}), Some(0)),
            looser("runAsGroup", 0)
        );
        // Root's is its own matter, and so is that of a pod in which one runs as root.
        assert_eq!(decide("soft", json!({"runAsUser": 5}), Some(0)), Ok(None));
        assert_eq!(decide("", json!(null), Some(0)), Ok(None));
        assert_eq!(decide("", json!(null), Some(5)), as_hard);
        assert_eq!(
            decide("", json!({"runAsUser": 5}), Some(5)),
            Ok(Some((5, 0, vec![])))
        );
        assert_eq!(decide("soft", json!(null), None), Err(UserError::Unknown));
        let pod = pod(&debugger("hard", &json!(null)));
        assert_eq!(
            of(&pod, "hard", |hard| user(&pod, hard, &BTreeMap::new())),
            Ok(None)
        );
    }
}
