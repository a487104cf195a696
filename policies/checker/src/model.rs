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
//! node. Where no host endpoint judges, a node is addresses like others to all but its own pods, to each of which it is an end of its
//! own ([`End::OwnNode`]), as far as its addresses are known. Of a node whose addresses nothing tells, what a pod may send it is what it
//! may send to any address.
//!
//! Not in the model: what a pod sends itself (always allowed), and what a node merely forwards.

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
    build::{CLOSED, Rows, identity_of, outside_if_named, owners, read_judges},
    classes::{Classified, classify},
    judge::Judge,
    names::Names,
    naming,
    nodes::{NodeJudges, NodeSlot, Nodes},
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
    /// Nodes by their addresses that no member has.
    nodes: HashMap<IpAddr, String>,
    identities: BTreeMap<IpNet, IdentityId>,
    /// For each class and direction, who judges.
    rows: Rows,
    judges: Vec<Judge>,
    node_judges: NodeJudges,
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
    /// What the class says about the node that a member is on.
    node_slots: Vec<NodeSlot>,
    /// For each member, the addresses of that node, in the order of the places of `node_slots`.
    node_addresses: Vec<Vec<IpAddr>>,
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
    /// Each address of a region, by position in [`Model::outside`]; for a pod, those that are not of its own node.
    Outside(usize),
    /// For each pod, the node that it is on, where no host endpoint judges.
    OwnNode,
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
    /// An address of the node that each workload of a class is on.
    OwnNode {
        /// The class.
        class: usize,
        /// The address, and what names it is taken to have.
        slot: usize,
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
        let mut cluster = book.cluster().clone();
        let hosts = book.cluster().members.iter();
        let hosts = hosts.filter(|member| member.workload.kind == WorkloadKind::HostEndpoint);
        let judged: BTreeSet<&String> = hosts.map(|host| &host.node).collect();
        // What was made up only says where a host endpoint judges.
        let made_up = book.made_up_nodes().iter();
        for node in made_up.filter(|node| !judged.contains(node)) {
            cluster.nodes.remove(node);
        }
        Self::of(cluster, book.policies().clone())
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
        let nodes = Nodes::of(&cluster, &addresses);
        let (classified, compiled) = one_of_each_class(&cluster, &addresses, &nodes, &policies);
        let answers = compile_answers(&compiled, &policies, names.sets());
        drop(compiled);
        let (rows, mut judges) = read_judges(&answers, classified.len());
        let owners = owners(&cluster, &addresses);
        let nodes = nodes.by_address();
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
        let mut node_judges = NodeJudges::new(policies.endpoint_to_host);
        let mut classes = Vec::new();
        for (number, class) in classified.into_iter().enumerate() {
            let of_first = class.node_addresses.first().map(Vec::as_slice);
            let seen = (&answers, &rows);
            let node_slots = node_judges.slots(number, of_first.unwrap_or_default(), seen, &mut judges);
            classes.push(Class::new(class, &answers.identities, node_slots));
        }
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
            nodes,
            identities: answers.identities,
            rows,
            judges,
            node_judges,
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

    /// Every end; each class and each region once, and own nodes where pods have some.
    pub fn ends(&self) -> Vec<End> {
        let classes = (0..self.classes.len()).map(End::Class);
        let own_nodes = self.classes.iter().any(|class| !class.node_slots.is_empty());
        classes
            .chain((0..self.outside.len()).map(End::Outside))
            .chain(own_nodes.then_some(End::OwnNode))
            .collect()
    }

    /// The addresses of an end; none of own nodes, which depend on the other end ([`Self::node_spots`]).
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
            End::OwnNode => Vec::new(),
        }
    }

    /// The addresses of the node that the workloads of a class are on.
    pub(crate) fn node_spots(&self, class: usize) -> impl Iterator<Item = Spot> + use<> {
        let slots = self.classes.get(class).map_or(0, |class| class.node_slots.len());
        (0..slots).map(move |slot| Spot::OwnNode { class, slot })
    }

    /// Whether flows from one end to the other are judged, by two different workloads or by one. Names are those of
    /// destinations.
    pub fn judges(&self, from: End, to: End) -> bool {
        match (from, to) {
            (End::OwnNode, _) | (End::Outside(_), End::Outside(_) | End::OwnNode) => false,
            (End::Outside(of), End::Class(_)) if self.names_of(of).is_some() => false,
            (End::Outside(region), End::Class(class)) | (End::Class(class), End::Outside(region)) => {
                let mut families = FAMILIES.into_iter();
                families.any(|version| self.has_strangers(class, region, version))
            }
            (End::Class(class), End::OwnNode) => self.has_own_node(class),
            (End::Class(from), End::Class(to)) if from == to => self
                .classes
                .get(from)
                .is_some_and(|class| class.members.len() > 1),
            _ => !self.comes_from_own_node(from, to),
        }
    }

    /// Whether the one is the node that the pods of the other are on, or host endpoints of it: what it sends always passes.
    pub(crate) fn comes_from_own_node(&self, from: End, to: End) -> bool {
        match (from, to) {
            (End::Class(host), End::Class(pod)) => self.is_node_of(host, pod),
            (End::OwnNode, End::Class(pod)) => self.has_own_node(pod),
            (End::Class(_) | End::Outside(_) | End::OwnNode, _) => false,
        }
    }

    fn has_own_node(&self, class: usize) -> bool {
        self.classes
            .get(class)
            .is_some_and(|class| !class.node_slots.is_empty())
    }

    /// Whether addresses of a region are not of the node that a workload of a class is on.
    fn has_strangers(&self, class: usize, region: usize, version: IpVersion) -> bool {
        let found = self.classes.get(class).zip(self.outside.get(region));
        found.is_some_and(|(class, region)| {
            let mut places = 0..class.members.len();
            places.any(|place| class.stranger(place, region, version).is_some())
        })
    }

    /// An address of a region that is not of the node that a workload is on.
    pub(crate) fn stranger(&self, member: usize, region: &Region, version: IpVersion) -> Option<IpAddr> {
        let (class, place) = self.places.get(member)?;
        self.classes.get(*class)?.stranger(*place, region, version)
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
            Spot::OwnNode { class, slot } => Some(self.node_slot(class, slot)?.version),
        }
    }

    fn node_slot(&self, class: usize, slot: usize) -> Option<&NodeSlot> {
        self.classes.get(class)?.node_slots.get(slot)
    }

    /// Names that a spot's addresses are taken to have, by position in the sets of names.
    pub(crate) fn names_at(&self, spot: Spot) -> Option<usize> {
        match spot {
            Spot::Class { .. } => None,
            Spot::Outside { region, .. } => self.names_of(region),
            Spot::OwnNode { class, slot } => self.node_slot(class, slot)?.names,
        }
    }

    /// Address of the node that a member of a class is on, at a spot of own nodes of that class.
    pub(crate) fn node_address(&self, member: usize, slot: usize) -> Option<IpAddr> {
        let (class, place) = self.places.get(member)?;
        let at = self.node_slot(*class, slot)?.place;
        let addresses = self.classes.get(*class)?.node_addresses.get(*place)?;
        addresses.get(at).copied()
    }

    /// Whether an address is of the node that a workload is on, where no host endpoint judges.
    pub(crate) fn is_own_node(&self, member: usize, address: IpAddr) -> bool {
        let place = self.places.get(member);
        let class = place.and_then(|(class, place)| Some((self.classes.get(*class)?, *place)));
        class.is_some_and(|(class, place)| class.nodes_of(place).contains(&address))
    }

    /// Where a node is, by its name, or a host endpoint by one that no node has: at the addresses that the host endpoint expects,
    /// or at all that the node is known to have. Nothing if there is neither.
    pub fn host(&self, name: &str) -> Option<Vec<Place>> {
        let members = || self.cluster.members.iter().enumerate();
        let is_node =
            self.cluster.nodes.contains_key(name) || members().any(|(_, member)| member.node == name);
        let hosts = members().filter(|(_, member)| member.workload.kind == WorkloadKind::HostEndpoint);
        let found = match is_node {
            true => hosts
                .filter(|(_, host)| host.node == name)
                .min_by_key(|(_, host)| host.host_order()),
            false => hosts.into_iter().find(|(_, host)| host.workload.name == name),
        };
        if found.is_none() && !is_node {
            return None;
        }
        let node = found.map_or(name, |(_, host)| host.node.as_str());
        let expected = found.map(|(_, host)| &host.addresses);
        let expected = expected.filter(|addresses| !addresses.is_empty());
        let addresses = expected.or_else(|| self.cluster.nodes.get(node));
        let at = |address: &IpAddr| Place::new(found.map(|(position, _)| position), *address);
        Some(addresses.into_iter().flatten().map(at).collect())
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
        let judge = row.judge(own, identity);
        let judge = match self.is_own_node(member, peer) {
            true => self.node_judges.of(judge, direction),
            false => judge,
        };
        self.judges.get(judge)
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
            node: self.nodes.get(&place.address).cloned(),
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

    /// Addresses of two ends that are of one family. Where all addresses of a region are of the node that the workloads are on, that
    /// node is the end.
    pub fn pairs(&self, from: End, to: End) -> Vec<(Spot, Spot)> {
        let spots = |end, other| match (end, other) {
            (End::OwnNode, End::Class(class)) => self.node_spots(class).collect(),
            (End::Class(_) | End::Outside(_) | End::OwnNode, _) => self.spots(end),
        };
        let meet = |from: Spot, to: Spot| match (from, to) {
            (Spot::Class { class, .. }, Spot::Outside { region, version })
            | (Spot::Outside { region, version }, Spot::Class { class, .. }) => {
                self.has_strangers(class, region, version)
            }
            // Names are those of destinations.
            (from @ Spot::OwnNode { .. }, _) => self.names_at(from).is_none(),
            _ => true,
        };
        let to_spots = spots(to, from);
        let mut pairs = Vec::new();
        for from in spots(from, to) {
            let same = to_spots
                .iter()
                .filter(|to| self.version(**to) == self.version(from));
            pairs.extend(same.filter(|to| meet(from, **to)).map(|to| (from, *to)));
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

impl From<Spot> for End {
    fn from(spot: Spot) -> Self {
        match spot {
            Spot::Class { class, .. } => Self::Class(class),
            Spot::Outside { region, .. } => Self::Outside(region),
            Spot::OwnNode { .. } => Self::OwnNode,
        }
    }
}

impl Class {
    /// Addresses of the member in this place, in the order of its spots.
    pub fn addresses(&self, place: usize) -> &[IpAddr] {
        self.addresses.get(place).map(Vec::as_slice).unwrap_or_default()
    }

    /// Addresses of the node that the member in this place is on.
    pub(crate) fn nodes_of(&self, place: usize) -> &[IpAddr] {
        self.node_addresses
            .get(place)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// An address of a region that is not of the node that the member in this place is on.
    fn stranger(&self, place: usize, region: &Region, version: IpVersion) -> Option<IpAddr> {
        let own = self.nodes_of(place);
        let example = region.example(version)?;
        if !own.contains(&example) {
            return Some(example);
        }
        let own = Region::of(own.iter().copied().map(IpNet::from));
        region.subtract(&own).example(version)
    }

    fn new(class: Classified, identities: &BTreeMap<IpNet, IdentityId>, node_slots: Vec<NodeSlot>) -> Self {
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
            node_slots,
            node_addresses: class.node_addresses,
        }
    }
}

/// The classes of a cluster, and the cluster in which the first of each has the number of its class, from 1, and which tells no
/// nodes apart but those that host endpoints speak for.
fn one_of_each_class(
    cluster: &Cluster,
    addresses: &[BTreeSet<IpAddr>],
    nodes: &Nodes,
    policies: &PolicySet,
) -> (Vec<Classified>, Cluster) {
    let mut compiled = cluster.clone();
    for member in &mut compiled.members {
        member.endpoint = None;
        if member.workload.kind == WorkloadKind::Pod && !nodes.are_judged(&member.node) {
            member.node.clear();
        }
    }
    // What is no member's matters to pods of that node alone. Addresses of some thousand nodes would be as many cells for nothing.
    let claimed: BTreeSet<IpAddr> = cluster
        .members
        .iter()
        .flat_map(|member| member.addresses.iter().copied())
        .collect();
    for (_, addresses) in compiled
        .nodes
        .iter_mut()
        .filter(|(node, _)| !nodes.are_judged(node))
    {
        addresses.retain(|address| claimed.contains(address));
    }
    let own: Vec<&BTreeSet<IpAddr>> = cluster.members.iter().map(|member| nodes.own(member)).collect();
    let classes = classify(&compiled, addresses, &own, policies);
    for (number, class) in (1..).zip(&classes) {
        let first = class.members.first();
        if let Some(member) = first.and_then(|first| compiled.members.get_mut(*first)) {
            member.endpoint = Some(EndpointId(number));
        }
    }
    (classes, compiled)
}

/// Name of a workload for people.
pub(crate) fn shown(member: &Member) -> String {
    let workload = &member.workload;
    match workload.kind {
        WorkloadKind::HostEndpoint => format!("host {}", workload.name),
        WorkloadKind::Pod | WorkloadKind::NetworkSet => format!("{}/{}", workload.namespace, workload.name),
    }
}
