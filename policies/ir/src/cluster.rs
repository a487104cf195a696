//! Who has which address: what turns the address in a packet into the peer that rules speak about.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    decide::{Flow, Peer},
    policy::Workload,
    tables::{EndpointId, Packet},
};

/// Everything that has an address, seen from one node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cluster {
    /// All pods, of this and other nodes.
    pub members: Vec<Member>,
    /// The node's own addresses.
    pub host_addresses: BTreeSet<IpAddr>,
}

/// A workload and where it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Member {
    /// The workload.
    pub workload: Workload,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its endpoint, if it is on this node.
    pub endpoint: Option<EndpointId>,
}

impl Cluster {
    /// Who is at `address`, seen from `member`. The node's own addresses are the node's, whoever else claims
    /// them.
    pub fn peer<'a>(&'a self, member: &Member, address: IpAddr) -> Peer<'a> {
        if self.host_addresses.contains(&address) {
            return Peer::OwnNode;
        }
        let mut claims = self.members.iter().filter(|m| m.addresses.contains(&address));
        match (claims.next(), claims.next()) {
            (None, _) => Peer::Unknown,
            (Some(_), Some(_)) => Peer::Contested,
            (Some(only), None) if member.addresses.contains(&address) => Peer::Itself(&only.workload),
            (Some(only), None) => Peer::Workload(&only.workload),
        }
    }

    /// The flow that `packet` would start at the interface of `member`.
    pub fn flow<'a>(&'a self, member: &Member, packet: &Packet) -> Flow<'a> {
        Flow {
            direction: packet.direction,
            address: packet.peer,
            peer: self.peer(member, packet.peer),
            protocol: packet.protocol,
            source_port: packet.source_port,
            port: packet.port,
        }
    }
}
