//! Where Calico opens what it cannot understand, and where tests once found Palisade to: each stays closed.

use policies_compiler::capacity::{self, Capacities};
use policies_ir::tables::{
    Direction::{Egress, Ingress},
    Verdict,
};
use serde_json::{Value, json};

use crate::lab::{
    DB, HOST, Lab, OUTSIDE, OUTSIDE_V6, PAY, TCP, UDP, WEB, calico, cluster_policy, global, host, namespaced,
    set, tier,
};

fn allow_from(source: &Value) -> Lab {
    Lab::new(&[namespaced(
        "p",
        &json!({"ingress": [{"action": "Allow", "source": source}]}),
    )])
}

#[track_caller]
fn lets_nobody_in(lab: &Lab, why: &str) {
    for peer in [OUTSIDE, OUTSIDE_V6, DB.1, PAY.1, "10.9.9.9"] {
        assert!(!lab.takes(WEB, peer), "{why} lets {peer} in");
    }
    assert!(!lab.reported.is_empty(), "{why} is not reported");
}

/// Calico's conversion of Kubernetes policies: a peer whose CIDR does not parse becomes one without conditions.
#[test]
fn a_cidr_that_does_not_parse_is_not_everyone() {
    for peer in [
        json!({"ipBlock": {"cidr": "010.0.0.0/8"}}),
        json!({"ipBlock": {"cidr": ""}}),
        json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0"]}}),
    ] {
        let lab = Lab::new(&[
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "shop", "name": "k"},
            "spec": {"podSelector": {}, "ingress": [{"from": [peer]}]}}),
        ]);
        lets_nobody_in(&lab, &peer.to_string());
    }
    lets_nobody_in(&allow_from(&json!({"nets": ["010.0.0.0/8"]})), "a bad address");
}

/// Felix treats an object that is not valid as one that is not there: a policy that denies disappears.
#[test]
fn an_object_that_is_not_valid_is_not_missing() {
    let open = namespaced("z", &json!({"order": 5.0, "ingress": [{"action": "Allow"}]}));
    for head in [
        json!({"selector": "app ="}),
        json!({"selector": "global()"}),
        json!({"types": ["Ingress", "Both"]}),
        json!({"tier": "No_Tier"}),
        json!({"serviceAccountSelector": "has("}),
        json!({"namespaceSelector": "a"}),
        json!({"stagedAction": "Set"}),
        json!({"doNotTrack": true, "preDNAT": true}),
    ] {
        let mut spec =
            json!({"order": 1.0, "ingress": [{"action": "Allow", "source": {"nets": ["192.0.2.1"]}}]});
        spec.as_object_mut()
            .unwrap()
            .extend(head.as_object().unwrap().clone());
        for policy in [global("p", &spec), namespaced("p", &spec)] {
            if policy["kind"] == "GlobalNetworkPolicy" && head.get("namespaceSelector").is_some() {
                let mut policy = policy;
                policy["spec"]["namespaceSelector"] = json!("has(");
                lets_nobody_in(&Lab::new(&[policy, open.clone()]), "a bad namespaceSelector");
                continue;
            }
            let why = policy.to_string();
            lets_nobody_in(&Lab::new(&[policy, open.clone()]), &why);
        }
    }
}

/// Calico replaces a selector for namespaces or service accounts that does not parse by an empty one.
#[test]
fn a_selector_that_does_not_parse_does_not_widen() {
    for source in [
        json!({"selector": "app == 'db'", "namespaceSelector": "team == "}),
        json!({"selector": "app == 'db'", "serviceAccounts": {"selector": "role ="}}),
        json!({"serviceAccounts": {"names": ["db"], "selector": "'"}}),
        json!({"selector": "app"}),
        json!({"notSelector": "!"}),
    ] {
        lets_nobody_in(&allow_from(&source), &source.to_string());
    }
    let policy = global(
        "p",
        &json!({"selector": "app == 'db'", "serviceAccountSelector": "role ="}),
    );
    let lab = Lab::new(&[policy]);
    assert!(!lab.takes(WEB, OUTSIDE) && !lab.takes(PAY, OUTSIDE) && !lab.opens(PAY, OUTSIDE));
}

