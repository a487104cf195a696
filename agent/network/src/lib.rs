//! Gives each pod its interface: a veth pair, an address, routes, and the way out of the node.
//!
//! The pod's side is `eth0` with a `/32` address and, on a dual-stack node, a `/128` one; its gateways,
//! `169.254.1.1` and `fe80::1`, are nobody's neighbours: both sides carry permanent neighbour entries, so no ARP and
//! no neighbour discovery is ever needed and the packet programs can refuse it. The first is the node's own address
//! on every pod's link, and on no other; there the node serves names (`agent/resolver`). What leaves the node is
//! masqueraded; ports of the node that lead to pods are translated ([`Network::publish`]), and nothing else.
//!
//! Order of a pod's start: [`Network::prepare`] makes the pair with the host side down, the caller attaches
//! its packet programs there, [`Network::activate`] brings it up. So no packet passes unjudged.
//!
//! Non-goals: policy (`ebpf/loader`), services and cluster DNS, pods without IPv4, and
//! routes between nodes. Only interfaces, addresses and nftables tables made here are ever touched; the one
//! exception, per-interface forwarding of the uplinks, is written down and restored by [`Network::remove`].
//!
//! Entry points: [`Network::open`]; [`LinkChanges::follow`] for who cares about interfaces that are not made here;
//! [`firewall::ruleset`] for who measures what every node has.

#![forbid(unsafe_code)]

mod changes;
pub mod files;
pub mod firewall;
mod forwarding;
mod host_ports;
mod leases;
mod links;
mod namespace;
mod rules;
mod table;
mod uplink;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use api::{host_ports::HostPort, node_policy::Mac};
use ipnet::{Ipv4Net, Ipv6Net};
use policies_ir::tables::EndpointId;

pub use crate::{
    changes::LinkChanges,
    forwarding::{ForwardingError, Ipv6Unavailable},
    host_ports::HostPortError,
    leases::{Lease, LeaseError},
    namespace::NamespaceError,
    table::{FirewallError, Loss},
};
use crate::{host_ports::Reserved, leases::Leases, links::Links, rules::Rules, uplink::Uplinks};

/// The pods' gateway, and where the node serves names to them: see the crate's documentation.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The pods' IPv6 gateway. It is no address of anybody.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// First letters of the host side of every pod's link.
pub const LINK_PREFIX: &str = "pal";

/// What the network of a node is made of.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Addresses of this node's pods.
    pub pod_cidr: Ipv4Net,
    /// Their IPv6 addresses; `None` is a node whose pods have IPv4 only, by choice.
    pub pod_cidr6: Option<PodCidr6>,
    /// Address of the node as its pods see it; found from the routing table when absent.
    pub node_address: Option<Ipv4Addr>,
    /// File that remembers leases across restarts of the agent.
    pub state_file: PathBuf,
}

/// A wish for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodCidr6 {
    /// Addresses of this node's pods; at least as many as of IPv4.
    pub cidr: Ipv6Net,
    /// Whether a node that cannot have IPv6 is an error rather than a node with IPv4 only.
    pub required: bool,
}

/// What became of the wish for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6 {
    /// Nobody wished it.
    Off,
    /// Pods have addresses of this range.
    On(Ipv6Net),
    /// It was wished where possible, and is not possible.
    Unavailable(Ipv6Unavailable),
}

impl Ipv6 {
    /// The pods' range, when they have one.
    pub fn cidr(self) -> Option<Ipv6Net> {
        match self {
            Self::On(cidr) => Some(cidr),
            Self::Off | Self::Unavailable(_) => None,
        }
    }
}

/// Addresses of the node as its pods see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAddresses {
    /// There always is one.
    pub v4: Ipv4Addr,
    /// Of the uplink; `None` where no uplink has any.
    pub v6: Option<Ipv6Addr>,
}

impl NodeAddresses {
    /// IPv4 first.
    pub fn all(self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(IpAddr::V4(self.v4)).chain(self.v6.map(IpAddr::V6))
    }
}

/// The network of one node. Methods take `&self`; calls for different pods may run at the same time.
pub struct Network {
    links: Links,
    leases: Mutex<Leases>,
    node: NodeAddresses,
    ipv6: Ipv6,
    mtu: u32,
    reserved: Reserved,
    pods: Ipv4Net,
    /// One writes at a time.
    rules: tokio::sync::Mutex<Rules>,
}

/// A pod's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Number of the endpoint.
    pub endpoint: EndpointId,
    /// Address of the pod.
    pub address: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    pub address6: Option<Ipv6Addr>,
    /// Name of the host side.
    pub link: String,
    /// Interface index of the host side.
    pub ifindex: u32,
    /// MAC address of the pod's side.
    pub mac: [u8; 6],
    /// Ports of the node that lead to the pod.
    pub host_ports: Vec<HostPort>,
}

