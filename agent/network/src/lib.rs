//! Gives each pod its interface: a veth pair, an address, routes, and the way out of the node.
//!
//! The pod's side is `eth0` with a `/32` address; its gateway, `169.254.1.1`, exists nowhere: both sides
//! carry permanent neighbour entries, so no ARP or neighbour discovery is ever needed and the packet
//! programs can refuse it. What leaves the node is masqueraded; nothing else is translated.
//!
//! Order of a pod's start: [`Network::prepare`] makes the pair with the host side down, the caller attaches
//! its packet programs there, [`Network::activate`] brings it up. So no packet passes unjudged.
//!
//! Non-goals: policy (`ebpf/loader`), services and cluster DNS, IPv6 in pods (switched off there), and
//! routes between nodes. Only interfaces, addresses and nftables tables made here are ever touched; the one
//! exception, per-interface forwarding of the uplinks, is written down and restored by [`Network::remove`].
//!
//! Entry point: [`Network::open`].

#![forbid(unsafe_code)]

pub mod files;
mod firewall;
mod forwarding;
mod leases;
mod links;
mod namespace;
mod uplink;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ipnet::Ipv4Net;
use policies_ir::tables::EndpointId;

pub use crate::{
    firewall::FirewallError,
    forwarding::ForwardingError,
    leases::{Lease, LeaseError},
    namespace::NamespaceError,
};
use crate::{leases::Leases, links::Links, uplink::Uplinks};

/// The pods' gateway. Link-local and answered by nobody: see the crate's documentation.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// First letters of the host side of every pod's link.
pub const LINK_PREFIX: &str = "pal";

/// What the network of a node is made of.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Addresses of this node's pods.
    pub pod_cidr: Ipv4Net,
    /// Address of the node as its pods see it; found from the routing table when absent.
    pub node_address: Option<Ipv4Addr>,
    /// File that remembers leases across restarts of the agent.
    pub state_file: PathBuf,
}

/// The network of one node. Methods take `&self`; calls for different pods may run at the same time.
pub struct Network {
    links: Links,
    leases: Mutex<Leases>,
    node_address: Ipv4Addr,
    mtu: u32,
}

/// A pod's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Number of the endpoint.
    pub endpoint: EndpointId,
    /// Address of the pod.
    pub address: Ipv4Addr,
    /// Name of the host side.
    pub link: String,
    /// Interface index of the host side.
    pub ifindex: u32,
    /// MAC address of the pod's side.
    pub mac: [u8; 6],
}

