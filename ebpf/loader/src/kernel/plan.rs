//! What it takes for the kernel's entries to mean other tables. Pure: nothing is written here.
//!
//! Of every endpoint it is noted what was said about each class that a program may ask for: by its tables, or by entries
//! that are left of earlier ones. For classes with parents holds, at each endpoint: what the kernel answers, by entries of
//! the class or by its parent's, is what was said. Each plan keeps that so.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use policies_ir::{
    tables::{
        BUILTIN_RULES, EndpointId, EndpointTables, IdentityId, Insides, NodeTables, RuleId, RuleName,
        VerdictEntry,
    },
    verdicts::{ClassVerdicts, Compared},
};

use super::parents::{Family, Parents};

/// What the kernel holds of endpoints, as far as this process wrote it.
#[derive(Default)]
pub(super) struct Current {
    /// Entries of each endpoint and their epoch.
    pub(super) endpoints: BTreeMap<EndpointId, Written>,
    /// Classes that some endpoint says something about, or has since everything was written anew.
    classes: HashSet<IdentityId>,
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
    /// Classes of which it begins to be known what they are at the own end.
    pub(super) insides: Vec<IdentityId>,
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
    /// Those of them that no address has now.
    pub(super) entering: &'a [IdentityId],
    /// Parents of classes among these that nobody knows yet.
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
                Some(written) => written.work(wanted, next, &used, kept, same_name),
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
                self.classes
                    .extend(wanted.verdicts.classes().map(|(class, _)| class));
                self.endpoints.insert(id, Written::new(wanted, change));
            }
        }
        for (id, step) in plan.steps {
            if let Some(wanted) = tables.endpoints.get(&id)
                && let Some(written) = self.endpoints.get_mut(&id)
            {
                self.classes.extend(step.added.iter().chain(&step.inherited));
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
        let classes = tables.verdicts.classes();
        Self {
            tables: Arc::clone(tables),
            epoch,
            rules: classes
                .map(|(_, entries)| names_needed(entries))
                .max()
                .unwrap_or(0),
            left: BTreeMap::new(),
        }
    }

    /// What other tables say otherwise, or in other pieces.
    pub(super) fn compare<'a>(&'a self, tables: &'a EndpointTables) -> impl Iterator<Item = Compared<'a>> {
        tables.verdicts.compare(&self.tables.verdicts)
    }

    /// What was said about a class.
    fn said(&self, class: IdentityId) -> Option<&Arc<ClassVerdicts>> {
        let of_tables = self.tables.verdicts.class(class);
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
        let names_hold = self.rules <= kept;
        let same = |before: &Arc<ClassVerdicts>, entries: &Arc<ClassVerdicts>| {
            Arc::ptr_eq(before, entries) && names_hold
                || before == entries && entries.values().all(|entry| same_name(entry.rule))
        };
        if self.tables.sources != wanted.sources {
            return Work::Everything;
        }
        let is_kept = |(class, entries)| self.said(class).is_none_or(|before| same(before, entries));
        if !names_hold && !wanted.verdicts.classes().all(is_kept) {
            return Work::Everything;
        }
        let mut step = Step::default();
        // Those of a class that no address is of any more are not left: another number could be its when it returns.
        let known = &self.tables.insides;
        let holds = |(class, classes): (&IdentityId, &Insides)| wanted.insides.get(class) == Some(classes);
        if !known.iter().all(holds) {
            return Work::Everything;
        }
        let new = wanted.insides.keys().filter(|class| !known.contains_key(class));
        step.insides = new.copied().collect();
        if step.insides.iter().any(|class| used(*class)) {
            return Work::Everything;
        }
        for Compared { class, now, other } in self.compare(wanted) {
            match (other, self.left.get(&class), now) {
                (Some(before), _, Some(now)) if same(before, now) => {}
                (Some(_), _, None) => step.left.push(class),
                (None, Some(left), Some(now)) if used(class) && same(left, now) => step.returned.push(class),
                (None, None, Some(_)) if !used(class) => step.added.push(class),
                _ => return Work::Everything,
            }
        }
        let is_unsaid =
            |class: &IdentityId| self.left.contains_key(class) && wanted.verdicts.class(*class).is_none();
        // Somebody could ask for entries that say what is not wanted.
        if next.entering.iter().any(is_unsaid) || step.left.iter().any(|class| next.classes.contains(class)) {
            return Work::Everything;
        }
        for (class, parent) in next.family {
            let wanted = wanted.verdicts.class(*class);
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
        let before = &self.tables.verdicts;
        let left = step
            .left
            .iter()
            .filter_map(|class| Some((*class, Arc::clone(before.class(*class)?))));
        self.left.extend(left);
        for class in &step.returned {
            self.left.remove(class);
        }
        let added = step
            .added
            .iter()
            .filter_map(|class| wanted.verdicts.class(*class));
        self.rules = added
            .map(|entries| names_needed(entries))
            .max()
            .unwrap_or(0)
            .max(self.rules);
        self.tables = Arc::clone(wanted);
    }
}

impl Step {
    fn is_empty(&self) -> bool {
        let parts = [
            &self.added,
            &self.split,
            &self.insides,
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
