//! The pod's side, configured from inside its network namespace.
//!
//! A thread belongs to one namespace for good, so each call uses a thread of its own and lets it die:
//! runtime workers never change theirs.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use futures::TryStreamExt as _;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{
    LinkUnspec, RouteMessageBuilder,
    packet_route::{
        address::AddressHeaderFlags,
        route::{RouteMessage, RouteScope},
    },
};
use tokio::sync::oneshot;

use crate::{GATEWAY, GATEWAY6, forwarding::QUIET_IPV6, links::POD_LINK};

/// Why a pod's network namespace could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The namespace is not there.
    #[error("cannot open the network namespace {path}")]
    Open {
        /// Where it was looked for.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A thread for it could not be made.
    #[error("cannot start a thread for the pod's network namespace")]
    Thread(#[source] std::io::Error),
    /// The thread could not enter it.
    #[error("cannot enter the pod's network namespace")]
    Enter(#[source] nix::errno::Errno),
    /// The thread ended without an answer.
    #[error("the thread that configured the pod's network namespace died")]
    Died,
    /// A kernel setting could not be written.
    #[error("cannot set {key} to {value} inside the pod")]
    Setting {
        /// Path below `/proc/sys/net`.
        key: String,
        /// The value.
        value: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused a change.
    #[error("cannot {operation} inside the pod")]
    Netlink {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
    /// The pod's interface is not there.
    #[error("the pod's namespace has no {link}")]
    NoLink {
        /// Its name.
        link: &'static str,
    },
}

/// Settings of every pod: as container engines have it, low ports and ping without capabilities, which are
/// harmless in a namespace that the pod has to itself.
const SETTINGS: &[(&str, &str)] = &[
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv4/ping_group_range", "0 2147483647"),
];

/// Opens a network namespace by path.
pub(crate) fn open(path: &Path) -> Result<File, NamespaceError> {
    File::open(path).map_err(|source| NamespaceError::Open {
        path: path.to_owned(),
        source,
    })
}

/// A pod without an IPv6 address has no IPv6 at all.
const WITHOUT_IPV6: &[(&str, &str)] = &[
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// Of two settings for duplicate address detection the higher counts, so the general one goes to zero too. The
/// address is usable at once, and nothing is sent to find out what the lease already says.
const WITH_IPV6: &[(&str, &str)] = &[
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
];

/// Gives `eth0` its addresses, routes and neighbours, and brings it and the loopback up.
pub(crate) async fn configure(
    namespace: File,
    addresses: Vec<IpAddr>,
    gateway_mac: [u8; 6],
) -> Result<(), NamespaceError> {
    let (answer, answered) = oneshot::channel();
    let work = move || {
        let result = enter_and_configure(&namespace, &addresses, gateway_mac);
        // Nobody waits any more when the caller was cancelled; the link is replaced at the next attempt.
        drop(answer.send(result));
    };
    std::thread::Builder::new()
        .name("pod-netns".to_owned())
        .spawn(work)
        .map_err(NamespaceError::Thread)?;
    answered.await.map_err(|_died| NamespaceError::Died)?
}

fn enter_and_configure(
    namespace: &File,
    addresses: &[IpAddr],
    gateway_mac: [u8; 6],
) -> Result<(), NamespaceError> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(NamespaceError::Enter)?;
    let ipv6 = addresses.iter().any(IpAddr::is_ipv6);
    for (key, value) in SETTINGS.iter().chain(if ipv6 { WITH_IPV6 } else { WITHOUT_IPV6 }) {
        set(key, value)?;
    }
    if ipv6 {
        for (key, value) in QUIET_IPV6 {
            set(&format!("ipv6/conf/{POD_LINK}/{key}"), value)?;
        }
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(NamespaceError::Thread)?
        .block_on(configure_links(addresses, gateway_mac))
}

async fn configure_links(addresses: &[IpAddr], gateway_mac: [u8; 6]) -> Result<(), NamespaceError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NamespaceError::Thread)?;
    tokio::spawn(connection);
    let failed = |operation| move |source| NamespaceError::Netlink { operation, source };

    let loopback = link_index(&handle, "lo").await?;
    let eth0 = link_index(&handle, POD_LINK).await?;
    // Without ARP there is no neighbour discovery either, nor the multicast groups that it takes, whose reports
    // would be the one thing that a silent pod sends.
    let quiet = LinkUnspec::new_with_index(eth0).arp(false).up();
    for up in [LinkUnspec::new_with_index(loopback).up(), quiet] {
        let up = up.build();
        handle
            .link()
            .set(up)
            .execute()
            .await
            .map_err(failed("bring a link up"))?;
    }
    for address in addresses {
        let (prefix, gateway) = match address {
            IpAddr::V4(_) => (32, IpAddr::V4(GATEWAY)),
            IpAddr::V6(_) => (128, IpAddr::V6(GATEWAY6)),
        };
        let mut own = handle.address().add(eth0, *address, prefix);
        if address.is_ipv6() {
            // Otherwise the kernel finds out later that it need not look for duplicates: nobody can bind until then.
            own.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        own.execute().await.map_err(failed("add the pod's address"))?;
        handle
            .neighbours()
            .add(eth0, gateway)
            .link_layer_address(&gateway_mac)
            .replace()
            .execute()
            .await
            .map_err(failed("add the gateway's neighbour entry"))?;
        for route in routes(gateway, eth0) {
            handle
                .route()
                .add(route)
                .execute()
                .await
                .map_err(failed("add a route"))?;
        }
    }
    Ok(())
}

/// The way to the gateway, and by it to everything else.
fn routes(gateway: IpAddr, eth0: u32) -> [RouteMessage; 2] {
    match gateway {
        IpAddr::V4(gateway) => {
            let route = || RouteMessageBuilder::<Ipv4Addr>::new().output_interface(eth0);
            [
                route()
                    .destination_prefix(gateway, 32)
                    .scope(RouteScope::Link)
                    .build(),
                route().gateway(gateway).build(),
            ]
        }
        IpAddr::V6(gateway) => {
            let route = || RouteMessageBuilder::<Ipv6Addr>::new().output_interface(eth0);
            [
                route().destination_prefix(gateway, 128).build(),
                route().gateway(gateway).build(),
            ]
        }
    }
}

async fn link_index(handle: &rtnetlink::Handle, link: &'static str) -> Result<u32, NamespaceError> {
    let mut found = handle.link().get().match_name(link.to_owned()).execute();
    match found.try_next().await {
        Ok(Some(message)) => Ok(message.header.index),
        Ok(None) => Err(NamespaceError::NoLink { link }),
        Err(source) => Err(NamespaceError::Netlink {
            operation: "look up a link",
            source,
        }),
    }
}

/// `/proc/sys/net` shows the namespace of the thread that opens it.
fn set(key: &str, value: &'static str) -> Result<(), NamespaceError> {
    let path = Path::new("/proc/sys/net").join(key);
    match std::fs::write(path, value) {
        // A kernel without IPv6 has nothing to switch off.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && key.ends_with("/disable_ipv6") => {
            Ok(())
        }
        written => written.map_err(|source| NamespaceError::Setting {
            key: key.to_owned(),
            value,
            source,
        }),
    }
}
