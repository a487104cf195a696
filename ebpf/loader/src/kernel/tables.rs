//! Moving endpoints from one set of tables to the next.
//!
//! New entries go in beside the old ones, under an epoch and a generation that no program asks for yet. One write per
//! endpoint then makes the programs ask for the new ones. What nobody asks for any more is deleted later, by `expire`
//! or when room is needed, after every program has finished its packet: each packet meets complete tables.
//!
//! Of the classes of addresses a change writes what differs: see [`addresses`].
//!
//! Epochs belong to endpoints, the generation of address classes to the node; both count the same changes. Entries
//! name classes by number, so a change of the classes moves even an endpoint whose entries stay: the new numbers and
//! the entries that were compiled for them begin to count with one write. Entries about classes that no generation has
//! which a program may still read go beside those of the endpoint's epoch: nobody can ask for them before that write.
//! Likewise entries about classes that no generation has any more stay until `expire`: nobody can ask for them after it.
//!
//! A class that is split off from another one is written only for endpoints that tell the two apart: see [`parents`].
//! What there is to write is worked out in [`plan`].

mod closed;
mod dump;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use aya::maps::lpm_trie::Key;
use ebpf_abi::{
    AddressClass, EPOCH_NONE, Endpoint, EndpointState, IdentityKey, InsideClasses, InsideKey, MAX_EPOCH,
    MAX_IDENTITIES, MAX_INSIDES, MAX_SOURCES, MAX_SPLITS, MAX_VERDICTS, NO_CLASS, STATE_HAS_INSIDES,
    STATE_HAS_SOURCES, SourceKey, SplitKey, VerdictKey, VerdictValue, base_generation,
};
use policies_ir::{
    tables::{
        EndpointId, IdentityId, Insides, MAX_SOURCE_CLASSES, NodeTables, SourceClass, VerdictEntry,
        VerdictKey as Meaning,
    },
    verdicts::{ClassVerdicts, Verdicts},
};

use closed::{Closed, KEPT_IDENTITIES, KEPT_VERDICTS};

use crate::{
    DatapathError, Fill, Synced, encode,
    kernel::{
        addresses::{Addresses, NewAddresses},
        maps::{Maps, is_whole_address},
        parents::{Family, Parents},
        plan::{Current, Next, Plan},
    },
    sys,
};

/// What has been written, so that it can be deleted without searching the maps.
#[derive(Default)]
pub(crate) struct Tables {
    /// Keys by endpoint and epoch.
    entries: BTreeMap<(u32, u32), Keys>,
    /// Keys by generation.
    identities: BTreeMap<u32, Vec<Key<IdentityKey>>>,
    /// Classes of each generation that this process wrote and that a program may still ask for.
    classes: BTreeMap<u32, BTreeSet<IdentityId>>,
    /// Highest epoch or generation ever used.
    last_change: u32,
    /// Classes of addresses that were written last.
    addresses: Option<Addresses>,
    parents: Parents,
    current: Current,
    closed: Closed,
}

/// The entries of one endpoint and epoch.
#[derive(Default)]
struct Keys {
    verdicts: Vec<VerdictKey>,
    sources: Vec<Key<SourceKey>>,
    splits: Vec<SplitKey>,
    insides: Vec<InsideKey>,
    /// Ranks of the verdicts, as bits.
    ranks: u64,
}

/// How a change is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Beside what there is.
    Beside,
    /// Likewise, but all addresses are written.
    WithAddresses,
    /// Everything is written, and no class has a parent any more.
    Anew,
}

/// What a change takes.
struct Change {
    /// Classes of addresses, unless they are those of before.
    addresses: Option<NewAddresses>,
    classes: BTreeSet<IdentityId>,
    /// Parents of classes that are new.
    family: Family,
    plan: Plan,
    /// Whether everything is written anew, without parents.
    anew: bool,
}

