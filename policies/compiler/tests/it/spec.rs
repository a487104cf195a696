//! The objects judged a second time, without the ordered form between: straight from the typed API objects, as the
//! specifications of Calico and Kubernetes read. Reference, tables and kernel share the conversion of objects to that form,
//! so what it gets wrong they agree on; this does not know it. Slow, plain, and of a part: pods that judge, and peers that
//! are pods, network sets or strangers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::{calico, cluster_policy as cnp};
use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use policies_compiler::{CalicoObject, ClusterView, PodView};
use policies_ir::{
    policy::NamedPort,
    tables::{Direction, Packet, Verdict},
};

type Labels = BTreeMap<String, String>;

const NAMESPACE: &str = "projectcalico.org/namespace";

/// What the objects say about a packet at a pod; nothing if that is out of this evaluator's part.
pub(crate) fn judge(view: &ClusterView, pod: &PodView, packet: &Packet) -> Option<Verdict> {
    let scene = Scene::of(view, pod, packet)?;
    let mut tiers: Vec<Tier<'_>> = vec![
        (Rank(Some(1_000.0), "kube-admin"), true, Vec::new()),
        (Rank(Some(1_000_000.0), "default"), false, Vec::new()),
        (Rank(Some(10_000_000.0), "kube-baseline"), true, Vec::new()),
    ];
    for object in &view.calico {
        if let CalicoObject::Tier(tier) = object {
            let passes = tier.spec.default_action.as_deref() == Some("Pass");
            let name = tier.metadata.name.as_deref().unwrap_or_default();
            tiers.push((Rank(tier.spec.order, name), passes, Vec::new()));
        }
    }
    let mut lost = Vec::new();
    let mut file = |tier: &'_ str, rank, hits: Option<Vec<Hit>>| {
        let Some(hits) = hits else { return };
        match tiers.iter_mut().find(|(Rank(_, name), ..)| *name == tier) {
            Some(found) => found.2.push((rank, hits)),
            None => lost.push((rank, hits)),
        }
    };
    for policy in &view.policies {
        let name = policy.metadata.name.as_deref().unwrap_or_default();
        file("default", Rank(Some(1000.0), name), scene.of_kubernetes(policy));
    }
    for policy in &view.cluster_policies {
        let tier = if policy.spec.tier == "Admin" {
            "kube-admin"
        } else {
            "kube-baseline"
        };
        let name = policy.metadata.name.as_deref().unwrap_or_default();
        let rank = Rank(Some(f64::from(policy.spec.priority)), name);
        file(tier, rank, scene.of_cluster_policy(&policy.spec));
    }
    for object in &view.calico {
        let (namespace, policy) = match object {
            CalicoObject::NetworkPolicy(policy) => (policy.metadata.namespace.as_deref(), policy),
            CalicoObject::GlobalNetworkPolicy(policy) => (None, policy),
            _ => continue,
        };
        let tier = policy.spec.tier.as_deref().unwrap_or("default");
        let rank = Rank(
            policy.spec.order,
            policy.metadata.name.as_deref().unwrap_or_default(),
        );
        file(tier, rank, scene.of_calico(namespace, &policy.spec));
    }
    tiers.sort_by(|a, b| a.0.before(&b.0));
    // The generator knows one tier that nobody defined: it comes behind those that somebody did.
    tiers.push((Rank(None, ""), false, lost));
    for (_, passes, mut policies) in tiers {
        if policies.is_empty() {
            continue;
        }
        policies.sort_by(|a, b| a.0.before(&b.0));
        let decides = policies
            .into_iter()
            .flat_map(|(_, hits)| hits)
            .find(|hit| *hit != Hit::Log);
        match decides {
            Some(Hit::Allow) => return Some(Verdict::Allow),
            Some(Hit::Deny) => return Some(Verdict::Deny),
            Some(Hit::Pass | Hit::Log) => {}
            None if passes => {}
            None => return Some(Verdict::Deny),
        }
    }
    // The profile of every namespace.
    Some(Verdict::Allow)
}

/// What the rules of one policy that match say, in order.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Hit {
    Allow,
    Deny,
    Pass,
    Log,
}

/// A tier: its place, whether it passes at its end, and the policies that apply to the pod and the direction.
type Tier<'a> = (Rank<'a>, bool, Vec<(Rank<'a>, Vec<Hit>)>);

/// A rule of a cluster policy: action, peers and protocols.
type ClusterRule<'a> = (&'a str, &'a [cnp::Peer], Option<&'a [cnp::Protocol]>);

