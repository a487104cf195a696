//! What is not valid is named: each field of each kind that can be wrong, the error's place, and what a policy with it
//! does where it is stored nevertheless.

use policies_compiler::validate_object;
use serde_json::{Value, json};

/// Places of all errors.
fn errors(object: &Value) -> Vec<String> {
    match validate_object(object) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_iter().map(|error| error.field).collect(),
    }
}

fn object(kind: &str, spec: &Value) -> Value {
    let mut object = json!({"apiVersion": "projectcalico.org/v3", "kind": kind,
        "metadata": {"name": "p"}, "spec": spec});
    if ["NetworkPolicy", "StagedNetworkPolicy", "NetworkSet"].contains(&kind) {
        object["metadata"]["namespace"] = json!("shop");
    }
    object
}

#[track_caller]
fn check(kind: &str, cases: &[(Value, &[&str])]) {
    for (spec, fields) in cases {
        assert_eq!(errors(&object(kind, spec)), *fields, "{kind} {spec}");
    }
}

/// A rule for egress of a global policy, with what every case of a table has in common.
#[track_caller]
fn check_egress_rules(cases: &[(Value, &[&str])]) {
    for (rule, fields) in cases {
        let mut rule = rule.clone();
        if rule.get("action").is_none() {
            rule["action"] = json!("Allow");
        }
        let places: Vec<String> = fields
            .iter()
            .map(|field| format!("spec.egress[0].{field}"))
            .collect();
        let policy = object("GlobalNetworkPolicy", &json!({"egress": [rule]}));
        assert_eq!(errors(&policy), places, "{rule}");
    }
}

#[test]
fn actions_protocols_and_versions() {
    check_egress_rules(&[
        (json!({"action": "Allow"}), &[]),
        (json!({"action": "Log"}), &[]),
        (json!({"action": "Pass"}), &[]),
        (json!({"action": "allow"}), &["action"]),
        (json!({"action": ""}), &["action"]),
        (json!({"protocol": "TCP"}), &[]),
        (json!({"protocol": "udplite"}), &[]),
        (json!({"protocol": 1}), &[]),
        (json!({"protocol": "255"}), &[]),
        (json!({"protocol": 0}), &["protocol"]),
        (json!({"protocol": 256}), &["protocol"]),
        (json!({"protocol": "+6"}), &["protocol"]),
        (json!({"protocol": ""}), &["protocol"]),
        (json!({"protocol": "GRE"}), &["protocol"]),
        (json!({"notProtocol": "GRE"}), &["notProtocol"]),
        (json!({"ipVersion": 4}), &[]),
        (json!({"ipVersion": 5}), &["ipVersion"]),
        (json!({"ipVersion": 6, "protocol": "ICMP"}), &["ipVersion"]),
        (json!({"ipVersion": 4, "notProtocol": "ICMPv6"}), &["ipVersion"]),
        (json!({"ipVersion": 6, "protocol": 58}), &[]),
        (json!({"http": {"methods": ["GET"]}}), &["http"]),
        (json!({"metadata": {"annotations": {"a": "b"}}}), &[]),
    ]);
}

#[test]
fn kinds_of_icmp_messages() {
    check_egress_rules(&[
        (
            json!({"protocol": "ICMP", "icmp": {"type": 254, "code": 255}}),
            &[],
        ),
        (json!({"protocol": 58, "notICMP": {"type": 0}}), &[]),
        (json!({"protocol": "ICMP", "icmp": {}}), &[]),
        (json!({"icmp": {"type": 8}}), &["icmp"]),
        (json!({"protocol": "TCP", "notICMP": {"type": 8}}), &["notICMP"]),
        (json!({"protocol": "ICMP", "icmp": {"type": 255}}), &["icmp.type"]),
        (json!({"protocol": "ICMP", "icmp": {"type": -1}}), &["icmp.type"]),
        (
            json!({"protocol": "ICMP", "icmp": {"type": 8, "code": 256}}),
            &["icmp.code"],
        ),
        (json!({"protocol": "ICMP", "icmp": {"code": 0}}), &["icmp.code"]),
    ]);
}

