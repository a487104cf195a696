//! The thread that owns the datapath, over a datapath that can be full.

use std::{
    net::IpAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use agent_resolver::Limits;
use agent_telemetry::{FlowLog, LogConfig, NamedEndpoint};
use api::flow::HostRef;
use ebpf_loader::{Counters, Expired, Fake, FlowSource, HostLink, OpenedFlow, Synced};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use policies_ir::tables::{Direction, Packet, Verdict, lookup};
use serde_json::json;

use super::*;
use crate::{hosts::Interface, policy_objects::PolicyObject};

/// An interface of a kind that the programs cannot read.
const UNREADABLE: u32 = 99;

/// A [`Fake`] whose maps are full for as long as it is said.
struct Narrow {
    inner: Fake,
    full: Arc<AtomicBool>,
    /// Most verdicts that it takes.
    room: Arc<AtomicUsize>,
    /// Steps that a look through its flows takes before the last; without end if all bits are set.
    steps: Arc<AtomicUsize>,
    forgetting: bool,
    /// Interfaces whose packets it cannot read.
    unreadable: BTreeSet<u32>,
    /// Interfaces off which somebody took the programs, and whether they cannot be had back.
    bare: Arc<Mutex<BTreeSet<u32>>>,
    stuck: Arc<AtomicBool>,
}

impl Datapath for Narrow {
    fn sync(&mut self, tables: &NodeTables) -> Result<Synced, DatapathError> {
        let needed = capacity::demand(tables).verdicts;
        match self.full.load(Ordering::Relaxed) || needed > self.room.load(Ordering::Relaxed) {
            true => Err(DatapathError::Full {
                map: "VERDICTS",
                needed: 12,
                limit: 10,
            }),
            false => self.inner.sync(tables),
        }
    }

    fn is_worn(&self) -> bool {
        self.inner.is_worn()
    }

    fn renew(&mut self, tables: &NodeTables) -> Result<Synced, DatapathError> {
        self.sync(tables)
    }

    fn attach(&mut self, link: &EndpointLink) -> Result<(), DatapathError> {
        self.inner.attach(link)
    }

    fn detach(&mut self, endpoint: EndpointId) -> Result<(), DatapathError> {
        self.inner.detach(endpoint)
    }

    fn take_off(&mut self, endpoint: EndpointId) -> Result<(), DatapathError> {
        self.forgetting = true;
        self.inner.take_off(endpoint)
    }

    fn is_forgetting(&self) -> bool {
        self.forgetting
    }

    fn prepare_hosts(&mut self, endpoints: &BTreeSet<EndpointId>) -> Result<(), DatapathError> {
        self.inner.prepare_hosts(endpoints)
    }

    fn close_hosts(&mut self, tables: &NodeTables) -> Result<(), DatapathError> {
        self.inner.close_hosts(tables)
    }

    /// No interface gets an endpoint without tables: it would be open.
    fn attach_host(&mut self, link: &HostLink) -> Result<(), DatapathError> {
        let endpoints = link.addresses.values().chain(&link.forward);
        let open: Vec<_> = endpoints
            .filter(|endpoint| !self.inner.has_tables(endpoint.id))
            .collect();
        assert!(open.is_empty(), "{open:?} have no tables");
        if self.unreadable.contains(&link.ifindex) {
            return Err(DatapathError::LinkLayer {
                name: "gre0".to_owned(),
                device_type: 778,
            });
        }
        self.inner.attach_host(link)
    }

    fn attached_hosts(&mut self) -> Result<Vec<HostLink>, DatapathError> {
        self.inner.attached_hosts()
    }

    fn attached(&mut self) -> Result<Vec<EndpointLink>, DatapathError> {
        self.inner.attached()
    }

    fn bare(&mut self) -> Result<Vec<u32>, DatapathError> {
        Ok(self.bare.lock().unwrap().iter().copied().collect())
    }

    fn restore(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        if self.stuck.load(Ordering::Relaxed) {
            let source = std::io::ErrorKind::PermissionDenied.into();
            return Err(DatapathError::Link {
                operation: "attach",
                ifindex,
                source,
            });
        }
        self.bare.lock().unwrap().remove(&ifindex);
        Ok(())
    }

    fn keep_established(&mut self, endpoint: EndpointId, keep: bool) -> Result<(), DatapathError> {
        self.inner.keep_established(endpoint, keep)
    }

    fn sweep(&mut self) -> Result<(), DatapathError> {
        self.inner.sweep()
    }

    fn look(&mut self, now: Duration) -> Result<Expired, DatapathError> {
        let more = match self.steps.load(Ordering::Relaxed) {
            0 => false,
            usize::MAX => true,
            steps => {
                self.steps.store(steps - 1, Ordering::Relaxed);
                true
            }
        };
        self.forgetting &= more;
        let looked = self.inner.look(now)?;
        Ok(Expired { more, ..looked })
    }

    fn dump(&self) -> Result<NodeTables, DatapathError> {
        self.inner.dump()
    }

    fn places(&self) -> Result<ebpf_loader::Places, DatapathError> {
        self.inner.places()
    }

    fn opened_flows(&mut self) -> Result<BTreeSet<OpenedFlow>, DatapathError> {
        self.inner.opened_flows()
    }

    fn counters(&mut self) -> Result<Counters, DatapathError> {
        self.inner.counters()
    }

    fn flow_source(&mut self) -> Result<Box<dyn FlowSource>, DatapathError> {
        self.inner.flow_source()
    }
}

fn start(dir: &std::path::Path, full: &Arc<AtomicBool>, cluster: &Cluster) -> Policy {
    start_on(dir, full, cluster, machine)
}

fn start_on(
    dir: &std::path::Path,
    full: &Arc<AtomicBool>,
    cluster: &Cluster,
    machine: fn() -> std::io::Result<Vec<Interface>>,
) -> Policy {
    let room = Arc::new(AtomicUsize::new(usize::MAX));
    begin(dir, (full, &room), cluster, &Arc::new(Names::new()), machine)
}

fn machine() -> std::io::Result<Vec<Interface>> {
    let interface = |index, name: &str| Interface {
        index,
        name: name.to_owned(),
        is_up: true,
        addresses: BTreeSet::new(),
        broadcasts: BTreeSet::new(),
    };
    Ok(vec![interface(2, "eth0"), interface(3, "eth1")])
}

fn start_with(
    dir: &std::path::Path,
    room: (&Arc<AtomicBool>, &Arc<AtomicUsize>),
    cluster: &Cluster,
    names: &Arc<Names>,
) -> Policy {
    begin(dir, room, cluster, names, machine)
}

fn begin(
    dir: &std::path::Path,
    (full, room): (&Arc<AtomicBool>, &Arc<AtomicUsize>),
    cluster: &Cluster,
    names: &Arc<Names>,
    machine: fn() -> std::io::Result<Vec<Interface>>,
) -> Policy {
    let datapath = Narrow {
        inner: Fake::new(),
        full: Arc::clone(full),
        room: Arc::clone(room),
        steps: Arc::default(),
        forgetting: false,
        unreadable: [UNREADABLE].into(),
        bare: Arc::default(),
        stuck: Arc::default(),
    };
    begin_on(dir, datapath, cluster, names, machine)
}

fn begin_on(
    dir: &std::path::Path,
    mut datapath: Narrow,
    cluster: &Cluster,
    names: &Arc<Names>,
    machine: fn() -> std::io::Result<Vec<Interface>>,
) -> Policy {
    let log = FlowLog::open(LogConfig::sized(dir.join("flows"), "n1".to_owned(), 1 << 20)).unwrap();
    let start = Start {
        hosts: Hosts::start(&mut datapath, ["192.0.2.1".parse().unwrap()].into())
            .unwrap()
            .on(machine),
        datapath: Box::new(datapath),
        cluster: cluster.clone(),
        node: "n1".to_owned(),
        endpoints: Vec::new(),
        names: Arc::clone(names),
        pod_ranges: vec!["10.0.0.0/24".parse().unwrap()],
        learned: Arc::new(LearnedNames::open(Limits::default(), dir.join("names"))),
        hub: Arc::new(Hub::new(log, "n1".to_owned(), 16)),
    };
    Policy::start(start, CancellationToken::new()).unwrap()
}

fn endpoint() -> Endpoint {
    Endpoint {
        pod: PodRef {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        },
        pod_uid: "u1".to_owned(),
        link: EndpointLink {
            id: EndpointId(7),
            ifindex: 3,
            addresses: vec!["10.0.0.7".parse().unwrap()],
            mac: [2, 0, 0, 0, 0, 1],
        },
        host_ports: Vec::new(),
    }
}

fn web() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": "web", "uid": "u1", "resourceVersion": "5"},
        "spec": {"containers": [{"name": "c"}], "nodeName": "n1"},
    }))
    .unwrap()
}

