//! The entries of one endpoint, by class of addresses.
//!
//! What an endpoint says about a class is one shared piece: many endpoints say the same about many classes, and a
//! change leaves most pieces as they are. Who kept earlier tables sees which those are without reading them.

use std::{collections::BTreeMap, sync::Arc};

use crate::tables::{Direction, IdentityId, Service, SourceClass, VerdictEntry, VerdictKey};

/// Which packets an entry answers for among those of one class of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassKey {
    /// Seen from the endpoint.
    pub direction: Direction,
    /// Class of the source port.
    pub source: SourceClass,
    /// Protocols and ports.
    pub service: Service,
}

/// What an endpoint says about one class of addresses.
pub type ClassVerdicts = BTreeMap<ClassKey, VerdictEntry>;

/// The entries of one endpoint. Longest prefix wins among those of one class, direction and source class; a key without
/// a match is denied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdicts {
    /// None is empty.
    classes: BTreeMap<IdentityId, Arc<ClassVerdicts>>,
    len: usize,
}

impl Verdicts {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is said about each class that something is said about.
    pub fn classes(&self) -> &BTreeMap<IdentityId, Arc<ClassVerdicts>> {
        &self.classes
    }

    /// What is said about one class.
    pub fn class(&self, peer: IdentityId) -> Option<&ClassVerdicts> {
        self.classes.get(&peer).map(AsRef::as_ref)
    }

    /// From now on this is said about a class.
    pub fn set_class(&mut self, peer: IdentityId, entries: Arc<ClassVerdicts>) {
        let now = entries.len();
        let before = match now {
            0 => self.classes.remove(&peer),
            _ => self.classes.insert(peer, entries),
        };
        self.len = self.len - before.map_or(0, |before| before.len()) + now;
    }

    /// The entry of exactly this key.
    pub fn get(&self, key: &VerdictKey) -> Option<&VerdictEntry> {
        self.class(key.peer)?.get(&key.of_class())
    }

    /// Adds an entry, or replaces the one of the same key and returns it.
    pub fn insert(&mut self, key: VerdictKey, entry: VerdictEntry) -> Option<VerdictEntry> {
        let class = self.classes.entry(key.peer).or_default();
        let before = Arc::make_mut(class).insert(key.of_class(), entry);
        self.len += usize::from(before.is_none());
        before
    }

    /// All entries in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (VerdictKey, VerdictEntry)> {
        self.classes
            .iter()
            .flat_map(|(peer, entries)| entries.iter().map(|(key, entry)| (key.about(*peer), *entry)))
    }
}

impl Extend<(VerdictKey, VerdictEntry)> for Verdicts {
    fn extend<T: IntoIterator<Item = (VerdictKey, VerdictEntry)>>(&mut self, entries: T) {
        for (key, entry) in entries {
            self.insert(key, entry);
        }
    }
}

impl FromIterator<(VerdictKey, VerdictEntry)> for Verdicts {
    fn from_iter<T: IntoIterator<Item = (VerdictKey, VerdictEntry)>>(entries: T) -> Self {
        let mut verdicts = Self::default();
        verdicts.extend(entries);
        verdicts
    }
}

impl<const N: usize> From<[(VerdictKey, VerdictEntry); N]> for Verdicts {
    fn from(entries: [(VerdictKey, VerdictEntry); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl ClassKey {
    /// The same about addresses of class `peer`.
    pub fn about(self, peer: IdentityId) -> VerdictKey {
        VerdictKey {
            peer,
            direction: self.direction,
            source: self.source,
            service: self.service,
        }
    }
}

impl VerdictKey {
    /// The same without the class.
    pub fn of_class(self) -> ClassKey {
        ClassKey {
            direction: self.direction,
            source: self.source,
            service: self.service,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{RuleId, Verdict};

    fn key(peer: u32, service: Service) -> VerdictKey {
        VerdictKey {
            peer: IdentityId(peer),
            direction: Direction::Egress,
            source: SourceClass(3),
            service,
        }
    }

    fn entry(rule: u32) -> VerdictEntry {
        VerdictEntry {
            verdict: Verdict::Allow,
            rule: RuleId(rule),
        }
    }

    #[test]
    fn entries_are_counted_ordered_and_found() {
        let entries = [
            (key(2, Service::Any), entry(1)),
            (key(1, Service::Protocol(6)), entry(2)),
            (key(1, Service::Any), entry(3)),
        ];
        let mut verdicts = Verdicts::from(entries);
        let mut sorted = entries.to_vec();
        sorted.sort();
        assert_eq!(verdicts.iter().collect::<Vec<_>>(), sorted);
        assert_eq!(verdicts.len(), 3);
        assert_eq!(verdicts.insert(key(2, Service::Any), entry(4)), Some(entry(1)));
        assert_eq!(verdicts.get(&key(2, Service::Any)), Some(&entry(4)));
        assert_eq!(verdicts.get(&key(3, Service::Any)), None);
        assert_eq!(verdicts.len(), 3);
    }

    #[test]
    fn a_class_of_which_nothing_is_said_is_none() {
        let mut verdicts =
            Verdicts::from([(key(1, Service::Any), entry(1)), (key(2, Service::Any), entry(1))]);
        verdicts.set_class(IdentityId(1), Arc::default());
        assert_eq!(verdicts, Verdicts::from([(key(2, Service::Any), entry(1))]));
        let one = ClassVerdicts::from([(key(0, Service::Any).of_class(), entry(9))]);
        verdicts.set_class(IdentityId(2), Arc::new(one));
        assert_eq!(verdicts, Verdicts::from([(key(2, Service::Any), entry(9))]));
        verdicts.set_class(IdentityId(2), Arc::default());
        assert!(verdicts.is_empty());
    }
}
