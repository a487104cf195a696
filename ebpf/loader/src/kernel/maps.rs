//! The pinned maps, each call naming its map in the error. What becomes of flows is [`flows`], how many there are of whom
//! [`counts`].

mod counts;
mod denials;
mod flows;
mod hash;
mod shapes;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    mem::offset_of,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::Ordering,
};

pub(crate) use counts::Census;
use counts::{Cleared, FIRST_PEERS};
pub(crate) use flows::Slice;
use hash::Hash;
pub(crate) use shapes::check_pinned;

use crate::{
    DatapathError, Fill, Limits,
    kernel::look::addresses,
    sys::{self, MappedArray},
};
use aya::{
    Ebpf,
    maps::{LpmTrie, Map, MapData, MapError, PerCpuArray, ProgramArray, lpm_trie::Key},
    programs::ProgramFd,
    sys::SyscallError,
};
use ebpf_abi::{
    Address, AddressClass, Denial, DenialKey, ENDPOINT_HAS_UNTRACKED, Endpoint, EndpointState, FlowKey,
    FlowState, HostKey, IDENTITY_PREFIX_BASE, IdentityKey, InsideClasses, InsideKey, MAX_DENIALS,
    MAX_ENDPOINTS, MAX_HOST_ADDRESSES, MAX_POD_ADDRESSES, PEER_BUCKETS, PodLink, Slot, SourceKey, SplitKey,
    VerdictKey, VerdictValue,
};

const ENDPOINTS: &str = "ENDPOINTS";
const PODS: &str = "PODS";
const HANDOVER: &str = "HANDOVER";
const HOST_ENDPOINTS: &str = "HOST_ENDPOINTS";
const SLOTS: &str = "SLOTS";
const SOURCES: &str = "SOURCES";
const HOSTS: &str = "HOSTS";
const IDENTITIES: &str = "IDENTITIES";
const SPLITS: &str = "SPLITS";
const INSIDES: &str = "INSIDES";
const VERDICTS: &str = "VERDICTS";
const FLOWS: &str = "FLOWS";
const CLOSED: &str = "CLOSED";
const CLOSINGS: &str = "CLOSINGS";
const PEERS: &str = "PEERS";
const FRAGMENTS: &str = "FRAGMENTS";
const DENIALS: &str = "DENIALS";
pub(crate) const EVENTS: &str = "EVENTS";
const COUNTER_MAP: &str = "COUNTERS";

/// Prefix length of a whole address, of either family.
const WHOLE_ADDRESS: u32 = IDENTITY_PREFIX_BASE + 128;

/// Whether the class of a whole address is meant, which has a map of its own.
pub(crate) fn is_whole_address(key: &Key<IdentityKey>) -> bool {
    key.prefix_len() == WHOLE_ADDRESS
}

/// The maps of the programs.
pub(crate) struct Maps {
    endpoints: Hash<u32, Endpoint>,
    host_endpoints: Hash<HostKey, Endpoint>,
    /// Endpoints of the host that have a slot, and perhaps tables, before any interface has them.
    pub(crate) reserved: Vec<Endpoint>,
    pods: Hash<Address, PodLink>,
    handover: ProgramArray<MapData>,
    slots: MappedArray<Slot>,
    /// Mapped as far as slots are taken.
    peers: MappedArray<u64>,
    peers_fd: OwnedFd,
    denials: Hash<DenialKey, Denial>,
    sources: LpmTrie<MapData, SourceKey, u32>,
    hosts: Hash<IdentityKey, AddressClass>,
    identities: LpmTrie<MapData, IdentityKey, AddressClass>,
    splits: Hash<SplitKey, u32>,
    insides: Hash<InsideKey, InsideClasses>,
    verdicts: Hash<VerdictKey, VerdictValue>,
    flows: Hash<FlowKey, FlowState>,
    /// Of those, the ones that were closed when they were last looked through.
    closed: u64,
    cleared: Cleared,
    counters: PerCpuArray<MapData, u64>,
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub(crate) fn take(programs: &mut Ebpf) -> Result<Self, DatapathError> {
        fn typed<T: TryFrom<Map, Error = MapError>>(
            programs: &mut Ebpf,
            name: &'static str,
        ) -> Result<T, DatapathError> {
            let map = programs.take_map(name).ok_or(DatapathError::Missing { name })?;
            T::try_from(map).map_err(failed_map(name, "open"))
        }
        let descriptor = |name| {
            let Some(Map::Array(map)) = programs.map(name) else {
                return Err(DatapathError::Missing { name });
            };
            let descriptor = map.fd().as_fd().try_clone_to_owned();
            descriptor.map_err(|error| failed_call(name, "open", "dup", error))
        };
        let (slots_fd, peers_fd) = (descriptor(SLOTS)?, descriptor(PEERS)?);
        Ok(Self {
            endpoints: Hash::take(programs, ENDPOINTS)?,
            host_endpoints: Hash::take(programs, HOST_ENDPOINTS)?,
            reserved: Vec::new(),
            pods: Hash::take(programs, PODS)?,
            handover: typed(programs, HANDOVER)?,
            slots: mapped(slots_fd.as_fd(), SLOTS, MAX_ENDPOINTS)?,
            peers: mapped(peers_fd.as_fd(), PEERS, FIRST_PEERS * PEER_BUCKETS)?,
            peers_fd,
            denials: Hash::take(programs, DENIALS)?,
            sources: typed(programs, SOURCES)?,
            hosts: Hash::take(programs, HOSTS)?,
            identities: typed(programs, IDENTITIES)?,
            splits: Hash::take(programs, SPLITS)?,
            insides: Hash::take(programs, INSIDES)?,
            verdicts: Hash::take(programs, VERDICTS)?,
            flows: Hash::take(programs, FLOWS)?,
            closed: 0,
            cleared: Cleared::new(),
            counters: typed(programs, COUNTER_MAP)?,
        })
    }

