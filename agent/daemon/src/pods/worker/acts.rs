//! What the task of a pod does for each step, and how it remembers the outcome.

use std::time::Duration;

use agent_plan::{Ending, Ground, Hook, Image, Life, Probe, Run, Step, Stop, Wanted, Why};
use agent_runtime::RuntimeError;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use tokio::time::Instant;

use super::{ASK_AGAIN, News, RETRY_AFTER, Worker, health::Hooked};
use crate::{
    events::Kind,
    pods::{
        hooks, observe,
        pull::{self, PullPolicy},
        status::{Object, Told, confirm_deletion},
        steps::{self, StepError},
    },
    policy::{PolicyError, chain},
    static_pods,
};

impl Worker {
    /// Takes one step of the plan and notes how it went.
    pub(super) async fn take(&mut self, step: Step, wanted: &Wanted) {
        self.context.quiet.worked();
        let Some(pod) = self.pod.clone() else {
            return self.end(step, wanted).await;
        };
        let started = Instant::now();
        let shown = format!("{step:?}");
        match step {
            Step::StartSandbox => {
                let result =
                    steps::start_sandbox(&self.context, &self.id, &pod, self.reported.as_ref()).await;
                let done = self.prepared(result, Ground::Sandbox);
                if done.is_some() {
                    self.follow(0);
                }
            }
            Step::AttachNetwork => {
                let result = steps::attach_network(&self.context, &self.id, &pod).await;
                if let Some(attachment) = self.prepared(result, Ground::Network) {
                    self.attachment = Some(attachment);
                }
            }
            Step::ProgramPolicy => {
                let result = self.program().await;
                self.prepared(result.map_err(StepError::from), Ground::Judged);
            }
            Step::FetchImage { container } => self.fetch(container),
            Step::StartContainer { container, restarts } => self.start(&pod, container, restarts).await,
            other => self.end(other, wanted).await,
        }
        tracing::debug!(pod = %self.id.name, step = shown, took = ?started.elapsed(), age = ?self.born.elapsed(), "step");
    }

    /// Steps towards the end of a pod; they need no object.
    async fn end(&mut self, step: Step, wanted: &Wanted) {
        let result = match &step {
            Step::BeginStop {
                container,
                why,
                grace,
            } => {
                self.begin_stop(container, *why, *grace);
                Ok(())
            }
            Step::Stop { container } => self.stop(container).await,
            Step::Kill { container } => self.kill(container).await,
            Step::ReleaseNetwork => self.release_network().await,
            Step::RemoveSandbox => match self.remove_sandbox().await {
                // A pod that is over never runs again: what it wrote is of no use to anybody.
                Ok(()) if wanted.ending == Ending::No => self.remove_volumes().await,
                removed => removed,
            },
            Step::ConfirmDeletion => {
                let status = Told {
                    status: self.status(wanted).unwrap_or_default(),
                    sandbox: self.sandboxes.summary(),
                };
                let confirmed = confirm_deletion(&self.context.client, &self.id, &status).await;
                self.confirmed = matches!(confirmed, Ok(Object::Gone));
                if matches!(confirmed, Ok(Object::Kept)) {
                    self.retry_at = Some(Instant::now() + ASK_AGAIN);
                }
                confirmed.map(drop).map_err(StepError::from)
            }
            _ => Err(StepError::Bug(
                "a pod without an object was about to start something",
            )),
        };
        if let Err(error) = result {
            self.retry_later("end the pod", &error);
        }
    }

    async fn program(&mut self) -> Result<(), PolicyError> {
        let endpoint = self.attachment.as_ref().map(|attachment| attachment.endpoint);
        let programmed = match endpoint {
            Some(endpoint) => self.context.policy.program(endpoint).await,
            None => Ok(()),
        };
        match programmed {
            // Denied until policy is known, which is when the policy thread writes it by itself.
            Err(error) if self.pod.as_deref().is_some_and(static_pods::is_static) => {
                tracing::warn!(pod = %self.id.name, error = chain(&error), "starting cut off from the network");
                Ok(())
            }
            programmed => programmed,
        }
    }

    /// Notes how a stage of the pod's ground went.
    fn prepared<T>(&mut self, result: Result<T, StepError>, stage: Ground) -> Option<T> {
        match result {
            Ok(value) => {
                self.seen.ground = stage;
                self.seen.ground_failure = None;
                Some(value)
            }
            Err(error) => {
                let failure = error.failure(self.seen.ground_failure.as_ref(), Timestamp::now());
                tracing::warn!(pod = %self.id.name, error = failure.message, "cannot prepare the pod");
                self.event(None, Kind::Warning, failure.reason, failure.message.clone());
                self.seen.ground_failure = Some(failure);
                None
            }
        }
    }

