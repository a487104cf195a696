//! The compiler that keeps its state: a change costs what it changes, not what the cluster costs.
//!
//! A [`Session`] owns the objects, takes one change after another, and brings its tables up to date when it is asked to
//! settle. It follows pods, namespaces, service accounts, services, names and policies of every kind. When something
//! else changes (nodes, network sets, host endpoints, rules that ask for source ports by name), or when much more has piled
//! up than a fresh start costs, it starts anew and says why; [`Session::tidy`] is for doing so in time, while nobody waits. Identities and rules keep their numbers either way, so a
//! datapath that has the tables of before has little to write.

mod engine;
mod named;
mod places;
mod rows;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use api::{calico, cluster_policy::ClusterNetworkPolicy};
use engine::Engine;
use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, ServiceAccount},
    networking::v1::NetworkPolicy,
};
pub use named::NamedRules;
use policies_ir::{
    cluster::{Cluster, Member, Translation},
    policy::{DomainMatch, TCP, Workload},
    ports::{PortSet, egress_tcp},
    tables::{EndpointId, NodeTables},
};

use crate::{
    calico::Services,
    capacity::Exceeded,
    closed::closed_hosts,
    compile::{Diagnostic, conflicts},
    field::FieldError,
    reading::{Reading, put_together},
    view::{CalicoObject, ClusterView, HostEndpointIds, PodView, Policies},
};

/// Why a session starts anew though nothing has changed that it could not follow.
const PILED_UP: &str = "too much has piled up";

/// Namespace and name.
type Key = (String, String);

/// Tables that follow the objects of a cluster.
pub struct Session {
    /// What is read at the start: namespaces, accounts, nodes, services, host endpoints, network sets and profiles. No
    /// pods and no policies.
    base: ClusterView,
    pods: BTreeMap<Key, Known>,
    /// How many pods each namespace has.
    pod_namespaces: BTreeMap<String, usize>,
    endpoints: BTreeMap<EndpointId, usize>,
    /// Policies and what else decides, by kind, namespace and name.
    objects: BTreeMap<(&'static str, String, String), (Object, Reading)>,
    policies: Policies,
    policies_are_stale: bool,
    /// Ports of the node that lead to pods, once the session settles.
    translations: Vec<Translation>,
    translations_are_stale: bool,
    enforced: Engine,
    /// Whose numbers to go on with at the start.
    previous: Option<NodeTables>,
    staged: Option<Engine>,
    /// Why the engines are of no use any more.
    anew: Option<&'static str>,
    /// Whether the engine has followed changes since it was made.
    has_followed: bool,
    /// See [`Settled::told_anew`].
    told_anew: bool,
    diagnostics: Vec<Diagnostic>,
}

struct Known {
    view: PodView,
    member: Arc<Member>,
}

enum Object {
    Kubernetes(NetworkPolicy),
    Cluster(ClusterNetworkPolicy),
    Calico(CalicoObject),
}

/// The change is one for a fresh start.
struct StartAnew(&'static str);

/// What settling did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Whether the tables changed.
    pub changed: bool,
    /// Why they were made anew, if they were.
    pub anew: Option<&'static str>,
    /// Whether workloads, names or policies, staged ones included, are others than when the session last settled: what
    /// is to be said of flows may be another though the tables are the same.
    pub told_anew: bool,
}

impl Session {
    /// A session of these objects. Once it settles, its tables mean the same as those of [`crate::compile()`], in the
    /// numbers of `previous` as far as that goes; until then they are empty.
    pub fn new(mut view: ClusterView, previous: NodeTables) -> Self {
        let pods = std::mem::take(&mut view.pods);
        let policies = std::mem::take(&mut view.policies);
        let cluster_policies = std::mem::take(&mut view.cluster_policies);
        let calico = std::mem::take(&mut view.calico);
        let (base, calico): (Vec<_>, Vec<_>) = calico.into_iter().partition(is_base);
        view.calico = base;
        let profiles = calico
            .iter()
            .filter(|object| matches!(object, CalicoObject::Profile(_)));
        view.calico.extend(profiles.cloned());
        let nothing = Engine::new(
            Cluster::default(),
            Vec::new(),
            Default::default(),
            &NodeTables::default(),
        );
        let mut session = Self {
            base: view,
            pods: BTreeMap::new(),
            pod_namespaces: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            objects: BTreeMap::new(),
            policies: Policies::default(),
            policies_are_stale: true,
            translations: Vec::new(),
            translations_are_stale: true,
            enforced: nothing,
            previous: Some(previous),
            staged: None,
            anew: Some("it begins"),
            has_followed: false,
            told_anew: true,
            diagnostics: Vec::new(),
        };
        for pod in pods {
            session.set_pod(&pod.namespace.clone(), &pod.name.clone(), Some(pod));
        }
        let policies = policies.into_iter().map(Object::Kubernetes);
        let cluster_policies = cluster_policies.into_iter().map(Object::Cluster);
        let calico = calico.into_iter().map(Object::Calico);
        for object in policies.chain(cluster_policies).chain(calico) {
            session.put(object);
        }
        session
    }

