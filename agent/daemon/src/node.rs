//! The node as the API sees it: its object, its conditions and its heartbeat.

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
        apis::meta::v1::{MicroTime, ObjectMeta, Time},
    },
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use tokio::{sync::watch, time::MissedTickBehavior};

use crate::{
    cluster::{Cluster, revision},
    config::Config,
    events::{Events, Kind},
    pods::NodeAmounts,
    policy::Enforcement,
    pressure::Pressures,
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

/// What the node's conditions follow from.
pub(crate) struct Health {
    pub(crate) enforcement: watch::Receiver<Enforcement>,
    /// Told beside them, for whoever admits host endpoints.
    pub(crate) host_counts: watch::Receiver<Option<HostCounts>>,
    pub(crate) pressures: watch::Receiver<Pressures>,
    /// The node shuts down.
    pub(crate) ends: CancellationToken,
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
        let mut written: Option<Written> = None;
        let (mut behind, mut ending) = (false, false);
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                Ok(()) = self.health.enforcement.changed() => self.tell_of_policy(&mut behind),
                Ok(()) = self.health.pressures.changed() => {}
                () = self.health.ends.cancelled(), if !ending => ending = true,
            }
            if let Err(error) = within(ANSWER_WITHIN, self.renew_lease()).await {
                tracing::warn!(error = crate::policy::chain(&error), "heartbeat failed");
                // Others may have taken the node for lost, and what it said for void.
                written = None;
            }
            let own = Said {
                conditions: self.conditions(&NodeStatus::default()),
                host_counts: *self.health.host_counts.borrow(),
            };
            let object = self.cluster.node(&self.config.node_name);
            if written
                .as_ref()
                .is_some_and(|written| written.holds(&own, object.as_deref()))
            {
                continue;
            }
            match within(ANSWER_WITHIN, self.write_status()).await {
                Ok(node) => written = Some(Written::now(own, &node)),
                Err(error) => {
                    tracing::warn!(error = crate::policy::chain(&error), "node status not written");
                }
            }
        }
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
    async fn register(&self) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = self.node();
        match within(ANSWER_WITHIN, nodes.create(&PostParams::default(), &node)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let metadata =
                    json!({"labels": node.metadata.labels, "annotations": node.metadata.annotations});
                let patch = json!({"metadata": metadata, "spec": node.spec});
                let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
                let patched = nodes.patch(&self.config.node_name, &parameters, &patch);
                within(ANSWER_WITHIN, patched).await?;
            }
            created => drop(created?),
        }
        within(ANSWER_WITHIN, self.renew_lease()).await?;
        within(ANSWER_WITHIN, self.write_status()).await.map(drop)
    }

    async fn write_status(&self) -> Result<Node, kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let name = &self.config.node_name;
        let before = nodes.get(name).await?;
        let known = before.metadata.annotations.unwrap_or_default();
        let patch = json!({"status": self.status(&before.status.unwrap_or_default())});
        let parameters = PatchParams::default();
        let written = nodes
            .patch_status(name, &parameters, &Patch::Merge(patch))
            .await?;
        let annotations = self.annotations();
        if annotations.iter().all(|(key, said)| known.get(key) == Some(said)) {
            return Ok(written);
        }
        let patch = json!({"metadata": {"annotations": annotations}});
        nodes.patch(name, &parameters, &Patch::Merge(patch)).await
    }

    async fn renew_lease(&self) -> Result<(), kube::Error> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let name = &self.config.node_name;
        let now = MicroTime(Timestamp::now());
        let patch = json!({"spec": {"renewTime": now, "holderIdentity": name}});
        match leases
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        namespace: Some(LEASE_NAMESPACE.to_owned()),
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

/// Whether `said` has every one of `own`, whenever it was written.
fn says(said: &[NodeCondition], own: &[NodeCondition]) -> bool {
    let words = |c: &NodeCondition| {
        (
            c.type_.clone(),
            c.status.clone(),
            c.reason.clone(),
            c.message.clone(),
        )
    };
    own.iter()
        .all(|own| said.iter().any(|said| words(said) == words(own)))
}

impl Health {
    fn conditions(&self, before: &NodeStatus) -> Vec<NodeCondition> {
        let now = Time(Timestamp::now());
        let Pressures {
            memory,
            disk,
            processes,
        } = *self.pressures.borrow();
        // Kubernetes' words.
        let rows = [
            (
                "MemoryPressure",
                memory,
                ["SufficientMemory", "InsufficientMemory"],
                "memory available",
            ),
            (
                "DiskPressure",
                disk,
                ["NoDiskPressure", "DiskPressure"],
                "disk space and file numbers",
            ),
            (
                "PIDPressure",
                processes,
                ["SufficientPID", "InsufficientPID"],
                "process numbers available",
            ),
        ];
        let pressure = |(kind, holds, [well, ill], what): (&str, bool, [&str; 2], &str)| {
            let reason = format!("KubeletHas{}", if holds { ill } else { well });
            let word = if holds { "insufficient" } else { "sufficient" };
            condition(
                before,
                (kind, holds),
                &reason,
                format!("the node has {word} {what}"),
                &now,
            )
        };
        let mut conditions: Vec<NodeCondition> = rows.into_iter().map(pressure).collect();
        // Written only while the agent runs and its datapath is loaded; the lease tells of everything else.
        let (ready, reason, message) = if self.ends.is_cancelled() {
            (false, "KubeletNotReady", "node is shutting down")
        } else {
            (
                true,
                "KubeletReady",
                "the agent runs and its packet programs are loaded",
            )
        };
        conditions.push(condition(
            before,
            ("Ready", ready),
            reason,
            message.to_owned(),
            &now,
        ));
        conditions
    }
}

