//! Every pod to every pod: three namespaces of three dual-stack pods on real links, TCP, UDP and SCTP on two ports, over
//! IPv4 and IPv6 at once, while policies, pods and namespaces come, change and go. After each change the reference says which of the probes
//! must arrive; the others must vanish: nothing is ever refused.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use ebpf_loader::{Datapath, EndpointLink};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::socket::{
        AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt,
        listen, recvfrom, sendto, setsockopt, socket, sockopt,
    },
};
use policies_compiler::{ClusterView, PodView, Source, compile, load_objects, reference};
use policies_ir::{
    policy::{SCTP, TCP, UDP},
    tables::{Direction, EndpointId, Packet, Verdict},
};
use serde_json::{Value, json};

use crate::{
    lab::Lab,
    link::{Job, run},
};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 2] = [80, 81];
const PROTOCOLS: [u8; 3] = [TCP, UDP, SCTP];
/// How long to wait for what must come, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for what must not come, once all has come that must.
const SILENCE: Duration = Duration::from_millis(250);

/// A probe: from, to, protocol, port, and whether it goes over IPv6.
type Probe = (usize, usize, u8, u16, bool);

#[test]
fn every_pod_reaches_exactly_whom_the_reference_says() {
    let mut matrix = Matrix::new();
    let isolate = |namespace: &str, types: &[&str]| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "isolate", "namespace": namespace},
            "spec": {"podSelector": {}, "policyTypes": types}})
    };
    let allow = |port: u16, protocol: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "allow", "namespace": "x"},
            "spec": {"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "blue"}}}],
                    "ports": [{"port": port, "protocol": protocol}]}]}})
    };
    let tier = json!({"apiVersion": "projectcalico.org/v3", "kind": "Tier",
        "metadata": {"name": "first"}, "spec": {"order": 1}});
    let global = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "quarantine"},
        "spec": {"tier": "first", "selector": "quarantine == 'yes'", "types": ["Ingress", "Egress"],
            "ingress": [{"action": "Pass", "protocol": "TCP", "destination": {"ports": ["80:80"]}}],
            "egress": [{"action": "Allow", "destination": {"namespaceSelector": "team == 'blue'"}}]}});
    let by_source_port = json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
        "metadata": {"name": "source", "namespace": "y"},
        "spec": {"order": 1, "selector": "pod == 'b'", "types": ["Ingress"], "ingress": [
            {"action": "Deny", "protocol": "UDP", "source": {"ports": ["40480:40480"]}},
            {"action": "Allow"}]}});
    let admin = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "admin"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": [
            {"action": "Deny", "from": [{"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "c"}}}}],
                "protocols": [{"sctp": {"destinationPort": {"number": 81}}}]}]}});

    let by_address = json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
        "metadata": {"name": "addresses", "namespace": "z"},
        "spec": {"selector": "pod == 'c'", "types": ["Ingress"], "ingress": [
            {"action": "Deny", "source": {"nets": [format!("{}/32", address(4))]}},
            {"action": "Deny", "source": {"nets": [format!("{}/128", address6(5))]}},
            {"action": "Allow"}]}});

    matrix.step("no policy", |_| {});
    matrix.step("create: x is isolated", |m| {
        m.policies = vec![isolate("x", &["Ingress"])];
    });
    matrix.step("create: x/a takes UDP 81 from blue", |m| {
        m.policies.push(allow(81, "UDP"));
    });
    matrix.step("relabel a namespace: y is blue", |m| {
        m.relabel_namespace("y", "team", "blue");
    });
    matrix.step("update: x/a takes SCTP 80 instead", |m| {
        m.policies[1] = allow(80, "SCTP");
    });
    matrix.step("create: egress of z is isolated", |m| {
        m.policies.push(isolate("z", &["Egress"]));
    });
    matrix.step("create: a tier of its own", |m| {
        m.policies.extend([tier.clone(), global.clone()]);
    });
    matrix.step("relabel a pod: z/b is quarantined", |m| {
        m.relabel_pod(7, "quarantine", "yes");
    });
    matrix.step("create: by source port", |m| {
        m.policies.push(by_source_port.clone());
    });
    matrix.step("create: administrators deny SCTP 81 from c", |m| {
        m.policies.push(admin.clone());
    });
    matrix.step("create: by address, of one family each", |m| {
        m.policies.push(by_address.clone());
    });
    matrix.step("delete a pod and create another in its place", |m| {
        m.replace_pod(0, "d");
    });
    matrix.step("delete a pod that nobody follows", |m| m.delete_pod(5));
    matrix.step("delete a namespace, with its policies and pods", |m| {
        m.delete_namespace("z");
    });
    matrix.step(
        "create a namespace: w is blue, with pods that have addresses of those of z",
        |m| {
            m.create_namespace("w", "blue");
            for (number, name) in (6..9).zip(PODS) {
                m.create_pod(number, "w", name);
            }
        },
    );
    matrix.step(
        "create: egress of w is isolated; and a pod where one was deleted",
        |m| {
            m.policies.push(isolate("w", &["Egress"]));
            m.create_pod(5, "y", "e");
        },
    );
    matrix.step(
        "delete the namespace, and create it again with another label and without policies",
        |m| {
            m.delete_namespace("w");
            m.create_namespace("w", "red");
            m.create_pod(8, "w", "c");
        },
    );
    matrix.step("relabel the namespace back", |m| {
        m.relabel_namespace("y", "team", "red");
    });
    matrix.step("delete: x is open again", |m| {
        m.policies.remove(0);
    });
    matrix.step("delete everything", |m| m.policies.clear());
}

