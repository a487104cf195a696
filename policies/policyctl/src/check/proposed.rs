//! Objects that are not in force yet: a whole cluster of their own, or a change that is laid over the live one.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context, Result};
use policies_compiler::{ClusterView, identity};
use serde_json::Value;

use crate::{check::input, cli::Connection, load, objects, output};

/// An object and where it stands.
type Document = (String, Value);

/// What is in force, and what would be with the objects of these paths. They are the whole cluster if there are pods
/// among them; without pods they say nothing about any flow, and take the place of the live objects of their names.
pub(crate) async fn before_and_after(
    connection: &Connection,
    paths: &[PathBuf],
) -> Result<(ClusterView, ClusterView)> {
    let new = objects::documents(paths)?;
    let live = load::live_objects(connection).await?;
    let before = load::of_live(&live)?.view;
    let after = match holds_pods(&new) {
        true => input::of_documents(&new)?.0,
        false => laid_over(live, new)?,
    };
    Ok((before, after))
}

/// What would be in force with the objects of these paths, as above.
pub(crate) async fn after(connection: &Connection, paths: &[PathBuf]) -> Result<ClusterView> {
    let new = objects::documents(paths)?;
    if holds_pods(&new) {
        return Ok(input::of_documents(&new)?.0);
    }
    let live = load::live_objects(connection).await;
    let live =
        live.context("there are no pods among the new objects, so those of the live cluster are needed")?;
    laid_over(live, new)
}

fn holds_pods(objects: &[Document]) -> bool {
    objects.iter().any(|(_, object)| {
        let items = object["items"].as_array().map_or(&[][..], Vec::as_slice);
        object["kind"] == "Pod"
            || (object["kind"] == "PodList" && !items.is_empty())
            || items.iter().any(|item| item["kind"] == "Pod")
    })
}

fn laid_over(live: Vec<Value>, new: Vec<Document>) -> Result<ClusterView> {
    output::note(
        "note: there are no pods among the new objects: they are laid over those of the live cluster",
    );
    Ok(input::of_documents(&overlay(live, new))?.0)
}

/// The new objects, and the live ones that none of them is.
fn overlay(live: Vec<Value>, new: Vec<Document>) -> Vec<Document> {
    let mut objects = Vec::new();
    for (origin, object) in new {
        flatten(&origin, object, &mut objects);
    }
    let replaced: BTreeSet<_> = objects.iter().map(|(_, object)| identity(object)).collect();
    let kept = live
        .into_iter()
        .filter(|object| !replaced.contains(&identity(object)));
    let kept: Vec<Document> = kept.map(|object| ("the cluster".to_owned(), object)).collect();
    objects.extend(kept);
    objects
}

/// The items of a list; anything else as it is.
fn flatten(origin: &str, object: Value, into: &mut Vec<Document>) {
    match objects::items(&object) {
        Some(items) => items.into_iter().for_each(|item| flatten(origin, item, into)),
        None => into.push((origin.to_owned(), object)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(namespace: Option<&str>, name: &str, mark: &str) -> Value {
        let mut metadata = json!({"name": name, "labels": {"mark": mark}});
        if let Some(namespace) = namespace {
            metadata["namespace"] = namespace.into();
        }
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata})
    }

    fn marks(objects: &[Document]) -> Vec<&str> {
        let marks = objects
            .iter()
            .map(|(_, object)| object.pointer("/metadata/labels/mark"));
        marks.filter_map(|mark| mark?.as_str()).collect()
    }

    #[test]
    fn new_objects_take_the_place_of_live_ones_of_their_kind_namespace_and_name() {
        let mut calico = policy(Some("shop"), "web", "calico");
        calico["apiVersion"] = "projectcalico.org/v3".into();
        let live = vec![
            policy(Some("shop"), "web", "replaced"),
            policy(Some("default"), "web", "replaced too"),
            policy(Some("default"), "db", "replaced by one whose namespace is empty"),
            policy(Some("shop"), "db", "other name"),
            policy(Some("pci"), "web", "other namespace"),
            calico,
        ];
        let mut item = policy(None, "web", "new in a list");
        item["kind"].take();
        let list =
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicyList", "items": [item]});
        let unset = policy(Some(""), "db", "new in default");
        let new = [policy(Some("shop"), "web", "new"), list, unset];
        let new = new.map(|object| ("new.yaml".to_owned(), object)).to_vec();
        let expected = [
            "new",
            "new in a list",
            "new in default",
            "other name",
            "other namespace",
            "calico",
        ];
        assert_eq!(marks(&overlay(live, new)), expected);
    }

    /// Calico keeps policies of the default tier with its name before theirs.
    #[test]
    fn new_objects_as_calico_keeps_them_take_the_place_of_live_ones() {
        let global = |api_version: &str, name: &str, mark: &str| {
            let mut object = policy(None, name, mark);
            object["apiVersion"] = api_version.into();
            object["kind"] = "GlobalNetworkPolicy".into();
            object
        };
        let live = ["p", "q", "r"].map(|name| global("projectcalico.org/v3", name, "live"));
        let mut named = global(
            "crd.projectcalico.org/v1",
            "default.x",
            "new by its name in the API",
        );
        named["metadata"]["annotations"] = json!({"projectcalico.org/metadata": r#"{"name":"q"}"#});
        let new = [global("crd.projectcalico.org/v1", "default.p", "new"), named];
        let new = new.map(|object| ("new.yaml".to_owned(), object)).to_vec();
        let objects = overlay(live.to_vec(), new);
        assert_eq!(marks(&objects), ["new", "new by its name in the API", "live"]);
    }

    #[test]
    fn pods_are_found_in_lists_too() {
        let holds = |object: Value| holds_pods(&[("new.yaml".to_owned(), object)]);
        assert!(!holds(policy(None, "web", "")));
        assert!(!holds(json!({"kind": "PodList", "items": []})));
        assert!(!holds(json!({"kind": "PodList", "items": null})));
        assert!(holds(json!({"kind": "Pod"})));
        assert!(holds(json!({"kind": "PodList", "items": [{}]})));
        assert!(holds(json!({"kind": "List", "items": [{"kind": "Pod"}]})));
    }
}
