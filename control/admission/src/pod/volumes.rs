//! Volumes of a pod.

use std::collections::BTreeSet;

use api::{host_paths::is_plain, quantity};
use control_wire::Cause;
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, PodSpec, ServiceAccountTokenProjection, Volume,
};
use serde_json::Value;

use super::references;
use crate::{Problems, metadata::members, shape::unsupported, syntax};

/// Volumes of one pod.
const MAX_VOLUMES: usize = 64;

/// Sources that the agent provides.
const SOURCES: &[&str] = &[
    "configMap",
    "downwardAPI",
    "emptyDir",
    "hostPath",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// Checks that the volume has exactly one source, on the raw object: an empty source still is one.
pub(super) fn check_source(volume: &Value, field: &str, problems: &mut Problems) {
    let sources: Vec<&String> = members(volume)
        .filter(|(key, value)| *key != "name" && !value.is_null())
        .map(|(key, _)| key)
        .collect();
    match sources.as_slice() {
        [] => problems.push(Cause::required(
            field,
            "must specify a volume type: configMap, downwardAPI, emptyDir, hostPath, \
             persistentVolumeClaim, projected or secret",
        )),
        [source] if SOURCES.contains(&source.as_str()) => {}
        // The list of fields has its own words for sources that it names.
        [source] if volume[source.as_str()].as_object().is_none_or(|s| !s.is_empty()) => {}
        [source] => problems.push(unsupported(&format!("{field}.{source}"), "")),
        [..] => problems.push(Cause::forbidden(field, "may not specify more than 1 volume type")),
    }
}

/// Checks the volumes and returns their names.
pub(super) fn check(spec: &PodSpec, problems: &mut Problems) -> BTreeSet<String> {
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    problems.require(
        volumes.len() <= MAX_VOLUMES,
        "spec.volumes",
        volumes.len(),
        "at most 64 volumes",
    );
    let mut names = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let field = format!("spec.volumes[{index}]");
        problems.require(
            syntax::is_label(&volume.name),
            &format!("{field}.name"),
            &volume.name,
            syntax::LABEL,
        );
        if !names.insert(volume.name.clone()) {
            problems.push(Cause::duplicate(format!("{field}.name"), &volume.name));
        }
        check_volume(volume, &field, problems);
        check_mirror(spec, volume, &field, problems);
    }
    names
}

fn check_volume(volume: &Volume, field: &str, problems: &mut Problems) {
    if let Some(source) = &volume.config_map {
        let field = format!("{field}.configMap");
        check_name(&source.name, &format!("{field}.name"), problems);
        check_files(source.items.as_deref(), source.default_mode, &field, problems);
    }
    if let Some(source) = &volume.secret {
        let field = format!("{field}.secret");
        let name = source.secret_name.as_deref().unwrap_or_default();
        check_name(name, &format!("{field}.secretName"), problems);
        check_files(source.items.as_deref(), source.default_mode, &field, problems);
    }
    if let Some(source) = &volume.persistent_volume_claim {
        let field = format!("{field}.persistentVolumeClaim.claimName");
        check_name(&source.claim_name, &field, problems);
    }
    if let Some(source) = &volume.host_path {
        let path = source.path.as_str();
        let why = "must be an absolute path without empty parts, '.' and '..'";
        problems.require(is_plain(path), &format!("{field}.hostPath.path"), path, why);
    }
    if let Some(source) = &volume.empty_dir
        && let Some(limit) = &source.size_limit
    {
        let field = format!("{field}.emptyDir.sizeLimit");
        if let Err(error) = quantity::units(&limit.0) {
            problems.push(Cause::invalid(&field, &limit.0, error));
        }
    }
}

