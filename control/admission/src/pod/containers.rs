//! Containers of a pod: images, environment, ports, resources and mounts.

use std::collections::BTreeSet;

use api::{ImageRef, quantity, selector::is_label_key};
use control_wire::Cause;
use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, EnvFromSource, EnvVar, PodSpec, VolumeMount},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{health, host_ports, references, security};
use crate::{Problems, syntax};

/// Containers of one pod.
const MAX_CONTAINERS: usize = 32;

/// Ports that one container names.
const MAX_PORTS: usize = 256;

/// Fields that the downward API has.
const FIELD_PATHS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.labels['<KEY>']",
    "metadata.annotations['<KEY>']",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Mounting there would replace what the sandbox guards.
const GUARDED_PATHS: &[&str] = &["/proc", "/sys", "/dev"];

/// Paths below a guarded one that are still free: shared memory may be given a volume.
const FREE_PATHS: &[&str] = &["/dev/shm"];

pub(super) fn check(spec: &PodSpec, volumes: &BTreeSet<String>, problems: &mut Problems) {
    if spec.containers.is_empty() {
        problems.push(Cause::required("spec.containers", ""));
    }
    let count = spec.containers.len();
    problems.require(
        count <= MAX_CONTAINERS,
        "spec.containers",
        count,
        "at most 32 containers",
    );
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    problems.require(
        inits.len() <= MAX_CONTAINERS,
        "spec.initContainers",
        inits.len(),
        "at most 32 init containers",
    );
    let (mut names, mut taken) = (BTreeSet::new(), Vec::new());
    let inits = inits
        .iter()
        .enumerate()
        .map(|(index, init)| ("initContainers", index, init));
    let mains = spec.containers.iter().enumerate();
    let mains = mains.map(|(index, container)| ("containers", index, container));
    for (list, index, container) in inits.chain(mains) {
        let field = format!("spec.{list}[{index}]");
        if container.name.is_empty() {
            problems.push(Cause::required(format!("{field}.name"), ""));
        } else {
            let valid = syntax::is_label(&container.name);
            problems.require(valid, &format!("{field}.name"), &container.name, syntax::LABEL);
        }
        if !names.insert(&container.name) {
            problems.push(Cause::duplicate(format!("{field}.name"), &container.name));
        }
        check_container(container, volumes, &field, problems);
        check_resource_fields(spec, container, &field, problems);
        host_ports::check(container, list == "containers", &field, &mut taken, problems);
        security::check_container(spec, container, &field, problems);
        let runs_to_its_end = list == "initContainers" && container.restart_policy.is_none();
        health::check(spec, container, runs_to_its_end, &field, problems);
    }
}

pub(super) fn check_container(
    container: &Container,
    volumes: &BTreeSet<String>,
    field: &str,
    problems: &mut Problems,
) {
    match container.image.as_deref().unwrap_or_default() {
        "" => problems.push(Cause::required(format!("{field}.image"), "")),
        image => {
            if let Err(error) = image.parse::<ImageRef>() {
                problems.push(Cause::invalid(format!("{field}.image"), image, error));
            }
        }
    }
    if let Some(directory) = container
        .working_dir
        .as_deref()
        .filter(|directory| !directory.is_empty())
    {
        let field = format!("{field}.workingDir");
        problems.require(
            syntax::is_absolute_path(directory),
            &field,
            directory,
            "must be an absolute path without '..'",
        );
    }
    if let Some(path) = container
        .termination_message_path
        .as_deref()
        .filter(|path| !path.is_empty())
    {
        let valid = syntax::is_absolute_path(path) && !normal(path).is_empty();
        let field = format!("{field}.terminationMessagePath");
        problems.require(
            valid,
            &field,
            path,
            "must be an absolute path of a file, without '..'",
        );
        let guarded = is_guarded(path) && !path.starts_with("/dev/");
        problems.require(
            !guarded,
            &field,
            path,
            "must not be below /proc or /sys, which the sandbox guards",
        );
    }
    for (index, variable) in container.env.iter().flatten().enumerate() {
        check_variable(variable, &format!("{field}.env[{index}]"), problems);
    }
    for (index, source) in container.env_from.iter().flatten().enumerate() {
        check_env_from(source, &format!("{field}.envFrom[{index}]"), problems);
    }
    check_ports(container.ports.as_deref().unwrap_or_default(), field, problems);
    check_resources(container, field, problems);
    check_mounts(
        container.volume_mounts.as_deref().unwrap_or_default(),
        volumes,
        field,
        problems,
    );
}

