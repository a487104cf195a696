//! The datapath in the kernel: programs loaded and attached, maps pinned and filled.
//!
//! Every map and link lives under one pin directory, so dropping a [`Kernel`] changes nothing: packets are still
//! judged, and the next [`Kernel::open`] finds all of it again. A link pins its program.

mod addresses;
mod features;
mod forget;
mod hosts;
mod link_layer;
mod links;
mod look;
mod maps;
mod parents;
mod pins;
mod places;
mod plan;
mod ring;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions},
};
use ebpf_abi::{
    COUNTER_ALLOWED, COUNTER_DENIED, COUNTER_LOST_EVENTS, Endpoint, FlowRecord, MAX_CLOSED, MAX_FLOWS,
    Reason, STATE_KEEP_ESTABLISHED,
};
use policies_ir::tables::{Direction, EndpointId, NodeTables, Verdict};

use crate::{
    Attachment, Counters, Datapath, DatapathError, EndpointLink, Expired, FlowSource, HostLink, OpenedFlow,
    Places, Synced, TrackedFlow, encode,
    kernel::{
        link_layer::LinkLayer,
        links::{Hook, Links},
        look::{Gone, Look},
        maps::Maps,
        pins::Pins,
        tables::Tables,
    },
    sys,
};

/// What a tc program returns to drop a packet; anything else that ours return lets it go on.
const TC_ACT_SHOT: u32 = 2;

/// The program that `from_pod` hands packets over to.
const TO_PEER: &str = "to_peer";

/// The datapath in the kernel.
pub struct Kernel {
    programs: Ebpf,
    maps: Maps,
    tables: Tables,
    links: Links,
    pins: Pins,
    limits: Limits,
    /// What is to be told of flows, by the next [`Datapath::look`].
    untold: Vec<FlowRecord>,
    /// Endpoints that are gone, whose flows the next look forgets.
    gone: Vec<Gone>,
    /// Denied packets that nobody was told of, of endpoints that are gone.
    unreported: BTreeMap<u32, u64>,
    /// The look through the flows that is under way.
    look: Option<Look>,
    /// Whether the look before found more flows than may be with closed ones among them.
    is_crowded: bool,
    /// When the last look at which flows grew old began.
    expired_at: Duration,
}

/// Capacities that may differ from the built-in ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most tracked flows of the node.
    pub max_flows: u32,
    /// How long packets that are denied alike are counted after one of them was reported; zero reports each.
    pub report_every: Duration,
    /// Denials of one endpoint that are reported in a second; zero is no limit.
    pub reports_per_second: u64,
    /// Whether packets between two pods of the node, once the first has arrived, go straight from one to the other, past
    /// the host's stack and what others let it do: rules of nftables, queueing disciplines.
    pub direct: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_flows: MAX_FLOWS,
            report_every: Duration::from_secs(1),
            reports_per_second: 512,
            direct: true,
        }
    }
}

/// What [`Kernel::open`] makes of an object and the pins.
struct Loaded {
    programs: Ebpf,
    maps: Maps,
    tables: Tables,
    links: Links,
    /// As [`Kernel::untold`].
    untold: Vec<FlowRecord>,
}

impl Loaded {
    fn load(
        pins: &Pins,
        object: &[u8],
        limits: Limits,
        attachment: Attachment,
    ) -> Result<Self, DatapathError> {
        let links = Links::new(pins.links(), attachment);
        links.check()?;
        maps::check_pinned(&pins.maps(), limits)?;
        let max_closed = limits.max_closed();
        let report_every_ns = u64::try_from(limits.report_every.as_nanos()).unwrap_or(u64::MAX);
        let mut programs = EbpfLoader::new()
            .default_map_pin_directory(pins.maps())
            .map_max_entries("FLOWS", limits.max_flows)
            .map_max_entries("CLOSED", max_closed)
            .override_global("CLOSED_PLACES", &max_closed, true)
            .override_global("REPORT_EVERY_NS", &report_every_ns, true)
            .override_global("DIRECT", &u32::from(limits.direct), true)
            .override_global("REPORTS_PER_SECOND", &limits.reports_per_second, true)
            .load(object)
            .map_err(|source| DatapathError::Object(Box::new(source)))?;
        // What few nodes need is verified where it is needed: it would be a third of all that an agent's start waits for.
        let mut hooks = Vec::new();
        for hook in Hook::ALL {
            if !Hook::of_host(LinkLayer::Bare).contains(&hook) || !links.pinned(hook)?.is_empty() {
                loaded_fd(&mut programs, hook.program())?;
                hooks.push(hook);
            }
        }
        load(program(&mut programs, TO_PEER)?).map_err(refused(TO_PEER))?;
        let mut maps = Maps::take(&mut programs)?;
        maps.restore_pods()?;
        maps.set_handover(program(&mut programs, TO_PEER)?.fd().map_err(refused(TO_PEER))?)?;
        let tables = Tables::read(&maps)?;
        for hook in hooks {
            links.replace_programs(hook, loaded_fd(&mut programs, hook.program())?)?;
        }
        // What an agent left that died between taking an endpoint away and cleaning up after it.
        let mut look = Look::new(None, Vec::new(), maps.begin_census()?);
        let mut untold = Vec::new();
        while !maps.look_on(&mut look, &mut untold)?.is_last {}
        Ok(Self {
            programs,
            maps,
            tables,
            links,
            untold,
        })
    }
}