/// Order and name: no order comes last, ties go by name.
struct Rank<'a>(Option<f64>, &'a str);

impl Rank<'_> {
    fn before(&self, other: &Self) -> std::cmp::Ordering {
        let order = |rank: &Self| rank.0.unwrap_or(f64::INFINITY);
        let by_order = order(self)
            .partial_cmp(&order(other))
            .expect("orders are numbers");
        by_order.then_with(|| self.1.cmp(other.1))
    }
}

/// Something that selectors can find at an address.
struct Thing<'a> {
    is_pod: bool,
    namespace: Option<&'a str>,
    namespace_labels: Option<&'a Labels>,
    /// As they are written.
    labels: Labels,
    /// As Calico's selectors see them.
    shown: Labels,
    ports: &'a [NamedPort],
}

/// One packet at one pod.
struct Scene<'a> {
    view: &'a ClusterView,
    packet: &'a Packet,
    own: (IpAddr, Vec<Thing<'a>>),
    peer: (IpAddr, Vec<Thing<'a>>),
    /// Of the peer.
    names: BTreeSet<String>,
}

impl<'a> Scene<'a> {
    fn of(view: &'a ClusterView, pod: &'a PodView, packet: &'a Packet) -> Option<Self> {
        let peer = packet.peer;
        let own = *pod.addresses.iter().find(|own| own.is_ipv4() == peer.is_ipv4())?;
        let of_hosts = view.calico.iter().any(|object| match object {
            CalicoObject::HostEndpoint(host) => host.spec.expected_ips.contains(&peer.to_string()),
            _ => false,
        });
        let of_nodes = view.nodes.values().any(|node| node.addresses.contains(&peer))
            || view.node_pods.iter().any(|pod| pod.addresses.contains(&peer))
            || view.host_addresses.contains(&peer)
            || view.host_groups.iter().any(|group| group.contains(&peer));
        let pods: Vec<&PodView> = view
            .pods
            .iter()
            .filter(|pod| pod.addresses.contains(&peer))
            .collect();
        let icmp = if peer.is_ipv4() { 58 } else { 1 };
        let is_odd = packet.protocol == icmp || packet.protocol == 0;
        if of_hosts || of_nodes || is_odd || pods.len() > 1 || pod.addresses.contains(&peer) {
            return None;
        }
        let names = view.names.get(&peer).cloned().unwrap_or_default();
        let egress = packet.direction == Direction::Egress;
        let mut own_things = vec![thing_of_pod(view, pod)];
        own_things.extend(sets_at(view, own, None));
        let mut peer_things: Vec<_> = pods.into_iter().map(|pod| thing_of_pod(view, pod)).collect();
        peer_things.extend(sets_at(view, peer, egress.then_some(&names)));
        Some(Self {
            view,
            packet,
            own: (own, own_things),
            peer: (peer, peer_things),
            names,
        })
    }

    fn pod(&self) -> &Thing<'a> {
        self.own.1.first().expect("the pod is found at its address")
    }

    fn ingress(&self) -> bool {
        self.packet.direction == Direction::Ingress
    }

    /// Nothing if the policy does not apply to the pod in this direction.
    fn of_kubernetes(&self, policy: &k8s_openapi::api::networking::v1::NetworkPolicy) -> Option<Vec<Hit>> {
        let namespace = policy.metadata.namespace.as_deref();
        let spec = policy.spec.as_ref()?;
        let selector = spec.pod_selector.clone().unwrap_or_default();
        let types = match spec.policy_types.as_deref() {
            None | Some([]) if spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()) => {
                vec!["Ingress", "Egress"]
            }
            None | Some([]) => vec!["Ingress"],
            Some(types) => types.iter().map(String::as_str).collect(),
        };
        let direction = if self.ingress() { "Ingress" } else { "Egress" };
        let applies = self.pod().namespace == namespace && has_labels(&selector, &self.pod().labels);
        if !applies || !types.contains(&direction) {
            return None;
        }
        let rules: Vec<(&[NetworkPolicyPeer], &[NetworkPolicyPort])> = match self.ingress() {
            true => (spec.ingress.iter().flatten())
                .map(|rule| {
                    (
                        rule.from.as_deref().unwrap_or_default(),
                        rule.ports.as_deref().unwrap_or_default(),
                    )
                })
                .collect(),
            false => (spec.egress.iter().flatten())
                .map(|rule| {
                    (
                        rule.to.as_deref().unwrap_or_default(),
                        rule.ports.as_deref().unwrap_or_default(),
                    )
                })
                .collect(),
        };
        let hits = rules.into_iter().filter(|(peers, ports)| {
            let mut any_peer = peers.iter().map(Some).chain(peers.is_empty().then_some(None));
            any_peer.any(|peer| {
                let found =
                    |thing: &&Thing<'_>| peer.is_none_or(|peer| is_kubernetes_peer(peer, namespace, thing));
                let in_block = match peer.and_then(|peer| peer.ip_block.as_ref()) {
                    Some(block) => {
                        let except = block.except.as_deref().unwrap_or_default();
                        within(&block.cidr, self.peer.0) && !except.iter().any(|net| within(net, self.peer.0))
                    }
                    None => peer.is_none() || self.peer.1.iter().any(|thing| found(&thing)),
                };
                // A name is one of the packet's destination: the pod itself, or the peer that is selected.
                let at: Vec<&Thing<'_>> =
                    match (self.ingress(), peer.is_some_and(|peer| peer.ip_block.is_some())) {
                        (true, _) => self.own.1.iter().collect(),
                        (false, true) => self.peer.1.iter().collect(),
                        (false, false) => self.peer.1.iter().filter(found).collect(),
                    };
                let fits = |port: &NetworkPolicyPort| self.is_kubernetes_port(port, &at);
                in_block && (ports.is_empty() || ports.iter().any(fits))
            })
        });
        Some(hits.map(|_| Hit::Allow).collect())
    }

    fn is_kubernetes_port(&self, port: &NetworkPolicyPort, at: &[&Thing<'_>]) -> bool {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => 6,
            Some("UDP") => 17,
            Some("SCTP") => 132,
            other => panic!("{other:?}"),
        };
        let number = i32::from(self.packet.port);
        protocol == self.packet.protocol
            && match (&port.port, port.end_port) {
                (None, _) => true,
                (Some(IntOrString::Int(first)), last) => (*first..=last.unwrap_or(*first)).contains(&number),
                (Some(IntOrString::String(name)), _) => self.is_named(name, self.packet.port, at),
            }
    }

    fn is_named(&self, name: &str, port: u16, at: &[&Thing<'_>]) -> bool {
        let mut ports = at.iter().flat_map(|thing| thing.ports);
        ports.any(|named| named.name == name && named.protocol == self.packet.protocol && named.port == port)
    }

    fn of_cluster_policy(&self, spec: &cnp::Spec) -> Option<Vec<Hit>> {
        let applies = match (&spec.subject.namespaces, &spec.subject.pods) {
            (Some(namespaces), _) => is_in_namespace(namespaces, self.pod()),
            (_, Some(pods)) => is_namespaced_pod(pods, self.pod()),
            _ => panic!("no subject"),
        };
        let rules: Vec<ClusterRule<'_>> = match self.ingress() {
            true => spec
                .ingress
                .iter()
                .map(|r| (&*r.action, &*r.from, r.protocols.as_deref()))
                .collect(),
            false => spec
                .egress
                .iter()
                .map(|r| (&*r.action, &*r.to, r.protocols.as_deref()))
                .collect(),
        };
        if !applies || rules.is_empty() {
            return None;
        }
        let matching = rules.into_iter().filter(|(_, peers, protocols)| {
            peers.iter().any(|peer| {
                let found: Vec<&Thing<'_>> = (self.peer.1.iter())
                    .filter(|thing| match (&peer.namespaces, &peer.pods) {
                        (Some(namespaces), _) => is_in_namespace(namespaces, thing),
                        (_, Some(pods)) => is_namespaced_pod(pods, thing),
                        _ => false,
                    })
                    .collect();
                // Peers that are nodes are out of this part.
                let is_peer = !found.is_empty()
                    || peer.networks.iter().any(|net| within(net, self.peer.0))
                    || (!self.ingress() && self.has_name(&peer.domain_names));
                let at = if self.ingress() {
                    self.own.1.iter().collect()
                } else {
                    found
                };
                let fits = |protocol: &cnp::Protocol| self.is_cluster_protocol(protocol, &at);
                is_peer && protocols.is_none_or(|protocols| protocols.iter().any(fits))
            })
        });
        let action = |action: &str| match action {
            "Accept" => Hit::Allow,
            "Deny" => Hit::Deny,
            "Pass" => Hit::Pass,
            other => panic!("{other}"),
        };
        Some(matching.map(|(name, ..)| action(name)).collect())
    }

    fn is_cluster_protocol(&self, protocol: &cnp::Protocol, at: &[&Thing<'_>]) -> bool {
        let port = i32::from(self.packet.port);
        let of = |number: u8, ports: &Option<cnp::Ports>| {
            ports.as_ref().is_some_and(|ports| {
                self.packet.protocol == number
                    && ports.destination_port.as_ref().is_none_or(|wanted| {
                        let in_range = |range: &cnp::PortRange| (range.start..=range.end).contains(&port);
                        wanted.number == Some(port) || wanted.range.as_ref().is_some_and(in_range)
                    })
            })
        };
        let name = &protocol.destination_named_port;
        of(6, &protocol.tcp)
            || of(17, &protocol.udp)
            || of(132, &protocol.sctp)
            || (!name.is_empty() && self.is_named(name, self.packet.port, at))
    }

    fn of_calico(&self, namespace: Option<&str>, spec: &calico::PolicySpec) -> Option<Vec<Hit>> {
        // Those two are for host endpoints.
        if spec.do_not_track == Some(true) || spec.pre_dnat == Some(true) {
            return None;
        }
        let shown = &self.pod().shown;
        let applies = namespace.is_none_or(|namespace| self.pod().namespace == Some(namespace))
            && selects(&spec.selector, "", true, shown)
            && selects(&spec.namespace_selector, "pcns.", true, shown)
            && selects(&spec.service_account_selector, "pcsa.", true, shown);
        let covers = match (self.ingress(), spec.types.is_empty()) {
            (true, true) => !spec.ingress.is_empty() || spec.egress.is_empty(),
            (false, true) => !spec.egress.is_empty(),
            (true, false) => spec.types.iter().any(|name| name == "Ingress"),
            (false, false) => spec.types.iter().any(|name| name == "Egress"),
        };
        if !applies || !covers {
            return None;
        }
        let rules = if self.ingress() {
            &spec.ingress
        } else {
            &spec.egress
        };
        let matching = rules.iter().filter(|rule| self.is_calico_rule(namespace, rule));
        let action = |rule: &calico::Rule| match &*rule.action {
            "Allow" => Hit::Allow,
            "Deny" => Hit::Deny,
            "Pass" => Hit::Pass,
            "Log" => Hit::Log,
            other => panic!("{other}"),
        };
        Some(matching.map(action).collect())
    }

    fn is_calico_rule(&self, namespace: Option<&str>, rule: &calico::Rule) -> bool {
        let (source, destination) = match self.ingress() {
            true => (&self.peer, &self.own),
            false => (&self.own, &self.peer),
        };
        let none = calico::EntityRule::default();
        let (from, to) = (
            rule.source.as_ref().unwrap_or(&none),
            rule.destination.as_ref().unwrap_or(&none),
        );
        let [kind, code] = self.packet.port.to_be_bytes();
        let is_icmp = |icmp: &calico::Icmp| {
            icmp.kind == Some(kind.into()) && icmp.code.is_none_or(|wanted| wanted == i32::from(code))
        };
        let protocol = |wanted: &IntOrString| protocol(wanted) == self.packet.protocol;
        rule.ip_version
            .is_none_or(|version| (version == 4) == self.peer.0.is_ipv4())
            && rule.protocol.as_ref().is_none_or(protocol)
            && !rule.not_protocol.as_ref().is_some_and(protocol)
            && rule.icmp.as_ref().is_none_or(is_icmp)
            && !rule.not_icmp.as_ref().is_some_and(is_icmp)
            && self.is_end(namespace, from, source, self.packet.source_port)
            && self.is_end(namespace, to, destination, self.packet.port)
            && self.is_behind(namespace, from.services.as_ref(), false)
            && self.is_behind(namespace, to.services.as_ref(), true)
            && (to.domains.is_empty() || self.has_name(&to.domains))
    }

    fn is_end(
        &self,
        namespace: Option<&str>,
        wanted: &calico::EntityRule,
        (address, things): &(IpAddr, Vec<Thing<'a>>),
        port: u16,
    ) -> bool {
        // Each family is asked with its own networks alone; a list that is left empty leaves the rule out.
        let of_family = |net: &&String| net.contains(':') == address.is_ipv6();
        for nets in [&wanted.nets, &wanted.not_nets] {
            if !nets.is_empty() && !nets.iter().any(|net| of_family(&net)) {
                return false;
            }
        }
        let in_one = |nets: &[String]| nets.iter().filter(of_family).any(|net| within(net, *address));
        if (!wanted.nets.is_empty() && !in_one(&wanted.nets)) || in_one(&wanted.not_nets) {
            return false;
        }
        let unwanted = |thing: &Thing<'_>| {
            !wanted.not_selector.is_empty() && selects(&wanted.not_selector, "", true, &thing.shown)
        };
        let asks = !wanted.selector.is_empty()
            || !wanted.namespace_selector.is_empty()
            || wanted.service_accounts.is_some()
            || (namespace.is_some() && !wanted.not_selector.is_empty());
        // `notSelector` is asked of the thing that the positive conditions find; alone, of all that are there.
        let asks = asks && asks_something(wanted, namespace);
        let positive =
            |thing: &&Thing<'_>| self.is_selected(namespace, wanted, thing) && !(asks && unwanted(thing));
        if asks && !things.iter().any(|thing| positive(&thing)) {
            return false;
        }
        if !asks && things.iter().any(unwanted) {
            return false;
        }
        let at: Vec<&Thing<'_>> = things.iter().filter(positive).collect();
        let is_port = |wanted: &IntOrString| match wanted {
            IntOrString::Int(number) => self.has_ports() && *number == i32::from(port),
            IntOrString::String(text) => match text.split_once(':') {
                Some((first, last)) => {
                    let number = |text: &str| text.parse::<u16>().expect("a port");
                    self.has_ports() && (number(first)..=number(last)).contains(&port)
                }
                None => self.is_named(text, port, &at),
            },
        };
        (wanted.ports.is_empty() || wanted.ports.iter().any(is_port)) && !wanted.not_ports.iter().any(is_port)
    }

    fn has_ports(&self) -> bool {
        [6, 17, 132].contains(&self.packet.protocol)
    }

    /// The positive conditions on what is at one end.
    fn is_selected(&self, namespace: Option<&str>, wanted: &calico::EntityRule, thing: &Thing<'_>) -> bool {
        let accounts = wanted.service_accounts.as_ref();
        let names = accounts.is_none_or(|accounts| {
            let name = thing.shown.get("projectcalico.org/serviceaccount");
            let named = accounts.names.is_empty() || name.is_some_and(|name| accounts.names.contains(name));
            named && selects(&accounts.selector, "pcsa.", true, &thing.shown)
        });
        let in_namespace = match (&*wanted.namespace_selector, namespace) {
            ("", Some(own)) if asks_something(wanted, namespace) => thing.namespace == Some(own),
            ("", _) => true,
            ("global()", _) => thing.namespace.is_none(),
            (text, _) => selects(text, "pcns.", thing.namespace.is_some(), &thing.shown),
        };
        names && in_namespace && selects(&wanted.selector, "", true, &thing.shown)
    }

    fn is_behind(
        &self,
        namespace: Option<&str>,
        service: Option<&calico::ServiceName>,
        with_port: bool,
    ) -> bool {
        let Some(service) = service else { return true };
        let namespace = match service.namespace.as_str() {
            "" => namespace.expect("a global policy names the namespace"),
            given => given,
        };
        let key = (namespace.to_owned(), service.name.clone());
        let endpoints = self.view.services.get(&key);
        let port = Some((self.packet.protocol, self.packet.port));
        endpoints.is_some_and(|endpoints| {
            let mut here = endpoints
                .iter()
                .filter(|endpoint| endpoint.address == self.peer.0);
            here.any(|endpoint| !with_port || endpoint.port == port)
        })
    }

    fn has_name(&self, patterns: &[String]) -> bool {
        is_one_named(&self.names, patterns)
    }
}

