//! Puts the agent together: everything is built here, in the order in which it depends on one another.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    os::unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent_images::{GcPolicy, ImageStore, StoreConfig};
use agent_network::{GATEWAY, Ipv6, Network, NetworkConfig, PodCidr6, files};
use agent_resolver::{Limits as NameLimits, Names as LearnedNames, Resolver, ResolverConfig};
use agent_runtime::{RecoveredPod, Runtime, RuntimeConfig};
use agent_telemetry::{FOLLOWER_LAG, FlowLog, Hub, LogConfig, Names, Reader};
use anyhow::{Context as _, Result, bail};
use control_pki::verdict::Verifier;
use ebpf_loader::{Datapath, Kernel, OBJECT};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use crate::learn::Learner;
use crate::{
    certificates, client,
    cluster::Cluster,
    config::Config,
    events::Events,
    guards,
    hosts::{self, Hosts},
    images,
    node::{Health, NodeAgent},
    node_shutdown,
    pods::{self, Context, Pods, Survivor, directory::Directory, evictions::Evictions, roster::Roster},
    policy::{Policy, Start},
    pressure,
    quiet::Quiet,
    server::NodeApi,
    sessions::Sessions,
    static_pods::StaticPods,
    stats::Stats,
};

/// Cgroup that all pods are beneath.
const CGROUP_ROOT: &str = "palisade";
/// Longest time to fetch one manifest or layer of an image.
const FETCH_WITHIN: Duration = Duration::from_secs(600);
/// Where the node's resolvers are.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Port of name services.
const DNS_PORT: u16 = 53;

/// Runs the agent until `shutdown`. Pods stay, unless `node_ends` comes first: then they end, and the agent after them.
pub(crate) async fn run(
    config: Config,
    shutdown: CancellationToken,
    node_ends: CancellationToken,
) -> Result<Ended> {
    for directory in [
        config.pods_dir(),
        config.logs_dir(),
        config.images_dir(),
        pods_run_dir(&config),
    ] {
        private_dir(&directory)?;
    }
    certificates::ensure(&config, &shutdown).await?;
    if shutdown.is_cancelled() {
        return Ok(Ended::ForGood);
    }
    let client = client::connect(&config)?;
    let verdicts = Verifier::load(&config.agent_dir.join("tls"))?;
    let network = Network::open(network_config(&config))
        .await
        .context("cannot prepare the node's network")?;
    if let Ipv6::Unavailable(reason) = network.ipv6() {
        tracing::warn!(%reason, "pods of this node have IPv4 only");
    }
    let limits = ebpf_loader::Limits {
        direct: config.direct_pod_traffic,
        ..ebpf_loader::Limits::default()
    };
    let mut datapath = Kernel::open_with_limits(&config.bpf_dir(), OBJECT, limits)
        .context("cannot load the packet programs")?;
    let runtime = open_runtime(&config)?;
    let recovered = runtime
        .recover()
        .await
        .context("cannot look for pods of an earlier agent")?;
    let survivors = reunite(recovered, &config, &network, &mut datapath).await?;
    let images = ImageStore::open(StoreConfig {
        dir: config.images_dir(),
        layout_root: config.layout_dir.clone(),
        ca_files: config.registry_ca_files.clone(),
        hosts_dir: config.registry_config_dir.clone(),
        limits: config.image_limits,
        timeout: FETCH_WITHIN,
    })
    .context("cannot open the image store")?;
    let images = Arc::new(images);

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
    let hosts = Hosts::start(&mut datapath, host_addresses)
        .context("cannot read which host endpoints are attached")?;
    let start = Start {
        datapath: Box::new(datapath),
        hosts,
        cluster: cluster.clone(),
        node: config.node_name.clone(),
        endpoints: survivors.iter().filter_map(endpoint).collect(),
        names,
        pod_ranges: pod_ranges(&config, &network),
        learned: learned.clone(),
        hub: hub.clone(),
    };
    let policy = Policy::start(start, shutdown.clone()).context("cannot start the policy thread")?;
    let following = hosts::follow(policy.clone());
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(following));
    let network = Arc::new(network);
    let guarding = guards::look_after(network.clone(), policy.clone());
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(guarding));
    let of_node = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    start_resolver(&config, &of_node, &network, learned, &policy, shutdown.clone())?;
    let events = Events::start(client.clone(), config.node_name.clone(), shutdown.clone());
    let directory = Directory::default();
    pods::announce(&survivors, &directory);
    let roster = Roster::new(cluster.clone(), directory.clone(), Arc::new(config.clone()));
    let sessions = Sessions::new(runtime.clone());
    let stats = Stats::start(
        &config,
        runtime.clone(),
        cluster.clone(),
        directory.clone(),
        shutdown.clone(),
    );
    let api = NodeApi::new(
        Arc::new(config.clone()),
        directory.clone(),
        hub,
        policy.clone(),
        sessions,
        Learner::new(runtime.clone()),
        stats.clone(),
    );
    api.start(shutdown.clone()).await?;
    let claims = stats.claims().clone();
    let evictions = Evictions::default();
    let collector = images::Collector::new(config.node_name.clone(), cluster.clone(), images.clone());
    let pressures = pressure::start(
        config.eviction,
        stats,
        collector.clone(),
        roster.clone(),
        evictions.clone(),
        shutdown.clone(),
    );
    let node = NodeAgent::new(
        (client.clone(), cluster.clone()),
        config.clone(),
        &network,
        Health {
            enforcement: policy.enforcement(),
            host_counts: policy.host_counts(),
            pressures,
            ends: node_ends.clone(),
        },
        events.clone(),
    );
    let node = tokio::spawn(node.run(shutdown.clone()));
    let keeper = images::Keeper {
        client: client.clone(),
        node: config.node_name.clone(),
        dir: config.images_dir(),
        policy: GcPolicy {
            high_percent: config.image_gc_high_percent,
            low_percent: config.image_gc_low_percent,
            min_age: Duration::from_secs(config.image_gc_min_age_seconds),
        },
        collector,
        events: events.clone(),
    };
    tokio::spawn(keeper.run(shutdown.clone()));
    let (grace, ending) = (config.node_shutdown, (directory.clone(), evictions.clone()));
    let end = shutdown.clone();
    tokio::spawn(async move {
        let (directory, evictions) = ending;
        node_ends.cancelled().await;
        node_shutdown::end_pods(grace, &roster, &directory, &evictions).await;
        tracing::info!("pods have ended; stopping");
        end.cancel();
    });
    tokio::spawn(crate::local_volumes::run(
        client.clone(),
        config.clone(),
        shutdown.clone(),
    ));

    let renewed = CancellationToken::new();
    let renewing = (config.clone(), client.clone(), renewed.clone(), shutdown.clone());
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
        let (config, client, renewed, shutdown) = renewing;
        certificates::renew(&config, &client).await;
        renewed.cancel();
        shutdown.cancel();
    }));

    let static_pods = StaticPods::start(client.clone(), cluster.clone(), &config, shutdown.clone()).await;
    let context = Context {
        client,
        cluster,
        runtime,
        images,
        verdicts,
        network,
        policy,
        events,
        directory,
        static_pods,
        ids: pods::ids(&survivors),
        evictions,
        full: Default::default(),
        claims,
        tokens: Default::default(),
        last_known: Default::default(),
        quiet: Quiet::start(agent_runtime::memory::give_back, shutdown.clone()),
        resolv_conf: files::resolv_conf(&of_node, GATEWAY),
        config,
    };
    Pods::new(Arc::new(context)).run(survivors, shutdown).await;
    node.await.context("the node's task died")?;
    Ok(match renewed.is_cancelled() {
        true => Ended::ToBeginAnew,
        false => Ended::ForGood,
    })
}

