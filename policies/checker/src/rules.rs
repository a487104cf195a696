//! Rules: which there are, which were hit, and which can never decide anything.

use std::collections::{BTreeMap, BTreeSet};

use api::flow::{self, FlowDirection, FlowEvent};
use policies_ir::{
    policy::{Action, DefaultAction, EndpointToHost, Phase, Policy, PolicySet, ProfileRules, Rule, Tier},
    tables::{DecidedBy, Direction, RuleName},
};
use serde::Serialize;

use crate::{
    model::{End, Model, Spot},
    packet::Place,
    region,
};

/// A rule of an object: a rule of the ordered form, or several that share its number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleKey {
    /// Direction of the flows that it decides about.
    pub direction: RuleDirection,
    /// The rule, in the words of flow events.
    pub rule: String,
}

/// Direction of flows, seen from the workload that judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleDirection {
    /// To it.
    Ingress,
    /// From it.
    Egress,
}

/// A rule and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleUse {
    /// The rule.
    #[serde(flatten)]
    pub key: RuleKey,
    /// What it does.
    pub action: &'static str,
    /// Recorded flows that it decided, or of a rule that logs, those that it took note of.
    pub hits: u64,
    /// Whether it can decide at all.
    pub status: RuleStatus,
}

/// Whether a rule can decide about a flow between ends that exist.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RuleStatus {
    /// It can.
    Live,
    /// It can, before flows are known (`doNotTrack`), and allows: no flow is tracked, so no event names it, however much
    /// passes.
    Untracked,
    /// Rules before it decide everything that it matches: it is never the first that matches.
    Shadowed {
        /// Those rules.
        by: BTreeSet<String>,
    },
    /// It applies to workloads, but no flow between ends that exist matches it.
    MatchesNothing,
    /// Its policy applies to no workload.
    AppliesToNothing,
    /// It only takes note, and never decides.
    Logs,
    /// Likewise, before flows are known: of what is denied alone, since no event tells of what is allowed there.
    LogsDenied,
}

/// What decided recorded flows and is no rule of the policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherUse {
    /// What decided.
    #[serde(flatten)]
    pub key: RuleKey,
    /// Recorded flows that it decided or took note of.
    pub hits: u64,
    /// Why it is no rule of the policies.
    pub why: NoRule,
}

/// Why what decided is no rule of the policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NoRule {
    /// It is no rule of an object: a default action, or built in.
    BuiltIn,
    /// The policy that it belonged to is gone.
    PolicyGone,
    /// Its policy is still there and has no such rule any more.
    RuleGone,
}

/// Every rule of the policies in the order in which they are asked, and then everything else that decided recorded
/// flows.
pub fn rule_use(model: &Model, flows: &[FlowEvent]) -> (Vec<RuleUse>, Vec<OtherUse>) {
    let mut hits: BTreeMap<RuleKey, u64> = BTreeMap::new();
    let mut why: BTreeMap<RuleKey, NoRule> = BTreeMap::new();
    let policies = names(model.policies());
    for flow in flows {
        // Rules that log have matched before the decision.
        for by in std::iter::once(&flow.decided_by).chain(&flow.logged_by) {
            let key = RuleKey::of(flow.direction, by);
            why.entry(key.clone()).or_insert_with(|| match &by.policy {
                Some(policy) if !policies.contains(policy.as_str()) => NoRule::PolicyGone,
                // A default action names the policies that isolate after its own words.
                Some(policy) if by.rule.starts_with(policy.as_str()) => NoRule::RuleGone,
                _ => NoRule::BuiltIn,
            });
            *hits.entry(key).or_default() += 1;
        }
    }
    let deciding = model.deciding_rules();
    let uses = rules(model.policies())
        .into_iter()
        .map(|found| RuleUse {
            hits: hits.remove(&found.key).unwrap_or_default(),
            action: action_word(found.action),
            status: status(model, &deciding, &found),
            key: found.key,
        })
        .collect();
    let others = hits.into_iter().map(|(key, hits)| OtherUse {
        why: why.get(&key).copied().unwrap_or(NoRule::BuiltIn),
        key,
        hits,
    });
    (uses, others.collect())
}