/// Nine pods around one node.
struct Matrix {
    lab: Lab,
    pods: Vec<Pod>,
    policies: Vec<Value>,
    namespaces: Vec<Value>,
    next_endpoint: u32,
    seen: BTreeSet<(bool, u8, bool)>,
    /// Pairs of probes that differ in the family alone, and of which one must arrive.
    told_apart: usize,
}

struct Pod {
    namespace: &'static str,
    labels: Vec<(String, String)>,
    name: String,
    addresses: [IpAddr; 2],
    endpoint: EndpointId,
    ifindex: u32,
    mac: [u8; 6],
    jobs: mpsc::Sender<Job>,
    /// Nobody sends from its link, and nothing is sent there, once it is deleted.
    is_there: bool,
}

impl Matrix {
    fn new() -> Self {
        let lab = Lab::new();
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forward");
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("forward");
        run("ip link set lo up");
        let mut matrix = Self {
            lab,
            pods: Vec::new(),
            policies: Vec::new(),
            namespaces: Vec::new(),
            next_endpoint: 1,
            seen: BTreeSet::new(),
            told_apart: 0,
        };
        for namespace in NAMESPACES {
            matrix.create_namespace(namespace, "red");
            for name in PODS {
                let number = u8::try_from(matrix.pods.len()).expect("few pods");
                let (jobs, ifindex) = plug_in(number);
                matrix.pods.push(Pod {
                    namespace,
                    labels: vec![("pod".to_owned(), name.to_owned())],
                    name: name.to_owned(),
                    addresses: [address(number), address6(number)],
                    endpoint: EndpointId(0),
                    ifindex,
                    mac: mac(number),
                    jobs,
                    is_there: true,
                });
                matrix.attach(usize::from(number));
            }
        }
        matrix
    }

    fn attach(&mut self, number: usize) {
        let pod = &mut self.pods[number];
        pod.endpoint = EndpointId(self.next_endpoint);
        self.next_endpoint += 1;
        let link = EndpointLink {
            id: pod.endpoint,
            ifindex: pod.ifindex,
            addresses: pod.addresses.into(),
            mac: pod.mac,
        };
        self.lab.kernel().attach(&link).expect("attach");
    }

    fn relabel_namespace(&mut self, name: &str, key: &str, value: &str) {
        for namespace in &mut self.namespaces {
            if namespace["metadata"]["name"] == name {
                namespace["metadata"]["labels"][key] = value.into();
            }
        }
    }

    fn relabel_pod(&mut self, number: usize, key: &str, value: &str) {
        self.pods[number].labels.push((key.to_owned(), value.to_owned()));
    }

