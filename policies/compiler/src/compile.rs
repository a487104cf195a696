//! The compiler: from ordered rules and who has which address to the tables of one node.
//!
//! 1. Each endpoint's rules, in order, become a program for each direction ([`crate::program`]).
//! 2. The address space is cut into cells in which each peer condition holds everywhere or nowhere
//!    ([`crate::cells`]).
//! 3. For each kind of cell, each program is flattened into entries ([`crate::flatten`]).
//! 4. Cells for which every program has the same entries become one identity ([`crate::classes`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use policies_ir::{
    cluster::{Cluster, Member},
    decide::{Decision, decide},
    policy::{EndMatch, EndpointPolicy, NamedPort, PolicySet, PortMatch, ServiceMatch, WorkloadKind},
    tables::{
        BuiltinRule, Direction, EndpointId, EndpointTables, IdentityId, Insides, NodeTables, Packet, RuleId,
        RuleName, SourceBlock, SourceClass,
    },
    verdicts::{ClassKey, ClassVerdicts},
};

use crate::{
    capacity::{Capacities, Exceeded, What},
    cells::{Index, MatcherId, Matchers},
    classes::{Classes, Numbering},
    field::FieldError,
    program::{Answer, KnownService, Numbers, Program, RuleIds, ServiceSets, rule_ids},
    sources::Sources,
    view::ClusterView,
};

/// Tables of a node, and what had to be closed on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    /// The tables.
    pub tables: NodeTables,
    /// Everything that could not be honoured as written; the tables never allow more because of it.
    pub diagnostics: Vec<Diagnostic>,
}

/// Something that could not be honoured as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Diagnostic {
    /// Part of a policy matches nothing.
    Policy {
        /// `Kind namespace/name`.
        policy: String,
        /// What is wrong.
        error: FieldError,
    },
    /// Several pods claim one address: flows with it are denied.
    ContestedAddress {
        /// The address.
        address: IpAddr,
        /// The pods, as `namespace/name`.
        pods: Vec<String>,
    },
    /// A pod claims an address of the node: the address is the node's, and no selector finds the pod there.
    HostAddress {
        /// The address.
        address: IpAddr,
        /// The pod, as `namespace/name`.
        pod: String,
    },
    /// The labels of a namespace with pods are not known: no namespace selector matches them.
    UnknownNamespace(String),
    /// Several pods have one endpoint number: it is denied everything.
    DuplicateEndpoint(EndpointId),
}

/// Tables of a node in which each distinct list of verdicts stands once: for whoever compares all ends with all
/// others, where the tables would be too many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// As in [`NodeTables::identities`].
    pub identities: BTreeMap<IpNet, IdentityId>,
    /// The same for each of the sets of names that were asked about, if every address had these names too.
    pub if_named: Vec<BTreeMap<IpNet, IdentityId>>,
    /// For each endpoint and direction, the position in `answers` of what it says about each identity.
    pub rows: BTreeMap<(EndpointId, Direction), BTreeMap<IdentityId, usize>>,
    /// As in [`EndpointTables::sources`].
    pub sources: BTreeMap<EndpointId, BTreeMap<SourceBlock, SourceClass>>,
    /// What an endpoint says about an identity in one direction.
    pub answers: Vec<Answer>,
    /// As in [`NodeTables::rules`].
    pub rules: Vec<RuleName>,
    /// Why there are no answers of some endpoints, if so: the kernel would refuse all tables, so nothing is to be said of
    /// these policies.
    pub exceeded: Option<Exceeded>,
}

/// Compiles the policies in `view` for the endpoints in it.
pub fn compile(view: &ClusterView) -> Compiled {
    let mut diagnostics = Vec::new();
    let mut report = |policy: &str, error| {
        diagnostics.push(Diagnostic::Policy {
            policy: policy.to_owned(),
            error,
        });
    };
    let policies = view.policy_set(&mut report);
    let cluster = view.read_cluster(&mut report);
    diagnostics.extend(conflicts(cluster.members.iter(), &cluster.host_addresses));
    Compiled {
        tables: compile_policies(&cluster, &policies.enforced),
        diagnostics,
    }
}

/// The tables as they would be if the staged policies in `view` were enforced; nothing if there are none.
pub fn compile_staged(view: &ClusterView) -> Option<NodeTables> {
    let policies = view.policy_set(|_, _| {});
    let would_be = (!policies.staged.is_empty()).then(|| policies.enforced.with_staged(&policies.staged))?;
    Some(compile_policies(&view.cluster(), &would_be))
}

