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

    use super::*;
    use crate::{
        history::Query,
        log::{FlowLog, LogConfig},
        names::Snapshot,
    };

    #[tokio::test]
    async fn records_become_events() {
        let mut fake = Fake::new();
        let dir = tempfile::tempdir().unwrap();
        let node = || "node-1".to_owned();
        let log = FlowLog::open(LogConfig::sized(dir.path().join("flows"), node(), 0)).unwrap();
        let hub = Arc::new(Hub::new(log, node(), 8));
        let (_, mut follower) = hub.follow(Query::default());
        let source = fake.flow_source().unwrap();
        let names = Arc::new(Names::new());
        names.publish(Snapshot::default());
        let reader = Reader::start(source, names, Arc::clone(&hub), "node-1".to_owned()).unwrap();
        fake.records()
            .send(FlowRecord {
                destination_port: 80,
                ..FlowRecord::default()
            })
            .unwrap();
        let line = follower.next().await.unwrap();
        let FlowLine::Event(event) = serde_json::from_str(&line).unwrap() else {
            panic!("{line}")
        };
        assert_eq!((event.destination_port, event.node.as_str()), (80, "node-1"));
        drop(reader);
    }
}