impl Attachment {
    /// Every address of the pod, IPv4 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let v6 = self.address6.map(IpAddr::V6);
        std::iter::once(IpAddr::V4(self.address)).chain(v6).collect()
    }
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
    /// IPv6 was asked for and cannot be had.
    #[error(
        "pods cannot have the IPv6 addresses {cidr}; give the node an IPv4 CIDR only, or change the host"
    )]
    NoIpv6 {
        /// The range asked for.
        cidr: Ipv6Net,
        /// Why not.
        #[source]
        source: Ipv6Unavailable,
    },
    /// The IPv6 range has fewer addresses than the IPv4 range.
    #[error("pod_cidr6 {cidr6} has fewer addresses than pod_cidr {cidr}; use a /64")]
    Cidr6TooSmall {
        /// The IPv4 range.
        cidr: Ipv4Net,
        /// The IPv6 range.
        cidr6: Ipv6Net,
    },
    /// Bookkeeping of addresses failed.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The pod's network namespace could not be configured.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The nftables table could not be written, or looked for.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// A port of the node cannot lead to the pod.
    #[error(transparent)]
    HostPort(#[from] HostPortError),
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
        let ipv6 = ipv6(&config, uplinks.mtu)?;
        let mut leases = leases(&links, &config.state_file, config.pod_cidr, ipv6.cidr()).await?;
        let closed6 = match ipv6 {
            Ipv6::On(_) => forwarding::closed6(&uplinks.names6)?,
            Ipv6::Off | Ipv6::Unavailable(_) => Vec::new(),
        };
        leases.remember_opened(forwarding::closed(&uplinks.names)?, closed6.clone())?;
        let (published, tracked) = host_ports::rules(leases.all());
        let mut rules = Rules::default();
        let scope = firewall::Scope {
            pods: config.pod_cidr,
            pods6: ipv6.cidr(),
            opened: leases.opened(),
            opened6: leases.opened6(),
            node: node_address,
            host_ports: (&published, &tracked),
        };
        rules.table.install(scope).await?;
        let reserved = Reserved::default();
        for lease in leases.all() {
            // Somebody may have taken the port while no agent kept it; it leads to the pod all the same.
            if let Err(error) = reserved.keep(&lease.pod_uid, &lease.host_ports) {
                tracing::warn!(pod = lease.pod_uid, %error, "a port is not kept free");
            }
        }
        forwarding::open(&uplinks.names)?;
        forwarding::open6(&closed6)?;
        Ok(Self {
            links,
            leases: Mutex::new(leases),
            node: NodeAddresses {
                v4: node_address,
                v6: uplinks.node_address6.filter(|_| ipv6.cidr().is_some()),
            },
            ipv6,
            mtu: uplinks.mtu,
            reserved,
            pods: config.pod_cidr,
            rules: tokio::sync::Mutex::new(rules),
        })
    }

    /// Address of the node as its pods see it.
    pub fn node_address(&self) -> Ipv4Addr {
        self.node.v4
    }

    /// Addresses of the node as its pods see it, IPv6 only where pods have it.
    pub fn node_addresses(&self) -> NodeAddresses {
        self.node
    }

    /// Whether pods have IPv6.
    pub fn ipv6(&self) -> Ipv6 {
        self.ipv6
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
        forwarding::prepare_pod_link(&lease.link, lease.address6.is_some())?;
        let attachment = attachment(&lease, ifindex);
        namespace::configure(namespace, attachment.addresses(), host_mac).await?;
        Ok(attachment)
    }

    /// Brings the pod's link up and routes its addresses to it.
    pub async fn activate(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        self.links.bring_up(attachment, self.node).await
    }

    /// Keeps `ports` of the node for the pod, until its lease is released: whoever judges what comes there can be told that
    /// they lead to the pod before they do. Idempotent.
    pub fn reserve(&self, pod_uid: &str, ports: &[HostPort]) -> Result<(), NetworkError> {
        match ports.is_empty() {
            true => self.reserved.release(pod_uid),
            false => self.reserved.keep(pod_uid, ports)?,
        }
        Ok(())
    }

    /// Lets `ports` of the node lead to the pod, until its link is unplugged. Idempotent.
    pub async fn publish(&self, pod_uid: &str, ports: &[HostPort]) -> Result<(), NetworkError> {
        let Some(lease) = self.leases().find(pod_uid).cloned() else {
            return Ok(());
        };
        self.reserve(pod_uid, ports)?;
        if !ports.is_empty() {
            forwarding::admit_loopback(&lease.link)?;
        }
        self.lead(pod_uid, ports).await
    }

    /// The pod's interface, when it has one: how a restarted agent finds it again.
    pub async fn find(&self, pod_uid: &str) -> Result<Option<Attachment>, NetworkError> {
        let Some(lease) = self.leases().find(pod_uid).cloned() else {
            return Ok(None);
        };
        let index = self.links.index(&lease.link).await?;
        Ok(index.map(|ifindex| attachment(&lease, ifindex)))
    }

    /// What the pod holds, whether or not it has an interface.
    pub fn lease(&self, pod_uid: &str) -> Option<Lease> {
        self.leases().find(pod_uid).cloned()
    }

    /// Every lease, of living pods and of those that an earlier agent did not get to release.
    pub fn leased(&self) -> Vec<Lease> {
        self.leases().all().cloned().collect()
    }

    /// Deletes the pod's link and keeps its lease, and its ports, which lead nowhere: the first half of
    /// [`Network::release`], for callers that take their packet programs away in between. Idempotent.
    pub async fn unplug(&self, pod_uid: &str) -> Result<(), NetworkError> {
        let Some(lease) = self.leases().find(pod_uid).cloned() else {
            return Ok(());
        };
        // While there is no link, nothing may be sent to the address.
        self.lead(pod_uid, &[]).await?;
        self.links.delete(&lease.link).await
    }

    /// Deletes the pod's link and releases its address. Idempotent.
    pub async fn release(&self, pod_uid: &str) -> Result<(), NetworkError> {
        let Some(lease) = self.leases().find(pod_uid).cloned() else {
            return Ok(());
        };
        self.lead(pod_uid, &[]).await?;
        self.links.delete(&lease.link).await?;
        self.reserved.release(pod_uid);
        self.leases().release(pod_uid)?;
        Ok(())
    }

    /// Removes what all agents that used `state_file` have made: links, leases, the nftables table, and
    /// the forwarding that was switched on.
    pub async fn remove(state_file: &Path, pod_cidr: Ipv4Net) -> Result<(), NetworkError> {
        let links = Links::connect()?;
        let mut leases = leases(&links, state_file, pod_cidr, None).await?;
        let leased: Vec<Lease> = leases.all().cloned().collect();
        for lease in leased {
            links.delete(&lease.link).await?;
            leases.release(&lease.pod_uid)?;
        }
        table::remove().await?;
        forwarding::close(leases.opened())?;
        forwarding::close6(leases.opened6())?;
        leases.forget_opened()?;
        Ok(())
    }

    /// A panic while the lock was held cannot leave the leases half-changed: they are written to disk first.
    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The node's leases. A file that does not parse, as a power loss leaves it, keeps nobody from starting where no pod has a link:
