//! Calico's kinds as they are documented and as they are implemented, case by case.

use policies_ir::tables::Direction::{Egress, Ingress};
use serde_json::{Value, json};

use crate::lab::{
    DB, HOST, ICMP, Lab, OUTSIDE, OUTSIDE_V6, PAY, TCP, UDP, WEB, WEB_V6, calico, cluster_policy, global,
    host, namespaced, set, tier,
};

fn rule(action: &str) -> Value {
    json!({"action": action})
}

/// An ingress policy of `tier` for everything, with these actions as its rules.
fn acts(name: &str, tier: &str, order: Option<f64>, actions: &[&str]) -> Value {
    let rules: Vec<Value> = actions.iter().map(|action| rule(action)).collect();
    global(
        name,
        &json!({"tier": tier, "order": order, "ingress": rules, "types": ["Ingress"]}),
    )
}

/// A policy for everything with one rule for ingress.
fn from(source: &Value) -> Lab {
    Lab::new(&[global(
        "p",
        &json!({"ingress": [{"action": "Allow", "source": source}]}),
    )])
}

#[test]
fn without_types_the_rules_say_what_is_covered() {
    let some = json!([{"action": "Deny"}]);
    for (spec, ingress, egress) in [
        (json!({}), true, false),
        (json!({"ingress": some}), true, false),
        (json!({"egress": some}), false, true),
        (json!({"ingress": some, "egress": some}), true, true),
        (json!({"types": ["Ingress"], "egress": some}), true, false),
        (json!({"types": ["Egress"]}), false, true),
        (json!({"types": ["Egress", "Ingress"]}), true, true),
    ] {
        for policy in [global("p", &spec), namespaced("p", &spec)] {
            let lab = Lab::new(&[policy]);
            assert_eq!(
                (!lab.takes(WEB, OUTSIDE), !lab.opens(WEB, OUTSIDE)),
                (ingress, egress),
                "{spec}"
            );
        }
    }
}

