//! Tokens of service accounts: who shows one, and who gets one.
//!
//! A token that is shown with a request says who asks, also where the connection has a certificate: it is the nearer
//! word, and `kubectl --token` tries the token's rights and not those of the kubeconfig's certificate.

use std::collections::BTreeSet;

use control_auth::{
    Authenticated,
    token::{Found, Grant, Named, TokenError, Verified},
};
use control_wire::{Cause, Status, decode, negotiate, query::WriteQuery};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequestSpec},
    core::v1::Pod,
};
use serde_json::{Value, json};
use tracing::debug;

use crate::{
    Server,
    call::{Call, Outcome},
    lifecycle::{is_being_deleted, seconds},
    objects::{self, metadata_text},
    reviews::user_info,
    server::Peer,
    write::store_failure,
};

/// Life of a token that asks for none: Kubernetes' default.
const DEFAULT_SECONDS: i64 = 3600;
/// Shortest life: Kubernetes' own.
const MIN_SECONDS: i64 = 600;
/// Longest life; who asks for more gets this and a warning.
const MAX_SECONDS: i64 = 24 * 3600;
/// Most audiences of one token.
const MAX_AUDIENCES: usize = 16;
/// Longest audience, in bytes.
const MAX_AUDIENCE_BYTES: usize = 512;

/// What a token is to be bound to.
#[derive(Default)]
struct Bound {
    pod: Option<Named>,
    secret: Option<Named>,
    node: Option<Named>,
}

impl Server {
    /// Who sends a request: its token if it has one, else the connection's certificate.
    pub(crate) async fn identify(&self, peer: &Peer, headers: &HeaderMap) -> Result<Authenticated, Status> {
        let Some(token) = bearer(headers)? else {
            let who = peer.who.clone().ok_or_else(Status::unauthorized)?;
            if who.is_expired(Timestamp::now().as_second()) {
                return Err(Status::revoked("the client certificate has expired"));
            }
            self.refuse_revoked(&who).await?;
            return Ok(who);
        };
        let own = [self.token_keys.issuer().to_owned()];
        match self.authenticate(token, &own, Timestamp::now()).await? {
            Ok((who, _)) => {
                peer.vouched.cancel();
                Ok(who)
            }
            Err(error) => {
                debug!(address = %peer.address, %error, "token");
                Err(Status::unauthorized())
            }
        }
    }

    /// `POST serviceaccounts/NAME/token`.
    pub(crate) async fn request_token(&self, call: &Call) -> Result<Outcome, Status> {
        let target = &call.target;
        let (row, namespace, name) = (target.resource, target.namespace(), target.name());
        let query = WriteQuery::parse(&call.parameters)?;
        let form = negotiate::body_form(call.content_type.as_deref())?;
        let decoded = decode::object(row, target.subresource, form, &call.body, query.validation)?;
        let (mut object, mut warnings) = (decoded.object, decoded.warnings);
        let spec: TokenRequestSpec =
            serde_json::from_value(object["spec"].clone()).map_err(Status::internal)?;
        let account = self.fetch(row, namespace, name).await?;
        if is_being_deleted(&account) {
            let problem = "the service account is being deleted";
            return Err(Status::conflict(row, name, problem));
        }
        let asked = spec.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        let causes = problems(&spec, asked);
        if !causes.is_empty() {
            return Err(Status::invalid(row, name, causes));
        }
        let life = asked.min(MAX_SECONDS);
        if life < asked {
            warnings.push(format!(
                "requested expiration of {asked} seconds shortened to {life} seconds"
            ));
        }
        let audiences = match spec.audiences.is_empty() {
            true => vec![self.token_keys.issuer().to_owned()],
            false => spec.audiences.clone(),
        };
        let bound = self.bound(call, &spec, &audiences).await?;
        let issued_at = call.now.as_second();
        let grant = Grant {
            namespace: namespace.to_owned(),
            account: Named {
                name: name.to_owned(),
                uid: metadata_text(&account, "uid").to_owned(),
            },
            pod: bound.pod,
            secret: bound.secret,
            node: bound.node,
            audiences,
            id: uuid::Uuid::new_v4().to_string(),
            issued_at,
            expires_at: issued_at.saturating_add(life),
        };
        let expires = Timestamp::from_second(grant.expires_at).unwrap_or(Timestamp::MAX);
        // A dry run says what would be made.
        let token = match query.dry_run {
            true => String::new(),
            false => self.token_keys.sign(&grant),
        };
        object["metadata"] =
            json!({"name": name, "namespace": namespace, "creationTimestamp": seconds(call.now)});
        object["spec"]["audiences"] = json!(grant.audiences);
        object["spec"]["expirationSeconds"] = json!(life);
        object["status"] = json!({"token": token, "expirationTimestamp": seconds(expires)});
        Ok(Outcome {
            code: StatusCode::CREATED,
            object,
            warnings,
        })
    }

