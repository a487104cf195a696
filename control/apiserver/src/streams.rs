//! What is passed through from a node: logs and flows. And binding, which puts a pod on one.

use std::error::Error;

use axum::{body::Body, response::Response};
use control_admission::Operation;
use control_store::{Expected, StoreError};
use control_wire::{
    Status, decode, negotiate,
    query::{LogQuery, WriteQuery},
};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;
use tracing::warn;

use crate::{
    Server,
    call::{Call, Outcome},
    node_proxy::{self, NodeEndpoint, ProxyError},
    pods::{self, LogSource},
    standing::Standing,
    write::{MAX_ATTEMPTS, revision_of, store_failure},
};

impl Server {
    /// `GET pods/NAME/log`.
    pub(crate) async fn pod_log(&self, call: &Call, standing: Standing) -> Result<Response, Status> {
        let query = LogQuery::parse(&call.parameters)?;
        let pod = self.load(call).await?;
        let mut response = match pods::log_source(&pod, &query)? {
            LogSource::Unscheduled => Response::new(Body::empty()),
            LogSource::Node { node, path_and_query } => {
                self.node_answer(&node, &path_and_query, standing).await?
            }
        };
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(response)
    }

    /// `GET pods/NAME/learn`.
    pub(crate) async fn pod_learn(&self, call: &Call, standing: Standing) -> Result<Response, Status> {
        let pod = self.load(call).await?;
        let (node, path) = pods::learn_source(&pod, &call.parameters)?;
        self.node_answer(&node, &path, standing).await
    }

    /// `GET nodes/NAME/proxy/flows`, and what else a node answers.
    pub(crate) async fn node_stream(&self, call: &Call, standing: Standing) -> Result<Response, Status> {
        let path = pods::node_path(&call.target.rest, &call.parameters)?.ok_or_else(Status::no_route)?;
        self.node_answer(call.target.name(), &path, standing).await
    }

    /// `POST pods/NAME/binding`.
    pub(crate) async fn bind_pod(&self, call: &Call) -> Result<Outcome, Status> {
        let (row, name) = (call.target.resource, call.target.name());
        let query = WriteQuery::parse(&call.parameters)?;
        let form = negotiate::body_form(call.content_type.as_deref())?;
        let decoded = decode::object(row, call.target.subresource, form, &call.body, query.validation)?;
        for _attempt in 0..MAX_ATTEMPTS {
            let old = self.load(call).await?;
            let mut new = old.clone();
            pods::bind(&mut new, &decoded.object, row, call.now)?;
            let admitted = self.admit(call, Operation::Update, Some(&old), new)?;
            match self
                .store_admitted(call, &admitted, Expected::At(revision_of(&old)?), query.dry_run)
                .await
            {
                Ok(_pod) => {
                    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
                    return Ok(Outcome {
                        code: StatusCode::CREATED,
                        object: body,
                        warnings: decoded.warnings,
                    });
                }
                // Somebody changed the pod; whether it can still be bound is decided on what is there now.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_failure(&error)),
            }
        }
        Err(Status::modified(row, name))
    }

    async fn node_answer(
        &self,
        name: &str,
        path_and_query: &str,
        standing: Standing,
    ) -> Result<Response, Status> {
        let row = crate::row("", "nodes");
        let node = self.fetch(row, "", name).await?;
        let stream = async {
            let endpoint = NodeEndpoint::of(&node)?;
            node_proxy::get(&endpoint, path_and_query, &self.node_tls, standing).await
        };
        stream.await.map_err(|error| node_failure(&error))
    }
}

pub(crate) fn node_failure(error: &ProxyError) -> Status {
    match error {
        ProxyError::Refused {
            status: StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST,
            message,
        } => Status::bad_request(message.clone()),
        ProxyError::Timeout { .. } => Status::timeout(error.to_string()),
        _ => {
            warn!(error = error as &dyn Error, "request to a node");
            let source = error
                .source()
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            Status::unavailable(format!("{error}{source}"))
        }
    }
}
