//! From pod to pod past the host's stack: which packets go straight, what they look like, and that both ends judge them.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use ebpf_loader::{Attachment, Datapath, EndpointLink, Kernel, OBJECT};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use policies_ir::tables::{
    Direction, EndpointId, EndpointTables, IdentityId, InsideClass, NodeTables, RuleId, Service, SourceClass,
    Verdict, VerdictEntry, VerdictKey,
};

use crate::{
    lab::{EACH_REPORTED, Lab, attached_both_ways, ip},
    link::{Job, run},
    matrix::{address, address6, mac, plug_in},
};

const CLIENT: usize = 0;
const SERVER: usize = 1;
const PORT: u16 = 8080;
/// How long to wait for what must come, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(300);
/// Bytes sent there and back, one at a time.
const TURNS: u64 = 50;
/// Packets of a connection that may go by the host: the first ones of either side.
const FEW: u64 = 4;

/// Two pods around one node, each with an address of either family, that allow each other everything.
struct Pods {
    lab: Lab,
    pods: Vec<Pod>,
}

struct Pod {
    jobs: mpsc::Sender<Job>,
    link: EndpointLink,
    name: String,
}

impl Pods {
    fn attached(attachment: Attachment) -> Self {
        let lab = Lab::attached(attachment);
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forward");
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("forward");
        run("ip link set lo up");
        let mut all = Self {
            lab,
            pods: Vec::new(),
        };
        for number in [0, 1] {
            all.add(number);
        }
        for pod in &all.pods {
            all.lab
                .kernel
                .as_mut()
                .expect("open")
                .attach(&pod.link)
                .expect("attach");
        }
        all.allow([true, true]);
        all
    }

    fn add(&mut self, number: u8) {
        let (jobs, ifindex) = plug_in(number);
        let name = format!("m{number}");
        let pod = Pod {
            jobs,
            link: EndpointLink {
                id: EndpointId(u32::from(number) + 1),
                ifindex,
                addresses: vec![address(number), address6(number)],
                mac: mac(number),
            },
            name,
        };
        self.pods.push(pod);
    }

    /// Whether the client may send, and the server receive.
    fn allow(&mut self, [sends, receives]: [bool; 2]) {
        let tables = NodeTables {
            identities: [("0.0.0.0/0", 1), ("::/0", 1)]
                .map(|(net, id)| (net.parse().expect("a prefix"), IdentityId(id)))
                .into(),
            endpoints: self
                .pods
                .iter()
                .zip([sends, receives])
                .map(|(pod, allowed)| (pod.link.id, all_or_nothing(allowed).into()))
                .collect(),
            ..NodeTables::default()
        };
        self.lab.kernel().sync(&tables).expect("sync");
    }

    /// Packets that the host has put on the links of client and server.
    fn by_host(&self) -> [u64; 2] {
        [CLIENT, SERVER].map(|number| {
            let output = Command::new("ip")
                .args(["-s", "-j", "link", "show", "dev", &self.pods[number].name])
                .output()
                .expect("start ip");
            let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
            links[0]["stats64"]["tx"]["packets"].as_u64().expect("a number")
        })
    }

    /// A connection of the client to `to`, which takes bytes to the server, and one from there.
    fn connect(&self, from: SocketAddr, to: SocketAddr) -> Connection {
        let listening = self.pods[SERVER].inside(move || {
            let any: IpAddr = if to.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
            TcpListener::bind((any, PORT)).expect("listen")
        });
        let client = self.pods[CLIENT].inside(move || {
            let socket = bound(from);
            nix::sys::socket::connect(socket.as_raw_fd(), &nix::sys::socket::SockaddrStorage::from(to))
                .expect("connect");
            TcpStream::from(socket)
        });
        let (server, _) = listening.accept().expect("accept");
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("no delay");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        }
        Connection { client, server }
    }
}

/// A TCP socket of the caller's network namespace, bound to a port that may have been used just before.
fn bound(from: SocketAddr) -> OwnedFd {
    let family = if from.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    setsockopt(&socket, sockopt::ReuseAddr, &true).expect("reuse");
    nix::sys::socket::bind(socket.as_raw_fd(), &nix::sys::socket::SockaddrStorage::from(from)).expect("bind");
    socket
}

impl Pod {
    fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = Box::new(move || done.send(job()).expect("the test waits"));
        self.jobs.send(job).expect("the pod's thread lives");
        result.recv().expect("the job ends")
    }
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn turn(&mut self) -> std::io::Result<()> {
        self.client.write_all(b"x")?;
        self.server.read_exact(&mut [0])?;
        self.server.write_all(b"x")?;
        self.client.read_exact(&mut [0])
    }

    fn turns(&mut self) {
        (0..TURNS).for_each(|_| self.turn().expect("a byte there and back"));
    }
}

