//! A datapath of its own for each test, and tables made by hand.

use std::{
    collections::VecDeque,
    net::IpAddr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use ebpf_loader::{
    Attachment, Datapath, EndpointLink, FlowRecord, FlowSource, Kernel, Limits, OBJECT, Reason,
};
use policies_ir::tables::{
    Direction, EndpointId, EndpointTables, IdentityId, InsideClass, NodeTables, RuleId, Service, SourceClass,
    Verdict, VerdictEntry, VerdictKey,
};

use crate::{frames::Ends, wire::Wire};

/// MAC address of the pod.
pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Addresses of the pod, and of somebody that its tables know.
pub(crate) const POD: &str = "10.7.0.2";
pub(crate) const PEER: &str = "10.7.0.9";
pub(crate) const POD6: &str = "fd07::2";
pub(crate) const PEER6: &str = "fd07::9";
/// The endpoint that most tests use.
pub(crate) const ENDPOINT: EndpointId = EndpointId(7);
/// Frames given to the kernel by hand claim to be on the loopback interface of the test's network namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// Each denied packet is reported, so that a test can see why.
pub(crate) const EACH_REPORTED: Limits = Limits {
    max_flows: ebpf_abi::MAX_FLOWS,
    report_every: Duration::ZERO,
    reports_per_second: 0,
    direct: true,
};

/// How a frame is given to the programs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// `BPF_PROG_TEST_RUN`: the program is run by hand, and says what it would do.
    ByHand,
    /// Through a veth pair that the programs are attached to: the verdict is whether the frame comes out, unchanged.
    OnTheWire,
}