    /// Brings the image in beside the task.
    fn fetch(&mut self, container: String) {
        let Some(pod) = self.pod.clone() else { return };
        let Some(spec) = self.spec(&container).cloned() else {
            return;
        };
        let image = spec.image.unwrap_or_default();
        let (context, news) = (self.context.clone(), self.news.clone());
        let directory = self.id.directory(&context.config);
        let known = self.container(&container);
        let runs = matches!(known.run, Run::Running { .. });
        // The run that the registry is asked for.
        let attempt = known.restarts + u32::from(matches!(known.run, Run::Exited(_)));
        known.image = match std::mem::take(&mut known.image) {
            Image::Ready { id } if id == image => Image::Checking { id },
            Image::Failed(failure) => Image::Retrying(failure),
            _ => Image::Fetching,
        };
        while self.fetches.try_join_next().is_some() {}
        self.fetches.spawn(async move {
            let asked = pull::Asked {
                pod: &pod,
                directory: &directory,
                container: &container,
                image: &image,
                policy: PullPolicy::of(spec.image_pull_policy.as_deref()),
                runs,
            };
            let result = pull::bring(&context, asked).await.map(Box::new);
            // A task that has ended needs no image.
            drop(
                news.send(Box::new(News::Image {
                    container,
                    image,
                    attempt,
                    result,
                }))
                .await,
            );
        });
    }

    /// Whether the registry has to be asked once more before this run.
    fn asks_again(&self, spec: &Spec, restarts: u32) -> bool {
        PullPolicy::of(spec.image_pull_policy.as_deref()) == PullPolicy::Always
            && self.asked.get(&spec.name) != Some(&restarts)
    }

    async fn start(&mut self, pod: &Pod, name: String, restarts: u32) {
        let Some(spec) = self.spec(&name).cloned() else {
            return;
        };
        if self.asks_again(&spec, restarts) {
            return self.fetch(name);
        }
        let (Some(image), Some(attachment)) = (self.images.get(&name), &self.attachment) else {
            return;
        };
        let containers = self.seen.containers.iter();
        let users = containers.filter_map(|(name, container)| Some((name.clone(), container.user.clone()?)));
        let around = (attachment.addresses(), &users.collect());
        let result =
            steps::start_container(&self.context, &self.id, pod, &spec, restarts, image, around).await;
        let now = Timestamp::now();
        let run = observe::run_id(&self.id, &name, restarts);
        match result {
            Ok(user) => {
                self.began(&name, restarts);
                let container = self.container(&name);
                container.start_failure = None;
                container.user = Some(user);
                self.event(
                    Some(&name),
                    Kind::Normal,
                    "Created",
                    format!("Created container: {name}"),
                );
                self.event(
                    Some(&name),
                    Kind::Normal,
                    "Started",
                    format!("Started container {name}"),
                );
                match self.context.runtime.status(&self.id.uid).await {
                    Ok(status) => self.observe(&status),
                    // The follower will say what became of it; until then it counts as running.
                    Err(_) => {
                        self.container(&name).run = Run::Running {
                            id: run,
                            started_at: now,
                        }
                    }
                }
                self.tell_sandbox(&name);
                if self.container(&name).life.post_start == Hook::Running {
                    self.start_hook(&name, Hooked::PostStart, hooks::LONGEST);
                }
                let age = self.born.elapsed();
                tracing::info!(pod = %self.id.name, container = name, restarts, ?age, "container started");
            }
            // That is how this run ended.
            Err(error @ StepError::Runtime(RuntimeError::NotExecutable { .. })) => {
                let reason = chain(&error);
                self.began(&name, restarts);
                self.container(&name).start_failure = None;
                self.event(Some(&name), Kind::Warning, "Failed", format!("Error: {reason}"));
                self.container(&name).run = observe::start_error(run, reason, now);
            }
            // Whatever else is wrong is not the program's fault, and may pass.
            Err(error) => {
                let container = self.container(&name);
                let failure = error.failure_to_start(container.start_failure.as_ref(), now);
                let message = format!("Error: {}", failure.message);
                container.start_failure = Some(failure);
                self.event(Some(&name), Kind::Warning, "Failed", message);
                self.tell_refusal(&name, &error);
            }
        }
    }

    /// A new run takes the place of the one before.
    fn began(&mut self, name: &str, restarts: u32) {
        let hooks = self.spec(name).and_then(|spec| spec.lifecycle.as_ref());
        let has_hook = hooks.is_some_and(|hooks| hooks.post_start.is_some());
        let image = self.spec(name).and_then(|spec| spec.image.clone());
        let container = self.container(name);
        let before = std::mem::replace(&mut container.made_of, image);
        if let Run::Exited(exit) = std::mem::take(&mut container.run) {
            // The failures of one image are not those of another.
            container.streak = match before.is_some() && before != container.made_of {
                true => 0,
                false => agent_plan::streak_after(container.streak, &exit).saturating_add(1),
            };
            container.last_exit = Some(exit);
        }
        container.user = None;
        container.restarts = restarts;
        container.life = Life {
            post_start: if has_hook { Hook::Running } else { Hook::Done },
            ..Life::default()
        };
        container.stop = None;
        container.stale = false;
    }

