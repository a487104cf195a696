//! Cluster addresses of services: each has its own, from one range, for as long as it exists.
//!
//! Nothing carries traffic to these addresses yet, and whoever gets one is told.

use std::{collections::HashSet, net::Ipv4Addr, str::FromStr};

use api::resources::Resource;
use control_store::ListOptions;
use control_wire::{Cause, Status};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use tokio::sync::MutexGuard;

use crate::{
    Server,
    objects::{self, metadata_text},
    write::store_failure,
};

/// Addresses that services get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceRange(Ipv4Net);

/// A text that is no range for services.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no range for services: it must be an IPv4 CIDR such as 10.96.0.0/16, of /12 to /28")]
pub struct ServiceRangeError {
    text: String,
}

impl Default for ServiceRange {
    /// 10.96.0.0/16.
    fn default() -> Self {
        Self(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16))
    }
}

impl FromStr for ServiceRange {
    type Err = ServiceRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let net: Option<Ipv4Net> = text.parse().ok();
        net.filter(|net| (12..=28).contains(&net.prefix_len()) && net.trunc() == *net)
            .map(Self)
            .ok_or_else(|| ServiceRangeError {
                text: text.to_owned(),
            })
    }
}

impl std::fmt::Display for ServiceRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl ServiceRange {
    /// Whether a service can have the address.
    fn has(self, address: Ipv4Addr) -> bool {
        self.0.contains(&address) && address != self.0.network() && address != self.0.broadcast()
    }

    /// An address that nobody has; `seed` says where to begin, so that one which just became free is not given
    /// again at once.
    fn free(self, taken: &HashSet<Ipv4Addr>, seed: u32) -> Option<Ipv4Addr> {
        let first = u32::from(self.0.network()) + 1;
        let count = u32::from(self.0.broadcast()) - first;
        (0..count)
            .map(|step| Ipv4Addr::from(first + (seed % count + step) % count))
            .find(|address| !taken.contains(address))
    }
}

impl Server {
    /// Gives `service` the address that it has in `old`, the one that it asks for, or a free one; other kinds are
    /// left alone. What is returned keeps others from getting the same one until the service has been stored.
    pub(crate) async fn assign_cluster_address(
        &self,
        row: &'static Resource,
        old: Option<&Value>,
        service: &mut Value,
    ) -> Result<Option<MutexGuard<'_, ()>>, Status> {
        if (row.group, row.kind) != ("", "Service") {
            return Ok(None);
        }
        let had = old.map(cluster_address).unwrap_or_default();
        let kind = service["spec"]["type"].as_str().unwrap_or_default();
        if !matches!(kind, "" | "ClusterIP") {
            // A manifest that was applied when the service still had an address does not say that it goes.
            if !had.is_empty() && cluster_address(service) == had {
                set_address(service, None);
            }
            return Ok(None);
        }
        if cluster_address(service).is_empty() && !had.is_empty() {
            set_address(service, Some(had));
        }
        let asked = cluster_address(service);
        if asked == "None" || (!asked.is_empty() && asked == had) {
            return Ok(None);
        }
        let held = self.services.lock().await;
        let invalid = |value: &str, why: String| {
            let cause = Cause::invalid("spec.clusterIP", value, why);
            Err(Status::invalid(row, metadata_text(service, "name"), vec![cause]))
        };
        let taken = self.taken_addresses(row).await?;
        let range = self.service_range;
        if asked.is_empty() {
            let seed = metadata_text(service, "uid").bytes();
            let seed = seed.fold(0u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
            let Some(address) = range.free(&taken, seed) else {
                let why = format!("no address is left in {range}: delete services that are not needed");
                return invalid("", why);
            };
            set_address(service, Some(&address.to_string()));
            return Ok(Some(held));
        }
        match asked.parse::<Ipv4Addr>() {
            Ok(address) if range.has(address) && !taken.contains(&address) => Ok(Some(held)),
            Ok(address) if range.has(address) => invalid(
                asked,
                "another service has this address; leave the field out to get a free one".to_owned(),
            ),
            _ => invalid(
                asked,
                format!("must be None, or an address of {range}; leave the field out to get one"),
            ),
        }
    }

    async fn taken_addresses(&self, row: &Resource) -> Result<HashSet<Ipv4Addr>, Status> {
        let page = self
            .store
            .list(&objects::prefix(row, None), &ListOptions::default())
            .await
            .map_err(|error| store_failure(&error))?;
        let mut taken = HashSet::with_capacity(page.items.len());
        for stored in page.items {
            let service: Value = serde_json::from_slice(&stored.value).map_err(Status::internal)?;
            taken.extend(cluster_address(&service).parse::<Ipv4Addr>());
        }
        Ok(taken)
    }
}

/// What whoever makes a service should know, or changes what it is.
pub(crate) fn warnings(row: &Resource, old: Option<&Value>, service: &Value) -> Option<String> {
    if (row.group, row.kind) != ("", "Service") {
        return None;
    }
    let kind = |service: &Value| service["spec"]["type"].as_str().unwrap_or_default().to_owned();
    if old.is_some_and(|old| kind(old) == kind(service)) {
        return None;
    }
    match (kind(service).as_str(), cluster_address(service)) {
        ("ExternalName", _) => {
            Some("names of services are not served by this version: nothing will resolve this one".to_owned())
        }
        (_, "" | "None") => None,
        (_, address) => Some(format!(
            "traffic to the cluster address {address} is not carried by this version: nothing will answer there. \
             EndpointSlices and policies that name the service work; for traffic, use the addresses of its pods, or \
             clusterIP: None"
        )),
    }
}

fn cluster_address(service: &Value) -> &str {
    service
        .pointer("/spec/clusterIP")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn set_address(service: &mut Value, address: Option<&str>) {
    let spec = &mut service["spec"];
    if !spec.is_object() {
        *spec = json!({});
    }
    match (address, spec.as_object_mut()) {
        (Some(address), Some(spec)) => {
            spec.insert("clusterIP".to_owned(), json!(address));
            spec.insert("clusterIPs".to_owned(), json!([address]));
        }
        (None, Some(spec)) => {
            for field in [
                "clusterIP",
                "clusterIPs",
                "ipFamilies",
                "ipFamilyPolicy",
                "internalTrafficPolicy",
            ] {
                spec.remove(field);
            }
        }
        (_, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_give_each_address_once_and_never_their_edges() {
        let range: ServiceRange = "10.0.0.16/28".parse().unwrap();
        let mut taken = HashSet::new();
        for seed in 0..14 {
            let address = range.free(&taken, seed * 977).unwrap();
            assert!(range.has(address) && taken.insert(address), "{address}");
        }
        assert_eq!(range.free(&taken, 3), None);
        for edge in ["10.0.0.16", "10.0.0.31", "10.0.0.32"] {
            assert!(!range.has(edge.parse().unwrap()), "{edge}");
        }
        for bad in [
            "10.0.0.0/11",
            "10.0.0.0/29",
            "10.0.0.1/16",
            "fd00::/112",
            "10.0.0.0",
        ] {
            assert!(bad.parse::<ServiceRange>().is_err(), "{bad}");
        }
        assert_eq!(ServiceRange::default().to_string(), "10.96.0.0/16");
    }
}