/// Compiles `policies` of any origin for the endpoints of `cluster`. The result depends on nothing but the
/// arguments, and not on the order of members, tiers or policies.
pub fn compile_policies(cluster: &Cluster, policies: &PolicySet) -> NodeTables {
    let Layout {
        local,
        rules,
        classes,
    } = Layout::new(cluster, policies);
    write_tables(&local, rules, &classes)
}

/// Compiles `policies` like [`compile_policies`], but keeps each distinct answer once, and answers about addresses as
/// if they had each of these sets of names too.
pub fn compile_answers(cluster: &Cluster, policies: &PolicySet, names: &[BTreeSet<String>]) -> Answers {
    let (_, rules, numbering, index) = lay_out(cluster, policies);
    let mut classes = Classes::new(index.cells(), numbering);
    let if_named = names
        .iter()
        .map(|names| classes.number(index.cells_if_named(names)))
        .collect();
    let rows = classes.programs().iter().enumerate().map(|(position, program)| {
        let row = classes.numbers(position).collect();
        ((program.endpoint, program.direction), row)
    });
    let sources = classes.sources().iter();
    let needed = classes.sources().values().map(Sources::count).max().unwrap_or(0);
    Answers {
        exceeded: Exceeded::if_more(What::SourceClasses, needed, Capacities::KERNEL.source_classes),
        rows: rows.collect(),
        sources: sources
            .map(|(endpoint, sources)| (*endpoint, sources.table()))
            .collect(),
        rules: rules.into_keys().collect(),
        identities: classes.identities.clone(),
        if_named,
        answers: classes.into_answers(),
    }
}

/// Judges a packet at an endpoint by the reference alone: the oracle for the tables and the kernel. Nothing
/// if `view` has no such endpoint, or several.
pub fn reference(view: &ClusterView, endpoint: EndpointId, packet: &Packet) -> Option<Decision> {
    let cluster = view.cluster();
    let policies = view.policy_set(|_, _| {}).enforced;
    let mut found = judged(&cluster, &policies).filter(|(id, ..)| *id == endpoint);
    let (_, member, policy) = found.next().filter(|_| found.next().is_none())?;
    Some(decide(&policy, &cluster.flow(member, packet)))
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy { policy, error } => write!(f, "{policy}: {error}"),
            Self::ContestedAddress { address, pods } => {
                write!(
                    f,
                    "{address} is claimed by {}: flows with it are denied",
                    pods.join(" and ")
                )
            }
            Self::HostAddress { address, pod } => {
                write!(f, "{address} is this node's, though pod {pod} claims it")
            }
            Self::UnknownNamespace(name) => {
                write!(
                    f,
                    "labels of namespace {name} are not known: no namespaceSelector matches its pods"
                )
            }
            Self::DuplicateEndpoint(EndpointId(id)) => {
                write!(f, "several pods have endpoint {id}: it is denied everything")
            }
        }
    }
}

/// Numbers for what is compiled.
struct Compiling<'r> {
    matchers: Matchers,
    rules: &'r RuleIds,
    sets: ServiceSets,
}

impl Numbers for Compiling<'_> {
    fn matcher(&mut self, matcher: &EndMatch, direction: Direction) -> MatcherId {
        self.matchers.id(matcher, direction)
    }

    /// The names were numbered from the same policies. Should one be missing, it decides as no match.
    fn rule(&mut self, name: RuleName) -> RuleId {
        self.rules
            .get(&name)
            .copied()
            .unwrap_or(BuiltinRule::NoMatch.id())
    }

    fn service(&mut self, service: &ServiceMatch) -> KnownService {
        self.sets.of(service)
    }
}

/// All that the tables are written from.
struct Layout {
    local: BTreeSet<EndpointId>,
    rules: RuleIds,
    classes: Classes,
}

impl Layout {
    fn new(cluster: &Cluster, policies: &PolicySet) -> Self {
        let (local, rules, numbering, index) = lay_out(cluster, policies);
        Self {
            local,
            rules,
            classes: Classes::new(index.cells(), numbering),
        }
    }
}

/// Endpoints, the numbers of rules, the programs, and what finds signatures for them.
type Laid<'a> = (BTreeSet<EndpointId>, RuleIds, Numbering, Index<'a>);

