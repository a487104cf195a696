//! Explanations and loading, as a person sees them.

use api::flow::FlowVerdict;
use policies_compiler::{ExplainError, LoadError, Loaded, Party, explain, load_objects, parse_protocol};
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
    let explanation = explain(&loaded.view, &from.parse()?, &to.parse()?, port, 6)?;
    Ok(explanation.to_string())
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
    let (from, to): (Party, Party) = ("203.0.113.9".parse().unwrap(), "shop/db".parse().unwrap());
    let explanation = explain(&loaded.view, &from, &to, 5432, 6).unwrap();
    assert_eq!(explanation.verdict, FlowVerdict::Deny);
    assert_eq!(
        serde_json::to_value(&explanation).unwrap()["ingress"]["decidedBy"],
        json!({"rule": "default-deny (isolated by NetworkPolicy shop/db)", "tier": "default", "policy": "NetworkPolicy shop/db"})
    );
    assert!(explanation.egress.is_none());
}

#[test]
fn questions_without_an_answer_say_why() {
    let loaded = shop();
    assert!(matches!(
        ask(&loaded, "shop/web", "shop/nobody", 1),
        Err(ExplainError::UnknownPod(_))
    ));
    assert_eq!(
        ask(&loaded, "192.0.2.1", "192.0.2.2", 1),
        Err(ExplainError::NoPod)
    );
    assert_eq!(
        ask(&loaded, "2001:db8::1", "shop/db", 1),
        Err(ExplainError::NoCommonFamily)
    );
    assert!(matches!(
        ask(&loaded, "a/b/c", "shop/db", 1),
        Err(ExplainError::Party(_))
    ));
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
