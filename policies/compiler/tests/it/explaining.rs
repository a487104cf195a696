//! Explanations and loading, as a person sees them.

use api::flow::FlowVerdict;
use policies_compiler::{
    ExplainError, FlowError, LoadError, Loaded, Question, explain, load_objects, parse_protocol,
};
use serde_json::{Value, json};

use crate::sources;

fn pod(namespace: &str, name: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {"containers": []}})
}

fn shop() -> Loaded {
    let policy = json!({"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"namespace": "shop", "name": "db"},
        "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "job"}}}]},
            {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 5432}]}]}});
    let list = json!({"kind": "List", "items": [pod("shop", "web"), pod("shop", "db"), policy]});
    load_objects(sources(&[
        list,
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "db"}}),
    ]))
    .expect("the objects load")
}

fn ask(loaded: &Loaded, from: &str, to: &str, port: u16) -> Result<String, ExplainError> {
    let explanation = explain(&loaded.view, &tcp(from, to, port)?)?;
    Ok(explanation.to_string())
}

fn tcp(from: &str, to: &str, port: u16) -> Result<Question, ExplainError> {
    Ok(Question {
        source: from.parse()?,
        destination: to.parse()?,
        protocol: 6,
        source_port: 0,
        port,
    })
}

#[test]
fn an_explanation_tells_what_was_tried() {
    let loaded = shop();
    assert_eq!(
        ask(&loaded, "shop/web", "shop/db", 5432).unwrap(),
        "\
allowed: shop/web (198.18.165.68) to shop/db (198.18.170.192), TCP port 5432
  egress of shop/web: allowed by no-policy
    + profile of the namespace: allows, as no policy decided
  ingress of shop/db: allowed by NetworkPolicy shop/db rule 1
    - NetworkPolicy shop/db rule 0: does not select the other end
    + NetworkPolicy shop/db rule 1: allows
"
    );
    assert_eq!(
        ask(&loaded, "shop/web", "shop/db", 80).unwrap(),
        "\
denied: shop/web (198.18.165.68) to shop/db (198.18.170.192), TCP port 80
  egress of shop/web: allowed by no-policy
    + profile of the namespace: allows, as no policy decided
  ingress of shop/db: denied by default-deny (isolated by NetworkPolicy shop/db)
    - NetworkPolicy shop/db rule 0: does not select the other end
    - NetworkPolicy shop/db rule 1: is for other ports
    + end of tier default: denies
"
    );
}

#[test]
fn an_explanation_is_data_too() {
    let loaded = shop();
    let asked = tcp("203.0.113.9", "shop/db", 5432).unwrap();
    let explanation = explain(&loaded.view, &asked).unwrap();
    assert_eq!(explanation.verdict, FlowVerdict::Deny);
    assert_eq!(
        serde_json::to_value(&explanation).unwrap()["ingress"]["decidedBy"],
        json!({"rule": "default-deny (isolated by NetworkPolicy shop/db)", "tier": "default", "policy": "NetworkPolicy shop/db"})
    );
    assert!(explanation.egress.is_none());
}

/// A node is met by its host endpoint, whichever of the two is named; a namespace may be called `host` all the same.
#[test]
fn hosts_are_ends_too() {
    let host = json!({"kind": "HostEndpoint", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "uplink",
        "labels": {"edge": "1"}}, "spec": {"node": "n1", "interfaceName": "eth0", "expectedIPs": ["192.0.2.1"]}});
    let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n2"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]}});
    let rule = json!({"action": "Deny", "protocol": "TCP", "source": {"ports": [53]}});
    let policy = json!({"kind": "GlobalNetworkPolicy", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "edge"},
        "spec": {"selector": "has(edge)", "types": ["Ingress"], "ingress": [rule, {"action": "Allow"}]}});
    let objects = [host, node, policy, pod("shop", "web"), pod("host", "uplink")];
    let loaded = load_objects(sources(&objects)).unwrap();
    let expected = "\
allowed: shop/web (198.18.165.68) to host uplink (192.0.2.1), TCP port 80
  egress of shop/web: allowed by no-policy
    + profile of the namespace: allows, as no policy decided
  ingress of host uplink: allowed by GlobalNetworkPolicy edge rule 1
    - GlobalNetworkPolicy edge rule 0: is for other source ports
    + GlobalNetworkPolicy edge rule 1: allows
