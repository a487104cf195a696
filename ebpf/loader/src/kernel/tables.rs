//! Moving endpoints from one set of tables to the next.
//!
//! New entries go in beside the old ones, under an epoch and a generation that no program asks for yet. One write per
//! endpoint then makes the programs ask for the new ones. What nobody asks for any more is deleted later, by `expire`
//! or when room is needed, after every program has finished its packet: each packet meets complete tables.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::lpm_trie::Key;
use ebpf_abi::{EPOCH_NONE, Endpoint, IdentityKey, MAX_IDENTITIES, MAX_VERDICTS, VerdictKey};
use policies_ir::tables::{EndpointId, EndpointTables, NodeTables};

use crate::{
    DatapathError, encode,
    kernel::{is_programmed, maps::Maps},
    sys,
};

/// What has been written, so that it can be deleted without searching the maps.
#[derive(Default)]
pub(crate) struct Tables {
    /// Keys by endpoint and epoch.
    verdicts: BTreeMap<(u32, u32), Vec<Key<VerdictKey>>>,
    /// Keys by generation.
    identities: BTreeMap<u32, Vec<Key<IdentityKey>>>,
    /// Highest epoch or generation ever used.
    last_epoch: u32,
    current: Option<Current>,
}

/// The tables of the last complete change.
struct Current {
    tables: NodeTables,
    epoch: u32,
    generation: u32,
}

impl Tables {
    /// Finds what an earlier agent wrote. Its tables judge until the first change.
    pub(crate) fn read(maps: &Maps) -> Result<Self, DatapathError> {
        let mut tables = Self::default();
        for (key, _) in maps.verdicts()? {
            let data = key.data();
            tables
                .verdicts
                .entry((data.endpoint, data.epoch))
                .or_default()
                .push(key);
            tables.last_epoch = tables.last_epoch.max(data.epoch);
        }
        for (key, _) in maps.identities()? {
            let generation = key.data().generation;
            tables.identities.entry(generation).or_default().push(key);
            tables.last_epoch = tables.last_epoch.max(generation);
        }
        for (_, endpoint) in maps.endpoints()? {
            tables.last_epoch = tables.last_epoch.max(endpoint.epoch).max(endpoint.generation);
        }
        Ok(tables)
    }

    /// Moves all endpoints to `tables`.
    pub(crate) fn sync(&mut self, maps: &mut Maps, tables: &NodeTables) -> Result<u32, DatapathError> {
        let endpoints = maps.endpoints()?;
        if let Some(epoch) = self.unchanged(tables, &endpoints) {
            return Ok(epoch);
        }
        if self.check_capacity(tables).is_err() {
            self.sweep(maps, &endpoints)?;
            self.check_capacity(tables)?;
        }
        let epoch = next_epoch(self.last_epoch);
        self.last_epoch = epoch;
        let written = self.write(maps, tables, &endpoints, epoch);
        let generation = match written {
            Ok(generation) => generation,
            Err(error) => {
                // Nothing asks for the half that was written; the error to report is the first one.
                drop(self.sweep(maps, &endpoints));
                return Err(error);
            }
        };
        for (ifindex, endpoint) in &endpoints {
            let known = tables.endpoints.contains_key(&EndpointId(endpoint.id));
            let epoch = if known { epoch } else { EPOCH_NONE };
            maps.write_endpoint(
                *ifindex,
                &Endpoint {
                    epoch,
                    generation,
                    ..*endpoint
                },
            )?;
        }
        self.current = Some(Current {
            tables: tables.clone(),
            epoch,
            generation,
        });
        Ok(epoch)
    }

    /// Deletes what none of `endpoints` asks for.
    pub(crate) fn sweep(
        &mut self,
        maps: &mut Maps,
        endpoints: &[(u32, Endpoint)],
    ) -> Result<(), DatapathError> {
        // A kernel with full-dynticks CPUs refuses to wait. Then a packet that was half judged may find its tables
        // gone, and is denied.
        drop(sys::wait_for_programs());
        let programmed = || {
            endpoints
                .iter()
                .map(|(_, endpoint)| endpoint)
                .filter(|endpoint| is_programmed(endpoint))
        };
        let asked: BTreeSet<(u32, u32)> = programmed()
            .map(|endpoint| (endpoint.id, endpoint.epoch))
            .collect();
        let unasked: Vec<_> = self
            .verdicts
            .keys()
            .filter(|key| !asked.contains(key))
            .copied()
            .collect();
        for key in unasked {
            for verdict in self.verdicts.get(&key).into_iter().flatten() {
                maps.remove_verdict(verdict)?;
            }
            self.verdicts.remove(&key);
        }

        let mut asked: BTreeSet<u32> = programmed().map(|endpoint| endpoint.generation).collect();
        // Also kept while no endpoint is attached: the next change may well use the same addresses.
        asked.extend(self.current.as_ref().map(|current| current.generation));
        let unasked: Vec<_> = self
            .identities
            .keys()
            .filter(|key| !asked.contains(key))
            .copied()
            .collect();
        for generation in unasked {
            for identity in self.identities.get(&generation).into_iter().flatten() {
                maps.remove_identity(identity)?;
            }
            self.identities.remove(&generation);
        }
        Ok(())
    }

