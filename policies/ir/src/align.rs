//! Numbers that stay: identities and rules of newly compiled tables get the numbers that they had before, so that a
//! datapath finds endpoints that mean the same to be the same, and writes only the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    tables::{BUILTIN_RULES, EndpointTables, IdentityId, NodeTables, RuleId, RuleName, VerdictEntry},
    verdicts::Verdicts,
};

/// Names that no table uses any more are kept, to keep the numbers of others, until they are this many and more than
/// half of all.
const UNUSED_NAMES_KEPT: usize = 4096;

impl NodeTables {
    /// The same tables in the numbers of `previous`, as far as that goes: a rule keeps its number by its name, an
    /// identity by the first of its prefixes that had one. What is new gets numbers that `previous` does not use.
    /// Which packet gets which verdict, by which rule, does not change.
    #[must_use]
    pub fn aligned_with(self, previous: &Self) -> Self {
        let (rules, rule_numbers) = align_rules(&self.rules, &previous.rules);
        let identities = align_identities(&self.identities, &previous.identities);
        // An identity without a prefix is nobody's; its entries would be unreachable.
        let identity = |id: IdentityId| identities.get(&id).copied();
        let rule = |id: RuleId| match id.0.checked_sub(BUILTIN_RULES) {
            None => id,
            Some(index) => usize::try_from(index)
                .ok()
                .and_then(|index| rule_numbers.get(index).copied())
                .unwrap_or(id),
        };
        let endpoints = self.endpoints.into_iter().map(|(endpoint, tables)| {
            let tables = Arc::unwrap_or_clone(tables);
            let mut verdicts = Verdicts::default();
            for (peer, entries) in tables.verdicts.classes() {
                let Some(peer) = identity(peer) else { continue };
                let named = entries.iter().map(|(key, entry)| {
                    let rule = rule(entry.rule);
                    (*key, VerdictEntry { rule, ..*entry })
                });
                verdicts.set_class(peer, Arc::new(named.collect()));
            }
            let insides = tables.insides.into_iter();
            let tables = EndpointTables {
                insides: insides
                    .filter_map(|(address, classes)| Some((identity(address)?, classes)))
                    .collect(),
                verdicts,
                sources: tables.sources,
            };
            (endpoint, Arc::new(tables))
        });
        Self {
            endpoints: endpoints.collect(),
            identities: self
                .identities
                .into_iter()
                .filter_map(|(net, id)| Some((net, identity(id)?)))
                .collect(),
            rules,
        }
    }
}

/// The names in the order of their new numbers, and the new number of each old one.
fn align_rules(now: &[RuleName], previous: &[RuleName]) -> (Vec<RuleName>, Vec<RuleId>) {
    let used: BTreeSet<&RuleName> = now.iter().collect();
    let unused = previous.iter().filter(|name| !used.contains(name)).count();
    let mut names: Vec<RuleName> = match unused > UNUSED_NAMES_KEPT && unused > used.len() {
        true => Vec::new(),
        false => previous.to_vec(),
    };
    let mut places: BTreeMap<RuleName, usize> = names.iter().cloned().zip(0..).collect();
    let mut numbers = Vec::with_capacity(now.len());
    for name in now {
        let place = *places.entry(name.clone()).or_insert_with(|| {
            names.push(name.clone());
            names.len() - 1
        });
        let number = u32::try_from(place)
            .ok()
            .and_then(|place| place.checked_add(BUILTIN_RULES));
        // More names than numbers: such a rule is not told by its name. Its verdict stands.
        numbers.push(RuleId(number.unwrap_or(0)));
    }
    (names, numbers)
}

/// The new number of each identity that has a prefix: that of the first of its prefixes that had one, or one that
/// `previous` does not use.
pub fn align_identities(
    now: &BTreeMap<ipnet::IpNet, IdentityId>,
    previous: &BTreeMap<ipnet::IpNet, IdentityId>,
) -> BTreeMap<IdentityId, IdentityId> {
    let mut taken: BTreeSet<IdentityId> = BTreeSet::new();
    let mut numbers: BTreeMap<IdentityId, IdentityId> = BTreeMap::new();
    for (net, id) in now {
        if let Some(before) = previous.get(net)
            && !numbers.contains_key(id)
            && taken.insert(*before)
        {
            numbers.insert(*id, *before);
        }
    }
    let used = previous.values().chain(&taken).map(|id| id.0).max().unwrap_or(0);
    let new: BTreeSet<IdentityId> = now
        .values()
        .filter(|id| !numbers.contains_key(id))
        .copied()
        .collect();
    for (id, number) in new.into_iter().zip(used.saturating_add(1)..) {
        numbers.insert(id, IdentityId(number));
    }
    numbers
}
