//! Signs the requests of nodes that were approved. Runs in a process of its own, the only one that has the authority's key;
//! it reads requests and writes certificates, and cannot approve.

use std::time::{Duration, SystemTime};

use control_pki::requests::{Kind, LONGEST, NodeRequest, RequestError, Signer};
use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequest};
use kube::{
    Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    cache::Cache,
    requests::{self, Requests},
};

const RESYNC: Duration = Duration::from_secs(60);

/// Signs until `shutdown`.
pub async fn sign(client: Client, signer: Signer, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    let api = Requests::all(client);
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
async fn serve(api: &Requests, signer: &Signer, request: &CertificateSigningRequest) -> bool {
    let Some(kind) = waiting(request) else { return true };
    let status = match answer(signer, kind, request, SystemTime::now()) {
        Ok(certificate) => json!({"certificate": ByteString(certificate.into_bytes())}),
        Err(error) => {
            requests::with_condition(request, "Failed", "SignerValidationFailure", &error.to_string())
        }
    };
    let name = request.name_any();
    let patch = Patch::Merge(requests::patch(request, &status));
    let done = api.patch_status(&name, &PatchParams::default(), &patch).await;
    if done.is_ok() {
        tracing::info!(request = name, user = request.spec.username, "answered");
    }
    requests::is_settled(&name, &done.map(drop))
}

/// The kind of a request that was approved and not answered yet.
fn waiting(request: &CertificateSigningRequest) -> Option<Kind> {
    (requests::is_approved(request) && !requests::is_answered(request))
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