    /// The tables, as they were when the session last settled.
    pub fn tables(&self) -> &NodeTables {
        self.enforced.tables()
    }

    /// The tables as they would be if the staged policies were enforced; nothing if there are none. To be asked after
    /// [`Session::settle`].
    pub fn staged_tables(&mut self) -> Option<&NodeTables> {
        if self.policies.staged.is_empty() {
            self.staged = None;
            return None;
        }
        let would_be = self.policies.enforced.with_staged(&self.policies.staged);
        let settled = self.staged.take().and_then(|mut staged| {
            staged.set_policies(would_be.clone());
            staged.translate(&self.translations);
            let settled = staged.settle().is_ok() && !staged.is_worn();
            settled.then_some(staged)
        });
        let staged = settled.unwrap_or_else(|| {
            let (ground, pods) = self.members();
            Engine::new(ground, pods, would_be, &NodeTables::default())
        });
        Some(self.staged.insert(staged).tables())
    }

    /// All policy.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Everything that has an address. Costs what the cluster costs.
    pub fn cluster(&self) -> Cluster {
        let (mut cluster, pods) = self.members();
        cluster
            .members
            .extend(pods.iter().map(|member| Member::clone(member)));
        cluster
    }

    /// A pod, as it was set.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PodView> {
        let key = (namespace.to_owned(), name.to_owned());
        self.pods.get(&key).map(|known| &known.view)
    }

    /// TCP ports that a pod may connect to at all by its egress policy, whoever is there but the pod itself; a bound that
    /// is never too small. Ports by name are those that something has now. Costs what the cluster costs.
    pub fn egress_tcp_ports(&self, namespace: &str, name: &str) -> Option<PortSet> {
        let key = (namespace.to_owned(), name.to_owned());
        let workload = &self.pods.get(&key)?.member.workload;
        let policy = self.policies.enforced.for_endpoint(workload);
        let cluster = self.cluster();
        let named = |name: &str| {
            let mut ports = PortSet::none();
            let all = cluster
                .members
                .iter()
                .flat_map(|member| &member.workload.named_ports);
            for port in all.filter(|port| port.name == name && port.protocol == TCP) {
                ports.insert(port.port, port.port);
            }
            ports
        };
        Some(egress_tcp(&policy, named))
    }

    /// Who has an address, as of the last time the session settled.
    pub fn at(&self, address: IpAddr) -> impl Iterator<Item = &Workload> {
        self.enforced
            .places()
            .claims(address)
            .map(|member| &member.workload)
    }

    /// Whether a pod has this endpoint.
    pub fn has_pod_with(&self, endpoint: EndpointId) -> bool {
        self.endpoints.contains_key(&endpoint)
    }

    /// All host endpoints.
    pub fn host_endpoints(&self) -> impl Iterator<Item = &calico::HostEndpoint> {
        self.base.calico.iter().filter_map(|object| match object {
            CalicoObject::HostEndpoint(object) => Some(object),
            _ => None,
        })
    }

    /// Tables for this node's host endpoints while those of [`Session::tables`] cannot be written: see [`closed_hosts`].
    pub fn closed_hosts(&self) -> NodeTables {
        closed_hosts(&self.base.host_endpoints, &self.policies.enforced.failsafe)
    }

    /// Names of addresses, as they were set.
    pub fn names(&self) -> &BTreeMap<IpAddr, BTreeSet<String>> {
        &self.base.names
    }

