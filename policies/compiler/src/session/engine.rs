//! Tables that follow members and policies.
//!
//! A change is first noted: which members have which addresses, which endpoints a policy selected or selects.
//! [`Engine::settle`] then makes new programs for those endpoints alone, asks the conditions that only they have, and
//! answers for each signature what these programs say. Addresses about which all programs said the same have one
//! identity; where the new programs tell them apart, some get a new one, and keep all other answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use policies_ir::{
    cluster::{Cluster, Member, Translation},
    policy::{EndMatch, EndpointPolicy, Policy, PolicySet, ServiceMatch, Tier, Workload, WorkloadKind},
    tables::{
        BUILTIN_RULES, BuiltinRule, Direction, EndpointId, MAX_INSIDE_CLASSES, NodeTables, RuleId, RuleName,
    },
};

use super::{StartAnew, places::Places, rows::Rows};
use crate::{
    capacity::{Capacities, Exceeded, What},
    cells::{MatcherId, Matchers},
    classes::without_redundant,
    compile::asks_source_names,
    program::{KnownService, Numbers, Program, ServiceSets, rule_ids},
    sources::Sources,
};

/// Kind, namespace and name.
pub(super) type MemberKey = (WorkloadKind, String, String);

/// Rule names that no table uses any more are kept until they are this many and more than half of all.
const UNUSED_NAMES_KEPT: usize = 4096;
/// What may pile up in an engine however little there was at its start.
const PILED_UP: usize = 4096;

pub(super) struct Engine {
    places: Places,
    policies: PolicySet,
    /// Policies by address: to know them again costs nothing.
    known: HashSet<ByAddress>,
    /// Members with an endpoint of this node.
    subjects: BTreeMap<MemberKey, Subject>,
    by_endpoint: BTreeMap<EndpointId, BTreeSet<(MemberKey, Part)>>,
    numbers: Numbering,
    rows: Rows,
    tables: NodeTables,
    /// Endpoints whose programs may have to be others.
    stale: BTreeSet<EndpointId>,
    /// Some program asks for source ports by name: the classes of source ports then depend on what every workload
    /// declares.
    asks_source_names: bool,
    size_at_start: usize,
    verdicts_at_start: usize,
}

/// What a member of this node is judged by.
struct Subject {
    member: Arc<Member>,
    /// The policies that select it, and what else decides.
    policies: PolicySet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Local,
    Forwarded,
    Untracked,
}

#[derive(Clone)]
struct ByAddress(Arc<Policy>);

/// Numbers of rules and services; those of conditions are with the places.
#[derive(Default)]
struct Numbering {
    rules: HashMap<RuleName, RuleId>,
    /// In the order of their numbers.
    names: Vec<RuleName>,
    services: ServiceSets,
}

/// Both, for a program.
struct Compiling<'a> {
    matchers: &'a mut Matchers,
    numbers: &'a mut Numbering,
}

impl Engine {
    /// Tables for these members and those of `ground`, and for `policies`, in the numbers of `previous` as far as that goes.
    pub(super) fn new(
        mut ground: Cluster,
        mut members: Vec<Arc<Member>>,
        policies: PolicySet,
        previous: &NodeTables,
    ) -> Self {
        members.extend(std::mem::take(&mut ground.members).into_iter().map(Arc::new));
        let mut engine = Self {
            places: Places::new(ground),
            known: all(&policies)
                .map(|policy| ByAddress(Arc::clone(policy)))
                .collect(),
            policies,
            subjects: BTreeMap::new(),
            by_endpoint: BTreeMap::new(),
            numbers: Numbering::default(),
            rows: Rows::default(),
            tables: NodeTables::default(),
            stale: BTreeSet::new(),
            asks_source_names: false,
            size_at_start: 0,
            verdicts_at_start: 0,
        };
        for member in &members {
            engine.places.claim(member);
            engine.follow(member);
        }
        engine.name_rules(previous);
        let programs = engine.programs();
        let of_programs = programs
            .iter()
            .flat_map(|(_, programs)| programs.iter().flatten());
        let of_programs: Vec<&Program> = of_programs.collect();
        engine
            .places
            .ask(of_programs.iter().flat_map(|program| program.port_names()));
        engine.places.place_all();
        let asks = of_programs.iter().any(|program| asks_source_names(program));
        drop(of_programs);
        engine.asks_source_names = asks;
        let declared = match asks {
            true => members
                .iter()
                .flat_map(|m| m.workload.named_ports.iter().cloned())
                .collect(),
            false => BTreeSet::new(),
        };
        for (endpoint, programs) in programs {
            engine.install(endpoint, programs, &declared);
        }
        let live = engine.places.live();
        engine.rows.learn(engine.places.signatures(), &live);
        let cells = engine.places.cells();
        engine
            .rows
            .number_all(engine.places.signatures(), &live, previous, cells);
        engine.write(&BTreeSet::new(), 0);
        let endpoints: Vec<EndpointId> = engine.rows.endpoints().collect();
        for endpoint in endpoints {
            engine.write_endpoint(endpoint);
        }
        engine.size_at_start = engine.size();
        engine.verdicts_at_start = engine.verdicts();
        engine
    }

