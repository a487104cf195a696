//! Policy objects, read one by one, and put together.
//!
//! What an object says depends on the object, on what is behind the services it names and, for a
//! ClusterNetworkPolicy, on the nodes: whoever keeps a [`Reading`] reads again when one of those changes.

use std::{collections::BTreeMap, sync::Arc};

use api::{calico, cluster_policy::ClusterNetworkPolicy};
use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicySpec},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use policies_ir::{
    policy::{
        DefaultAction, EndpointToHost, Failsafe, Order, Policy, PolicySet, Profile, ProfileRules, Staged,
        Tier, Workload,
    },
    tables::Direction,
};

use crate::{
    calico::{
        BUILT_IN_TIERS, DEFAULT_TIER, RuleScope, Scope, Services, StagedAction, close_over, is_tier_name,
        read_configuration, read_policy, read_rules, read_staged_action, read_tier, shown_name,
    },
    cluster_policy::{self, Nodes},
    field::{Errors, FieldError},
    kubernetes,
    view::{ACCOUNT_PROFILE, ALLOW_PROFILE, CalicoObject, NAMESPACE_PROFILE, Policies},
};

/// Name of the settings that count.
pub(crate) const CONFIGURATION: &str = "default";
/// Beginnings of the names of profiles that nobody writes.
const COMPUTED_PROFILES: [&str; 2] = [NAMESPACE_PROFILE, ACCOUNT_PROFILE];

/// What an object says about policy.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reading {
    said: Said,
    /// For people.
    name: String,
    errors: Errors,
}

#[derive(Debug, Clone, PartialEq)]
enum Said {
    Tier(Tier),
    /// Its tier, and what it says.
    Policy(String, Arc<Policy>),
    Staged(Staged),
    Configuration(EndpointToHost, Failsafe),
    Profile(Profile),
    Nothing,
}

impl Reading {
    pub(crate) fn of_kubernetes(object: &NetworkPolicy) -> Self {
        let mut errors = Errors::new();
        let policy = kubernetes::read(object, &mut errors);
        Self::of_policy(DEFAULT_TIER.to_owned(), policy, errors)
    }

    pub(crate) fn of_cluster_policy(object: &ClusterNetworkPolicy, nodes: &Nodes) -> Self {
        let mut errors = Errors::new();
        let (tier, policy) = cluster_policy::read(object, nodes, &mut errors);
        Self::of_policy(tier, policy, errors)
    }

    pub(crate) fn of_calico(object: &CalicoObject, services: &Services) -> Self {
        let mut errors = Errors::new();
        let policy = |kind, scope, object, errors: &mut Errors| {
            let (tier, policy) = read_policy(kind, scope, object, services, errors);
            (policy.name.clone(), Said::Policy(tier, Arc::new(policy)))
        };
        let (name, said) = match object {
            CalicoObject::Tier(object) => {
                let tier = read_tier(object, &mut errors);
                (format!("Tier {}", tier.name), Said::Tier(tier))
            }
            CalicoObject::NetworkPolicy(object) => {
                policy("NetworkPolicy", Scope::Namespace, object, &mut errors)
            }
            CalicoObject::GlobalNetworkPolicy(object) => {
                policy("GlobalNetworkPolicy", Scope::Cluster, object, &mut errors)
            }
            CalicoObject::FelixConfiguration(object) => {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                if name != CONFIGURATION {
                    errors.push(FieldError {
                        field: "metadata.name".to_owned(),
                        problem: format!("settings of single nodes are not supported by this version, so {name:?} would not count"),
                        fix: "name the settings of all nodes default, or leave the object out".to_owned(),
                    });
                }
                let (to_host, failsafe) = read_configuration(&object.spec, &mut errors);
                let said = match name == CONFIGURATION {
                    true => Said::Configuration(to_host, failsafe),
                    false => Said::Nothing,
                };
                (format!("FelixConfiguration {name}"), said)
            }
            CalicoObject::Profile(object) => {
                let profile = read_profile(object, services, &mut errors);
                (format!("Profile {}", profile.name), Said::Profile(profile))
            }
            CalicoObject::StagedNetworkPolicy(_)
            | CalicoObject::StagedGlobalNetworkPolicy(_)
            | CalicoObject::StagedKubernetesNetworkPolicy(_) => {
                let staged = read_staged(object, services, &mut errors);
                // What is wrong with it closes nothing that is enforced, but it is not what was meant.
                (staged_name(object), staged.map_or(Said::Nothing, Said::Staged))
            }
            CalicoObject::NetworkSet(_)
            | CalicoObject::GlobalNetworkSet(_)
            | CalicoObject::HostEndpoint(_) => (String::new(), Said::Nothing),
        };
        Self { said, name, errors }
    }

