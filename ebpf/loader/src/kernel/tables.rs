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
//! What there is to write is worked out in [`plan`]. Here is the order of a change; whether there is [`room`] for it, what
//! it takes to [`write`](mod@write) and to [`sweep`], and the rest of it, in files of their own.

mod closed;
mod dump;
mod room;
mod sweep;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::lpm_trie::Key;
use ebpf_abi::{
    AddressClass, EPOCH_NONE, Endpoint, IdentityKey, InsideKey, MAX_EPOCH, SourceKey, SplitKey, VerdictKey,
};
use policies_ir::tables::{EndpointId, IdentityId, NodeTables};

use closed::Closed;
pub(crate) use closed::is_closed;

use crate::{
    DatapathError, Synced,
    kernel::{
        addresses::{Addresses, NewAddresses},
        maps::Maps,
        parents::{Family, Parents},
        plan::{Current, Next, Plan},
    },
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

    fn ranks(&self, endpoint: u32, epoch: u32) -> u64 {
        self.entries.get(&(endpoint, epoch)).map_or(0, |keys| keys.ranks)
    }
}