#[tokio::test]
async fn policy_that_does_not_fit_is_told_with_numbers_until_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(true)), Cluster::empty());
    cluster.bring(watcher::Event::Apply(web()));
    let policy = start(dir.path(), &full, &cluster);
    let mut enforcement = policy.enforcement();
    policy.attach(endpoint()).await.unwrap();
    let refused = policy.program(EndpointId(7)).await.unwrap_err().to_string();
    assert!(refused.contains("VERDICTS holds 10 entries"), "{refused}");
    let behind = |state: &Enforcement| matches!(state, Enforcement::Behind(_));
    let state = enforcement.wait_for(behind).await.unwrap().clone();
    let Enforcement::Behind(why) = state else {
        panic!("{state:?}")
    };
    assert!(
        why.contains("need 12") && why.contains("1 judged endpoints"),
        "{why}"
    );

    full.store(false, Ordering::Relaxed);
    policy.program(EndpointId(7)).await.unwrap();
    let now = enforcement.wait_for(|state| *state == Enforcement::InForce).await;
    assert!(now.is_ok());
    let dumped = policy.dump().await.unwrap();
    assert_eq!(dumped.endpoints.len(), 1);
    assert!(
        dumped.endpoints.iter().all(|endpoint| endpoint.programmed),
        "{dumped:?}"
    );
}