    fn create_namespace(&mut self, name: &str, team: &str) {
        self.namespaces
            .push(json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"team": team}}}));
    }

    /// The namespace goes with all that is in it.
    fn delete_namespace(&mut self, name: &str) {
        self.namespaces
            .retain(|namespace| namespace["metadata"]["name"] != name);
        self.policies
            .retain(|policy| policy["metadata"]["namespace"] != name);
        for number in 0..self.pods.len() {
            let pod = &self.pods[number];
            if pod.namespace == name && pod.is_there {
                self.delete_pod(number);
            }
        }
    }

    /// The pod goes, and its address leads nowhere.
    fn delete_pod(&mut self, number: usize) {
        let pod = &mut self.pods[number];
        pod.is_there = false;
        self.lab.kernel().detach(pod.endpoint).expect("detach");
        for address in pod.addresses {
            run(&format!("ip route del {address} dev m{number}"));
            run(&format!("ip route add blackhole {address}"));
        }
    }

    /// A pod at a link where there is none, with the addresses of the one that was there.
    fn create_pod(&mut self, number: usize, namespace: &'static str, name: &str) {
        let pod = &mut self.pods[number];
        assert!(!pod.is_there, "a pod is there already");
        pod.is_there = true;
        pod.namespace = namespace;
        name.clone_into(&mut pod.name);
        pod.labels = vec![("pod".to_owned(), name.to_owned())];
        let addresses = pod.addresses;
        self.attach(number);
        for address in addresses {
            run(&format!("ip route del blackhole {address}"));
            run(&format!("ip route add {address} dev m{number}"));
        }
    }

    /// The pod goes, and one with another name takes over its link and its address.
    fn replace_pod(&mut self, number: usize, name: &str) {
        let old = self.pods[number].endpoint;
        self.lab.kernel().detach(old).expect("detach");
        let pod = &mut self.pods[number];
        name.clone_into(&mut pod.name);
        pod.labels = vec![("pod".to_owned(), name.to_owned())];
        self.attach(number);
    }

    /// Makes a change, puts it in force and compares what arrives with what the reference says.
    fn step(&mut self, name: &str, change: impl FnOnce(&mut Self)) {
        change(self);
        let view = self.view();
        let compiled = compile(&view);
        assert_eq!(compiled.diagnostics, [], "{name}");
        self.lab.kernel().sync(&compiled.tables).expect("sync");
        let probes = probes();
        let expected: BTreeSet<Probe> = probes
            .iter()
            .copied()
            .filter(|probe| self.is_allowed(&view, *probe))
            .collect();
        let arrived = self.probe(&probes, &expected);
        let missing: Vec<_> = expected.difference(&arrived).collect();
        let surplus: Vec<_> = arrived.difference(&expected).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "{name}: did not arrive: {missing:?}; arrived and must not: {surplus:?}"
        );
        for probe in &probes {
            let (from, to, protocol, port, v6) = *probe;
            let is_expected = expected.contains(probe);
            self.seen.insert((is_expected, protocol, v6));
            if is_expected && !expected.contains(&(from, to, protocol, port, !v6)) {
                self.told_apart += 1;
            }
        }
    }

    fn view(&self) -> ClusterView {
        let objects: Vec<Value> = self.namespaces.iter().chain(&self.policies).cloned().collect();
        let sources = objects.iter().map(|object| Source {
            origin: "the test",
            object,
        });
        let mut view = load_objects(sources).expect("valid objects").view;
        view.pods = self
            .pods
            .iter()
            .filter(|pod| pod.is_there)
            .map(|pod| PodView {
                namespace: pod.namespace.to_owned(),
                name: pod.name.clone(),
                labels: pod.labels.iter().cloned().collect(),
                addresses: pod.addresses.into(),
                endpoint: Some(pod.endpoint),
                ..PodView::default()
            })
            .collect();
        view
    }

    fn is_allowed(&self, view: &ClusterView, (from, to, protocol, port, v6): Probe) -> bool {
        let (source, destination) = (&self.pods[from], &self.pods[to]);
        let judge = |pod: &Pod, direction, peer| {
            let packet = Packet {
                direction,
                peer,
                inside: None,
                protocol,
                source_port: source_port(to, protocol, port),
                port,
            };
            let decision = reference(view, pod.endpoint, &packet).expect("the endpoint exists");
            decision.verdict == Verdict::Allow
        };
        source.is_there
            && destination.is_there
            && judge(source, Direction::Egress, destination.at(v6))
            && judge(destination, Direction::Ingress, source.at(v6))
    }

    /// Sends all probes at once and says which arrived: as soon as the expected ones have, and a little silence passed.
    fn probe(&self, probes: &[Probe], expected: &BTreeSet<Probe>) -> BTreeSet<Probe> {
        let (ears, heard) = mpsc::channel::<Result<Probe, String>>();
        let deadline = Instant::now() + PATIENCE;
        let (stop, stopped): (Vec<_>, Vec<_>) = self.pods.iter().map(|_| mpsc::channel::<()>()).unzip();
        let mut ready = Vec::new();
        let pods = self.pods.iter().enumerate().zip(stopped);
        for ((number, pod), stopped) in pods.filter(|((_, pod), _)| pod.is_there) {
            let (is_ready, listening) = mpsc::channel();
            let (own, go) = mpsc::channel();
            ready.push((listening, own));
            let mine: Vec<(Probe, IpAddr)> = probes
                .iter()
                .filter(|probe| probe.0 == number)
                .map(|probe| (*probe, self.pods[probe.1].at(probe.4)))
                .collect();
            let (ears, addresses) = (ears.clone(), pod.addresses);
            let job = Box::new(move || {
                let ears_of_pod = Ears::open(number, addresses);
                is_ready.send(()).expect("the test waits");
                go.recv().expect("the test says when");
                let mouths = Mouths::open(addresses, &mine);
                while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) && Instant::now() < deadline {
                    ears_of_pod.listen(&ears);
                    mouths.listen(&ears);
                }
            });
            pod.jobs.send(job).expect("the pod's thread lives");
        }
        for (listening, _) in &ready {
            listening.recv_timeout(PATIENCE).expect("the pod listens");
        }
        ready
            .into_iter()
            .for_each(|(_, go)| go.send(()).expect("the pod waits"));
        let mut arrived = BTreeSet::new();
        let mut until = deadline;
        loop {
            if until == deadline && expected.is_subset(&arrived) {
                until = Instant::now() + SILENCE;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if let Ok(probe) = heard.recv_timeout(left) {
                arrived.insert(probe.unwrap_or_else(|refused| panic!("{refused}")));
            }
        }
        drop(stop);
        arrived
    }
}