fn all_or_nothing(allowed: bool) -> EndpointTables {
    let mut tables = EndpointTables::default();
    for direction in [Direction::Ingress, Direction::Egress] {
        let key = VerdictKey {
            peer: IdentityId(1),
            direction,
            inside: InsideClass::default(),
            source: SourceClass(0),
            service: Service::Any,
        };
        let verdict = if allowed { Verdict::Allow } else { Verdict::Deny };
        tables.verdicts.insert(
            key,
            VerdictEntry {
                verdict,
                rule: RuleId(64),
            },
        );
    }
    tables
}

fn ends(v6: bool) -> [SocketAddr; 2] {
    let address = if v6 { address6 } else { address };
    [
        SocketAddr::new(address(0), 4321),
        SocketAddr::new(address(1), PORT),
    ]
}

attached_both_ways! {
    fn after_the_first_packets_a_flow_goes_straight(attachment) {
        let pods = Pods::attached(attachment);
        for v6 in [false, true] {
            let [from, to] = ends(v6);
            let before = pods.by_host();
            pods.connect(from, to).turns();
            let after = pods.by_host();
            for (after, before) in after.into_iter().zip(before) {
                assert!(after - before <= FEW, "{before} to {after} packets of {from} went by the host");
            }
        }
    }
}

#[test]
fn what_goes_straight_is_judged_at_both_ends() {
    for (number, v6) in [(CLIENT, false), (SERVER, false), (CLIENT, true), (SERVER, true)] {
        let mut pods = Pods::attached(Attachment::Tcx);
        let [from, to] = ends(v6);
        let mut connection = pods.connect(from, to);
        connection.turns();
        let mut allowed = [true; 2];
        allowed[number] = false;
        pods.allow(allowed);
        connection
            .server
            .set_read_timeout(Some(SILENCE))
            .expect("a timeout");
        assert!(connection.turn().is_err(), "pod {number} may not, IPv6 {v6}");
        pods.allow([true; 2]);
        connection
            .server
            .set_read_timeout(Some(PATIENCE))
            .expect("a timeout");
        connection
            .server
            .read_exact(&mut [0])
            .expect("what was lost is sent again");
    }
}

#[test]
fn what_goes_straight_looks_as_if_the_host_had_passed_it_on() {
    let pods = Pods::attached(Attachment::Tcx);
    for v6 in [false, true] {
        let [from, to] = ends(v6);
        let ears = pods.pods[SERVER].inside(|| {
            let all = SockProtocol::EthAll;
            let ears = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all)
                .expect("a packet socket");
            setsockopt(
                &ears,
                sockopt::ReceiveTimeout,
                &nix::sys::time::TimeVal::new(20, 0),
            )
            .expect("a timeout");
            ears
        });
        let server = pods.pods[SERVER].inside(move || UdpSocket::bind(to).expect("bind"));
        let client = pods.pods[CLIENT].inside(move || UdpSocket::bind(from).expect("bind"));
        let before = pods.by_host()[SERVER];
        let mut frames = Vec::new();
        for turn in 0..3 {
            client.send_to(b"hello", to).expect("send");
            frames.push(heard(&ears, to));
            if turn == 0 {
                // Only what is answered is a flow of both.
                server.send_to(b"hello", from).expect("answer");
            }
        }
        assert_eq!(
            pods.by_host()[SERVER] - before,
            1,
            "only the first goes by the host"
        );
        let (id, header) = if v6 { (14 + 2, 54) } else { (14 + 4, 34) };
        for frame in &mut frames {
            assert_eq!(frame[..6], mac(1), "the receiver's MAC address");
            assert_eq!(frame[6..12], [2, 0, 0, 0, 0, 0xfe], "the host's MAC address");
            if !v6 {
                assert_eq!(
                    sum(&frame[14..header]),
                    0xffff,
                    "the checksum is right: {frame:02x?}"
                );
                // The sender numbers its packets.
                frame[24..26].fill(0);
            }
            frame[id..id + 2].fill(0);
        }
        assert_eq!(frames[0], frames[1]);
        assert_eq!(frames[0], frames[2]);
    }
}

#[test]
fn what_no_router_may_pass_on_does_not_go_straight() {
    let pods = Pods::attached(Attachment::Tcx);
    let [from, to] = ends(false);
    let server = pods.pods[SERVER].inside(move || UdpSocket::bind(to).expect("bind"));
    let client = pods.pods[CLIENT].inside(move || UdpSocket::bind(from).expect("bind"));
    server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    for _ in 0..3 {
        client.send_to(b"x", to).expect("send");
        server.recv(&mut [0]).expect("a datagram");
    }
    client.set_ttl(1).expect("a time to live");
    client.send_to(b"x", to).expect("send");
    server.set_read_timeout(Some(SILENCE)).expect("a timeout");
    server.recv(&mut [0]).expect_err("its time was over");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
}

