//! The network against the real kernel, inside network namespaces that the test makes: a "node", its
//! "outside", and pods whose namespaces belong to user namespaces of their own, as the runtime makes them.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test may panic like the test itself"
)]

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use agent_network::{Ipv6, LinkChanges, Loss, Network, NetworkConfig, NetworkError, PodCidr6};
use api::host_ports::{HostPort, Transport};
use nix::sched::{CloneFlags, setns};

const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2);
const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace held by a sleeping process; both end when it is dropped.
struct Space {
    holder: Child,
}

impl Space {
    fn new(unshare_flags: &[&str]) -> Self {
        let mut holder = Command::new("unshare")
            .args(unshare_flags)
            .args(["sh", "-c", "echo ready; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self { holder }
    }

    fn pod() -> Self {
        Self::new(&["--user", "--map-root-user", "--net"])
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    /// Runs `work` on a thread inside the namespace.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        std::thread::scope(|scope| {
            let inside = move || {
                setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(inside).join().unwrap()
        })
    }

    /// Like [`Space::run`], with a runtime whose every task stays on the thread.
    fn block_on<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(work())
        })
    }

    fn ip(&self, arguments: &str) -> String {
        self.run(|| {
            let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
            assert!(output.status.success(), "ip {arguments}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.holder.kill().unwrap();
        self.holder.wait().unwrap();
    }
}

fn node_with_outside() -> (Space, Space) {
    let (node, outside) = (Space::new(&["--net"]), Space::new(&["--net"]));
    node.ip(&format!(
        "link add up0 mtu 1400 type veth peer name out0 netns {}",
        outside.holder.id()
    ));
    node.ip(&format!("address add {NODE}/24 dev up0"));
    node.ip("link set up0 up");
    node.ip("link set lo up");
    node.ip(&format!("route add default via {OUTSIDE}"));
    outside.ip(&format!("address add {OUTSIDE}/24 dev out0"));
    outside.ip("link set out0 up");
    node.ip(&format!("address add {NODE6}/64 dev up0 nodad"));
    node.ip(&format!("-6 route add default via {OUTSIDE6}"));
    outside.ip(&format!("address add {OUTSIDE6}/64 dev out0 nodad"));
    (node, outside)
}

fn config(directory: &Path) -> NetworkConfig {
    let cidr = "fd00:10:88:7::/64".parse().unwrap();
    NetworkConfig {
        pod_cidr6: Some(PodCidr6 { cidr, required: true }),
        ..config4(directory)
    }
}

fn config4(directory: &Path) -> NetworkConfig {
    NetworkConfig {
        pod_cidr6: None,
        pod_cidr: "10.88.7.0/24".parse().unwrap(),
        node_address: None,
        state_file: directory.join("network.json"),
    }
}

/// Connects from `client` to a server in `server` at `address`; returns the client's address as the
/// server sees it.
fn seen_from(client: &Space, server: &Space, address: impl Into<IpAddr>) -> std::io::Result<IpAddr> {
    let address = address.into();
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let listener = server.run(|| TcpListener::bind((any, 0)).unwrap());
    let target = SocketAddr::from((address, listener.local_addr().unwrap().port()));
    let mut stream = client.run(|| TcpStream::connect_timeout(&target, PATIENCE))?;
    let (mut accepted, peer) = listener.accept()?;
    accepted.write_all(b"hello")?;
    drop(accepted);
    let mut text = String::new();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_to_string(&mut text)?;
    assert_eq!(text, "hello");
    Ok(peer.ip())
}

#[test]
fn pods_reach_each_other_the_node_and_the_outside() {
    let directory = tempfile::tempdir().unwrap();
    let (node, outside) = node_with_outside();
    let (a, b) = (Space::pod(), Space::pod());
    let (network, at_a, at_b) = node.block_on(async || {
        let network = Network::open(config(directory.path())).await.unwrap();
        let started = std::time::Instant::now();
        let at_a = network.prepare("uid-a", &a.path()).await.unwrap();
        network.activate(&at_a).await.unwrap();
        println!("one pod's network: {:?}", started.elapsed());
        let at_b = network.prepare("uid-b", &b.path()).await.unwrap();
        network.activate(&at_b).await.unwrap();
        assert_eq!(network.find("uid-a").await.unwrap(), Some(at_a.clone()));
        (network.node_address(), at_a, at_b)
    });
    assert_eq!(network, NODE);
    assert_eq!(
        seen_from(&a, &b, at_b.address).unwrap(),
        at_a.address,
        "pod to pod is not translated"
    );
    assert_eq!(
        seen_from(&a, &node, NODE).unwrap(),
        at_a.address,
        "pod to node is not translated"
    );
    assert_eq!(
        seen_from(&node, &a, at_a.address).unwrap(),
        NODE,
        "the node speaks with its own address"
    );
    assert_eq!(
        seen_from(&a, &outside, OUTSIDE).unwrap(),
        NODE,
        "what leaves the node is masqueraded"
    );

    let (at_a6, at_b6) = (at_a.address6.unwrap(), at_b.address6.unwrap());
    assert_eq!(
        seen_from(&a, &b, at_b6).unwrap(),
        at_a6,
        "pod to pod by IPv6 is not translated"
    );
    assert_eq!(
        seen_from(&a, &node, NODE6).unwrap(),
        at_a6,
        "pod to node by IPv6 is not translated"
    );
    assert_eq!(
        seen_from(&node, &a, at_a6).unwrap(),
        NODE6,
        "the node speaks IPv6 with its own address"
    );
    assert_eq!(
        seen_from(&a, &outside, OUTSIDE6).unwrap(),
        NODE6,
        "what leaves the node by IPv6 is masqueraded"
    );

    let inside = a.ip("address show");
    assert!(inside.contains(&format!("inet {}/32", at_a.address)), "{inside}");
    assert!(inside.contains("mtu 1400"), "the uplink's MTU: {inside}");
    assert!(
        inside.contains(&format!("inet6 {at_a6}/128 scope global")),
        "{inside}"
    );
    assert!(
        !inside.contains("tentative") && !inside.contains("inet6 fe80"),
        "an address that nobody gave: {inside}"
    );
    let groups = a.ip("-6 maddress show dev eth0");
    assert!(
        !groups.contains("ff02::1:ff"),
        "neighbour discovery would be reported: {groups}"
    );
    for gateway in ["169.254.1.1", "fe80::1"] {
        let neighbours = a.ip("neighbour show");
        let permanent = neighbours.lines().any(|line| {
            line.starts_with(&format!("{gateway} dev eth0 lladdr")) && line.contains("PERMANENT")
        });
        assert!(permanent, "{gateway}: {neighbours}");
    }
    let forwarding =
        |name: &str| node.run(|| std::fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap());
    for whole in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        assert_eq!(
            forwarding(whole),
            "0\n",
            "{whole}: the machine as a whole does not forward"
        );
    }
    let of_uplink = ["ipv4/conf/up0/forwarding", "ipv6/conf/up0/force_forwarding"];
    assert_eq!(of_uplink.map(forwarding), ["1\n", "1\n"]);
    assert_eq!(
        forwarding("ipv6/conf/up0/forwarding"),
        "0\n",
        "the uplink stays a host's: it goes on to learn routes from advertisements"
    );

    node.block_on(async || {
        let config = config(directory.path());
        Network::remove(&config.state_file, config.pod_cidr)
            .await
            .unwrap();
        Network::remove(&config.state_file, config.pod_cidr)
            .await
            .unwrap();
    });
    let links = node.ip("link show");
    assert!(!links.contains("pal"), "links are left: {links}");
    assert_eq!(
        of_uplink.map(forwarding),
        ["0\n", "0\n"],
        "forwarding is restored"
    );
    let tables = node.run(|| {
        Command::new("nft")
            .args(["list", "tables"])
            .output()
            .unwrap()
            .stdout
    });
    assert!(
        tables.is_empty(),
        "tables are left: {}",
        String::from_utf8_lossy(&tables)
    );
}

/// The packet programs track what pods say to each other; the kernel tracks what it translates.
#[test]
fn the_kernel_tracks_what_leaves_the_node_and_not_what_pods_say_to_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let (node, outside) = node_with_outside();
    let (a, b) = (Space::pod(), Space::pod());
    let (at_a, at_b) = node.block_on(async || {
        let network = Network::open(config(directory.path())).await.unwrap();
        let mut attachments = Vec::new();
        for (uid, pod) in [("uid-a", &a), ("uid-b", &b)] {
            let attachment = network.prepare(uid, &pod.path()).await.unwrap();
            network.activate(&attachment).await.unwrap();
            attachments.push(attachment);
        }
        let at_b = attachments.pop().unwrap();
        (attachments.pop().unwrap(), at_b)
    });
    let tracked = || {
        let count =
            node.run(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap());
        count.trim().parse::<u32>().unwrap()
    };
    let before = tracked();
    for (address, source) in [
        (IpAddr::V4(at_b.address), IpAddr::V4(at_a.address)),
        (at_b.address6.unwrap().into(), at_a.address6.unwrap().into()),
    ] {
        assert_eq!(seen_from(&a, &b, address).unwrap(), source);
    }
    assert_eq!(tracked(), before, "between pods");
    assert_eq!(seen_from(&a, &outside, OUTSIDE).unwrap(), NODE);
    assert_eq!(seen_from(&a, &outside, OUTSIDE6).unwrap(), NODE6);
    assert!(tracked() >= before + 2, "what is masqueraded");
}

