//! The thread between the kernel's stream and the hub.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ebpf_loader::{FlowRecord, FlowSource, monotonic_now};
use jiff::Timestamp;

use crate::{
    event::{Clock, flow_event},
    hub::Hub,
    names::Names,
};

/// How long the thread waits for a record before it looks whether it should end.
const WAIT: Duration = Duration::from_millis(250);

/// How long records of an earlier agent wait on the ring for names. Without a control plane there may never be any; what
/// does not fit on the ring meanwhile is counted.
const NAMES_WITHIN: Duration = Duration::from_secs(10);

/// How long a record waits for the names of the change that decided it: the kernel judges by a change a moment before they
/// are published. Meanwhile records gather on the ring, and what does not fit is counted.
const CHANGE_NAMED_WITHIN: Duration = Duration::from_secs(1);

/// Why the reader did not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the thread that reads flow events")]
pub struct StartError(#[from] io::Error);

/// Reads until it is dropped.
#[derive(Debug)]
pub struct Reader {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Names each record of `source` and publishes it to `hub`. A thread of its own: reading blocks.
    pub fn start(
        source: Box<dyn FlowSource>,
        names: Arc<Names>,
        hub: Arc<Hub>,
        node: String,
    ) -> Result<Self, StartError> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("flow-events".to_owned())
            .spawn(move || read(source, &names, &hub, &node, &stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

/// Names what `Datapath::expire` returned, and publishes it.
pub fn report(records: &[FlowRecord], names: &Names, hub: &Hub, node: &str) {
    let clock = Clock {
        now: Timestamp::now(),
        monotonic: monotonic_now(),
    };
    for record in records {
        hub.publish(flow_event(record, names, node, &clock));
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that reads flow events panicked");
        }
    }
}

fn read(mut source: Box<dyn FlowSource>, names: &Names, hub: &Hub, node: &str, stop: &AtomicBool) {
    let unnamed_from = Instant::now() + NAMES_WITHIN;
    while !names.wait(WAIT) && Instant::now() < unnamed_from && !stop.load(Ordering::Relaxed) {}
    while !stop.load(Ordering::Relaxed) {
        match source.next(WAIT) {
            Ok(Some(record)) => {
                names.wait_for(record.epoch, CHANGE_NAMED_WITHIN);
                report(std::slice::from_ref(&record), names, hub, node);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "flow events end here");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use api::flow::FlowLine;
    use ebpf_loader::{Datapath, Fake};
    use policies_ir::tables::{BUILTIN_RULES, EndpointId, NodeTables, RuleName};

    use super::*;
    use crate::{
        history::Query,
        log::{FlowLog, LogConfig},
        names::Snapshot,
    };

    /// A reader, what feeds it, and what hears of it.
    struct Read {
        records: std::sync::mpsc::Sender<FlowRecord>,
        names: Arc<Names>,
        follower: crate::hub::Follower,
        _dir: tempfile::TempDir,
        _reader: Reader,
    }

    impl Read {
        fn start(published: Option<Snapshot>) -> Self {
            let mut fake = Fake::new();
            let dir = tempfile::tempdir().unwrap();
            let node = || "node-1".to_owned();
            let log = FlowLog::open(LogConfig::sized(dir.path().join("flows"), node(), 0)).unwrap();
            let hub = Arc::new(Hub::new(log, node(), 8));
            let (_, follower) = hub.follow(Query::default());
            let names = Arc::new(Names::new());
            published.into_iter().for_each(|snapshot| names.publish(snapshot));
            let source = fake.flow_source().unwrap();
            let reader = Reader::start(source, Arc::clone(&names), hub, node()).unwrap();
            Self {
                records: fake.records(),
                names,
                follower,
                _dir: dir,
                _reader: reader,
            }
        }

        /// A record of what change `epoch` decided.
        fn send(&self, epoch: u32) {
            let record = FlowRecord {
                endpoint: 7,
                epoch,
                rule: BUILTIN_RULES,
                reason: ebpf_abi::Reason::Policy as u8,
                destination_port: 80,
                ..FlowRecord::default()
            };
            self.records.send(record).unwrap();
        }

        async fn assert_waits(&mut self) {
            let told = tokio::time::timeout(Duration::from_millis(100), self.next()).await;
            assert!(told.is_err(), "told before there are names: {told:?}");
        }

        async fn next(&mut self) -> api::flow::FlowEvent {
            let line = self.follower.next().await.unwrap();
            let FlowLine::Event(event) = serde_json::from_str(&line).unwrap() else {
                panic!("{line}")
            };
            *event
        }
    }

    /// Names of the rules of one change.
    fn snapshot(change: u32) -> Snapshot {
        let rule = RuleName {
            tier: "default".to_owned(),
            policy: format!("policy-{change}"),
            rule: Some(0),
        };
        Snapshot {
            tables: Arc::new(NodeTables {
                rules: vec![rule],
                ..NodeTables::default()
            }),
            changes: [(EndpointId(7), change)].into(),
            ..Snapshot::default()
        }
    }

    #[tokio::test]
    async fn records_become_events() {
        let mut read = Read::start(Some(Snapshot::default()));
        read.send(0);
        let event = read.next().await;
        assert_eq!((event.destination_port, event.node.as_str()), (80, "node-1"));
    }

    /// The kernel judges by a change before anybody can say what its rules are called.
    #[tokio::test]
    async fn what_a_new_change_decides_waits_for_its_names() {
        let mut read = Read::start(Some(snapshot(3)));
        read.send(4);
        read.send(3);
        read.assert_waits().await;
        read.names.publish(snapshot(4));
        let told = [read.next().await, read.next().await].map(|event| event.decided_by.rule);
        assert_eq!(told, ["policy-4 rule 0", "policy-3 rule 0"]);
    }

    #[tokio::test]
    async fn names_that_never_come_are_waited_for_once() {
        let mut read = Read::start(Some(snapshot(3)));
        let began = Instant::now();
        for change in [4, 5, 4, 9, 10, 3] {
            read.send(change);
        }
        let mut told = Vec::new();
        for _ in 0..6 {
            told.push(read.next().await.decided_by.rule);
        }
        let waited = began.elapsed();
        assert!(waited >= CHANGE_NAMED_WITHIN, "{waited:?}");
        assert!(waited < 2 * CHANGE_NAMED_WITHIN, "{waited:?}");
        assert_eq!(told[..5], ["unnamed-rule"; 5]);
        assert_eq!(told[5], "policy-3 rule 0");
        read.names.publish(snapshot(4));
        read.send(5);
        read.assert_waits().await;
        read.names.publish(snapshot(5));
        assert_eq!(read.next().await.decided_by.rule, "policy-5 rule 0");
    }
}
