//! The smallest policies that allow what was seen and nothing else.
//!
//! Pods stand together when their labels are the same but for those that controllers give each pod or each revision;
//! that is a workload, and what one pod of it did, all may. Every namespace with a workload denies by default; each
//! workload then gets one policy with what it sent and received. The result is proved: the model of the written
//! objects is compared with what was recorded.
//!
//! Smallest means: one policy for a workload that was seen to exchange anything, and in it, for each direction, the fewest rules
//! that say this and nothing else ([`cover`]). No policy, rule, end of a rule or port could go without a recorded flow
//! being denied; only a default-deny may change nothing, and stays for pods that come later.

mod cover;
mod observe;
mod select;
mod verify;
mod write;

use api::{flow::FlowEvent, selector::Labels};
use policies_compiler::ClusterView;
use serde_json::Value;

use crate::model::Model;
use observe::Observed;

/// Kind of the objects that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `NetworkPolicy` of `networking.k8s.io/v1`, which knows TCP, UDP and SCTP.
    Kubernetes,
    /// `NetworkPolicy` of `projectcalico.org/v3`, which knows every protocol.
    Calico,
}

/// Policies that allow what was recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Recommendation {
    /// The objects, those of one namespace together.
    pub objects: Vec<Value>,
    /// Connections that were recorded as allowed, each workload, service and peer counted once.
    pub connections: usize,
    /// For people: what was recorded and is not allowed, and why, or does not pass although it is allowed.
    pub left_out: Vec<String>,
}

/// Why there is no recommendation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecommendError {
    /// No pod, so nothing to select.
    #[error(
        "there are no pods to recommend policies for; give the objects that were there when flows were recorded"
    )]
    NoPods,
    /// No connection to allow: policies that allow nothing would be right, and nobody asks for them.
    #[error("policies for these flows would deny everything: {}", nothing(.left_out))]
    NothingToAllow {
        /// What was recorded and is not allowed, and why.
        left_out: Vec<String>,
    },
    /// The written objects do not say what was recorded. Nothing that is recorded should cause this.
    #[error("the policies would not be exact: {0}")]
    NotExact(String),
}

/// Writes policies for the pods of `view` that allow the flows that were allowed, and proves them. Policies of `view`
/// play no part: the result replaces them.
pub fn recommend(
    view: &ClusterView,
    flows: &[FlowEvent],
    dialect: Dialect,
) -> Result<Recommendation, RecommendError> {
    // Without its policies a view is still the map from names to addresses and labels.
    let bare = without_policies(view);
    let model = Model::new(&bare);
    let mut observed = Observed::new(&model, flows);
    if observed.workloads.is_empty() {
        return Err(RecommendError::NoPods);
    }
    observed.keep_expressible(dialect);
    if observed.connections.is_empty() {
        let left_out = observed.left_out;
        return Err(RecommendError::NothingToAllow { left_out });
    }
    let objects = write::objects(&observed, dialect);
    let dropped = verify::verify(&bare, &observed, &objects)?;
    Ok(Recommendation {
        objects,
        connections: observed.connections.len(),
        left_out: observed.left_out.into_iter().chain(dropped).collect(),
    })
}

/// The `podSelector` that [`recommend`] writes for the workload of a pod: it finds its pods, whatever their revision, and no
/// other pods of `view`. A pod that `view` does not have is one with these labels.
pub fn pod_selector(view: &ClusterView, namespace: &str, pod: &str, labels: &Labels) -> Value {
    let bare = without_policies(view);
    let selector = observe::selector_of(&Model::new(&bare), namespace, pod, labels);
    write::label_selector(&selector)
}

fn nothing(left_out: &[String]) -> String {
    match left_out.is_empty() {
        true => "none is recorded".to_owned(),
        false => format!(
            "there is no connection to allow; left out were {}",
            left_out.join("; ")
        ),
    }
}

fn without_policies(view: &ClusterView) -> ClusterView {
    use policies_compiler::CalicoObject::{
        GlobalNetworkPolicy, NetworkPolicy, StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy,
        StagedNetworkPolicy, Tier,
    };
    let mut bare = view.clone();
    bare.policies.clear();
    bare.cluster_policies.clear();
    bare.calico.retain(|object| {
        !matches!(
            object,
            NetworkPolicy(_)
                | GlobalNetworkPolicy(_)
                | StagedNetworkPolicy(_)
                | StagedGlobalNetworkPolicy(_)
                | StagedKubernetesNetworkPolicy(_)
                | Tier(_)
        )
    });
    bare
}
