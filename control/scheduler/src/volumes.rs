//! Where a pod's volumes let it go: claims that are bound, and claims that wait for the pod.

use std::{collections::BTreeMap, sync::Arc};

use api::storage::{LOCAL_PATH_PROVISIONER, SELECTED_NODE, allows_node, fits, is_for_one_node};
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};

/// Claims, volumes and classes, as they are.
#[derive(Debug, Clone, Copy)]
pub struct Storage<'a> {
    /// All claims.
    pub claims: &'a [Arc<PersistentVolumeClaim>],
    /// All volumes.
    pub volumes: &'a [Arc<PersistentVolume>],
    /// All classes.
    pub classes: &'a [Arc<StorageClass>],
}

/// What the claims of one pod ask of its node.
#[derive(Debug, Clone, Default)]
pub struct Needs<'a> {
    /// Volumes that the pod has already.
    bound: Vec<&'a PersistentVolume>,
    /// Claims that get a volume once the pod's node is known.
    waiting: Vec<Waiting<'a>>,
}

#[derive(Debug, Clone)]
struct Waiting<'a> {
    claim: &'a PersistentVolumeClaim,
    /// Volumes that would do.
    free: Vec<&'a PersistentVolume>,
    /// Whether one can be made anywhere.
    made: bool,
}

impl Waiting<'_> {
    /// Whether there is a volume for it on the node, or one can be made. One volume may do for several claims: then the binder
    /// gives it once, and the pod waits for another try.
    fn is_served(&self, node: &Node) -> bool {
        self.made || self.free.iter().any(|volume| allows(volume, node))
    }
}

impl<'a> Needs<'a> {
    /// What the claims of `pod` ask for, or why it cannot run anywhere yet, in the words of Kubernetes' scheduler.
    pub fn of(pod: &Pod, storage: Storage<'a>) -> Result<Self, String> {
        let mut needs = Self::default();
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let names = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref());
        for name in names.map(|source| &source.claim_name) {
            let same = |claim: &&'a Arc<PersistentVolumeClaim>| {
                claim.metadata.name.as_ref() == Some(name)
                    && claim.metadata.namespace == pod.metadata.namespace
            };
            let claim = storage.claims.iter().find(same);
            let claim = claim.ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            needs.add(claim, storage)?;
        }
        Ok(needs)
    }

    fn add(&mut self, claim: &'a PersistentVolumeClaim, storage: Storage<'a>) -> Result<(), String> {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let spec = claim.spec.as_ref();
        let volume_name = spec.and_then(|spec| spec.volume_name.as_deref());
        if let Some(volume_name) = volume_name.filter(|name| !name.is_empty()) {
            let known =
                |volume: &&'a Arc<PersistentVolume>| volume.metadata.name.as_deref() == Some(volume_name);
            let volume = storage.volumes.iter().find(known);
            return match (volume, phase) {
                (Some(volume), Some("Bound")) => {
                    self.bound.push(volume);
                    Ok(())
                }
                (_, Some("Lost")) => Err(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume_name:?}"
                )),
                _ => Err("pod has unbound immediate PersistentVolumeClaims".to_owned()),
            };
        }
        let class = spec
            .and_then(|spec| spec.storage_class_name.as_deref())
            .unwrap_or_default();
        let class = storage
            .classes
            .iter()
            .find(|known| known.metadata.name.as_deref() == Some(class));
        let waits =
            |class: &StorageClass| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
        let Some(class) = class.filter(|class| waits(class)) else {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        };
        let unclaimed = |volume: &&'a Arc<PersistentVolume>| {
            let claimed = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
            !claimed && volume.metadata.deletion_timestamp.is_none() && fits(volume, claim)
        };
        self.waiting.push(Waiting {
            claim,
            free: storage
                .volumes
                .iter()
                .filter(unclaimed)
                .map(|volume| &**volume)
                .collect(),
            made: class.provisioner == LOCAL_PATH_PROVISIONER && is_for_one_node(claim),
        });
        Ok(())
    }

    /// Why the node does not do, if it does not.
    pub(crate) fn against(&self, node: &Node) -> Option<&'static str> {
        if !self.bound.iter().all(|volume| allows(volume, node)) {
            return Some("node(s) had volume node affinity conflict");
        }
        match self.waiting.iter().all(|waiting| waiting.is_served(node)) {
            true => None,
            false => Some("node(s) didn't find available persistent volumes to bind"),
        }
    }

    /// Whether the pod cannot be bound before its claims are.
    pub fn pends(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Claims that have to be told the pod's node before the pod is bound to it. Those that were told one that can serve them
    /// are not told again: the volume comes, or the binder says why not.
    pub fn untold<'n>(
        &self,
        node: impl Fn(&str) -> Option<&'n Node>,
    ) -> impl Iterator<Item = &'a PersistentVolumeClaim> {
        let untold = move |waiting: &&Waiting<'a>| {
            let annotations = waiting.claim.metadata.annotations.as_ref();
            let told = annotations.and_then(|all| all.get(SELECTED_NODE));
            let told = told.and_then(|name| node(name));
            !told.is_some_and(|told| waiting.is_served(told))
        };
        self.waiting.iter().filter(untold).map(|waiting| waiting.claim)
    }
}