impl Tables {
    /// Finds what an earlier agent wrote. Its tables judge until the first change.
    pub(crate) fn read(maps: &Maps) -> Result<Self, DatapathError> {
        let mut tables = Self::default();
        for (key, _) in maps.verdicts()? {
            let keys = tables.entries.entry((key.endpoint, key.epoch)).or_default();
            keys.ranks |= 1 << (key.rank & 31);
            keys.verdicts.push(key);
        }
        for (key, _) in maps.sources()? {
            let data = key.data();
            let keys = tables.entries.entry((data.endpoint, data.epoch)).or_default();
            keys.sources.push(key);
        }
        for key in maps.splits()? {
            let keys = tables.entries.entry((key.endpoint, key.epoch)).or_default();
            keys.splits.push(key);
        }
        for (key, _) in maps.insides()? {
            let keys = tables.entries.entry((key.endpoint, key.epoch)).or_default();
            keys.insides.push(key);
        }
        for (key, _) in maps.identities()? {
            let generation = key.data().generation;
            tables.identities.entry(generation).or_default().push(key);
        }
        let states = maps
            .endpoints()?
            .into_iter()
            .map(|(_, endpoint)| maps.state(&endpoint).change());
        let epochs = tables.entries.keys().map(|(_, epoch)| *epoch);
        tables.last_change = epochs
            .chain(tables.identities.keys().copied())
            .chain(states)
            .max()
            .unwrap_or(EPOCH_NONE);
        Ok(tables)
    }

    /// Moves all endpoints to `tables`.
    pub(crate) fn sync(&mut self, maps: &mut Maps, tables: &NodeTables) -> Result<Synced, DatapathError> {
        self.check_classes(tables)?;
        let endpoints = maps.endpoints()?;
        let mut change = self.change(tables, &endpoints, How::Beside);
        if self.check_capacity(tables, &change).is_err() {
            self.sweep(maps, &endpoints)?;
            // Entries that were to be added to may be gone.
            change = self.change(tables, &endpoints, How::Beside);
            if let Err(full) = self.check_capacity(tables, &change) {
                // Without parents there is nothing in `SPLITS`: that map alone never keeps a change out.
                if self.parents.is_empty() && change.family.is_empty() {
                    return Err(full);
                }
                change = self.change(tables, &endpoints, How::Anew);
                self.check_capacity(tables, &change)?;
            }
        }
        self.make(maps, tables, &endpoints, change)
    }

    /// Whether so much has piled up that changes cost more than they need.
    pub(crate) fn is_worn(&self) -> bool {
        let addresses = self.addresses.as_ref();
        self.parents.are_many() || addresses.is_some_and(Addresses::are_far_from_base)
    }

    /// As [`Tables::sync`], with whatever has piled up written anew, if there is room.
    pub(crate) fn renew(&mut self, maps: &mut Maps, tables: &NodeTables) -> Result<Synced, DatapathError> {
        self.check_classes(tables)?;
        let endpoints = maps.endpoints()?;
        self.sweep(maps, &endpoints)?;
        let addresses_alone = self.addresses.as_ref().is_some_and(Addresses::are_far_from_base);
        let how = match addresses_alone && !self.parents.are_many() {
            true => How::WithAddresses,
            false => How::Anew,
        };
        let change = self.change(tables, &endpoints, how);
        if self.check_capacity(tables, &change).is_err() {
            // What there is judges right, and leaves no room for another one of everything.
            return self.sync(maps, tables);
        }
        self.make(maps, tables, &endpoints, change)
    }

