//! The loops against the real API server and store, with the controllers' own certificate and rights. The
//! image gate admits everything, and nodes are objects that this test writes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod garbage;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use api::{
    Digest, ImageRef,
    palisade::{
        API_VERSION, ImagePolicy, ImageScan, ImageScanSpec, ImageScanStatus, ScanVerdict, image_scan_name,
    },
};
use async_trait::async_trait;
use control_apiserver::{Config, ImageGate, Judgement, Refusal};
use control_controllers::{ApiServer, Timing, connect, run_with};
use control_pki::tls::{ALPN_HTTP, ClientCertificate, Credentials, client_config, server_config};
use control_store::{Embedded, Keyring};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const IMPATIENT: Timing = Timing {
    heartbeat_limit: Duration::from_secs(10),
    evict_after: Duration::from_secs(1),
    node_interval: Duration::from_millis(100),
};

struct AdmitsAll;

#[async_trait]
impl ImageGate for AdmitsAll {
    async fn judge(
        &self,
        _: &str,
        image: &ImageRef,
        _: &[ImagePolicy],
        _: &[Secret],
    ) -> Result<Judgement, Refusal> {
        let digest: Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        let scan = ImageScan {
            api_version: API_VERSION.to_owned(),
            kind: "ImageScan".to_owned(),
            metadata: kube::api::ObjectMeta {
                name: Some(image_scan_name(&digest)),
                ..Default::default()
            },
            spec: ImageScanSpec {
                image: image.to_string(),
                digest,
            },
            status: ImageScanStatus {
                verdict: ScanVerdict::Pass,
                reasons: Vec::new(),
                counts: Default::default(),
                findings: Vec::new(),
                findings_omitted: 0,
                os: None,
                packages: 1,
                db_updated_at: jiff::Timestamp::UNIX_EPOCH,
                db_hash: digest,
                policy_hash: digest,
                scanner: "none".to_owned(),
                scanner_hash: digest,
                scanned_at: jiff::Timestamp::UNIX_EPOCH,
            },
        };
        Ok(Judgement {
            pinned: digest,
            scan,
            verdict: "signed".to_owned(),
        })
    }
}

struct Cluster {
    admin: Client,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
    controllers: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start(timing: Timing) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let options = control_pki::InitOptions {
            control_uid: 0,
            node_name: "n".to_owned(),
            api_names: Vec::new(),
            node_names: Vec::new(),
            api_url: url.clone(),
        };
        let report = control_pki::init(dir.path(), &options).unwrap();
        let control = dir.path().join("control");
        let tls = control.join("tls");
        let credentials = |name| Credentials::load(&tls, name).unwrap();
        let keyring = Keyring::load_or_create(&control.join("kek")).unwrap();
        let config = Config {
            store: Arc::new(Embedded::open(&control.join("store.redb"), keyring).unwrap()),
            gate: Arc::new(AdmitsAll),
            tls: server_config(&credentials("server"), ClientCertificate::Optional, ALPN_HTTP).unwrap(),
            node_tls: client_config(&credentials("apiserver-client"), &[b"http/1.1"]).unwrap(),
            token_keys: Arc::new(control_pki::token_key::load_or_create(&control, "token.key").unwrap()),
            service_range: Default::default(),
            capacities: Default::default(),
        };
        let shutdown = CancellationToken::new();
        let server = tokio::spawn({
            let shutdown = shutdown.clone();
            async move {
                control_apiserver::serve(listener, config, shutdown)
                    .await
                    .unwrap();
            }
        });
        let client = connect(&url, &tls).await.unwrap();
        let controllers = tokio::spawn({
            let shutdown = shutdown.clone();
            async move {
                let api = ApiServer {
                    root_ca: "the authority".to_owned(),
                    ..ApiServer::default()
                };
                run_with(client, api, timing, shutdown).await.unwrap();
            }
        });
        let kubeconfig = Kubeconfig::read_from(report.kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
        Self {
            admin: Client::try_from(config).unwrap(),
            shutdown,
            server,
            controllers,
            _dir: dir,
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), async {
            self.controllers.await.unwrap();
            self.server.await.unwrap();
        })
        .await
        .unwrap();
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.admin.clone(), "default")
    }

    async fn ready_node(&self, name: &str) {
        let node: Node = object(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "status": {
                "allocatable": {"cpu": "2", "memory": "1Gi", "pods": "110"},
                "capacity": {"cpu": "2", "memory": "1Gi", "pods": "110"},
            },
        }));
        let nodes: Api<Node> = Api::all(self.admin.clone());
        nodes.create(&PostParams::default(), &node).await.unwrap();
        self.report_ready(name).await;
    }

    async fn report_ready(&self, name: &str) {
        let nodes: Api<Node> = Api::all(self.admin.clone());
        let status = json!({"status": {
            "allocatable": {"cpu": "2", "memory": "1Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    }

    /// Reasons of the events about an object so far.
    async fn reasons(&self, name: &str) -> Vec<String> {
        let events: Api<Event> = Api::namespaced(self.admin.clone(), "default");
        let params = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let mut events = events.list(&params).await.unwrap().items;
        events.sort_by_key(|event| event.creation_timestamp().map(|time| time.0));
        events.into_iter().filter_map(|event| event.reason).collect()
    }
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn pod(name: &str) -> Pod {
    object(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "registry.local/x:1",
            "resources": {"requests": {"cpu": "100m", "memory": "16Mi"}}}]},
    }))
}

