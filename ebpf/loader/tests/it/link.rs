//! A real pod's link: packets of the kernel's own stack between two network namespaces.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use ebpf_loader::{Attachment, Datapath, EndpointLink, FlowRecord, Reason};
use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, SockaddrStorage,
        sendto, socket,
    },
};
use policies_ir::tables::{Direction, NodeTables, Service};

use crate::lab::{ENDPOINT, Lab, POD_MAC, attached_both_ways, ip, tables};

const POD: &str = "10.7.0.2";
pub(crate) const GATEWAY: &str = "169.254.1.1";
const POD6: &str = "fd07::2";
const GATEWAY6: &str = "fd07::1";
/// How long to wait for what must come, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(300);
pub(crate) const TCP: u8 = 6;
const UDP: u8 = 17;

/// A lab whose thread is the host, and a pod beside it, linked as the agent links pods: one address each, permanent
/// neighbours.
pub(crate) struct Pod {
    pub(crate) lab: Lab,
    pub(crate) jobs: mpsc::Sender<Job>,
    pub(crate) ifindex: u32,
}

pub(crate) type Job = Box<dyn FnOnce() + Send>;

impl Pod {
    pub(crate) fn new() -> Self {
        Self::attached(Attachment::Tcx)
    }

    pub(crate) fn attached(attachment: Attachment) -> Self {
        let lab = Lab::attached(attachment);
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            let namespace = fs::read_link("/proc/thread-self").expect("a thread");
            ready.send(namespace).expect("the test waits");
            queue.into_iter().for_each(|job| job());
        });
        let thread = is_ready.recv().expect("the pod's thread lives");
        let namespace =
            File::open(format!("/proc/{}/ns/net", thread.display())).expect("the pod's namespace");
        let host = File::open("/proc/thread-self/ns/net").expect("the host's namespace");

        let id = thread
            .file_name()
            .expect("a thread id")
            .to_string_lossy()
            .into_owned();
        run("ip link set lo up");
        run(&format!(
            "ip link add palhost type veth peer name eth0 address 02:00:00:00:00:01 netns {id}"
        ));
        run("ip link set palhost address 02:00:00:00:00:fe up");
        run("ip addr add 169.254.1.1/32 dev palhost");
        run("ip -6 addr add fd07::1/128 dev palhost nodad");
        setns(&namespace, CloneFlags::CLONE_NEWNET).expect("enter the pod");
        for line in [
            "ip link set lo up",
            "ip link set eth0 up",
            "ip addr add 10.7.0.2/32 dev eth0",
            "ip route add 169.254.1.1 dev eth0",
            "ip route add default via 169.254.1.1 dev eth0",
            "ip neigh replace 169.254.1.1 lladdr 02:00:00:00:00:fe dev eth0 nud permanent",
            "ip -6 addr add fd07::2/128 dev eth0 nodad",
            "ip -6 route add fd07::1 dev eth0",
            "ip neigh replace fd07::1 lladdr 02:00:00:00:00:fe dev eth0 nud permanent",
        ] {
            run(line);
        }
        setns(&host, CloneFlags::CLONE_NEWNET).expect("leave the pod");
        for line in [
            "ip route add 10.7.0.2/32 dev palhost",
            "ip neigh replace 10.7.0.2 lladdr 02:00:00:00:00:01 dev palhost nud permanent",
            "ip -6 route add fd07::2/128 dev palhost",
            "ip neigh replace fd07::2 lladdr 02:00:00:00:00:01 dev palhost nud permanent",
        ] {
            run(line);
        }
        let ifindex = nix::net::if_::if_nametoindex("palhost").expect("the host side");
        Self { lab, jobs, ifindex }
    }

    /// Runs `job` in the pod.
    pub(crate) fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = Box::new(move || done.send(job()).expect("the test waits"));
        self.jobs.send(job).expect("the pod's thread lives");
        result.recv().expect("the job ends")
    }

    pub(crate) fn attach(&mut self) {
        let link = EndpointLink {
            id: ENDPOINT,
            ifindex: self.ifindex,
            addresses: vec![ip(POD), ip(POD6)],
            mac: POD_MAC,
        };
        self.lab.kernel().attach(&link).expect("attach");
    }

    pub(crate) fn allow(&mut self, allowed: &[(Direction, usize, Service)]) {
        let mut tables: NodeTables = tables(&["169.254.1.1/32"], allowed);
        tables.identities.insert(
            "fd07::1/128".parse().expect("a prefix"),
            policies_ir::tables::IdentityId(1),
        );
        self.lab.kernel().sync(&tables).expect("sync");
    }

    /// The records so far.
    fn records(&mut self) -> Vec<FlowRecord> {
        std::iter::from_fn(|| self.lab.record()).collect()
    }
}

