//! Cluster addresses of services.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use crate::harness::{Client, Cluster};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const MERGE: &str = "application/merge-patch+json";

#[expect(clippy::needless_pass_by_value, reason = "specs are written as literals")]
fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    service
}

async fn address(admin: &Client, name: &str) -> String {
    let (code, made) = admin.post(SERVICES, &service(name, json!({}))).await;
    assert_eq!(code, 201, "{made}");
    made["spec"]["clusterIP"].as_str().unwrap().to_owned()
}

/// The harness serves 10.99.0.0/28: fourteen addresses.
#[tokio::test(flavor = "multi_thread")]
async fn no_address_is_given_twice_however_many_ask_at_once() {
    let cluster = Cluster::start().await;
    let asking = (0..20).map(|i| {
        let admin = cluster.admin();
        async move { admin.post(SERVICES, &service(&format!("s{i}"), json!({}))).await }
    });
    let answers = futures::future::join_all(asking).await;
    let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(code, _)| *code == 201);
    let addresses: BTreeSet<String> = made
        .iter()
        .map(|(_, service)| service["spec"]["clusterIP"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((made.len(), addresses.len(), refused.len()), (14, 14, 6));
    assert!(
        addresses.iter().all(|address| address.starts_with("10.99.0.")),
        "{addresses:?}"
    );
    for (code, refusal) in refused {
        assert_eq!(
            (code, &refusal["details"]["causes"][0]["field"]),
            (422, &json!("spec.clusterIP"))
        );
        let message = refusal["message"].as_str().unwrap();
        assert!(
            message.contains("no address is left in 10.99.0.0/28"),
            "{message}"
        );
    }
    // One that goes sets its address free.
    let admin = cluster.admin();
    let free = made[0].1["spec"]["clusterIP"].as_str().unwrap();
    let gone = made[0].1["metadata"]["name"].as_str().unwrap();
    assert_eq!(admin.delete(&format!("{SERVICES}/{gone}"), None).await.0, 200);
    assert_eq!(address(&admin, "next").await, free);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_lasts_as_long_as_its_service() {
    let mut cluster = Cluster::start().await;
    let admin = cluster.admin();
    let first = address(&admin, "web").await;
    let path = format!("{SERVICES}/web");
    // A manifest that does not name the address does not take it away.
    let (code, changed) = admin
        .put(&path, &service("web", json!({"ports": [{"port": 81}]})))
        .await;
    assert_eq!(
        (code, &changed["spec"]["clusterIP"]),
        (200, &json!(first)),
        "{changed}"
    );
    assert_eq!(changed["spec"]["clusterIPs"], json!([first]));
    cluster.restart().await;
    let admin = cluster.admin();
    let (_, found) = admin.get(&path).await;
    assert_eq!(found["spec"]["clusterIP"], json!(first));

    for (spec, why) in [
        (json!({"clusterIP": first}), "another service has this address"),
        (json!({"clusterIP": "10.98.0.1"}), "an address of 10.99.0.0/28"),
        (json!({"clusterIP": "10.99.0.0"}), "an address of 10.99.0.0/28"),
        (json!({"clusterIP": "fd00::1"}), "an address of 10.99.0.0/28"),
    ] {
        let (code, refusal) = admin.post(SERVICES, &service("other", spec)).await;
        assert_eq!(code, 422, "{refusal}");
        let message = refusal["message"].as_str().unwrap();
        assert!(
            message.contains("spec.clusterIP") && message.contains(why),
            "{message}"
        );
    }
    let chosen = if first == "10.99.0.3" {
        "10.99.0.4"
    } else {
        "10.99.0.3"
    };
    let (code, made) = admin
        .post(SERVICES, &service("other", json!({"clusterIP": chosen})))
        .await;
    assert_eq!(
        (code, &made["spec"]["clusterIP"]),
        (201, &json!(chosen)),
        "{made}"
    );
    let (code, refusal) = admin
        .patch(&path, MERGE, &json!({"spec": {"clusterIP": "None"}}))
        .await;
    assert_eq!(code, 422, "{refusal}");

    // As another name it has none, and as itself again it gets one.
    let named =
        json!({"metadata": {"name": "web"}, "spec": {"type": "ExternalName", "externalName": "db.example"}});
    let (code, changed) = admin.put(&path, &named).await;
    assert_eq!(
        (code, &changed["spec"]["clusterIP"]),
        (200, &Value::Null),
        "{changed}"
    );
    let (code, changed) = admin.put(&path, &service("web", json!({}))).await;
    assert_eq!(code, 200, "{changed}");
    assert!(
        changed["spec"]["clusterIP"]
            .as_str()
            .unwrap()
            .starts_with("10.99.0."),
        "{changed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_gets_an_address_is_told_what_it_is_not_good_for() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let warning = async |body: Value| {
        let response = admin
            .raw(
                Method::POST,
                SERVICES,
                Some(("application/json", body.to_string())),
            )
            .await;
        assert_eq!(response.status(), 201);
        let warning = response.headers().get("warning");
        warning.map(|warning| warning.to_str().unwrap().to_owned())
    };
    let told = warning(service("web", json!({}))).await.unwrap();
    assert!(
        told.contains("traffic to the cluster address 10.99.0.")
            && told.contains("is not carried by this version"),
        "{told}"
    );
    assert_eq!(
        warning(service("headless", json!({"clusterIP": "None"}))).await,
        None
    );
    let named =
        json!({"metadata": {"name": "db"}, "spec": {"type": "ExternalName", "externalName": "db.example"}});
    assert!(
        warning(named)
            .await
            .unwrap()
            .contains("names of services are not served")
    );
}
