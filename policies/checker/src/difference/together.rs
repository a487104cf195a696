//! Changes at addresses that the same happens to, put together.

use crate::{difference::Change, naming, packet::Packet, region::Region};

/// A change, and the addresses at its ends where those are not workloads.
pub(super) struct Located {
    pub(super) change: Change,
    pub(super) from: Option<Addresses>,
    pub(super) to: Option<Addresses>,
}

/// Addresses, and the names that they are taken to have.
#[derive(Clone)]
pub(super) struct Addresses {
    pub(super) region: Region,
    pub(super) named: Option<String>,
}

impl Addresses {
    pub(super) fn name(&self) -> String {
        match &self.named {
            Some(names) => naming::named_addresses(names, &self.region),
            None => naming::addresses(&self.region),
        }
    }
}

/// Puts addresses together between which and the same workloads the same happens by the same rules.
pub(super) fn together(changes: Vec<Located>) -> Vec<Change> {
    let rulings = |change: &Change| {
        let of = |packet: &Option<Packet>| packet.as_ref().map(Packet::rulings);
        (of(&change.before), of(&change.after))
    };
    let mut merged: Vec<Located> = Vec::new();
    for new in changes {
        let fits = |known: &&mut Located| {
            let (a, b) = (&known.change, &new.change);
            let end = |a: &str, b: &str, known: &Option<Addresses>, new: &Option<Addresses>| {
                let same_names = |(known, new): (&Addresses, &Addresses)| known.named == new.named;
                a == b || known.as_ref().zip(new.as_ref()).is_some_and(same_names)
            };
            (a.effect, a.family, &a.text, rulings(a)) == (b.effect, b.family, &b.text, rulings(b))
                && end(&a.from, &b.from, &known.from, &new.from)
                && end(&a.to, &b.to, &known.to, &new.to)
        };
        match merged.iter_mut().find(fits) {
            Some(known) => {
                for (name, known, more) in [
                    (&mut known.change.from, &mut known.from, &new.from),
                    (&mut known.change.to, &mut known.to, &new.to),
                ] {
                    if let (Some(known), Some(more)) = (known.as_mut(), more) {
                        known.region = known.region.union(&more.region);
                        *name = known.name();
                    }
                }
            }
            None => merged.push(new),
        }
    }
    merged.into_iter().map(|located| located.change).collect()
}
