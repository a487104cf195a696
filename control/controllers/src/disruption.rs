//! Keeps the status of disruption budgets: how many of their pods may be evicted now.
//!
//! Kubernetes takes the number of pods that are expected from the workload that owns them. Here nothing owns pods, so
//! those that are there and have not ended are the ones expected; a share is of them, rounded up.

use std::{sync::Arc, time::Duration};

use api::selector::LabelSelector;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{backoff::Backoff, cache::Cache};

/// Everything is looked at again this often, change or not: entries of pods that were not deleted after all run out.
const RESYNC: Duration = Duration::from_secs(30);
/// An eviction that did not lead to a deletion by then counts no more: Kubernetes' number.
const UNDONE_AFTER: SignedDuration = SignedDuration::from_mins(2);

/// What the loop looks at.
pub(crate) struct Caches {
    pub(crate) budgets: Cache<PodDisruptionBudget>,
    pub(crate) pods: Cache<Pod>,
}

/// Runs for ever.
pub(crate) async fn run(client: Client, mut caches: Caches) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let mut wait = RESYNC;
        if let (Some(budgets), Some(pods)) = (caches.budgets.objects(), caches.pods.objects()) {
            let mut settled = true;
            for budget in budgets {
                settled &= keep(&client, &budget, &pods).await;
            }
            match settled {
                true => backoff.reset(),
                false => wait = backoff.fail(),
            }
        }
        tokio::select! {
            () = caches.budgets.changed() => {}
            () = caches.pods.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// False when it has to be tried again.
async fn keep(client: &Client, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> bool {
    let status = status_of(budget, pods, Timestamp::now());
    if budget.status.as_ref() == Some(&status) {
        return true;
    }
    let name = budget.name_any();
    let mut body = json!({
        // An eviction may take from the budget meanwhile: then what is written here was computed too early.
        "metadata": {"resourceVersion": budget.resource_version(), "uid": budget.uid()},
        "status": status,
    });
    // A merge keeps what is not named; pods that are gone go by name.
    let before = budget
        .status
        .iter()
        .flat_map(|status| status.disrupted_pods.iter().flatten());
    let kept = status.disrupted_pods.unwrap_or_default();
    for (pod, _) in before.filter(|(pod, _)| !kept.contains_key(*pod)) {
        body["status"]["disruptedPods"][pod] = serde_json::Value::Null;
    }
    let api: Api<PodDisruptionBudget> =
        Api::namespaced(client.clone(), &budget.namespace().unwrap_or_default());
    match api
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(body))
        .await
    {
        Ok(_) => true,
        // Changed or gone: the watch brings what is there now.
        Err(kube::Error::Api(status)) if status.code == 404 => true,
        Err(kube::Error::Api(status)) if status.code == 409 => false,
        Err(error) => {
            tracing::warn!(
                budget = name,
                error = &error as &dyn std::error::Error,
                "budget was not updated, will be retried"
            );
            false
        }
    }
}

/// What the budget allows, seen from `pods`.
fn status_of(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], now: Timestamp) -> PodDisruptionBudgetStatus {
    let before = budget.status.clone().unwrap_or_default();
    let own: Vec<&Arc<Pod>> = pods.iter().filter(|pod| is_guarded(budget, pod)).collect();
    // Evicted and not yet seen to end.
    let mut disrupted = before.disrupted_pods.clone().unwrap_or_default();
    disrupted.retain(|name, since| {
        let pod = own.iter().find(|pod| pod.name_any() == *name);
        let ends = pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
        !ends && now.duration_since(since.0) < UNDONE_AFTER
    });
    let healthy = own
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter(|pod| is_ready(pod) && !disrupted.contains_key(&pod.name_any()))
        .count();
    let (expected, healthy) = (count(own.len()), count(healthy));
    let spec = budget.spec.clone().unwrap_or_default();
    let desired = match (&spec.min_available, &spec.max_unavailable) {
        (Some(least), _) => amount(least, expected),
        (None, Some(most)) => (expected - amount(most, expected)).max(0),
        (None, None) => 1,
    };
    let allowed = if expected == 0 {
        0
    } else {
        (healthy - desired).max(0)
    };
    PodDisruptionBudgetStatus {
        conditions: Some(conditions(&before, allowed, budget.metadata.generation, now)),
        current_healthy: healthy,
        desired_healthy: desired,
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        disruptions_allowed: allowed,
        expected_pods: expected,
        observed_generation: budget.metadata.generation,
    }
}

