//! A datapath without a kernel, for tests of callers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc,
    time::Duration,
};

use ebpf_abi::FlowRecord;
use policies_ir::tables::{
    BuiltinRule, EndpointId, MAX_SOURCE_CLASSES, NodeTables, Packet, RuleId, Verdict, VerdictEntry, lookup,
};

use crate::{
    Counters, Datapath, DatapathError, EndpointLink, Expired, FlowSource, HostLink, HostPackets, OpenedFlow,
    Places, Synced, Way, encode,
};

/// Keeps in memory what [`Kernel`](crate::Kernel) keeps in maps, and judges by [`lookup`]. Tracks no flows.
#[derive(Debug)]
pub struct Fake {
    links: BTreeMap<EndpointId, EndpointLink>,
    hosts: BTreeMap<u32, HostLink>,
    prepared: BTreeSet<EndpointId>,
    /// Tables of endpoints for which there are no others.
    closed: NodeTables,
    programmed: BTreeSet<EndpointId>,
    keeping: BTreeSet<EndpointId>,
    unreported: BTreeMap<EndpointId, u64>,
    tables: NodeTables,
    epoch: u32,
    records: mpsc::Sender<FlowRecord>,
    source: Option<mpsc::Receiver<FlowRecord>>,
}

impl Default for Fake {
    fn default() -> Self {
        let (records, source) = mpsc::channel();
        Self {
            links: BTreeMap::new(),
            hosts: BTreeMap::new(),
            prepared: BTreeSet::new(),
            closed: NodeTables::default(),
            programmed: BTreeSet::new(),
            keeping: BTreeSet::new(),
            unreported: BTreeMap::new(),
            tables: NodeTables::default(),
            epoch: 0,
            records,
            source: Some(source),
        }
    }
}

impl Fake {
    /// Nothing attached, everything denied.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the kernel would say about the first packet of a flow.
    pub fn judge(&self, endpoint: EndpointId, packet: &Packet) -> VerdictEntry {
        if !self.programmed.contains(&endpoint) && self.closed.endpoints.contains_key(&endpoint) {
            return lookup(&self.closed, endpoint, packet);
        }
        if !self.programmed.contains(&endpoint) {
            return VerdictEntry {
                verdict: Verdict::Deny,
                rule: RuleId(BuiltinRule::NoMatch as u32),
            };
        }
        lookup(&self.tables, endpoint, packet)
    }

    /// Whether there are any tables by which it is judged.
    pub fn has_tables(&self, endpoint: EndpointId) -> bool {
        self.programmed.contains(&endpoint) || self.closed.endpoints.contains_key(&endpoint)
    }

    /// Has so many packets of a pod denied without telling.
    pub fn deny_unreported(&mut self, endpoint: EndpointId, packets: u64) {
        *self.unreported.entry(endpoint).or_default() += packets;
    }

    /// A sender that feeds the stream of decisions.
    pub fn records(&self) -> mpsc::Sender<FlowRecord> {
        self.records.clone()
    }
}

impl Datapath for Fake {
    fn attach(&mut self, link: &EndpointLink) -> Result<(), DatapathError> {
        encode::endpoint(link)?;
        if self.links.get(&link.id) != Some(link) {
            self.programmed.remove(&link.id);
            self.links.insert(link.id, link.clone());
        }
        Ok(())
    }

    fn detach(&mut self, endpoint: EndpointId) -> Result<(), DatapathError> {
        self.links.remove(&endpoint);
        self.programmed.remove(&endpoint);
        self.keeping.remove(&endpoint);
        Ok(())
    }

    fn prepare_hosts(&mut self, endpoints: &BTreeSet<EndpointId>) -> Result<(), DatapathError> {
        self.prepared.clone_from(endpoints);
        Ok(())
    }

    fn close_hosts(&mut self, tables: &NodeTables) -> Result<(), DatapathError> {
        self.closed.clone_from(tables);
        self.closed
            .endpoints
            .retain(|id, _| !self.programmed.contains(id));
        Ok(())
    }

    fn take_off(&mut self, endpoint: EndpointId) -> Result<(), DatapathError> {
        self.detach(endpoint)
    }

    fn is_forgetting(&self) -> bool {
        false
    }

    fn attach_host(&mut self, link: &HostLink) -> Result<(), DatapathError> {
        self.hosts.remove(&link.ifindex);
        if !link.addresses.is_empty() || link.forward.is_some() {
            self.hosts.insert(link.ifindex, link.clone());
        }
        Ok(())
    }

    /// Nobody else takes programs off.
    fn bare(&mut self) -> Result<Vec<u32>, DatapathError> {
        Ok(Vec::new())
    }

