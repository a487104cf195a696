//! Many flows, one by one, without a node: the compiler's rules asked directly, so that only what is asked about
//! is put together. Every endpoint is judged as if it were on the node that asks.
//!
//! An answer is that of the endpoint where the flow starts and of the one where it ends; a flow is allowed if
//! both allow. What has no policy of its own (an address outside, a node without a host endpoint) judges nothing.

pub(crate) mod ends;
mod source_port;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    rc::Rc,
};

use ipnet::IpNet;
use policies_ir::{
    cluster::{Cluster, Member},
    policy::{
        EndMatch, EndpointPolicy, PolicySet, PortMatch, ProfileRules, Rule, ServiceMatch, WorkloadKind,
    },
    tables::{BUILTIN_RULES, BuiltinRule, DecidedBy, Direction, EndpointId, RuleId, RuleName, Verdict},
};

use ends::Ends;
pub use ends::{End as FlowEnd, FlowError};

use crate::{
    cells::{Index, KnownPlaces, MatcherId, Matchers, Prefixes, Signature},
    cluster_policy::Nodes,
    made_up::{is_made_up_ipv6, mention_nodes, place_nodes, speaks_of_ipv6, stated},
    program::{KnownService, Numbers, Program, ServiceSets},
    view::ClusterView,
};

/// Everything that flows are judged by; built once, then borrowed by [`Judge`].
#[derive(Debug, Clone)]
pub struct Book {
    cluster: Cluster,
    policies: PolicySet,
    made_up: BTreeSet<String>,
}

/// A flow to judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Where it starts.
    pub source: FlowEnd,
    /// Where it goes.
    pub destination: FlowEnd,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port; for ICMP `type << 8 | code`; 0 where the protocol has neither.
    pub port: u16,
}

/// What came of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Allowed if neither end denies.
    pub verdict: Verdict,
    /// Where it leaves; nothing if nothing judges there.
    pub egress: Option<(Verdict, DecidedBy)>,
    /// Where it arrives; nothing if nothing judges there.
    pub ingress: Option<(Verdict, DecidedBy)>,
}

/// Judges flows, and remembers what it put together on the way.
pub struct Judge<'a> {
    book: &'a Book,
    ends: Ends<'a>,
    index: Index<'a>,
    prefixes: Prefixes,
    numbers: Judging,
    known: KnownPlaces<'a>,
    signatures: HashMap<IpAddr, Rc<Signature>>,
    policies: HashMap<PolicyKey<'a>, Rc<EndpointPolicy<'a>>>,
    programs: HashMap<(usize, Direction), Rc<Program>>,
}

/// What decides about an address by which nobody is known.
const NO_MATCH: DecidedBy = DecidedBy::Builtin(BuiltinRule::NoMatch);

/// All of a member that the choice of its policies depends on.
type PolicyKey<'a> = (
    WorkloadKind,
    &'a str,
    &'a api::selector::Labels,
    Option<&'a policies_ir::policy::ServiceAccount>,
    &'a [String],
);

impl Book {
    /// The cluster and the enforced policies of `view`.
    pub fn new(view: &ClusterView) -> Self {
        let (mut cluster, told) = (view.cluster(), view.policy_set(|_, _| {}).enforced);
        for (member, number) in cluster.members.iter_mut().zip(1..) {
            member.endpoint = Some(EndpointId(number));
        }
        let mut made_up = assume_nodes(view, &mut cluster);
        let stated: Vec<IpNet> = stated(&told, &cluster.sets).copied().collect();
        made_up.extend(place_nodes(&mut cluster, &stated));
        // Which pods got the ports that they ask for only their node knows.
        cluster.translations.clear();
        let nodes = nodes_in(view, &cluster);
        let policies = match view.cluster_policies.is_empty() || nodes == view.nodes {
            true => told,
            false => view.policies_with(&nodes, &view.services, |_, _| {}).enforced,
        };
        Self {
            cluster,
            policies,
            made_up,
        }
    }

