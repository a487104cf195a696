//! What the watches bring, as changes of the compiler's session: what one costs does not depend on the size of the
//! cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use agent_telemetry::{LogRules, NamedEndpoint, Snapshot};
use api::{
    annotations, calico,
    flow::{EndpointRef, HostRef, PodRef},
    host_ports::HostPort,
};
use k8s_openapi::api::{core::v1::Pod, networking::v1::NetworkPolicy};
use policies_compiler::{ClusterView, HostEndpointIds, PodView, Session};
use policies_ir::{
    policy::{Workload, WorkloadKind},
    tables::{EndpointId, NodeTables},
};

use super::Endpoint;
use crate::{
    cluster::{Change, Changes, Cluster, Key},
    policy_objects,
};

/// The session, and what flow events call pods and host endpoints.
pub(crate) struct Followed {
    pub(crate) session: Session,
    node: String,
    /// Endpoints of this node by the uid of their pod.
    endpoints: BTreeMap<String, Endpoint>,
    /// Pods whose wish for their flows is to be looked at.
    touched: BTreeSet<Key>,
    /// Addresses that may be another pod's, or another host endpoint's.
    moved: BTreeSet<IpAddr>,
    named: Arc<BTreeMap<IpAddr, Arc<NamedEndpoint>>>,
    /// What flow events called the pods and host endpoints of this node last.
    shown: BTreeMap<EndpointId, Arc<NamedEndpoint>>,
    /// Names of rules, as flow events have them.
    rules: Arc<NodeTables>,
}

impl Followed {
    pub(crate) fn new(node: String) -> Self {
        let view = ClusterView {
            node: node.clone(),
            ..ClusterView::default()
        };
        Self {
            session: Session::new(view, NodeTables::default()),
            node,
            endpoints: BTreeMap::new(),
            touched: BTreeSet::new(),
            moved: BTreeSet::new(),
            named: Arc::default(),
            shown: BTreeMap::new(),
            rules: Arc::default(),
        }
    }

    /// Takes what the watches brought.
    pub(crate) fn take(&mut self, changes: Changes) {
        for ((_, name), change) in changes.namespaces {
            self.session.set_namespace(&name, change.now().map(Arc::as_ref));
        }
        for ((namespace, name), change) in changes.accounts {
            self.session
                .set_service_account(&namespace, &name, change.now().map(Arc::as_ref));
        }
        for ((_, name), change) in changes.nodes {
            self.session.set_node(&name, change.now().map(Arc::as_ref));
        }
        if let Some(slices) = changes.slices {
            let mut view = ClusterView::default();
            for slice in &slices {
                view.add_endpoint_slice(slice);
            }
            self.session.set_services(view.services);
        }
        for ((namespace, name), change) in changes.policies {
            match change {
                Change::Is(policy) => self.session.put_policy(reduced(&policy)),
                Change::Went(_) => self.session.remove_policy(&namespace, &name),
            }
        }
        for (_, change) in changes.objects {
            let (Change::Is(object) | Change::Went(object)) = &change;
            let host = object.host_endpoint();
            self.moved_with(host);
            match &change {
                Change::Is(object) => object.put_in(&mut self.session),
                Change::Went(object) => object.remove_from(&mut self.session),
            }
            self.moved_with(host);
        }
        for (key, change) in changes.pods {
            self.set_pod(key, change.now().map(Arc::as_ref));
        }
    }

    /// A pod of this node has an interface; its object may come later.
    pub(crate) fn attached(&mut self, endpoint: Endpoint, cluster: &Cluster) {
        let key = key(&endpoint.pod);
        self.endpoints.insert(endpoint.pod_uid.clone(), endpoint);
        self.look_again(key, cluster);
    }