    /// Patterns of names that some rule or network set asks for, staged ones included.
    pub fn wanted_domains(&self) -> BTreeSet<DomainMatch> {
        let enforced = self
            .policies
            .enforced
            .tiers
            .iter()
            .flat_map(|tier| &tier.policies);
        let staged = self
            .policies
            .staged
            .iter()
            .filter_map(|staged| staged.policy.as_ref());
        let rules = enforced.chain(staged).flat_map(|policy| &policy.egress);
        let of_rules = rules.flat_map(|rule| &rule.peer.domains).cloned();
        let sets = &self.enforced.places().ground().sets;
        of_rules
            .chain(sets.iter().flat_map(|set| &set.domains).cloned())
            .collect()
    }

    /// What of names the verdicts of [`Session::tables`] rest on.
    pub fn named_rules(&self) -> NamedRules {
        NamedRules::of(&self.policies.enforced, &self.enforced.places().ground().sets)
    }

    /// Everything that could not be honoured as written and was not told yet; the tables never allow more because of it.
    pub fn take_diagnostics(&mut self) -> Vec<Diagnostic> {
        std::mem::take(&mut self.diagnostics)
    }

    /// A pod that came or changed (`now` is what it is), or went (`now` is nothing).
    pub fn set_pod(&mut self, namespace: &str, name: &str, now: Option<PodView>) {
        let key = (namespace.to_owned(), name.to_owned());
        let before = self.pods.get(&key);
        if before.map(|known| &known.view) == now.as_ref() {
            return;
        }
        let before = self.pods.remove(&key);
        if let Some(known) = &before {
            self.count(&known.view, false);
        }
        let now = now.map(|view| Known {
            member: Arc::new(self.base.member(&view)),
            view,
        });
        let member = now.as_ref().map(|known| Arc::clone(&known.member));
        if let Some(known) = now {
            self.count(&known.view, true);
            self.pods.insert(key, known);
        }
        self.replace(before.map(|known| known.member).as_ref(), member.as_ref());
    }

    /// A namespace that came, changed or went.
    pub fn set_namespace(&mut self, name: &str, now: Option<&Namespace>) {
        let before = self.base.namespaces.remove(name);
        if let Some(now) = now {
            self.base.add_namespace(now);
        }
        if before.as_ref() == self.base.namespaces.get(name) {
            return;
        }
        let has_sets = self.base.calico.iter().any(|object| match object {
            CalicoObject::NetworkSet(set) => set.metadata.namespace.as_deref() == Some(name),
            _ => false,
        });
        if has_sets {
            self.begin_anew("the namespace of a network set changed");
        }
        if before.is_some() != now.is_some() {
            // Its profile came or went.
            self.policies_are_stale = true;
        }
        self.read_pods_of(name, |_| true);
    }

    /// A service account that came, changed or went.
    pub fn set_service_account(&mut self, namespace: &str, name: &str, now: Option<&ServiceAccount>) {
        let key = (namespace.to_owned(), name.to_owned());
        let before = self.base.service_accounts.remove(&key);
        if let Some(now) = now {
            self.base.add_service_account(now);
        }
        if before.as_ref() != self.base.service_accounts.get(&key) {
            let runs_as = |pod: &PodView| match pod.service_account.as_str() {
                "" => name == "default",
                account => account == name,
            };
            self.read_pods_of(namespace, runs_as);
        }
    }

    /// A node that came, changed or went.
    pub fn set_node(&mut self, name: &str, now: Option<&Node>) {
        let before = self.base.nodes.remove(name);
        if let Some(now) = now {
            self.base.add_node(now);
        }
        if before.as_ref() != self.base.nodes.get(name) {
            self.read_again(|object| matches!(object, Object::Cluster(_)));
            self.begin_anew("a node changed");
        }
    }

    /// From now on this is behind the services.
    pub fn set_services(&mut self, services: Services) {
        if services != self.base.services {
            self.base.services = services;
            self.read_again(|object| match object {
                Object::Calico(object) => object.asks_for_services(),
                Object::Kubernetes(_) | Object::Cluster(_) => false,
            });
        }
    }

