//! Assertions: sentences about who may reach whom, proved or refuted for all flows. `docs/checker.md` describes the
//! language.
//!
//! [`parse`] turns text into an [`Assertion`], [`prove`] judges it, and [`broken_assertions`] does both for objects that
//! a change must not break.

mod parse;
mod prove;
mod selection;

use ipnet::IpNet;
use policies_compiler::ClusterView;
use serde::Serialize;

pub use parse::{ParseError, parse};
pub use prove::{Proof, prove};

use crate::{model::Model, packet::Packet, space::Space};
use api::{palisade::PolicyAssertion, selector::LabelSelector};

/// A sentence about flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assertion {
    /// `no X reaches Y`: no flow of `services` passes from any of `from` to any of `to`.
    No {
        /// Sources.
        from: Ends,
        /// Destinations.
        to: Ends,
        /// Services.
        services: Space,
    },
    /// `only X reaches Y`: no flow of `services` passes to any of `to`, except from `from`.
    Only {
        /// Sources.
        from: Ends,
        /// Destinations.
        to: Ends,
        /// Services.
        services: Space,
    },
    /// `isolated X`: nothing passes between `ends` and anything else.
    Isolated {
        /// Who.
        ends: Ends,
    },
    /// `X reaches Y on P`: every flow of `services` passes from each of `from` to each of `to`.
    Reaches {
        /// Sources.
        from: Ends,
        /// Destinations.
        to: Ends,
        /// Services.
        services: Space,
    },
}

/// Ends of flows: all that one of the terms names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends(pub Vec<EndTerm>);

/// Some ends of flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndTerm {
    /// Workloads: of this namespace, if one is given, and with these labels.
    Workloads {
        /// The namespace; nothing: any.
        namespace: Option<String>,
        /// The labels.
        labels: LabelSelector,
    },
    /// The workload with this name, `namespace/name`.
    Workload(String),
    /// Addresses, those of workloads among them too.
    Net(IpNet),
    /// Addresses that are routed on the Internet and that no workload has.
    Internet,
    /// Addresses that no workload has.
    Outside,
    /// For each pod the node that it is on, as far as a host endpoint judges there or its addresses are known.
    OwnNode,
    /// Everything.
    Anything,
}

/// An assertion that does not hold, or is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokenAssertion {
    /// Name of the object.
    pub name: String,
    /// Its text.
    pub assertion: String,
    /// What is wrong.
    pub problem: Problem,
    /// Whether it was broken before the change already.
    pub before: bool,
}

/// Why an assertion is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Problem {
    /// It cannot be read.
    Syntax {
        /// For people.
        message: String,
        /// Place of the problem in the text, counted in characters from 1.
        column: usize,
    },
    /// A packet shows that it does not hold.
    Counterexample(Box<Packet>),
    /// No node would enforce these policies, so nothing can be said of them.
    DoesNotFit {
        /// For people.
        message: String,
    },
    /// It asks that flows pass between ends that have no address family in common.
    NoCommonFamily {
        /// Source.
        from: String,
        /// Destination.
        to: String,
        /// The protocol that asks for another family than those that they have in common: ICMP is of IPv4, ICMPv6 of
        /// IPv6.
        #[serde(skip_serializing_if = "Option::is_none")]
        service: Option<String>,
    },
}

impl Problem {
    /// In a line, where it is no packet.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Counterexample(_) => None,
            Self::Syntax { message, .. } => Some(format!("it cannot be read: {message}")),
            Self::DoesNotFit { message } => Some(format!(
                "no node would enforce the policies: a pod or host {message}"
            )),
            Self::NoCommonFamily { from, to, service } => Some(match service {
                Some(service) => format!("{from} and {to} have no addresses in common that carry {service}"),
                None => format!("{from} and {to} have no address family in common"),
            }),
        }
    }
}

/// The assertions that do not hold in `after`, and whether they held in `before`: what a server needs to refuse a
/// change, and to say why.
pub fn broken_assertions(
    before: Option<&ClusterView>,
    after: &ClusterView,
    assertions: &[PolicyAssertion],
) -> Vec<BrokenAssertion> {
    if assertions.is_empty() {
        return Vec::new();
    }
    let after = Model::new(after);
    let mut broken: Vec<BrokenAssertion> = assertions
        .iter()
        .filter_map(|object| broken_assertion(&after, object))
        .collect();
    // The model of what was is only worth its time where something is broken.
    if let Some(before) = before.filter(|_| !broken.is_empty()) {
        let before = Model::new(before);
        for assertion in &mut broken {
            assertion.before = problem(&before, &assertion.assertion).is_some();
        }
    }
    broken
}

/// The same for one assertion, for whoever wants to stop between them. Says nothing about what was before.
pub fn broken_assertion(model: &Model, object: &PolicyAssertion) -> Option<BrokenAssertion> {
    Some(BrokenAssertion {
        name: object.metadata.name.clone().unwrap_or_default(),
        assertion: object.spec.assertion.clone(),
        problem: problem(model, &object.spec.assertion)?,
        before: false,
    })
}

fn problem(model: &Model, text: &str) -> Option<Problem> {
    match parse(text) {
        Err(error) => Some(Problem::Syntax {
            message: error.to_string(),
            column: error.column,
        }),
        Ok(assertion) => prove(model, &assertion).problem,
    }
}
