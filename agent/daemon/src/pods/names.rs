//! The files by which a container finds names, as the pod wishes them. Pure.

use std::{collections::BTreeSet, fmt::Write as _, net::IpAddr};

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

use super::env;

/// Domain of the cluster: Kubernetes' default.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// `/etc/hosts`: the pod's own name, with its domain if it has a subdomain, and its aliases.
pub(super) fn hosts(pod: &Pod, addresses: &[IpAddr]) -> String {
    let spec = pod.spec.as_ref();
    let hostname = env::hostname(pod);
    let subdomain = spec
        .and_then(|spec| spec.subdomain.as_deref())
        .filter(|domain| !domain.is_empty());
    let own = match subdomain {
        Some(subdomain) => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            format!("{hostname}.{subdomain}.{namespace}.svc.{CLUSTER_DOMAIN}\t{hostname}")
        }
        None => hostname.to_owned(),
    };
    let mut text = agent_network::files::hosts(&own, addresses);
    let aliases = spec
        .and_then(|spec| spec.host_aliases.as_deref())
        .unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        let _infallible = writeln!(text, "{}\t{names}", alias.ip);
    }
    text
}

/// `/etc/resolv.conf`: `of_node`'s unless the pod wants none of it, and what the pod adds.
pub(super) fn resolv_conf(pod: &Pod, of_node: &str) -> String {
    let spec = pod.spec.as_ref();
    let own = spec.and_then(|spec| spec.dns_config.as_ref());
    let wants_none = spec.and_then(|spec| spec.dns_policy.as_deref()) == Some("None");
    match (wants_none, own) {
        (false, None) => of_node.to_owned(),
        (false, Some(own)) => Resolver::read(of_node).with(own).text(),
        (true, own) => {
            let own = own.cloned().unwrap_or_default();
            Resolver::default().with(&own).text()
        }
    }
}

/// What a resolver configuration says.
#[derive(Debug, Default)]
struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    /// Name, and the text of the option.
    options: Vec<(String, String)>,
}

impl Resolver {
    fn read(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.servers.extend(words.next().map(str::to_owned)),
                // The last line counts.
                Some("search") => resolver.searches = words.map(str::to_owned).collect(),
                Some("options") => {
                    for word in words {
                        let name = word.split_once(':').map_or(word, |(name, _)| name);
                        resolver.options.push((name.to_owned(), word.to_owned()));
                    }
                }
                _ => {}
            }
        }
        resolver
    }

    /// Kubernetes' rule: servers and domains are added, options of the pod replace those of the same name.
    fn with(mut self, own: &PodDNSConfig) -> Self {
        self.servers.extend(own.nameservers.iter().flatten().cloned());
        self.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            let text = match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            };
            self.options.retain(|(known, _)| *known != name);
            self.options.push((name, text));
        }
        self
    }

    fn text(&self) -> String {
        let mut text = String::from("# Written by Palisade.\n");
        let mut known = BTreeSet::new();
        for server in self.servers.iter().filter(|server| known.insert(server.as_str())) {
            let _infallible = writeln!(text, "nameserver {server}");
        }
        let mut known = BTreeSet::new();
        let searches: Vec<&str> = self.searches.iter().map(String::as_str).collect();
        let searches: Vec<&str> = searches
            .into_iter()
            .filter(|domain| known.insert(*domain))
            .collect();
        if !searches.is_empty() {
            let _infallible = writeln!(text, "search {}", searches.join(" "));
        }
        if !self.options.is_empty() {
            let options: Vec<&str> = self.options.iter().map(|(_, text)| text.as_str()).collect();
            let _infallible = writeln!(text, "options {}", options.join(" "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NODE: &str =
        "# Written by Palisade.\nnameserver 169.254.1.1\nsearch lab.test\noptions edns0 ndots:5\n";

    fn pod(spec: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn resolvers_combine_like_kubernetes() {
        let lines = |spec: Value| {
            let text = resolv_conf(&pod(&spec), NODE);
            text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
        };
        let own = json!({"nameservers": ["192.0.2.1"], "searches": ["a.test", "lab.test"],
                         "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]});
        assert_eq!(
            lines(json!({"containers": []})),
            [
                "nameserver 169.254.1.1",
                "search lab.test",
                "options edns0 ndots:5"
            ]
        );
        assert_eq!(
            lines(json!({"containers": [], "dnsConfig": own})),
            [
                "nameserver 169.254.1.1",
                "nameserver 192.0.2.1",
                "search lab.test a.test",
                "options edns0 ndots:2 rotate"
            ]
        );
        assert_eq!(
            lines(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": own})),
            [
                "nameserver 192.0.2.1",
                "search a.test lab.test",
                "options ndots:2 rotate"
            ]
        );
    }

    #[test]
    fn hosts_have_aliases_and_the_domain() {
        let spec = json!({"containers": [], "hostname": "h", "subdomain": "db",
                          "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["x.test", "y.test"]}]});
        let text = hosts(&pod(&spec), &["10.0.0.2".parse().unwrap()]);
        assert!(
            text.contains("\n10.0.0.2\th.db.shop.svc.cluster.local\th\n"),
            "{text}"
        );
        assert!(
            text.ends_with("\n# Entries added by HostAliases.\n192.0.2.9\tx.test\ty.test\n"),
            "{text}"
        );
    }
}
