//! Which flows to show.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use api::flow::{DecidedBy, EndpointRef, FlowDirection, FlowEvent, FlowKind, FlowVerdict, PodRef};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use policies_compiler::{FlowEnd, parse_protocol};

/// Conditions on flows; all that are given must hold.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct FlowFilter {
    /// Only flows of this pod, as namespace/name, at either end
    #[arg(long, value_name = "NS/NAME")]
    pub(crate) pod: Option<String>,
    /// Only flows of this namespace, at either end
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Only flows of this host endpoint, or of the host endpoints of this node, at either end
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Option<String>,
    /// Only flows whose other end is this pod, this host endpoint or node, or has such an address
    #[arg(long, value_name = "NS/NAME|host/NAME|IP|CIDR", value_parser = peer)]
    pub(crate) peer: Option<Peer>,
    /// Only this verdict
    #[arg(long)]
    pub(crate) verdict: Option<VerdictFilter>,
    /// Only what this policy decided, as namespace/name, name or kind and name
    #[arg(long)]
    pub(crate) policy: Option<String>,
    /// Only what this rule decided: its number in its policy, or a word such as no-policy
    #[arg(long, value_name = "NUMBER|WORD")]
    pub(crate) rule: Option<String>,
    /// Only what a policy of this tier decided
    #[arg(long)]
    pub(crate) tier: Option<String>,
    /// Only this protocol
    #[arg(long, value_name = "NAME|NUMBER", value_parser = protocol)]
    pub(crate) protocol: Option<u8>,
    /// Only this destination port
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Only this direction, seen from the pod or host endpoint that judges
    #[arg(long)]
    pub(crate) direction: Option<DirectionFilter>,
    /// Only events of this kind
    #[arg(long)]
    pub(crate) kind: Option<KindFilter>,
    /// Only flows that would fare otherwise if the staged policies were enforced
    #[arg(long)]
    pub(crate) staged_differs: bool,
    /// Only flows that a Log rule matched
    #[arg(long)]
    pub(crate) logged: bool,
}

/// The other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    /// By name.
    Pod(PodRef),
    /// By the name of the host endpoint, or of its node.
    Host(String),
    /// One address or many.
    Net(IpNet),
}

/// Verdicts to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VerdictFilter {
    /// Passed on
    Allow,
    /// Dropped
    Deny,
}

/// Directions to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DirectionFilter {
    /// To the end that judges
    Ingress,
    /// From the end that judges
    Egress,
}

/// Kinds to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KindFilter {
    /// Flows that were allowed and opened
    Start,
    /// Packets that were denied
    Denied,
    /// Totals of flows that live
    Update,
    /// Totals of flows that ended
    End,
}

impl FlowFilter {
    /// Whether every flow passes.
    pub(crate) fn is_empty(&self) -> bool {
        let Self {
            pod,
            namespace,
            host,
            peer,
            verdict,
            policy,
            rule,
            tier,
            protocol,
            port,
            direction,
            kind,
            staged_differs,
            logged,
        } = self;
        let texts = [pod, namespace, host, policy, rule, tier];
        texts.into_iter().all(Option::is_none)
            && peer.is_none()
            && verdict.is_none()
            && protocol.is_none()
            && port.is_none()
            && direction.is_none()
            && kind.is_none()
            && !staged_differs
            && !logged
    }

