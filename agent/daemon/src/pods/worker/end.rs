//! How the task of a pod keeps the pod's end, for an agent that is started before the API has heard of it.

use std::io;

use agent_plan::{Ending, Wanted, evict, is_settled};

use super::Worker;
use crate::pods::{
    ended::{self, Ended},
    evictions::Order,
    status::Told,
};

impl Worker {
    /// What an earlier agent knew of the pod's end, and may not have told.
    pub(super) fn recall_end(&mut self) {
        self.kept = ended::read(&self.id.directory(&self.context.config));
        if self.is_heard() {
            return;
        }
        if let Some(order) = self.kept.evicted.clone() {
            self.seen.node_ends = order.node_ends;
            evict(&mut self.seen, order.eviction);
        }
        if let Some(told) = self.kept.told.clone() {
            tracing::info!(pod = %self.id.name, namespace = %self.id.namespace, "ended before this agent was started");
            self.reported = Some(told.status.clone());
            self.reported_sandbox = told.sandbox.clone();
            self.reporter.send(told);
        }
    }

    /// Keeps how the pod ends before it is taken apart, until the API has it. Who is deleted never runs again.
    pub(super) async fn keep_end(&mut self, wanted: &Wanted) {
        if wanted.ending != Ending::No {
            return;
        }
        let ended = match self.is_heard() {
            true => Ended::default(),
            false => Ended {
                evicted: self.seen.eviction.clone().map(|eviction| Order {
                    eviction,
                    node_ends: self.seen.node_ends,
                }),
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
