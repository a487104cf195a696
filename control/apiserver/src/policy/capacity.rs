//! Whether the tables that a write leads to fit into the kernel of each node.
//!
//! Only nodes whose tables the write can change are looked at, all cores at once; what they were found to need is kept
//! for as long as nothing else changes, so a judgement that took too long goes on where it ended when it is asked again.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZero,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use policies_compiler::{
    capacity::{Capacities, Demand, What, demand},
    compile_policies,
};
use policies_ir::{
    cluster::{Cluster, Member, Translation},
    policy::{Policy, PolicySet, Tier, WorkloadKind},
    tables::EndpointId,
};
use tokio_util::sync::CancellationToken;

use crate::policy::{
    GaveUp,
    cluster::Objects,
    hosts::{NodeHosts, of_nodes},
};

/// What was found out lately: of the state before the last write, and of that after it.
#[derive(Debug, Default)]
pub(super) struct Known {
    states: Mutex<Vec<Arc<State>>>,
}

/// A state of the cluster, and what nodes were found to need then.
#[derive(Debug)]
struct State {
    /// Seen from no node.
    cluster: Cluster,
    policies: PolicySet,
    /// Which interfaces host endpoints speak of, by node.
    hosts: BTreeMap<String, NodeHosts>,
    demands: Mutex<BTreeMap<String, Demand>>,
}

/// Why the tables that `after` leads to fit nowhere. A node that needs too much already may go on to, as long as it
/// does not need more: else nobody could write what needs less. Stops between two nodes once nobody waits.
pub(super) fn refusal(
    before: &Objects,
    after: &Objects,
    capacities: &Capacities,
    known: &Known,
    nobody_waits: &CancellationToken,
) -> Result<Option<String>, GaveUp> {
    let after = known.state(State::read(after));
    let before = known.state(State::read(before));
    known.keep([&before, &after]);
    let needed = after.demands(&after.nodes_unlike(&before), nobody_waits)?;
    let exceeded: BTreeMap<String, _> = needed
        .into_iter()
        .filter_map(|(node, needed)| Some((node, needed.exceeds(capacities)?)))
        .collect();
    let earlier = before.demands(&exceeded.keys().cloned().collect(), nobody_waits)?;
    let refused = exceeded.into_iter().find_map(|(node, exceeded)| {
        let earlier = earlier
            .get(&node)
            .map_or(0, |demand| count(demand, exceeded.what));
        (exceeded.needed > earlier).then(|| {
            format!(
                "it does not fit into the kernel's tables: node {node:?} {exceeded}; {}",
                exceeded.what.advice()
            )
        })
    });
    Ok(refused)
}

impl Known {
    /// What is known of the same state, if anything is.
    fn state(&self, state: State) -> Arc<State> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let same = states.iter().find(|known| known.is_as(&state));
        same.map_or_else(|| Arc::new(state), Arc::clone)
    }

    fn keep(&self, states: [&Arc<State>; 2]) {
        let mut kept = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = states.map(Arc::clone).to_vec();
    }
}

impl State {
    fn read(objects: &Objects) -> Self {
        let view = objects.view();
        let mut cluster = view.cluster();
        cluster.host_addresses.clear();
        cluster.host_groups.clear();
        Self {
            policies: view.policy_set(|_, _| {}).enforced,
            hosts: of_nodes(objects.hosts(), &cluster.nodes),
            cluster,
            demands: Mutex::default(),
        }
    }

    /// Whether the same was found out of both.
    fn is_as(&self, other: &Self) -> bool {
        self.cluster == other.cluster && self.policies == other.policies && self.hosts == other.hosts
    }

    /// Nodes whose tables can be others than in `before`: all, unless only policies came, changed or went; then those
    /// that have an endpoint which one of these selects.
    fn nodes_unlike(&self, before: &Self) -> BTreeSet<String> {
        let changed = match self.cluster == before.cluster && self.hosts == before.hosts {
            true => changed_policies(&before.policies, &self.policies),
            false => None,
        };
        let concerns = |member: &&Member| {
            let selects = |policy: &&Policy| policy.applies_to.matches(&member.workload);
            changed.as_ref().is_none_or(|changed| changed.iter().any(selects))
        };
        let members = self
            .cluster
            .members
            .iter()
            .filter(|member| !member.node.is_empty());
        members
            .filter(concerns)
            .map(|member| member.node.clone())
            .collect()
    }

