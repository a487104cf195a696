//! How the task of a pod keeps it within its limits on the disk: it looks now and then, and evicts.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use agent_plan::{Cause, Ending, Eviction, Ground, Member, Role, Run, Wanted, evict, is_critical};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio::{sync::Semaphore, time::Instant};

use super::{News, Worker};
use crate::{
    events::Kind,
    pods::{
        claims::{self, Claimed},
        storage::{self, Excess, Limits, Places},
    },
    policy::chain,
    stats::claims::Filled,
};

/// Looks at a time on this node: they compete with the pods for one disk.
static TURNS: Semaphore = Semaphore::const_new(1);

/// What stands behind the pod's claims, by volume; nothing before the API has said it.
pub(super) type Claims = Option<Arc<[(String, Claimed)]>>;

/// What a look found, and how long it took.
pub(in crate::pods) struct Measured {
    found: io::Result<Found>,
    took: Duration,
    claims: Claims,
}

/// The excess, if there is one, and how full the volumes of claims are.
struct Found {
    excess: Option<Excess>,
    filled: BTreeMap<String, Filled>,
}

/// When a pod is looked at first; `None` for a pod without limits, and for one that the node does not evict.
pub(super) fn first_look(pod: Option<&Pod>) -> Option<Instant> {
    let pod = pod.filter(|pod| !is_critical(pod))?;
    Limits::of(pod).map(|_limits| Instant::now() + storage::LOOK_EVERY)
}

impl Worker {
    /// Looks at what the pod has written when it is time, beside the task.
    pub(super) fn tend_quota(&mut self, wanted: &Wanted) {
        let lives = wanted.ending == Ending::No && !wanted.settled && self.seen.ground > Ground::Nothing;
        if self.measure_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let over = wanted.settled || self.seen.eviction.is_some();
        self.measure_at = (!over).then(|| Instant::now() + storage::LOOK_EVERY);
        let limits = self.pod.as_deref().and_then(Limits::of);
        let Some(limits) = limits.filter(|_| lives && !over) else {
            return;
        };
        let places = match self.places(wanted, &limits) {
            Ok(places) => places,
            Err(error) => return tracing::error!(pod = %self.id.name, %error, "cannot find what to measure"),
        };
        // Until the answer is there.
        self.measure_at = None;
        let (context, news, pod) = (self.context.clone(), self.news.clone(), self.pod.clone());
        let mut claims = self.claims.clone();
        tokio::spawn(async move {
            if let (None, Some(pod)) = (&claims, pod) {
                let config = &context.config;
                let found = claims::find(&context.client, &pod, &config.node_name, &config.agent_dir).await;
                match found {
                    Ok(found) => claims = Some(found.into()),
                    Err(error) => {
                        tracing::debug!(
                            pod = pod.metadata.name,
                            error = chain(&error),
                            "claims are not measured yet"
                        );
                    }
                }
            }
            let limits = limits.with_claims(claims.as_deref().unwrap_or_default());
            // Never closed.
            let turn = TURNS.acquire().await;
            let started = Instant::now();
            let look = move || {
                let taken = storage::measure(&limits, &places)?;
                Ok(Found {
                    excess: limits.excess(&taken),
                    filled: limits.filled(&taken),
                })
            };
            let found = tokio::task::spawn_blocking(look).await;
            drop(turn);
            let measured = Measured {
                found: found.unwrap_or_else(|died| Err(io::Error::other(died))),
                took: started.elapsed(),
                claims,
            };
            // A task that has ended has no pod to evict.
            drop(news.send(Box::new(News::Measured(measured))).await);
        });
    }

    fn places(&self, wanted: &Wanted, limits: &Limits) -> Result<Places, agent_runtime::RuntimeError> {
        let logs = self.id.logs(&self.context.config);
        let mut containers = BTreeMap::new();
        for name in limits.containers() {
            let attempt = self
                .seen
                .containers
                .get(name)
                .map_or(0, |container| container.restarts);
            let layer = self.context.runtime.writable_layer(&self.id.uid, name, attempt)?;
            containers.insert(name.clone(), [layer, logs.join(name)]);
        }
        let has_ended = |init: &&Member| {
            let container = self.seen.container(&init.name);
            container.is_some_and(|container| matches!(container.run, Run::Exited(_)))
        };
        let inits = wanted
            .containers
            .iter()
            .filter(|member| member.role == Role::Init);
        Ok(Places {
            volumes: self.id.directory(&self.context.config).join("volumes"),
            containers,
            ended: inits.filter(has_ended).map(|init| init.name.clone()).collect(),
        })
    }

    pub(super) fn measured(&mut self, measured: Measured) {
        self.measure_at = Some(Instant::now() + storage::pause(measured.took));
        self.claims = measured.claims;
        let found = match measured.found {
            Ok(found) => found,
            Err(error) => {
                return tracing::warn!(pod = %self.id.name, %error, "the pod's use of the disk cannot be measured");
            }
        };
        for (volume, filled) in found.filled {
            if let Some(claim) = self.claim_of(&volume) {
                self.context.claims.note(&self.id, claim, filled);
            }
        }
        if let Some(excess) = found.excess {
            if let Some(directory) = excess.full {
                self.context.full.note(directory);
            }
            self.evict(excess.message);
        }
    }

    /// The claim behind one of the pod's volumes.
    fn claim_of(&self, volume: &str) -> Option<&str> {
        let mut volumes = self.pod.as_ref()?.spec.as_ref()?.volumes.iter().flatten();
        let volume = volumes.find(|known| known.name == volume)?;
        Some(&volume.persistent_volume_claim.as_ref()?.claim_name)
    }

    /// Ends the pod soon: whoever is over a limit gets as little time to go further over it as there is.
    fn evict(&mut self, message: String) {
        let eviction = Eviction {
            cause: Cause::Shortage,
            message: message.clone(),
            grace: SignedDuration::ZERO,
            at: Timestamp::now(),
        };
        if evict(&mut self.seen, eviction) {
            tracing::warn!(pod = %self.id.name, namespace = %self.id.namespace, message, "evicted");
            self.event(None, Kind::Warning, "Evicted", message);
        }
    }
}