    /// From now on addresses have these names.
    pub fn set_names(&mut self, names: BTreeMap<IpAddr, BTreeSet<String>>) {
        if names != self.base.names {
            self.enforced.rename(&names);
            if let Some(staged) = &mut self.staged {
                staged.rename(&names);
            }
            self.base.names = names;
            self.told_anew = true;
        }
    }

    /// From now on this node's host endpoints have these numbers.
    pub fn set_host_endpoint_ids(&mut self, ids: &BTreeMap<String, HostEndpointIds>) {
        if *ids != self.base.host_endpoints {
            self.base.host_endpoints.clone_from(ids);
            self.begin_anew("the host endpoints of this node changed");
        }
    }

    /// From now on the node has these addresses, and listens with others at these.
    pub fn set_host_addresses(&mut self, own: BTreeSet<IpAddr>, groups: BTreeSet<IpNet>) {
        if own != self.base.host_addresses || groups != self.base.host_groups {
            self.base.host_addresses = own;
            self.base.host_groups = groups;
            self.begin_anew("the addresses of this node changed");
        }
    }

    /// The addresses of the node, and where it listens with others, as they were set.
    pub fn host_addresses(&self) -> (&BTreeSet<IpAddr>, &BTreeSet<IpNet>) {
        (&self.base.host_addresses, &self.base.host_groups)
    }

    /// A policy of Kubernetes that came or changed.
    pub fn put_policy(&mut self, policy: NetworkPolicy) {
        self.put(Object::Kubernetes(policy));
    }

    /// One that went.
    pub fn remove_policy(&mut self, namespace: &str, name: &str) {
        self.remove("NetworkPolicy", namespace, name);
    }

    /// A policy of an administrator that came or changed.
    pub fn put_cluster_policy(&mut self, policy: ClusterNetworkPolicy) {
        self.put(Object::Cluster(policy));
    }

    /// One that went.
    pub fn remove_cluster_policy(&mut self, name: &str) {
        self.remove("ClusterNetworkPolicy", "", name);
    }

    /// An object of one of Calico's kinds that came or changed.
    pub fn put_calico(&mut self, object: CalicoObject) {
        if is_base(&object) {
            if self.keep(object) {
                self.begin_anew("a network set or host endpoint changed");
            }
            return;
        }
        if matches!(object, CalicoObject::Profile(_)) && self.keep(object.clone()) {
            self.begin_anew_for_profiles();
        }
        self.put(Object::Calico(object));
    }

    /// One that went: the object of the same kind, namespace and name.
    pub fn remove_calico(&mut self, object: &CalicoObject) {
        let before = self.base.calico.len();
        self.base.calico.retain(|other| other.key() != object.key());
        let was_kept = self.base.calico.len() < before;
        match is_base(object) {
            true if was_kept => self.begin_anew("a network set or host endpoint went"),
            true => {}
            false => {
                if was_kept {
                    self.begin_anew_for_profiles();
                }
                let (kind, namespace, name) = object.key();
                self.remove(kind, &namespace, &name);
            }
        }
    }

    /// The tables do not fit where they are needed. If changes have piled up in them, the session begins anew when it
    /// settles, and tables of the same meaning may be smaller; whether that is so.
    pub fn shed(&mut self) -> bool {
        if self.has_followed {
            self.begin_anew("its tables do not fit");
        }
        self.has_followed
    }

    /// Brings the tables up to date with all changes.
    pub fn settle(&mut self) -> Settled {
        let mut changed = false;
        if self.anew.is_none() {
            if self.policies_are_stale {
                self.put_together();
                self.enforced.set_policies(self.policies.enforced.clone());
            }
            if std::mem::take(&mut self.translations_are_stale) {
                self.translations = self.translations();
                self.enforced.translate(&self.translations);
            }
            match self.enforced.settle() {
                Ok(made) => {
                    changed = made;
                    self.has_followed |= made;
                }
                Err(StartAnew(reason)) => self.anew = Some(reason),
            }
            if self.enforced.is_full() {
                self.anew = Some(PILED_UP);
            }
        }
        let anew = self.anew.take();
        if anew.is_some() {
            let before = self.enforced.tables().clone();
            let numbered = self.previous.take();
            self.start_anew(numbered.as_ref().unwrap_or(&before));
            // What was followed just before is a change as well.
            changed |= *self.enforced.tables() != before;
        }
        let told_anew = std::mem::take(&mut self.told_anew);
        Settled {
            changed,
            anew,
            told_anew,
        }
    }

