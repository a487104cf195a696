//! What to do next about claims and volumes. Pure: everything that is, in; one step for each object, out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use api::storage::{
    CLAIM_PROTECTION, DATA_REMOVED, LOCAL_PATH_FINALIZER, LOCAL_PATH_PROVISIONER, SELECTED_NODE,
    VOLUME_PROTECTION, allows_node, fits, is_for_one_node, is_local_path, size,
};
use k8s_openapi::{
    api::{
        core::v1::{Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt as _;

/// Everything that is.
pub(super) struct World<'a> {
    pub(super) claims: &'a [Arc<PersistentVolumeClaim>],
    pub(super) volumes: &'a [Arc<PersistentVolume>],
    pub(super) classes: &'a [Arc<StorageClass>],
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) nodes: &'a [Arc<Node>],
}

/// One step. Each is about one object and is repeated until the object shows it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Make the volume of a claim, on the node that was chosen.
    Provision {
        claim: Arc<PersistentVolumeClaim>,
        node: String,
    },
    /// Give a volume to a claim.
    GiveVolume {
        volume: Arc<PersistentVolume>,
        claim: Arc<PersistentVolumeClaim>,
    },
    /// Tell a claim its volume.
    TellClaim {
        claim: Arc<PersistentVolumeClaim>,
        volume: Arc<PersistentVolume>,
    },
    /// Say in a claim's status that it is bound.
    ClaimIsBound {
        claim: Arc<PersistentVolumeClaim>,
        volume: Arc<PersistentVolume>,
    },
    /// Say that a claim's volume is gone.
    ClaimIsLost(Arc<PersistentVolumeClaim>),
    /// Write a volume's phase.
    VolumeIs {
        volume: Arc<PersistentVolume>,
        phase: &'static str,
    },
    /// Take a finalizer off a claim.
    LetClaimGo(Arc<PersistentVolumeClaim>),
    /// Take a finalizer off a volume.
    LetVolumeGo {
        volume: Arc<PersistentVolume>,
        finalizer: &'static str,
    },
    /// Delete a volume that nobody claims any more.
    DeleteVolume(Arc<PersistentVolume>),
}

/// Decides.
pub(super) fn decide(world: &World<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    for volume in world.volumes {
        steps.extend(about_volume(world, volume));
    }
    // Volumes that were given away in this pass.
    let mut given = BTreeSet::new();
    for claim in world.claims {
        steps.extend(about_claim(world, claim, &mut given));
    }
    steps
}

fn about_volume(world: &World<'_>, volume: &Arc<PersistentVolume>) -> Option<Step> {
    let reference = claim_ref(volume);
    let claim = reference.and_then(|reference| find_claim(world, reference));
    if volume.metadata.deletion_timestamp.is_some() {
        return let_go(volume, claim.is_some());
    }
    let is = |phase: &'static str| {
        let differs = phase_of(volume) != phase;
        differs.then(|| Step::VolumeIs {
            volume: Arc::clone(volume),
            phase,
        })
    };
    match (reference, claim) {
        (None, _) => is("Available"),
        // Kept for a claim that does not exist yet.
        (Some(reference), None) if reference.uid.is_none() => is("Available"),
        (Some(_), Some(claim)) => match claim_volume(claim) {
            Some(name) if name == volume.name_any() => is("Bound"),
            // The claim is told first.
            _ => None,
        },
        (Some(_), None) => is("Released").or_else(|| {
            let policy = volume.spec.as_ref()?.persistent_volume_reclaim_policy.as_deref();
            let ours = policy == Some("Delete") && is_local_path(volume);
            ours.then(|| Step::DeleteVolume(Arc::clone(volume)))
        }),
    }
}

/// A volume that is being deleted stays while it is bound, and while its node has not removed the data.
fn let_go(volume: &Arc<PersistentVolume>, bound: bool) -> Option<Step> {
    if bound {
        return None;
    }
    let has = |finalizer: &&str| has_finalizer(&volume.metadata, finalizer);
    let removed = volume
        .status
        .as_ref()
        .is_some_and(|status| status.reason.as_deref() == Some(DATA_REMOVED));
    [VOLUME_PROTECTION, LOCAL_PATH_FINALIZER]
        .into_iter()
        .filter(|finalizer| *finalizer != LOCAL_PATH_FINALIZER || removed)
        .find(has)
        .map(|finalizer| Step::LetVolumeGo {
            volume: Arc::clone(volume),
            finalizer,
        })
}