    /// Name of the object, and everything that could not be understood.
    pub(crate) fn errors(&self) -> impl Iterator<Item = (&str, &FieldError)> {
        self.errors.iter().map(|error| (self.name.as_str(), error))
    }

    pub(crate) fn is_tier(&self) -> bool {
        matches!(self.said, Said::Tier(_))
    }

    fn of_policy(tier: String, policy: Policy, errors: Errors) -> Self {
        Self {
            name: policy.name.clone(),
            said: Said::Policy(tier, Arc::new(policy)),
            errors,
        }
    }
}

/// All policy that these objects say. `profiles` are those that nobody wrote; `doubtful` network sets and host
/// endpoints of which a part could not be understood.
pub(crate) fn put_together<'a>(
    readings: impl Iterator<Item = &'a Reading> + Clone,
    mut profiles: BTreeMap<String, Profile>,
    doubtful: &[Workload],
) -> Policies {
    let mut tiers: BTreeMap<String, Tier> = BTreeMap::new();
    for (name, order, default_action) in BUILT_IN_TIERS {
        let tier = Tier {
            name: name.to_owned(),
            order: Order(Some(order)),
            default_action,
            policies: Vec::new(),
        };
        tiers.insert(name.to_owned(), tier);
    }
    for reading in readings.clone() {
        if let Said::Tier(tier) = &reading.said {
            let mut tier = tier.clone();
            // Without an order it comes behind those that have one, but before tiers that nobody defined.
            tier.order.0.get_or_insert(f64::INFINITY);
            tiers.insert(tier.name.clone(), tier);
        }
    }
    let (mut endpoint_to_host, mut failsafe) = read_configuration(&Default::default(), &mut Errors::new());
    let mut staged = Vec::new();
    for reading in readings {
        match &reading.said {
            Said::Policy(tier, policy) => {
                let missing = || Tier {
                    // Nobody said when it comes, nor how it ends: it comes last, and denies. What is no name of a
                    // tier may have been meant to be any; its policies deny everything, and come first.
                    name: tier.clone(),
                    order: Order((!is_tier_name(tier)).then_some(f64::NEG_INFINITY)),
                    default_action: DefaultAction::Deny,
                    policies: Vec::new(),
                };
                let tier = tiers.entry(tier.clone()).or_insert_with(missing);
                tier.policies.push(Arc::clone(policy));
            }
            Said::Staged(change) => staged.push(change.clone()),
            Said::Configuration(to_host, open) => {
                (endpoint_to_host, failsafe) = (*to_host, open.clone());
            }
            Said::Profile(profile) => {
                let name = profile.name.clone();
                profiles.entry(name).or_insert_with(|| profile.clone());
            }
            Said::Tier(_) | Said::Nothing => {}
        }
    }
    let mut enforced = PolicySet {
        tiers: tiers.into_values().collect(),
        profiles,
        failsafe: Arc::new(failsafe),
        endpoint_to_host,
    };
    close_over(&mut enforced, doubtful);
    Policies { enforced, staged }
}

fn read_profile(object: &calico::Profile, services: &Services, errors: &mut Errors) -> Profile {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    if COMPUTED_PROFILES.iter().any(|prefix| name.starts_with(prefix)) || name == ALLOW_PROFILE {
        errors.push(FieldError {
            field: "metadata.name".to_owned(),
            problem: format!(
                "{name:?} is computed from namespaces and service accounts, so this object would not count"
            ),
            fix: "leave the object out, or give the profile another name".to_owned(),
        });
    }
    let scope = RuleScope {
        namespace: "",
        services,
        stateless: false,
    };
    let spec = &object.spec;
    Profile {
        name: name.to_owned(),
        rules: ProfileRules::Own {
            ingress: read_rules(&spec.ingress, Direction::Ingress, scope, errors),
            egress: read_rules(&spec.egress, Direction::Egress, scope, errors),
        },
    }
}

