//! What a host translates on its way through: judged as what it forwards, never as its own, and known when it is answered.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use ebpf_abi::{END_REMOVED, MAX_UNESTABLISHED, RECORD_END};
use ebpf_loader::{Attachment, Datapath, EndpointLink, FlowRecord, HostLink, Reason, monotonic_now};
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
    },
};
use policies_ir::tables::{BuiltinRule, Direction, EndpointId, Service, Verdict};

use crate::{
    frames::{
        ACK, Ends, ICMP, RST, SYN, TCP, UDP, frame, icmp, icmp_error, ipv6, packet_of, segment, tcp, udp,
    },
    host::{
        ALLOW, CLIENT, DENY, EGRESS, Entry, FORWARD, HOST, INGRESS, LOCAL, endpoint, host_link, port, tables,
    },
    lab::{LOOPBACK, Lab, POD_MAC, attached_both_ways, ip},
    link::{Job, run},
    matrix::{address, address6, mac, plug_in},
};

const POD: EndpointId = EndpointId(1);
const INSIDE: &str = "10.7.0.2";
const ANY: [Entry; 2] = [(INGRESS, Service::Any, ALLOW), (EGRESS, Service::Any, ALLOW)];
const NONE: [Entry; 0] = [];
/// An interface that is no pod's.
const BRIDGE: u32 = 0x7fff_0000;
/// What the host makes itself came by no interface.
const ITSELF: u32 = 0;

/// A host with one address, at its loopback, and a pod whose packets it gives that address.
struct Carrying {
    lab: Lab,
    pod: EndpointLink,
}

impl Carrying {
    /// With these tables of the host itself and of what it forwards; `None` is no endpoint for that.
    fn new(attachment: Attachment, local: &[Entry], forward: Option<&[Entry]>) -> Self {
        let mut lab = Lab::attached(attachment);
        run("ip link add palhost type veth peer name eth0");
        let pod = EndpointLink {
            id: POD,
            ifindex: nix::net::if_::if_nametoindex("palhost").expect("the host side"),
            addresses: vec![ip(INSIDE)],
            mac: POD_MAC,
        };
        lab.kernel().attach(&pod).expect("attach");
        let mut host = Self { lab, pod };
        host.set(local, forward);
        host
    }

    fn set(&mut self, local: &[Entry], forward: Option<&[Entry]>) {
        let link = host_link(Some(endpoint(LOCAL)), forward.map(|_| endpoint(FORWARD)));
        self.lab.kernel().attach_host(&link).expect("attach");
        let mut all = vec![(POD, &ANY[..]), (LOCAL, local)];
        all.extend(forward.map(|entries| (FORWARD, entries)));
        self.lab.kernel().sync(&tables(&all)).expect("sync");
        while self.lab.record().is_some() {}
    }

    /// A packet leaves that came by an interface.
    fn leaves(&mut self, came_by: u32, protocol: u8, payload: &[u8]) -> Verdict {
        let frame = frame(Ends::new(HOST, CLIENT), protocol, payload);
        self.run(EGRESS, came_by, &frame)
    }

    /// The pod sends one.
    fn carries(&mut self, protocol: u8, payload: &[u8]) -> Verdict {
        self.leaves(self.pod.ifindex, protocol, payload)
    }

    /// One comes to the host's address.
    fn comes(&mut self, protocol: u8, payload: &[u8]) -> Verdict {
        self.run(
            INGRESS,
            ITSELF,
            &frame(Ends::new(CLIENT, HOST), protocol, payload),
        )
    }

    fn run(&mut self, direction: Direction, came_by: u32, frame: &[u8]) -> Verdict {
        self.lab
            .kernel()
            .run_host_frame(direction, LOOPBACK, came_by, frame)
            .expect("run the program")
    }

    fn flows(&mut self) -> Vec<(EndpointId, Verdict, bool)> {
        let flows = self.lab.kernel().tracked_flows().expect("flows");
        let told = flows
            .iter()
            .map(|flow| (flow.endpoint, flow.verdict, flow.established));
        told.collect()
    }

    fn record(&mut self) -> FlowRecord {
        self.lab.record().expect("a record")
    }

    /// Tracked flows as the programs have counted them.
    fn counted(&mut self) -> u64 {
        let counters = self.lab.kernel().counters().expect("counters");
        let flows = counters.fill.iter().find(|fill| fill.map == "FLOWS");
        flows.expect("the map").entries
    }
}