    pub(super) fn tables(&self) -> &NodeTables {
        &self.tables
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    /// See [`super::Session::exceeds`].
    pub(super) fn exceeds(&self) -> Option<Exceeded> {
        let classes = MAX_INSIDE_CLASSES - 1;
        Exceeded::if_more(What::InsideClasses, self.rows.inside_kinds(), classes)
    }

    /// Whether so much has piled up that a fresh start is worth its time.
    pub(super) fn is_worn(&self) -> bool {
        self.is_full() || self.has_grown(2)
    }

    /// Whether so much has piled up that it must not wait.
    pub(super) fn is_full(&self) -> bool {
        // Every table keeps what it says about endpoints that are gone. A fresh start's tables are written beside those
        // of before, so these must not outgrow their half of the kernel's map.
        let fits = Capacities::KERNEL.verdicts.max(self.verdicts_at_start + PILED_UP);
        self.verdicts() > fits || self.has_grown(4)
    }

    fn has_grown(&self, times: usize) -> bool {
        self.size() > times * self.size_at_start + PILED_UP
            || self.verdicts() > times * self.verdicts_at_start + PILED_UP
    }

    /// A member that came, changed or went.
    pub(super) fn replace(
        &mut self,
        before: Option<&Arc<Member>>,
        now: Option<&Arc<Member>>,
    ) -> Result<(), StartAnew> {
        if self.asks_source_names {
            return Err(StartAnew("a rule asks for source ports by name"));
        }
        self.places.replace(before, now);
        if let Some(before) = before {
            self.unfollow(before);
        }
        if let Some(now) = now {
            self.follow(now);
        }
        Ok(())
    }

    /// From now on ports of the node lead to these.
    pub(super) fn translate(&mut self, translations: &[Translation]) {
        if !self.places.translate(translations) {
            return;
        }
        let members = self.subjects.values().map(|subject| &subject.member);
        let hosts = members.filter(|member| member.workload.kind == WorkloadKind::HostEndpoint);
        self.stale.extend(hosts.filter_map(|member| member.endpoint));
    }

    /// From now on addresses have these names.
    pub(super) fn rename(&mut self, names: &BTreeMap<IpAddr, BTreeSet<String>>) {
        self.places.rename(names);
    }

    /// From now on these policies are in force. Policies are told apart by where they are in memory, so that those
    /// which are still the same cost nothing.
    pub(super) fn set_policies(&mut self, policies: PolicySet) {
        let now: HashSet<ByAddress> = all(&policies)
            .map(|policy| ByAddress(Arc::clone(policy)))
            .collect();
        let added: Vec<&ByAddress> = now.difference(&self.known).collect();
        let heads = |set: &PolicySet| -> Vec<Tier> { set.tiers.iter().map(head).collect() };
        let others_differ = heads(&policies) != heads(&self.policies)
            || policies.profiles != self.policies.profiles
            || policies.failsafe != self.policies.failsafe
            || policies.endpoint_to_host != self.policies.endpoint_to_host;
        let removed = |policy: &Arc<Policy>| !now.contains(&ByAddress(Arc::clone(policy)));
        for subject in self.subjects.values_mut() {
            let workload = &subject.member.workload;
            let adds = added.iter().any(|policy| policy.0.applies_to.matches(workload));
            if !others_differ && !adds && !all(&subject.policies).any(removed) {
                continue;
            }
            let before: HashSet<ByAddress> = all(&subject.policies)
                .map(|policy| ByAddress(Arc::clone(policy)))
                .collect();
            let applies = |policy: &Arc<Policy>| {
                let policy = ByAddress(Arc::clone(policy));
                match self.known.contains(&policy) {
                    true => before.contains(&policy),
                    false => policy.0.applies_to.matches(workload),
                }
            };
            let own = selected(&policies, workload, applies);
            if !is_same(&own, &subject.policies) {
                subject.policies = own;
                self.stale
                    .extend(parts(&subject.member).map(|(endpoint, _)| endpoint));
            }
        }
        self.known = now;
        self.policies = policies;
    }

    /// Brings the tables up to date. Whether they changed. After an error they are of no use.
    pub(super) fn settle(&mut self) -> Result<bool, StartAnew> {
        let programs = self.programs();
        let new = || {
            programs
                .iter()
                .flat_map(|(_, programs)| programs.iter().flatten())
        };
        if new().any(asks_source_names) {
            return Err(StartAnew("a rule asks for source ports by name"));
        }
        let port_names: BTreeSet<String> = new().flat_map(Program::port_names).map(str::to_owned).collect();
        self.places.ask(port_names.iter().map(String::as_str));
        let known = self.rows.identities();
        self.rows.split_off(self.places.signatures().len(), |signature| {
            self.places.origin(signature)
        });
        let mut slots = Vec::new();
        let mut endpoints = BTreeSet::new();
        for (endpoint, programs) in programs {
            endpoints.insert(endpoint);
            slots.extend(self.install(endpoint, programs, &BTreeSet::new()));
        }
        let live = self.places.live();
        for (endpoint, slot) in self.rows.learn(self.places.signatures(), &live) {
            endpoints.insert(endpoint);
            slots.push(slot);
        }
        slots.sort_unstable();
        slots.dedup();
        let moved = self.rows.answer_anew(&slots, self.places.signatures(), &live);
        self.rows.number(self.places.signatures(), &live);
        if moved {
            self.places.move_everywhere();
        }
        Ok(self.write(&endpoints, known))
    }

    /// What is kept only because taking it away costs more.
    fn size(&self) -> usize {
        self.places.size() + self.rows.size() + self.numbers.names.len()
    }

    /// How many entries the tables have.
    fn verdicts(&self) -> usize {
        let of_each = self.tables.endpoints.values().map(|tables| tables.verdicts.len());
        of_each.sum()
    }

    fn follow(&mut self, member: &Arc<Member>) {
        if parts(member).next().is_none() {
            return;
        }
        let key = key(member);
        for (endpoint, part) in parts(member) {
            self.by_endpoint
                .entry(endpoint)
                .or_default()
                .insert((key.clone(), part));
            self.stale.insert(endpoint);
        }
        let workload = &member.workload;
        let policies = selected(&self.policies, workload, |policy| {
            policy.applies_to.matches(workload)
        });
        let subject = Subject {
            member: Arc::clone(member),
            policies,
        };
        self.subjects.insert(key, subject);
    }

    fn unfollow(&mut self, member: &Arc<Member>) {
        let key = key(member);
        for (endpoint, part) in parts(member) {
            if let Some(claimants) = self.by_endpoint.get_mut(&endpoint) {
                claimants.remove(&(key.clone(), part));
                if claimants.is_empty() {
                    self.by_endpoint.remove(&endpoint);
                }
            }
            self.stale.insert(endpoint);
        }
        self.subjects.remove(&key);
    }

    /// Gives the rules in use numbers, those of `previous` where they have one.
    fn name_rules(&mut self, previous: &NodeTables) {
        let judged: Vec<EndpointPolicy<'_>> = self
            .subjects
            .values()
            .flat_map(|subject| parts(&subject.member).map(|(_, part)| part.policy(subject)))
            .collect();
        let used = rule_ids(judged.iter());
        let unused = previous
            .rules
            .iter()
            .filter(|name| !used.contains_key(name))
            .count();
        let keep = unused <= UNUSED_NAMES_KEPT || unused <= used.len();
        let mut numbers = Numbering::default();
        for name in previous.rules.iter().filter(|_| keep).chain(used.keys()) {
            numbers.rule(name.clone());
        }
        drop(judged);
        self.numbers = numbers;
    }

    /// New programs for the endpoints that need some; nothing for one that is not to have any.
    fn programs(&mut self) -> Vec<(EndpointId, Option<[Program; 2]>)> {
        let stale = std::mem::take(&mut self.stale);
        let (ground, matchers) = self.places.parts();
        let mut numbers = Compiling {
            matchers,
            numbers: &mut self.numbers,
        };
        let mut programs = Vec::new();
        for endpoint in stale {
            let claimants = self.by_endpoint.get(&endpoint).into_iter().flatten();
            let mut judged = claimants.filter_map(|(key, part)| {
                let subject = self.subjects.get(key)?;
                let policy = part.policy(subject);
                let counts = *part == Part::Local || !policy.tiers.is_empty();
                counts.then_some((subject, policy))
            });
            // Those that share a number are left out, which denies them everything.
            let only = judged.next().filter(|_| judged.next().is_none());
            let made = only.map(|(subject, policy)| {
                [Direction::Ingress, Direction::Egress].map(|direction| {
                    let own = (endpoint, &*subject.member);
                    Program::new(own, direction, &policy, ground, &mut numbers)
                })
            });
            programs.push((endpoint, made));
        }
        programs
    }

    /// Puts the programs in place. Which slots they took, or left.
    fn install(
        &mut self,
        endpoint: EndpointId,
        programs: Option<[Program; 2]>,
        declared: &BTreeSet<policies_ir::policy::NamedPort>,
    ) -> Vec<usize> {
        let Some(programs) = programs else {
            return self.rows.remove(endpoint);
        };
        let asks = |service: &&ServiceMatch| {
            !service.source_ports.is_empty() || !service.not_source_ports.is_empty()
        };
        let services = programs.iter().flat_map(Program::services).filter(asks);
        let sources = Sources::new(services, declared);
        self.rows.install(endpoint, programs, sources)
    }

    /// Writes the tables: of `endpoints` anew, of all others what is said about identities from the `known`th on.
    /// Whether anything is another than before.
    fn write(&mut self, endpoints: &BTreeSet<EndpointId>, known: usize) -> bool {
        let mut changed = false;
        for endpoint in endpoints {
            changed |= self.write_endpoint(*endpoint);
        }
        if known > 0 {
            for identity in known..self.rows.identities() {
                let number = self.rows.outer(identity);
                for (endpoint, said, insides) in self.rows.said(identity) {
                    if (said.is_empty() && insides.is_default()) || endpoints.contains(&endpoint) {
                        continue;
                    }
                    let tables = Arc::make_mut(self.tables.endpoints.entry(endpoint).or_default());
                    tables.verdicts.set_class(number, said);
                    if !insides.is_default() {
                        tables.insides.insert(number, insides);
                    }
                    changed = true;
                }
            }
        }
        if self.tables.rules.len() != self.numbers.names.len() {
            let new = self.numbers.names.iter().skip(self.tables.rules.len());
            self.tables.rules.extend(new.cloned());
            changed = true;
        }
        for prefix in self.places.take_moved() {
            changed |= self.write_identities(prefix);
        }
        changed
    }

    /// Of the addresses in `prefix`. Whether some have another identity than before.
    fn write_identities(&mut self, prefix: IpNet) -> bool {
        let numbered = |(cell, signature)| Some((cell, self.rows.of(signature)?));
        let around = self.places.around(prefix).and_then(numbered);
        let cells = self.places.cells_in(prefix).filter_map(numbered);
        // What is around comes first, and is never redundant.
        let now = without_redundant(around.into_iter().chain(cells)).skip(around.iter().len());
        let before = self.tables.identities.range(prefix..);
        let mut before = before.take_while(|(cell, _)| prefix.contains(*cell)).peekable();
        let (mut gone, mut others) = (Vec::new(), Vec::new());
        for (cell, number) in now {
            while let Some((earlier, _)) = before.next_if(|(known, _)| **known < cell) {
                gone.push(*earlier);
            }
            let known = before.next_if(|(known, _)| **known == cell);
            if known.is_none_or(|(_, known)| *known != number) {
                others.push((cell, number));
            }
        }
        gone.extend(before.map(|(cell, _)| *cell));
        let changed = !gone.is_empty() || !others.is_empty();
        for cell in gone {
            self.tables.identities.remove(&cell);
        }
        self.tables.identities.extend(others);
        changed
    }

    /// Whether they changed.
    fn write_endpoint(&mut self, endpoint: EndpointId) -> bool {
        match self.rows.table(endpoint) {
            None => self.tables.endpoints.remove(&endpoint).is_some(),
            Some(tables) => {
                let before = self.tables.endpoints.get(&endpoint);
                if before.is_some_and(|before| **before == tables) {
                    return false;
                }
                self.tables.endpoints.insert(endpoint, Arc::new(tables));
                true
            }
        }
    }
}

impl Part {
    fn policy<'a>(self, subject: &'a Subject) -> EndpointPolicy<'a> {
        let workload = &subject.member.workload;
        match self {
            Self::Local => subject.policies.for_endpoint(workload),
            Self::Forwarded => subject.policies.for_forwarded(workload),
            Self::Untracked => subject.policies.for_untracked(workload),
        }
    }
}