/// Names of all policies and profiles.
fn names(policies: &PolicySet) -> BTreeSet<&str> {
    let in_tiers = policies.tiers.iter().flat_map(|tier| &tier.policies);
    let in_tiers = in_tiers.map(|policy| policy.name.as_str());
    let profiles = policies.profiles.values().map(|profile| profile.name.as_str());
    in_tiers.chain(profiles).collect()
}

/// Names of all rules of the policies that can decide, in the order in which they are asked: not those that only log or
/// pass on.
pub fn all_rules(policies: &PolicySet) -> Vec<RuleKey> {
    let decides = |found: &Found| matches!(found.action, Action::Allow | Action::Deny);
    rules(policies)
        .into_iter()
        .filter(decides)
        .map(|found| found.key)
        .collect()
}

impl RuleKey {
    /// A rule that was recorded for a flow in this direction.
    fn of(direction: FlowDirection, recorded: &flow::DecidedBy) -> Self {
        Self {
            direction: match direction {
                FlowDirection::Ingress => RuleDirection::Ingress,
                FlowDirection::Egress => RuleDirection::Egress,
            },
            rule: recorded.rule.clone(),
        }
    }
}

impl From<Direction> for RuleDirection {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::Ingress,
            Direction::Egress => Self::Egress,
        }
    }
}

impl RuleDirection {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A rule and where it stands.
struct Found {
    key: RuleKey,
    name: RuleName,
    direction: Direction,
    action: Action,
    holder: Holder,
}

impl Found {
    /// Whether it is asked before flows are known.
    fn is_untracked(&self, policies: &PolicySet) -> bool {
        let Holder::Policy { tier, policy } = &self.holder else {
            return false;
        };
        let tier = policies.tiers.get(*tier);
        let policy = tier.and_then(|tier| tier.policies.get(*policy));
        policy.is_some_and(|policy| policy.phase == Phase::Untracked)
    }
}

/// What holds a rule, by position or name.
#[derive(Clone)]
enum Holder {
    Policy { tier: usize, policy: usize },
    Profile(String),
}

fn rules(policies: &PolicySet) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    let mut add = |holder: &Holder, tier: &str, name: &str, direction: Direction, rules: &[Rule]| {
        for rule in rules {
            let name = RuleName {
                tier: tier.to_owned(),
                policy: name.to_owned(),
                rule: Some(rule.index),
            };
            let key = RuleKey {
                direction: direction.into(),
                rule: name.to_string(),
            };
            if found.last().is_none_or(|last| last.key != key) {
                found.push(Found {
                    key,
                    name,
                    direction,
                    action: rule.action,
                    holder: holder.clone(),
                });
            }
        }
    };
    let mut tiers: Vec<(usize, &Tier)> = policies.tiers.iter().enumerate().collect();
    tiers.sort_by(|(_, a), (_, b)| a.order.cmp(&b.order).then_with(|| a.name.cmp(&b.name)));
    for (tier_at, tier) in tiers {
        let mut in_tier: Vec<(usize, &Policy)> =
            tier.policies.iter().map(AsRef::as_ref).enumerate().collect();
        in_tier.sort_by(|(_, a), (_, b)| a.precedence().cmp(&b.precedence()));
        for (policy_at, policy) in in_tier {
            let holder = Holder::Policy {
                tier: tier_at,
                policy: policy_at,
            };
            for direction in [Direction::Ingress, Direction::Egress] {
                let rules = policy.rules(direction).unwrap_or_default();
                add(&holder, &tier.name, &policy.name, direction, rules);
            }
        }
    }
    for profile in policies.profiles.values() {
        if let ProfileRules::Own { ingress, egress } = &profile.rules {
            let holder = Holder::Profile(profile.name.clone());
            add(
                &holder,
                RuleName::PROFILE_TIER,
                &profile.name,
                Direction::Ingress,
                ingress,
            );
            add(
                &holder,
                RuleName::PROFILE_TIER,
                &profile.name,
                Direction::Egress,
                egress,
            );
        }
    }
    found
}

