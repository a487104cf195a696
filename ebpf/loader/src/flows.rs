//! Tracked flows and reported decisions, as user space sees them.

use std::{net::IpAddr, time::Duration};

use ebpf_abi::{
    DIRECTION_EGRESS, Decision, FLOW_CLOSED, FLOW_REPLIED, FlowKey, FlowRecord, FlowState, VERDICT_ALLOW,
    protocol,
};
use policies_ir::tables::{Direction, EndpointId, RuleId, Verdict};

use crate::{DatapathError, encode};

/// A stream of decisions, in the order in which they were made on each CPU.
pub trait FlowSource: Send {
    /// The next decision; waits for one no longer than `timeout`.
    fn next(&mut self, timeout: Duration) -> Result<Option<FlowRecord>, DatapathError>;
}

/// What [`Datapath::expire`](crate::Datapath::expire) did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expired {
    /// Flows that were forgotten.
    pub removed: usize,
    /// Flows that are still tracked.
    pub tracked: usize,
}

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
    /// Packets of both directions.
    pub packets: u64,
    /// Bytes of both directions.
    pub bytes: u64,
}

impl TrackedFlow {
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
            packets: state.packets,
            bytes: state.bytes,
        }
    }
}

/// How long a flow may be silent before it is forgotten.
///
/// An established TCP connection gets a day: a packet in the middle of an unknown connection is denied, so
/// forgetting one early breaks it. The rest follows what Linux's own connection tracking uses.
pub fn timeout(key: &FlowKey, state: &FlowState) -> Duration {
    let replied = state.state & FLOW_REPLIED != 0;
    let allowed = Decision::unpack(state.decision).verdict == VERDICT_ALLOW;
    let seconds = match key.protocol {
        _ if !allowed => 60,
        protocol::TCP if state.state & FLOW_CLOSED != 0 => 60,
        protocol::TCP if replied => 24 * 3600,
        protocol::ICMP | protocol::ICMPV6 => 30,
        protocol::TCP | protocol::UDP | protocol::UDPLITE if !replied => 30,
        protocol::UDP | protocol::UDPLITE => 180,
        _ => 600,
    };
    Duration::from_secs(seconds)
}

#[cfg(test)]
mod tests {
    use ebpf_abi::{Address, VERDICT_DENY};

    use super::*;

    #[test]
    fn timeouts_follow_protocol_and_state() {
        let key = |protocol| FlowKey {
            endpoint: 1,
            peer: Address::UNSPECIFIED,
            local_port: 1,
            peer_port: 2,
            protocol,
            padding: [0; 3],
        };
        let flow = |state, verdict| FlowState {
            decision: Decision {
                change: 1,
                rule: 0,
                verdict,
            }
            .pack(),
            last_seen_ns: 0,
            packets: 0,
            bytes: 0,
            service_port: 0,
            origin: DIRECTION_EGRESS,
            state,
            padding: [0; 4],
        };
        let seconds = |protocol, state, verdict| timeout(&key(protocol), &flow(state, verdict)).as_secs();
        assert_eq!(seconds(protocol::TCP, 0, VERDICT_ALLOW), 30);
        assert_eq!(seconds(protocol::TCP, FLOW_REPLIED, VERDICT_ALLOW), 86_400);
        assert_eq!(
            seconds(protocol::TCP, FLOW_REPLIED | FLOW_CLOSED, VERDICT_ALLOW),
            60
        );
        assert_eq!(seconds(protocol::TCP, FLOW_REPLIED, VERDICT_DENY), 60);
        assert_eq!(seconds(protocol::UDP, 0, VERDICT_ALLOW), 30);
        assert_eq!(seconds(protocol::UDP, FLOW_REPLIED, VERDICT_ALLOW), 180);
        assert_eq!(seconds(protocol::ICMP, FLOW_REPLIED, VERDICT_ALLOW), 30);
        assert_eq!(seconds(protocol::SCTP, 0, VERDICT_ALLOW), 600);
    }
}
