//! The least OpenAPI v3 that lets kubectl validate and apply: an index with content hashes, and for each
//! group version the paths whose `patch` operation says that the server validates fields itself. There is a
//! schema of PolicyAssertion, for `kubectl explain`; of other kinds it has nothing to show.

use std::sync::LazyLock;

use api::{
    Digest,
    resources::{RESOURCES, Resource, Stored},
};
use serde_json::{Map, Value, json};

/// Document of one group version.
#[derive(Debug)]
pub struct Document {
    /// Path below `/openapi/v3/`, such as `api/v1` or `apis/palisade.dev/v1alpha1`.
    pub path: String,
    /// SHA-256 of the body in hex: the `hash` parameter and the `ETag`.
    pub hash: String,
    /// JSON.
    pub body: String,
}

/// `Cache-Control` of a document that was asked for with its hash: it never changes.
pub const IMMUTABLE: &str = "public, immutable, max-age=31536000";

static DOCUMENTS: LazyLock<Vec<Document>> = LazyLock::new(|| {
    let mut documents: Vec<Document> = Vec::new();
    for resource in RESOURCES {
        let path = resource.base_path().trim_start_matches('/').to_owned();
        if !documents.iter().any(|document| document.path == path) {
            let body = document(resource.group, resource.version).to_string();
            documents.push(Document {
                path,
                hash: Digest::of(body.as_bytes()).hex(),
                body,
            });
        }
    }
    documents
});

/// `GET /openapi/v3`: where each document is, with its hash, so that clients can keep it.
pub fn index() -> Value {
    let paths: Map<String, Value> = DOCUMENTS
        .iter()
        .map(|document| {
            let url = format!("/openapi/v3/{}?hash={}", document.path, document.hash);
            (document.path.clone(), json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// `GET /openapi/v3/PATH`; `None` for a group version that is not served.
pub fn by_path(path: &str) -> Option<&'static Document> {
    DOCUMENTS.iter().find(|document| document.path == path)
}

fn document(group: &str, version: &str) -> Value {
    let mut paths: Map<String, Value> = RESOURCES
        .iter()
        .filter(|r| r.group == group && r.version == version && r.stored == Stored::Yes)
        .map(|resource| {
            let path = format!("{}/{{name}}", resource.collection_path(Some("{namespace}")));
            (path, json!({"patch": patch_operation(resource)}))
        })
        .collect();
    let mut schemas = Map::new();
    for resource in RESOURCES
        .iter()
        .filter(|r| r.group == group && r.version == version)
    {
        if let Some(schema) = schema(resource) {
            // Where `kubectl explain` looks for the kind of a resource.
            let post = json!({"post": {
                "x-kubernetes-action": "post",
                "x-kubernetes-group-version-kind": gvk(resource),
                "responses": {"201": {"description": "Created"}},
            }});
            paths.insert(resource.collection_path(Some("{namespace}")), post);
            schemas.insert(format!("{group}.{version}.{}", resource.kind), schema);
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Palisade", "version": crate::version::git_version()},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

/// What a kind looks like, for people.
fn schema(resource: &Resource) -> Option<Value> {
    if (resource.group, resource.kind) != ("palisade.dev", "PolicyAssertion") {
        return None;
    }
    let text = |description: &str| json!({"type": "string", "description": description});
    let assertion = text(
        "The sentence. `no X reaches Y [on P]`: no flow passes from any of X to any of Y. `only X reaches Y [on P]`: none \
         passes to Y from anything else. `isolated X`: nothing passes between X and what is not X. `X reaches Y on P`: \
         every flow of P passes. X and Y are `pod`, `ns(NAME)`, `labels(SELECTOR)`, `ns(NAME)/labels(SELECTOR)`, \
         `pod(NAMESPACE/NAME)`, `host(NAME)`, `cidr(CIDR)`, `internet`, `outside`, `anything`, or several joined by `or`. P \
         is a list of `443`, `443/TCP`, `8000-8100/UDP`, `TCP`, `ICMP` or `any`.",
    );
    Some(json!({
        "type": "object",
        "description": "A sentence about who may reach whom, which must hold whatever the policies are: a write that \
            would break it is refused. With the annotation palisade.dev/enforcement=warn it is stored with a warning.",
        "x-kubernetes-group-version-kind": [gvk(resource)],
        "required": ["spec"],
        "properties": {
            "apiVersion": text("Always palisade.dev/v1alpha1."),
            "kind": text("Always PolicyAssertion."),
            "metadata": {"type": "object", "description": "Object metadata."},
            "spec": {
                "type": "object",
                "description": "What it says.",
                "required": ["assertion"],
                "properties": {"assertion": assertion},
            },
        },
    }))
}

fn gvk(resource: &Resource) -> Value {
    json!({"group": resource.group, "version": resource.version, "kind": resource.kind})
}

fn patch_operation(resource: &Resource) -> Value {
    let parameter = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
    json!({
        "x-kubernetes-action": "patch",
        "x-kubernetes-group-version-kind": gvk(resource),
        "parameters": [parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation")],
        "responses": {"200": {"description": "OK"}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stored_resource_announces_field_validation() {
        for resource in RESOURCES.iter().filter(|r| r.stored == Stored::Yes) {
            let document = by_path(resource.base_path().trim_start_matches('/')).unwrap();
            let value: Value = serde_json::from_str(&document.body).unwrap();
            let announced = value["paths"].as_object().unwrap().values().any(|path| {
                let patch = &path["patch"];
                patch["x-kubernetes-group-version-kind"]["kind"] == resource.kind
                    && patch["parameters"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|p| p["name"] == "fieldValidation")
            });
            assert!(announced, "{}", resource.kind);
        }
    }

    #[test]
    fn the_index_points_at_documents_by_hash() {
        let index = index();
        let core = index["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap();
        assert_eq!(
            core,
            format!("/openapi/v3/api/v1?hash={}", by_path("api/v1").unwrap().hash)
        );
        assert!(by_path("apis/apps/v1").is_none());
    }
}
