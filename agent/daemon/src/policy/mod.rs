//! Keeps the kernel's verdicts equal to the cluster's policies.
//!
//! One thread owns the datapath: its calls are short system calls that must not interleave. It hands what changed
//! (objects of the cluster, endpoints that come and go) to the compiler's session ([`followed`]), and writes what that
//! changes of the tables; many changes are answered at once. A failed attempt leaves the old verdicts in force and is
//! repeated.

mod bare;
mod followed;
mod in_use;
mod inside;
mod looks;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use agent_resolver::{InUse, Names as LearnedNames};
use agent_telemetry::{Hub, Names};
use api::{
    flow::PodRef,
    host_ports::HostPort,
    node_policy::{HostCounts, Mac, NodeEndpoint, NodePolicy, WayRow},
};
use bare::Bare;
use ebpf_loader::{Counters, Datapath, DatapathError, EndpointLink, Synced, Way, monotonic_now};
use followed::Followed;
use inside::Inside;
use ipnet::IpNet;
use looks::Looks;
use policies_compiler::{
    Settled,
    capacity::{self, Capacities, Exceeded},
};
use policies_ir::{
    dump,
    policy::DomainMatch,
    ports::PortSet,
    tables::{EndpointId, NodeTables},
};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{cluster::Cluster, hosts::Hosts};

/// How often flows that are over are forgotten.
const EXPIRE_EVERY: Duration = Duration::from_secs(5);
/// Delay before a failed change of the tables is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Longest wait for an endpoint's verdicts: a pod whose object went away meanwhile never gets any.
const PROGRAM_WITHIN: Duration = Duration::from_secs(5);

/// Sends work to the thread that owns the datapath. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Policy {
    commands: mpsc::Sender<Command>,
    enforcement: watch::Receiver<Enforcement>,
    changes: watch::Receiver<u64>,
    host_counts: watch::Receiver<Option<HostCounts>>,
}

/// Whether the kernel judges by the policy that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Enforcement {
    /// Nothing was written yet, or the tables of an earlier agent judge.
    NotYet,
    /// It does.
    InForce,
    /// It judges by an older one; for people, why.
    Behind(String),
}

/// A pod of this node as the datapath knows it.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) pod: PodRef,
    pub(crate) pod_uid: String,
    pub(crate) link: EndpointLink,
    /// Ports of the node that lead to the pod, or will: those that are kept for it.
    pub(crate) host_ports: Vec<HostPort>,
}

/// Why a pod's network cannot be judged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("the packet programs")]
    Datapath(#[from] DatapathError),
    #[error("the policy tables could not be written: {0}")]
    Sync(String),
    #[error("no policy tables for the pod within {waited:?}")]
    Timeout { waited: Duration },
    #[error("the thread that owns the packet programs has ended")]
    Ended,
}

/// What the datapath's thread starts with.
pub(crate) struct Start {
    pub(crate) datapath: Box<dyn Datapath>,
    /// What is attached to interfaces of the host.
    pub(crate) hosts: Hosts,
    pub(crate) cluster: Cluster,
    /// Name of this node.
    pub(crate) node: String,
    /// Endpoints that an earlier agent left behind and whose pods live: known before the first change of
    /// the tables, so that it does not cut them off.
    pub(crate) endpoints: Vec<Endpoint>,
    /// Gets the names of each epoch, for flow events.
    pub(crate) names: Arc<Names>,
    /// Addresses of this node's pods.
    pub(crate) pod_ranges: Vec<IpNet>,
    /// Names of addresses that pods were told; hears which are wanted.
    pub(crate) learned: Arc<LearnedNames>,
    /// Hears of events that the kernel could not report.
    pub(crate) hub: Arc<Hub>,
}

enum Command {
    Attach(Endpoint, oneshot::Sender<Result<(), DatapathError>>),
    Detach(EndpointId, oneshot::Sender<Result<(), DatapathError>>),
    /// Answered when a compilation that knows the endpoint is in the kernel.
    Program(EndpointId, oneshot::Sender<Result<(), String>>),
    Dump(oneshot::Sender<Result<NodePolicy, DatapathError>>),
    Count(oneshot::Sender<Result<Counters, DatapathError>>),
    /// TCP ports that a pod may connect to at all.
    Ports(PodRef, oneshot::Sender<Option<PortSet>>),
    /// Answered when a compilation that knows all learned names is in the kernel.
    Settle(oneshot::Sender<Result<(), String>>),
    Stale,
    /// Interfaces or addresses of the host may be others.
    Moved,
    /// What of the node's nftables table was not there, if something was not.
    Unguarded(Option<String>),
}

