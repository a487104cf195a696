//! What happens to an object's own bookkeeping (identity, generation, deletion) when it is written or
//! deleted. Pure: objects in, objects out. What a *kind* demands of its fields is `control/admission`'s.

use api::resources::Resource;
use control_auth::Identity;
use control_wire::decode::{DeleteOptions, Propagation};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// Metadata that only the server writes: a client's value is replaced by what is stored.
const SERVER_METADATA: &[&str] = &[
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "resourceVersion",
    "selfLink",
    "managedFields",
];

/// Finalizer of every namespace, in its `spec`.
const NAMESPACE_FINALIZER: &str = "kubernetes";

/// Seconds a pod gets to end when neither the request nor the pod says.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// Which part of an object a write may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status, where the kind has a status subresource.
    Main,
    /// The status and the annotations that report it.
    Status,
    /// `spec.finalizers` of a namespace.
    Finalize,
    /// `spec.ephemeralContainers` of a pod, and what the image gate notes about them.
    Ephemeral,
    /// The conditions of a request for a certificate, which say whether it is approved.
    Approval,
}

/// What a delete request means for an object as it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Deletion {
    /// Remove it.
    Remove,
    /// Store this object, which says that it is being deleted.
    Mark(Marked),
    /// It is being deleted already and nothing changes.
    Underway,
}

/// An object that differs from the stored one by its deletion marks only, the collector's finalizers among them: made by
/// [`plan_deletion`] alone, it needs no admission to be stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Marked(Value);

impl Marked {
    /// The object.
    pub(crate) fn object(&self) -> &Value {
        &self.0
    }
}

/// Stamps a new object: identity, time of birth, first generation, no status from the client.
pub(crate) fn stamp_new(
    object: &mut Value,
    resource: &Resource,
    namespace: &str,
    uid: &str,
    user: &Identity,
    now: Timestamp,
) {
    let metadata = metadata_mut(object);
    for field in SERVER_METADATA {
        metadata.remove(*field);
    }
    metadata.insert("uid".to_owned(), json!(uid));
    metadata.insert("creationTimestamp".to_owned(), json!(seconds(now)));
    if resource.namespaced() {
        metadata.insert("namespace".to_owned(), json!(namespace));
    } else {
        metadata.remove("namespace");
    }
    if resource.kind == "Namespace"
        && let Some(object) = object.as_object_mut()
    {
        // Holds the namespace until the controller has emptied it.
        let spec = object.entry("spec").or_insert_with(|| Value::Object(Map::new()));
        set_field(spec, "finalizers", Some(json!([NAMESPACE_FINALIZER])));
    }
    if resource.kind == "CertificateSigningRequest"
        && let Some(spec) = object.get_mut("spec")
    {
        // Who asks is the server's to say.
        set_field(spec, "username", Some(json!(user.user)));
        set_field(spec, "groups", Some(json!(user.groups)));
        set_field(spec, "uid", (!user.uid.is_empty()).then(|| json!(user.uid)));
        set_field(spec, "extra", (!user.extra.is_empty()).then(|| json!(user.extra)));
    }
    if object.get("spec").is_some() {
        metadata_mut(object).insert("generation".to_owned(), json!(1));
    }
    // A node registers with the status it measured; nobody else may invent one.
    if resource.subresource("status").is_some()
        && resource.kind != "Node"
        && let Some(object) = object.as_object_mut()
    {
        object.remove("status");
    }
}

