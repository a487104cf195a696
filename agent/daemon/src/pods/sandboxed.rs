//! What is told of the sandboxes of a pod's containers: what their shim saw, and whether policy has changed since.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use agent_plan::{SANDBOX_CURRENT, SANDBOXED};
use agent_runtime::{ContainerState, ContainerStatus};
use agent_sandbox::{Finding, Layer, Report, Verdict};
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::PodCondition, apimachinery::pkg::apis::meta::v1::Time};
use tokio::sync::watch;

use crate::policy::Enforcement;

/// Ports that a container may connect to by its Landlock rules; nothing if those do not limit it.
pub(crate) type Ports = Option<BTreeSet<u16>>;

/// Ports that are named in a message.
const NAMED: usize = 8;

/// What is known of a pod's sandboxes.
#[derive(Debug)]
pub(crate) struct Sandboxes {
    containers: BTreeMap<String, Seen>,
    /// Whether the kernel judges the pod's packets by the policy in force, now.
    enforcement: watch::Receiver<Enforcement>,
    /// What policy leaves of the connections of each container.
    wanted: BTreeMap<String, Ports>,
    /// Whether policy may have changed since `wanted` was asked for.
    stale: bool,
}

#[derive(Debug)]
struct Seen {
    report: Report,
    /// As of the start of the container; of one that runs.
    connect: Option<Ports>,
}

impl Sandboxes {
    pub(crate) fn new(enforcement: watch::Receiver<Enforcement>) -> Self {
        Self {
            containers: BTreeMap::new(),
            enforcement,
            wanted: BTreeMap::new(),
            stale: false,
        }
    }

    /// Takes what the shim says of one container.
    pub(crate) fn observe(&mut self, status: &ContainerStatus) {
        if status.sandbox == Report::default() {
            return;
        }
        let running = matches!(status.state, ContainerState::Running { .. });
        let seen = Seen {
            report: status.sandbox.clone(),
            connect: running.then(|| status.connect.clone()),
        };
        self.containers.insert(status.name.clone(), seen);
    }

    /// Notes a container that was not started for want of a layer.
    pub(crate) fn refused(&mut self, container: &str, layer: Layer, why: &str) {
        let seen = Seen {
            report: Report::refusal(layer, why),
            connect: None,
        };
        self.containers.insert(container.to_owned(), seen);
    }

    /// Waits until the judgement of the pod's packets is another one; for ever if nobody tells any more.
    pub(crate) async fn judged_otherwise(&mut self) {
        if self.enforcement.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What was seen of one container, the judgement of its packets included.
    pub(crate) fn of(&self, container: &str) -> Option<Report> {
        let mut report = self.containers.get(container)?.report.clone();
        let network = judgement(&self.enforcement.borrow());
        report.0.insert(Layer::NetworkPolicy, network);
        Some(report)
    }

    /// All layers with the least that any container has of them; empty before one was started.
    pub(crate) fn summary(&self) -> String {
        let names = self.containers.keys();
        let all = names.filter_map(|name| self.of(name));
        all.fold(Report::default(), |all, one| all.with(&one)).to_string()
    }

    /// Whether policy is also in the sandbox of a container that runs.
    pub(crate) fn limit_connections(&self) -> bool {
        self.containers
            .values()
            .any(|seen| matches!(seen.connect, Some(Some(_))))
    }

    /// Policy may leave something else of connections now.
    pub(crate) fn policy_changed(&mut self) {
        self.stale = true;
    }

    /// Whether it is time to ask what policy leaves of them. Asked once for each change.
    pub(crate) fn take_question(&mut self) -> bool {
        std::mem::take(&mut self.stale)
    }

    /// The answer.
    pub(crate) fn policy_leaves(&mut self, wanted: BTreeMap<String, Ports>) {
        self.wanted = wanted;
    }

    /// The conditions of the pod that tell of this.
    pub(crate) fn conditions(&self, before: &[PodCondition], now: Timestamp) -> Vec<PodCondition> {
        let condition = |kind: &str, (holds, reason, message): (bool, &str, String)| {
            let status = if holds { "True" } else { "False" };
            let known = before
                .iter()
                .find(|known| known.type_ == kind && known.status == status);
            let since = known.and_then(|known| known.last_transition_time.clone());
            PodCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: since.or(Some(Time(now))),
                ..PodCondition::default()
            }
        };
        let sandboxed = self.sandboxed().map(|told| condition(SANDBOXED, told));
        let current = self.current().map(|told| condition(SANDBOX_CURRENT, told));
        sandboxed.into_iter().chain(current).collect()
    }

