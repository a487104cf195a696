//! The orderly end of a node: its pods get their time, those of the system last, and then nothing of them runs any more.
//!
//! Asked for by `SIGPWR`, the signal that tells of failing power. `SIGTERM` ends the agent only: pods outlive that.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_plan::{Cause, Eviction, is_critical};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::{
    config::ShutdownGrace,
    pods::{directory::Directory, evictions::Evictions, roster::Roster},
};

/// Kubernetes' words for it.
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// What is added to each grace for the kill and the last status.
const SLACK: Duration = Duration::from_secs(3);
/// How often it is looked at who is still there.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Ends all pods of the node, in the order of their importance.
pub(crate) async fn end_pods(
    grace: ShutdownGrace,
    roster: &Roster,
    directory: &Directory,
    evictions: &Evictions,
) {
    let groups = [(false, grace.pods_seconds), (true, grace.critical_pods_seconds)];
    for (critical, seconds) in groups {
        let limit = Duration::from_secs(seconds.into());
        let ends = Instant::now() + limit + SLACK;
        loop {
            // Those that were bound meanwhile go too.
            let pods = of_group(roster, critical);
            for (uid, pod) in &pods {
                evictions.order(uid, order(pod, limit));
            }
            let mut entries = directory.all().into_iter();
            let runs = entries.any(|entry| {
                pods.contains_key(&entry.id.uid) && entry.containers.values().any(|latest| latest.running)
            });
            if !runs || Instant::now() >= ends {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    // Last statuses are on their way.
    tokio::time::sleep(SLACK).await;
}

fn of_group(roster: &Roster, critical: bool) -> BTreeMap<String, Arc<Pod>> {
    let mut pods = roster.pods();
    pods.retain(|_uid, pod| is_critical(pod) == critical);
    pods
}

/// A pod's own grace is shortened to the node's, never lengthened.
fn order(pod: &Pod, limit: Duration) -> Eviction {
    let own = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.termination_grace_period_seconds);
    let limit = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
    Eviction {
        cause: Cause::NodeEnds,
        message: MESSAGE.to_owned(),
        grace: SignedDuration::from_secs(own.unwrap_or(30).clamp(0, limit)),
        at: Timestamp::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::roster::tests::{found, pod, unheard};

    #[test]
    fn a_pods_grace_is_shortened_and_never_lengthened() {
        let grace = |own: Option<i64>| {
            let mut pod = Pod::default();
            pod.spec.get_or_insert_default().termination_grace_period_seconds = own;
            let order = order(&pod, Duration::from_secs(20));
            assert_eq!(order.cause, Cause::NodeEnds);
            order.grace.as_secs()
        };
        assert_eq!([None, Some(5), Some(60), Some(0)].map(grace), [20, 5, 20, 0]);
    }

    #[tokio::test]
    async fn pods_of_an_earlier_agent_end_in_order_while_the_api_says_nothing() {
        let base = tempfile::tempdir().unwrap();
        let (plain, mut of_file) = (pod("plain", 0), pod("file", 0));
        let mirror = ("kubernetes.io/config.mirror".to_owned(), "h".to_owned());
        of_file.metadata.annotations = Some([mirror].into());
        let system = pod("system", 2_000_000_000);
        let (roster, directory) = unheard(base.path(), &[plain.clone(), of_file, system]);
        let evictions = Evictions::default();
        let grace = ShutdownGrace {
            pods_seconds: 20,
            critical_pods_seconds: 10,
        };
        let ending = end_pods(grace, &roster, &directory, &evictions);
        let watching = async {
            let ordered = async |uid: &str| {
                while !evictions.is_ordered(uid) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            ordered("plain").await;
            tokio::time::sleep(LOOK_EVERY * 2).await;
            for last in ["system", "file"] {
                assert!(
                    !evictions.is_ordered(last),
                    "{last}: those of the system are last"
                );
            }
            directory.publish_for_tests(&found(&plain, false));
            ordered("system").await;
            ordered("file").await;
        };
        tokio::select! {
            () = ending => panic!("it did not wait for pods that run"),
            () = watching => {}
        }
    }
}