    /// What a node would need, which the cluster is seen from.
    fn demand(&self, node: &str, cluster: &Cluster) -> Demand {
        let tables = compile_policies(cluster, &self.policies);
        let members = cluster.members.iter();
        let forwards = |host: &str| {
            let is_it = |member: &&Member| {
                member.workload.kind == WorkloadKind::HostEndpoint && member.workload.name == host
            };
            let member = members.clone().find(is_it);
            let id = member.and_then(|member| member.forwarded);
            id.is_some_and(|id| tables.endpoints.contains_key(&id))
        };
        Demand {
            host_places: self.hosts.get(node).map_or(0, |hosts| hosts.places(forwards)),
            ..demand(&tables)
        }
    }

    /// What the tables of these nodes would need.
    fn demands(
        &self,
        nodes: &BTreeSet<String>,
        nobody_waits: &CancellationToken,
    ) -> Result<BTreeMap<String, Demand>, GaveUp> {
        let known = || self.demands.lock().unwrap_or_else(PoisonError::into_inner);
        let open: Vec<&String> = {
            let known = known();
            nodes.iter().filter(|node| !known.contains_key(*node)).collect()
        };
        let next = AtomicUsize::new(0);
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        thread::scope(|scope| {
            for _ in 0..cores.min(open.len()) {
                scope.spawn(|| {
                    let mut cluster = self.cluster.clone();
                    while let Some(node) = open.get(next.fetch_add(1, Ordering::Relaxed))
                        && !nobody_waits.is_cancelled()
                    {
                        see_from(&mut cluster, node);
                        let needed = self.demand(node, &cluster);
                        known().insert((*node).clone(), needed);
                    }
                });
            }
        });
        GaveUp::check(nobody_waits)?;
        let known = known();
        let of_nodes = nodes.iter();
        Ok(of_nodes
            .filter_map(|node| Some((node.clone(), *known.get(node)?)))
            .collect())
    }
}

/// The policies that are in one of both alone; nothing if more is different than these.
fn changed_policies<'p>(before: &'p PolicySet, after: &'p PolicySet) -> Option<Vec<&'p Policy>> {
    fn heads(set: &PolicySet) -> impl Iterator<Item = Tier> {
        set.tiers.iter().map(|tier| Tier {
            policies: Vec::new(),
            ..tier.clone()
        })
    }
    let same_ground = heads(before).eq(heads(after))
        && before.profiles == after.profiles
        && before.failsafe == after.failsafe
        && before.endpoint_to_host == after.endpoint_to_host;
    if !same_ground {
        return None;
    }
    let mut changed = Vec::new();
    for (before, after) in before.tiers.iter().zip(&after.tiers) {
        let by_name = |tier: &'p Tier| -> BTreeMap<&'p str, &'p Policy> {
            let policies = tier.policies.iter();
            policies.map(|policy| (policy.name.as_str(), &**policy)).collect()
        };
        let (before, after) = (by_name(before), by_name(after));
        let lacks = |other: &BTreeMap<&str, &Policy>, (name, policy): &(&str, &Policy)| {
            other.get(name).is_none_or(|other| other != policy)
        };
        let gone = before.iter().map(|(name, policy)| (*name, *policy));
        let come = after.iter().map(|(name, policy)| (*name, *policy));
        changed.extend(
            gone.filter(|policy| lacks(&after, policy))
                .map(|(_, policy)| policy),
        );
        changed.extend(
            come.filter(|policy| lacks(&before, policy))
                .map(|(_, policy)| policy),
        );
    }
    Some(changed)
}