/// Rules that tell more source ports apart than the kernel can: the policy of before stays in force, and is not made
/// another, until there are fewer.
#[tokio::test]
async fn too_many_source_ports_leave_the_old_policy_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(false)), Cluster::empty());
    cluster.bring(watcher::Event::Apply(web()));
    let uplink = object(
        "HostEndpoint",
        "uplink",
        &json!({"node": "n1", "interfaceName": "eth0"}),
    );
    cluster.bring_object("HostEndpoint", watcher::Event::Apply(uplink));
    let policy = start(dir.path(), &full, &cluster);
    let mut enforcement = policy.enforcement();
    policy.attach(endpoint()).await.unwrap();
    policy.program(EndpointId(7)).await.unwrap();
    let before = policy.dump().await.unwrap();
    assert!(before.verdicts.iter().any(|row| row.endpoint == 7));
    let bring = |rules: u16| {
        let rule = |i| json!({"action": "Allow", "protocol": "TCP", "source": {"ports": [1000 + 2 * i]}});
        let rules: Vec<_> = (0..rules).map(rule).collect();
        let spec = json!({"ingress": rules});
        cluster.bring_object(
            "NetworkPolicy",
            watcher::Event::Apply(object("NetworkPolicy", "many", &spec)),
        );
    };
    bring(200);
    assert!(policy.settle().await.is_err());
    let behind = |state: &Enforcement| matches!(state, Enforcement::Behind(_));
    let state = enforcement.wait_for(behind).await.unwrap().clone();
    let Enforcement::Behind(why) = state else {
        panic!("{state:?}")
    };
    let told = "needs 201 classes of source ports at one endpoint, and a node holds 128";
    assert!(why.contains(told), "{why}");
    let kept = policy.dump().await.unwrap();
    assert_eq!((kept.verdicts, kept.sources), (before.verdicts, before.sources));

    bring(3);
    policy.settle().await.unwrap();
    let now = enforcement.wait_for(|state| *state == Enforcement::InForce).await;
    assert!(now.is_ok());
    let fits = policy.dump().await.unwrap();
    assert!(
        fits.sources.iter().any(|row| row.endpoint == 7 && row.class == 3),
        "{fits:?}"
    );
}

/// The pod's object comes after its interface, as it may: the endpoint is judged from then on.
#[tokio::test]
async fn an_endpoint_waits_for_its_pod() {
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(false)), Cluster::empty());
    let policy = start(dir.path(), &full, &cluster);
    policy.attach(endpoint()).await.unwrap();
    assert!(
        !policy
            .dump()
            .await
            .unwrap()
            .endpoints
            .iter()
            .any(|endpoint| endpoint.programmed)
    );
    cluster.bring(watcher::Event::Apply(web()));
    policy.program(EndpointId(7)).await.unwrap();
    let dumped = policy.dump().await.unwrap();
    assert!(
        dumped.endpoints.iter().all(|endpoint| endpoint.programmed),
        "{dumped:?}"
    );
    cluster.bring(watcher::Event::Delete(web()));
    policy.detach(EndpointId(7)).await.unwrap();
    policy.settle().await.unwrap();
    let dumped = policy.dump().await.unwrap();
    assert!(
        dumped.endpoints.is_empty() && dumped.verdicts.is_empty(),
        "{dumped:?}"
    );
}

/// A pod has ended when no flow of it is left, and nobody else waits for that.
#[tokio::test]
async fn the_end_of_a_pod_waits_for_a_look_through_all_flows() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::empty();
    let steps = Arc::new(AtomicUsize::new(usize::MAX));
    let datapath = Narrow {
        inner: Fake::new(),
        full: Arc::default(),
        room: Arc::new(AtomicUsize::new(usize::MAX)),
        steps: Arc::clone(&steps),
        forgetting: false,
        unreadable: BTreeSet::new(),
        bare: Arc::default(),
        stuck: Arc::default(),
    };
    let policy = begin_on(dir.path(), datapath, &cluster, &Arc::new(Names::new()), machine);
    policy.attach(endpoint()).await.unwrap();
    let ending = policy.clone();
    let end = tokio::spawn(async move { ending.detach(EndpointId(7)).await });
    for number in 0..20 {
        cluster.bring(watcher::Event::Apply(web()));
        tokio::time::timeout(Duration::from_secs(20), policy.settle())
            .await
            .unwrap_or_else(|_| panic!("change {number} waits"))
            .unwrap();
    }
    assert_eq!(policy.dump().await.unwrap().endpoints, [], "it is off at once");
    assert!(!end.is_finished(), "there are flows of it");
    steps.store(3, Ordering::Relaxed);
    end.await.unwrap().unwrap();
}

/// Denied packets of a pod that nobody was told of are missing from the log also if it ends before the next look at what
/// was counted.
#[tokio::test]
async fn denials_that_were_not_told_are_told_as_missing_with_the_end_of_their_pod() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::empty();
    cluster.bring(watcher::Event::Apply(web()));
    let mut inner = Fake::new();
    inner.deny_unreported(EndpointId(7), 48_000);
    let datapath = Narrow {
        inner,
        full: Arc::default(),
        room: Arc::new(AtomicUsize::new(usize::MAX)),
        steps: Arc::default(),
        forgetting: false,
        unreadable: BTreeSet::new(),
        bare: Arc::default(),
        stuck: Arc::default(),
    };
    let policy = begin_on(dir.path(), datapath, &cluster, &Arc::new(Names::new()), machine);
    policy.attach(endpoint()).await.unwrap();
    policy.program(EndpointId(7)).await.unwrap();
    policy.detach(EndpointId(7)).await.unwrap();
    let files = std::fs::read_dir(dir.path().join("flows")).unwrap();
    let lines: String = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let losses: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [loss] = &losses[..] else {
        panic!("one line: {losses:?}")
    };
    assert_eq!(
        (&loss["lost"], &loss["at"]),
        (&json!(48_000), &json!("unreported"))
    );
    assert_eq!(loss["pod"], json!({"namespace": "default", "name": "web"}));
}