#[test]
fn ports() {
    let to = |protocol: Value, ports: Value| json!({"protocol": protocol, "destination": {"ports": ports}});
    check_egress_rules(&[
        (
            to(
                json!("TCP"),
                json!([80, "80", "8000:8099", "http", "A_b.c-1", "1:65535"]),
            ),
            &[],
        ),
        (to(json!(132), json!([80])), &[]),
        (to(Value::Null, json!(["http"])), &[]),
        (to(Value::Null, json!([80])), &["destination.ports[0]"]),
        (to(Value::Null, json!(["http", "80"])), &["destination.ports[1]"]),
        (to(json!("ICMP"), json!(["http"])), &["destination.ports[0]"]),
        (to(json!("UDPLite"), json!([80])), &["destination.ports[0]"]),
        (to(json!("TCP"), json!([65536])), &["destination.ports[0]"]),
        (to(json!("TCP"), json!([-1])), &["destination.ports[0]"]),
        (
            to(
                json!("TCP"),
                json!(["65536", "4294967376", "99999999999", "80:99999999999"]),
            ),
            &[
                "destination.ports[0]",
                "destination.ports[1]",
                "destination.ports[2]",
                "destination.ports[3]",
            ],
        ),
        // No port, as Calico's validator has it.
        (
            to(json!("UDP"), json!([0, "0", "0:0", "0:1023"])),
            &[
                "destination.ports[0]",
                "destination.ports[1]",
                "destination.ports[2]",
                "destination.ports[2]",
                "destination.ports[3]",
            ],
        ),
        (
            json!({"protocol": "UDP", "source": {"ports": [0], "notPorts": ["0:53"]}}),
            &["source.ports[0]", "source.notPorts[0]"],
        ),
        (to(json!("TCP"), json!(["80:79"])), &["destination.ports[0]"]),
        (to(json!("TCP"), json!(["80:"])), &["destination.ports[0]"]),
        (to(json!("TCP"), json!([":80"])), &["destination.ports[0]"]),
        (to(json!("TCP"), json!(["1:2:3"])), &["destination.ports[0]"]),
        (to(json!("TCP"), json!(["+80"])), &["destination.ports[0]"]),
        (to(json!("TCP"), json!(["+1:+2"])), &["destination.ports[0]"]),
        (to(json!("TCP"), json!(["ht tp"])), &["destination.ports[0]"]),
        (to(json!("TCP"), json!([""])), &["destination.ports[0]"]),
        (
            to(json!("TCP"), json!(["a".repeat(129)])),
            &["destination.ports[0]"],
        ),
        (to(json!("TCP"), json!(vec![80; 50])), &[]),
        (to(json!("TCP"), json!(vec![80; 51])), &["destination.ports"]),
        (
            json!({"protocol": "TCP", "source": {"notPorts": [70000]}}),
            &["source.notPorts[0]"],
        ),
        (
            json!({"protocol": "TCP", "destination": {"notPorts": ["x y"]}}),
            &["destination.notPorts[0]"],
        ),
        (json!({"source": {"ports": [1]}}), &["source.ports[0]"]),
    ]);
}