/// Calico leaves out addresses that do not parse; a list of which nothing is left is a condition on nothing.
#[test]
fn addresses_that_are_left_out_do_not_widen() {
    for source in [
        json!({"nets": ["x"]}),
        json!({"nets": ["10.0.0.2", "x"]}),
        json!({"notNets": ["x"]}),
        json!({"selector": "app == 'db'", "notNets": ["10.0.0.0/8/8"]}),
    ] {
        lets_nobody_in(&allow_from(&source), &source.to_string());
    }
    // A rule that denies keeps denying, and what it would have let by is denied with it.
    let rules = json!({"ingress": [{"action": "Deny", "source": {"nets": ["x"]}}, {"action": "Allow"}]});
    lets_nobody_in(
        &Lab::new(&[namespaced("p", &rules)]),
        "a Deny without its addresses",
    );
    let rules = json!({"ingress": [{"action": "Pass", "source": {"nets": ["x"]}}, {"action": "Allow"}]});
    lets_nobody_in(
        &Lab::new(&[namespaced("p", &rules)]),
        "a Pass without its addresses",
    );
    // What only logs is left out.
    let rules = json!({"ingress": [{"action": "Log", "source": {"nets": ["x"]}}, {"action": "Allow"}]});
    assert!(Lab::new(&[namespaced("p", &rules)]).takes(WEB, OUTSIDE));
}

/// The same for what is in a set, or at a host endpoint: what is missing may be anything.
#[test]
fn a_set_of_which_a_part_is_not_understood_does_not_widen() {
    let broken = || {
        set(
            "GlobalNetworkSet",
            "g",
            &json!({"net": "bad"}),
            &json!({"nets": ["192.0.2.0/24", "203.0.113.0/x"]}),
        )
    };
    let whole = || {
        set(
            "GlobalNetworkSet",
            "g",
            &json!({"net": "bad"}),
            &json!({"nets": ["192.0.2.0/24", "203.0.113.0/24"]}),
        )
    };
    let lab = |rule: Value, set: Value| {
        Lab::new(&[
            namespaced("p", &json!({"ingress": [rule, {"action": "Allow"}]})),
            set,
        ])
    };
    for (rule, from_set) in [
        (
            json!({"action": "Deny", "source": {"selector": "net == 'bad'", "namespaceSelector": "global()"}}),
            false,
        ),
        (
            json!({"action": "Pass", "source": {"selector": "net == 'bad'", "namespaceSelector": "global()"}}),
            true,
        ),
    ] {
        assert_eq!(lab(rule.clone(), whole()).takes(WEB, OUTSIDE), from_set, "{rule}");
        assert!(!lab(rule.clone(), broken()).takes(WEB, OUTSIDE), "{rule}");
        assert!(!lab(rule, broken()).takes(WEB, "198.51.100.1"));
    }
    let only = |set: Value| {
        let rule = json!({"action": "Allow", "source": {"notSelector": "net == 'bad'"}});
        Lab::new(&[global("p", &json!({"ingress": [rule]})), set])
    };
    assert!(!only(whole()).takes(WEB, OUTSIDE) && only(whole()).takes(WEB, DB.1));
    assert!(!only(broken()).takes(WEB, OUTSIDE) && !only(broken()).takes(WEB, DB.1));
    // Those that allow what the set surely holds still do.
    let allow = json!({"ingress": [{"action": "Allow", "source": {"selector": "net == 'bad'"}}]});
    let lab = Lab::new(&[global("p", &allow), broken()]);
    assert!(lab.takes(WEB, "192.0.2.1") && !lab.takes(WEB, OUTSIDE));
    // Conditions that do not find it are as they were.
    let other = json!({"ingress": [{"action": "Deny", "source": {"selector": "net == 'good'"}}, {"action": "Allow"}]});
    assert!(Lab::new(&[global("p", &other), broken()]).takes(WEB, OUTSIDE));
}

