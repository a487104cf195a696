//! Calico's kinds, `projectcalico.org/v3`, as they stand on the wire: fields as people write them, unjudged.
//! What they mean, and which of them are valid, says `policies/compiler`.
//!
//! Names and shapes: `api/pkg/apis/projectcalico/v3` of Calico. A field that only some of the kinds have is
//! in the shared struct all the same; the reader refuses it where it does not belong.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{NetworkPolicyEgressRule, NetworkPolicyIngressRule},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use serde::{Deserialize, Serialize};

/// `apiVersion` of these kinds.
pub const API_VERSION: &str = "projectcalico.org/v3";

/// An object of one of the kinds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Object<S> {
    /// Always [`API_VERSION`]; empty where the reader has taken it off.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// The kind; empty where the reader has taken it off.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the object says.
    #[serde(default = "S::default", bound(deserialize = "S: Default + Deserialize<'de>"))]
    pub spec: S,
}

/// A group of policies that is judged as one step.
pub type Tier = Object<TierSpec>;
/// NetworkPolicy of one namespace. Not to be confused with the one of `networking.k8s.io`.
pub type NetworkPolicy = Object<PolicySpec>;
/// NetworkPolicy of the whole cluster.
pub type GlobalNetworkPolicy = Object<PolicySpec>;
/// A [`NetworkPolicy`] that is judged beside the enforced ones, and not enforced.
pub type StagedNetworkPolicy = Object<PolicySpec>;
/// A [`GlobalNetworkPolicy`] that is judged beside the enforced ones, and not enforced.
pub type StagedGlobalNetworkPolicy = Object<PolicySpec>;
/// A NetworkPolicy of `networking.k8s.io` that is judged beside the enforced ones, and not enforced.
pub type StagedKubernetesNetworkPolicy = Object<StagedKubernetesSpec>;
/// A labelled list of addresses, in a namespace.
pub type NetworkSet = Object<NetworkSetSpec>;
/// A labelled list of addresses, of the whole cluster.
pub type GlobalNetworkSet = Object<NetworkSetSpec>;
/// An interface of a node, as policy sees it.
pub type HostEndpoint = Object<HostEndpointSpec>;
/// Rules that an endpoint has when no tier decided. Derived from namespaces and service accounts; read-only.
pub type Profile = Object<ProfileSpec>;
/// Settings of the node agents. Of Calico's many, those that decide what happens to a packet.
pub type FelixConfiguration = Object<FelixConfigurationSpec>;

/// What a tier says.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TierSpec {
    /// Place among the tiers: lower comes first, absent last, ties by name.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "number")]
    pub order: Option<f64>,
    /// `Pass` or `Deny`; absent means `Deny`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_action: Option<String>,
}

/// What a policy says.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySpec {
    /// `Set`, `Delete`, `Learn` or `Ignore`; staged kinds only, absent means `Set`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged_action: Option<String>,
    /// Its tier; absent means `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// Place within the tier: lower comes first, absent last, ties by name.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "number")]
    pub order: Option<f64>,
    /// Rules for flows to the endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<Rule>,
    /// Rules for flows from the endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<Rule>,
    /// Endpoints, by an expression over their labels; empty means all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// `Ingress` and `Egress`; empty: see the compiler.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<String>,
    /// Endpoints, by the labels of their service account.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_account_selector: String,
    /// Endpoints, by the labels of their namespace; global kinds only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace_selector: String,
    /// Judged before connections are tracked; global kinds only, for host endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub do_not_track: Option<bool>,
    /// Judged before destinations are translated; global kinds only, for host endpoints.
    #[serde(default, rename = "preDNAT", skip_serializing_if = "Option::is_none")]
    pub pre_dnat: Option<bool>,
    /// Also for what a node forwards; global kinds only, for host endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apply_on_forward: Option<bool>,
    /// Hints that say nothing about meaning.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub performance_hints: Vec<String>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// `Allow`, `Deny`, `Log` or `Pass`.
    #[serde(default)]
    pub action: String,
    /// 4 or 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_version: Option<i32>,
    /// Name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<IntOrString>,
    /// Name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_protocol: Option<IntOrString>,
    /// Kind of ICMP message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// Kind of ICMP message that does not match.
    #[serde(default, rename = "notICMP", skip_serializing_if = "Option::is_none")]
    pub not_icmp: Option<Icmp>,
    /// Where the flow starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<EntityRule>,
    /// Where it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<EntityRule>,
    /// Needs a proxy that reads HTTP, which Palisade does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<serde_json::Value>,
    /// For people and programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<RuleMetadata>,
}

