//! Pods run as a service account that exists, and get a token of it.

use api::resources::Resource;
use control_wire::Status;
use serde_json::Value;

use crate::{
    Server, objects,
    write::{generate_name, store_failure},
};

/// The account of pods that name none. The control plane makes it in each namespace, some moments after the namespace:
/// pods that come earlier are not refused, they wait for it.
const DEFAULT_ACCOUNT: &str = "default";

impl Server {
    /// Completes a pod that is created: the volume with its token, unless pod or account do without. Other kinds are
    /// left alone.
    pub(crate) async fn give_account(
        &self,
        row: &'static Resource,
        namespace: &str,
        object: &mut Value,
    ) -> Result<(), Status> {
        if (row.group, row.kind) != ("", "Pod") {
            return Ok(());
        }
        let name = control_admission::account_of(object).to_owned();
        let key = objects::key(crate::row("", "serviceaccounts"), namespace, &name);
        let stored = self
            .store
            .get(&key)
            .await
            .map_err(|error| store_failure(&error))?;
        let account: Option<Value> = stored
            .map(|stored| serde_json::from_slice(&stored.value))
            .transpose()
            .map_err(Status::internal)?;
        if account.is_none() && name != DEFAULT_ACCOUNT {
            let message = format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            );
            let pod = objects::metadata_text(object, "name");
            return Err(Status::forbidden(row, pod, message));
        }
        let volume = generate_name(control_admission::TOKEN_VOLUME_PREFIX);
        control_admission::mount_token(object, account.as_ref(), &volume);
        Ok(())
    }
}
