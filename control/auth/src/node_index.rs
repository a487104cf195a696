//! Which pods run on which node and what they refer to, kept up to date pod by pod.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, PersistentVolume, Pod, Volume};

use crate::{NodeView, ReferencedKind};

/// The [`NodeView`] of a set of pods.
#[derive(Debug, Clone, Default)]
pub struct NodeIndex {
    /// Node by namespace and pod name.
    nodes: BTreeMap<PodKey, String>,
    /// Node -> pod -> what it refers to, all in the pod's own namespace.
    references: BTreeMap<String, BTreeMap<PodKey, BTreeSet<(ReferencedKind, String)>>>,
    /// Nodes that a provisioned volume may be on, by volume.
    volumes: BTreeMap<String, BTreeSet<String>>,
}

type PodKey = (String, String);

impl NodeIndex {
    /// Takes the newest state of a pod.
    pub fn put(&mut self, pod: &Pod) {
        let key = pod_key(pod);
        self.remove(&key.0, &key.1);
        let Some(node) = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .filter(|n| !n.is_empty())
        else {
            return;
        };
        self.references
            .entry(node.clone())
            .or_default()
            .insert(key.clone(), references(pod));
        self.nodes.insert(key, node);
    }

    /// Takes the newest state of a volume. Those that nobody provisioned are no node's.
    pub fn put_volume(&mut self, volume: &PersistentVolume) {
        let name = volume.metadata.name.clone().unwrap_or_default();
        self.volumes.remove(&name);
        if api::storage::is_local_path(volume) {
            self.volumes
                .insert(name, api::storage::hostnames(volume).map(str::to_owned).collect());
        }
    }

    /// Forgets a pod.
    pub fn remove(&mut self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let Some(node) = self.nodes.remove(&key) else {
            return;
        };
        if let Some(pods) = self.references.get_mut(&node) {
            pods.remove(&key);
            if pods.is_empty() {
                self.references.remove(&node);
            }
        }
    }
}

impl<'a> FromIterator<&'a Pod> for NodeIndex {
    fn from_iter<I: IntoIterator<Item = &'a Pod>>(pods: I) -> Self {
        let mut index = Self::default();
        pods.into_iter().for_each(|pod| index.put(pod));
        index
    }
}

impl NodeView for NodeIndex {
    fn pod_on_node(&self, node: &str, namespace: &str, pod: &str) -> bool {
        self.nodes
            .get(&(namespace.to_owned(), pod.to_owned()))
            .is_some_and(|own| own == node)
    }

    fn volume_on_node(&self, node: &str, volume: &str) -> bool {
        self.volumes.get(volume).is_some_and(|nodes| nodes.contains(node))
    }

    fn referenced(&self, node: &str, kind: ReferencedKind, namespace: &str, name: &str) -> bool {
        let wanted = (kind, name.to_owned());
        self.references.get(node).is_some_and(|pods| {
            pods.iter()
                .any(|((own, _), references)| own == namespace && references.contains(&wanted))
        })
    }
}

fn pod_key(pod: &Pod) -> PodKey {
    let metadata = &pod.metadata;
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// A pod that has ended needs nothing any more, so it gives access to nothing.
fn references(pod: &Pod) -> BTreeSet<(ReferencedKind, String)> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let Some(spec) = pod
        .spec
        .as_ref()
        .filter(|_| !matches!(phase, Some("Succeeded" | "Failed")))
    else {
        return BTreeSet::new();
    };
    let mut found = BTreeSet::new();
    let account = spec.service_account_name.clone();
    found.insert((ReferencedKind::ServiceAccount, account.unwrap_or_default()));
    for volume in spec.volumes.iter().flatten() {
        volume_references(volume, &mut found);
    }
    for container in spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
    {
        environment_references(&container.env, &container.env_from, &mut found);
    }
    for container in spec.ephemeral_containers.iter().flatten() {
        environment_references(&container.env, &container.env_from, &mut found);
    }
    for secret in spec.image_pull_secrets.iter().flatten() {
        found.insert((ReferencedKind::Secret, secret.name.clone()));
    }
    found.retain(|(_, name)| !name.is_empty());
    found
}

fn volume_references(volume: &Volume, found: &mut BTreeSet<(ReferencedKind, String)>) {
    if let Some(name) = volume
        .secret
        .as_ref()
        .and_then(|source| source.secret_name.clone())
    {
        found.insert((ReferencedKind::Secret, name));
    }
    if let Some(source) = &volume.config_map {
        found.insert((ReferencedKind::ConfigMap, source.name.clone()));
    }
    if let Some(source) = &volume.persistent_volume_claim {
        found.insert((ReferencedKind::Claim, source.claim_name.clone()));
    }
    for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
        if let Some(secret) = &source.secret {
            found.insert((ReferencedKind::Secret, secret.name.clone()));
        }
        if let Some(config_map) = &source.config_map {
            found.insert((ReferencedKind::ConfigMap, config_map.name.clone()));
        }
    }
}