#[test]
fn tiers_are_walked_in_order_and_each_ends_as_it_says() {
    let (first, last) = (Some(1.0), Some(2_000_000.0));
    let allow_late = || acts("z", "late", None, &["Allow"]);
    for (title, objects, expected) in [
        ("nothing selects", vec![], "Allow by no-policy"),
        (
            "a tier without policies is not asked",
            vec![tier("early", first, "Deny")],
            "Allow by no-policy",
        ),
        (
            "the end of a tier denies",
            vec![
                tier("early", first, "Deny"),
                acts("a", "early", None, &[]),
                allow_late(),
            ],
            "Deny by default-deny (isolated by GlobalNetworkPolicy a)",
        ),
        (
            "the end of a tier passes",
            vec![
                tier("early", first, "Pass"),
                tier("late", last, "Deny"),
                acts("a", "early", None, &[]),
                allow_late(),
            ],
            "Allow by GlobalNetworkPolicy z rule 0",
        ),
        (
            "after the last tier that passes come the profiles",
            vec![tier("early", first, "Pass"), acts("a", "early", None, &[])],
            "Allow by no-policy",
        ),
        (
            "Pass skips the rest of its tier",
            vec![
                tier("early", first, "Deny"),
                tier("late", last, "Deny"),
                acts("a", "early", Some(1.0), &["Pass", "Deny"]),
                acts("b", "early", Some(2.0), &["Deny"]),
                allow_late(),
            ],
            "Allow by GlobalNetworkPolicy z rule 0",
        ),
        (
            "Allow ends the walk",
            vec![
                tier("early", first, "Deny"),
                tier("late", last, "Deny"),
                acts("a", "early", None, &["Allow"]),
                acts("z", "late", None, &["Deny"]),
            ],
            "Allow by GlobalNetworkPolicy a rule 0",
        ),
        (
            "Log goes on",
            vec![acts("a", "default", None, &["Log", "Allow"])],
            "Allow by GlobalNetworkPolicy a rule 1",
        ),
        (
            "a policy that only logs isolates",
            vec![acts("a", "default", None, &["Log"])],
            "Deny by default-deny (isolated by GlobalNetworkPolicy a)",
        ),
        (
            "no order comes last",
            vec![
                acts("a", "default", None, &["Deny"]),
                acts("b", "default", Some(5.0), &["Allow"]),
            ],
            "Allow by GlobalNetworkPolicy b rule 0",
        ),
        (
            "of equal orders a name comes before those that it begins",
            vec![
                acts("web", "default", None, &["Allow"]),
                acts("web-deny", "default", None, &["Deny"]),
                acts("web.deny", "default", None, &["Deny"]),
            ],
            "Allow by GlobalNetworkPolicy web rule 0",
        ),
        (
            "equal orders go by name",
            vec![
                acts("b", "default", Some(5.0), &["Deny"]),
                acts("a", "default", Some(5.0), &["Allow"]),
            ],
            "Allow by GlobalNetworkPolicy a rule 0",
        ),
        (
            "both zeros are one order",
            vec![
                acts("b", "default", Some(-0.0), &["Deny"]),
                acts("a", "default", Some(0.0), &["Allow"]),
            ],
            "Allow by GlobalNetworkPolicy a rule 0",
        ),
        (
            "orders may be negative and fractions",
            vec![
                acts("a", "default", Some(0.5), &["Deny"]),
                acts("b", "default", Some(-0.5), &["Allow"]),
            ],
            "Allow by GlobalNetworkPolicy b rule 0",
        ),
        (
            "tiers without an order come last, by name",
            vec![
                tier("y", None, "Pass"),
                tier("x", None, "Pass"),
                acts("a", "y", None, &["Deny"]),
                acts("b", "x", None, &["Allow"]),
            ],
            "Allow by GlobalNetworkPolicy b rule 0",
        ),
        (
            "a tier that nobody defines comes last and denies",
            vec![
                acts("a", "default", None, &["Pass"]),
                acts("b", "missing", None, &["Log"]),
            ],
            "Deny by default-deny (isolated by GlobalNetworkPolicy b)",
        ),
        (
            "kube-admin comes before default, kube-baseline after it",
            vec![
                acts("a", "kube-baseline", None, &["Deny"]),
                acts("b", "default", None, &["Pass"]),
                acts("c", "kube-admin", None, &["Log"]),
            ],
            "Deny by GlobalNetworkPolicy a rule 0",
        ),
    ] {
        assert_eq!(Lab::new(&objects).by(), expected, "{title}");
    }
}

#[test]
fn what_is_only_staged_isolates_nobody() {
    let spec = json!({"tier": "early", "ingress": [{"action": "Deny"}]});
    let staged = [
        tier("early", Some(1.0), "Deny"),
        calico("StagedGlobalNetworkPolicy", "s", &spec),
        calico("StagedNetworkPolicy", "s", &spec),
        calico(
            "StagedKubernetesNetworkPolicy",
            "s",
            &json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
        ),
    ];
    let lab = Lab::new(&staged);
    assert_eq!(lab.by(), "Allow by no-policy");
    let policies = lab.view.policy_set(|_, _| {});
    assert_eq!(policies.staged.len(), 3);
    // In force, each would isolate.
    for change in &policies.staged {
        let mut lab = Lab::new(&staged);
        lab.policies = policies.enforced.with_staged(std::slice::from_ref(change));
        assert!(!lab.takes(WEB, OUTSIDE), "{change:?}");
    }
}

#[test]
fn a_staged_policy_replaces_or_deletes_the_enforced_one_of_its_name() {
    let enforced = global("p", &json!({"ingress": [{"action": "Allow"}]}));
    for (action, expected) in [
        ("Set", "Deny by StagedGlobalNetworkPolicy p rule 0"),
        ("Delete", "Allow by no-policy"),
        ("Learn", "Allow by GlobalNetworkPolicy p rule 0"),
        ("Ignore", "Allow by GlobalNetworkPolicy p rule 0"),
    ] {
        let spec = match action {
            "Delete" => json!({"stagedAction": action}),
            _ => json!({"stagedAction": action, "ingress": [{"action": "Deny"}]}),
        };
        let mut lab = Lab::new(&[enforced.clone(), calico("StagedGlobalNetworkPolicy", "p", &spec)]);
        assert_eq!(lab.reported, Vec::<String>::new());
        assert_eq!(lab.by(), "Allow by GlobalNetworkPolicy p rule 0");
        let policies = lab.view.policy_set(|_, _| {});
        lab.policies = policies.enforced.with_staged(&policies.staged);
        assert_eq!(lab.by(), expected, "{action}");
    }
}