attached_both_ways! {
    fn what_a_pod_sends_is_judged_as_forwarded_and_its_answers_pass(attachment) {
        let own = [(EGRESS, port(TCP, 80), ALLOW)];
        let forwarded = [(EGRESS, port(TCP, 443), ALLOW)];
        let mut host = Carrying::new(attachment, &own, Some(&forwarded));
        assert_eq!(host.carries(TCP, &tcp(1000, 80, SYN)), DENY);
        let denied = host.record();
        assert_eq!((denied.endpoint, denied.source.to_ip()), (FORWARD.0, ip(INSIDE)));
        assert_eq!(host.leaves(ITSELF, TCP, &tcp(1001, 443, SYN)), DENY);
        assert_eq!(host.record().endpoint, LOCAL.0);

        assert_eq!(host.comes(TCP, &tcp(443, 1000, SYN | ACK)), DENY, "nobody asked");
        assert_eq!(host.carries(TCP, &segment(1000, 443, SYN, 10, 0, &[])), ALLOW);
        assert_eq!(host.comes(TCP, &segment(443, 1000, SYN | ACK, 50, 11, &[])), ALLOW);
        assert_eq!(host.carries(TCP, &segment(1000, 443, ACK, 11, 51, &[])), ALLOW);
        assert_eq!(host.flows(), [(LOCAL, ALLOW, true)]);
        // Neither the pod nor the host may go on with what the other has begun.
        assert_eq!(host.leaves(ITSELF, TCP, &tcp(1000, 80, SYN)), ALLOW);
        assert_eq!(host.carries(TCP, &tcp(1000, 80, ACK)), DENY);
    }
}

/// Nobody needs them to have an address but the host, which is a client, and asks by itself.
#[test]
fn ports_of_dhcp_are_no_way_through_a_host() {
    let mut host = Carrying::new(Attachment::Tcx, &NONE, Some(&NONE));
    let pod = host.pod.ifindex;
    let renewal = udp(68, 67);
    let answer = udp(67, 68);
    assert_eq!(host.leaves(ITSELF, UDP, &renewal), ALLOW);
    assert_eq!(host.comes(UDP, &answer), ALLOW);
    for payload in [&renewal, &answer] {
        assert_eq!(host.carries(UDP, payload), DENY, "translated");
        assert_eq!(host.leaves(BRIDGE, UDP, payload), DENY, "of another interface");
        let out = frame(Ends::new(INSIDE, CLIENT), UDP, payload);
        assert_eq!(host.run(EGRESS, pod, &out), DENY, "as it is");
        let back = frame(Ends::new(CLIENT, INSIDE), UDP, payload);
        assert_eq!(host.run(INGRESS, ITSELF, &back), DENY, "to the pod");
    }
    assert_eq!(host.comes(UDP, &renewal), DENY, "a server of the host's own");
    // On the link everyone may ask for a server.
    let everyone = frame(Ends::new("0.0.0.0", "255.255.255.255"), UDP, &renewal);
    for (direction, came_by) in [(INGRESS, ITSELF), (EGRESS, BRIDGE), (EGRESS, ITSELF)] {
        assert_eq!(
            host.run(direction, came_by, &everyone),
            ALLOW,
            "{direction:?} {came_by}"
        );
    }
}

#[test]
fn a_change_of_policy_judges_a_carried_flow_anew_whichever_end_sends() {
    let dns = [(EGRESS, port(UDP, 53), ALLOW)];
    let mut host = Carrying::new(Attachment::Tcx, &NONE, Some(&dns));
    let (question, answer) = (udp(1000, 53), udp(53, 1000));
    assert_eq!(host.carries(UDP, &question), ALLOW);
    assert_eq!(host.comes(UDP, &answer), ALLOW);
    host.set(&NONE, Some(&NONE));
    assert_eq!(host.comes(UDP, &answer), DENY, "the outside sends first");
    assert_eq!(host.carries(UDP, &question), DENY);
    host.set(&NONE, Some(&dns));
    assert_eq!(host.comes(UDP, &answer), ALLOW);
    assert_eq!(host.carries(UDP, &question), ALLOW);
    // What is said of the host itself changes nothing.
    host.set(&[(EGRESS, port(UDP, 53), DENY)], Some(&dns));
    assert_eq!(host.comes(UDP, &answer), ALLOW);
    assert_eq!(host.carries(UDP, &question), ALLOW);
}

