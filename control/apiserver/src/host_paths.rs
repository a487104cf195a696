//! Pods mount paths of the node only as far as grants give them. The node asks the same question again.

use api::{
    host_paths::{self, HostPathGrant, HostPathGrantSpec},
    resources::Resource,
};
use control_store::ListOptions;
use control_wire::Status;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::{Server, objects, write::store_failure};

impl Server {
    /// Refuses a pod that is created with a path that no grant gives; other kinds are left alone.
    pub(crate) async fn check_host_paths(
        &self,
        row: &'static Resource,
        namespace: &str,
        object: &Value,
    ) -> Result<(), Status> {
        if (row.group, row.kind) != ("", "Pod") {
            return Ok(());
        }
        // What is no pod is refused in better words by admission.
        let Ok(mut pod) = serde_json::from_value::<Pod>(object.clone()) else {
            return Ok(());
        };
        if host_paths::asked(&pod).is_empty() {
            return Ok(());
        }
        pod.metadata.namespace = Some(namespace.to_owned());
        if let Some(spec) = &mut pod.spec {
            spec.service_account_name = Some(control_admission::account_of(object).to_owned());
        }
        let grants = self.host_path_grants().await?;
        let name = objects::metadata_text(object, "name");
        host_paths::granted(&pod, &grants)
            .map(drop)
            .map_err(|refused| Status::forbidden(row, name, refused))
    }

    async fn host_path_grants(&self) -> Result<Vec<HostPathGrantSpec>, Status> {
        let prefix = objects::prefix(crate::row("palisade.dev", "hostpathgrants"), None);
        let listed = self.store.list(&prefix, &ListOptions::default()).await;
        let listed = listed.map_err(|error| store_failure(&error))?;
        let grant = |bytes: &[u8]| {
            let grant: HostPathGrant = serde_json::from_slice(bytes).map_err(Status::internal)?;
            // One that is on its way out gives nothing.
            Ok(grant.metadata.deletion_timestamp.is_none().then_some(grant.spec))
        };
        listed
            .items
            .iter()
            .filter_map(|stored| grant(&stored.value).transpose())
            .collect()
    }
}
