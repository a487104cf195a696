//! `meta.k8s.io/v1` tables: what `kubectl get` prints. One list of columns per kind, the same as in
//! Kubernetes for its kinds, since scripts parse them.

mod columns;
mod node;
mod pod;
mod policy;
mod storage;

use api::resources::Resource;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::query::IncludeObject;

/// One column: where it comes from and how it is announced.
struct Column {
    name: &'static str,
    /// OpenAPI type of the cells.
    kind: &'static str,
    /// `name` for the name column, else empty.
    format: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    priority: u8,
    description: &'static str,
    cell: fn(&Value, Timestamp) -> Value,
}

/// A table of `items`. `list_metadata` is that of the list they come from: revision, and the continue token.
pub fn table(
    resource: &Resource,
    items: &[Value],
    list_metadata: Value,
    include: IncludeObject,
    now: Timestamp,
) -> Value {
    let columns = columns::of(resource);
    let definitions: Vec<Value> = columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect();
    let rows: Vec<Value> = items
        .iter()
        .map(|item| {
            let cells: Vec<Value> = columns.iter().map(|column| (column.cell)(item, now)).collect();
            let mut row = json!({"cells": cells});
            match include {
                IncludeObject::None => {}
                IncludeObject::Metadata => row["object"] = partial_metadata(item),
                IncludeObject::Object => row["object"] = item.clone(),
            }
            row
        })
        .collect();
    let mut table = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1"});
    table["metadata"] = list_metadata;
    table["columnDefinitions"] = Value::Array(definitions);
    table["rows"] = Value::Array(rows);
    table
}

/// A table of one object, for a get and for each event of a watch.
pub fn table_of_one(resource: &Resource, item: &Value, include: IncludeObject, now: Timestamp) -> Value {
    let revision = item["metadata"]["resourceVersion"].clone();
    table(
        resource,
        std::slice::from_ref(item),
        json!({"resourceVersion": revision}),
        include,
        now,
    )
}

/// `PartialObjectMetadata` of an object.
pub fn partial_metadata(item: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": item["metadata"],
    })
}

/// `PartialObjectMetadataList` of objects.
pub fn partial_metadata_list(items: &[Value], list_metadata: Value) -> Value {
    let items: Vec<Value> = items.iter().map(partial_metadata).collect();
    let mut list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"});
    list["metadata"] = list_metadata;
    list["items"] = Value::Array(items);
    list
}

#[cfg(test)]
mod tests;
