//! The node's own interfaces: its addresses there, and its host endpoints: which interfaces they are, under which numbers
//! they are judged, and what the datapath attaches there. An interface that no HostEndpoint speaks of has no program.
//!
//! Interfaces are looked at again as soon as the kernel tells of a change ([`follow`]), and every few seconds in case that it
//! cannot. So one that comes later is judged from then on; for the moment until it is, it is open, as every interface of
//! a host without policy. What becomes of interfaces for which the kernel has no room says [`room`].

mod room;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use agent_network::{LINK_PREFIX, LinkChanges};
use api::{
    calico,
    node_policy::{self, HostCounts, HostPlaceRow, NodeHost},
};
use ebpf_loader::{Datapath, DatapathError, HostEndpoint, HostLink, HostPackets, Places};
use ipnet::IpNet;
use nix::{net::if_::InterfaceFlags, sys::socket::SockaddrStorage};
use policies_compiler::{HostEndpointIds, capacity::Capacities};
use policies_ir::tables::{EndpointId, NodeTables};

use crate::{
    hosts::room::Unfit,
    policy::{Policy, chain},
};

/// Until the kernel is asked again to tell of changes. Until then they are looked for.
const FOLLOW_AGAIN: Duration = Duration::from_secs(5);
/// Pods are numbered from one, by the thousand at most; host endpoints from here.
const FIRST: u32 = 0x8000_0000;

/// Nothing is attached to it. Its addresses are the host's all the same, from wherever packets to them come.
const LOOPBACK: &str = "lo";
/// Most interfaces that are named where there are many.
const MANY: usize = 8;

/// An interface of the host that is no pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// One that is down carries nothing.
    pub(crate) is_up: bool,
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Of its networks: the host takes what is sent there, too.
    pub(crate) broadcasts: BTreeSet<IpAddr>,
}

/// Host endpoints as the datapath knows them.
#[derive(Debug)]
pub(crate) struct Hosts {
    ids: BTreeMap<String, HostEndpointIds>,
    next: u32,
    interfaces: Vec<Interface>,
    /// Asks the kernel for them.
    list: fn() -> io::Result<Vec<Interface>>,
    /// What is attached, by interface.
    attached: BTreeMap<u32, HostLink>,
    /// What is to be, as of the last [`Hosts::prepare`]; nothing if that failed.
    wanted: BTreeMap<u32, HostLink>,
    /// Endpoints that get tables though no interface has them yet.
    prepared: BTreeSet<EndpointId>,
    /// Addresses of the node beside those of its interfaces.
    addresses: BTreeSet<IpAddr>,
    /// Entries that the kernel holds for them.
    room: usize,
    /// What of that is wanted has no room.
    unfit: Option<Unfit>,
}

impl Hosts {
    /// Starts with what an earlier agent has attached.
    pub(crate) fn start(
        datapath: &mut dyn Datapath,
        addresses: BTreeSet<IpAddr>,
    ) -> Result<Self, DatapathError> {
        let attached: BTreeMap<u32, HostLink> = datapath
            .attached_hosts()?
            .into_iter()
            .map(|link| (link.ifindex, link))
            .collect();
        let taken = attached.values().flat_map(HostLink::endpoints).map(|id| id.0);
        Ok(Self {
            ids: BTreeMap::new(),
            next: taken
                .max()
                .map_or(FIRST, |last| last.saturating_add(1).max(FIRST)),
            interfaces: Vec::new(),
            list: interfaces,
            attached,
            wanted: BTreeMap::new(),
            prepared: BTreeSet::new(),
            addresses,
            room: Capacities::KERNEL.host_places,
            unfit: None,
        })
    }

    /// On a machine with these interfaces.
    #[cfg(test)]
    pub(crate) fn on(mut self, list: fn() -> io::Result<Vec<Interface>>) -> Self {
        self.list = list;
        self
    }

    /// With a kernel that holds so many entries.
    #[cfg(test)]
    pub(crate) fn with_room(mut self, room: usize) -> Self {
        self.room = room;
        self
    }

    /// Looks at the interfaces. Whether they, or their addresses, are others than before.
    pub(crate) fn look(&mut self) -> bool {
        match (self.list)() {
            Ok(now) if now == self.interfaces => false,
            Ok(now) => {
                self.interfaces = now;
                true
            }
            Err(error) => {
                tracing::error!(%error, "cannot list the interfaces of the host, going by those known before");
                false
            }
        }
    }