/// Found by a property: a policy that was emptied left what it denied to the policies and tiers behind it.
#[test]
fn a_broken_policy_denies_itself_and_leaves_nothing_to_others() {
    let deny =
        json!({"tier": "early", "order": 1.0, "selector": "app = 'web'", "ingress": [{"action": "Deny"}]});
    let allow = json!({"tier": "early", "order": 2.0, "ingress": [{"action": "Allow"}]});
    for default in ["Deny", "Pass"] {
        let lab = Lab::new(&[
            tier("early", Some(1.0), default),
            global("a", &deny),
            global("b", &allow),
        ]);
        lets_nobody_in(&lab, default);
    }
}

/// Found by review: no tier of its own comes early enough for a policy whose tier cannot be understood.
#[test]
fn a_policy_with_a_bad_tier_comes_first() {
    let deny = json!({"tier": "Early", "ingress": [{"action": "Deny"}]});
    let allow = json!({"tier": "early", "ingress": [{"action": "Allow"}]});
    let objects = [
        tier("early", Some(f64::MIN), "Deny"),
        global("a", &deny),
        global("b", &allow),
    ];
    lets_nobody_in(&Lab::new(&objects), "a bad tier");
}

/// Found by review: a policy for host endpoints whose phase cannot be understood denies before all phases.
#[test]
fn a_policy_of_an_unknown_phase_comes_before_every_phase() {
    let bad = json!({"preDNAT": true, "ingress": [{"action": "Deny"}]});
    let allow =
        json!({"doNotTrack": true, "applyOnForward": true, "order": -5.0, "ingress": [{"action": "Allow"}]});
    let objects = [
        global("a", &bad),
        host(&json!({}), &["projectcalico-default-allow"]),
    ];
    assert!(!Lab::new(&objects).takes(HOST, OUTSIDE));
    assert!(
        !Lab::new(&objects).takes(WEB, OUTSIDE),
        "it could have meant pods"
    );
    assert!(
        Lab::new(&objects).allows(HOST.0, Ingress, OUTSIDE, TCP, 22),
        "failsafes stay open"
    );
    let later = json!({"preDNAT": true, "applyOnForward": true, "ingress": [{"action": "Allow"}]});
    let objects = [global("a", &bad), global("b", &later), host(&json!({}), &[])];
    assert!(!Lab::new(&objects).takes(HOST, OUTSIDE));
    // Of the untracked phase too, the order within the tier decides.
    let objects = [global("a", &bad), global("b", &allow), host(&json!({}), &[])];
    assert!(Lab::new(&objects).takes(HOST, OUTSIDE));
}

/// Found by a property: with its subject lost, a policy accepted for everyone.
#[test]
fn a_cluster_policy_without_its_head_accepts_nothing() {
    let deny = || {
        namespaced(
            "n",
            &json!({"ingress": [{"action": "Deny"}], "egress": [{"action": "Deny"}]}),
        )
    };
    let all = json!({"namespaces": {}});
    let rules = |action: &str| json!([{"action": action, "from": [all]}]);
    let near = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
    for (tier, priority, subject) in [
        ("Middle", 5, all.clone()),
        ("Admin", 1001, all.clone()),
        ("Admin", 5, json!({})),
        ("Admin", 5, json!({"namespaces": near})),
        (
            "Admin",
            5,
            json!({"pods": {"namespaceSelector": {"matchLabels": {"team": "b"}}, "podSelector": near}}),
        ),
    ] {
        let policy = |action: &str| {
            let spec =
                json!({"tier": tier, "priority": priority, "subject": subject, "ingress": rules(action)});
            cluster_policy("c", &spec)
        };
        let why = format!("{tier} {priority} {subject}");
        lets_nobody_in(&Lab::new(&[policy("Accept"), deny()]), &why);
        assert!(
            Lab::new(&[policy("Accept")]).takes(WEB, DB.1),
            "{why}: what was accepted is left out"
        );
        for action in ["Deny", "Pass"] {
            assert!(
                !Lab::new(&[policy(action)]).takes(WEB, DB.1),
                "{why}: {action} denies everything"
            );
        }
    }
    // A priority out of range does not move what it denies behind what others accept.
    let policy = |name: &str, priority: i32, action: &str| {
        let spec = json!({"tier": "Admin", "priority": priority, "subject": all, "ingress": rules(action)});
        cluster_policy(name, &spec)
    };
    assert!(!Lab::new(&[policy("b", 5000, "Deny"), policy("a", 0, "Accept")]).takes(WEB, DB.1));
}