#[test]
fn addresses() {
    let to = |nets: Value| json!({"destination": {"nets": nets}});
    let not_to = |nets: Value| json!({"destination": {"notNets": nets}});
    check_egress_rules(&[
        (to(json!(["10.0.0.0/8", "192.0.2.7", "0.0.0.0/0"])), &[]),
        (to(json!(["2001:db8::/32", "2001:db8::7", "::/0"])), &[]),
        (to(json!(["10.1.2.3/8"])), &[]),
        (to(json!(["010.0.0.0/8"])), &["destination.nets[0]"]),
        (to(json!(["10.0.0.0/33"])), &["destination.nets[0]"]),
        (to(json!(["10.0.0.0/08"])), &["destination.nets[0]"]),
        (to(json!(["10.0.0.0/+8"])), &["destination.nets[0]"]),
        (to(json!(["10.0.0/8"])), &["destination.nets[0]"]),
        (to(json!(["10.0.0.0/8 "])), &["destination.nets[0]"]),
        (to(json!(["", "10.0.0.0/8"])), &["destination.nets[0]"]),
        (to(json!(["::ffff:10.0.0.1"])), &["destination.nets[0]"]),
        (to(json!(["fe80::1%eth0"])), &["destination.nets[0]"]),
        (
            to(json!(["10.0.0.0/8", "2001:db8::/32"])),
            &["destination.nets[1]"],
        ),
        (
            json!({"ipVersion": 6, "destination": {"nets": ["10.0.0.0/8"]}}),
            &["destination.nets[0]"],
        ),
        (
            json!({"source": {"nets": ["fd00::/8"]}, "destination": {"notNets": ["10.0.0.0/8"]}}),
            &["destination.notNets[0]"],
        ),
        (not_to(json!(["0.0.0.0/0"])), &["destination.notNets"]),
        (not_to(json!(["::/0"])), &["destination.notNets"]),
        (not_to(json!(["x"])), &["destination.notNets[0]"]),
        (to(json!(vec!["10.0.0.0/8"; 256])), &[]),
        (to(json!(vec!["10.0.0.0/8"; 257])), &["destination.nets"]),
    ]);
}

#[test]
fn selectors_of_rules() {
    check_egress_rules(&[
        (
            json!({"destination": {"selector": "a == 'b'", "notSelector": "has(c)", "namespaceSelector": "all()",
                "serviceAccounts": {"names": ["x"], "selector": "has(d)"}}}),
            &[],
        ),
        (
            json!({"destination": {"selector": "a = 'b'"}}),
            &["destination.selector"],
        ),
        (
            json!({"destination": {"selector": "global()"}}),
            &["destination.selector"],
        ),
        (
            json!({"destination": {"notSelector": "!"}}),
            &["destination.notSelector"],
        ),
        (
            json!({"destination": {"notSelector": "global()"}}),
            &["destination.notSelector"],
        ),
        (json!({"destination": {"namespaceSelector": "global()"}}), &[]),
        (json!({"destination": {"namespaceSelector": " global() "}}), &[]),
        (
            json!({"destination": {"namespaceSelector": "has("}}),
            &["destination.namespaceSelector"],
        ),
        (
            json!({"destination": {"namespaceSelector": "global() || all()"}}),
            &["destination.namespaceSelector"],
        ),
        (
            json!({"destination": {"namespaceSelector": "!global()"}}),
            &["destination.namespaceSelector"],
        ),
        (
            json!({"source": {"serviceAccounts": {"selector": "'x'"}}}),
            &["source.serviceAccounts.selector"],
        ),
    ]);
}