    fn sandboxed(&self) -> Option<(bool, &'static str, String)> {
        let reports: Vec<(&String, Report)> = self
            .containers
            .keys()
            .filter_map(|name| Some((name, self.of(name)?)))
            .collect();
        let worst = reports.iter().filter_map(|(_, report)| report.worst()).max()?;
        let lacking: Vec<String> = reports
            .iter()
            .flat_map(|(name, report)| {
                let lacking = report.lacking();
                lacking
                    .map(move |(layer, found)| format!("{name}: {layer} {}: {}", found.verdict, found.detail))
            })
            .collect();
        let seen: Vec<String> = reports
            .iter()
            .map(|(name, report)| format!("{name}: {report}"))
            .collect();
        Some(match worst {
            Verdict::Enforced => (true, "Enforced", seen.join("; ")),
            Verdict::Partial => (false, "Partial", lacking.join("; ")),
            Verdict::Refused => (false, "Refused", lacking.join("; ")),
        })
    }

    /// Landlock rules are for good: what policy allows since is refused until the container starts again, and what it
    /// refuses since is refused by the datapath alone.
    fn current(&self) -> Option<(bool, &'static str, String)> {
        if !self.limit_connections() {
            return None;
        }
        let (mut widened, mut narrowed) = (Vec::new(), Vec::new());
        for (name, seen) in &self.containers {
            let (Some(Some(has)), Some(wanted)) = (&seen.connect, self.wanted.get(name)) else {
                continue;
            };
            match wanted {
                None => widened.push(format!("{name} (all ports)")),
                Some(wanted) => {
                    let list = |ports: BTreeSet<u16>| {
                        (!ports.is_empty()).then(|| format!("{name} ({})", named(&ports)))
                    };
                    widened.extend(list(wanted - has));
                    narrowed.extend(list(has - wanted));
                }
            }
        }
        let mut told = Vec::new();
        if !widened.is_empty() {
            told.push(format!(
                "egress policy allows TCP ports since the start of {}: restart the container to connect to them",
                widened.join(", ")
            ));
        }
        if !narrowed.is_empty() {
            told.push(format!(
                "egress policy refuses TCP ports since the start of {}: the datapath does, Landlock after a restart",
                narrowed.join(", ")
            ));
        }
        Some(match (widened.is_empty(), narrowed.is_empty()) {
            (true, true) => (
                true,
                "AsPolicy",
                "connections are limited as policy has it".to_owned(),
            ),
            (false, _) => (false, "PolicyWidened", told.join("; ")),
            (true, false) => (false, "PolicyNarrowed", told.join("; ")),
        })
    }
}

/// What judges the packets of a pod.
fn judgement(enforcement: &Enforcement) -> Finding {
    let partial = |detail: &str| Finding {
        verdict: Verdict::Partial,
        detail: detail.to_owned(),
    };
    match enforcement {
        Enforcement::InForce => Finding::enforced("the kernel judges by the policy in force"),
        Enforcement::NotYet => partial("the kernel judges by the tables of an earlier agent"),
        Enforcement::Behind(why) => partial(why),
    }
}