fn object(kind: &str, name: &str, spec: &serde_json::Value) -> PolicyObject {
    let object = json!({"apiVersion": "projectcalico.org/v3", "kind": kind,
        "metadata": {"name": name, "namespace": "default"}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

/// The host endpoint keeps its numbers, and the tables are the same.
#[tokio::test]
async fn a_host_endpoint_moves_to_another_interface() {
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(false)), Cluster::empty());
    let policy = start(dir.path(), &full, &cluster);
    for interface in ["eth0", "eth1"] {
        let spec = json!({"node": "n1", "interfaceName": interface});
        let host = object("HostEndpoint", "uplink", &spec);
        cluster.bring_object("HostEndpoint", watcher::Event::Apply(host));
        policy.settle().await.unwrap();
        let dumped = policy.dump().await.unwrap();
        let [host] = &dumped.hosts[..] else {
            panic!("{dumped:?}")
        };
        assert_eq!(host.attached, [interface.to_owned()].into());
        assert!(host.programmed.contains(&host.local), "{host:?}");
    }
}

/// One that a host endpoint takes over from another keeps that one, and one that comes later gets the one that there is.
#[tokio::test]
async fn no_interface_is_open_while_tables_do_not_fit() {
    static PLUGGED: AtomicBool = AtomicBool::new(false);
    fn plugged() -> std::io::Result<Vec<Interface>> {
        let mut interfaces = machine()?;
        if PLUGGED.load(Ordering::Relaxed) {
            interfaces.push(Interface {
                index: 4,
                name: "eth2".to_owned(),
                is_up: true,
                addresses: BTreeSet::new(),
                broadcasts: BTreeSet::new(),
            });
        }
        Ok(interfaces)
    }
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(false)), Cluster::empty());
    let policy = start_on(dir.path(), &full, &cluster, plugged);
    let bring = |name: &str, interface: &str| {
        let host = object(
            "HostEndpoint",
            name,
            &json!({"node": "n1", "interfaceName": interface}),
        );
        cluster.bring_object("HostEndpoint", watcher::Event::Apply(host));
    };
    let attached = async |name: &str| {
        let hosts = policy.dump().await.unwrap().hosts;
        let host = hosts.into_iter().find(|host| host.name == name).unwrap();
        host.attached.into_iter().collect::<Vec<_>>()
    };
    bring("all", "*");
    policy.settle().await.unwrap();
    assert_eq!(attached("all").await, ["eth0", "eth1"]);

    full.store(true, Ordering::Relaxed);
    bring("uplink", "eth0");
    policy.settle().await.unwrap_err();
    assert_eq!(attached("all").await, ["eth0", "eth1"]);
    assert_eq!(attached("uplink").await, [""; 0]);
    PLUGGED.store(true, Ordering::Relaxed);
    policy.interfaces_changed().unwrap();
    policy.settle().await.unwrap_err();
    assert_eq!(attached("all").await, ["eth0", "eth1", "eth2"]);

    full.store(false, Ordering::Relaxed);
    policy.settle().await.unwrap();
    assert_eq!(attached("all").await, ["eth1", "eth2"]);
    assert_eq!(attached("uplink").await, ["eth0"]);
}

/// The kernel's own devices of GRE are there and down wherever its module is: they keep no policy from being in force, and
/// are named as soon as they carry anything.
#[tokio::test]
async fn a_device_that_cannot_be_judged_matters_while_it_is_up() {
    static UP: AtomicBool = AtomicBool::new(false);
    fn tunnelled() -> std::io::Result<Vec<Interface>> {
        let mut interfaces = machine()?;
        interfaces.push(Interface {
            index: UNREADABLE,
            name: "gre0".to_owned(),
            is_up: UP.load(Ordering::Relaxed),
            addresses: BTreeSet::new(),
            broadcasts: BTreeSet::new(),
        });
        Ok(interfaces)
    }
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(false)), Cluster::empty());
    let policy = start_on(dir.path(), &full, &cluster, tunnelled);
    let host = object(
        "HostEndpoint",
        "all",
        &json!({"node": "n1", "interfaceName": "*"}),
    );
    cluster.bring_object("HostEndpoint", watcher::Event::Apply(host));
    policy.settle().await.unwrap();
    let mut enforcement = policy.enforcement();
    assert_eq!(*enforcement.borrow(), Enforcement::InForce);
    let judged = async || policy.dump().await.unwrap().hosts.remove(0);
    let host = judged().await;
    assert_eq!(host.attached, ["eth0".to_owned(), "eth1".to_owned()].into());
    assert_eq!(host.interfaces, host.attached);

    UP.store(true, Ordering::Relaxed);
    policy.interfaces_changed().unwrap();
    let state = enforcement.wait_for(|state| *state != Enforcement::InForce).await;
    let state = state.unwrap().clone();
    assert!(
        matches!(&state, Enforcement::Behind(why) if why.contains("interface gre0 is of device type 778")),
        "{state:?}"
    );
    assert!(judged().await.interfaces.contains("gre0"));
    assert!(policy.dump().await.unwrap().behind.is_some());

    UP.store(false, Ordering::Relaxed);
    policy.interfaces_changed().unwrap();
    let now = enforcement.wait_for(|state| *state == Enforcement::InForce).await;
    assert!(now.is_ok());
}

