//! Environment of a container, as Kubernetes resolves it. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::host_paths::HostPath;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret},
};

use crate::config::ApiAddress;

use super::{
    claims::Claimed,
    resources::{self, NodeAmounts},
    tokens,
};

/// Search path of a container whose image does not set one: what container engines use.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Kubernetes' words in messages.
const CONFIG_MAP: &str = "configmap";
const SECRET: &str = "secret";

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

/// Names of config maps and secrets that something of a pod refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct References {
    pub(crate) config_maps: BTreeSet<String>,
    pub(crate) secrets: BTreeSet<String>,
}

impl References {
    /// Of everything that the pod has.
    pub(crate) fn of_pod(pod: &Pod) -> Self {
        Self::of_volumes(pod).and(Self::of_environments(pod))
    }

    /// Of all its containers' environments.
    pub(crate) fn of_environments(pod: &Pod) -> Self {
        let containers = super::steps::containers(pod);
        let each = containers.iter().map(|container| Self::of_environment(container));
        each.fold(Self::default(), Self::and)
    }

    /// Of one container's environment: it starts without whatever else the pod refers to.
    pub(crate) fn of_environment(container: &Container) -> Self {
        let mut own = Self::default();
        for from in container.env_from.iter().flatten() {
            own.config_maps
                .extend(from.config_map_ref.iter().map(|r| r.name.clone()));
            own.secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
        }
        let variables = container.env.iter().flatten();
        for source in variables.filter_map(|variable| variable.value_from.as_ref()) {
            own.config_maps
                .extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
            own.secrets
                .extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
        }
        own
    }

    /// Of its volumes.
    pub(crate) fn of_volumes(pod: &Pod) -> Self {
        let mut own = Self::default();
        let volumes = || pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let projected = volumes().filter_map(|volume| volume.projected.as_ref());
        for source in projected.flat_map(|projected| projected.sources.iter().flatten()) {
            own.config_maps
                .extend(source.config_map.iter().map(|source| source.name.clone()));
            own.secrets
                .extend(source.secret.iter().map(|source| source.name.clone()));
        }
        for volume in volumes() {
            own.config_maps
                .extend(volume.config_map.iter().map(|source| source.name.clone()));
            let secrets = volume.secret.iter();
            own.secrets
                .extend(secrets.filter_map(|source| source.secret_name.clone()));
        }
        own
    }

    fn and(mut self, other: Self) -> Self {
        self.config_maps.extend(other.config_maps);
        self.secrets.extend(other.secrets);
        self
    }
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
        let config_map = config_map(objects, &reference.name, optional)?;
        let value = config_map.and_then(|config_map| config_map.data.as_ref()?.get(&reference.key));
        return match value {
            None if !optional => Err(EnvError::MissingKey {
                kind: CONFIG_MAP,
                namespace: namespace(),
                name: reference.name.clone(),
                key: reference.key.clone(),
            }),
            value => Ok(value.cloned()),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let secret = secret(objects, &reference.name, optional)?;
        let value = secret.and_then(|secret| secret.data.as_ref()?.get(&reference.key));
        return match value {
            None if !optional => Err(EnvError::MissingKey {
                kind: SECRET,
                namespace: namespace(),
                name: reference.name.clone(),
                key: reference.key.clone(),
            }),
            // Of its others nothing is asked: they may be keys and certificates in binary.
            value => value
                .map(|value| secret_text(&reference.name, &reference.key, value))
                .transpose(),
        };
    }
    if let Some(reference) = &source.field_ref {
        return field(pod, &reference.field_path, addresses).map(Some);
    }
    Err(EnvError::Source(variable.to_owned()))
}

/// Every entry of a config map.
fn config_map_values(
    objects: &Objects,
    name: &str,
    optional: bool,
) -> Result<BTreeMap<String, String>, EnvError> {
    let config_map = config_map(objects, name, optional)?;
    let values = config_map.and_then(|config_map| config_map.data.clone());
    Ok(values.unwrap_or_default())
}

/// Every entry of a secret, all of which must be text.
fn secret_values(
    objects: &Objects,
    name: &str,
    optional: bool,
) -> Result<BTreeMap<String, String>, EnvError> {
    let entries = secret(objects, name, optional)?.and_then(|secret| secret.data.as_ref());
    let entries = entries.into_iter().flatten();
    entries
        .map(|(key, value)| Ok((key.clone(), secret_text(name, key, value)?)))
        .collect()
}

fn config_map<'a>(
    objects: &'a Objects,
    name: &str,
    optional: bool,
) -> Result<Option<&'a ConfigMap>, EnvError> {
    let found = objects.config_maps.get(name).and_then(Option::as_ref);
    unless_missing(found, CONFIG_MAP, name, optional)
}

fn secret<'a>(objects: &'a Objects, name: &str, optional: bool) -> Result<Option<&'a Secret>, EnvError> {
    let found = objects.secrets.get(name).and_then(Option::as_ref);
    unless_missing(found, SECRET, name, optional)
}

