//! Secrets with credentials for registries: which there are, and what tells one version from another.

use k8s_openapi::api::core::v1::Secret;

/// The two forms in which secrets hold credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretForm {
    /// `kubernetes.io/dockerconfigjson`: the key `.dockerconfigjson` holds `{"auths": {HOST: ...}}`.
    ConfigJson,
    /// `kubernetes.io/dockercfg`: the key `.dockercfg` holds `{HOST: ...}`.
    Cfg,
}

/// A secret that holds credentials for registries.
pub struct PullSecret<'a> {
    /// Tells this version of the secret from all others; says nothing of what it holds.
    pub origin: String,
    /// How to read it.
    pub form: SecretForm,
    /// What it holds.
    pub content: &'a [u8],
}

/// The credentials in `secret`; nothing if it is a secret of another kind.
pub fn of(secret: &Secret) -> Option<PullSecret<'_>> {
    let (form, key) = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => (SecretForm::ConfigJson, ".dockerconfigjson"),
        Some("kubernetes.io/dockercfg") => (SecretForm::Cfg, ".dockercfg"),
        _ => return None,
    };
    let metadata = &secret.metadata;
    Some(PullSecret {
        origin: format!(
            "{}/{}",
            metadata.uid.as_deref()?,
            metadata.resource_version.as_deref()?
        ),
        form,
        content: secret.data.as_ref()?.get(key)?.0.as_slice(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_secrets_for_registries_count() {
        let secret = |kind: &str, key: &str| -> Secret {
            let data = json!({key: "e30="});
            let metadata = json!({"name": "s", "uid": "u", "resourceVersion": "7"});
            serde_json::from_value(json!({"metadata": metadata, "type": kind, "data": data})).unwrap()
        };
        let found = secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson");
        let found = of(&found).unwrap();
        assert_eq!(
            (found.origin.as_str(), found.form, found.content),
            ("u/7", SecretForm::ConfigJson, &b"{}"[..])
        );
        assert!(of(&secret("kubernetes.io/dockercfg", ".dockercfg")).is_some());
        assert!(of(&secret("Opaque", ".dockerconfigjson")).is_none());
        assert!(of(&secret("kubernetes.io/dockercfg", ".dockerconfigjson")).is_none());
    }
}