/// A rule that cannot be understood is left out if it accepts, and denies everything if it denies or passes.
#[test]
fn a_cluster_rule_that_is_not_understood_fails_closed() {
    let all = json!({"namespaces": {}});
    let lab = |rule: Value| {
        let rules = json!([rule, {"action": "Accept", "to": [all]}]);
        Lab::new(&[cluster_policy(
            "c",
            &json!({"tier": "Admin", "priority": 1, "subject": all, "egress": rules}),
        )])
    };
    for bad in [
        json!({"networks": ["10.0.0.0"]}),
        json!({"networks": ["10.0.0.0/8"], "nodes": {}}),
        json!({"somethingNew": {}}),
        json!({}),
    ] {
        assert!(
            lab(json!({"action": "Accept", "to": [bad]})).opens(WEB, DB.1),
            "{bad}"
        );
        assert!(
            !lab(json!({"action": "Deny", "to": [bad]})).opens(WEB, DB.1),
            "{bad}"
        );
        assert!(
            !lab(json!({"action": "Pass", "to": [bad]})).opens(WEB, DB.1),
            "{bad}"
        );
        assert!(
            !lab(json!({"action": "Forbid", "to": [bad]})).opens(WEB, DB.1),
            "{bad}"
        );
    }
}

/// A tier whose end cannot be understood denies there, and one that does not exist does.
#[test]
fn a_tier_that_is_not_understood_denies_at_its_end() {
    let log = json!({"tier": "early", "ingress": [{"action": "Log"}]});
    let lab = Lab::new(&[tier("early", Some(1.0), "Maybe"), global("p", &log)]);
    assert!(!lab.takes(WEB, OUTSIDE) && lab.reported == ["Tier early: spec.defaultAction"]);
    assert!(!Lab::new(&[global("p", &log)]).takes(WEB, OUTSIDE));
    // Nobody can make a built-in tier pass.
    let objects = [
        tier("default", Some(1.0), "Pass"),
        global("p", &json!({"ingress": [{"action": "Log"}]})),
    ];
    assert!(!Lab::new(&objects).takes(WEB, OUTSIDE));
}

/// Found by review: errors of a staged policy that changes nothing were reported under the next object's name.
#[test]
fn errors_are_reported_under_the_name_of_their_object() {
    let lab = Lab::new(&[
        calico("StagedNetworkPolicy", "s", &json!({"stagedAction": "Maybe"})),
        global("p", &json!({"ingress": [{"action": "Allow"}]})),
        calico(
            "StagedGlobalNetworkPolicy",
            "t",
            &json!({"stagedAction": "Ignore", "selector": "a"}),
        ),
    ]);
    assert_eq!(
        lab.reported,
        [
            "StagedNetworkPolicy shop/s: spec.stagedAction",
            "StagedGlobalNetworkPolicy t: spec.selector"
        ]
    );
}

