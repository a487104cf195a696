//! Tracked flows and reported decisions, as user space sees them.

use std::{net::IpAddr, time::Duration};

use ebpf_abi::{
    DIRECTION_EGRESS, DIRECTION_INGRESS, Decision, Denial, DenialKey, END_CLOSED, END_DENIED, END_NONE,
    END_RESET, END_SILENT, FLOW_ESTABLISHED, FLOW_RESET, FlowKey, FlowRecord, FlowState, RECORD_DENIED,
    RECORD_END, RECORD_UPDATE, Reason, VERDICT_ALLOW, VERDICT_DENY, protocol,
};
use policies_ir::tables::{Direction, EndpointId, RuleId, Verdict};

use crate::{DatapathError, encode};

/// A stream of decisions, in the order in which they were made on each CPU.
pub trait FlowSource: Send {
    /// The next decision; waits for one no longer than `timeout`.
    fn next(&mut self, timeout: Duration) -> Result<Option<FlowRecord>, DatapathError>;
}

/// What [`Datapath::look`](crate::Datapath::look) did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expired {
    /// Flows that were forgotten.
    pub removed: usize,
    /// Flows that are still tracked; zero as long as there are `more` to look at.
    pub tracked: usize,
    /// Whether the look is not at its end.
    pub more: bool,
    /// What there is to tell: flows that ended, also with their endpoint since the last call; totals of flows that live
    /// and have not been told of for [`UPDATE_EVERY`]; denied packets that came after the last report of their like.
    pub records: Vec<FlowRecord>,
}

/// How often the totals of a flow that lives are told.
pub const UPDATE_EVERY: Duration = Duration::from_secs(60);

/// A flow that the kernel tracks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedFlow {
    /// Endpoint that tracks it.
    pub endpoint: EndpointId,
    /// The other end.
    pub peer: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Port of the endpoint; for ICMP see [`FlowKey`].
    pub local_port: u16,
    /// Port of the other end.
    pub peer_port: u16,
    /// Direction of the first packet.
    pub origin: Direction,
    /// What holds for it. Denied flows were allowed once, and stay until they fall silent.
    pub verdict: Verdict,
    /// Rule that decided.
    pub rule: RuleId,
    /// Change of the endpoint's tables that judged.
    pub epoch: u32,
    /// Whether it is more than an attempt: the handshake is over, or datagrams were answered.
    pub established: bool,
    /// Packets to the endpoint and from it.
    pub packets: [u64; 2],
    /// Bytes to the endpoint and from it.
    pub bytes: [u64; 2],
}

/// A flow that leaves its endpoint, established and allowed, as far as it matters for what its verdict rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpenedFlow {
    /// Endpoint that opened it.
    pub endpoint: EndpointId,
    /// The other end.
    pub peer: IpAddr,
    /// Rule that decided.
    pub rule: RuleId,
    /// Change of the endpoint's tables that judged.
    pub epoch: u32,
}

impl TrackedFlow {
    /// The same, if the endpoint opened it and it goes on.
    pub(crate) fn opened(&self) -> Option<OpenedFlow> {
        let goes_on = self.established && self.verdict == Verdict::Allow;
        (goes_on && self.origin == Direction::Egress).then_some(OpenedFlow {
            endpoint: self.endpoint,
            peer: self.peer,
            rule: self.rule,
            epoch: self.epoch,
        })
    }

    pub(crate) fn new(key: &FlowKey, state: &FlowState) -> Self {
        let decision = Decision::unpack(state.decision);
        Self {
            endpoint: EndpointId(key.endpoint),
            peer: key.peer.to_ip(),
            protocol: key.protocol,
            local_port: key.local_port,
            peer_port: key.peer_port,
            origin: if state.origin == DIRECTION_EGRESS {
                Direction::Egress
            } else {
                Direction::Ingress
            },
            verdict: encode::verdict(decision.verdict),
            rule: RuleId(decision.rule),
            epoch: decision.change,
            established: state.state & FLOW_ESTABLISHED != 0,
            packets: state.packets,
            bytes: state.bytes,
        }
    }
}

/// How long a flow may be silent before it is forgotten: [`FlowState::silence_ns`].
pub fn timeout(key: &FlowKey, state: &FlowState) -> Duration {
    Duration::from_nanos(state.silence_ns(key.protocol))
}

/// Why a flow that has been silent long enough ended: `END_*`.
pub(crate) fn end_of(state: &FlowState) -> u8 {
    if Decision::unpack(state.decision).verdict != VERDICT_ALLOW {
        END_DENIED
    } else if state.state & FLOW_RESET != 0 {
        END_RESET
    } else if FlowState::is_over(state.state) {
        END_CLOSED
    } else {
        END_SILENT
    }
}

