//! How long judging takes, measured by the kernel itself: the real programs on frames given by hand.
//!
//! For `bench policy`. Nothing is attached to a real interface but loopback of the caller's network namespace, so call it
//! in one made for the purpose.

use std::{net::Ipv4Addr, os::fd::AsFd, path::Path, time::Duration};

use policies_ir::tables::{
    Direction, EndpointId, EndpointTables, IdentityId, InsideClass, NodeTables, RuleId, Service, SourceClass,
    Verdict, VerdictEntry, VerdictKey,
};

use crate::{Datapath, DatapathError, EndpointLink, Kernel, OBJECT, monotonic_now, sys};

/// Nanoseconds for one packet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Of a tracked flow.
    pub established: f64,
    /// The first of a flow that is allowed, to one of ten services.
    pub new_flow: f64,
    /// The first of a flow that is allowed, to any service that a rule allows, in turn: with many rules, entries that
    /// no processor cache holds.
    pub new_flow_anywhere: f64,
    /// One that is denied by policy.
    pub denied: f64,
}

const LOOPBACK: u32 = 1;
const ENDPOINT: EndpointId = EndpointId(1);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const POD: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
const PORTS_PER_PEER: u16 = 100;
/// Times a packet of a tracked flow is judged.
const REPEAT: u32 = 1_000_000;
/// First packets, few enough for the share of flows that nobody answers.
const FIRST: u16 = 8000;
/// Services that most first packets go to.
const SERVICES: u16 = 10;

/// Measures an endpoint with so many rules, each for one port of one peer.
pub fn judging(pins: &Path, rules: u16) -> Result<Speed, DatapathError> {
    let mut kernel = Kernel::open(pins, OBJECT)?;
    let speed = measure(&mut kernel, rules);
    kernel.unload()?;
    speed
}

/// Measures a packet that meets no policy: a program that passes everything, on the same frame by the same clock. What
/// is more than this is the price of judging.
pub fn nothing() -> Result<Duration, DatapathError> {
    let failed = |source| DatapathError::Link {
        operation: "time a program that does nothing instead of",
        ifindex: LOOPBACK,
        source,
    };
    let program = sys::load_passing_program().map_err(failed)?;
    sys::time_program(program.as_fd(), &udp(peer(0), 1000, port(0)), REPEAT).map_err(failed)
}

fn measure(kernel: &mut Kernel, rules: u16) -> Result<Speed, DatapathError> {
    kernel.attach(&EndpointLink {
        id: ENDPOINT,
        ifindex: LOOPBACK,
        addresses: vec![POD.into()],
        mac: MAC,
    })?;
    kernel.sync(&tables(rules))?;
    let time = |kernel: &mut Kernel, frame: &[u8], repeat| {
        kernel
            .time_frame(Direction::Egress, LOOPBACK, frame, repeat)
            .map(|time| time.as_secs_f64() * 1e9)
    };
    let tracked = udp(peer(0), 1000, port(0));
    time(kernel, &tracked, 1)?;
    let established = time(kernel, &tracked, REPEAT)?;
    let denied = time(kernel, &udp(peer(0), 1000, 1), REPEAT)?;

    // A first packet can be sent once only, and the clock around one packet costs more than none. What it costs is the
    // difference to the same packet sent often.
    let once = |kernel: &mut Kernel, frame: &dyn Fn(u16) -> Vec<u8>| -> Result<f64, DatapathError> {
        let mut sum = 0.0;
        for number in 0..FIRST {
            sum += time(kernel, &frame(number), 1)?;
        }
        Ok(sum / f64::from(FIRST))
    };
    let clock = once(kernel, &|_| tracked.clone())? - established;
    let mut first = |services: u16| {
        kernel.expire(monotonic_now() + Duration::from_secs(3600))?;
        drain(kernel)?;
        let frame = |number: u16| {
            let service = number % services;
            udp(
                peer(service / PORTS_PER_PEER),
                2000 + number,
                port(service % PORTS_PER_PEER),
            )
        };
        once(kernel, &frame).map(|time| time - clock)
    };
    let new_flow = first(SERVICES.min(rules))?;
    let new_flow_anywhere = first(rules)?;
    Ok(Speed {
        established,
        new_flow,
        new_flow_anywhere,
        denied,
    })
}

/// Empties the ring: a full one would save the programs work.
fn drain(kernel: &mut Kernel) -> Result<(), DatapathError> {
    let mut source = kernel.flow_source()?;
    while source.next(Duration::ZERO)?.is_some() {}
    Ok(())
}

fn tables(rules: u16) -> NodeTables {
    let mut tables = NodeTables::default();
    let mut entries = EndpointTables::default();
    for number in 0..rules {
        let (peer_number, port_number) = (number / PORTS_PER_PEER, number % PORTS_PER_PEER);
        let id = IdentityId(u32::from(peer_number) + 1);
        tables
            .identities
            .insert(std::net::IpAddr::from(peer(peer_number)).into(), id);
        let key = VerdictKey {
            peer: id,
            direction: Direction::Egress,
            inside: InsideClass::default(),
            source: SourceClass(0),
            service: Service::Ports {
                protocol: 17,
                port: port(port_number),
                prefix_bits: 16,
            },
        };
        let entry = VerdictEntry {
            verdict: Verdict::Allow,
            rule: RuleId(64 + u32::from(number)),
        };
        entries.verdicts.insert(key, entry);
    }
    tables.endpoints.insert(ENDPOINT, entries.into());
    tables
}

fn peer(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 9, high, low)
}

fn port(number: u16) -> u16 {
    10_000 + number
}

/// A frame with a datagram from the pod.
fn udp(to: Ipv4Addr, source: u16, destination: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0xfe];
    frame.extend(MAC);
    frame.extend([8, 0, 0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(POD.octets());
    frame.extend(to.octets());
    frame.extend(source.to_be_bytes());
    frame.extend(destination.to_be_bytes());
    frame.extend([0, 8, 0, 0]);
    frame
}