impl Policy {
    /// Starts the thread. It ends, leaving the kernel as it is, when the last [`Policy`] is dropped.
    pub(crate) fn start(start: Start, shutdown: CancellationToken) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let mut changes = start.cluster.changes();
        let (enforcement, enforced) = watch::channel(Enforcement::NotYet);
        let (written, changed) = watch::channel(0);
        let (host_counts, counted) = watch::channel(None);
        let mut followed = Followed::new(start.node.clone());
        for endpoint in start.endpoints {
            followed.attached(endpoint, &start.cluster);
        }
        let worker = Worker {
            datapath: start.datapath,
            hosts: start.hosts,
            cluster: start.cluster,
            node: start.node,
            followed,
            unwritten: true,
            worn: false,
            untold: true,
            synced: BTreeMap::new(),
            enforcement,
            written,
            host_counts,
            wanted: None,
            inside: Inside::new(start.pod_ranges),
            names: start.names,
            learned: start.learned,
            settling: Vec::new(),
            hub: start.hub,
            waiting: Vec::new(),
            looks: Looks::default(),
            bare: Bare::default(),
            unguarded: None,
        };
        std::thread::Builder::new()
            .name("datapath".to_owned())
            .spawn(move || worker.run(&inbox))?;
        let stale = commands.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = shutdown.cancelled() => return,
                }
                if stale.send(Command::Stale).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            commands,
            enforcement: enforced,
            changes: changed,
            host_counts: counted,
        })
    }

    /// Follows whether the kernel judges by the policy that is known.
    pub(crate) fn enforcement(&self) -> watch::Receiver<Enforcement> {
        self.enforcement.clone()
    }

    /// Follows how many interfaces and addresses the host has, once it was looked.
    pub(crate) fn host_counts(&self) -> watch::Receiver<Option<HostCounts>> {
        self.host_counts.clone()
    }

    /// Attaches the programs to a pod's link: from here on everything is denied until
    /// [`Policy::program`] has answered.
    pub(crate) async fn attach(&self, endpoint: Endpoint) -> Result<(), PolicyError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Attach(endpoint, reply))?;
        Ok(answer.await.map_err(|_ended| PolicyError::Ended)??)
    }

    /// Puts the endpoint's verdicts into the kernel.
    pub(crate) async fn program(&self, endpoint: EndpointId) -> Result<(), PolicyError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Program(endpoint, reply))?;
        let answer = tokio::time::timeout(PROGRAM_WITHIN, answer).await;
        let answer = answer.map_err(|_elapsed| PolicyError::Timeout {
            waited: PROGRAM_WITHIN,
        })?;
        answer
            .map_err(|_ended| PolicyError::Ended)?
            .map_err(PolicyError::Sync)
    }

    /// TCP ports that egress policy lets a pod connect to at all, as of the last change; nothing for a pod that is not
    /// known yet.
    pub(crate) async fn egress_tcp_ports(&self, pod: PodRef) -> Result<Option<PortSet>, PolicyError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Ports(pod, reply))?;
        answer.await.map_err(|_ended| PolicyError::Ended)
    }

    /// Follows changes of what the kernel judges by: their number.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Waits until the verdicts in the kernel know every name that was learned before the call.
    pub(crate) async fn settle(&self) -> Result<(), PolicyError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Settle(reply))?;
        answer
            .await
            .map_err(|_ended| PolicyError::Ended)?
            .map_err(PolicyError::Sync)
    }

    /// Tells that interfaces or addresses of the host may be others: it is looked at once, not at the next time of many.
    pub(crate) fn interfaces_changed(&self) -> Result<(), PolicyError> {
        self.send(Command::Moved)
    }

    /// Tells why the rules beside the packet programs, which keep others from speaking as pods, did not stand, or that they do.
    pub(crate) fn unguarded(&self, why: Option<String>) -> Result<(), PolicyError> {
        self.send(Command::Unguarded(why))
    }

    /// Takes the programs off and forgets the endpoint's verdicts and flows. The link must be gone.
    pub(crate) async fn detach(&self, endpoint: EndpointId) -> Result<(), PolicyError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Detach(endpoint, reply))?;
        Ok(answer.await.map_err(|_ended| PolicyError::Ended)??)
    }

    /// What the kernel holds now.
    pub(crate) async fn dump(&self) -> Result<NodePolicy, PolicyError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Dump(reply))?;
        Ok(answer.await.map_err(|_ended| PolicyError::Ended)??)
    }

    /// What the kernel has counted.
    pub(crate) async fn counters(&self) -> Result<Counters, PolicyError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Count(reply))?;
        Ok(answer.await.map_err(|_ended| PolicyError::Ended)??)
    }

    fn send(&self, command: Command) -> Result<(), PolicyError> {
        self.commands.send(command).map_err(|_ended| PolicyError::Ended)
    }
}