fn condition(pod: &Pod, type_: &str) -> Option<(String, Option<String>)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|c| c.type_ == type_)
        .map(|c| (c.status.clone(), c.reason.clone()))
}

/// Asks until the answer is there; panics after half a minute.
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_wait_for_a_node_and_are_bound_when_one_is_ready() {
    let cluster = Cluster::start(Timing::default()).await;
    let pods = cluster.pods();
    pods.create(&PostParams::default(), &pod("waits")).await.unwrap();
    eventually("the condition", || async {
        let pod = pods.get("waits").await.unwrap();
        (condition(&pod, "PodScheduled")? == ("False".to_owned(), Some("Unschedulable".to_owned())))
            .then_some(())
    })
    .await;
    eventually("the first event", || async {
        (cluster.reasons("waits").await == ["FailedScheduling"]).then_some(())
    })
    .await;

    cluster.ready_node("n").await;
    let node_of = |pod: Pod| pod.spec.and_then(|spec| spec.node_name);
    let bound = eventually("the binding", || async {
        node_of(pods.get("waits").await.unwrap())
    })
    .await;
    assert_eq!(bound, "n");
    eventually("the second event", || async {
        cluster
            .reasons("waits")
            .await
            .contains(&"Scheduled".to_owned())
            .then_some(())
    })
    .await;

    let mut times = Vec::new();
    for n in 0..20 {
        let name = format!("timed-{n}");
        let start = Instant::now();
        pods.create(&PostParams::default(), &pod(&name)).await.unwrap();
        let created = start.elapsed();
        eventually("the binding", || async {
            node_of(pods.get(&name).await.unwrap())
        })
        .await;
        times.push((start.elapsed(), created));
        let now = DeleteParams::default().grace_period(0);
        pods.delete(&name, &now).await.unwrap();
    }
    times.sort_unstable();
    println!(
        "create to bound, seen by polling: p50 {:?} (of which create {:?}), worst {:?}",
        times[10].0, times[10].1, times[19].0
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_marked_and_its_pods_are_evicted() {
    let cluster = Cluster::start(IMPATIENT).await;
    cluster.ready_node("n").await;
    let leases: Api<Lease> = Api::namespaced(cluster.admin.clone(), "kube-node-lease");
    let lease = |second: u32| {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "n"},
            "spec": {"holderIdentity": "n", "renewTime": format!("2026-01-01T00:00:{second:02}.000000Z")}})
    };
    leases
        .create(&PostParams::default(), &object(lease(0)))
        .await
        .unwrap();
    let pods = cluster.pods();
    pods.create(&PostParams::default(), &pod("p")).await.unwrap();
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    eventually("the binding", || async {
        pods.get("p").await.unwrap().spec?.node_name
    })
    .await;
    pods.patch_status("p", &PatchParams::default(), &Patch::Strategic(ready))
        .await
        .unwrap();

    // Longer than the limit, but with a heartbeat twenty times within it.
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    let node_ready = |node: Node| {
        node.status
            .unwrap()
            .conditions
            .unwrap()
            .into_iter()
            .find(|c| c.type_ == "Ready")
            .map(|c| c.status)
    };
    for second in 1..=24 {
        leases
            .patch("n", &PatchParams::default(), &Patch::Merge(lease(second)))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(node_ready(nodes.get("n").await.unwrap()).unwrap(), "True");

    eventually("the mark on the node", || async {
        (node_ready(nodes.get("n").await.unwrap())? == "Unknown").then_some(())
    })
    .await;
    eventually("the mark on the pod", || async {
        (condition(&pods.get("p").await.unwrap(), "Ready")?.0 == "False").then_some(())
    })
    .await;
    let evicted = eventually("the eviction", || async {
        Some(pods.get("p").await.unwrap()).filter(|pod| pod.metadata.deletion_timestamp.is_some())
    })
    .await;
    assert_eq!(evicted.status.unwrap().reason.as_deref(), Some("NodeLost"));
    eventually("the events", || async {
        let reasons = cluster.reasons("p").await;
        (reasons.contains(&"NodeNotReady".to_owned()) && reasons.contains(&"NodeLost".to_owned()))
            .then_some(())
    })
    .await;
    assert!(cluster.reasons("n").await.contains(&"NodeNotReady".to_owned()));

    // Without the node nobody could ever confirm the end.
    nodes.delete("n", &DeleteParams::default()).await.unwrap();
    eventually("the removal", || async {
        pods.get_opt("p").await.unwrap().is_none().then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_get_an_account_and_go_with_their_content() {
    let cluster = Cluster::start(Timing::default()).await;
    let namespaces: Api<Namespace> = Api::all(cluster.admin.clone());
    let namespace = object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lab"}}));
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    for name in ["default", "kube-system", "lab"] {
        let accounts: Api<ServiceAccount> = Api::namespaced(cluster.admin.clone(), name);
        eventually("the account", || async {
            accounts.get_opt("default").await.unwrap()
        })
        .await;
    }
    // An account that is deleted comes back.
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.admin.clone(), "lab");
    let first = accounts.get("default").await.unwrap();
    accounts
        .delete("default", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the new account", || async {
        accounts
            .get_opt("default")
            .await
            .unwrap()
            .filter(|account| account.uid() != first.uid())
    })
    .await;

    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), "lab");
    let map =
        |name: &str| object(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}));
    maps.create(&PostParams::default(), &map("plain")).await.unwrap();
    let mut held: ConfigMap = map("held");
    held.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    maps.create(&PostParams::default(), &held).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), "lab");
    let mut lingers = pod("waits");
    lingers.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    pods.create(&PostParams::default(), &lingers).await.unwrap();
    let policies: Api<NetworkPolicy> = Api::namespaced(cluster.admin.clone(), "lab");
    let closed = object(
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "closed"}, "spec": {"podSelector": {}}}),
    );
    policies.create(&PostParams::default(), &closed).await.unwrap();

    namespaces.delete("lab", &DeleteParams::default()).await.unwrap();
    // While a pod is left, all that it was admitted with stays: a policy that went first would open it.
    eventually("the pod's mark", || async {
        let pod = pods.get("waits").await.unwrap();
        pod.metadata.deletion_timestamp.map(|_| ())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(policies.get_opt("closed").await.unwrap().is_some());
    assert!(maps.get_opt("plain").await.unwrap().is_some());
    let release = json!({"metadata": {"finalizers": null}});
    pods.patch("waits", &PatchParams::default(), &Patch::Merge(&release))
        .await
        .unwrap();
    eventually("the emptying", || async {
        let gone = maps.get_opt("plain").await.unwrap().is_none()
            && policies.get_opt("closed").await.unwrap().is_none()
            && pods.get_opt("waits").await.unwrap().is_none();
        gone.then_some(())
    })
    .await;
    assert!(
        namespaces.get_opt("lab").await.unwrap().is_some(),
        "it waits for what is held"
    );
    maps.patch("held", &PatchParams::default(), &Patch::Merge(&release))
        .await
        .unwrap();
    eventually("the end", || async {
        namespaces.get_opt("lab").await.unwrap().is_none().then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_behind_a_service_follows_its_pods() {
    let cluster = Cluster::start(Timing::default()).await;
    let (pods, admin) = (cluster.pods(), cluster.admin.clone());
    let services: Api<Service> = Api::namespaced(admin.clone(), "default");
    let slices: Api<EndpointSlice> = Api::namespaced(admin, "default");
    let service = object(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    }));
    services.create(&PostParams::default(), &service).await.unwrap();
    // Somebody else's slice of the same service is nobody's business.
    let foreign: EndpointSlice = object(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "by-hand", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": ["192.0.2.7"]}],
    }));
    slices.create(&PostParams::default(), &foreign).await.unwrap();
    for name in ["a", "b"] {
        let mut web = pod(name);
        web.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
        let port = object(json!([{"name": "http", "containerPort": 8080}]));
        web.spec.as_mut().unwrap().containers[0].ports = Some(port);
        pods.create(&PostParams::default(), &web).await.unwrap();
    }
    let report = async |name: &str, address: &str, ready: &str| {
        let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": ready}]}});
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    };
    report("a", "10.0.0.1", "True").await;
    report("b", "10.0.0.2", "False").await;
    // Pods by name, with whether they are ready; and the ports.
    let shown = async || {
        let ours = ListParams::default()
            .labels("endpointslice.kubernetes.io/managed-by=endpointslice-controller.k8s.io");
        let found = slices.list(&ours).await.unwrap().items;
        let mut shown: Vec<(String, bool, i32)> = Vec::new();
        for slice in &found {
            assert_eq!(slice.labels()["kubernetes.io/service-name"], "web");
            let port = slice.ports.as_ref().unwrap()[0].port.unwrap();
            for endpoint in &slice.endpoints {
                let target = endpoint.target_ref.as_ref().unwrap().name.clone().unwrap();
                shown.push((target, endpoint.conditions.as_ref().unwrap().ready.unwrap(), port));
            }
        }
        shown.sort();
        shown
    };
    let until = async |expected: &[(&str, bool)]| {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, ready)| ((*name).to_owned(), *ready, 8080))
            .collect();
        eventually("the endpoints", || async {
            (shown().await == expected).then_some(())
        })
        .await;
    };
    until(&[("a", true), ("b", false)]).await;
    report("b", "10.0.0.2", "True").await;
    until(&[("a", true), ("b", true)]).await;
    let relabel = json!({"metadata": {"labels": {"app": "db"}}});
    pods.patch("a", &PatchParams::default(), &Patch::Merge(relabel))
        .await
        .unwrap();
    until(&[("b", true)]).await;
    // One that somebody deletes comes back; with its service it goes for good.
    let ours = slices.list(&ListParams::default()).await.unwrap().items;
    let ours = ours.iter().find(|slice| slice.name_any() != "by-hand").unwrap();
    slices
        .delete(&ours.name_any(), &DeleteParams::default())
        .await
        .unwrap();
    until(&[("b", true)]).await;
    services.delete("web", &DeleteParams::default()).await.unwrap();
    eventually("the end of the slices", || async {
        let left = slices.list(&ListParams::default()).await.unwrap().items;
        (left.len() == 1 && left[0].name_any() == "by-hand").then_some(())
    })
    .await;
    cluster.stop().await;
}
