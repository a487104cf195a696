//! Calico's profiles. Nobody writes them: each namespace and each service account has one, with the labels that
//! selectors of policies see, and one more is there for host endpoints.

use api::calico;
use control_store::ListOptions;
use control_wire::{Status, query::ListQuery};
use serde_json::{Map, Value, json};

use crate::{
    Server,
    call::{Call, Outcome},
    objects::{self, metadata_text},
    read::matcher,
    write::store_failure,
};

/// What profiles are computed from, for refusals.
pub(crate) const SOURCE: &str = "namespaces and service accounts";

/// Profile that allows everything, for host endpoints that nobody restricts.
const ALLOW: &str = "projectcalico-default-allow";
/// Label with the name of the namespace or service account itself.
const NAME_LABEL: &str = "projectcalico.org/name";

impl Server {
    /// `GET` on a profile.
    pub(crate) async fn get_profile(&self, call: &Call) -> Result<Outcome, Status> {
        let name = call.target.name();
        let (_, profiles) = self.profiles().await?;
        let found = profiles
            .into_iter()
            .find(|profile| metadata_text(profile, "name") == name);
        found
            .map(Outcome::ok)
            .ok_or_else(|| Status::not_found(call.target.resource, name))
    }

    /// `GET` on all of them. There are as many as their sources, so a limit is not applied.
    pub(crate) async fn list_profiles(&self, call: &Call) -> Result<Outcome, Status> {
        let query = ListQuery::parse(call.target.resource, &call.parameters)?;
        let matches = matcher(&query);
        let (revision, mut profiles) = self.profiles().await?;
        profiles.retain(|profile| matches(profile));
        Ok(Outcome::ok(json!({
            "apiVersion": calico::API_VERSION,
            "kind": "ProfileList",
            "metadata": {"resourceVersion": revision.to_string()},
            "items": profiles,
        })))
    }

    /// All profiles by name, and the revision that they show.
    async fn profiles(&self) -> Result<(u64, Vec<Value>), Status> {
        let mut options = ListOptions::default();
        let mut found = vec![profile(ALLOW, &Value::Null, true, Map::new())];
        let mut revision = 0;
        for (plural, of) in [
            ("namespaces", of_namespace as fn(&Value) -> Value),
            ("serviceaccounts", of_account),
        ] {
            let prefix = objects::prefix(crate::row("", plural), None);
            let page = self.store.list(&prefix, &options).await;
            let page = page.map_err(|error| store_failure(&error))?;
            // Both lists show one state.
            revision = page.revision;
            options.at = Some(page.revision);
            for stored in &page.items {
                let source = objects::materialise(stored, stored.revision).map_err(Status::internal)?;
                found.push(of(&source));
            }
        }
        found.sort_by(|a, b| metadata_text(a, "name").cmp(metadata_text(b, "name")));
        Ok((revision, found))
    }
}

fn of_namespace(namespace: &Value) -> Value {
    let name = metadata_text(namespace, "name");
    profile(&format!("kns.{name}"), namespace, true, labels(namespace, "pcns"))
}

/// A service account's has labels only: what is allowed by default says its namespace's.
fn of_account(account: &Value) -> Value {
    let (namespace, name) = (
        metadata_text(account, "namespace"),
        metadata_text(account, "name"),
    );
    let name = format!("ksa.{namespace}.{name}");
    profile(&name, account, false, labels(account, "pcsa"))
}

/// Labels of the source under a prefix, and its name.
fn labels(source: &Value, prefix: &str) -> Map<String, Value> {
    let own = source.pointer("/metadata/labels").and_then(Value::as_object);
    let own = own.into_iter().flatten();
    let own = own.map(|(key, value)| (format!("{prefix}.{key}"), value.clone()));
    let name = json!(metadata_text(source, "name"));
    own.chain([(format!("{prefix}.{NAME_LABEL}"), name)]).collect()
}

fn profile(name: &str, source: &Value, allows: bool, labels: Map<String, Value>) -> Value {
    let mut metadata = json!({"name": name});
    for field in ["uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = source.pointer(&format!("/metadata/{field}")) {
            metadata[field] = value.clone();
        }
    }
    let mut spec = json!({});
    if allows {
        spec["ingress"] = json!([{"action": "Allow"}]);
        spec["egress"] = json!([{"action": "Allow"}]);
    }
    if !labels.is_empty() {
        spec["labelsToApply"] = Value::Object(labels);
    }
    json!({"apiVersion": calico::API_VERSION, "kind": "Profile", "metadata": metadata, "spec": spec})
}