#[test]
fn a_node_with_ipv4_only_has_pods_without_ipv6() {
    let directory = tempfile::tempdir().unwrap();
    let (node, _outside) = node_with_outside();
    let pod = Space::pod();
    node.block_on(async || {
        let network = Network::open(config4(directory.path())).await.unwrap();
        assert_eq!(network.ipv6(), Ipv6::Off);
        let attachment = network.prepare("uid", &pod.path()).await.unwrap();
        network.activate(&attachment).await.unwrap();
        assert_eq!(attachment.address6, None);
    });
    let inside = pod.ip("address show");
    assert!(!inside.contains("inet6"), "no IPv6: {inside}");
    let uplink =
        node.run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/up0/force_forwarding").unwrap());
    assert_eq!(uplink, "0\n", "nothing forwards IPv6");
}

#[test]
fn a_host_that_cannot_have_ipv6_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let (node, _outside) = node_with_outside();
    node.run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
    node.block_on(async || {
        let wished = config(directory.path());
        let refused = Network::open(wished.clone()).await;
        assert!(matches!(refused, Err(NetworkError::NoIpv6 { .. })));
        let if_possible = NetworkConfig {
            pod_cidr6: wished.pod_cidr6.map(|wish| PodCidr6 {
                required: false,
                ..wish
            }),
            ..wished
        };
        let network = Network::open(if_possible).await.unwrap();
        let Ipv6::Unavailable(reason) = network.ipv6() else {
            panic!("{:?}", network.ipv6());
        };
        assert!(reason.to_string().contains("disable_ipv6"), "{reason}");
        assert_eq!(network.node_addresses().v6, None);
    });
}