/// Found by review: in Calico whoever may label a pod can pass it off as one of another namespace or account.
#[test]
fn labels_that_are_inherited_cannot_be_forged() {
    let rules = json!({"ingress": [
        {"action": "Allow", "source": {"namespaceSelector": "team == 'b'"}},
        {"action": "Allow", "source": {"namespaceSelector": "all()", "serviceAccounts": {"selector": "role == 'bank'"}}},
        {"action": "Allow", "source": {"namespaceSelector": "projectcalico.org/name == 'pay'"}}]});
    let mut lab = Lab::new(&[namespaced("p", &rules)]);
    for (key, value) in [
        ("pcns.team", "b"),
        ("pcns.projectcalico.org/name", "pay"),
        ("projectcalico.org/namespace", "pay"),
        ("pcsa.role", "bank"),
    ] {
        lab.cluster.members[1]
            .workload
            .labels
            .insert(key.to_owned(), value.to_owned());
    }
    assert!(!lab.takes(WEB, DB.1) && lab.takes(WEB, PAY.1));
}

/// Found by review: two interfaces of one node, each with the node's address, do not contest it.
#[test]
fn host_endpoints_of_one_node_may_share_its_address() {
    let at = |name: &str, node: &str| {
        calico(
            "HostEndpoint",
            name,
            &json!({"node": node, "interfaceName": name, "expectedIPs": ["192.0.2.1"]}),
        )
    };
    let open = |objects: &[Value]| Lab::new(objects).takes(WEB, "192.0.2.1");
    assert!(open(&[at("eth0", "there"), at("eth1", "there")]));
    assert!(
        !open(&[at("eth0", "there"), at("eth1", "elsewhere")]),
        "two nodes do"
    );
}

/// Found by a property: a failsafe that asks for a named port of the node itself.
#[test]
fn a_named_port_of_a_failsafe_is_the_nodes() {
    use policies_ir::policy::{EndMatch, FailsafeMatch, PortMatch, ServiceMatch};
    let mut lab = Lab::new(&[host(&json!({}), &[])]);
    std::sync::Arc::make_mut(&mut lab.policies.failsafe).inbound = vec![FailsafeMatch::new(
        EndMatch::default(),
        ServiceMatch {
            ports: vec![PortMatch::Named("ssh".to_owned())],
            ..ServiceMatch::default()
        },
    )];
    assert!(lab.allows(HOST.0, Ingress, OUTSIDE, TCP, 22) && !lab.allows(HOST.0, Ingress, OUTSIDE, TCP, 23));
    assert!(!lab.allows(HOST.0, Egress, OUTSIDE, TCP, 22));
}

/// What rules tell apart counts, not how many ports they list.
#[test]
fn source_ports_that_rules_do_not_tell_apart_are_one_class() {
    let rule = |first: u16| {
        let ports: Vec<u16> = (0..50).map(|i| first + 2 * i).collect();
        json!({"action": "Allow", "protocol": "TCP", "source": {"ports": ports}})
    };
    let rules = [rule(1000), rule(2000), rule(3000)];
    let lab = Lab::new(&[
        global("p", &json!({"selector": "app == 'web'", "ingress": rules})),
        host(&json!({}), &[]),
        global("h", &json!({"selector": "has(host)", "ingress": rules})),
    ]);
    for (source_port, rule) in [(1098, "rule 0"), (2000, "rule 1"), (3050, "rule 2")] {
        let (verdict, by) = lab.decides(WEB.0, Ingress, OUTSIDE, TCP, (source_port, 80));
        assert!(
            verdict == Verdict::Allow && by.contains(rule),
            "{source_port}: {by}"
        );
    }
    assert_eq!(
        lab.decides(WEB.0, Ingress, OUTSIDE, TCP, (1001, 80)).0,
        Verdict::Deny
    );
    assert!(lab.allows(HOST.0, Ingress, OUTSIDE, TCP, 22));
    let tables = policies_compiler::compile_policies(&lab.cluster, &lab.policies);
    let web = &tables.endpoints[&policies_ir::tables::EndpointId(WEB.0)];
    assert_eq!(web.source_classes(), 4);
    assert!(web.sources.keys().all(|block| block.protocol == TCP));
}

