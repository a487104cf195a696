//! Approves requests for the certificates of nodes, when who asks is the node itself or may bring it in, and removes old
//! requests. It does not sign: that takes the authority's key, which another process has.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use api::annotations::{GROUP_BOOTSTRAPPERS, GROUP_NODES, USER_BOOTSTRAP_PREFIX, USER_NODE_PREFIX};
use control_pki::requests::{Kind, NodeRequest, own_name};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{certificates::v1::CertificateSigningRequest, core::v1::Node},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    backoff::Backoff,
    cache::Cache,
    recorder::{Recorder, Severity},
};

const RESYNC: Duration = Duration::from_secs(60);
/// Kubernetes keeps requests that were issued for an hour, and others for a day.
const ISSUED_STAYS: SignedDuration = SignedDuration::from_hours(1);
const OTHERS_STAY: SignedDuration = SignedDuration::from_hours(24);

/// What the loop looks at.
pub(crate) struct Caches {
    pub(crate) requests: Cache<CertificateSigningRequest>,
    pub(crate) nodes: Cache<Node>,
}

/// Runs for ever.
pub(crate) async fn run(client: Client, recorder: Recorder, mut caches: Caches) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let mut wait = RESYNC;
        if let (Some(requests), Some(nodes)) = (caches.requests.objects(), caches.nodes.objects()) {
            let mut settled = true;
            for request in requests {
                settled &= act(&client, &recorder, &request, &nodes).await;
            }
            match settled {
                true => backoff.reset(),
                false => wait = backoff.fail(),
            }
        }
        tokio::select! {
            () = caches.requests.changed() => {}
            // A node that has just said its addresses may have asked for them before.
            () = caches.nodes.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// False when it has to be tried again.
async fn act(
    client: &Client,
    recorder: &Recorder,
    request: &CertificateSigningRequest,
    nodes: &[Arc<Node>],
) -> bool {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let name = request.name_any();
    let done = if is_old(request, Timestamp::now()) {
        api.delete(&name, &DeleteParams::default()).await.map(drop)
    } else if let Some(why) = approval(request, nodes) {
        let approved = approve(&api, request, why).await;
        if approved.is_ok() {
            recorder.record(request, Severity::Normal, "Approved", why).await;
        }
        approved
    } else {
        return true;
    };
    match done {
        Ok(()) => true,
        Err(kube::Error::Api(status)) if status.code == 404 => true,
        Err(error) => {
            tracing::warn!(
                request = name,
                error = &error as &dyn std::error::Error,
                "request was not changed"
            );
            false
        }
    }
}

async fn approve(
    api: &Api<CertificateSigningRequest>,
    request: &CertificateSigningRequest,
    why: &str,
) -> Result<(), kube::Error> {
    let now = Time(Timestamp::now());
    let known = request
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let mut conditions: Vec<_> = known.map(|condition| json!(condition)).collect();
    conditions.push(json!({
        "type": "Approved",
        "status": "True",
        "reason": "AutoApproved",
        "message": why,
        "lastUpdateTime": now,
        "lastTransitionTime": now,
    }));
    let patch = json!({
        "metadata": {"resourceVersion": request.resource_version(), "uid": request.uid()},
        "status": {"conditions": conditions},
    });
    api.patch_subresource(
        "approval",
        &request.name_any(),
        &PatchParams::default(),
        &Patch::Merge(patch),
    )
    .await
    .map(drop)
}

fn is_decided(request: &CertificateSigningRequest) -> bool {
    let conditions = request
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| matches!(condition.type_.as_str(), "Approved" | "Denied" | "Failed"))
}

fn is_old(request: &CertificateSigningRequest, now: Timestamp) -> bool {
    let issued = request
        .status
        .as_ref()
        .is_some_and(|status| status.certificate.is_some());
    let stays = if issued { ISSUED_STAYS } else { OTHERS_STAY };
    let made = request.creation_timestamp();
    made.is_some_and(|made| now.duration_since(made.0) > stays)
}