/// then there is nothing that it could say.
async fn leases(
    links: &Links,
    path: &Path,
    cidr: Ipv4Net,
    cidr6: Option<Ipv6Net>,
) -> Result<Leases, NetworkError> {
    match Leases::open(path, cidr, cidr6) {
        Err(error @ LeaseError::Parse { .. }) => {
            let all = links.all().await?;
            if all.iter().any(|(_, name, _)| leases::is_link_name(name)) {
                return Err(error.into());
            }
            tracing::warn!(%error, "no pod has a link, so the leases begin anew");
            Ok(Leases::anew(path, cidr, cidr6)?)
        }
        opened => Ok(opened?),
    }
}

/// Decides whether pods get IPv6.
fn ipv6(config: &NetworkConfig, mtu: u32) -> Result<Ipv6, NetworkError> {
    let Some(PodCidr6 { cidr, required }) = config.pod_cidr6 else {
        return Ok(Ipv6::Off);
    };
    if cidr.max_prefix_len() - cidr.prefix_len()
        < config.pod_cidr.max_prefix_len() - config.pod_cidr.prefix_len()
    {
        return Err(NetworkError::Cidr6TooSmall {
            cidr: config.pod_cidr,
            cidr6: cidr,
        });
    }
    match forwarding::check_ipv6(mtu) {
        Ok(()) => Ok(Ipv6::On(cidr)),
        Err(source) if required => Err(NetworkError::NoIpv6 { cidr, source }),
        Err(reason) => Ok(Ipv6::Unavailable(reason)),
    }
}

fn attachment(lease: &Lease, ifindex: u32) -> Attachment {
    Attachment {
        endpoint: EndpointId(lease.endpoint),
        address: lease.address,
        address6: lease.address6,
        link: lease.link.clone(),
        ifindex,
        mac: lease.mac,
        host_ports: lease.host_ports.clone(),
    }
}

/// The host side's MAC: the pod knows it only through its permanent neighbour entry for the gateway.
fn host_mac(pod_uid: &str) -> [u8; 6] {
    Mac::of_host_side(pod_uid).0
}