/// Whether there is a positive condition on labels, so that one in a namespaced policy is about its namespace.
fn asks_something(wanted: &calico::EntityRule, namespace: Option<&str>) -> bool {
    let accounts = wanted.service_accounts.as_ref();
    !wanted.selector.is_empty()
        || !wanted.namespace_selector.is_empty()
        || accounts.is_some_and(|accounts| !accounts.names.is_empty() || !accounts.selector.is_empty())
        || (namespace.is_some() && !wanted.not_selector.is_empty())
}

fn thing_of_pod<'a>(view: &'a ClusterView, pod: &'a PodView) -> Thing<'a> {
    let account = if pod.service_account.is_empty() {
        "default"
    } else {
        &pod.service_account
    };
    let key = (pod.namespace.clone(), account.to_owned());
    let mut thing = thing(view, true, Some(&pod.namespace), &pod.labels, &pod.named_ports);
    let mut show = |key: String, value: &str| thing.shown.insert(key, value.to_owned());
    show("projectcalico.org/orchestrator".to_owned(), "k8s");
    show("projectcalico.org/serviceaccount".to_owned(), account);
    for (label, value) in view.service_accounts.get(&key).into_iter().flatten() {
        show(format!("pcsa.{label}"), value);
    }
    show("pcsa.projectcalico.org/name".to_owned(), account);
    thing
}

