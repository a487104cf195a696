//! The flow log, and a stream of new lines for everybody who follows.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::flow::{FlowEvent, FlowLine, LossPlace};
use ebpf_loader::Counters;
use policies_ir::tables::EndpointId;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    history::{History, Query, loss_line},
    log::{Counted, FlowLog},
    names::Names,
};

/// Lines that a follower may lag behind before it loses some.
pub const FOLLOWER_LAG: usize = 4096;

/// Writes events to the log and passes them on.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
    node: String,
}

#[derive(Debug)]
struct State {
    log: FlowLog,
    /// Lines are made into text once, for the log and for all who follow.
    sender: broadcast::Sender<Arc<str>>,
}

/// Receives what comes after it began to follow.
#[derive(Debug)]
pub struct Follower {
    receiver: broadcast::Receiver<Arc<str>>,
    node: String,
}

impl Hub {
    /// A hub that writes to `log`. Followers may lag `lag` lines behind.
    pub fn new(log: FlowLog, node: String, lag: usize) -> Self {
        let (sender, _) = broadcast::channel(lag.max(1));
        Self {
            state: Mutex::new(State { log, sender }),
            node,
        }
    }

    /// Adds an event.
    pub fn publish(&self, event: FlowEvent) {
        let mut state = self.lock();
        let text = state.log.append(FlowLine::Event(Box::new(event)));
        state.send(text);
    }

    /// Tells the hub what the kernel has counted; losses since the last time go into the stream.
    pub fn note_losses(&self, counters: &Counters, names: &Names) {
        let mut state = self.lock();
        let before = state.log.counted().clone();
        let kernel = Counted::since(before.kernel, counters.lost_events);
        if kernel > 0 {
            let text = state.log.append_loss(kernel, LossPlace::Kernel, None);
            state.send(text);
        }
        for (endpoint, packets) in &counters.unreported {
            let told = before.unreported.get(&endpoint.0).copied().unwrap_or(0);
            let lost = Counted::since(told, *packets);
            if lost > 0 {
                let pod = names.endpoint(*endpoint);
                let text = state.log.append_loss(lost, LossPlace::Unreported, pod);
                state.send(text);
            }
        }
        let unreported = counters.unreported.iter();
        state.log.set_counted(Counted {
            kernel: counters.lost_events,
            unreported: unreported
                .map(|(EndpointId(id), packets)| (*id, *packets))
                .collect(),
            ..Counted::default()
        });
    }

    /// Makes what was written so far outlive the machine. Blocks, but nobody else.
    pub fn sync(&self) -> io::Result<()> {
        let file = self.lock().log.newest_file()?;
        file.sync_data()
    }

    /// What is written by now.
    pub fn history(&self, query: Query) -> History {
        self.lock().log.history(query)
    }

