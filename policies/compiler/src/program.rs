//! The rules of one endpoint and direction as a list over numbered conditions and numbered names.

mod translated;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    ops::Range,
    sync::Arc,
};

use policies_ir::{
    cluster::{Cluster, Member, Translation},
    policy::{
        Action, DefaultAction, EndMatch, EndpointPolicy, EndpointToHost, Failsafe, IpVersion, Last,
        NamedPort, Passing, PortMatch, Profile, Rule, ServiceMatch, Workload, WorkloadKind,
    },
    tables::{
        BUILTIN_RULES, BuiltinRule, Direction, EndpointId, InsideClass, MAX_INSIDE_CLASSES, RuleId, RuleName,
        Verdict, VerdictEntry,
    },
};

use crate::{
    cells::{Declares, MatcherId, Owner, Signature, end_holds},
    flatten::{Entries, LastWord, Stage, StageRule, flatten},
    services::ServiceSet,
    sources::Sources,
};

/// Numbers of all rule names in use.
pub(crate) type RuleIds = BTreeMap<RuleName, RuleId>;

/// What an endpoint is judged by in one direction, in order.
pub(crate) struct Program {
    pub(crate) endpoint: EndpointId,
    pub(crate) direction: Direction,
    own: Own,
    to_host: EndpointToHost,
    /// Whether it leaves to others what it does not decide.
    leaves_open: bool,
    stages: Vec<ProgramStage>,
    /// The stages that are asked where nobody knows who is at the own end: that of the failsafe ports, if there are any.
    unasked: Range<usize>,
    /// What may be at the own end, if that may be anyone and rules ask who.
    insides: Option<Insides>,
}

/// What addresses may be at the own end of flows, each a class.
#[derive(Default)]
struct Insides {
    /// The class of each is its position, counted from one.
    known: Vec<Arc<Inside>>,
    classes: HashMap<Arc<Inside>, InsideClass>,
    /// For these there was no class left when they were looked at last.
    refused: HashSet<Inside>,
}

/// All that the rules of one program can see of an address at the own end.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Inside {
    family: IpVersion,
    /// Rules whose condition on the own end holds, counted over all stages.
    rules: Vec<usize>,
    /// Named ports there that the program asks for, with the conditions of its rules that select who has them.
    declares: Vec<Declares>,
}

/// What an endpoint says about addresses in one direction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Answer {
    /// What they are at the own end.
    pub inside: InsideClass,
    /// What holds of them at the other end, as it would stand in the verdicts of a table, for each class at the own end of
    /// which there is anything to say.
    pub entries: Vec<(InsideClass, Entries)>,
}

/// What verdicts depend on of the endpoint's own end of its flows.
struct Own {
    is_pod: bool,
    named_ports: Vec<NamedPort>,
    /// The number under which others find it.
    endpoint: Option<EndpointId>,
    /// Place of its node among all.
    node: Option<usize>,
}

/// The endpoint's own end, as conditions of rules see it.
struct OwnSides<'a> {
    workload: &'a Workload,
    /// Families in which the endpoint has an address, and what selectors find there beside itself.
    sides: Vec<(IpVersion, IpAddr, Vec<&'a Workload>)>,
}

struct ProgramStage {
    rules: Vec<ProgramRule>,
    default_action: DefaultAction,
    default_rule: RuleId,
}

#[derive(Clone)]
struct ProgramRule {
    peer: MatcherId,
    own: OwnEnd,
    service: Arc<ServiceMatch>,
    /// What the service holds, where it names no ports.
    sets: Option<Arc<Sets>>,
    action: Action,
    rule: RuleId,
}

/// What a rule asks of the endpoint's own end.
#[derive(Clone, Copy)]
enum OwnEnd {
    /// That is the endpoint itself.
    Itself {
        /// Families in which it fits.
        families: Families,
        /// Whether names of ports that the rule asks of it are those it declares.
        declares: bool,
    },
    /// That is whoever has the address: the number of the condition.
    Anyone(MatcherId),
}

