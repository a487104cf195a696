//! The pinned maps, each call naming its map in the error.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    mem::offset_of,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::atomic::Ordering,
    time::Duration,
};

use crate::{
    DatapathError, Expired, Fill, Limits, flows,
    kernel::pins::failed,
    sys::{self, MapShape, MappedArray},
};
use aya::{
    Ebpf,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, ProgramArray, lpm_trie::Key},
    programs::ProgramFd,
    sys::SyscallError,
};
use ebpf_abi::{
    Address, AddressClass, COUNTERS, ClosedFlow, DIRECTION_INGRESS, Denial, DenialKey, END_NONE, END_REMOVED,
    ENDPOINT_HAS_IPV4, ENDPOINT_HAS_IPV6, ENDPOINT_HAS_UNTRACKED, Endpoint, EndpointState, FLOW_ESTABLISHED,
    FRAGMENTS_PER_ENDPOINT, FlowKey, FlowRecord, FlowState, Fragment, HostKey, IDENTITY_PREFIX_BASE,
    IdentityKey, InsideClasses, InsideKey, MAX_DENIALS, MAX_ENDPOINTS, MAX_HOST_ADDRESSES, MAX_IDENTITIES,
    MAX_INSIDES, MAX_POD_ADDRESSES, MAX_SOURCES, MAX_SPLITS, MAX_VERDICTS, PEER_BUCKETS, PodLink, RING_BYTES,
    Slot, SourceKey, SplitKey, VerdictKey, VerdictValue, peer_bucket,
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

/// Slots whose counts by peer are mapped at least: those of a node's usual number of pods.
const FIRST_PEERS: u32 = 128;

/// Prefix length of a whole address, of either family.
const WHOLE_ADDRESS: u32 = IDENTITY_PREFIX_BASE + 128;

/// Whether the class of a whole address is meant, which has a map of its own.
pub(crate) fn is_whole_address(key: &Key<IdentityKey>) -> bool {
    key.prefix_len() == WHOLE_ADDRESS
}

/// The maps of the programs.
pub(crate) struct Maps {
    endpoints: HashMap<MapData, u32, Endpoint>,
    host_endpoints: HashMap<MapData, HostKey, Endpoint>,
    /// Endpoints of the host that have a slot, and perhaps tables, before any interface has them.
    pub(crate) reserved: Vec<Endpoint>,
    pods: HashMap<MapData, Address, PodLink>,
    handover: ProgramArray<MapData>,
    slots: MappedArray<Slot>,
    /// Mapped as far as slots are taken: see [`Maps::map_peers`].
    peers: MappedArray<u64>,
    peers_fd: OwnedFd,
    denials: HashMap<MapData, DenialKey, Denial>,
    sources: LpmTrie<MapData, SourceKey, u32>,
    hosts: HashMap<MapData, IdentityKey, AddressClass>,
    /// The same map, for what the library does not offer.
    hosts_fd: OwnedFd,
    splits_fd: OwnedFd,
    insides_fd: OwnedFd,
    verdicts_fd: OwnedFd,
    identities: LpmTrie<MapData, IdentityKey, AddressClass>,
    splits: HashMap<MapData, SplitKey, u32>,
    insides: HashMap<MapData, InsideKey, InsideClasses>,
    verdicts: HashMap<MapData, VerdictKey, VerdictValue>,
    flows: HashMap<MapData, FlowKey, FlowState>,
    /// Of those, the ones that were closed when they were last looked through.
    closed: u64,
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
            let Some(Map::HashMap(map) | Map::Array(map)) = programs.map(name) else {
                return Err(DatapathError::Missing { name });
            };
            let descriptor = map.fd().as_fd().try_clone_to_owned();
            descriptor.map_err(|error| failed_call(name, "open", "dup", error))
        };
        let (slots_fd, peers_fd) = (descriptor(SLOTS)?, descriptor(PEERS)?);
        Ok(Self {
            hosts_fd: descriptor(HOSTS)?,
            splits_fd: descriptor(SPLITS)?,
            insides_fd: descriptor(INSIDES)?,
            verdicts_fd: descriptor(VERDICTS)?,
            endpoints: typed(programs, ENDPOINTS)?,
            host_endpoints: typed(programs, HOST_ENDPOINTS)?,
            reserved: Vec::new(),
            pods: typed(programs, PODS)?,
            handover: typed(programs, HANDOVER)?,
            slots: mapped(&slots_fd, SLOTS, MAX_ENDPOINTS)?,
            peers: mapped(&peers_fd, PEERS, FIRST_PEERS * PEER_BUCKETS)?,
            peers_fd,
            denials: typed(programs, DENIALS)?,
            sources: typed(programs, SOURCES)?,
            hosts: typed(programs, HOSTS)?,
            identities: typed(programs, IDENTITIES)?,
            splits: typed(programs, SPLITS)?,
            insides: typed(programs, INSIDES)?,
            verdicts: typed(programs, VERDICTS)?,
            flows: typed(programs, FLOWS)?,
            closed: 0,
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
        self.endpoints
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed_map(ENDPOINTS, "read"))
    }

    /// What the host's interfaces and addresses have for endpoints.
    pub(crate) fn hosts(&self) -> Result<BTreeMap<HostKey, Endpoint>, DatapathError> {
        self.host_endpoints
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed_map(HOST_ENDPOINTS, "read"))
    }

    /// Gives an address of the host an endpoint.
    pub(crate) fn write_host(&mut self, key: &HostKey, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.host_endpoints
            .insert(key, endpoint, 0)
            .map_err(failed_map(HOST_ENDPOINTS, "write"))
    }

    /// Takes it away. [`sys::wait_for_programs`] before the next one is written.
    pub(crate) fn remove_host(&mut self, key: &HostKey) -> Result<(), DatapathError> {
        absent_is_fine(self.host_endpoints.remove(key)).map_err(failed_map(HOST_ENDPOINTS, "delete from"))
    }

    /// Prepares the slot of a new endpoint: no tables, no flows.
    pub(crate) fn clear_slot(&mut self, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.set_state(endpoint, EndpointState::default());
        self.map_peers(endpoint.slot)?;
        self.set_counts(endpoint, &Counts::default());
        self.set_ranks(endpoint, 0, true);
        if let Some(unreported) = self.slots.field(endpoint.slot, offset_of!(Slot, unreported)) {
            unreported.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes an endpoint known to the programs, without tables and without flows.
    pub(crate) fn write_endpoint(&mut self, ifindex: u32, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.clear_slot(endpoint)?;
        self.endpoints
            .insert(ifindex, endpoint, 0)
            .map_err(failed_map(ENDPOINTS, "write"))?;
        for address in addresses(endpoint) {
            self.write_pod(&address, &pod_link(ifindex, endpoint))?;
        }
        Ok(())
    }

    /// Takes an endpoint away and waits until no program reads it any more: the next one may get its memory.
    pub(crate) fn remove_endpoint(&mut self, ifindex: u32, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.set_state(endpoint, EndpointState::default());
        for address in addresses(endpoint) {
            if self.pod(&address)?.is_some_and(|pod| pod.ifindex == ifindex) {
                self.remove_pod(&address)?;
            }
        }
        absent_is_fine(self.endpoints.remove(&ifindex)).map_err(failed_map(ENDPOINTS, "delete from"))?;
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
        let found: Vec<(Address, PodLink)> = self
            .pods
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed_map(PODS, "read"))?;
        for (address, link) in found {
            if wanted.get(&address) == Some(&link) {
                wanted.remove(&address);
            } else {
                self.remove_pod(&address)?;
            }
        }
        // What was removed may lend its memory to what is written.
        sys::wait_for_programs();
        wanted
            .iter()
            .try_for_each(|(address, link)| self.write_pod(address, link))
    }

    fn pod(&self, address: &Address) -> Result<Option<PodLink>, DatapathError> {
        match self.pods.get(address, 0) {
            Ok(link) => Ok(Some(link)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(failed_map(PODS, "read")(source)),
        }
    }

    fn write_pod(&mut self, address: &Address, link: &PodLink) -> Result<(), DatapathError> {
        self.pods
            .insert(address, link, 0)
            .map_err(failed_map(PODS, "write"))
    }

    fn remove_pod(&mut self, address: &Address) -> Result<(), DatapathError> {
        absent_is_fine(self.pods.remove(address)).map_err(failed_map(PODS, "delete from"))
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
        let whole = self.hosts.iter().map(|entry| {
            let (key, identity) = entry?;
            Ok((Key::new(WHOLE_ADDRESS, key), identity))
        });
        let mut all: Vec<_> = whole
            .collect::<Result<_, MapError>>()
            .map_err(failed_map(HOSTS, "read"))?;
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
        sys::update_many(self.hosts_fd.as_fd(), &whole)
            .map_err(|error| failed_call(HOSTS, "write", "bpf_map_update_batch", error))?;
        for (key, identity) in entries.iter().filter(|entry| !is_whole(entry)) {
            self.identities
                .insert(key, identity, 0)
                .map_err(failed_map(IDENTITIES, "write"))?;
        }
        Ok(())
    }

    pub(crate) fn remove_identity(&mut self, key: &Key<IdentityKey>) -> Result<(), DatapathError> {
        if is_whole_address(key) {
            let removed = self.hosts.remove(&key.data());
            return absent_is_fine(removed).map_err(failed_map(HOSTS, "delete from"));
        }
        absent_is_fine(self.identities.remove(key)).map_err(failed_map(IDENTITIES, "delete from"))
    }

    pub(crate) fn splits(&self) -> Result<Vec<SplitKey>, DatapathError> {
        self.splits
            .keys()
            .collect::<Result<_, _>>()
            .map_err(failed_map(SPLITS, "read"))
    }

    /// Lets endpoints tell classes from their parents, in one call.
    pub(crate) fn write_splits(&mut self, keys: &[SplitKey]) -> Result<(), DatapathError> {
        let entries: Vec<(SplitKey, u32)> = keys.iter().map(|key| (*key, 0)).collect();
        sys::update_many(self.splits_fd.as_fd(), &entries)
            .map_err(|error| failed_call(SPLITS, "write", "bpf_map_update_batch", error))
    }

    pub(crate) fn remove_split(&mut self, key: &SplitKey) -> Result<(), DatapathError> {
        absent_is_fine(self.splits.remove(key)).map_err(failed_map(SPLITS, "delete from"))
    }

    pub(crate) fn insides(&self) -> Result<Vec<(InsideKey, InsideClasses)>, DatapathError> {
        self.insides
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed_map(INSIDES, "read"))
    }

    /// Writes what classes of addresses are at own ends, in one call.
    pub(crate) fn write_insides(
        &mut self,
        entries: &[(InsideKey, InsideClasses)],
    ) -> Result<(), DatapathError> {
        sys::update_many(self.insides_fd.as_fd(), entries)
            .map_err(|error| failed_call(INSIDES, "write", "bpf_map_update_batch", error))
    }

    pub(crate) fn remove_inside(&mut self, key: &InsideKey) -> Result<(), DatapathError> {
        absent_is_fine(self.insides.remove(key)).map_err(failed_map(INSIDES, "delete from"))
    }

    pub(crate) fn verdicts(&self) -> Result<Vec<(VerdictKey, VerdictValue)>, DatapathError> {
        self.verdicts
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed_map(VERDICTS, "read"))
    }

    /// Writes verdicts in one call.
    pub(crate) fn write_verdicts(
        &mut self,
        entries: &[(VerdictKey, VerdictValue)],
    ) -> Result<(), DatapathError> {
        sys::update_many(self.verdicts_fd.as_fd(), entries)
            .map_err(|error| failed_call(VERDICTS, "write", "bpf_map_update_batch", error))
    }

    /// Deletes those of the entries that there are.
    pub(crate) fn remove_verdicts(&mut self, keys: &[VerdictKey]) -> Result<(), DatapathError> {
        sys::delete_many(self.verdicts_fd.as_fd(), keys)
            .map_err(|error| failed_call(VERDICTS, "delete from", "bpf_map_delete_batch", error))
    }

    /// Tracked flows. Flows that open or end meanwhile may be missing or appear twice.
    pub(crate) fn flows(&self) -> Result<Vec<(FlowKey, FlowState)>, DatapathError> {
        self.flows
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed_map(FLOWS, "read"))
    }

    /// Forgets the flows that `ends` gives an end, adding their totals to the records, and sets the endpoints' counts to
    /// what is left. `lives` may make a record of what stays.
    pub(crate) fn remove_flows(
        &mut self,
        now: Duration,
        ends: impl Fn(&FlowKey, &FlowState) -> u8,
        lives: impl Fn(&FlowState) -> bool,
    ) -> Result<Expired, DatapathError> {
        let time_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let flows: BTreeMap<FlowKey, FlowState> = self.flows()?.into_iter().collect();
        let endpoints = self.endpoints()?;
        // Before anything is removed that would have to be told of.
        for (_, endpoint) in &endpoints {
            self.map_peers(endpoint.slot)?;
        }
        let by_id: BTreeMap<u32, &(u32, Endpoint)> =
            endpoints.iter().map(|found| (found.1.id, found)).collect();
        let hosts = self.hosts()?;
        let total = |key: &FlowKey, state: &FlowState, end| {
            let ifindex = by_id.get(&key.endpoint).map_or(0, |(ifindex, _)| *ifindex);
            let told = told_of(key, state, ifindex, &endpoints, &hosts);
            flows::total(&told, state, ifindex, end, time_ns)
        };
        let mut expired = Expired::default();
        let mut counts: BTreeMap<u32, Counts> = BTreeMap::new();
        self.closed = 0;
        for (key, state) in &flows {
            if let Some((end, state)) = self.remove_flow(key, state, &ends)? {
                expired.removed += 1;
                if end != END_NONE {
                    expired.records.push(total(key, &state, end));
                }
                continue;
            }
            expired.tracked += 1;
            self.closed += u64::from(state.closed != 0);
            counts.entry(key.endpoint).or_default().add(key, state);
            if lives(state) {
                expired.records.push(total(key, state, END_NONE));
            }
        }
        for (_, endpoint) in &endpoints {
            self.set_counts(endpoint, &counts.remove(&endpoint.id).unwrap_or_default());
        }
        Ok(expired)
    }

    /// Tells how many packets were denied since the last report of their like, and forgets what is older than `age`.
    pub(crate) fn take_denials(
        &mut self,
        now: Duration,
        age: Duration,
    ) -> Result<Vec<FlowRecord>, DatapathError> {
        let all: Vec<(DenialKey, Denial)> = self
            .denials
            .iter()
            .collect::<Result<_, _>>()
            .map_err(failed_map(DENIALS, "read"))?;
        let time_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let mut records = Vec::new();
        for (key, denial) in all {
            if now.saturating_sub(Duration::from_nanos(denial.reported_ns)) <= age {
                continue;
            }
            // A packet that is counted between the look and the removal is lost to the count.
            absent_is_fine(self.denials.remove(&key)).map_err(failed_map(DENIALS, "delete from"))?;
            if denial.packets > 0 {
                records.push(flows::denials(&key, &denial, time_ns));
            }
        }
        Ok(records)
    }

    /// Denied packets of each endpoint that nobody was told of, since it was attached.
    pub(crate) fn unreported(&self) -> Result<BTreeMap<u32, u64>, DatapathError> {
        let count = |endpoint: &Endpoint| {
            let word = self.slots.field(endpoint.slot, offset_of!(Slot, unreported));
            word.map_or(0, |word| word.load(Ordering::Relaxed))
        };
        let endpoints = self.endpoints()?;
        let counts = endpoints
            .iter()
            .map(|(_, endpoint)| (endpoint.id, count(endpoint)));
        Ok(counts.filter(|(_, count)| *count > 0).collect())
    }

    /// Entries of the bounded maps that hold no tables, and how many slots are taken.
    pub(crate) fn fill(&self, limits: Limits) -> Result<[Fill; 6], DatapathError> {
        let slots = self.endpoints()?.len();
        Ok([
            Fill::new(FLOWS, self.flow_count()?, limits.max_flows),
            Fill::new(SLOTS, u64::try_from(slots).unwrap_or(u64::MAX), MAX_ENDPOINTS),
            Fill::new(ENDPOINTS, counted(&self.endpoints, ENDPOINTS)?, MAX_ENDPOINTS),
            Fill::new(PODS, counted(&self.pods, PODS)?, MAX_POD_ADDRESSES),
            Fill::new(
                HOST_ENDPOINTS,
                counted(&self.host_endpoints, HOST_ENDPOINTS)?,
                MAX_HOST_ADDRESSES,
            ),
            Fill::new(DENIALS, counted(&self.denials, DENIALS)?, MAX_DENIALS),
        ])
    }

    /// Tracked flows: those that live, as far as the programs have counted, and those that were closed at the last look.
    pub(crate) fn flow_count(&self) -> Result<u64, DatapathError> {
        let count = |endpoint: &Endpoint| {
            let word = self.slots.field(endpoint.slot, offset_of!(Slot, flows));
            word.map_or(0, |word| word.load(Ordering::Relaxed))
        };
        let endpoints = self.endpoints()?;
        let live = all_flows(endpoints.iter().map(|(_, endpoint)| count(endpoint)));
        Ok(live.saturating_add(self.closed))
    }

    /// The slot's counts by peer must be mapped.
    fn set_counts(&mut self, endpoint: &Endpoint, counts: &Counts) {
        let set = |offset, count: u64| {
            if let Some(word) = self.slots.field(endpoint.slot, offset) {
                word.store(count, Ordering::Relaxed);
            }
        };
        let [ingress, egress] = counts.unestablished;
        set(offset_of!(Slot, flows), counts.flows);
        set(offset_of!(Slot, unestablished), ingress);
        set(offset_of!(Slot, unestablished) + size_of::<u64>(), egress);
        for bucket in 0..PEER_BUCKETS {
            let count = counts.buckets.get(&bucket).copied().unwrap_or(0);
            if let Some(word) = self.peers.field(endpoint.slot * PEER_BUCKETS + bucket, 0) {
                word.store(count, Ordering::Relaxed);
            }
        }
    }

    /// Maps counts by peer up to those of `slot`, and of as many slots more as make it a power of two, so that it is seldom
    /// done. What is mapped of a map is resident at once, whether it is used or not; all of this one is 2 MiB.
    fn map_peers(&mut self, slot: u32) -> Result<(), DatapathError> {
        let last = slot * PEER_BUCKETS + (PEER_BUCKETS - 1);
        if self.peers.field(last, 0).is_none() {
            let slots = (slot + 1).next_power_of_two().min(MAX_ENDPOINTS);
            self.peers = mapped(&self.peers_fd, PEERS, slots * PEER_BUCKETS)?;
        }
        Ok(())
    }

    /// Forgets the flows and the budget of one endpoint, and what others track of it, the host that carries its flows
    /// included: no packet will end those, and an established connection would take from the other's budget for a day.
    /// `ifindex` is 0 where no interface has the endpoint.
    pub(crate) fn remove_flows_of(
        &mut self,
        ifindex: u32,
        endpoint: &Endpoint,
    ) -> Result<Vec<FlowRecord>, DatapathError> {
        let is_peer = |key: &FlowKey| addresses(endpoint).any(|address| address == key.peer);
        let ends = |key: &FlowKey, state: &FlowState| {
            let is_carried = ifindex != 0 && state.carrier() == ifindex;
            if key.endpoint == endpoint.id || is_peer(key) || is_carried {
                END_REMOVED
            } else {
                END_NONE
            }
        };
        Ok(self.remove_flows(sys::monotonic_now(), ends, |_| false)?.records)
    }

    /// Forgets what an agent left that died between taking an endpoint away and cleaning up after it.
    pub(crate) fn forget_flows_of_unknown_endpoints(&mut self) -> Result<(), DatapathError> {
        let known: BTreeSet<u32> = self
            .endpoints()?
            .iter()
            .map(|(_, endpoint)| endpoint.id)
            .collect();
        let ends = |key: &FlowKey, _: &FlowState| {
            if known.contains(&key.endpoint) {
                END_NONE
            } else {
                END_REMOVED
            }
        };
        self.remove_flows(sys::monotonic_now(), ends, |_| false).map(drop)
    }

    /// A counter, summed over the CPUs.
    pub(crate) fn counter(&self, index: u32) -> Result<u64, DatapathError> {
        let slots = self
            .counters
            .get(&index, 0)
            .map_err(failed_map(COUNTER_MAP, "read"))?;
        Ok(slots.iter().sum())
    }

    /// Removes a flow that `ends`, with what it was a moment before: a packet may have passed since the scan.
    fn remove_flow(
        &mut self,
        key: &FlowKey,
        scanned: &FlowState,
        ends: impl Fn(&FlowKey, &FlowState) -> u8,
    ) -> Result<Option<(u8, FlowState)>, DatapathError> {
        if ends(key, scanned) == END_NONE {
            return Ok(None);
        }
        let state = match self.flows.get(key, 0) {
            Ok(state) => state,
            Err(MapError::KeyNotFound) => return Ok(Some((END_NONE, *scanned))),
            Err(source) => return Err(failed_map(FLOWS, "read")(source)),
        };
        let end = ends(key, &state);
        if end == END_NONE {
            return Ok(None);
        }
        absent_is_fine(self.flows.remove(key)).map_err(failed_map(FLOWS, "delete from"))?;
        Ok(Some((end, state)))
    }
}

