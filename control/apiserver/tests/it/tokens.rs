//! Tokens of service accounts: who gets one, what it is worth, and when it ends.

use std::time::Duration;

use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::harness::{Client, Cluster, NODE};

const CORE: &str = "/api/v1/namespaces/default";
const WHO: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// An account and a pod of it, bound to `node`; the pod as it was stored.
async fn pod_of(cluster: &Cluster, account: &str, pod: &str, node: &str) -> Value {
    let admin = cluster.admin();
    admin
        .post(
            &format!("{CORE}/serviceaccounts"),
            &json!({"metadata": {"name": account}}),
        )
        .await;
    let source = json!({"serviceAccountToken": {"path": "t", "audience": "vault"}});
    let object = json!({
        "metadata": {"name": pod},
        "spec": {
            "serviceAccountName": account,
            "containers": [{"name": "c", "image": "registry.example/app:1"}],
            "volumes": [{"name": "own", "projected": {"sources": [source]}}],
        },
    });
    let (code, stored) = admin.post(&format!("{CORE}/pods"), &object).await;
    assert_eq!(code, 201, "{stored}");
    let binding = json!({"target": {"name": node}});
    let (code, answer) = admin.post(&format!("{CORE}/pods/{pod}/binding"), &binding).await;
    assert_eq!(code, 201, "{answer}");
    stored
}