/// Why the network could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The socket to the kernel could not be opened.
    #[error("cannot open a route netlink socket")]
    Socket(#[source] std::io::Error),
    /// The kernel refused a change.
    #[error("cannot {operation} on {link}")]
    Netlink {
        /// What was tried.
        operation: &'static str,
        /// Interface it was tried on.
        link: String,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
    /// An interface that was just made is gone.
    #[error("interface {link} is gone")]
    LinkGone {
        /// Its name.
        link: String,
    },
    /// The node has no address that pods could know it by.
    #[error("no interface has a global IPv4 address; set node_address in the agent's configuration")]
    NoNodeAddress,
    /// Bookkeeping of addresses failed.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The pod's network namespace could not be configured.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The nftables table could not be written.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// Forwarding could not be switched.
    #[error(transparent)]
    Forwarding(#[from] ForwardingError),
}

impl Network {
    /// Prepares the node: reads its uplinks, lets them and the pods' links forward (per interface, never
    /// for the whole machine) and writes the nftables table. Must be called inside a tokio runtime.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        let links = Links::connect()?;
        let uplinks = Uplinks::read(&links).await?;
        let node_address = config
            .node_address
            .or(uplinks.node_address)
            .ok_or(NetworkError::NoNodeAddress)?;
        let mut leases = Leases::open(&config.state_file, config.pod_cidr)?;
        leases.remember_opened(forwarding::closed(&uplinks.names)?)?;
        forwarding::open(&uplinks.names)?;
        firewall::install(config.pod_cidr, leases.opened()).await?;
        Ok(Self {
            links,
            leases: Mutex::new(leases),
            node_address,
            mtu: uplinks.mtu,
        })
    }

    /// Address of the node as its pods see it.
    pub fn node_address(&self) -> Ipv4Addr {
        self.node_address
    }

    /// Makes the pod's link inside `netns` and configures the pod's side; the host side stays down. A link
    /// that an earlier attempt left is replaced, the address and the endpoint number of an earlier attempt
    /// are kept.
    pub async fn prepare(&self, pod_uid: &str, netns: &Path) -> Result<Attachment, NetworkError> {
        let lease = self.leases().acquire(pod_uid)?;
        let namespace = namespace::open(netns)?;
        self.links.delete(&lease.link).await?;
        let host_mac = host_mac(pod_uid);
        let pair = links::Pair {
            host: &lease.link,
            host_mac,
            pod_mac: lease.mac,
            mtu: self.mtu,
            namespace: &namespace,
        };
        let ifindex = self.links.create(&pair).await?;
        forwarding::prepare_pod_link(&lease.link)?;
        namespace::configure(namespace, lease.address, host_mac).await?;
        Ok(attachment(&lease, ifindex))
    }

    /// Brings the pod's link up and routes its address to it.
    pub async fn activate(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        self.links.bring_up(attachment, self.node_address).await
    }

    /// The pod's interface, when it has one: how a restarted agent finds it again.
    pub async fn find(&self, pod_uid: &str) -> Result<Option<Attachment>, NetworkError> {
        let Some(lease) = self.leases().find(pod_uid).cloned() else {
            return Ok(None);
        };
        let index = self.links.index(&lease.link).await?;
        Ok(index.map(|ifindex| attachment(&lease, ifindex)))
    }

    /// Every lease, of living pods and of those that an earlier agent did not get to release.
    pub fn leased(&self) -> Vec<Lease> {
        self.leases().all().cloned().collect()
    }

    /// Deletes the pod's link and keeps its lease: the first half of [`Network::release`], for callers that
    /// take their packet programs away in between. Idempotent.
    pub async fn unplug(&self, pod_uid: &str) -> Result<(), NetworkError> {
        let Some(lease) = self.leases().find(pod_uid).cloned() else {
            return Ok(());
        };
        self.links.delete(&lease.link).await
    }

    /// Deletes the pod's link and releases its address. Idempotent.
    pub async fn release(&self, pod_uid: &str) -> Result<(), NetworkError> {
        let Some(lease) = self.leases().find(pod_uid).cloned() else {
            return Ok(());
        };
        self.links.delete(&lease.link).await?;
        self.leases().release(pod_uid)?;
        Ok(())
    }

    /// Removes what all agents that used `state_file` have made: links, leases, the nftables table, and
    /// the forwarding that was switched on.
    pub async fn remove(state_file: &Path, pod_cidr: Ipv4Net) -> Result<(), NetworkError> {
        let links = Links::connect()?;
        let mut leases = Leases::open(state_file, pod_cidr)?;
        let leased: Vec<Lease> = leases.all().cloned().collect();
        for lease in leased {
            links.delete(&lease.link).await?;
            leases.release(&lease.pod_uid)?;
        }
        firewall::remove().await?;
        forwarding::close(leases.opened())?;
        leases.forget_opened()?;
        Ok(())
    }

    /// A panic while the lock was held cannot leave the leases half-changed: they are written to disk first.
    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn attachment(lease: &Lease, ifindex: u32) -> Attachment {
    Attachment {
        endpoint: EndpointId(lease.endpoint),
        address: lease.address,
        link: lease.link.clone(),
        ifindex,
        mac: lease.mac,
    }
}

/// The host side's MAC: the pod knows it only through its permanent neighbour entry for the gateway.
fn host_mac(pod_uid: &str) -> [u8; 6] {
    leases::mac(pod_uid, "host")
}
