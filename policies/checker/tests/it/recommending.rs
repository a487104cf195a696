//! Recommendations for more than one rule, or one policy, may hold.

use api::flow::FlowEvent;
use policies_checker::recommend::{Dialect, RecommendError, Recommendation, pod_selector, recommend};
use policies_compiler::{Book, ClusterView, FlowEnd, Judge, Question, Source, load_objects};
use policies_ir::tables::Verdict;
use serde_json::{Value, json};

fn pod(name: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"containers": [{"name": "c"}]}, "status": {"podIP": address}})
}

fn view_of<'a>(objects: impl IntoIterator<Item = &'a Value>) -> ClusterView {
    let origin = "here";
    let loaded = load_objects(objects.into_iter().map(|object| Source { origin, object }));
    loaded.unwrap().view
}

fn view() -> ClusterView {
    // The second has the name that a further policy of the first would have.
    view_of(&[pod("web", "10.244.0.1"), pod("web-2", "10.244.0.2")])
}

/// A flow of `web` that was let out.
fn sent(destination: &str, protocol: u8, port: u16) -> FlowEvent {
    let line = json!({
        "time": "1970-01-01T00:00:00Z", "node": "n", "pod": {"namespace": "shop", "name": "web"},
        "direction": "egress", "verdict": "allow", "decidedBy": {"rule": "no-policy"}, "source": "10.244.0.1",
        "destination": destination, "protocol": protocol, "sourcePort": 0, "destinationPort": port, "epoch": 1,
    });
    serde_json::from_value(line).unwrap()
}

fn recommended(flows: &[FlowEvent], dialect: Dialect) -> Recommendation {
    recommend(&view(), flows, dialect).unwrap()
}

/// Names of the policies but for the defaults, and the rules of each for what is sent.
fn written(recommendation: &Recommendation) -> Vec<(&str, &Vec<Value>)> {
    let objects = recommendation.objects.iter();
    let own = objects.filter(|object| object["metadata"]["name"] != "default-deny");
    own.map(|object| {
        let name = object["metadata"]["name"].as_str().unwrap();
        (name, object["spec"]["egress"].as_array().unwrap())
    })
    .collect()
}

fn lengths(rules: &[Value], list: &str) -> Vec<usize> {
    let of = |rule: &Value| rule.pointer(list).and_then(Value::as_array).map(Vec::len);
    rules.iter().filter_map(of).collect()
}

#[test]
fn addresses_are_split_where_a_rule_may_have_no_more() {
    // None of them is next to another.
    let address = |i: usize| format!("198.51.{}.{}", i / 128, i % 128 * 2);
    let flows: Vec<FlowEvent> = (0..1100).map(|i| sent(&address(i), 6, 443)).collect();
    let calico = recommended(&flows, Dialect::Calico);
    let [(name, rules)] = &written(&calico)[..] else {
        panic!("{:?}", calico.objects)
    };
    assert_eq!(*name, "web");
    assert_eq!(lengths(rules, "/destination/nets"), [256, 256, 256, 256, 76]);
    let kubernetes = recommended(&flows, Dialect::Kubernetes);
    let [(_, rules)] = &written(&kubernetes)[..] else {
        panic!("{:?}", kubernetes.objects)
    };
    assert_eq!(lengths(rules, "/to"), [1024, 76]);
}

#[test]
fn ports_are_split_where_a_rule_may_have_no_more() {
    let flows: Vec<FlowEvent> = (0..300).map(|i| sent("203.0.113.9", 6, 1000 + 2 * i)).collect();
    let calico = recommended(&flows, Dialect::Calico);
    let [(_, rules)] = &written(&calico)[..] else {
        panic!("{:?}", calico.objects)
    };
    assert_eq!(lengths(rules, "/destination/ports"), [50; 6]);
    let kubernetes = recommended(&flows, Dialect::Kubernetes);
    let [(_, rules)] = &written(&kubernetes)[..] else {
        panic!("{:?}", kubernetes.objects)
    };
    assert_eq!(lengths(rules, "/ports"), [256, 44]);
}

#[test]
fn rules_are_split_where_a_policy_may_have_no_more() {
    // Each kind of message takes a rule.
    let flows: Vec<FlowEvent> = (0..1030).map(|kind| sent("203.0.113.9", 1, kind)).collect();
    let calico = recommended(&flows, Dialect::Calico);
    let written = written(&calico);
    let names: Vec<(&str, usize)> = written.iter().map(|(name, rules)| (*name, rules.len())).collect();
    assert_eq!(names, [("web", 1024), ("web-3", 6)]);
}

