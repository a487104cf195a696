//! What the task of a pod tells of its containers' sandboxes, and how it hears that policy has changed since.

use std::collections::BTreeMap;

use agent_plan::SANDBOX_CURRENT;
use agent_sandbox::Tcp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::{News, Worker};
use crate::{
    events::Kind,
    pods::{
        Context, PodId,
        container::{self, ContainerError},
        sandbox::{self, Ground},
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
    Ok(ports_by(&ground, pod)?)
}

/// The same of the ground that is known, ephemeral containers included.
fn ports_by(ground: &Ground, pod: &Pod) -> Result<BTreeMap<String, Ports>, ContainerError> {
    let mut ports = BTreeMap::new();
    for spec in steps::containers(pod) {
        let capabilities = container::capabilities_of(pod, &spec)?;
        let connect = match sandbox::profile(pod, &spec, &capabilities, ground)?.tcp {
            Tcp::Unrestricted => None,
            Tcp::Denied => Some(Default::default()),
            Tcp::Ports(ports) => ports.connect,
        };
        ports.insert(spec.name.clone(), connect);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use policies_ir::ports::PortSet;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_policy_leaves_is_asked_of_every_container() {
        let pod = json!({
            "metadata": {"annotations": {"palisade.dev/sandbox-profile.main": "strict"}},
            "spec": {
                "initContainers": [{"name": "init"}],
                "containers": [{"name": "main"}],
                "ephemeralContainers": [
                    {"name": "debugger", "targetContainerName": "main"},
                    {"name": "other", "targetContainerName": "init"},
                ],
            },
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let mut egress = PortSet::none();
        egress.insert(53, 53);
        let ground = Ground {
            landlock: 7,
            egress: Some(egress),
            ..Ground::default()
        };
        let limited = Some([53].into());
        let expected = [
            ("init", None),
            ("main", limited.clone()),
            ("debugger", limited),
            ("other", None),
        ];
        let expected = expected.map(|(name, ports)| (name.to_owned(), ports));
        assert_eq!(ports_by(&ground, &pod).unwrap(), expected.into());
    }
}
