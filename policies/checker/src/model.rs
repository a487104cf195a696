//! The exact model: every end there is, in as few classes as policy can tell apart, and what each pair of ends may
//! exchange.
//!
//! An end is a workload, or the addresses outside that no rule can tell apart. What an ordered pair may exchange is
//! what the source's policies let out and the destination's let in. The verdicts are the compiler's own, so the model
//! speaks about what the kernel would do; tests hold it to the reference.
//!
//! Which names the resolver will give to which addresses is not known. Where a rule asks for names, the addresses
//! outside are there a second time, as if they had such names, as far as that changes what decides.
//!
//! Two workloads are of one class when every condition of every policy holds for both or neither and no prefix of
//! any rule or network set tells their addresses apart. One member of the class then stands for all of them.
//!
//! A host endpoint judges at the addresses that it expects, and for its node at those that none of the node's expects; which of
//! them the packet has may matter to its rules. It does not judge what the pods of its node send it, so pods of nodes with host endpoints are told apart by
//! node. Of other nodes nobody knows here which addresses they have, so that their pods can stand together: what a pod
//! may send to its own node is then what it may send to any address.
//!
//! Not in the model: what a pod's own node sends it and what it sends itself (both always allowed), and what a node merely
//! forwards.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use policies_compiler::{Book, ClusterView, capacity::Exceeded, compile_answers};
use policies_ir::{
    cluster::{Cluster, Member},
    policy::{IpVersion, PolicySet, WorkloadKind},
    tables::{
        BUILTIN_RULES, BuiltinRule, DecidedBy, Direction, EndpointId, IdentityId, RuleId, RuleName, Verdict,
    },
};

use crate::{
    build::{Rows, identity_of, outside_if_named, owners, read_judges},
    classes::{Classified, classify},
    judge::Judge,
    names::Names,
    naming,
    packet::{Packet, Party, Place, Ruling},
    region::{Region, version},
    space::{Point, Space},
};

/// Both families.
pub(crate) const FAMILIES: [IpVersion; 2] = [IpVersion::V4, IpVersion::V6];

/// All ends of a cluster and what they may exchange.
#[derive(Debug)]
pub struct Model {
    cluster: Cluster,
    policies: PolicySet,
    classes: Vec<Class>,
    outside: Vec<Region>,
    /// The same with the addresses of workloads that lie within, by which people name them.
    shapes: Vec<Region>,
    /// Identity of each of `outside`.
    outside_ids: Vec<IdentityId>,
    /// Names that the addresses of each of `outside` are taken to have, by position in `names`.
    outside_names: Vec<Option<usize>>,
    names: Names,
    /// As `identities`, for each of `names`.
    identities_if_named: Vec<BTreeMap<IpNet, IdentityId>>,
    /// Class of each member, and its place in it.
    places: Vec<(usize, usize)>,
    /// Members that have an address for themselves.
    owners: HashMap<IpAddr, usize>,
    identities: BTreeMap<IpNet, IdentityId>,
    /// For each class and direction, who judges.
    rows: Rows,
    judges: Vec<Judge>,
    rules: Vec<RuleName>,
    exceeded: Option<Exceeded>,
    known: RefCell<Known>,
}

/// Workloads that policy cannot tell apart.
#[derive(Debug, Clone)]
pub struct Class {
    /// Positions in the cluster's members, in order of name.
    pub members: Vec<usize>,
    /// Kinds of addresses that each member has.
    slots: Vec<Slot>,
    /// For each member, its addresses in the order of `slots`.
    addresses: Vec<Vec<IpAddr>>,
}

/// An address that each member of a class has, as others see it.
#[derive(Debug, Clone, Copy)]
struct Slot {
    version: IpVersion,
    /// Of the first member, for whose own policies it is the member itself.
    identity: IdentityId,
    /// Of the other members.
    sibling: IdentityId,
}

/// An end of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Each workload of a class, by position in [`Model::classes`].
    Class(usize),
    /// Each address of a region, by position in [`Model::outside`].
    Outside(usize),
}