    /// Every endpoint with its interface, each once: those of pods, of the host's addresses and of what hosts forward,
    /// and those that are asked before tracking; then those that no interface has yet, with none.
    pub(crate) fn endpoints(&self) -> Result<Vec<(u32, Endpoint)>, DatapathError> {
        let mut all = self.pods()?;
        let mut seen: BTreeSet<u32> = all.iter().map(|(_, endpoint)| endpoint.id).collect();
        for (key, endpoint) in self.hosts()? {
            if seen.insert(endpoint.id) {
                all.push((key.ifindex, endpoint));
            }
            if endpoint.flags & ENDPOINT_HAS_UNTRACKED != 0 && seen.insert(endpoint.untracked) {
                let untracked = Endpoint {
                    id: endpoint.untracked,
                    slot: endpoint.untracked_slot,
                    ..Endpoint::default()
                };
                all.push((key.ifindex, untracked));
            }
        }
        let reserved = self.reserved.iter().filter(|endpoint| seen.insert(endpoint.id));
        all.extend(reserved.map(|endpoint| (0, *endpoint)));
        Ok(all)
    }

    /// Every pod's endpoint with its interface.
    pub(crate) fn pods(&self) -> Result<Vec<(u32, Endpoint)>, DatapathError> {
        self.endpoints.all()
    }

    /// What the host's interfaces and addresses have for endpoints.
    pub(crate) fn hosts(&self) -> Result<BTreeMap<HostKey, Endpoint>, DatapathError> {
        Ok(self.host_endpoints.all()?.into_iter().collect())
    }

    /// Gives an address of the host an endpoint.
    pub(crate) fn write_host(&mut self, key: &HostKey, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.host_endpoints.insert(key, endpoint)
    }

    /// Takes it away. [`sys::wait_for_programs`] before the next one is written.
    pub(crate) fn remove_host(&mut self, key: &HostKey) -> Result<(), DatapathError> {
        self.host_endpoints.remove(key)
    }

