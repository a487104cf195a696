//! The maps. Layouts are `ebpf_abi`'s; the loader pins each by its name, so they outlive the agent.

use crate::packet::Packet;
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
};
use ebpf_abi::{
    Address, AddressClass, COUNTERS as COUNTER_SLOTS, ClosedFlow, Denial, DenialKey, Endpoint, FRAGMENTS_PER_ENDPOINT, FlowKey, FlowState,
    Fragment, HostKey, IdentityKey, InsideClasses, InsideKey, MAX_CLOSED, MAX_DENIALS, MAX_ENDPOINTS, MAX_FLOWS, MAX_HOST_ADDRESSES,
    MAX_IDENTITIES, MAX_INSIDES, MAX_POD_ADDRESSES, MAX_SOURCES, MAX_SPLITS, MAX_VERDICTS, PEER_BUCKETS, PodLink, RING_BYTES, Slot, SourceKey, SplitKey, VerdictKey,
    VerdictValue,
};

/// Interface index to endpoint.
#[map]
pub(crate) static ENDPOINTS: HashMap<u32, Endpoint> = HashMap::pinned(MAX_ENDPOINTS, 0);

/// Address to the pod of this node that has it.
#[map]
pub(crate) static PODS: HashMap<Address, PodLink> = HashMap::pinned(MAX_POD_ADDRESSES, 0);

/// The program that takes over from `from_pod` what goes straight to another pod. Pinned like the rest, so that packets go
/// straight while no agent lives.
#[map]
pub(crate) static HANDOVER: ProgramArray = ProgramArray::pinned(1, 0);

/// Interface and address of the host to endpoint.
#[map]
pub(crate) static HOST_ENDPOINTS: HashMap<HostKey, Endpoint> = HashMap::pinned(MAX_HOST_ADDRESSES, 0);

/// What changes while an endpoint is attached.
#[map]
pub(crate) static SLOTS: Array<Slot> = Array::pinned(MAX_ENDPOINTS, BPF_F_MMAPABLE);

/// Source port to class, for endpoints whose state says that they have any.
#[map]
pub(crate) static SOURCES: LpmTrie<SourceKey, u32> = LpmTrie::pinned(MAX_SOURCES, 0);

/// Address to class, whole addresses: all in the first generation of a group, what differs from it in the others.
#[map]
pub(crate) static HOSTS: HashMap<IdentityKey, AddressClass> =
    HashMap::pinned(MAX_IDENTITIES, BPF_F_NO_PREALLOC);

/// Address to class, shorter prefixes.
#[map]
pub(crate) static IDENTITIES: LpmTrie<IdentityKey, AddressClass> = LpmTrie::pinned(MAX_IDENTITIES, 0);

/// Classes that an endpoint tells from their parents.
#[map]
pub(crate) static SPLITS: HashMap<SplitKey, u32> = HashMap::pinned(MAX_SPLITS, BPF_F_NO_PREALLOC);

/// What classes of addresses are at the own end, for endpoints whose state says that they have any.
#[map]
pub(crate) static INSIDES: HashMap<InsideKey, InsideClasses> =
    HashMap::pinned(MAX_INSIDES, BPF_F_NO_PREALLOC);

/// Classes, protocol and port to verdict.
#[map]
pub(crate) static VERDICTS: HashMap<VerdictKey, VerdictValue> =
    HashMap::pinned(MAX_VERDICTS, BPF_F_NO_PREALLOC);

/// Tracked flows, allocated beforehand: that takes 20 MB and a third off the cost of a first packet. A plain hash, not an
/// LRU: under pressure an LRU forgets living flows, and lets an attacker choose
/// which; a full table denies new ones instead.
#[map]
pub(crate) static FLOWS: HashMap<FlowKey, FlowState> = HashMap::pinned(MAX_FLOWS, 0);

/// Flows that were closed, each in the place of the one that closed [`MAX_CLOSED`] closings before, which is given up.
#[map]
pub(crate) static CLOSED: Array<ClosedFlow> = Array::pinned(MAX_CLOSED, 0);

/// How many flows were closed: where in `CLOSED` the next one goes.
#[map]
pub(crate) static CLOSINGS: Array<u64> = Array::pinned(1, 0);

/// Where a new flow is put together: the stack has too little room for it.
#[map]
pub(crate) static NEW_FLOW: PerCpuArray<FlowState> = PerCpuArray::with_max_entries(1, 0);

/// What is understood of the packet in hand. Not on the stack: there the verifier would follow every value through every
/// branch, and give up.
#[map]
pub(crate) static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);

/// Flows to each endpoint that are not established, by bucket of the peer: [`PEER_BUCKETS`] for each slot. Added to here,
/// corrected whenever user space has looked through all flows.
#[map]
pub(crate) static PEERS: Array<u64> = Array::pinned(MAX_ENDPOINTS * PEER_BUCKETS, BPF_F_MMAPABLE);

/// First fragments that passed. Direct-mapped: each slot has its own few places, and a place taken by another packet
/// costs the older packet the rest of its fragments. Two CPUs that write one place may leave a mixture; whoever matches
/// it brings fragments of a packet whose first one never passed, which nobody can reassemble.
#[map]
pub(crate) static FRAGMENTS: Array<Fragment> = Array::pinned(MAX_ENDPOINTS * FRAGMENTS_PER_ENDPOINT, 0);

/// What was denied lately, so that a flood is told as one. An LRU: what it forgets is told again.
#[map]
pub(crate) static DENIALS: LruHashMap<DenialKey, Denial> = LruHashMap::pinned(MAX_DENIALS, 0);

/// Decisions on their way to user space.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::pinned(RING_BYTES, 0);

/// What was counted.
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(COUNTER_SLOTS, 0);
