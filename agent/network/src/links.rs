//! Links, routes and neighbours of the node's own namespace, through one netlink socket.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
};

use futures::TryStreamExt as _;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::AddressScope,
        link::{InfoData, InfoVeth, LinkAttribute},
        route::{RouteMessage, RouteScope},
    },
};

use crate::{Attachment, GATEWAY, NetworkError, NodeAddresses};

/// Name of the interface inside every pod.
pub(crate) const POD_LINK: &str = "eth0";

/// The node's links.
pub(crate) struct Links {
    handle: Handle,
}

/// A veth pair to be made: one end here, the other in a pod's namespace from its first moment.
pub(crate) struct Pair<'a> {
    pub(crate) host: &'a str,
    pub(crate) host_mac: [u8; 6],
    pub(crate) pod_mac: [u8; 6],
    pub(crate) mtu: u32,
    pub(crate) namespace: &'a File,
}

impl Links {
    /// Opens a socket in the network namespace of the calling thread and serves it from a task.
    pub(crate) fn connect() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Makes the pair, host side down, and returns the index of the host side.
    pub(crate) async fn create(&self, pair: &Pair<'_>) -> Result<u32, NetworkError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(POD_LINK)
            .mtu(pair.mtu)
            .address(pair.pod_mac.to_vec())
            .setns_by_fd(pair.namespace.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new(pair.host, POD_LINK)
            .mtu(pair.mtu)
            .address(pair.host_mac.to_vec())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(|source| failed("create a veth pair", pair.host, source))?;
        self.index(pair.host)
            .await?
            .ok_or_else(|| NetworkError::LinkGone {
                link: pair.host.to_owned(),
            })
    }

    /// Brings the host side up, with the pod's addresses behind it. The neighbour entry comes first: a packet
    /// sent in between would otherwise make the kernel ask for an address that nobody answers.
    pub(crate) async fn bring_up(
        &self,
        attachment: &Attachment,
        node: NodeAddresses,
    ) -> Result<(), NetworkError> {
        let Attachment {
            link, ifindex, mac, ..
        } = attachment;
        self.handle
            .link()
            .set(LinkUnspec::new_with_index(*ifindex).up().build())
            .execute()
            .await
            .map_err(|source| failed("bring up the host side", link, source))?;
        // Of the link's own scope: the node never speaks as this address anywhere else.
        let mut name_service = self
            .handle
            .address()
            .add(*ifindex, IpAddr::V4(GATEWAY), 32)
            .replace();
        name_service.message_mut().header.scope = AddressScope::Link;
        name_service
            .execute()
            .await
            .map_err(|source| failed("add the name service's address", link, source))?;
        for address in attachment.addresses() {
            self.handle
                .neighbours()
                .add(*ifindex, address)
                .link_layer_address(mac)
                .replace()
                .execute()
                .await
                .map_err(|source| failed("add the pod's neighbour entry", link, source))?;
            self.handle
                .route()
                .add(route_to(address, *ifindex, node))
                .replace()
                .execute()
                .await
                .map_err(|source| failed("route the pod's address", link, source))?;
        }
        Ok(())
    }

    /// Index of a link, or `None` when there is no such link.
    pub(crate) async fn index(&self, name: &str) -> Result<Option<u32>, NetworkError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.map(|message| message.header.index)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(source) => Err(failed("look up an interface", name, source)),
        }
    }

    /// Deletes a link and, being half of a pair, the other half. Idempotent.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), NetworkError> {
        let Some(index) = self.index(name).await? else {
            return Ok(());
        };
        match self.handle.link().del(index).execute().await {
            Err(error) if !is_missing(&error) => Err(failed("delete an interface", name, error)),
            _ => Ok(()),
        }
    }

    /// Every link as (index, name, MTU).
    pub(crate) async fn all(&self) -> Result<Vec<(u32, String, u32)>, NetworkError> {
        let listed: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|source| failed("list interfaces", "the node", source))?;
        let describe = |message: rtnetlink::packet_route::link::LinkMessage| {
            let mut name = String::new();
            let mut mtu = 0;
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(value) => name = value,
                    LinkAttribute::Mtu(value) => mtu = value,
                    _ => {}
                }
            }
            (message.header.index, name, mtu)
        };
        Ok(listed.into_iter().map(describe).collect())
    }
}

/// The way to a pod, and the address as which the node itself goes it. A node without an IPv6 address of its
/// own forwards to pods all the same.
fn route_to(pod: IpAddr, ifindex: u32, node: NodeAddresses) -> RouteMessage {
    match pod {
        IpAddr::V4(pod) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(pod, 32)
            .output_interface(ifindex)
            .scope(RouteScope::Link)
            .pref_source(node.v4)
            .build(),
        IpAddr::V6(pod) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(pod, 128)
                .output_interface(ifindex);
            match node.v6 {
                Some(address) => route.pref_source(address).build(),
                None => route.build(),
            }
        }
    }
}

pub(crate) fn failed(operation: &'static str, link: &str, source: rtnetlink::Error) -> NetworkError {
    NetworkError::Netlink {
        operation,
        link: link.to_owned(),
        source,
    }
}

/// The kernel says `ENODEV` for a name that no interface has, and for one that just went away.
fn is_missing(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message)
        if message.raw_code() == -(nix::errno::Errno::ENODEV as i32))
}
