//! Create, update and patch: decode, complete, admit, store. Nothing reaches the store without an
//! [`Admitted`] token.

use control_admission::{Admitted, Operation};
use control_store::{Change, Expected, Revision, StoreError};
use control_wire::{
    Status, decode, negotiate, patch,
    query::{FieldValidation, WriteQuery},
};
use http::StatusCode;
use serde_json::{Value, json};
use tracing::error;

use crate::{
    Server,
    call::{Call, Outcome},
    lifecycle::{self, Part},
    objects::{self, metadata_text},
    pods, services,
};

/// Attempts of a change that names no revision, while others change the same object.
pub(crate) const MAX_ATTEMPTS: usize = 8;
/// Attempts to find a free generated name.
const MAX_NAMES: usize = 5;
/// Characters of a generated suffix; without vowels no words arise.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of a generated suffix.
const SUFFIX_LENGTH: usize = 5;

/// How a changed object comes about.
enum Source {
    /// The body is the object.
    Replace { object: Value, warnings: Vec<String> },
    /// The body is a patch.
    Patch(negotiate::PatchForm),
}

impl Server {
    /// `POST` on a collection.
    pub(crate) async fn create(&self, call: &Call) -> Result<Outcome, Status> {
        let row = call.target.resource;
        let user = &call.who.identity().user;
        let query = WriteQuery::parse(&call.parameters)?;
        let form = negotiate::body_form(call.content_type.as_deref())?;
        let decode::Decoded {
            mut object,
            mut warnings,
        } = decode::object(row, None, form, &call.body, query.validation)?;
        if !metadata_text(&object, "resourceVersion").is_empty() {
            return Err(Status::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        check_place(call, &object)?;
        self.check_namespace(call).await?;
        let uid = uuid::Uuid::new_v4().to_string();
        lifecycle::stamp_new(
            &mut object,
            row,
            call.target.namespace(),
            &uid,
            call.who.identity(),
            call.now,
        );

        self.give_account(row, call.target.namespace(), &mut object)
            .await?;
        self.check_host_paths(row, call.target.namespace(), &object)
            .await?;
        self.give_class(row, &mut object).await?;

        let prefix = metadata_text(&object, "generateName").to_owned();
        let generated = metadata_text(&object, "name").is_empty() && !prefix.is_empty();
        let mut attempts = if generated { MAX_NAMES } else { 1 };
        loop {
            if generated {
                lifecycle::metadata_mut(&mut object).insert("name".to_owned(), json!(generate_name(&prefix)));
            }
            let name = metadata_text(&object, "name").to_owned();
            // What is not valid anyway is not worth a scan.
            self.review_new(call, &object)?;
            let mut gated = self
                .gate_images(call, None, object.clone(), query.dry_run)
                .await?;
            let _address = self.assign_cluster_address(row, None, &mut gated).await?;
            let admitted = self.admit(call, Operation::Create, None, gated)?;
            attempts -= 1;
            let _room = self.hold_room(row, user).await?;
            let _standing = self
                .hold_standing(call, Part::Main, None, admitted.object(), query.dry_run)
                .await?;
            let _tier = self.hold_tier(row, admitted.object()).await?;
            let held = self.hold_policy(row, user, None, Some(admitted.object())).await?;
            match self
                .store_admitted(call, &admitted, Expected::Absent, query.dry_run)
                .await
            {
                Ok(object) => {
                    warnings.extend(services::warnings(row, None, &object));
                    warnings.extend(held.warnings);
                    return Ok(Outcome {
                        code: StatusCode::CREATED,
                        object,
                        warnings,
                    });
                }
                Err(StoreError::Conflict { .. }) if attempts > 0 => {}
                Err(StoreError::Conflict { .. }) => return Err(Status::already_exists(row, &name)),
                Err(error) => return Err(store_failure(&error)),
            }
        }
    }

    /// `PUT` on an object or on a subresource that is a part of it.
    pub(crate) async fn update(&self, call: &Call) -> Result<Outcome, Status> {
        let query = WriteQuery::parse(&call.parameters)?;
        let form = negotiate::body_form(call.content_type.as_deref())?;
        let decoded = decode::object(
            call.target.resource,
            call.target.subresource,
            form,
            &call.body,
            query.validation,
        )?;
        let source = Source::Replace {
            object: decoded.object,
            warnings: decoded.warnings,
        };
        self.change(call, query, &source).await
    }

    /// `PATCH` likewise.
    pub(crate) async fn patch(&self, call: &Call) -> Result<Outcome, Status> {
        let query = WriteQuery::parse(&call.parameters)?;
        let form = negotiate::patch_form(call.content_type.as_deref())?;
        self.change(call, query, &Source::Patch(form)).await
    }

    async fn change(&self, call: &Call, query: WriteQuery, source: &Source) -> Result<Outcome, Status> {
        let row = call.target.resource;
        let name = call.target.name();
        let user = &call.who.identity().user;
        let part = part_of(call.target.subresource());
        for _attempt in 0..MAX_ATTEMPTS {
            let old = self.load(call).await?;
            let (mut new, mut warnings) = match source {
                Source::Replace { object, warnings } => (object.clone(), warnings.clone()),
                Source::Patch(form) => patched(call, &old, *form, query.validation)?,
            };
            check_place(call, &new)?;
            if row.namespaced() {
                // As in a create, the path says where the object is.
                lifecycle::metadata_mut(&mut new)
                    .insert("namespace".to_owned(), json!(call.target.namespace()));
            }
            let asked = metadata_text(&new, "resourceVersion");
            // A patch that does not touch the revision carries the current one along.
            let conditional = match source {
                Source::Replace { .. } => !asked.is_empty(),
                Source::Patch(_) => asked != metadata_text(&old, "resourceVersion"),
            };
            if conditional && asked != metadata_text(&old, "resourceVersion") {
                return Err(Status::modified(row, name));
            }
            let uid = metadata_text(&new, "uid");
            if !uid.is_empty() && uid != metadata_text(&old, "uid") {
                let problem = format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    metadata_text(&old, "uid")
                );
                return Err(Status::conflict(row, name, problem));
            }
            let expected = Expected::At(revision_of(&old)?);
            if part == Part::Main && control_auth::only_collects(call.who.identity(), row.group, row.plural) {
                new = lifecycle::with_owners(&old, &new);
            }
            if part == Part::Ephemeral {
                new = lifecycle::with_ephemeral(&old, &new);
                self.review_change(call, &old, &new)?;
            }
            // Before the generation is counted: a tag that still means the pinned digest is no change.
            if matches!(part, Part::Main | Part::Ephemeral) {
                new = self.gate_images(call, Some(&old), new, query.dry_run).await?;
            }
            let _address = match part {
                Part::Main => self.assign_cluster_address(row, Some(&old), &mut new).await?,
                Part::Status | Part::Finalize | Part::Ephemeral | Part::Approval => None,
            };
            lifecycle::carry_over(&old, &mut new, row, part);
            let admitted = self.admit(call, Operation::Update, Some(&old), new)?;
            if *admitted.object() == old {
                return Ok(Outcome {
                    code: StatusCode::OK,
                    object: old,
                    warnings,
                });
            }
            let _standing = self
                .hold_standing(call, part, Some(&old), admitted.object(), query.dry_run)
                .await?;
            let _tier = self.hold_tier(row, admitted.object()).await?;
            let stays = !lifecycle::is_finished(admitted.object());
            let stored = stays.then(|| admitted.object());
            let held = self.hold_policy(row, user, Some(&old), stored).await?;
            match self
                .store_admitted(call, &admitted, expected, query.dry_run)
                .await
            {
                Ok(object) => {
                    warnings.extend(services::warnings(row, Some(&old), &object));
                    warnings.extend(held.warnings);
                    return Ok(Outcome {
                        code: StatusCode::OK,
                        object,
                        warnings,
                    });
                }
                Err(StoreError::Conflict { actual: None, .. }) => return Err(Status::not_found(row, name)),
                Err(StoreError::Conflict { .. }) if !conditional => {}
                Err(StoreError::Conflict { .. }) => return Err(Status::modified(row, name)),
                Err(error) => return Err(store_failure(&error)),
            }
        }
        Err(Status::modified(row, name))
    }

    /// The object that the call names, as it is.
    pub(crate) async fn load(&self, call: &Call) -> Result<Value, Status> {
        let target = &call.target;
        self.fetch(target.resource, target.namespace(), target.name())
            .await
    }

    /// Stores an admitted object, or removes it if it only waited for this change to go.
    pub(crate) async fn store_admitted(
        &self,
        call: &Call,
        admitted: &Admitted,
        expected: Expected,
        dry_run: bool,
    ) -> Result<Value, StoreError> {
        let mut object = admitted.object().clone();
        let key = objects::key(
            call.target.resource,
            call.target.namespace(),
            metadata_text(&object, "name"),
        );
        if dry_run {
            let present = self.store.get(&key).await?.map(|stored| stored.revision);
            return match (expected, present) {
                (Expected::Absent, Some(_)) => Err(StoreError::Conflict { key, actual: present }),
                _ => Ok(object),
            };
        }
        let change = if lifecycle::is_finished(&object) {
            self.before_removal(call.target.resource, metadata_text(&object, "name"))
                .await?;
            Change::Delete
        } else {
            Change::Put {
                uid: metadata_text(&object, "uid").to_owned(),
                value: objects::serialise(&object),
            }
        };
        let revision = self.store.write(&key, expected, change).await?;
        objects::set_revision(&mut object, revision);
        Ok(object)
    }

    /// Objects are made in namespaces that exist and stay.
    async fn check_namespace(&self, call: &Call) -> Result<(), Status> {
        if !call.target.resource.namespaced() {
            return Ok(());
        }
        let namespaces = crate::row("", "namespaces");
        let namespace = self.fetch(namespaces, "", call.target.namespace()).await?;
        if lifecycle::is_being_deleted(&namespace) {
            let name = call.target.namespace();
            let message =
                format!("unable to create new content in namespace {name} because it is being terminated");
            return Err(Status::forbidden(call.target.resource, "", message));
        }
        if call.target.resource.kind == "Pod" && call.who.identity().node().is_some() {
            pods::demand_static_namespace(&namespace, call.target.resource)?;
        }
        Ok(())
    }
}

/// Status of a store failure that is not a conflict about the object at hand.
pub(crate) fn store_failure(error: &StoreError) -> Status {
    match error {
        StoreError::Compacted { requested, oldest } => {
            Status::expired(format!("too old resource version: {requested} ({oldest})"))
        }
        // A client of another store, or of this one before it was restored: it has to list again.
        StoreError::Future { requested, current } => Status::expired(format!(
            "resource version {requested} is ahead of this server's {current}"
        )),
        StoreError::TooLarge { .. } => Status::too_large(),
        StoreError::Key { .. } => Status::bad_request(error.to_string()),
        StoreError::Closed => Status::unavailable("the store is closing"),
        other => {
            error!(error = other as &dyn std::error::Error, "store");
            Status::internal("the store failed; the server's log says why")
        }
    }
}

/// Revision of an object that was read from the store.
pub(crate) fn revision_of(object: &Value) -> Result<Revision, Status> {
    metadata_text(object, "resourceVersion")
        .parse()
        .map_err(|_not_a_number: std::num::ParseIntError| Status::internal("object without revision"))
}

/// The old object with the patch of the call applied.
fn patched(
    call: &Call,
    old: &Value,
    form: negotiate::PatchForm,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let row = call.target.resource;
    let patched = patch::apply(row, form, old, &call.body)?;
    let decoded = decode::patched(row, call.target.subresource, patched, validation)?;
    Ok((decoded.object, decoded.warnings))
}

/// The object must be what the path says.
fn check_place(call: &Call, object: &Value) -> Result<(), Status> {
    let (namespace, name) = (call.target.namespace(), call.target.name());
    let own_namespace = metadata_text(object, "namespace");
    if !own_namespace.is_empty() && own_namespace != namespace && call.target.resource.namespaced() {
        return Err(Status::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request: \
             {own_namespace:?} is not {namespace:?}"
        )));
    }
    let own_name = metadata_text(object, "name");
    if !name.is_empty() && own_name != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({own_name}) does not match the name on the URL ({name})"
        )));
    }
    Ok(())
}

fn part_of(subresource: &str) -> Part {
    match subresource {
        "status" => Part::Status,
        "finalize" => Part::Finalize,
        "ephemeralcontainers" => Part::Ephemeral,
        "approval" => Part::Approval,
        _ => Part::Main,
    }
}

pub(crate) fn generate_name(prefix: &str) -> String {
    // 128 random bits of a UUID, of which five letters use 24.
    let random = uuid::Uuid::new_v4();
    let suffix = random
        .as_bytes()
        .iter()
        .take(SUFFIX_LENGTH)
        .map(|byte| char::from(SUFFIX_ALPHABET[usize::from(*byte) % SUFFIX_ALPHABET.len()]));
    let room = 63 - SUFFIX_LENGTH;
    let prefix: String = prefix.chars().take(room).collect();
    prefix.chars().chain(suffix).collect()
}
