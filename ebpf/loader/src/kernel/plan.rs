//! What it takes for the kernel's entries to mean other tables. Pure: nothing is written here.
//!
//! Of every endpoint it is noted what was said about each class that a program may ask for: by its tables, or by entries
//! that are left of earlier ones. For classes with parents holds, at each endpoint: what the kernel answers, by entries of
//! the class or by its parent's, is what was said. Each plan keeps that so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use policies_ir::{
    tables::{
        BUILTIN_RULES, EndpointId, EndpointTables, IdentityId, NodeTables, RuleId, RuleName, VerdictEntry,
    },
    verdicts::ClassVerdicts,
};

use super::parents::{Family, Parents};

/// What the kernel holds of endpoints, as far as this process wrote it.
#[derive(Default)]
pub(super) struct Current {
    /// Entries of each endpoint and their epoch.
    pub(super) endpoints: BTreeMap<EndpointId, Written>,
    /// What rule ids mean.
    pub(super) rules: Vec<RuleName>,
}

/// What was written for an endpoint.
pub(super) struct Written {
    tables: Arc<EndpointTables>,
    pub(super) epoch: u32,
    /// How many names of rules its entries need.
    rules: usize,
    /// What it says beside its tables, of classes that those say nothing about, which no address is of now.
    pub(super) left: BTreeMap<IdentityId, Arc<ClassVerdicts>>,
}

/// What has to be written, but for the classes of addresses.
#[derive(Default)]
pub(super) struct Plan {
    /// Endpoints that get everything anew, with the classes that each tells from their parents.
    pub(super) stale: BTreeMap<EndpointId, BTreeSet<IdentityId>>,
    /// What is done to the entries of others.
    pub(super) steps: BTreeMap<EndpointId, Step>,
}

/// What turns the entries that an endpoint has into those that are wanted.
#[derive(Default)]
pub(super) struct Step {
    /// Classes whose entries go beside those that it has.
    pub(super) added: Vec<IdentityId>,
    /// Classes that it tells from their parents from now on.
    pub(super) split: Vec<IdentityId>,
    /// Classes for which their parents answer.
    inherited: Vec<IdentityId>,
    /// Classes that no address is of any more: nobody will ask for their entries.
    left: Vec<IdentityId>,
    /// Classes of which there are entries left that say what is wanted.
    returned: Vec<IdentityId>,
}

/// What has to be written for an endpoint.
enum Work {
    Nothing,
    Some(Step),
    Everything,
}

/// The change that is planned.
pub(super) struct Next<'a> {
    pub(super) tables: &'a NodeTables,
    /// Classes that some address has afterwards.
    pub(super) classes: &'a BTreeSet<IdentityId>,
    /// Parents of classes that nobody knows yet.
    pub(super) family: &'a Family,
    /// Whether all is written anew, and no class has a parent any more.
    pub(super) anew: bool,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.stale.is_empty() && self.steps.is_empty()
    }
}

impl Current {
    /// Under which change the entries of an endpoint are.
    pub(super) fn epoch(&self, endpoint: EndpointId) -> Option<u32> {
        self.endpoints.get(&endpoint).map(|written| written.epoch)
    }

    /// Whether there are entries about a class, perhaps of one that no address is of.
    pub(super) fn says_something(&self, class: IdentityId) -> bool {
        self.endpoints
            .values()
            .any(|written| written.said(class).is_some())
    }

    /// What it takes for the entries of `endpoints` to mean what is wanted `next`. A program may still meet classes that
    /// are `used`.
    pub(super) fn plan(
        &self,
        next: &Next<'_>,
        endpoints: impl Iterator<Item = EndpointId>,
        parents: &Parents,
        used: impl Fn(IdentityId) -> bool,
    ) -> Plan {
        // Rules below this number mean what they meant.
        let kept = match next.tables.rules.starts_with(&self.rules) {
            true => self.rules.len(),
            false => 0,
        };
        let same_name = |rule: RuleId| {
            let index = rule.0.checked_sub(BUILTIN_RULES);
            let is_kept = index.is_none_or(|index| usize::try_from(index).is_ok_and(|index| index < kept));
            is_kept || rule_name(&self.rules, rule) == rule_name(&next.tables.rules, rule)
        };
        let mut plan = Plan::default();
        for id in endpoints {
            let Some(wanted) = next.tables.endpoints.get(&id) else {
                continue;
            };
            let work = match self.endpoints.get(&id).filter(|_| !next.anew) {
                Some(written) => written.work(wanted, next, &used, kept, &same_name),
                None => Work::Everything,
            };
            match work {
                Work::Nothing => {}
                Work::Some(step) => drop(plan.steps.insert(id, step)),
                Work::Everything if next.anew => drop(plan.stale.insert(id, BTreeSet::new())),
                Work::Everything => {
                    let family = next.family.iter().map(|(class, parent)| (*class, *parent));
                    let split = parents.iter().chain(family).filter(|(class, parent)| {
                        wanted.verdicts.class(*class) != wanted.verdicts.class(*parent)
                    });
                    let split = split.map(|(class, _)| class).collect();
                    plan.stale.insert(id, split);
                }
            }
        }
        plan
    }