/// An end at one of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Spot {
    /// The address in this place of each workload of a class.
    Class {
        /// The class.
        class: usize,
        /// The place.
        slot: usize,
    },
    /// Each address of one family of a region.
    Outside {
        /// The region.
        region: usize,
        /// The family.
        version: IpVersion,
    },
}

/// Number of a distinct set of flows: equal numbers, equal sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceId(u32);

/// What was computed already.
#[derive(Debug, Default)]
struct Known {
    spaces: Vec<Arc<Space>>,
    ids: HashMap<Arc<Space>, SpaceId>,
    pairs: HashMap<(Option<usize>, Option<usize>, IpVersion), SpaceId>,
    deciders: HashMap<(usize, SpaceId, IpVersion), BTreeSet<String>>,
}

impl Model {
    /// The model of what is enforced in `view`, where every node has an address.
    pub fn new(view: &ClusterView) -> Self {
        let book = Book::new(view);
        Self::of(book.cluster().clone(), book.policies().clone())
    }

    /// The model of policies of any origin.
    pub fn of(cluster: Cluster, policies: PolicySet) -> Self {
        let names = Names::of(&[(&cluster, &policies)]);
        Self::with_names(cluster, policies, names)
    }

    /// The model in which addresses outside may have these names.
    pub(crate) fn with_names(mut cluster: Cluster, policies: PolicySet, names: Names) -> Self {
        // Seen from no node; see the module's non-goals.
        cluster.host_addresses.clear();
        cluster.host_groups.clear();
        let of_host = |member: &&Member| member.workload.kind == WorkloadKind::HostEndpoint;
        let hosts = cluster.members.iter().filter(of_host);
        let with_hosts: BTreeSet<String> = hosts.map(|host| host.node.clone()).collect();
        for member in &mut cluster.members {
            if member.workload.kind == WorkloadKind::Pod && !with_hosts.contains(&member.node) {
                member.node.clear();
            }
        }
        let mut addresses: Vec<BTreeSet<IpAddr>> = cluster
            .members
            .iter()
            .map(|member| member.addresses.clone())
            .collect();
        for (address, host) in cluster.stand_ins() {
            if let Some(of_host) = addresses.get_mut(host) {
                of_host.insert(address);
            }
        }
        let classified = classify(&cluster, &addresses, &policies);
        for member in &mut cluster.members {
            member.endpoint = None;
        }
        for (number, class) in (1..).zip(&classified) {
            let first = class
                .members
                .first()
                .and_then(|first| cluster.members.get_mut(*first));
            if let Some(member) = first {
                member.endpoint = Some(EndpointId(number));
            }
        }
        let answers = compile_answers(&cluster, &policies, names.sets());
        let (rows, judges) = read_judges(&answers, classified.len());
        let owners = owners(&cluster, &addresses);
        let taken = addresses.into_iter().flatten().map(IpNet::from).collect();
        let mut outside_ids = Vec::new();
        let (mut regions, mut shapes) = (Vec::new(), Vec::new());
        let mut outside_names = Vec::new();
        for (named, identity, shape, region) in outside_if_named(&answers, &taken) {
            outside_names.push(named);
            outside_ids.push(identity);
            shapes.push(shape);
            regions.push(region);
        }
        let mut places = vec![(0, 0); cluster.members.len()];
        for (number, class) in classified.iter().enumerate() {
            for (place, member) in class.members.iter().enumerate() {
                if let Some(known) = places.get_mut(*member) {
                    *known = (number, place);
                }
            }
        }
        let classes = classified
            .into_iter()
            .map(|class| Class::new(class, &answers.identities))
            .collect();
        Self {
            cluster,
            policies,
            classes,
            outside: regions,
            shapes,
            outside_ids,
            outside_names,
            names,
            identities_if_named: answers.if_named,
            places,
            owners,
            identities: answers.identities,
            rows,
            judges,
            rules: answers.rules,
            exceeded: answers.exceeded,
            known: RefCell::default(),
        }
    }