/// Whether the node's pods have IPv6; where they do not, why.
fn pod_ipv6(before: &NodeStatus, ipv6: Ipv6) -> NodeCondition {
    let (holds, reason, message) = match ipv6 {
        Ipv6::On(cidr) => (true, "DualStack", format!("pods have addresses of {cidr}")),
        Ipv6::Off => (
            false,
            "NotConfigured",
            "the node was given an IPv4 CIDR only".to_owned(),
        ),
        Ipv6::Unavailable(reason) => (false, "Unavailable", reason.to_string()),
    };
    let now = Time(Timestamp::now());
    condition(before, ("PodIPv6", holds), reason, message, &now)
}

/// Whether the kernel judges by the policy that is known.
fn policy_enforced(before: &NodeStatus, enforcement: &Enforcement) -> NodeCondition {
    let (holds, reason, message) = match enforcement {
        Enforcement::InForce => (
            true,
            "InForce",
            "the kernel judges by the newest policy".to_owned(),
        ),
        Enforcement::NotYet => (false, "Starting", "no policy was written yet".to_owned()),
        Enforcement::Behind(why) => (false, "TablesNotWritten", why.clone()),
    };
    let now = Time(Timestamp::now());
    condition(before, ("PolicyEnforced", holds), reason, message, &now)
}

fn status(holds: bool) -> &'static str {
    if holds { "True" } else { "False" }
}

fn condition(
    before: &NodeStatus,
    (kind, holds): (&str, bool),
    reason: &str,
    message: String,
    now: &Time,
) -> NodeCondition {
    let known = before
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind && c.status == status(holds));
    NodeCondition {
        type_: kind.to_owned(),
        status: status(holds).to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: known
            .and_then(|c| c.last_transition_time.clone())
            .or(Some(now.clone())),
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
    use super::*;

    fn health(pressures: Pressures) -> Health {
        Health {
            enforcement: watch::channel(Enforcement::InForce).1,
            host_counts: watch::channel(None).1,
            pressures: watch::channel(pressures).1,
            ends: CancellationToken::new(),
        }
    }

    #[test]
    fn conditions_are_in_kubernetes_words() {
        let ill = Pressures {
            memory: true,
            ..Pressures::default()
        };
        let health = health(ill);
        let said = |health: &Health| {
            let conditions = health.conditions(&NodeStatus::default()).into_iter();
            let said = conditions.map(|c| format!("{} {} {}", c.type_, c.status, c.reason.unwrap()));
            said.collect::<Vec<_>>()
        };
        assert_eq!(
            said(&health),
            [
                "MemoryPressure True KubeletHasInsufficientMemory",
                "DiskPressure False KubeletHasNoDiskPressure",
                "PIDPressure False KubeletHasSufficientPID",
                "Ready True KubeletReady",
            ]
        );
        health.ends.cancel();
        assert_eq!(said(&health)[3], "Ready False KubeletNotReady");
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
    fn policy_that_is_not_in_force_shows_with_its_reason() {
        let said = |enforcement: Enforcement| {
            let condition = policy_enforced(&NodeStatus::default(), &enforcement);
            (condition.type_, condition.status, condition.message.unwrap())
        };
        let why = "map VERDICTS holds 10 entries, old and new tables together need 12";
        let (kind, status, message) = said(Enforcement::Behind(why.to_owned()));
        assert_eq!(
            (kind.as_str(), status.as_str(), message.as_str()),
            ("PolicyEnforced", "False", why)
        );
        assert_eq!(said(Enforcement::InForce).1, "True");
        assert_eq!(said(Enforcement::NotYet).1, "False");
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

    #[test]
    fn a_condition_that_holds_on_keeps_its_time() {
        let health = health(Pressures::default());
        let first = health.conditions(&NodeStatus::default());
        let mut before = NodeStatus {
            conditions: Some(first),
            ..NodeStatus::default()
        };
        let old: Timestamp = "2020-01-01T00:00:00Z".parse().unwrap();
        for condition in before.conditions.iter_mut().flatten() {
            condition.last_transition_time = Some(Time(old));
        }
        let second = health.conditions(&before);
        assert!(second.iter().all(|c| c.last_transition_time == Some(Time(old))));
    }
}
