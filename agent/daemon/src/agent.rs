//! Puts the agent together: everything is built here, in the order in which it depends on one another.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent_images::{ImageStore, Limits, StoreConfig};
use agent_network::{GATEWAY, Ipv6, Network, NetworkConfig, PodCidr6, files};
use agent_resolver::{Limits as NameLimits, Names as LearnedNames, Resolver, ResolverConfig};
use agent_runtime::{RecoveredPod, Runtime, RuntimeConfig};
use agent_telemetry::{FOLLOWER_LAG, FlowLog, Hub, LogConfig, Names, Reader};
use anyhow::{Context as _, Result};
use ebpf_loader::{Datapath, Kernel, OBJECT};
use tokio_util::sync::CancellationToken;

use crate::{
    client,
    cluster::Cluster,
    config::Config,
    events::Events,
    hosts::Hosts,
    node::NodeAgent,
    pods::{self, Context, PodId, Pods, Survivor, directory::Directory},
    policy::{Policy, Start},
    server::NodeApi,
    sessions::Sessions,
};

/// Cgroup that all pods are beneath.
const CGROUP_ROOT: &str = "palisade";
/// Longest time to fetch one manifest or layer of an image.
const FETCH_WITHIN: Duration = Duration::from_secs(600);
/// Where the node's resolvers are.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Port of name services.
const DNS_PORT: u16 = 53;

/// Runs the agent until `shutdown`. Pods stay.
pub(crate) async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    for directory in [
        config.pods_dir(),
        config.logs_dir(),
        config.images_dir(),
        pods_run_dir(&config),
    ] {
        private_dir(&directory)?;
    }
    let client = client::connect(&config)?;
    let network = Network::open(network_config(&config))
        .await
        .context("cannot prepare the node's network")?;
    if let Ipv6::Unavailable(reason) = network.ipv6() {
        tracing::warn!(%reason, "pods of this node have IPv4 only");
    }
    let mut datapath = Kernel::open(&config.bpf_dir(), OBJECT).context("cannot load the packet programs")?;
    let runtime = open_runtime(&config)?;
    let recovered = runtime
        .recover()
        .await
        .context("cannot look for pods of an earlier agent")?;
    let survivors = reunite(recovered, &network, &mut datapath).await?;
    let images = ImageStore::open(StoreConfig {
        dir: config.images_dir(),
        layout_root: config.layout_dir.clone(),
        ca_files: config.registry_ca_files.clone(),
        limits: Limits::default(),
        timeout: FETCH_WITHIN,
    })
    .context("cannot open the image store")?;

    let node = config.node_name.clone();
    let log = LogConfig::sized(config.flows_dir(), node.clone(), config.flow_log_max_bytes);
    let log = FlowLog::open(log).context("cannot keep the flow log")?;
    let hub = Arc::new(Hub::new(log, node, FOLLOWER_LAG));
    let names = Arc::new(Names::new());
    let source = datapath.flow_source().context("cannot read flow events")?;
    let _reader = Reader::start(source, names.clone(), hub.clone(), config.node_name.clone())?;
    let cluster = Cluster::start(&client, &shutdown);
    let learned = Arc::new(LearnedNames::open(NameLimits::default(), config.names_file()));
    let host_addresses: BTreeSet<IpAddr> = network
        .node_addresses()
        .all()
        .chain([IpAddr::V4(GATEWAY)])
        .collect();
    let hosts = Hosts::start(&mut datapath, host_addresses.clone())
        .context("cannot read which host endpoints are attached")?;
    let start = Start {
        datapath: Box::new(datapath),
        hosts,
        cluster: cluster.clone(),
        node: config.node_name.clone(),
        host_addresses,
        endpoints: survivors.iter().filter_map(endpoint).collect(),
        names,
        learned: learned.clone(),
        hub: hub.clone(),
    };
    let policy = Policy::start(start, shutdown.clone()).context("cannot start the policy thread")?;
    let of_node = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    start_resolver(&config, &of_node, &network, learned, &policy, shutdown.clone())?;
    let events = Events::start(client.clone(), config.node_name.clone(), shutdown.clone());
    let directory = Directory::default();
    let sessions = Sessions::new(runtime.clone());
    let api = NodeApi::new(
        Arc::new(config.clone()),
        directory.clone(),
        hub,
        policy.clone(),
        sessions,
    );
    api.start(shutdown.clone()).await?;
    let node = NodeAgent::new(
        client.clone(),
        config.clone(),
        &network,
        policy.enforcement(),
        events.clone(),
    );
    let node = tokio::spawn(node.run(shutdown.clone()));
    tokio::spawn(crate::local_volumes::run(
        client.clone(),
        config.clone(),
        shutdown.clone(),
    ));

    let context = Context {
        client,
        cluster,
        runtime,
        images,
        network,
        policy,
        events,
        directory,
        ids: Default::default(),
        tokens: Default::default(),
        resolv_conf: files::resolv_conf(&of_node, GATEWAY),
        config,
    };
    Pods::new(Arc::new(context)).run(survivors, shutdown).await;
    node.await.context("the node's task died")
}