/// Destination and source ports of a service.
pub(crate) struct Sets {
    services: ServiceSet,
    sources: ServiceSet,
}

/// Gives numbers to what programs speak about.
pub(crate) trait Numbers {
    /// Of a condition on the other end.
    fn matcher(&mut self, matcher: &EndMatch, direction: Direction) -> MatcherId;
    /// Of a rule or the end of a tier.
    fn rule(&mut self, name: RuleName) -> RuleId;
    /// The service, and what it holds; nothing if that depends on what its ends declare.
    fn service(&mut self, service: &ServiceMatch) -> KnownService;
}

/// A service, and what it holds, unless that depends on what its ends declare.
pub(crate) type KnownService = (Arc<ServiceMatch>, Option<Arc<Sets>>);

/// Remembers what services hold.
#[derive(Default)]
pub(crate) struct ServiceSets {
    seen: HashMap<Arc<ServiceMatch>, Option<Arc<Sets>>>,
}

/// Families of addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Families {
    v4: bool,
    v6: bool,
}

/// All of a signature that one program can see: programs answer alike where this is equal.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Visible {
    /// Rules both of whose ends match, counted over all stages.
    rules: Vec<usize>,
    /// Named ports of the other end, where the program asks for any.
    declares: Vec<Declares>,
    last_word: Option<LastWord>,
    /// What it is at the own end.
    inside: InsideClass,
    /// Of what is at the own end of flows with it, if the program asks who that is.
    family: Option<IpVersion>,
}

impl OwnEnd {
    /// Whatever is there.
    const ANY: Self = Self::Itself {
        families: Families { v4: true, v6: true },
        declares: true,
    };
    /// Nobody.
    const NONE: Self = Self::Itself {
        families: Families { v4: false, v6: false },
        declares: false,
    };
}

static ANY_END: EndMatch = EndMatch {
    ip_version: None,
    nets: Vec::new(),
    not_nets: Vec::new(),
    workload: None,
    not_workload: None,
    domains: Vec::new(),
};

static ANY_SERVICE: ServiceMatch = ServiceMatch {
    protocol: None,
    not_protocol: None,
    icmp: None,
    not_icmp: None,
    ports: Vec::new(),
    not_ports: Vec::new(),
    source_ports: Vec::new(),
    not_source_ports: Vec::new(),
};

/// Numbers the names of all rules and ends of tiers that `policies` can decide by.
pub(crate) fn rule_ids<'p, 'a: 'p>(policies: impl Iterator<Item = &'p EndpointPolicy<'a>>) -> RuleIds {
    let mut names = BTreeSet::new();
    for policy in policies {
        let passing = policy.passing.iter().flat_map(Passing::tiers);
        let tiers: Vec<_> = policy.tiers.iter().chain(passing).collect();
        for direction in [Direction::Ingress, Direction::Egress] {
            for tier in &tiers {
                names.extend(tier.end(direction));
                for policy in &tier.policies {
                    let rules = policy.rules(direction).unwrap_or_default();
                    names.extend(rules.iter().map(|rule| rule_name(tier.name, &policy.name, rule)));
                }
            }
            for profile in profiles(policy) {
                let rules = profile.rules(direction).unwrap_or_default();
                names.extend(
                    rules
                        .iter()
                        .map(|rule| rule_name(RuleName::PROFILE_TIER, &profile.name, rule)),
                );
            }
        }
    }
    names.into_iter().zip((BUILTIN_RULES..).map(RuleId)).collect()
}

