//! What once went wrong, each as the smallest case that shows it. Beside them stand the seeds of
//! `proptest-regressions/`, and the datapath's, which need a kernel (`ebpf/loader/tests/it`):
//!
//! | What went wrong | Test |
//! |---|---|
//! | Neighbour discovery passed where policy allowed everything, so a pod could pass for another one on its link | `corpus::neighbour_discovery_is_denied` |
//! | Flows of a pod went on after the pod at their other end was gone (1b62bc4) | `restart::others_forget_their_flows_with_a_detached_endpoint` |
//! | An untracked entry that decides nothing hid what the tracked tables say (bfa344f) | `host::untracked_rules_come_first_and_track_nothing` |
//! | A class of a group's first generation was taken for another one's (2441317) | `addresses::an_agent_that_begins_in_the_middle_of_a_group_knows_what_it_means` |
//! | A class that is split off from another one was told apart by half of the endpoints (c448b25) | `splits::whatever_changes_everybody_is_judged_by_what_is_wanted` |
//! | A reset with any number ended a connection, a SYN on a live one forgot it (591f35f) | `tracking::a_spoofed_reset_ends_nothing`, `tracking::a_syn_on_a_live_connection_changes_nothing` |
//! | A change was planned by counts from before a sweep (6f705b7) | `restart::entries_that_nobody_can_ask_for_do_not_answer_for_others` |

use policies_ir::selector::Expression;
use serde_json::{Value, json};

use crate::lab::{DB, Lab, OUTSIDE, PAY, WEB, calico, global, set, tier};

/// An allowance in a tier that nobody defined was judged before the denial of a tier without order, by its name.
#[test]
fn a_tier_that_nobody_defined_comes_last() {
    let lab = Lab::new(&[
        tier("platform", None, "Deny"),
        global(
            "denies",
            &json!({"tier": "platform", "ingress": [{"action": "Deny"}]}),
        ),
        global(
            "allows",
            &json!({"tier": "nowhere", "ingress": [{"action": "Allow"}]}),
        ),
    ]);
    assert!(!lab.takes(WEB, OUTSIDE));
}

/// A policy with a type that nobody knows kept its allowances (fe764cf).
#[test]
fn an_unknown_policy_type_allows_nothing() {
    let lab = Lab::new(&[
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"podSelector": {}, "policyTypes": ["Both"], "ingress": [{}], "egress": [{}]}}),
    ]);
    assert!(!lab.takes(WEB, OUTSIDE) && !lab.opens(WEB, OUTSIDE));
}

/// A policy that could not be understood denied at the end of its tier, which a later policy came before (6f29f06).
#[test]
fn what_cannot_be_understood_denies_by_rules() {
    let lab = Lab::new(&[
        global("broken", &json!({"order": 1, "selector": "app =="})),
        global("later", &json!({"order": 2, "ingress": [{"action": "Allow"}]})),
    ]);
    assert!(!lab.takes(WEB, OUTSIDE));
}

/// Whoever labelled a pod as its namespace is labelled passed it off as one of another namespace (0ab8a28).
#[test]
fn labels_of_the_namespace_cannot_be_written_on_a_pod() {
    let allow = json!({"selector": "app == 'db'",
        "ingress": [{"action": "Allow", "source": {"namespaceSelector": "team == 'b'"}}]});
    let mut lab = Lab::new(&[global("p", &allow)]);
    let web = |member: &&mut policies_ir::cluster::Member| member.addresses.contains(&WEB.1.parse().unwrap());
    let web = lab.cluster.members.iter_mut().find(web).unwrap();
    web.workload.labels.insert("pcns.team".to_owned(), "b".to_owned());
    assert!(!lab.takes(DB, WEB.1));
    assert!(lab.takes(DB, PAY.1));
}

/// Two interfaces of one node with its address were taken for two who contest it (0ab8a28).
#[test]
fn interfaces_of_one_node_do_not_contest_its_address() {
    const ADDRESS: &str = "10.0.0.253";
    let host = |name: &str, node: &str| {
        let spec = json!({"node": node, "interfaceName": name, "expectedIPs": [ADDRESS]});
        let mut host = calico("HostEndpoint", name, &spec);
        host["metadata"]["labels"] = json!({"role": "edge"});
        host
    };
    let allow = json!({"selector": "app == 'web'",
        "ingress": [{"action": "Allow", "source": {"selector": "role == 'edge'"}}]});
    let from = |nodes: [&str; 2]| {
        let hosts = [host("eth0", nodes[0]), host("eth1", nodes[1])];
        let objects: Vec<Value> = hosts.into_iter().chain([global("p", &allow)]).collect();
        Lab::new(&objects).takes(WEB, ADDRESS)
    };
    assert!(from(["there", "there"]));
    assert!(!from(["there", "elsewhere"]));
}

