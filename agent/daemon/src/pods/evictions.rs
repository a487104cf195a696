//! The node's orders to pods that have to go: for want of memory, disk or process numbers, since it shuts down, or since it never
//! began with them. By a pod's UID.

use std::collections::BTreeMap;

use agent_plan::Eviction;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

/// How long after its time to end a pod is waited for: the kubelet's bound. A process in the kernel's hands may never end.
const GONE_WITHIN: SignedDuration = SignedDuration::from_secs(30);

/// Who has to go. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Evictions(watch::Sender<BTreeMap<String, Eviction>>);

/// The orders as the task of one pod sees them.
pub(super) struct Ordered(watch::Receiver<BTreeMap<String, Eviction>>);

impl Default for Evictions {
    fn default() -> Self {
        Self(watch::channel(BTreeMap::new()).0)
    }
}

impl Evictions {
    /// Orders a pod to go; an earlier order stays.
    pub(crate) fn order(&self, uid: &str, order: Eviction) {
        self.0.send_if_modified(|orders| {
            let new = !orders.contains_key(uid);
            orders.entry(uid.to_owned()).or_insert(order);
            new
        });
    }

    /// Whether the pod was ordered to go.
    pub(crate) fn is_ordered(&self, uid: &str) -> bool {
        self.0.borrow().contains_key(uid)
    }

    /// Whether the pod was ordered to go so lately that what it has may yet come back.
    pub(crate) fn is_awaited(&self, uid: &str, now: Timestamp) -> bool {
        self.0.borrow().get(uid).is_some_and(|order| {
            let since = now.duration_since(order.at);
            // A clock that was set back makes nobody wait.
            !since.is_negative() && since < order.grace.saturating_add(GONE_WITHIN)
        })
    }

    /// Forgets orders for pods that are no more.
    pub(crate) fn keep(&self, lives: impl Fn(&str) -> bool) {
        self.0.send_if_modified(|orders| {
            orders.retain(|uid, _| lives(uid));
            // Nobody is left whom that would concern.
            false
        });
    }

    pub(super) fn follow(&self) -> Ordered {
        let mut orders = self.0.subscribe();
        // One that was given before is new to who follows now.
        orders.mark_changed();
        Ordered(orders)
    }
}

impl Ordered {
    /// The order for a pod, each time that there are new ones.
    pub(super) fn order_for(&mut self, uid: &str) -> Option<Eviction> {
        match self.0.has_changed() {
            Ok(true) => self.0.borrow_and_update().get(uid).cloned(),
            _ => None,
        }
    }

    /// What is ordered now is no news any more.
    pub(super) fn take_note(&mut self) {
        self.0.borrow_and_update();
    }

    /// Waits for new orders.
    pub(super) async fn changed(&mut self) {
        let mut orders = self.0.clone();
        if orders.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use agent_plan::Cause;

    use super::*;

    fn order(message: &str) -> Eviction {
        Eviction {
            cause: Cause::Shortage,
            message: message.to_owned(),
            grace: SignedDuration::ZERO,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_pod_that_does_not_end_is_not_waited_for_forever() {
        let evictions = Evictions::default();
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert!(!evictions.is_awaited("a", at(0)));
        evictions.order("a", order("killed"));
        let grace = SignedDuration::from_secs(60);
        let asked = Eviction {
            grace,
            ..order("asked")
        };
        evictions.order("b", asked);
        assert!(evictions.is_awaited("a", at(29)) && !evictions.is_awaited("a", at(30)));
        assert!(evictions.is_awaited("b", at(89)) && !evictions.is_awaited("b", at(90)));
        assert!(!evictions.is_awaited("a", at(-1)));
        assert!(evictions.is_ordered("a"), "nobody orders it twice");
    }

    #[tokio::test]
    async fn an_order_reaches_its_pod_once_and_the_first_one_stays() {
        let evictions = Evictions::default();
        let mut pod = evictions.follow();
        assert_eq!(pod.order_for("a"), None);
        evictions.order("a", order("first"));
        evictions.order("a", order("second"));
        pod.changed().await;
        assert_eq!(pod.order_for("a").unwrap().message, "first");
        assert_eq!(pod.order_for("a"), None, "it was told");
        assert!(
            evictions.follow().order_for("a").is_some(),
            "who comes later hears of it too"
        );
        evictions.keep(|_| false);
        assert!(!evictions.is_ordered("a"));
    }
}
