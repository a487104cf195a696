//! Tokens of service accounts for the volumes of pods: asked for, kept, and renewed before they end.
//!
//! A token is bound to its pod, so it ends with it; what is kept here saves the API server from being asked at every
//! look at the volumes. A new agent asks anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

/// Life of a token whose volume does not say: Kubernetes' default.
const DEFAULT_SECONDS: i64 = 3600;
/// A token is renewed when this part of its life is over.
const RENEW_PERCENT: i32 = 80;
/// Margin before the end within which a token that could not be renewed is not shown any more.
const MARGIN: SignedDuration = SignedDuration::from_secs(10);

/// A token that a volume asks for. Volumes of a pod that ask for the same share it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wish {
    /// Empty for the API server.
    pub(crate) audience: String,
    pub(crate) seconds: i64,
}

impl Wish {
    pub(crate) fn of(source: &k8s_openapi::api::core::v1::ServiceAccountTokenProjection) -> Self {
        Self {
            audience: source.audience.clone().unwrap_or_default(),
            seconds: source.expiration_seconds.unwrap_or(DEFAULT_SECONDS),
        }
    }
}

/// Tokens of one pod.
pub(crate) type OfPod = BTreeMap<Wish, String>;

/// What the API said to each wish.
pub(crate) type Answers = BTreeMap<Wish, Result<String, kube::Error>>;

/// The tokens that this node holds, by UID of the pod.
#[derive(Default)]
pub(crate) struct Tokens {
    held: Mutex<BTreeMap<String, BTreeMap<Wish, Held>>>,
}

#[derive(Clone)]
struct Held {
    token: String,
    renew_at: Timestamp,
    ends_at: Timestamp,
}

impl Tokens {
    /// The tokens that the volumes of `pod` ask for, new ones where the old ones are about to end. One that is refused keeps
    /// none of the others.
    pub(crate) async fn of(&self, client: &Client, pod: &Pod) -> Answers {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut all = Answers::new();
        for wish in wishes(pod) {
            let now = Timestamp::now();
            let held = self.lock().get(&uid).and_then(|held| held.get(&wish)).cloned();
            let token = match held {
                Some(held) if now < held.renew_at => Ok(held.token),
                held => match request(client, pod, &wish, now).await {
                    Ok(fresh) => {
                        let token = fresh.token.clone();
                        self.lock()
                            .entry(uid.clone())
                            .or_default()
                            .insert(wish.clone(), fresh);
                        Ok(token)
                    }
                    // It is asked for again soon; until it ends the old one is good.
                    Err(error) => match held.filter(|held| now < held.ends_at) {
                        Some(held) => {
                            tracing::warn!(%error, pod = pod.metadata.name, "a token cannot be renewed");
                            Ok(held.token)
                        }
                        None => Err(error),
                    },
                },
            };
            all.insert(wish, token);
        }
        all
    }

    /// Forgets a pod.
    pub(crate) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// A panic while it was locked leaves a whole token in or out.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, BTreeMap<Wish, Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the volumes of `pod` ask for.
fn wishes(pod: &Pod) -> BTreeSet<Wish> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let projected = volumes.filter_map(|volume| volume.projected.as_ref());
    let sources = projected.flat_map(|projected| projected.sources.iter().flatten());
    let tokens = sources.filter_map(|source| source.service_account_token.as_ref());
    tokens.map(Wish::of).collect()
}

async fn request(client: &Client, pod: &Pod, wish: &Wish, now: Timestamp) -> Result<Held, kube::Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref())
        .unwrap_or("default");
    let wanted = TokenRequest {
        metadata: ObjectMeta::default(),
        spec: TokenRequestSpec {
            audiences: (!wish.audience.is_empty())
                .then(|| wish.audience.clone())
                .into_iter()
                .collect(),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
            expiration_seconds: Some(wish.seconds),
        },
        status: None,
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let made: TokenRequest = accounts
        .create_subresource("token", account, &PostParams::default(), &wanted)
        .await?;
    let status = made
        .status
        .ok_or_else(|| kube::Error::SerdeError(serde::de::Error::custom("the answer has no token")))?;
    // The server may give less than was asked for.
    let ends_at = status.expiration_timestamp.0;
    Ok(Held {
        token: status.token,
        renew_at: renewal(now, ends_at),
        ends_at: ends_at.saturating_sub(MARGIN).unwrap_or(now),
    })
}

/// When a token that was made now is renewed.
fn renewal(now: Timestamp, ends_at: Timestamp) -> Timestamp {
    let life = ends_at.duration_since(now);
    now.saturating_add(life * RENEW_PERCENT / 100).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_are_renewed_when_four_fifths_of_their_life_are_over() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let at = |seconds| now + SignedDuration::from_secs(seconds);
        assert_eq!(renewal(now, at(1000)), at(800));
        assert!(
            renewal(now, at(-5)) <= now,
            "one that has ended is renewed at once"
        );
    }

    #[test]
    fn volumes_that_ask_for_the_same_share_a_token() {
        let source = |audience: &str| json!({"serviceAccountToken": {"path": "t", "audience": audience}});
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [
            {"name": "a", "projected": {"sources": [source(""), source("vault")]}},
            {"name": "b", "projected": {"sources": [source("vault"), {"secret": {"name": "s"}}]}},
            {"name": "c", "emptyDir": {}}]}}))
        .unwrap();
        let audiences: Vec<String> = wishes(&pod).into_iter().map(|wish| wish.audience).collect();
        assert_eq!(audiences, ["", "vault"]);
    }
}
