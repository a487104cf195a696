//! Whether the tables that a write leads to fit into the kernel of each node.

use std::collections::{BTreeMap, BTreeSet};

use policies_compiler::{
    CalicoObject, ClusterView, HostEndpointIds,
    capacity::{Capacities, Demand, What, demand},
    compile,
};
use policies_ir::tables::EndpointId;
use tokio_util::sync::CancellationToken;

use crate::policy::{GaveUp, cluster::Objects};

/// Why the tables that `after` leads to fit nowhere. A node that needs too much already may go on to, as long as it
/// does not need more: else nobody could write what needs less. Stops between two nodes once nobody waits.
pub(super) fn refusal(
    before: &Objects,
    after: ClusterView,
    capacities: &Capacities,
    nobody_waits: &CancellationToken,
) -> Result<Option<String>, GaveUp> {
    let exceeded = demands(after, nobody_waits)?
        .into_iter()
        .filter_map(|(node, needed)| Some((node, needed.exceeds(capacities)?)));
    let exceeded: Vec<_> = exceeded.collect();
    if exceeded.is_empty() {
        return Ok(None);
    }
    let earlier = demands(before.view(), nobody_waits)?;
    let refused = exceeded.into_iter().find_map(|(node, exceeded)| {
        let earlier = earlier.get(&node).map_or(0, |demand| count(demand, exceeded.what));
        (exceeded.needed > earlier).then(|| {
            format!(
                "it does not fit into the kernel's tables: node {node:?} {exceeded}; select fewer pods, or say it with \
                 fewer rules, networks and ports"
            )
        })
    });
    Ok(refused)
}

/// What the tables of each node that has any would need.
fn demands(
    mut view: ClusterView,
    nobody_waits: &CancellationToken,
) -> Result<BTreeMap<String, Demand>, GaveUp> {
    let of_hosts = view.calico.iter().filter_map(|object| match object {
        CalicoObject::HostEndpoint(host) => Some(host.spec.node.clone()),
        _ => None,
    });
    let nodes: BTreeSet<String> = view
        .pods
        .iter()
        .map(|pod| pod.node.clone())
        .chain(of_hosts)
        .filter(|node| !node.is_empty())
        .collect();
    nodes
        .into_iter()
        .map(|node| {
            GaveUp::check(nobody_waits)?;
            number(&mut view, &node);
            let needed = demand(&compile(&view).tables);
            Ok::<_, GaveUp>((node, needed))
        })
        .collect()
}

/// Makes `view` the view from `node`, where everything of the node has tables.
fn number(view: &mut ClusterView, node: &str) {
    let mut numbers = (1..).map(EndpointId);
    let mut next = || numbers.next().unwrap_or(EndpointId(u32::MAX));
    for pod in &mut view.pods {
        pod.endpoint = (pod.node == node).then(&mut next);
    }
    view.host_endpoints.clear();
    for object in &view.calico {
        if let CalicoObject::HostEndpoint(host) = object
            && host.spec.node == node
        {
            let ids = HostEndpointIds {
                local: next(),
                forwarded: next(),
                untracked: next(),
            };
            let name = host.metadata.name.clone().unwrap_or_default();
            view.host_endpoints.insert(name, ids);
        }
    }
    view.host_addresses = view
        .nodes
        .get(node)
        .map(|node| node.addresses.clone())
        .unwrap_or_default();
    view.node = node.to_owned();
}

fn count(demand: &Demand, what: What) -> usize {
    match what {
        What::Endpoints => demand.endpoints,
        What::Identities => demand.identities,
        What::Verdicts => demand.verdicts,
        What::Sources => demand.sources,
        What::SourceClasses => demand.source_classes,
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
            (
                refusal(before, after.view(), &capacities, &waited_for).unwrap(),
                after,
            )
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
        assert!(refusal(&more, more.view(), &capacities, &gone).is_err());
    }

    #[test]
    fn too_many_classes_of_source_ports_are_refused_with_the_number() {
        let judge = |rules: u16| {
            let rule = |i| json!({"action": "Allow", "protocol": "TCP", "source": {"ports": [1001 + 2 * i]}});
            let rules: Vec<Value> = (0..rules).map(rule).collect();
            let policy = json!({"metadata": {"name": "p"}, "spec": {"selector": "node == 'b'", "ingress": rules}});
            let before = cluster(2);
            let after = with(before.clone(), "gnp", "p", &policy);
            let waited_for = CancellationToken::new();
            refusal(&before, after.view(), &Capacities::KERNEL, &waited_for).unwrap()
        };
        assert_eq!(judge(127), None);
        let told = "node \"b\" needs 129 classes of source ports at one endpoint, and a node holds 128";
        assert!(judge(128).unwrap().contains(told));
    }
}