";
    for name in ["host/uplink", "host/n1", "192.0.2.1"] {
        assert_eq!(ask(&loaded, "shop/web", name, 80).unwrap(), expected);
    }
    let mut asked = tcp("shop/web", "host/n1", 80).unwrap();
    asked.source_port = 53;
    let explanation = explain(&loaded.view, &asked).unwrap();
    assert_eq!(explanation.verdict, FlowVerdict::Deny);
    assert!(explanation.to_string().starts_with(
        "denied: shop/web (198.18.165.68) to host uplink (192.0.2.1), TCP port 80 from port 53\n"
    ));
    let node = ask(&loaded, "shop/web", "host/n2", 80).unwrap();
    assert!(
        node.starts_with("allowed: shop/web (198.18.165.68) to 192.0.2.2, TCP port 80\n"),
        "{node}"
    );
    let pod = ask(&loaded, "shop/web", "pod/host/uplink", 80).unwrap();
    assert!(pod.contains("to host/uplink (198."), "{pod}");
}

/// A host endpoint for all interfaces expects no address: which of the node's a flow has decides, for who explains too.
#[test]
fn a_rule_may_ask_which_address_of_a_node_a_flow_has() {
    let host = json!({"kind": "HostEndpoint", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "every",
        "labels": {"edge": "1"}}, "spec": {"node": "n1", "interfaceName": "*"}});
    let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1"}, "status": {"addresses": [
        {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "ExternalIP", "address": "203.0.113.1"}]}});
    let inside = json!({"action": "Allow", "protocol": "TCP", "destination": {"nets": ["192.0.2.0/24"]}});
    let from_inside = json!({"action": "Allow", "source": {"nets": ["192.0.2.0/24"]}});
    let policy = json!({"kind": "GlobalNetworkPolicy", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "edge"},
        "spec": {"selector": "has(edge)", "types": ["Ingress", "Egress"], "ingress": [inside], "egress": [from_inside]}});
    let loaded = load_objects(sources(&[host, node, policy, pod("shop", "web")])).unwrap();
    let web = "\
allowed: shop/web (198.18.165.68) to host every (192.0.2.1), TCP port 80
  egress of shop/web: allowed by no-policy
    + profile of the namespace: allows, as no policy decided
  ingress of host every: allowed by GlobalNetworkPolicy edge rule 0
    + GlobalNetworkPolicy edge rule 0: allows
";
    for name in ["host/every", "host/n1", "192.0.2.1"] {
        assert_eq!(ask(&loaded, "shop/web", name, 80).unwrap(), web);
    }
    let other = ask(&loaded, "shop/web", "203.0.113.1", 80).unwrap();
    assert!(other.starts_with("denied"), "{other}");
    assert!(
        other.contains("    - GlobalNetworkPolicy edge rule 0: does not fit the end that judges\n"),
        "{other}"
    );
    for (from, expected) in [("192.0.2.1", "allowed"), ("203.0.113.1", "denied")] {
        let said = ask(&loaded, from, "198.51.100.9", 80).unwrap();
        assert!(said.starts_with(expected), "{said}");
    }
}

#[test]
fn questions_without_an_answer_say_why() {
    let loaded = shop();
    assert!(matches!(
        ask(&loaded, "shop/web", "shop/nobody", 1),
        Err(ExplainError::Flow(FlowError::UnknownPod { .. }))
    ));
    assert_eq!(
        ask(&loaded, "192.0.2.1", "192.0.2.2", 1),
        Err(ExplainError::NoEndpoint)
    );
    assert!(matches!(
        ask(&loaded, "shop/web", "host/nowhere", 1),
        Err(ExplainError::Flow(FlowError::UnknownHost(_)))
    ));
    for wrong in ["a/b/c", "host/a/b", "host/", "pod//a", ""] {
        let asked = ask(&loaded, wrong, "shop/db", 1);
        assert_eq!(asked, Err(ExplainError::End(wrong.to_owned())));
    }
    assert!(
        parse_protocol("256").is_err() && parse_protocol("Udp") == Ok(17) && parse_protocol("47") == Ok(47)
    );
}

