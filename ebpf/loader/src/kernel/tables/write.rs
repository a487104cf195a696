//! Writing a change into the maps, beside what there is, and moving the endpoints to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ebpf_abi::{
    EPOCH_NONE, Endpoint, EndpointState, InsideClasses, InsideKey, STATE_HAS_INSIDES, STATE_HAS_SOURCES,
    SplitKey, VerdictKey, VerdictValue,
};
use policies_ir::{
    tables::{EndpointId, IdentityId, Insides, NodeTables, VerdictEntry, VerdictKey as Meaning},
    verdicts::{ClassVerdicts, Verdicts},
};

use super::{Change, Keys, Tables};
use crate::{DatapathError, encode, kernel::maps::Maps};

impl Tables {
    /// Writes what is planned, and the classes of addresses if those are new, under the number of this change. How many
    /// entries that were.
    pub(super) fn write(
        &mut self,
        maps: &mut Maps,
        tables: &NodeTables,
        change: &Change,
    ) -> Result<usize, DatapathError> {
        let number = self.last_change;
        let mut count = 0;
        // Keys are noted first: deleting what was never written does no harm.
        if let Some(new) = &change.addresses {
            let written = self.identities.entry(number).or_default();
            written.extend(new.entries.iter().map(|(key, _)| *key));
            self.classes.insert(number, change.classes.clone());
            count += new.entries.len();
            maps.write_identities(&new.entries)?;
        }
        let mut verdicts = Vec::new();
        let mut splits = Vec::new();
        let mut insides = Vec::new();
        for (id, step) in &change.plan.steps {
            let (Some(wanted), Some(epoch)) = (tables.endpoints.get(id), self.current.epoch(*id)) else {
                continue;
            };
            let written = self.entries.entry((id.0, epoch)).or_default();
            let classes = step
                .added
                .iter()
                .filter_map(|class| Some((*class, wanted.verdicts.class(*class)?)));
            verdicts.extend(written.add(*id, epoch, classes));
            splits.extend(written.split(*id, epoch, step.split.iter()));
            let of_own = step
                .insides
                .iter()
                .filter_map(|class| Some((class, wanted.insides.get(class)?)));
            insides.extend(written.inside(*id, epoch, of_own));
        }
        for (id, split) in &change.plan.stale {
            let Some(wanted) = tables.endpoints.get(id) else {
                continue;
            };
            let own = self.own(&wanted.verdicts, change, split);
            let written = self.entries.entry((id.0, number)).or_default();
            for (block, class) in &wanted.sources {
                let key = encode::source_key(*id, number, block);
                written.sources.push(key);
                count += 1;
                maps.write_source(&key, class.0)?;
            }
            verdicts.extend(written.add(*id, number, own.into_iter()));
            splits.extend(written.split(*id, number, split.iter()));
            insides.extend(written.inside(*id, number, wanted.insides.iter()));
        }
        maps.write_splits(&splits)?;
        maps.write_insides(&insides)?;
        maps.write_verdicts(&verdicts)?;
        Ok(count + splits.len() + insides.len() + verdicts.len())
    }

    /// The classes of an endpoint that is written anew which have entries: all but those that their parents answer for.
    pub(super) fn own<'t>(
        &self,
        verdicts: &'t Verdicts,
        change: &Change,
        split: &BTreeSet<IdentityId>,
    ) -> Vec<(IdentityId, &'t Arc<ClassVerdicts>)> {
        let has_parent = |class: &IdentityId| {
            !change.anew && (self.parents.has(*class) || change.family.contains_key(class))
        };
        let own = verdicts
            .classes()
            .filter(|(class, _)| !has_parent(class) || split.contains(class));
        own.collect()
    }

    /// One write for each endpoint that does not follow its entries yet. Returns the change that each follows. Of those
    /// that are to have none, the host's keep what they have for as long as an interface has them.
    pub(super) fn move_endpoints(
        &self,
        maps: &mut Maps,
        tables: &NodeTables,
        endpoints: &[(u32, Endpoint)],
        generation: u32,
    ) -> Result<BTreeMap<EndpointId, u32>, DatapathError> {
        let mut changes = BTreeMap::new();
        let is_absent = |id: u32| !tables.endpoints.contains_key(&EndpointId(id));
        let kept: BTreeSet<u32> = match endpoints.iter().any(|(_, endpoint)| is_absent(endpoint.id)) {
            true => {
                let hosts = maps.hosts()?.into_values();
                let ids = hosts.flat_map(|host| [host.id, host.untracked]);
                ids.filter(|id| is_absent(*id)).collect()
            }
            false => BTreeSet::new(),
        };
        for (_, endpoint) in endpoints
            .iter()
            .filter(|(_, endpoint)| !kept.contains(&endpoint.id))
        {
            let id = EndpointId(endpoint.id);
            let old = maps.state(endpoint);
            let mut state = EndpointState {
                epoch: EPOCH_NONE,
                generation,
                flags: old.flags & !(STATE_HAS_SOURCES | STATE_HAS_INSIDES),
            };
            if let Some(wanted) = tables.endpoints.get(&id)
                && let Some(epoch) = self.current.epoch(id)
            {
                state.epoch = epoch;
                if !wanted.sources.is_empty() {
                    state.flags |= STATE_HAS_SOURCES;
                }
                if !wanted.insides.is_empty() {
                    state.flags |= STATE_HAS_INSIDES;
                }
                changes.insert(id, state.change());
                // Before the state, which makes programs look for them.
                maps.set_ranks(endpoint, self.ranks(endpoint.id, epoch), false);
            }
            if state != old {
                maps.set_state(endpoint, state);
            }
        }
        Ok(changes)
    }
}

impl Keys {
    /// Notes entries that are about to be written, and returns them as the kernel has them.
    pub(super) fn add<'e>(
        &mut self,
        id: EndpointId,
        epoch: u32,
        classes: impl Iterator<Item = (IdentityId, &'e Arc<ClassVerdicts>)>,
    ) -> Vec<(VerdictKey, VerdictValue)> {
        let entries = classes
            .flat_map(|(class, entries)| entries.iter().map(move |(key, entry)| (key.about(class), entry)));
        let encoded = entries.map(|(meaning, entry): (Meaning, &VerdictEntry)| {
            let key = encode::verdict_key(id, epoch, &meaning);
            (key, encode::verdict_value(entry))
        });
        let encoded: Vec<_> = encoded.collect();
        for (key, _) in &encoded {
            self.ranks |= 1 << (key.rank & 31);
            self.verdicts.push(*key);
        }
        encoded
    }

    /// Likewise of classes that the endpoint tells from their parents.
    fn split<'c>(
        &mut self,
        id: EndpointId,
        epoch: u32,
        classes: impl Iterator<Item = &'c IdentityId>,
    ) -> Vec<SplitKey> {
        let keys = classes.map(|class| SplitKey {
            endpoint: id.0,
            epoch,
            class: class.0,
        });
        let keys: Vec<_> = keys.collect();
        self.splits.extend(&keys);
        keys
    }

    /// Likewise of what classes are at the own end.
    fn inside<'c>(
        &mut self,
        id: EndpointId,
        epoch: u32,
        classes: impl Iterator<Item = (&'c IdentityId, &'c Insides)>,
    ) -> Vec<(InsideKey, InsideClasses)> {
        let entries = classes.map(|(class, insides)| encode::inside(id, epoch, *class, *insides));
        let entries: Vec<_> = entries.collect();
        self.insides.extend(entries.iter().map(|(key, _)| *key));
        entries
    }
}