#[test]
fn without_policy_for_it_what_is_forwarded_is_open_and_its_answers_pass() {
    let dns = [(EGRESS, port(UDP, 53), DENY), (EGRESS, port(UDP, 54), ALLOW)];
    let mut host = Carrying::new(Attachment::Tcx, &NONE, None);
    let (question, answer) = (udp(1000, 53), udp(53, 1000));
    assert_eq!(host.comes(UDP, &answer), DENY, "nobody asked");
    let _denied = host.record();
    assert_eq!(host.carries(UDP, &question), ALLOW);
    assert_eq!(host.record().rule, BuiltinRule::NoPolicy as u32);
    assert_eq!(host.comes(UDP, &answer), ALLOW);
    assert_eq!(host.leaves(ITSELF, UDP, &udp(1001, 53)), DENY);
    // A connection from before there was a host endpoint is one that goes on.
    assert_eq!(host.carries(TCP, &segment(1000, 80, ACK, 11, 51, &[])), ALLOW);
    assert_eq!(host.comes(TCP, &segment(80, 1000, ACK, 51, 12, &[])), ALLOW);

    host.set(&NONE, Some(&dns));
    assert_eq!(host.comes(UDP, &answer), DENY, "there is policy now");
    assert_eq!(host.carries(UDP, &question), DENY);
    host.set(&NONE, None);
    assert_eq!(host.comes(UDP, &answer), ALLOW, "it is gone again");
    assert_eq!(host.carries(UDP, &question), ALLOW);
}

#[test]
fn a_host_without_tables_carries_by_those_for_what_it_forwards() {
    let dns = [(EGRESS, port(UDP, 53), ALLOW)];
    let mut host = Carrying::new(Attachment::Tcx, &NONE, None);
    let link = host_link(Some(endpoint(LOCAL)), Some(endpoint(FORWARD)));
    host.lab
        .kernel()
        .attach_host(&HostLink::none(LOOPBACK))
        .expect("detach");
    host.lab.kernel().sync(&tables(&[(POD, &ANY)])).expect("sync");
    host.lab.kernel().attach_host(&link).expect("attach");
    assert_eq!(host.carries(UDP, &udp(1000, 54)), ALLOW, "no tables yet");
    assert_eq!(host.flows(), []);
    host.lab
        .kernel()
        .sync(&tables(&[(POD, &ANY), (FORWARD, &dns)]))
        .expect("sync");
    assert_eq!(host.carries(UDP, &udp(1000, 54)), DENY);
    assert_eq!(host.carries(UDP, &udp(1000, 53)), ALLOW);
    assert_eq!(host.comes(UDP, &udp(53, 1000)), ALLOW);
    assert_eq!(host.flows(), [(LOCAL, ALLOW, true)], "its answer is seen");
    assert_eq!(
        host.leaves(ITSELF, UDP, &udp(1000, 54)),
        ALLOW,
        "the host itself is open"
    );
}

#[test]
fn without_an_endpoint_of_the_hosts_address_what_is_forwarded_tracks_it() {
    let mut host = Carrying::new(Attachment::Tcx, &NONE, None);
    let link = host_link(None, Some(endpoint(FORWARD)));
    host.lab.kernel().attach_host(&link).expect("attach");
    let dns = [(EGRESS, port(UDP, 53), ALLOW)];
    host.lab
        .kernel()
        .sync(&tables(&[(POD, &ANY), (FORWARD, &dns)]))
        .expect("sync");
    assert_eq!(host.carries(UDP, &udp(1000, 54)), DENY);
    assert_eq!(host.carries(UDP, &udp(1000, 53)), ALLOW);
    assert_eq!(host.comes(UDP, &udp(53, 1000)), ALLOW);
    assert_eq!(host.flows(), [(FORWARD, ALLOW, true)]);
}

#[test]
fn what_no_pod_has_sent_is_forwarded_too() {
    let dns = [(EGRESS, port(UDP, 53), ALLOW)];
    let mut host = Carrying::new(Attachment::Tcx, &[(EGRESS, port(UDP, 54), ALLOW)], Some(&dns));
    assert_eq!(host.leaves(BRIDGE, UDP, &udp(1000, 54)), DENY);
    assert_eq!(host.leaves(BRIDGE, UDP, &udp(1000, 53)), ALLOW);
    assert_eq!(host.comes(UDP, &udp(53, 1000)), ALLOW);
}

