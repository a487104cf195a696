//! The one crate that talks to the kernel's BPF: loads, attaches, pins and fills the network programs.
//!
//! [`Datapath`] is what the agent sees; [`Kernel`] is the real one, [`Fake`] serves tests of callers. Everything that
//! judges lives in the kernel and is pinned, so verdicts hold while the agent is down, and a new agent continues
//! with [`Kernel::open`] on the same directory. By the side of it: [`devices`] denies them to control groups, [`learn`]
//! watches.
//!
//! Non-goals: making policy (`policies/compiler`), naming pods and rules in flow events (`agent/telemetry`),
//! creating interfaces (`agent/network`).

pub mod devices;
mod encode;
mod fake;
mod flows;
mod kernel;
pub mod learn;
pub mod measure;
mod netlink;
mod sys;
mod tc;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

pub use ebpf_abi::{FlowRecord, Reason};
use policies_ir::tables::{EndpointId, NodeTables};

pub use crate::{
    fake::Fake,
    flows::{Expired, FlowSource, OpenedFlow, TrackedFlow, UPDATE_EVERY, timeout},
    kernel::{Kernel, Limits},
};

/// The programs, built by `cargo xtask ebpf` from `ebpf/programs`; `objects/manifest.json` says from which sources
/// and by which compiler.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../objects/palisade.bpf.o");

/// The datapath of one node. Implemented by the kernel ([`Kernel`]) and, for tests of callers, by [`Fake`].
pub trait Datapath: Send {
    /// Attaches the programs to the host side of a pod's link, in both directions. From here on every
    /// packet is denied until [`Datapath::sync`] has programmed the endpoint. Idempotent.
    fn attach(&mut self, link: &EndpointLink) -> Result<(), DatapathError>;

    /// Detaches an endpoint and forgets its state and its tracked connections; its verdicts, which nothing asks for
    /// any more, are deleted by the next [`Datapath::sweep`]. Idempotent, also when the link is already gone.
    /// Nothing judges the interface afterwards: take it down first.
    fn detach(&mut self, endpoint: EndpointId) -> Result<(), DatapathError>;

    /// Lets [`Datapath::sync`] give tables to these endpoints of the host before any interface has them. Of earlier ones,
    /// those that no interface has got and that are not among these are forgotten.
    fn prepare_hosts(&mut self, endpoints: &BTreeSet<EndpointId>) -> Result<(), DatapathError>;

    /// For when [`Datapath::sync`] has failed: gives endpoints that were prepared and have no tables those in `tables`,
    /// until it succeeds; nothing changes for others, `tables` being a few entries for which there always is room. After
    /// an error such endpoints are denied everything.
    fn close_hosts(&mut self, tables: &NodeTables) -> Result<(), DatapathError>;

    /// As [`Datapath::detach`], but for tracked connections, which take a look through all flows of the node: its own,
    /// and those that others have with it. [`Datapath::look`] forgets them; as long as [`Datapath::is_forgetting`], they
    /// take from others' budgets.
    fn take_off(&mut self, endpoint: EndpointId) -> Result<(), DatapathError>;

    /// Whether there may be flows of endpoints that were taken off: until a look that began afterwards has ended.
    fn is_forgetting(&self) -> bool;

    /// Gives an interface of the host these endpoints and no others, and attaches the programs to it, or takes them off
    /// if it has none. Packets of an address without an endpoint, and of endpoints without tables, pass: whoever wants
    /// none to pass has the endpoints prepared, and their tables written, before. An interface whose packets the programs
    /// cannot read is refused. Idempotent.
    fn attach_host(&mut self, link: &HostLink) -> Result<(), DatapathError>;

    /// Interfaces of the host that have endpoints, also those off which somebody else took the programs; those that have
    /// vanished lose theirs on the way.
    fn attached_hosts(&mut self) -> Result<Vec<HostLink>, DatapathError>;

    /// Interfaces that have endpoints, pods' and the host's, and that nothing judges: somebody else took the programs off,
    /// or they went with a discipline or to another network namespace. Not those that have vanished.
    fn bare(&mut self) -> Result<Vec<u32>, DatapathError>;

    /// Attaches the programs to an interface again that is [bare](Datapath::bare). It is judged as before from then on.
    fn restore(&mut self, ifindex: u32) -> Result<(), DatapathError>;