fn conditions(
    before: &PodDisruptionBudgetStatus,
    allowed: i32,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let (status, reason) = match allowed {
        0 => ("False", "InsufficientPods"),
        _ => ("True", "SufficientPods"),
    };
    let known = before.conditions.iter().flatten();
    let mut known = known.filter(|known| known.type_ == "DisruptionAllowed" && known.status == status);
    vec![Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: generation,
        last_transition_time: known
            .next()
            .map_or(Time(now), |known| known.last_transition_time.clone()),
    }]
}

/// An absent selector selects nothing; pods that have ended are nobody's loss.
fn is_guarded(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let Some(selector) = selector.and_then(|selector| LabelSelector::try_from(selector).ok()) else {
        return false;
    };
    pod.namespace() == budget.namespace()
        && !matches!(phase, Some("Succeeded" | "Failed"))
        && selector.matches(&pod.metadata.labels.clone().unwrap_or_default())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A share is rounded up, as in Kubernetes. What is no share counts as all: nothing may go.
fn amount(value: &IntOrString, of: i32) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: Option<i64> = text.strip_suffix('%').and_then(|text| text.parse().ok());
            let share = percent.map(|percent| (i64::from(of) * percent + 99).div_euclid(100));
            share.and_then(|share| i32::try_from(share).ok()).unwrap_or(of)
        }
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;
    use serde_json::Value;

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().unwrap()
    }

    fn budget(spec: Value, disrupted: &Value) -> PodDisruptionBudget {
        let mut spec = spec;
        spec["selector"] = json!({"matchLabels": {"app": "web"}});
        let budget = json!({
            "metadata": {"name": "b", "namespace": "ns", "generation": 4},
            "spec": spec,
            "status": {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0,
                "disruptedPods": disrupted},
        });
        serde_json::from_value(budget).unwrap()
    }

    fn pods(states: &[&str]) -> Vec<Arc<Pod>> {
        let pod = |(index, state): (usize, &&str)| {
            let mut pod = json!({
                "metadata": {"name": format!("p{index}"), "namespace": "ns", "labels": {"app": "web"}},
                "spec": {"containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
            });
            match *state {
                "unready" => pod["status"]["conditions"][0]["status"] = json!("False"),
                "ending" => pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
                "ended" => pod["status"]["phase"] = json!("Succeeded"),
                "other" => pod["metadata"]["labels"]["app"] = json!("db"),
                _ => {}
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        states.iter().enumerate().map(pod).collect()
    }

    /// Expected, healthy, desired, allowed.
    fn numbers(spec: Value, states: &[&str]) -> [i32; 4] {
        let status = status_of(&budget(spec, &json!({})), &pods(states), now());
        assert_eq!(status.observed_generation, Some(4));
        let condition = &status.conditions.as_ref().unwrap()[0];
        assert_eq!(condition.status == "True", status.disruptions_allowed > 0);
        [
            status.expected_pods,
            status.current_healthy,
            status.desired_healthy,
            status.disruptions_allowed,
        ]
    }

    #[test]
    fn what_must_stay_and_what_may_go() {
        let three = ["ready", "ready", "ready", "other", "ended"];
        assert_eq!(numbers(json!({"minAvailable": 2}), &three), [3, 3, 2, 1]);
        assert_eq!(numbers(json!({"maxUnavailable": 1}), &three), [3, 3, 2, 1]);
        assert_eq!(
            numbers(json!({"minAvailable": "50%"}), &three),
            [3, 3, 2, 1],
            "rounded up"
        );
        assert_eq!(numbers(json!({"maxUnavailable": "50%"}), &three), [3, 3, 1, 2]);
        assert_eq!(numbers(json!({"minAvailable": "100%"}), &three), [3, 3, 3, 0]);
        assert_eq!(numbers(json!({}), &three), [3, 3, 1, 2]);
        let worse = ["ready", "unready", "ending"];
        assert_eq!(numbers(json!({"minAvailable": 1}), &worse), [3, 1, 1, 0]);
        assert_eq!(numbers(json!({"minAvailable": 0}), &[]), [0, 0, 0, 0]);
    }

    #[test]
    fn an_eviction_counts_until_it_is_seen_or_forgotten() {
        let at = |time: Timestamp| Time(time);
        let disrupted = json!({
            "p0": at(now() - 1.minute()), "p1": at(now() - 3.minutes()), "p2": at(now()), "gone": at(now()),
        });
        let budget = budget(json!({"minAvailable": 0}), &disrupted);
        let status = status_of(&budget, &pods(&["ready", "ready", "ending"]), now());
        let left: Vec<String> = status.disrupted_pods.unwrap().into_keys().collect();
        assert_eq!(
            (left.as_slice(), status.current_healthy),
            (["p0".to_owned()].as_slice(), 1)
        );
    }
}
