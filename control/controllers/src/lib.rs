//! The control plane's own loops: scheduling, node lifecycle, namespaces, claims and their volumes, what stands behind
//! services, disruption budgets, old events, and what nobody owns any more.
//!
//! They are ordinary clients of the API server, with a certificate of their own and no way around its
//! checks. Each loop is level-triggered: it compares what is with what should be, on every change and on a
//! timer, and remembers nothing that it could not find out again. Decisions are pure functions beside each
//! loop. Non-goals: replicas, rollouts, several control planes at once.
//!
//! Start at [`run`].

#![forbid(unsafe_code)]

mod backoff;
mod cache;
mod certificates;
mod client;
mod disruption;
mod endpoint_slices;
mod event_ttl;
mod garbage;
mod namespaces;
mod nodes;
mod recorder;
mod requests;
mod root_ca;
mod scheduling;
mod signing;
mod taints;
mod volumes;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use k8s_openapi::api::{
    certificates::v1::CertificateSigningRequest,
    coordination::v1::Lease,
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use client::{ClientFiles, ConnectError, connect};
pub use signing::sign;

use cache::Cache;
use recorder::Recorder;

/// Namespace of the nodes' heartbeats.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// How patient the loops are with nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A node that was silent for longer is no longer known to be ready.
    pub heartbeat_limit: Duration,
    /// Pods stay on a silent node for this much longer, unless their tolerations say otherwise.
    pub evict_after: Duration,
    /// Time between two looks at the nodes.
    pub node_interval: Duration,
}

impl Default for Timing {
    /// Kubernetes' own: 40 s, 5 minutes, 5 s.
    fn default() -> Self {
        Self {
            heartbeat_limit: Duration::from_secs(40),
            evict_after: Duration::from_secs(300),
            node_interval: Duration::from_secs(5),
        }
    }
}

/// By what clients know the API server.
#[derive(Debug, Clone, Default)]
pub struct ApiServer {
    /// Its authority, PEM, which every namespace gets.
    pub root_ca: String,
    /// Addresses that its certificate names: no node gets a certificate for them by itself.
    pub addresses: BTreeSet<IpAddr>,
}

/// Why the loops ended before they were told to.
#[derive(Debug, thiserror::Error)]
pub enum ControllersError {
    /// A loop panicked; the others were stopped.
    #[error("a controller loop panicked")]
    Panicked(#[source] tokio::task::JoinError),
    /// A loop returned; the others were stopped.
    #[error("a controller loop ended")]
    Ended,
}

/// Runs all loops until `shutdown`. Failures to reach the API server are retried for ever; an error means a
/// defect in a loop, and that the caller should end the process rather than run without it.
///
pub async fn run(
    client: Client,
    api: ApiServer,
    shutdown: CancellationToken,
) -> Result<(), ControllersError> {
    run_with(client, api, Timing::default(), shutdown).await
}

/// [`run`] with other timing.
pub async fn run_with(
    client: Client,
    api: ApiServer,
    timing: Timing,
    shutdown: CancellationToken,
) -> Result<(), ControllersError> {
    let mut tasks = JoinSet::new();
    let pods: Cache<Pod> = Cache::spawn(&mut tasks, &shutdown, Api::all(client.clone()));
    let nodes: Cache<Node> = Cache::spawn(&mut tasks, &shutdown, Api::all(client.clone()));
    let leases: Cache<Lease> = Cache::spawn(
        &mut tasks,
        &shutdown,
        Api::namespaced(client.clone(), LEASE_NAMESPACE),
    );
    let namespaces: Cache<Namespace> = Cache::spawn(&mut tasks, &shutdown, Api::all(client.clone()));
    let accounts: Cache<ServiceAccount> = Cache::spawn(&mut tasks, &shutdown, Api::all(client.clone()));
    let services: Cache<Service> = Cache::spawn(&mut tasks, &shutdown, Api::all(client.clone()));
    let slices: Cache<EndpointSlice> = Cache::spawn(&mut tasks, &shutdown, Api::all(client.clone()));

    let requests: Cache<CertificateSigningRequest> =
        Cache::spawn(&mut tasks, &shutdown, Api::all(client.clone()));
    let budgets: Cache<PodDisruptionBudget> = Cache::spawn(&mut tasks, &shutdown, Api::all(client.clone()));
    let storage = volumes::Caches {
        claims: Cache::spawn(&mut tasks, &shutdown, Api::all(client.clone())),
        volumes: Cache::spawn(&mut tasks, &shutdown, Api::all(client.clone())),
        classes: Cache::spawn(&mut tasks, &shutdown, Api::all(client.clone())),
    };

    let recorder = |component| Recorder::new(client.clone(), component);
    let scheduling = scheduling::run(
        client.clone(),
        recorder("palisade-scheduler"),
        pods.clone(),
        nodes.clone(),
        storage.clone(),
    );
    let volumes = volumes::run(
        client.clone(),
        recorder("persistentvolume-controller"),
        storage,
        pods.clone(),
        nodes.clone(),
    );
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(volumes));
    let endpoint_slices = endpoint_slices::run(
        client.clone(),
        endpoint_slices::Caches {
            services,
            pods: pods.clone(),
            slices,
        },
    );
    let disruption = disruption::run(
        client.clone(),
        disruption::Caches {
            budgets,
            pods: pods.clone(),
        },
    );
    let certificates = certificates::run(
        client.clone(),
        recorder("csr-approver"),
        certificates::Caches {
            requests,
            nodes: nodes.clone(),
        },
        api.addresses,
    );
    let lifecycle = nodes::run(
        client.clone(),
        recorder("node-controller"),
        timing,
        nodes::Caches { nodes, leases, pods },
    );
    let maps = root_ca::spawn(&mut tasks, &shutdown, &client);
    let root_ca = root_ca::run(client.clone(), api.root_ca, namespaces.clone(), maps);
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(root_ca));
    let namespaces = namespaces::run(client.clone(), namespaces, accounts);
    let objects = garbage::spawn(&mut tasks, &shutdown, &client);
    let garbage = garbage::run(client.clone(), objects);
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(garbage));
    let events = event_ttl::run(client);
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(scheduling));
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(lifecycle));
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(endpoint_slices));
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(certificates));
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(disruption));
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(namespaces));
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(events));

    // Dropping the set on an early return stops the other loops.
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(ControllersError::Panicked)?;
        if !shutdown.is_cancelled() {
            return Err(ControllersError::Ended);
        }
    }
    Ok(())
}