impl Program {
    pub(crate) fn new<N: Numbers>(
        (endpoint, member): (EndpointId, &Member),
        direction: Direction,
        policy: &EndpointPolicy<'_>,
        cluster: &Cluster,
        numbers: &mut N,
    ) -> Self {
        let own = OwnSides::new(member, cluster);
        let asks_own = policy.asks_own(direction);
        let leaves_open = policy.last == Last::Undecided;
        let mut any_end = |service: &ServiceMatch, peer: &EndMatch, rule: BuiltinRule| {
            let (service, sets) = numbers.service(service);
            ProgramRule {
                peer: numbers.matcher(peer, direction),
                sets,
                own: match asks_own {
                    true => OwnEnd::Anyone(numbers.matcher(&ANY_END, Direction::Ingress)),
                    false => OwnEnd::ANY,
                },
                service,
                action: match rule {
                    BuiltinRule::NoMatch => Action::Deny,
                    _ => Action::Allow,
                },
                rule: rule.id(),
            }
        };
        let any = any_end(&ANY_SERVICE, &ANY_END, BuiltinRule::NoPolicy);
        let mut failsafes = Vec::new();
        if let Some(failsafe) = policy.failsafe {
            let open = failsafe.matches(direction).iter();
            let back = failsafe.matches(direction.opposite()).iter();
            let mut found: Vec<_> = open.map(|open| (&open.service, &open.peer)).collect();
            let rule = match leaves_open {
                true => {
                    found.extend(back.map(|open| (open.answers(), &open.peer)));
                    BuiltinRule::NoMatch
                }
                false => BuiltinRule::Failsafe,
            };
            let rules = found.into_iter();
            failsafes.extend(rules.map(|(service, peer)| any_end(service, peer, rule)));
        }
        // What the node translates is none of its own, and so not spared.
        let mut stages = match (&policy.passing, direction) {
            (Some(passing), Direction::Ingress) => translated::stages(passing, &own, cluster, numbers),
            _ => Vec::new(),
        };
        let unasked = stages.len()..stages.len() + usize::from(policy.failsafe.is_some());
        stages.push(ProgramStage::of_some(failsafes));
        let rules_of = |numbers: &mut N, rules: &[Rule], tier: &str, policy: &str| {
            // Log changes no verdict, and names are learned for destinations of what leaves.
            let counts = |rule: &&Rule| {
                rule.action != Action::Log && (direction == Direction::Egress || rule.peer.domains.is_empty())
            };
            let rules = rules.iter().filter(counts).map(|rule| {
                let (service, sets) = numbers.service(&rule.service);
                ProgramRule {
                    peer: numbers.matcher(&rule.peer, direction),
                    sets,
                    own: match asks_own {
                        // Nobody learns the names of the own end.
                        true if !rule.own.domains.is_empty() => OwnEnd::NONE,
                        // Nor do sets hold it by name, as they do where flows leave an endpoint.
                        true => OwnEnd::Anyone(numbers.matcher(&rule.own, Direction::Ingress)),
                        false => own.end(&rule.own),
                    },
                    service,
                    action: rule.action,
                    rule: numbers.rule(rule_name(tier, policy, rule)),
                }
            });
            rules.collect::<Vec<_>>()
        };
        for tier in &policy.tiers {
            let Some(end) = tier.end(direction) else { continue };
            let mut rules = Vec::new();
            for policy in &tier.policies {
                let own = policy.rules(direction).unwrap_or_default();
                rules.extend(rules_of(numbers, own, tier.name, &policy.name));
            }
            stages.push(ProgramStage {
                rules,
                default_action: tier.default_action,
                default_rule: numbers.rule(end),
            });
        }
        let mut last = Vec::new();
        for profile in profiles(policy) {
            match profile.rules(direction) {
                Some(own) => last.extend(rules_of(numbers, own, RuleName::PROFILE_TIER, &profile.name)),
                None => last.push(any.clone()),
            }
        }
        if policy.last == Last::Allow {
            last.push(any);
        }
        for rule in last.iter_mut().filter(|rule| rule.action == Action::Pass) {
            rule.action = Action::Deny;
        }
        stages.push(ProgramStage {
            rules: last,
            default_action: DefaultAction::Deny,
            default_rule: BuiltinRule::NoMatch.id(),
        });
        let mut rules = stages.iter().flat_map(|stage| &stage.rules);
        let is_anyone = asks_own || rules.any(|rule| matches!(rule.own, OwnEnd::Anyone(_)));
        Self {
            endpoint,
            direction,
            own: Own {
                is_pod: member.workload.kind == WorkloadKind::Pod,
                named_ports: member.workload.named_ports.clone(),
                endpoint: member.endpoint,
                node: cluster.nodes.keys().position(|name| *name == member.node),
            },
            to_host: policy.to_host,
            leaves_open,
            stages,
            unasked,
            insides: is_anyone.then(Insides::default),
        }
    }

