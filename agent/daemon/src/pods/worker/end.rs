//! How the task of a pod keeps the pod's end, for an agent that is started before the API has heard of it.

use std::{io, path::Path};

use agent_plan::{Cause, Ending, Wanted, comes_back, evict, is_settled, outlives_its_node};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::Worker;
use crate::{
    pods::{
        ended::{self, Ended},
        observe,
        status::Told,
    },
    policy::chain,
};

impl Worker {
    /// What an earlier agent knew of the pod's end, and may not have told. Returns the status that it would have told.
    pub(super) fn recall_end(&mut self) -> Option<PodStatus> {
        let grace = observe::wanted(self.pod.as_deref(), None, &self.seen).grace;
        self.kept = recall(&self.id.directory(&self.context.config), grace, Timestamp::now());
        if self.is_heard() {
            return None;
        }
        let told = self.kept.told.as_ref().map(|told| told.status.clone());
        if self.pod.as_deref().is_some_and(|pod| goes_on(pod, &self.kept)) {
            tracing::info!(pod = %self.id.name, namespace = %self.id.namespace, "was ended by its node, and begins anew");
            return told;
        }
        if let Some(order) = self.kept.evicted.clone() {
            evict(&mut self.seen, order);
        }
        if let Some(told) = self.kept.told.clone() {
            tracing::info!(pod = %self.id.name, namespace = %self.id.namespace, "ended before this agent was started");
            self.reported = Some(told.status.clone());
            self.reported_sandbox = told.sandbox.clone();
            self.reporter.send(told);
        }
        told
    }

    /// Keeps how the pod ends before it is taken apart, until the API has it. Who is deleted never runs again.
    pub(super) async fn keep_end(&mut self, wanted: &Wanted) {
        if wanted.ending != Ending::No {
            return;
        }
        let ended = match self.is_heard() {
            true => Ended::default(),
            false => Ended {
                evicted: self.seen.eviction.clone(),
                told: self.reported.clone().filter(is_settled).map(|status| Told {
                    status,
                    sandbox: self.reported_sandbox.clone(),
                }),
            },
        };
        if ended == self.kept {
            return;
        }
        let (directory, written) = (self.id.directory(&self.context.config), ended.clone());
        let kept = tokio::task::spawn_blocking(move || ended::write(&directory, &written)).await;
        match kept.unwrap_or_else(|died| Err(io::Error::other(died))) {
            Ok(()) => self.kept = ended,
            // On a full disk what the pod has written must go first; it is tried again with each step.
            Err(error) => tracing::warn!(pod = %self.id.name, %error, "how the pod ends is not kept"),
        }
    }

    /// Whether the API has it that the pod is over.
    fn is_heard(&self) -> bool {
        let status = self.pod.as_ref().and_then(|pod| pod.status.as_ref());
        status.is_some_and(is_settled)
    }
}

/// Whether the pod begins anew, although its node has ended it.
fn goes_on(pod: &Pod, kept: &Ended) -> bool {
    match (&kept.told, &kept.evicted) {
        (Some(told), _) => comes_back(pod, &told.status),
        (None, Some(order)) => outlives_its_node(pod) && !matches!(order.cause, Cause::Refused { .. }),
        (None, None) => false,
    }
}

/// The pod's end, as it was kept. One that cannot be read ends the pod all the same: nothing of it must run a second time.
fn recall(directory: &Path, grace: SignedDuration, now: Timestamp) -> Ended {
    ended::read(directory).unwrap_or_else(|error| {
        tracing::error!(error = chain(&error), "the pod counts as ended");
        if let Err(error) = ended::set_aside(directory) {
            tracing::error!(directory = %directory.display(), %error, "what cannot be read will be replaced");
        }
        Ended::unknown(grace, now)
    })
}

#[cfg(test)]
mod tests {
    use agent_plan::{Facts, Seen, plan, render};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_whose_end_cannot_be_read_starts_nothing_and_is_told_as_failed() {
        let base = tempfile::tempdir().unwrap();
        let now = Timestamp::UNIX_EPOCH;
        for policy in ["Never", "OnFailure", "Always"] {
            let pod = json!({
                "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
                "spec": {"restartPolicy": policy, "containers": [{"name": "main"}]},
            });
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let mut seen = Seen::default();
            let wanted = observe::wanted(Some(&pod), None, &seen);
            let starts = |seen: &Seen| !plan(&wanted, seen, now).steps.is_empty();
            assert!(recall(base.path(), wanted.grace, now).is_nothing());
            assert!(starts(&seen), "nothing is kept: it is a new pod");

            std::fs::write(base.path().join("ended.json"), "{\"evicted\":").unwrap();
            let ended = recall(base.path(), wanted.grace, now);
            let order = ended.evicted.expect("an end");
            assert_eq!(order.grace, SignedDuration::from_secs(30));
            evict(&mut seen, order);
            assert!(!starts(&seen), "{policy}");
            let facts = Facts {
                host_addresses: vec![],
                pod_addresses: vec![],
                now,
            };
            let status = render(&pod, &wanted, &seen, &facts);
            assert_eq!(status.phase.as_deref(), Some("Failed"), "{policy}");
            assert!(status.message.unwrap().contains("cannot be read"));
            std::fs::remove_file(base.path().join("ended.json")).unwrap();
        }
    }

    #[test]
    fn a_static_pod_goes_on_unless_it_had_ended_by_itself() {
        let pod = |policy: &str, annotation: &str| -> Pod {
            let pod = json!({"metadata": {"annotations": {annotation: "h"}},
                "spec": {"restartPolicy": policy, "containers": []}});
            serde_json::from_value(pod).unwrap()
        };
        let of_file = pod("Always", "kubernetes.io/config.mirror");
        let order = agent_plan::Eviction {
            cause: Cause::NodeEnds,
            message: String::new(),
            grace: SignedDuration::ZERO,
            at: Timestamp::UNIX_EPOCH,
        };
        let ended = |phase: &str, reason: Option<&str>| Ended {
            evicted: Some(order.clone()),
            told: Some(Told {
                status: PodStatus {
                    phase: Some(phase.to_owned()),
                    reason: reason.map(str::to_owned),
                    ..PodStatus::default()
                },
                sandbox: String::new(),
            }),
        };
        let killed_meanwhile = Ended {
            evicted: Some(order.clone()),
            told: None,
        };
        let terminated = ended("Failed", Some("Terminated"));
        for kept in [&terminated, &killed_meanwhile] {
            assert!(goes_on(&of_file, kept));
            assert!(!goes_on(&pod("Never", "kubernetes.io/config.mirror"), kept));
            assert!(!goes_on(&pod("Always", "other"), kept));
        }
        for kept in [Ended::default(), ended("Succeeded", None), ended("Failed", None)] {
            assert!(!goes_on(&of_file, &kept), "{kept:?}");
        }
    }
}
