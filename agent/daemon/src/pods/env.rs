//! Environment of a container, as Kubernetes resolves it. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::host_paths::HostPath;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret};

use crate::config::ApiAddress;

use super::{
    claims::Claimed,
    resources::{self, NodeAmounts},
    tokens,
};

/// Search path of a container whose image does not set one: what container engines use.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Config maps and secrets that a pod refers to, as they were found: `None` where there is none.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) config_maps: BTreeMap<String, Option<ConfigMap>>,
    pub(crate) secrets: BTreeMap<String, Option<Secret>>,
    /// Tokens that its volumes ask for; environments never hold one.
    pub(crate) tokens: tokens::OfPod,
    /// Paths of the node that its volumes mount, all of them granted.
    pub(crate) host_paths: Vec<HostPath>,
    /// What stands behind its claims, by name of the volume.
    pub(crate) claims: BTreeMap<String, Claimed>,
}

/// Facts that an environment has beside the pod's own object.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    /// The pod's, IPv4 first.
    pub(crate) pod: Vec<IpAddr>,
    /// The node's, IPv4 first.
    pub(crate) host: Vec<IpAddr>,
    /// The API server's, where the pod can reach it.
    pub(crate) api: Option<ApiAddress>,
}

/// Why a container's configuration cannot be resolved; Kubernetes' `CreateContainerConfigError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvError {
    #[error("{kind} \"{name}\" not found")]
    Missing { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    MissingKey {
        kind: &'static str,
        namespace: String,
        name: String,
        key: String,
    },
    #[error("{kind} {name}: the value of {key} is not UTF-8 text, which an environment variable must be")]
    NotText {
        kind: &'static str,
        name: String,
        key: String,
    },
    #[error("missing value for {0:?}")]
    Unknown(String),
    #[error("fieldPath {0:?} is not supported")]
    FieldPath(String),
    #[error("environment variable {0:?} has a source that is not supported")]
    Source(String),
}

/// Names of the config maps and secrets that `pod` refers to, in volumes and environments.
pub(crate) fn references(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut config_maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    let Some(spec) = &pod.spec else {
        return (config_maps, secrets);
    };
    for container in super::steps::containers(pod) {
        for from in container.env_from.iter().flatten() {
            config_maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
            secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
        }
        for source in container
            .env
            .iter()
            .flatten()
            .filter_map(|env| env.value_from.as_ref())
        {
            config_maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
            secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
        }
    }
    let projected = spec
        .volumes
        .iter()
        .flatten()
        .filter_map(|volume| volume.projected.as_ref());
    for source in projected.flat_map(|projected| projected.sources.iter().flatten()) {
        config_maps.extend(source.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(source.secret.iter().map(|source| source.name.clone()));
    }
    for volume in spec.volumes.iter().flatten() {
        config_maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(
            volume
                .secret
                .iter()
                .filter_map(|source| source.secret_name.clone()),
        );
    }
    (config_maps, secrets)
}

/// The environment of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    /// All of it.
    pub(crate) all: BTreeMap<String, String>,
    /// What the spec says: only this is seen through `$(NAME)` in commands, arguments and paths.
    pub(crate) own: BTreeMap<String, String>,
}

/// The environment of `container` on top of the image's: `envFrom` first, then `env` in order, each seeing
/// what came before it through `$(NAME)`.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    image: &[String],
    objects: &Objects,
    (addresses, node): (&Addresses, NodeAmounts),
) -> Result<Environment, EnvError> {
    let mut environment: BTreeMap<String, String> = image
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    environment.insert("HOSTNAME".to_owned(), hostname(pod).to_owned());
    environment
        .entry("PATH".to_owned())
        .or_insert_with(|| DEFAULT_PATH.to_owned());
    // Before all that the spec says, which may have something else there.
    let mut own: BTreeMap<String, String> = addresses.api.iter().flat_map(of_api).collect();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let values = if let Some(reference) = &from.config_map_ref {
            config_map_values(objects, &reference.name, reference.optional == Some(true))?
        } else if let Some(reference) = &from.secret_ref {
            secret_values(objects, &reference.name, reference.optional == Some(true))?
        } else {
            return Err(EnvError::Source("envFrom".to_owned()));
        };
        own.extend(
            values
                .into_iter()
                .map(|(key, value)| (format!("{prefix}{key}"), value)),
        );
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(expand(variable.value.as_deref().unwrap_or_default(), &own)),
            Some(EnvVarSource {
                resource_field_ref: Some(reference),
                ..
            }) => Some(resources::value_of(pod, &container.name, reference, node)?),
            Some(source) => from_source(pod, &variable.name, source, objects, addresses)?,
        };
        if let Some(value) = value {
            own.insert(variable.name.clone(), value);
        }
    }
    environment.extend(own.clone());
    Ok(Environment {
        all: environment,
        own,
    })
}

