//! What volumes of claims hold, for Prometheus, under the names of the kubelet's `/metrics`.
//!
//! Nothing is measured here: the tasks of pods look at what their pods may write to, and note it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
};

use prometheus_client::{
    encoding::text::encode_registry,
    metrics::{family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::pods::PodId;

type Bytes = Family<[(&'static str, String); 2], Gauge<u64, AtomicU64>>;

/// What was measured last of each claim that a pod of this node may write to. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Claims(Arc<Mutex<BTreeMap<Claim, Measured>>>);

/// Namespace and name.
type Claim = (String, String);

/// One look at a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filled {
    /// Of one that holds more than its capacity perhaps not all of them: nobody looks further.
    pub(crate) used_bytes: u64,
    pub(crate) capacity_bytes: u64,
}

struct Measured {
    filled: Filled,
    /// By whose looks it is known, by UID.
    pods: BTreeSet<String>,
}

impl Claims {
    /// Notes a look on behalf of a pod; the newest one counts.
    pub(crate) fn note(&self, pod: &PodId, claim: &str, filled: Filled) {
        let mut all = self.all();
        let measured = all.entry((pod.namespace.clone(), claim.to_owned()));
        let measured = measured.or_insert_with(|| Measured {
            filled,
            pods: BTreeSet::new(),
        });
        measured.filled = filled;
        measured.pods.insert(pod.uid.clone());
    }

    /// Forgets a pod, and what nobody looks at any more.
    pub(crate) fn forget(&self, uid: &str) {
        self.all().retain(|_, measured| {
            measured.pods.remove(uid);
            !measured.pods.is_empty()
        });
    }

    /// The text, without the line that ends one. An error means that memory for it is lacking.
    pub(crate) fn exposition(&self) -> Result<String, fmt::Error> {
        let [used, capacity, available] = std::array::from_fn(|_| Bytes::default());
        for ((namespace, claim), measured) in &*self.all() {
            let labels = [
                ("namespace", namespace.clone()),
                ("persistentvolumeclaim", claim.clone()),
            ];
            let Filled {
                used_bytes,
                capacity_bytes,
            } = measured.filled;
            used.get_or_create(&labels).set(used_bytes);
            capacity.get_or_create(&labels).set(capacity_bytes);
            available
                .get_or_create(&labels)
                .set(capacity_bytes.saturating_sub(used_bytes));
        }
        let mut registry = Registry::with_prefix("kubelet_volume_stats");
        registry.register_with_unit("used", "Bytes that the volume holds", Unit::Bytes, used);
        registry.register_with_unit("capacity", "Bytes that it may hold", Unit::Bytes, capacity);
        registry.register_with_unit("available", "Bytes for which it has room", Unit::Bytes, available);
        let mut text = String::new();
        encode_registry(&mut text, &registry)?;
        Ok(text)
    }

    /// A panic cannot leave it half-changed: every change is one of one entry.
    fn all(&self) -> MutexGuard<'_, BTreeMap<Claim, Measured>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> PodId {
        PodId {
            uid: uid.to_owned(),
            namespace: "shop".to_owned(),
            name: uid.to_owned(),
        }
    }

    fn samples(claims: &Claims) -> Vec<String> {
        let text = claims.exposition().unwrap();
        assert!(!text.contains("# EOF"), "more may follow");
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.retain(|line| !line.starts_with('#'));
        lines.sort();
        lines
    }

    #[test]
    fn names_are_the_kubelets_and_the_newest_look_counts() {
        let claims = Claims::default();
        let filled = |used_bytes| Filled {
            used_bytes,
            capacity_bytes: 100,
        };
        claims.note(&pod("a"), "data", filled(120));
        claims.note(&pod("b"), "data", filled(30));
        let labels = "{namespace=\"shop\",persistentvolumeclaim=\"data\"}";
        let expected = [("available", 70), ("capacity", 100), ("used", 30)]
            .map(|(what, bytes)| format!("kubelet_volume_stats_{what}_bytes{labels} {bytes}"));
        assert_eq!(samples(&claims), expected);
        claims.forget("b");
        assert_eq!(samples(&claims), expected, "the other pod still has it");
        claims.note(&pod("a"), "data", filled(120));
        assert!(
            samples(&claims).contains(&format!("kubelet_volume_stats_available_bytes{labels} 0")),
            "more than full is full"
        );
        claims.forget("a");
        assert!(samples(&claims).is_empty());
    }
}