    /// Whether the event is wanted.
    pub(crate) fn matches(&self, event: &FlowEvent) -> bool {
        let ends = || std::iter::once(&event.pod).chain(&event.peer);
        let either = |wanted: &Option<String>, is: fn(&EndpointRef, &str) -> bool| {
            wanted
                .as_ref()
                .is_none_or(|wanted| ends().any(|end| is(end, wanted)))
        };
        // The same verdict by another rule is told too.
        let staged_differs = || {
            let staged = event.staged.as_ref();
            staged.is_some_and(|staged| staged.verdict != event.verdict)
        };
        let verdict = self.verdict.is_none_or(|verdict| match verdict {
            VerdictFilter::Allow => event.verdict == FlowVerdict::Allow,
            VerdictFilter::Deny => event.verdict == FlowVerdict::Deny,
        });
        let direction = self.direction.is_none_or(|direction| match direction {
            DirectionFilter::Ingress => event.direction == FlowDirection::Ingress,
            DirectionFilter::Egress => event.direction == FlowDirection::Egress,
        });
        let kind = self.kind.is_none_or(|kind| {
            event.kind
                == match kind {
                    KindFilter::Start => FlowKind::Start,
                    KindFilter::Denied => FlowKind::Denied,
                    KindFilter::Update => FlowKind::Update,
                    KindFilter::End => FlowKind::End,
                }
        });
        let decided = &event.decided_by;
        either(&self.pod, |end, name| {
            end.pod().is_some_and(|pod| pod.to_string() == name)
        }) && either(&self.namespace, |end, name| {
            end.pod().is_some_and(|pod| pod.namespace == name)
        }) && either(&self.host, is_host)
            && self.peer.as_ref().is_none_or(|peer| peer.matches(event))
            && verdict
            && self
                .policy
                .as_ref()
                .is_none_or(|policy| names_policy(decided, policy))
            && self.rule.as_ref().is_none_or(|rule| names_rule(decided, rule))
            && self
                .tier
                .as_ref()
                .is_none_or(|tier| decided.tier.as_ref() == Some(tier))
            && self.protocol.is_none_or(|protocol| protocol == event.protocol)
            && self.port.is_none_or(|port| port == event.destination_port)
            && direction
            && kind
            && (!self.staged_differs || staged_differs())
            && (!self.logged || !event.logged_by.is_empty())
    }
}

impl Peer {
    fn matches(&self, event: &FlowEvent) -> bool {
        let address: IpAddr = match event.direction {
            FlowDirection::Ingress => event.source,
            FlowDirection::Egress => event.destination,
        };
        match self {
            Self::Pod(pod) => event.peer.as_ref().and_then(EndpointRef::pod) == Some(pod),
            Self::Host(name) => event.peer.as_ref().is_some_and(|peer| is_host(peer, name)),
            Self::Net(net) => net.contains(&address),
        }
    }
}

/// A host endpoint by its name, or by that of its node.
fn is_host(end: &EndpointRef, name: &str) -> bool {
    end.host()
        .is_some_and(|host| host.name == name || host.node == name)
}

/// `Kind namespace/name` by all of it, by `namespace/name` or by a name alone.
fn names_policy(decided: &DecidedBy, wanted: &str) -> bool {
    let Some(policy) = &decided.policy else {
        return false;
    };
    let shown = policy
        .split_once(' ')
        .map_or(policy.as_str(), |(_kind, name)| name);
    let bare = shown.split_once('/').map_or(shown, |(_namespace, name)| name);
    [policy, shown, bare].contains(&wanted)
}

fn names_rule(decided: &DecidedBy, wanted: &str) -> bool {
    match wanted.parse::<u32>() {
        Ok(index) => decided.index == Some(index),
        Err(_) => decided.rule == wanted,
    }
}

/// Reads `--since`.
pub(crate) fn since(text: &str) -> Result<Timestamp> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago: SignedDuration = text.parse().with_context(|| {
        format!("{text:?} is neither a time such as 2026-01-02T03:04:05Z nor a duration such as 10m")
    })?;
    Timestamp::now()
        .checked_sub(ago)
        .with_context(|| format!("{text:?} is too long ago"))
}

fn peer(text: &str) -> Result<Peer> {
    if let Ok(net) = text.parse() {
        return Ok(Peer::Net(net));
    }
    Ok(match text.parse()? {
        FlowEnd::Address(address) => Peer::Net(address.into()),
        FlowEnd::Pod { namespace, name } => Peer::Pod(PodRef { namespace, name }),
        FlowEnd::Host(name) => Peer::Host(name),
    })
}

fn protocol(text: &str) -> Result<u8> {
    Ok(parse_protocol(text)?)
}

