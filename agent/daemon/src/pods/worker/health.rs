//! What the task of a pod does about probes and hooks.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use agent_health::Outcome;
use agent_plan::{Doom, Ending, Hook, Probe, Run, Wanted, is_started};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::LifecycleHandler;

use super::{News, Worker};
use crate::{
    events::Kind,
    pods::{
        hooks::{self, HookError},
        probes::{self, Place, Wish},
    },
    policy::chain,
};

/// Which hook ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pods) enum Hooked {
    PostStart,
    PreStop,
}

impl Worker {
    /// Keeps exactly those probes running that the pod's state asks for.
    pub(super) fn tend_probes(&mut self, wanted: &Wanted) {
        let mut wishes = BTreeMap::new();
        for member in &wanted.containers {
            let (Some(container), Some(spec)) = (self.seen.container(&member.name), self.spec(&member.name))
            else {
                continue;
            };
            let (Run::Running { id, started_at }, Hook::Done) = (&container.run, container.life.post_start)
            else {
                continue;
            };
            let mut wish = |probe: Probe, verdict: Option<bool>| {
                if probes::probe_of(spec, probe).is_some() {
                    let wish = Wish {
                        container: spec.clone(),
                        run: id.clone(),
                        started_at: *started_at,
                        verdict,
                    };
                    wishes.insert((member.name.clone(), probe), wish);
                }
            };
            // What ends anyway is not condemned once more.
            let ends =
                wanted.ending != Ending::No || container.stop.is_some() || container.life.doomed.is_some();
            if is_started(member, container) {
                wish(Probe::Readiness, Some(container.life.ready));
                if !ends {
                    wish(Probe::Liveness, Some(true));
                }
            } else if !ends {
                wish(Probe::Startup, None);
            }
        }
        let place = self.place();
        self.probes.tend(wishes, &self.context, &place, &self.news);
    }

    /// Takes what a probe found out.
    pub(super) fn probed(
        &mut self,
        (name, run): (&str, &str),
        probe: Probe,
        outcome: Outcome,
        verdict: Option<bool>,
    ) {
        if !self.is_present((name, run)) {
            return;
        }
        let word = match probe {
            Probe::Startup => "Startup",
            Probe::Liveness => "Liveness",
            Probe::Readiness => "Readiness",
        };
        match outcome {
            Outcome::Success => {}
            Outcome::Warning(text) => {
                let message = format!("{word} probe warning: {text}");
                self.event(Some(name), Kind::Warning, "ProbeWarning", message);
            }
            Outcome::Failure(text) => {
                let message = format!("{word} probe failed: {text}");
                self.event(Some(name), Kind::Warning, "Unhealthy", message);
            }
            Outcome::Error(text) => {
                let message = format!("{word} probe errored: {text}");
                self.event(Some(name), Kind::Warning, "Unhealthy", message);
            }
        }
        let own_grace = self.spec(name).and_then(|spec| {
            let probe = probes::probe_of(spec, probe)?;
            probe.termination_grace_period_seconds
        });
        let life = &mut self.container(name).life;
        match (probe, verdict) {
            (_, None) | (Probe::Liveness, Some(true)) => {}
            (Probe::Readiness, Some(ready)) => life.ready = ready,
            (Probe::Startup, Some(true)) => life.started = true,
            (Probe::Startup | Probe::Liveness, Some(false)) => {
                life.doomed = Some(Doom {
                    probe,
                    grace: own_grace.map(SignedDuration::from_secs),
                });
            }
        }
    }

    /// Starts a hook of the container's present run beside the task.
    pub(super) fn start_hook(&mut self, name: &str, hook: Hooked, limit: Duration) {
        let Some(spec) = self.spec(name).cloned() else {
            return;
        };
        let Some(handler) = handler(&spec, hook).cloned() else {
            return;
        };
        let Some(Run::Running { id: run, .. }) = self.seen.container(name).map(|c| c.run.clone()) else {
            return;
        };
        let (context, news, place) = (self.context.clone(), self.news.clone(), self.place());
        let container = name.to_owned();
        let task = tokio::spawn(async move {
            let result = hooks::run(&context, &place.pod_uid, &spec, &handler, place.address, limit).await;
            // A task that has ended waits for no hook.
            drop(
                news.send(Box::new(News::Hooked {
                    container,
                    run,
                    hook,
                    result,
                }))
                .await,
            );
        });
        self.forget_hook(name);
        self.hooks.insert(name.to_owned(), task);
    }

    /// Ends the hook of a container, if one runs.
    pub(super) fn forget_hook(&mut self, name: &str) {
        if let Some(task) = self.hooks.remove(name) {
            task.abort();
        }
    }

    pub(super) fn hooked(&mut self, (name, run): (&str, &str), hook: Hooked, result: &Result<(), HookError>) {
        if !self.is_present((name, run)) {
            return;
        }
        self.hooks.remove(name);
        if let Err(error) = result {
            // Events are read by more people than what a hook may say.
            tracing::info!(pod = %self.id.name, container = name, ?hook, error = chain(error), "hook failed");
            let (reason, message) = match hook {
                Hooked::PostStart => ("FailedPostStartHook", "PostStartHook failed"),
                Hooked::PreStop => ("FailedPreStopHook", "PreStopHook failed"),
            };
            self.event(Some(name), Kind::Warning, reason, message.to_owned());
        }
        let container = self.container(name);
        match (hook, &mut container.stop) {
            (Hooked::PostStart, _) => {
                container.life.post_start = if result.is_ok() { Hook::Done } else { Hook::Failed };
            }
            (Hooked::PreStop, Some(stop)) => stop.hook = Hook::Done,
            (Hooked::PreStop, None) => {}
        }
    }

    /// Whether `run` is what the container does now.
    fn is_present(&self, (name, run): (&str, &str)) -> bool {
        let container = self.seen.container(name);
        matches!(container.map(|c| &c.run), Some(Run::Running { id, .. }) if id == run)
    }

    fn place(&self) -> Place {
        let addresses: Vec<IpAddr> = self
            .attachment
            .as_ref()
            .map(agent_network::Attachment::addresses)
            .unwrap_or_default();
        Place {
            pod_uid: self.id.uid.clone(),
            address: addresses.first().copied(),
        }
    }
}

fn handler(spec: &k8s_openapi::api::core::v1::Container, hook: Hooked) -> Option<&LifecycleHandler> {
    let hooks = spec.lifecycle.as_ref()?;
    match hook {
        Hooked::PostStart => hooks.post_start.as_ref(),
        Hooked::PreStop => hooks.pre_stop.as_ref(),
    }
}
