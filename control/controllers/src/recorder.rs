//! Events: what a loop did or could not do, for `kubectl describe`.
//!
//! A repeated event raises the count of the one before. Recording never fails the work that it reports.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

/// Recent events that repetitions are matched with. Forgetting one costs a second event, nothing else.
const MAX_REMEMBERED: usize = 1024;

/// Longest message; Kubernetes allows 1024 bytes.
const MAX_MESSAGE_CHARS: usize = 1000;

/// Whether an event is good news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

/// Writes the events of one component.
#[derive(Clone)]
pub(crate) struct Recorder {
    client: Client,
    component: &'static str,
    recent: Arc<Mutex<HashMap<Sameness, Written>>>,
}

/// Two events with equal values are repetitions.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Sameness {
    kind: String,
    uid: String,
    severity: Severity,
    reason: &'static str,
    message: String,
}

#[derive(Clone)]
struct Written {
    name: String,
    count: i32,
}

impl Recorder {
    pub(crate) fn new(client: Client, component: &'static str) -> Self {
        Self {
            client,
            component,
            recent: Arc::default(),
        }
    }

    /// Records an event about `object`.
    pub(crate) async fn record<K>(&self, object: &K, severity: Severity, reason: &'static str, message: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        let message: String = message.chars().take(MAX_MESSAGE_CHARS).collect();
        let about = object.object_ref(&());
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let sameness = Sameness {
            kind: K::kind(&()).into_owned(),
            uid: object.uid().unwrap_or_default(),
            severity,
            reason,
            message,
        };
        if let Some(written) = self.raise_count(&api, &sameness).await {
            self.remember(sameness, written);
            return;
        }
        let event = self.event(about, namespace, &sameness, Timestamp::now());
        match api.create(&PostParams::default(), &event).await {
            Ok(created) => self.remember(
                sameness,
                Written {
                    name: created.name_any(),
                    count: 1,
                },
            ),
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    reason,
                    "event was not recorded"
                );
            }
        }
    }

    /// Counts a repetition on the event that is there; `None` where there is none any more.
    async fn raise_count(&self, api: &Api<Event>, sameness: &Sameness) -> Option<Written> {
        let mut written = {
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.get(sameness).cloned()?
        };
        written.count = written.count.saturating_add(1);
        let patch = json!({"count": written.count, "lastTimestamp": Time(Timestamp::now())});
        let patched = api
            .patch(&written.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        patched.ok().map(|_| written)
    }

    fn remember(&self, sameness: Sameness, written: Written) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= MAX_REMEMBERED {
            recent.clear();
        }
        recent.insert(sameness, written);
    }

    fn event(&self, about: ObjectReference, namespace: String, sameness: &Sameness, now: Timestamp) -> Event {
        let name = about.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                // Nanoseconds make the name unique, as in Kubernetes.
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace),
                ..Default::default()
            },
            involved_object: about,
            type_: Some(format!("{:?}", sameness.severity)),
            reason: Some(sameness.reason.to_owned()),
            message: Some(sameness.message.clone()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            source: Some(EventSource {
                component: Some(self.component.to_owned()),
                host: None,
            }),
            reporting_component: Some(self.component.to_owned()),
            ..Default::default()
        }
    }
}
