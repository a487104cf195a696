//! Endpoints of the host: which interfaces and addresses have which.
//!
//! One that an interface is to have gets a slot first, then its tables, and only then the interface: programs never meet
//! it without.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_abi::{ENDPOINT_HAS_UNTRACKED, Endpoint, EndpointState, HostKey};
use policies_ir::tables::EndpointId;

use super::{
    Kernel,
    link_layer::{self, LinkLayer},
    links::Hook,
    maps::Maps,
};
use crate::{DatapathError, HostEndpoint, HostLink, encode, sys};

impl Kernel {
    /// These have slots, and of those that no interface has no others.
    pub(super) fn reserve_hosts(&mut self, endpoints: &BTreeSet<EndpointId>) -> Result<(), DatapathError> {
        let before = self.maps.endpoints()?;
        self.maps
            .reserved
            .retain(|endpoint| endpoints.contains(&EndpointId(endpoint.id)));
        // Those that an interface has may lose it before they get the next one.
        let is_reserved = |id: &EndpointId, maps: &Maps| maps.reserved.iter().any(|known| known.id == id.0);
        for id in endpoints {
            let slot = self.host_slot(*id)?;
            if !is_reserved(id, &self.maps) {
                self.maps.reserved.push(bare(*id, slot));
            }
        }
        self.forget_gone(&before)
    }

    /// Gives the interface these endpoints and no others.
    pub(super) fn give_host(&mut self, link: &HostLink) -> Result<(), DatapathError> {
        // Before anything is written: one that cannot be judged keeps what it had.
        let hooks = match link.endpoints().next() {
            Some(_) => Some(Hook::of_host(LinkLayer::of(link.ifindex)?)),
            None => None,
        };
        let before = self.maps.endpoints()?;
        let mut known: BTreeMap<HostEndpoint, Endpoint> = BTreeMap::new();
        for endpoint in link.addresses.values().chain(&link.forward) {
            if !known.contains_key(endpoint) {
                known.insert(*endpoint, self.host_endpoint(endpoint)?);
            }
        }
        let mut wanted = BTreeMap::new();
        let addresses = link.addresses.iter();
        let addresses = addresses.map(|(ip, endpoint)| (encode::host_key(link.ifindex, Some(*ip)), endpoint));
        let group = link.addresses.values().next();
        let group = group.map(|endpoint| (encode::group_key(link.ifindex), endpoint));
        let forward = link.forward.iter();
        let forward = forward.map(|endpoint| (encode::host_key(link.ifindex, None), endpoint));
        for (key, endpoint) in addresses.chain(group).chain(forward) {
            if let Some(endpoint) = known.get(endpoint) {
                wanted.insert(key, *endpoint);
            }
        }
        self.place(link.ifindex, &wanted)?;
        if let Some(hooks) = hooks {
            self.attach_hooks(hooks, link.ifindex)?;
        }
        for unwanted in Hook::HOST.into_iter().filter(|pair| Some(*pair) != hooks) {
            self.links.detach(unwanted, link.ifindex)?;
        }
        let given: BTreeSet<u32> = link.endpoints().map(|id| id.0).collect();
        self.maps
            .reserved
            .retain(|endpoint| !given.contains(&endpoint.id));
        self.forget_gone(&before)
    }

    /// Writes what is looked up at the interface, and takes all else away. What is about everything that nothing else is
    /// about is written first and taken away last: an address that comes to be judged by it, or to have an entry of its
    /// own, is judged at every moment.
    fn place(&mut self, ifindex: u32, wanted: &BTreeMap<HostKey, Endpoint>) -> Result<(), DatapathError> {
        let current = self.maps.hosts()?;
        let rest = encode::host_key(ifindex, None);
        if let Some(endpoint) = wanted.get(&rest) {
            self.place_one(&rest, current.get(&rest), endpoint)?;
        }
        let is_left = |key: &&HostKey| key.ifindex == ifindex && !wanted.contains_key(key);
        for key in current.keys().filter(|key| **key != rest).filter(is_left) {
            self.take_place(key)?;
        }
        for (key, endpoint) in wanted.iter().filter(|(key, _)| **key != rest) {
            self.place_one(key, current.get(key), endpoint)?;
        }
        if current.contains_key(&rest) && !wanted.contains_key(&rest) {
            self.take_place(&rest)?;
        }
        Ok(())
    }