pub(crate) fn run(line: &str) {
    let mut words = line.split(' ');
    let program = words.next().expect("a program");
    let status = Command::new(program).args(words).status().expect("start it");
    assert!(status.success(), "`{line}`: {status}");
}

pub(crate) fn port(protocol: u8, port: u16) -> Service {
    Service::Ports {
        protocol,
        port,
        prefix_bits: 16,
    }
}

pub(crate) fn reaches(address: &str) -> bool {
    TcpStream::connect_timeout(&address.parse().expect("an address"), PATIENCE).is_ok()
}

pub(crate) fn is_cut_off(address: &str) -> bool {
    let kind =
        TcpStream::connect_timeout(&address.parse().expect("an address"), SILENCE).map_err(|e| e.kind());
    matches!(kind, Err(ErrorKind::TimedOut | ErrorKind::WouldBlock))
}

attached_both_ways! {
    fn tcp_flows_follow_policy_on_a_real_link(attachment) {
        let mut pod = Pod::attached(attachment);
        let web = TcpListener::bind((GATEWAY, 8080)).expect("listen on the host");
        let web6 = TcpListener::bind((GATEWAY6, 8080)).expect("listen on the host");
        let inner = pod.inside(|| TcpListener::bind((POD, 9090)).expect("listen in the pod"));
        let cut_off = || is_cut_off("169.254.1.1:8080");
        assert!(
            pod.inside(|| reaches("169.254.1.1:8080")),
            "the link works before it is judged"
        );

        pod.attach();
        assert!(pod.inside(cut_off), "attached is denied");
        pod.allow(&[(Direction::Egress, 0, port(TCP, 8080))]);
        assert!(pod.inside(|| reaches("169.254.1.1:8080")), "allowed");
        assert!(pod.inside(|| reaches("[fd07::1]:8080")), "allowed, IPv6");
        assert!(pod.inside(|| is_cut_off("169.254.1.1:8081")), "another port");
        assert!(is_cut_off("10.7.0.2:9090"), "the other direction");
        pod.allow(&[(Direction::Ingress, 0, port(TCP, 9090))]);
        assert!(reaches("10.7.0.2:9090"), "the other direction, allowed");
        assert!(pod.inside(cut_off), "no longer allowed");

        let records = pod.records();
        let opened = |port| {
            records
                .iter()
                .any(|record| record.destination_port == port && record.verdict == 1 && record.rule == 64)
        };
        assert!(opened(8080) && opened(9090), "{records:?}");
        drop((web, web6, inner));
    }
}

attached_both_ways! {
    fn an_established_connection_ends_when_policy_forbids_it(attachment) {
        let mut pod = Pod::attached(attachment);
        pod.attach();
        pod.allow(&[(Direction::Egress, 0, port(TCP, 8080))]);
        let listener = TcpListener::bind((GATEWAY, 8080)).expect("listen on the host");
        let mut client = pod.inside(|| TcpStream::connect((GATEWAY, 8080)).expect("connect"));
        let (mut server, _) = listener.accept().expect("accept");
        server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut byte = [0];
        client.write_all(b"x").expect("send");
        server.read_exact(&mut byte).expect("receive");

        pod.allow(&[]);
        client.write_all(b"y").expect("send into the buffer");
        server.set_read_timeout(Some(SILENCE)).expect("a timeout");
        let kind = server.read_exact(&mut byte).expect_err("nothing arrives").kind();
        assert!(
            matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut),
            "{kind:?}"
        );

        // What was sent meanwhile arrives once it is allowed again: retransmitted, on the same connection.
        pod.allow(&[(Direction::Egress, 0, port(TCP, 8080))]);
        server
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        server.read_exact(&mut byte).expect("receive");
        assert_eq!(&byte, b"y");
    }
}

