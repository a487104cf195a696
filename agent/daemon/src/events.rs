//! Events about pods and the node, written to the API without holding anybody up.
//!
//! A repeated event raises the count of the one that exists. Of one object there are so many and no more ([`correlate`]). When the
//! queue is full events are dropped and the loss is logged: they inform, nothing depends on them.

mod correlate;

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::correlate::{Correlator, Subject, Telling};

/// Events waiting to be written.
const QUEUE: usize = 256;
/// Events whose names are remembered so that repetitions find them.
const REMEMBERED: usize = 512;
/// Longest message that Kubernetes takes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Whether an event is good or bad news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Normal,
    Warning,
}

/// Takes events; cheap to clone.
#[derive(Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<Note>,
    correlator: Arc<Mutex<Correlator>>,
}

struct Note {
    object: ObjectReference,
    kind: Kind,
    reason: Cow<'static, str>,
    telling: Telling,
    at: Timestamp,
}

impl Events {
    /// Starts the task that writes events of `node` until `shutdown`.
    pub(crate) fn start(client: Client, node: String, shutdown: CancellationToken) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let mut writer = Writer {
                client,
                node,
                names: BTreeMap::new(),
                order: VecDeque::new(),
            };
            tokio::select! {
                () = writer.run(notes) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Self::into_queue(queue)
    }

    fn into_queue(queue: mpsc::Sender<Note>) -> Self {
        Self {
            queue,
            correlator: Arc::default(),
        }
    }

    /// An event about a pod, or about one of its containers.
    pub(crate) fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        kind: Kind,
        reason: impl Into<Cow<'static, str>>,
        message: String,
    ) {
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            field_path: container.map(|name| field_path(pod, name)),
            ..ObjectReference::default()
        };
        self.send(object, kind, reason.into(), message);
    }

    /// An event about the node itself.
    pub(crate) fn node(&self, name: &str, kind: Kind, reason: &'static str, message: String) {
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(name.to_owned()),
            // As the kubelet has it, which knows its node by name only.
            uid: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        self.send(object, kind, Cow::Borrowed(reason), message);
    }

    fn send(&self, object: ObjectReference, kind: Kind, reason: Cow<'static, str>, message: String) {
        let subject = Subject {
            uid: object.uid.as_deref().unwrap_or_default(),
            field: object.field_path.as_deref().unwrap_or_default(),
            kind,
            reason: &reason,
        };
        // What a panic would leave half-counted is a count.
        let mut correlator = self.correlator.lock().unwrap_or_else(PoisonError::into_inner);
        let telling = correlator.take(subject, shortened(message), Instant::now());
        drop(correlator);
        let Some(telling) = telling else {
            return tracing::debug!(object = object.name, %reason, "there are too many events of this object");
        };
        let note = Note {
            object,
            kind,
            reason,
            telling,
            at: Timestamp::now(),
        };
        if let Err(error) = self.queue.try_send(note) {
            tracing::warn!(%error, "event dropped");
        }
    }
}

struct Writer {
    client: Client,
    node: String,
    /// Name and count of the event already written for a key.
    names: BTreeMap<String, (String, i32)>,
    order: VecDeque<String>,
}

impl Writer {
    async fn run(&mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            let reason = note.reason.clone();
            if let Err(error) = self.write(note).await {
                tracing::warn!(%error, %reason, "event not written");
            }
        }
    }

    async fn write(&mut self, note: Note) -> Result<(), kube::Error> {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let Telling { key, message, times } = note.telling;
        let message = shortened(message);
        // Events about what has no namespace are in this one.
        let namespace = note
            .object
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Some((name, count)) = self.names.get_mut(&key) {
            *count = count.saturating_add(times);
            let patch =
                serde_json::json!({"count": *count, "lastTimestamp": Time(note.at), "message": message});
            match api
                .patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await
            {
                Ok(_) => return Ok(()),
                // Expired meanwhile: a new one takes its place.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        // Kubernetes' own naming: unique because two events never share object and nanosecond.
        let name = format!("{}.{:x}", text(&note.object.name), note.at.as_nanosecond());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: note.object,
            type_: Some(format!("{:?}", note.kind)),
            reason: Some(note.reason.to_string()),
            message: Some(message),
            source: Some(EventSource {
                component: Some("palisade-agent".to_owned()),
                host: Some(self.node.clone()),
            }),
            first_timestamp: Some(Time(note.at)),
            last_timestamp: Some(Time(note.at)),
            count: Some(times),
            reporting_component: Some("palisade-agent".to_owned()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        };
        api.create(&PostParams::default(), &event).await?;
        self.remember(key, (name, times));
        Ok(())
    }

    fn remember(&mut self, key: String, written: (String, i32)) {
        if self.names.insert(key.clone(), written).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }
}

/// The container's place in the spec, in the form that Kubernetes uses.
fn field_path(pod: &Pod, name: &str) -> String {
    let spec = pod.spec.as_ref();
    let mut inits = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let mut ephemeral = spec
        .iter()
        .flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    let list = if inits.any(|container| container.name == name) {
        "initContainers"
    } else if ephemeral.any(|container| container.name == name) {
        "ephemeralContainers"
    } else {
        "containers"
    };
    format!("spec.{list}{{{name}}}")
}

fn shortened(mut message: String) -> String {
    if message.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES - 3)
            .rev()
            .find(|end| message.is_char_boundary(*end));
        message.truncate(end.unwrap_or_default());
        message.push_str("...");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pod_that_is_told_much_of_does_not_keep_others_from_being_told_of() {
        let pod = |name: &str| -> Pod {
            let pod = serde_json::json!({"metadata": {"name": name, "uid": name},
                "spec": {"containers": [{"name": "main"}]}});
            serde_json::from_value(pod).unwrap()
        };
        // Nobody writes them meanwhile.
        let (queue, mut notes) = mpsc::channel(QUEUE);
        let events = Events::into_queue(queue);
        for number in 0..1000 {
            let message = format!("Readiness probe failed: {number}");
            events.pod(&pod("noisy"), Some("main"), Kind::Warning, "Unhealthy", message);
        }
        events.pod(
            &pod("quiet"),
            Some("main"),
            Kind::Normal,
            "Killing",
            "Stopping".to_owned(),
        );
        drop(events);
        let mut told = BTreeMap::new();
        while let Some(note) = notes.recv().await {
            *told.entry(note.object.name.unwrap_or_default()).or_insert(0) += 1;
        }
        assert_eq!(told, [("noisy".to_owned(), 25), ("quiet".to_owned(), 1)].into());
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let cut = shortened("ä".repeat(1000));
        assert!(cut.len() <= MAX_MESSAGE_BYTES && cut.ends_with("ä..."));
        assert_eq!(shortened("short".to_owned()), "short");
    }
}
