//! Random clusters, policies and packets, for tests that compare what judges packets: the reference, the
//! compiled tables and the kernel.
//!
//! Everything is drawn from small pools, so that selectors select, CIDRs overlap and ports collide; the pools
//! hold the awkward: prefixes of every length, label names that are words of other grammars, ports at the
//! ends, two pods with one address, nodes that state none or several, fields that no validation would let through.
//!
//! [`kubernetes()`] makes clusters with NetworkPolicy objects, [`objects()`] those with objects of every kind, and
//! [`tiered()`] makes the ordered form with all that it can say.

#![expect(clippy::expect_used, reason = "a pool that does not parse is a broken test")]

mod breaking;
mod files;
mod kubernetes;
mod objects;
mod ordered;
mod pools;

use policies_compiler::{ClusterView, Policies};
use policies_ir::{
    cluster::Cluster,
    policy::{PolicySet, WorkloadKind},
    tables::{EndpointId, Packet},
};
use proptest::{collection::vec, prelude::*};

pub use breaking::break_object;
pub use files::{as_written, define_what_is_mentioned};
pub use kubernetes::{break_field, valid_network_policy};
pub use objects::{cluster_policy_value, object_value, objects};
pub use ordered::{expression, tiered};
pub use pools::{address, packet};

/// Kubernetes objects, and packets to judge. Some packets name an endpoint that does not exist.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The cluster.
    pub view: ClusterView,
    /// Packets, each at one endpoint.
    pub packets: Vec<(EndpointId, Packet)>,
}

/// The ordered form, and packets to judge.
#[derive(Debug, Clone)]
pub struct TieredScenario {
    /// Who has which address.
    pub cluster: Cluster,
    /// The policies.
    pub policies: PolicySet,
    /// Packets, each at one endpoint.
    pub packets: Vec<(EndpointId, Packet)>,
}

/// Kubernetes policies in a small cluster, and some packets. About one policy in ten has a field that is not
/// valid.
pub fn kubernetes() -> impl Strategy<Value = Scenario> {
    let packets = vec(packet(), 1..40);
    (pools::view(), vec(kubernetes::network_policy(1), 0..6), packets).prop_map(
        |(mut view, policies, packets)| {
            view.policies = numbered(policies);
            let packets = aim(&view.cluster(), packets);
            Scenario { view, packets }
        },
    )
}

/// The cluster of `view` with an endpoint for each host endpoint of its own node, as the agent would number them, and
/// its policies.
pub fn with_host_endpoints(view: &ClusterView) -> (Cluster, Policies) {
    let mut cluster = view.cluster();
    let hosts = cluster
        .members
        .iter_mut()
        .filter(|member| member.workload.kind == WorkloadKind::HostEndpoint && member.node == view.node);
    for (host, number) in hosts.zip(pools::FIRST_HOST_ENDPOINT..pools::ENDPOINTS) {
        host.endpoint = Some(EndpointId(number));
    }
    (cluster, view.policy_set(|_, _| {}))
}

/// Moves packets to endpoints that exist, but for those at the last number.
fn aim(cluster: &Cluster, mut packets: Vec<(EndpointId, Packet)>) -> Vec<(EndpointId, Packet)> {
    let endpoints: Vec<EndpointId> = cluster
        .members
        .iter()
        .filter_map(|member| member.endpoint)
        .collect();
    for ((endpoint, _), turn) in packets.iter_mut().zip(0..) {
        let chosen = endpoints
            .iter()
            .cycle()
            .nth(turn)
            .filter(|_| endpoint.0 != pools::ENDPOINTS);
        *endpoint = chosen.copied().unwrap_or(*endpoint);
    }
    packets
}

/// Gives each policy a name of its own.
fn numbered(
    policies: Vec<k8s_openapi::api::networking::v1::NetworkPolicy>,
) -> Vec<k8s_openapi::api::networking::v1::NetworkPolicy> {
    let named = policies.into_iter().enumerate().map(|(i, mut policy)| {
        policy.metadata.name = Some(format!("policy-{i}"));
        policy
    });
    named.collect()
}
