//! How long judging takes, measured by the kernel itself: the real programs on frames given by hand.
//!
//! For `bench packets`. Two endpoints are attached to interfaces that the caller made for the purpose, and their tables are
//! as a node has them that has been up for a while. What is timed must pass, or be denied, as often as it was sent:
//! otherwise there is no number.
//!
//! A packet that is sent over and over finds all it needs in the processor's caches. First packets can be sent once only,
//! and those of [`Case::FirstAnywhere`] find little there.

use std::{
    collections::BTreeMap,
    iter::repeat_n,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    path::Path,
    sync::Arc,
    time::Duration,
};

use policies_ir::tables::{
    Direction, EndpointId, EndpointTables, IdentityId, InsideClass, NodeTables, RuleId, Service, SourceClass,
    Verdict, VerdictEntry, VerdictKey,
};

use crate::{Datapath, DatapathError, EndpointLink, Kernel, OBJECT, monotonic_now, sys};

/// A packet whose judging is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    /// A datagram of a tracked flow that nobody has answered: the least there is to do.
    Datagram,
    /// A segment of an established connection, whose numbers are compared with what both ends have sent and offered. It
    /// is the same one each time, so of the windows nothing moves.
    Segment(Family, Direction),
    /// A segment to another pod of the node, past the host's stack: judged for both ends, and rewritten, in one run.
    /// That the kernel then takes it to the other link is not in the time.
    Straight(Family),
    /// The first packet of a connection that is allowed, to one of the services of ten rules.
    First(Family, Direction),
    /// The same to one service after another, as far as there are rules: entries that no processor cache holds.
    FirstAnywhere(Family, Direction),
    /// The first packet of a connection that no rule speaks of, looked for up to the last place.
    Denied(Family),
}

/// Family of a packet's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What the endpoints' rules are like; so many of them for each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rules {
    /// Each for one port of one peer. One lookup finds the verdict, or that there is none.
    Ports(u16),
    /// Ten for each peer: ranges of ports, of which the programs have to look for prefixes of every length; a protocol; and
    /// everything. It is the last that allows what is timed, after all others were looked for in vain.
    Ranges(u16),
}

/// Nanoseconds for one packet, on average.
pub type Costs = BTreeMap<Case, f64>;

/// Why there is no number.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The datapath failed.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// Something else was timed than was meant.
    #[error(
        "{case:?}: the programs let {passed} of {sent} packets pass, counted at each end, rather than {wanted}"
    )]
    Passed {
        /// What was to be timed.
        case: Case,
        /// How often a program let a packet pass.
        passed: u64,
        /// Packets sent.
        sent: u32,
        /// How often one should have.
        wanted: u64,
    },
    /// The connections that segments belong to were not established.
    #[error("{established} of {wanted} connections are established")]
    Connections {
        /// Connections that are.
        established: usize,
        /// Connections that should be.
        wanted: usize,
    },
}

const LOOPBACK: u32 = 1;
/// The pod that is measured, and another one of the node.
const PODS: [Pod; 2] = [pod(1), pod(2)];
/// Of both pods and of the host: what goes straight leaves the frame as it was but for its hops, and can go again.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The most there can be.
const HOPS: u8 = 255;
/// Times a packet is judged where nothing changes by that.
const REPEAT: u32 = 50_000;
/// Times a frame goes straight, each with one hop fewer, before it would go by the host; and how often that is done.
const STRAIGHT: u32 = 250;
const STRAIGHT_RUNS: u32 = 400;
/// First packets of one kind: so many at a time, few enough for the share of flows that nobody answers from one peer.
const FIRST: u16 = 1000;
const FIRST_RUNS: u16 = 8;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