attached_both_ways! {
    fn an_agent_that_is_gone_leaves_its_verdicts(attachment) {
        let mut pod = Pod::attached(attachment);
        let listener = TcpListener::bind((GATEWAY, 8080)).expect("listen on the host");
        pod.attach();
        pod.allow(&[(Direction::Egress, 0, port(TCP, 8080))]);
        pod.lab.stop();
        assert!(pod.inside(|| reaches("169.254.1.1:8080")), "still allowed");
        assert!(pod.inside(|| is_cut_off("169.254.1.1:8081")), "still denied");
        pod.lab.start();
        assert_eq!(pod.lab.kernel().attached().expect("attached").len(), 1);
        assert!(
            pod.inside(|| reaches("169.254.1.1:8080")),
            "allowed by the programs of the new agent"
        );
        drop(listener);
    }
}

attached_both_ways! {
    fn a_deleted_link_leaves_no_endpoint(attachment) {
        let mut pod = Pod::attached(attachment);
        pod.attach();
        run("ip link del palhost");
        assert_eq!(pod.lab.kernel().attached().expect("attached"), []);
        pod.lab.kernel().detach(ENDPOINT).expect("detach what is gone");
    }
}

attached_both_ways! {
    fn unreachable_ports_are_heard_of_through_policy(attachment) {
        let mut pod = Pod::attached(attachment);
        pod.attach();
        pod.allow(&[(Direction::Egress, 0, port(UDP, 5353))]);
        // The host answers that nobody listens; that error belongs to the flow and passes.
        let heard = pod.inside(|| {
            let socket = UdpSocket::bind((POD, 0)).expect("a socket");
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            socket.connect((GATEWAY, 5353)).expect("connect");
            socket.send(b"x").expect("send");
            socket.recv(&mut [0]).expect_err("nobody answers").kind()
        });
        assert_eq!(heard, ErrorKind::ConnectionRefused);
    }
}

attached_both_ways! {
    fn fragments_of_the_kernel_follow_their_first_one(attachment) {
        let mut pod = Pod::attached(attachment);
        pod.attach();
        pod.allow(&[(Direction::Egress, 0, port(UDP, 5353))]);
        for (address, source) in [(GATEWAY, POD), (GATEWAY6, POD6)] {
            let receive = |port| {
                let receiver = UdpSocket::bind((address, port)).expect("a socket");
                receiver.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                receiver
            };
            let (allowed, denied) = (receive(5353), receive(5354));
            pod.inside(move || {
                let socket = UdpSocket::bind((source, 0)).expect("a socket");
                for port in [5354, 5353] {
                    socket
                        .send_to(&[7; 4000], (address, port))
                        .expect("send three fragments");
                }
            });
            assert_eq!(
                allowed.recv(&mut [0; 8192]).expect("the packet, whole again"),
                4000
            );
            denied.set_nonblocking(true).expect("non-blocking");
            assert!(
                denied.recv(&mut [0; 8192]).is_err(),
                "a denied packet passed in pieces"
            );
        }
        let records = pod.records();
        let count = |reason: Reason, verdict| {
            let same = |record: &&FlowRecord| record.reason == reason as u8 && record.verdict == verdict;
            records.iter().filter(same).count()
        };
        // The first of each denied packet has ports and meets policy, those that follow belong to nothing.
        assert_eq!(
            (count(Reason::Policy, 0), count(Reason::Fragment, 0)),
            (2, 4),
            "{records:?}"
        );
        let flows = pod.lab.kernel().tracked_flows().expect("flows");
        assert_eq!(
            flows.iter().map(|flow| flow.packets).collect::<Vec<_>>(),
            [[0, 3]; 2]
        );
    }
}