/// 65 interfaces with an address each, and one of the node's beside these, are more than the kernel holds.
#[tokio::test]
async fn interfaces_without_room_are_told_with_numbers_until_they_fit() {
    static COUNT: AtomicUsize = AtomicUsize::new(65);
    fn many() -> std::io::Result<Vec<Interface>> {
        let interface = |index: u8| Interface {
            index: index.into(),
            name: format!("eth{index}"),
            is_up: true,
            addresses: [IpAddr::from([198, 51, 100, index])].into(),
            broadcasts: BTreeSet::new(),
        };
        let count = u8::try_from(COUNT.load(Ordering::Relaxed)).unwrap();
        Ok((2..2 + count).map(interface).collect())
    }
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(false)), Cluster::empty());
    let policy = start_on(dir.path(), &full, &cluster, many);
    let host = object(
        "HostEndpoint",
        "all",
        &json!({"node": "n1", "interfaceName": "*"}),
    );
    cluster.bring_object("HostEndpoint", watcher::Event::Apply(host));
    policy.settle().await.unwrap();
    let mut enforcement = policy.enforcement();
    let state = enforcement.borrow().clone();
    let needs = "needs 4355 pairs of an interface and an address of the host, and a node holds 4095; eth62, eth63, eth64, \
                 eth65, eth66: each is judged at its own addresses";
    assert!(
        matches!(&state, Enforcement::Behind(why) if why.contains(needs)),
        "{state:?}"
    );
    let counts = *policy.host_counts().borrow();
    let expected = HostCounts {
        interfaces: 65,
        addresses: 66,
    };
    assert_eq!(counts, Some(expected));
    let dumped = policy.dump().await.unwrap();
    assert_eq!((dumped.closed.len(), dumped.hosts.len()), (1, 1));

    COUNT.store(60, Ordering::Relaxed);
    policy.interfaces_changed().unwrap();
    let now = enforcement.wait_for(|state| *state == Enforcement::InForce).await;
    assert!(now.is_ok());
    assert!(policy.dump().await.unwrap().closed.is_empty());
}

/// Tables that are written may still deny what policy would allow.
#[test]
fn what_is_denied_for_want_of_numbers_is_told_with_them() {
    assert_eq!(judging(None, [], None), Enforcement::InForce);
    let exceeded = Exceeded::if_more(capacity::What::InsideClasses, 1025, 1023);
    let Enforcement::Behind(why) = judging(None, [], exceeded) else {
        panic!("it is in force")
    };
    assert_eq!(
        why,
        "the kernel denies some of what the node forwards, for the policy needs 1025 kinds of addresses that one host endpoint \
         tells apart in forwarded packets, and a node holds 1023; select fewer pods, or say it with fewer rules, networks and \
         ports"
    );
    let Enforcement::Behind(both) = judging(Some("no room"), [], exceeded) else {
        panic!("it is in force")
    };
    assert!(both.contains("no room; the kernel denies"), "{both}");
}

/// Nothing was ever written: what is attached is closed. That no attempt to write succeeds is told, and so is that the
/// next one does.
#[tokio::test]
async fn an_interface_without_tables_is_attached_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(true)), Cluster::empty());
    let policy = start(dir.path(), &full, &cluster);
    let spec = json!({"node": "n1", "interfaceName": "eth0"});
    let host = object("HostEndpoint", "uplink", &spec);
    cluster.bring_object("HostEndpoint", watcher::Event::Apply(host));
    policy.settle().await.unwrap_err();
    let dumped = policy.dump().await.unwrap();
    assert_eq!(dumped.hosts[0].attached, ["eth0".to_owned()].into());
    assert!(dumped.hosts[0].programmed.is_empty(), "{dumped:?}");
    assert!(matches!(*policy.enforcement().borrow(), Enforcement::Behind(_)));
    full.store(false, Ordering::Relaxed);
    policy.settle().await.unwrap();
    assert_eq!(*policy.enforcement().borrow(), Enforcement::InForce);
    assert!(!policy.dump().await.unwrap().hosts[0].programmed.is_empty());
}

/// What others took off comes back, and until it has, it is told, and nobody is told that it is there.
#[tokio::test]
async fn programs_that_others_took_off_are_attached_again() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::empty();
    let (bare, stuck) = (
        Arc::<Mutex<BTreeSet<u32>>>::default(),
        Arc::<AtomicBool>::default(),
    );
    let datapath = Narrow {
        inner: Fake::new(),
        full: Arc::default(),
        room: Arc::new(AtomicUsize::new(usize::MAX)),
        steps: Arc::default(),
        forgetting: false,
        unreadable: BTreeSet::new(),
        bare: Arc::clone(&bare),
        stuck: Arc::clone(&stuck),
    };
    cluster.bring(watcher::Event::Apply(web()));
    let spec = json!({"node": "n1", "interfaceName": "eth0"});
    let host = object("HostEndpoint", "uplink", &spec);
    cluster.bring_object("HostEndpoint", watcher::Event::Apply(host));
    let policy = begin_on(dir.path(), datapath, &cluster, &Arc::new(Names::new()), machine);
    policy.attach(endpoint()).await.unwrap();
    policy.program(EndpointId(7)).await.unwrap();
    let attached = async || {
        let dumped = policy.dump().await.unwrap();
        (dumped.hosts[0].attached.len(), dumped.endpoints.len())
    };
    assert_eq!(attached().await, (1, 1));
    assert_eq!(*policy.enforcement().borrow(), Enforcement::InForce);

    stuck.store(true, Ordering::Relaxed);
    bare.lock().unwrap().extend([2, 3]);
    policy.interfaces_changed().unwrap();
    policy.settle().await.unwrap();
    let told = policy.enforcement().borrow().clone();
    let Enforcement::Behind(why) = told else {
        panic!("{told:?}")
    };
    assert!(
        why.contains("eth0") && why.contains("eth1") && why.contains("cannot be attached again"),
        "{why}"
    );
    assert_eq!(attached().await, (0, 0));

    stuck.store(false, Ordering::Relaxed);
    policy.interfaces_changed().unwrap();
    policy.settle().await.unwrap();
    assert_eq!(*policy.enforcement().borrow(), Enforcement::InForce);
    assert_eq!(attached().await, (1, 1));
    assert!(bare.lock().unwrap().is_empty());

    // No interface changes: it is looked for all the same.
    let mut enforcement = policy.enforcement();
    enforcement.borrow_and_update();
    bare.lock().unwrap().insert(2);
    let changed = enforcement.changed();
    tokio::time::timeout(2 * EXPIRE_EVERY, changed)
        .await
        .unwrap()
        .unwrap();
    policy.settle().await.unwrap();
    assert!(bare.lock().unwrap().is_empty());
    assert_eq!(*policy.enforcement().borrow(), Enforcement::InForce);
}

