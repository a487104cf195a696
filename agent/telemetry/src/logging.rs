//! `Log` rules: they decide nothing, so the kernel's tables do not have them. Whether one matched is found out here,
//! by asking the reference about the event.

use std::collections::BTreeMap;

use policies_ir::{
    cluster::Cluster,
    decide::{Step, decide},
    policy::{Action, PolicySet},
    tables::{EndpointId, Packet, RuleName},
};

/// Most rules that one event names.
const MAX_NAMED: usize = 16;

/// Policies with a `Log` rule somewhere, and what they are about.
#[derive(Debug)]
pub struct LogRules {
    cluster: Cluster,
    policies: PolicySet,
    /// Position among the members of each endpoint that such a rule may be about.
    endpoints: BTreeMap<EndpointId, usize>,
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
            let Some(endpoint) = member.endpoint else {
                continue;
            };
            let policy = policies.for_endpoint(&member.workload);
            let applying = policy.tiers.iter().flat_map(|tier| &tier.policies);
            let mut rules = applying.flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
            if rules.any(|rule| rule.action == Action::Log) {
                endpoints.insert(endpoint, position);
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
        let position = self.endpoints.get(&endpoint);
        let Some(member) = position.and_then(|position| self.cluster.members.get(*position)) else {
            return Vec::new();
        };
        let policy = self.policies.for_endpoint(&member.workload);
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