#[test]
fn loading_notes_what_it_assumes() {
    let loaded = shop();
    let notes = loaded.notes.join("\n");
    for note in [
        "Secret db is left out",
        "namespace shop is taken",
        "Pod shop/web is taken to have the addresses 198.18.165.68 and fd4d:e513:bfef::",
    ] {
        assert!(notes.contains(note), "{note:?} is not in {notes}");
    }
    assert_eq!(loaded, shop(), "addresses are the same each time");
}

#[test]
fn loading_refuses_what_it_would_misread() {
    let misspelt = json!({"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": "p"},
        "spec": {"podSelector": {}, "ingress": [{"form": []}]}});
    match load_objects(sources(&[misspelt])) {
        Err(LoadError::Invalid {
            origin,
            object,
            errors,
        }) => {
            assert_eq!((origin.as_str(), object.as_str()), ("test", "NetworkPolicy p"));
            assert_eq!(errors[0].field, "spec.ingress[0].form");
        }
        other => panic!("{other:?}"),
    }
    let wrong = json!({"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": "p"}, "spec": {"podSelector": []}});
    assert!(matches!(
        load_objects(sources(&[wrong])),
        Err(LoadError::Invalid { .. })
    ));
    assert!(matches!(
        load_objects(sources(&[json!({})])),
        Err(LoadError::NoKind { .. })
    ));
    let nested = (0..20).fold(
        json!({"kind": "List", "items": []}),
        |list, _| json!({"kind": "List", "items": [list]}),
    );
    assert!(matches!(
        load_objects(sources(&[nested])),
        Err(LoadError::TooDeep { .. })
    ));
}