#[test]
fn ipv6_is_guarded_like_ipv4() {
    let directory = tempfile::tempdir().unwrap();
    let (node, outside) = node_with_outside();
    let pod = Space::pod();
    let attachment = node.block_on(async || {
        let network = Network::open(config(directory.path())).await.unwrap();
        let attachment = network.prepare("uid", &pod.path()).await.unwrap();
        network.activate(&attachment).await.unwrap();
        attachment
    });
    let own = attachment.address6.unwrap();
    let unused: Ipv6Addr = "fd00:10:88:7::c8".parse().unwrap();
    let nodes: Ipv6Addr = "2001:db8:77::1".parse().unwrap();
    node.ip(&format!("address add {nodes}/128 dev lo nodad"));
    for claimed in [unused, nodes] {
        outside.ip(&format!("address add {claimed}/128 dev out0 nodad"));
    }
    outside.ip(&format!("-6 route add {own}/128 via {NODE6}"));
    let server = pod.run(|| UdpSocket::bind((own, 0)).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let target = server.local_addr().unwrap();
    for from in [unused, nodes, OUTSIDE6] {
        outside.run(|| {
            let client = UdpSocket::bind((from, 0)).unwrap();
            client.send_to(&from.octets(), target).unwrap();
        });
    }
    let mut text = [0; 16];
    let (_, peer) = server.recv_from(&mut text).unwrap();
    assert_eq!(
        peer.ip(),
        OUTSIDE6,
        "only what came under an outside address arrives"
    );

    // The other way: a pod that takes a foreign address is heard by nobody outside.
    let foreign: Ipv6Addr = "2001:db8:99::9".parse().unwrap();
    pod.ip(&format!("address add {foreign}/128 dev eth0 nodad"));
    let listener = outside.run(|| UdpSocket::bind((OUTSIDE6, 0)).unwrap());
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    let target = listener.local_addr().unwrap();
    for from in [foreign, own] {
        pod.run(|| {
            let client = UdpSocket::bind((from, 0)).unwrap();
            client.send_to(&from.octets(), target).unwrap();
        });
    }
    let (_, peer) = listener.recv_from(&mut text).unwrap();
    assert_eq!(
        text,
        own.octets(),
        "the packet with the foreign source came first"
    );
    assert_eq!(peer.ip(), NODE6);

    // What is meant for an address that no pod has does not leave the node, where somebody could answer it.
    outside.ip(&format!("-6 route add fd00:10:88:7::/64 via {NODE6}"));
    assert!(seen_from(&pod, &outside, unused).is_err());
}

/// The node would take it for the pod, and send the pod the answer, which no policy of the pod's is asked about.
#[test]
fn nobody_outside_speaks_to_the_node_as_a_pod() {
    let directory = tempfile::tempdir().unwrap();
    let (node, outside) = node_with_outside();
    let pod = Space::pod();
    let attachment = node.block_on(async || {
        let network = Network::open(config(directory.path())).await.unwrap();
        let attachment = network.prepare("uid", &pod.path()).await.unwrap();
        network.activate(&attachment).await.unwrap();
        attachment
    });
    let address6 = attachment.address6.unwrap();
    outside.ip(&format!("address add {}/32 dev out0", attachment.address));
    outside.ip(&format!("address add {address6}/128 dev out0 nodad"));
    let families: [[IpAddr; 3]; 2] = [
        [NODE.into(), OUTSIDE.into(), attachment.address.into()],
        [NODE6.into(), OUTSIDE6.into(), address6.into()],
    ];
    for [of_node, own, of_pod] in families {
        let server = node.run(|| UdpSocket::bind((of_node, 0)).unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let target = server.local_addr().unwrap();
        let send = |from: IpAddr| {
            outside.run(|| {
                let client = UdpSocket::bind((from, 0)).unwrap();
                client.send_to(b"?", target).unwrap();
            });
        };
        let received = || server.recv_from(&mut [0; 1]).map(|(_, peer)| peer.ip());
        // The first one makes the neighbours known to each other.
        send(own);
        assert_eq!(received().unwrap(), own);
        send(of_pod);
        send(own);
        assert_eq!(
            received().unwrap(),
            own,
            "only what comes under an outside address"
        );
        assert_eq!(
            seen_from(&pod, &node, of_node).unwrap(),
            of_pod,
            "the pod itself does"
        );
    }
}

#[test]
fn nobody_outside_speaks_as_a_pod() {
    let directory = tempfile::tempdir().unwrap();
    let (node, outside) = node_with_outside();
    let pod = Space::pod();
    let attachment = node.block_on(async || {
        let network = Network::open(config(directory.path())).await.unwrap();
        let attachment = network.prepare("uid", &pod.path()).await.unwrap();
        network.activate(&attachment).await.unwrap();
        attachment
    });
    let unused = Ipv4Addr::new(10, 88, 7, 200);
    outside.ip(&format!("address add {unused}/32 dev out0"));
    outside.ip(&format!("route add {}/32 via {NODE}", attachment.address));
    let server = pod.run(|| UdpSocket::bind((attachment.address, 0)).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let send = |from: Ipv4Addr| {
        let target = server.local_addr().unwrap();
        outside.run(|| {
            let client = UdpSocket::bind((from, 0)).unwrap();
            client.send_to(&from.octets(), target).unwrap();
        });
    };
    send(unused);
    send(OUTSIDE);
    let mut text = [0; 4];
    let (_, peer) = server.recv_from(&mut text).unwrap();
    assert_eq!(
        peer.ip(),
        OUTSIDE,
        "only what came under an outside address arrives"
    );

    // What is meant for an address that no pod has does not leave the node, where somebody could answer it.
    outside.ip(&format!("route add 10.88.7.0/24 via {NODE}"));
    assert!(seen_from(&pod, &outside, unused).is_err());
}

#[test]
fn nothing_passes_before_activation_and_after_release() {
    let directory = tempfile::tempdir().unwrap();
    let (node, _outside) = node_with_outside();
    let pod = Space::pod();
    let attempt = |network: Network| (network, seen_from(&pod, &node, NODE).is_ok());
    node.block_on(async || {
        let network = Network::open(config(directory.path())).await.unwrap();
        let attachment = network.prepare("uid", &pod.path()).await.unwrap();
        let (network, reached) = attempt(network);
        assert!(!reached, "the host side is down until the programs are attached");
        network.activate(&attachment).await.unwrap();
        let (network, reached) = attempt(network);
        assert!(reached);
        network.release("uid").await.unwrap();
        network.release("uid").await.unwrap();
        assert_eq!(network.find("uid").await.unwrap(), None);
        assert!(network.leased().is_empty());
        assert!(!attempt(network).1);
    });
}

#[test]
fn a_restarted_agent_finds_the_pod_and_a_repeated_start_replaces_the_link() {
    let directory = tempfile::tempdir().unwrap();
    let (node, _outside) = node_with_outside();
    let (first, second) = (Space::pod(), Space::pod());
    node.block_on(async || {
        let before = {
            let network = Network::open(config(directory.path())).await.unwrap();
            let attachment = network.prepare("uid", &first.path()).await.unwrap();
            network.activate(&attachment).await.unwrap();
            attachment
        };
        let network = Network::open(config(directory.path())).await.unwrap();
        assert_eq!(network.find("uid").await.unwrap(), Some(before.clone()));
        let after = network.prepare("uid", &second.path()).await.unwrap();
        network.activate(&after).await.unwrap();
        assert_eq!(
            (after.addresses(), after.endpoint),
            (before.addresses(), before.endpoint)
        );
        assert_eq!(before.addresses().len(), 2);
        assert_ne!(after.ifindex, before.ifindex);
        assert!(seen_from(&second, &node, NODE).is_ok());
        assert!(seen_from(&second, &node, NODE6).is_ok());
    });
}

#[test]
fn leases_that_a_power_loss_has_broken_begin_anew_but_not_over_links_of_pods() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("network.json");
    let (node, _outside) = node_with_outside();
    let pod = Space::pod();
    node.block_on(async || {
        let open = async || Network::open(config(directory.path())).await;
        for broken in ["", "{\"last_endpoint\":3,", "\0\0\0\0"] {
            std::fs::write(&file, broken).unwrap();
            let network = open().await.unwrap();
            assert!(network.leased().is_empty());
            let aside = directory.path().join("network.json.unreadable");
            assert_eq!(std::fs::read_to_string(aside).unwrap(), broken);
        }
        open().await.unwrap().prepare("uid", &pod.path()).await.unwrap();
        std::fs::write(&file, "").unwrap();
        let Err(error) = open().await else {
            panic!("a pod has a link, and nobody knows its address")
        };
        let error = error.to_string();
        assert!(
            error.contains("network.json") && error.contains("remove the file"),
            "{error}"
        );
        let cidr = config(directory.path()).pod_cidr;
        assert!(Network::remove(&file, cidr).await.is_err());
    });
    drop(pod);
    node.block_on(async || {
        std::fs::write(&file, "").unwrap();
        // The kernel takes the pair away with the pod, in its own time.
        let cidr = config(directory.path()).pod_cidr;
        let begun = std::time::Instant::now();
        while let Err(error) = Network::remove(&file, cidr).await {
            assert!(begun.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

fn host_port(protocol: Transport, host_ip: Option<IpAddr>, port: u16) -> HostPort {
    HostPort {
        protocol,
        host_ip,
        port,
        container_port: 80,
    }
}

/// Connects to a port of the node that leads to `server`; returns the client's address as the server sees it.
fn seen_through(
    client: &Space,
    server: &TcpListener,
    target: impl Into<SocketAddr>,
) -> std::io::Result<IpAddr> {
    let target = target.into();
    let mut stream = client.run(|| TcpStream::connect_timeout(&target, PATIENCE))?;
    let (mut accepted, peer) = server.accept()?;
    accepted.write_all(b"hello")?;
    drop(accepted);
    let mut text = String::new();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_to_string(&mut text)?;
    assert_eq!(text, "hello");
    Ok(peer.ip())
}

#[test]
fn ports_of_the_node_lead_to_their_pod_and_the_source_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (node, outside) = node_with_outside();
    let (server, client) = (Space::pod(), Space::pod());
    let ports = [
        host_port(Transport::Tcp, None, 8080),
        host_port(Transport::Udp, None, 8053),
        host_port(Transport::Tcp, Some(NODE.into()), 8081),
    ];
    let (at_server, at_client) = node.block_on(async || {
        let network = Network::open(config(directory.path())).await.unwrap();
        let mut attachments = Vec::new();
        for (uid, pod) in [("uid-server", &server), ("uid-client", &client)] {
            let attachment = network.prepare(uid, &pod.path()).await.unwrap();
            network.activate(&attachment).await.unwrap();
            attachments.push(attachment);
        }
        network.publish("uid-server", &ports).await.unwrap();
        network.publish("uid-server", &ports).await.unwrap();
        // A restarted agent goes on with what it finds.
        drop(network);
        let network = Network::open(config(directory.path())).await.unwrap();
        let taken = network.publish("uid-client", &ports[..1]).await;
        assert!(matches!(taken, Err(NetworkError::HostPort(_))), "{taken:?}");
        let at_client = attachments.pop().unwrap();
        (attachments.pop().unwrap(), at_client)
    });
    let listener = server.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap());
    let seen = |from: &Space, address: IpAddr, port: u16| {
        seen_through(from, &listener, (address, port)).map(|peer| peer.to_canonical())
    };
    // From outside, by both families, from another pod, from the node and its loopback.
    assert_eq!(seen(&outside, NODE.into(), 8080).unwrap(), IpAddr::V4(OUTSIDE));
    assert_eq!(seen(&outside, NODE6.into(), 8080).unwrap(), IpAddr::V6(OUTSIDE6));
    assert_eq!(seen(&outside, NODE.into(), 8081).unwrap(), IpAddr::V4(OUTSIDE));
    assert_eq!(
        seen(&client, NODE.into(), 8080).unwrap(),
        IpAddr::V4(at_client.address)
    );
    assert_eq!(
        seen(&client, NODE6.into(), 8080).unwrap(),
        IpAddr::V6(at_client.address6.unwrap())
    );
    assert_eq!(seen(&node, NODE.into(), 8080).unwrap(), IpAddr::V4(NODE));
    assert_eq!(seen(&node, NODE6.into(), 8080).unwrap(), IpAddr::V6(NODE6));
    assert_eq!(
        seen(&node, Ipv4Addr::LOCALHOST.into(), 8080).unwrap(),
        IpAddr::V4(NODE),
        "a loopback address does not leave the node"
    );
    assert!(seen(&outside, NODE6.into(), 8081).is_err(), "of one address only");
    assert_eq!(
        seen(&client, at_server.address.into(), 80).unwrap(),
        IpAddr::V4(at_client.address),
        "pods go on without"
    );

    let datagrams = server.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap());
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    let asking = outside.run(|| UdpSocket::bind((OUTSIDE, 0)).unwrap());
    asking.set_read_timeout(Some(PATIENCE)).unwrap();
    asking.send_to(b"?", (NODE, 8053)).unwrap();
    let mut text = [0; 1];
    let (_, peer) = datagrams.recv_from(&mut text).unwrap();
    assert_eq!(peer.ip(), IpAddr::V4(OUTSIDE));
    datagrams.send_to(b"!", peer).unwrap();
    assert_eq!(
        asking.recv_from(&mut text).unwrap().1,
        SocketAddr::from((NODE, 8053)),
        "the answer is the node's"
    );

    // What the loopback of the node serves stays out of reach, also for the pod whose link it may be routed to.
    let private = node.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    private.set_nonblocking(true).unwrap();
    let target = private.local_addr().unwrap();
    let reached = server.run(|| {
        // The pod sends what claims to be for the node's loopback out of its link.
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").ok();
        std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").ok();
        Command::new("ip")
            .args(["address", "del", "127.0.0.1/8", "dev", "lo"])
            .output()
            .unwrap();
        Command::new("ip")
            .args(["link", "set", "lo", "down"])
            .output()
            .unwrap();
        Command::new("ip")
            .args([
                "route",
                "add",
                "127.0.0.1/32",
                "via",
                "169.254.1.1",
                "dev",
                "eth0",
                "onlink",
            ])
            .output()
            .unwrap();
        TcpStream::connect_timeout(&target, Duration::from_millis(500)).is_ok()
    });
    assert!(
        !reached && private.accept().is_err(),
        "the node's loopback was reached"
    );

    // They go with the pod, and somebody else may have them.
    node.block_on(async || {
        let network = Network::open(config(directory.path())).await.unwrap();
        network.unplug("uid-server").await.unwrap();
        let rules = Command::new("nft")
            .args(["list", "chain", "inet", "palisade", "published"])
            .output()
            .unwrap();
        assert!(
            !String::from_utf8_lossy(&rules.stdout).contains("dnat"),
            "{rules:?}"
        );
        // Not before whoever judges has had time to forget that they led there.
        let kept = network.reserve("uid-client", &ports[..1]);
        assert!(matches!(kept, Err(NetworkError::HostPort(_))), "{kept:?}");
        network.release("uid-server").await.unwrap();
        network.publish("uid-client", &ports[..1]).await.unwrap();
    });
    let listener = client.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap());
    let peer = seen_through(&outside, &listener, (NODE, 8080))
        .unwrap()
        .to_canonical();
    assert_eq!(peer, IpAddr::V4(OUTSIDE));
}

/// What `nft` says, with the arguments in one text, on the calling thread.
fn nft(arguments: &str) -> String {
    let output = Command::new("nft").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "nft {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_table_that_others_flush_or_change_is_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let (node, outside) = node_with_outside();
    let (server, gone) = (Space::pod(), Space::pod());
    let ports = [host_port(Transport::Tcp, None, 8080)];
    node.block_on(async || {
        let network = Network::open(config(directory.path())).await.unwrap();
        for (uid, pod) in [("uid-server", &server), ("uid-gone", &gone)] {
            let attachment = network.prepare(uid, &pod.path()).await.unwrap();
            network.activate(&attachment).await.unwrap();
        }
        network.publish("uid-server", &ports).await.unwrap();
        let table = || nft("-s list table inet palisade");
        let whole = table();
        assert!(
            whole.contains("dport 8080") && whole.contains("169.254.0.0/16"),
            "{whole}"
        );
        assert_eq!(network.look_after_rules().await.unwrap(), None);
        // Tables of others are theirs.
        nft("add table inet theirs");
        assert_eq!(network.look_after_rules().await.unwrap(), None);

        let look = async || network.look_after_rules().await.unwrap();
        nft("flush ruleset");
        assert_eq!(look().await, Some(Loss::Removed));
        assert_eq!((look().await, table()), (None, whole.clone()));
        for change in [
            "flush table inet palisade",
            "flush chain inet palisade forward",
            "insert rule inet palisade forward accept",
            "add chain inet palisade more",
        ] {
            nft(change);
            assert_eq!(look().await, Some(Loss::Changed), "{change}");
            assert_eq!((look().await, table()), (None, whole.clone()), "{change}");
        }

        // Pods come and go meanwhile, with ports and without, and it is not passed over.
        nft("flush ruleset");
        network.publish("uid-server", &ports).await.unwrap();
        let other = [host_port(Transport::Tcp, None, 8081)];
        network.publish("uid-gone", &other).await.unwrap();
        assert!(table().contains("dport 8080") && table().contains("dport 8081"));
        assert_eq!((look().await, look().await), (Some(Loss::Removed), None));
        nft("flush ruleset");
        network.unplug("uid-gone").await.unwrap();
        network.release("uid-gone").await.unwrap();
        assert_eq!((look().await, table()), (Some(Loss::Removed), whole));
    });
    let listener = server.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap());
    let peer = seen_through(&outside, &listener, (NODE, 8080)).unwrap();
    assert_eq!(peer.to_canonical(), IpAddr::V4(OUTSIDE));
}

#[test]
fn ports_are_kept_before_they_lead_anywhere() {
    let directory = tempfile::tempdir().unwrap();
    let (node, _outside) = node_with_outside();
    let pod = Space::pod();
    node.block_on(async || {
        let network = Network::open(config(directory.path())).await.unwrap();
        let ports = [host_port(Transport::Tcp, None, 8080)];
        network.prepare("uid", &pod.path()).await.unwrap();
        network.reserve("uid", &ports).unwrap();
        assert!(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).is_err());
        assert_eq!(network.lease("uid").unwrap().host_ports, []);
        network.publish("uid", &ports).await.unwrap();
        let attachment = network.find("uid").await.unwrap().unwrap();
        assert_eq!(attachment.host_ports, ports, "as a restarted agent finds them");
        network.reserve("uid", &[]).unwrap();
        drop(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap());
    });
}

#[test]
fn a_port_that_the_node_serves_is_not_given_away() {
    let directory = tempfile::tempdir().unwrap();
    let (node, _outside) = node_with_outside();
    let pod = Space::pod();
    let service = node.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    let number = service.local_addr().unwrap().port();
    node.block_on(async || {
        let network = Network::open(config(directory.path())).await.unwrap();
        let attachment = network.prepare("uid", &pod.path()).await.unwrap();
        network.activate(&attachment).await.unwrap();
        let wish = [host_port(Transport::Tcp, None, number)];
        let refused = network.publish("uid", &wish).await.unwrap_err();
        assert!(
            refused.to_string().contains("choose another hostPort"),
            "{refused}"
        );
        let peer = seen_through(&node, &service, (NODE, number)).unwrap();
        assert_eq!(peer, IpAddr::V4(NODE), "the node's service answers as before");
    });
}

#[test]
fn changes_of_interfaces_are_told_at_once_but_not_those_of_pods() {
    let node = Space::new(&["--net"]);
    node.block_on(async || {
        let ip = |arguments: &str| {
            let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
            assert!(output.status.success(), "ip {arguments}: {output:?}");
        };
        let mut changes = LinkChanges::follow().unwrap();
        let mut told = async |patience| tokio::time::timeout(patience, changes.next()).await.is_ok();
        let (soon, a_while) = (Duration::from_secs(2), Duration::from_millis(300));
        ip("link add pal0 type veth peer name pal1");
        assert!(!told(a_while).await, "a pod's link");
        ip("link add wire0 type veth peer name wire1");
        assert!(told(soon).await, "a new interface");
        while told(a_while).await {}
        ip("address add 192.0.2.9/24 dev wire0");
        assert!(told(soon).await, "an address");
        while told(a_while).await {}
        ip("link delete wire0");
        assert!(told(soon).await, "an interface that goes");
    });
}