struct Pod {
    id: EndpointId,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

const fn pod(number: u8) -> Pod {
    Pod {
        id: EndpointId(number as u32),
        v4: Ipv4Addr::new(10, 7, 0, 1 + number),
        v6: Ipv6Addr::new(0xfd07, 0, 0, 0, 0, 0, 0, 1 + number as u16),
    }
}

impl Pod {
    fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

/// Measures an endpoint with such rules. The programs are attached to `links`, two interfaces of the caller's network
/// namespace that nobody else uses.
pub fn judging(pins: &Path, links: [u32; 2], rules: Rules) -> Result<Costs, MeasureError> {
    let mut kernel = Kernel::open(pins, OBJECT)?;
    let [own_link, other_link] = links;
    let bench = Bench {
        kernel: &mut kernel,
        own_link,
        other_link,
        rules,
        costs: Costs::new(),
    };
    let costs = bench.measure();
    kernel.unload()?;
    costs
}

/// Measures a packet that meets no policy: a program that passes everything, on a frame like the others by the same clock.
/// What is more than this is the price of judging.
pub fn nothing() -> Result<Duration, DatapathError> {
    let failed = |source| DatapathError::Link {
        operation: "time a program that does nothing instead of",
        ifindex: LOOPBACK,
        source,
    };
    let [a, b] = &PODS;
    let segment = Segment::data(0).between(
        (a.address(Family::V4), 1000).into(),
        (b.address(Family::V4), 80).into(),
    );
    let program = sys::load_passing_program().map_err(failed)?;
    sys::time_program(program.as_fd(), &segment, REPEAT).map_err(failed)
}

struct Bench<'a> {
    kernel: &'a mut Kernel,
    own_link: u32,
    other_link: u32,
    rules: Rules,
    costs: Costs,
}

impl Bench<'_> {
    fn measure(mut self) -> Result<Costs, MeasureError> {
        self.set_up()?;
        let datagram = udp(self.own(Family::V4, 1000), self.rules.datagrams());
        self.send(Direction::Egress, self.own_link, &datagram, 1)?;
        let cost = self.hot(Case::Datagram, Direction::Egress, &datagram)?;
        self.costs.insert(Case::Datagram, cost);

        for family in FAMILIES {
            self.connect(family)?;
            self.connect_pods(family)?;
        }
        let wanted = 2 * FAMILIES.len();
        let established = self.kernel.opened_flows()?.len();
        if established != wanted {
            return Err(MeasureError::Connections { established, wanted });
        }

        // What a run costs that is the only one, clock included, is more than one of many costs by the same, whatever is judged.
        let mut more = BTreeMap::new();
        for (family, direction) in places() {
            let case = Case::Segment(family, direction);
            let segment = self.segment(family, direction);
            let cost = self.hot(case, direction, &segment)?;
            self.costs.insert(case, cost);
            let alone = self.each(
                case,
                direction,
                repeat_n(segment, usize::from(FIRST * FIRST_RUNS)),
            )?;
            more.insert((family, direction), alone - cost);
        }
        for family in FAMILIES {
            self.straight(family)?;
            let stranger = SocketAddr::new(stranger(family), 443);
            let denied = Segment::opening().between(self.own(family, 1001), stranger);
            let cost = self.hot(Case::Denied(family), Direction::Egress, &denied)?;
            self.costs.insert(Case::Denied(family), cost);
        }
        for (family, direction) in places() {
            let more = more.get(&(family, direction)).copied().unwrap_or(f64::NAN);
            for (case, services) in [
                (Case::First(family, direction), self.rules.ten().services()),
                (Case::FirstAnywhere(family, direction), self.rules.services()),
            ] {
                let cost = self.first(case, family, direction, services)?;
                self.costs.insert(case, cost - more);
            }
        }
        Ok(self.costs)
    }

    fn set_up(&mut self) -> Result<(), DatapathError> {
        for (pod, ifindex) in PODS.iter().zip([self.own_link, self.other_link]) {
            self.kernel.attach(&EndpointLink {
                id: pod.id,
                ifindex,
                addresses: FAMILIES.map(|family| pod.address(family)).into(),
                mac: MAC,
            })?;
        }
        let tables = tables(self.rules);
        // A node's addresses have mostly changed since they were last written whole, and are looked up twice then.
        let mut before = tables.clone();
        before.identities.remove(&stranger(Family::V4).into());
        self.kernel.sync(&before)?;
        self.kernel.sync(&tables)?;
        self.forget()
    }

    /// A connection of the measured pod to a peer.
    fn connect(&mut self, family: Family) -> Result<(), DatapathError> {
        let (own, peer) = (self.own(family, 1000), self.rules.ten().service(0, family));
        for (direction, segment) in [
            (Direction::Egress, Segment::opening().between(own, peer)),
            (Direction::Ingress, Segment::answer().between(peer, own)),
            (Direction::Egress, Segment::data(0).between(own, peer)),
        ] {
            self.send(direction, self.own_link, &segment, 1)?;
        }
        Ok(())
    }

