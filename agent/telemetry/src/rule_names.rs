//! What the numbers of rules meant under earlier changes. A flow keeps the decision of its last packet: one that is idle, or
//! kept when policy changes, speaks of a change long gone when its totals are told.

use std::{collections::BTreeMap, sync::Arc};

use policies_ir::tables::NodeTables;

/// Most names of rules that are kept beside those of the newest tables: some 16 MiB.
const MAX_OLD_NAMES: usize = 1 << 17;

/// Tables by the first change for which they held, until the next. Only the names of rules matter.
///
/// The compiler adds rules to the list that it has, and numbers them anew only when much of it has fallen out of use. So one
/// list mostly answers for all changes before it, too, and is not kept twice.
#[derive(Debug, Default)]
pub(crate) struct RuleNames {
    tables: BTreeMap<u32, Arc<NodeTables>>,
    /// The newest change of all.
    newest: u32,
}

impl RuleNames {
    /// Notes that `tables` hold for `change`, the newest that any endpoint follows. Endpoints that follow an earlier one have
    /// the same numbers for the same names, or they would have been moved.
    pub(crate) fn add(&mut self, change: u32, tables: &Arc<NodeTables>) {
        self.newest = self.newest.max(change);
        if let Some(mut last) = self.tables.last_entry() {
            if tables.rules.starts_with(&last.get().rules) {
                last.insert(Arc::clone(tables));
                return;
            }
            // No endpoint was moved, so what is in use means the same in both. The next change is theirs.
            if *last.key() >= change {
                return;
            }
            // Of tables that hold no more only the names are of use, and only they are counted; there may be megabytes beside.
            let rules = last.get().rules.clone();
            last.insert(Arc::new(NodeTables {
                rules,
                ..NodeTables::default()
            }));
        }
        self.tables.insert(change, Arc::clone(tables));
        self.forget();
    }

    /// The tables that held for a change; nothing if there are no names of it yet, or any more.
    pub(crate) fn of(&self, change: u32) -> Option<&Arc<NodeTables>> {
        let tables = self.tables.range(..=change).next_back();
        tables.filter(|_| change <= self.newest).map(|(_, tables)| tables)
    }

    fn forget(&mut self) {
        let lengths = self.tables.values().map(|tables| tables.rules.len());
        let mut old: usize = lengths.rev().skip(1).sum();
        while old > MAX_OLD_NAMES
            && let Some((_, oldest)) = self.tables.pop_first()
        {
            old -= oldest.rules.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use policies_ir::tables::{EndpointId, RuleName};

    use super::*;

    fn tables(names: impl IntoIterator<Item = String>) -> Arc<NodeTables> {
        let rule = |policy| RuleName {
            tier: "default".to_owned(),
            policy,
            rule: Some(0),
        };
        Arc::new(NodeTables {
            rules: names.into_iter().map(rule).collect(),
            ..NodeTables::default()
        })
    }

    fn list(names: &str) -> Arc<NodeTables> {
        tables(names.chars().map(String::from))
    }

    fn told(names: &RuleNames, change: u32) -> Option<String> {
        let tables = names.of(change)?;
        Some(tables.rules.iter().map(|name| name.policy.as_str()).collect())
    }

    #[test]
    fn a_change_has_the_names_of_its_time() {
        let mut names = RuleNames::default();
        for (change, rules) in [
            (256, "a"),
            (258, "ab"),
            (300, "ab"),
            (310, "bc"),
            (310, "cd"),
            (290, "de"),
            (311, "de"),
        ] {
            names.add(change, &list(rules));
        }
        for (change, rules) in [
            (3, None),
            (255, None),
            (256, Some("ab")),
            (257, Some("ab")),
            (309, Some("ab")),
            (310, Some("bc")),
            (311, Some("de")),
            (312, None),
        ] {
            assert_eq!(told(&names, change).as_deref(), rules, "{change}");
        }
        assert_eq!(names.tables.len(), 3, "a list that goes on is one");
    }

    #[test]
    fn of_old_tables_only_the_names_are_kept() {
        let of = |rules| {
            let mut tables = NodeTables::clone(&list(rules));
            tables.endpoints.insert(EndpointId(1), Arc::default());
            Arc::new(tables)
        };
        let mut names = RuleNames::default();
        for (change, rules) in [(1, "a"), (2, "ab"), (3, "b")] {
            names.add(change, &of(rules));
        }
        assert_eq!(told(&names, 2).as_deref(), Some("ab"));
        let kept = |change| names.of(change).unwrap().endpoints.len();
        assert_eq!((kept(2), kept(3)), (0, 1));
    }

    #[test]
    fn names_of_the_oldest_changes_go_first() {
        let mut names = RuleNames::default();
        let half = MAX_OLD_NAMES / 2;
        for change in 1..=4 {
            names.add(change, &tables((0..half).map(|rule| format!("{change}-{rule}"))));
        }
        let known: Vec<u32> = (1..=4).filter(|change| names.of(*change).is_some()).collect();
        assert_eq!(known, [2, 3, 4]);
    }
}
