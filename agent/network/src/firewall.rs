//! The nftables table `inet palisade`: masquerade for what leaves the node, and guards for the forwarding that
//! we switched on. Policy is not here; the packet programs judge it.
//!
//! The packet programs judge a pod's peer by its address, and see only the pods' own links. So no other link
//! may bring a packet that claims a pod's address, to a pod or to the node itself, which would answer the pod; and none may carry
//! away what is meant for an address that no pod has at the moment. Nor may any claim an address of the node itself, whose word pods take without asking policy:
//! for IPv4 the kernel sees to that, for IPv6 it is done here. Link-local addresses are the node's neighbours, above all a cloud's metadata
//! service, which hands out the node's identity: pods reach nothing there but the node's own name service, which
//! nobody else reaches.
//!
//! Between pods of the node nothing is translated, and the packet programs track every connection themselves. So the
//! kernel's own tracking, which masquerade switches on for all of the machine, is told to leave that traffic alone.
//!
//! Ports of the node that lead to pods are translated here (`host_ports`), with the source as it was, so that the packet
//! programs judge who really asks. Only what the node says to its own loopback gets the node's address as its source: a
//! loopback address cannot leave. For pods with such ports the kernel lets the loopback be routed to their links; what comes
//! from a pod and names a loopback address itself is dropped before anything is translated.
//!
//! The table is replaced in one transaction at the agent's start, and whenever somebody else has removed or changed it
//! (`table`). Two chains of it change with pods: `published` and `tracked`. Pure: here is only what it says.

use std::{fmt::Write as _, net::Ipv4Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::{GATEWAY, LINK_PREFIX};

/// What the table is about.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// Addresses of pods.
    pub pods: Ipv4Net,
    /// Their IPv6 addresses, when they have any.
    pub pods6: Option<Ipv6Net>,
    /// Uplinks that did not forward IPv4 before us.
    pub opened: &'a [String],
    /// Uplinks that did not forward IPv6 before us.
    pub opened6: &'a [String],
    /// Address of the node as its pods see it.
    pub node: Ipv4Addr,
    /// Rules of the chains `published` and `tracked`.
    pub host_ports: (&'a [String], &'a [String]),
}

/// The whole table as `nft -f` reads it: one transaction.
pub fn ruleset(scope: Scope<'_>) -> String {
    let (pods, node) = (scope.pods, scope.node);
    let lines = |rules: &[String]| -> String { rules.iter().map(|rule| format!("    {rule}\n")).collect() };
    let (published, tracked) = (lines(scope.host_ports.0), lines(scope.host_ports.1));
    let mut text = String::from("add table inet palisade\ndelete table inet palisade\n");
    let mut guard = String::new();
    for (family, uplinks) in [("ipv4", scope.opened), ("ipv6", scope.opened6)] {
        for uplink in uplinks {
            // What did not pass through this machine before Palisade does not pass now, pods apart.
            let _infallible = writeln!(
                guard,
                "    meta nfproto {family} iifname {} oifname != \"{LINK_PREFIX}*\" counter drop",
                quoted(uplink)
            );
        }
    }
    let (masquerade6, claims6, notrack6, forward6) = match scope.pods6 {
        Some(pods) => (
            format!(
                "    ip6 saddr {pods} ip6 daddr != {pods} oifname != \"{LINK_PREFIX}*\" counter masquerade\n"
            ),
            format!("    {NO_PODS_LINK} ip6 saddr {pods} counter drop\n"),
            format!("    iifname \"{LINK_PREFIX}*\" ip6 saddr {pods} ip6 daddr {pods} notrack\n"),
            // Unlike IPv4, IPv6 has no setting by which the kernel checks whence a source address came.
            format!(
                "    iifname \"{LINK_PREFIX}*\" ip6 saddr != {pods} counter drop
    iifname \"{LINK_PREFIX}*\" oifname != \"{LINK_PREFIX}*\" ip6 daddr {pods} counter drop
    iifname \"{LINK_PREFIX}*\" ip6 daddr {{ {METADATA6} }} counter drop\n"
            ),
        ),
        None => (
            String::new(),
            String::new(),
            String::new(),
            format!("    iifname \"{LINK_PREFIX}*\" meta nfproto ipv6 counter drop\n"),
        ),
    };
    let _infallible = write!(
        text,
        "table inet palisade {{
  chain published {{
{published}  }}
  chain tracked {{
{tracked}  }}
  chain dstnat {{
    type nat hook prerouting priority dstnat; policy accept;
    {TO_THE_NODE} jump published
    meta nfproto ipv6 fib daddr type local jump published
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    {TO_THE_NODE} jump published
    meta nfproto ipv6 fib daddr type local jump published
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"{LINK_PREFIX}*\" ip saddr 127.0.0.0/8 counter snat ip to {node}
    ip saddr {pods} ip daddr != {pods} oifname != \"{LINK_PREFIX}*\" counter masquerade
{masquerade6}  }}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname \"{LINK_PREFIX}*\" ip daddr 127.0.0.0/8 counter drop
    {NO_PODS_LINK} ip saddr {pods} counter drop
{claims6}    iifname != \"lo\" meta nfproto ipv6 fib saddr type local counter drop
    jump tracked
    iifname \"{LINK_PREFIX}*\" ip saddr {pods} ip daddr {pods} notrack
{notrack6}  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname \"{LINK_PREFIX}*\" oifname != \"{LINK_PREFIX}*\" ip daddr {pods} counter drop
    iifname \"{LINK_PREFIX}*\" ip daddr 169.254.0.0/16 counter drop
{forward6}{guard}  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname != \"{LINK_PREFIX}*\" ip daddr {GATEWAY} counter drop
  }}
}}
"
    );
    text
}