    /// Addresses of this node, whichever interface they are on. Of an interface alone are those that are link-local in
    /// IPv6: nobody reaches them from elsewhere.
    pub(crate) fn addresses(&self) -> BTreeSet<IpAddr> {
        let of_interfaces = self.interfaces.iter().flat_map(|interface| &interface.addresses);
        let reached = of_interfaces.filter(|address| match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        });
        reached.chain(&self.addresses).copied().collect()
    }

    /// How many interfaces host endpoints can speak of, and how many addresses are then looked for at each; nothing if
    /// nobody could tell yet.
    pub(crate) fn counts(&self) -> Option<HostCounts> {
        let others = self
            .interfaces
            .iter()
            .filter(|interface| interface.name != LOOPBACK);
        (!self.interfaces.is_empty()).then(|| HostCounts {
            interfaces: others.count(),
            addresses: self.judged_addresses().len(),
        })
    }

    /// Where this node listens with others: groups, and broadcasts of its networks.
    pub(crate) fn groups(&self) -> BTreeSet<IpNet> {
        let broadcasts = self.interfaces.iter().flat_map(|interface| &interface.broadcasts);
        let everyone = IpAddr::V4(Ipv4Addr::BROADCAST);
        let groups = ["224.0.0.0/4", "ff00::/8"]
            .into_iter()
            .filter_map(|net| net.parse().ok());
        groups
            .chain(broadcasts.chain([&everyone]).copied().map(IpNet::from))
            .collect()
    }

    /// The numbers of the host endpoints of this node, as [`Hosts::number`] gave them last.
    pub(crate) fn ids(&self) -> &BTreeMap<String, HostEndpointIds> {
        &self.ids
    }

    /// Numbers the host endpoints of this node: those that are attached keep their numbers, also over a restart
    /// of the agent, so that their tables stay in force until the next ones are there.
    pub(crate) fn number(&mut self, hosts: &[&calico::HostEndpoint]) -> BTreeMap<String, HostEndpointIds> {
        let names: BTreeSet<String> = hosts.iter().copied().map(name).collect();
        let at = assign(hosts, &self.interfaces);
        self.ids.retain(|name, _| names.contains(name));
        for name in names {
            if self.ids.contains_key(&name) {
                continue;
            }
            let used: BTreeSet<EndpointId> = self
                .ids
                .values()
                .flat_map(|ids| [ids.local, ids.forwarded, ids.untracked])
                .collect();
            let own = at.iter().filter(|(_, of)| **of == name);
            let mut links = own.filter_map(|(index, _)| self.attached.get(index));
            let known = links.find(|link| !link.endpoints().any(|id| used.contains(&id)));
            let local = known.and_then(|link| link.addresses.values().next()).copied();
            let forwarded = known.and_then(|link| link.forward).map(|forward| forward.id);
            let forwarded = forwarded.filter(|id| *id != room::CLOSED);
            let ids = HostEndpointIds {
                local: local.map_or_else(|| self.fresh(), |local| local.id),
                forwarded: forwarded.unwrap_or_else(|| self.fresh()),
                untracked: local
                    .and_then(|local| local.untracked)
                    .unwrap_or_else(|| self.fresh()),
            };
            self.ids.insert(name, ids);
        }
        self.ids.clone()
    }

    /// Makes ready what these ask for, before `tables` are written: endpoints that interfaces are to have get tables with
    /// all others, and the programs come off interfaces that no host endpoint speaks of. Whether there is anything to
    /// write for [`Hosts::attach`], also if the tables are as before: a host endpoint keeps its numbers, and so its
    /// tables, when it moves to another interface.
    pub(crate) fn prepare(
        &mut self,
        datapath: &mut dyn Datapath,
        hosts: &[&calico::HostEndpoint],
        tables: &NodeTables,
    ) -> Result<bool, DatapathError> {
        if self.interfaces.is_empty() {
            // Not even loopback: nobody could tell them yet. What is attached stays.
            return Ok(false);
        }
        self.wanted.clear();
        let mut wanted = self.links(hosts, tables);
        let own = |index| self.addresses_of(index);
        self.unfit = room::fit(&mut wanted, own, self.room);
        let comes = |(index, link): &(&u32, &HostLink)| self.attached.get(index) != Some(link);
        let come: Vec<&HostLink> = wanted.iter().filter(comes).map(|(_, link)| link).collect();
        let is_any = !come.is_empty();
        let prepared: BTreeSet<EndpointId> = come.iter().flat_map(|link| link.endpoints()).collect();
        if prepared != self.prepared {
            datapath.prepare_hosts(&prepared)?;
            self.prepared = prepared;
        }
        let attached: Vec<u32> = self.attached.keys().copied().collect();
        for index in attached.into_iter().filter(|index| !wanted.contains_key(index)) {
            datapath.attach_host(&HostLink::none(index))?;
            self.attached.remove(&index);
        }
        self.wanted = wanted;
        Ok(is_any)
    }

    /// Attaches what was prepared, once the tables are written: from one endpoint to the next, and from none to one, an
    /// interface goes in one step. One that cannot be attached does not keep others from it.
    pub(crate) fn attach(&mut self, datapath: &mut dyn Datapath) -> Result<(), DatapathError> {
        let wanted: Vec<HostLink> = self.wanted.values().cloned().collect();
        let closing = match wanted.iter().any(room::is_closed) {
            true => datapath.close_hosts(&room::close(NodeTables::default())),
            false => Ok(()),
        };
        closing.and(self.give(datapath, wanted))?;
        self.prepared.clear();
        Ok(())
    }

    /// For people: which interfaces are closed because the kernel has no room for their addresses, if any are.
    pub(crate) fn unfit(&self) -> Option<String> {
        let Unfit {
            exceeded,
            narrowed,
            closed,
            open,
        } = self.unfit.as_ref()?;
        let kinds = [
            (narrowed, "is judged at its own addresses, and all else is denied"),
            (closed, "is closed"),
            (open, "cannot even be closed, and is open"),
        ];
        let kinds = kinds.into_iter().filter(|(interfaces, _)| !interfaces.is_empty());
        let told = kinds.map(|(interfaces, becomes)| format!("; {}: each {becomes}", self.names(interfaces)));
        let advice = exceeded.what.advice();
        Some(format!("it {exceeded}{}; {advice}", told.collect::<String>()))
    }

    /// For as long as the tables cannot be written. Interfaces that are to have another endpoint keep the one that they
    /// have, which judges as before. Those that have none get theirs, with the tables `closed`.
    pub(crate) fn hold(
        &mut self,
        datapath: &mut dyn Datapath,
        closed: &NodeTables,
    ) -> Result<(), DatapathError> {
        let closing = match self.wanted.values().any(room::is_closed) {
            true => datapath.close_hosts(&room::close(closed.clone())),
            false => datapath.close_hosts(closed),
        };
        let held = |link: &HostLink| match self.attached.get(&link.ifindex) {
            Some(before) => at_addresses_of(before, link),
            None => link.clone(),
        };
        let held = self.wanted.values().map(held).collect();
        closing.and(self.give(datapath, held))
    }

    /// Gives interfaces what they do not have yet; the first error, if there are any. Those that are to have less come
    /// first: others may need the room.
    fn give(&mut self, datapath: &mut dyn Datapath, links: Vec<HostLink>) -> Result<(), DatapathError> {
        let mut result = Ok(());
        let mut links: Vec<HostLink> = links
            .into_iter()
            .filter(|link| self.attached.get(&link.ifindex) != Some(link))
            .collect();
        links.sort_by_key(|link| {
            let before = self.attached.get(&link.ifindex).map_or(0, room::places);
            room::places(link) > before
        });
        for link in links {
            match datapath.attach_host(&link) {
                Ok(()) => drop(self.attached.insert(link.ifindex, link)),
                // Nothing passes there; once it is up, it is asked for again.
                Err(DatapathError::LinkLayer { .. }) if self.is_down(link.ifindex) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// What a node says of its host endpoints: these, of which the datapath has `attached` some, and holds `tables`.
    pub(crate) fn describe(
        &self,
        hosts: &[&calico::HostEndpoint],
        attached: &[HostLink],
        tables: &NodeTables,
    ) -> Vec<NodeHost> {
        let interface = |index: u32| self.name_of(index);
        let at = assign(hosts, &self.interfaces);
        let mut described = Vec::new();
        let mut known = BTreeSet::from([room::CLOSED]);
        for (name, ids) in &self.ids {
            let own = BTreeSet::from([ids.local, ids.forwarded, ids.untracked]);
            let is_own = |link: &&HostLink| {
                let is_closed = room::is_closed(link) && at.get(&link.ifindex) == Some(name);
                is_closed || link.endpoints().any(|id| own.contains(&id))
            };
            let links = attached.iter().filter(is_own);
            // One that is down may be of a kind that the programs cannot read, and carries nothing.
            let speaks_of = at.iter().filter(|(index, of)| {
                *of == name && (self.attached.contains_key(*index) || !self.is_down(**index))
            });
            described.push(NodeHost {
                name: name.clone(),
                local: ids.local.0,
                forwarded: ids.forwarded.0,
                untracked: ids.untracked.0,
                interfaces: speaks_of.map(|(index, _)| interface(*index)).collect(),
                attached: links.map(|link| interface(link.ifindex)).collect(),
                programmed: own
                    .iter()
                    .filter(|id| tables.endpoints.contains_key(id))
                    .map(|id| id.0)
                    .collect(),
            });
            known.extend(own);
        }
        for link in attached {
            let others = link.endpoints().filter(|id| !known.contains(id));
            let others: BTreeSet<u32> = others.map(|id| id.0).collect();
            if !others.is_empty() {
                described.push(NodeHost {
                    attached: [interface(link.ifindex)].into(),
                    programmed: others,
                    ..NodeHost::default()
                });
            }
        }
        described
    }

    /// Who judges packets of the host, as programs look it up.
    pub(crate) fn places(&self, places: &Places) -> Vec<HostPlaceRow> {
        let rows = places.hosts.iter().map(|((index, packets), judge)| HostPlaceRow {
            interface: self.name_of(*index),
            of: match packets {
                HostPackets::Address(address) => node_policy::HostPackets::Address(*address),
                HostPackets::Groups => node_policy::HostPackets::Groups,
                HostPackets::Forwarded => node_policy::HostPackets::Forwarded,
            },
            endpoint: judge.id.0,
            untracked: judge.untracked.map(|id| id.0),
        });
        rows.collect()
    }

    fn interface(&self, index: u32) -> Option<&Interface> {
        let mut interfaces = self.interfaces.iter();
        interfaces.find(|interface| interface.index == index)
    }

    fn is_down(&self, index: u32) -> bool {
        self.interface(index).is_some_and(|interface| !interface.is_up)
    }

    pub(crate) fn name_of(&self, index: u32) -> String {
        self.interface(index).map_or_else(
            || format!("interface {index}"),
            |interface| interface.name.clone(),
        )
    }

    fn names(&self, indices: &[u32]) -> String {
        let names = indices.iter().take(MANY).map(|index| self.name_of(*index));
        let names = names.collect::<Vec<_>>().join(", ");
        match indices.len().saturating_sub(MANY) {
            0 => names,
            more => format!("{names} and {more} more"),
        }
    }

    /// Addresses at which the host takes packets from an interface.
    fn addresses_of(&self, index: u32) -> BTreeSet<IpAddr> {
        let interface = self.interface(index);
        let addresses = interface.map(|interface| interface.addresses.union(&interface.broadcasts));
        addresses.into_iter().flatten().copied().collect()
    }

    /// All addresses whose packets are the host's own.
    fn judged_addresses(&self) -> BTreeSet<IpAddr> {
        let of_interfaces = self.interfaces.iter();
        let of_interfaces =
            of_interfaces.flat_map(|interface| interface.addresses.union(&interface.broadcasts));
        of_interfaces.chain(&self.addresses).copied().collect()
    }

    /// Packets of any address of the host are local, whichever interface they pass.
    fn links(&self, hosts: &[&calico::HostEndpoint], tables: &NodeTables) -> BTreeMap<u32, HostLink> {
        if hosts.is_empty() {
            return BTreeMap::new();
        }
        let has_tables = |id: &EndpointId| tables.endpoints.contains_key(id);
        let addresses = self.judged_addresses();
        let link = |(index, name): (u32, String)| {
            let ids = self.ids.get(&name)?;
            let local = HostEndpoint {
                id: ids.local,
                untracked: Some(ids.untracked).filter(has_tables),
            };
            let forward = Some(ids.forwarded).filter(has_tables).map(|id| HostEndpoint {
                id,
                untracked: local.untracked,
            });
            let link = HostLink {
                ifindex: index,
                addresses: addresses.iter().map(|address| (*address, local)).collect(),
                forward,
            };
            Some((index, link))
        };
        assign(hosts, &self.interfaces)
            .into_iter()
            .filter_map(link)
            .collect()
    }

    fn fresh(&mut self) -> EndpointId {
        let id = EndpointId(self.next);
        self.next = self.next.saturating_add(1);
        id
    }
}

/// Lets the datapath's thread know of each change of interfaces and addresses as it happens, for as long as that thread
/// lives.
pub(crate) async fn follow(policy: Policy) {
    loop {
        match LinkChanges::follow() {
            Ok(mut changes) => {
                // The first look is for what came before.
                let mut lives = policy.interfaces_changed();
                while lives.is_ok() && changes.next().await.is_some() {
                    lives = policy.interfaces_changed();
                }
                if lives.is_err() {
                    return;
                }
                tracing::warn!("the kernel tells nothing more of interfaces");
            }
            Err(error) => tracing::warn!(error = chain(&error), "interfaces cannot be followed"),
        }
        tokio::time::sleep(FOLLOW_AGAIN).await;
    }
}

/// The host's interfaces, loopback among them, with the addresses at which the host takes packets from there; without the
/// pods' links, by index.
pub(crate) fn interfaces() -> io::Result<Vec<Interface>> {
    fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    }
    let mut found: BTreeMap<String, (bool, [BTreeSet<IpAddr>; 2])> = BTreeMap::new();
    for entry in nix::ifaddrs::getifaddrs()? {
        if entry.interface_name.starts_with(LINK_PREFIX) {
            continue;
        }
        let device = device_of(&entry.interface_name).to_owned();
        let (is_up, [addresses, broadcasts]) = found.entry(device).or_default();
        *is_up |= entry.flags.contains(InterfaceFlags::IFF_UP);
        addresses.extend(entry.address.as_ref().and_then(ip));
        let broadcast = entry.broadcast.as_ref().and_then(ip);
        broadcasts.extend(broadcast.filter(|address| !address.is_unspecified()));
    }
    let mut interfaces: Vec<Interface> = found
        .into_iter()
        .filter_map(|(name, (is_up, [addresses, mut broadcasts]))| {
            broadcasts.retain(|address| !addresses.contains(address));
            // One that has gone meanwhile has no index.
            let index = nix::net::if_::if_nametoindex(name.as_str()).ok()?;
            Some(Interface {
                index,
                name,
                is_up,
                addresses,
                broadcasts,
            })
        })
        .collect();
    interfaces.sort_by_key(|interface| interface.index);
    Ok(interfaces)
}

/// The device behind a name: an address of IPv4 may have a label of its own, `eth0:1`.
fn device_of(label: &str) -> &str {
    label.split_once(':').map_or(label, |(device, _)| device)
}

/// The host endpoint of each interface that has one. The one that names the interface comes before one that names an
/// address there, and both before `*`; of several alike, the first by name.
fn assign(hosts: &[&calico::HostEndpoint], interfaces: &[Interface]) -> BTreeMap<u32, String> {
    let rank = |object: &calico::HostEndpoint, interface: &Interface| {
        let spec = &object.spec;
        let expected = || {
            spec.expected_ips
                .iter()
                .filter_map(|text| text.parse::<IpAddr>().ok())
        };
        match spec.interface_name.as_str() {
            "*" => Some(2),
            "" => expected()
                .any(|address| interface.addresses.contains(&address.to_canonical()))
                .then_some(1),
            own => (own == interface.name).then_some(0),
        }
    };
    let chosen = |interface: &Interface| {
        let ranked = hosts
            .iter()
            .filter_map(|object| Some((rank(object, interface)?, name(object))));
        ranked.min()
    };
    interfaces
        .iter()
        .filter(|interface| interface.name != LOOPBACK)
        .filter_map(|interface| Some((interface.index, chosen(interface)?.1)))
        .collect()
}

/// The endpoints of `before`, for the addresses that `link` is to have. What either is closed to stays closed.
fn at_addresses_of(before: &HostLink, link: &HostLink) -> HostLink {
    let Some(local) = before.addresses.values().next() else {
        return before.clone();
    };
    HostLink {
        ifindex: before.ifindex,
        addresses: link.addresses.keys().map(|address| (*address, *local)).collect(),
        forward: match room::is_closed(link) {
            true => link.forward,
            false => before.forward,
        },
    }
}

fn name(object: &calico::HostEndpoint) -> String {
    object.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use ebpf_loader::Fake;
    use policies_compiler::{CalicoObject, ClusterView, capacity};
    use policies_ir::tables::{Direction, Packet, Verdict};
    use serde_json::{Value, json};

    use super::*;

    fn view(hosts: &[(&str, Value)], policies: &[Value]) -> ClusterView {
        let mut view = ClusterView {
            node: "here".to_owned(),
            ..ClusterView::default()
        };
        for (name, spec) in hosts {
            let object = json!({"metadata": {"name": name, "labels": {"host": ""}}, "spec": spec});
            let object = serde_json::from_value(object).unwrap();
            view.calico.push(CalicoObject::HostEndpoint(object));
        }
        for spec in policies {
            let object = json!({"metadata": {"name": "p"}, "spec": spec});
            let object = serde_json::from_value(object).unwrap();
            view.calico.push(CalicoObject::GlobalNetworkPolicy(object));
        }
        view
    }

    fn of_node(view: &ClusterView) -> Vec<&calico::HostEndpoint> {
        let hosts = view.calico.iter().filter_map(|object| match object {
            CalicoObject::HostEndpoint(object) if object.spec.node == view.node => Some(object),
            _ => None,
        });
        hosts.collect()
    }

    fn machine() -> Vec<Interface> {
        let interface = |index, name: &str, address: &str| Interface {
            index,
            name: name.to_owned(),
            is_up: true,
            addresses: [address.parse().unwrap()].into(),
            broadcasts: BTreeSet::new(),
        };
        vec![
            interface(2, "eth0", "192.0.2.1"),
            interface(3, "eth1", "198.51.100.1"),
            interface(5, "wlan0", "203.0.113.1"),
        ]
    }

    fn assigned(hosts: &[(&str, Value)]) -> Vec<(u32, String)> {
        assign(&of_node(&view(hosts, &[])), &machine())
            .into_iter()
            .collect()
    }

    #[test]
    fn interfaces_are_found_by_name_by_address_and_by_star() {
        let named = ("b", json!({"node": "here", "interfaceName": "eth0"}));
        let by_address = (
            "c",
            json!({"node": "here", "expectedIPs": ["192.0.2.1", "198.51.100.1"]}),
        );
        let star = ("a", json!({"node": "here", "interfaceName": "*"}));
        let elsewhere = ("0", json!({"node": "there", "interfaceName": "*"}));
        let own = |pairs: &[(u32, &str)]| -> Vec<(u32, String)> {
            pairs
                .iter()
                .map(|(index, name)| (*index, (*name).to_owned()))
                .collect()
        };
        assert_eq!(assigned(std::slice::from_ref(&elsewhere)), []);
        assert_eq!(assigned(std::slice::from_ref(&named)), own(&[(2, "b")]));
        assert_eq!(
            assigned(&[elsewhere, star, by_address, named]),
            own(&[(2, "b"), (3, "c"), (5, "a")])
        );
    }

    /// One pass of the agent.
    fn pass(hosts: &mut Hosts, datapath: &mut Fake, mut view: ClusterView) -> ClusterView {
        hosts.interfaces = machine();
        view.host_endpoints = hosts.number(&of_node(&view));
        let tables = policies_compiler::compile(&view).tables;
        hosts.prepare(datapath, &of_node(&view), &tables).unwrap();
        datapath.sync(&tables).unwrap();
        hosts.attach(datapath).unwrap();
        view
    }

    #[test]
    fn programs_come_and_go_with_the_objects_and_numbers_outlive_the_agent() {
        let mut datapath = Fake::default();
        let mut hosts = Hosts::start(&mut datapath, BTreeSet::new()).unwrap();
        pass(&mut hosts, &mut datapath, view(&[], &[]));
        assert_eq!(datapath.attached_hosts().unwrap(), []);

        let eth0 = ("b", json!({"node": "here", "interfaceName": "eth0"}));
        let numbered = pass(&mut hosts, &mut datapath, view(std::slice::from_ref(&eth0), &[]));
        let ids = numbered.host_endpoints.get("b").copied().unwrap();
        let [link] = &datapath.attached_hosts().unwrap()[..] else {
            panic!("one interface")
        };
        assert_eq!((link.ifindex, link.forward), (2, None));
        // The host's other addresses are local too.
        let local = HostEndpoint {
            id: ids.local,
            untracked: None,
        };
        let expected = ["192.0.2.1", "198.51.100.1", "203.0.113.1"].map(|a| (a.parse().unwrap(), local));
        assert_eq!(link.addresses, expected.into());

        // A policy for forwarded and untracked packets brings the other parts.
        let untracked = json!({"selector": "has(host)", "doNotTrack": true, "applyOnForward": true,
            "types": ["Ingress"], "ingress": [{"action": "Deny"}]});
        let with_policy = view(std::slice::from_ref(&eth0), &[untracked]);
        pass(&mut hosts, &mut datapath, with_policy.clone());
        let attached = datapath.attached_hosts().unwrap();
        let forward = attached[0].forward.unwrap();
        assert_eq!(
            (forward.id, forward.untracked),
            (ids.forwarded, Some(ids.untracked))
        );

        let tables = policies_compiler::compile(&ClusterView {
            host_endpoints: numbered.host_endpoints.clone(),
            ..with_policy.clone()
        });
        let described = hosts.describe(&of_node(&with_policy), &attached, &tables.tables);
        let [host] = &described[..] else {
            panic!("one host endpoint")
        };
        assert_eq!((host.name.as_str(), host.local), ("b", ids.local.0));
        assert_eq!(host.interfaces, host.attached);
        assert_eq!(host.interfaces, ["eth0".to_owned()].into());
        assert_eq!(host.programmed.len(), 3, "{host:?}");

        // Another agent, and another object that comes before it by name.
        let mut hosts = Hosts::start(&mut datapath, BTreeSet::new()).unwrap();
        let mut both = with_policy;
        both.calico
            .extend(view(&[("a", json!({"node": "here", "interfaceName": "eth1"}))], &[]).calico);
        let numbered = pass(&mut hosts, &mut datapath, both);
        assert_eq!(numbered.host_endpoints.get("b"), Some(&ids));
        let others = numbered.host_endpoints.get("a").unwrap();
        assert!(
            [others.local, others.forwarded, others.untracked]
                .iter()
                .all(|id| id.0 > ids.untracked.0)
        );
        assert_eq!(datapath.attached_hosts().unwrap().len(), 2);

        pass(&mut hosts, &mut datapath, view(&[], &[]));
        assert_eq!(datapath.attached_hosts().unwrap(), []);
    }

    #[test]
    fn until_its_tables_are_written_a_new_interface_is_closed_but_for_failsafes() {
        let mut datapath = Fake::default();
        let mut hosts = Hosts::start(&mut datapath, BTreeSet::new()).unwrap();
        let open =
            json!({"node": "here", "interfaceName": "eth0", "profiles": ["projectcalico-default-allow"]});
        let everything = json!({"selector": "has(host)", "applyOnForward": true, "types": ["Ingress"],
            "ingress": [{"action": "Allow"}]});
        let mut view = view(&[("b", open)], &[everything]);
        hosts.interfaces = machine();
        view.host_endpoints = hosts.number(&of_node(&view));
        let tables = policies_compiler::compile(&view).tables;
        let failsafe = view.policy_set(|_, _| {}).enforced.failsafe;
        let closed = policies_compiler::closed_hosts(&hosts.ids, &failsafe);

        assert!(hosts.prepare(&mut datapath, &of_node(&view), &tables).unwrap());
        hosts.hold(&mut datapath, &closed).unwrap();
        let attached = datapath.attached_hosts().unwrap();
        let ids = hosts.ids["b"];
        assert_eq!(attached[0].forward.unwrap().id, ids.forwarded);
        let to = |datapath: &Fake, endpoint, port| {
            let packet = Packet {
                direction: Direction::Ingress,
                peer: "203.0.113.9".parse().unwrap(),
                inside: None,
                protocol: 6,
                source_port: 40_000,
                port,
            };
            datapath.judge(endpoint, &packet).verdict == Verdict::Allow
        };
        assert!(to(&datapath, ids.local, 22) && !to(&datapath, ids.local, 80));
        assert!(!to(&datapath, ids.forwarded, 22));
        assert!(capacity::demand(&closed).verdicts < 100, "{closed:?}");

        datapath.sync(&tables).unwrap();
        hosts.attach(&mut datapath).unwrap();
        assert_eq!(datapath.attached_hosts().unwrap(), attached);
        assert!(to(&datapath, ids.local, 80) && to(&datapath, ids.forwarded, 22));
    }

    /// There is room for two interfaces of three, with the three addresses of the node and its groups at each.
    #[test]
    fn an_interface_without_room_is_closed_to_all_but_its_own_addresses() {
        let mut datapath = Fake::default();
        let start = |datapath: &mut Fake| Hosts::start(datapath, BTreeSet::new()).unwrap();
        let star = json!({"node": "here", "interfaceName": "*", "profiles": ["projectcalico-default-allow"]});
        let everything = json!({"selector": "has(host)", "applyOnForward": true, "types": ["Ingress"],
            "ingress": [{"action": "Allow"}]});
        let open = view(&[("all", star)], &[everything]);
        let mut hosts = start(&mut datapath).with_room(14);
        let numbered = pass(&mut hosts, &mut datapath, open.clone());
        assert_eq!(
            hosts.unfit().unwrap(),
            "it needs 15 pairs of an interface and an address of the host, and a node holds 14; wlan0: each is judged at \
             its own addresses, and all else is denied; name fewer interfaces in HostEndpoints, or take addresses off the \
             node"
        );
        let attached = datapath.attached_hosts().unwrap();
        let ids = numbered.host_endpoints["all"];
        assert_eq!(attached[1].addresses.len(), 3);
        assert_eq!(attached[1].forward.unwrap().id, ids.forwarded);
        let narrow = &attached[2];
        assert_eq!(narrow.addresses.len(), 1);
        assert_eq!(narrow.addresses[&IpAddr::from([203, 0, 113, 1])].id, ids.local);
        let rest = narrow.forward.unwrap();
        let packet = Packet {
            direction: Direction::Ingress,
            peer: "203.0.113.9".parse().unwrap(),
            inside: None,
            protocol: 6,
            source_port: 40_000,
            port: 22,
        };
        assert_eq!(datapath.judge(ids.forwarded, &packet).verdict, Verdict::Allow);
        assert_eq!(datapath.judge(rest.id, &packet).verdict, Verdict::Deny);
        assert!(datapath.places().unwrap().closed.contains(&rest.id));
        let tables = datapath.dump().unwrap();
        let described = hosts.describe(&of_node(&open), &attached, &tables);
        let [host] = &described[..] else {
            panic!("{described:?}")
        };
        assert_eq!((&host.interfaces, host.attached.len()), (&host.attached, 3));

        // The next agent takes what is closed for nobody's own, and tables that do not fit open nothing there.
        let mut hosts = start(&mut datapath).with_room(14);
        assert_eq!(
            pass(&mut hosts, &mut datapath, open.clone()).host_endpoints["all"],
            ids
        );
        let failsafe = open.policy_set(|_, _| {}).enforced.failsafe;
        let closed = policies_compiler::closed_hosts(&hosts.ids, &failsafe);
        hosts.hold(&mut datapath, &closed).unwrap();
        assert_eq!(datapath.attached_hosts().unwrap(), attached);

        let mut hosts = start(&mut datapath).with_room(15);
        pass(&mut hosts, &mut datapath, open);
        assert_eq!(hosts.unfit(), None);
        let attached = datapath.attached_hosts().unwrap();
        let is_whole =
            |link: &HostLink| link.addresses.len() == 3 && link.forward.unwrap().id == ids.forwarded;
        assert!(attached.iter().all(is_whole), "{attached:?}");
    }

    #[test]
    fn every_address_of_the_nodes_interfaces_is_its_own_and_broadcasts_are_everyones() {
        let mut datapath = Fake::default();
        let gateway = IpAddr::from([169, 254, 1, 1]);
        let mut hosts = Hosts::start(&mut datapath, [gateway].into()).unwrap();
        hosts = hosts.on(|| {
            let [mut lan, mut vpn] = [2, 3].map(|index| machine().swap_remove(index - 2));
            lan.addresses.insert("2001:db8::1".parse().unwrap());
            lan.addresses.insert("fe80::1:2".parse().unwrap());
            lan.broadcasts.insert("192.0.2.255".parse().unwrap());
            vpn.addresses.insert("10.9.0.1".parse().unwrap());
            Ok(vec![lan, vpn])
        });
        assert_eq!(hosts.addresses(), [gateway].into());
        assert!(hosts.look() && !hosts.look());
        let own = [
            "169.254.1.1",
            "192.0.2.1",
            "198.51.100.1",
            "10.9.0.1",
            "2001:db8::1",
        ];
        assert_eq!(
            hosts.addresses(),
            own.map(|address| address.parse().unwrap()).into()
        );
        let groups = ["192.0.2.255/32", "224.0.0.0/4", "255.255.255.255/32", "ff00::/8"];
        assert_eq!(hosts.groups(), groups.map(|net| net.parse().unwrap()).into());
    }

    /// This machine has a loopback interface at least, and its addresses are none of a broadcast.
    #[test]
    fn the_kernel_lists_interfaces() {
        let found = interfaces().unwrap();
        let loopback = found.iter().find(|interface| interface.name == LOOPBACK).unwrap();
        assert!(
            loopback.addresses.contains(&Ipv4Addr::LOCALHOST.into()),
            "{found:?}"
        );
        assert!(loopback.broadcasts.is_empty(), "{found:?}");
        assert_eq!(
            ["eth0", "eth0:1", "vlan:a:b"].map(device_of),
            ["eth0", "eth0", "vlan"]
        );
    }
}