#[test]
fn kubernetes_policies_stand_at_order_1000_of_tier_default() {
    let kubernetes = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "k"}, "spec": {"podSelector": {}, "ingress": [{}]}});
    let with = |order| Lab::new(&[kubernetes.clone(), acts("p", "default", order, &["Deny"])]).by();
    assert_eq!(with(Some(999.0)), "Deny by GlobalNetworkPolicy p rule 0");
    assert_eq!(with(Some(1001.0)), "Allow by NetworkPolicy shop/k rule 0");
    assert_eq!(with(None), "Allow by NetworkPolicy shop/k rule 0");
}

#[test]
fn policies_apply_where_their_selectors_say() {
    for (spec, web, db, pay, node) in [
        (json!({}), true, true, true, true),
        (json!({"selector": "all()"}), true, true, true, true),
        (json!({"selector": "app == 'web'"}), true, false, true, false),
        (
            json!({"selector": "projectcalico.org/namespace == 'shop'"}),
            true,
            true,
            false,
            false,
        ),
        (
            json!({"namespaceSelector": "team == 'a'"}),
            true,
            true,
            false,
            false,
        ),
        (json!({"namespaceSelector": "all()"}), true, true, true, false),
        // A host endpoint lacks the label as well, unless all() stands beside.
        (
            json!({"namespaceSelector": "!has(team)"}),
            false,
            false,
            false,
            true,
        ),
        (
            json!({"selector": "all()", "namespaceSelector": "!has(team)"}),
            false,
            false,
            false,
            false,
        ),
        (
            json!({"serviceAccountSelector": "role == 'store'"}),
            false,
            true,
            false,
            false,
        ),
        (
            json!({"serviceAccountSelector": "all()"}),
            true,
            true,
            true,
            false,
        ),
        (
            json!({"serviceAccountSelector": "projectcalico.org/name == 'web'"}),
            true,
            false,
            true,
            false,
        ),
        (
            json!({"selector": "app == 'web'", "namespaceSelector": "projectcalico.org/name == 'pay'"}),
            false,
            false,
            true,
            false,
        ),
    ] {
        let lab = Lab::new(&[
            global("p", &spec),
            host(&json!({}), &["projectcalico-default-allow"]),
        ]);
        let applies = [WEB, DB, PAY, HOST].map(|endpoint| !lab.takes(endpoint, OUTSIDE));
        assert_eq!(applies, [web, db, pay, node], "{spec}");
    }
    let lab = Lab::new(&[namespaced("p", &json!({"selector": "all()"}))]);
    assert_eq!(
        [WEB, DB, PAY].map(|endpoint| !lab.takes(endpoint, OUTSIDE)),
        [true, true, false]
    );
}

/// Sources of ingress: `shop/db` (beside `shop/web`), `pay/web`, the node, a global set, a set of `shop`, unknown.
fn sources_of(policy: Value, endpoint: (u32, &str)) -> [bool; 6] {
    let lab = Lab::new(&[
        policy,
        host(&json!({"app": "node"}), &[]),
        set(
            "GlobalNetworkSet",
            "g",
            &json!({"app": "db", "net": "global"}),
            &json!({"nets": ["192.0.2.0/25"]}),
        ),
        set(
            "NetworkSet",
            "n",
            &json!({"app": "db", "net": "own"}),
            &json!({"nets": ["192.0.2.128/25"]}),
        ),
    ]);
    [
        "10.0.0.2",
        "10.0.0.3",
        HOST.1,
        "192.0.2.1",
        "192.0.2.129",
        OUTSIDE,
    ]
    .map(|peer| {
        // What comes from a pod's own node is always let in: ask whether the rule matched.
        let (_, by) = lab.decides(endpoint.0, Ingress, peer, TCP, (40_000, 80));
        by.contains("rule 0")
    })
}

