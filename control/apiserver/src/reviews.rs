//! The reviews of this version: who am I, may I, and whose token is this.

use control_auth::{Attributes, Identity, ResourceTarget};
use control_wire::{Status, decode, negotiate, query::FieldValidation};
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    Server,
    call::{Call, Outcome},
    lifecycle::seconds,
};

impl Server {
    /// `POST` on a virtual resource.
    pub(crate) async fn review(&self, call: &Call) -> Result<Outcome, Status> {
        let row = call.target.resource;
        if row.kind == "SelfSubjectReview" {
            // Who asks stands in the certificate or token; the body has nothing to add.
            let identity = call.authorized.identity();
            let object = json!({
                "apiVersion": call.target.api_version(),
                "kind": row.kind,
                "metadata": {"creationTimestamp": seconds(call.now)},
                "status": {"userInfo": user_info(identity)},
            });
            return Ok(Outcome {
                code: StatusCode::CREATED,
                object,
                warnings: Vec::new(),
            });
        }
        if !matches!(row.kind, "SelfSubjectAccessReview" | "TokenReview") {
            return Err(Status::method_not_allowed());
        }
        let form = negotiate::body_form(call.content_type.as_deref())?;
        let decoded = decode::object(row, None, form, &call.body, FieldValidation::Warn)?;
        let mut object = decoded.object;
        object["status"] = match row.kind {
            "TokenReview" => self.judge_token(&object["spec"], call.now).await?,
            _ => self.access(call, &object["spec"]).await?,
        };
        Ok(Outcome {
            code: StatusCode::CREATED,
            object,
            warnings: decoded.warnings,
        })
    }

    async fn access(&self, call: &Call, spec: &Value) -> Result<Value, Status> {
        let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
        let resource = &spec["resourceAttributes"];
        let path = &spec["nonResourceAttributes"];
        let attributes = match (resource.is_object(), path.is_object()) {
            (true, false) => Attributes::resource(
                text(resource, "verb"),
                ResourceTarget {
                    group: text(resource, "group"),
                    resource: text(resource, "resource"),
                    subresource: text(resource, "subresource"),
                    namespace: text(resource, "namespace"),
                    name: text(resource, "name"),
                },
            ),
            (false, true) => Attributes::path(text(path, "verb"), text(path, "path")),
            _ => {
                let message = "exactly one of resourceAttributes and nonResourceAttributes must be specified";
                return Err(Status::bad_request(message));
            }
        };
        let nodes = self.node_view(&call.who, &attributes).await?;
        Ok(match control_auth::authorize(&call.who, attributes, &nodes) {
            Ok(_) => json!({"allowed": true}),
            Err(denied) => json!({"allowed": false, "reason": denied.to_string()}),
        })
    }
}

/// An identity in the words of `authentication.k8s.io`; what is empty is left out.
pub(crate) fn user_info(identity: &Identity) -> Value {
    let mut info = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        info["uid"] = json!(identity.uid);
    }
    if !identity.extra.is_empty() {
        info["extra"] = json!(identity.extra);
    }
    info
}