/// Makes `cluster` the one that is seen from `node`, where everything of the node has tables.
fn see_from(cluster: &mut Cluster, node: &str) {
    let mut numbers = (1..).map(EndpointId);
    for member in &mut cluster.members {
        let is_local = member.node == node;
        let is_host = is_local && member.workload.kind == WorkloadKind::HostEndpoint;
        let mut number = |wanted: bool| wanted.then(|| numbers.next()).flatten();
        member.endpoint = number(is_local);
        member.forwarded = number(is_host);
        member.untracked = number(is_host);
    }
    cluster.host_addresses = cluster.nodes.get(node).cloned().unwrap_or_default();
    cluster.translations = Translation::of(&cluster.members);
}

fn count(demand: &Demand, what: What) -> usize {
    match what {
        What::Endpoints => demand.endpoints,
        What::Identities => demand.identities,
        What::Verdicts => demand.verdicts,
        What::Sources => demand.sources,
        What::Insides => demand.insides,
        What::InsideClasses => demand.inside_classes,
        What::SourceClasses => demand.source_classes,
        What::HostPlaces => demand.host_places,
    }
}

#[cfg(test)]
mod tests {
    use api::resources::by_any_name;
    use control_store::ObjectKey;
    use serde_json::{Value, json};

    use super::*;
    use crate::policy::cluster::Part;

    fn with(objects: Objects, resource: &str, name: &str, object: &Value) -> Objects {
        let part = Part::read(by_any_name(resource).unwrap(), object.to_string().as_bytes());
        objects.with(ObjectKey::new(resource, "", name), part.unwrap())
    }

