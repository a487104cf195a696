//! The service account of a pod, and the volume with its token: what Kubernetes' ServiceAccount admission adds.

use serde_json::{Value, json};

use crate::{metadata::items, pins::CONTAINER_LISTS};

/// How the name of the volume begins; clients know it by that.
pub const TOKEN_VOLUME_PREFIX: &str = "kube-api-access-";

/// Where containers find the token: what client libraries read.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Seconds that the token lives: Kubernetes' own odd number, an hour and some.
const TOKEN_SECONDS: i64 = 3607;

/// Name of the account that the pod runs as.
pub fn account_of(pod: &Value) -> &str {
    let spec = &pod["spec"];
    ["serviceAccountName", "serviceAccount"]
        .iter()
        .filter_map(|field| spec[*field].as_str())
        .find(|name| !name.is_empty())
        .unwrap_or("default")
}

/// Adds `volume`, with the account's token, the cluster's authority and the namespace, and mounts it in every container
/// that has nothing at its path. A pod without containers, and one that does without, stays as it is: `pod` and
/// `account` may both say so, and the pod has the last word. So does the mirror of a static pod, which starts without the
/// API and has no account.
pub fn mount_token(pod: &mut Value, account: Option<&Value>, volume: &str) {
    const FIELD: &str = "automountServiceAccountToken";
    let says = |value: &Value| value[FIELD].as_bool();
    let wanted = says(&pod["spec"]).or(account.and_then(says)).unwrap_or(true);
    let brings_own = items(&pod["spec"]["volumes"]).any(|own| {
        own["name"]
            .as_str()
            .is_some_and(|name| name.starts_with(TOKEN_VOLUME_PREFIX))
    });
    let is_mirror = super::mirror::hash(pod).is_some();
    if !wanted || brings_own || is_mirror || !pod["spec"].is_object() {
        return;
    }
    let mut mounted = false;
    for list in CONTAINER_LISTS {
        let containers = pod["spec"].get_mut(*list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter(|c| c.is_object()) {
            let taken = |mount: &Value| mount["mountPath"].as_str().map(trimmed) == Some(TOKEN_PATH);
            if items(&container["volumeMounts"]).any(taken) {
                continue;
            }
            mounted |= push(
                container,
                "volumeMounts",
                json!({"name": volume, "mountPath": TOKEN_PATH, "readOnly": true}),
            );
        }
    }
    if mounted {
        push(&mut pod["spec"], "volumes", token_volume(volume));
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {
                    "name": api::annotations::ROOT_CA_CONFIG_MAP,
                    "items": [{"key": api::annotations::ROOT_CA_KEY, "path": "ca.crt"}],
                }},
                {"downwardAPI": {"items": [
                    {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                ]}},
            ],
        },
    })
}

/// Adds to a list, which may be missing. What is no list is for the checks to refuse.
fn push(object: &mut Value, key: &str, item: Value) -> bool {
    let Some(object) = object.as_object_mut() else {
        return false;
    };
    let list = object.entry(key).or_insert(Value::Null);
    if list.is_null() {
        *list = json!([]);
    }
    match list.as_array_mut() {
        Some(list) => {
            list.push(item);
            true
        }
        None => false,
    }
}

fn trimmed(path: &str) -> &str {
    path.trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(spec: &Value, account: Option<&Value>) -> Value {
        let mut pod = json!({"spec": spec});
        mount_token(&mut pod, account, "kube-api-access-x");
        pod["spec"].take()
    }

    fn containers() -> Value {
        json!([{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}])
    }

    #[test]
    fn every_container_gets_the_token_where_clients_look() {
        let spec = mounted(
            &json!({"containers": containers(), "initContainers": [{"name": "i"}], "volumes": [{"name": "v"}]}),
            None,
        );
        let mount = json!({"name": "kube-api-access-x", "mountPath": TOKEN_PATH, "readOnly": true});
        assert_eq!(spec["containers"][0]["volumeMounts"], json!([mount]));
        assert_eq!(spec["containers"][1]["volumeMounts"][1], mount);
        assert_eq!(spec["initContainers"][0]["volumeMounts"], json!([mount]));
        let volume = &spec["volumes"][1];
        assert_eq!(volume["name"], "kube-api-access-x");
        let sources = &volume["projected"]["sources"];
        assert_eq!(sources[0]["serviceAccountToken"]["expirationSeconds"], 3607);
        assert_eq!(sources[1]["configMap"]["name"], "kube-root-ca.crt");
    }

    #[test]
    fn pods_and_accounts_may_do_without_and_the_pod_has_the_last_word() {
        let off = json!({"automountServiceAccountToken": false});
        let has = |pod: Option<bool>, account: Option<&Value>| {
            let spec = mounted(
                &json!({"containers": containers(), "automountServiceAccountToken": pod}),
                account,
            );
            spec["volumes"].is_array()
        };
        assert!(has(None, None) && has(Some(true), Some(&off)));
        assert!(!has(Some(false), None) && !has(None, Some(&off)));
        let annotations = json!({"kubernetes.io/config.mirror": "h"});
        let mut mirror =
            json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers()}});
        mount_token(&mut mirror, None, "kube-api-access-x");
        assert!(mirror["spec"]["volumes"].is_null());
    }

    #[test]
    fn what_is_there_already_stays() {
        let taken =
            json!([{"name": "a", "volumeMounts": [{"name": "v", "mountPath": format!("{TOKEN_PATH}/")}]}]);
        let spec = mounted(&json!({"containers": taken}), None);
        assert_eq!(spec["containers"], taken);
        assert!(spec["volumes"].is_null(), "nobody mounts it");
        let own = json!({"containers": containers(), "volumes": [{"name": "kube-api-access-own"}]});
        assert_eq!(mounted(&own, None), own);
        for odd in [
            json!(null),
            json!({}),
            json!({"containers": "x"}),
            json!({"containers": ["x"]}),
        ] {
            assert_eq!(mounted(&odd, None), odd);
        }
    }

    #[test]
    fn the_account_has_two_names_and_a_default() {
        assert_eq!(account_of(&json!({"spec": {}})), "default");
        assert_eq!(account_of(&json!({"spec": {"serviceAccount": "old"}})), "old");
        assert_eq!(
            account_of(&json!({"spec": {"serviceAccountName": "new", "serviceAccount": "old"}})),
            "new"
        );
    }
}