/// By which clients in a pod find the API server, as in Kubernetes.
fn of_api(api: &ApiAddress) -> [(String, String); 3] {
    let port = api.port.to_string();
    [
        ("KUBERNETES_SERVICE_HOST", api.host.clone()),
        ("KUBERNETES_SERVICE_PORT", port.clone()),
        ("KUBERNETES_SERVICE_PORT_HTTPS", port),
    ]
    .map(|(name, value)| (name.to_owned(), value))
}

/// As [`expand`], but a name that is not known is an error: half a path is another path.
pub(crate) fn expand_all(text: &str, variables: &BTreeMap<String, String>) -> Result<String, EnvError> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('$') {
        if let Some(after) = after.strip_prefix('$') {
            rest = after;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            if !variables.contains_key(name) {
                return Err(EnvError::Unknown(name.to_owned()));
            }
            rest = tail;
        } else {
            rest = after;
        }
    }
    Ok(expand(text, variables))
}

/// Replaces `$(NAME)` by the variable's value; `$$` stands for `$`, and a name that is not known stays as
/// it is written.
pub(crate) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            match variables.get(name) {
                Some(value) => result.push_str(value),
                None => result.extend(["$(", name, ")"]),
            }
            rest = tail;
        } else {
            result.push('$');
            rest = after;
        }
    }
    result.push_str(rest);
    result
}

/// The pod's host name: `spec.hostname`, or its name.
pub(crate) fn hostname(pod: &Pod) -> &str {
    let wanted = pod.spec.as_ref().and_then(|spec| spec.hostname.as_deref());
    let name = wanted.or(pod.metadata.name.as_deref()).unwrap_or("pod");
    // The kernel takes at most 64 bytes, Kubernetes cuts at 63. Pod names are ASCII.
    name.get(..63).unwrap_or(name).trim_end_matches(['-', '.'])
}

fn from_source(
    pod: &Pod,
    variable: &str,
    source: &EnvVarSource,
    objects: &Objects,
    addresses: &Addresses,
) -> Result<Option<String>, EnvError> {
    let namespace = || pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let mut values = config_map_values(objects, &reference.name, optional)?;
        return key(
            &mut values,
            "configmap",
            namespace(),
            &reference.name,
            &reference.key,
            optional,
        );
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let mut values = secret_values(objects, &reference.name, optional)?;
        return key(
            &mut values,
            "secret",
            namespace(),
            &reference.name,
            &reference.key,
            optional,
        );
    }
    if let Some(reference) = &source.field_ref {
        return field(pod, &reference.field_path, addresses).map(Some);
    }
    Err(EnvError::Source(variable.to_owned()))
}

fn key(
    values: &mut BTreeMap<String, String>,
    kind: &'static str,
    namespace: String,
    name: &str,
    key: &str,
    optional: bool,
) -> Result<Option<String>, EnvError> {
    match values.remove(key) {
        None if !optional => Err(EnvError::MissingKey {
            kind,
            namespace,
            name: name.to_owned(),
            key: key.to_owned(),
        }),
        value => Ok(value),
    }
}