/// The client's port is that of a connection which went straight a moment before.
#[test]
fn what_the_host_translates_goes_by_the_host() {
    let pods = Pods::attached(Attachment::Tcx);
    feed_nft(
        "table ip lab {
          chain prerouting {
            type nat hook prerouting priority dstnat
            ip daddr 10.7.1.99 tcp dport 80 dnat to 10.7.1.11:8080
          }
        }
        ",
    );
    let [from, to] = ends(false);
    let mut direct = pods.connect(from, to);
    direct.turns();
    // A reset leaves no socket behind that waits.
    setsockopt(
        &direct.client,
        sockopt::Linger,
        &libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )
    .expect("linger");
    drop(direct);
    let before = pods.by_host();
    pods.connect(from, "10.7.1.99:80".parse().expect("an address"))
        .turns();
    let after = pods.by_host();
    for (after, before) in after.into_iter().zip(before) {
        assert!(
            after - before >= TURNS,
            "{before} to {after} packets went by the host"
        );
    }
}

#[test]
fn a_pod_that_takes_over_an_address_gets_what_is_sent_there() {
    let mut pods = Pods::attached(Attachment::Tcx);
    let [from, to] = ends(false);
    pods.connect(from, to).turns();
    let old = pods.pods.remove(SERVER);
    pods.lab.kernel().detach(old.link.id).expect("detach");
    run(&format!("ip link del {}", old.name));
    pods.add(1);
    let new = pods.pods[SERVER].link.clone();
    assert_ne!(new.ifindex, old.link.ifindex);
    pods.lab.kernel().attach(&new).expect("attach");
    pods.allow([true; 2]);
    let before = pods.by_host();
    pods.connect(SocketAddr::new(from.ip(), 4322), to).turns();
    assert!(pods.by_host()[SERVER] - before[SERVER] <= FEW);
}

attached_both_ways! {
    fn flows_go_straight_while_no_agent_lives_and_after_the_next_begins(attachment) {
        let mut pods = Pods::attached(attachment);
        let [from, to] = ends(false);
        let mut connection = pods.connect(from, to);
        connection.turns();
        let before = pods.by_host();
        pods.lab.stop();
        connection.turns();
        let mut another = pods.connect(SocketAddr::new(from.ip(), 4322), to);
        another.turns();
        pods.lab.start();
        connection.turns();
        another.turns();
        let after = pods.by_host();
        assert!(after[SERVER] - before[SERVER] <= FEW, "{before:?} to {after:?}");
    }
}

#[test]
fn where_it_is_not_wanted_everything_goes_by_the_host() {
    let mut pods = Pods::attached(Attachment::Tcx);
    let [from, to] = ends(false);
    let mut direct = pods.connect(from, to);
    direct.turns();
    pods.lab.stop();
    let limits = ebpf_loader::Limits {
        direct: false,
        ..EACH_REPORTED
    };
    let kernel = Kernel::open_with_limits(&pods.lab.pins, OBJECT, limits).expect("open again");
    pods.lab.kernel = Some(kernel);
    let before = pods.by_host();
    direct.turns();
    pods.connect(SocketAddr::new(from.ip(), 4322), to).turns();
    let after = pods.by_host();
    assert!(
        after[SERVER] - before[SERVER] >= 2 * TURNS,
        "{before:?} to {after:?}"
    );
}

/// The next frame with a datagram to `to`.
fn heard(ears: &OwnedFd, to: SocketAddr) -> Vec<u8> {
    loop {
        let mut frame = [0; 256];
        let (length, _) = recvfrom::<LinkAddr>(ears.as_raw_fd(), &mut frame).expect("a frame");
        let frame = frame[..length].to_vec();
        let (protocol, port) = if to.is_ipv4() { (23, 36) } else { (20, 56) };
        if frame.get(protocol) == Some(&17) && frame.get(port..port + 2) == Some(&to.port().to_be_bytes()) {
            return frame;
        }
    }
}

/// Sum of 16-bit words in one's complement (RFC 1071); all ones over a right header.
fn sum(header: &[u8]) -> u16 {
    let words = header
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    u16::try_from((sum & 0xffff) + (sum >> 16)).expect("few words")
}

fn feed_nft(rules: &str) {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("start nft");
    let mut stdin = child.stdin.take().expect("standard input");
    stdin.write_all(rules.as_bytes()).expect("write to nft");
    drop(stdin);
    assert!(child.wait().expect("nft ends").success(), "{rules}");
}