#[test]
fn services_and_names() {
    let web = json!({"name": "web", "namespace": "shop"});
    let to_web = |more: Value| {
        let mut rule = json!({"destination": {"services": web}});
        rule["destination"]
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        rule
    };
    check_egress_rules(&[
        (to_web(json!({})), &[]),
        (
            json!({"destination": {"services": {"name": "web"}}}),
            &["destination.services.namespace"],
        ),
        (
            json!({"destination": {"services": {"namespace": "shop"}}}),
            &["destination.services.name"],
        ),
        (to_web(json!({"selector": "all()"})), &["destination.services"]),
        (
            to_web(json!({"notSelector": "has(a)"})),
            &["destination.services"],
        ),
        (
            to_web(json!({"namespaceSelector": "all()"})),
            &["destination.services"],
        ),
        (
            to_web(json!({"serviceAccounts": {"names": ["a"]}})),
            &["destination.services"],
        ),
        (to_web(json!({"nets": ["10.0.0.0/8"]})), &["destination.services"]),
        (
            to_web(json!({"notNets": ["10.0.0.0/8"]})),
            &["destination.services"],
        ),
        (to_web(json!({"ports": ["http"]})), &["destination.services"]),
        (to_web(json!({"notPorts": ["http"]})), &["destination.services"]),
        (json!({"source": {"services": web}}), &["source.services"]),
        (
            json!({"destination": {"domains": ["example.com", "*.example.com"]}}),
            &[],
        ),
        (
            json!({"destination": {"domains": ["example..com", "-a.com"]}}),
            &["destination.domains[0]", "destination.domains[1]"],
        ),
        (
            json!({"source": {"domains": ["example.com"]}}),
            &["source.domains"],
        ),
        (
            json!({"action": "Deny", "destination": {"domains": ["example.com"]}}),
            &["destination.domains"],
        ),
        (
            json!({"destination": {"domains": ["example.com"], "selector": "all()"}}),
            &["destination.domains"],
        ),
    ]);
    let ingress = |rule: Value| json!({"ingress": [rule]});
    check(
        "GlobalNetworkPolicy",
        &[
            (
                ingress(json!({"action": "Allow", "source": {"services": web, "ports": ["http"]}})),
                &[],
            ),
            (
                ingress(json!({"action": "Allow", "destination": {"services": web}})),
                &["spec.ingress[0].destination.services"],
            ),
            (
                ingress(json!({"action": "Allow", "destination": {"domains": ["example.com"]}})),
                &["spec.ingress[0].destination.domains"],
            ),
        ],
    );
    // Without a namespace, a namespaced policy means its own.
    check(
        "NetworkPolicy",
        &[(
            json!({"egress": [{"action": "Allow", "destination": {"services": {"name": "web"}}}]}),
            &[],
        )],
    );
}

