//! The entries of one endpoint, by class of addresses.
//!
//! What an endpoint says about a class is one shared piece: many endpoints say the same about many classes, and a
//! change leaves most pieces as they are. Who kept earlier tables sees which those are without reading them. Pieces of
//! neighbouring classes are together in a block that is shared likewise: to copy the entries of an endpoint, and to find
//! what differs between two versions of them, costs what differs and one look at each block.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::tables::{Direction, IdentityId, InsideClass, Service, SourceClass, VerdictEntry, VerdictKey};

/// Which packets an entry answers for among those of one class of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassKey {
    /// Seen from the endpoint.
    pub direction: Direction,
    /// Class of the address at the endpoint's own end.
    pub inside: InsideClass,
    /// Class of the source port.
    pub source: SourceClass,
    /// Protocols and ports.
    pub service: Service,
}

/// What an endpoint says about one class of addresses.
pub type ClassVerdicts = BTreeMap<ClassKey, VerdictEntry>;

/// Classes of a block.
const BLOCK: u32 = 32;

/// What is said about the classes of one block; none is empty.
type Block = BTreeMap<IdentityId, Arc<ClassVerdicts>>;

/// The entries of one endpoint. Longest prefix wins among those of one class, direction and source class; a key without
/// a match is denied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdicts {
    /// By the class's number divided by [`BLOCK`]; none is empty.
    blocks: BTreeMap<u32, Arc<Block>>,
    len: usize,
}

/// What two endpoints, or one at two times, say about a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compared<'a> {
    /// The class.
    pub class: IdentityId,
    /// What is said.
    pub now: Option<&'a Arc<ClassVerdicts>>,
    /// What the other one says.
    pub other: Option<&'a Arc<ClassVerdicts>>,
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

    /// What is said about each class that something is said about, in the order of the classes.
    pub fn classes(&self) -> impl Iterator<Item = (IdentityId, &Arc<ClassVerdicts>)> {
        let blocks = self.blocks.values().flat_map(|block| block.iter());
        blocks.map(|(class, entries)| (*class, entries))
    }

    /// What is said about one class.
    pub fn class(&self, peer: IdentityId) -> Option<&Arc<ClassVerdicts>> {
        self.blocks.get(&(peer.0 / BLOCK))?.get(&peer)
    }

    /// All classes that either of the two says something about, but for those of pieces that they share.
    pub fn compare<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Compared<'a>> {
        let numbers: BTreeSet<u32> = self.blocks.keys().chain(other.blocks.keys()).copied().collect();
        let is_shared =
            |a: Option<&Arc<Block>>, b: Option<&Arc<Block>>| a.zip(b).is_some_and(|(a, b)| Arc::ptr_eq(a, b));
        let blocks = numbers.into_iter().filter_map(move |number| {
            let [now, then] = [self, other].map(|verdicts| verdicts.blocks.get(&number));
            (!is_shared(now, then)).then_some([now, then])
        });
        let classes = blocks.flat_map(|[now, then]| {
            let keys = [now, then].into_iter().flatten().flat_map(|block| block.keys());
            let classes: BTreeSet<IdentityId> = keys.copied().collect();
            classes.into_iter().map(move |class| Compared {
                class,
                now: now.and_then(|block| block.get(&class)),
                other: then.and_then(|block| block.get(&class)),
            })
        });
        classes.filter(|c| !c.now.zip(c.other).is_some_and(|(a, b)| Arc::ptr_eq(a, b)))
    }

    /// From now on this is said about a class.
    pub fn set_class(&mut self, peer: IdentityId, entries: Arc<ClassVerdicts>) {
        let before = self.class(peer).map_or(0, |before| before.len());
        let now = entries.len();
        self.len = self.len - before + now;
        if now == 0 && before == 0 {
            return;
        }
        let number = peer.0 / BLOCK;
        let block = Arc::make_mut(self.blocks.entry(number).or_default());
        match now {
            0 => block.remove(&peer),
            _ => block.insert(peer, entries),
        };
        if block.is_empty() {
            self.blocks.remove(&number);
        }
    }

    /// The entry of exactly this key.
    pub fn get(&self, key: &VerdictKey) -> Option<&VerdictEntry> {
        self.class(key.peer)?.get(&key.of_class())
    }

    /// Adds an entry, or replaces the one of the same key and returns it.
    pub fn insert(&mut self, key: VerdictKey, entry: VerdictEntry) -> Option<VerdictEntry> {
        let block = Arc::make_mut(self.blocks.entry(key.peer.0 / BLOCK).or_default());
        let class = block.entry(key.peer).or_default();
        let before = Arc::make_mut(class).insert(key.of_class(), entry);
        self.len += usize::from(before.is_none());
        before
    }

    /// All entries in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (VerdictKey, VerdictEntry)> {
        self.classes()
            .flat_map(|(peer, entries)| entries.iter().map(move |(key, entry)| (key.about(peer), *entry)))
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
            inside: self.inside,
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
            inside: self.inside,
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
            inside: InsideClass(2),
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

    #[test]
    fn versions_are_compared_by_what_they_do_not_share() {
        let of = |peer, rule| (key(peer, Service::Any), entry(rule));
        let before: Verdicts = [of(1, 1), of(2, 1), of(100, 1), of(1000, 1)].into();
        let mut now = before.clone();
        assert_eq!(now.compare(&before).next(), None);
        now.insert(key(2, Service::Any), entry(9));
        now.set_class(IdentityId(100), Arc::default());
        now.set_class(IdentityId(3), Arc::default());
        now.insert(key(2000, Service::Any), entry(1));
        let said = |c: &Compared<'_>| (c.class.0, c.now.is_some(), c.other.is_some());
        let found: Vec<_> = now.compare(&before).map(|compared| said(&compared)).collect();
        assert_eq!(found, [(2, true, true), (100, false, true), (2000, true, false)]);
        let classes: Vec<u32> = now.classes().map(|(class, _)| class.0).collect();
        assert_eq!(classes, [1, 2, 1000, 2000]);
        assert_eq!(now.len(), 4);
    }
}