fn allows(volume: &PersistentVolume, node: &Node) -> bool {
    let none = BTreeMap::new();
    let name = node.metadata.name.as_deref().unwrap_or_default();
    allows_node(volume, name, node.metadata.labels.as_ref().unwrap_or(&none))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read<T: serde::de::DeserializeOwned>(object: Value) -> Arc<T> {
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn pod() -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}),
        )
        .unwrap()
    }

    fn node(name: &str) -> Node {
        serde_json::from_value(
            json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}),
        )
        .unwrap()
    }

    fn volume(name: &str, node: &str) -> Arc<PersistentVolume> {
        read(json!({"metadata": {"name": name}, "spec": {
            "storageClassName": "s", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}}))
    }

    fn claim(volume: &str, phase: &str) -> Arc<PersistentVolumeClaim> {
        read(
            json!({"metadata": {"name": "c", "namespace": "ns"}, "status": {"phase": phase}, "spec": {
            "storageClassName": "s", "accessModes": ["ReadWriteOnce"], "volumeName": volume,
            "resources": {"requests": {"storage": "1Gi"}}}}),
        )
    }

    fn class(mode: &str, provisioner: &str) -> Arc<StorageClass> {
        read(json!({"metadata": {"name": "s"}, "provisioner": provisioner, "volumeBindingMode": mode}))
    }

    fn against(
        claims: &[Arc<PersistentVolumeClaim>],
        volumes: &[Arc<PersistentVolume>],
        class: Arc<StorageClass>,
        at: &str,
    ) -> Result<Option<&'static str>, String> {
        let classes = [class];
        let storage = Storage {
            claims,
            volumes,
            classes: &classes,
        };
        Needs::of(&pod(), storage).map(|needs| needs.against(&node(at)))
    }

    #[test]
    fn bound_volumes_hold_a_pod_on_their_node() {
        let volumes = [volume("v", "n1")];
        let class = || class("Immediate", "x");
        let bound = [claim("v", "Bound")];
        assert_eq!(against(&bound, &volumes, class(), "n1"), Ok(None));
        assert_eq!(
            against(&bound, &volumes, class(), "n2"),
            Ok(Some("node(s) had volume node affinity conflict"))
        );
        for (claims, words) in [
            (vec![], "not found"),
            (vec![claim("v", "Pending")], "unbound immediate"),
            (vec![claim("", "Pending")], "unbound immediate"),
            (vec![claim("gone", "Lost")], "non-existent"),
        ] {
            let refused = against(&claims, &volumes, class(), "n1").unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
    }

    #[test]
    fn waiting_claims_go_where_a_volume_is_or_can_be_made() {
        let waiting = [claim("", "Pending")];
        let of = |provisioner: &str| class("WaitForFirstConsumer", provisioner);
        let volumes = [volume("v", "n1")];
        assert_eq!(against(&waiting, &volumes, of("none"), "n1"), Ok(None));
        assert_eq!(
            against(&waiting, &volumes, of("none"), "n2"),
            Ok(Some("node(s) didn't find available persistent volumes to bind"))
        );
        assert_eq!(against(&waiting, &[], of(LOCAL_PATH_PROVISIONER), "n2"), Ok(None));
        let mut shared = PersistentVolumeClaim::clone(&waiting[0]);
        shared.spec.as_mut().unwrap().access_modes = Some(vec!["ReadWriteMany".to_owned()]);
        assert_eq!(
            against(&[Arc::new(shared)], &volumes, of(LOCAL_PATH_PROVISIONER), "n1"),
            Ok(Some("node(s) didn't find available persistent volumes to bind")),
            "no volume is made for pods of several nodes"
        );
    }

    #[test]
    fn a_claim_is_told_again_where_what_it_was_told_does_not_serve_it_any_more() {
        let told = |node: &str| {
            let mut claim = PersistentVolumeClaim::clone(&claim("", "Pending"));
            claim.metadata.annotations = Some([(SELECTED_NODE.to_owned(), node.to_owned())].into());
            Arc::new(claim)
        };
        let nodes = [node("n1"), node("n2")];
        let known = |name: &str| {
            nodes
                .iter()
                .find(|node| node.metadata.name.as_deref() == Some(name))
        };
        let untold = |claim: Arc<PersistentVolumeClaim>, provisioner: &str| {
            let (claims, classes) = ([claim], [class("WaitForFirstConsumer", provisioner)]);
            let volumes = [volume("v", "n2")];
            let storage = Storage {
                claims: &claims,
                volumes: &volumes,
                classes: &classes,
            };
            let needs = Needs::of(&pod(), storage).unwrap();
            assert!(needs.pends());
            needs.untold(known).count()
        };
        assert_eq!(untold(claim("", "Pending"), LOCAL_PATH_PROVISIONER), 1);
        assert_eq!(untold(told("n1"), LOCAL_PATH_PROVISIONER), 0);
        assert_eq!(untold(told("gone"), LOCAL_PATH_PROVISIONER), 1);
        assert_eq!(untold(told("n2"), "none"), 0);
        assert_eq!(
            untold(told("n1"), "none"),
            1,
            "somebody else has the volume there"
        );
    }
}
