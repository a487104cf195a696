//! Calico's kinds and ClusterNetworkPolicy as the agent's watches bring them: one type for all of them, since the
//! compiler takes them all alike.

use std::borrow::Cow;

use api::{
    calico,
    cluster_policy::{self, ClusterNetworkPolicy},
    resources::{RESOURCES, Resource, Stored},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicResourceScope;
use policies_compiler::{CalicoObject, Session};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

/// An object that policy is made of.
#[derive(Debug, Clone)]
pub(crate) enum PolicyObject {
    Calico(CalicoObject),
    Cluster(ClusterNetworkPolicy),
}

/// Rows of the kinds that a node compiles, all of which are watched.
pub(crate) fn rows() -> impl Iterator<Item = &'static Resource> {
    let groups = [group(calico::API_VERSION), group(cluster_policy::API_VERSION)];
    RESOURCES
        .iter()
        .filter(move |row| groups.contains(&row.group) && row.stored == Stored::Yes)
}

/// Whether a pod must not start before objects of the kind have been read afresh: those that are enforced and that
/// its own verdicts may depend on.
pub(crate) fn is_needed_at_start(row: &Resource) -> bool {
    !row.kind.starts_with("Staged") && row.kind != "HostEndpoint"
}

impl PolicyObject {
    /// Gives what policy says to the session, without what it does not depend on: a new annotation is no new policy.
    pub(crate) fn put_in(&self, session: &mut Session) {
        match self.reduced() {
            Self::Calico(object) => session.put_calico(object),
            Self::Cluster(policy) => session.put_cluster_policy(policy),
        }
    }

    /// The object is gone.
    pub(crate) fn remove_from(&self, session: &mut Session) {
        match self {
            Self::Calico(object) => session.remove_calico(object),
            Self::Cluster(policy) => {
                session.remove_cluster_policy(policy.metadata.name.as_deref().unwrap_or_default());
            }
        }
    }

    /// The host endpoint, if it is one.
    pub(crate) fn host_endpoint(&self) -> Option<&calico::HostEndpoint> {
        match self {
            Self::Calico(CalicoObject::HostEndpoint(host)) => Some(host),
            Self::Calico(_) | Self::Cluster(_) => None,
        }
    }

    fn reduced(&self) -> Self {
        let mut object = self.clone();
        reduce(kube::Resource::meta_mut(&mut object));
        match object {
            Self::Calico(object) => Self::Calico(object),
            Self::Cluster(policy) => Self::Cluster(ClusterNetworkPolicy {
                status: None,
                ..policy
            }),
        }
    }
}

/// Keeps of an object's metadata what policy depends on.
pub(crate) fn reduce(metadata: &mut ObjectMeta) {
    *metadata = ObjectMeta {
        name: metadata.name.take(),
        namespace: metadata.namespace.take(),
        labels: metadata.labels.take(),
        ..ObjectMeta::default()
    };
}

impl kube::Resource for PolicyObject {
    type DynamicType = &'static Resource;
    type Scope = DynamicResourceScope;

    fn kind(row: &Self::DynamicType) -> Cow<'_, str> {
        row.kind.into()
    }

    fn group(row: &Self::DynamicType) -> Cow<'_, str> {
        row.group.into()
    }

    fn version(row: &Self::DynamicType) -> Cow<'_, str> {
        row.version.into()
    }

    fn plural(row: &Self::DynamicType) -> Cow<'_, str> {
        row.plural.into()
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Cluster(policy) => &policy.metadata,
            Self::Calico(object) => object.metadata(),
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Cluster(policy) => &mut policy.metadata,
            Self::Calico(object) => match object {
                CalicoObject::Tier(object) => &mut object.metadata,
                CalicoObject::NetworkPolicy(object)
                | CalicoObject::GlobalNetworkPolicy(object)
                | CalicoObject::StagedNetworkPolicy(object)
                | CalicoObject::StagedGlobalNetworkPolicy(object) => &mut object.metadata,
                CalicoObject::StagedKubernetesNetworkPolicy(object) => &mut object.metadata,
                CalicoObject::NetworkSet(object) | CalicoObject::GlobalNetworkSet(object) => {
                    &mut object.metadata
                }
                CalicoObject::HostEndpoint(object) => &mut object.metadata,
                CalicoObject::Profile(object) => &mut object.metadata,
                CalicoObject::FelixConfiguration(object) => &mut object.metadata,
            },
        }
    }
}