    /// Moves every attached endpoint to `tables` in one write each: ingress, egress, IPv4 and IPv6 change
    /// together. Pods that are attached but absent from `tables` are denied everything; endpoints of the host that are
    /// absent are judged as before, until their interfaces get others. What did not change is
    /// not written again: an endpoint whose entries mean the same keeps them, and so keeps its place in the count of
    /// changes unless the classes of addresses changed.
    fn sync(&mut self, tables: &NodeTables) -> Result<Synced, DatapathError>;

    /// Whether so much has piled up that changes cost more than they need, until [`Datapath::renew`].
    fn is_worn(&self) -> bool;

    /// As [`Datapath::sync`], with whatever has piled up written anew if there is room: for a moment when nobody waits for
    /// a change.
    fn renew(&mut self, tables: &NodeTables) -> Result<Synced, DatapathError>;

    /// Endpoints that are attached in the kernel, also those that an earlier agent left behind, but none whose interface is
    /// [bare](Datapath::bare). State of endpoints
    /// whose interface has vanished is cleaned up on the way.
    fn attached(&mut self) -> Result<Vec<EndpointLink>, DatapathError>;

    /// Whether flows that were allowed live on when policy changes, instead of being judged again.
    fn keep_established(&mut self, endpoint: EndpointId, keep: bool) -> Result<(), DatapathError>;

    /// Forgets tables that no endpoint uses any more.
    fn sweep(&mut self) -> Result<(), DatapathError>;

    /// Looks through some of the tracked flows, beginning anew after the last: forgets those that have been silent for
    /// longer than their [`timeout`] at `now` (see [`monotonic_now`]; it counts when a look begins), and those of
    /// endpoints that are gone. A look is to begin every few seconds: the table of flows is bounded, and a full one denies
    /// new flows. One step takes a millisecond or a few, and between two of them everything else may be called.
    fn look(&mut self, now: Duration) -> Result<Expired, DatapathError>;

    /// [`Datapath::sweep`], and [`Datapath::look`] to the end of a look.
    fn expire(&mut self, now: Duration) -> Result<Expired, DatapathError> {
        self.sweep()?;
        let mut all = self.look(now)?;
        while all.more {
            let next = self.look(now)?;
            all.removed += next.removed;
            all.records.extend(next.records);
            (all.tracked, all.more) = (next.tracked, next.more);
        }
        Ok(all)
    }

    /// The tables that judge now, read back from where they are; rule names are not kept there, and endpoints that are
    /// closed are not among them ([`Places::closed`]).
    fn dump(&self) -> Result<NodeTables, DatapathError>;

    /// Who is where, read back from where programs look it up, beside what [`Datapath::attached`] says.
    fn places(&self) -> Result<Places, DatapathError>;

    /// Flows that endpoints opened, and that are established and allowed now. What others opened to them rests on nothing that
    /// rules say of its other end.
    fn opened_flows(&mut self) -> Result<BTreeSet<OpenedFlow>, DatapathError>;

    /// What was counted since the maps were made, over all endpoints. Of those that are gone [it](Counters::unreported) is
    /// said once: whoever asks passes it on.
    fn counters(&mut self) -> Result<Counters, DatapathError>;

    /// The stream of decisions. There is one stream: two readers would take records from each other.
    fn flow_source(&mut self) -> Result<Box<dyn FlowSource>, DatapathError>;
}

/// What keeps the programs on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// Links of Linux 6.6 and newer.
    Tcx,
    /// Filters of a clsact queueing discipline, which is added where it is missing and stays. Filters are found in the
    /// network namespace of the caller.
    Clsact,
}

impl std::fmt::Display for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx links",
            Self::Clsact => "clsact filters",
        })
    }
}

/// Which change each endpoint follows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Synced {
    /// Number of the last change that reached an endpoint: [`FlowRecord::epoch`] of what is decided from now on.
    /// Endpoints that are denied everything are absent.
    pub endpoints: BTreeMap<EndpointId, u32>,
    /// Endpoints whose entries were written anew.
    pub rewritten: usize,
    /// Entries that were written, classes of addresses included.
    pub written: usize,
}

