//! What is written down of a session: who, what, from where, how long, and how it ended. Never what was said in it.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use api::session::Action;
use tracing::info;

use super::{End, negotiate::Protocol, request::Kind};
use crate::call::Call;

/// One session.
pub(super) struct Record {
    user: String,
    address: SocketAddr,
    subresource: &'static str,
    namespace: String,
    name: String,
    container: String,
    command: String,
    protocol: &'static str,
    since: Instant,
    connections: AtomicU64,
}

impl Record {
    /// Writes that it begins. A session that is refused later still says how it ended.
    pub(super) fn begin(call: &Call, address: SocketAddr, kind: &Kind, protocol: &Protocol) -> Self {
        let (container, command) = match kind {
            Kind::Process { action, .. } => match action {
                // As JSON, so that the words stay words.
                Action::Exec {
                    container, command, ..
                } => (
                    container.clone(),
                    serde_json::to_string(command).unwrap_or_default(),
                ),
                Action::Attach { container, .. } => (container.clone(), String::new()),
                Action::Forward { .. } => (String::new(), String::new()),
            },
            Kind::Forward => (String::new(), String::new()),
        };
        let record = Self {
            user: call.who.identity().user.clone(),
            address,
            subresource: call.target.subresource(),
            namespace: call.target.namespace().to_owned(),
            name: call.target.name().to_owned(),
            container,
            command,
            protocol: protocol.name(),
            since: Instant::now(),
            connections: AtomicU64::new(0),
        };
        info!(
            target: "audit",
            user = record.user,
            address = %record.address,
            subresource = record.subresource,
            namespace = record.namespace,
            name = record.name,
            container = record.container,
            command = record.command,
            protocol = record.protocol,
            "session begins"
        );
        record
    }

    /// Writes that a port is connected to. Each port of a session once would hide how often.
    pub(super) fn connects(&self, port: u16) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        info!(
            target: "audit",
            user = self.user,
            address = %self.address,
            namespace = self.namespace,
            name = self.name,
            port,
            "session connects"
        );
    }

    /// Writes that it has ended.
    pub(super) fn end(&self, end: &End) {
        let (code, outcome) = match end {
            End::Exited(code) => (Some(*code), "ended"),
            End::Failed(reason) | End::ClientWrong(reason) => (None, reason.as_str()),
            End::ClientLeft => (None, "the client left"),
        };
        info!(
            target: "audit",
            user = self.user,
            address = %self.address,
            subresource = self.subresource,
            namespace = self.namespace,
            name = self.name,
            container = self.container,
            command = self.command,
            seconds = self.since.elapsed().as_secs_f64(),
            connections = self.connections.load(Ordering::Relaxed),
            code,
            outcome,
            "session ended"
        );
    }
}
