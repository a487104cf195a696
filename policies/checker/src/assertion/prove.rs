//! Proof or refutation of assertions.

use std::collections::{BTreeMap, BTreeSet};

use policies_ir::policy::{IpVersion, Workload};
use serde::Serialize;

use crate::{
    assertion::{Assertion, EndTerm, Ends, Problem},
    model::{End, FAMILIES, Model, Spot},
    naming,
    packet::Place,
    region::Region,
    space::{Point, Space, protocol_name},
};

/// What came of an assertion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// Whether it holds.
    pub holds: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// Further pairs of ends between which it does not hold.
    pub more: usize,
    /// Why it says nothing, if it does: an end that nothing matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vacuous: Option<String>,
    /// What passes although it holds, since it is left out of the question: what a node sends to its own pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

/// Judges an assertion for all flows between all ends. One about ends that do not exist holds, and the answer says so.
pub fn prove(model: &Model, assertion: &Assertion) -> Proof {
    if let Some(exceeded) = model.exceeded() {
        let message = exceeded.to_string();
        return Proof {
            holds: false,
            problem: Some(Problem::DoesNotFit { message }),
            more: 0,
            vacuous: None,
            left_out: None,
        };
    }
    let (from, to, vacuous) = match assertion {
        Assertion::No { from, to, .. } | Assertion::Reaches { from, to, .. } => {
            let (from, to) = (Selection::of(model, from), Selection::of(model, to));
            let empty = [(&from, "source"), (&to, "destination")];
            let empty = empty.iter().find(|(selection, _)| selection.is_empty());
            let vacuous = empty.map(|(_, side)| format!("nothing matches the {side}"));
            (from, to, vacuous)
        }
        Assertion::Only { from, to, .. } => {
            let (from, to) = (Selection::of(model, from), Selection::of(model, to));
            let vacuous = to
                .is_empty()
                .then(|| "nothing matches the destination".to_owned());
            (from, to, vacuous)
        }
        Assertion::Isolated { ends } => {
            let ends = Selection::of(model, ends);
            let vacuous = ends.is_empty().then(|| "nothing matches".to_owned());
            (ends.clone(), ends, vacuous)
        }
    };
    let mut found = Found::default();
    let passes = |services: &Space| {
        let services = services.clone();
        move |allowed: &Space, version| allowed.intersect(&services).example(version)
    };
    match assertion {
        Assertion::No { services, .. } => found.search(model, &from, &to, passes(services)),
        Assertion::Only { services, .. } => {
            found.search(model, &from.complement(model), &to, passes(services));
        }
        Assertion::Isolated { .. } => {
            let others = from.complement(model);
            found.leaves_out_own_nodes = true;
            found.search(model, &from, &others, passes(&Space::everything()));
            found.search(model, &others, &to, passes(&Space::everything()));
        }
        Assertion::Reaches { services, .. } => {
            found.search(model, &from, &to, |allowed, version| {
                services.subtract(allowed).example(version)
            });
            found.strangers(model, &from, &to, services);
        }
    }
    let holds = found.problem.is_none();
    Proof {
        holds,
        problem: found.problem,
        more: found.more,
        vacuous,
        left_out: found.left_out.filter(|_| holds),
    }
}

/// What speaks against an assertion: the first problem, and how many more there are.
#[derive(Default)]
struct Found {
    problem: Option<Problem>,
    more: usize,
    /// Whether what a node sends to its own pods does not count: no policy could stop it.
    leaves_out_own_nodes: bool,
    left_out: Option<String>,
}