    /// One to the other pod. What the opener sends goes by the host until the other end has seen it, everything after it
    /// straight.
    fn connect_pods(&mut self, family: Family) -> Result<(), DatapathError> {
        let (own, peer) = (self.own(family, 1000), self.other(family));
        let opening = Segment::opening().between(own, peer);
        for (direction, ifindex, segment) in [
            (Direction::Egress, self.own_link, &opening),
            (Direction::Ingress, self.other_link, &opening),
            (
                Direction::Egress,
                self.other_link,
                &Segment::answer().between(peer, own),
            ),
            (
                Direction::Egress,
                self.own_link,
                &Segment::data(0).between(own, peer),
            ),
        ] {
            self.send(direction, ifindex, segment, 1)?;
        }
        Ok(())
    }

    /// One of the connection that [`Bench::connect`] made.
    fn segment(&self, family: Family, direction: Direction) -> Vec<u8> {
        let (own, peer) = (self.own(family, 1000), self.rules.ten().service(0, family));
        match direction {
            Direction::Egress => Segment::data(PAYLOAD).between(own, peer),
            Direction::Ingress => Segment::reply(PAYLOAD).between(peer, own),
        }
    }

    fn straight(&mut self, family: Family) -> Result<(), MeasureError> {
        let segment = Segment::data(PAYLOAD).between(self.own(family, 1000), self.other(family));
        let case = Case::Straight(family);
        let before = self.kernel.counters()?.allowed;
        let mut sum = 0.0;
        for _ in 0..STRAIGHT_RUNS {
            sum += self.send(Direction::Egress, self.own_link, &segment, STRAIGHT)?;
        }
        self.check(case, before, STRAIGHT * STRAIGHT_RUNS)?;
        self.costs.insert(case, sum / f64::from(STRAIGHT_RUNS));
        Ok(())
    }

    /// First packets from as many ports, to so many services in turn.
    fn first(
        &mut self,
        case: Case,
        family: Family,
        direction: Direction,
        services: u16,
    ) -> Result<f64, MeasureError> {
        let mut sum = 0.0;
        for run in 0..FIRST_RUNS {
            self.forget()?;
            let packets: Vec<_> = (run * FIRST..(run + 1) * FIRST)
                .map(|number| self.opening(family, direction, number, services))
                .collect();
            sum += self.each(case, direction, packets)?;
        }
        Ok(sum / f64::from(FIRST_RUNS))
    }

    fn opening(&self, family: Family, direction: Direction, number: u16, services: u16) -> Vec<u8> {
        let peer = self.rules.service(number % services, family);
        let (own, source) = (self.own(family, 2000 + number), 2000 + number);
        match direction {
            Direction::Egress => Segment::opening().between(own, peer),
            // The same service, offered by the pod: rules of both directions name the peer and a port of the receiver.
            Direction::Ingress => Segment::opening().between(
                SocketAddr::new(peer.ip(), source),
                SocketAddr::new(own.ip(), peer.port()),
            ),
        }
    }

    /// Average of a packet that is sent over and over.
    fn hot(&mut self, case: Case, direction: Direction, frame: &[u8]) -> Result<f64, MeasureError> {
        let before = self.kernel.counters()?.allowed;
        let cost = self.send(direction, self.own_link, frame, REPEAT)?;
        self.check(case, before, REPEAT)?;
        Ok(cost)
    }