    /// What it takes to move `endpoints` to `tables`.
    fn change(&self, tables: &NodeTables, endpoints: &[(u32, Endpoint)], how: How) -> Change {
        let anew = how == How::Anew;
        let before = self.addresses.as_ref().filter(|_| !anew);
        let classes: BTreeSet<IdentityId> = tables.identities.values().copied().collect();
        let are_same = before.is_some_and(|before| *before.classes == tables.identities);
        let family = match before.filter(|_| !are_same) {
            Some(before) => self.parents.adopt(&before.classes, &tables.identities, |class| {
                let is_known = self.current.says_something(class) || before.base_has(class);
                !is_known && !self.is_used(class)
            }),
            None => Family::new(),
        };
        let encoded = |class: IdentityId| match anew {
            true => AddressClass::root(class.0),
            false => self.parents.encode(&family, class),
        };
        let number = self.last_change.saturating_add(1);
        let addresses = (!are_same || how != How::Beside).then(|| {
            let before = before.filter(|_| how == How::Beside);
            NewAddresses::after(before, &tables.identities, number, encoded)
        });
        let known = self
            .addresses
            .as_ref()
            .and_then(|before| self.classes.get(&before.generation));
        let is_known = |class: &&IdentityId| known.is_some_and(|known| known.contains(*class));
        let entering: Vec<IdentityId> = classes.iter().filter(|class| !is_known(class)).copied().collect();
        let next = Next {
            tables,
            classes: &classes,
            entering: &entering,
            family: &family,
            anew,
        };
        let ids = endpoints.iter().map(|(_, endpoint)| EndpointId(endpoint.id));
        let plan = self
            .current
            .plan(&next, ids, &self.parents, |class| self.is_used(class));
        Change {
            addresses,
            classes,
            family,
            plan,
            anew,
        }
    }

    /// Writes what the change takes, and moves the endpoints.
    fn make(
        &mut self,
        maps: &mut Maps,
        tables: &NodeTables,
        endpoints: &[(u32, Endpoint)],
        change: Change,
    ) -> Result<Synced, DatapathError> {
        let mut written = 0;
        if !change.plan.is_empty() || change.addresses.is_some() {
            let number = match &change.addresses {
                Some(new) => new.addresses.generation,
                None => self.last_change.saturating_add(1),
            };
            if number > MAX_EPOCH {
                return Err(DatapathError::Epochs);
            }
            self.last_change = number;
            written = match self.write(maps, tables, &change) {
                Ok(entries) => entries,
                Err(error) => {
                    // Nobody knows which entries were added, and who answers for whom.
                    self.addresses = None;
                    self.parents = Parents::default();
                    self.current = Current::default();
                    // Nothing asks for the half that was written; the error to report is the first one.
                    drop(self.sweep(maps, endpoints));
                    return Err(error);
                }
            };
        }
        if let Some(new) = change.addresses {
            self.addresses = Some(new.addresses);
        }
        if change.anew {
            self.parents = Parents::default();
            self.current = Current::default();
        }
        self.parents.extend(change.family);
        let rewritten = change.plan.stale.len();
        let ids = endpoints.iter().map(|(_, endpoint)| EndpointId(endpoint.id));
        self.current
            .follow(change.plan, tables, self.last_change, &ids.collect());
        let generation = self
            .addresses
            .as_ref()
            .map_or(self.last_change, |addresses| addresses.generation);
        Ok(Synced {
            endpoints: self.move_endpoints(maps, tables, endpoints, generation)?,
            rewritten,
            written,
        })
    }

    /// Whether a program may ask about a class, or about another one that it answers for.
    fn is_used(&self, class: IdentityId) -> bool {
        self.classes.values().any(|classes| classes.contains(&class)) || self.parents.concern(class)
    }

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

    /// Entries that are written, by map, with the map's capacity.
    pub(crate) fn fill(&self) -> [Fill; 6] {
        let fill = |map, entries: usize, capacity| {
            Fill::new(map, u64::try_from(entries).unwrap_or(u64::MAX), capacity)
        };
        let verdicts = self.entries.values().map(|keys| keys.verdicts.len()).sum();
        let splits = self.entries.values().map(|keys| keys.splits.len()).sum();
        let sources = self.entries.values().map(|keys| keys.sources.len()).sum();
        let insides = self.entries.values().map(|keys| keys.insides.len()).sum();
        let identities: usize = self.identities.values().map(Vec::len).sum();
        let whole = self
            .identities
            .values()
            .flatten()
            .filter(|key| is_whole_address(key))
            .count();
        [
            fill("VERDICTS", verdicts, MAX_VERDICTS),
            fill("SPLITS", splits, MAX_SPLITS),
            fill("SOURCES", sources, MAX_SOURCES),
            fill("INSIDES", insides, MAX_INSIDES),
            fill("HOSTS", whole, MAX_IDENTITIES),
            fill("IDENTITIES", identities - whole, MAX_IDENTITIES),
        ]
    }

