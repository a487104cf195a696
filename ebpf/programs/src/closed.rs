//! Flows that are closed: remembered for a while, for what is still on its way or sent again, but at nobody's expense.
//!
//! A closed flow has left its endpoint's share. The newest [`MAX_CLOSED`](ebpf_abi::MAX_CLOSED) of the node stay, unless
//! user space finds them silent for long enough before, or the table full; the oldest makes room for the next. So whoever
//! opens and closes without end takes that much room from flows that live, and not for long.

use ebpf_abi::{ClosedFlow, FlowKey};

use crate::{
    atomic::fetch_add,
    maps::{CLOSED, CLOSINGS, FLOWS},
    report,
};

/// Entries of map `CLOSED`. Set by the loader.
#[unsafe(no_mangle)]
static CLOSED_PLACES: u32 = ebpf_abi::MAX_CLOSED;

/// Notes a flow that has just been closed, in the place of the oldest one.
#[inline(always)]
pub(crate) fn remember(key: &FlowKey, ifindex: u32, now_ns: u64) {
    let Some(place) = next_place() else {
        return;
    };
    give_up(place, now_ns);
    // SAFETY: the map returned a valid, aligned value. Another CPU has the same place only if all others were taken
    // meanwhile; of a mixture of two keys nothing is found.
    unsafe { place.write(ClosedFlow { key: *key, ifindex }) };
}

#[inline(always)]
fn next_place() -> Option<*mut ClosedFlow> {
    let closings = CLOSINGS.get_ptr_mut(0)?;
    // SAFETY: a valid reference; volatile, since the loader sets the value after the compiler has seen it.
    let places = unsafe { (&raw const CLOSED_PLACES).read_volatile() };
    let number = fetch_add(closings, 1);
    CLOSED.get_ptr_mut(number.checked_rem(places as u64)? as u32)
}

/// Forgets the flow of this place, unless it was forgotten already, or opened anew. If a packet opens it anew on another
/// CPU between the look and the removal, its next one is denied, and the one after that opens it again.
#[inline(always)]
fn give_up(place: *mut ClosedFlow, now_ns: u64) {
    // SAFETY: as in `remember`; nothing is made of a key but a look-up.
    let old = unsafe { &*place };
    if old.key.endpoint == 0 {
        return;
    }
    let Some(flow) = FLOWS.get_ptr_mut(&old.key) else {
        return;
    };
    // SAFETY: the map returned a valid, aligned value; what another CPU writes to it meanwhile is counts.
    let flow = unsafe { &*flow };
    if flow.is_closed() {
        report::ended(&old.key, flow, old.ifindex, now_ns);
        let _ = FLOWS.remove(&old.key);
    }
}