    /// The status of a TokenReview.
    pub(crate) async fn judge_token(&self, spec: &Value, now: Timestamp) -> Result<Value, Status> {
        let texts = |value: &Value| -> Vec<String> {
            let items = value.as_array().into_iter().flatten();
            items.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut audiences = texts(&spec["audiences"]);
        if audiences.is_empty() {
            audiences.push(self.token_keys.issuer().to_owned());
        }
        let token = spec["token"].as_str().unwrap_or_default();
        Ok(match self.authenticate(token, &audiences, now).await? {
            Ok((who, token)) => json!({
                "authenticated": true,
                "user": user_info(who.identity()),
                "audiences": token.audiences(),
            }),
            Err(error) => json!({"authenticated": false, "error": error.to_string()}),
        })
    }

    /// The identity of a token, compared with what is stored now; the outer error is the store's.
    async fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<Result<(Authenticated, Verified), TokenError>, Status> {
        let verified = match self.token_keys.verify(token, audiences, now.as_second()) {
            Ok(verified) => verified,
            Err(error) => return Ok(Err(error)),
        };
        let namespace = verified.namespace();
        let uid = async |plural: &str, named: Option<&Named>| match named {
            Some(named) => self.living_uid(plural, namespace, &named.name).await,
            None => Ok(None),
        };
        let found = Found {
            account: uid("serviceaccounts", Some(verified.account())).await?,
            pod: uid("pods", verified.pod()).await?,
            secret: uid("secrets", verified.secret()).await?,
        };
        Ok(Authenticated::from_token(&verified, &found).map(|who| (who, verified)))
    }

    /// UID of an object, if it is there. A pod that is being deleted still acts, an account does not.
    async fn living_uid(&self, plural: &str, namespace: &str, name: &str) -> Result<Option<String>, Status> {
        let key = objects::key(crate::row("", plural), namespace, name);
        let stored = self
            .store
            .get(&key)
            .await
            .map_err(|error| store_failure(&error))?;
        let Some(stored) = stored else { return Ok(None) };
        let object: Value = serde_json::from_slice(&stored.value).map_err(Status::internal)?;
        let lives = plural == "pods" || !is_being_deleted(&object);
        Ok(lives.then(|| metadata_text(&object, "uid").to_owned()))
    }

    /// What the token is bound to, which must be there. A node gets tokens of its own pods only, bound to them, and
    /// for those audiences only that they name: the authorizer has seen that one of its pods uses the account.
    async fn bound(
        &self,
        call: &Call,
        spec: &TokenRequestSpec,
        audiences: &[String],
    ) -> Result<Bound, Status> {
        let target = &call.target;
        let (row, namespace, name) = (target.resource, target.namespace(), target.name());
        let node = call.who.identity().node();
        let refused = |problem: &str| Err(Status::forbidden(row, name, problem));
        let Some(reference) = &spec.bound_object_ref else {
            return match node {
                Some(_) => refused("node requested token not bound to a pod"),
                None => Ok(Bound::default()),
            };
        };
        let kind = reference.kind.as_deref().unwrap_or_default();
        let wanted = reference.name.as_deref().unwrap_or_default();
        let bound_row = crate::row("", if kind == "Secret" { "secrets" } else { "pods" });
        let object = self.fetch(bound_row, namespace, wanted).await?;
        let named = Named {
            name: wanted.to_owned(),
            uid: metadata_text(&object, "uid").to_owned(),
        };
        if reference.uid.as_ref().is_some_and(|uid| *uid != named.uid) {
            let uid = reference.uid.as_deref().unwrap_or_default();
            let problem = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. \
                 The object might have been deleted and then recreated"
            );
            return Err(Status::conflict(bound_row, wanted, problem));
        }
        if kind == "Secret" {
            return match node {
                Some(_) => refused("node requested token not bound to a pod"),
                None => Ok(Bound {
                    secret: Some(named),
                    ..Bound::default()
                }),
            };
        }
        let pod: Pod = serde_json::from_value(object).map_err(Status::internal)?;
        let pod_spec = pod.spec.as_ref();
        if pod_spec.and_then(|spec| spec.service_account_name.as_deref()) != Some(name) {
            let cause = Cause::invalid(
                "spec.boundObjectRef",
                wanted,
                format!("cannot bind token for serviceaccount {name:?} to pod running with another one"),
            );
            return Err(Status::invalid(row, name, vec![cause]));
        }
        let runs_on = pod_spec.and_then(|spec| spec.node_name.as_deref());
        if let Some(node) = node {
            if runs_on != Some(node) {
                return refused("node requested token bound to a pod scheduled on a different node");
            }
            if reference.uid.is_none() {
                return refused("node requested token without the UID of the pod");
            }
            let allowed = audiences_of(&pod, self.token_keys.issuer());
            let mut asked = audiences.iter();
            if let Some(other) = asked.find(|audience| !allowed.contains(audience.as_str())) {
                return refused(&format!(
                    "node requested token for audience {other:?}, which no volume of the pod names"
                ));
            }
        }
        let node = match runs_on {
            Some(node) => Some(Named {
                name: node.to_owned(),
                uid: self.living_uid("nodes", "", node).await?.unwrap_or_default(),
            }),
            None => None,
        };
        Ok(Bound {
            pod: Some(named),
            node,
            ..Bound::default()
        })
    }
}