/// Completes an update: keeps what the server owns and what this part of the object does not cover, and
/// counts the generation up when the specification changed.
pub(crate) fn carry_over(old: &Value, new: &mut Value, resource: &Resource, part: Part) {
    match part {
        // Nothing else has got in: see [`with_ephemeral`], which the gate follows.
        Part::Ephemeral => copy_field(old, new, "status"),
        Part::Main => {
            if resource.subresource("status").is_some() {
                copy_field(old, new, "status");
            }
        }
        Part::Status => {
            let status = new.get("status").cloned();
            let annotation = new
                .pointer("/metadata/annotations")
                .and_then(|annotations| annotations.get(api::annotations::SANDBOX_STATUS))
                .cloned();
            let mut kept = old.clone();
            set_field(&mut kept, "status", status);
            if let Some(annotation) = annotation {
                let annotations = metadata_mut(&mut kept)
                    .entry("annotations")
                    .or_insert_with(|| Value::Object(Map::new()));
                set_field(annotations, api::annotations::SANDBOX_STATUS, Some(annotation));
            }
            *new = kept;
        }
        Part::Approval => {
            let conditions = new.pointer("/status/conditions").cloned();
            let mut kept = old.clone();
            if let Some(object) = kept.as_object_mut() {
                let status = object
                    .entry("status")
                    .or_insert_with(|| Value::Object(Map::new()));
                set_field(status, "conditions", conditions);
            }
            *new = kept;
        }
        Part::Finalize => {
            let finalizers = new.pointer("/spec/finalizers").cloned();
            let mut kept = old.clone();
            if let Some(spec) = kept.get_mut("spec") {
                set_field(spec, "finalizers", finalizers);
            }
            *new = kept;
        }
    }
    let metadata = metadata_mut(new);
    for field in SERVER_METADATA {
        match old.pointer(&format!("/metadata/{field}")) {
            Some(value) => metadata.insert((*field).to_owned(), value.clone()),
            None => metadata.remove(*field),
        };
    }
    if part == Part::Main && resource.kind == "Namespace" {
        // The namespace's own finalizers end with the finalize subresource only.
        let finalizers = old.pointer("/spec/finalizers").cloned();
        if let Some(object) = new.as_object_mut() {
            let spec = object.entry("spec").or_insert_with(|| Value::Object(Map::new()));
            set_field(spec, "finalizers", finalizers);
        }
    }
    if old.get("spec") != new.get("spec") && old.pointer("/metadata/generation").is_some() {
        let generation = old
            .pointer("/metadata/generation")
            .and_then(Value::as_i64)
            .unwrap_or(0);
        metadata_mut(new).insert("generation".to_owned(), json!(generation.saturating_add(1)));
    }
}

/// The stored pod with the ephemeral containers of `new`: what `pods/ephemeralcontainers` may change.
pub(crate) fn with_ephemeral(old: &Value, new: &Value) -> Value {
    let mut pod = old.clone();
    if let Some(spec) = pod.get_mut("spec") {
        set_field(
            spec,
            "ephemeralContainers",
            new.pointer("/spec/ephemeralContainers").cloned(),
        );
    }
    pod
}

/// Whether an object that is being deleted has nothing left to wait for.
pub(crate) fn is_finished(object: &Value) -> bool {
    let grace = object
        .pointer("/metadata/deletionGracePeriodSeconds")
        .and_then(Value::as_i64)
        .unwrap_or(0);
    is_being_deleted(object) && grace == 0 && !has_finalizers(object)
}

/// Whether the object carries a deletion timestamp.
pub(crate) fn is_being_deleted(object: &Value) -> bool {
    object
        .pointer("/metadata/deletionTimestamp")
        .is_some_and(|stamp| !stamp.is_null())
}

/// Decides what a delete request does.
pub(crate) fn plan_deletion(
    object: &Value,
    resource: &Resource,
    options: &DeleteOptions,
    now: Timestamp,
) -> Deletion {
    let grace = grace_seconds(object, resource, options);
    let current = object
        .pointer("/metadata/deletionGracePeriodSeconds")
        .and_then(Value::as_i64);
    let marked = is_being_deleted(object);
    let mut object = object.clone();
    let changed = give_finalizers(&mut object, resource, options.propagation);
    if grace == 0 && !has_finalizers(&object) {
        return Deletion::Remove;
    }
    // A second request can only shorten what the first one granted. What happens to dependents it may decide anew, but for a
    // pod that is ending, as in Kubernetes.
    if marked && current.unwrap_or(0) <= grace {
        return match changed && resource.kind != "Pod" {
            true => Deletion::Mark(Marked(object)),
            false => Deletion::Underway,
        };
    }
    let deadline = now
        .checked_add(jiff::SignedDuration::from_secs(grace))
        .unwrap_or(Timestamp::MAX);
    let metadata = metadata_mut(&mut object);
    metadata.insert("deletionTimestamp".to_owned(), json!(seconds(deadline)));
    metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
    let generation = metadata.get("generation").and_then(Value::as_i64);
    if let Some(generation) = generation {
        metadata.insert("generation".to_owned(), json!(generation.saturating_add(1)));
    }
    if resource.kind == "Namespace"
        && let Some(object) = object.as_object_mut()
    {
        let status = object
            .entry("status")
            .or_insert_with(|| Value::Object(Map::new()));
        set_field(status, "phase", Some(json!("Terminating")));
    }
    Deletion::Mark(Marked(object))
}

