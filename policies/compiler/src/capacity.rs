//! Whether compiled tables fit into the kernel's maps.
//!
//! A change of policy writes the new tables beside the old ones, and only then deletes those, so a map must hold both:
//! tables of at most half a map's entries can follow any others that are as small. The datapath itself goes by what it
//! holds and may take more; whoever admits policies cannot know that, and goes by what always fits.
//!
//! Nothing is said of map `SPLITS`: what goes into it depends on the changes before, not on the tables, and a change for
//! which it has no room is written without it, as entries that count here. Map `HOST_ENDPOINTS` follows from the interfaces
//! of a node and not from its tables: [`demand`] says nothing of it, and whoever knows of them adds [`Demand::host_places`].

use std::fmt;

use ebpf_abi::{MAX_ENDPOINTS, MAX_HOST_ADDRESSES, MAX_IDENTITIES, MAX_INSIDES, MAX_SOURCES, MAX_VERDICTS};
use policies_ir::tables::{EndpointTables, MAX_INSIDE_CLASSES, MAX_SOURCE_CLASSES, NodeTables};

/// Entries of each map that some tables need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    /// Pods, and parts of host endpoints, that have tables.
    pub endpoints: usize,
    /// Addresses and prefixes that have a class, over both families.
    pub identities: usize,
    /// Verdicts of all endpoints.
    pub verdicts: usize,
    /// Blocks of source ports of all endpoints.
    pub sources: usize,
    /// Classes of addresses that rules for forwarded packets ask about, over all endpoints.
    pub insides: usize,
    /// Classes that one endpoint tells apart so.
    pub inside_classes: usize,
    /// Classes of source ports of the endpoint that has most. It has no verdicts if they are too many.
    pub source_classes: usize,
    /// Addresses of the host at each interface that a host endpoint speaks of, one for groups and one for what is forwarded
    /// among them.
    pub host_places: usize,
}

/// Entries of each map that tables may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Demand")]
pub struct Capacities {
    pub endpoints: usize,
    pub identities: usize,
    pub verdicts: usize,
    pub sources: usize,
    pub insides: usize,
    pub inside_classes: usize,
    pub source_classes: usize,
    pub host_places: usize,
}

/// What some tables need too many of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("needs {needed} {what}, and a node holds {capacity}")]
pub struct Exceeded {
    /// Entries of which map.
    pub what: What,
    /// Entries that the tables need.
    pub needed: usize,
    /// Entries that always fit.
    pub capacity: usize,
}

/// Kinds of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Map `ENDPOINTS`.
    Endpoints,
    /// Maps `HOSTS` and `IDENTITIES` together.
    Identities,
    /// Map `VERDICTS`.
    Verdicts,
    /// Map `SOURCES`.
    Sources,
    /// Map `INSIDES`.
    Insides,
    /// What `INSIDES` may say of one endpoint.
    InsideClasses,
    /// What a key of map `VERDICTS` can tell apart.
    SourceClasses,
    /// Map `HOST_ENDPOINTS`.
    HostPlaces,
}

/// What `tables` need of the kernel's maps.
pub fn demand(tables: &NodeTables) -> Demand {
    let endpoints = || tables.endpoints.values();
    Demand {
        endpoints: tables.endpoints.len(),
        identities: tables.identities.len(),
        verdicts: endpoints().map(|endpoint| endpoint.verdicts.len()).sum(),
        sources: endpoints().map(|endpoint| endpoint.sources.len()).sum(),
        insides: endpoints().map(|endpoint| endpoint.insides.len()).sum(),
        inside_classes: endpoints()
            .map(|endpoint| inside_classes(endpoint))
            .max()
            .unwrap_or_default(),
        source_classes: endpoints()
            .map(|endpoint| endpoint.source_classes())
            .max()
            .unwrap_or(0),
        host_places: 0,
    }
}

/// How many classes at its own end an endpoint has at most in one direction, the default one included.
fn inside_classes(endpoint: &EndpointTables) -> usize {
    let classes = endpoint.insides.values();
    let highest = classes.map(|of| of.ingress.max(of.egress).0).max();
    highest.map_or(0, |class| usize::from(class) + 1)
}

impl Demand {
    /// The first kind of which there are more than fit; nothing if all fit.
    pub fn exceeds(&self, capacities: &Capacities) -> Option<Exceeded> {
        let kinds = [
            (What::Endpoints, self.endpoints, capacities.endpoints),
            (What::Identities, self.identities, capacities.identities),
            (What::Verdicts, self.verdicts, capacities.verdicts),
            (What::Sources, self.sources, capacities.sources),
            (What::Insides, self.insides, capacities.insides),
            (
                What::InsideClasses,
                self.inside_classes,
                capacities.inside_classes,
            ),
            (
                What::SourceClasses,
                self.source_classes,
                capacities.source_classes,
            ),
            (What::HostPlaces, self.host_places, capacities.host_places),
        ];
        let mut over = kinds
            .into_iter()
            .filter_map(|(what, needed, capacity)| Exceeded::if_more(what, needed, capacity));
        over.next()
    }
}

impl Exceeded {
    /// Nothing if there is room for all.
    pub fn if_more(what: What, needed: usize, capacity: usize) -> Option<Self> {
        (needed > capacity).then_some(Self {
            what,
            needed,
            capacity,
        })
    }
}

impl What {
    /// What whoever writes policy can do about too many.
    pub fn advice(self) -> &'static str {
        match self {
            Self::HostPlaces => "name fewer interfaces in HostEndpoints, or take addresses off the node",
            Self::Endpoints
            | Self::Identities
            | Self::Verdicts
            | Self::Sources
            | Self::Insides
            | Self::InsideClasses
            | Self::SourceClasses => "select fewer pods, or say it with fewer rules, networks and ports",
        }
    }
}

