//! Events about pods and the node, written to the API without holding anybody up.
//!
//! A repeated event raises the count of the one that exists. When the queue is full events are dropped and
//! the loss is logged: they inform, nothing depends on them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
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

/// Events waiting to be written.
const QUEUE: usize = 256;
/// Events whose names are remembered so that repetitions find them.
const REMEMBERED: usize = 512;
/// Longest message that Kubernetes takes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Whether an event is good or bad news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal,
    Warning,
}

/// Takes events; cheap to clone.
#[derive(Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<Note>,
}

struct Note {
    object: ObjectReference,
    kind: Kind,
    reason: Cow<'static, str>,
    message: String,
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
        Self { queue }
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
        self.send(Note {
            object,
            kind,
            reason: reason.into(),
            message,
            at: Timestamp::now(),
        });
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
        self.send(Note {
            object,
            kind,
            reason: Cow::Borrowed(reason),
            message,
            at: Timestamp::now(),
        });
    }

    fn send(&self, note: Note) {
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
        let message = shortened(note.message);
        let key = format!(
            "{}/{}/{}/{message}",
            text(&note.object.uid),
            text(&note.object.field_path),
            note.reason
        );
        // Events about what has no namespace are in this one.
        let namespace = note
            .object
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Some((name, count)) = self.names.get_mut(&key) {
            *count += 1;
            let patch = serde_json::json!({"count": *count, "lastTimestamp": Time(note.at)});
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
            count: Some(1),
            reporting_component: Some("palisade-agent".to_owned()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        };
        api.create(&PostParams::default(), &event).await?;
        self.remember(key, name);
        Ok(())
    }

    fn remember(&mut self, key: String, name: String) {
        if self.names.insert(key.clone(), (name, 1)).is_none() {
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

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let cut = shortened("ä".repeat(1000));
        assert!(cut.len() <= MAX_MESSAGE_BYTES && cut.ends_with("ä..."));
        assert_eq!(shortened("short".to_owned()), "short");
    }
}
