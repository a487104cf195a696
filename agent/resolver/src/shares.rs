//! Room that clients share, so that none of them can take it from the others. Pure.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// How much room there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Most that one client holds.
    pub(crate) per_client: usize,
    /// What all clients hold, beside what each of them may always have.
    pub(crate) all: usize,
    /// What a client may always have, whatever others hold: of these there are as many as the node has pods.
    pub(crate) always: usize,
}

/// Who holds how much of it.
#[derive(Debug)]
pub(crate) struct Shares {
    room: Room,
    held: Mutex<BTreeMap<IpAddr, usize>>,
}

/// A place of a client's; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    client: IpAddr,
}

impl Shares {
    pub(crate) fn new(room: Room) -> Arc<Self> {
        Arc::new(Self {
            room,
            held: Mutex::default(),
        })
    }

    /// A place for the client, if it may have one more.
    pub(crate) fn take(self: &Arc<Self>, client: IpAddr) -> Option<Share> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held.get(&client).copied().unwrap_or_default();
        let all: usize = held.values().sum();
        let Room {
            per_client,
            all: most,
            always,
        } = self.room;
        if own >= per_client || (all >= most && own >= always) {
            return None;
        }
        held.insert(client, own + 1);
        Some(Share {
            shares: Arc::clone(self),
            client,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = held.get_mut(&self.client) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                held.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    #[test]
    fn whoever_comes_last_has_its_own_however_much_the_others_hold() {
        let shares = Shares::new(Room {
            per_client: 64,
            all: 1024,
            always: 8,
        });
        let take = |number, count: usize| -> Vec<Share> {
            std::iter::repeat_with(|| shares.take(client(number)))
                .take(count)
                .flatten()
                .collect()
        };
        let mut crowd: Vec<Vec<Share>> = (0..16).map(|number| take(number, 100)).collect();
        assert!(crowd.iter().all(|held| held.len() == 64));
        for number in 16..32 {
            crowd.push(take(number, 100));
            assert_eq!(crowd.last().map(Vec::len), Some(8), "client {number}");
        }
        // What is free again is anybody's.
        crowd.drain(..4);
        assert_eq!(take(40, 100).len(), 64);
        drop(crowd);
        assert!(shares.held.lock().unwrap().is_empty());
    }
}
