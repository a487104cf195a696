//! Nodes that were deleted, and invitations that were used: their certificates count no more.
//!
//! A certificate cannot be taken back from who has it. So the server keeps what has ended: sealed in the store as objects
//! are, but no objects, so that nobody can read, write or remove it. There is an entry for each name of a node that was
//! ever deleted and for each invitation that was ever used, which only administrators bring about.

use std::time::Duration;

use api::resources::Resource;
use control_auth::{Authenticated, CREDENTIAL_ID, Identity};
use control_pki::requests;
use control_store::{Change, Expected, ObjectKey, StoreError};
use control_wire::Status;
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequest};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::RwLockReadGuard;

use crate::{Server, call::Call, lifecycle::Part, write::store_failure};

/// Where the store keeps them; no API group is called `server`.
const DELETED_NODES: &str = "server/deleted-nodes";
const USED_INVITATIONS: &str = "server/used-invitations";
const SECOND: Duration = Duration::from_secs(1);

/// A node was deleted.
#[derive(Serialize, Deserialize)]
struct DeletedNode {
    /// When, in seconds since the epoch. What was issued until then counts no more.
    at: i64,
}

/// An invitation was used.
#[derive(Serialize, Deserialize)]
struct UsedInvitation {
    /// SHA-256 of the public key that got the certificate. The same one may ask again: whose agent ended before the
    /// answer came has nothing else, and nobody else has its key.
    public_key: String,
}

impl Server {
    /// Refuses certificates of a node, and invitations to be that node, that are older than its deletion.
    pub(crate) async fn refuse_revoked(&self, who: &Authenticated) -> Result<(), Status> {
        let (Some(node), Some(issued_at)) = (node_of(who.identity()), who.issued_at()) else {
            return Ok(());
        };
        match self.is_deleted_since(node, issued_at).await? {
            true => Err(Status::revoked(was_deleted(node))),
            false => Ok(()),
        }
    }

    /// Notes that a node is deleted, before it is. If the server ends between the two, the node is out and its object is
    /// still to be deleted. Other kinds go without a note.
    pub(crate) async fn before_removal(&self, row: &Resource, name: &str) -> Result<(), StoreError> {
        if (row.group, row.kind) != ("", "Node") {
            return Ok(());
        }
        let key = ObjectKey::new(DELETED_NODES, "", name);
        let revoking = self.revocations.write().await;
        let present = self.store.get(&key).await?;
        // A clock that was set back makes nothing good again.
        let known: Option<DeletedNode> = present
            .as_ref()
            .and_then(|stored| serde_json::from_slice(&stored.value).ok());
        let at = Timestamp::now()
            .as_second()
            .max(known.map_or(i64::MIN, |deleted| deleted.at));
        let value = serde_json::to_vec(&DeletedNode { at }).unwrap_or_default();
        let expected = present.map_or(Expected::Absent, |stored| Expected::At(stored.revision));
        let uid = key.name.clone();
        self.store
            .write(&key, expected, Change::Put { uid, value })
            .await?;
        drop(revoking);
        // Streams that it has open.
        self.revoked.send_modify(|count| *count = count.wrapping_add(1));
        // Certificates tell seconds. An invitation that is given after the answer is of a later one.
        let second_ends = Timestamp::from_second(at.saturating_add(1)).unwrap_or(Timestamp::MAX);
        let left = second_ends.duration_since(Timestamp::now());
        let left = Duration::try_from(left).unwrap_or_default().min(SECOND);
        tokio::time::sleep(left).await;
        Ok(())
    }

