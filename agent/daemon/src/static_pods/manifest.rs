//! From the text of a file to the pod that it asks for. Pure.

use api::{ImageRef, annotations, palisade::SANDBOX_PRESETS};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::pods::env;

/// A pod that a file asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Manifest {
    /// Namespace and name, the node's name included.
    pub(crate) key: (String, String),
    /// Hash of what the file says; the pod's annotation.
    pub(crate) hash: String,
    /// As it is sent to the API.
    pub(crate) pod: Pod,
}

/// Why a file asks for no pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("not valid YAML")]
    Syntax(#[source] Box<serde_saphyr::Error>),
    #[error("not a pod")]
    NotAPod(#[source] serde_json::Error),
    #[error("{0}: apiVersion must be v1 and kind must be Pod")]
    Kind(String),
    #[error("{field} must not be empty")]
    Missing { field: &'static str },
    #[error("{field} cannot be set for a static pod: {why}")]
    Refused { field: &'static str, why: &'static str },
    #[error(
        "the image {image:?} of container {container:?} must name its digest (name@sha256:...): a tag could mean \
         another image at each start"
    )]
    NoDigest { container: String, image: String },
}

/// Reads a manifest for the node `node`.
pub(crate) fn parse(text: &str, node: &str) -> Result<Manifest, ManifestError> {
    // As for kubectl and the kubelet, `0644` is octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let value: Value = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| ManifestError::Syntax(Box::new(error)))?;
    if (value["apiVersion"].as_str(), value["kind"].as_str()) != (Some("v1"), Some("Pod")) {
        return Err(ManifestError::Kind(format!(
            "{}/{}",
            value["apiVersion"], value["kind"]
        )));
    }
    let mut pod: Pod = serde_json::from_value(value.clone()).map_err(ManifestError::NotAPod)?;
    let missing = |field| ManifestError::Missing { field };
    let name = pod.metadata.name.clone().filter(|name| !name.is_empty());
    let name = name.ok_or(missing("metadata.name"))?;
    let namespace = pod.metadata.namespace.clone().filter(|name| !name.is_empty());
    let namespace = namespace.unwrap_or_else(|| "default".to_owned());
    check(&pod)?;
    let hash = hex::encode(Sha256::digest(value.to_string()));
    let name = format!("{name}-{node}");
    pod.metadata.name = Some(name.clone());
    pod.metadata.namespace = Some(namespace.clone());
    pod.status = None;
    let notes = pod.metadata.annotations.get_or_insert_default();
    for (key, note) in [
        (annotations::CONFIG_MIRROR, hash.as_str()),
        (annotations::CONFIG_HASH, hash.as_str()),
        (annotations::CONFIG_SOURCE, "file"),
    ] {
        notes.insert(key.to_owned(), note.to_owned());
    }
    let spec = pod.spec.as_mut().ok_or(missing("spec"))?;
    spec.node_name = Some(node.to_owned());
    // It starts without the API, which is where tokens come from.
    spec.automount_service_account_token = Some(false);
    // Nothing evicts it: only its file takes it away.
    let always = serde_json::from_value(json!({"operator": "Exists", "effect": "NoExecute"}));
    spec.tolerations.get_or_insert_default().extend(always.ok());
    Ok(Manifest {
        key: (namespace, name),
        hash,
        pod,
    })
}