fn about_claim(
    world: &World<'_>,
    claim: &Arc<PersistentVolumeClaim>,
    given: &mut BTreeSet<String>,
) -> Option<Step> {
    if claim.metadata.deletion_timestamp.is_some() {
        let idle = has_finalizer(&claim.metadata, CLAIM_PROTECTION) && !is_used(world, claim);
        return idle.then(|| Step::LetClaimGo(Arc::clone(claim)));
    }
    if let Some(name) = claim_volume(claim) {
        let volume = world.volumes.iter().find(|volume| volume.name_any() == name);
        return about_named(claim, volume);
    }
    // A volume that was given to it, by an earlier pass or by whoever made the volume.
    let mine = |volume: &&Arc<PersistentVolume>| {
        claim_ref(volume).is_some_and(|reference| refers_to(reference, claim)) && is_there(volume)
    };
    if let Some(volume) = world.volumes.iter().find(mine) {
        let known = claim_ref(volume).is_some_and(|reference| reference.uid.is_some());
        let (volume, claim) = (Arc::clone(volume), Arc::clone(claim));
        return Some(match known {
            true => Step::TellClaim { claim, volume },
            false => Step::GiveVolume { volume, claim },
        });
    }
    let class = claim
        .spec
        .as_ref()?
        .storage_class_name
        .as_deref()
        .unwrap_or_default();
    let class = world.classes.iter().find(|known| known.name_any() == class);
    let waits =
        class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    let node = selected_node(world, claim);
    if waits && node.is_none() {
        return None;
    }
    let free = world.volumes.iter().filter(|volume| {
        is_there(volume)
            && claim_ref(volume).is_none()
            && !given.contains(&volume.name_any())
            && fits(volume, claim)
            && node.is_none_or(|node| allows(volume, node))
    });
    let smallest = free.min_by_key(|volume| (size(volume), volume.name_any()));
    if let Some(volume) = smallest {
        given.insert(volume.name_any());
        return Some(Step::GiveVolume {
            volume: Arc::clone(volume),
            claim: Arc::clone(claim),
        });
    }
    let ours = class.is_some_and(|class| class.provisioner == LOCAL_PATH_PROVISIONER);
    let node = node.filter(|_node| ours && is_for_one_node(claim))?;
    Some(Step::Provision {
        claim: Arc::clone(claim),
        node: node.name_any(),
    })
}

/// A claim that names its volume.
fn about_named(claim: &Arc<PersistentVolumeClaim>, volume: Option<&Arc<PersistentVolume>>) -> Option<Step> {
    let Some(volume) = volume else {
        let was_bound = claim_phase(claim) == "Bound";
        return was_bound.then(|| Step::ClaimIsLost(Arc::clone(claim)));
    };
    match claim_ref(volume) {
        Some(reference) if reference.uid.as_ref() == claim.metadata.uid.as_ref() => {
            let differs = claim_phase(claim) != "Bound";
            differs.then(|| Step::ClaimIsBound {
                claim: Arc::clone(claim),
                volume: Arc::clone(volume),
            })
        }
        reference => {
            let free = reference.is_none_or(|reference| refers_to(reference, claim));
            (free && is_there(volume) && fits(volume, claim)).then(|| Step::GiveVolume {
                volume: Arc::clone(volume),
                claim: Arc::clone(claim),
            })
        }
    }
}

/// Whether a pod that has a node and has not ended uses the claim. One without a node has nothing of it, and gets none while
/// the claim is being deleted: they would wait for one another.
fn is_used(world: &World<'_>, claim: &PersistentVolumeClaim) -> bool {
    let ended = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    let placed = |pod: &Pod| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        node.is_some_and(|node| !node.is_empty())
    };
    world
        .pods
        .iter()
        .filter(|pod| pod.namespace() == claim.namespace() && placed(pod) && !ended(pod))
        .any(|pod| claims_of(pod).any(|name| name == claim.name_any()))
}

/// Claims that a pod mounts, by name.
fn claims_of(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| volume.persistent_volume_claim.as_ref())
        .map(|source| source.claim_name.as_str())
}

fn selected_node<'a>(world: &World<'a>, claim: &PersistentVolumeClaim) -> Option<&'a Arc<Node>> {
    let name = claim.annotations().get(SELECTED_NODE)?;
    world.nodes.iter().find(|node| node.name_any() == *name)
}

fn allows(volume: &PersistentVolume, node: &Node) -> bool {
    let none = BTreeMap::new();
    allows_node(
        volume,
        &node.name_any(),
        node.metadata.labels.as_ref().unwrap_or(&none),
    )
}

/// Whether the volume is not on its way out.
fn is_there(volume: &PersistentVolume) -> bool {
    volume.metadata.deletion_timestamp.is_none()
}

fn find_claim<'a>(world: &World<'a>, reference: &ObjectReference) -> Option<&'a Arc<PersistentVolumeClaim>> {
    world.claims.iter().find(|claim| refers_to(reference, claim))
}

