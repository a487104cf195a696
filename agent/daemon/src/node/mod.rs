//! The node as the API sees it: its object, its conditions and its heartbeat.

mod conditions;

use std::{collections::BTreeMap, time::Duration};

use agent_network::{Ipv6, Network, NodeAddresses};
use api::{annotations::HOST_INTERFACES, node_policy::HostCounts};
use api_client::within;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{
            DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus,
            NodeSystemInfo,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    },
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub(crate) use self::conditions::Health;
use self::conditions::{pod_ipv6, policy_enforced, rebooted, says, turns};
use crate::{
    cluster::{Cluster, revision},
    config::Config,
    events::{Events, Kind},
    pods::NodeAmounts,
    policy::Enforcement,
    stats::machine,
};

/// Namespace of heartbeats.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// How often the lease is renewed. The control plane gives a node up after 40 s without.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often conditions are written even if they did not change.
const STATUS_EVERY: Duration = Duration::from_secs(300);
/// Longest time for a heartbeat or a status: one that takes longer is late for the next.
const ANSWER_WITHIN: Duration = HEARTBEAT;
/// First and longest delay before a failed registration is repeated.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Pods that a node takes.
const MAX_PODS: u32 = 110;
/// Version of Kubernetes whose behaviour the agent follows.
const KUBELET_VERSION: &str = concat!("v1.33.0-palisade.", env!("CARGO_PKG_VERSION"));

/// The node, kept registered and alive.
pub(crate) struct NodeAgent {
    client: Client,
    cluster: Cluster,
    config: Config,
    addresses: NodeAddresses,
    ipv6: Ipv6,
    health: Health,
    events: Events,
}

impl NodeAgent {
    pub(crate) fn new(
        (client, cluster): (Client, Cluster),
        config: Config,
        network: &Network,
        health: Health,
        events: Events,
    ) -> Self {
        Self {
            client,
            cluster,
            config,
            health,
            events,
            addresses: network.node_addresses(),
            ipv6: network.ipv6(),
        }
    }