/// Volumes that show fields of the pod, or several sources together.
fn check_mirror(spec: &PodSpec, volume: &Volume, field: &str, problems: &mut Problems) {
    if let Some(source) = &volume.downward_api {
        let field = format!("{field}.downwardAPI");
        check_mode(source.default_mode, &format!("{field}.defaultMode"), problems);
        let mut paths = BTreeSet::new();
        check_downward(spec, source.items.as_deref(), &field, &mut paths, problems);
    }
    let Some(source) = &volume.projected else { return };
    let field = format!("{field}.projected");
    check_mode(source.default_mode, &format!("{field}.defaultMode"), problems);
    let mut paths = BTreeSet::new();
    for (index, projection) in source.sources.iter().flatten().enumerate() {
        let field = format!("{field}.sources[{index}]");
        let present = [
            projection.config_map.is_some(),
            projection.secret.is_some(),
            projection.downward_api.is_some(),
            projection.service_account_token.is_some(),
            // The list of fields has its own words for it.
            projection.cluster_trust_bundle.is_some(),
        ];
        match present.into_iter().filter(|present| *present).count() {
            0 => problems.push(Cause::required(&field, "must specify a source")),
            1 => {}
            _ => problems.push(Cause::forbidden(&field, "may not specify more than 1 source")),
        }
        if let Some(source) = &projection.config_map {
            let field = format!("{field}.configMap");
            check_name(&source.name, &format!("{field}.name"), problems);
            check_items(source.items.as_deref(), &field, &mut paths, problems);
        }
        if let Some(source) = &projection.secret {
            let field = format!("{field}.secret");
            check_name(&source.name, &format!("{field}.name"), problems);
            check_items(source.items.as_deref(), &field, &mut paths, problems);
        }
        if let Some(source) = &projection.service_account_token {
            let field = format!("{field}.serviceAccountToken");
            check_path(&source.path, &format!("{field}.path"), &mut paths, problems);
            check_token(source, &field, problems);
        }
        if let Some(source) = &projection.downward_api {
            let field = format!("{field}.downwardAPI");
            check_downward(spec, source.items.as_deref(), &field, &mut paths, problems);
        }
    }
}

/// Kubernetes' bounds, and its defaults are the server's: an hour, and the cluster itself as audience.
fn check_token(source: &ServiceAccountTokenProjection, field: &str, problems: &mut Problems) {
    if let Some(seconds) = source.expiration_seconds {
        problems.require(
            (600..=1 << 32).contains(&seconds),
            &format!("{field}.expirationSeconds"),
            seconds,
            "must be from 600 (10 minutes) to 4294967296 seconds",
        );
    }
    let audience = source.audience.as_deref().unwrap_or_default();
    problems.require(
        audience.len() <= 512,
        &format!("{field}.audience"),
        audience,
        "must have at most 512 bytes",
    );
}

fn check_downward(
    spec: &PodSpec,
    items: Option<&[DownwardAPIVolumeFile]>,
    field: &str,
    paths: &mut BTreeSet<String>,
    problems: &mut Problems,
) {
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let field = format!("{field}.items[{index}]");
        check_path(&item.path, &format!("{field}.path"), paths, problems);
        check_mode(item.mode, &format!("{field}.mode"), problems);
        match (&item.field_ref, &item.resource_field_ref) {
            (Some(reference), None) => {
                let path = reference.field_path.as_str();
                let field = format!("{field}.fieldRef.fieldPath");
                if !references::is_volume_field(path) {
                    problems.push(Cause::not_supported(field, path, references::VOLUME_FIELDS));
                }
            }
            (None, Some(reference)) => {
                let field = format!("{field}.resourceFieldRef");
                if reference.container_name.as_deref().unwrap_or_default().is_empty() {
                    problems.push(Cause::required(format!("{field}.containerName"), ""));
                }
                references::check_resource(spec, reference, &field, problems);
            }
            _ => {
                let why = "must specify exactly one of fieldRef and resourceFieldRef";
                problems.push(Cause::invalid(&field, &item.path, why));
            }
        }
    }
}

fn check_name(name: &str, field: &str, problems: &mut Problems) {
    if name.is_empty() {
        problems.push(Cause::required(field, ""));
    } else {
        problems.require(syntax::is_subdomain(name), field, name, syntax::SUBDOMAIN);
    }
}

fn check_files(items: Option<&[KeyToPath]>, default_mode: Option<i32>, field: &str, problems: &mut Problems) {
    check_mode(default_mode, &format!("{field}.defaultMode"), problems);
    check_items(items, field, &mut BTreeSet::new(), problems);
}

fn check_items(
    items: Option<&[KeyToPath]>,
    field: &str,
    paths: &mut BTreeSet<String>,
    problems: &mut Problems,
) {
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let field = format!("{field}.items[{index}]");
        if item.key.is_empty() {
            problems.push(Cause::required(format!("{field}.key"), ""));
        }
        check_path(&item.path, &format!("{field}.path"), paths, problems);
        check_mode(item.mode, &format!("{field}.mode"), problems);
    }
}

fn check_path(path: &str, field: &str, paths: &mut BTreeSet<String>, problems: &mut Problems) {
    let valid = syntax::is_relative_path(path) && !path.starts_with("..");
    problems.require(valid, field, path, "must be a relative path without '..'");
    if !paths.insert(path.to_owned()) {
        problems.push(Cause::duplicate(field, path));
    }
}

fn check_mode(mode: Option<i32>, field: &str, problems: &mut Problems) {
    if let Some(mode) = mode {
        problems.require(
            (0..=0o777).contains(&mode),
            field,
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        );
    }
}