    /// Average of packets that are sent once each.
    fn each(
        &mut self,
        case: Case,
        direction: Direction,
        frames: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<f64, MeasureError> {
        let before = self.kernel.counters()?.allowed;
        let (mut sum, mut sent) = (0.0, 0);
        for frame in frames {
            sum += self.send(direction, self.own_link, &frame, 1)?;
            sent += 1;
        }
        self.check(case, before, sent)?;
        Ok(sum / f64::from(sent))
    }

    /// Nanoseconds that the program of the direction took for one of so many.
    fn send(
        &mut self,
        direction: Direction,
        ifindex: u32,
        frame: &[u8],
        repeat: u32,
    ) -> Result<f64, DatapathError> {
        let time = self.kernel.time_frame(direction, ifindex, frame, repeat)?;
        Ok(time.as_secs_f64() * 1e9)
    }

    fn check(&mut self, case: Case, before: u64, sent: u32) -> Result<(), MeasureError> {
        let passed = self.kernel.counters()?.allowed - before;
        let wanted = match case {
            Case::Denied(_) => 0,
            // At either end.
            Case::Straight(_) => 2 * u64::from(sent),
            _ => u64::from(sent),
        };
        if passed == wanted {
            return Ok(());
        }
        Err(MeasureError::Passed {
            case,
            passed,
            sent,
            wanted,
        })
    }

    /// Ends all attempts, and empties the ring: a full one would save the programs work.
    fn forget(&mut self) -> Result<(), DatapathError> {
        self.kernel.expire(monotonic_now() + Duration::from_secs(3600))?;
        let mut source = self.kernel.flow_source()?;
        while source.next(Duration::ZERO)?.is_some() {}
        Ok(())
    }

    fn own(&self, family: Family, port: u16) -> SocketAddr {
        let [pod, _] = &PODS;
        SocketAddr::new(pod.address(family), port)
    }

    /// What the other pod serves: what every peer of the first class may.
    fn other(&self, family: Family) -> SocketAddr {
        let [_, pod] = &PODS;
        SocketAddr::new(pod.address(family), self.rules.ten().service(0, family).port())
    }
}

fn places() -> impl Iterator<Item = (Family, Direction)> {
    let both = |family| DIRECTIONS.map(|direction| (family, direction));
    FAMILIES.into_iter().flat_map(both)
}

impl Rules {
    const PORTS_PER_PEER: u16 = 100;
    const RANGES_PER_PEER: u16 = 10;
    const FIRST_PORT: u16 = 10_000;

    fn count(self) -> u16 {
        let (Self::Ports(count) | Self::Ranges(count)) = self;
        count
    }

    /// The first of them.
    fn ten(self) -> Self {
        match self {
            Self::Ports(count) => Self::Ports(count.min(10)),
            Self::Ranges(count) => Self::Ranges(count.min(10)),
        }
    }

    /// Services by TCP that they allow: of [`Rules::Ports`] the first is for datagrams, of [`Rules::Ranges`] one of ten is for
    /// everything.
    fn services(self) -> u16 {
        match self {
            Self::Ports(count) => count.saturating_sub(1).max(1),
            Self::Ranges(count) => (count / Self::RANGES_PER_PEER).max(1),
        }
    }

    fn service(self, number: u16, family: Family) -> SocketAddr {
        let (at, port) = match self {
            Self::Ports(_) => self.place(1 + number),
            Self::Ranges(_) => (number, 443),
        };
        SocketAddr::new(peer(at, family), port)
    }

    /// Where datagrams may go: rules of both kinds let them reach the first peer there, by an exact port or by one of the
    /// ranges.
    fn datagrams(self) -> SocketAddr {
        SocketAddr::new(peer(0, Family::V4), Self::FIRST_PORT)
    }

    /// Peer and port of a rule for one port.
    fn place(self, rule: u16) -> (u16, u16) {
        let (peer, port) = (rule / Self::PORTS_PER_PEER, rule % Self::PORTS_PER_PEER);
        (peer, Self::FIRST_PORT + port)
    }