fn status(model: &Model, deciding: &BTreeSet<(Direction, DecidedBy)>, found: &Found) -> RuleStatus {
    let itself = (found.direction, DecidedBy::Rule(found.name.clone()));
    let is_untracked = found.is_untracked(model.policies());
    match found.action {
        Action::Log if is_untracked => return RuleStatus::LogsDenied,
        Action::Log => return RuleStatus::Logs,
        Action::Allow if is_untracked && deciding.contains(&itself) => return RuleStatus::Untracked,
        Action::Allow | Action::Deny if deciding.contains(&itself) => return RuleStatus::Live,
        // What passes on decides nothing itself. Were it to deny, it would decide exactly what it passes on.
        Action::Pass => {
            let denying = with_action(model.policies(), found, Action::Deny);
            let model = Model::with_names(model.cluster().clone(), denying, model.names().clone());
            if model.deciding_rules().contains(&itself) {
                return RuleStatus::Live;
            }
        }
        Action::Allow | Action::Deny => {}
    }
    let applies = match &found.holder {
        Holder::Policy { tier, policy } => {
            let policy = model
                .policies()
                .tiers
                .get(*tier)
                .and_then(|tier| tier.policies.get(*policy));
            let applies_to = policy.map(|policy| &policy.applies_to);
            let mut members = model.cluster().members.iter();
            members.any(|member| applies_to.is_some_and(|applies| applies.matches(&member.workload)))
        }
        Holder::Profile(name) => {
            let mut members = model.cluster().members.iter();
            members.any(|member| member.workload.profiles.contains(name))
        }
    };
    if !applies {
        return RuleStatus::AppliesToNothing;
    }
    match before(model, found) {
        Some(by) => RuleStatus::Shadowed { by },
        None => RuleStatus::MatchesNothing,
    }
}

/// What keeps the flows that a rule matches from it: what decides about them, or passes them on past its tier. Nothing if
/// it matches none.
fn before(model: &Model, found: &Found) -> Option<BTreeSet<String>> {
    let with = |policies| Model::with_names(model.cluster().clone(), policies, model.names().clone());
    let (asked, alone) = (
        with(without_passing(model.policies(), found)),
        with(alone(model.policies(), found)),
    );
    let mut matched = false;
    let mut deciders = BTreeSet::new();
    for class in 0..model.classes().len() {
        for peer in model.ends() {
            let own = End::Class(class);
            if !model.judges(own, peer) {
                continue;
            }
            for (own, other) in model.pairs(own, peer) {
                let Some((own, peer)) = example(model, own, other) else {
                    continue;
                };
                let version = region::version(peer.address);
                let Some(matching) = alone.judge_at(own, found.direction, peer) else {
                    continue;
                };
                let area = matching
                    .space(|entry| alone.decided_by(entry.rule) == DecidedBy::Rule(found.name.clone()))
                    .of_family(version);
                if area.is_empty() {
                    continue;
                }
                matched = true;
                let judge = asked.judge_at(own, found.direction, peer);
                let by = judge
                    .map(|judge| judge.deciders(&area, version))
                    .unwrap_or_default();
                deciders.extend(by.into_iter().map(|rule| asked.decided_by(rule).to_string()));
            }
        }
    }
    matched.then_some(deciders)
}