#[test]
fn selectors_of_rules_find_pods_hosts_and_sets() {
    for (source, global_policy, namespaced_policy) in [
        (json!({}), [true; 6], [true; 6]),
        (
            json!({"selector": "all()"}),
            [true, true, true, true, true, false],
            [true, false, false, false, true, false],
        ),
        (
            json!({"selector": "app == 'db'"}),
            [true, false, false, true, true, false],
            [true, false, false, false, true, false],
        ),
        // A selector finds what is known and lacks the label, notSelector anything that is not known to have it.
        (
            json!({"selector": "!has(net)"}),
            [true, true, true, false, false, false],
            [true, false, false, false, false, false],
        ),
        (
            json!({"notSelector": "has(net)"}),
            [true, true, true, false, false, true],
            // In a namespace, notSelector alone also confines the rule to it.
            [true, false, false, false, false, false],
        ),
        (
            json!({"selector": "app == 'db'", "notSelector": "net == 'own'"}),
            [true, false, false, true, false, false],
            [true, false, false, false, false, false],
        ),
        (
            json!({"namespaceSelector": "all()"}),
            [true, true, false, false, true, false],
            [true, true, false, false, true, false],
        ),
        (
            json!({"namespaceSelector": "global()"}),
            [false, false, true, true, false, false],
            [false, false, true, true, false, false],
        ),
        (
            json!({"namespaceSelector": "team == 'b'"}),
            [false, true, false, false, false, false],
            [false, true, false, false, false, false],
        ),
        (
            json!({"namespaceSelector": "team != 'b'"}),
            [true, false, true, true, true, false],
            [true, false, true, true, true, false],
        ),
        (
            json!({"selector": "app == 'db'", "namespaceSelector": "global()"}),
            [false, false, false, true, false, false],
            [false, false, false, true, false, false],
        ),
        (
            json!({"serviceAccounts": {"names": ["web", "db"]}}),
            [true, true, false, false, false, false],
            [true, false, false, false, false, false],
        ),
        (
            json!({"serviceAccounts": {"names": ["web", "db"], "selector": "role == 'store'"}}),
            [true, false, false, false, false, false],
            [true, false, false, false, false, false],
        ),
        (json!({"serviceAccounts": {}}), [true; 6], [true; 6]),
        (
            json!({"nets": ["10.0.0.2", "192.0.2.0/25"]}),
            [true, false, false, true, false, false],
            [true, false, false, true, false, false],
        ),
        (
            json!({"notNets": ["10.0.0.0/24"], "selector": "all()"}),
            [false, false, false, true, true, false],
            [false, false, false, false, true, false],
        ),
    ] {
        let spec = json!({"ingress": [{"action": "Allow", "source": source}]});
        assert_eq!(
            sources_of(global("p", &spec), WEB),
            global_policy,
            "global {source}"
        );
        assert_eq!(
            sources_of(namespaced("p", &spec), WEB),
            namespaced_policy,
            "namespaced {source}"
        );
    }
}

