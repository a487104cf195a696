//! One request from its head to its answer: who asks, may they, what is it, do it, say so.
//!
//! The stages hand tokens on: [`Server::identify`] gives the identity that
//! [`control_auth::authorize`] demands, whose [`control_auth::Authorized`] every operation demands.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use api::resources::{Resource, Stored, Subresource};
use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    response::Response,
};
use control_auth::{Attributes, Authenticated, NodeIndex, authorize};
use control_store::ListOptions;
use control_wire::{
    MAX_BODY_BYTES, Status, decode, negotiate,
    query::{FieldValidation, ListQuery, Parameters},
};
use http::{HeaderMap, HeaderName, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::upgrade::OnUpgrade;
use jiff::Timestamp;
use tracing::info;

use crate::{
    Server,
    call::{Call, Outcome},
    documents, measured,
    objects::{self, metadata_text},
    profiles, respond,
    server::Peer,
    sessions::Knock,
    shape,
    standing::{Opened, Standing},
    target::{self, ResourceTarget, Target, Verb},
    write::store_failure,
};

/// Longest time for a request that is neither a watch nor a stream. Admission of a pod may scan its images.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// A body that has not arrived by then is given up.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What clients are told to wait when too many requests are under way.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Answers one request.
pub(crate) async fn handle(
    State(server): State<Arc<Server>>,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    let target = target::parse(request.uri().path());
    // Constant answers for load balancers and supervisors: the only ones for strangers.
    match target {
        Some(Target::Livez) => return respond::text(StatusCode::OK, "ok"),
        Some(Target::Readyz) if server.is_ready().await => return respond::text(StatusCode::OK, "ok"),
        Some(Target::Readyz) => return respond::text(StatusCode::SERVICE_UNAVAILABLE, "not ready"),
        _ => {}
    }
    match server.answer(&peer, target, request).await {
        Ok(response) => response,
        Err(status) => respond::status(&status),
    }
}

impl Server {
    async fn answer(
        self: &Arc<Self>,
        peer: &Peer,
        target: Option<Target>,
        request: Request<Body>,
    ) -> Result<Response, Status> {
        // Who asks comes before what exists: without a certificate or token every path looks the same.
        let who = self.identify(peer, request.headers()).await?;
        let (mut head, body) = request.into_parts();
        let upgrade = head.extensions.remove::<OnUpgrade>();
        refuse_impersonation(&head.headers)?;
        let target = target.ok_or_else(|| match target::unserved(head.uri.path()) {
            Some(subresource) => Status::not_served(&format!("pods/{subresource}")),
            None => Status::no_route(),
        })?;
        let Target::Resource(target) = target else {
            let attributes = Attributes::path(head.method.as_str().to_ascii_lowercase(), head.uri.path());
            authorize(&who, attributes, &NodeIndex::default()).map_err(Status::forbidden_path)?;
            if head.method != Method::GET {
                return Err(Status::method_not_allowed());
            }
            return documents::document(&target, &head.headers, &self.address);
        };
        let parameters = Parameters::parse(head.uri.query().unwrap_or_default())?;
        let verb = target::verb(&head.method, &target, parameters.flag("watch"))
            .ok_or_else(|| refused_verb(target.resource))?;
        let session = target.subresource.is_some_and(Subresource::is_session);
        let streams =
            session || verb == Verb::Watch || matches!(target.subresource(), "log" | "proxy" | "learn");
        let slots = if streams { &self.streams } else { &self.requests };
        let audit = Audit::new(&who, peer, verb, &target);
        let work = async {
            let allow = async |body: &Bytes| {
                let attributes = attributes(&who, verb, &target, &parameters, &head.headers, body)?;
                let nodes = self.node_view(&who, &attributes).await?;
                authorize(&who, attributes, &nodes)
                    .map_err(|denied| Status::forbidden(target.resource, target.name(), denied))
            };
            // Whoever may not do it occupies no slot and no memory with a body that never ends. Nodes are
            // judged below only: what they may create depends on its name.
            if who.identity().node().is_none() {
                allow(&Bytes::new()).await?;
            }
            let slot = Arc::clone(slots)
                .try_acquire_owned()
                .map_err(|_full| Status::too_many_requests(RETRY_AFTER_SECONDS))?;
            let body = read_body(body).await?;
            // A body may take its time to come, and the node may have been deleted meanwhile.
            self.refuse_revoked(&who).await?;
            let authorized = allow(&body).await?;
            let standing = Standing::new(slot, &self.shutdown);
            if streams {
                let opened = Opened {
                    user: authorized.identity().user.clone(),
                    peer: peer.clone(),
                    headers: head.headers.clone(),
                    target: target.clone(),
                    attributes: authorized.attributes().clone(),
                };
                self.look_after(&standing, opened);
            }
            let call = Call {
                who: who.clone(),
                authorized,
                content_type: header_text(&head.headers, &header::CONTENT_TYPE),
                accept: header_text(&head.headers, &header::ACCEPT),
                target: target.clone(),
                parameters,
                body,
                now: Timestamp::now(),
            };
            if session {
                let knock = Knock {
                    headers: &head.headers,
                    upgrade,
                    address: peer.address,
                };
                return self.open_session(&call, knock, standing).await;
            }
            self.perform(verb, &call, standing).await
        };
        let result = match tokio::time::timeout(REQUEST_TIMEOUT, work).await {
            Ok(result) => result,
            Err(_elapsed) => {
                let seconds = REQUEST_TIMEOUT.as_secs();
                Err(Status::timeout(format!(
                    "the request did not end within {seconds} s"
                )))
            }
        };
        audit.write(&result);
        result
    }

    /// Does what an authorized call asks for. `standing` is held until the answer has been sent.
    async fn perform(
        self: &Arc<Self>,
        verb: Verb,
        call: &Call,
        standing: Standing,
    ) -> Result<Response, Status> {
        let row = call.target.resource;
        let outcome = match (call.target.subresource(), verb) {
            ("learn", Verb::Get) => return self.pod_learn(call, standing).await,
            ("log", Verb::Get) => return self.pod_log(call, standing).await,
            ("proxy", Verb::Get) => return self.node_stream(call, standing).await,
            ("binding", Verb::Create) => self.bind_pod(call).await?,
            ("eviction", Verb::Create) => self.evict_pod(call).await?,
            ("token", Verb::Create) => self.request_token(call).await?,
            ("", Verb::Create) if row.stored == Stored::Virtual => self.review(call).await?,
            ("", Verb::Create) => self.create(call).await?,
            ("", Verb::Get) if row.stored == Stored::Measured => self.get_measured(call).await?,
            ("", Verb::List) if row.stored == Stored::Measured => self.list_measured(call).await?,
            ("", Verb::Get) if row.stored == Stored::Derived => self.get_profile(call).await?,
            ("", Verb::List) if row.stored == Stored::Derived => self.list_profiles(call).await?,
            ("" | "status" | "ephemeralcontainers" | "approval", Verb::Get) => self.get(call).await?,
            ("", Verb::List) => self.list(call).await?,
            ("", Verb::Watch) if row.stored == Stored::Derived => {
                return self.watch_profiles(call, standing).await;
            }
            ("", Verb::Watch) => return self.watch(call, standing).await,
            ("" | "status" | "ephemeralcontainers" | "finalize" | "approval", Verb::Update) => {
                self.update(call).await?
            }
            ("" | "status" | "ephemeralcontainers" | "approval", Verb::Patch) => self.patch(call).await?,
            ("", Verb::Delete) => self.delete(call).await?,
            ("", Verb::DeleteCollection) => self.delete_collection(call).await?,
            _ => return Err(Status::method_not_allowed()),
        };
        shown(call, verb, outcome)
    }

    /// What the node authorizer has to know to decide on `attributes`, read from the store as it is now: a
    /// grant never outlives the pod that was its reason.
    pub(crate) async fn node_view(
        &self,
        who: &Authenticated,
        attributes: &Attributes,
    ) -> Result<NodeIndex, Status> {
        let control_auth::Target::Resource(target) = &attributes.target else {
            return Ok(NodeIndex::default());
        };
        if who.identity().node().is_none() || target.name.is_empty() {
            return Ok(NodeIndex::default());
        }
        if (target.group.as_str(), target.resource.as_str()) == ("", "persistentvolumes") {
            return self.volume_view(&target.name).await;
        }
        if target.namespace.is_empty() {
            return Ok(NodeIndex::default());
        }
        let pods = crate::row("", "pods");
        let stored = match (target.group.as_str(), target.resource.as_str()) {
            ("", "pods") => {
                let key = objects::key(pods, &target.namespace, &target.name);
                self.store
                    .get(&key)
                    .await
                    .map(|found| found.into_iter().collect())
            }
            ("", "secrets" | "configmaps" | "persistentvolumeclaims" | "serviceaccounts") => {
                let prefix = objects::prefix(pods, Some(&target.namespace));
                self.store
                    .list(&prefix, &ListOptions::default())
                    .await
                    .map(|page| page.items)
            }
            _ => return Ok(NodeIndex::default()),
        };
        let mut index = NodeIndex::default();
        for stored in stored.map_err(|error| store_failure(&error))? {
            index.put(&serde_json::from_slice(&stored.value).map_err(Status::internal)?);
        }
        Ok(index)
    }
}

impl Server {
    /// What the node authorizer has to know about one volume.
    async fn volume_view(&self, name: &str) -> Result<NodeIndex, Status> {
        let key = objects::key(crate::row("", "persistentvolumes"), "", name);
        let stored = self
            .store
            .get(&key)
            .await
            .map_err(|error| store_failure(&error))?;
        let mut index = NodeIndex::default();
        if let Some(stored) = stored {
            index.put_volume(&serde_json::from_slice(&stored.value).map_err(Status::internal)?);
        }
        Ok(index)
    }
}

fn refused_verb(row: &Resource) -> Status {
    match row.stored {
        Stored::Derived => Status::read_only(row, profiles::SOURCE),
        Stored::Measured => Status::read_only(row, measured::SOURCE),
        Stored::Yes | Stored::Virtual => Status::method_not_allowed(),
    }
}

/// Acting for somebody else is not served. Ignoring the headers would do as oneself what was meant to be tried
/// with another's rights.
fn refuse_impersonation(headers: &HeaderMap) -> Result<(), Status> {
    match headers
        .keys()
        .find(|name| name.as_str().starts_with("impersonate-"))
    {
        Some(_) => Err(Status::forbidden_path(
            "impersonation (--as, --as-group, --as-uid) is not supported by this version; \
             use a client certificate of that user",
        )),
        None => Ok(()),
    }
}

/// What authorization decides on. The name is the one that the request is really about: of a create it
/// stands in the body, of a list or watch perhaps in the field selector.
fn attributes(
    who: &Authenticated,
    verb: Verb,
    target: &ResourceTarget,
    parameters: &Parameters,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Attributes, Status> {
    let row = target.resource;
    let name = match verb {
        Verb::List | Verb::Watch => {
            let query = ListQuery::parse(row, parameters)?;
            query
                .fields
                .required("metadata.name")
                .unwrap_or_default()
                .to_owned()
        }
        // Only a node's rights depend on the name of what it creates.
        Verb::Create if target.name.is_none() && who.identity().node().is_some() => {
            let form = negotiate::body_form(header_text(headers, &header::CONTENT_TYPE).as_deref())?;
            // A body that does not decode names nothing yet; what is wrong with it is told to those who may.
            decode::object(row, None, form, body, FieldValidation::Ignore)
                .map(|decoded| metadata_text(&decoded.object, "name").to_owned())
                .unwrap_or_default()
        }
        _ => target.name().to_owned(),
    };
    Ok(Attributes::resource(
        verb.as_str(),
        control_auth::ResourceTarget {
            group: row.group.to_owned(),
            resource: row.plural.to_owned(),
            subresource: target.subresource().to_owned(),
            namespace: target.namespace().to_owned(),
            name,
        },
    ))
}

async fn read_body(body: Body) -> Result<Bytes, Status> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Status::too_large()),
        Ok(Err(_broken)) => Err(Status::bad_request("the body of the request ended early")),
        Err(_elapsed) => Err(Status::timeout("the body of the request did not arrive in time")),
    }
}

