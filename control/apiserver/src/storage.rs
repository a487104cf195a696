//! Claims that name no class get the default one.

use api::{resources::Resource, storage::IS_DEFAULT_CLASS};
use control_store::ListOptions;
use control_wire::Status;
use serde_json::{Value, json};

use crate::{
    Server,
    objects::{self, metadata_text},
    write::store_failure,
};

impl Server {
    /// Completes a claim that is created: without a class, not even the empty one, it gets the default one; of several
    /// the newest. Other kinds are left alone.
    pub(crate) async fn give_class(&self, row: &'static Resource, object: &mut Value) -> Result<(), Status> {
        let names_one = object["spec"]["storageClassName"].is_string();
        if (row.group, row.kind) != ("", "PersistentVolumeClaim") || names_one || !object["spec"].is_object()
        {
            return Ok(());
        }
        let prefix = objects::prefix(crate::row("storage.k8s.io", "storageclasses"), None);
        let listed = self.store.list(&prefix, &ListOptions::default()).await;
        let listed = listed.map_err(|error| store_failure(&error))?;
        let mut defaults = Vec::new();
        for stored in &listed.items {
            let class: Value = serde_json::from_slice(&stored.value).map_err(Status::internal)?;
            if class["metadata"]["annotations"][IS_DEFAULT_CLASS] == "true" {
                let made = metadata_text(&class, "creationTimestamp").to_owned();
                defaults.push((made, metadata_text(&class, "name").to_owned()));
            }
        }
        if let Some((_, name)) = defaults.into_iter().max() {
            object["spec"]["storageClassName"] = json!(name);
        }
        Ok(())
    }
}