impl Pod {
    fn at(&self, v6: bool) -> IpAddr {
        self.addresses[usize::from(v6)]
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        if !thread::panicking() {
            let all: BTreeSet<_> = [true, false]
                .into_iter()
                .flat_map(|allowed| PROTOCOLS.map(|protocol| (allowed, protocol)))
                .flat_map(|(allowed, protocol)| [false, true].map(|v6| (allowed, protocol, v6)))
                .collect();
            assert_eq!(
                self.seen, all,
                "every protocol was allowed once and denied once, in either family"
            );
            assert!(self.told_apart > 0, "no policy told the families apart");
        }
    }
}

/// Where a pod hears probes: for each family a listener for each port of TCP, a socket for each of UDP, one for all SCTP.
struct Ears {
    number: usize,
    udp: Vec<(u16, bool, OwnedFd)>,
    sctp: [(bool, OwnedFd); 2],
    /// Kept open: they accept in the kernel, and the connecting side tells.
    _tcp: Vec<OwnedFd>,
}

impl Ears {
    fn open(number: usize, addresses: [IpAddr; 2]) -> Self {
        let mut ears = Self {
            number,
            udp: Vec::new(),
            sctp: [false, true].map(|v6| (v6, raw_sctp(v6))),
            _tcp: Vec::new(),
        };
        for address in addresses {
            for port in PORTS {
                let listener = stream(address.is_ipv6());
                setsockopt(&listener, sockopt::ReuseAddr, &true).expect("reuse");
                bind(listener.as_raw_fd(), &storage(address, port)).expect("bind");
                listen(&listener, Backlog::new(64).expect("a backlog")).expect("listen");
                ears._tcp.push(listener);
                ears.udp.push((port, address.is_ipv6(), datagram(address, port)));
            }
        }
        ears
    }