/// Where an endpoint is attached and what it may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointLink {
    /// Number of the endpoint.
    pub id: EndpointId,
    /// Interface index of the host side of the link.
    pub ifindex: u32,
    /// Addresses of the pod, at most one of each family; a packet from any other source is spoofed and dropped.
    pub addresses: Vec<IpAddr>,
    /// MAC address of the pod's side.
    pub mac: [u8; 6],
}

/// The endpoints of an interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLink {
    /// Interface index.
    pub ifindex: u32,
    /// Addresses of the host whose packets are judged, also those that belong to another interface. One endpoint may
    /// have several.
    pub addresses: BTreeMap<IpAddr, HostEndpoint>,
    /// What judges packets from and to all other addresses: what the host forwards, and multicast.
    pub forward: Option<HostEndpoint>,
}

/// Who judges packets of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostEndpoint {
    /// The endpoint.
    pub id: EndpointId,
    /// Endpoint whose tables are asked first, about every packet, in both directions and without tracking: what they
    /// allow passes, what they deny does not, what they do not know is the tracked endpoint's.
    pub untracked: Option<EndpointId>,
}

/// Where programs find pods and hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places {
    /// What goes straight to a pod, by the pod's address.
    pub ways: BTreeMap<IpAddr, Way>,
    /// Who judges packets of the host, by interface.
    pub hosts: BTreeMap<(u32, HostPackets), HostEndpoint>,
    /// Endpoints whose allowed flows outlive a change of policy.
    pub keeping: BTreeSet<EndpointId>,
    /// Endpoints with the tables of [`Datapath::close_hosts`].
    pub closed: BTreeSet<EndpointId>,
}

/// Where what goes straight to a pod is taken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Endpoint that judges what is delivered.
    pub id: EndpointId,
    /// Interface index of the host side of its link.
    pub ifindex: u32,
    /// MAC address that it is sent to.
    pub mac: [u8; 6],
}

/// Packets at an interface of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostPackets {
    /// From and to an address of the host.
    Address(IpAddr),
    /// To whoever listens.
    Groups,
    /// All others.
    Forwarded,
}

impl HostLink {
    /// An interface without endpoints.
    pub fn none(ifindex: u32) -> Self {
        Self {
            ifindex,
            addresses: BTreeMap::new(),
            forward: None,
        }
    }

    /// All endpoints that the link names; one may come several times.
    pub fn endpoints(&self) -> impl Iterator<Item = EndpointId> + '_ {
        let all = self.addresses.values().chain(&self.forward);
        all.flat_map(|endpoint| std::iter::once(endpoint.id).chain(endpoint.untracked))
    }
}

/// Packets and events, counted by the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets that passed.
    pub allowed: u64,
    /// Packets that were dropped, by reason; reasons that never occurred are absent.
    pub denied: BTreeMap<Reason, u64>,
    /// Decisions that could not be reported because the reader was too slow.
    pub lost_events: u64,
    /// Denied packets that nobody was told of, since their endpoint had too many others denied, or since their count made
    /// room for others; endpoints without are absent. These come on top of what records count. An endpoint that is gone is
    /// among them once, in the first answer after it went.
    pub unreported: BTreeMap<EndpointId, u64>,
    /// How full the bounded maps are. Full tables refuse a change of policy, and full `FLOWS` deny new flows.
    pub fill: Vec<Fill>,
}

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Name of the map.
    pub map: &'static str,
    /// Entries now; of flows that are closed, those that were there at the last [`Datapath::look`].
    pub entries: u64,
    /// Entries that fit.
    pub capacity: u64,
}

impl Fill {
    pub(crate) fn new(map: &'static str, entries: u64, capacity: u32) -> Self {
        Self {
            map,
            entries,
            capacity: capacity.into(),
        }
    }
}

/// The clock of [`FlowRecord::time_ns`] and of [`Datapath::expire`].
pub fn monotonic_now() -> Duration {
    sys::monotonic_now()
}

