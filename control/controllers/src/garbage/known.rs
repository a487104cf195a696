//! What is known of all objects, and what follows from it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use api::resources::{self, Resource, Stored};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;

/// Finalizer of an object that goes after its dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents stay.
pub(super) const ORPHAN: &str = "orphan";

/// As much of an object as its owners and dependents matter to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Object {
    pub(super) row: &'static Resource,
    /// Empty for one that is in none.
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) phase: Phase,
}

/// How far an object is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Lives,
    /// It is being deleted, and nobody waits for anybody.
    Ends,
    /// It is being deleted once its dependents are gone.
    AwaitsDependents,
    /// It is being deleted once its dependents are nobody's.
    AwaitsOrphans,
}

impl Phase {
    pub(super) fn of(metadata: &ObjectMeta) -> Self {
        let has = |finalizer: &str| metadata.finalizers.iter().flatten().any(|own| own == finalizer);
        match metadata.deletion_timestamp {
            None => Self::Lives,
            Some(_) if has(ORPHAN) => Self::AwaitsOrphans,
            Some(_) if has(FOREGROUND) => Self::AwaitsDependents,
            Some(_) => Self::Ends,
        }
    }
}

impl Object {
    /// Of its metadata; nothing for what no server wrote.
    pub(super) fn of(row: &'static Resource, metadata: &ObjectMeta) -> Option<Self> {
        Some(Self {
            row,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone()?,
            uid: metadata.uid.clone()?,
            owners: metadata.owner_references.clone().unwrap_or_default(),
            phase: Phase::of(metadata),
        })
    }

    /// Where an owner of this object is: its kind and namespace. Nothing for a kind that this server does not have, of which
    /// nobody can say whether it is gone, and for an object without a namespace whose owner would be in one.
    pub(super) fn place_of(&self, owner: &OwnerReference) -> Option<(&'static Resource, &str)> {
        let row = resources::by_kind(&owner.api_version, &owner.kind)?;
        let namespace = match (row.namespaced(), self.namespace.as_str()) {
            (true, "") => return None,
            (true, own) => own,
            (false, _) => "",
        };
        (row.stored == Stored::Yes).then_some((row, namespace))
    }
}

/// What there is to do about one object. Each is looked at again before anything is done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Task {
    /// An owner seems to be gone, or waits for its dependents to go.
    Judge(Object),
    /// Nobody keeps it any more: its dependents are gone.
    Release(Object),
    /// Its dependents have to become nobody's.
    Orphan(Object),
}

impl Task {
    /// The object that it is about.
    pub(super) fn object(&self) -> &Object {
        match self {
            Self::Judge(object) | Self::Release(object) | Self::Orphan(object) => object,
        }
    }
}

/// All objects that can be owners or dependents.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By UID.
    objects: BTreeMap<String, Object>,
    /// Plural names, with their groups, of the kinds that were not listed to their end yet.
    unread: BTreeSet<(&'static str, &'static str)>,
}

