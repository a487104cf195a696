//! Brings the image of a container to the node: by the gate's verdict, the container's pull policy and the pod's
//! credentials, with the events that people know from Kubernetes.

use std::{path::Path, time::Duration};

use agent_images::{Keyring, Progress, RootfsLayers};
use api::pull_secret;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;

use super::{Context, steps::StepError, verdict};
use crate::{events::Kind, policy::chain};

/// When the registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PullPolicy {
    /// Before each start.
    Always,
    /// If the image is not here, or came by credentials that the pod does not have.
    IfNotPresent,
    /// Not at all.
    Never,
}

/// Whose image, and why it is wanted.
pub(super) struct Asked<'a> {
    pub(super) pod: &'a Pod,
    /// The pod's directory.
    pub(super) directory: &'a Path,
    pub(super) container: &'a str,
    pub(super) image: &'a str,
    pub(super) policy: PullPolicy,
    /// The container runs already, under an earlier agent: nothing happens that is worth telling.
    pub(super) runs: bool,
}

impl PullPolicy {
    /// The policy of a container; admission has filled it in by the tag that was asked for.
    pub(super) fn of(text: Option<&str>) -> Self {
        match text {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            _ => Self::IfNotPresent,
        }
    }
}

/// Brings a container's image to the node.
pub(super) async fn bring(context: &Context, asked: Asked<'_>) -> Result<RootfsLayers, StepError> {
    let Asked {
        pod,
        directory,
        container,
        image,
        policy,
        runs,
    } = asked;
    let tell = |kind: Kind, reason: &'static str, message: String| {
        if !runs {
            context.events.pod(pod, Some(container), kind, reason, message);
        }
    };
    let now = Timestamp::now();
    let cleared = verdict::clear(&context.verdicts, directory, pod, (container, image), now)?;
    let keys = keyring(context, pod).await?;
    let always = policy == PullPolicy::Always && !runs;
    if !always && let Some(found) = context.images.look(cleared.image(), &keys)? {
        let message = format!("Container image {image:?} already present on machine");
        tell(Kind::Normal, "Pulled", message);
        return Ok(found);
    }
    if policy == PullPolicy::Never {
        let message = format!("Container image {image:?} is not present with pull policy of Never");
        tell(Kind::Warning, "ErrImageNeverPull", message.clone());
        return Err(StepError::NeverPull(message));
    }
    tell(Kind::Normal, "Pulling", format!("Pulling image {image:?}"));
    let progress = Progress::default();
    let pull = context.images.pull(cleared.image(), &keys, always, &progress);
    let tell_every = Duration::from_secs(context.config.pulls.progress_seconds.get().into());
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + tell_every, tell_every);
    tokio::pin!(pull);
    let pulled = loop {
        tokio::select! {
            pulled = &mut pull => break pulled?,
            _ = ticks.tick() => tell(Kind::Normal, "Pulling", so_far(image, &progress)),
        }
    };
    let message = format!(
        "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {} bytes.",
        go_duration(pulled.took),
        go_duration(pulled.with_waiting),
        pulled.size
    );
    tell(Kind::Normal, "Pulled", message);
    Ok(pulled.rootfs)
}

/// The credentials that a pod names. A secret that is not there is told and passed over, as by a kubelet: the image
/// may be everybody's.
async fn keyring(context: &Context, pod: &Pod) -> Result<Keyring, StepError> {
    let spec = pod.spec.as_ref();
    let named = spec.and_then(|spec| spec.image_pull_secrets.as_ref());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let mut keys = Keyring::anonymous();
    let mut missing = Vec::new();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    for name in named.into_iter().flatten().map(|named| named.name.as_str()) {
        let found = context.last_known.ask(uid, name, secrets.get_opt(name));
        let Some(secret) = found.await? else {
            missing.push(name);
            continue;
        };
        if let Some(found) = pull_secret::of(&secret) {
            keys.add(&found).map_err(|source| StepError::PullSecret {
                name: name.to_owned(),
                source,
            })?;
        }
    }
    if !missing.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        tracing::debug!(namespace, message);
        let reason = "FailedToRetrieveImagePullSecret";
        context.events.pod(pod, None, Kind::Warning, reason, message);
    }
    Ok(keys)
}

/// Events about a pull that failed, in the kubelet's words.
pub(super) fn failure_events(image: &str, error: &StepError) -> Vec<String> {
    match error.image_reason() {
        reason @ "ErrImageNeverPull" => vec![format!("Error: {reason}")],
        reason => vec![
            format!("Failed to pull image {image:?}: {}", chain(error)),
            format!("Error: {reason}"),
        ],
    }
}

fn so_far(image: &str, progress: &Progress) -> String {
    let (arrived, expected) = (progress.arrived(), progress.expected());
    match arrived.saturating_mul(100).checked_div(expected) {
        Some(percent) => format!("Pulling image {image:?}: {arrived} of {expected} bytes ({percent} %)"),
        None => format!("Pulling image {image:?}: waiting for its registry or for other pulls"),
    }
}

/// The way Go prints a duration that was cut to milliseconds: `850ms`, `1.2s`, `1m2.5s`.
fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let (hours, minutes, rest) = (millis / 3_600_000, millis / 60_000 % 60, millis % 60_000);
    if millis < 1000 {
        return if millis == 0 {
            "0s".to_owned()
        } else {
            format!("{millis}ms")
        };
    }
    let fraction = format!("{:03}", rest % 1000);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    let seconds = format!("{}{dot}{fraction}s", rest / 1000);
    match (hours, minutes) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_gos() {
        let shown =
            [0, 1, 850, 1200, 2000, 62_500, 3_600_000].map(|ms| go_duration(Duration::from_millis(ms)));
        assert_eq!(shown, ["0s", "1ms", "850ms", "1.2s", "2s", "1m2.5s", "1h0m0s"]);
    }

    #[test]
    fn policies_are_read_as_the_api_writes_them() {
        let of = |text| PullPolicy::of(Some(text));
        assert_eq!(
            (
                of("Always"),
                of("IfNotPresent"),
                of("Never"),
                PullPolicy::of(None)
            ),
            (
                PullPolicy::Always,
                PullPolicy::IfNotPresent,
                PullPolicy::Never,
                PullPolicy::IfNotPresent
            )
        );
    }
}