#[cfg(test)]
mod tests {
    use api::flow::StagedVerdict;
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        filter: FlowFilter,
    }

    fn event() -> FlowEvent {
        serde_json::from_value(json!({
            "time": "2026-01-02T03:04:05Z", "node": "n", "kind": "denied",
            "pod": {"namespace": "shop", "name": "web"}, "peer": {"namespace": "yard", "name": "cart"},
            "direction": "ingress", "verdict": "deny",
            "decidedBy": {
                "rule": "GlobalNetworkPolicy fence.edge rule 2", "policy": "GlobalNetworkPolicy fence.edge",
                "tier": "fence", "index": 2,
            },
            "source": "10.0.0.9", "destination": "10.0.0.2", "protocol": 6, "sourcePort": 1,
            "destinationPort": 80, "epoch": 3,
            "loggedBy": [{"rule": "NetworkPolicy shop/log rule 0"}],
        }))
        .unwrap()
    }

    fn passes(arguments: &[&str]) -> bool {
        lets_through(arguments, &event())
    }

    fn lets_through(arguments: &[&str], event: &FlowEvent) -> bool {
        let line = std::iter::once("flows").chain(arguments.iter().copied());
        let filter = Line::try_parse_from(line).unwrap().filter;
        assert_eq!(filter.is_empty(), arguments.is_empty());
        filter.matches(event)
    }

    #[test]
    fn host_endpoints_are_found_at_either_end() {
        let host = |name: &str, node: &str| -> EndpointRef {
            serde_json::from_value(json!({"hostEndpoint": name, "node": node})).unwrap()
        };
        let (mut own, mut other) = (event(), event());
        own.pod = host("wire", "n1");
        other.peer = Some(host("wire", "n1"));
        for name in ["wire", "n1"] {
            assert!(lets_through(&["--host", name], &own) && lets_through(&["--host", name], &other));
            let peer = format!("host/{name}");
            assert!(lets_through(&["--peer", &peer], &other) && !lets_through(&["--peer", &peer], &own));
        }
        assert!(!lets_through(&["--host", "n2"], &own) && !passes(&["--host", "wire"]));
        assert!(
            lets_through(&["--namespace", "yard"], &own),
            "the other end is a pod"
        );
        assert!(!lets_through(&["--pod", "shop/web"], &own) && lets_through(&["--pod", "shop/web"], &other));
        // A pod of a namespace with this name is no host.
        let mut pod = event();
        pod.peer = Some(
            PodRef {
                namespace: "host".to_owned(),
                name: "wire".to_owned(),
            }
            .into(),
        );
        assert!(lets_through(&["--peer", "pod/host/wire"], &pod));
        assert!(!lets_through(&["--peer", "host/wire"], &pod));
    }

    #[test]
    fn every_condition_holds_or_does_not() {
        assert!(passes(&[]));
        for (flag, holds, fails) in [
            ("--pod", &["shop/web", "yard/cart"][..], &["shop/cart"][..]),
            ("--namespace", &["shop", "yard"], &["default"]),
            (
                "--peer",
                &["yard/cart", "10.0.0.9", "10.0.0.0/24"],
                &["shop/web", "10.0.0.2"],
            ),
            ("--verdict", &["deny"], &["allow"]),
            (
                "--policy",
                &["fence.edge", "GlobalNetworkPolicy fence.edge"],
                &["shop/fence.edge", "edge"],
            ),
            (
                "--rule",
                &["2", "GlobalNetworkPolicy fence.edge rule 2"],
                &["1", "no-policy"],
            ),
            ("--tier", &["fence"], &["default"]),
            ("--protocol", &["TCP", "6"], &["udp"]),
            ("--port", &["80"], &["81"]),
            ("--direction", &["ingress"], &["egress"]),
            ("--kind", &["denied"], &["start", "update", "end"]),
        ] {
            for value in holds {
                assert!(passes(&[flag, value]), "{flag} {value}");
            }
            for value in fails {
                assert!(!passes(&[flag, value]), "{flag} {value}");
            }
        }
        assert!(passes(&["--logged"]));
        assert!(!passes(&["--staged-differs"]));
        let filter = Line::try_parse_from(["flows", "--staged-differs"])
            .unwrap()
            .filter;
        for (verdict, passes) in [(FlowVerdict::Deny, false), (FlowVerdict::Allow, true)] {
            let mut event = event();
            event.staged = Some(StagedVerdict {
                verdict,
                decided_by: event.decided_by.clone(),
            });
            assert_eq!(filter.matches(&event), passes, "denied, staged: {verdict:?}");
        }
        assert!(!passes(&["--port", "80", "--protocol", "udp"]), "all must hold");
    }

    #[test]
    fn since_is_a_time_or_a_duration() {
        assert_eq!(
            since("2026-01-02T03:04:05Z").unwrap().to_string(),
            "2026-01-02T03:04:05Z"
        );
        let ago = Timestamp::now().duration_since(since("1h30m").unwrap());
        assert_eq!(ago.as_hours(), 1);
        assert!(since("yesterday").is_err());
        assert!(peer("non/sen/se").is_err());
    }
}
