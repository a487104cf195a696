//! Classes of addresses from generation to generation: all of them in the first generation of a group, then what differs.
//!
//! A label of one pod moves one address, and there are as many addresses as the cluster has pods. So a generation has in
//! map `HOSTS` only the whole addresses that are not as in the first of its group ([`GENERATION_GROUP`]), however many
//! generations lie between the two: programs look at two of them at most. Shorter prefixes are few; each generation has
//! all of those.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use aya::maps::lpm_trie::Key;
use ebpf_abi::{AddressClass, GENERATION_GROUP, IdentityKey, NO_CLASS, base_generation};
use ipnet::IpNet;
use policies_ir::tables::IdentityId;

use crate::{DatapathError, encode, kernel::parents::Family};

type Classes = BTreeMap<IpNet, IdentityId>;

/// With more differences to the first of the group, the next group begins.
const MAX_DIFFERENCES: usize = 1024;

/// The classes of one generation.
#[derive(Clone)]
pub(crate) struct Addresses {
    pub(crate) generation: u32,
    pub(crate) classes: Arc<Classes>,
    /// Those of the first generation of the group.
    base: Arc<Classes>,
    /// All classes that are in there.
    of_base: Arc<BTreeSet<IdentityId>>,
    /// How many entries it has beside those.
    differences: usize,
}

impl Addresses {
    /// Whether the first generation of the group has addresses of a class, which are not written again for others.
    pub(crate) fn base_has(&self, class: IdentityId) -> bool {
        self.of_base.contains(&class)
    }

    /// Whether a group is worth beginning in a quiet moment: every change writes all differences.
    pub(crate) fn are_far_from_base(&self) -> bool {
        self.differences > MAX_DIFFERENCES / 4
    }
}

/// A generation, and what the maps have to have of it.
pub(crate) struct NewAddresses {
    pub(crate) addresses: Addresses,
    pub(crate) entries: Vec<(Key<IdentityKey>, AddressClass)>,
}

impl NewAddresses {
    /// The generation of these classes, the change with this number: a later one if a group has to begin with it. A
    /// class must be `encoded` as in the generation `before`.
    pub(crate) fn after(
        before: Option<&Addresses>,
        classes: &Classes,
        change: u32,
        encoded: impl Fn(IdentityId) -> AddressClass,
    ) -> Self {
        let base = before
            .filter(|before| base_generation(before.generation) == base_generation(change))
            .map(|before| (&before.base, &before.of_base));
        if let Some((base, of_base)) = base
            && let Some(entries) = differences(base, classes)
        {
            let addresses = Addresses {
                generation: change,
                classes: Arc::new(classes.clone()),
                base: Arc::clone(base),
                of_base: Arc::clone(of_base),
                differences: entries.len(),
            };
            return Self::new(addresses, entries.into_iter(), encoded);
        }
        let classes = Arc::new(classes.clone());
        let addresses = Addresses {
            generation: change
                .checked_next_multiple_of(GENERATION_GROUP)
                .unwrap_or(u32::MAX),
            classes: Arc::clone(&classes),
            base: Arc::clone(&classes),
            of_base: Arc::new(classes.values().copied().collect()),
            differences: 0,
        };
        let all = classes.iter().map(|(net, class)| (*net, Some(*class)));
        Self::new(addresses, all, encoded)
    }

    fn new(
        addresses: Addresses,
        entries: impl Iterator<Item = (IpNet, Option<IdentityId>)>,
        encoded: impl Fn(IdentityId) -> AddressClass,
    ) -> Self {
        let generation = addresses.generation;
        let none = AddressClass::root(NO_CLASS);
        let entries = entries
            .map(|(net, class)| {
                (
                    encode::identity_key(generation, &net),
                    class.map_or(none, &encoded),
                )
            })
            .collect();
        Self { addresses, entries }
    }
}

/// Every shorter prefix of `wanted`, and the whole addresses that are not as in `base`; `None` if those are too many.
fn differences(base: &Classes, wanted: &Classes) -> Option<Vec<(IpNet, Option<IdentityId>)>> {
    let mut whole = Vec::new();
    let mut prefixes = Vec::new();
    let mut before = base.iter().filter(|(net, _)| is_whole(net)).peekable();
    for (net, class) in wanted {
        if !is_whole(net) {
            prefixes.push((*net, Some(*class)));
            continue;
        }
        while let Some((gone, _)) = before.next_if(|(known, _)| *known < net) {
            whole.push((*gone, None));
        }
        let known = before.next_if(|(known, _)| *known == net);
        if known.is_none_or(|(_, known)| known != class) {
            whole.push((*net, Some(*class)));
        }
        if whole.len() > MAX_DIFFERENCES {
            return None;
        }
    }
    whole.extend(before.map(|(gone, _)| (*gone, None)));
    if whole.len() > MAX_DIFFERENCES {
        return None;
    }
    whole.append(&mut prefixes);
    Some(whole)
}