/// Finalizers of the garbage collector: the object goes after its dependents, or its dependents stay.
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// Gives an object that is being deleted the finalizer that has the collector do with its dependents what is asked for, and
/// takes the others; without a wish its finalizers say it. Whether that changed something. A namespace is emptied anyway, and
/// events own nothing.
fn give_finalizers(object: &mut Value, resource: &Resource, propagation: Option<Propagation>) -> bool {
    if matches!(resource.kind, "Namespace" | "Event") {
        return false;
    }
    let finalizers = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    let before: Vec<&str> = finalizers
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let is_collectors = |finalizer: &&str| matches!(*finalizer, FOREGROUND | ORPHAN);
    let asked = match propagation {
        None => before.iter().copied().find(is_collectors),
        Some(Propagation::Background) => None,
        Some(Propagation::Foreground) => Some(FOREGROUND),
        Some(Propagation::Orphan) => Some(ORPHAN),
    };
    let others = before
        .iter()
        .copied()
        .filter(|finalizer| !is_collectors(finalizer));
    let after: Vec<&str> = others.chain(asked).collect();
    // Their order means nothing.
    if before.len() == after.len() && after.iter().all(|finalizer| before.contains(finalizer)) {
        return false;
    }
    let after = json!(after);
    metadata_mut(object).insert("finalizers".to_owned(), after);
    true
}

/// The stored object with the owners and finalizers of `new`: what the garbage collector may change.
pub(crate) fn with_owners(old: &Value, new: &Value) -> Value {
    let mut object = old.clone();
    for field in ["ownerReferences", "finalizers"] {
        let value = new.pointer(&format!("/metadata/{field}")).cloned();
        set_field(&mut object["metadata"], field, value);
    }
    object
}

/// The object's metadata, made if it is not an object yet.
pub(crate) fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let slot = &mut object["metadata"];
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("made an object two lines above"),
    }
}

/// A time as Kubernetes writes it: RFC 3339, whole seconds, UTC.
pub(crate) fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Finalizers of the object, and those of a namespace's specification.
fn has_finalizers(object: &Value) -> bool {
    ["/metadata/finalizers", "/spec/finalizers"].iter().any(|path| {
        object
            .pointer(path)
            .and_then(Value::as_array)
            .is_some_and(|list| !list.is_empty())
    })
}

/// Only pods end gracefully, and only where an agent has to end them. A request that names no grace leaves one that is granted
/// as it is.
fn grace_seconds(object: &Value, resource: &Resource, options: &DeleteOptions) -> i64 {
    if resource.kind != "Pod" {
        return 0;
    }
    let unscheduled = object
        .pointer("/spec/nodeName")
        .and_then(Value::as_str)
        .is_none_or(str::is_empty);
    let ended = matches!(
        object.pointer("/status/phase").and_then(Value::as_str),
        Some("Succeeded" | "Failed")
    );
    if unscheduled || ended {
        return 0;
    }
    let seconds = |path: &str| object.pointer(path).and_then(Value::as_i64);
    let unless_named = match is_being_deleted(object) {
        true => seconds("/metadata/deletionGracePeriodSeconds").unwrap_or(0),
        false => seconds("/spec/terminationGracePeriodSeconds").unwrap_or(DEFAULT_GRACE_SECONDS),
    };
    options.grace_period_seconds.unwrap_or(unless_named).max(0)
}

fn copy_field(old: &Value, new: &mut Value, field: &str) {
    set_field(new, field, old.get(field).cloned());
}

