//! Columns of claims, volumes and classes, as Kubernetes prints them.

use serde_json::{Value, json};

use super::{
    Column,
    columns::{AGE, NAME, text, text_at, wide},
};

pub(super) const CLAIM: &[Column] = &[
    NAME,
    text("Status", "Pending, Bound or Lost.", |claim, _| {
        json!(phase(claim))
    }),
    text("Volume", "The volume that it has.", |claim, _| {
        json!(text_at(claim, "/spec/volumeName"))
    }),
    text("Capacity", "Size of the volume.", |claim, _| {
        json!(bound(
            claim,
            text_at(claim, "/status/capacity/storage").to_owned()
        ))
    }),
    text(
        "Access Modes",
        "Ways in which the volume may be used.",
        |claim, _| json!(bound(claim, modes(&claim["status"]["accessModes"]))),
    ),
    text("StorageClass", "Its class.", |claim, _| {
        json!(text_at(claim, "/spec/storageClassName"))
    }),
    text("VolumeAttributesClass", "Not used.", |_, _| json!("<unset>")),
    AGE,
    wide("VolumeMode", "Filesystem.", |claim, _| {
        json!(text_at(claim, "/spec/volumeMode"))
    }),
];

pub(super) const VOLUME: &[Column] = &[
    NAME,
    text("Capacity", "Its size.", |volume, _| {
        json!(text_at(volume, "/spec/capacity/storage"))
    }),
    text("Access Modes", "Ways in which it may be used.", |volume, _| {
        json!(modes(&volume["spec"]["accessModes"]))
    }),
    text(
        "Reclaim Policy",
        "What becomes of it when its claim goes.",
        |volume, _| json!(text_at(volume, "/spec/persistentVolumeReclaimPolicy")),
    ),
    text("Status", "Available, Bound, Released or Failed.", |volume, _| {
        json!(phase(volume))
    }),
    text("Claim", "Who has it.", |volume, _| {
        let claim = &volume["spec"]["claimRef"];
        json!(match claim.is_object() {
            true => format!("{}/{}", text_at(claim, "/namespace"), text_at(claim, "/name")),
            false => String::new(),
        })
    }),
    text("StorageClass", "Its class.", |volume, _| {
        json!(text_at(volume, "/spec/storageClassName"))
    }),
    text("VolumeAttributesClass", "Not used.", |_, _| json!("<unset>")),
    text("Reason", "Why it is as it is.", |volume, _| {
        json!(text_at(volume, "/status/reason"))
    }),
    AGE,
    wide("VolumeMode", "Filesystem.", |volume, _| {
        json!(text_at(volume, "/spec/volumeMode"))
    }),
];

pub(super) const CLASS: &[Column] = &[
    Column {
        cell: |class, _| {
            let name = text_at(class, "/metadata/name");
            let default = class["metadata"]["annotations"][api::storage::IS_DEFAULT_CLASS] == "true";
            json!(if default {
                format!("{name} (default)")
            } else {
                name.to_owned()
            })
        },
        ..NAME
    },
    text("Provisioner", "Who makes its volumes.", |class, _| {
        json!(text_at(class, "/provisioner"))
    }),
    text(
        "ReclaimPolicy",
        "What becomes of volumes when their claims go.",
        |class, _| json!(text_at(class, "/reclaimPolicy")),
    ),
    text(
        "VolumeBindingMode",
        "When claims get their volumes.",
        |class, _| json!(text_at(class, "/volumeBindingMode")),
    ),
    text("AllowVolumeExpansion", "Whether volumes grow.", |class, _| {
        json!(
            class["allowVolumeExpansion"]
                .as_bool()
                .unwrap_or(false)
                .to_string()
        )
    }),
    AGE,
];

/// What is on its way out says so.
fn phase(object: &Value) -> String {
    match object["metadata"]["deletionTimestamp"].is_string() {
        true => "Terminating".to_owned(),
        false => text_at(object, "/status/phase").to_owned(),
    }
}

/// What a claim shows only once it has a volume.
fn bound(claim: &Value, shown: String) -> String {
    match text_at(claim, "/spec/volumeName") {
        "" => String::new(),
        _ => shown,
    }
}

/// The short forms in the order of Kubernetes.
fn modes(list: &Value) -> String {
    const SHORT: &[(&str, &str)] = &[
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| list.as_array().into_iter().flatten().any(|own| own == mode);
    let short: Vec<&str> = SHORT
        .iter()
        .filter(|(mode, _)| has(mode))
        .map(|(_, short)| *short)
        .collect();
    short.join(",")
}
