//! The interfaces by which the node reaches others, and the address it is known by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressScope},
        route::{RouteAttribute, RouteMessage},
    },
};

use crate::{LINK_PREFIX, NetworkError, links::Links, links::failed};

/// Smallest MTU an IPv4 host must take, and the usual one where no uplink says otherwise.
const DEFAULT_MTU: u32 = 1500;

/// Every interface with a global address that is not a pod's.
pub(crate) struct Uplinks {
    /// Those with an IPv4 address.
    pub(crate) names: Vec<String>,
    /// Those with an IPv6 address.
    pub(crate) names6: Vec<String>,
    /// Address on the interface of the default route, or else the first one found.
    pub(crate) node_address: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub(crate) node_address6: Option<Ipv6Addr>,
    /// Smallest of the uplinks.
    pub(crate) mtu: u32,
}

impl Uplinks {
    pub(crate) async fn read(links: &Links) -> Result<Self, NetworkError> {
        let default4 = default_route_index(links, AddressFamily::Inet).await?;
        let default6 = default_route_index(links, AddressFamily::Inet6).await?;
        let addresses: Vec<_> = links
            .handle()
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|source| failed("list addresses", "the node", source))?;
        let mut uplinks = Self {
            names: Vec::new(),
            names6: Vec::new(),
            node_address: None,
            node_address6: None,
            mtu: DEFAULT_MTU,
        };
        let mut smallest_mtu = None;
        for (index, name, mtu) in links.all().await? {
            if name == "lo" || name.starts_with(LINK_PREFIX) {
                continue;
            }
            let global = addresses
                .iter()
                .filter(|a| a.header.index == index && a.header.scope == AddressScope::Universe);
            let attributes = || global.clone().flat_map(|a| &a.attributes);
            let address = attributes().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            });
            // IPv6 tells a local address of its own only where there is a peer.
            let address6 = attributes().find_map(|attribute| match attribute {
                AddressAttribute::Address(IpAddr::V6(address)) => Some(*address),
                _ => None,
            });
            if let Some(address) = address {
                if uplinks.node_address.is_none() || default4 == Some(index) {
                    uplinks.node_address = Some(address);
                }
                uplinks.names.push(name.clone());
            }
            if let Some(address) = address6 {
                if uplinks.node_address6.is_none() || default6 == Some(index) {
                    uplinks.node_address6 = Some(address);
                }
                uplinks.names6.push(name);
            }
            if address.is_some() || address6.is_some() {
                smallest_mtu = Some(smallest_mtu.map_or(mtu, |smallest: u32| smallest.min(mtu)));
            }
        }
        uplinks.mtu = smallest_mtu.unwrap_or(DEFAULT_MTU);
        Ok(uplinks)
    }
}

/// Interface of the family's default route with the lowest metric.
async fn default_route_index(links: &Links, family: AddressFamily) -> Result<Option<u32>, NetworkError> {
    let asked = match family {
        AddressFamily::Inet6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        _ => RouteMessageBuilder::<Ipv4Addr>::new().build(),
    };
    let routes: Vec<RouteMessage> = links
        .handle()
        .route()
        .get(asked)
        .execute()
        .try_collect()
        .await
        .map_err(|source| failed("list routes", "the node", source))?;
    let is_default = |route: &&RouteMessage| {
        route.header.address_family == family && route.header.destination_prefix_length == 0
    };
    let attribute = |route: &RouteMessage, pick: fn(&RouteAttribute) -> Option<u32>| {
        route.attributes.iter().find_map(pick)
    };
    let metric = |route: &&RouteMessage| {
        attribute(route, |a| {
            if let RouteAttribute::Priority(metric) = a {
                Some(*metric)
            } else {
                None
            }
        })
    };
    let best = routes.iter().filter(is_default).min_by_key(metric);
    Ok(best.and_then(|route| {
        attribute(route, |a| {
            if let RouteAttribute::Oif(index) = a {
                Some(*index)
            } else {
                None
            }
        })
    }))
}