#[test]
fn families_protocols_and_messages() {
    let (any, v4) = (from(&json!({})), from(&json!({"nets": ["0.0.0.0/0"]})));
    assert!(
        any.takes(WEB, OUTSIDE) && any.takes(WEB, OUTSIDE_V6) && any.allows(WEB.0, Ingress, OUTSIDE, 47, 0)
    );
    assert!(v4.takes(WEB, OUTSIDE) && !v4.takes(WEB, OUTSIDE_V6));
    assert!(from(&json!({"nets": ["fd00::1"]})).takes(DB, WEB_V6));
    // Of a rule without addresses of a family, nothing is left in it.
    let except = from(&json!({"notNets": ["10.0.0.0/8"]}));
    assert!(except.takes(WEB, OUTSIDE) && !except.takes(WEB, "10.1.1.1") && !except.takes(WEB, OUTSIDE_V6));
    let deny_except = Lab::new(&[global(
        "p",
        &json!({"ingress": [{"action": "Deny", "source": {"notNets": ["10.0.0.0/8"]}}, {"action": "Allow"}]}),
    )]);
    assert!(!deny_except.takes(WEB, OUTSIDE) && deny_except.takes(WEB, OUTSIDE_V6));

    let rule = |rule: Value| Lab::new(&[global("p", &json!({"ingress": [rule]}))]);
    let v6 = rule(json!({"action": "Allow", "ipVersion": 6}));
    assert!(v6.takes(WEB, OUTSIDE_V6) && !v6.takes(WEB, OUTSIDE));
    let ping = rule(json!({"action": "Allow", "protocol": "ICMP", "icmp": {"type": 8}}));
    assert!(
        ping.allows(WEB.0, Ingress, OUTSIDE, ICMP, 0x0801)
            && !ping.allows(WEB.0, Ingress, OUTSIDE, ICMP, 0x0300)
    );
    let not_ping = rule(json!({"action": "Allow", "protocol": 1, "notICMP": {"type": 8, "code": 0}}));
    assert!(
        not_ping.allows(WEB.0, Ingress, OUTSIDE, ICMP, 0x0801)
            && !not_ping.allows(WEB.0, Ingress, OUTSIDE, ICMP, 0x0800)
            && !not_ping.takes(WEB, OUTSIDE)
    );
    let not_tcp = rule(json!({"action": "Allow", "notProtocol": "tcp"}));
    assert!(!not_tcp.takes(WEB, OUTSIDE) && not_tcp.allows(WEB.0, Ingress, OUTSIDE, UDP, 80));
}

#[test]
fn ports_by_number_by_name_and_of_the_source() {
    let rule = |rule: Value| Lab::new(&[global("p", &json!({"ingress": [rule], "egress": [rule]}))]);
    let open = |lab: &Lab, direction, peer: &str, source, port| {
        lab.decides(WEB.0, direction, peer, TCP, (source, port))
            .1
            .contains("rule 0")
    };
    let to = |ports: Value| rule(json!({"action": "Allow", "protocol": "TCP", "destination": ports}));
    let numbers = to(json!({"ports": [80, "8000:8009"], "notPorts": [8001, "8003:8004"]}));
    let opened: Vec<u16> = [79, 80, 8000, 8001, 8002, 8003, 8004, 8009, 8010]
        .into_iter()
        .filter(|port| open(&numbers, Ingress, OUTSIDE, 1, *port))
        .collect();
    assert_eq!(opened, [80, 8000, 8002, 8009]);

    // web is endpoint 1 and declares api as 8001, db as 8002.
    let named = to(json!({"ports": ["api"]}));
    assert!(open(&named, Ingress, OUTSIDE, 1, 8001) && !open(&named, Ingress, OUTSIDE, 1, 8002));
    assert!(open(&named, Egress, DB.1, 1, 8002) && !open(&named, Egress, DB.1, 1, 8001));
    assert!(!open(&named, Egress, OUTSIDE, 1, 8001));
    // Whom the positive selector does not find names nothing, also where the name is negated.
    let selected = to(json!({"selector": "app == 'db'", "ports": ["api"]}));
    assert!(!open(&selected, Ingress, OUTSIDE, 1, 8001) && open(&selected, Egress, DB.1, 1, 8002));
    let not_named = to(json!({"notPorts": ["api"]}));
    assert!(!open(&not_named, Ingress, OUTSIDE, 1, 8001) && open(&not_named, Ingress, OUTSIDE, 1, 8002));
    let any_protocol = rule(json!({"action": "Allow", "destination": {"ports": ["api"]}}));
    assert!(
        open(&any_protocol, Ingress, OUTSIDE, 1, 8001)
            && !any_protocol.allows(WEB.0, Ingress, OUTSIDE, UDP, 8001)
    );

    let source = rule(
        json!({"action": "Allow", "protocol": "TCP", "source": {"ports": ["1000:1999"], "notPorts": [1500]}}),
    );
    let opened: Vec<u16> = [999, 1000, 1499, 1500, 1501, 1999, 2000]
        .into_iter()
        .filter(|port| open(&source, Ingress, OUTSIDE, *port, 80))
        .collect();
    assert_eq!(opened, [1000, 1499, 1501, 1999]);
    let named_source = rule(json!({"action": "Allow", "protocol": "TCP", "source": {"ports": ["api"]}}));
    assert!(open(&named_source, Ingress, DB.1, 8002, 80) && !open(&named_source, Ingress, DB.1, 8001, 80));
    assert!(
        open(&named_source, Egress, OUTSIDE, 8001, 80) && !open(&named_source, Egress, OUTSIDE, 8002, 80)
    );
}