    /// What is written by now and everything after it, without a gap or an overlap.
    pub fn follow(&self, query: Query) -> (History, Follower) {
        let state = self.lock();
        let follower = Follower {
            receiver: state.sender.subscribe(),
            node: self.node.clone(),
        };
        (state.log.history(query), follower)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete after each statement, so a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn send(&self, text: Option<String>) {
        // An error means that nobody follows, which is not a loss: the log has the line.
        drop(text.map(|text| self.sender.send(text.into())));
    }
}

impl Follower {
    /// The next line; `None` when the hub is gone. May be cancelled without losing a line.
    pub async fn next(&mut self) -> Option<Arc<str>> {
        match self.receiver.recv().await {
            Ok(line) => Some(line),
            Err(RecvError::Lagged(lost)) => loss_line(&self.node, lost, LossPlace::Reader).map(Arc::from),
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use api::flow::FlowLoss;
    use ebpf_loader::EndpointLink;

    use super::*;
    use crate::{event::Clock, event::flow_event, log::LogConfig};

    fn event(port: u16) -> FlowEvent {
        let record = ebpf_loader::FlowRecord {
            destination_port: port,
            ..Default::default()
        };
        let clock = Clock {
            now: jiff::Timestamp::UNIX_EPOCH,
            monotonic: std::time::Duration::ZERO,
        };
        flow_event(&record, &Names::new(), "node-1", &clock)
    }

    fn config(dir: &Path, segment_bytes: u64, segments: usize) -> LogConfig {
        LogConfig {
            dir: dir.join("flows"),
            node: "node-1".to_owned(),
            segment_bytes,
            segments,
        }
    }

    fn hub(config: LogConfig) -> Hub {
        Hub::new(FlowLog::open(config).unwrap(), "node-1".to_owned(), 8)
    }

    /// Ports of events; losses as text.
    fn short(line: &str) -> String {
        match serde_json::from_str(line).unwrap() {
            FlowLine::Event(event) => event.destination_port.to_string(),
            FlowLine::Lost(FlowLoss { lost, at, .. }) => format!("lost {lost} {at:?}"),
        }
    }

    fn read(history: &History) -> Vec<String> {
        let mut lines = Vec::new();
        history.read(|line| {
            lines.push(short(&line));
            true
        });
        lines
    }

    fn all(hub: &Hub) -> Vec<String> {
        read(&hub.history(Query::default()))
    }

    #[tokio::test]
    async fn followers_continue_where_history_ends() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(config(dir.path(), 1 << 20, 2));
        (1..=5).for_each(|port| hub.publish(event(port)));
        let newest = Query {
            limit: Some(2),
            ..Query::default()
        };
        let (history, mut follower) = hub.follow(newest);
        hub.publish(event(6));
        assert_eq!(read(&history), ["4", "5"], "what came later is not history");
        assert_eq!(short(&follower.next().await.unwrap()), "6");
        let rest = Query {
            after: Some(4),
            ..Query::default()
        };
        assert_eq!(read(&hub.history(rest)), ["5", "6"]);
        let later = Query {
            since: Some(jiff::Timestamp::now()),
            ..Query::default()
        };
        assert_eq!(read(&hub.history(later)), [] as [&str; 0]);
        drop(hub);
        assert_eq!(follower.next().await, None);
    }

    #[tokio::test]
    async fn a_slow_follower_hears_how_much_it_lost() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(config(dir.path(), 1 << 20, 2));
        let (_, mut follower) = hub.follow(Query::default());
        (1..=11).for_each(|port| hub.publish(event(port)));
        assert_eq!(short(&follower.next().await.unwrap()), "lost 3 Reader");
        assert_eq!(short(&follower.next().await.unwrap()), "4");
        assert_eq!(all(&hub).len(), 11, "the log has them all");
    }