#[test]
fn heads_of_policies() {
    let rules = json!([{"action": "Allow"}]);
    check(
        "GlobalNetworkPolicy",
        &[
            (json!({}), &[]),
            (
                json!({"tier": "security", "order": -1.5, "selector": "has(a)", "namespaceSelector": "has(b)",
                    "serviceAccountSelector": "has(c)", "types": ["Egress", "Ingress"], "performanceHints": []}),
                &[],
            ),
            (json!({"tier": "Security"}), &["spec.tier"]),
            (json!({"tier": "a.b"}), &["spec.tier"]),
            (json!({"tier": ""}), &[]),
            (json!({"tier": "a".repeat(64)}), &["spec.tier"]),
            (json!({"selector": "a =="}), &["spec.selector"]),
            (json!({"selector": "global()"}), &["spec.selector"]),
            (json!({"namespaceSelector": "a"}), &["spec.namespaceSelector"]),
            (
                json!({"serviceAccountSelector": "a"}),
                &["spec.serviceAccountSelector"],
            ),
            (json!({"types": ["ingress"]}), &["spec.types[0]"]),
            (json!({"types": ["Egress", "Egress"]}), &["spec.types[1]"]),
            (json!({"stagedAction": "Set"}), &["spec.stagedAction"]),
            (json!({"doNotTrack": true, "applyOnForward": true}), &[]),
            (json!({"doNotTrack": true}), &["spec.applyOnForward"]),
            (
                json!({"preDNAT": true, "applyOnForward": false}),
                &["spec.applyOnForward"],
            ),
            (
                json!({"preDNAT": true, "doNotTrack": true, "applyOnForward": true}),
                &["spec.preDNAT"],
            ),
            (
                json!({"preDNAT": true, "applyOnForward": true, "egress": rules}),
                &["spec.preDNAT"],
            ),
            (
                json!({"preDNAT": true, "applyOnForward": true, "types": ["Ingress", "Egress"]}),
                &["spec.preDNAT"],
            ),
            (
                json!({"preDNAT": true, "applyOnForward": true, "ingress": rules}),
                &[],
            ),
            (
                json!({"doNotTrack": true, "applyOnForward": true,
                    "egress": [{"action": "Allow", "destination": {"domains": ["example.com"]}}]}),
                &["spec.egress[0].destination.domains"],
            ),
            (
                json!({"ingress": vec![json!({"action": "Deny"}); 1025]}),
                &["spec.ingress"],
            ),
        ],
    );
    check(
        "NetworkPolicy",
        &[
            (json!({"selector": "has(a)"}), &[]),
            (json!({"namespaceSelector": "all()"}), &["spec.namespaceSelector"]),
            (json!({"doNotTrack": false}), &["spec.doNotTrack"]),
            (json!({"preDNAT": true}), &["spec.preDNAT"]),
            (json!({"applyOnForward": true}), &["spec.applyOnForward"]),
        ],
    );
    check(
        "StagedGlobalNetworkPolicy",
        &[
            (json!({"stagedAction": "Learn"}), &[]),
            (json!({"stagedAction": "set"}), &["spec.stagedAction"]),
            (json!({"stagedAction": "Delete", "tier": "default"}), &[]),
            (json!({"stagedAction": "Delete", "selector": "all()"}), &["spec"]),
        ],
    );
    check(
        "StagedKubernetesNetworkPolicy",
        &[
            (json!({"stagedAction": "Delete"}), &[]),
            (json!({"stagedAction": "Delete", "podSelector": {}}), &[]),
            (
                json!({"stagedAction": "Set", "podSelector": {}, "ingress": [{}]}),
                &[],
            ),
            (
                json!({"stagedAction": "Delete", "podSelector": {"matchLabels": {"a": "b"}}}),
                &["spec"],
            ),
            (
                json!({"stagedAction": "Delete", "podSelector": {}, "ingress": [{}]}),
                &["spec"],
            ),
            (json!({"stagedAction": "Delete", "egress": [{}]}), &["spec"]),
            (
                json!({"stagedAction": "Delete", "policyTypes": ["Ingress"]}),
                &["spec"],
            ),
        ],
    );
}

#[test]
fn names_of_policies() {
    let named = |kind: &str, name: &str| {
        let mut object = object(kind, &json!({}));
        object["metadata"]["name"] = json!(name);
        errors(&object)
    };
    for name in ["p", "default.p", "a-b.c-1", "0"] {
        assert_eq!(named("NetworkPolicy", name), Vec::<String>::new(), "{name}");
        assert_eq!(named("GlobalNetworkPolicy", name), Vec::<String>::new(), "{name}");
    }
    for name in ["P", "a_b", "a.b.c", "-a", "a-", "a.", ".a", "a b"] {
        assert_eq!(named("NetworkPolicy", name), ["metadata.name"], "{name}");
        assert_eq!(named("GlobalNetworkPolicy", name), ["metadata.name"], "{name}");
    }
    assert_eq!(named("NetworkPolicy", "knp.default.a.b"), Vec::<String>::new());
    assert_eq!(named("GlobalNetworkPolicy", "knp.default.a.b"), ["metadata.name"]);
}