/// Two sets of tables number the same addresses the other way round, and both allow the one and deny the other.
/// Whoever mixed addresses of one with verdicts of the other would let the wrong one through, or neither.
#[test]
fn no_packet_is_judged_by_half_of_a_change() {
    const DENIED: &str = "10.8.0.1";
    const PACKETS: usize = 3000;
    let mut pod = Pod::new();
    run("ip addr add 10.8.0.1/32 dev palhost");
    let denied = UdpSocket::bind((DENIED, 5353)).expect("a socket");
    let one = tables(
        &["169.254.1.1/32", "10.8.0.1/32"],
        &[(Direction::Egress, 0, Service::Any)],
    );
    let two = tables(
        &["10.8.0.1/32", "169.254.1.1/32"],
        &[(Direction::Egress, 1, Service::Any)],
    );
    pod.attach();
    pod.lab.kernel().sync(&one).expect("sync");

    let (done, is_done) = mpsc::channel();
    let job = Box::new(move || {
        for port in (10_000..).take(PACKETS) {
            // A port of its own makes each packet the first of a flow.
            let socket = UdpSocket::bind((POD, port)).expect("a socket");
            socket.send_to(b"x", (GATEWAY, 5353)).expect("send");
            socket.send_to(b"x", (DENIED, 5353)).expect("send");
        }
        done.send(()).expect("the test waits");
    });
    pod.jobs.send(job).expect("the pod's thread lives");
    let mut changes = 0;
    while is_done.try_recv().is_err() {
        pod.lab
            .kernel()
            .sync(if changes % 2 == 0 { &two } else { &one })
            .expect("sync");
        changes += 1;
        if changes % 16 == 0 {
            pod.lab.kernel().expire(Duration::ZERO).expect("expire");
        }
    }
    assert!(changes > 10, "policy changed while packets were sent: {changes}");
    let records = pod.records();
    let count = |destination, verdict| {
        let same =
            |record: &&FlowRecord| record.destination.to_ip() == ip(destination) && record.verdict == verdict;
        records.iter().filter(same).count()
    };
    let (let_through, refused) = (count(DENIED, 1), count(GATEWAY, 0));
    assert_eq!((let_through, refused), (0, 0), "after {changes} changes");
    assert_eq!(
        (count(GATEWAY, 1), count(DENIED, 0)),
        (PACKETS, PACKETS),
        "after {changes} changes"
    );
    denied.set_nonblocking(true).expect("non-blocking");
    assert!(denied.recv(&mut [0]).is_err(), "a denied packet passed");
    println!("{PACKETS} packets each way, {changes} changes");
}

attached_both_ways! {
    /// Frames that the kernel would not let a program see by hand: shorter than an IP header.
    fn frames_without_a_whole_ip_header_are_denied(attachment) {
        let mut pod = Pod::attached(attachment);
        pod.attach();
        pod.allow(&[(Direction::Egress, 0, Service::Any)]);
        pod.records();
        let sent = pod.inside(|| {
            let (socket, interface) = raw_socket();
            let mut sent = 0;
            for ethertype in [[8, 0], [0x86, 0xdd]] {
                for length in 0..20 {
                    let mut frame = vec![2, 0, 0, 0, 0, 0xfe, 2, 0, 0, 0, 0, 1];
                    frame.extend(ethertype);
                    frame.extend(vec![if ethertype == [8, 0] { 0x45 } else { 0x60 }; length]);
                    sendto(socket.as_raw_fd(), &frame, &interface, MsgFlags::empty()).expect("send the frame");
                    sent += 1;
                }
            }
            sent
        });
        let deadline = Instant::now() + PATIENCE;
        let mut denied = 0;
        while denied < sent && Instant::now() < deadline {
            let source = pod.lab.source.as_mut().expect("the ring");
            if let Some(record) = source.next(PATIENCE).expect("read the ring") {
                // The pod's own kernel multicasts a little over IPv6.
                if record.reason == Reason::Truncated as u8 {
                    assert_eq!(record.verdict, 0);
                    denied += 1;
                }
            }
        }
        assert_eq!(denied, sent);
    }
}

/// A socket for whole frames, and the pod's interface as the address to send them to.
pub(crate) fn raw_socket() -> (OwnedFd, LinkAddr) {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    );
    let mut interfaces = nix::ifaddrs::getifaddrs().expect("the interfaces");
    let address = interfaces.find_map(|found| {
        let is_link = |address: &SockaddrStorage| address.family() == Some(AddressFamily::Packet);
        let address = found
            .address
            .filter(|address| found.interface_name == "eth0" && is_link(address))?;
        address.as_link_addr().copied()
    });
    (
        socket.expect("a packet socket"),
        address.expect("the pod's interface"),
    )
}