fn thing<'a>(
    view: &'a ClusterView,
    is_pod: bool,
    namespace: Option<&'a str>,
    labels: &Labels,
    ports: &'a [NamedPort],
) -> Thing<'a> {
    let mut shown = labels.clone();
    // What is inherited cannot be written by hand.
    shown.retain(|key, _| !key.starts_with("pcns.") && !key.starts_with("pcsa.") && key != NAMESPACE);
    let namespace_labels = namespace.and_then(|namespace| view.namespaces.get(namespace));
    if let Some(namespace) = namespace {
        shown.insert(NAMESPACE.to_owned(), namespace.to_owned());
        if let Some(labels) = namespace_labels {
            shown.extend(
                labels
                    .iter()
                    .map(|(key, value)| (format!("pcns.{key}"), value.clone())),
            );
            shown.insert("pcns.projectcalico.org/name".to_owned(), namespace.to_owned());
        }
    }
    Thing {
        is_pod,
        namespace,
        namespace_labels,
        labels: labels.clone(),
        shown,
        ports,
    }
}

fn sets_at<'a>(view: &'a ClusterView, address: IpAddr, names: Option<&BTreeSet<String>>) -> Vec<Thing<'a>> {
    let mut found = Vec::new();
    for object in &view.calico {
        let (namespace, set) = match object {
            CalicoObject::NetworkSet(set) => (set.metadata.namespace.as_deref(), set),
            CalicoObject::GlobalNetworkSet(set) => (None, set),
            _ => continue,
        };
        let here = set.spec.nets.iter().any(|net| within(net, address))
            || names.is_some_and(|names| is_one_named(names, &set.spec.allowed_egress_domains));
        if here {
            let labels = set.metadata.labels.clone().unwrap_or_default();
            found.push(thing(view, false, namespace, &labels, &[]));
        }
    }
    found
}