impl Known {
    pub(super) fn of_kinds(rows: &[&'static Resource]) -> Self {
        Self {
            objects: BTreeMap::new(),
            unread: rows.iter().map(|row| (row.group, row.plural)).collect(),
        }
    }

    /// Takes in an object as it is now; whether that is news.
    pub(super) fn put(&mut self, object: Object) -> bool {
        let is_news = self.objects.get(&object.uid) != Some(&object);
        self.objects.insert(object.uid.clone(), object);
        is_news
    }

    /// An object is gone.
    pub(super) fn remove(&mut self, uid: &str) {
        self.objects.remove(uid);
    }

    /// These are all objects of a kind.
    pub(super) fn replace(&mut self, row: &'static Resource, objects: Vec<Object>) {
        self.objects.retain(|_uid, object| object.row != row);
        let by_uid = objects.into_iter().map(|object| (object.uid.clone(), object));
        self.objects.extend(by_uid);
        self.unread.remove(&(row.group, row.plural));
    }

    /// The dependents of an object, as far as they are known.
    pub(super) fn dependents(&self, uid: &str) -> impl Iterator<Item = &Object> {
        let all = self.objects.values();
        all.filter(move |object| object.owners.iter().any(|owner| owner.uid == uid))
    }

    /// What there is to do; nothing before all kinds were listed, since what was not read must not look like what is gone.
    pub(super) fn tasks(&self) -> Vec<Task> {
        if !self.unread.is_empty() {
            return Vec::new();
        }
        let task = |object: &Object| match object.phase {
            Phase::Lives if self.is_to_judge(object) => Some(Task::Judge(object.clone())),
            Phase::AwaitsDependents if !self.is_blocked(object) => Some(Task::Release(object.clone())),
            Phase::AwaitsOrphans => Some(Task::Orphan(object.clone())),
            Phase::Lives | Phase::Ends | Phase::AwaitsDependents => None,
        };
        self.objects.values().filter_map(task).collect()
    }

    /// Whether one of its owners is not where it should be, or waits for it to go.
    fn is_to_judge(&self, object: &Object) -> bool {
        object.owners.iter().any(|owner| {
            let Some((row, namespace)) = object.place_of(owner) else {
                return false;
            };
            let known = self.objects.get(&owner.uid);
            known.is_none_or(|known| {
                let there = known.row == row && known.namespace == namespace && known.name == owner.name;
                !there || known.phase == Phase::AwaitsDependents
            })
        })
    }

    fn is_blocked(&self, owner: &Object) -> bool {
        self.dependents(&owner.uid).any(|dependent| {
            let mut references = dependent.owners.iter();
            references
                .any(|reference| reference.uid == owner.uid && reference.block_owner_deletion == Some(true))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(kind: &str, uid: &str, metadata: Value) -> Object {
        let row = resources::RESOURCES.iter().find(|row| row.kind == kind).unwrap();
        let mut all = json!({"name": uid, "uid": uid});
        if row.namespaced() {
            all["namespace"] = json!("a");
        }
        let Value::Object(metadata) = metadata else {
            panic!("{metadata} is no object")
        };
        for (key, value) in metadata {
            all[key] = value;
        }
        Object::of(row, &serde_json::from_value(all).unwrap()).unwrap()
    }

    fn owner(kind: &str, uid: &str) -> Value {
        let version = match kind {
            "Deployment" => "apps/v1",
            _ => "v1",
        };
        json!({"apiVersion": version, "kind": kind, "name": uid, "uid": uid, "blockOwnerDeletion": true})
    }

    fn deleted(finalizer: &str) -> Value {
        json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer]})
    }

    fn tasks(objects: &[Object]) -> Vec<(&'static str, String)> {
        let mut known = Known::default();
        for object in objects {
            known.put(object.clone());
        }
        let name = |task: Task| match task {
            Task::Judge(object) => ("judge", object.uid),
            Task::Release(object) => ("release", object.uid),
            Task::Orphan(object) => ("orphan", object.uid),
        };
        known.tasks().into_iter().map(name).collect()
    }

    #[test]
    fn who_has_an_owner_that_is_not_there_is_looked_at() {
        let of = |kind: &str, uid: &str| object("Pod", "p", json!({"ownerReferences": [owner(kind, uid)]}));
        let judged = [("judge", "p".to_owned())];
        let map = object("ConfigMap", "m", json!({}));
        assert_eq!(tasks(&[map.clone(), of("ConfigMap", "m")]), []);
        assert_eq!(tasks(&[of("ConfigMap", "m")]), judged);
        // Of another kind, in another namespace, or under another name it is not that owner.
        assert_eq!(tasks(&[map, of("Secret", "m")]), judged);
        let elsewhere = object("ConfigMap", "m", json!({"namespace": "b"}));
        assert_eq!(tasks(&[elsewhere, of("ConfigMap", "m")]), judged);
        let renamed = object("ConfigMap", "m", json!({"name": "n"}));
        assert_eq!(tasks(&[renamed, of("ConfigMap", "m")]), judged);
        // Owners without a namespace own in all.
        assert_eq!(tasks(&[object("Node", "n", json!({})), of("Node", "n")]), []);
        // Nobody knows whether what this server does not have is there.
        assert_eq!(tasks(&[of("Deployment", "d")]), []);
        let cluster = object(
            "PersistentVolume",
            "v",
            json!({"ownerReferences": [owner("ConfigMap", "m")]}),
        );
        assert_eq!(tasks(&[cluster]), [], "an owner in a namespace, and which?");
    }

    #[test]
    fn nothing_is_missing_before_everything_was_read() {
        let rows: Vec<&'static Resource> = resources::RESOURCES
            .iter()
            .filter(|row| matches!(row.kind, "Pod" | "ConfigMap"))
            .collect();
        let [maps, pods] = rows.as_slice() else {
            panic!("{rows:?}")
        };
        let pod = object("Pod", "p", json!({"ownerReferences": [owner("ConfigMap", "m")]}));
        let mut known = Known::of_kinds(&rows);
        known.replace(pods, vec![pod.clone()]);
        assert_eq!(known.tasks(), []);
        known.replace(maps, vec![object("ConfigMap", "m", json!({}))]);
        assert_eq!(known.tasks(), []);
        known.remove("m");
        assert_eq!(known.tasks(), [Task::Judge(pod.clone())]);
        assert!(!known.put(pod), "no news");
    }

    #[test]
    fn who_goes_in_the_foreground_waits_for_those_that_block_it() {
        let waits = object("ConfigMap", "m", deleted(FOREGROUND));
        let mut pod = object("Pod", "p", json!({"ownerReferences": [owner("ConfigMap", "m")]}));
        assert_eq!(tasks(&[waits.clone(), pod.clone()]), [("judge", "p".to_owned())]);
        pod.phase = Phase::Ends;
        assert_eq!(tasks(&[waits.clone(), pod.clone()]), [], "it is on its way");
        pod.owners[0].block_owner_deletion = None;
        let released = [("release", "m".to_owned())];
        assert_eq!(tasks(&[waits.clone(), pod]), released);
        assert_eq!(tasks(&[waits]), released);
        assert_eq!(
            tasks(&[object("ConfigMap", "m", deleted(ORPHAN))]),
            [("orphan", "m".to_owned())]
        );
        let lives = object("ConfigMap", "m", json!({"finalizers": [FOREGROUND, ORPHAN]}));
        assert_eq!(tasks(&[lives]), [], "nobody has deleted it");
    }
}