#[test]
fn the_selector_of_a_pod_is_that_of_its_policy_in_every_revision() {
    let written = recommended(&[sent("203.0.113.9", 6, 443)], Dialect::Kubernetes);
    let policy = written
        .objects
        .iter()
        .find(|object| object["metadata"]["name"] == "web");
    let expected = &policy.unwrap()["spec"]["podSelector"];
    let labels = |more: &[(&str, &str)]| {
        let labels = [("app", "web")].iter().chain(more);
        labels
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    let selector = |pod: &str, more: &[(&str, &str)]| pod_selector(&view(), "shop", pod, &labels(more));
    assert_eq!(&selector("web", &[]), expected);
    // One that is gone by now.
    assert_eq!(
        &selector("web-7d4b9-x", &[("pod-template-hash", "7d4b9")]),
        expected
    );
    assert_eq!(
        selector("other", &[("tier", "a")]),
        json!({"matchLabels": {"tier": "a"}})
    );
}

/// Other pods have all labels of `web` and one more each, so that only what is absent tells it from them.
#[test]
fn a_selector_that_would_be_too_long_is_said_by_several() {
    let pod = |name: &str, address: &str, more: Option<&str>| {
        let mut labels = json!({"app": "web"});
        if let Some(key) = more {
            labels[key] = json!("");
        }
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": {"containers": [{"name": "c"}]}, "status": {"podIP": address}})
    };
    let others = (0..60).map(|i| {
        let key = format!("only-this-has-{i}");
        pod(&format!("other-{i}"), &format!("10.244.1.{i}"), Some(&key))
    });
    let client = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "client", "namespace": "shop", "labels": {"app": "client"}},
        "spec": {"containers": [{"name": "c"}]}, "status": {"podIP": "10.244.0.2"}});
    let objects: Vec<Value> = [pod("web", "10.244.0.1", None), client]
        .into_iter()
        .chain(others)
        .collect();
    let origin = "here";
    let loaded = load_objects(objects.iter().map(|object| Source { origin, object }));
    let flow = |name: &str, source: &str, destination: &str, port: u16| -> FlowEvent {
        let line = json!({
            "time": "1970-01-01T00:00:00Z", "node": "n", "pod": {"namespace": "shop", "name": name},
            "direction": "egress", "verdict": "allow", "decidedBy": {"rule": "no-policy"}, "source": source,
            "destination": destination, "protocol": 6, "sourcePort": 0, "destinationPort": port, "epoch": 1,
        });
        serde_json::from_value(line).unwrap()
    };
    // To it, and from it: it is a peer and has policies.
    let flows = [
        flow("client", "10.244.0.2", "10.244.0.1", 80),
        flow("web", "10.244.0.1", "203.0.113.9", 443),
        flow("web", "10.244.0.1", "10.244.1.7", 81),
    ];
    for dialect in [Dialect::Calico, Dialect::Kubernetes] {
        let written = recommend(&loaded.as_ref().unwrap().view, &flows, dialect).unwrap();
        assert_eq!((written.connections, &written.left_out[..]), (3, &[][..]));
        let is_long = |object: &Value| object.to_string().contains("notSelector");
        assert_eq!(written.objects.iter().any(is_long), dialect == Dialect::Calico);
    }
}

#[test]
fn a_kind_of_message_that_no_rule_may_name_is_told() {
    let flows = [sent("203.0.113.9", 1, 0x0800), sent("203.0.113.9", 1, 0xff00)];
    let calico = recommended(&flows, Dialect::Calico);
    assert_eq!(calico.connections, 1);
    assert_eq!(
        calico.left_out,
        [
            "ICMP type 255 code 0 from shop/web to 203.0.113.9: NetworkPolicy of Calico has no rule for this and nothing else"
        ]
    );
}

/// A flow from one pod to another, or to an address, as the first recorded it.
fn between(from: &str, source: &str, to: Option<&str>, destination: &str) -> FlowEvent {
    let pod = |name: &str| json!({"namespace": "shop", "name": name});
    let line = json!({
        "time": "1970-01-01T00:00:00Z", "node": "n", "pod": pod(from), "direction": "egress", "verdict": "allow",
        "decidedBy": {"rule": "no-policy"}, "source": source, "destination": destination, "peer": to.map(pod),
        "protocol": 6, "sourcePort": 0, "destinationPort": 80, "epoch": 1,
    });
    serde_json::from_value(line).unwrap()
}