/// A port that was one's is another's soon after: no decision goes over with it.
#[test]
fn who_takes_over_a_port_is_judged_anew() {
    let (own, pods) = ([(EGRESS, port(UDP, 53), ALLOW)], [(EGRESS, port(UDP, 54), ALLOW)]);
    let mut host = Carrying::new(Attachment::Tcx, &own, Some(&pods));
    assert_eq!(host.leaves(ITSELF, UDP, &udp(1000, 53)), ALLOW);
    assert_eq!(host.carries(UDP, &udp(1000, 53)), DENY);
    assert_eq!(host.comes(UDP, &udp(53, 1000)), ALLOW, "it is the host's still");
    assert_eq!(host.carries(UDP, &udp(1000, 54)), ALLOW);
    assert_eq!(host.leaves(ITSELF, UDP, &udp(1000, 54)), DENY);
    assert_eq!(host.comes(UDP, &udp(54, 1000)), ALLOW, "it is the pod's still");
    // Both may, and one flow takes the place of the other.
    let both = [(EGRESS, port(UDP, 55), ALLOW)];
    host.set(&both, Some(&both));
    for came_by in [host.pod.ifindex, ITSELF, BRIDGE] {
        assert_eq!(host.leaves(came_by, UDP, &udp(1000, 55)), ALLOW);
        let counted = host.counted();
        assert_eq!(counted, 3, "{came_by}");
        host.lab.kernel().expire(monotonic_now()).expect("expire");
        assert_eq!(host.counted(), counted, "as user space counts them");
    }
}

#[test]
fn what_comes_to_the_host_is_for_its_own_policy_to_say() {
    let own = [(INGRESS, port(TCP, 1000), ALLOW), (INGRESS, port(TCP, 80), ALLOW)];
    let forwarded = [(EGRESS, port(TCP, 443), ALLOW), (EGRESS, port(TCP, 5555), ALLOW)];
    let mut host = Carrying::new(Attachment::Tcx, &own, Some(&forwarded));
    for client in [1000, 1001] {
        assert_eq!(host.carries(TCP, &segment(client, 443, SYN, 10, 0, &[])), ALLOW);
        assert_eq!(
            host.comes(TCP, &segment(443, client, SYN | ACK, 50, 11, &[])),
            ALLOW
        );
        assert_eq!(host.carries(TCP, &segment(client, 443, ACK, 11, 51, &[])), ALLOW);
        // From the other end of a flow that lives, and it stays what it is.
        let verdict = if client == 1000 { ALLOW } else { DENY };
        assert_eq!(host.comes(TCP, &tcp(443, client, SYN)), verdict);
        assert_eq!(host.comes(TCP, &segment(443, client, ACK, 51, 11, &[])), ALLOW);
        assert_eq!(host.carries(TCP, &segment(client, 443, ACK, 11, 51, &[])), ALLOW);
    }
    assert_eq!(host.flows().len(), 2);
    // A port of the node that leads to the pod: what comes is judged by the node's policy, and so is its answer.
    assert_eq!(host.comes(TCP, &segment(5555, 80, SYN, 10, 0, &[])), ALLOW);
    assert_eq!(
        host.carries(TCP, &segment(80, 5555, SYN | ACK, 50, 11, &[])),
        ALLOW
    );
    assert_eq!(host.comes(TCP, &segment(5555, 80, ACK, 11, 51, &[])), ALLOW);
    host.set(&NONE, Some(&forwarded));
    assert_eq!(host.carries(TCP, &segment(80, 5555, ACK, 51, 11, &[])), DENY);
    host.set(&own, Some(&NONE));
    assert_eq!(host.carries(TCP, &segment(80, 5555, ACK, 51, 11, &[])), ALLOW);
    assert_eq!(
        host.carries(TCP, &tcp(80, 5555, SYN)),
        DENY,
        "it opens nothing by that"
    );
}

#[test]
fn errors_about_a_carried_flow_pass_while_it_may() {
    let dns = [(EGRESS, port(UDP, 53), ALLOW)];
    let mut host = Carrying::new(Attachment::Tcx, &NONE, Some(&dns));
    assert_eq!(host.carries(UDP, &udp(1000, 53)), ALLOW);
    let about = |protocol, payload: &[u8]| {
        let quoted = frame(Ends::new(HOST, CLIENT), protocol, payload);
        let error = icmp_error(3, 4, packet_of(&quoted));
        frame(Ends::new("198.51.100.254", HOST), ICMP, &error)
    };
    let related = about(UDP, &udp(1000, 53));
    assert_eq!(host.run(INGRESS, ITSELF, &related), ALLOW);
    assert_eq!(host.run(INGRESS, ITSELF, &about(UDP, &udp(1001, 53))), DENY);
    // The pod refuses an answer.
    let answer = frame(Ends::new(CLIENT, HOST), UDP, &udp(53, 1000));
    let refusal = icmp_error(3, 3, packet_of(&answer));
    assert_eq!(host.carries(ICMP, &refusal), ALLOW);
    host.set(&ANY, Some(&NONE));
    assert_eq!(host.run(INGRESS, ITSELF, &related), DENY);
    assert_eq!(host.carries(ICMP, &refusal), DENY);
    host.set(&NONE, None);
    assert_eq!(host.run(INGRESS, ITSELF, &related), ALLOW);
    // Echoes are flows too.
    assert_eq!(host.carries(ICMP, &icmp(8, 0, 7)), ALLOW);
    assert_eq!(host.comes(ICMP, &icmp(0, 0, 7)), ALLOW);
    assert_eq!(host.leaves(ITSELF, ICMP, &icmp(8, 0, 8)), DENY);
}