/// Runs each of these tests both ways: each takes the [`Way`], and is tested where it is listed.
macro_rules! both_ways {
    ($($name:ident),+ $(,)?) => {
        mod by_hand {
            $(#[test] fn $name() { super::$name($crate::lab::Way::ByHand); })+
        }
        mod on_the_wire {
            $(#[test] fn $name() { super::$name($crate::lab::Way::OnTheWire); })+
        }
    };
}
pub(crate) use both_ways;

/// How a frame is given to the programs, and which family its packet is of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) way: Way,
    pub(crate) v6: bool,
}

impl Place {
    /// From the pod to its peer, each with its first address of the family.
    pub(crate) fn out(self) -> Ends {
        match self.v6 {
            true => Ends::new(POD6, PEER6),
            false => Ends::new(POD, PEER),
        }
    }
}

/// Runs each of these tests both ways and for both families: each takes the [`Place`], and is tested where it is listed.
macro_rules! everywhere {
    ($($name:ident),+ $(,)?) => {
        $crate::lab::everywhere! { @ by_hand_v4 ByHand false $($name)+ }
        $crate::lab::everywhere! { @ by_hand_v6 ByHand true $($name)+ }
        $crate::lab::everywhere! { @ on_the_wire_v4 OnTheWire false $($name)+ }
        $crate::lab::everywhere! { @ on_the_wire_v6 OnTheWire true $($name)+ }
    };
    (@ $place:ident $way:ident $v6:literal $($name:ident)+) => {
        mod $place {
            use $crate::lab::{Place, Way};
            $(#[test] fn $name() { super::$name(Place { way: Way::$way, v6: $v6 }); })+
        }
    };
}
pub(crate) use everywhere;

/// How long a frame may take to be delivered or denied, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to look for a frame that was denied.
const SILENCE: Duration = Duration::from_millis(1);

/// A datapath with its own pin directory, removed at the end. The thread of the test moves to a network namespace of
/// its own, so what is attached there touches nothing else.
pub(crate) struct Lab {
    pub(crate) kernel: Option<Kernel>,
    pub(crate) source: Option<Box<dyn FlowSource>>,
    pub(crate) pins: PathBuf,
    pub(crate) attachment: Attachment,
    /// Where the pod's frames go, if not to a program by hand.
    wire: Option<Wire>,
    /// Records that were read and not asked for yet.
    unread: VecDeque<FlowRecord>,
}

/// Makes of a test of how programs are attached two: one with links, one with filters.
macro_rules! attached_both_ways {
    ($($(#[$doc:meta])* fn $name:ident($attachment:ident) $body:block)+) => {$(
        $(#[$doc])*
        mod $name {
            use super::*;
            use ebpf_loader::Attachment;

            fn check($attachment: Attachment) $body

            #[test]
            fn with_tcx() {
                check(Attachment::Tcx);
            }

            #[test]
            fn with_clsact() {
                check(Attachment::Clsact);
            }
        }
    )+};
}
pub(crate) use attached_both_ways;

impl Lab {
    pub(crate) fn new() -> Self {
        Self::attached(Attachment::Tcx)
    }

    pub(crate) fn attached(attachment: Attachment) -> Self {
        Self::with(EACH_REPORTED, attachment)
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        Self::with(limits, Attachment::Tcx)
    }

    /// One whose endpoint is judged this way.
    pub(crate) fn judging(way: Way, limits: Limits) -> Self {
        let mut lab = Self::with_limits(limits);
        lab.wire = matches!(way, Way::OnTheWire).then(Wire::new);
        lab
    }

    fn with(limits: Limits, attachment: Attachment) -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pins = std::env::temp_dir().join(format!("palisade-bpf-{}-{number}", std::process::id()));
        let mut kernel = Kernel::open_attached(&pins, OBJECT, limits, attachment).expect("open the datapath");
        let source = kernel.flow_source().expect("open the ring");
        Self {
            kernel: Some(kernel),
            source: Some(source),
            pins,
            attachment,
            wire: None,
            unread: VecDeque::new(),
        }
    }

    /// The endpoint's link: the wire, or the interface that frames given by hand claim to be on.
    pub(crate) fn link(&self, addresses: &[&str]) -> EndpointLink {
        link(
            self.wire.as_ref().map_or(LOOPBACK, |wire| wire.ifindex),
            addresses,
        )
    }

    /// Whether frames go through real links.
    pub(crate) fn is_wired(&self) -> bool {
        self.wire.is_some()
    }

    /// The agent ends and another one begins.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.start();
    }

    pub(crate) fn stop(&mut self) {
        self.source = None;
        drop(self.kernel.take());
    }

    pub(crate) fn start(&mut self) {
        let mut kernel = Kernel::open_attached(&self.pins, OBJECT, EACH_REPORTED, self.attachment)
            .expect("open the datapath again");
        self.source = Some(kernel.flow_source().expect("open the ring"));
        self.kernel = Some(kernel);
    }

    pub(crate) fn kernel(&mut self) -> &mut Kernel {
        self.kernel.as_mut().expect("the datapath is open")
    }

    /// Judges a frame.
    pub(crate) fn run(&mut self, direction: Direction, frame: &[u8]) -> Verdict {
        if self.wire.is_some() {
            return self.run_on_the_wire(direction, frame);
        }
        self.kernel()
            .run_frame(direction, LOOPBACK, frame)
            .expect("run the program")
    }

    /// Judges a frame and returns the verdict with the record it caused, if any.
    pub(crate) fn judge(&mut self, direction: Direction, frame: &[u8]) -> (Verdict, Option<FlowRecord>) {
        (self.run(direction, frame), self.record())
    }

    /// The next record; records are there as soon as the program has run.
    pub(crate) fn record(&mut self) -> Option<FlowRecord> {
        self.unread.pop_front().or_else(|| self.next_record())
    }

    fn next_record(&mut self) -> Option<FlowRecord> {
        self.source
            .as_mut()
            .and_then(|source| source.next(Duration::ZERO).expect("read the ring"))
    }

    /// Sends the frame and says whether it came out. That its denial is reported only says how long to wait: a frame
    /// that was reported as denied and came out nevertheless was allowed.
    fn run_on_the_wire(&mut self, direction: Direction, frame: &[u8]) -> Verdict {
        while let Some(record) = self.next_record() {
            self.unread.push_back(record);
        }
        let wire = self.wire.as_ref().expect("the lab has a wire");
        wire.send(direction, frame);
        let deadline = Instant::now() + PATIENCE;
        let mut patience = Duration::ZERO;
        loop {
            let wire = self.wire.as_ref().expect("the lab has a wire");
            if let Some(arrived) = wire.receive(direction, patience) {
                assert_eq!(arrived, frame, "the frame came out as another one");
                return Verdict::Allow;
            }
            match self.next_record() {
                Some(record) => {
                    let denied = record.verdict == 0;
                    self.unread.push_back(record);
                    let wire = self.wire.as_ref().expect("the lab has a wire");
                    if denied && wire.receive(direction, SILENCE).is_none() {
                        return Verdict::Deny;
                    }
                    assert!(!denied, "a frame that was reported as denied came out");
                }
                None => patience = SILENCE,
            }
            assert!(
                Instant::now() < deadline,
                "{direction:?}: the frame neither came out nor was denied: {frame:02x?}"
            );
        }
    }

    /// Asserts that the frame is dropped for this reason.
    #[track_caller]
    pub(crate) fn assert_denied(&mut self, direction: Direction, frame: &[u8], reason: Reason) {
        let (verdict, record) = self.judge(direction, frame);
        let record = record.expect("every denial is reported");
        assert_eq!(Reason::from_code(record.reason), Some(reason), "{record:?}");
        assert_eq!(verdict, Verdict::Deny);
    }

    /// Asserts that the frame passes.
    #[track_caller]
    pub(crate) fn assert_allowed(&mut self, direction: Direction, frame: &[u8]) {
        let (verdict, record) = self.judge(direction, frame);
        assert_eq!(
            verdict,
            Verdict::Allow,
            "{:?}",
            record.map(|record| (Reason::from_code(record.reason), record))
        );
    }

    /// Attaches an endpoint with an address of either family, whose peers are those of [`dual_tables`].
    pub(crate) fn allow(&mut self, allowed: &[(Direction, usize, Service)]) {
        let link = self.link(&[POD, POD6]);
        self.program(&link, &dual_tables(allowed));
    }

    /// Attaches the endpoint and moves it to `tables`. Returns the change that it follows.
    pub(crate) fn program(&mut self, link: &EndpointLink, tables: &NodeTables) -> u32 {
        self.kernel().attach(link).expect("attach");
        let synced = self.kernel().sync(tables).expect("sync");
        synced.endpoints.get(&link.id).copied().unwrap_or(0)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.source = None;
        if let Some(kernel) = self.kernel.take() {
            let unloaded = kernel.unload();
            if !std::thread::panicking() {
                unloaded.expect("unload");
                assert!(!self.pins.exists(), "pins are left behind");
            }
        }
    }
}

/// [`tables`] with one peer, the neighbours of both families.
pub(crate) fn dual_tables(allowed: &[(Direction, usize, Service)]) -> NodeTables {
    let mut tables = tables(&["10.7.0.0/24"], allowed);
    tables
        .identities
        .insert("fd07::/64".parse().expect("a prefix"), IdentityId(1));
    tables
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn link(ifindex: u32, addresses: &[&str]) -> EndpointLink {
    EndpointLink {
        id: ENDPOINT,
        ifindex,
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        mac: POD_MAC,
    }
}

/// Tables of [`ENDPOINT`]: the peers' prefixes, numbered from one, and what is allowed to and from each.
pub(crate) fn tables(peers: &[&str], allowed: &[(Direction, usize, Service)]) -> NodeTables {
    let mut tables = NodeTables::default();
    for (number, net) in (1..).zip(peers) {
        tables
            .identities
            .insert(net.parse().expect("a prefix"), IdentityId(number));
    }
    let mut endpoint = EndpointTables::default();
    for (rule, (direction, peer, service)) in (64..).zip(allowed) {
        let peer = IdentityId(u32::try_from(*peer + 1).expect("few peers"));
        endpoint.verdicts.insert(
            VerdictKey {
                peer,
                direction: *direction,
                inside: InsideClass::default(),
                source: SourceClass::default(),
                service: *service,
            },
            VerdictEntry {
                verdict: Verdict::Allow,
                rule: RuleId(rule),
            },
        );
    }
    tables.endpoints.insert(ENDPOINT, endpoint.into());
    tables
}
