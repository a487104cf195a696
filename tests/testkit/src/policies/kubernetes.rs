//! NetworkPolicy of Kubernetes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1 as meta, util::intstr::IntOrString},
};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::pools::{NAMESPACES, PORT_NAMES, PORTS, bad_selector, label_selector, net};

/// A policy of which every field is valid.
pub fn valid_network_policy() -> impl Strategy<Value = NetworkPolicy> {
    network_policy(0)
}

/// `bad` in ten policies, on average, have a field that is not valid.
pub(super) fn network_policy(bad: u32) -> impl Strategy<Value = NetworkPolicy> {
    let types = prop_oneof![
        3 => Just(None),
        2 => Just(Some(vec!["Ingress"])),
        2 => Just(Some(vec!["Egress"])),
        4 => Just(Some(vec!["Ingress", "Egress"])),
    ];
    let rules = || {
        option::weighted(
            0.8,
            vec(
                (option::of(vec(peer(), 0..3)), option::of(vec(port(), 0..4))),
                0..3,
            ),
        )
    };
    let damage =
        prop_oneof![(10 - bad) => Just(None), bad => any::<(u8, prop::sample::Index)>().prop_map(Some)];
    (
        select(NAMESPACES.to_vec()),
        label_selector(),
        types,
        rules(),
        rules(),
        damage,
    )
        .prop_map(|(namespace, pod_selector, types, ingress, egress, damage)| {
            let ingress = ingress.map(|rules| {
                rules
                    .into_iter()
                    .map(|(from, ports)| NetworkPolicyIngressRule { from, ports })
                    .collect()
            });
            let egress = egress.map(|rules| {
                rules
                    .into_iter()
                    .map(|(to, ports)| NetworkPolicyEgressRule { to, ports })
                    .collect()
            });
            let mut policy = NetworkPolicy {
                metadata: meta::ObjectMeta {
                    namespace: Some(namespace.to_owned()),
                    ..Default::default()
                },
                spec: Some(NetworkPolicySpec {
                    pod_selector: Some(pod_selector),
                    policy_types: types.map(|types| types.into_iter().map(str::to_owned).collect()),
                    ingress,
                    egress,
                }),
            };
            if let Some((kind, place)) = damage {
                break_field(&mut policy, kind, place);
            }
            policy
        })
}

/// Makes one field of a policy invalid. `kind` says which sort of field, or the next sort that the policy has;
/// `place` says which of those there are.
pub fn break_field(policy: &mut NetworkPolicy, kind: u8, place: prop::sample::Index) {
    let spec = policy.spec.get_or_insert_default();
    let kinds = (0..BREAKABLE).map(|next| (kind % BREAKABLE + next) % BREAKABLE);
    for kind in kinds {
        if break_kind(spec, kind, place) {
            return;
        }
    }
}

/// Sorts of fields that [`break_kind`] can break; the first two are in every policy.
const BREAKABLE: u8 = 12;

