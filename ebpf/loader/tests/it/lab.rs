//! A datapath of its own for each test, and tables made by hand.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use ebpf_loader::{
    Attachment, Datapath, EndpointLink, FlowRecord, FlowSource, Kernel, Limits, OBJECT, Reason,
};
use policies_ir::tables::{
    Direction, EndpointId, EndpointTables, IdentityId, InsideClass, NodeTables, RuleId, Service, SourceClass,
    Verdict, VerdictEntry, VerdictKey,
};

/// MAC address of the pod.
pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
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

/// A datapath with its own pin directory, removed at the end. The thread of the test moves to a network namespace of
/// its own, so what is attached there touches nothing else.
pub(crate) struct Lab {
    pub(crate) kernel: Option<Kernel>,
    pub(crate) source: Option<Box<dyn FlowSource>>,
    pub(crate) pins: PathBuf,
    pub(crate) attachment: Attachment,
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
        }
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
        self.source
            .as_mut()
            .and_then(|source| source.next(Duration::ZERO).expect("read the ring"))
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
