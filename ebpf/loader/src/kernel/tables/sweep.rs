//! Deleting what no program asks for any more.

use std::collections::BTreeSet;

use ebpf_abi::{EPOCH_NONE, Endpoint, EndpointState, VerdictKey, base_generation};
use policies_ir::tables::{EndpointId, IdentityId};

use super::Tables;
use crate::{DatapathError, kernel::maps::Maps, sys};

impl Tables {
    /// Deletes what none of `endpoints` asks for.
    pub(crate) fn sweep(
        &mut self,
        maps: &mut Maps,
        endpoints: &[(u32, Endpoint)],
    ) -> Result<(), DatapathError> {
        let states: Vec<(u32, EndpointState)> = endpoints
            .iter()
            .map(|(_, endpoint)| (endpoint.id, maps.state(endpoint)))
            .filter(|(_, state)| state.epoch != EPOCH_NONE)
            .collect();
        let asked: BTreeSet<(u32, u32)> = states.iter().map(|(id, state)| (*id, state.epoch)).collect();
        // The current one is also kept while no endpoint is attached: the next change may well use the same addresses.
        let current = self.addresses.as_ref().map(|current| current.generation);
        let asked_generations: BTreeSet<u32> = states
            .iter()
            .map(|(_, state)| state.generation)
            .chain(current)
            .collect();
        let generations: BTreeSet<u32> = asked_generations
            .iter()
            .flat_map(|generation| [*generation, base_generation(*generation)])
            .collect();
        let entries: Vec<_> = self
            .entries
            .keys()
            .filter(|key| !asked.contains(key))
            .copied()
            .collect();
        let identities: Vec<_> = self
            .identities
            .keys()
            .filter(|key| !generations.contains(key))
            .copied()
            .collect();
        let mut left = self
            .current
            .endpoints
            .values()
            .flat_map(|written| written.left.keys());
        if entries.is_empty() && identities.is_empty() && left.all(|class| self.is_used(*class)) {
            return Ok(());
        }
        sys::wait_for_programs();
        for (_, endpoint) in endpoints {
            let ranks = self.ranks(endpoint.id, maps.state(endpoint).epoch);
            maps.set_ranks(endpoint, ranks, true);
        }
        for key in entries {
            let id = EndpointId(key.0);
            if self.current.endpoints.get(&id).map(|written| written.epoch) == Some(key.1) {
                self.current.endpoints.remove(&id);
            }
            if let Some(keys) = self.entries.get(&key) {
                maps.remove_verdicts(&keys.verdicts)?;
                for split in &keys.splits {
                    maps.remove_split(split)?;
                }
                for source in &keys.sources {
                    maps.remove_source(source)?;
                }
                for inside in &keys.insides {
                    maps.remove_inside(inside)?;
                }
            }
            self.entries.remove(&key);
        }
        for generation in identities {
            for identity in self.identities.get(&generation).into_iter().flatten() {
                maps.remove_identity(identity)?;
            }
            self.identities.remove(&generation);
        }
        // Of the first of a group programs find only what the generation that they ask for has too.
        self.classes
            .retain(|generation, _| asked_generations.contains(generation));
        self.remove_left(maps)
    }

    /// Deletes entries about classes that no generation has and that answer for no other. No program may read tables of
    /// before any more.
    fn remove_left(&mut self, maps: &mut Maps) -> Result<(), DatapathError> {
        let left = self
            .current
            .endpoints
            .values()
            .flat_map(|written| written.left.keys());
        let left: BTreeSet<IdentityId> = left.copied().collect();
        let gone_everywhere: BTreeSet<IdentityId> =
            left.into_iter().filter(|class| !self.is_used(*class)).collect();
        for (id, written) in &mut self.current.endpoints {
            let gone: Vec<IdentityId> = written
                .left
                .keys()
                .filter(|class| gone_everywhere.contains(class))
                .copied()
                .collect();
            let Some(keys) = self
                .entries
                .get_mut(&(id.0, written.epoch))
                .filter(|_| !gone.is_empty())
            else {
                continue;
            };
            let is_gone = |key: &VerdictKey| gone.binary_search(&IdentityId(key.peer)).is_ok();
            let (removed, kept): (Vec<_>, Vec<_>) = keys.verdicts.iter().partition(|key| is_gone(key));
            maps.remove_verdicts(&removed)?;
            keys.verdicts = kept;
            written.left.retain(|class, _| gone.binary_search(class).is_err());
        }
        Ok(())
    }
}