/// Whatever an earlier agent has learned, and whatever the nodes' ranges become.
#[tokio::test]
async fn no_name_opens_a_way_to_a_pod() {
    let dir = tempfile::tempdir().unwrap();
    let saved = ["10.0.0.9", "192.0.2.1", "10.1.0.9", "203.0.113.9"].map(|address| {
        json!({"address": address, "name": "a.example.test", "client": "10.0.0.7", "until": 4_000_000_000_u64})
    });
    std::fs::write(dir.path().join("names"), json!(saved).to_string()).unwrap();
    let cluster = Cluster::empty();
    let egress = json!([{"action": "Allow", "destination": {"domains": ["*.example.test"]}}]);
    let by_name = object(
        "NetworkPolicy",
        "by-name",
        &json!({"egress": egress, "types": ["Egress"]}),
    );
    cluster.bring_object("NetworkPolicy", watcher::Event::Apply(by_name));
    let policy = start(dir.path(), &Arc::default(), &cluster);
    policy.settle().await.unwrap();
    let named = async || -> Vec<String> {
        let names = policy.dump().await.unwrap().names;
        names.keys().map(ToString::to_string).collect()
    };
    assert_eq!(named().await, ["10.1.0.9", "203.0.113.9"]);
    let node = json!({"metadata": {"name": "n2"}, "spec": {"podCIDR": "10.1.0.0/24"}});
    cluster.bring_node(watcher::Event::Apply(serde_json::from_value(node).unwrap()));
    policy.settle().await.unwrap();
    assert_eq!(named().await, ["203.0.113.9"]);
}

/// Until they stand again, and beside whatever else is amiss.
#[tokio::test]
async fn that_the_rules_beside_the_programs_are_gone_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let policy = start(dir.path(), &Arc::default(), &Cluster::empty());
    policy.settle().await.unwrap();
    assert_eq!(*policy.enforcement().borrow(), Enforcement::InForce);
    policy
        .unguarded(Some("the table was removed".to_owned()))
        .unwrap();
    policy.settle().await.unwrap();
    let told = Enforcement::Behind("the table was removed".to_owned());
    assert_eq!(*policy.enforcement().borrow(), told);
    policy.unguarded(None).unwrap();
    policy.settle().await.unwrap();
    assert_eq!(*policy.enforcement().borrow(), Enforcement::InForce);
}

/// Only then is all compiled anew, and what is sent for `verify --live` is what the tables were made with.
#[tokio::test]
async fn addresses_of_the_node_reach_policy_as_they_change() {
    static MOVED: AtomicUsize = AtomicUsize::new(0);
    fn moving() -> std::io::Result<Vec<Interface>> {
        let mut interfaces = machine()?;
        let (addresses, broadcast) = match MOVED.load(Ordering::Relaxed) {
            0 => (vec!["192.0.2.7"], "192.0.2.255"),
            1 => (vec!["192.0.2.7", "fe80::7"], "192.0.2.255"),
            _ => (vec!["192.0.2.7", "198.51.100.7"], "198.51.100.255"),
        };
        interfaces[0].addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        interfaces[0].broadcasts = [broadcast.parse().unwrap()].into();
        Ok(interfaces)
    }
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(false)), Cluster::empty());
    let dropped = json!({"defaultEndpointToHostAction": "Drop"});
    let configuration = object("FelixConfiguration", "default", &dropped);
    cluster.bring_object("FelixConfiguration", watcher::Event::Apply(configuration));
    cluster.bring(watcher::Event::Apply(web()));
    let policy = start_on(dir.path(), &full, &cluster, moving);
    policy.attach(endpoint()).await.unwrap();
    policy.program(EndpointId(7)).await.unwrap();
    let reaches = async |address: &str| {
        let dumped = policy.dump().await.unwrap();
        let packet = Packet {
            direction: Direction::Egress,
            peer: address.parse().unwrap(),
            inside: None,
            protocol: 6,
            source_port: 40_000,
            port: 22,
        };
        let tables = dump::read(&dumped).unwrap();
        lookup(&tables, EndpointId(7), &packet).verdict == Verdict::Allow
    };
    for closed in [
        "192.0.2.7",
        "192.0.2.255",
        "224.0.0.251",
        "255.255.255.255",
        "ff02::fb",
    ] {
        assert!(!reaches(closed).await, "{closed}");
    }
    for open in ["192.0.2.8", "198.51.100.7", "198.51.100.255", "fe80::7"] {
        assert!(reaches(open).await, "{open}");
    }

    let mut changes = policy.changes();
    changes.borrow_and_update();
    MOVED.store(1, Ordering::Relaxed);
    policy.interfaces_changed().unwrap();
    policy.settle().await.unwrap();
    assert!(!changes.has_changed().unwrap(), "an address of a link alone");
    MOVED.store(2, Ordering::Relaxed);
    policy.interfaces_changed().unwrap();
    policy.settle().await.unwrap();
    assert!(changes.has_changed().unwrap());
    for closed in ["192.0.2.7", "198.51.100.7", "198.51.100.255", "192.0.2.1"] {
        assert!(!reaches(closed).await, "{closed}");
    }
    assert!(reaches("192.0.2.255").await);
    let dumped = policy.dump().await.unwrap();
    assert!(dumped.host_addresses.contains(&"198.51.100.7".parse().unwrap()));
    assert!(dumped.host_groups.contains(&"198.51.100.255/32".parse().unwrap()));
}