#[test]
fn tiers_sets_hosts_and_settings() {
    let tier = |name: &str, spec: Value| {
        let mut tier = object("Tier", &spec);
        tier["metadata"]["name"] = json!(name);
        errors(&tier)
    };
    for (name, spec, expected) in [
        ("security", json!({}), vec![]),
        ("security", json!({"order": 5.5, "defaultAction": "Pass"}), vec![]),
        (
            "security",
            json!({"defaultAction": "Allow"}),
            vec!["spec.defaultAction"],
        ),
        ("a.b", json!({}), vec!["metadata.name"]),
        ("A", json!({}), vec!["metadata.name"]),
        (
            "default",
            json!({"order": 1_000_000, "defaultAction": "Deny"}),
            vec![],
        ),
        (
            "default",
            json!({"order": 1, "defaultAction": "Pass"}),
            vec!["spec.order", "spec.defaultAction"],
        ),
        (
            "kube-admin",
            json!({"order": 1000, "defaultAction": "Pass"}),
            vec![],
        ),
        (
            "kube-admin",
            json!({"defaultAction": "Deny"}),
            vec!["spec.defaultAction"],
        ),
        ("kube-baseline", json!({"order": 10_000_000}), vec![]),
        ("kube-baseline", json!({"order": 1}), vec!["spec.order"]),
    ] {
        assert_eq!(tier(name, spec.clone()), expected, "{name} {spec}");
    }
    check(
        "GlobalNetworkSet",
        &[
            (
                json!({"nets": ["10.0.0.0/8", "2001:db8::1"], "allowedEgressDomains": ["*.a.com"]}),
                &[],
            ),
            (json!({"nets": ["10.0.0.0/8", "010.0.0.0/8"]}), &["spec.nets[1]"]),
            (
                json!({"allowedEgressDomains": ["*"]}),
                &["spec.allowedEgressDomains[0]"],
            ),
        ],
    );
    let mut forged = object("NetworkSet", &json!({}));
    forged["metadata"]["labels"] = json!({"projectcalico.org/namespace": "other"});
    assert_eq!(errors(&forged), ["metadata.labels"]);
    let port = |name: &str, protocol: Value, port: i32| json!({"node": "n", "interfaceName": "*", "ports": [{"name": name, "protocol": protocol, "port": port}]});
    check(
        "HostEndpoint",
        &[
            (json!({"node": "n", "interfaceName": "eth0.1"}), &[]),
            (
                json!({"node": "n", "expectedIPs": ["192.0.2.1", "2001:db8::1"]}),
                &[],
            ),
            (json!({"interfaceName": "eth0"}), &["spec.node"]),
            (json!({"node": "n"}), &["spec.interfaceName"]),
            (
                json!({"node": "n", "interfaceName": "eth 0"}),
                &["spec.interfaceName"],
            ),
            (
                json!({"node": "n", "interfaceName": "0123456789abcdef"}),
                &["spec.interfaceName"],
            ),
            (
                json!({"node": "n", "expectedIPs": ["192.0.2.0/24"]}),
                &["spec.expectedIPs[0]"],
            ),
            (port("ssh", json!("tcp"), 22), &[]),
            (port("ssh", json!(6), 22), &[]),
            (port("ssh", json!("ICMP"), 22), &["spec.ports[0].protocol"]),
            (port("s h", json!("TCP"), 22), &["spec.ports[0].name"]),
            (port("ssh", json!("TCP"), 0), &["spec.ports[0].port"]),
        ],
    );
    let inbound = |port: Value| json!({"failsafeInboundHostPorts": [port]});
    for (spec, expected) in [
        (json!({"defaultEndpointToHostAction": "Accept"}), vec![]),
        (
            json!({"defaultEndpointToHostAction": "Deny"}),
            vec!["spec.defaultEndpointToHostAction"],
        ),
        (inbound(json!({"port": 22, "net": "10.0.0.0/8"})), vec![]),
        (
            inbound(json!({"port": 0})),
            vec!["spec.failsafeInboundHostPorts[0].port"],
        ),
        (
            inbound(json!({"port": 1, "protocol": "ICMP"})),
            vec!["spec.failsafeInboundHostPorts[0].protocol"],
        ),
        (
            inbound(json!({"port": 1, "net": "x"})),
            vec!["spec.failsafeInboundHostPorts[0].net"],
        ),
    ] {
        let mut configuration = object("FelixConfiguration", &spec);
        configuration["metadata"]["name"] = json!("default");
        assert_eq!(errors(&configuration), expected, "{spec}");
    }
}