    /// Registers the node and renews its heartbeat until `shutdown`. Failures are repeated: an API server
    /// that is away is a state, not an end.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        // Ended in the middle of whatever it waits for.
        shutdown.run_until_cancelled(self.live()).await;
    }

    async fn live(mut self) {
        let mut delay = RETRY.0;
        while let Err(error) = self.register().await {
            tracing::warn!(
                error = crate::policy::chain(&error),
                "cannot register the node, will retry"
            );
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY.1);
        }
        tracing::info!(node = self.config.node_name, address = %self.addresses.v4, "node registered");
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = Told::default();
        let (mut behind, mut ending) = (false, false);
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                Ok(()) = self.health.enforcement.changed() => self.tell_of_policy(&mut behind),
                Ok(()) = self.health.pressures.changed() => {}
                () = self.health.ends.cancelled(), if !ending => ending = true,
            }
            self.beat(&mut told).await;
        }
    }

    /// Renews the heartbeat, and writes the status if there is something to say.
    async fn beat(&self, told: &mut Told) {
        let object = self.cluster.node(&self.config.node_name);
        if let Err(error) = within(ANSWER_WITHIN, self.renew_lease(object.as_deref())).await {
            tracing::warn!(error = crate::policy::chain(&error), "heartbeat failed");
            // Others may have taken the node for lost, and what it said for void.
            told.written = None;
        }
        let own = Said {
            conditions: self.conditions(&NodeStatus::default()),
            host_counts: *self.health.host_counts.borrow(),
        };
        let went = std::mem::replace(&mut told.seen, object.is_some()) && object.is_none();
        let holds = |written: &Written| written.holds(&own, object.as_deref());
        if !went && told.written.as_ref().is_some_and(holds) {
            return;
        }
        let written = match within(ANSWER_WITHIN, self.write_status()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => self.register_again().await,
            written => written,
        };
        match written {
            Ok(node) => told.written = Some(Written::now(own, &node)),
            Err(error) => {
                told.written = None;
                tracing::warn!(error = crate::policy::chain(&error), "node status not written");
            }
        }
    }

    /// The API server does not have the node any more and yet takes its certificate: what it keeps was restored from before
    /// the node was there, say. One that somebody has deleted is refused, and has to be invited.
    async fn register_again(&self) -> Result<Node, kube::Error> {
        let node = self.register().await?;
        let name = &self.config.node_name;
        let message = format!("the API server had no node {name} any more; it is registered again");
        tracing::warn!(node = name, message);
        self.events.node(name, Kind::Warning, "RegisteredNode", message);
        Ok(node)
    }

    /// An event when policy cannot be enforced, and one when it can again.
    fn tell_of_policy(&mut self, behind: &mut bool) {
        let now = self.health.enforcement.borrow_and_update().clone();
        let name = &self.config.node_name;
        match now {
            Enforcement::NotYet => {}
            Enforcement::Behind(why) => {
                *behind = true;
                self.events.node(name, Kind::Warning, "PolicyNotEnforced", why);
            }
            Enforcement::InForce if *behind => {
                *behind = false;
                let message = "the kernel judges by the newest policy again".to_owned();
                self.events.node(name, Kind::Normal, "PolicyEnforced", message);
            }
            Enforcement::InForce => {}
        }
    }

    /// Creates the node's object, or brings labels and CIDR of the existing one up to date, and writes its
    /// status: from here on the scheduler may use it.
    async fn register(&self) -> Result<Node, kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = self.node();
        let registered = match within(ANSWER_WITHIN, nodes.create(&PostParams::default(), &node)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let metadata =
                    json!({"labels": node.metadata.labels, "annotations": node.metadata.annotations});
                let patch = json!({"metadata": metadata, "spec": node.spec});
                let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
                let patched = nodes.patch(&self.config.node_name, &parameters, &patch);
                within(ANSWER_WITHIN, patched).await?
            }
            created => created?,
        };
        within(ANSWER_WITHIN, self.renew_lease(Some(&registered))).await?;
        within(ANSWER_WITHIN, self.write_status()).await
    }

    async fn write_status(&self) -> Result<Node, kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let name = &self.config.node_name;
        let before = nodes.get(name).await?;
        let known = before.metadata.annotations.unwrap_or_default();
        let before = before.status.unwrap_or_default();
        let status = self.status(&before);
        let patch = body(&status).map_err(kube::Error::SerdeError)?;
        let parameters = PatchParams::default();
        let written = nodes
            .patch_status(name, &parameters, &Patch::Strategic(patch))
            .await?;
        self.tell_of(&before, &status);
        let annotations = self.annotations();
        if annotations.iter().all(|(key, said)| known.get(key) == Some(said)) {
            return Ok(written);
        }
        let patch = json!({"metadata": {"annotations": annotations}});
        nodes.patch(name, &parameters, &Patch::Merge(patch)).await
    }

    /// Events for what has become of the node since `before`.
    fn tell_of(&self, before: &NodeStatus, now: &NodeStatus) {
        let name = &self.config.node_name;
        let boot_id = now.node_info.as_ref().map(|info| info.boot_id.as_str());
        if let Some(boot_id) = boot_id.filter(|boot_id| rebooted(before, boot_id)) {
            let message = format!("Node {name} has been rebooted, boot id: {boot_id}");
            self.events.node(name, Kind::Warning, "Rebooted", message);
        }
        for (reason, message) in turns(name, before, now.conditions.as_deref().unwrap_or_default()) {
            self.events.node(name, Kind::Normal, reason, message);
        }
    }

    /// Renews the heartbeat, which belongs to the node's object, if that is known, and goes with it.
    async fn renew_lease(&self, node: Option<&Node>) -> Result<(), kube::Error> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let name = &self.config.node_name;
        let now = MicroTime(Timestamp::now());
        let owners: Option<Vec<OwnerReference>> = node.and_then(owner).map(|owner| vec![owner]);
        let mut patch = json!({"spec": {"renewTime": now, "holderIdentity": name}});
        if let Some(owners) = &owners {
            patch["metadata"] = json!({"ownerReferences": owners});
        }
        match leases
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        namespace: Some(LEASE_NAMESPACE.to_owned()),
                        owner_references: owners,
                        ..ObjectMeta::default()
                    },
                    spec: Some(LeaseSpec {
                        holder_identity: Some(name.clone()),
                        lease_duration_seconds: Some(40),
                        renew_time: Some(now),
                        ..LeaseSpec::default()
                    }),
                };
                leases.create(&PostParams::default(), &lease).await.map(drop)
            }
            renewed => renewed.map(drop),
        }
    }

    fn node(&self) -> Node {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let labels = [
            label("kubernetes.io/hostname", &self.config.node_name),
            label("kubernetes.io/arch", architecture()),
            label("kubernetes.io/os", "linux"),
        ];
        Node {
            metadata: ObjectMeta {
                name: Some(self.config.node_name.clone()),
                labels: Some(labels.into()),
                annotations: Some(self.annotations()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                pod_cidr: Some(self.config.pod_cidr.to_string()),
                pod_cidrs: Some(
                    std::iter::once(self.config.pod_cidr.to_string())
                        .chain(self.ipv6.cidr().map(|cidr| cidr.to_string()))
                        .collect(),
                ),
                ..NodeSpec::default()
            }),
            status: None,
        }
    }

    /// How many interfaces and addresses the node has, as soon as it knows.
    fn annotations(&self) -> BTreeMap<String, String> {
        let counts = *self.health.host_counts.borrow();
        let said = counts.map(|counts| (HOST_INTERFACES.to_owned(), json!(counts).to_string()));
        said.into_iter().collect()
    }

    fn status(&self, before: &NodeStatus) -> NodeStatus {
        let measured = amounts(&self.config);
        let quantities = |memory: u64, disk: u64| {
            let amounts = [
                ("cpu", (measured.cpu_millis / 1000).to_string()),
                ("ephemeral-storage", format!("{}Ki", disk / 1024)),
                ("memory", format!("{}Ki", memory / 1024)),
                ("pods", MAX_PODS.to_string()),
            ];
            amounts.map(|(name, amount)| (name.to_owned(), Quantity(amount)))
        };
        let capacity = quantities(measured.memory_bytes, measured.storage_bytes);
        let allocatable = quantities(
            measured.allocatable_memory_bytes,
            measured.allocatable_storage_bytes,
        );
        let address = |kind: &str, address: String| NodeAddress {
            type_: kind.to_owned(),
            address,
        };
        let mut addresses = vec![address("InternalIP", self.reachable_address())];
        addresses.extend(self.addresses.v6.map(|v6| address("InternalIP", v6.to_string())));
        addresses.push(address("Hostname", self.config.node_name.clone()));
        NodeStatus {
            capacity: Some(capacity.into()),
            allocatable: Some(allocatable.into()),
            addresses: Some(addresses),
            conditions: Some(self.conditions(before)),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint {
                    port: i32::from(self.config.listen.port()),
                }),
            }),
            node_info: Some(system_info()),
            ..NodeStatus::default()
        }
    }

    fn conditions(&self, before: &NodeStatus) -> Vec<NodeCondition> {
        let mut conditions = self.health.conditions(before);
        conditions.push(pod_ipv6(before, self.ipv6));
        conditions.push(policy_enforced(before, &self.health.enforcement.borrow()));
        conditions
    }

    /// Where the API server finds the node's own API: a node that listens on its loopback only is reached
    /// there, which works as long as both are one machine.
    fn reachable_address(&self) -> String {
        let listen = self.config.listen.ip();
        if listen.is_unspecified() {
            self.addresses.v4.to_string()
        } else {
            listen.to_string()
        }
    }
}