/// In Calico's selectors a network set is an end as a pod is.
#[test]
fn a_network_set_with_the_labels_of_a_workload_is_not_allowed_with_it() {
    let set = |name: &str, labels: &Value, net: &str| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkSet",
            "metadata": {"name": name, "namespace": "shop", "labels": labels}, "spec": {"nets": [net]}})
    };
    // One is told from the others by what it lacks, as a set without labels does.
    let mut bare = pod("bare", "10.244.0.3");
    bare["metadata"]["labels"] = json!({});
    // Another takes all that may be said in one expression.
    let long = |name: &str, address: &str, more: Option<usize>| {
        let mut pod = pod(name, address);
        pod["metadata"]["labels"] = json!({"app": "long"});
        if let Some(more) = more {
            pod["metadata"]["labels"][format!("only-this-has-{more}")] = json!("");
        }
        pod
    };
    let mut objects = vec![
        pod("a", "10.244.0.1"),
        pod("b", "10.244.0.2"),
        bare,
        long("long", "10.244.0.4", None),
        set("like-b", &json!({"app": "b"}), "192.0.2.0/24"),
        set("plain", &json!({}), "198.51.100.0/24"),
        // It holds a pod that is meant, and has none of its labels.
        set(
            "around",
            &json!({"app": "c", "only-this-has-3": ""}),
            "10.244.0.4/32",
        ),
    ];
    objects.extend((0..60).map(|i| long(&format!("long-{i}"), &format!("10.244.1.{i}"), Some(i))));
    let flows = [
        between("a", "10.244.0.1", Some("b"), "10.244.0.2"),
        between("a", "10.244.0.1", Some("bare"), "10.244.0.3"),
        between("a", "10.244.0.1", Some("long"), "10.244.0.4"),
        between("long", "10.244.0.4", Some("b"), "10.244.0.2"),
    ];
    for sets in [4..7, 4..5, 5..6, 6..7, 4..4] {
        let kept = objects
            .iter()
            .enumerate()
            .filter(|(i, _)| !(4..7).contains(i) || sets.contains(i));
        let kept: Vec<&Value> = kept.map(|(_, object)| object).collect();
        let calico = recommend(&view_of(kept.iter().copied()), &flows, Dialect::Calico).unwrap();
        let text = json!(calico.objects).to_string();
        assert_eq!(text.contains("orchestrator"), !sets.is_empty(), "{sets:?}");
        // As a judge sees it that has no part in writing: what was seen passes, and nothing goes to the sets.
        let book = Book::new(&view_of(kept.into_iter().chain(&calico.objects)));
        let mut judge = Judge::new(&book);
        let mut allows = |source: &str, destination: &str| {
            let end = |address: &str| FlowEnd::Address(address.parse().unwrap());
            let question = Question {
                source: end(source),
                destination: end(destination),
                protocol: 6,
                source_port: 49152,
                port: 80,
            };
            judge.judge(&question).unwrap().verdict == Verdict::Allow
        };
        for flow in &flows {
            assert!(
                allows(&flow.source.to_string(), &flow.destination.to_string()),
                "{flow:?}"
            );
        }
        for outside in ["192.0.2.10", "198.51.100.10"] {
            assert!(
                !allows("10.244.0.1", outside) && !allows("10.244.0.4", outside),
                "{outside}"
            );
        }
    }
}

#[test]
fn a_workload_that_is_called_like_the_default_gets_another_name() {
    let view = view_of(&[
        pod("web", "10.244.0.1"),
        pod("default-deny", "10.244.0.2"),
        pod("default-deny-2", "10.244.0.3"),
    ]);
    let to_both = ["default-deny", "default-deny-2"]
        .into_iter()
        .zip(["10.244.0.2", "10.244.0.3"]);
    let flows: Vec<FlowEvent> = to_both
        .map(|(name, address)| between("web", "10.244.0.1", Some(name), address))
        .collect();
    for dialect in [Dialect::Kubernetes, Dialect::Calico] {
        let recommendation = recommend(&view, &flows, dialect).unwrap();
        let objects = recommendation.objects.iter();
        let mut names: Vec<&str> = objects
            .map(|object| object["metadata"]["name"].as_str().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["default-deny", "default-deny-2", "default-deny-2-2", "web"]
        );
    }
}