    /// Gives classes to what addresses with these signatures are at the own end. Whether any is new: then what was
    /// answered before says too little.
    pub(crate) fn learn<'s>(&mut self, signatures: impl Iterator<Item = &'s Signature>) -> bool {
        if self.insides.is_none() {
            return false;
        }
        let found: Vec<Inside> = signatures.map(|signature| self.inside(signature)).collect();
        let Some(insides) = &mut self.insides else {
            return false;
        };
        let before = insides.known.len();
        insides.refused.clear();
        found.into_iter().for_each(|inside| insides.add(inside));
        insides.known.len() > before
    }

    /// Kinds of addresses at the own end that it tells apart; those for which no class was left are denied.
    pub(crate) fn inside_kinds(&self) -> usize {
        let insides = self.insides.as_ref();
        insides.map_or(0, |insides| insides.known.len() + insides.refused.len())
    }

    /// Gives numbers to the conditions that every program may have beside those of its rules.
    pub(crate) fn intern_builtins<N: Numbers>(numbers: &mut N, failsafe: &Failsafe) {
        for direction in [Direction::Ingress, Direction::Egress] {
            numbers.matcher(&ANY_END, direction);
            for open in failsafe.matches(direction) {
                numbers.matcher(&open.peer, direction);
            }
        }
    }

    /// The verdict about one packet between addresses with these signatures, and what decided it.
    pub(crate) fn judge(
        &self,
        own: &Signature,
        peer: &Signature,
        protocol: u8,
        (source_port, port): (u16, u16),
    ) -> (Verdict, RuleId) {
        if peer.owner == Owner::Contested {
            return (Verdict::Deny, BuiltinRule::NoMatch.id());
        }
        let is_unsure = self.insides.is_some() && own.owner == Owner::Contested;
        let inside = (self.insides.is_some() && !is_unsure).then(|| self.inside(own));
        let matches = |rule: &&ProgramRule| {
            rule.fits(peer)
                && match rule.own {
                    OwnEnd::Itself { families, .. } => families.has(peer.family),
                    OwnEnd::Anyone(matcher) => is_unsure || own.matchers.binary_search(&matcher).is_ok(),
                }
                && match &rule.sets {
                    Some(sets) => sets.contain(protocol, source_port, port),
                    None => {
                        self.sets(rule, &peer.declares, inside.as_ref())
                            .contain(protocol, source_port, port)
                    }
                }
        };
        let mut outcome = (Verdict::Deny, BuiltinRule::NoMatch.id());
        for stage in self.stages.get(self.stages(is_unsure)).unwrap_or_default() {
            let (action, rule) = match (stage.rules.iter().find(matches), stage.default_action) {
                (Some(hit), _) => (hit.action, hit.rule),
                (None, DefaultAction::Deny) => (Action::Deny, stage.default_rule),
                (None, DefaultAction::Pass) => continue,
            };
            match action {
                Action::Allow => outcome = (Verdict::Allow, rule),
                Action::Deny => outcome = (Verdict::Deny, rule),
                Action::Pass | Action::Log => continue,
            }
            break;
        }
        let (verdict, rule) = outcome;
        let entry = VerdictEntry { verdict, rule };
        let entry = match self.last_word(peer.owner).filter(|_| !is_unsure) {
            Some(word) => word.about(entry),
            None => entry,
        };
        (entry.verdict, entry.rule)
    }

    /// What is asked, which is not much where nobody knows who is at the own end.
    fn stages(&self, is_unsure: bool) -> Range<usize> {
        match is_unsure {
            true => self.unasked.clone(),
            false => 0..self.stages.len(),
        }
    }

    /// Names of ports that the program asks of whoever has an address.
    pub(crate) fn port_names(&self) -> impl Iterator<Item = &str> {
        let own = self.insides.iter().flat_map(|_| self.own_port_names());
        self.peer_port_names().chain(own)
    }

    /// Those that it asks of the other end.
    fn peer_port_names(&self) -> impl Iterator<Item = &str> {
        named(self.services().flat_map(|service| match self.direction {
            Direction::Ingress => service.source_ports.iter().chain(&service.not_source_ports),
            Direction::Egress => service.ports.iter().chain(&service.not_ports),
        }))
    }

    /// Those that it asks of the own end, where that may be anyone.
    fn own_port_names(&self) -> impl Iterator<Item = &str> {
        let anyone = |(_, rule): &(usize, &ProgramRule)| matches!(rule.own, OwnEnd::Anyone(_));
        let services = self.rules().filter(anyone).map(|(_, rule)| &*rule.service);
        named(services.flat_map(|service| match self.direction {
            Direction::Ingress => service.ports.iter().chain(&service.not_ports),
            Direction::Egress => service.source_ports.iter().chain(&service.not_source_ports),
        }))
    }

    /// The services of all rules.
    pub(crate) fn services(&self) -> impl Iterator<Item = &ServiceMatch> {
        self.stages
            .iter()
            .flat_map(|stage| &stage.rules)
            .map(|rule| &*rule.service)
    }

    /// What the program sees of a peer.
    pub(crate) fn visible(&self, peer: &Signature) -> Visible {
        let matching = self.rules().filter(|(_, rule)| {
            rule.fits(peer)
                && match rule.own {
                    OwnEnd::Itself { families, .. } => families.has(peer.family),
                    // Asked again of each that may be there.
                    OwnEnd::Anyone(_) => true,
                }
        });
        let asks = self.peer_port_names().next().is_some();
        let insides = self.insides.as_ref();
        Visible {
            rules: matching.map(|(i, _)| i).collect(),
            declares: if asks { peer.declares.clone() } else { Vec::new() },
            last_word: self.last_word(peer.owner),
            inside: insides.map_or(InsideClass::default(), |insides| {
                insides.class(&self.inside(peer))
            }),
            family: insides.map(|_| peer.family),
        }
    }

    /// What the program says about addresses.
    pub(crate) fn answer(&self, seen: &Visible, sources: &Sources) -> Answer {
        let entries = match &self.insides {
            None => vec![(InsideClass::default(), self.entries(seen, None, sources))],
            Some(insides) => {
                let known = insides.of_family(seen.family);
                let known = known.map(|(class, inside)| (class, Some(inside)));
                known
                    .chain([(InsideClass::default(), None)])
                    .map(|(class, inside)| (class, self.entries(seen, inside, sources)))
                    .collect()
            }
        };
        Answer {
            inside: seen.inside,
            entries: entries.into_iter().filter(|(_, said)| !said.is_empty()).collect(),
        }
    }

    /// Entries for a peer, of flows with this at the own end, or one that is unknown to those who ask; none if `sources` are
    /// too many for the kernel, which then gets none of the node's tables.
    fn entries(&self, peer: &Visible, inside: Option<&Inside>, sources: &Sources) -> Entries {
        if !sources.fit() {
            return Entries::new();
        }
        let is_unsure = self.insides.is_some() && inside.is_none();
        let asked = self.stages(is_unsure);
        let before = self.stages.get(..asked.start).unwrap_or_default();
        let mut number = before.iter().map(|stage| stage.rules.len()).sum();
        let stages = self.stages.get(asked).unwrap_or_default().iter().map(|stage| {
            let mut rules = Vec::new();
            for rule in &stage.rules {
                let fits_inside = match rule.own {
                    OwnEnd::Itself { .. } => true,
                    OwnEnd::Anyone(_) => inside.is_none_or(|inside| inside.fits(number)),
                };
                if fits_inside && peer.rules.binary_search(&number).is_ok() {
                    let sets = rule.sets.clone();
                    let sets = sets.unwrap_or_else(|| Arc::new(self.sets(rule, &peer.declares, inside)));
                    rules.push(StageRule {
                        sets,
                        action: rule.action,
                        rule: rule.rule,
                    });
                }
                number += 1;
            }
            Stage {
                rules,
                default_action: stage.default_action,
                default_rule: stage.default_rule,
            }
        });
        let last_word = peer.last_word.filter(|_| !is_unsure);
        flatten(&stages.collect::<Vec<_>>(), sources, last_word)
    }

    /// All rules, counted over all stages.
    fn rules(&self) -> impl Iterator<Item = (usize, &ProgramRule)> {
        self.stages.iter().flat_map(|stage| &stage.rules).enumerate()
    }

    /// What the rules see of addresses with this signature at the own end.
    fn inside(&self, signature: &Signature) -> Inside {
        let holds = |matcher: &MatcherId| signature.matchers.binary_search(matcher).is_ok();
        let asked = || {
            self.rules().filter_map(|(number, rule)| match rule.own {
                OwnEnd::Anyone(matcher) => Some((number, matcher)),
                OwnEnd::Itself { .. } => None,
            })
        };
        let names: BTreeSet<&str> = self.own_port_names().collect();
        let selectors: BTreeSet<MatcherId> = match names.is_empty() {
            true => BTreeSet::new(),
            false => asked().map(|(_, matcher)| matcher).collect(),
        };
        // Whatever other programs ask for would only tell apart what this one does not.
        let of_own = |declares: &Declares| Declares {
            ports: declares
                .ports
                .iter()
                .filter(|port| names.contains(port.name.as_str()))
                .cloned()
                .collect(),
            selected_by: declares
                .selected_by
                .iter()
                .filter(|matcher| selectors.contains(matcher))
                .copied()
                .collect(),
        };
        let declares: BTreeSet<Declares> = signature
            .declares
            .iter()
            .map(of_own)
            .filter(|declares| !declares.ports.is_empty())
            .collect();
        Inside {
            family: signature.family,
            rules: asked()
                .filter(|(_, matcher)| holds(matcher))
                .map(|(number, _)| number)
                .collect(),
            declares: declares.into_iter().collect(),
        }
    }

    /// What a rule's service holds when the other end declares these ports.
    fn sets(&self, rule: &ProgramRule, declares: &[Declares], inside: Option<&Inside>) -> Sets {
        let other = declared(declares, rule.peer);
        let own = match (rule.own, inside) {
            (OwnEnd::Itself { declares: true, .. }, _) => self.own.named_ports.clone(),
            (OwnEnd::Anyone(matcher), Some(inside)) => declared(&inside.declares, matcher),
            (OwnEnd::Itself { .. } | OwnEnd::Anyone(_), _) => Vec::new(),
        };
        let (source, destination) = match self.direction {
            Direction::Ingress => (&other[..], &own[..]),
            Direction::Egress => (&own[..], &other[..]),
        };
        Sets::of(&rule.service, source, destination)
    }

    fn last_word(&self, peer: Owner) -> Option<LastWord> {
        let pod = self.own.is_pod;
        let own_node = match peer {
            Owner::Node => true,
            Owner::NodeAt(position) => self.own.node == Some(position),
            Owner::Group | Owner::Contested | Owner::Endpoint(_) | Owner::Other => false,
        };
        let (instead_of, rule) = match (peer, self.direction) {
            (Owner::Endpoint(id), _) if Some(id) == self.own.endpoint => {
                (Verdict::Deny, BuiltinRule::SelfTraffic)
            }
            _ if own_node && !pod => (Verdict::Deny, BuiltinRule::SelfTraffic),
            (_, Direction::Ingress) if own_node => (Verdict::Deny, BuiltinRule::FromHost),
            (_, Direction::Egress)
                if (own_node || peer == Owner::Group) && self.to_host == EndpointToHost::Drop =>
            {
                (Verdict::Allow, BuiltinRule::ToHost)
            }
            _ => return None,
        };
        Some(LastWord {
            instead_of,
            rule,
            closes: !self.leaves_open,
        })
    }
}

