//! The one crate that talks to the kernel's BPF: loads, attaches, pins and fills the network programs.

use std::net::IpAddr;

use policies_ir::tables::{EndpointId, NodeTables};

/// The datapath of one node. Implemented by the kernel (`Kernel`) and, for tests of callers, by `Fake`.
pub trait Datapath: Send {
    /// Attaches the programs to the host side of a pod's link, in both directions. From here on every
    /// packet is denied until [`Datapath::sync`] has programmed the endpoint. Idempotent.
    fn attach(&mut self, link: &EndpointLink) -> Result<(), DatapathError>;

    /// Detaches an endpoint and forgets its state, its verdicts and its tracked connections. Idempotent,
    /// also when the link is already gone.
    fn detach(&mut self, endpoint: EndpointId) -> Result<(), DatapathError>;

    /// Moves every attached endpoint to `tables` in one write each: ingress, egress, IPv4 and IPv6 change
    /// together. Endpoints that are attached but absent from `tables` are denied everything. Returns the
    /// epoch that now judges.
    fn sync(&mut self, tables: &NodeTables) -> Result<u32, DatapathError>;

    /// Endpoints that are attached in the kernel, also those that an earlier agent left behind.
    fn attached(&mut self) -> Result<Vec<EndpointLink>, DatapathError>;
}

/// Where an endpoint is attached and what it may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointLink {
    /// Number of the endpoint.
    pub id: EndpointId,
    /// Interface index of the host side of the link.
    pub ifindex: u32,
    /// Addresses of the pod; a packet from any other source is spoofed and dropped.
    pub addresses: Vec<IpAddr>,
    /// MAC address of the pod's side.
    pub mac: [u8; 6],
}

/// Why the datapath could not do what was asked. Nothing is half-applied: the old verdicts still hold.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The kernel lacks a feature.
    #[error("this kernel lacks {feature}: {hint}")]
    Unsupported {
        /// Name of the feature.
        feature: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
}