/// Kind of an ICMP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Icmp {
    /// Type, 0 to 254.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<i32>,
    /// Code, 0 to 255.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
}

/// Conditions on one end of a flow.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntityRule {
    /// Addresses and CIDRs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<String>,
    /// Addresses and CIDRs that do not match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_nets: Vec<String>,
    /// By labels.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// By labels that do not match.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub not_selector: String,
    /// By labels of the namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace_selector: String,
    /// By service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<ServiceName>,
    /// Numbers, `first:last` ranges and names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<IntOrString>,
    /// Numbers, `first:last` ranges and names that do not match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<IntOrString>,
    /// By service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<ServiceAccounts>,
    /// By the names that the trusted resolver gave for the address; destinations of Allow rules for egress only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
}

/// Names a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceName {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its namespace; empty means that of the policy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// Service accounts; both conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceAccounts {
    /// By name; empty means any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// By labels.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
}

/// What a rule says to people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RuleMetadata {
    /// Key and value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a [`StagedKubernetesNetworkPolicy`] says.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StagedKubernetesSpec {
    /// `Set`, `Delete`, `Learn` or `Ignore`; absent means `Set`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged_action: Option<String>,
    /// As in `networking.k8s.io`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// As in `networking.k8s.io`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<NetworkPolicyIngressRule>>,
    /// As in `networking.k8s.io`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<NetworkPolicyEgressRule>>,
    /// As in `networking.k8s.io`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_types: Option<Vec<String>>,
}

/// What a network set holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkSetSpec {
    /// Addresses and CIDRs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<String>,
    /// Names whose addresses belong to the set, as destinations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_egress_domains: Vec<String>,
}

/// What a host endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostEndpointSpec {
    /// Name of the node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Name of the interface, or `*` for all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interface_name: String,
    /// Addresses by which selectors find it.
    #[serde(default, rename = "expectedIPs", skip_serializing_if = "Vec::is_empty")]
    pub expected_ips: Vec<String>,
    /// Names of profiles, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    /// Ports that it gives a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<EndpointPort>,
}

/// A port with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPort {
    /// The name.
    pub name: String,
    /// Name or number of the protocol.
    pub protocol: IntOrString,
    /// The port.
    pub port: i32,
}

/// What a profile says.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileSpec {
    /// Rules for flows to the endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<Rule>,
    /// Rules for flows from the endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<Rule>,
    /// Labels that endpoints with the profile inherit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels_to_apply: BTreeMap<String, String>,
}

/// Settings of the node agents.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FelixConfigurationSpec {
    /// What happens to flows from a pod to its own node: `Drop` (the default), `Return` or `Accept`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_endpoint_to_host_action: Option<String>,
    /// Ports of a node that stay open to it; absent means Calico's own list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failsafe_inbound_host_ports: Option<Vec<ProtoPort>>,
    /// Ports that stay open from a node; absent means Calico's own list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failsafe_outbound_host_ports: Option<Vec<ProtoPort>>,
}

/// One failsafe port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtoPort {
    /// `TCP`, `UDP` or `SCTP`, in any case; absent means TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The port.
    pub port: i32,
    /// Addresses of the other end; absent means any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<String>,
}

/// Writes 10 as people do, not as 10.0. Beyond this many bits not every whole number is a float.
fn number<S: serde::Serializer>(number: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match number {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "whole, and small enough to be exact"
        )]
        Some(number) if number.fract() == 0.0 && number.abs() <= EXACT => {
            serializer.serialize_some(&(*number as i64))
        }
        number => number.serialize(serializer),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn orders_are_written_as_they_were_read() {
        for order in [json!(10), json!(1_000_000), json!(0.5), json!(-3), json!(1e300)] {
            let tier: Tier = serde_json::from_value(json!({"spec": {"order": order}})).unwrap();
            assert_eq!(serde_json::to_value(&tier.spec).unwrap(), json!({"order": order}));
        }
    }
}