impl Limits {
    /// Most closed flows that are remembered: of the built-in number of flows, the built-in number.
    fn max_closed(self) -> u32 {
        (self.max_flows / (MAX_FLOWS / MAX_CLOSED)).max(1)
    }

    /// With more flows than so many, those that are closed have to go: they could fill what is left.
    fn crowded(self) -> usize {
        usize::try_from(self.max_flows - self.max_closed().min(self.max_flows)).unwrap_or(usize::MAX)
    }
}

impl Kernel {
    /// Loads `object` (normally [`OBJECT`](crate::OBJECT)), keeps its state under `pin_dir`, and takes over what an
    /// earlier agent left there: maps as they are, links moved to the programs just loaded. `pin_dir` becomes the
    /// mount point of a BPF file system unless it lies in one.
    pub fn open(pin_dir: &Path, object: &[u8]) -> Result<Self, DatapathError> {
        Self::open_with_limits(pin_dir, object, Limits::default())
    }

    /// As [`Kernel::open`], with other capacities.
    pub fn open_with_limits(pin_dir: &Path, object: &[u8], limits: Limits) -> Result<Self, DatapathError> {
        let attachment = match features::has_tcx()? {
            true => Attachment::Tcx,
            false => Attachment::Clsact,
        };
        Self::open_attached(pin_dir, object, limits, attachment)
    }

    /// As [`Kernel::open_with_limits`], with programs attached the given way rather than the best one that the kernel
    /// has. The way stays the same as long as anything is attached; another one is refused.
    pub fn open_attached(
        pin_dir: &Path,
        object: &[u8],
        limits: Limits,
        attachment: Attachment,
    ) -> Result<Self, DatapathError> {
        features::check(attachment)?;
        let pins = Pins::open(pin_dir)?;
        match Loaded::load(&pins, object, limits, attachment) {
            Ok(Loaded {
                programs,
                maps,
                tables,
                links,
                untold,
            }) => Ok(Self {
                programs,
                maps,
                tables,
                links,
                pins,
                limits,
                untold,
                gone: Vec::new(),
                unreported: BTreeMap::new(),
                look: None,
                is_crowded: false,
                expired_at: sys::monotonic_now(),
            }),
            Err(error) => {
                pins.abandon();
                Err(error)
            }
        }
    }