/// Why the request is approved; nothing leaves it to people.
///
/// A client's certificate goes to the node itself, or to who may bring in the node of that very name. A server's goes to
/// the node itself, for the names that its object says it has.
fn approval(request: &CertificateSigningRequest, nodes: &[Arc<Node>]) -> Option<&'static str> {
    if is_decided(request) {
        return None;
    }
    let spec = &request.spec;
    let kind = Kind::of_signer(&spec.signer_name)?;
    let pem = std::str::from_utf8(&spec.request.0).ok()?;
    let asked = NodeRequest::parse(kind, pem, spec.usages.as_deref().unwrap_or_default()).ok()?;
    let user = spec.username.as_deref().unwrap_or_default();
    let is = |prefix: &str, group: &str| {
        let in_group = spec.groups.iter().flatten().any(|own| own == group);
        in_group && user.strip_prefix(prefix) == Some(asked.node.as_str())
    };
    let itself = is(USER_NODE_PREFIX, GROUP_NODES);
    match kind {
        Kind::Client if itself => {
            Some("Auto approving self kubelet client certificate after SubjectAccessReview.")
        }
        Kind::Client if is(USER_BOOTSTRAP_PREFIX, GROUP_BOOTSTRAPPERS) => {
            Some("Auto approving kubelet client certificate of the node that this identity may bring in.")
        }
        Kind::Serving if itself && asked.names.is_subset(&names_of(&asked.node, nodes)) => {
            Some("Auto approving kubelet serving certificate for names of the node.")
        }
        _ => None,
    }
}

fn names_of(name: &str, nodes: &[Arc<Node>]) -> BTreeSet<String> {
    let mut names = BTreeSet::from([own_name(name)]);
    let node = nodes.iter().find(|node| node.name_any() == name);
    let addresses = node.and_then(|node| node.status.as_ref()?.addresses.as_ref());
    names.extend(
        addresses
            .into_iter()
            .flatten()
            .filter_map(|address| address.address.parse::<std::net::IpAddr>().ok())
            .map(|address| address.to_string()),
    );
    names
}

#[cfg(test)]
mod tests {
    use control_pki::requests;
    use k8s_openapi::ByteString;

    use super::*;

    fn request(
        node: &str,
        kind: Kind,
        names: &[String],
        user: &str,
        group: &str,
    ) -> CertificateSigningRequest {
        let (_key, pem) = requests::make(node, kind, names).unwrap();
        let mut request = CertificateSigningRequest::default();
        request.spec.request = ByteString(pem.into_bytes());
        request.spec.signer_name = kind.signer().to_owned();
        request.spec.usages = Some(kind.usages().map(str::to_owned).to_vec());
        request.spec.username = Some(user.to_owned());
        request.spec.groups = Some(vec![group.to_owned()]);
        request
    }

    #[test]
    fn only_who_is_bound_to_the_name_gets_it() {
        let client =
            |user: &str, group: &str| approval(&request("n1", Kind::Client, &[], user, group), &[]).is_some();
        assert!(client("system:bootstrap:n1", "system:bootstrappers"));
        assert!(client("system:node:n1", "system:nodes"));
        for (user, group) in [
            ("system:bootstrap:n2", "system:bootstrappers"),
            ("system:bootstrap:n1", "developers"),
            ("system:node:n2", "system:nodes"),
            ("system:node:n1", "developers"),
            ("joe", "system:bootstrappers"),
        ] {
            assert!(!client(user, group), "{user} {group}");
        }
    }

    #[test]
    fn servers_get_the_names_that_their_node_has() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}]},
        }))
        .unwrap();
        let nodes = [Arc::new(node)];
        let serving = |names: &[&str], user: &str, group: &str| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            approval(&request("n1", Kind::Serving, &names, user, group), &nodes).is_some()
        };
        let own = own_name("n1");
        assert!(serving(&[&own, "10.0.0.7"], "system:node:n1", "system:nodes"));
        assert!(
            !serving(&[&own, "10.0.0.8"], "system:node:n1", "system:nodes"),
            "another address"
        );
        assert!(
            !serving(&[&own_name("n2")], "system:node:n1", "system:nodes"),
            "another node"
        );
        assert!(
            !serving(&[&own], "system:bootstrap:n1", "system:bootstrappers"),
            "not yet a node"
        );
        let mut denied = request("n1", Kind::Client, &[], "system:node:n1", "system:nodes");
        denied.status =
            serde_json::from_value(json!({"conditions": [{"type": "Denied", "status": "True"}]})).ok();
        assert_eq!(approval(&denied, &nodes), None);
    }

    #[test]
    fn requests_do_not_pile_up() {
        let made: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut old = request("n1", Kind::Client, &[], "x", "y");
        old.metadata.creation_timestamp = Some(Time(made));
        let later = |hours: i64| made + SignedDuration::from_hours(hours);
        assert!(!is_old(&old, later(24)) && is_old(&old, later(25)));
        old.status = serde_json::from_value(json!({"certificate": "eA=="})).ok();
        assert!(!is_old(&old, later(1)) && is_old(&old, later(2)));
    }
}
