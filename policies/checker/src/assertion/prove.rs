//! Proof or refutation of assertions.

use std::collections::BTreeSet;

use policies_ir::policy::IpVersion;
use serde::Serialize;

use crate::{
    assertion::{
        Assertion, Problem,
        selection::{Selection, own_nodes, places},
    },
    model::{Model, Spot},
    packet::Place,
    region::version,
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
            let empty = empty.iter().find(|(selection, _)| selection.is_empty(model));
            let vacuous = empty.map(|(_, side)| format!("nothing matches the {side}"));
            (from, to, vacuous)
        }
        Assertion::Only { from, to, .. } => {
            let (from, to) = (Selection::of(model, from), Selection::of(model, to));
            let vacuous = to
                .is_empty(model)
                .then(|| "nothing matches the destination".to_owned());
            (from, to, vacuous)
        }
        Assertion::Isolated { ends } => {
            let ends = Selection::of(model, ends);
            let vacuous = ends.is_empty(model).then(|| "nothing matches".to_owned());
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
            found.leaves_out_own_nodes = true;
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
                let same_family = model.version(*source) == model.version(*destination);
                // Names are those of destinations.
                if !same_family || model.names_at(*source).is_some() {
                    continue;
                }
                let is_left_out = |end: &Selection, node: &Spot, pod: &Spot| {
                    end.own_nodes == Some(false) && model.comes_from_own_node((*node).into(), (*pod).into())
                };
                if is_left_out(from, source, destination) || is_left_out(to, destination, source) {
                    continue;
                }
                if let Some(places) = places(model, (*source, sources), (*destination, destinations)) {
                    self.look(model, (*source, *destination), places, &against);
                }
            }
        }
        for (pod, node, (at_pod, at_node)) in own_nodes(model, from, to) {
            self.look(model, (pod, node), (at_pod, at_node), &against);
        }
        for (pod, node, (at_pod, at_node)) in own_nodes(model, to, from) {
            if model.names_at(node).is_none() {
                self.look(model, (node, pod), (at_node, at_pod), &against);
            }
        }
    }

    /// Looks for a flow from one spot to another that speaks against the assertion; between these places, if there is one.
    fn look(
        &mut self,
        model: &Model,
        (source, destination): (Spot, Spot),
        (from, to): (Place, Place),
        against: impl Fn(&Space, IpVersion) -> Option<Point>,
    ) {
        let allowed = model.space(model.allowed_at(source, destination));
        let Some(point) = against(&allowed, version(from.address)) else {
            return;
        };
        let own_node =
            self.leaves_out_own_nodes && model.comes_from_own_node(source.into(), destination.into());
        if self.problem.is_some() && !own_node {
            self.more += 1;
            return;
        }
        let packet = model.packet(from, to, point);
        if own_node {
            let example = packet.map(|packet| packet.to_string());
            self.left_out = self.left_out.take().or(example);
        } else if let Some(packet) = packet {
            self.problem = Some(Problem::Counterexample(Box::new(packet)));
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
