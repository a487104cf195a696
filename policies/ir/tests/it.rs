//! The reference, statement by statement. Each test is one sentence of the semantics.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use api::selector::Labels;
use ipnet::IpNet;
use policies_ir::{
    cluster::{Cluster, Member},
    decide,
    decide::{Decision, Flow, Mismatch, Side, Standing, Step},
    policy::{
        Action, DefaultAction, Directions, EndMatch, EndpointToHost, Failsafe, FailsafeMatch, IcmpMatch,
        IpVersion, Kinds, NamedPort, NamespaceMatch, Order, Phase, Policy, PolicySet, PortMatch, Profile,
        ProfileRules, Rule, Selector, ServiceMatch, TCP, TieBreak, Tier, UDP, Workload, WorkloadKind,
        WorkloadMatch,
    },
    tables::{BuiltinRule, DecidedBy, Direction, Packet, Verdict},
};

#[test]
fn without_tiers_the_profiles_decide() {
    let allowed = judge(&kube(vec![]), tcp(80));
    assert_eq!(
        (allowed.verdict, by(&allowed)),
        (Verdict::Allow, "no-policy".to_owned())
    );
    let denied = judge(&PolicySet::default(), tcp(80));
    assert_eq!(
        (denied.verdict, by(&denied)),
        (Verdict::Deny, "no-match".to_owned())
    );
}

#[test]
fn a_tier_without_a_policy_for_the_endpoint_is_not_asked() {
    let mut policy = policy("p", None, vec![]);
    policy.applies_to.namespace = NamespaceMatch::Named("elsewhere".to_owned());
    assert_eq!(
        judge(
            &kube(vec![tier("t", None, DefaultAction::Deny, vec![policy])]),
            tcp(80)
        )
        .verdict,
        Verdict::Allow
    );
}

#[test]
fn a_tier_whose_policies_cover_only_the_other_direction_is_not_asked() {
    let mut policy = policy("p", None, vec![]);
    policy.directions = Directions {
        ingress: false,
        egress: true,
    };
    let set = kube(vec![tier("t", None, DefaultAction::Deny, vec![policy])]);
    assert_eq!(judge(&set, tcp(80)).verdict, Verdict::Allow);
    let denied = judge(
        &set,
        Flow {
            direction: Direction::Egress,
            ..tcp(80)
        },
    );
    assert_eq!(by(&denied), "default-deny (isolated by p)");
}

#[test]
fn tiers_and_policies_are_asked_by_order_then_name_and_no_order_is_last() {
    let deny = |name: &str, order| policy(name, order, vec![rule(Action::Deny)]);
    let tiers = vec![
        tier("none", None, DefaultAction::Deny, vec![deny("x", None)]),
        tier(
            "b",
            Some(5.0),
            DefaultAction::Deny,
            vec![deny("z", Some(1.0)), deny("y", Some(1.0)), deny("a", None)],
        ),
        tier("c", Some(5.0), DefaultAction::Deny, vec![deny("w", Some(-1.0))]),
    ];
    let set = kube(tiers);
    let workload = workload("default", "own", &[]);
    let ordered: Vec<(&str, Vec<&str>)> = set
        .for_endpoint(&workload)
        .tiers
        .iter()
        .map(|tier| {
            (
                tier.name,
                tier.policies.iter().map(|policy| policy.name.as_str()).collect(),
            )
        })
        .collect();
    assert_eq!(
        ordered,
        [("b", vec!["y", "z", "a"]), ("c", vec!["w"]), ("none", vec!["x"])]
    );
    assert_eq!(by(&judge(&set, tcp(80))), "y rule 0");
}

