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

mod class;
mod ends;
mod flows;
mod spaces;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use policies_compiler::{Book, ClusterView, capacity::Exceeded, compile_answers};
use policies_ir::{
    cluster::{Cluster, Member},
    policy::{IpVersion, PolicySet, WorkloadKind},
    tables::{BUILTIN_RULES, BuiltinRule, DecidedBy, IdentityId, RuleId, RuleName},
};

pub use class::Class;
pub use ends::{End, Spot};
pub use spaces::SpaceId;

use crate::{
    build::{Rows, outside_if_named, owners, read_judges},
    judge::Judge,
    names::Names,
    naming,
    nodes::{NodeJudges, Nodes},
    region::Region,
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
    /// Addresses by which nobody is known.
    contested: BTreeSet<IpAddr>,
    /// Nodes by their addresses that no member has.
    nodes: HashMap<IpAddr, String>,
    identities: BTreeMap<IpNet, IdentityId>,
    /// For each class and direction, who judges.
    rows: Rows,
    judges: Vec<Judge>,
    node_judges: NodeJudges,
    rules: Vec<RuleName>,
    exceeded: Option<Exceeded>,
    known: RefCell<spaces::Known>,
}

impl Model {
    /// The model of what is enforced in `view`, where every node has an address.
    pub fn new(view: &ClusterView) -> Self {
        Self::with_ipv6(view, false)
    }

    /// The models of two that are to be compared: with IPv6 if either speaks of it.
    pub fn of_both(old: &ClusterView, new: &ClusterView) -> [Self; 2] {
        let books = [old, new].map(|view| (view, Book::new(view)));
        let ipv6 = books.iter().any(|(_, book)| book.speaks_of_ipv6());
        books.map(|(view, book)| Self::of_book(view, &book, ipv6))
    }

    /// The model in which what was made up has IPv6, too, if anybody speaks of that.
    pub fn with_ipv6(view: &ClusterView, is_asked_for: bool) -> Self {
        let book = Book::new(view);
        Self::of_book(view, &book, is_asked_for || book.speaks_of_ipv6())
    }

    fn of_book(view: &ClusterView, book: &Book, ipv6: bool) -> Self {
        let (cluster, policies) = book.about_all_flows(view, ipv6);
        Self::of(cluster, policies)
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
        let (classified, compiled) = class::one_of_each_class(&cluster, &addresses, &nodes, &policies);
        let answers = compile_answers(&compiled, &policies, names.sets());
        drop(compiled);
        let (rows, mut judges) = read_judges(&answers, classified.len());
        let contested = cluster.contested();
        let owners = owners(&cluster, &addresses, &contested);
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
            contested,
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

    /// The workload that alone has an address.
    pub fn owner(&self, address: IpAddr) -> Option<usize> {
        self.owners.get(&address).copied()
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
}

/// Name of a workload for people.
pub(crate) fn shown(member: &Member) -> String {
    let workload = &member.workload;
    match workload.kind {
        WorkloadKind::HostEndpoint => format!("host {}", workload.name),
        WorkloadKind::Pod | WorkloadKind::NetworkSet => format!("{}/{}", workload.namespace, workload.name),
    }
}