    /// Instructions that the kernel walked through to verify each program, all branches and turns counted: it gives up after
    /// a million. Loads those that nobody needed so far. Empty before Linux 5.16, which does not tell.
    pub fn verified_instructions(&mut self) -> Result<BTreeMap<&'static str, u32>, DatapathError> {
        let mut counts = BTreeMap::new();
        for name in Hook::ALL.into_iter().map(Hook::program).chain([TO_PEER]) {
            loaded_fd(&mut self.programs, name)?;
            let info = program(&mut self.programs, name)?.info().map_err(refused(name))?;
            counts.extend(info.verified_instruction_count().map(|count| (name, count)));
        }
        Ok(counts)
    }

    /// Flows that are tracked now.
    pub fn tracked_flows(&self) -> Result<Vec<TrackedFlow>, DatapathError> {
        Ok(self
            .maps
            .flows()?
            .iter()
            .map(|(key, state)| TrackedFlow::new(key, state))
            .collect())
    }

    /// Runs the program of `direction` on an Ethernet frame of at least 14 bytes, as if on the interface `ifindex` of
    /// the caller's network namespace. Everything happens as for a real packet, tracking included, but the frame
    /// goes nowhere.
    pub fn run_frame(
        &mut self,
        direction: Direction,
        ifindex: u32,
        frame: &[u8],
    ) -> Result<Verdict, DatapathError> {
        let (action, _) = self.test_run(pod_hook(direction), [0, ifindex, 0], frame, 1)?;
        Ok(verdict_of(action))
    }

    /// As [`Kernel::run_frame`], of a frame that stands for several of so many bytes, merged or yet to be taken apart.
    pub fn run_merged_frame(
        &mut self,
        direction: Direction,
        ifindex: u32,
        segment_bytes: u32,
        frame: &[u8],
    ) -> Result<Verdict, DatapathError> {
        let place = [0, ifindex, segment_bytes];
        let (action, _) = self.test_run(pod_hook(direction), place, frame, 1)?;
        Ok(verdict_of(action))
    }

    /// As [`Kernel::run_frame`], `repeat` times; returns how long one run took on average.
    pub fn time_frame(
        &mut self,
        direction: Direction,
        ifindex: u32,
        frame: &[u8],
        repeat: u32,
    ) -> Result<Duration, DatapathError> {
        self.test_run(pod_hook(direction), [0, ifindex, 0], frame, repeat)
            .map(|(_, duration)| duration)
    }

    /// As [`Kernel::run_frame`] for a packet at an interface of the host, which came to the machine by the interface
    /// `came_by`; 0 if the machine has made it.
    pub fn run_host_frame(
        &mut self,
        direction: Direction,
        ifindex: u32,
        came_by: u32,
        frame: &[u8],
    ) -> Result<Verdict, DatapathError> {
        let (action, _) = self.test_run(host_hook(direction), [came_by, ifindex, 0], frame, 1)?;
        Ok(verdict_of(action))
    }

    /// As [`Kernel::run_merged_frame`] at an interface of the host.
    pub fn run_merged_host_frame(
        &mut self,
        direction: Direction,
        ifindex: u32,
        segment_bytes: u32,
        frame: &[u8],
    ) -> Result<Verdict, DatapathError> {
        let place = [0, ifindex, segment_bytes];
        let (action, _) = self.test_run(host_hook(direction), place, frame, 1)?;
        Ok(verdict_of(action))
    }

    fn test_run(
        &mut self,
        hook: Hook,
        [came_by, ifindex, segment_bytes]: [u32; 3],
        frame: &[u8],
        repeat: u32,
    ) -> Result<(u32, Duration), DatapathError> {
        // The start of `struct __sk_buff` as far as `gso_size`: that, `ingress_ifindex` and `ifindex`, all else zero.
        let mut context = [0; 180];
        context[36..40].copy_from_slice(&came_by.to_ne_bytes());
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        context[176..].copy_from_slice(&segment_bytes.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::default()
        };
        let name = hook.program();
        let result = program(&mut self.programs, name)?
            .test_run(options)
            .map_err(refused(name))?;
        Ok((result.return_value, result.duration))
    }

    /// Detaches all endpoints and removes every trace: links, maps, pins, mount.
    pub fn unload(mut self) -> Result<(), DatapathError> {
        for link in self.attached()? {
            self.detach(link.id)?;
        }
        for link in self.attached_hosts()? {
            self.attach_host(&HostLink::none(link.ifindex))?;
        }
        let Self {
            programs, maps, pins, ..
        } = self;
        drop((programs, maps));
        pins.remove()
    }

    fn attach_hooks(&mut self, hooks: [Hook; 2], ifindex: u32) -> Result<(), DatapathError> {
        for hook in hooks {
            let program = loaded_fd(&mut self.programs, hook.program())?;
            self.links.attach(hook, ifindex, program)?;
        }
        Ok(())
    }

    /// Denies everything on the interface, takes the programs off it and forgets what it left in the maps, but for flows.
    fn forget(&mut self, ifindex: u32, endpoint: &Endpoint) -> Result<(), DatapathError> {
        self.maps.remove_endpoint(ifindex, endpoint)?;
        let noted = self.note_gone(ifindex, endpoint);
        self.links.detach(Hook::POD, ifindex)?;
        noted
    }
}