    /// What a node would refuse these policies for, whatever else there is. The model then lacks what some workloads
    /// say, and answers about it are worth nothing: to be asked first.
    pub fn exceeded(&self) -> Option<Exceeded> {
        self.exceeded
    }

    /// Workloads and network sets, as they were read.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The policies.
    pub fn policies(&self) -> &PolicySet {
        &self.policies
    }

    /// Workloads, by what policy can tell apart.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// Addresses that no workload has, by what policy can tell apart. Together they are all of these; those that are
    /// [named](Self::named) are there a second time.
    pub fn outside(&self) -> &[Region] {
        &self.outside
    }

    /// What people call a region: the prefixes it makes up, together with the workloads' addresses inside.
    pub(crate) fn shape(&self, region: usize) -> Option<&Region> {
        self.shapes.get(region)
    }

    /// What people call each of [`Self::outside`].
    pub(crate) fn shapes(&self) -> &[Region] {
        &self.shapes
    }

    /// The names that the addresses of a region are taken to have, for people; nothing for addresses as they are.
    pub fn named(&self, region: usize) -> Option<String> {
        self.names_text(self.names_of(region)?)
    }

    /// The same, by position in the sets of names.
    pub(crate) fn names_of(&self, region: usize) -> Option<usize> {
        self.outside_names.get(region).copied().flatten()
    }

    /// A set of names for people.
    pub(crate) fn names_text(&self, names: usize) -> Option<String> {
        self.names.sets().get(names).map(naming::names)
    }

    /// The sets of names that addresses may have.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// A workload; nothing for a position that no class gave.
    pub fn member(&self, member: usize) -> Option<&Member> {
        self.cluster.members.get(member)
    }

    /// Name of a workload for people.
    pub fn name(&self, member: usize) -> String {
        self.member(member).map(shown).unwrap_or_default()
    }