fn environment_references(
    env: &Option<Vec<EnvVar>>,
    env_from: &Option<Vec<EnvFromSource>>,
    found: &mut BTreeSet<(ReferencedKind, String)>,
) {
    for source in env_from.iter().flatten() {
        if let Some(secret) = &source.secret_ref {
            found.insert((ReferencedKind::Secret, secret.name.clone()));
        }
        if let Some(config_map) = &source.config_map_ref {
            found.insert((ReferencedKind::ConfigMap, config_map.name.clone()));
        }
    }
    for source in env
        .iter()
        .flatten()
        .filter_map(|variable| variable.value_from.as_ref())
    {
        if let Some(secret) = &source.secret_key_ref {
            found.insert((ReferencedKind::Secret, secret.name.clone()));
        }
        if let Some(config_map) = &source.config_map_key_ref {
            found.insert((ReferencedKind::ConfigMap, config_map.name.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(node: &str, phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "p"},
            "spec": {
                "nodeName": node,
                "serviceAccountName": "account",
                "imagePullSecrets": [{"name": "pull"}],
                "volumes": [
                    {"name": "a", "secret": {"secretName": "volume-secret"}},
                    {"name": "b", "configMap": {"name": "volume-map"}},
                    {"name": "d", "persistentVolumeClaim": {"claimName": "claim"}},
                    {"name": "c", "projected": {"sources": [{"secret": {"name": "projected"}}]}},
                ],
                "containers": [{
                    "name": "c",
                    "envFrom": [{"secretRef": {"name": "from-secret"}}, {"configMapRef": {"name": "from-map"}}],
                    "env": [
                        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "key-secret", "key": "k"}}},
                        {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "key-map", "key": "k"}}},
                    ],
                }],
                "ephemeralContainers": [{
                    "name": "d",
                    "envFrom": [{"secretRef": {"name": "debug-secret"}}],
                    "env": [{"name": "C", "valueFrom": {"configMapKeyRef": {"name": "debug-map", "key": "k"}}}],
                }],
            },
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    #[test]
    fn finds_every_way_to_refer() {
        let index: NodeIndex = [&pod("a", "Running")].into_iter().collect();
        for name in [
            "pull",
            "volume-secret",
            "projected",
            "from-secret",
            "key-secret",
            "debug-secret",
        ] {
            assert!(
                index.referenced("a", ReferencedKind::Secret, "ns", name),
                "{name}"
            );
            assert!(
                !index.referenced("a", ReferencedKind::ConfigMap, "ns", name),
                "{name} is no map"
            );
            assert!(
                !index.referenced("a", ReferencedKind::Secret, "other", name),
                "{name} elsewhere"
            );
            assert!(
                !index.referenced("b", ReferencedKind::Secret, "ns", name),
                "{name} for another node"
            );
        }
        for name in ["volume-map", "from-map", "key-map", "debug-map"] {
            assert!(
                index.referenced("a", ReferencedKind::ConfigMap, "ns", name),
                "{name}"
            );
        }
        assert!(index.referenced("a", ReferencedKind::Claim, "ns", "claim"));
        assert!(index.referenced("a", ReferencedKind::ServiceAccount, "ns", "account"));
        assert!(!index.referenced("a", ReferencedKind::ServiceAccount, "ns", "other"));
        assert!(!index.referenced("a", ReferencedKind::Secret, "ns", ""));
    }

    #[test]
    fn access_ends_with_the_pod() {
        let mut index = NodeIndex::default();
        index.put(&pod("a", "Running"));
        assert!(index.pod_on_node("a", "ns", "p"));

        index.put(&pod("a", "Succeeded"));
        assert!(
            index.pod_on_node("a", "ns", "p"),
            "its status may still be written"
        );
        assert!(!index.referenced("a", ReferencedKind::Secret, "ns", "pull"));

        index.put(&pod("b", "Running"));
        assert!(!index.pod_on_node("a", "ns", "p") && index.pod_on_node("b", "ns", "p"));

        index.remove("ns", "p");
        assert!(!index.pod_on_node("b", "ns", "p"));
        assert!(index.nodes.is_empty() && index.references.is_empty());
    }

    #[test]
    fn provisioned_volumes_are_their_nodes_and_others_nobodys() {
        let volume = |by: &str| -> PersistentVolume {
            serde_json::from_value(json!({
                "metadata": {"name": "v", "annotations": {"pv.kubernetes.io/provisioned-by": by}},
                "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}]}}},
            }))
            .unwrap()
        };
        let mut index = NodeIndex::default();
        index.put_volume(&volume("palisade.dev/local-path"));
        assert!(index.volume_on_node("a", "v") && !index.volume_on_node("b", "v"));
        assert!(!index.volume_on_node("a", "other"));
        index.put_volume(&volume("somebody.else"));
        assert!(!index.volume_on_node("a", "v"));
    }

    #[test]
    fn unbound_pods_are_nobodys() {
        let mut unbound = pod("a", "Pending");
        unbound.spec.as_mut().unwrap().node_name = None;
        let index: NodeIndex = [&unbound].into_iter().collect();
        assert!(!index.pod_on_node("", "ns", "p"));
    }
}