#[test]
fn the_first_matching_rule_decides() {
    let rules = vec![
        to_port(Action::Deny, 81),
        to_port(Action::Allow, 80),
        to_port(Action::Deny, 80),
    ];
    let set = kube(vec![tier(
        "t",
        None,
        DefaultAction::Deny,
        vec![policy("p", None, rules)],
    )]);
    let decision = judge(&set, tcp(80));
    assert_eq!(
        (decision.verdict, by(&decision)),
        (Verdict::Allow, "p rule 1".to_owned())
    );
    let tried: Vec<Option<Mismatch>> = decision
        .steps
        .iter()
        .map(|step| match step {
            Step::Rule { mismatch, .. } => *mismatch,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(tried, [Some(Mismatch::Port), None]);
}

#[test]
fn allow_ends_the_judgement_whatever_later_tiers_say() {
    let allow = tier(
        "a",
        None,
        DefaultAction::Deny,
        vec![policy("p", None, vec![rule(Action::Allow)])],
    );
    let deny = tier(
        "b",
        None,
        DefaultAction::Deny,
        vec![policy("q", None, vec![rule(Action::Deny)])],
    );
    assert_eq!(judge(&kube(vec![allow, deny]), tcp(80)).verdict, Verdict::Allow);
}

#[test]
fn pass_skips_the_rest_of_the_tier() {
    let passing = vec![
        policy("p", Some(1.0), vec![rule(Action::Pass)]),
        policy("q", Some(2.0), vec![rule(Action::Deny)]),
    ];
    let first = tier("a", None, DefaultAction::Deny, passing);
    assert_eq!(by(&judge(&kube(vec![first.clone()]), tcp(80))), "no-policy");
    let second = tier("b", None, DefaultAction::Deny, vec![policy("r", None, vec![])]);
    assert_eq!(
        by(&judge(&kube(vec![first, second]), tcp(80))),
        "default-deny (isolated by r)"
    );
}

#[test]
fn the_end_of_a_tier_can_pass() {
    let first = tier(
        "a",
        None,
        DefaultAction::Pass,
        vec![policy("p", None, vec![to_port(Action::Deny, 1)])],
    );
    let second = tier(
        "b",
        None,
        DefaultAction::Deny,
        vec![policy("q", None, vec![rule(Action::Allow)])],
    );
    assert_eq!(by(&judge(&kube(vec![first, second]), tcp(80))), "q rule 0");
}

#[test]
fn log_goes_on_but_a_policy_that_only_logs_isolates() {
    let logs = policy("p", None, vec![rule(Action::Log)]);
    let set = kube(vec![tier("a", None, DefaultAction::Deny, vec![logs])]);
    let decision = judge(&set, tcp(80));
    assert_eq!(by(&decision), "default-deny (isolated by p)");
    assert!(matches!(
        decision.steps[0],
        Step::Rule {
            action: Action::Log,
            mismatch: None,
            ..
        }
    ));
    let logs_then_allows = policy("p", None, vec![rule(Action::Log), rule(Action::Allow)]);
    assert_eq!(
        judge(
            &kube(vec![tier("a", None, DefaultAction::Deny, vec![logs_then_allows])]),
            tcp(80)
        )
        .verdict,
        Verdict::Allow
    );
}

#[test]
fn several_policies_share_the_end_of_their_tier() {
    let policies = vec![policy("p", None, vec![]), policy("q", None, vec![])];
    let decision = judge(
        &kube(vec![tier("t", None, DefaultAction::Deny, policies)]),
        tcp(80),
    );
    assert_eq!(
        by(&decision),
        "default-deny (isolated by several policies of tier t)"
    );
}

#[test]
fn in_a_profile_pass_denies_and_the_first_that_matches_decides() {
    let profile = |name: &str, rules: Vec<Rule>| Profile {
        name: name.to_owned(),
        rules: ProfileRules::Own {
            ingress: rules,
            egress: vec![],
        },
    };
    let judge_all = |profiles: Vec<Profile>| {
        let own = Workload {
            profiles: profiles.iter().map(|profile| profile.name.clone()).collect(),
            ..workload("default", "own", &[])
        };
        let set = PolicySet {
            profiles: profiles.into_iter().map(|p| (p.name.clone(), p)).collect(),
            ..PolicySet::default()
        };
        decide(&set.for_endpoint(&own), &tcp(80))
    };
    let judge_profiles = |profiles| by(&judge_all(profiles));
    let passing = profile("Profile a", vec![rule(Action::Pass)]);
    assert_eq!(
        judge_profiles(vec![passing.clone(), allow_all("b")]),
        "Profile a rule 0"
    );
    assert_eq!(judge_all(vec![passing]).verdict, Verdict::Deny);
    let silent = profile("Profile b", vec![rule(Action::Log), to_port(Action::Deny, 1)]);
    assert_eq!(judge_profiles(vec![silent.clone(), allow_all("a")]), "no-policy");
    assert_eq!(judge_profiles(vec![silent]), "no-match");
}

#[test]
fn no_denial_holds_against_the_endpoint_itself_or_its_node() {
    let set = kube(vec![tier(
        "t",
        None,
        DefaultAction::Deny,
        vec![policy("p", None, vec![rule(Action::Deny)])],
    )]);
    for direction in [Direction::Ingress, Direction::Egress] {
        let itself = judge(
            &set,
            Flow {
                direction,
                standing: Standing::Itself,
                ..tcp(80)
            },
        );
        assert_eq!(
            (itself.verdict, by(&itself)),
            (Verdict::Allow, "self-traffic".to_owned())
        );
    }
    let node = judge(
        &set,
        Flow {
            standing: Standing::OwnNode,
            ..tcp(80)
        },
    );
    assert_eq!(node.decided_by, DecidedBy::Builtin(BuiltinRule::FromHost));
    let to_node = judge(
        &set,
        Flow {
            direction: Direction::Egress,
            standing: Standing::OwnNode,
            ..tcp(80)
        },
    );
    assert_eq!(to_node.verdict, Verdict::Deny);
    let no_policy = judge(
        &kube(vec![]),
        Flow {
            standing: Standing::OwnNode,
            ..tcp(80)
        },
    );
    assert_eq!(
        by(&no_policy),
        "no-policy",
        "where nothing denies, nothing needs sparing"
    );
}

#[test]
fn an_address_that_several_claim_is_denied_first_of_all() {
    let set = kube(vec![tier(
        "t",
        None,
        DefaultAction::Deny,
        vec![policy("p", None, vec![rule(Action::Allow)])],
    )]);
    let decision = judge(
        &set,
        Flow {
            standing: Standing::Contested,
            ..tcp(80)
        },
    );
    assert_eq!(
        (decision.verdict, by(&decision)),
        (Verdict::Deny, "no-match".to_owned())
    );
}

#[test]
fn every_condition_on_the_service_counts() {
    let own = Workload {
        named_ports: vec![named("web", TCP, 80)],
        ..workload("default", "own", &[])
    };
    let flow = |protocol, port| Flow {
        own: at("10.0.0.1", &[&own]),
        protocol,
        port,
        ..tcp(0)
    };
    let none = ServiceMatch::default;
    let ports = |ports: Vec<PortMatch>| ServiceMatch { ports, ..none() };
    let not_ports = |not_ports: Vec<PortMatch>| ServiceMatch { not_ports, ..none() };
    let icmp = |kind, code| Some(IcmpMatch { kind, code });
    let web = PortMatch::Named("web".to_owned());
    let range = PortMatch::Range(80, 90);
    for (service, flow, expected) in [
        (none(), flow(47, 0), None),
        (
            ServiceMatch {
                protocol: Some(TCP),
                ..none()
            },
            flow(UDP, 80),
            Some(Mismatch::Protocol),
        ),
        (
            ServiceMatch {
                not_protocol: Some(TCP),
                ..none()
            },
            flow(TCP, 80),
            Some(Mismatch::Protocol),
        ),
        (
            ServiceMatch {
                not_protocol: Some(TCP),
                ..none()
            },
            flow(UDP, 80),
            None,
        ),
        (ports(vec![range.clone()]), flow(UDP, 90), None),
        (ports(vec![range.clone()]), flow(UDP, 91), Some(Mismatch::Port)),
        (ports(vec![range.clone()]), flow(47, 80), Some(Mismatch::Port)),
        (ports(vec![range.clone()]), flow(1, 80), Some(Mismatch::Port)),
        (
            ports(vec![PortMatch::Range(1, 2), web.clone()]),
            flow(TCP, 80),
            None,
        ),
        (ports(vec![web.clone()]), flow(UDP, 80), Some(Mismatch::Port)),
        (
            ports(vec![PortMatch::Named("dns".to_owned())]),
            flow(TCP, 80),
            Some(Mismatch::Port),
        ),
        (
            not_ports(vec![range.clone()]),
            flow(TCP, 80),
            Some(Mismatch::Port),
        ),
        (not_ports(vec![range]), flow(47, 80), None),
        (not_ports(vec![web]), flow(TCP, 80), Some(Mismatch::Port)),
        (
            ServiceMatch {
                icmp: icmp(8, None),
                ..none()
            },
            flow(1, 0x0807),
            None,
        ),
        (
            ServiceMatch {
                icmp: icmp(8, Some(0)),
                ..none()
            },
            flow(1, 0x0807),
            Some(Mismatch::Icmp),
        ),
        (
            ServiceMatch {
                icmp: icmp(8, None),
                ..none()
            },
            flow(TCP, 0x0800),
            Some(Mismatch::Icmp),
        ),
        (
            ServiceMatch {
                not_icmp: icmp(8, None),
                ..none()
            },
            flow(58, 0x0800),
            Some(Mismatch::Icmp),
        ),
        (
            ServiceMatch {
                not_icmp: icmp(8, None),
                ..none()
            },
            flow(TCP, 0x0800),
            None,
        ),
    ] {
        let rule = Rule {
            service,
            ..rule(Action::Allow)
        };
        assert_eq!(decide::mismatch(&rule, &flow), expected, "{rule:?} {flow:?}");
    }
}

#[test]
fn named_ports_of_egress_are_the_peers() {
    let own = Workload {
        named_ports: vec![named("web", TCP, 80)],
        ..workload("default", "own", &[])
    };
    let peer = Workload {
        named_ports: vec![named("web", TCP, 8080)],
        ..workload("default", "peer", &[])
    };
    let service = ServiceMatch {
        ports: vec![PortMatch::Named("web".to_owned())],
        ..ServiceMatch::default()
    };
    let rule = Rule {
        service,
        ..rule(Action::Allow)
    };
    let to = |known: Vec<_>, port| Flow {
        direction: Direction::Egress,
        own: at("10.0.0.1", &[&own]),
        peer: at("10.0.0.2", &known),
        port,
        ..tcp(0)
    };
    assert_eq!(decide::mismatch(&rule, &to(vec![&peer], 8080)), None);
    assert_eq!(
        decide::mismatch(&rule, &to(vec![&peer], 80)),
        Some(Mismatch::Port)
    );
    assert_eq!(decide::mismatch(&rule, &to(vec![], 8080)), Some(Mismatch::Port));
}

#[test]
fn every_condition_on_the_peer_counts() {
    let peer = workload("shop", "peer", &[("app", "web")]);
    let from = |address, known: Vec<_>| Flow {
        peer: at(address, &known),
        ..tcp(80)
    };
    let unknown = || from("203.0.113.9", vec![]);
    let v6 = || from("2001:db8::9", vec![]);
    let known = || from("203.0.113.9", vec![&peer]);
    let none = EndMatch::default;
    let nets = |nets: &[&str]| EndMatch {
        nets: parse(nets),
        ..none()
    };
    let not_nets = |not_nets: &[&str]| EndMatch {
        not_nets: parse(not_nets),
        ..none()
    };
    let shop = WorkloadMatch {
        kinds: Kinds::Pods,
        namespace: NamespaceMatch::Named("shop".to_owned()),
        labels: Selector::everything(),
    };
    let labelled = |text: &str| WorkloadMatch {
        kinds: Kinds::Pods,
        namespace: NamespaceMatch::Any,
        labels: Selector::Labels(text.parse().unwrap()),
    };
    let by_team = |text: &str| WorkloadMatch {
        kinds: Kinds::Pods,
        namespace: NamespaceMatch::Selected(Selector::Labels(text.parse().unwrap())),
        labels: Selector::everything(),
    };
    let is = |workload| EndMatch {
        workload: Some(workload),
        ..none()
    };
    let is_not = |workload| EndMatch {
        not_workload: Some(workload),
        ..none()
    };
    for (peer, flow, expected) in [
        (none(), unknown(), None),
        (
            EndMatch {
                ip_version: Some(IpVersion::V6),
                ..none()
            },
            unknown(),
            Some(Mismatch::Family),
        ),
        (nets(&["10.0.0.0/8", "203.0.113.0/24"]), unknown(), None),
        (nets(&["203.0.113.0/24"]), known(), None),
        (nets(&["10.0.0.0/8"]), unknown(), Some(Mismatch::Address)),
        (nets(&["0.0.0.0/0"]), v6(), Some(Mismatch::Address)),
        (not_nets(&["203.0.113.8/29"]), unknown(), Some(Mismatch::Address)),
        (not_nets(&["10.0.0.0/8"]), unknown(), None),
        // Rendered for IPv6, the rule would have lost all its exceptions: it does not match at all.
        (not_nets(&["10.0.0.0/8"]), v6(), Some(Mismatch::Address)),
        (is(shop.clone()), known(), None),
        (is(shop.clone()), unknown(), Some(Mismatch::Workload)),
        (is(labelled("app=web")), known(), None),
        (is(labelled("!app")), known(), Some(Mismatch::Workload)),
        (is(labelled("!app")), unknown(), Some(Mismatch::Workload)),
        (is_not(shop), known(), Some(Mismatch::Workload)),
        (is_not(labelled("app=web")), unknown(), None),
        (is(by_team("!team")), known(), Some(Mismatch::Workload)),
    ] {
        let rule = Rule {
            peer,
            ..rule(Action::Allow)
        };
        assert_eq!(decide::mismatch(&rule, &flow), expected, "{rule:?} {flow:?}");
    }
}

#[test]
fn selectors_combine() {
    let labels: Labels = [("a".to_owned(), "1".to_owned())].into();
    let is = |text: &str| Selector::Labels(text.parse().unwrap());
    assert!(Selector::All(vec![]).matches_labels(&labels) && !Selector::Any(vec![]).matches_labels(&labels));
    assert!(Selector::Any(vec![is("b"), is("a=1")]).matches_labels(&labels));
    assert!(!Selector::All(vec![is("b"), is("a=1")]).matches_labels(&labels));
    assert!(Selector::Not(Box::new(is("a=2"))).matches_labels(&labels) && is("b!=1").matches_labels(&labels));
}

/// At a host endpoint the own end is whoever has the packet's address there: selectors find the host endpoint at the addresses
/// that it expects. Of an address that two claim, or that is not told, nothing holds but failsafes.
#[test]
fn the_own_end_at_a_host_endpoint_is_whoever_has_the_address() {
    let pod = |name: &str| Member {
        workload: workload("default", name, &[]),
        addresses: ["10.0.0.1".parse().unwrap()].into(),
        ..Member::default()
    };
    let host = Member {
        workload: Workload {
            kind: WorkloadKind::HostEndpoint,
            ..workload("", "host", &[])
        },
        addresses: ["192.0.2.1".parse().unwrap()].into(),
        ..Member::default()
    };
    let cluster = Cluster {
        members: vec![host, pod("a"), pod("b")],
        host_addresses: ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap()).into(),
        ..Cluster::default()
    };
    let any = WorkloadMatch {
        kinds: Kinds::All,
        namespace: NamespaceMatch::Any,
        labels: Selector::everything(),
    };
    let known = EndMatch {
        workload: Some(any.clone()),
        ..EndMatch::default()
    };
    let unknown = EndMatch {
        not_workload: Some(any),
        ..EndMatch::default()
    };
    let at_second = EndMatch {
        nets: parse(&["192.0.2.2/32"]),
        ..EndMatch::default()
    };
    let judged = |own: &EndMatch, inside: Option<&str>, port| {
        let allow = Rule {
            own: own.clone(),
            ..rule(Action::Allow)
        };
        let ssh = FailsafeMatch::new(EndMatch::default(), to_port(Action::Allow, 22).service);
        let policies = PolicySet {
            failsafe: Arc::new(Failsafe {
                inbound: vec![ssh],
                outbound: Vec::new(),
            }),
            ..kube(vec![tier(
                "t",
                None,
                DefaultAction::Deny,
                vec![policy("p", None, vec![allow])],
            )])
        };
        let packet = Packet {
            direction: Direction::Ingress,
            peer: "203.0.113.9".parse().unwrap(),
            inside: inside.map(|inside| inside.parse().unwrap()),
            protocol: TCP,
            source_port: 40_000,
            port,
        };
        let host = &cluster.members[0];
        by(&decide(
            &policies.for_endpoint(&host.workload),
            &cluster.flow(host, &packet),
        ))
    };
    let (first, second, claimed) = (Some("192.0.2.1"), Some("192.0.2.2"), Some("10.0.0.1"));
    let denied = "default-deny (isolated by p)";
    for (inside, expected) in [
        (first, ["p rule 0", denied, denied]),
        (second, [denied, "p rule 0", "p rule 0"]),
        (claimed, ["no-match"; 3]),
        (None, ["no-match"; 3]),
    ] {
        let found = [&known, &unknown, &at_second].map(|own| judged(own, inside, 80));
        assert_eq!(found, expected, "{inside:?}");
        assert_eq!(judged(&known, inside, 22), "failsafe", "{inside:?}");
        assert_eq!(
            judged(&EndMatch::default(), inside, 80),
            "p rule 0",
            "{inside:?}: nobody asks"
        );
    }
}

#[expect(clippy::needless_pass_by_value, reason = "each flow is made for one question")]
fn judge(policies: &PolicySet, flow: Flow<'_>) -> Decision {
    let own = Workload {
        profiles: vec!["kns.default".to_owned()],
        ..workload("default", "own", &[])
    };
    decide(&policies.for_endpoint(&own), &flow)
}

fn by(decision: &Decision) -> String {
    decision.decided_by.to_string()
}

/// An incoming TCP connection from an unknown address.
fn tcp(port: u16) -> Flow<'static> {
    Flow {
        direction: Direction::Ingress,
        own: at("10.0.0.1", &[]),
        peer: at("203.0.113.9", &[]),
        names: None,
        standing: Standing::Other,
        protocol: TCP,
        source_port: 40_000,
        port,
        translated: None,
        leads_by_address: false,
    }
}