/// What would have been passed over is told instead, with the field.
#[test]
fn loading_refuses_what_it_would_pass_over() {
    let told = |object: Value| match load_objects(sources(&[object])) {
        Err(error) => error.to_string(),
        Ok(loaded) => panic!("loaded with {:?}", loaded.notes),
    };
    let object = |api_version: &str, kind: &str, rest: Value| {
        let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}});
        object
            .as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        object
    };
    for (api_version, kind) in [
        ("networking.k8s.io/v1", "NetworkPolcy"),
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
        ("projectcalico.org/v3", "GlobalNetworkPolicys"),
        ("crd.projectcalico.org/v1", "GlobalNetworkPolicys"),
        ("projectcalico.org/v4", "WorkloadEndpoint"),
        ("v1", "namespace"),
        ("v1", "Pods"),
        ("v1", "networkpolicy"),
        ("discovery.k8s.io/v1", "endpointslice"),
    ] {
        let told = told(object(api_version, kind, json!({})));
        let group = api_version.split('/').next().unwrap();
        let expected = format!("test: {kind} x: kind: {group} has none of this name that is known; ");
        assert!(told.contains(&expected), "{told}");
    }
    for (api_version, kind) in [
        ("networking.k8s.io/v1", "Ingress"),
        ("networking.k8s.io/v1", "IngressClass"),
        ("projectcalico.org/v3", "IPPool"),
        ("crd.projectcalico.org/v1", "BGPPeer"),
        ("apps/v1", "Deployment"),
        ("v1", "Secret"),
        ("v1", "Endpoints"),
    ] {
        let loaded = load_objects(sources(&[object(api_version, kind, json!({}))])).unwrap();
        assert_eq!(
            loaded.notes,
            [format!(
                "{kind} x is left out: network policy does not depend on it"
            )]
        );
    }
    let port = |port: Value| json!({"spec": {"containers": [{"name": "c", "ports": [port]}]}});
    for (object, field) in [
        (
            object(
                "v1",
                "Pod",
                json!({"spec": {"containers": []}, "status": {"podIP": "10.0.0.1/32"}}),
            ),
            "status.podIP",
        ),
        (
            object(
                "v1",
                "Pod",
                json!({"spec": {"containers": []}, "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "010.0.0.1"}]}}),
            ),
            "status.podIPs[1].ip",
        ),
        (
            object("v1", "Pod", port(json!({"name": "web", "containerPort": 70000}))),
            "spec.containers[0].ports[0].containerPort",
        ),
        (
            object(
                "v1",
                "Pod",
                port(json!({"name": "web", "containerPort": 80, "protocol": "tcp"})),
            ),
            "spec.containers[0].ports[0].protocol",
        ),
        (
            object(
                "v1",
                "Node",
                json!({"status": {"addresses": [
                {"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "n"}]}}),
            ),
            "status.addresses[1].address",
        ),
        (
            object(
                "v1",
                "Service",
                json!({"spec": {"ports": [{"port": 80, "targetPort": 80000}]}}),
            ),
            "spec.ports[0].targetPort",
        ),
        (
            object(
                "v1",
                "Service",
                json!({"spec": {"ports": [{"port": 80}, {"port": 0}]}}),
            ),
            "spec.ports[1].port",
        ),
        (
            object(
                "discovery.k8s.io/v1",
                "EndpointSlice",
                json!({"addressType": "IPv4",
                "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0"]}]}),
            ),
            "endpoints[1].addresses[0]",
        ),
        (
            object(
                "discovery.k8s.io/v1",
                "EndpointSlice",
                json!({"addressType": "IPv4", "endpoints": [],
                "ports": [{"port": 80, "protocol": "HTTP"}]}),
            ),
            "ports[0].protocol",
        ),
        (
            object(
                "discovery.k8s.io/v1beta1",
                "EndpointSlice",
                json!({"addressType": "IPv4", "endpoints": []}),
            ),
            "apiVersion",
        ),
    ] {
        let told = told(object);
        assert!(told.contains(&format!(" x: {field}")), "{field}: {told}");
    }
    let names = json!({"addressType": "FQDN", "endpoints": [{"addresses": ["db.example"]}]});
    let names = object("discovery.k8s.io/v1", "EndpointSlice", names);
    let loaded = load_objects(sources(&[names])).unwrap();
    assert!(
        loaded.notes[0].contains("policy knows services by addresses"),
        "{:?}",
        loaded.notes
    );
}

#[test]
fn loading_knows_an_object_again_however_it_is_written() {
    let policy = |api_version: &str, kind: &str, namespace: Option<&str>, name: &str| {
        let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name},
            "spec": {"selector": "all()"}});
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        object
    };
    let (calico, stored) = ("projectcalico.org/v3", "crd.projectcalico.org/v1");
    let (global, own) = ("GlobalNetworkPolicy", "NetworkPolicy");
    let named = |api_version: &str, name: &str, shown: &str| {
        let mut object = policy(api_version, global, None, name);
        let metadata = json!({"name": shown}).to_string();
        object["metadata"]["annotations"] = json!({"projectcalico.org/metadata": metadata});
        object
    };
    let twice = [
        [
            policy(calico, own, Some("default"), "p"),
            policy(calico, own, None, "p"),
        ],
        [
            policy(calico, own, Some("a"), "p"),
            policy(stored, own, Some("a"), "p"),
        ],
        [
            policy(calico, global, None, "p"),
            policy(stored, global, None, "p"),
        ],
        [
            policy(calico, global, None, "p"),
            policy(stored, global, None, "default.p"),
        ],
        [policy(calico, global, None, "p"), named(stored, "default.p", "p")],
        [
            policy(calico, global, None, "default.p"),
            named(stored, "default.p", "default.p"),
        ],
        [
            policy(calico, global, Some("a"), "p"),
            policy(calico, global, None, "p"),
        ],
        [pod("default", "w"), {
            let mut bare = pod("default", "w");
            bare["metadata"].as_object_mut().unwrap().remove("namespace");
            bare
        }],
    ];
    for objects in &twice {
        let loaded = load_objects(sources(objects));
        assert!(
            matches!(loaded, Err(LoadError::Twice { .. })),
            "{objects:?}: {loaded:?}"
        );
    }
    let kubernetes = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "default"}, "spec": {"podSelector": {}}});
    let others = [
        policy(calico, own, Some("default"), "p"),
        policy(calico, own, Some("a"), "p"),
        policy(calico, global, None, "p"),
        kubernetes,
    ];
    assert!(load_objects(sources(&others)).is_ok());
}

