//! Ways to make an object not valid, one field at a time.

use api::{calico, cluster_policy as cnp};
use k8s_openapi::apimachinery::pkg::{apis::meta::v1 as meta, util::intstr::IntOrString};
use policies_compiler::{CalicoObject, ClusterView};
use proptest::sample::Index;
use serde_json::Value;

use super::{
    kubernetes::break_field,
    objects::{cluster_policy_value, object_value},
    pools::bad_selector,
};

/// Makes one field of one object invalid and returns the object as it stands on the wire; nothing if there is no
/// object that this can be done to.
pub fn break_object(view: &mut ClusterView, which: Index, kind: u8, place: Index) -> Option<Value> {
    let total = view.policies.len() + view.cluster_policies.len() + view.calico.len();
    let start = (total > 0).then(|| which.index(total))?;
    (0..total).find_map(|next| break_one(view, (start + next) % total, kind, place))
}

fn break_one(view: &mut ClusterView, mut which: usize, kind: u8, place: Index) -> Option<Value> {
    if let Some(policy) = view.policies.get_mut(which) {
        break_field(policy, kind, place);
        let mut value = serde_json::to_value(policy).ok()?;
        value["apiVersion"] = "networking.k8s.io/v1".into();
        value["kind"] = "NetworkPolicy".into();
        return Some(value);
    }
    which -= view.policies.len();
    if let Some(policy) = view.cluster_policies.get_mut(which) {
        break_cluster_policy(&mut policy.spec, kind, place);
        return Some(cluster_policy_value(policy));
    }
    which -= view.cluster_policies.len();
    let object = view.calico.get_mut(which)?;
    let broken = match object {
        CalicoObject::NetworkPolicy(policy) => break_policy(&mut policy.spec, false, kind, place),
        CalicoObject::GlobalNetworkPolicy(policy) => break_policy(&mut policy.spec, true, kind, place),
        CalicoObject::Profile(profile) => break_rules(
            &mut profile.spec.ingress,
            &mut profile.spec.egress,
            true,
            kind,
            place,
        ),
        CalicoObject::FelixConfiguration(configuration) => break_configuration(&mut configuration.spec, kind),
        CalicoObject::Tier(tier) => {
            tier.spec.default_action = Some("Maybe".to_owned());
            true
        }
        CalicoObject::NetworkSet(set) | CalicoObject::GlobalNetworkSet(set) => {
            match place.get(&[true, false]) {
                true => set.spec.nets.push("10.0.0.0/33".to_owned()),
                false => set.spec.allowed_egress_domains.push("a..b".to_owned()),
            }
            true
        }
        CalicoObject::HostEndpoint(host) => {
            host.spec.expected_ips.push("10.0.0.0/24".to_owned());
            true
        }
        _ => false,
    };
    broken.then(|| object_value(object))
}

fn break_policy(spec: &mut calico::PolicySpec, global: bool, kind: u8, place: Index) -> bool {
    if kind >= 100 && break_rules(&mut spec.ingress, &mut spec.egress, global, kind, place) {
        return true;
    }
    match kind % 10 {
        0 => "app ==".clone_into(&mut spec.selector),
        1 => "global()".clone_into(&mut spec.selector),
        2 => "has(".clone_into(&mut spec.namespace_selector),
        3 => "a in {\"b\" \"c\"}".clone_into(&mut spec.service_account_selector),
        4 => spec.types = vec!["Ingress".to_owned(), "Both".to_owned()],
        5 => spec.types = vec!["Egress".to_owned(), "Egress".to_owned()],
        6 => spec.tier = Some("No_Tier".to_owned()),
        7 => (spec.do_not_track, spec.pre_dnat) = (Some(true), Some(true)),
        8 => (spec.pre_dnat, spec.apply_on_forward) = (Some(true), None),
        _ => spec.staged_action = Some("Set".to_owned()),
    }
    true
}

