//! Discovery documents, computed from [`api::resources::RESOURCES`]: legacy (one document per group version)
//! and aggregated (everything at once), in both versions that kubectl 1.27 to 1.33 ask for.

use api::resources::{RESOURCES, Resource, Scope, Subresource};
use serde_json::{Value, json};

use crate::negotiate::AggregatedVersion;

/// Content type of an aggregated answer: clients look at it to tell the forms apart.
pub fn aggregated_content_type(version: AggregatedVersion) -> &'static str {
    match version {
        AggregatedVersion::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        AggregatedVersion::V2Beta1 => {
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
        }
    }
}

/// `GET /api`: versions of the core group. `address` is `host:port` as clients reach the server.
pub fn api_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `GET /apis`: all groups but the core one.
pub fn api_group_list() -> Value {
    let groups: Vec<Value> = group_names()
        .filter(|group| !group.is_empty())
        .map(group_entry)
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/GROUP`; `None` for a group that is not served.
pub fn api_group(group: &str) -> Option<Value> {
    group_names()
        .any(|name| name == group && !group.is_empty())
        .then(|| {
            let mut entry = group_entry(group);
            entry["kind"] = "APIGroup".into();
            entry["apiVersion"] = "v1".into();
            entry
        })
}

/// `GET /api/v1` and `GET /apis/GROUP/VERSION`; `None` for one that is not served.
pub fn api_resource_list(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for resource in RESOURCES
        .iter()
        .filter(|r| r.group == group && r.version == version)
    {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced(),
            "kind": resource.kind,
            "verbs": resource.verbs(),
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        resources.push(entry);
        resources.extend(resource.subresources.iter().map(|sub| {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, sub.name),
                "singularName": "",
                "namespaced": resource.namespaced(),
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if let Some((group, version)) = sub.group_version() {
                entry["group"] = group.into();
                entry["version"] = version.into();
            }
            entry
        }));
    }
    (!resources.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version(group, version),
            "resources": resources,
        })
    })
}

/// Aggregated answer to `GET /api`: the core group.
pub fn aggregated_core(version: AggregatedVersion) -> Value {
    aggregated(version, str::is_empty)
}

/// Aggregated answer to `GET /apis`: all other groups.
pub fn aggregated_groups(version: AggregatedVersion) -> Value {
    aggregated(version, |group| !group.is_empty())
}

fn aggregated(version: AggregatedVersion, wanted: impl Fn(&str) -> bool) -> Value {
    let api_version = match version {
        AggregatedVersion::V2 => "apidiscovery.k8s.io/v2",
        AggregatedVersion::V2Beta1 => "apidiscovery.k8s.io/v2beta1",
    };
    let items: Vec<Value> = group_names()
        .filter(|group| wanted(group))
        .map(|group| {
            let versions: Vec<Value> = versions(group)
                .map(|version| {
                    let resources: Vec<Value> = RESOURCES
                        .iter()
                        .filter(|r| r.group == group && r.version == version)
                        .map(aggregated_resource)
                        .collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({})
            } else {
                json!({"name": group})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": api_version, "metadata": {}, "items": items})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": match resource.scope { Scope::Namespaced => "Namespaced", Scope::Cluster => "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs(),
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    if !resource.subresources.is_empty() {
        let subresource = |sub: &Subresource| {
            let (group, version) = sub.group_version().unwrap_or((resource.group, resource.version));
            json!({
                "subresource": sub.name,
                "responseKind": {"group": group, "version": version, "kind": sub.kind},
                "verbs": sub.verbs,
            })
        };
        entry["subresources"] = resource.subresources.iter().map(subresource).collect();
    }
    entry
}

fn group_entry(group: &str) -> Value {
    let versions: Vec<Value> = versions(group)
        .map(|version| json!({"groupVersion": group_version(group, version), "version": version}))
        .collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    json!({"name": group, "versions": versions, "preferredVersion": preferred})
}

/// Served groups, each once, in the order of the table.
fn group_names() -> impl Iterator<Item = &'static str> {
    let first = |index: usize, group: &str| RESOURCES.iter().position(|r| r.group == group) == Some(index);
    RESOURCES
        .iter()
        .enumerate()
        .filter(move |(index, r)| first(*index, r.group))
        .map(|(_, r)| r.group)
}

/// Versions of a group, each once, in the order of the table.
fn versions(group: &str) -> impl Iterator<Item = &'static str> {
    let of_group = move || {
        RESOURCES
            .iter()
            .filter(move |r| r.group == group)
            .map(|r| r.version)
    };
    of_group()
        .enumerate()
        .filter(move |(index, v)| of_group().position(|w| w == *v) == Some(*index))
        .map(|(_, v)| v)
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_list_the_same_resources() {
        let mut legacy = Vec::new();
        for group in group_names() {
            for version in versions(group) {
                for resource in api_resource_list(group, version).unwrap()["resources"]
                    .as_array()
                    .unwrap()
                {
                    legacy.push((
                        group.to_owned(),
                        resource["name"].as_str().unwrap().to_owned(),
                        resource["verbs"].clone(),
                    ));
                }
            }
        }
        for version in [AggregatedVersion::V2, AggregatedVersion::V2Beta1] {
            let mut found = Vec::new();
            for document in [aggregated_core(version), aggregated_groups(version)] {
                for group in document["items"].as_array().unwrap() {
                    let name = group["metadata"]["name"].as_str().unwrap_or_default();
                    for resource in group["versions"][0]["resources"].as_array().unwrap() {
                        let plural = resource["resource"].as_str().unwrap();
                        found.push((name.to_owned(), plural.to_owned(), resource["verbs"].clone()));
                        for sub in resource["subresources"].as_array().into_iter().flatten() {
                            let path = format!("{plural}/{}", sub["subresource"].as_str().unwrap());
                            found.push((name.to_owned(), path, sub["verbs"].clone()));
                        }
                    }
                }
            }
            assert_eq!(found, legacy);
        }
        assert!(legacy.iter().any(|(_, name, _)| name == "pods/binding"));
    }

    #[test]
    fn groups_are_listed_once_and_unknown_ones_not_at_all() {
        let list = api_group_list();
        let names: Vec<_> = list["groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|g| g["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "authentication.k8s.io",
                "authorization.k8s.io",
                "certificates.k8s.io",
                "coordination.k8s.io",
                "discovery.k8s.io",
                "metrics.k8s.io",
                "networking.k8s.io",
                "palisade.dev",
                "policy",
                "policy.networking.k8s.io",
                "projectcalico.org",
                "storage.k8s.io"
            ]
        );
        assert_eq!(
            api_group("palisade.dev").unwrap()["preferredVersion"]["groupVersion"],
            "palisade.dev/v1alpha1"
        );
        assert!(api_group("").is_none() && api_group("apps").is_none());
        assert!(api_resource_list("apps", "v1").is_none());
        assert!(api_resource_list("", "v1").is_some());
    }
}