impl ProgramStage {
    /// A stage of rules for some packets alone: all others go on.
    fn of_some(rules: Vec<ProgramRule>) -> Self {
        Self {
            rules,
            default_action: DefaultAction::Pass,
            default_rule: BuiltinRule::NoMatch.id(),
        }
    }
}

impl ProgramRule {
    /// Whether the condition on the other end holds.
    fn fits(&self, peer: &Signature) -> bool {
        peer.matchers.binary_search(&self.peer).is_ok()
    }
}

impl Insides {
    /// The default class if there are too many already.
    fn class(&self, inside: &Inside) -> InsideClass {
        self.classes.get(inside).copied().unwrap_or_default()
    }

    fn add(&mut self, inside: Inside) {
        if self.classes.contains_key(&inside) {
            return;
        }
        let number = self.known.len() + 1;
        match u16::try_from(number).ok().filter(|_| number < MAX_INSIDE_CLASSES) {
            Some(class) => {
                let inside = Arc::new(inside);
                self.known.push(Arc::clone(&inside));
                self.classes.insert(inside, InsideClass(class));
            }
            None => {
                self.refused.insert(inside);
            }
        }
    }

    fn of_family(&self, family: Option<IpVersion>) -> impl Iterator<Item = (InsideClass, &Inside)> {
        let numbered = (1..).map(InsideClass).zip(self.known.iter().map(AsRef::as_ref));
        numbered.filter(move |(_, inside)| Some(inside.family) == family)
    }
}