/// Returns whether there was a rule.
fn break_rules(
    ingress: &mut [calico::Rule],
    egress: &mut [calico::Rule],
    global: bool,
    kind: u8,
    place: Index,
) -> bool {
    let total = ingress.len() + egress.len();
    if total == 0 {
        return false;
    }
    let place = place.index(total);
    let in_ingress = place < ingress.len();
    let Some(rule) = ingress.iter_mut().chain(egress).nth(place) else {
        return false;
    };
    let text = |text: &str| Some(IntOrString::String(text.to_owned()));
    let service = |name: &str, namespace: &str| {
        Some(calico::ServiceName {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
        })
    };
    let (near, far) = match in_ingress {
        true => (&mut rule.destination, &mut rule.source),
        false => (&mut rule.source, &mut rule.destination),
    };
    match kind % 25 {
        0 => "Reject".clone_into(&mut rule.action),
        1 => rule.ip_version = Some(5),
        2 => rule.protocol = text("tcpp"),
        3 => rule.not_protocol = Some(IntOrString::Int(0)),
        4 => {
            rule.protocol = text("TCP");
            rule.icmp = Some(calico::Icmp {
                kind: Some(8),
                code: None,
            });
        }
        5 => {
            rule.protocol = text("ICMP");
            rule.not_icmp = Some(calico::Icmp {
                kind: None,
                code: Some(0),
            });
        }
        6 => rule.http = Some(serde_json::json!({"methods": ["GET"]})),
        7 => "app = \"web\"".clone_into(&mut far.get_or_insert_default().selector),
        8 => "!".clone_into(&mut far.get_or_insert_default().not_selector),
        9 => "global() || all()".clone_into(&mut far.get_or_insert_default().namespace_selector),
        10 => {
            far.get_or_insert_default().service_accounts = Some(calico::ServiceAccounts {
                names: Vec::new(),
                selector: "has(a".to_owned(),
            });
        }
        11 => far.get_or_insert_default().nets = vec!["010.0.0.0/8".to_owned()],
        12 => far.get_or_insert_default().not_nets = vec!["::/0".to_owned()],
        13 => near.get_or_insert_default().nets = vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()],
        14 => {
            *far = Some(calico::EntityRule {
                services: service("web", "default"),
                selector: "all()".to_owned(),
                ..calico::EntityRule::default()
            });
        }
        15 => far.get_or_insert_default().services = service("", "default"),
        16 => near.get_or_insert_default().services = service("web", "default"),
        17 if global => far.get_or_insert_default().services = service("web", ""),
        18 => far.get_or_insert_default().ports = vec![IntOrString::String("80:79".to_owned())],
        19 => near.get_or_insert_default().not_ports = vec![IntOrString::Int(65536)],
        20 => {
            rule.protocol = None;
            near.get_or_insert_default().ports = vec![IntOrString::Int(80)];
        }
        21 => rule.source.get_or_insert_default().domains = vec!["example.com".to_owned()],
        22 if in_ingress || rule.action != "Allow" => {
            rule.destination.get_or_insert_default().domains = vec!["example.com".to_owned()];
        }
        23 => near.get_or_insert_default().nets = vec!["10.0.0.0/33".to_owned()],
        _ => far.get_or_insert_default().not_nets = vec!["10.0.0.0/8/8".to_owned()],
    }
    true
}

fn break_configuration(spec: &mut calico::FelixConfigurationSpec, kind: u8) -> bool {
    let port = |protocol: Option<&str>, port, net: Option<&str>| calico::ProtoPort {
        protocol: protocol.map(str::to_owned),
        port,
        net: net.map(str::to_owned),
    };
    match kind % 4 {
        0 => spec.default_endpoint_to_host_action = Some("Maybe".to_owned()),
        1 => spec.failsafe_inbound_host_ports = Some(vec![port(None, 0, None)]),
        2 => spec.failsafe_inbound_host_ports = Some(vec![port(Some("ICMP"), 80, None)]),
        _ => spec.failsafe_outbound_host_ports = Some(vec![port(None, 80, Some("everywhere"))]),
    }
    true
}

fn break_cluster_policy(spec: &mut cnp::Spec, kind: u8, place: Index) {
    if kind >= 100 && break_cluster_rule(spec, kind, place) {
        return;
    }
    match kind % 5 {
        0 => "Middle".clone_into(&mut spec.tier),
        1 => spec.priority = 1001,
        2 => spec.priority = -1,
        3 => spec.subject = cnp::Subject::default(),
        _ => {
            spec.subject = cnp::Subject {
                namespaces: Some(bad_selector()),
                pods: None,
            };
        }
    }
}

fn break_cluster_rule(spec: &mut cnp::Spec, kind: u8, place: Index) -> bool {
    let ingress = spec
        .ingress
        .iter_mut()
        .map(|rule| (&mut rule.action, &mut rule.from, &mut rule.protocols, true));
    let egress = spec
        .egress
        .iter_mut()
        .map(|rule| (&mut rule.action, &mut rule.to, &mut rule.protocols, false));
    let mut rules: Vec<_> = ingress.chain(egress).collect();
    if rules.is_empty() {
        return false;
    }
    let (action, peers, protocols, in_ingress) = rules.swap_remove(place.index(rules.len()));
    let peer = |change: &dyn Fn(&mut cnp::Peer)| {
        let mut peer = cnp::Peer::default();
        change(&mut peer);
        peer
    };
    let tcp = |port: cnp::Port| {
        Some(vec![cnp::Protocol {
            tcp: Some(cnp::Ports {
                destination_port: Some(port),
            }),
            ..cnp::Protocol::default()
        }])
    };
    match kind % 12 {
        0 => "Allow".clone_into(action),
        1 => peers.clear(),
        2 => peers.push(cnp::Peer::default()),
        3 => peers.push(peer(&|peer| peer.namespaces = Some(bad_selector()))),
        4 => peers.push(peer(&|peer| peer.networks = vec!["10.0.0.0".to_owned()])),
        5 => peers.push(peer(&|peer| {
            peer.nodes = Some(meta::LabelSelector::default());
            peer.networks = vec!["10.0.0.0/8".to_owned()];
        })),
        6 => *protocols = Some(Vec::new()),
        7 => *protocols = Some(vec![cnp::Protocol::default()]),
        8 => {
            *protocols = tcp(cnp::Port {
                number: Some(0),
                range: None,
            });
        }
        9 => {
            let range = cnp::PortRange { start: 80, end: 79 };
            *protocols = tcp(cnp::Port {
                number: None,
                range: Some(range),
            });
        }
        10 if in_ingress => peers.push(peer(&|peer| peer.networks = vec!["10.0.0.0/8".to_owned()])),
        _ => peers.push(peer(&|peer| peer.domain_names = vec!["-.com".to_owned()])),
    }
    true
}
