//! What the task of a pod tells of its containers' sandboxes, and how it hears that policy has changed since.

use std::collections::BTreeMap;

use agent_plan::SANDBOX_CURRENT;
use agent_sandbox::Tcp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::{News, Worker};
use crate::{
    events::Kind,
    pods::{
        Context, PodId, container, sandbox,
        sandboxed::Ports,
        steps::{self, StepError},
    },
    policy::chain,
};

impl Worker {
    /// An event with the result of each layer of a container that was started.
    pub(super) fn tell_sandbox(&self, name: &str) {
        let Some(report) = self.sandboxes.of(name) else {
            return;
        };
        let lacking: Vec<String> = report
            .lacking()
            .map(|(layer, finding)| format!("{layer}: {}", finding.detail))
            .collect();
        if lacking.is_empty() {
            self.event(Some(name), Kind::Normal, "SandboxEnforced", report.to_string());
        } else {
            let message = format!("{report}; missing: {}", lacking.join("; "));
            self.event(Some(name), Kind::Warning, "SandboxPartial", message);
        }
    }

    /// An event about a container that was not started for want of a layer.
    pub(super) fn tell_refusal(&mut self, name: &str, error: &StepError) {
        let Some(layer) = error.layer() else { return };
        let why = chain(error);
        self.sandboxes.refused(name, layer, &why);
        self.event(
            Some(name),
            Kind::Warning,
            "SandboxRefused",
            format!("{layer}=Refused: {why}"),
        );
    }

    /// An event when policy has just become another than that of the sandbox.
    pub(super) fn tell_outdated(&self, status: &PodStatus) {
        let outdated = |status: &PodStatus| {
            let conditions = status.conditions.iter().flatten();
            let mut own = conditions.filter(|condition| condition.type_ == SANDBOX_CURRENT);
            own.find(|condition| condition.status == "False").cloned()
        };
        let before = self.reported.as_ref().and_then(outdated);
        if let Some(now) = outdated(status)
            && before.is_none_or(|before| before.message != now.message)
        {
            self.event(
                None,
                Kind::Warning,
                "SandboxOutdated",
                now.message.unwrap_or_default(),
            );
        }
    }

    /// Asks what policy leaves of connections after it has changed, beside the task.
    pub(super) fn tend_sandboxes(&mut self) {
        if self.asking.is_some() || !self.sandboxes.limit_connections() || !self.sandboxes.take_question() {
            return;
        }
        let Some(pod) = self.pod.clone() else { return };
        let (context, id, news) = (self.context.clone(), self.id.clone(), self.news.clone());
        self.asking = Some(tokio::spawn(async move {
            let answer = ports(&context, &id, &pod).await;
            // A task that has ended has no sandboxes.
            drop(news.send(Box::new(News::Ports(answer))).await);
        }));
    }

    pub(super) fn ports_arrived(&mut self, answer: Result<BTreeMap<String, Ports>, StepError>) {
        self.asking = None;
        match answer {
            Ok(ports) => self.sandboxes.policy_leaves(ports),
            Err(error) => {
                // The next change of policy asks again; until then the old answer stands.
                tracing::warn!(pod = %self.id.name, error = chain(&error), "cannot tell whether policy changed for its sandbox");
            }
        }
    }
}

/// What a start of each container now would leave of its connections.
async fn ports(context: &Context, id: &PodId, pod: &Pod) -> Result<BTreeMap<String, Ports>, StepError> {
    let ground = steps::ground(context, id, pod).await?;
    let spec = pod.spec.iter();
    let inits = spec
        .clone()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    let all = inits.chain(spec.flat_map(|spec| &spec.containers));
    let mut ports = BTreeMap::new();
    for spec in all {
        let capabilities = container::capabilities_of(pod, spec)?;
        let profile =
            sandbox::profile(pod, spec, &capabilities, &ground).map_err(container::ContainerError::from)?;
        let connect = match profile.tcp {
            Tcp::Unrestricted => None,
            Tcp::Denied => Some(Default::default()),
            Tcp::Ports(ports) => ports.connect,
        };
        ports.insert(spec.name.clone(), connect);
    }
    Ok(ports)
}