    #[test]
    fn the_log_goes_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 1 << 20, 2);
        let before = hub(config.clone());
        (1..=2).for_each(|port| before.publish(event(port)));
        drop(before);
        let after = hub(config);
        after.publish(event(3));
        assert_eq!(all(&after), ["1", "2", "3"]);
        let mut numbers = Vec::new();
        after.history(Query::default()).read(|line| {
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            numbers.push(value["sequence"].as_u64().unwrap());
            true
        });
        assert_eq!(numbers, [1, 2, 3]);
    }

    #[test]
    fn a_torn_line_is_cut_off_and_counted() {
        use std::io::Write as _;
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 1 << 20, 2);
        hub(config.clone()).publish(event(1));
        let file = std::fs::read_dir(&config.dir).unwrap().next().unwrap().unwrap();
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(file.path())
            .unwrap();
        file.write_all(b"{\"time\":\"1970-01-01").unwrap();
        let after = hub(config.clone());
        after.publish(event(2));
        file.write_all(b"\0\0 no line\n").unwrap();
        after.publish(event(3));
        assert_eq!(all(&after), ["1", "lost 1 Damaged", "2", "lost 1 Damaged", "3"]);
    }

    #[test]
    fn the_oldest_file_goes_first_and_its_lines_are_counted() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 1000, 3);
        let hub = hub(config.clone());
        (1..=40).for_each(|port| hub.publish(event(port)));
        let files: Vec<_> = std::fs::read_dir(&config.dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .collect();
        assert_eq!(files.len(), 3);
        for file in &files {
            let metadata = file.metadata().unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
            assert!(metadata.len() < 2000, "{}", metadata.len());
        }
        // Each event and each loss has a number, so all can be accounted for.
        let (mut events, mut lost, mut first) = (0, 0, None);
        hub.history(Query::default()).read(|line| {
            match serde_json::from_str(&line).unwrap() {
                FlowLine::Event(event) => {
                    events += 1;
                    first.get_or_insert(event.sequence);
                }
                FlowLine::Lost(loss) => {
                    assert_eq!(loss.at, LossPlace::Retention);
                    first.get_or_insert(loss.sequence.unwrap());
                    lost += loss.lost;
                }
            }
            true
        });
        assert!(events > 0 && events < 40 && lost > 0, "{events} {lost}");
        // Who had read the first line and comes back hears how many are gone.
        let after_one = Query {
            after: Some(1),
            ..Query::default()
        };
        let gone = first.unwrap() - 2;
        assert_eq!(
            read(&hub.history(after_one)).first().unwrap(),
            &format!("lost {gone} Retention")
        );
    }

    #[test]
    fn a_file_that_goes_while_it_is_to_be_read_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(config(dir.path(), 500, 2));
        hub.publish(event(1));
        let history = hub.history(Query::default());
        (2..=20).for_each(|port| hub.publish(event(port)));
        assert_eq!(read(&history), ["lost 1 Retention"]);
    }

    #[test]
    fn a_disk_that_fails_loses_lines_by_count() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 500, 9);
        let hub = hub(config.clone());
        hub.publish(event(1));
        hub.publish(event(2));
        // No next file can be begun without the directory.
        let away = dir.path().join("away");
        std::fs::rename(&config.dir, &away).unwrap();
        (3..=5).for_each(|port| hub.publish(event(port)));
        std::fs::rename(&away, &config.dir).unwrap();
        hub.publish(event(6));
        let lines = all(&hub);
        let stored = lines.iter().filter(|line| !line.starts_with("lost")).count();
        let lost = lines
            .iter()
            .filter_map(|line| line.strip_prefix("lost "))
            .next()
            .unwrap();
        assert_eq!(lost, format!("{} Disk", 6 - stored), "{lines:?}");
    }

    #[tokio::test]
    async fn a_disk_that_fails_leaves_no_gap_in_the_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 500, 99);
        let hub = hub(config.clone());
        hub.publish(event(1));
        hub.publish(event(2));
        let (_, mut follower) = hub.follow(Query::default());
        let away = dir.path().join("away");
        std::fs::rename(&config.dir, &away).unwrap();
        (3..=5).for_each(|port| hub.publish(event(port)));
        let unwritten: serde_json::Value = serde_json::from_str(&follower.next().await.unwrap()).unwrap();
        assert_eq!(unwritten["sequence"], 0, "a number is for what is in the log");
        std::fs::rename(&away, &config.dir).unwrap();
        (6..=8).for_each(|port| hub.publish(event(port)));
        let mut files: Vec<_> = std::fs::read_dir(&config.dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
            .collect();
        files.sort();
        let mut numbers = Vec::new();
        for file in files {
            for line in std::fs::read_to_string(file).unwrap().lines() {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                numbers.push(value["sequence"].as_u64().unwrap());
            }
        }
        assert_eq!(
            numbers,
            (1..=6).collect::<Vec<u64>>(),
            "five events and one line about three"
        );
    }

    #[test]
    fn what_the_kernel_lost_is_told_once_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 1 << 20, 2);
        let link = EndpointLink {
            id: EndpointId(7),
            ifindex: 1,
            addresses: Vec::new(),
            mac: [0; 6],
        };
        let counters = |kernel, unreported| Counters {
            lost_events: kernel,
            unreported: [(link.id, unreported)].into(),
            ..Counters::default()
        };
        let names = Names::new();
        let before = hub(config.clone());
        before.note_losses(&counters(5, 0), &names);
        before.note_losses(&counters(5, 2), &names);
        drop(before);
        let after = hub(config);
        after.note_losses(&counters(7, 2), &names);
        // New maps count anew.
        after.note_losses(&counters(1, 1), &names);
        assert_eq!(
            all(&after),
            [
                "lost 5 Kernel",
                "lost 2 Unreported",
                "lost 2 Kernel",
                "lost 1 Kernel",
                "lost 1 Unreported"
            ]
        );
    }
}
