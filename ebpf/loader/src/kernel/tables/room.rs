//! What the maps have room for, and what is in them.

use std::{collections::BTreeSet, sync::Arc};

use ebpf_abi::{MAX_IDENTITIES, MAX_INSIDES, MAX_SOURCES, MAX_SPLITS, MAX_VERDICTS, NO_CLASS};
use policies_ir::{
    tables::{IdentityId, MAX_SOURCE_CLASSES, NodeTables, SourceClass},
    verdicts::ClassVerdicts,
};

use super::{
    Change, Tables,
    closed::{KEPT_IDENTITIES, KEPT_VERDICTS},
};
use crate::{
    DatapathError, Fill,
    kernel::{maps::is_whole_address, plan::Plan},
};

impl Tables {
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

    /// Refuses classes that the kernel's key has no room for.
    pub(super) fn check_classes(&self, tables: &NodeTables) -> Result<(), DatapathError> {
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

    pub(super) fn check_capacity(&self, tables: &NodeTables, change: &Change) -> Result<(), DatapathError> {
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

fn check(map: &'static str, needed: usize, limit: u32) -> Result<(), DatapathError> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if needed > limit {
        Err(DatapathError::Full { map, needed, limit })
    } else {
        Ok(())
    }
}