impl Capacities {
    /// What fits into the kernel's maps, whatever is in them. Endpoints have one entry each, and classes of source ports
    /// their numbers, at all times. So has each address of the host at an interface, but for one: an interface that was
    /// closed to all but its own addresses stays closed to others until it has all.
    pub const KERNEL: Self = Self {
        endpoints: MAX_ENDPOINTS as usize,
        identities: MAX_IDENTITIES as usize / 2,
        verdicts: MAX_VERDICTS as usize / 2,
        sources: MAX_SOURCES as usize / 2,
        insides: MAX_INSIDES as usize / 2,
        // With all of them, there may be addresses for which none was left.
        inside_classes: MAX_INSIDE_CLASSES - 1,
        source_classes: MAX_SOURCE_CLASSES,
        host_places: MAX_HOST_ADDRESSES as usize - 1,
    };
}

impl Default for Capacities {
    fn default() -> Self {
        Self::KERNEL
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Endpoints => "judged endpoints",
            Self::Identities => "classified addresses and prefixes",
            Self::Verdicts => "verdicts",
            Self::Sources => "blocks of source ports",
            Self::Insides => "classified addresses of forwarded packets",
            Self::InsideClasses => {
                "kinds of addresses that one host endpoint tells apart in forwarded packets"
            }
            Self::SourceClasses => "classes of source ports at one endpoint",
            Self::HostPlaces => "pairs of an interface and an address of the host",
        })
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}, {} {}, {} {}, {} {}, {} {}, {} {}",
            self.endpoints,
            What::Endpoints,
            self.identities,
            What::Identities,
            self.verdicts,
            What::Verdicts,
            self.sources,
            What::Sources,
            self.insides,
            What::Insides,
            self.source_classes,
            What::SourceClasses
        )
    }
}

#[cfg(test)]
mod tests {
    use policies_ir::tables::{
        BuiltinRule, Direction, EndpointId, EndpointTables, IdentityId, InsideClass, Insides, Service,
        SourceBlock, SourceClass, Verdict, VerdictEntry, VerdictKey,
    };

    use super::*;

    fn tables() -> NodeTables {
        let verdicts = (0..3).map(|peer| {
            let key = VerdictKey {
                peer: IdentityId(peer),
                direction: Direction::Ingress,
                inside: InsideClass::default(),
                source: SourceClass::default(),
                service: Service::Any,
            };
            let entry = VerdictEntry {
                verdict: Verdict::Allow,
                rule: BuiltinRule::NoPolicy.id(),
            };
            (key, entry)
        });
        let block = SourceBlock {
            protocol: 6,
            port: 80,
            prefix_bits: 16,
        };
        let insides = Insides {
            ingress: InsideClass(0),
            egress: InsideClass(3),
        };
        let endpoint = EndpointTables {
            verdicts: verdicts.collect(),
            sources: [(block, SourceClass(1))].into(),
            insides: [(IdentityId(1), insides)].into(),
        };
        NodeTables {
            identities: [("10.0.0.0/8".parse().unwrap(), IdentityId(1))].into(),
            endpoints: [1, 2].map(|id| (EndpointId(id), endpoint.clone().into())).into(),
            rules: Vec::new(),
        }
    }

    #[test]
    fn every_kind_is_counted_and_held_against_its_own_capacity() {
        let needed = demand(&tables());
        let expected = Demand {
            endpoints: 2,
            identities: 1,
            verdicts: 6,
            sources: 2,
            insides: 2,
            inside_classes: 4,
            source_classes: 2,
            host_places: 0,
        };
        assert_eq!(needed, expected);
        let needed = Demand {
            host_places: 9,
            ..needed
        };
        let enough = Capacities {
            endpoints: 2,
            identities: 1,
            verdicts: 6,
            sources: 2,
            insides: 2,
            inside_classes: 4,
            source_classes: 2,
            host_places: 9,
        };
        assert_eq!(needed.exceeds(&enough), None);
        let short = |change: &dyn Fn(&mut Capacities)| {
            let mut capacities = enough;
            change(&mut capacities);
            needed.exceeds(&capacities).unwrap().to_string()
        };
        assert_eq!(
            short(&|c| c.endpoints = 1),
            "needs 2 judged endpoints, and a node holds 1"
        );
        assert_eq!(
            short(&|c| c.identities = 0),
            "needs 1 classified addresses and prefixes, and a node holds 0"
        );
        assert_eq!(short(&|c| c.verdicts = 5), "needs 6 verdicts, and a node holds 5");
        assert_eq!(
            short(&|c| c.sources = 1),
            "needs 2 blocks of source ports, and a node holds 1"
        );
        assert_eq!(
            short(&|c| c.insides = 1),
            "needs 2 classified addresses of forwarded packets, and a node holds 1"
        );
        assert_eq!(
            short(&|c| c.inside_classes = 3),
            "needs 4 kinds of addresses that one host endpoint tells apart in forwarded packets, and a node holds 3"
        );
        assert_eq!(
            short(&|c| c.source_classes = 1),
            "needs 2 classes of source ports at one endpoint, and a node holds 1"
        );
        assert_eq!(
            short(&|c| c.host_places = 8),
            "needs 9 pairs of an interface and an address of the host, and a node holds 8"
        );
    }

    #[test]
    fn old_and_new_tables_fit_together() {
        assert_eq!(Capacities::KERNEL.verdicts * 2, MAX_VERDICTS as usize);
        assert_eq!(Capacities::KERNEL.identities * 2, MAX_IDENTITIES as usize);
    }
}
