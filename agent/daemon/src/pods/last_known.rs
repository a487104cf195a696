//! What the API last said of the objects that a container starts with: while it is away, containers that end start again
//! with that.
//!
//! Kept in memory only, for as long as the pod has a task: secrets are on no disk in clear. A new agent knows nothing until
//! it has asked once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::palisade::SandboxProfile;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use crate::policy::chain;

/// How long the API's word is waited for when there is an older one.
const PATIENCE: Duration = Duration::from_secs(10);

/// By UID of the pod.
#[derive(Default)]
pub(crate) struct LastKnown {
    pods: Mutex<BTreeMap<String, OfPod>>,
}

/// Objects by name; `None` for one that was not there.
type Table<K> = BTreeMap<String, Option<K>>;

#[derive(Default)]
pub(crate) struct OfPod {
    config_maps: Table<ConfigMap>,
    secrets: Table<Secret>,
    profiles: Table<SandboxProfile>,
}

/// A kind of object that is kept.
pub(crate) trait Kept: Clone {
    fn table(of_pod: &mut OfPod) -> &mut Table<Self>;
}

impl Kept for ConfigMap {
    fn table(of_pod: &mut OfPod) -> &mut Table<Self> {
        &mut of_pod.config_maps
    }
}

impl Kept for Secret {
    fn table(of_pod: &mut OfPod) -> &mut Table<Self> {
        &mut of_pod.secrets
    }
}

impl Kept for SandboxProfile {
    fn table(of_pod: &mut OfPod) -> &mut Table<Self> {
        &mut of_pod.profiles
    }
}

impl LastKnown {
    /// Begins to keep what is asked for the pod, until [`Self::forget`].
    pub(super) fn begin(&self, uid: &str) {
        self.lock().entry(uid.to_owned()).or_default();
    }

    pub(super) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// The API's answer, or the one before while the API is away. A refusal is an answer.
    pub(super) async fn ask<K: Kept>(
        &self,
        uid: &str,
        name: &str,
        asked: impl Future<Output = Result<Option<K>, kube::Error>>,
    ) -> Result<Option<K>, kube::Error> {
        let before = self
            .lock()
            .get_mut(uid)
            .and_then(|of_pod| K::table(of_pod).get(name).cloned());
        let Some(before) = before else {
            let found = asked.await?;
            self.note(uid, name, &found);
            return Ok(found);
        };
        let why = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(found)) => {
                self.note(uid, name, &found);
                return Ok(found);
            }
            Ok(Err(error)) if !is_away(&error) => return Err(error),
            Ok(Err(error)) => chain(&error),
            Err(_elapsed) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        tracing::warn!(
            uid,
            name,
            error = why,
            "the API is away, taking what it said before"
        );
        Ok(before)
    }

    fn note<K: Kept>(&self, uid: &str, name: &str, found: &Option<K>) {
        if let Some(of_pod) = self.lock().get_mut(uid) {
            K::table(of_pod).insert(name.to_owned(), found.clone());
        }
    }

    /// A panic while it was locked leaves a whole object in or out.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, OfPod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the API server cannot be reached or cannot answer, where all else is its decision.
fn is_away(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code >= 500,
        kube::Error::HyperError(_) | kube::Error::Service(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use serde_json::json;

    use super::*;

    fn secret(value: &str) -> Secret {
        serde_json::from_value(json!({"metadata": {"name": "s"}, "stringData": {"k": value}})).unwrap()
    }

    fn says(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(kube::core::Status {
            code,
            ..kube::core::Status::default()
        }))
    }

    async fn asked(
        known: &LastKnown,
        answer: Result<Option<Secret>, kube::Error>,
    ) -> Result<Option<String>, u16> {
        match known.ask("u", "s", ready(answer)).await {
            Ok(found) => Ok(found.map(|secret| secret.string_data.unwrap()["k"].clone())),
            Err(kube::Error::Api(status)) => Err(status.code),
            Err(_) => Err(0),
        }
    }

    #[tokio::test]
    async fn what_was_said_last_holds_while_the_api_is_away() {
        let known = LastKnown::default();
        known.begin("u");
        let one = Ok(Some("1".to_owned()));
        let unreachable = || Err(kube::Error::Service("connection refused".into()));
        assert_eq!(asked(&known, unreachable()).await, Err(0), "nothing was said yet");
        assert_eq!(asked(&known, Ok(Some(secret("1")))).await, one);
        assert_eq!(asked(&known, unreachable()).await, one);
        assert_eq!(asked(&known, Err(says(503))).await, one);
        // These are answers.
        assert_eq!(asked(&known, Err(says(403))).await, Err(403));
        assert_eq!(
            asked(&known, Ok(Some(secret("2")))).await,
            Ok(Some("2".to_owned()))
        );
        assert_eq!(asked(&known, Ok(None)).await, Ok(None));
        assert_eq!(
            asked(&known, unreachable()).await,
            Ok(None),
            "it is gone for good"
        );
        // The same name of another kind is another object.
        let map = known.ask::<ConfigMap>("u", "s", ready(Err(says(500)))).await;
        assert!(map.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_that_does_not_answer_is_away() {
        let known = LastKnown::default();
        known.begin("u");
        asked(&known, Ok(Some(secret("1")))).await.unwrap();
        let found = known.ask::<Secret>("u", "s", pending()).await.unwrap();
        assert_eq!(found, Some(secret("1")));
    }

    #[tokio::test]
    async fn nothing_is_kept_of_a_pod_that_is_gone() {
        let known = LastKnown::default();
        known.begin("u");
        asked(&known, Ok(Some(secret("1")))).await.unwrap();
        known.forget("u");
        // What was asked before comes after.
        asked(&known, Ok(Some(secret("1")))).await.unwrap();
        assert_eq!(asked(&known, Err(says(503))).await, Err(503));
        assert!(known.lock().is_empty());
    }
}