#[test]
fn pods_leave_the_host_half_of_its_share() {
    let mut host = Carrying::new(Attachment::Tcx, &ANY, Some(&ANY));
    let half = u16::try_from(MAX_UNESTABLISHED / 2).expect("a port");
    for number in 0..half {
        assert_eq!(host.carries(UDP, &udp(1000 + number, 53)), ALLOW, "{number}");
        let _opened = host.lab.record();
    }
    assert_eq!(host.carries(UDP, &udp(1000 + half, 53)), DENY);
    let denied = host.record();
    assert_eq!(
        Reason::from_code(denied.reason),
        Some(Reason::TooManyFlows),
        "{denied:?}"
    );
    assert_eq!(host.leaves(ITSELF, UDP, &udp(1000 + half, 53)), ALLOW);
}

#[test]
fn a_carried_flow_ends_with_its_pod_and_is_told_of_as_the_pods() {
    let mut host = Carrying::new(Attachment::Tcx, &NONE, Some(&ANY));
    assert_eq!(host.carries(TCP, &segment(1000, 80, SYN, 10, 0, &[])), ALLOW);
    assert_eq!(host.comes(TCP, &segment(80, 1000, RST | ACK, 0, 11, &[])), ALLOW);
    assert_eq!(host.counted(), 0, "a closed flow takes from no share");
    // Another one makes room of it.
    assert_eq!(host.carries(TCP, &segment(1000, 80, SYN, 99, 0, &[])), ALLOW);
    let records: Vec<FlowRecord> = std::iter::from_fn(|| host.lab.record()).collect();
    assert_eq!(records.len(), 3);
    for record in &records {
        let told = (record.endpoint, record.source.to_ip(), record.source_port);
        assert_eq!(told, (FORWARD.0, ip(INSIDE), 1000), "{record:?}");
    }
    assert_eq!(host.counted(), 1);
    let other = [(POD, &ANY[..]), (LOCAL, &NONE[..]), (FORWARD, &ANY[..])];
    host.lab.kernel().sync(&tables(&other)).expect("sync");
    host.lab.kernel().detach(POD).expect("detach");
    assert_eq!(host.flows(), []);
    assert_eq!(host.counted(), 0);
    let ended = host.lab.kernel().expire(monotonic_now()).expect("expire").records;
    let [end] = &ended[..] else {
        panic!("one end: {ended:?}")
    };
    assert_eq!(
        (end.kind, end.end, end.endpoint),
        (RECORD_END, END_REMOVED, FORWARD.0)
    );
}

/// How long to wait for what must come, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(300);
/// The machine outside, of either family, and a network behind it that takes smaller packets.
const OUTSIDE: [&str; 2] = ["192.0.2.9", "2001:db8::9"];
const BEHIND: [&str; 2] = ["203.0.113.7", "2001:db8:1::7"];
const MASQUERADE: &str = "table inet test {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr 10.7.1.0/24 oifname \"uplink\" masquerade
    ip6 saddr fd07::/64 oifname \"uplink\" masquerade
  }
}
";
/// Ports outside: of TCP, where bytes come back, and of UDP, where their number does.
const WEB: u16 = 8080;
const ECHO: u16 = 5353;

/// A node with an uplink, a machine outside that knows only the node, and a pod that reaches it by masquerade.
struct Node {
    lab: Lab,
    pod: mpsc::Sender<Job>,
}

