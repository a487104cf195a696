//! Signs the requests of nodes that were approved. Runs in a process of its own, the only one that has the authority's key;
//! it reads requests and writes certificates, and cannot approve.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use control_pki::requests::{Kind, LONGEST, NodeRequest, RequestError, Signer};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString, api::certificates::v1::CertificateSigningRequest, apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{backoff::Backoff, cache::Cache};

const RESYNC: Duration = Duration::from_secs(60);

/// Signs until `shutdown`.
pub async fn sign(client: Client, signer: Signer, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    let api: Api<CertificateSigningRequest> = Api::all(client);
    let mut requests = Cache::spawn(&mut tasks, &shutdown, api.clone());
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let mut wait = RESYNC;
        let mut settled = true;
        for request in requests.objects().unwrap_or_default() {
            settled &= serve(&api, &signer, &request).await;
        }
        match settled {
            true => backoff.reset(),
            false => wait = backoff.fail(),
        }
        tokio::select! {
            () = requests.changed() => {}
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// False when it has to be tried again.
async fn serve(
    api: &Api<CertificateSigningRequest>,
    signer: &Signer,
    request: &Arc<CertificateSigningRequest>,
) -> bool {
    let Some(kind) = waiting(request) else { return true };
    let status = match answer(signer, kind, request, SystemTime::now()) {
        Ok(certificate) => json!({"certificate": ByteString(certificate.into_bytes())}),
        Err(error) => {
            let now = Time(Timestamp::now());
            let known = request
                .status
                .iter()
                .flat_map(|status| status.conditions.iter().flatten());
            let mut conditions: Vec<_> = known.map(|condition| json!(condition)).collect();
            conditions.push(json!({
                "type": "Failed",
                "status": "True",
                "reason": "SignerValidationFailure",
                "message": error.to_string(),
                "lastUpdateTime": now,
                "lastTransitionTime": now,
            }));
            json!({"conditions": conditions})
        }
    };
    let name = request.name_any();
    let patch = json!({
        "metadata": {"resourceVersion": request.resource_version(), "uid": request.uid()},
        "status": status,
    });
    match api
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Ok(_) => {
            tracing::info!(request = name, user = request.spec.username, "answered");
            true
        }
        Err(kube::Error::Api(status)) if status.code == 404 => true,
        // The server does not take it, as for a node that was deleted: asking again at once changes nothing.
        Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => {
            tracing::warn!(request = name, why = status.message, "not answered");
            true
        }
        Err(error) => {
            tracing::warn!(
                request = name,
                error = &error as &dyn std::error::Error,
                "not answered"
            );
            false
        }
    }
}

/// The kind of a request that was approved and not answered yet.
fn waiting(request: &CertificateSigningRequest) -> Option<Kind> {
    let conditions = || {
        request
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
    };
    let is = |kind: &str| conditions().any(|condition| condition.type_ == kind && condition.status == "True");
    let issued = request
        .status
        .as_ref()
        .is_some_and(|status| status.certificate.is_some());
    (is("Approved") && !is("Denied") && !is("Failed") && !issued)
        .then(|| Kind::of_signer(&request.spec.signer_name))
        .flatten()
}

fn answer(
    signer: &Signer,
    kind: Kind,
    request: &CertificateSigningRequest,
    now: SystemTime,
) -> Result<String, RequestError> {
    let spec = &request.spec;
    let pem = String::from_utf8_lossy(&spec.request.0);
    let asked = NodeRequest::parse(kind, &pem, spec.usages.as_deref().unwrap_or_default())?;
    let seconds = spec
        .expiration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok());
    signer.sign(&asked, seconds.map_or(LONGEST, Duration::from_secs), now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_approved_and_is_a_nodes_is_signed() {
        let request = |conditions: &[&str], signer: &str, certificate: Option<&str>| {
            let conditions: Vec<_> = conditions
                .iter()
                .map(|kind| json!({"type": kind, "status": "True"}))
                .collect();
            let request = json!({
                "spec": {"request": "", "signerName": signer},
                "status": {"conditions": conditions, "certificate": certificate},
            });
            waiting(&serde_json::from_value(request).unwrap()).is_some()
        };
        let signer = Kind::Client.signer();
        assert!(request(&["Approved"], signer, None));
        assert!(!request(&[], signer, None));
        assert!(!request(&["Approved", "Denied"], signer, None));
        assert!(!request(&["Approved", "Failed"], signer, None));
        assert!(!request(&["Approved"], signer, Some("eA==")));
        assert!(
            !request(&["Approved"], "kubernetes.io/kube-apiserver-client", None),
            "people and masters"
        );
    }
}