impl Datapath for Kernel {
    fn attach(&mut self, link: &EndpointLink) -> Result<(), DatapathError> {
        let mut wanted = encode::endpoint(link)?;
        for (ifindex, endpoint) in self.maps.pods()? {
            let same_link = encode::endpoint_link(ifindex, &endpoint) == *link;
            if same_link && self.links.is_attached(Hook::POD, ifindex)? {
                return Ok(());
            }
            if ifindex == link.ifindex {
                // The programs stay where they are: between two endpoints the interface is denied, not open.
                self.maps.remove_endpoint(ifindex, &endpoint)?;
                self.note_gone(ifindex, &endpoint)?;
            } else if endpoint.id == wanted.id {
                self.forget(ifindex, &endpoint)?;
            }
        }
        let under_way = self.look.iter().flat_map(|look| &look.gone);
        let is_wanted = |gone: &Gone| gone.endpoint.id == wanted.id || gone.ifindex == link.ifindex;
        if self.gone.iter().chain(under_way).any(is_wanted) {
            self.forget_flows()?;
        }
        let endpoints = self.maps.endpoints()?;
        wanted.slot = Maps::free_slot(&endpoints)?;
        // Known to the programs, and denied, before they see its first packet.
        self.maps.write_endpoint(link.ifindex, &wanted)?;
        self.attach_hooks(Hook::POD, link.ifindex).inspect_err(|_| {
            // The caller hears why attaching failed; what this clean-up leaves, the next attach removes.
            drop(self.forget(link.ifindex, &wanted));
        })
    }

    fn take_off(&mut self, endpoint: EndpointId) -> Result<(), DatapathError> {
        for (ifindex, found) in self.maps.pods()? {
            if found.id == endpoint.0 {
                self.forget(ifindex, &found)?;
            }
        }
        Ok(())
    }

    fn is_forgetting(&self) -> bool {
        !self.gone.is_empty() || self.look.as_ref().is_some_and(|look| !look.gone.is_empty())
    }

    fn detach(&mut self, endpoint: EndpointId) -> Result<(), DatapathError> {
        self.take_off(endpoint)?;
        self.forget_flows()
    }

    fn sync(&mut self, tables: &NodeTables) -> Result<Synced, DatapathError> {
        self.tables.sync(&mut self.maps, tables)
    }

    fn is_worn(&self) -> bool {
        self.tables.is_worn()
    }

    fn renew(&mut self, tables: &NodeTables) -> Result<Synced, DatapathError> {
        self.tables.renew(&mut self.maps, tables)
    }

    fn attached(&mut self) -> Result<Vec<EndpointLink>, DatapathError> {
        let mut attached = Vec::new();
        for (ifindex, endpoint) in self.maps.pods()? {
            if self.links.is_attached(Hook::POD, ifindex)? {
                attached.push(encode::endpoint_link(ifindex, &endpoint));
            } else if !link_layer::is_there(ifindex)? {
                self.forget(ifindex, &endpoint)?;
            }
        }
        attached.sort_by_key(|link| link.id);
        Ok(attached)
    }

    fn prepare_hosts(&mut self, endpoints: &BTreeSet<EndpointId>) -> Result<(), DatapathError> {
        self.reserve_hosts(endpoints)
    }

    fn close_hosts(&mut self, tables: &NodeTables) -> Result<(), DatapathError> {
        self.tables.close(&mut self.maps, tables)
    }

    fn attach_host(&mut self, link: &HostLink) -> Result<(), DatapathError> {
        self.give_host(link)
    }

    fn attached_hosts(&mut self) -> Result<Vec<HostLink>, DatapathError> {
        self.hosts_with_endpoints()
    }

    fn bare(&mut self) -> Result<Vec<u32>, DatapathError> {
        let pods = self.maps.pods()?.into_iter();
        let pods = pods.map(|(ifindex, _)| (ifindex, &[Hook::POD][..]));
        let hosts: BTreeSet<u32> = self.maps.hosts()?.into_keys().map(|key| key.ifindex).collect();
        let hosts = hosts.into_iter().map(|ifindex| (ifindex, &Hook::HOST[..]));
        let mut bare = Vec::new();
        for (ifindex, pairs) in pods.chain(hosts) {
            let mut is_judged = false;
            for pair in pairs {
                is_judged |= self.links.is_attached(*pair, ifindex)?;
            }
            if !is_judged && link_layer::is_there(ifindex)? {
                bare.push(ifindex);
            }
        }
        Ok(bare)
    }