impl Node {
    fn new(attachment: Attachment) -> Self {
        let mut lab = Lab::attached(attachment);
        for (setting, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
            fs::write(format!("/proc/sys/net/{setting}"), value).expect("forward");
        }
        run("ip link set lo up");
        let outside = namespace();
        run(&format!(
            "ip link add uplink type veth peer name eth0 netns {}",
            outside.id
        ));
        for line in [
            "ip addr add 192.0.2.1/24 dev uplink",
            "ip -6 addr add 2001:db8::1/64 dev uplink nodad",
            "ip link set uplink up",
            "ip route add 203.0.113.0/24 via 192.0.2.9",
            "ip -6 route add 2001:db8:1::/64 via 2001:db8::9",
        ] {
            run(line);
        }
        inside(&outside.jobs, || {
            for (setting, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
                fs::write(format!("/proc/sys/net/{setting}"), value).expect("forward");
            }
            for line in [
                "ip link set lo up",
                "ip addr add 192.0.2.9/24 dev eth0",
                "ip -6 addr add 2001:db8::9/64 dev eth0 nodad",
                "ip link set eth0 up",
                "ip link add narrow mtu 1300 type veth peer name nowhere",
                "ip link set narrow up",
                "ip link set nowhere up",
                "ip addr add 203.0.113.1/24 dev narrow",
                "ip -6 addr add 2001:db8:1::1/64 dev narrow nodad",
            ] {
                run(line);
            }
            for address in OUTSIDE.map(ip) {
                serve(address);
            }
        });
        let (pod, ifindex) = plug_in(0);
        let (four, six) = (address(0), address6(0));
        masquerade();
        let link = EndpointLink {
            id: POD,
            ifindex,
            addresses: vec![four, six],
            mac: mac(0),
        };
        lab.kernel().attach(&link).expect("attach");
        let mut node = Self { lab, pod };
        node.set(&ANY, Some(&ANY));
        node
    }

    fn set(&mut self, local: &[Entry], forward: Option<&[Entry]>) {
        let addresses = ["192.0.2.1", "2001:db8::1"].map(|address| (ip(address), endpoint(LOCAL)));
        let link = HostLink {
            ifindex: nix::net::if_::if_nametoindex("uplink").expect("the interface"),
            addresses: addresses.into(),
            forward: forward.map(|_| endpoint(FORWARD)),
        };
        self.lab.kernel().attach_host(&link).expect("attach");
        let mut all = vec![(POD, &ANY[..]), (LOCAL, local)];
        all.extend(forward.map(|entries| (FORWARD, entries)));
        self.lab.kernel().sync(&tables(&all)).expect("sync");
    }

    fn in_pod<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        inside(&self.pod, job)
    }

    /// Whether the pod's connection comes to be, and the node's own.
    fn connects(&self, to: IpAddr, expected: [bool; 2]) {
        let to = SocketAddr::new(to, WEB);
        let [pod, own] = expected;
        assert_eq!(self.in_pod(move || connects(to, pod)), pod, "the pod to {to}");
        assert_eq!(connects(to, own), own, "the node to {to}");
    }
}

struct Outside {
    jobs: mpsc::Sender<Job>,
    id: String,
}

/// A network namespace with a thread in it. It stays for as long as a thread that was started there does.
fn namespace() -> Outside {
    let (jobs, queue) = mpsc::channel::<Job>();
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let own = fs::read_link("/proc/thread-self").expect("a thread");
        ready.send(own).expect("the test waits");
        queue.into_iter().for_each(|job| job());
    });
    let thread = is_ready.recv().expect("the thread lives");
    let id = thread
        .file_name()
        .expect("a thread id")
        .to_string_lossy()
        .into_owned();
    Outside { jobs, id }
}

fn inside<T: Send + 'static>(jobs: &mpsc::Sender<Job>, job: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    let job = Box::new(move || done.send(job()).expect("the test waits"));
    jobs.send(job).expect("the thread lives");
    result.recv().expect("the job ends")
}

fn masquerade() {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("start nft");
    let mut stdin = nft.stdin.take().expect("its input");
    stdin.write_all(MASQUERADE.as_bytes()).expect("write");
    drop(stdin);
    assert!(nft.wait().expect("nft ends").success());
}

/// Sends back what comes, in the caller's network namespace, for as long as the test's process lives.
fn serve(address: IpAddr) {
    let listener = TcpListener::bind((address, WEB)).expect("listen");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accept");
            thread::spawn(move || {
                let mut byte = [0];
                while stream
                    .read_exact(&mut byte)
                    .and_then(|()| stream.write_all(&byte))
                    .is_ok()
                {}
            });
        }
    });
    let echo = UdpSocket::bind((address, ECHO)).expect("a socket");
    thread::spawn(move || {
        let mut bytes = [0; 8192];
        loop {
            let (length, from) = echo.recv_from(&mut bytes).expect("receive");
            let answer = u16::try_from(length).expect("a datagram").to_be_bytes();
            echo.send_to(&answer, from).expect("answer");
        }
    });
}