/// A misspelt field would be another policy.
#[test]
fn fields_that_a_kind_does_not_have() {
    let misspelt = json!({"egress": [{"action": "Allow", "destination": {"selectr": "has(a)"}}]});
    check(
        "NetworkPolicy",
        &[(misspelt, &["spec.egress[0].destination.selectr"])],
    );
    check("NetworkPolicy", &[(json!({"egress": "all"}), &["spec.egress"])]);
}

#[test]
fn cluster_network_policies() {
    let all = json!({"namespaces": {}});
    let near = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
    let policy = |changes: &[(&str, Value)]| {
        let mut policy = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "p"}, "spec": {"tier": "Admin", "priority": 10, "subject": all}});
        for (field, value) in changes {
            policy["spec"][field] = value.clone();
        }
        errors(&policy)
    };
    let none = Vec::<String>::new();
    assert_eq!(policy(&[]), none);
    assert_eq!(policy(&[("tier", json!("admin"))]), ["spec.tier"]);
    assert_eq!(policy(&[("priority", json!(1001))]), ["spec.priority"]);
    assert_eq!(policy(&[("priority", json!(-1))]), ["spec.priority"]);
    assert_eq!(policy(&[("subject", json!({}))]), ["spec.subject"]);
    assert_eq!(
        policy(&[("subject", json!({"namespaces": near}))]),
        ["spec.subject.namespaces"]
    );
    let pods = json!({"namespaceSelector": {}, "podSelector": near});
    assert_eq!(
        policy(&[("subject", json!({"pods": pods}))]),
        ["spec.subject.pods.podSelector"]
    );

    let egress = |action: &str, peer: &Value, protocols: &Value| {
        let mut rule = json!({"action": action, "to": [peer]});
        if !protocols.is_null() {
            rule["protocols"] = protocols.clone();
        }
        policy(&[("egress", json!([rule]))])
    };
    let null = Value::Null;
    for (action, peer, expected) in [
        ("Accept", json!({"networks": ["10.0.0.0/8"]}), vec![]),
        ("Deny", json!({"nodes": {}}), vec![]),
        ("Accept", json!({"domainNames": ["*.example.com"]}), vec![]),
        ("Allow", all.clone(), vec!["spec.egress[0].action"]),
        ("Accept", json!({}), vec!["spec.egress[0].to[0]"]),
        (
            "Accept",
            json!({"namespaces": {}, "nodes": {}}),
            vec!["spec.egress[0].to[0]"],
        ),
        (
            "Accept",
            json!({"networks": ["10.0.0.1"]}),
            vec!["spec.egress[0].to[0].networks[0]"],
        ),
        (
            "Deny",
            json!({"domainNames": ["a.com"]}),
            vec!["spec.egress[0].to[0].domainNames"],
        ),
        (
            "Accept",
            json!({"domainNames": ["a b"]}),
            vec!["spec.egress[0].to[0].domainNames[0]"],
        ),
    ] {
        assert_eq!(egress(action, &peer, &null), expected, "{action} {peer}");
    }
    let port = |port: Value| json!([{"tcp": {"destinationPort": port}}]);
    for (protocols, expected) in [
        (port(json!({"number": 80})), vec![]),
        (port(json!({"range": {"start": 80, "end": 80}})), vec![]),
        (json!([{"destinationNamedPort": "http"}, {"udp": {}}]), vec![]),
        (json!([]), vec!["spec.egress[0].protocols"]),
        (json!([{}]), vec!["spec.egress[0].protocols[0]"]),
        (
            json!([{"tcp": {}, "udp": {}}]),
            vec!["spec.egress[0].protocols[0]"],
        ),
        (
            port(json!({"number": 0})),
            vec!["spec.egress[0].protocols[0].tcp.destinationPort.number"],
        ),
        (
            port(json!({"range": {"start": 80, "end": 79}})),
            vec!["spec.egress[0].protocols[0].tcp.destinationPort.range.end"],
        ),
        (
            port(json!({"number": 80, "range": {"start": 80, "end": 81}})),
            vec!["spec.egress[0].protocols[0].tcp.destinationPort"],
        ),
    ] {
        assert_eq!(egress("Accept", &all, &protocols), expected, "{protocols}");
    }
    let named = json!([{"destinationNamedPort": "http"}]);
    let outside = egress("Accept", &json!({"networks": ["10.0.0.0/8"]}), &named);
    assert_eq!(outside, ["spec.egress[0].to[0]"]);
    let ingress = |rule: Value| policy(&[("ingress", json!([rule]))]);
    assert_eq!(ingress(json!({"action": "Pass", "from": [all]})), none);
    assert_eq!(
        ingress(json!({"action": "Accept", "from": [{"networks": ["10.0.0.0/8"]}]})),
        ["spec.ingress[0].from[0]"]
    );
    assert_eq!(
        ingress(json!({"action": "Accept", "from": []})),
        ["spec.ingress[0].from"]
    );
    let long = json!({"name": "n".repeat(101), "action": "Pass", "from": [all]});
    assert_eq!(ingress(long), ["spec.ingress[0].name"]);
    let many = vec![json!({"action": "Pass", "from": [all]}); 26];
    assert_eq!(policy(&[("ingress", json!(many))]), ["spec.ingress"]);
}