    /// Waits a moment for probes and says which have come.
    fn listen(&self, ears: &mpsc::Sender<Result<Probe, String>>) {
        let sockets = self.udp.iter().map(|(_, _, socket)| socket);
        let sockets = sockets.chain(self.sctp.iter().map(|(_, socket)| socket));
        let mut waiting: Vec<PollFd<'_>> = sockets
            .map(|socket| PollFd::new(std::os::fd::AsFd::as_fd(socket), PollFlags::POLLIN))
            .collect();
        poll(&mut waiting, PollTimeout::from(2u8)).expect("poll");
        let mut buffer = [0; 256];
        for (port, v6, socket) in &self.udp {
            while let Ok((1, _)) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) {
                drop(ears.send(Ok((usize::from(buffer[0]), self.number, UDP, *port, *v6))));
            }
        }
        // An IPv4 header (IPv6 comes without), then source port, destination port, tag and checksum; the chunk's tag says
        // who sent it.
        for (v6, socket) in &self.sctp {
            while let Ok((length, _)) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) {
                let header = if *v6 { 0 } else { usize::from(buffer[0] & 15) * 4 };
                let packet = &buffer[header.min(length)..length];
                if packet.len() >= 20 && packet[12] == 1 {
                    let port = u16::from_be_bytes([packet[2], packet[3]]);
                    drop(ears.send(Ok((usize::from(packet[19]), self.number, SCTP, port, *v6))));
                }
            }
        }
    }
}

/// The probes that a pod sends.
struct Mouths {
    connecting: Vec<(Probe, OwnedFd)>,
    _others: Vec<OwnedFd>,
}

impl Mouths {
    fn open(own: [IpAddr; 2], probes: &[(Probe, IpAddr)]) -> Self {
        let mut mouths = Self {
            connecting: Vec::new(),
            _others: Vec::new(),
        };
        for (probe, address) in probes {
            let (from, to, protocol, port, v6) = *probe;
            let target = storage(*address, port);
            let who = u8::try_from(from).expect("few pods");
            match protocol {
                TCP => {
                    let socket = stream(v6);
                    match connect(socket.as_raw_fd(), &target) {
                        Ok(()) | Err(Errno::EINPROGRESS) => {}
                        Err(error) => panic!("{probe:?}: {error}"),
                    }
                    mouths.connecting.push((*probe, socket));
                }
                UDP => {
                    let socket = datagram(own[usize::from(v6)], source_port(to, protocol, port));
                    // A denial is heard of by nobody, so sending always succeeds.
                    sendto(socket.as_raw_fd(), &[who], &target, MsgFlags::empty()).expect("send");
                    mouths._others.push(socket);
                }
                _ => {
                    let socket = raw_sctp(v6);
                    let packet = sctp_init(source_port(to, protocol, port), port, who);
                    sendto(
                        socket.as_raw_fd(),
                        &packet,
                        &storage(*address, 0),
                        MsgFlags::empty(),
                    )
                    .expect("send");
                    mouths._others.push(socket);
                }
            }
        }
        mouths
    }

    /// Says which connections have been made since; one that is refused is an error.
    fn listen(&self, ears: &mpsc::Sender<Result<Probe, String>>) {
        for (probe, socket) in &self.connecting {
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(socket), PollFlags::POLLOUT)];
            if poll(&mut fds, PollTimeout::ZERO) == Ok(0) {
                continue;
            }
            match getsockopt(socket, sockopt::SocketError) {
                Ok(0) => drop(ears.send(Ok(*probe))),
                // A connection that was made is reset when the other pod stops listening: the probes are over then.
                Ok(libc::ETIMEDOUT | libc::ECONNRESET) => {}
                Ok(code) => {
                    let error = std::io::Error::from_raw_os_error(code);
                    drop(ears.send(Err(format!("{probe:?} was answered with {error}"))));
                }
                Err(error) => drop(ears.send(Err(format!("{probe:?}: {error}")))),
            }
        }
    }
}

fn probes() -> Vec<Probe> {
    let pods = NAMESPACES.len() * PODS.len();
    let mut probes = Vec::new();
    for from in 0..pods {
        for to in (0..pods).filter(|to| *to != from) {
            for protocol in PROTOCOLS {
                for v6 in [false, true] {
                    probes.extend(PORTS.map(|port| (from, to, protocol, port, v6)));
                }
            }
        }
    }
    probes
}