/// A workload of one end and a place of the other, which are not the same workload.
fn example(model: &Model, own: Spot, other: Spot) -> Option<(Place, Place)> {
    let Spot::Class { class, slot } = own else {
        return None;
    };
    let member = *model.classes().get(class)?.members.first()?;
    let alone = |address| Place {
        names: model.names_at(other),
        ..Place::new(None, address)
    };
    let (member, place) = match other {
        Spot::Outside { region, version } => {
            let region = model.outside().get(region)?;
            let strange = |member: &usize| Some((*member, model.stranger(*member, region, version)?));
            let members = &model.classes().get(class)?.members;
            let (member, address) = members.iter().find_map(strange)?;
            (member, alone(address))
        }
        Spot::OwnNode { slot, .. } => (member, alone(model.node_address(member, slot)?)),
        Spot::Class { class, slot } => {
            let members = &model.classes().get(class)?.members;
            let sibling = members.iter().find(|candidate| **candidate != member)?;
            let sibling = Place::new(Some(*sibling), model.address(*sibling, slot)?);
            (member, sibling)
        }
    };
    Some((Place::new(Some(member), model.address(member, slot)?), place))
}

/// The policies with another action of one rule.
fn with_action(policies: &PolicySet, found: &Found, action: Action) -> PolicySet {
    let mut policies = policies.clone();
    change(&mut policies, found, |rules| {
        for rule in rules
            .iter_mut()
            .filter(|rule| Some(rule.index) == found.name.rule)
        {
            rule.action = action;
        }
    });
    policies
}

/// The policies with rules of a rule's tier that deny what they pass on. Flows that the rule matches go no further than
/// that tier then, and what passes them on before they come to the rule has decided, by its name.
fn without_passing(policies: &PolicySet, found: &Found) -> PolicySet {
    let mut policies = policies.clone();
    let tier = match &found.holder {
        Holder::Policy { tier, .. } => policies.tiers.get_mut(*tier),
        // Nothing comes behind profiles.
        Holder::Profile(_) => None,
    };
    for policy in tier.into_iter().flat_map(|tier| &mut tier.policies) {
        let policy = std::sync::Arc::make_mut(policy);
        for rule in policy.ingress.iter_mut().chain(&mut policy.egress) {
            if rule.action == Action::Pass {
                rule.action = Action::Deny;
            }
        }
    }
    policies
}

/// One rule and nothing else; it allows what it matches.
fn alone(policies: &PolicySet, found: &Found) -> PolicySet {
    let mut alone = policies.clone();
    change(&mut alone, found, |rules| {
        rules.retain(|rule| Some(rule.index) == found.name.rule);
        for rule in rules {
            rule.action = Action::Allow;
        }
    });
    alone.failsafe = std::sync::Arc::default();
    alone.endpoint_to_host = EndpointToHost::Accept;
    match &found.holder {
        Holder::Policy { tier, policy } => {
            let holding = alone.tiers.get(*tier).map(|tier| Tier {
                name: tier.name.clone(),
                order: tier.order,
                default_action: DefaultAction::Deny,
                policies: tier.policies.get(*policy).cloned().into_iter().collect(),
            });
            alone.tiers = holding.into_iter().collect();
            alone.profiles.clear();
        }
        Holder::Profile(name) => {
            alone.tiers.clear();
            alone.profiles.retain(|profile, _| profile == name);
        }
    }
    alone
}

fn change(policies: &mut PolicySet, found: &Found, change: impl FnOnce(&mut Vec<Rule>)) {
    let rules =
        match &found.holder {
            Holder::Policy { tier, policy } => {
                let tier = policies.tiers.get_mut(*tier);
                let policy = tier.and_then(|tier| tier.policies.get_mut(*policy));
                policy.map(|policy| {
                    let policy = std::sync::Arc::make_mut(policy);
                    match found.direction {
                        Direction::Ingress => &mut policy.ingress,
                        Direction::Egress => &mut policy.egress,
                    }
                })
            }
            Holder::Profile(name) => policies.profiles.get_mut(name).and_then(|profile| {
                match (&mut profile.rules, found.direction) {
                    (ProfileRules::Own { ingress, .. }, Direction::Ingress) => Some(ingress),
                    (ProfileRules::Own { egress, .. }, Direction::Egress) => Some(egress),
                    (ProfileRules::AllowAll, _) => None,
                }
            }),
        };
    if let Some(rules) = rules {
        change(rules);
    }
}

fn action_word(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::Pass => "pass",
        Action::Log => "log",
    }
}