impl Found {
    /// Looks at each pair of different ends for a flow that speaks against the assertion.
    fn search(
        &mut self,
        model: &Model,
        from: &Selection,
        to: &Selection,
        against: impl Fn(&Space, IpVersion) -> Option<Point>,
    ) {
        for (source, sources) in &from.spots {
            for (destination, destinations) in &to.spots {
                let outside = |spot: &Spot| matches!(spot, Spot::Outside { .. });
                let Some(version) = model.version(*source) else {
                    continue;
                };
                if model.version(*destination) != Some(version)
                    || (outside(source) && outside(destination))
                    || is_named(model, *source)
                {
                    continue;
                }
                let Some((from, to)) = pair(sources, destinations) else {
                    continue;
                };
                let allowed = model.space(model.allowed_at(*source, *destination));
                let Some(point) = against(&allowed, version) else {
                    continue;
                };
                let own_node = self.leaves_out_own_nodes
                    && model.comes_from_own_node((*source).into(), (*destination).into());
                if self.problem.is_some() && !own_node {
                    self.more += 1;
                    continue;
                }
                let places = (place(model, *source, &from), place(model, *destination, &to));
                let packet = match places {
                    (Some(from), Some(to)) => model.packet(from, to, point),
                    _ => None,
                };
                if own_node {
                    let example = packet.map(|packet| packet.to_string());
                    self.left_out = self.left_out.take().or(example);
                } else if let Some(packet) = packet {
                    self.problem = Some(Problem::Counterexample(Box::new(packet)));
                }
            }
        }
    }

    /// Looks for ends of which the one cannot even address the other, or not in the family that carries a service.
    fn strangers(&mut self, model: &Model, from: &Selection, to: &Selection, services: &Space) {
        let (sources, destinations) = (from.ends(model), to.ends(model));
        for source in &sources {
            for destination in &destinations {
                if source.name == destination.name || (source.outside && destination.outside) {
                    continue;
                }
                let shared = source.versions.intersection(&destination.versions);
                let shared: BTreeSet<IpVersion> = shared.copied().collect();
                let missing = services.needs().find(|(_, version)| !shared.contains(version));
                if !shared.is_empty() && missing.is_none() {
                    continue;
                }
                if self.problem.is_some() {
                    self.more += 1;
                    continue;
                }
                self.problem = Some(Problem::NoCommonFamily {
                    from: source.name.clone(),
                    to: destination.name.clone(),
                    service: missing
                        .filter(|_| !shared.is_empty())
                        .map(|(protocol, _)| protocol_name(protocol)),
                });
            }
        }
    }
}

/// Some of the ends of a model.
#[derive(Debug, Clone, Default)]
struct Selection {
    spots: BTreeMap<Spot, Chosen>,
}

/// What of a spot is chosen.
#[derive(Debug, Clone)]
enum Chosen {
    /// These members of the class.
    Members(BTreeSet<usize>),
    /// These addresses of the region.
    Addresses(Region),
}

/// An end, and the families in which it has addresses.
struct Named {
    name: String,
    versions: BTreeSet<IpVersion>,
    outside: bool,
}

impl Selection {
    fn of(model: &Model, ends: &Ends) -> Self {
        let mut selection = Self::default();
        for term in &ends.0 {
            selection.add(model, term);
        }
        selection
    }

    fn is_empty(&self) -> bool {
        self.spots.is_empty()
    }

    fn add(&mut self, model: &Model, term: &EndTerm) {
        match term {
            EndTerm::Workloads { namespace, labels } => {
                let selected = |workload: &Workload| {
                    namespace.as_ref().is_none_or(|name| workload.namespace == *name)
                        && labels.matches(&workload.labels)
                };
                self.add_workloads(model, |member| {
                    model
                        .member(member)
                        .is_some_and(|member| selected(&member.workload))
                });
            }
            EndTerm::Workload(name) => {
                let named = model.find(name);
                self.add_workloads(model, |member| Some(member) == named);
            }
            EndTerm::Net(net) => {
                let region = Region::of([*net]);
                self.add_region(model, &region);
                for (spot, member) in workload_spots(model) {
                    let Spot::Class { slot, .. } = spot else { continue };
                    if model
                        .address(member, slot)
                        .is_some_and(|address| region.contains(address))
                    {
                        self.add_member(spot, member);
                    }
                }
            }
            EndTerm::Internet => self.add_region(model, &Region::internet()),
            EndTerm::Outside => self.add_region(model, &Region::everything()),
            EndTerm::Anything => {
                self.add_workloads(model, |_| true);
                self.add_region(model, &Region::everything());
            }
        }
    }

    fn add_workloads(&mut self, model: &Model, selected: impl Fn(usize) -> bool) {
        for (spot, member) in workload_spots(model) {
            if selected(member) {
                self.add_member(spot, member);
            }
        }
    }

    fn add_member(&mut self, spot: Spot, member: usize) {
        let chosen = self
            .spots
            .entry(spot)
            .or_insert_with(|| Chosen::Members(BTreeSet::new()));
        if let Chosen::Members(members) = chosen {
            members.insert(member);
        }
    }

