//! A small cluster with objects of every kind, whose questions go to the reference and to the compiled tables.

use policies_compiler::{ClusterView, ServiceEndpoint, compile_policies, load_objects};
use policies_ir::{
    cluster::Cluster,
    decide::decide,
    policy::PolicySet,
    tables::{Direction, EndpointId, NodeTables, Packet, Verdict, lookup},
};
use serde_json::{Value, json};
use testkit::policies::with_host_endpoints;

use crate::sources;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;

/// Addresses and endpoints of the pods; `_V6` is the other address of the pod.
pub(crate) const WEB: (u32, &str) = (1, "10.0.0.1");
pub(crate) const WEB_V6: &str = "fd00::1";
pub(crate) const DB: (u32, &str) = (2, "10.0.0.2");
pub(crate) const PAY: (u32, &str) = (3, "10.0.0.3");
/// The node's host endpoint, where a test has one.
pub(crate) const HOST: (u32, &str) = (8, "10.0.0.254");
pub(crate) const OUTSIDE: &str = "203.0.113.9";
pub(crate) const OUTSIDE_V6: &str = "2001:db8::9";

/// Where a host endpoint sends from and listens, for tests to which that does not matter.
const HOST_V6: &str = "fd00::fe";

/// What judges packets that the node forwards, where a test has that.
pub(crate) const FORWARDED: EndpointId = EndpointId(901);

/// `shop/web`, `shop/db` and `pay/web` on node `here`, the first two of team `a`, and the objects, which may have any
/// fault that their types allow.
pub(crate) struct Lab {
    pub(crate) view: ClusterView,
    pub(crate) cluster: Cluster,
    pub(crate) policies: PolicySet,
    pub(crate) reported: Vec<String>,
}

/// Policy for what the node forwards, and the tables that are made of it.
pub(crate) struct Forwarding {
    cluster: Cluster,
    policies: PolicySet,
    pub(crate) tables: NodeTables,
}

