//! Shares of connections: how many of those that nobody has vouched for come from one place. For every server of the cluster.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// Counts connections by where they come from. As large as the number of connections that hold a share.
#[derive(Debug, Clone)]
pub struct Shares {
    limit: usize,
    held: Arc<Mutex<HashMap<Source, usize>>>,
}

/// One connection's; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    source: Source,
    held: Arc<Mutex<HashMap<Source, usize>>>,
}

/// What one machine or customer has to itself: an IPv4 address, or the 64 bits of an IPv6 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    V4(Ipv4Addr),
    V6([u16; 4]),
}

impl Shares {
    /// At most `limit` for each source.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            held: Arc::default(),
        }
    }

    /// A share for a connection from `address`, unless its source has all of its own.
    pub fn take(&self, address: IpAddr) -> Option<Share> {
        let source = Source::of(address);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(&source).copied().unwrap_or_default();
        if count >= self.limit {
            return None;
        }
        held.insert(source, count.saturating_add(1));
        Some(Share {
            source,
            held: Arc::clone(&self.held),
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get_mut(&self.source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(held.remove(&self.source)),
        }
    }
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self::V6([a, b, c, d])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_address_or_an_ipv6_network_and_gets_its_share_back() {
        let shares = Shares::new(2);
        let take = |address: &str| shares.take(address.parse().unwrap());
        let held = [take("192.0.2.1"), take("::ffff:192.0.2.1")];
        assert!(held.iter().all(Option::is_some));
        assert!(take("192.0.2.1").is_none());
        let _six = [take("2001:db8::1"), take("2001:db8::ffff:1")];
        assert!(take("2001:db8::2").is_none(), "one network");
        assert!(take("2001:db8:0:1::1").is_some(), "another");
        let [first, second] = held;
        drop(first);
        assert!(take("192.0.2.1").is_some());
        drop(second);
        assert!(
            !shares
                .held
                .lock()
                .unwrap()
                .contains_key(&Source::of("192.0.2.1".parse().unwrap()))
        );
    }
}
