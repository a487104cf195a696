//! Tiers and the policies in them: a policy is stored in tiers that exist, and a tier with policies stays.

use api::resources::Resource;
use control_store::ListOptions;
use control_wire::{Cause, Status};
use serde_json::Value;
use tokio::sync::RwLockReadGuard;

use crate::{
    Server,
    lifecycle::is_being_deleted,
    objects::{self, metadata_text},
    write::store_failure,
};

const GROUP: &str = "projectcalico.org";

impl Server {
    /// Makes sure that the tier of an object exists, and keeps it until the object has been stored.
    pub(crate) async fn hold_tier(
        &self,
        row: &'static Resource,
        object: &Value,
    ) -> Result<Option<RwLockReadGuard<'_, ()>>, Status> {
        let Some(tier) = control_admission::tier_of(row, object) else {
            return Ok(None);
        };
        let held = self.tiers.read().await;
        let problem = match self.fetch(crate::row(GROUP, "tiers"), "", tier).await {
            Ok(found) if !is_being_deleted(&found) => return Ok(Some(held)),
            Ok(_) => "the tier is being deleted; use another one",
            Err(status) if status.code() == 404 => {
                "there is no such tier; create it first, or use an existing one"
            }
            Err(status) => return Err(status),
        };
        let cause = Cause::invalid("spec.tier", tier, problem);
        Err(Status::invalid(row, metadata_text(object, "name"), vec![cause]))
    }

    /// Refuses to delete a tier that a policy is in.
    pub(crate) async fn refuse_if_used(&self, row: &'static Resource, tier: &str) -> Result<(), Status> {
        for plural in control_admission::TIERED {
            let kind = crate::row(GROUP, plural);
            let prefix = objects::prefix(kind, None);
            let page = self.store.list(&prefix, &ListOptions::default()).await;
            for stored in page.map_err(|error| store_failure(&error))?.items {
                let policy: Value = serde_json::from_slice(&stored.value).map_err(Status::internal)?;
                if control_admission::tier_of(kind, &policy) == Some(tier) {
                    let place = match metadata_text(&policy, "namespace") {
                        "" => String::new(),
                        namespace => format!("{namespace}/"),
                    };
                    let name = metadata_text(&policy, "name");
                    let problem = format!(
                        "{} {place}{name} is in it; delete its policies, or move them to another tier, first",
                        kind.kind
                    );
                    return Err(Status::conflict(row, tier, problem));
                }
            }
        }
        Ok(())
    }
}