    fn add_region(&mut self, model: &Model, wanted: &Region) {
        for (number, region) in model.outside().iter().enumerate() {
            let inside = region.intersect(wanted);
            for version in FAMILIES.into_iter().filter(|version| inside.has(*version)) {
                let spot = Spot::Outside {
                    region: number,
                    version,
                };
                let chosen = self
                    .spots
                    .entry(spot)
                    .or_insert_with(|| Chosen::Addresses(Region::default()));
                if let Chosen::Addresses(addresses) = chosen {
                    *addresses = addresses.union(&inside);
                }
            }
        }
    }

    /// Everything else.
    fn complement(&self, model: &Model) -> Self {
        let mut others = Self::default();
        // A workload that is chosen at one of its addresses is not somebody else at another.
        let chosen: BTreeSet<usize> = self
            .spots
            .values()
            .filter_map(|chosen| match chosen {
                Chosen::Members(members) => Some(members),
                Chosen::Addresses(_) => None,
            })
            .flatten()
            .copied()
            .collect();
        others.add_workloads(model, |member| !chosen.contains(&member));
        let addresses = self.spots.values().filter_map(|chosen| match chosen {
            Chosen::Addresses(region) => Some(region),
            Chosen::Members(_) => None,
        });
        let inside = addresses.fold(Region::default(), |all, region| all.union(region));
        others.add_region(model, &Region::everything().subtract(&inside));
        others
    }

    /// The ends by name, with their families: workloads one by one, and all addresses outside as one.
    fn ends(&self, model: &Model) -> Vec<Named> {
        let mut workloads: BTreeMap<String, BTreeSet<IpVersion>> = BTreeMap::new();
        let (mut outside, mut versions) = (Region::default(), BTreeSet::new());
        for (spot, chosen) in &self.spots {
            let Some(version) = model.version(*spot) else {
                continue;
            };
            match chosen {
                Chosen::Members(members) => {
                    for member in members {
                        workloads.entry(model.name(*member)).or_default().insert(version);
                    }
                }
                Chosen::Addresses(addresses) => {
                    outside = outside.union(addresses);
                    versions.insert(version);
                }
            }
        }
        let mut ends: Vec<Named> = workloads
            .into_iter()
            .map(|(name, versions)| Named {
                name,
                versions,
                outside: false,
            })
            .collect();
        if !outside.is_empty() {
            ends.push(Named {
                name: naming::addresses(&outside),
                versions,
                outside: true,
            });
        }
        ends
    }
}

fn workload_spots(model: &Model) -> impl Iterator<Item = (Spot, usize)> + '_ {
    let classes = model.classes().iter().enumerate();
    classes.flat_map(|(number, class)| {
        let spots = model.spots(End::Class(number));
        spots
            .into_iter()
            .flat_map(|spot| class.members.iter().map(move |member| (spot, *member)))
    })
}

/// Whether its addresses are taken to have names, which only destinations are asked for.
fn is_named(model: &Model, spot: Spot) -> bool {
    matches!(spot, Spot::Outside { region, .. } if model.names_of(region).is_some())
}

/// One of each, which are not the same workload; nothing if there are no such two.
fn pair(from: &Chosen, to: &Chosen) -> Option<(Chosen, Chosen)> {
    let one = |member: usize| Chosen::Members(BTreeSet::from([member]));
    match (from, to) {
        (Chosen::Members(from), Chosen::Members(to)) => {
            let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
            let (from, to) = pairs.into_iter().find(|(from, to)| from != to)?;
            Some((one(from), one(to)))
        }
        _ => Some((from.clone(), to.clone())),
    }
}

fn place(model: &Model, spot: Spot, chosen: &Chosen) -> Option<Place> {
    match (spot, chosen) {
        (Spot::Class { slot, .. }, Chosen::Members(members)) => {
            let member = *members.first()?;
            Some(Place::new(Some(member), model.address(member, slot)?))
        }
        (Spot::Outside { region: of, version }, Chosen::Addresses(region)) => Some(Place {
            names: model.names_of(of),
            ..Place::new(None, region.example(version)?)
        }),
        _ => None,
    }
}
