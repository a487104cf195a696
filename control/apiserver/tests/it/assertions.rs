//! Assertions that are stored judge what would break them.

use http::Method;
use serde_json::{Value, json};

use crate::harness::{Client, Cluster};

const ASSERTIONS: &str = "/apis/palisade.dev/v1alpha1/policyassertions";
const CALICO: &str = "/apis/projectcalico.org/v3";
const MERGE: &str = "application/merge-patch+json";

fn policies(namespace: &str) -> String {
    format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")
}

fn assertion(name: &str, sentence: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"assertion": sentence}})
}

/// Nobody gets in, or out, of any pod of a namespace.
fn closed(name: &str, direction: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"podSelector": {}, "policyTypes": [direction]}})
}

async fn namespace(admin: &Client, name: &str, labels: Value) {
    let namespace = json!({"metadata": {"name": name, "labels": labels}});
    assert_eq!(admin.post("/api/v1/namespaces", &namespace).await.0, 201);
}

async fn pod(admin: &Client, namespace: &str, name: &str, labels: Value) -> (u16, Value) {
    let pod = json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "c", "image": "registry.example/app:1"}]},
    });
    admin
        .post(&format!("/api/v1/namespaces/{namespace}/pods"), &pod)
        .await
}

/// Two namespaces with a pod each; what leaves `a` is closed, and what enters `b`.
async fn closed_twice() -> Cluster {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for (name, direction) in [("a", "Egress"), ("b", "Ingress")] {
        namespace(&admin, name, json!({"side": name})).await;
        assert_eq!(pod(&admin, name, "x", json!({"app": "x"})).await.0, 201);
        let (code, made) = admin.post(&policies(name), &closed("closed", direction)).await;
        assert_eq!(code, 201, "{made}");
    }
    let (code, made) = admin
        .post(ASSERTIONS, &assertion("apart", "no ns(a) reaches ns(b)"))
        .await;
    assert_eq!(code, 201, "{made}");
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writes_that_are_harmless_alone_do_not_break_an_assertion_together() {
    let cluster = closed_twice().await;
    let (first, second) = (cluster.admin(), cluster.admin());
    for round in 0..10 {
        let (a, b) = (
            format!("{}/closed", policies("a")),
            format!("{}/closed", policies("b")),
        );
        let (one, other) = tokio::join!(first.delete(&a, None), second.delete(&b, None));
        let mut codes = [one.0, other.0];
        codes.sort_unstable();
        assert_eq!(codes, [200, 403], "round {round}: {} {}", one.1, other.1);
        let (gone, direction) = if one.0 == 200 {
            ("a", "Egress")
        } else {
            ("b", "Ingress")
        };
        let (code, made) = first.post(&policies(gone), &closed("closed", direction)).await;
        assert_eq!(code, 201, "{made}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_policy_depends_on_is_judged() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    namespace(&admin, "pci", json!({"zone": "pci"})).await;
    assert_eq!(pod(&admin, "pci", "vault", json!({"app": "vault"})).await.0, 201);
    let tier = json!({"metadata": {"name": "fence"}, "spec": {"order": 1500}});
    assert_eq!(admin.post(&format!("{CALICO}/tiers"), &tier).await.0, 201);
    let set = json!({"metadata": {"name": "office", "labels": {"place": "office"}}, "spec": {"nets": ["192.0.2.0/24"]}});
    assert_eq!(
        admin.post(&format!("{CALICO}/globalnetworksets"), &set).await.0,
        201
    );
    let allow = |selector: &str, destination: Value| json!([{"action": "Allow", "destination": destination}, {"action": "Deny", "destination": {"notSelector": selector}}]);
    let fence = json!({"metadata": {"name": "fence.pci"}, "spec": {
        "tier": "fence", "selector": "app == 'vault'", "namespaceSelector": "zone == 'pci'", "types": ["Egress"],
        "egress": allow("place == 'office'", json!({"selector": "place == 'office'"})),
    }});
    let global = format!("{CALICO}/globalnetworkpolicies");
    let (code, made) = admin.post(&global, &fence).await;
    assert_eq!(code, 201, "{made}");
    for (name, sentence) in [
        ("inside", "no pod in ns(pci) reaches cidr(203.0.113.0/24)"),
        (
            "all-of-it",
            "no pod in ns(pci) reaches cidr(203.0.113.0/24) on 80, 443",
        ),
    ] {
        let (code, made) = admin.post(ASSERTIONS, &assertion(name, sentence)).await;
        assert_eq!(code, 201, "{made}");
    }

    let open = json!({"metadata": {"name": "open"}, "spec": {
        "tier": "fence", "order": 1, "selector": "all()", "types": ["Egress"], "egress": [{"action": "Allow"}]}});
    let above = json!({"metadata": {"name": "above"}, "spec": {
        "tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
        "egress": [{"action": "Accept", "to": [{"networks": ["203.0.113.0/24"]}]}]}});
    let earlier = json!({"spec": {"order": 2000, "defaultAction": "Pass"}});
    let judged: Vec<(Method, String, Option<Value>)> = vec![
        (Method::POST, global.clone(), Some(open)),
        (Method::DELETE, format!("{global}/fence.pci"), None),
        (
            Method::PATCH,
            format!("{global}/fence.pci"),
            Some(json!({"spec": {"selector": "app == 'other'"}})),
        ),
        (
            Method::PATCH,
            format!("{CALICO}/globalnetworksets/office"),
            Some(json!({"spec": {"nets": ["203.0.113.7/32"]}})),
        ),
        (
            Method::POST,
            "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies".to_owned(),
            Some(above),
        ),
        (
            Method::PATCH,
            "/api/v1/namespaces/pci".to_owned(),
            Some(json!({"metadata": {"labels": {"zone": "other"}}})),
        ),
        (
            Method::PATCH,
            "/api/v1/namespaces/pci/pods/vault".to_owned(),
            Some(json!({"metadata": {"labels": {"app": "other"}}})),
        ),
        (Method::DELETE, global.clone(), None),
    ];
    for (method, path, body) in judged {
        let (code, refusal) = match (&method, body) {
            (&Method::PATCH, Some(body)) => admin.patch(&path, MERGE, &body).await,
            (_, body) => admin.send(method.clone(), &path, body.as_ref()).await,
        };
        assert_eq!(code, 403, "{method} {path}: {refusal}");
        let message = refusal["message"].as_str().unwrap();
        for part in [
            "PolicyAssertion \"inside\"",
            "PolicyAssertion \"all-of-it\"",
            "pci/vault (198.18.0.0) to 203.0.113.",
        ] {
            assert!(message.contains(part), "{method} {path}: {message}");
        }
        // A dry run says the same.
        if method == Method::DELETE {
            assert_eq!(admin.delete(&format!("{path}?dryRun=All"), None).await.0, 403);
        }
    }
    // A new pod, too, must not be able to do what no pod may.
    let (code, refusal) = pod(&admin, "pci", "stray", json!({})).await;
    assert_eq!(code, 403, "{refusal}");
    assert_eq!(pod(&admin, "pci", "twin", json!({"app": "vault"})).await.0, 201);
    // What breaks nothing passes.
    let (code, changed) = admin
        .patch(&format!("{CALICO}/tiers/fence"), MERGE, &earlier)
        .await;
    assert_eq!(code, 200, "{changed}");
    let (code, changed) = admin
        .patch(
            "/api/v1/namespaces/pci",
            MERGE,
            &json!({"metadata": {"labels": {"more": "yes"}}}),
        )
        .await;
    assert_eq!(code, 200, "{changed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_assertion_blocks_nothing_but_what_breaks_another() {
    let cluster = closed_twice().await;
    let admin = cluster.admin();
    // Stored although it does not hold: it only warns.
    let mut loud = assertion("loud", "no ns(b) reaches ns(a)");
    let (code, refusal) = admin.post(ASSERTIONS, &loud).await;
    assert_eq!(code, 403, "{refusal}");
    loud["metadata"]["annotations"] = json!({"palisade.dev/enforcement": "warn"});
    let response = admin
        .raw(
            Method::POST,
            ASSERTIONS,
            Some(("application/json", loud.to_string())),
        )
        .await;
    assert_eq!(response.status(), 201);
    let warning = response.headers()["warning"].to_str().unwrap().to_owned();
    assert!(
        warning.contains("PolicyAssertion loud does not hold")
            && warning.contains("b/x (198.18.0.1) to a/x (198.18.0.0)"),
        "{warning}"
    );
    // It was broken before, so this does not break it, and nobody is warned again.
    let response = admin
        .raw(
            Method::POST,
            &policies("b"),
            Some(("application/json", closed("more", "Ingress").to_string())),
        )
        .await;
    assert_eq!(
        (response.status().as_u16(), response.headers().get("warning")),
        (201, None)
    );
    // To block, it has to hold first.
    let path = format!("{ASSERTIONS}/loud");
    let block = json!({"metadata": {"annotations": {"palisade.dev/enforcement": null}}});
    assert_eq!(admin.patch(&path, MERGE, &block).await.0, 403);
    let (code, made) = admin.post(&policies("a"), &closed("in", "Ingress")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(admin.patch(&path, MERGE, &block).await.0, 200);
    assert_eq!(admin.delete(&format!("{}/in", policies("a")), None).await.0, 403);
    assert_eq!(admin.delete(&path, None).await.0, 200);
    assert_eq!(admin.delete(&format!("{}/in", policies("a")), None).await.0, 200);

    let nobody = assertion("nobody", "no ns(elsewhere) reaches internet");
    let response = admin
        .raw(
            Method::POST,
            ASSERTIONS,
            Some(("application/json", nobody.to_string())),
        )
        .await;
    assert_eq!(response.status(), 201);
    let warning = response.headers()["warning"].to_str().unwrap();
    assert!(
        warning.contains("says nothing about the cluster as it is: nothing matches the source"),
        "{warning}"
    );
}

/// Policies that name a service follow the pods behind it, which whoever writes the service or the pods chooses.
#[tokio::test(flavor = "multi_thread")]
async fn what_will_be_behind_a_service_is_judged() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for name in ["shop", "x"] {
        namespace(&admin, name, json!({"side": name})).await;
    }
    for (space, name) in [("shop", "client"), ("x", "web"), ("x", "db")] {
        assert_eq!(pod(&admin, space, name, json!({"app": name})).await.0, 201);
    }
    let services = "/api/v1/namespaces/x/services";
    let service = |name: &str, app: &str| json!({"metadata": {"name": name}, "spec": {"selector": {"app": app}, "ports": [{"port": 80}]}});
    let (code, made) = admin.post(services, &service("web", "web")).await;
    assert_eq!(code, 201, "{made}");
    let allow = |service: &str| json!({"action": "Allow", "destination": {"services": {"name": service, "namespace": "x"}}});
    let egress = json!({"metadata": {"name": "egress"}, "spec": {"selector": "app == 'client'",
        "types": ["Egress"], "egress": [allow("web"), allow("later")]}});
    let (code, made) = admin
        .post(&format!("{CALICO}/globalnetworkpolicies"), &egress)
        .await;
    assert_eq!(code, 201, "{made}");
    for (name, sentence) in [
        ("closed", "no ns(shop) reaches pod(x/db)"),
        // The service opens what it selects, although no slice says so yet.
        ("open", "ns(shop) reaches pod(x/web) on 80"),
    ] {
        let (code, made) = admin.post(ASSERTIONS, &assertion(name, sentence)).await;
        assert_eq!(code, 201, "{made}");
    }
    let refused = |what: &str, (code, answer): (u16, Value), broken: &str| {
        let message = answer["message"].as_str().unwrap_or_default();
        let named = format!("PolicyAssertion {broken:?}");
        assert!(code == 403 && message.contains(&named), "{what}: {code} {answer}");
    };
    let web = format!("{services}/web");
    let to_db = json!({"spec": {"selector": {"app": "db"}}});
    refused("selector", admin.patch(&web, MERGE, &to_db).await, "closed");
    let dry = admin.patch(&format!("{web}?dryRun=All"), MERGE, &to_db).await;
    refused("dry run", dry, "closed");
    refused(
        "creation",
        admin.post(services, &service("later", "db")).await,
        "closed",
    );
    let other_port = json!({"spec": {"ports": [{"port": 80, "targetPort": 81}]}});
    refused("ports", admin.patch(&web, MERGE, &other_port).await, "open");
    refused("deletion", admin.delete(&web, None).await, "open");
    let as_web = json!({"metadata": {"labels": {"app": "web"}}});
    let db = "/api/v1/namespaces/x/pods/db";
    refused("labels", admin.patch(db, MERGE, &as_web).await, "closed");
    // What breaks nothing passes.
    let (code, made) = admin.post(services, &service("later", "nobody")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(pod(&admin, "x", "web-2", json!({"app": "web"})).await.0, 201);
    // One that only looks like the control plane's own is judged as it is written.
    let slices = "/apis/discovery.k8s.io/v1/namespaces/x/endpointslices";
    let forged = json!({"metadata": {"name": "forged", "labels": {"kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["198.18.0.1"]}]});
    refused("slice", admin.post(slices, &forged).await, "closed");
}
