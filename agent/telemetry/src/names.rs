//! Who and what the numbers in a record stand for.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use api::flow::PodRef;
use policies_ir::tables::{EndpointId, NodeTables};

/// How many epochs back a record may come from and still be named. A record waits on the ring for far less time than
/// so many changes of policy take.
const EPOCHS_KEPT: usize = 16;

/// The names of one epoch.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The tables; only the rule names matter here.
    pub tables: Arc<NodeTables>,
    /// The tables as they would be if the staged policies were enforced; absent if there are none.
    pub staged: Option<Arc<NodeTables>>,
    /// Pods of this node by endpoint.
    pub endpoints: BTreeMap<EndpointId, PodRef>,
    /// All pods that are known, by address.
    pub addresses: BTreeMap<IpAddr, PodRef>,
}

/// Names by epoch, published by the agent whenever it has changed the datapath's tables.
#[derive(Debug, Default)]
pub struct Names {
    epochs: RwLock<VecDeque<(u32, Arc<Snapshot>)>>,
}

impl Names {
    /// No names.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the names of `epoch`, the number that `Datapath::sync` returned for these tables.
    pub fn publish(&self, epoch: u32, snapshot: Snapshot) {
        // A panic while the lock was held leaves nothing half done: both statements that change it are single moves.
        let mut epochs = self.epochs.write().unwrap_or_else(PoisonError::into_inner);
        epochs.retain(|(known, _)| *known != epoch);
        epochs.push_front((epoch, Arc::new(snapshot)));
        epochs.truncate(EPOCHS_KEPT);
    }

    /// The names of `epoch`, and whether they are really its own: pods of an epoch that is not known are looked up
    /// in the newest one, but its rules have other numbers.
    pub(crate) fn of(&self, epoch: u32) -> (Arc<Snapshot>, bool) {
        let epochs = self.epochs.read().unwrap_or_else(PoisonError::into_inner);
        match epochs.iter().find(|(known, _)| *known == epoch) {
            Some((_, snapshot)) => (Arc::clone(snapshot), true),
            None => (
                epochs
                    .front()
                    .map(|(_, snapshot)| Arc::clone(snapshot))
                    .unwrap_or_default(),
                false,
            ),
        }
    }
}