impl Inside {
    /// Whether the condition of this rule holds.
    fn fits(&self, rule: usize) -> bool {
        self.rules.binary_search(&rule).is_ok()
    }
}

impl Families {
    fn only(version: IpVersion) -> Self {
        Self {
            v4: version == IpVersion::V4,
            v6: version == IpVersion::V6,
        }
    }

    fn has(self, family: IpVersion) -> bool {
        match family {
            IpVersion::V4 => self.v4,
            IpVersion::V6 => self.v6,
        }
    }
}

impl Sets {
    fn of(service: &ServiceMatch, source: &[NamedPort], destination: &[NamedPort]) -> Self {
        Self {
            services: ServiceSet::of_destination(service, destination),
            sources: ServiceSet::of_source(service, source),
        }
    }

    /// Destination ports.
    pub(crate) fn services(&self) -> &ServiceSet {
        &self.services
    }

    /// Source ports.
    pub(crate) fn sources(&self) -> &ServiceSet {
        &self.sources
    }

    /// Whether a packet is in.
    pub(crate) fn contain(&self, protocol: u8, source_port: u16, port: u16) -> bool {
        self.services.contains(protocol, port) && self.sources.contains(protocol, source_port)
    }
}

impl ServiceSets {
    /// What `service` holds; nothing if that depends on what its ends declare.
    pub(crate) fn of(&mut self, service: &ServiceMatch) -> KnownService {
        if let Some((service, sets)) = self.seen.get_key_value(service) {
            return (Arc::clone(service), sets.clone());
        }
        let named = |ports: &[PortMatch]| ports.iter().any(|port| matches!(port, PortMatch::Named(_)));
        let lists = [
            &service.ports,
            &service.not_ports,
            &service.source_ports,
            &service.not_source_ports,
        ];
        let fixed = !lists.into_iter().any(|ports| named(ports));
        let sets = fixed.then(|| Arc::new(Sets::of(service, &[], &[])));
        let service = Arc::new(service.clone());
        self.seen.insert(Arc::clone(&service), sets.clone());
        (service, sets)
    }
}

