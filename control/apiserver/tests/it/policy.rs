//! Calico's kinds and ClusterNetworkPolicy: what refers to what, and what always exists.

use http::Method;
use serde_json::{Value, json};

use crate::{harness::Cluster, http_api::Lines};

const CALICO: &str = "/apis/projectcalico.org/v3";
const CLUSTER: &str = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";

fn tier(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"order": 100}})
}

fn policy(name: &str, tier: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"tier": tier, "selector": "all()", "ingress": [{"action": "Deny"}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_never_outlives_its_tier() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let global = format!("{CALICO}/globalnetworkpolicies");
    let (code, refusal) = admin.post(&global, &policy("p", "ops")).await;
    assert_eq!(code, 422, "{refusal}");
    assert_eq!(refusal["details"]["causes"][0]["field"], "spec.tier");
    let message = refusal["message"].as_str().unwrap();
    assert!(message.contains("create it first"), "{message}");

    let tiers = format!("{CALICO}/tiers");
    let (code, made) = admin.post(&tiers, &tier("ops")).await;
    assert_eq!((code, &made["spec"]["order"]), (201, &json!(100)), "{made}");
    for collection in [
        format!("{CALICO}/namespaces/default/networkpolicies"),
        format!("{CALICO}/stagedglobalnetworkpolicies"),
        global.clone(),
    ] {
        let (code, made) = admin.post(&collection, &policy("p", "ops")).await;
        assert_eq!(code, 201, "{made}");
        let (code, refusal) = admin.delete(&format!("{tiers}/ops"), None).await;
        assert_eq!(code, 409, "{refusal}");
        let message = refusal["message"].as_str().unwrap();
        assert!(
            message.contains(made["kind"].as_str().unwrap()) && message.contains('p'),
            "{message}"
        );
        // Moved to another tier, or deleted: both set the tier free.
        let path = format!("{collection}/p");
        let merge = "application/merge-patch+json";
        let (code, refusal) = admin
            .patch(&path, merge, &json!({"spec": {"tier": "nosuch"}}))
            .await;
        assert_eq!(code, 422, "{refusal}");
        let (code, moved) = admin
            .patch(&path, merge, &json!({"spec": {"tier": "default"}}))
            .await;
        assert_eq!(
            (code, &moved["metadata"]["labels"]["projectcalico.org/tier"]),
            (200, &json!("default"))
        );
    }
    let (code, _) = admin.delete(&format!("{tiers}/ops"), None).await;
    assert_eq!(code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direction_stays_closed_when_its_last_rule_goes() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let rules = json!([{"action": "Allow", "source": {"selector": "has(x)"}}]);
    let policy = json!({"metadata": {"name": "p"},
        "spec": {"selector": "all()", "ingress": rules, "egress": [{"action": "Allow"}]}});
    for kind in ["globalnetworkpolicies", "namespaces/default/networkpolicies"] {
        let collection = format!("{CALICO}/{kind}");
        let (code, made) = admin.post(&collection, &policy).await;
        assert_eq!(code, 201, "{made}");
        for rules in [json!([]), Value::Null] {
            let (code, patched) = admin
                .patch(
                    &format!("{collection}/p"),
                    "application/merge-patch+json",
                    &json!({"spec": {"ingress": rules}}),
                )
                .await;
            assert_eq!(
                (code, &patched["spec"]["ingress"], &patched["spec"]["types"]),
                (200, &Value::Null, &json!(["Ingress", "Egress"])),
                "{patched}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn some_policy_objects_always_exist() {
    let mut cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (_, tiers) = admin.get(&format!("{CALICO}/tiers")).await;
    let shown = |tier: &Value| (tier["metadata"]["name"].clone(), tier["spec"].clone());
    let tiers: Vec<_> = tiers["items"].as_array().unwrap().iter().map(shown).collect();
    assert_eq!(
        tiers,
        [
            (
                json!("default"),
                json!({"order": 1_000_000, "defaultAction": "Deny"})
            ),
            (
                json!("kube-admin"),
                json!({"order": 1000, "defaultAction": "Pass"})
            ),
            (
                json!("kube-baseline"),
                json!({"order": 10_000_000, "defaultAction": "Pass"})
            ),
        ]
    );
    let settings = format!("{CALICO}/felixconfigurations/default");
    for path in [
        format!("{CALICO}/tiers/default"),
        format!("{CALICO}/tiers/kube-admin"),
        settings.clone(),
    ] {
        let (code, refusal) = admin.delete(&path, None).await;
        assert_eq!(code, 403, "{refusal}");
    }
    let (code, refusal) = admin
        .patch(
            &format!("{CALICO}/tiers/default"),
            "application/merge-patch+json",
            &json!({"spec": {"order": 1}}),
        )
        .await;
    assert_eq!(
        (code, &refusal["details"]["causes"][0]["field"]),
        (422, &json!("spec.order"))
    );

    // What an administrator set survives a restart.
    let change = json!({"spec": {"defaultEndpointToHostAction": "Drop"}});
    let (code, _) = admin
        .patch(&settings, "application/merge-patch+json", &change)
        .await;
    assert_eq!(code, 200);
    cluster.restart().await;
    let (_, after) = cluster.admin().get(&settings).await;
    assert_eq!(after["spec"], change["spec"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_show_namespaces_and_service_accounts_and_cannot_be_written() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let namespace = json!({"metadata": {"name": "shop", "labels": {"team": "a"}}});
    admin.post("/api/v1/namespaces", &namespace).await;
    let account = json!({"metadata": {"name": "robot", "labels": {"role": "db"}}});
    let (code, _) = admin
        .post("/api/v1/namespaces/shop/serviceaccounts", &account)
        .await;
    assert_eq!(code, 201);
    let profiles = format!("{CALICO}/profiles");
    let (code, found) = admin.get(&format!("{profiles}/kns.shop")).await;
    assert_eq!(code, 200, "{found}");
    assert_eq!(
        found["spec"],
        json!({
            "ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}],
            "labelsToApply": {
                "pcns.team": "a", "pcns.kubernetes.io/metadata.name": "shop", "pcns.projectcalico.org/name": "shop",
            },
        })
    );
    let (_, found) = admin.get(&format!("{profiles}/ksa.shop.robot")).await;
    assert_eq!(
        found["spec"],
        json!({"labelsToApply": {"pcsa.role": "db", "pcsa.projectcalico.org/name": "robot"}})
    );
    let (_, list) = admin.get(&profiles).await;
    let names: Vec<&str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["metadata"]["name"].as_str().unwrap())
        .collect();
    assert!(
        names.is_sorted() && names.contains(&"projectcalico-default-allow"),
        "{names:?}"
    );
    let (_, one) = admin
        .get(&format!("{profiles}?fieldSelector=metadata.name%3Dkns.shop"))
        .await;
    assert_eq!(one["items"].as_array().unwrap().len(), 1);
    assert_eq!(admin.get(&format!("{profiles}/kns.nosuch")).await.0, 404);

    let profile = json!({"metadata": {"name": "mine"}, "spec": {}});
    for (method, path) in [
        (Method::POST, profiles.clone()),
        (Method::PUT, format!("{profiles}/kns.shop")),
        (Method::DELETE, format!("{profiles}/kns.shop")),
    ] {
        let (code, refusal) = admin.send(method, &path, Some(&profile)).await;
        assert_eq!(code, 405);
        let message = refusal["message"].as_str().unwrap();
        assert!(message.contains("namespaces and service accounts"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_honoured_is_refused_with_its_field() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for (collection, body, field) in [
        (
            format!("{CALICO}/globalnetworkpolicies"),
            json!({"metadata": {"name": "x"}, "spec": {"ingress": [{"action": "Allow", "source": {"selector": "a =="}}]}}),
            "spec.ingress[0].source.selector",
        ),
        (
            CLUSTER.to_owned(),
            json!({"metadata": {"name": "x"}, "spec": {"tier": "Admin", "priority": 1001, "subject": {"namespaces": {}}}}),
            "spec.priority",
        ),
    ] {
        let (code, refusal) = admin.post(&collection, &body).await;
        assert_eq!(
            (code, &refusal["details"]["causes"][0]["field"]),
            (422, &json!(field)),
            "{refusal}"
        );
    }
    let typo = json!({"metadata": {"name": "x"}, "spec": {"selectr": "all()"}});
    let strict = format!("{CALICO}/globalnetworkpolicies?fieldValidation=Strict");
    let (code, refusal) = admin.post(&strict, &typo).await;
    assert_eq!(code, 400);
    assert!(
        refusal["message"].as_str().unwrap().contains("spec.selectr"),
        "{refusal}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_read_policies_and_write_none() {
    let cluster = Cluster::start().await;
    let node = cluster.node();
    for collection in [
        format!("{CALICO}/tiers"),
        format!("{CALICO}/networkpolicies"),
        CLUSTER.to_owned(),
        "/api/v1/nodes".to_owned(),
        "/api/v1/serviceaccounts".to_owned(),
    ] {
        assert_eq!(node.get(&collection).await.0, 200, "{collection}");
    }
    assert_eq!(node.post(&format!("{CALICO}/tiers"), &tier("ops")).await.0, 403);
    assert_eq!(node.get(&format!("{CALICO}/profiles")).await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_are_watched_as_what_they_are_computed_from() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let profiles = format!("{CALICO}/profiles");
    let (_, list) = admin.get(&profiles).await;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut lines = Lines::open(
        &admin,
        &format!("{profiles}?watch=true&resourceVersion={revision}"),
    )
    .await;
    let mut next = async || {
        let (kind, object) = lines.next().await.unwrap();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        (
            kind,
            name,
            object["spec"]["labelsToApply"].clone(),
            object["metadata"]["resourceVersion"].clone(),
        )
    };
    let namespace = json!({"metadata": {"name": "shop", "labels": {"team": "a"}}});
    admin.post("/api/v1/namespaces", &namespace).await;
    let (kind, name, labels, _) = next().await;
    assert_eq!(
        (&*kind, &*name, &labels["pcns.team"]),
        ("ADDED", "kns.shop", &json!("a"))
    );
    let account = json!({"metadata": {"name": "robot", "labels": {"role": "db"}}});
    let accounts = "/api/v1/namespaces/shop/serviceaccounts";
    admin.post(accounts, &account).await;
    let (kind, name, labels, made) = next().await;
    assert_eq!(
        (&*kind, &*name, &labels["pcsa.role"]),
        ("ADDED", "ksa.shop.robot", &json!("db"))
    );
    let merge = "application/merge-patch+json";
    let other = json!({"metadata": {"labels": {"team": "b"}}});
    admin.patch("/api/v1/namespaces/shop", merge, &other).await;
    let (kind, name, labels, _) = next().await;
    assert_eq!(
        (&*kind, &*name, &labels["pcns.team"]),
        ("MODIFIED", "kns.shop", &json!("b"))
    );
    admin.delete(&format!("{accounts}/robot"), None).await;
    let (kind, name, ..) = next().await;
    assert_eq!((&*kind, &*name), ("DELETED", "ksa.shop.robot"));

    // Going on from a change shows all that came after it, of both kinds, and a selector holds.
    let made = made.as_str().unwrap();
    let resumed = format!("{profiles}?watch=true&resourceVersion={made}");
    let mut resumed = Lines::open(&admin, &resumed).await;
    assert_eq!(resumed.next().await.unwrap().0, "MODIFIED");
    assert_eq!(resumed.next().await.unwrap().0, "DELETED");
    let one = format!("{profiles}?watch=true&fieldSelector=metadata.name%3Dkns.shop");
    let mut one = Lines::open(&admin, &one).await;
    let (kind, object) = one.next().await.unwrap();
    assert_eq!(
        (&*kind, &object["metadata"]["name"]),
        ("ADDED", &json!("kns.shop"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_policy_says_which_generation_was_understood() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut policy = json!({"metadata": {"name": "fence"}, "spec": {
        "tier": "Admin", "priority": 5, "subject": {"namespaces": {}}}});
    policy["status"] = json!({"conditions": [{"type": "Accepted", "status": "False", "reason": "Mine",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    let (code, made) = admin.post(CLUSTER, &policy).await;
    assert_eq!(code, 201, "{made}");
    let accepted = |policy: &Value| {
        let conditions = policy["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 1, "{policy}");
        let condition = &conditions[0];
        assert_eq!(
            (&condition["type"], &condition["status"]),
            (&json!("Accepted"), &json!("True"))
        );
        (
            condition["observedGeneration"].clone(),
            condition["lastTransitionTime"].clone(),
        )
    };
    let (generation, since) = accepted(&made);
    assert_eq!(generation, json!(1));
    let merge = "application/merge-patch+json";
    let (_, changed) = admin
        .patch(
            &format!("{CLUSTER}/fence"),
            merge,
            &json!({"spec": {"priority": 6}}),
        )
        .await;
    assert_eq!(accepted(&changed), (json!(2), since));
    // What says nothing new is no change.
    let (_, same) = admin
        .patch(
            &format!("{CLUSTER}/fence"),
            merge,
            &json!({"spec": {"priority": 6}}),
        )
        .await;
    assert_eq!(
        same["metadata"]["resourceVersion"],
        changed["metadata"]["resourceVersion"]
    );
}

/// Three pods whose policy needs a block for each of 120 source ports; the harness says that a node holds 300.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_into_the_kernel_is_refused_with_the_numbers() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for i in 0..3 {
        let pod = json!({"metadata": {"name": format!("p{i}")},
            "spec": {"containers": [{"name": "c", "image": "registry.example/app:1"}]}});
        let (code, made) = admin.post("/api/v1/namespaces/default/pods", &pod).await;
        assert_eq!(code, 201, "{made}");
        let binding = json!({"target": {"kind": "Node", "name": "node-a"}});
        let path = format!("/api/v1/namespaces/default/pods/p{i}/binding");
        assert_eq!(admin.post(&path, &binding).await.0, 201);
    }
    let policy = |ports: usize| {
        let ports: Vec<usize> = (0..ports).map(|i| 1001 + 2 * i).collect();
        let rule =
            |ports: &[usize]| json!({"action": "Allow", "protocol": "TCP", "source": {"ports": ports}});
        let rules: Vec<Value> = ports.chunks(50).map(rule).collect();
        json!({"metadata": {"name": "many"}, "spec": {"selector": "all()", "types": ["Ingress"], "ingress": rules}})
    };
    let global = format!("{CALICO}/globalnetworkpolicies");
    let (code, refusal) = admin.post(&global, &policy(120)).await;
    assert_eq!(code, 403, "{refusal}");
    let message = refusal["message"].as_str().unwrap();
    let told = "node \"node-a\" needs 360 blocks of source ports, and a node holds 300; select fewer pods";
    assert!(message.contains(told), "{message}");
    let (code, made) = admin.post(&global, &policy(20)).await;
    assert_eq!(code, 201, "{made}");
    let (code, refusal) = admin.put(&format!("{global}/many"), &policy(120)).await;
    assert_eq!(code, 403, "{refusal}");
}
