//! Classes of addresses that were split off from others.
//!
//! When a condition tells pods apart that were alike, some of them get a new class: its verdicts are those of the class
//! that they had, but for the few endpoints that ask the condition. So the new class gets a *parent*, and at an endpoint
//! that does not tell the two apart the parent's entries answer ([`ebpf_abi::AddressClass`]). Who is whose parent decides
//! only how much there is to write: an endpoint that says something else about the class gets its own entries.
//!
//! Parents have no parents, and a class keeps the one that it has until all tables are written anew.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_abi::AddressClass;
use ipnet::IpNet;
use policies_ir::tables::IdentityId;

/// With more classes that have parents, tables are worth writing anew in a quiet moment.
const MANY: usize = 256;

/// Parents by class.
pub(crate) type Family = BTreeMap<IdentityId, IdentityId>;

/// The classes with parents that the kernel has.
#[derive(Default)]
pub(crate) struct Parents {
    of: Family,
    parents: BTreeSet<IdentityId>,
}

impl Parents {
    /// Whether a class has a parent, or is one: what the kernel has about it means something to others.
    pub(crate) fn concern(&self, class: IdentityId) -> bool {
        self.of.contains_key(&class) || self.parents.contains(&class)
    }

    pub(crate) fn has(&self, class: IdentityId) -> bool {
        self.of.contains_key(&class)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (IdentityId, IdentityId)> {
        self.of.iter().map(|(class, parent)| (*class, *parent))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    pub(crate) fn are_many(&self) -> bool {
        self.of.len() > MANY
    }

    /// Parents for classes that are new: of addresses that had another class `before`, that class or its parent.
    pub(crate) fn adopt(
        &self,
        before: &BTreeMap<IpNet, IdentityId>,
        now: &BTreeMap<IpNet, IdentityId>,
        is_new: impl Fn(IdentityId) -> bool,
    ) -> Family {
        let mut family = Family::new();
        let mut before = before.iter().peekable();
        for (net, class) in now {
            while before.next_if(|(earlier, _)| *earlier < net).is_some() {}
            let Some((_, earlier)) = before.next_if(|(earlier, _)| *earlier == net) else {
                continue;
            };
            if earlier != class && !family.contains_key(class) && is_new(*class) {
                let parent = self.of.get(earlier).unwrap_or(earlier);
                family.insert(*class, *parent);
            }
        }
        family
    }

    /// The kernel has these too.
    pub(crate) fn extend(&mut self, family: Family) {
        self.parents.extend(family.values());
        self.of.extend(family);
    }

    /// As the kernel has a class of addresses, if it has these parents and those of `family`.
    pub(crate) fn encode(&self, family: &Family, class: IdentityId) -> AddressClass {
        let parent = self.of.get(&class).or_else(|| family.get(&class));
        AddressClass {
            class: class.0,
            parent: parent.unwrap_or(&class).0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: fn(u32) -> IdentityId = IdentityId;

    fn classes(entries: &[(&str, u32)]) -> BTreeMap<IpNet, IdentityId> {
        let entry = |(net, class): &(&str, u32)| (net.parse().expect("a prefix"), ID(*class));
        entries.iter().map(entry).collect()
    }

    #[test]
    fn new_classes_get_the_class_of_before_or_its_parent() {
        let first = classes(&[("10.0.0.1/32", 1), ("10.0.0.2/32", 1), ("10.0.0.3/32", 2)]);
        let mut parents = Parents::default();
        let now = classes(&[
            ("10.0.0.1/32", 1),
            ("10.0.0.2/32", 5),
            ("10.0.0.3/32", 1),
            ("10.0.0.4/32", 6),
        ]);
        let family = parents.adopt(&first, &now, |class| class.0 > 2);
        assert_eq!(
            family,
            Family::from([(ID(5), ID(1))]),
            "who is known or of no address of before has none"
        );
        assert_eq!(
            parents.encode(&family, ID(5)),
            AddressClass { class: 5, parent: 1 }
        );
        assert_eq!(parents.encode(&family, ID(6)), AddressClass::root(6));
        parents.extend(family);
        assert!(parents.concern(ID(5)) && parents.concern(ID(1)) && !parents.concern(ID(6)));

        let later = classes(&[("10.0.0.2/32", 7)]);
        let family = parents.adopt(&now, &later, |class| class.0 == 7);
        assert_eq!(family, Family::from([(ID(7), ID(1))]), "parents have no parents");
    }
}