/// The node as the owner of what goes with it.
fn owner(node: &Node) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone()?,
        uid: node.metadata.uid.clone()?,
        ..OwnerReference::default()
    })
}

/// Merged in as Kubernetes' agents do: conditions of others stay. Addresses would merge by their type, of which two may be, and
/// those of before would stay.
fn body(status: &NodeStatus) -> serde_json::Result<Value> {
    let mut status = serde_json::to_value(status)?;
    if let Some(addresses) = status["addresses"].as_array_mut() {
        addresses.insert(0, json!({"$patch": "replace"}));
    }
    Ok(json!({"status": status}))
}

/// What the API knows of the node.
#[derive(Default)]
struct Told {
    written: Option<Written>,
    /// The watch has the node's object.
    seen: bool,
}

/// What the node has to say.
struct Said {
    conditions: Vec<NodeCondition>,
    host_counts: Option<HostCounts>,
}

/// What the API was told last.
struct Written {
    said: Said,
    /// Of the object when they were in it.
    revision: u64,
    at: tokio::time::Instant,
}

impl Written {
    fn now(said: Said, node: &Node) -> Self {
        Self {
            said,
            revision: revision(node),
            at: tokio::time::Instant::now(),
        }
    }

    /// Whether that is still what the node has to say, and what is said of it: who has not heard of it for a while says
    /// something else.
    fn holds(&self, own: &Said, object: Option<&Node>) -> bool {
        // What is older than our word has not heard it.
        let since = object.filter(|object| revision(*object) > self.revision);
        let said = since.map(|object| {
            let status = object.status.as_ref();
            status
                .and_then(|status| status.conditions.as_deref())
                .unwrap_or_default()
        });
        self.at.elapsed() < STATUS_EVERY
            && self.said.host_counts == own.host_counts
            && says(&self.said.conditions, &own.conditions)
            && said.is_none_or(|said| says(said, &own.conditions))
    }
}

