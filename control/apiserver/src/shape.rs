//! Objects in the form that the client asked for: as they are, as rows of a table, or only their metadata.

use api::resources::Resource;
use control_wire::{
    negotiate::ObjectForm,
    query::IncludeObject,
    table::{partial_metadata, partial_metadata_list, table, table_of_one},
};
use jiff::Timestamp;
use serde_json::Value;

/// One object. A `Status` stays what it is.
pub(crate) fn one(
    form: ObjectForm,
    row: &Resource,
    object: Value,
    include: IncludeObject,
    now: Timestamp,
) -> Value {
    match form {
        _ if object["kind"] != row.kind => object,
        ObjectForm::Plain => object,
        ObjectForm::Table => table_of_one(row, &object, include, now),
        ObjectForm::Metadata => partial_metadata(&object),
    }
}

/// A list.
pub(crate) fn list(
    form: ObjectForm,
    row: &Resource,
    mut list: Value,
    include: IncludeObject,
    now: Timestamp,
) -> Value {
    if form == ObjectForm::Plain {
        return list;
    }
    let metadata = list["metadata"].take();
    let items = list["items"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    match form {
        ObjectForm::Table => table(row, items, metadata, include, now),
        ObjectForm::Metadata | ObjectForm::Plain => partial_metadata_list(items, metadata),
    }
}
