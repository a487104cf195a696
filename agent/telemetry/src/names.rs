//! Who and what the numbers in a record stand for.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use api::flow::PodRef;
use policies_ir::tables::{EndpointId, NodeTables};

/// How many changes of policy back a record may come from and still be named. A record waits on the ring for far less
/// time than so many changes take.
const SNAPSHOTS_KEPT: usize = 16;

/// The names after one change of policy.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The tables; only the rule names matter here.
    pub tables: Arc<NodeTables>,
    /// Change that each endpoint follows: an endpoint that this change did not reach still follows an earlier one.
    pub changes: BTreeMap<EndpointId, u32>,
    /// The tables as they would be if the staged policies were enforced; absent if there are none.
    pub staged: Option<Arc<NodeTables>>,
    /// Pods of this node by endpoint.
    pub endpoints: BTreeMap<EndpointId, PodRef>,
    /// All pods that are known, by address.
    pub addresses: BTreeMap<IpAddr, PodRef>,
}

/// Names, published by the agent whenever it has changed the datapath's tables.
#[derive(Debug, Default)]
pub struct Names {
    snapshots: RwLock<VecDeque<Arc<Snapshot>>>,
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
    }

    /// The names that hold for what `change` decides at `endpoint`, and whether they are really its own: pods of a
    /// change that is not known are looked up in the newest names, but its rules have other numbers.
    pub(crate) fn of(&self, endpoint: EndpointId, change: u32) -> (Arc<Snapshot>, bool) {
        let snapshots = self.snapshots.read().unwrap_or_else(PoisonError::into_inner);
        let follows = |snapshot: &&Arc<Snapshot>| snapshot.changes.get(&endpoint) == Some(&change);
        match snapshots.iter().find(follows) {
            Some(snapshot) => (Arc::clone(snapshot), true),
            None => (snapshots.front().cloned().unwrap_or_default(), false),
        }
    }
}
