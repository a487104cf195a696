//! `POST pods/NAME/eviction`: a delete that disruption budgets may refuse for now. `kubectl drain` is its main user.
//!
//! As in Kubernetes: what a budget allows is in its status, kept by its controller; each eviction takes one from there
//! before it deletes, so two at a time cannot both have the last one.

use api::selector::{LabelSelector, Labels};
use control_admission::{AdmissionRequest, Operation, admit};
use control_store::{Change, Expected, ListOptions, StoreError};
use control_wire::{Status, decode, negotiate, query::WriteQuery};
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde_json::{Value, json};

use crate::{
    Server,
    call::{Call, Outcome},
    delete::check_preconditions,
    lifecycle::{self, seconds},
    objects::{self, metadata_text},
    pods::set_condition,
    write::{MAX_ATTEMPTS, revision_of, store_failure},
};

/// How long a client waits for a controller that has not seen the budget's newest form yet.
const SOON_SECONDS: u32 = 10;
/// More pods than this in a budget's list of those that are on their way out mean that its controller is away.
const MAX_DISRUPTED: usize = 2000;

impl Server {
    /// `POST pods/NAME/eviction`.
    pub(crate) async fn evict_pod(&self, call: &Call) -> Result<Outcome, Status> {
        let (row, name) = (call.target.resource, call.target.name());
        let query = WriteQuery::parse(&call.parameters)?;
        let form = negotiate::body_form(call.content_type.as_deref())?;
        let decoded = decode::object(row, call.target.subresource, form, &call.body, query.validation)?;
        let named = metadata_text(&decoded.object, "name");
        if !named.is_empty() && named != name {
            return Err(Status::bad_request(format!(
                "the name of the eviction ({named}) does not match the name on the URL ({name})"
            )));
        }
        let mut options = decoded.object["deleteOptions"].clone();
        if options.is_null() {
            options = json!({});
        }
        let mut options = decode::delete_options(
            negotiate::BodyForm::Json,
            options.to_string().as_bytes(),
            &call.parameters,
        )?;
        options.dry_run |= query.dry_run;

        let pod = self.load(call).await?;
        // Before the budget is touched. What follows changes the pod, so its revision says nothing afterwards.
        check_preconditions(call, name, &pod, &options)?;
        options.resource_version = None;
        let unguarded = lifecycle::is_being_deleted(&pod) || has_nothing_to_lose(&pod);
        if !unguarded
            && let Some(budget) = self.budget_of(&pod).await?
            && !(is_unready(&pod) && goes_unready(&budget))
        {
            self.take_from(budget, name, options.dry_run, call.now).await?;
        }
        if !unguarded && !options.dry_run {
            self.mark(call, &pod).await?;
        }
        // Only the pod that was judged: a new one of the same name is another matter.
        let uid = metadata_text(&pod, "uid").to_owned();
        options.uid = options.uid.or(Some(uid));
        self.delete_one(call, call.target.namespace(), name, &options)
            .await?;
        Ok(Outcome {
            code: StatusCode::CREATED,
            object: json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
            warnings: decoded.warnings,
        })
    }

    /// The budget that selects the pod.
    async fn budget_of(&self, pod: &Value) -> Result<Option<Value>, Status> {
        let row = crate::row("policy", "poddisruptionbudgets");
        let prefix = objects::prefix(row, Some(metadata_text(pod, "namespace")));
        let page = self.store.list(&prefix, &ListOptions::default()).await;
        let mut found = None;
        for stored in page.map_err(|error| store_failure(&error))?.items {
            let budget = objects::materialise(&stored, stored.revision).map_err(Status::internal)?;
            if !selects(&budget, pod) {
                continue;
            }
            if found.replace(budget).is_some() {
                return Err(Status::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        }
        Ok(found)
    }

    /// Takes one disruption from the budget, or refuses.
    async fn take_from(
        &self,
        mut budget: Value,
        pod: &str,
        dry_run: bool,
        now: Timestamp,
    ) -> Result<(), Status> {
        let row = crate::row("policy", "poddisruptionbudgets");
        let name = metadata_text(&budget, "name").to_owned();
        let namespace = metadata_text(&budget, "namespace").to_owned();
        let key = objects::key(row, &namespace, &name);
        for _attempt in 0..MAX_ATTEMPTS {
            let expected = Expected::At(revision_of(&budget)?);
            let taken = admit(&AdmissionRequest {
                operation: Operation::Update,
                resource: row,
                subresource: "status",
                namespace: &namespace,
                name: &name,
                old: Some(&budget),
                new: take(&budget, pod, now)?,
                user: api::annotations::USER_APISERVER,
                now,
            })?;
            if dry_run {
                return Ok(());
            }
            let change = Change::Put {
                uid: metadata_text(taken.object(), "uid").to_owned(),
                value: objects::serialise(taken.object()),
            };
            match self.store.write(&key, expected, change).await {
                Ok(_revision) => return Ok(()),
                // Another eviction or the controller was faster: judged on what is there now.
                Err(StoreError::Conflict { actual: Some(_), .. }) => {
                    budget = self.fetch(row, &namespace, &name).await?;
                }
                // Gone, and with it what it forbade.
                Err(StoreError::Conflict { actual: None, .. }) => return Ok(()),
                Err(error) => return Err(store_failure(&error)),
            }
        }
        Err(Status::disruption_refused(
            format!("The disruption budget {name} is being changed by others at the moment."),
            Some(SOON_SECONDS),
        ))
    }

    /// Says on the pod why it ends.
    async fn mark(&self, call: &Call, pod: &Value) -> Result<(), Status> {
        let mut marked = pod.clone();
        set_condition(
            &mut marked,
            json!({
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting",
                "lastProbeTime": null,
                "lastTransitionTime": seconds(call.now),
            }),
        );
        let admitted = self.admit(call, Operation::Update, Some(pod), marked)?;
        let expected = Expected::At(revision_of(pod)?);
        match self.store_admitted(call, &admitted, expected, false).await {
            // A pod that changes all the time is evicted without the remark: the delete decides by its UID.
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(store_failure(&error)),
        }
    }
}

/// Whether nothing of it runs yet, or any more.
fn has_nothing_to_lose(pod: &Value) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str);
    matches!(phase, None | Some("Pending" | "Succeeded" | "Failed"))
}