fn config_map_values(
    objects: &Objects,
    name: &str,
    optional: bool,
) -> Result<BTreeMap<String, String>, EnvError> {
    match objects.config_maps.get(name).and_then(Option::as_ref) {
        Some(config_map) => Ok(config_map.data.clone().unwrap_or_default()),
        None if optional => Ok(BTreeMap::new()),
        None => Err(EnvError::Missing {
            kind: "configmap",
            name: name.to_owned(),
        }),
    }
}

fn secret_values(
    objects: &Objects,
    name: &str,
    optional: bool,
) -> Result<BTreeMap<String, String>, EnvError> {
    let secret = match objects.secrets.get(name).and_then(Option::as_ref) {
        Some(secret) => secret,
        None if optional => return Ok(BTreeMap::new()),
        None => {
            return Err(EnvError::Missing {
                kind: "secret",
                name: name.to_owned(),
            });
        }
    };
    let text = |(key, value): (&String, &k8s_openapi::ByteString)| match std::str::from_utf8(&value.0) {
        Ok(text) => Ok((key.clone(), text.to_owned())),
        Err(_) => Err(EnvError::NotText {
            kind: "secret",
            name: name.to_owned(),
            key: key.clone(),
        }),
    };
    secret.data.iter().flatten().map(text).collect()
}

