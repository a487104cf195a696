//! Recent events, and a stream of new ones for everybody who follows.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::flow::FlowEvent;
use tokio::sync::broadcast::{self, error::RecvError};

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubLimits {
    /// Recent events kept for those who come later.
    pub history: usize,
    /// Events that a follower may lag behind before it loses some.
    pub lag: usize,
}

impl Default for HubLimits {
    fn default() -> Self {
        Self {
            history: 4096,
            lag: 1024,
        }
    }
}

/// One thing in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// An event.
    Event(Arc<FlowEvent>),
    /// So many events are missing here.
    Lost(u64),
}

/// Keeps recent events and passes on new ones.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
    history_limit: usize,
}

#[derive(Debug)]
struct State {
    history: VecDeque<Item>,
    sender: broadcast::Sender<Item>,
    lost_in_kernel: u64,
}

/// Receives what comes after it began to follow.
#[derive(Debug)]
pub struct Follower {
    receiver: broadcast::Receiver<Item>,
}

impl Hub {
    /// An empty hub.
    pub fn new(limits: HubLimits) -> Self {
        let (sender, _) = broadcast::channel(limits.lag.max(1));
        let state = State {
            history: VecDeque::new(),
            sender,
            lost_in_kernel: 0,
        };
        Self {
            state: Mutex::new(state),
            history_limit: limits.history,
        }
    }

    /// Adds an event.
    pub fn publish(&self, event: FlowEvent) {
        self.push(&mut self.lock(), Item::Event(Arc::new(event)));
    }

    /// Tells the hub how many events the kernel has ever lost (`Counters::lost_events`); what is new since the last
    /// time goes into the stream.
    pub fn note_kernel_loss(&self, total: u64) {
        let mut state = self.lock();
        let lost = total.saturating_sub(state.lost_in_kernel);
        state.lost_in_kernel = total;
        if lost > 0 {
            self.push(&mut state, Item::Lost(lost));
        }
    }

    /// The most recent items, oldest first, no more than `limit`.
    pub fn recent(&self, limit: usize) -> Vec<Item> {
        recent(&self.lock(), limit)
    }

    /// The most recent items and everything after them, without a gap or an overlap.
    pub fn follow(&self, limit: usize) -> (Vec<Item>, Follower) {
        let state = self.lock();
        (
            recent(&state, limit),
            Follower {
                receiver: state.sender.subscribe(),
            },
        )
    }

    fn push(&self, state: &mut State, item: Item) {
        if state.history.len() >= self.history_limit {
            state.history.pop_front();
        }
        if self.history_limit > 0 {
            state.history.push_back(item.clone());
        }
        // An error means that nobody follows, which is not a loss: history has the item.
        drop(state.sender.send(item));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete after each statement, so a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower {
    /// The next item; `None` when the hub is gone. May be cancelled without losing an item.
    pub async fn next(&mut self) -> Option<Item> {
        match self.receiver.recv().await {
            Ok(item) => Some(item),
            Err(RecvError::Lagged(lost)) => Some(Item::Lost(lost)),
            Err(RecvError::Closed) => None,
        }
    }
}

fn recent(state: &State, limit: usize) -> Vec<Item> {
    let skipped = state.history.len().saturating_sub(limit);
    state.history.iter().skip(skipped).cloned().collect()
}

#[cfg(test)]
mod tests {
    use api::flow::{DecidedBy, FlowDirection, FlowVerdict, PodRef};
    use jiff::Timestamp;

    use super::*;

    fn event(port: u16) -> FlowEvent {
        FlowEvent {
            time: Timestamp::UNIX_EPOCH,
            node: "node-1".to_owned(),
            pod: PodRef {
                namespace: "default".to_owned(),
                name: "web".to_owned(),
            },
            direction: FlowDirection::Ingress,
            verdict: FlowVerdict::Allow,
            decided_by: DecidedBy {
                rule: "no-policy".to_owned(),
                policy: None,
                tier: None,
            },
            staged: None,
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            peer: None,
            protocol: 6,
            source_port: 1,
            destination_port: port,
            epoch: 1,
        }
    }

    fn ports(items: &[Item]) -> Vec<u64> {
        let port = |item: &Item| match item {
            Item::Event(event) => u64::from(event.destination_port),
            Item::Lost(lost) => 1_000_000 + lost,
        };
        items.iter().map(port).collect()
    }

    #[tokio::test]
    async fn followers_continue_where_history_ends() {
        let hub = Hub::new(HubLimits { history: 3, lag: 8 });
        (1..=5).for_each(|port| hub.publish(event(port)));
        let (history, mut follower) = hub.follow(2);
        assert_eq!(ports(&history), [4, 5]);
        assert_eq!(ports(&hub.recent(10)), [3, 4, 5]);
        hub.publish(event(6));
        assert_eq!(ports(&[follower.next().await.unwrap()]), [6]);
        drop(hub);
        assert_eq!(follower.next().await, None);
    }

    #[tokio::test]
    async fn a_slow_follower_hears_how_much_it_lost() {
        let hub = Hub::new(HubLimits { history: 0, lag: 2 });
        let (history, mut follower) = hub.follow(10);
        assert_eq!(history, []);
        (1..=5).for_each(|port| hub.publish(event(port)));
        assert_eq!(ports(&[follower.next().await.unwrap()]), [1_000_003]);
        assert_eq!(ports(&[follower.next().await.unwrap()]), [4]);
    }

    #[test]
    fn kernel_loss_is_reported_once() {
        let hub = Hub::new(HubLimits::default());
        hub.note_kernel_loss(5);
        hub.note_kernel_loss(5);
        hub.note_kernel_loss(7);
        assert_eq!(ports(&hub.recent(10)), [1_000_005, 1_000_002]);
    }
}
