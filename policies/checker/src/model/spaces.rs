//! What each pair of ends may exchange, and which rules decide it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use policies_ir::{
    policy::IpVersion,
    tables::{DecidedBy, Direction, RuleId},
};

use crate::{
    build::CLOSED,
    model::{End, Model, Spot},
    space::Space,
};

/// Number of a distinct set of flows: equal numbers, equal sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceId(u32);

/// What was computed already.
#[derive(Debug, Default)]
pub(super) struct Known {
    spaces: Vec<Arc<Space>>,
    ids: HashMap<Arc<Space>, SpaceId>,
    pairs: HashMap<(Option<usize>, Option<usize>, IpVersion), SpaceId>,
    deciders: HashMap<(usize, SpaceId, IpVersion), BTreeSet<String>>,
}

impl Model {
    /// What may pass from one end to another, at any of their addresses of a family. Within a class it is what one
    /// member may send another. Nothing if the ends have no addresses of that family.
    pub fn allowed(&self, from: End, to: End, version: IpVersion) -> Option<SpaceId> {
        let pairs = self.pairs(from, to).into_iter();
        self.allowed_between(pairs.filter(|(from, _)| self.version(*from) == Some(version)))
    }

    /// The same from any of these addresses of an end to any of those of another.
    pub(crate) fn allowed_among(&self, from: &[Spot], to: &[Spot], version: IpVersion) -> Option<SpaceId> {
        let of_family = |spot: &Spot| self.version(*spot) == Some(version);
        let pairs = from.iter().filter(|spot| of_family(spot)).flat_map(|from| {
            to.iter()
                .filter(|spot| of_family(spot))
                .map(move |to| (*from, *to))
        });
        self.allowed_between(pairs)
    }

    fn allowed_between(&self, pairs: impl Iterator<Item = (Spot, Spot)>) -> Option<SpaceId> {
        let mut all: Option<SpaceId> = None;
        for (from, to) in pairs {
            let here = self.allowed_at(from, to);
            all = Some(match all {
                Some(before) if before != here => self.intern(self.space(before).union(&self.space(here))),
                _ => here,
            });
        }
        all
    }

    /// What may pass from one address of an end to one of another, of the same family; as the packets of the family see
    /// it ([`Space::of_family`]).
    pub fn allowed_at(&self, from: Spot, to: Spot) -> SpaceId {
        let Some(version) = self.version(from) else {
            return self.intern(Space::nothing());
        };
        let egress = self.judge(from, Direction::Egress, to);
        let ingress = self.judge(to, Direction::Ingress, from);
        let key = (egress, ingress, version);
        if let Some(id) = self.known.borrow().pairs.get(&key) {
            return *id;
        }
        let allowed = |judge: Option<usize>| match judge.and_then(|judge| self.judges.get(judge)) {
            Some(judge) => judge.allowed().clone(),
            None => Space::everything(),
        };
        let both = allowed(egress).intersect(&allowed(ingress));
        let id = self.intern(both.of_family(version));
        self.known.borrow_mut().pairs.insert(key, id);
        id
    }

    /// The set with this number.
    pub fn space(&self, id: SpaceId) -> Arc<Space> {
        let known = self.known.borrow();
        let space = usize::try_from(id.0).ok().and_then(|id| known.spaces.get(id));
        space.cloned().unwrap_or_default()
    }

    pub(crate) fn intern(&self, space: Space) -> SpaceId {
        let mut known = self.known.borrow_mut();
        if let Some(id) = known.ids.get(&space) {
            return *id;
        }
        let space = Arc::new(space);
        // There are fewer sets than pairs of judges, and those fit in memory.
        let id = SpaceId(u32::try_from(known.spaces.len()).unwrap_or(u32::MAX));
        known.spaces.push(Arc::clone(&space));
        known.ids.insert(space, id);
        id
    }

    /// Rules that decide about flows of a set from one address to another: where they leave, and where they arrive.
    pub fn deciders(&self, from: Spot, to: Spot, space: SpaceId) -> (BTreeSet<String>, BTreeSet<String>) {
        let version = self.version(from);
        let of = |judge: Option<usize>| match (judge, version) {
            (Some(judge), Some(version)) => self.deciders_of(judge, space, version),
            _ => BTreeSet::new(),
        };
        (
            of(self.judge(from, Direction::Egress, to)),
            of(self.judge(to, Direction::Ingress, from)),
        )
    }

    /// Rules and ends of tiers that decide about at least one flow of at least one workload, by the direction in which
    /// they do.
    pub fn deciding_rules(&self) -> BTreeSet<(Direction, DecidedBy)> {
        let mut judges = BTreeSet::new();
        let ends = self.ends();
        for class in (0..self.classes.len()).map(End::Class) {
            for peer in ends.iter().filter(|peer| self.judges(class, **peer)) {
                for (own, other) in self.pairs(class, *peer) {
                    let Some(version) = self.version(own) else {
                        continue;
                    };
                    for direction in [Direction::Ingress, Direction::Egress] {
                        let judge = self.judge(own, direction, other);
                        judges.extend(judge.map(|judge| (direction, judge, version)));
                    }
                }
            }
        }
        let everything = Space::everything();
        let mut rules: BTreeSet<(Direction, RuleId)> = BTreeSet::new();
        for (direction, judge, version) in judges {
            let judge = self.judges.get(judge);
            let deciders = judge.map(|judge| judge.deciders(&everything, version));
            rules.extend(deciders.into_iter().flatten().map(|rule| (direction, rule)));
        }
        rules
            .into_iter()
            .map(|(direction, rule)| (direction, self.decided_by(rule)))
            .collect()
    }

    fn deciders_of(&self, number: usize, space: SpaceId, version: IpVersion) -> BTreeSet<String> {
        let key = (number, space, version);
        if let Some(names) = self.known.borrow().deciders.get(&key) {
            return names.clone();
        }
        let judge = self.judges.get(number);
        let rules = judge
            .map(|judge| judge.deciders(&self.space(space), version))
            .unwrap_or_default();
        let names: BTreeSet<String> = rules
            .into_iter()
            .map(|rule| self.decided_by(rule).to_string())
            .collect();
        let mut known = self.known.borrow_mut();
        known.deciders.insert(key, names.clone());
        names
    }

    /// The judge of flows at one end; nothing where no workload judges.
    fn judge(&self, own: Spot, direction: Direction, peer: Spot) -> Option<usize> {
        let Spot::Class { class, slot: own } = own else {
            return None;
        };
        let own = self.classes.get(class)?.slots.get(own)?.identity;
        let identity = match peer {
            Spot::Outside { region, .. } => *self.outside_ids.get(region)?,
            Spot::Class { class: of, slot } => {
                if self.is_node_of(class, of) {
                    return None;
                }
                let slot = self.classes.get(of)?.slots.get(slot)?;
                if of == class { slot.sibling } else { slot.identity }
            }
            Spot::OwnNode { class: of, slot } => {
                let slot = self.node_slot(of, slot).filter(|_| of == class);
                return Some(slot.map_or(CLOSED, |slot| match direction {
                    Direction::Ingress => slot.ingress,
                    Direction::Egress => slot.egress,
                }));
            }
        };
        Some(self.rows.get(&(class, direction))?.judge(Some(own), identity))
    }
}