impl Lab {
    pub(crate) fn new(objects: &[Value]) -> Self {
        let pod = |namespace: &str, app: &str, number: u8| {
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": namespace, "name": app, "labels": {"app": app}},
                "spec": {"nodeName": "here", "serviceAccountName": app, "containers": [{"name": "main", "ports": [
                    {"name": "api", "containerPort": 8000 + u16::from(number)}]}]},
                "status": {"podIP": format!("10.0.0.{number}"), "podIPs": [
                    {"ip": format!("10.0.0.{number}")}, {"ip": format!("fd00::{number}")}]}})
        };
        let named = |kind: &str, namespace: Option<&str>, name: &str, labels: Value| json!({"apiVersion": "v1", "kind": kind, "metadata": {"namespace": namespace, "name": name, "labels": labels}});
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "here", "labels": {"role": "edge"}},
            "status": {"addresses": [{"type": "InternalIP", "address": HOST.1}]}});
        let base = [
            pod("shop", "web", 1),
            pod("shop", "db", 2),
            pod("pay", "web", 3),
            named("Namespace", None, "shop", json!({"team": "a"})),
            named("Namespace", None, "pay", json!({"team": "b"})),
            named("ServiceAccount", Some("shop"), "db", json!({"role": "store"})),
            node,
        ];
        let mut view = load_objects(sources(&base)).expect("the lab loads").view;
        for (pod, number) in view.pods.iter_mut().zip(1..) {
            pod.endpoint = Some(EndpointId(number));
        }
        "here".clone_into(&mut view.node);
        view.host_addresses = [HOST.1.parse().unwrap()].into();
        for object in objects {
            add(&mut view, object);
        }
        let mut reported = Vec::new();
        let policies = view
            .policy_set(|name, error| reported.push(format!("{name}: {}", error.field)))
            .enforced;
        let cluster = with_host_endpoints(&view).0;
        Self {
            view,
            cluster,
            policies,
            reported,
        }
    }

    /// Says what is behind `shop/web`.
    pub(crate) fn with_service(mut self, endpoints: &[(&str, Option<(u8, u16)>)]) -> Self {
        let endpoints = endpoints.iter().map(|(address, port)| ServiceEndpoint {
            address: address.parse().unwrap(),
            port: *port,
        });
        let key = ("shop".to_owned(), "web".to_owned());
        self.view.services.insert(key, endpoints.collect());
        self.policies = self.view.policy_set(|_, _| {}).enforced;
        self
    }

    /// Says how the resolver answered.
    pub(crate) fn with_name(mut self, address: &str, name: &str) -> Self {
        self.cluster
            .names
            .insert(address.parse().unwrap(), [name.to_owned()].into());
        self
    }

    /// What decides about a packet, by the reference and by the tables. A host endpoint's own end is the node's address.
    #[track_caller]
    pub(crate) fn decides(
        &self,
        endpoint: u32,
        direction: Direction,
        peer: &str,
        protocol: u8,
        ports: (u16, u16),
    ) -> (Verdict, String) {
        let host = if peer.contains(':') { HOST_V6 } else { HOST.1 };
        self.decides_between(endpoint, direction, (host, peer), protocol, ports)
    }

    /// What decides about a packet between `inside` and `peer` at a host endpoint.
    #[track_caller]
    pub(crate) fn decides_between(
        &self,
        endpoint: u32,
        direction: Direction,
        (inside, peer): (&str, &str),
        protocol: u8,
        (source_port, port): (u16, u16),
    ) -> (Verdict, String) {
        let packet = Packet {
            direction,
            peer: peer.parse().unwrap(),
            inside: Some(inside.parse().unwrap()),
            protocol,
            source_port,
            port,
        };
        let at = |member: &&policies_ir::cluster::Member| member.endpoint == Some(EndpointId(endpoint));
        let member = self.cluster.members.iter().find(at).expect("the endpoint exists");
        let policy = self.policies.for_endpoint(&member.workload);
        let reference = decide(&policy, &self.cluster.flow(member, &packet));
        let tables = compile_policies(&self.cluster, &self.policies);
        let entry = lookup(&tables, EndpointId(endpoint), &packet);
        assert_eq!(
            (entry.verdict, tables.decided_by(entry.rule)),
            (reference.verdict, Some(reference.decided_by.clone())),
            "the tables and the reference differ: {packet:?}\n{reference:#?}"
        );
        (reference.verdict, reference.decided_by.to_string())
    }

    /// The node's host endpoint, as it judges what the node forwards.
    pub(crate) fn forwarding(&self) -> Forwarding {
        let mut cluster = self.cluster.clone();
        let mut members = cluster.members.iter_mut();
        let host = members.find(|member| member.endpoint == Some(EndpointId(HOST.0)));
        host.expect("a host endpoint").forwarded = Some(FORWARDED);
        Forwarding {
            tables: compile_policies(&cluster, &self.policies),
            policies: self.policies.clone(),
            cluster,
        }
    }

    #[track_caller]
    pub(crate) fn allows(
        &self,
        endpoint: u32,
        direction: Direction,
        peer: &str,
        protocol: u8,
        port: u16,
    ) -> bool {
        self.decides(endpoint, direction, peer, protocol, (40_000, port))
            .0
            == Verdict::Allow
    }

    /// Whether the endpoint takes a TCP connection to port 80.
    #[track_caller]
    pub(crate) fn takes(&self, endpoint: (u32, &str), peer: &str) -> bool {
        self.allows(endpoint.0, Direction::Ingress, peer, TCP, 80)
    }

    /// Whether the endpoint may open a TCP connection to port 80.
    #[track_caller]
    pub(crate) fn opens(&self, endpoint: (u32, &str), peer: &str) -> bool {
        self.allows(endpoint.0, Direction::Egress, peer, TCP, 80)
    }

    /// What decides about a TCP connection that comes from outside to port 80 of `shop/web`.
    #[track_caller]
    pub(crate) fn by(&self) -> String {
        let (verdict, by) = self.decides(WEB.0, Direction::Ingress, OUTSIDE, TCP, (40_000, 80));
        format!("{verdict:?} by {by}")
    }
}