/// As the API reads them: a member that is `null` is not there.
#[test]
fn loading_takes_null_for_absent_and_no_condition_for_less() {
    let calico = |spec: Value| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
            "metadata": {"name": "p", "namespace": "shop", "labels": null}, "spec": spec})
    };
    let kubernetes = |spec: Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "p", "namespace": "shop", "creationTimestamp": null}, "spec": spec})
    };
    let policies = |object: Value| {
        let loaded = load_objects(sources(&[object])).map_err(|error| error.to_string())?;
        Ok::<_, String>(loaded.view.policy_set(|_, _| {}).enforced)
    };
    for (with_null, without) in [
        (
            calico(json!({"selector": "all()", "types": ["Egress"], "egress": null})),
            calico(json!({"selector": "all()", "types": ["Egress"]})),
        ),
        (
            calico(
                json!({"selector": null, "order": null, "ingress": [{"action": "Allow", "protocol": "TCP",
                "source": {"nets": ["10.0.0.0/8"], "notNets": null, "selector": null}, "destination": null}]}),
            ),
            calico(
                json!({"ingress": [{"action": "Allow", "protocol": "TCP", "source": {"nets": ["10.0.0.0/8"]}}]}),
            ),
        ),
        (
            kubernetes(
                json!({"podSelector": {"matchExpressions": null}, "policyTypes": ["Ingress"], "ingress": null}),
            ),
            kubernetes(json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
        ),
        (
            kubernetes(json!({"podSelector": {"matchLabels": {"app": null}}})),
            kubernetes(json!({"podSelector": {"matchLabels": {"app": ""}}})),
        ),
    ] {
        assert_eq!(
            policies(with_null.clone()).unwrap(),
            policies(without).unwrap(),
            "{with_null}"
        );
    }
    // A rule that is null would be one that allows all.
    for wrong in [
        kubernetes(json!({"podSelector": {}, "ingress": [null]})),
        calico(json!({"ingress": [null]})),
        calico(json!({"ingress": [{"action": null}]})),
    ] {
        assert!(policies(wrong.clone()).is_err(), "{wrong}");
    }
}

/// The families of a service are those that its controller would write slices of.
#[test]
fn a_service_of_one_family_has_no_endpoints_of_the_other() {
    let mut pod = pod("shop", "db");
    let (v4, v6) = ("10.0.0.1", "fd00::1");
    pod["status"] = json!({"podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}]});
    for (spec, expected) in [
        (json!({"ipFamilies": ["IPv4"]}), vec![v4]),
        (json!({"ipFamilies": ["IPv6"]}), vec![v6]),
        (json!({"ipFamilies": ["IPv6", "IPv4"]}), vec![v4, v6]),
        (json!({}), vec![v4]),
        (json!({"clusterIP": "None"}), vec![v4]),
        (
            json!({"clusterIP": "None", "ipFamilyPolicy": "PreferDualStack"}),
            vec![v4, v6],
        ),
        (
            json!({"type": "ExternalName", "externalName": "db.example"}),
            vec![],
        ),
    ] {
        let mut service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "db", "namespace": "shop"},
            "spec": {"selector": {"app": "db"}, "ports": [{"port": 5432}]}});
        let members = service["spec"].as_object_mut().unwrap();
        members.extend(spec.as_object().unwrap().clone());
        let view = load_objects(sources(&[pod.clone(), service])).unwrap().view;
        let behind = view.services.get(&("shop".to_owned(), "db".to_owned()));
        let behind = behind.into_iter().flatten();
        let addresses: Vec<String> = behind.map(|endpoint| endpoint.address.to_string()).collect();
        assert_eq!(addresses, expected, "{spec}");
    }
}
