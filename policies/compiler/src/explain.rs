//! Which rule decides between two ends, and what was asked before it.

use std::{fmt, net::IpAddr, str::FromStr};

use api::flow::{DecidedBy, EndpointRef, FlowDirection, FlowVerdict, HostRef, PodRef};
use policies_ir::{
    cluster::{Cluster, Member},
    decide::{Mismatch, Step, decide},
    policy::{Action, DefaultAction, ICMP, ICMPV6, PolicySet, SCTP, TCP, UDP, WorkloadKind},
    tables::{self, BuiltinRule, Direction, Packet, Verdict},
};
use serde::Serialize;

use crate::{
    judge::{
        Book, FlowEnd, FlowError, Question,
        ends::{Resolved, addresses},
    },
    view::ClusterView,
};

/// Answer of [`explain`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Where the flow starts.
    pub from: End,
    /// Where it goes.
    pub to: End,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; 0 stands for one that no rule means.
    pub source_port: u16,
    /// Destination port.
    pub port: u16,
    /// Judgement where the flow leaves; absent if nothing judges there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Judgement>,
    /// Judgement where it arrives; absent if nothing judges there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Judgement>,
    /// Allowed only if every judgement allows.
    pub verdict: FlowVerdict,
}

/// One end, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// The pod or host endpoint, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<EndpointRef>,
    /// The address that was judged.
    pub address: IpAddr,
}

/// What the policies of one pod or host endpoint say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// The pod or host endpoint.
    pub pod: EndpointRef,
    /// Seen from there.
    pub direction: FlowDirection,
    /// Policies that apply to it in this direction, in order.
    pub policies: Vec<String>,
    /// What was asked, in order.
    pub tried: Vec<Tried>,
    /// The verdict.
    pub verdict: FlowVerdict,
    /// What decided, in the words of flow events.
    pub decided_by: DecidedBy,
}

/// Something that was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tried {
    /// What was asked.
    pub rule: String,
    /// Whether it matched.
    pub matched: bool,
    /// What it did, or why it did not match.
    pub outcome: String,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// Who is not there, or cannot be met.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// Neither end judges.
    #[error("neither end is a pod or a host endpoint, so no policy judges the flow")]
    NoEndpoint,
    /// Not the name of an end.
    #[error("{0:?} is neither NAMESPACE/POD, POD, host/NAME nor an IP address")]
    End(String),
    /// Not a protocol.
    #[error("{0:?} is neither TCP, UDP, SCTP, ICMP, ICMPv6 nor a number from 0 to 255")]
    Protocol(String),
}

/// Says what happens to a new flow.
pub fn explain(view: &ClusterView, asked: &Question) -> Result<Explanation, ExplainError> {
    let book = Book::new(view);
    let (cluster, ends) = (book.cluster(), book.ends());
    let (source, destination) = (ends.resolve(&asked.source)?, ends.resolve(&asked.destination)?);
    if [&source, &destination]
        .iter()
        .all(|end| end.member.is_none() && !end.is_contested)
    {
        return Err(ExplainError::NoEndpoint);
    }
    let (from, to) = addresses(&source, &destination, asked.protocol)?;
    let judge = |own: &Resolved, other: &Resolved, direction, (inside, peer)| {
        if own.is_contested {
            return nobody(cluster, inside, direction);
        }
        let packet = Packet {
            direction,
            peer,
            inside: Some(inside),
            protocol: asked.protocol,
            source_port: asked.source_port,
            port: asked.port,
        };
        let member = cluster.members.get(ends.judging(own, other)?)?;
        Some(judgement(cluster, book.policies(), member, &packet))
    };
    let egress = judge(&source, &destination, Direction::Egress, (from, to));
    let ingress = judge(&destination, &source, Direction::Ingress, (to, from));
    let denied = |judgement: &&Judgement| judgement.verdict == FlowVerdict::Deny;
    let denied = egress.iter().chain(&ingress).find(denied).is_some();
    let verdict = if denied {
        FlowVerdict::Deny
    } else {
        FlowVerdict::Allow
    };
    let end = |resolved: &Resolved, address| End {
        pod: resolved
            .member
            .and_then(|at| cluster.members.get(at))
            .map(endpoint_ref),
        address,
    };
    let (from, to) = (end(&source, from), end(&destination, to));
    Ok(Explanation {
        from,
        to,
        protocol: asked.protocol,
        source_port: asked.source_port,
        port: asked.port,
        egress,
        ingress,
        verdict,
    })
}

/// Number of a protocol given by name, in any case, or by number.
pub fn parse_protocol(text: &str) -> Result<u8, ExplainError> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(TCP),
        "udp" => Ok(UDP),
        "sctp" => Ok(SCTP),
        "icmp" => Ok(ICMP),
        "icmpv6" => Ok(ICMPV6),
        number => number
            .parse()
            .ok()
            .ok_or_else(|| ExplainError::Protocol(text.to_owned())),
    }
}

/// `NAMESPACE/POD`, `POD`, `host/NAME` or an address; `pod/NAMESPACE/POD` for pods of a namespace called `host`.
impl FromStr for FlowEnd {
    type Err = ExplainError;