    /// Position of the workload with this name, as [`Model::name`] gives it.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.cluster
            .members
            .iter()
            .position(|member| shown(member) == name)
    }

    /// Class of a workload.
    pub fn class_of(&self, member: usize) -> Option<usize> {
        self.places.get(member).map(|(class, _)| *class)
    }

    /// Every end; each class and each region once.
    pub fn ends(&self) -> Vec<End> {
        let classes = (0..self.classes.len()).map(End::Class);
        classes.chain((0..self.outside.len()).map(End::Outside)).collect()
    }

    /// The addresses of an end.
    pub fn spots(&self, end: End) -> Vec<Spot> {
        match end {
            End::Class(class) => {
                let slots = self.classes.get(class).map_or(0, |class| class.slots.len());
                (0..slots).map(|slot| Spot::Class { class, slot }).collect()
            }
            End::Outside(region) => {
                let has = |version: &IpVersion| self.outside.get(region).is_some_and(|r| r.has(*version));
                FAMILIES
                    .into_iter()
                    .filter(has)
                    .map(|version| Spot::Outside { region, version })
                    .collect()
            }
        }
    }

    /// Whether flows from one end to the other are judged, by two different workloads or by one. Names are those of
    /// destinations.
    pub fn judges(&self, from: End, to: End) -> bool {
        match (from, to) {
            (End::Outside(_), End::Outside(_)) => false,
            (End::Outside(of), End::Class(_)) if self.names_of(of).is_some() => false,
            (End::Class(from), End::Class(to)) if from == to => self
                .classes
                .get(from)
                .is_some_and(|class| class.members.len() > 1),
            _ => !self.comes_from_own_node(from, to),
        }
    }

    /// Whether the one is of host endpoints of the node that the pods of the other are on: what these send always passes.
    pub(crate) fn comes_from_own_node(&self, from: End, to: End) -> bool {
        match (from, to) {
            (End::Class(host), End::Class(pod)) => self.is_node_of(host, pod),
            (End::Class(_) | End::Outside(_), _) => false,
        }
    }

    /// Whether one class is of host endpoints of the node that the pods of the other are on.
    fn is_node_of(&self, host: usize, pod: usize) -> bool {
        let pair = self.first(host).zip(self.first(pod));
        pair.is_some_and(|(host, pod)| host.is_node_of(pod))
    }

    fn first(&self, class: usize) -> Option<&Member> {
        self.member(*self.classes.get(class)?.members.first()?)
    }

    /// What may pass from one end to another, at any of their addresses of a family. Within a class it is what one
    /// member may send another. Nothing if the ends have no addresses of that family.
    pub fn allowed(&self, from: End, to: End, version: IpVersion) -> Option<SpaceId> {
        self.allowed_among(&self.spots(from), &self.spots(to), version)
    }

    /// The same from any of these addresses of an end to any of those of another.
    pub(crate) fn allowed_among(&self, from: &[Spot], to: &[Spot], version: IpVersion) -> Option<SpaceId> {
        let of_family = |spot: &Spot| self.version(*spot) == Some(version);
        let pairs = from.iter().filter(|spot| of_family(spot)).flat_map(|from| {
            to.iter()
                .filter(|spot| of_family(spot))
                .map(move |to| (*from, *to))
        });
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

    /// Family of an address of an end.
    pub fn version(&self, spot: Spot) -> Option<IpVersion> {
        match spot {
            Spot::Class { class, slot } => Some(self.classes.get(class)?.slots.get(slot)?.version),
            Spot::Outside { version, .. } => Some(version),
        }
    }

    /// Address of a member of a class in this place.
    pub fn address(&self, member: usize, slot: usize) -> Option<IpAddr> {
        let (class, place) = self.places.get(member)?;
        self.classes
            .get(*class)?
            .addresses
            .get(*place)?
            .get(slot)
            .copied()
    }

    /// The workload that alone has an address.
    pub fn owner(&self, address: IpAddr) -> Option<usize> {
        self.owners.get(&address).copied()
    }

    /// Judges one flow at the interface of a workload.
    pub fn decide(
        &self,
        own: Place,
        direction: Direction,
        peer: Place,
        point: Point,
    ) -> (Verdict, DecidedBy) {
        match self.judge_at(own, direction, peer) {
            Some(judge) => {
                let entry = judge.decide(point);
                (entry.verdict, self.decided_by(entry.rule))
            }
            None => (Verdict::Deny, DecidedBy::Builtin(BuiltinRule::NoMatch)),
        }
    }

    /// Whether a workload is a host endpoint that does not see what it and the pod at a place send each other.
    fn is_blind_to(&self, own: usize, peer: Place) -> bool {
        let peer = peer.member.and_then(|peer| self.member(peer));
        let pair = self.member(own).zip(peer);
        pair.is_some_and(|(own, peer)| own.is_node_of(peer))
    }

    /// What a workload says about who is at an address; nothing where it does not judge.
    pub(crate) fn judge_at(&self, own: Place, direction: Direction, peer: Place) -> Option<&Judge> {
        let member = own.member?;
        if self.is_blind_to(member, peer) {
            return None;
        }
        let Place {
            address: peer, names, ..
        } = peer;
        let class = self.class_of(member)?;
        let identities = match names {
            Some(names) => self.identities_if_named.get(names)?,
            None => &self.identities,
        };
        let identity = match self.owner(peer) {
            // To the first member of the class its own address is itself, so its siblings are told apart here.
            Some(owner) if self.class_of(owner) == Some(class) => {
                let known = self.classes.get(class)?;
                let place = self.places.get(owner)?.1;
                let slot = known
                    .addresses(place)
                    .iter()
                    .position(|address| *address == peer)?;
                let slot = known.slots.get(slot)?;
                if owner == member {
                    slot.identity
                } else {
                    slot.sibling
                }
            }
            _ => identity_of(identities, peer)?,
        };
        let own = identity_of(&self.identities, own.address);
        let row = self.rows.get(&(class, direction))?;
        self.judges.get(row.judge(own, identity))
    }

    /// Judges one flow at both ends, each a workload at one of its addresses or an address alone. Nothing if neither is
    /// a workload.
    pub fn packet(&self, from: Place, to: Place, point: Point) -> Option<Packet> {
        if from.member.is_none() && to.member.is_none() {
            return None;
        }
        let ruling = |own: Place, direction, peer: Place| {
            own.member.filter(|member| !self.is_blind_to(*member, peer))?;
            let (verdict, by) = self.decide(own, direction, peer, point);
            Some(Ruling {
                allowed: verdict == Verdict::Allow,
                by: by.to_string(),
            })
        };
        let egress = ruling(from, Direction::Egress, to);
        let ingress = ruling(to, Direction::Ingress, from);
        let party = |place: Place| Party {
            workload: place.member.map(|member| self.name(member)),
            address: place.address,
            named: place.names.and_then(|names| self.names_text(names)),
        };
        Some(Packet {
            from: party(from),
            to: party(to),
            service: point.to_string(),
            protocol: point.protocol,
            source_port: point.source_port,
            port: point.port,
            allowed: egress.iter().chain(&ingress).all(|ruling| ruling.allowed),
            egress,
            ingress,
        })
    }

    /// The workload or the address alone that is at an address.
    pub fn place(&self, address: IpAddr) -> Place {
        Place::new(self.owner(address), address)
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

    /// Addresses of two ends that are of one family.
    pub fn pairs(&self, from: End, to: End) -> Vec<(Spot, Spot)> {
        let to = self.spots(to);
        let mut pairs = Vec::new();
        for from in self.spots(from) {
            let same = to.iter().filter(|to| self.version(**to) == self.version(from));
            pairs.extend(same.map(|to| (from, *to)));
        }
        pairs
    }

    pub(crate) fn decided_by(&self, rule: RuleId) -> DecidedBy {
        let named = rule
            .0
            .checked_sub(BUILTIN_RULES)
            .and_then(|index| usize::try_from(index).ok());
        match (
            named.and_then(|index| self.rules.get(index)),
            BuiltinRule::from_id(rule),
        ) {
            (Some(name), _) => DecidedBy::Rule(name.clone()),
            (None, builtin) => DecidedBy::Builtin(builtin.unwrap_or(BuiltinRule::NoMatch)),
        }
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
        };
        Some(self.rows.get(&(class, direction))?.judge(Some(own), identity))
    }
}

