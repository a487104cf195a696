//! What the node says about itself: its conditions, in Kubernetes' words. Pure.

use agent_network::Ipv6;
use api::node_policy::HostCounts;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{NodeCondition, NodeStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{policy::Enforcement, pressure::Pressures};

/// What the node's conditions follow from.
pub(crate) struct Health {
    pub(crate) enforcement: watch::Receiver<Enforcement>,
    /// Told beside them, for whoever admits host endpoints.
    pub(crate) host_counts: watch::Receiver<Option<HostCounts>>,
    pub(crate) pressures: watch::Receiver<Pressures>,
    /// The node shuts down.
    pub(crate) ends: CancellationToken,
}

impl Health {
    pub(super) fn conditions(&self, before: &NodeStatus) -> Vec<NodeCondition> {
        let now = Time(Timestamp::now());
        let Pressures {
            memory,
            disk,
            processes,
        } = *self.pressures.borrow();
        // Kubernetes' words.
        let rows = [
            (
                "MemoryPressure",
                memory,
                ["SufficientMemory", "InsufficientMemory"],
                "memory available",
            ),
            (
                "DiskPressure",
                disk,
                ["NoDiskPressure", "DiskPressure"],
                "disk space and file numbers",
            ),
            (
                "PIDPressure",
                processes,
                ["SufficientPID", "InsufficientPID"],
                "process numbers available",
            ),
        ];
        let pressure = |(kind, holds, [well, ill], what): (&str, bool, [&str; 2], &str)| {
            let reason = format!("KubeletHas{}", if holds { ill } else { well });
            let word = if holds { "insufficient" } else { "sufficient" };
            condition(
                before,
                (kind, holds),
                &reason,
                format!("the node has {word} {what}"),
                &now,
            )
        };
        let mut conditions: Vec<NodeCondition> = rows.into_iter().map(pressure).collect();
        // Written only while the agent runs and its datapath is loaded; the lease tells of everything else.
        let (ready, reason, message) = if self.ends.is_cancelled() {
            (false, "KubeletNotReady", "node is shutting down")
        } else {
            (
                true,
                "KubeletReady",
                "the agent runs and its packet programs are loaded",
            )
        };
        conditions.push(condition(
            before,
            ("Ready", ready),
            reason,
            message.to_owned(),
            &now,
        ));
        conditions
    }
}

/// Whether the node's pods have IPv6; where they do not, why.
pub(super) fn pod_ipv6(before: &NodeStatus, ipv6: Ipv6) -> NodeCondition {
    let (holds, reason, message) = match ipv6 {
        Ipv6::On(cidr) => (true, "DualStack", format!("pods have addresses of {cidr}")),
        Ipv6::Off => (
            false,
            "NotConfigured",
            "the node was given an IPv4 CIDR only".to_owned(),
        ),
        Ipv6::Unavailable(reason) => (false, "Unavailable", reason.to_string()),
    };
    let now = Time(Timestamp::now());
    condition(before, ("PodIPv6", holds), reason, message, &now)
}

/// Whether the kernel judges by the policy that is known.
pub(super) fn policy_enforced(before: &NodeStatus, enforcement: &Enforcement) -> NodeCondition {
    let (holds, reason, message) = match enforcement {
        Enforcement::InForce => (
            true,
            "InForce",
            "the kernel judges by the newest policy".to_owned(),
        ),
        Enforcement::NotYet => (false, "Starting", "no policy was written yet".to_owned()),
        Enforcement::Behind(why) => (false, "TablesNotWritten", why.clone()),
    };
    let now = Time(Timestamp::now());
    condition(before, ("PolicyEnforced", holds), reason, message, &now)
}

fn status(holds: bool) -> &'static str {
    if holds { "True" } else { "False" }
}

pub(super) fn condition(
    before: &NodeStatus,
    (kind, holds): (&str, bool),
    reason: &str,
    message: String,
    now: &Time,
) -> NodeCondition {
    let known = before
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind && c.status == status(holds));
    NodeCondition {
        type_: kind.to_owned(),
        status: status(holds).to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: known
            .and_then(|c| c.last_transition_time.clone())
            .or(Some(now.clone())),
    }
}

/// Whether `said` has every one of `own`, whenever it was written.
pub(super) fn says(said: &[NodeCondition], own: &[NodeCondition]) -> bool {
    let words = |c: &NodeCondition| {
        (
            c.type_.clone(),
            c.status.clone(),
            c.reason.clone(),
            c.message.clone(),
        )
    };
    own.iter()
        .all(|own| said.iter().any(|said| words(said) == words(own)))
}