/// Returns whether there was such a field.
fn break_kind(spec: &mut NetworkPolicySpec, kind: u8, place: prop::sample::Index) -> bool {
    let ingress = spec
        .ingress
        .iter_mut()
        .flatten()
        .map(|rule| (&mut rule.from, &mut rule.ports));
    let egress = spec
        .egress
        .iter_mut()
        .flatten()
        .map(|rule| (&mut rule.to, &mut rule.ports));
    let (peers, ports): (Vec<_>, Vec<_>) = ingress.chain(egress).unzip();
    let mut peers: Vec<_> = peers.into_iter().flatten().flatten().collect();
    let mut ports: Vec<_> = ports.into_iter().flatten().flatten().collect();
    let port = (!ports.is_empty())
        .then(|| place.index(ports.len()))
        .map(|i| &mut *ports[i]);
    let peer = (!peers.is_empty())
        .then(|| place.index(peers.len()))
        .map(|i| &mut *peers[i]);
    match (kind, peer, port) {
        (0, _, _) => spec.pod_selector = Some(bad_selector()),
        (1, _, _) => spec.policy_types = Some(vec!["Both".to_owned()]),
        (2, Some(peer), _) => *peer = NetworkPolicyPeer::default(),
        (3, Some(peer), _) => {
            peer.ip_block = Some(IPBlock {
                cidr: "10.0.0.0/8".to_owned(),
                except: None,
            });
            peer.pod_selector = Some(meta::LabelSelector::default());
        }
        (4, Some(peer), _) => {
            *peer = NetworkPolicyPeer {
                namespace_selector: Some(bad_selector()),
                ..Default::default()
            };
        }
        (5, Some(peer), _) => {
            let block = IPBlock {
                cidr: "010.0.0.0/8".to_owned(),
                except: None,
            };
            *peer = NetworkPolicyPeer {
                ip_block: Some(block),
                ..Default::default()
            };
        }
        (6, Some(peer), _) => {
            let Some(block) = &mut peer.ip_block else {
                return false;
            };
            block.except.get_or_insert_default().push("10.0.0.1".to_owned());
        }
        (7, Some(peer), _) => {
            let block = IPBlock {
                cidr: "::ffff:10.0.0.0/104".to_owned(),
                except: None,
            };
            *peer = NetworkPolicyPeer {
                ip_block: Some(block),
                ..Default::default()
            };
        }
        (8, _, Some(port)) => port.protocol = Some("tcp".to_owned()),
        (9, _, Some(port)) => port.port = Some(IntOrString::Int(65536 + 80)),
        (10, _, Some(port)) => port.port = Some(IntOrString::String("80".to_owned())),
        (11, _, Some(port)) => {
            port.port = Some(IntOrString::Int(80));
            port.end_port = Some(79);
        }
        _ => return false,
    }
    true
}

fn peer() -> impl Strategy<Value = NetworkPolicyPeer> {
    let selectors =
        (option::of(label_selector()), option::of(label_selector())).prop_map(|(pods, namespaces)| {
            NetworkPolicyPeer {
                // At least one is needed.
                pod_selector: pods.or_else(|| namespaces.is_none().then(meta::LabelSelector::default)),
                namespace_selector: namespaces,
                ip_block: None,
            }
        });
    let block = (net(), vec((any::<u8>(), any::<u128>()), 0..3)).prop_map(|(cidr, except)| {
        let except: Vec<String> = except
            .into_iter()
            .filter_map(|(length, bits)| part_of(cidr, length, bits))
            .map(|net| net.to_string())
            .collect();
        let except = (!except.is_empty()).then_some(except);
        let ip_block = Some(IPBlock {
            cidr: cidr.to_string(),
            except,
        });
        NetworkPolicyPeer {
            ip_block,
            ..Default::default()
        }
    });
    prop_oneof![3 => selectors, 2 => block]
}

/// A smaller part of `net`, near its beginning where the pods are. Nothing if `net` is a single address.
fn part_of(net: IpNet, length: u8, bits: u128) -> Option<IpNet> {
    let room = net.max_prefix_len() - net.prefix_len();
    let length = net.prefix_len() + 1 + length.checked_rem(room)?;
    let bits = bits % 32;
    let address: IpAddr = match net.network() {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address) | (u32::try_from(bits).ok()?)).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) | bits).into(),
    };
    let part = IpNet::new(address, length).ok()?.trunc();
    net.contains(&part).then_some(part)
}

fn port() -> impl Strategy<Value = NetworkPolicyPort> {
    let protocol = || option::of(select(vec!["TCP", "UDP", "SCTP"]).prop_map(str::to_owned));
    let number = || select(PORTS.to_vec()).prop_map(|port| i32::from(port.max(1)));
    let range = (number(), option::of(number()), protocol()).prop_map(|(a, b, protocol)| {
        let first = b.map_or(a, |b| a.min(b));
        NetworkPolicyPort {
            port: Some(IntOrString::Int(first)),
            end_port: b.map(|b| a.max(b)),
            protocol,
        }
    });
    let named = (select(PORT_NAMES.to_vec()), protocol()).prop_map(|(name, protocol)| NetworkPolicyPort {
        port: Some(IntOrString::String(name.to_owned())),
        end_port: None,
        protocol,
    });
    let whole = protocol().prop_map(|protocol| NetworkPolicyPort {
        protocol,
        ..Default::default()
    });
    prop_oneof![5 => range, 3 => named, 1 => whole]
}