/// Why the datapath could not do what was asked. Nothing is half-applied: the old verdicts still hold.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The kernel lacks features.
    #[error("this kernel lacks {}", missing.join(", and "))]
    Unsupported {
        /// The features, and where they come from.
        missing: Vec<&'static str>,
    },
    /// The kernel could not be asked for a feature.
    #[error("cannot tell whether this kernel has {feature}")]
    Probe {
        /// Name of the feature.
        feature: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another process works on the same pins.
    #[error("{path} is in use by another agent; stop it first")]
    InUse {
        /// The pin directory.
        path: PathBuf,
    },
    /// The pin directory could not be prepared or cleaned.
    #[error("cannot {operation} {path}")]
    Pins {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A pinned map has another shape: an agent of another version made it.
    #[error("map {path} was made by another version; drain the node and run `policyctl down` first")]
    Layout {
        /// The pin.
        path: PathBuf,
    },
    /// The programs on the interfaces were attached the other way.
    #[error(
        "pin {path} was not attached by {wanted}: drain the node and run `policyctl down` first, or go on as before"
    )]
    Attached {
        /// The pin.
        path: PathBuf,
        /// What was asked for.
        wanted: Attachment,
    },
    /// The object could not be read or its maps not be made.
    #[error("cannot load the network programs")]
    Object(#[source] Box<aya::EbpfError>),
    /// The object lacks a program or a map.
    #[error("the object has no {name}")]
    Missing {
        /// Name of what it lacks.
        name: &'static str,
    },
    /// The kernel refused a program, or to run it.
    #[error("the kernel refuses program {name}")]
    Program {
        /// Name of the program.
        name: &'static str,
        /// What the verifier said.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A map could not be read or written.
    #[error("cannot {operation} map {map}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// The tables are larger than the kernel's maps.
    #[error("map {map} holds {limit} entries, old and new tables together need {needed}")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Entries that would be needed.
        needed: usize,
        /// Entries that fit.
        limit: usize,
    },
    /// A link could not be attached, replaced or taken off.
    #[error("cannot {operation} the programs on interface {ifindex}")]
    Link {
        /// What was tried.
        operation: &'static str,
        /// The interface.
        ifindex: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An interface could not be asked for its type.
    #[error("cannot ask for the device type of interface {ifindex}")]
    DeviceType {
        /// The interface.
        ifindex: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Packets of the interface begin with something that the programs cannot read, so nothing would be judged there.
    #[error(
        "interface {name} is of device type {device_type}, and host endpoints are judged on Ethernet, tun, WireGuard, PPP, xfrm, ipip and sit alone; take it out of the HostEndpoint"
    )]
    LinkLayer {
        /// Name of the interface.
        name: String,
        /// Its `ARPHRD_*` number.
        device_type: u16,
    },
    /// The addresses of an endpoint cannot be enforced.
    #[error("endpoint {} {problem}", endpoint.0)]
    Address {
        /// The endpoint.
        endpoint: EndpointId,
        /// What is wrong.
        problem: &'static str,
    },
    /// No such endpoint is attached.
    #[error("endpoint {} is not attached", endpoint.0)]
    NotAttached {
        /// The endpoint.
        endpoint: EndpointId,
    },
    /// Waiting for flow events failed.
    #[error("cannot wait for flow events")]
    Wait(#[source] io::Error),
    /// Changes of policy are counted in thirty bits.
    #[error(
        "policy changed {} times, more than can be counted; drain the node and run `policyctl down`",
        ebpf_abi::MAX_EPOCH
    )]
    Epochs,
    /// An endpoint tells apart more source ports than its keys can hold.
    #[error("rules of endpoint {} tell {needed} classes of source ports apart, and the kernel {}; use fewer rules with source ports", endpoint.0, policies_ir::tables::MAX_SOURCE_CLASSES)]
    SourceClasses {
        /// The endpoint.
        endpoint: EndpointId,
        /// Classes that it has.
        needed: usize,
    },
    /// An address has a class that the kernel takes for none.
    #[error("address {net} has the number that stands for no class")]
    Class {
        /// The address.
        net: ipnet::IpNet,
    },
    /// Addresses of one class have different parents: nobody wrote that.
    #[error("in the kernel, the class of {net} is split off from another one than elsewhere")]
    Parents {
        /// One of the addresses.
        net: ipnet::IpNet,
    },
    /// The endpoints in the kernel follow different tables, so there is no single set to show.
    #[error("the endpoints in the kernel follow different tables: the last change failed half way")]
    Mixed,
}