fn is_unready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let mut conditions = conditions.into_iter().flatten();
    !conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Whether the budget lets pods go that are not ready: always, or while enough others are.
fn goes_unready(budget: &Value) -> bool {
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    match budget["spec"]["unhealthyPodEvictionPolicy"].as_str() {
        Some("AlwaysAllow") => true,
        _ => number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0,
    }
}

/// An absent selector selects nothing, an empty one everything.
fn selects(budget: &Value, pod: &Value) -> bool {
    let selector = &budget["spec"]["selector"];
    let Ok(selector) = serde_json::from_value::<meta::LabelSelector>(selector.clone()) else {
        return false;
    };
    let labels = pod.pointer("/metadata/labels").and_then(Value::as_object);
    let labels: Labels = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    // What admission let through parses; what does not protects rather than exposes.
    LabelSelector::try_from(&selector).map_or(true, |selector| selector.matches(&labels))
}

/// The budget with one disruption less, for `pod`.
fn take(budget: &Value, pod: &str, now: Timestamp) -> Result<Value, Status> {
    let name = metadata_text(budget, "name");
    let number = |path: &str| budget.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    if number("/status/observedGeneration") < number("/metadata/generation") {
        return Err(Status::disruption_refused(
            format!("The disruption budget {name} is still being processed by the server."),
            Some(SOON_SECONDS),
        ));
    }
    let disrupted = budget.pointer("/status/disruptedPods").and_then(Value::as_object);
    if disrupted.is_some_and(|pods| pods.len() >= MAX_DISRUPTED) {
        let what = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Status::disruption_refused(what, Some(SOON_SECONDS)));
    }
    let allowed = number("/status/disruptionsAllowed");
    if allowed <= 0 {
        return Err(Status::disruption_refused(
            format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                number("/status/desiredHealthy"),
                number("/status/currentHealthy")
            ),
            None,
        ));
    }
    let mut taken = budget.clone();
    taken["status"]["disruptionsAllowed"] = json!(allowed - 1);
    if !taken["status"]["disruptedPods"].is_object() {
        taken["status"]["disruptedPods"] = json!({});
    }
    taken["status"]["disruptedPods"][pod] = json!(seconds(now));
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(allowed: i64) -> Value {
        json!({
            "metadata": {"name": "b", "generation": 2},
            "spec": {"selector": {"matchLabels": {"app": "web"}}},
            "status": {"observedGeneration": 2, "disruptionsAllowed": allowed, "currentHealthy": 2, "desiredHealthy": 1},
        })
    }

    #[test]
    fn a_budget_is_taken_from_until_there_is_nothing_left() {
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        let taken = take(&budget(1), "p", now).unwrap();
        assert_eq!(taken["status"]["disruptionsAllowed"], 0);
        assert_eq!(taken["status"]["disruptedPods"]["p"], "2026-01-02T03:04:05Z");
        let refused = take(&taken, "q", now).unwrap_err();
        assert_eq!((refused.code(), refused.retry_after_seconds()), (429, None));
        assert!(
            refused.causes()[0]
                .message
                .contains("needs 1 healthy pods and has 2")
        );
        let mut unseen = budget(1);
        unseen["metadata"]["generation"] = json!(3);
        assert_eq!(
            take(&unseen, "p", now).unwrap_err().retry_after_seconds(),
            Some(10)
        );
    }

    #[test]
    fn only_what_is_selected_is_protected() {
        let pod = |app: &str| json!({"metadata": {"labels": {"app": app}}});
        assert!(selects(&budget(1), &pod("web")) && !selects(&budget(1), &pod("db")));
        let all = json!({"spec": {"selector": {}}});
        let none = json!({"spec": {}});
        assert!(selects(&all, &pod("db")) && !selects(&none, &pod("db")));
    }

    #[test]
    fn unready_pods_go_by_the_budgets_word() {
        let mut healthy = budget(0);
        assert!(goes_unready(&healthy), "enough others are ready");
        healthy["status"]["currentHealthy"] = json!(0);
        assert!(!goes_unready(&healthy));
        healthy["spec"]["unhealthyPodEvictionPolicy"] = json!("AlwaysAllow");
        assert!(goes_unready(&healthy));
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert!(!is_unready(&ready) && is_unready(&json!({})));
    }
}