/// Removes everything that agents with this configuration have made: pods, links, programs, mounts. State
/// that costs nothing to keep stays: images, logs are removed with their pods.
pub(crate) async fn cleanup(config: &Config) -> Result<()> {
    let runtime = open_runtime(config)?;
    for pod in runtime.recover().await.context("cannot look for pods")? {
        let uid = &pod.config.uid;
        runtime
            .remove_pod(uid)
            .await
            .with_context(|| format!("cannot remove pod {uid}"))?;
    }
    Network::remove(&config.network_state(), config.pod_cidr)
        .await
        .context("cannot remove the network")?;
    if config.bpf_dir().exists() {
        let datapath = Kernel::open(&config.bpf_dir(), OBJECT).context("cannot open the packet programs")?;
        datapath.unload().context("cannot remove the packet programs")?;
    }
    pods::sweep(config, &BTreeSet::new()).context("cannot remove volumes")?;
    Ok(())
}

fn open_runtime(config: &Config) -> Result<Runtime> {
    let exe = std::env::current_exe().context("cannot find my own program")?;
    let settings = RuntimeConfig {
        exe,
        state_dir: config.agent_dir.join("writable"),
        run_dir: pods_run_dir(config),
        cgroup_root: CGROUP_ROOT.to_owned(),
    };
    Ok(Runtime::new(settings)?)
}

fn pods_run_dir(config: &Config) -> PathBuf {
    config.run_dir.join("pods")
}

fn network_config(config: &Config) -> NetworkConfig {
    NetworkConfig {
        pod_cidr: config.pod_cidr,
        pod_cidr6: config.pod_cidr6.map(|cidr| PodCidr6 {
            cidr,
            required: config.ipv6_required,
        }),
        node_address: config.node_address,
        state_file: config.network_state(),
    }
}

/// Joins pods with their interfaces, and removes the interfaces of pods that are no more.
async fn reunite(
    recovered: Vec<RecoveredPod>,
    network: &Network,
    datapath: &mut Kernel,
) -> Result<Vec<Survivor>> {
    let alive: BTreeSet<&str> = recovered.iter().map(|pod| pod.config.uid.as_str()).collect();
    let attached = datapath.attached().context("cannot list attached programs")?;
    for lease in network.leased() {
        if !alive.contains(lease.pod_uid.as_str()) {
            tracing::info!(link = lease.link, "releasing the network of a pod that is gone");
            network.release(&lease.pod_uid).await?;
        }
    }
    let mut survivors = Vec::new();
    for pod in recovered {
        let attachment = network.find(&pod.config.uid).await?;
        // An interface that is not judged is as good as none: the pod gets a new one.
        let judged = |attachment: &agent_network::Attachment| {
            attached
                .iter()
                .any(|link| link.id == attachment.endpoint && link.ifindex == attachment.ifindex)
        };
        let attachment = attachment.filter(judged);
        survivors.push(Survivor { pod, attachment });
    }
    for link in attached {
        let known = survivors
            .iter()
            .filter_map(|survivor| survivor.attachment.as_ref());
        if !known.clone().any(|attachment| attachment.endpoint == link.id) {
            datapath
                .detach(link.id)
                .context("cannot detach the programs of a pod that is gone")?;
        }
    }
    Ok(survivors)
}

fn endpoint(survivor: &Survivor) -> Option<crate::policy::Endpoint> {
    let config = &survivor.pod.config;
    let id = PodId {
        uid: config.uid.clone(),
        namespace: config.namespace.clone(),
        name: config.name.clone(),
    };
    survivor
        .attachment
        .as_ref()
        .map(|attachment| pods::endpoint(&id, attachment))
}

/// Serves names to the pods of this node.
fn start_resolver(
    config: &Config,
    of_node: &str,
    network: &Network,
    learned: Arc<LearnedNames>,
    policy: &Policy,
    shutdown: CancellationToken,
) -> Result<()> {
    let mut upstreams = config.dns_upstreams.clone();
    if upstreams.is_empty() {
        let of_node = files::nameservers(of_node).into_iter();
        upstreams = of_node.map(|server| SocketAddr::new(server, DNS_PORT)).collect();
    }
    let pods = std::iter::once(ipnet::IpNet::V4(config.pod_cidr));
    let config = ResolverConfig {
        listen: SocketAddr::new(IpAddr::V4(GATEWAY), DNS_PORT),
        upstreams,
        clients: pods.chain(network.ipv6().cidr().map(ipnet::IpNet::V6)).collect(),
    };
    let policy = policy.clone();
    let settle = Arc::new(move || {
        let policy = policy.clone();
        let settled = async move {
            policy
                .settle()
                .await
                .map_err(|error| crate::policy::chain(&error))
        };
        Box::pin(settled) as futures::future::BoxFuture<'static, Result<(), String>>
    });
    Resolver::start(config, learned, settle, shutdown).context("cannot start the pods' name service")
}

fn private_dir(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.with_context(|| format!("cannot create {}", path.display()))
}