/// Whole errors, as the server gives them: the field, what DNS allows, what to write.
#[test]
fn names_are_as_long_as_dns_allows() {
    let (label, long) = ("a".repeat(63), "b".repeat(64));
    let longest = [&label[..], &label, &label, &"c".repeat(61)].join(".");
    assert_eq!(longest.len(), 253);
    let fix = "write it as example.com, or as *.example.com for every name below it";
    let spaced = "not a name";
    for (name, problem) in [
        (longest.clone(), None),
        (format!("{longest}."), None),
        (format!("*.{label}.com"), None),
        (
            format!("x{longest}"),
            Some(format!(
                "\"x{}...\" has 254 bytes, and a name has at most 253",
                &label[1..]
            )),
        ),
        (
            "d".repeat(1 << 20),
            Some(format!(
                "\"{}...\" has 1048576 bytes, and a name has at most 253",
                "d".repeat(63)
            )),
        ),
        (
            format!("{long}.com"),
            Some(format!(
                "the label \"{long}\" has 64 bytes, and one of a name has at most 63"
            )),
        ),
        (
            spaced.to_owned(),
            Some(format!("{spaced:?} is not the name of a host")),
        ),
        (String::new(), Some("\"\" is not the name of a host".to_owned())),
    ] {
        let rule = json!({"action": "Allow", "destination": {"domains": ["example.com", name]}});
        let entry = json!({"name": "n", "action": "Accept", "to": [{"domainNames": ["example.com", name]}]});
        let by_name = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "p"}, "spec": {"tier": "Admin", "priority": 1,
                "subject": {"namespaces": {}}, "egress": [entry]}});
        let set = json!({"allowedEgressDomains": ["example.com", name]});
        for (object, field) in [
            (object("NetworkSet", &set), "spec.allowedEgressDomains[1]"),
            (object("GlobalNetworkSet", &set), "spec.allowedEgressDomains[1]"),
            (
                object("GlobalNetworkPolicy", &json!({"egress": [rule]})),
                "spec.egress[0].destination.domains[1]",
            ),
            (by_name, "spec.egress[0].to[0].domainNames[1]"),
        ] {
            let told = validate_object(&object).err().unwrap_or_default();
            let told: Vec<String> = told.iter().map(ToString::to_string).collect();
            let expected = problem
                .as_ref()
                .map(|problem| format!("{field}: {problem}; {fix}"));
            assert_eq!(told, Vec::from_iter(expected));
        }
    }
    let names: Vec<String> = (0..4097).map(|i| format!("{i}.example.com")).collect();
    let many = object("NetworkSet", &json!({"allowedEgressDomains": names}));
    assert_eq!(errors(&many), ["spec.allowedEgressDomains"]);
}