    /// Writes what is planned, and the classes of addresses if those are new, under the number of this change. How many
    /// entries that were.
    fn write(
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
    fn own<'t>(
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
    fn move_endpoints(
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

    /// Refuses classes that the kernel's key has no room for.
    fn check_classes(&self, tables: &NodeTables) -> Result<(), DatapathError> {
        let is_none = |(_, class): &(_, &IdentityId)| class.0 == NO_CLASS;
        if let Some((net, _)) = tables.identities.iter().find(is_none) {
            return Err(DatapathError::Class { net: *net });
        }
        let fits = |class: &SourceClass| usize::from(class.0) < MAX_SOURCE_CLASSES;
        let all_fit = |entries: &Arc<ClassVerdicts>| entries.keys().map(|key| &key.source).all(fits);
        for (id, endpoint) in &tables.endpoints {
            let verdicts_fit = match self.current.endpoints.get(id) {
                Some(written) => written
                    .compare(endpoint)
                    .filter_map(|compared| compared.now)
                    .all(all_fit),
                None => endpoint.verdicts.classes().all(|(_, entries)| all_fit(entries)),
            };
            if !verdicts_fit || !endpoint.sources.values().all(fits) {
                return Err(DatapathError::SourceClasses {
                    endpoint: *id,
                    needed: endpoint.source_classes(),
                });
            }
        }
        Ok(())
    }

    fn ranks(&self, endpoint: u32, epoch: u32) -> u64 {
        self.entries.get(&(endpoint, epoch)).map_or(0, |keys| keys.ranks)
    }

    fn check_capacity(&self, tables: &NodeTables, change: &Change) -> Result<(), DatapathError> {
        let old: usize = self.identities.values().map(Vec::len).sum();
        let new = change.addresses.as_ref().map_or(0, |new| new.entries.len());
        check("IDENTITIES", old + new, MAX_IDENTITIES - KEPT_IDENTITIES)?;
        let Plan { stale, steps } = &change.plan;
        let wanted = || {
            stale
                .iter()
                .filter_map(|(id, split)| Some((tables.endpoints.get(id)?, split)))
        };
        let old: usize = self.entries.values().map(|keys| keys.verdicts.len()).sum();
        let of_own = wanted().map(|(endpoint, split)| {
            let own = self.own(&endpoint.verdicts, change, split);
            own.iter().map(|(_, entries)| entries.len()).sum::<usize>()
        });
        let added = steps.iter().flat_map(|(id, step)| {
            let verdicts = tables.endpoints.get(id).map(|endpoint| &endpoint.verdicts);
            let classes = step.added.iter();
            classes.filter_map(move |class| verdicts?.class(*class))
        });
        let added: usize = added.map(|entries| entries.len()).sum();
        check(
            "VERDICTS",
            old + of_own.sum::<usize>() + added,
            MAX_VERDICTS - KEPT_VERDICTS,
        )?;
        let old: usize = self.entries.values().map(|keys| keys.splits.len()).sum();
        let new = stale.values().map(BTreeSet::len);
        let new: usize = new.chain(steps.values().map(|step| step.split.len())).sum();
        check("SPLITS", old + new, MAX_SPLITS)?;
        let old: usize = self.entries.values().map(|keys| keys.sources.len()).sum();
        let new: usize = wanted().map(|(endpoint, _)| endpoint.sources.len()).sum();
        check("SOURCES", old + new, MAX_SOURCES)?;
        let old: usize = self.entries.values().map(|keys| keys.insides.len()).sum();
        let added: usize = steps.values().map(|step| step.insides.len()).sum();
        let new: usize = wanted().map(|(endpoint, _)| endpoint.insides.len()).sum();
        check("INSIDES", old + added + new, MAX_INSIDES)
    }
}

impl Keys {
    /// Notes entries that are about to be written, and returns them as the kernel has them.
    fn add<'e>(
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

fn check(map: &'static str, needed: usize, limit: u32) -> Result<(), DatapathError> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if needed > limit {
        Err(DatapathError::Full { map, needed, limit })
    } else {
        Ok(())
    }
}