/// The flow as it is told of: what a host carries is not its own, but of the endpoint that judges what it forwards, and of
/// the pod that has opened it.
fn told_of(
    key: &FlowKey,
    state: &FlowState,
    ifindex: u32,
    endpoints: &[(u32, Endpoint)],
    hosts: &BTreeMap<HostKey, Endpoint>,
) -> FlowKey {
    let carrier = state.carrier();
    if carrier == 0 {
        return *key;
    }
    let address = Address::UNSPECIFIED;
    let forwarded = hosts.get(&HostKey { ifindex, address });
    let pod = endpoints.iter().find(|(index, _)| *index == carrier);
    let inside = pod.and_then(|(_, pod)| addresses(pod).find(|own| own.is_ipv4() == key.local.is_ipv4()));
    FlowKey {
        endpoint: forwarded.map_or(key.endpoint, |forwarded| forwarded.id),
        local: inside.unwrap_or(key.local),
        ..*key
    }
}

/// The addresses of a pod.
fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = Address> + use<> {
    let has = |flag| endpoint.flags & flag != 0;
    let v4 = has(ENDPOINT_HAS_IPV4).then_some(endpoint.ipv4);
    let v6 = has(ENDPOINT_HAS_IPV6).then_some(endpoint.ipv6);
    v4.into_iter().chain(v6)
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
fn mapped<T>(map: &OwnedFd, name: &'static str, entries: u32) -> Result<MappedArray<T>, DatapathError> {
    MappedArray::open(map.as_fd(), entries).map_err(|error| failed_call(name, "open", "mmap", error))
}

/// Flows of one endpoint, as its budgets count them.
#[derive(Default)]
struct Counts {
    flows: u64,
    unestablished: [u64; 2],
    /// Of those to the endpoint, by bucket of the peer.
    buckets: BTreeMap<u32, u64>,
}

impl Counts {
    fn add(&mut self, key: &FlowKey, state: &FlowState) {
        if state.closed != 0 {
            return;
        }
        self.flows += 1;
        if state.state & FLOW_ESTABLISHED != 0 {
            return;
        }
        let [ingress, egress] = &mut self.unestablished;
        if state.origin == DIRECTION_INGRESS {
            *ingress += 1;
            *self.buckets.entry(peer_bucket(&key.peer)).or_default() += 1;
        } else {
            *egress += 1;
        }
    }
}

/// Refuses pinned maps whose shape is not the one that the programs expect.
pub(crate) fn check_pinned(directory: &Path, limits: Limits) -> Result<(), DatapathError> {
    // `enum bpf_map_type` of include/uapi/linux/bpf.h.
    const HASH: u32 = 1;
    const ARRAY: u32 = 2;
    const PROG_ARRAY: u32 = 3;
    const PERCPU_ARRAY: u32 = 6;
    const LRU_HASH: u32 = 9;
    const LPM_TRIE: u32 = 11;
    const RINGBUF: u32 = 27;
    let expected = [
        (ENDPOINTS, shape::<u32, Endpoint>(HASH, MAX_ENDPOINTS)),
        (PODS, shape::<Address, PodLink>(HASH, MAX_POD_ADDRESSES)),
        (HANDOVER, shape::<u32, u32>(PROG_ARRAY, 1)),
        (HOSTS, shape::<IdentityKey, AddressClass>(HASH, MAX_IDENTITIES)),
        (
            IDENTITIES,
            shape::<Key<IdentityKey>, AddressClass>(LPM_TRIE, MAX_IDENTITIES),
        ),
        (SPLITS, shape::<SplitKey, u32>(HASH, MAX_SPLITS)),
        (INSIDES, shape::<InsideKey, InsideClasses>(HASH, MAX_INSIDES)),
        (VERDICTS, shape::<VerdictKey, VerdictValue>(HASH, MAX_VERDICTS)),
        (FLOWS, shape::<FlowKey, FlowState>(HASH, limits.max_flows)),
        (CLOSED, shape::<u32, ClosedFlow>(ARRAY, limits.max_closed())),
        (CLOSINGS, shape::<u32, u64>(ARRAY, 1)),
        (
            HOST_ENDPOINTS,
            shape::<HostKey, Endpoint>(HASH, MAX_HOST_ADDRESSES),
        ),
        (SLOTS, shape::<u32, Slot>(ARRAY, MAX_ENDPOINTS)),
        (SOURCES, shape::<Key<SourceKey>, u32>(LPM_TRIE, MAX_SOURCES)),
        (PEERS, shape::<u32, u64>(ARRAY, MAX_ENDPOINTS * PEER_BUCKETS)),
        (
            FRAGMENTS,
            shape::<u32, Fragment>(ARRAY, MAX_ENDPOINTS * FRAGMENTS_PER_ENDPOINT),
        ),
        (DENIALS, shape::<DenialKey, Denial>(LRU_HASH, MAX_DENIALS)),
        (EVENTS, shape::<(), ()>(RINGBUF, RING_BYTES)),
        (COUNTER_MAP, shape::<u32, u64>(PERCPU_ARRAY, COUNTERS)),
    ];
    // Flows were laid out otherwise, in the same size, before closed ones had a map.
    let flows = directory.join(FLOWS);
    if is_pinned(&flows)? && !is_pinned(&directory.join(CLOSED))? {
        return Err(DatapathError::Layout { path: flows });
    }
    for (name, expected) in expected {
        let path = directory.join(name);
        let Some(map) = sys::open_pinned(&path).map_err(failed("open", &path))? else {
            continue;
        };
        if sys::map_shape(map.as_fd()).map_err(failed("inspect", &path))? != expected {
            return Err(DatapathError::Layout { path });
        }
    }
    Ok(())
}

fn is_pinned(path: &Path) -> Result<bool, DatapathError> {
    path.try_exists().map_err(failed("inspect", path))
}

/// The sum of what the programs have counted of each endpoint. A flow that ended between a look at it and the count's
/// correction leaves a count below zero for a while, which is none.
fn all_flows(counts: impl Iterator<Item = u64>) -> u64 {
    counts
        .map(|count| u64::try_from(count.cast_signed()).unwrap_or(0))
        .fold(0, u64::saturating_add)
}

#[expect(clippy::cast_possible_truncation, reason = "sizes of small types")]
fn shape<K, V>(map_type: u32, max_entries: u32) -> MapShape {
    MapShape {
        map_type,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        max_entries,
    }
}

fn counted<K: aya::Pod, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<u64, DatapathError> {
    let mut keys = map.keys();
    let count = keys.try_fold(0, |count: u64, key| key.map(|_| count.saturating_add(1)));
    count.map_err(failed_map(name, "read"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_below_zero_is_no_flow() {
        assert_eq!(all_flows([3, u64::MAX, 4].into_iter()), 7);
        assert_eq!(all_flows([i64::MAX.cast_unsigned(); 3].into_iter()), u64::MAX);
    }
}