/// By the `kind` that the server gives every object. An object that does not fit its kind ends the listing: policy
/// that cannot be read must not be taken for policy that does not exist.
impl<'de> Deserialize<'de> for PolicyObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let kind = value
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        read(&kind, value).map_err(D::Error::custom)
    }
}

fn read(kind: &str, value: Value) -> Result<PolicyObject, serde_json::Error> {
    let object = match kind {
        "ClusterNetworkPolicy" => return serde_json::from_value(value).map(PolicyObject::Cluster),
        "Tier" => CalicoObject::Tier(serde_json::from_value(value)?),
        "NetworkPolicy" => CalicoObject::NetworkPolicy(serde_json::from_value(value)?),
        "GlobalNetworkPolicy" => CalicoObject::GlobalNetworkPolicy(serde_json::from_value(value)?),
        "StagedNetworkPolicy" => CalicoObject::StagedNetworkPolicy(serde_json::from_value(value)?),
        "StagedGlobalNetworkPolicy" => {
            CalicoObject::StagedGlobalNetworkPolicy(serde_json::from_value(value)?)
        }
        "StagedKubernetesNetworkPolicy" => {
            CalicoObject::StagedKubernetesNetworkPolicy(serde_json::from_value(value)?)
        }
        "NetworkSet" => CalicoObject::NetworkSet(serde_json::from_value(value)?),
        "GlobalNetworkSet" => CalicoObject::GlobalNetworkSet(serde_json::from_value(value)?),
        "HostEndpoint" => CalicoObject::HostEndpoint(serde_json::from_value(value)?),
        "FelixConfiguration" => CalicoObject::FelixConfiguration(serde_json::from_value(value)?),
        other => {
            return Err(serde_json::Error::custom(format!(
                "{other:?} is no kind of policy object"
            )));
        }
    };
    Ok(PolicyObject::Calico(object))
}

/// `group` of `group/version`.
fn group(api_version: &'static str) -> &'static str {
    api_version.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use policies_compiler::ClusterView;
    use policies_ir::tables::NodeTables;
    use serde_json::json;

    use super::*;

    fn object(kind: &str) -> Value {
        let mut object = json!({"kind": kind, "metadata": {
            "name": "x", "resourceVersion": "7", "labels": {"a": "b"}, "annotations": {"note": "1"},
        }});
        if kind == "ClusterNetworkPolicy" {
            object["spec"] = json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}});
        }
        object
    }

    #[test]
    fn every_watched_kind_can_be_read_and_reaches_the_session() {
        for row in rows() {
            let read: PolicyObject = serde_json::from_value(object(row.kind)).unwrap();
            let metadata = kube::Resource::meta(&read);
            assert_eq!(metadata.resource_version.as_deref(), Some("7"), "{}", row.kind);
            let kind = match &read {
                PolicyObject::Calico(object) => object.kind(),
                PolicyObject::Cluster(_) => "ClusterNetworkPolicy",
            };
            assert_eq!(kind, row.kind);
            let mut session = Session::new(ClusterView::default(), NodeTables::default());
            session.settle();
            read.put_in(&mut session);
            read.remove_from(&mut session);
            session.settle();
            assert_eq!(
                session.policies(),
                &ClusterView::default().policy_set(|_, _| {}),
                "{kind}"
            );
        }
        assert_eq!(rows().count(), 11);
        assert!(serde_json::from_value::<PolicyObject>(object("Pod")).is_err());
    }

    #[test]
    fn what_policy_does_not_depend_on_makes_no_difference() {
        let read = |object: Value| -> PolicyObject { serde_json::from_value(object).unwrap() };
        let before = object("GlobalNetworkSet");
        let mut after = before.clone();
        after["metadata"]["annotations"] = json!({"note": "2"});
        after["metadata"]["resourceVersion"] = json!("8");
        let mut session = Session::new(ClusterView::default(), NodeTables::default());
        read(before).put_in(&mut session);
        session.settle();
        read(after.clone()).put_in(&mut session);
        assert_eq!(session.settle().anew, None);
        after["metadata"]["labels"] = json!({"a": "c"});
        read(after).put_in(&mut session);
        assert!(session.settle().anew.is_some());
    }
}