    /// Refuses what a requester may not do with requests for certificates (any more), and keeps that so until the guard
    /// is dropped. Other kinds are left alone.
    pub(crate) async fn hold_standing(
        &self,
        call: &Call,
        part: Part,
        old: Option<&Value>,
        new: &Value,
        dry_run: bool,
    ) -> Result<Option<RwLockReadGuard<'_, ()>>, Status> {
        let row = call.target.resource;
        if row.kind != "CertificateSigningRequest" {
            return Ok(None);
        }
        let held = self.revocations.read().await;
        let request: CertificateSigningRequest =
            serde_json::from_value(new.clone()).map_err(Status::internal)?;
        let Some(old) = old else {
            // Asked again: the answer from before the body came may be older than the deletion.
            self.refuse_revoked(&call.who).await?;
            if call.who.identity().bootstraps().is_some() {
                self.refuse_used(call, &request).await?;
            }
            return Ok(Some(held));
        };
        let requester = Identity {
            user: request.spec.username.clone().unwrap_or_default(),
            groups: request.spec.groups.clone().unwrap_or_default(),
            uid: String::new(),
            extra: request.spec.extra.clone().unwrap_or_default(),
        };
        if let Some(node) = node_of(&requester)
            && matches!(part, Part::Approval | Part::Status)
        {
            let made = request
                .metadata
                .creation_timestamp
                .map_or(0, |made| made.0.as_second());
            if self.is_deleted_since(node, made).await? {
                return Err(Status::forbidden(row, call.target.name(), was_deleted(node)));
            }
        }
        let approves = part == Part::Approval && is_approved(new) && !is_approved(old);
        if approves && requester.bootstraps().is_some() && !dry_run {
            self.use_invitation(call, &requester, &request.spec.request)
                .await?;
        }
        Ok(Some(held))
    }

    async fn is_deleted_since(&self, node: &str, second: i64) -> Result<bool, Status> {
        let deleted: Option<DeletedNode> = self.entry(DELETED_NODES, node).await?;
        Ok(deleted.is_some_and(|deleted| second <= deleted.at))
    }

    /// An invitation that was used is of no use for another key.
    async fn refuse_used(&self, call: &Call, request: &CertificateSigningRequest) -> Result<(), Status> {
        let credential = credential_of(call.who.identity());
        let used: Option<UsedInvitation> = self.entry(USED_INVITATIONS, credential).await?;
        match used {
            Some(used) if public_key(&request.spec.request).as_ref() != Some(&used.public_key) => {
                Err(was_used(call))
            }
            _ => Ok(()),
        }
    }

    /// The invitation of an approved request is used up by it.
    async fn use_invitation(
        &self,
        call: &Call,
        requester: &Identity,
        request: &ByteString,
    ) -> Result<(), Status> {
        let (row, name) = (call.target.resource, call.target.name());
        let credential = credential_of(requester);
        let Some(public_key) = public_key(request).filter(|_| !credential.is_empty()) else {
            let problem =
                "it does not say by which invitation, or for which key; deny it, and have the node ask again";
            return Err(Status::forbidden(row, name, problem));
        };
        let key = ObjectKey::new(USED_INVITATIONS, "", credential);
        let value = serde_json::to_vec(&UsedInvitation {
            public_key: public_key.clone(),
        });
        let change = Change::Put {
            uid: credential.to_owned(),
            value: value.unwrap_or_default(),
        };
        match self.store.write(&key, Expected::Absent, change).await {
            Ok(_revision) => Ok(()),
            Err(StoreError::Conflict { .. }) => {
                let used: Option<UsedInvitation> = self.entry(USED_INVITATIONS, credential).await?;
                match used {
                    Some(used) if used.public_key == public_key => Ok(()),
                    _ => Err(was_used(call)),
                }
            }
            Err(error) => Err(store_failure(&error)),
        }
    }

    async fn entry<T: DeserializeOwned>(&self, kind: &str, name: &str) -> Result<Option<T>, Status> {
        if name.is_empty() {
            return Ok(None);
        }
        let stored = self.store.get(&ObjectKey::new(kind, "", name)).await;
        stored
            .map_err(|error| store_failure(&error))?
            .map(|stored| serde_json::from_slice(&stored.value))
            .transpose()
            .map_err(Status::internal)
    }
}

/// The node that somebody is, or may bring in.
fn node_of(identity: &Identity) -> Option<&str> {
    identity.node().or_else(|| identity.bootstraps())
}

fn credential_of(identity: &Identity) -> &str {
    let values = identity.extra.get(CREDENTIAL_ID).map(Vec::as_slice);
    match values {
        Some([one]) => one,
        _ => "",
    }
}

fn public_key(request: &ByteString) -> Option<String> {
    let pem = std::str::from_utf8(&request.0).ok()?;
    requests::public_key_digest(pem).map(|digest| digest.hex())
}

fn is_approved(request: &Value) -> bool {
    let conditions = request["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .into_iter()
        .any(|condition| condition["type"] == "Approved")
}

fn was_deleted(node: &str) -> String {
    format!("node {node:?} was deleted since; to bring it back, invite it with palisade-control bootstrap")
}

fn was_used(call: &Call) -> Status {
    Status::forbidden(
        call.target.resource,
        call.target.name(),
        "the invitation was used before, and works once; invite the node anew with palisade-control bootstrap",
    )
}