    /// The first step of a container's end: from now on its grace runs.
    fn begin_stop(&mut self, name: &str, why: Why, grace: SignedDuration) {
        let message = match why {
            Why::Pod => format!("Stopping container {name}"),
            Why::Probe(probe) => {
                let probe = match probe {
                    Probe::Startup => "startup",
                    Probe::Liveness => "liveness",
                    Probe::Readiness => "readiness",
                };
                let never = self
                    .pod
                    .as_ref()
                    .and_then(|pod| pod.spec.as_ref()?.restart_policy.as_deref())
                    == Some("Never");
                let what_follows = if never { "" } else { ", will be restarted" };
                format!("Container {name} failed {probe} probe{what_follows}")
            }
            Why::PostStart => "FailedPostStartHook".to_owned(),
            Why::Image => format!("Container {name} definition changed, will be restarted"),
        };
        self.event(Some(name), Kind::Normal, "Killing", message);
        let hooks = self.spec(name).and_then(|spec| spec.lifecycle.as_ref());
        // As with the kubelet: there is no time for it where there is none at all.
        let has_hook = grace.is_positive() && hooks.is_some_and(|hooks| hooks.pre_stop.is_some());
        // A hook after the start that still runs has lost its purpose.
        self.forget_hook(name);
        if has_hook {
            let limit = Duration::try_from(grace).unwrap_or_default();
            self.start_hook(name, Hooked::PreStop, limit);
        }
        let since = self.now();
        self.container(name).stop = Some(Stop {
            why,
            since,
            grace,
            hook: if has_hook { Hook::Running } else { Hook::Done },
            signalled_at: None,
            killed_at: None,
        });
    }

    async fn stop(&mut self, name: &str) -> Result<(), StepError> {
        self.forget_hook(name);
        let stopped = self.context.runtime.stop(&self.id.uid, name).await;
        let stopped = self.unless_gone(stopped);
        let now = self.now();
        if let Some(stop) = &mut self.container(name).stop {
            stop.signalled(stopped.is_ok(), now);
        }
        stopped
    }

    async fn kill(&mut self, name: &str) -> Result<(), StepError> {
        let signal = nix::sys::signal::Signal::SIGKILL as i32;
        let killed = self.context.runtime.signal(&self.id.uid, name, signal).await;
        let killed = self.unless_gone(killed);
        let now = self.now();
        if let Some(stop) = &mut self.container(name).stop {
            stop.killed(killed.is_ok(), now);
        }
        killed
    }

    /// A shim that is gone has nothing to signal.
    fn unless_gone(&mut self, signalled: Result<(), RuntimeError>) -> Result<(), StepError> {
        match signalled {
            Err(error @ RuntimeError::ShimGone { .. }) => {
                self.learn(News::ShimGone(error));
                Ok(())
            }
            sent => Ok(sent?),
        }
    }

    async fn release_network(&mut self) -> Result<(), StepError> {
        steps::release_network(&self.context, &self.id).await?;
        self.attachment = None;
        self.seen.ground = Ground::Sandbox;
        Ok(())
    }

    async fn remove_sandbox(&mut self) -> Result<(), StepError> {
        // A pod without an interface may have a lease.
        self.release_network().await?;
        if let Some(follower) = self.follower.take() {
            follower.abort();
        }
        self.context.runtime.remove_pod(&self.id.uid).await?;
        self.seen.ground = Ground::Nothing;
        Ok(())
    }

    async fn remove_volumes(&mut self) -> Result<(), StepError> {
        self.finish_refreshing().await;
        steps::remove_volumes(&self.context, &self.id).await
    }

    /// Clears what a shim that died left, so that the pod can start anew or end.
    pub(super) async fn clear_lost(&mut self) {
        if self.retry_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let now = Timestamp::now();
        self.seen
            .containers
            .values_mut()
            .for_each(|container| observe::lost(container, now));
        match self.remove_sandbox().await {
            Ok(()) => self.lost = false,
            Err(error) => self.retry_later("clear a lost pod", &error),
        }
    }

    pub(super) fn retry_later(&mut self, what: &str, error: &StepError) {
        tracing::warn!(pod = %self.id.name, error = chain(error), "cannot {what}, will retry");
        self.retry_at = Some(Instant::now() + RETRY_AFTER);
    }
}