/// All ports but some need no more blocks than these.
#[test]
fn the_class_of_most_blocks_has_none() {
    let rules = [
        json!({"action": "Deny", "protocol": "TCP", "source": {"notPorts": [9]}}),
        json!({"action": "Allow", "protocol": "TCP", "source": {"ports": [9]}}),
        json!({"action": "Allow", "protocol": "UDP", "source": {"ports": [9]}}),
    ];
    let lab = Lab::new(&[global(
        "p",
        &json!({"selector": "app == 'web'", "ingress": rules}),
    )]);
    for (protocol, source_port, verdict) in [
        (TCP, 9, Verdict::Allow),
        (TCP, 10, Verdict::Deny),
        (UDP, 9, Verdict::Allow),
        (UDP, 8, Verdict::Deny),
    ] {
        let decided = lab.decides(WEB.0, Ingress, OUTSIDE, protocol, (source_port, 80));
        assert_eq!(decided.0, verdict, "{protocol} {source_port}");
    }
    let tables = policies_compiler::compile_policies(&lab.cluster, &lab.policies);
    let web = &tables.endpoints[&policies_ir::tables::EndpointId(WEB.0)];
    assert_eq!((web.source_classes(), web.sources.len()), (2, 2));
}

/// More classes of source ports than the kernel's key can tell apart: the tables say so, for whoever admits or loads
/// them, and what the policy says is not made another.
#[test]
fn too_many_source_ports_are_told_and_close_nothing() {
    let rule = |port: u16| json!({"action": "Allow", "protocol": "TCP", "source": {"ports": [port]}});
    let rules = |count: u16| -> Vec<Value> { (0..count).map(|i| rule(1000 + 2 * i)).collect() };
    let policy = |count| global("p", &json!({"selector": "app == 'web'", "ingress": rules(count)}));
    let fits = Lab::new(&[policy(127)]);
    assert!(
        fits.decides(WEB.0, Ingress, OUTSIDE, TCP, (1252, 80))
            .1
            .contains("rule 126")
    );
    let demand =
        |lab: &Lab| capacity::demand(&policies_compiler::compile_policies(&lab.cluster, &lab.policies));
    assert_eq!(demand(&fits).exceeds(&Capacities::KERNEL), None);
    let full = Lab::new(&[policy(128)]);
    assert_eq!(
        demand(&full).exceeds(&Capacities::KERNEL).unwrap().to_string(),
        "needs 129 classes of source ports at one endpoint, and a node holds 128"
    );
    let answers = policies_compiler::compile_answers(&full.cluster, &full.policies, &[]);
    assert_eq!(answers.exceeded, demand(&full).exceeds(&Capacities::KERNEL));
    let many = demand(&Lab::new(&[policy(200)])).source_classes;
    assert_eq!(many, 201, "counted, however many");
}

/// A pod reaches itself whatever policy says, and what a strict sandbox lets it connect to does not follow from that: it
/// adds the ports that the pod declares.
#[test]
fn what_a_pod_may_connect_to_does_not_count_itself() {
    let lab = Lab::new(&[namespaced(
        "p",
        &json!({"types": ["Egress"], "egress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [443]}}]}),
    )]);
    let (verdict, by) = lab.decides(WEB.0, Egress, WEB.1, TCP, (40_000, 9));
    assert!(verdict == Verdict::Allow && by.contains("self"), "{by}");
    let mut members = lab.cluster.members.iter();
    let web = members.find(|member| member.addresses.contains(&WEB.1.parse().unwrap()));
    let policy = lab.policies.for_endpoint(&web.unwrap().workload);
    let bound = policies_ir::ports::egress_tcp(&policy, |_| policies_ir::ports::PortSet::none());
    assert_eq!(bound.iter().collect::<Vec<_>>(), [443]);
}