impl Numbering {
    fn rule(&mut self, name: RuleName) -> RuleId {
        if let Some(known) = self.rules.get(&name) {
            return *known;
        }
        let number = u32::try_from(self.names.len())
            .ok()
            .and_then(|n| n.checked_add(BUILTIN_RULES));
        // More names than numbers: such a rule is not told by its name. Its verdict stands.
        let Some(number) = number else {
            return BuiltinRule::NoMatch.id();
        };
        self.names.push(name.clone());
        self.rules.insert(name, RuleId(number));
        RuleId(number)
    }
}

impl Numbers for Compiling<'_> {
    fn matcher(&mut self, matcher: &EndMatch, direction: Direction) -> MatcherId {
        self.matchers.id(matcher, direction)
    }

    fn rule(&mut self, name: RuleName) -> RuleId {
        self.numbers.rule(name)
    }

    fn service(&mut self, service: &ServiceMatch) -> KnownService {
        self.numbers.services.of(service)
    }
}

impl PartialEq for ByAddress {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ByAddress {}

impl Hash for ByAddress {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

pub(super) fn key(member: &Member) -> MemberKey {
    let workload = &member.workload;
    (workload.kind, workload.namespace.clone(), workload.name.clone())
}

fn parts(member: &Member) -> impl Iterator<Item = (EndpointId, Part)> {
    let parts = [
        (member.endpoint, Part::Local),
        (member.forwarded, Part::Forwarded),
        (member.untracked, Part::Untracked),
    ];
    parts
        .into_iter()
        .filter_map(|(endpoint, part)| Some((endpoint?, part)))
}

fn all(policies: &PolicySet) -> impl Iterator<Item = &Arc<Policy>> {
    policies.tiers.iter().flat_map(|tier| &tier.policies)
}

/// A tier without its policies.
fn head(tier: &Tier) -> Tier {
    Tier {
        name: tier.name.clone(),
        policies: Vec::new(),
        ..*tier
    }
}

/// The part of `policies` that decides about `workload`.
fn selected(policies: &PolicySet, workload: &Workload, applies: impl Fn(&Arc<Policy>) -> bool) -> PolicySet {
    let tiers = policies.tiers.iter().map(|tier| Tier {
        policies: tier
            .policies
            .iter()
            .filter(|policy| applies(policy))
            .cloned()
            .collect(),
        ..head(tier)
    });
    let profiles = workload.profiles.iter();
    let profiles = profiles.filter_map(|name| Some((name.clone(), policies.profiles.get(name)?.clone())));
    PolicySet {
        tiers: tiers.filter(|tier| !tier.policies.is_empty()).collect(),
        profiles: profiles.collect(),
        failsafe: Arc::clone(&policies.failsafe),
        endpoint_to_host: policies.endpoint_to_host,
    }
}

/// Whether both are of the same policies, which is quickly told.
fn is_same(a: &PolicySet, b: &PolicySet) -> bool {
    let policies = || all(a).zip(all(b)).all(|(a, b)| Arc::ptr_eq(a, b));
    let heads = |set: &PolicySet| -> Vec<(Tier, usize)> {
        set.tiers
            .iter()
            .map(|tier| (head(tier), tier.policies.len()))
            .collect()
    };
    heads(a) == heads(b)
        && policies()
        && a.profiles == b.profiles
        && a.failsafe == b.failsafe
        && a.endpoint_to_host == b.endpoint_to_host
}