/// Whether a volume is kept for the claim. A reference without UID means whoever has the name.
fn refers_to(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    let uid = reference.uid.as_ref().filter(|uid| !uid.is_empty());
    reference.name.as_ref() == claim.metadata.name.as_ref()
        && reference.namespace.as_ref() == claim.metadata.namespace.as_ref()
        && uid.is_none_or(|uid| Some(uid) == claim.metadata.uid.as_ref())
}

fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

fn claim_volume(claim: &PersistentVolumeClaim) -> Option<&str> {
    let name = claim.spec.as_ref()?.volume_name.as_deref();
    name.filter(|name| !name.is_empty())
}

fn phase_of(volume: &PersistentVolume) -> &str {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    phase.unwrap_or_default()
}

fn claim_phase(claim: &PersistentVolumeClaim) -> &str {
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    phase.unwrap_or_default()
}

pub(super) fn has_finalizer(metadata: &ObjectMeta, finalizer: &str) -> bool {
    metadata.finalizers.iter().flatten().any(|own| own == finalizer)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(name: &str, extra: Value) -> Arc<PersistentVolumeClaim> {
        let mut object = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": format!("u-{name}"),
                "finalizers": [CLAIM_PROTECTION]},
            "spec": {"storageClassName": "local-path", "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Pending"},
        });
        json_patch(&mut object, extra);
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn volume(name: &str, extra: Value) -> Arc<PersistentVolume> {
        let mut object = json!({
            "metadata": {"name": name, "finalizers": [VOLUME_PROTECTION]},
            "spec": {"storageClassName": "local-path", "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": "2Gi"}, "persistentVolumeReclaimPolicy": "Delete"},
            "status": {"phase": "Available"},
        });
        json_patch(&mut object, extra);
        Arc::new(serde_json::from_value(object).unwrap())
    }

    /// Merges objects, replaces everything else.
    fn json_patch(object: &mut Value, patch: Value) {
        match (object, patch) {
            (Value::Object(object), Value::Object(patch)) => {
                for (key, value) in patch {
                    json_patch(object.entry(key).or_insert(Value::Null), value);
                }
            }
            (object, patch) => *object = patch,
        }
    }

    fn class(mode: &str) -> Arc<StorageClass> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "local-path"},
                "provisioner": LOCAL_PATH_PROVISIONER, "volumeBindingMode": mode}))
            .unwrap(),
        )
    }

    fn node(name: &str) -> Arc<Node> {
        let labels = json!({"kubernetes.io/hostname": name});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap())
    }

    fn steps(
        claims: &[Arc<PersistentVolumeClaim>],
        volumes: &[Arc<PersistentVolume>],
        pods: &[Arc<Pod>],
    ) -> Vec<Step> {
        let world = World {
            claims,
            volumes,
            classes: &[class("WaitForFirstConsumer")],
            pods,
            nodes: &[node("n1"), node("n2")],
        };
        decide(&world)
    }

    fn chosen(node: &str) -> Value {
        json!({"metadata": {"annotations": {SELECTED_NODE: node}}})
    }

    fn given_to(claim: &str) -> Value {
        json!({"spec": {"claimRef": {"namespace": "ns", "name": claim, "uid": format!("u-{claim}")}}})
    }

    #[test]
    fn a_claim_waits_for_its_node_and_then_gets_a_volume_there() {
        assert_eq!(steps(&[claim("c", json!({}))], &[], &[]), []);
        let waiting = claim("c", chosen("n1"));
        let made = Step::Provision {
            claim: Arc::clone(&waiting),
            node: "n1".to_owned(),
        };
        assert_eq!(steps(&[Arc::clone(&waiting)], &[], &[]), [made]);
        assert_eq!(steps(&[claim("c", chosen("gone"))], &[], &[]), []);
        let shared = json!({"metadata": {"annotations": {SELECTED_NODE: "n1"}},
            "spec": {"accessModes": ["ReadWriteMany"]}});
        assert_eq!(
            steps(&[claim("c", shared)], &[], &[]),
            [],
            "one node's directory is not for many"
        );
    }

    #[test]
    fn the_smallest_volume_that_fits_is_given_once_and_only_where_it_may_be() {
        let bound_to = |node: &str| {
            json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}})
        };
        let mut large = bound_to("n1");
        large["spec"]["capacity"] = json!({"storage": "9Gi"});
        let volumes = [
            volume("large", large),
            volume("small", bound_to("n1")),
            volume("elsewhere", bound_to("n2")),
        ];
        let claims = [
            claim("a", chosen("n1")),
            claim("b", chosen("n1")),
            claim("c", chosen("n1")),
        ];
        let found = steps(&claims, &volumes, &[]);
        let give = |claim: usize, volume: usize| Step::GiveVolume {
            volume: Arc::clone(&volumes[volume]),
            claim: Arc::clone(&claims[claim]),
        };
        let provision = Step::Provision {
            claim: Arc::clone(&claims[2]),
            node: "n1".to_owned(),
        };
        assert_eq!(found, [give(0, 1), give(1, 0), provision]);
    }

    #[test]
    fn a_volume_and_its_claim_tell_one_another_step_by_step() {
        let given = volume("v", given_to("c"));
        let fresh = claim("c", json!({}));
        let tell = Step::TellClaim {
            claim: Arc::clone(&fresh),
            volume: Arc::clone(&given),
        };
        assert_eq!(steps(&[fresh], &[Arc::clone(&given)], &[]), [tell]);
        let told = claim("c", json!({"spec": {"volumeName": "v"}}));
        let expected = [
            Step::VolumeIs {
                volume: Arc::clone(&given),
                phase: "Bound",
            },
            Step::ClaimIsBound {
                claim: Arc::clone(&told),
                volume: Arc::clone(&given),
            },
        ];
        assert_eq!(steps(&[told], &[given], &[]), expected);
        let bound = claim(
            "c",
            json!({"spec": {"volumeName": "v"}, "status": {"phase": "Bound"}}),
        );
        let mut extra = given_to("c");
        extra["status"] = json!({"phase": "Bound"});
        assert_eq!(
            steps(&[Arc::clone(&bound)], &[volume("v", extra)], &[]),
            [],
            "settled"
        );
        assert_eq!(steps(&[Arc::clone(&bound)], &[], &[]), [Step::ClaimIsLost(bound)]);
    }

    #[test]
    fn somebody_elses_volume_is_not_taken() {
        let others = volume("v", given_to("other"));
        let named = claim("c", json!({"spec": {"volumeName": "v"}}));
        let found = steps(&[named], &[others], &[]);
        assert!(
            found.iter().all(|step| matches!(
                step,
                Step::VolumeIs {
                    phase: "Released",
                    ..
                }
            )),
            "{found:?}"
        );
    }

    #[test]
    fn a_claim_stays_while_a_pod_uses_it_and_its_volume_goes_after_the_data() {
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let pod = |node: &str, phase: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"},
                    "spec": {"containers": [], "nodeName": node,
                        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
                    "status": {"phase": phase}}))
                .unwrap(),
            )
        };
        let claim = claim("c", going.clone());
        assert_eq!(steps(&[Arc::clone(&claim)], &[], &[pod("n1", "Running")]), []);
        assert_eq!(
            steps(&[Arc::clone(&claim)], &[], &[pod("n1", "Pending")]),
            [],
            "the node may have begun with it"
        );
        for idle in [pod("n1", "Succeeded"), pod("", "Pending")] {
            assert_eq!(
                steps(&[Arc::clone(&claim)], &[], &[idle]),
                [Step::LetClaimGo(Arc::clone(&claim))]
            );
        }

        let ours = json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": LOCAL_PATH_PROVISIONER},
            "finalizers": [VOLUME_PROTECTION, LOCAL_PATH_FINALIZER]}});
        let with = |extra: Value| {
            let mut all = given_to("c");
            json_patch(&mut all, ours.clone());
            json_patch(&mut all, extra);
            volume("v", all)
        };
        let released = with(json!({"status": {"phase": "Released"}}));
        assert_eq!(
            steps(&[], &[Arc::clone(&released)], &[]),
            [Step::DeleteVolume(released)]
        );
        let kept = with(
            json!({"status": {"phase": "Released"}, "spec": {"persistentVolumeReclaimPolicy": "Retain"}}),
        );
        assert_eq!(steps(&[], &[kept], &[]), []);
        let deleted = with(going.clone());
        let let_go = |volume: &Arc<PersistentVolume>, finalizer| {
            [Step::LetVolumeGo {
                volume: Arc::clone(volume),
                finalizer,
            }]
        };
        assert_eq!(
            steps(&[], &[Arc::clone(&deleted)], &[]),
            let_go(&deleted, VOLUME_PROTECTION)
        );
        let mut last = going;
        last["metadata"]["finalizers"] = json!([LOCAL_PATH_FINALIZER]);
        let waiting = with(last.clone());
        assert_eq!(
            steps(&[], &[waiting], &[]),
            [],
            "the node has not removed the data"
        );
        last["status"] = json!({"reason": DATA_REMOVED});
        let done = with(last);
        assert_eq!(
            steps(&[], &[Arc::clone(&done)], &[]),
            let_go(&done, LOCAL_PATH_FINALIZER)
        );
    }
}