/// Policies that allow nothing would close the cluster, and a record that tells of nothing is no reason to.
#[test]
fn nothing_to_allow_is_an_error_that_names_the_reasons() {
    let error = |flows: &[FlowEvent], dialect| {
        let error = recommend(&view(), flows, dialect).unwrap_err();
        assert!(matches!(error, RecommendError::NothingToAllow { .. }), "{error}");
        error.to_string()
    };
    let said = error(&[], Dialect::Kubernetes);
    assert_eq!(
        said,
        "policies for these flows would deny everything: none is recorded"
    );
    let mut denied = sent("203.0.113.9", 6, 443);
    denied.verdict = api::flow::FlowVerdict::Deny;
    let said = error(&[denied], Dialect::Calico);
    assert!(
        said.ends_with("left out were 1 recorded flow(s): they were denied, at one end at least"),
        "{said}"
    );
    let ping = [sent("203.0.113.9", 1, 0x0800)];
    let said = error(&ping, Dialect::Kubernetes);
    assert!(
        said.contains("left out were ICMP type 8 code 0 from shop/web"),
        "{said}"
    );
    assert_eq!(recommended(&ping, Dialect::Calico).connections, 1);
}

/// Addresses of pods are given again.
#[test]
fn a_pod_that_is_gone_is_not_whoever_has_its_address_now() {
    let view = view_of(&[pod("a", "10.244.0.1"), pod("b", "10.244.0.2")]);
    let gone = "1 recorded flow(s): the other end is not among the objects";
    for address in ["10.244.0.2", "10.244.0.77"] {
        let seen = [
            between("a", "10.244.0.1", Some("gone"), address),
            between("b", "10.244.0.2", None, "203.0.113.9"),
        ];
        let recommendation = recommend(&view, &seen, Dialect::Kubernetes).unwrap();
        assert_eq!(
            (recommendation.connections, &recommendation.left_out[..]),
            (1, &[gone.to_owned()][..])
        );
        let error = recommend(&view, &seen[..1], Dialect::Kubernetes).unwrap_err();
        assert!(error.to_string().contains(gone), "{error}");
    }
    // By address is found who was not known when it was recorded.
    let unnamed = [between("a", "10.244.0.1", None, "10.244.0.2")];
    let written = json!(recommend(&view, &unnamed, Dialect::Kubernetes).unwrap().objects).to_string();
    assert!(
        written.contains(r#"{"app":"b"}"#) && !written.contains("ipBlock"),
        "{written}"
    );
}

#[test]
fn a_denial_of_a_pod_that_is_gone_is_not_its_successors() {
    let view = view_of(&[pod("a", "10.244.0.1"), pod("b", "10.244.0.2")]);
    let denied = |name: &str| {
        let mut flow = between(name, "10.244.0.1", Some("b"), "10.244.0.2");
        flow.verdict = api::flow::FlowVerdict::Deny;
        flow
    };
    let allowed = || between("a", "10.244.0.1", Some("b"), "10.244.0.2");
    let recommendation = recommend(&view, &[denied("old"), allowed()], Dialect::Kubernetes).unwrap();
    assert_eq!(recommendation.connections, 1);
    // Its own is.
    assert!(recommend(&view, &[denied("a"), allowed()], Dialect::Kubernetes).is_err());
}

#[test]
fn what_a_pod_may_not_send_its_own_node_is_told() {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.3.1"}]}});
    let felix = |action: &str| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": "default"},
            "spec": {"defaultEndpointToHostAction": action}})
    };
    let mut on_node = pod("a", "10.244.0.1");
    on_node["spec"]["nodeName"] = json!("n1");
    let flows = [
        between("a", "10.244.0.1", None, "192.0.3.1"),
        between("a", "10.244.0.1", None, "203.0.113.9"),
    ];
    for (action, told) in [("Drop", 1), ("Accept", 0)] {
        let view = view_of(&[on_node.clone(), node.clone(), felix(action)]);
        let recommendation = recommend(&view, &flows, Dialect::Kubernetes).unwrap();
        assert_eq!(
            (recommendation.connections, recommendation.left_out.len()),
            (2, told),
            "{:?}",
            recommendation.left_out
        );
        let said = "TCP 80 from shop/a to 192.0.3.1: the policies allow it, and defaultEndpointToHostAction of FelixConfiguration drops";
        assert!(
            recommendation.left_out.iter().all(|line| line.starts_with(said)),
            "{:?}",
            recommendation.left_out
        );
    }
}