/// Why the agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was told to.
    ForGood,
    /// There are new certificates.
    ToBeginAnew,
}

impl Ended {
    /// Becomes a fresh agent, in the same process as far as others can tell, if that is why this one ended.
    pub(crate) fn begin_anew(self) -> Result<()> {
        if self == Self::ForGood {
            return Ok(());
        }
        tracing::info!("beginning anew with new certificates");
        let program = std::env::current_exe().context("cannot find my own program")?;
        agent_runtime::open_files::restore().context("cannot lower the number of open files")?;
        let error = std::process::Command::new(program)
            .args(std::env::args_os().skip(1))
            .exec();
        Err(error).context("cannot begin anew")
    }
}

/// Removes everything that agents with this configuration have made: pods, links, programs, mounts. State
/// that costs nothing to keep stays: images, logs are removed with their pods.
pub(crate) async fn cleanup(config: &Config) -> Result<()> {
    let runtime = open_runtime(config)?;
    let mut left = Ok(());
    for pod in runtime.recover().await.context("cannot look for pods")? {
        let uid = &pod.config.uid;
        let removed = runtime.remove_pod(uid).await;
        left = left.and(removed.with_context(|| format!("cannot remove pod {uid}")));
    }
    // One that cannot be ended keeps its network, and keeps no other pod.
    left?;
    Network::remove(&config.network_state(), config.pod_cidr)
        .await
        .context("cannot remove the network")?;
    if config.bpf_dir().exists() {
        let datapath = Kernel::open(&config.bpf_dir(), OBJECT).context("cannot open the packet programs")?;
        datapath.unload().context("cannot remove the packet programs")?;
    }
    let trash = runtime.trash();
    pods::sweep(config, &pods::Known::default(), trash).context("cannot remove volumes")?;
    // Whoever cleans up wants nothing to be left, so this waits.
    trash
        .emptied()
        .await
        .context("cannot remove what pods have written")
}

fn open_runtime(config: &Config) -> Result<Runtime> {
    let own = std::env::current_exe().context("cannot find my own program")?;
    let shim = own.with_file_name("palisade-shim");
    if !shim.is_file() {
        bail!(
            "{} is missing: no pod can start without it; install it beside palisade-agent",
            shim.display()
        );
    }
    let settings = RuntimeConfig {
        shim,
        state_dir: config.writable_dir(),
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
    config: &Config,
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
        // An interface that is not judged, or was never finished, is as good as none: the pod gets a new one.
        let judged = |attachment: &agent_network::Attachment| {
            attached
                .iter()
                .any(|link| link.id == attachment.endpoint && link.ifindex == attachment.ifindex)
        };
        let attachment = attachment.filter(judged);
        let mut survivor = Survivor { pod, attachment };
        if !pods::is_attached(&survivor.id(), config) {
            survivor.attachment = None;
        }
        survivors.push(survivor);
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
    let attachment = survivor.attachment.as_ref()?;
    Some(pods::endpoint(&survivor.id(), attachment))
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
    let clients = pod_ranges(config, network);
    let config = ResolverConfig {
        listen: SocketAddr::new(IpAddr::V4(GATEWAY), DNS_PORT),
        upstreams,
        clients,
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

/// Addresses that pods of this node have, or may have.
fn pod_ranges(config: &Config, network: &Network) -> Vec<IpNet> {
    let v6 = network.ipv6().cidr().map(IpNet::V6);
    std::iter::once(IpNet::V4(config.pod_cidr)).chain(v6).collect()
}

fn private_dir(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.with_context(|| format!("cannot create {}", path.display()))
}