fn named(ports: &BTreeSet<u16>) -> String {
    let mut text: Vec<String> = ports.iter().take(NAMED).map(u16::to_string).collect();
    if let Some(more) = ports.len().checked_sub(NAMED).filter(|more| *more > 0) {
        text.push(format!("{more} more"));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(name: &str, report: Report, connect: Ports) -> ContainerStatus {
        ContainerStatus {
            name: name.to_owned(),
            attempt: 0,
            state: ContainerState::Running {
                pid: 1,
                started_at: Timestamp::UNIX_EPOCH,
            },
            sandbox: report,
            connect,
            stop_signal: 15,
            uid: None,
        }
    }

    fn report(verdict: Verdict) -> Report {
        let finding = Finding {
            verdict,
            detail: "interface 4 lacks scopes".to_owned(),
        };
        Report(
            [
                (Layer::Seccomp, Finding::enforced("mode 2")),
                (Layer::Landlock, finding),
            ]
            .into(),
        )
    }

    fn judged(enforcement: Enforcement) -> Sandboxes {
        Sandboxes::new(watch::channel(enforcement).1)
    }

    fn told(sandboxes: &Sandboxes, kind: &str) -> Option<(String, String, String)> {
        let conditions = sandboxes.conditions(&[], Timestamp::UNIX_EPOCH);
        let found = conditions.into_iter().find(|condition| condition.type_ == kind)?;
        Some((found.status, found.reason.unwrap(), found.message.unwrap()))
    }

    #[test]
    fn nothing_is_claimed_that_was_not_seen() {
        let mut sandboxes = judged(Enforcement::InForce);
        sandboxes.observe(&status("creating", Report::default(), None));
        assert_eq!(sandboxes.summary(), "");
        assert_eq!(told(&sandboxes, SANDBOXED), None);
        sandboxes.observe(&status("main", report(Verdict::Enforced), None));
        assert_eq!(
            sandboxes.summary(),
            "seccomp=Enforced,landlock=Enforced,network-policy=Enforced"
        );
        assert_eq!(told(&sandboxes, SANDBOXED).unwrap().0, "True");
    }

    /// An agent that finds a container again starts none, and tables fall behind while it runs.
    #[tokio::test]
    async fn what_judges_packets_now_is_told_without_a_start() {
        let (tell, enforcement) = watch::channel(Enforcement::NotYet);
        let mut sandboxes = Sandboxes::new(enforcement);
        sandboxes.observe(&status("main", report(Verdict::Enforced), None));
        let (status, _, message) = told(&sandboxes, SANDBOXED).unwrap();
        assert_eq!(status, "False");
        assert!(
            message.contains("network-policy") && message.contains("earlier agent"),
            "{message}"
        );
        for (now, verdict, status) in [
            (Enforcement::InForce, "Enforced", "True"),
            (Enforcement::Behind("no memory".to_owned()), "Partial", "False"),
            (Enforcement::InForce, "Enforced", "True"),
        ] {
            tell.send(now).unwrap();
            sandboxes.judged_otherwise().await;
            let summary = sandboxes.summary();
            assert!(
                summary.ends_with(&format!("network-policy={verdict}")),
                "{summary}"
            );
            assert_eq!(told(&sandboxes, SANDBOXED).unwrap().0, status);
        }
        drop(tell);
        let for_ever = sandboxes.judged_otherwise();
        let patience = std::time::Duration::from_millis(10);
        assert!(tokio::time::timeout(patience, for_ever).await.is_err());
    }

    #[test]
    fn the_worst_container_counts_and_its_lack_is_named() {
        let mut sandboxes = judged(Enforcement::InForce);
        sandboxes.observe(&status("a", report(Verdict::Enforced), None));
        sandboxes.observe(&status("b", report(Verdict::Partial), None));
        assert_eq!(
            sandboxes.summary(),
            "seccomp=Enforced,landlock=Partial,network-policy=Enforced"
        );
        let (status, reason, message) = told(&sandboxes, SANDBOXED).unwrap();
        assert_eq!((status.as_str(), reason.as_str()), ("False", "Partial"));
        assert_eq!(message, "b: landlock Partial: interface 4 lacks scopes");
        sandboxes.refused("c", Layer::Landlock, "too old");
        assert_eq!(told(&sandboxes, SANDBOXED).unwrap().1, "Refused");
    }

    #[test]
    fn a_policy_that_changed_since_the_start_is_told() {
        let mut sandboxes = judged(Enforcement::InForce);
        sandboxes.observe(&status("a", report(Verdict::Enforced), None));
        assert_eq!(told(&sandboxes, SANDBOX_CURRENT), None, "nothing limits it");
        sandboxes.observe(&status("b", report(Verdict::Enforced), Some([53, 443].into())));
        assert!(sandboxes.limit_connections());
        assert_eq!(told(&sandboxes, SANDBOX_CURRENT).unwrap().1, "AsPolicy");
        sandboxes.policy_leaves([("b".to_owned(), Some([53, 443, 5432].into()))].into());
        let (status, reason, message) = told(&sandboxes, SANDBOX_CURRENT).unwrap();
        assert_eq!((status.as_str(), reason.as_str()), ("False", "PolicyWidened"));
        assert!(
            message.contains("b (5432)") && message.contains("restart"),
            "{message}"
        );
        sandboxes.policy_leaves([("b".to_owned(), Some([53].into()))].into());
        let (_, reason, message) = told(&sandboxes, SANDBOX_CURRENT).unwrap();
        assert_eq!(reason, "PolicyNarrowed");
        assert!(
            message.contains("b (443)") && message.contains("datapath"),
            "{message}"
        );
        sandboxes.policy_leaves([("b".to_owned(), None)].into());
        assert_eq!(told(&sandboxes, SANDBOX_CURRENT).unwrap().1, "PolicyWidened");
    }

    #[test]
    fn each_change_of_policy_is_one_question() {
        let mut sandboxes = judged(Enforcement::InForce);
        assert!(!sandboxes.take_question());
        sandboxes.policy_changed();
        assert!(sandboxes.take_question() && !sandboxes.take_question());
    }
}
