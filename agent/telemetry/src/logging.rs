//! `Log` rules: they decide nothing, so the kernel's tables do not have them. Whether one matched is found out here,
//! by asking the reference about the event.

use std::collections::BTreeMap;

use policies_ir::{
    cluster::Cluster,
    decide::{Step, decide},
    policy::{Action, EndpointPolicy, PolicySet, Workload},
    tables::{EndpointId, Packet, RuleName},
};

/// Most rules that one event names.
const MAX_NAMED: usize = 16;

/// Policies with a `Log` rule somewhere, and what they are about.
#[derive(Debug)]
pub struct LogRules {
    cluster: Cluster,
    policies: PolicySet,
    /// Of each endpoint that such a rule may be about, position among the members, and which part of that one it is.
    endpoints: BTreeMap<EndpointId, (usize, Part)>,
}

/// A host endpoint has three numbers, for what it judges by different policies.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// Flows that begin or end there; all that a pod has.
    Own,
    /// What the node forwards.
    Forwarded,
    /// Packets before flows are known.
    Untracked,
}

impl Part {
    fn policy<'a>(self, policies: &'a PolicySet, workload: &'a Workload) -> EndpointPolicy<'a> {
        match self {
            Self::Own => policies.for_endpoint(workload),
            Self::Forwarded => policies.for_forwarded(workload),
            Self::Untracked => policies.for_untracked(workload),
        }
    }
}

impl LogRules {
    /// Nothing if no rule about an endpoint of this node logs, which costs no more than finding that out.
    pub fn new(policies: PolicySet, cluster: impl FnOnce() -> Cluster) -> Option<Self> {
        let all = policies.tiers.iter().flat_map(|tier| &tier.policies);
        let mut rules = all.flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
        if !rules.any(|rule| rule.action == Action::Log) {
            return None;
        }
        let cluster = cluster();
        let mut endpoints = BTreeMap::new();
        for (position, member) in cluster.members.iter().enumerate() {
            let parts = [
                (member.endpoint, Part::Own),
                (member.forwarded, Part::Forwarded),
                (member.untracked, Part::Untracked),
            ];
            for (endpoint, part) in parts {
                let policy = part.policy(&policies, &member.workload);
                if let Some(endpoint) = endpoint.filter(|_| logs(&policy)) {
                    endpoints.insert(endpoint, (position, part));
                }
            }
        }
        (!endpoints.is_empty()).then_some(Self {
            cluster,
            policies,
            endpoints,
        })
    }

    /// `Log` rules that match `packet` before it is decided about.
    pub(crate) fn matched(&self, endpoint: EndpointId, packet: &Packet) -> Vec<RuleName> {
        let Some((position, part)) = self.endpoints.get(&endpoint) else {
            return Vec::new();
        };
        let Some(member) = self.cluster.members.get(*position) else {
            return Vec::new();
        };
        let policy = part.policy(&self.policies, &member.workload);
        let decision = decide(&policy, &self.cluster.flow(member, packet));
        let logged = decision.steps.into_iter().filter_map(|step| match step {
            Step::Rule {
                name,
                action: Action::Log,
                mismatch: None,
            } => Some(name),
            _ => None,
        });
        let mut names: Vec<RuleName> = logged.collect();
        // One rule of an object may be several here.
        names.dedup();
        names.truncate(MAX_NAMED);
        names
    }
}

fn logs(policy: &EndpointPolicy<'_>) -> bool {
    let applying = policy.tiers.iter().flat_map(|tier| &tier.policies);
    let mut rules = applying.flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
    rules.any(|rule| rule.action == Action::Log)
}