    fn restore(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        let is_pod = self.maps.pods()?.iter().any(|(known, _)| *known == ifindex);
        let hooks = match is_pod {
            true => Ok(Hook::POD),
            false => LinkLayer::of(ifindex).map(Hook::of_host),
        };
        match hooks.and_then(|hooks| self.attach_hooks(hooks, ifindex)) {
            // It has vanished meanwhile.
            Err(_) if !link_layer::is_there(ifindex)? => Ok(()),
            done => done,
        }
    }

    fn keep_established(&mut self, endpoint: EndpointId, keep: bool) -> Result<(), DatapathError> {
        let endpoints = self.maps.endpoints()?;
        let (_, found) = endpoints
            .iter()
            .find(|(_, found)| found.id == endpoint.0)
            .ok_or(DatapathError::NotAttached { endpoint })?;
        let mut state = self.maps.state(found);
        state.flags &= !STATE_KEEP_ESTABLISHED;
        if keep {
            state.flags |= STATE_KEEP_ESTABLISHED;
        }
        self.maps.set_state(found, state);
        Ok(())
    }

    fn sweep(&mut self) -> Result<(), DatapathError> {
        let endpoints = self.maps.endpoints()?;
        self.tables.sweep(&mut self.maps, &endpoints)
    }

    fn look(&mut self, now: Duration) -> Result<Expired, DatapathError> {
        self.go_on_looking(now)
    }

    fn dump(&self) -> Result<NodeTables, DatapathError> {
        self.tables.dump(&self.maps)
    }

    fn places(&self) -> Result<Places, DatapathError> {
        places::read(&self.maps)
    }

    fn opened_flows(&mut self) -> Result<BTreeSet<OpenedFlow>, DatapathError> {
        let flows = self.tracked_flows()?;
        Ok(flows.iter().filter_map(TrackedFlow::opened).collect())
    }

    fn counters(&mut self) -> Result<Counters, DatapathError> {
        let mut counters = Counters {
            allowed: self.maps.counter(COUNTER_ALLOWED)?,
            lost_events: self.maps.counter(COUNTER_LOST_EVENTS)?,
            ..Counters::default()
        };
        counters.fill.extend(self.tables.fill());
        counters.fill.extend(self.maps.fill(self.limits)?);
        for reason in Reason::ALL {
            let denied = self.maps.counter(COUNTER_DENIED + reason as u32)?;
            if denied > 0 {
                counters.denied.insert(reason, denied);
            }
        }
        counters.unreported = self.take_unreported()?;
        Ok(counters)
    }

    fn flow_source(&mut self) -> Result<Box<dyn FlowSource>, DatapathError> {
        Ok(Box::new(ring::Ring::open(&self.pins.maps())?))
    }
}

fn pod_hook(direction: Direction) -> Hook {
    match direction {
        Direction::Egress => Hook::FromPod,
        Direction::Ingress => Hook::ToPod,
    }
}

fn host_hook(direction: Direction) -> Hook {
    match direction {
        Direction::Egress => Hook::FromHost,
        Direction::Ingress => Hook::ToHost,
    }
}

fn verdict_of(action: u32) -> Verdict {
    if action == TC_ACT_SHOT {
        Verdict::Deny
    } else {
        Verdict::Allow
    }
}

fn program<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, DatapathError> {
    let program = programs
        .program_mut(name)
        .ok_or(DatapathError::Missing { name })?;
    program.try_into().map_err(refused(name))
}

/// Loads a program. The verifier gives up when the thread gets a signal, and asks to be called again.
fn load(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    const ATTEMPTS: usize = 10;
    for _ in 1..ATTEMPTS {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {
            }
            result => return result,
        }
    }
    program.load()
}

/// The program in the kernel, which is given it now unless it has it.
fn loaded_fd<'a>(
    programs: &'a mut Ebpf,
    name: &'static str,
) -> Result<std::os::fd::BorrowedFd<'a>, DatapathError> {
    use std::os::fd::AsFd;
    let program = program(programs, name)?;
    if program.fd().is_err() {
        load(program).map_err(refused(name))?;
    }
    Ok(program.fd().map_err(refused(name))?.as_fd())
}

fn refused(name: &'static str) -> impl Fn(ProgramError) -> DatapathError {
    move |source| DatapathError::Program {
        name,
        source: Box::new(source),
    }
}