fn set_field(object: &mut Value, field: &str, value: Option<Value>) {
    let Some(object) = object.as_object_mut() else {
        return;
    };
    match value {
        Some(value) => object.insert(field.to_owned(), value),
        None => object.remove(field),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: &str) -> &'static Resource {
        api::resources::RESOURCES.iter().find(|r| r.kind == kind).unwrap()
    }

    fn nobody() -> Identity {
        Identity {
            user: "joe".to_owned(),
            groups: vec!["system:authenticated".to_owned()],
            uid: String::new(),
            extra: Default::default(),
        }
    }

    #[test]
    fn who_asks_for_a_certificate_is_the_servers_to_say() {
        let row = row("CertificateSigningRequest");
        let mut request = json!({
            "metadata": {"name": "r"},
            "spec": {"username": "system:node:a", "groups": ["system:masters"], "request": "", "uid": "x"},
            "status": {"conditions": [{"type": "Approved"}], "certificate": "eA=="},
        });
        stamp_new(&mut request, row, "", "u", &nobody(), now());
        assert_eq!(
            request["spec"],
            json!({"username": "joe", "groups": ["system:authenticated"], "request": ""})
        );
        assert!(request.get("status").is_none());
        let old = request.clone();
        let mut approved = old.clone();
        approved["spec"]["username"] = json!("other");
        approved["status"] = json!({"conditions": [{"type": "Approved"}], "certificate": "eA=="});
        carry_over(&old, &mut approved, row, Part::Approval);
        assert_eq!(approved["spec"], old["spec"]);
        assert_eq!(approved["status"], json!({"conditions": [{"type": "Approved"}]}));
    }

    fn now() -> Timestamp {
        "2026-01-02T03:04:05.678Z".parse().unwrap()
    }

    fn pod() -> Value {
        json!({
            "metadata": {"name": "p", "namespace": "a", "uid": "u1", "generation": 3},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running"},
        })
    }

    #[test]
    fn a_client_cannot_choose_identity_or_status() {
        let mut object = pod();
        object["metadata"]["uid"] = json!("mine");
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        stamp_new(&mut object, row("Pod"), "b", "u2", &nobody(), now());
        assert_eq!(object["metadata"]["uid"], "u2");
        assert_eq!(object["metadata"]["namespace"], "b");
        assert_eq!(object["metadata"]["creationTimestamp"], "2026-01-02T03:04:05Z");
        assert_eq!(object["metadata"]["generation"], 1);
        assert!(object.get("status").is_none());
        assert!(object["metadata"].get("deletionTimestamp").is_none());
    }

    #[test]
    fn a_status_write_changes_the_status_and_its_report_only() {
        let old = pod();
        let mut new = pod();
        new["spec"]["nodeName"] = json!("other");
        new["metadata"]["labels"] = json!({"role": "admin"});
        new["metadata"]["annotations"] =
            json!({"x": "y", api::annotations::SANDBOX_STATUS: "seccomp=Enforced"});
        new["status"]["phase"] = json!("Failed");
        carry_over(&old, &mut new, row("Pod"), Part::Status);
        let mut expected = old;
        expected["status"]["phase"] = json!("Failed");
        expected["metadata"]["annotations"] = json!({api::annotations::SANDBOX_STATUS: "seccomp=Enforced"});
        assert_eq!(new, expected);
    }

    #[test]
    fn a_main_write_keeps_the_status_and_counts_the_generation() {
        let old = pod();
        let mut new = pod();
        new["status"] = json!({"phase": "Succeeded"});
        new["metadata"]["generation"] = json!(99);
        carry_over(&old, &mut new, row("Pod"), Part::Main);
        assert_eq!(new, old, "only the status differed");
        new["spec"]["activeDeadlineSeconds"] = json!(5);
        carry_over(&old, &mut new, row("Pod"), Part::Main);
        assert_eq!(new["metadata"]["generation"], 4);
    }

    #[test]
    fn namespace_finalizers_end_through_finalize_only() {
        let old = json!({"metadata": {"name": "a", "uid": "u"}, "spec": {"finalizers": ["kubernetes"]}});
        let mut new = json!({"metadata": {"name": "a"}, "spec": {}});
        carry_over(&old, &mut new, row("Namespace"), Part::Main);
        assert_eq!(new["spec"]["finalizers"], json!(["kubernetes"]));
        let mut new = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"finalizers": []}});
        carry_over(&old, &mut new, row("Namespace"), Part::Finalize);
        assert_eq!(new["spec"]["finalizers"], json!([]));
        assert!(new["metadata"].get("labels").is_none());
    }

    #[test]
    fn the_ephemeral_part_is_one_list() {
        let old = pod();
        let mut new = pod();
        new["metadata"]["labels"] = json!({"role": "admin"});
        new["spec"]["containers"] = json!([{"name": "other"}]);
        new["spec"]["ephemeralContainers"] = json!([{"name": "debug"}]);
        new["status"] = json!({"phase": "Failed"});
        let mut part = with_ephemeral(&old, &new);
        carry_over(&old, &mut part, row("Pod"), Part::Ephemeral);
        let mut expected = old;
        expected["spec"]["ephemeralContainers"] = json!([{"name": "debug"}]);
        expected["metadata"]["generation"] = json!(4);
        assert_eq!(part, expected);
    }

    #[test]
    fn pods_end_gracefully_and_only_faster_on_a_second_request() {
        let options = |grace| DeleteOptions {
            grace_period_seconds: grace,
            ..Default::default()
        };
        let Deletion::Mark(Marked(marked)) = plan_deletion(&pod(), row("Pod"), &options(None), now()) else {
            panic!("a running pod must end gracefully")
        };
        assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-02T03:04:35Z");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
        assert!(!is_finished(&marked));
        assert_eq!(
            plan_deletion(&marked, row("Pod"), &options(Some(60)), now()),
            Deletion::Underway
        );
        assert!(matches!(
            plan_deletion(&marked, row("Pod"), &options(Some(5)), now()),
            Deletion::Mark(_)
        ));
        assert_eq!(
            plan_deletion(&marked, row("Pod"), &options(Some(0)), now()),
            Deletion::Remove
        );
        let Deletion::Mark(Marked(patient)) = plan_deletion(&pod(), row("Pod"), &options(Some(600)), now())
        else {
            panic!("a running pod must end gracefully")
        };
        assert_eq!(
            plan_deletion(&patient, row("Pod"), &options(None), now()),
            Deletion::Underway,
            "only a grace that is named shortens"
        );

        let mut unscheduled = pod();
        unscheduled["spec"].as_object_mut().unwrap().remove("nodeName");
        assert_eq!(
            plan_deletion(&unscheduled, row("Pod"), &options(None), now()),
            Deletion::Remove
        );
    }

    #[test]
    fn what_happens_to_dependents_is_a_finalizer() {
        let map = |finalizers: Value| json!({"metadata": {"name": "c", "finalizers": finalizers}});
        let delete = |object: &Value, kind: &str, propagation| {
            let options = DeleteOptions {
                propagation,
                ..Default::default()
            };
            match plan_deletion(object, row(kind), &options, now()) {
                Deletion::Mark(Marked(marked)) => Some(marked["metadata"]["finalizers"].clone()),
                Deletion::Remove => Some(Value::Null),
                Deletion::Underway => None,
            }
        };
        let (none, own) = (map(json!([])), map(json!(["x/y"])));
        for (propagation, finalizer) in [
            (Propagation::Foreground, FOREGROUND),
            (Propagation::Orphan, ORPHAN),
        ] {
            let asked = Some(propagation);
            assert_eq!(delete(&none, "ConfigMap", asked), Some(json!([finalizer])));
            assert_eq!(delete(&own, "ConfigMap", asked), Some(json!(["x/y", finalizer])));
            assert_eq!(delete(&none, "Event", asked), Some(Value::Null));
            // What it says itself counts where the request says nothing.
            let says = map(json!([finalizer]));
            assert_eq!(delete(&says, "ConfigMap", None), Some(json!([finalizer])));
            let background = Some(Propagation::Background);
            assert_eq!(delete(&says, "ConfigMap", background), Some(Value::Null));
        }
        assert_eq!(delete(&none, "ConfigMap", None), Some(Value::Null));
        // A pod that is nowhere yet would be gone at once.
        let pod = json!({"metadata": {"name": "p"}, "spec": {}});
        let foreground = Some(Propagation::Foreground);
        assert_eq!(delete(&pod, "Pod", foreground), Some(json!([FOREGROUND])));
        // Who deletes what is being deleted may change it, but for pods.
        let mut going = map(json!([FOREGROUND]));
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        going["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        assert_eq!(delete(&going, "ConfigMap", foreground), None);
        assert_eq!(
            delete(&going, "ConfigMap", Some(Propagation::Orphan)),
            Some(json!([ORPHAN]))
        );
        assert_eq!(delete(&going, "Pod", Some(Propagation::Orphan)), None);
    }

    #[test]
    fn of_what_the_collector_writes_owners_and_finalizers_count() {
        let old = json!({"metadata": {"name": "p", "labels": {"a": "b"}, "finalizers": [ORPHAN]}, "spec": {"x": 1}});
        let new = json!({"metadata": {"name": "p", "ownerReferences": [{"uid": "u"}]}, "spec": {"x": 2}});
        let mut expected = old.clone();
        expected["metadata"]["ownerReferences"] = json!([{"uid": "u"}]);
        expected["metadata"].as_object_mut().unwrap().remove("finalizers");
        assert_eq!(with_owners(&old, &new), expected);
    }

    #[test]
    fn finalizers_hold_an_object() {
        let mut object = json!({"metadata": {"name": "c", "finalizers": ["x/y"]}});
        let plan = plan_deletion(&object, row("ConfigMap"), &DeleteOptions::default(), now());
        let Deletion::Mark(Marked(marked)) = plan else {
            panic!("a finalizer must hold the object")
        };
        assert!(!is_finished(&marked));
        object = marked;
        object["metadata"]["finalizers"] = json!([]);
        assert!(is_finished(&object));
    }
}