#[test]
fn the_own_end_of_a_rule_counts() {
    let lab = |own: Value| {
        let rule = json!({"action": "Allow", "destination": own});
        Lab::new(&[global("p", &json!({"ingress": [rule]}))])
    };
    for (own, web_v4, web_v6, db) in [
        (json!({"nets": ["10.0.0.1"]}), true, false, false),
        (json!({"nets": ["fd00::/8"]}), false, true, false),
        (json!({"notNets": ["10.0.0.2"]}), true, false, false),
        (json!({"selector": "app == 'web'"}), true, true, false),
        (json!({"notSelector": "app == 'web'"}), false, false, true),
        (json!({"namespaceSelector": "team == 'b'"}), false, false, false),
        (json!({"serviceAccounts": {"names": ["db"]}}), false, false, true),
    ] {
        let lab = lab(own.clone());
        let found = (
            lab.takes(WEB, OUTSIDE),
            lab.takes(WEB, OUTSIDE_V6),
            lab.takes(DB, OUTSIDE),
        );
        assert_eq!(found, (web_v4, web_v6, db), "{own}");
    }
}

#[test]
fn services_are_what_is_behind_them() {
    let web = json!({"services": {"name": "web", "namespace": "shop"}});
    let policy = global(
        "p",
        &json!({"ingress": [{"action": "Allow", "source": web}], "egress": [{"action": "Allow", "destination": web}]}),
    );
    let lab = Lab::new(std::slice::from_ref(&policy)).with_service(&[
        ("10.0.0.2", Some((TCP, 80))),
        ("fd00::2", Some((TCP, 80))),
        ("10.0.0.3", Some((UDP, 80))),
        ("192.0.2.1", None),
    ]);
    // As destinations with their ports, as sources without.
    assert!(lab.opens(WEB, "10.0.0.2") && lab.opens(WEB, "fd00::2") && !lab.opens(WEB, "10.0.0.3"));
    assert!(
        !lab.allows(WEB.0, Egress, "10.0.0.2", TCP, 81) && lab.allows(WEB.0, Egress, "10.0.0.3", UDP, 80)
    );
    assert!(
        !lab.opens(WEB, "192.0.2.1"),
        "a destination without ports is none"
    );
    assert!(lab.takes(WEB, "10.0.0.2") && lab.takes(WEB, "10.0.0.3") && lab.takes(WEB, "192.0.2.1"));
    assert!(!lab.takes(WEB, OUTSIDE) && !lab.opens(WEB, OUTSIDE));
    assert!(!lab.allows(WEB.0, Egress, "10.0.0.3", TCP, 80));
    let nothing_behind = Lab::new(&[policy]);
    assert!(!nothing_behind.opens(WEB, "10.0.0.2") && !nothing_behind.takes(WEB, "10.0.0.2"));
    let own = json!({"egress": [{"action": "Allow", "destination": {"services": {"name": "web"}}}]});
    let own = Lab::new(&[namespaced("p", &own)]).with_service(&[("10.0.0.2", Some((TCP, 80)))]);
    assert!(own.opens(WEB, "10.0.0.2"));
    let udp_only = json!({"egress": [{"action": "Allow", "protocol": "UDP", "destination": web}]});
    let udp_only = Lab::new(&[global("p", &udp_only)]).with_service(&[("10.0.0.2", Some((TCP, 80)))]);
    assert!(!udp_only.opens(WEB, "10.0.0.2"));
}