/// What becomes of the node with its next status, as the kubelet's events have it: reasons and messages.
pub(super) fn turns(node: &str, before: &NodeStatus, own: &[NodeCondition]) -> Vec<(&'static str, String)> {
    let known = |kind: &str| {
        let mut conditions = before.conditions.iter().flatten();
        conditions
            .find(|known| known.type_ == kind)
            .map(|known| known.status.as_str())
    };
    let word = |condition: &NodeCondition| {
        let holds = condition.status == "True";
        Some(match (condition.type_.as_str(), holds) {
            ("MemoryPressure", true) => "NodeHasInsufficientMemory",
            ("MemoryPressure", false) => "NodeHasSufficientMemory",
            ("DiskPressure", true) => "NodeHasDiskPressure",
            ("DiskPressure", false) => "NodeHasNoDiskPressure",
            ("PIDPressure", true) => "NodeHasInsufficientPID",
            ("PIDPressure", false) => "NodeHasSufficientPID",
            ("Ready", true) => "NodeReady",
            ("Ready", false) => "NodeNotReady",
            _ => return None,
        })
    };
    let changed = own
        .iter()
        .filter(|own| known(&own.type_) != Some(own.status.as_str()));
    changed
        .filter_map(word)
        .map(|word| (word, format!("Node {node} status is now: {word}")))
        .collect()
}

/// Whether the machine was started anew since `before` was written.
pub(super) fn rebooted(before: &NodeStatus, boot_id: &str) -> bool {
    let known = before.node_info.as_ref().map(|info| info.boot_id.as_str());
    known.is_some_and(|known| !known.is_empty() && known != boot_id)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn health(pressures: Pressures) -> Health {
        Health {
            enforcement: watch::channel(Enforcement::InForce).1,
            host_counts: watch::channel(None).1,
            pressures: watch::channel(pressures).1,
            ends: CancellationToken::new(),
        }
    }

    #[test]
    fn conditions_are_in_kubernetes_words() {
        let ill = Pressures {
            memory: true,
            ..Pressures::default()
        };
        let health = health(ill);
        let said = |health: &Health| {
            let conditions = health.conditions(&NodeStatus::default()).into_iter();
            let said = conditions.map(|c| format!("{} {} {}", c.type_, c.status, c.reason.unwrap()));
            said.collect::<Vec<_>>()
        };
        assert_eq!(
            said(&health),
            [
                "MemoryPressure True KubeletHasInsufficientMemory",
                "DiskPressure False KubeletHasNoDiskPressure",
                "PIDPressure False KubeletHasSufficientPID",
                "Ready True KubeletReady",
            ]
        );
        health.ends.cancel();
        assert_eq!(said(&health)[3], "Ready False KubeletNotReady");
    }

    #[test]
    fn policy_that_is_not_in_force_shows_with_its_reason() {
        let said = |enforcement: Enforcement| {
            let condition = policy_enforced(&NodeStatus::default(), &enforcement);
            (condition.type_, condition.status, condition.message.unwrap())
        };
        let why = "map VERDICTS holds 10 entries, old and new tables together need 12";
        let (kind, status, message) = said(Enforcement::Behind(why.to_owned()));
        assert_eq!(
            (kind.as_str(), status.as_str(), message.as_str()),
            ("PolicyEnforced", "False", why)
        );
        assert_eq!(said(Enforcement::InForce).1, "True");
        assert_eq!(said(Enforcement::NotYet).1, "False");
    }

    #[test]
    fn a_condition_that_holds_on_keeps_its_time() {
        let health = health(Pressures::default());
        let first = health.conditions(&NodeStatus::default());
        let mut before = NodeStatus {
            conditions: Some(first),
            ..NodeStatus::default()
        };
        let old: Timestamp = "2020-01-01T00:00:00Z".parse().unwrap();
        for condition in before.conditions.iter_mut().flatten() {
            condition.last_transition_time = Some(Time(old));
        }
        let second = health.conditions(&before);
        assert!(second.iter().all(|c| c.last_transition_time == Some(Time(old))));
    }

    #[test]
    fn what_becomes_of_the_node_is_told_in_the_kubelets_words() {
        let own = |pressures| health(pressures).conditions(&NodeStatus::default());
        let words = |before: &NodeStatus, own: &[NodeCondition]| -> Vec<&str> {
            turns("n", before, own)
                .into_iter()
                .map(|(word, _)| word)
                .collect()
        };
        let well = own(Pressures::default());
        let all = [
            "NodeHasSufficientMemory",
            "NodeHasNoDiskPressure",
            "NodeHasSufficientPID",
            "NodeReady",
        ];
        assert_eq!(words(&NodeStatus::default(), &well), all);
        let mut before = NodeStatus {
            conditions: Some(well.clone()),
            ..NodeStatus::default()
        };
        assert!(words(&before, &well).is_empty());
        let ill = own(Pressures {
            disk: true,
            ..Pressures::default()
        });
        assert_eq!(
            turns("n", &before, &ill),
            [(
                "NodeHasDiskPressure",
                "Node n status is now: NodeHasDiskPressure".to_owned()
            )]
        );
        for condition in before.conditions.iter_mut().flatten() {
            condition.status = "Unknown".to_owned();
        }
        assert_eq!(words(&before, &well), all, "it is heard of again");
        assert!(!rebooted(&before, "a"), "nothing was known");
        before.node_info.get_or_insert_default().boot_id = "a".to_owned();
        assert!(!rebooted(&before, "a") && rebooted(&before, "b"));
    }
}
