//! Objects that the server itself writes: the first namespaces and the records of scans. They pass admission
//! like anybody's.

use api::resources::Resource;
use control_admission::{AdmissionRequest, Admitted, Operation, admit, review};
use control_store::{Change, Expected, StoreError};
use control_wire::Status;
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Server,
    call::Call,
    lifecycle::{self, Part},
    objects::{self, metadata_text},
    write::{MAX_ATTEMPTS, revision_of, store_failure},
};

/// User name of the server's own writes.
const OWN_USER: &str = api::annotations::USER_APISERVER;

impl Server {
    /// Admits what a client asks to store.
    pub(crate) fn admit(
        &self,
        call: &Call,
        operation: Operation,
        old: Option<&Value>,
        new: Value,
    ) -> Result<Admitted, Status> {
        let name = metadata_text(&new, "name").to_owned();
        admit(&request(call, operation, old, new, &name))
    }

    /// Refuses early what would not be admitted whatever its images are.
    pub(crate) fn review_new(&self, call: &Call, new: &Value) -> Result<(), Status> {
        review(&request(
            call,
            Operation::Create,
            None,
            new.clone(),
            metadata_text(new, "name"),
        ))
    }

    /// The same for a change of an object.
    pub(crate) fn review_change(&self, call: &Call, old: &Value, new: &Value) -> Result<(), Status> {
        review(&request(
            call,
            Operation::Update,
            Some(old),
            new.clone(),
            metadata_text(new, "name"),
        ))
    }

    /// Writes an object of the server's own: `make` gets what is stored and returns what shall be stored,
    /// or `None` to leave it.
    pub(crate) async fn put_own(
        &self,
        row: &'static Resource,
        name: &str,
        now: Timestamp,
        make: impl Fn(Option<&Value>) -> Option<Value>,
    ) -> Result<(), Status> {
        let key = objects::key(row, "", name);
        for _attempt in 0..MAX_ATTEMPTS {
            let old = match self.fetch(row, "", name).await {
                Ok(old) => Some(old),
                Err(status) if status.code() == 404 => None,
                Err(status) => return Err(status),
            };
            let Some(mut new) = make(old.as_ref()) else {
                return Ok(());
            };
            let (operation, expected) = match &old {
                None => {
                    let uid = uuid::Uuid::new_v4().to_string();
                    lifecycle::stamp_new(&mut new, row, "", &uid, &own_identity(), now);
                    (Operation::Create, Expected::Absent)
                }
                Some(old) => {
                    lifecycle::carry_over(old, &mut new, row, Part::Main);
                    (Operation::Update, Expected::At(revision_of(old)?))
                }
            };
            let admitted = admit(&AdmissionRequest {
                operation,
                resource: row,
                subresource: "",
                namespace: "",
                name,
                old: old.as_ref(),
                new,
                user: OWN_USER,
                now,
            })?;
            let uid = metadata_text(admitted.object(), "uid").to_owned();
            let change = Change::Put {
                uid,
                value: objects::serialise(admitted.object()),
            };
            match self.store.write(&key, expected, change).await {
                Ok(_revision) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_failure(&error)),
            }
        }
        Err(Status::modified(row, name))
    }
}

fn request<'a>(
    call: &'a Call,
    operation: Operation,
    old: Option<&'a Value>,
    new: Value,
    name: &'a str,
) -> AdmissionRequest<'a> {
    AdmissionRequest {
        operation,
        resource: call.target.resource,
        subresource: call.target.subresource(),
        namespace: call.target.namespace(),
        name,
        old,
        new,
        user: &call.who.identity().user,
        now: call.now,
    }
}

fn own_identity() -> control_auth::Identity {
    control_auth::Identity {
        user: OWN_USER.to_owned(),
        groups: Vec::new(),
        uid: String::new(),
        extra: Default::default(),
    }
}
