//! Who and what the numbers in a record stand for.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::{Arc, Condvar, Mutex, PoisonError, RwLock},
    time::Duration,
};

use api::{flow::EndpointRef, selector::Labels};
use policies_ir::tables::{EndpointId, NodeTables};

use crate::logging::LogRules;

/// How many changes of policy back a record may come from and still be named. A record waits on the ring for far less
/// time than so many changes take.
const SNAPSHOTS_KEPT: usize = 16;
/// Most labels of one end that an event carries, and most bytes of them.
const MAX_LABELS: usize = 32;
const MAX_LABEL_BYTES: usize = 2048;

/// The names after one change of policy.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The tables; only the rule names matter here.
    pub tables: Arc<NodeTables>,
    /// Change that each endpoint follows: an endpoint that this change did not reach still follows an earlier one.
    pub changes: BTreeMap<EndpointId, u32>,
    /// The tables as they would be if the staged policies were enforced; absent if there are none.
    pub staged: Option<Arc<NodeTables>>,
    /// Rules that only log; absent if there are none.
    pub logging: Option<Arc<LogRules>>,
    /// Pods and host endpoints of this node, by endpoint.
    pub endpoints: BTreeMap<EndpointId, Arc<NamedEndpoint>>,
    /// Endpoints that judge what this node forwards.
    pub forwarding: BTreeSet<EndpointId>,
    /// All pods and host endpoints that are known, by address.
    pub addresses: Arc<BTreeMap<IpAddr, Arc<NamedEndpoint>>>,
}

/// A pod or host endpoint as events show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedEndpoint {
    pub(crate) endpoint: EndpointRef,
    pub(crate) labels: Labels,
    /// How many labels there was no room for.
    pub(crate) omitted: u32,
}

/// Names, published by the agent whenever it has changed the datapath's tables.
#[derive(Debug, Default)]
pub struct Names {
    snapshots: RwLock<VecDeque<Arc<Snapshot>>>,
    /// Whether there are any, and who waits for that.
    published: Mutex<bool>,
    first: Condvar,
}

impl NamedEndpoint {
    /// An endpoint with as many of its labels as an event may carry, in alphabetical order.
    pub fn new(endpoint: EndpointRef, labels: &Labels) -> Self {
        let mut bytes = 0;
        let fits = |(key, value): &(&String, &String)| {
            bytes += key.len() + value.len();
            bytes <= MAX_LABEL_BYTES
        };
        let kept: Labels = labels
            .iter()
            .take(MAX_LABELS)
            .take_while(fits)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Self {
            omitted: u32::try_from(labels.len() - kept.len()).unwrap_or(u32::MAX),
            endpoint,
            labels: kept,
        }
    }
}

impl Names {
    /// No names.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the newest names, with the changes that `Datapath::sync` returned for these tables.
    pub fn publish(&self, snapshot: Snapshot) {
        // A panic while the lock was held leaves nothing half done: both statements that change it are single moves.
        let mut snapshots = self.snapshots.write().unwrap_or_else(PoisonError::into_inner);
        snapshots.push_front(Arc::new(snapshot));
        snapshots.truncate(SNAPSHOTS_KEPT);
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.first.notify_all();
    }

    /// Waits for the first names, no longer than `timeout`. Whether there are any.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .first
            .wait_timeout_while(published, timeout, |published| !*published);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The newest names.
    pub fn newest(&self) -> Arc<Snapshot> {
        let snapshots = self.snapshots.read().unwrap_or_else(PoisonError::into_inner);
        snapshots.front().cloned().unwrap_or_default()
    }

    /// The pod or host endpoint of a number, gone ones included for a while.
    pub(crate) fn endpoint(&self, endpoint: EndpointId) -> Option<EndpointRef> {
        let snapshots = self.snapshots.read().unwrap_or_else(PoisonError::into_inner);
        snapshots
            .iter()
            .find_map(|snapshot| snapshot.endpoints.get(&endpoint))
            .map(|named| named.endpoint.clone())
    }

    /// The names that hold for what `change` decides at `endpoint`, and whether they are really its own: pods of a
    /// change that is not known are looked up in the newest names that have the endpoint, but its rules have other
    /// numbers.
    pub fn of(&self, endpoint: EndpointId, change: u32) -> (Arc<Snapshot>, bool) {
        let snapshots = self.snapshots.read().unwrap_or_else(PoisonError::into_inner);
        let follows = |snapshot: &&Arc<Snapshot>| snapshot.changes.get(&endpoint) == Some(&change);
        if let Some(snapshot) = snapshots.iter().find(follows) {
            return (Arc::clone(snapshot), true);
        }
        let knows = |snapshot: &&Arc<Snapshot>| snapshot.endpoints.contains_key(&endpoint);
        let snapshot = snapshots.iter().find(knows).or(snapshots.front());
        (snapshot.cloned().unwrap_or_default(), false)
    }
}

#[cfg(test)]
mod tests {
    use api::flow::PodRef;

    use super::*;

    #[test]
    fn labels_are_bounded_and_the_rest_is_counted() {
        let pod = PodRef {
            namespace: "a".to_owned(),
            name: "p".to_owned(),
        };
        let labels = |count: usize, length: usize| -> Labels {
            (0..count)
                .map(|number| (format!("{number:03}"), "x".repeat(length)))
                .collect()
        };
        let of = |labels: &Labels| {
            let named = NamedEndpoint::new(pod.clone().into(), labels);
            (named.labels.len(), named.omitted)
        };
        assert_eq!(of(&labels(3, 10)), (3, 0));
        assert_eq!(of(&labels(40, 10)), (32, 8));
        assert_eq!(of(&labels(3, 1000)), (2, 1));
    }
}