pub(super) fn check_resource_fields(
    spec: &PodSpec,
    container: &Container,
    field: &str,
    problems: &mut Problems,
) {
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let from = variable.value_from.as_ref();
        if let Some(reference) = from.and_then(|from| from.resource_field_ref.as_ref()) {
            let field = format!("{field}.env[{index}].valueFrom.resourceFieldRef");
            references::check_resource(spec, reference, &field, problems);
        }
    }
}

fn check_variable(variable: &EnvVar, field: &str, problems: &mut Problems) {
    check_variable_name(&variable.name, &format!("{field}.name"), problems);
    let has_nul = variable
        .value
        .as_deref()
        .is_some_and(|value| value.contains('\0'));
    problems.require(
        !has_nul,
        &format!("{field}.value"),
        "",
        "must not contain a NUL byte",
    );
    let Some(from) = &variable.value_from else { return };
    let field_of = |name: &str| format!("{field}.valueFrom.{name}");
    if variable.value.as_deref().is_some_and(|value| !value.is_empty()) {
        problems.push(Cause::invalid(
            format!("{field}.valueFrom"),
            "",
            "may not be specified when `value` is not empty",
        ));
    }
    let sources = [
        from.config_map_key_ref.is_some(),
        from.secret_key_ref.is_some(),
        from.field_ref.is_some(),
        from.resource_field_ref.is_some(),
    ];
    let count = sources.into_iter().filter(|present| *present).count();
    problems.require(
        count == 1,
        &format!("{field}.valueFrom"),
        count,
        "must specify exactly one source",
    );
    if let Some(source) = &from.config_map_key_ref {
        check_key(&source.name, &source.key, &field_of("configMapKeyRef"), problems);
    }
    if let Some(source) = &from.secret_key_ref {
        check_key(&source.name, &source.key, &field_of("secretKeyRef"), problems);
    }
    if let Some(source) = &from.field_ref
        && !is_field_path(&source.field_path)
    {
        let field = field_of("fieldRef.fieldPath");
        problems.push(Cause::not_supported(field, &source.field_path, FIELD_PATHS));
    }
}

fn check_env_from(source: &EnvFromSource, field: &str, problems: &mut Problems) {
    if let Some(prefix) = source.prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
        check_variable_name(prefix, &format!("{field}.prefix"), problems);
    }
    let names: Vec<&str> = source
        .config_map_ref
        .iter()
        .map(|reference| reference.name.as_str())
        .chain(source.secret_ref.iter().map(|reference| reference.name.as_str()))
        .collect();
    match names.as_slice() {
        [name] => problems.require(syntax::is_subdomain(name), field, name, syntax::SUBDOMAIN),
        _ => problems.push(Cause::invalid(
            field,
            names.len(),
            "must specify one of: `configMapRef` or `secretRef`",
        )),
    }
}

fn check_variable_name(name: &str, field: &str, problems: &mut Problems) {
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b'=');
    problems.require(
        is_name,
        field,
        name,
        "must be printable ASCII without '=' and spaces",
    );
}

fn check_key(name: &str, key: &str, field: &str, problems: &mut Problems) {
    problems.require(
        syntax::is_subdomain(name),
        &format!("{field}.name"),
        name,
        syntax::SUBDOMAIN,
    );
    problems.require(
        syntax::is_data_key(key),
        &format!("{field}.key"),
        key,
        syntax::DATA_KEY,
    );
}

fn is_field_path(path: &str) -> bool {
    match references::key_of(path) {
        Some(key) => is_label_key(&key.to_ascii_lowercase()),
        None => FIELD_PATHS.contains(&path) && !path.contains('['),
    }
}

fn check_ports(ports: &[ContainerPort], field: &str, problems: &mut Problems) {
    problems.require(
        ports.len() <= MAX_PORTS,
        &format!("{field}.ports"),
        ports.len(),
        "at most 256 ports",
    );
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("{field}.ports[{index}]");
        let number = port.container_port;
        let why = "must be between 1 and 65535, inclusive";
        problems.require(
            (1..=65_535).contains(&number),
            &format!("{field}.containerPort"),
            number,
            why,
        );
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            problems.require(
                syntax::is_port_name(name),
                &format!("{field}.name"),
                name,
                syntax::PORT_NAME,
            );
            if !names.insert(name) {
                problems.push(Cause::duplicate(format!("{field}.name"), name));
            }
        }
    }
}

