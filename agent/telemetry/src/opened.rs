//! What was said of a flow when it opened, for as long as it lives: its totals come when its peer may be gone, or the address
//! another's, and policies that were staged may be others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use api::flow::StagedVerdict;
use ebpf_abi::{Address, FlowRecord, MAX_FLOWS, RECORD_END, RECORD_UPDATE};

use crate::names::NamedEndpoint;

/// Most flows that something is remembered of: as many as a node tracks. With all of them that is some 20 MiB.
const MAX_OPENED: usize = MAX_FLOWS as usize;
/// Staged verdicts that may be kept though no flow has them any more.
const MAX_UNUSED: usize = 1024;

/// What the start of a flow said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opened {
    /// By which change it was decided.
    pub(crate) change: u32,
    /// Who was at the other end.
    pub(crate) peer: Option<Arc<NamedEndpoint>>,
    /// What staged policies said.
    pub(crate) staged: Option<Arc<StagedVerdict>>,
}

/// What was said of flows that live. Flows of which nothing was said that could be forgotten are not there.
#[derive(Debug, Default)]
pub(crate) struct OpenedFlows {
    flows: BTreeMap<FlowId, Opened>,
    /// Each verdict once, however many flows have it.
    staged: BTreeSet<Arc<StagedVerdict>>,
}

/// What the start of a flow and its totals have in common. The oldest flows are the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FlowId {
    opened_ns: u64,
    endpoint: u32,
    source: Address,
    destination: Address,
    ports: [u16; 2],
    protocol: u8,
}

impl OpenedFlows {
    /// Remembers what `start` says, if that is anything. If there are too many, the flow that opened first is forgotten: ends
    /// that the ring had no room for leave some behind.
    pub(crate) fn remember(&mut self, start: &FlowRecord, opened: Opened) {
        if opened.peer.is_none() && opened.staged.is_none() {
            return;
        }
        let staged = opened.staged.map(|staged| self.shared(staged));
        self.flows.insert(FlowId::of(start), Opened { staged, ..opened });
        if self.flows.len() > MAX_OPENED {
            self.flows.pop_first();
        }
    }

    /// What was said of the flow that `record` tells the totals of. After the end of a flow that is forgotten.
    pub(crate) fn said_of(&mut self, record: &FlowRecord) -> Option<Opened> {
        match record.kind {
            RECORD_UPDATE => self.flows.get(&FlowId::of(record)).cloned(),
            RECORD_END => self.flows.remove(&FlowId::of(record)),
            _ => None,
        }
    }

    fn shared(&mut self, staged: Arc<StagedVerdict>) -> Arc<StagedVerdict> {
        if let Some(known) = self.staged.get(&staged) {
            return Arc::clone(known);
        }
        if self.staged.len() >= MAX_UNUSED {
            self.staged.retain(|known| Arc::strong_count(known) > 1);
        }
        self.staged.insert(Arc::clone(&staged));
        staged
    }
}

impl FlowId {
    fn of(record: &FlowRecord) -> Self {
        Self {
            opened_ns: record.opened_ns,
            endpoint: record.endpoint,
            source: record.source,
            destination: record.destination,
            ports: [record.source_port, record.destination_port],
            protocol: record.protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use api::flow::{DecidedBy, FlowVerdict};

    use super::*;

    fn record(kind: u8, opened_ns: u64) -> FlowRecord {
        FlowRecord {
            kind,
            opened_ns,
            ..FlowRecord::default()
        }
    }

    fn opened(rule: u64) -> Opened {
        let decided_by = DecidedBy {
            rule: rule.to_string(),
            policy: None,
            tier: None,
            index: None,
        };
        Opened {
            change: 3,
            peer: None,
            staged: Some(Arc::new(StagedVerdict {
                verdict: FlowVerdict::Deny,
                decided_by,
            })),
        }
    }

    #[test]
    fn a_flow_is_remembered_until_its_end() {
        let mut flows = OpenedFlows::default();
        let start = |at| record(ebpf_abi::RECORD_START, at);
        flows.remember(&start(1), opened(7));
        flows.remember(&start(2), opened(7));
        assert_eq!(flows.staged.len(), 1);
        for _ in 0..2 {
            assert_eq!(flows.said_of(&record(RECORD_UPDATE, 1)), Some(opened(7)));
        }
        let other = FlowRecord {
            source_port: 9,
            ..record(RECORD_UPDATE, 1)
        };
        assert_eq!(flows.said_of(&other), None);
        assert_eq!(flows.said_of(&record(RECORD_END, 1)), Some(opened(7)));
        assert_eq!(flows.said_of(&record(RECORD_END, 1)), None);
        assert_eq!(flows.flows.len(), 1);
        let nothing = Opened {
            staged: None,
            ..opened(7)
        };
        flows.remember(&start(3), nothing);
        assert_eq!(flows.flows.len(), 1);
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut flows = OpenedFlows::default();
        let extra = 10;
        for at in 0..u64::try_from(MAX_OPENED).unwrap() + extra {
            flows.remember(&record(ebpf_abi::RECORD_START, at), opened(at % 3));
        }
        assert_eq!(flows.flows.len(), MAX_OPENED);
        assert_eq!(flows.said_of(&record(RECORD_END, extra - 1)), None);
        assert!(flows.said_of(&record(RECORD_END, extra)).is_some());
        let mut flows = OpenedFlows::default();
        for at in 0..3 * u64::try_from(MAX_UNUSED).unwrap() {
            flows.remember(&record(ebpf_abi::RECORD_START, at), opened(at));
            assert!(flows.said_of(&record(RECORD_END, at)).is_some());
        }
        assert!(flows.staged.len() <= MAX_UNUSED, "{}", flows.staged.len());
    }
}