    /// What of the tables is denied because there is no number for it, however much room there is: some kinds of addresses
    /// in what a host endpoint forwards. Kinds that are gone keep their numbers until [`Session::tidy`].
    pub fn exceeds(&self) -> Option<Exceeded> {
        self.enforced.exceeds()
    }

    /// Starts anew if so much has piled up that it is worth its time, or if something is denied for which there may be
    /// numbers by now. It is for a moment when nobody waits for a change.
    pub fn tidy(&mut self) -> Option<Settled> {
        let may_gain = self.has_followed && self.exceeds().is_some();
        if self.anew.is_none() && !self.enforced.is_worn() && !may_gain {
            return None;
        }
        self.anew.get_or_insert(PILED_UP);
        Some(self.settle())
    }

    fn start_anew(&mut self, previous: &NodeTables) {
        if self.policies_are_stale {
            self.put_together();
        }
        let mut found = Vec::new();
        let mut report = |policy: &str, error: FieldError| {
            found.push(Diagnostic::Policy {
                policy: policy.to_owned(),
                error,
            });
        };
        let mut ground = self.base.read_cluster(&mut report);
        self.translations_are_stale = false;
        self.translations = self.translations();
        ground.translations.clone_from(&self.translations);
        let pods: Vec<Arc<Member>> = self
            .pods
            .values()
            .map(|known| Arc::clone(&known.member))
            .collect();
        let members = ground.members.iter().chain(pods.iter().map(|member| &**member));
        found.extend(conflicts(members, &ground.host_addresses));
        self.diagnostics.extend(found);
        self.enforced = Engine::new(ground, pods, self.policies.enforced.clone(), previous);
        self.staged = None;
        self.has_followed = false;
        self.told_anew = true;
    }

    fn put_together(&mut self) {
        self.policies_are_stale = false;
        self.told_anew = true;
        let readings = self.objects.values().map(|(_, reading)| reading);
        let namespaces = self.pod_namespaces.keys().map(String::as_str);
        let profiles = self.base.profiles_with(namespaces);
        self.policies = put_together(readings, profiles, &self.base.doubtful());
    }

    /// Sets and host endpoints, and the pods.
    fn members(&self) -> (Cluster, Vec<Arc<Member>>) {
        let pods = self.pods.values().map(|known| Arc::clone(&known.member));
        let ground = Cluster {
            translations: self.translations(),
            ..self.base.cluster()
        };
        (ground, pods.collect())
    }

    fn translations(&self) -> Vec<Translation> {
        Translation::of(self.pods.values().map(|known| &*known.member))
    }

    fn begin_anew(&mut self, reason: &'static str) {
        self.policies_are_stale = true;
        self.anew.get_or_insert(reason);
        self.staged = None;
    }

    /// Host endpoints may have something of the profiles that they name.
    fn begin_anew_for_profiles(&mut self) {
        if self.host_endpoints().next().is_some() {
            self.begin_anew("a profile changed, and there are host endpoints");
        }
    }

    /// Among what is read at the start. Whether it is new there.
    fn keep(&mut self, object: CalicoObject) -> bool {
        let mut known = self.base.calico.iter_mut();
        match known.find(|other| other.key() == object.key()) {
            Some(other) if *other == object => false,
            Some(other) => {
                *other = object;
                true
            }
            None => {
                self.base.calico.push(object);
                true
            }
        }
    }

    fn replace(&mut self, before: Option<&Arc<Member>>, now: Option<&Arc<Member>>) {
        self.told_anew = true;
        let mut both = before.into_iter().chain(now);
        self.translations_are_stale |=
            both.any(|member| member.endpoint.is_some() && !member.host_ports.is_empty());
        if let Some(staged) = &mut self.staged
            && staged.replace(before, now).is_err()
        {
            self.staged = None;
        }
        if self.anew.is_some() {
            return;
        }
        if let Err(StartAnew(reason)) = self.enforced.replace(before, now) {
            self.anew = Some(reason);
            return;
        }
        for address in now.iter().flat_map(|member| &member.addresses) {
            let claims = self.enforced.places().claims(*address);
            let ground = self.enforced.places().ground();
            self.diagnostics.extend(conflicts(claims, &ground.host_addresses));
        }
    }