/// A denial of a set did not hold for the addresses of it that could not be read, and an allowance of all but the set
/// held for them (b23677b).
#[test]
fn a_set_of_unknown_extent_closes_what_depends_on_it() {
    let set = || {
        let spec = json!({"nets": ["10.0.0.0/33", "192.0.2.0/24"]});
        set("GlobalNetworkSet", "s", &json!({"kind": "bad"}), &spec)
    };
    let of_set = json!({"ingress": [
        {"action": "Deny", "source": {"selector": "kind == 'bad'"}}, {"action": "Allow"}]});
    let all_but = json!({"ingress": [{"action": "Allow", "source": {"notSelector": "kind == 'bad'"}}]});
    for spec in [of_set, all_but] {
        let lab = Lab::new(&[set(), global("p", &spec)]);
        assert!(!lab.takes(WEB, OUTSIDE), "{spec}");
    }
}

/// Who wrote a profile with the name of a namespace's decided for its pods (4ea6b39).
#[test]
fn the_profile_of_a_namespace_cannot_be_written() {
    let lab = Lab::new(&[calico(
        "Profile",
        "kns.shop",
        &json!({"ingress": [{"action": "Deny"}]}),
    )]);
    assert!(lab.takes(WEB, OUTSIDE));
    assert_eq!(lab.reported, ["Profile kns.shop: metadata.name"]);
}

/// An egress rule for a service without ports allowed every port of what is behind it (0ab8a28).
#[test]
fn a_service_without_ports_is_no_destination() {
    let spec = json!({"selector": "app == 'web'", "types": ["Egress"], "egress": [
        {"action": "Allow", "destination": {"services": {"name": "web", "namespace": "shop"}}}]});
    let lab = |port| Lab::new(&[global("p", &spec)]).with_service(&[(DB.1, port)]);
    assert!(!lab(None).opens(WEB, DB.1));
    assert!(lab(Some((6, 80))).opens(WEB, DB.1));
}

/// A rule that asks for the name of the endpoint itself held for every endpoint (6f29f06).
#[test]
fn an_endpoint_has_no_name_of_its_own() {
    let spec = json!({"ingress": [{"action": "Allow", "destination": {"domains": ["example.com"]}}]});
    let lab = Lab::new(&[global("p", &spec)]).with_name(WEB.1, "example.com");
    assert!(!lab.takes(WEB, OUTSIDE));
}

/// What is negated twice was written in a form that reads otherwise (74de21d).
#[test]
fn what_is_negated_twice_reads_as_it_is_written() {
    for text in ["!a != 'b'", "!!has(a)", "!(a not in {'b'})", "!!!a == 'b'"] {
        let read = Expression::parse(text).unwrap();
        assert_eq!(Expression::parse(&read.to_string()), Ok(read), "{text}");
    }
    let is_b = |key: &str| (key == "a").then_some("b");
    assert!(Expression::parse("!a != 'b'").unwrap().matches(&is_b));
}

/// What is wrong with a staged policy was told of the enforced one of its name (57f2a47).
#[test]
fn errors_of_a_staged_policy_are_its_own() {
    let lab = Lab::new(&[calico("StagedNetworkPolicy", "p", &json!({"selector": "app =="}))]);
    assert_eq!(lab.reported, ["StagedNetworkPolicy shop/p: spec.selector"]);
    assert!(lab.takes(WEB, OUTSIDE));
}

/// `all()` as a policy's selector for namespaces did not leave out what is in none (0ab8a28).
#[test]
fn all_namespaces_are_namespaces() {
    let host = json!({"node": "here", "interfaceName": "eth0", "expectedIPs": [crate::lab::HOST.1],
        "profiles": ["projectcalico-default-allow"]});
    let deny = json!({"namespaceSelector": "all()", "ingress": [{"action": "Deny"}]});
    let lab = Lab::new(&[calico("HostEndpoint", "here", &host), global("p", &deny)]);
    assert!(!lab.takes(WEB, OUTSIDE));
    assert!(lab.takes(crate::lab::HOST, OUTSIDE));
}