impl<'a> OwnSides<'a> {
    fn new(member: &'a Member, cluster: &'a Cluster) -> Self {
        let first = |v4: bool| {
            member
                .addresses
                .iter()
                .copied()
                .find(|address| address.is_ipv4() == v4)
        };
        let addresses = [(IpVersion::V4, first(true)), (IpVersion::V6, first(false))];
        let sides = addresses.into_iter().filter_map(|(version, address)| {
            let address = address?;
            Some((version, address, known_at(&member.workload, address, cluster)))
        });
        Self {
            workload: &member.workload,
            sides: sides.collect(),
        }
    }

    /// Where a port of the node leads.
    fn behind(translation: &'a Translation, cluster: &'a Cluster) -> Self {
        let address = translation.address;
        let known = known_at(&translation.workload, address, cluster);
        Self {
            workload: &translation.workload,
            sides: vec![(version_of(address), address, known)],
        }
    }

    /// What a rule that wants this finds here.
    fn end(&self, wanted: &EndMatch) -> OwnEnd {
        let selected = wanted.workload.as_ref();
        OwnEnd::Itself {
            families: self.families(wanted),
            declares: selected.is_none_or(|m| m.matches(self.workload)),
        }
    }

    /// Families in which this end fits.
    fn families(&self, wanted: &EndMatch) -> Families {
        if !wanted.domains.is_empty() {
            // Nobody learns the names of the endpoint itself.
            return Families { v4: false, v6: false };
        }
        let fits = |version| match self.sides.iter().find(|(of, ..)| *of == version) {
            Some((_, address, known)) => end_holds(wanted, Some(*address), known),
            None => end_holds(wanted, None, &[self.workload]),
        };
        Families {
            v4: fits(IpVersion::V4),
            v6: fits(IpVersion::V6),
        }
    }
}