    /// What questions about all flows are about. A node whose addresses are made up is nowhere there, as it may be
    /// anywhere, unless a host endpoint judges at them; nor are made-up addresses of IPv6, unless `ipv6`. `view` is what the
    /// book is of.
    pub fn about_all_flows(&self, view: &ClusterView, ipv6: bool) -> (Cluster, PolicySet) {
        let mut cluster = self.cluster.clone();
        let hosts = self.cluster.members.iter();
        let hosts = hosts.filter(|member| member.workload.kind == WorkloadKind::HostEndpoint);
        let judged: BTreeSet<&String> = hosts.map(|host| &host.node).collect();
        let mut nowhere: BTreeSet<IpAddr> = BTreeSet::new();
        for node in self.made_up.iter().filter(|node| !judged.contains(node)) {
            nowhere.extend(cluster.nodes.remove(node).into_iter().flatten());
        }
        let counts = |address: &IpAddr| (ipv6 || !is_made_up_ipv6(address)) && !nowhere.contains(address);
        let of_members = cluster.members.iter_mut().map(|member| &mut member.addresses);
        let all = of_members.chain(cluster.nodes.values_mut());
        all.for_each(|addresses| addresses.retain(counts));
        let mut services = view.services.clone();
        for endpoints in services.values_mut() {
            endpoints.retain(|endpoint| counts(&endpoint.address));
        }
        let is_told_alike = view.cluster_policies.is_empty() || cluster.nodes == self.cluster.nodes;
        let policies = match is_told_alike && services == view.services {
            true => self.policies.clone(),
            false => {
                let nodes = nodes_in(view, &cluster);
                view.policies_with(&nodes, &services, |_, _| {}).enforced
            }
        };
        (cluster, policies)
    }

    /// The cluster, in which every member has an endpoint and every node addresses.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Whether anything but made-up addresses speaks of IPv6. Where nothing does a cluster without it is meant, and flows
    /// that it does not have are no answers to questions about all that may be exchanged.
    pub fn speaks_of_ipv6(&self) -> bool {
        speaks_of_ipv6(&self.cluster, &self.policies)
    }

    /// Nodes of which nothing tells an address: those that they have here are made up.
    pub fn made_up_nodes(&self) -> &BTreeSet<String> {
        &self.made_up
    }

    /// The policies.
    pub fn policies(&self) -> &PolicySet {
        &self.policies
    }

    /// Who is at which end of a flow.
    pub(crate) fn ends(&self) -> Ends<'_> {
        Ends::new(&self.cluster)
    }
}

impl<'a> Judge<'a> {
    /// A judge by `book`.
    pub fn new(book: &'a Book) -> Self {
        let mut numbers = Judging {
            matchers: Matchers::new(&book.cluster),
            names: HashMap::new(),
            listed: Vec::new(),
            sets: ServiceSets::default(),
        };
        let mut port_names = BTreeSet::new();
        Program::intern_builtins(&mut numbers, &book.policies.failsafe);
        for (rule, direction) in rules(&book.policies) {
            numbers.matcher(&rule.peer, direction);
            // Asked of host endpoints, as programs ask it.
            numbers.matcher(&rule.own, Direction::Ingress);
            port_names.extend(names(&rule.service).map(str::to_owned));
        }
        let index = Index::new(&numbers.matchers, &book.cluster, port_names);
        Self {
            book,
            ends: book.ends(),
            prefixes: Prefixes::new(&index.prefixes()),
            index,
            numbers,
            known: KnownPlaces::default(),
            signatures: HashMap::new(),
            policies: HashMap::new(),
            programs: HashMap::new(),
        }
    }

    /// Judges one flow.
    pub fn judge(&mut self, question: &Question) -> Result<Answer, FlowError> {
        let source = self.ends.resolve(&question.source)?;
        let destination = self.ends.resolve(&question.destination)?;
        let (from, to) = ends::addresses(&source, &destination, question.protocol)?;
        let (leaves, arrives) = (
            self.ends.judging(&source, &destination),
            self.ends.judging(&destination, &source),
        );
        let nobody = |end: &ends::Resolved| end.is_contested.then_some((Verdict::Deny, NO_MATCH));
        let egress = nobody(&source)
            .or_else(|| leaves.map(|member| self.at(member, Direction::Egress, (from, to), question)));
        let ingress = nobody(&destination)
            .or_else(|| arrives.map(|member| self.at(member, Direction::Ingress, (to, from), question)));
        let denied = [&egress, &ingress]
            .into_iter()
            .flatten()
            .any(|(verdict, _)| *verdict == Verdict::Deny);
        Ok(Answer {
            verdict: if denied { Verdict::Deny } else { Verdict::Allow },
            egress,
            ingress,
        })
    }

    fn at(
        &mut self,
        member: usize,
        direction: Direction,
        (own, peer): (IpAddr, IpAddr),
        question: &Question,
    ) -> (Verdict, DecidedBy) {
        let (own, peer) = (self.signature(own), self.signature(peer));
        let no_match = (Verdict::Deny, BuiltinRule::NoMatch.id());
        let (verdict, rule) = match self.program(member, direction) {
            Some(program) => {
                let ports = (question.source_port, question.port);
                program.judge(&own, &peer, question.protocol, ports)
            }
            None => no_match,
        };
        (verdict, self.numbers.decided_by(rule))
    }

    fn signature(&mut self, address: IpAddr) -> Rc<Signature> {
        if let Some(known) = self.signatures.get(&address) {
            return Rc::clone(known);
        }
        let holders = self.prefixes.that_hold(address);
        let signature = self.index.signature(&holders, address.into(), &mut self.known);
        let signature = Rc::new(signature);
        self.signatures.insert(address, Rc::clone(&signature));
        signature
    }

