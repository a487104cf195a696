//! How many flows an endpoint may have tracked. Programs and user space count them together: see [`ebpf_abi::Slot`].

use ebpf_abi::{
    Address, DIRECTION_EGRESS, FLOW_ESTABLISHED, FlowKey, FlowState, MAX_FLOWS_PER_ENDPOINT, MAX_UNESTABLISHED, MAX_UNESTABLISHED_PER_BUCKET,
    PEER_BUCKETS, peer_bucket,
};

use super::Judge;
use crate::{atomic::add, maps::PEERS, packet::Packet};

/// Whether the endpoint may track one more flow in the packet's direction, and from its peer. The counts are what user
/// space found at its last look and what happened since; see `Slot` for why they are read as signed. What a host carries
/// may take half of the host's share, so that pods leave it the other half.
#[inline(always)]
pub(super) fn has_room(endpoint: &Judge, packet: &Packet) -> bool {
    let index = (packet.direction & 1) as usize;
    let slot = endpoint.keeper.slot;
    // SAFETY: `Keeper::slot` came from the map in this run and is aligned to eight bytes; each word is read at once.
    let (flows, unestablished) = unsafe {
        (
            (&raw const (*slot).flows).read_volatile(),
            (&raw const (*slot).unestablished[index]).read_volatile(),
        )
    };
    let halved = (packet.carrier != 0) as u32;
    if flows as i64 >= (MAX_FLOWS_PER_ENDPOINT >> halved) as i64
        || unestablished as i64 >= (MAX_UNESTABLISHED >> halved) as i64
    {
        return false;
    }
    if packet.direction == DIRECTION_EGRESS {
        return true;
    }
    match PEERS.get_ptr_mut(bucket(endpoint, &packet.peer)) {
        // SAFETY: as above.
        Some(count) => (unsafe { count.read_volatile() } as i64) < MAX_UNESTABLISHED_PER_BUCKET as i64,
        None => false,
    }
}

/// Takes a flow off its endpoint's share.
#[inline(always)]
pub(super) fn leave(endpoint: &Judge, key: &FlowKey, flow: &FlowState) {
    count(endpoint, key, flow, u64::MAX);
}

/// Puts a flow back into its endpoint's share, also one that is full: the flow is there.
#[inline(always)]
pub(super) fn rejoin(endpoint: &Judge, key: &FlowKey, flow: &FlowState) {
    count(endpoint, key, flow, 1);
}

#[inline(always)]
fn count(endpoint: &Judge, key: &FlowKey, flow: &FlowState, amount: u64) {
    // SAFETY: as in `has_room`.
    add(unsafe { &raw mut (*endpoint.keeper.slot).flows }, amount);
    if flow.state & FLOW_ESTABLISHED == 0 {
        count_unestablished(endpoint, flow.begun(), &key.peer, amount);
    }
}

/// Adds to the number of flows of one direction that are not established; all ones takes one off.
#[inline(always)]
pub(super) fn count_unestablished(endpoint: &Judge, direction: u8, peer: &Address, amount: u64) {
    let index = (direction & 1) as usize;
    // SAFETY: as in `has_room`.
    add(unsafe { &raw mut (*endpoint.keeper.slot).unestablished[index] }, amount);
    if direction != DIRECTION_EGRESS
        && let Some(count) = PEERS.get_ptr_mut(bucket(endpoint, peer))
    {
        add(count, amount);
    }
}

#[inline(always)]
fn bucket(endpoint: &Judge, peer: &Address) -> u32 {
    endpoint.keeper.index * PEER_BUCKETS + peer_bucket(peer)
}