fn check_resources(container: &Container, field: &str, problems: &mut Problems) {
    let Some(resources) = &container.resources else {
        return;
    };
    let mut amount = |kind: &str, name: &str, quantity: Option<&Quantity>| {
        let quantity = quantity?;
        // In the unit that the node counts in.
        let counted = match name {
            "cpu" => quantity::thousandths(&quantity.0),
            _ => quantity::units(&quantity.0),
        };
        match counted.and_then(|_fits| quantity::exact_thousandths(&quantity.0)) {
            Ok(amount) => Some(amount),
            Err(error) => {
                let field = format!("{field}.resources.{kind}.{name}");
                problems.push(Cause::invalid(field, &quantity.0, error));
                None
            }
        }
    };
    let of = |map: &Option<std::collections::BTreeMap<String, Quantity>>, name: &str| {
        map.as_ref().and_then(|map| map.get(name)).cloned()
    };
    let mut over = Vec::new();
    for name in ["cpu", "ephemeral-storage", "memory"] {
        let (limit, request) = (of(&resources.limits, name), of(&resources.requests, name));
        let limit_amount = amount("limits", name, limit.as_ref());
        let request_amount = amount("requests", name, request.as_ref());
        if let (Some(limit_amount), Some(request_amount)) = (limit_amount, request_amount)
            && request_amount > limit_amount
        {
            over.push((name, request.unwrap_or_default().0, limit.unwrap_or_default().0));
        }
    }
    for (name, request, limit) in over {
        let why = format!("must be less than or equal to {name} limit of {limit}");
        problems.push(Cause::invalid(
            format!("{field}.resources.requests"),
            request,
            why,
        ));
    }
}

fn check_mounts(mounts: &[VolumeMount], volumes: &BTreeSet<String>, field: &str, problems: &mut Problems) {
    let mut paths = BTreeSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let field = format!("{field}.volumeMounts[{index}]");
        if !volumes.contains(&mount.name) {
            problems.push(Cause::invalid(
                format!("{field}.name"),
                &mount.name,
                "no volume of the pod has this name",
            ));
        }
        let path = mount.mount_path.as_str();
        let path_field = format!("{field}.mountPath");
        if path.is_empty() {
            problems.push(Cause::required(&path_field, ""));
            continue;
        }
        let is_path = syntax::is_absolute_path(path) && !path.contains(':');
        problems.require(
            is_path,
            &path_field,
            path,
            "must be an absolute path without '..' and ':'",
        );
        let plain = normal(path);
        problems.require(
            !is_guarded(path) && !plain.is_empty(),
            &path_field,
            path,
            "must not cover /, /proc, /sys or /dev, which the sandbox guards",
        );
        if !paths.insert(plain) {
            problems.push(Cause::invalid(&path_field, path, "must be unique"));
        }
        let recursive = mount.recursive_read_only.as_deref();
        if matches!(recursive, Some("Enabled" | "IfPossible")) && mount.read_only != Some(true) {
            let why = "may only be specified when readOnly is true";
            problems.push(Cause::forbidden(format!("{field}.recursiveReadOnly"), why));
        }
        let parts = [
            ("subPath", &mount.sub_path),
            ("subPathExpr", &mount.sub_path_expr),
        ];
        let parts = parts.map(|(name, part)| (name, part.as_deref().unwrap_or_default()));
        for (name, part) in parts.iter().filter(|(_, part)| !part.is_empty()) {
            let why = "must be a relative path without '..'";
            problems.require(
                syntax::is_relative_path(part),
                &format!("{field}.{name}"),
                part,
                why,
            );
        }
        if parts.iter().all(|(_, part)| !part.is_empty()) {
            let why = "subPathExpr and subPath are mutually exclusive";
            problems.push(Cause::invalid(format!("{field}.subPathExpr"), parts[1].1, why));
        }
    }
}

fn is_guarded(path: &str) -> bool {
    let plain = normal(path);
    let is_below = |path: &&str| plain == **path || plain.starts_with(&format!("{path}/"));
    GUARDED_PATHS.iter().any(is_below) && !FREE_PATHS.iter().any(is_below)
}

/// The path without empty and `.` parts; empty for the root.
fn normal(path: &str) -> String {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .map(|part| format!("/{part}"))
        .collect()
}
