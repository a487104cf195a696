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

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use aya::maps::lpm_trie::Key;
use ebpf_abi::{
    EPOCH_NONE, Endpoint, EndpointState, IdentityKey, MAX_EPOCH, MAX_IDENTITIES, MAX_SOURCES, MAX_VERDICTS,
    NO_CLASS, STATE_HAS_SOURCES, SourceKey, VerdictKey, VerdictValue, base_generation,
};
use policies_ir::{
    tables::{
        EndpointId, EndpointTables, IdentityId, MAX_SOURCE_CLASSES, NodeTables, RuleId, RuleName,
        SourceClass, VerdictEntry, VerdictKey as Meaning,
    },
    verdicts::ClassVerdicts,
};

use crate::{
    DatapathError, Fill, Synced, encode,
    kernel::{
        addresses::{self, Addresses, NewAddresses},
        maps::Maps,
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
    current: Current,
}

/// What has to be written for an endpoint.
enum Work {
    Nothing,
    Some(Step),
    Everything,
}

/// What turns the entries that an endpoint has into those that are wanted.
#[derive(Default)]
struct Step {
    /// Classes whose entries go beside those that it has.
    added: Vec<IdentityId>,
    /// Classes that no address is of any more: nobody will ask for their entries.
    left: Vec<IdentityId>,
}

/// What has to be written, but for the classes of addresses.
#[derive(Default)]
struct Plan {
    /// Endpoints that get everything anew.
    stale: BTreeSet<EndpointId>,
    /// What is done to the entries of others.
    steps: BTreeMap<EndpointId, Step>,
}

/// The entries of one endpoint and epoch.
#[derive(Default)]
struct Keys {
    verdicts: Vec<VerdictKey>,
    sources: Vec<Key<SourceKey>>,
    /// Ranks of the verdicts, as bits.
    ranks: u64,
}

/// What the kernel holds, as far as this process wrote it.
#[derive(Default)]
struct Current {
    /// Classes of addresses.
    addresses: Option<Addresses>,
    /// Entries of each endpoint and their epoch.
    endpoints: BTreeMap<EndpointId, Written>,
    /// What rule ids mean.
    rules: Vec<RuleName>,
}

/// What was written for an endpoint.
struct Written {
    tables: Arc<EndpointTables>,
    epoch: u32,
    /// How many names of rules its entries need.
    rules: usize,
    /// Entries that it has beside those of its tables, by their class, which no address is of.
    left: BTreeMap<IdentityId, Arc<ClassVerdicts>>,
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
        let same_addresses = self
            .current
            .addresses
            .as_ref()
            .filter(|current| *current.classes == tables.identities)
            .map(|current| current.generation);
        let change = self.last_change.saturating_add(1);
        let new_addresses = same_addresses
            .is_none()
            .then(|| NewAddresses::after(self.current.addresses.as_ref(), &tables.identities, change));
        let classes = tables.identities.values().copied().collect();
        let mut plan = self.plan(tables, &endpoints, &classes);
        let mut entries = 0;
        if !plan.is_empty() || new_addresses.is_some() {
            if self
                .check_capacity(tables, &plan, new_addresses.as_ref())
                .is_err()
            {
                self.sweep(maps, &endpoints)?;
                // Entries that were to be added to may be gone.
                plan = self.plan(tables, &endpoints, &classes);
                self.check_capacity(tables, &plan, new_addresses.as_ref())?;
            }
            let change = new_addresses
                .as_ref()
                .map_or(change, |new| new.addresses.generation);
            if change > MAX_EPOCH {
                return Err(DatapathError::Epochs);
            }
            self.last_change = change;
            entries = match self.write(maps, tables, &plan, new_addresses.as_ref(), classes) {
                Ok(entries) => entries,
                Err(error) => {
                    // Nobody knows which entries were added.
                    for id in plan.steps.keys() {
                        self.current.endpoints.remove(id);
                    }
                    // Nothing asks for the half that was written; the error to report is the first one.
                    drop(self.sweep(maps, &endpoints));
                    return Err(error);
                }
            };
        }
        let generation = same_addresses.unwrap_or(self.last_change);
        if let Some(new) = new_addresses {
            self.current.addresses = Some(new.addresses);
        }
        for id in &plan.stale {
            if let Some(wanted) = tables.endpoints.get(id) {
                let written = Written::new(wanted, self.last_change);
                self.current.endpoints.insert(*id, written);
            }
        }
        let rewritten = plan.stale.len();
        for (id, step) in plan.steps {
            if let Some(wanted) = tables.endpoints.get(&id)
                && let Some(written) = self.current.endpoints.get_mut(&id)
            {
                written.follow(wanted, &step);
            }
        }
        self.current.rules.clone_from(&tables.rules);
        Ok(Synced {
            endpoints: self.move_endpoints(maps, tables, &endpoints, generation),
            rewritten,
            written: entries,
        })
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
        let current = self.current.addresses.as_ref().map(|current| current.generation);
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
        let has_left = |written: &Written| !written.left.is_empty();
        if entries.is_empty() && identities.is_empty() && !self.current.endpoints.values().any(has_left) {
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
                for source in &keys.sources {
                    maps.remove_source(source)?;
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

    /// Deletes entries about classes that no generation has. No program may read tables of before any more.
    fn remove_left(&mut self, maps: &mut Maps) -> Result<(), DatapathError> {
        for (id, written) in &mut self.current.endpoints {
            let is_used = |class| self.classes.values().any(|classes| classes.contains(class));
            let gone: Vec<IdentityId> = written
                .left
                .keys()
                .filter(|class| !is_used(class))
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

    /// The tables that the attached endpoints follow, read back from the maps. What programs do not look for is not
    /// part of them.
    pub(crate) fn dump(&self, maps: &Maps) -> Result<NodeTables, DatapathError> {
        let mut tables = NodeTables::default();
        let mut states = BTreeMap::new();
        let mut ranks = BTreeMap::new();
        for (_, endpoint) in maps.endpoints()? {
            let state = maps.state(&endpoint);
            if state.epoch != EPOCH_NONE {
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
        if let Some(generation) = generations.first() {
            tables.identities = addresses::resolve(&maps.identities()?, *generation);
        }
        let classes: BTreeSet<IdentityId> = tables.identities.values().copied().collect();
        let is_left = |data: &VerdictKey| {
            let class = IdentityId(data.peer);
            let written = self.current.endpoints.get(&EndpointId(data.endpoint));
            !classes.contains(&class) && written.is_some_and(|written| written.left.contains_key(&class))
        };
        for (data, value) in maps.verdicts()? {
            let asked = states.get(&data.endpoint).map(|state| state.epoch);
            if asked == Some(data.epoch)
                && looked_for(&data)
                && !is_left(&data)
                && let Some(meaning) = encode::verdict_meaning(&data)
                && let Some(endpoint) = tables.endpoints.get_mut(&EndpointId(data.endpoint))
            {
                Arc::make_mut(endpoint)
                    .verdicts
                    .insert(meaning, encode::verdict_entry(value));
            }
        }
        for (key, class) in maps.sources()? {
            let data = key.data();
            let asked = states
                .get(&data.endpoint)
                .filter(|state| state.flags & STATE_HAS_SOURCES != 0)
                .map(|state| state.epoch);
            if asked == Some(data.epoch)
                && let Some(block) = encode::source_block(&key)
                && let Some(endpoint) = tables.endpoints.get_mut(&EndpointId(data.endpoint))
            {
                // As the programs read it.
                let [class, ..] = class.to_le_bytes();
                Arc::make_mut(endpoint).sources.insert(block, SourceClass(class));
            }
        }
        Ok(tables)
    }

    /// Entries that are written, by map, with the map's capacity.
    pub(crate) fn fill(&self) -> [Fill; 3] {
        let fill = |map, entries: usize, capacity: u32| Fill {
            map,
            entries: u64::try_from(entries).unwrap_or(u64::MAX),
            capacity: capacity.into(),
        };
        let verdicts = self.entries.values().map(|keys| keys.verdicts.len()).sum();
        let sources = self.entries.values().map(|keys| keys.sources.len()).sum();
        let identities = self.identities.values().map(Vec::len).sum();
        [
            fill("VERDICTS", verdicts, MAX_VERDICTS),
            fill("SOURCES", sources, MAX_SOURCES),
            fill("IDENTITIES", identities, MAX_IDENTITIES),
        ]
    }

    /// What it takes for the entries of attached endpoints to mean what `tables` says.
    fn plan(
        &self,
        tables: &NodeTables,
        endpoints: &[(u32, Endpoint)],
        classes: &BTreeSet<IdentityId>,
    ) -> Plan {
        // Rules below this number mean what they meant.
        let kept = match tables.rules.starts_with(&self.current.rules) {
            true => self.current.rules.len(),
            false => 0,
        };
        let same_name = |rule: RuleId| {
            let index = rule.0.checked_sub(policies_ir::tables::BUILTIN_RULES);
            let is_kept = index.is_none_or(|index| usize::try_from(index).is_ok_and(|index| index < kept));
            is_kept || self.current.rule(rule) == rule_name(&tables.rules, rule)
        };
        let used = |class| self.classes.values().any(|classes| classes.contains(&class));
        let mut plan = Plan::default();
        for id in endpoints.iter().map(|(_, endpoint)| EndpointId(endpoint.id)) {
            let Some(wanted) = tables.endpoints.get(&id) else {
                continue;
            };
            let work = match self.current.endpoints.get(&id) {
                // Somebody could ask for them again.
                Some(written) if written.left.keys().any(|class| classes.contains(class)) => Work::Everything,
                Some(written) if written.rules <= kept && Arc::ptr_eq(&written.tables, wanted) => {
                    Work::Nothing
                }
                Some(written) => work(written, wanted, used, classes, kept, same_name),
                None => Work::Everything,
            };
            match work {
                Work::Nothing => {}
                Work::Some(step) => drop(plan.steps.insert(id, step)),
                Work::Everything => drop(plan.stale.insert(id)),
            }
        }
        plan
    }

    /// Writes what is planned, and the classes of addresses if those are new, under the number of this change. How many
    /// entries that were.
    fn write(
        &mut self,
        maps: &mut Maps,
        tables: &NodeTables,
        plan: &Plan,
        new_addresses: Option<&NewAddresses>,
        classes: BTreeSet<IdentityId>,
    ) -> Result<usize, DatapathError> {
        let change = self.last_change;
        let mut count = 0;
        // Keys are noted first: deleting what was never written does no harm.
        if let Some(new) = new_addresses {
            let written = self.identities.entry(change).or_default();
            written.extend(new.entries.iter().map(|(key, _)| *key));
            self.classes.insert(change, classes);
            count += new.entries.len();
            maps.write_identities(&new.entries)?;
        }
        let mut verdicts = Vec::new();
        for (id, step) in &plan.steps {
            let (Some(wanted), Some(Written { epoch, .. })) =
                (tables.endpoints.get(id), self.current.endpoints.get(id))
            else {
                continue;
            };
            let written = self.entries.entry((id.0, *epoch)).or_default();
            let classes = step
                .added
                .iter()
                .filter_map(|class| Some((*class, wanted.verdicts.class(*class)?)));
            let entries = classes.flat_map(|(class, entries)| {
                entries.iter().map(move |(key, entry)| (key.about(class), *entry))
            });
            verdicts.extend(written.add(*id, *epoch, entries));
        }
        for id in &plan.stale {
            let Some(wanted) = tables.endpoints.get(id) else {
                continue;
            };
            let written = self.entries.entry((id.0, change)).or_default();
            for (block, class) in &wanted.sources {
                let key = encode::source_key(*id, change, block);
                written.sources.push(key);
                count += 1;
                maps.write_source(&key, class.0)?;
            }
            verdicts.extend(written.add(*id, change, wanted.verdicts.iter()));
        }
        maps.write_verdicts(&verdicts)?;
        Ok(count + verdicts.len())
    }

    /// One write for each endpoint that does not follow its entries yet. Returns the change that each follows.
    fn move_endpoints(
        &self,
        maps: &mut Maps,
        tables: &NodeTables,
        endpoints: &[(u32, Endpoint)],
        generation: u32,
    ) -> BTreeMap<EndpointId, u32> {
        let mut changes = BTreeMap::new();
        for (_, endpoint) in endpoints {
            let id = EndpointId(endpoint.id);
            let old = maps.state(endpoint);
            let mut state = EndpointState {
                epoch: EPOCH_NONE,
                generation,
                flags: old.flags & !STATE_HAS_SOURCES,
            };
            if let Some(wanted) = tables.endpoints.get(&id)
                && let Some(Written { epoch, .. }) = self.current.endpoints.get(&id)
            {
                state.epoch = *epoch;
                if !wanted.sources.is_empty() {
                    state.flags |= STATE_HAS_SOURCES;
                }
                changes.insert(id, state.change());
                // Before the state, which makes programs look for them.
                maps.set_ranks(endpoint, self.ranks(endpoint.id, *epoch), false);
            }
            if state != old {
                maps.set_state(endpoint, state);
            }
        }
        changes
    }

    /// Refuses classes that the kernel's key has no room for.
    fn check_classes(&self, tables: &NodeTables) -> Result<(), DatapathError> {
        let is_none = |(_, class): &(_, &IdentityId)| class.0 == NO_CLASS;
        if let Some((net, _)) = tables.identities.iter().find(is_none) {
            return Err(DatapathError::Class { net: *net });
        }
        let fits = |class: &SourceClass| usize::from(class.0) < MAX_SOURCE_CLASSES;
        for (id, endpoint) in &tables.endpoints {
            let written = self.current.endpoints.get(id);
            if written.is_some_and(|written| Arc::ptr_eq(&written.tables, endpoint)) {
                continue;
            }
            let entries = endpoint
                .verdicts
                .classes()
                .values()
                .flat_map(|entries| entries.keys());
            let in_keys = entries.map(|key| &key.source);
            if !endpoint.sources.values().chain(in_keys).all(fits) {
                return Err(DatapathError::SourceClasses { endpoint: *id });
            }
        }
        Ok(())
    }

    fn ranks(&self, endpoint: u32, epoch: u32) -> u64 {
        self.entries.get(&(endpoint, epoch)).map_or(0, |keys| keys.ranks)
    }

    fn check_capacity(
        &self,
        tables: &NodeTables,
        plan: &Plan,
        new_addresses: Option<&NewAddresses>,
    ) -> Result<(), DatapathError> {
        let old: usize = self.identities.values().map(Vec::len).sum();
        let new = new_addresses.map_or(0, |new| new.entries.len());
        check("IDENTITIES", old + new, MAX_IDENTITIES)?;
        let wanted = || plan.stale.iter().filter_map(|id| tables.endpoints.get(id));
        let added: usize = plan.steps.values().map(|step| step.added.len()).sum();
        let old: usize = self.entries.values().map(|keys| keys.verdicts.len()).sum();
        let new: usize = wanted().map(|endpoint| endpoint.verdicts.len()).sum();
        check("VERDICTS", old + new + added, MAX_VERDICTS)?;
        let old: usize = self.entries.values().map(|keys| keys.sources.len()).sum();
        let new: usize = wanted().map(|endpoint| endpoint.sources.len()).sum();
        check("SOURCES", old + new, MAX_SOURCES)
    }
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.stale.is_empty() && self.steps.is_empty()
    }
}

impl Written {
    fn new(tables: &Arc<EndpointTables>, epoch: u32) -> Self {
        let classes = tables.verdicts.classes().values();
        Self {
            tables: Arc::clone(tables),
            epoch,
            rules: classes.map(|entries| names_needed(entries)).max().unwrap_or(0),
            left: BTreeMap::new(),
        }
    }

    /// What `step` has turned it into.
    fn follow(&mut self, wanted: &Arc<EndpointTables>, step: &Step) {
        let before = self.tables.verdicts.classes();
        let left = step
            .left
            .iter()
            .filter_map(|class| Some((*class, Arc::clone(before.get(class)?))));
        self.left.extend(left);
        let added = step
            .added
            .iter()
            .filter_map(|class| wanted.verdicts.class(*class));
        self.rules = added.map(names_needed).max().unwrap_or(0).max(self.rules);
        self.tables = Arc::clone(wanted);
    }
}

/// How many names of rules entries need.
fn names_needed(entries: &ClassVerdicts) -> usize {
    let named = |entry: &VerdictEntry| entry.rule.0.checked_sub(policies_ir::tables::BUILTIN_RULES);
    let highest = entries.values().filter_map(named).max();
    highest.map_or(0, |index| {
        usize::try_from(index).unwrap_or(usize::MAX).saturating_add(1)
    })
}

impl Keys {
    /// Notes entries that are about to be written, and returns them as the kernel has them.
    fn add(
        &mut self,
        id: EndpointId,
        epoch: u32,
        entries: impl Iterator<Item = (Meaning, VerdictEntry)>,
    ) -> Vec<(VerdictKey, VerdictValue)> {
        let encoded = entries.map(|(meaning, entry)| {
            let key = encode::verdict_key(id, epoch, &meaning);
            (key, encode::verdict_value(&entry))
        });
        let encoded: Vec<_> = encoded.collect();
        for (key, _) in &encoded {
            self.ranks |= 1 << (key.rank & 31);
            self.verdicts.push(*key);
        }
        encoded
    }
}

/// What it takes for the entries that an endpoint has to mean what is wanted. A program may still meet classes that are
/// `used`; after the change it meets `classes` alone. The first `kept` names of rules are those of before.
fn work(
    written: &Written,
    wanted: &EndpointTables,
    used: impl Fn(IdentityId) -> bool,
    classes: &BTreeSet<IdentityId>,
    kept: usize,
    same_name: impl Fn(RuleId) -> bool,
) -> Work {
    if written.tables.sources != wanted.sources {
        return Work::Everything;
    }
    let same_names = |entries: &ClassVerdicts| entries.values().all(|entry| same_name(entry.rule));
    let before = written.tables.verdicts.classes();
    let mut step = Step::default();
    for (class, entries) in wanted.verdicts.classes() {
        match before.get(class) {
            Some(same) if Arc::ptr_eq(same, entries) && written.rules <= kept => {}
            Some(same) if same == entries && same_names(entries) => {}
            None if !used(*class) && !written.left.contains_key(class) => step.added.push(*class),
            _ => return Work::Everything,
        }
    }
    let gone = before
        .keys()
        .filter(|class| wanted.verdicts.class(**class).is_none());
    step.left.extend(gone.copied());
    if step.left.iter().any(|class| classes.contains(class)) {
        return Work::Everything;
    }
    match step.added.is_empty() && step.left.is_empty() {
        true => Work::Nothing,
        false => Work::Some(step),
    }
}

impl Current {
    fn rule(&self, id: RuleId) -> Option<&RuleName> {
        rule_name(&self.rules, id)
    }
}

/// Name of a rule; none for built-in ones, which mean the same in all tables.
fn rule_name(rules: &[RuleName], id: RuleId) -> Option<&RuleName> {
    let index = id.0.checked_sub(policies_ir::tables::BUILTIN_RULES)?;
    rules.get(usize::try_from(index).ok()?)
}

fn check(map: &'static str, needed: usize, limit: u32) -> Result<(), DatapathError> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if needed > limit {
        Err(DatapathError::Full { map, needed, limit })
    } else {
        Ok(())
    }
}