fn is_kubernetes_peer(peer: &NetworkPolicyPeer, own: Option<&str>, thing: &Thing<'_>) -> bool {
    let namespace = match &peer.namespace_selector {
        Some(selector) => is_in_namespace(selector, thing),
        None => thing.namespace == own,
    };
    let pods = peer.pod_selector.as_ref();
    thing.is_pod && namespace && pods.is_none_or(|selector| has_labels(selector, &thing.labels))
}

fn is_in_namespace(selector: &LabelSelector, thing: &Thing<'_>) -> bool {
    thing.is_pod
        && thing
            .namespace_labels
            .is_some_and(|labels| has_labels(selector, labels))
}

fn is_namespaced_pod(pods: &cnp::NamespacedPods, thing: &Thing<'_>) -> bool {
    is_in_namespace(&pods.namespace_selector, thing) && has_labels(&pods.pod_selector, &thing.labels)
}

/// Kubernetes' selectors.
fn has_labels(selector: &LabelSelector, labels: &Labels) -> bool {
    let given = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    let holds = given
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value));
    holds
        && expressions.all(|expression| {
            let value = labels.get(&expression.key);
            let among = value.is_some_and(|value| expression.values.iter().flatten().any(|one| one == value));
            match expression.operator.as_str() {
                "In" => among,
                "NotIn" => !among,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("{other}"),
            }
        })
}

