//! Requests for certificates: how many of them there may be.
//!
//! Nodes, and who may bring one in, make them without being asked; each is an object in the store that stays for
//! hours. The cleaner among the controllers removes answered ones sooner where there are many, so that who gets
//! answers does not come near these limits.

use api::resources::Resource;
use control_store::ListOptions;
use control_wire::Status;
use serde_json::Value;
use tokio::sync::MutexGuard;

use crate::{Server, objects, write::store_failure};

/// Requests of one requester, whatever became of them.
const MAX_OF_ONE: usize = 20;
/// Requests of all together.
const MAX_OF_ALL: usize = 500;

impl Server {
    /// Room for one more request of `requester`, until the guard is dropped: no other is stored meanwhile. Other kinds
    /// need none.
    pub(crate) async fn hold_room(
        &self,
        row: &'static Resource,
        requester: &str,
    ) -> Result<Option<MutexGuard<'_, ()>>, Status> {
        if row.kind != "CertificateSigningRequest" {
            return Ok(None);
        }
        let held = self.certificate_requests.lock().await;
        let page = self
            .store
            .list(&objects::prefix(row, None), &ListOptions::default())
            .await
            .map_err(|error| store_failure(&error))?;
        let mut requesters = Vec::new();
        for stored in &page.items {
            let request: Value = serde_json::from_slice(&stored.value).map_err(Status::internal)?;
            requesters.push(
                request["spec"]["username"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            );
        }
        check_room(&requesters, requester).map_err(|problem| Status::too_many(row, problem))?;
        Ok(Some(held))
    }
}

/// Whether there may be one more. `requesters` has one entry for each request.
fn check_room(requesters: &[String], requester: &str) -> Result<(), String> {
    let of_one = requesters.iter().filter(|other| *other == requester).count();
    let (there, limit, whose) = match of_one >= MAX_OF_ONE {
        true => (of_one, MAX_OF_ONE, format!("of {requester:?}")),
        false => (
            requesters.len(),
            MAX_OF_ALL,
            "of all requesters together".to_owned(),
        ),
    };
    match there < limit {
        true => Ok(()),
        false => Err(format!(
            "there are {there} certificate signing requests {whose}, and the limit is {limit}: \
             old ones are removed by themselves, or with kubectl delete csr"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_requester_has_a_share_and_all_together_have_a_limit() {
        let many = |name: &str, count: usize| vec![name.to_owned(); count];
        assert_eq!(check_room(&many("a", MAX_OF_ONE - 1), "a"), Ok(()));
        let refused = check_room(&many("a", MAX_OF_ONE), "a").unwrap_err();
        assert!(refused.contains("20") && refused.contains("\"a\""), "{refused}");
        assert_eq!(
            check_room(&many("a", MAX_OF_ONE), "b"),
            Ok(()),
            "others have theirs"
        );
        let crowd = |count: usize| -> Vec<String> { (0..count).map(|number| number.to_string()).collect() };
        assert_eq!(check_room(&crowd(MAX_OF_ALL - 1), "x"), Ok(()));
        let refused = check_room(&crowd(MAX_OF_ALL), "x").unwrap_err();
        assert!(refused.contains("500"), "{refused}");
    }
}