#[test]
fn names_that_were_learned_open_egress() {
    let to = |domains: Value| {
        let rule = json!({"action": "Allow", "destination": {"domains": domains}});
        Lab::new(&[global("p", &json!({"egress": [rule]}))]).with_name(OUTSIDE, "a.b.example.com")
    };
    for (pattern, opens) in [
        ("a.b.example.com", true),
        ("A.B.Example.com.", true),
        ("b.example.com", false),
        ("*.example.com", true),
        ("*.b.example.com", true),
        ("*.a.b.example.com", false),
        ("a.*.com", true),
        ("a.*.example.com", true),
        ("*.*.example.com", true),
        ("*.*.*.*.com", false),
        ("a.b.*", true),
        ("*.org", false),
    ] {
        assert_eq!(to(json!([pattern])).opens(WEB, OUTSIDE), opens, "{pattern}");
        assert!(
            !to(json!([pattern])).opens(WEB, OUTSIDE_V6),
            "{pattern}: no name was learned"
        );
    }
    // A set by name is one for what leaves; what comes in has no name.
    let rule = json!([{"action": "Allow", "source": {"selector": "net == 'a'"}}]);
    let rules =
        json!({"ingress": rule, "egress": [{"action": "Allow", "destination": {"selector": "net == 'a'"}}]});
    let named = set(
        "GlobalNetworkSet",
        "g",
        &json!({"net": "a"}),
        &json!({"allowedEgressDomains": ["*.example.com"]}),
    );
    let lab = Lab::new(&[global("p", &rules), named]).with_name(OUTSIDE, "a.example.com");
    assert!(lab.opens(WEB, OUTSIDE) && !lab.takes(WEB, OUTSIDE));
}

#[test]
fn network_sets_may_overlap_each_other_and_pods() {
    let wide = set(
        "GlobalNetworkSet",
        "w",
        &json!({"net": "wide"}),
        &json!({"nets": ["10.0.0.0/8", "192.0.2.7"]}),
    );
    let narrow = set(
        "GlobalNetworkSet",
        "n",
        &json!({"net": "narrow"}),
        &json!({"nets": ["10.0.0.0/30", "10.9.0.0/16"]}),
    );
    let lab = |source: Value| {
        let rule = json!({"action": "Allow", "source": source});
        Lab::new(&[
            global("p", &json!({"ingress": [rule]})),
            wide.clone(),
            narrow.clone(),
        ])
    };
    for (source, pod, in_both, in_wide) in [
        (json!({"selector": "net == 'wide'"}), true, true, true),
        (json!({"selector": "net == 'narrow'"}), true, true, false),
        // Each thing at an address is asked on its own: no set has both labels.
        (
            json!({"selector": "net == 'wide' && net == 'narrow'"}),
            false,
            false,
            false,
        ),
        // Together with `selector`, `notSelector` is asked of the same one.
        (
            json!({"selector": "net == 'wide'", "notSelector": "net == 'narrow'"}),
            true,
            true,
            true,
        ),
        // Alone it is asked of all that are there.
        (json!({"notSelector": "net == 'narrow'"}), false, false, true),
        (json!({"selector": "app == 'db'"}), true, false, false),
        (json!({"selector": "!has(app)"}), true, true, true),
    ] {
        let lab = lab(source.clone());
        let found = (
            lab.takes(WEB, DB.1),
            lab.takes(WEB, "10.9.1.1"),
            lab.takes(WEB, "192.0.2.7"),
        );
        assert_eq!(found, (pod, in_both, in_wide), "{source}");
    }
}

