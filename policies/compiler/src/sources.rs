//! Classes of source ports: rules seldom ask for a source port, so an endpoint whose rules do gets a small table
//! that says which ports its rules tell apart, and the verdicts are written once for each class.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use policies_ir::{
    policy::{NamedPort, PORT_PROTOCOLS, PortMatch, ServiceMatch},
    tables::{MAX_SOURCE_CLASSES, SourceBlock, SourceClass},
};

use crate::{
    flatten::{blocks, elementary},
    services::{ALL_PORTS, Interval, ServiceSet, ports_of},
};

/// The classes of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// Ports of each class of each protocol but the default class.
    classes: BTreeMap<(u8, SourceClass), Vec<Interval>>,
    /// A port of the default class of each protocol that has others.
    default_ports: BTreeMap<u8, u16>,
}

/// What tells source ports of each protocol apart: distinct sets of them.
type Conditions = BTreeMap<u8, BTreeSet<Vec<Interval>>>;

impl Sources {
    /// The classes for an endpoint whose rules ask for these services. `declared` is every named port of every
    /// workload.
    pub(crate) fn new<'a>(
        services: impl Iterator<Item = &'a ServiceMatch>,
        declared: &BTreeSet<NamedPort>,
    ) -> Self {
        let mut conditions = Conditions::new();
        for service in services.collect::<HashSet<_>>() {
            tell_apart(service, declared, &mut conditions);
        }
        let mut sources = Self::default();
        for (protocol, sets) in conditions {
            sources.add(protocol, &sets.into_iter().collect::<Vec<_>>());
        }
        sources
    }

    /// How many there are, the default included.
    pub(crate) fn count(&self) -> usize {
        let last = self.classes.keys().map(|(_, class)| usize::from(class.0)).max();
        last.map_or(0, |last| last + 1)
    }

    /// Whether the kernel can number them. Tables with more are refused as a whole by whoever would load them, so
    /// what such an endpoint says need not be found out.
    pub(crate) fn fit(&self) -> bool {
        self.count() <= MAX_SOURCE_CLASSES
    }

    /// Classes of `protocol` with a port of each, the default class first. A protocol without classes of its own has
    /// the default class alone, of whose ports all are alike.
    pub(crate) fn representatives(&self, protocol: u8) -> impl Iterator<Item = (SourceClass, u16)> + '_ {
        let default = self.default_ports.get(&protocol).copied().unwrap_or(0);
        let others = self
            .classes
            .range((protocol, SourceClass(0))..=(protocol, SourceClass(u16::MAX)))
            .filter_map(|((_, class), intervals)| Some((*class, intervals.first()?.0)));
        std::iter::once((SourceClass::default(), default)).chain(others)
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

    fn add(&mut self, protocol: u8, sets: &[Vec<Interval>]) {
        let mut by_membership: BTreeMap<Vec<bool>, Vec<Interval>> = BTreeMap::new();
        for interval in elementary(sets.iter().flatten()) {
            let membership = sets.iter().map(|set| holds(set, interval.0)).collect();
            by_membership.entry(membership).or_default().push(interval);
        }
        // The class that would need most blocks goes without.
        let blocks_of =
            |intervals: &Vec<Interval>| intervals.iter().map(|own| blocks(*own).count()).sum::<usize>();
        let largest = by_membership
            .iter()
            .max_by_key(|(_, intervals)| blocks_of(intervals))
            .map(|(membership, _)| membership.clone());
        let default = largest.and_then(|largest| by_membership.remove(&largest));
        self.default_ports
            .extend(default.and_then(|own| Some((protocol, own.first()?.0))));
        // There are no more classes than ports, and one is the default.
        for (number, intervals) in (1..=u16::MAX).zip(by_membership.into_values()) {
            self.classes.insert((protocol, SourceClass(number)), intervals);
        }
    }
}

/// Adds what `service` tells apart. Its whole set of source ports is one condition; where it asks for names, what its
/// ranges hold is, and each port that any end declares under such a name, for that depends on the end.
fn tell_apart(service: &ServiceMatch, declared: &BTreeSet<NamedPort>, conditions: &mut Conditions) {
    let lists = [&service.source_ports, &service.not_source_ports];
    let is_named = |port: &PortMatch| matches!(port, PortMatch::Named(_));
    let mut add = |protocol: u8, set: Vec<Interval>| {
        if !set.is_empty() && set != [ALL_PORTS] {
            conditions.entry(protocol).or_default().insert(set);
        }
    };
    if !lists.into_iter().flatten().any(is_named) {
        let set = ServiceSet::of_source(service, &[]);
        for protocol in set.protocols() {
            add(protocol, set.intervals(protocol).to_vec());
        }
        return;
    }
    let speaks_of = |protocol: u8| {
        service.protocol.is_none_or(|only| only == protocol) && service.not_protocol != Some(protocol)
    };
    for list in lists {
        for protocol in PORT_PROTOCOLS.into_iter().filter(|protocol| speaks_of(*protocol)) {
            add(protocol, ports_of(protocol, list, &[]));
        }
        let asked = |port: &&NamedPort| list.contains(&PortMatch::Named(port.name.clone()));
        for port in declared
            .iter()
            .filter(asked)
            .filter(|port| speaks_of(port.protocol))
        {
            add(port.protocol, vec![(port.port, port.port)]);
        }
    }
}

/// Whether `port` is in one of these intervals, which are sorted and disjoint.
fn holds(set: &[Interval], port: u16) -> bool {
    let next = set.partition_point(|(_, last)| *last < port);
    set.get(next).is_some_and(|(first, _)| *first <= port)
}