fn connects(to: SocketAddr, patient: bool) -> bool {
    let patience = if patient { PATIENCE } else { SILENCE };
    match TcpStream::connect_timeout(&to, patience).map_err(|error| error.kind()) {
        Ok(mut stream) => {
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            stream
                .write_all(b"x")
                .and_then(|()| stream.read_exact(&mut [0]))
                .is_ok()
        }
        Err(ErrorKind::TimedOut | ErrorKind::WouldBlock) => false,
        Err(kind) => panic!("{to}: {kind:?}"),
    }
}

/// A connection of the caller's network namespace, with bytes there and back.
struct Turns(TcpStream);

impl Turns {
    fn to(address: IpAddr) -> Self {
        let stream = TcpStream::connect((address, WEB)).expect("connect");
        stream.set_nodelay(true).expect("no delay");
        Self(stream)
    }

    fn turn(&mut self, patience: Duration) -> bool {
        self.0.set_read_timeout(Some(patience)).expect("a timeout");
        self.0
            .write_all(b"x")
            .and_then(|()| self.0.read_exact(&mut [0]))
            .is_ok()
    }
}

/// Sends a datagram of `bytes` and tells how many of them arrived, if the other end has answered.
fn asks(to: IpAddr, bytes: usize, patience: Duration) -> Option<u16> {
    let any: IpAddr = if to.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
    let socket = UdpSocket::bind((any, 0)).expect("a socket");
    socket.set_read_timeout(Some(patience)).expect("a timeout");
    socket.send_to(&vec![7; bytes], (to, ECHO)).expect("send");
    let mut answer = [0; 2];
    socket.recv(&mut answer).ok().map(|_| u16::from_be_bytes(answer))
}

attached_both_ways! {
    fn connections_of_a_real_pod_are_forwarded_and_those_of_its_node_are_not(attachment) {
        let mut node = Node::new(attachment);
        for to in OUTSIDE.map(ip) {
            node.connects(to, [true, true]);
        }
        let web = [(EGRESS, port(TCP, WEB), ALLOW)];
        for (local, forward, expected) in [
            (&ANY[..], Some(&NONE[..]), [false, true]),
            (&NONE, Some(&web), [true, false]),
            (&NONE, None, [true, false]),
            (&web, Some(&NONE), [false, true]),
        ] {
            node.set(local, forward);
            for to in OUTSIDE.map(ip) {
                node.connects(to, expected);
            }
        }
    }
}

attached_both_ways! {
    fn a_real_connection_that_is_carried_follows_policy(attachment) {
        let mut node = Node::new(attachment);
        for to in OUTSIDE.map(ip) {
            node.set(&NONE, Some(&ANY));
            let mut connection = node.in_pod(move || Turns::to(to));
            assert!(connection.turn(PATIENCE));
            node.set(&ANY, Some(&NONE));
            assert!(!connection.turn(SILENCE), "{to}");
            // What was sent meanwhile is sent again.
            node.set(&NONE, None);
            assert!(connection.turn(PATIENCE), "{to}");
            node.set(&NONE, Some(&ANY));
            assert!(connection.turn(PATIENCE), "{to}");
        }
    }
}

/// Taken apart by the pod, put together for translation and taken apart again: each piece is still the pod's.
#[test]
fn pieces_of_what_is_carried_are_judged_as_forwarded() {
    let mut node = Node::new(Attachment::Tcx);
    for to in OUTSIDE.map(ip) {
        node.set(&ANY, Some(&NONE));
        assert_eq!(
            node.in_pod(move || asks(to, 4000, SILENCE)),
            None,
            "the pod to {to}"
        );
        assert_eq!(asks(to, 4000, PATIENCE), Some(4000), "the node to {to}");
        node.set(&NONE, Some(&ANY));
        assert_eq!(
            node.in_pod(move || asks(to, 4000, PATIENCE)),
            Some(4000),
            "the pod to {to}"
        );
    }
}

/// Pieces with more in front of the first than in front of the second: the kernel has no room to give the second a header
/// as long, and makes all pieces anew, or one of the whole. Whose they are it forgets.
#[test]
fn pieces_that_the_kernel_makes_anew_are_judged_as_forwarded() {
    let mut node = Node::new(Attachment::Tcx);
    for bytes in [40, 1400] {
        node.set(&ANY, Some(&NONE));
        assert_eq!(node.in_pod(move || asks_oddly(bytes, SILENCE)), None, "{bytes}");
        node.set(&NONE, Some(&ANY));
        assert_eq!(
            node.in_pod(move || asks_oddly(bytes, PATIENCE)),
            u16::try_from(bytes).ok()
        );
    }
}