/// What comes from elsewhere: neither from a pod nor from the node itself.
const NO_PODS_LINK: &str = "iifname != \"pal*\" iifname != \"lo\"";

/// What is meant for the node by IPv4. The pods' name service is not: a pod with port 53 of the node does not answer for it.
const TO_THE_NODE: &str = "ip daddr != 169.254.1.1 fib daddr type local";

/// Where IPv6 has what IPv4 has at 169.254.0.0/16: link-local, and the unique local ranges in which clouds keep
/// their metadata services (Amazon and Google document them).
const METADATA6: &str = "fe80::/10, fd00:ec2::/32, fd20:ce::/32";

/// Interface names may hold any byte but `/` and white space; what nft would read as syntax is replaced by
/// its wildcard, so the guard covers more rather than less.
fn quoted(name: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | ':');
    let plain: String = name.chars().take_while(|c| safe(*c)).collect();
    if plain.len() == name.len() {
        format!("\"{plain}\"")
    } else {
        format!("\"{plain}*\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(opened: &[String]) -> Scope<'_> {
        Scope {
            pods: "10.88.0.0/16".parse().unwrap(),
            pods6: None,
            opened,
            opened6: &[],
            node: Ipv4Addr::new(192, 0, 2, 1),
            host_ports: (&[], &[]),
        }
    }

    #[test]
    fn ports_of_the_node_are_translated_but_for_the_name_service_and_loopback_stays_the_nodes() {
        let (published, tracked) = (["tcp dport 1 x".to_owned()], ["y accept".to_owned()]);
        let text = ruleset(Scope {
            host_ports: (&published, &tracked),
            ..scope(&[])
        });
        assert!(
            text.contains("chain published {\n    tcp dport 1 x\n  }"),
            "{text}"
        );
        assert_eq!(
            text.matches(&format!(
                "ip daddr != {GATEWAY} fib daddr type local jump published"
            ))
            .count(),
            2
        );
        let raw = text.split("priority raw").nth(1).unwrap();
        let order = ["ip daddr 127.0.0.0/8 counter drop", "jump tracked", "notrack"]
            .map(|rule| raw.find(rule).unwrap());
        assert!(order.is_sorted(), "{raw}");
        assert!(text.contains("oifname \"pal*\" ip saddr 127.0.0.0/8 counter snat ip to 192.0.2.1"));
    }

    #[test]
    fn both_families_have_the_same_guards() {
        let four = ruleset(scope(&[]));
        assert!(four.contains("iifname \"pal*\" meta nfproto ipv6 counter drop"));
        assert!(!four.contains("ip6"));
        let opened6 = ["eth0".to_owned()];
        let both = ruleset(Scope {
            pods6: Some("fd00:88::/64".parse().unwrap()),
            opened6: &opened6,
            ..scope(&[])
        });
        for rule in [
            "ip6 saddr fd00:88::/64 ip6 daddr != fd00:88::/64 oifname != \"pal*\" counter masquerade",
            "iifname \"pal*\" ip6 saddr fd00:88::/64 ip6 daddr fd00:88::/64 notrack",
            "iifname \"pal*\" ip6 saddr != fd00:88::/64 counter drop",
            "iifname != \"pal*\" iifname != \"lo\" ip6 saddr fd00:88::/64 counter drop",
            "iifname \"pal*\" oifname != \"pal*\" ip6 daddr fd00:88::/64 counter drop",
            "meta nfproto ipv6 iifname \"eth0\" oifname != \"pal*\" counter drop",
        ] {
            assert!(both.contains(rule), "{rule} is not in {both}");
        }
        assert!(!both.contains("nfproto ipv6 counter drop"));
    }

    #[test]
    fn guards_only_uplinks_that_we_opened() {
        let none = ruleset(scope(&[]));
        assert!(none.contains("ip saddr 10.88.0.0/16 ip daddr != 10.88.0.0/16"));
        assert!(!none.contains("iifname \"eth0\""));
        assert!(
            ruleset(scope(&["eth0".to_owned()]))
                .contains("nfproto ipv4 iifname \"eth0\" oifname != \"pal*\" counter drop")
        );
    }

    #[test]
    fn only_what_goes_from_pod_to_pod_is_not_tracked() {
        let text = ruleset(scope(&[]));
        let rules: Vec<_> = text.lines().filter(|line| line.contains("notrack")).collect();
        assert_eq!(
            rules,
            ["    iifname \"pal*\" ip saddr 10.88.0.0/16 ip daddr 10.88.0.0/16 notrack"]
        );
    }

    #[test]
    fn pods_addresses_belong_to_pods_links() {
        let text = ruleset(scope(&[]));
        // Before it is known whether a packet is forwarded or the node's own.
        let raw = text
            .split("priority raw")
            .nth(1)
            .unwrap()
            .split('}')
            .next()
            .unwrap();
        assert!(raw.contains("iifname != \"pal*\" iifname != \"lo\" ip saddr 10.88.0.0/16 counter drop"));
        assert!(text.contains("iifname \"pal*\" oifname != \"pal*\" ip daddr 10.88.0.0/16 counter drop"));
        assert!(text.contains("iifname \"pal*\" ip daddr 169.254.0.0/16 counter drop"));
        assert!(text.contains("iifname != \"pal*\" ip daddr 169.254.1.1 counter drop"));
    }

    #[test]
    fn interface_names_cannot_become_syntax() {
        assert_eq!(quoted("eth0.5"), "\"eth0.5\"");
        assert_eq!(quoted("a\" accept"), "\"a*\"");
    }
}