fn unless_missing<'a, K>(
    found: Option<&'a K>,
    kind: &'static str,
    name: &str,
    optional: bool,
) -> Result<Option<&'a K>, EnvError> {
    match found {
        None if !optional => Err(EnvError::Missing {
            kind,
            name: name.to_owned(),
        }),
        found => Ok(found),
    }
}

fn secret_text(name: &str, key: &str, value: &ByteString) -> Result<String, EnvError> {
    match std::str::from_utf8(&value.0) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(EnvError::NotText {
            kind: SECRET,
            name: name.to_owned(),
            key: key.to_owned(),
        }),
    }
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

/// As Go quotes text (`strconv.Quote`), which is what readers of the file undo.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0b' => quoted.push_str("\\v"),
            '\x0c' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            other if is_print(other) => quoted.push(other),
            other => quoted.push_str(&match u32::from(other) {
                byte @ ..0x80 => format!("\\x{byte:02x}"),
                short @ ..0x1_0000 => format!("\\u{short:04x}"),
                long => format!("\\U{long:08x}"),
            }),
        }
    }
    quoted.push('"');
    quoted
}

/// Go's `IsPrint`: letters, marks, numbers, punctuation, symbols and the space. The standard library escapes all others too,
/// and at the beginning of a text some marks.
fn is_print(character: char) -> bool {
    match character.is_ascii() {
        true => matches!(character, ' '..='~'),
        false => {
            let within = format!(" {character}");
            within.escape_debug().eq(within.chars())
        }
    }
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
    fn a_variable_asks_nothing_of_the_other_entries_of_its_secret() {
        let secret = json!({"data": {"password": "c2VjcmV0", "keystore": "/v8A"}});
        let objects = Objects {
            secrets: [("s".to_owned(), Some(serde_json::from_value(secret).unwrap()))].into(),
            ..Objects::default()
        };
        let by_key = |key: &str| {
            let source = json!({"secretKeyRef": {"name": "s", "key": key}});
            json!({"name": "c", "env": [{"name": "V", "valueFrom": source}]})
        };
        let environment = resolve(by_key("password"), &objects).unwrap();
        assert_eq!(environment.get("V").map(String::as_str), Some("secret"));
        let not_text = |found: Result<_, EnvError>| match found {
            Err(EnvError::NotText { key, .. }) => key == "keystore",
            _ => false,
        };
        assert!(not_text(resolve(by_key("keystore"), &objects)));
        let whole = json!({"name": "c", "envFrom": [{"secretRef": {"name": "s"}}]});
        assert!(not_text(resolve(whole, &objects)), "all of it is asked for");
        let missing = resolve(by_key("token"), &objects).unwrap_err();
        assert_eq!(missing.to_string(), "couldn't find key token in secret shop/s");
    }

    #[test]
    fn a_container_refers_to_what_its_own_environment_names() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "containers": [
                {"name": "plain", "env": [{"name": "A", "value": "1"}],
                 "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
                {"name": "rich", "envFrom": [{"configMapRef": {"name": "m"}}, {"secretRef": {"name": "s"}}],
                 "env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "t", "key": "k"}}}]},
            ],
            "volumes": [{"name": "v", "secret": {"secretName": "w"}},
                        {"name": "x", "projected": {"sources": [{"configMap": {"name": "n"}}]}}],
        }}))
        .unwrap();
        let shown = |references: References| {
            let all = [references.config_maps, references.secrets];
            all.map(|names| names.into_iter().collect::<Vec<_>>().join(" "))
        };
        let containers = &pod.spec.as_ref().unwrap().containers;
        assert_eq!(shown(References::of_environment(&containers[0])), ["", ""]);
        assert_eq!(shown(References::of_environment(&containers[1])), ["m", "s t"]);
        assert_eq!(shown(References::of_volumes(&pod)), ["n", "w"]);
        assert_eq!(shown(References::of_pod(&pod)), ["m n", "s t w"]);
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

    /// Expectations as Go's `%q` prints them.
    #[test]
    fn annotations_are_quoted_as_go_does() {
        for (text, expected) in [
            ("plain \"text\" \\ it's", r#""plain \"text\" \\ it's""#),
            ("\n\r\t\u{7}\u{8}\u{b}\u{c}", r#""\n\r\t\a\b\v\f""#),
            ("\0\u{1b}\u{7f}", r#""\x00\x1b\x7f""#),
            (
                "\u{85}\u{a0}\u{ad}\u{200b}\u{feff}",
                r#""\u0085\u00a0\u00ad\u200b\ufeff""#,
            ),
            ("\u{e0001}", r#""\U000e0001""#),
            ("äe\u{301}世🙂", "\"äe\u{301}世🙂\""),
        ] {
            assert_eq!(quoted(text), expected);
        }
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
