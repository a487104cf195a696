//! Contents of the files by which a pod finds names: `/etc/hosts` and `/etc/resolv.conf`. Pure.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

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

/// `/etc/resolv.conf` of a pod from the node's: names are looked for in the same domains, and asked of the node.
pub fn resolv_conf(of_node: &str, name_service: Ipv4Addr) -> String {
    let mut text = format!("# Written by Palisade.\nnameserver {name_service}\n");
    for line in lines(of_node) {
        let mut words = line.split_whitespace();
        if let (Some("search" | "options"), Some(_)) = (words.next(), words.next()) {
            let _infallible = writeln!(text, "{}", line.trim());
        }
    }
    text
}

/// The resolvers that the node itself asks, in order. Those with a zone (`fe80::1%eth0`) are left out.
pub fn nameservers(of_node: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("nameserver"), Some(server)) => server.parse().ok(),
            _ => None,
        }
    };
    lines(of_node).filter_map(server).collect()
}

fn lines(of_node: &str) -> impl Iterator<Item = &str> {
    of_node.get(..MAX_RESOLV_CONF_BYTES).unwrap_or(of_node).lines()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_ask_the_node_and_the_node_asks_its_own() {
        let node = "nameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nsearch lab.test\noptions edns0\n; x\n";
        let pod = resolv_conf(node, Ipv4Addr::new(169, 254, 1, 1));
        assert_eq!(
            pod.lines().skip(1).collect::<Vec<_>>(),
            ["nameserver 169.254.1.1", "search lab.test", "options edns0"]
        );
        let servers: Vec<String> = nameservers(node).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["127.0.0.53", "192.0.2.53"]);
    }

    #[test]
    fn hosts_names_the_pod() {
        let addresses = ["10.88.0.9".parse().unwrap(), "fd00::9".parse().unwrap()];
        assert!(hosts("web-0", &addresses).ends_with("\n10.88.0.9\tweb-0\nfd00::9\tweb-0\n"));
    }
}