fn lay_out<'a>(cluster: &'a Cluster, policies: &'a PolicySet) -> Laid<'a> {
    let local = local_endpoints(cluster, policies);
    let rules = rule_ids(local.values().map(|(_, policy)| policy));
    let mut numbers = Compiling {
        matchers: Matchers::new(cluster),
        rules: &rules,
        sets: ServiceSets::default(),
    };
    let mut programs = Vec::new();
    for (endpoint, (member, policy)) in &local {
        for direction in [Direction::Ingress, Direction::Egress] {
            let own = (*endpoint, *member);
            programs.push(Program::new(own, direction, policy, cluster, &mut numbers));
        }
    }
    let port_names = programs
        .iter()
        .flat_map(Program::port_names)
        .map(str::to_owned)
        .collect();
    let index = Index::new(&numbers.matchers, cluster, port_names);
    let sources = source_classes(cluster, &programs);
    let local = local.into_keys().collect();
    (local, rules, Numbering::new(programs, sources), index)
}

/// The tables of endpoints, each with its answers.
fn write_tables(local: &BTreeSet<EndpointId>, rules: RuleIds, classes: &Classes) -> NodeTables {
    let table = |endpoint: &EndpointId| classes.sources().get(endpoint).map(Sources::table);
    let mut endpoints: BTreeMap<EndpointId, EndpointTables> = local
        .iter()
        .map(|endpoint| {
            let tables = EndpointTables {
                sources: table(endpoint).unwrap_or_default(),
                ..EndpointTables::default()
            };
            (*endpoint, tables)
        })
        .collect();
    let mut shared = SharedVerdicts::default();
    for (endpoint, identity, answers) in classes.of_endpoints() {
        let said = shared.of(answers, |answer| classes.answer(answer));
        let insides = insides(answers, |answer| classes.answer(answer));
        let tables = endpoints.entry(endpoint).or_default();
        if !insides.is_default() {
            tables.insides.insert(identity, insides);
        }
        tables.verdicts.set_class(identity, said);
    }
    NodeTables {
        identities: classes.identities.clone(),
        endpoints: endpoints
            .into_iter()
            .map(|(id, tables)| (id, Arc::new(tables)))
            .collect(),
        rules: rules.into_keys().collect(),
    }
}

/// What addresses are at the own end, by the numbers of the answers for both directions, ingress first.
pub(crate) fn insides<'a>(answers: [usize; 2], said: impl Fn(usize) -> Option<&'a Answer>) -> Insides {
    let [ingress, egress] = answers.map(|answer| said(answer).map_or_else(Default::default, |a| a.inside));
    Insides { ingress, egress }
}

/// What endpoints say about classes of addresses, each distinct piece once.
#[derive(Default)]
pub(crate) struct SharedVerdicts {
    /// By the numbers of the answers for both directions.
    by_answers: HashMap<[usize; 2], Arc<ClassVerdicts>>,
}

impl SharedVerdicts {
    /// The piece that is made of the answers of these numbers, ingress first.
    pub(crate) fn of<'a>(
        &mut self,
        answers: [usize; 2],
        said: impl Fn(usize) -> Option<&'a Answer>,
    ) -> Arc<ClassVerdicts> {
        let made = || {
            let directions = [Direction::Ingress, Direction::Egress].into_iter().zip(answers);
            let said = directions.flat_map(|(direction, answer)| {
                let said = said(answer).into_iter().flat_map(|answer| &answer.entries);
                let each =
                    said.flat_map(|(inside, entries)| entries.iter().map(move |entry| (inside, entry)));
                each.map(move |(inside, (source, service, entry))| {
                    let key = ClassKey {
                        direction,
                        inside: *inside,
                        source: *source,
                        service: *service,
                    };
                    (key, *entry)
                })
            });
            Arc::new(said.collect())
        };
        Arc::clone(self.by_answers.entry(answers).or_insert_with(made))
    }

    pub(crate) fn len(&self) -> usize {
        self.by_answers.len()
    }
}

