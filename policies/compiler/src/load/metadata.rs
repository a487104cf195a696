//! Names and labels, as the API has them. One that the API would refuse is none that a selector or another object could
//! mean, and the file it stands in could not be applied.

use std::collections::BTreeMap;

use api::{
    names::{LABEL, SERVICE_NAME, SUBDOMAIN, is_label, is_service_name, is_subdomain},
    selector::{is_label_key, is_label_value},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::field::FieldError;

/// What is wrong with the metadata of an object of `kind`; `namespaced` if such have a namespace.
pub(super) fn problems(kind: &str, namespaced: bool, metadata: &ObjectMeta) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (is_name, syntax): (fn(&str) -> bool, &str) = match kind {
        "Namespace" => (is_label, LABEL),
        "Service" => (is_service_name, SERVICE_NAME),
        _ => (is_subdomain, SUBDOMAIN),
    };
    let name = metadata.name.as_deref().unwrap_or_default();
    name_of("metadata.name", name, is_name, syntax, &mut errors);
    // Without one, it is the default.
    let namespace = metadata.namespace.as_deref().filter(|name| !name.is_empty());
    if let Some(namespace) = namespace.filter(|_| namespaced) {
        name_of("metadata.namespace", namespace, is_label, LABEL, &mut errors);
    }
    labels("metadata.labels", metadata.labels.as_ref(), &mut errors);
    errors
}

/// What is wrong with the labels that stand at `field`.
pub(super) fn labels(field: &str, labels: Option<&BTreeMap<String, String>>, errors: &mut Vec<FieldError>) {
    for (key, value) in labels.into_iter().flatten() {
        let mut wrong = |problem: String, fix: &str| {
            errors.push(FieldError {
                field: field.to_owned(),
                problem,
                fix: fix.to_owned(),
            });
        };
        if !is_label_key(key) {
            wrong(
                format!("{key:?} is not the name of a label"),
                "use [prefix/]name, where the name has at most 63 letters, digits, '-', '_' and '.'",
            );
        }
        if !is_label_value(value) {
            wrong(
                format!("{value:?} is not the value of a label ({key})"),
                "use at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends",
            );
        }
    }
}

fn name_of(field: &str, name: &str, is_name: fn(&str) -> bool, syntax: &str, errors: &mut Vec<FieldError>) {
    if !is_name(name) {
        errors.push(FieldError {
            field: field.to_owned(),
            problem: format!("{name:?} is not a name of this kind"),
            fix: format!("it {syntax}"),
        });
    }
}