impl Forwarding {
    /// What decides about a packet between `inside` and `peer`, by the reference and by the tables.
    #[track_caller]
    pub(crate) fn decides(
        &self,
        direction: Direction,
        (inside, peer): (&str, &str),
        protocol: u8,
        (source_port, port): (u16, u16),
    ) -> (Verdict, String) {
        let packet = Packet {
            direction,
            peer: peer.parse().unwrap(),
            inside: Some(inside.parse().unwrap()),
            protocol,
            source_port,
            port,
        };
        let mut members = self.cluster.members.iter();
        let host = members
            .find(|member| member.forwarded == Some(FORWARDED))
            .expect("a host endpoint");
        let policy = self.policies.for_forwarded(&host.workload);
        let reference = decide(&policy, &self.cluster.flow(host, &packet));
        let entry = lookup(&self.tables, FORWARDED, &packet);
        assert_eq!(
            (entry.verdict, self.tables.decided_by(entry.rule)),
            (reference.verdict, Some(reference.decided_by.clone())),
            "the tables and the reference differ: {packet:?}\n{reference:#?}"
        );
        (reference.verdict, reference.decided_by.to_string())
    }
}

/// An object of one of Calico's kinds; `p` in namespace `shop` if it has a namespace.
pub(crate) fn calico(kind: &str, name: &str, spec: &Value) -> Value {
    let mut object =
        json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec});
    if !kind.starts_with("Global") && !kind.starts_with("StagedGlobal") {
        object["metadata"]["namespace"] = json!("shop");
    }
    object
}

pub(crate) fn global(name: &str, spec: &Value) -> Value {
    calico("GlobalNetworkPolicy", name, spec)
}

pub(crate) fn namespaced(name: &str, spec: &Value) -> Value {
    calico("NetworkPolicy", name, spec)
}

pub(crate) fn tier(name: &str, order: Option<f64>, action: &str) -> Value {
    calico("Tier", name, &json!({"order": order, "defaultAction": action}))
}

pub(crate) fn host(labels: &Value, profiles: &[&str]) -> Value {
    let mut host = calico(
        "HostEndpoint",
        "here-eth0",
        &json!({"node": "here", "interfaceName": "eth0", "expectedIPs": [HOST.1], "profiles": profiles,
            "ports": [{"name": "ssh", "protocol": "TCP", "port": 22}]}),
    );
    host["metadata"]["labels"] = labels.clone();
    host
}

pub(crate) fn set(kind: &str, name: &str, labels: &Value, spec: &Value) -> Value {
    let mut set = calico(kind, name, spec);
    set["metadata"]["labels"] = labels.clone();
    set
}

pub(crate) fn cluster_policy(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name}, "spec": spec})
}

/// Past the loader, which would refuse what is not valid.
fn add(view: &mut ClusterView, object: &Value) {
    use policies_compiler::CalicoObject as Object;
    fn read<T: serde::de::DeserializeOwned>(object: &Value) -> T {
        serde_json::from_value(object.clone()).expect("an object of its kind")
    }
    let kind = object["kind"].as_str().expect("a kind");
    let api_version = object["apiVersion"].as_str().expect("an apiVersion");
    view.calico.push(match kind {
        "ClusterNetworkPolicy" => return view.cluster_policies.push(read(object)),
        "NetworkPolicy" if api_version.starts_with("networking") => return view.policies.push(read(object)),
        "Tier" => Object::Tier(read(object)),
        "NetworkPolicy" => Object::NetworkPolicy(read(object)),
        "GlobalNetworkPolicy" => Object::GlobalNetworkPolicy(read(object)),
        "StagedNetworkPolicy" => Object::StagedNetworkPolicy(read(object)),
        "StagedGlobalNetworkPolicy" => Object::StagedGlobalNetworkPolicy(read(object)),
        "StagedKubernetesNetworkPolicy" => Object::StagedKubernetesNetworkPolicy(read(object)),
        "NetworkSet" => Object::NetworkSet(read(object)),
        "GlobalNetworkSet" => Object::GlobalNetworkSet(read(object)),
        "HostEndpoint" => Object::HostEndpoint(read(object)),
        "Profile" => Object::Profile(read(object)),
        "FelixConfiguration" => Object::FelixConfiguration(read(object)),
        other => panic!("{other} is no kind of the lab"),
    });
}
