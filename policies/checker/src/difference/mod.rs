//! What a change of policies, or of the workloads under them, opens and closes.

mod compare;
mod ends;
mod together;

use serde::Serialize;

use compare::Both;
pub(crate) use ends::{addresses_of, parts};
use together::{Located, together};

use crate::{model::Model, names::Names, packet::Packet, space::ServiceText};

/// What happens to flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// They were denied, and are allowed.
    Opens,
    /// They were allowed, and are denied.
    Closes,
}

/// Flows between two groups of ends that a change opens or closes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What happens to them.
    pub effect: Effect,
    /// Source.
    pub from: String,
    /// Destination.
    pub to: String,
    /// Family of addresses, where the other family does not change alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<&'static str>,
    /// The flows, in one line.
    pub text: String,
    /// The flows.
    pub services: Vec<ServiceText>,
    /// One of them, as it was judged before; absent if an end did not exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Packet>,
    /// The same, as it is judged after; absent if an end no longer exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Packet>,
}

/// Everything that `new` opens or closes, compared with `old`. Workloads are the same when their names are; those
/// that only one has are compared with nothing, and the node that a pod is on with the one that it was on. Empty exactly when the two are equivalent.
pub fn difference(old: &Model, new: &Model) -> Vec<Change> {
    let asking = [old, new].map(|model| (model.cluster(), model.policies()));
    let names = Names::of(&asking);
    let again = |model: &Model| {
        let (cluster, policies) = (model.cluster().clone(), model.policies().clone());
        (*model.names() != names).then(|| Model::with_names(cluster, policies, names.clone()))
    };
    // Names that either asks for are asked of both.
    let (old_again, new_again) = (again(old), again(new));
    let (old, new) = (
        old_again.as_ref().unwrap_or(old),
        new_again.as_ref().unwrap_or(new),
    );
    let both = Both::new(old, new);
    let mut changes = Vec::new();
    for (i, from) in both.ends.iter().enumerate() {
        for (j, to) in both.ends.iter().enumerate() {
            if both.judges(i == j, from, to) {
                let found = both.changes(from, to).into_iter();
                changes.extend(found.map(|change| Located {
                    change,
                    from: from.located(),
                    to: to.located(),
                }));
            }
        }
    }
    changes.sort_by(|a, b| a.change.cmp(&b.change));
    together(changes)
}