/// What would need the API at the start, or another image at each.
fn check(pod: &Pod) -> Result<(), ManifestError> {
    let refused = |field, why| Err(ManifestError::Refused { field, why });
    let spec = pod
        .spec
        .as_ref()
        .ok_or(ManifestError::Missing { field: "spec" })?;
    if pod.metadata.uid.is_some() || pod.metadata.generate_name.is_some() {
        return refused(
            "metadata.uid and metadata.generateName",
            "the API names what it stores",
        );
    }
    if spec.node_name.is_some() {
        return refused("spec.nodeName", "it is the node that has the file");
    }
    if spec
        .ephemeral_containers
        .as_ref()
        .is_some_and(|list| !list.is_empty())
    {
        return refused("spec.ephemeralContainers", "its file is all there is to it");
    }
    const NO_API: &str = "it starts without the API";
    let account = spec
        .service_account_name
        .as_deref()
        .or(spec.service_account.as_deref());
    if account.is_some_and(|account| !matches!(account, "" | "default")) {
        return refused("spec.serviceAccountName", NO_API);
    }
    if spec
        .image_pull_secrets
        .as_ref()
        .is_some_and(|list| !list.is_empty())
    {
        return refused("spec.imagePullSecrets", NO_API);
    }
    if env::References::of_pod(pod) != env::References::default() {
        return refused("a reference to a ConfigMap or Secret", NO_API);
    }
    let volumes = spec.volumes.iter().flatten();
    if volumes
        .clone()
        .any(|volume| volume.persistent_volume_claim.is_some())
    {
        return refused("spec.volumes[].persistentVolumeClaim", NO_API);
    }
    if volumes.clone().any(|volume| volume.projected.is_some()) {
        return refused("spec.volumes[].projected", NO_API);
    }
    let notes = pod.metadata.annotations.iter().flatten();
    for (key, note) in notes {
        let names_profile = key == annotations::SANDBOX_PROFILE
            || key.starts_with(annotations::CONTAINER_SANDBOX_PROFILE_PREFIX);
        if names_profile && !SANDBOX_PRESETS.contains(&note.as_str()) {
            return refused("a SandboxProfile by name", NO_API);
        }
        if key.starts_with("kubernetes.io/config.") {
            return refused("an annotation kubernetes.io/config.*", "the agent writes it");
        }
    }
    let inits = spec.init_containers.iter().flatten();
    for container in spec.containers.iter().chain(inits) {
        let image = container.image.clone().unwrap_or_default();
        if !image
            .parse::<ImageRef>()
            .is_ok_and(|image| image.digest.is_some())
        {
            return Err(ManifestError::NoDigest {
                container: container.name.clone(),
                image,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(more: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: kube-system\nspec:\n  containers:\n  \
             - {{name: c, image: \"r.example/app@{DIGEST}\"}}\n{more}"
        )
    }

    #[test]
    fn a_file_becomes_a_pod_of_the_node() {
        let read = parse(&manifest(""), "n1").unwrap();
        assert_eq!(read.key, ("kube-system".to_owned(), "web-n1".to_owned()));
        let notes = read.pod.metadata.annotations.clone().unwrap();
        assert_eq!(notes["kubernetes.io/config.mirror"], read.hash);
        assert_eq!(notes["kubernetes.io/config.hash"], read.hash);
        assert_eq!(notes["kubernetes.io/config.source"], "file");
        let spec = read.pod.spec.as_ref().unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("n1"));
        assert_eq!(spec.automount_service_account_token, Some(false));
        assert_eq!(parse(&manifest("# a comment\n"), "n1").unwrap(), read);
        let other = parse(&manifest("  hostname: x\n"), "n1").unwrap();
        assert_ne!(other.hash, read.hash, "another pod");
    }

    #[test]
    fn what_a_static_pod_cannot_have_is_named() {
        let refused = |text: &str, part: &str| {
            let error = parse(text, "n1").expect_err(part);
            let shown = crate::policy::chain(&error);
            assert!(shown.contains(part), "{part}: {shown}");
        };
        for (more, part) in [
            ("  nodeName: n2\n", "spec.nodeName"),
            ("  serviceAccountName: admin\n", "spec.serviceAccountName"),
            ("  imagePullSecrets: [{name: s}]\n", "spec.imagePullSecrets"),
            ("  ephemeralContainers: [{name: e}]\n", "spec.ephemeralContainers"),
            (
                "  volumes: [{name: v, secret: {secretName: s}}]\n",
                "ConfigMap or Secret",
            ),
            (
                "  volumes: [{name: v, configMap: {name: s}}]\n",
                "ConfigMap or Secret",
            ),
            (
                "  volumes: [{name: v, persistentVolumeClaim: {claimName: s}}]\n",
                "persistentVolumeClaim",
            ),
            ("  volumes: [{name: v, projected: {sources: []}}]\n", "projected"),
            (
                "  initContainers: [{name: i, image: \"x@sha256:1\", envFrom: [{secretRef: {name: s}}]}]\n",
                "ConfigMap or Secret",
            ),
            (
                "  initContainers: [{name: i, image: \"busybox:1\"}]\n",
                "must name its digest",
            ),
        ] {
            refused(&manifest(more), part);
        }
        refused(
            &manifest("").replace("  name: web\n", "  name: ''\n"),
            "metadata.name",
        );
        refused(
            &manifest("").replace("kind: Pod", "kind: Secret"),
            "kind must be Pod",
        );
        refused(
            &manifest("").replace(&format!("@{DIGEST}"), ":latest"),
            "must name its digest",
        );
        refused("{", "not valid YAML");
        let noted = |note: &str| {
            manifest("").replace("metadata:\n", &format!("metadata:\n  annotations: {{{note}}}\n"))
        };
        refused(&noted("palisade.dev/sandbox-profile: mine"), "SandboxProfile");
        refused(&noted("palisade.dev/sandbox-profile.c: mine"), "SandboxProfile");
        refused(&noted("kubernetes.io/config.mirror: x"), "kubernetes.io/config.*");
        assert!(parse(&noted("palisade.dev/sandbox-profile: strict"), "n1").is_ok());
    }
}
