//! What the API says of the objects that a pod refers to: config maps, secrets, and tokens of its account.
//!
//! Each is asked for by itself: one that is refused keeps nobody from having the others.

use std::collections::BTreeMap;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{Api, Client};

use super::{
    env::{Objects, References},
    last_known::LastKnown,
    tokens::Tokens,
};

/// What to do without the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Or {
    /// What it said before counts.
    LastKnown,
    /// There is nothing to go by.
    Fail,
}

/// What the API gave of what it was asked for.
pub(super) struct Read {
    pub(super) objects: Objects,
    /// Why it did not give the rest, which is not among the objects, not even as missing.
    pub(super) failed: Vec<kube::Error>,
}

impl Read {
    /// All that was asked for.
    pub(super) fn whole(self) -> Result<Objects, kube::Error> {
        match self.failed.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(self.objects),
        }
    }
}

/// Config maps and secrets that something of the pod refers to.
pub(super) async fn objects(
    (client, known): (&Client, &LastKnown),
    pod: &Pod,
    references: References,
    or: Or,
) -> Read {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let hidden: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let maps = join_all(references.config_maps.into_iter().map(|name| async {
        let asked = maps.get_opt(&name);
        let found = match or {
            Or::LastKnown => known.ask(uid, &name, asked).await,
            Or::Fail => asked.await,
        };
        (name, found)
    }));
    let hidden = join_all(references.secrets.into_iter().map(|name| async {
        let asked = hidden.get_opt(&name);
        let found = match or {
            Or::LastKnown => known.ask(uid, &name, asked).await,
            Or::Fail => asked.await,
        };
        (name, found)
    }));
    let (config_maps, secrets) = futures::join!(maps, hidden);
    let mut failed = Vec::new();
    let objects = Objects {
        config_maps: given(config_maps, &mut failed),
        secrets: given(secrets, &mut failed),
        ..Objects::default()
    };
    Read { objects, failed }
}

/// What volumes show, tokens among it.
pub(super) async fn of_volumes(api: (&Client, &LastKnown), tokens: &Tokens, pod: &Pod) -> Read {
    let tokens = tokens.of(api.0, pod);
    let objects = objects(api, pod, References::of_volumes(pod), Or::Fail);
    let (Read { objects, mut failed }, tokens) = futures::join!(objects, tokens);
    let tokens = given(tokens, &mut failed);
    let objects = Objects { tokens, ..objects };
    Read { objects, failed }
}

/// The answers; what is none goes to `failed`.
fn given<K: Ord, V>(
    asked: impl IntoIterator<Item = (K, Result<V, kube::Error>)>,
    failed: &mut Vec<kube::Error>,
) -> BTreeMap<K, V> {
    let mut answers = BTreeMap::new();
    for (key, answer) in asked {
        match answer {
            Ok(value) => drop(answers.insert(key, value)),
            Err(error) => failed.push(error),
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use axum::{Json, http::StatusCode, http::Uri};
    use serde_json::{Value, json};

    use super::*;

    /// An API server that refuses all whose path has `refused` in it.
    async fn serve(refused: &'static str) -> Client {
        let handler = move |uri: Uri| async move {
            let path = uri.path();
            let status = |code: u16| {
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                "reason": if code == 404 { "NotFound" } else { "Forbidden" }})
            };
            let (code, body): (u16, Value) = match path {
                _ if path.contains(refused) => (403, status(403)),
                _ if path.ends_with("/token") => {
                    let status = json!({"token": "signed", "expirationTimestamp": "2100-01-01T00:00:00Z"});
                    (
                        201,
                        json!({"metadata": {}, "spec": {"audiences": []}, "status": status}),
                    )
                }
                _ if path.ends_with("/gone") => (404, status(404)),
                _ => (200, json!({"metadata": {"name": "o"}})),
            };
            (StatusCode::from_u16(code).unwrap(), Json(body))
        };
        let router = axum::Router::new().fallback(handler);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        api_client::connect(kube::Config::new(url.parse().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn what_is_refused_keeps_nobody_from_having_the_rest() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [], "volumes": [
                {"name": "m", "configMap": {"name": "m"}},
                {"name": "gone", "configMap": {"name": "gone"}},
                {"name": "s", "secret": {"secretName": "s"}},
                {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
            ]},
        }))
        .unwrap();
        let known = LastKnown::default();
        for (refused, given) in [
            ("/configmaps/m", [1, 1, 1]),
            ("/secrets/", [2, 0, 1]),
            ("/serviceaccounts/", [2, 1, 0]),
        ] {
            let client = serve(refused).await;
            let read = of_volumes((&client, &known), &Tokens::default(), &pod).await;
            let Objects {
                config_maps,
                secrets,
                tokens,
                ..
            } = &read.objects;
            let sizes = [config_maps.len(), secrets.len(), tokens.len()];
            assert_eq!((sizes, read.failed.len()), (given, 1), "{refused}");
            assert_eq!(
                config_maps.get("gone"),
                Some(&None),
                "that it is gone is an answer"
            );
            assert!(read.whole().is_err(), "a pod starts with all of it or not");
        }
    }
}