fn kube(tiers: Vec<Tier>) -> PolicySet {
    PolicySet {
        tiers,
        profiles: [("kns.default".to_owned(), allow_all("kns.default"))].into(),
        endpoint_to_host: EndpointToHost::Return,
        ..PolicySet::default()
    }
}

fn allow_all(name: &str) -> Profile {
    Profile {
        name: name.to_owned(),
        rules: ProfileRules::AllowAll,
    }
}

fn at<'a>(address: &str, known: &[&'a Workload]) -> Side<'a> {
    Side {
        address: Some(address.parse().unwrap()),
        known: known.to_vec(),
        is_unknown: false,
    }
}

fn tier(name: &str, order: Option<f64>, default_action: DefaultAction, policies: Vec<Policy>) -> Tier {
    let policies = policies.into_iter().map(Arc::new).collect();
    Tier {
        name: name.to_owned(),
        order: Order(order),
        default_action,
        policies,
    }
}

/// A policy that applies to everything in both directions; the rules are for both.
fn policy(name: &str, order: Option<f64>, rules: Vec<Rule>) -> Policy {
    Policy {
        name: name.to_owned(),
        tie_break: TieBreak::new(name, "", ""),
        order: Order(order),
        phase: Phase::Local,
        applies_to: WorkloadMatch {
            kinds: Kinds::All,
            namespace: NamespaceMatch::Any,
            labels: Selector::everything(),
        },
        directions: Directions {
            ingress: true,
            egress: true,
        },
        ingress: number(rules.clone()),
        egress: number(rules),
    }
}

fn number(rules: Vec<Rule>) -> Vec<Rule> {
    rules
        .into_iter()
        .zip(0..)
        .map(|(rule, index)| Rule { index, ..rule })
        .collect()
}

fn rule(action: Action) -> Rule {
    Rule {
        index: 0,
        action,
        own: EndMatch::default(),
        peer: EndMatch::default(),
        service: ServiceMatch::default(),
    }
}

fn to_port(action: Action, port: u16) -> Rule {
    let service = ServiceMatch {
        ports: vec![PortMatch::Range(port, port)],
        ..ServiceMatch::default()
    };
    Rule {
        service,
        ..rule(action)
    }
}

fn workload(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Workload {
    let labels = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    Workload {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        labels,
        ..Workload::default()
    }
}

fn named(name: &str, protocol: u8, port: u16) -> NamedPort {
    NamedPort {
        name: name.to_owned(),
        protocol,
        port,
    }
}

fn parse(nets: &[&str]) -> Vec<IpNet> {
    nets.iter().map(|net| net.parse().unwrap()).collect()
}