/// As [`asks`], of the pod, in two such pieces. In front of the first are options of which nobody knows the meaning.
fn asks_oddly(bytes: usize, patience: Duration) -> Option<u16> {
    const PORT: u16 = 4444;
    const FRAGMENT: u8 = 44;
    const DESTINATION_OPTIONS: u8 = 60;
    // RFC 4727, with the bits of one that is passed over.
    const UNKNOWN_BUT_HARMLESS: u8 = 0x1e;
    let (source, destination) = (
        Ipv6Addr::new(0xfd07, 0, 0, 0, 0, 0, 1, 10),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9),
    );
    let listens = UdpSocket::bind((source, PORT)).expect("a socket");
    listens.set_read_timeout(Some(patience)).expect("a timeout");
    let length = u16::try_from(8 + bytes).expect("a small datagram");
    let mut datagram = [PORT, ECHO, length, 0].map(u16::to_be_bytes).concat();
    datagram.resize(8 + bytes, 7);
    let pseudo = [
        &source.octets()[..],
        &destination.octets(),
        &length.to_be_bytes(),
        &[0, UDP],
    ]
    .concat();
    let words = pseudo.chunks(2).chain(datagram.chunks(2));
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("sixteen bits");
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());

    let (first, second) = datagram.split_at(bytes / 2 / 8 * 8);
    let fragment = |offset: usize, more: u16, data: &[u8]| {
        let offset = (u16::try_from(offset).expect("a small datagram") | more).to_be_bytes();
        [&[UDP, 0, offset[0], offset[1], 0, 0, 0, 7], data].concat()
    };
    let mut options = vec![FRAGMENT, 15, UNKNOWN_BUT_HARMLESS, 124];
    options.resize(128, 0);
    let in_front = [options, fragment(0, 1, first)].concat();
    let pieces = [
        ipv6(source, destination, DESTINATION_OPTIONS, &in_front),
        ipv6(source, destination, FRAGMENT, &fragment(first.len(), 0, second)),
    ];
    let raw = socket(
        AddressFamily::Inet6,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Raw,
    );
    let raw = raw.expect("a raw socket");
    let to = SockaddrStorage::from(SocketAddr::new(destination.into(), 0));
    for piece in &pieces {
        sendto(raw.as_raw_fd(), piece, &to, MsgFlags::empty()).expect("send");
    }
    let mut answer = [0; 2];
    listens.recv(&mut answer).ok().map(|_| u16::from_be_bytes(answer))
}

attached_both_ways! {
    fn a_real_router_outside_may_say_that_packets_are_too_large(attachment) {
        let mut node = Node::new(attachment);
        node.set(&NONE, Some(&ANY));
        for to in BEHIND.map(ip) {
            node.in_pod(move || {
                let began = Instant::now();
                while !route(to).contains("mtu 1300") {
                    assert!(began.elapsed() < PATIENCE, "the pod has heard nothing about {to}");
                    assert_eq!(asks(to, 1400, Duration::from_millis(20)), None);
                }
            });
        }
    }
}

/// What the caller's network namespace knows of the way to an address.
fn route(to: IpAddr) -> String {
    let to = to.to_string();
    let output = Command::new("ip")
        .args(["route", "get", &to])
        .output()
        .expect("start ip");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Echo, which has no ports to translate.
#[test]
fn echoes_of_a_real_pod_are_answered_where_they_may_be_sent() {
    let mut node = Node::new(Attachment::Tcx);
    for (local, forward, answered) in [(&NONE[..], &ANY[..], true), (&ANY, &NONE, false)] {
        node.set(local, Some(forward));
        for to in OUTSIDE.map(ip) {
            let is_answered = node.in_pod(move || is_echoed(to, answered));
            assert_eq!(is_answered, answered, "{to}");
        }
    }
}

fn is_echoed(to: IpAddr, patient: bool) -> bool {
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").expect("let root ask for echoes");
    let (family, protocol, request) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol).expect("a socket");
    let socket = UdpSocket::from(socket);
    let patience = if patient { PATIENCE } else { SILENCE };
    socket.set_read_timeout(Some(patience)).expect("a timeout");
    socket.connect((to, 0)).expect("connect");
    socket.send(&[request, 0, 0, 0, 0, 0, 0, 1]).expect("send");
    socket.recv(&mut [0; 8]).is_ok()
}
