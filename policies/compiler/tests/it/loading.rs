//! Objects from files mean what they mean to the API.

use api::flow::FlowVerdict;
use policies_compiler::{CalicoObject, FlowEnd, LoadError, Loaded, Question, Source, explain, load_objects};
use serde_json::{Value, json};

use crate::sources;

const CALICO: &str = "projectcalico.org/v3";

#[expect(clippy::needless_pass_by_value, reason = "made where they are used")]
fn object(api_version: &str, kind: &str, metadata: Value, rest: Value) -> Value {
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
    let rest = rest.as_object().unwrap().clone();
    object.as_object_mut().unwrap().extend(rest);
    object
}

fn pod(metadata: Value, address: &str) -> Value {
    let rest = json!({"spec": {"containers": []}, "status": {"podIP": address}});
    object("v1", "Pod", metadata, rest)
}

fn load(objects: &[Value]) -> Loaded {
    load_objects(sources(objects)).expect("the objects load")
}

/// The verdict on a connection from `default/a` to `default/b`.
fn judged(objects: &[Value]) -> FlowVerdict {
    let end = |name: &str| FlowEnd::Pod {
        namespace: "default".to_owned(),
        name: name.to_owned(),
    };
    let asked = Question {
        source: end("a"),
        destination: end("b"),
        protocol: 6,
        source_port: 40000,
        port: 80,
    };
    explain(&load(objects).view, &asked)
        .expect("the flow is judged")
        .verdict
}

#[test]
fn errors_name_the_object_and_the_field_as_it_is_written() {
    let refused = |object: Value| match load_objects(sources(&[object])) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it loads"),
    };
    let spec = json!({"spec": {"podSelector": {}, "ingress": [{"from": []}, {"form": []}]}});
    let misspelt = object(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        json!({"name": "p"}),
        spec,
    );
    let said = refused(misspelt);
    assert!(said.contains("NetworkPolicy p: spec.ingress[1].form: "), "{said}");
    let said = refused(json!({"apiVersion": "v1", "metadata": {"name": "lost"}}));
    assert!(said.contains("\"lost\": kind: is missing"), "{said}");
    // `name: y`, which YAML takes for a boolean.
    let said = refused(object("v1", "Namespace", json!({"name": true}), json!({})));
    assert!(
        said.contains("metadata.name: true is not a string; put it in quotes"),
        "{said}"
    );
    let felix = |name: &str, spec: Value| {
        object(
            CALICO,
            "FelixConfiguration",
            json!({"name": name}),
            json!({"spec": spec}),
        )
    };
    let said = refused(felix("node.n1", json!({"defaultEndpointToHostAction": "Bogus"})));
    assert!(
        said.contains("metadata.name: ") && said.contains("spec.defaultEndpointToHostAction: "),
        "{said}"
    );
}

#[test]
fn what_calico_computes_may_stand_in_files_as_it_computes_it() {
    let allow = json!([{"action": "Allow", "source": {}, "destination": {}}]);
    let profile =
        |name: &str, spec: Value| object(CALICO, "Profile", json!({"name": name}), json!({"spec": spec}));
    let of_namespace = profile(
        "kns.a",
        json!({"ingress": allow, "egress": allow, "labelsToApply": {"pcns.x": "y"}}),
    );
    let of_account = profile("ksa.a.default", json!({"labelsToApply": {"pcsa.x": "y"}}));
    let loaded = load(&[of_namespace, of_account]);
    assert_eq!(loaded.notes.len(), 2, "{:?}", loaded.notes);
    assert!(loaded.view.calico.is_empty());
    for other in [
        profile("kns.a", json!({"ingress": allow})),
        profile("ksa.a.default", json!({"ingress": allow})),
    ] {
        let said = load_objects(sources(&[other])).unwrap_err().to_string();
        assert!(said.contains("would not count"), "{said}");
    }
}