fn within(net: &str, address: IpAddr) -> bool {
    let net: IpNet = net
        .parse()
        .or_else(|_| net.parse::<IpAddr>().map(IpNet::from))
        .expect("a network");
    net.contains(&address)
}

/// `*` stands for one or more labels.
fn is_one_named(names: &BTreeSet<String>, patterns: &[String]) -> bool {
    fn fits(pattern: &[&str], name: &[&str]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (["*", rest @ ..], [_, more @ ..]) => fits(rest, more) || fits(pattern, more),
            ([label, rest @ ..], [same, more @ ..]) => label == same && fits(rest, more),
            _ => false,
        }
    }
    names.iter().any(|name| {
        let name: Vec<&str> = name.split('.').collect();
        patterns
            .iter()
            .any(|pattern| fits(&pattern.split('.').collect::<Vec<_>>(), &name))
    })
}

fn protocol(wanted: &IntOrString) -> u8 {
    match wanted {
        IntOrString::Int(number) => u8::try_from(*number).expect("a protocol"),
        IntOrString::String(name) => match &*name.to_lowercase() {
            "tcp" => 6,
            "udp" => 17,
            "icmp" => 1,
            "icmpv6" => 58,
            "sctp" => 132,
            "udplite" => 136,
            number => number.parse().expect("a protocol"),
        },
    }
}

