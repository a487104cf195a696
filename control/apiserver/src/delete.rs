//! Delete and deletecollection.

use control_store::{Change, Expected, StoreError};
use control_wire::{
    Status,
    decode::{self, DeleteOptions},
    negotiate,
    query::ListQuery,
    status,
};
use serde_json::Value;

use crate::{
    Server,
    call::{Call, Outcome},
    lifecycle::{self, Deletion},
    objects::{self, metadata_text},
    policy::Held,
    write::{MAX_ATTEMPTS, revision_of, store_failure},
};

/// Namespaces that the cluster cannot do without.
const KEPT_NAMESPACES: &[&str] = crate::NAMESPACES;

impl Server {
    /// `DELETE` on an object.
    pub(crate) async fn delete(&self, call: &Call) -> Result<Outcome, Status> {
        let options = delete_options(call)?;
        self.delete_one(call, call.target.namespace(), call.target.name(), &options)
            .await
    }

    /// `DELETE` on a collection: each object that matches, one by one.
    pub(crate) async fn delete_collection(&self, call: &Call) -> Result<Outcome, Status> {
        let row = call.target.resource;
        let options = delete_options(call)?;
        let query = ListQuery::parse(row, &call.parameters)?;
        let (mut list, items) = self.list_objects(call, &query).await?;
        let mut warnings = Vec::new();
        for object in &items {
            let (namespace, name) = (metadata_text(object, "namespace"), metadata_text(object, "name"));
            match self.delete_one(call, namespace, name, &options).await {
                // Gone in the meantime: what was asked for.
                Err(status) if status.code() == 404 => {}
                other => warnings.extend(other?.warnings),
            }
        }
        list["items"] = Value::Array(items);
        Ok(Outcome {
            warnings,
            ..Outcome::ok(list)
        })
    }

    pub(crate) async fn delete_one(
        &self,
        call: &Call,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Outcome, Status> {
        let row = call.target.resource;
        if row.kind == "Namespace" && KEPT_NAMESPACES.contains(&name) {
            return Err(Status::forbidden(row, name, "this namespace may not be deleted"));
        }
        control_admission::refuse_deletion(row, name)?;
        let _tiers = match (row.group, row.kind) {
            ("projectcalico.org", "Tier") => {
                let held = self.tiers.write().await;
                self.refuse_if_used(row, name).await?;
                Some(held)
            }
            _ => None,
        };
        let user = &call.who.identity().user;
        let key = objects::key(row, namespace, name);
        for _attempt in 0..MAX_ATTEMPTS {
            let object = self.fetch(row, namespace, name).await?;
            check_preconditions(call, name, &object, options)?;
            let expected = Expected::At(revision_of(&object)?);
            let stored = object.clone();
            let (change, answer) = match lifecycle::plan_deletion(&object, row, options, call.now) {
                Deletion::Underway => return Ok(Outcome::ok(object)),
                // A pod's last state is worth seeing; of other objects only the name is left to tell.
                Deletion::Remove if row.kind == "Pod" => (Change::Delete, object),
                Deletion::Remove => {
                    let uid = metadata_text(&object, "uid");
                    (Change::Delete, status::deleted(row, name, uid))
                }
                Deletion::Mark(marked) => {
                    let uid = metadata_text(&object, "uid").to_owned();
                    let value = objects::serialise(marked.object());
                    (Change::Put { uid, value }, marked.object().clone())
                }
            };
            let marks = matches!(change, Change::Put { .. });
            // What is only marked decides as before.
            let held = match marks {
                true => Held::default(),
                false => self.hold_policy(row, user, Some(&stored), None).await?,
            };
            let warnings = held.warnings.clone();
            let done = |object| Outcome {
                warnings,
                ..Outcome::ok(object)
            };
            if options.dry_run {
                return Ok(done(answer));
            }
            if !marks {
                self.before_removal(row, name)
                    .await
                    .map_err(|error| store_failure(&error))?;
            }
            match self.store.write(&key, expected, change).await {
                Ok(revision) => {
                    let mut answer = answer;
                    if marks || row.kind == "Pod" {
                        objects::set_revision(&mut answer, revision);
                    }
                    return Ok(done(answer));
                }
                Err(StoreError::Conflict { actual: None, .. }) => return Err(Status::not_found(row, name)),
                // Preconditions are checked again on what is there now.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_failure(&error)),
            }
        }
        Err(Status::modified(row, name))
    }
}

fn delete_options(call: &Call) -> Result<DeleteOptions, Status> {
    let form = negotiate::body_form(call.content_type.as_deref())?;
    decode::delete_options(form, &call.body, &call.parameters)
}

pub(crate) fn check_preconditions(
    call: &Call,
    name: &str,
    object: &Value,
    options: &DeleteOptions,
) -> Result<(), Status> {
    for (field, asked) in [
        ("uid", &options.uid),
        ("resourceVersion", &options.resource_version),
    ] {
        let actual = metadata_text(object, field);
        if let Some(asked) = asked
            && asked != actual
        {
            let problem =
                format!("Precondition failed: {field} in precondition: {asked}, in object: {actual}");
            return Err(Status::conflict(call.target.resource, name, problem));
        }
    }
    Ok(())
}