/// Sooner than it would be looked for.
#[tokio::test]
async fn an_interface_that_comes_later_is_judged_when_the_kernel_tells_of_it() {
    static PLUGGED: AtomicBool = AtomicBool::new(false);
    fn plugged() -> std::io::Result<Vec<Interface>> {
        let mut interfaces = machine()?;
        interfaces.truncate(if PLUGGED.load(Ordering::Relaxed) { 2 } else { 1 });
        Ok(interfaces)
    }
    let soon = Duration::from_secs(2);
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(false)), Cluster::empty());
    let policy = start_on(dir.path(), &full, &cluster, plugged);
    let host = object(
        "HostEndpoint",
        "all",
        &json!({"node": "n1", "interfaceName": "*"}),
    );
    cluster.bring_object("HostEndpoint", watcher::Event::Apply(host));
    policy.settle().await.unwrap();
    let mut changes = policy.changes();
    changes.borrow_and_update();
    policy.interfaces_changed().unwrap();
    let quiet = tokio::time::timeout(soon / 4, changes.changed()).await;
    assert!(quiet.is_err(), "nothing has changed");

    PLUGGED.store(true, Ordering::Relaxed);
    policy.interfaces_changed().unwrap();
    // Asking what is attached would itself be a reason to look.
    let written = tokio::time::timeout(soon, changes.changed()).await;
    written.expect("it was not looked at").unwrap();
    let dumped = policy.dump().await.unwrap();
    assert_eq!(
        dumped.hosts[0].attached,
        ["eth0".to_owned(), "eth1".to_owned()].into()
    );
}

/// Neither changes what is enforced: a policy that is staged, and where a pod is that no rule tells apart.
#[tokio::test]
async fn flow_events_know_what_changes_no_table() {
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(false)), Cluster::empty());
    let (room, names) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(Names::new()));
    let policy = start_with(dir.path(), (&full, &room), &cluster, &names);
    cluster.bring(watcher::Event::Apply(web()));
    policy.attach(endpoint()).await.unwrap();
    policy.program(EndpointId(7)).await.unwrap();
    let before = names.newest();
    assert!(before.staged.is_none());

    let far: Pod = serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": "far", "uid": "u2", "resourceVersion": "6"},
        "spec": {"containers": [{"name": "c"}], "nodeName": "n2"},
        "status": {"podIP": "10.0.0.8", "podIPs": [{"ip": "10.0.0.8"}]},
    }))
    .unwrap();
    cluster.bring(watcher::Event::Apply(far));
    policy.settle().await.unwrap();
    let now = names.newest();
    assert!(now.addresses.contains_key(&"10.0.0.8".parse().unwrap()));
    assert_eq!(now.changes, before.changes, "the tables are the same");

    let spec = json!({"selector": "all()", "types": ["Ingress"]});
    let staged = object("StagedNetworkPolicy", "later", &spec);
    cluster.bring_object("StagedNetworkPolicy", watcher::Event::Apply(staged));
    policy.settle().await.unwrap();
    let now = names.newest();
    assert!(now.staged.is_some());
    assert_eq!(now.changes, before.changes, "the tables are the same");

    // And nothing is said again that is known.
    policy.settle().await.unwrap();
    assert!(Arc::ptr_eq(&now, &names.newest()));
}

/// Those of this node by the numbers under which they judge, all of them by their addresses.
#[tokio::test]
async fn flow_events_know_host_endpoints() {
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(false)), Cluster::empty());
    let (room, names) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(Names::new()));
    let policy = start_with(dir.path(), (&full, &room), &cluster, &names);
    let host = |node: &str, label: &str, address: &str| -> PolicyObject {
        let object = json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
            "metadata": {"name": format!("{node}-eth0"), "labels": {"edge": label}},
            "spec": {"node": node, "interfaceName": "eth0", "expectedIPs": [address]}});
        serde_json::from_value(object).unwrap()
    };
    let named = |node: &str, label: &str| {
        let (name, node) = (format!("{node}-eth0"), node.to_owned());
        let labels = [("edge".to_owned(), label.to_owned())].into();
        Arc::new(NamedEndpoint::new(HostRef { name, node }.into(), &labels))
    };
    let told = |address: &str| {
        names
            .newest()
            .addresses
            .get(&address.parse::<IpAddr>().unwrap())
            .cloned()
    };
    for (label, address) in [("1", "192.0.2.1"), ("2", "192.0.2.1"), ("2", "192.0.2.3")] {
        let objects = [host("n1", label, address), host("n2", label, "192.0.2.2")];
        for object in objects {
            cluster.bring_object("HostEndpoint", watcher::Event::Apply(object));
        }
        policy.settle().await.unwrap();
        assert_eq!(told(address), Some(named("n1", label)));
        assert_eq!(told("192.0.2.2"), Some(named("n2", label)));
        let dumped = policy.dump().await.unwrap();
        let own = &dumped.hosts[0];
        let known = &names.newest().endpoints;
        for id in [own.local, own.forwarded, own.untracked] {
            assert_eq!(known.get(&EndpointId(id)), Some(&named("n1", label)));
        }
        assert_eq!(known.len(), 3, "the other is on another node");
        assert_eq!(names.newest().forwarding, [EndpointId(own.forwarded)].into());
    }
    assert_eq!(told("192.0.2.1"), None, "it has another address");
    cluster.bring_object(
        "HostEndpoint",
        watcher::Event::Delete(host("n2", "2", "192.0.2.2")),
    );
    policy.settle().await.unwrap();
    assert_eq!(told("192.0.2.2"), None);
}