/// Value of a downward-API field; `metadata.labels['KEY']` and `metadata.annotations['KEY']` included.
fn field(pod: &Pod, path: &str, addresses: &Addresses) -> Result<String, EnvError> {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let entry = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    if let Some(key) = entry("metadata.labels['") {
        return Ok(meta
            .labels
            .as_ref()
            .and_then(|labels| labels.get(key))
            .cloned()
            .unwrap_or_default());
    }
    if let Some(key) = entry("metadata.annotations['") {
        return Ok(meta
            .annotations
            .as_ref()
            .and_then(|all| all.get(key))
            .cloned()
            .unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => listed(meta.labels.as_ref()),
        "metadata.annotations" => listed(meta.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_default(),
        "status.podIP" => first(&addresses.pod),
        "status.podIPs" => joined(&addresses.pod),
        "status.hostIP" => first(&addresses.host),
        "status.hostIPs" => joined(&addresses.host),
        _ => return Err(EnvError::FieldPath(path.to_owned())),
    })
}

/// A field that a volume may show: those that do not depend on where the pod runs.
pub(crate) fn object_field(pod: &Pod, path: &str) -> Result<String, EnvError> {
    let nowhere = Addresses {
        pod: Vec::new(),
        host: Vec::new(),
        api: None,
    };
    match path.starts_with("metadata.") {
        true => field(pod, path, &nowhere),
        false => Err(EnvError::FieldPath(path.to_owned())),
    }
}

/// One line per entry, `key="value"`, in the order of the keys, as the kubelet writes them.
fn listed(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten();
    let lines: Vec<String> = lines
        .map(|(key, value)| format!("{key}={}", quoted(value)))
        .collect();
    lines.join("\n")
}

/// As Go quotes text.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            control if control.is_control() => {
                quoted.push_str(&format!("\\x{:02x}", u32::from(control)));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

fn first(addresses: &[IpAddr]) -> String {
    addresses.first().map(ToString::to_string).unwrap_or_default()
}

fn joined(addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn addresses() -> Addresses {
        Addresses {
            pod: vec!["10.88.0.2".parse().unwrap(), "fd00:10:88::2".parse().unwrap()],
            host: vec!["192.0.2.2".parse().unwrap()],
            api: None,
        }
    }

    fn resolve(
        container: serde_json::Value,
        objects: &Objects,
    ) -> Result<BTreeMap<String, String>, EnvError> {
        resolve_with(container, objects, &addresses()).map(|environment| environment.all)
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "the callers build the value in place"
    )]
    fn resolve_with(
        container: serde_json::Value,
        objects: &Objects,
        addresses: &Addresses,
    ) -> Result<Environment, EnvError> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "x"}},
            "spec": {"containers": [container], "nodeName": "n"},
        }))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        environment(
            &pod,
            container,
            &["PATH=/bin".to_owned(), "A=image".to_owned()],
            objects,
            (
                addresses,
                NodeAmounts {
                    cpu_millis: 2000,
                    memory_bytes: 1 << 30,
                    allocatable_memory_bytes: 1 << 30,
                    storage_bytes: 8 << 30,
                    allocatable_storage_bytes: 8 << 30,
                },
            ),
        )
    }

    #[test]
    fn clients_find_the_api_server_unless_the_spec_says_otherwise() {
        let api = ApiAddress {
            host: "192.0.2.7".to_owned(),
            port: 6443,
        };
        let addresses = Addresses {
            api: Some(api),
            ..addresses()
        };
        let container = json!({"name": "c", "env": [
            {"name": "KUBERNETES_SERVICE_PORT", "value": "1"},
            {"name": "URL", "value": "https://$(KUBERNETES_SERVICE_HOST):$(KUBERNETES_SERVICE_PORT_HTTPS)"}]});
        let found = resolve_with(container.clone(), &Objects::default(), &addresses).unwrap();
        for (name, value) in [
            ("KUBERNETES_SERVICE_HOST", "192.0.2.7"),
            ("KUBERNETES_SERVICE_PORT", "1"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "6443"),
            ("URL", "https://192.0.2.7:6443"),
        ] {
            assert_eq!(found.all.get(name).map(String::as_str), Some(value));
            assert!(found.own.contains_key(name), "commands see it too");
        }
        let without = resolve(container, &Objects::default()).unwrap();
        assert!(!without.contains_key("KUBERNETES_SERVICE_HOST"));
    }

    #[test]
    fn later_sources_win_and_see_earlier_ones() {
        let config_map = serde_json::from_value(json!({"data": {"A": "map", "B": "b"}})).unwrap();
        let secret = serde_json::from_value(json!({"data": {"k": "c2VjcmV0"}})).unwrap();
        let objects = Objects {
            config_maps: [("m".to_owned(), Some(config_map))].into(),
            secrets: [("s".to_owned(), Some(secret))].into(),
            ..Objects::default()
        };
        let container = json!({
            "name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}],
            "env": [
                {"name": "A", "value": "$(P_B)-$(A)-$$(A)-$(C)"},
                {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "D", "value": "$(C)"},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}},
                {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "x", "optional": true}}},
            ],
        });
        let environment = resolve(container, &objects).unwrap();
        let expected = [
            ("A", "b-$(A)-$(A)-$(C)"),
            ("C", "secret"),
            ("D", "secret"),
            ("HOSTNAME", "web"),
            ("IP", "10.88.0.2"),
            ("IPS", "10.88.0.2,fd00:10:88::2"),
            ("NAME", "x"),
            ("PATH", "/bin"),
            ("P_A", "map"),
            ("P_B", "b"),
        ];
        let expected = expected
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        assert_eq!(environment, expected);
    }

    #[test]
    fn what_is_missing_is_named() {
        let by_key = json!({"name": "c", "env": [
            {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]});
        assert_eq!(
            resolve(by_key, &Objects::default()).unwrap_err().to_string(),
            "secret \"s\" not found"
        );
        let optional = json!({"name": "c", "envFrom": [{"secretRef": {"name": "s", "optional": true}}]});
        assert!(resolve(optional, &Objects::default()).is_ok());
        let field = json!({"name": "c", "env": [
            {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "spec.hostPID"}}}]});
        assert!(matches!(
            resolve(field, &Objects::default()),
            Err(EnvError::FieldPath(_))
        ));
    }

    #[test]
    fn paths_know_all_their_variables() {
        let variables = [("A".to_owned(), "1".to_owned())].into();
        assert_eq!(expand_all("x/$(A)/$$(B)", &variables), Ok("x/1/$(B)".to_owned()));
        assert_eq!(
            expand_all("x/$(B)", &variables),
            Err(EnvError::Unknown("B".to_owned()))
        );
    }

    #[test]
    fn odd_dollars_stay() {
        let variables = [("A".to_owned(), "1".to_owned())].into();
        for (text, expected) in [
            ("$", "$"),
            ("$(A", "$(A"),
            ("a$A", "a$A"),
            ("$(A)$(A)", "11"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, &variables), expected);
        }
    }
}
