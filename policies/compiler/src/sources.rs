//! Classes of source ports: rules seldom ask for a source port, so an endpoint whose rules do gets a small table
//! that says which ports its rules tell apart, and the verdicts are written once for each class.

use std::collections::{BTreeMap, BTreeSet};

use policies_ir::{
    policy::{NamedPort, PORT_PROTOCOLS, PortMatch, ServiceMatch},
    tables::{MAX_SOURCE_CLASSES, SourceBlock, SourceClass},
};

use crate::{
    flatten::{blocks, elementary},
    services::{Interval, ports_of},
};

/// The classes of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// Ports of each class of each protocol but the default class.
    classes: BTreeMap<(u8, SourceClass), Vec<Interval>>,
    /// A port of the default class of each protocol that has others.
    default_ports: BTreeMap<u8, Option<u16>>,
}

/// More classes than the tables can number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooManySources;

impl Sources {
    /// The classes for an endpoint whose rules ask for these services. `declared` is every named port of every
    /// workload.
    pub(crate) fn new<'a>(
        services: impl Iterator<Item = &'a ServiceMatch>,
        declared: &BTreeSet<NamedPort>,
    ) -> Result<Self, TooManySources> {
        let asked: BTreeSet<&PortMatch> = services
            .flat_map(|service| service.source_ports.iter().chain(&service.not_source_ports))
            .collect();
        let mut protocols: BTreeSet<u8> = BTreeSet::new();
        // What an end declares depends on the end, so each port that any end declares is a condition of its own.
        let mut conditions: Vec<(PortMatch, Vec<NamedPort>)> = Vec::new();
        for port in asked {
            match port {
                PortMatch::Range(..) => {
                    protocols.extend(PORT_PROTOCOLS);
                    conditions.push((port.clone(), Vec::new()));
                }
                PortMatch::Named(name) => {
                    for declares in declared.iter().filter(|declares| declares.name == *name) {
                        protocols.insert(declares.protocol);
                        conditions.push((port.clone(), vec![declares.clone()]));
                    }
                }
            }
        }
        let mut sources = Self::default();
        for protocol in protocols {
            let sets: Vec<Vec<Interval>> = conditions
                .iter()
                .map(|(port, named)| ports_of(protocol, std::slice::from_ref(port), named))
                .collect();
            sources.add(protocol, &sets)?;
        }
        Ok(sources)
    }

    /// Classes of `protocol` with a port of each, the default class first. A protocol without classes of its own has
    /// the default class alone, of whose ports all are alike.
    pub(crate) fn representatives(&self, protocol: u8) -> impl Iterator<Item = (SourceClass, u16)> + '_ {
        let default = match self.default_ports.get(&protocol) {
            Some(port) => *port,
            None => Some(0),
        };
        let others = self
            .classes
            .range((protocol, SourceClass(0))..=(protocol, SourceClass(u8::MAX)))
            .filter_map(|((_, class), intervals)| Some((*class, intervals.first()?.0)));
        default
            .map(|port| (SourceClass::default(), port))
            .into_iter()
            .chain(others)
    }

    /// Protocols that have classes of their own.
    pub(crate) fn protocols(&self) -> impl Iterator<Item = u8> + '_ {
        self.default_ports.keys().copied()
    }

    /// The table of classes.
    pub(crate) fn table(&self) -> BTreeMap<SourceBlock, SourceClass> {
        let classes = self.classes.iter();
        let entries = classes.flat_map(|((protocol, class), intervals)| {
            let of_interval = move |interval: &Interval| {
                blocks(*interval).map(move |(port, prefix_bits)| SourceBlock {
                    protocol: *protocol,
                    port,
                    prefix_bits,
                })
            };
            intervals
                .iter()
                .flat_map(of_interval)
                .map(|block| (block, *class))
        });
        entries.collect()
    }

    fn add(&mut self, protocol: u8, sets: &[Vec<Interval>]) -> Result<(), TooManySources> {
        let mut by_membership: BTreeMap<Vec<bool>, Vec<Interval>> = BTreeMap::new();
        for interval in elementary(sets.iter().flatten()) {
            let inside = |set: &Vec<Interval>| set.iter().any(|(a, b)| (*a..=*b).contains(&interval.0));
            let membership = sets.iter().map(inside).collect();
            by_membership.entry(membership).or_default().push(interval);
        }
        let nowhere = vec![false; sets.len()];
        let default = by_membership.remove(&nowhere);
        let port = default.and_then(|intervals| intervals.first().map(|interval| interval.0));
        self.default_ports.insert(protocol, port);
        if by_membership.len() >= MAX_SOURCE_CLASSES {
            return Err(TooManySources);
        }
        for (number, intervals) in (1u8..).zip(by_membership.into_values()) {
            self.classes.insert((protocol, SourceClass(number)), intervals);
        }
        Ok(())
    }
}