fn request_for(pod: &Value, audiences: &[&str]) -> Value {
    json!({"spec": {"audiences": audiences, "expirationSeconds": 3600, "boundObjectRef": {
        "kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}}})
}

async fn token(client: &Client, account: &str, request: &Value) -> (u16, Value) {
    client
        .post(&format!("{CORE}/serviceaccounts/{account}/token"), request)
        .await
}

fn text(answer: &Value) -> String {
    answer["status"]["token"].as_str().expect("a token").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_its_accounts_identity_and_ends_with_its_pod() {
    let cluster = Cluster::start().await;
    let pod = pod_of(&cluster, "builder", "p", NODE).await;
    let (code, made) = token(&cluster.node(), "builder", &request_for(&pod, &[])).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["apiVersion"], "authentication.k8s.io/v1");
    let token = text(&made);

    let bearer = || cluster.nobody().with_token(&token);
    let (code, who) = bearer().post(WHO, &json!({})).await;
    assert_eq!(code, 201, "{who}");
    let info = &who["status"]["userInfo"];
    assert_eq!(info["username"], "system:serviceaccount:default:builder");
    assert_eq!(
        info["groups"],
        json!([
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ])
    );
    assert_eq!(
        info["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["p"])
    );
    assert_eq!(
        info["extra"]["authentication.kubernetes.io/node-name"],
        json!([NODE])
    );
    let (code, denied) = bearer().get(&format!("{CORE}/secrets")).await;
    let message = denied["message"].as_str().unwrap_or_default().to_owned();
    assert_eq!(code, 403);
    assert!(
        message.contains(r#"User "system:serviceaccount:default:builder" cannot list"#),
        "{message}"
    );

    // Two characters changed places, or another key signed it.
    let forged = token.replace('.', "..");
    assert_eq!(cluster.nobody().with_token(&forged).get("/version").await.0, 401);
    let elsewhere = Cluster::start().await;
    assert_eq!(elsewhere.nobody().with_token(&token).get("/version").await.0, 401);

    assert_eq!(bearer().get("/version").await.0, 200);
    let now = json!({"gracePeriodSeconds": 0});
    cluster
        .admin()
        .delete(&format!("{CORE}/pods/p"), Some(&now))
        .await;
    assert_eq!(bearer().get("/version").await.0, 401, "the pod is gone");
    pod_of(&cluster, "builder", "p", NODE).await;
    assert_eq!(
        bearer().get("/version").await.0,
        401,
        "another pod of the same name"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_with_its_account_and_says_more_than_the_certificate() {
    let mut cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin
        .post(
            &format!("{CORE}/serviceaccounts"),
            &json!({"metadata": {"name": "robot"}}),
        )
        .await;
    let (code, made) = token(
        &admin,
        "robot",
        &json!({"spec": {"expirationSeconds": 86_400 * 30}}),
    )
    .await;
    assert_eq!(
        (code, &made["spec"]["expirationSeconds"]),
        (201, &json!(86_400)),
        "shortened"
    );
    let good = text(&made);
    let (_, who) = cluster.admin().with_token(&good).post(WHO, &json!({})).await;
    assert_eq!(
        who["status"]["userInfo"]["username"],
        "system:serviceaccount:default:robot"
    );
    assert_eq!(cluster.admin().with_token("x.y.z").get("/version").await.0, 401);

    cluster.restart().await;
    assert_eq!(
        cluster.nobody().with_token(&good).get("/version").await.0,
        200,
        "the key stays"
    );
    cluster
        .admin()
        .delete(&format!("{CORE}/serviceaccounts/robot"), None)
        .await;
    assert_eq!(cluster.nobody().with_token(&good).get("/version").await.0, 401);
    for (request, problem) in [
        (json!({"spec": {"expirationSeconds": 599}}), "10 minutes"),
        (
            json!({"spec": {"boundObjectRef": {"kind": "Node", "name": "x"}}}),
            "Unsupported value",
        ),
        (json!({"spec": {"audiences": [""]}}), "audiences"),
    ] {
        admin
            .post(
                &format!("{CORE}/serviceaccounts"),
                &json!({"metadata": {"name": "robot"}}),
            )
            .await;
        let (code, refused) = token(&cluster.admin(), "robot", &request).await;
        assert_eq!(code, 422, "{refused}");
        assert!(
            refused["message"].as_str().unwrap_or_default().contains(problem),
            "{refused}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_tokens_of_its_own_pods_for_their_audiences_only() {
    let cluster = Cluster::start().await;
    let node = cluster.node();
    let own = pod_of(&cluster, "mine", "own", NODE).await;
    let other = pod_of(&cluster, "theirs", "other", "node-b").await;
    pod_of(&cluster, "theirs", "also-here", NODE).await;
    let code = async |account: &str, request: &Value| token(&node, account, request).await.0;
    assert_eq!(code("mine", &request_for(&own, &[])).await, 201);
    let without = json!({"metadata": {"name": "quiet"}, "automountServiceAccountToken": false});
    let accounts = format!("{CORE}/serviceaccounts");
    assert_eq!(cluster.admin().post(&accounts, &without).await.0, 201);
    let quiet = pod_of(&cluster, "quiet", "quiet", NODE).await;
    assert_eq!(
        code("quiet", &request_for(&quiet, &[])).await,
        403,
        "no volume is for the cluster's own audience"
    );
    assert_eq!(code("quiet", &request_for(&quiet, &["vault"])).await, 201);
    assert_eq!(code("mine", &request_for(&own, &["vault"])).await, 201);
    assert_eq!(
        code("mine", &request_for(&own, &["bank"])).await,
        403,
        "no volume names it"
    );
    assert_eq!(code("mine", &json!({"spec": {}})).await, 403, "bound to nothing");
    assert_eq!(
        code("theirs", &request_for(&other, &[])).await,
        403,
        "on another node"
    );
    assert_eq!(
        code("theirs", &request_for(&own, &[])).await,
        422,
        "runs as another account"
    );
    assert_eq!(
        code("default", &request_for(&own, &[])).await,
        403,
        "no pod of it here"
    );
    let mut stale = request_for(&own, &[]);
    stale["spec"]["boundObjectRef"]["uid"] = json!("other");
    assert_eq!(code("mine", &stale).await, 409);
    stale["spec"]["boundObjectRef"] = json!({"kind": "Secret", "name": "x", "apiVersion": "v1"});
    assert!([403, 404].contains(&code("mine", &stale).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn reviews_say_whose_token_it_is() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let pod = pod_of(&cluster, "app", "p", NODE).await;
    let (_, made) = token(&cluster.node(), "app", &request_for(&pod, &["vault"])).await;
    let token = text(&made);
    let review = async |audiences: &[&str]| {
        let body = json!({"spec": {"token": token, "audiences": audiences}});
        admin.post(REVIEWS, &body).await.1["status"].clone()
    };
    let good = review(&["vault", "other"]).await;
    assert_eq!(good["authenticated"], true, "{good}");
    assert_eq!(good["audiences"], json!(["vault"]));
    assert_eq!(good["user"]["username"], "system:serviceaccount:default:app");
    let wrong = review(&[]).await;
    assert_eq!(wrong["authenticated"], false);
    assert!(
        wrong["error"].as_str().unwrap_or_default().contains("audience"),
        "{wrong}"
    );
    // It is not for the API server.
    assert_eq!(cluster.nobody().with_token(&token).get("/version").await.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_get_the_volume_with_their_token_unless_they_do_without() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let stored = pod_of(&cluster, "app", "p", NODE).await;
    let volumes = stored["spec"]["volumes"].as_array().unwrap();
    let name = volumes[1]["name"].as_str().unwrap();
    assert!(name.starts_with("kube-api-access-") && name.len() == 21, "{name}");
    let mounts = &stored["spec"]["containers"][0]["volumeMounts"];
    assert_eq!(
        mounts[0]["mountPath"],
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );

    let quiet = json!({"metadata": {"name": "quiet"}, "automountServiceAccountToken": false});
    admin.post(&format!("{CORE}/serviceaccounts"), &quiet).await;
    let make = async |spec: Value| {
        let mut object = json!({"metadata": {"generateName": "x-"}, "spec": spec});
        object["spec"]["containers"] = json!([{"name": "c", "image": "registry.example/app:1"}]);
        admin.post(&format!("{CORE}/pods"), &object).await
    };
    for spec in [
        json!({"serviceAccountName": "quiet"}),
        json!({"automountServiceAccountToken": false}),
    ] {
        let (code, stored) = make(spec).await;
        assert_eq!(
            (code, &stored["spec"]["volumes"]),
            (201, &Value::Null),
            "{stored}"
        );
    }
    let (code, refused) = make(json!({"serviceAccountName": "nobody"})).await;
    assert_eq!(code, 403);
    let message = refused["message"].as_str().unwrap_or_default();
    assert!(
        message.contains(r#"serviceaccount "nobody" not found"#),
        "{message}"
    );
}

/// Strangers are cut off after a while; who has shown a good token is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_a_good_token_stays() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin
        .post(
            &format!("{CORE}/serviceaccounts"),
            &json!({"metadata": {"name": "robot"}}),
        )
        .await;
    let (_, made) = token(&admin, "robot", &json!({"spec": {}})).await;
    let good = format!("Bearer {}", text(&made));
    let request = |token: &str| {
        Request::builder()
            .method(Method::GET)
            .uri("/version")
            .header(header::HOST, "test")
            .header(header::AUTHORIZATION, token)
            .body(Full::new(Bytes::new()))
            .unwrap()
    };
    let mut trusted = cluster.nobody().connect().await;
    let mut stranger = cluster.nobody().connect().await;
    let mut cut_off = false;
    // An idle connection is closed whoever has it: these ask now and then.
    for _ in 0..5 {
        let answer = trusted.send_request(request(&good)).await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        answer.into_body().collect().await.unwrap();
        match stranger.send_request(request("Bearer x.y.z")).await {
            Ok(answer) => {
                assert_eq!(answer.status().as_u16(), 401);
                answer.into_body().collect().await.unwrap();
            }
            Err(_closed) => cut_off = true,
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    assert!(cut_off, "a stranger stays as long as it likes");
}