    fn program(&mut self, position: usize, direction: Direction) -> Option<Rc<Program>> {
        if let Some(known) = self.programs.get(&(position, direction)) {
            return Some(Rc::clone(known));
        }
        let book = self.book;
        let member: &'a Member = book.cluster.members.get(position)?;
        let workload = &member.workload;
        let key = (
            workload.kind,
            workload.namespace.as_str(),
            &workload.labels,
            workload.service_account.as_ref(),
            workload.profiles.as_slice(),
        );
        let shared = self
            .policies
            .entry(key)
            .or_insert_with(|| Rc::new(book.policies.for_endpoint(workload)));
        let policy = EndpointPolicy {
            workload,
            ..EndpointPolicy::clone(shared)
        };
        let own = (member.endpoint?, member);
        let program = Rc::new(Program::new(
            own,
            direction,
            &policy,
            &book.cluster,
            &mut self.numbers,
        ));
        self.programs.insert((position, direction), Rc::clone(&program));
        Some(program)
    }
}

/// Gives nodes of which no object tells an address those that they were given when the objects were read. Says which.
fn assume_nodes(view: &ClusterView, cluster: &mut Cluster) -> BTreeSet<String> {
    mention_nodes(cluster);
    let mut assumed = BTreeSet::new();
    for (node, addresses) in cluster.nodes.iter_mut().filter(|(_, of)| of.is_empty()) {
        if let Some(given) = view.assumed_nodes.get(node) {
            addresses.clone_from(given);
            assumed.insert(node.clone());
        }
    }
    assumed
}

/// Nodes as rules for them mean them where flows to them are judged: at the addresses that their objects tell, or else at
/// all that `cluster` has of them, told otherwise or made up.
fn nodes_in(view: &ClusterView, cluster: &Cluster) -> Nodes {
    let mut nodes = view.nodes.clone();
    for (name, addresses) in &cluster.nodes {
        let node = nodes.entry(name.clone()).or_default();
        if node.addresses.is_empty() {
            node.addresses.clone_from(addresses);
        }
    }
    nodes
}

/// Numbers for what is judged: names get theirs when they first decide.
struct Judging {
    matchers: Matchers,
    names: HashMap<RuleName, RuleId>,
    listed: Vec<RuleName>,
    sets: ServiceSets,
}

impl Judging {
    fn decided_by(&self, rule: RuleId) -> DecidedBy {
        let listed = rule
            .0
            .checked_sub(BUILTIN_RULES)
            .and_then(|i| usize::try_from(i).ok());
        match listed.and_then(|i| self.listed.get(i)) {
            Some(name) => DecidedBy::Rule(name.clone()),
            None => DecidedBy::Builtin(BuiltinRule::from_id(rule).unwrap_or(BuiltinRule::NoMatch)),
        }
    }
}

impl Numbers for Judging {
    /// The conditions of all rules have theirs before the first flow.
    fn matcher(&mut self, matcher: &EndMatch, direction: Direction) -> MatcherId {
        self.matchers.id(matcher, direction)
    }

    fn rule(&mut self, name: RuleName) -> RuleId {
        let next = BUILTIN_RULES.saturating_add(u32::try_from(self.listed.len()).unwrap_or(u32::MAX));
        *self.names.entry(name.clone()).or_insert_with(|| {
            self.listed.push(name);
            RuleId(next)
        })
    }

    fn service(&mut self, service: &ServiceMatch) -> KnownService {
        self.sets.of(service)
    }
}

/// Every rule, with the direction in which it is asked.
pub(crate) fn rules(policies: &PolicySet) -> impl Iterator<Item = (&Rule, Direction)> {
    let of_tiers = policies.tiers.iter().flat_map(|tier| &tier.policies);
    let of_tiers = of_tiers.map(|policy| (&policy.ingress, &policy.egress));
    let of_profiles = policies
        .profiles
        .values()
        .filter_map(|profile| match &profile.rules {
            ProfileRules::AllowAll => None,
            ProfileRules::Own { ingress, egress } => Some((ingress, egress)),
        });
    of_tiers.chain(of_profiles).flat_map(|(ingress, egress)| {
        let ingress = ingress.iter().map(|rule| (rule, Direction::Ingress));
        ingress.chain(egress.iter().map(|rule| (rule, Direction::Egress)))
    })
}

/// Names of ports that a service asks for.
fn names(service: &ServiceMatch) -> impl Iterator<Item = &str> {
    let lists = [
        &service.ports,
        &service.not_ports,
        &service.source_ports,
        &service.not_source_ports,
    ];
    lists.into_iter().flatten().filter_map(|port| match port {
        PortMatch::Named(name) => Some(name.as_str()),
        PortMatch::Range(..) => None,
    })
}