    /// Peer of a rule, and what it allows.
    fn allows(self, rule: u16) -> (u16, Vec<Service>) {
        let ports = |protocol, port, prefix_bits| Service::Ports {
            protocol,
            port,
            prefix_bits,
        };
        if let Self::Ports(_) = self {
            let (peer, port) = self.place(rule);
            return (peer, vec![ports(if rule == 0 { UDP } else { TCP }, port, 16)]);
        }
        let services = match rule % Self::RANGES_PER_PEER {
            // From 16384 to 65535, then from 4096 to 16383, and so on to 1 to 3: each is two prefixes, all of other lengths.
            range @ 0..=7 => (2 * range + 1..=2 * range + 2)
                .map(|bits| ports(UDP, 1 << (16 - bits), u8::try_from(bits).unwrap_or(16)))
                .collect(),
            8 => vec![Service::Protocol(SCTP)],
            _ => vec![Service::Any],
        };
        (rule / Self::RANGES_PER_PEER, services)
    }
}

/// Both endpoints have the same rules, in both directions. The pods are among those that the first rules are about.
fn tables(rules: Rules) -> NodeTables {
    let mut tables = NodeTables::default();
    let mut entries = EndpointTables::default();
    let class = |peer: u16| IdentityId(u32::from(peer) + 1);
    for number in 0..rules.count() {
        let (at, services) = rules.allows(number);
        for family in FAMILIES {
            tables.identities.insert(peer(at, family).into(), class(at));
        }
        for direction in DIRECTIONS {
            for service in &services {
                let key = VerdictKey {
                    peer: class(at),
                    direction,
                    inside: InsideClass::default(),
                    source: SourceClass(0),
                    service: *service,
                };
                let entry = VerdictEntry {
                    verdict: Verdict::Allow,
                    rule: RuleId(64 + u32::from(number)),
                };
                entries.verdicts.insert(key, entry);
            }
        }
    }
    for family in FAMILIES {
        for pod in &PODS {
            tables.identities.insert(pod.address(family).into(), class(0));
        }
        tables.identities.insert(stranger(family).into(), class(u16::MAX));
    }
    let entries = Arc::new(entries);
    for pod in &PODS {
        tables.endpoints.insert(pod.id, Arc::clone(&entries));
    }
    tables
}

fn peer(number: u16, family: Family) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    match family {
        Family::V4 => Ipv4Addr::new(10, 9, high, low).into(),
        Family::V6 => Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, number).into(),
    }
}

/// Somebody whom the tables know, and no rule allows.
fn stranger(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 8, 0, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// Bytes that segments carry.
const PAYLOAD: usize = 100;
/// First numbers of who opens and of who answers.
const OPENER: u32 = 1000;
const ANSWERER: u32 = 5000;

/// What a TCP header says of a connection, options as Linux sends them.
struct Segment {
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    payload: usize,
}

impl Segment {
    fn opening() -> Self {
        Self {
            flags: SYN,
            sequence: OPENER,
            acknowledged: 0,
            payload: 0,
        }
    }

    fn answer() -> Self {
        Self {
            flags: SYN | ACK,
            sequence: ANSWERER,
            acknowledged: OPENER + 1,
            payload: 0,
        }
    }

    /// From who opened.
    fn data(payload: usize) -> Self {
        Self {
            flags: ACK,
            sequence: OPENER + 1,
            acknowledged: ANSWERER + 1,
            payload,
        }
    }

    /// From who answered.
    fn reply(payload: usize) -> Self {
        Self {
            flags: ACK,
            sequence: ANSWERER + 1,
            acknowledged: OPENER + 1,
            payload,
        }
    }

    /// The frame.
    fn between(&self, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        /// Nothing twice, and a time stamp.
        const TIME: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1];
        /// Largest segment, selective acknowledgements, a time stamp, nothing, and a scale of windows.
        const OPENS: [u8; 20] = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
        let opens = self.flags & SYN != 0;
        let (words, options) = if opens { (10, &OPENS[..]) } else { (8, &TIME[..]) };
        let mut bytes = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledged.to_be_bytes());
        bytes.extend([words << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.extend(options);
        bytes.extend(repeat_n(0, self.payload));
        frame(from.ip(), to.ip(), TCP, &bytes)
    }
}

/// A frame with a datagram.
fn udp(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut bytes = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    bytes.extend([0, 8, 0, 0]);
    frame(from.ip(), to.ip(), UDP, &bytes)
}

fn frame(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = |header: usize| {
        u16::try_from(header + payload.len())
            .unwrap_or(u16::MAX)
            .to_be_bytes()
    };
    let (ethertype, header) = match from {
        IpAddr::V4(_) => {
            let [high, low] = length(20);
            let start = [0x45, 0, high, low, 0, 1, 0x40, 0, HOPS, protocol, 0, 0];
            ([8, 0], start.to_vec())
        }
        IpAddr::V6(_) => {
            let [high, low] = length(0);
            ([0x86, 0xdd], vec![0x60, 0, 0, 0, high, low, protocol, HOPS])
        }
    };
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    [
        &MAC[..],
        &MAC,
        &ethertype,
        &header,
        &octets(from),
        &octets(to),
        payload,
    ]
    .concat()
}
