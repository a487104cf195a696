//! Deletes events that are an hour old.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Event;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Preconditions},
};

/// Age at which an event goes, counted from its last repetition.
const KEEP: SignedDuration = SignedDuration::from_hours(1);

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(60);

const PAGE: u32 = 500;

/// Runs for ever.
pub(crate) async fn run(client: Client) {
    loop {
        if let Err(error) = sweep(&client, Timestamp::now()).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "old events were not deleted, will be retried"
            );
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn sweep(client: &Client, now: Timestamp) -> Result<(), kube::Error> {
    let all: Api<Event> = Api::all(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = all.list(&params).await?;
        for event in page.items.iter().filter(|event| expired(event, now)) {
            let api: Api<Event> = Api::namespaced(client.clone(), &event.namespace().unwrap_or_default());
            // The version keeps an event that was repeated just now.
            let unchanged = Preconditions {
                resource_version: event.resource_version(),
                uid: event.uid(),
            };
            let deletion = DeleteParams::default().preconditions(unchanged);
            match api.delete(&event.name_any(), &deletion).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(error),
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(()),
        }
    }
}

/// An event without any time is as old as can be.
fn expired(event: &Event, now: Timestamp) -> bool {
    let series = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref())
        .map(|time| time.0);
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let single = event.event_time.as_ref().map(|time| time.0);
    let created = event.creation_timestamp().map(|time| time.0);
    let newest = [series, last, single, created].into_iter().flatten().max();
    newest.is_none_or(|newest| now.duration_since(newest) > KEEP)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_time_counts() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        for (event, gone) in [
            (json!({}), true),
            (json!({"lastTimestamp": "2026-01-01T11:30:00Z"}), false),
            (json!({"lastTimestamp": "2026-01-01T10:30:00Z"}), true),
            (
                json!({"firstTimestamp": "2026-01-01T11:30:00Z", "eventTime": "2026-01-01T10:30:00.000000Z"}),
                true,
            ),
            (
                json!({"lastTimestamp": "2026-01-01T10:30:00Z",
                    "series": {"count": 2, "lastObservedTime": "2026-01-01T11:59:00.000000Z"}}),
                false,
            ),
            (json!({"lastTimestamp": "2026-01-01T13:30:00Z"}), false),
        ] {
            let mut object = json!({"metadata": {}, "involvedObject": {}});
            object
                .as_object_mut()
                .unwrap()
                .extend(event.as_object().unwrap().clone());
            assert_eq!(
                expired(&serde_json::from_value(object).unwrap(), now),
                gone,
                "{event}"
            );
        }
    }
}