#[test]
fn an_address_that_several_have_is_told_of() {
    let node = json!({"spec": {}, "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}});
    let objects = [
        pod(json!({"name": "a"}), "10.0.0.1"),
        pod(json!({"name": "b"}), "10.0.0.2"),
        object("v1", "Node", json!({"name": "n"}), node),
    ];
    let told: Vec<String> = load(&objects)
        .notes
        .into_iter()
        .filter(|note| note.contains("10.0.0."))
        .collect();
    let [only] = &told[..] else { panic!("{told:?}") };
    assert!(
        only.starts_with("Node n and Pod default/a have one address, 10.0.0.1"),
        "{only}"
    );
}

#[test]
fn a_namespace_that_is_empty_is_the_default_one_for_every_kind() {
    let named = |name: &str| json!({"name": name, "namespace": ""});
    let pods = [pod(named("a"), "10.0.0.1"), pod(json!({"name": "b"}), "10.0.0.2")];
    let with = |policy: Value| judged(&[&pods[..], &[policy]].concat());
    assert_eq!(judged(&pods), FlowVerdict::Allow);
    let everyone = json!({"spec": {"podSelector": {}}});
    let kubernetes = object("networking.k8s.io/v1", "NetworkPolicy", named("deny"), everyone);
    assert_eq!(with(kubernetes), FlowVerdict::Deny);
    let all = json!({"spec": {"selector": "all()"}});
    assert_eq!(
        with(object(CALICO, "NetworkPolicy", named("deny"), all)),
        FlowVerdict::Deny
    );

    // A set is in the namespace as well: the policy's own selectors find it.
    let set = object(
        CALICO,
        "NetworkSet",
        json!({"name": "s", "namespace": "", "labels": {"is": "set"}}),
        json!({"spec": {"nets": ["10.0.0.1/32"]}}),
    );
    let from_set = object(
        CALICO,
        "NetworkPolicy",
        json!({"name": "p"}),
        json!({"spec": {"selector": "all()", "types": ["Ingress"],
            "ingress": [{"action": "Allow", "source": {"selector": "is == 'set'"}}]}}),
    );
    let objects = [&pods[..], &[set, from_set]].concat();
    assert_eq!(judged(&objects), FlowVerdict::Allow);
    let namespaces: Vec<_> = load(&objects).view.namespaces.into_keys().collect();
    assert_eq!(namespaces, ["default"]);

    let twice = [
        pod(json!({"name": "a", "namespace": "default"}), "10.0.0.1"),
        pod(named("a"), "10.0.0.1"),
    ];
    let twice = load_objects(sources(&twice));
    assert!(matches!(twice, Err(LoadError::Twice { .. })), "{twice:?}");
}

/// An object as Calico keeps it, with the metadata that it has in Calico's API.
fn kept(kind: &str, name: &str, in_api: &str, spec: &Value) -> Value {
    let annotations = json!({"projectcalico.org/metadata": in_api});
    let metadata = json!({"name": name, "annotations": annotations});
    object("crd.projectcalico.org/v1", kind, metadata, json!({"spec": spec}))
}

#[test]
fn what_calico_keeps_has_the_labels_and_the_name_of_its_api() {
    let pods = [
        pod(json!({"name": "a"}), "10.0.0.1"),
        pod(json!({"name": "b"}), "10.0.0.2"),
    ];
    let policy = |api_version: &str, name: &str, egress: Value| {
        let spec = json!({"selector": "all()", "types": ["Egress"], "egress": egress});
        object(
            api_version,
            "GlobalNetworkPolicy",
            json!({"name": name}),
            json!({"spec": spec}),
        )
    };
    let nets = json!({"nets": ["10.0.0.2/32"]});
    let labels = r#"{"creationTimestamp":null,"uid":"x","labels":{"threat":"bad"}}"#;
    let set = kept("GlobalNetworkSet", "bad", labels, &nets);
    let not_to_set = policy(
        CALICO,
        "fence",
        json!([{"action": "Deny", "destination": {"selector": "threat == 'bad'"}}, {"action": "Allow"}]),
    );
    let with = |objects: &[Value]| judged(&[&pods[..], objects].concat());
    assert_eq!(with(&[set, not_to_set.clone()]), FlowVerdict::Deny);
    // Labels that stand in both places: those of the annotation count.
    let mut both = kept("GlobalNetworkSet", "bad", labels, &nets);
    both["metadata"]["labels"] = json!({"threat": "none", "place": "office"});
    assert_eq!(with(&[both.clone(), not_to_set]), FlowVerdict::Deny);
    let to_place = policy(
        CALICO,
        "fence",
        json!([{"action": "Deny", "destination": {"selector": "place == 'office'"}}, {"action": "Allow"}]),
    );
    assert_eq!(with(&[both, to_place]), FlowVerdict::Deny);

    let host = kept(
        "HostEndpoint",
        "eth0",
        r#"{"labels":{"role":"edge"}}"#,
        &json!({"node": "n", "interfaceName": "eth0"}),
    );
    let loaded = load(&[host]);
    let [CalicoObject::HostEndpoint(host)] = &loaded.view.calico[..] else {
        panic!("no host endpoint");
    };
    assert_eq!(host.metadata.labels.as_ref().unwrap()["role"], "edge");

    // Of two policies with one order, the name in the API decides: `o` comes before `p`, though `default.p` is less.
    let allow = policy(CALICO, "o", json!([{"action": "Allow"}]));
    let mut deny = policy(
        "crd.projectcalico.org/v1",
        "default.p",
        json!([{"action": "Deny"}]),
    );
    assert_eq!(with(&[allow.clone(), deny.clone()]), FlowVerdict::Deny);
    deny["metadata"]["annotations"] = json!({"projectcalico.org/metadata": r#"{"name":"p"}"#});
    assert_eq!(with(&[allow, deny]), FlowVerdict::Allow);
}

#[test]
fn what_calico_keeps_and_nobody_can_read_is_an_error() {
    for in_api in ["{", "[]", r#"{"labels":["a"]}"#, r#"{"labels":{"a":"b c"}}"#] {
        let set = kept("GlobalNetworkSet", "bad", in_api, &json!({"nets": []}));
        let told = load_objects(sources(&[set])).unwrap_err().to_string();
        let expected = "test: GlobalNetworkSet bad: metadata.annotations[projectcalico.org/metadata]: ";
        assert!(told.starts_with(expected), "{told}");
    }
    let mut set = kept(
        "GlobalNetworkSet",
        "bad",
        r#"{"labels":{"a":"b"}}"#,
        &json!({"nets": []}),
    );
    set["metadata"]["labels"] = json!(["a"]);
    assert!(load_objects(sources(&[set])).is_err());
    // Anybody may write that annotation; Calico reads it of what it keeps alone.
    let mut set = kept("GlobalNetworkSet", "bad", "{", &json!({"nets": []}));
    set["apiVersion"] = json!(CALICO);
    assert!(load_objects(sources(&[set])).is_ok());
}

#[test]
fn a_tier_that_is_empty_is_the_default_one() {
    let policy = |kind: &str, tier: Value| {
        let spec = json!({"spec": {"selector": "all()", "tier": tier}});
        object(CALICO, kind, json!({"name": "p"}), spec)
    };
    for kind in [
        "NetworkPolicy",
        "GlobalNetworkPolicy",
        "StagedNetworkPolicy",
        "StagedGlobalNetworkPolicy",
    ] {
        let set = |tier: Value| load(&[policy(kind, tier)]).view.policy_set(|_, _| {});
        assert_eq!(set(json!("")), set(json!("default")), "{kind}");
        let missing = load_objects(sources(&[policy(kind, json!("other"))]));
        assert!(matches!(missing, Err(LoadError::Invalid { .. })), "{missing:?}");
    }
}

#[test]
fn a_list_of_null_holds_nothing_and_one_of_something_else_is_an_error() {
    for kind in ["List", "PodList", "NetworkPolicyList"] {
        let list = json!({"apiVersion": "v1", "kind": kind, "items": null});
        let loaded = load(&[list]);
        assert_eq!(loaded, Loaded::default(), "{kind}");
        let list = json!({"apiVersion": "v1", "kind": kind, "items": {"kind": "Pod"}});
        let error = load_objects(sources(&[list])).unwrap_err().to_string();
        assert!(error.contains(&format!("{kind}: items: ")), "{error}");
    }
}

/// As the API does, with the place: a name that it would refuse is none that anything else could mean.
#[test]
fn names_and_labels_are_held_to_the_rules_of_the_api() {
    let told = |object: &Value| {
        let sources = [Source {
            origin: "d/p.yaml",
            object,
        }];
        load_objects(sources).map(drop).map_err(|error| error.to_string())
    };
    let named = |name: &str| json!({"name": name});
    let labelled = |key: &str, value: &str| json!({"name": "x", "labels": {key: value}});
    let of_pod = |metadata: Value| pod(metadata, "10.0.0.1");
    let core = |kind: &str, metadata: Value| object("v1", kind, metadata, json!({}));
    let kubernetes = |metadata: Value| {
        let spec = json!({"spec": {"podSelector": {}}});
        object("networking.k8s.io/v1", "NetworkPolicy", metadata, spec)
    };
    let calico =
        |kind: &str, metadata: Value, spec: Value| object(CALICO, kind, metadata, json!({"spec": spec}));
    let slice = json!({"addressType": "IPv4", "endpoints": []});
    let slice = |metadata: Value| object("discovery.k8s.io/v1", "EndpointSlice", metadata, slice.clone());
    let nets = json!({"nets": []});
    let host = json!({"node": "n1", "interfaceName": "eth0"});
    let long = "a".repeat(64);
    for (object, field) in [
        (kubernetes(named("Deny_All")), "metadata.name"),
        (kubernetes(named("-a")), "metadata.name"),
        (
            kubernetes(json!({"name": "a", "namespace": "a.b"})),
            "metadata.namespace",
        ),
        (kubernetes(labelled("a", "b c")), "metadata.labels"),
        (of_pod(named("a/b")), "metadata.name"),
        (
            of_pod(json!({"name": "a", "namespace": long})),
            "metadata.namespace",
        ),
        (of_pod(labelled("app", "b c")), "metadata.labels"),
        (of_pod(labelled("a b", "c")), "metadata.labels"),
        (of_pod(labelled("app", &long)), "metadata.labels"),
        (core("Namespace", named("a.b")), "metadata.name"),
        (core("Namespace", labelled("Prefix/a", "")), "metadata.labels"),
        (core("Node", named("N1")), "metadata.name"),
        (core("ServiceAccount", labelled("-", "")), "metadata.labels"),
        (core("Service", named("1a")), "metadata.name"),
        (
            object(
                "v1",
                "Service",
                named("a"),
                json!({"spec": {"selector": {"app": "b c"}}}),
            ),
            "spec.selector",
        ),
        (slice(named("ABC")), "metadata.name"),
        (calico("NetworkSet", named("ABC"), nets.clone()), "metadata.name"),
        (
            calico("GlobalNetworkSet", labelled("a", "b c"), nets),
            "metadata.labels",
        ),
        (
            calico("HostEndpoint", named("eth0_a"), host.clone()),
            "metadata.name",
        ),
        (
            calico("HostEndpoint", labelled("a", "-"), host),
            "metadata.labels",
        ),
        (
            calico("Profile", named("p"), json!({"labelsToApply": {"a": "b c"}})),
            "spec.labelsToApply",
        ),
        (
            calico(
                "NetworkPolicy",
                labelled("a", "b c"),
                json!({"selector": "all()"}),
            ),
            "metadata.labels",
        ),
    ] {
        let told = told(&object).expect_err(field);
        let label = object["kind"].as_str().unwrap();
        assert!(
            told.starts_with(&format!("d/p.yaml: {label} ")) && told.contains(&format!(": {field}: ")),
            "{field}: {told}"
        );
    }
    let edges = json!({"name": "a.b-1", "labels": {"example.com/A_b.c-1": "", "a": "A_b.c-1", "n": null}});
    for object in [
        of_pod(edges.clone()),
        kubernetes(edges),
        core("Service", named("a-1")),
    ] {
        assert_eq!(told(&object), Ok(()), "{object}");
    }
}