    fn restore(&mut self, _ifindex: u32) -> Result<(), DatapathError> {
        Ok(())
    }

    fn attached_hosts(&mut self) -> Result<Vec<HostLink>, DatapathError> {
        Ok(self.hosts.values().cloned().collect())
    }

    fn sync(&mut self, tables: &NodeTables) -> Result<Synced, DatapathError> {
        for (id, endpoint) in &tables.endpoints {
            let needed = endpoint.source_classes();
            if needed > MAX_SOURCE_CLASSES {
                return Err(DatapathError::SourceClasses {
                    endpoint: *id,
                    needed,
                });
            }
        }
        let programmed = self
            .links
            .keys()
            .copied()
            .chain(self.hosts.values().flat_map(HostLink::endpoints))
            .chain(self.prepared.iter().copied())
            .filter(|id| tables.endpoints.contains_key(id))
            .collect();
        if self.epoch == 0 || self.tables != *tables || self.programmed != programmed {
            self.epoch += 1;
            self.tables = tables.clone();
            self.programmed = programmed;
        }
        Ok(Synced {
            endpoints: self.programmed.iter().map(|id| (*id, self.epoch)).collect(),
            rewritten: self.programmed.len(),
            written: 0,
        })
    }

    fn is_worn(&self) -> bool {
        false
    }

    fn renew(&mut self, tables: &NodeTables) -> Result<Synced, DatapathError> {
        self.sync(tables)
    }

    fn attached(&mut self) -> Result<Vec<EndpointLink>, DatapathError> {
        Ok(self.links.values().cloned().collect())
    }

    fn keep_established(&mut self, endpoint: EndpointId, keep: bool) -> Result<(), DatapathError> {
        if !self.links.contains_key(&endpoint) {
            return Err(DatapathError::NotAttached { endpoint });
        }
        match keep {
            true => self.keeping.insert(endpoint),
            false => self.keeping.remove(&endpoint),
        };
        Ok(())
    }

    fn places(&self) -> Result<Places, DatapathError> {
        let mut places = Places {
            keeping: self.keeping.clone(),
            closed: self
                .hosts
                .values()
                .flat_map(HostLink::endpoints)
                .chain(self.prepared.iter().copied())
                .filter(|id| !self.programmed.contains(id) && self.closed.endpoints.contains_key(id))
                .collect(),
            ..Places::default()
        };
        for link in self.links.values() {
            let way = Way {
                id: link.id,
                ifindex: link.ifindex,
                mac: link.mac,
            };
            places
                .ways
                .extend(link.addresses.iter().map(|address| (*address, way)));
        }
        for link in self.hosts.values() {
            let addresses = link.addresses.iter();
            let own = addresses.map(|(address, judge)| (HostPackets::Address(*address), *judge));
            let groups = link
                .addresses
                .values()
                .next()
                .map(|judge| (HostPackets::Groups, *judge));
            let forwarded = link.forward.map(|judge| (HostPackets::Forwarded, judge));
            let all = own.chain(groups).chain(forwarded);
            places
                .hosts
                .extend(all.map(|(of, judge)| ((link.ifindex, of), judge)));
        }
        Ok(places)
    }

    fn sweep(&mut self) -> Result<(), DatapathError> {
        Ok(())
    }

    fn look(&mut self, _now: Duration) -> Result<Expired, DatapathError> {
        Ok(Expired::default())
    }

    fn dump(&self) -> Result<NodeTables, DatapathError> {
        let mut tables = NodeTables {
            rules: Vec::new(),
            ..self.tables.clone()
        };
        tables.endpoints.retain(|id, _| self.programmed.contains(id));
        Ok(tables)
    }

    fn opened_flows(&mut self) -> Result<BTreeSet<OpenedFlow>, DatapathError> {
        Ok(BTreeSet::new())
    }

    fn counters(&mut self) -> Result<Counters, DatapathError> {
        let counters = Counters {
            unreported: self.unreported.clone(),
            ..Counters::default()
        };
        self.unreported.retain(|id, _| self.links.contains_key(id));
        Ok(counters)
    }

    fn flow_source(&mut self) -> Result<Box<dyn FlowSource>, DatapathError> {
        let source = self.source.take().ok_or(DatapathError::Missing {
            name: "second stream of decisions",
        })?;
        Ok(Box::new(FakeSource { source }))
    }
}

struct FakeSource {
    source: mpsc::Receiver<FlowRecord>,
}

impl FlowSource for FakeSource {
    fn next(&mut self, timeout: Duration) -> Result<Option<FlowRecord>, DatapathError> {
        Ok(self.source.recv_timeout(timeout).ok())
    }
}