    fn from_str(text: &str) -> Result<Self, ExplainError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(ExplainError::End(text.to_owned()));
        }
        let (namespace, name) = match parts[..] {
            ["host", name] => return Ok(Self::Host(name.to_owned())),
            ["pod", namespace, name] | [namespace, name] => (namespace, name),
            [name] => ("default", name),
            _ => return Err(ExplainError::End(text.to_owned())),
        };
        Ok(Self::Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = verdict_word(self.verdict);
        let service = service_text(self.protocol, self.port);
        let source = match self.source_port {
            0 => String::new(),
            port => format!(" from port {port}"),
        };
        writeln!(f, "{verdict}: {} to {}, {service}{source}", self.from, self.to)?;
        for judgement in self.egress.iter().chain(&self.ingress) {
            write!(f, "{judgement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "{pod} ({})", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            FlowDirection::Ingress => "ingress of",
            FlowDirection::Egress => "egress of",
        };
        let (verdict, rule) = (verdict_word(self.verdict), &self.decided_by.rule);
        writeln!(f, "  {direction} {}: {verdict} by {rule}", self.pod)?;
        for tried in &self.tried {
            writeln!(
                f,
                "    {} {}: {}",
                if tried.matched { '+' } else { '-' },
                tried.rule,
                tried.outcome
            )?;
        }
        Ok(())
    }
}

/// What is said at an address by which nobody is known, for the first by name of those that claim it.
fn nobody(cluster: &Cluster, address: IpAddr, direction: Direction) -> Option<Judgement> {
    let claims = cluster.members.iter();
    let claims = claims.filter(|member| member.addresses.contains(&address));
    let first = claims.min_by_key(|member| (&member.workload.namespace, &member.workload.name))?;
    Some(Judgement {
        pod: endpoint_ref(first),
        direction: flow_direction(direction),
        policies: Vec::new(),
        tried: vec![tried(&Step::Builtin(BuiltinRule::NoMatch))],
        verdict: FlowVerdict::Deny,
        decided_by: DecidedBy {
            rule: tables::DecidedBy::Builtin(BuiltinRule::NoMatch).to_string(),
            policy: None,
            tier: None,
            index: None,
        },
    })
}

fn judgement(cluster: &Cluster, policies: &PolicySet, member: &Member, packet: &Packet) -> Judgement {
    let policy = policies.for_endpoint(&member.workload);
    let decision = decide(&policy, &cluster.flow(member, packet));
    let applying = policy.tiers.iter().flat_map(|tier| &tier.policies);
    let applying = applying.filter(|policy| policy.rules(packet.direction).is_some());
    let (decider, tier, index) = match &decision.decided_by {
        tables::DecidedBy::Rule(name) => {
            let policy = Some(name.policy.clone()).filter(|policy| !policy.is_empty());
            (policy, Some(name.tier.clone()), name.rule)
        }
        tables::DecidedBy::Builtin(_) => (None, None, None),
    };
    Judgement {
        pod: endpoint_ref(member),
        direction: flow_direction(packet.direction),
        policies: applying.map(|policy| policy.name.clone()).collect(),
        tried: decision.steps.iter().map(tried).collect(),
        verdict: match decision.verdict {
            Verdict::Allow => FlowVerdict::Allow,
            Verdict::Deny => FlowVerdict::Deny,
        },
        decided_by: DecidedBy {
            rule: decision.decided_by.to_string(),
            policy: decider,
            tier,
            index,
        },
    }
}

fn flow_direction(direction: Direction) -> FlowDirection {
    match direction {
        Direction::Ingress => FlowDirection::Ingress,
        Direction::Egress => FlowDirection::Egress,
    }
}

fn endpoint_ref(member: &Member) -> EndpointRef {
    let workload = &member.workload;
    match workload.kind {
        WorkloadKind::HostEndpoint => HostRef {
            name: workload.name.clone(),
            node: member.node.clone(),
        }
        .into(),
        WorkloadKind::Pod | WorkloadKind::NetworkSet => PodRef {
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
        }
        .into(),
    }
}

fn tried(step: &Step) -> Tried {
    let (rule, matched, outcome) = match step {
        Step::Rule {
            name,
            action,
            mismatch: None,
        } => (name.to_string(), true, action_word(*action)),
        Step::Rule {
            name,
            mismatch: Some(mismatch),
            ..
        } => (name.to_string(), false, mismatch_text(*mismatch)),
        Step::EndOfTier {
            tier,
            action: DefaultAction::Deny,
        } => (format!("end of tier {tier}"), true, "denies"),
        Step::EndOfTier {
            tier,
            action: DefaultAction::Pass,
        } => (format!("end of tier {tier}"), true, "passes to the next tier"),
        Step::AllowAllProfile => (
            "profile of the namespace".to_owned(),
            true,
            "allows, as no policy decided",
        ),
        Step::Builtin(rule) => (rule.word().to_owned(), true, "has the last word"),
    };
    Tried {
        rule,
        matched,
        outcome: outcome.to_owned(),
    }
}

fn action_word(action: Action) -> &'static str {
    match action {
        Action::Allow => "allows",
        Action::Deny => "denies",
        Action::Pass => "passes to the next tier",
        Action::Log => "logs",
    }
}

fn mismatch_text(mismatch: Mismatch) -> &'static str {
    match mismatch {
        Mismatch::Protocol => "is for another protocol",
        Mismatch::Icmp => "is for another kind of ICMP message",
        Mismatch::Port => "is for other ports",
        Mismatch::Family => "is for the other address family",
        Mismatch::Address => "does not hold the other end's address",
        Mismatch::Workload => "does not select the other end",
        Mismatch::SourcePort => "is for other source ports",
        Mismatch::Domain => "is for other names",
        Mismatch::Own => "does not fit the end that judges",
    }
}

fn verdict_word(verdict: FlowVerdict) -> &'static str {
    match verdict {
        FlowVerdict::Allow => "allowed",
        FlowVerdict::Deny => "denied",
    }
}

fn service_text(protocol: u8, port: u16) -> String {
    match protocol {
        TCP => format!("TCP port {port}"),
        UDP => format!("UDP port {port}"),
        SCTP => format!("SCTP port {port}"),
        ICMP | ICMPV6 => {
            let [kind, code] = port.to_be_bytes();
            format!("ICMP type {kind} code {code}")
        }
        other => format!("IP protocol {other}"),
    }
}
