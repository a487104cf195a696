//! What a look through the tracked flows makes of each: which go, and of which of the others there is something to tell.
//!
//! Pure. A look takes the flows as they come, slice after slice, and does not mind what happens between two of them:
//! `maps/flows.rs` brings the flows and takes away those that go.

use std::time::Duration;

use ebpf_abi::{
    Address, END_NONE, END_REMOVED, ENDPOINT_HAS_IPV4, ENDPOINT_HAS_IPV6, Endpoint, FlowKey, FlowState,
};

use crate::{UPDATE_EVERY, flows, kernel::maps::Census, sys::Place, timeout};

/// A closed flow that was silent for so long has seen what is sent again when an acknowledgement is lost: stacks wait a
/// fifth of a second first.
const CLOSED_IS_ENOUGH: Duration = Duration::from_secs(1);

/// An endpoint that was taken away, of which flows may be left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) ifindex: u32,
    pub(crate) endpoint: Endpoint,
    /// When programs did not know it any more, by their clock.
    pub(crate) at_ns: u64,
}

/// A look that is under way.
pub(crate) struct Look {
    /// How flows grow old; nothing if they do not for this look.
    pub(crate) expiry: Option<Expiry>,
    /// Endpoints whose flows go.
    pub(crate) gone: Vec<Gone>,
    /// Where it goes on.
    pub(crate) place: Option<Place>,
    /// Flows of each endpoint.
    pub(crate) census: Census,
    /// Flows that stay, so far.
    pub(crate) tracked: usize,
    /// Those of them that are closed.
    pub(crate) closed: u64,
}

/// How flows grow old.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expiry {
    /// When the look began.
    pub(crate) now: Duration,
    /// When the one before did.
    pub(crate) before: Duration,
    /// Whether those that are closed could fill what is left of the table, and so have to go.
    pub(crate) is_crowded: bool,
}

impl Gone {
    /// Whether a flow was its own, what another endpoint tracks of it, or what the host carries for it: no packet will end
    /// those, and an established connection would take from the other's budget for a day. What began later is about
    /// whoever has its address or its interface now.
    fn concerns(&self, key: &FlowKey, state: &FlowState) -> bool {
        let is_peer = || addresses(&self.endpoint).any(|address| address == key.peer);
        // No interface had an endpoint that only was prepared.
        let is_carried = || self.ifindex != 0 && state.carrier() == self.ifindex;
        let is_its = key.endpoint == self.endpoint.id || is_carried() || is_peer();
        is_its && state.opened_ns <= self.at_ns
    }
}

impl Look {
    /// One that begins.
    pub(crate) fn new(expiry: Option<Expiry>, gone: Vec<Gone>, census: Census) -> Self {
        Self {
            expiry,
            gone,
            place: None,
            census,
            tracked: 0,
            closed: 0,
        }
    }

    /// Why a flow goes: `END_*`. One of an endpoint that is not known was left by an agent that died before it had
    /// cleaned up.
    pub(crate) fn end(&self, key: &FlowKey, state: &FlowState, is_known: bool) -> u8 {
        if !is_known || self.gone.iter().any(|gone| gone.concerns(key, state)) {
            return END_REMOVED;
        }
        self.expiry.map_or(END_NONE, |expiry| expiry.end(key, state))
    }

    /// Whether the totals of a flow that stays are to be told.
    pub(crate) fn is_due(&self, state: &FlowState) -> bool {
        self.expiry.is_some_and(|expiry| expiry.is_due(state))
    }
}

impl Expiry {
    fn end(self, key: &FlowKey, state: &FlowState) -> u8 {
        let silent = self.now.saturating_sub(Duration::from_nanos(state.last_seen_ns));
        let makes_room = self.is_crowded && state.is_closed() && silent > CLOSED_IS_ENOUGH;
        if makes_room || silent > timeout(key, state) {
            flows::end_of(state)
        } else {
            END_NONE
        }
    }

    /// Of those that live, the ones that have grown another interval older since the look before, if any packet passed
    /// after the interval before; the first packet is told of when it passes.
    fn is_due(self, state: &FlowState) -> bool {
        let intervals = |at: Duration| {
            let age = at.saturating_sub(Duration::from_nanos(state.opened_ns));
            age.as_secs() / UPDATE_EVERY.as_secs()
        };
        let told = intervals(self.before);
        let active = Duration::from_nanos(state.last_seen_ns.saturating_sub(state.opened_ns));
        let [to, from] = state.packets;
        intervals(self.now) > told && to + from > 1 && active.as_secs() >= told * UPDATE_EVERY.as_secs()
    }
}

/// The addresses of a pod.
pub(crate) fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = Address> + use<> {
    let has = |flag| endpoint.flags & flag != 0;
    let v4 = has(ENDPOINT_HAS_IPV4).then_some(endpoint.ipv4);
    let v6 = has(ENDPOINT_HAS_IPV6).then_some(endpoint.ipv6);
    v4.into_iter().chain(v6)
}
