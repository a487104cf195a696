//! The thread that owns the datapath, over a datapath that can be full.

use std::sync::atomic::{AtomicBool, Ordering};

use agent_resolver::Limits;
use agent_telemetry::{FlowLog, LogConfig};
use ebpf_loader::{Counters, Expired, Fake, FlowSource, HostLink, Synced};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use serde_json::json;

use super::*;

/// A [`Fake`] whose maps are full for as long as it is said.
struct Narrow {
    inner: Fake,
    full: Arc<AtomicBool>,
}

impl Datapath for Narrow {
    fn sync(&mut self, tables: &NodeTables) -> Result<Synced, DatapathError> {
        match self.full.load(Ordering::Relaxed) {
            true => Err(DatapathError::Full {
                map: "VERDICTS",
                needed: 12,
                limit: 10,
            }),
            false => self.inner.sync(tables),
        }
    }

    fn attach(&mut self, link: &EndpointLink) -> Result<(), DatapathError> {
        self.inner.attach(link)
    }

    fn detach(&mut self, endpoint: EndpointId) -> Result<(), DatapathError> {
        self.inner.detach(endpoint)
    }

    fn attach_host(&mut self, link: &HostLink) -> Result<(), DatapathError> {
        self.inner.attach_host(link)
    }

    fn attached_hosts(&mut self) -> Result<Vec<HostLink>, DatapathError> {
        self.inner.attached_hosts()
    }

    fn attached(&mut self) -> Result<Vec<EndpointLink>, DatapathError> {
        self.inner.attached()
    }

    fn keep_established(&mut self, endpoint: EndpointId, keep: bool) -> Result<(), DatapathError> {
        self.inner.keep_established(endpoint, keep)
    }

    fn expire(&mut self, now: Duration) -> Result<Expired, DatapathError> {
        self.inner.expire(now)
    }

    fn dump(&self) -> Result<NodeTables, DatapathError> {
        self.inner.dump()
    }

    fn peers_in_use(&mut self) -> Result<BTreeSet<IpAddr>, DatapathError> {
        self.inner.peers_in_use()
    }

    fn counters(&mut self) -> Result<Counters, DatapathError> {
        self.inner.counters()
    }

    fn flow_source(&mut self) -> Result<Box<dyn FlowSource>, DatapathError> {
        self.inner.flow_source()
    }
}

fn start(dir: &std::path::Path, full: &Arc<AtomicBool>, cluster: &Cluster) -> Policy {
    let mut datapath = Narrow {
        inner: Fake::new(),
        full: Arc::clone(full),
    };
    let log = FlowLog::open(LogConfig::sized(dir.join("flows"), "n1".to_owned(), 1 << 20)).unwrap();
    let start = Start {
        hosts: Hosts::start(&mut datapath, BTreeSet::new()).unwrap(),
        datapath: Box::new(datapath),
        cluster: cluster.clone(),
        node: "n1".to_owned(),
        host_addresses: BTreeSet::new(),
        endpoints: Vec::new(),
        names: Arc::new(Names::new()),
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
