//! The interfaces by which the node reaches others, and the address it is known by.

use std::net::{IpAddr, Ipv4Addr};

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

/// Every interface with a global IPv4 address that is not a pod's.
pub(crate) struct Uplinks {
    pub(crate) names: Vec<String>,
    /// Address on the interface of the default route, or else the first one found.
    pub(crate) node_address: Option<Ipv4Addr>,
    /// Smallest of the uplinks.
    pub(crate) mtu: u32,
}

impl Uplinks {
    pub(crate) async fn read(links: &Links) -> Result<Self, NetworkError> {
        let default_index = default_route_index(links).await?;
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
            node_address: None,
            mtu: DEFAULT_MTU,
        };
        let mut smallest_mtu = None;
        for (index, name, mtu) in links.all().await? {
            if name == "lo" || name.starts_with(LINK_PREFIX) {
                continue;
            }
            let address = addresses
                .iter()
                .filter(|a| a.header.index == index && a.header.scope == AddressScope::Universe)
                .flat_map(|a| &a.attributes)
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                    _ => None,
                });
            let Some(address) = address else { continue };
            if uplinks.node_address.is_none() || default_index == Some(index) {
                uplinks.node_address = Some(address);
            }
            smallest_mtu = Some(smallest_mtu.map_or(mtu, |smallest: u32| smallest.min(mtu)));
            uplinks.names.push(name);
        }
        uplinks.mtu = smallest_mtu.unwrap_or(DEFAULT_MTU);
        Ok(uplinks)
    }
}

/// Interface of the default route with the lowest metric.
async fn default_route_index(links: &Links) -> Result<Option<u32>, NetworkError> {
    let routes: Vec<RouteMessage> = links
        .handle()
        .route()
        .get(RouteMessageBuilder::<Ipv4Addr>::new().build())
        .execute()
        .try_collect()
        .await
        .map_err(|source| failed("list routes", "the node", source))?;
    let is_default = |route: &&RouteMessage| {
        route.header.address_family == AddressFamily::Inet && route.header.destination_prefix_length == 0
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
