//! The right to a stream that is open: it may end before the stream does, so it is looked at again while that lasts.
//!
//! Whoever answers with a stream holds its [`Standing`] for as long, and ends it when [`Standing::ended`] says so.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use control_auth::{Attributes, authorize};
use control_wire::Status;
use http::{HeaderMap, header};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::info;

use crate::{Server, server::Peer, target::ResourceTarget};

/// How often. The deletion of a node is not waited for.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A stream's place among those that are open, and its right to go on.
pub(crate) struct Standing {
    ends: CancellationToken,
    refused: Arc<OnceLock<Status>>,
    /// Ends the looking with the stream.
    _over: DropGuard,
    _slot: OwnedSemaphorePermit,
}

/// By what a stream was opened.
pub(crate) struct Opened {
    pub(crate) user: String,
    pub(crate) peer: Peer,
    /// `Authorization` counts.
    pub(crate) headers: HeaderMap,
    pub(crate) target: ResourceTarget,
    pub(crate) attributes: Attributes,
}

impl Standing {
    /// Nobody looks yet: see [`Server::look_after`].
    pub(crate) fn new(slot: OwnedSemaphorePermit, shutdown: &CancellationToken) -> Self {
        let ends = shutdown.child_token();
        Self {
            refused: Arc::default(),
            _over: ends.clone().drop_guard(),
            ends,
            _slot: slot,
        }
    }

    /// Waits until the stream must end: with the refusal, or with nothing when the server stops.
    pub(crate) async fn ended(&self) -> Option<Status> {
        self.ends.cancelled().await;
        self.refused.get().cloned()
    }
}

impl Server {
    /// From now on the stream ends when its client could not open it any more.
    pub(crate) fn look_after(self: &Arc<Self>, standing: &Standing, mut opened: Opened) {
        let token = opened.headers.remove(header::AUTHORIZATION);
        opened.headers = token
            .into_iter()
            .map(|token| (header::AUTHORIZATION, token))
            .collect();
        let (server, ends, refused) = (
            Arc::clone(self),
            standing.ends.clone(),
            Arc::clone(&standing.refused),
        );
        let mut revoked = self.revoked.subscribe();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = ends.cancelled() => return,
                    // The server has the other end.
                    _changed = revoked.changed() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
                // What cannot be looked at is not allowed either.
                if let Err(status) = server.allow_again(&opened).await {
                    opened.tell(&status);
                    drop(refused.set(status));
                    return ends.cancel();
                }
            }
        });
    }

    async fn allow_again(&self, opened: &Opened) -> Result<(), Status> {
        let who = self.identify(&opened.peer, &opened.headers).await?;
        let nodes = self.node_view(&who, &opened.attributes).await?;
        authorize(&who, opened.attributes.clone(), &nodes)
            .map(drop)
            .map_err(|denied| Status::forbidden(opened.target.resource, opened.target.name(), denied))
    }
}

impl Opened {
    fn tell(&self, status: &Status) {
        info!(
            target: "audit",
            user = self.user,
            address = %self.peer.address,
            request = %self.attributes,
            code = status.code(),
            reason = status.message(),
            "stream ended: not allowed any more"
        );
    }
}