    /// Prepares the slot of a new endpoint: no tables, no flows.
    pub(crate) fn clear_slot(&mut self, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.set_state(endpoint, EndpointState::default());
        self.clear_counts(endpoint.slot)?;
        self.set_ranks(endpoint, 0, true);
        if let Some(unreported) = self.slots.field(endpoint.slot, offset_of!(Slot, unreported)) {
            unreported.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes an endpoint known to the programs, without tables and without flows.
    pub(crate) fn write_endpoint(&mut self, ifindex: u32, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.clear_slot(endpoint)?;
        self.endpoints.insert(&ifindex, endpoint)?;
        for address in addresses(endpoint) {
            self.pods.insert(&address, &pod_link(ifindex, endpoint))?;
        }
        Ok(())
    }

    /// Takes an endpoint away and waits until no program reads it any more: the next one may get its memory.
    pub(crate) fn remove_endpoint(&mut self, ifindex: u32, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.set_state(endpoint, EndpointState::default());
        for address in addresses(endpoint) {
            if self.pods.get(&address)?.is_some_and(|pod| pod.ifindex == ifindex) {
                self.pods.remove(&address)?;
            }
        }
        self.endpoints.remove(&ifindex)?;
        sys::wait_for_programs();
        Ok(())
    }

    /// Lets what goes straight to a pod be handed over to `program`.
    pub(crate) fn set_handover(&mut self, program: &ProgramFd) -> Result<(), DatapathError> {
        self.handover
            .set(0, program, 0)
            .map_err(failed_map(HANDOVER, "write"))
    }

    /// Makes `PODS` say where the endpoints' pods are, and nothing else: an agent may have died between the writes, and one
    /// of an earlier build knew no such map.
    pub(crate) fn restore_pods(&mut self) -> Result<(), DatapathError> {
        let mut wanted = BTreeMap::new();
        for (ifindex, endpoint) in self.pods()? {
            for address in addresses(&endpoint) {
                wanted.insert(address, pod_link(ifindex, &endpoint));
            }
        }
        for (address, link) in self.pods.all()? {
            if wanted.get(&address) == Some(&link) {
                wanted.remove(&address);
            } else {
                self.pods.remove(&address)?;
            }
        }
        // What was removed may lend its memory to what is written.
        sys::wait_for_programs();
        wanted
            .iter()
            .try_for_each(|(address, link)| self.pods.insert(address, link))
    }

    /// Where what goes straight to a pod is taken to.
    pub(crate) fn ways(&self) -> Result<Vec<(Address, PodLink)>, DatapathError> {
        self.pods.all()
    }

    /// The lowest slot that none of `endpoints` has.
    pub(crate) fn free_slot(endpoints: &[(u32, Endpoint)]) -> Result<u32, DatapathError> {
        let taken: BTreeSet<u32> = endpoints.iter().map(|(_, endpoint)| endpoint.slot).collect();
        (0..MAX_ENDPOINTS)
            .find(|slot| !taken.contains(slot))
            .ok_or(DatapathError::Full {
                map: SLOTS,
                needed: endpoints.len() + 1,
                limit: endpoints.len(),
            })
    }

    /// Which tables judge an endpoint.
    pub(crate) fn state(&self, endpoint: &Endpoint) -> EndpointState {
        let state = self.slots.field(endpoint.slot, offset_of!(Slot, state));
        EndpointState::unpack(state.map_or(0, |state| state.load(Ordering::Acquire)))
    }

    /// The one write that moves an endpoint to other tables.
    pub(crate) fn set_state(&mut self, endpoint: &Endpoint, state: EndpointState) {
        if let Some(word) = self.slots.field(endpoint.slot, offset_of!(Slot, state)) {
            word.store(state.pack(), Ordering::Release);
        }
    }

    /// Lets programs look for verdicts of these ranks, and of those that they look for already unless `exactly`: then no
    /// program may read older tables any more.
    pub(crate) fn set_ranks(&mut self, endpoint: &Endpoint, ranks: u64, exactly: bool) {
        if let Some(word) = self.slots.field(endpoint.slot, offset_of!(Slot, ranks)) {
            if exactly {
                word.store(ranks, Ordering::Release);
            } else {
                word.fetch_or(ranks, Ordering::Release);
            }
        }
    }

    /// Ranks of verdicts that programs look for.
    pub(crate) fn ranks(&self, endpoint: &Endpoint) -> u64 {
        let ranks = self.slots.field(endpoint.slot, offset_of!(Slot, ranks));
        ranks.map_or(0, |ranks| ranks.load(Ordering::Acquire))
    }

    pub(crate) fn sources(&self) -> Result<Vec<(Key<SourceKey>, u32)>, DatapathError> {
        self.sources
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed_map(SOURCES, "read"))
    }

    pub(crate) fn write_source(&mut self, key: &Key<SourceKey>, class: u16) -> Result<(), DatapathError> {
        self.sources
            .insert(key, u32::from(class), 0)
            .map_err(failed_map(SOURCES, "write"))
    }

    pub(crate) fn remove_source(&mut self, key: &Key<SourceKey>) -> Result<(), DatapathError> {
        absent_is_fine(self.sources.remove(key)).map_err(failed_map(SOURCES, "delete from"))
    }

    pub(crate) fn identities(&self) -> Result<Vec<(Key<IdentityKey>, AddressClass)>, DatapathError> {
        let whole = self.hosts.all()?.into_iter();
        let mut all: Vec<_> = whole
            .map(|(key, class)| (Key::new(WHOLE_ADDRESS, key), class))
            .collect();
        for entry in self.identities.iter() {
            all.push(entry.map_err(failed_map(IDENTITIES, "read"))?);
        }
        Ok(all)
    }

    /// Writes classes of addresses. Whole addresses go in one call: the first generation of a group has as many as the
    /// cluster has pods.
    pub(crate) fn write_identities(
        &mut self,
        entries: &[(Key<IdentityKey>, AddressClass)],
    ) -> Result<(), DatapathError> {
        let is_whole = |entry: &&(Key<IdentityKey>, AddressClass)| is_whole_address(&entry.0);
        let whole: Vec<_> = entries
            .iter()
            .filter(is_whole)
            .map(|(key, identity)| (key.data(), *identity))
            .collect();
        self.hosts.insert_all(&whole)?;
        for (key, identity) in entries.iter().filter(|entry| !is_whole(entry)) {
            self.identities
                .insert(key, identity, 0)
                .map_err(failed_map(IDENTITIES, "write"))?;
        }
        Ok(())
    }

    pub(crate) fn remove_identity(&mut self, key: &Key<IdentityKey>) -> Result<(), DatapathError> {
        if is_whole_address(key) {
            return self.hosts.remove(&key.data());
        }
        absent_is_fine(self.identities.remove(key)).map_err(failed_map(IDENTITIES, "delete from"))
    }

    pub(crate) fn splits(&self) -> Result<Vec<SplitKey>, DatapathError> {
        Ok(self.splits.all()?.into_iter().map(|(key, _)| key).collect())
    }

    /// Lets endpoints tell classes from their parents, in one call.
    pub(crate) fn write_splits(&mut self, keys: &[SplitKey]) -> Result<(), DatapathError> {
        let entries: Vec<(SplitKey, u32)> = keys.iter().map(|key| (*key, 0)).collect();
        self.splits.insert_all(&entries)
    }

    pub(crate) fn remove_split(&mut self, key: &SplitKey) -> Result<(), DatapathError> {
        self.splits.remove(key)
    }

    pub(crate) fn insides(&self) -> Result<Vec<(InsideKey, InsideClasses)>, DatapathError> {
        self.insides.all()
    }

    /// Writes what classes of addresses are at own ends, in one call.
    pub(crate) fn write_insides(
        &mut self,
        entries: &[(InsideKey, InsideClasses)],
    ) -> Result<(), DatapathError> {
        self.insides.insert_all(entries)
    }

    pub(crate) fn remove_inside(&mut self, key: &InsideKey) -> Result<(), DatapathError> {
        self.insides.remove(key)
    }

    pub(crate) fn verdicts(&self) -> Result<Vec<(VerdictKey, VerdictValue)>, DatapathError> {
        self.verdicts.all()
    }

    /// Writes verdicts in one call.
    pub(crate) fn write_verdicts(
        &mut self,
        entries: &[(VerdictKey, VerdictValue)],
    ) -> Result<(), DatapathError> {
        self.verdicts.insert_all(entries)
    }

    /// Deletes those of the entries that there are.
    pub(crate) fn remove_verdicts(&mut self, keys: &[VerdictKey]) -> Result<(), DatapathError> {
        self.verdicts.remove_all(keys)
    }

    /// Entries of the bounded maps that hold no tables, and how many slots are taken.
    pub(crate) fn fill(&self, limits: Limits) -> Result<[Fill; 6], DatapathError> {
        let slots = self.endpoints()?.len();
        Ok([
            Fill::new(FLOWS, self.flow_count()?, limits.max_flows),
            Fill::new(SLOTS, u64::try_from(slots).unwrap_or(u64::MAX), MAX_ENDPOINTS),
            Fill::new(ENDPOINTS, self.endpoints.count()?, MAX_ENDPOINTS),
            Fill::new(PODS, self.pods.count()?, MAX_POD_ADDRESSES),
            Fill::new(HOST_ENDPOINTS, self.host_endpoints.count()?, MAX_HOST_ADDRESSES),
            Fill::new(DENIALS, self.denials.count()?, MAX_DENIALS),
        ])
    }

    /// A counter, summed over the CPUs.
    pub(crate) fn counter(&self, index: u32) -> Result<u64, DatapathError> {
        let slots = self
            .counters
            .get(&index, 0)
            .map_err(failed_map(COUNTER_MAP, "read"))?;
        Ok(slots.iter().sum())
    }
}

fn pod_link(ifindex: u32, endpoint: &Endpoint) -> PodLink {
    PodLink {
        endpoint: endpoint.id,
        ifindex,
        mac: endpoint.mac,
        padding: [0; 2],
    }
}

/// Maps the first `entries` elements of an array.
fn mapped<T>(map: BorrowedFd<'_>, name: &'static str, entries: u32) -> Result<MappedArray<T>, DatapathError> {
    MappedArray::open(map, entries).map_err(|error| failed_call(name, "open", "mmap", error))
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// As [`failed_map`], of a system call that the library did not make.
fn failed_call(
    map: &'static str,
    operation: &'static str,
    call: &'static str,
    io_error: io::Error,
) -> DatapathError {
    failed_map(map, operation)(MapError::SyscallError(SyscallError { call, io_error }))
}

pub(crate) fn failed_map(map: &'static str, operation: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |source| DatapathError::Map {
        map,
        operation,
        source: Box::new(source),
    }
}
