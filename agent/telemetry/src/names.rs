//! Who and what the numbers in a record stand for.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::{Arc, Condvar, Mutex, PoisonError, RwLock},
    time::Duration,
};

use api::{flow::EndpointRef, selector::Labels};
use ebpf_abi::FlowRecord;
use policies_ir::tables::{self, EndpointId, NodeTables, RuleId};

use crate::{
    logging::LogRules,
    opened::{Opened, OpenedFlows},
    rule_names::RuleNames,
};

/// How many changes of policy back everything is known: a record waits on the ring for far less time than so many changes
/// take. Totals of flows come from changes that are older: for them [`RuleNames`] and [`OpenedFlows`] are kept.
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
    kept: RwLock<Kept>,
    opened: Mutex<OpenedFlows>,
    published: Mutex<Published>,
    publication: Condvar,
}

/// What is known of what a change decided at an endpoint.
#[derive(Debug, Clone)]
pub struct Known {
    /// The names that held then, or the newest that have the endpoint.
    pub snapshot: Arc<Snapshot>,
    /// Whether they are the change's own: only then staged policies, and rules that log, are those of the time.
    pub is_exact: bool,
    /// What the rules' numbers meant; none if that is not known.
    rules: Arc<NodeTables>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Newest first.
    snapshots: VecDeque<Arc<Snapshot>>,
    rules: RuleNames,
}

/// What those who wait go by.
#[derive(Debug, Default)]
struct Published {
    /// The newest change that any endpoint followed; nothing if there are no names yet.
    newest: Option<u32>,
    /// Whether somebody has waited in vain since.
    in_vain: bool,
}

impl Known {
    /// What decided; nothing where nobody knows any more.
    pub fn decided_by(&self, rule: RuleId) -> Option<tables::DecidedBy> {
        self.rules.decided_by(rule)
    }
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
        let newest = snapshot.changes.values().copied().max();
        // A panic while a lock was held leaves nothing that is wrong: at worst something is missing that was known.
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(newest) = newest {
            kept.rules.add(newest, &snapshot.tables);
        }
        kept.snapshots.push_front(Arc::new(snapshot));
        kept.snapshots.truncate(SNAPSHOTS_KEPT);
        drop(kept);
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        *published = Published {
            newest: published.newest.max(newest.or(Some(0))),
            in_vain: false,
        };
        self.publication.notify_all();
    }

    /// Waits for the first names, no longer than `timeout`. Whether there are any.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let are_none = |published: &mut Published| published.newest.is_none();
        let waited = self.publication.wait_timeout_while(published, timeout, are_none);
        waited.unwrap_or_else(PoisonError::into_inner).0.newest.is_some()
    }

    /// Waits for the names of `change`, no longer than `timeout`: the kernel judges by a change a moment before its names
    /// are published. Changes have growing numbers, so one that is not newer than the newest of which there are names is not
    /// waited for. Nor is any before the first names, or once somebody has waited in vain since the last.
    pub(crate) fn wait_for(&self, change: u32, timeout: Duration) {
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let is_to_come = |published: &mut Published| {
            !published.in_vain && published.newest.is_some_and(|newest| newest < change)
        };
        let waited = self
            .publication
            .wait_timeout_while(published, timeout, is_to_come);
        let (mut published, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        published.in_vain |= waited.timed_out();
    }

    /// The newest names.
    pub fn newest(&self) -> Arc<Snapshot> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.snapshots.front().cloned().unwrap_or_default()
    }

    /// The pod or host endpoint of a number, gone ones included for a while.
    pub(crate) fn endpoint(&self, endpoint: EndpointId) -> Option<EndpointRef> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.snapshots
            .iter()
            .find_map(|snapshot| snapshot.endpoints.get(&endpoint))
            .map(|named| named.endpoint.clone())
    }

    /// What is known of what `change` decides at `endpoint`.
    pub fn of(&self, endpoint: EndpointId, change: u32) -> Known {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let snapshots = &kept.snapshots;
        let follows = |snapshot: &&Arc<Snapshot>| snapshot.changes.get(&endpoint) == Some(&change);
        if let Some(snapshot) = snapshots.iter().find(follows) {
            return Known {
                rules: Arc::clone(&snapshot.tables),
                snapshot: Arc::clone(snapshot),
                is_exact: true,
            };
        }
        let knows = |snapshot: &&Arc<Snapshot>| snapshot.endpoints.contains_key(&endpoint);
        let snapshot = snapshots.iter().find(knows).or(snapshots.front());
        Known {
            snapshot: snapshot.cloned().unwrap_or_default(),
            is_exact: false,
            rules: kept.rules.of(change).cloned().unwrap_or_default(),
        }
    }

    /// Remembers what the start of a flow says.
    pub(crate) fn remember(&self, start: &FlowRecord, opened: Opened) {
        let mut flows = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        flows.remember(start, opened);
    }

    /// What the start of the flow said that `record` tells the totals of.
    pub(crate) fn said_of(&self, record: &FlowRecord) -> Option<Opened> {
        let mut flows = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        flows.said_of(record)
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