/// The change that a staged policy would be; nothing for other objects, and for one that would change nothing.
fn read_staged(object: &CalicoObject, services: &Services, errors: &mut Errors) -> Option<Staged> {
    let (kind, enforced_kind, scope, object) = match object {
        CalicoObject::StagedNetworkPolicy(object) => {
            ("StagedNetworkPolicy", "NetworkPolicy", Scope::Namespace, object)
        }
        CalicoObject::StagedGlobalNetworkPolicy(object) => {
            let kind = "StagedGlobalNetworkPolicy";
            (kind, "GlobalNetworkPolicy", Scope::Cluster, object)
        }
        CalicoObject::StagedKubernetesNetworkPolicy(object) => {
            return read_staged_kubernetes(object, errors);
        }
        _ => return None,
    };
    let metadata = &object.metadata;
    let namespace = match scope {
        Scope::Namespace => metadata.namespace.as_deref().unwrap_or_default(),
        Scope::Cluster => "",
    };
    let name = metadata.name.as_deref().unwrap_or_default();
    let action = read_staged_action(object.spec.staged_action.as_deref(), errors);
    let (tier, policy) = read_policy(kind, scope, object, services, errors);
    let policy = match action {
        StagedAction::Nothing => return None,
        StagedAction::Set => Some(Arc::new(policy)),
        StagedAction::Delete => {
            let empty = calico::PolicySpec {
                staged_action: object.spec.staged_action.clone(),
                tier: object.spec.tier.clone(),
                ..calico::PolicySpec::default()
            };
            check_deletes_only(object.spec == empty, "tier and stagedAction", errors);
            None
        }
    };
    Some(Staged {
        tier,
        replaces: shown_name(enforced_kind, namespace, name),
        policy,
    })
}

fn read_staged_kubernetes(
    object: &calico::StagedKubernetesNetworkPolicy,
    errors: &mut Errors,
) -> Option<Staged> {
    let spec = &object.spec;
    let action = read_staged_action(spec.staged_action.as_deref(), errors);
    let mut policy = NetworkPolicy {
        metadata: object.metadata.clone(),
        spec: None,
    };
    let replaces = kubernetes::read(&policy, &mut Errors::new()).name;
    policy.spec = Some(NetworkPolicySpec {
        pod_selector: spec.pod_selector.clone(),
        ingress: spec.ingress.clone(),
        egress: spec.egress.clone(),
        policy_types: spec.policy_types.clone(),
    });
    let mut read = kubernetes::read(&policy, errors);
    read.name = format!(
        "Staged{}",
        read.name.replacen("NetworkPolicy", "KubernetesNetworkPolicy", 1)
    );
    let policy = match action {
        StagedAction::Nothing => return None,
        StagedAction::Set => Some(Arc::new(read)),
        StagedAction::Delete => {
            check_deletes_only(is_kubernetes_empty(spec), "stagedAction", errors);
            None
        }
    };
    Some(Staged {
        tier: DEFAULT_TIER.to_owned(),
        replaces,
        policy,
    })
}

/// Name of a staged policy for people; empty for other objects.
fn staged_name(object: &CalicoObject) -> String {
    let (kind, metadata) = match object {
        CalicoObject::StagedNetworkPolicy(object) => ("StagedNetworkPolicy", &object.metadata),
        CalicoObject::StagedGlobalNetworkPolicy(object) => ("StagedGlobalNetworkPolicy", &object.metadata),
        CalicoObject::StagedKubernetesNetworkPolicy(object) => {
            ("StagedKubernetesNetworkPolicy", &object.metadata)
        }
        _ => return String::new(),
    };
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    shown_name(kind, namespace, metadata.name.as_deref().unwrap_or_default())
}

/// Whether the policy has no field but its action, or only fields that are empty.
fn is_kubernetes_empty(spec: &calico::StagedKubernetesSpec) -> bool {
    let selector = spec.pod_selector.as_ref();
    selector.is_none_or(|selector| *selector == LabelSelector::default())
        && spec.ingress.as_ref().is_none_or(Vec::is_empty)
        && spec.egress.as_ref().is_none_or(Vec::is_empty)
        && spec.policy_types.as_ref().is_none_or(Vec::is_empty)
}

/// What is deleted has no other fields: whoever wrote some expected them to count.
fn check_deletes_only(is_empty: bool, fields: &str, errors: &mut Errors) {
    if !is_empty {
        errors.push(FieldError {
            field: "spec".to_owned(),
            problem: format!("a policy that is to be deleted has no fields but {fields}"),
            fix: "leave the others out".to_owned(),
        });
    }
}