fn system_info() -> NodeSystemInfo {
    let uname = rustix::system::uname();
    let line = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: concat!("palisade://", env!("CARGO_PKG_VERSION")).to_owned(),
        kernel_version: uname.release().to_string_lossy().into_owned(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: line("/etc/machine-id"),
        operating_system: "linux".to_owned(),
        os_image: os_image(&line("/etc/os-release")).unwrap_or_else(|| "Linux".to_owned()),
        ..NodeSystemInfo::default()
    }
}

fn os_image(os_release: &str) -> Option<String> {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

/// The machine's architecture in the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What the machine has, and what of it is its pods': what would put the node under pressure is nobody's to ask for.
pub(crate) fn amounts(config: &Config) -> NodeAmounts {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory_bytes = memory_kib("MemTotal").unwrap_or(0).saturating_mul(1024);
    let disk = machine::file_system(&config.agent_dir, Timestamp::now());
    let storage_bytes = disk.map_or(0, |disk| disk.capacity_bytes);
    let thresholds = &config.eviction;
    let kept = storage_bytes / 100 * thresholds.disk_available_percent;
    NodeAmounts {
        cpu_millis: u64::try_from(processors).unwrap_or(1).saturating_mul(1000),
        memory_bytes,
        allocatable_memory_bytes: memory_bytes.saturating_sub(thresholds.memory_available_bytes),
        storage_bytes,
        allocatable_storage_bytes: storage_bytes.saturating_sub(kept),
    }
}

fn memory_kib(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::{
        conditions::{condition, tests::health},
        *,
    };
    use crate::pressure::Pressures;

    /// Addresses of both families have one type, by which they would be one.
    #[test]
    fn what_others_write_to_the_status_is_left_to_them() {
        let before = NodeStatus {
            conditions: Some(vec![condition(
                &NodeStatus::default(),
                ("KernelDeadlock", false),
                "KernelHasNoDeadlock",
                String::new(),
                &Time(Timestamp::now()),
            )]),
            ..NodeStatus::default()
        };
        let address = |address: &str| NodeAddress {
            type_: "InternalIP".to_owned(),
            address: address.to_owned(),
        };
        let status = NodeStatus {
            conditions: Some(health(Pressures::default()).conditions(&before)),
            addresses: Some(vec![address("192.0.2.1"), address("2001:db8::1")]),
            ..NodeStatus::default()
        };
        let body = body(&status).unwrap();
        let current = json!({"metadata": {"name": "n"}, "status": {
            "conditions": before.conditions,
            "addresses": [{"type": "InternalIP", "address": "192.0.2.9"}, {"type": "ExternalIP", "address": "198.51.100.1"}],
            "capacity": {"lab.example/dongle": "2"},
        }});
        let row = api::resources::by_kind("v1", "Node").unwrap();
        let merged = control_wire::patch::apply(
            row,
            control_wire::negotiate::PatchForm::Strategic,
            &current,
            body.to_string().as_bytes(),
        );
        let status = merged.unwrap()["status"].clone();
        let conditions = status["conditions"].as_array().unwrap().iter();
        let kinds: Vec<&str> = conditions.filter_map(|c| c["type"].as_str()).collect();
        assert_eq!(
            kinds,
            [
                "KernelDeadlock",
                "MemoryPressure",
                "DiskPressure",
                "PIDPressure",
                "Ready"
            ]
        );
        let addresses = status["addresses"].as_array().unwrap().iter();
        let addresses: Vec<&str> = addresses.filter_map(|a| a["address"].as_str()).collect();
        assert_eq!(addresses, ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(status["capacity"]["lab.example/dongle"], "2");
    }

    /// An API server that has at most one node, and takes whatever else it is told.
    #[derive(Default)]
    struct FakeApi {
        node: Option<Value>,
        /// How many nodes there have been.
        made: u32,
        lease: Option<Value>,
        events: Vec<String>,
    }

    type Shared = std::sync::Arc<std::sync::Mutex<FakeApi>>;

    async fn serve(api: Shared) -> Client {
        use axum::{
            body::Bytes,
            http::{Method, StatusCode, Uri},
        };
        let answer = |api: Shared, method: Method, uri: Uri, body: Bytes| {
            let mut api = api.lock().unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let not_found = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                "reason": "NotFound", "message": "nodes \"n\" not found"});
            let path = uri.path();
            let (code, answer) = if path.contains("/events") {
                let reason = body["reason"].as_str().unwrap_or_default().to_owned();
                api.events.push(reason);
                (201, body)
            } else if path.contains("/leases") {
                if method == Method::PATCH && api.lease.is_none() {
                    (404, not_found)
                } else {
                    api.lease = Some(body.clone());
                    (200, body)
                }
            } else if method == Method::POST {
                api.made += 1;
                let mut node = body;
                node["metadata"]["uid"] = json!(format!("u{}", api.made));
                api.node = Some(node.clone());
                (201, node)
            } else {
                match &api.node {
                    Some(node) => (200, node.clone()),
                    None => (404, not_found),
                }
            };
            (StatusCode::from_u16(code).unwrap(), axum::Json(answer))
        };
        let handler = move |method: Method, uri: Uri, body: Bytes| {
            let api = api.clone();
            async move { answer(api, method, uri, body) }
        };
        let router = axum::Router::new().fallback(handler);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        api_client::connect(kube::Config::new(url.parse().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn a_node_that_the_api_server_has_lost_is_registered_again() {
        let api = Shared::default();
        let client = serve(api.clone()).await;
        let base = tempfile::tempdir().unwrap();
        let agent = NodeAgent {
            cluster: Cluster::unwatched(),
            config: Config::below(base.path()),
            addresses: NodeAddresses {
                v4: std::net::Ipv4Addr::LOCALHOST,
                v6: None,
            },
            ipv6: Ipv6::Off,
            health: health(Pressures::default()),
            events: Events::start(client.clone(), "n".to_owned(), CancellationToken::new()),
            client,
        };
        let mut told = Told::default();
        let lease_owner = || {
            let lease = api.lock().unwrap().lease.clone().expect("the lease");
            let owner = lease["metadata"]["ownerReferences"][0].clone();
            (owner["kind"].clone(), owner["uid"].clone())
        };
        agent.register().await.unwrap();
        assert_eq!(
            lease_owner(),
            (json!("Node"), json!("u1")),
            "it goes with the node"
        );
        agent.beat(&mut told).await;
        assert!(told.written.is_some());
        api.lock().unwrap().node = None;
        agent.beat(&mut told).await;
        assert!(api.lock().unwrap().node.is_none(), "nothing told of it yet");
        // As the watch would have it.
        told.seen = true;
        agent.beat(&mut told).await;
        let node = api.lock().unwrap().node.clone().expect("the node");
        assert_eq!(node["metadata"]["labels"]["kubernetes.io/os"], "linux");
        assert_eq!(lease_owner(), (json!("Node"), json!("u2")));
        let told_of = async {
            let told = || api.lock().unwrap().events.clone();
            while !told().iter().any(|reason| reason == "RegisteredNode") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), told_of)
            .await
            .unwrap();
    }

    #[test]
    fn measures_this_machine() {
        assert!(memory_kib("MemTotal").unwrap() > 100_000);
        let conditions = health(Pressures::default()).conditions(&NodeStatus::default());
        let ready = conditions.last().unwrap();
        assert_eq!((ready.type_.as_str(), ready.status.as_str()), ("Ready", "True"));
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Lab 1\"\n").unwrap(), "Lab 1");
    }

    #[test]
    fn what_others_say_of_the_node_does_not_stand_and_is_contradicted_once() {
        let own = health(Pressures::default()).conditions(&NodeStatus::default());
        let all = |conditions: &[NodeCondition]| Said {
            conditions: conditions.to_vec(),
            host_counts: None,
        };
        let object = |revision: u64, conditions: &[NodeCondition]| {
            let node = json!({"metadata": {"name": "n", "resourceVersion": revision.to_string()},
                "status": {"conditions": conditions}});
            serde_json::from_value::<Node>(node).unwrap()
        };
        let mut silent = own.clone();
        for condition in &mut silent {
            condition.status = "Unknown".to_owned();
        }
        let written = Written::now(all(&own), &object(7, &own));
        let holds = |object: Option<Node>| written.holds(&all(&own), object.as_ref());
        assert!(holds(None));
        assert!(holds(Some(object(7, &own))));
        // The watch is behind.
        assert!(holds(Some(object(6, &silent))));
        assert!(!holds(Some(object(8, &silent))));
        // Somebody else's condition, a label, or another time of the same.
        let mut more = own.clone();
        more.push(condition(
            &NodeStatus::default(),
            ("lab/Disk", true),
            "",
            String::new(),
            &Time(Timestamp::now()),
        ));
        for condition in &mut more {
            condition.last_heartbeat_time = None;
        }
        assert!(holds(Some(object(9, &more))));
        let ill = health(Pressures {
            disk: true,
            ..Pressures::default()
        });
        assert!(!written.holds(&all(&ill.conditions(&NodeStatus::default())), None));
        // Interfaces come and go.
        let counted = Said {
            host_counts: Some(HostCounts::default()),
            ..all(&own)
        };
        assert!(!written.holds(&counted, None));
    }
}