/// The outcome in the form that the client asked for.
fn shown(call: &Call, verb: Verb, outcome: Outcome) -> Result<Response, Status> {
    let form = negotiate::object_form(call.accept.as_deref())?;
    let row = call.target.resource;
    let include = ListQuery::parse(row, &call.parameters)?.include;
    let name = metadata_text(&outcome.object, "name").to_owned();
    let body = match verb {
        Verb::List | Verb::DeleteCollection => shape::list(form, row, outcome.object, include, call.now),
        _ => shape::one(form, row, outcome.object, include, call.now),
    };
    let mut response = respond::json(outcome.code, &body);
    respond::add_warnings(&mut response, &outcome.warnings);
    response.extensions_mut().insert(ObjectName(name));
    Ok(response)
}

/// Name of the object that an answer is about, for the audit line: a create has it in its body only.
#[derive(Debug, Clone)]
struct ObjectName(String);

fn header_text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

/// One line for each request that may change something, allowed or not. Never bodies.
struct Audit {
    user: String,
    address: SocketAddr,
    verb: Verb,
    target: ResourceTarget,
}

impl Audit {
    fn new(who: &Authenticated, peer: &Peer, verb: Verb, target: &ResourceTarget) -> Self {
        let user = who.identity().user.clone();
        Self {
            user,
            address: peer.address,
            verb,
            target: target.clone(),
        }
    }

    fn write(&self, result: &Result<Response, Status>) {
        let (code, reason, made) = match result {
            Ok(response) => (
                response.status().as_u16(),
                "",
                response.extensions().get::<ObjectName>(),
            ),
            Err(status) => (status.code(), status.reason(), None),
        };
        let named = self.target.name.as_deref();
        let name = named.or(made.map(|made| made.0.as_str())).unwrap_or_default();
        let virtual_only = self.target.resource.stored == Stored::Virtual;
        if !self.verb.mutates() || virtual_only {
            return;
        }
        info!(
            target: "audit",
            user = self.user,
            address = %self.address,
            verb = self.verb.as_str(),
            group = self.target.resource.group,
            resource = self.target.resource.plural,
            subresource = self.target.subresource(),
            namespace = self.target.namespace(),
            name,
            code,
            reason,
            "request"
        );
    }
}
