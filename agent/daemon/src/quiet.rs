//! Gives back memory that only a burst of work needed: the agent's own start, a crowd of pods.
//!
//! Between such bursts the agent mostly waits, and what it then uses is a fraction of its program and of what it had
//! allocated. It gives back once after each burst; what it uses of it all the same comes back by itself and stays.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long nothing must have happened to a pod of this node.
const QUIET: Duration = Duration::from_secs(10);

/// How long a burst may take: on some nodes there is always a pod that is started again.
const LONGEST: Duration = Duration::from_secs(60);

/// Hears of work on pods. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Quiet {
    worked: Arc<Notify>,
}

impl Quiet {
    /// Calls `give_back` in the first quiet moment, and in the first after each burst of work, or once a minute while that
    /// lasts, until `shutdown`.
    pub(crate) fn start(give_back: fn(), shutdown: CancellationToken) -> Self {
        let worked = Arc::new(Notify::new());
        let hears = worked.clone();
        // The start is work, too.
        worked.notify_one();
        tokio::spawn(shutdown.run_until_cancelled_owned(async move {
            loop {
                hears.notified().await;
                let burst = async { while timeout(QUIET, hears.notified()).await.is_ok() {} };
                drop(timeout(LONGEST, burst).await);
                give_back();
            }
        }));
        Self { worked }
    }

    /// Something was done for a pod.
    pub(crate) fn worked(&self) {
        self.worked.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn memory_is_given_back_once_after_each_burst() {
        static TIMES: AtomicU32 = AtomicU32::new(0);
        let after = async |seconds| {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            TIMES.load(Ordering::Relaxed)
        };
        let end = CancellationToken::new();
        let give_back = || {
            TIMES.fetch_add(1, Ordering::Relaxed);
        };
        let quiet = Quiet::start(give_back, end.clone());
        assert_eq!(after(9).await, 0, "the start is not over");
        assert_eq!(after(2).await, 1);
        assert_eq!(after(1000).await, 1, "nothing was done since");
        for _ in 0..8 {
            quiet.worked();
            assert_eq!(after(6).await, 1, "in the middle of a burst");
        }
        assert_eq!(after(5).await, 2);
        for _ in 0..12 {
            quiet.worked();
            after(6).await;
        }
        assert_eq!(after(0).await, 3, "a burst that does not end");
        assert_eq!(after(11).await, 4);
        quiet.worked();
        end.cancel();
        assert_eq!(after(1000).await, 4, "the agent has ended");
    }
}