struct Worker {
    datapath: Box<dyn Datapath>,
    hosts: Hosts,
    cluster: Cluster,
    node: String,
    followed: Followed,
    /// Whether the kernel has to be given something.
    unwritten: bool,
    /// Whether the kernel's tables are to be written anew, so much has piled up in them.
    worn: bool,
    /// Whether flow events would not speak of pods, rules and staged policies as they are.
    untold: bool,
    /// Change that each endpoint follows.
    synced: BTreeMap<EndpointId, u32>,
    enforcement: watch::Sender<Enforcement>,
    /// How often what is judged by, or what is said of it, became another.
    written: watch::Sender<u64>,
    host_counts: watch::Sender<Option<HostCounts>>,
    /// Patterns of names that rules and sets ask for, once the resolver has heard of them.
    wanted: Option<BTreeSet<DomainMatch>>,
    /// Addresses that no name leads to.
    inside: Inside,
    names: Arc<Names>,
    learned: Arc<LearnedNames>,
    settling: Vec<oneshot::Sender<Result<(), String>>>,
    hub: Arc<Hub>,
    waiting: Vec<(EndpointId, oneshot::Sender<Result<(), String>>)>,
    looks: Looks,
    bare: Bare,
    unguarded: Option<String>,
}

impl Worker {
    fn run(mut self, inbox: &mpsc::Receiver<Command>) {
        self.look_at_interfaces();
        let mut stale = self.restore();
        let mut expire_at = Instant::now() + EXPIRE_EVERY;
        let mut refresh_at = expire_at;
        loop {
            let wake_at = match stale {
                true => expire_at.min(refresh_at),
                false => expire_at,
            };
            let patience = match self.looks.are_due() {
                true => Duration::ZERO,
                false => wake_at.saturating_duration_since(Instant::now()),
            };
            match inbox.recv_timeout(patience) {
                Ok(command) => {
                    // Everything that is waiting is answered by one compilation.
                    for command in std::iter::once(command).chain(inbox.try_iter()) {
                        stale |= self.take(command);
                    }
                    refresh_at = Instant::now();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if stale && Instant::now() >= refresh_at {
                stale = !self.refresh();
                refresh_at = Instant::now() + RETRY_AFTER;
            }
            if Instant::now() >= expire_at {
                self.begin_to_tidy();
                stale |= self.look_at_interfaces() | self.restore();
                expire_at = Instant::now() + EXPIRE_EVERY;
            }
            if self.looks.are_due() {
                stale |= self.look();
            }
        }
    }

    /// Whether there may be something to write. A caller that no longer waits for the answer was cancelled; what it asked
    /// for is done all the same.
    fn take(&mut self, command: Command) -> bool {
        match command {
            Command::Attach(endpoint, reply) => {
                let attached = self.datapath.attach(&endpoint.link);
                if attached.is_ok() {
                    self.followed.attached(endpoint, &self.cluster);
                    self.unwritten = true;
                }
                drop(reply.send(attached));
            }
            Command::Detach(endpoint, reply) => {
                self.followed.detached(endpoint, &self.cluster);
                self.untold = true;
                let taken_off = self.datapath.take_off(endpoint);
                // At once, while its pod has a name.
                self.note_losses();
                match taken_off {
                    Ok(()) if self.datapath.is_forgetting() => self.looks.answer_when_forgotten(reply),
                    done => drop(reply.send(done)),
                }
            }
            Command::Program(endpoint, reply) => self.waiting.push((endpoint, reply)),
            Command::Dump(reply) => drop(reply.send(self.dump())),
            Command::Count(reply) => drop(reply.send(self.count())),
            Command::Ports(pod, reply) => {
                let ports = self.followed.session.egress_tcp_ports(&pod.namespace, &pod.name);
                drop(reply.send(ports));
            }
            Command::Settle(reply) => self.settling.push(reply),
            Command::Stale => {}
            Command::Moved => return self.look_at_interfaces() | self.restore(),
            Command::Unguarded(why) => self.unguarded = why,
        }
        true
    }

    /// Whether interfaces or addresses of the host are others than before.
    fn look_at_interfaces(&mut self) -> bool {
        let is_other = self.hosts.look();
        if is_other {
            self.host_counts.send_replace(self.hosts.counts());
        }
        is_other
    }

    /// Follows and writes what changed, and answers who waits for it. Whether nothing is left to do.
    fn refresh(&mut self) -> bool {
        let Some(changes) = self.cluster.take_changes() else {
            return false;
        };
        let started = Instant::now();
        for ((_, name), change) in &changes.nodes {
            self.inside.set_node(name, change.now().map(Arc::as_ref));
        }
        self.followed.take(changes);
        self.settle();
        let compiled_in = started.elapsed();
        let prepared = self.prepare_hosts();
        if self.unwritten {
            match self.write() {
                Ok(synced) => {
                    let (rewritten, entries) = (synced.rewritten, synced.written);
                    tracing::debug!(rewritten, entries, ?compiled_in, total = ?started.elapsed(), "policy in force");
                    self.unwritten = false;
                    self.untold = true;
                    self.synced = synced.endpoints;
                    self.save_names();
                }
                Err(error) => {
                    self.hold_hosts();
                    self.stay_behind(&error);
                    return false;
                }
            }
        }
        let attached = prepared.and_then(|()| self.hosts.attach(&mut *self.datapath));
        let unfit = match &attached {
            Ok(()) => self.hosts.unfit(),
            Err(error) => Some(chain(error)),
        };
        let beside = self.still_bare().into_iter().chain(self.unguarded.clone());
        let judging = judging(unfit.as_deref(), beside, self.followed.session.exceeds());
        self.tell(judging);
        if self.untold {
            // Staged policies and peers that no rule tells apart change no table.
            let told = self.followed.snapshot(self.synced.clone(), self.hosts.ids());
            self.names.publish(told);
            self.untold = false;
            self.written.send_modify(|number| *number += 1);
        }
        self.apply_established();
        for reply in self.settling.drain(..) {
            drop(reply.send(Ok(())));
        }
        // An endpoint whose pod did not come by the watch yet is denied everything: it waits.
        let (ready, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(id, _)| self.followed.session.has_pod_with(*id));
        self.waiting = waiting;
        let ready: Vec<_> = ready;
        for (_, reply) in ready {
            drop(reply.send(Ok(())));
        }
        attached.is_ok()
    }

    /// Writes the tables.
    fn write(&mut self) -> Result<Synced, DatapathError> {
        let tables = self.followed.session.tables();
        let synced = match std::mem::take(&mut self.worn) {
            true => self.datapath.renew(tables),
            false => self.datapath.sync(tables),
        };
        if let Err(DatapathError::Full { .. }) = &synced
            && self.followed.session.shed()
        {
            self.settle();
            return self.datapath.sync(self.followed.session.tables());
        }
        synced
    }

    /// Makes ready what host endpoints ask for now.
    fn prepare_hosts(&mut self) -> Result<(), DatapathError> {
        let (hosts, tables) = (self.followed.hosts(), self.followed.session.tables());
        self.unwritten |= self.hosts.prepare(&mut *self.datapath, &hosts, tables)?;
        Ok(())
    }

    /// The tables could not be written: interfaces that host endpoints name since then are closed.
    fn hold_hosts(&mut self) {
        let closed = self.followed.session.closed_hosts();
        if let Err(error) = self.hosts.hold(&mut *self.datapath, &closed) {
            tracing::error!("{}", unjudged(&chain(&error)));
        }
    }

    /// Says whether the kernel judges by the policy that is known, if that is another answer than before.
    fn tell(&self, now: Enforcement) {
        self.enforcement.send_if_modified(|known| {
            let changed = *known != now;
            if let Enforcement::Behind(why) = &now
                && changed
            {
                tracing::error!("{why}");
            }
            *known = now;
            changed
        });
    }

    /// The tables could not be written: tells everyone who waits for them.
    fn stay_behind(&mut self, error: &DatapathError) {
        let message = chain(error);
        self.tell(Enforcement::Behind(behind(error, self.followed.session.tables())));
        let waiting = self.waiting.drain(..).map(|(_, reply)| reply);
        for reply in waiting.chain(self.settling.drain(..)) {
            drop(reply.send(Err(message.clone())));
        }
    }

    /// Brings the session's tables up to date.
    fn settle(&mut self) {
        let ids = self.hosts.number(&self.followed.hosts());
        let session = &mut self.followed.session;
        session.set_host_endpoint_ids(&ids);
        let (own, groups) = (self.hosts.addresses(), self.hosts.groups());
        self.inside.set_host(&own, &groups);
        if let Some(inside) = self.inside.news() {
            self.learned.keep_out(inside);
        }
        session.set_host_addresses(own, groups);
        session.set_names(self.learned.current());
        let mut settled = session.settle();
        let wanted = session.wanted_domains();
        if self.wanted.as_ref() != Some(&wanted) {
            self.learned.want(wanted.clone());
            self.wanted = Some(wanted);
            session.set_names(self.learned.current());
            let again = session.settle();
            settled.changed |= again.changed;
            settled.told_anew |= again.told_anew;
            settled.anew = settled.anew.or(again.anew);
        }
        self.note(settled);
    }

    fn note(&mut self, settled: Settled) {
        if let Some(reason) = settled.anew {
            tracing::debug!(reason, "policy compiled anew as a whole");
        }
        for diagnostic in self.followed.session.take_diagnostics() {
            tracing::warn!(
                ?diagnostic,
                "policy cannot be honoured as written and denies more"
            );
        }
        self.unwritten |= settled.changed;
        self.untold |= settled.told_anew;
    }

    /// Forgets tables that nothing asks for, and begins to look for flows that are over.
    fn begin_to_tidy(&mut self) {
        if let Err(error) = self.datapath.sweep() {
            tracing::error!(error = chain(&error), "cannot delete old tables");
        }
        self.looks.want();
    }

    /// Looks at some of the flows, forgets those that are over, and tells what became of them. Whether tables are stale,
    /// which [`Worker::tidy`] says after the last of them.
    fn look(&mut self) -> bool {
        let tidies = match self.datapath.look(monotonic_now()) {
            Ok(expired) => {
                agent_telemetry::report(&expired.records, &self.names, &self.hub, &self.node);
                self.looks.went_on(expired.more)
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "cannot look through the flows");
                self.looks.failed()
            }
        };
        tidies && self.tidy()
    }

    /// Tells how many events the kernel could not report, and makes what was told so far outlive the machine. Whether
    /// tables are stale, because names were forgotten, policy was compiled anew, or the kernel's tables are to be written
    /// anew.
    fn tidy(&mut self) -> bool {
        self.note_losses();
        if let Err(error) = self.hub.sync() {
            tracing::error!(%error, "cannot sync the flow log");
        }
        self.save_names();
        let settled = self.followed.session.tidy();
        if let Some(settled) = settled {
            self.note(settled);
        }
        if self.datapath.is_worn() {
            self.worn = true;
            self.unwritten = true;
        }
        self.forget_names() | settled.is_some() | self.worn
    }

    /// Tells how many events the kernel could not report.
    fn note_losses(&mut self) {
        if let Err(error) = self.count() {
            tracing::error!(error = chain(&error), "cannot read the datapath's counters");
        }
    }

    /// What the kernel has counted. What it says of endpoints that are gone it says once, so whoever asks, losses are told.
    fn count(&mut self) -> Result<Counters, DatapathError> {
        let counters = self.datapath.counters()?;
        self.hub.note_losses(&counters, &self.names);
        Ok(counters)
    }

    /// Forgets names that are overdue and that no flow rests on. Whether there were any.
    fn forget_names(&mut self) -> bool {
        let now = Instant::now();
        let overdue = self.learned.overdue(now);
        if overdue.is_empty() {
            return false;
        }
        let in_use = match self.datapath.opened_flows() {
            Ok(flows) => {
                let session = &self.followed.session;
                let rules = (&session.named_rules(), &session.wanted_domains());
                in_use::names_in_use(&flows, &overdue, &self.names, rules)
            }
            Err(error) => {
                // A name that is too old is no reason to go on allowing.
                tracing::error!(
                    error = chain(&error),
                    "cannot list flows, names expire under them"
                );
                InUse::new()
            }
        };
        self.learned.expire(now, &in_use)
    }

    /// What the kernel holds. Names of rules are those of the last change: an endpoint that it did not reach has the
    /// same numbers for the same names, or it would have been written anew.
    fn dump(&mut self) -> Result<NodePolicy, DatapathError> {
        self.restore();
        let attached = self.datapath.attached()?.into_iter();
        let attached = attached.filter(|link| !self.bare.contains(link.ifindex));
        let mut attached_hosts = self.datapath.attached_hosts()?;
        attached_hosts.retain(|link| !self.bare.contains(link.ifindex));
        let places = self.datapath.places()?;
        let mut tables = self.datapath.dump()?;
        tables.rules.clone_from(&self.names.newest().tables.rules);
        let endpoint = |link: EndpointLink| NodeEndpoint {
            id: link.id.0,
            pod: self.followed.pod_of(link.id).cloned(),
            host_ports: self.followed.host_ports_of(link.id),
            interface: link.ifindex,
            addresses: link.addresses.into_iter().collect(),
            mac: Mac(link.mac),
            keeps_established: places.keeping.contains(&link.id),
            programmed: tables.endpoints.contains_key(&link.id),
        };
        let (host_addresses, host_groups) = self.followed.session.host_addresses();
        let mut policy = NodePolicy {
            node: self.node.clone(),
            host_addresses: host_addresses.clone(),
            host_groups: host_groups.clone(),
            names: self.followed.session.names().clone(),
            endpoints: attached.map(endpoint).collect(),
            hosts: self
                .hosts
                .describe(&self.followed.hosts(), &attached_hosts, &tables),
            ways: places
                .ways
                .iter()
                .map(|(address, way)| way_row(*address, way))
                .collect(),
            host_places: self.hosts.places(&places),
            closed: places.closed.iter().map(|id| id.0).collect(),
            behind: match &*self.enforcement.borrow() {
                Enforcement::Behind(why) => Some(why.clone()),
                Enforcement::NotYet => Some("no policy was written yet".to_owned()),
                Enforcement::InForce => None,
            },
            ..NodePolicy::default()
        };
        dump::write(&tables, &mut policy);
        Ok(policy)
    }

    fn save_names(&self) {
        if let Err(error) = self.learned.save() {
            tracing::error!(
                error = chain(&error),
                "an agent that starts now would not know them"
            );
        }
    }

    /// Pods that ask for it keep flows that were allowed when policy changes.
    fn apply_established(&mut self) {
        for (id, keep) in self.followed.take_wishes(&self.cluster) {
            if let Err(error) = self.datapath.keep_established(id, keep) {
                tracing::error!(
                    error = chain(&error),
                    "cannot set whether flows outlive a policy change"
                );
            }
        }
    }
}

fn way_row(address: IpAddr, way: &Way) -> WayRow {
    WayRow {
        address,
        endpoint: way.id.0,
        interface: way.ifindex,
        mac: Mac(way.mac),
    }
}

/// For people who wonder why their policy is not in force.
fn behind(error: &DatapathError, tables: &NodeTables) -> String {
    let mut text = format!("the kernel judges by an older policy: {}", chain(error));
    if let DatapathError::Full { .. } | DatapathError::SourceClasses { .. } = error {
        let demand = capacity::demand(tables);
        text.push_str(&format!("; the policy needs {demand}"));
        if let Some(exceeded) = demand.exceeds(&Capacities::KERNEL) {
            text.push_str(&format!("; it {exceeded}"));
        }
    }
    text
}

/// How the kernel judges once the tables are written: why some interfaces are not judged by them as they should be, what else
/// is amiss beside the tables, and what of them there is no number for.
fn judging(
    unfit: Option<&str>,
    beside: impl IntoIterator<Item = String>,
    exceeded: Option<Exceeded>,
) -> Enforcement {
    let short = unfit.map(unjudged).into_iter().chain(beside);
    let short = short.chain(exceeded.map(denied));
    match short.collect::<Vec<String>>() {
        short if short.is_empty() => Enforcement::InForce,
        short => Enforcement::Behind(short.join("; ")),
    }
}

/// The same, when it is about what policy would allow and the kernel cannot tell from other things.
fn denied(exceeded: Exceeded) -> String {
    format!(
        "the kernel denies some of what the node forwards, for the policy {exceeded}; {}",
        exceeded.what.advice()
    )
}

/// The same, when it is about interfaces of the host alone.
fn unjudged(why: &str) -> String {
    format!("the kernel does not judge every interface of the node as its HostEndpoints ask: {why}")
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
