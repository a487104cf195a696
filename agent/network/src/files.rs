//! Contents of the files by which a pod finds names: `/etc/hosts` and `/etc/resolv.conf`. Pure.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

/// Resolvers that glibc and musl ask; more are ignored by both.
const MAX_NAMESERVERS: usize = 3;

/// Longest resolver configuration that is read.
const MAX_RESOLV_CONF_BYTES: usize = 16 * 1024;

/// `/etc/hosts` of a pod.
pub fn hosts(hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = String::from(
        "# Written by Palisade.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    );
    for address in addresses {
        let _infallible = writeln!(text, "{address}\t{hostname}");
    }
    text
}

/// `/etc/resolv.conf` of a pod from the node's: resolvers on the node's loopback are left out, because that
/// address is the pod's own inside the pod.
pub fn resolv_conf(of_node: &str) -> String {
    let mut text = String::from("# Written by Palisade from the node's resolv.conf.\n");
    let mut nameservers = 0;
    let lines = of_node.get(..MAX_RESOLV_CONF_BYTES).unwrap_or(of_node).lines();
    for line in lines {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("nameserver"), Some(server)) => {
                let usable = server
                    .parse::<Ipv4Addr>()
                    .is_ok_and(|address| !address.is_loopback());
                if usable && nameservers < MAX_NAMESERVERS {
                    nameservers += 1;
                    let _infallible = writeln!(text, "nameserver {server}");
                }
            }
            (Some("search" | "options"), Some(_)) => {
                let _infallible = writeln!(text, "{}", line.trim());
            }
            _ => {}
        }
    }
    text
}

/// Whether a resolver configuration names a resolver that a pod could reach.
pub fn has_reachable_nameserver(resolv_conf: &str) -> bool {
    self::resolv_conf(resolv_conf)
        .lines()
        .any(|line| line.starts_with("nameserver "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_on_the_nodes_loopback_are_left_out() {
        let node = "nameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nsearch lab.test\noptions edns0\n; x\n";
        let pod = resolv_conf(node);
        assert_eq!(
            pod.lines().skip(1).collect::<Vec<_>>(),
            ["nameserver 192.0.2.53", "search lab.test", "options edns0"]
        );
        assert!(has_reachable_nameserver(node));
        assert!(!has_reachable_nameserver("nameserver 127.0.0.53\n"));
    }

    #[test]
    fn hosts_names_the_pod() {
        let addresses = ["10.88.0.9".parse().unwrap(), "fd00::9".parse().unwrap()];
        assert!(hosts("web-0", &addresses).ends_with("\n10.88.0.9\tweb-0\nfd00::9\tweb-0\n"));
    }
}