#[test]
fn cluster_network_policies_stand_before_and_behind() {
    let everyone = json!({"namespaces": {}});
    let policy = |name: &str, tier: &str, priority: i32, action: &str| {
        cluster_policy(
            name,
            &json!({"tier": tier, "priority": priority, "subject": everyone,
                "ingress": [{"action": action, "from": [{"namespaces": {"matchLabels": {"team": "b"}}}]}]}),
        )
    };
    let deny = || namespaced("n", &json!({"ingress": [{"action": "Deny"}]}));
    let allow = || namespaced("n", &json!({"ingress": [{"action": "Allow"}]}));
    for (objects, expected) in [
        (
            vec![policy("c", "Admin", 5, "Accept"), deny()],
            "ClusterNetworkPolicy c rule 0",
        ),
        (
            vec![policy("c", "Admin", 5, "Deny"), allow()],
            "ClusterNetworkPolicy c rule 0",
        ),
        (
            vec![
                policy("c", "Admin", 5, "Pass"),
                policy("d", "Admin", 6, "Deny"),
                allow(),
            ],
            "NetworkPolicy.projectcalico.org shop/n rule 0",
        ),
        (
            vec![policy("c", "Admin", 7, "Deny"), policy("d", "Admin", 6, "Accept")],
            "ClusterNetworkPolicy d rule 0",
        ),
        (
            vec![policy("b", "Admin", 6, "Deny"), policy("a", "Admin", 6, "Accept")],
            "ClusterNetworkPolicy a rule 0",
        ),
        (
            vec![policy("c", "Baseline", 5, "Deny"), allow()],
            "NetworkPolicy.projectcalico.org shop/n rule 0",
        ),
        (
            vec![policy("c", "Baseline", 5, "Deny")],
            "ClusterNetworkPolicy c rule 0",
        ),
    ] {
        let lab = Lab::new(&objects);
        assert_eq!(lab.reported, Vec::<String>::new());
        assert_eq!(lab.decides(WEB.0, Ingress, PAY.1, TCP, (40_000, 80)).1, expected);
    }
    // Nobody is isolated by what does not match.
    assert_eq!(
        Lab::new(&[policy("c", "Admin", 5, "Accept")]).by(),
        "Allow by no-policy"
    );

    let egress = |peer: Value, protocols: Value| {
        let mut rule = json!({"action": "Deny", "to": [peer]});
        if !protocols.is_null() {
            rule["protocols"] = protocols;
        }
        let policy = json!({"tier": "Admin", "priority": 1, "subject": {"pods":
            {"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": {"matchLabels": {"app": "web"}}}},
            "egress": [rule]});
        Lab::new(&[cluster_policy("c", &policy)])
    };
    let null = Value::Null;
    let nets = egress(
        json!({"networks": ["203.0.113.0/24", "10.0.0.2/32"]}),
        null.clone(),
    );
    assert!(
        !nets.opens(WEB, OUTSIDE)
            && !nets.opens(WEB, DB.1)
            && nets.opens(WEB, PAY.1)
            && nets.opens(DB, OUTSIDE)
    );
    let pods = egress(
        json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "db"}}}}),
        null.clone(),
    );
    assert!(!pods.opens(WEB, DB.1) && pods.opens(WEB, PAY.1) && pods.opens(WEB, OUTSIDE));
    let here = json!({"nodes": {"matchLabels": {"role": "edge"}}});
    let by = |lab: &Lab| lab.decides(WEB.0, Egress, HOST.1, TCP, (40_000, 80)).1;
    assert_eq!(by(&egress(here, null.clone())), "ClusterNetworkPolicy c rule 0");
    let elsewhere = json!({"nodes": {"matchLabels": {"role": "core"}}});
    assert_eq!(by(&egress(elsewhere, null)), "to-host");
    let db = json!({"namespaces": {}});
    let ports = egress(
        db.clone(),
        json!([{"tcp": {"destinationPort": {"range": {"start": 80, "end": 81}}}}, {"udp": {}}]),
    );
    assert!(
        !ports.opens(WEB, DB.1)
            && ports.allows(WEB.0, Egress, DB.1, TCP, 82)
            && !ports.allows(WEB.0, Egress, DB.1, UDP, 1)
    );
    let named = egress(db, json!([{"destinationNamedPort": "api"}]));
    assert!(!named.allows(WEB.0, Egress, DB.1, TCP, 8002) && named.allows(WEB.0, Egress, DB.1, TCP, 8001));
}