    /// It has none any more.
    pub(crate) fn detached(&mut self, id: EndpointId, cluster: &Cluster) {
        let gone = self
            .endpoints
            .extract_if(.., |_, endpoint| endpoint.link.id == id);
        let gone: Vec<Key> = gone.map(|(_, endpoint)| key(&endpoint.pod)).collect();
        for key in gone {
            self.look_again(key, cluster);
        }
    }

    /// Whose interface it is.
    pub(crate) fn pod_of(&self, id: EndpointId) -> Option<&PodRef> {
        self.endpoint(id).map(|endpoint| &endpoint.pod)
    }

    /// Ports of the node that lead there.
    pub(crate) fn host_ports_of(&self, id: EndpointId) -> Vec<HostPort> {
        self.endpoint(id)
            .map(|endpoint| endpoint.host_ports.clone())
            .unwrap_or_default()
    }

    fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        let mut endpoints = self.endpoints.values();
        endpoints.find(|endpoint| endpoint.link.id == id)
    }

    /// Host endpoints of this node.
    pub(crate) fn hosts(&self) -> Vec<&calico::HostEndpoint> {
        self.session
            .host_endpoints()
            .filter(|host| host.spec.node == self.node)
            .collect()
    }

    /// Endpoints whose pods were touched, and whether their flows are to outlive a change of policy.
    pub(crate) fn take_wishes(&mut self, cluster: &Cluster) -> Vec<(EndpointId, bool)> {
        let mut wishes = Vec::new();
        for key in std::mem::take(&mut self.touched) {
            let Some(pod) = cluster.pod(&key) else { continue };
            let endpoint = pod.metadata.uid.as_ref().and_then(|uid| self.endpoints.get(uid));
            let Some(endpoint) = endpoint else { continue };
            let annotations = pod.metadata.annotations.as_ref();
            let wish = annotations.and_then(|all| all.get(annotations::ESTABLISHED));
            wishes.push((endpoint.link.id, wish.is_some_and(|wish| wish == "keep")));
        }
        wishes
    }

    /// What flow events are to call endpoints and rules from now on. `changes` says which change each endpoint follows,
    /// `hosts` under which numbers this node's host endpoints judge.
    pub(crate) fn snapshot(
        &mut self,
        changes: BTreeMap<EndpointId, u32>,
        hosts: &BTreeMap<String, HostEndpointIds>,
    ) -> Snapshot {
        for address in std::mem::take(&mut self.moved) {
            let now = self.session.at(address).last();
            let now = now.and_then(|workload| self.name_of(workload));
            let named = Arc::make_mut(&mut self.named);
            match now {
                Some(now) => drop(named.insert(address, Arc::new(now))),
                None => drop(named.remove(&address)),
            }
        }
        if self.rules.rules != self.session.tables().rules {
            self.rules = Arc::new(NodeTables {
                rules: self.session.tables().rules.clone(),
                ..NodeTables::default()
            });
        }
        let nothing = BTreeMap::new();
        let pods = self.endpoints.values().map(|endpoint| {
            // A pod whose object is not here yet has a name, and no labels.
            let known = self.session.pod(&endpoint.pod.namespace, &endpoint.pod.name);
            let labels = known.map_or(&nothing, |pod| &pod.labels);
            (
                endpoint.link.id,
                NamedEndpoint::new(endpoint.pod.clone().into(), labels),
            )
        });
        let own = self.session.host_endpoints();
        let own = own.filter_map(|host| {
            let ids = hosts.get(host.metadata.name.as_ref()?)?;
            let named = NamedEndpoint::new(
                host_ref(host).into(),
                host.metadata.labels.as_ref().unwrap_or(&nothing),
            );
            Some([ids.local, ids.forwarded, ids.untracked].map(|id| (id, named.clone())))
        });
        // Earlier snapshots are kept for a while: what they share with this one is there once.
        let shared = |(id, named): (EndpointId, NamedEndpoint)| {
            let shown = self.shown.get(&id).filter(|shown| ***shown == named);
            (id, shown.map_or_else(|| Arc::new(named), Arc::clone))
        };
        let endpoints: BTreeMap<_, _> = pods.chain(own.flatten()).map(shared).collect();
        self.shown.clone_from(&endpoints);
        let staged = self.session.staged_tables().cloned().map(Arc::new);
        let enforced = self.session.policies().enforced.clone();
        Snapshot {
            tables: Arc::clone(&self.rules),
            changes,
            staged,
            logging: LogRules::new(enforced, || self.session.cluster()).map(Arc::new),
            endpoints,
            forwarding: hosts.values().map(|ids| ids.forwarded).collect(),
            addresses: Arc::clone(&self.named),
        }
    }

    /// What flow events call a workload; nothing for a network set.
    fn name_of(&self, workload: &Workload) -> Option<NamedEndpoint> {
        let endpoint: EndpointRef = match workload.kind {
            WorkloadKind::Pod => PodRef {
                namespace: workload.namespace.clone(),
                name: workload.name.clone(),
            }
            .into(),
            WorkloadKind::HostEndpoint => host_ref(self.host(&workload.name)?).into(),
            WorkloadKind::NetworkSet => return None,
        };
        Some(NamedEndpoint::new(endpoint, &workload.labels))
    }

    /// What has the addresses that the session knows of this host endpoint is to be looked at: it may be another, or
    /// have other labels.
    fn moved_with(&mut self, host: Option<&calico::HostEndpoint>) {
        let name = host.and_then(|host| host.metadata.name.as_deref());
        let Some(known) = name.and_then(|name| self.host(name)) else {
            return;
        };
        let texts = known.spec.expected_ips.iter();
        let addresses = texts.filter_map(|text| text.parse::<IpAddr>().ok());
        let addresses: Vec<IpAddr> = addresses.map(|address| address.to_canonical()).collect();
        self.moved.extend(addresses);
    }

    fn host(&self, name: &str) -> Option<&calico::HostEndpoint> {
        let mut hosts = self.session.host_endpoints();
        hosts.find(|host| host.metadata.name.as_deref() == Some(name))
    }

    fn look_again(&mut self, key: Key, cluster: &Cluster) {
        let pod = cluster.pod(&key);
        self.set_pod(key, pod.as_deref());
    }

    fn set_pod(&mut self, key: Key, pod: Option<&Pod>) {
        let (namespace, name) = &key;
        let now = pod.and_then(|pod| self.view(pod));
        let before = self.session.pod(namespace, name);
        if before != now.as_ref() {
            let addresses = before.into_iter().chain(&now).flat_map(|pod| &pod.addresses);
            self.moved.extend(addresses.copied());
            self.session.set_pod(namespace, name, now);
        }
        self.touched.insert(key);
    }

    fn view(&self, pod: &Pod) -> Option<PodView> {
        let endpoint = pod.metadata.uid.as_ref().and_then(|uid| self.endpoints.get(uid));
        let mut view = PodView::from_pod(pod, endpoint.map(|endpoint| endpoint.link.id))?;
        // The agent knows the address before the API does, and better; and a port that a pod asks for leads there only if it
        // was to be had.
        if let Some(endpoint) = endpoint {
            view.addresses = endpoint.link.addresses.iter().copied().collect();
            view.host_ports.clone_from(&endpoint.host_ports);
        }
        Some(view)
    }
}

/// A policy without what it does not depend on: a new annotation is no new policy.
fn reduced(policy: &NetworkPolicy) -> NetworkPolicy {
    let mut policy = policy.clone();
    policy_objects::reduce(&mut policy.metadata);
    policy
}

fn host_ref(host: &calico::HostEndpoint) -> HostRef {
    HostRef {
        name: host.metadata.name.clone().unwrap_or_default(),
        node: host.spec.node.clone(),
    }
}

fn key(pod: &PodRef) -> Key {
    (pod.namespace.clone(), pod.name.clone())
}