    fn place_one(
        &mut self,
        key: &HostKey,
        known: Option<&Endpoint>,
        endpoint: &Endpoint,
    ) -> Result<(), DatapathError> {
        if known != Some(endpoint) {
            self.maps.write_host(key, endpoint)?;
        }
        if known.is_some_and(|known| known != endpoint) {
            sys::wait_for_programs();
        }
        Ok(())
    }

    fn take_place(&mut self, key: &HostKey) -> Result<(), DatapathError> {
        self.maps.remove_host(key)?;
        // The next one may get the memory.
        sys::wait_for_programs();
        Ok(())
    }

    /// Interfaces that have endpoints. What those that have vanished had is forgotten.
    pub(super) fn hosts_with_endpoints(&mut self) -> Result<Vec<HostLink>, DatapathError> {
        let mut links: BTreeMap<u32, HostLink> = BTreeMap::new();
        for (key, endpoint) in self.maps.hosts()? {
            let link = links
                .entry(key.ifindex)
                .or_insert_with(|| HostLink::none(key.ifindex));
            encode::add_to_host_link(link, &key, &endpoint);
        }
        // One that cannot be inspected is shown: taking it away would open the interface. So is one that has no programs:
        // whoever has endpoints there gives it programs again, or takes the endpoints away.
        let is_live = |link: &HostLink| link_layer::is_there(link.ifindex).unwrap_or(true);
        let (live, dead): (Vec<_>, Vec<_>) = links.into_values().partition(is_live);
        for link in dead {
            self.give_host(&HostLink::none(link.ifindex))?;
        }
        Ok(live)
    }

    /// The slot that the endpoint has already, or a free one, which is then its own.
    fn host_slot(&mut self, id: EndpointId) -> Result<u32, DatapathError> {
        let endpoints = self.maps.endpoints()?;
        if let Some((_, known)) = endpoints.iter().find(|(_, endpoint)| endpoint.id == id.0) {
            return Ok(known.slot);
        }
        let endpoint = bare(id, Maps::free_slot(&endpoints)?);
        self.maps.clear_slot(&endpoint)?;
        self.maps.reserved.push(endpoint);
        Ok(endpoint.slot)
    }

    fn host_endpoint(&mut self, wanted: &HostEndpoint) -> Result<Endpoint, DatapathError> {
        let mut endpoint = bare(wanted.id, self.host_slot(wanted.id)?);
        if let Some(untracked) = wanted.untracked {
            endpoint.flags |= ENDPOINT_HAS_UNTRACKED;
            endpoint.untracked = untracked.0;
            endpoint.untracked_slot = self.host_slot(untracked)?;
        }
        Ok(endpoint)
    }

    /// Forgets what the endpoints that are gone have left in the maps.
    fn forget_gone(&mut self, before: &[(u32, Endpoint)]) -> Result<(), DatapathError> {
        let left: BTreeSet<u32> = self
            .maps
            .endpoints()?
            .iter()
            .map(|(_, endpoint)| endpoint.id)
            .collect();
        for (ifindex, endpoint) in before.iter().filter(|(_, endpoint)| !left.contains(&endpoint.id)) {
            self.maps.set_state(endpoint, EndpointState::default());
            self.note_gone(*ifindex, endpoint)?;
        }
        self.forget_flows()
    }
}

fn bare(id: EndpointId, slot: u32) -> Endpoint {
    Endpoint {
        id: id.0,
        slot,
        ..Endpoint::default()
    }
}
