//! What the pinned maps must look like.

use std::{os::fd::AsFd, path::Path};

use aya::maps::lpm_trie::Key;
use ebpf_abi::{
    Address, AddressClass, COUNTERS, ClosedFlow, Denial, DenialKey, Endpoint, FRAGMENTS_PER_ENDPOINT,
    FlowKey, FlowState, Fragment, HostKey, IdentityKey, InsideClasses, InsideKey, MAX_DENIALS, MAX_ENDPOINTS,
    MAX_HOST_ADDRESSES, MAX_IDENTITIES, MAX_INSIDES, MAX_POD_ADDRESSES, MAX_SOURCES, MAX_SPLITS,
    MAX_VERDICTS, PEER_BUCKETS, PodLink, RING_BYTES, Slot, SourceKey, SplitKey, VerdictKey, VerdictValue,
};

use super::{
    CLOSED, CLOSINGS, COUNTER_MAP, DENIALS, ENDPOINTS, EVENTS, FLOWS, FRAGMENTS, HANDOVER, HOST_ENDPOINTS,
    HOSTS, IDENTITIES, INSIDES, PEERS, PODS, SLOTS, SOURCES, SPLITS, VERDICTS,
};
use crate::{
    DatapathError, Limits,
    kernel::pins::failed,
    sys::{self, MapShape},
};

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

#[expect(clippy::cast_possible_truncation, reason = "sizes of small types")]
fn shape<K, V>(map_type: u32, max_entries: u32) -> MapShape {
    MapShape {
        map_type,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        max_entries,
    }
}
