//! The maps. Layouts are `ebpf_abi`'s; the loader pins each by its name, so they outlive the agent.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf},
};
use ebpf_abi::{
    COUNTERS as COUNTER_SLOTS, Endpoint, FlowKey, FlowState, IdentityKey, MAX_ENDPOINTS, MAX_FLOWS,
    MAX_IDENTITIES, MAX_SOURCES, MAX_VERDICTS, RING_BYTES, Slot, SourceKey, VerdictKey, VerdictValue,
};

/// Interface index to endpoint.
#[map]
pub(crate) static ENDPOINTS: HashMap<u32, Endpoint> = HashMap::pinned(MAX_ENDPOINTS, 0);

/// What changes while an endpoint is attached.
#[map]
pub(crate) static SLOTS: Array<Slot> = Array::pinned(MAX_ENDPOINTS, BPF_F_MMAPABLE);

/// Source port to class, for endpoints whose state says that they have any.
#[map]
pub(crate) static SOURCES: LpmTrie<SourceKey, u32> = LpmTrie::pinned(MAX_SOURCES, 0);

/// Address to class.
#[map]
pub(crate) static IDENTITIES: LpmTrie<IdentityKey, u32> = LpmTrie::pinned(MAX_IDENTITIES, 0);

/// Class, protocol and port to verdict.
#[map]
pub(crate) static VERDICTS: LpmTrie<VerdictKey, VerdictValue> = LpmTrie::pinned(MAX_VERDICTS, 0);

/// Tracked flows. A plain hash, not an LRU: under pressure an LRU forgets living flows, and lets an attacker choose
/// which; a full table denies new ones instead.
#[map]
pub(crate) static FLOWS: HashMap<FlowKey, FlowState> = HashMap::pinned(MAX_FLOWS, BPF_F_NO_PREALLOC);

/// Decisions on their way to user space.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::pinned(RING_BYTES, 0);

/// What was counted.
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(COUNTER_SLOTS, 0);