    /// `pods` pods on each of two nodes, and one on none.
    fn cluster(pods: usize) -> Objects {
        let mut objects = Objects::default();
        for i in 0..=2 * pods {
            let node = ["a", "b", ""][if i == 2 * pods { 2 } else { i % 2 }];
            let pod = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": "x", "name": format!("p{i}"), "labels": {"node": node}},
                "spec": {"nodeName": node, "containers": []}, "status": {"podIP": format!("10.0.0.{i}")}});
            objects = with(objects, "pods", &format!("p{i}"), &pod);
        }
        objects
    }

    /// Ports that no block holds together.
    fn policy(ports: usize, selector: &str) -> Value {
        let ports: Vec<usize> = (0..ports).map(|i| 1001 + 2 * i).collect();
        json!({"metadata": {"name": "p"}, "spec": {"selector": selector, "types": ["Ingress"], "ingress": [
            {"action": "Allow", "protocol": "TCP", "source": {"ports": ports}}]}})
    }

    #[test]
    fn the_node_that_needs_too_much_is_named_with_the_numbers() {
        let capacities = Capacities {
            // Three pods, with a block for each of 15 ports.
            sources: 3 * 15,
            ..Capacities::KERNEL
        };
        let judge = |before: &Objects, ports: usize, selector: &str| {
            let after = with(before.clone(), "gnp", "p", &policy(ports, selector));
            let waited_for = CancellationToken::new();
            let refused = refusal(before, &after, &capacities, &Known::default(), &waited_for);
            (refused.unwrap(), after)
        };
        let none = cluster(3);
        let (refused, fits) = judge(&none, 15, "all()");
        assert_eq!(refused, None);
        let (refused, too_much) = judge(&none, 16, "node == 'b'");
        assert_eq!(
            refused.as_deref(),
            Some(
                "it does not fit into the kernel's tables: node \"b\" needs 48 blocks of source ports, and a node holds \
                 45; select fewer pods, or say it with fewer rules, networks and ports"
            )
        );
        assert!(judge(&fits, 16, "all()").0.is_some());
        // More pods came meanwhile: what needs less may be written, also if it is still too much.
        let (refused, _) = judge(&too_much, 20, "node == 'b'");
        assert!(refused.is_some());
        let more = with(none, "gnp", "p", &policy(20, "all()"));
        assert_eq!(judge(&more, 18, "all()").0, None);
        let gone = CancellationToken::new();
        gone.cancel();
        let fewer = with(more.clone(), "gnp", "p", &policy(18, "all()"));
        assert!(refusal(&more, &fewer, &capacities, &Known::default(), &gone).is_err());
    }

    #[test]
    fn only_nodes_that_the_write_can_change_are_looked_at_and_each_once() {
        let known = Known::default();
        let looked_at = |before: &Objects, after: &Objects| {
            let waited_for = CancellationToken::new();
            let refused = refusal(before, after, &Capacities::KERNEL, &known, &waited_for).unwrap();
            assert_eq!(refused, None);
            let after = known.state(State::read(after));
            let demands = after.demands.lock().unwrap();
            demands.keys().cloned().collect::<Vec<_>>().join(" ")
        };
        let bare = cluster(3);
        let one = with(bare.clone(), "gnp", "p", &policy(3, "node == 'b'"));
        assert_eq!(looked_at(&bare, &one), "b");
        let mut own = policy(3, "node == 'a'");
        own["metadata"]["name"] = json!("q");
        let other = with(one.clone(), "gnp", "q", &own);
        assert_eq!(
            looked_at(&one, &other),
            "a",
            "who has a policy already is not concerned"
        );
        let moved = with(one.clone(), "gnp", "p", &policy(3, "node == 'a'"));
        assert_eq!(
            looked_at(&one, &moved),
            "a b",
            "nor is one that has it no longer left out"
        );
        let mut later = policy(3, "node == 'b'");
        later["spec"]["order"] = json!(7);
        assert_eq!(looked_at(&one, &with(one.clone(), "gnp", "p", &later)), "b");
        let set = json!({"metadata": {"name": "s"}, "spec": {"nets": ["192.0.2.0/24"]}});
        assert_eq!(
            looked_at(&one, &with(one.clone(), "globalnetworksets", "s", &set)),
            "a b"
        );
        let tier = json!({"metadata": {"name": "t"}, "spec": {"order": 5}});
        let in_tier = with(one.clone(), "tiers", "t", &tier);
        let mut tiered = policy(3, "node == 'b'");
        tiered["spec"]["tier"] = json!("t");
        let tiered = with(in_tier.clone(), "gnp", "p", &tiered);
        assert_eq!(
            looked_at(&in_tier, &tiered),
            "b",
            "a policy that goes to another tier"
        );
        let mut first = tier.clone();
        first["spec"]["order"] = json!(1);
        let first = with(tiered.clone(), "tiers", "t", &first);
        assert_eq!(looked_at(&tiered, &first), "a b", "the tier itself");

        // What was found out before nobody waited any more is still known.
        let gone = CancellationToken::new();
        gone.cancel();
        let demands = |nobody_waits: &CancellationToken| {
            let state = known.state(State::read(&first));
            state.demands(&["a".to_owned(), "b".to_owned()].into(), nobody_waits)
        };
        assert_eq!(demands(&CancellationToken::new()).unwrap().len(), 2);
        assert!(demands(&gone).is_err());
        assert_eq!(known.states.lock().unwrap().len(), 2);
    }

    /// The addresses of the host at its interfaces are counted too: also those that only the node knows of.
    #[test]
    fn more_interfaces_and_addresses_than_fit_are_refused_with_the_number() {
        let node = |counts: Option<(usize, usize)>| {
            let annotations = counts.map_or(json!({}), |(interfaces, addresses)| {
                let said = json!({"interfaces": interfaces, "addresses": addresses}).to_string();
                json!({api::annotations::HOST_INTERFACES: said})
            });
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "annotations": annotations},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
        };
        let judge = |before: &Objects, name: &str, host: &Value| {
            let host = json!({"metadata": {"name": name}, "spec": host});
            let after = with(before.clone(), "hep", name, &host);
            let waited_for = CancellationToken::new();
            let capacities = Capacities::KERNEL;
            let refused = refusal(before, &after, &capacities, &Known::default(), &waited_for);
            (refused.unwrap(), after)
        };
        let star = json!({"node": "a", "interfaceName": "*"});
        let silent = with(cluster(1), "nodes", "a", &node(None));
        assert_eq!(judge(&silent, "star", &star).0, None, "nobody knows yet");
        let fits = with(cluster(1), "nodes", "a", &node(Some((65, 62))));
        assert_eq!(judge(&fits, "star", &star).0, None);
        let many = with(cluster(1), "nodes", "a", &node(Some((65, 63))));
        assert_eq!(
            judge(&many, "star", &star).0.as_deref(),
            Some(
                "it does not fit into the kernel's tables: node \"a\" needs 4160 pairs of an interface and an address of \
                 the host, and a node holds 4095; name fewer interfaces in HostEndpoints, or take addresses off the node"
            )
        );
        // One of two interfaces of a node that has said nothing, and addresses that it is expected to have.
        let expected = |count: u32| {
            let ips = (1..=count).map(|i| std::net::Ipv4Addr::from(0x0a00_0000 + i).to_string());
            json!({"node": "a", "interfaceName": "eth1", "expectedIPs": ips.collect::<Vec<_>>()})
        };
        let (refused, one) = judge(&silent, "uplink", &json!({"node": "a", "interfaceName": "eth0"}));
        assert_eq!(refused, None);
        assert_eq!(judge(&one, "second", &expected(2045)).0, None);
        let refused = judge(&one, "second", &expected(2047)).0.unwrap();
        assert!(refused.contains("needs 4098 pairs"), "{refused}");
        // Interfaces came since: it may stay as it is, and become less.
        let (_, star_fits) = judge(&fits, "star", &star);
        let more = with(star_fits, "nodes", "a", &node(Some((200, 63))));
        let labelled = json!({"node": "a", "interfaceName": "*", "profiles": ["kns.x"]});
        assert_eq!(judge(&more, "star", &labelled).0, None);
    }

    #[test]
    fn too_many_classes_of_source_ports_are_refused_with_the_number() {
        let judge = |rules: u16| {
            let rule = |i| json!({"action": "Allow", "protocol": "TCP", "source": {"ports": [1001 + 2 * i]}});
            let rules: Vec<Value> = (0..rules).map(rule).collect();
            let policy =
                json!({"metadata": {"name": "p"}, "spec": {"selector": "node == 'b'", "ingress": rules}});
            let before = cluster(2);
            let after = with(before.clone(), "gnp", "p", &policy);
            let waited_for = CancellationToken::new();
            refusal(
                &before,
                &after,
                &Capacities::KERNEL,
                &Known::default(),
                &waited_for,
            )
            .unwrap()
        };
        assert_eq!(judge(127), None);
        let told = "node \"b\" needs 129 classes of source ports at one endpoint, and a node holds 128";
        assert!(judge(128).unwrap().contains(told));
    }

    /// What each node needs does not depend on how it was found out.
    #[test]
    fn the_demand_is_that_of_the_nodes_own_tables() {
        let objects = with(cluster(5), "gnp", "p", &policy(7, "node == 'b'"));
        let host = json!({"metadata": {"name": "uplink"}, "spec": {"node": "a", "interfaceName": "eth0",
            "expectedIPs": ["192.0.2.1"]}});
        let objects = with(objects, "hep", "uplink", &host);
        let state = State::read(&objects);
        let found = state.demands(
            &["a".to_owned(), "b".to_owned()].into(),
            &CancellationToken::new(),
        );
        for (node, found) in found.unwrap() {
            let mut view = objects.view();
            let local = view.pods.iter_mut().filter(|pod| pod.node == node);
            for (pod, number) in local.zip(1..) {
                pod.endpoint = Some(EndpointId(number));
            }
            view.node.clone_from(&node);
            let ids = policies_compiler::HostEndpointIds {
                local: EndpointId(100),
                forwarded: EndpointId(101),
                untracked: EndpointId(102),
            };
            view.host_endpoints.insert("uplink".to_owned(), ids);
            if node == "a" {
                view.host_addresses.insert("192.0.2.1".parse().unwrap());
            }
            let expected = Demand {
                // Its only address, and groups.
                host_places: if node == "a" { 2 } else { 0 },
                ..demand(&policies_compiler::compile(&view).tables)
            };
            assert_eq!(found, expected, "{node}");
        }
    }
}