/// What selectors find at an address that the workload has.
fn known_at<'a>(workload: &'a Workload, address: IpAddr, cluster: &'a Cluster) -> Vec<&'a Workload> {
    let sets = cluster.sets.iter().filter(|set| set.holds(address));
    std::iter::once(workload)
        .chain(sets.map(|set| &set.workload))
        .collect()
}

fn version_of(address: IpAddr) -> IpVersion {
    match address {
        IpAddr::V4(_) => IpVersion::V4,
        IpAddr::V6(_) => IpVersion::V6,
    }
}

/// Ports of workloads that the positive selector of this condition finds.
fn declared(declares: &[Declares], matcher: MatcherId) -> Vec<NamedPort> {
    let selected = declares
        .iter()
        .filter(|declares| declares.selected_by.binary_search(&matcher).is_ok());
    selected.flat_map(|d| d.ports.iter().cloned()).collect()
}

fn named<'a>(ports: impl Iterator<Item = &'a PortMatch>) -> impl Iterator<Item = &'a str> {
    ports.filter_map(|port| match port {
        PortMatch::Named(name) => Some(name.as_str()),
        PortMatch::Range(..) => None,
    })
}

fn rule_name(tier: &str, policy: &str, rule: &Rule) -> RuleName {
    RuleName {
        tier: tier.to_owned(),
        policy: policy.to_owned(),
        rule: Some(rule.index),
    }
}

fn profiles<'a>(policy: &EndpointPolicy<'a>) -> Vec<&'a Profile> {
    match &policy.last {
        Last::Profiles(profiles) => profiles.clone(),
        Last::Allow | Last::Undecided => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_without_a_class_are_counted_and_of_the_default_one() {
        let kind = |rule: usize| Inside {
            family: IpVersion::V4,
            rules: vec![rule],
            declares: Vec::new(),
        };
        let mut insides = Insides::default();
        for rule in (0..1030).chain(0..1030) {
            insides.add(kind(rule));
        }
        assert_eq!((insides.known.len(), insides.refused.len()), (1023, 7));
        assert_eq!(insides.class(&kind(1022)), InsideClass(1023));
        assert_eq!(insides.class(&kind(1023)), InsideClass::default());
    }
}
