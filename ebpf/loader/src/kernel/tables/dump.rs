//! Reading tables back from the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ebpf_abi::{EPOCH_NONE, STATE_HAS_INSIDES, STATE_HAS_SOURCES, SplitKey, VerdictKey};
use policies_ir::{
    tables::{EndpointId, IdentityId, NodeTables, SourceClass},
    verdicts::Verdicts,
};

use super::{Tables, closed::is_closed};
use crate::{
    DatapathError, encode,
    kernel::{addresses, maps::Maps, parents::Family},
};

impl Tables {
    /// The tables that the attached endpoints follow, read back from the maps. What programs do not look for is not
    /// part of them, nor are endpoints that are closed.
    pub(crate) fn dump(&self, maps: &Maps) -> Result<NodeTables, DatapathError> {
        let mut tables = NodeTables::default();
        let mut states = BTreeMap::new();
        let mut ranks = BTreeMap::new();
        for (_, endpoint) in maps.endpoints()? {
            let state = maps.state(&endpoint);
            if state.epoch != EPOCH_NONE && !is_closed(state) {
                tables.endpoints.insert(EndpointId(endpoint.id), Arc::default());
                states.insert(endpoint.id, state);
                ranks.insert(endpoint.id, maps.ranks(&endpoint));
            }
        }
        let looked_for = |data: &VerdictKey| {
            let ranks = ranks.get(&data.endpoint).copied().unwrap_or(0);
            ranks & (1 << (data.rank & 31)) != 0
        };
        let generations: BTreeSet<u32> = states.values().map(|state| state.generation).collect();
        if generations.len() > 1 {
            return Err(DatapathError::Mixed);
        }
        let mut family = Family::new();
        if let Some(generation) = generations.first() {
            (tables.identities, family) = addresses::resolve(&maps.identities()?, *generation)?;
        }
        let mut said: BTreeMap<u32, Verdicts> = BTreeMap::new();
        for (data, value) in maps.verdicts()? {
            let asked = states.get(&data.endpoint).map(|state| state.epoch);
            if asked == Some(data.epoch)
                && looked_for(&data)
                && let Some(meaning) = encode::verdict_meaning(&data)
            {
                let verdicts = said.entry(data.endpoint).or_default();
                verdicts.insert(meaning, encode::verdict_entry(value));
            }
        }
        let splits: BTreeSet<SplitKey> = maps.splits()?.into_iter().collect();
        // Those that no address is of are as the kernel would answer for them.
        family.extend(
            self.parents
                .iter()
                .filter(|(class, _)| !family.contains_key(class))
                .collect::<Family>(),
        );
        let classes: BTreeSet<IdentityId> = tables.identities.values().copied().collect();
        for (id, endpoint) in &mut tables.endpoints {
            let (Some(state), Some(mut verdicts)) = (states.get(&id.0), said.remove(&id.0)) else {
                continue;
            };
            let answer = family.iter().filter_map(|(class, parent)| {
                let key = SplitKey {
                    endpoint: id.0,
                    epoch: state.epoch,
                    class: class.0,
                };
                let parents = || verdicts.class(*parent).cloned().unwrap_or_default();
                (!splits.contains(&key)).then(|| (*class, parents()))
            });
            for (class, entries) in answer.collect::<Vec<_>>() {
                verdicts.set_class(class, entries);
            }
            let written = self.current.endpoints.get(id);
            let left = written.into_iter().flat_map(|written| written.left.keys());
            for class in left.filter(|class| !classes.contains(class)) {
                verdicts.set_class(*class, Arc::default());
            }
            Arc::make_mut(endpoint).verdicts = verdicts;
        }
        let epoch_of = |endpoint: u32, flag: u8| {
            let state = states.get(&endpoint).filter(|state| state.flags & flag != 0);
            state.map(|state| state.epoch)
        };
        for (key, classes) in maps.insides()? {
            if epoch_of(key.endpoint, STATE_HAS_INSIDES) == Some(key.epoch)
                && let Some(endpoint) = tables.endpoints.get_mut(&EndpointId(key.endpoint))
            {
                let (address, insides) = encode::inside_meaning(&key, classes);
                Arc::make_mut(endpoint).insides.insert(address, insides);
            }
        }
        for (key, class) in maps.sources()? {
            let data = key.data();
            if epoch_of(data.endpoint, STATE_HAS_SOURCES) == Some(data.epoch)
                && let Some(block) = encode::source_block(&key)
                && let Some(endpoint) = tables.endpoints.get_mut(&EndpointId(data.endpoint))
            {
                // As the programs read it.
                let [class, ..] = class.to_le_bytes();
                Arc::make_mut(endpoint)
                    .sources
                    .insert(block, SourceClass(class.into()));
            }
        }
        Ok(tables)
    }
}