/// Evaluates an expression of Calico's grammar while it reads it. Labels are looked up with `prefix` before their names,
/// and `all()` is `all`. Nothing written selects everything.
pub(crate) fn selects(text: &str, prefix: &str, all: bool, labels: &Labels) -> bool {
    if text.trim_matches([' ', '\t']).is_empty() {
        return true;
    }
    let mut reading = Reading {
        left: text,
        prefix,
        all,
        labels,
    };
    reading.blank();
    let value = reading.or();
    assert_eq!(reading.left, "", "{text:?}");
    value
}

struct Reading<'a> {
    left: &'a str,
    prefix: &'a str,
    all: bool,
    labels: &'a Labels,
}

impl<'a> Reading<'a> {
    fn or(&mut self) -> bool {
        let mut value = self.and();
        while self.next("||") {
            value |= self.and();
        }
        value
    }

    fn and(&mut self) -> bool {
        let mut value = self.not();
        while self.next("&&") {
            value &= self.not();
        }
        value
    }

    fn not(&mut self) -> bool {
        // Where an operation begins, `!=` is no operator.
        if self.next("!") {
            return !self.not();
        }
        if self.next("(") {
            let value = self.or();
            assert!(self.next(")"));
            return value;
        }
        if self.next("all()") {
            return self.all;
        }
        if self.next("global()") {
            return !self.labels.contains_key(NAMESPACE);
        }
        if self.next("has(") {
            let value = self.label();
            assert!(self.next(")"));
            return value.is_some();
        }
        let value = self.label();
        let is = |fits: &dyn Fn(&str) -> bool| value.is_some_and(fits);
        if self.next("==") {
            let wanted = self.string();
            is(&|value| value == wanted)
        } else if self.next("!=") {
            let unwanted = self.string();
            !is(&|value| value == unwanted)
        } else if self.next("contains") {
            let part = self.string();
            is(&|value| value.contains(part))
        } else if self.next("starts with") || self.next("startswith") {
            let part = self.string();
            is(&|value| value.starts_with(part))
        } else if self.next("ends with") || self.next("endswith") {
            let part = self.string();
            is(&|value| value.ends_with(part))
        } else if self.next("not in") || self.next("notin") {
            let set = self.set();
            !is(&|value| set.contains(&value))
        } else {
            assert!(self.next("in"), "an operator: {:?}", self.left);
            let set = self.set();
            is(&|value| set.contains(&value))
        }
    }

    /// The value of the label that is named here.
    fn label(&mut self) -> Option<&'a str> {
        let name = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
        let end = self.left.find(|c| !name(c)).unwrap_or(self.left.len());
        let (name, left) = self.left.split_at(end);
        self.left = left;
        self.blank();
        self.labels
            .get(&format!("{}{name}", self.prefix))
            .map(String::as_str)
    }

    fn string(&mut self) -> &'a str {
        let quote = &self.left[..1];
        let (text, left) = self.left[1..].split_once(quote).expect("a string in quotes");
        self.left = left;
        self.blank();
        text
    }

    fn set(&mut self) -> Vec<&'a str> {
        assert!(self.next("{"));
        let mut values = Vec::new();
        while !self.next("}") {
            values.push(self.string());
            self.next(",");
        }
        values
    }

    fn next(&mut self, token: &str) -> bool {
        let Some(left) = self.left.strip_prefix(token) else {
            return false;
        };
        self.left = left;
        self.blank();
        true
    }

    fn blank(&mut self) {
        self.left = self.left.trim_start_matches([' ', '\t']);
    }
}