    /// What the plan has turned it into. Those of `endpoints` that the tables say nothing about are forgotten: whatever
    /// comes to be said of a class's parent would not be kept so for them.
    pub(super) fn follow(
        &mut self,
        plan: Plan,
        tables: &NodeTables,
        change: u32,
        endpoints: &BTreeSet<EndpointId>,
    ) {
        for id in plan.stale.into_keys() {
            if let Some(wanted) = tables.endpoints.get(&id) {
                self.endpoints.insert(id, Written::new(wanted, change));
            }
        }
        for (id, step) in plan.steps {
            if let Some(wanted) = tables.endpoints.get(&id)
                && let Some(written) = self.endpoints.get_mut(&id)
            {
                written.follow(wanted, &step);
            }
        }
        self.endpoints
            .retain(|id, _| endpoints.contains(id) && tables.endpoints.contains_key(id));
        self.rules.clone_from(&tables.rules);
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

    /// Whether it says what these tables say, of endpoints that are the same piece.
    pub(super) fn is(&self, tables: &Arc<EndpointTables>) -> bool {
        Arc::ptr_eq(&self.tables, tables)
    }

    /// What was said about a class.
    fn said(&self, class: IdentityId) -> Option<&Arc<ClassVerdicts>> {
        let of_tables = self.tables.verdicts.classes().get(&class);
        of_tables.or_else(|| self.left.get(&class))
    }

    /// What it takes for the entries that an endpoint has to mean what is wanted. The first `kept` names of rules are
    /// those of before.
    fn work(
        &self,
        wanted: &Arc<EndpointTables>,
        next: &Next<'_>,
        used: impl Fn(IdentityId) -> bool,
        kept: usize,
        same_name: impl Fn(RuleId) -> bool,
    ) -> Work {
        let same = |before: &Arc<ClassVerdicts>, entries: &Arc<ClassVerdicts>| {
            Arc::ptr_eq(before, entries) && self.rules <= kept
                || before == entries && entries.values().all(|entry| same_name(entry.rule))
        };
        let mut step = Step::default();
        if !(self.is(wanted) && self.rules <= kept) {
            if self.tables.sources != wanted.sources {
                return Work::Everything;
            }
            let before = self.tables.verdicts.classes();
            for (class, entries) in wanted.verdicts.classes() {
                match (before.get(class), self.left.get(class)) {
                    (Some(before), _) if same(before, entries) => {}
                    (None, Some(left)) if used(*class) && same(left, entries) => step.returned.push(*class),
                    (None, None) if !used(*class) => step.added.push(*class),
                    _ => return Work::Everything,
                }
            }
            let gone = before
                .keys()
                .filter(|class| wanted.verdicts.class(**class).is_none());
            step.left.extend(gone.copied());
        }
        let left = self.left.keys().chain(&step.left);
        let mut unsaid = left.filter(|class| wanted.verdicts.class(**class).is_none());
        // Somebody could ask for entries that say what is not wanted.
        if unsaid.any(|class| next.classes.contains(class) || next.family.contains_key(class)) {
            return Work::Everything;
        }
        for (class, parent) in next.family {
            let wanted = wanted.verdicts.classes().get(class);
            let is_same = match (self.said(*parent), wanted) {
                (Some(said), Some(wanted)) => same(said, wanted),
                (None, None) => true,
                _ => false,
            };
            if !is_same {
                step.split.push(*class);
            } else if wanted.is_some() {
                step.added.retain(|added| added != class);
                step.inherited.push(*class);
            }
        }
        match step.is_empty() {
            true => Work::Nothing,
            false => Work::Some(step),
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
        for class in &step.returned {
            self.left.remove(class);
        }
        let added = step
            .added
            .iter()
            .filter_map(|class| wanted.verdicts.class(*class));
        self.rules = added.map(names_needed).max().unwrap_or(0).max(self.rules);
        self.tables = Arc::clone(wanted);
    }
}

impl Step {
    fn is_empty(&self) -> bool {
        let parts = [
            &self.added,
            &self.split,
            &self.inherited,
            &self.left,
            &self.returned,
        ];
        parts.into_iter().all(Vec::is_empty)
    }
}

/// How many names of rules entries need.
fn names_needed(entries: &ClassVerdicts) -> usize {
    let named = |entry: &VerdictEntry| entry.rule.0.checked_sub(BUILTIN_RULES);
    let highest = entries.values().filter_map(named).max();
    highest.map_or(0, |index| {
        usize::try_from(index).unwrap_or(usize::MAX).saturating_add(1)
    })
}

/// Name of a rule; none for built-in ones, which mean the same in all tables.
fn rule_name(rules: &[RuleName], id: RuleId) -> Option<&RuleName> {
    let index = id.0.checked_sub(BUILTIN_RULES)?;
    rules.get(usize::try_from(index).ok()?)
}
