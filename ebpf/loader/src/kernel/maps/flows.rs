//! Tracked flows: looked through a slice at a time, so that nobody waits long for the thread that does it.
//!
//! Programs open, close and judge flows meanwhile. Each bucket of the hash is read as a whole, and buckets never split or
//! move, so a flow that is there all the time is seen once. What is read is old a moment later: before a flow goes, it is
//! looked at again.

use std::{collections::BTreeMap, time::Duration};

use ebpf_abi::{Address, END_NONE, Endpoint, FlowKey, FlowRecord, FlowState, HostKey};

use super::{Maps, counts::Counts};
use crate::{
    DatapathError, flows,
    kernel::look::{Look, addresses},
    sys,
};

/// Flows that are looked at in one go. That many take a millisecond, a few if all of them go.
const SLICE: usize = 2048;

/// What came of one slice.
pub(crate) struct Slice {
    /// Flows that went.
    pub(crate) removed: usize,
    /// Whether it was the last.
    pub(crate) is_last: bool,
}

/// What became of a flow that was to go.
enum Removal {
    /// It stays: a packet has made it another one.
    Stays,
    /// It was gone already; whoever did that has told of it.
    Gone,
    /// It went, with what it was a moment before.
    Done(u8, FlowState),
}

impl Maps {
    /// Tracked flows. Flows that open or end meanwhile may be missing.
    pub(crate) fn flows(&self) -> Result<Vec<(FlowKey, FlowState)>, DatapathError> {
        self.flows.all()
    }

    /// Takes the next flows of a look, forgets those that go, and adds what there is to tell to `records`. Those that
    /// went are told of even when it fails.
    pub(crate) fn look_on(
        &mut self,
        look: &mut Look,
        records: &mut Vec<FlowRecord>,
    ) -> Result<Slice, DatapathError> {
        let (found, rest) = self.flows.some(look.place, SLICE)?;
        let endpoints = self.endpoints()?;
        let hosts = self.hosts()?;
        let by_id: BTreeMap<u32, &(u32, Endpoint)> =
            endpoints.iter().map(|found| (found.1.id, found)).collect();
        let now = look.expiry.map_or_else(sys::monotonic_now, |expiry| expiry.now);
        let total = |key: &FlowKey, state: &FlowState, end| {
            let ifindex = by_id.get(&key.endpoint).map_or(0, |(ifindex, _)| *ifindex);
            let told = told_of(key, state, ifindex, &endpoints, &hosts);
            flows::total(&told, state, ifindex, end, nanoseconds(now))
        };
        let mut removed = 0;
        for (key, state) in &found {
            let known = by_id.get(&key.endpoint).map(|(_, endpoint)| *endpoint);
            look.census.count(key, state);
            match self.remove_flow(key, state, |state| look.end(key, state, known.is_some()))? {
                Removal::Stays => {
                    look.tracked += 1;
                    look.closed += u64::from(state.is_closed());
                    if look.is_due(state) {
                        records.push(total(key, state, END_NONE));
                    }
                }
                Removal::Gone => removed += 1,
                Removal::Done(end, state) => {
                    removed += 1;
                    records.push(total(key, &state, end));
                    if let Some(endpoint) = known {
                        self.take_off(&endpoint, &Counts::of(key, &state));
                    }
                }
            }
        }
        look.place = rest;
        let is_last = rest.is_none();
        if is_last {
            self.closed = look.closed;
            self.correct_counts(&look.census)?;
        }
        Ok(Slice { removed, is_last })
    }

    /// Removes a flow that `ends`, with what it was a moment before: packets may have passed since it was read.
    fn remove_flow(
        &mut self,
        key: &FlowKey,
        read: &FlowState,
        ends: impl Fn(&FlowState) -> u8,
    ) -> Result<Removal, DatapathError> {
        if ends(read) == END_NONE {
            return Ok(Removal::Stays);
        }
        let Some(state) = self.flows.get(key)? else {
            return Ok(Removal::Gone);
        };
        let end = ends(&state);
        if end == END_NONE {
            return Ok(Removal::Stays);
        }
        self.flows.remove(key)?;
        Ok(Removal::Done(end, state))
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

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