/// What a generation means, of all entries of the maps: classes, and the parent of each that has one.
pub(crate) fn resolve(
    entries: &[(Key<IdentityKey>, AddressClass)],
    generation: u32,
) -> Result<(Classes, Family), DatapathError> {
    let of = |wanted| {
        entries
            .iter()
            .filter(move |(key, _)| key.data().generation == wanted)
            .filter_map(|(key, class)| Some((encode::identity_net(key)?, *class)))
    };
    let base = of(base_generation(generation)).filter(|(net, _)| is_whole(net));
    let mut found = BTreeMap::new();
    for (net, class) in base.chain(of(generation)) {
        if class.class == NO_CLASS {
            found.remove(&net);
        } else {
            found.insert(net, class);
        }
    }
    let mut family = Family::new();
    for (net, AddressClass { class, parent }) in &found {
        let parent = IdentityId(*parent);
        if *family.entry(IdentityId(*class)).or_insert(parent) != parent {
            return Err(DatapathError::Parents { net: *net });
        }
    }
    family.retain(|class, parent| class != parent);
    let classes = found.iter().map(|(net, found)| (*net, IdentityId(found.class)));
    Ok((classes.collect(), family))
}

fn is_whole(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First generation of the first and of the second group that there may be.
    const FIRST: u32 = GENERATION_GROUP;
    const SECOND: u32 = 2 * GENERATION_GROUP;

    /// The one class with a parent, which is 1.
    const CHILD: IdentityId = IdentityId(5);

    fn encoded(class: IdentityId) -> AddressClass {
        let parent = if class == CHILD { 1 } else { class.0 };
        AddressClass {
            class: class.0,
            parent,
        }
    }

    fn classes(entries: &[(&str, u32)]) -> Classes {
        let entry = |(net, class): &(&str, u32)| (net.parse().expect("a prefix"), IdentityId(*class));
        entries.iter().map(entry).collect()
    }

    #[test]
    fn a_group_has_its_first_generation_and_what_differs() {
        let first = classes(&[
            ("10.0.0.0/8", 9),
            ("10.0.0.1/32", 1),
            ("10.0.0.2/32", 2),
            ("10.0.0.3/32", 3),
            ("fd00::1/128", 4),
        ]);
        let next = classes(&[
            ("10.0.0.0/8", 9),
            ("10.0.0.0/32", 5),
            ("10.0.0.2/32", 1),
            ("10.0.0.3/32", 3),
        ]);
        let base = NewAddresses::after(None, &first, 3, encoded);
        assert_eq!((base.addresses.generation, base.entries.len()), (FIRST, 5));
        let second = NewAddresses::after(Some(&base.addresses), &next, FIRST + 4, encoded);
        assert_eq!(second.addresses.generation, FIRST + 4);
        let written: Classes = second
            .entries
            .iter()
            .filter_map(|(key, class)| Some((encode::identity_net(key)?, IdentityId(class.class))))
            .collect();
        let expected = classes(&[
            ("10.0.0.0/8", 9),
            ("10.0.0.0/32", 5),
            ("10.0.0.1/32", NO_CLASS),
            ("10.0.0.2/32", 1),
            ("fd00::1/128", NO_CLASS),
        ]);
        assert_eq!(written, expected);
        let back = NewAddresses::after(Some(&second.addresses), &first, SECOND - 1, encoded);
        assert_eq!(
            back.entries.len(),
            1,
            "as the first of the group, but for the prefix"
        );
        let other_group = NewAddresses::after(Some(&back.addresses), &next, SECOND, encoded);
        assert_eq!(
            (other_group.addresses.generation, other_group.entries.len()),
            (SECOND, 4)
        );

        let all: Vec<_> = [&base, &second, &back, &other_group]
            .into_iter()
            .flat_map(|generation| generation.entries.clone())
            .collect();
        for (generation, meaning) in [
            (FIRST, &first),
            (FIRST + 4, &next),
            (SECOND - 1, &first),
            (SECOND, &next),
        ] {
            let (found, family) = resolve(&all, generation).expect("one parent each");
            assert_eq!(found, *meaning, "generation {generation}");
            let has_parent = meaning.values().any(|class| *class == CHILD);
            assert_eq!(
                family,
                has_parent.then_some((CHILD, IdentityId(1))).into_iter().collect()
            );
        }
    }

    #[test]
    fn many_differences_begin_a_group() {
        let of = |count: usize, class| -> Classes {
            let address = |number: u32| std::net::Ipv4Addr::from(0x0a00_0000 + number);
            (0..)
                .take(count)
                .map(|number| {
                    (
                        IpNet::from(std::net::IpAddr::from(address(number))),
                        IdentityId(class),
                    )
                })
                .collect()
        };
        let base = NewAddresses::after(None, &of(MAX_DIFFERENCES, 1), 1, encoded).addresses;
        let differ = NewAddresses::after(Some(&base), &of(MAX_DIFFERENCES, 2), FIRST + 1, encoded);
        assert_eq!(differ.addresses.generation, FIRST + 1);
        let more = NewAddresses::after(Some(&base), &of(MAX_DIFFERENCES + 1, 2), FIRST + 1, encoded);
        assert_eq!(more.addresses.generation, SECOND);
        let gone = NewAddresses::after(Some(&more.addresses), &Classes::new(), SECOND + 1, encoded);
        assert_eq!(
            (gone.addresses.generation, gone.entries.len()),
            (SECOND + GENERATION_GROUP, 0)
        );
    }

    #[test]
    fn a_class_of_two_parents_is_none() {
        let base = NewAddresses::after(
            None,
            &classes(&[("10.0.0.1/32", 5), ("10.0.0.2/32", 5)]),
            1,
            encoded,
        );
        let mut entries = base.entries;
        assert!(resolve(&entries, FIRST).is_ok());
        if let Some((_, class)) = entries.last_mut() {
            class.parent = 2;
        }
        let error = resolve(&entries, FIRST).expect_err("two parents");
        assert!(error.to_string().contains("10.0.0.2/32"), "{error}");
    }
}