    /// The tables that the attached endpoints follow, read back from the maps.
    pub(crate) fn dump(&self, maps: &Maps) -> Result<NodeTables, DatapathError> {
        let mut tables = NodeTables::default();
        let mut epochs = BTreeMap::new();
        let mut generations = BTreeSet::new();
        for (_, endpoint) in maps
            .endpoints()?
            .into_iter()
            .filter(|(_, endpoint)| is_programmed(endpoint))
        {
            tables
                .endpoints
                .insert(EndpointId(endpoint.id), EndpointTables::default());
            epochs.insert(endpoint.id, endpoint.epoch);
            generations.insert(endpoint.generation);
        }
        if generations.len() > 1 {
            return Err(DatapathError::Mixed);
        }
        for (key, identity) in maps.identities()? {
            if generations.contains(&key.data().generation)
                && let Some(net) = encode::identity_net(&key)
            {
                tables
                    .identities
                    .insert(net, policies_ir::tables::IdentityId(identity));
            }
        }
        for (key, value) in maps.verdicts()? {
            let data = key.data();
            if epochs.get(&data.endpoint) == Some(&data.epoch)
                && let Some(meaning) = encode::verdict_meaning(&key)
                && let Some(endpoint) = tables.endpoints.get_mut(&EndpointId(data.endpoint))
            {
                endpoint.verdicts.insert(meaning, encode::verdict_entry(value));
            }
        }
        Ok(tables)
    }

    /// The current epoch, if every endpoint follows `tables` already.
    fn unchanged(&self, tables: &NodeTables, endpoints: &[(u32, Endpoint)]) -> Option<u32> {
        let current = self
            .current
            .as_ref()
            .filter(|current| current.tables == *tables)?;
        let follows = |endpoint: &Endpoint| {
            let known = tables.endpoints.contains_key(&EndpointId(endpoint.id));
            endpoint.epoch == if known { current.epoch } else { EPOCH_NONE }
        };
        endpoints
            .iter()
            .all(|(_, endpoint)| follows(endpoint))
            .then_some(current.epoch)
    }

    /// Writes the entries of the attached endpoints under `epoch`, and returns the generation of their addresses:
    /// the current one if the addresses have not changed, otherwise `epoch`.
    fn write(
        &mut self,
        maps: &mut Maps,
        tables: &NodeTables,
        endpoints: &[(u32, Endpoint)],
        epoch: u32,
    ) -> Result<u32, DatapathError> {
        let same_addresses = |current: &&Current| current.tables.identities == tables.identities;
        let generation = self
            .current
            .as_ref()
            .filter(same_addresses)
            .map_or(epoch, |current| current.generation);
        if generation == epoch {
            let written = self.identities.entry(generation).or_default();
            for (net, identity) in &tables.identities {
                let key = encode::identity_key(generation, net);
                // Noted first: deleting what was never written does no harm.
                written.push(key);
                maps.write_identity(&key, identity.0)?;
            }
        }
        for (_, endpoint) in endpoints {
            let Some(wanted) = tables.endpoints.get(&EndpointId(endpoint.id)) else {
                continue;
            };
            let written = self.verdicts.entry((endpoint.id, epoch)).or_default();
            for (meaning, entry) in &wanted.verdicts {
                let key = encode::verdict_key(EndpointId(endpoint.id), epoch, meaning);
                written.push(key);
                maps.write_verdict(&key, encode::verdict_value(entry))?;
            }
        }
        Ok(generation)
    }

    fn check_capacity(&self, tables: &NodeTables) -> Result<(), DatapathError> {
        let old: usize = self.identities.values().map(Vec::len).sum();
        check("IDENTITIES", old + tables.identities.len(), MAX_IDENTITIES)?;
        let old: usize = self.verdicts.values().map(Vec::len).sum();
        let new: usize = tables
            .endpoints
            .values()
            .map(|endpoint| endpoint.verdicts.len())
            .sum();
        check("VERDICTS", old + new, MAX_VERDICTS)
    }
}

fn check(map: &'static str, needed: usize, limit: u32) -> Result<(), DatapathError> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if needed > limit {
        Err(DatapathError::Full { map, needed, limit })
    } else {
        Ok(())
    }
}

fn next_epoch(last: u32) -> u32 {
    last.checked_add(1).unwrap_or(EPOCH_NONE + 1)
}