impl From<Spot> for End {
    fn from(spot: Spot) -> Self {
        match spot {
            Spot::Class { class, .. } => Self::Class(class),
            Spot::Outside { region, .. } => Self::Outside(region),
        }
    }
}

impl Class {
    /// Addresses of the member in this place, in the order of its spots.
    pub fn addresses(&self, place: usize) -> &[IpAddr] {
        self.addresses.get(place).map(Vec::as_slice).unwrap_or_default()
    }

    fn new(class: Classified, identities: &BTreeMap<IpNet, IdentityId>) -> Self {
        let of = |place: usize, slot: usize| {
            let address = class.addresses.get(place)?.get(slot)?;
            identity_of(identities, *address)
        };
        let first = class.addresses.first().map(Vec::as_slice).unwrap_or_default();
        let slots = first.iter().enumerate().map(|(slot, address)| {
            // Number 0 is nobody's, and denied.
            let identity = of(0, slot).unwrap_or(IdentityId(0));
            Slot {
                version: version(*address),
                identity,
                sibling: of(1, slot).unwrap_or(identity),
            }
        });
        Self {
            slots: slots.collect(),
            members: class.members,
            addresses: class.addresses,
        }
    }
}

/// Name of a workload for people.
pub(crate) fn shown(member: &Member) -> String {
    let workload = &member.workload;
    match workload.kind {
        WorkloadKind::HostEndpoint => format!("host {}", workload.name),
        WorkloadKind::Pod | WorkloadKind::NetworkSet => format!("{}/{}", workload.namespace, workload.name),
    }
}