/// What the tables say of pods that are gone is dropped before policy is said not to fit.
#[tokio::test]
async fn tables_that_do_not_fit_are_made_anew_once() {
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(false)), Cluster::empty());
    let (room, names) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(Names::new()));
    let policy = start_with(dir.path(), (&full, &room), &cluster, &names);
    let closed = json!({"selector": "all()", "types": ["Ingress"], "ingress": [
        {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}]});
    let closed = object("NetworkPolicy", "closed", &closed);
    cluster.bring_object("NetworkPolicy", watcher::Event::Apply(closed));
    cluster.bring(watcher::Event::Apply(web()));
    policy.attach(endpoint()).await.unwrap();
    policy.program(EndpointId(7)).await.unwrap();
    let verdicts = async || policy.dump().await.unwrap().verdicts.len();
    let at_start = verdicts().await;
    for number in 0..20_u8 {
        let (name, uid) = (format!("goes-{number}"), format!("g{number}"));
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name, "uid": uid, "resourceVersion": "7"},
            "spec": {"containers": [{"name": "c"}], "nodeName": "n1"},
        }))
        .unwrap();
        let mut other = endpoint();
        other.pod.name = name;
        other.pod_uid = uid;
        other.link.id = EndpointId(100 + u32::from(number));
        other.link.addresses = vec![std::net::Ipv4Addr::new(10, 0, 1, number).into()];
        let id = other.link.id;
        cluster.bring(watcher::Event::Apply(pod.clone()));
        policy.attach(other).await.unwrap();
        policy.program(id).await.unwrap();
        cluster.bring(watcher::Event::Delete(pod));
        policy.detach(id).await.unwrap();
        policy.settle().await.unwrap();
    }
    let piled_up = verdicts().await;
    assert!(piled_up > at_start, "{piled_up}");

    room.store(at_start, Ordering::Relaxed);
    let mut labelled = web();
    labelled.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
    let mut moved = endpoint();
    moved.link.addresses = vec!["10.0.0.9".parse().unwrap()];
    policy.attach(moved).await.unwrap();
    cluster.bring(watcher::Event::Apply(labelled));
    policy.settle().await.unwrap();
    assert_eq!(*policy.enforcement().borrow(), Enforcement::InForce);
    assert_eq!(verdicts().await, at_start);
}

/// Ports that the pod was given lead to it for as long as it has its interface, those that it only asks for do not: what comes
/// there stays the node's own.
#[tokio::test]
async fn ports_that_a_pod_was_given_are_judged_as_what_is_forwarded() {
    let dir = tempfile::tempdir().unwrap();
    let (full, cluster) = (Arc::new(AtomicBool::new(false)), Cluster::empty());
    let uplink = object(
        "HostEndpoint",
        "uplink",
        &json!({"node": "n1", "interfaceName": "eth0"}),
    );
    cluster.bring_object("HostEndpoint", watcher::Event::Apply(uplink));
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": "web", "uid": "u1", "resourceVersion": "5"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": 8080}, {"containerPort": 80, "hostPort": 8081}]}]},
    }))
    .unwrap();
    let ports = api::host_ports::of(&pod);
    cluster.bring(watcher::Event::Apply(pod));
    let policy = start(dir.path(), &full, &cluster);
    let allowed = async || {
        let dumped = policy.dump().await.unwrap();
        let tables = dump::read(&dumped).unwrap();
        [8080, 8081].map(|port| {
            let packet = Packet {
                direction: Direction::Ingress,
                peer: "203.0.113.9".parse().unwrap(),
                inside: Some("192.0.2.1".parse().unwrap()),
                protocol: 6,
                source_port: 40_000,
                port,
            };
            let entry = lookup(&tables, EndpointId(dumped.hosts[0].local), &packet);
            entry.verdict == Verdict::Allow
        })
    };
    policy.settle().await.unwrap();
    assert_eq!(allowed().await, [false, false]);
    let given = Endpoint {
        host_ports: ports[..1].to_vec(),
        ..endpoint()
    };
    policy.attach(given).await.unwrap();
    policy.program(EndpointId(7)).await.unwrap();
    assert_eq!(allowed().await, [true, false]);
    assert_eq!(policy.dump().await.unwrap().endpoints[0].host_ports, ports[..1]);
    policy.detach(EndpointId(7)).await.unwrap();
    policy.settle().await.unwrap();
    assert_eq!(allowed().await, [false, false]);
}