/// The token of a request. Two of them, or credentials of another kind, are no way to be somebody.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Status> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let value = value.to_str().ok().filter(|_| values.next().is_none());
    let (scheme, token) = value
        .and_then(|value| value.split_once(' '))
        .ok_or_else(Status::unauthorized)?;
    match scheme.eq_ignore_ascii_case("bearer") {
        true => Ok(Some(token.trim())),
        false => Err(Status::unauthorized()),
    }
}

fn problems(spec: &TokenRequestSpec, seconds: i64) -> Vec<Cause> {
    let mut causes = Vec::new();
    if seconds < MIN_SECONDS {
        let why = "may not specify a duration less than 10 minutes";
        causes.push(Cause::invalid("spec.expirationSeconds", seconds, why));
    }
    let fits = |audience: &String| !audience.is_empty() && audience.len() <= MAX_AUDIENCE_BYTES;
    if spec.audiences.len() > MAX_AUDIENCES || !spec.audiences.iter().all(fits) {
        let why = format!("at most {MAX_AUDIENCES}, of 1 to {MAX_AUDIENCE_BYTES} bytes each");
        causes.push(Cause::invalid("spec.audiences", spec.audiences.len(), why));
    }
    if let Some(BoundObjectReference {
        api_version,
        kind,
        name,
        ..
    }) = &spec.bound_object_ref
    {
        let kind = kind.as_deref().unwrap_or_default();
        if !matches!(kind, "Pod" | "Secret") || !matches!(api_version.as_deref(), None | Some("" | "v1")) {
            causes.push(Cause::not_supported(
                "spec.boundObjectRef.kind",
                kind,
                &["Pod", "Secret"],
            ));
        }
        if name.as_deref().unwrap_or_default().is_empty() {
            causes.push(Cause::required("spec.boundObjectRef.name", ""));
        }
    }
    causes
}

/// Audiences that the pod's volumes name; `own` is meant where they name none.
fn audiences_of<'a>(pod: &'a Pod, own: &'a str) -> BTreeSet<&'a str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let projected = volumes.filter_map(|volume| volume.projected.as_ref());
    let sources = projected.flat_map(|projected| projected.sources.iter().flatten());
    let tokens = sources.filter_map(|source| source.service_account_token.as_ref());
    tokens
        .map(|token| match token.audience.as_deref() {
            None | Some("") => own,
            Some(audience) => audience,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn one_bearer_token_or_nothing() {
        let read = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
            }
            bearer(&headers)
                .map(|token| token.map(str::to_owned))
                .map_err(|status| status.code())
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["Bearer a.b.c"]), Ok(Some("a.b.c".to_owned())));
        assert_eq!(read(&["bearer a.b.c"]), Ok(Some("a.b.c".to_owned())));
        for other in [&["Basic eDp5"][..], &["a.b.c"], &["Bearer a", "Bearer b"], &[""]] {
            assert_eq!(read(other), Err(401), "{other:?}");
        }
    }
}