/// UDP and SCTP say where they come from; TCP leaves it to the kernel.
fn source_port(to: usize, protocol: u8, port: u16) -> u16 {
    match protocol {
        TCP => 50_000,
        _ => 40_000 + u16::try_from(to).expect("few pods") * 100 + port,
    }
}

/// A network namespace with one link to this one, an address of either family, and a thread that lives in it.
pub(crate) fn plug_in(number: u8) -> (mpsc::Sender<Job>, u32) {
    let (jobs, queue) = mpsc::channel::<Job>();
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        ready
            .send(fs::read_link("/proc/thread-self").expect("a thread"))
            .expect("the test waits");
        queue.into_iter().for_each(|job| job());
    });
    let thread = is_ready.recv().expect("the pod's thread lives");
    let namespace = File::open(format!("/proc/{}/ns/net", thread.display())).expect("the pod's namespace");
    let host = File::open("/proc/thread-self/ns/net").expect("the host's namespace");
    let id = thread
        .file_name()
        .expect("a thread id")
        .to_string_lossy()
        .into_owned();
    let (link, mac) = (format!("m{number}"), mac(number));
    let (address, address6) = (address(number), address6(number));
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    run(&format!(
        "ip link add {link} type veth peer name eth0 address {mac} netns {id}"
    ));
    run(&format!("ip link set {link} address 02:00:00:00:00:fe up"));
    run(&format!("ip route add {address}/32 dev {link}"));
    run(&format!("ip -6 route add {address6}/128 dev {link}"));
    for address in [address, address6] {
        run(&format!(
            "ip neigh replace {address} lladdr {mac} dev {link} nud permanent"
        ));
    }
    setns(&namespace, CloneFlags::CLONE_NEWNET).expect("enter the pod");
    run("ip link set lo up");
    run("ip link set eth0 up");
    run(&format!("ip addr add {address}/32 dev eth0"));
    run("ip route add 169.254.1.1 dev eth0");
    run("ip route add default via 169.254.1.1 dev eth0");
    run("ip neigh replace 169.254.1.1 lladdr 02:00:00:00:00:fe dev eth0 nud permanent");
    run(&format!("ip -6 addr add {address6}/128 dev eth0 nodad"));
    run("ip -6 route add fe80::1 dev eth0");
    run("ip -6 route add default via fe80::1 dev eth0");
    run("ip neigh replace fe80::1 lladdr 02:00:00:00:00:fe dev eth0 nud permanent");
    setns(&host, CloneFlags::CLONE_NEWNET).expect("leave the pod");
    let ifindex = nix::net::if_::if_nametoindex(link.as_str()).expect("the host side");
    (jobs, ifindex)
}

pub(crate) fn address(number: u8) -> IpAddr {
    [10, 7, 1, 10 + number].into()
}

pub(crate) fn address6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd07, 0, 0, 0, 0, 0, 1, 10 + u16::from(number)).into()
}

pub(crate) fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

fn storage(address: IpAddr, port: u16) -> SockaddrStorage {
    SocketAddr::new(address, port).into()
}

fn family(v6: bool) -> AddressFamily {
    match v6 {
        true => AddressFamily::Inet6,
        false => AddressFamily::Inet,
    }
}

fn stream(v6: bool) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(family(v6), SockType::Stream, flags, None).expect("a socket")
}

fn datagram(address: IpAddr, port: u16) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family(address.is_ipv6()), SockType::Datagram, flags, None).expect("a socket");
    bind(socket.as_raw_fd(), &storage(address, port)).expect("bind");
    socket
}

/// The kernel may lack SCTP; its packets are made by hand.
fn raw_sctp(v6: bool) -> OwnedFd {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: three integers; the result is checked before it is used.
    let fd = unsafe { libc::socket(family(v6) as i32, kind, libc::IPPROTO_SCTP) };
    assert!(fd >= 0, "a raw socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// An INIT chunk (RFC 9260 section 3.3.2) whose initiate tag says who sends it. Nobody here checks the checksum.
fn sctp_init(source_port: u16, port: u16, who: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source_port.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend([0, 0, 0, who]);
    packet.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    packet
}