/// Classes of source ports for each endpoint.
fn source_classes(cluster: &Cluster, programs: &[Program]) -> BTreeMap<EndpointId, Sources> {
    let mut services: BTreeMap<EndpointId, Vec<&ServiceMatch>> = BTreeMap::new();
    for program in programs {
        services
            .entry(program.endpoint)
            .or_default()
            .extend(program.services());
    }
    let asks =
        |service: &&ServiceMatch| !service.source_ports.is_empty() || !service.not_source_ports.is_empty();
    let declared: BTreeSet<NamedPort> = match services.values().flatten().any(asks) {
        true => {
            let members = cluster.members.iter();
            members
                .flat_map(|member| member.workload.named_ports.iter().cloned())
                .collect()
        }
        false => BTreeSet::new(),
    };
    services
        .into_iter()
        .map(|(endpoint, services)| {
            let asking = services.into_iter().filter(asks);
            (endpoint, Sources::new(asking, &declared))
        })
        .collect()
}

/// Whether a rule asks for source ports by name: the classes of source ports then depend on what every workload
/// declares.
pub(crate) fn asks_source_names(program: &Program) -> bool {
    program.services().any(|service| {
        let mut ports = service.source_ports.iter().chain(&service.not_source_ports);
        ports.any(|port| matches!(port, PortMatch::Named(_)))
    })
}

/// Everything that has a number, and what it is judged by. A host endpoint is judged in up to three parts; one that no
/// policy applies to has nothing to say, and is left out.
fn judged<'a>(
    cluster: &'a Cluster,
    policies: &'a PolicySet,
) -> impl Iterator<Item = (EndpointId, &'a Member, EndpointPolicy<'a>)> {
    cluster.members.iter().flat_map(move |member| {
        let workload = &member.workload;
        let own = member
            .endpoint
            .map(|endpoint| (endpoint, policies.for_endpoint(workload)));
        let forwarded = member
            .forwarded
            .map(|endpoint| (endpoint, policies.for_forwarded(workload)));
        let untracked = member
            .untracked
            .map(|endpoint| (endpoint, policies.for_untracked(workload)));
        let parts = forwarded.into_iter().chain(untracked);
        own.into_iter()
            .chain(parts.filter(|(_, policy)| !policy.tiers.is_empty()))
            .map(move |(endpoint, policy)| (endpoint, member, policy))
    })
}

/// Endpoints with a number of their own. Those that share one are left out, which denies them everything.
fn local_endpoints<'a>(
    cluster: &'a Cluster,
    policies: &'a PolicySet,
) -> BTreeMap<EndpointId, (&'a Member, EndpointPolicy<'a>)> {
    let mut local: BTreeMap<EndpointId, Option<(&Member, EndpointPolicy<'_>)>> = BTreeMap::new();
    for (endpoint, member, policy) in judged(cluster, policies) {
        local
            .entry(endpoint)
            .and_modify(|taken| *taken = None)
            .or_insert(Some((member, policy)));
    }
    local
        .into_iter()
        .filter_map(|(endpoint, found)| Some((endpoint, found?)))
        .collect()
}

/// What in a cluster of these members contradicts itself.
pub(crate) fn conflicts<'m>(
    members: impl Iterator<Item = &'m Member>,
    host_addresses: &BTreeSet<IpAddr>,
) -> Vec<Diagnostic> {
    let mut claims: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
    let mut namespaces = BTreeSet::new();
    let mut endpoints: BTreeMap<EndpointId, usize> = BTreeMap::new();
    for member in members {
        let workload = &member.workload;
        for address in &member.addresses {
            let pod = format!("{}/{}", workload.namespace, workload.name);
            claims.entry(*address).or_default().push(pod);
        }
        if workload.namespace_labels.is_none() && workload.kind == WorkloadKind::Pod {
            namespaces.insert(workload.namespace.clone());
        }
        if let Some(endpoint) = member.endpoint {
            *endpoints.entry(endpoint).or_default() += 1;
        }
    }
    let mut found = Vec::new();
    for (address, mut pods) in claims {
        pods.sort_unstable();
        if host_addresses.contains(&address) {
            found.extend(
                pods.into_iter()
                    .map(|pod| Diagnostic::HostAddress { address, pod }),
            );
        } else if pods.len() > 1 {
            found.push(Diagnostic::ContestedAddress { address, pods });
        }
    }
    found.extend(namespaces.into_iter().map(Diagnostic::UnknownNamespace));
    let shared = endpoints.into_iter().filter(|(_, count)| *count > 1);
    found.extend(shared.map(|(endpoint, _)| Diagnostic::DuplicateEndpoint(endpoint)));
    found
}
