//! Tables for the time when those that are wanted cannot be written.
//!
//! They stand beside all others, under numbers that no change ever has: the first change begins a group, so all before it
//! are free. Few entries are kept free for them in each map.

use ebpf_abi::{AddressClass, EPOCH_NONE, Endpoint, EndpointState, GENERATION_GROUP, STATE_KEEP_ESTABLISHED};
use policies_ir::tables::{EndpointId, NodeTables};

use super::Tables;
use crate::{DatapathError, encode, kernel::maps::Maps};

/// Verdicts that no other tables take.
pub(super) const KEPT_VERDICTS: u32 = 4096;
/// Addresses, likewise.
pub(super) const KEPT_IDENTITIES: u32 = 64;

/// The last such tables.
#[derive(Default)]
pub(super) struct Closed {
    number: u32,
    tables: NodeTables,
}

/// Whether an endpoint in this state is judged by such tables.
pub(crate) fn is_closed(state: EndpointState) -> bool {
    (EPOCH_NONE + 1..GENERATION_GROUP).contains(&state.epoch)
}

impl Tables {
    /// Gives those endpoints that have no tables these, and those that have others of this kind, and leaves all others as
    /// they are. Should that fail, they are denied everything.
    pub(crate) fn close(&mut self, maps: &mut Maps, tables: &NodeTables) -> Result<(), DatapathError> {
        let endpoints = maps.endpoints()?;
        let is_new = self.closed.tables != *tables;
        let is_meant = |endpoint: &Endpoint| {
            let state = maps.state(endpoint);
            let is_asked = tables.endpoints.contains_key(&EndpointId(endpoint.id));
            is_asked && (state.epoch == EPOCH_NONE || (is_closed(state) && is_new))
        };
        let all = endpoints.iter().map(|(_, endpoint)| *endpoint);
        let meant: Vec<Endpoint> = all.filter(is_meant).collect();
        if meant.is_empty() {
            return Ok(());
        }
        // Whatever this leaves takes room, and more than enough is kept.
        drop(self.sweep(maps, &endpoints));
        let number = self.free_number().ok_or(DatapathError::Epochs)?;
        let written = self.write_closed(maps, tables, &meant, number);
        let tables = match &written {
            Ok(()) => tables.clone(),
            Err(_) => NodeTables::default(),
        };
        self.closed = Closed { number, tables };
        for endpoint in &meant {
            maps.set_ranks(endpoint, self.ranks(endpoint.id, number), true);
            let state = EndpointState {
                epoch: number,
                generation: number,
                flags: maps.state(endpoint).flags & STATE_KEEP_ESTABLISHED,
            };
            maps.set_state(endpoint, state);
        }
        written
    }

    fn write_closed(
        &mut self,
        maps: &mut Maps,
        tables: &NodeTables,
        endpoints: &[Endpoint],
        number: u32,
    ) -> Result<(), DatapathError> {
        let identities = tables.identities.iter();
        let identities =
            identities.map(|(net, class)| (encode::identity_key(number, net), AddressClass::root(class.0)));
        let identities: Vec<_> = identities.collect();
        let keys = self.identities.entry(number).or_default();
        keys.extend(identities.iter().map(|(key, _)| *key));
        maps.write_identities(&identities)?;
        let mut verdicts = Vec::new();
        for endpoint in endpoints {
            let id = EndpointId(endpoint.id);
            let Some(wanted) = tables.endpoints.get(&id) else {
                continue;
            };
            let written = self.entries.entry((id.0, number)).or_default();
            verdicts.extend(written.add(id, number, wanted.verdicts.classes()));
        }
        maps.write_verdicts(&verdicts)
    }

    /// Not one that was in use a moment ago: flows keep what was decided under it.
    fn free_number(&self) -> Option<u32> {
        let is_free = |number: &u32| {
            let mut epochs = self.entries.keys().map(|(_, epoch)| epoch);
            !self.identities.contains_key(number) && !epochs.any(|epoch| epoch == number)
        };
        let last = self.closed.number;
        let mut numbers = (last + 1..GENERATION_GROUP).chain(EPOCH_NONE + 1..=last);
        numbers.find(is_free)
    }
}
