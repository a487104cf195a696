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
    assert_eq!(
        ask(&loaded, "2001:db8::1", "shop/db", 1),
        Err(ExplainError::Flow(FlowError::NoCommonFamily))
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
        "Pod shop/web is taken to have address 198.",
    ] {
        assert!(notes.contains(note), "{note:?} is not in {notes}");
    }
    assert_eq!(loaded, shop(), "addresses are the same each time");
}

#[test]
fn generated_addresses_never_collide() {
    let mut objects: Vec<Value> = (0..2000).map(|i| pod("shop", &format!("pod-{i}"))).collect();
    let generated = load_objects(sources(&objects)).unwrap().view.pods[0]
        .addresses
        .first()
        .copied()
        .unwrap();
    let mut squatter = pod("shop", "squatter");
    squatter["status"] = json!({"podIP": generated.to_string()});
    objects.push(squatter);
    let pods = load_objects(sources(&objects)).unwrap().view.pods;
    let addresses: std::collections::BTreeSet<_> = pods.iter().flat_map(|pod| &pod.addresses).collect();
    assert_eq!(addresses.len(), pods.len());
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
            assert_eq!(errors[0].field, "spec.ingress.0.form");
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