/// Totals of a flow: at its end, or so far if `end` is `END_NONE`.
pub(crate) fn total(key: &FlowKey, state: &FlowState, ifindex: u32, end: u8, time_ns: u64) -> FlowRecord {
    let decision = Decision::unpack(state.decision);
    let local = key.local;
    let from_pod = state.origin == DIRECTION_EGRESS;
    let has_ports = matches!(
        key.protocol,
        protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::SCTP
    );
    let source_port = if from_pod { key.local_port } else { key.peer_port };
    FlowRecord {
        time_ns,
        opened_ns: state.opened_ns,
        source: if from_pod { local } else { key.peer },
        destination: if from_pod { key.peer } else { local },
        packets: state.packets,
        bytes: state.bytes,
        ifindex,
        endpoint: key.endpoint,
        epoch: decision.change,
        rule: decision.rule,
        source_port: if has_ports { source_port } else { 0 },
        destination_port: state.service_port,
        protocol: key.protocol,
        direction: state.origin,
        verdict: u8::from(decision.verdict == VERDICT_ALLOW),
        reason: Reason::Policy as u8,
        kind: if end == END_NONE {
            RECORD_UPDATE
        } else {
            RECORD_END
        },
        end,
        padding: [0; 6],
    }
}

/// What was denied since the last report of its like.
pub(crate) fn denials(key: &DenialKey, denial: &Denial, time_ns: u64) -> FlowRecord {
    let to_pod = key.direction == DIRECTION_INGRESS;
    let pair = |amount| if to_pod { [amount, 0] } else { [0, amount] };
    let decision = Decision::unpack(denial.decision);
    FlowRecord {
        time_ns,
        opened_ns: 0,
        source: if to_pod { key.peer } else { key.local },
        destination: if to_pod { key.local } else { key.peer },
        packets: pair(denial.packets),
        bytes: pair(denial.bytes),
        ifindex: key.ifindex,
        endpoint: key.endpoint,
        epoch: decision.change,
        rule: decision.rule,
        source_port: denial.source_port,
        destination_port: denial.destination_port,
        protocol: key.protocol,
        direction: key.direction,
        verdict: VERDICT_DENY.to_le_bytes()[0],
        reason: key.reason,
        kind: RECORD_DENIED,
        end: END_NONE,
        padding: [0; 6],
    }
}

#[cfg(test)]
mod tests {
    use ebpf_abi::{Address, FLOW_FIN_EGRESS, FLOW_FIN_INGRESS, FLOW_REPLIED, FlowSide};

    use super::*;

    #[test]
    fn timeouts_follow_protocol_and_state() {
        let key = |protocol| FlowKey {
            endpoint: 1,
            local: Address::UNSPECIFIED,
            peer: Address::UNSPECIFIED,
            local_port: 1,
            peer_port: 2,
            protocol,
            padding: [0; 3],
        };
        let flow = |state, verdict, seconds: u64| FlowState {
            decision: Decision {
                change: 1,
                rule: 0,
                verdict,
            }
            .pack(),
            opened_ns: 0,
            last_seen_ns: seconds * 1_000_000_000,
            packets: [0; 2],
            bytes: [0; 2],
            sides: [FlowSide::default(); 2],
            service_port: 0,
            origin: DIRECTION_EGRESS,
            state,
            closed: 0,
        };
        let of =
            |protocol, state, verdict, age| timeout(&key(protocol), &flow(state, verdict, age)).as_secs();
        let seconds = |protocol, state| of(protocol, state, VERDICT_ALLOW, 0);
        let established = FLOW_REPLIED | FLOW_ESTABLISHED;
        for protocol in [protocol::TCP, protocol::SCTP] {
            assert_eq!(seconds(protocol, 0), 30);
            assert_eq!(seconds(protocol, FLOW_REPLIED), 30, "an answer is no handshake");
            assert_eq!(seconds(protocol, established | FLOW_RESET), 10);
            let both = FLOW_FIN_INGRESS | FLOW_FIN_EGRESS;
            assert_eq!(seconds(protocol, established | both), 60);
        }
        assert_eq!(seconds(protocol::TCP, established), 86_400);
        assert_eq!(seconds(protocol::TCP, established | FLOW_FIN_EGRESS), 600);
        assert_eq!(seconds(protocol::SCTP, established), 600);
        assert_eq!(of(protocol::TCP, established, VERDICT_DENY, 0), 60);
        assert_eq!(seconds(protocol::UDP, 0), 30);
        assert_eq!(
            seconds(protocol::UDP, established),
            30,
            "a question and its answer"
        );
        assert_eq!(of(protocol::UDP, established, VERDICT_ALLOW, 3), 180);
        assert_eq!(of(protocol::UDP, 0, VERDICT_ALLOW, 3), 30);
        assert_eq!(seconds(protocol::ICMP, established), 30);
        assert_eq!(seconds(47, established), 600);
        assert_eq!(seconds(47, 0), 60);
    }
}