    /// Makes the members of a namespace's pods anew.
    fn read_pods_of(&mut self, namespace: &str, concerned: impl Fn(&PodView) -> bool) {
        let first = (namespace.to_owned(), String::new());
        let pods = self.pods.range_mut(first..);
        let mut replaced = Vec::new();
        for (_, known) in pods.take_while(|((of, _), _)| of == namespace) {
            if concerned(&known.view) {
                let member = Arc::new(self.base.member(&known.view));
                replaced.push((std::mem::replace(&mut known.member, Arc::clone(&member)), member));
            }
        }
        for (before, now) in replaced {
            self.replace(Some(&before), Some(&now));
        }
    }

    fn read_again(&mut self, concerned: impl Fn(&Object) -> bool) {
        let mut objects = std::mem::take(&mut self.objects);
        for (object, reading) in objects.values_mut() {
            if concerned(object) {
                let now = self.read(object);
                if now != *reading {
                    *reading = now;
                    self.policies_are_stale = true;
                }
            }
        }
        self.objects = objects;
    }

    fn put(&mut self, object: Object) {
        let key = object.key();
        if self
            .objects
            .get(&key)
            .is_some_and(|(before, _)| before.is(&object))
        {
            return;
        }
        let reading = self.read(&object);
        self.objects.insert(key, (object, reading));
        self.policies_are_stale = true;
    }

    fn remove(&mut self, kind: &'static str, namespace: &str, name: &str) {
        let key = (kind, namespace.to_owned(), name.to_owned());
        if self.objects.remove(&key).is_some() {
            self.policies_are_stale = true;
        }
    }

    fn read(&mut self, object: &Object) -> Reading {
        let reading = match object {
            Object::Kubernetes(object) => Reading::of_kubernetes(object),
            Object::Cluster(object) => Reading::of_cluster_policy(object, &self.base.nodes),
            Object::Calico(object) => Reading::of_calico(object, &self.base.services),
        };
        self.diagnostics
            .extend(reading.errors().map(|(policy, error)| Diagnostic::Policy {
                policy: policy.to_owned(),
                error: error.clone(),
            }));
        reading
    }

    fn count(&mut self, pod: &PodView, comes: bool) {
        let step = |count: &mut usize| match comes {
            true => *count += 1,
            false => *count = count.saturating_sub(1),
        };
        let of_namespace = self.pod_namespaces.entry(pod.namespace.clone()).or_default();
        let before = *of_namespace;
        step(of_namespace);
        let after = *of_namespace;
        if after == 0 {
            self.pod_namespaces.remove(&pod.namespace);
        }
        if (before == 0) != (after == 0) && !self.base.namespaces.contains_key(&pod.namespace) {
            // A namespace that nobody knows has a profile for as long as it has pods.
            self.policies_are_stale = true;
        }
        if let Some(endpoint) = pod.endpoint {
            let of_endpoint = self.endpoints.entry(endpoint).or_default();
            step(of_endpoint);
            if *of_endpoint == 0 {
                self.endpoints.remove(&endpoint);
            }
        }
    }
}

impl Object {
    fn key(&self) -> (&'static str, String, String) {
        let (kind, metadata) = match self {
            Self::Kubernetes(object) => ("NetworkPolicy", &object.metadata),
            Self::Cluster(object) => ("ClusterNetworkPolicy", &object.metadata),
            Self::Calico(object) => return object.key(),
        };
        let own = |text: &Option<String>| text.clone().unwrap_or_default();
        (kind, own(&metadata.namespace), own(&metadata.name))
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Kubernetes(a), Self::Kubernetes(b)) => a == b,
            (Self::Cluster(a), Self::Cluster(b)) => a == b,
            (Self::Calico(a), Self::Calico(b)) => a == b,
            _ => false,
        }
    }
}

/// Whether it is read at the start alone.
fn is_base(object: &CalicoObject) -> bool {
    matches!(
        object,
        CalicoObject::NetworkSet(_) | CalicoObject::GlobalNetworkSet(_) | CalicoObject::HostEndpoint(_)
    )
}
